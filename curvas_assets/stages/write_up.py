"""Report: the figures, and one page that a reviewer can read offline."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError
from curvas_assets.geometry import by, mm
from curvas_assets.report import Provenance, ReportInputs, WrittenReport, build_report
from curvas_assets.report.sections import SECTIONS
from curvas_assets.report.style import ImageFormat
from curvas_assets.report.verdict import leading_predictor
from curvas_assets.scoring import metric_table
from curvas_assets.stages import kept_reports
from curvas_assets.stages.checks import Check
from curvas_assets.stages.compare import published_scores
from curvas_assets.stages.picture import anatomy, choose_cases, pictures
from curvas_assets.stages.score import of_the_study
from curvas_assets.stages.stored import Artefact, Artefacts
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.statistics import (
    annotator_agreement,
    dice_against_entropy,
    failure_over_patients,
    non_inferiority,
    out_of_distribution,
    pairs_of,
)
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.storage.softmax import open_softmax
from curvas_assets.study import Study

IMAGE_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
"""Of every figure beside the page."""
REPORT_CHECK = Check(
    "sections_are_complete",
    "Every section is on the page, and every figure stands beside it.",
    of_defects=True,
)
CURRENT_CHECK = Check(
    "inputs_are_up_to_date",
    "Nothing that the page depends on was out of date when it was written: all it states is current.",
)
FIGURES_CHECK = Check(
    "figures_are_drawn", "Every figure stands as PNG, SVG and PDF, none of them empty.", of_defects=True
)


@dataclass(frozen=True)
class Behind:
    """The artefacts that a report is made from."""

    cohort: Artefact
    study_scores: Artefact
    family_comparisons: Artefact
    variance_components: Artefact
    leaderboard: Artefact
    cost: Artefact
    predictor_cost: Artefact
    published_comparison: Artefact
    study_comparison: Artefact
    volume_intervals: Artefact
    scores: Artefacts
    trained_model: Artefacts


@dataclass(frozen=True)
class Written:
    """A report that stands in the bucket.

    Args:
        report: as it was built.
        figures: the stored folder of figures.
        page: the stored folder of the page.
        patients: that are in it.
        pictured: those whose pictures are shown.
    """

    report: WrittenReport
    figures: directories.StoredDirectory
    page: directories.StoredDirectory
    patients: tuple[str, ...]
    pictured: tuple[str, ...]


def write_report(
    tools: Toolkit, behind: Behind, provenance: Provenance, state: pd.DataFrame, *, keep_in: Path | None = None
) -> Written:
    """Draw the figures, write the page, and store both.

    Args:
        tools: the study's.
        behind: what it is made from.
        provenance: when, by which code and from which data.
        state: of the lineage: what is out of date, and why.
        keep_in: a folder that keeps a copy of the page; an error there is only a warning.
    """
    study, objects, layout = tools.study, tools.objects, tools.layout
    long, patients = behind.study_scores.table(), behind.cohort.table()
    scored = sorted(map(str, long["patient"].unique()))
    cases = choose_cases(study, long)
    lead = leading_predictor(study, long["predictor"].unique())
    published = None
    if len(behind.published_comparison.table()):
        published = published_scores(objects, layout.published_table(study.report.published_table), study)
    trainings = trained(objects, layout, sorted(behind.trained_model))
    tools.tell(f"report on {len(scored)} patients, pictures of {', '.join(case.patient for case in cases)}")
    with tools.scratch("report") as scratch:
        slices, organs = pictures(tools, cases, lead, Path(scratch))
    report = build_report(
        ReportInputs(
            study=study,
            scores=long,
            provenance=provenance,
            metrics=metric_table(study.evaluation.reference, vessels=bool(study.evaluation.vascular.vessels)),
            cohort=patients.drop(columns=["exclusions"]),
            anatomy=anatomy(study, objects, layout, scored),
            exclusions=exclusion_ledger(patients, long),
            comparisons=behind.family_comparisons.table(),
            non_inferiority=non_inferiority(long, study.statistics, pairs=pairs_of(study)),
            variance=behind.variance_components.table(),
            association=dice_against_entropy(long),
            agreement=annotator_agreement(long),
            failure=failure_over_patients(long),
            out_of_distribution=out_of_distribution(long, study.in_distribution_group),
            leaderboard=behind.leaderboard.table(),
            published=published,
            others=behind.study_comparison.table(),
            volume_intervals=behind.volume_intervals.table(),
            reliability=_of_all(study, behind.scores, scored, "reliability"),
            risk_coverage=_of_all(study, behind.scores, scored, "risk_coverage"),
            cost=behind.cost.table(),
            predictor_cost=behind.predictor_cost.table(),
            curves=curves(trainings),
            networks=networks(objects, layout, trainings, study.plans.configuration),
            state=state,
            averaged=averaged(study, objects, layout, scored),
            slices=slices,
            organs=organs,
        ),
        image_formats=IMAGE_FORMATS,
    )
    with tools.scratch("report") as scratch:
        figures, page = Path(scratch, "figures"), Path(scratch, "page")
        _lay_out(report, figures, page)
        drawn = directories.write_directory(objects, layout.figures(), figures)
        written = directories.write_directory(objects, layout.report(), page)
        kept_reports.keep(objects, layout, page, written.version, provenance.generated_at)
        if keep_in is not None:
            try:
                keep_copy(page, keep_in)
            except OSError as error:  # the report stands in the bucket all the same
                tools.warn(f"no copy of the report could be kept in {keep_in}: {error}")
    return Written(report, drawn, written, tuple(scored), tuple(view.patient for view in slices))


def _lay_out(report: WrittenReport, figures: Path, page: Path) -> None:
    """Every figure in the folder of figures; the page with those that it shows beside it."""
    for name, content in report.attachments.items():
        for folder in (figures, page / "figures") if name.endswith(".png") else (figures,):
            path = folder / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    page.mkdir(exist_ok=True)
    (page / "report.html").write_text(report.html)
    (page / "report.md").write_text(report.markdown)
    (page / "references.bib").write_text(report.references)


def in_short(report: WrittenReport) -> str:
    """The report's first section, as Markdown."""
    return report.markdown.split("\n## ")[1].partition("\n")[2].strip()


