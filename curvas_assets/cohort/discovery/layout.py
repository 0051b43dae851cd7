"""Which file of a folder is whose: patients, scans, channels and annotators, from names and from what files hold.

Nothing is read here. Names are cut into runs of letters, of digits, and what is between them. One stretch of them is the
patient's id if, with it left open, the names of scans and those of label maps become few patterns that the same ids fill.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from curvas_assets.errors import StudyError
from curvas_assets.file_paths import PATIENT
from curvas_assets.predictors import CALIBRATIONS
from curvas_assets.study import RESERVED

Kind = Literal["image", "labels"]
SetOf = Literal["train", "validation", "test"]
ENDINGS = (".nii.gz", ".nii")
ID = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}"
"""What a patient may be called: a partition of Dagster, and a part of a key in a bucket."""
RUN = re.compile(r"[A-Za-z]+|[0-9]+|[^A-Za-z0-9]")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^A-Za-z0-9]")
DATE = re.compile(r"(?<![0-9])[0-9]{6,}(?![0-9])")
"""Dates and series' numbers, which vary although they are no id."""
MOST_FORMS, LONGEST_PATTERN = 6, 200
"""Forms of ids that a pattern tells apart, and its characters; ids of more forms are taken as they are."""
MOST_GROUPS = 12
MOST_RUNS = 16
"""Runs of one folder's or file's name that are looked at: a longer name is not cut further."""
SETS: dict[str, SetOf] = {
    **dict.fromkeys(("tr", "train", "training"), "train"),
    **dict.fromkeys(("va", "val", "valid", "validation"), "validation"),
    **dict.fromkeys(("ts", "te", "test", "testing"), "test"),
}
"""Words in names of folders that say which set a patient is in."""
NO_NAME = {
    *("seg", "segs", "segmentation", "segmentations", "label", "labels", "mask", "masks", "annotation", "annotations"),
    *("anno", "annot", "annotator", "gt", "truth", "ground", "contour", "contours", "roi", "rater", "reader", "expert"),
    *("observer", "delineation", "image", "images", "img", "scan", "scans", "volume", "vol", "ct", "mr", "mri", "nii"),
    *("by", "of", "the", "data", "set", "case", "patient", *SETS),
}
"""Words that say what a file is, and not who drew it or which channel it is."""


@dataclass(frozen=True)
class Role:
    """What one pattern of names stands for: a channel of the scan, or an annotator.

    Args:
        name: of the channel or the annotator, as a study file may have it.
        pattern: path below the data folder, with `{patient}` for the id and `*` for text that varies.
        files: patient → paths; several are a clash.
    """

    name: str
    pattern: str
    files: Mapping[str, tuple[str, ...]]

    @property
    def file(self) -> str:
        """As a study names it: in the patient's own folder, where that is all that the pattern says."""
        own = self.pattern.removeprefix(f"{PATIENT}/")
        return own if own != self.pattern and PATIENT not in own and "*" not in own else self.pattern


