"""Intake and preprocessing of a patient: seconds and memory, beside plain nibabel and beside nnU-Net's own preprocessing.

Run `python -m benchmarks.intake` for 128 × 256 × 256 voxels, `python -m benchmarks.intake --shape Z Y X` for others, `--full`
for 866 × 512 × 512. The patient is a noisy phantom with three annotations. Each part is a process of its own, whose CPU
seconds and highest resident set are printed; nnU-Net's own takes 13 GiB at full size, and `--without-stock` leaves it out. The
CT of 1 × 0.8 × 0.8 mm is resampled to 1.1 × 0.8 × 0.8 mm, along which axis hardly matters. Fails when

- the intake finds other voxels or facts than plain code, takes more memory than what it returns and 0.4 GiB, or (at full
  size) more CPU time, although it also verifies every byte and plain code does not;
- preprocessing differs from nnU-Net's in a bit, or takes more than half of its CPU time or (at full size) of its memory.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil

from benchmarks import phantoms
from benchmarks.phantoms import FULL_SIZE, ORGANS
from benchmarks.volumes import Clock
from curvas_assets.geometry import Grid
from curvas_assets.study import Study, load_study

SMALL_SIZE = (128, 256, 256)
TARGET_MM = (1.1, 0.8, 0.8)
PATIENT = "PHANTOM001"
IMAGE = "image.nii.gz"
ANNOTATIONS = [f"annotation_{k}.nii.gz" for k in (1, 2, 3)]
SAMPLES = 1_000_000
READING_GIB = 0.4
"""Process, slabs in flight and what zlib unpacks to: what reading may take beside what it returns."""
Shape = tuple[int, int, int]


def study() -> Study:
    """The study `phantom`, whose organs the phantom has, with three annotators and their target spacing."""
    raw = load_study("phantom").model_dump(mode="json")
    raw["sets"] = {"train": ["001", "002", "003"], "test": ["007"]}
    raw["groups"], raw["in_distribution_group"] = {}, None
    return Study.model_validate(raw)


# Parts ---------------------------------------------------------------------------------------------------------------


def part_read(folder: Path) -> dict[str, Any]:
    """Our intake."""
    from curvas_assets.cohort import read_patient

    read_patient(folder / "tiny" / PATIENT, study())  # what is imported when it is asked for
    with Clock() as clock:
        found = read_patient(folder / PATIENT, study())
    facts = clock.facts() | {"returned_GiB": (found.scan.nbytes + found.annotations.nbytes) / 2**30}
    return facts | {"described": _described(found.facts), "voxels": _digest(found.scan, *found.annotations)}


def part_plain_read(folder: Path) -> dict[str, Any]:
    """What the intake finds, by nibabel and whole-array code; it verifies nothing."""
    with Clock() as clock:
        scan = np.asarray(nib.load(folder / PATIENT / IMAGE).dataobj).transpose(2, 1, 0)
        drawn = [np.asarray(nib.load(folder / PATIENT / name).dataobj).transpose(2, 1, 0) for name in ANNOTATIONS]
        image = nib.load(folder / PATIENT / IMAGE)
        voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        assert all(set(np.unique(labels)) <= {0, *ORGANS.values()} for labels in drawn)
        facts: dict[str, Any] = {
            "hu_range": [float(scan.min()), float(scan.max())],
            "organ_volumes_ml": {
                organ: [round(float((labels == label).sum()) * voxel_ml, 3) for labels in drawn]
                for organ, label in ORGANS.items()
            },
            "dice": [
                round(2 * int(((a == label) & (b == label)).sum()) / int((a == label).sum() + (b == label).sum()), 4)
                for a, b in combinations(drawn, 2)
                for label in ORGANS.values()
            ],
        }
        above = scan > 0
        for axes in ((0, 2), (0, 1)):
            where = np.flatnonzero(above.any(axis=axes))
            facts[f"body_{axes}"] = [int(where[0]), int(where[-1]) + 1]
        np.percentile(scan[:: max(1, len(scan) // 64), ::2, ::2], (0.5, 5, 50, 95, 99.5))
    return clock.facts() | {"described": facts, "voxels": _digest(scan, *drawn)}


def _described(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of the intake in the plain code's form."""
    _, *body = facts["body_region"]
    return {
        "hu_range": facts["hu_range"],
        "organ_volumes_ml": {organ: list(by.values()) for organ, by in facts["organ_volumes_ml"].items()},
        "dice": [value for by in facts["dice_between_annotators"].values() for value in by.values()],
        "body_(0, 2)": body[0],
        "body_(0, 1)": body[1],
    }


