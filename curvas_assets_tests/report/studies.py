"""Studies made of random numbers for tests of the report: scores, bins, curves, slices of any size and shape."""

from collections.abc import Callable, Collection
from functools import partial
from itertools import cycle
from typing import NamedTuple

import numpy as np
import pandas as pd

from curvas_assets.report import OrganView, Provenance, ReportInputs, SliceView
from curvas_assets.report.blocks import Section
from curvas_assets.report.chart import Chart
from curvas_assets.report.facts import gather
from curvas_assets.report.markup import charts_of, markdown
from curvas_assets.report.sections import SECTIONS
from curvas_assets.stages.needs import predictor_cost
from curvas_assets.statistics import (
    annotator_agreement,
    compare_all_families,
    dice_against_entropy,
    failure_over_patients,
    non_inferiority,
    out_of_distribution,
    rank_among_teams,
    variance_components,
    volume_intervals,
)
from curvas_assets.study import Study

ORGANS = ("pancreas", "kidney", "liver")
GAIN = {
    **{"general": 1.0, "annotator": 0.6, "individual": 0.0, "fused ensemble": 0.8, "fused": 0.3, "flips": 0.2},
    **{"snapshots": 0.25, "folds": 0.5, "calibrated": 1.4},
}


def make_study(
    *,
    annotators: int = 3,
    seeds: int = 3,
    organs: tuple[str, ...] = ORGANS,
    patients: int = 3,
    language: str = "en",
    **more: object,
) -> Study:
    """A study of any number of annotators, seeds, organs and test patients; `more` are fields of the study file."""
    return Study.model_validate(
        {
            "name": "random",
            "title": "Random study",
            "annotators": [{"name": f"anno{a}", "file": f"annotation_{a}.nii.gz"} for a in range(1, annotators + 1)],
            "organs": {organ: label for label, organ in enumerate(organs, start=1)},
            "patients": {"prefix": "UKCHLL", "digits": 3},
            "sets": {"train": ["900"], "test": [f"{p:03d}" for p in range(1, patients + 1)]},
            "seeds": [112233, 445566, 778899, 1, 2][:seeds],
            "report": {"language": language},
            "statistics": {"draws": 999},
            **more,
        }
    )


def every_family(**shape: int | str) -> Study:
    """A study with predictors of every family: 3 annotators, 2 fusions and 2 folds of one seed."""
    models = ["anno1_init112233_fold0", "anno2_init112233_fold0"]
    test = [f"{patient:03d}" for patient in range(1, int(shape.get("patients", 3)) + 1)]
    return make_study(
        **{"seeds": 1, **shape},  # type: ignore[arg-type]
        sets={"train": [str(patient) for patient in range(901, 911)], "validation": ["920", "921"], "test": test},
        groups={"A": test[::2], **({"B": test[1::2]} if len(test) > 1 else {})},
        in_distribution_group="A",
        folds=[0, 1],
        training_labels=["anno1", "anno2", "anno3", "majority", "soft"],
        training={"snapshots": 2},
        cheap_ensembles={"flips": models, "snapshots": models[:1], "folds": True},
        calibrated={"temperature": ["ensemble_all"], "isotonic": ["ensemble_all"]},
    )


def make_predictor_cost(study: Study, *, device: str = "cuda 0") -> pd.DataFrame:
    """What each predictor costs, by the platform's own sums: a training takes 24 hours, a prediction a tenth of one."""
    rows: list[tuple[str, str, float, str]] = [("trained_model", str(m), 24 * 3600.0, device) for m in study.models]
    for patient in study.predicted_patients():
        rows += [("softmax", f"{model}|{patient}", 360.0, device) for model in study.models_of(patient)]
        rows += [("softmax", f"{model}|{patient}", 45.0, device) for model in study.variants_of(patient)]
        rows += [("ensemble_softmax", f"{one}|{patient}", 60.0, "cpu") for one in study.ensembles_of(patient)]
    ledger = pd.DataFrame(rows, columns=["asset", "partition", "seconds", "device"])
    costs = predictor_cost(study, ledger.assign(epochs=None, resumed=None))
    return costs.assign(unrecorded=0)  # as if the fits were recorded


