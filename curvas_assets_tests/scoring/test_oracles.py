"""Claims proved here.

- Every registered metric has an oracle, an independent implementation, and agrees with it on three ensembles: of a typical
  patient, of one without some organs, and of an overconfident network with ties. Each has a finite value in one of them.
- So it does with 14 organs, of which all or some are scored; the stored volume of 64 organs keeps its bounds and scores.
- On reference cases of other people's making every value of an array agrees, and those of the volume that is stored of it
  agree within the format's bounds. These cases are not part of this project: `CURVAS_ORACLES` names their folder, and without
  it their tests are skipped.
"""

import io
import json
import math
import os
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from curvas_assets.scoring import METRICS, score
from curvas_assets.storage import read_softmax, write_softmax
from curvas_assets_tests.scoring import oracles
from curvas_assets_tests.scoring.oracles import CASES, ORACLES, TOLERANCES
from curvas_assets_tests.scoring.tables import value_of

FOLDER = os.environ.get("CURVAS_ORACLES")
ORGANS = {"panc": 1, "kidn": 2, "livr": 3}
ROUNDED = 1e-5
EXACT = 1e-9
RANKED = 1e-6
BOUNDS = {"aurc": 5e-3, "eaurc": 5e-3, "augrc": 5e-3, "nll": 5e-3, "predictive_entropy": 2e-3}
"""Of a stored volume, relative; areas under the ROC curve 5e-4 absolute."""


@cache
def _case(name: str) -> oracles.Case:
    return CASES[name]()


@cache
def _scores(name: str) -> pd.DataFrame:
    case = _case(name)
    given = (case.mean, case.annotations, oracles.SPACING_MM)
    table = score(*given, organs=oracles.ORGANS, members=case.members)
    vessels = {"tumour": oracles.TUMOUR, "vessels": oracles.VESSELS}
    others = score(*given, organs=oracles.ORGANS, reference="thresholds", **vessels)
    table = pd.concat([table, others[[METRICS[metric].only != "" for metric in others["metric"]]]])
    return table[table["annotator"] != "mean"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", CASES)
def test_every_metric_agrees_with_its_oracle(case, metric):
    rows = _scores(case).query("metric == @metric")
    found = {(row.organ, row.annotator): row.value for row in rows.itertuples()}
    assert found == pytest.approx(ORACLES[metric](_case(case)), abs=TOLERANCES.get(metric, 1e-6), rel=1e-6, nan_ok=True)


MANY = {**oracles.ORGANS, **{f"organ{c}": c for c in range(4, 15)}}


@pytest.mark.parametrize("scored", [tuple(MANY), ("kidney", "organ9", "organ14")], ids=["all", "some"])
def test_every_metric_of_fourteen_organs_agrees_with_its_oracle(monkeypatch, scored):
    monkeypatch.setattr(oracles, "CLASSES", 1 + len(MANY))
    monkeypatch.setattr(oracles, "THRESHOLD", 0.1 * math.log(1 + len(MANY)))
    monkeypatch.setattr(oracles, "ORGANS", {organ: MANY[organ] for organ in scored})
    case = CASES["typical"]()
    assert set(np.unique(case.annotations)) == {0, *MANY.values()}
    given = (case.mean, case.annotations, oracles.SPACING_MM)
    table = score(*given, organs=MANY, members=case.members, scored_organs=None if len(scored) == len(MANY) else scored)
    cuts = score(*given, organs=MANY, reference="thresholds", scored_organs=scored)
    table = pd.concat([table, cuts[cuts["metric"].str.startswith("dice_cut")]])
    assert set(table["organ"]) == {"", *scored}
    table = table[table["annotator"] != "mean"]
    for metric, rows in table.groupby("metric"):
        found = {(row.organ, row.annotator): row.value for row in rows.itertuples()}
        expected = ORACLES[str(metric)](case)
        assert found == pytest.approx(expected, abs=TOLERANCES.get(str(metric), 1e-6), rel=1e-6, nan_ok=True), metric
    assert set(table["metric"]) == {metric for metric in ORACLES if METRICS[metric].only != "vessels"}


def test_sixty_four_organs_are_stored_within_bounds_and_scored_alike():
    classes, shape = 65, (6, 20, 24)
    rng = np.random.default_rng(4)
    owner = rng.integers(0, classes, shape)
    logits = rng.choice([4.0, 12.0], (*shape, 1)) * np.eye(classes)[owner] + rng.standard_normal((*shape, classes))
    softmax = np.moveaxis(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True), -1, 0).astype(np.float32)
    middle = (
        np.floor(2**15 / (1.2 * classes)) / 2**15 + 0.49 * 2**-15
    )  # each organ is rounded down by nearly half a step
    softmax[1:, 0, 0] = middle
    softmax[0, 0, 0] = 1 - (classes - 1) * middle
    annotations = np.stack([owner, np.where(rng.random(shape) < 0.2, 0, owner)])
    file = io.BytesIO()
    write_softmax(file, softmax)
    volume = read_softmax(file)
    np.testing.assert_array_equal(volume.labels(0, shape[0]), softmax.argmax(axis=0))
    assert np.abs(volume.slab(0, shape[0]) - softmax).max() <= 3e-4
    organs = {f"organ{c}": c for c in range(1, classes)}
    exact, stored = (score(one, annotations, (5, 1, 1), organs=organs) for one in (softmax, volume))
    both = exact.merge(stored, on=["metric", "organ", "annotator"])
    assert len(both) == len(exact)
    assert set(exact["organ"]) == {"", *organs}
    apart = (both["value_x"] - both["value_y"]).abs()
    for metric, bound in {"dice": 0, "hausdorff": 0, "volume_annotator": 0, "auroc": 5e-4, "brier": 1e-4}.items():
        assert apart[both["metric"] == metric].max() <= bound, metric