def part_preprocess(folder: Path) -> dict[str, Any]:
    """Our reading, analysis, preprocessing and storing of one annotator's case."""
    return _preprocess(folder, ANNOTATIONS[:1])


def part_preprocess_three(folder: Path) -> dict[str, Any]:
    """The same of three annotators, whose scan is read once."""
    return _preprocess(folder, ANNOTATIONS)


def _preprocess(folder: Path, annotations: list[str]) -> dict[str, Any]:
    from curvas_assets.codes import DEPTH
    from curvas_assets.segmentation import TrainingScans
    from curvas_assets.segmentation.dataset import save_case
    from curvas_assets.segmentation.preprocessing import Frame, estimate_memory, preprocess, sample_intensities
    from curvas_assets.segmentation.runtime import preprocessing_threads

    plans, configuration, dataset = _plans(folder)

    def made(patient: Path, names: list[str], out: Path) -> list[str]:
        read, digests = TrainingScans(study(), out / "scans"), []
        for name in names:
            images = (patient / IMAGE,)
            scan, drawn = read.scan(PATIENT, images), read.labels(PATIENT, images, patient / name)
            slabs = (drawn[0, z : z + DEPTH] > 0 for z in range(0, drawn.shape[1], DEPTH))
            (sample,) = sample_intensities(scan.channels(), slabs, scan.box, SAMPLES)
            case = preprocess(
                scan.channels(),
                np.asarray(drawn[0]),
                scan.properties(),
                plans,
                configuration,
                dataset,
                threads=preprocessing_threads(),
            )
            save_case(out / name, *case, configuration)
            del case
            digests.append(_digest(sample))
        return digests

    made(folder / "tiny" / PATIENT, ANNOTATIONS[:1], _empty(folder / "warm"))
    out, process = _empty(folder / "ours"), psutil.Process().memory_info().rss
    with Clock() as clock:
        samples = made(folder / PATIENT, annotations, out)
    found = clock.facts() | {"stored": _stored(out, ANNOTATIONS[0]), "sample": samples[0]}
    read, files = (
        TrainingScans(study(), out / "again"),
        ((folder / PATIENT / IMAGE,), folder / PATIENT / annotations[0]),
    )
    scan, drawn = read.scan(PATIENT, files[0]), np.count_nonzero(np.asarray(read.labels(PATIENT, *files)[0]))
    frame = Frame.of(scan.channels(), scan.properties(), plans, configuration, scan.box)
    estimated = process + estimate_memory(frame, scan.channels()[0].itemsize, drawn)
    return found | {"process_GiB": process / 2**30, "estimated_GiB": estimated / 2**30}


def part_for_prediction(folder: Path) -> dict[str, Any]:
    """A scan as a prediction reads and preprocesses it, and what is estimated for it."""
    from curvas_assets.errors import SegmentationError
    from curvas_assets.segmentation.prediction import estimate_steps
    from curvas_assets.segmentation.preprocessing import preprocess
    from curvas_assets.segmentation.runtime import preprocessing_threads
    from curvas_assets.voxel_order import open_image, read_voxels

    plans, configuration, dataset = _plans(folder)

    def made(patient: Path) -> Any:
        image = open_image(patient / IMAGE, attempted="reading", subject=PATIENT, error=SegmentationError)
        voxels, spacing = read_voxels(image, "LPS")
        threads = preprocessing_threads()
        preprocess(voxels, None, {"spacing": spacing}, plans, configuration, dataset, threads=threads)
        return image

    made(folder / "tiny" / PATIENT)
    process = psutil.Process().memory_info().rss
    with Clock() as clock:
        image = made(folder / PATIENT)
    estimated = process + estimate_steps(Grid.of(image), TARGET_MM, len(ORGANS) + 1).preparing
    return clock.facts() | {"process_GiB": process / 2**30, "estimated_GiB": estimated / 2**30}


