"""A study file for what was found: every field with a comment that says what was found and what may be changed."""

import json
import math
import random
import re
import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from curvas_assets.cohort.discovery.layout import SetOf, ids_of
from curvas_assets.cohort.discovery.survey import MOST_ORGANS, Finding, Survey, counted, described
from curvas_assets.cohort.discovery.tables import plain_name
from curvas_assets.errors import StudyError
from curvas_assets.geometry import Grid, reordered_grid, voxel_order

SCHEMA_FILE = "study.schema.json"
"""The JSON schema that is written beside a proposed study, so that editors complete and check it."""
SHARES: dict[SetOf, float] = {"train": 0.6, "test": 0.3, "validation": 0.1}
SMALL_SETS: dict[SetOf, int] = {"train": 8, "test": 4, "validation": 3}
"""Patients of a small run, at most."""
SMALL_VOXELS = (40, 64, 64)
"""Voxels along (Z, Y, X) that a small run resamples a typical scan to, at most."""
MOST_TOLD = 40
"""Findings that the head of the file lists."""
SEEDS = (112233, 445566, 778899)
WIDTH = 116
WORDS = ("yes", "no", "on", "off", "true", "false", "null", "y", "n")
"""What YAML does not read as text."""


@dataclass(frozen=True)
class Options:
    """What a user says about the proposal.

    Args:
        name: of the study; made of the folder's name if left out.
        organs: organ → values; all values that were found if left out.
        seed: of the draw of sets.
        small: whether the study is to take minutes on a CPU.
    """

    name: str = ""
    organs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0
    small: bool = False


def propose(found: Survey, options: Options) -> str:
    """The text of a study file.

    Raises:
        StudyError: an organ that was asked for has a value that no label map holds.
    """
    sets, sets_from = propose_sets(found, options)
    organs, ignored = _organs(found, options)
    lines = [*_head(found), *_names(found, options), *_files(found), *_labels(found, organs, ignored)]
    lines += [*_sets(found, sets, sets_from, options), *_groups(found, sets), *_exclusions(found)]
    lines += [*_training(found, sets, options), *_judging(found, organs, options)]
    return "\n".join(lines) + "\n"


# Sets ----------------------------------------------------------------------------------------------------------------


def propose_sets(found: Survey, options: Options) -> tuple[dict[SetOf, list[str]], str]:
    """Set → patients, and where that is from. Patients with defects are not in it."""
    rng, usable = random.Random(options.seed), found.usable
    for given, source in ((found.told.sets, found.told.sets_from), (found.layout.sets, "the names of the folders")):
        sets: dict[SetOf, list[str]] = {name: [one for one in usable if given.get(one) == name] for name in SHARES}
        if sets["train"] and sets["test"]:
            if options.small:
                sets = {name: sorted(rng.sample(of, min(len(of), SMALL_SETS[name]))) for name, of in sets.items()}
            return sets, source
    groups = _groups_of(found)
    mixed: dict[str, list[str]] = defaultdict(list)
    for one in rng.sample(usable, len(usable)):
        mixed[groups.get(one, "")].append(one)
    ranked = [((rank + 0.5) / len(of), group, one) for group, of in mixed.items() for rank, one in enumerate(of)]
    order = [(group, one) for _, group, one in sorted(ranked)]
    order = order[: sum(SMALL_SETS.values())] if options.small else order
    whole: Counter[SetOf] = Counter()
    within: dict[str, Counter[SetOf]] = defaultdict(Counter)
    drawn: dict[SetOf, list[str]] = {name: [] for name in SHARES}
    for count, (group, one) in enumerate(order, 1):
        inside = within[group]

        def lack(name: SetOf, count: int = count, inside: Counter[SetOf] = inside) -> float:
            return round(SHARES[name] * (count + inside.total() + 1) - whole[name] - inside[name], 9)

        chosen = max(SHARES, key=lack)
        drawn[chosen].append(one)
        whole[chosen] += 1
        inside[chosen] += 1
    stratified = ", in each group" if len(mixed) > 1 else ""
    return {name: sorted(of) for name, of in drawn.items()}, f"a draw with the seed {options.seed}{stratified}"


def _groups_of(found: Survey) -> Mapping[str, str]:
    return found.told.groups or found.layout.groups


# The parts of the file -----------------------------------------------------------------------------------------------


