"""What a submission is, as one small file beside its models: which predictor, of which models, and how it answers.

    submission.json                        the record
    models/<model>/plans.json, …           each model as a stock nnU-Net loads it

The record holds no patient, and of annotators only the names by which models are called, such as `anna_init1_foldall`: a
container goes to strangers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from curvas_assets.calibration import Calibrator, calibrator_of
from curvas_assets.errors import CorruptArtefactError, CurvasError, MissingArtefactError, StudyError
from curvas_assets.predictors import CalibratedId, EnsembleId, ModelId, predictor_of
from curvas_assets.study import Study
from curvas_assets.voxel_order import is_order

RECORD_FILE = "submission.json"
MODELS = "models"
FORMAT = "curvas-submission-1"
UNFINISHED = "curvas-submission-unfinished"
"""The format while an export goes on: nothing reads it, and the next export replaces what a cut-off one left."""
ORGAN = "{organ}"
KEPT = ("name", "title", "synthetic", "organs", "ignored_labels", "prediction", "intake")
"""Fields of the study on which a prediction depends, beside the number of threads."""
NOBODY: dict[str, Any] = {
    "annotators": [{"name": "nobody", "file": "annotation.nii.gz"}],
    "patients": {"prefix": "", "digits": 1},
    "sets": {"train": ["1"], "test": ["2"]},
    "seeds": [0],
}
"""In place of the study's people, whom a prediction does not know. The names of members and predictors still hold annotators'."""


@dataclass(frozen=True)
class Sockets:
    """Names of folders below `images/` of what comes in and goes out; the defaults are those of CURVAS 2024.

    Args:
        image: of the scan.
        labels: of the label map.
        confidence: of each organ's probabilities; contains `{organ}`.

    Raises:
        StudyError: one of them is no plain folder name, or `confidence` lacks `{organ}`.
    """

    image: str = "thoracic-abdominal-ct"
    labels: str = "abdominal-organ-segmentation"
    confidence: str = "{organ}-confidence"

    def __post_init__(self) -> None:
        for what, name in (("image", self.image), ("labels", self.labels), ("confidence", self.confidence)):
            plain = name.replace(ORGAN, "organ") if what == "confidence" else name
            if not plain or not all(sign.isalnum() or sign in "-_." for sign in plain) or plain.startswith("."):
                raise _refused(f"{what} = {name!r:.80} is no folder name", "Give letters, digits and dashes.")
        if self.confidence.count(ORGAN) != 1:
            found = f"confidence = {self.confidence!r:.80} does not say where the organ's name stands"
            raise _refused(found, f"Give a name with {ORGAN} in it, such as {Sockets.confidence}.")

    def of(self, organ: str) -> str:
        """The folder of an organ's confidence."""
        return self.confidence.replace(ORGAN, organ.lower())

    def written(self, organs: Sequence[str]) -> list[str]:
        """The folders of what goes out: the label map's, then those of the organs' confidences.

        Raises:
            StudyError: two are the same, so that one file would replace the other.
        """
        folders = [self.labels, *map(self.of, organs)]
        if twice := sorted({one for one in folders if folders.count(one) > 1}):
            found = f"the label map and the confidence of an organ would both be {twice[0]}"
            raise _refused(found, "Give labels and confidence names that stay apart.")
        return folders


def _refused(found: str, remedy: str) -> StudyError:
    return StudyError("naming what comes in and goes out", "the submission", found, remedy)


@dataclass(frozen=True)
class Submission:
    """A predictor, ready to be applied to any scan.

    Args:
        predictor: its name in the study.
        study: its classes and how it predicts, without patients and annotators (`without_people`).
        members: models or variants of models that predict; the mean of several, and of one if the predictor is an ensemble. A
            model's name is that of its annotator, seed and fold.
        label_values: organ → value in the label map that is handed over.
        calibrator: what is applied to the probabilities; None leaves them.
        voxel_order: of the scans that models were trained on whose `dataset.json` does not say it; None if nobody knows.
        sockets: folders of what comes in and goes out.
        made_of: what it was exported from, for people: versions of models and of the package.
    """

    predictor: str
    study: Study
    members: tuple[str, ...]
    label_values: Mapping[str, int]
    calibrator: Calibrator | None = None
    voxel_order: str | None = None
    sockets: Sockets = Sockets()
    made_of: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def averages(self) -> bool:
        """Whether what is handed over is made of an ensemble's mean."""
        return isinstance(uncalibrated(self.predictor), EnsembleId)

    @property
    def models(self) -> list[str]:
        """The trained models, each once."""
        return list(dict.fromkeys(str(ModelId.parse(member).trained) for member in self.members))


