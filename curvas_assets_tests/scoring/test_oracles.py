"""Claim proved here: on reference cases of independent implementations every value agrees, within what 16 bits allow.

The cases are not part of this project: `CURVAS_ORACLES` names their folder, and without it the test is skipped.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from curvas_assets.scoring import score
from curvas_assets_tests.scoring.tables import value_of

FOLDER = os.environ.get("CURVAS_ORACLES")
ORGANS = {"panc": 1, "kidn": 2, "livr": 3}
ROUNDED = 1e-5
EXACT = 1e-9
TIES = 1e-4
"""Of rank metrics against float32: small probabilities become ties at 16 bits."""


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
            _same(value_of(table, "auroc", organ, r), auroc, absolute=TIES)
            surfaces = expected["hausdorff_mm"][organ][r - 1]
            _same(value_of(table, "hausdorff", organ, r), surfaces["monai"]["value"], absolute=1e-5)
            if np.isfinite(value_of(table, "hd95", organ, r)):  # MONAI says NaN where one is empty
                _same(value_of(table, "hd95", organ, r), surfaces["monai_95"]["value"], absolute=1e-5)
            _same(value_of(table, "nsd", organ, r), surfaces["google_surface_dice_2mm"]["value"], absolute=EXACT)
    for r in range(1, 4):
        ece = direct["ece50_float64_no_softmax_bg_as_1_minus_fg"][r - 1]
        _same(value_of(table, "ece", "", r), ece, absolute=ROUNDED)
        auroc = expected["sklearn"]["auroc_failure_detection"][r - 1]["value"]
        _same(
            value_of(table, "auroc_error", "", r), auroc, absolute=2e-3
        )  # nearly all confidences are nearly 1: many ties
        ace = expected["values_official"]["calib20"][r - 1]["ace"]
        _same(value_of(table, "ace", "", r), ace, absolute=1e-3)  # its edges are shifted by 1e-8
    _same(value_of(table, "aurc", "", 1), direct["aurc_grouped_tie_invariant"], absolute=ROUNDED)
    optimal = value_of(table, "aurc", "", 1) - value_of(table, "eaurc", "", 1)
    _same(optimal, direct["aurc_optimal_term"], absolute=EXACT)
    correlation = expected["values_official"]["ncc_annotator_entropy_vs_predictive_entropy"]["value"]
    _same(value_of(table, "ncc"), correlation, absolute=ROUNDED)


def _same(found: float, expected: object, *, absolute: float = 0.0, relative: float = 0.0) -> None:
    wanted = float(str(expected))
    if math.isnan(wanted):
        assert math.isnan(found)
    else:
        assert found == pytest.approx(wanted, abs=absolute, rel=relative)