def _head(found: Survey) -> list[str]:
    stops = sum(one.severity == "stops" for one in found.findings)
    spacing, shape, order = described(found.grids.values())
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        *_comment(
            f"Proposed by curvas-init from {found.name}. Everything may be changed; what is left out has its default."
        ),
        *_comment(
            f"{counted(len(found.layout.patients), 'patient')}, {len(found.usable)} of them usable; "
            f"{counted(len(found.layout.annotators), 'annotator')}; {counted(len(found.values), 'label')}. "
            f"Scans have {shape} voxels of {spacing} mm (Z × Y × X), voxel order {order}."
        ),
        "#",
    ]
    if not found.findings:
        return [*lines, "# Nothing looks wrong.", ""]
    verb = "stops" if stops == 1 else "stop"
    lines += _comment(
        f"What looks wrong, worst first ({stops} of {len(found.findings)} {verb} a patient or the study):"
    )
    for one in found.findings[:MOST_TOLD]:
        lines += _comment(f"- {one}", hanging="  ")
    if len(found.findings) > MOST_TOLD:
        lines += _comment(f"- and {len(found.findings) - MOST_TOLD} more, which curvas-init prints.")
    return [*lines, ""]


def _names(found: Survey, options: Options) -> list[str]:
    name = options.name or study_name(found.name)
    small = " (a small run)" if options.small else ""
    return [
        "# Lower-case letters, digits and dashes.",
        f"name: {_plain(name)}",
        "# The report's title.",
        f"title: {json.dumps(f'Uncertainty of segmentation: {name}{small}', ensure_ascii=False)}",
        "",
    ]


def study_name(folder: str) -> str:
    """A study's name from that of a folder or bucket."""
    parts = [part for part in re.split(r"[/\\]", folder) if part and part not in (".", "..", "data")]
    return plain_name(parts[-1] if parts else "", of="study") or "my-study"


def _files(found: Survey) -> list[str]:
    layout = found.layout
    lines = [
        *_comment(f"How patients are called: {_range(layout.patients)}. {{}} takes any id."),
        f"patients: {{{', '.join(f'{name}: {_value(value)}' for name, value in ids_of(layout.patients).items())}}}",
        "",
    ]
    low = min((low for low, _, _ in found.intensities.values()), default=math.nan)
    high = max((high for _, _, high in found.intensities.values()), default=math.nan)
    seen = (
        f"intensities {low:g} … {high:g} in {counted(len(found.intensities), 'scan')}, all voxels read"
        if found.intensities
        else "none could be read"
    )
    if found.ct:
        lines += _comment(
            f"The CT, in HU ({seen}). With {{patient}}, a path below the data folder; else one in the patient's folder."
        )
        lines += [f"image: {_plain(layout.channels[0].file)}", ""]
    else:
        lines += _comment(
            f"The channels of a scan ({seen}). normalisation: zscore, ct, rescale_to_0_1 or none. Of a CT in HU alone, write "
            "image: and its file instead."
        )
        named = list(found.told.channels) if len(found.told.channels) == len(layout.channels) else []
        lines.append("channels:")
        for number, role in enumerate(layout.channels):
            name = named[number] if named else role.name if len(layout.channels) > 1 else "MR"
            name = re.sub("[^A-Za-z0-9]+", "-", name).strip("-") or role.name
            scheme = "ct" if name.upper() == "CT" else "zscore"
            lines.append(f"  - {{name: {_plain(name)}, file: {_plain(role.file)}, normalisation: {scheme}}}")
        lines.append("")
    lines += _comment(
        "The experts, each with the file of their label maps. Names appear in scores and figures; change them as you like. "
        "A patient whom one of them has not drawn is scored by the others."
    )
    lines.append("annotators:")
    lines += [
        f"  - {{name: {_plain(role.name)}, file: {_plain(role.file)}}} # {counted(len(role.files), 'patient')}"
        for role in layout.annotators
    ]
    return [*lines, ""]


