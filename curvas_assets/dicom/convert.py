"""A folder of DICOM files of many patients becomes the platform's NIfTI files, and identifiers stay behind.

Only voxels, their place and the names of organs are carried over. Which patient and which annotator a name stands for
is written to a file of its own, outside of the folder that is shared.
"""

import csv
import io
import json
import os
import re
import shutil
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import nibabel as nib
import numpy as np
import numpy.typing as npt

from curvas_assets import geometry
from curvas_assets.dicom.annotations import RTSTRUCT, SEG, Drawn, Source, identifiers, read_source, words_of
from curvas_assets.dicom.series import HEADER, Series, Slice, library
from curvas_assets.errors import CurvasError, PatientError
from curvas_assets.geometry import Grid
from curvas_assets.inputs import as_path, existing_folder, made_folder
from curvas_assets.study import RESERVED

AuthorFrom = Literal["label", "operator", "folder"]
ATTEMPTED = "converting DICOM"
LABELS = "labels.json"
IMAGES = ("CT", "MR", "PT")
"""Modalities of image series."""
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")
MOST_LABELS = 65535
COLUMNS = ("kind", "old", "new")
TOLERANCE_MM = 0.01
"""By which nibabel and ITK may read a written header differently; the intake's own check allows more."""


@dataclass(frozen=True)
class Case:
    """A patient whose files were written.

    Args:
        id: the new one, and the name of the folder.
        annotators: whose label maps were written.
        volumes_ml: annotator → organ → volume, ml.
        warnings: what is odd, a sentence each.
    """

    id: str
    annotators: tuple[str, ...]
    volumes_ml: Mapping[str, Mapping[str, float]]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Args:
        cases: patients whose files were written, by id.
        refused: an error for each of the others.
        labels: organ → value in every label map.
        mapping: the file that says who is who.
        ignored: files that are no DICOM, or damaged.
    """

    cases: tuple[Case, ...]
    refused: tuple[PatientError, ...]
    labels: Mapping[str, int]
    mapping: Path
    ignored: int


@dataclass
class _Found:
    """All that a folder holds, by header. What names people in a patient's images is among the identifiers of each annotation."""

    slices: dict[str, list[Slice]] = field(default_factory=lambda: defaultdict(list))
    sources: list[Source] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    """Patients of whom an RTSTRUCT or SEG cannot be read."""
    ignored: int = 0
    torn: Counter[Path] = field(default_factory=Counter)
    """Folder → files that are DICOM, and cannot be read, or are empty: of whom, and of what, nobody knows."""

    def patient_of(self, uid: str) -> str:
        return _patient(self.slices[uid][0].header)

    @property
    def patients(self) -> list[str]:
        return sorted({*map(self.patient_of, self.slices), *(source.patient for source in self.sources), *self.damaged})


@dataclass
class _Names:
    """Old names of patients, series and annotators → new ones: what the mapping holds."""

    new: dict[tuple[str, str], str] = field(default_factory=dict)

    def give(self, kind: str, old: str, name: Callable[[int], str], taken: Iterable[str]) -> str:
        if (kind, old) not in self.new:
            used = {new.casefold() for new in taken}
            n = 1
            while name(n).casefold() in used:
                n += 1
            self.new[kind, old] = name(n)
        return self.new[kind, old]

    def of(self, *kinds: str) -> list[str]:
        return [new for (kind, _), new in self.new.items() if kind in kinds]


