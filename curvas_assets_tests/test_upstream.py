"""What we assume of nnU-Net and Dagster: if a new release breaks one of these, this file says which.

- nnU-Net's trainer has the hooks that ours overrides, and looks its constructor's arguments up by name.
- Its blur chooses its algorithm by stop-watch unless told not to; its export is linear resampling.
- It reads its path variables when it uses them, not when it is imported.
- Dagster's event tags and the resolver that read staleness from them are where we import them from.
"""

import inspect
import os

import pytest

from curvas_assets.segmentation.runtime import nnunet_folders


def test_nnunets_trainer_has_the_hooks_that_ours_overrides():
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from curvas_assets.segmentation.trainer import StudyTrainer

    own = {name for name, member in vars(StudyTrainer).items() if callable(member) and not name.startswith("_")}
    overridden = {
        "initialize", "on_epoch_start", "do_split", "get_dataloaders", "configure_optimizers", "run_training",
        "on_validation_epoch_end", "on_epoch_end", "save_checkpoint", "load_checkpoint", "print_to_log_file",
        "plot_network_architecture", "configure_rotation_dummyDA_mirroring_and_inital_patch_size",
    }  # fmt: skip
    assert overridden <= own
    assert all(hasattr(nnUNetTrainer, name) for name in overridden)
    assert list(inspect.signature(StudyTrainer).parameters) == list(inspect.signature(nnUNetTrainer).parameters)


def test_nnunets_blur_times_itself_unless_told_not_to():
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from curvas_assets.segmentation.trainer import StudyTrainer

    def blurs(trainer):
        transforms = trainer.get_training_transforms((8, 8, 8), (-0.1, 0.1), None, None, False).transforms
        found = [getattr(t, "transform", t) for t in transforms]
        return [t.benchmark for t in found if isinstance(t, GaussianBlurTransform)]

    assert blurs(nnUNetTrainer) == [True]
    assert blurs(StudyTrainer) == [False]


def test_nnunets_export_is_the_linear_resampling_that_ours_does(dataset_plans):
    configuration = dataset_plans["configurations"]["3d_fullres"]
    assert configuration["resampling_fn_probabilities"] == "resample_data_or_seg_to_shape"
    assert configuration["resampling_fn_probabilities_kwargs"] == {
        "is_seg": False,
        "order": 1,
        "order_z": 0,
        "force_separate_z": None,
    }


@pytest.fixture
def dataset_plans(tmp_path):
    import json

    from curvas_assets.cohort.phantom import write_cohort
    from curvas_assets.segmentation import prepare_dataset
    from curvas_assets_tests.segmentation.conftest import tiny_study

    patients = ["PHANTOM001", "PHANTOM002"]
    write_cohort(tmp_path, patients=patients, shape=(24, 32, 32), spacing_mm=(10, 10, 10), seed=5)
    scans = {p: (tmp_path / p / "image.nii.gz", tmp_path / p / "annotation_1.nii.gz") for p in patients}
    prepare_dataset(tiny_study(), "anno1", scans, tmp_path / "dataset")
    return json.loads((tmp_path / "dataset" / "nnUNetPlans.json").read_text())


def test_nnunet_reads_its_path_variables_when_it_uses_them(tmp_path):
    from nnunetv2.paths import nnUNet_results

    with nnunet_folders(results=tmp_path):
        assert os.fspath(nnUNet_results) == str(tmp_path)
    assert not nnUNet_results.is_set()


def test_dagsters_tags_and_resolver_are_where_we_import_them_from():
    from dagster._core.definitions import data_version

    assert data_version.CODE_VERSION_TAG == "dagster/code_version"
    assert data_version.DATA_VERSION_TAG == "dagster/data_version"
    assert {"get_status", "get_stale_causes"} <= set(dir(data_version.CachingStaleStatusResolver))
