"""Surfaces of organs as triangles, in millimetres along the patient's axes.

Belongs here: geometry. Does not belong here: drawing.
"""

import numpy as np
import numpy.typing as npt

from curvas_assets.report.style import Orientation, axis_codes

MAX_FACES = 20_000
"""Triangles per organ in the 3-D view: about 1 MB of HTML each."""


def surface(
    mask: npt.NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    orientation: Orientation = "LPS",
    *,
    max_faces: int = MAX_FACES,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The surface of a mask as triangles, with at most about `max_faces` of them.

    The mask is averaged over blocks of voxels, the larger the more triangles there would be, and cut at one half.

    Args:
        mask: bool (Z, Y, X).
        spacing_mm: voxel size along (Z, Y, X).
        orientation: directions of the array axes X, Y, Z, or the affine.
        max_faces: triangles wanted at most.

    Returns:
        Points (n, 3) in mm along (to the patient's left, to posterior, to superior) from the volume's corner, and
        triangles (m, 3) as indices of points; both empty for an empty mask.
    """
    from skimage.measure import block_reduce, marching_cubes

    if not mask.any():
        return np.zeros((0, 3)), np.zeros((0, 3), int)
    codes = axis_codes(orientation)
    sides = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    box = [slice(int(side[0]), int(side[-1]) + 1) for side in sides]
    corner = np.array([part.start for part in box], float)
    crop = np.ascontiguousarray(mask[tuple(box)]).astype(np.float32)
    spacing = np.asarray(spacing_mm, float)
    millimetres = float(spacing.min())
    while True:
        block = [max(1, round(millimetres / one)) for one in spacing]
        coarse = np.pad(block_reduce(crop, tuple(block), np.mean), 1)  # type: ignore[arg-type]  # padded: surfaces close
        if coarse.max() <= 0.5:  # an organ thinner than the blocks: cut at a lower value rather than lose it
            coarse = coarse / coarse.max()
        points, faces, _, _ = marching_cubes(coarse, 0.5)
        if len(faces) <= max_faces or all(b >= n for b, n in zip(block, crop.shape, strict=True)):
            return _placed(points, np.array(block), corner, spacing, codes, mask.shape), faces.astype(np.int64)
        millimetres *= 1.3


def _placed(
    points: npt.NDArray[np.float64],
    block: npt.NDArray[np.int64],
    corner: npt.NDArray[np.float64],
    spacing: npt.NDArray[np.float64],
    codes: str,
    shape: tuple[int, ...],
) -> npt.NDArray[np.float64]:
    """Points of the padded, coarse crop (Z, Y, X) in mm along left, posterior and superior."""
    # Block index − 1 (padding) → voxel index of the block's middle → mm.
    voxels = corner + (points - 1 + 0.5) * block - 0.5
    zyx = voxels * spacing
    extent = np.array(shape) * spacing
    lps = np.empty_like(zyx)
    for axis, code in zip((2, 1, 0), codes, strict=True):  # codes are of X, Y, Z
        values = zyx[:, axis] if code in "LPS" else extent[axis] - zyx[:, axis]
        lps[:, "LPS".index({"R": "L", "A": "P", "I": "S"}.get(code, code))] = values
    return lps
