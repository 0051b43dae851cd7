"""Claims proved here.

- Two GPU steps never overlap, neither of one run nor of two, under the instance file's default limit of one.
- CPU steps run beside them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg

from curvas_assets_tests.orchestration import pool_job

ROOT = Path(__file__).resolve().parents[2]


def test_gpu_steps_of_two_runs_never_overlap_while_cpu_steps_run_beside_them(tmp_path):
    home, notes = tmp_path / "home", tmp_path / "notes"
    home.mkdir()
    notes.mkdir()
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    with dg.DagsterInstance.from_config(
        str(home)
    ) as instance:  # makes the databases, so that the runs do not race for it
        instance.get_runs(limit=1)
        instance.event_log_storage.get_pool_limits()
    environment = {**os.environ, "DAGSTER_HOME": str(home), "POOL_NOTES": str(notes)}
    command = [sys.executable, "-m", pool_job.__name__]
    runs = [subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        assert [run.wait(timeout=90) for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()

    spans = {name: sorted(_spans(notes, name)) for name in ("gpu", "cpu")}
    assert len(spans["gpu"]) == 4
    assert len(spans["cpu"]) == 2
    for (_, end), (start, _) in zip(spans["gpu"], spans["gpu"][1:], strict=False):
        assert end <= start
    assert any(
        start < cpu_end and cpu_start < end for start, end in spans["gpu"] for cpu_start, cpu_end in spans["cpu"]
    )


def _spans(notes: Path, name: str) -> list[tuple[float, float]]:
    return [tuple(map(float, file.read_text().split())) for file in notes.glob(f"{name}-*")]
