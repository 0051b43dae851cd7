"""Dagster's processes on this machine: a state folder has one owner, which restarts parts that die and leaves nothing behind.

The process of `make demo` or `make ui` owns the folder, by a lock that ends with the process. The next owner finds what
a killed owner left running, by session and `DAGSTER_HOME`, and ends it before it starts anything.
"""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from curvas_assets.errors import CurvasError

WAIT_SECONDS = 12
"""How long a new owner waits for an owner that is just ending, s."""
STOP_SECONDS = 3
"""How long Dagster may take to end by itself, s. Its next start handles what it has not finished by then."""
LOOK_SECONDS = 0.5
VAIN_STARTS = 3
"""Dagster is given up after this many starts in a row that ended before all parts were running."""
SERVICES = ("dagster_webserver", "dagster._daemon", "code-server", "api grpc", "dagster dev")
"""Words in the command lines of Dagster's own processes. All other processes of its sessions are runs and their steps."""
VITAL = ("dagster_webserver", "dagster._daemon", "code-server", "api grpc")
"""Processes that `dagster dev` does not start again. If one of the first two ends, it ends too, but slowly; without the
last, the code server itself, it goes on but launches nothing."""
PR_SET_PDEATHSIG = 1


class InUseError(CurvasError):
    """Another process owns the state folder."""


@contextmanager
def owner(state: Path, what: str, url: str, wait_s: float = WAIT_SECONDS) -> Generator[None]:
    """Own a state folder while the block runs.

    Args:
        state: the folder.
        what: the command, as people know it.
        url: where its UI is.
        wait_s: for an owner that is just ending.

    Raises:
        InUseError: another process owns it; the message names it and its UI.
    """
    told = state / "owner.json"
    with (state / "owner.lock").open("a") as lock:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                current = _read(told)
                if time.monotonic() > deadline or not current.get("ending"):
                    raise InUseError(
                        f"starting {what}",
                        str(state),
                        f"`{current.get('what', 'another command')}` is using it, as process {current.get('pid', '?')}, "
                        f"with its UI at {current.get('url', '?')}",
                        "Use that UI, or end the command (Ctrl-C in its terminal) and start again.",
                    ) from None
                time.sleep(0.2)
        mine = {"what": what, "pid": os.getpid(), "url": url}
        told.write_text(json.dumps(mine))
        try:
            yield
        finally:
            told.unlink(missing_ok=True)


def is_ending(state: Path) -> None:
    """Record that this owner is ending, so that a new one waits for it."""
    told = state / "owner.json"
    if (current := _read(told)).get("pid") == os.getpid():
        told.write_text(json.dumps({**current, "ending": True}))


