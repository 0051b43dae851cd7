"""Patients' files on this machine: which of them a folder holds. What is in them is the intake's business."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from curvas_assets.errors import CurvasError, PatientError
from curvas_assets.file_paths import PATIENT, FilePaths, Found, below_data, told
from curvas_assets.inputs import existing_folder
from curvas_assets.study import Study, load_study


@dataclass(frozen=True)
class PatientFiles:
    """One patient's files on this machine.

    Args:
        patient: the whole name.
        paths: file as the study names it → where it is. A file that is missing is not among them.
        there: names of everything that was found of the patient, for messages.
    """

    patient: str
    paths: Mapping[str, Path]
    there: tuple[str, ...] = ()

    def __getitem__(self, file: str) -> Path:
        return self.paths[file]

    def __contains__(self, file: object) -> bool:
        return file in self.paths

    def told(self, file: str) -> str:
        """A file as messages name it."""
        return told(file, self.patient)


@dataclass(frozen=True)
class LocalPatients:
    """The patients of a folder that is laid out as the data prefix is.

    Args:
        folder: that holds them.
        found: whose file is whose, by path below the folder.
    """

    folder: Path
    found: Found

    def files(self, patient: str) -> PatientFiles:
        """The files of a patient.

        Raises:
            PatientError: as `Found.files_of`.
        """
        paths = {file: self.folder / path for file, path in self.found.files_of(patient).items()}
        return PatientFiles(patient, paths, tuple(self.found.shown(patient)))


def find_patients(folder: str | Path, study: Study | str | Path) -> LocalPatients:
    """The patients of a folder on this machine, which is laid out as the study's data prefix is.

    Args:
        folder: in which the study's files have their places, such as that of the challenge's archive.
        study: itself, or its name or path for `load_study`.

    Raises:
        PatientError: there is no such folder.
    """
    study = load_study(study)
    folder = existing_folder(folder, attempted="looking for patients", subject="the patients", error=PatientError)
    paths = FilePaths(study.files, study.patients)
    return LocalPatients(folder, paths.sort(_paths_below(folder, _depth(study), folders=paths.own_folders)))


def files_in(folder: Path, study: Study) -> PatientFiles:
    """The files of the patient whose own folder this is.

    Raises:
        PatientError: the folder is not named like a patient, two files are in the place of one, or the study's files stand
            elsewhere than in folders of patients.
    """
    try:
        patient = study.patients.normalise(folder.name)
    except CurvasError as error:
        raise PatientError("reading the folder", folder.name, error.found, error.remedy) from error
    paths = FilePaths(study.files, study.patients)
    if not paths.own_folders:
        elsewhere = ", ".join(file for file in study.files if PATIENT in file)
        found = f"this study's patients have no folders of their own: its files are {elsewhere}"
        remedy = "Give the files of one patient: find_patients(<folder above>, study).files(<patient>)."
        raise PatientError("reading the folder", patient, found, remedy)
    below = (f"{folder.name}/{path}" for path in _paths_below(folder, _depth(study) - 1, folders=False))
    return LocalPatients(folder.parent, paths.sort(below)).files(patient)


def _depth(study: Study) -> int:
    """Levels of folders below the data prefix in which files may stand."""
    return max(below_data(file).count("/") for file in study.files)


def _paths_below(folder: Path, depth: int, *, folders: bool) -> Iterator[str]:
    """Paths of files in a folder and in `depth` levels of folders below it; of the folders in it too, if they are asked for."""
    for at, names, files in os.walk(folder, followlinks=True):
        level = "" if Path(at) == folder else f"{Path(at).relative_to(folder).as_posix()}/"
        names.sort()
        if folders and not level:
            yield from (f"{name}/" for name in names)
        if level.count("/") >= depth:
            names.clear()
        yield from (f"{level}{name}" for name in sorted(files))
