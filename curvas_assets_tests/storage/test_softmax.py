"""Claims proved here.

- The label map survives exactly, for any shape, float type and number of classes, and any tail.
- Probabilities within 3e-4 (strict mode 2.5e-5), ECE within 1e-6, soft volumes within 1e-5, mean entropy within 0.1 %, which
  plain rounding misses: 1 slice, sizes that chunks do not divide, float16 to float64, 2 to 8 classes.
- The version is of the content, whoever made it.
- Slabs of any depth are what the whole volume holds; a slab fetches its own bytes only.
- zarr-python reads the volume without our code.
- Corruption, truncation and other classes are errors that say so; a writer that fails leaves what stood there.
- A file or file-like object round-trips through `write_softmax` and `read_softmax`.
"""

import io

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, StorageError
from curvas_assets.storage.encoding import decode
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax, read_softmax, write_softmax
from curvas_assets_tests.strategies import softmaxes

KEY = "output/P1/model/softmax.zarr"


def _write(store, softmax, depth=16, **options):
    names = ["background", *(f"organ{c}" for c in range(1, softmax.shape[0]))]
    with SoftmaxWriter(store, KEY, softmax.shape, class_names=names, spacing_mm=(5, 3, 2), **options) as writer:
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


def _entropy(p):
    p = p.astype(np.float64)
    return float(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=0).mean())


@settings(max_examples=60)
@given(softmaxes(), st.integers(1, 20), st.sampled_from([0.0, 1e-4]))
def test_the_label_map_survives_and_errors_stay_bounded(tmp_path_factory, softmax, depth, tail):
    store = FolderObjects(tmp_path_factory.mktemp("store"))
    facts = _write(store, softmax, depth, tail=tail)
    volume = open_softmax(store, KEY)
    read = volume.slab(0, softmax.shape[1])
    labels = softmax.argmax(axis=0)
    np.testing.assert_array_equal(volume.labels(0, softmax.shape[1]), labels)
    np.testing.assert_array_equal(read.argmax(axis=0), labels)
    normalised = softmax.astype(np.float64) / softmax.astype(np.float64).sum(axis=0)
    # Repairing a near-tie moves one more code.
    assert np.abs(read - normalised).max() <= (3e-4 if tail else 2.5e-5) + 2 / 65535
    assert read.min() >= 0
    np.testing.assert_allclose(read.sum(axis=0), 1, atol=1e-6)
    assert facts.label_voxels == tuple(np.bincount(labels.ravel(), minlength=softmax.shape[0]))


def _ece(p, reference, bins=50):
    """Expected calibration error of the most likely class, bins [lower, upper)."""
    confidence, hit = p.max(axis=0).ravel().astype(np.float64), (p.argmax(axis=0) == reference).ravel()
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(which, confidence, bins) - np.bincount(which, hit, bins)
    return np.abs(gaps).sum() / confidence.size


def _soft_voxels(p):
    return p.sum(axis=(1, 2, 3), dtype=np.float64)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 230, 250), 2), ((17, 66, 257), 4), ((40, 70, 90), 5), ((33, 100, 41), 8)]
)
def test_every_figure_stays_within_its_bound(tmp_path, shape, classes, dtype):
    softmax = _realistic(shape, classes).astype(dtype)
    original = softmax.astype(np.float64)
    original /= original.sum(axis=0)
    reference = _realistic(shape, classes, noise_seed=9).argmax(axis=0)  # an annotator who sees it a little differently
    store = FolderObjects(tmp_path)
    _write(store, softmax)
    read = open_softmax(store, KEY).slab(0, shape[0])
    np.testing.assert_array_equal(read.argmax(axis=0), softmax.argmax(axis=0))
    assert np.abs(read - original).max() <= 3e-4
    assert np.abs(_soft_voxels(read) / _soft_voxels(original) - 1)[1:].max() <= 1e-5
    assert abs(_entropy(read) / _entropy(original) - 1) <= 1e-3
    assert _ece(original, reference) > 0.001
    # Half precision puts many confidences on the edge of a bin, between two codes, and each may fall to either side: a
    # single voxel weighs 3e-6 here, and 4e-9 in a clinical scan.
    bound = 2e-5 if dtype == np.float16 else 1e-6
    assert abs(_ece(read, reference) - _ece(original, reference)) <= bound


