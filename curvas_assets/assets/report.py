"""Report: the figures, and one page that a reviewer can read offline."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import dagster as dg
import nibabel as nib
import numpy as np
import pandas as pd
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph

from curvas_assets.assets.cohort import OWNERS, fetch_files
from curvas_assets.assets.comparisons import published_scores
from curvas_assets.assets.scores import of_the_study
from curvas_assets.cohort import read_annotations
from curvas_assets.errors import MissingArtefactError
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.checks import Check
from curvas_assets.orchestration.environment import report_folder
from curvas_assets.orchestration.execution import RETRY, StageNeeds
from curvas_assets.orchestration.io_manager import Artefact, Artefacts, Stored, artefact
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.provenance import data_versions, git_commit, package_versions
from curvas_assets.orchestration.scratch import scratch_space
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.state import state_table
from curvas_assets.report import (
    OrganView,
    Provenance,
    Report,
    ReportInputs,
    SliceView,
    build_report,
    most_disputed_slice,
)
from curvas_assets.report.style import ImageFormat
from curvas_assets.scoring import metric_table
from curvas_assets.statistics import (
    annotator_agreement,
    dice_against_entropy,
    failure_over_patients,
    non_inferiority,
    out_of_distribution,
)
from curvas_assets.storage import directories, tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.maps import download_map
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.storage.softmax import open_softmax
from curvas_assets.study import Study

GROUP = "report"
SECTIONS = (
    *("question", "data", "protocol", "results", "statistics"),
    *("comparison", "maps", "cost", "metrics", "reproducibility", "state"),
)
REPORT_CHECK = Check(
    "sections_are_complete",
    "Every section is on the page, and every figure stands beside it.",
    dg.AssetCheckSeverity.ERROR,
)
CURRENT_CHECK = Check(
    "inputs_are_up_to_date", "Nothing behind the page was out of date when it was written: all that it states is so."
)
FIGURES_CHECK = Check(
    "figures_are_drawn", "Every figure stands as PNG, SVG and PDF, none of them empty.", dg.AssetCheckSeverity.ERROR
)
LARGEST_3D = 128
"""Voxels along an axis of the 3-D view; larger volumes are thinned."""


def build(study: Study, partitions: Partitions, graph: Callable[[], BaseAssetGraph]) -> list[dg.AssetsDefinition]:
    """The report of one study; `graph` gives the whole lineage, whose state stands in it."""
    needs = StageNeeds.of(study)
    code_version = f"2-{study.fingerprint()}"

    @dg.multi_asset(
        name="report",
        ins={
            "cohort": dg.AssetIn(),
            "study_scores": dg.AssetIn(),
            "family_comparisons": dg.AssetIn(),
            "leaderboard": dg.AssetIn(),
            "cost": dg.AssetIn(),
            "published_comparison": dg.AssetIn(),
            "scores": dg.AssetIn(partition_mapping=dg.AllPartitionMapping()),
            "trained_model": dg.AssetIn(partition_mapping=dg.AllPartitionMapping()),
        },
        outs={
            "figures": dg.AssetOut(
                group_name=GROUP,
                owners=OWNERS,
                kinds={"matplotlib", "plotly"},
                code_version=code_version,
                metadata=artefact("folder"),
                description="Every figure of the report as PNG, SVG and PDF.",
            ),
            "report": dg.AssetOut(
                group_name=GROUP,
                owners=OWNERS,
                kinds={"html", "markdown"},
                code_version=code_version,
                metadata=artefact("folder"),
                description="One self-contained HTML page, and the same as Markdown: data, protocol, results, statistics, cost.",
            ),
        },
        check_specs=[FIGURES_CHECK.spec("figures"), REPORT_CHECK.spec("report"), CURRENT_CHECK.spec("report")],
        op_tags=needs.report.op_tags,
        retry_policy=RETRY,
    )
    def write_report(
        context: dg.AssetExecutionContext,
        bucket: Bucket,
        cohort: Artefact,
        study_scores: Artefact,
        family_comparisons: Artefact,
        leaderboard: Artefact,
        cost: Artefact,
        published_comparison: Artefact,
        scores: Artefacts,
        trained_model: Artefacts,
    ):
        objects, layout = bucket.checked_objects(), bucket.layout
        long, patients = study_scores.table(), cohort.table()
        scored = sorted(map(str, long["patient"].unique()))
        shown = typical_patient(study, long)
        published = None
        if len(published_comparison.table()):
            published = published_scores(objects, layout.published_table(study.report.published_table), study)
        context.log.info(f"report on {len(scored)} patients, pictures of {shown}")
        state = state_table(Staleness(graph(), context.instance), without=("figures", "report"))
        with scratch_space("report") as scratch:
            slices, organs = pictures(study, objects, layout, shown, Path(scratch))
        report = build_report(
            ReportInputs(
                study=study,
                scores=long,
                provenance=Provenance(
                    generated_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                    git_commit=git_commit(),
                    packages=package_versions(),
                    data_versions={
                        **data_versions(context.instance, ["cohort", "study_scores", "family_comparisons"], [""]),
                        **data_versions(context.instance, ["trained_model"], sorted(trained_model)),
                        **data_versions(context.instance, ["scan", "scores"], scored),
                    },
                ),
                metrics=metric_table(),
                cohort=patients.drop(columns=["exclusions"]),
                exclusions=exclusion_ledger(patients, long),
                comparisons=family_comparisons.table(),
                non_inferiority=non_inferiority(long, study.statistics),
                association=dice_against_entropy(long),
                agreement=annotator_agreement(long),
                failure=failure_over_patients(long),
                out_of_distribution=out_of_distribution(long, study.in_distribution_group),
                leaderboard=leaderboard.table(),
                published=published,
                reliability=_of_all(study, scores, scored, "reliability"),
                risk_coverage=_of_all(study, scores, scored, "risk_coverage"),
                cost=cost.table(),
                curves=curves(objects, layout, sorted(trained_model)),
                state=state,
                averaged=averaged(study, objects, layout, scored),
                slices=slices,
                organs=organs,
            )
        )
        with scratch_space("report") as scratch:
            figures, page = Path(scratch, "figures"), Path(scratch, "page")
            for name, content in report.attachments.items():
                for folder in (figures, page / "figures") if name.endswith(".png") else (figures,):
                    path = folder / Path(name).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
            page.mkdir(exist_ok=True)
            (page / "report.html").write_text(report.html)
            (page / "report.md").write_text(report.markdown)
            drawn = directories.write_directory(objects, layout.figures(), figures)
            written = directories.write_directory(objects, layout.report(), page)
            if kept := report_folder():
                try:
                    keep_copy(page, kept)
                except OSError as error:  # the report stands in the bucket all the same
                    context.log.warning(f"no copy of the report could be kept in {kept}: {error}")
        yield dg.Output(
            Stored(layout.figures(), drawn.version),
            output_name="figures",
            data_version=dg.DataVersion(drawn.version),
            metadata={
                "figures": len(report.figures),
                "bytes": drawn.size,
                "uri": f"{objects.name}/{layout.figures()}",
                **{
                    name: metadata.image(report.attachments[f"figures/{name}.png"], name)
                    for name in report.figures[:4]
                    if f"figures/{name}.png" in report.attachments
                },
            },
        )
        yield dg.Output(
            Stored(layout.report(), written.version),
            output_name="report",
            data_version=dg.DataVersion(written.version),
            metadata={
                **metadata.link(bucket.report_link()),
                "in short": dg.MetadataValue.md(in_short(report)),
                "report": f"{objects.name}/{layout.report()}/{written.place}/report.html",
                "patients": len(scored),
                "bytes": written.size,
                "pictures of": shown,
            },
        )
        yield FIGURES_CHECK.result("figures", undrawn(report))
        yield REPORT_CHECK.result("report", missing_parts(report))
        yield CURRENT_CHECK.result("report", out_of_date(state))

    return [write_report]


def in_short(report: Report) -> str:
    """The report's first section, as Markdown."""
    return report.markdown.split("\n## ")[1].partition("\n")[2].strip()


