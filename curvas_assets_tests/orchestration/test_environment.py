"""Claims proved here.

- Variables come from `.env` too, and those that are set win.
- The study and the executor have defaults; an empty variable counts as not set.
- A bucket's settings never stand in the resource's configuration.
"""

from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.environment import environment, executor_name, scratch_folder, study_name


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
