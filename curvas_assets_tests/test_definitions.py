"""Claims proved here.

- The code location loads without credentials, as `dagster definitions validate` does.
- Every asset has description, group, owner, kinds and code version; GPU work is in the pool, and nothing else is.
- Partitions are the study's: 9 models, 13 predictors, dynamic patients; a study of another shape changes them.
- An edit of the study makes stale what it concerns and the report, and nothing else.
- Jobs, schedules and sensors are there; only the registration of patients and `keep_going` run by default.
- Two studies on one instance, each with its prefix, share neither assets nor patients.
- The report is ready as soon as there are scores, with or without models.
- Tags for clusters stand on the ops that need a GPU, and on no other.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from curvas_assets.definitions import build_definitions
from curvas_assets.orchestration.asset_keys import name_of
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.execution import EXECUTORS, GPU_POOL, executor
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.sensors import register
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.study_run import StageRunner
from curvas_assets.stages.table import REPORT, STAGES
from curvas_assets.study import Study, load_study

ROOT = Path(__file__).resolve().parents[1]
GPU_ASSETS = {"trained_model", "softmax", "variant_softmax"}
OBSERVED = ("patient_files", "published_table", "other_studies")


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_definitions(load_study("curvas"))


@pytest.fixture(scope="module")
def graph(definitions):
    return definitions.resolve_asset_graph()


def test_the_code_location_validates_without_credentials(tmp_path):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3_", "CURVAS_", "DAGSTER_"))}
    command = [Path(sys.executable).with_name("dagster"), "definitions", "validate", "-w", ROOT / "workspace.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_asset_says_what_it_is(graph):
    assert len(graph.get_all_asset_keys()) == 26
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.group_name != "default", key
        assert node.owners, key
        assert node.kinds, key
        if key.path[-1] not in OBSERVED:
            assert node.code_version, key


def test_gpu_work_and_nothing_else_is_in_the_pool(graph):
    pools = {key.path[-1] for key in graph.materializable_asset_keys if GPU_POOL in graph.get(key).pools}
    assert pools == GPU_ASSETS


def test_cluster_tags_ask_for_a_gpu_where_one_is_needed(definitions, graph):
    for key in graph.materializable_asset_keys:
        tags = definitions.resolve_assets_def(key).op.tags
        limits = json.loads(tags["dagster-k8s/config"])["container_config"]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) is (key.path[-1] in GPU_ASSETS), key
        assert tags["dagster-celery/queue"] == ("gpu" if key.path[-1] in GPU_ASSETS else "cpu")


def test_partitions_are_the_studys(graph):
    def keys(asset):
        return graph.get(dg.AssetKey(asset)).partitions_def

    assert len(keys("trained_model").get_partition_keys()) == 9
    assert keys("preprocessed_dataset").get_partition_keys() == ["anno1", "anno2", "anno3"]
    assert keys("scan").name == "patient"
    assert keys("scores").name == "test_patient"
    assert {d.name for d in keys("softmax").partitions_defs} == {"model", "patient"}
    assert {d.name for d in keys("ensemble_softmax").partitions_defs} == {"ensemble", "patient"}
    assert {d.name for d in keys("variant_softmax").partitions_defs} == {"model_variant", "patient"}


def test_two_annotators_and_one_organ_are_configuration_not_code():
    raw = load_study("phantom").model_dump(mode="json")
    raw["annotators"], raw["organs"], raw["seeds"] = raw["annotators"][:2], {"liver": 1}, [5]
    graph = build_definitions(Study.model_validate(raw)).resolve_asset_graph()
    models = graph.get(dg.AssetKey("trained_model")).partitions_def.get_partition_keys()
    assert models == ["anno1_init5_foldall", "anno2_init5_foldall"]


def _edited(**edits) -> Study:
    raw = load_study("phantom").model_dump(mode="json")
    for field, value in edits.items():
        raw[field] = {**raw[field], **value} if isinstance(value, dict) else value
    return Study.model_validate(raw)


@pytest.mark.parametrize(
    ("edits", "stale"),
    [
        ({"evaluation": {"ece_bins": 40}}, {"scores", "leaderboard"}),
        ({"evaluation": {"region": "image"}}, {"scores", "leaderboard"}),
        ({"groups": {"A": ["001"], "B": ["008"], "C": ["009"]}}, {"cohort", "study_scores"}),
        ({"rest": "test"}, {"cohort", "study_scores", "predictor_cost"}),
        ({"calibrated": {"isotonic": ["ensemble_all"]}}, {"calibrators", "scores", "study_scores", "predictor_cost"}),
        (
            {"seeds": [1, 445566, 778899]},
            {"scores", "study_scores", "volume_intervals", "predictor_cost"},  # ensembles by their own members
        ),
        ({"conformal": {"of": ["ensemble_anno1"]}}, {"volume_intervals"}),
        ({"training": {"epochs": 8}}, {"trained_model"}),
        ({"plans": {"batch_size": 3}}, {"preprocessed_dataset", "trained_model"}),
        ({"prediction": {"tile_step": 0.25}}, {"softmax", "variant_softmax"}),
        ({"training": {"snapshots": 2}}, {"trained_model", "variant_softmax"}),
        (
            {"training": {"snapshots": 2}, "cheap_ensembles": {"snapshots": ["anno1_init112233_foldall"]}},
            {
                "trained_model",
                "variant_softmax",
                "scores",
                "study_scores",
                "volume_intervals",
                "predictor_cost",
            },
        ),
        ({"checks": {"dice_floor": 0.9}}, set()),
        (
            {"statistics": {"alpha": 0.01}},
            {"family_comparisons", "variance_components", "published_comparison", "study_comparison"},
        ),
        ({"compare_with": {"other": "other/metrics"}}, {"study_comparison"}),
    ],
)
def test_an_edit_of_the_study_changes_the_code_version_of_what_it_concerns_and_of_the_report(edits, stale):
    def versions(study):
        graph = build_definitions(study).resolve_asset_graph()
        return {key.path[-1]: graph.get(key).code_version for key in graph.materializable_asset_keys}

    before, after = versions(_edited()), versions(_edited(**edits))
    assert {asset for asset in before if before[asset] != after[asset]} == stale | {"figures", "report"}


def test_jobs_cover_every_asset_and_the_whole_study(definitions, graph):
    jobs = {job.name for job in definitions.resolve_all_job_defs()}
    assert {*STAGES, "study"} <= jobs
    made = {asset for assets in STAGES.values() for asset in assets}
    assert made == {key.path[-1] for key in graph.materializable_asset_keys}


def test_only_what_costs_nothing_runs_by_default(definitions):
    repository = definitions.get_repository_def()
    running = {s.name for s in repository.sensor_defs if s.default_status == dg.DefaultSensorStatus.RUNNING}
    running |= {s.name for s in repository.schedule_defs if s.default_status == dg.DefaultScheduleStatus.RUNNING}
    assert running == {"register_patients", "keep_going"}
    sensors = {"register_patients", "follow_new_patients", "report_after_scores", "report_failures", "keep_going"}
    assert {s.name for s in repository.sensor_defs} == sensors
    assert {s.name for s in repository.schedule_defs} == {"nightly_scores", "weekly_report"}


def test_schedules_ask_for_nothing_where_there_is_nothing(definitions, tmp_path):
    repository = definitions.get_repository_def()
    # Not as a context manager: leaving it would leave Dagster's global storage of definitions without its instance.
    instance = dg.DagsterInstance.local_temp(str(tmp_path))
    for name, reason in (("nightly_scores", "up to date"), ("weekly_report", "there are no scores yet")):
        context = dg.build_schedule_context(instance=instance, repository_def=repository)
        tick = repository.get_schedule_def(name).evaluate_tick(context)
        assert not tick.run_requests
        assert reason in tick.skip_message
    instance.dispose()


def test_executors_are_chosen_by_name_and_others_refused():
    assert executor("local").name == executor("multiprocess").name == "multiprocess"
    assert executor("celery").name == "celery"
    assert executor("kubernetes").name == "k8s"
    assert executor("in_process").name == "in_process"
    with pytest.raises(ValueError, match="allowed is one of " + ", ".join(EXECUTORS)):
        executor("slurm")


def registered(study: Study, instance: dg.DagsterInstance) -> list[str]:
    """The patients whom a run of a study has registered."""
    added: list[str] = []

    @dg.op
    def look(context: dg.OpExecutionContext) -> None:
        added.extend(register(context, study, Partitions.of(study), Bucket()))

    @dg.job
    def registration() -> None:
        look()

    assert registration.execute_in_process(instance=instance).success
    return added


def test_two_studies_on_one_instance_are_kept_apart_by_their_prefixes(monkeypatch, bucket_environment, tmp_path):
    """Each is a code location of its own: one bucket, a folder for what each makes, the same patients, the same jobs."""
    with dg.DagsterInstance.ephemeral() as instance:
        states, added = {}, {}
        for prefix, patients in (("", [1, 2]), ("abdomen", [2, 3])):
            for name, value in (
                bucket_environment
                | {"S3_DATA_DIR": f"data{prefix}", "S3_STUDY_DIR": prefix, "CURVAS_KEY_PREFIX": prefix}
            ).items():
                monkeypatch.setenv(name, value)
            study = load_study("phantom")
            repository = build_definitions(study, executor="in_process").get_repository_def()
            objects, layout = Bucket().objects(), Bucket().layout
            for patient in patients:
                objects.put(layout.patient_file(f"PHANTOM{patient:03d}", study.image), b"no image")
            added[prefix] = registered(study, instance)
            graph = repository.asset_graph
            states[prefix] = Staleness(graph, instance)
            key = dg.AssetKey([*filter(None, [prefix]), "scan"])
            assert graph.has(key)
            assert {tuple(one.path[:-1]) for one in graph.get_all_asset_keys()} == {(prefix,) if prefix else ()}
            assert {asset for made in STAGES.values() for asset in made} <= set(
                map(name_of, graph.get_all_asset_keys())
            )
            result = repository.get_job("take_in_scans").execute_in_process(
                instance=instance, partition_key="PHANTOM002", raise_on_error=False
            )
            assert not result.success  # its file is none
            instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=f"PHANTOM{patients[0]:03d}"))
        assert added == {"": ["PHANTOM001", "PHANTOM002"], "abdomen": ["PHANTOM002", "PHANTOM003"]}
        assert sorted(instance.get_dynamic_partitions("patient")) == added[""]
        assert sorted(instance.get_dynamic_partitions("abdomen_patient")) == added["abdomen"]
        assert states[""].due(dg.AssetKey("scan")) == ["PHANTOM002"]
        assert states["abdomen"].due(dg.AssetKey(["abdomen", "scan"])) == ["PHANTOM003"]


def test_a_report_waits_for_scores_and_for_nothing_else(definitions):
    """Who uploaded predictions only has no model here, and none is needed."""
    with dg.DagsterInstance.ephemeral() as instance:
        runner = StageRunner(SimpleNamespace(instance=instance, repository_def=definitions.get_repository_def()))
        instance.add_dynamic_partitions("test_patient", ["UKCHLL003"])
        assert not runner.is_ready(REPORT)
        instance.report_runless_asset_event(dg.AssetMaterialization("scores", partition="UKCHLL003"))
        assert runner.is_ready(REPORT)
