"""Claims proved here.

- A dataset has nnU-Net's files, one preprocessed case per patient, and no path of this machine.
- Fingerprint and plans are those nnU-Net's own extractor and planner would write; the study's overrides are applied.
- Labels of a scale slope are whole numbers in the dataset.
- Shared intensity statistics make the datasets of all annotators use one set.
- The digest that decides whether models are stale is of the content.
- Plans that do not fit are refused with what to change.
- No process is forked: a fork of a process with threads may hang for good.
"""

import json
import os

import blosc2
import nibabel as nib
import numpy as np
import pytest

from curvas_assets.errors import SegmentationError
from curvas_assets.segmentation import prepare_dataset
from curvas_assets.study import Study
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


def test_plans_that_do_not_fit_are_refused(scans, tmp_path):
    with pytest.raises(SegmentationError, match=r"plans.patch_size \[17, 24, 24\] is no multiple"):
        prepare_dataset(
            _changed(patch_size=[17, 24, 24], features_per_stage=None), "anno1", _scans(scans, 1), tmp_path / "a"
        )
    with pytest.raises(SegmentationError, match="not 3d_lowres"):
        prepare_dataset(_changed(configuration="3d_lowres"), "anno1", _scans(scans, 1), tmp_path / "b")
    with pytest.raises(SegmentationError, match="no training patient"):
        prepare_dataset(tiny_study(), "anno1", {}, tmp_path / "c")


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