def keep_copy(page: Path, folder: Path) -> None:
    """Write the report's files into a folder, each whole at any moment, and remove the figures of an earlier report."""
    wanted = {path.relative_to(page) for path in page.rglob("*") if path.is_file()}
    for name in sorted(wanted, key=lambda name: name.suffix == ".html"):  # the page last, when its figures are there
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(page / name, part)
        part.replace(target)
    for path in (folder / "figures").glob("*.png"):
        if path.relative_to(folder) not in wanted:
            path.unlink()


def _of_all(study: Study, scores: Artefacts, patients: list[str], name: str) -> pd.DataFrame:
    """A table of several patients' scores, of the predictors that the study has now."""
    return pd.concat([of_the_study(study, p, scores[p].table(name)) for p in patients], ignore_index=True)


def missing_parts(report: WrittenReport) -> list[str]:
    """Sections that are not on the page, and figures without a picture."""
    absent = [f"section {name}" for name in SECTIONS if f'id="{name}"' not in report.html]
    return absent + [f"figure {n}" for n in report.figures if f"figures/{n}.png" not in report.attachments]


def out_of_date(state: pd.DataFrame) -> list[str]:
    """What the report depends on and was out of date when it was written, from the state of the lineage."""
    stale = state[state["stale"] > 0]
    return [f"{one.stale} of {one.asset} out of date: {one.why}" for one in stale.itertuples()]


