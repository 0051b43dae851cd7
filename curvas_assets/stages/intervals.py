"""Intervals: what an organ's volume may be in a new patient, from the errors on the validation patients."""

from typing import Any

import pandas as pd

from curvas_assets.report import paper
from curvas_assets.report.figures import volume_intervals_charts
from curvas_assets.report.words import Words
from curvas_assets.stages.calibrated import base_of
from curvas_assets.stages.checks import Check
from curvas_assets.stages.score import of_the_study
from curvas_assets.stages.stored import Artefact, Artefacts, Markdown, Picture
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.statistics import (
    attainable_level,
    chance_is_small,
    in_cm3,
    is_a_size,
    observed_coverage,
    shown_scores,
    volume_intervals,
)
from curvas_assets.storage import directories
from curvas_assets.study import Study

INTERVALS_CHECK = Check(
    "intervals_hold",
    "Volumes of test patients lie inside their intervals about as often as these claim; tells the coverage that was observed "
    "where they do not, and which predictors have no interval.",
)


def find_intervals(
    tools: Toolkit, scores: Artefacts, study_scores: Artefact
) -> tuple[pd.DataFrame, dict[str, Any], list[str]]:
    """Intervals for the organ volumes of the test patients, what people see of them, and what is not as it should be.

    Args:
        tools: the study's.
        scores: of the validation patients alone.
        study_scores: of the test patients.
    """
    study = tools.study
    scored = [p for p in scores if directories.exists(tools.objects, tools.layout.scores(p))]
    unscored = sorted(set(study.fitting_patients) - set(scored))
    new = study_scores.table()
    tables = {p: of_the_study(study, p, scores[p].table("scores")) for p in sorted(scored)}
    known = pd.concat([new.iloc[:0], *tables.values()], ignore_index=True)
    predictors = [one for one in study.interval_predictors if has_the_same_members(study, one)]
    intervals = volume_intervals(
        known,
        new[new["predictor"].isin(predictors)],
        predictors,
        study.conformal.level,
        in_sample=[one for one in predictors if study.predicted_by(one) == "calibrated"],
    )
    coverage = observed_coverage(intervals)
    problems = [*not_given(study, intervals, predictors), *not_held(coverage)]
    if former := [p for p, rows in tables.items() if not rows["metric"].map(is_a_size).any()]:
        problems.insert(
            0,
            f"scores of the validation patients {', '.join(former)} hold no volume: they were made by an earlier version, "
            "score them again",
        )
    if unscored:
        problems.insert(0, f"no scores yet of the validation patients {', '.join(unscored)}: intervals do without them")
    for told in (*unclaimed(intervals), *problems):
        tools.warn(told)
    return intervals, _facts(study, scored, intervals, coverage) | _pictures(study, intervals, new), problems


def _pictures(study: Study, intervals: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Picture]:
    """Each predictor's intervals beside what the annotators drew."""
    words, shown = Words(study.report.language), shown_scores(scores)
    charts = [
        chart
        for _, part in in_cm3(intervals).groupby("predictor", sort=False)
        for chart in volume_intervals_charts(part, shown, study.annotator_names, words)
    ]
    return {
        f"intervals of {chart.name.removeprefix('volumes_')}": Picture(paper.image(chart), chart.title)
        for chart in charts
    }


def _facts(study: Study, scored: list[str], intervals: pd.DataFrame, coverage: pd.DataFrame) -> dict[str, Any]:
    """What people see in the UI, volumes in cm³."""
    return {
        "level asked for": study.conformal.level,
        "validation patients": len(scored),
        "highest level of so many": attainable_level(len(scored)),
        "what it rests on": Markdown(
            "Test and validation patients must be **exchangeable**: groups of another distribution may be covered less often."
        ),
        "not claimed": "; ".join(unclaimed(intervals)) or "nothing",
        "observed coverage": in_cm3(coverage),
        "intervals (cm³)": in_cm3(intervals),
    }


def has_the_same_members(study: Study, predictor: str) -> bool:
    """Whether a predictor is the mean of the same models on validation patients and on those who are scored.

    Under cross-validation it is not: a scored patient has the members of the fold that held it out alone.
    """
    base = base_of(predictor) if study.predicted_by(predictor) == "calibrated" else predictor
    if study.predicted_by(base) != "ensemble" or not study.cross_validated:
        return True
    patients = [*study.fitting_patients, *study.scored_patients()]
    return len({tuple(map(str, study.members(base, patient))) for patient in patients}) == 1


def not_given(study: Study, intervals: pd.DataFrame, predictors: list[str]) -> list[str]:
    """Predictors that should have intervals and have none, with the reason."""
    if not study.fitting_patients:
        return []
    others = [one for one in study.interval_predictors if one not in predictors]
    without = [one for one in predictors if one not in set(intervals["predictor"])]
    return [
        *(
            f"no interval of {one}: it has other members on validation patients than under cross-validation"
            for one in others
        ),
        *(f"no interval of {one}: no volume of it, of validation or test patients, was scored" for one in without),
    ]


def unclaimed(intervals: pd.DataFrame) -> list[str]:
    """What cannot be claimed, because validation patients are too few or a calibration has seen them."""
    few = intervals[intervals["level"] > intervals["attainable"]].drop_duplicates("n_fitted")
    seen = intervals[intervals["claimed"].isna()].drop_duplicates("predictor")
    return [
        *(
            f"validation patients with a volume: {row.n_fitted}, so the level of an interval is at most "
            f"{row.n_fitted}/{row.n_fitted + 1}; {row.level:g} was asked, and is not claimed"
            for row in few.itertuples()
        ),
        *(f"{row.predictor} was {row.note}" for row in seen.itertuples()),
    ]


def not_held(coverage: pd.DataFrame) -> list[str]:
    """Where fewer patients are inside than is likely if they and the validation patients are exchangeable."""
    missed = coverage[coverage["p"].map(chance_is_small)]
    return [
        f"{row.organ} by {row.predictor}{f' in group {row.group}' if row.group else ''}: {row.observed:.0%} of "
        f"{row.n_patients} patients inside, {row.claimed:.0%} claimed (probability of so few {row.p:.2g})"
        for row in missed.itertuples()
    ]