def make_scores(study: Study, *, seed: int = 0) -> pd.DataFrame:
    """Long scores as the platform keeps them: per organ, per annotator with their mean, and per patient."""
    rng = np.random.default_rng(seed)
    organs, annotators = study.class_names[1:], study.annotator_names
    parts = []

    def add(metric: str, organ: str, annotator: str, unit: str, values: np.ndarray) -> None:
        parts.append(cells.assign(metric=metric, organ=organ, annotator=annotator, unit=unit, note="", value=values))

    predictors = study.predictors
    patients = study.scored_patients()
    cells = pd.DataFrame(
        [
            (patient, predictor, study.family(predictor), "AB"[index % 2])
            for index, patient in enumerate(patients)
            for predictor in predictors
        ],
        columns=["patient", "predictor", "family", "group"],
    )
    hard = np.repeat(rng.gamma(2, 0.5, len(patients)), len(predictors))
    gain = cells["family"].map(GAIN).to_numpy(float)

    def noise(scale: float) -> np.ndarray:
        return rng.normal(0, scale, len(cells))

    for offset, organ in zip(cycle((0.12, 0.05, 0.02, 0.03)), organs, strict=False):
        dice = 1 - offset * (1 + 0.4 * hard) + 0.003 * gain + noise(0.01)
        add("dice", organ, "", "", np.clip(dice, 0, 1))
        add("dice_published", organ, "", "", np.clip(dice - 0.01, 0, 1))
        add("confidence", organ, "", "", np.clip(0.97 - 0.01 * hard + noise(0.004), 0, 1))
        add("crps", organ, "", "mm³", np.abs(15000 * hard - 2000 * gain + noise(2000)))
        add("crps_published", organ, "", "mm³", np.abs(14000 * hard - 2000 * gain + noise(2000)))
        add("agreement_dice", organ, "", "", np.clip(0.95 - offset * hard / 3, 0, 1))
    for metric, unit, centre, scale in (
        ("ece", "", 0.0035, 0.0004),
        ("aurc", "", 0.0008, 0.0001),
        ("eaurc", "", 0.0006, 0.0001),
        ("hd95", "mm", 8.0, 1.0),
    ):
        each = [np.abs(centre * (0.7 + 0.4 * hard) - 0.6 * scale * gain + noise(scale)) for _ in annotators]
        for annotator, values in zip(annotators, each, strict=True):
            if metric == "hd95":
                for organ in organs:
                    add(metric, organ, annotator, unit, values * rng.uniform(0.8, 1.2))
            else:
                add(metric, "", annotator, unit, values)
        if metric != "hd95":
            add(metric, "", "mean", unit, np.mean(each, axis=0))
    add("predictive_entropy", "", "", "nats", 0.01 + 0.004 * hard + 0.002 * gain + np.abs(noise(0.0005)))
    for size, organ in zip(cycle((80e3, 300e3, 1500e3, 50e3)), organs, strict=False):
        truth = size * np.repeat(rng.uniform(0.7, 1.3, len(patients)), len(predictors))
        add("volume", organ, "", "mm³", truth * (1 + noise(0.05)))
        for annotator in annotators:
            drawn = np.repeat(rng.normal(1, 0.04, len(patients)), len(predictors))
            add("volume_annotator", organ, annotator, "mm³", truth * drawn)
    add("ncc", "", "", "", np.clip(0.6 - 0.05 * hard + 0.02 * gain + noise(0.01), -1, 1))
    scores = pd.concat(parts, ignore_index=True)
    if not study.cross_validated:
        return scores
    held = {patient: set(study.predictors_of(patient)) for patient in patients}
    kept = [
        predictor in held[patient] for patient, predictor in zip(scores["patient"], scores["predictor"], strict=True)
    ]
    return scores[kept].reset_index(drop=True)


def make_intervals(study: Study, *, fitted: int = 5, level: float = 0.9, **more: object) -> pd.DataFrame:
    """Intervals of the general ensemble, from random validation patients."""
    alike = {name: getattr(study, name) for name in ("annotators", "organs")}
    others = make_study(patients=fitted).model_copy(update=alike)
    known = make_scores(others, seed=1).assign(patient=lambda table: "V" + table["patient"].astype(str))
    return volume_intervals(known, make_scores(study), ["ensemble_all"], level, **more)  # type: ignore[arg-type]


