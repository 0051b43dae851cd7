"""Which partitions a launch is about: some patients, some models, missing ones only or stale ones too. Launches nothing."""

from dataclasses import dataclass

import dagster as dg

from curvas_assets.study import ModelId, Study


@dataclass(frozen=True)
class Scope:
    """A rectangle of the patient × model grid, and its shadow on assets of one dimension.

    Args:
        patients: whose partitions; None for all.
        columns: models, ensembles and annotators; None for all.
        stale: whether partitions that exist and are out of date count too.
    """

    patients: frozenset[str] | None = None
    columns: frozenset[str] | None = None
    stale: bool = True

    def includes(self, definition: dg.PartitionsDefinition | None, partition: str | None) -> bool:
        """Whether a partition is meant; an asset without partitions always is."""
        if definition is None or partition is None:
            return True
        if isinstance(definition, dg.MultiPartitionsDefinition):
            named = dict(zip(sorted(definition.partition_dimension_names), partition.split("|"), strict=True))
            patient = named.pop("patient")
            (column,) = named.values()
            return self._has(self.patients, patient) and self._has(self.columns, column)
        is_patient = isinstance(definition, dg.DynamicPartitionsDefinition)
        return self._has(self.patients if is_patient else self.columns, partition)

    @staticmethod
    def _has(chosen: frozenset[str] | None, name: str) -> bool:
        return chosen is None or name in chosen


def columns_of(study: Study, predictors: list[str]) -> frozenset[str]:
    """What belongs to some models and ensembles: they, the models' annotators, and every ensemble a model is a member of."""
    models = {ModelId.parse(p) for p in predictors if study.family(p) == "individual"}
    ensembles = {str(e) for e in study.ensemble_ids if models & set(study.members(e))}
    return frozenset({*predictors, *ensembles, *(model.annotator for model in models)})
