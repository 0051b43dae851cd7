"""Claims proved here, with steps that wait for one another; nothing depends on speed.

- While an item is computed, the next is prepared and the last one finished; a third does not begin to be computed before
  the first is finished. A result comes as soon as it is there, though the next item is still being computed.
- Results come in the items' order, and they and the lines that steps say on the caller's thread.
- An error in any step is its item's alone, and holds none of what the step worked on.
- When the caller stops, is interrupted, or a step ends with what is no error, the threads are gone.
"""

import threading
import weakref

import pytest

from curvas_assets.stages.pipeline import Steps, Stopped, overlapped

ITEMS = ["a", "b", "c", "d"]
PATIENCE = 60


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("curvas-")}


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = _threads()
    yield
    assert _threads() - before == set()


def _plain(prepare=lambda item, turn: item, compute=lambda item, got, turn: got, finish=lambda item, got, turn: got):
    return Steps(prepare, compute, finish)


def test_three_items_are_under_way_at_once_and_a_result_does_not_wait_for_the_next_item():
    reached = {name: threading.Event() for name in ("prepare b", "compute b", "finish a", "told a")}

    def wait(name):
        assert reached[name].wait(PATIENCE), name

    def prepare(item, turn):
        if item == "b":
            reached["prepare b"].set()
        return item

    def compute(item, got, turn):
        if item == "a":
            wait("prepare b")
        if item == "b":
            reached["compute b"].set()
            wait("finish a")
            wait("told a")
        return got

    def finish(item, got, turn):
        if item == "a":
            wait("compute b")
            reached["finish a"].set()
        return got

    for item, result in overlapped(ITEMS, _plain(prepare, compute, finish)):
        assert result == item
        if item == "a":
            reached["told a"].set()


def test_no_item_is_computed_before_all_but_the_last_are_finished():
    finished, seen = [], {}

    def compute(item, got, turn):
        seen[item] = list(finished)
        return got

    def finish(item, got, turn):
        finished.append(item)

    list(overlapped(ITEMS, _plain(compute=compute, finish=finish)))
    for index, item in enumerate(ITEMS):
        assert ITEMS[: max(index - 1, 0)] == seen[item][: max(index - 1, 0)]


def test_results_and_lines_come_on_the_callers_thread_in_the_items_order():
    said = []

    def prepare(item, turn):
        turn.say(f"preparing {item}")
        return item

    def say(line):
        said.append((line, threading.current_thread()))

    results = list(overlapped(ITEMS, _plain(prepare, finish=lambda item, got, turn: got * 2), say))
    assert results == [(item, item * 2) for item in ITEMS]
    assert said == [(f"preparing {item}", threading.current_thread()) for item in ITEMS]


class _Volume:
    """Something large."""


@pytest.mark.parametrize("broken", ["prepare", "compute", "finish"])
def test_an_error_is_its_items_alone_and_holds_nothing_of_what_the_step_worked_on(broken):
    volumes = []

    def step(name):
        def work(item, *got_and_turn):
            volume = _Volume()
            volumes.append(weakref.ref(volume))
            if (name, item) == (broken, "b"):
                try:
                    raise KeyError(item)
                except KeyError as error:
                    raise ValueError(f"{name} of {item}") from error
            return volume if name != "finish" else item

        return work

    results = dict(overlapped(ITEMS, _plain(*map(step, ("prepare", "compute", "finish")))))
    error = results.pop("b")
    assert results == {item: item for item in ITEMS if item != "b"}
    assert isinstance(error, ValueError)
    assert str(error) == f"{broken} of b"
    assert [one() for one in volumes if one() is not None] == []


@pytest.mark.parametrize("where", ["prepare", "compute", "finish"])
def test_when_the_caller_stops_each_step_is_told_and_its_thread_ends(where):
    told, begun = [], threading.Event()

    def waiting(name):
        def work(item, *got_and_turn):
            if name == where and item == "c":
                begun.set()
                try:
                    got_and_turn[-1].until_finished(len(ITEMS))  # never
                except Stopped:
                    told.append(name)
                    raise
            return item

        return work

    results = overlapped(ITEMS, _plain(*map(waiting, ("prepare", "compute", "finish"))))
    assert next(results) == ("a", "a")
    assert next(results) == ("b", "b")
    assert begun.wait(PATIENCE)
    results.close()
    assert told == [where]


def test_an_interrupt_of_the_caller_ends_all_threads():
    def interrupted(line):
        raise KeyboardInterrupt

    def prepare(item, turn):
        turn.say(item)
        return item

    with pytest.raises(KeyboardInterrupt):
        list(overlapped(ITEMS, _plain(prepare), interrupted))


def test_what_is_no_error_of_an_item_ends_everything():
    def compute(item, got, turn):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(overlapped(ITEMS, _plain(compute=compute)))


def test_a_step_may_wait_until_earlier_items_are_through_and_then_it_is_alone():
    finished, seen = [], []

    def alone(name):
        def work(item, *got_and_turn):
            turn = got_and_turn[-1]
            if name == "finish":
                finished.append(item)
            else:
                turn.until_finished(turn.index)
                seen.append((turn.index, list(finished)))
            return item

        return work

    assert len(list(overlapped(ITEMS, _plain(*map(alone, ("prepare", "compute", "finish")))))) == len(ITEMS)
    assert sorted(seen) == [(i, ITEMS[:i]) for i in range(len(ITEMS)) for _ in ("prepare", "compute")]
    assert list(overlapped([], _plain())) == []
