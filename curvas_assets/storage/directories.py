"""A folder of files as one artefact: files first, a small manifest last.

    <key>/manifest.json             names, sizes and SHA-256 of the files, their version, and the place they stand at
    <key>/<place>/<file>            the files, under their own names; each writing has a place of its own (`versions`)

The version is a digest of the files, so a folder that is written again unchanged sends nothing. Readers go through the
manifest, which one PUT replaces: they see the old folder or the new one, never a mixture. If a version is replaced and
removed while it is read, the reader starts again with the next one.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pandas as pd

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, StorageError
from curvas_assets.storage import versions
from curvas_assets.storage.digests import read_soundly, seal_record, sha256_of, sha256_of_bytes
from curvas_assets.storage.objects import ObjectStore, is_safe_name, staged, within
from curvas_assets.storage.schemas import TableSchema
from curvas_assets.storage.tables import parse_table, read_json, require_schema

Value = TypeVar("Value")

MANIFEST = "manifest.json"
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class StoredDirectory:
    """What `write_directory` stored.

    Args:
        version: digest of names and contents.
        size: bytes of all files.
        files: how many there are.
        unchanged: whether the same content was stored there already.
        place: where they stand below the key.
    """

    version: str
    size: int
    files: int
    unchanged: bool
    place: str


def write_directory(store: ObjectStore, key: str, folder: Path) -> StoredDirectory:
    """Store all files below a folder as one artefact, in place of what stood there.

    Args:
        store: where.
        key: the artefact's key.
        folder: its files, in any depth; empty folders are not kept.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return write_files(store, key, {path.relative_to(folder).as_posix(): path for path in paths})


def write_files(store: ObjectStore, key: str, paths: Mapping[str, Path], *, remember: int = 0) -> StoredDirectory:
    """Store files as one artefact, in place of what stood there. If the same content is stored already, it is read, and
    only its damaged files are stored again.

    Args:
        store: where.
        key: the artefact's key.
        paths: the files, by their names in the artefact.
        remember: how many earlier versions the manifest names, for a writer that removes them within less than a day
            (`places_of`, `remove_place`).
    """
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    files = {name: {"size": sizes[name], "sha256": sha256_of(path)} for name, path in paths.items()}
    version = hashlib.sha256(repr(sorted((n, f["sha256"]) for n, f in files.items())).encode()).hexdigest()[:16]
    size = sum(sizes.values())
    there = _manifest_there(store, key)
    if there is not None and there["version"] == version:
        place = there["place"]
        damaged = [name for name, facts in files.items() if not _stands(store, f"{key}/{place}/{name}", facts)]
        for name in damaged:
            store.upload(f"{key}/{place}/{name}", paths[name])
        named = _manifest_there(store, key)
        if named is not None and named["place"] == place:  # else it was replaced meanwhile: write it again
            with suppress(StorageError):
                sweep(store, key)
            return StoredDirectory(version, size, len(files), unchanged=not damaged, place=place)

    def send(place: str) -> dict[str, int]:
        for name, path in paths.items():
            store.upload(f"{key}/{place}/{name}", path)
        return sizes

    before: list[str] = []

    def mark(place: str) -> bytes:
        before[:] = places_of(store, key)[-remember:] if remember else []
        return seal_record({"version": version, "place": place, "files": files, "before": before})

    place = versions.publish(store, key, MANIFEST, version, send, mark, lambda: before)
    return StoredDirectory(version, size, len(files), unchanged=False, place=place)


def read_directory(store: ObjectStore, key: str, folder: Path) -> Path:
    """The files of an artefact below `folder`, as `fetch_directory` brings them."""
    fetch_directory(store, key, folder)
    return Path(folder)


def fetch_directory(
    store: ObjectStore, key: str, folder: Path, wanted: Callable[[str], bool] = lambda name: True
) -> str:
    """Bring the files of an artefact below `folder`, all of one version, each verified; files that are there already are
    not fetched again.

    Args:
        store: where the artefact stands.
        key: of the artefact.
        folder: receives the files; made if it is not there.
        wanted: which files, by their names; by default all.

    Returns:
        The version they are of.

    Raises:
        MissingArtefactError: there is no such artefact.
        CorruptArtefactError: a file is gone or not what the manifest says, or the manifest names one outside the folder.
        UnsafeNameError: a link below `folder` leads out of it.
        StorageError: the transfer damages a file, or the artefact is replaced again and again.
    """
    written: set[str] = set()

    def fetch(manifest: dict[str, Any]) -> str:
        for name in written - set(manifest["files"]):  # of a version that was replaced meanwhile
            _remove_file(Path(folder), name)
        targets = {name: within(Path(folder), name) for name in manifest["files"]}  # check all first
        for name, facts in manifest["files"].items():
            if not wanted(name):
                continue
            target = targets[name]
            if target.is_file() and target.stat().st_size == facts["size"] and sha256_of(target) == facts["sha256"]:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            written.add(name)
            download_verified(store, f"{key}/{manifest['place']}/{name}", target, facts["sha256"])
        return manifest["version"]

    return _read_one_version(store, key, fetch)


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
        CorruptArtefactError: it has no such file, or the file is gone or not what the manifest says.
    """
    subject = f"{store.name}/{key}/{name}"

    def read(manifest: dict[str, Any]) -> bytes:
        if name not in manifest["files"]:
            raise CorruptArtefactError(
                f"reading {name}",
                f"{store.name}/{key}",
                f"it holds {', '.join(manifest['files']) or 'nothing'}",
                "Materialise it again.",
            )

        def verified(content: bytes) -> bytes:
            _verify(subject, sha256_of_bytes(content), manifest["files"][name]["sha256"])
            return content

        return read_soundly(lambda: store.get(f"{key}/{manifest['place']}/{name}"), verified, sha256_of_bytes, subject)

    return _read_one_version(store, key, read)


def read_directory_table(store: ObjectStore, key: str, name: str, schema: TableSchema | None = None) -> pd.DataFrame:
    """One Parquet file of an artefact.

    Args:
        store: where the artefact stands.
        key: of the artefact.
        name: of the file.
        schema: what its columns must be; any if it is not given.

    Raises:
        MissingArtefactError: there is no such artefact.
        CorruptArtefactError: it has no such file, or one that is not as it was written, or not as its schema says.
    """
    subject = f"{store.name}/{key}/{name}"
    table = parse_table(read_file(store, key, name), subject)
    require_schema(table, schema, subject)
    return table


def exists(store: ObjectStore, key: str) -> bool:
    """Whether a whole artefact stands there."""
    return store.head(f"{key}/{MANIFEST}") is not None


def version_of(store: ObjectStore, key: str) -> str:
    """The version of the artefact that stands there; a MissingArtefactError if there is none."""
    return _manifest(store, key)["version"]


def key_of_file(store: ObjectStore, key: str, name: str) -> str:
    """The object that one file of the artefact is now; a MissingArtefactError if there is no artefact."""
    return f"{key}/{_manifest(store, key)['place']}/{name}"


def size_of(store: ObjectStore, key: str) -> int:
    """Bytes of the artefact's files, without those of older versions; 0 if there is no readable artefact."""
    manifest = _manifest_there(store, key)
    return 0 if manifest is None else sum(int(facts["size"]) for facts in manifest["files"].values())


