"""Versions of artefacts that are several objects: each writing has its own place; one small object names the current
one.

    <key>/<marker>          names the current place; one PUT replaces it, last of all
    <key>/<place>/…         what one writer sent; the place is a digest of the content and a random part

No two writers ever send to the same place. So whatever one of them does, or leaves behind when it is killed, the marker
names a whole version: the last one that was announced. A place that no marker names is removed once nothing was added
to it for `UNTOUCHED`, by the store's own clock. No upload pauses for that long, and a writer that paused for half of it
sends everything again before it announces. Removal happens whenever the artefact is written, and in the job `sweep`.
"""

import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TypeVar

from curvas_assets.errors import MissingArtefactError, StorageError
from curvas_assets.storage.digests import READINGS
from curvas_assets.storage.objects import ObjectInfo, ObjectStore

Named = TypeVar("Named")
Value = TypeVar("Value")

PLACE = re.compile(r"[0-9a-f]{16}(_[0-9a-f]{12})?")
"""Names of places: a digest of the content and a random part, which the first names lacked."""
UNTOUCHED = timedelta(hours=24)
"""How long a version that no marker names is left alone after the last object came to it."""


def publish(
    store: ObjectStore,
    key: str,
    marker: str,
    digest: str,
    send: Callable[[str], Mapping[str, int]],
    mark: Callable[[str], bytes],
    kept: Callable[[], Collection[str]] = tuple,
) -> str:
    """Store one version of an artefact and announce it.

    Args:
        store: where.
        key: of the artefact.
        marker: name of the object that names the current version.
        digest: of the content; begins the name of its place.
        send: stores the objects below `<key>/<place>/`, given the place; returns their names and sizes.
        mark: the marker's content, given the place.
        kept: called after the marker is written; returns older places that the marker names too.

    Returns:
        The place.

    Raises:
        StorageError: what was sent was removed before it could be announced, several times.
    """
    for _ in range(READINGS):
        place = f"{digest}_{secrets.token_hex(6)}"
        sizes = send(place)
        found = places(store, key, marker)
        if _is_whole(store, f"{key}/{place}", found.get(place, ()), sizes):
            break
    else:
        raise StorageError(
            "storing",
            f"{store.name}/{key}",
            f"what was sent stood still for {UNTOUCHED / 2}, or was removed, {READINGS} times before it was announced",
            "Try again; if it goes on, look who removes objects there.",
            may_retry=True,
        )
    store.put(f"{key}/{marker}", mark(place))
    with suppress(StorageError):  # the artefact is stored, even if this key may not delete
        remove_untouched(store, found, {place, *kept()})
    return place


def is_place(name: str) -> bool:
    """Whether a version was written under this name; what people put beside it has others."""
    return PLACE.fullmatch(name) is not None


def places(store: ObjectStore, key: str, marker: str) -> dict[str, list[ObjectInfo]]:
    """What stands in places below an artefact's key."""
    found: dict[str, list[ObjectInfo]] = {}
    for item in store.list(f"{key}/"):
        place = item.key.removeprefix(f"{key}/").partition("/")[0]
        if item.key != f"{key}/{marker}" and is_place(place):
            found.setdefault(place, []).append(item)
    return found


def untouched(
    store: ObjectStore,
    found: Mapping[str, Sequence[ObjectInfo]],
    current: Collection[str],
    least: timedelta | None = None,
) -> list[ObjectInfo]:
    """The objects of those places that no marker names and nobody has added to for so long.

    Args:
        store: whose clock counts.
        found: place → its objects.
        current: the places that stay.
        least: how long; None takes `UNTOUCHED`.
    """
    others = [items for place, items in found.items() if place not in current]
    now = store.clock() if others else None
    return [item for items in others if age(items, now) >= (UNTOUCHED if least is None else least) for item in items]


def remove_untouched(
    store: ObjectStore,
    found: Mapping[str, Sequence[ObjectInfo]],
    current: Collection[str],
    least: timedelta | None = None,
) -> int:
    """Remove what `untouched` names; returns the number of bytes removed."""
    old = untouched(store, found, current, least)
    store.delete([item.key for item in old])
    return sum(item.size for item in old)


def age(items: Sequence[ObjectInfo], now: datetime | None) -> timedelta:
    """How long ago the last of some objects was written; zero if the store does not say."""
    if now is None or any(item.modified is None for item in items):
        return timedelta(0)
    return now - max(item.modified for item in items if item.modified is not None)


def read_one_version(
    named: Callable[[], Named],
    place_of: Callable[[Named], str],
    read: Callable[[Named], Value],
    subject: str,
    gone: Callable[[MissingArtefactError], StorageError],
) -> Value:
    """The result of `read` on the current version; it starts over if a newer version replaced that meanwhile.

    Args:
        named: reads the marker.
        place_of: the place that a marker names.
        read: reads the version that a marker names.
        subject: of the error.
        gone: the error to raise if the marker still names what is not there.

    Raises:
        MissingArtefactError: there is no marker.
        StorageError: it was replaced at every reading.
    """
    failure: MissingArtefactError | None = None
    for _ in range(READINGS):
        marker = named()
        try:
            return read(marker)
        except MissingArtefactError as error:
            if place_of(named()) == place_of(marker):
                raise gone(error) from error
            failure = error
    raise replaced(subject) from failure


def replaced(subject: str) -> StorageError:
    """The error of a reader whose version was replaced, and removed, while it read."""
    return StorageError(
        "reading", subject, "it was replaced by a newer version while it was read", "Read it again.", may_retry=True
    )


def _is_whole(store: ObjectStore, place: str, found: Sequence[ObjectInfo], sizes: Mapping[str, int]) -> bool:
    """Whether all that was sent is stored, and is too new to be removed as abandoned before it is announced."""
    there = {item.key: item.size for item in found}
    for name, size in sizes.items():
        if there.get(f"{place}/{name}") != size:
            info = store.head(f"{place}/{name}")  # a listing may be late
            if info is None or info.size != size:
                return False
    return age(found, store.clock()) < UNTOUCHED / 2 if found else True
