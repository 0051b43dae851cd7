"""Sharing: report, tables and previews of patients from the bucket as one bundle, for people who have no key of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from curvas_assets.errors import CurvasError, MissingArtefactError, PatientError, StudyError
from curvas_assets.orchestration.operations.download import export_nifti
from curvas_assets.orchestration.operations.transfer import human_bytes
from curvas_assets.report.style import ORGAN_COLOURS, colour_of
from curvas_assets.report.verdict import leading_predictor
from curvas_assets.report.words import Words
from curvas_assets.sharing import Bundle, Contents, Plan, worst_first
from curvas_assets.stages.calibrated import base_of, calibrators_of
from curvas_assets.stages.preview import Volume, stored_preview, write_preview
from curvas_assets.stages.stored import Artefact
from curvas_assets.stages.table import CALIBRATORS, COHORT, STUDY_SCORES, VIEWER_PREVIEW, asset
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.statistics import directions
from curvas_assets.statistics.reduction import reduce_scores
from curvas_assets.storage import directories, tables
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.maps import download_map
from curvas_assets.storage.softmax import open_softmax

TABLES = (
    "leaderboard",
    "family_comparisons",
    "variance_components",
    "volume_intervals",
    "published_comparison",
    "predictor_cost",
)
"""Of the study, those that a bundle holds beside the scores of patients."""
FULL_MAPS = ("labels", "entropy", "mutual_information")
MB = 1_000_000


@dataclass
class Shared:
    """What a bundle holds.

    Args:
        patients: with a preview, the worst first.
        omitted: for whom there was no room.
        no_room: further predictors that found no room, each with its patient, such as `ensemble_anno1|UKCHLL001`.
        missing: what was asked for and is not in the bucket, or cannot be made of what is there.
        size: bytes of what the limit is for.
        beside: bytes of full maps and probabilities.
    """

    patients: list[str] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)
    no_room: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    size: int = 0
    beside: int = 0


def share(
    tools: Toolkit,
    folder: Path,
    *,
    patients: Sequence[str],
    predictors: Sequence[str] = (),
    full_maps: Sequence[str] = (),
    probabilities: Sequence[str] = (),
    limit_mb: float = 200,
    forbidden: Sequence[str] = (),
) -> Shared:
    """Write a bundle into an empty folder.

    Args:
        tools: the study's.
        folder: made if it is not there.
        patients: who may be in it; those who are not scored are not.
        predictors: whose segmentations it has beside that of the patient's preview.
        full_maps: patients whose maps on the scan's own voxels are in it too.
        probabilities: cells such as `ensemble_all|UKCHLL001`, whose probabilities are in it as NIfTI.
        limit_mb: of all but full maps and probabilities, MB. The best patients are left out first.
        forbidden: text that must not be in it.

    Raises:
        MissingArtefactError: report or scores were not made.
        StudyError: a cell is none of the study's.
        ReportError: as `Bundle`.
    """
    study, objects, layout = tools.study, tools.objects, tools.layout
    cells = [_cell(tools, one) for one in probabilities]
    report = _of_the_report(tools)
    reduced = reduce_scores(Artefact(objects, layout.table(STUDY_SCORES.name), "table", STUDY_SCORES.name).table())
    lead = leading_predictor(study, reduced["predictor"].unique())
    words, metric = Words(study.report.language), next(iter(study.statistics.primary.values()), "")
    order = worst_first(reduced, lead, metric, directions().get(metric, ""))
    wanted = [(str(p), float(v)) for p, v in order.itertuples(index=False) if p in set(patients)]
    said, done = words.viewer(), Shared()
    contents = Contents(
        title=study.title,
        words=words,
        generated=report.partition('<p class="quiet">')[2].partition("</p>")[0],
        organs={organ: colour_of(ORGAN_COLOURS, at) for at, organ in enumerate(study.class_names[1:])},
        values={organ: of[0] for organ, of in study.label_values.organs.items()},
        annotators=study.annotator_names,
        order=said["order"].format(predictor=lead, metric=words.metric(metric)) if metric else said["by_name"],
        metric=words.metric(metric) if metric else "",
    )
    bundle = Bundle(folder, contents, report, _tables(tools, reduced), limit_bytes=limit_mb * MB)
    for count, (patient, value) in enumerate(wanted, 1):
        with tools.scratch(patient) as scratch:
            try:
                is_in = _add(tools, bundle, done, patient, value, predictors, scratch)
            except MissingArtefactError as error:
                done.missing.append(f"preview of {patient}")
                tools.warn(f"{patient} is not in the viewer: {error}")
                continue
            told = f"{human_bytes(bundle.size)} so far" if is_in else "no room for it"
            tools.tell(f"{count} of {len(wanted)}, {patient}: {told}")
    for patient in full_maps:
        with tools.scratch(patient) as scratch:
            _full_maps(tools, bundle, done, patient, scratch)
    for cell in cells:
        with tools.scratch(cell.patient) as scratch:
            _probabilities(tools, bundle, done, cell, scratch)
    bundle.finish(forbidden)
    done.patients, done.omitted, done.size = bundle.patients, list(bundle.omitted), bundle.size
    return done


def _of_the_report(tools: Toolkit) -> str:
    try:
        return directories.read_file(tools.objects, tools.layout.report(), "report.html").decode("utf-8")
    except MissingArtefactError as error:
        raise MissingArtefactError(
            "sharing", tools.study.name, "there is no report", "Run write_report first: the job `study` does."
        ) from error


def _tables(tools: Toolkit, reduced: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables that there are: one row a patient, predictor and metric, and those of the study."""
    found = {"scores": reduced}
    for name in (COHORT.name, *TABLES):
        try:
            found[name] = tables.read_table(tools.objects, tools.layout.table(asset(name).name))
        except MissingArtefactError:
            continue
    if COHORT.name in found:  # without what the intake noted: the report says it, in the reader's language
        found[COHORT.name] = found[COHORT.name].drop(columns=["exclusions", "reason"], errors="ignore")
    return {name: table for name, table in found.items() if len(table)}


