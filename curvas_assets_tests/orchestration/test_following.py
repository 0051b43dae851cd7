"""Claims proved here.

- A new patient is taken from its scan to its scores stage by stage, by all models, and nobody else is touched.
- While a patient's run goes on, or is about to be launched again after a kill, nothing is asked for that patient.
- What failed is not asked for again, until the patient's files change, or what it is made from is made again.
- Files that come back to what they were are asked for again; so is a report of a state that comes back, or that was emptied.
- What was emptied is asked for again.
- The sensor says what it waits for, asks with the real definitions, and is silent without a bucket.
- Calibrators are fitted once the validation patients that were taken in are predicted; who was never uploaded, or was refused at
  intake, is not waited for, and who is being taken in is. What they wait for is told.
- The report is asked for once when scores have changed, not while they are being made or about to be made again after a kill, and not again for the same inputs.
- A failed run is posted to the webhook, if one is set, with patient, reason and remedy of every step that failed.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest

from curvas_assets.definitions import build_definitions
from curvas_assets.errors import PatientError
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.following import NEW_PATIENT, calibrators_wait_for, due_for_patients
from curvas_assets.orchestration.restarts import GIVEN_UP
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.study import Study, load_study
from curvas_assets_tests.orchestration.lineage import DummyLineage, copied

OLD, NEW = "UKCHLL003", "UKCHLL005"


@pytest.fixture(scope="module")
def recorded():
    lineage = DummyLineage()
    lineage.register(OLD)
    lineage.record_all()
    return lineage


@pytest.fixture
def lineage(recorded):
    lineage = DummyLineage(instance=copied(recorded.instance))
    lineage.instance.add_dynamic_partitions("patient", [NEW])
    lineage.instance.add_dynamic_partitions("test_patient", [NEW])
    return lineage


class Sensor:
    """What Dagster's daemon does with run requests: launches those whose run key is new."""

    def __init__(self, lineage):
        self.lineage, self.seen = lineage, set()

    def tick(self, files="a"):
        lineage = self.lineage
        due = due_for_patients(lineage.study, lineage.staleness, [OLD, NEW], {NEW: files})
        new = [request for request in due if request.run_key not in self.seen]
        for request in new:
            self.seen.add(request.run_key)
            job = lineage.definitions.resolve_job_def(request.job_name)
            job.execute_in_process(instance=lineage.instance, tags=request.tags, raise_on_error=False)
        return [request.job_name for request in new]


def test_a_new_patient_is_taken_from_scan_to_scores_and_nobody_else(lineage):
    sensor = Sensor(lineage)
    stages = [sensor.tick() for _ in range(6)]
    assert stages == [
        ["take_in_scans"],
        ["select_test_scans"],
        ["predict"],
        ["build_ensembles"],
        ["score_patients", "preview_patients"],
        [],
    ]
    assert lineage.due() == {}
    assert len(lineage.made) == 1 + 1 + 9 + 4 + 1 + 1
    assert all(NEW in key for _, key in lineage.made)


def test_what_was_emptied_is_asked_for_again_and_once(lineage):
    sensor = Sensor(lineage)
    while sensor.tick():
        pass
    lineage.instance.wipe_assets([dg.AssetKey("ensemble_softmax"), dg.AssetKey("scores")])
    assert sorted(sensor.tick()) == ["build_ensembles"] * 2  # of both patients
    assert sorted(sensor.tick()) == ["score_patients"] * 2
    assert sensor.tick() == []


def test_nothing_is_asked_for_while_a_run_of_the_patient_goes_on(lineage):
    run = dg.DagsterRun(job_name="predict", status=dg.DagsterRunStatus.STARTED, tags={"curvas/new_patient": NEW})
    lineage.instance.add_run(run)
    assert Sensor(lineage).tick() == []
    lineage.instance.report_run_failed(run)
    lineage.instance.report_engine_event(GIVEN_UP, run)  # `keep_going` will launch it again
    assert Sensor(lineage).tick() == []


def test_what_failed_is_not_asked_for_again_until_the_files_change(lineage):
    lineage.broken[NEW] = PatientError("reading", NEW, "a truncated file", "Upload it again.")
    sensor = Sensor(lineage)
    assert sensor.tick() == ["take_in_scans"]
    assert sensor.tick() == []
    lineage.broken.clear()
    assert sensor.tick() == []
    assert sensor.tick(files="b") == ["take_in_scans"]
    assert sensor.tick(files="b") == ["select_test_scans"]


