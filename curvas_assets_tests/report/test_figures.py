"""Claims proved here.

- Each figure is drawn for the screen and for print from the same data; print is PNG, SVG and PDF, byte for byte repeatable.
- Every axis names its quantity and its unit.
- Undefined and infinite values are not drawn but counted in the caption.
- Below eight points there is no density and no box, for the screen and for print: the points, larger, and their mean.
- Pooling reliability bins and averaging risk–coverage curves is right by hand.
- A slice of a channel that is no CT is shown between its own intensities, and called by its name.
- Dissensus, and surfaces in millimetres, are right by hand; surfaces keep their volume and stay below the triangles allowed.
- A forest shows each pair's mean, bound and verdict, and the margin on the worse side; shares of variance and foretold standard
  errors are drawn as they were computed.
- The palette is told apart under simulated colour blindness; every family of a study has its own colour, marker and dash.
- Of more than four families, distributions stand above each other and reliability is lines, with every family and every value.
- The worst point of each distribution has its patient's name on paper.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from curvas_assets.errors import ReportError
from curvas_assets.report import paper, screen
from curvas_assets.report.chart import Chart, Distribution, Picture, Scene
from curvas_assets.report.figures import (
    dice_against_entropy_chart,
    distribution_by_family,
    forest,
    pooled_reliability,
    precision_forecast,
    reliability,
    risk_coverage,
    risk_coverage_by_family,
    training_curves,
    variance_shares,
    volume_intervals_chart,
)
from curvas_assets.report.pictures import (
    SliceView,
    annotators_on_slice,
    dissensus,
    most_disputed_slice,
    organs_in_3d,
    uncertainty_on_slice,
)
from curvas_assets.report.style import FAMILIES, FAMILY_COLOURS, FAMILY_DASHES, FAMILY_MARKERS
from curvas_assets.report.surfaces import surface
from curvas_assets.report.words import Words
from curvas_assets.statistics import (
    in_cm3,
    non_inferiority,
    paired_scores,
    projected_precision,
    reduce_scores,
    shown_scores,
    variance_components,
)
from curvas_assets.study import Statistics
from curvas_assets_tests.report.studies import (
    every_family,
    make_bins,
    make_curves,
    make_intervals,
    make_organs,
    make_scores,
    make_slice,
    make_study,
    make_training,
)

STUDY = make_study(patients=3)
SCORES = reduce_scores(make_scores(STUDY))
EN = Words("en")
MARGINS = non_inferiority(make_scores(make_study(patients=8)), Statistics(draws=200))
NAMES = ["general vs annotator", "general vs individual", "annotator vs individual"]
COMPONENTS = variance_components(make_scores(STUDY), Statistics(draws=200))
PRECISION = projected_precision(COMPONENTS, Statistics(draws=200), annotators=[1, 3, np.inf], seeds=[1, 2, 3])


CHARTS: dict[str, Callable[[], Chart]] = {
    "distribution": lambda: distribution_by_family(SCORES, "ece", EN, direction="lower"),
    "faceted": lambda: distribution_by_family(make_scores(STUDY), "dice", EN, facet="organ", direction="higher"),
    "reliability": lambda: reliability(make_bins(STUDY), EN),
    "risk": lambda: risk_coverage(make_curves(STUDY), EN),
    "scatter": lambda: dice_against_entropy_chart(paired_scores(SCORES, "predictive_entropy", "dice"), EN),
    "volumes": lambda: volume_intervals_chart(
        in_cm3(make_intervals(STUDY)), shown_scores(make_scores(STUDY)), STUDY.annotator_names, EN
    ),
    "forest": lambda: forest(MARGINS, NAMES, EN),
    "variance": lambda: variance_shares(COMPONENTS, EN),
    "precision": lambda: precision_forecast(PRECISION, EN, {}),
    "training": lambda: training_curves(make_training(STUDY), EN),
    "annotators": lambda: annotators_on_slice(make_slice(STUDY), STUDY.annotator_names, EN),
    "uncertainty": lambda: uncertainty_on_slice(make_slice(STUDY), STUDY.class_names, EN),
    "organs": lambda: organs_in_3d(make_organs(STUDY), STUDY.class_names, EN),
}


@pytest.mark.parametrize("name", list(CHARTS))
def test_each_figure_is_drawn_for_screen_and_print(name):
    chart = CHARTS[name]()
    figure = screen.draw(chart)
    assert len(figure.data) > 0
    assert paper.image(chart, "png").startswith(b"\x89PNG")
    assert b"<svg" in paper.image(chart, "svg")[:600]
    assert paper.image(chart, "pdf").startswith(b"%PDF")
    assert chart.title
    assert chart.caption


@pytest.mark.parametrize("image_format", ["png", "svg", "pdf"])
def test_print_repeats_byte_for_byte(image_format):
    assert paper.image(CHARTS["faceted"](), image_format) == paper.image(CHARTS["faceted"](), image_format)


def unsaid(chart: Chart) -> list[str]:
    """Axes that do not name their quantity and unit, though no neighbour with the same axis does."""
    assert not isinstance(chart.rows, Scene)
    found = []
    for row, panels in enumerate(chart.rows):
        for column, panel in enumerate(panels):
            has_places = any(isinstance(mark, Distribution) for mark in panel.marks)  # families, written below each
            x_is_said = has_places or (chart.is_shared and row + 1 < len(chart.rows))
            y_is_said = bool(panel.y.places) or (column > 0 and (chart.is_shared or panel.is_picture))
            for side, axis, is_said in (("x", panel.x, x_is_said), ("y", panel.y, y_is_said)):
                if not (is_said or axis.title == EN("epoch") or re.fullmatch(r".+ \(.+\)", axis.title)):
                    found.append(f"{side} of row {row}, column {column}: {axis.title!r}")
    return found


@pytest.mark.parametrize("name", [name for name in CHARTS if name != "organs"])
def test_every_axis_names_its_quantity_and_unit_on_screen_and_paper(name):
    chart = CHARTS[name]()
    assert not isinstance(chart.rows, Scene)
    assert unsaid(chart) == []
    panels = [panel for row in chart.rows for panel in row]
    named = [(panel.x.title, panel.y.title) for panel in panels]
    figure = screen.draw(chart)
    places = itertools.product(range(1, 1 + len(chart.rows)), range(1, 1 + len(chart.rows[0])))
    drawn = [figure.get_subplot(*place) for place in places]
    assert [(one.xaxis.title.text or "", one.yaxis.title.text or "") for one in drawn] == named
    printed = paper.draw(chart).axes
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in printed[: len(panels)]] == named
    scales = [mark.scale.title for panel in panels for mark in panel.marks if isinstance(mark, Picture) and mark.scale]
    assert [axes.get_ylabel() for axes in printed[len(panels) :]] == scales == ["nats"] * len(scales)


def of_margins(**changes: object) -> dict[str, dict[str, np.ndarray]]:
    """What a forest shows: name → x and y of its points on the screen."""
    figure = screen.draw(forest(MARGINS.assign(**changes), NAMES, EN))
    return {trace.name: {"x": trace.x, "y": trace.y} for trace in figure.data if trace.mode == "markers"}


def test_a_forest_shows_each_pair_by_what_is_told_of_it():
    shown = of_margins(not_inferior=pd.array([True, False, pd.NA], "boolean"), bound=[-0.002, -0.02, np.nan])
    assert {name: list(points["y"]) for name, points in shown.items()} == {
        "not inferior": [0],
        "not shown": [1],
        "no bound": [2],
    }
    means = np.concatenate([points["x"] for points in shown.values()])
    np.testing.assert_array_equal(means, MARGINS["mean_difference"])
    assert set(of_margins(mean_difference=[0.1, np.nan, np.nan], not_inferior=pd.array([True] * 3, "boolean"))) == {
        "not inferior"
    }


@pytest.mark.parametrize(("direction", "at"), [("higher", -0.01), ("lower", 0.01)])
def test_the_margin_stands_on_the_worse_side_and_the_first_pair_on_top(direction, at):
    figure = screen.draw(forest(MARGINS, NAMES, EN, direction=direction))
    margin = next(trace for trace in figure.data if trace.name == "margin")
    assert list(margin.x) == [at, at]
    assert list(figure.layout.yaxis.ticktext) == NAMES
    assert list(figure.layout.yaxis.range) == [2.5, -0.5]
    (axes,) = paper.draw(forest(MARGINS, NAMES, EN, direction=direction)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    assert axes.get_ylim() == (2.5, -0.5)


def test_a_whisker_runs_from_the_mean_to_the_bound():
    figure = screen.draw(forest(MARGINS, NAMES, EN))
    ends = np.concatenate([trace.x for trace in figure.data if trace.line.width == 3]).reshape(-1, 3)
    assert sorted(ends[:, 1]) == sorted(MARGINS["bound"])
    assert set(ends[:, 0]) == set(MARGINS["mean_difference"])
    assert np.isnan(ends[:, 2]).all()


def test_shares_and_forecasts_are_drawn_as_they_were_computed():
    chart = variance_shares(COMPONENTS, EN)
    primary = ["Dice", "Expected calibration error", "Correlation of disagreement and uncertainty", "AURC"]
    assert [panel.title for panel in chart.rows[0]] == primary
    assert list(chart.rows[0][0].y.places)[:4] == ["patient", "annotator", "seed", "patient × annotator"]
    points = [trace for trace in screen.draw(chart).data if trace.mode == "markers"]
    np.testing.assert_array_equal(np.concatenate([p.x for p in points]), COMPONENTS["share"])
    forecast = precision_forecast(PRECISION, EN, {})
    lines = [trace for trace in screen.draw(forecast).data if trace.mode == "lines+markers" and trace.yaxis == "y"]
    dice = PRECISION[PRECISION["metric"] == "dice"]
    assert [trace.name for trace in lines] == ["annotators: 1", "annotators: 3", "annotators: without limit"]
    for line, (_, part) in zip(lines, dice.groupby("annotators"), strict=True):
        np.testing.assert_array_equal(line.y, part["standard_error"])
    assert len({(trace.line.color, trace.line.dash) for trace in lines}) == 3


def test_every_axis_in_three_dimensions_names_its_direction_and_unit():
    chart = CHARTS["organs"]()
    assert isinstance(chart.rows, Scene)
    assert all(re.fullmatch(r".+ \(mm\)", title) for title in chart.rows.titles)
    scene = screen.draw(chart).layout.scene
    assert (scene.xaxis.title.text, scene.yaxis.title.text, scene.zaxis.title.text) == chart.rows.titles
    axes = paper.draw(chart).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_zlabel()) == chart.rows.titles  # type: ignore[attr-defined]


def test_the_unit_is_the_metrics_own():
    figure = screen.draw(distribution_by_family(SCORES, "hd95", EN, unit="mm"))
    assert figure.layout.yaxis.title.text == "Hausdorff distance, 95th percentile (mm)"


def test_what_cannot_be_drawn_is_counted():
    table = SCORES[SCORES["metric"] == "hd95"].copy()
    table.iloc[0, table.columns.get_loc("value")] = np.nan
    table.iloc[[1, 2], table.columns.get_loc("value")] = np.inf
    chart = distribution_by_family(table, "hd95", EN, unit="mm")
    assert "1 undefined, 2 infinite" in chart.caption
    assert sum(len(trace.y) for trace in screen.draw(chart).data) == len(table) - 3
    assert paper.image(chart).startswith(b"\x89PNG")
    assert "Not drawn" not in distribution_by_family(SCORES, "hd95", EN).caption


def test_each_point_says_whose_it_is():
    trace = screen.draw(CHARTS["distribution"]()).data[0]
    assert trace.name == "general ensemble"
    assert list(trace.text) == [f"{p}<br>ensemble_all" for p in STUDY.sets["test"]]


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.1, 0.9]])
def test_few_or_equal_values_have_no_density_but_are_drawn(values):
    table = pd.DataFrame(
        {
            "patient": "p",
            "predictor": [f"m{i}" for i in range(len(values))],
            "family": "individual",
            "metric": "dice",
            "value": values,
        }
    )
    chart = distribution_by_family(table, "dice", EN)
    assert paper.image(chart).startswith(b"\x89PNG")
    assert len(screen.draw(chart).data) == 1


@pytest.mark.parametrize(("count", "shaped"), [(3, False), (7, False), (8, True)])
def test_a_shape_needs_eight_points(count, shaped):
    table = pd.DataFrame(
        {
            "patient": [f"p{i}" for i in range(count)],
            "predictor": "ensemble_all",
            "family": "general",
            "metric": "dice",
            "value": np.linspace(0.8, 0.9, count),
        }
    )
    chart = distribution_by_family(table, "dice", EN)
    (trace,) = screen.draw(chart).data
    assert (trace.box.visible, trace.line.color != "rgba(0,0,0,0)") == (shaped, shaped)
    assert trace.fillcolor.endswith(",0)") is not shaped
    assert (len(trace.y), trace.meanline.visible) == (count, True)
    assert ("box: median" in chart.caption) is shaped
    (axes,) = paper.draw(chart).axes
    assert bool(axes.patches) is shaped  # the box
    assert len(axes.collections[-1].get_offsets()) == count
    both = pd.concat([table, table.head(3).assign(family="annotator")])
    if shaped:
        assert "from 8 points on" in distribution_by_family(both, "dice", EN).caption


def test_bins_are_pooled_by_their_voxels():
    bins = pd.DataFrame(
        {
            "family": "general",
            "lower": [0.0, 0.5, 0.5, 0.0],
            "upper": [0.5, 1.0, 1.0, 0.5],
            "count": [0, 1, 3, 0],
            "accuracy": [np.nan, 1.0, 0.0, 7.0],
            "confidence": [np.nan, 0.6, 1.0, 7.0],
        }
    )
    pooled = pooled_reliability(bins)
    assert pooled["count"].tolist() == [0, 4]
    np.testing.assert_allclose(pooled["accuracy"], [np.nan, 0.25])
    np.testing.assert_allclose(pooled["confidence"], [np.nan, 0.9])
    assert pooled_reliability(bins.drop(columns="family"))["family"].unique().tolist() == [""]


def test_families_stand_in_the_studys_order():
    assert pooled_reliability(make_bins(STUDY))["family"].unique().tolist() == ["general", "annotator", "individual"]


def test_risk_curves_are_averaged_at_common_coverages():
    curves = pd.DataFrame(
        {
            "patient": ["a", "a", "b", "b"],
            "family": "general",
            "coverage": [0.0, 1.0, 1.0, 0.5],  # the second curve is flat below its first point, and unsorted
            "risk": [0.0, 1.0, 0.6, 0.2],
        }
    )
    means = risk_coverage_by_family(curves, points=5)
    np.testing.assert_allclose(means["coverage"], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(means["risk"], [0.1, (0.25 + 0.2) / 2, 0.35, (0.75 + 0.4) / 2, 0.8])
    assert means["n"].unique().tolist() == [2]
    with pytest.raises(ReportError, match="coverage"):
        risk_coverage_by_family(curves.drop(columns="coverage"))


def test_dissensus_is_where_not_all_agree():
    maps = np.array([[[0, 1, 2]], [[0, 1, 1]], [[0, 1, 2]]])
    assert dissensus(maps).tolist() == [[False, False, True]]
    assert not dissensus(maps[:1]).any()


def test_the_slice_shown_has_most_organs_then_most_dissensus():
    annotations = np.zeros((2, 4, 3, 3), np.uint8)
    annotations[:, 0] = 3  # one organ everywhere, agreed upon
    annotations[:, 1, 0, :2] = (1, 2)  # two organs, agreed upon
    annotations[:, 2, 0, :2] = (1, 2)
    annotations[1, 2, 1, 1] = 1  # two organs, and a dispute
    assert most_disputed_slice(annotations) == 2
    assert most_disputed_slice(annotations[:, :2]) == 1
    assert most_disputed_slice(np.zeros((1, 2, 3, 3))) == 0


def test_the_share_of_dissensus_is_told():
    annotations = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]]])
    view = SliceView("p", 0, np.zeros((1, 4)), annotations, (1, 1, 1))
    assert "(67 % of the voxels" in annotators_on_slice(view, ["a", "b"], EN).caption
    empty = SliceView("p", 0, np.zeros((1, 4)), np.zeros((2, 1, 4), int), (1, 1, 1))
    assert "(0 % of the voxels" in annotators_on_slice(empty, ["a", "b"], EN).caption
    assert paper.image(annotators_on_slice(empty, ["a", "b"], EN)).startswith(b"\x89PNG")


@pytest.mark.parametrize(("words", "ct"), [(EN, "on the CT"), (Words("fr"), "sur le scanner")])
def test_a_slice_of_another_channel_is_called_by_its_name_and_shown_between_its_intensities(words, ct):
    view = replace(make_slice(STUDY), image=make_slice(STUDY).image + 1000, channel="T2", window=(860.0, 1240.0))
    drawn, maps = annotators_on_slice(view, ["a"], words), uncertainty_on_slice(view, STUDY.class_names, words)
    assert "860" in drawn.caption
    assert "1240" in drawn.caption
    for chart in (drawn, maps):
        assert "T2" in chart.caption
        assert ct not in chart.caption
    assert ct in annotators_on_slice(make_slice(STUDY), ["a"], words).caption
    brighter = annotators_on_slice(replace(view, window=(0.0, 900.0)), ["a"], words)
    means = [chart.rows[0][0].marks[0].pixels.mean() for chart in (drawn, brighter)]
    assert means[0] < means[1]


def test_a_slice_without_maps_has_no_uncertainty_picture():
    view = make_slice(STUDY)
    bare = SliceView(view.patient, view.z, view.image, view.annotations, view.spacing_mm)
    assert not bare.has_maps
    with pytest.raises(ReportError, match="no segmentation or no entropy"):
        uncertainty_on_slice(bare, STUDY.class_names, EN)
    with pytest.raises(ReportError, match="shapes"):
        SliceView("p", 0, view.image[:-1], view.annotations, view.spacing_mm)


def enclosed_ml(points: np.ndarray, faces: np.ndarray) -> float:
    """Volume enclosed by triangles, by the divergence theorem, in the cube of the points' unit."""
    a, b, c = (points[faces[:, i]] for i in range(3))
    return float(abs(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6))


