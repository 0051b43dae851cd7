"""A folder of files as one artefact: files first, a small manifest last.

    <key>/manifest.json             names, sizes and SHA-256 of the files, and the version they stand under
    <key>/<version>/<file>          the files, under their own names

The version is a digest of the files, so a folder that is written again unchanged sends nothing. Readers go through the
manifest, which one PUT replaces: they see the old folder or the new one, never a mixture. Files of an older version are
removed after the manifest has changed; a reader in the middle of them gets a MissingArtefactError and reads again.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError
from curvas_assets.storage.digests import read_soundly, sha256_of, sha256_of_bytes
from curvas_assets.storage.objects import ObjectStore, is_safe_name, staged, within
from curvas_assets.storage.tables import parse_table, read_json, write_json

MANIFEST = "manifest.json"
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class StoredDirectory:
    """What `write_directory` stored.

    Args:
        version: digest of names and contents.
        size: bytes of all files.
        files: how many there are.
        unchanged: whether the same content stood there already.
    """

    version: str
    size: int
    files: int
    unchanged: bool


def write_directory(store: ObjectStore, key: str, folder: Path) -> StoredDirectory:
    """Store all files below a folder as one artefact, in place of what stood there.

    Args:
        store: where.
        key: the artefact's key.
        folder: its files, in any depth; empty folders are not kept.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return write_files(store, key, {path.relative_to(folder).as_posix(): path for path in paths})


def write_files(store: ObjectStore, key: str, paths: Mapping[str, Path]) -> StoredDirectory:
    """Store files as one artefact, in place of what stood there. What stands there with the same content is read, and only
    what is damaged of it is stored again.

    Args:
        store: where.
        key: the artefact's key.
        paths: the files, by their names in the artefact.
    """
    files = {name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for name, path in paths.items()}
    version = hashlib.sha256(repr(sorted((n, f["sha256"]) for n, f in files.items())).encode()).hexdigest()[:16]
    size = sum(file["size"] for file in files.values())
    absent = list(paths)
    if _version_there(store, key) == version:
        absent = [name for name, facts in files.items() if not _stands(store, f"{key}/{version}/{name}", facts)]
        if not absent:
            return StoredDirectory(version, size, len(files), unchanged=True)
    for name in absent:
        store.upload(f"{key}/{version}/{name}", paths[name])
    write_json(store, f"{key}/{MANIFEST}", {"version": version, "files": files})
    sweep(store, key)
    return StoredDirectory(version, size, len(files), unchanged=False)


def read_directory(store: ObjectStore, key: str, folder: Path) -> Path:
    """The files of an artefact below `folder`, each verified; files that are there already are not fetched again.

    Raises:
        MissingArtefactError: there is no such artefact.
        CorruptArtefactError: a file is not what the manifest says, or the manifest names one outside the folder.
        UnsafeNameError: a link below `folder` leads out of it.
        StorageError: the transfer damages a file.
    """
    manifest = _manifest(store, key)
    targets = {name: within(Path(folder), name) for name in manifest["files"]}  # all, before the first is written
    for name, facts in manifest["files"].items():
        target = targets[name]
        if target.is_file() and target.stat().st_size == facts["size"] and sha256_of(target) == facts["sha256"]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        download_verified(store, f"{key}/{manifest['version']}/{name}", target, facts["sha256"])
    return Path(folder)


def download_verified(store: ObjectStore, key: str, target: Path, sha256: str) -> None:
    """An object into a file, under its name only if it has this SHA-256; fetched again if the transfer damages it.

    Raises:
        MissingArtefactError: there is no such object.
        CorruptArtefactError: what is stored is something else.
        StorageError: the transfer damages it every time.
    """
    subject = f"{store.name}/{key}"
    with staged(target) as path:

        def fetch() -> str:
            store.download(key, path)
            return sha256_of(path)

        read_soundly(fetch, lambda found: _verify(subject, found, sha256), str, subject)
        path.replace(target)


