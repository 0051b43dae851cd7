"""Claims proved here.

- What nnU-Net's own export writes comes in: the label map to the voxel, probabilities within the format's bounds.
- What goes out is what nnU-Net's own ensembling reads and averages, and comes in again with the same labels.
- Any slice count, float16 to float64, two to eight classes.
- Another shape, spacing, place, class count or class order, logits, and a label map of another prediction are refused by
  name; so are damaged and truncated files; nothing is stored then.
- Whatever nnU-Net's reader, voxel order and oblique angle: what nnU-Net writes lies on the scan's own voxels, and so it does
  where the label map is in another voxel order of the same voxels. The reader in plans.json is believed.
- An import takes no more memory when the slices double. Nothing is unpacked whose header does not fit, and a full disk is
  told as that.
"""

import errno
import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.errors import CorruptArtefactError, DiskError, StorageError
from curvas_assets.geometry import Grid
from curvas_assets.storage.nnunet_exchange import export_nnunet_prediction, import_nnunet_prediction
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax
from curvas_assets.voxel_order import READERS, Turn, turned_image
from curvas_assets_tests.strategies import ORDERS, oblique_images

KEY = "output/P1/model/softmax.zarr"
AFFINE = np.array([[-2.0, 0, 0, 90], [0, -3.0, 0, 80], [0, 0, 5.0, -400], [0, 0, 0, 1]])


def _probabilities(shape=(21, 18, 25), classes=4, seed=0, dtype=np.float32):
    logits = np.random.default_rng(seed).normal(0, 3, (classes, *shape))
    logits[0] += 4
    p = np.exp(logits - logits.max(axis=0))
    return (p / p.sum(axis=0)).astype(dtype)


def _upload(folder, predicted, affine=AFFINE, labels=None, **arrays):
    np.savez_compressed(folder / "case.npz", **(arrays or {"probabilities": predicted}))
    labels = predicted.argmax(axis=0).astype(np.uint8) if labels is None else labels
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), folder / "case.nii.gz")
    return folder / "case.npz", folder / "case.nii.gz"


def _import(files, store, softmax, **options):
    names = ["background", *(f"organ{c}" for c in range(1, softmax.shape[0]))]
    given = {"class_names": names, "shape": softmax.shape[1:], "affine": AFFINE, **options}
    return import_nnunet_prediction(*files, store, KEY, **given)


@pytest.mark.parametrize(
    ("shape", "classes", "dtype"),
    [((1, 18, 25), 2, np.float16), ((21, 18, 25), 4, np.float32), ((33, 300, 7), 8, np.float64)],
)
def test_a_prediction_made_elsewhere_comes_in(tmp_path, shape, classes, dtype):
    softmax = _probabilities(shape, classes, dtype=dtype)
    store = FolderObjects(tmp_path / "store")
    facts = _import(_upload(tmp_path, softmax), store, softmax, provenance={"patient": "P1", "predictor": "elsewhere"})
    volume = open_softmax(store, KEY)
    assert volume.version == facts.version
    assert volume.grid.spacing_mm == (5, 3, 2)
    np.testing.assert_array_equal(volume.grid.affine, AFFINE)
    assert volume.provenance == {
        "patient": "P1",
        "predictor": "elsewhere",
        "imported_from": ["case.npz", "case.nii.gz"],
    }
    np.testing.assert_array_equal(volume.labels(0, shape[0]), softmax.argmax(axis=0))
    normalised = softmax.astype(np.float64) / softmax.astype(np.float64).sum(axis=0)
    assert np.abs(volume.slab(0, shape[0]) - normalised).max() <= 3e-4


