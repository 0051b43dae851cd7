"""Claims proved here, of the wheel that the checkout builds, installed in an environment of its own and used in an empty folder.

- It holds everything that the package reads when it runs, and no tests.
- The installed package is the one that is loaded, with its version, its studies and its other files.
- The demo starts: its store is served, its cohort is made, Dagster loads its code location, and its study begins to work.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from curvas_assets.local.deployment import ROOT, free_port

CONSOLE_SCRIPT = "#!{python}\nimport sys\nfrom dagster._cli import main\nsys.exit(main())\n"
SITE_PACKAGES = Path(pytest.__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BUILT_IN = ("curvas", "curvas-medig", "curvas-pdacvi", "demo", "phantom", "phantom-full", "phantom-pdacvi")
READ_AT_RUN_TIME = (
    *("py.typed", "decisions.md", "scoring/definitions.md", "report/templates/report.html.j2"),
    *(f"studies/{name}.yaml" for name in BUILT_IN),
    *("local/dagster.yaml", "local/postgres.yaml", "local/workspace.yaml"),
)
ASKED = """
import importlib.metadata
from importlib.resources import files
import curvas_assets
from curvas_assets.study import built_in_studies, load_study
print(curvas_assets.__file__)
print(importlib.metadata.version("curvas-assets"))
print(*built_in_studies(), load_study("phantom").name)
print(sum((files(curvas_assets) / name).is_file() for name in {names}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in ("curvas_assets", "curvas_assets_tests"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    _run([*pip, "-w", built, source], built)
    (made,) = built.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment that has the wheel, and sees what is installed here but for the checkout itself."""
    environment = tmp_path_factory.mktemp("environment")
    _run([sys.executable, "-m", "venv", "--without-pip", environment], environment)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "installed_here.pth").write_text(f"{SITE_PACKAGES}\n")  # its own .pth, of the checkout, is not followed
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    _run([*install, "--target", site], environment)
    script = environment / "bin" / "dagster"  # as an installer makes it
    script.write_text(CONSOLE_SCRIPT.format(python=python))
    script.chmod(0o755)
    return python


def test_it_holds_what_is_read_at_run_time_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"curvas_assets/{name}" for name in READ_AT_RUN_TIME} <= names
    in_checkout = {p.relative_to(ROOT).as_posix() for p in (ROOT / "curvas_assets").rglob("*") if p.is_file()}
    left_out = {name for name in in_checkout - names if "__pycache__" not in name}
    assert left_out == set()
    assert {name.partition("/")[0] for name in names} == {"curvas_assets", f"curvas_assets-{VERSION}.dist-info"}


def test_the_installed_package_is_whole(python, tmp_path):
    place, version, studies, files = _run([python, "-c", ASKED.format(names=READ_AT_RUN_TIME)], tmp_path).splitlines()
    assert Path(place).is_relative_to(python.parents[1])
    assert version == VERSION
    assert studies == " ".join([*BUILT_IN, "phantom"])
    assert int(files) == len(READ_AT_RUN_TIME)


def test_the_demo_starts_in_an_empty_folder(python, tmp_path):
    command = [python, "-m", "curvas_assets.local.demo", "--port", str(free_port(0))]
    told = []
    with subprocess.Popen(command, cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE, text=True) as demo:
        try:
            for line in _lines(demo, seconds=300):
                told.append(line)
                if "Dagster starts" in "".join(told[:-1]):
                    break  # the study's own first line
        finally:
            demo.send_signal(signal.SIGINT)
            rest, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, "".join([*told, rest])
    assert "of 12, PHANTOM012 uploaded" in "".join(told)
    assert "stopped: the next `python -m curvas_assets.local.demo --state .state` goes on from here" in rest
    assert {path.name for path in tmp_path.iterdir()} == {".state"}


def _lines(process: subprocess.Popen[str], *, seconds: float) -> Iterator[str]:
    deadline = time.monotonic() + seconds
    assert process.stdout is not None
    while time.monotonic() < deadline and (line := process.stdout.readline()):
        yield line


def _environment() -> dict[str, str]:
    """Nothing that leads to the checkout, or to a store; programs of what is installed here are on the path."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_", "CURVAS_", "DAGSTER_"))
    }
    own.pop("PYTHONPATH", None)
    return own | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def _run(command: list[str | Path], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
