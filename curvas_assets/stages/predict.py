"""Predictions: the softmax of one patient by one model, or by a variant of one: mirrored, or with earlier weights."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from curvas_assets.errors import DiskError, SegmentationError, SoftmaxError
from curvas_assets.geometry import by
from curvas_assets.predictors import SNAPSHOT, ModelId
from curvas_assets.report import previews
from curvas_assets.segmentation import Prediction, Predictor, PreparedScan, StepMemory, trained_on
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.patients import fetch_files
from curvas_assets.stages.pipeline import Steps, Turn, overlapped
from curvas_assets.stages.prepare import order_of_training_scans
from curvas_assets.stages.stored import Artefact, Artefacts, Outcome, Picture, Stored, device_name
from curvas_assets.stages.table import TRAINED_MODEL
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.softmax import SoftmaxFacts, SoftmaxVolume, SoftmaxWriter, open_softmax

CHECKS = (
    Check("sums_to_one", "The classes of every voxel sum to 1, and none is NaN.", of_defects=True),
    Check("labels_are_not_empty", "The model found at least one voxel of every organ."),
    Check("volumes_are_plausible", "Each organ's volume lies within `checks.volume_ml`, and below half of the scan."),
)


Require = Callable[[str, str, str], None]
"""Takes a model's name, a patient, and the version of the model that was fetched; refuses what may not be predicted."""


def predict(
    tools: Toolkit, cells: Sequence[str], checks: StepChecks, *, trained_model: Artefacts, test_scan: Artefacts
) -> Iterator[tuple[str, Outcome]]:
    """Volumes of cells of patients × models, patient by patient.

    On a GPU, while the network predicts a cell, the next patient is fetched and preprocessed, and the last volume is encoded and
    stored, if memory suffices for both; if not, one after the other. Each patient is fetched once and preprocessed once
    for all models with equal preprocessing, each model fetched once; every volume is yielded as soon as it is stored.
    """
    yield from _predicted(tools, cells, checks, trained_model, test_scan)


def predict_variants(
    tools: Toolkit, cells: Sequence[str], checks: StepChecks, *, softmax: Artefacts, test_scan: Artefacts
) -> Iterator[tuple[str, Outcome]]:
    """Volumes of cells of patients × variants of models, in the same way as those of models.

    A variant is predicted by the very model that made its `softmax`; where the bucket holds another one by now, the cell is
    an error that says what to do.
    """
    models = dict.fromkeys(_model_of(Cell.of(key).predictor) for key in cells)
    trained_model = Artefacts(
        {
            one: Artefact(
                tools.objects, TRAINED_MODEL.place(tools.layout, one), TRAINED_MODEL.kind, f"trained_model of {one}"
            )
            for one in models
        }
    )

    @cache
    def made_by(cell: str) -> str | None:
        return softmax[cell].volume().provenance.get("model_version")

    def require(model: str, patient: str, version: str) -> None:
        _require_same_model(made_by(str(Cell(model, patient))), model, patient, version)

    yield from _predicted(tools, cells, checks, trained_model, test_scan, require)


def _predicted(
    tools: Toolkit,
    cells: Sequence[str],
    checks: StepChecks,
    trained_model: Artefacts,
    test_scan: Artefacts,
    require: Require = lambda model, patient, version: None,
) -> Iterator[tuple[str, Outcome]]:
    """Volumes of models or of variants. `require` is called for each cell; what it raises is the cell's error."""
    model_bytes = sum(
        directories.size_of(tools.objects, tools.layout.model(m))
        for m in {_model_of(Cell.of(key).predictor) for key in cells}
    )
    with ExitStack() as held:
        try:
            scratch = held.enter_context(tools.scratch("softmax", model_bytes))
        except DiskError as error:
            yield from ((key, error) for key in cells)
            return
        leased = held.enter_context(tools.device())
        work = _Cells(tools, scratch, leased, checks, trained_model, test_scan, require)
        held.enter_context(work.predictor.pinned())
        with closing(overlapped(cells, Steps(work.prepare, work.compute, work.finish), tools.tell)) as outcomes:
            yield from outcomes


