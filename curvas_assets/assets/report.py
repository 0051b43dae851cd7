"""Report: the figures, and one page that a reviewer can read offline."""

from collections.abc import Callable
from datetime import UTC, datetime

import dagster as dg

from curvas_assets.assets.declaring import Declarations
from curvas_assets.orchestration import checks as verdicts
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.asset_keys import key_of
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.dagster_internals import (
    AssetGraph,
)
from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.execution import RETRY
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.provenance import data_versions, git_commit, package_versions
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.state import state_table
from curvas_assets.report import Provenance
from curvas_assets.stages import table
from curvas_assets.stages import write_up as stage
from curvas_assets.stages.stored import Artefact, Artefacts, Picture, Stored
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions, graph: Callable[[], AssetGraph]) -> list[dg.AssetsDefinition]:
    """The report of one study; `graph` gives the whole lineage, whose state the report shows."""
    declare = Declarations(study, partitions)
    figures, page, served = table.FIGURES, table.REPORT_PAGE, deployment().report_url

    @dg.multi_asset(
        name=page.name,
        ins=declare.inputs(page),
        outs={
            figures.name: dg.AssetOut(
                key=key_of(figures),
                description="Every figure of the report as PNG, SVG and PDF.",
                **declare.described(figures),
            ),
            page.name: dg.AssetOut(
                key=key_of(page),
                description="One self-contained HTML page, and the same as Markdown: data, protocol, results, statistics, cost.",
                metadata={metadata.OPENS: dg.MetadataValue.url(served)} if served else None,
                **declare.described(page),
            ),
        },
        check_specs=[
            *verdicts.specs(figures.name, [stage.FIGURES_CHECK]),
            *verdicts.specs(page.name, [stage.REPORT_CHECK, stage.CURRENT_CHECK]),
        ],
        op_tags=declare.needs(page).op_tags,
        retry_policy=RETRY,
    )
    def write_report(
        context: dg.AssetExecutionContext,
        bucket: Bucket,
        cohort: Artefact,
        study_scores: Artefact,
        family_comparisons: Artefact,
        variance_components: Artefact,
        leaderboard: Artefact,
        cost: Artefact,
        predictor_cost: Artefact,
        published_comparison: Artefact,
        study_comparison: Artefact,
        volume_intervals: Artefact,
        scores: Artefacts,
        trained_model: Artefacts,
    ):
        tools = declare.tools(context, bucket)
        state = state_table(Staleness(graph(), context.instance), without=(figures.name, page.name))
        behind = stage.Behind(
            cohort,
            study_scores,
            family_comparisons,
            variance_components,
            leaderboard,
            cost,
            predictor_cost,
            published_comparison,
            study_comparison,
            volume_intervals,
            scores,
            trained_model,
        )
        provenance = _provenance(context.instance, behind)
        written = stage.write_report(tools, behind, provenance, state, keep_in=deployment().report_folder)
        yield _figures_output(tools, written)
        yield _page_output(tools, written, bucket)
        yield verdicts.result(stage.FIGURES_CHECK, figures.name, stage.undrawn(written.report))
        yield verdicts.result(stage.REPORT_CHECK, page.name, stage.missing_parts(written.report))
        yield verdicts.result(stage.CURRENT_CHECK, page.name, stage.out_of_date(state))

    return [write_report]


def _provenance(instance: dg.DagsterInstance, behind: stage.Behind) -> Provenance:
    """When the report is written, by which code, and from which versions of the data."""
    patients = sorted(map(str, behind.study_scores.table()["patient"].unique()))
    tables = [
        table.COHORT,
        table.STUDY_SCORES,
        table.FAMILY_COMPARISONS,
        table.VARIANCE_COMPONENTS,
        table.VOLUME_INTERVALS,
    ]
    return Provenance(
        generated_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        git_commit=git_commit(),
        packages=package_versions(),
        data_versions={
            **data_versions(instance, tables, [""]),
            **data_versions(instance, [table.TRAINED_MODEL], sorted(behind.trained_model)),
            **data_versions(instance, [table.SCAN, table.SCORES], patients),
        },
    )


def _figures_output(tools: Toolkit, written: stage.Written) -> dg.Output[Stored]:
    report, place = written.report, table.FIGURES.place(tools.layout)
    return dg.Output(
        Stored(place, written.figures.version),
        output_name=table.FIGURES.name,
        data_version=dg.DataVersion(written.figures.version),
        metadata=metadata.shown(
            {
                "figures": len(report.figures),
                "bytes": written.figures.size,
                metadata.URI: f"{tools.objects.name}/{place}",
                **{
                    name: Picture(report.attachments[f"figures/{name}.png"], name)
                    for name in report.figures[:4]
                    if f"figures/{name}.png" in report.attachments
                },
            }
        ),
    )


def _page_output(tools: Toolkit, written: stage.Written, bucket: Bucket) -> dg.Output[Stored]:
    place = table.REPORT_PAGE.place(tools.layout)
    return dg.Output(
        Stored(place, written.page.version),
        output_name=table.REPORT_PAGE.name,
        data_version=dg.DataVersion(written.page.version),
        metadata={
            **metadata.link(bucket.report_link(), deployment().report_url),
            **metadata.earlier(bucket.kept_report_links()),
            "in short": dg.MetadataValue.md(stage.in_short(written.report)),
            "report": f"{tools.objects.name}/{place}/{written.page.place}/report.html",
            "patients": len(written.patients),
            "bytes": written.page.size,
            "pictures of": ", ".join(written.pictured) or "none",
        },
    )
