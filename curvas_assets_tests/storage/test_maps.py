"""Claims proved here.

- A map is read by nibabel with the scan's affine, axes and spacing, whatever the depth of its slabs.
- Entropies are kept to half a thousandth of a nat; what is below the tails' own is 0.
- A map that was not finished is not there.
- A map of another writing than the volume beside it is told; the same content written twice is the same map.
"""

import nibabel as nib
import numpy as np
import pytest

from curvas_assets.errors import StorageError
from curvas_assets.geometry import Grid
from curvas_assets.stages.ensemble import pair
from curvas_assets.storage.maps import MapWriter, download_map
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax

AFFINE = np.array([[-2.0, 0, 0, 90], [0, -3.0, 0, 80], [0, 0, 5.0, -400], [0, 0, 0, 1]])


@pytest.mark.parametrize("kind", ["entropy", "labels"])
def test_a_map_is_read_with_the_scans_geometry(tmp_path, kind):
    values = (np.random.default_rng(0).random((7, 5, 4)) * 3).astype(np.float32 if kind == "entropy" else np.uint8)
    store = FolderObjects(tmp_path / "store")
    with MapWriter(store, "a/map.nii.gz", Grid(values.shape, AFFINE), kind=kind) as writer:
        for z0 in range(0, 7, 3):
            writer.write(z0, values[z0 : z0 + 3])
    image = nib.load(tmp_path / "store" / "a" / "map.nii.gz")
    np.testing.assert_allclose(np.asarray(image.dataobj), values.transpose(2, 1, 0), atol=5.1e-4, rtol=0)
    if kind == "labels":
        np.testing.assert_array_equal(np.asarray(image.dataobj), values.transpose(2, 1, 0))
    np.testing.assert_allclose(image.affine, AFFINE)
    np.testing.assert_allclose(image.header.get_zooms(), (2, 3, 5))
    assert image.get_data_dtype() == (np.int16 if kind == "entropy" else np.uint8)
    assert writer.facts is not None
    assert writer.facts.size == store.head("a/map.nii.gz").size


def test_a_map_says_nothing_where_tails_have_lost_their_place(tmp_path):
    values = np.array([0, 0.0029, 0.0031, 0.5, 1.3863], np.float32).reshape(1, 1, 5)
    with MapWriter(FolderObjects(tmp_path), "m.nii.gz", Grid((1, 1, 5), AFFINE), kind="entropy") as writer:
        writer.write(0, values)
    found = np.asarray(nib.load(tmp_path / "m.nii.gz").dataobj).ravel()
    np.testing.assert_allclose(found, [0, 0, 0.003, 0.5, 1.386], atol=1e-7)


def test_an_unfinished_map_is_not_there(tmp_path):
    store = FolderObjects(tmp_path)
    with (
        pytest.raises(StorageError, match="2 of 7 slices"),
        MapWriter(store, "m.nii.gz", Grid((7, 5, 4), AFFINE), kind="labels") as writer,
    ):
        writer.write(0, np.zeros((2, 5, 4)))
    assert store.head("m.nii.gz") is None


def _pair(store, seed):
    labels = np.random.default_rng(seed).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    softmax = np.eye(3, dtype=np.float32)[labels].transpose(3, 0, 1, 2)
    grid = Grid((4, 5, 6), AFFINE)
    with SoftmaxWriter(store, "v", grid, class_names="abc") as volume:
        with MapWriter(store, "m.nii.gz", grid, kind="labels") as written:
            written.write(0, labels)
            volume.write(0, softmax)
        pair(volume, {"labels": written})


def test_a_map_of_another_writing_than_its_volume_is_told(tmp_path):
    store = FolderObjects(tmp_path / "store")
    _pair(store, 1)
    first = open_softmax(store, "v").beside["labels"]
    download_map(store, "m.nii.gz", tmp_path / "back", check=first)
    _pair(store, 1)
    assert open_softmax(store, "v").beside["labels"] == first
    _pair(store, 2)
    with pytest.raises(StorageError, match="not written with the volume beside it") as told:
        download_map(store, "m.nii.gz", tmp_path / "other", check=first)
    assert told.value.may_retry
    assert not (tmp_path / "other").exists()
    download_map(store, "m.nii.gz", tmp_path / "other", check=open_softmax(store, "v").beside["labels"])
