"""The real definitions on a small phantom study, with instant stand-ins for nnU-Net: what the browser tests look at.

Datasets, trainings and softmax are drawn, not learnt; everything else (intake, storage, ensembles, scores, statistics,
report) is the real thing. Only Dagster's own processes load this module: it exchanges names in the asset modules. Run as
a program it makes the state from which the browser tests start.
"""

import json
import os
import sys
from pathlib import Path

import dagster as dg
import numpy as np
import numpy.typing as npt
import pandas as pd

from curvas_assets.codes import DEPTH
from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.definitions import build_definitions
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.segmentation import DatasetFacts, Prediction, Predictor, StepMemory, TrainingOutcome
from curvas_assets.stages import predict, prepare, train, write_up
from curvas_assets.stages.table import STAGES
from curvas_assets.storage.encoding import encode
from curvas_assets.study import Study, load_study

PATIENTS = ["PHANTOM001", "PHANTOM002", "PHANTOM007", "PHANTOM008", "PHANTOM009"]
TESTS = PATIENTS[2:]
DONE, MISSING = TESTS[0], TESTS[1:]
"""Of the test patients, one is scored when the browser comes; the others are taken in, and no more."""


def small_study() -> Study:
    raw = load_study("phantom").model_dump(mode="json")
    raw |= {"sets": {"train": ["001", "002"], "test": ["007", "008", "009"]}, "seeds": [1]}
    raw |= {"groups": {}, "in_distribution_group": None}
    raw["statistics"]["draws"] = 100
    return Study.model_validate(raw)


STUDY = small_study()
MODELS = [str(model) for model in STUDY.models]


class DrawnPredictor(Predictor):
    """Draws an ellipsoid for each organ; each model draws them a little elsewhere. No model file is read."""

    def sharing(self, model_folder, variant="") -> str:
        return "drawn"

    def memory(self, scan, model_folder, variant="") -> StepMemory:
        return StepMemory(0, 0, 0, 0, 0)

    def prepare(self, scan, model_folder, *, variant="", checked=False) -> None:
        """Nothing needs preprocessing."""

    def predict(self, scan, model_folder, *, variant="", checked=False, proceed=lambda: None) -> Prediction:
        softmax = self._drawn(scan.grid.shape, sum(f"{Path(model_folder).name}{variant}".encode()))
        slabs = [(z0, softmax[:, z0 : z0 + DEPTH]) for z0 in range(0, scan.grid.shape[0], DEPTH)]
        encoded = ((z0, encode(slab)) for z0, slab in slabs)
        return Prediction(len(softmax), scan.grid, "cpu", softmax.nbytes, iter(slabs), encoded)

    def _drawn(self, shape: tuple[int, int, int], seed: int) -> npt.NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij"))
        logits = [np.zeros(shape, np.float32)]
        for organ in range(len(self.study.organs)):
            centre = np.array([0.1, 0.5 * (organ - 1), 0.4 * (organ - 1)]) + rng.normal(0, 0.04, 3)
            away = np.sqrt(((grid - centre.reshape(3, 1, 1, 1)) ** 2).sum(axis=0))
            logits.append(20 * (0.25 + 0.05 * organ - away))
        odds = np.exp(np.clip(np.stack(logits), -20, 20))
        return (odds / odds.sum(axis=0)).astype(np.float32)


def drawn_training(study, model, dataset_folder, model_folder, **_) -> TrainingOutcome:
    epochs = np.arange(6)
    curve = pd.DataFrame(
        {
            "epoch": epochs,
            "train_loss": 0.5 / (epochs + 1) - 0.6,
            "val_loss": 0.6 / (epochs + 1) - 0.6,
            "pseudo_dice": 1 - 0.8 / (epochs + 1),
            "ema_dice": 1 - 0.9 / (epochs + 1),
            "learning_rate": 0.01,
            "seconds": 0.0,
        }
    )
    Path(model_folder).mkdir(parents=True)
    record = {"model": str(model), "curve": curve.to_dict(orient="list")}
    Path(model_folder, "training.json").write_text(json.dumps(record))
    return TrainingOutcome(len(curve), 5, 0.85, "drawn, not trained", None, "", "cpu", 0.0, curve)


def drawn_dataset(study, annotator, scans, folder, **_) -> DatasetFacts:
    Path(folder, "dataset.json").write_text(json.dumps({"annotator": annotator}))
    return DatasetFacts(len(scans), [], [8, 6, 6], [24, 40, 40], 2, "drawn", "3d_fullres", {}, 0.0, annotator)


predict.Predictor = DrawnPredictor
train.train_model = drawn_training
prepare.prepare_dataset = drawn_dataset
write_up.IMAGE_FORMATS = ("png",)
defs = build_definitions(STUDY, executor="in_process")


def make_state(folder: Path) -> None:
    """Upload the cohort and make everything but what the browser is to make."""
    groups = dict.fromkeys(PATIENTS, "A")
    write_cohort(
        folder, patients=PATIENTS, shape=(30, 56, 56), spacing_mm=(8, 6, 6), annotators=3, groups=groups, seed=5
    )
    bucket = Bucket()
    for path in sorted(folder.rglob("*.nii.gz")):
        bucket.objects().upload(bucket.layout.patient_file(path.parent.name, path.name), path)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("patient", PATIENTS)
        instance.add_dynamic_partitions("test_patient", TESTS)
        for stage, assets in STAGES.items():
            for tags in _launches(assets[0]):
                done = defs.resolve_job_def(stage).execute_in_process(instance=instance, tags=tags)
                assert done.success, stage


def _launches(asset: str) -> list[dict[str, str]]:
    """Ranges of partitions, as run tags: all of an asset but what is to be missing."""
    ensembles = [str(e) for e in STUDY.ensemble_ids]
    spans = {
        "scan": [(PATIENTS[0], PATIENTS[-1])],
        "test_scan": [(TESTS[0], TESTS[-1])],
        "training_cases": [("anno1", "anno3")],
        "preprocessed_dataset": [("anno1", "anno3")],
        "trained_model": [(MODELS[0], MODELS[-1])],
        "softmax": [(f"{MODELS[0]}|{DONE}", f"{MODELS[-1]}|{DONE}")],
        "variant_softmax": [],  # the study has no variants of models
        "ensemble_softmax": [(f"{ensembles[0]}|{DONE}", f"{ensembles[-1]}|{DONE}")],
        "scores": [(DONE, DONE)],
        "viewer_preview": [(DONE, DONE)],
    }.get(asset)
    if spans is None:
        return [{}]
    return [{"dagster/asset_partition_range_start": a, "dagster/asset_partition_range_end": b} for a, b in spans]


if __name__ == "__main__":
    make_state(Path(sys.argv[1]))
    print(f"prepared in {os.environ['DAGSTER_HOME']}")
