"""Which partitions a launch is about: some patients, some models, missing ones only or stale ones too. Launches nothing."""

from dataclasses import dataclass

import dagster as dg

from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages.calibrated import base_of
from curvas_assets.storage.layout import Cell
from curvas_assets.study import ModelId, Study


@dataclass(frozen=True)
class Scope:
    """A rectangle of the patient × model grid.

    For an asset that is partitioned along patients or models only, the rectangle's patients or models count.

    Args:
        patients: whose partitions; None for all.
        columns: models, ensembles and annotators; None for all.
        stale: whether partitions that exist and are out of date count too.
        elsewhere: whether what was made elsewhere and uploaded counts as well, once it is missing here or out of date.
        since: the storage id of an event. A partition that was last made before this event is due, whatever its state.
    """

    patients: frozenset[str] | None = None
    columns: frozenset[str] | None = None
    stale: bool = True
    elsewhere: bool = False
    since: int | None = None

    @classmethod
    def of_study(cls, study: Study) -> "Scope":
        """All patients whom a set of the study names. Only `make_missing` takes in a patient whom no set names."""
        if study.rest is not None:
            return cls()
        return cls(patients=frozenset(one for members in study.sets.values() for one in members))

    def due(self, staleness: Staleness, key: dg.AssetKey) -> list[str | None]:
        """The partitions of an asset that are due in this scope."""
        definition = staleness.graph.get(key).partitions_def

        def wanted(partition: str | None) -> bool:
            return self.includes(definition, partition)

        if self.since is not None:
            return staleness.not_since(key, self.since, wanted)
        return staleness.due(key, wanted, stale=self.stale, elsewhere=self.elsewhere)

    def includes(self, definition: dg.PartitionsDefinition | None, partition: str | None) -> bool:
        """Whether a partition is in this scope; an asset without partitions always is."""
        if definition is None or partition is None:
            return True
        if isinstance(definition, dg.MultiPartitionsDefinition):
            cell = Cell.of(partition)
            return self._has(self.patients, cell.patient) and self._has(self.columns, cell.predictor)
        is_patient = isinstance(definition, dg.DynamicPartitionsDefinition)
        return self._has(self.patients if is_patient else self.columns, partition)

    @staticmethod
    def _has(chosen: frozenset[str] | None, name: str) -> bool:
        return chosen is None or name in chosen


def columns_of(study: Study, predictors: list[str]) -> frozenset[str]:
    """What `named_columns` gives, and every ensemble of which one of these models, or a variant of one, is a member."""
    named = named_columns(study, predictors)
    members = {e: study.members(e) for e in study.ensemble_ids}
    return named | {
        str(e) for e, of in members.items() if named & {name for m in of for name in (str(m), str(m.trained))}
    }


def named_columns(study: Study, predictors: list[str]) -> frozenset[str]:
    """Models and ensembles themselves, the annotators of the models, whose datasets these are, variants of the models, and
    those that are members of the ensembles. A calibrated predictor stands for the model or ensemble that it is made from: no
    volume of it is stored.
    """
    predictors = [base_of(p) if study.predicted_by(p) == "calibrated" else p for p in predictors]
    models = {ModelId.parse(p) for p in predictors if study.predicted_by(p) == "model"}
    members = {m for p in predictors if study.predicted_by(p) == "ensemble" for m in study.members(p)}
    variants = {str(one) for one in study.variants if one.trained in models or one in members}
    return frozenset({*predictors, *variants, *(model.annotator for model in models)})
