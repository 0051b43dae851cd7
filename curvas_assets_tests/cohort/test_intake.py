"""Claims proved here.

- A sound patient is read as it was written: voxels, axes, spacing, labels; facts are ready for JSON.
- Every defect is refused with the patient, what was found and what to do: no scalars, no header, any bytes at all.
- A small file behind which there is a large one is refused by its header, and not unpacked.
- A patient for whom memory does not suffice is refused before the reading, and may be tried again.
- Intensities that may be no HU are a warning. Beside another channel the CT is judged and shows the body, whichever comes first.
- A blank map means what the study says, and so does one that is missing; a patient whom nobody annotated is refused.
- Near-integer labels of a scale slope are rounded and said; an absent organ is a warning and a row for the ledger.
- Ids with and without the prefix are one patient.
- The axis swap is right on three different spacings.
"""

import contextlib
import gzip
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.cohort import PatientError, body_region, intake, read_annotations, read_patient
from curvas_assets.cohort.phantom import make_patient, write_cohort
from curvas_assets.nifti import Unpacked
from curvas_assets.study import load_study
from curvas_assets_tests.cohort.volumes import edit

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


def _nameless_label(folder):
    def labelled(voxels, affine):
        voxels = voxels.astype(np.int16)
        voxels[0, 0, 0] = -1
        return voxels, affine

    _change(folder / "annotation_1.nii.gz", labelled)


def _half_label(folder):
    _change(folder / "annotation_1.nii.gz", lambda voxels, affine: (voxels * np.float32(0.9), affine))


def _bomb(folder):
    path = folder / "annotation_2.nii.gz"
    small = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(small, 1) + gzip.compress(bytes(3 << 20), 1) * 40)


def _dimensions(*sizes):
    return lambda folder: edit(folder / "image.nii.gz", (f"<h{len(sizes)}h", 40, len(sizes), *sizes))