def uncalibrated(predictor: str) -> ModelId | EnsembleId:
    """The model or ensemble that a predictor is, or is calibrated from; a StudyError if it is no name of a predictor."""
    found = predictor_of(predictor)
    return found.base if isinstance(found, CalibratedId) else found


def members_of(study: Study, predictor: str) -> tuple[str, ...]:
    """The models, or variants of models, whose mean a predictor is for a patient whom the study does not know.

    No fold has held such a patient out, so that under cross-validation the models of all folds are members.

    Raises:
        StudyError: the study has no such ensemble.
    """
    base = uncalibrated(predictor)
    return (str(base),) if isinstance(base, ModelId) else tuple(map(str, study.members(base)))


def without_people(study: Study) -> Study:
    """The same study as far as a prediction depends on it, without the names of patients and annotators."""
    raw = study.model_dump(mode="json")
    kept = {name: raw[name] for name in KEPT}
    if study.channels:  # their files are those of the study's cohort
        kept["channels"] = [{**one, "file": f"image_{number}.nii.gz"} for number, one in enumerate(raw["channels"])]
        kept["image"] = None
    return Study.model_validate(kept | {"training": {"threads": raw["training"]["threads"]}} | NOBODY)


def begin_submission(folder: Path) -> None:
    """Write a record that nothing reads, for a folder whose models are still to come."""
    (Path(folder) / RECORD_FILE).write_text(json.dumps({"format": UNFINISHED}) + "\n", encoding="utf-8")


def is_submission(folder: Path) -> bool:
    """Whether a folder holds an export, of any version and finished or not."""
    try:
        record = json.loads((Path(folder) / RECORD_FILE).read_text(encoding="utf-8"))
        return str(record["format"]).startswith(FORMAT.rpartition("-")[0])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def write_submission(submission: Submission, folder: Path) -> Path:
    """Write the record of a submission into its folder; returns the file."""
    record = {
        "format": FORMAT,
        "predictor": submission.predictor,
        "members": list(submission.members),
        "label_values": dict(submission.label_values),
        "calibrator": submission.calibrator.record() if submission.calibrator else None,
        "voxel_order": submission.voxel_order,
        "sockets": {name: getattr(submission.sockets, name) for name in ("image", "labels", "confidence")},
        "made_of": dict(submission.made_of),
        "study": submission.study.model_dump(mode="json"),
    }
    path = Path(folder) / RECORD_FILE
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_submission(folder: Path) -> Submission:
    """The submission that stands in a folder; of its models, only that they are there is looked at.

    Raises:
        MissingArtefactError: there is no record, or a model has no folder.
        CorruptArtefactError: the record is not one, or was written by another version of this package.
    """
    path = Path(folder) / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r:.40}, not {FORMAT}")
        order, calibrator = record["voxel_order"], record["calibrator"]
        if order is not None and not is_order(order):
            raise ValueError(f"its voxel order is {order!r:.40}")
        submission = Submission(
            predictor=record["predictor"],
            study=Study.model_validate(record["study"]),
            members=tuple(record["members"]),
            label_values={organ: int(value) for organ, value in record["label_values"].items()},
            calibrator=None if calibrator is None else calibrator_of(calibrator, str(path)),
            voxel_order=order,
            sockets=Sockets(**record["sockets"]),
            made_of=record["made_of"],
        )
        models, organs = submission.models, submission.study.class_names[1:]
        if not models or (not submission.averages and len(submission.members) > 1):
            raise ValueError(f"{submission.predictor} has the members {list(submission.members)}")
        if set(submission.label_values) != set(organs):
            raise ValueError(f"its label values are of {sorted(submission.label_values)}, its organs {organs}")
        submission.sockets.written(organs)
    except FileNotFoundError as error:
        remedy = "Give the folder that the job export_submission wrote."
        raise MissingArtefactError("reading the submission", str(folder), f"no {RECORD_FILE}", remedy) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ValidationError, CurvasError) as error:
        found = f"{RECORD_FILE} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        remedy = "Export it again by the version of the package that runs it."
        raise CorruptArtefactError("reading the submission", str(folder), found, remedy) from error
    if absent := [model for model in models if not (Path(folder) / MODELS / model).is_dir()]:
        found = f"no folder {MODELS}/{absent[0]}" + (f" and {len(absent) - 1} others" if absent[1:] else "")
        raise MissingArtefactError("reading the submission", str(folder), found, "Export it again.")
    return submission
