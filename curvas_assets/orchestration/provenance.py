"""Where results come from: commit, package versions, data versions. Report and ledger state these facts."""

import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import dagster as dg

from curvas_assets.orchestration.asset_keys import key_of
from curvas_assets.orchestration.environment import deployment
from curvas_assets.stages.table import Asset

PACKAGES = ("curvas-assets", "dagster", "nnunetv2", "torch", "numpy", "numba", "scipy", "pandas", "zarr", "nibabel")


def git_commit() -> str:
    """The commit of the code: `CURVAS_GIT_COMMIT` where an image was built from one, else what the checkout says.

    A package that is installed inside somebody else's repository, such as in a virtual environment there, is not that
    repository's code: its commit is unknown.
    """
    return deployment().git_commit or _of_checkout(Path(__file__))


@cache
def _of_checkout(file: Path) -> str:
    """Asked once: a process runs the code that it has loaded, whatever becomes of the checkout meanwhile."""
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return answer.stdout.strip()


@cache
def package_versions() -> dict[str, str]:
    """The packages that results depend on, without importing them. Asked once, for the same reason."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def code_facts(*packages: str) -> dict[str, str]:
    """What an artefact says about the code that made it: commit, own version, versions of the packages that count."""
    versions = package_versions()
    return {"commit": git_commit(), **{name: versions[name] for name in ("curvas-assets", *packages)}}


def data_versions(instance: dg.DagsterInstance, assets: Iterable[Asset], partitions: Iterable[str]) -> dict[str, str]:
    """Asset (and partition) → data version of its latest materialisation; what was never materialised is left out."""
    found: dict[str, str] = {}
    for asset in assets:
        for partition in partitions:
            record = instance.get_latest_data_version_record(key_of(asset), partition_key=partition or None)
            materialization = record.asset_materialization if record else None
            if materialization is not None and materialization.tags:
                name = f"{asset} {partition}".strip()
                found[name] = materialization.tags.get("dagster/data_version", "")
    return found
