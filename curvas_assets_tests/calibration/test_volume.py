"""Claims proved here.

- What comes out of a calibrated volume are probabilities: not below 0, and of each voxel with the sum 1; whole, slab by
  slab, code by code and label by label the same.
- A temperature changes no label, ties and near ties included; it is softmax(ln p / T) to within a code.
- T = 1 and straight curves give back what is stored: each probability to within a code or 5e-7.
- An isotonic curve keeps the order of an organ's probabilities wherever the organs leave a background; where they sum to more
  than 1, they keep their proportions.
- Scored beside its source, a calibrated volume takes no further read of the store, and scores as it does alone.
- A record holds a calibrator whole; one that is damaged is refused.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvas_assets.calibration import CalibratedVolume, Curve, Isotonic, Temperature, calibrator_of
from curvas_assets.errors import CorruptArtefactError
from curvas_assets.scoring import PatientReference
from curvas_assets.storage.encoding import encode, search_tables
from curvas_assets_tests.calibration.patients import NAMES, ORGANS, SPACING, patient, stored
from curvas_assets_tests.scoring.test_one_pass import FRAMES, Folder
from curvas_assets_tests.storage.first_format import first_format
from curvas_assets_tests.strategies import softmaxes

SMALL = (18, 5, 9)
LEVELS = search_tables().levels
NEAR = 5e-7


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Folder:
    return Folder(tmp_path_factory.mktemp("store"))


@st.composite
def curves(draw):
    """A rising curve with level pieces and jumps."""
    knots = draw(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8, unique=True))
    values = draw(st.lists(st.floats(0, 1), min_size=len(knots), max_size=len(knots)))
    return Curve(tuple(sorted(knots)), tuple(sorted(values)))


VOLUMES = softmaxes(st.just(4), st.just(SMALL), st.just(np.float32))
TEMPERATURES = st.floats(0.05, 20)


def within_a_code(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether each probability is the expected one, one of its neighbouring levels, or as near as float32 can tell."""
    places = np.searchsorted(LEVELS, np.clip(expected, 0, 1))
    low, high = LEVELS[np.maximum(places - 2, 0)], LEVELS[np.minimum(places + 1, LEVELS.size - 1)]
    return bool((((found >= low) & (found <= high)) | (np.abs(found - expected) <= NEAR)).all())


def require_probabilities(volume: CalibratedVolume) -> np.ndarray:
    whole = volume.slab(0, volume.shape[1])
    assert whole.min() >= 0
    np.testing.assert_allclose(whole.sum(axis=0, dtype=np.float64), 1, atol=1e-6)
    codes = np.concatenate([codes for _, _, codes in volume.code_slabs()], axis=1)
    np.testing.assert_array_equal(codes, volume.codes(0, volume.shape[1]))
    np.testing.assert_array_equal(volume.levels[codes].astype(np.float32), whole[1:])
    np.testing.assert_array_equal(volume.slab(3, 17), whole[:, 3:17])
    np.testing.assert_array_equal(volume.labels(0, volume.shape[1]), whole.argmax(axis=0))
    return whole


@settings(max_examples=15, deadline=None)
@given(VOLUMES, TEMPERATURES)
def test_a_temperature_gives_probabilities_and_changes_no_label(store, softmax, temperature):
    source = stored(store, "it", softmax)
    whole = require_probabilities(CalibratedVolume(source, Temperature(temperature)))
    np.testing.assert_array_equal(whole.argmax(axis=0), source.labels(0, SMALL[0]))


@settings(max_examples=15, deadline=None)
@given(VOLUMES, st.floats(0.2, 5))
def test_it_is_the_softmax_of_the_logits_divided_by_it(store, softmax, temperature):
    source = stored(store, "it", softmax)
    p = source.slab(0, SMALL[0]).astype(np.float64)
    rest = np.where(p[1:].sum(axis=0) < 2**-24, 1.0, np.maximum(1 - p[1:].sum(axis=0), 2**-24))
    powers = np.exp(np.log(np.concatenate([rest[None], np.maximum(p[1:], LEVELS[1] / 2)])) / temperature)
    expected = powers / powers.sum(axis=0)
    found = CalibratedVolume(source, Temperature(temperature)).slab(0, SMALL[0]).astype(np.float64)
    apart = np.sort(expected, axis=0)
    clear = apart[-1] - apart[-2] > 1e-3  # elsewhere, codes move so that the label stays
    for c in range(1, 4):
        assert within_a_code(found[c][clear], expected[c][clear])
    assert np.abs(found - expected).max() < 1e-3


def test_ties_and_near_ties_keep_their_label(store):
    """A step of float32 is nothing any more after a division by 5, and the lower class would win the tie."""
    rows = [
        [0.4, 0.4, 0.2, 0.0], [0.2, 0.4, 0.4, 0.0], [0.0, 0.2, 0.4, 0.4], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.5, 0.5],
        [0.4 - 2**-15, 0.4 + 2**-15, 0.2, 0.0], [0.0, 0.5 - 2**-15, 0.5 + 2**-15, 0.0], [1.0, 0, 0, 0], [0, 0, 0, 1.0],
    ]  # fmt: skip
    softmax = np.tile(np.array(rows, np.float32).T[:, None, None], (1, 18, 5, 1))
    source = stored(store, "ties", softmax)
    for temperature in (0.05, 0.3, 1.0, 3.0, 20.0):
        found = CalibratedVolume(source, Temperature(temperature)).labels(0, 18)
        np.testing.assert_array_equal(found, softmax.argmax(axis=0))


