"""Claims proved here.

- Variables come from `.env` too, and those that are set win.
- The study and the executor have defaults; an empty variable counts as not set.
- A bucket's settings never stand in the resource's configuration.
- A session token that has ended is refused before the store is asked.
- GPU slots, GPU nodes, the broker and the bound of scratch have defaults, and follow their variables.
"""

import pytest

from curvas_assets.errors import StorageError
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.environment import (
    broker_url,
    environment,
    executor_name,
    gpu_node_labels,
    gpu_slots,
    scratch_folder,
    scratch_gib,
    study_name,
)


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


def test_study_and_executor_have_defaults(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("CURVAS_STUDY", "CURVAS_EXECUTOR", "CURVAS_SCRATCH"):
        monkeypatch.setenv(name, "")
    assert study_name() == "curvas"
    assert executor_name() == "local"
    assert scratch_folder() is None
    monkeypatch.setenv("CURVAS_SCRATCH", str(tmp_path / "scratch"))
    assert scratch_folder() == tmp_path / "scratch"
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


def test_settings_of_machines_have_defaults_and_follow_their_variables(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("GPU_SLOTS", "GPU_NODES", "BROKER", "SCRATCH_GIB"):
        monkeypatch.delenv(f"CURVAS_{name}", raising=False)
    monkeypatch.setenv("CURVAS_DEVICES", "0,1,2")
    assert gpu_slots() == 3
    monkeypatch.setenv("CURVAS_DEVICES", "")
    assert (gpu_slots(), gpu_slots(without=2)) == (1, 2)
    assert gpu_node_labels() == {"nvidia.com/gpu.present": "true"}
    assert (broker_url(), scratch_gib()) == ("redis://127.0.0.1:6379/0", 80)
    for name, value in (("GPU_SLOTS", "2"), ("GPU_NODES", "a=b, c=d"), ("BROKER", "redis://r/1"), ("SCRATCH_GIB", "9")):
        monkeypatch.setenv(f"CURVAS_{name}", value)
    assert (gpu_slots(), gpu_node_labels()) == (2, {"a": "b", "c": "d"})
    assert (broker_url(), scratch_gib()) == ("redis://r/1", 9)
    monkeypatch.setenv("CURVAS_GPU_NODES", "")
    assert gpu_node_labels() == {}
