"""Claims proved here.

- The label map survives exactly, for any shape, float type and number of classes.
- On mild and on overconfident networks, single ones and means, every figure stays within its bound: probabilities 3e-4, AURC,
  E-AURC, AUGRC and NLL 0.5 %, AUROCs 5e-4, entropies 0.2 %, ECE 1e-5, soft volumes 1e-4; linear codes of 16 bits miss what
  ranks.
- Every float gets the code of the cell it lies in, by look-up as by search.
- Backgrounds of exactly 1 are the same voxels before and after; what is read is a softmax of float32 again.
- A volume's bytes in scratch have a name while it grows, so that they are counted.
- The version is of the content, whoever made it.
- Slabs of any depth are what the whole volume holds; a slab fetches its own bytes only.
- zarr-python reads the volume without our code, by the lines of `docs/store.md`.
- A volume of the first format is read, and one of before each writing had a place of its own.
- Writing again replaces; what nobody touched for a day goes then. A reader of a version that went is told to read again.
- Corruption, truncation and other classes are errors that say so; a writer that fails leaves what stood there.
- A file or file-like object round-trips through `write_softmax` and `read_softmax`.
"""

import io
import os

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import phantoms
from curvas_assets.ensembling import average, stream_ensembles
from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, StorageError
from curvas_assets.geometry import Grid
from curvas_assets.scoring import score
from curvas_assets.storage import encoding
from curvas_assets.storage.digests import seal_record
from curvas_assets.storage.encoding import decode
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax, place_of, read_softmax, write_softmax
from curvas_assets_tests.storage.first_format import first_format
from curvas_assets_tests.strategies import softmaxes

KEY = "output/P1/model/softmax.zarr"
UNIT_GRID = Grid.with_voxels((40, 70, 90), (1, 1, 1))


def _write(store, softmax, depth=16, **options):
    names = ["background", *(f"organ{c}" for c in range(1, softmax.shape[0]))]
    grid = Grid.with_voxels(softmax.shape[1:], (5, 3, 2))
    with SoftmaxWriter(store, KEY, grid, class_names=names, **options) as writer:
        for z0 in range(0, softmax.shape[1], depth):
            writer.write(z0, softmax[:, z0 : z0 + depth])
    return writer.facts


def _realistic(shape=(40, 70, 90), classes=4, seed=0, noise_seed=None):
    """Organs with soft borders and tails that reach far, as a network gives them."""
    rng = np.random.default_rng(seed)
    noise = np.random.default_rng(seed if noise_seed is None else noise_seed)
    z, y, x = np.meshgrid(*[(np.arange(n) + 0.5) * 2 / n - 1 for n in shape], indexing="ij")
    logits = [np.zeros(shape)]
    for _ in range(1, classes):
        centre = rng.uniform(-0.5, 0.5, 3)
        radius = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
        logits.append(np.maximum(12 - 40 * radius, -9 - 3 * radius) + noise.normal(0, 0.7, shape))
    p = np.exp(np.stack(logits) - np.max(logits, axis=0))
    return (p / p.sum(axis=0)).astype(np.float32)


@settings(max_examples=60)
@given(softmaxes(), st.integers(1, 20))
def test_the_label_map_survives_and_errors_stay_bounded(tmp_path_factory, softmax, depth):
    store = FolderObjects(tmp_path_factory.mktemp("store"))
    facts = _write(store, softmax, depth)
    volume = open_softmax(store, KEY)
    read = volume.slab(0, softmax.shape[1])
    labels = softmax.argmax(axis=0)
    np.testing.assert_array_equal(volume.labels(0, softmax.shape[1]), labels)
    np.testing.assert_array_equal(read.argmax(axis=0), labels)
    total = softmax.astype(np.float64).sum(axis=0)
    normalised = softmax / np.where(np.abs(total - 1) > 1e-5, total, 1)
    assert np.abs(read - normalised).max() <= 3e-4
    assert read.min() >= 0
    np.testing.assert_allclose(read.sum(axis=0, dtype=np.float64), 1, atol=1e-6)
    assert facts.label_voxels == tuple(np.bincount(labels.ravel(), minlength=softmax.shape[0]))
    np.testing.assert_allclose(facts.soft_voxels[1:], _soft_voxels(read)[1:], rtol=1e-6)
    if softmax.dtype == np.float32:
        certain = (softmax[0] == 1) & (softmax[1:].sum(axis=0) > 0)
        np.testing.assert_array_equal((read[0] == 1)[certain], True)


