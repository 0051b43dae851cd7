"""Claims proved here, on phantoms whose tumour encases vessels by known angles.

- Involvement in axial slices is the angle that the phantom was made with, and 0 of vessels that its tumour keeps off.
- Involvements by annotators whose boundaries scatter lie on both sides of it.
"""

import numpy as np
import pytest

from curvas_assets.cohort.phantom import (
    PAINTED,
    TUMOUR_ORGANS,
    VESSELS,
    Disagreement,
    make_patient,
    true_involvement,
    true_response,
)
from curvas_assets.scoring.vascular import involvement

FINE = {"shape": (48, 160, 160), "spacing_mm": (5.0, 2.1, 2.1), "seed": 3}
COARSE = {"shape": (40, 96, 96), "spacing_mm": (6.0, 3.5, 3.5), "seed": 3}
CERTAIN = Disagreement(scatter=dict.fromkeys(PAINTED, 0.0))
AXIAL, OURS = 0, 0


def _axial_deg(labels, vessel, spacing_mm):
    tumour = (labels == TUMOUR_ORGANS["pdac"]).astype(np.uint8)
    return float(involvement(labels == TUMOUR_ORGANS[vessel], tumour, 1, spacing_mm)[OURS, 0, AXIAL])


@pytest.mark.parametrize("patient", ["TUMOUR004", "TUMOUR006", "TUMOUR009"])
def test_the_scored_involvement_is_the_angle_that_the_phantom_was_made_with(patient):
    own = true_response(patient, organs=TUMOUR_ORGANS, disagreement=CERTAIN, **FINE).argmax(axis=0)
    told = true_involvement(patient, **FINE)
    for vessel in VESSELS:
        found = _axial_deg(own, vessel, FINE["spacing_mm"])
        # The outlines have about 55 and 40 edges in a slice: two or three of them, at the ends of what is encased.
        near = {"smv": 20, "sma": 30}[vessel] if told[vessel] else 0
        assert found == pytest.approx(told[vessel], abs=near), vessel


def test_annotators_involvements_scatter_about_it():
    patient, vessel = "TUMOUR002", "smv"
    _, drawn = make_patient(patient, annotators=16, organs=TUMOUR_ORGANS, disagreement=Disagreement(), **COARSE)
    told = true_involvement(patient, **COARSE)
    found = [_axial_deg(one, vessel, COARSE["spacing_mm"]) for one in drawn]
    assert min(found) < told[vessel] < max(found)
    assert np.std(found) > 5
    assert all(_axial_deg(one, "aorta", COARSE["spacing_mm"]) == 0 for one in drawn)