def keep_copy(page: Path, folder: Path) -> None:
    """The report's files in a folder, each whole at any moment; figures of an earlier report go."""
    wanted = {path.relative_to(page) for path in page.rglob("*") if path.is_file()}
    for name in sorted(wanted, key=lambda name: name.suffix == ".html"):  # the page last, its figures are there then
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


def missing_parts(report: Report) -> list[str]:
    """Sections that are not on the page, and figures without a picture."""
    absent = [f"section {name}" for name in SECTIONS if f'id="{name}"' not in report.html]
    return absent + [f"figure {n}" for n in report.figures if f"figures/{n}.png" not in report.attachments]


def out_of_date(state: pd.DataFrame) -> list[str]:
    """What behind the report was out of date when it was written, from the state of the lineage."""
    stale = state[state["stale"] > 0]
    return [f"{one.stale} of {one.asset} out of date: {one.why}" for one in stale.itertuples()]


def averaged(study: Study, objects: ObjectStore, layout: Layout, patients: list[str]) -> pd.DataFrame:
    """What the ensembles of these patients are the mean of, as their volumes say: predictor, members, patients, models."""
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


def undrawn(report: Report) -> list[str]:
    """Figures that are not there in a format, or are empty."""
    wanted = [f"figures/{name}.{image_format}" for name in report.figures for image_format in get_args(ImageFormat)]
    return [f"{path.removeprefix('figures/')} was not drawn" for path in wanted if not report.attachments.get(path)]


