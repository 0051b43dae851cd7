"""Claims proved here.

- Annotators stand in figures and tables by the study's names and in its order, also where one is called by a number.
- Panels of many organs stand in rows on one scale: no two titles and no two names of families overlap, on paper and on screen.
- Many organs' volumes are several figures that fit on a page, and every organ is in one of them.
- Each of 64 organs and 63 annotators has its own colour; those of 14 organs are told apart, also with colour blindness.
- Of many organs, a few reasons are said and the others are named.
- An organ that every predictor misses, and one without a reference, are named on the first screen; where nothing is finite,
  a sentence stands for the figure, and distances that one organ makes infinite are drawn by organ.
- Of one patient, organ, model or annotator, sentences are in the singular.
"""

import itertools

import numpy as np
import pandas as pd
import pytest

from curvas_assets.report import build_report, paper, screen
from curvas_assets.report.figures import distribution_by_family, volume_intervals_chart, volume_intervals_charts
from curvas_assets.report.style import ANNOTATOR_COLOURS, ORGAN_COLOURS
from curvas_assets.report.words import Words
from curvas_assets.statistics import in_cm3, shown_scores
from curvas_assets.study import Study
from curvas_assets_tests.report.studies import make_inputs, make_intervals, make_scores, make_study, said_in, written
from curvas_assets_tests.report.test_figures import BLINDNESS, simulated

EN, FR = Words("en"), Words("fr")
NAMES = ("zoe-anna", "boris", "1", "maria-del-carmen-rodriguez", "dr-yamamoto-kenichi")
"""Neither alphabetical nor in the order of any number."""
FOURTEEN = (
    *("spleen", "right-kidney", "left-kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *(
        "inferior-vena-cava",
        "portal-and-splenic-vein",
        "pancreas",
        "right-adrenal-gland",
        "left-adrenal-gland",
        "duodenum",
    ),
)


def named_study(organs: tuple[str, ...] = FOURTEEN, **more) -> Study:
    """A study with these annotators and organs; `organs` may be more than the study file allows."""
    study = make_study(seeds=1, **more)
    raw = {
        **study.model_dump(include={"name", "title", "patients", "sets", "seeds", "report", "statistics"}),
        "annotators": [{"name": name, "file": f"{name}.nii.gz"} for name in NAMES],
        "organs": {"a": 1},
    }
    return Study.model_validate(raw).model_copy(update={"organs": {o: i for i, o in enumerate(organs, start=1)}})


STUDY = named_study(patients=9)
SCORES = shown_scores(make_scores(STUDY))
INTERVALS = in_cm3(make_intervals(STUDY))
NOT_GIVEN: dict[str, object] = dict.fromkeys(
    (
        *("comparisons", "non_inferiority", "variance", "association", "failure", "out_of_distribution", "leaderboard"),
        *("reliability", "risk_coverage", "cost", "predictor_cost", "curves", "organs", "volume_intervals"),
    )
) | {"slices": ()}
"""What a report can do without, where a test is about the rest: drawing and testing it takes most of the time."""


def by_organ(words: Words = EN):
    return distribution_by_family(SCORES, "dice", words, facet="organ", direction="higher", order=STUDY.class_names)


def by_annotator(words: Words = EN):
    hd95 = SCORES[SCORES["metric"] == "hd95"]
    return distribution_by_family(hd95, "hd95", words, unit="mm", facet="annotator", order=NAMES)


def titles(chart) -> list[str]:
    return [panel.title.replace("\n", " ") for row in chart.rows for panel in row if panel.title]


