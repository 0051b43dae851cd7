"""Partition definitions of a study, and how the partitions of one asset map to those of another.

Patients are dynamic: a folder that appears in the bucket becomes a partition. The current study file decides which of
them count: a patient who was excluded or moved to another set is no longer a partition, even if Dagster still has it
registered. Annotators, models and ensembles are static and come from the study. Names are made by
`curvas_assets.study`; nothing is materialised here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from curvas_assets.orchestration.asset_keys import patients_name
from curvas_assets.orchestration.dagster_internals import (
    DynamicPartitionsStore,
    get_tags_from_multi_partition_key,
)
from curvas_assets.predictors import EnsembleId, ModelId
from curvas_assets.stages.table import Axis
from curvas_assets.storage.layout import Cell
from curvas_assets.study import Study

VARIANT = "model_variant"
"""The dimension of a grid along which the variants of models stand."""
Belongs = Callable[[str], bool]
"""Whether a partition key belongs to the study."""


class StudyPatients(dg.DynamicPartitionsDefinition):
    """The registered patients that belong to the study now; the others do not count."""

    belongs: Belongs

    def __new__(cls, name: str, belongs: Belongs) -> "StudyPatients":
        made = super().__new__(cls, name=name)
        made.belongs = belongs
        return made

    def get_partition_keys(
        self, current_time: datetime | None = None, dynamic_partitions_store: DynamicPartitionsStore | None = None
    ) -> Sequence[str]:
        registered = super().get_partition_keys(current_time, dynamic_partitions_store)
        return [key for key in registered if self.belongs(key)]

    def orphans(self, instance: dg.DagsterInstance) -> list[str]:
        """Registered patients that do not belong to the study any more."""
        assert self.name is not None
        return sorted(key for key in instance.get_dynamic_partitions(self.name) if not self.belongs(key))


class StudyGrid(dg.MultiPartitionsDefinition):
    """Patients × models or ensembles. Under cross-validation, a patient has cells only of models that never saw it.

    Args:
        dimensions: of the grid, by name.
        belongs: whether a cell is the study's.
        fitting: patients who are predicted only so that something can be fitted on them.
    """

    belongs: Belongs
    fitting: frozenset[str]

    def __init__(
        self, dimensions: dict[str, dg.PartitionsDefinition], belongs: Belongs, fitting: Iterable[str] = frozenset()
    ):
        super().__init__(dimensions)  # type: ignore[arg-type]
        self.belongs = belongs
        self.fitting = frozenset(fitting)


def current_keys(definition: dg.PartitionsDefinition, instance: dg.DagsterInstance) -> list[str]:
    """The partition keys of a definition that belong to the study as its file stands now, in Dagster's order."""
    keys = [str(key) for key in definition.get_partition_keys(dynamic_partitions_store=instance)]
    return [key for key in keys if definition.belongs(key)] if isinstance(definition, StudyGrid) else keys


def belongs(definition: dg.PartitionsDefinition, key: str) -> bool:
    """Whether a key is a partition of the study as its file stands now, registered or not."""
    if isinstance(definition, StudyPatients):
        return definition.belongs(key)
    if isinstance(definition, StudyGrid):
        of_dimension = by_dimension(definition, key)
        sides = all(belongs(side.partitions_def, of_dimension[side.name]) for side in definition.partitions_defs)
        return sides and definition.belongs(key)
    return key in definition.get_partition_keys()


