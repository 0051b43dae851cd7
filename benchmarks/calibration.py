"""Fitting calibrators: a patient's predictors counted and fitted, against all voxels held in memory; and how long a study takes.

Measured on a volume of a quarter of the width and height and an eighth of the slices (with `--full` at full size), of a
confident network with three organs and three annotators; CPU seconds include reading and decoding the volume. Printed are

- our CPU time as a share of what the voxelwise way takes: scikit-learn's isotonic regression of each organ's float64
  probabilities, and SciPy's minimisation of the cross-entropy over T; both on the same voxels, in the same run;
- how far the two ways' temperatures are apart, and their curves;
- the CPU minutes of 65 patients × 4 predictors of 866 × 512 × 512 voxels, *extrapolated*: nanoseconds per voxel times the
  voxels that the stage reads, no more than `MOST_VOXELS` of each predictor;
- what a calibrated predictor costs while it is scored, beside the predictor that it is made of: nanoseconds per voxel.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import phantoms
from benchmarks.scoring import _stored as stored_phantom
from curvas_assets.calibration import (
    CalibratedVolume,
    Isotonic,
    Temperature,
    count_responses,
    fit_isotonic,
    fit_temperature,
)
from curvas_assets.stages.calibrate import MOST_VOXELS

SMALL = (108, 128, 128)
PATIENTS, PREDICTORS = 65, 4
RATIO, MINUTES, APART = "CPU time, of the voxelwise way", "65 × 4 at full size, CPU min (extrapolated)", "T, apart"
LIMITS = {RATIO: 0.2, MINUTES: 10.0, APART: 0.005, "curves, apart": 1e-6}


def main(full: bool) -> int:
    """All measurements; the number of limits that were missed."""
    shape = phantoms.FULL_SIZE if full else SMALL
    voxels = int(np.prod(shape))
    region = tuple(slice(0, n) for n in shape)
    annotations = phantoms.label_maps(shape)
    with tempfile.TemporaryDirectory() as folder:
        volume = stored_phantom(Path(folder), shape, 0)

        def fit() -> tuple[float, list[Any]]:
            counted = [count_responses({"it": volume}, annotations, region)["it"]]
            return fit_temperature(counted).temperature, fit_isotonic(counted)

        fit()  # compiled
        (temperature, curves), ours = min((_timed(fit) for _ in range(3)), key=lambda found: found[1])
        found = {MINUTES: ours / voxels * min(MOST_VOXELS, PATIENTS * np.prod(phantoms.FULL_SIZE)) * PREDICTORS / 60}
        print(
            f"{ours / voxels * 1e9:.1f} ns of CPU per voxel; {shape[0]} × {shape[1]} × {shape[2]} voxels, T = {temperature:.3f}"
        )
        if not full:
            p = volume.slab(0, shape[0]).reshape(4, -1).astype(np.float64)
            answers = np.stack([(annotations == c).mean(axis=0).ravel() for c in range(4)])
            (best, oracles), theirs = _timed(lambda: _voxelwise(p, answers, volume.levels))
            print(f"voxelwise {theirs:.1f} CPU s, ours {ours:.2f} CPU s, T = {best:.3f}")
            found[RATIO] = ours / theirs
            found[APART] = abs(temperature / best - 1)
            found["curves, apart"] = max(
                float(np.abs(curve.curve(p[c]) - oracles[c - 1]).max()) for c, curve in enumerate(curves, 1)
            )
        scored = dict(zip(list(phantoms.ORGANS), (one.curve for one in curves), strict=True))
        for calibrator in (Temperature(temperature), Isotonic(scored)):
            one = CalibratedVolume(volume, calibrator)
            codes = volume.codes(shape[0] // 2, min(shape[0] // 2 + 16, shape[0]))
            one.recode(codes)
            _, took = min(
                (_timed(lambda one=one, codes=codes: one.recode(codes)) for _ in range(3)), key=lambda t: t[1]
            )
            print(
                f"{type(calibrator).__name__.lower()}, while scoring: {took / codes[0].size * 1e9:.1f} ns of CPU per voxel"
            )
    missed = 0
    for name, value in found.items():
        missed += value > LIMITS[name]
        print(f"{name:45} {value:10.3g}   limit {LIMITS[name]:g}" + ("   MISSED" if value > LIMITS[name] else ""))
    return missed


def _voxelwise(p: Any, answers: Any, levels: Any) -> tuple[float, list[Any]]:
    """Temperature and calibrated probabilities of the organs, from all voxels (C, n) at once."""
    from scipy.optimize import minimize_scalar
    from sklearn.isotonic import IsotonicRegression

    oracles = []
    for c in range(1, len(p)):
        rank = np.searchsorted(levels, p[c]).astype(float)  # scikit-learn takes what is 10⁻¹⁵ apart for the same
        oracles.append(IsotonicRegression().fit(rank, answers[c]).predict(rank))
    rest = 1 - p[1:].sum(axis=0)
    background = np.where(rest > 1 - 2**-24, 1.0, np.maximum(rest, 2**-24))
    logits = np.log(np.concatenate([background[None], np.maximum(p[1:], levels[1] / 2)]))

    def loss(log_beta: float) -> float:
        z = np.exp(log_beta) * logits
        most = z.max(axis=0)
        return float((np.log(np.exp(z - most).sum(axis=0)) + most - (answers * z).sum(axis=0)).mean())

    least = minimize_scalar(loss, bounds=(-2, 2), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(-least.x)), oracles


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What work gives, and its CPU seconds."""
    start = time.process_time()
    return work(), time.process_time() - start


if __name__ == "__main__":
    sys.exit(main("--full" in sys.argv))
