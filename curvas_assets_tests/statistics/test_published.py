"""Claims proved here.

- The study's wide columns become metrics, organs and annotators; every column of the study is understood.
- Ids with and without prefix, as text or as numbers, are one patient.
- What cannot be used is listed with line, patient, predictor and reason; nothing else is lost.
- A table with the study's flaws gives the figures of the same table without them.
- The platform's own metrics.csv is read back.
- This run's means stand beside the published ones, with what may not be compared, another reference included; the study's tests are those of its table.
- What is no such table is refused, saying what was found.
"""

import io

import numpy as np
import pandas as pd
import pytest

from curvas_assets.errors import StatisticsError
from curvas_assets.scoring import study_columns
from curvas_assets.scoring.registry import REFERENCES
from curvas_assets.statistics import (
    compare_families,
    compare_with_published,
    published_tests,
    read_published_scores,
    reduce_scores,
)
from curvas_assets.statistics.published import DEFECTS, Column, column_meaning
from curvas_assets.study import PatientIds, load_study
from curvas_assets_tests.statistics.tables import predictors, random_scores

ORGANS, ANNOTATORS, PAIRS = ("panc", "kidn", "livr"), ("1", "2", "3"), ("GT1-2", "GT1-3", "GT2-3", "mean")
STUDY_COLUMNS = (
    *(f"DICE_{o}" for o in ORGANS),
    *(f"CONF_{o}" for o in ORGANS),
    "Entropy_GT",
    "Entropy_Pred",
    *(f"{m}_{a}" for m in ("Hausdorff", "ECE", "ACE") for a in ANNOTATORS),
    *(f"{m}_{o}" for m in ("AUROC", "AURC", "EAURC", "CRPS") for o in ORGANS),
    *(f"NCC_{p}" for p in PAIRS),
)


def wide_table(patients: int = 6, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {"Patient_ID": f"UKCHLL{p:03d}", "CT": predictor}
        | dict(zip(STUDY_COLUMNS, rng.uniform(0.1, 0.9, 33), strict=True))
        for p in range(1, patients + 1)
        for predictor in predictors()
    ]
    return pd.DataFrame(rows)


def as_csv(wide: pd.DataFrame, **options) -> io.StringIO:
    return io.StringIO(wide.to_csv(index=False, **options))


def test_every_column_of_the_study_is_understood():
    assert len(STUDY_COLUMNS) == 33
    assert all(column_meaning(column) is not None for column in STUDY_COLUMNS)
    assert column_meaning("DICE_panc") == Column("dice", "pancreas", "", "")
    assert column_meaning("ECE_2") == Column("ece", "", "2", "")
    assert column_meaning("NCC_GT1-3") == Column("ncc_annotators", "", "1/3", "")
    anna_and_boris = ("anna", "boris", "anno3")
    assert column_meaning("ECE_2", anna_and_boris) == Column("ece", "", "boris", "")
    assert column_meaning("NCC_GT1-3", anna_and_boris) == Column("ncc_annotators", "", "anna/anno3", "")
    assert column_meaning("ECE_4", anna_and_boris) == Column("ece", "", "4", "")
    assert column_meaning("ECE_carla", anna_and_boris) is None
    assert column_meaning("NCC_mean") == Column("ncc_annotators", "", "mean", "")
    assert column_meaning("CRPS_livr").unit == "voxel"
    assert column_meaning("Patient_ID") is None


def test_a_clean_table_is_taken_whole():
    wide = wide_table()
    scores, unusable = read_published_scores(as_csv(wide))
    assert unusable.empty
    assert len(scores) == len(wide) * 33
    assert scores["family"].value_counts().to_dict() == {
        "individual": 9 * 6 * 33,
        "annotator": 3 * 6 * 33,
        "general": 6 * 33,
    }
    one = scores[
        (scores["patient"] == "UKCHLL002") & (scores["predictor"] == "ensemble_all") & (scores["metric"] == "ece")
    ]
    row = wide[(wide["Patient_ID"] == "UKCHLL002") & (wide["CT"] == "ensemble_all")].iloc[0]
    assert dict(zip(one["annotator"], one["value"], strict=True)) == {a: row[f"ECE_{a}"] for a in ANNOTATORS}