def _organs(found: Survey, options: Options) -> tuple[dict[str, list[int]], list[int] | str]:
    """Organ → values, and what is ignored."""
    values = found.values
    if options.organs:
        named = {value for of in options.organs.values() for value in of}
        if absent := sorted(named - set(values)):
            told = f"no label map holds {absent}; found are {values}"
            raise StudyError("choosing organs", ", ".join(options.organs), told, "Name values that occur.")
        return {name: list(of) for name, of in options.organs.items()}, [
            value for value in values if value not in named
        ]
    kept = [value for value in values if value not in found.strays]
    ignored: list[int] | str = [value for value in values if value in found.strays]
    if len(kept) > MOST_ORGANS:
        frequent = sorted(kept, key=lambda value: -sum(len(of.get(value, ())) for of in found.volumes.values()))
        kept, ignored = sorted(frequent[:MOST_ORGANS]), "rest"
    organs: dict[str, list[int]] = {}
    for value in kept:
        organs[plain_name(found.told.labels.get(value, f"organ-{value}"), organs) or f"organ-{value}"] = [value]
    return organs, ignored


def _labels(found: Survey, organs: Mapping[str, Sequence[int]], ignored: list[int] | str) -> list[str]:
    named = (
        f"names from {found.told.labels_from}"
        if found.told.labels_from
        else "rename them: organ-1 is label 1 of the files"
    )
    lines = _comment(
        f"Organ → label value in the files ({named}). Several values are merged: kidney: [2, 3]. Volumes are median (smallest … "
        f"largest) over the patients whom an annotator drew; {counted(len(found.maps), 'label map')} read."
    )
    lines.append("organs:")
    for organ, values in organs.items():
        shown = str(values[0]) if len(values) == 1 else f"[{', '.join(map(str, values))}]"
        lines.append(f"  {_plain(organ)}: {shown} # {_volumes_in_words(found, values)}")
    lines.append("")
    missing = [f"{value} {name}" for value, name in found.told.labels.items() if value not in found.values]
    if missing:
        lines += [
            *_comment(f"Named in {found.told.labels_from}, and in no label map that was read: {', '.join(missing)}."),
            "",
        ]
    lines += _comment("Values of the files that are read as background; or rest: all that organs does not name.")
    if ignored == "rest":
        lines += ["ignored_labels: rest", ""]
    elif ignored:
        lines += [f"ignored_labels: [{', '.join(map(str, ignored))}]", ""]
    else:
        lines += ["# ignored_labels: []", ""]
    return lines


def _volumes_in_words(found: Survey, values: Sequence[int]) -> str:
    told = []
    for annotator, of in _organ_volumes(found, values).items():
        if of:
            told.append(f"{annotator} {_ml(statistics.median(of))} ({_ml(min(of))} … {_ml(max(of))}) ml in {len(of)}")
        else:
            told.append(f"{annotator} never")
    return "; ".join(told)


def _organ_volumes(found: Survey, values: Sequence[int]) -> dict[str, list[float]]:
    """Annotator → volumes of an organ in the patients who have it, ml."""
    result: dict[str, list[float]] = {}
    for annotator, of in found.volumes.items():
        total: Counter[str] = Counter()
        for value in values:
            total.update(of.get(value, {}))  # type: ignore[arg-type] - a Counter of floats
        result[annotator] = list(total.values())
    return result


def _sets(found: Survey, sets: Mapping[SetOf, Sequence[str]], origin: str, options: Options) -> list[str]:
    counts = ", ".join(f"{len(of)} {name}" for name, of in sets.items() if of)
    lines = _comment(
        f"Sets, from {origin}: {counts or 'nobody'}. Models learn from train; what is calibrated is fitted on validation; test is "
        "scored. Move patients as you like."
    )
    left = [one for one in found.usable if not any(one in of for of in sets.values())]
    if left:
        why = (
            "of the small run; without --small they are in a set"
            if options.small
            else "named by no set where the others were found"
        )
        verb = "is" if len(left) == 1 else "are"
        lines += _comment(f"{counted(len(left), 'usable patient')} {verb} in no set ({why}): {', '.join(left)}")
    if len(found.usable) < 2:
        lines += _comment(
            "There are too few usable patients: a study takes two or more, one to train on and one to score."
        )
    lines.append("sets:")
    for name in ("train", "validation", "test"):
        of = sets.get(name, [])
        excluded = _excluded(found, name)
        if of or excluded:
            lines += _listed(f"  {name}: ", [*of, *excluded])
    lines += _comment("rest: test # would score every other patient in the bucket, too")
    return [*lines, ""]


