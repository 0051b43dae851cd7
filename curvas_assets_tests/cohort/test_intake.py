"""Claims proved here.

- A sound patient is read as it was written: voxels, axes, spacing, labels; facts are ready for JSON.
- Every defect is refused with the patient, what was found and what to do.
- Near-integer labels of a scale slope are rounded and said; an absent organ is a warning and a row for the ledger.
- Ids with and without the prefix are one patient.
- The axis swap is right on three different spacings.
"""

import gzip
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from curvas_assets.cohort import PatientError, body_region, read_annotations, read_patient
from curvas_assets.cohort.phantom import make_patient, write_cohort
from curvas_assets.study import load_study

STUDY = load_study("phantom")
SHAPE, SPACING = (12, 24, 28), (20.0, 14.0, 12.0)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    return write_cohort(folder, patients=["PHANTOM001"], shape=SHAPE, spacing_mm=SPACING, seed=1)[0]


@pytest.fixture
def patient(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / sound.name)


def _change(path, change=lambda voxels, affine: (voxels, affine), dtype=None):
    image = nib.load(path)
    voxels, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    nib.save(nib.Nifti1Image(voxels if dtype is None else voxels.astype(dtype), affine), path)


def test_a_sound_patient_is_read_as_it_was_written(sound):
    scan, annotations = make_patient("PHANTOM001", shape=SHAPE, spacing_mm=SPACING, seed=1)
    patient = read_patient(sound, STUDY)
    assert patient.id == "PHANTOM001"
    np.testing.assert_array_equal(patient.scan, scan)
    np.testing.assert_array_equal(patient.annotations, annotations)
    assert patient.spacing_mm == SPACING
    assert (patient.scan.dtype, patient.annotations.dtype) == (np.int16, np.uint8)
    assert patient.warnings == ()
    assert patient.exclusions == ()
    assert json.loads(json.dumps(patient.facts))["shape"] == list(SHAPE)
    np.testing.assert_array_equal(read_annotations(sound, STUDY), annotations)


def test_axes_are_swapped_once_on_three_different_spacings(tmp_path):
    folder = tmp_path / "PHANTOM003"
    folder.mkdir()
    voxels = np.zeros((4, 3, 2), np.int16)  # x, y, z
    voxels[3, 1, 0] = 7
    affine = np.diag([-1.5, -2.5, 6.0, 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), folder / "image.nii.gz")
    for k in (1, 2, 3):
        nib.save(nib.Nifti1Image((voxels > 0).astype(np.uint8), affine), folder / f"annotation_{k}.nii.gz")
    patient = read_patient(folder, STUDY)
    assert patient.scan.shape == (2, 3, 4)
    assert patient.scan[0, 1, 3] == 7
    assert patient.spacing_mm == (6.0, 2.5, 1.5)
    assert patient.facts["organ_volumes_ml"]["pancreas"]["anno1"] == pytest.approx(6 * 2.5 * 1.5 / 1000, abs=1e-3)


@pytest.mark.parametrize("name", ["PHANTOM001", "001", "1", "phantom1"])
def test_ids_with_and_without_the_prefix_are_one_patient(sound, tmp_path, name):
    assert read_patient(shutil.copytree(sound, tmp_path / name), STUDY).id == "PHANTOM001"


def _truncate(folder):
    path = folder / "annotation_2.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])


def _cut_voxels(folder):
    path = folder / "image.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))


def _shift(folder, **_):
    def moved(voxels, affine):
        affine[2, 3] += 1000
        return voxels, affine

    _change(folder / "annotation_3.nii.gz", moved)


def _respace(folder):
    def stretched(voxels, affine):
        affine[:3, 2] *= 1.2
        return voxels, affine

    _change(folder / "annotation_1.nii.gz", stretched)


def _nan(folder):
    def holed(voxels, affine):
        voxels = voxels.astype(np.float32)
        voxels[3, 3, 3] = np.nan
        return voxels, affine

    _change(folder / "image.nii.gz", holed)


def _infinite_label(folder):
    def holed(voxels, affine):
        voxels = voxels.astype(np.float32)
        voxels[0, 0, 0] = np.inf
        return voxels, affine

    _change(folder / "annotation_1.nii.gz", holed)


def _strange_label(folder):
    def labelled(voxels, affine):
        voxels[0, 0, 0] = 4
        return voxels, affine

    _change(folder / "annotation_1.nii.gz", labelled)