def test_annotators_stand_by_name_in_the_studys_order():
    named = [f"annotator {name}" for name in NAMES]
    assert [title.replace("- ", "-") for title in titles(by_annotator())] == named
    chart = volume_intervals_chart(INTERVALS, SCORES, NAMES, EN)
    marks = [[mark for mark in panel.marks if getattr(mark, "name", "") in named] for (panel,) in chart.rows]
    for of_organ in marks:
        assert [mark.name for mark in of_organ] == named
        assert all(len(mark.y) == len(STUDY.scored_patients()) for mark in of_organ)
    first = SCORES.query("metric == 'volume_annotator' and organ == 'spleen' and predictor == 'ensemble_all'")
    for mark, name in zip(marks[0], NAMES, strict=True):
        assert sorted(mark.y) == pytest.approx(sorted(first.loc[first["annotator"] == name, "value"]))


@pytest.mark.parametrize("words", [EN, FR])
@pytest.mark.parametrize("make", [by_organ, by_annotator])
def test_nothing_that_is_written_around_panels_overlaps(make, words):
    chart = make(words)
    figure = paper.draw(chart)
    figure.canvas.draw()
    drawn = [axes for axes in figure.axes if axes.axison]
    texts = [axes.title for axes in drawn]
    texts += [text for axes in drawn for text in axes.get_xticklabels() if text.get_visible() and text.get_text()]
    texts = [text for text in texts if text.get_window_extent().width > 0]
    assert sum(text.get_text() != "" for text in texts) >= len(titles(chart)) + 3
    for one, two in itertools.combinations(texts, 2):
        assert not one.get_window_extent().overlaps(two.get_window_extent()), (one.get_text(), two.get_text())
    limits = {axes.get_ylim() for axes in drawn}
    assert len(limits) == 1
    on_screen = screen.draw(chart)
    for title in on_screen.layout.annotations:  # 13 px letters are 8 px wide; four panels share 1,100 px
        assert max(map(len, title.text.split("<br>"))) * 8 < 275
    axes = [axis for axis in on_screen.select_xaxes() if axis.visible is not False]
    assert len(axes) == len(titles(chart))
    assert sum(axis.showticklabels is not False for axis in axes) == min(len(axes), 4)


def test_every_organ_has_its_panel_and_every_value_its_point():
    chart = by_organ()
    assert titles(chart) == list(FOURTEEN)
    assert [len(row) for row in chart.rows] == [4, 4, 4, 4]
    points = sum(len(trace.y) for trace in screen.draw(chart).data)
    assert points == (SCORES["metric"] == "dice").sum()


def test_volumes_of_many_organs_are_several_figures_of_a_page():
    charts = volume_intervals_charts(INTERVALS, SCORES, NAMES, EN)
    assert [len(chart.rows) for chart in charts] == [5, 5, 4]
    assert [title for chart in charts for title in titles(chart)] == list(FOURTEEN)
    assert len({chart.name for chart in charts}) == 3
    assert charts[0].title.endswith("(1 of 3)")
    assert all(chart.size_in[1] <= 12 for chart in charts)
    few = INTERVALS[INTERVALS["organ"].isin(FOURTEEN[:6])]
    assert [chart.name for chart in volume_intervals_charts(few, SCORES, NAMES, EN)] == ["volumes_ensemble_all"]


def test_many_rows_leave_room_for_panels_on_the_screen():
    chart = volume_intervals_chart(INTERVALS, SCORES, NAMES, EN)
    heights = [axis.domain[1] - axis.domain[0] for axis in screen.draw(chart).select_yaxes()]
    assert len(heights) == 14
    assert sum(heights) > 0.8


def test_each_organ_and_annotator_has_its_own_colour():
    assert len(set(ORGAN_COLOURS)) == len(ORGAN_COLOURS) == 64
    assert len(set(ANNOTATOR_COLOURS)) == len(ANNOTATOR_COLOURS) >= 62
    for matrix in (np.eye(3).tolist(), *BLINDNESS):
        for one, two in itertools.combinations(ORGAN_COLOURS[:14], 2):
            assert np.abs(simulated(one, matrix) - simulated(two, matrix)).max() > 0.05, (one, two)


