"""Partition definitions of a study, and how the partitions of one asset map to those of another.

Patients are dynamic: a folder that appears in the bucket becomes a partition. Annotators, models and ensembles are
static and come from the study. Names are made by `curvas_assets.study`; nothing is materialised here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.partitions.utils import get_tags_from_multi_partition_key

from curvas_assets.study import Study


@dataclass(frozen=True)
class Partitions:
    """Every partitions definition and mapping of one study."""

    study: Study
    patient: dg.DynamicPartitionsDefinition
    test_patient: dg.DynamicPartitionsDefinition
    annotator: dg.StaticPartitionsDefinition
    model: dg.StaticPartitionsDefinition
    ensemble: dg.StaticPartitionsDefinition
    patient_by_model: dg.MultiPartitionsDefinition
    patient_by_ensemble: dg.MultiPartitionsDefinition

    @classmethod
    def of(cls, study: Study) -> "Partitions":
        test_patient = dg.DynamicPartitionsDefinition(name="test_patient")
        model = dg.StaticPartitionsDefinition([str(m) for m in study.models])
        ensemble = dg.StaticPartitionsDefinition([str(e) for e in study.ensemble_ids])
        return cls(
            study=study,
            patient=dg.DynamicPartitionsDefinition(name="patient"),
            test_patient=test_patient,
            annotator=dg.StaticPartitionsDefinition(study.annotator_names),
            model=model,
            ensemble=ensemble,
            patient_by_model=dg.MultiPartitionsDefinition({"model": model, "patient": test_patient}),
            patient_by_ensemble=dg.MultiPartitionsDefinition({"ensemble": ensemble, "patient": test_patient}),
        )

    @property
    def training_patients(self) -> dg.PartitionMapping:
        """Every annotator's dataset is made of the same patients: those the models learn from."""
        return dg.SpecificPartitionsPartitionMapping(self.study.training_patients())

    @property
    def annotator_of_model(self) -> dg.PartitionMapping:
        return dg.StaticPartitionMapping(
            {name: [str(m) for m in self.study.models if m.annotator == name] for name in self.study.annotator_names}
        )

    @property
    def members_of_ensemble(self) -> dg.PartitionMapping:
        """An ensemble of a patient needs its members' softmax of the same patient."""
        return dg.MultiPartitionMapping(
            {
                "patient": dg.DimensionPartitionMapping("patient", dg.IdentityPartitionMapping()),
                "model": dg.DimensionPartitionMapping(
                    "ensemble",
                    dg.StaticPartitionMapping(
                        {
                            str(m): [str(e) for e in self.study.ensemble_ids if m in self.study.members(e)]
                            for m in self.study.models
                        }
                    ),
                ),
            }
        )

    @staticmethod
    def same(dimension: str) -> dg.PartitionMapping:
        """Between a grid and one of its own dimensions."""
        return dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name=dimension)


def grid_key(context: dg.AssetExecutionContext, key: str) -> dict[str, str]:
    """`{"model": …, "patient": …}` of a key such as `anno1_init1_foldall|P001` (dimensions in alphabetical order)."""
    definition = context.assets_def.partitions_def
    assert isinstance(definition, dg.MultiPartitionsDefinition)
    return dict(zip(sorted(definition.partition_dimension_names), key.split("|"), strict=True))


def ordered(keys: Sequence[str]) -> list[str]:
    """Keys patient by patient: the last dimension of a grid varies slowest, so that a patient's work is shared."""
    return sorted(keys, key=lambda key: tuple(reversed(key.split("|"))))


def dimension_tags(definition: dg.PartitionsDefinition | None, key: str) -> dict[str, str]:
    """The tags with which Dagster marks a cell's dimensions on runs and events; none outside a grid."""
    if not isinstance(definition, dg.MultiPartitionsDefinition):
        return {}
    return dict(get_tags_from_multi_partition_key(definition.get_partition_key_from_str(key)))
