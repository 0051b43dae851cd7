"""Claims proved here.

- A law: whatever the voxel order and the oblique angle of scan and annotation, the label found at a point of the world is
  the same before and after the intake, and for every reader that takes the files from the record.
- What nibabel and ITK read differently is refused, with both readings: pixdim, qform, unit, missing codes.
- The remedies that are given make the scan pass, with every label in its place. A qform's own rounding is no difference.
- Shear is refused in degrees, wherever ITK refuses it; the remedy given makes the scan pass.
- An annotation on another grid is refused, and the remedy given leaves every label where it was drawn.
- Volumes are the affine's determinant; how far two grids are apart and turned is told by their worst corner and axis.
"""

import re

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nibabel.processing import resample_to_output

from curvas_assets.cohort import PatientError, bring_onto_scan, read_annotations, read_patient
from curvas_assets.geometry import Grid, displacement_mm, itk_affine, same_place, tilt_degrees, turned_degrees
from curvas_assets.study import load_study
from curvas_assets_tests.cohort.volumes import ORDERS, affine_of, ct, edit, labels, reorder, write, write_patient

STUDY = load_study("phantom")
NAMES = ("image.nii.gz", "annotation_1.nii.gz", "annotation_2.nii.gz", "annotation_3.nii.gz")
angle = st.sampled_from([0.0, 1e-3, 0.2, 3.0, -17.0, 40.0])


def sheared(degrees):
    affine = affine_of()
    affine[1, 2] = affine[2, 2] * np.tan(np.deg2rad(degrees))
    return affine


@pytest.fixture
def patient(tmp_path):
    return write_patient(tmp_path / "PHANTOM001", ct(), labels(), affine_of())


def refusal(folder):
    with pytest.raises(PatientError) as refused:
        read_patient(folder, STUDY)
    assert refused.value.subject == "PHANTOM001"
    return str(refused.value)


# The law -------------------------------------------------------------------------------------------------------------


def at_the_same_places(path, labels_zyx, affine):
    """The labels of a volume (Z, Y, X) at the places where a file's voxels lie, as an array like the file's (X, Y, Z)."""
    image = nib.load(path)
    inside = np.linalg.inv(affine) @ image.affine
    places = inside[:3, :3] @ np.indices(image.shape).reshape(3, -1) + inside[:3, 3:]
    x, y, z = indices = np.rint(places).astype(int)
    np.testing.assert_allclose(places, indices, atol=1e-3)
    return labels_zyx[z, y, x].reshape(image.shape)


@settings(max_examples=25)
@given(
    st.sampled_from(ORDERS), st.tuples(angle, angle, angle), st.lists(st.sampled_from(ORDERS), min_size=3, max_size=3)
)
@example("PIR", (3.0, -17.0, 0.2), ["RAS", "LSA", "IPL"])
def test_the_label_at_a_point_of_the_world_is_the_same_before_and_after_the_intake(
    tmp_path_factory, order, angles, orders
):
    folder = tmp_path_factory.mktemp("law") / "PHANTOM001"
    affine, drawn = affine_of(order, angles=angles), labels()
    write_patient(folder, ct(), drawn, affine)
    for k, other in enumerate(orders, 1):
        reorder(folder / f"annotation_{k}.nii.gz", other)
    found = read_patient(folder, STUDY)
    np.testing.assert_array_equal(found.annotations, drawn)
    np.testing.assert_array_equal(found.scan, ct())
    np.testing.assert_array_equal(read_annotations(folder, STUDY), drawn)
    for k in (1, 2, 3):
        path = folder / f"annotation_{k}.nii.gz"
        stored = np.asarray(nib.load(path).dataobj)
        np.testing.assert_array_equal(at_the_same_places(path, found.annotations[k - 1], found.affine), stored)
        # and the file as every reader after the intake takes it, by nibabel and by ITK
        assert bring_onto_scan(path, found.grid) == (f"anno{k}" in found.facts["reordered"])
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj).transpose(2, 1, 0), drawn[k - 1])
        assert same_place(Grid.of(nib.load(path)), found.grid, 0.1)
        assert same_place(found.grid.read_as(itk_affine(path)), found.grid, 0.1)


def test_a_reordered_annotation_is_told_and_flipping_loses_nothing(patient):
    reorder(patient / "annotation_2.nii.gz", "RAS")
    found = read_patient(patient, STUDY)
    assert found.facts["reordered"] == {"anno2": "RAS"}
    (told,) = found.warnings
    assert "the annotation of anno2 is stored in the voxel order RAS, the scan in LPS" in told
    np.testing.assert_array_equal(found.annotations, labels())