def _model_of(predictor: str) -> str:
    """The trained model that a model or a variant of one is predicted by."""
    return str(ModelId.parse(predictor).trained)


@dataclass(frozen=True, eq=False)
class _Preparation:
    """A scan as models with equal preprocessing see it, for the cells from the one at `first` on."""

    scan: PreparedScan
    sharing: str
    first: int
    memory: StepMemory


@dataclass(frozen=True)
class _Ready:
    """A cell whose network can begin."""

    preparation: _Preparation
    model_folder: Path
    model_version: str
    variant: str = ""


class _Cells:
    """The three steps of a cell, each called in a thread of its own, and what cells share.

    At most two preprocessed scans are held: the one that models see now, and the next. If a model asks for one that was
    let go (models of different plans take turns), it is made again.
    """

    def __init__(
        self,
        tools: Toolkit,
        scratch: Path,
        leased: str | None,
        checks: StepChecks,
        trained_model: Artefacts,
        test_scan: Artefacts,
        require: Require = lambda model, patient, version: None,
    ):
        self.tools, self.scratch, self.leased, self.checks = tools, scratch, leased, checks
        self.trained_model, self.test_scan, self.require = trained_model, test_scan, require
        self.code = tools.code("nnunetv2", "torch")

        def order() -> str | None:
            return order_of_training_scans(tools.objects, tools.layout, tools.study)

        self.predictor = Predictor(tools.study, unrecorded_order=cache(order))
        self._scan: PreparedScan | None = None
        self._first = 0
        """The first cell of the patient who was fetched last."""
        self._folders: list[Path] = []
        """Those of fetched scans that are there, in their order."""
        self._models: dict[str, tuple[Path, str]] = {}
        """Model, or snapshot of one → folder and version, once its weights are there."""
        self._preparations: list[_Preparation] = []
        """The last two."""
        self._preparing = False
        self._seen: _Preparation | None = None
        self._exporting = 0

    def prepare(self, cell: str, turn: Turn) -> _Ready:
        """Fetch the patient and the model, and preprocess."""
        self.predictor.tell = turn.say  # lines are told by the step's own thread
        predictor, patient = Cell.of(cell)
        model, variant = _model_of(predictor), ModelId.parse(predictor).variant
        scan = self._fetched_scan(patient, turn)
        folder, version = self._fetched_model(predictor if variant.startswith(SNAPSHOT) else model, turn)
        require_unseen(folder, model, patient)
        self.require(model, patient, version)
        preparation = self._preparation(turn, scan, folder, variant)
        if preparation.sharing not in scan.preprocessed:
            alone = self._make_room(turn, preparation)
            self._preparing = True
            try:
                self.predictor.prepare(scan, folder, variant=variant, checked=not alone)
            finally:
                self._preparing = False
        return _Ready(preparation, folder, version, variant)

    def _preparation(self, turn: Turn, scan: PreparedScan, model_folder: Path, variant: str) -> _Preparation:
        """The one that the model shares, or a new one as soon as no other waits for its first network."""
        sharing = self.predictor.sharing(model_folder, variant)
        for one in self._preparations:
            if one.scan is scan and one.sharing == sharing:
                return one
        for one in self._preparations[-1:]:
            turn.until_computed(one.first)
        for one in self._preparations[:-1]:
            one.scan.preprocessed.pop(one.sharing, None)
        new = _Preparation(scan, sharing, turn.index, self.predictor.memory(scan, model_folder, variant))
        self._preparations = [*self._preparations[-1:], new]
        return new

    def _make_room(self, turn: Turn, preparation: _Preparation) -> bool:
        """Wait until a scan may be preprocessed; returns whether nothing else is under way then.

        If memory is short even so, the other input is let go; a cell that asks for it makes it again.
        """
        others = [one for one in self._preparations if one is not preparation]
        beside = [one.memory for one in others]
        if beside and self.predictor.runs_on_gpu:
            under_way = sum(one.prepared + one.window for one in beside)
            under_way += max(self._exporting, *(one.export for one in beside))
            if self.predictor.available_bytes() >= preparation.memory.preparing + under_way:
                return False
        turn.until_finished(turn.index)
        if self.predictor.available_bytes() < preparation.memory.alone:
            for one in others:
                one.scan.preprocessed.pop(one.sharing, None)
        return True

    def _fetched_scan(self, patient: str, turn: Turn) -> PreparedScan:
        """The patient's scan. At most two patients' files are there: a third waits until no model needs the first."""
        if self._scan is None or self._scan.patient != patient:
            self._scan = None
            turn.until_computed(self._first)
            while len(self._folders) > 1:
                shutil.rmtree(self._folders.pop(0), ignore_errors=True)
            folder, images = Path(tempfile.mkdtemp(dir=self.scratch)), self.tools.study.image_files
            try:
                files = fetch_files(self.tools.objects, self.test_scan[patient].record(), folder, images)
                self._scan = self.predictor.open([files[image] for image in images], patient)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._first = turn.index
            self._folders.append(folder)
        return self._scan

    def _fetched_model(self, model: str, turn: Turn) -> tuple[Path, str]:
        """A model's folder and version; earlier weights come only if `model` names a snapshot. At most one model's weights are
        loaded while the network is at work: it was not counted when the network's memory was looked at.
        """
        if model not in self._models:
            turn.until_computed(turn.index - 1)
            trained = _model_of(model)
            folder, of_snapshots = Path(self.scratch, "models", trained), model != trained
            version = self.trained_model[trained].fetch(
                folder, lambda file: of_snapshots or not Path(file).name.startswith(f"checkpoint_{SNAPSHOT}")
            )
            self._models[model] = folder, version
        return self._models[model]

    def compute(self, cell: str, ready: _Ready, turn: Turn) -> tuple[_Ready, Prediction]:
        """The network's logits; the volume follows from them slab by slab."""
        self._let_go_of_what_was_seen(ready.preparation)
        memory = ready.preparation.memory
        together = memory.prepared + memory.window + self._exporting
        if ready.preparation.sharing not in ready.preparation.scan.preprocessed:  # let go: it is made again
            together = max(together, memory.preparing + self._exporting)
        fits = self.predictor.runs_on_gpu and self.predictor.available_bytes() >= together
        if not fits:
            turn.until_finished(turn.index)
        prediction = self.predictor.predict(
            ready.preparation.scan,
            ready.model_folder,
            variant=ready.variant,
            checked=fits or self._preparing,
            proceed=turn.go_on,
        )
        self._exporting = memory.export
        return ready, prediction

    def _let_go_of_what_was_seen(self, following: _Preparation) -> None:
        seen, self._seen = self._seen, following
        if seen is not None and seen is not following:
            seen.scan.preprocessed.pop(seen.sharing, None)

    def finish(self, cell: str, computed: tuple[_Ready, Prediction], turn: Turn) -> Stored:
        """Encode a volume and store it, slab by slab."""
        tools, (ready, prediction), checks = self.tools, computed, self.checks
        (model, patient), names = Cell.of(cell), tools.study.class_names
        key = tools.layout.softmax(patient, model)
        made_by = {"model_version": ready.model_version, "code": self.code}
        with SoftmaxWriter(
            tools.objects,
            key,
            prediction.grid,
            class_names=names,
            provenance={"patient": patient, "predictor": model, **made_by},
        ) as writer:
            try:
                for z0, slab in prediction.encoded:
                    turn.go_on()
                    writer.write_encoded(z0, slab)
            except SoftmaxError as defect:
                raise checks["sums_to_one"].refuse(cell, defect) from defect
            turn.go_on()
        return self._stored(cell, key, prediction, writer.facts)

    def _stored(self, cell: str, key: str, prediction: Prediction, written: SoftmaxFacts) -> Stored:
        tools, checks = self.tools, self.checks
        (model, patient), names = Cell.of(cell), tools.study.class_names
        variant = ModelId.parse(model).variant
        voxels = dict(zip(names, written.label_voxels, strict=True))
        volumes_ml = {n: count * prediction.grid.voxel_ml for n, count in voxels.items()}
        checks["sums_to_one"].look(cell)
        checks["labels_are_not_empty"].look(cell, [f"no {n}" for n, count in voxels.items() if not count])
        checks["volumes_are_plausible"].look(cell, implausible_volumes(volumes_ml, tools.study.checks.volume_ml))
        return Stored(
            key,
            written.version,
            {
                "patient": patient,
                "model": _model_of(model),
                **({"variant": variant} if variant else {}),
                "shape": by(prediction.shape),
                "bytes": written.size,
                "device": device_name(prediction.device, self.leased),
                "memory estimated (GiB)": round(prediction.memory_bytes / 2**30, 2),
                "voxels by label": voxels,
                "volumes (ml)": {n: round(ml, 2) for n, ml in volumes_ml.items()},
                "preview": preview_softmax(open_softmax(tools.objects, key), f"{model} of {patient}"),
            },
        )


