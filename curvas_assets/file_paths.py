"""Where the files of patients stand below the data prefix: paths with `{patient}` and `*`, matched against a listing.

Text alone: nothing is listed or read here. A path without `{patient}` is that of a file in the patient's own folder, so
that `image.nii.gz` is `{patient}/image.nii.gz`. `*` stands for any text without a slash.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from curvas_assets.errors import PatientError, StudyError

PATIENT, ANY = "{patient}", "*"
_PARTS = re.compile(r"(\{patient\}|\*)")
_NAMES = re.compile(r"(?!\.\.?(?:/|$))[^/]+(?:/(?!\.\.?(?:/|$))[^/]+)*")
"""A path of names alone: `*` would also fit none at all, `.` and `..`, which lead elsewhere on a disk."""
_BESIDE = r"[A-Za-z0-9]"
"""What may not follow an id, or come before it, where `*` stands directly beside it: UKCHLL0011 is not UKCHLL001."""


class Ids(Protocol):
    """How patients are called (`study.PatientIds`)."""

    @property
    def in_paths(self) -> str:
        """A regular expression of an id, or of what else people write for it, without capturing groups."""
        ...

    @property
    def has_form(self) -> bool:
        """Whether ids have a form by which a folder of somebody else is told from a patient's."""
        ...

    def normalise(self, name: str | int) -> str:
        """The whole name of a patient; a StudyError if it is none."""
        ...


def below_data(file: str) -> str:
    """The path of one of the study's files below the data prefix, whichever way the study names it."""
    return file if PATIENT in file else f"{PATIENT}/{file}"


def told(file: str, patient: str) -> str:
    """A file of the study as messages about a patient name it."""
    return file.replace(PATIENT, patient)


def in_own_folders(files: Iterable[str]) -> bool:
    """Whether every patient has a folder of its own, which holds all these files."""
    return not any(PATIENT in file for file in files)


def open_part(file: str) -> str | None:
    """A part of a path in which `{patient}` and `*` stand together: where the id ends there, only the form of ids can tell."""
    return next((part for part in below_data(file).split("/") if PATIENT in part and ANY in part), None)


@dataclass
class Found:
    """The files of a listing, by patient.

    Args:
        own_folders: whether each patient has a folder of its own.
        files: patient → file as the study names it → the paths that match it; more than one is a mistake.
        beside: patient → what else stands in the patient's own folder.
        strange: what stands in the place of an id and is none, in the order of the listing, each once. Where ids have no form, also
            folders without a file of the study. Of a file whose path has an empty name, `.` or `..`, the whole path.
    """

    own_folders: bool
    files: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    beside: dict[str, list[str]] = field(default_factory=dict)
    strange: dict[str, None] = field(default_factory=dict)

    @property
    def patients(self) -> list[str]:
        """All patients of whom anything is there, in order."""
        return sorted({*self.files, *(one for one in self.beside if one not in self.strange)})

    def paths(self, patient: str) -> list[str]:
        """The paths of everything that is there of a patient, in order."""
        matched = [path for paths in self.files.get(patient, {}).values() for path in paths]
        return sorted([*matched, *self.beside.get(patient, ())])

    def shown(self, patient: str) -> list[str]:
        """The names of everything that is there of a patient: in the patient's own folder, or as paths."""
        names = [path.partition("/")[2] if self.own_folders else path for path in self.paths(patient)]
        return [name for name in names if name]

    def folder_of(self, patient: str) -> str:
        """The name of a patient's own folder, which is the patient's whole name if there is none yet.

        Raises:
            PatientError: there are two.
        """
        folders = list(dict.fromkeys(path.partition("/")[0] for path in self.paths(patient)))
        if len(folders) > 1:
            raise _both(patient, "looking for the folder", folders, "this patient's")
        return folders[0] if folders else patient

    def files_of(self, patient: str) -> dict[str, str]:
        """A patient's files: as the study names them → path. Those that are not there are left out.

        Raises:
            PatientError: two files, or two folders, are in the place of one; or another patient's name differs from this one's in
                case alone.
        """
        if self.own_folders:
            self.folder_of(patient)
        files = self.files.get(patient, {})
        for file, paths in files.items():
            if len(paths) > 1:
                raise _both(patient, "looking for the files", paths, f"this patient's {told(file, patient)}")
        if others := [one for one in self._by_case.get(patient.casefold(), ()) if one != patient]:
            found = f"{' and '.join(others)} differs from it in upper and lower case only"
            raise PatientError("looking for the files", patient, found, "Rename one of the two.")
        return {file: paths[0] for file, paths in files.items()}

    @cached_property
    def _by_case(self) -> dict[str, list[str]]:
        spelt: dict[str, list[str]] = {}
        for patient in self.patients:
            spelt.setdefault(patient.casefold(), []).append(patient)
        return spelt


