"""A synthetic cohort: abdomens in Hounsfield units with organs that several annotators draw differently.

For the demo, tests and benchmarks. Nothing here resembles a patient; what is realistic is what the pipeline depends on:
intensities that overlap, anisotropic voxels, a thin and winding pancreas on which annotators agree least, an annotator who
draws generously, one who draws tightly, one who leaves out tails. A patient depends on the seed and its own name only.
The same patients may have been scanned by MR: two sequences on the same voxels, without a unit, exactly 0 around the body.

Annotators may instead disagree by a known distribution (`Disagreement`). What they do not know is then known here: the
probability that an annotator gives a voxel to an organ (`true_response`), and its entropy (`true_ambiguity`). A study of a
pancreatic tumour gets one that encases vessels by known angles (`true_involvement`).
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.special import entr, ndtr

from curvas_assets.errors import PatientError
from curvas_assets.inputs import as_shape, as_spacing, made_folder
from curvas_assets.label_values import LabelValues

Field = npt.NDArray[np.float32]
ORGANS = {"pancreas": 1, "kidney": 2, "liver": 3}
VESSELS = ("porta", "smv", "aorta", "celiac", "sma")
"""Portal vein, superior mesenteric vein, aorta, coeliac trunk, superior mesenteric artery."""
TUMOUR_ORGANS = {name: label for label, name in enumerate(("pdac", *VESSELS), 1)}
"""A pancreatic ductal adenocarcinoma, and the vessels that decide whether it can be resected."""
PAINTED = ("spleen", "liver", "kidney", "pancreas", "pdac", *VESSELS)
"""All organs that there are. One that comes later takes the voxels that an annotator gives to several."""


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


_TISSUES = ("fat", "soft", "bowel", "fluid", "spleen", "vessel", "liver", "kidney", "pancreas", "bone")
CONTRASTS: Mapping[str, Mapping[str, float]] = {
    "T1": dict(zip(_TISSUES, (260, 110, 90, 45, 95, 200, 150, 130, 175, 80), strict=True)),
    "T2": dict(zip(_TISSUES, (210, 60, 90, 320, 170, 30, 80, 190, 115, 120), strict=True)),
}
"""MR sequence → mean signal of each tissue, before the patient's own factor."""
MR_NOISE = 8.0
"""Standard deviation of the noise in these units."""


@dataclass(frozen=True)
class Hand:
    """How an annotator draws: offset of the boundary (mm, outwards), its wavering (mm), share of the pancreas' tail kept."""

    offset_mm: float
    waver_mm: float
    tail_kept: float


HANDS = (Hand(0.0, 1.0, 1.0), Hand(1.6, 1.4, 1.0), Hand(-1.4, 1.0, 0.72))
"""The first three annotators: a faithful, a generous and a tight one. Further ones are drawn at random."""


def _scatter() -> dict[str, float]:
    return {"pancreas": 1.6, "pdac": 2.0, **dict.fromkeys(VESSELS, 0.0)}


