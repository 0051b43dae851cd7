"""Claims proved here.

- A dataset has nnU-Net's files, one preprocessed case per patient, and no path of this machine.
- Fingerprint and plans are those nnU-Net's own extractor and planner would write; the study's overrides are applied.
- Scans in any voxel orders, and annotations in others, make the dataset that LPS scans make, to the bit; it says LPS.
- An annotation that lies elsewhere, a sheared scan, and a header that ITK reads otherwise: refused, or read as we read it.
- Labels of a scale slope are whole numbers in the dataset.
- Shared intensity statistics make the datasets of all annotators use one set, and their images are made once.
- Scans that are read once for several annotators make the datasets that each would make alone.
- The digest that decides whether models are stale is of the content.
- For scans of the challenge's size, nnU-Net's planner gives the winner's published plans; of other scans it makes plans with
  the same patch.
- Plans that do not fit are refused with what to change.
- A scan for which memory does not suffice is refused with what it needs, not killed, and may be tried again; so is one
  whose organs, which fill it, take more than the scan.
- A scan with NaN is refused as such, and so is one whose file is cut short or damaged, also where ITK accepts it.
- A scan has the voxels and the facts that nnU-Net's reader gives, whatever the type and the order of bytes. One of slope
  0 or NaN has no scale and no intercept, as prediction reads it. A `.nii` beside a `.nii.gz` is not read in its place.
- A dataset's folder may lie on another disk than what is beside it.
- No process is forked: a fork of a process with threads may hang for good.
"""

import errno
import gzip
import json
import os
import shutil

import blosc2
import nibabel as nib
import numpy as np
import pytest

from curvas_assets.errors import SegmentationError
from curvas_assets.segmentation import TrainingScans, prepare_dataset
from curvas_assets.segmentation.dataset import _Case, _move, _plan, _write_raw, dataset_digest, dataset_name
from curvas_assets.segmentation.preprocessing import nonzero_box
from curvas_assets.segmentation.runtime import nnunet_folders
from curvas_assets.study import Study, load_study
from curvas_assets.voxel_order import read_voxels, turned_image
from curvas_assets_tests.segmentation.conftest import tiny_study


def _scans(folder, annotation):
    return {
        p: (folder / p / "image.nii.gz", folder / p / f"annotation_{annotation}.nii.gz")
        for p in tiny_study().training_patients()
    }


def _changed(**plans) -> Study:
    raw = tiny_study().model_dump(mode="json")
    raw["plans"] |= plans
    return Study.model_validate(raw)


def test_a_dataset_has_nnunets_files_and_no_path(dataset, scans):
    names = {path.name for path in dataset.iterdir()}
    assert {"dataset.json", "dataset_fingerprint.json", "nnUNetPlans.json", "splits_final.json"} <= names
    assert len(list(dataset.rglob("*_seg.b2nd"))) == 3
    for path in dataset.rglob("*"):
        if path.is_file():
            assert str(scans).encode() not in path.read_bytes()
            assert str(dataset.parent).encode() not in path.read_bytes()


