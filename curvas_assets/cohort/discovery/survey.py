"""Looks at every file of a folder or bucket: the layout, what label maps hold, and what looks wrong."""

import hashlib
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from curvas_assets.cohort.discovery.layout import ENDINGS, Kind, Layout, Role, ending_of, find_layout, ids_of, matches
from curvas_assets.cohort.discovery.tables import LARGEST, READ, Told, read_told
from curvas_assets.cohort.discovery.volumes import (
    BEGINNING,
    INTAKE,
    NO_NUMBERS,
    WITHOUT,
    LabelMap,
    Look,
    look,
    read_intensities,
    read_label_map,
)
from curvas_assets.cohort.intake import implausible_intensities
from curvas_assets.errors import CurvasError, PatientError, StudyError
from curvas_assets.file_paths import FilePaths
from curvas_assets.geometry import Grid, by, mm, require_same_grid, voxel_order
from curvas_assets.study import MOST_ORGANS, PatientIds

Tell = Callable[[str], None]
Severity = Literal["stops", "check", "note"]
"""`stops`: a patient, or the study, cannot be used as it is. `check`: probably a mistake. `note`: worth knowing."""
ORDER: tuple[Severity, ...] = ("stops", "check", "note")
THREADS = 4
SCANS_READ = 4
"""Scans of which all intensities are read."""
AIR_HU = -500
STRAY_ML = 0.1
"""Largest volume of a label in one patient that looks like a slip of the brush."""
VOID = 255
"""What many tools write where nobody looked."""
READABLE = "Make it a file that this user may read."
Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Listed:
    """A file.

    Args:
        path: below the data folder, with `/`.
        size: in bytes.
        tag: of its content, where a store tells it; equal tags are equal contents.
    """

    path: str
    size: int
    tag: str = ""


