"""What the benchmarks of training work on: a preprocessed dataset of phantoms, and stock nnU-Net's trainer beside ours."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.segmentation import prepare_dataset
from curvas_assets.segmentation.runtime import PLANS_NAME, dataset_name, nnunet_folders
from curvas_assets.study import ModelId, Study, load_study

ANNOTATOR = "anno1"
MODEL = ModelId(ANNOTATOR, 112233, "all")
SPACING_MM = (1.5, 1.0, 1.0)
PATIENTS = ("001", "002", "003")


def study_of(patch: Sequence[int], features: Sequence[int] | None, **training: Any) -> Study:
    """The study `phantom` with other patches, networks (None: nnU-Net's own choice) and training settings."""
    raw = load_study("phantom").model_dump(mode="json")
    raw["sets"] = {"train": list(PATIENTS), "test": ["007"]}
    raw["groups"], raw["in_distribution_group"] = {}, None
    raw["plans"] = {
        "patch_size": list(patch),
        "batch_size": 2,
        "spacing_mm": list(SPACING_MM),
        "features_per_stage": None if features is None else list(features),
        "intensity_samples": 1e5,
    }
    raw["training"] |= {"optimizer": "sgd", "mirroring": True, "threads": None, "patience": 1000, **training}
    return Study.model_validate(raw)


def make_dataset(study: Study, shape: Sequence[int], folder: Path) -> Path:
    """Phantoms of a shape (Z, Y, X), preprocessed for the study; returns the dataset's folder."""
    scans, dataset = folder / "scans", folder / "dataset"
    names = study.training_patients()
    write_cohort(scans, patients=names, shape=shape, spacing_mm=SPACING_MM, annotators=1, seed=1)
    drawn = {name: (scans / name / study.image_files[0], scans / name / study.annotators[0].file) for name in names}
    with silent():
        prepare_dataset(study, ANNOTATOR, drawn, dataset)
    return dataset


@contextmanager
def stock_folders(dataset: Path) -> Generator[None]:
    """nnU-Net's folders, with the dataset linked in, for the length of a block."""
    with tempfile.TemporaryDirectory() as folder:
        preprocessed = Path(folder, "preprocessed")
        preprocessed.mkdir()
        (preprocessed / dataset_name(ANNOTATOR)).symlink_to(dataset.resolve())
        with nnunet_folders(preprocessed=preprocessed, results=Path(folder, "results")):
            yield


def stock_trainer(study: Study, dataset: Path, device: Any) -> Any:
    """nnU-Net's own trainer with the plans of a dataset, of the study's lengths; within `stock_folders`."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = json.loads((dataset / f"{PLANS_NAME}.json").read_text())
    description = json.loads((dataset / "dataset.json").read_text())
    with silent():
        trainer = nnUNetTrainer(
            {**plans, "continue_training": False}, study.plans.configuration, "all", description, device
        )
        trainer.num_epochs = study.training.epochs
        trainer.num_iterations_per_epoch = study.training.iterations_per_epoch
        trainer.num_val_iterations_per_epoch = study.training.validation_iterations_per_epoch
        trainer.initialize()
    return trainer


@contextmanager
def loader_processes(count: int) -> Generator[None]:
    """nnU-Net's variable for the number of its loader processes, for the length of a block."""
    before = os.environ.get("nnUNet_n_proc_DA")
    os.environ["nnUNet_n_proc_DA"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["nnUNet_n_proc_DA"]
        else:
            os.environ["nnUNet_n_proc_DA"] = before


@contextmanager
def silent() -> Generator[None]:
    """Without what nnU-Net prints and warns of."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Utilisation:
    """Share of the time in which the first GPU worked, by `nvidia-smi`, while a block runs."""

    def __init__(self) -> None:
        self._read: list[tuple[float, float]] = []

    def __enter__(self) -> "Utilisation":
        self._process: subprocess.Popen[str] | None = None
        if shutil.which("nvidia-smi"):
            query = [
                "nvidia-smi",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
                "-lms",
                "200",
                "-i",
                "0",
            ]
            self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
            self._thread = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
            self._thread.start()
        return self

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            with contextlib.suppress(ValueError):
                self._read.append((time.time(), float(line)))

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join()

    def between(self, start: float, end: float) -> float | None:
        """Its mean from `start` to `end`, in seconds of `time.time`, %; None if nothing was read."""
        read = [percent for at, percent in self._read if start <= at <= end]
        return sum(read) / len(read) if read else None
