"""Claims proved here.

- Every voxel of a series, in any orientation and order of slices, lies in the NIfTI file where DICOM says, in HU.
- Masks of RTSTRUCT are those of an independent test of each voxel's centre, with holes and parts, in all orientations.
- Masks of SEG (binary, fractional, label map, one slice, every other slice) are those that were written.
- An annotation finds its series by UID, by its images, or by a frame of reference; one that does not is refused.
- No name, number, date or UID of the input is left in any byte or name of what is written but the private mapping.
- Values of organs and names stay from run to run; overlaps go to the higher value, and are counted.
- `curvas-init` proposes a study of what is written, and the intake takes it.
- A patient with a tilted gantry, missing, uneven or double slices, or doubtful annotations is refused, and no other.
"""

import csv
import errno
import gzip
import os
import stat
import sys

import nibabel as nib
import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from curvas_assets.cohort import read_patient
from curvas_assets.dicom import convert_dicom
from curvas_assets.errors import CurvasError, PatientError
from curvas_assets.local import init
from curvas_assets.study import load_study
from curvas_assets_tests.dicom.files import (
    INTERCEPT,
    ORIENTATIONS,
    PEOPLE,
    SLOPE,
    box,
    ellipse,
    highdicom,
    pydicom,
    write_rtstruct,
    write_seg,
    write_series,
)

SHAPE = (6, 20, 24)


def who_is_who(mapping):
    """The mapping: (kind, old) → new."""
    with mapping.open() as file:
        return {(row["kind"], row["old"]): row["new"] for row in csv.DictReader(file)}


def as_written(path, series):
    """A NIfTI file's voxels in the order of the DICOM files: (slice, row, column)."""
    image = nib.load(path)
    return np.asarray(image.dataobj)[tuple(series.indices(image))]


def inside(contours):
    """By matplotlib: which voxels' centres lie in an odd number of a slice's contours."""
    rows, columns = np.indices(SHAPE[1:])
    centres = np.stack([rows.ravel(), columns.ravel()], axis=1)
    mask = np.zeros(SHAPE, bool)
    for contour in contours:
        mask[round(contour[0, 0])] ^= Polygon(contour[:, 1:]).contains_points(centres).reshape(SHAPE[1:])
    return mask


RING = [c for k in (1, 2, 3) for c in (ellipse(k, (9.3, 10.2), (7.1, 8.3)), ellipse(k, (9.3, 10.2), (3.2, 4.4)))]
PARTS = [box(4, (1.5, 6.5), (2.5, 7.5)), box(4, (10.5, 12.5), (2.5, 20.5)), box(5, (0.5, 18.5), (0.5, 22.5))]


@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_voxels_and_contours_lie_where_dicom_says(orientation, backwards, tmp_path):
    series = write_series(tmp_path / "in", "A", orientation=orientation, backwards=backwards, shape=SHAPE)
    write_rtstruct(tmp_path / "in/r.dcm", series, {"Liver": RING, "Spleen": PARTS})
    made = convert_dicom(tmp_path / "in", tmp_path / "out")
    assert not made.refused
    assert made.labels == {"liver": 1, "spleen": 2}
    assert made.cases[0].warnings == ()
    scan = as_written(tmp_path / "out/P001/image.nii.gz", series)
    assert scan.dtype == np.int16
    np.testing.assert_array_equal(scan, series.stored.astype(int) * SLOPE + INTERCEPT)
    drawn = as_written(tmp_path / "out/P001/annotation_annotator-1.nii.gz", series)
    np.testing.assert_array_equal(drawn == 1, inside(RING))
    np.testing.assert_array_equal(drawn == 2, inside(PARTS))
    boxes = np.zeros(SHAPE, bool)  # by hand
    boxes[4, 2:7, 3:8] = boxes[4, 11:13, 3:21] = boxes[5, 1:19, 1:23] = True
    np.testing.assert_array_equal(drawn == 2, boxes)
    voxel = 3.0 * 1.25 * 0.75 / 1000
    assert made.cases[0].volumes_ml["annotator-1"]["spleen"] == pytest.approx(boxes.sum() * voxel, abs=1e-3)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless"])
