"""Claims proved here.

- Every value is drawn at the place of its patient, is named when pointed at, and stands above its name on paper; so many values
  that they cannot be drawn become one point per family and patient. Families are listed in their own order.
- Outliers have a ring where they stand, are listed with every predictor that they are outliers of, and each has a reason that is in
  the data: the organ, a smallest or absent organ, low agreement, the group, doubts, notes; none is made up.
- With few patients nobody is called an outlier, and the worst case of each measure is told all the same.
- Groups: means by hand, the group that models trained on first and called so, none called so if the study does not say.
- Every section works with one patient, without ensembles, with nothing but NaN, and under cross-validation.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from curvas_assets.report import paper, patient_figures, screen
from curvas_assets.report.chart import Distribution, Points
from curvas_assets.report.facts import gather
from curvas_assets.report.inputs import ReportInputs
from curvas_assets.report.patient_figures import values_by_group, values_by_patient
from curvas_assets.report.reasons import reasons_for
from curvas_assets.report.sections import patients as section
from curvas_assets.report.style import FAMILIES
from curvas_assets.report.words import Words
from curvas_assets.statistics import reduce_scores
from curvas_assets.statistics.outliers import find_outliers
from curvas_assets_tests.report.studies import every_family, make_scores, make_study, written

EN = Words("en")
SIDES = {"dice": "higher", "ece": "lower"}
GONE = "UKCHLL005"


def scores_of(study, *metrics: str) -> pd.DataFrame:
    scores = make_scores(study)
    return scores[scores["metric"].isin(metrics or ("dice", "ece", "agreement_dice"))].reset_index(drop=True)


def with_outlier(study, *, predictors=None) -> pd.DataFrame:
    """Dice of one patient's pancreas far below all others."""
    scores = scores_of(study)
    hit = (scores["patient"] == GONE) & (scores["metric"] == "dice") & (scores["organ"] == "pancreas")
    if predictors is not None:
        hit &= scores["predictor"].isin(predictors)
    scores.loc[hit, "value"] = 0.05
    return scores


def drawn(study, scores: pd.DataFrame):
    reduced = reduce_scores(scores)
    patients = sorted(study.scored_patients())
    outliers = find_outliers(reduced, ["dice", "ece"], SIDES)
    return values_by_patient(reduced, ["dice", "ece"], patients, outliers, EN, units={}, directions=SIDES), patients


def test_every_point_stands_above_the_name_of_its_patient_and_says_it():
    study = every_family(patients=9)
    chart, patients = drawn(study, with_outlier(study))
    points = [mark for (panel,) in chart.rows for mark in panel.marks if isinstance(mark, Points)]
    assert sum(len(mark.x) for mark in points if mark.marker != "ring") == 2 * 9 * len(study.predictors)
    for mark in points:
        for x, label in zip(mark.x, mark.labels, strict=True):
            assert abs(x - patients.index(label.split("<br>")[0])) < 0.5
    figure = screen.draw(chart)
    assert {name for trace in figure.data for name in (text.split("<br>")[0] for text in trace.hovertext)} == set(
        patients
    )
    assert list(figure.layout.xaxis2.ticktext) == patients
    assert figure.layout.xaxis2.range[0] < figure.layout.xaxis2.range[1]  # the first on the left, as on paper
    printed = paper.draw(chart).axes
    assert [text.get_text() for text in printed[-1].get_xticklabels()] == patients
    families = {mark.name: (mark.colour, mark.marker) for mark in points if mark.marker != "ring"}
    assert len(set(families.values())) == len(families) == len(study.families)
    # Families are listed in the study's order, although those of many predictors are drawn first.
    order = [EN.family(family) for family in FAMILIES if family in study.families]
    assert [mark.name for mark in chart.rows[0][0].marks if mark.name in families] != order
    ranked = sorted({(t.legendrank, t.name) for t in figure.data if t.legendrank is not None})
    assert [name for _, name in ranked] == order
    listed = [text.get_text() for text in paper.draw(chart).legends[0].get_texts()]
    assert [name for name in listed if name in order] == order


def test_an_outlier_has_a_ring_where_it_stands():
    study = make_study(patients=9)
    chart, _ = drawn(study, with_outlier(study))
    rings = [
        mark for (panel,) in chart.rows for mark in panel.marks if isinstance(mark, Points) and mark.marker == "ring"
    ]
    dice = rings[0]
    whose = [label.split("<br>")[:2] for label in dice.labels]
    assert [GONE, "ensemble_all"] in whose
    at = whose.index([GONE, "ensemble_all"])
    family = next(m for m in chart.rows[0][0].marks if m.name == "general ensemble")
    place = list(family.labels).index(f"{GONE}<br>ensemble_all")
    assert (dice.x[at], dice.y[at]) == (family.x[place], family.y[place])
    assert paper.image(chart).startswith(b"\x89PNG")


