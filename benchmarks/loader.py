"""How many batches a second the loader makes, by 0, 1, 2 … processes, against the network's step; stock nnU-Net's loader beside it.

Ours draws every batch from (seed, epoch, phase, number); stock nnU-Net's augmenters are unseeded, so both do the same
work on other random numbers, and a batch may take half or twice the time of another. After a first batch and those that
were made ahead, `--batches` are timed, ours and then stock nnU-Net's. The CPU time of a batch depends less on what else
the machine does. The network is a small one on the CPU and nnU-Net's own choice on a GPU (`--features` takes another).
With `--pipe`, batches also come through pipes, as they do where /dev/shm is too small. Nothing here fails: it measures.

Run `python -m benchmarks.loader`: about 5 minutes on two cores.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.training_data import loader_processes, make_dataset, silent, stock_folders, stock_trainer, study_of
from curvas_assets.machine import usable_cores
from curvas_assets.segmentation.runtime import choose_device

SMALL_FEATURES = (8, 16, 32, 64, 64, 64)
SEED = 112233


def main() -> None:
    options = _options()
    import torch

    from curvas_assets.segmentation.trainer import StudyTrainer

    device = choose_device("auto")
    torch.set_num_threads(1)
    features = options.features or (None if device.type == "cuda" else SMALL_FEATURES)
    study = study_of(options.patch, features)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(study, [max(160, p) + 32 for p in options.patch], Path(folder))
        with stock_folders(dataset):
            trainer = stock_trainer(study, dataset, device)
            with loader_processes(0), silent():
                stock_loader, _ = trainer.get_dataloaders()
                trainer.get_training_transforms = StudyTrainer.get_training_transforms
                sources = dict(
                    zip(("train", "validation"), (a.data_loader for a in trainer.get_dataloaders()), strict=True)
                )
            step_s, batch_mib = _step(trainer, next(stock_loader), device)
            print(
                f"batches of 2 × {'×'.join(map(str, options.patch))}, {batch_mib:.0f} MiB; {usable_cores()} cores, load "
                f"{os.getloadavg()[0]:.1f}; the network ({list(features) if features else 'nnU-Net’s own'}) takes "
                f"{step_s:.3f} s a step on {device.type}"
            )
            print(
                f"{'processes':>9} {'ours/s':>7} {'stock/s':>7} {'ours:stock':>10} {'ours:step':>9} | {'CPU s':>6} {'stock':>6} "
                f"{'stock:ours':>10} | {'first, s':>8} {'stock':>6} | {'MiB each':>8}"
            )
            for workers in options.workers:
                for through in ("shared memory", "pipe")[: 1 + (options.pipe and workers > 0)]:
                    _row(options, trainer, sources, workers, through, step_s, stock_loader)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 128], metavar=("Z", "Y", "X"))
    parser.add_argument("--features", type=int, nargs="+", help="feature maps of the network's stages")
    parser.add_argument("--workers", type=int, nargs="+", default=sorted({0, 1, 2, min(12, usable_cores() - 1)} - {-1}))
    parser.add_argument("--batches", type=int, default=20, help="to time, for each number of processes")
    parser.add_argument("--pipe", action="store_true")
    return parser.parse_args()


def _step(trainer: Any, batch: dict[str, Any], device: Any, times: int = 3) -> tuple[float, float]:
    """Seconds of a training step of the network, the first left out, and the size of a batch, MiB."""
    import torch

    from curvas_assets.segmentation.loading import bytes_of

    trainer.network.train()
    took = []
    for _ in range(times + 1):
        start = time.perf_counter()
        trainer.train_step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return float(np.median(took[1:])), bytes_of(batch) / 2**20


def _row(
    options: argparse.Namespace,
    trainer: Any,
    sources: dict[Any, Any],
    workers: int,
    through: Any,
    step_s: float,
    stock_loader: Any,
) -> None:
    from curvas_assets.segmentation.loading import Batches, BatchStream, Loading, Order

    start = time.perf_counter()
    stream = BatchStream(
        Batches(SEED, sources, through),
        Order(0, 1, {"train": 10_000}),
        Loading(workers, through, ""),
        pin=trainer.device.type == "cuda",
    )
    try:
        ours = _rate(lambda: stream.take("train"), stream.workers, options.batches, start)
        each = [psutil.Process(worker.pid).memory_full_info().uss / 2**20 for worker in stream.workers]
    finally:
        stream.close()
    stock = _stock_rate(trainer, workers, options.batches, stock_loader)
    how = f"{workers}" if through == "shared memory" else f"{workers}, pipe"
    print(
        f"{how:>9} {ours.a_second:7.2f} {stock.a_second:7.2f} {ours.a_second / stock.a_second:10.2f} "
        f"{ours.a_second * step_s:9.2f} | {ours.cpu_s:6.2f} {stock.cpu_s:6.2f} {stock.cpu_s / ours.cpu_s:10.2f} | "
        f"{ours.first_s:8.1f} {stock.first_s:6.1f} | {max(each, default=0):8.0f}",
        flush=True,
    )


def _stock_rate(trainer: Any, workers: int, batches: int, single: Any) -> "Rate":
    """The same of stock nnU-Net's augmenter."""
    start = time.perf_counter()
    if not workers:
        return _rate(lambda: next(single), [], batches, start)
    from curvas_assets.segmentation.trainer import StudyTrainer

    with loader_processes(workers), silent():
        del trainer.get_training_transforms  # nnU-Net's own again
        train, validation = trainer.get_dataloaders()
        validation._finish()
        try:
            return _rate(lambda: next(train), train._processes, batches, start, ahead=max(6, workers // 2))
        finally:
            train._finish()
            trainer.get_training_transforms = StudyTrainer.get_training_transforms


@dataclass(frozen=True)
class Rate:
    """Batches a second, CPU seconds of a batch, and seconds to the first."""

    a_second: float
    cpu_s: float
    first_s: float


def _rate(
    take: Callable[[], object], workers: Sequence[Any], batches: int, start: float, ahead: int | None = None
) -> Rate:
    """Of `batches`, once those that were made ahead are used up; the first since `start`."""
    from curvas_assets.segmentation.loading import AHEAD

    take()
    first = time.perf_counter() - start
    for _ in range((AHEAD * len(workers) if ahead is None else ahead) if workers else 0):
        take()
    begin, used = time.perf_counter(), _cpu(workers)
    for _ in range(batches):
        take()
    return Rate(batches / (time.perf_counter() - begin), (_cpu(workers) - used) / batches, first)


def _cpu(workers: Sequence[Any]) -> float:
    """CPU seconds of this process and of loader processes so far."""
    times = [psutil.Process(worker.pid).cpu_times() for worker in workers]
    return time.process_time() + sum(t.user + t.system for t in times)


if __name__ == "__main__":
    main()
