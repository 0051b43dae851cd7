"""Claims proved here.

- A container's limit counts, and pages of files, which are given back, count as free however often they were read; so do
  slabs that can be given back.
- Without a limit, the machine's free memory counts.
- The tightest room counts of the process's own cgroup and of all above it, in version 1, version 2, and both at once; groups
  that are not the process's never count.
- Where the path of the process's group is another namespace's, the folder of cgroups itself counts.
- Files that are missing, cannot be read or hold something else never raise, and a limit that can be read still counts.
- The process's own limits (`ulimit -v`, `ulimit -d`) count.
"""

import os
import subprocess
import sys

import psutil
import pytest

from curvas_assets.machine import available_memory

NO_LIMIT = 9223372036854771712
"""What version 1 states where there is no limit."""


def second(folder, limit, held, *, inactive=0, active=0, high="max"):
    """A group of version 2."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.high").write_text(f"{high}\n")
    (folder / "memory.current").write_text(f"{held}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file {active}\n")


def first(folder, limit, held, *, inactive=0, active=0, above=NO_LIMIT):
    """A group of version 1; what it holds itself, without the groups below it, is stated too and does not count."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{held}\n")
    (folder / "memory.stat").write_text(
        f"cache 1\ninactive_file 7\nactive_file 7\nhierarchical_memory_limit {above}\n"
        f"total_inactive_file {inactive}\ntotal_active_file {active}\n"
    )


def unlimited(room: int) -> bool:
    return room == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_the_containers_limit_counts(tmp_path):
    free = available_memory(tmp_path)  # no such files: the machine's
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\ninactive_file 300000\nactive_file 400000\n")
    assert available_memory(tmp_path) == 800000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == pytest.approx(free, rel=0.2)


def test_slabs_that_can_be_given_back_count_as_free(tmp_path):
    second(tmp_path, 1000, 900, inactive=100)
    stated = (tmp_path / "memory.stat").read_text()
    (tmp_path / "memory.stat").write_text(f"{stated}slab_reclaimable 300\nslab_unreclaimable 50\nslab 350\n")
    assert available_memory(tmp_path) == 1000 - (900 - 100 - 300)


def test_of_all_groups_above_the_tightest_room_counts(tmp_path):
    job = tmp_path / "system.slice" / "slurmstepd.scope" / "job_7"
    second(job / "step_0" / "user" / "task_0", "max", 100)
    second(job / "step_0" / "user", 4000, 100)
    (job / "step_0").mkdir(exist_ok=True)  # without the memory controller
    second(job, 3000, 2500, inactive=300, active=200)
    second(job.parent, 2500, 1000)
    second(job.parent / "job_8", 10, 10)
    membership = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n"
    assert available_memory(tmp_path, membership) == 1000
    second(job.parent, "max", 2600)
    second(job / "step_0" / "user" / "task_0", 1500, 800)
    assert available_memory(tmp_path, membership) == 700
    second(job / "step_0" / "user" / "task_0", 1500, 800, high=900)
    assert available_memory(tmp_path, membership) == 100
    second(job / "step_0" / "user" / "task_0", 1500, 1700)
    assert available_memory(tmp_path, membership) == 0


def test_the_first_version_is_known_too(tmp_path):
    root = tmp_path / "memory"
    job = root / "slurm" / "uid_1000" / "job_7"
    first(root, NO_LIMIT, 10**12)
    first(root / "slurm", NO_LIMIT, 10**9)
    first(job, 5000, 4500, inactive=1000, active=500)
    first(job / "step_batch", 4000, 3000)
    first(job.parent / "job_8", 10, 10)
    membership = (
        "12:cpuset:/slurm/uid_1000/job_8\n11:devices,memory:/slurm/uid_1000/job_7/step_batch\n1:name=systemd:/x\n"
    )
    assert available_memory(tmp_path, membership) == 1000
    first(job / "step_batch", NO_LIMIT, 3000)
    assert available_memory(tmp_path, membership) == 2000
    first(job, NO_LIMIT, 4500)
    assert unlimited(available_memory(tmp_path, membership))


def test_both_versions_at_once(tmp_path):
    first(tmp_path / "memory" / "job", 5000, 1000)
    second(tmp_path / "unified" / "job", "max", 1000)
    membership = "4:memory:/job\n1:name=systemd:/job\n0::/job\n"
    assert available_memory(tmp_path, membership) == 4000
    second(tmp_path / "unified" / "job", 1500, 1000)  # which has the controller where the first has it not
    assert available_memory(tmp_path, membership) == 500


@pytest.mark.parametrize("path", ["/docker/0a1b", "/../0a1b", "/", ""])
def test_the_folder_itself_counts_where_the_path_is_anothers(tmp_path, path):
    second(tmp_path / "a", 3000, 1000)
    assert available_memory(tmp_path / "a", f"0::{path}\n") == 2000
    first(tmp_path / "b" / "memory", 3000, 1000)
    assert available_memory(tmp_path / "b", f"4:memory:{path}\n") == 2000
    first(tmp_path / "b" / "memory", NO_LIMIT, 1000, above=1800)  # of a group that the container does not see
    assert available_memory(tmp_path / "b", f"4:memory:{path}\n") == 800


def test_a_path_that_leads_outside_is_not_followed(tmp_path):
    second(tmp_path / "other", 10, 10)
    second(tmp_path / "groups", 3000, 1000)
    assert available_memory(tmp_path / "groups", "0::/../other\n") == 2000


def test_odd_files_never_raise(tmp_path):
    for membership in (
        "",
        "nonsense",
        "0:",
        "x:memory",
        "0::/job\n\n::::\n4:memory:/job (deleted)",
        "0::/job/memory.max",
    ):
        assert unlimited(available_memory(tmp_path, membership))
    job = tmp_path / "job"
    second(job, 3000, 1000, inactive=5000)
    assert available_memory(tmp_path, "0::/job\n") == 3000  # no more than it holds is given back
    (job / "memory.stat").write_bytes(b"\xff\xfe\n")
    assert available_memory(tmp_path, "0::/job\n") == 2000
    (job / "memory.stat").write_text("\ninactive_file\nactive_file many\ninactive_file 100\n")
    assert available_memory(tmp_path, "0::/job\n") == 2100
    (job / "memory.current").unlink()
    (job / "memory.current").mkdir()
    assert available_memory(tmp_path, "0::/job\n") == 3000
    for odd in (b"", b"-1", b"\xff", b"12 kB", "\u00b2".encode()):
        (job / "memory.max").write_bytes(odd)
        assert unlimited(available_memory(tmp_path, "0::/job\n"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux enforces these limits")
@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_the_process_own_limits_count(tmp_path, kind):
    limit, block = 1 << 29, 1 << 27
    script = f"""
import resource, sys
from pathlib import Path
from curvas_assets.machine import available_memory
resource.setrlimit(resource.{kind}, ({limit}, {limit}))
room = available_memory(Path(sys.argv[1]), "")
held = bytearray({block})
print(room, available_memory(Path(sys.argv[1]), ""))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=os.environ, capture_output=True, text=True, check=True
    )
    room, then = map(int, run.stdout.split())
    assert 0 < room < limit
    assert then == pytest.approx(room - block, abs=16 << 20)
