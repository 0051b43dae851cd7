"""A synthetic cohort: abdomens in Hounsfield units with organs that several annotators draw differently.

For the demo, tests and benchmarks. Nothing here resembles a patient; what is realistic is what the pipeline depends on:
intensities that overlap, anisotropic voxels, a thin and winding pancreas on which annotators agree least, an annotator who
draws generously, one who draws tightly, one who leaves out tails. A patient depends on the seed and its own name only.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from curvas_assets.errors import PatientError
from curvas_assets.inputs import as_shape, as_spacing, made_folder

Field = npt.NDArray[np.float32]
ORGANS = {"pancreas": 1, "kidney": 2, "liver": 3}


@dataclass(frozen=True)
class Protocol:
    """How a group of patients was scanned.

    Args:
        enhancement: organ → mean HU.
        noise_hu: standard deviation of the noise.
    """

    enhancement: Mapping[str, float]
    noise_hu: float


PROTOCOLS = {
    "A": Protocol({"liver": 115, "kidney": 185, "pancreas": 95, "spleen": 125, "vessel": 160}, 14),  # portal venous
    "B": Protocol({"liver": 80, "kidney": 215, "pancreas": 110, "spleen": 135, "vessel": 280}, 14),  # arterial
    "C": Protocol({"liver": 100, "kidney": 165, "pancreas": 85, "spleen": 110, "vessel": 140}, 28),  # low dose
}


@dataclass(frozen=True)
class Hand:
    """How an annotator draws: offset of the boundary (mm, outwards), its wavering (mm), share of the pancreas' tail kept."""

    offset_mm: float
    waver_mm: float
    tail_kept: float


HANDS = (Hand(0.0, 1.0, 1.0), Hand(1.6, 1.4, 1.0), Hand(-1.4, 1.0, 0.72))
"""The first three annotators: a faithful, a generous and a tight one. Further ones are drawn at random."""