def _soft_voxels(p):
    return p.sum(axis=(1, 2, 3), dtype=np.float64)


BOUNDS = {
    "aurc": 5e-3, "eaurc": 5e-3, "augrc": 5e-3, "nll": 5e-3, "predictive_entropy": 2e-3, "expected_entropy": 2e-3,
    "mutual_information": 2e-3, "crps": 1e-3, "dice": 0, "hausdorff": 0, "volume": 1e-4, "volume_annotator": 0,
}  # fmt: skip
"""Metric → largest relative difference."""
ABSOLUTE = {"auroc": 5e-4, "auroc_error": 5e-4, "ece": 1e-5, "classwise_ece": 5e-5, "confidence": 1e-5}


def _within(exact, stored):
    """What is off by more than its bound, of two tables of scores."""
    both = exact.merge(stored, on=["metric", "organ", "annotator"])
    assert len(both) == len(exact)
    apart = (both["value_x"] - both["value_y"]).abs()
    relative = apart / both["value_x"].abs()
    bound = both["metric"].map(BOUNDS).fillna(np.inf)
    off = (apart > 1e-12) & (relative > bound) | (apart > both["metric"].map(ABSOLUTE).fillna(np.inf))
    return both[off].assign(relative=relative[off])


def _round_trip(softmax):
    file = io.BytesIO()
    write_softmax(file, softmax)
    return read_softmax(file)


@pytest.mark.parametrize("confident", [False, True])
def test_scores_of_what_is_stored_are_those_of_the_network(confident):
    shape, organs = (48, 96, 96), {"a": 1, "b": 2, "c": 3}
    members = [phantoms.softmax(shape, model, confident=confident) for model in range(9)]
    annotations = phantoms.label_maps(shape)
    stored = [_round_trip(member) for member in members]
    for member, volume in zip(members[:3], stored, strict=False):
        np.testing.assert_array_equal(volume.labels(0, shape[0]), member.argmax(axis=0))
        assert np.abs(volume.slab(0, shape[0]) - member).max() <= 3e-4
        off = _within(
            score(member, annotations, (5, 3, 3), organs=organs), score(volume, annotations, (5, 3, 3), organs=organs)
        )
        assert off.empty, off
    named = dict(zip("abcdefghi", stored, strict=True))
    mean = np.concatenate([slabs["all"].mean for _, _, slabs in stream_ensembles(named, {"all": list(named)})], axis=1)
    exact = score(average(members).mean, annotations, (5, 3, 3), organs=organs, members=members)
    off = _within(exact, score(_round_trip(mean), annotations, (5, 3, 3), organs=organs, members=stored))
    assert off.empty, off


def test_every_float_gets_the_code_of_its_cell():
    rng = np.random.default_rng(3)
    search = encoding.search_tables()
    bits = rng.integers(0, 0x3F800001, 200_000).astype(np.int32).view(np.float32)
    at_limits = search.limits[:-1].astype(np.float32)
    values = np.concatenate([bits, rng.random(100_000, np.float32), 1 - bits[:50_000], at_limits, [0, 1]])
    values = np.concatenate([values, np.nextafter(values, 0), np.nextafter(values, 1)]).astype(float)
    found = [encoding._code(value, search) for value in values]
    np.testing.assert_array_equal(found, np.searchsorted(search.limits, values, side="right"))


