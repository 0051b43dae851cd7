"""The study as configuration: what is annotated, by whom, which models are trained, how they are judged.

`load_study` reads a YAML file into a validated, immutable `Study`. Every name used as a partition key (patient, model,
ensemble) is made and parsed here and nowhere else. No data is read here, and nothing of Dagster is known.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from curvas_assets.errors import StudyError
from curvas_assets.inputs import as_path

Fold = Literal["all", 0, 1, 2, 3, 4]
FOLDS = 5
"""nnU-Net's cross-validation."""
SetName = Literal["train", "validation", "test"]
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
"""Annotator and organ names: no comma, `|` or underscore, which partition keys use as separators."""


@dataclass(frozen=True, order=True)
class ModelId:
    """One trained model: annotator × seed × fold, written `anno1_init112233_foldall`."""

    annotator: str
    seed: int
    fold: Fold

    def __str__(self) -> str:
        return f"{self.annotator}_init{self.seed}_fold{self.fold}"

    @classmethod
    def parse(cls, name: str) -> "ModelId":
        """The model of a name such as `anno1_init112233_foldall`; a StudyError if it is not one."""
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9-]*)_init(\d+)_fold(all|[0-4])", name)
        if match is None:
            raise StudyError(
                "parsing a model name",
                repr(name),
                "it is not <annotator>_init<seed>_fold<all|0-4>",
                "Use a name such as anno1_init112233_foldall.",
            )
        annotator, seed, fold = match.groups()
        return cls(annotator, int(seed), "all" if fold == "all" else int(fold))  # type: ignore[arg-type]

    @classmethod
    def of(cls, model: "ModelId | str") -> "ModelId":
        """A model as it is, or by its name; a StudyError if it is neither."""
        return model if isinstance(model, cls) else cls.parse(str(model))


@dataclass(frozen=True, order=True)
class EnsembleId:
    """An ensemble: the models of one annotator, or of `all`; written `ensemble_anno1`, `ensemble_all`."""

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


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Annotator(_Part):
    """One expert, and the file with that expert's label map in a patient's folder."""

    name: str
    file: str

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not KEY.fullmatch(name) or name == "all":
            raise ValueError("an annotator's name is letters, digits and dashes, and not 'all'")
        return name


class PatientIds(_Part):
    """How patients are called: a prefix and a number of fixed width, e.g. UKCHLL077."""

    prefix: str = Field(pattern=r"^[A-Za-z]*$")
    digits: Annotated[int, Field(ge=1, le=12)] = 3

    def normalise(self, name: str | int) -> str:
        """`77`, `077` and `UKCHLL077` are one patient, `UKCHLL077`.

        Raises:
            StudyError: the name is none of these forms.
        """
        match = re.fullmatch(
            rf"(?:{re.escape(self.prefix)})?0*(\d{{1,{self.digits}}})", str(name).strip(), re.IGNORECASE
        )
        if match is None:
            example = f"{self.prefix}{1:0{self.digits}d}"
            raise StudyError(
                "reading a patient's id",
                repr(name),
                f"it is not {self.prefix or 'a number'} with up to {self.digits} digits",
                f"Name the patient like {example}, or change patients.prefix and patients.digits in the study.",
            )
        return f"{self.prefix}{int(match.group(1)):0{self.digits}d}"


class Plans(_Part):
    """nnU-Net planning. What is None is left to nnU-Net's planner."""

    planner: Literal["ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL"] = (
        "ExperimentPlanner"
    )
    configuration: Literal["3d_fullres", "2d", "3d_lowres"] = "3d_fullres"
    gpu_memory_gb: Annotated[float, Field(gt=0)] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    patch_size: tuple[int, int, int] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    features_per_stage: Annotated[tuple[int, ...], Field(min_length=3)] | None = None
    """At least three stages: nnU-Net's deep supervision gives the coarsest output the weight 0, so two leave no loss."""
    convolutions_per_stage: Annotated[int, Field(ge=1)] | None = None
    intensity_samples: Annotated[float, Field(ge=1000)] = 1e7
    """Foreground voxels sampled per study for the intensity statistics (nnU-Net's own default is 1e7)."""
    shared_intensity_statistics: bool = False
    """One set of foreground intensity statistics (union of the annotators), so that all images are bit-identical."""