def _half_label(folder):
    _change(folder / "annotation_1.nii.gz", lambda voxels, affine: (voxels * np.float32(0.9), affine))


DEFECTS = {
    "missing": (lambda f: (f / "annotation_2.nii.gz").unlink(), r"annotation_2.nii.gz missing \(found"),
    "truncated": (_truncate, "annotation_2.nii.gz failed: the file is truncated or damaged"),
    "fewer voxels": (_cut_voxels, "fewer voxels than its header promises"),
    "not NIfTI": (lambda f: (f / "image.nii.gz").write_bytes(b"not an image at all"), "it is no NIfTI file"),
    "empty file": (lambda f: (f / "image.nii.gz").write_bytes(b""), "it is no NIfTI file"),
    "compressed, but no NIfTI": (
        lambda f: (f / "image.nii.gz").write_bytes(gzip.compress(b"x" * 99)),
        "it is no NIfTI file",
    ),
    "4-D": (
        lambda f: _change(f / "image.nii.gz", lambda v, a: (np.stack([v, v], axis=3), a)),
        r"shape \(28, 24, 12, 2\), not three axes",
    ),
    "other shape": (
        lambda f: _change(f / "annotation_1.nii.gz", lambda v, a: (v[:, :, :-1], a)),
        r"annotation has 11 × 24 × 28 voxels, the image 12 × 24 × 28",
    ),
    "a metre away": (_shift, "same voxel up to 1000 mm apart"),
    "other spacing": (_respace, r"annotation's spacing is 24 × 14 × 12 mm, the image's 20 × 14 × 12"),
    "NaN": (_nan, "1 voxels are NaN or infinite"),
    "infinite label": (_infinite_label, "1 voxels of the label map are NaN or infinite"),
    "unknown label": (_strange_label, r"label 4 \(allowed: 0 background, 1 pancreas, 2 kidney, 3 liver\)"),
    "fractional label": (_half_label, "from an integer"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_refused_with_patient_finding_and_remedy(patient, defect):
    spoil, found = DEFECTS[defect]
    spoil(patient)
    with pytest.raises(PatientError) as refused:
        read_patient(patient, STUDY)
    error = refused.value
    assert error.subject == "PHANTOM001"
    assert re.search(found, str(error)), str(error)
    assert error.remedy
    assert not error.may_retry


def test_near_integer_labels_of_a_scale_slope_are_rounded_and_said(patient, sound):
    path = patient / "annotation_1.nii.gz"
    image = nib.load(path)
    scaled = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32) * np.float32(0.99997), image.affine)
    nib.save(scaled, path)
    found = read_patient(patient, STUDY)
    np.testing.assert_array_equal(found.annotations, read_patient(sound, STUDY).annotations)
    (warning,) = found.warnings
    assert "annotation_1.nii.gz" in warning
    assert "rounded" in warning


def test_an_organ_absent_for_one_annotator_is_a_warning_and_a_row_of_the_ledger(patient):
    _change(
        patient / "annotation_3.nii.gz",
        lambda voxels, affine: (np.where(voxels == 1, 0, voxels).astype(np.uint8), affine),
    )
    found = read_patient(patient, STUDY)
    reason = "annotation_3.nii.gz has no pancreas: taken as absent, which counts in training and scores"
    assert reason in found.warnings
    (row,) = found.exclusions
    assert row == {"patient": "PHANTOM001", "annotator": "anno3", "organ": "pancreas", "reason": reason}
    assert found.facts["dice_between_annotators"]["anno1–anno3"]["pancreas"] == 0.0


def test_fractional_hounsfield_units_stay_fractional(patient):
    _change(patient / "image.nii.gz", lambda voxels, affine: (voxels + np.float32(0.25), affine))
    assert read_patient(patient, STUDY).scan.dtype == np.float32


def test_the_body_region_is_the_in_plane_box_of_positive_hu():
    scan = np.full((5, 8, 9), -1000, np.int16)
    scan[1, 2, 3] = 1
    scan[4, 6, 3] = 40
    scan[2, 0, 0] = 0
    assert body_region(scan) == (slice(0, 5), slice(2, 7), slice(3, 4))
    assert body_region(np.full((2, 3, 4), -5)) == (slice(0, 2), slice(0, 0), slice(0, 0))