def test_neighbours_as_far_apart_as_codes_go_round_trip(tmp_path):
    organ = np.array([0, 1, 0, 0.5, 1, 1e-38, 1, 0], np.float32) * np.ones((1, 3, 4, 1), np.float32)
    softmax = np.concatenate([1 - organ, organ])
    _write(FolderObjects(tmp_path), softmax)
    np.testing.assert_allclose(open_softmax(FolderObjects(tmp_path), KEY).slab(0, 3), softmax, rtol=0, atol=3e-5)


def test_linear_codes_of_16_bits_lose_what_ranks():
    shape, organs = (48, 96, 96), {"a": 1, "b": 2, "c": 3}
    softmax, annotations = phantoms.softmax(shape, confident=True), phantoms.label_maps(shape)
    exact = score(softmax, annotations, (5, 3, 3), organs=organs)
    off = _within(exact, score(first_format(softmax), annotations, (5, 3, 3), organs=organs))
    assert {"aurc", "eaurc"} <= set(off["metric"])


def test_bytes_in_scratch_are_seen_there_while_a_volume_grows_and_are_gone_afterwards(tmp_path):
    softmax, scratch = _realistic((48, 30, 30)), tmp_path / "scratch"
    scratch.mkdir()
    grid, names = Grid.with_voxels(softmax.shape[1:], (1, 1, 1)), ["background", "a", "b", "c"]
    with SoftmaxWriter(FolderObjects(tmp_path), KEY, grid, class_names=names, scratch=scratch) as writer:
        for z in range(0, 48, 16):
            writer.write(z, softmax[:, z : z + 16])
        (growing,) = scratch.iterdir()
        assert growing.stat().st_size > writer._payload.tell() / 2 > 0  # the rest is in the file object's buffer
    assert not list(scratch.iterdir())


def test_the_same_content_has_the_same_version_whoever_made_it(tmp_path):
    store = FolderObjects(tmp_path)
    one = _write(store, _realistic((5, 20, 30)), provenance={"code": "1"})
    other = _write(store, _realistic((5, 20, 30)), provenance={"code": "2"})
    assert one.version == other.version
    assert open_softmax(store, KEY).provenance == {"code": "2"}


def test_zarr_python_reads_it_without_our_code(tmp_path):
    softmax = _realistic((20, 300, 270))
    store = FolderObjects(tmp_path)
    _write(store, softmax, provenance={"patient": "P1"})
    group = zarr.open_group(tmp_path / KEY, mode="r")
    array = group[group.attrs["current"]]
    assert array.shape == (3, 20, 300, 270)
    assert array.attrs["provenance"] == {"patient": "P1"}
    tail, n = np.array(array.attrs["tail"]), array.attrs["steps"]
    m = round(tail[-1] * n)
    levels = np.unique(np.float32([0, *tail, *np.arange(m + 1, n - m) / n, *(1 - tail), 1]))
    steps = array[:, 3:9].astype(int)
    foreground = levels[((steps >> 1) ^ -(steps & 1)).cumsum(-1)]
    rest = foreground.sum(0, dtype=float)
    read = np.float32([np.maximum(1 - rest * (rest >= 2**-24), 0), *foreground])
    np.testing.assert_array_equal(read, open_softmax(store, KEY).slab(3, 9))


def test_a_volume_of_the_first_format_is_read():
    softmax = _realistic((20, 64, 70))
    volume = first_format(softmax)
    assert not volume.keeps_ranking
    assert np.abs(volume.slab(0, 20) - softmax).max() <= 4 / 65535
    assert (volume.labels(0, 20) == softmax.argmax(axis=0)).mean() > 0.999