def _voxels(dtype, name="image.nii.gz"):
    return lambda folder: _change(folder / name, lambda v, a: (np.zeros(v.shape, dtype), a))


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
DEFECTS = {
    "colours": (_voxels(RGB), "image.nii.gz failed: its voxels are colours"),
    "colours of an annotation": (
        _voxels(RGB, "annotation_3.nii.gz"),
        "annotation_3.nii.gz failed: its voxels are colours",
    ),
    "complex": (_voxels(np.complex64), "its voxels are complex numbers"),
    "an unknown type": (lambda f: edit(f / "image.nii.gz", ("<h", 70, 1)), "it is no NIfTI file"),
    "negative dimension": (_dimensions(28, -24, 12), r"shape \(28, -24, 12\)"),
    "no dimension": (_dimensions(28, 24, 0), r"shape \(28, 24, 0\)"),
    "eight dimensions": (lambda f: edit(f / "image.nii.gz", ("<h", 40, 8)), "it is no NIfTI file"),
    "a huge header": (
        _dimensions(30000, 30000, 30000),
        "30000 × 30000 × 30000 voxels .*GiB.*intake.largest_volume_gib",
    ),
    "a bomb": (_bomb, "goes on after its last voxel"),
    "voxels far behind": (lambda f: edit(f / "image.nii.gz", ("<f", 108, 1e30)), "said to begin at byte 1e\\+30"),
    "voxels in the header": (lambda f: edit(f / "image.nii.gz", ("<f", 108, 0.0)), "said to begin at byte 0"),
    "NIfTI-2": (
        lambda f: nib.save(nib.Nifti2Image.from_image(nib.load(f / "image.nii.gz")), f / "image.nii.gz"),
        "it is NIfTI-2.*Save it as NIfTI-1",
    ),
    "voxels nowhere": (lambda f: edit(f / "image.nii.gz", ("<f", 108, np.nan)), "it is no NIfTI file"),
    "not in gzip": (
        lambda f: (f / "image.nii.gz").write_bytes(gzip.decompress((f / "image.nii.gz").read_bytes())),
        "it is not compressed",
    ),
    "a folder": (lambda f: ((f / "image.nii.gz").unlink(), (f / "image.nii.gz").mkdir()), "image.nii.gz missing"),
    "missing": (lambda f: (f / "image.nii.gz").unlink(), r"image.nii.gz missing \(found annotation_1.nii.gz"),
    "nobody's annotation": (
        lambda f: [(f / f"annotation_{k}.nii.gz").unlink() for k in (1, 2, 3)],
        r"annotation_1.nii.gz, annotation_2.nii.gz, annotation_3.nii.gz missing \(found image.nii.gz\)",
    ),
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
    "a label that no study can name": (_nameless_label, "label -1 .*write ignored_labels: rest in the study"),
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


@pytest.mark.parametrize(("dtype", "bytes_each"), [(np.int16, 6), (np.float32, 10), (np.float64, 16)])
def test_a_patient_for_whom_memory_does_not_suffice_is_refused(patient, monkeypatch, dtype, bytes_each):
    _change(patient / "image.nii.gz", dtype=dtype)
    needed = bytes_each * 12 * 24 * 28
    monkeypatch.setattr(intake, "available_memory", lambda: needed)
    read_patient(patient, STUDY)
    monkeypatch.setattr(intake, "available_memory", lambda: needed - 1)
    told = r"PHANTOM001: reading image.nii.gz failed: about .* for 12 × 24 × 28 voxels of \w+ with 3 annotations"
    with pytest.raises(PatientError, match=told) as refused:
        read_patient(patient, STUDY)
    assert refused.value.may_retry


@given(st.binary(max_size=400), st.booleans(), st.integers(0, 347))
def test_any_bytes_at_all_are_a_patients_error(sound, tmp_path_factory, noise, whole, at):
    folder = shutil.copytree(sound, tmp_path_factory.mktemp("noise") / "PHANTOM001")
    header = gzip.decompress((folder / "image.nii.gz").read_bytes())
    content = noise if whole else header[:at] + noise[:8] + header[at + len(noise[:8]) :]
    (folder / "image.nii.gz").write_bytes(gzip.compress(content, 1))
    with contextlib.suppress(PatientError):  # any other error would stop an upload, and be retried by Dagster
        read_patient(folder, STUDY)


def test_a_bomb_is_not_unpacked(patient, monkeypatch):
    """120 MiB of zeros behind a sound file are 0.5 MiB; what is unpacked ends a megabyte behind the last voxel."""
    _bomb(patient)
    unpacked = []
    read = Unpacked.read

    def counted(self, size):
        content = read(self, size)
        unpacked.append(len(content))
        return content

    monkeypatch.setattr(Unpacked, "read", counted)
    with pytest.raises(PatientError, match="goes on after its last voxel"):
        read_patient(patient, STUDY)
    assert 1 << 20 < sum(unpacked) < 2 << 20  # three sound files of 8 kB, and the megabyte


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda hu: np.interp(hu, (-1000, 1000), (0, 255)).astype(np.uint8),
            "no voxel is negative, as 8-bit grey values",
        ),
        (lambda hu: (hu + 1024).clip(0).astype(np.uint16), "before the intercept is added"),
        (lambda hu: hu.clip(-160, 240), "no voxel is as dark as air"),
        (lambda hu: hu / np.float32(1000), "no voxel is as dark as air"),
        (lambda hu: np.where(hu < -900, -2000, hu + 1024).astype(np.int16), "of the voxels lie where soft tissue does"),
        (lambda hu: np.zeros_like(hu), "every voxel has the same"),
        (lambda hu: hu.astype(np.int32) * 1000, "beyond any CT"),
    ],
)
def test_intensities_that_may_be_no_hounsfield_units_are_told(patient, change, told):
    _change(patient / "image.nii.gz", lambda voxels, affine: (change(voxels), affine))
    (warning,) = read_patient(patient, STUDY).warnings
    assert told in warning
    assert "may be no Hounsfield units" in warning


def _blank(folder, *numbers):
    for k in numbers:
        _change(folder / f"annotation_{k}.nii.gz", lambda voxels, affine: (np.zeros_like(voxels), affine))


def _meaning(blank_annotation):
    return STUDY.model_copy(update={"intake": STUDY.intake.model_copy(update={"blank_annotation": blank_annotation})})


def test_a_blank_map_is_not_annotated_or_without_organs_as_the_study_says(patient):
    _blank(patient, 2)
    found = read_patient(patient, STUDY)
    assert found.not_annotated == ("anno2",)
    (row,) = found.exclusions
    assert (row["annotator"], row["organ"]) == ("anno2", "")
    assert "not annotated" in row["reason"]
    assert found.facts["organ_volumes_ml"]["liver"]["anno2"] is None
    assert found.facts["dice_between_annotators"]["anno1–anno2"]["liver"] is None
    absent = read_patient(patient, _meaning("absent"))
    assert absent.not_annotated == ()
    assert [row["organ"] for row in absent.exclusions] == ["pancreas", "kidney", "liver"]
    assert all("taken as absent, which counts" in row["reason"] for row in absent.exclusions)
    assert absent.facts["dice_between_annotators"]["anno1–anno2"]["liver"] == 0


def test_a_patient_whom_nobody_annotated_is_refused_unless_blank_means_absent(patient):
    _blank(patient, 1, 2, 3)
    with pytest.raises(PatientError, match="every label map is blank"):
        read_patient(patient, STUDY)
    assert read_patient(patient, _meaning("absent")).annotations.max() == 0