def test_compressed_slices_are_decoded(syntax, tmp_path):
    series = write_series(tmp_path / "in", "A", shape=SHAPE)
    for path in series.folder.glob("*.dcm"):
        one = pydicom.dcmread(path)
        one.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
        one.save_as(path)
    write_rtstruct(tmp_path / "in/r.dcm", series, {"Liver": RING})
    convert_dicom(tmp_path / "in", tmp_path / "out")
    scan = as_written(tmp_path / "out/P001/image.nii.gz", series)
    np.testing.assert_array_equal(scan, series.stored.astype(int) * SLOPE + INTERCEPT)


def test_each_slice_has_its_own_scale(tmp_path):
    series = write_series(tmp_path / "in", "A", shape=SHAPE, modality="PT")
    slopes = [1, 2, 1, 0.25, 1, 40]
    for k, slope in enumerate(slopes):
        change(series, k, RescaleSlope=slope, RescaleIntercept=0)
    write_rtstruct(tmp_path / "in/r.dcm", series, {"Liver": RING})
    convert_dicom(tmp_path / "in", tmp_path / "out")
    scan = as_written(tmp_path / "out/P001/image.nii.gz", series)
    assert scan.dtype == np.float32
    np.testing.assert_allclose(scan, series.stored * np.array(slopes)[:, None, None], rtol=1e-6)


def masks(seed=1):
    """Two organs that overlap, one of them on every other slice only."""
    random = np.random.default_rng(seed)
    one, other = random.random((2, *SHAPE)) < 0.3
    one[:2] = False
    other[1::2] = False
    return one, other


@pytest.mark.parametrize("orientation", ["axial", "coronal", "oblique"])
@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
def test_segments_lie_where_they_were_drawn(orientation, backwards, tmp_path):
    series = write_series(tmp_path / "in", "A", orientation=orientation, backwards=backwards, shape=SHAPE)
    one, other = masks()
    write_seg(tmp_path / "in/s.dcm", series, {"Liver": one, "Spleen": other})
    made = convert_dicom(tmp_path / "in", tmp_path / "out")
    drawn = as_written(tmp_path / "out/P001/annotation_annotator-1.nii.gz", series)
    np.testing.assert_array_equal(drawn, np.where(other, 2, one.astype(int)))
    both = int((one & other).sum())
    assert any(f"overlap in {both} voxels" in warning for warning in made.cases[0].warnings)


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP", "one slice", "no spacing"])
def test_other_segmentations(kind, tmp_path):
    series = write_series(tmp_path / "in", "A", shape=SHAPE)
    one, other = masks()
    other &= ~one
    if kind == "no spacing":
        one[1::2] = False  # both on every other slice, whose distance the file does not tell
    if kind == "one slice":
        one[:] = False
        one[4, 3:7, 5:9] = True
        other[:] = False
    given = {"Liver": one, "Spleen": other} if kind != "one slice" else {"Liver": one}
    if kind == "FRACTIONAL":
        given = {name: np.where(mask, 0.6, 0.4) for name, mask in given.items()}
    form = kind if kind in ("FRACTIONAL", "LABELMAP") else "BINARY"
    path = write_seg(tmp_path / "in/s.dcm", series, given, kind=form)
    if kind == "no spacing":
        seg = pydicom.dcmread(path)
        del seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
        seg.save_as(path)
        assert highdicom.seg.segread(path).get_volume().spacing[0] == 6  # so that positions alone decide
    made = convert_dicom(tmp_path / "in", tmp_path / "out")
    assert not made.refused
    drawn = as_written(tmp_path / "out/P001/annotation_annotator-1.nii.gz", series)
    np.testing.assert_array_equal(drawn, np.where(other, 2, one.astype(int)))
    assert any("fractional" in warning for warning in made.cases[0].warnings) == (kind == "FRACTIONAL")