def test_plans_carry_the_studys_overrides(dataset):
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    network = configuration["architecture"]["arch_kwargs"]
    assert configuration["patch_size"] == [16, 24, 24]
    assert configuration["spacing"] == [8.0, 6.0, 6.0]
    assert (network["n_stages"], network["features_per_stage"]) == (3, [4, 8, 16])
    assert network["kernel_sizes"][0] == [1, 3, 3]
    assert network["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def test_the_fingerprints_intensities_are_those_of_the_annotated_voxels(dataset, scans):
    fingerprint = json.loads((dataset / "dataset_fingerprint.json").read_text())
    properties = fingerprint["foreground_intensity_properties_per_channel"]["0"]
    voxels = np.concatenate(
        [np.asarray(nib.load(i).dataobj)[np.asarray(nib.load(a).dataobj) > 0] for i, a in _scans(scans, 1).values()]
    )
    assert properties["mean"] == pytest.approx(voxels.mean(), abs=1)
    assert properties["percentile_99_5"] == pytest.approx(np.percentile(voxels, 99.5), abs=5)


def _turned(source, target, order):
    nib.save(turned_image(nib.Nifti1Image.from_filename(source), order), target)
    return target


def test_scans_in_any_voxel_order_make_the_same_dataset(dataset, scans, tmp_path):
    mixed = {
        patient: (
            _turned(image, tmp_path / f"{patient}_{order}.nii.gz", order),
            _turned(annotation, tmp_path / f"{patient}_{drawn}_seg.nii.gz", drawn),
        )
        for (patient, (image, annotation)), order, drawn in zip(
            _scans(scans, 1).items(), ("RAS", "PIR", "LPS"), ("RAS", "ASL", "RPI"), strict=True
        )
    }
    facts = prepare_dataset(tiny_study(), "anno1", mixed, tmp_path / "dataset")
    assert facts.digest == dataset_digest(dataset)
    assert facts.voxel_order == json.loads((tmp_path / "dataset/dataset.json").read_text())["voxel_order"] == "LPS"


def test_the_record_of_the_order_makes_no_dataset_of_before_stale(dataset, tmp_path):
    before = shutil.copytree(dataset, tmp_path / "before")
    content = json.loads((before / "dataset.json").read_text())
    del content["voxel_order"]
    (before / "dataset.json").write_text(json.dumps(content, indent=1))
    assert dataset_digest(before) == dataset_digest(dataset)
    (before / "dataset.json").write_text(json.dumps({**content, "numTraining": 9}, indent=1))
    assert dataset_digest(before) != dataset_digest(dataset)


def test_a_header_that_itk_reads_otherwise_is_read_as_we_read_it(dataset, scans, tmp_path):
    """pixdim of 1 mm beside an sform of 8 × 6 × 6 mm: nnU-Net would have seen another organ size."""
    odd = {}
    for patient, (image, annotation) in _scans(scans, 1).items():
        scan = nib.Nifti1Image.from_filename(image)
        header = scan.header.copy()
        header["pixdim"][1:4] = 1
        header["qform_code"], header["sform_code"] = 0, 1
        path = tmp_path / f"{patient}.nii"
        with path.open("wb") as file:
            header.write_to(file)
            file.write(np.asarray(scan.dataobj).astype(header.get_data_dtype()).tobytes(order="F"))
        assert nib.load(path).header["pixdim"][1] == 1
        np.testing.assert_allclose(nib.load(path).affine, scan.affine)
        odd[patient] = (path, annotation)
    facts = prepare_dataset(tiny_study(), "anno1", odd, tmp_path / "dataset")
    assert facts.digest == dataset_digest(dataset)


def test_an_annotation_that_lies_elsewhere_and_a_sheared_scan_are_refused(scans, tmp_path):
    (patient, (image, annotation)), *_ = _scans(scans, 1).items()
    label = nib.load(annotation)
    moved, sheared = label.affine.copy(), label.affine.copy()
    moved[0, 3] += 3
    sheared[1, 2] += 2
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), moved), tmp_path / "moved.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj).astype(np.int16), sheared), tmp_path / "sheared.nii.gz")
    with pytest.raises(SegmentationError, match=rf"{patient}: comparing moved.nii.gz .* 3 mm apart"):
        prepare_dataset(tiny_study(), "anno1", {patient: (image, tmp_path / "moved.nii.gz")}, tmp_path / "a")
    with pytest.raises(SegmentationError, match=rf"{patient}: .* sheared by"):
        prepare_dataset(tiny_study(), "anno1", {patient: (tmp_path / "sheared.nii.gz",) * 2}, tmp_path / "b")


