"""Claims proved here.

- The asset reads scores of the validation patients alone, and the test patients' from the study's table, by its lineage: what
  stands in the bucket of a test patient's own scores changes nothing.
- Scores of validation patients make it stale; it is made by Dagster with several of them, with one, and without any.
- Whose volumes get intervals: those that the study names, or else the general ensemble; nobody's without validation patients.
- Validation patients without scores, or with scores from before there were volumes, are told, and the others still count.
- Too few patients are a warning, not a failed check; coverage that is too rare, or a predictor without intervals, fails it.
- Under cross-validation an ensemble has other members on validation patients, and gets no interval; a model does.
- Studies that do not speak of intervals keep the code versions of all that is scored.
"""

from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from curvas_assets.definitions import build_definitions
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages import table
from curvas_assets.stages.intervals import find_intervals, has_the_same_members, not_held
from curvas_assets.stages.stored import Artefact, Artefacts
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.statistics import observed_coverage
from curvas_assets.storage import directories, tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.study import Study, load_study

VALIDATION = ["PHANTOM006", "PHANTOM010", "PHANTOM011", "PHANTOM012"]
TEST = ["PHANTOM007", "PHANTOM008", "PHANTOM009"]
ERRORS = dict(zip(VALIDATION, (40.0, 10.0, 30.0, 20.0), strict=True))
"""Of every predictor and organ, mm³."""


def study_of(validation=tuple(VALIDATION), **changes) -> Study:
    sets = {"train": ["001", "002", "003", "004", "005"], "validation": list(validation), "test": TEST}
    raw = load_study("phantom").model_dump(mode="json")
    return Study.model_validate({**raw, "groups": {}, "in_distribution_group": None, "sets": sets, **changes})


STUDY = study_of()


def scores_of(
    study: Study, patient: str, error: float = 5.0, *, metrics=("volume", "volume_annotator")
) -> pd.DataFrame:
    """All predictors find an error more than the 1000 mm³ that each annotator drew."""
    values = {"volume": {"": 1000 + error}, "volume_annotator": {"1": 1000.0, "2": 1000.0, "mean": 1000.0}}
    values["dice"] = {"": 0.9}
    columns = {"patient": patient, "family": "as it was", "group": "as it was", "unit": "mm³", "note": ""}
    rows = [
        columns | {"predictor": p, "metric": metric, "organ": organ, "annotator": annotator, "value": value}
        for p in study.predictors_of(patient)
        for metric in metrics
        for organ in study.organs
        for annotator, value in values[metric].items()
    ]
    return pd.DataFrame(rows)[list(table.SCORES.schemas["scores"].columns.names)]


class Bench:
    """A bucket in a folder with scores, and the stage called on it as the asset calls it."""

    def __init__(self, folder: Path):
        self.folder, self.objects, self.layout = folder, MeteredObjects(FolderObjects(folder / "bucket")), Layout()
        self.warnings: list[str] = []

    def keep(self, patient: str, frame: pd.DataFrame) -> None:
        folder = self.folder / f"{patient}-{self.objects.bytes_up}"
        folder.mkdir()
        frame.to_parquet(folder / "scores.parquet", index=False)
        directories.write_directory(self.objects, self.layout.scores(patient), folder)

    def find(self, study: Study, new: pd.DataFrame) -> tuple[pd.DataFrame, dict, list[str]]:
        tables.write_table(self.objects, self.layout.table("study_scores"), new)
        nothing = {"tell": print, "scratch": None, "device": None, "code": None}
        tools = Toolkit(study, self.objects, self.layout, warn=self.warnings.append, **nothing)  # type: ignore[arg-type]
        scores = {
            p: Artefact(self.objects, self.layout.scores(p), "folder", f"scores of {p}") for p in study.fitting_patients
        }
        of_test = Artefact(self.objects, self.layout.table("study_scores"), "table", "study_scores")
        return find_intervals(tools, Artefacts(scores), of_test)


@pytest.fixture
def bench(tmp_path) -> Bench:
    bench = Bench(tmp_path)
    for patient, error in ERRORS.items():
        bench.keep(patient, scores_of(STUDY, patient, error))
    return bench