@pytest.mark.parametrize("references", ["series", "images", "frame"])
def test_an_annotation_finds_its_series_among_others(references, tmp_path):
    write_series(tmp_path / "in/before", "A", seed=1)
    series = write_series(tmp_path / "in/scan", "A", shape=SHAPE, seed=2)
    write_rtstruct(tmp_path / "in/r.dcm", series, {"Liver": RING}, references=references)
    made = convert_dicom(tmp_path / "in", tmp_path / "out")
    assert [case.id for case in made.cases] == ["P001"]
    scan = as_written(tmp_path / "out/P001/image.nii.gz", series)
    np.testing.assert_array_equal(scan, series.stored.astype(int) * SLOPE + INTERCEPT)


@pytest.mark.parametrize(
    ("annotator_from", "names"),
    [("label", {"Ann", "Bo B"}), ("operator", {"One^A", "Zaphod^Egon"}), ("folder", {"x", "y"})],
)
def test_annotators_are_told_apart_as_it_is_asked(annotator_from, names, tmp_path):
    series = write_series(tmp_path / "in", "PANCREAS_0001", shape=SHAPE)
    write_rtstruct(tmp_path / "in/x/1.dcm", series, {"Pancreas": RING}, label="Ann", OperatorsName="One^A")
    write_seg(tmp_path / "in/y/1.dcm", series, {"Pancreas": inside(PARTS)}, description="Bo B")
    made = convert_dicom(tmp_path / "in", tmp_path / "out", annotator_from=annotator_from)
    assert not made.refused  # the patient is called like an organ, as in public collections
    assert {old for kind, old in who_is_who(made.mapping) if kind == "annotator"} == names
    drawn = [as_written(tmp_path / f"out/P001/annotation_annotator-{n}.nii.gz", series) for n in (1, 2)]
    np.testing.assert_array_equal(drawn, [inside(RING), inside(PARTS)])


def test_two_annotated_series_of_a_patient_need_ids_of_their_own(tmp_path):
    scans = [write_series(tmp_path / f"in/{n}", "A", shape=SHAPE, seed=n) for n in (1, 2)]
    for n, series in enumerate(scans):
        write_rtstruct(tmp_path / f"in/r{n}.dcm", series, {"Liver": RING})
    (refused,) = convert_dicom(tmp_path / "in", tmp_path / "out").refused
    assert "2 image series" in str(refused)
    uid = scans[1].datasets[0].SeriesInstanceUID
    mapping = tmp_path / "ids.csv"
    mapping.write_text(f"kind,old,new\nseries,{uid},LATE.2\npatient,A,EARLY\n")
    made = convert_dicom(tmp_path / "in", tmp_path / "out", mapping=mapping)
    assert [case.id for case in made.cases] == ["EARLY", "LATE.2"]
    for series, name in zip(scans, ("EARLY", "LATE.2"), strict=True):
        scan = as_written(tmp_path / f"out/{name}/image.nii.gz", series)
        np.testing.assert_array_equal(scan, series.stored.astype(int) * SLOPE + INTERCEPT)


# Identifiers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path):
    """Two patients and two annotators, one of whom wrote SEG; names of files and folders tell of people, too."""
    made = {}
    for n, patient in enumerate(("MRN-774512", "MRN-113355")):
        folder = tmp_path / "in" / f"Quisquose {patient}"
        made[patient] = series = write_series(folder / "Hospital of Nowhere", patient, shape=SHAPE, seed=n)
        write_rtstruct(
            folder / "a/r.dcm",
            series,
            {"Liver": RING, "Spleen ": PARTS},
            label="Dr Zaphod",
            OperatorsName="Zaphod^Egon",
        )
        write_seg(folder / "b/s.dcm", series, {"liver": inside(RING)}, description="Ida Vandersloot")
    return made