@dataclass(frozen=True)
class Layout:
    """How a folder of scans and label maps is laid out.

    Args:
        channels: of the scans, the main one first.
        annotators: who drew label maps.
        patients: all ids, those with a scan and those with a label map only.
        sets: patient → set, where names of folders say so.
        groups: patient → folder, where several folders hold the patients and are no sets.
        unknown: NIfTI files of no role.
    """

    channels: tuple[Role, ...]
    annotators: tuple[Role, ...]
    patients: tuple[str, ...]
    sets: Mapping[str, SetOf] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def find_layout(kinds: Mapping[str, Kind | None]) -> Layout:
    """The layout that explains most files.

    Args:
        kinds: path of each NIfTI file, with `/`, below the data folder → what its voxels are; None where it cannot be read.

    Raises:
        StudyError: no id is shared by a scan and a label map.
    """
    found = {kind: _candidates(path for path, of in kinds.items() if of == kind) for kind in ("image", "labels")}
    best: tuple[tuple[float, ...], str, list[str]] | None = None
    most = max((len(ids) for ids in found["image"].values()), default=0)
    for pattern, ids in found["image"].items():
        if len(ids) < 0.2 * most or len(ids) == 1 < most:  # one id for all explains every file, as their common word
            continue
        chosen = _label_patterns(pattern, ids, found["labels"])
        score = _score(ids, chosen, found["labels"])
        if chosen and (best is None or (score, pattern) > (best[0], best[1])):
            best = score, pattern, chosen
    if best is None:
        count = Counter(kinds.values())
        told = f"{count['image']} scans, {count['labels']} label maps, {count[None]} unreadable files"
        examples = ", ".join(sorted(kinds)[:3]) or "no NIfTI file"
        raise StudyError(
            "finding the patients",
            "the folder",
            f"no id stands both in a scan's name and in a label map's ({told}; such as {examples})",
            "Name the files so that both hold the patient's id, such as CASE_0001/ct.nii.gz and CASE_0001/seg-anna.nii.gz.",
        )
    _, main, labels = best
    words = _generalised(main, found["image"], None)
    channels = [_merged(main, words)]
    everybody = {one: path for word in reversed(words) for one, path in found["image"][word].items()}
    taken = {path for one in labels for path in found["labels"][one].values()}
    left = {one: of for one, of in found["labels"].items() if taken.isdisjoint(of.values())}
    labels += _label_patterns(main, everybody, left)  # of those who drew in other folders alone
    merged = (_merged(one, _generalised(one, found["labels"], _varying(main, words))) for one in labels)
    annotators = list(dict.fromkeys(merged))
    used = {*words, main}
    for pattern, ids in sorted(found["image"].items(), key=lambda item: (-len(item[1]), item[0])):
        if (
            pattern in used
            or len(everybody.keys() & ids) < max(1, len(everybody) / 2)
            or _overlaps(pattern, ids, used, found)
        ):
            continue
        alike = _generalised(pattern, found["image"], _varying(main, words))
        used |= {pattern, *alike}
        channels.append(_merged(pattern, alike))
    return _assigned(kinds, sorted(channels, key=_natural), sorted(annotators, key=_natural), main, words)


def matches(pattern: str, path: str) -> str | None:
    """The id of the patient whose file a path is by a pattern; None if it is no such file.

    >>> matches("images/{patient}_0000.nii.gz", "images/CASE_0001_0000.nii.gz")
    'CASE_0001'
    >>> matches("*/{patient}/image.nii.gz", "training_set/UKCHLL001/image.nii.gz")
    'UKCHLL001'
    """
    found = _expression(pattern).fullmatch(path)
    return found["patient"] if found else None


def _expression(pattern: str) -> re.Pattern[str]:
    parts, seen = [], False
    for part in re.split(r"(\{patient\}|\*)", pattern):
        if part == PATIENT:
            parts.append("(?P=patient)" if seen else f"(?P<patient>{ID})")
            seen = True
        else:
            parts.append("[^/]*" if part == "*" else re.escape(part))
    return re.compile("".join(parts))


def ids_of(patients: Sequence[str]) -> dict[str, str | int]:
    """The study's field `patients` for ids: a prefix and digits, or a pattern; empty, which takes any, where they have many forms.

    >>> ids_of(["UKCHLL001", "UKCHLL020"])
    {'prefix': 'UKCHLL', 'digits': 3}
    >>> ids_of(["CASE_1", "CASE_20"])
    {'pattern': 'CASE_[0-9]+'}
    """
    parted = [re.fullmatch("([A-Za-z]{0,40})([0-9]{1,12})", one) for one in patients]
    forms = {(match[1], len(match[2])) for match in parted if match}
    if all(parted) and len(forms) == 1:
        prefix, digits = forms.pop()
        return {"prefix": prefix, "digits": digits}
    alike: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for runs in map(RUN.findall, patients):
        alike[tuple("9" if run.isdigit() else "a" if run.isalpha() else run for run in runs)].append(runs)
    pattern = "|".join(map(_form, alike.values()))
    return {"pattern": pattern} if len(alike) <= MOST_FORMS and len(pattern) <= LONGEST_PATTERN else {}


