"""The study as configuration: what is annotated, by whom, which models are trained, how they are judged.

`load_study` reads a YAML file into a validated, immutable `Study`. Every name used as a partition key (patient, model,
ensemble) is made and parsed here and nowhere else. No data is read here, and nothing of Dagster is known.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from curvas_assets.errors import StudyError
from curvas_assets.file_paths import ANY, PATIENT, below_data, open_part
from curvas_assets.inputs import as_path
from curvas_assets.label_values import MOST_VALUE, LabelValues
from curvas_assets.predictors import (
    CALIBRATIONS,
    FLIP,
    FOLDS,
    FUSIONS,
    KEY,
    SNAPSHOT,
    CalibratedId,
    EnsembleId,
    Fold,
    Fusion,
    ModelId,
    predictor_of,
)
from curvas_assets.study_file import StudyFile, read_study_file

SPLIT_SEED = 12345
"""nnU-Net's own seed of its five folds."""
MOST_LOADER_WORKERS = 12
"""What `training.loader_workers: auto` starts at most: nnU-Net's own number on a machine that it does not know."""
SetName = Literal["train", "validation", "test"]
RESERVED = ("all", "mean", "background")
"""Words with another meaning in tables of scores and label maps, so that no organ or annotator may have them as its name."""
FLIPS = {"3d_fullres": 8, "3d_lowres": 8, "2d": 4}
"""nnU-Net's configuration → in how many ways its mirroring flips a patch, the patch itself among them."""
Family = Literal[
    "general", "annotator", "individual", "fused ensemble", "fused", "flips", "snapshots", "folds", "calibrated"
]
Predicted = Literal["model", "variant", "ensemble", "calibrated"]
"""Where the probabilities of a predictor come from: an asset of its own for each, and none for a calibrated one."""


def _whole(value: Any) -> Any:
    if isinstance(value, bool | float | str):
        raise ValueError("allowed is a whole number, written in digits")
    return value


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as text (it wants 1.0e-3) and yes as true; only numbers are numbers here."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError("allowed is a number") from None
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("allowed is a finite number")
    return value


def _plain_path(path: str) -> str:
    """A path inside the folder it is given for: not absolute, no `..`, no character that a store or a disk treats specially."""
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") or part != part.strip() for part in parts):
        raise ValueError("allowed is the name of a file inside the folder, neither absolute nor with . or ..")
    if re.search(r'[\\:*?"<>|\x00-\x1f\x7f]', path):
        raise ValueError("a file's name holds no backslash, colon, wildcard, quote or control character")
    return path


def _patients_path(path: str) -> str:
    """The path of a patient's file: plain, but for `{patient}` and `*`, which stand for one part of it or less."""
    if ANY * 2 in path:
        raise ValueError("`*` stands for any text without a slash, and `**` for nothing: write one `*` for each folder")
    plain = path.replace(PATIENT, "P").replace(ANY, "x")
    if stray := re.search(r"\{[^{}]*\}?|\}", plain):
        raise ValueError(f"{stray.group()!r:.40} stands for nothing: the one placeholder is {PATIENT}")
    _plain_path(plain)
    return path


def _nifti(path: str) -> str:
    if not path.endswith((".nii.gz", ".nii")):
        raise ValueError("allowed is a NIfTI file, .nii.gz or .nii (convert DICOM first, e.g. with dcm2niix)")
    return path


