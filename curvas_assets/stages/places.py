"""Which artefact an object of the bucket belongs to: the places of the table, read backwards."""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from curvas_assets.errors import StudyError
from curvas_assets.stages.table import ASSETS, Asset, Axis
from curvas_assets.storage.layout import Cell, Layout
from curvas_assets.study import EnsembleId, ModelId

PATIENT, PREDICTOR, OTHER = "\0patient\0", "\0predictor\0", "\0other\0"
"""Placeholders for the sought parts of an artefact's key; no real key contains them."""
GRIDS: dict[Axis, Callable[[str], object]] = {
    "patient_by_model": lambda name: _model(name, variant=False),
    "patient_by_variant": lambda name: _model(name, variant=True),
    "patient_by_ensemble": EnsembleId.parse,
}
"""Axis of a grid → what reads the names of its predictors, and refuses others."""


def _model(name: str, *, variant: bool) -> ModelId:
    """A model, or a variant of one; a StudyError if it is the other, or neither."""
    found = ModelId.parse(name)
    if bool(found.variant) != variant:
        raise StudyError(
            "reading a key", name, f"it is {'no' if variant else 'a'} variant of a model", "Ask the other."
        )
    return found


def partition_of(layout: Layout, key: str) -> tuple[Asset, str] | None:
    """Asset and partition of an object, by where it stands; None if it belongs to no partition of an asset."""
    for row, pattern in _of_partitions(layout):
        found = pattern.fullmatch(key)
        if found is None:
            continue
        if row.axis not in GRIDS:
            return row, found["other"]
        try:
            GRIDS[row.axis](found["predictor"])
        except StudyError:
            continue
        return row, str(Cell(found["predictor"], found["patient"]))
    return None


def root_of(layout: Layout, key: str) -> str | None:
    """The key of the multi-object artefact that an object belongs to; None if there is no such artefact."""
    found = next((found for pattern in _of_roots(layout) if (found := pattern.fullmatch(key))), None)
    return found["root"] if found else None


@lru_cache(maxsize=4)
def _of_partitions(layout: Layout) -> tuple[tuple[Asset, re.Pattern[str]], ...]:
    """A pattern for each prefix, or object, that a partition of an asset owns."""
    return tuple(
        (row, re.compile(_pattern(place) + ("" if row.kind == "record" else "/.+"), re.DOTALL))
        for row in ASSETS
        if row.axis is not None
        for place in row.owned(layout, _sought(row))
    )


@lru_cache(maxsize=4)
def _of_roots(layout: Layout) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(f"(?P<root>{_pattern(place)})/.+", re.DOTALL) for place in dict.fromkeys(_roots(layout)))


def _roots(layout: Layout) -> Iterator[str]:
    for row in ASSETS:
        if row.kind in ("folder", "softmax"):
            yield row.place(layout, _sought(row))
            yield from row.unfinished(layout, _sought(row))
    yield layout.kept_report(OTHER)  # these two belong to no asset
    yield layout.bundle()


def _sought(row: Asset) -> str:
    return str(Cell(PREDICTOR, PATIENT)) if row.axis in GRIDS else OTHER


def _pattern(place: str) -> str:
    """A key whose sought parts are any name."""
    pattern = re.escape(place)
    for sought in (PATIENT, PREDICTOR, OTHER):
        name = sought.strip("\0")
        pattern = pattern.replace(re.escape(sought), f"(?P<{name}>[^/]+)")
    return pattern