def test_too_many_values_become_one_point_per_family_and_patient(monkeypatch):
    monkeypatch.setattr(patient_figures, "MOST_POINTS", 100)
    study = make_study(patients=9)
    chart, _ = drawn(study, scores_of(study))
    points = [mark for (panel,) in chart.rows for mark in panel.marks if isinstance(mark, Points)]
    assert sum(len(mark.x) for mark in points) == 2 * 9 * 3
    assert "individual models: mean of 9" in points[0].labels[0]
    assert "the mean of its predictors" in chart.caption


def test_undefined_and_infinite_values_are_counted_and_not_drawn():
    study = make_study(patients=9)
    scores = scores_of(study)
    ece = scores.index[scores["metric"] == "ece"]
    whole = scores["annotator"].eq("mean") & scores["metric"].eq("ece")
    scores.loc[scores.index[whole][0], "value"] = np.nan
    scores.loc[scores.index[whole][1], "value"] = np.inf
    assert len(ece)
    chart, _ = drawn(study, scores)
    assert "1 undefined, 1 infinite" in chart.caption


@pytest.fixture(scope="module")
def outlying():
    study = every_family(patients=9)
    ids = study.scored_patients()
    volumes = [
        (patient, organ, annotator, 50.0 + index)
        for index, patient in enumerate(ids)
        for organ in study.class_names[1:]
        for annotator in study.annotator_names
    ]
    anatomy = pd.DataFrame(volumes, columns=["patient", "organ", "annotator", "volume_ml"])
    small = (anatomy["patient"] == GONE) & (anatomy["organ"] == "pancreas")
    anatomy.loc[small, "volume_ml"] = 3.0
    anatomy.loc[
        (anatomy["patient"] == GONE) & (anatomy["organ"] == "liver") & (anatomy["annotator"] == "anno2"), "volume_ml"
    ] = 0.0
    scores = with_outlier(study)
    low = (scores["patient"] == GONE) & (scores["organ"] == "pancreas") & (scores["metric"] == "agreement_dice")
    scores.loc[low, "value"] = 0.4
    noted = (scores["patient"] == GONE) & (scores["organ"] == "pancreas") & (scores["metric"] == "dice")
    scores.loc[noted, "note"] = "no voxel predicted"
    cohort = pd.DataFrame(
        {"patient": ids, "set": "test", "doubts": ["no voxel is negative" * (one == GONE) for one in ids]}
    )
    return ReportInputs(study, scores, cohort=cohort, anatomy=anatomy)


def test_reasons_are_those_that_the_data_show(outlying):
    facts = gather(outlying)
    told = "; ".join(reasons_for(facts, GONE, "dice", "ensemble_all"))
    for reason in (
        "pancreas is worst: 0.0500",
        "smallest pancreas of 9 patients: 3.00 ml",
        "liver not drawn by anno2 (of 3 annotators)",
        "agreement on pancreas is among the lowest: Dice 0.400",
        "no voxel predicted",
        "no voxel is negative",
    ):
        assert reason in told
    other = "UKCHLL006"  # of the group B, and large organs
    reasons = "; ".join(reasons_for(facts, other, "dice", "ensemble_all"))
    assert "group B, while the models trained on group A" in reasons
    assert "smallest" not in reasons
    assert "not drawn" not in reasons
    bare = ReportInputs(make_study(patients=9), scores_of(make_study(patients=9), "ece"))
    assert reasons_for(gather(bare), GONE, "ece", "ensemble_all") == []


def test_the_intakes_ledger_tells_absent_organs_without_the_anatomy(outlying):
    ledger = pd.DataFrame(
        [
            (
                GONE,
                "",
                "",
                "liver",
                "anno2",
                "the annotation of anno2 has no liver: taken as absent, which counts in training and scores",
            )
        ],
        columns=["patient", "predictor", "metric", "organ", "annotator", "reason"],
    )
    facts = gather(dataclasses.replace(outlying, anatomy=None, exclusions=ledger))
    assert any("has no liver" in reason for reason in reasons_for(facts, GONE, "dice", "ensemble_all"))