def of_tests(study: Study, error: float = 5.0, **more) -> pd.DataFrame:
    return pd.concat([scores_of(study, p, error, **more) for p in study.scored_patients()], ignore_index=True)


def test_the_general_ensemble_gets_intervals_from_the_validation_patients(bench):
    intervals, facts, problems = bench.find(STUDY, of_tests(STUDY))
    assert set(intervals["predictor"]) == {"ensemble_all"}
    assert set(intervals["patient"]) == set(TEST)
    assert set(intervals["margin"]) == {40.0}  # the fourth of four
    assert set(intervals["claimed"]) == {0.8}
    assert problems == []
    said = "validation patients with a volume: 4, so the level of an interval is at most 4/5; 0.9 was asked"
    assert bench.warnings == [f"{said}, and is not claimed"]
    assert facts["not claimed"] == bench.warnings[0]
    assert facts["validation patients"] == 4
    assert facts["intervals of ensemble_all"].png.startswith(b"\x89PNG")
    assert facts["intervals (cm³)"]["upper"].iloc[0] == pytest.approx((1005 + 40) / 1000)
    lower = study_of(conformal={"level": 0.6, "of": [str(STUDY.models[0]), "ensemble_anno1"]})
    intervals, facts, problems = bench.find(lower, of_tests(lower))
    assert set(intervals["predictor"]) == {str(STUDY.models[0]), "ensemble_anno1"}
    assert set(intervals["margin"]) == {30.0}
    assert (problems, facts["not claimed"]) == ([], "nothing")


def test_test_patients_change_no_width(bench):
    for patient in TEST:
        bench.keep(patient, scores_of(STUDY, patient, 1e6))  # their own scores are no input
    before, *_ = bench.find(STUDY, of_tests(STUDY))
    after, _, problems = bench.find(STUDY, of_tests(STUDY, 5000.0))
    pd.testing.assert_series_equal(before["margin"], after["margin"])
    np.testing.assert_allclose(after["upper"] - after["lower"], before["upper"] - before["lower"])
    assert set(after["covered"]) == {0.0}
    assert len(problems) == 3
    assert problems[0].startswith(
        "pancreas by ensemble_all: 0% of 3 patients inside, 80% claimed (probability of so few"
    )


def test_by_its_lineage_it_reads_validation_patients_alone():
    graph = build_definitions(STUDY).resolve_asset_graph()
    key = dg.AssetKey("volume_intervals")
    assert {parent.path[-1] for parent in graph.get(key).parent_keys} == {"scores", "study_scores"}
    mapping = Partitions.of(STUDY).between(table.SCORES.axis, None, fits=table.VOLUME_INTERVALS.fits)
    assert isinstance(mapping, dg.SpecificPartitionsPartitionMapping)
    assert list(mapping.partition_keys) == VALIDATION


def test_validation_patients_without_volumes_are_told_and_the_others_count(bench):
    study = study_of([*VALIDATION, "PHANTOM013"])
    bench.keep("PHANTOM010", scores_of(study, "PHANTOM010", metrics=["dice"]))
    intervals, _, problems = bench.find(study, of_tests(study))
    assert set(intervals["n_fitted"]) == {3}
    assert problems == [
        "no scores yet of the validation patients PHANTOM013: intervals do without them",
        "scores of the validation patients PHANTOM010 hold no volume: they were made by an earlier version, score them again",
    ]
    nothing, _, problems = bench.find(STUDY, of_tests(STUDY, metrics=["dice"]))
    assert nothing.empty
    assert problems[-1] == "no interval of ensemble_all: no volume of it, of validation or test patients, was scored"


def test_a_calibrated_predictor_is_told_to_claim_nothing(bench):
    study = study_of(calibrated={"isotonic": ["ensemble_all"]}, conformal={"of": ["isotonic_ensemble_all"]})
    for patient, error in ERRORS.items():
        bench.keep(patient, scores_of(study, patient, error))
    intervals, facts, problems = bench.find(study, of_tests(study))
    assert intervals["claimed"].isna().all()
    assert problems == []
    assert "isotonic_ensemble_all was fitted on the same patients: no coverage is guaranteed" in facts["not claimed"]


