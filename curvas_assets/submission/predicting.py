"""From a scan to the volume of a predictor: members one after the other, their mean, and what calibrates it.

Between these steps stand volumes of codes on disk, as on the platform: they make the result the platform's own, and memory
holds one member's prediction and a few slabs of the others.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from curvas_assets.calibration import CalibratedVolume
from curvas_assets.ensembling import stream_ensembles
from curvas_assets.geometry import Grid
from curvas_assets.predictors import ModelId
from curvas_assets.segmentation import Predictor
from curvas_assets.storage.encoding import labels_of
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxVolume, SoftmaxWriter, open_softmax
from curvas_assets.submission.images import ScanFile, take_in, the_only_image, write_like
from curvas_assets.submission.record import MODELS, Submission, read_submission, uncalibrated

Tell = Callable[[str], None]
Volume = SoftmaxVolume | CalibratedVolume
IMAGES = "images"
OUTPUT = "output"
SUBJECT = "the scan"


def predict(models: Path, given: Path, into: Path, scratch: Path, tell: Tell, *, suffix: str = ".mha") -> list[Path]:
    """Predict the scan of a folder, and write its label map and the confidence of each organ.

    Args:
        models: the folder that `export_submission` wrote.
        given: holds `images/<image>/` with one scan (.mha or NIfTI).
        into: receives `images/<labels>/output.mha` and `images/<organ>-confidence/output.mha`, as the sockets name them.
        scratch: a folder to work in; it takes the scan, and about a byte a voxel for each member.
        tell: told of each step.
        suffix: of what is written, `.mha` or `.nii.gz`.

    Returns:
        The files that were written.

    Raises:
        MissingArtefactError, CorruptArtefactError: there is no whole submission in `models`.
        PatientError: there is no scan, or there are several, or it cannot be read; or nothing can be written.
        SegmentationError: a model cannot be loaded or applied.
    """
    submission = read_submission(models)
    path = the_only_image(Path(given) / IMAGES / submission.sockets.image)
    scan = take_in(path, submission.study.intake, scratch)
    tell(f"{submission.predictor}: {len(submission.members)} members, {scan.given.name}")
    predictor = _predictor(submission, tell)
    volumes = _members(submission, Path(models) / MODELS, predictor, scan.nifti, scratch, tell)
    return _write(submission, combine(submission, volumes, scratch), scan, into, tell, suffix)


def rehearse(models: Path, scratch: Path, tell: Tell) -> None:
    """Load every model, and take a made-up scan through all of a prediction except the networks.

    Args:
        models: the folder that `export_submission` wrote.
        scratch: a folder to work in.
        tell: told of each step.

    Raises:
        CurvasError: of the kinds that `predict` raises.
    """
    submission = read_submission(models)
    predictor = _predictor(submission, tell)
    for member in submission.members:
        model = ModelId.parse(member)
        predictor.load(Path(models) / MODELS / str(model.trained), model.variant)
        tell(f"{member}: loaded")
    for trained in submission.models:
        predictor.rehearse(Path(models) / MODELS / trained, scratch)
    grid, names = Grid.with_voxels((18, 20, 22), (5, 2, 2)), submission.study.class_names
    nib.save(nib.Nifti1Image(np.zeros(grid.shape[::-1], np.int16), grid.affine), Path(scratch) / "rehearsal.nii")
    scan = take_in(Path(scratch) / "rehearsal.nii", submission.study.intake, scratch)
    even = np.full((len(names), *grid.shape), 1 / len(names), np.float32)
    volumes: dict[str, SoftmaxVolume] = {}
    for member in submission.members:
        with _writer(submission, member, grid, scratch) as writer:
            writer.write(0, even)
        volumes[member] = open_softmax(writer.store, writer.key)
    _write(submission, combine(submission, volumes, scratch), scan, Path(scratch) / "out", tell, ".mha")


def combine(submission: Submission, volumes: Mapping[str, SoftmaxVolume], scratch: Path) -> Volume:
    """The predictor's volume from its members': their mean if it is an ensemble, calibrated if it is.

    Args:
        submission: the predictor.
        volumes: member → its volume of the scan.
        scratch: a folder for the mean.
    """
    volume = next(iter(volumes.values()))
    if submission.averages:
        name = str(uncalibrated(submission.predictor))
        with _writer(submission, name, volume.grid, scratch) as writer:
            for z0, _, slabs in stream_ensembles(volumes, {name: list(volumes)}):
                writer.write(z0, slabs[name].mean)
        volume = open_softmax(writer.store, writer.key)
    return volume if submission.calibrator is None else CalibratedVolume(volume, submission.calibrator)


def _predictor(submission: Submission, tell: Tell) -> Predictor:
    return Predictor(submission.study, tell=tell, unrecorded_order=lambda: submission.voxel_order)


def _members(
    submission: Submission, models: Path, predictor: Predictor, image: Path, scratch: Path, tell: Tell
) -> dict[str, SoftmaxVolume]:
    """The volume of each member, on disk. One preprocessed scan is held at a time."""
    scan, volumes = predictor.open(image, SUBJECT), dict[str, SoftmaxVolume]()
    with predictor.pinned():
        for count, member in enumerate(submission.members, 1):
            model = ModelId.parse(member)
            folder = models / str(model.trained)
            shared = predictor.sharing(folder, model.variant)
            for other in [one for one in scan.preprocessed if one != shared]:
                del scan.preprocessed[other]
            prediction = predictor.predict(scan, folder, variant=model.variant)
            with _writer(submission, member, prediction.grid, scratch) as writer:
                for z0, slab in prediction.encoded:
                    writer.write_encoded(z0, slab)
            volumes[member] = open_softmax(writer.store, writer.key)
            tell(f"{count} of {len(submission.members)}, {member}: predicted on {prediction.device}")
    return volumes


def _writer(submission: Submission, name: str, grid: Grid, scratch: Path) -> SoftmaxWriter:
    return SoftmaxWriter(
        FolderObjects(Path(scratch) / "volumes"),
        f"{name}/softmax.zarr",
        grid,
        class_names=submission.study.class_names,
        provenance={"patient": SUBJECT, "predictor": name},
        scratch=scratch,
    )


def _write(submission: Submission, volume: Volume, scan: ScanFile, into: Path, tell: Tell, suffix: str) -> list[Path]:
    sockets, organs = submission.sockets, submission.study.class_names[1:]
    values = np.array([0, *(submission.label_values[organ] for organ in organs)])
    values = values.astype(np.uint8 if values.max() < 256 else np.uint16)
    at = {name: Path(into) / IMAGES / name / f"{OUTPUT}{suffix}" for name in sockets.written(organs)}
    write_like(scan, _labels(volume, values), values.dtype, at[sockets.labels])
    for c, organ in enumerate(organs):
        write_like(scan, _confidence(volume, c), np.float32, at[sockets.of(organ)])
    tell(f"written: {', '.join(at)}")
    return list(at.values())


def _labels(volume: Volume, values: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    for z0, _, codes in volume.code_slabs():
        yield z0, values[labels_of(codes, volume.levels)]


def _confidence(volume: Volume, c: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    for z0, _, codes in volume.code_slabs():
        yield z0, volume.levels[codes[c]]