def _add(
    tools: Toolkit,
    bundle: Bundle,
    done: Shared,
    patient: str,
    value: float,
    predictors: Sequence[str],
    scratch: Path,
) -> bool:
    """Put a patient's preview, and those of further predictors, into a bundle; whether there was room for the first."""
    preview = Artefact(tools.objects, tools.layout.preview(patient), "folder", f"{VIEWER_PREVIEW} of {patient}")
    facts = stored_preview(preview, scratch / "preview")
    if facts.get("class_names") != list(tools.study.class_names):  # its labels would be shown under these names
        raise MissingArtefactError(
            "sharing", patient, "its preview has other organs than the study", "Run preview_patients first."
        )
    if not bundle.add(patient, facts["predictor"], facts, scratch / "preview", value=value):
        return False
    its_own = set(tools.study.predictors_of(patient))
    for predictor in (one for one in predictors if one in its_own and one != facts["predictor"]):
        folder = scratch / predictor
        try:
            record = tables.read_json(tools.objects, tools.layout.scan(patient))
            volume, plan = _volume(tools, Cell(predictor, patient)), Plan.of(facts["plan"])
            own = write_preview(tools, patient, predictor, record, volume, folder, scratch / "work", plan=plan)
        except (MissingArtefactError, PatientError) as error:
            done.missing.append(f"{predictor} of {patient}")
            tools.warn(f"{predictor} of {patient} is not in the viewer: {error}")
            continue
        if not bundle.add(patient, predictor, own, folder):
            done.no_room.append(str(Cell(predictor, patient)))
            tools.warn(f"{predictor} of {patient} is not in the viewer: no room for it")
    return True


def _volume(tools: Toolkit, cell: Cell) -> Volume:
    """The probabilities of a predictor of a patient, opened."""
    from curvas_assets.calibration import CalibratedVolume

    study, objects, layout = tools.study, tools.objects, tools.layout
    if study.predicted_by(cell.predictor) != "calibrated":
        return open_softmax(objects, layout.softmax(cell.patient, cell.predictor))
    artefact = Artefact(objects, layout.calibrators(), CALIBRATORS.kind, CALIBRATORS.name)
    calibrator = calibrators_of(artefact, [cell.predictor])[cell.predictor]
    return CalibratedVolume(open_softmax(objects, layout.softmax(cell.patient, base_of(cell.predictor))), calibrator)


def _full_maps(tools: Toolkit, bundle: Bundle, done: Shared, patient: str, scratch: Path) -> None:
    preview = Artefact(tools.objects, tools.layout.preview(patient), "folder", f"{VIEWER_PREVIEW} of {patient}")
    out = scratch / "full"
    out.mkdir()
    try:
        predictor = stored_preview(preview, scratch / "preview")["predictor"]
        volume = open_softmax(tools.objects, tools.layout.softmax(patient, predictor))
        if tools.study.predicted_by(predictor) == "ensemble":
            for name in FULL_MAPS:
                key = tools.layout.ensemble_map(patient, predictor, name)
                download_map(tools.objects, key, out / f"{name}.nii.gz", check=volume.beside.get(name))
        else:
            export_nifti(volume, out, probabilities=False, again=True, values=tools.study.label_values)
    except MissingArtefactError as error:
        done.missing.append(f"full maps of {patient}")
        tools.warn(f"no full maps of {patient}: {error}")
        return
    done.beside += bundle.attach("full", patient, out)
    tools.tell(f"full maps of {patient}: {human_bytes(done.beside)} of full maps and probabilities so far")


def _probabilities(tools: Toolkit, bundle: Bundle, done: Shared, cell: Cell, scratch: Path) -> None:
    out = scratch / "probabilities"
    out.mkdir()
    try:
        volume = _volume(tools, cell)
        export_nifti(volume, out, probabilities=True, again=True, values=tools.study.label_values)
    except MissingArtefactError as error:
        done.missing.append(f"probabilities of {cell}")
        tools.warn(f"no probabilities of {cell}: {error}")
        return
    facts: Mapping[str, Any] = {
        "patient": cell.patient,
        "predictor": cell.predictor,
        "labels": {"background": 0} | {name: of[0] for name, of in tools.study.label_values.organs.items()},
        "files": {name: f"probability_{name}.nii.gz" for name in volume.class_names[1:]},
        "background": "1 minus the sum of the organs'",
    }
    (out / "organs.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    done.beside += bundle.attach("probabilities", cell.patient, out, cell.predictor)
    tools.tell(f"probabilities of {cell}: {human_bytes(done.beside)} of full maps and probabilities so far")


def _cell(tools: Toolkit, text: str) -> Cell:
    """A cell of the study, from its name."""
    known = "Give predictor|patient, such as ensemble_all|UKCHLL001."
    try:
        cell = Cell.of(text)
        patient = tools.study.patients.normalise(cell.patient)
    except (ValueError, CurvasError) as error:
        raise StudyError("sharing probabilities", text, "it names no predictor and patient", known) from error
    if cell.predictor not in tools.study.predictors_of(patient):
        names = ", ".join(tools.study.predictors_of(patient))
        raise StudyError("sharing probabilities", text, f"{cell.predictor} is not among {names}", known)
    return Cell(cell.predictor, patient)
