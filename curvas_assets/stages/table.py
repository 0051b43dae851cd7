"""The one table of the study's assets: a row says everything about an asset but what its work does.

All code reads from here which jobs there are, where an artefact stands, what a stage needs, where it counts in the
cost table, and what follows a new patient. A new asset is a row, a function in `curvas_assets.stages` and a declaration
in `curvas_assets.assets`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from curvas_assets.stages import schemas
from curvas_assets.storage.layout import Cell, Layout
from curvas_assets.storage.schemas import TableSchema
from curvas_assets.study import Study

Kind = Literal["record", "table", "folder", "softmax"]
"""What an artefact is: one JSON object, one table, a folder of files, or a volume of probabilities."""
Axis = Literal[
    "patient", "test_patient", "annotator", "model", "patient_by_model", "patient_by_variant", "patient_by_ensemble"
]
"""The axis along which an asset is partitioned: a field of `curvas_assets.orchestration.partitions.Partitions`."""
Need = Literal["table", "intake", "dataset", "training", "prediction", "ensembling", "scoring", "preview", "report"]
"""A field of `curvas_assets.orchestration.execution.StageNeeds`."""
REPORT = "write_report"
"""The job that makes the report on the whole study; it runs after the others."""


@dataclass(frozen=True)
class Asset:
    """An asset of the lineage.

    Args:
        name: its key.
        kind: what its artefacts are.
        group: in the UI.
        jobs: stage jobs that make it.
        needs: of its steps.
        cost: row of the cost table.
        version: of its code, and settings of the study that change what it holds.
        at: where the artefact of a partition stands; if not given, it is a table of the asset's name.
        axis: along which it is partitioned; None if it has no partitions.
        inputs: assets that are read.
        after: assets that come before without being read.
        fits: whether it is fitted on validation patients, whose partitions of its inputs alone it reads.
        per_run: partitions that one run takes.
        followed: whether the sensor for new patients makes it, too.
        bridge: whether it passes on only a part of what it reads, and so often stays as it was.
        tools: with which it is made, for the UI's icons.
        beside: the prefix below which its volume and what belongs to it stand; if not given, the artefact's own place.
        meanwhile: where unfinished work on a partition is kept, so that it can be continued.
        schemas: name of a table → its columns. The name is the file's in a folder, and the asset's own for a single
            table; a table that is not named may have any columns.
    """

    name: str
    kind: Kind
    group: str
    jobs: tuple[str, ...]
    needs: Need
    cost: str
    version: Callable[[Study], str]
    at: Callable[[Layout, str], str] | None = None
    axis: Axis | None = None
    inputs: tuple["Asset", ...] = ()
    after: tuple["Asset | str", ...] = ()
    fits: bool = False
    per_run: int = 1
    followed: bool = False
    bridge: bool = False
    tools: frozenset[str] = field(default_factory=frozenset)
    beside: Callable[[Layout, str], str] | None = None
    meanwhile: Callable[[Layout, str], str] | None = None
    schemas: Mapping[str, TableSchema] = field(default_factory=dict, hash=False)

    def place(self, layout: Layout, partition: str = "") -> str:
        """The key of a partition's artefact, or the prefix below which it stands."""
        return layout.table(self.name) if self.at is None else self.at(layout, partition)

    def unfinished(self, layout: Layout, partition: str) -> tuple[str, ...]:
        """Where unfinished work on a partition is kept, if any is."""
        return () if self.meanwhile is None else (self.meanwhile(layout, partition),)

    def owned(self, layout: Layout, partition: str) -> tuple[str, ...]:
        """The prefixes below which everything of a partition stands, and nothing else; of a record, its key."""
        whole = self.place(layout, partition) if self.beside is None else self.beside(layout, partition)
        return (whole, *self.unfinished(layout, partition))

    def __str__(self) -> str:
        return self.name


def _settings(number: int, *parts: str) -> Callable[[Study], str]:
    """A version that changes with the code's number and with parts of the study."""
    return lambda study: f"{number}-{study.fingerprint(*parts)}"


def _of_training_cases(study: Study) -> str:
    everybodys = "-everybodys" if study.plans.shared_intensity_statistics else ""
    return f"1-{study.fingerprint('image', 'channels', 'annotators', 'training_patients')}{everybodys}"


def _of_training(study: Study) -> str:
    held_out = f"-{study.fingerprint('held_out')}" if study.cross_validated else ""
    return f"2-{study.fingerprint('plans', 'training')}{held_out}"