def write_cohort(
    folder: str | Path,
    *,
    patients: int | str | Sequence[str] = 9,
    shape: Sequence[int] = (48, 96, 96),
    spacing_mm: Sequence[float] = (5.0, 3.5, 3.5),
    annotators: int = 3,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write a cohort as a user would have it: `<patient>/image.nii.gz`, `<patient>/annotation_<k>.nii.gz`.

    Args:
        folder: where the patients' folders are made.
        patients: their names, one name, or how many (`PHANTOM001` …).
        shape: voxels (Z, Y, X). The anatomy fills the volume whatever its size.
        spacing_mm: voxel size along (Z, Y, X).
        annotators: label maps per patient.
        seed: of the cohort. The same seed and name give the same voxels, whoever else is in the cohort.
        groups: patient → `A`, `B` or `C`, which sets enhancement and noise; `A` where it is not named.

    Returns:
        The patients' folders.

    Raises:
        PatientError: a folder cannot be made, or patients, shape, spacing, annotators or groups are not as said.
    """
    told: Any = {"attempted": "writing a cohort", "subject": "the cohort", "error": PatientError}
    names = _names(patients)
    shape, spacing_mm = as_shape(shape, **told), as_spacing(spacing_mm, **told)
    if not isinstance(annotators, int | np.integer) or annotators < 1:
        found = f"annotators = {annotators!r:.80}"
        raise PatientError("writing a cohort", "the cohort", found, "Give a whole number, 1 or above.")
    if not isinstance(groups, Mapping | None):
        remedy = "Give a mapping: patient → A, B or C."
        raise PatientError("writing a cohort", "the cohort", f"groups {groups!r:.80}", remedy)
    root = made_folder(folder, **told)
    written: list[Path] = []
    for name in names:
        protocol = PROTOCOLS.get((groups or {}).get(name, "A"), PROTOCOLS["A"])
        scan, annotations = make_patient(
            name, shape=shape, spacing_mm=spacing_mm, annotators=annotators, seed=seed, protocol=protocol
        )
        target = made_folder(root / name, **told)
        affine = _affine(shape, spacing_mm)
        _save(scan, affine, target / "image.nii.gz")
        for k, annotation in enumerate(annotations, 1):
            _save(annotation, affine, target / f"annotation_{k}.nii.gz")
        written.append(target)
    return written


def _names(patients: Any) -> list[str]:
    """Patients' names, from names or from the number of patients."""
    if isinstance(patients, int | np.integer) and patients >= 1:
        return [f"PHANTOM{i:03d}" for i in range(1, int(patients) + 1)]
    names = [patients] if isinstance(patients, str) else list(patients) if isinstance(patients, Iterable) else []
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        remedy = "Give their names, or how many there are to be."
        raise PatientError("writing a cohort", "the cohort", f"patients {patients!r:.80}", remedy)
    return names


def make_patient(
    name: str,
    *,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    annotators: int = 3,
    seed: int = 0,
    protocol: Protocol = PROTOCOLS["A"],
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """One patient's CT, int16 HU (Z, Y, X), and label maps, uint8 (R, Z, Y, X)."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    extent_mm = np.asarray(shape) * np.asarray(spacing_mm)
    space = _Space(shape, spacing_mm)
    body = _Anatomy(space, extent_mm, rng)
    scan = body.scan(protocol, rng)
    hands = [
        *HANDS,
        *(Hand(rng.normal(0, 1.2), rng.uniform(0.8, 1.6), rng.uniform(0.7, 1)) for _ in range(3, annotators)),
    ]
    annotations = np.stack([body.drawn_by(hand, rng) for hand in hands[:annotators]])
    return scan, annotations


class _Space:
    """Coordinates in mm from the volume's centre, and smooth random fields on them."""

    def __init__(self, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]):
        self.shape = shape
        self.spacing_mm = np.asarray(spacing_mm, dtype=np.float32)
        axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
        self.z, self.y, self.x = np.meshgrid(*axes, indexing="ij", sparse=True)

    def ellipsoid(self, centre: npt.ArrayLike, radii: npt.ArrayLike) -> Field:
        """About the distance to an ellipsoid's surface, mm, positive inside."""
        (cz, cy, cx), (rz, ry, rx) = np.asarray(centre), np.asarray(radii)
        q = np.sqrt(((self.z - cz) / rz) ** 2 + ((self.y - cy) / ry) ** 2 + ((self.x - cx) / rx) ** 2)
        return ((1 - q) * float(min(rz, ry, rx))).astype(np.float32)

    def tube(self, points: npt.NDArray[np.floating], radii: npt.NDArray[np.floating]) -> Field:
        """About the distance to the surface of balls strung along points, mm, positive inside."""
        inside = np.full(self.shape, -np.inf, dtype=np.float32)
        for (cz, cy, cx), radius in zip(points, radii, strict=True):
            distance = np.sqrt((self.z - cz) ** 2 + (self.y - cy) ** 2 + (self.x - cx) ** 2)
            np.maximum(inside, radius - distance, out=inside)
        return inside

    def waves(self, rng: np.random.Generator, length_mm: float, height: float) -> Field:
        """Smooth noise with this correlation length and standard deviation."""
        noise = rng.standard_normal(self.shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, length_mm / self.spacing_mm, mode="wrap")
        return noise * np.float32(height / max(float(noise.std()), 1e-6))


class _Anatomy:
    """One patient's organs as distance fields (mm, positive inside).

    Axes as in a CT read from NIfTI in LPS order: X runs to the patient's left, Y to posterior, Z to superior.
    """

    def __init__(self, space: _Space, extent_mm: npt.NDArray[np.floating], rng: np.random.Generator):
        self.space = space
        scale = extent_mm / np.array([240.0, 336.0, 336.0])
        size = scale * rng.normal(1, 0.05)

        def at(z: float, y: float, x: float, wander_mm: float = 5) -> npt.NDArray[np.floating]:
            return np.array([z, y, x]) * size + rng.normal(0, wander_mm, 3) * scale

        def big(z: float, y: float, x: float) -> npt.NDArray[np.floating]:
            return np.array([z, y, x]) * size * rng.normal(1, 0.06, 3)

        self.body = space.ellipsoid((0, 0, 0), np.array([1e4, 108, 150]) * size)
        self.spine = space.ellipsoid(at(0, 62, 0, 2), np.array([1e4, 17, 19]) * size)
        self.aorta = space.ellipsoid(at(0, 38, 10, 2), np.array([1e4, 10, 10]) * size)
        self.spleen = space.ellipsoid(at(45, 35, 92), big(38, 30, 22))
        self.stomach = space.ellipsoid(at(45, -35, 55), big(30, 32, 42))
        self.bowel = np.maximum.reduce([space.ellipsoid(at(-70, -40, x, 10), big(30, 26, 26)) for x in (-70, -10, 55)])
        lobes = (space.ellipsoid(at(40, -5, -72), big(62, 72, 62)), space.ellipsoid(at(55, -45, -8), big(34, 36, 58)))
        liver = np.maximum(*lobes) + space.waves(rng, 22, 2.5)
        sides = [space.ellipsoid(at(-25, 45, side * 62), big(50, 24, 26)) for side in (-1, 1)]
        kidney = np.maximum(*sides) + space.waves(rng, 14, 1.0)
        self.pelvis = np.maximum(*(side - 14 * size.mean() for side in sides))
        t = np.linspace(0, 1, 28)
        bend, rise = rng.normal(0, 5), rng.normal(0, 6)
        course = np.stack(
            [
                (-22 + 46 * t + rise * t) * size[0],
                (2 - (34 + bend) * np.sin(np.pi * t) * 0.6 + 16 * t) * size[1],
                (-42 + 118 * t) * size[2],
            ],
            axis=1,
        )
        thickness = (15 - 5.5 * t) * size.mean() * rng.normal(1, 0.06)
        self.course, self.thickness = course, thickness
        pancreas = space.tube(course, thickness)
        # No two organs share a voxel: it belongs to the one inside which it lies deeper.
        self.organs: dict[str, Field] = {
            "pancreas": np.minimum(pancreas, -np.maximum(kidney, liver)),
            "kidney": np.minimum(kidney, -liver),
            "liver": liver,
        }
        edge = self.body - 12
        self.organs = {name: np.minimum(field, edge) for name, field in self.organs.items()}

    def scan(self, protocol: Protocol, rng: np.random.Generator) -> npt.NDArray[np.int16]:
        hu = protocol.enhancement
        scan = np.full(self.space.shape, -1000, dtype=np.float32)

        def fill(field: Field, value: float) -> None:
            """Paint with a blurred edge, as partial volumes do."""
            share = np.clip(field / 3 + 0.5, 0, 1)
            scan[...] = scan * (1 - share) + value * share

        fill(self.body, -95)
        fill(self.body - 18, 48)
        fill(self.bowel, 25)
        fill(self.bowel - 14, -500)
        fill(self.stomach, 30)
        fill(np.minimum(self.stomach - 8, -self.space.y * 0.2 - 8), -850)
        fill(self.spleen, hu["spleen"] + rng.normal(0, 5))
        fill(self.aorta, hu["vessel"] + rng.normal(0, 8))
        for name in ("liver", "kidney", "pancreas"):
            fill(self.organs[name], hu[name] + rng.normal(0, 6))
        fill(self.pelvis, 25)
        fill(self.spine, 420)
        fill(self.spine - 6, 210)
        scan += np.where(self.body > -5, 1, 0.4) * (
            self.space.waves(rng, 4, 0.6 * protocol.noise_hu)
            + rng.standard_normal(self.space.shape, dtype=np.float32) * (0.8 * protocol.noise_hu)
        )
        return np.clip(np.round(scan), -1024, 3071).astype(np.int16)

    def drawn_by(self, hand: Hand, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """The label map one annotator draws."""
        labels = np.zeros(self.space.shape, dtype=np.uint8)
        for name in ("liver", "kidney", "pancreas"):
            field = self.organs[name]
            if name == "pancreas" and hand.tail_kept < 1:
                kept = max(2, round(len(self.course) * hand.tail_kept))
                field = np.minimum(field, self.space.tube(self.course[:kept], self.thickness[:kept]))
            waver = hand.waver_mm * (1.6 if name == "pancreas" else 1.0)
            labels[field + hand.offset_mm + self.space.waves(rng, 11, waver) > 0] = ORGANS[name]
        return labels


def _affine(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> npt.NDArray[np.floating]:
    """LPS voxel order in NIfTI's RAS+ world, the origin off the centre as in a real scan."""
    z, y, x = spacing_mm
    affine = np.diag([-x, -y, z, 1.0])
    affine[:3, 3] = (x * shape[2] / 2 - 4.5, y * shape[1] / 2 + 12.25, -z * shape[0] / 2 - 310.5)
    return affine


def _save(array: npt.NDArray[Any], affine: npt.NDArray[np.floating], path: Path) -> None:
    image = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    nib.save(image, path)
