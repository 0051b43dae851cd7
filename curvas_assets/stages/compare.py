"""Comparisons: do ensembles reduce uncertainty without hurting accuracy, beside the challenge's teams and the published table?"""

from typing import Any, get_args

import pandas as pd

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, StatisticsError
from curvas_assets.stages import schemas
from curvas_assets.stages.checks import Check
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.statistics import (
    PublishedScores,
    compare_all_families,
    compare_studies,
    compare_with_published,
    non_inferiority,
    pairs_of,
    projected_precision,
    published_tests,
    read_published_scores,
    scored_in_mm3,
    shown_differences,
    shown_scores,
    shown_variances,
    units_of,
    variance_components,
    with_questions,
    with_unit,
)
from curvas_assets.statistics.challenge import STANDINGS
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.storage.ownership import owner_of
from curvas_assets.storage.tables import read_table, table_version
from curvas_assets.study import Family, Statistics, Study

COMPARISONS_CHECK = Check(
    "primary_metrics_are_tested", "Every primary metric has its p in every pair that the study compares and has."
)
VARIANCE_CHECK = Check(
    "variances_are_estimated",
    "Every primary metric has its components of variance, if the study has several annotators and seeds to tell them apart.",
)
LEADERBOARD_CHECK = Check(
    "metrics_are_ranked",
    "Every metric of the challenge has a rank for every family that was scored; tells which has none.",
)
COST_CHECK = Check(
    "work_is_recorded", "Every artefact that is there has recorded what it used; what was made elsewhere has not."
)
PREDICTOR_COST_CHECK = Check(
    "every_predictor_is_costed",
    "Everything that a predictor needs has recorded what it used; tells whose cost is not all known.",
)
OTHERS_CHECK = Check(
    "other_studies_are_compared", "Every other study that the study file names has scores of the same patients."
)
PUBLISHED_CHECK = Check(
    "published_table_is_usable",
    "Every value of the published table could be read, if there is one; tells what could not.",
)


def compare_families(study: Study, scores: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any], list[str]]:
    """Every pair that the study compares: the comparisons, what people see of them, and which primary metrics have no p."""
    pairs, settings = pairs_of(study), study.statistics
    comparisons = with_questions(compare_all_families(scores, settings, pairs=pairs), settings)
    margins = non_inferiority(scores, settings, pairs=pairs)
    facts = {"table": shown_comparisons(comparisons, scores), "non-inferiority": shown_comparisons(margins, scores)}
    return comparisons, facts, not_tested(comparisons, {*scores["family"], *scores["predictor"]}, settings)


def split_variance(study: Study, scores: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any], list[str]]:
    """Where the models' scores vary: the components, what people see of them, and which primary metrics have none."""
    components = variance_components(scores, study.statistics)
    shown = shown_variances(components)
    facts = {"table": shown, "standard error of the mean": projected_precision(shown, study.statistics)}
    return components, facts, not_estimated(study, components)


def compare_published(tools: Toolkit, scores: pd.DataFrame) -> tuple[pd.DataFrame, str, dict[str, Any], list[str]]:
    """This run's means beside the published ones: table, its version, what people see, what could not be used.

    Empty, and of the version `none`, where nobody uploaded a published table.
    """
    objects, key = tools.objects, tools.layout.published_table(tools.study.report.published_table)
    published = published_scores(objects, key, tools.study)
    if published is None:
        told = {"published table": f"none: upload {objects.name}/{key} to compare with it"}
        return pd.DataFrame(columns=schemas.PUBLISHED_COMPARISON.columns.names), "none", told, []
    table = compare_with_published(scores, published, reference=tools.study.evaluation.reference)
    told = {
        "published table": f"{objects.name}/{key}",
        "table": shown_scores(table),
        "published tests": published_tests(published, tools.study.statistics),
        "could not be used": published.unusable,
    }
    version = table_version(pd.concat([published.scores, published.unusable, table]).astype(str))
    return table, version, told, unusable(published.unusable)