def test_an_annotation_with_a_rounded_qform_alone_reaches_other_readers_with_the_scans_header(tmp_path):
    """It is a fifth of a millimetre from the scan's sform at the far corner; labels are the same voxel by voxel."""
    shape = (2, 512, 512)
    affine = affine_of(angles=(0, 0, 0.03), spacing=(0.8, 0.8, 300.0))
    folder = write_patient(tmp_path / "PHANTOM001", ct(shape), labels(shape), affine, codes=(1, 0))
    path = folder / "annotation_1.nii.gz"
    write(path, labels(shape)[0], affine, codes=(0, 1))
    found = read_patient(folder, STUDY)
    assert displacement_mm(Grid.of(nib.load(path)), found.grid) > 0.2
    assert bring_onto_scan(path, found.grid)
    np.testing.assert_allclose(nib.load(path).affine, found.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj).transpose(2, 1, 0), labels(shape)[0])


def test_the_region_of_evaluation_is_the_same_in_every_voxel_order(tmp_path):
    scan = np.full((6, 7, 8), -1000, np.int16)
    scan[2:4, 3:5, 2:6] = 40
    affine = affine_of()
    corners = set()
    for order in ("LPS", "RAS", "PIR", "SLP"):
        folder = write_patient(tmp_path / order / "PHANTOM001", scan, labels(), affine)
        for name in NAMES:
            reorder(folder / name, order)
        found = read_patient(folder, STUDY)
        region = found.facts["body_region"]
        ends = [[r[i] - i for r in region[::-1]] for i in (0, 1)]
        places = np.array([(found.affine @ [*end, 1])[:3] for end in ends])
        corners.add(tuple(np.round(np.concatenate([places.min(axis=0), places.max(axis=0)]), 3)))
    assert len(corners) == 1


# Two readers ---------------------------------------------------------------------------------------------------------


def qform(path, affine):
    image = nib.load(path)
    out = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    out.set_qform(affine, 1)
    out.set_sform(image.affine, 2)
    nib.save(out, path)


def moved(affine):
    affine = affine.copy()
    affine[:3, 3] += (3, -2, 1)
    return affine


DISAGREEMENTS = {
    "pixdim 1": (lambda p: edit(p, ("<fff", 80, 1.0, 1.0, 1.0)), r"5 × 3 × 2 mm .* 1 × 1 × 1 by pixdim"),
    "pixdim 1, sform alone": (
        lambda p: edit(p, ("<fff", 80, 1.0, 1.0, 1.0), ("<h", 252, 0)),
        r"5 × 3 × 2 mm .* 1 × 1 × 1 by pixdim",
    ),
    "pixdim not a number": (lambda p: edit(p, ("<f", 88, np.nan), ("<h", 252, 0)), "by pixdim"),
    "qform moved": (lambda p: qform(p, moved(affine_of())), r"and the qform put the same voxel up to 3.742 mm apart"),
    "qform turned": (lambda p: qform(p, affine_of(angles=(2, 0, 0))), r"turned by 2°"),
    "qform mirrored": (lambda p: qform(p, affine_of("RPS")), r"turned by 180°"),
    "micrometres": (lambda p: edit(p, ("<b", 123, 3)), r"as nibabel reads them, .*0.005 × 0.003 × 0.002 by nnU-Net"),
    "no codes": (lambda p: edit(p, ("<hh", 252, 0, 0)), "sform_code and qform_code are 0"),
    "no rotation": (lambda p: edit(p, ("<fff", 256, 2.0, 2.0, 2.0)), "its qform is no rotation"),
    "a singular affine": (lambda p: edit(p, ("<ffff", 280, 0.0, 0.0, 0.0, 0.0)), "its affine is not usable"),
}


@pytest.mark.parametrize("name", ["image.nii.gz", "annotation_2.nii.gz"])
@pytest.mark.parametrize("disagreement", DISAGREEMENTS)
def test_a_header_that_two_readers_read_differently_is_refused_with_both(patient, name, disagreement):
    spoil, told = DISAGREEMENTS[disagreement]
    spoil(patient / name)
    said = refusal(patient)
    assert name in said
    assert re.search(told, said), said


def written_to_both(image):
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("mm")


