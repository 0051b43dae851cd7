"""What this process may use of the machine: memory and cores, as far as its container, job or shell lets it."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
"""Folder in which Linux states how much memory each group of processes may use."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""File in which Linux states the groups of this process."""


class _Files(NamedTuple):
    """How a version of cgroups names what it states of a group's memory.

    Args:
        limits: files, each with a number of bytes.
        held: file with the bytes that the group holds.
        limits_above: names in `memory.stat` of limits that groups above set.
        reclaimable: names in `memory.stat` of bytes that are given back when memory runs short.
    """

    limits: tuple[str, ...]
    held: str
    limits_above: tuple[str, ...]
    reclaimable: tuple[str, ...]


# Pages of files are given back when memory runs short, also those that were read several times ("active"), and so are
# the kernel's own notes on files (slabs), of which only the second version states how many can be.
# Above memory.high a process is slowed down until it stands still.
_SECOND = _Files(
    ("memory.max", "memory.high"),
    "memory.current",
    (),
    ("inactive_file", "active_file", "slab_reclaimable"),
)
_FIRST = _Files(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("hierarchical_memory_limit",),
    ("total_inactive_file", "total_active_file"),
)


def available_memory(cgroups: Path = CGROUPS, membership: str | None = None) -> int:
    """Memory that may still be taken, bytes: the least of what the machine has free and what each limit leaves.

    Limits are those of the process's cgroups, of all groups above them, and of its shell (`ulimit -v`, `ulimit -d`).

    Args:
        cgroups: folder of the groups, of version 1, version 2 or both.
        membership: the process's groups, as `/proc/self/cgroup` lists them; read from there if not given.
    """
    import psutil

    rooms = [int(psutil.virtual_memory().available), *_rooms_of_process()]
    groups = _groups(cgroups, (_text(MEMBERSHIP) or "") if membership is None else membership)
    rooms += [room for folder, files in groups if (room := _room(folder, files)) is not None]
    return max(0, min(rooms))


def _groups(cgroups: Path, membership: str) -> Iterator[tuple[Path, _Files]]:
    """Folders of the process's groups and of all above them; some may not exist.

    In a container the folder of all groups is often its own group's, and the path is the host's: the folder itself
    counts whatever the path.
    """
    second, first = (cgroups, cgroups / "unified"), (cgroups / "memory",)
    yield from ((root, _SECOND) for root in second)
    yield from ((root, _FIRST) for root in first)
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = PurePosixPath(path.lstrip("/")).parts
        if ".." in parts:  # a group outside of what this process can see
            continue
        if number == "0":
            roots, files = second, _SECOND
        elif "memory" in controllers.split(","):
            roots, files = first, _FIRST
        else:
            continue
        for root in roots:
            yield from ((root.joinpath(*parts[:depth]), files) for depth in range(1, len(parts) + 1))


def _room(folder: Path, files: _Files) -> int | None:
    """Bytes that a group may still take; None if it has no limit, or states none."""
    stated: dict[str, int] = {}
    for line in (_text(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if (number := _number(value)) is not None:
            stated[name] = number
    limits = [_number(_text(folder / name)) for name in files.limits] + [stated.get(one) for one in files.limits_above]
    known = [limit for limit in limits if limit is not None]
    if not known:
        return None
    held = _number(_text(folder / files.held)) or 0
    return min(known) - held + min(held, sum(stated.get(name, 0) for name in files.reclaimable))


def _rooms_of_process() -> list[int]:
    """Bytes that the limits of this process itself leave, of address space and of data."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    import psutil

    held = psutil.Process().memory_info()
    limits = ((resource.RLIMIT_AS, held.vms), (resource.RLIMIT_DATA, getattr(held, "data", held.rss)))
    soft = [(resource.getrlimit(kind)[0], used) for kind, used in limits]
    return [limit - used for limit, used in soft if limit != resource.RLIM_INFINITY]


def _text(file: Path) -> str | None:
    try:
        return file.read_text()
    except (OSError, ValueError):  # ValueError: not text
        return None


def _number(text: str | None) -> int | None:
    """The number that a file states; None for `max` and whatever else is no number."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its container's share of time."""
    from joblib import cpu_count  # of scikit-learn; os.cpu_count knows the machine alone

    return int(cpu_count())