def part_stock(folder: Path) -> dict[str, Any]:
    """nnU-Net's own analysis and preprocessing of the same case."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    plans, configuration, dataset = _plans(folder)
    preprocessor = configuration.preprocessor_class(verbose=False)

    def made(patient: Path, out: Path) -> str:
        image, label = str(patient / IMAGE), str(patient / ANNOTATIONS[0])
        intensities = DatasetFingerprintExtractor.analyze_case([image], label, SimpleITKIO, SAMPLES)[2][0]
        preprocessor.run_case_save(str(out / ANNOTATIONS[0]), [image], label, plans, configuration, dataset)
        return _digest(intensities)

    made(folder / "tiny" / PATIENT, _empty(folder / "warm"))
    out = _empty(folder / "stock")
    with Clock() as clock:
        sample = made(folder / PATIENT, out)
    return clock.facts() | {"stored": _stored(out, ANNOTATIONS[0]), "sample": sample}


def part_plans(folder: Path) -> dict[str, Any]:
    """Plans of a tiny phantom, with the target spacing and a clinical patch."""
    from curvas_assets.segmentation import prepare_dataset

    patient = folder / "tiny" / PATIENT
    prepare_dataset(study(), "anno1", {PATIENT: (patient / IMAGE, patient / ANNOTATIONS[0])}, folder / "dataset")
    file = folder / "dataset" / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["spacing"], configuration["patch_size"] = list(TARGET_MM), [128, 128, 128]
    file.write_text(json.dumps(plans))
    return {}


def _plans(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(json.loads((folder / "dataset" / "nnUNetPlans.json").read_text()))
    dataset = json.loads((folder / "dataset" / "dataset.json").read_text())
    return plans, plans.get_configuration("3d_fullres"), dataset


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _digest(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        for part in np.array_split(array, max(1, array.nbytes >> 24)):
            digest.update(np.ascontiguousarray(part))
    return digest.hexdigest()


def _stored(folder: Path, name: str) -> list[str]:
    """Digests of what is stored: the image, the label map, and nnU-Net's properties."""
    import blosc2

    found = []
    for file in (f"{name}.b2nd", f"{name}_seg.b2nd"):
        array: Any = blosc2.open(str(folder / file), mode="r")
        found.append(f"{array.dtype} {array.shape} {_digest(array[:][0])}")
    properties = np.load(folder / f"{name}.pkl", allow_pickle=True)
    places = properties.pop("class_locations")
    return [*found, repr(properties), *(f"{label} {_digest(np.asarray(at))}" for label, at in places.items())]


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "read": part_read,
    "plain_read": part_plain_read,
    "plans": part_plans,
    "preprocess": part_preprocess,
    "preprocess_three": part_preprocess_three,
    "for_prediction": part_for_prediction,
    "stock": part_stock,
}


# The whole -----------------------------------------------------------------------------------------------------------


