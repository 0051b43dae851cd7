"""Claims proved here.

- A preview's voxels lie in the world where the blocks of the scan do: exactly, whatever the scan's voxel order, size and
  crop; so an organ's centre is the same to half a voxel.
- It holds all that anyone labelled, with a margin, in no more voxels than allowed, and never finer than the scan.
- Means and labels of blocks are those of plain NumPy, in whatever slabs the scan arrives.
- Eight bits keep values to half a step; the file opens in nibabel with its values, and equal values give equal bytes.
- The point to look at is inside the organ, also of two kidneys.
"""

import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from curvas_assets.errors import ReportError
from curvas_assets.geometry import Grid
from curvas_assets.sharing import previews
from curvas_assets.sharing.previews import BlockMeans, Plan, plan_preview

ORDERS = ("LPS", "RAS", "RPI", "LSP")
SHAPES = st.tuples(*[st.integers(6, 24)] * 3)
SPACINGS = st.tuples(*[st.floats(0.5, 5)] * 3)


def grid_of(shape, spacing_mm, order: str) -> Grid:
    base = Grid.with_voxels(shape, spacing_mm).affine
    grid = Grid(shape, base @ inv_ornt_aff(axcodes2ornt(order, (("L", "R"), ("P", "A"), ("I", "S"))), shape[::-1]))
    return grid.read_as(np.vstack([grid.affine[:3] + np.array([0, 0, 0, 13.5]), [0, 0, 0, 1]]))


def centre(mask, grid: Grid):
    z, y, x = np.argwhere(mask).mean(axis=0)
    return (grid.affine @ [x, y, z, 1])[:3]


def in_the_world(grid: Grid) -> np.ndarray:
    """The world coordinates (3, Z, Y, X) of every voxel."""
    z, y, x = np.indices(grid.shape)
    return np.tensordot(grid.affine[:3], np.stack([x, y, z, np.ones_like(x)]), axes=1)