def test_nothing_that_identifies_is_left(cohort, tmp_path):
    made = convert_dicom(tmp_path / "in", tmp_path / "out")
    assert [(case.id, case.annotators) for case in made.cases] == [
        ("P001", ("annotator-1", "annotator-2")),
        ("P002", ("annotator-1", "annotator-2")),
    ]
    secrets = {
        *cohort,
        "quisquose",
        "jolanda",
        "zaphod",
        "egon",
        "vandersloot",
        "nowhere",
        "19430817",
        "88231",
        "774512",
    }
    secrets |= {word for value in PEOPLE.values() for word in value.lower().replace("^", " ").split() if len(word) > 2}
    for path in (tmp_path / "in").rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        secrets |= {str(e.value) for e in header.iterall() if e.VR == "UI"}
        secrets.add(path.name)
    assert len(secrets) > 30
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 2 * 3 + 1
    for path in files:
        raw = path.read_bytes()
        for content in (
            raw,
            gzip.decompress(raw) if path.suffix == ".gz" else b"",
            str(path.relative_to(tmp_path)).encode(),
        ):
            found = [secret for secret in secrets if secret.lower().encode() in content.lower()]
            assert not found, (path, found)
        if path.suffix == ".gz":
            header = nib.load(path).header
            assert not header.extensions
            assert not any(
                bytes(header[name].tobytes()).strip(b"\0") for name in ("descrip", "db_name", "intent_name", "aux_file")
            )
            assert raw[4:8] == b"\0\0\0\0"  # no time
            assert not raw[3] & 8  # no file name
    assert stat.S_IMODE(made.mapping.stat().st_mode) == 0o600
    assert made.mapping == tmp_path / "out-identities.csv"
    rows = who_is_who(made.mapping)
    assert rows == {
        ("patient", "MRN-113355"): "P001",
        ("patient", "MRN-774512"): "P002",
        ("annotator", "Dr Zaphod"): "annotator-1",
        ("annotator", "Ida Vandersloot"): "annotator-2",
    }
    for patient, series in cohort.items():
        folder = tmp_path / "out" / rows["patient", patient]
        np.testing.assert_array_equal(
            as_written(folder / "image.nii.gz", series) // SLOPE * SLOPE, series.stored.astype(int) * SLOPE + INTERCEPT
        )
        for annotator in ("annotator-1", "annotator-2"):
            np.testing.assert_array_equal(
                as_written(folder / f"annotation_{annotator}.nii.gz", series) == 1, inside(RING)
            )


def test_curvas_init_and_the_intake_take_what_is_written(cohort, tmp_path, monkeypatch):
    convert_dicom(tmp_path / "in", tmp_path / "out", keep_annotators=True, prefix="CASE")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["curvas-init", "out", "--out", "s.yaml"])
    init.main()
    study = load_study(tmp_path / "s.yaml")
    assert study.organs == {"liver": 1, "spleen": 2}
    assert [a.file for a in study.annotators] == ["annotation_dr-zaphod.nii.gz", "annotation_ida-vandersloot.nii.gz"]
    patient = read_patient(tmp_path / "out/CASE002", study)
    assert patient.annotations.max() == 2
    assert patient.grid.orientation == "LPS"


def test_names_and_values_stay_from_run_to_run(cohort, tmp_path):
    first = convert_dicom(tmp_path / "in", tmp_path / "out")
    series = write_series(tmp_path / "in/new", "MRN-000001", shape=SHAPE)
    write_rtstruct(tmp_path / "in/new/r.dcm", series, {"Aorta": PARTS, "Liver": RING}, label="Dr Aa")
    again = convert_dicom(tmp_path / "in", tmp_path / "out")
    assert again.labels == first.labels | {"aorta": 3}
    rows = who_is_who(again.mapping)
    assert rows["patient", "MRN-113355"] == "P001"
    assert (rows["patient", "MRN-000001"], rows["annotator", "Dr Aa"]) == ("P003", "annotator-3")