@dataclass(frozen=True)
class Disagreement:
    """A distribution that annotators' boundaries are drawn from; the annotators are exchangeable.

    An annotator takes a voxel for part of an organ if d + s (δ + w) > 0. There d is the voxel's depth inside the organ (mm,
    negative outside), s the organ's scatter, δ ~ N(0, offset_mm²) one number for each patient, annotator and organ, and
    w ~ N(0, waver_mm²) a smooth field of the annotator's. The probability is Φ(d / (s √(offset_mm² + waver_mm²))), and organs
    are independent but for the order in which they are painted (`PAINTED`).

    Args:
        offset_mm: standard deviation of how far an annotator moves a whole boundary, mm.
        waver_mm: standard deviation of how far the boundary wavers about that at each point, mm.
        length_mm: over which the wavering is correlated (standard deviation of the Gaussian kernel), mm.
        scatter: organ → factor on both; 1 where it is not named. With 0, all annotators draw the organ alike, as where one
            clinician has drawn the vessels for everybody.
    """

    offset_mm: float = 1.2
    waver_mm: float = 1.0
    length_mm: float = 8.0
    scatter: Mapping[str, float] = field(default_factory=_scatter)

    def __post_init__(self) -> None:
        numbers = (self.offset_mm, self.waver_mm, self.length_mm, *self.scatter.values())
        if not all(isinstance(n, int | float) and math.isfinite(n) and n >= 0 for n in numbers) or not self.length_mm:
            remedy = "Give finite numbers, none below 0, and a length above 0."
            raise PatientError("describing annotators' disagreement", "the cohort", f"{self!r:.200}", remedy)

    def deviation_mm(self, organ: str) -> float:
        """Standard deviation of the place of an organ's boundary along its normal, mm."""
        return self.scatter.get(organ, 1.0) * math.hypot(self.offset_mm, self.waver_mm)

    def probability(self, organ: str, depth_mm: Field) -> npt.NDArray[np.float64]:
        """Probability that an annotator takes a voxel at this depth for part of the organ, whatever is painted over it."""
        deviation = self.deviation_mm(organ)
        return ndtr(depth_mm.astype(np.float64) / deviation) if deviation else (depth_mm > 0).astype(np.float64)


