"""Tiny patients in any place of the world: files with a chosen affine, voxel order and header."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

ORDERS = [
    "".join(letters)
    for axes in (("LR", "PA", "SI"), ("PA", "SI", "LR"), ("SI", "LR", "PA"), ("PA", "LR", "SI"), ("LR", "SI", "PA"))
    for letters in ((a, b, c) for a in axes[0] for b in axes[1] for c in axes[2])
]
"""Forty of the 48 orders of a volume's axes."""


def affine_of(order="LPS", spacing=(2.0, 3.0, 5.0), angles=(0.0, 0.0, 0.0), origin=(10.0, -20.0, 30.0)):
    """Axes X, Y, Z along the order's directions, turned by angles in degrees: voxel → RAS+ mm."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, letter in enumerate(order):
        affine["RAS".index({"L": "R", "P": "A", "I": "S"}.get(letter, letter)), axis] = 1 if letter in "RAS" else -1
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ affine[:3, :3] * np.array(spacing)
    affine[:3, 3] = origin
    return affine


def write(path: Path, voxels_zyx, affine, *, codes=(1, 1)):
    """A NIfTI file of (Z, Y, X), with both forms as nibabel writes them, and their codes."""
    image = nib.Nifti1Image(np.ascontiguousarray(np.asarray(voxels_zyx).transpose(2, 1, 0)), affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    nib.save(image, path)


def write_patient(folder: Path, scan_zyx, annotations, affine, **options):
    """A phantom study's patient: the scan, and one label map for each annotator."""
    folder.mkdir(parents=True)
    write(folder / "image.nii.gz", scan_zyx, affine, **options)
    for k, labels in enumerate(annotations, 1):
        write(folder / f"annotation_{k}.nii.gz", labels, affine, **options)
    return folder


def reorder(path: Path, order: str):
    """Rewrite a file in another voxel order: every voxel stays where it is in the world."""
    image = nib.load(path)
    turned = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(order)))
    write(path, np.asarray(turned.dataobj).transpose(2, 1, 0), turned.affine)


def edit(path: Path, *changes):
    """Change a file's header in place: (struct format, offset, values …) each."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    for form, offset, *values in changes:
        struct.pack_into(form, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content), 1))


def ct(shape=(6, 7, 8), seed=0):
    """Air, soft tissue and bone, int16 (Z, Y, X)."""
    rng = np.random.default_rng(seed)
    scan = rng.choice(np.array([-1000, 40, 60, 900], np.int16), shape)
    scan[0, 0, 0], scan[-1, -1, -1] = -1000, 900
    return scan


def labels(shape=(6, 7, 8), seed=0, annotators=3):
    """Three label maps with every organ, uint8 (R, Z, Y, X)."""
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 4, (annotators, *shape)).astype(np.uint8)
    maps[:, 0, 0, :4] = (0, 1, 2, 3)
    return maps
