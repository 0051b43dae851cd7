"""Softmax volumes of patients × nine models: our step beside nine runs of stock `nnUNetv2_predict`, on the CPU.

Run `python -m benchmarks.prediction [--patients 2]`. Both predict the same scans with the same untrained networks of a
small architecture (three annotators, so three settings of preprocessing; three seeds each), with the same step of the
sliding window and without mirroring, and write what a study keeps of each cell: nnU-Net a segmentation and an npz of
probabilities, we a softmax volume. Each runs in processes of its own, imports included. A run of nnU-Net over one tiny
scan shows what nine starts cost, in which it starts six workers each time; the second ratio leaves them out, but not our
own start. Memory is the sum over all processes (PSS), sampled.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil

from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.segmentation import prepare_dataset
from curvas_assets.stages import cohort, predict, table
from curvas_assets.stages.checks import StepChecks
from curvas_assets.stages.stored import Artefact, Artefacts, Stored
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Cell, Layout, patient_by_patient
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import open_softmax
from curvas_assets.study import ModelId, Study, load_study

SHAPE, SPACING_MM = (96, 176, 176), (3.5, 2.2, 2.2)
TARGET_RATIO = 0.6
SAMPLE_SECONDS = 0.25
CONFIGURATION = "3d_fullres"


def study_of(patients: int) -> Study:
    """The study `phantom` with larger scans, other voxels for the network, and this many test patients."""
    raw = load_study("phantom").model_dump(mode="json")
    raw["sets"] = {"train": ["001", "002", "003"], "test": [f"{7 + i:03d}" for i in range(patients)]}
    raw["groups"], raw["in_distribution_group"] = {}, None
    raw["plans"] |= {"spacing_mm": [6, 4, 4], "patch_size": [48, 96, 96], "features_per_stage": [4, 8, 16]}
    return Study.model_validate(raw)


def tools_of(study: Study, folder: Path) -> Toolkit:
    """The toolkit of a step whose bucket and scratch are folders."""

    @contextlib.contextmanager
    def scratch(subject: str, needed_bytes: int = 0):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            yield Path(name)

    return Toolkit(
        study=study,
        objects=MeteredObjects(FolderObjects(folder / "bucket")),
        layout=Layout(),
        tell=lambda _: None,
        warn=lambda _: None,
        scratch=scratch,
        device=lambda: contextlib.nullcontext(None),
        code=lambda *packages: dict.fromkeys(packages, "0"),
    )


def artefacts(tools: Toolkit, row: table.Asset, partitions: Sequence[str]) -> Artefacts:
    """Handles of artefacts that stand in the bucket."""
    return Artefacts(
        {p: Artefact(tools.objects, row.place(tools.layout, p), row.kind, f"{row} of {p}") for p in partitions}
    )


# What both read -------------------------------------------------------------------------------------------------------


def set_up(folder: Path, study: Study, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> None:
    """Scans in a bucket and in nnU-Net's input folder; untrained models in the bucket and among nnU-Net's results."""
    tools, tests, training = tools_of(study, folder), study.scored_patients(), study.training_patients()
    (folder / "input").mkdir()
    write_cohort(folder / "tests", patients=tests, shape=shape, spacing_mm=spacing_mm, seed=5)
    for patient in tests:
        for path in (folder / "tests" / patient).iterdir():
            tools.objects.upload(tools.layout.patient_file(patient, path.name), path)
        shutil.copyfile(folder / "tests" / patient / study.image_files[0], folder / "input" / f"{patient}_0000.nii.gz")
    dict(cohort.take_in(tools, tests, StepChecks(*cohort.SCAN_CHECKS)))
    scans = artefacts(tools, table.SCAN, tests)
    dict(cohort.select_test_scans(tools, tests, StepChecks(*cohort.TEST_SCAN_CHECKS), scan=scans))
    write_cohort(folder / "training", patients=training, shape=(30, 56, 56), spacing_mm=(8, 6, 6), seed=5)
    for annotator in study.annotators:
        names = study.image_files[0], annotator.file
        files = {p: (folder / "training" / p / names[0], folder / "training" / p / names[1]) for p in training}
        prepare_dataset(study, annotator.name, files, folder / "datasets" / annotator.name)
    for number, model in enumerate(study.models):
        untrained(model, number, folder / "datasets" / model.annotator, results_of(folder, number))
        directories.write_directory(tools.objects, tools.layout.model(str(model)), results_of(folder, number))


def results_of(folder: Path, number: int) -> Path:
    """The folder of a model where stock nnU-Net looks for it."""
    return folder / "results" / f"Dataset{number + 1:03d}_m" / f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"


def untrained(model: ModelId, seed: int, dataset: Path, into: Path) -> None:
    """A model as training publishes it, with the weights of a network's beginning."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    manager = PlansManager(plans)
    torch.manual_seed(seed)
    network = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration(CONFIGURATION), 1, 4, True)
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": CONFIGURATION, "fold": str(model.fold)},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None,
    }
    (into / "fold_all").mkdir(parents=True)
    torch.save(checkpoint, into / "fold_all" / "checkpoint_best.pth")
    (into / "plans.json").write_text(json.dumps(plans))
    shutil.copyfile(dataset / "dataset.json", into / "dataset.json")


# The two --------------------------------------------------------------------------------------------------------------