class Training(_Part):
    """How each model is trained."""

    sets: tuple[Literal["train", "validation"], ...] = ("train",)
    epochs: Annotated[int, Field(ge=1)] = 300
    iterations_per_epoch: Annotated[int, Field(ge=1)] = 250
    validation_iterations_per_epoch: Annotated[int, Field(ge=1)] = 50
    patience: Annotated[int, Field(ge=1)] = 20
    """Epochs without a better EMA pseudo-Dice before training stops."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """With fold `all`: share of the training patients held out for early stopping; 0 stops on the training data and says so."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    mirroring: bool = True
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of torch on the CPU; pinned because the sums depend on it. None: 1 on the CPU, torch's choice elsewhere."""
    loader_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load and augment; 0 (in the training process) is bit-reproducible everywhere."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two checkpoints kept on S3 for resuming."""


class Prediction(_Part):
    """How a model is applied to a patient."""

    tile_step: Annotated[float, Field(gt=0, le=1)] = 0.5
    mirroring: bool = True
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"


class Evaluation(_Part):
    """Where and how predictors are scored (`scoring/definitions.md`: accuracy, calibration, uncertainty)."""

    region: Literal["body", "image"] = "body"
    ece_bins: Annotated[int, Field(ge=2, le=1000)] = 50
    ace_bins: Annotated[int, Field(ge=2, le=1000)] = 20
    tolerance_mm: Annotated[float, Field(gt=0)] = 1.0


class Statistics(_Part):
    """Tests between families of predictors."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    draws: Annotated[int, Field(ge=100)] = 9999
    """Of the randomisation within patients, and resamples of the patients for intervals."""
    seed: Annotated[int, Field(ge=0)] = 20250515
    """Of both."""
    primary: dict[str, str] = Field(
        default_factory=lambda: {
            "accuracy": "dice",
            "calibration": "ece",
            "aleatoric": "ncc",
            "failure detection": "aurc",
        }
    )
    """Question → the one metric that answers it; every other metric is exploratory."""
    non_inferiority_margin: Annotated[float, Field(gt=0)] = 0.01
    """How much of the accuracy metric may be lost before accuracy counts as hurt. One point of Dice is what lies between
    neighbours in the challenge's table (median gap 0.0105); fixed here, not by the scores."""


class Intake(_Part):
    """Tolerances of the intake's checks."""

    spacing_tolerance_mm: Annotated[float, Field(gt=0)] = 1e-3
    origin_tolerance_mm: Annotated[float, Field(gt=0)] = 1e-1
    label_tolerance: Annotated[float, Field(gt=0, lt=0.5)] = 1e-2
    """Labels this close to an integer are rounded (label files with a scale slope)."""


class Checks(_Part):
    """What the asset checks warn of. Changing these makes nothing stale but the report."""

    dice_floor: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Best EMA pseudo-Dice below which a trained model is suspicious."""
    volume_ml: dict[str, tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]]] = Field(
        default_factory=dict
    )
    """Organ → least and most plausible volume of a prediction, ml; left out: nothing above half of the scan."""


class Report(_Part):
    """How the report is written."""

    language: Literal["en", "fr"] = "en"
    published_table: str = Field(default="published.csv", pattern=r"^[^/].*\.csv$")
    """Key below the metrics prefix of the study's wide table; once it is uploaded, this run is compared with it."""


class Prices(_Part):
    """Unit prices of the cost table, in euros (the study's own, as of 2025-05-15)."""

    gpu_hour_eur: Annotated[float, Field(ge=0)] = 0.50
    cpu_hour_eur: Annotated[float, Field(ge=0)] = 0.05
    storage_gb_month_eur: Annotated[float, Field(ge=0)] = 0.024
    egress_gb_eur: Annotated[float, Field(ge=0)] = 0.09
    storage_days: Annotated[float, Field(ge=0)] = 7