def test_files_that_come_back_are_asked_for_again(lineage):
    lineage.broken[NEW] = PatientError("reading", NEW, "a truncated file", "Upload it again.")
    sensor = Sensor(lineage)
    for files in ("a", "b", "a"):
        lineage.change_files(NEW, files)
        assert sensor.tick(files) == ["take_in_scans"]
        assert sensor.tick(files) == []


@pytest.mark.filterwarnings("ignore:Non-compliant tag keys")  # Dagster's own tags of a cell's dimensions
def test_what_failed_is_asked_for_again_when_its_model_is_new(lineage):
    model = str(lineage.study.models[4])
    lineage.broken[f"{model}|{NEW}"] = PatientError("predicting", NEW, "weights that are no number", "Train again.")
    sensor = Sensor(lineage)
    while sensor.tick():
        pass
    assert lineage.due()["softmax"] == [f"{model}|{NEW}"]
    lineage.broken.clear()
    assert lineage.run("trained_model", model).success
    asked = [sorted(set(sensor.tick())) for _ in range(4)]
    assert asked == [["predict"], ["build_ensembles"], ["preview_patients", "score_patients"], []]


def test_the_sensor_asks_with_the_real_definitions(bucket_environment, monkeypatch):
    repository = build_definitions(load_study("phantom")).get_repository_def()
    sensor = repository.get_sensor_def("follow_new_patients")
    with dg.DagsterInstance.ephemeral() as instance:
        for name, value in bucket_environment.items():
            monkeypatch.setenv(name, value)
        context = dg.build_sensor_context(instance=instance, repository_def=repository, resources={"bucket": Bucket()})
        monkeypatch.setenv("S3_BUCKET", "nowhere")
        assert "there is no bucket 'nowhere'" in sensor.evaluate_tick(context).skip_message
        monkeypatch.setenv("S3_BUCKET", bucket_environment["S3_BUCKET"])
        assert "nothing missing" in sensor.evaluate_tick(context).skip_message
        instance.add_dynamic_partitions("patient", ["PHANTOM007"])
        instance.add_dynamic_partitions("test_patient", ["PHANTOM007"])
        fit, request = sensor.evaluate_tick(context).run_requests
    assert (
        fit.job_name == "fit_calibrators"
    )  # of a study that calibrates nothing: an empty record, which scores wait for
    assert request.job_name == "take_in_scans"
    assert request.tags["dagster/partition"] == "PHANTOM007"


CALIBRATED = {
    "sets": {"train": [1, 2], "validation": [5, 6], "test": [7]},
    "groups": {},
    "in_distribution_group": None,
    "calibrated": {"isotonic": ["ensemble_all"]},
}


def test_calibrators_do_not_wait_for_who_was_not_taken_in(bucket_environment, monkeypatch):
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    study = Study.model_validate(load_study("phantom").model_dump(mode="json") | CALIBRATED)
    repository = build_definitions(study).get_repository_def()
    sensor = repository.get_sensor_def("follow_new_patients")

    def tell(asset, *partitions):
        for partition in partitions:
            instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition))

    with dg.DagsterInstance.ephemeral() as instance:
        graph = repository.asset_graph

        def fits():
            due = due_for_patients(study, Staleness(graph, instance), ["PHANTOM006"], {})
            return [request.run_key for request in due if request.job_name == "fit_calibrators"]

        instance.add_dynamic_partitions("test_patient", ["PHANTOM006"])
        assert fits() == []  # nobody was taken in, and an isotonic curve needs somebody
        tell("scan", "PHANTOM006")
        assert fits() == []
        assert calibrators_wait_for(Staleness(graph, instance)) == ["ensemble_softmax of ensemble_all|PHANTOM006"]
        tell("test_scan", "PHANTOM006")
        tell("softmax", *(f"{model}|PHANTOM006" for model in study.models))
        tell("ensemble_softmax", "ensemble_all|PHANTOM006")
        (first,) = fits()  # 005 was never uploaded
        for name in ("patient", "test_patient"):
            instance.add_dynamic_partitions(name, ["PHANTOM005"])
        assert fits() == [first]  # 005 is there, and intake refused it
        intake = dg.DagsterRun("take_in_scans", status=dg.DagsterRunStatus.STARTED, tags={NEW_PATIENT: "PHANTOM005"})
        instance.add_run(intake)
        assert fits() == []
        instance.report_run_canceled(intake)
        assert fits() == [first]
        tell("scan", "PHANTOM005")
        tell("test_scan", "PHANTOM005")
        assert fits() == []
        tell("ensemble_softmax", *(f"{one}|PHANTOM006" for one in study.ensemble_ids))
        tell("viewer_preview", "PHANTOM006")
        context = dg.build_sensor_context(instance=instance, repository_def=repository, resources={"bucket": Bucket()})
        told = sensor.evaluate_tick(context).skip_message
        assert told.endswith("these wait for ensemble_softmax of ensemble_all|PHANTOM005")
        tell("ensemble_softmax", "ensemble_all|PHANTOM005")
        (second,) = fits()
        assert second != first
        tell("calibrators", None)
        assert fits() == []