@pytest.mark.parametrize("max_faces", [2_000, 20_000])
def test_a_surface_keeps_its_place_and_volume(max_faces):
    z, y, x = np.mgrid[:40, :60, :60]
    spacing = (3.0, 2.0, 1.5)
    centre, radius = np.array([20, 30, 25]) * spacing, 30.0
    mask = sum((g * s - c) ** 2 for g, s, c in zip((z, y, x), spacing, centre, strict=True)) < radius**2
    points, faces = surface(mask, spacing, "LPS", max_faces=max_faces)
    assert 100 < len(faces) <= max_faces
    assert enclosed_ml(points, faces) == pytest.approx(mask.sum() * np.prod(spacing), rel=0.08)
    np.testing.assert_allclose(points.mean(axis=0), centre[::-1], atol=1.5)  # (left, posterior, superior)


def test_a_surface_is_mirrored_with_its_axes():
    mask = np.zeros((6, 8, 10), bool)
    mask[4, 1, 2] = True
    spacing = (1.0, 1.0, 1.0)
    left, posterior, superior = surface(mask, spacing, "LPS")[0].mean(axis=0)
    assert (left, posterior, superior) == (pytest.approx(2), pytest.approx(1), pytest.approx(4))
    mirrored = surface(mask, spacing, "RAI")[0].mean(axis=0)
    np.testing.assert_allclose(mirrored, [10 - 2, 8 - 1, 6 - 4])


