"""Claims proved here.

- The published teams keep their published ranks, metric by metric.
- The study's published means are ranked as its report says: fourth in confidence and in ECE.
- A family's rank is one plus the number of strictly better teams, by hand; overall is the mean of the ranks.
- What is not comparable (another definition, another region, another reference, voxels) is said, and left out of the overall rank.
- A study of other organs than the challenge's is comparable in nothing and has no overall rank; the same organs in any order are.
- Undefined families have no rank; CRPS is turned from mm³ to cm³, and left out, with the reason, in voxels.
- ECE with the challenge's float32 sums is ranked, the exact one stands beside; synthetic patients are never comparable.
"""

import numpy as np
import pandas as pd
import pytest

from curvas_assets.scoring.registry import REFERENCES
from curvas_assets.statistics import leaderboard_wide, rank_among_teams, read_published_scores
from curvas_assets.statistics.challenge import PUBLISHED_STUDY, STANDINGS, TEAMS
from curvas_assets.study import load_study
from curvas_assets_tests.statistics.test_published import as_csv, wide_table

UNITS = {"crps_published": "mm³", "crps": "mm³"}
PRINTED_RANKS = {  # Dice, confidence, ECE, CRPS, as the challenge prints them
    "MedIG": (1, 1, 2, 1),
    "PrAEcision": (2, 2, 3, 3),
    "BreizhSeg": (4, 3, 1, 4),
    "DLAI": (3, 4, 4, 5),
    "BCNAIM": (5, 5, 6, 2),
    "CAI4CAI": (7, 7, 5, 6),
    "PredictED": (6, 6, 7, 7),
}


def scores_of(values: dict[str, dict[str, float]], patients: int = 2) -> pd.DataFrame:
    """Scores whose mean per metric and family is the value given."""
    spread = np.linspace(-1, 1, patients) if patients > 1 else np.zeros(1)
    rows = [
        (f"p{i}", family, family, metric, value * (1 + 1e-3 * d), UNITS.get(metric, ""))
        for metric, families in values.items()
        for family, value in families.items()
        for i, d in enumerate(spread)
    ]
    return pd.DataFrame(rows, columns=["patient", "predictor", "family", "metric", "value", "unit"])


def published_means() -> dict[str, dict[str, float]]:
    return {
        metric: {family: getattr(result, column) * scale for family, result in PUBLISHED_STUDY.items()}
        for metric, column, scale in (
            ("dice_published", "dice", 1),
            ("confidence", "confidence", 1),
            ("ece_published", "ece", 1),
            ("ece", "ece", 1),
            ("crps_published", "crps", 1e3),
        )
    }


def rank(board: pd.DataFrame, metric: str, entry: str, kind: str = "this run"):
    return board[(board["metric"] == metric) & (board["kind"] == kind) & (board["entry"] == entry)]["rank"].iloc[0]


def test_the_teams_keep_their_published_ranks():
    board = rank_among_teams(scores_of(published_means()), region="body")
    for team, ranks in PRINTED_RANKS.items():
        found = tuple(
            rank(board, m, team, "team") for m in ("dice_published", "confidence", "ece_published", "crps_published")
        )
        assert found == ranks
    assert set(PRINTED_RANKS) == set(TEAMS)


def test_the_published_study_stands_fourth_in_confidence_and_ece():
    board = rank_among_teams(scores_of(published_means()), region="body")
    for kind in ("this run", "published study"):
        assert rank(board, "confidence", "general", kind) == 4
        assert rank(board, "ece_published", "general", kind) == 4


def test_ranks_and_their_mean_by_hand():
    ours = {
        "dice_published": {"general": 0.99},  # nobody is better: 1
        "confidence": {"general": 0.9717},  # MedIG and PrAEcision are better, BreizhSeg is equal: 3
        "ece_published": {"general": 1.0},  # worse than all: 8
        "crps_published": {"general": 9000.0},  # 9 cm³, only MedIG is better: 2
    }
    board = rank_among_teams(scores_of(ours, 1), region="body", published=False)
    assert [rank(board, metric, "general") for metric in ours] == [1, 3, 8, 2]
    overall = board[(board["metric"] == "overall") & (board["entry"] == "general")].iloc[0]
    assert overall["value"] == (1 + 3 + 8 + 2) / 4
    order = board.loc[board["metric"] == "overall", "entry"]
    assert list(order) == list(board.loc[board["metric"] == "dice_published", "entry"])  # as above, not by name
    # Better mean ranks: MedIG 1.25, PrAEcision 2.5, BreizhSeg 3.
    assert overall["rank"] == 4
    assert board[(board["metric"] == "crps_published") & (board["entry"] == "general")]["value"].iloc[
        0
    ] == pytest.approx(9.0)


def test_another_definition_is_shown_but_never_counts_overall():
    ours = {"dice": {"general": 0.99}, "dice_published": {"general": 0.5}}
    board = rank_among_teams(scores_of(ours, 1), region="body", published=False)
    assert rank(board, "dice", "general") == 1
    dice = board[(board["metric"] == "dice") & (board["entry"] == "general")].iloc[0]
    assert not dice["comparable"]
    assert "not the challenge's definition" in dice["comparability"]
    overall = board[(board["metric"] == "overall") & (board["entry"] == "general")].iloc[0]
    assert overall["value"] == 8


@pytest.mark.parametrize("reference", ["majority", "staple", "thresholds"])
def test_another_reference_than_the_challenges_is_shown_but_never_counts_overall(reference):
    ours = {"confidence": {"general": 0.99}, "ece_published": {"general": 0.002}}
    board = rank_among_teams(scores_of(ours, 1), region="body", published=False, reference=reference)
    rows = board[board["entry"] == "general"].set_index("metric")
    assert not rows.loc["confidence", "comparable"]
    assert "compares with the consensus" in rows.loc["confidence", "comparability"]
    assert rows.loc["confidence", "definition"] == REFERENCES[reference].note
    assert rows.loc["ece_published", "comparable"]
    assert rows.loc["overall", "definition"] == "mean of the ranks in ece_published"