def test_without_validation_patients_nobody_gets_intervals(bench):
    study = study_of([])
    assert study.interval_predictors == []
    intervals, _, problems = bench.find(study, of_tests(study))
    assert (len(intervals), problems, bench.warnings) == (0, [], [])
    training = {**load_study("phantom").training.model_dump(mode="json"), "sets": ["train", "validation"]}
    assert study_of(training=training).interval_predictors == []


def test_under_cross_validation_an_ensemble_has_other_members_and_a_model_has_not(bench):
    sets = {"train": [1, 2, 3], "validation": VALIDATION}
    study = study_of(sets=sets, folds=[0, 1, 2])
    model = str(study.models[0])
    assert study.cross_validated
    assert has_the_same_members(study, model)
    assert not has_the_same_members(study, "ensemble_all")
    assert has_the_same_members(STUDY, "ensemble_all")
    named = study_of(sets=sets, folds=[0, 1, 2], conformal={"of": [model, "ensemble_all"]})
    for patient, error in ERRORS.items():
        bench.keep(patient, scores_of(named, patient, error))
    intervals, _, problems = bench.find(named, of_tests(named))
    assert set(intervals["predictor"]) == {model}
    assert "ensemble_all" in problems[0]
    assert "other members" in problems[0]


def test_coverage_that_may_well_be_chance_is_no_problem(bench):
    intervals, *_ = bench.find(STUDY, of_tests(STUDY))
    one_out = intervals.assign(covered=np.where(intervals["patient"] == TEST[0], 0.0, 1.0))
    assert not_held(observed_coverage(one_out)) == []


@pytest.mark.parametrize("validation", [VALIDATION, VALIDATION[:1], []], ids=["four", "one", "none"])
def test_dagster_makes_it_and_scores_of_validation_patients_make_it_stale(
    validation, monkeypatch, bucket_environment, tmp_path
):
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    study = study_of(validation)
    repository = build_definitions(study, executor="in_process").get_repository_def()
    objects, layout = Bucket().objects(), Bucket().layout

    def keep(patient: str, error: float, version: str) -> None:
        folder = tmp_path / f"{patient}-{version}"
        folder.mkdir()
        scores_of(study, patient, error).to_parquet(folder / "scores.parquet", index=False)
        directories.write_directory(objects, layout.scores(patient), folder)
        tags = {"dagster/data_version": version}
        instance.report_runless_asset_event(dg.AssetMaterialization("scores", partition=patient, tags=tags))

    def make() -> dg.ExecuteInProcessResult:
        wanted = [dg.AssetKey("study_scores"), dg.AssetKey("volume_intervals")]
        return repository.get_job("write_report").execute_in_process(instance=instance, asset_selection=wanted)

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("test_patient", [*validation, *TEST])
        for patient in (*validation, *TEST):
            keep(patient, ERRORS.get(patient, 5.0), "first")
        assert make().success
        stored = tables.read_table(objects, layout.table("volume_intervals"))
        assert set(stored["margin"]) == {max(ERRORS[p] for p in validation)} if validation else stored.empty

        def is_stale() -> bool:
            return bool(Staleness(repository.asset_graph, instance).due(dg.AssetKey("volume_intervals")))

        assert not is_stale()
        if validation:
            keep(validation[0], 500.0, "second")
            assert is_stale()
            assert make().success
            assert set(tables.read_table(objects, layout.table("volume_intervals"))["margin"]) == {500.0}


def test_studies_without_a_word_on_intervals_keep_their_versions():
    plain = load_study("curvas")
    raw = plain.model_dump(mode="json")
    named = Study.model_validate({**raw, "conformal": {"of": ["ensemble_anno1"], "level": 0.8}})
    for row in table.ASSETS:
        changed = row.version(plain) != row.version(named)
        assert changed == (row.name in ("volume_intervals", "figures", "report")), row.name
    assert plain.interval_predictors == ["ensemble_all"]
    assert named.interval_predictors == ["ensemble_anno1"]