def compare_others(tools: Toolkit, scores: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any], list[str]]:
    """This study's predictors beside their namesakes of other studies: table, what people see, what could not be compared.

    Empty where the study names no other.
    """
    study, parts, problems = tools.study, [], []
    for name, metrics in study.compare_with.items():
        key = tools.layout.scores_of_other(metrics)
        try:
            owner = owner_of(tools.objects, tools.layout.owner(metrics))
            if owner not in (None, name):
                problems.append(
                    f"{name}: below {tools.objects.name}/{metrics} stand the scores of {owner}; name its own prefix"
                )
                continue
            theirs = read_table(tools.objects, key, schemas.SCORES)
            found = compare_studies(
                scores, theirs, study.statistics, names=(study.name, name), families=get_args(Family)
            )
        except MissingArtefactError:
            problems.append(f"{name}: there is no {tools.objects.name}/{key}; its study_scores has not been made there")
            continue
        except (CorruptArtefactError, StatisticsError) as error:
            problems.append(f"{name}: its scores cannot be read: {error}")
            continue
        if found.empty:
            problems.append(f"{name}: it shares no patient with this study, or no family with a primary metric")
        parts.append(found)
    table = (
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=schemas.STUDY_COMPARISON.columns.names)
    )
    return table, {"table": shown_comparisons(table, scores), "not compared": "; ".join(problems) or "none"}, problems


def published_scores(objects: ObjectStore, key: str, study: Study) -> PublishedScores | None:
    """The study's published table, if people have uploaded one."""
    try:
        content = objects.get(key)
    except MissingArtefactError:
        return None
    return read_published_scores(content, ids=study.patients, study=study)


def shown_comparisons(comparisons: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The comparisons as people read them: differences in the unit that the metric is shown in, which its name tells."""
    units = units_of(scores)
    shown = shown_differences(comparisons, scored_in_mm3(scores))
    return shown.assign(metric=[with_unit(str(metric), units.get(metric, "")) for metric in shown["metric"]])


def not_tested(comparisons: pd.DataFrame, scored: set[str], settings: Statistics) -> list[str]:
    """The pairs in which a primary metric has no p.

    Args:
        comparisons: from `compare_all_families`.
        scored: families and predictors that were scored.
        settings: which metrics are primary.
    """
    lacking = []
    for question, metric in settings.primary.items():
        own = comparisons[comparisons["metric"] == metric]
        possible = own[own["first"].isin(scored) & own["second"].isin(scored)]
        if own.empty:
            lacking.append(f"{metric} ({question}) was not scored")
        for row in possible[possible["p_randomisation"].isna()].itertuples():
            lacking.append(f"{metric} ({question}): no p for {row.pair}" + (f", {row.note}" if row.note else ""))
    return lacking


def not_estimated(study: Study, components: pd.DataFrame) -> list[str]:
    """The primary metrics without components of variance, where the design of the study would allow them."""
    if study.cross_validated or len(study.annotators) < 2 or len(study.seeds) * len(study.folds) < 2:
        return []
    estimated = set(components.loc[components["variance"].notna(), "metric"])
    why = dict(zip(components["metric"], components["note"], strict=True))
    return [
        f"{metric} ({question}): {why.get(metric, 'it was not scored')}"
        for question, metric in study.statistics.primary.items()
        if metric not in estimated
    ]


def not_ranked(board: pd.DataFrame) -> list[str]:
    """This run's metrics without a rank, each with the reason."""
    teams = set(board.loc[board["kind"] == "team", "metric"])
    ours = board[board["kind"] == "this run"]
    columns = dict.fromkeys(standing.column for standing in STANDINGS.values())
    absent = [
        f"{column}: no metric of this column of the challenge's was scored"
        for column in columns
        if column not in set(ours["column"])
    ]
    left_out = ours[~ours["metric"].isin(teams)].drop_duplicates("metric")
    undefined = ours[ours["metric"].isin(teams) & ours["rank"].isna()]
    return [
        *absent,
        *(f"{row.metric} is not ranked: {row.comparability}" for row in left_out.itertuples()),
        *(f"{row.metric} of {row.entry}: no value is defined" for row in undefined.itertuples()),
    ]


def unusable(problems: pd.DataFrame) -> list[str]:
    """What of the published table could not be read, by reason."""
    return [f"{reason} ({len(rows)} ×)" for reason, rows in problems.groupby("reason", sort=False)]
