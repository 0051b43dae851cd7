"""Claims proved here.

- No two steps ever hold one device: neither steps of one run nor of two, with one device or with two.
- CPU steps run beside them. With two devices, a second process gets the second.
- A device comes back when the process that holds it is killed.
- A process that has seen a device waits for that one; without devices nothing is locked.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest

from curvas_assets.orchestration import devices
from curvas_assets.orchestration.environment import deployment
from curvas_assets_tests.orchestration import pool_job, services

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.setattr(devices, "_seen_by_this_process", None)


@pytest.mark.parametrize("names", ["0", "0,3"])
def test_no_two_steps_hold_one_device_while_cpu_steps_run_beside_them(tmp_path, names):
    spans = _run_two_jobs(tmp_path, names)
    on_device = {name: found for name, found in spans.items() if name.startswith("gpu")}
    assert {name.removeprefix("gpu-") for name in on_device} <= set(names.split(","))
    assert sum(map(len, on_device.values())) == 4
    for found in on_device.values():
        for (_, end), (start, _) in pairwise(found):
            assert end <= start
    gpu = [span for found in on_device.values() for span in found]
    assert len(spans["cpu"]) == 2
    assert any(_overlap(one, other) for one in gpu for other in spans["cpu"])


def test_a_killed_process_gives_its_device_back(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from curvas_assets.orchestration.devices import leased_device\n"
        f"with leased_device(print, ['7'], Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    told: list[str] = []

    def kill_when_told(message: str) -> None:
        told.append(message)
        holder.send_signal(signal.SIGKILL)

    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with devices.leased_device(kill_when_told, ["7"], tmp_path) as device:
            assert device == "7"
        assert "waiting for a device, all of 7 are in use" in told[0]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout and holder.stdout.close()


def test_a_process_stays_with_the_device_it_was_given(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with devices.leased_device(print, ["1", "2"], tmp_path) as first:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == first == "1"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.setattr(devices, "_seen_by_this_process", "2")
    with devices.leased_device(print, ["1", "2"], tmp_path) as again:
        assert again == "2"


def test_a_second_process_gets_the_second_device(tmp_path, monkeypatch):
    with devices.leased_device(print, ["1", "2"], tmp_path) as first:
        monkeypatch.setattr(devices, "_seen_by_this_process", None)  # as another process
        with devices.leased_device(print, ["1", "2"], tmp_path) as second:
            assert (first, second) == ("1", "2")


def test_devices_come_from_the_deployment(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert deployment().device_names() == ["4", "5"]
    monkeypatch.setenv("CURVAS_DEVICES", "0, 1")
    assert deployment().device_names() == ["0", "1"]
    monkeypatch.setenv("CURVAS_DEVICES", "")
    with devices.leased_device(print, folder=tmp_path) as device:
        assert device is None
    assert list(tmp_path.iterdir()) == []


def _run_two_jobs(folder: Path, names: str) -> dict[str, list[tuple[float, float]]]:
    home, notes = folder / "home", folder / "notes"
    home.mkdir()
    notes.mkdir()
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    # Made here, so that the runs do not race for the databases.
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.get_runs(limit=1)
        instance.event_log_storage.set_concurrency_slots("gpu", len(names.split(",")))
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "POOL_NOTES": str(notes),
        "CURVAS_DEVICES": names,
        "CURVAS_SCRATCH": str(folder / "scratch"),
    }
    command = [sys.executable, "-m", pool_job.__name__, "2"]
    runs = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert runs.wait(timeout=300) == 0
    finally:
        services.kill_group(runs)
    spans = defaultdict(list)
    for file in notes.glob("*.span"):
        start, end = map(float, file.read_text().split())
        spans[file.stem.rsplit("-", 2)[0]].append((start, end))
    return {name: sorted(found) for name, found in spans.items()}


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1]