def test_every_metric_has_an_oracle_and_a_finite_value():
    assert set(ORACLES) == set(METRICS)
    table = pd.concat(_scores(name) for name in CASES)
    assert set(table[np.isfinite(table["value"])]["metric"]) == set(METRICS)


@pytest.mark.skipif(not FOLDER, reason="CURVAS_ORACLES names no folder with reference cases")
@pytest.mark.parametrize("case", ["c1_typical", "c3_absent_all_false_positive", "c6_real_totalsegmentator"])
def test_reference_cases(case):
    data = np.load(Path(str(FOLDER), f"{case}.npz"))
    expected = json.loads(Path(str(FOLDER), "oracle.json").read_text())[case]
    direct = expected["direct"]
    spacing = tuple(float(s) for s in expected["spacing"])
    table = score(data["probabilities"], data["annotations"], spacing, organs=ORGANS, tolerance_mm=2.0)
    for organ in ORGANS:
        _same(value_of(table, "dice", organ), direct["consensus_dice_3d"][organ], absolute=EXACT)
        _same(
            value_of(table, "dice_published", organ),
            direct["consensus_dice_rowwise_reimplementation"][organ],
            absolute=1e-6,  # the reference sums in float32
        )
        _same(value_of(table, "confidence", organ), direct["confidence_float64"][organ], absolute=ROUNDED)
        _same(value_of(table, "crps", organ), direct["crps_gaussian_closed_form_mm3"][organ], relative=1e-6)
        for r in range(1, 4):
            _same(
                value_of(table, "dice_annotator", organ, r),
                direct["per_annotator_dice_3d"][organ][r - 1],
                absolute=EXACT,
            )
            auroc = expected["sklearn"]["auroc_organ_annotator"][organ][r - 1]["value"]
            _same(value_of(table, "auroc", organ, r), auroc, absolute=RANKED)
            surfaces = expected["hausdorff_mm"][organ][r - 1]
            _same(value_of(table, "hausdorff", organ, r), surfaces["monai"]["value"], absolute=1e-5)
            if np.isfinite(value_of(table, "hd95", organ, r)):  # MONAI says NaN where one is empty
                _same(value_of(table, "hd95", organ, r), surfaces["monai_95"]["value"], absolute=1e-5)
            _same(value_of(table, "nsd", organ, r), surfaces["google_surface_dice_2mm"]["value"], absolute=EXACT)
    for r in range(1, 4):
        ece = direct["ece50_float64_no_softmax_bg_as_1_minus_fg"][r - 1]
        _same(value_of(table, "ece", "", r), ece, absolute=ROUNDED)
        auroc = expected["sklearn"]["auroc_failure_detection"][r - 1]["value"]
        _same(value_of(table, "auroc_error", "", r), auroc, absolute=RANKED)
        ace = expected["values_official"]["calib20"][r - 1]["ace"]
        _same(value_of(table, "ace", "", r), ace, absolute=1e-3)  # its edges are shifted by 1e-8
    _same(value_of(table, "aurc", "", 1), direct["aurc_grouped_tie_invariant"], absolute=ROUNDED)
    correlation = expected["values_official"]["ncc_annotator_entropy_vs_predictive_entropy"]["value"]
    _same(value_of(table, "ncc"), correlation, absolute=ROUNDED)