def _excluded(found: Survey, name: SetOf) -> list[str]:
    """Patients with defects, in the set where they would be; the file names excluded patients in a set."""
    given = found.told.sets or found.layout.sets
    return [one for one in found.defects if given.get(one, "train") == name]


def _groups(found: Survey, sets: Mapping[SetOf, Sequence[str]]) -> list[str]:
    given = _groups_of(found)
    inside = [one for of in sets.values() for one in of] + list(found.defects)
    groups: dict[str, list[str]] = defaultdict(list)
    for one in inside:
        if one in given:
            groups[given[one]].append(one)
    if not groups:
        return [
            *_comment(
                "Groups, such as those of one scanner or hospital. None were found (a table with a column group, centre or scanner)."
            ),
            "# groups: {A: [], B: []}",
            "",
        ]
    lines = [*_comment(f"Groups, from {found.told.groups_from or 'the names of the folders'}."), "groups:"]
    for group, of in sorted(groups.items()):
        lines += _listed(f"  {_plain(group)}: ", sorted(of))
    trained = {given.get(one) for one in sets.get("train", ())}
    lines += _comment("The group that models are trained on; the others are out of distribution.")
    only = next(iter(trained)) if len(trained) == 1 else None
    if only is not None and len(groups) > 1:
        lines.append(f"in_distribution_group: {_plain(only)}")
    else:
        lines.append(f"# in_distribution_group: {_plain(sorted(groups)[0])} # training patients are of several groups")
    return [*lines, ""]


def _exclusions(found: Survey) -> list[str]:
    if not found.defects:
        return [*_comment("Patients to leave out, each with a reason."), "# exclusions: {}", ""]
    lines = _comment("Patients who cannot be used as their files are. Mend the files, and delete the line.")
    lines.append("exclusions:")
    lines += [f"  {_plain(one)}: {json.dumps(why[:900], ensure_ascii=False)}" for one, why in found.defects.items()]
    return [*lines, ""]


def _training(found: Survey, sets: Mapping[SetOf, Sequence[str]], options: Options) -> list[str]:
    seeds = SEEDS[:2] if options.small else SEEDS
    lines = [
        *_training_labels(found, sets.get("train", ())),
        *_comment(
            "Seeds of the initial weights: each annotator has one model per seed. One more seed trains only what is new."
        ),
        f"seeds: [{', '.join(map(str, seeds))}]",
        *_comment("nnU-Net's folds: all, or [0, 1, 2, 3, 4] for its cross-validation."),
        "folds: [all]",
        "",
    ]
    if not options.small:
        return [
            *lines,
            *_comment(
                "nnU-Net chooses spacing, patch and network. ResEnc-M: {planner: nnUNetPlannerResEncM, gpu_memory_gb: 24}."
            ),
            "plans: {planner: ExperimentPlanner, configuration: 3d_fullres}",
            *_comment(
                "At most so many epochs; training stops after patience epochs without a better pseudo-Dice. This takes a GPU."
            ),
            "training: {epochs: 300, patience: 20}",
            "",
        ]
    spacing, patch = small_plans(list(found.grids.values()))
    return [
        *lines,
        *_comment(
            "A small network on coarse voxels, for minutes on a CPU. Delete plans and training for nnU-Net's own."
        ),
        "plans:",
        f"  spacing_mm: [{', '.join(f'{one:g}' for one in spacing)}]",
        f"  patch_size: [{', '.join(map(str, patch))}]",
        "  batch_size: 2",
        "  features_per_stage: [8, 16, 32, 64]",
        "  convolutions_per_stage: 1",
        "  intensity_samples: 1.0e+6",
        "training:",
        "  epochs: 12",
        "  iterations_per_epoch: 20",
        "  validation_iterations_per_epoch: 3",
        "  patience: 5",
        "  optimizer: adamw",
        "  learning_rate: 0.01",
        "  mirroring: false",
        "  threads: 1",
        "  loader_workers: 0",
        "prediction: {mirroring: false}",
        "",
    ]


def _training_labels(found: Survey, patients: Sequence[str]) -> list[str]:
    """Whose label maps models learn from, where some annotators drew no training patient; nothing where all or none did."""
    names = [role.name for role in found.layout.annotators]
    drawn = {one for patient in patients for one in found.drawn_by(patient)}
    absent = [one for one in names if one not in drawn]
    if not drawn or not absent:
        return []
    return [
        *_comment(
            f"Annotators whom models learn from. {_joined(absent)} drew no training patient, so that no model can; "
            "patients whom they drew are scored by them, too."
        ),
        f"training_labels: [{', '.join(_plain(one) for one in names if one in drawn)}]",
        "",
    ]