class Source(Protocol):
    """A folder or a bucket."""

    @property
    def name(self) -> str:
        """As people know it."""
        ...

    def files(self) -> list[Listed]:
        """All files, hidden ones left out."""
        ...

    def beginning(self, path: str, length: int) -> bytes:
        """The first bytes of a file."""
        ...

    def whole(self, path: str) -> AbstractContextManager[Path]:
        """A file on the disk, while the block runs."""
        ...

    def unreadable(self) -> list[str]:
        """Files and folders that could not be listed: closed to this user, or of a name that is no UTF-8."""
        ...


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong.

    Args:
        severity: how bad.
        patient: whose; empty if it is everybody's.
        what: was found.
        remedy: what to do.
    """

    severity: Severity
    patient: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{f'{self.patient}: ' if self.patient else ''}{self.what}. {self.remedy}"


@dataclass(frozen=True)
class Survey:
    """What was found.

    Args:
        name: of the folder or bucket.
        layout: whose files are whose.
        told: what files beside the volumes say.
        looks: path → first look.
        maps: path → label map that was read whole.
        intensities: patient → smallest, median, largest intensity of the main channel.
        ct: whether scans are CT.
        defects: patient → why the patient cannot be used as the files are.
        findings: what looks wrong, worst first.
    """

    name: str
    layout: Layout
    told: Told
    looks: Mapping[str, Look]
    maps: Mapping[str, LabelMap]
    intensities: Mapping[str, tuple[float, float, float]]
    ct: bool
    defects: Mapping[str, str] = field(default_factory=dict)
    findings: Sequence[Finding] = ()

    @cached_property
    def usable(self) -> list[str]:
        """Patients with a scan and a label map, without defects."""
        scanned, drawn = self.layout.channels[0].files, self.annotated
        return [one for one in self.layout.patients if one in scanned and one in drawn and one not in self.defects]

    @cached_property
    def annotated(self) -> set[str]:
        """Patients with at least one label map."""
        return {one for role in self.layout.annotators for one in role.files}

    def drawn_by(self, patient: str) -> list[str]:
        """Annotators with a label map of a patient that is not blank, as far as it was read."""
        return [role.name for role in self.layout.annotators if any(map(self._is_drawn, role.files.get(patient, ())))]

    def _is_drawn(self, path: str) -> bool:
        found = self.maps.get(path)
        return found is None or bool(found.voxels) or found.negative

    @cached_property
    def volumes(self) -> dict[str, dict[int, dict[str, float]]]:
        """Annotator → value → patient → ml, of the label maps that were read."""
        found: dict[str, dict[int, dict[str, float]]] = {}
        for role in self.layout.annotators:
            of: dict[int, dict[str, float]] = defaultdict(dict)
            for patient, path in _single(role):
                grid = self.looks[path].grid
                if path in self.maps and grid is not None:
                    for value, count in self.maps[path].voxels.items():
                        of[value][patient] = count * grid.voxel_ml
            found[role.name] = dict(sorted(of.items()))
        return found

    @cached_property
    def values(self) -> list[int]:
        """Values of the labels, smallest first."""
        return sorted({value for of in self.volumes.values() for value in of})

    @cached_property
    def grids(self) -> dict[str, Grid]:
        """Patient → grid of the main channel."""
        found = {one: self.looks[path].grid for one, path in _single(self.layout.channels[0])}
        return {one: grid for one, grid in found.items() if grid is not None}

    @cached_property
    def strays(self) -> list[int]:
        """Values that only one of many patients has, in less than a drop: slips of the brush. And 255 beside smaller values."""
        volumes, found = self.volumes, list[int]()
        read = {one for of in volumes.values() for patients in of.values() for one in patients}
        for value in self.values:
            of = [volumes[name][value] for name in volumes if value in volumes[name]]
            alone = len({one for patients in of for one in patients}) == 1
            drop = alone and len(read) > 3 and max(ml for patients in of for ml in patients.values()) < STRAY_ML
            void = value == VOID and len(self.values) > 1 and self.values[-2] < VOID // 2
            if drop or void:
                found.append(value)
        return found

    def left_and_right(self) -> list[tuple[int, int]]:
        """Pairs of values that look like the left and the right part of one organ: alike in volume, mirrored in place."""
        centres: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
        volumes: dict[int, list[float]] = defaultdict(list)
        for of in self.volumes.values():
            for value, patients in of.items():
                volumes[value] += patients.values()
        for found in self.maps.values():
            for value, centre in found.centres.items():
                centres[value].append(centre)
        middle = {
            v: tuple(statistics.median(c[axis] for c in all_of) for axis in range(3)) for v, all_of in centres.items()
        }
        pairs: list[tuple[int, int]] = []
        for one, other in combinations(sorted(middle), 2):
            a, b = middle[one], middle[other]
            sizes = sorted((statistics.median(volumes[one]), statistics.median(volumes[other])))
            apart = min(abs(a[0] - 0.5), abs(b[0] - 0.5)) > 0.08 and (a[0] - 0.5) * (b[0] - 0.5) < 0
            mirrored = abs(a[0] + b[0] - 1) < 0.12 and abs(a[1] - b[1]) < 0.1 and abs(a[2] - b[2]) < 0.12
            if apart and mirrored and sizes[1] <= 1.5 * sizes[0]:
                pairs.append((one, other))
        return pairs


def survey(
    source: Source, *, quick: int | None = None, seed: int = 0, annotators: Mapping[str, str] | None = None, tell: Tell
) -> Survey:
    """Look at all files of a source.

    Args:
        source: folder or bucket.
        quick: how many patients' label maps are read, drawn at random; None for all.
        seed: of that draw.
        annotators: as they are found → as they are to be called, of those that count; all, as they are found, if left out.
        tell: told of the progress.

    Raises:
        PatientError: there is no NIfTI file, or no label map that can be read.
        StudyError: no id is shared by a scan and a label map, or there is no annotator of a name that was asked for.
    """
    files = {one.path: one for one in source.files()}
    volumes = [path for path in files if ending_of(path)]
    if not volumes:
        dicom = sum(path.lower().endswith(".dcm") for path in files)
        found = f"{counted(len(files), 'file')}, none of them NIfTI (.nii.gz, .nii)"
        found += f", and {counted(dicom, 'DICOM file')}" if dicom else ""
        found += f"; {_some(unreadable)} cannot be listed" if (unreadable := source.unreadable()) else ""
        remedy = (
            "Convert DICOM first, such as with dcm2niix."
            if dicom
            else "Give the folder that holds the patients' files."
        )
        raise PatientError("looking for patients", source.name, found, remedy)
    looked = _in_threads(lambda path: _look(source, files[path]), volumes, "files looked at", tell)
    looks = dict(zip(volumes, looked, strict=True))
    layout, maps, broken = _read(source, looks, quick, seed, annotators, tell)
    texts = [p for p, one in files.items() if p.lower().endswith(READ) and one.size <= LARGEST]
    beside = {path: content for path in texts if (content := _content(source, path)) is not None}
    told = read_told(beside, layout.patients)
    intensities = _intensities(source, layout, looks, broken)
    lows = [low for low, _, _ in intensities.values()]
    named_ct = any(
        "ct" in text.lower().replace("/", "_").split("_") for text in (*told.channels[:1], _main_name(layout))
    )
    ct = len(layout.channels) == 1 and (named_ct or (bool(lows) and statistics.median(lows) <= AIR_HU))
    found = Survey(source.name, layout, told, looks, maps, intensities, ct)
    defects, findings = _findings(found, broken)
    findings += _duplicates(source, found, files)
    findings += _strangers(layout, files)
    findings += _others(source, [path for path in files if path not in looks and path not in beside], layout.unknown)
    ranked = sorted(findings, key=lambda one: ORDER.index(one.severity))
    return Survey(source.name, layout, told, looks, maps, intensities, ct, defects, ranked)


def _look(source: Source, file: Listed) -> Look:
    try:
        return look(source.beginning(file.path, BEGINNING), file.size)
    except OSError as error:
        return Look(None, None, defect=f"it cannot be read ({error.strerror})", remedy=READABLE)


def _content(source: Source, path: str) -> bytes | None:
    try:
        return source.beginning(path, LARGEST)
    except OSError:  # told among the files that are left aside
        return None


def _main_name(layout: Layout) -> str:
    return layout.channels[0].pattern.replace("{patient}", "").removesuffix(".gz").removesuffix(".nii").lower()


def _read(
    source: Source,
    looks: Mapping[str, Look],
    quick: int | None,
    seed: int,
    annotators: Mapping[str, str] | None,
    tell: Tell,
) -> tuple[Layout, dict[str, LabelMap], dict[str, PatientError]]:
    """The layout, and label maps read whole. Files that only then show that they hold intensities change the layout."""
    kinds: dict[str, Kind | None] = {path: one.kind for path, one in looks.items()}
    maps, broken = dict[str, LabelMap](), dict[str, PatientError]()

    def read(paths: Sequence[str]) -> list[str]:
        """Read label maps; the paths of those that are none."""
        due = [path for path in paths if path not in maps and path not in broken and looks[path].grid is not None]

        def one(path: str) -> LabelMap | PatientError | None:
            try:
                with source.whole(path) as file:
                    return read_label_map(file, path)
            except PatientError as error:
                return error
            except OSError as error:
                return PatientError("reading the file", path, f"it cannot be read ({error.strerror})", READABLE)

        scans = list[str]()
        for path, answer in zip(due, _in_threads(one, due, "label maps read", tell), strict=True):
            if isinstance(answer, PatientError):
                broken[path] = answer
            elif answer is None:
                scans.append(path)
            else:
                maps[path] = answer
        return scans

    for _ in range(3):
        try:
            layout = find_layout(kinds)
        except StudyError:
            unsure = [path for path, kind in kinds.items() if kind == "labels" and not looks[path].sure]
            scans = read(unsure)
            if not scans:
                raise
            kinds |= dict.fromkeys(scans, "image")
            continue
        if annotators:
            layout = _chosen(layout, annotators)
        complete = [one for one in layout.patients if any(one in role.files for role in layout.annotators)]
        if quick is not None and quick < len(complete):
            complete = sorted(random.Random(seed).sample(complete, quick))
        paths = [path for role in layout.annotators for one in complete for path in role.files.get(one, ())]
        scans = read([path for path in paths if kinds[path] == "labels"])
        if not scans:
            return layout, maps, broken
        patterns = [role.pattern for role in layout.annotators if any(matches(role.pattern, path) for path in scans)]
        alike = [path for path in kinds if any(matches(pattern, path) for pattern in patterns) and path not in maps]
        kinds |= {path: "image" for path in alike if kinds[path] == "labels"}
    raise PatientError(
        "telling scans from label maps",
        source.name,
        f"{len(maps)} files hold labels, and the names of the others do not go with them",
        "Move other volumes (masks, registered scans) out of the folder, and start again.",
    )


def _chosen(layout: Layout, annotators: Mapping[str, str]) -> Layout:
    """The layout with some of its annotators, under other names."""
    roles = {role.name: role for role in layout.annotators}
    if unknown := [name for name in annotators if name not in roles]:
        found = f"no annotator is called {' or '.join(unknown)}; found are {', '.join(f'{n} ({r.pattern})' for n, r in roles.items())}"
        raise StudyError(
            "choosing annotators", "the folder", found, "Name some of these; anno1=anna gives another name."
        )
    return replace(layout, annotators=tuple(replace(roles[name], name=to) for name, to in annotators.items()))


def _intensities(
    source: Source, layout: Layout, looks: Mapping[str, Look], broken: dict[str, PatientError]
) -> dict[str, tuple[float, float, float]]:
    found: dict[str, tuple[float, float, float]] = {}
    chosen = [(one, path) for one, path in _single(layout.channels[0]) if looks[path].grid is not None]
    step = max(1, len(chosen) // SCANS_READ)
    for patient, path in chosen[::step][:SCANS_READ]:
        try:
            with source.whole(path) as file:
                found[patient] = read_intensities(file, patient)
        except PatientError as error:
            broken[path] = error
        except OSError as error:
            found_there = f"it cannot be read ({error.strerror})"
            broken[path] = PatientError("reading the file", path, found_there, READABLE)
    return found


def _in_threads(work: Callable[[Item], Answer], items: Sequence[Item], what: str, tell: Tell) -> list[Answer]:
    answers: list[Answer] = []
    with ThreadPoolExecutor(THREADS) as threads:
        for count, answer in enumerate(threads.map(work, items), 1):
            answers.append(answer)
            tell(f"{count} of {len(items)} {what}")
    return answers


def _single(role: Role) -> Iterator[tuple[str, str]]:
    """Patients with one file of a role, and the file."""
    return ((patient, paths[0]) for patient, paths in role.files.items() if len(paths) == 1)


# What looks wrong ----------------------------------------------------------------------------------------------------


def _findings(found: Survey, broken: Mapping[str, PatientError]) -> tuple[dict[str, str], list[Finding]]:
    """Patient → the first defect for which it cannot be used; and everything that looks wrong."""
    defects: dict[str, str] = {}
    told: list[Finding] = []
    for patient in found.layout.patients:
        for what, remedy in _defects_of(found, patient, broken):
            defects.setdefault(patient, what)
            told.append(Finding("stops", patient, what, remedy))
    told += _missing(found)
    told += _of_labels(found)
    told += _unread(found, broken)
    told += _of_scans(found)
    if (usable := sum(one not in defects for one in found.usable)) < 2:
        remedy = "A study takes two or more: one to train on, and one to score."
        told.append(Finding("stops", "", f"{counted(usable, 'patient')} can be used", remedy))
    folded: dict[str, list[str]] = defaultdict(list)
    for one in found.layout.patients:
        folded[one.casefold()].append(one)
    for alike in (names for names in folded.values() if len(names) > 1):
        told.append(Finding("check", alike[0], f"{' and '.join(alike)} differ only in case", "Rename one of them."))
    return defects, told


def _defects_of(found: Survey, patient: str, broken: Mapping[str, PatientError]) -> Iterator[tuple[str, str]]:
    main, *others = found.layout.channels
    roles = [*found.layout.channels, *found.layout.annotators]
    if patient not in main.files:
        yield f"it has label maps and no scan ({main.pattern})", "Add the scan, or take the label maps away."
        return
    for role in roles:
        paths = role.files.get(patient, ())
        if len(paths) > 1:
            yield f"{' and '.join(paths)} have the same role", "Keep one of them, or give the patients different ids."
        for path in paths:
            one = found.looks[path]
            if one.grid is None:
                yield f"{path}: {one.defect}", one.remedy
            elif path in broken:
                yield f"{path}: {broken[path].found}", broken[path].remedy
    grid = found.grids.get(patient)
    for role in roles[1:] if grid is not None else ():
        for path in role.files.get(patient, ()):
            other = found.looks[path].grid
            if other is not None and (why := _apart(other, grid, "channel" if role in others else "annotation")):
                yield (
                    f"{path}: {why}",
                    "Resample it onto the scan's voxels by their place in the world, nearest neighbour for labels.",
                )
    for role in others:
        if patient not in role.files:
            yield f"it has no {role.name} ({role.pattern})", "Add the file, or leave the channel out of the study."
    for role in found.layout.annotators:
        for path in role.files.get(patient, ()):
            of = found.maps.get(path)
            if found.looks[path].kind == "image" and of is None and found.looks[path].grid is not None:
                yield f"{path}: it holds no labels but intensities or probabilities", "Export the label map again."
            if of is not None and of.fractions > INTAKE.label_tolerance:
                what = f"{path}: labels are up to {of.fractions:.2g} from a whole number"
                yield what, "Export it again with nearest-neighbour interpolation."
            if of is not None and not of.finite:
                yield f"{path}: {NO_NUMBERS}", WITHOUT
            if of is not None and of.negative:
                yield f"{path}: it holds labels below 0", "Set them to 0, or to a value of their own above 0."
    if patient in found.annotated and not found.drawn_by(patient):
        remedy = "Look for the right files; if they mean that there is no organ, set intake.blank_annotation to absent."
        yield "every label map is blank", remedy


def _apart(grid: Grid, scan: Grid | None, what: str) -> str:
    """Why two grids are not the same; empty if they are."""
    if scan is None:
        return ""
    try:
        require_same_grid(
            grid,
            voxel_order(grid, scan),
            scan,
            spacing_tolerance_mm=INTAKE.spacing_tolerance_mm,
            place_tolerance_mm=INTAKE.origin_tolerance_mm,
            remedy="",
            attempted="comparing grids",
            subject="it",
            error=PatientError,
        )
    except CurvasError as error:
        return error.found.replace("the annotation", f"the {what}")
    return ""


def _missing(found: Survey) -> Iterator[Finding]:
    """Patients without label maps, annotators without some patients, blank maps."""
    scanned = [one for one in found.layout.patients if one in found.layout.channels[0].files]
    unlabelled = [one for one in scanned if one not in found.annotated]
    if unlabelled:
        verb = "has" if len(unlabelled) == 1 else "have"
        what = f"{counted(len(unlabelled), 'patient')} {verb} a scan and no label map: {_some(unlabelled)}"
        remedy = "They are in no set, because nobody can train on them or score them. Add label maps, or leave them so."
        yield Finding("check", "", what, remedy)
    for role in found.layout.annotators:
        without = [one for one in scanned if one in found.annotated and one not in role.files]
        if without:
            what = f"{role.name} has no label map of {counted(len(without), 'patient')}: {_some(without)}"
            yield Finding("note", "", what, "They are scored by the other annotators (intake.missing_annotation).")
    for patient in scanned:
        drawn = found.drawn_by(patient)
        blank = [role.name for role in found.layout.annotators if patient in role.files and role.name not in drawn]
        if drawn and blank:
            remedy = (
                "It counts as not annotated; if it means that there is no organ, set intake.blank_annotation to absent."
            )
            yield Finding("check", patient, f"the label map of {' and '.join(blank)} is blank", remedy)


def _of_labels(found: Survey) -> Iterator[Finding]:
    volumes, annotators = found.volumes, [role.name for role in found.layout.annotators]
    read = {one for of in volumes.values() for patients in of.values() for one in patients}
    values = found.values
    if not values:
        yield Finding("stops", "", "no label map holds a label", "Give the folder that holds label maps.")
        return
    for value in values:
        has = [name for name in annotators if value in volumes[name]]
        patients = {one for name in has for one in volumes[name][value]}
        largest = max(ml for name in has for ml in volumes[name][value].values())
        if value in found.strays and len(patients) == 1:
            what = f"label {value} occurs only here, {largest:.2g} ml, drawn by {' and '.join(has)}"
            yield Finding(
                "check", next(iter(patients)), what, "It is in ignored_labels; if it is no slip, name it in organs."
            )
        elif value in found.strays:
            what = f"label {value} stands beside small values, as where nobody looked ({counted(len(patients), 'patient')})"
            yield Finding("check", "", what, "It is in ignored_labels; if it is an organ, name it in organs.")
        elif len(has) < len(annotators) and len(read) > 1:
            others = " and ".join(name for name in annotators if name not in has)
            whose = counted(len(patients), "patient")
            what = f"label {value} is drawn by {' and '.join(has)} and never by {others} ({whose})"
            yield Finding("check", "", what, "Map the labels alike, or leave the organ out (ignored_labels).")
    if len(values) > MOST_ORGANS:
        what = f"there are {len(values)} labels; a study has at most {MOST_ORGANS} organs"
        yield Finding("check", "", what, "Name those of interest in organs; the others are read as background.")
    binary = [name for name in annotators if list(volumes[name]) in ([1], [255])]
    if len(annotators) > 1 and len(binary) == len(annotators):
        medians = [statistics.median(next(iter(volumes[name].values())).values()) for name in annotators]
        if max(medians) > 3 * min(medians):
            what = f"each of {_some(annotators)} draws a single label, of very different volumes: one file per organ?"
            yield Finding(
                "check", "", what, "Merge the files of one annotator into one label map with a value per organ."
            )
    for one, other in found.left_and_right():
        what = f"labels {one} and {other} look like the left and the right part of one organ"
        yield Finding("note", "", what, f"To merge them, write one organ with [{one}, {other}].")


def _unread(found: Survey, broken: Mapping[str, PatientError]) -> Iterator[Finding]:
    """Label maps that a quick look left out."""
    paths = [path for role in found.layout.annotators for _, path in _single(role)]
    sound = [path for path in paths if found.looks[path].kind == "labels" and found.looks[path].grid is not None]
    if left := [path for path in sound if path not in found.maps and path not in broken]:
        what = f"{counted(len(left), 'label map')} {'was' if len(left) == 1 else 'were'} not read (--quick)"
        yield Finding("note", "", what, "A label that only such a map has stops its patient later; look at all before.")


def _of_scans(found: Survey) -> Iterator[Finding]:
    for role in (*found.layout.channels, *found.layout.annotators):
        if not role.pattern.endswith(ENDINGS):
            what = f"{role.pattern}: a study reads names that end in {' or '.join(ENDINGS)}, in lower case"
            yield Finding("stops", "", what, "Rename the files.")
    for patient, (low, _, high) in found.intensities.items() if found.ct else ():
        for what in implausible_intensities({"hu_range": (low, high)}):
            yield Finding("check", patient, what, "Convert the series again with its rescale slope and intercept.")
    spacings = [grid.spacing_mm for grid in found.grids.values()]
    if spacings and (thick := max(s[0] for s in spacings)) > 4 * (thin := min(s[0] for s in spacings)):
        what = f"slices are {thin:g} to {thick:g} mm apart"
        yield Finding("note", "", what, "nnU-Net resamples them; look whether the thickest belong to the study.")
    small = [one for one, grid in found.grids.items() if min(grid.shape) < 8]
    if small:
        what = f"{_some(small)}: fewer than 8 voxels along an axis ({by(found.grids[small[0]].shape)})"
        yield Finding("check", "", what, "Look whether this is a whole scan.")
    if len(found.layout.channels) > 1:
        names = ", ".join(role.pattern for role in found.layout.channels)
        what = f"several scans per patient were taken as channels of one: {names}"
        files = {role.pattern.rpartition("/")[2] for role in found.layout.channels}
        if len(files) < len(found.layout.channels):  # the folder alone tells them apart, and it may be a hospital's
            remedy = (
                "Delete those that are none; if they are other persons with the same ids, rename the patients' folders."
            )
            yield Finding("check", "", what, remedy)
        else:
            yield Finding("note", "", what, "Delete those that are none; visits of one person take an id each.")


def _duplicates(source: Source, found: Survey, files: Mapping[str, Listed]) -> Iterator[Finding]:
    """The same scan of two patients, or the same label map of two."""
    for patients in _same_scans(source, found, files):
        what = f"{' and '.join(patients)} have the same scan, byte by byte"
        yield Finding("check", patients[0], what, "Keep one: a patient in two sets is scored by models that saw it.")
    maps: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for role in found.layout.annotators:
        for patient, path in _single(role):
            if path in found.maps and found.maps[path].voxels:
                maps[found.maps[path].digest].append((patient, role.name))
    for owners in maps.values():
        if len(owners) > 1:
            told = " and ".join(f"{name} of {patient}" for patient, name in owners[:4])
            what = f"the label maps of {told} are the same, voxel by voxel"
            yield Finding(
                "check", owners[0][0], what, "Look whether a file was copied: disagreement would be too small."
            )


def _same_scans(source: Source, found: Survey, files: Mapping[str, Listed]) -> Iterator[list[str]]:
    """Patients whose scans are the same. Scans that are not compressed have one size; their beginnings are compared before all of them
    are read.
    """

    def begins(path: str) -> str:
        return files[path].tag or hashlib.sha256(source.beginning(path, BEGINNING)).hexdigest()

    def holds(path: str) -> str:
        return files[path].tag or _digest(source, path)

    def size(path: str) -> int:
        return files[path].size

    groups = [[(one, path) for one, path in _single(found.layout.channels[0]) if one in found.grids]]
    tellings: tuple[Callable[[str], Any], ...] = (size, begins, holds)
    for told in tellings:
        alike: dict[tuple[int, Any], list[tuple[str, str]]] = defaultdict(list)
        for number, group in enumerate(groups):
            for one, path in group:
                alike[number, told(path)].append((one, path))
        groups = [group for group in alike.values() if len(group) > 1]
    return ([one for one, _ in group] for group in groups)


def _digest(source: Source, path: str) -> str:
    digest = hashlib.sha256()
    with source.whole(path) as file, file.open("rb") as stream:
        while piece := stream.read(BEGINNING):
            digest.update(piece)
    return digest.hexdigest()


def _strangers(layout: Layout, paths: Iterable[str]) -> Iterator[Finding]:
    """Whom the proposed study would take for patients beside those who were found."""
    roles = (*layout.channels, *layout.annotators)
    taken = FilePaths([role.file for role in roles], PatientIds.model_validate(ids_of(layout.patients))).sort(paths)
    strangers = sorted(set(taken.patients) - set(layout.patients))
    if strangers:
        files = _some([path for one in strangers for path in taken.paths(one)])
        what = f"{files}: by name and place a patient's, so that the study has {_some(strangers)} among its patients"
        remedy = "Take the files out of the folder, or write a pattern of ids (patients) that leaves them out."
        yield Finding("check", "", what, remedy)


def _others(source: Source, rest: Sequence[str], unknown: Sequence[str]) -> Iterator[Finding]:
    if unknown:
        verb = "has" if len(unknown) == 1 else "have"
        what = f"{counted(len(unknown), 'NIfTI file')} {verb} no role: {_some(unknown)}"
        yield Finding("check", "", what, "If they are a patient's, name them as the others are.")
    if unreadable := source.unreadable():
        what = f"{_some(unreadable)} cannot be listed (closed to this user, or of a name that is no UTF-8)"
        yield Finding("check", "", what, "Make them readable, or rename them; what is in them was not looked at.")
    if rest:
        verb = "is" if len(rest) == 1 else "are"
        what = f"{counted(len(rest), 'other file')} {verb} left aside: {_some(rest)}"
        yield Finding("note", "", what, "Nothing is to be done.")


def counted(number: int, what: str) -> str:
    """A number with its noun.

    >>> counted(1, "patient"), counted(2, "patient")
    ('1 patient', '2 patients')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def described(grids: Iterable[Grid]) -> tuple[str, str, str]:
    """Spacing, shape and voxel order of grids, in words."""
    grids = list(grids)
    if not grids:
        return "unknown", "unknown", "unknown"

    def spread(rows: Sequence[Sequence[float]], words: Callable[[Sequence[float]], str]) -> str:
        ends = [[f(row[axis] for row in rows) for axis in range(3)] for f in (min, max)]
        return words(ends[0]) if ends[0] == ends[1] else f"{words(ends[0])} to {words(ends[1])}"

    orders = sorted({grid.orientation for grid in grids})
    return spread([g.spacing_mm for g in grids], mm), spread([g.shape for g in grids], by), ", ".join(orders)
