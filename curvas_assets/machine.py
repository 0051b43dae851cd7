"""What this process may use of the machine: memory and cores, as far as its container lets it."""

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Folder in which Linux states how much memory this container may use."""


def available_memory(cgroup: Path = CGROUP) -> int:
    """Memory that may still be taken, bytes: what the machine has free, or what the container's limit leaves if that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, held = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        pages = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return free
    # Pages of files are given back when memory runs short, also those that were read several times ("active").
    reclaimable = sum(int(pages.get(name, 0)) for name in ("inactive_file", "active_file"))
    return free if limit == "max" else min(free, int(limit) - int(held) + reclaimable)


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its container's share of time."""
    from joblib import cpu_count  # of scikit-learn; os.cpu_count knows the machine alone

    return int(cpu_count())
