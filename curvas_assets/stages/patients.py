"""Patients' files in the bucket: whose folder is whose, and files as the intake validated them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from curvas_assets import cohort as intake
from curvas_assets.errors import CorruptArtefactError, PatientError, StudyError
from curvas_assets.geometry import Grid
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import Study


def patient_folders(objects: ObjectStore, layout: Layout) -> dict[str, str]:
    """Folders below the data prefix, by name: `{folder: digest}`; the digest changes when a file in it does."""
    digests: dict[str, Any] = {}
    for item in objects.list(f"{layout.data}/"):
        folder, separator, file = item.key.removeprefix(f"{layout.data}/").partition("/")
        if separator and file:
            digests.setdefault(folder, hashlib.sha256()).update(f"{file} {item.size} {item.tag}\n".encode())
    return {folder: digest.hexdigest()[:16] for folder, digest in sorted(digests.items())}


def folders_of_patients(study: Study, folders: Iterable[str]) -> dict[str, list[str]]:
    """Patient → the folders named like it, with or without the prefix; other folders are left aside."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        try:
            found.setdefault(study.patients.normalise(folder), []).append(folder)
        except StudyError:
            continue
    return found


def folder_of(patient: str, folders: dict[str, list[str]]) -> str:
    """The one folder of a patient; a PatientError if there are two."""
    named = folders.get(patient, [patient])
    if len(named) > 1:
        raise PatientError(
            "looking for the folder",
            patient,
            f"{' and '.join(named)} are both this patient's",
            "Keep one of them.",
        )
    return named[0]


def fetch_patient(
    objects: ObjectStore, layout: Layout, study: Study, folder_name: str, scratch: Path, *, image: bool = True
) -> tuple[Path, list[dict[str, Any]]]:
    """Fetch a patient's files from the bucket into a folder below `scratch`; returns folder and files.

    A file that is not in the bucket is not in the folder either; `read_patient` names all missing files.
    """
    folder = scratch / folder_name
    folder.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Any]] = []
    for name in ([study.image] if image else []) + [annotator.file for annotator in study.annotators]:
        key = layout.patient_file(folder_name, name)
        info = objects.head(key)
        if info is None:
            continue
        objects.download(key, folder / name)
        files.append({"name": name, "key": key, "size": info.size, "sha256": directories.sha256_of(folder / name)})
    return folder, files


def fetch_files(objects: ObjectStore, record: dict[str, Any], folder: Path, names: list[str]) -> None:
    """The files of a validated patient on the scan's voxels, whatever order an annotation is stored in.

    Every reader of annotations after the intake takes them from here.

    Raises:
        PatientError: a file is no longer what was validated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in record["files"]:
        if file["name"] not in names:
            continue
        try:
            directories.download_verified(objects, file["key"], folder / file["name"], file["sha256"])
        except CorruptArtefactError as error:
            raise PatientError(
                f"fetching {file['name']}",
                record["patient"],
                "the file has changed since it was taken in",
                "Materialise scan of this patient again, then test_scan or training_cases, then repeat.",
            ) from error
        if "facts" in record:
            intake.bring_onto_scan(folder / file["name"], grid_of(record))


def grid_of(record: dict[str, Any]) -> Grid:
    """The grid of a patient's scan, from the record of the scan."""
    z, y, x = record["facts"]["shape"]
    return Grid((z, y, x), np.asarray(record["affine"], np.float64))


def scored_region(study: Study, record: dict[str, Any]) -> list[list[int]]:
    """Where a patient is scored, [start, stop] along (Z, Y, X), from the record of its scan."""
    facts = record["facts"]
    return facts["body_region"] if study.evaluation.region == "body" else [[0, n] for n in facts["shape"]]
