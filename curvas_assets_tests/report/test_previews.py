"""Claims proved here.

- Importing the package draws nothing in: no matplotlib, plotly, pandas or scikit-image.
- Slices hang radiologically whatever the array's orientation, and keep the voxels' proportions.
- Previews are PNG pictures, made without pyplot, for 0 to 5 annotators, empty labels and all-zero maps.
- A training curve tells its best epoch, and columns that are missing are left out.
- Slices that do not belong together are refused.
"""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from curvas_assets.errors import ReportError
from curvas_assets.report import (
    preview_scan,
    preview_softmax,
    preview_uncertainty,
    reliability_diagram,
    training_curve,
)
from curvas_assets.report.style import axis_codes, pixel_mm, radiological
from curvas_assets_tests.cohort.volumes import ORDERS
from curvas_assets_tests.report.studies import make_bins, make_slice, make_study, make_training


def picture_of(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def test_importing_the_package_imports_no_drawing_library():
    code = (
        "import sys, curvas_assets.report, curvas_assets.report.previews; "
        "print([m for m in ('matplotlib', 'plotly', 'pandas', 'skimage', 'jinja2', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_is_there():
    import curvas_assets.report as report

    assert all(getattr(report, name) is not None for name in report.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        report.nonsense  # noqa: B018


@pytest.mark.parametrize("orientation", ["LPS", "RPS", "LAS", "RAS", "LAI", "PLS", "ARS", "ALS", "PRI"])
def test_anterior_is_on_top_and_the_patients_left_on_the_right(orientation):
    # A marker at the patient's front left must end in the first row, last column.
    first, second = orientation[0], orientation[1]
    shape = (3, 5)  # (Y, X)
    x = {"L": 4, "R": 0, "A": 4, "P": 0}[first]
    y = {"L": 2, "R": 0, "A": 2, "P": 0}[second]
    image = np.zeros(shape)
    image[y, x] = 1
    shown = radiological(image, orientation)
    assert np.argwhere(shown == 1).tolist() == [[0, shown.shape[1] - 1]]


def test_an_affine_says_the_same_as_its_letters():
    affine = np.diag([-0.9, -0.9, 1.0, 1.0])  # X to the left, Y to posterior: RAS+ axes are negated
    assert axis_codes(affine) == "LPS"
    assert axis_codes(np.diag([0.9, 0.9, 1.0, 1.0])) == "RAS"
    swapped = np.array([[0, -1, 0, 0], [-2, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])
    assert axis_codes(swapped) == "PLS"


@pytest.mark.parametrize("orientation", ["LLS", "LP", "XYZ", np.zeros((3, 3)), np.zeros((4, 4))])
def test_an_unreadable_orientation_is_refused(orientation):
    with pytest.raises(ReportError):
        axis_codes(orientation)


@pytest.mark.parametrize("order", ORDERS)
def test_a_slice_of_any_plane_is_hung_as_radiologists_do(order):
    """Superior on top, or anterior in an axial slice; the patient's left on the right, or posterior in a sagittal one."""
    plane = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal"}.get(order[2], "sagittal")
    right, top = {"axial": ("L", "A"), "coronal": ("L", "S"), "sagittal": ("P", "S")}[plane]
    run = {"L": np.array([1, 0, 0]), "P": np.array([0, 1, 0]), "S": np.array([0, 0, 1])}
    run |= {"R": -run["L"], "A": -run["P"], "I": -run["S"]}
    x, y = np.indices((5, 4))
    places = x[..., None] * run[order[0]] + y[..., None] * run[order[1]]  # (X, Y, 3), along left, posterior, superior
    along_right, along_top = ((places @ run[way]).T for way in (right, top))
    shown_right, shown_top = radiological(along_right, order), radiological(along_top, order)
    assert (np.diff(shown_right, axis=1) == 1).all()
    assert (np.diff(shown_right, axis=0) == 0).all()
    assert (np.diff(shown_top, axis=0) == -1).all()
    spacing = dict(zip(map("LPS".index, ("LPS"["LRPASI".index(c) // 2] for c in order)), (2.0, 3.0, 5.0), strict=True))
    width, height = (spacing["LPS".index("LPS"["LRPASI".index(way) // 2])] for way in (right, top))
    assert pixel_mm((5.0, 3.0, 2.0), order) == (width, height)


@pytest.mark.parametrize("order", ["LSP", "PSR", "SRA"])
def test_a_scan_of_any_plane_has_a_preview(order):
    png = preview_scan(np.zeros((8, 9)), [np.ones((8, 9), np.uint8)], (5.0, 3.0, 2.0), orientation=order)
    assert png.startswith(b"\x89PNG")


def test_pixels_have_the_voxels_proportions():
    assert pixel_mm((5.0, 2.0, 1.0), "LPS") == (1.0, 2.0)
    assert pixel_mm((2.0, 1.0), "LPS") == (1.0, 2.0)
    assert pixel_mm((5.0, 2.0, 1.0), "PLS") == (2.0, 1.0)
    with pytest.raises(ReportError):
        pixel_mm((1.0, 0.0), "LPS")


def test_a_scan_is_drawn_as_wide_and_high_as_the_patient():
    figure = picture_of(preview_scan(np.full((40, 40), -900.0), [], (1.0, 3.0, 1.0), orientation="LPS"))
    black = (figure == 0).all(axis=-1)
    rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
    height, width = rows[-1] - rows[0], columns[-1] - columns[0]
    assert height / width == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("annotators", [0, 1, 2, 5])
def test_a_scan_shows_one_colour_per_annotator(annotators):
    view = make_slice(make_study(annotators=max(annotators, 1)))
    png = preview_scan(view.image, list(view.annotations[:annotators]), view.spacing_mm, title="UKCHLL001")
    pixels = picture_of(png)
    coloured = (np.ptp(pixels.astype(int), axis=-1) > 60).sum()
    assert (coloured > 50) == (annotators > 0)


def test_a_contour_lies_where_the_organ_is():
    labels = np.zeros((60, 60), np.uint8)
    labels[5:15, 40:55] = 1  # in RAS, X runs to the patient's right and Y to anterior: this is right, posterior
    png = preview_scan(np.full((60, 60), -1000.0), [labels], (1, 1, 1), orientation="RAS", annotators=["a"])
    pixels = picture_of(png).astype(int)
    blue = np.argwhere(pixels[..., 2] - pixels[..., 0] > 60)
    dark = np.argwhere(pixels.sum(axis=-1) == 0)
    top, left = dark.min(axis=0)
    bottom, right = dark.max(axis=0)
    centre = np.median(blue, axis=0)
    assert centre[1] < (left + right) / 2
    assert centre[0] > (top + bottom) / 2


def test_a_softmax_is_drawn_with_and_without_its_scan():
    view = make_slice(make_study())
    probabilities = np.stack([(view.annotations == c).mean(axis=0) for c in range(4)])
    with_scan = picture_of(preview_softmax(view.image, probabilities, spacing_mm=view.spacing_mm))
    alone = picture_of(preview_softmax(None, probabilities.astype(np.float16), class_names=["b", "p", "k", "l"]))
    assert with_scan.shape == alone.shape
    assert (with_scan != alone).any()
    picture_of(preview_softmax(None, probabilities[:2]))
    with pytest.raises(ReportError, match="shape"):
        preview_softmax(None, probabilities[0])


def test_uncertainty_is_drawn_also_where_there_is_none():
    view = make_slice(make_study())
    assert view.predictive_entropy is not None
    assert view.mutual_information is not None
    assert view.segmentation is not None
    full = preview_uncertainty(
        view.predictive_entropy, view.mutual_information, view.segmentation, image_slice=view.image
    )
    nothing = preview_uncertainty(np.zeros((8, 8)), np.zeros((8, 8)), np.zeros((8, 8), np.uint8))
    shades = [len(np.unique(picture_of(png).reshape(-1, 3), axis=0)) for png in (full, nothing)]
    assert shades[0] > shades[1] + 100


def test_slices_of_different_shapes_are_refused():
    with pytest.raises(ReportError, match=r"\(4, 5\)"):
        preview_scan(np.zeros((4, 4)), [np.zeros((4, 5))], (1, 1, 1))
    with pytest.raises(ReportError, match=r"\(2, 4, 4\)"):
        preview_uncertainty(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))


def test_a_training_curve_is_drawn_from_one_epoch_on_and_without_some_columns():
    curve = next(iter(make_training(make_study(), epochs=12).values()))
    long = picture_of(training_curve(curve, title="anno1_init112233_foldall"))
    assert (picture_of(training_curve(curve.iloc[:1])) != long).any()
    picture_of(training_curve(curve[["epoch"]]))
    picture_of(training_curve(curve.assign(val_loss=np.nan)))
    with pytest.raises(ReportError, match="train_loss"):
        training_curve(curve[["train_loss"]])


def test_a_reliability_diagram_of_one_predictor_and_of_families():
    study = make_study(patients=1)
    bins = make_bins(study)
    three = picture_of(reliability_diagram(bins))
    one = picture_of(reliability_diagram(bins[bins["predictor"] == "ensemble_all"].drop(columns="family")))
    assert three.shape[1] > 2 * one.shape[1]
    with pytest.raises(ReportError, match="accuracy"):
        reliability_diagram(bins.drop(columns="accuracy"))


def test_equal_inputs_give_equal_bytes_and_pyplot_stays_out():
    code = (
        "import sys, numpy as np; from curvas_assets.report import preview_scan; "
        "a = [preview_scan(np.zeros((9, 9)), [np.eye(9, dtype=np.uint8)], (1, 1, 1)) for _ in range(2)]; "
        "print(a[0] == a[1], 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