def test_a_full_disk_leaves_the_earlier_names(cohort, tmp_path, monkeypatch):
    made = convert_dicom(tmp_path / "in", tmp_path / "out")
    before = {path: path.read_bytes() for path in (made.mapping, tmp_path / "out/labels.json")}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PatientError, match=r"out-identities\.csv cannot be written \(No space left"):
        convert_dicom(tmp_path / "in", tmp_path / "out")
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.glob(".*"))


def test_the_folder_may_be_the_one_that_one_stands_in(tmp_path, monkeypatch):
    series = write_series(tmp_path / "in", "A", shape=SHAPE)
    write_rtstruct(tmp_path / "in/r.dcm", series, {"Liver": RING})
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert convert_dicom(tmp_path / "in", ".").mapping == tmp_path / "out-identities.csv"
    for odd in ('{"liver": 0}', '{"liver": 1, "spleen": 1}', '{"liver": 70000}', "[]"):
        (tmp_path / "out/labels.json").write_text(odd)
        with pytest.raises(PatientError, match="is no table of labels"):
            convert_dicom(tmp_path / "in", ".")


def test_a_name_that_the_images_alone_tell_is_not_carried_over(tmp_path):
    series = write_series(tmp_path / "in", "A", shape=SHAPE)
    clean = dict.fromkeys(("PatientName", "OperatorsName", "ReferringPhysicianName"), "")
    write_rtstruct(tmp_path / "in/r.dcm", series, {"Liver": RING, "Jolanda tumour": PARTS}, **clean)
    made = convert_dicom(tmp_path / "in", tmp_path / "out")
    assert made.labels == {"liver": 1}
    assert "holds a name or a number" in str(made.refused[0])


def test_structures_are_merged_and_chosen_and_the_order_of_organs_decides(tmp_path):
    series = write_series(tmp_path / "in", "A", shape=SHAPE)
    left, right = [box(2, (1.5, 9.5), (1.5, 9.5))], [box(2, (1.5, 9.5), (5.5, 15.5))]
    write_rtstruct(tmp_path / "in/r.dcm", series, {"Kidney L": left, "Kidney R": right, "Body": PARTS, "LESION": right})
    organs = {"lesion": ["lesion"], "kidney": ["Kidney L", "kidney r"]}
    made = convert_dicom(tmp_path / "in", tmp_path / "out", organs=organs)
    assert made.labels == {"lesion": 1, "kidney": 2}
    drawn = as_written(tmp_path / "out/P001/annotation_annotator-1.nii.gz", series)
    kidneys = np.zeros(SHAPE, bool)
    kidneys[2, 2:10, 2:16] = True  # the overlap of two structures of one organ is no hole
    np.testing.assert_array_equal(drawn, kidneys * 2)
    assert any("overlap in 80 voxels" in warning for warning in made.cases[0].warnings)


# Refusals -------------------------------------------------------------------------------------------------------------


def cut(series, size):
    (path,) = [
        p for p in series.folder.glob("*.dcm") if pydicom.dcmread(p, stop_before_pixels=True).get("InstanceNumber") == 3
    ]
    path.write_bytes(path.read_bytes()[:-size])


def drop(series, k):
    for path in series.folder.glob("*.dcm"):
        if pydicom.dcmread(path, stop_before_pixels=True).get("InstanceNumber") == k + 1:
            path.unlink()


def change(series, k, **attributes):
    for path in series.folder.glob("*.dcm"):
        header = pydicom.dcmread(path)
        if header.get("InstanceNumber") == k + 1:
            for name, value in attributes.items():
                setattr(header, name, value)
            header.save_as(path)


def moved(series, k, by):
    position = [float(v) for v in series.datasets[k].ImagePositionPatient]
    return {"ImagePositionPatient": [*position[:2], position[2] + by]}


