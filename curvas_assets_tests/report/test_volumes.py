"""Claims proved here.

- The section says what few validation patients allow, and that nobody claims more; with enough of them, what is claimed.
- Margins and the observed coverage are those of the statistics, in cm³ and per cent, with the exact interval and the beta law's.
- Groups that are covered less often than exchangeability allows are named; without groups, and without intervals, a sentence
  stands there.
- A calibrated predictor's intervals claim nothing on the page: no sentence gives them a level, beside others or alone, and nothing is
  said of groups that were not tested.
- The figure names every test patient along its axis, on the screen and on paper, and every annotator's volume its patient.
- Volumes of organs stand in no table of means.
"""

import re

import numpy as np
import pandas as pd
import pytest

from curvas_assets.report import ReportInputs, paper, screen
from curvas_assets.report.chart import Bars, Points
from curvas_assets.report.figures import volume_intervals_chart
from curvas_assets.report.words import Words
from curvas_assets.statistics import in_cm3, observed_coverage, shown_scores
from curvas_assets_tests.report.studies import make_intervals, make_scores, make_study, written

STUDY = make_study(patients=8)
SCORES = make_scores(STUDY)
SOME = SCORES[SCORES["metric"].isin(["dice", "volume", "volume_annotator"])]


def section(intervals: pd.DataFrame | None, *, language: str = "en") -> str:
    study = STUDY.model_copy(update={"report": STUDY.report.model_copy(update={"language": language})})
    page = written(ReportInputs(study, SOME, volume_intervals=intervals), "volumes").markdown
    return page.split(f"\n## {Words(language)('volumes')}\n")[1]


def test_few_patients_give_at_most_n_of_n_plus_one_and_the_page_says_so():
    few = section(make_intervals(STUDY))
    assert "the intervals claim 83.3\u00a0%. 5 patients give at most 5/6 (83.3\u00a0%); 90\u00a0% was asked for" in few
    assert "and no interval claims it" in few
    assert "annoncent 83,3\u00a0%. 5 patients donnent au plus 5/6" in section(make_intervals(STUDY), language="fr")
    enough = section(make_intervals(STUDY, fitted=19))
    assert (
        "the intervals claim 90\u00a0%. The 90\u00a0% that was asked for; 19 patients would give up to 19/20" in enough
    )
    assert "at most" not in enough


def test_the_table_says_what_was_observed_and_what_to_expect():
    intervals = make_intervals(STUDY)
    shown = [line for line in section(intervals).splitlines() if line.startswith("| liver | mean of the annotators |")]
    cells = [cell.strip() for cell in shown[0].split("|")[1:-1]]
    coverage = observed_coverage(intervals)
    row = coverage[(coverage["organ"] == "liver") & (coverage["target"] == "mean") & (coverage["group"] == "")].iloc[0]
    w = Words("en")
    between = [
        w("interval", low=w.percent(row[f"{name}_low"]), high=w.percent(row[f"{name}_high"]))
        for name in ("observed", "expected")
    ]
    assert cells[2:] == [
        *("5", w.number(row["margin"] / 1000), "83.3\u00a0%", "8"),
        f"{w.percent(row['observed'])} {between[0]}",
        *(between[1], w.p_value(row["p"])),
    ]


def test_groups_that_are_covered_too_rarely_are_named():
    intervals = make_intervals(STUDY, fitted=19)
    missed = intervals.assign(covered=np.where(intervals["group"] == "B", 0.0, 1.0))
    told = section(missed)
    assert (
        "(p below 0.05, not corrected for how many places are looked at): pancreas, B (ensemble_all); kidney, B" in told
    )
    assert ", A (" not in told
    assert "In no group are fewer patients inside" in section(intervals.assign(covered=1.0))
    for only in ("", "A"):
        assert "The test patients are of one group, or of none that is known" in section(intervals.assign(group=only))


@pytest.mark.parametrize("intervals", [None, make_intervals(STUDY).iloc[:0]])
def test_without_intervals_a_sentence_stands_there(intervals):
    assert (
        section(intervals)
        .strip()
        .startswith("*There are no intervals for organ volumes: they need validation patients")
    )


def test_a_calibrated_predictor_claims_nothing_on_the_page():
    told = section(make_intervals(STUDY, in_sample=["ensemble_all"]))
    assert "calibrated on the same validation patients, whose errors are therefore too small" in told
    row = next(line for line in told.splitlines() if line.startswith("| liver | mean of the annotators |"))
    assert [cell.strip() for cell in row.split("|")[5:6]] == ["–"]
    assert "calibrated on the same" not in section(make_intervals(STUDY))


SENTENCES = {
    "en": ("the intervals claim", "The claim holds for patients like", "In no group", "No interval claims a level"),
    "fr": (
        "les intervalles annoncent",
        "Ce qui est annoncé vaut",
        "Dans aucun groupe",
        "Aucun intervalle n'annonce de niveau",
    ),
}