class Study(_Part):
    """A whole study, validated. Made by `load_study`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    synthetic: bool = False
    """The patients are made up: nothing of theirs is set beside the challenge as comparable."""
    image: str = "image.nii.gz"
    annotators: tuple[Annotator, ...] = Field(min_length=1)
    organs: dict[str, Annotated[int, Field(ge=1, le=8)]] = Field(min_length=1)
    patients: PatientIds
    sets: dict[SetName, tuple[str, ...]]
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    in_distribution_group: str | None = None
    """The group the models were trained on; the others are out of distribution."""
    exclusions: dict[str, str] = Field(default_factory=dict)
    """Patient → reason. An excluded patient is in the cohort table, and nowhere else."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(min_length=1)
    folds: tuple[Fold, ...] = ("all",)
    ensembles: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Ensemble → annotators whose models are its members. Left out: one per annotator, and `all`."""
    plans: Plans = Plans()
    training: Training = Training()
    prediction: Prediction = Prediction()
    intake: Intake = Intake()
    checks: Checks = Checks()
    evaluation: Evaluation = Evaluation()
    statistics: Statistics = Statistics()
    report: Report = Report()
    prices: Prices = Prices()

    @model_validator(mode="before")
    @classmethod
    def _whole_ids(cls, raw: Any) -> Any:
        """Ids become whole names, so that 1, '001' and 'UKCHLL001' agree everywhere."""
        if not isinstance(raw, dict) or not isinstance(raw.get("patients"), dict):
            return raw
        ids = PatientIds.model_validate(raw["patients"])
        raw = dict(raw)
        for field in ("sets", "groups"):
            if isinstance(raw.get(field), dict):
                raw[field] = {
                    name: [_normalised(ids, f"{field}.{name}", one) for one in _listed(field, name, members)]
                    for name, members in raw[field].items()
                }
        if isinstance(raw.get("exclusions"), dict):
            raw["exclusions"] = {
                _normalised(ids, "exclusions", one): reason for one, reason in raw["exclusions"].items()
            }
        return raw

    @model_validator(mode="after")
    def _coherent(self) -> "Study":
        _unique("annotators", [a.name for a in self.annotators])
        _unique("annotators.file", [a.file for a in self.annotators] + [self.image])
        _unique("organs", list(self.organs.values()))
        _unique("seeds", self.seeds)
        _unique("folds", self.folds)
        splits = self.splits
        if beyond := [fold for fold in self.folds if fold != "all" and fold >= splits]:
            count = len(self.training_patients())
            allowed = "all" if not splits else f"all and 0 … {splits - 1}"
            raise ValueError(
                f"folds: {beyond}, allowed are {allowed}: {count} training patients make {splits} splits, and nnU-Net would "
                "make a random one of any other number"
            )
        for organ in self.organs:
            if not KEY.fullmatch(organ):
                raise ValueError(f"organs: {organ!r} is not letters, digits and dashes")
        if sorted(self.organs.values()) != list(range(1, len(self.organs) + 1)):
            raise ValueError(
                f"organs: labels are {sorted(self.organs.values())}, allowed is 1 … {len(self.organs)} without gaps (nnU-Net)"
            )
        _unique("sets", [one for members in self.sets.values() for one in members])
        _unique("groups", [one for members in self.groups.values() for one in members])
        if self.in_distribution_group is not None and self.in_distribution_group not in self.groups:
            raise ValueError(
                f"in_distribution_group: {self.in_distribution_group!r}, allowed is one of {sorted(self.groups)}"
            )
        if unknown_organs := sorted(set(self.checks.volume_ml) - set(self.organs)):
            raise ValueError(f"checks.volume_ml: {unknown_organs}, allowed are {sorted(self.organs)}")
        names = [a.name for a in self.annotators]
        for ensemble, members in self.ensembles.items():
            if not KEY.fullmatch(ensemble):
                raise ValueError(f"ensembles: {ensemble!r} is not letters, digits and dashes")
            unknown = sorted(set(members) - set(names))
            if unknown or not members:
                raise ValueError(f"ensembles.{ensemble}: {unknown or 'no member'}, allowed are {names}")
        return self

    # Names -----------------------------------------------------------------------------------------------------------

    @property
    def annotator_names(self) -> list[str]:
        return [a.name for a in self.annotators]

    @property
    def class_names(self) -> list[str]:
        """`background`, then the organs in the order of their labels: the first axis of a softmax."""
        return ["background", *sorted(self.organs, key=lambda organ: self.organs[organ])]

    @property
    def models(self) -> list[ModelId]:
        return [ModelId(a.name, seed, fold) for a in self.annotators for seed in self.seeds for fold in self.folds]

    @property
    def ensemble_ids(self) -> list[EnsembleId]:
        return [EnsembleId(name) for name in self._ensembles]

    @property
    def _ensembles(self) -> dict[str, tuple[str, ...]]:
        return self.ensembles or {**{a.name: (a.name,) for a in self.annotators}, "all": tuple(self.annotator_names)}

    @property
    def predictors(self) -> list[str]:
        """Everything that is scored: all models, then all ensembles."""
        return [str(m) for m in self.models] + [str(e) for e in self.ensemble_ids]

    def members(self, ensemble: EnsembleId | str) -> list[ModelId]:
        """The models whose mean an ensemble is."""
        name = ensemble.name if isinstance(ensemble, EnsembleId) else EnsembleId.parse(ensemble).name
        if name not in self._ensembles:
            raise StudyError(
                "finding an ensemble's members",
                self.name,
                f"no ensemble {name!r}",
                f"Use one of {[str(e) for e in self.ensemble_ids]}.",
            )
        return [m for m in self.models if m.annotator in self._ensembles[name]]

    def family(self, predictor: str) -> Literal["general", "annotator", "individual"]:
        """`general` for an ensemble over every annotator, `annotator` for a smaller one, `individual` for a model."""
        if not predictor.startswith("ensemble_"):
            ModelId.parse(predictor)
            return "individual"
        annotators = self._ensembles[EnsembleId.parse(predictor).name]
        return "general" if set(annotators) == set(self.annotator_names) else "annotator"

    # Patients --------------------------------------------------------------------------------------------------------

    def patient_set(self, patient: str) -> SetName | None:
        """The set of a patient; None when no set names it."""
        return next((name for name, members in self.sets.items() if patient in members), None)

    def patient_group(self, patient: str) -> str | None:
        return next((name for name, members in self.groups.items() if patient in members), None)

    def is_test_patient(self, patient: str) -> bool:
        return self.patient_set(patient) == "test" and patient not in self.exclusions

    def training_patients(self) -> list[str]:
        """Patients the models learn from, exclusions left out, in order."""
        return sorted(
            one for name in self.training.sets for one in self.sets.get(name, ()) if one not in self.exclusions
        )

    @property
    def splits(self) -> int:
        """Folds that cross-validation has: five, or one for each training patient when they are fewer."""
        count = len(self.training_patients())
        return min(FOLDS, count) if count > 1 else 0

    def fingerprint(self, *parts: str) -> str:
        """Twelve hexadecimal digits that change when a named part of the study does (all of it, if none is named).

        Args:
            parts: names of fields; `training_patients` stands for what it returns.
        """
        whole = {**self.model_dump(mode="json"), "training_patients": self.training_patients()}
        chosen = {part: whole[part] for part in parts} if parts else whole
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


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
        name_or_path: a built-in name (`curvas`, `phantom`) or the path of a YAML file. A study is returned as it is.

    Raises:
        StudyError: not found, not YAML, or a field has a value that is not allowed; names field, value and what is allowed.
    """
    if isinstance(name_or_path, Study):
        return name_or_path
    remedy = f"Set CURVAS_STUDY to a YAML file or one of {built_in_studies()}."
    path = as_path(name_or_path, attempted="loading the study", subject="the study", error=StudyError)
    source = str(name_or_path)
    if source in built_in_studies():
        text = (resources.files("curvas_assets.studies") / f"{source}.yaml").read_text()
    else:
        try:
            text = path.read_text()
        except (FileNotFoundError, NotADirectoryError) as error:
            found = "there is no such file, nor a built-in study of that name"
            raise StudyError("loading the study", source, found, remedy) from error
        except (OSError, UnicodeDecodeError) as error:
            found = f"it cannot be read ({type(error).__name__})"
            raise StudyError("loading the study", source, found, remedy) from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StudyError(
            "loading the study",
            source,
            f"it is not YAML: {' '.join(str(error).split())}",
            "Correct the file at the place named.",
        ) from error
    if not isinstance(raw, dict):
        raise StudyError(
            "loading the study",
            source,
            f"it holds {type(raw).__name__}, not fields",
            "Start from curvas_assets/studies/phantom.yaml.",
        )
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise StudyError(
            "loading the study",
            source,
            "; ".join(_explain(item) for item in error.errors()),
            "Correct these fields; curvas_assets/studies/ has complete examples.",
        ) from error