def test_an_annotation_of_other_voxel_sizes_is_refused_where_it_begins_at_the_scans_corner(scans, tmp_path):
    patient, (image, annotation) = next(iter(_scans(scans, 1).items()))
    drawn = nib.load(annotation)
    scaled = drawn.affine @ np.diag([1.1, 1, 1, 1])
    nib.save(nib.Nifti1Image(np.asarray(drawn.dataobj), scaled), tmp_path / "scaled.nii.gz")
    with pytest.raises(SegmentationError, match=r"annotation's spacing is 8 × 6 × 6\.6 mm, the image's 8 × 6 × 6 "):
        prepare_dataset(tiny_study(), "anno1", {patient: (image, tmp_path / "scaled.nii.gz")}, tmp_path / "a")


def test_labels_of_a_scale_slope_are_whole_numbers(scans, tmp_path):
    sloped = {}
    for patient, (image, annotation) in _scans(scans, 1).items():
        label = nib.load(annotation)
        path = tmp_path / f"{patient}.nii.gz"
        nib.save(
            nib.Nifti1Image(np.asarray(label.dataobj).astype(np.float32) * np.float32(0.99999), label.affine), path
        )
        sloped[patient] = (image, path)
    (tmp_path / "out").mkdir()
    prepare_dataset(tiny_study(), "anno1", sloped, tmp_path / "out" / "dataset")
    (first, *_) = sorted((tmp_path / "out").rglob("*_seg.b2nd"))
    assert set(np.unique(blosc2.open(str(first))[:])) <= {-1, 0, 1, 2, 3}


def test_shared_statistics_are_the_same_for_every_annotator(scans, tmp_path):
    study = _changed(shared_intensity_statistics=True)
    everybody = {p: [scans / p / f"annotation_{k}.nii.gz" for k in (1, 2, 3)] for p in study.training_patients()}
    facts = [
        prepare_dataset(study, f"anno{k}", _scans(scans, k), tmp_path / str(k), all_annotations=everybody)
        for k in (1, 2)
    ]
    assert facts[0].intensity == facts[1].intensity
    apart = [prepare_dataset(tiny_study(), f"anno{k}", _scans(scans, k), tmp_path / f"own{k}") for k in (1, 2)]
    assert apart[0].intensity != apart[1].intensity
    with pytest.raises(SegmentationError, match="needs every annotation"):
        prepare_dataset(study, "anno1", _scans(scans, 1), tmp_path / "incomplete")


@pytest.mark.parametrize("shared", [True, False])
def test_scans_that_are_read_once_make_the_same_datasets(scans, tmp_path, monkeypatch, shared):
    from curvas_assets.segmentation import preprocessing, resampling

    study = _changed(shared_intensity_statistics=shared, spacing_mm=[9, 6, 6])
    everybody = {p: [scans / p / f"annotation_{k}.nii.gz" for k in (1, 2, 3)] for p in study.training_patients()}

    def made(folder, **options):
        return [
            prepare_dataset(study, f"anno{k}", _scans(scans, k), folder / str(k), all_annotations=everybody, **options)
            for k in (1, 2)
        ]

    alone, resampled = made(tmp_path / "alone"), []
    resample = resampling.resample_image

    def counted(*given, **options):
        resampled.append(given)
        return resample(*given, **options)

    monkeypatch.setattr(preprocessing, "resample_image", counted)
    read = TrainingScans(study, tmp_path / "scans")
    together = made(tmp_path / "together", read=read)
    assert [facts.digest for facts in together] == [facts.digest for facts in alone]
    assert len(resampled) == (3 if shared else 6)
    assert len(read._labels) == (9 if shared else 0)


def test_plans_that_do_not_fit_are_refused(scans, tmp_path):
    with pytest.raises(SegmentationError, match=r"plans.patch_size \[17, 24, 24\] is no multiple"):
        prepare_dataset(
            _changed(patch_size=[17, 24, 24], features_per_stage=None), "anno1", _scans(scans, 1), tmp_path / "a"
        )
    with pytest.raises(SegmentationError, match="not 3d_lowres"):
        prepare_dataset(_changed(configuration="3d_lowres"), "anno1", _scans(scans, 1), tmp_path / "b")
    with pytest.raises(SegmentationError, match="no training patient"):
        prepare_dataset(tiny_study(), "anno1", {}, tmp_path / "c")