def test_the_report_is_asked_for_when_scores_have_changed():
    repository = build_definitions(load_study("phantom")).get_repository_def()
    sensor = repository.get_sensor_def("report_after_scores")

    def scored(instance, version):
        tags = {"dagster/data_version": version}
        instance.report_runless_asset_event(dg.AssetMaterialization("scores", partition="PHANTOM007", tags=tags))

    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance, repository_def=repository)
        assert sensor.evaluate_tick(context).skip_message == "there are no scores yet"
        instance.add_dynamic_partitions("test_patient", ["PHANTOM007"])
        scored(instance, "a")
        (first,) = sensor.evaluate_tick(context).run_requests
        (same,) = sensor.evaluate_tick(context).run_requests
        scored(instance, "b")
        (changed,) = sensor.evaluate_tick(context).run_requests
        assert first.run_key == same.run_key != changed.run_key
        keys = {first.run_key, changed.run_key}
        for _ in range(2):  # back to a, and to b again: each state that returns is asked for, once
            for version in ("a", "b"):
                scored(instance, version)
                (returned,) = sensor.evaluate_tick(context).run_requests
                (again,) = sensor.evaluate_tick(context).run_requests
                assert returned.run_key == again.run_key
                assert returned.run_key not in keys
                keys.add(returned.run_key)
        # A report that failed after its tables were made is not asked for again; one that was emptied is.
        instance.report_runless_asset_event(dg.AssetMaterialization("study_scores", tags={"dagster/data_version": "b"}))
        (failed,) = sensor.evaluate_tick(context).run_requests
        assert failed.run_key == again.run_key
        instance.wipe_assets([dg.AssetKey("study_scores")])
        (emptied,) = sensor.evaluate_tick(context).run_requests
        assert emptied.run_key not in keys
        under_way = dg.DagsterRun(
            "score_patients", asset_selection=frozenset({dg.AssetKey("scores")}), status=dg.DagsterRunStatus.STARTED
        )
        instance.add_run(under_way)
        assert sensor.evaluate_tick(context).skip_message == "scores or report are being made"
        instance.report_run_failed(under_way)
        assert sensor.evaluate_tick(context).run_requests
        instance.report_engine_event(GIVEN_UP, under_way)  # `keep_going` will launch it again
        assert sensor.evaluate_tick(context).skip_message == "scores or report are being made"


def test_a_failed_run_is_posted_to_the_webhook(monkeypatch):
    posted = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    told = PatientError("reading annotation_2.nii.gz", "PHANTOM007", "a truncated file", "Upload it again.")

    @dg.op
    def breaks():
        raise told from OSError("short read")

    @dg.op
    def fails():
        raise dg.Failure("scan: 1 of 2 partitions failed, the others are stored", allow_retries=False)

    @dg.op
    def slips():
        raise ValueError("as it should")

    @dg.job
    def broken():
        breaks()
        fails()
        slips()

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CURVAS_WEBHOOK_URL", f"http://127.0.0.1:{server.server_port}/")
    repository = build_definitions(load_study("phantom")).get_repository_def()
    try:
        with dg.DagsterInstance.ephemeral() as instance:
            result = broken.execute_in_process(instance=instance, raise_on_error=False)
            context = dg.build_run_status_sensor_context(
                "report_failures",
                dagster_event=next(e for e in result.all_events if e.event_type_value == "PIPELINE_FAILURE"),
                dagster_instance=instance,
                dagster_run=result.dagster_run,
            ).for_run_failure()
            repository.get_sensor_def("report_failures")(context)
    finally:
        server.shutdown()
        server.server_close()
    (message,) = posted
    assert message["run_id"] == result.run_id
    first, *steps = message["text"].splitlines()
    assert first == f"broken {result.run_id[:8]} failed:"
    assert sorted(steps) == [
        f"breaks: PatientError: {told}",
        "fails: scan: 1 of 2 partitions failed, the others are stored",
        "slips: ValueError: as it should",
    ]