def write_cohort(
    folder: str | Path,
    *,
    patients: int | str | Sequence[str] = 9,
    shape: Sequence[int] = (48, 96, 96),
    spacing_mm: Sequence[float] = (5.0, 3.5, 3.5),
    annotators: int = 3,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    organs: Mapping[str, int] | None = None,
    disagreement: Disagreement | None = None,
    images: Mapping[str, str] | None = None,
    label_values: LabelValues | None = None,
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
        organs: organ → its label, of those in `PAINTED`; pancreas, kidney and liver if left out. If `pdac` or a vessel other
            than the aorta is among them, the patients have a tumour.
        disagreement: the distribution that annotators' boundaries are drawn from. Left out: a faithful, a generous, a tight
            annotator (`HANDS`), and further ones of their own habits.
        images: file name → what it shows: `CT`, or one of `CONTRASTS`. `image.nii.gz`, the CT, if left out.
        label_values: values that the files have in place of the labels; of merged ones the first. Left out: the labels.

    Returns:
        The patients' folders.

    Raises:
        PatientError: a folder cannot be made, or patients, shape, spacing, annotators, groups, organs or images are not as said.
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
    kinds = _kinds(images)
    root = made_folder(folder, **told)
    written: list[Path] = []
    for name in names:
        protocol = PROTOCOLS.get((groups or {}).get(name, "A"), PROTOCOLS["A"])
        scan, annotations = make_patient(
            name,
            shape=shape,
            spacing_mm=spacing_mm,
            annotators=annotators,
            seed=seed,
            protocol=protocol,
            organs=organs,
            disagreement=disagreement,
        )
        target = made_folder(root / name, **told)
        affine = _affine(shape, spacing_mm)
        for file, kind in kinds.items():
            shown = scan
            if kind != "CT":
                shown = make_mr(name, kind, shape=shape, spacing_mm=spacing_mm, seed=seed, organs=organs)
            _save(shown, affine, target / file)
        for k, annotation in enumerate(annotations, 1):
            values = annotation if label_values is None else label_values.written(annotation)
            _save(values, affine, target / f"annotation_{k}.nii.gz")
        written.append(target)
    return written


def _kinds(images: Any) -> dict[str, str]:
    """File name → what it shows."""
    if images is None:
        return {"image.nii.gz": "CT"}
    if not isinstance(images, Mapping) or not images or not set(images.values()) <= {"CT", *CONTRASTS}:
        remedy = f"Give a mapping: file name → CT, {' or '.join(CONTRASTS)}."
        raise PatientError("writing a cohort", "the cohort", f"images {images!r:.200}", remedy)
    return dict(images)


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
    organs: Mapping[str, int] | None = None,
    disagreement: Disagreement | None = None,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """One patient's CT, int16 HU (Z, Y, X), and label maps, uint8 (R, Z, Y, X). Arguments as for `write_cohort`."""
    labels = _labels(organs)
    body, rng = _anatomy(name, shape, spacing_mm, seed, labels)
    scan = body.scan(protocol, rng)
    if disagreement is not None:
        drawn = [draw_annotation(body, labels, disagreement, _generator(name, seed, k)) for k in range(annotators)]
        return scan, np.stack(drawn)
    hands = [
        *HANDS,
        *(Hand(rng.normal(0, 1.2), rng.uniform(0.8, 1.6), rng.uniform(0.7, 1)) for _ in range(3, annotators)),
    ]
    return scan, np.stack([body.drawn_by(hand, labels, rng) for hand in hands[:annotators]])


def make_mr(
    name: str,
    contrast: str,
    *,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    seed: int = 0,
    organs: Mapping[str, int] | None = None,
) -> npt.NDArray[np.int16]:
    """An MR of one patient, int16 without a unit (Z, Y, X), 0 around the body and nowhere in it. It shows the organs that the CT of
    `make_patient` shows.

    Args:
        name: as for `make_patient`, like what follows.
        contrast: of `CONTRASTS`.
        shape: voxels (Z, Y, X).
        spacing_mm: voxel size along (Z, Y, X).
        seed: of the cohort.
        organs: organ → its label.
    """
    body, _ = _anatomy(name, shape, spacing_mm, seed, _labels(organs))
    return body.mr(CONTRASTS[contrast], _generator(name, seed, MR_KEY + list(CONTRASTS).index(contrast)))


def true_response(
    name: str,
    *,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    disagreement: Disagreement,
    seed: int = 0,
    organs: Mapping[str, int] | None = None,
) -> npt.NDArray[np.float32]:
    """Probability that an annotator gives a voxel to each class: what the mean of ever more annotators tends to.

    It is computed anew from the arguments with which the patient was made, and stored nowhere.

    Returns:
        float32 (1 + organs, Z, Y, X), background first, then the organs by their labels; a voxel's values add up to 1.
    """
    labels = _labels(organs)
    body, _ = _anatomy(name, shape, spacing_mm, seed, labels)
    return response(body, labels, disagreement)


def true_ambiguity(response: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Entropy of the annotators' answer at each voxel, nats (Z, Y, X): the aleatoric uncertainty that no predictor removes.

    Args:
        response: what `true_response` returned, (1 + organs, Z, Y, X).
    """
    return entr(response.astype(np.float64)).sum(axis=0)


def true_involvement(
    name: str, *, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], seed: int = 0
) -> dict[str, float]:
    """Vessel → degrees of its circumference that the tumour encases, in the slices where it does; 0 if it does not touch it.

    This is the tumour's own boundary. Annotators' involvement scatters about it, as their boundaries do.
    """
    body, _ = _anatomy(name, shape, spacing_mm, seed, TUMOUR_ORGANS)
    assert body.tumour is not None
    return dict(body.tumour.involvement_deg)


def _generator(name: str, seed: int, *key: int) -> np.random.Generator:
    """A patient's own random numbers; with a key, others that are independent of these."""
    words = np.frombuffer(hashlib.sha256(f"{seed} {name}".encode()).digest(), dtype=np.uint32)
    if not key:
        return np.random.default_rng(words)
    return np.random.default_rng(np.random.SeedSequence(words.tolist(), spawn_key=key))


TUMOUR_KEY = 1 << 16
"""Of the tumour's random numbers, beyond those of the annotators."""
MR_KEY = 1 << 17
"""Of those of the first MR sequence."""


def _anatomy(
    name: str,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    seed: int,
    labels: Mapping[str, int],
) -> tuple["_Anatomy", np.random.Generator]:
    """A patient's anatomy, and the generator that goes on with the scan."""
    rng = _generator(name, seed)
    extent_mm = np.asarray(shape) * np.asarray(spacing_mm)
    body = _Anatomy(_Space(shape, spacing_mm), extent_mm, rng)
    if set(labels) & {"pdac", *VESSELS} - {"aorta"}:
        body.grow_tumour(_generator(name, seed, TUMOUR_KEY))
    return body, rng


def _labels(organs: Any) -> dict[str, int]:
    """Organ → label, in the order in which they are painted."""
    if organs is None:
        organs = ORGANS
    if not isinstance(organs, Mapping) or not organs or set(organs) - set(PAINTED):
        remedy = f"Name some of {', '.join(PAINTED)}, each with its label."
        raise PatientError("making a phantom", "the cohort", f"organs {organs!r:.200}", remedy)
    if sorted(organs.values()) != list(range(1, len(organs) + 1)):
        remedy = f"Give the labels 1 to {len(organs)}, each to one organ."
        raise PatientError("making a phantom", "the cohort", f"organs {organs!r:.200}", remedy)
    return {name: int(organs[name]) for name in PAINTED if name in organs}


def draw_annotation(
    body: "_Anatomy", labels: Mapping[str, int], disagreement: Disagreement, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """The label map of one annotator whose boundaries are drawn from a distribution."""
    drawn = np.zeros(body.space.shape, dtype=np.uint8)
    for name, label in labels.items():
        scatter = disagreement.scatter.get(name, 1.0)
        depth = body.organs[name]
        if scatter:
            depth = depth + np.float32(scatter * disagreement.offset_mm * rng.standard_normal())
            depth += body.space.gaussian_field(rng, disagreement.length_mm, scatter * disagreement.waver_mm)
        drawn[depth > 0] = label
    return drawn


def response(body: "_Anatomy", labels: Mapping[str, int], disagreement: Disagreement) -> npt.NDArray[np.float32]:
    """Probability of each class at each voxel, float32 (1 + organs, Z, Y, X): an organ has what those over it leave."""
    whole = np.empty((1 + len(labels), *body.space.shape), dtype=np.float32)
    left = np.ones(body.space.shape)
    for name, label in reversed(list(labels.items())):
        taken = left * disagreement.probability(name, body.organs[name])
        whole[label] = taken
        left -= taken
    whole[0] = left
    return whole


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

    def gaussian_field(self, rng: np.random.Generator, length_mm: float, deviation: float) -> Field:
        """Smooth noise that is normal at each voxel with exactly this standard deviation, over all fields there could be.

        That of `waves` is exact over the voxels of each one field. The gain of the filter is that of its impulse response.
        """
        noise = rng.standard_normal(self.shape, dtype=np.float32)
        gain = 1.0
        for n, sigma in zip(self.shape, length_mm / self.spacing_mm, strict=True):
            impulse = np.zeros(n)
            impulse[0] = 1
            gain *= float(np.linalg.norm(ndimage.gaussian_filter1d(impulse, sigma, mode="wrap")))
        noise = ndimage.gaussian_filter(noise, length_mm / self.spacing_mm, mode="wrap")
        return noise * np.float32(deviation / gain)

    def pipe(self, points: npt.NDArray[np.floating], radius: float) -> Field:
        """Distance to the surface of a tube along a line of straight pieces, mm, positive inside."""
        nearest = np.full(self.shape, np.inf, dtype=np.float32)
        for (az, ay, ax), (bz, by, bx) in itertools.pairwise(points):
            dz, dy, dx = bz - az, by - ay, bx - ax
            along = (self.z - az) * dz + (self.y - ay) * dy + (self.x - ax) * dx
            t = np.clip(along / (dz * dz + dy * dy + dx * dx), 0, 1)
            squared = (self.z - az - t * dz) ** 2 + (self.y - ay - t * dy) ** 2 + (self.x - ax - t * dx) ** 2
            np.minimum(nearest, squared, out=nearest)
        return (radius - np.sqrt(nearest)).astype(np.float32)

    def cuff(
        self,
        axis: tuple[float, float],
        towards: tuple[float, float],
        radii: tuple[float, float],
        deg: float,
        z: tuple[float, float],
    ) -> Field:
        """About the depth (mm) inside a sleeve about an upright vessel that spans an angle.

        Args:
            axis: the vessel's (y, x), mm.
            towards: a point (y, x) in the direction of the sleeve's middle.
            radii: of the vessel and of the sleeve, mm.
            deg: angle that the sleeve spans.
            z: its lowest and highest level, mm.
        """
        y, x = self.y - axis[0], self.x - axis[1]
        distance = np.hypot(y, x)
        middle = math.atan2(towards[0] - axis[0], towards[1] - axis[1])
        turned = np.abs((np.arctan2(y, x) - middle + np.pi) % (2 * np.pi) - np.pi)
        beside = distance * (math.radians(deg) / 2 - turned) if deg < 360 else np.full_like(distance, np.inf)
        within = np.minimum(np.minimum(radii[1] - distance, beside), np.minimum(self.z - z[0], z[1] - self.z))
        return np.broadcast_to(within, self.shape).astype(np.float32)


class _Anatomy:
    """One patient's organs as distance fields (mm, positive inside).

    Axes as in a CT read from NIfTI in LPS order: X runs to the patient's left, Y to posterior, Z to superior.
    """

    def __init__(self, space: _Space, extent_mm: npt.NDArray[np.floating], rng: np.random.Generator):
        self.space = space
        self.tumour: _Tumour | None = None
        scale = extent_mm / np.array([240.0, 336.0, 336.0])
        self.size = size = scale * rng.normal(1, 0.05)

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
        # No two of the first three share a voxel: it belongs to the one inside which it lies deeper.
        self.organs: dict[str, Field] = {
            "pancreas": np.minimum(pancreas, -np.maximum(kidney, liver)),
            "kidney": np.minimum(kidney, -liver),
            "liver": liver,
            "spleen": self.spleen,
            "aorta": self.aorta,
        }
        edge = self.body - 12
        self.organs = {name: np.minimum(field, edge) for name, field in self.organs.items()}

    def grow_tumour(self, rng: np.random.Generator) -> None:
        """Give the patient a pancreatic tumour, and the vessels about it."""
        self.tumour = _Tumour(self.space, self.size, self.aorta, rng)
        self.organs |= self.tumour.organs

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
        if self.tumour is not None:
            self.tumour.fill(fill, hu)
        fill(self.pelvis, 25)
        fill(self.spine, 420)
        fill(self.spine - 6, 210)
        scan += np.where(self.body > -5, 1, 0.4) * (
            self.space.waves(rng, 4, 0.6 * protocol.noise_hu)
            + rng.standard_normal(self.space.shape, dtype=np.float32) * (0.8 * protocol.noise_hu)
        )
        return np.clip(np.round(scan), -1024, 3071).astype(np.int16)

    def mr(self, signal: Mapping[str, float], rng: np.random.Generator) -> npt.NDArray[np.int16]:
        """Sensitivity of the coils and gain are the patient's own."""
        scan = np.full(self.space.shape, signal["fat"], dtype=np.float32)

        def fill(field: Field, value: float) -> None:
            share = np.clip(field / 3 + 0.5, 0, 1)
            scan[...] = scan * (1 - share) + value * share

        fill(self.body - 18, signal["soft"])
        fill(self.bowel, signal["bowel"])
        fill(self.stomach, signal["fluid"])
        fill(self.spleen, signal["spleen"] + rng.normal(0, 5))
        fill(self.aorta, signal["vessel"] + rng.normal(0, 8))
        for name in ("liver", "kidney", "pancreas"):
            fill(self.organs[name], signal[name] + rng.normal(0, 6))
        if self.tumour is not None:
            self.tumour.fill(fill, signal)
        fill(self.pelvis, signal["fluid"])
        fill(self.spine, signal["bone"])
        scan += self.space.waves(rng, 4, 0.6 * MR_NOISE)
        scan += rng.standard_normal(self.space.shape, dtype=np.float32) * (0.8 * MR_NOISE)
        scan *= np.exp(self.space.waves(rng, 60, 0.15)) * np.float32(rng.uniform(0.7, 1.6))
        return np.where(self.body > 0, np.clip(np.round(scan), 1, 4095), 0).astype(np.int16)

    def drawn_by(self, hand: Hand, labels: Mapping[str, int], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """The label map one annotator draws. The three organs of the demo are drawn whether or not they are asked for, so that
        they do not depend on which others are.
        """
        masks: dict[str, npt.NDArray[np.bool_]] = {}
        for name in ("liver", "kidney", "pancreas", *(one for one in labels if one not in ORGANS)):
            field = self.organs[name]
            if name == "pancreas" and hand.tail_kept < 1:
                kept = max(2, round(len(self.course) * hand.tail_kept))
                field = np.minimum(field, self.space.tube(self.course[:kept], self.thickness[:kept]))
            waver = hand.waver_mm * (1.6 if name == "pancreas" else 1.0)
            masks[name] = field + hand.offset_mm + self.space.waves(rng, 11, waver) > 0
        drawn = np.zeros(self.space.shape, dtype=np.uint8)
        for name, label in labels.items():
            drawn[masks[name]] = label
        return drawn


class _Tumour:
    """A tumour of the pancreas' head with the vessels about it, as distance fields (mm, positive inside).

    The tumour keeps off all vessels but those that it encases: about these it has a sleeve of a known angle.
    """

    def __init__(self, space: _Space, size: npt.NDArray[np.floating], aorta: Field, rng: np.random.Generator):
        unit = float(size.mean())
        # Before anything that depends on the shape of the scan: they are the patient's, however it is scanned.
        smv = 0.0 if rng.random() < 0.2 else rng.uniform(60, 330)
        sma = 0.0 if rng.random() < 0.5 else rng.uniform(40, 150)
        self.involvement_deg = {**dict.fromkeys(VESSELS, 0.0), "smv": smv, "sma": sma}
        self.enhancement = {"pdac": -20 + rng.normal(0, 4), "artery": rng.normal(0, 8), "vein": rng.normal(0, 8)}

        def line(*points: tuple[float, float, float]) -> npt.NDArray[np.floating]:
            return np.array(points) * size

        # Radii are generous, so that coarse phantoms have the vessels too.
        radii = {"smv": 8.0 * unit, "porta": 8.5 * unit, "celiac": 6.0 * unit, "sma": 6.0 * unit}
        courses = {
            "smv": line((-75, 6, -10), (6, 6, -10)),
            "porta": line((6, 6, -10), (42, -4, -46)),
            "celiac": line((46, 28, 10), (50, 8, 8)),
            "sma": line((24, 28, 10), (14, 16, 12), (-75, 16, 12)),
        }
        self.organs: dict[str, Field] = {name: space.pipe(courses[name], radii[name]) for name in radii}
        centre = np.array([-24, 4, -42]) * size + rng.normal(0, 2, 3) * size
        core = space.ellipsoid(centre, np.array([20, 17, 17]) * size * rng.normal(1, 0.08, 3))
        core += space.waves(rng, 10, 1.0)
        vessels = np.maximum.reduce([aorta, *self.organs.values()])
        tumour = np.minimum(core, -vessels - 4 * unit)
        for name, deg in (("smv", smv), ("sma", sma)):
            if deg:
                _, y, x = courses[name][-1]
                reach = (radii[name], radii[name] + 7 * unit)
                levels = (float(centre[0] - 13 * size[0]), float(centre[0] + 13 * size[0]))
                sleeve = space.cuff((y, x), (float(centre[1]), float(centre[2])), reach, deg, levels)
                others = np.maximum.reduce([aorta, *(field for one, field in self.organs.items() if one != name)])
                tumour = np.maximum(tumour, np.minimum(sleeve, -others - 2 * unit))
        self.organs["pdac"] = tumour

    def fill(self, paint: Callable[[Field, float], None], hu: Mapping[str, float]) -> None:
        """Paint the tumour, darker than the pancreas, and the vessels over it."""
        paint(self.organs["pdac"], hu["pancreas"] + self.enhancement["pdac"])
        for name in ("porta", "smv"):
            paint(self.organs[name], (hu["vessel"] + hu["liver"]) / 2 + self.enhancement["vein"])
        for name in ("celiac", "sma"):
            paint(self.organs[name], hu["vessel"] + self.enhancement["artery"])


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