def _run(part: str, folder: Path) -> dict[str, Any]:
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "benchmarks.intake", "--part", part, "--folder", str(folder)]
    with tempfile.TemporaryDirectory(dir=folder, prefix=part) as work:
        for name in (PATIENT, "tiny", "dataset"):
            if (folder / name).exists():
                Path(work, name).symlink_to(folder / name)
        into = folder if part == "plans" else Path(work)
        done = subprocess.run([*command[:-1], str(into)], stdout=subprocess.PIPE, text=True, check=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    if facts:
        told = f"{facts['s']:8.1f} s {facts['cpu_s']:8.1f} CPU s {facts['GiB']:7.2f} GiB"
        print(f"   {part:<24}{told}   (load {load:.1f})", flush=True)
    return facts


def main(shape: Shape, *, stock: bool = True) -> int:
    """Every part; 1 if a target was missed."""
    missed: list[str] = []

    def compare(
        what: str, ours: dict[str, Any], theirs: dict[str, Any], *, most: float, most_memory: float = math.inf
    ) -> None:
        cpu, memory = ours["cpu_s"] / theirs["cpu_s"], ours["GiB"] / theirs["GiB"]
        print(f"   {what}: {cpu:.2f} of the CPU time, {memory:.2f} of the memory")
        missed.extend([f"{what}: {cpu:.2f} of the CPU time, must be ≤ {most:g}"] if cpu > most else [])
        missed.extend(
            [f"{what}: {memory:.2f} of the memory, must be ≤ {most_memory:g}"] if memory > most_memory else []
        )

    with tempfile.TemporaryDirectory(prefix="intake-") as name:
        folder, start = Path(name), time.perf_counter()
        phantoms.write_patient(folder / PATIENT, shape, IMAGE, ANNOTATIONS)
        phantoms.write_patient(folder / "tiny" / PATIENT, (32, 48, 48), IMAGE, ANNOTATIONS)
        size = (folder / PATIENT / IMAGE).stat().st_size / 1e6
        by = " × ".join(map(str, shape))
        print(
            f"{by} voxels, CT of {size:.0f} MB, written in {time.perf_counter() - start:.0f} s; {os.cpu_count()} cores"
        )
        _run("plans", folder)
        ours, theirs = _run("read", folder), _run("plain_read", folder)
        compare("read_patient beside plain nibabel", ours, theirs, most=1 if shape == FULL_SIZE else math.inf)
        most = ours["returned_GiB"] + READING_GIB
        missed.extend([f"read_patient: {ours['GiB']:.2f} GiB, must be ≤ {most:.2f}"] if ours["GiB"] > most else [])
        for what in ("voxels", "described"):
            missed.extend([f"{what} of the intake differ"] if ours[what] != theirs[what] else [])
        ours, three = _run("preprocess", folder), _run("preprocess_three", folder)
        print(
            f"   process {ours['process_GiB']:.2f} GiB, with the estimate for the scan {ours['estimated_GiB']:.2f} GiB"
        )
        if ours["GiB"] > ours["estimated_GiB"]:
            missed.append(f"preprocessing takes {ours['GiB']:.2f} GiB, estimated {ours['estimated_GiB']:.2f}")
        print(f"   three annotators: {three['cpu_s'] / ours['cpu_s']:.2f} times the CPU time of one")
        seen = _run("for_prediction", folder)
        print(f"   of a prediction: process {seen['process_GiB']:.2f} GiB, estimated {seen['estimated_GiB']:.2f} GiB")
        if seen["GiB"] > seen["estimated_GiB"]:
            missed.append(
                f"a prediction's preprocessing takes {seen['GiB']:.2f} GiB, estimated {seen['estimated_GiB']:.2f}"
            )
        if stock:
            theirs = _run("stock", folder)
            half: Any = {"most": 0.5, "most_memory": 0.5 if shape == FULL_SIZE else math.inf}
            compare("preprocessing beside nnU-Net's", ours, theirs, **half)
            thrice = theirs | {"cpu_s": 3 * theirs["cpu_s"]}
            compare("preprocessing of three annotators beside nnU-Net's", three, thrice, **half)
            for what in ("stored", "sample"):
                missed.extend([f"{what}: differs from nnU-Net's"] if ours[what] != theirs[what] else [])
    for line in missed:
        print(f"MISSED {line}")
    return int(bool(missed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="866 × 512 × 512 instead of 128 × 256 × 256")
    parser.add_argument("--shape", type=int, nargs=3, help="voxels along Z, Y, X")
    parser.add_argument("--without-stock", action="store_true", help="leave nnU-Net's own preprocessing out")
    parser.add_argument("--part", choices=PARTS, help="one part in this process; prints JSON")
    parser.add_argument("--folder", type=Path, help="of that part")
    given, _ = parser.parse_known_args()
    if given.part:
        print(json.dumps(PARTS[given.part](given.folder)))
        sys.exit(0)
    size = tuple(given.shape) if given.shape else FULL_SIZE if given.full else SMALL_SIZE
    sys.exit(main(size, stock=not given.without_stock))
