"""Small cohorts as groups have them: names and labels that no study of this package has, in the layouts that are met."""

import gzip
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from curvas_assets.cohort.phantom import PROTOCOLS, make_patient

SHAPE, SPACING_MM = (16, 32, 32), (15.0, 10.5, 10.5)
VALUES = {"spleen": 1, "liver": 2, "kidney": 5, "pancreas": 7, "aorta": 9}
"""Organ → value in the files."""
DIFFERENT = 12
"""Patients of a cohort that have a body of their own; further ones have the first ones' again."""
LAYOUTS = {
    "folder of each patient": ("{p}/ct.nii.gz", "{p}/seg-{a}.nii.gz"),
    "folder of each annotator": ("images/{p}.nii.gz", "labels_{a}/{p}.nii.gz"),
    "flat": ("{p}_ct.nii.gz", "{p}_label_{a}.nii.gz"),
    "nnU-Net": ("imagesTr/{p}_0000.nii.gz", "labelsTr/{p}.nii.gz"),
    "repeated": ("{p}/{p}_CT.nii.gz", "{p}/manual/{p}_{a}_seg.nii.gz"),
    "joined": ("img/img{p}.nii.gz", "label/label{p}.nii.gz"),
}
"""Layout → names of the scan and of label maps; `{p}` is the patient, `{a}` the annotator."""


@cache
def drawn(number: int, shape: tuple[int, int, int] = SHAPE) -> tuple[Any, Any]:
    """Scan, int16 (Z, Y, X), and two label maps, uint8 (2, Z, Y, X), with the values of `VALUES`."""
    spacing = tuple(s * n / m for s, n, m in zip(SPACING_MM, SHAPE, shape, strict=True))
    scan, annotations = make_patient(
        f"ODD{number}",
        shape=shape,
        spacing_mm=spacing,
        annotators=2,
        protocol=PROTOCOLS["AB"[number % 2]],
        organs={name: label for label, name in enumerate(VALUES, 1)},
    )
    return scan, np.array([0, *VALUES.values()], np.uint8)[annotations]


def save(voxels: Any, path: Path, spacing_mm: Sequence[float] = SPACING_MM) -> None:
    """A volume (Z, Y, X) as NIfTI, quickly: compressed as little as may be."""
    z, y, x = spacing_mm
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0]))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.name.endswith(".gz") else content)


def odd_cohort(
    folder: Path,
    layout: str = "folder of each patient",
    *,
    patients: Sequence[str] = tuple(f"CASE_{n:04d}" for n in range(1, 11)),
    annotators: Sequence[str] = ("anna", "boris"),
    shape: tuple[int, int, int] = SHAPE,
) -> list[str]:
    """Write a cohort; returns its patients. Where files of a layout do not name the annotator, the first one's are written."""
    scans, labels = LAYOUTS[layout]
    for number, patient in enumerate(patients):
        scan, maps = drawn(number % DIFFERENT, shape)
        spacing = tuple(s * n / m for s, n, m in zip(SPACING_MM, SHAPE, shape, strict=True))
        save(scan, folder / scans.format(p=patient), spacing)
        for annotator, voxels in zip(annotators if "{a}" in labels else annotators[:1], maps, strict=False):
            save(voxels, folder / labels.format(p=patient, a=annotator), spacing)
    return list(patients)