@pytest.mark.skipif(not FOLDER, reason="CURVAS_ORACLES names no folder with reference cases")
@pytest.mark.parametrize("stored", [False, True])
def test_the_ranking_of_a_confident_network(stored):
    data = np.load(Path(str(FOLDER), "c7_trained.npz"))
    expected = json.loads(Path(str(FOLDER), "rank.json").read_text())["c7_trained"]
    softmax = data["probabilities"]
    if stored:
        file = io.BytesIO()
        write_softmax(file, softmax)
        softmax = read_softmax(file)
    organs = {"pancreas": 1, "kidney": 2, "liver": 3}
    table = score(softmax, data["annotations"], tuple(data["spacing"]), organs=organs)
    for name, value in expected.items():
        metric, _, r = name.rpartition("_") if name[-1].isdigit() else (name, "", "")
        organ = metric.removeprefix("auroc_") if metric.startswith("auroc_") and metric != "auroc_error" else ""
        found = value_of(table, "auroc" if organ else metric, organ, r)
        if not stored:
            _same(found, value, absolute=1e-12, relative=1e-6)
        else:
            _same(found, value, absolute=5e-4 if "auroc" in metric else 0, relative=BOUNDS.get(metric, 0))


@pytest.mark.skipif(not FOLDER, reason="CURVAS_ORACLES names no folder with reference cases")
@pytest.mark.parametrize("case", ["c1_typical", "c3_absent_all_false_positive", "c6_real_totalsegmentator"])
def test_what_is_stored_of_the_cases_keeps_its_scores(case):
    data = np.load(Path(str(FOLDER), f"{case}.npz"))
    file = io.BytesIO()
    write_softmax(file, data["probabilities"])
    volume = read_softmax(file)
    np.testing.assert_array_equal(volume.labels(0, volume.shape[1]), data["probabilities"].argmax(axis=0))
    exact, stored = (
        score(softmax, data["annotations"], tuple(data["spacing"]), organs=ORGANS)
        for softmax in (data["probabilities"], volume)
    )
    both = exact.merge(stored, on=["metric", "organ", "annotator"])
    apart = (both["value_x"] - both["value_y"]).abs()
    for metric, bound in BOUNDS.items():
        here = both["metric"] == metric
        assert (apart[here] <= bound * both["value_x"][here].abs() + 1e-12).all(), metric
    assert apart[both["metric"].isin(["auroc", "auroc_error"])].max() <= 5e-4
    assert apart[both["metric"] == "ece"].max() <= 1e-5


def _same(found: float, expected: object, *, absolute: float = 0.0, relative: float = 0.0) -> None:
    wanted = float(str(expected))
    if math.isnan(wanted):
        assert math.isnan(found)
    else:
        assert found == pytest.approx(wanted, abs=absolute, rel=relative)