def test_what_nnunets_own_export_writes_comes_in(tmp_path):
    """The export function itself, on logits that need no resampling, written by its SimpleITK writer."""
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    shape, spacing = (12, 18, 25), [5.0, 3.0, 2.0]
    plans = {
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "3d_fullres": {
                "architecture": {},  # there, so that these are no plans of an old nnU-Net
                "spacing": spacing,
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {
                    "is_seg": False,
                    "order": 1,
                    "order_z": 0,
                    "force_separate_z": None,
                },
            }
        },
    }
    dataset = {"labels": {"background": 0, "pancreas": 1, "kidney": 2, "liver": 3}, "file_ending": ".nii.gz"}
    properties = {
        "sitk_stuff": {
            "spacing": (2.0, 3.0, 5.0),
            "origin": (-90.0, -80.0, -400.0),
            "direction": tuple(np.eye(3).ravel()),
        },
        "spacing": spacing,
        "shape_before_cropping": shape,
        "bbox_used_for_cropping": [[0, n] for n in shape],
        "shape_after_cropping_and_before_resampling": shape,
    }
    logits = np.random.default_rng(3).normal(0, 3, (4, *shape)).astype(np.float32)
    manager = PlansManager(plans)
    export_prediction_from_logits(
        logits, properties, manager.get_configuration("3d_fullres"), manager, dataset, str(tmp_path / "case"), True, 1
    )
    written = np.load(tmp_path / "case.npz")["probabilities"]
    store = FolderObjects(tmp_path / "store")
    _import(
        (tmp_path / "case.npz", tmp_path / "case.nii.gz"),
        store,
        written,
        class_names=list(dataset["labels"]),
        labels=dataset["labels"],
        affine=np.diag([-2.0, -3.0, 5.0, 1]) + np.array([[0, 0, 0, 90], [0, 0, 0, 80], [0, 0, 0, -400], [0, 0, 0, 0]]),
    )
    volume = open_softmax(store, KEY)
    np.testing.assert_array_equal(volume.labels(0, 12), written.argmax(axis=0))
    assert np.abs(volume.slab(0, 12) - written).max() <= 3e-4


def _softmax_of(labels):
    p = np.full((4, *labels.shape), 0.1, np.float32)
    np.put_along_axis(p, labels[None].astype(np.int64), 0.7, axis=0)
    return p


