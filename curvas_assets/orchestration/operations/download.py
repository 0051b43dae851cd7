"""Downloading to a local folder: patients as they were uploaded, artefacts as open files that any viewer reads."""

import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from curvas_assets.calibration import CalibratedVolume, Calibrator
from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, UnsafeNameError
from curvas_assets.label_values import LabelValues
from curvas_assets.orchestration.operations.transfer import human_bytes, same_content
from curvas_assets.stages.calibrated import base_of, calibrators_of
from curvas_assets.stages.patients import Uploaded, uploaded
from curvas_assets.stages.stored import Artefact
from curvas_assets.storage import directories, tables
from curvas_assets.storage.encoding import labels_of
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.maps import MapWriter
from curvas_assets.storage.objects import FolderObjects, ObjectInfo, ObjectStore, within
from curvas_assets.storage.softmax import GROUP, SoftmaxVolume, open_softmax, place_of
from curvas_assets.study import ModelId, Study

Tell = Callable[[str], None]
What = Literal["dataset", "preprocessing", "models", "predictions", "ensembles", "scores", "report"]
WHAT: tuple[str, ...] = get_args(What)
VOLUME = "softmax.zarr"


@dataclass
class Fetched:
    """The result of a download.

    Args:
        fetched: how many artefacts are in the folder.
        size: their bytes.
        missing: names of what is not in the bucket, and should be.
        unscored: patients of whom nothing is there because the study does not predict them.
        refused: artefact → why it was not written: damaged, or with names that lead out of the folder.
    """

    fetched: int = 0
    size: int = 0
    missing: tuple[str, ...] = ()
    unscored: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Item:
    """One artefact: a folder with a manifest, or all objects of a patient or a volume, or a table."""

    name: str
    key: str
    target: PurePosixPath
    kind: Literal["folder", "files", "volume", "calibrated", "table", "object"]
    patient: str = ""
    calibrator: Calibrator | None = None
    files: tuple[tuple[ObjectInfo, str], ...] = ()
    """Of a patient as uploaded: objects, and where they come to stand below the target."""


