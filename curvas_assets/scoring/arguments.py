"""Converts what people pass to scoring to one form, or refuses it in our own words. Nothing is scored here.

Arrays come as NumPy, torch, nested lists or anything array-like; numbers as Python's, NumPy's or a tensor of one.
"""

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, get_args

import numpy as np

from curvas_assets.errors import ScoringError
from curvas_assets.inputs import as_spacing, to_array
from curvas_assets.probabilities import as_members
from curvas_assets.scoring.references import Reference
from curvas_assets.scoring.registry import PAIR

MOST_ANNOTATORS = 63
MOST_BINS = 10_000
"""Largest number of bins: more would hold less than a voxel each, and memory grows with their number."""
PATIENT = "the patient"
WHOLE = ("all", "mean")
"""What tables of scores call several annotators together."""


def checked_annotations(annotations: Any) -> Any:
    """Label maps uint8 (R, Z, Y, X), sliceable.

    Args:
        annotations: label maps of whole numbers 0 … 255 (R, Z, Y, X): an array, a tensor, a list of arrays (Z, Y, X), or
            anything sliceable that has them as uint8, as packed label maps do, which is handed on as it is.

    Raises:
        ScoringError: another number of axes or annotators, or values that are no labels.
    """
    array = annotations
    if not (_has_axes(annotations, 4) and getattr(annotations, "dtype", None) == np.uint8):
        array = to_array(annotations)
    if array is None or array.ndim != 4 or not 1 <= array.shape[0] <= MOST_ANNOTATORS:
        found = _kind(annotations) if array is None else f"label maps of shape {tuple(array.shape)}"
        hint = " Of one annotator, give annotations[None]." if array is not None and array.ndim == 3 else ""
        raise _refused(
            "annotations",
            found,
            f"Give label maps uint8 (annotators, z, y, x), of one to {MOST_ANNOTATORS} annotators.{hint}",
        )
    if array.dtype == np.uint8:
        return array
    whole = array
    if array.dtype.kind in "fiub":
        with np.errstate(invalid="ignore"):
            whole = array.astype(np.uint8)
    if array.dtype.kind not in "fiub" or not np.array_equal(whole, array):
        raise _refused(
            "annotations",
            f"values of {array.dtype} that are not whole numbers from 0 to 255",
            "Give label maps uint8 (annotators, z, y, x), not probabilities.",
        )
    return whole


def checked_spacing(spacing_mm: Any) -> tuple[float, float, float]:
    """Voxel size along (Z, Y, X), mm: three finite positive numbers; anything else raises a ScoringError."""
    return as_spacing(spacing_mm, attempted="reading the voxel size", subject=PATIENT, error=ScoringError)


def checked_organs(organs: Any) -> dict[str, int]:
    """Organ → label, by label; labels are 1, 2, … without gaps. A ScoringError of anything else."""
    example = "Give a mapping of names to labels 1, 2, …, e.g. {'pancreas': 1, 'kidney': 2}."
    if not isinstance(organs, Mapping):
        raise _refused("the organs", f"organs {organs!r:.80}", example)
    named = {str(name): label for name, label in organs.items() if isinstance(name, str)}
    whole = all(isinstance(label, Integral) and not isinstance(label, bool) for label in named.values())
    if not named or len(named) != len(organs) or not whole:
        raise _refused("the organs", f"organs {dict(organs)!r:.200}", example)
    by_label = {name: int(label) for name, label in sorted(named.items(), key=lambda item: item[1])}
    if list(by_label.values()) != list(range(1, len(by_label) + 1)):
        raise _refused("the organs", f"organs {by_label}", f"Number the organs 1, 2, … . {example}")
    return by_label


def checked_names(annotators: Any, count: int) -> list[str]:
    """Names of the annotators, one for each label map; `1`, `2`, … for None.

    Raises:
        ScoringError: another number of names, a name twice, or one that means something else in a table of scores.
    """
    if annotators is None:
        return [str(number) for number in range(1, count + 1)]
    names = list(annotators) if isinstance(annotators, list | tuple) else [annotators]
    sound = all(isinstance(one, str) and one.strip() and one not in WHOLE and PAIR not in one for one in names)
    if not sound or len(set(names)) != len(names) or len(names) != count:
        raise _refused(
            "the annotators' names",
            f"annotators = {annotators!r:.200} of {count} label maps",
            f"Give {count} different names, none of them {' or '.join(WHOLE)}, and without {PAIR!r}.",
        )
    return names


def checked_scored(names: Any, organs: Mapping[str, int]) -> dict[str, int]:
    """The organs that are scored → label, by label; all for None. A ScoringError of anything but a collection of their names."""
    if names is None:
        return dict(organs)
    named = list(names) if isinstance(names, list | tuple | set | frozenset) else []
    if not named or not all(isinstance(name, str) and name in organs for name in named):
        remedy = f"Give one or more of {', '.join(organs)}, or None for all."
        raise _refused("the organs", f"scored_organs = {names!r:.200}", remedy)
    return {name: label for name, label in organs.items() if name in named}