def test_a_missing_map_is_not_annotated_or_refused_as_the_study_says(patient, sound):
    (patient / "annotation_2.nii.gz").unlink()
    found = read_patient(patient, STUDY)
    assert found.not_annotated == ("anno2",)
    assert found.warnings == (
        "the annotation of anno2 is missing: not annotated, so it trains nothing and nothing is scored against it",
    )
    assert [(row["annotator"], row["organ"]) for row in found.exclusions] == [("anno2", "")]
    assert found.facts["organ_volumes_ml"]["liver"]["anno2"] is None
    whole = read_patient(sound, STUDY)
    np.testing.assert_array_equal(found.annotations[[0, 2]], whole.annotations[[0, 2]])
    assert not found.annotations[1].any()
    np.testing.assert_array_equal(read_annotations(patient, STUDY, not_annotated=["anno2"]), found.annotations)
    strict = STUDY.intake.model_copy(update={"missing_annotation": "refused"})
    with pytest.raises(PatientError, match=r"annotation_2.nii.gz missing \(found annotation_1.nii.gz"):
        read_patient(patient, STUDY.model_copy(update={"intake": strict}))


def test_an_annotation_that_the_intake_saw_may_not_be_missing_later(patient):
    (patient / "annotation_2.nii.gz").unlink()
    for known in ((), ["anno1"]):
        with pytest.raises(PatientError, match=r"annotation_2.nii.gz missing"):
            read_annotations(patient, STUDY, not_annotated=known)


def test_a_patient_of_blank_and_missing_maps_is_refused(patient):
    _blank(patient, 1, 3)
    (patient / "annotation_2.nii.gz").unlink()
    with pytest.raises(PatientError, match="every label map that is there is blank"):
        read_patient(patient, STUDY)


def test_near_integer_labels_of_a_scale_slope_are_rounded_and_said(patient, sound):
    path = patient / "annotation_1.nii.gz"
    image = nib.load(path)
    scaled = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32) * np.float32(0.99997), image.affine)
    nib.save(scaled, path)
    found = read_patient(patient, STUDY)
    np.testing.assert_array_equal(found.annotations, read_patient(sound, STUDY).annotations)
    (warning,) = found.warnings
    assert "the annotation of anno1" in warning
    assert "rounded" in warning


def test_an_organ_absent_for_one_annotator_is_a_warning_and_a_row_of_the_ledger(patient):
    _change(
        patient / "annotation_3.nii.gz",
        lambda voxels, affine: (np.where(voxels == 1, 0, voxels).astype(np.uint8), affine),
    )
    found = read_patient(patient, STUDY)
    reason = "the annotation of anno3 has no pancreas: taken as absent, which counts in training and scores"
    assert reason in found.warnings
    (row,) = found.exclusions
    assert row == {"patient": "PHANTOM001", "annotator": "anno3", "organ": "pancreas", "reason": reason}
    assert found.facts["dice_between_annotators"]["anno1–anno3"]["pancreas"] == 0.0


def test_fractional_hounsfield_units_stay_fractional(patient):
    _change(patient / "image.nii.gz", lambda voxels, affine: (voxels + np.float32(0.25), affine))
    assert read_patient(patient, STUDY).scan.dtype == np.float32


def test_beside_another_channel_the_ct_is_judged_and_shows_the_body(tmp_path):
    raw = STUDY.model_dump(mode="json", exclude={"image"})
    raw["channels"] = [{"name": "PET", "file": "pet.nii.gz"}, {"name": "ct", "file": "ct.nii.gz"}]
    study, images = type(STUDY).model_validate(raw), {"pet.nii.gz": "T2", "ct.nii.gz": "CT"}
    (folder,) = write_cohort(tmp_path, patients=["PHANTOM001"], shape=SHAPE, spacing_mm=SPACING, seed=1, images=images)
    patient = read_patient(folder, study)
    scan, annotations = make_patient("PHANTOM001", shape=SHAPE, spacing_mm=SPACING, seed=1)
    pet, ct = patient.channels
    assert patient.scan is pet
    np.testing.assert_array_equal(ct, scan)
    np.testing.assert_array_equal(read_annotations(folder, study), annotations)
    facts = patient.facts
    assert facts["body_region"] == [[s.start, s.stop] for s in body_region(scan)]
    assert {"range", "percentiles"} <= set(facts["channels"]["PET"])
    assert {"hu_range", "soft_tissue_share"} <= set(facts["channels"]["ct"])
    _change(folder / "ct.nii.gz", lambda voxels, affine: (voxels.clip(0), affine))
    (doubt,) = read_patient(folder, study).warnings
    assert doubt.startswith("ct: the intensities may be no Hounsfield units (0 …")


def test_the_body_region_is_the_in_plane_box_of_positive_hu():
    scan = np.full((5, 8, 9), -1000, np.int16)
    scan[1, 2, 3] = 1
    scan[4, 6, 3] = 40
    scan[2, 0, 0] = 0
    assert body_region(scan) == (slice(0, 5), slice(2, 7), slice(3, 4))
    assert body_region(np.full((2, 3, 4), -5)) == (slice(0, 2), slice(0, 0), slice(0, 0))
