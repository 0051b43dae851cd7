"""Claims proved here.

- Probabilities come back from a SEG, by highdicom, within half of 1/255, on voxels within 1e-3 mm of the series'.
- That holds for slices in either order, anisotropic voxels, any voxel order of the NIfTI files, and both their forms.
- Segments have SNOMED CT codes of known organs, sides, and private codes of others; the same content has the same UIDs.
- What is no probability, lies elsewhere or fits no series is refused.
- The command converts a folder, writes a SEG that it can read again, and tells by its status that one was refused.
"""

import nibabel as nib
import numpy as np
import pytest

from curvas_assets.dicom import convert_dicom, write_probabilities_seg
from curvas_assets.dicom.organs import SNOMED, codes_of
from curvas_assets.errors import PatientError
from curvas_assets.local.dicom import main
from curvas_assets_tests.dicom.files import box, highdicom, pydicom, write_rtstruct, write_series

SHAPE = (5, 14, 18)
ORGANS = ["liver", "kidney-left", "pdac", "my own organ with a name"]
HALF = 0.5 / 255 + 1e-6
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def probabilities():
    """(organ, slice as written, row, column), organ by organ, with slices that are empty."""
    values = np.random.default_rng(3).random((len(ORGANS), *SHAPE)).astype(np.float32)
    values[0, :2] = 0
    values[1, 3] = 0
    values[2, 1:] = 0
    return values / values.sum(axis=0).clip(1)


@pytest.fixture(params=[("axial", False), ("axial", True), ("coronal", True)], ids=str)
def series(request, tmp_path):
    orientation, backwards = request.param
    return write_series(tmp_path / "in", "MRN-1", shape=SHAPE, orientation=orientation, backwards=backwards)


def save(path, series, values, *, flip=False):
    """Voxels (…, slice as written, row, column) as NIfTI in the order as written, or reversed along x."""
    by_axis = series.lps[:, [2, 1, 0, 3]]  # (column, row, slice)
    voxels = np.moveaxis(values, 0, -1) if values.ndim == 4 else values
    voxels = voxels.transpose(2, 1, 0, *range(3, voxels.ndim))
    affine = LPS @ by_axis
    if flip:
        affine[:3, 3] += affine[:3, 0] * (voxels.shape[0] - 1)
        affine[:3, 0] *= -1
        voxels = voxels[::-1]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels), affine), path)
    return path


def read_back(path, series):
    """By highdicom alone: probabilities (organ, slice as written, row, column), and the affine of slices as written."""
    seg = highdicom.seg.segread(path)
    slices = [d.SOPInstanceUID for d in series.datasets]
    values = seg.get_pixels_by_source_instance(slices, assert_missing_frames_are_empty=True)
    return np.moveaxis(values, -1, 0), seg.get_volume(), seg


@pytest.mark.parametrize("form", ["one file", "flipped", "files"])
def test_probabilities_come_back_from_a_seg(series, form, tmp_path):
    values = probabilities()
    if form == "files":
        given = {organ: save(tmp_path / f"{n}.nii.gz", series, values[n]) for n, organ in enumerate(ORGANS)}
        names = None
    else:
        with_background = np.concatenate([1 - values.sum(axis=0, keepdims=True), values])
        given = save(tmp_path / "p.nii.gz", series, with_background, flip=form == "flipped")
        names = ["background", *ORGANS]
    out = write_probabilities_seg(
        given, tmp_path / "in", tmp_path / "new/seg.dcm", predictor="ensemble_all", organs=names
    )
    found, volume, seg = read_back(out, series)
    assert found.shape == values.shape
    assert np.abs(found - values).max() <= HALF
    assert (seg.SegmentationType, seg.SegmentationFractionalType, seg.MaximumFractionalValue) == (
        "FRACTIONAL",
        "PROBABILITY",
        255,
    )
    assert (seg.SeriesDescription, seg.PatientID) == ("CURVAS ensemble_all", "MRN-1")
    assert seg.SegmentSequence[0].SegmentAlgorithmName == "ensemble_all"
    assert seg.FrameOfReferenceUID == series.datasets[0].FrameOfReferenceUID
    # the geometry, whichever way highdicom stacks slices: every voxel has its value at its place
    into = np.linalg.inv(volume.affine)
    grid = np.indices(SHAPE).reshape(3, -1).T.astype(float)
    at = series.world(grid) @ into[:3, :3].T + into[:3, 3]
    spacing = np.array(volume.spacing)
    assert np.abs((at - np.rint(at)) * spacing).max() < 1e-3
    k, r, c = np.rint(at).astype(int).T
    assert np.abs(volume.array[k, r, c] - values.reshape(len(ORGANS), -1).T).max() <= HALF


def test_segments_are_coded_and_uids_follow_from_the_content(tmp_path):
    series = write_series(tmp_path / "in", "A", shape=SHAPE)
    values = probabilities()
    given = save(tmp_path / "p.nii.gz", series, values)
    one, again = (
        highdicom.seg.segread(
            write_probabilities_seg(given, tmp_path / "in", tmp_path / f"{n}.dcm", predictor="p", organs=ORGANS)
        )
        for n in (1, 2)
    )
    other = save(tmp_path / "q.nii.gz", series, values[::-1])
    third = pydicom.dcmread(
        write_probabilities_seg(other, tmp_path / "in", tmp_path / "3.dcm", predictor="p", organs=ORGANS)
    )
    assert one.SOPInstanceUID == again.SOPInstanceUID != third.SOPInstanceUID
    assert one.SeriesInstanceUID == again.SeriesInstanceUID
    kinds = [s.SegmentedPropertyTypeCodeSequence[0] for s in one.SegmentSequence]
    assert [(k.CodeValue, k.CodingSchemeDesignator) for k in kinds[:3]] == [
        ("10200004", "SCT"),
        ("64033007", "SCT"),
        ("108369006", "SCT"),
    ]
    assert kinds[1].SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"  # left
    assert (kinds[3].CodingSchemeDesignator, kinds[3].CodeMeaning, len(kinds[3].CodeValue)) == (
        "99CURVAS",
        ORGANS[3],
        16,
    )
    assert [s.SegmentLabel for s in one.SegmentSequence] == ORGANS