def averaged(study: Study, objects: ObjectStore, layout: Layout, patients: list[str]) -> pd.DataFrame:
    """Which models these patients' ensembles average, as their volumes record: predictor, members, patients, models."""
    cells = [(str(ensemble), patient) for ensemble in study.ensemble_ids for patient in patients]

    def members(cell: tuple[str, str]) -> tuple[str, ...]:
        ensemble, patient = cell
        try:
            return tuple(open_softmax(objects, layout.softmax(patient, ensemble)).provenance.get("members", ()))
        except MissingArtefactError:  # emptied since it was scored
            return ()

    with ThreadPoolExecutor(8, thread_name_prefix="curvas-members") as pool:
        found = Counter(
            (ensemble, models) for (ensemble, _), models in zip(cells, pool.map(members, cells), strict=True)
        )
    rows = [
        (ensemble, len(models) or None, count, ", ".join(models) or "not known: the volumes are gone, or do not say")
        for (ensemble, models), count in found.items()
    ]
    return pd.DataFrame(rows, columns=["predictor", "members", "patients", "models"]).astype({"members": "Int64"})


def undrawn(report: WrittenReport) -> list[str]:
    """Figures that are not there in a format, or are empty."""
    wanted = [f"figures/{name}.{image_format}" for name in report.figures for image_format in IMAGE_FORMATS]
    return [f"{path.removeprefix('figures/')} was not drawn" for path in wanted if not report.attachments.get(path)]


def exclusion_ledger(cohort: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Everything that is left out or in doubt, and why: patients, annotations and organs at intake, scores without a value."""
    columns = ["patient", "predictor", "metric", "organ", "annotator", "reason"]
    rows = [
        {"patient": row["patient"], "reason": f"{row['status']}: {row['reason']}"}
        for _, row in cohort[cohort["status"] != "taken in"].iterrows()
    ]
    rows += [entry for text in cohort["exclusions"] for entry in json.loads(text)]
    doubts = cohort.get("doubts", pd.Series("", index=cohort.index))
    rows += [{"patient": p, "reason": doubt} for p, doubt in zip(cohort["patient"], doubts, strict=True) if doubt]
    undefined = scores[scores["value"].isna()].rename(columns={"note": "reason"})
    ledger = pd.concat([pd.DataFrame(rows, columns=columns), undefined[columns]], ignore_index=True)
    return ledger.fillna("")


def trained(objects: ObjectStore, layout: Layout, models: list[str]) -> dict[str, dict[str, Any]]:
    """Model → the record of its training, of the models there are."""
    return {
        model: json.loads(directories.read_file(objects, layout.model(model), "training.json"))
        for model in models
        if directories.exists(objects, layout.model(model))
    }


def curves(trainings: Mapping[str, dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Training curves; a model that was uploaded may have none."""
    found = {model: pd.DataFrame(record["curve"]) for model, record in trainings.items()}
    return {model: curve for model, curve in found.items() if len(curve)}


def networks(
    objects: ObjectStore, layout: Layout, trainings: Mapping[str, dict[str, Any]], configuration: str
) -> pd.DataFrame:
    """How each model came to be: epochs and device on record, and patch, voxel size and batch of its plans.

    A model that was uploaded may say less; its plans may lack the study's configuration, or be damaged.
    """
    rows: list[dict[str, Any]] = []
    for model, record in trainings.items():
        try:
            plans = json.loads(directories.read_file(objects, layout.model(model), "plans.json"))
        except CorruptArtefactError:  # the report can do without it; who predicts with the model is told
            plans = {}
        planned = plans.get("configurations", {}).get(configuration, {})
        patch, spacing = planned.get("patch_size"), planned.get("spacing")
        rows.append(
            {
                "model": model,
                "epochs": record.get("epochs"),
                "device": record.get("device"),
                "patch_size": by(patch) if patch else None,
                "spacing_mm": mm(spacing) if spacing else None,
                "batch_size": planned.get("batch_size"),
            }
        )
    columns = ["model", "epochs", "device", "patch_size", "spacing_mm", "batch_size"]
    return pd.DataFrame(rows, columns=columns).astype({"epochs": "Int64", "batch_size": "Int64"})