@pytest.mark.parametrize(
    ("disagreement", "remedy"),
    [
        ("pixdim 1", written_to_both),
        ("pixdim 1, sform alone", written_to_both),
        ("micrometres", written_to_both),
        ("no codes", lambda image: (image.set_sform(affine_of(), 1), image.set_qform(affine_of(), 1))),
        ("qform moved", lambda image: image.set_qform(image.get_sform(), 1)),
        ("qform mirrored", lambda image: image.set_qform(image.get_sform(), 1)),
    ],
)
def test_a_header_that_was_mended_as_advised_passes(patient, disagreement, remedy):
    DISAGREEMENTS[disagreement][0](patient / "image.nii.gz")
    refusal(patient)
    image = nib.load(patient / "image.nii.gz")
    voxels = np.asarray(image.dataobj)
    remedy(image)
    nib.save(nib.Nifti1Image(voxels, None, image.header), patient / "image.nii.gz")
    found = read_patient(patient, STUDY)
    np.testing.assert_allclose(found.affine, affine_of(), atol=1e-5)
    np.testing.assert_array_equal(found.annotations, labels())


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (1, 0), (0, 1)])
@pytest.mark.parametrize(
    "angles", [(0, 0, 0), (1e-3, 0, 2e-3), (0, 0, 0.02), (0, 0, -0.035), (0.02, 0, 0.01), (12, -20, 5)]
)
def test_a_qforms_rounding_is_no_difference(tmp_path, codes, angles):
    """Near half a turn, which LPS is, the float32 quaternion turns a clinical volume by up to 0.6 mm at its far corner."""
    shape = (2, 512, 512)
    affine = affine_of(angles=angles, spacing=(0.8, 0.8, 300.0))
    folder = write_patient(tmp_path / "PHANTOM001", ct(shape), labels(shape), affine, codes=codes)
    found = read_patient(folder, STUDY)
    assert same_place(found.grid, Grid(shape, affine), 0.1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [0.0, 0.003, 10.0, 90.0, 180.0])
def test_grids_are_turned_by_the_angle_of_the_axis_that_turned_most(axis, degrees):
    """One axis alone, towards the diagonal of the others."""
    affine = affine_of()
    other = affine.copy()
    spacing, angle = np.linalg.norm(affine[:3, axis]), np.deg2rad(degrees)
    diagonal = spacing * (1 - np.eye(3)[axis]) / np.sqrt(2)
    other[:3, axis] = np.cos(angle) * affine[:3, axis] + np.sin(angle) * diagonal
    assert turned_degrees(affine, other) == pytest.approx(degrees, abs=1e-9)


def test_the_displacement_is_that_of_the_corner_that_is_furthest_off():
    grid = Grid((7, 8, 11), affine_of(spacing=(2, 3, 5)))
    shifted = grid.affine.copy()
    shifted[:3, 3] += 3, -4, 0
    assert displacement_mm(grid, grid.read_as(shifted)) == pytest.approx(5)
    assert displacement_mm(grid, grid.read_as(affine_of(spacing=(1.9, 3, 5)))) == pytest.approx(10 * 0.1)


# Shear ---------------------------------------------------------------------------------------------------------------


def _tilted(tmp_path, degrees, codes):
    """A patient whose sform is sheared by so many degrees, and whose qform is not."""
    folder = write_patient(tmp_path / "PHANTOM001", ct(), labels(), affine_of())
    for name in NAMES:
        image = nib.load(folder / name)
        out = nib.Nifti1Image(np.asarray(image.dataobj), sheared(degrees))
        out.set_qform(affine_of(), codes[1])
        out.set_sform(sheared(degrees), codes[0])
        nib.save(out, folder / name)
    return folder


@pytest.mark.parametrize("degrees", [0.0, 0.001, 0.01, 0.05, 0.3, 13.5, -20.0])
def test_the_tilt_is_that_of_the_axes(degrees):
    assert tilt_degrees(sheared(degrees)) == pytest.approx(abs(degrees), abs=1e-4)


@pytest.mark.parametrize(
    ("degrees", "codes"),
    [(0.0, (1, 0)), (0.0, (2, 1)), (0.001, (1, 0)), (0.001, (2, 1)), (0.01, (2, 1)), (0.05, (2, 1))],
)
def test_what_itk_reads_is_no_tilt(tmp_path, degrees, codes):
    """ITK takes the qform beside a sform that is not orthonormal: then only what is far from the qform is a tilt."""
    assert read_patient(_tilted(tmp_path, degrees, codes), STUDY).spacing_mm == pytest.approx((5, 3, 2))