class DagsterDev:
    """`dagster dev`, started again when a part of it dies, and ended with all that it has started.

    Args:
        command: its command line.
        environment: of all its processes; `DAGSTER_HOME` is in it.
        folder: its working directory.
        log: where its output goes.
        record: file that names its sessions, for the next owner.
        before_start: called once all processes that an earlier owner left have ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        record: Path,
        *,
        before_start: Callable[[], None],
    ):
        self.command, self.environment, self.folder, self.log, self.record = command, environment, folder, log, record
        self.before_start = before_start
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._vital: dict[str, psutil.Process] = {}
        self._failure: Exception | None = None
        self._ended = threading.Event()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="dagster-dev", daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> "DagsterDev":
        end_leftovers(self.record, self.environment["DAGSTER_HOME"])
        self.before_start()
        self.log.unlink(missing_ok=True)
        self._watcher.start()
        self._started.wait()
        if self._failure is not None:
            self._watcher.join()
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._watcher.join()

    @property
    def has_ended(self) -> bool:
        """Whether Dagster was given up, because start after start ended at once."""
        return self._ended.is_set()

    def wait(self) -> None:
        """Wait until Dagster is given up, in short waits: a signal that another thread receives does not end a wait."""
        while not self._ended.wait(LOOK_SECONDS):
            pass
        if self._failure is not None:
            raise self._failure

    def _watch(self) -> None:
        """Start and watch Dagster in one thread: its children end when the thread ends (`PR_SET_PDEATHSIG`)."""
        try:
            self._keep_whole()
        except Exception as error:  # no such program, a full disk
            self._failure = error
        finally:
            self._ended.set()
            self._started.set()

    def _keep_whole(self) -> None:
        vain = 0
        while not self._stopping.is_set() and vain < VAIN_STARTS:
            self._start()
            while not self._stopping.wait(LOOK_SECONDS) and self._is_whole():
                pass
            if not self._stopping.is_set():
                vain = 0 if len(self._vital) == len(VITAL) else vain + 1
                self.restarts += 1
                self._end_services()
        self._stop()

    def _start(self) -> None:
        with self.log.open("a") as output:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=ends_with_parent,
            )
        self._vital = {}
        sessions = _read(self.record).get("sessions", [])
        staged = self.record.with_suffix(".new")  # a full disk must not destroy the next owner's record
        staged.write_text(json.dumps({"sessions": [*sessions, self._process.pid]}))
        staged.replace(self.record)
        self._started.set()

    def _is_whole(self) -> bool:
        """Whether `dagster dev` and all vital parts seen so far are alive. A part is replaced after a new one runs."""
        assert self._process is not None
        if self._process.poll() is not None:
            return False
        missing = [name for name in VITAL if name not in self._vital or not _lives(self._vital[name])]
        if missing:
            children = [(_command(child), child) for child in _children(self._process.pid)]
            for name in missing:
                found = next((child for command, child in children if name in command), None)
                if found is not None:
                    self._vital[name] = found
                elif name in self._vital:
                    return False
        return True

    def _end_services(self) -> None:
        """Kill what is left of Dagster's own processes; runs and steps go on, and are found by the new ones."""
        found = _of_sessions(_read(self.record).get("sessions", []), self.environment["DAGSTER_HOME"])
        _kill(process for process in found if any(name in _command(process) for name in SERVICES))
        if self._process is not None:
            self._process.wait()

    def _stop(self) -> None:
        """End Dagster politely, then kill what is left, including runs and steps, which the next start continues."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        end_leftovers(self.record, self.environment["DAGSTER_HOME"])
        if self._process is not None:
            self._process.wait()


def end_leftovers(record: Path, home: str) -> None:
    """Kill every process of the recorded sessions, and forget them."""
    sessions = _read(record).get("sessions", [])
    while found := _of_sessions(sessions, home):
        _kill(found)
    record.unlink(missing_ok=True)


def ends_with_parent() -> None:
    """Called in a new child: on Linux, makes it end politely when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_cleanly_when_told(state: Path) -> None:
    """INT, TERM and HUP (a closed terminal) end this process as Ctrl-C does, once: what it started is stopped first."""
    told: list[int] = []

    def end(number: int, *_: object) -> None:
        told.append(number)
        if len(told) > 1:  # it is ending already: a second signal must not interrupt that
            return
        if number == signal.SIGHUP:  # nobody reads its output any more, and writing would fail
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        is_ending(state)
        raise KeyboardInterrupt

    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, end)


def _of_sessions(sessions: Iterable[int], home: str) -> list[psutil.Process]:
    """Living processes of these sessions with this `DAGSTER_HOME`, checked because a reboot reuses the numbers."""
    wanted, found = set(sessions), []
    for process in psutil.process_iter() if wanted else ():
        try:
            if os.getsid(process.pid) in wanted and _lives(process) and process.environ().get("DAGSTER_HOME") == home:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def _kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes, and wait until none is alive. Their parent may be gone, so that they stay zombies, which count as ended."""
    killed = list(processes)
    for process in killed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + 5
    while any(_lives(process) for process in killed) and time.monotonic() < deadline:
        time.sleep(0.02)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