@settings(max_examples=10, deadline=None)
@given(VOLUMES, st.booleans())
def test_a_temperature_of_1_and_straight_curves_change_nothing(store, softmax, straight):
    source = stored(store, "it", softmax)
    line = Curve((0.0, 1.0), (0.0, 1.0))
    calibrator = Isotonic(dict.fromkeys(ORGANS, line)) if straight else Temperature(1.0)
    found = CalibratedVolume(source, calibrator).slab(0, SMALL[0])
    assert within_a_code(found[1:], source.slab(0, SMALL[0])[1:])


def test_no_curve_of_an_organ_leaves_it_as_it_is(store):
    source = stored(store, "it", patient(1).softmax)
    np.testing.assert_array_equal(CalibratedVolume(source, Isotonic({})).codes(0, 20), source.codes(0, 20))


@settings(max_examples=15, deadline=None)
@given(VOLUMES, st.tuples(curves(), curves(), curves()))
def test_isotonic_curves_give_probabilities_and_keep_each_organs_order(store, softmax, drawn):
    source = stored(store, "it", softmax)
    found = require_probabilities(CalibratedVolume(source, Isotonic(dict(zip(ORGANS, drawn, strict=True)))))
    p = source.slab(0, SMALL[0])
    wanted = np.stack([curve(p[c]) for c, curve in enumerate(drawn, 1)])
    total = wanted.sum(axis=0)
    leaves = total < 1 - 1e-3
    for c in range(1, 4):
        before, after = p[c][leaves], found[c][leaves]
        assert (np.diff(after[np.argsort(before, kind="stable")]) >= 0).all()
        assert within_a_code(after.astype(np.float64), wanted[c - 1][leaves])
    beyond = total > 1 + 1e-3
    scaled = wanted[:, beyond] / total[beyond]
    np.testing.assert_allclose(found[1:, beyond], scaled, atol=3e-4)
    np.testing.assert_allclose(found[0, beyond], 0, atol=3e-4)


def test_a_volume_of_the_first_format_is_calibrated_too():
    source = first_format(patient(2).softmax)
    tempered = CalibratedVolume(source, Temperature(3.0))
    require_probabilities(tempered)
    assert not tempered.keeps_ranking
    np.testing.assert_array_equal(tempered.labels(0, 20), source.labels(0, 20))


def test_scored_beside_its_source_it_is_read_once_and_scores_as_it_does_alone(store):
    one = patient(3)
    volume = stored(store, "read", one.softmax)
    calibrated = {
        "T": CalibratedVolume(volume, Temperature(2.0)),
        "I": CalibratedVolume(volume, Isotonic(dict.fromkeys(ORGANS, Curve((0.1, 0.9), (0.2, 0.7))))),
    }
    reference = PatientReference(one.annotations, SPACING, organs=ORGANS)
    list(reference.score_all({"plain": volume}))
    store.fetched.clear()
    list(reference.score_all({"plain": volume}))
    once = list(store.fetched)
    store.fetched.clear()
    together = dict(reference.score_all({**calibrated, "plain": volume}))
    assert store.fetched == once
    store.fetched.clear()
    without = dict(reference.score_all(calibrated))  # its source is no predictor here
    assert store.fetched == once
    for name, each in calibrated.items():
        array = dict(reference.score_all({name: each.slab(0, 20)}))[name].table
        for frame in FRAMES:
            assert getattr(together[name], frame).equals(getattr(without[name], frame))
            assert getattr(together[name], frame).equals(getattr(reference.score(each), frame))
        exact = ~together[name].table["metric"].isin(["auroc", "auroc_error"])  # ranks of codes, not of floats
        np.testing.assert_allclose(
            together[name].table["value"][exact], array["value"][exact], rtol=1e-5, atol=1e-7, equal_nan=True
        )


def test_a_record_holds_a_calibrator_whole():
    isotonic = Isotonic({"liver": Curve((0.0, 1 / 3, 0.7), (0.0, 1 / 7, 1.0)), "kidney": Curve((0.5,), (0.25,))})
    for one in (isotonic, Temperature(1.2345678901234567)):
        assert calibrator_of(json.loads(json.dumps(one.record())), "it") == one


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"method": "platt"},
        {"method": "temperature"},
        {"method": "temperature", "temperature": 0.0},
        {"method": "temperature", "temperature": float("nan")},
        {"method": "isotonic", "curves": {"liver": {"probability": [0.1, 0.2], "response": [0.5]}}},
        {"method": "isotonic", "curves": {"liver": {"probability": [0.2, 0.1], "response": [0.1, 0.5]}}},
        {"method": "isotonic", "curves": {"liver": {"probability": [0.1, 0.2], "response": [0.5, 0.4]}}},
        {"method": "isotonic", "curves": {"liver": {"probability": [0.1, 0.2], "response": [0.5, 1.4]}}},
        {"method": "isotonic", "curves": {"liver": {"probability": [], "response": []}}},
        {"method": "isotonic", "curves": [1]},
    ],
)
def test_a_damaged_record_is_refused(record):
    with pytest.raises(CorruptArtefactError, match="ensemble_all: reading a calibrator failed"):
        calibrator_of(record, "ensemble_all")


def test_codes_are_those_of_the_present_format():
    assert NAMES[0] == "background"
    softmax = patient(4).softmax
    assert encode(softmax).codes.max() < LEVELS.size