@pytest.mark.parametrize(
    ("degrees", "codes"),
    [
        *((d, (1, 0)) for d in (0.01, 0.05, 0.09, 0.11)),
        *((d, codes) for d in (0.3, 13.5, -20.0) for codes in ((1, 0), (2, 1))),
    ],
)
def test_what_itk_cannot_read_is_refused_and_a_tilt_is_told_in_degrees(tmp_path, degrees, codes):
    folder = _tilted(tmp_path, degrees, codes)
    if codes == (1, 0):
        with pytest.raises(RuntimeError, match="orthonormal"):
            itk_affine(folder / "image.nii.gz")
    said = refusal(folder)
    assert f"its axes are {abs(degrees):.3g}° from perpendicular (gantry tilt)" in said
    assert ("So small a tilt comes from a rounded header." in said) is (abs(degrees) < 0.1)
    assert ("Resample the scan and its annotations" in said) is (abs(degrees) > 0.1)


def test_a_sheared_scan_that_was_resampled_as_advised_passes(tmp_path):
    folder = write_patient(tmp_path / "PHANTOM001", ct((20, 20, 20)), labels((20, 20, 20)), affine_of())
    for name in NAMES:
        image = nib.load(folder / name)
        tilted = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), sheared(13.5))
        nib.save(tilted, folder / name)
    assert "resample_to_output: the scan with order=1, cval=-1000, the annotations with order=0" in refusal(folder)
    for name in NAMES:
        options = {"order": 1, "cval": -1000} if name == "image.nii.gz" else {"order": 0}
        nib.save(resample_to_output(nib.load(folder / name), (2.0, 3.0, 5.0), **options), folder / name)
    assert read_patient(folder, STUDY).spacing_mm == pytest.approx((5, 3, 2))


def test_a_rounded_header_that_was_written_anew_as_advised_passes(patient):
    for name in NAMES:
        image = nib.load(patient / name)
        out = nib.Nifti1Image(np.asarray(image.dataobj), sheared(0.03))
        out.header["qform_code"] = 0
        nib.save(out, patient / name)
    assert "set_qform(image.affine, 1); image.set_sform(image.get_qform(), 1)" in refusal(patient)
    for name in NAMES:
        image = nib.load(patient / name)
        image.set_qform(image.affine, 1)
        image.set_sform(image.get_qform(), 1)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), patient / name)
    np.testing.assert_array_equal(read_patient(patient, STUDY).annotations, labels())


def test_a_voxels_volume_is_the_determinant():
    assert Grid((1, 1, 1), affine_of(angles=(10, 20, 30))).voxel_ml == pytest.approx(0.03)
    assert Grid((1, 1, 1), sheared(13.5)).voxel_ml == pytest.approx(0.03)  # the product of the spacings is 2.8 % more


# Another grid --------------------------------------------------------------------------------------------------------


def test_an_annotation_on_another_grid_is_resampled_in_the_world_as_advised(patient):
    import SimpleITK as sitk

    path = patient / "annotation_1.nii.gz"
    cut = nib.load(path).slicer[:, 1:, :]  # as a viewer saves what was cropped
    reordered = cut.as_reoriented(nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("LPS", "RAS"))))
    write(path, np.asarray(reordered.dataobj).transpose(2, 1, 0), reordered.affine)
    said = refusal(patient)
    assert "the annotation has 6 × 6 × 8 voxels, in the scan's order LPS (stored as RAS), the image 6 × 7 × 8" in said
    assert "do not copy one header over the other" in said
    image, annotation = (sitk.ReadImage(str(patient / name)) for name in NAMES[:2])
    sitk.WriteImage(sitk.Resample(annotation, image, sitk.Transform(), sitk.sitkNearestNeighbor), str(path))
    expected = labels()[0].copy()
    expected[:, 0] = 0
    np.testing.assert_array_equal(read_patient(patient, STUDY).annotations[0], expected)


def test_no_remedy_tells_to_copy_a_header(patient):
    for affine in (moved(affine_of()), affine_of(angles=(5, 0, 0)), affine_of(spacing=(2, 3, 4))):
        write(patient / "annotation_3.nii.gz", labels()[2], affine)
        assert "Copy the image's header" not in refusal(patient)