def test_means_over_organs_and_annotators_are_the_studys():
    wide = wide_table()
    reduced = reduce_scores(read_published_scores(as_csv(wide)).scores).set_index(["patient", "predictor", "metric"])
    for metric, columns in {"dice": [f"DICE_{o}" for o in ORGANS], "ece": [f"ECE_{a}" for a in ANNOTATORS]}.items():
        expected = wide.set_index(["Patient_ID", "CT"])[columns].mean(axis=1)
        found = reduced.xs(metric, level="metric")["value"]
        np.testing.assert_allclose(found.to_numpy(), expected.to_numpy())


def test_the_flaws_of_the_studys_file_change_nothing_but_the_list():
    wide = wide_table(8).astype({"Patient_ID": object})
    lost = (wide["Patient_ID"] == "UKCHLL008") & wide["CT"].str.startswith("ensemble_")
    clean = compare_families(read_published_scores(as_csv(wide[~lost])), "dice", "greater", draws=100)
    flawed = wide[~lost].reset_index(drop=True)
    bare = flawed["Patient_ID"].isin(["UKCHLL003", "UKCHLL005"])
    flawed.loc[bare, "Patient_ID"] = flawed.loc[bare, "Patient_ID"].str.removeprefix("UKCHLL")
    flawed.loc[flawed["Patient_ID"] == "UKCHLL006", "Patient_ID"] = "6.0"
    twice = flawed.iloc[[0]]
    other = flawed.iloc[[1]].assign(DICE_panc=0.0)
    stranger = flawed.iloc[[2]].assign(Patient_ID="phantom")
    unknown = flawed.iloc[[3]].assign(CT="vote")
    flawed = pd.concat([flawed, twice, other, stranger, unknown], ignore_index=True)
    published = read_published_scores(as_csv(flawed, na_rep="nan"))
    found = compare_families(published, "dice", "greater", draws=100)
    pd.testing.assert_frame_equal(found, clean)
    assert list(found["n_first"]) == [7, 7, 21]
    assert list(found["n_second"]) == [21, 72, 72]
    reasons = published.unusable["reason"].tolist()
    assert reasons.count("the same row again") == 1
    assert sum("the first is kept" in reason for reason in reasons) == 1
    of_predictor = published.unusable.set_index("predictor")["reason"]
    assert of_predictor[twice["CT"].iloc[0]] == "the same row again"
    assert "the first is kept" in of_predictor[other["CT"].iloc[0]]
    assert sum("patient:" in reason for reason in reasons) == 1
    assert sum("neither the name of a model" in reason for reason in reasons) == 1
    absent = published.unusable[published.unusable["reason"].str.contains("has no row")]
    assert set(absent["patient"]) == {"UKCHLL008"}
    assert set(absent["predictor"]) == {"ensemble_anno1", "ensemble_anno2", "ensemble_anno3", "ensemble_all"}
    assert len(published.unusable) == 8


@pytest.mark.parametrize(("written", "reason"), [("", "empty"), ("nan", "NaN in the file"), ("n/a", "not a number")])
def test_a_cell_without_a_number_is_nan_and_listed_with_its_line(written, reason):
    wide = wide_table(2).astype(object)
    wide.loc[4, "ECE_2"] = written
    scores, unusable = read_published_scores(as_csv(wide))
    assert scores["value"].isna().sum() == 1
    assert len(unusable) == 1
    flaw = unusable.iloc[0]
    assert (flaw["line"], flaw["patient"], flaw["column"]) == (6, "UKCHLL001", "ECE_2")
    assert reason in flaw["reason"]
    reduced = reduce_scores(scores)
    holed = reduced[reduced["n_nan"] > 0].iloc[0]
    assert (holed["metric"], holed["n_values"]) == ("ece", 2)
    assert holed["value"] == pytest.approx((wide.loc[4, "ECE_1"] + wide.loc[4, "ECE_3"]) / 2)


def test_blank_lines_and_index_columns_are_no_flaws_and_lines_are_counted_with_them():
    wide = wide_table(1)
    text = wide.to_csv()
    lines = text.splitlines()
    text = "\n".join([*lines[:3], "," * lines[0].count(","), *lines[3:5], lines[4]]) + "\n"
    scores, unusable = read_published_scores(text.encode("utf-8-sig"))
    assert scores.groupby("predictor").ngroups == 4
    assert unusable["line"].tolist() == [7]


def test_semicolons_and_decimal_commas_are_read(tmp_path):
    wide = wide_table(2)
    path = tmp_path / "metrics.csv"
    wide.to_csv(path, index=False, sep=";", decimal=",")
    expected = read_published_scores(as_csv(wide)).scores
    found = read_published_scores(path)
    assert found.unusable.empty
    pd.testing.assert_frame_equal(found.scores, expected)


