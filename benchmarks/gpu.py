"""On a machine with a GPU: our training against stock nnU-Net's with the same plans, and a full-size patient by nine models.

Run `python -m benchmarks.gpu` in a checkout: one table. It is sized for ten minutes on a current data-centre GPU with 16
cores, an estimate: no GPU was at hand when it was written (`--iterations`, `--patient` and `--models` make it shorter).
Each part is a process of its own. An epoch is timed from its predecessor's end, so that it holds the checkpoint (ours
writes one each epoch, nnU-Net its best and a plot); the first, which compiles and chooses algorithms, is timed apart.
The patient is predicted without mirroring, which would take eight times as long (`--mirroring`), by nine copies of the
model just trained; the volumes are computed and dropped, not stored. Utilisation is nvidia-smi's, over the timed epochs
and over all predictions. Fails if our epoch takes more than 1.05 times nnU-Net's.

Without a GPU this says so and ends; `--device cpu` runs it anyway, which only a tiny size makes sensible.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks import phantoms
from benchmarks.training_data import (
    ANNOTATOR,
    MODEL,
    Utilisation,
    loader_processes,
    make_dataset,
    silent,
    stock_folders,
    stock_trainer,
    study_of,
)
from curvas_assets.machine import usable_cores
from curvas_assets.segmentation import Predictor, train_model
from curvas_assets.segmentation.runtime import choose_device
from curvas_assets.study import Study

TARGET = 1.05
PARTS = ("stock", "ours", "prediction")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.device != "cpu" and choose_device("auto").type != "cuda":
        print("no GPU here: nothing is measured (--device cpu runs the program anyway, for a test at a tiny size)")
        return
    if options.part:
        print(json.dumps(measure(options.part, options, Path(options.folder))))
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(study(options), [p + p // 2 for p in options.patch], Path(folder))
        found = {part: _apart(part, options, folder) for part in PARTS}
    print("\n".join(table(options, found, time.perf_counter() - started)))
    if found["ours"]["epoch_s"] > TARGET * found["stock"]["epoch_s"]:
        sys.exit(f"our epoch takes more than {TARGET} times stock nnU-Net's")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 128], metavar=("Z", "Y", "X"))
    parser.add_argument("--features", type=int, nargs="+", help="feature maps of the stages; nnU-Net's own if left out")
    parser.add_argument("--epochs", type=int, default=3, help="at least 2, of which the first is timed apart")
    parser.add_argument(
        "--iterations", type=int, default=80, help="training batches in an epoch; a fifth more validate"
    )
    parser.add_argument("--workers", type=int, help="loader processes of both; each its own default if left out")
    parser.add_argument("--patient", type=int, nargs=3, default=phantoms.FULL_SIZE, metavar=("Z", "Y", "X"))
    parser.add_argument("--models", type=int, default=9)
    parser.add_argument("--mirroring", action="store_true", help="predict with nnU-Net's mirroring")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.epochs < 2:
        parser.error("--epochs must be at least 2: the first is timed apart")
    return options


def study(options: argparse.Namespace) -> Study:
    """What is trained and predicted with."""
    made = study_of(
        options.patch,
        options.features,
        epochs=options.epochs,
        iterations_per_epoch=options.iterations,
        validation_iterations_per_epoch=max(1, options.iterations // 5),
        device=options.device,
        loader_workers="auto" if options.workers is None else options.workers,
    )
    prediction = made.prediction.model_copy(update={"mirroring": options.mirroring, "device": options.device})
    return made.model_copy(update={"prediction": prediction})


def _apart(part: str, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What a part finds in a process of its own."""
    given: list[str] = []
    for name, value in vars(options).items():
        if name not in ("part", "folder") and value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, list | tuple) else [value]
            given += [f"--{name}", *map(str, values)]
    command = [sys.executable, "-m", __spec__.name, *given, "--part", part, "--folder", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"the part {part} ended with exit code {done.returncode}; its error is above")
    return json.loads(done.stdout.splitlines()[-1])


