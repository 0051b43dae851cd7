"""Items that go through three steps, each step in a thread of its own: the next item is prepared and the last one finished
while one is computed.

What the steps do is the caller's business, and so is memory: a step may wait until earlier items have come far enough.
Results come out in the items' order, on the caller's thread. An error is its item's alone.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from curvas_assets.errors import let_go

Prepared = TypeVar("Prepared")
Computed = TypeVar("Computed")
Finished = TypeVar("Finished")


class Stopped(Exception):
    """Nobody waits for the results any more."""


class Turn:
    """How far the other items are, for a step of one item.

    Args:
        index: of the item.
        progress: of all items.
        say: sends a line to the caller's thread.
    """

    def __init__(self, index: int, progress: "_Progress", say: Callable[[str], None]):
        self.index, self._progress, self.say = index, progress, say

    def until_computed(self, count: int) -> None:
        """Wait until the first `count` items have left the second step, or have failed before it."""
        self._progress.wait(lambda progress: progress.computed >= count)

    def until_finished(self, count: int) -> None:
        """Wait until the first `count` items are through."""
        self._progress.wait(lambda progress: progress.finished >= count)

    def go_on(self) -> None:
        """Raise `Stopped` if the work is no longer wanted."""
        self._progress.wait(lambda _: True)


class Steps(NamedTuple, Generic[Prepared, Computed, Finished]):
    """The three steps of an item; each is called in its own thread, for one item after the other.

    Args:
        prepare: (item, turn) → what `compute` takes; runs ahead as far as it does not wait.
        compute: (item, prepared, turn) → what `finish` takes; begins when all items but the last one are through.
        finish: (item, computed, turn) → the result.
    """

    prepare: Callable[[str, Turn], Prepared]
    compute: Callable[[str, Prepared, Turn], Computed]
    finish: Callable[[str, Computed, Turn], Finished]


def overlapped(
    items: Sequence[str], steps: Steps[Any, Any, Finished], say: Callable[[str], None] = lambda line: None
) -> Generator[tuple[str, Finished | Exception]]:
    """The result of each item, or its error, as soon as it and all before it are there.

    When the caller stops early, or is interrupted, each step is told at its next `Turn` call, and the threads have ended
    when this has.

    Args:
        items: in the order of the results.
        steps: of each item.
        say: called on this thread with the lines that steps say.

    Raises:
        BaseException: a step raised what is no Exception.
    """
    progress = _Progress()
    ready: SimpleQueue[Any] = SimpleQueue()
    computed: SimpleQueue[Any] = SimpleQueue()
    out: SimpleQueue[Any] = SimpleQueue()

    def prepare() -> None:
        for index, item in enumerate(items):
            turn = Turn(index, progress, out.put)
            ready.put(_attempt(steps.prepare, item, [], turn))

    def compute() -> None:
        for index, item in enumerate(items):
            turn = Turn(index, progress, out.put)
            turn.until_finished(index - 1)
            computed.put(_next(ready, steps.compute, item, turn))
            progress.advance(computed=1)

    def finish() -> None:
        for index, item in enumerate(items):
            turn = Turn(index, progress, out.put)
            outcome = _next(computed, steps.finish, item, turn)
            progress.advance(finished=1)
            out.put((item, outcome))
            outcome = None

    threads = [
        threading.Thread(target=_until_stopped, args=(work, out, progress), name=f"curvas-{work.__name__}")
        for work in (prepare, compute, finish)
    ]
    for thread in threads:
        thread.start()
    try:
        left = len(items)
        while left:
            found = out.get()
            if isinstance(found, str):
                say(found)
            elif isinstance(found, BaseException):
                raise found
            else:
                left -= 1
                yield found
    finally:
        progress.stop()
        for queue in (ready, computed):
            queue.put(_WAKE)
        for thread in threads:
            thread.join()


class _Progress:
    """How many items are through which step."""

    def __init__(self) -> None:
        self.computed = self.finished = 0
        self._stopped = False
        self._changed = threading.Condition()

    def advance(self, *, computed: int = 0, finished: int = 0) -> None:
        with self._changed:
            self.computed += computed
            self.finished += finished
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wait(self, until: Callable[["_Progress"], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or until(self))
            if self._stopped:
                raise Stopped


_WAKE = object()
"""Ends a thread that waits for the step before it."""


def _until_stopped(work: Callable[[], None], out: "SimpleQueue[Any]", progress: _Progress) -> None:
    try:
        work()
    except Stopped:
        return
    except BaseException as error:
        out.put(error)


def _next(queue: "SimpleQueue[Any]", step: Callable[..., Any], item: str, turn: Turn) -> Any:
    """The step's outcome for what the step before it made; an error passes through."""
    made = [queue.get()]
    turn.go_on()
    return made.pop() if isinstance(made[0], Exception) else _attempt(step, item, made, turn)


def _attempt(step: Callable[..., Any], item: str, made: list[Any], turn: Turn) -> Any:
    """The step's result, or its error, which holds none of what was `made` for the step: no frame keeps a name for it."""
    try:
        return step(item, *(made.pop() for _ in range(len(made))), turn)
    except Stopped:
        raise
    except Exception as error:
        let_go(error)
        return error