def rows_of(inputs: ReportInputs, heading: str) -> list[dict[str, str]]:
    """The first table below a heading, as rows by column."""
    blocks = section.write(gather(inputs))
    at = next(i for i, b in enumerate(blocks) if b.kind == "heading" and b.text == heading)
    table = next(b.table for b in blocks[at:] if b.kind == "table")
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_each_outlier_is_listed_with_its_predictors_and_reasons(outlying):
    outliers = find_outliers(
        outlying.scores, list(outlying.study.statistics.primary.values()), gather(outlying).directions
    )
    rows = rows_of(outlying, "Outliers")
    assert {(one["patient"], one["metric"]) for one in rows} == {
        (one.patient, EN.metric(str(one.metric))) for one in outliers.itertuples()
    }
    assert all(one["what can be seen"] for one in rows)
    first = rows[0]
    assert (first["patient"], first["metric"], first["outlier of predictors"]) == (GONE, "Dice", "all 26")
    assert "smallest pancreas" in first["what can be seen"]
    alone = dataclasses.replace(outlying, scores=with_outlier(outlying.study, predictors=["anno1_init112233_fold0"]))
    mine = next(one for one in rows_of(alone, "Outliers") if one["patient"] == GONE and one["metric"] == "Dice")
    assert mine["outlier of predictors"] == "1 of 26: anno1_init112233_fold0"


def test_with_few_patients_nobody_is_an_outlier_and_the_worst_case_is_told():
    study = make_study(patients=5)
    inputs = ReportInputs(study, with_outlier(study))
    markdown = written(inputs, "patients").markdown
    assert "With 5 patients nobody is called an outlier; it takes 8" in markdown
    worst = rows_of(inputs, "Worst cases")
    assert worst[0]["patient"] == GONE
    assert "pancreas is worst" in worst[0]["what can be seen"]


def test_groups_by_hand(outlying):
    rows = {one["group"]: one for one in rows_of(outlying, "Groups of patients")}
    assert list(rows) == ["A", "B"]
    assert [one["distribution"] for one in rows.values()] == ["in distribution", "out of distribution"]
    reduced = reduce_scores(outlying.scores)
    own = reduced[(reduced["metric"] == "dice") & (reduced["predictor"] == "ensemble_all") & (reduced["group"] == "B")]
    assert float(rows["B"]["Dice, ensemble_all"]) == pytest.approx(own["value"].mean(), abs=6e-4)
    assert rows["B"]["patients"] == str(own["patient"].nunique())
    unknown = outlying.study.model_copy(update={"in_distribution_group": None})
    page = written(dataclasses.replace(outlying, study=unknown), "patients").markdown
    assert "none is called in or out of distribution" in page
    assert "| out of distribution |" not in page


def test_points_of_groups_name_their_patients():
    study = make_study(patients=9)
    reduced = reduce_scores(scores_of(study))
    chart = values_by_group(reduced, ["dice"], "ensemble_all", EN, units={}, directions=SIDES, in_distribution="A")
    marks = [mark for mark in chart.rows[0][0].marks if isinstance(mark, Distribution)]
    assert [mark.place for mark in marks] == ["A", "B"]
    assert sorted(label for mark in marks for label in mark.labels) == study.scored_patients()
    written = {text.get_text() for text in paper.draw(chart).axes[0].texts}
    assert written == set(study.scored_patients())


@pytest.mark.parametrize("kind", ["one patient", "no ensemble", "nan", "cross-validated", "no group", "one model"])
def test_every_shape_of_study_has_the_section(kind):
    patients = {"one patient": 1}.get(kind, 9)
    more = {}
    if kind == "cross-validated":
        more = {"sets": {"train": [str(one) for one in range(1, 11)]}, "folds": [0, 1, 2, 3, 4]}
    if kind == "one model":
        more = {"annotators": 1, "seeds": 1}
    study = make_study(**{"patients": patients, **more})
    scores = scores_of(study)
    if kind == "no ensemble":
        scores = scores[scores["family"] == "individual"]
    if kind == "nan":
        scores["value"] = np.nan
    if kind == "no group":
        scores["group"] = ""
    part = written(ReportInputs(study, scores), "patients")
    told = part.markdown.split("\n## Patients")[1]
    if kind == "one patient":
        assert all(paper.image(chart).startswith(b"\x89PNG") for chart in part.charts.values())
    assert ("No primary metric has a value" in told) == (kind == "nan")
    assert ("values_by_patient" in part.charts) == (kind != "nan")
    assert ("The patients belong to no groups" in told) == (kind == "no group")
    assert "nan" not in told.lower().replace("undefined (nan)", "")
