"""Claims proved here.

- `let_go` frees what the frames of an error hold, and those of all its causes and contexts, also in a circle.
"""

import weakref

import pytest

from curvas_assets.errors import let_go


class _Volume:
    """Something large."""


def _raised(how):
    """An error after two others, of which each came through a frame that held a volume."""
    held = []

    def fail(error):
        volume = _Volume()
        held.append(weakref.ref(volume))
        raise error

    def caught(error):
        try:
            fail(error)
        except Exception as found:
            return found

    other = caught(OSError("other")) if how in {"both", "circle"} else None
    try:
        try:
            fail(KeyError("first"))
        except KeyError as first:
            if how == "cause":
                raise ValueError("second") from first
            if how == "context":
                fail(ValueError("second"))
            if how == "context of none":
                raise ValueError("second") from None
            raise ValueError("second") from other
    except ValueError as second:
        if how == "circle":
            second.__cause__.__context__ = second
        return second, held


@pytest.mark.parametrize("how", ["cause", "context", "context of none", "both", "circle"])
def test_nothing_is_held_that_an_error_its_causes_and_its_contexts_came_through(how):
    error, held = _raised(how)
    assert all(volume() is not None for volume in held)
    let_go(error)
    assert [volume() for volume in held] == [None] * len(held)
    assert len(held) == (1 if how in {"cause", "context of none"} else 2)
