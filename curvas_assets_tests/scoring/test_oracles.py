"""Claims proved here.

- Every registered metric has an oracle, an independent implementation, and agrees with it on three ensembles: of a typical
  patient, of one without some organs, and of an overconfident network with ties. Each has a finite value in one of them.
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