@settings(max_examples=25)
@given(SHAPES, SPACINGS, st.sampled_from(ORDERS), st.data())
def test_a_voxel_lies_in_the_world_where_its_block_does(shape, spacing_mm, order, data):
    scan = grid_of(shape, spacing_mm, order)
    box = [
        data.draw(st.integers(0, n - 1).flatmap(lambda a, n=n: st.tuples(st.just(a), st.integers(a + 1, n))))
        for n in shape
    ]
    plan = plan_preview(scan, box, finest_mm=3, margin_mm=6)
    for of_scan, of_preview in zip(in_the_world(scan), in_the_world(plan.grid), strict=True):
        means = BlockMeans(plan)
        means.add(0, of_scan)
        np.testing.assert_allclose(means.values(), of_preview, atol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_an_organs_centre_stays_in_the_world_to_half_a_voxel(order):
    scan = grid_of((30, 40, 50), (1.5, 0.8, 0.7), order)
    z, y, x = np.indices(scan.shape)
    organ = (((z - 13) / 9) ** 2 + ((y - 21) / 14) ** 2 + ((x - 30) / 11) ** 2 < 1).astype(np.uint8)
    plan = plan_preview(scan, previews.bounding_box(organ[None]), margin_mm=2)
    labels = np.concatenate(
        [previews.block_labels(plan, organ[(of, *plan.crop[1:])]) for _, of in previews.rows_of_blocks(plan)]
    )
    apart_mm = np.abs(centre(labels, plan.grid) - centre(organ, scan))
    assert max(apart_mm) <= 0.5 * min(plan.grid.spacing_mm)
    assert labels.sum() * plan.grid.voxel_ml == pytest.approx(organ.sum() * scan.voxel_ml, rel=0.1)


@settings(max_examples=25)
@given(SHAPES, SPACINGS, st.data())
def test_a_preview_holds_what_was_labelled_in_no_more_voxels_than_allowed(shape, spacing_mm, data):
    scan, most = grid_of(shape, spacing_mm, "LPS"), data.draw(st.integers(20, 5000))
    box = [
        tuple(sorted((a, a + 1 + data.draw(st.integers(0, n - 1 - a)))))
        for n in shape
        for a in [data.draw(st.integers(0, n - 1))]
    ]
    plan = plan_preview(scan, box, most_voxels=most, margin_mm=0)
    assert np.prod(plan.shape) <= most
    for (first, last), start, stop, n, block in zip(box, plan.start, plan.stop, shape, plan.block, strict=True):
        assert 0 <= start < stop <= n
        lost = max(0, start - first) + max(0, last - stop)
        assert lost < block  # at the scan's end, less than a block that is not whole
    assert all(p >= s - 1e-9 for p, s in zip(plan.grid.spacing_mm, scan.spacing_mm, strict=True))
    assert Plan.of(plan.record()).grid.shape == plan.shape
    np.testing.assert_allclose(Plan.of(plan.record()).grid.affine, plan.grid.affine)


def test_voxels_of_a_clinical_scan_become_about_two_millimetres_and_a_large_part_coarser():
    scan = Grid.with_voxels((866, 512, 512), (0.8, 0.75, 0.75))
    organs = plan_preview(scan, [(300, 600), (120, 380), (90, 420)])
    assert max(organs.grid.spacing_mm) < 2.5
    whole = plan_preview(scan, [(0, 866), (0, 512), (0, 512)])
    assert np.prod(whole.shape) <= previews.MOST_VOXELS
    assert whole.block == (5, 5, 5)  # 102 dm³ in 2.2 million voxels: 3.6 mm, of which whole blocks make 4


def test_means_and_labels_are_those_of_numpy_in_any_slabs():
    rng = np.random.default_rng(0)
    scan = Grid.with_voxels((21, 17, 19), (1.0, 1.0, 1.0))
    plan = Plan(scan, (2, 1, 0), (3, 2, 4), (6, 7, 4))
    values, labels = rng.normal(size=scan.shape).astype(np.float32), rng.integers(0, 4, scan.shape).astype(np.uint8)
    means = BlockMeans(plan)
    for z0 in range(0, 21, 4):
        means.add(z0, values[z0 : z0 + 4])
    blocks = values[plan.crop].reshape(6, 3, 7, 2, 4, 4)
    np.testing.assert_allclose(means.values(), blocks.mean(axis=(1, 3, 5)), atol=1e-6)
    of_blocks = labels[plan.crop].reshape(6, 3, 7, 2, 4, 4).transpose(0, 2, 4, 1, 3, 5).reshape(6, 7, 4, -1)
    wanted = np.apply_along_axis(lambda block: np.bincount(block, minlength=4).argmax(), -1, of_blocks)
    found = np.concatenate(
        [previews.block_labels(plan, labels[(of, *plan.crop[1:])]) for _, of in previews.rows_of_blocks(plan)]
    )
    np.testing.assert_array_equal(found, wanted)


def test_eight_bits_keep_values_to_half_a_step_and_the_file_says_which():
    grid = grid_of((5, 6, 7), (3, 2, 1), "RAS")
    values = np.linspace(-250, 350, 210).reshape(5, 6, 7)
    stored, slope, low = previews.scaled(values, -200, 300)
    content = previews.nifti(stored, grid, slope=slope, intercept=low, description="means")
    assert content == previews.nifti(stored, grid, slope=slope, intercept=low, description="means")
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    np.testing.assert_allclose(image.affine, grid.affine, atol=1e-4)
    np.testing.assert_allclose(image.get_fdata().T, np.clip(values, -200, 300), atol=slope / 2 + 1e-4)
    assert previews.scaled(np.zeros(3), 0, 1)[0].tolist() == [0, 0, 0]
    with pytest.raises(ReportError, match="lower one first"):
        previews.scaled(values, 1, 1)


def test_the_box_of_what_anyone_labelled():
    maps = np.zeros((2, 40, 9, 8), np.uint8)
    assert previews.bounding_box(maps) is None
    maps[0, 3, 2, 5], maps[1, 37, 8, 1] = 1, 2
    assert previews.bounding_box(maps) == [(3, 38), (2, 9), (1, 6)]


def test_the_point_to_look_at_is_inside_the_larger_of_two_parts():
    grid, mask = Grid.with_voxels((4, 10, 20), (2, 1, 1)), np.zeros((4, 10, 20), bool)
    mask[1:3, 2:5, 1:4] = mask[1:3, 2:6, 15:19] = True
    x, y, z = previews.centre_mm(mask, grid)
    where = np.linalg.inv(grid.affine) @ [x, y, z, 1]
    assert mask[tuple(np.rint(where[2::-1]).astype(int))]
    assert 15 <= where[0] <= 18
    assert previews.centre_mm(np.zeros_like(mask), grid) is None


def test_the_most_uncertain_point_is_in_the_slice_with_most_entropy():
    grid, entropy = Grid.with_voxels((4, 10, 20), (2, 1, 1)), np.zeros((4, 10, 20), np.float32)
    entropy[1, 2, 3] = 0.9
    entropy[2, 4:8, 4:8], entropy[2, 5, 6] = 0.2, 0.4
    x, y, z = previews.most_uncertain_mm(entropy, grid)
    np.testing.assert_allclose(np.linalg.inv(grid.affine) @ [x, y, z, 1], [6, 5, 2, 1], atol=1e-6)
    assert previews.most_uncertain_mm(np.zeros_like(entropy), grid) is None