def _of_calibrators(study: Study) -> str:
    """Where nothing is calibrated, nothing can change. Other members of an ensemble make another volume of it. All organs are
    calibrated, whichever are scored.
    """
    parts = ("calibrated", "fitting_patients", "evaluation", "annotators", "organs")
    every = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"organs": ()})})
    return f"2-{every.fingerprint(*parts) if study.calibrated_ids else 'none'}"


def _of_ensembles(study: Study) -> str:
    """Label maps have the study's own values. Each was made of the members that its record names: see `Staleness`."""
    return "4" if study.label_values.is_plain else f"4-{study.fingerprint('organs')}"


def _of_variants(study: Study) -> str:
    """Snapshots are numbered among as many as a training keeps. Their weights and those of flips are told by `softmax`."""
    return f"1-{study.fingerprint('prediction')}-{study.training.snapshots}"


def _of_previews(study: Study) -> str:
    """Which predictor is shown is a setting, too; what it is made of is told by its volume."""
    from curvas_assets.report.verdict import leading_predictor  # which needs pandas

    stored = [name for name in study.predictors if study.predicted_by(name) != "calibrated"]
    return f"2-{study.fingerprint('organs', 'annotators')}-{leading_predictor(study, stored)}"


def _volume(layout: Layout, key: str) -> str:
    cell = Cell.of(key)
    return layout.softmax(cell.patient, cell.predictor)


def _prediction(layout: Layout, key: str) -> str:
    """The folder of a cell: its volume, and of an ensemble the maps."""
    cell = Cell.of(key)
    return layout.prediction(cell.patient, cell.predictor)


PATIENT_FILES, PUBLISHED_TABLE, OTHER_STUDIES = "patient_files", "published_table", "other_studies"
"""What people upload, and what other studies made: assets that nothing here makes."""

