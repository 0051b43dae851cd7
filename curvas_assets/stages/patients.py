"""Patients' files in the bucket: whose file is whose, and files as the intake validated them."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from curvas_assets import cohort as intake
from curvas_assets.cohort import PatientFiles
from curvas_assets.errors import CorruptArtefactError, PatientError
from curvas_assets.file_paths import ANY, PATIENT, FilePaths, Found, told
from curvas_assets.geometry import Grid
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectInfo, ObjectStore
from curvas_assets.study import Study


@dataclass(frozen=True)
class Uploaded:
    """What people put below the data prefix, from one listing.

    Args:
        study: whose files they are.
        found: whose file is whose, by path below the prefix.
        objects: path below the prefix → the object.
    """

    study: Study
    found: Found
    objects: Mapping[str, ObjectInfo]

    @cached_property
    def digests(self) -> dict[str, str]:
        """Patient → digest, which changes when one of the patient's files comes, goes or changes."""
        digests: dict[str, str] = {}
        for patient in self.found.patients:
            digest = hashlib.sha256()
            for name, path in zip(self.found.shown(patient), self.found.paths(patient), strict=True):
                digest.update(f"{name} {self.objects[path].size} {self.objects[path].tag}\n".encode())
            digests[patient] = digest.hexdigest()[:16]
        return digests

    @property
    def strange(self) -> list[str]:
        """What stands in the place of an id, and is no patient of this study."""
        return list(self.found.strange)

    def size_of(self, patient: str) -> int:
        """Bytes of everything that is there of a patient."""
        return sum(self.objects[path].size for path in self.found.paths(patient))

    @cached_property
    def lacking(self) -> dict[str, list[str]]:
        """Patient → annotators whose file is not there, of patients whom at least one annotated."""
        files = {patient: self.found.files.get(patient, {}) for patient in self.found.patients}
        absent = {patient: [a.name for a in self.study.annotators if a.file not in of] for patient, of in files.items()}
        return {patient: names for patient, names in absent.items() if 0 < len(names) < len(self.study.annotators)}

    def newest(self, patient: str) -> datetime | None:
        """When the last of a patient's files came, on the store's clock; None if the store does not say."""
        return max((at for path in self.found.paths(patient) if (at := self.objects[path].modified)), default=None)


def uploaded(objects: ObjectStore, layout: Layout, study: Study) -> Uploaded:
    """Look at what people put below the data prefix: one listing, whatever the study's files are called."""
    there = {item.key.removeprefix(f"{layout.data}/"): item for item in objects.list(f"{layout.data}/")}
    there = {path: item for path, item in there.items() if path and not path.endswith("/")}
    return Uploaded(study, FilePaths(study.files, study.patients).sort(there), there)


def fetch_patient(
    objects: ObjectStore, layout: Layout, there: Uploaded, patient: str, scratch: Path
) -> tuple[PatientFiles, list[dict[str, Any]]]:
    """Fetch a patient's files from the bucket into a folder below `scratch`; returns them, and what the record keeps of each.

    A file that is not in the bucket is not in the folder either; `read_patient` judges what is missing.

    Raises:
        PatientError: as `Found.files_of`.
    """
    paths, files = dict[str, Path](), list[dict[str, Any]]()
    of_channels = {channel.file: channel.name for channel in there.study.channels}
    for name, path in there.found.files_of(patient).items():
        key = layout.data_file(path)
        # Else its name says where it stands. Of each file by itself: a new annotator's must not change the record of the others'.
        elsewhere = {"path": path} if PATIENT in name or ANY in name else {}
        local = paths[name] = place_of(scratch / patient, {"name": name, **elsewhere})
        local.parent.mkdir(parents=True, exist_ok=True)
        objects.download(key, local)
        sha256 = directories.sha256_of(local)
        channel = {"channel": of_channels[name]} if name in of_channels else {}
        size = there.objects[path].size
        files.append({"name": name, "key": key, "size": size, "sha256": sha256, **elsewhere, **channel})
    files.sort(key=lambda file: there.study.files.index(file["name"]))
    return PatientFiles(patient, paths, tuple(there.found.shown(patient))), files


def place_of(folder: Path, file: Mapping[str, Any]) -> Path:
    """Where a file of a record stands in a folder: as below the data prefix, or as in the patient's own folder."""
    return folder / file.get("path", file["name"])


def fetch_files(objects: ObjectStore, record: dict[str, Any], folder: Path, names: Collection[str]) -> PatientFiles:
    """The files of a validated patient on the scan's voxels, whatever order an annotation is stored in. Further channels of a scan stay in
    their own order: whoever reads them brings them into the one that the network knows.

    Every reader of annotations after the intake takes them from here.

    Args:
        objects: the bucket.
        record: of the patient's scan.
        folder: receives the files.
        names: which, as the study names them; one that the record does not hold, of an annotator who did not annotate the
            patient, is left out.

    Raises:
        PatientError: a file is no longer what was validated.
    """
    paths: dict[str, Path] = {}
    for file in record["files"]:
        if file["name"] not in names:
            continue
        path = paths[file["name"]] = place_of(folder, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            directories.download_verified(objects, file["key"], path, file["sha256"])
        except CorruptArtefactError as error:
            raise PatientError(
                f"fetching {told(file['name'], record['patient'])}",
                record["patient"],
                "the file has changed since it was taken in",
                "Materialise scan of this patient again, then test_scan or training_cases, then repeat.",
            ) from error
        if "facts" in record and "channel" not in file:
            intake.bring_onto_scan(path, grid_of(record), record["patient"])
    return PatientFiles(record["patient"], paths)


def grid_of(record: dict[str, Any]) -> Grid:
    """The grid of a patient's scan, from the record of the scan."""
    z, y, x = record["facts"]["shape"]
    return Grid((z, y, x), np.asarray(record["affine"], np.float64))


def scored_region(study: Study, record: dict[str, Any]) -> list[list[int]]:
    """Where a patient is scored, [start, stop] along (Z, Y, X), from the record of its scan."""
    facts = record["facts"]
    return facts["body_region"] if study.evaluation.region == "body" else [[0, n] for n in facts["shape"]]


def shown_window(study: Study, facts: Mapping[str, Any]) -> tuple[float, float] | None:
    """The intensities of a patient's first channel between which pictures go from black to white; None for a CT's usual window.

    Args:
        study: whose first channel it is.
        facts: from the record of the patient's scan.
    """
    first = study.images[0]
    if first.is_ct:
        return None
    shares: dict[str, float] = facts["channels"][first.name]["percentiles"]
    low, high = shares[str(intake.PERCENTILES[0])], shares[str(intake.PERCENTILES[-1])]
    return low, max(high, low + 1e-6)
