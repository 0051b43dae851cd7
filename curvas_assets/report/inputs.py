"""What a report is made of.

Belongs here: the values that a caller gives. Does not belong here: anything derived from them (`facts`), any sentence.
Time, commit and versions come in as values, so that equal inputs give equal bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from curvas_assets.report.pictures import OrganView, SliceView
from curvas_assets.statistics import PublishedScores
from curvas_assets.study import Study


@dataclass(frozen=True)
class Provenance:
    """Where the report comes from; values, never looked up here.

    Args:
        generated_at: date and time, as shown.
        git_commit: of the code.
        packages: package → version.
        data_versions: input (asset and partition) → version or checksum.
    """

    generated_at: str = ""
    git_commit: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    data_versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report is made of. What is optional and missing leaves a sentence in the report.

    Args:
        study: the study's configuration; its `report.language` is the report's.
        scores: long scores of all patients: `patient`, `predictor`, `family`, `group`, `metric`, `organ`, `annotator`,
            `value`, `unit`, `note`. May be empty.
        provenance: clock, commit, versions.
        metrics: the metric registry as a table: `metric`, `direction` (higher, lower or empty), `unit`, and for display
            `family`, `range`, `definition`, `reference`.
        cohort: one row per patient: `patient`, `set`, `group`, then whatever is known (`shape`, `spacing_mm`, `excluded`, …).
        anatomy: what annotators drew: `patient`, `organ`, `annotator`, `volume_ml` (0 where the organ was not drawn).
        exclusions: ledger: `patient`, `predictor`, `metric`, `organ`, `annotator`, `reason`.
        comparisons: from `compare_all_families`.
        non_inferiority: from `non_inferiority`.
        variance: from `variance_components`.
        association: from `dice_against_entropy`.
        agreement: from `annotator_agreement`.
        failure: from `failure_over_patients`.
        out_of_distribution: from `out_of_distribution`.
        leaderboard: from `leaderboard`.
        published: from `read_published_scores`.
        others: of other studies, from `compare_studies`, one below the other.
        volume_intervals: from `volume_intervals`.
        reliability: bins: `family`, `predictor`, `patient`, `lower`, `upper`, `count`, `accuracy`, `confidence`.
        risk_coverage: curves: `family`, `predictor`, `patient`, `annotator`, `coverage`, `risk`.
        cost: the cost table, as it shall be shown (`step`, `count`, `hours`, `gb_down`, `gb_up`, `euros`, …).
        predictor_cost: what each predictor needs and the hours that this took, from `curvas_assets.stages.needs.predictor_cost`.
        curves: model → training curve (`epoch`, `train_loss`, `val_loss`, `pseudo_dice`, `ema_dice`, …).
        networks: how each trained model came to be: `model`, `epochs`, `device`, and of its plans `patch_size`, `spacing_mm` (Z, Y, X)
            and `batch_size`.
        state: of the lineage when the report was made: `asset`, `partitions`, `made`, `stale`, `missing`, `elsewhere`, `why`.
        averaged: what the ensembles that were scored are the mean of: `predictor`, `members`, `patients`, `models`.
        slices: slices to show, with annotations and, of an ensemble, its maps.
        organs: a label volume for the 3-D view.
    """

    study: Study
    scores: pd.DataFrame
    provenance: Provenance = field(default_factory=Provenance)
    metrics: pd.DataFrame | None = None
    cohort: pd.DataFrame | None = None
    anatomy: pd.DataFrame | None = None
    exclusions: pd.DataFrame | None = None
    comparisons: pd.DataFrame | None = None
    non_inferiority: pd.DataFrame | None = None
    variance: pd.DataFrame | None = None
    association: pd.DataFrame | None = None
    agreement: pd.DataFrame | None = None
    failure: pd.DataFrame | None = None
    out_of_distribution: pd.DataFrame | None = None
    leaderboard: pd.DataFrame | None = None
    published: PublishedScores | None = None
    others: pd.DataFrame | None = None
    volume_intervals: pd.DataFrame | None = None
    reliability: pd.DataFrame | None = None
    risk_coverage: pd.DataFrame | None = None
    cost: pd.DataFrame | None = None
    predictor_cost: pd.DataFrame | None = None
    curves: Mapping[str, pd.DataFrame] | None = None
    networks: pd.DataFrame | None = None
    state: pd.DataFrame | None = None
    averaged: pd.DataFrame | None = None
    slices: Sequence[SliceView] = ()
    organs: OrganView | None = None