def test_slabs_are_what_the_volume_holds_and_fetch_their_own_bytes(tmp_path):
    softmax = _realistic((50, 260, 60))
    store = MeteredObjects(FolderObjects(tmp_path))
    _write(store, softmax, depth=7)
    volume = open_softmax(store, KEY)
    whole = volume.codes(0, 50)
    for z0, z1 in ((0, 1), (15, 17), (16, 32), (49, 50), (3, 47)):
        np.testing.assert_array_equal(volume.codes(z0, z1), whole[:, z0:z1])
        np.testing.assert_array_equal(volume.slab(z0, z1), decode(whole[:, z0:z1], volume.levels))
    slabs = list(volume.code_slabs())
    assert [(z0, z1) for z0, z1, _ in slabs] == [(0, 16), (16, 32), (32, 48), (48, 50)]
    np.testing.assert_array_equal(np.concatenate([codes for _, _, codes in slabs], axis=1), whole)
    before = store.bytes_down
    volume.codes(16, 32)
    own = volume._index()[2:4, 1]  # two tiles a depth
    assert store.bytes_down - before == own.sum() < volume.size


def _shard(store):
    (key,) = [item.key for item in store.list(KEY) if item.key.endswith("c/0/0/0/0")]
    return key


def test_a_changed_byte_is_detected(tmp_path):
    store = FolderObjects(tmp_path)
    _write(store, _realistic())
    content = bytearray(store.get(_shard(store)))
    content[len(content) // 3] ^= 1
    store.put(_shard(store), content)
    volume = open_softmax(store, KEY)
    with pytest.raises(CorruptArtefactError, match="checksum of a chunk is wrong"):
        volume.slab(0, 40)
    with pytest.raises(CorruptArtefactError, match="SHA-256"):
        volume.verify()


def test_a_damaged_index_is_detected(tmp_path):
    store = FolderObjects(tmp_path)
    _write(store, _realistic())
    content = bytearray(store.get(_shard(store)))
    content[-10] ^= 1
    store.put(_shard(store), content)
    with pytest.raises(CorruptArtefactError, match="index of its chunks is damaged"):
        open_softmax(store, KEY).slab(0, 1)


def test_truncation_other_classes_and_absence_are_told(tmp_path):
    store = FolderObjects(tmp_path)
    with pytest.raises(MissingArtefactError):
        open_softmax(store, KEY)
    _write(store, _realistic())
    with pytest.raises(CorruptArtefactError, match=r"classes are \['background', 'organ1'"):
        open_softmax(store, KEY, class_names=["background", "organ2", "organ1", "organ3"])
    store.put(_shard(store), store.get(_shard(store))[:-100])
    with pytest.raises(CorruptArtefactError, match="bytes, its description says"):
        open_softmax(store, KEY)


def test_a_writer_that_fails_leaves_what_stood_there(tmp_path):
    store = FolderObjects(tmp_path)
    first = _realistic(seed=1)
    _write(store, first)
    names = ["background", "organ1", "organ2", "organ3"]

    def interrupted():
        with SoftmaxWriter(store, KEY, Grid.with_voxels(first.shape[1:], (5, 3, 2)), class_names=names) as writer:
            writer.write(0, _realistic(seed=2)[:, :20])
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        interrupted()
    np.testing.assert_array_equal(open_softmax(store, KEY).labels(0, 40), first.argmax(axis=0))


def test_writing_again_replaces_and_removes_what_nobody_touched_for_a_day(tmp_path):
    store = FolderObjects(tmp_path)
    one, two = _write(store, _realistic(seed=1)), _write(store, _realistic(seed=2))
    assert one.version != two.version
    assert len(_places(store)) == 2  # the first may still be read, or its writer be at it
    assert open_softmax(store, KEY).version == two.version
    _grow_old(tmp_path, 25)
    assert _write(store, _realistic(seed=2)).version == two.version
    assert _places(store) == {place_of(store, KEY)}


def _places(store):
    return {item.key.split("/")[4] for item in store.list(KEY)} - {"zarr.json"}


def _grow_old(folder, hours):
    for path in folder.rglob("*"):
        then = path.stat().st_mtime - 3600 * hours
        os.utime(path, (then, then))


def test_a_reader_of_a_volume_that_is_replaced_meanwhile_is_told_to_read_again_never_a_mixture(tmp_path):
    store = FolderObjects(tmp_path)
    first, second = _realistic(seed=1), _realistic(seed=2)
    _write(store, first)
    volume, untouched = open_softmax(store, KEY), open_softmax(store, KEY)
    np.testing.assert_array_equal(volume.labels(0, 16), first[:, :16].argmax(axis=0))
    _write(store, second)
    np.testing.assert_array_equal(volume.labels(16, 32), first[:, 16:32].argmax(axis=0))  # still there
    _grow_old(tmp_path, 25)
    _write(store, second)
    for read in (lambda: volume.labels(0, 16), lambda: untouched.slab(0, 40), volume.verify):
        with pytest.raises(StorageError, match="replaced by a newer version while it was read") as told:
            read()
        assert told.value.may_retry
    again = open_softmax(store, KEY)
    np.testing.assert_array_equal(again.labels(0, 40), second.argmax(axis=0))
    store.delete([item.key for item in store.list(KEY) if item.key.endswith("c/0/0/0/0")])
    with pytest.raises(MissingArtefactError, match="its payload is gone"):
        again.labels(0, 16)


def test_a_volume_of_before_stands_at_its_version_and_is_read(tmp_path):
    store = FolderObjects(tmp_path)
    facts = _write(store, _realistic(seed=1))
    place = place_of(store, KEY)
    (tmp_path / KEY / place).rename(tmp_path / KEY / facts.version)
    group = {"zarr_format": 3, "node_type": "group"}
    attributes = {"format": "curvas-softmax-2", "current": facts.version, "fullest_slice": 3}
    store.put(f"{KEY}/zarr.json", seal_record({**group, "attributes": attributes}, "attributes"))
    volume = open_softmax(store, KEY)
    assert (volume.version, volume.fullest_slice) == (facts.version, 3)
    volume.verify()
    evil = {**group, "attributes": {**attributes, "current": "../../elsewhere"}}
    store.put(f"{KEY}/zarr.json", seal_record(evil, "attributes"))
    with pytest.raises(CorruptArtefactError):
        open_softmax(store, KEY)


@pytest.mark.parametrize(
    ("z0", "slab"),
    [(1, np.zeros((4, 2, 70, 90))), (0, np.zeros((3, 2, 70, 90))), (0, np.full((4, 2, 70, 90), np.nan))],
)
def test_slabs_that_do_not_fit_are_refused(tmp_path, z0, slab):
    names = ["background", "a", "b", "c"]
    with (
        pytest.raises(StorageError),
        SoftmaxWriter(FolderObjects(tmp_path), KEY, UNIT_GRID, class_names=names) as writer,
    ):
        writer.write(z0, slab)


def test_missing_slices_are_refused(tmp_path):
    softmax = _realistic()
    store = FolderObjects(tmp_path)
    with (
        pytest.raises(StorageError, match="20 of 40 slices"),
        SoftmaxWriter(store, KEY, UNIT_GRID, class_names="abcd") as writer,
    ):
        writer.write(0, softmax[:, :20])
    assert list(store.list("")) == []


def test_files_and_file_like_objects_round_trip(tmp_path):
    softmax = _realistic((5, 20, 30)).astype(np.float16)
    buffer = io.BytesIO()
    write_softmax(buffer, softmax, spacing_mm=(3, 2, 1))
    write_softmax(tmp_path / "softmax.zip", softmax)
    for source in (buffer, tmp_path / "softmax.zip"):
        volume = read_softmax(source)
        np.testing.assert_array_equal(volume.labels(0, 5), softmax.argmax(axis=0))
    assert read_softmax(buffer).grid.spacing_mm == (3, 2, 1)
    (tmp_path / "short.zip").write_bytes(buffer.getvalue()[:-30])
    with pytest.raises(CorruptArtefactError):
        read_softmax(tmp_path / "short.zip")
    with pytest.raises(MissingArtefactError):
        read_softmax(tmp_path / "none.zip")