def read_file(store: ObjectStore, key: str, name: str) -> bytes:
    """One file of an artefact, verified.

    Raises:
        MissingArtefactError: there is no such artefact.
        CorruptArtefactError: it has no such file, or the file is not what the manifest says.
    """
    manifest = _manifest(store, key)
    if name not in manifest["files"]:
        raise CorruptArtefactError(
            f"reading {name}",
            f"{store.name}/{key}",
            f"it holds {', '.join(manifest['files']) or 'nothing'}",
            "Materialise it again.",
        )
    subject = f"{store.name}/{key}/{name}"

    def verified(content: bytes) -> bytes:
        _verify(subject, sha256_of_bytes(content), manifest["files"][name]["sha256"])
        return content

    return read_soundly(lambda: store.get(f"{key}/{manifest['version']}/{name}"), verified, sha256_of_bytes, subject)


def read_directory_table(store: ObjectStore, key: str, name: str) -> pd.DataFrame:
    """One Parquet file of an artefact."""
    return parse_table(read_file(store, key, name), f"{store.name}/{key}/{name}")


def exists(store: ObjectStore, key: str) -> bool:
    """Whether a whole artefact stands there."""
    return store.head(f"{key}/{MANIFEST}") is not None


def version_of(store: ObjectStore, key: str) -> str:
    """The version of the artefact that stands there; a MissingArtefactError if there is none."""
    return _manifest(store, key)["version"]


def sweep(store: ObjectStore, key: str) -> int:
    """Remove what the manifest does not name (older versions, remains of killed writers); how many bytes went."""
    current = f"{key}/{_manifest(store, key)['version']}/"
    old = [i for i in store.list(f"{key}/") if not i.key.startswith(current) and i.key != f"{key}/{MANIFEST}"]
    store.delete([item.key for item in old])
    return sum(item.size for item in old)


def _version_there(store: ObjectStore, key: str) -> str | None:
    """The version that stands there; None if there is none, or one whose manifest is damaged."""
    try:
        return _manifest(store, key)["version"]
    except (MissingArtefactError, CorruptArtefactError):
        return None


def _stands(store: ObjectStore, key: str, facts: dict[str, Any]) -> bool:
    """Whether an object has this size and SHA-256, read in blocks."""
    info = store.head(key)
    if info is None or info.size != facts["size"]:
        return False
    digest = hashlib.sha256()
    for start in range(0, info.size, BLOCK_BYTES):
        digest.update(store.get_range(key, start, BLOCK_BYTES))
    return digest.hexdigest() == facts["sha256"]


def _manifest(store: ObjectStore, key: str) -> dict[str, Any]:
    """The manifest, of which every name stays below the folder that it is read into."""
    manifest = read_json(store, f"{key}/{MANIFEST}")
    wrong = _what_is_wrong(manifest)
    if wrong:
        raise CorruptArtefactError("reading a manifest", f"{store.name}/{key}", wrong, "Materialise it again.")
    return manifest


def _what_is_wrong(manifest: dict[str, Any]) -> str | None:
    version, files = manifest.get("version"), manifest.get("files")
    if not isinstance(version, str) or not re.fullmatch(r"\w+", version, re.ASCII) or not isinstance(files, dict):
        return f"it holds {sorted(manifest)}, version {str(version)[:40]!r}"
    for name, facts in files.items():
        if not is_safe_name(name):
            return f"it names {name[:120]!r}, which is no place below a folder; somebody else wrote it"
        if any(str(parent) in files for parent in PurePosixPath(name).parents):
            return f"it names {name[:120]!r}, and a file where its folder would be"
        if not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str) or "size" not in facts:
            return f"it does not tell size and SHA-256 of {name[:120]!r}"
    return None


def _verify(subject: str, found: str, promised: str) -> None:
    if found != promised:
        raise CorruptArtefactError(
            "reading a file", subject, f"its SHA-256 is {found[:12]}…, not {promised[:12]}…", "Materialise it again."
        )