def test_a_scan_for_which_memory_does_not_suffice_is_refused_with_what_it_needs(scans, tmp_path, monkeypatch):
    monkeypatch.setattr("curvas_assets.segmentation.dataset.available_memory", lambda: 1 << 20)
    needed = r"PHANTOM001: .* needed for 30 × 56 × 56 voxels, .* 0.0 GiB are free"
    with pytest.raises(SegmentationError, match=needed) as refused:
        prepare_dataset(tiny_study(), "anno1", _scans(scans, 1), tmp_path / "dataset")
    assert refused.value.may_retry
    monkeypatch.setattr("curvas_assets.segmentation.dataset.available_memory", lambda: 6 << 20)
    patient, (image, annotation) = next(iter(_scans(scans, 1).items()))
    prepare_dataset(tiny_study(), "anno1", {patient: (image, annotation)}, tmp_path / "small")
    label = nib.load(annotation)
    filled = nib.Nifti1Image(np.ones(label.shape, np.uint8), label.affine)
    nib.save(filled, tmp_path / "filled.nii.gz")
    with pytest.raises(SegmentationError, match=needed):
        prepare_dataset(tiny_study(), "anno1", {patient: (image, tmp_path / "filled.nii.gz")}, tmp_path / "filled")


INTEGERS = [f"{order}{kind}" for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8") for order in "<>"]


@pytest.mark.parametrize("slope", [1, 0.3])
@pytest.mark.parametrize("stored", ["<f4", ">f4", "<f8", ">f8", *INTEGERS])
def test_a_scan_is_what_nnunets_reader_reads_and_read_once_if_it_has_no_scale(
    scans, tmp_path, monkeypatch, stored, slope
):
    import SimpleITK as sitk
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    patient, (image, _) = next(iter(_scans(scans, 1).items()))
    scan = nib.load(image)
    dtype = np.dtype(stored).newbyteorder("=")
    if dtype.kind == "f":
        voxels = (np.asarray(scan.dataobj) / 7).astype(dtype)
    else:
        voxels = np.asarray(scan.dataobj).astype(dtype)
        voxels[4, 5, 6:8] = np.iinfo(dtype).min, np.iinfo(dtype).max
    voxels[:3] = 0
    out = nib.Nifti1Image(voxels.astype(stored), scan.affine, nib.Nifti1Header(endianness=stored[0]))
    out.header.set_data_dtype(stored)
    out.header.set_slope_inter(slope, 0)
    nib.save(out, tmp_path / "scan.nii.gz")
    assert nib.load(tmp_path / "scan.nii.gz").get_data_dtype() == np.dtype(stored)
    assert nib.load(tmp_path / "scan.nii.gz").dataobj.slope == pytest.approx(slope)
    (expected,), properties = SimpleITKIO().read_images([str(tmp_path / "scan.nii.gz")])
    itks = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "scan.nii.gz")))
    if slope == 1:
        monkeypatch.setattr(sitk, "ReadImage", None)
        np.testing.assert_array_equal(itks, voxels.T)
    read = TrainingScans(tiny_study(), tmp_path / "read").scan(patient, (tmp_path / "scan.nii.gz",))
    (ours,) = read.channels()
    assert ours.dtype == itks.dtype
    assert itks.dtype == dtype or (slope != 1 and dtype.kind != "f")
    np.testing.assert_array_equal(ours, itks)
    np.testing.assert_array_equal(ours.astype(np.float32), expected)
    assert read.properties() == properties
    assert repr(read.properties()) == repr(properties)  # also the signs of zeros
    assert read.box == nonzero_box([expected])
    assert read.box[2][0] == 3


