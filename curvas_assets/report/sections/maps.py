"""Pictures of patients: annotators' contours, uncertainty maps, organs in three dimensions."""

from curvas_assets.report.blocks import Absent, Block, FigureBlock
from curvas_assets.report.facts import Facts
from curvas_assets.report.pictures import annotators_on_slice, organs_in_3d, uncertainty_on_slice


def write(facts: Facts) -> list[Block]:
    """Every slice that was given, and the organs."""
    w, inputs, class_names = facts.words, facts.inputs, facts.class_names
    charts = []
    for view in inputs.slices:
        if len(view.annotations):
            charts.append(annotators_on_slice(view, facts.study.annotator_names, w))
        if view.has_maps:
            charts.append(uncertainty_on_slice(view, class_names, w))
    if inputs.organs is not None:
        charts.append(organs_in_3d(inputs.organs, class_names, w))
    return [FigureBlock(chart) for chart in charts] or [Absent(w("no_maps"))]