@given(image=oblique_images(), name=st.sampled_from(sorted(READERS)), told=st.booleans())
def test_what_nnunet_writes_lies_on_the_scans_own_voxels(image, name, told):
    """A network that repeats the scan: read, and written, by nnU-Net's own reader and writer."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    own = np.asarray(image.dataobj).transpose(2, 1, 0)
    with TemporaryDirectory() as folder:
        nib.save(image, Path(folder, "image.nii.gz"))
        scan = nib.Nifti1Image.from_filename(Path(folder, "image.nii.gz"))
        io_class = recursive_find_reader_writer_by_name(name)()
        seen, properties = io_class.read_images([str(Path(folder, "image.nii.gz"))])
        np.savez_compressed(Path(folder, "case.npz"), probabilities=_softmax_of(seen[0]))
        io_class.write_seg(seen[0].astype(np.uint8), str(Path(folder, "case.nii.gz")), properties)
        store = FolderObjects(Path(folder, "store"))
        files = (Path(folder, "case.npz"), Path(folder, "case.nii.gz"))
        _import(files, store, _softmax_of(own), affine=scan.affine, reader=name if told else None)
        volume = open_softmax(store, KEY)
        np.testing.assert_array_equal(volume.labels(0, len(own)), own)
        np.testing.assert_array_equal(volume.grid.affine, scan.affine)


@pytest.mark.parametrize("order", ["RAS", "PIR", "ASL"])
def test_a_label_map_in_another_voxel_order_of_the_same_voxels_is_brought_back(tmp_path, order):
    softmax = _probabilities()
    _, label_map = _upload(tmp_path, softmax)
    nib.save(turned_image(nib.Nifti1Image.from_filename(label_map), order), tmp_path / "turned.nii.gz")
    turned = Turn.to(order, AFFINE).forth(softmax)
    np.savez_compressed(tmp_path / "turned.npz", probabilities=turned)
    store = FolderObjects(tmp_path / "store")
    _import((tmp_path / "turned.npz", tmp_path / "turned.nii.gz"), store, softmax)
    np.testing.assert_array_equal(open_softmax(store, KEY).labels(0, 21), softmax.argmax(axis=0))
    assert open_softmax(store, KEY).provenance["voxel_order_of_file"] == order
    assert order in ORDERS


def test_the_reader_of_the_plans_is_believed(tmp_path):
    """Where nothing was found, the label map cannot tell in which order the probabilities are."""
    softmax = _softmax_of(np.zeros((21, 18, 25), np.uint8))
    softmax[:2, 3, 2, 1] = 0.5, 0.3
    files = _upload(tmp_path, Turn.to("RAS", AFFINE).forth(softmax), labels=np.zeros((21, 18, 25), np.uint8))
    for reader, at in (("NibabelIOWithReorient", (3, 2, 1)), ("SimpleITKIO", (3, 15, 23))):
        store = FolderObjects(tmp_path / reader)
        _import(files, store, softmax, reader=reader)
        assert np.unravel_index(open_softmax(store, KEY).slab(0, 21)[1].argmax(), (21, 18, 25)) == at
    with pytest.raises(StorageError, match=r"read the scan by 'Tiff3DIO'"):
        _import(files, FolderObjects(tmp_path / "s"), softmax, reader="Tiff3DIO")


def test_nothing_is_unpacked_whose_header_does_not_fit(tmp_path):
    """A small file that would unpack to 300 GiB, by its own header or in spite of it."""
    softmax = _probabilities()
    _, label_map = _upload(tmp_path, softmax)
    for name, shape in (("honest", (4, 10**4, 10**4, 200)), ("liar", softmax.shape)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("probabilities.npy", header.getvalue() + softmax.tobytes() + bytes(10**7))
    store = FolderObjects(tmp_path / "store")
    with pytest.raises(StorageError, match="its array is 4 × 10000 × 10000 × 200"):
        _import((tmp_path / "honest.npz", label_map), store, softmax)
    with pytest.raises(CorruptArtefactError, match="it holds more than its header promises"):
        _import((tmp_path / "liar.npz", label_map), store, softmax)
    assert list(store.list("")) == []


def test_a_full_disk_is_told_and_not_as_a_damaged_file(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    softmax = _probabilities()
    files = _upload(tmp_path, softmax)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(DiskError, match=r"case.npz: .* disk of .* is full.* needs about 0\.1 MiB there"):
        _import(files, FolderObjects(tmp_path / "store"), softmax)


def _stored(store, key, softmax, affine=AFFINE):
    names = ["background", "organ1", "organ2", "organ3"]
    with SoftmaxWriter(store, key, Grid(softmax.shape[1:], affine), class_names=names) as writer:
        writer.write(0, softmax)
    return open_softmax(store, key)


def test_what_goes_out_comes_in_again(tmp_path):
    store = FolderObjects(tmp_path / "store")
    before = _stored(store, "before", _probabilities())
    files = export_nnunet_prediction(before, tmp_path / "out", "case")
    out = np.load(files.probabilities)["probabilities"]
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, before.slab(0, 21))
    _import((files.probabilities, files.labels), store, out)
    after = open_softmax(store, KEY)
    np.testing.assert_array_equal(after.labels(0, 21), before.labels(0, 21))
    np.testing.assert_allclose(
        after.slab(0, 21), before.slab(0, 21), atol=1e-4
    )  # an organ that no longer leads is coarser


def test_nnunets_own_ensembling_averages_what_goes_out(tmp_path):
    from nnunetv2.ensembling.ensemble import merge_files
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    oblique = AFFINE.copy()
    turn = np.deg2rad(20)
    oblique[:3, :3] = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    ) @ np.diag([-2.0, -3.0, 5.0])
    store = FolderObjects(tmp_path / "store")
    volumes = [_stored(store, f"m{i}", _probabilities(seed=i), oblique) for i in range(2)]
    files = [export_nnunet_prediction(v, tmp_path / f"m{i}", "case") for i, v in enumerate(volumes)]
    labels = LabelManager({"background": 0, "organ1": 1, "organ2": 2, "organ3": 3}, None)
    merge_files([str(f.probabilities) for f in files], str(tmp_path / "merged"), ".nii.gz", SimpleITKIO(), labels, True)
    mean = (volumes[0].slab(0, 21) + volumes[1].slab(0, 21)) / 2
    np.testing.assert_allclose(np.load(tmp_path / "merged.npz")["probabilities"], mean, atol=1e-7)
    merged = nib.load(tmp_path / "merged.nii.gz")
    np.testing.assert_allclose(merged.affine, oblique, atol=1e-4)
    np.testing.assert_allclose(nib.load(files[0].labels).affine, oblique, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(merged.dataobj).transpose(2, 1, 0), mean.argmax(axis=0))
    assert set(pickle.loads(files[0].properties.read_bytes())) >= {"sitk_stuff", "spacing", "shape_before_cropping"}


def _moved(millimetres):
    affine = AFFINE.copy()
    affine[0, 3] += millimetres
    return affine


WRONG = {
    "another shape": (lambda p: {}, {"shape": (21, 18, 24)}, r"21 × 18 × 25 voxels \(z, y, x\), the scan 21 × 18 × 24"),
    "another place": (lambda p: {"affine": _moved(3)}, {}, "the same voxel 3.0 mm away"),
    "another spacing": (lambda p: {"affine": AFFINE @ np.diag([1.01, 1, 1, 1])}, {}, "its spacing is 5 × 3 × 2.02 mm"),
    "another number of classes": (
        lambda p: {"probabilities": p[:3] / p[:3].sum(axis=0)},
        {},
        "it has 3 classes, the study 4",
    ),
    "axes of nibabel": (lambda p: {"probabilities": p.transpose(0, 3, 2, 1).copy()}, {}, "its axes are x, y, z"),
    "another order of classes": (
        lambda p: {"probabilities": p[[0, 2, 1, 3]]},
        {},
        "is the argmax of its probabilities in only",
    ),
    "values with gaps": (
        lambda p: {},
        {"labels": {"background": 0, "organ1": 1, "organ2": 2, "organ3": 4}},
        "its model's labels are",
    ),
    "regions": (lambda p: {}, {"labels": {"background": 0, "organ1": [1, 2], "organ2": 2}}, "regions"),
    "logits": (lambda p: {"probabilities": np.log(p)}, {}, "logits.*apply the softmax"),
    "no number": (lambda p: {"probabilities": np.where(p > 0.99, np.nan, p)}, {}, "NaN or infinity"),
    "another array": (lambda p: {"softmax": p}, {}, "it holds softmax, not probabilities"),
    "integers": (lambda p: {"probabilities": (p * 255).astype(np.uint8)}, {}, "probabilities is uint8"),
    "Fortran order": (lambda p: {"probabilities": np.asfortranarray(p)}, {}, "in Fortran order"),
    "labels of another model": (
        lambda p: {},
        {"labels": {"background": 0, "organ2": 1, "organ1": 2, "organ3": 3}},
        "its model's labels are",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_the_patient_is_refused(tmp_path, what):
    changed, options, message = WRONG[what]
    softmax = _probabilities()
    files = _upload(tmp_path, softmax, **changed(softmax))
    store = FolderObjects(tmp_path / "store")
    with pytest.raises(StorageError, match=message):
        _import(files, store, softmax, **options)
    assert list(store.list("")) == []


@pytest.mark.parametrize("name", ["case.npz", "case.nii.gz"])
@pytest.mark.parametrize("how", ["cut short", "a changed byte", "something else"])
def test_damaged_files_are_told_by_name(tmp_path, name, how):
    softmax = _probabilities()
    files = _upload(tmp_path, softmax)
    content = bytearray((tmp_path / name).read_bytes())
    if how == "a changed byte":
        content[len(content) // 2] ^= 0xFF
    (tmp_path / name).write_bytes({"cut short": content[:-200], "something else": b"text"}.get(how, content))
    store = FolderObjects(tmp_path / "store")
    with pytest.raises(CorruptArtefactError, match=f"{name}: importing .* damaged or cut short"):
        _import(files, store, softmax)
    assert list(store.list("")) == []


@pytest.mark.parametrize("name", ["case.npz", "case.nii.gz"])
def test_missing_files_are_told_by_name(tmp_path, name):
    softmax = _probabilities()
    files = _upload(tmp_path, softmax)
    (tmp_path / name).unlink()
    with pytest.raises(StorageError, match=f"{name}: .*no such file"):
        _import(files, FolderObjects(tmp_path / "store"), softmax)


def test_an_import_takes_no_more_memory_when_the_slices_double(tmp_path):
    store = FolderObjects(tmp_path / "store")
    peaks = []
    for depth in (16, 160, 320):  # the first loads the kernels
        softmax = np.zeros((4, depth, 64, 64), np.float32)
        softmax[0] = 1
        softmax[:, :, 20:24, 20:24] = _probabilities((depth, 4, 4))
        (tmp_path / str(depth)).mkdir()
        files = _upload(tmp_path / str(depth), softmax)
        tracemalloc.start()
        _import(files, store, softmax)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.1 * peaks[1]