def ours(folder: Path, patients: int) -> None:
    """Our step, as its asset calls it."""
    study = study_of(patients)
    tools = tools_of(study, folder)
    tests, models = study.scored_patients(), [str(m) for m in study.models]
    cells = patient_by_patient(str(Cell(m, p)) for m in models for p in tests)
    found = predict.predict(
        tools,
        cells,
        StepChecks(*predict.CHECKS),
        trained_model=artefacts(tools, table.TRAINED_MODEL, models),
        test_scan=artefacts(tools, table.TEST_SCAN, tests),
    )
    for cell, outcome in found:
        if not isinstance(outcome, Stored):
            raise SystemExit(f"{cell}: {outcome}")


def stock(folder: Path, number: int, source: Path, output: Path) -> list[str]:
    """The command that predicts a folder by one model."""
    return [
        *(str(Path(sys.executable).with_name("nnUNetv2_predict")), "-i", str(source), "-o", str(output)),
        *("-d", str(number + 1), "-c", CONFIGURATION, "-f", "all", "-chk", "checkpoint_best.pth"),
        *("--save_probabilities", "-device", "cpu", "--disable_tta", "--disable_progress_bar"),
    ]


def measured(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Wall time, CPU time and peak memory of a command with all its processes."""
    before = os.times()
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = [0]
    watching = threading.Thread(target=_watch, args=(process.pid, peak))
    watching.start()
    said, _ = process.communicate()
    watching.join()
    after = os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": time.perf_counter() - start, "cpu_s": cpu, "peak_gib": peak[0] / 2**30}


def _watch(pid: int, peak: list[int]) -> None:
    while True:
        try:
            parent = psutil.Process(pid)
            total = 0
            for process in [parent, *parent.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            if parent.status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], total)
        time.sleep(SAMPLE_SECONDS)


def agreement(folder: Path, patients: int) -> tuple[float, float]:
    """Largest difference of a probability, and share of voxels with the same label, over all cells."""
    study = study_of(patients)
    tools = tools_of(study, folder)
    worst, same = 0.0, []
    for number, model in enumerate(study.models):
        for patient in study.scored_patients():
            mine = open_softmax(tools.objects, tools.layout.softmax(patient, str(model)))
            softmax = mine.slab(0, mine.shape[1])
            theirs = np.load(folder / "output" / str(number) / f"{patient}.npz")["probabilities"]
            labels = np.asarray(
                nib.Nifti1Image.from_filename(folder / "output" / str(number) / f"{patient}.nii.gz").dataobj
            ).transpose()
            worst = max(worst, float(np.abs(softmax - theirs).max()))
            same.append(float((softmax.argmax(axis=0) == labels).mean()))
    return worst, min(same)


def main(patients: int) -> int:
    """The table; 1 if the target was missed."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {patients} patients of {SHAPE} × 9 models")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        set_up(folder, study_of(patients), SHAPE, SPACING_MM)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
        me = [sys.executable, "-m", "benchmarks.prediction", "--patients", str(patients), "--ours", str(folder)]
        here = measured(me, environment)
        environment |= {"nnUNet_results": str(folder / "results")}
        environment |= {f"nnUNet_{what}": str(folder / what) for what in ("raw", "preprocessed")}
        runs = [
            measured(stock(folder, number, folder / "input", folder / "output" / str(number)), environment)
            for number in range(9)
        ]
        (folder / "tiny").mkdir()
        tiny = nib.Nifti1Image(np.ones((8, 8, 8), np.int16), np.diag([-4.0, -4.0, 6.0, 1.0]))
        nib.save(tiny, folder / "tiny" / "T_0000.nii.gz")
        start = measured(stock(folder, 0, folder / "tiny", folder / "none"), environment)
        worst, same = agreement(folder, patients)
    there: dict[str, Any] = {key: sum(run[key] for run in runs) for key in ("wall_s", "cpu_s")}
    starts = {key: 9 * start[key] for key in there}
    there["peak_gib"] = max(run["peak_gib"] for run in runs)
    print(f"{'':44}{'wall s':>9}{'CPU s':>9}{'peak GiB':>10}")
    for title, row in (
        ("our step", here),
        ("nine runs of nnUNetv2_predict", there),
        ("  of which nine starts (tiny scan)", {**starts, "peak_gib": start["peak_gib"]}),
    ):
        print(f"{title:44}{row['wall_s']:9.1f}{row['cpu_s']:9.1f}{row['peak_gib']:10.2f}")
    ratio = here["wall_s"] / there["wall_s"]
    without = here["wall_s"] / (there["wall_s"] - starts["wall_s"])
    print(f"ratio of wall time {ratio:.2f} (target: at most {TARGET_RATIO}); without nnU-Net's starts {without:.2f}")
    print(f"ratio of CPU time {here['cpu_s'] / there['cpu_s']:.2f}, load at the end {os.getloadavg()[0]:.1f}")
    print(f"largest difference of a probability {worst:.1e}; equal labels in at least {100 * same:.3f} % of a volume")
    return int(ratio > TARGET_RATIO or worst > 1e-2 or same < 0.999)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=2)
    parser.add_argument("--ours", type=Path)
    arguments = parser.parse_args()
    if arguments.ours is not None:
        ours(arguments.ours, arguments.patients)
    else:
        sys.exit(main(arguments.patients))
