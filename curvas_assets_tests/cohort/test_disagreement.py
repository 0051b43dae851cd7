"""Claims proved here, of phantoms whose annotators disagree by a known distribution.

- Voxel by voxel, the share of many annotators who give an organ is what the true response says, within binomial bounds;
  over the boundary as a whole it is neither too wide nor too narrow, whether boundaries move as a whole or waver.
- A true response adds up to 1, is a half at an organ's own boundary, and its entropy vanishes far from every boundary.
- Annotators are exchangeable and independent; one of them is the same however many there are, and so are scan and truth.
- Without such a distribution, and for the demo's organs, patients are those that there have always been.
- Any of the organs that a phantom has may be asked for; others are refused, and so are labels with gaps.
- A pancreatic tumour encases vessels by the angles that are told, and touches no other; five annotators agree on vessels.
- A study's cohort has its organs and annotators, and is taken in.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from curvas_assets.cohort import read_patient
from curvas_assets.cohort.phantom import (
    ORGANS,
    PAINTED,
    TUMOUR_ORGANS,
    VESSELS,
    Disagreement,
    _Space,
    make_patient,
    true_ambiguity,
    true_involvement,
    true_response,
    write_cohort,
)
from curvas_assets.errors import PatientError
from curvas_assets.local.demo import cohort_of
from curvas_assets.study import load_study

COARSE = {"shape": (18, 32, 32), "spacing_mm": (13.0, 10.5, 10.5), "seed": 3}
SMALL = {"shape": (30, 56, 56), "spacing_mm": (8.0, 6.0, 6.0), "seed": 3}
WIDE = Disagreement(offset_mm=5.0, waver_mm=6.0, length_mm=20.0)
MANY = 250


@pytest.fixture(scope="module", params=["offset", "waver", "both"])
def simulated(request):
    """(A distribution's true response, how many of many annotators gave each class, each annotator's label map.)"""
    told = {
        "offset": Disagreement(offset_mm=7.0, waver_mm=0.0),
        "waver": Disagreement(offset_mm=0.0, waver_mm=7.0, length_mm=15.0),
        "both": WIDE,
    }[request.param]
    _, drawn = make_patient("PHANTOM001", annotators=MANY, disagreement=told, **COARSE)
    truth = true_response("PHANTOM001", disagreement=told, **COARSE)
    return truth, drawn


def _bands(truth, drawn):
    """Of each organ and of each band about its boundary: where it is, and the share of it that each annotator takes."""
    for label in range(1, len(truth)):
        for low, high in ((0.02, 0.25), (0.25, 0.75), (0.75, 0.98)):
            band = (truth[label] > low) & (truth[label] <= high)
            if band.sum() >= 20:
                yield truth[label][band].astype(np.float64), (drawn[:, band] == label).mean(axis=1)


def _off(shares, expected):
    """Standard errors between what annotators, who are independent, take on average and what is expected."""
    return abs(shares.mean() - expected) / (shares.std(ddof=1) / math.sqrt(len(shares)))


def test_each_voxels_share_of_annotators_is_the_true_response_within_binomial_bounds(simulated):
    truth, drawn = simulated
    p, k = truth.astype(np.float64), np.stack([(drawn == label).sum(axis=0) for label in range(len(truth))])
    tail = np.minimum(stats.binom.cdf(k, MANY, p), stats.binom.sf(k - 1, MANY, p))
    # Each voxel and class is one test, annotators are independent: with Bonferroni, one of 10,000 seeds would fail.
    assert tail.min() > 1e-4 / p.size
    assert ((p > 0.02) & (p < 0.98)).sum() > 2000


def test_the_boundary_as_a_whole_scatters_as_told(simulated):
    truth, drawn = simulated
    off = [_off(shares, p.mean()) for p, shares in _bands(truth, drawn)]
    assert len(off) >= 8
    assert max(off) < 4


def test_boundaries_that_scattered_less_or_more_would_be_told_apart(simulated):
    """What the test before is worth. Where a boundary moves as a whole, an annotator is one number, so that it tells less."""
    truth, drawn = simulated
    for factor in (1.5, 1 / 1.5):
        assert (
            max(_off(shares, stats.norm.cdf(factor * stats.norm.ppf(p)).mean()) for p, shares in _bands(truth, drawn))
            > 4
        )


@given(st.tuples(*[st.floats(1, 12)] * 3), st.floats(0.5, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_a_smooth_field_has_the_deviation_that_is_told_at_every_voxel(spacing_mm, length_mm, seed):
    space, rng = _Space((6, 7, 8), spacing_mm), np.random.default_rng(seed)
    squares = np.zeros(space.shape)
    for _ in range(400):
        squares += space.gaussian_field(rng, length_mm, 2.0).astype(np.float64) ** 2
    # A voxel's mean square over 400 independent fields is χ² / 400; 336 voxels, one of a million runs would fail.
    assert (stats.chi2.cdf(squares / 4, 400) > 1e-9 / 2).all()
    assert (stats.chi2.sf(squares / 4, 400) > 1e-9 / 2).all()


def test_a_true_response_adds_up_to_one_and_is_sure_far_from_every_boundary():
    truth = true_response("PHANTOM001", disagreement=Disagreement(), **SMALL)
    assert truth.dtype == np.float32
    assert truth.shape == (4, *SMALL["shape"])
    assert truth.min() >= 0
    np.testing.assert_allclose(truth.sum(axis=0, dtype=np.float64), 1, atol=1e-6)
    ambiguity = true_ambiguity(truth)
    assert ambiguity.min() >= 0
    assert ambiguity.max() <= math.log(4) + 1e-6
    # A sixth as far: from the depth at which Φ is 1e-9 on, in every organ, nobody is unsure.
    sure = np.ones(SMALL["shape"], dtype=bool)
    for organ in ORGANS:
        alone = true_response("PHANTOM001", disagreement=Disagreement(), organs={organ: 1}, **SMALL)[1]
        sure &= (alone < 1e-9) | (alone > 1 - 1e-7)
    assert 0.5 < sure.mean() < 0.999
    assert ambiguity[sure].max() < 1e-5
    assert ambiguity[~sure].max() > 0.6


@given(st.floats(0.1, 10), st.floats(0, 10), st.floats(0.1, 3))
def test_the_response_is_a_half_at_the_boundary_and_symmetric_about_it(offset_mm, waver_mm, scatter):
    told = Disagreement(offset_mm=offset_mm, waver_mm=waver_mm, scatter={"liver": scatter})
    depth = np.linspace(-30, 30, 61, dtype=np.float32)
    p = told.probability("liver", depth)
    assert p[30] == 0.5
    np.testing.assert_allclose(p + p[::-1], 1, atol=1e-12)
    assert (np.diff(p) >= 0).all()
    expected = stats.norm.cdf(depth, scale=scatter * math.sqrt(offset_mm**2 + waver_mm**2))
    np.testing.assert_allclose(p, expected, rtol=1e-9, atol=1e-300)


def test_annotators_depend_on_seed_name_and_their_number_only():
    scan, five = make_patient("PHANTOM001", annotators=5, disagreement=WIDE, **COARSE)
    _, two = make_patient("PHANTOM001", annotators=2, disagreement=WIDE, **COARSE)
    by_habit, _ = make_patient("PHANTOM001", annotators=2, **COARSE)
    np.testing.assert_array_equal(five[:2], two)
    np.testing.assert_array_equal(scan, by_habit)
    assert all((one != other).any() for n, one in enumerate(five) for other in five[:n])
    _, other = make_patient("PHANTOM002", annotators=2, disagreement=WIDE, **COARSE)
    _, seed = make_patient("PHANTOM001", annotators=2, disagreement=WIDE, **(COARSE | {"seed": 4}))
    assert (other != two).any()
    assert (seed != two).any()


def test_annotators_do_not_depend_on_each_other():
    """Of independent annotators, two agree on an organ at a voxel with the probability p²."""
    _, drawn = make_patient("PHANTOM001", annotators=MANY, disagreement=WIDE, **COARSE)
    truth = true_response("PHANTOM001", disagreement=WIDE, **COARSE)
    band = (truth[3] > 0.1) & (truth[3] < 0.9)
    p = truth[3][band].astype(np.float64)
    both = np.array(
        [((one == 3) & (other == 3))[band].mean() for one, other in zip(drawn[::2], drawn[1::2], strict=True)]
    )
    assert abs(both.mean() - (p**2).mean()) < 4 * both.std(ddof=1) / math.sqrt(len(both))


@pytest.mark.parametrize(
    ("name", "annotators", "counts", "mean_hu"),
    [
        ("PHANTOM001", 3, [[372, 1171, 5899], [583, 1304, 6425], [271, 1025, 5456]], -544.0215682983398),
        (
            "PHANTOM007",
            4,
            [[308, 1555, 7595], [591, 1765, 8058], [243, 1302, 7096], [468, 1947, 8207]],
            -474.05538177490234,
        ),
    ],
)
def test_the_demos_patients_are_those_that_there_have_always_been(name, annotators, counts, mean_hu):
    scan, drawn = make_patient(name, annotators=annotators, shape=(32, 64, 64), spacing_mm=(7.5, 5.25, 5.25), seed=3)
    assert [[int((one == label).sum()) for label in (1, 2, 3)] for one in drawn] == counts
    assert scan.mean() == pytest.approx(mean_hu, abs=1e-3)


@pytest.mark.parametrize("disagreement", [None, WIDE], ids=["habits", "a distribution"])
@pytest.mark.parametrize(
    "organs", [{"liver": 1}, {"spleen": 2, "pancreas": 1}, {name: n for n, name in enumerate(PAINTED[:8], 1)}]
)
def test_any_organs_may_be_asked_for(organs, disagreement):
    _, drawn = make_patient("PHANTOM001", annotators=2, organs=organs, disagreement=disagreement, **SMALL)
    for one in drawn:
        assert set(np.unique(one)) == {0, *organs.values()}
    if disagreement is not None:
        assert true_response("PHANTOM001", organs=organs, disagreement=disagreement, **SMALL).shape[0] == 1 + len(
            organs
        )
    _, alone = make_patient("PHANTOM001", annotators=2, organs={"liver": 1}, **SMALL)
    _, three = make_patient("PHANTOM001", annotators=2, **SMALL)
    assert (alone[1] == 1)[three[1] == 3].all()  # the liver, but for what is painted over it


@pytest.mark.parametrize(
    ("organs", "told"),
    [
        ({"brain": 1}, "organs {'brain': 1}. Name some of spleen, liver"),
        ({}, "Name some of"),
        ({"liver": 2}, "Give the labels 1 to 1, each to one organ"),
        ({"liver": 1, "kidney": 1}, "Give the labels 1 to 2"),
        (["liver"], "Name some of"),
    ],
)
def test_organs_that_no_phantom_has_are_refused(organs, told, tmp_path):
    with pytest.raises(PatientError) as refused:
        write_cohort(tmp_path, patients=1, organs=organs, shape=(6, 12, 12), spacing_mm=(20, 30, 30))
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "wrong", [{"offset_mm": -1}, {"waver_mm": math.nan}, {"length_mm": 0}, {"scatter": {"liver": -1}}]
)
def test_a_distribution_that_is_none_is_refused(wrong):
    with pytest.raises(PatientError, match="describing annotators' disagreement failed"):
        Disagreement(**wrong)


# The tumour -----------------------------------------------------------------------------------------------------------

FINE = {"shape": (48, 160, 160), "spacing_mm": (5.0, 2.1, 2.1), "seed": 3}
CERTAIN = Disagreement(scatter=dict.fromkeys(PAINTED, 0.0))
"""All annotators draw every organ as it is."""


def _encased_deg(tumour, vessel):
    """Degrees of an upright vessel's circumference with tumour at the next voxel outside, in the middle one of the slices
    where there is any. Measured on masks, by rays from the vessel's centre, without what drew them.
    """
    slices = np.flatnonzero(tumour.any(axis=(1, 2)) & vessel.any(axis=(1, 2)))
    shares = [share for z in slices if (share := _share_of_rays(tumour[z], vessel[z]))]
    return 360 * shares[len(shares) // 2] if shares else 0.0


def _share_of_rays(tumour, vessel, rays=180):
    centre = np.argwhere(vessel).mean(axis=0)
    hits = 0
    for angle in np.linspace(0, 2 * np.pi, rays, endpoint=False):
        points = centre[:, None] + np.array([[np.sin(angle)], [np.cos(angle)]]) * np.arange(0, 16, 0.25)
        along = tuple(np.round(points).astype(int))
        last = np.flatnonzero(vessel[along])[-1]
        hits += tumour[along][last : last + 6].any()
    return hits / rays


@pytest.mark.parametrize("patient", ["TUMOUR004", "TUMOUR006", "TUMOUR009"])
def test_a_tumour_encases_vessels_by_the_angles_that_are_told(patient):
    own = true_response(patient, organs=TUMOUR_ORGANS, disagreement=CERTAIN, **FINE).argmax(axis=0)
    tumour = own == TUMOUR_ORGANS["pdac"]
    told = true_involvement(patient, **FINE)
    assert set(told) == set(VESSELS)
    for vessel in ("smv", "sma"):
        found = _encased_deg(tumour, own == TUMOUR_ORGANS[vessel])
        assert found == pytest.approx(told[vessel], abs=20 if told[vessel] else 0), vessel
    near = ndimage.binary_dilation(tumour)
    assert {name for name in VESSELS if (near & (own == TUMOUR_ORGANS[name])).any()} == {n for n in VESSELS if told[n]}


def test_tumours_differ_in_what_they_encase():
    told = [true_involvement(f"TUMOUR{n:03d}", shape=(12, 24, 24), spacing_mm=(20, 14, 14)) for n in range(1, 25)]
    for vessel in ("smv", "sma"):
        angles = [one[vessel] for one in told]
        assert 0 < sum(angle == 0 for angle in angles) < len(angles)
        assert len(set(angles)) > 5
    assert all(one["porta"] == one["aorta"] == one["celiac"] == 0 for one in told)
    assert told[3] == true_involvement(
        "TUMOUR004", shape=(20, 30, 30), spacing_mm=(12, 11, 11)
    )  # however it is scanned


def test_five_annotators_disagree_about_the_tumour_and_not_about_the_vessels(tmp_path):
    study = load_study("phantom-pdacvi")
    made = cohort_of(study) | {"shape": (24, 48, 48), "spacing_mm": (10.0, 7.0, 7.0)}
    for folder in write_cohort(tmp_path, patients=["TUMOUR001", "TUMOUR002"], **made):
        assert len(list(folder.iterdir())) == 6
        patient = read_patient(folder, study)
        assert patient.annotations.shape[0] == 5
        for agreement in patient.facts["dice_between_annotators"].values():
            assert 0.2 < agreement["pdac"] < 0.95
            assert all(agreement[vessel] == 1 for vessel in VESSELS)


@pytest.mark.parametrize("name", ["phantom", "phantom-full", "phantom-pdacvi"])
def test_a_synthetic_studys_cohort_has_its_organs_and_annotators(name, tmp_path):
    study = load_study(name)
    first = study.training_patients()[0]
    made = cohort_of(study) | {"shape": (24, 48, 48), "spacing_mm": (10.0, 7.0, 7.0)}
    (folder,) = write_cohort(tmp_path, patients=[first], **made)
    assert {path.name for path in folder.iterdir()} == {study.image, *(one.file for one in study.annotators)}
    patient = read_patient(folder, study)
    for one in patient.annotations:
        assert set(np.unique(one)) == {0, *study.organs.values()}
    assert (made["disagreement"] is None) == (name == "phantom")