def test_of_many_organs_three_reasons_are_said_and_the_others_named():
    markdown = said_in(STUDY, "patients", "protocol", "volumes", "methods")
    (line,) = [
        one
        for one in markdown.splitlines()
        if one.startswith("| Expected calibration error") and "UKCHLL" in one and "agreement on" in one
    ][:1]
    assert line.count("the annotators' agreement on") == 3
    assert "likewise on 11 more organs: " in line
    assert "Of all 14 organs (ensemble_all), the intervals claim" in markdown
    assert all(f"annotator {name}" in markdown or name in markdown for name in NAMES)


def missed_and_undrawn(study: Study) -> pd.DataFrame:
    """Scores in which every predictor misses the pancreas, and nobody drew the liver."""
    scores = make_scores(study)
    pancreas, liver = scores["organ"] == "pancreas", scores["organ"] == "liver"
    scores.loc[pancreas & (scores["metric"] == "dice"), "value"] = 0.0
    scores.loc[pancreas & (scores["metric"] == "hd95"), ["value", "note"]] = [np.inf, "no voxel predicted"]
    undefined = liver & scores["metric"].isin(["dice", "hd95", "confidence"])
    scores.loc[undefined, ["value", "note"]] = [np.nan, "organ in neither of the two"]
    return scores


def test_missed_organs_and_those_without_a_reference_are_told_and_others_are_drawn():
    study = make_study(patients=4, seeds=1)
    report = build_report(
        make_inputs(study, scores=missed_and_undrawn(study), **NOT_GIVEN), image_formats=(), page=False
    )
    first = report.markdown.split("\n## ")[1]
    assert "Missed by every predictor on every patient (Dice 0): pancreas." in first
    assert "Without any reference to compare with on any patient (Dice undefined): liver." in first
    assert "hd95_by_family_organ" in report.figures
    assert "hd95_by_family_annotator" not in report.figures
    assert "No value to draw of liver." in report.markdown
    assert "– ± –" not in report.markdown
    sound = written(make_inputs(study, only=()), "question").markdown
    assert "Missed by every predictor" not in sound
    assert "Without any reference" not in sound


@pytest.mark.parametrize(
    ("language", "said", "unsaid"),
    [
        (
            "en",
            [
                "against the annotations of one expert? Organ: pancreas.",
                "Only 1 patient:",
                "1 patient × 2 predictors",
                "1 model (",
                "1 ensemble averages its members'",
                "= 1 training,",
            ],
            [
                "1 patients",
                "1 models",
                "1 ensembles",
                "1 trainings",
                "1 experts",
                "1 organs",
                "experts (1)",
                "is worst",
            ],
        ),
        (
            "fr",
            [
                "aux annotations d'un seul expert ? Organe : pancréas.",
                "Seulement 1 patient :",
                "1 patient × 2 prédicteurs",
                "1 modèle (",
                "1 ensemble moyenne",
                "= 1 entraînement,",
            ],
            [
                "1 patients",
                "1 modèles",
                "1 ensembles",
                "1 entraînements",
                "1 organes",
                "experts (1)",
                "organe le moins bon",
            ],
        ),
    ],
)
def test_of_one_organ_annotator_and_patient_sentences_are_in_the_singular(language, said, unsaid):
    study = make_study(organs=("pancreas",), annotators=1, seeds=1, patients=1, language=language)
    without = {name: value for name, value in NOT_GIVEN.items() if name != "comparisons"}
    markdown = build_report(make_inputs(study, **without), image_formats=(), page=False).markdown
    assert [one for one in said if one not in markdown] == []
    assert [one for one in unsaid if f" {one}" in markdown] == []


def test_a_number_brings_its_noun():
    assert [EN("n_patients", n=n) for n in (0, 1, 2)] == ["0 patients", "1 patient", "2 patients"]
    assert [FR("n_patients", n=n) for n in (0, 1, 2)] == ["0 patient", "1 patient", "2 patients"]