def typical_patient(study: Study, scores: pd.DataFrame) -> str:
    """The patient whose Dice by the general ensemble is the median: neither the best nor the worst case."""
    dice = scores[(scores["metric"] == "dice") & (scores["family"] == "general")]
    means = (dice if len(dice) else scores[scores["metric"] == "dice"]).groupby("patient")["value"].mean().dropna()
    if means.empty:
        return str(scores["patient"].iloc[0])
    return str(means.sort_values().index[(len(means) - 1) // 2])


def pictures(
    study: Study, objects: ObjectStore, layout: Layout, patient: str, scratch: Path
) -> tuple[list[SliceView], OrganView]:
    """The slice of a patient that annotators dispute most, with its annotations and the widest ensemble's maps, and its organs."""
    record = tables.read_json(objects, layout.scan(patient))
    fetch_files(objects, record, scratch / patient, [study.image, *(a.file for a in study.annotators)])
    drawn = [i for i, name in enumerate(study.annotator_names) if name not in record.get("not_annotated", [])]
    annotations = read_annotations(scratch / patient, study).only(drawn)
    z = most_disputed_slice(annotations)
    image = np.asarray(nib.Nifti1Image.from_filename(scratch / patient / study.image).dataobj[:, :, z]).T
    spacing_mm, affine = tuple(record["facts"]["spacing_mm"]), np.asarray(record["affine"])
    widest = max(study.ensemble_ids, key=lambda e: len(study.members(e)))
    maps, belong = {}, open_softmax(objects, layout.softmax(patient, str(widest))).beside
    for name in ("entropy", "mutual_information", "labels"):
        key = layout.ensemble_map(patient, str(widest), name)
        path = download_map(objects, key, scratch / f"{name}.nii.gz", check=belong.get(name))
        maps[name] = nib.Nifti1Image.from_filename(path)
    view = SliceView(
        patient=patient,
        z=z,
        image=image,
        annotations=annotations[:, z],
        annotators=tuple(study.annotator_names[i] for i in drawn),
        spacing_mm=spacing_mm,
        orientation=affine,
        predictor=str(widest),
        segmentation=np.asarray(maps["labels"].dataobj[:, :, z]).T,
        predictive_entropy=np.asarray(maps["entropy"].dataobj[:, :, z]).T,
        mutual_information=np.asarray(maps["mutual_information"].dataobj[:, :, z]).T,
    )
    labels = np.asarray(maps["labels"].dataobj).transpose(2, 1, 0)
    step = tuple(-(-n // LARGEST_3D) for n in labels.shape)
    thinned = labels[tuple(slice(None, None, s) for s in step)]
    z_mm, y_mm, x_mm = (float(s * n) for s, n in zip(spacing_mm, step, strict=True))
    return [view], OrganView(patient, thinned, (z_mm, y_mm, x_mm), str(widest), affine)


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


def curves(objects: ObjectStore, layout: Layout, models: list[str]) -> dict[str, pd.DataFrame]:
    """Training curves of the models there are; a model that was uploaded may have none."""
    there = {
        model: pd.DataFrame(json.loads(directories.read_file(objects, layout.model(model), "training.json"))["curve"])
        for model in models
        if directories.exists(objects, layout.model(model))
    }
    return {model: curve for model, curve in there.items() if len(curve)}