def _both(patient: str, attempted: str, names: Iterable[str], what: str) -> PatientError:
    return PatientError(attempted, patient, f"{' and '.join(names)} are both {what}", "Keep one of them.")


class FilePaths:
    """The files of one study.

    Args:
        files: as the study names them.
        ids: how its patients are called.
    """

    def __init__(self, files: Sequence[str], ids: Ids):
        self.files, self.ids = tuple(files), ids
        self.own_folders = in_own_folders(files)
        # a file that several paths fit is of the one that says most: CASE_1_seg.nii.gz is {patient}_seg.nii.gz
        ordered = sorted(self.files, key=lambda file: -len(_PARTS.sub("", below_data(file))))
        self._strict = [(file, _pattern(file, ids.in_paths)) for file in ordered]
        self._loose = [_pattern(file, "[^/]+") for file in ordered]
        self._names: dict[str, str | None] = {}

    def sort(self, paths: Iterable[str]) -> Found:
        """Sort a listing by patient, in one pass.

        Args:
            paths: of files below the data prefix, parted by slashes. Where patients have folders of their own, a folder may be
                among them, with a slash at its end.
        """
        found = Found(self.own_folders)
        for path in paths:
            for file, pattern in self._strict:
                patient = self._patient(pattern.fullmatch(path))
                if patient is not None and not _NAMES.fullmatch(path):  # such as data//P1/ct.nii.gz in a bucket
                    found.strange[path] = None
                    break
                if patient is not None:
                    found.files.setdefault(patient, {}).setdefault(file, []).append(path)
                    break
            else:
                self._put_aside(found, path)
        if not self.ids.has_form:  # by its name, any folder may be a patient's: the files tell
            found.strange.update(dict.fromkeys(one for one in found.beside if one not in found.files))
        return found

    def _put_aside(self, found: Found, path: str) -> None:
        """A path that is no file of the study: of a patient's own folder, of somebody who is no patient, or of no interest."""
        if self.own_folders:
            folder, slash, _ = path.partition("/")
            patient = self._name(folder) if slash else None  # a folder without files counts, too
            if patient is not None:
                found.beside.setdefault(patient, []).append(path)
            elif slash:
                found.strange[folder] = None
            return
        for pattern in self._loose:
            if match := pattern.fullmatch(path):
                found.strange[match.group(1)] = None
                return

    def _patient(self, match: re.Match[str] | None) -> str | None:
        """The patient of a path, if `{patient}` is the same one everywhere in it."""
        names = {self._name(text) for text in match.groups()} if match else set()
        return names.pop() if len(names) == 1 else None

    def _name(self, text: str) -> str | None:
        if text not in self._names:
            try:
                self._names[text] = self.ids.normalise(text)
            except StudyError:
                self._names[text] = None
        return self._names[text]


def _pattern(file: str, patient: str) -> re.Pattern[str]:
    """A file of the study as a regular expression with a group for each `{patient}`."""
    parts = [part for part in _PARTS.split(below_data(file)) if part]
    text = ""
    for number, part in enumerate(parts):
        if part == ANY:
            text += "[^/]*"
        elif part == PATIENT:
            before = f"(?<!{_BESIDE})" if number and parts[number - 1] == ANY else ""
            after = f"(?!{_BESIDE})" if parts[number + 1 : number + 2] == [ANY] else ""
            text += f"{before}({patient}){after}"
        else:
            text += re.escape(part)
    return re.compile(text, re.ASCII)
