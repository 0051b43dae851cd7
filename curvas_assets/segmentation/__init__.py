"""The only package that uses nnU-Net: datasets, training, prediction.

nnU-Net is used as it is on PyPI: subclassed where it offers hooks, never copied or patched. One of its methods
runs with another thread and queue (`sliding_window`). Importing this package loads neither torch nor nnunetv2; its functions
do when they are called.
"""

from curvas_assets.segmentation.adoption import AdoptedModel, adopt_dataset, adopt_model
from curvas_assets.segmentation.dataset import DatasetFacts, prepare_dataset
from curvas_assets.segmentation.prediction import Prediction, Predictor, PreparedScan, StepMemory, estimate_memory
from curvas_assets.segmentation.scans import TrainingScans
from curvas_assets.segmentation.training import EpochReport, TrainingOutcome, train_model, trained_on

__all__ = [
    "AdoptedModel",
    "DatasetFacts",
    "EpochReport",
    "Prediction",
    "Predictor",
    "PreparedScan",
    "StepMemory",
    "TrainingOutcome",
    "TrainingScans",
    "adopt_dataset",
    "adopt_model",
    "estimate_memory",
    "prepare_dataset",
    "train_model",
    "trained_on",
]
