"""Our families among the teams of the CURVAS 2024 challenge, metric by metric and overall.

Belongs here: the published numbers, as cited constants, and the ranking. Does not belong here: metrics, words of the
report. Every figure says how it was defined, where, over how many patients, and whether it may be compared.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from curvas_assets.statistics.reduction import reduced_scores, require_table, summarise
from curvas_assets.statistics.units import CM3_PER_MM3, MM3

FAMILIES = ("general", "annotator", "individual")


class Result(NamedTuple):
    """Means over the test patients: Dice and confidence as a share, ECE, CRPS in cm³."""

    dice: float
    confidence: float
    ece: float
    crps: float


CHALLENGE_CITATION = (
    "Riera-Marín et al. 2025, results of the CURVAS 2024 challenge (means over 65 test patients), as reprinted in the "
    "study's report, table 3."
)
TEAMS: Mapping[str, Result] = {
    "MedIG": Result(0.9457, 0.9787, 1.82e-3, 8.108),
    "PrAEcision": Result(0.9329, 0.9718, 2.22e-3, 10.438),
    "BreizhSeg": Result(0.9260, 0.9717, 1.61e-3, 12.326),
    "DLAI": Result(0.9272, 0.9623, 3.90e-3, 12.625),
    "BCNAIM": Result(0.9052, 0.9588, 6.21e-3, 9.727),
    "CAI4CAI": Result(0.8498, 0.9210, 4.48e-3, 12.828),
    "PredictED": Result(0.8579, 0.9239, 6.64e-3, 25.895),
}
"""The challenge's final table; source: `CHALLENGE_CITATION`."""
TEAM_PATIENTS = 65
TEAM_ORGANS = ("pancreas", "kidney", "liver")
"""The organs over which the challenge's table takes its means."""

STUDY_CITATION = (
    "Cumunel, Leroux, Léo and Siahaan-Gensollen 2025, Réduction de l'incertitude en segmentation médicale par "
    "méthodes d'ensemble, table 3 (means over 61 test patients)."
)
PUBLISHED_STUDY: Mapping[str, Result] = {
    "general": Result(0.8993, 0.9626, 2.83e-3, 16.64),
    "annotator": Result(0.8962, 0.9626, 3.57e-3, 19.33),
    "individual": Result(0.8936, 0.9630, 3.90e-3, 19.77),
}
"""The study's own families; source: `STUDY_CITATION`. Its CRPS counts voxels, whatever its table's heading says."""
STUDY_PATIENTS = 61


class Standing(NamedTuple):
    """How one of our metrics compares with a column of the challenge's table."""

    column: str
    higher_is_better: bool
    definition: str
    comparable: bool
    comparability: str
    scale: float = 1.0
    """From the metric's own unit to the table's."""


STANDINGS: Mapping[str, Standing] = {
    "dice_published": Standing(
        "dice",
        True,
        "mean over slices and image rows of the one-dimensional Dice, consensus only",
        True,
        "the challenge's own definition, computed anew",
    ),
    "dice": Standing(
        "dice",
        True,
        "Dice over the volume, consensus only",
        False,
        "not the challenge's definition: false positives on other rows count here; shown beside, not ranked overall",
    ),
    "confidence": Standing(
        "confidence",
        True,
        "half the mean probability inside the consensus and half of one minus that outside",
        True,
        "the challenge's definition, in the same region",
    ),
    "ece_published": Standing(
        "ece",
        False,
        "expected calibration error as the challenge's code has it: 50 bins whose sums are kept in float32",
        True,
        "the challenge's own definition, its float32 sums included, computed anew",
    ),
    "ece": Standing(
        "ece",
        False,
        "expected calibration error of the top label, 50 bins, mean over annotators, exact",
        False,
        "exact, and therefore not bit for bit the challenge's: its float32 sums read 0.00234 where 0.00220 is exact, up to 2.6 "
        "times as much at 64 million voxels; shown beside, not ranked overall",
    ),
    "crps_published": Standing(
        "crps",
        False,
        "continuous ranked probability score of the volume, integrated over μ ± 3 σ only",
        True,
        "the challenge's definition, computed exactly: not bit for bit the challenge's, whose code interpolates its "
        "distribution function (at most 0.26 % apart)",
        CM3_PER_MM3,
    ),
    "crps": Standing(
        "crps",
        False,
        "continuous ranked probability score of the volume, closed form",
        False,
        "not the challenge's definition: its integral is cut off; shown beside, not ranked overall",
        CM3_PER_MM3,
    ),
}
"""Metric → its place in the challenge's table. CRPS comes in mm³ and is shown in cm³."""
_MM3, _CM3 = ("", *MM3), ("cm³", "cm3", "ml", "mL")
UNITS = {"dice": "", "confidence": "", "ece": "", "crps": "cm³"}
LEADERBOARD_COLUMNS = (
    "metric",
    "column",
    "kind",
    "entry",
    "value",
    "unit",
    "rank",
    "n_patients",
    "n_nan",
    "definition",
    "region",
    "comparable",
    "comparability",
)


