"""Claims proved here.

- Variables come from `.env` too, and those that are set win.
- The study and the executor have defaults; an empty variable counts as not set.
- A bucket's settings never stand in the resource's configuration.
- A session token that has ended is refused before the store is asked; one that ends during the work is told in its log.
- A variable that holds what it may not is named, with what was found and what is allowed; every variable is described.
- GPU slots, GPU nodes, the broker and the bound of scratch have defaults, and follow their variables.
"""

import base64
import json
import logging
import time
from pathlib import Path

import dagster as dg
import pytest

from curvas_assets.errors import DeploymentError, StorageError
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.environment import Deployment, deployment, environment, variable


def test_dotenv_is_read_and_variables_that_are_set_win(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text(
        "S3_BUCKET=from-file\nS3_ENDPOINT=minio.example.org\nAWS_ACCESS_KEY_ID=me\nAWS_SECRET_ACCESS_KEY=topsecret\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("S3_BUCKET", "from-process")
    monkeypatch.delenv("S3_ENDPOINT", raising=False)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    assert environment()["S3_BUCKET"] == "from-process"
    settings = Bucket().settings()
    assert (settings.bucket, settings.endpoint) == ("from-process", "https://minio.example.org")
    assert settings.secret_key == "topsecret"
    assert "topsecret" not in str(Bucket().model_dump())


def test_settings_follow_what_they_are_read_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CURVAS_STUDY", raising=False)
    assert deployment().study == "curvas"
    Path(".env").write_text("CURVAS_STUDY=phantom\n")
    assert deployment().study == "phantom"
    Path(".env").write_text("CURVAS_STUDY=another-one\n")
    assert deployment().study == "another-one"
    monkeypatch.setenv("CURVAS_STUDY", "of-the-process")
    assert deployment().study == "of-the-process"
    monkeypatch.delenv("CURVAS_STUDY")
    Path(".env").unlink()
    assert deployment().study == "curvas"


def test_study_and_executor_have_defaults(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("CURVAS_STUDY", "CURVAS_EXECUTOR", "CURVAS_SCRATCH"):
        monkeypatch.setenv(name, "")
    assert deployment().study == "curvas"
    assert deployment().executor == "local"
    assert deployment().scratch_folder() is None
    monkeypatch.setenv("CURVAS_SCRATCH", str(tmp_path / "scratch"))
    assert deployment().scratch_folder() == tmp_path / "scratch"
    assert (tmp_path / "scratch").is_dir()


def test_a_session_that_has_ended_is_refused_before_the_store_is_asked(monkeypatch):
    ended = "e30.eyJleHAiOiAxMDAwfQ.x"  # {} . {"exp": 1000}
    for name, value in {
        "S3_BUCKET": "b",
        "S3_ENDPOINT": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "topsecret",
        "AWS_SESSION_TOKEN": ended,
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=r"AWS_SESSION_TOKEN: .* it ended 1970-01-01 00:16 UTC"):
        Bucket().checked_objects()


def test_a_session_that_ends_during_long_work_is_told_in_the_runs_log(monkeypatch, bucket_environment):
    ends = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + 5 * 3600}).encode()).decode().rstrip("=")
    for name, value in (bucket_environment | {"AWS_SESSION_TOKEN": f"e30.{ends}.x"}).items():
        monkeypatch.setenv(name, value)

    @dg.op
    def long_work():
        Bucket().checked_objects(hours=24)

    @dg.job
    def work():
        long_work()

    instance = dg.DagsterInstance.ephemeral()
    result = work.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success  # the embedded server issues no sessions, so it refuses this one, afterwards
    told = [entry for entry in instance.all_logs(result.run_id) if "AWS_SESSION_TOKEN ends" in entry.user_message]
    assert [entry.level for entry in told] == [logging.WARNING]
    assert "in 5.0 h; this work may take 24.0 h" in told[0].user_message
    assert ends not in "".join(map(str, instance.all_logs(result.run_id)))


def test_settings_of_machines_have_defaults_and_follow_their_variables(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("GPU_SLOTS", "GPU_NODES", "BROKER", "SCRATCH_GIB"):
        monkeypatch.delenv(f"CURVAS_{name}", raising=False)
    monkeypatch.setenv("CURVAS_DEVICES", "0,1,2")
    assert deployment().gpu_steps() == 3
    monkeypatch.setenv("CURVAS_DEVICES", "")
    assert (deployment().gpu_steps(), deployment().gpu_steps(without=2)) == (1, 2)
    assert deployment().gpu_node_labels() == {"nvidia.com/gpu.present": "true"}
    assert (deployment().broker, deployment().scratch_gib) == ("redis://127.0.0.1:6379/0", 80)
    for name, value in (("GPU_SLOTS", "2"), ("GPU_NODES", "a=b, c=d"), ("BROKER", "redis://r/1"), ("SCRATCH_GIB", "9")):
        monkeypatch.setenv(f"CURVAS_{name}", value)
    assert (deployment().gpu_steps(), deployment().gpu_node_labels()) == (2, {"a": "b", "c": "d"})
    assert (deployment().broker, deployment().scratch_gib) == ("redis://r/1", 9)
    monkeypatch.setenv("CURVAS_GPU_NODES", "")
    assert deployment().gpu_node_labels() == {}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("scratch_gib", "much"),
        ("scratch_gib", "0"),
        ("gpu_slots", "-1"),
        ("lost_after_seconds", "0"),
        ("nightly_predict", "perhaps"),
    ],
)
def test_a_variable_that_holds_what_it_may_not_is_named(monkeypatch, setting, value):
    monkeypatch.setenv(variable(setting), value)
    with pytest.raises(DeploymentError) as caught:
        deployment()
    assert caught.value.subject == variable(setting)
    assert repr(value) in str(caught.value)
    assert str(caught.value).endswith(Deployment.model_fields[setting].description)


def test_every_variable_is_described_and_named_after_its_setting(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert all(field.description for field in Deployment.model_fields.values())
    assert variable("scratch_gib") == "CURVAS_SCRATCH_GIB"
    with pytest.raises(KeyError):
        variable("scratch_gb")