def places_of(store: ObjectStore, key: str) -> list[str]:
    """The places of the artefact that stands there: those that its manifest remembers, then the current one."""
    manifest = _manifest_there(store, key)
    return [] if manifest is None else [*manifest["before"], manifest["place"]]


def remove_place(store: ObjectStore, key: str, place: str) -> None:
    """Remove one version that no manifest will ever name again."""
    store.delete([item.key for item in store.list(f"{key}/{place}/")])


def sweep(store: ObjectStore, key: str, least: timedelta | None = None) -> int:
    """Remove what the manifest does not name and nobody has touched for so long (older versions, remains of killed
    writers); returns the bytes removed.
    """
    found = versions.places(store, key, MANIFEST)
    manifest = _manifest(store, key)
    return versions.remove_untouched(store, found, {manifest["place"], *manifest["before"]}, least)


def _read_one_version(store: ObjectStore, key: str, read: Callable[[dict[str, Any]], Value]) -> Value:
    """The result of `read` on the manifest and the files that it names."""
    subject = f"{store.name}/{key}"

    def gone(missing: MissingArtefactError) -> CorruptArtefactError:
        found = f"its manifest names {missing.subject}, which is gone"
        return CorruptArtefactError("reading", subject, found, "Materialise it again.")

    return versions.read_one_version(lambda: _manifest(store, key), lambda m: m["place"], read, subject, gone)


def _remove_file(folder: Path, name: str) -> None:
    path = within(folder, name)
    path.unlink(missing_ok=True)
    for parent in path.relative_to(folder).parents[:-1]:
        with suppress(OSError):  # not empty
            (folder / parent).rmdir()


def _manifest_there(store: ObjectStore, key: str) -> dict[str, Any] | None:
    """The manifest that stands there; None if there is none, or a damaged one."""
    try:
        return _manifest(store, key)
    except (MissingArtefactError, CorruptArtefactError):
        return None


def _stands(store: ObjectStore, key: str, facts: dict[str, Any]) -> bool:
    """Whether an object has this size and SHA-256, read in blocks."""
    info = store.head(key)
    if info is None or info.size != facts["size"]:
        return False
    digest = hashlib.sha256()
    try:
        for start in range(0, info.size, BLOCK_BYTES):
            digest.update(store.get_range(key, start, BLOCK_BYTES))
    except MissingArtefactError:  # somebody replaces the artefact just now
        return False
    return digest.hexdigest() == facts["sha256"]


def _manifest(store: ObjectStore, key: str) -> dict[str, Any]:
    """The manifest, provided that every name in it stays below the folder it is read into."""
    manifest = read_json(store, f"{key}/{MANIFEST}")
    wrong = _what_is_wrong(manifest)
    if wrong:
        raise CorruptArtefactError("reading a manifest", f"{store.name}/{key}", wrong, "Materialise it again.")
    # Before each writing had a place of its own, files stood at their version.
    return {"place": manifest["version"], "before": [], **manifest}


def _what_is_wrong(manifest: dict[str, Any]) -> str | None:
    version, files = manifest.get("version"), manifest.get("files")
    if not isinstance(version, str) or not _is_place(version) or not isinstance(files, dict):
        return f"it holds {sorted(manifest)}, version {str(version)[:40]!r}"
    place, before = manifest.get("place", version), manifest.get("before", [])
    if not isinstance(before, list) or not all(_is_place(name) for name in (place, *before)):
        return f"it names the place {str([place, before])[:120]}"
    for name, facts in files.items():
        if not is_safe_name(name):
            return f"it names {name[:120]!r}, which is no place below a folder; somebody else wrote it"
        if any(str(parent) in files for parent in PurePosixPath(name).parents):
            return f"it names {name[:120]!r}, and a file where its folder would be"
        if not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str) or "size" not in facts:
            return f"it does not tell size and SHA-256 of {name[:120]!r}"
    return None


def _is_place(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"\w+", name, re.ASCII) is not None


def _verify(subject: str, found: str, promised: str) -> None:
    if found != promised:
        raise CorruptArtefactError(
            "reading a file", subject, f"its SHA-256 is {found[:12]}…, not {promised[:12]}…", "Materialise it again."
        )