def test_plain_rounding_misses_what_pooling_keeps(tmp_path):
    softmax = _realistic()
    plain = np.round(softmax[1:].astype(np.float64) * 65535) / 65535
    assert np.abs(_soft_voxels(plain) / _soft_voxels(softmax[1:]) - 1).max() > 1e-5
    assert abs(_entropy(np.concatenate([1 - plain.sum(axis=0, keepdims=True), plain])) / _entropy(softmax) - 1) > 1e-3


def test_the_strict_mode_is_closer_and_larger(tmp_path):
    softmax = _realistic()
    store = FolderObjects(tmp_path)
    pooled_size = _write(store, softmax).size
    assert _write(store, softmax, tail=0).size > pooled_size
    strict = open_softmax(store, KEY).slab(0, softmax.shape[1])
    assert np.abs(strict - softmax).max() <= 2.5e-5
    np.testing.assert_array_equal(strict.argmax(axis=0), softmax.argmax(axis=0))


@pytest.mark.parametrize("tail", [1e-6, 5e-6, 1e-5, 3e-5, 1e-3, 1e-2])
def test_any_tail_keeps_labels_mass_and_its_own_bound(tmp_path, tail):
    softmax = _realistic((20, 64, 70))
    store = FolderObjects(tmp_path)
    _write(store, softmax, tail=tail)
    read = open_softmax(store, KEY).slab(0, 20)
    np.testing.assert_array_equal(read.argmax(axis=0), softmax.argmax(axis=0))
    assert np.abs(read - softmax).max() <= max(3 * tail, 2.5e-5)
    if tail >= 1e-5:
        assert np.abs(_soft_voxels(read) / _soft_voxels(softmax) - 1)[1:].max() <= 1e-4


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
    np.testing.assert_array_equal(array[:], open_softmax(store, KEY).codes(0, 20))
    np.testing.assert_allclose(array[:] * array.attrs["scale_factor"], softmax[1:], atol=3e-4)


def test_slabs_are_what_the_volume_holds_and_fetch_their_own_bytes(tmp_path):
    softmax = _realistic((50, 260, 60))
    store = MeteredObjects(FolderObjects(tmp_path))
    _write(store, softmax, depth=7)
    volume = open_softmax(store, KEY)
    whole = volume.codes(0, 50)
    for z0, z1 in ((0, 1), (15, 17), (16, 32), (49, 50), (3, 47)):
        np.testing.assert_array_equal(volume.codes(z0, z1), whole[:, z0:z1])
        np.testing.assert_array_equal(volume.slab(z0, z1), decode(whole[:, z0:z1]))
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
        with SoftmaxWriter(store, KEY, first.shape, class_names=names, spacing_mm=(5, 3, 2)) as writer:
            writer.write(0, _realistic(seed=2)[:, :20])
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        interrupted()
    np.testing.assert_array_equal(open_softmax(store, KEY).labels(0, 40), first.argmax(axis=0))


def test_writing_again_replaces_and_sweeps_the_older_version(tmp_path):
    store = FolderObjects(tmp_path)
    one, two = _write(store, _realistic(seed=1)), _write(store, _realistic(seed=2))
    assert one.version != two.version
    assert {item.key.split("/")[4] for item in store.list(KEY)} == {"zarr.json", two.version}
    assert _write(store, _realistic(seed=2)).version == two.version


@pytest.mark.parametrize(
    ("z0", "slab"),
    [(1, np.zeros((4, 2, 70, 90))), (0, np.zeros((3, 2, 70, 90))), (0, np.full((4, 2, 70, 90), np.nan))],
)
def test_slabs_that_do_not_fit_are_refused(tmp_path, z0, slab):
    names = ["background", "a", "b", "c"]
    with (
        pytest.raises(StorageError),
        SoftmaxWriter(FolderObjects(tmp_path), KEY, (4, 40, 70, 90), class_names=names, spacing_mm=(1, 1, 1)) as writer,
    ):
        writer.write(z0, slab)


def test_missing_slices_are_refused(tmp_path):
    softmax = _realistic()
    store = FolderObjects(tmp_path)
    with (
        pytest.raises(StorageError, match="20 of 40 slices"),
        SoftmaxWriter(store, KEY, softmax.shape, class_names="abcd", spacing_mm=(1, 1, 1)) as writer,
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
    assert read_softmax(buffer).spacing_mm == (3, 2, 1)
    (tmp_path / "short.zip").write_bytes(buffer.getvalue()[:-30])
    with pytest.raises(CorruptArtefactError):
        read_softmax(tmp_path / "short.zip")
    with pytest.raises(MissingArtefactError):
        read_softmax(tmp_path / "none.zip")