def rank_among_teams(
    scores: pd.DataFrame,
    *,
    region: str,
    synthetic: bool = False,
    published: bool = True,
    reference: str = "consensus",
    organs: Collection[str] = TEAM_ORGANS,
) -> pd.DataFrame:
    """Place our families among the challenge's teams, per metric and overall.

    A team's rank is its rank among the teams. A family's rank is one plus the number of teams strictly better than it:
    families do not push each other or a team down. The overall rank is computed in the same way from the mean of the
    ranks over the comparable metrics, for entries that have all of them. A metric whose unit in this run cannot be
    converted to the table's
    is left out: its families appear without value or rank, but with the reason.

    Args:
        scores: long scores, or reduced ones; families general, annotator and individual. `crps` metrics in mm³. Also the
            result of `read_published_scores`.
        region: where the scores were taken: `body` (the challenge's crop) or `image`.
        synthetic: the patients are made up, so that nothing may be compared.
        published: also place the study's published families.
        reference: with what `dice` and `confidence` compare; the challenge's is the consensus.
        organs: of the study. With others than `TEAM_ORGANS`, nothing may be compared.

    Returns:
        Long table: `metric` (ours, or `overall`), `column` (of the challenge's table), `kind` (team, this run, published
        study), `entry` (team or family), `value` (mean over patients and predictors; overall: mean rank), `unit`, `rank`,
        `n_patients`, `n_nan` (values left out), `definition`, `region`, `comparable`, `comparability`. Metrics absent
        from the scores are absent here; a family without a value has NaN and no rank.

    Raises:
        StatisticsError: the scores lack a column.
    """
    reduced = reduced_scores(getattr(scores, "scores", scores))
    reduced = reduced[reduced["metric"].isin(STANDINGS) & reduced["family"].isin(FAMILIES)]
    means = summarise(reduced, by=("family",)).set_index(["metric", "family"]) if len(reduced) else None
    barred = _barred(synthetic, organs)
    rows: list[dict[str, object]] = []
    for metric, standing in STANDINGS.items():
        if means is None or metric not in means.index.get_level_values("metric"):
            continue
        teams = {team: getattr(result, standing.column) for team, result in TEAMS.items()}
        shared = {"metric": metric, "column": standing.column, "unit": UNITS[standing.column]}
        of_metric = means.loc[[metric]].droplevel("metric")
        if foreign := _foreign_unit(of_metric, standing):
            rows += _left_out_rows(shared | {"unit": foreign}, of_metric, standing, region)
            continue
        rows += _team_rows(shared, teams, standing)
        rows += _our_rows(shared, of_metric, teams, _of_reference(standing, metric, reference), region, barred)
        if published and standing.comparable:
            rows += _published_rows(shared, teams, standing)
    table = pd.DataFrame(rows, columns=list(LEADERBOARD_COLUMNS))
    overall = pd.DataFrame(_overall(table, region), columns=list(LEADERBOARD_COLUMNS))
    table = pd.concat([part for part in (table, overall) if len(part)], ignore_index=True) if len(table) else table
    return table.astype({"rank": "Int64", "n_patients": "Int64", "n_nan": "Int64"})


