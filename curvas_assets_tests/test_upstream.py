"""What we assume of nnU-Net and Dagster: if a new release breaks one of these, this file says which.

- nnU-Net's trainer has the hooks that ours overrides, and looks its constructor's arguments up by name.
- Its trainer, its reader of cases and its loss have the parts that trainings on several annotators replace.
- Its predictor makes the queue of tiles and the thread that cuts them by the names that ours replaces.
- Its blur chooses its algorithm by stop-watch unless told not to; its export is linear resampling.
- It reads its path variables when it uses them, not when it is imported.
- Dagster's private names are imported in one module, mean what they meant, and have the members that are used.
"""

import ast
import inspect
import os
import queue
import re
import threading
from pathlib import Path

import dagster as dg
import pytest

import curvas_assets
from curvas_assets.orchestration import dagster_internals as internals
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


def test_nnunet_has_what_trainings_on_several_annotators_override():
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    hooks = ("initialize", "get_training_transforms", "get_validation_transforms", "_build_loss", "validation_step")
    assert all(hasattr(nnUNetTrainer, name) for name in hooks)
    loaders = inspect.getsource(nnUNetTrainer.get_dataloaders)
    assert "self.get_training_transforms(" in loaders
    assert "self.get_validation_transforms(" in loaders
    assert "self.dataset_class(self.preprocessed_dataset_folder" in inspect.getsource(
        nnUNetTrainer.get_tr_and_val_datasets
    )
    assert "return data, seg, seg_prev, properties" in inspect.getsource(nnUNetDatasetBlosc2.load_case)
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DeepSupervisionWrapper(DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss), [1.0])
    assert {"dc", "ce"} <= {name for name, _ in loss.loss.named_children()}
    assert (loss.loss.weight_ce, loss.loss.weight_dice) == (1, 1)


def test_nnunets_predictor_makes_the_queue_and_the_thread_of_its_sliding_window_by_name():
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from curvas_assets.segmentation.sliding_window import NNUNETS, StudyPredictor

    attempts = inspect.unwrap(nnUNetPredictor.predict_sliding_window_return_logits)
    assert NNUNETS.__name__ in attempts.__code__.co_names
    assert vars(StudyPredictor).keys() >= {NNUNETS.__name__}
    assert {"Queue", "Thread"} <= set(NNUNETS.__code__.co_names)
    assert (NNUNETS.__globals__["Queue"], NNUNETS.__globals__["Thread"]) == (queue.Queue, threading.Thread)
    source = inspect.getsource(NNUNETS)
    assert "queue = Queue(maxsize=2)" in source
    assert "Thread(target=producer, args=(data, slicers, queue), daemon=True)" in source
    assert "item = queue.get()" in source


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


def test_dagsters_private_names_are_imported_in_one_module_only():
    private = re.compile(r"dagster\._\w+")
    found = {}
    for folder in (Path(curvas_assets.__file__).parent, Path(curvas_assets.__file__).parent.parent / "benchmarks"):
        for path in sorted(folder.rglob("*.py")):
            imported = {
                name
                for node in ast.walk(ast.parse(path.read_text()))
                for name in (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else []
                )
                if private.match(name)
            }
            if imported:
                found[path.name] = imported
    assert set(found) == {"dagster_internals.py"}


def test_dagsters_tags_are_those_that_its_database_and_ui_know():
    assert {name: getattr(internals, name) for name in vars(internals) if name.endswith("_TAG")} == {
        "ASSET_PARTITION_RANGE_END_TAG": "dagster/asset_partition_range_end",
        "ASSET_PARTITION_RANGE_START_TAG": "dagster/asset_partition_range_start",
        "AUTO_RETRY_RUN_ID_TAG": "dagster/auto_retry_run_id",
        "BACKFILL_ID_TAG": "dagster/backfill",
        "CODE_VERSION_TAG": "dagster/code_version",
        "DATA_VERSION_IS_USER_PROVIDED_TAG": "dagster/data_version_is_user_provided",
        "DATA_VERSION_TAG": "dagster/data_version",
        "GRPC_INFO_TAG": ".dagster/grpc_info",
        "MAX_RETRIES_TAG": "dagster/max_retries",
        "PARENT_RUN_ID_TAG": "dagster/parent_run_id",
        "PARTITION_NAME_TAG": "dagster/partition",
        "RETRY_NUMBER_TAG": "dagster/retry_number",
        "RETRY_STRATEGY_TAG": "dagster/retry_strategy",
        "RUN_FAILURE_REASON_TAG": "dagster/failure_reason",
        "SCHEDULE_NAME_TAG": "dagster/schedule_name",
        "SENSOR_NAME_TAG": "dagster/sensor_name",
        "USER_TAG": "user",
        "WILL_RETRY_TAG": "dagster/will_retry",
    }


def test_dagsters_private_classes_have_the_members_that_are_used_or_overridden():
    from dagster._core.execution.asset_backfill import AssetBackfillData
    from dagster._core.execution.backfill import PartitionBackfill
    from dagster._core.storage.event_log.base import EventLogStorage
    from dagster._core.storage.runs import SqliteRunStorage
    from dagster._grpc.client import DagsterGrpcClient
    from dagster_postgres import PostgresEventLogStorage

    used = {
        internals.BaseAssetGraph: {
            "get", "has", "toposorted_asset_keys", "get_partition_mapping", "get_parent_partition_keys_for_child",
            "get_ancestor_asset_keys",
        },
        internals.DefaultRunLauncher: {
            "launch_run", "terminate", "supports_check_run_worker_health", "check_run_worker_health",
            "_get_grpc_client_for_termination",
        },
        internals.DataProvenance: {"from_tags", "has_input_asset"},
        internals.RunRecord: {"dagster_run", "storage_id", "create_timestamp", "end_time"},
        PartitionBackfill: {"is_asset_backfill", "get_asset_backfill_data"},
        AssetBackfillData: {"target_subset", "requested_subset", "failed_and_downstream_subset"},
        EventLogStorage: {
            "get_latest_tags_by_partition", "get_latest_storage_id_by_partition", "get_event_records",
        },
        PostgresEventLogStorage: {
            "initialize_concurrency_limit_to_default", "_claim_concurrency_slot", "_allocate_concurrency_slots",
            "assign_pending_steps", "index_transaction", "index_connection", "has_concurrency_limits_table",
            "has_default_pool_limit_col",
        },
        DagsterGrpcClient: {"can_cancel_execution"},
    }  # fmt: skip
    missing = {
        cls.__name__: sorted(name for name in names if not hasattr(cls, name) and name not in _fields(cls))
        for cls, names in used.items()
    }
    assert not {name: gone for name, gone in missing.items() if gone}
    assert "before_cursor" in inspect.signature(EventLogStorage.get_latest_tags_by_partition).parameters
    seen = internals.AssetCheckEvaluationTargetMaterializationData(storage_id=3, run_id="run", timestamp=1.5)
    assert (seen.storage_id, seen.run_id, seen.timestamp) == (3, "run", 1.5)
    with dg.instance_for_test() as instance:
        assert isinstance(instance.run_storage, SqliteRunStorage) == internals.is_kept_in_files(instance)


def _fields(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters)
