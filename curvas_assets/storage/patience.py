"""Waiting for a store that is away: an outage costs time, not work. What a failure means is not decided here.

One `Patience` is shared by all who use a store in a process, so that an outage is reported once, not by every thread,
and the waiting time counts once, not for each partition of a batch.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

from curvas_assets.errors import StorageError, StoreAwayError

Answer = TypeVar("Answer")

TELL_SECONDS = 20.0
"""Least time between two lines of the log."""
HICCUP_SECONDS = 4.0
"""An outage that is shorter is not worth a line."""
PAUSES = (0.2, 0.5, 1.0, 2.0, 3.0)
"""Waits before a request is sent again, s; the last one is repeated."""
SETTLE_SECONDS = 5.0
"""A store that comes back may answer before it knows its keys, buckets and objects. Requests that it refuses within
this time are repeated."""
NEW_OUTAGE_SECONDS = 60.0
"""After this long without a failure, the next failure begins a new outage."""


class Patience:
    """How long requests wait for a store that gives no answer.

    Args:
        seconds: from the beginning of an outage; 0 waits for nothing.
        tell: given a line every 20 s or so while something waits, and one when the store is back.
    """

    def __init__(self, seconds: float = 0, tell: Callable[[str], None] = lambda _: None):
        self.seconds, self.tell = seconds, tell
        self._lock = threading.Lock()
        self._away_since: tuple[float, datetime] | None = None
        self._last_failure = self._last_told = float("-inf")
        self._told_of_outage = False

    def hold(self, what: str, ask: Callable[[], Answer], stop: threading.Event | None = None) -> Answer:
        """What `ask` returns, asked again while the store is away.

        Args:
            what: what is being done, for the log.
            ask: sends one request; a StoreAwayError says that there was no answer.
            stop: if set meanwhile, nothing is waited for any more.

        Raises:
            StoreAwayError: the store did not come back in time.
        """
        if self.seconds <= 0:
            return ask()
        first: float | None = None
        back: float | None = None
        attempt = 0
        while True:
            begin = time.monotonic()
            try:
                with self._watched(what):
                    answer = ask()
            except StoreAwayError as error:
                first, back = begin if first is None else first, None
                since, away = self._note_failure(begin)
                waited = max(time.monotonic() - first, away)
                pause = PAUSES[min(attempt, len(PAUSES) - 1)]
                if waited + pause > self.seconds or (stop is not None and stop.is_set()):
                    raise StoreAwayError(
                        error.attempted,
                        error.subject,
                        f"{error.found}; waited {waited:.0f} s, since {_clock(since)}",
                        error.remedy,
                        may_retry=True,
                    ) from error
                self._tell_of_outage(what, error, since, away)
            except StorageError:
                if first is None:
                    raise
                back = time.monotonic() if back is None else back
                if time.monotonic() - back >= SETTLE_SECONDS:
                    self._note_answer()
                    raise
                pause = SETTLE_SECONDS / 5
            else:
                self._note_answer()
                return answer
            attempt += 1
            if stop is None:
                time.sleep(pause)
            else:
                stop.wait(pause)

    def _note_failure(self, begin: float) -> tuple[datetime, float]:
        """Since when the store is away, as time of day and in seconds."""
        now = time.monotonic()
        with self._lock:
            if self._away_since is None or begin - self._last_failure > NEW_OUTAGE_SECONDS:
                self._away_since, self._told_of_outage = (begin, datetime.now(UTC)), False
            self._last_failure = now
            return self._away_since[1], now - self._away_since[0]

    def _note_answer(self) -> None:
        if self._away_since is None:
            return
        with self._lock:
            since, self._away_since = self._away_since, None
            told, self._told_of_outage = self._told_of_outage, False
        if since is not None and told:  # pyright: ignore[reportUnnecessaryComparison] - another thread may have been first
            self.tell(f"the store answers again after {time.monotonic() - since[0]:.0f} s; the work goes on")

    def _tell_of_outage(self, what: str, error: StoreAwayError, since: datetime, away: float) -> None:
        if away < HICCUP_SECONDS or not self._is_due():
            return
        self._told_of_outage = True
        self.tell(
            f"waiting for the store since {_clock(since)} ({away:.0f} of at most {self.seconds:.0f} s) to go on {what}: "
            f"{error.found}. {error.remedy}"
        )

    def _is_due(self) -> bool:
        """Whether it is time for another line; if so, this is it."""
        with self._lock:
            now = time.monotonic()
            if now - self._last_told < TELL_SECONDS:
                return False
            self._last_told = now
            return True

    @contextmanager
    def _watched(self, what: str) -> Generator[None]:
        """Also report a request that is neither answered nor refused: a store may accept requests and stay silent."""
        begin, sent = time.monotonic(), datetime.now(UTC)
        ended = threading.Event()

        def tell() -> None:
            if not ended.is_set() and self._is_due():
                self.tell(
                    f"{what}: asked at {_clock(sent)}, no answer for {time.monotonic() - begin:.0f} s; still waiting"
                )
            arm()

        def arm() -> None:
            if ended.is_set():
                return
            timers[:] = [threading.Timer(TELL_SECONDS, tell)]
            timers[0].daemon = True
            timers[0].start()

        timers: list[threading.Timer] = []
        arm()
        try:
            yield
        finally:
            ended.set()
            timers[0].cancel()


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S} UTC"