def make_bins(study: Study, *, bins: int = 50) -> pd.DataFrame:
    """Reliability bins per patient and predictor."""
    edges = np.linspace(0, 1, bins + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    parts = []
    for patient in study.scored_patients():
        for predictor in study.predictors_of(patient):
            gap = 0.12 - 0.08 * GAIN[study.family(predictor)]
            count = np.where(middle > 0.25, 10 ** (2 + 4 * middle), 0).astype(int)
            parts.append(
                pd.DataFrame(
                    {
                        "patient": patient,
                        "predictor": predictor,
                        "family": study.family(predictor),
                        "lower": edges[:-1],
                        "upper": edges[1:],
                        "count": count,
                        "confidence": np.where(count > 0, middle, np.nan),
                        "accuracy": np.where(
                            count > 0, np.clip(middle - gap * (1 - middle) * 4 * middle, 0, 1), np.nan
                        ),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def make_curves(study: Study, *, points: int = 60, seed: int = 0) -> pd.DataFrame:
    """Risk–coverage curves per patient and predictor."""
    rng = np.random.default_rng(seed)
    coverage = np.linspace(0.01, 1, points)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "patient": patient,
                    "predictor": predictor,
                    "family": study.family(predictor),
                    "annotator": annotator,
                    "coverage": coverage,
                    "risk": (0.01 - 0.003 * GAIN[study.family(predictor)]) * coverage**6 * rng.uniform(0.8, 1.2),
                }
            )
            for patient in study.scored_patients()
            for predictor in study.predictors_of(patient)
            for annotator in study.annotator_names
        ],
        ignore_index=True,
    )


