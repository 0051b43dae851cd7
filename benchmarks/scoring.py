"""The scoring panel at the sizes of a clinic: time, memory and growth, beside plain NumPy and other people's libraries.

Run `python -m benchmarks.scoring [--full]`. Without `--full` only the small volume (128 × 256 × 256) is scored. With it
also a volume of 866 × 512 × 512 from the store, alone and as 13 predictors of one patient, and half of it for the growth
of memory. Volumes are made chunk by chunk. Peak memory is that of a process of its own.

The plain implementation is written from the definitions with NumPy, SciPy, scikit-learn, torchmetrics' binning in NumPy,
and surface-distance. It computes a part of the panel, and its values are compared with ours before any ratio is printed.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import phantoms

SMALL = (128, 256, 256)
MODELS = 9
LIMITS = {
    "panel, 128×256×256, CPU s": 1.5,
    "panel, 128×256×256, from an array of float32, CPU s": 1.5,
    "panel, 866×512×512, wall s": 15.0,
    "panel, 866×512×512, peak GiB": 3.0,
    "13 predictors, 866×512×512, wall s": 180.0,
    "voxel pass, 866×512×512, wall s": 8.0,
    "growth of CPU time, full / small": 32.0,
    "peak memory, all / half the slices": 1.1,
}


def main(full: bool) -> int:
    """All measurements; the number of limits that were missed."""
    cores = os.cpu_count()
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f}")
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with tempfile.TemporaryDirectory() as cache:
            first = _child("small", folder, SMALL, NUMBA_CACHE_DIR=cache)
            print(f"first call, compilation included {first['first_s']:6.1f} s   (cached on disk afterwards)")
        small = _child("small", folder, SMALL)
        print(f"first call, compiled code from disk {small['first_s']:6.2f} s")
        found["panel, 128×256×256, CPU s"] = small["cpu_s"]
        found["panel, 128×256×256, from an array of float32, CPU s"] = small["array_cpu_s"]
        plain = _child("plain", folder, SMALL)
        print(
            f"plain implementation of a part of it {plain['cpu_s']:6.1f} CPU s, {plain['wall_s']:.1f} s: "
            f"{plain['cpu_s'] / small['cpu_s']:.0f} × our CPU time for the whole; largest difference of "
            f"{plain['compared']} values {plain['difference']:.1e}"
        )
        if full:
            large = _child("large", folder, phantoms.FULL_SIZE)
            half = _child("large", folder, (phantoms.FULL_SIZE[0] // 2, *phantoms.FULL_SIZE[1:]))
            found["panel, 866×512×512, wall s"] = large["wall_s"]
            found["panel, 866×512×512, peak GiB"] = large["peak_gib"]
            found["voxel pass, 866×512×512, wall s"] = large["pass_s"]
            found["growth of CPU time, full / small"] = large["cpu_s"] / small["cpu_s"]
            found["peak memory, all / half the slices"] = large["peak_gib"] / half["peak_gib"]
            voxels = int(np.prod(phantoms.FULL_SIZE))
            print(
                f"voxel pass {1e9 * large['pass_s'] / voxels:.1f} ns per voxel; one read of the same bytes from memory "
                f"{large['read_s']:.2f} s; decoding alone {large['decode_s']:.2f} s"
            )
            every = _child("patient", folder, phantoms.FULL_SIZE)
            found["13 predictors, 866×512×512, wall s"] = every["wall_s"]
            print(f"13 predictors: peak {every['peak_gib']:.2f} GiB, {every['cpu_s']:.0f} CPU s")
    missed = 0
    for name, value in found.items():
        met = value <= LIMITS[name]
        missed += not met
        print(f"{name:<40} {value:8.2f}   limit {LIMITS[name]:g}   {'met' if met else 'MISSED'}")
    print(f"load {os.getloadavg()[0]:.1f}")
    return missed


# What runs in a process of its own -------------------------------------------------------------------------------------


def _small(folder: Path, shape: tuple[int, int, int]) -> dict[str, float]:
    reference, volume = _reference(shape), _stored(folder, shape, 0)
    first = _timed(lambda: reference.score(volume))
    warm = min((_timed(lambda: reference.score(volume)) for _ in range(5)), key=lambda t: t[1])
    array = phantoms.softmax(shape, confident=True)
    reference.score(array)
    return {
        "first_s": first[0],
        "wall_s": warm[0],
        "cpu_s": warm[1],
        "array_cpu_s": min(_timed(lambda: reference.score(array))[1] for _ in range(3)),
    }


def _large(folder: Path, shape: tuple[int, int, int]) -> dict[str, float]:
    from curvas_assets.scoring.counting import count
    from curvas_assets.scoring.panel import _slabs

    reference, volume = _reference(shape), _stored(folder, shape, 0)
    _warm()
    wall, cpu = _timed(lambda: reference.score(volume))
    peak = _peak_gib()
    decode, _ = _timed(lambda: [None for _ in _slabs(volume)])
    drawn = np.asarray(reference.annotations)
    alone, _ = _timed(lambda: count(_slabs(volume), drawn, 4, reference.region, reference.threshold, 50, volume.levels))
    whole = volume.codes(0, shape[0]).copy()  # a copy: pages of zeros are shared
    read, _ = _timed(lambda: [whole[:, z : z + 16].max() for z in range(0, shape[0], 16)])
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_gib": peak,
        "pass_s": alone - decode,
        "read_s": read,
        "decode_s": decode,
    }


def _patient(folder: Path, shape: tuple[int, int, int]) -> dict[str, float]:
    """13 predictors: 9 models, 3 ensembles of 3 and one of 9, each with its members."""
    reference = _reference(shape)
    models = [_stored(folder, shape, m) for m in range(MODELS)]
    groups = [models[0:3], models[3:6], models[6:9], models]
    _warm()
    wall, cpu = _timed(lambda: [reference.score(m) for m in models])
    # What is measured is scoring, so copies of a model stand for members: an ensemble must be its members' mean.
    for group in groups:
        extra = _timed(lambda group=group: reference.score(group[0], members=[group[0]] * len(group)))
        wall, cpu = wall + extra[0], cpu + extra[1]
    return {"wall_s": wall, "cpu_s": cpu, "peak_gib": _peak_gib()}


def _plain(folder: Path, shape: tuple[int, int, int]) -> dict[str, float]:
    from benchmarks.plain import plain_panel

    softmax, annotations = phantoms.softmax(shape, confident=True), phantoms.label_maps(shape)
    start = time.perf_counter(), time.process_time()
    values = plain_panel(softmax, annotations, phantoms.SPACING_MM, phantoms.ORGANS)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    table = _reference(shape).score(softmax).table.set_index(["metric", "organ", "annotator"])["value"]
    differences = [
        abs(value - table[key]) / max(1.0, abs(value)) for key, value in values.items() if np.isfinite(value)
    ]
    assert max(differences) < 1e-6, max(zip(differences, values, strict=False))
    return {"wall_s": wall, "cpu_s": cpu, "compared": len(differences), "difference": float(max(differences))}


CHILDREN: dict[str, Callable[[Path, tuple[int, int, int]], dict[str, float]]] = {
    "small": _small,
    "large": _large,
    "patient": _patient,
    "plain": _plain,
}


def _child(name: str, folder: Path, shape: tuple[int, int, int], **environment: str) -> dict[str, float]:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.scoring", "--child", name, str(folder), json.dumps(shape)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(answer.stdout.splitlines()[-1])


def _stored(folder: Path, shape: tuple[int, int, int], model: int) -> Any:
    from curvas_assets.geometry import Grid
    from curvas_assets.storage.objects import FolderObjects
    from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax

    store, name = FolderObjects(folder), f"{'x'.join(map(str, shape))}-{model}"
    if store.head(f"{name}/zarr.json") is None:
        grid = Grid.with_voxels(shape, phantoms.SPACING_MM)
        with SoftmaxWriter(store, name, grid, class_names=list(phantoms.CLASSES)) as writer:
            for z0, slab in phantoms.softmax_slabs(shape, model, confident=True):
                writer.write(z0, slab)
    return open_softmax(store, name)


def _reference(shape: tuple[int, int, int]) -> Any:
    """The annotations held compressed, as the asset holds them."""
    from curvas_assets.scoring import PatientReference
    from curvas_assets.storage.labels import PackedLabels

    labels = PackedLabels(3, shape)
    for r, z0, slab in phantoms.label_slabs(shape, 3):
        labels.put(r, z0, slab)
    return PatientReference(labels, phantoms.SPACING_MM, organs=phantoms.ORGANS)


def _warm() -> None:
    """Compiled code from the disk, before the clock starts."""
    rng = np.random.default_rng(0)
    p: npt.NDArray[np.float64] = rng.random((4, 16, 20, 20))
    softmax = p / p.sum(axis=0)
    from curvas_assets.scoring import score

    labels = rng.integers(0, 4, (3, 16, 20, 20)).astype(np.uint8)
    score(softmax, labels, phantoms.SPACING_MM, organs=phantoms.ORGANS, members=[softmax, softmax])


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    if "--child" in sys.argv:
        name, folder, shape = sys.argv[-3:]
        print(json.dumps(CHILDREN[name](Path(folder), tuple(json.loads(shape)))))
    else:
        sys.exit(main("--full" in sys.argv))