def test_an_empty_organ_has_no_surface_and_an_empty_volume_is_drawn():
    points, faces = surface(np.zeros((3, 3, 3), bool), (1, 1, 1))
    assert (len(points), len(faces)) == (0, 0)


BLINDNESS = (
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],  # protan
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],  # deutan
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],  # tritan
)
"""Protan, deutan and tritan."""


def simulated(colour: str, matrix: list[list[float]]) -> np.ndarray:
    """A colour as seen with a colour blindness (Machado et al. 2009, severity 1), in linear light."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.clip(np.array(matrix) @ linear, 0, 1)


@pytest.mark.parametrize("matrix", BLINDNESS)
def test_families_are_told_apart_with_colour_blindness(matrix):
    for one, two in itertools.combinations(FAMILY_COLOURS.values(), 2):
        assert np.abs(simulated(one, matrix) - simulated(two, matrix)).max() > 0.1


def test_every_family_of_a_study_has_its_own_colour_marker_and_dash():
    assert every_family().families == FAMILIES
    for looks in (FAMILY_COLOURS, FAMILY_MARKERS, FAMILY_DASHES):
        assert list(looks) == list(FAMILIES)
        assert len(set(looks.values())) == len(FAMILIES)
    assert set(FAMILY_MARKERS.values()) <= set(paper.MARKERS)
    assert set(FAMILY_DASHES.values()) <= set(paper.DASHES)


def test_many_families_stand_above_each_other_and_none_is_lost():
    study = every_family(patients=2)
    scores = make_scores(study)
    chart = distribution_by_family(scores, "dice", EN, facet="organ", direction="higher")
    assert [len(row) for row in chart.rows] == [1, 1, 1]
    assert unsaid(chart) == []
    figure = screen.draw(chart)
    assert sum(len(trace.y) for trace in figure.data) == (scores["metric"] == "dice").sum()
    assert {trace.name for trace in figure.data} == {EN.family(family) for family in FAMILIES}
    assert paper.image(chart).startswith(b"\x89PNG")
    lines = reliability(make_bins(study), EN)
    assert unsaid(lines) == []
    named = {trace.name.split(",")[0] for trace in screen.draw(lines).data}
    assert named == {EN.family(family) for family in FAMILIES} | {"perfect calibration"}
    assert paper.image(lines).startswith(b"\x89PNG")
    curves = risk_coverage(make_curves(study, points=5), EN)
    assert {trace.name for trace in screen.draw(curves).data if trace.name} == {EN.family(f) for f in FAMILIES}


def test_the_worst_point_of_each_distribution_is_named_on_paper():
    chart = CHARTS["distribution"]()
    worst = (
        SCORES[(SCORES["metric"] == "ece") & (SCORES["family"] == "individual")]
        .sort_values("value")["patient"]
        .iloc[-1]
    )
    marks = {mark.name: mark for row in chart.rows for panel in row for mark in panel.marks}
    written = [text for text in marks["individual models"].texts if text]
    assert written == [worst]
    assert worst in {text.get_text() for text in paper.draw(chart).axes[0].texts}