def require_unseen(model_folder: Path, model: str, patient: str) -> None:
    """Raise a SegmentationError if a model has seen the patient; only new models predict former training patients, and
    calibrations are fitted on patients whom no model has seen.
    """
    if patient in trained_on(model_folder):
        raise SegmentationError(
            "predicting",
            f"{model} of {patient}",
            "the model was trained on this patient, so that its scores would say nothing",
            "Train the model again if its dataset is out of date; otherwise leave the patient out of the test set and of its rule, "
            "or, if it is a validation patient, write `training: {sets: [train, validation]}`.",
        )


def _require_same_model(made_by: str | None, model: str, patient: str, version: str) -> None:
    """Require that a model's own volume of a patient was made by the version of the model that predicts its variants."""
    if made_by == version:
        return
    if made_by is None:
        found, remedy = (
            "the model's own prediction was uploaded and does not say which version of the model made it",
            "Make the prediction here (make_missing with elsewhere: true), or leave the model out of cheap_ensembles.",
        )
    else:
        found, remedy = (
            f"the model's own prediction was made by its version {made_by}, and the bucket holds version {version}",
            "Materialise softmax of this patient and model again, then variant_softmax; `study` does both.",
        )
    raise SegmentationError("predicting variants", f"{model} of {patient}", found, remedy)


def implausible_volumes(volumes_ml: dict[str, float], limits: Mapping[str, tuple[float, float]]) -> list[str]:
    """Which organs are implausibly small or large.

    Args:
        volumes_ml: class → volume in ml, background included.
        limits: organ → least and most, ml; an organ that is not named is only compared with the scan.
    """
    whole, odd = sum(volumes_ml.values()), []
    for organ, ml in volumes_ml.items():
        if organ == "background" or not ml:
            continue
        low, high = limits.get(organ, (0.0, whole / 2))
        if not low <= ml <= high:
            odd.append(f"{organ} of {ml:.1f} ml (plausible: {low:g} … {high:g})")
    return odd


def preview_softmax(volume: SoftmaxVolume, title: str) -> Picture:
    """The middle slice of what is foreground in a stored volume, as an image for the UI."""
    z = volume.fullest_slice
    png = previews.preview_softmax(
        None,
        volume.slab(z, z + 1)[:, 0],
        spacing_mm=volume.grid.spacing_mm,
        orientation=volume.grid.orientation,
        class_names=volume.class_names,
        title=f"{title}, slice {z}",
    )
    return Picture(png, f"{title}, slice {z}")