def _explain(item: Any) -> str:
    """One pydantic error as field, value found and what is allowed."""
    field = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{field} is missing"
    if item["type"] == "extra_forbidden":
        return f"{field} = {item['input']!r} is not a field (allowed: {', '.join(_siblings(item['loc']))})"
    value = f" = {item['input']!r}" if field and not isinstance(item["input"], dict) else ""
    return f"{field}{value}: {message}" if field else message


def _siblings(location: Iterable[Any]) -> list[str]:
    """Fields allowed beside an unknown one."""
    model: Any = Study
    for part in list(location)[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else Annotator
    return sorted(model.model_fields)


def _unique(field: str, values: Iterable[Any]) -> None:
    seen: set[Any] = set()
    twice = [value for value in values if value in seen or seen.add(value)]
    if twice:
        raise ValueError(f"{field}: {twice} stand there more than once, allowed is once")


def _listed(field: str, name: str, members: Any) -> list[Any]:
    if not isinstance(members, list | tuple):
        raise ValueError(f"{field}.{name} = {members!r}: allowed is a list of patient ids")
    return list(members)


def _normalised(ids: PatientIds, field: str, name: Any) -> str:
    try:
        return ids.normalise(name)
    except StudyError as error:
        raise ValueError(f"{field}: {error.subject} {error.found}") from error