def _fold(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("allowed are all and the numbers 0 to 4")
    return value


def _count_or_auto(value: Any) -> Any:
    """One message for both forms, where pydantic would give one for each."""
    if value != "auto" and (type(value) is not int or not 0 <= value <= MOST_COUNTED):
        raise ValueError(f"allowed is auto, or a whole number from 0 to {MOST_COUNTED}")
    return value


def _values(value: Any) -> Any:
    """A value, or several that are merged; a list of one is that one. One message for both forms."""
    several = value if isinstance(value, list | tuple) else [value]
    if not several or not all(type(one) is int and 1 <= one <= MOST_VALUE for one in several):
        raise ValueError(f"allowed is a label value, 1 to {MOST_VALUE}, or a list of values that are merged")
    return several[0] if len(several) == 1 else tuple(several)


def _ignored(value: Any) -> Any:
    """One message for both forms."""
    if value == "rest" or (
        isinstance(value, list | tuple) and all(type(one) is int and 1 <= one <= MOST_VALUE for one in value)
    ):
        return value
    raise ValueError(f"allowed is a list of label values, 1 to {MOST_VALUE}, or rest: all that organs does not name")


MOST_ORGANS = 64
MOST_COUNTED = 256
Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]
Millimetres = Annotated[Number, Field(gt=0, le=100)]
NiftiFile = Annotated[str, Field(max_length=200), AfterValidator(_patients_path), AfterValidator(_nifti)]
Text = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"\S")]
_Value = Annotated[int, Field(ge=1, le=MOST_VALUE)]
Values = Annotated[_Value | Annotated[tuple[_Value, ...], Field(min_length=1)], BeforeValidator(_values)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Annotator(_Part):
    """One expert, and the file with that expert's label map of a patient."""

    name: Annotated[str, Field(max_length=60)]
    """Letters, digits and dashes; not `all`, `mean`, `background`, `ensemble`, `temperature` or `isotonic`."""
    file: NiftiFile
    """NIfTI file with this expert's label map: in the patient's own folder, or with `{patient}` anywhere below the data prefix."""

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        taken = (*RESERVED, "ensemble", *CALIBRATIONS)  # with these, names of ensembles and calibrated predictors begin
        if not KEY.fullmatch(name) or name.lower() in taken:
            raise ValueError(f"an annotator's name is letters, digits and dashes, and not one of {', '.join(taken)}")
        return name


Normalisation = Literal["zscore", "ct", "rescale_to_0_1", "none"]
"""How the intensities of a channel are brought to one scale before a network sees them."""
CHANNEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Channel(_Part):
    """One of the images of a patient that a network sees together, on the same voxels: an MR sequence, a CT, a PET."""

    name: Annotated[str, Field(max_length=60)]
    """Letters, digits, dashes and underscores, such as `T1`."""
    file: NiftiFile
    """NIfTI file with this image: in the patient's own folder, or with `{patient}` anywhere below the data prefix."""
    normalisation: Normalisation = "zscore"
    """nnU-Net's normalisation of the intensities. `zscore`: each scan has mean 0 and standard deviation 1. `ct`: HU, clipped and scaled
    by statistics of all training patients; what a channel called `CT` has if nothing is said. `rescale_to_0_1`: each scan from its
    smallest value to its largest. `none`: as they are."""

    @property
    def is_ct(self) -> bool:
        """Whether the intensities are Hounsfield units."""
        return self.normalisation == "ct"

    @model_validator(mode="before")
    @classmethod
    def _by_its_name(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "normalisation" not in raw:
            return {**raw, "normalisation": _usual_normalisation(raw.get("name"))}
        return raw

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not CHANNEL_NAME.fullmatch(name):
            raise ValueError("a channel's name is letters, digits, dashes and underscores")
        return name


def _usual_normalisation(name: Any) -> Normalisation:
    return "ct" if isinstance(name, str) and name.casefold() == "ct" else "zscore"


def _is_ct(raw: Any) -> bool:
    """Whether an entry of `channels`, not validated yet, is in HU."""
    if isinstance(raw, Channel):
        return raw.normalisation == "ct"
    return isinstance(raw, dict) and raw.get("normalisation", _usual_normalisation(raw.get("name"))) == "ct"


class PatientIds(_Part):
    """How patients are called: a prefix and a number of fixed width, such as UKCHLL077; or ids of a pattern, or of any form, which are
    taken as they are written.
    """

    prefix: str | None = Field(default=None, pattern=r"^[A-Za-z]*$", max_length=40)
    """Letters before the number; empty if ids are numbers alone. Left out: ids are taken as they are written."""
    digits: Annotated[Whole, Field(ge=1, le=12)] = 3
    """Width of the number, filled up with zeros. It takes a prefix, which may be empty."""
    pattern: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Regular expression of a whole id, such as `CASE_[0-9]{4}`, in place of prefix and digits. Left out too: any id of letters, digits,
    `_`, `-` and `.` that begins with a letter or a digit. Whatever the pattern, ids have at most 80 of these characters, no two dots in a
    row and none at the end, none of the endings `_seg`, `.json`, `.csv`, `.parquet`, `.nii` and `.gz`, and are no word such as `all` or
    `test`."""

    @field_validator("pattern")
    @classmethod
    def _of_whole_ids(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        if pattern.startswith("^") or pattern.endswith("$"):
            raise ValueError("the pattern is that of a whole id; leave out ^ and $")
        try:
            groups = re.compile(f"x({pattern})", re.ASCII).groups
        except re.error as error:
            raise ValueError(f"it is no regular expression: {error}") from None
        if groups > 1:
            raise ValueError("it has a capturing group: write (?:…) for (…)")
        return pattern

    @model_validator(mode="after")
    def _of_one_kind(self) -> "PatientIds":
        if self.pattern is not None and self.prefix is not None:
            raise ValueError("pattern stands in place of prefix and digits: give one or the other")
        if self.prefix is None and self.digits != type(self).model_fields["digits"].default:
            remedy = (
                "add it, empty if ids are numbers alone" if self.pattern is None else "leave it out beside a pattern"
            )
            raise ValueError(f"digits = {self.digits} takes a prefix: {remedy}")
        return self

    @property
    def in_paths(self) -> str:
        """What may stand for an id in a path, as a regular expression without capturing groups."""
        if self.prefix is not None:
            return rf"(?:(?i:{re.escape(self.prefix)}))?[0-9]{{1,{self.digits}}}"
        return ANY_ID if self.pattern is None else f"(?:{self.pattern})"

    @property
    def has_form(self) -> bool:
        """Whether ids have a form by which a folder of somebody else is told from a patient's."""
        return self.prefix is not None or self.pattern is not None

    @property
    def form(self) -> str:
        """What an id looks like, in words."""
        if self.prefix is not None:
            return f"{self.prefix or 'a number'} with up to {self.digits} digits"
        if self.pattern is not None:
            return f"of the pattern {self.pattern}"
        return f"an id of up to {LONGEST_ID} letters, digits, _, - and single dots, which begins with a letter or digit and ends with no dot"

    @property
    def example(self) -> str:
        """An id, or its pattern."""
        if self.prefix is not None:
            return f"{self.prefix}{1:0{self.digits}d}"
        return self.pattern or "CASE_0001"

    def has(self, name: str) -> bool:
        """Whether this is the whole name of a patient, as partitions have it."""
        try:
            return self.normalise(name) == name
        except StudyError:
            return False

    def normalise(self, name: str | int) -> str:
        """`77`, `077` and `UKCHLL077` are one patient, `UKCHLL077`; without a prefix, an id is what is written.

        Of numbers, only the digits 0 to 9 count, no more of them than the study's ids have, and nothing before or after.

        Raises:
            StudyError: the name is none of these forms.
        """
        text = str(name) if isinstance(name, str | int) and not isinstance(name, bool) else ""
        if self.prefix is None:
            return self._as_written(text, name)
        pattern = rf"(?:{re.escape(self.prefix)})?([0-9]{{1,{self.digits}}})"
        match = re.fullmatch(pattern, text, re.IGNORECASE | re.ASCII)
        if match is None:
            remedy = (
                f"Name the patient like {self.example}, or change patients.prefix and patients.digits in the study."
            )
            raise StudyError("reading a patient's id", f"{name!r:.80}", f"it is not {self.form}", remedy)
        return f"{self.prefix}{int(match.group(1)):0{self.digits}d}"

    def _as_written(self, text: str, name: Any) -> str:
        found = None
        if not re.fullmatch(ANY_ID, text, re.ASCII) or len(text) > LONGEST_ID:
            found = f"it is not {PatientIds().form}"
        elif not re.fullmatch(self.in_paths, text, re.ASCII):
            found = f"it is not {self.form}"
        elif text.lower() in NO_IDS:
            found = f"it is a word with another meaning here (as are {', '.join(NO_IDS)})"
        elif text.lower().endswith(NO_ENDINGS):
            found = f"no id ends with {' or '.join(NO_ENDINGS)}, by which files are told apart"
        if found is None:
            return text
        remedy = f"Name the patient like {self.example}, or change patients.pattern in the study."
        raise StudyError("reading a patient's id", f"{name!r:.80}", found, remedy)


ANY_ID = r"(?:[A-Za-z0-9](?:\.?[A-Za-z0-9_-])*)"
"""Ids that may be partition keys, parts of paths and names of nnU-Net's cases; `..` would lead out of a folder."""
LONGEST_ID = 80
NO_IDS = (*RESERVED, "train", "validation", "test", "published_table", "other_studies")
"""Words that operations, tables and the sensor's memory have for something else than a patient."""
NO_ENDINGS = ("_seg", ".json", ".csv", ".parquet", ".nii", ".gz")
"""Endings of files beside which a patient's stand: nnU-Net takes a case `a_seg` for the labels of `a`."""


_Side = Annotated[Whole, Field(ge=4, le=2048)]
_Features = Annotated[Whole, Field(ge=1, le=4096)]


class Plans(_Part):
    """nnU-Net planning. What is None is left to nnU-Net's planner."""

    planner: Literal["ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL"] = (
        "ExperimentPlanner"
    )
    """nnU-Net's experiment planner: the plain U-Net, or a residual encoder of size M, L or XL."""
    configuration: Literal["3d_fullres", "2d", "3d_lowres"] = "3d_fullres"
    """nnU-Net's configuration: full resolution, slice by slice, or reduced resolution."""
    gpu_memory_gb: Annotated[Number, Field(gt=0, le=1000)] | None = None
    """GPU memory that the planner sizes patch and batch for, GB."""
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres] | None = None
    """Voxel size (Z, Y, X) that scans are resampled to, mm."""
    patch_size: tuple[_Side, _Side, _Side] | None = None
    """Voxels of a training patch (Z, Y, X)."""
    batch_size: Annotated[Whole, Field(ge=1, le=1024)] | None = None
    """Patches in a training batch."""
    features_per_stage: Annotated[tuple[_Features, ...], Field(min_length=3, max_length=10)] | None = None
    """Feature maps of each stage of the U-Net. At least three stages: nnU-Net's deep supervision gives the coarsest output the weight 0,
    so that two stages would leave no loss."""
    convolutions_per_stage: Annotated[Whole, Field(ge=1, le=20)] | None = None
    """Convolutions in each stage of the encoder and of the decoder."""
    intensity_samples: Annotated[Number, Field(ge=1000, le=1e10)] = 1e7
    """Foreground voxels sampled over all training patients for the intensity statistics; 1e7 is nnU-Net's own number."""
    shared_intensity_statistics: bool = False
    """Whether all annotators share one set of intensity statistics, taken from the union of their foregrounds. The preprocessed
    images of all annotators are then identical to the bit."""

    @model_validator(mode="after")
    def _of_one_dimension(self) -> "Plans":
        if self.configuration == "2d" and self.patch_size is not None:
            raise ValueError(
                f"patch_size {list(self.patch_size)} is a 3-D patch, and configuration 2d has none: leave patch_size to the "
                "planner, or take 3d_fullres"
            )
        return self


class Training(_Part):
    """How each model is trained."""

    sets: tuple[Literal["train", "validation"], ...] = ("train",)
    """Sets whose patients the models learn from."""
    epochs: Annotated[Whole, Field(ge=1, le=1_000_000)] = 300
    """Largest number of epochs."""
    iterations_per_epoch: Annotated[Whole, Field(ge=1, le=1_000_000)] = 250
    """Training batches in an epoch."""
    validation_iterations_per_epoch: Annotated[Whole, Field(ge=1, le=1_000_000)] = 50
    """Validation batches after each epoch."""
    patience: Annotated[Whole, Field(ge=1, le=1_000_000)] = 20
    """Training stops after this many epochs without a better moving average of the pseudo-Dice."""
    held_out_fraction: Annotated[Number, Field(ge=0, lt=0.5)] = 0.2
    """Share of the training patients that decide when to stop and are not trained on, with fold `all` and under cross-validation.
    With 0, the training data themselves decide, and the report says so."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` (nnU-Net's own) or `adamw`."""
    learning_rate: Annotated[Number, Field(gt=0, le=10)] = 1e-2
    """Learning rate of the first epoch; it falls towards 0 by nnU-Net's schedule."""
    mirroring: bool = True
    """Whether augmentation mirrors patches."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """`auto` takes CUDA, else MPS, else the CPU."""
    threads: Annotated[Whole, Field(ge=1, le=1024)] | None = None
    """Threads of torch. They are fixed because sums on the CPU depend on their number. Left out: 1 to train, as nnU-Net does on a GPU;
    to predict, 1 on the CPU and torch's choice elsewhere."""
    loader_workers: Annotated[
        Annotated[int, Field(ge=0, le=MOST_COUNTED)] | Literal["auto"], BeforeValidator(_count_or_auto)
    ] = "auto"
    """Processes that load and augment patches; with 0 the training process does it. Batches are the same with any number. `auto`: on
    CUDA as many as the machine's cores and memory allow, at most 12; else 0."""
    checkpoint_every: Annotated[Whole, Field(ge=1, le=1_000_000)] = 1
    """Epochs between two checkpoints in the bucket, from which a killed training resumes."""
    snapshots: Annotated[Whole, Field(ge=0, le=20)] = 0
    """Earlier weights that each model keeps, evenly spaced over the second half of the epochs that its training ran, for
    `cheap_ensembles.snapshots`. Until it ends, a training keeps up to twice as many and three, also in each checkpoint in the bucket."""

    @property
    def most_loader_workers(self) -> int:
        """Loader processes that a training starts at most, which a machine for it must bear."""
        if self.loader_workers != "auto":
            return self.loader_workers
        return 0 if self.device in ("cpu", "mps") else MOST_LOADER_WORKERS


class Prediction(_Part):
    """How a model is applied to a patient."""

    tile_step: Annotated[Number, Field(ge=0.05, le=1)] = 0.5
    """Step of the sliding window as a share of the patch; smaller is slower and smoother."""
    mirroring: bool = True
    """Whether predictions are averaged over mirrored patches."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """`auto` takes CUDA, else MPS, else the CPU."""


class Vascular(_Part):
    """Which organs are a tumour and the vessels that it may involve, for the scores of the challenge of 2025 (CURVAS-PDACVI)."""

    tumour: str = ""
    """The organ that is the tumour."""
    vessels: tuple[str, ...] = ()
    """The organs that are vessels, each with an outline of its own."""


class Evaluation(_Part):
    """Where and how predictors are scored (`scoring/definitions.md`: accuracy, calibration, uncertainty)."""

    region: Literal["body", "image"] = "body"
    """Voxels that count: `body` is the in-plane bounding box of CT > 0 HU, as in the challenge; `image` is the whole scan. Left out, it is
    `body`; of a study without a CT it is `image`, and `body` is not allowed."""
    ece_bins: Annotated[Whole, Field(ge=2, le=1000)] = 50
    """Bins of the expected calibration error and of the reliability diagrams."""
    ace_bins: Annotated[Whole, Field(ge=2, le=1000)] = 20
    """Bins of the average calibration error and of the adaptive one."""
    tolerance_mm: Millimetres = 1.0
    """Tolerance of the normalised surface Dice, mm."""
    reference: Literal["consensus", "majority", "staple", "thresholds"] = "consensus"
    """What `dice` and `confidence` compare with. `consensus`: the voxels on which all annotators agree, as in the challenge of 2024.
    `majority`: the label of most annotators. `staple`: their STAPLE estimate. `thresholds`: the share of annotators who drew an organ,
    cut at several heights, as in the challenge of 2025."""
    vascular: Vascular = Vascular()
    """The tumour and the vessels, if patients are to be scored on how far the one involves the others."""
    organs: tuple[str, ...] = ()
    """Organs that are scored; left out: all. The others are segmented as before, and no score or mean over organs is of them. Scores of
    the whole image, such as `ece`, are of all classes in any case. Changing this makes only scores, and what follows from them, stale."""


class CheapEnsembles(_Part):
    """Ensembles that one training gives. Models are named as in the UI (`anno1_init112233_foldall`); `all` stands for every model."""

    flips: tuple[str, ...] = ()
    """Models whose mirrored predictions are kept apart (test-time augmentation): `ensemble_flips-anno1-112233` is their mean."""
    snapshots: tuple[str, ...] = ()
    """Models whose snapshots are predicted (`training.snapshots`): `ensemble_snapshots-anno1-112233` is the mean of them and the model."""
    folds: bool = False
    """Whether the folds of each training label and seed are an ensemble, `ensemble_folds-anno1-112233`. It takes several folds and a test
    set."""


class Calibrated(_Part):
    """Predictors that are calibrated on the validation patients, who must be in no set that models learn from. Each entry names a model
    or an ensemble; a further predictor, such as `isotonic_ensemble_all`, is scored beside it.
    """

    temperature: tuple[str, ...] = ()
    """Predictors whose logits are divided by one temperature. It changes no label."""
    isotonic: tuple[str, ...] = ()
    """Predictors whose organs' probabilities are mapped by an isotonic curve to the annotators' mean response."""


class Conformal(_Part):
    """Intervals for organ volumes, from the errors on the validation patients."""

    of: tuple[str, ...] = ()
    """Predictors whose volumes get an interval; the general ensemble if none is named. They may be calibrated ones, which claim no
    level: their calibration has seen the validation patients."""
    level: Annotated[Number, Field(gt=0, lt=1)] = 0.9
    """Coverage that is asked for. n validation patients give at most n / (n + 1), and the report says so."""


class Statistics(_Part):
    """Tests between families of predictors."""

    alpha: Annotated[Number, Field(gt=0, lt=0.5)] = 0.05
    """Level of the tests; the bound of non-inferiority is one-sided, at 1 − alpha."""
    draws: Annotated[Whole, Field(ge=100, le=10_000_000)] = 9999
    """Draws of the randomisation within patients, and resamples of the patients for the intervals."""
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 20250515
    """Seed of the draws and of the resamples."""
    primary: dict[str, str] = Field(
        default_factory=lambda: {
            "accuracy": "dice",
            "calibration": "ece",
            "aleatoric": "ncc",
            "failure detection": "aurc",
        }
    )
    """Question → the one metric that answers it; every other metric is exploratory."""
    non_inferiority_margin: Annotated[Number, Field(gt=0, le=1000)] = 0.01
    """Largest loss in the accuracy metric that still counts as no harm. The default, one point of Dice, is about the
    gap between neighbours in the challenge's table (median gap 0.0105). It is fixed here, before any score is known."""
    margins: dict[str, Annotated[Number, Field(gt=0, le=1e9)]] = Field(default_factory=dict)
    """Further metric → largest loss in it that still counts as no harm, in its own unit. The margin of accuracy is
    `non_inferiority_margin`."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs to compare, each of families (`general`, `annotator`, `individual`, …) or predictors (`isotonic_ensemble_all`), the one that
    is claimed to be better first. Left out: the three pairs of general, annotator and individual, and each further predictor with the
    one that it is made from; ensembles of fused labels with the annotators' ensembles, models of fused labels and ensembles of folds
    with the individual models."""

    @field_validator("primary")
    @classmethod
    def _answers(cls, primary: dict[str, str]) -> dict[str, str]:
        _unique("", list(primary.values()), "a metric answers one question")
        if blank := [question for question, metric in primary.items() if not question.strip() or not metric.strip()]:
            raise ValueError(f"{blank} has no question or no metric")
        return primary


class Intake(_Part):
    """Tolerances of the intake's checks."""

    spacing_tolerance_mm: Annotated[Number, Field(gt=0, le=1)] = 1e-3
    """Difference by which the voxel sizes of scan and annotation may differ, mm."""
    origin_tolerance_mm: Annotated[Number, Field(gt=0, le=10)] = 1e-1
    """Distance by which the same voxel of scan and annotation may differ, mm."""
    label_tolerance: Annotated[Number, Field(gt=0, lt=0.5)] = 1e-2
    """Labels this close to an integer are rounded (label files with a scale slope)."""
    blank_annotation: Literal["not_annotated", "absent"] = "not_annotated"
    """What a label map without any organ means. `not_annotated`: the annotator has not annotated this patient, who then trains none of
    the annotator's models and is not scored against the annotator. `absent`: the patient has none of the organs, which counts. A
    label map that lacks only some of the organs always means that these are absent."""
    missing_annotation: Literal["not_annotated", "refused"] = "not_annotated"
    """What it means that an annotator's file of a patient is not there. `not_annotated`: the annotator has not annotated this patient, as
    with a blank label map. `refused`: the patient is refused until all files are there. A patient without any annotation always is."""
    largest_volume_gib: Annotated[float, Field(gt=0, le=1024)] = 4.0
    """Largest size that one NIfTI file may unpack to, GiB. A CT of 866 × 512 × 512 voxels takes 0.5 GiB as int16, 1.7 as float64."""


class Checks(_Part):
    """What the asset checks warn of. Changing these makes nothing stale but the report."""

    dice_floor: Annotated[Number, Field(ge=0, lt=1)] = 0.5
    """A trained model whose best moving average of the pseudo-Dice is lower is suspicious."""
    volume_ml: dict[str, tuple[Annotated[Number, Field(ge=0, le=1e6)], Annotated[Number, Field(gt=0, le=1e6)]]] = Field(
        default_factory=dict
    )
    """Organ → smallest and largest plausible volume of a prediction, ml. Without it, an organ may fill up to half of the scan."""


class Report(_Part):
    """How the report is written."""

    language: Literal["en", "fr"] = "en"
    """English or French."""
    published_table: Annotated[str, Field(max_length=200), AfterValidator(_plain_path)] = "published.csv"
    """Key, below the metrics prefix, of a table with the study's wide columns. Once it is uploaded, the report compares this run with it."""
    data_statement: Annotated[str, Field(max_length=4000)] = ""
    """Where the data can be had, under which licence, and who approved their use: printed in the report's methods as it is."""
    data_citation: Annotated[str, Field(max_length=4000)] = ""
    """BibTeX entry of the data, printed before those of methods and software."""

    @field_validator("published_table")
    @classmethod
    def _of_people(cls, name: str) -> str:
        if not name.endswith(".csv") or name == "metrics.csv":
            raise ValueError("allowed is a .csv file, and not metrics.csv, which the platform writes itself")
        return name


_Price = Annotated[Number, Field(ge=0, le=1e6)]


class Prices(_Part):
    """Unit prices of the cost table, in euros (the study's own, as of 2025-05-15)."""

    gpu_hour_eur: _Price = 0.50
    """One hour of a GPU, €."""
    cpu_hour_eur: _Price = 0.05
    """One hour of a CPU step, €."""
    storage_gb_month_eur: _Price = 0.024
    """One GB stored for a month, €."""
    egress_gb_eur: _Price = 0.09
    """One GB downloaded, €."""
    storage_days: Annotated[Number, Field(ge=0, le=36525)] = 7
    """Days that the artefacts are stored."""


class Study(_Part):
    """A whole study, validated. Made by `load_study`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)
    """Lower-case letters, digits and dashes."""
    title: Text
    """Title of the report."""
    synthetic: bool = False
    """Whether the patients are made up. Their scores are then never shown as comparable with the challenge's."""
    image: NiftiFile | None = "image.nii.gz"
    """NIfTI file with the CT in HU, in the patient's own folder, or with `{patient}` anywhere below the data prefix: short for one
    channel called `CT`. Left out where there are `channels`."""
    channels: Annotated[tuple[Channel, ...], Field(max_length=16)] = ()
    """In place of `image`: the images of a patient that a network sees together, in this order, if they are several or no CT. They are on
    the same voxels, as the annotations are; the first is the one that is shown."""
    annotators: tuple[Annotator, ...] = Field(min_length=1, max_length=50)
    """The experts, each with the file of their label map."""
    organs: dict[str, Values] = Field(min_length=1)
    """Organ → its value in the label files, 1 to 65535, or a list of values that are merged, such as those of both kidneys. Up to 64
    organs."""
    ignored_labels: Annotated[tuple[_Value, ...] | Literal["rest"], BeforeValidator(_ignored)] = ()
    """Values of the label files that are read as background, or `rest`: all that `organs` does not name. Any other value that `organs`
    does not name is refused."""
    patients: PatientIds = PatientIds()
    """How patients are called. Left out: any ids."""
    sets: dict[SetName, tuple[str, ...]]
    """Set → its patients. Ids of a prefix and a number may be written without prefix and zeros; quote those that begin with 0."""
    rest: Literal["test"] | None = None
    """What happens to patients whom no set names. `test`: they are predicted and scored. Left out: nothing is made of them. There is
    no such rule for training, because each upload would train every model again."""
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Group → its patients, such as those of one scanner or one hospital."""
    in_distribution_group: str | None = None
    """The group that the models were trained on; the other groups are out of distribution."""
    exclusions: dict[str, Text] = Field(default_factory=dict)
    """Patient → reason. An excluded patient appears in the cohort table and nowhere else."""
    seeds: tuple[Annotated[Whole, Field(ge=0, lt=2**32)], ...] = Field(min_length=1, max_length=1000)
    """Seeds of the initial weights; each annotator has one model per seed and fold."""
    folds: Annotated[tuple[Annotated[Fold, BeforeValidator(_fold)], ...], Field(min_length=1)] = ("all",)
    """nnU-Net's folds: `all`, or numbers of its cross-validation. Without a test set, the patients that a fold holds out are scored."""
    ensembles: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Ensemble → training labels whose models are its members. Left out: one ensemble per label with several models, and `all` for all
    annotators together. No two of them have the same members, so that a single annotator beside fusions has no `all`."""
    training_labels: Annotated[tuple[str, ...], Field(max_length=60)] = ()
    """Label maps to train on; each has one model per seed and fold. An entry is an annotator's name, or a fusion of all annotators:
    `majority`, `staple`, `random` (one annotator drawn for each training patch) or `soft` (the mean of their labels). Left out: each
    annotator."""
    cheap_ensembles: CheapEnsembles = CheapEnsembles()
    """Ensembles that one training gives."""
    calibrated: Calibrated = Calibrated()
    """Predictors that are calibrated after training."""
    conformal: Conformal = Conformal()
    """Intervals for organ volumes."""
    plans: Plans = Plans()
    """nnU-Net's plans; what is left out is nnU-Net's own choice."""
    training: Training = Training()
    """How each model is trained."""
    prediction: Prediction = Prediction()
    """How a model predicts a patient."""
    intake: Intake = Intake()
    """What is accepted at intake."""
    checks: Checks = Checks()
    """What the asset checks warn of."""
    evaluation: Evaluation = Evaluation()
    """How predictors are scored."""
    statistics: Statistics = Statistics()
    """How predictors are compared."""
    compare_with: dict[
        Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)],
        Annotated[str, AfterValidator(_plain_path)],
    ] = Field(default_factory=dict, max_length=10)
    """Other study → the prefix of its metrics in the same bucket, such as `curvas-medig/metrics`. Its predictors are compared with
    those of this study, paired by patient."""
    report: Report = Report()
    """How the report is written."""
    prices: Prices = Prices()
    """Unit prices of the cost table."""

    @model_validator(mode="before")
    @classmethod
    def _without_a_ct(cls, raw: Any) -> Any:
        """What is left out beside `channels` is another than with the one CT: no image, and no body that HU would show."""
        channels = raw.get("channels") if isinstance(raw, dict) else None
        if not isinstance(channels, list | tuple) or not channels:
            return raw
        raw = {"image": None, **raw}
        evaluation = raw.get("evaluation", {})
        if isinstance(evaluation, dict) and "region" not in evaluation and not any(map(_is_ct, channels)):
            raw["evaluation"] = {**evaluation, "region": "image"}
        return raw

    @field_validator("sets", "groups", mode="before")
    @classmethod
    def _whole_ids(cls, raw: Any, info: ValidationInfo) -> Any:
        """Ids become whole names, so that 1, '001' and 'UKCHLL001' agree everywhere."""
        ids = info.data.get("patients")
        if not isinstance(raw, dict) or ids is None:
            return raw
        problems: Problems = []
        whole = {}
        for name, members in raw.items():
            if isinstance(members, list | tuple):
                whole[name] = _normalised(ids, (str(info.field_name), name), members, problems)
            else:
                rule = "; the rule stands beside sets, as `rest: test`" if name == "rest" else ""
                problems.append(
                    ((str(info.field_name), name), f"= {members!r}: allowed is a list of patient ids{rule}")
                )
        _raise(problems)
        return whole

    @field_validator("exclusions", mode="before")
    @classmethod
    def _whole_excluded(cls, raw: Any, info: ValidationInfo) -> Any:
        ids = info.data.get("patients")
        if not isinstance(raw, dict) or ids is None:
            return raw
        problems: Problems = []
        names = _normalised(ids, ("exclusions",), list(raw), problems)
        _raise(problems)
        _unique("exclusions", names)
        return dict(zip(names, raw.values(), strict=True))

    @model_validator(mode="after")
    def _coherent(self, info: ValidationInfo) -> "Study":
        _raise([*self._problems(), *(self._strays() if info.context == FROM_FILE else ())])
        return self

    def _problems(self) -> Iterator["Problem"]:
        """Contradictions within the study, each with its field."""
        names = self.annotator_names
        yield from self._problems_of_channels()
        yield from _twice("annotators", [name.casefold() for name in names])
        yield from _twice("annotators.file", [below_data(file).casefold() for file in self.files])
        for file in self.files if not self.patients.has_form else ():
            if part := open_part(file):
                found = (
                    f"{part!r}: where an id ends there, only the form of ids tells; give pattern, or prefix and digits"
                )
                yield ("patients",), found
        for field, values in (("seeds", self.seeds), ("folds", self.folds), ("training.sets", self.training.sets)):
            yield from _twice(field, values)
        yield from self._problems_of_values()
        yield from _twice("organs", [organ.casefold() for organ in self.organs])
        for organ in self.organs:
            if not KEY.fullmatch(organ) or organ.lower() in RESERVED or organ.isdigit() or len(organ) > 60:
                allowed = f"letters, digits and dashes, no mere number, and not one of {', '.join(RESERVED)}"
                yield ("organs", organ), f"{organ!r} is not a valid organ name: allowed are {allowed}"
        yield from _twice("sets", [one for members in self.sets.values() for one in members])
        yield from self._problems_of_case()
        yield from _twice("groups", [one for members in self.groups.values() for one in members])
        for group, members in self.groups.items():
            if not group.strip() or not members:
                yield (
                    ("groups", group),
                    f"{group!r} has no {'patients' if group.strip() else 'name'}: fill it, or leave it out",
                )
        if self.in_distribution_group is not None and self.in_distribution_group not in self.groups:
            found = f"{self.in_distribution_group!r}, allowed is one of {sorted(self.groups)}"
            yield ("in_distribution_group",), found
        if unknown_organs := sorted(set(self.checks.volume_ml) - set(self.organs)):
            yield ("checks", "volume_ml"), f"{unknown_organs}, allowed are {sorted(self.organs)}"
        for organ, (low, high) in self.checks.volume_ml.items():
            if low >= high:
                yield (
                    ("checks", "volume_ml", organ),
                    f"[{low:g}, {high:g}]: give the smallest volume first, then a larger one",
                )
        if self.name in self.compare_with:
            yield ("compare_with", self.name), "it is this study: name others"
        yield from _twice("evaluation.organs", self.evaluation.organs)
        if unknown_organs := [organ for organ in self.evaluation.organs if organ not in self.organs]:
            yield ("evaluation", "organs"), f"{unknown_organs}, allowed are {sorted(self.organs)}"
        yield from self._problems_of_vessels()
        yield from self._problems_of_labels()
        yield from self._problems_of_ensembles()
        yield from self._problems_of_sets()
        if len(set(map(str, self.models))) == len(self.models):
            yield from self._problems_of_cheap_ensembles()
            yield from self._problems_of_fits()

    def _problems_of_case(self) -> Iterator["Problem"]:
        """Ids that differ only in case would share files on the disks of many machines."""
        spelt: dict[str, set[str]] = {}
        for one in (*(one for members in self.sets.values() for one in members), *self.exclusions):
            spelt.setdefault(one.casefold(), set()).add(one)
        for several in spelt.values():
            if len(several) > 1:
                yield ("sets",), f"{sorted(several)} differ only in upper and lower case: rename one of them"

    def _problems_of_channels(self) -> Iterator["Problem"]:
        if self.channels and self.image is not None:
            yield ("image",), f"= {self.image!r}: the images are those of channels; leave out one of the two"
        if not self.channels and self.image is None:
            yield ("image",), "it is missing: name the CT's file, or give channels"
        yield from _twice("channels", [channel.name.casefold() for channel in self.channels])
        if self.evaluation.region == "body" and not any(channel.is_ct for channel in self.images) and self.images:
            found = "= 'body': it is where a CT is above 0 HU, and no channel is a CT; write image, or leave it out"
            yield ("evaluation", "region"), found

    def _problems_of_values(self) -> Iterator["Problem"]:
        """Each value of the label files stands for one organ, or is ignored."""
        if len(self.organs) > MOST_ORGANS:
            yield ("organs",), f"{len(self.organs)} organs, allowed are up to {MOST_ORGANS}"
        taken: dict[int, str] = {}
        for organ, values in self.organs.items():
            several = (values,) if isinstance(values, int) else values
            yield from _twice(f"organs.{organ}", several)
            for value in dict.fromkeys(several):
                if taken.setdefault(value, organ) != organ:
                    yield ("organs", organ), f"the value {value} is that of {taken[value]} already: it has one organ"
        if self.ignored_labels != "rest":
            yield from _twice("ignored_labels", self.ignored_labels)
            for value in dict.fromkeys(self.ignored_labels):
                if value in taken:
                    found = f"the value {value} is that of {taken[value]}: leave it out here, or there"
                    yield ("ignored_labels",), found

    def _problems_of_vessels(self) -> Iterator["Problem"]:
        where, named = ("evaluation", "vascular"), self.evaluation.vascular
        if bool(named.tumour) != bool(named.vessels):
            missing = "vessels" if named.tumour else "tumour"
            yield (*where, missing), "it is missing: name the tumour and its vessels, or leave out both"
        if named.tumour and named.tumour not in self.organs:
            yield (*where, "tumour"), f"{named.tumour!r}, allowed is one of {sorted(self.organs)}"
        if unknown := [one for one in named.vessels if one not in self.organs]:
            yield (*where, "vessels"), f"{unknown}, allowed are {sorted(self.organs)}"
        if named.tumour in named.vessels:
            yield (*where, "vessels"), f"{named.tumour!r} is the tumour: a vessel is another organ"
        yield from _twice("evaluation.vascular.vessels", named.vessels)

    def _problems_of_labels(self) -> Iterator["Problem"]:
        names = self.annotator_names
        yield from _twice("training_labels", self.training_labels)
        if unknown := [label for label in self.training_labels if label not in (*names, *FUSIONS)]:
            yield ("training_labels",), f"{unknown}, allowed are {[*names, *FUSIONS]}"
        fused = [label for label in self.training_labels if label in FUSIONS]
        if taken := [name for name in names if name in fused]:
            yield ("training_labels",), f"{taken} names an annotator and a way to fuse annotators; rename the annotator"
        if fused and len(names) < 2:
            yield ("training_labels",), f"{fused} fuses several annotators, and there is one"

    def _problems_of_cheap_ensembles(self) -> Iterator["Problem"]:
        for field in ("flips", "snapshots"):
            asked: tuple[str, ...] = getattr(self.cheap_ensembles, field)
            where, models = ("cheap_ensembles", field), [str(model) for model in self.models]
            yield from _twice(f"cheap_ensembles.{field}", asked)
            if unknown := [name for name in asked if name not in (*models, "all")]:
                yield where, f"{unknown}, allowed are all and {models}"
            if "all" in asked and len(asked) > 1:
                yield where, f"{list(asked)}: `all` stands alone"
        if self.cheap_ensembles.flips and not self.training.mirroring:
            found = "nnU-Net mirrors a prediction only as the training was mirrored; set training.mirroring to true"
            yield ("cheap_ensembles", "flips"), found
        if self.cheap_ensembles.snapshots and not self.training.snapshots:
            found = "models keep no snapshots; set training.snapshots to how many each keeps"
            yield ("cheap_ensembles", "snapshots"), found
        if self.training.snapshots >= self.training.epochs:
            found = f"= {self.training.snapshots}: it takes more epochs than that, and training.epochs is {self.training.epochs}"
            yield ("training", "snapshots"), found
        if self.cheap_ensembles.folds and (self.cross_validated or sum(fold != "all" for fold in self.folds) < 2):
            found = "it takes two or more of the folds 0 to 4, and a test set that all of them predict"
            yield ("cheap_ensembles", "folds"), found
        yield from _twice("cheap_ensembles", [name.casefold() for name in (*self._label_ensembles, *self._cheap)])

    def _problems_of_fits(self) -> Iterator["Problem"]:
        fitted: list[tuple[tuple[str, ...], tuple[str, ...], list[str]]] = []
        plain = [str(one) for one in (*self.models, *self.ensemble_ids)]
        for method in CALIBRATIONS:
            fitted.append((("calibrated", method), getattr(self.calibrated, method), plain))
        fitted.append((("conformal", "of"), self.conformal.of, self.predictors))
        for where, asked, allowed in fitted:
            yield from _twice(".".join(where), asked)
            if unknown := [name for name in asked if name not in allowed]:
                yield where, f"{unknown}, allowed are {allowed}"
            if asked and not self.fitting_patients:
                reason = "models learn from the set validation" if "validation" in self.training.sets else "it is empty"
                found = f"it is fitted on the patients of the set validation, and {reason}"
                yield where, f"{found}: name patients in sets.validation, and leave it out of training.sets"
        yield from self._problems_of_calibrated_folds()
        for first, second in self.statistics.comparisons:
            for one in (first, second):
                if one not in (*self.families, *self.predictors):
                    allowed = f"the families {list(self.families)}, and the predictors {self.predictors}"
                    yield ("statistics", "comparisons"), f"{one!r}, allowed are {allowed}"
            if first == second:
                yield ("statistics", "comparisons"), f"[{first}, {second}] compares one with itself"
        if (accuracy := self.statistics.primary.get("accuracy", "dice")) in self.statistics.margins:
            found = f"{accuracy} is the metric of accuracy; its margin is statistics.non_inferiority_margin"
            yield ("statistics", "margins", accuracy), found

    def _problems_of_calibrated_folds(self) -> Iterator["Problem"]:
        """Under cross-validation a scored patient has the members of one fold, and a validation patient those of all folds."""
        for method in CALIBRATIONS if self.cross_validated else ():
            asked: tuple[str, ...] = getattr(self.calibrated, method)
            members = {str(one): self.members(one) for one in self.ensemble_ids if str(one) in asked}
            if mixed := [name for name, found in members.items() if len({member.fold for member in found}) > 1]:
                found = (
                    f"{mixed} would be fitted to models of all folds together, because no fold holds out the set validation, and "
                    "applied to those of one fold: calibrate models, or name a test set"
                )
                yield ("calibrated", method), found

    def _problems_of_ensembles(self) -> Iterator["Problem"]:
        names, seen = self.label_names, {}
        for ensemble, members in self.ensembles.items():
            where = ("ensembles", ensemble)
            if not KEY.fullmatch(ensemble) or len(ensemble) > 60:
                yield where, f"{ensemble!r} is not letters, digits and dashes"
            unknown = sorted(set(members) - set(names))
            if unknown or not members:
                yield where, f"{unknown or 'no member'}, allowed are {names}"
            yield from _twice(f"ensembles.{ensemble}", members)
            annotators = self.annotator_names
            if ensemble == "all" and not unknown and set(members) != set(annotators):
                yield (
                    where,
                    f"{list(members)}: the ensemble called all has every annotator ({annotators}); give it another name",
                )
            if other := seen.setdefault(frozenset(members), ensemble) != ensemble and seen[frozenset(members)]:
                yield (
                    where,
                    f"its members are those of {other}, so that every patient would count twice; keep one of the two",
                )
        yield from _twice("ensembles", [name.casefold() for name in self.ensembles])

    def _problems_of_sets(self) -> Iterator["Problem"]:
        for name in self.training.sets:
            if not self.sets.get(name):
                yield ("training", "sets"), f"{name!r}, and sets.{name} names no patient: fill it, or leave it out here"
        count = len(self.training_patients())
        if not count:
            yield ("sets",), f"no patient to train on in {list(self.training.sets)}, or all are excluded; name some"
            return
        beyond = [fold for fold in self.folds if fold != "all" and fold >= self.splits]
        if beyond:
            allowed = "all" if not self.splits else f"all and 0 … {self.splits - 1}"
            made = f"{count} training patients allow {self.splits} folds; for a larger number nnU-Net would make a random split"
            yield ("folds",), f"{beyond}, allowed are {allowed}: {made}"
        if self.has_test_set:
            return
        found = "every patient of the test set is excluded" if self.sets.get("test") else "there is no test set"
        if "all" in self.folds:
            remedy = (
                f"name test patients, or cross-validate (folds: {list(range(self.splits))})"
                if count > 1
                else "name some"
            )
            yield (
                ("sets",),
                f"{found}, and a model of fold all has seen every training patient: nobody is left to score; {remedy}",
            )
        elif count < 3:
            yield ("sets",), f"{found}, and cross-validation takes 3 training patients or more, not {count}"

    def _strays(self) -> Iterator["Problem"]:
        """Patients whom the file names although no set contains them: usually a mistake in writing."""
        named = {one for members in self.sets.values() for one in members}
        for field, members in (
            *((("groups", name), m) for name, m in self.groups.items()),
            (("exclusions",), self.exclusions),
        ):
            if self.rest is None and (strays := [one for one in members if one not in named]):
                yield field, f"{strays} are in none of the sets: put them into a set, or leave them out here"
        if self.statistics.primary != Statistics().primary or self.statistics.margins:
            from curvas_assets.statistics.directions import directions_in  # it reads this module

            sides = directions_in(self.evaluation.reference, vessels=bool(self.evaluation.vascular.vessels))
            better = {metric for metric, side in sides.items() if side}
            named = [(("primary", question), metric) for question, metric in self.statistics.primary.items()]
            for where, metric in [*named, *((("margins", metric), metric) for metric in self.statistics.margins)]:
                if metric not in better:
                    found = f"{metric!r} is not a metric with a better side; allowed are {sorted(better)}"
                    yield ("statistics", *where), found

    # Images ----------------------------------------------------------------------------------------------------------

    @cached_property
    def images(self) -> tuple[Channel, ...]:
        """The images of a patient that a network sees together, in the order of its input: `channels`, or the CT that `image` names."""
        if self.channels or self.image is None:
            return self.channels
        return (Channel(name="CT", file=self.image, normalisation="ct"),)

    @property
    def image_files(self) -> list[str]:
        """The files of `images`."""
        return [channel.file for channel in self.images]

    # Names -----------------------------------------------------------------------------------------------------------

    @property
    def files(self) -> tuple[str, ...]:
        """The files of a patient as the study names them: the scan's channels, then the label map of each annotator."""
        return (*self.image_files, *(annotator.file for annotator in self.annotators))

    @property
    def annotator_names(self) -> list[str]:
        return [a.name for a in self.annotators]

    @cached_property
    def label_values(self) -> LabelValues:
        """The values of label files and the classes they stand for: every reader and writer of such a file goes by it."""
        values = {organ: (of,) if isinstance(of, int) else of for organ, of in self.organs.items()}
        return LabelValues(dict(sorted(values.items(), key=lambda item: min(item[1]))), self.ignored_labels)

    @cached_property
    def labels(self) -> dict[str, int]:
        """Organ → class, 1 … n without gaps, in the order of the smallest value in the files. Everything but the files of people has
        these: label maps in memory, nnU-Net's datasets, probabilities, scores.
        """
        classes = {organ: label for label, organ in enumerate(self.label_values.organs, 1)}
        return {organ: classes[organ] for organ in self.organs}

    @property
    def class_names(self) -> list[str]:
        """`background`, then the organs in the order of their classes: the first axis of a softmax."""
        return ["background", *self.label_values.organs]

    @property
    def scored_organs(self) -> list[str]:
        """The organs that are scored, in the order of their classes."""
        return [organ for organ in self.class_names[1:] if organ in (self.evaluation.organs or self.organs)]

    @property
    def label_names(self) -> list[str]:
        """What models are trained on: annotators, and fusions of them."""
        return list(self.training_labels) or self.annotator_names

    def fusion(self, label: str) -> Fusion | None:
        """How a training label is made of several annotators' label maps; None if it is one annotator's."""
        return None if label in self.annotator_names else next((rule for rule in FUSIONS if rule == label), None)

    @property
    def models(self) -> list[ModelId]:
        """The models that are trained."""
        return [ModelId(label, seed, fold) for label in self.label_names for seed in self.seeds for fold in self.folds]

    @property
    def variants(self) -> list[ModelId]:
        """Mirrored predictions and snapshots of models that are kept apart: members of cheap ensembles, not scored themselves."""
        return [member for members in self._cheap.values() for member in members if member.variant]

    @property
    def ensemble_ids(self) -> list[EnsembleId]:
        return [EnsembleId(name) for name in self._members]

    @property
    def calibrated_ids(self) -> list[CalibratedId]:
        """Predictors that are calibrated from another."""
        return [
            CalibratedId(method, predictor_of(base))  # type: ignore[arg-type] - a base is never calibrated itself
            for method in CALIBRATIONS
            for base in getattr(self.calibrated, method)
        ]

    @property
    def fitted_predictors(self) -> list[str]:
        """Models and ensembles that are calibrated, from their predictions of the validation patients."""
        return list(dict.fromkeys(str(one.base) for one in self.calibrated_ids))

    @property
    def interval_predictors(self) -> list[str]:
        """Predictors whose organ volumes get an interval: those that are named, or else the general ensemble. None without patients
        to fit on.
        """
        general = [one for one in self.predictors if self.family(one) == "general"]
        return (list(self.conformal.of) or general) if self.fitting_patients else []

    @property
    def _label_ensembles(self) -> dict[str, tuple[str, ...]]:
        """Ensemble → training labels. Those that the study names; otherwise `all` of the annotators, if they are several or
        everybody who is trained on, and one per label that has several models and is not `all` already.
        """
        if self.ensembles:
            return self.ensembles
        names, annotators = self.label_names, tuple(name for name in self.label_names if not self.fusion(name))
        together = {"all": annotators} if len(annotators) > 1 or list(annotators) == names else {}
        models_of_one = len(self.seeds) * (1 if self.cross_validated else len(self.folds))
        alone = {name: (name,) for name in names if models_of_one > 1 and (name,) not in together.values()}
        return {**alone, **together}

    @cached_property
    def _cheap(self) -> dict[str, tuple[ModelId, ...]]:
        """Ensemble of one training → its members: mirrored predictions, snapshots beside the model, or folds."""
        cheap, found = self.cheap_ensembles, dict[str, tuple[ModelId, ...]]()
        for kind, asked in (("flips", cheap.flips), ("snapshots", cheap.snapshots)):
            for model in self.models:
                if "all" not in asked and str(model) not in asked:
                    continue
                fold = "" if model.fold == "all" else f"-fold{model.fold}"
                if kind == "flips":
                    variants = [f"{FLIP}{number}" for number in range(FLIPS[self.plans.configuration])]
                else:
                    variants = ["", *(f"{SNAPSHOT}{number}" for number in range(1, self.training.snapshots + 1))]
                members = tuple(ModelId(model.annotator, model.seed, model.fold, variant) for variant in variants)
                found[f"{kind}-{model.annotator}-{model.seed}{fold}"] = members
        for label in self.label_names if cheap.folds else ():
            for seed in self.seeds:
                members = tuple(ModelId(label, seed, fold) for fold in self.folds if fold != "all")
                found[f"folds-{label}-{seed}"] = members
        return found

    @cached_property
    def _members(self) -> dict[str, tuple[ModelId, ...]]:
        """Ensemble → all its members."""
        of_labels = {
            name: tuple(model for model in self.models if model.annotator in labels)
            for name, labels in self._label_ensembles.items()
        }
        return {**of_labels, **self._cheap}

    @property
    def predictors(self) -> list[str]:
        """Everything that is scored: all models, then all ensembles, then what is calibrated from them."""
        return [str(one) for one in (*self.models, *self.ensemble_ids, *self.calibrated_ids)]

    def members(self, ensemble: EnsembleId | str, patient: str | None = None) -> list[ModelId]:
        """The models whose mean an ensemble is, or variants of models. With a patient: only those that predict this patient.

        Raises:
            StudyError: the study has no such ensemble.
        """
        name = ensemble.name if isinstance(ensemble, EnsembleId) else EnsembleId.parse(ensemble).name
        if name not in self._members:
            raise StudyError(
                "finding an ensemble's members",
                self.name,
                f"no ensemble {name!r}",
                f"Use one of {[str(e) for e in self.ensemble_ids]}.",
            )
        members = self._members[name]
        if patient is None or not self.cross_validated:
            return list(members)
        models = set(self.models_of(patient))
        return [member for member in members if member.trained in models]

    def predicted_by(self, predictor: str) -> Predicted:
        """What gives a predictor's probabilities: a model, a variant of one, an ensemble, or a calibration of another."""
        match predictor_of(predictor):
            case ModelId() as model:
                return "variant" if model.variant else "model"
            case EnsembleId():
                return "ensemble"
            case CalibratedId():
                return "calibrated"

    def made_from(self, predictor: str) -> str | None:
        """The predictor that a further one is compared with: what is calibrated, or the model of a cheap ensemble.

        None for models, ensembles of several trainings, and folds.
        """
        one = predictor_of(predictor)
        if isinstance(one, CalibratedId):
            return str(one.base)
        if isinstance(one, EnsembleId) and one.name in self._cheap and not one.name.startswith("folds-"):
            return str(self._cheap[one.name][0].trained)
        return None

    def family(self, predictor: str) -> Family:
        """`general` for an ensemble over every annotator, `annotator` for a smaller one, `individual` for a model; `fused` for
        a model that learned from several annotators at once, `fused ensemble` if such models are members; `flips`,
        `snapshots` and `folds` for the ensembles of one training; `calibrated` for what is calibrated.
        """
        one = predictor_of(predictor)
        if isinstance(one, CalibratedId):
            return "calibrated"
        if isinstance(one, ModelId):
            return "fused" if self.fusion(one.annotator) else "individual"
        if one.name in self._label_ensembles:
            labels = set(self._label_ensembles[one.name])
            if labels - set(self.annotator_names):
                return "fused ensemble"
            return "general" if labels == set(self.annotator_names) else "annotator"
        self.members(one)
        return one.name.partition("-")[0]  # type: ignore[return-value] - as `_cheap` names them

    @property
    def families(self) -> tuple[str, ...]:
        """The families that the study's predictors are of, in their order."""
        held = {self.family(predictor) for predictor in self.predictors}
        return tuple(family for family in get_args(Family) if family in held)

    # Patients --------------------------------------------------------------------------------------------------------

    def patient_set(self, patient: str) -> SetName | None:
        """The set of a patient. If no set names the patient: the set that the rule `rest` gives, or None."""
        return self._named.get(patient) or (self.rest if self.patients.has(patient) else None)

    @cached_property
    def _named(self) -> dict[str, SetName]:
        return {patient: name for name, members in self.sets.items() for patient in members}

    def patient_group(self, patient: str) -> str | None:
        return next((name for name, members in self.groups.items() if patient in members), None)

    def is_test_patient(self, patient: str) -> bool:
        return self.patient_set(patient) == "test" and patient not in self.exclusions

    @property
    def has_test_set(self) -> bool:
        """Whether some patients are scored that no model trains on, by name or by the rule `rest`."""
        return self.rest == "test" or any(one not in self.exclusions for one in self.sets.get("test", ()))

    @property
    def cross_validated(self) -> bool:
        """Without a test set, each training patient is scored by the models of the fold that held it out."""
        return not self.has_test_set and "all" not in self.folds

    def is_scored(self, patient: str) -> bool:
        """Whether a patient is predicted and scored: in the test set, by name or by rule, or held out by a fold."""
        return self._fold_of.get(patient) in self.folds if self.cross_validated else self.is_test_patient(patient)

    def scored_patients(self, known: Iterable[str] = ()) -> list[str]:
        """Patients that are predicted and scored, exclusions left out: the test set, or those that a fold holds out.

        Args:
            known: patients there are; those whom the rule `rest` makes test patients are added.
        """
        named = self._fold_of if self.cross_validated else self.sets.get("test", ())
        return sorted({one for one in (*named, *known) if self.is_scored(one)})

    @cached_property
    def fitting_patients(self) -> list[str]:
        """Patients of the set validation whom no model learns from, exclusions left out: what is fitted after training, such as
        a calibration, is fitted on them, and on no patient of the test set.
        """
        if "validation" in self.training.sets:
            return []
        return sorted(one for one in self.sets.get("validation", ()) if one not in self.exclusions)

    def is_predicted(self, patient: str) -> bool:
        """Whether models predict a patient: to be scored, or to fit on."""
        return self.is_scored(patient) or patient in self.fitting_patients

    def predicted_patients(self, known: Iterable[str] = ()) -> list[str]:
        """Patients whom models predict: those that are scored for the study, and the validation patients.

        Args:
            known: as for `scored_patients`.
        """
        return sorted({*self.scored_patients(known), *self.fitting_patients})

    def role(self, patient: str) -> str:
        """What the study does with a patient; if it does nothing, also what to do about that."""
        if patient in self.exclusions:
            return f"excluded ({self.exclusions[patient]})"
        of = self.patient_set(patient)
        if of is None:
            return (
                "in no set, so nothing is made of it; name it in sets of the study file, or write `rest: test` there, "
                "then reload the code location"
            )
        trains = f"in the set {of}: models learn from it"
        if self.is_scored(patient):
            return (
                f"{trains}, except those of the fold that holds it out, which score it"
                if self.cross_validated
                else "test: predicted and scored"
            )
        if patient in self.fitting_patients:
            return f"{of}: predicted; what is calibrated is fitted on it, and it is not in the study's scores"
        return (
            trains
            if of in self.training.sets
            else f"in the set {of}, which training.sets leaves out: checked at intake and not used"
        )

    def models_of(self, patient: str) -> list[ModelId]:
        """The models that predict a patient: all, or under cross-validation those of the fold that held it out."""
        if not self.cross_validated or patient in self.fitting_patients:
            return self.models
        return [model for model in self.models if model.fold == self._fold_of.get(patient)]

    def predictors_of(self, patient: str) -> list[str]:
        """Everything that is scored of a patient: its models, ensembles of them, and what is calibrated from these."""
        models = [str(m) for m in self.models_of(patient)]
        plain = models + [str(e) for e in self.ensembles_of(patient)]
        return plain + [str(one) for one in self.calibrated_ids if str(one.base) in plain]

    def ensembles_of(self, patient: str) -> list[EnsembleId]:
        """The ensembles of which a patient has members: all, unless under cross-validation."""
        return [e for e in self.ensemble_ids if not self.cross_validated or self.members(e, patient)]

    def variants_of(self, patient: str) -> list[ModelId]:
        """The variants of models that predict a patient."""
        models = set(self.models_of(patient))
        return [variant for variant in self.variants if variant.trained in models]

    def scored_by(self, model: ModelId) -> set[str]:
        """The patients whom a model predicts for scoring; it must not have learned from any of them."""
        return {patient for patient in self.scored_patients() if model in self.models_of(patient)}

    def held_out(self, fold: int) -> list[str]:
        """The training patients that a fold of the cross-validation does not train on: nnU-Net's own folds."""
        return sorted(one for one, of in self._fold_of.items() if of == fold)

    @cached_property
    def _fold_of(self) -> dict[str, int]:
        """Training patient → the one fold that holds it out (scikit-learn's shuffled KFold, as nnU-Net calls it)."""
        patients = self.training_patients()
        order = np.arange(len(patients))
        np.random.RandomState(SPLIT_SEED).shuffle(order)
        parts = np.array_split(order, self.splits) if self.splits else ()
        return {patients[index]: fold for fold, part in enumerate(parts) for index in part}

    def training_patients(self) -> list[str]:
        """Patients the models learn from, exclusions left out, in order."""
        return sorted(
            one for name in self.training.sets for one in self.sets.get(name, ()) if one not in self.exclusions
        )

    @property
    def least_cases(self) -> int:
        """Training patients that a dataset takes, so that each of the study's folds has one to hold out and one to learn from."""
        return max(1 if fold == "all" else max(2, int(fold) + 1) for fold in self.folds)

    @property
    def splits(self) -> int:
        """Folds that cross-validation has: five, or one for each training patient when they are fewer."""
        count = len(self.training_patients())
        return min(FOLDS, count) if count > 1 else 0

    def fingerprint(self, *parts: str) -> str:
        """Twelve hexadecimal digits that change when a named part of the study does (all of it, if none is named).

        Args:
            parts: names of fields; `training_patients`, `scored_patients`, `members` (ensemble → models) and
                `held_out` (cross-validated patient → fold) stand for what they return.
        """
        whole: dict[str, Any] = {
            **self.model_dump(mode="json"),
            "training_patients": self.training_patients(),
            "scored_patients": self.scored_patients(),
            "sets": {**self.sets, **({"rest": self.rest} if self.rest else {})},
            "members": {str(e): [str(m) for m in self.members(e)] for e in self.ensemble_ids},
            "fitting_patients": self.fitting_patients,
            "held_out": self._fold_of if self.cross_validated else {},
        }
        del whole["rest"]  # hashed with the sets, and only if given: studies without the rule keep their fingerprint
        del whole["training"]["loader_workers"]  # batches do not depend on it
        for part, field in LATER_FIELDS:  # as with the rule: a study without them keeps its fingerprints
            held = whole[part] if field else whole
            if held[field or part] in UNSAID:
                del held[field or part]
        if not parts:
            del whole["fitting_patients"]  # the sets are hashed
        chosen = {part: whole[part] for part in parts if part in whole} if parts else whole
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


LATER_FIELDS = (
    ("training", "snapshots"),
    ("evaluation", "reference"),
    ("evaluation", "vascular"),
    ("evaluation", "organs"),
    ("statistics", "comparisons"),
    ("statistics", "margins"),
    ("report", "data_statement"),
    ("report", "data_citation"),
    ("patients", "pattern"),
    ("intake", "missing_annotation"),
    ("training_labels", ""),
    ("ignored_labels", ""),
    ("cheap_ensembles", ""),
    ("calibrated", ""),
    ("conformal", ""),
    ("compare_with", ""),
    ("channels", ""),
)
"""Fields that studies of earlier versions did not have: part, and field within it. They are hashed only if they are given."""
UNSAID = (
    0,
    "",
    None,
    "consensus",
    "not_annotated",
    [],
    {},
    *(part().model_dump(mode="json") for part in (CheapEnsembles, Calibrated, Conformal, Vascular)),
)
"""Their values if they are not given."""


def built_in_studies() -> list[str]:
    """Names that `load_study` knows without a path."""
    return sorted(
        f.name.removesuffix(".yaml")
        for f in resources.files("curvas_assets.studies").iterdir()
        if f.name.endswith(".yaml")
    )


def load_study(name_or_path: "str | Path | Study") -> Study:
    """Read and validate a study.

    Args:
        name_or_path: a built-in name (one of `built_in_studies`) or the path of a YAML file. A study is returned as it is.

    Raises:
        StudyError: not found, not YAML, or fields have values that are not allowed; names each with its line, value and
            what is allowed.
    """
    if isinstance(name_or_path, Study):
        return name_or_path
    source = str(name_or_path)
    path = as_path(name_or_path, attempted="loading the study", subject="the study", error=StudyError)
    if source in built_in_studies():
        path = Path(str(resources.files("curvas_assets.studies") / f"{source}.yaml"))
    file = read_study_file(path, source, f"Set CURVAS_STUDY to a YAML file or one of {built_in_studies()}.")
    try:
        return Study.model_validate(file.fields, context=FROM_FILE)
    except ValidationError as error:
        raise StudyError(
            "loading the study",
            source,
            "; ".join(f"{f'line {line}: ' if line else ''}{told}" for line, told in _explained(error, file)),
            "Correct these fields; curvas_assets/studies/ has complete examples.",
        ) from error


def problems_in(file: StudyFile) -> list[tuple[int | None, str]]:
    """Everything for which `load_study` would refuse a file: its line, if it has one, and the field with what is wrong.

    Contradictions between fields are looked for only where each field alone is as it should be.
    """
    try:
        Study.model_validate(file.fields, context=FROM_FILE)
    except ValidationError as error:
        return sorted(_explained(error, file), key=lambda told: told[0] or 0)
    return []


def _explained(error: ValidationError, file: StudyFile) -> list[tuple[int | None, str]]:
    return [told for item in _causes(error.errors()) for told in _explain(item, file)]


FROM_FILE = "from a file"
Problem = tuple[tuple[str, ...], str]
"""Where in the study, and what is wrong there."""
Problems = list[Problem]


class _Incoherent(ValueError):
    """Several problems at once."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        super().__init__("; ".join(_sentence(*problem) for problem in problems))


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        raise _Incoherent(problems)


def _sentence(where: tuple[str, ...], what: str) -> str:
    field = ".".join(where)
    return f"{field} {what}" if what.startswith("=") else f"{field}: {what}"


def _causes(items: Sequence[Any]) -> list[Any]:
    """The errors, except those of lists that are too short only because their wrong entries were left out."""
    places = [tuple(item["loc"]) for item in items]
    return [
        item
        for item, place in zip(items, places, strict=True)
        if item["type"] != "too_short" or not any(len(p) > len(place) and p[: len(place)] == place for p in places)
    ]


def _explain(item: Any, file: StudyFile) -> Iterator[tuple[int | None, str]]:
    """One pydantic error as its line, and field, value found and what is allowed."""
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, _Incoherent):
        yield from ((file.line(where), _sentence(where, what)) for where, what in cause.problems)
        return
    location = [part for part in item["loc"] if part != "[key]"]
    field = ".".join(str(part) for part in location)
    message = item["msg"].removeprefix("Value error, ")
    line = file.line(location)
    if item["type"] == "missing":
        yield line, f"{field} is missing"
    elif item["type"] == "extra_forbidden":
        yield line, f"{field} = {item['input']!r:.80} is not a field (allowed: {', '.join(_siblings(location))})"
    elif item["type"] == "tuple_type":
        yield line, f"{field} = {item['input']!r:.80}: allowed is a list, such as [{item['input'] or 'a, b'}]"
    else:
        value = f" = {item['input']!r:.80}" if field and not isinstance(item["input"], dict | BaseModel) else ""
        yield (line, f"{field}{value}: {message}") if field else (None, message)


def _siblings(location: Iterable[Any]) -> list[str]:
    """Fields allowed beside an unknown one."""
    model: Any = Study
    for part in list(location)[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        parts = [
            one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, BaseModel)
        ]
        model = parts[0] if parts else Annotator
    return sorted(model.model_fields)


def _twice(field: str, values: Iterable[Any]) -> Iterator[Problem]:
    seen: set[Any] = set()
    twice = [value for value in values if value in seen or seen.add(value)]
    if twice:
        yield tuple(field.split(".")), f"{twice} may appear only once"


def _unique(field: str, values: Iterable[Any], why: str = "") -> None:
    for where, what in _twice(field, values):
        raise _Incoherent([(where, what)]) if field else ValueError(f"{what}: {why}")


def _normalised(ids: PatientIds, where: tuple[Any, ...], names: Iterable[Any], problems: Problems) -> list[str]:
    whole: list[str] = []
    for name in names:
        try:
            if isinstance(name, bool | float) or not isinstance(name, str | int):
                raise StudyError("reading a patient's id", repr(name), "it is not an id", "Quote it.")
            whole.append(ids.normalise(name))
        except StudyError as error:
            problems.append((tuple(map(str, where)), f"{error.subject} {error.found}"))
    return whole