def _joined(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def small_plans(grids: Sequence[Grid]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Spacing (mm) and patch (voxels), (Z, Y, X), with which a network on a CPU learns from scans like these."""
    if not grids:
        return (8.0, 6.0, 6.0), (24, 40, 40)
    turned = [reordered_grid(grid, voxel_order(grid, Grid.with_voxels((1, 1, 1), (1, 1, 1)))) for grid in grids]
    spacing, patch = list[float](), list[int]()
    for axis, most in enumerate(SMALL_VOXELS):
        own = statistics.median(grid.spacing_mm[axis] for grid in turned)
        extent = statistics.median(grid.spacing_mm[axis] * grid.shape[axis] for grid in turned)
        spacing.append(min(100.0, math.ceil(10 * max(own, extent / most)) / 10))
        patch.append(max(16, min((24, 40, 40)[axis], 8 * round(extent / spacing[-1] / 8))))
    return tuple(spacing), tuple(patch)


def _judging(found: Survey, organs: Mapping[str, Sequence[int]], options: Options) -> list[str]:
    limits = list[str]()
    for organ, values in organs.items():
        of = [ml for volumes in _organ_volumes(found, values).values() for ml in volumes]
        if of:
            limits.append(f"{_plain(organ)}: [{_ml(min(of) / 2)}, {_ml(max(of) * 2)}]")
    # A reader of the file sees the metrics in the report; only what depends on the scans is set here.
    region = "body" if found.ct else "image"
    why = (
        "the bounding box of what is above 0 HU"
        if found.ct
        else "the whole scan, because body is defined for a CT in HU"
    )
    lines = [*_comment(f"Where predictors are scored: {why}."), f"evaluation: {{region: {region}}}"]
    lines += _comment(
        "What the checks warn of: Dice of a model in training, and volumes of predictions, ml (half and twice what was found)."
    )
    floor = 0.1 if options.small else 0.5
    if limits:
        lines += ["checks:", f"  dice_floor: {floor}", "  volume_ml:", *(f"    {limit}" for limit in limits)]
    else:
        lines.append(f"checks: {{dice_floor: {floor}}}")
    lines += [*_comment("The report's language: en or fr."), "report: {language: en}"]
    return lines


# Writing YAML --------------------------------------------------------------------------------------------------------


def _comment(text: str, hanging: str = "") -> list[str]:
    wrapped = textwrap.wrap(" ".join(text.split()), WIDTH - 2, subsequent_indent=hanging, break_long_words=False)
    return [f"# {line}" for line in wrapped]


def _plain(text: str) -> str:
    """Text as YAML reads it: quoted where it would be read as something else."""
    bare = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_.-]+)*", text) and text.lower() not in WORDS
    return text if bare else json.dumps(text, ensure_ascii=False)


def _value(value: str | int) -> str:
    return _plain(value) if isinstance(value, str) else str(value)


def _listed(before: str, names: Sequence[str]) -> list[str]:
    """A list in brackets, over several lines where it is long."""
    words = ", ".join(map(_plain, names))
    if len(before) + len(words) + 2 <= WIDTH:
        return [f"{before}[{words}]"]
    inner = " " * (len(before) - len(before.lstrip()) + 2)
    return [
        f"{before}[",
        *textwrap.wrap(words, WIDTH, initial_indent=inner, subsequent_indent=inner, break_on_hyphens=False),
        f"{inner[2:]}]",
    ]


def _range(names: Iterable[str]) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


def _ml(volume: float) -> str:
    """Three digits, without an exponent."""
    digits = max(0, 2 - math.floor(math.log10(volume))) if volume > 0 else 0
    rounded = f"{round(volume, digits):.{min(digits, 4)}f}"
    return rounded.rstrip("0").rstrip(".") if "." in rounded else rounded


def told_in_order(findings: Sequence[Finding]) -> list[str]:
    """What looks wrong, for a terminal: a line each, worst first."""
    marks = {"stops": "STOPS", "check": "check", "note": "note "}
    return [f"{marks[one.severity]}  {one}" for one in findings]