def convert_dicom(
    source: str | Path,
    out: str | Path,
    *,
    organs: Mapping[str, Sequence[str]] | None = None,
    annotator_from: AuthorFrom = "label",
    keep_annotators: bool = False,
    mapping: str | Path | None = None,
    prefix: str = "P",
    tell: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Write `<out>/<id>/image.nii.gz`, `<out>/<id>/annotation_<annotator>.nii.gz` and `<out>/labels.json`.

    Each RTSTRUCT and SEG is painted on the series it refers to, by SeriesInstanceUID, by the images it names, or, if it
    names neither, by a FrameOfReferenceUID that one series alone has. Where organs overlap, the one with the higher
    value in `labels.json` wins, in every map, and a warning says how many voxels. Values are equal for all patients and
    annotators; those of a `labels.json` that is there stay.

    Args:
        source: a folder of DICOM files of any number of patients, in any folders.
        out: folder that receives the files; a patient's folder is replaced as a whole, or left as it was.
        organs: organ → names of the structures that make it up, any case; their order is that of new values. None: each
            name is an organ, sorted.
        annotator_from: what tells annotators apart: the structure set's `label` (a SEG's series description), the
            `operator`, or the name of the `folder` that the file lies in.
        keep_annotators: keep their names instead of `annotator-1` …
        mapping: CSV (kind, old, new) of patients, annotators and series. Names in it are used, new ones are added, and
            it is written again, readable for its owner alone. None: `<out>-identities.csv` beside `out`.
        prefix: of new ids: P001, P002, … in the order of the old ones.
        tell: is called with a sentence for each patient.

    Raises:
        CurvasError: a library is missing.
        PatientError: there is no such folder or no annotation in it, an option or the mapping is wrong. What is wrong
            with one patient is in `Converted.refused`, and stops no other.
    """
    told: Any = {"attempted": ATTEMPTED, "subject": "the cohort", "error": PatientError}
    source = existing_folder(source, **told)
    out = as_path(out, **told)
    if annotator_from not in get_args(AuthorFrom):
        raise _wrong(f"annotator_from = {annotator_from!r:.40}", f"Give one of {', '.join(get_args(AuthorFrom))}.")
    if not isinstance(prefix, str) or not ID.fullmatch(prefix):
        raise _wrong(f"prefix = {prefix!r:.40}", "Give letters, digits, _ or -.")
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise _wrong(f"{out} lies within the DICOM folder", "Give a folder elsewhere.")
    whole = Path(os.path.abspath(out))  # "." has no name of its own
    mapping = whole.with_name(f"{whole.name}-identities.csv") if mapping is None else as_path(mapping, **told)
    if out.resolve() in mapping.resolve().parents:
        raise _wrong(
            f"the mapping {mapping} lies in {out}, which is to hold no identifier", "Give a file elsewhere: --mapping."
        )
    merged = _organ_of(organs) if organs is not None else None
    names = _read_mapping(mapping)
    found = _look(source, annotator_from)
    if not found.sources:
        series = f"{len(found.slices)} image series, {found.ignored} files that are no DICOM"
        raise _wrong(f"no RTSTRUCT or SEG in {source} ({series})", "Give the folder that holds images and annotations.")
    labels = _labels(made_folder(out, **told) / LABELS, found.sources, merged, organs)
    for patient in found.patients:
        names.give("patient", patient, lambda n: f"{prefix}{n:03d}", names.of("patient", "series"))
    for author in sorted({s.author for s in found.sources if s.author is not None}, key=str.casefold):
        kept = "-".join(words_of(author)) if keep_annotators else ""
        plain = kept.isascii() and kept not in ("", *RESERVED, "ensemble")
        name = (lambda n, kept=kept: kept if n == 1 else f"{kept}-{n}") if plain else _numbered
        names.give("annotator", author, name, names.of("annotator"))
    _write_mapping(mapping, names)
    try:
        _put(out / LABELS, json.dumps(labels, indent=2) + "\n", 0o666)
    except OSError as reason:
        raise _wrong(f"{out / LABELS} cannot be written ({reason.strerror})", "Make room.") from reason
    cases: list[Case] = []
    refused: list[PatientError] = []
    for patient in found.patients:
        for id_, uid, sources in _cases_of(patient, found, names):
            try:
                if isinstance(uid, PatientError):
                    raise uid
                cases.append(_convert(id_, found, uid, sources, labels, merged, names, out))
                tell(f"{id_}: {', '.join(cases[-1].annotators)}")
                for warning in cases[-1].warnings:
                    tell(f"{id_}: warning: {warning}")
            except PatientError as error:
                refused.append(error)
                tell(f"{id_}: refused: {error.after(id_)}")
    return Converted(tuple(sorted(cases, key=lambda c: c.id)), tuple(refused), labels, mapping, found.ignored)


def _numbered(n: int) -> str:
    return f"annotator-{n}"


def _wrong(found: str, remedy: str) -> PatientError:
    return PatientError(ATTEMPTED, "the cohort", found, remedy)


# Looking --------------------------------------------------------------------------------------------------------------


def _patient(header: Any) -> str:
    return str(header.get("PatientID") or "").strip() or f"study {header.get('StudyInstanceUID', '')}"


def _look(source: Path, author_from: AuthorFrom) -> _Found:
    pydicom = library("pydicom")
    library("highdicom")
    found = _Found()
    for folder, below, files in os.walk(source):
        below.sort()
        for path in (Path(folder) / name for name in sorted(files)):
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER))
                kind = str(header.get("SOPClassUID", ""))
                if kind == RTSTRUCT or kind in SEG:
                    try:
                        whole = pydicom.dcmread(path, stop_before_pixels=True)
                        found.sources.append(
                            read_source(path, whole, patient=_patient(header), author_from=author_from)
                        )
                    except Exception:  # it is somebody's annotation, so it must not be left out unsaid
                        found.damaged.add(_patient(header))
                elif header.get("Modality") in IMAGES and "Rows" in header and header.get("SeriesInstanceUID"):
                    found.slices[str(header.SeriesInstanceUID)].append(Slice(path, header))
            except Exception:  # whatever pydicom raises over a file, it is none that can be used
                found.ignored += 1
                found.torn[path.parent] += _is_torn(path)
    people: dict[str, frozenset[str]] = defaultdict(frozenset)
    for uid, slices in found.slices.items():
        people[found.patient_of(uid)] |= identifiers(slices[0].header)
    found.sources = [replace(one, identifiers=one.identifiers | people[one.patient]) for one in found.sources]
    return found


def _is_torn(path: Path) -> bool:
    """Whether a file that cannot be read is empty, or begins as DICOM does."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return True
    return not start or start[128:] == b"DICM"