def make_slice(study: Study, patient: str = "UKCHLL001", *, shape: tuple[int, int] = (96, 120)) -> SliceView:
    """A slice with ellipses for organs, drawn a little differently by each annotator."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape).reshape(2, 1, 1)
    body = ((y - 0.5) / 0.42) ** 2 + ((x - 0.5) / 0.45) ** 2 < 1
    image = np.where(body, 40 + rng.normal(0, 20, shape), -1000)
    centres = ((0.42, 0.58), (0.62, 0.72), (0.4, 0.3), (0.7, 0.4))
    radii = ((0.05, 0.1), (0.09, 0.06), (0.18, 0.17), (0.05, 0.05))
    maps = []
    for annotator in range(len(study.annotators)):
        labels = np.zeros(shape, np.uint8)
        for label, ((cy, cx), (ry, rx)) in enumerate(zip(centres, radii, strict=True), start=1):
            if label < len(study.class_names):
                grown = 1 + 0.06 * annotator
                labels[((y - cy) / (ry * grown)) ** 2 + ((x - cx - 0.004 * annotator) / (rx * grown)) ** 2 < 1] = label
        maps.append(labels)
    stacked = np.stack(maps)
    share = np.stack([(stacked == c).mean(axis=0) for c in range(len(study.class_names))])
    share = 0.94 * share + 0.06 / len(study.class_names)
    entropy = -(share * np.log(share)).sum(axis=0)
    return SliceView(
        patient=patient,
        z=24,
        image=image,
        annotations=stacked,
        spacing_mm=(5.0, 3.5, 3.5),
        orientation="LPS",
        predictor="ensemble_all",
        segmentation=share.argmax(axis=0).astype(np.uint8),
        predictive_entropy=entropy,
        mutual_information=0.3 * entropy,
    )


def make_organs(study: Study, patient: str = "UKCHLL001") -> OrganView:
    """Ellipsoids."""
    z, y, x = np.mgrid[:40, :60, :70]
    labels = np.zeros(z.shape, np.uint8)
    for label, (centre, radius) in enumerate(
        (((20, 28, 40), (4, 4, 12)), ((16, 42, 50), (9, 7, 6)), ((24, 26, 20), (12, 14, 14))), start=1
    ):
        if label < len(study.class_names):
            inside = sum(((g - c) / r) ** 2 for g, c, r in zip((z, y, x), centre, radius, strict=True)) < 1
            labels[inside] = label
    return OrganView(patient, labels, (5.0, 3.5, 3.5), "annotator anno1")


def make_training(study: Study, *, epochs: int = 30) -> dict[str, pd.DataFrame]:
    epoch = np.arange(epochs)
    return {
        str(model): pd.DataFrame(
            {
                "epoch": epoch,
                "train_loss": 1 / (1 + epoch * (0.3 + 0.05 * index)),
                "ema_dice": 1 - 1 / (1 + epoch * (0.3 + 0.05 * index)),
            }
        )
        for index, model in enumerate(study.models)
    }


_MADE: dict[tuple[str, str], object] = {}

READS = {
    "question": ("comparisons", "non_inferiority", "predictor_cost"),
    "patients": (),
    "maps": ("slices", "organs"),
    "data": ("cohort",),
    "protocol": ("curves",),
    "results": (
        *("metrics", "reliability", "risk_coverage", "agreement", "failure"),
        "out_of_distribution",
    ),
    "statistics": ("comparisons", "non_inferiority", "variance", "association"),
    "volumes": ("volume_intervals",),
    "comparison": ("leaderboard",),
    "cost": ("cost", "predictor_cost"),
    "metrics": ("metrics",),
    "methods": ("cohort", "cost"),
    "reproducibility": (),
    "state": (),
}
"""Section of the report → what of `make_inputs` it shows."""


def _once(function: Callable[[Study], object], study: Study, name: str = "") -> object:
    """What a function makes of a study, made once, whatever the language of its report. Nobody changes it."""
    key = name or function.__name__, study.model_dump_json(exclude={"report"})
    if key not in _MADE:
        _MADE[key] = function(study)
    return _MADE[key]


def make_inputs(study: Study, *, only: Collection[str] | None = None, **changes: object) -> ReportInputs:
    """Everything a report can hold, of random numbers; `changes` replace parts, and of the others only those named in `only`
    are made, where it is given: they take time."""
    given = changes.pop("scores", None)
    assert given is None or isinstance(given, pd.DataFrame)
    scores = pd.DataFrame(_once(make_scores, study)).copy() if given is None else given
    cohort = pd.DataFrame(
        {
            "patient": ["UKCHLL900", *study.scored_patients()],
            "set": ["train", *["test"] * len(study.scored_patients())],
            "group": "A",
            "shape": [(48, 96, 96)] * (1 + len(study.scored_patients())),
            "spacing_mm": [(5.0, 3.5, 3.5)] * (1 + len(study.scored_patients())),
        }
    )
    metrics = pd.DataFrame(
        [("dice", "higher", "", "accuracy", "0 … 1"), ("ece", "lower", "", "calibration", "0 … 1")],
        columns=["metric", "direction", "unit", "family", "range"],
    )
    cost = pd.DataFrame(
        [("training", 9, 216.0, 54.0, 9.0, 112.6), ("prediction", 576, 576.0, 864.0, 2304.0, 365.8)],
        columns=["step", "count", "hours", "gb_down", "gb_up", "euros"],
    )
    of_scores: dict[str, Callable[[pd.DataFrame], object]] = {
        "comparisons": lambda scores: compare_all_families(scores, study.statistics),
        "non_inferiority": lambda scores: non_inferiority(scores, study.statistics),
        "variance": lambda scores: variance_components(scores, study.statistics),
        "association": dice_against_entropy,
        "agreement": annotator_agreement,
        "failure": failure_over_patients,
        "out_of_distribution": lambda scores: out_of_distribution(scores, "A"),
        "leaderboard": lambda scores: rank_among_teams(scores, region="body"),
    }
    every: dict[str, Callable[[], object]] = {
        "provenance": lambda: Provenance(
            "2026-01-02 03:04 UTC", "0123abc", {"numpy": "2.4", "scipy": "1.17"}, {"scores|UKCHLL001": "a1b2c3"}
        ),
        "metrics": lambda: metrics,
        "cohort": lambda: cohort,
        **{
            name: (
                partial(_once, lambda _, make=make: make(scores), study, name)
                if given is None
                else partial(make, scores)
            )
            for name, make in of_scores.items()
        },
        "volume_intervals": lambda: _once(make_intervals, study),
        "reliability": lambda: _once(make_bins, study),
        "risk_coverage": lambda: _once(make_curves, study),
        "cost": lambda: cost,
        "predictor_cost": lambda: _once(make_predictor_cost, study),
        "curves": lambda: make_training(study),
        "slices": lambda: (_once(make_slice, study),),
        "organs": lambda: _once(make_organs, study),
    }
    made = {
        name: make()
        for name, make in every.items()
        if name not in changes and (only is None or name in {*only, "provenance"})
    }
    return ReportInputs(study=study, scores=scores, **(changes | made))  # type: ignore[arg-type]


class Part(NamedTuple):
    """Sections of a report: their Markdown, and figures by name."""

    markdown: str
    charts: dict[str, Chart]


def written(inputs: ReportInputs, *names: str) -> Part:
    """Sections of the report, as `build_report` writes them, without making the others."""
    facts = gather(inputs)
    sections = [Section(name, SECTIONS[name](facts)) for name in names]
    text = markdown(inputs.study.title, sections, facts.words, inputs.provenance.generated_at)
    return Part(text, {chart.name: chart for chart in charts_of(sections)})


def parts_of(study: Study, *names: str, **changes: object) -> Part:
    """Sections of a report with the inputs that they show; `changes` as for `make_inputs`."""
    return written(make_inputs(study, only={shown for name in names for shown in READS[name]}, **changes), *names)


def said_in(study: Study, *names: str, **changes: object) -> str:
    """The Markdown of `parts_of`."""
    return parts_of(study, *names, **changes).markdown