def draw(series, contour, name="r.dcm", structure="Liver", label="first"):
    write_rtstruct(series.folder / name, series, {structure: [contour]}, label=label)


DEFECTS = {
    "gap": (lambda s: drop(s, 3), "slices are missing in 1 places"),
    "near the end": (lambda s: drop(s, 4), "slices are missing"),
    "uneven": (lambda s: change(s, 3, **moved(s, 3, 0.8)), "distance between its slices varies"),
    "double": (lambda s: change(s, 3, **moved(s, 3, -3.0)), "lie where another one does"),
    "turned": (lambda s: change(s, 2, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "differ in size"),
    "no place": (lambda s: change(s, 2, ImagePositionPatient=None), "place of an image is not known"),
    "no size": (lambda s: change(s, 2, Columns=None), "differ in size"),
    "no sizes": (lambda s: [change(s, k, Columns=None) for k in range(6)], "how many rows and columns"),
    "frames": (lambda s: change(s, 2, NumberOfFrames=3), "several frames"),
    "cut short": (lambda s: change(s, 2, PixelData=b"\0" * 100), "slice 3 of 6 cannot be decoded"),
    "cut off": (lambda s: cut(s, 100), "slice 3 of 6 cannot be decoded"),
    "contour outside": (lambda s: draw(s, box(2, (3, 9), (9, 40))), "leaves the image"),
    "contour beyond": (lambda s: draw(s, box(-1, (3, 9), (3, 9))), "leaves the image"),
    "contour between": (lambda s: draw(s, box(2.5, (3, 9), (3, 9))), "off the nearest slice"),
    "twice": (lambda s: draw(s, RING[0], "r2.dcm"), "liver of annotator-1 is in several files"),
    "names the patient": (lambda s: draw(s, RING[0], "r2.dcm", "Jolanda tumour", "other"), "holds a name or a number"),
    "no such series": (lambda s: change_reference(s), "of which 0 are in the folder"),
    "damaged": (lambda s: (s.folder / "r.dcm").write_bytes(_without_sequence(s.folder / "r.dcm")), "is damaged"),
    "broken SEG": (lambda s: _without_frames(s), "its SEG is damaged"),
    "no number": (lambda s: _without_number(s), "its RTSTRUCT is damaged"),
    "no author": (lambda s: draw(s, RING[0], label=""), "does not say who drew it"),
    "nobody": (lambda s: (s.folder / "r.dcm").unlink(), "no RTSTRUCT or SEG"),
}  # fmt: skip


def change_reference(series):
    path = series.folder / "r.dcm"
    header = pydicom.dcmread(path)
    study = header.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = pydicom.uid.generate_uid()
    header.save_as(path)


def _without_frames(series):
    (series.folder / "r.dcm").unlink()
    path = write_seg(series.folder / "r.dcm", series, {"Liver": inside(PARTS)})
    seg = pydicom.dcmread(path)
    del seg.PerFrameFunctionalGroupsSequence
    seg.save_as(path)


def _without_number(series):
    path = series.folder / "r.dcm"
    header = pydicom.dcmread(path)
    del header.ROIContourSequence[0].ReferencedROINumber
    header.save_as(path)


def _without_sequence(path):
    header = pydicom.dcmread(path)
    del header.StructureSetROISequence[0].ROINumber
    header.save_as(path)
    return path.read_bytes()


def test_what_is_wrong_with_one_patient_stops_no_other(tmp_path):
    for n, (name, (spoil, _)) in enumerate(DEFECTS.items()):
        series = write_series(tmp_path / f"in/{n}", f"{n:02d} {name}", shape=SHAPE, seed=n)
        write_rtstruct(series.folder / "r.dcm", series, {"Liver": RING})
        spoil(series)
    tilted = write_series(tmp_path / "in/tilted", "98 tilted", shape=SHAPE, shear=0.5)
    write_rtstruct(tmp_path / "in/tilted/r.dcm", tilted, {"Liver": RING})
    good = write_series(tmp_path / "in/good", "99 good", shape=SHAPE)
    write_rtstruct(tmp_path / "in/good/r.dcm", good, {"Liver": RING})
    (tmp_path / "in/notes.txt").write_text("no DICOM")
    lines = []
    made = convert_dicom(tmp_path / "in", tmp_path / "out", tell=lines.append)
    told = {error.subject: str(error) for error in made.refused}
    rows = {old: new for (kind, old), new in who_is_who(made.mapping).items() if kind == "patient"}
    expected = {f"{n:02d} {name}": words for n, (name, (_, words)) in enumerate(DEFECTS.items())}
    expected["98 tilted"] = f"{np.rad2deg(np.arctan(0.5 / 3)):.3g}° from perpendicular"
    for old, words in expected.items():
        assert words in told.get(rows[old], "it was taken"), old
    assert [case.id for case in made.cases] == [rows["99 good"]]
    assert len(told) == len(expected)
    assert sum("refused" in line for line in lines) == len(told)
    assert made.ignored == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"labels.json", rows["99 good"]}
    assert not any(word in "".join(lines).lower() for word in ("jolanda", "quisquose", "tilted"))


