"""Claims proved here.

- A step's folder is gone when its block ends, and, if its process was killed, when the next step begins.
- The folder of a live step is left alone.
- What does not fit on the disk, or into what the deployment allows, is refused before the work, with the figures.
- What another live step was promised is not given away again; then a retry can help.
- A stage refuses a patient that has no room, names it, and leaves nothing.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import dagster as dg
import pytest

from curvas_assets.definitions import build_definitions
from curvas_assets.errors import DiskError
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.scratch import PREFIX, RESERVE_BYTES, scratch_space
from curvas_assets.study import load_study

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("CURVAS_SCRATCH", str(tmp_path))
    monkeypatch.setenv("CURVAS_SCRATCH_GIB", "")
    return tmp_path


def _folders(root):
    return sorted(path.name for path in root.glob(f"{PREFIX}*") if path.is_dir())


def test_a_folder_is_gone_when_its_block_ends(root):
    with scratch_space("anno1") as folder:
        (folder / "file").write_bytes(bytes(10))
        assert _folders(root) == [folder.name]
    assert _folders(root) == []
    assert not list(root.glob("*.lock"))


def test_what_a_killed_step_left_is_removed_by_the_next_and_a_live_one_is_left_alone(root):
    code = (
        "import time; from curvas_assets.orchestration.scratch import scratch_space\n"
        "with scratch_space('p') as f: (f / 'big').write_bytes(bytes(100)); print('there', flush=True); time.sleep(60)"
    )
    step = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert step.stdout is not None
        assert step.stdout.readline() == "there\n"
        (left,) = _folders(root)
        with scratch_space("q"):
            assert left in _folders(root)
        step.send_signal(signal.SIGKILL)
        step.wait()
        assert _folders(root) == [left]
        with scratch_space("q") as folder:
            assert _folders(root) == [folder.name]
    finally:
        step.kill()
        step.wait()
        step.stdout and step.stdout.close()


def test_what_does_not_fit_is_refused_before_the_work(root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * GIB, 0, 3 * GIB + RESERVE_BYTES))
    with (
        pytest.raises(
            DiskError, match=r"UKCHLL001: .*: 4\.0 GiB are needed, 3\.0 GiB are free \(1 GiB is kept in reserve\)\."
        ) as refused,
        scratch_space("UKCHLL001", 4 * GIB),
    ):
        pass
    assert not refused.value.may_retry
    monkeypatch.setenv("CURVAS_SCRATCH_GIB", "2")
    with pytest.raises(DiskError, match=r"2\.0 GiB are left of CURVAS_SCRATCH_GIB=2"), scratch_space("x", 3 * GIB):
        pass
    with scratch_space("x", 2 * GIB):
        pass


def test_what_a_live_step_was_promised_is_not_given_away_again(root, monkeypatch):
    monkeypatch.setenv("CURVAS_SCRATCH_GIB", "5")
    with scratch_space("a", 3 * GIB) as folder:
        (folder / "used").write_bytes(bytes(1000))
        with pytest.raises(DiskError, match=r"2\.0 GiB are left") as refused, scratch_space("b", 3 * GIB):
            pass
        assert refused.value.may_retry
        with scratch_space("c", 2 * GIB):
            pass
    with scratch_space("b", 3 * GIB):
        pass


def test_a_stage_refuses_what_has_no_room_and_names_it(root, monkeypatch, bucket_environment):
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CURVAS_SCRATCH_GIB", "0.0001")
    objects = Bucket().objects()
    objects.put("data/PHANTOM001/image.nii.gz", bytes(300_000))
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("patient", ["PHANTOM001"])
    job = build_definitions(load_study("phantom"), executor="in_process").resolve_job_def("take_in_scans")
    result = job.execute_in_process(instance=instance, partition_key="PHANTOM001", raise_on_error=False)
    assert not result.success
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    assert "PHANTOM001: making room in" in failure.step_failure_data.error.to_string()
    assert _folders(root) == []