def leaderboard_wide(board: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard as the challenge prints it: one row per entry, `value` and `rank` side by side.

    Args:
        board: from `leaderboard`.

    Returns:
        `kind`, `entry`, then for each metric `<metric>` and `<metric>_rank`; sorted by the overall rank.
    """
    require_table(board)
    entries = board[["kind", "entry"]].drop_duplicates().reset_index(drop=True)
    for metric in board["metric"].unique():
        part = board.loc[board["metric"] == metric, ["kind", "entry", "value", "rank"]]
        part = part.rename(columns={"value": metric, "rank": f"{metric}_rank"})
        entries = entries.merge(part, on=["kind", "entry"], how="left")
    if "overall_rank" in entries:
        entries = entries.sort_values(["overall_rank", "overall"], kind="stable", na_position="last")
    return entries.reset_index(drop=True)


def other_definition(metric: str, reference: str) -> str:
    """How a metric is defined that compares with another reference than the challenge's; empty for all others."""
    if reference == "consensus" or metric not in ("dice", "confidence"):
        return ""
    from curvas_assets.scoring.registry import REFERENCES  # its package brings numba

    return REFERENCES[reference].note  # type: ignore[index] - the study file has no other


def _of_reference(standing: Standing, metric: str, reference: str) -> Standing:
    """How a metric stands that compares with another reference than the challenge's."""
    if not (told := other_definition(metric, reference)):
        return standing
    return standing._replace(
        definition=told,
        comparable=False,
        comparability="not the challenge's definition, which compares with the consensus; shown beside, not ranked overall",
    )


def _barred(synthetic: bool, organs: Collection[str]) -> str:
    """Why no figure of this run may be compared; empty if nothing bars it."""
    if synthetic:
        return "synthetic patients: no figure of theirs may be compared with the challenge's"
    if {organ.casefold() for organ in organs} != set(TEAM_ORGANS):
        return f"the organs are {', '.join(organs)}, the challenge's are pancreas, kidney and liver: not comparable"
    return ""


def _comparability(standing: Standing, region: str, barred: str) -> tuple[bool, str]:
    if barred:
        return False, barred
    if standing.comparable and region != "body":
        return False, f"scored in the region {region!r}, the challenge's is the body: not comparable"
    return standing.comparable, standing.comparability


def _foreign_unit(means: pd.DataFrame, standing: Standing) -> str | None:
    """A unit of this run that cannot be converted to the table's; None if there is none."""
    if standing.column != "crps":
        return None
    return min(set(map(str, means["unit"])) - {*_MM3, *_CM3}, default=None)


def _in_unit(mean: pd.Series, standing: Standing) -> float:
    """The mean in the unit of the challenge's table; infinite values make it infinite."""
    scale = 1.0 if standing.column == "crps" and str(mean["unit"]) in _CM3 else standing.scale
    return float(np.inf) if mean["n_infinite"] else float(mean["mean"]) * scale


def _rank(value: float, teams: Mapping[str, float], standing: Standing) -> int | None:
    """One plus the number of teams that are strictly better."""
    if np.isnan(value):
        return None
    better = [team > value if standing.higher_is_better else team < value for team in teams.values()]
    return 1 + sum(better)


def _entry(kind: str, entry: str, value: float, rank: int | None, patients: int, left_out: int) -> dict[str, object]:
    return {"kind": kind, "entry": entry, "value": value, "rank": rank, "n_patients": patients, "n_nan": left_out}


def _left_out_rows(
    shared: Mapping[str, object], means: pd.DataFrame, standing: Standing, region: str
) -> list[dict[str, object]]:
    """This run's families in a unit that cannot be converted: without value or rank, but with the reason."""
    return [
        dict(shared)
        | _entry("this run", str(family), np.nan, None, int(mean["n_patients"]), int(mean["n_nan"]))
        | {
            "definition": standing.definition,
            "region": region,
            "comparable": False,
            "comparability": f"left out: its unit is {shared['unit']!r}, which cannot be turned into cm³",
        }
        for family, mean in means.iterrows()
    ]


def _team_rows(shared: Mapping[str, object], teams: Mapping[str, float], standing: Standing) -> list[dict[str, object]]:
    return [
        dict(shared)
        | _entry("team", team, value, _rank(value, teams, standing), TEAM_PATIENTS, 0)
        | {
            "definition": "the challenge's own",
            "region": "body",
            "comparable": True,
            "comparability": CHALLENGE_CITATION,
        }
        for team, value in teams.items()
    ]


def _our_rows(
    shared: Mapping[str, object],
    means: pd.DataFrame,
    teams: Mapping[str, float],
    standing: Standing,
    region: str,
    barred: str,
) -> list[dict[str, object]]:
    """This run's families, in their order, each ranked among the teams."""
    comparable, comparability = _comparability(standing, region, barred)
    rows: list[dict[str, object]] = []
    for family in FAMILIES:
        if family not in means.index:
            continue
        mean = means.loc[family]
        value = _in_unit(mean, standing)
        rank = _rank(value, teams, standing)
        rows.append(
            dict(shared)
            | _entry("this run", family, value, rank, int(mean["n_patients"]), int(mean["n_nan"]))
            | {
                "definition": standing.definition,
                "region": region,
                "comparable": comparable,
                "comparability": comparability,
            }
        )
    return rows


def _published_rows(
    shared: Mapping[str, object], teams: Mapping[str, float], standing: Standing
) -> list[dict[str, object]]:
    """The study's published families, in the columns of the challenge's table in which the study printed them."""
    rows = []
    for family, result in PUBLISHED_STUDY.items():
        value = float(getattr(result, standing.column))
        voxels = standing.column == "crps"
        rows.append(
            dict(shared)
            | _entry("published study", family, value, _rank(value, teams, standing), STUDY_PATIENTS, 0)
            | {
                "definition": "the study's code",
                "region": "annotations' box",
                "comparable": False,
                "comparability": STUDY_CITATION
                + (" It counts voxels, not cm³." if voxels else " Cropped to the annotations' box."),
            }
        )
    return rows


def _overall(table: pd.DataFrame, region: str) -> list[dict[str, object]]:
    """Mean of the ranks over the metrics in which this run may be compared; empty when there is none."""
    ours = table[(table["kind"] == "this run") & table["comparable"].astype(bool)]
    metrics = list(dict.fromkeys(ours["metric"]))
    if not metrics:
        return []
    ranked = table[table["metric"].isin(metrics) & table["rank"].notna()]
    grouped = ranked.groupby(["kind", "entry"], sort=False)
    complete = grouped["rank"].count() == len(metrics)
    means = grouped["rank"].mean()[complete]
    patients = grouped["n_patients"].min()[complete]
    left_out = grouped["n_nan"].sum()[complete]
    teams = {entry: value for (kind, entry), value in means.items() if kind == "team"}  # type: ignore[misc]
    lower = Standing("overall", False, "", True, "")
    definition = f"mean of the ranks in {', '.join(metrics)}"
    rows = []
    for (kind, entry), value in means.items():  # type: ignore[misc]
        rows.append(
            {"metric": "overall", "column": "overall", "unit": "mean rank"}
            | _entry(
                kind,
                entry,
                float(value),
                _rank(value, teams, lower),
                int(patients[kind, entry]),
                int(left_out[kind, entry]),
            )
            | {
                "definition": definition,
                "region": {"team": "body", "this run": region}.get(kind, "annotations' box"),
                "comparable": kind != "published study",
                "comparability": "our own summary; the challenge's final ranking is its own"
                if kind != "published study"
                else "see each metric",
            }
        )
    return rows