def test_another_region_is_not_comparable_and_has_no_overall_rank():
    board = rank_among_teams(scores_of({"ece_published": {"general": 0.001}}), region="image")
    ours = board[board["kind"] == "this run"].iloc[0]
    assert (ours["region"], ours["comparable"]) == ("image", False)
    assert "image" in ours["comparability"]
    assert "overall" not in set(board["metric"])


def test_every_row_says_definition_region_and_n():
    board = rank_among_teams(scores_of(published_means(), 5), region="body")
    assert (board[["definition", "region", "comparability"]] != "").all(axis=None)
    assert set(board.loc[board["kind"] == "this run", "n_patients"]) == {5}
    assert set(board.loc[board["kind"] == "team", "n_patients"]) == {65}
    assert set(board.loc[board["kind"] == "published study", "n_patients"]) == {61}
    assert board.groupby("kind")["comparable"].any().to_dict() == {
        "team": True,
        "this run": True,
        "published study": False,
    }


def test_an_undefined_family_has_no_rank_and_says_how_many_values_are_missing():
    board = rank_among_teams(
        scores_of({"ece": {"general": 0.002, "annotator": np.nan}}), region="body", published=False
    )
    row = board[board["entry"] == "annotator"].iloc[0]
    assert pd.isna(row["value"])
    assert pd.isna(row["rank"])
    assert row["n_nan"] == 2
    wide = leaderboard_wide(board)
    assert wide.iloc[-1]["entry"] == "annotator"
    assert list(wide.index) == list(range(7 + 2))
    metrics = board["metric"].unique()
    assert list(wide.columns) == ["kind", "entry", *(name for m in metrics for name in (m, f"{m}_rank"))]


def test_nothing_to_rank_is_an_empty_table():
    board = rank_among_teams(scores_of({"nsd": {"general": 0.9}}), region="body")
    assert board.empty
    assert leaderboard_wide(board).empty


def test_crps_in_voxels_is_left_out_and_says_so():
    ours = {"crps": {"general": 10.0}, "dice_published": {"general": 0.99}}
    scores = scores_of(ours, 1)
    scores.loc[scores["metric"] == "crps", "unit"] = "voxel"
    board = rank_among_teams(scores, region="body")
    crps = board[board["metric"] == "crps"]
    assert crps["entry"].tolist() == ["general"]
    assert crps[["value", "rank"]].isna().all(axis=None)
    assert not crps["comparable"].any()
    assert "'voxel'" in crps["comparability"].iloc[0]
    overall = board[(board["metric"] == "overall") & (board["kind"] == "this run")].iloc[0]
    assert (overall["value"], overall["definition"]) == (1, "mean of the ranks in dice_published")


def test_the_published_tables_families_are_ranked_without_their_crps():
    published = read_published_scores(as_csv(wide_table(6)))
    board = rank_among_teams(published, region="body")
    ours = board[board["kind"] == "this run"]
    assert ours.loc[ours["metric"] == "crps", "rank"].isna().all()
    assert ours.loc[ours["metric"] == "crps", "comparability"].str.contains("left out").all()
    assert ours.loc[ours["metric"].isin(["dice", "confidence", "ece"]), "rank"].notna().all()
    pd.testing.assert_frame_equal(board, rank_among_teams(published.scores, region="body"))


def test_the_exact_ece_stands_beside_and_the_challenges_is_ranked():
    ours = {"ece": {"general": 0.00220}, "ece_published": {"general": 0.00234}}
    board = rank_among_teams(scores_of(ours, 1), region="body", published=False)
    own = board[board["kind"] == "this run"].set_index("metric")
    assert own.loc["ece_published", "comparable"]
    assert not own.loc["ece", "comparable"]
    assert "0.00234" in own.loc["ece", "comparability"]
    assert own.loc["overall", "definition"] == "mean of the ranks in ece_published"
    assert "0.26 %" in STANDINGS["crps_published"].comparability


@pytest.mark.parametrize(
    "organs", [load_study("curvas-pdacvi").class_names[1:], ["liver"], ["pancreas", "kidney", "liver", "spleen"]]
)
def test_other_organs_than_the_challenges_are_never_comparable(organs):
    board = rank_among_teams(scores_of(published_means()), region="body", organs=organs)
    ours = board[board["kind"] == "this run"]
    assert len(ours) == 15
    assert not ours["comparable"].any()
    assert (
        ours["comparability"].str.startswith(f"the organs are {', '.join(organs)}, the challenge's are pancreas").all()
    )
    assert "overall" not in set(board["metric"])
    assert board.loc[board["kind"] == "team", "comparable"].all()


def test_the_challenges_organs_are_comparable_in_any_order():
    board = rank_among_teams(scores_of(published_means()), region="body")
    for organs in (
        load_study("curvas").class_names[1:],
        ["liver", "kidney", "pancreas"],
        ["Pancreas", "Kidney", "Liver"],
    ):
        pd.testing.assert_frame_equal(
            rank_among_teams(scores_of(published_means()), region="body", organs=organs), board
        )
    assert "overall" in set(board["metric"])


def test_synthetic_patients_are_never_comparable():
    board = rank_among_teams(scores_of(published_means()), region="body", synthetic=True)
    ours = board[board["kind"] == "this run"]
    assert not ours["comparable"].any()
    assert ours["comparability"].str.contains("synthetic").all()
    assert "overall" not in set(board["metric"])
    assert load_study("phantom").synthetic
    assert not load_study("curvas").synthetic