def measure(part: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One part, in this process: seconds, share of the time in which the GPU worked (None if unknown), GPU memory in GiB."""
    import torch

    with Utilisation() as utilisation:
        found = {"stock": _stock, "ours": _ours, "prediction": _prediction}[part](options, folder)
    cuda = torch.cuda.is_available() and options.device != "cpu"
    between = found.pop("between")
    return {
        **found,
        "utilisation": utilisation.between(*between),
        "gpu_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else None,
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
    }


def _stock(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Stock nnU-Net's training, as `nnUNetv2_train` runs it."""
    import torch
    from torch.backends import cudnn

    dataset, device = folder / "dataset", choose_device(options.device)
    ends = [time.time()]
    workers = min(12, os.cpu_count() or 1) if options.workers is None else options.workers
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cudnn.deterministic, cudnn.benchmark = False, True
    with stock_folders(dataset), silent():
        trainer = stock_trainer(study(options), dataset, device)
        finish = trainer.on_epoch_end

        def on_epoch_end() -> None:
            finish()
            ends.append(time.time())

        trainer.on_epoch_end = on_epoch_end
        with loader_processes(workers):
            trainer.run_training()
    torch.set_num_threads(threads)
    return {**_epochs(ends), "loading": f"{workers} loader processes of nnU-Net"}


def _ours(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    ends = [time.time()]
    outcome = train_model(
        study(options), MODEL, folder / "dataset", folder / "model", on_epoch=lambda _: ends.append(time.time())
    )
    return {**_epochs(ends), "loading": outcome.loading}


def _epochs(ends: Sequence[float]) -> dict[str, Any]:
    """Seconds to the end of the first epoch, and of each one after it, from the times at which epochs ended."""
    return {
        "first_s": ends[1] - ends[0],
        "epoch_s": (ends[-1] - ends[1]) / (len(ends) - 2),
        "between": (ends[1], ends[-1]),
    }


def _prediction(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    image = _patient(options.patient, folder / "patient.nii")
    models = [_copy(folder / "model", folder / f"model_{i}") for i in range(options.models)]
    predictor = Predictor(study(options))
    scan = predictor.open(image, "PHANTOM007")
    ends = [time.time()]
    for model in models:
        for _ in predictor.predict(scan, model).slabs:
            pass
        ends.append(time.time())
    each = np.diff(ends)
    return {
        "first_s": float(each[0]),
        "model_s": float(each[1:].mean()) if len(each) > 1 else float(each[0]),
        "all_s": float(each.sum()),
        "between": (ends[0], ends[-1]),
    }


def _patient(shape: Sequence[int], path: Path) -> Path:
    """A scan of a shape (Z, Y, X) with organs, on voxels of clinical size."""
    rng, size = np.random.default_rng(1), (shape[0], shape[1], shape[2])
    voxels = np.full(size, -1000, np.int16)
    inside = phantoms.in_body(size)
    for _, z0, labels in phantoms.label_slabs(size, annotators=1):
        values = np.array([30, 110, 180, 120], np.int16)[labels] + rng.integers(-20, 20, labels.shape, np.int16)
        voxels[z0 : z0 + len(labels)][:, inside] = values[:, inside]
    z, y, x = phantoms.SPACING_MM
    nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0])), path)
    return path


def _copy(model: Path, copy: Path) -> Path:
    copy.mkdir()
    for part in model.iterdir():
        (copy / part.name).symlink_to(part)
    return copy


def table(options: argparse.Namespace, found: dict[str, dict[str, Any]], wall_s: float) -> list[str]:
    """What is printed."""
    stock, ours, prediction = (found[part] for part in PARTS)
    network = "nnU-Net's network" if options.features is None else f"feature maps {options.features}"
    lines = [
        f"{ours['device']}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}; 2 × {_by(options.patch)} voxels a batch, "
        f"{network}, {options.iterations} + {max(1, options.iterations // 5)} batches an epoch; {ANNOTATOR}; {wall_s:.0f} s in all",
        f"{'':32} {'first, s':>9} {'each, s':>9} {'all, s':>9} {'GPU %':>6} {'GPU GiB':>8}",
    ]
    for name, row, each, whole in (
        ("epoch of stock nnU-Net", stock, stock["epoch_s"], None),
        ("epoch of ours", ours, ours["epoch_s"], None),
        (f"{options.models} models of one patient", prediction, prediction["model_s"], prediction["all_s"]),
    ):
        numbers = [(row["first_s"], 9), (each, 9), (whole, 9), (row["utilisation"], 6), (row["gpu_gib"], 8)]
        lines.append(f"{name:32} " + " ".join(f"{'–' if n is None else f'{n:.1f}':>{width}}" for n, width in numbers))
    ratio = ours["epoch_s"] / stock["epoch_s"]
    lines += [
        f"ours : stock {ratio:.2f}, target {TARGET}: {'met' if ratio <= TARGET else 'NOT met'}; ours {ours['loading']}; "
        f"stock {stock['loading']}",
        f"the patient has {_by(options.patient)} voxels of {_by(phantoms.SPACING_MM)} mm, "
        f"{'with' if options.mirroring else 'without'} mirroring; the first model's time includes preprocessing",
    ]
    return lines


def _by(sizes: Sequence[float]) -> str:
    return " × ".join(f"{size:g}" for size in sizes)


if __name__ == "__main__":
    main()
