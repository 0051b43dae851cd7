"""The values of label files and the classes that they stand for: any values in the files, 1 … n in everything else.

Files that people give, and label maps that they are given, hold a study's own values. In memory, in nnU-Net's datasets, in
stored probabilities and in scores an organ is its class, a number without gaps. This is the one place where the two meet.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

MOST_VALUE = 65535
"""Largest value of a label file that may stand for an organ."""
UNKNOWN = 255
"""Class of a value that is neither an organ's nor read as background; there are fewer organs."""


class ReadLabels(NamedTuple):
    """What some voxels of a label file hold.

    Args:
        classes: uint8, of the voxels' shape: 0 for the background, `UNKNOWN` for a value that is not known.
        voxels: value → how many voxels have it, ascending, without 0.
    """

    classes: npt.NDArray[np.uint8]
    voxels: dict[int, int]


@dataclass(frozen=True)
class LabelValues:
    """Which values of a label file are which organ.

    Args:
        organs: organ → its values, one or several that are merged; the classes 1, 2, … in this order.
        ignored: further values that are read as background, or `rest`: all that are no organ's.

    >>> values = LabelValues({"pancreas": (1,), "kidney": (2, 7)}, ignored=(9,))
    >>> values.read(np.array([0, 7, 2, 9, 1], np.int16))
    ReadLabels(classes=array([0, 2, 2, 0, 1], dtype=uint8), voxels={1: 1, 2: 1, 7: 1, 9: 1})
    >>> values.written(np.array([0, 1, 2], np.uint8))
    array([0, 1, 2], dtype=uint8)
    """

    organs: Mapping[str, tuple[int, ...]]
    ignored: tuple[int, ...] | Literal["rest"] = ()

    @cached_property
    def is_plain(self) -> bool:
        """Whether the values of organs are their classes."""
        return [*self.organs.values()] == [(c,) for c in range(1, len(self.organs) + 1)]

    def class_of(self, value: int) -> int:
        """The class of one value: 0 if it is read as background, `UNKNOWN` if it is not known."""
        return int(self._classes[value]) if 0 <= value <= MOST_VALUE else self._other

    def unknown(self, values: Iterable[int]) -> list[int]:
        """Those of some values that are neither an organ's nor read as background."""
        return [value for value in values if self.class_of(value) == UNKNOWN]

    def read(self, voxels: npt.NDArray[Any]) -> ReadLabels:
        """The classes of a label file's voxels, and how often each value occurs.

        Args:
            voxels: whole numbers of any size and type, also floats that are whole; of any shape.
        """
        somewhere = voxels != 0  # nearly all is background: only the rest is looked up
        found = voxels[somewhere]
        if not found.size:
            return ReadLabels(np.zeros(voxels.shape, np.uint8), {})
        within = found.min() >= 0 and found.max() <= MOST_VALUE
        if within:
            counts = np.bincount(found.astype(np.intp))
            values = np.flatnonzero(counts)
            times = counts[values]
        else:
            values, times = np.unique(found, return_counts=True)
        counted = {int(value): int(number) for value, number in zip(values, times, strict=True)}
        if self.is_plain and all(0 < value <= len(self.organs) for value in counted):
            return ReadLabels(voxels.astype(np.uint8, copy=False), counted)
        if within:
            own = self._classes[found.astype(np.uint16)]
        else:
            inside = (found >= 0) & (found <= MOST_VALUE)
            own = np.where(inside, self._classes[np.where(inside, found, 0).astype(np.uint16)], np.uint8(self._other))
        classes = np.zeros(voxels.shape, np.uint8)
        classes[somewhere] = own
        return ReadLabels(classes, counted)

    def written(self, classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The values that people's label maps have for classes: of a merged organ the first.

        Args:
            classes: uint8, of any shape, each at most the number of organs.

        Returns:
            `value_type`, of the same shape.
        """
        return classes if self.is_plain else self._values[classes]

    @property
    def value_type(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Of label maps with the study's values: uint8, or uint16 if a value needs it."""
        return self._values.dtype

    @cached_property
    def _values(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The value of each class."""
        values = [0, *(several[0] for several in self.organs.values())]
        return np.array(values, np.uint8 if max(values) <= np.iinfo(np.uint8).max else np.uint16)

    @property
    def _other(self) -> int:
        return 0 if self.ignored == "rest" else UNKNOWN

    @cached_property
    def _classes(self) -> npt.NDArray[np.uint8]:
        """The class of each value 0 … `MOST_VALUE`."""
        table = np.full(MOST_VALUE + 1, self._other, np.uint8)
        table[0] = 0
        if self.ignored != "rest":
            table[list(self.ignored)] = 0
        for label, values in enumerate(self.organs.values(), 1):
            table[list(values)] = label
        return table
