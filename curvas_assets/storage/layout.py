"""Where each artefact of a study stands: every key in the bucket, and the keys of its cells.

`Layout` owns the prefixes and `Cell` the partition keys of patient × predictor; nobody else joins or splits either.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

SEPARATOR = "|"
"""Dagster's, between the dimensions of a partition key."""


class Cell(NamedTuple):
    """One patient and one predictor: a partition of an asset on a grid.

    Args:
        predictor: a model or an ensemble.
        patient: its name.
    """

    predictor: str
    patient: str

    @classmethod
    def of(cls, key: str) -> "Cell":
        """The cell of a key like `anno1_init1_foldall|P001`: Dagster orders dimensions by name, and `patient` is last.

        Raises:
            ValueError: the key is not that of a cell.
        """
        predictor, separator, patient = key.partition(SEPARATOR)
        if not separator or SEPARATOR in patient:
            raise ValueError(f"{key!r} is not a cell: <model or ensemble>{SEPARATOR}<patient>")
        return cls(predictor, patient)

    def __str__(self) -> str:
        return f"{self.predictor}{SEPARATOR}{self.patient}"


def patient_of(key: str) -> str:
    """The patient of a cell, or of a patient's own partition."""
    return key.rpartition(SEPARATOR)[2]


def patient_by_patient(keys: Iterable[str]) -> list[str]:
    """Partition keys in the order in which the work on a patient is shared: cells by patient first."""
    return sorted(keys, key=lambda key: tuple(reversed(key.split(SEPARATOR))))


@dataclass(frozen=True)
class Layout:
    """Keys in the bucket. Prefixes come from `S3_DATA_DIR`, `S3_ARTIFACTS_DIR`, `S3_OUTPUT_DIR`, `S3_METRICS_DIR`…"""

    data: str = "data"
    artifacts: str = "artifacts"
    output: str = "output"
    metrics: str = "metrics"
    reports: str = "reports"

    def patient_file(self, patient_folder: str, file: str) -> str:
        """A file of a patient, as people uploaded it."""
        return f"{self.data}/{patient_folder}/{file}"

    def data_file(self, path: str) -> str:
        """A file that people uploaded, by its path below the data prefix."""
        return f"{self.data}/{path}"

    def scan(self, patient: str) -> str:
        """The record of a scan that was taken in."""
        return f"{self.output}/{patient}/scan.json"

    def test_scan(self, patient: str) -> str:
        """The record of what a prediction needs to know of a patient."""
        return f"{self.output}/{patient}/test_scan.json"

    def owners(self) -> tuple[str, ...]:
        """The records that say whose study these prefixes are: one below each that holds what a study makes."""
        return tuple(map(self.owner, (self.artifacts, self.output, self.metrics, self.reports)))

    @staticmethod
    def owner(prefix: str) -> str:
        """The record that says whose study a prefix is."""
        return f"{prefix}/study.json"

    def training_cases(self, label: str) -> str:
        """The record of the files that a training label's dataset is made of."""
        return f"{self.artifacts}/training_cases/{label}.json"

    def dataset(self, annotator: str) -> str:
        """The folder of the preprocessed dataset of an annotator."""
        return f"{self.artifacts}/preprocessing/{annotator}"

    def model(self, model: str) -> str:
        """The folder of a trained model."""
        return f"{self.artifacts}/models/{model}"

    def unfinished_training(self, model: str) -> str:
        """The folder of the checkpoint that a training goes on from."""
        return f"{self.artifacts}/training/{model}"

    def prediction(self, patient: str, predictor: str) -> str:
        """The folder of one predictor of a patient: its volume, and of an ensemble the maps."""
        return f"{self.output}/{patient}/{predictor}"

    def softmax(self, patient: str, predictor: str) -> str:
        """The zarr group of the probabilities of one predictor of a patient."""
        return f"{self.prediction(patient, predictor)}/softmax.zarr"

    def ensemble_map(self, patient: str, ensemble: str, name: str) -> str:
        """A map (NIfTI) of an ensemble of a patient: its entropy, mutual information or labels."""
        return f"{self.prediction(patient, ensemble)}/{name}.nii.gz"

    def preview(self, patient: str) -> str:
        """The folder of a patient's preview, which the viewer of a shared bundle shows."""
        return f"{self.output}/{patient}/preview"

    def scores(self, patient: str) -> str:
        """The folder of the tables of scores of a patient."""
        return f"{self.metrics}/{patient}/scores"

    def calibrators(self) -> str:
        """The record of what was fitted on validation patients."""
        return f"{self.metrics}/calibrators.json"

    def table(self, name: str) -> str:
        """A table of the whole study."""
        return f"{self.metrics}/{name}.parquet"

    def published_table(self, name: str) -> str:
        """The study's published table, as people uploaded it."""
        return f"{self.metrics}/{name}"

    def scores_of_other(self, metrics: str) -> str:
        """The table of scores of another study, below the prefix of its metrics."""
        return f"{metrics}/study_scores.parquet"

    def merged_csv(self) -> str:
        """All scores in the study's columns."""
        return f"{self.metrics}/metrics.csv"

    def report(self) -> str:
        """The folder of the report."""
        return f"{self.reports}/report"

    def latest_report(self) -> str:
        """The newest report's page under a key that never changes, for addresses that are to show the newest one."""
        return f"{self.reports}/latest.html"

    def kept_reports(self) -> str:
        """The prefix below which reports are kept, the newest one among them."""
        return f"{self.reports}/kept"

    def kept_report(self, name: str) -> str:
        """The folder of one report that is kept."""
        return f"{self.kept_reports()}/{name}"

    def figures(self) -> str:
        """The folder of the report's figures."""
        return f"{self.reports}/figures"

    def bundle(self) -> str:
        """The folder of the bundle that was shared last: one zip file."""
        return f"{self.reports}/bundle"