def test_every_organ_of_the_table_has_its_code():
    for organ, keyword in SNOMED.items():
        _, kind, _ = codes_of(organ)
        assert kind.scheme_designator == "SCT"
        assert kind.value.isdigit()
        assert kind == getattr(pydicom.sr.codedict.codes.SCT, keyword)


def test_what_is_no_probability_of_the_series_is_refused(tmp_path):
    series = write_series(tmp_path / "in", "A", shape=SHAPE)
    values = probabilities()
    good = save(tmp_path / "p.nii.gz", series, values)
    moved = write_series(tmp_path / "other", "B", shape=SHAPE, spacing=(3.0, 1.25, 0.8))
    (tmp_path / "text.nii.gz").write_text("no NIfTI")
    twice = tmp_path / "twice"
    for seed in (1, 2):
        write_series(twice / str(seed), "C", shape=SHAPE, seed=seed)
    for given, folder, organs, words in (
        (save(tmp_path / "l.nii.gz", series, values * 7), "in", ORGANS, "values from"),
        (save(tmp_path / "n.nii.gz", series, values * np.nan), "in", ORGANS, "values from nan"),
        (save(tmp_path / "z.nii.gz", series, values * 0), "in", ORGANS, "all probabilities are 0"),
        (save(tmp_path / "m.nii.gz", moved, values), "in", ORGANS, "spacing"),
        (save(tmp_path / "s.nii.gz", series, values[:, 1:]), "in", ORGANS, "voxels"),
        (good, "in", ORGANS[:2], "2 names of organs for 4 volumes"),
        (good, "in", None, "0 names of organs for 4 volumes"),
        (good, "twice", ORGANS, "2 of 2 image series"),
        (good, "nowhere", ORGANS, "there is no folder"),
        (tmp_path / "text.nii.gz", "in", ORGANS, "no NIfTI"),
        ({"liver": good}, "in", None, "shape"),
        ({}, "in", None, "one file for each organ"),
    ):
        with pytest.raises(PatientError, match=words):
            write_probabilities_seg(given, tmp_path / folder, tmp_path / "seg.dcm", predictor="p", organs=organs)
    for predictor in ("", "x" * 58, "a\\b", None):
        with pytest.raises(PatientError):
            write_probabilities_seg(good, tmp_path / "in", tmp_path / "seg.dcm", predictor=predictor, organs=ORGANS)
    assert not (tmp_path / "seg.dcm").exists()


def test_the_command_converts_and_writes_a_seg_that_it_reads_again(tmp_path, capsys):
    series = write_series(tmp_path / "in", "MRN-1", shape=SHAPE)
    contours = [box(k, (2.5, 9.5), (3.5, 11.5)) for k in (1, 2)]
    write_rtstruct(tmp_path / "in/r.dcm", series, {"GTV": contours, "Liver": contours[:1]})
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--organ", "tumour=GTV", "--prefix", "CASE_"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "tumour = 1" in printed
    assert "1 patients in" in printed
    assert "out-identities.csv" in printed
    label_map = nib.load(tmp_path / "out/CASE_001/annotation_annotator-1.nii.gz")
    drawn = np.asarray(label_map.dataobj)
    assert drawn.sum() == 2 * 7 * 8
    probability = tmp_path / "probability_tumour.nii.gz"
    nib.save(nib.Nifti1Image(drawn.astype(np.float32) * 0.8, label_map.affine), probability)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("seg", "--probabilities", f"tumour={probability}", "--series", str(tmp_path / "in")),
                *("--out", str(tmp_path / "in/seg.dcm"), "--predictor", "ensemble_all"),
            ]
        )
    assert ended.value.code == 0
    made = convert_dicom(tmp_path / "in", tmp_path / "again", organs={"tumour": ["tumour"], "gtv": ["GTV"]})
    maps = [nib.load(tmp_path / f"again/P001/annotation_{name}.nii.gz") for name in made.cases[0].annotators]
    assert len(maps) == 2
    first, second = (np.asarray(m.dataobj) > 0 for m in maps)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, drawn > 0)


@pytest.mark.parametrize("files", [["a.nii.gz", "b.nii.gz"], ["nowhere.nii.gz"]])
def test_the_command_ends_with_a_sentence(files, tmp_path):
    write_series(tmp_path / "in", "A", shape=SHAPE)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("seg", "--probabilities", *files, "--series", str(tmp_path / "in")),
                *("--out", str(tmp_path / "s.dcm"), "--organs", "liver"),
            ]
        )
    assert "writing a DICOM SEG failed" in str(ended.value.code)


def test_the_command_tells_of_refused_patients_by_its_status(tmp_path, capsys):
    series = write_series(tmp_path / "in", "A", shape=SHAPE, shear=0.5)
    write_rtstruct(tmp_path / "in/r.dcm", series, {"Liver": [box(1, (2, 9), (3, 11))]})
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "in"), str(tmp_path / "out")])
    assert ended.value.code == 1
    assert "P001: refused" in capsys.readouterr().out