def _organ_of(organs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Name of a structure, any case → organ."""
    merged: dict[str, str] = {}
    if not isinstance(organs, Mapping) or not organs:
        raise _wrong(f"organs = {organs!r:.60}", "Give a mapping: organ → names of its structures.")
    for organ, structures in organs.items():
        named = [structures] if isinstance(structures, str) else structures
        if not isinstance(organ, str) or not isinstance(named, Sequence) or not all(isinstance(n, str) for n in named):
            raise _wrong(f"{organ!r:.40}: {structures!r:.60}", "Give a mapping: organ → names of its structures.")
        if _slug(organ) != organ.casefold():
            raise _wrong(f"{organ!r:.60} as an organ", "Name organs by letters, digits and dashes.")
        for structure in named:
            if merged.setdefault(structure.strip().casefold(), organ) != organ:
                raise _wrong(f"{structure!r:.60} is named for two organs", "Name each structure once.")
    return merged


def _slug(name: str) -> str:
    """A structure's name as an organ's: ASCII letters and digits, joined by dashes; empty if nothing is left of it."""
    slug = "-".join(re.findall(r"[a-z0-9]+", name.casefold()))
    slug = f"organ-{slug}" if slug in RESERVED or slug.isdigit() else slug
    return slug[:60].strip("-")


def _organ(structure: str, merged: Mapping[str, str] | None) -> str | None:
    return _slug(structure) or None if merged is None else merged.get(structure.strip().casefold())


def _labels(
    path: Path, sources: Sequence[Source], merged: Mapping[str, str] | None, organs: Iterable[str] | None
) -> dict[str, int]:
    """Organ → value: those of an earlier run, then what is new. No name that tells of a person is among them."""
    labels: dict[str, int] = {}
    if path.is_file():
        try:
            labels = {str(organ): int(value) for organ, value in json.loads(path.read_text(encoding="utf-8")).items()}
            if len(set(labels.values())) < len(labels) or not all(
                1 <= value <= MOST_LABELS for value in labels.values()
            ):
                raise ValueError(f"values are not {len(labels)} different ones from 1 to {MOST_LABELS}")
        except (ValueError, TypeError, AttributeError) as reason:
            remedy = "Mend it: the label maps that stand beside it hold its values. Or give another folder."
            raise _wrong(f"{path} is no table of labels ({reason})", remedy) from reason
    if organs is None:
        told = {
            organ
            for source in sources
            for _, structure in source.structures
            if (organ := _organ(structure, merged)) and not _tells(structure, source.identifiers)
        }
        organs = sorted(told)
    for organ in organs:
        labels.setdefault(organ, max(labels.values(), default=0) + 1)
    if not labels or max(labels.values()) > MOST_LABELS:
        raise _wrong(f"{len(labels)} organs", "Name the organs that are wanted: --organ.")
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def _tells(structure: str, people: Iterable[str]) -> bool:
    """Whether a structure's name holds a name or a number by which a header identifies a person."""
    words = set(words_of(structure))
    whole = structure.casefold()
    return any(p in words or (len(p) >= 4 and any(c.isdigit() for c in p) and p in whole) for p in people)


# Who is who -----------------------------------------------------------------------------------------------------------


def _read_mapping(path: Path) -> _Names:
    names = _Names()
    if not path.exists():
        return names
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise _wrong(f"the mapping {path} cannot be read ({reason})", "Give a CSV file: kind,old,new.") from reason
    for n, row in enumerate(rows, start=2):
        kind, old, new = ((row.get(c) or "").strip() for c in COLUMNS)
        kind = kind or "patient"
        if kind not in ("patient", "series", "annotator") or not ID.fullmatch(new) or len(new) > 80:
            raise _wrong(
                f"line {n} of the mapping {path} is no name",
                "Give kind (patient, series or annotator), old, and new: letters, digits, _, - and dots between them.",
            )
        group = ("annotator",) if kind == "annotator" else ("patient", "series")
        if (kind, old) in names.new or new.casefold() in {name.casefold() for name in names.of(*group)}:
            raise _wrong(f"line {n} of the mapping {path} repeats an old or a new name", "Give each one once.")
        names.new[kind, old] = new
    return names


def _write_mapping(path: Path, names: _Names) -> None:
    """The mapping, which its owner alone may read from the first byte on."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([*key, new] for key, new in sorted(names.new.items()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _put(path, text.getvalue(), stat.S_IRUSR | stat.S_IWUSR)
    except OSError as reason:
        raise _wrong(f"the mapping {path} cannot be written ({reason.strerror})", "Give another file.") from reason


def _put(path: Path, text: str, mode: int) -> None:
    """A file in the place of an earlier one, which stays whole until the new one is: nothing else knows who is who."""
    path = path.resolve()
    part = path.with_name(f".{path.name}.partial")
    part.unlink(missing_ok=True)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", newline="", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# One patient ----------------------------------------------------------------------------------------------------------


def _cases_of(patient: str, found: _Found, names: _Names) -> Iterable[tuple[str, str | PatientError, list[Source]]]:
    """(id, series or why there is none, annotations) for each scan of a patient that has an id."""
    id_ = names.new["patient", patient]
    sources = [source for source in found.sources if source.patient == patient]
    drawn: dict[str, list[Source]] = defaultdict(list)
    try:
        if patient in found.damaged:
            raise PatientError(ATTEMPTED, id_, "an RTSTRUCT or SEG of this patient is damaged", "Export it again.")
        for source in sources:
            drawn[_series_of(source, found, id_)].append(source)
    except PatientError as error:
        yield id_, error, sources
        return
    own = {uid: names.new["series", uid] for uid in drawn if ("series", uid) in names.new}
    for uid, name in own.items():
        yield name, uid, drawn[uid]
    others = [uid for uid in drawn if uid not in own]
    if len(others) == 1:
        yield id_, others[0], drawn[others[0]]
    elif others or not drawn:
        count = f"{len(others)} image series are annotated" if others else "no RTSTRUCT or SEG is this patient's"
        remedy = "Give each series an id in the mapping (series,<SeriesInstanceUID>,<id>), or leave out all but one."
        yield id_, PatientError(ATTEMPTED, id_, count, remedy if others else "Add the annotations to the folder."), []


def _series_of(source: Source, found: _Found, subject: str) -> str:
    """The series that an annotation was drawn on."""

    def refuse(told: str) -> PatientError:
        return PatientError(ATTEMPTED, subject, told, "Give the folder that holds this series, of the same export.")

    uids = list(source.series)
    if not uids and source.images:
        uids = [
            uid for uid, files in found.slices.items() if any(s.header.SOPInstanceUID in source.images for s in files)
        ]
    if not uids:
        uids = [
            uid
            for uid, files in found.slices.items()
            if found.patient_of(uid) == source.patient
            and str(files[0].header.get("FrameOfReferenceUID") or "") in source.frames
        ]
    there = [uid for uid in uids if uid in found.slices]
    if len(there) != 1:
        kind = "a SEG" if source.seg else "an RTSTRUCT"
        raise refuse(f"{kind} refers to {len(uids)} image series, of which {len(there)} are in the folder, not 1")
    if found.patient_of(there[0]) != source.patient:
        raise refuse("an annotation refers to another patient's series")
    return there[0]


def _convert(
    id_: str,
    found: _Found,
    uid: str,
    sources: Sequence[Source],
    labels: Mapping[str, int],
    merged: Mapping[str, str] | None,
    names: _Names,
    out: Path,
) -> Case:
    series = Series.of(found.slices[uid], attempted="reading its series", subject=id_)
    people = frozenset[str]().union(*(source.identifiers for source in sources))
    by_annotator: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        if source.author is None:
            raise PatientError(
                ATTEMPTED,
                id_,
                "an annotation does not say who drew it",
                "Choose another --annotator-from: label, operator or folder.",
            )
        by_annotator[names.new["annotator", source.author]].append(source)
    warnings: list[str] = []
    if torn := sum(found.torn[folder] for folder in {one.path.parent for one in series.slices}):
        warnings.append(f"{torn} damaged files lie beside its images: a slice may be missing at either end")
    volumes: dict[str, dict[str, float]] = {}
    partial = out / f".{id_}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for annotator, files in sorted(by_annotator.items()):
            drawn = _label_map(id_, annotator, files, series, labels, merged, people, warnings)
            counts = np.bincount(drawn.ravel(), minlength=max(labels.values()) + 1)
            volumes[annotator] = {
                o: round(float(counts[v]) * series.grid.voxel_ml, 3) for o, v in labels.items() if counts[v]
            }
            if not volumes[annotator]:
                warnings.append(f"{annotator} drew none of the organs: the label map is blank")
            _write(partial / f"annotation_{annotator}.nii.gz", drawn, series.grid, id_)
        _write(partial / "image.nii.gz", series.voxels(attempted="reading its series", subject=id_), series.grid, id_)
        shutil.rmtree(out / id_, ignore_errors=True)
        partial.rename(out / id_)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Case(id_, tuple(volumes), volumes, tuple(warnings))


def _label_map(
    id_: str,
    annotator: str,
    files: Sequence[Source],
    series: Series,
    labels: Mapping[str, int],
    merged: Mapping[str, str] | None,
    people: Iterable[str],
    warnings: list[str],
) -> npt.NDArray[Any]:
    """What one annotator drew, (Z, Y, X), uint8 or uint16."""
    wanted: dict[str, list[tuple[Source, int]]] = defaultdict(list)
    for source in files:
        for number, structure in source.structures:
            if (organ := _organ(structure, merged)) is None:
                continue
            if merged is None and _tells(structure, people):
                raise PatientError(
                    ATTEMPTED,
                    id_,
                    "the name of a structure holds a name or a number of the patient or of another person",
                    "Say which organ it is: --organ ORGAN=STRUCTURE, for every organ that is wanted.",
                )
            wanted[organ].append((source, number))
    for organ, drawn in wanted.items():
        if len({source.path for source, _ in drawn}) > 1:
            raise PatientError(
                ATTEMPTED,
                id_,
                f"{organ} of {annotator} is in several files: versions, or annotators who look alike",
                "Tell them apart by another --annotator-from, or leave only the right version in the folder.",
            )
    opened = {source.path: Drawn(source, series, id_) for source in files}
    painted = np.zeros(series.grid.shape, np.uint8 if max(labels.values()) < 256 else np.uint16)
    hidden = 0
    for organ, value in labels.items():
        if organ in wanted:
            mask = np.zeros(series.grid.shape, np.bool_)
            opened[wanted[organ][0][0].path].paint(mask, [number for _, number in wanted[organ]], organ)
            hidden += int(np.count_nonzero(painted[mask]))
            painted[mask] = value
    warnings += [f"{annotator}: {warning}" for drawn in opened.values() for warning in dict.fromkeys(drawn.warnings)]
    if hidden:
        warnings.append(
            f"{annotator}: organs overlap in {hidden} voxels, which went to the organ with the higher value in {LABELS}"
        )
    return painted


def _write(path: Path, voxels: npt.NDArray[Any], grid: Grid, subject: str) -> None:
    """A NIfTI file with voxels and place, and nothing else, that nibabel and ITK read alike."""
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), grid.affine)
    image.set_sform(grid.affine, 1)
    image.set_qform(grid.affine, 1)
    image.header.set_xyzt_units("mm")
    try:
        nib.save(image, path)
    except OSError as reason:
        raise CurvasError(
            ATTEMPTED, subject, f"{path.name} cannot be written ({reason.strerror})", "Make room."
        ) from reason
    geometry.require_one_reading(
        path,
        nib.Nifti1Image.from_filename(path),
        spacing_tolerance_mm=TOLERANCE_MM,
        place_tolerance_mm=TOLERANCE_MM,
        attempted=ATTEMPTED,
        subject=subject,
        error=PatientError,
    )
