"""Claims proved here.

- All predictors of a patient, scored in one pass, score as one by one, to the last digit: arrays, stored volumes, those of the
  first format and those that come in slabs of other depths, with any region, annotators and ensembles.
- How many threads count, and so how slices are divided among them, changes nothing.
- Each chunk of each volume is fetched once, and only chunks of the region.
- A volume that cannot be read, an ensemble that is not its members' mean and a member that is missing are errors that name it.
- Volumes read side by side have the codes that each has alone, tiles without content included.
- Values are counted as NumPy counts them, however often their notes are folded.
- The published calibration error adds up as float32 does, also where it stays for ever.
- Whoever stops taking scores, or an error, ends the work: no other predictor's scores are begun.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Event

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvas_assets.errors import CorruptArtefactError, ScoringError
from curvas_assets.geometry import Grid
from curvas_assets.scoring import PatientReference, occurrences, one_pass, panel
from curvas_assets.scoring.occurrences import Occurrences
from curvas_assets.scoring.published import FULL, PublishedCalibration
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.side_by_side import code_slabs_of
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax
from curvas_assets_tests.storage.first_format import first_format
from curvas_assets_tests.strategies import label_maps, softmaxes

SHAPE = (18, 6, 21)
SPACING = (3.0, 1.0, 2.0)
FRAMES = ("table", "reliability", "risk_coverage")


class Folder(FolderObjects):
    """A store that remembers which bytes were fetched."""

    def __init__(self, root):
        super().__init__(root)
        self.fetched: list[tuple[str, int, int]] = []

    def get_range(self, key, start, length):
        self.fetched.append((key, start, length))
        return super().get_range(key, start, length)


def stored(store, key, softmax):
    names = ["background", *(f"organ{c}" for c in range(1, len(softmax)))]
    grid = Grid.with_voxels(softmax.shape[1:], SPACING)
    with SoftmaxWriter(store, key, grid, class_names=names) as writer:
        writer.write(0, softmax)
    return open_softmax(store, key)


class Sliced:
    """A volume that hands out slabs of five slices."""

    def __init__(self, volume):
        self.shape, self.levels, self._volume = volume.shape, volume.levels, volume

    def code_slabs(self):
        for z in range(0, self.shape[1], 5):
            stop = min(z + 5, self.shape[1])
            yield z, stop, self._volume.codes(z, stop)


@st.composite
def patients(draw):
    """Softmaxes of models and their kinds, ensembles, annotations, and how they are scored."""
    classes, annotators = draw(st.sampled_from([2, 4])), draw(st.sampled_from([1, 2, 5]))
    models = [draw(softmaxes(st.just(classes), st.just(SHAPE), st.just(np.float32))) for _ in range(3)]
    kinds = draw(st.lists(st.sampled_from(["array", "stored", "sliced", "first"]), min_size=4, max_size=4))
    blank = draw(st.sampled_from([(), (1,)])) if annotators > 1 else ()
    annotations = draw(label_maps(classes, annotators, SHAPE))
    annotations[[number - 1 for number in blank]] = 0
    region = draw(
        st.sampled_from([None, (slice(3, 17), slice(1, 6), slice(2, 20)), (slice(16, 18), slice(0, 6), slice(5, 6))])
    )
    settings_of = {"organs": {f"organ{c}": c for c in range(1, classes)}, "region": region, "not_annotated": blank}
    settings_of["reference"] = draw(st.sampled_from(["consensus", "majority", "staple", "thresholds"]))
    if classes == 4 and draw(st.booleans()):
        settings_of |= {"tumour": "organ1", "vessels": ("organ3", "organ2")}
    return models, kinds, annotations, settings_of


def volume_of(kind, store, key, softmax):
    if kind == "array":
        return softmax
    if kind == "first":
        return first_format(softmax)
    volume = stored(store, key, softmax)
    return Sliced(volume) if kind == "sliced" else volume


def same(one, other):
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)


@settings(max_examples=10, deadline=None)
@given(patients())
def test_all_in_one_pass_score_as_one_by_one(tmp_path_factory, case):
    models, kinds, annotations, chosen = case
    store = FolderObjects(tmp_path_factory.mktemp("store"))
    softmaxes_of = {f"m{i}": model for i, model in enumerate(models)} | {"all": np.mean(models, axis=0)}
    volumes = {
        name: volume_of(kind, store, name, softmax)
        for kind, (name, softmax) in zip(kinds, softmaxes_of.items(), strict=True)
    }
    volumes["of_one"] = volumes["m1"]
    members = {"all": ["m2", "m0", "m1"], "of_one": ["m1"]}
    reference = PatientReference(annotations, SPACING, **chosen)
    told = []
    found = dict(reference.score_all(volumes, members, progress=lambda *at: told.append(at)))
    assert list(found) == list(volumes)
    for name, scores in found.items():
        same(scores, reference.score(volumes[name], [volumes[m] for m in members[name]] if name in members else None))
    z = reference.region[0]
    assert told[-1] == (z.stop - z.start, z.stop - z.start)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize("reference_name", ["", "staple", "thresholds"])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_number_of_threads_changes_nothing(monkeypatch, tmp_path, threads, reference_name):
    rng = np.random.default_rng(3)
    models = [rng.dirichlet([8, 0.3, 0.3], SHAPE).transpose(3, 0, 1, 2).astype(np.float32) for _ in range(2)]
    mean = stored(FolderObjects(tmp_path), "mean", np.mean(models, axis=0))
    vessels = {"reference": reference_name, "tumour": "a", "vessels": ["b"]} if reference_name else {}
    drawn = rng.integers(0, 3, (2, *SHAPE)).astype(np.uint8)
    reference = PatientReference(drawn, SPACING, organs={"a": 1, "b": 2}, **vessels)
    expected = reference.score(mean, models), reference.score(models[0])
    monkeypatch.setattr(one_pass, "workers", lambda: threads)
    same(reference.score(mean, models), expected[0])
    found = dict(reference.score_all({"e": mean, "m": models[0], "n": models[1]}, {"e": ["m", "n"]}))
    same(found["e"], expected[0])
    same(found["m"], expected[1])


def test_each_chunk_is_fetched_once_and_only_those_of_the_region(tmp_path):
    rng = np.random.default_rng(5)
    store, shape = Folder(tmp_path), (70, 5, 6)
    models = {f"m{i}": rng.dirichlet([5, 1], shape).transpose(3, 0, 1, 2).astype(np.float32) for i in range(2)}
    softmaxes_of = {**models, "one": np.mean(list(models.values()), axis=0), "other": models["m0"]}
    volumes = {name: stored(store, name, softmax) for name, softmax in softmaxes_of.items()}
    members = {"one": ["m0", "m1"], "other": ["m0"]}
    annotations = rng.integers(0, 2, (1, *shape)).astype(np.uint8)
    for region, first, last in ((None, 0, 5), ((slice(20, 50), slice(None), slice(None)), 1, 4)):
        reference = PatientReference(annotations, SPACING, organs={"a": 1}, region=region)
        for volume in volumes.values():
            volume.codes(0, 1)  # reads the index
        store.fetched.clear()
        list(reference.score_all(volumes, members))
        for name, volume in volumes.items():
            ranges = sorted((start, start + size) for key, start, size in store.fetched if key.startswith(f"{name}/"))
            chunks = volume._index()[first:last]
            assert (ranges[0][0], ranges[-1][1]) == (chunks[0, 0], chunks[-1].sum())
            assert all(stop == start for (_, stop), (start, _) in pairwise(ranges))


def test_what_is_wrong_is_named(tmp_path):
    rng = np.random.default_rng(7)
    store = FolderObjects(tmp_path)
    models = {f"m{i}": rng.dirichlet([5, 1], SHAPE).transpose(3, 0, 1, 2).astype(np.float32) for i in range(3)}
    volumes = {name: stored(store, f"output/P1/{name}", softmax) for name, softmax in models.items()}
    reference = PatientReference(rng.integers(0, 2, (1, *SHAPE)).astype(np.uint8), SPACING, organs={"a": 1})
    with pytest.raises(
        ScoringError, match=r"m2: scoring an ensemble failed: it is up to .* away from the mean of the 2 members"
    ):
        list(reference.score_all(volumes, {"m2": ["m0", "m1"]}))
    with pytest.raises(ScoringError, match="m2: scoring an ensemble failed: no softmax of m7"):
        list(reference.score_all(volumes, {"m2": ["m0", "m7"]}))
    with pytest.raises(ScoringError, match=r"m9: scoring failed: softmax of shape .* against annotations"):
        list(reference.score_all({**volumes, "m9": np.full((2, 3, 4, 5), 0.5)}))
    (shard,) = (tmp_path / "output/P1/m1").rglob("c/0/0/0/0")
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        CorruptArtefactError, match="output/P1/m1: reading a softmax volume failed: the checksum of a chunk"
    ):
        list(reference.score_all(volumes))


@pytest.mark.parametrize("fails", [False, True])
def test_no_more_scores_are_begun_than_are_taken(monkeypatch, fails):
    begun, ended = [], Event()

    class Threads(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ended.set()
            super().shutdown(wait=wait)

    def scores(self, predictor, *counted, approximate):
        begun.append(predictor)
        if len(begun) == 2:
            assert ended.wait(60)
        if fails:
            raise ScoringError("scoring", "m0", "nothing", "Nothing.")

    monkeypatch.setattr(panel, "ThreadPoolExecutor", Threads)
    monkeypatch.setattr(panel, "workers", lambda: 1)
    monkeypatch.setattr(PatientReference, "_scores", scores)
    softmax = np.full((2, *SHAPE), 0.5, np.float32)
    reference = PatientReference(np.zeros((1, *SHAPE), np.uint8), SPACING, organs={"a": 1})
    coming = reference.score_all({f"m{i}": softmax for i in range(6)})
    if fails:
        with pytest.raises(ScoringError, match="m0"):
            next(coming)
    else:
        assert next(coming)[0] == "m0"
        coming.close()
    assert ended.is_set()
    assert 1 <= len(begun) <= 2


def test_side_by_side_volumes_have_the_codes_that_each_has_alone(tmp_path):
    rng = np.random.default_rng(11)
    store, shape = FolderObjects(tmp_path), (18, 3, 600)
    softmax = np.zeros((3, *shape), np.float32)
    softmax[0] = 1
    softmax[:, :, :, :256] = rng.dirichlet([1, 1, 1], (18, 3, 256)).transpose(3, 0, 1, 2)
    softmax[:, :, :, 255:512] = softmax[:, :, :, 255:256]  # the second tile has no step, but is not background
    narrow = rng.dirichlet([9, 1, 1], (18, 3, 20)).transpose(3, 0, 1, 2).astype(np.float32)
    for volumes in (
        [stored(store, "a", softmax), stored(store, "b", softmax[::-1].copy())],
        [
            first_format(narrow),
            stored(store, "c", narrow),
            stored(store, "d", narrow * 0 + np.float32([1, 0, 0])[:, None, None, None]),
        ],
    ):
        with one_pass.ThreadPoolExecutor(2) as workers:
            found = [(z0, z1, codes.copy()) for z0, z1, codes in code_slabs_of(volumes, workers)]
        for m, volume in enumerate(volumes):
            for (z0, z1, codes), (y0, y1, alone) in zip(found, volume.code_slabs(), strict=True):
                assert (z0, z1) == (y0, y1)
                np.testing.assert_array_equal(codes[m], alone)


@given(st.lists(st.lists(st.integers(-3, 9), max_size=12), max_size=12), st.integers(1, 20))
def test_occurrences_are_those_of_numpy(notes, fold):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(occurrences, "FOLD", fold)
        found = Occurrences()
        for values in notes:
            found.add(np.array(values, np.int32))
    expected = np.unique(np.array([v for values in notes for v in values], np.int32), return_counts=True)
    for one, other in zip(found.counted(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, FULL - 60, FULL]), st.sampled_from([1, 3, 50]))
def test_published_sums_are_those_of_float32(seed, before, bins):
    rng = np.random.default_rng(seed)
    shape = (2, 3, 37)
    confidence = np.float32(1) - np.float32(10) ** rng.uniform(-9, -0.3, shape).astype(np.float32)
    labels = rng.integers(0, 2, shape).astype(np.uint8)
    drawn = np.where(rng.random((2, *shape)) < 0.05, 1 - labels, labels).astype(np.uint8)
    found = PublishedCalibration(2, bins)
    found._voxels[-2:], found._confidence[-2:] = before, before
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
    place = np.searchsorted(edges, confidence.ravel(), side="right") - 1
    sums = np.zeros((2, bins + 1, 3), np.float32)
    sums[:, -2:] = before
    for r in range(2):
        for b, c, hit in zip(place, confidence.ravel(), (labels == drawn[r]).ravel(), strict=True):
            sums[r, b] += np.float32([1, c, hit])
    found.add(confidence, labels, drawn)
    voxels, confidence_sum, hits = np.moveaxis(sums, -1, 0)
    filled = np.where(voxels > 0, voxels, np.float32(1))
    share = voxels / voxels.sum(axis=1, keepdims=True, dtype=np.float32)
    gaps = np.abs(hits / filled - confidence_sum / filled)
    np.testing.assert_array_equal(found._confidence, confidence_sum[0])
    np.testing.assert_array_equal(found.errors(), (gaps * share).sum(axis=1, dtype=np.float32))