def _written(path, image, order, slope=1.0, inter=0.0):
    """A file of whole numbers in a voxel order, its .gz only packed, so that a flipped bit of a voxel unpacks."""
    turned = turned_image(image, order)
    header = turned.header.copy()
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, inter, 352
    content = header.binaryblock + bytes(4) + np.asarray(turned.dataobj).astype("<i2").tobytes(order="F")
    path.write_bytes(gzip.compress(content, 0) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(("order", "slope"), [("LPS", 1), ("LPS", 0.5), ("RAS", 1)])
@pytest.mark.parametrize("damage", ["cut.nii", "cut.nii.gz", "bit.nii.gz"])
def test_a_scan_whose_file_is_cut_short_or_damaged_is_refused(scans, tmp_path, damage, order, slope):
    patient, (image, annotation) = next(iter(_scans(scans, 1).items()))
    path = _written(tmp_path / damage, nib.Nifti1Image.from_filename(image), order, slope)
    assert nib.load(path).get_data_dtype() == np.int16
    TrainingScans(tiny_study(), tmp_path / "sound").scan(patient, (path,))
    whole = path.read_bytes()
    at = 2 * len(whole) // 3
    path.write_bytes(whole[:at] + (bytes([whole[at] ^ 1]) + whole[at + 1 :] if damage.startswith("bit") else b""))
    found = "it ends in slice 1. of 30" if damage == "cut.nii" else r"the file is truncated or damaged \("
    with pytest.raises(SegmentationError, match=rf"{patient}: reading the scan failed: .*{found}.* Upload it again"):
        prepare_dataset(tiny_study(), "anno1", {patient: (path, annotation)}, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("order", ["LPS", "RAS"])
@pytest.mark.parametrize("slope", [0, np.nan])
def test_a_scan_of_slope_0_or_nan_has_no_intercept_as_prediction_reads_it(scans, tmp_path, slope, order):
    patient, (image, _) = next(iter(_scans(scans, 1).items()))
    sound = nib.Nifti1Image.from_filename(image)
    path = _written(tmp_path / "scan.nii.gz", sound, order, slope, 5)
    read = TrainingScans(tiny_study(), tmp_path / "read").scan(patient, (path,))
    (predicted,), spacing = read_voxels(nib.Nifti1Image.from_filename(path), "LPS")
    np.testing.assert_array_equal(read.channels(), [predicted])
    np.testing.assert_array_equal(predicted, read_voxels(sound, "LPS")[0][0])
    assert read.properties()["spacing"] == spacing


@pytest.mark.parametrize("order", ["LPS", "RAS"])
def test_a_file_of_the_same_name_that_is_not_compressed_is_not_read_in_its_place(scans, tmp_path, order):
    patient, (image, _) = next(iter(_scans(scans, 1).items()))
    sound = nib.Nifti1Image.from_filename(image)
    path = _written(tmp_path / "scan.nii.gz", sound, order)
    other = _written(tmp_path / "scan.nii", sound, order)
    other.write_bytes(other.read_bytes()[:352].ljust(other.stat().st_size, b"\0"))
    read = TrainingScans(tiny_study(), tmp_path / "read").scan(patient, (path,))
    np.testing.assert_array_equal(read.channels(), read_voxels(sound, "LPS")[0])


def test_a_scan_with_nan_is_refused(scans, tmp_path):
    patient, (image, annotation) = next(iter(_scans(scans, 1).items()))
    scan = nib.load(image)
    voxels = np.asarray(scan.dataobj).astype(np.float32)
    voxels[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(voxels, scan.affine), tmp_path / "nan.nii.gz")
    with pytest.raises(
        SegmentationError, match=rf"{patient}: reading the scan failed: voxels are NaN or infinite. Exp"
    ):
        prepare_dataset(tiny_study(), "anno1", {patient: (tmp_path / "nan.nii.gz", annotation)}, tmp_path / "dataset")


def test_a_folder_on_another_disk_receives_the_files(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    made, mounted = tmp_path / "made", tmp_path / "mounted"
    for folder, content in ((made, "new"), (mounted, "old")):
        (folder / "cases").mkdir(parents=True)
        (folder / "cases" / "plans.json").write_text(content)
    for name in ("rename", "replace", "link"):
        monkeypatch.setattr(os, name, refused)
    _move(made, mounted)
    assert (mounted / "cases" / "plans.json").read_text() == "new"


def test_no_process_is_forked(scans, tmp_path, monkeypatch):
    def refused():
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", refused)
    prepare_dataset(tiny_study(), "anno1", _scans(scans, 1), tmp_path / "dataset")
    assert "dataset" not in json.loads((tmp_path / "dataset" / "dataset.json").read_text())


def test_the_digest_is_of_the_content_not_of_the_files_bytes(scans, tmp_path):
    one, same = (prepare_dataset(tiny_study(), "anno1", _scans(scans, 1), tmp_path / n) for n in ("a", "b"))
    other = prepare_dataset(tiny_study(), "anno1", _scans(scans, 2), tmp_path / "c")
    assert one.digest == same.digest != other.digest


def test_residual_encoder_plans_are_a_setting(scans, tmp_path):
    facts = prepare_dataset(_changed(planner="nnUNetPlannerResEncM"), "anno1", _scans(scans, 1), tmp_path / "a")
    plans = json.loads((tmp_path / "a" / "nnUNetPlans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"].endswith("ResidualEncoderUNet")
    assert architecture["arch_kwargs"]["n_blocks_per_stage"] == [1, 1, 1]
    assert facts.planner == "nnUNetPlannerResEncM"


WINNERS = {
    "patch_size": [256, 160, 160],
    "batch_size": 2,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
}
"""As in the plans that the winner of CURVAS 2024 published; axes are (Z, Y, X)."""


def _planned(plans: dict) -> dict:
    configuration = plans["configurations"]["3d_fullres"]
    found = configuration | configuration["architecture"]["arch_kwargs"]
    assert configuration["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    return {name: found[name] for name in WINNERS}


def test_for_the_challenges_scans_the_winners_plans_are_planned_and_the_study_says_the_same(scans, tmp_path):
    study, name = load_study("curvas-medig"), dataset_name("anno1")
    settings = study.plans.model_copy(update={"patch_size": None, "batch_size": None})
    patient, (image, annotation) = next(iter(_scans(scans, 1).items()))
    read = TrainingScans(study, tmp_path / "scans")
    with nnunet_folders(raw=tmp_path / "raw", preprocessed=tmp_path / "made", results=tmp_path / "results"):
        _write_raw(study, [_Case(patient, (image,), [annotation], None, None, read)], tmp_path / "raw" / name)
        (tmp_path / "made" / name).mkdir(parents=True)
        # The medians of the challenge's 20 training patients, as the winner's plans record them.
        fingerprint = {
            "spacings": [[1.0, 0.9626, 0.9626]] * 20,
            "shapes_after_crop": [[943, 512, 512]] * 20,
            "foreground_intensity_properties_per_channel": {"0": {}},
            "median_relative_size_after_cropping": 1.0,
        }
        (tmp_path / "made" / name / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        plans = _plan(settings, name, "anno1")
    assert _planned(plans) == WINNERS
    assert (list(study.plans.patch_size), study.plans.batch_size) == (WINNERS["patch_size"], WINNERS["batch_size"])


def test_the_winners_patch_is_planned_for_a_phantom_too(scans, tmp_path):
    winner = load_study("curvas-medig").plans.model_dump(mode="json")
    facts = prepare_dataset(
        _changed(**winner | {"features_per_stage": None, "spacing_mm": None}), "anno1", _scans(scans, 1), tmp_path / "a"
    )
    plans = json.loads((tmp_path / "a" / "nnUNetPlans.json").read_text())
    assert facts.patch_size == plans["configurations"]["3d_fullres"]["patch_size"] == WINNERS["patch_size"]
    assert (facts.batch_size, facts.planner) == (2, "nnUNetPlannerResEncM")
    total = np.prod(_planned(plans)["strides"], axis=0)
    assert (np.array(WINNERS["patch_size"]) % total == 0).all()