SCAN = Asset(
    "scan",
    kind="record",
    group="cohort",
    jobs=("take_in_scans",),
    needs="intake",
    cost="preparation",
    version=_settings(2, "image", "channels", "annotators", "organs", "ignored_labels", "patients", "intake"),
    at=Layout.scan,
    axis="patient",
    after=(PATIENT_FILES,),
    per_run=50,
    followed=True,
    tools=frozenset({"nifti", "json"}),
)
TEST_SCAN = Asset(
    "test_scan",
    kind="record",
    group="cohort",
    jobs=("select_test_scans",),
    needs="table",
    cost="preparation",
    version=lambda _: "2",
    at=Layout.test_scan,
    axis="test_patient",
    inputs=(SCAN,),
    per_run=100,
    followed=True,
    bridge=True,
    tools=frozenset({"json"}),
)
COHORT = Asset(
    "cohort",
    kind="table",
    group="cohort",
    jobs=("describe_cohort", REPORT),
    needs="table",
    cost="preparation",
    version=_settings(2, "sets", "groups", "exclusions"),
    inputs=(SCAN,),
    tools=frozenset({"parquet"}),
    schemas={"cohort": schemas.COHORT},
)
TRAINING_CASES = Asset(
    "training_cases",
    kind="record",
    group="dataset",
    jobs=("select_training_cases",),
    needs="table",
    cost="preparation",
    version=_of_training_cases,
    at=Layout.training_cases,
    axis="annotator",
    inputs=(SCAN,),
    per_run=100,
    bridge=True,
    tools=frozenset({"json"}),
)
PREPROCESSED_DATASET = Asset(
    "preprocessed_dataset",
    kind="folder",
    group="dataset",
    jobs=("prepare_datasets",),
    needs="dataset",
    cost="preparation",
    version=_settings(2, "plans", "organs", "training_patients", "channels"),
    at=Layout.dataset,
    axis="annotator",
    inputs=(TRAINING_CASES,),
    per_run=5,
    tools=frozenset({"nnunet", "blosc2"}),
)
TRAINED_MODEL = Asset(
    "trained_model",
    kind="folder",
    group="models",
    jobs=("train_models",),
    needs="training",
    cost="training",
    version=_of_training,
    at=Layout.model,
    meanwhile=Layout.unfinished_training,
    axis="model",
    inputs=(PREPROCESSED_DATASET,),
    tools=frozenset({"nnunet", "pytorch"}),
)
SOFTMAX = Asset(
    "softmax",
    kind="softmax",
    group="predictions",
    jobs=("predict",),
    needs="prediction",
    cost="inference",
    version=_settings(3, "prediction"),
    at=_volume,
    beside=_prediction,
    axis="patient_by_model",
    inputs=(TRAINED_MODEL, TEST_SCAN),
    per_run=90,
    followed=True,
    tools=frozenset({"nnunet", "zarr"}),
)
VARIANT_SOFTMAX = Asset(
    "variant_softmax",
    kind="softmax",
    group="predictions",
    jobs=("predict_variants",),
    needs="prediction",
    cost="inference",
    version=_of_variants,
    at=_volume,
    beside=_prediction,
    axis="patient_by_variant",
    inputs=(SOFTMAX, TEST_SCAN),  # the model is the one that made its softmax, found where it stands
    per_run=90,
    followed=True,
    tools=frozenset({"nnunet", "zarr"}),
)
ENSEMBLE_SOFTMAX = Asset(
    "ensemble_softmax",
    kind="softmax",
    group="ensembles",
    jobs=("build_ensembles",),
    needs="ensembling",
    cost="ensembling",
    version=_of_ensembles,
    at=_volume,
    beside=_prediction,
    axis="patient_by_ensemble",
    inputs=(SOFTMAX, VARIANT_SOFTMAX),
    per_run=40,
    followed=True,
    tools=frozenset({"numba", "zarr", "nifti"}),
)
CALIBRATORS = Asset(
    "calibrators",
    kind="record",
    group="calibration",
    jobs=("fit_calibrators",),
    needs="scoring",
    cost="evaluation",
    version=_of_calibrators,
    at=lambda layout, _: layout.calibrators(),
    inputs=(SOFTMAX, ENSEMBLE_SOFTMAX, SCAN),
    fits=True,
    tools=frozenset({"numba", "scipy", "json"}),
)
SCORES = Asset(
    "scores",
    kind="folder",
    group="scores",
    jobs=("score_patients",),
    needs="scoring",
    cost="evaluation",
    version=_settings(7, "evaluation", "organs", "annotators", "members", "held_out", "calibrated"),
    at=Layout.scores,
    axis="test_patient",
    inputs=(SOFTMAX, VARIANT_SOFTMAX, ENSEMBLE_SOFTMAX, CALIBRATORS, SCAN),
    per_run=10,
    followed=True,
    tools=frozenset({"numba", "parquet"}),
    schemas={
        "scores": schemas.SCORES,
        "reliability": schemas.RELIABILITY,
        "risk_coverage": schemas.RISK_COVERAGE,
    },
)
VIEWER_PREVIEW = Asset(
    "viewer_preview",
    kind="folder",
    group="report",
    jobs=("preview_patients",),
    needs="preview",
    cost="reporting",
    version=_of_previews,
    at=Layout.preview,
    axis="test_patient",
    inputs=(SOFTMAX, ENSEMBLE_SOFTMAX, SCAN),
    per_run=20,
    followed=True,
    tools=frozenset({"nifti", "json"}),
)
STUDY_SCORES = Asset(
    "study_scores",
    kind="table",
    group="scores",
    jobs=(REPORT,),
    needs="report",
    cost="evaluation",
    version=_settings(4, "sets", "groups", "exclusions", "members", "held_out", "calibrated"),
    inputs=(SCORES,),
    tools=frozenset({"parquet", "csv"}),
    schemas={"study_scores": schemas.SCORES},
)
FAMILY_COMPARISONS = Asset(
    "family_comparisons",
    kind="table",
    group="comparisons",
    jobs=(REPORT,),
    needs="table",
    cost="reporting",
    version=_settings(3, "statistics"),
    inputs=(STUDY_SCORES,),
    tools=frozenset({"scipy", "parquet"}),
    schemas={"family_comparisons": schemas.FAMILY_COMPARISONS},
)
VARIANCE_COMPONENTS = Asset(
    "variance_components",
    kind="table",
    group="comparisons",
    jobs=(REPORT,),
    needs="table",
    cost="reporting",
    version=_settings(1, "statistics"),
    inputs=(STUDY_SCORES,),
    tools=frozenset({"scipy", "parquet"}),
    schemas={"variance_components": schemas.VARIANCE_COMPONENTS},
)
LEADERBOARD = Asset(
    "leaderboard",
    kind="table",
    group="comparisons",
    jobs=(REPORT,),
    needs="table",
    cost="reporting",
    version=_settings(3, "evaluation", "synthetic", "organs"),
    inputs=(STUDY_SCORES,),
    tools=frozenset({"parquet"}),
    schemas={"leaderboard": schemas.LEADERBOARD},
)
VOLUME_INTERVALS = Asset(
    "volume_intervals",
    kind="table",
    group="intervals",
    jobs=(REPORT,),
    needs="table",
    cost="reporting",
    version=_settings(1, "conformal", "fitting_patients", "members", "held_out"),
    inputs=(SCORES, STUDY_SCORES),
    fits=True,
    tools=frozenset({"scipy", "parquet"}),
    schemas={"volume_intervals": schemas.VOLUME_INTERVALS},
)
PUBLISHED_COMPARISON = Asset(
    "published_comparison",
    kind="table",
    group="comparisons",
    jobs=(REPORT,),
    needs="table",
    cost="reporting",
    version=_settings(3, "statistics", "report"),
    inputs=(STUDY_SCORES,),
    after=(PUBLISHED_TABLE,),
    tools=frozenset({"parquet"}),
    schemas={"published_comparison": schemas.PUBLISHED_COMPARISON},
)
STUDY_COMPARISON = Asset(
    "study_comparison",
    kind="table",
    group="comparisons",
    jobs=(REPORT,),
    needs="table",
    cost="reporting",
    version=_settings(2, "statistics", "compare_with"),
    inputs=(STUDY_SCORES,),
    after=(OTHER_STUDIES,),
    tools=frozenset({"scipy", "parquet"}),
    schemas={"study_comparison": schemas.STUDY_COMPARISON},
)
COST = Asset(
    "cost",
    kind="table",
    group="comparisons",
    jobs=(REPORT,),
    needs="table",
    cost="reporting",
    version=_settings(1, "prices"),
    after=(STUDY_SCORES, FAMILY_COMPARISONS, VARIANCE_COMPONENTS, LEADERBOARD),  # whose cost is in it
    tools=frozenset({"parquet"}),
    schemas={"cost": schemas.COST},
)
PREDICTOR_COST = Asset(
    "predictor_cost",
    kind="table",
    group="comparisons",
    jobs=(REPORT,),
    needs="table",
    cost="reporting",
    version=_settings(2, "sets", "exclusions", "members", "held_out", "calibrated"),
    after=(STUDY_SCORES,),  # for whose predictors it is asked
    tools=frozenset({"parquet"}),
    schemas={"predictor_cost": schemas.PREDICTOR_COST},
)
FIGURES = Asset(
    "figures",
    kind="folder",
    group="report",
    jobs=(REPORT,),
    needs="report",
    cost="reporting",
    version=lambda study: f"4-{study.fingerprint()}",
    at=lambda layout, _: layout.figures(),
    inputs=(
        COHORT,
        STUDY_SCORES,
        FAMILY_COMPARISONS,
        VARIANCE_COMPONENTS,
        LEADERBOARD,
        COST,
        PREDICTOR_COST,
        PUBLISHED_COMPARISON,
        STUDY_COMPARISON,
        VOLUME_INTERVALS,
        SCORES,
        TRAINED_MODEL,
    ),
    tools=frozenset({"matplotlib", "plotly"}),
)
REPORT_PAGE = Asset(
    "report",
    kind="folder",
    group="report",
    jobs=(REPORT,),
    needs="report",
    cost="reporting",
    version=FIGURES.version,
    at=lambda layout, _: layout.report(),
    inputs=FIGURES.inputs,
    tools=frozenset({"html", "markdown"}),
)

