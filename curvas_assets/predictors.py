"""Names of everything that predicts: models and their variants, ensembles, and what is calibrated from another predictor.

These names are partition keys, columns of tables and folders in the bucket. They are made and parsed here and nowhere else.
"""

import re
from dataclasses import dataclass
from typing import Literal

from curvas_assets.errors import StudyError

Fold = Literal["all", 0, 1, 2, 3, 4]
FOLDS = 5
"""nnU-Net's cross-validation."""
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
"""Annotator, organ and ensemble names: no comma, `|` or underscore, which partition keys use as separators."""
Fusion = Literal["majority", "staple", "random", "soft"]
FUSIONS: tuple[Fusion, ...] = ("majority", "staple", "random", "soft")
"""Ways to make one training label of several annotators': the label of most of them, STAPLE, one annotator drawn for each
patch, or the mean of their one-hot labels."""
KEPT_APART: tuple[Fusion, ...] = ("random", "soft")
"""Fusions whose datasets keep the labels of each annotator, because training draws from them or averages them."""
CALIBRATIONS = ("temperature", "isotonic")
"""Ways to calibrate a predictor after it is trained: one temperature for all logits, or an isotonic curve for each organ."""
FLIP, SNAPSHOT = "flip", "snapshot"
"""What the names of variants begin with: a mirrored prediction, and earlier weights. Flips count from 0, snapshots from 1."""
Calibration = Literal["temperature", "isotonic"]
_MODEL = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9-]*)_init(0|[1-9][0-9]{0,9})_fold(all|[0-4])(?:_(flip|snapshot)([0-9]|[1-9][0-9]))?"
)


@dataclass(frozen=True, order=True)
class ModelId:
    """One trained model: training label × seed × fold, written `anno1_init112233_foldall`; or a variant of one.

    Args:
        annotator: whose label maps it learned, or a fusion of several (`majority`).
        seed: of its initial weights.
        fold: of nnU-Net.
        variant: `flip0` … of a model that predicts the scan mirrored, `snapshot1` … of earlier weights of its training;
            empty for the model itself. Written `anno1_init112233_foldall_flip3`.
    """

    annotator: str
    seed: int
    fold: Fold
    variant: str = ""

    def __str__(self) -> str:
        name = f"{self.annotator}_init{self.seed}_fold{self.fold}"
        return f"{name}_{self.variant}" if self.variant else name

    @property
    def trained(self) -> "ModelId":
        """The model that a variant is of; itself, if it is none."""
        return ModelId(self.annotator, self.seed, self.fold)

    @classmethod
    def parse(cls, name: str) -> "ModelId":
        """The model of a name such as `anno1_init112233_foldall`; a StudyError if it is not one."""
        match = _MODEL.fullmatch(name)
        if match is None:
            raise StudyError(
                "parsing a model name",
                repr(name),
                "it is not <annotator>_init<seed>_fold<all|0-4>",
                "Use a name such as anno1_init112233_foldall.",
            )
        annotator, seed, fold, kind, number = match.groups()
        variant = f"{kind}{number}" if kind else ""
        return cls(annotator, int(seed), "all" if fold == "all" else int(fold), variant)  # type: ignore[arg-type]

    @classmethod
    def of(cls, model: "ModelId | str") -> "ModelId":
        """A model as it is, or by its name; a StudyError if it is neither."""
        return model if isinstance(model, cls) else cls.parse(str(model))


@dataclass(frozen=True, order=True)
class EnsembleId:
    """An ensemble, the mean of several models' probabilities; written `ensemble_anno1`, `ensemble_all`."""

    name: str

    def __str__(self) -> str:
        return f"ensemble_{self.name}"

    @classmethod
    def parse(cls, name: str) -> "EnsembleId":
        """The ensemble of a name such as `ensemble_all`; a StudyError if it is not one."""
        prefix, _, rest = name.partition("ensemble_")
        if prefix or not KEY.fullmatch(rest):
            raise StudyError(
                "parsing an ensemble name",
                repr(name),
                "it does not start with ensemble_",
                "Use a name such as ensemble_anno1 or ensemble_all.",
            )
        return cls(rest)


@dataclass(frozen=True, order=True)
class CalibratedId:
    """A model or an ensemble after calibration; written `temperature_ensemble_all`, `isotonic_anno1_init1_foldall`.

    Args:
        method: how it is calibrated.
        base: the predictor that is calibrated.
    """

    method: Calibration
    base: ModelId | EnsembleId

    def __str__(self) -> str:
        return f"{self.method}_{self.base}"

    @classmethod
    def parse(cls, name: str) -> "CalibratedId":
        """The calibrated predictor of a name such as `isotonic_ensemble_all`; a StudyError if it is not one."""
        method, _, base = name.partition("_")
        if method not in CALIBRATIONS or base.partition("_")[0] in CALIBRATIONS:
            raise StudyError(
                "parsing the name of a calibrated predictor",
                repr(name),
                f"it does not start with one of {', '.join(f'{m}_' for m in CALIBRATIONS)}, once",
                "Use a name such as isotonic_ensemble_all.",
            )
        return cls(method, model_or_ensemble(base))  # type: ignore[arg-type]


PredictorId = ModelId | EnsembleId | CalibratedId


def model_or_ensemble(name: str) -> ModelId | EnsembleId:
    """The model or ensemble of a name; a StudyError if it is neither's."""
    return EnsembleId.parse(name) if name.startswith("ensemble_") else ModelId.parse(name)


def predictor_of(name: str) -> PredictorId:
    """The predictor of a name; a StudyError if it is none's."""
    method, _, base = name.partition("_")
    if method in CALIBRATIONS and not _MODEL.fullmatch(name) and base:
        return CalibratedId.parse(name)
    return model_or_ensemble(name)