def download(
    objects: ObjectStore,
    layout: Layout,
    study: Study,
    what: What,
    patients: Sequence[str],
    predictors: Sequence[str],
    folder: Path,
    tell: Tell,
    *,
    probabilities: bool = False,
) -> Fetched:
    """Fetch artefacts into a folder, laid out as in the bucket. What is there already with the same bytes stays.

    Args:
        objects: the bucket.
        layout: where things stand in it.
        study: which annotators, models and ensembles there are.
        what: `dataset` (the patients' files), `preprocessing`, `models`, `predictions` (of models, and of variants that are
            named) and `ensembles` (zarr volumes, the label map and an ensemble's maps as NIfTI; of a calibrated predictor,
            which has no volume in the bucket, the label map and the probabilities as NIfTI, beside those of what it is
            calibrated from), `scores` (per patient as CSV, the merged table and `metrics.csv`) or `report`.
        patients: whose artefacts to fetch; ignored for preprocessing, models and report.
        predictors: models or ensembles; ignored for dataset, scores and report. Preprocessing: of their annotators.
        folder: made if it is not there.
        tell: told of each artefact.
        probabilities: of predictions and ensembles, also one NIfTI of probabilities per organ.

    Returns:
        How much there was, the names of what is not in the bucket, and what was refused.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    there = uploaded(objects, layout, study) if what == "dataset" else None
    items = list(_items(layout, study, what, patients, predictors, there, _calibrators(objects, layout, study, what)))
    done, missing, unscored = Fetched(), [], dict[str, None]()
    predicted = set(study.predicted_patients())
    for count, item in enumerate(items, 1):
        try:
            size = _fetch(objects, item, folder, study.label_values, probabilities=probabilities)
        except MissingArtefactError:
            if item.patient and item.patient not in predicted:
                unscored[item.patient] = None
                continue
            missing.append(item.name)
            tell(f"{count} of {len(items)}, {item.name}: not in the bucket")
            continue
        except (CorruptArtefactError, UnsafeNameError) as error:
            done.refused[item.name] = str(error)
            tell(f"{count} of {len(items)}, {item.name}: refused, {error.after(item.name)}")
            continue
        done.fetched += 1
        done.size += size
        tell(f"{count} of {len(items)}, {item.name}: {human_bytes(size)}")
    done.missing, done.unscored = tuple(missing), tuple(unscored)
    if unscored:
        tell(
            f"{len(unscored)} patients are not predicted in this study, and nothing of them is there: training or no set"
        )
    return done


def _items(
    layout: Layout,
    study: Study,
    what: What,
    patients: Sequence[str],
    predictors: Sequence[str],
    there: Uploaded | None,
    calibrators: Mapping[str, Calibrator],
) -> Iterator[_Item]:
    models = [p for p in predictors if study.predicted_by(p) == "model"]
    predicted = [p for p in predictors if study.predicted_by(p) in ("model", "variant")]
    ensembles = [p for p in predictors if study.predicted_by(p) == "ensemble"]
    calibrated = [p for p in predictors if study.predicted_by(p) == "calibrated"]
    kind = {"predictions": "model", "ensembles": "ensemble"}.get(what)
    if there is not None:
        own = there.found.own_folders
        for patient in patients:
            there.found.files_of(patient)  # two folders are told
            pairs = zip(there.found.paths(patient), there.found.shown(patient), strict=True)
            files = tuple((there.objects[path], shown) for path, shown in pairs)
            target = PurePosixPath("dataset", patient) if own else PurePosixPath("dataset")
            yield _Item(patient, f"{layout.data}/{patient}", target, "files", files=files)
    elif what == "preprocessing":
        annotators = {ModelId.parse(model).annotator for model in models}
        for annotator in (a for a in study.label_names if a in annotators):
            target = PurePosixPath("preprocessing", annotator)
            yield _Item(f"preprocessing of {annotator}", layout.dataset(annotator), target, "folder")
    elif what == "models":
        for model in models:
            yield _Item(model, layout.model(model), PurePosixPath("models", model), "folder")
    elif what in ("predictions", "ensembles"):
        for patient in patients:
            its_own = set(predictors)
            if study.cross_validated:
                its_own = {*study.predictors_of(patient), *map(str, study.variants_of(patient))}
            for predictor in (p for p in (predicted if what == "predictions" else ensembles) if p in its_own):
                key = layout.softmax(patient, predictor).rpartition("/")[0]
                target = PurePosixPath(what, patient, predictor)
                yield _Item(f"{predictor} of {patient}", key, target, "volume", patient)
            for predictor in (p for p in calibrated if study.predicted_by(base_of(p)) == kind and p in its_own):
                target = PurePosixPath(what, patient, predictor)
                key = layout.softmax(patient, base_of(predictor))
                name, one = f"{predictor} of {patient}", calibrators.get(predictor)
                yield _Item(name, key, target, "calibrated", patient, one)
    elif what == "scores":
        for patient in patients:
            target = PurePosixPath("scores", patient)
            yield _Item(f"scores of {patient}", layout.scores(patient), target, "folder", patient)
        yield _Item("all scores", layout.table("study_scores"), PurePosixPath("scores/study_scores.csv"), "table")
        yield _Item("metrics.csv", layout.merged_csv(), PurePosixPath("scores/metrics.csv"), "object")
    else:
        yield _Item("report", layout.report(), PurePosixPath("report"), "folder")
        yield _Item("figures", layout.figures(), PurePosixPath("figures"), "folder")


def _fetch(objects: ObjectStore, item: _Item, folder: Path, values: LabelValues, *, probabilities: bool) -> int:
    """Bytes of an artefact that now stands in the folder; a MissingArtefactError if there is none."""
    target = folder / item.target
    if item.kind == "folder":
        directories.read_directory(objects, item.key, target)
        return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if item.kind == "table":
        buffer = io.StringIO()
        tables.read_table(objects, item.key).to_csv(buffer, index=False)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(buffer.getvalue(), encoding="utf-8")
        return target.stat().st_size
    if item.kind == "object":
        target.parent.mkdir(parents=True, exist_ok=True)
        objects.download(item.key, target)
        return target.stat().st_size
    if item.kind == "calibrated":
        return _export_calibrated(objects, item, target, values, probabilities=probabilities)
    if item.kind == "files":
        found = item.files
    else:
        found = tuple((info, info.key.removeprefix(f"{item.key}/")) for info in _current(objects, item.key))
    if not found:
        raise MissingArtefactError("downloading", item.key, "nothing is there", "Materialise or upload it first.")
    paths = [within(target, name) for _, name in found]  # all, before the first is written
    fetched = False
    for (info, _), path in zip(found, paths, strict=True):
        if path.is_file() and same_content(info, path):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        objects.download(info.key, path)
        fetched = True
    if item.kind == "volume":
        own = {path.name for path in paths}  # an ensemble's label map comes from the bucket
        write_nifti(target, probabilities=probabilities, again=fetched, kept=own, values=values)
    return sum(info.size for info, _ in found)


def _calibrators(objects: ObjectStore, layout: Layout, study: Study, what: What) -> dict[str, Calibrator]:
    """The study's calibrators, as far as they were fitted; nothing is read where none is wanted."""
    if what not in ("predictions", "ensembles") or not study.calibrated_ids:
        return {}
    artefact = Artefact(objects, layout.calibrators(), "record", "calibrators")
    try:
        return calibrators_of(artefact, map(str, study.calibrated_ids))
    except MissingArtefactError:
        return {}