def _form(ids: Sequence[Sequence[str]]) -> str:
    """A regular expression for ids that are made of the same kinds of runs."""
    parts = list[str]()
    for column in zip(*ids, strict=True):
        widths = {len(run) for run in column}
        if len(set(column)) == 1 and not column[0].isdigit():
            parts.append(column[0].replace(".", "[.]"))
        else:
            kind = "[0-9]" if column[0].isdigit() else "[A-Za-z]"
            parts.append(kind + (f"{{{widths.pop()}}}" if len(widths) == 1 else "+"))
    return "".join(parts)


def most_groups(patients: int) -> int:
    """How many groups some patients may form, so that a group is more than a name for each."""
    return min(MOST_GROUPS, max(2, patients // 2))


def ending_of(path: str) -> str:
    """`.nii.gz` or `.nii`; empty for other files."""
    return next((ending for ending in ENDINGS if path.lower().endswith(ending)), "")


# Candidates ----------------------------------------------------------------------------------------------------------

Candidates = dict[str, dict[str, str]]
"""Pattern → id → path."""


def _candidates(paths: Iterable[str]) -> Candidates:
    """Every pattern that a path fits with one stretch of its name as the id."""
    found: Candidates = defaultdict(dict)
    for path in sorted(paths):
        ending = path[len(path) - len(ending_of(path)) :]
        body = path[: len(path) - len(ending)]
        for one in _stretches(body):
            bounded = _bounded(one)
            for pattern in {bounded.sub(PATIENT, body), bounded.sub(PATIENT, body, count=1)}:
                found[DATE.sub("*", pattern) + ending].setdefault(one, path)
    return found


def _stretches(body: str) -> set[str]:
    """Stretches of a path's components that may be an id."""
    found: set[str] = set()
    for component in body.split("/"):
        runs = RUN.findall(component)[:MOST_RUNS]
        for first in range(len(runs)):
            for last in range(first, len(runs)):
                text = "".join(runs[first : last + 1])
                if runs[last].isalnum() and re.fullmatch(ID, text) and ".." not in text:
                    found.add(text)
    return found


def _bounded(text: str) -> re.Pattern[str]:
    """Where a stretch stands in a path without cutting a run of letters or digits."""

    def run(character: str) -> str:
        return "[0-9]" if character.isdigit() else "[A-Za-z]"

    return re.compile(f"(?<!{run(text[0])}){re.escape(text)}(?!{run(text[-1])})")


def _label_patterns(scans: str, ids: Mapping[str, str], of_labels: Candidates) -> list[str]:
    """The patterns of label maps that the patients of a pattern of scans fill, none of a file that another has.

    Of two that explain as many, the one with the id where scans have it: three annotators of three patients are told apart by that.
    """
    least = 1 if len(ids) < 3 else max(2, round(0.1 * len(ids)))
    shared = {pattern: ids.keys() & others.keys() for pattern, others in of_labels.items() if len(others) >= least}
    order = sorted(shared, key=lambda p: (-len(shared[p]), -_likeness(p, scans), -p.count(PATIENT), p.count("*"), p))
    chosen, taken = list[str](), set[str]()
    for pattern in order:
        files = {of_labels[pattern][one] for one in shared[pattern]}
        if len(shared[pattern]) >= least and not files & taken:
            chosen.append(pattern)
            taken |= files
    return chosen


def _likeness(pattern: str, other: str) -> int:
    """How far two patterns have the id at the same places: folders that they share, less 1 if only one has it in the file's name."""
    (*folders, name), (*others, another) = pattern.split("/"), other.split("/")
    shared = sum(one == two and PATIENT in one for one, two in zip(folders, others, strict=False))
    return shared - ((PATIENT in name) != (PATIENT in another))


def _score(ids: Mapping[str, str], chosen: Sequence[str], of_labels: Candidates) -> tuple[float, ...]:
    """Files that are explained; then whether ids end in what varies, then the length of the ids."""
    labels = sum(len(ids.keys() & of_labels[pattern].keys()) for pattern in chosen)
    scans = len(ids.keys() & set().union(*(of_labels[pattern].keys() for pattern in chosen)))
    ends = {RUN.findall(one)[-1] for one in ids}
    varies = len(ends) > 1 or (len(ids) == 1 and next(iter(ends)).isdigit())
    return labels + scans, varies, sum(map(len, ids)) / len(ids), -len(chosen)


# Folders that only some of the patients are in ------------------------------------------------------------------------


def _generalised(pattern: str, candidates: Candidates, allowed: Collection[str] | None) -> list[str]:
    """A pattern, and those that differ from it in folders without an id and have other patients.

    Args:
        pattern: as it is in most patients' files.
        candidates: of its kind.
        allowed: what may vary, of annotators: only what varies in scans; else two annotators who share no patient would be one.
    """
    ids, alike = set(candidates[pattern]), [pattern]
    shapes = {_shape(one) for one in ids}
    parts = pattern.split("/")
    for other in sorted(candidates, key=lambda one: (-len(candidates[one]), one)):
        theirs = candidates[other].keys()
        pairs = list(zip(parts, other.split("/"), strict=False))
        if other == pattern or len(other.split("/")) != len(parts) or pairs[-1][0] != pairs[-1][1]:
            continue
        differing = [pair for pair in pairs[:-1] if pair[0] != pair[1]]
        if any(PATIENT in one for pair in differing for one in pair) or len(theirs & ids) > 0.2 * len(theirs):
            continue
        if not {_shape(one) for one in theirs} <= shapes:
            continue
        if allowed is not None and not set(_varying(pattern, [pattern, other])) <= set(allowed):
            continue
        alike.append(other)
        ids |= theirs
    return alike


def _shape(one: str) -> str:
    return re.sub("[0-9]+", "9", one)


def _merged(pattern: str, alike: Sequence[str]) -> str:
    """One pattern for several: folders that differ have `*` between what they share at both ends."""
    parts = [list(dict.fromkeys(column)) for column in zip(*(one.split("/") for one in alike), strict=True)]
    return "/".join(column[0] if len(column) == 1 else "*".join(_ends(column)) for column in parts)


def _ends(names: Sequence[str]) -> tuple[str, str]:
    """What names share at the beginning and at the end, in whole words."""
    words = [WORD.findall(name) for name in names]
    least = min(map(len, words))
    first = next((i for i in range(least) if len({tuple(one[: i + 1]) for one in words}) > 1), least)
    last = next((i for i in range(least - first) if len({tuple(one[len(one) - i - 1 :]) for one in words}) > 1), 0)
    return "".join(words[0][:first]), "".join(words[0][len(words[0]) - last :])


def _varying(pattern: str, alike: Sequence[str]) -> list[str]:
    """What the folders of several patterns differ in."""
    return [word for one in alike for word in _words_of(one, _merged(pattern, alike))]


def _words_of(path: str, merged: str) -> list[str]:
    """What stands in a path for each folder's `*` of a pattern."""
    found = list[str]()
    for name, wild in zip(path.split("/")[:-1], merged.split("/")[:-1], strict=True):
        if "*" in wild and PATIENT not in wild:
            before, _, after = wild.partition("*")
            found.append(name[len(before) : len(name) - len(after)])
    return found


def _overlaps(pattern: str, ids: Mapping[str, str], used: Collection[str], found: Mapping[str, Candidates]) -> bool:
    """Whether a pattern of scans has files that the patterns in use have."""
    taken = {path for one in used for path in found["image"][one].values()}
    return bool(taken & set(ids.values()))


# Roles ---------------------------------------------------------------------------------------------------------------


def _assigned(
    kinds: Mapping[str, Kind | None], channels: list[str], annotators: list[str], main: str, alike: Sequence[str]
) -> Layout:
    files: dict[str, dict[str, list[str]]] = {pattern: {} for pattern in (*channels, *annotators)}
    order = sorted(files, key=lambda p: (p.count("*"), -len(p.replace(PATIENT, "")), p))
    unknown = list[str]()
    for path, kind in sorted(kinds.items()):
        among = channels if kind == "image" else annotators
        fits = [(pattern, one) for pattern in order if (one := matches(pattern, path)) is not None]
        fits = [
            fit for fit in fits if fit[0] in among
        ] or fits  # a label map that holds fractions is still the annotator's
        if fits:
            files[fits[0][0]].setdefault(fits[0][1], []).append(path)
        else:
            unknown.append(path)
    whole = {one for pattern in channels for one in files[pattern]} & {one for p in annotators for one in files[p]}
    shapes = {_shape(one) for one in whole}
    for of in files.values():  # a template or an atlas beside the patients is none
        for one in [one for one in of if one not in whole and _shape(one) not in shapes]:
            unknown += of.pop(one)
    channels, annotators = ([p for p in of if files[p]] for of in (channels, annotators))
    names = {**_names(channels, "channel"), **_names(annotators, "anno")}

    def roles(patterns: Sequence[str]) -> tuple[Role, ...]:
        return tuple(Role(names[p], p, {one: tuple(paths) for one, paths in files[p].items()}) for p in patterns)

    patients = sorted({one for of in files.values() for one in of}, key=_natural)
    wild = _merged(main, alike)
    places = {one: _words_of(paths[0], wild) for one, paths in files.get(wild, {}).items()}
    sets: dict[str, SetOf] = {}
    groups: dict[str, str] = {}
    for one, words in places.items():
        for word in words:
            if (of := SETS.get(word.strip("_-. ").lower())) is not None:
                sets[one] = of
            elif word.strip():
                groups[one] = word
    if not 2 <= len(set(groups.values())) <= most_groups(len(groups)):  # as dates of folders
        groups = {}
    return Layout(roles(channels), roles(annotators), tuple(patients), sets, groups, tuple(sorted(unknown)))


def _names(patterns: Sequence[str], otherwise: str) -> dict[str, str]:
    """Pattern → a name of its own: the words that not all patterns have and that do not say what a file is."""
    words = {
        pattern: [word for part in _bare(pattern).split("/") for word in _plain_words(part)] for pattern in patterns
    }
    common = set.intersection(*map(set, words.values())) if len(patterns) > 1 else set[str]()
    found, taken = dict[str, str](), set[str]()
    for number, pattern in enumerate(patterns, 1):
        left = [word for word in words[pattern] if word not in common]
        told = [word for word in left if not {part.lower() for part in WORD.findall(word)} <= NO_NAME]
        name = "-".join(told)[:50].strip("-")
        digits = [run for word in left for run in RUN.findall(word) if run.isdigit()]
        if not any(map(str.isalpha, name)):  # 2, or 000-000
            name = f"{otherwise}{int(digits[0]) if len(digits) == 1 else number}"
        if name.lower() in (*RESERVED, "ensemble", *CALIBRATIONS):
            name = f"{name}-1"
        while name.lower() in taken:
            name += f"-{number}"
        taken.add(name.lower())
        found[pattern] = name
    return found


def _plain_words(part: str) -> list[str]:
    """The words of a folder's or a file's name; none of a folder whose name varies, which says nothing of a role."""
    if "*" in part and PATIENT not in part:
        return []
    return re.findall(r"[A-Za-z0-9]+", part.replace(PATIENT, "/"))


def _bare(pattern: str) -> str:
    return pattern[: len(pattern) - len(ending_of(pattern))]


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """A key that puts 2 before 10."""
    return [(run.isdigit(), int(run) if run.isdigit() else 0, run) for run in RUN.findall(text)]