def checked_region(region: Any) -> tuple[slice, slice, slice] | None:
    """Slices along (Z, Y, X), or None for the whole image.

    Args:
        region: three slices without step, or three pairs (start, stop), as tuple, list or array.

    Raises:
        ScoringError: it is a mask, does not have three spans, has a step, or has limits that are not whole numbers.
    """
    if region is None:
        return None
    remedy = "Give three slices along (z, y, x) without step, as body_region(scan) does, or None for the whole image."
    if hasattr(region, "shape") or hasattr(region, "detach"):
        array = to_array(region)
        if array is None or array.dtype.kind not in "iu" or array.shape != (3, 2):
            found = "a mask" if array is not None and array.ndim == 3 else _kind(region)
            raise _refused("the region", found, remedy)
        region = array.tolist()
    if not isinstance(region, tuple | list) or len(region) != 3:
        raise _refused("the region", f"region {region!r:.120}", remedy)
    spans = []
    for span in region:
        if isinstance(span, tuple | list) and len(span) == 2:
            span = slice(*span)
        if not isinstance(span, slice) or not all(_is_limit(limit) for limit in (span.start, span.stop, span.step)):
            raise _refused("the region", f"region {region!r:.120}", remedy)
        if span.step not in (None, 1):
            raise _refused("the region", f"a step of {span.step}", remedy)
        spans.append(slice(*(None if limit is None else int(limit) for limit in (span.start, span.stop))))
    z, y, x = spans
    return z, y, x


def checked_bins(bins: Any, name: str) -> int:
    """A number of bins, 1 … 10,000; anything else raises a ScoringError that calls it `name`."""
    array = to_array(bins)
    if array is None or array.shape != () or array.dtype.kind not in "iu" or not 1 <= int(array) <= MOST_BINS:
        raise _refused(name, f"{name} = {bins!r:.80}", f"Give a whole number from 1 to {MOST_BINS}.")
    return int(array)


def checked_length(value: Any, name: str, unit: str = "mm") -> float:
    """A finite number, 0 or above; anything else raises a ScoringError that calls it `name`."""
    array = to_array(value)
    number = math.nan if array is None or array.shape != () or array.dtype.kind not in "fiu" else float(array)
    if not (math.isfinite(number) and number >= 0):
        raise _refused(name, f"{name} = {value!r:.80}", f"Give a finite number of {unit}, 0 or above.")
    return number


def checked_threshold(value: Any) -> float | None:
    """Nats above which an uncertainty counts as high: finite and 0 or above, or None; else a ScoringError is raised."""
    return None if value is None else checked_length(value, "entropy_threshold", "nats")


def checked_reference(value: Any) -> Reference:
    """The name of a reference; anything else raises a ScoringError."""
    names: tuple[Reference, ...] = get_args(Reference)
    if not isinstance(value, str) or value not in names:
        raise _refused("the reference", f"reference = {value!r:.80}", f"Give one of {', '.join(names)}.")
    return names[names.index(value)]


def checked_vessels(tumour: Any, vessels: Any, organs: Mapping[str, int]) -> tuple[str, tuple[str, ...]]:
    """The tumour and the vessels, all of them organs: both or neither; anything else raises a ScoringError."""
    named = tuple(vessels) if isinstance(vessels, list | tuple) else (vessels,)
    if isinstance(tumour, str) and not tumour and not named:
        return "", ()
    every = (tumour, *named)
    if not (named and all(isinstance(one, str) and one in organs for one in every) and len(set(every)) == len(every)):
        raise _refused(
            "the vessels",
            f"tumour = {tumour!r:.80}, vessels = {vessels!r:.200}",
            f"Give one tumour and one or more other organs as its vessels, each of {', '.join(organs)}; or neither.",
        )
    return tumour, named


def checked_members(members: Any) -> list[Any]:
    """The softmax of each member of an ensemble, not yet checked; no members for None.

    Args:
        members: a sequence of softmaxes (C, Z, Y, X), or an array of five axes (M, C, Z, Y, X).

    Raises:
        ScoringError: one softmax, a mapping, or anything else.
    """
    if members is None:
        return []
    return as_members(members, attempted="scoring an ensemble", subject="the members", error=ScoringError)


def _is_limit(limit: Any) -> bool:
    return limit is None or (isinstance(limit, Integral) and not isinstance(limit, bool))


def _has_axes(array: Any, axes: int) -> bool:
    return getattr(array, "ndim", None) == axes and hasattr(array, "__getitem__")


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")


def _refused(what: str, found: str, remedy: str) -> ScoringError:
    return ScoringError(f"reading {what}", PATIENT, found, remedy)