@pytest.mark.parametrize("language", ["en", "fr"])
def test_where_nothing_is_claimed_no_level_and_no_test_is_told(language):
    claims, assumption, tested, untested = SENTENCES[language]
    alone = make_intervals(STUDY, fitted=3, level=0.75, in_sample=["ensemble_all"])
    told = section(alone, language=language)
    assert (claims in told, assumption in told, tested in told, untested in told) == (False, False, False, True)
    assert "75" not in told.split("###")[0]
    claimed = section(make_intervals(STUDY, fitted=3, level=0.75).assign(covered=1.0), language=language)
    assert (claims in claimed, assumption in claimed) == (True, True)
    assert (tested in claimed, untested in claimed) == (True, False)


@pytest.mark.parametrize("language", ["en", "fr"])
def test_a_level_is_told_of_the_predictors_that_claim_it_alone(language):
    claiming = make_intervals(STUDY, fitted=3, level=0.75)
    models = [str(model) for model in STUDY.models[:3]]
    same = claiming.assign(predictor=models[0])
    liver = claiming[claiming["organ"] == "liver"].assign(predictor=models[1])
    more = make_intervals(STUDY, fitted=5, level=0.75).assign(predictor=models[2])
    silent = make_intervals(STUDY, fitted=3, level=0.75, in_sample=["ensemble_all"])
    silent = silent.assign(predictor="isotonic_ensemble_all")
    table = pd.concat([silent, claiming, same, liver, more], ignore_index=True)
    head = section(table, language=language).split("###")[0]
    lines = [line for line in head.splitlines() if SENTENCES[language][0] in line]
    named = [re.findall(r"\((.+?)\)", line)[0] for line in lines]
    assert named == [f"ensemble_all, {models[0]}", models[1], models[2]]
    w = Words(language)
    organs = [", ".join(map(w.organ, names)) for names in (STUDY.class_names[1:], ["liver"], STUDY.class_names[1:])]
    assert [line.split(" (")[0].partition(" ")[2] for line in lines] == organs  # "Of" them, or "Pour"
    assert "isotonic_ensemble_all" not in head
    assert ["3/4" in line or "3 patients" in line for line in lines] == [True, True, False]


def test_the_figure_names_every_patient():
    intervals = in_cm3(make_intervals(STUDY))
    chart = volume_intervals_chart(intervals, shown_scores(SOME), STUDY.annotator_names, Words("en"))
    patients = sorted(STUDY.sets["test"])
    drawn = screen.draw(chart)
    assert list(drawn.get_subplot(3, 1).xaxis.ticktext) == patients
    assert [label.get_text() for label in paper.draw(chart).axes[2].get_xticklabels()] == patients
    for (panel,), organ in zip(chart.rows, ("pancreas", "kidney", "liver"), strict=True):
        own = intervals[(intervals["organ"] == organ) & (intervals["target"] == "mean")]
        (bars,) = (mark for mark in panel.marks if isinstance(mark, Bars))
        np.testing.assert_allclose(bars.base, own["lower"])
        np.testing.assert_allclose(bars.base + bars.height, own["upper"])
        points = [mark for mark in panel.marks if isinstance(mark, Points)]
        assert [mark.name for mark in points] == ["predicted volume", *(f"annotator anno{n}" for n in (1, 2, 3))]
        for mark in points:
            assert [label.split("<br>")[0] for label in mark.labels] == list(own["patient"])
            assert [patients[round(x)] for x in mark.x] == list(own["patient"])
        of_first = SOME[
            (SOME["metric"] == "volume_annotator") & (SOME["annotator"] == "anno1") & (SOME["organ"] == organ)
        ]
        of_first = of_first[of_first["predictor"] == "ensemble_all"]
        np.testing.assert_allclose(points[1].y, of_first["value"] / 1000)


def test_sizes_stand_in_no_table_of_means():
    means = written(ReportInputs(STUDY, SOME), "results").markdown.split("### Means per predictor")[1]
    assert "Dice" in means
    assert "olume" not in means


def test_an_annotator_who_did_not_draw_a_patient_has_no_point():
    hit = (SOME["metric"] == "volume_annotator") & (SOME["annotator"] == "anno2") & (SOME["patient"] == "UKCHLL003")
    scores = shown_scores(SOME.assign(value=SOME["value"].mask(hit)))
    chart = volume_intervals_chart(in_cm3(make_intervals(STUDY)), scores, STUDY.annotator_names, Words("en"))
    second = [m for m in chart.rows[0][0].marks if isinstance(m, Points)][2]
    assert len(second.labels) == 7
    assert not [label for label in second.labels if "UKCHLL003" in label]


def test_several_predictors_have_a_figure_each():
    one = make_intervals(STUDY)
    both = pd.concat([one, one.assign(predictor=str(STUDY.models[0]))], ignore_index=True)
    part = written(ReportInputs(STUDY, SOME, volume_intervals=both), "volumes")
    wanted = {"volumes_ensemble_all", f"volumes_{STUDY.models[0]}"}
    assert wanted <= set(part.charts)