@dataclass(frozen=True)
class Partitions:
    """Every partitions definition and mapping of one study."""

    study: Study
    patient: StudyPatients
    """All patients in the bucket who are not excluded."""
    test_patient: StudyPatients
    """Patients who are predicted: the test set, or under cross-validation those whom a fold held out, and the validation patients."""
    annotator: dg.StaticPartitionsDefinition
    """What models are trained on: annotators, and fusions of them."""
    model: dg.StaticPartitionsDefinition
    ensemble: dg.StaticPartitionsDefinition
    patient_by_model: dg.MultiPartitionsDefinition
    patient_by_variant: dg.MultiPartitionsDefinition
    patient_by_ensemble: dg.MultiPartitionsDefinition

    @classmethod
    def of(cls, study: Study) -> "Partitions":
        test_patient = StudyPatients(patients_name("test_patient"), study.is_predicted)
        model = dg.StaticPartitionsDefinition([str(m) for m in study.models])
        ensemble = dg.StaticPartitionsDefinition([str(e) for e in study.ensemble_ids])
        return cls(
            study=study,
            patient=StudyPatients(patients_name("patient"), lambda key: is_patient(study, key)),
            test_patient=test_patient,
            annotator=dg.StaticPartitionsDefinition(study.label_names),
            model=model,
            ensemble=ensemble,
            patient_by_model=StudyGrid(
                {"model": model, "patient": test_patient}, _predicted(study, study.models_of), study.fitting_patients
            ),
            patient_by_variant=StudyGrid(
                # Named so that it comes before `patient` in the alphabet, and the patient stays last in a cell's key.
                {VARIANT: dg.StaticPartitionsDefinition([str(v) for v in study.variants]), "patient": test_patient},
                _predicted(study, study.variants_of),
            ),
            patient_by_ensemble=StudyGrid(
                {"ensemble": ensemble, "patient": test_patient}, _predicted(study, study.ensembles_of)
            ),
        )

    def between(self, above: Axis | None, below: Axis | None, *, fits: bool = False) -> dg.PartitionMapping | None:
        """Which partitions of an asset are inputs of which partitions of an asset that reads it.

        Args:
            above: axis of the asset that is read.
            below: axis of the asset that reads it.
            fits: whether the reader fits something, for which it reads validation patients alone.

        Raises:
            LookupError: no mapping between these two is defined.
        """
        if above is None:
            return None
        if fits and below is None:
            return dg.SpecificPartitionsPartitionMapping(self.fitting_partitions(above))
        if below is None:
            return dg.AllPartitionMapping()
        grids = ("patient_by_model", "patient_by_variant", "patient_by_ensemble")
        mappings: dict[tuple[Axis, Axis], dg.PartitionMapping] = {
            ("patient", "test_patient"): dg.IdentityPartitionMapping(),
            ("patient", "annotator"): self.training_patients,
            ("annotator", "annotator"): dg.IdentityPartitionMapping(),
            ("annotator", "model"): self.annotator_of_model,
            ("model", "patient_by_model"): self.same("model"),
            ("patient_by_model", "patient_by_variant"): self._of_same_patient(
                "model", VARIANT, {str(v): [str(v.trained)] for v in self.study.variants}
            ),
            ("patient_by_model", "patient_by_ensemble"): self._of_same_patient(
                "model", "ensemble", self._members(lambda member: not member.variant)
            ),
            ("patient_by_variant", "patient_by_ensemble"): self._of_same_patient(
                VARIANT, "ensemble", self._members(lambda member: bool(member.variant))
            ),
            **{("test_patient", grid): self.same("patient") for grid in grids},
            **{(grid, "test_patient"): self.same("patient") for grid in grids},
        }
        if (above, below) not in mappings:
            raise LookupError(f"no mapping from assets by {above} to assets by {below}: add it to Partitions.between")
        return mappings[above, below]

    @property
    def training_patients(self) -> dg.PartitionMapping:
        """Every annotator's dataset is made of the same patients: those the models learn from."""
        return dg.SpecificPartitionsPartitionMapping(self.study.training_patients())

    @property
    def annotator_of_model(self) -> dg.PartitionMapping:
        return dg.StaticPartitionMapping(
            {name: [str(m) for m in self.study.models if m.annotator == name] for name in self.study.label_names}
        )

    def fitting_partitions(self, axis: Axis) -> list[str]:
        """The partitions of an asset by patient that what is fitted after training reads: those of validation patients.

        Of models and ensembles, only those that are calibrated; of scans none, if nothing is. Of scores, which intervals are fitted on,
        none if no predictor gets an interval.
        """
        fitted = self.study.interval_predictors if axis == "test_patient" else self.study.fitted_predictors
        patients = self.study.fitting_patients if fitted else []
        if axis not in ("patient_by_model", "patient_by_ensemble"):
            return list(patients)
        kind = axis.removeprefix("patient_by_")
        wanted = [name for name in self.study.fitted_predictors if self.study.predicted_by(name) == kind]
        return [str(Cell(name, patient)) for name in wanted for patient in patients]

    def _members(self, wanted: Callable[[ModelId], bool]) -> dict[str, list[str]]:
        """Ensemble → those of its members that are wanted."""
        return {str(e): [str(m) for m in self.study.members(e) if wanted(m)] for e in self.study.ensemble_ids}

    @staticmethod
    def _of_same_patient(above: str, below: str, needs: Mapping[str, Sequence[str]]) -> dg.PartitionMapping:
        """Between grids: a cell needs cells of the same patient.

        Args:
            above: dimension of the grid that is read, beside the patient.
            below: dimension of the grid that reads it, beside the patient.
            needs: name on `below` → the names on `above` that it needs.
        """
        needed_by: dict[str, list[str]] = {}
        for name, sources in needs.items():
            for source in sources:
                needed_by.setdefault(source, []).append(name)
        return dg.MultiPartitionMapping(
            {
                "patient": dg.DimensionPartitionMapping("patient", dg.IdentityPartitionMapping()),
                above: dg.DimensionPartitionMapping(below, dg.StaticPartitionMapping(needed_by)),
            }
        )

    @staticmethod
    def same(dimension: str) -> dg.PartitionMapping:
        """Between a grid and one of its own dimensions."""
        return dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name=dimension)


def is_patient(study: Study, key: str) -> bool:
    """Whether this is the whole name of a patient that the study does not exclude."""
    return study.patients.has(key) and key not in study.exclusions


def _predicted(study: Study, columns_of: Callable[[str], Sequence[ModelId | EnsembleId]]) -> Belongs:
    """Whether a cell's predictor predicts its patient."""
    if not study.cross_validated:
        return lambda _: True
    cells = {str(Cell(str(one), patient)) for patient in study.predicted_patients() for one in columns_of(patient)}
    return cells.__contains__


def by_dimension(definition: dg.MultiPartitionsDefinition, key: str) -> dict[str, str]:
    """`{"model": …, "patient": …}` of the key of a cell."""
    return dict(zip(sorted(definition.partition_dimension_names), Cell.of(key), strict=True))


def dimension_tags(definition: dg.PartitionsDefinition | None, key: str) -> dict[str, str]:
    """The tags with which Dagster marks a cell's dimensions on runs and events; none outside a grid."""
    if not isinstance(definition, dg.MultiPartitionsDefinition):
        return {}
    return dict(get_tags_from_multi_partition_key(definition.get_partition_key_from_str(key)))