def _export_calibrated(
    objects: ObjectStore, item: _Item, target: Path, values: LabelValues, *, probabilities: bool
) -> int:
    """Write the label map, and the probabilities, of a calibrated predictor; made again whenever volume or calibrator changed.

    Raises:
        MissingArtefactError: the volume that it is made of is not there, or it was not fitted.
    """
    if item.calibrator is None:
        raise MissingArtefactError(
            "downloading", item.name, "its calibrator was not fitted", "Run fit_calibrators first."
        )
    volume = CalibratedVolume(open_softmax(objects, item.key), item.calibrator)
    made_of = hashlib.sha256(f"{volume.source.version} {item.calibrator.record()}".encode()).hexdigest()
    target.mkdir(parents=True, exist_ok=True)
    told = target / "made_of.txt"
    again = not (told.is_file() and told.read_text() == made_of)
    if again:
        told.unlink(missing_ok=True)  # what is cut short is made again
    written = export_nifti(volume, target, probabilities=probabilities, again=again, values=values)
    told.write_text(made_of)
    return sum(path.stat().st_size for path in written)


def _current(objects: ObjectStore, key: str) -> list[ObjectInfo]:
    """The objects below a key; of a volume among them, only the current version."""
    found = list(objects.list(f"{key}/"))
    volume = f"{key}/softmax.zarr"
    try:
        place = place_of(objects, volume)
    except (MissingArtefactError, CorruptArtefactError):  # no volume, or not one of ours: download it as it is
        return found
    stay = (f"{volume}/{place}/", f"{volume}/{GROUP}")
    return [info for info in found if not info.key.startswith(f"{volume}/") or info.key.startswith(stay)]


def write_nifti(
    folder: Path,
    *,
    probabilities: bool,
    again: bool,
    kept: Collection[str] = (),
    values: LabelValues | None = None,
) -> None:
    """Beside a downloaded volume, what viewers open: `labels.nii.gz`, and `probability_<class>.nii.gz` of each organ.

    Args:
        folder: holds `softmax.zarr`.
        probabilities: write them too.
        again: replace files that are there.
        kept: names of files that stay in any case.
        values: the study's own label values, which the label map has; None gives it the classes 1 … n.

    Raises:
        CorruptArtefactError: the volume is damaged.
        MissingArtefactError: there is no volume.
    """
    volume = open_softmax(FolderObjects(folder), VOLUME)
    export_nifti(volume, folder, probabilities=probabilities, again=again, kept=kept, values=values)


def export_nifti(
    volume: SoftmaxVolume | CalibratedVolume,
    folder: Path,
    *,
    probabilities: bool,
    again: bool,
    kept: Collection[str] = (),
    values: LabelValues | None = None,
) -> list[Path]:
    """Write `labels.nii.gz`, and `probability_<class>.nii.gz` of each organ, of a volume, in one pass over it.

    Args:
        volume: opened.
        folder: that receives them.
        probabilities: write them too.
        again: replace files that are there.
        kept: names of files that stay in any case.
        values: the study's own label values, which the label map has; None gives it the classes 1 … n.

    Returns:
        The files that were wanted, which are there now.

    Raises:
        CorruptArtefactError: the volume is damaged.
    """
    names = {"labels": 0} | (
        {f"probability_{n}": c for c, n in enumerate(volume.class_names) if c} if probabilities else {}
    )
    absent = [name for name in names if f"{name}.nii.gz" not in kept]
    wanted = [name for name in absent if again or not (folder / f"{name}.nii.gz").is_file()]
    files = [folder / f"{name}.nii.gz" for name in names]
    if not wanted:
        return files
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                MapWriter(
                    FolderObjects(folder),
                    f"{name}.nii.gz",
                    volume.grid,
                    kind="labels" if name == "labels" else "probability",
                    scratch=folder,
                    values=values,
                )
            )
            for name in wanted
        }
        for z0, _, codes in volume.code_slabs():
            for name, writer in writers.items():
                c = names[name]
                writer.write(z0, volume.levels[codes[c - 1]] if c else labels_of(codes, volume.levels))
    return files