def test_unknown_columns_are_named():
    unusable = read_published_scores(as_csv(wide_table(1).assign(Comment="x"))).unusable
    assert unusable[["column", "reason"]].to_numpy().tolist() == [["Comment", "a column of no known meaning"]]


def test_another_study_brings_its_own_ids_groups_and_ensembles():
    study = load_study("curvas").model_copy(update={"groups": {"north": ("DEMO001",)}})
    wide = wide_table(2)
    wide["Patient_ID"] = wide["Patient_ID"].str.replace("UKCHLL", "DEMO")
    scores = read_published_scores(as_csv(wide), ids=PatientIds(prefix="DEMO", digits=3), study=study).scores
    assert scores.groupby("patient")["group"].unique().map(list).to_dict() == {"DEMO001": ["north"], "DEMO002": [""]}
    assert set(scores.loc[scores["predictor"] == "ensemble_all", "family"]) == {"general"}


def test_the_platforms_own_csv_is_read_back():
    table = random_scores(3, ("dice", "predictive_entropy")).assign(organ="", annotator="", group="")
    dice = table[table["metric"] == "dice"]
    long = pd.concat(
        [dice.assign(organ=o) for o in ("pancreas", "kidney", "liver")] + [table[table["metric"] != "dice"]]
    )
    scores, unusable = read_published_scores(as_csv(study_columns(long)))
    assert unusable.empty
    for metric in ("dice", "predictive_entropy"):
        one, two = (
            reduced[reduced["metric"] == metric].set_index(["patient", "predictor"])["value"].sort_index()
            for reduced in (reduce_scores(long), reduce_scores(scores))
        )
        pd.testing.assert_series_equal(one, two)


def test_this_runs_means_stand_beside_the_published_ones():
    published = read_published_scores(as_csv(wide_table(seed=1)))
    scores = random_scores(6, ("dice", "ece", "crps"), seed=2)
    table = compare_with_published(scores, published).set_index(["metric", "family"])
    for (metric, family), row in table.iterrows():
        theirs = reduce_scores(published.scores).query("metric == @metric and family == @family")["value"]
        assert row["published_mean"] == pytest.approx(theirs.mean())
        assert row["published_n"] == len(theirs)
        ours = scores[(scores["metric"] == metric) & (scores["family"] == family)]
        if len(ours):
            expected = reduce_scores(scores).query("metric == @metric and family == @family")["value"].mean()
            assert row["mean"] == pytest.approx(expected)
        else:
            assert np.isnan(row["mean"])
    assert "voxels" in table.loc[("crps", "general"), "comparability"]


@pytest.mark.parametrize("reference", list(REFERENCES))
def test_means_against_another_reference_say_so_beside_the_published_ones(reference):
    published = read_published_scores(as_csv(wide_table(seed=1)))
    scores = random_scores(6, ("dice", "confidence", "ece"), seed=2)
    told = compare_with_published(scores, published, reference=reference).set_index("metric")["comparability"]
    plain = compare_with_published(scores, published).set_index("metric")["comparability"]
    assert {"dice", "confidence", "ece"} <= set(told.index)
    other = reference != "consensus"
    for metric, text in told.items():
        changed = other and metric in ("dice", "confidence")
        assert (REFERENCES[reference].note in text) == changed
        assert ("not taken against the consensus" in text) == changed
        assert text.startswith(DEFECTS.get(str(metric), ""))
    assert (told.drop(["dice", "confidence"]) == plain.drop(["dice", "confidence"])).all()
    assert (told.tolist() == plain.tolist()) != other


def test_the_studys_tests_are_those_of_its_table():
    published = read_published_scores(as_csv(wide_table(seed=1)))
    found = published_tests(published, load_study("phantom").statistics)
    assert list(found["metric"].unique()) == ["dice", "ece"]
    alone = compare_families(published.scores, "ece", "less")
    assert list(found[found["metric"] == "ece"]["U"]) == list(alone["U"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "No columns|no column|empty"),
        ("a,b\n1,2\n", "patient"),
        ("Patient_ID,b\n1,2\n", "ct or predictor"),
        ("Patient_ID,CT,remark\n1,ensemble_all,2\n", "none of its columns is a metric"),
    ],
)
def test_what_is_no_such_table_is_refused(text, told):
    with pytest.raises(StatisticsError, match=told):
        read_published_scores(io.StringIO(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StatisticsError, match=r"nowhere\.csv"):
        read_published_scores(tmp_path / "nowhere.csv")