ASSETS = tuple(row for row in globals().values() if isinstance(row, Asset))
"""All that a study makes, in the order in which it stands above."""


def asset(name: str) -> Asset:
    """The row of an asset.

    Raises:
        LookupError: no asset has this name.
    """
    for row in ASSETS:
        if row.name == name:
            return row
    raise LookupError(f"no asset is named {name!r}: each has a row in curvas_assets.stages.table")


STAGES = {
    job: tuple(row.name for row in sorted((r for r in ASSETS if job in r.jobs), key=lambda r: r.jobs[0] != job))
    for job in sorted(dict.fromkeys(job for row in ASSETS for job in row.jobs), key=lambda job: job == REPORT)
}
"""Stage job → names of the assets it makes, in the order in which a study runs: that of the rows, the report last. A
stage begins with an asset whose first job it is, and waits for the inputs of that asset; assets whose second job it is
come last.
"""
COST_ROWS = {
    cost: tuple(row.name for row in ASSETS if row.cost == cost) for cost in dict.fromkeys(row.cost for row in ASSETS)
}
"""Row of the cost table → names of the assets that count in it."""
PREDICTED = (SOFTMAX, VARIANT_SOFTMAX)
"""Assets whose cells are networks' predictions."""
FOLLOWED = tuple(row for row in ASSETS if row.followed)
"""What a new patient passes, in this order."""
