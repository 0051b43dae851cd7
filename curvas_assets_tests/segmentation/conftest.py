"""A dataset of tiny phantoms and a study that trains on it in seconds."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.segmentation import prepare_dataset
from curvas_assets.segmentation.runtime import quiet
from curvas_assets.study import Study, load_study

ANNOTATOR = "anno1"


def tiny_study(**training) -> Study:
    """The demo's study with fewer patients, epochs and iterations."""
    raw = load_study("phantom").model_dump(mode="json")
    raw["sets"] = {"train": ["001", "002", "003"], "test": ["007"]}
    raw["groups"], raw["in_distribution_group"] = {}, None
    raw["plans"] |= {"patch_size": [16, 24, 24], "features_per_stage": [4, 8, 16]}
    raw["training"] |= {"epochs": 3, "iterations_per_epoch": 3, "validation_iterations_per_epoch": 2, **training}
    return Study.model_validate(raw)


def flat_copy(model: Path, folder: Path, **state: Any) -> Path:
    """The model with a network of two dimensions, of random weights, and with other entries in its checkpoint."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    flat = Path(shutil.copytree(model, folder / "flat"))
    plans = PlansManager(json.loads((flat / "plans.json").read_text()))
    torch.manual_seed(0)
    with quiet():
        network = nnUNetTrainer.build_network_architecture(plans, plans.get_configuration("2d"), 1, 4, False)
    path = flat / "fold_all" / "checkpoint_best.pth"
    changed = {"network_weights": network.state_dict(), "init_args": {"configuration": "2d", "fold": "all"}, **state}
    torch.save(torch.load(path, weights_only=True) | changed, path)
    return flat


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_cohort(
        folder,
        patients=["PHANTOM001", "PHANTOM002", "PHANTOM003", "PHANTOM007"],
        shape=(30, 56, 56),
        spacing_mm=(8, 6, 6),
        seed=5,
    )
    return folder


@pytest.fixture(scope="session")
def dataset(scans, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "anno1"
    study = tiny_study()
    prepare_dataset(
        study,
        ANNOTATOR,
        {p: (scans / p / "image.nii.gz", scans / p / "annotation_1.nii.gz") for p in study.training_patients()},
        folder,
    )
    return folder