def test_what_is_odd_is_told(tmp_path):
    series = write_series(tmp_path / "in", "A", shape=SHAPE)
    structures = {"Liver": [RING[0], RING[-2]], "Marker": [np.array([[2.0, 3, 3]])]}
    write_rtstruct(tmp_path / "in/r.dcm", series, structures)
    (last,) = [p for p in (tmp_path / "in").glob("A-*") if pydicom.dcmread(p).get("InstanceNumber") == SHAPE[0]]
    last.write_bytes(b"")  # its copy was interrupted
    (tmp_path / "in/notes.txt").write_text("no DICOM")
    (case,) = convert_dicom(tmp_path / "in", tmp_path / "out").cases
    assert any("1 damaged files lie beside its images" in warning for warning in case.warnings)
    assert nib.load(tmp_path / "out/P001/image.nii.gz").shape[2] == SHAPE[0] - 1
    assert any("liver has no contour on 1 slices" in warning for warning in case.warnings)
    assert any("marker is left out: point" in warning for warning in case.warnings)


@pytest.mark.parametrize("odd", ["nowhere", None, "empty"])
def test_no_folder_of_dicom_is_told(odd, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CurvasError):
        convert_dicom(tmp_path / odd if odd else odd, tmp_path / "out")


def test_a_missing_library_is_told(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(CurvasError, match=r"pip install 'curvas-assets\[dicom\]'"):
        convert_dicom(tmp_path / "in", tmp_path / "out")


def test_options_that_would_spill_identifiers_are_refused(tmp_path):
    series = write_series(tmp_path / "in", "A", shape=SHAPE)
    write_rtstruct(tmp_path / "in/r.dcm", series, {"Liver": RING})
    (tmp_path / "twice.csv").write_text("kind,old,new\npatient,A,X\npatient,B,x\n")
    (tmp_path / "path.csv").write_text("old,new\nA,../X\n")
    for odd in (
        {"mapping": tmp_path / "out/ids.csv"},
        {"mapping": tmp_path / "twice.csv"},
        {"mapping": tmp_path / "path.csv"},
        {"annotator_from": "weather"},
        {"prefix": "../"},
        {"prefix": None},
        {"organs": {"li/ver": ["Liver"]}},
        {"organs": {"liver": 3}},
        {"organs": {}},
        {"organs": ["liver"]},
        {"organs": {"a": ["Liver"], "b": ["liver"]}},
    ):
        with pytest.raises(PatientError):
            convert_dicom(tmp_path / "in", tmp_path / "out", **odd)
    with pytest.raises(PatientError):
        convert_dicom(tmp_path / "in", tmp_path / "in/out")
    assert not (tmp_path / "out").exists()
