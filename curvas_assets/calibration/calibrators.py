"""Calibrators: what was fitted, as a small record, and the tables by which it changes stored codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from curvas_assets.calibration.isotonic import UNCHANGED, Curve
from curvas_assets.errors import CorruptArtefactError


@dataclass(frozen=True)
class Temperature:
    """Divides all logits by one number; softmax(ln p / T).

    Args:
        temperature: T, above 0.
    """

    temperature: float

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"method": "temperature", "temperature": self.temperature}


@dataclass(frozen=True)
class Isotonic:
    """Maps each organ's probability by a curve. The background is what the organs leave; if they sum to more than 1, they are
    divided by their sum, and the background is 0.

    Args:
        curves: organ → its curve.
    """

    curves: Mapping[str, Curve]

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        curves = {
            organ: {"probability": list(curve.probability), "response": list(curve.response)}
            for organ, curve in self.curves.items()
        }
        return {"method": "isotonic", "curves": curves}

    def of(self, organ: str) -> Curve:
        """The curve of an organ; one that changes nothing, if none was fitted."""
        return self.curves.get(organ, UNCHANGED)


Calibrator = Temperature | Isotonic


def calibrator_of(record: Mapping[str, Any], subject: str) -> Calibrator:
    """A calibrator from its record.

    Args:
        record: as `Calibrator.record` gave it.
        subject: whose it is, for messages.

    Raises:
        CorruptArtefactError: it is no such record.
    """
    try:
        if record["method"] == "temperature":
            temperature = float(record["temperature"])
            if not (np.isfinite(temperature) and temperature > 0):
                raise ValueError(f"a temperature of {temperature}")
            return Temperature(temperature)
        if record["method"] != "isotonic":
            raise ValueError(f"a method {record['method']!r}")
        return Isotonic({organ: _curve(one["probability"], one["response"]) for organ, one in record["curves"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"it cannot be read ({type(error).__name__}: {error})"
        raise CorruptArtefactError("reading a calibrator", subject, found, "Materialise calibrators again.") from error


def _curve(probability: Sequence[float], response: Sequence[float]) -> Curve:
    p, y = (np.asarray(one, np.float64) for one in (probability, response))
    if p.size == 0 or p.shape != y.shape or not _rises(p, strictly=True) or not _rises(y):
        raise ValueError(f"a curve of {p.size} and {y.size} knots that does not rise within 0 … 1")
    return Curve(tuple(p.tolist()), tuple(y.tolist()))


def _rises(values: npt.NDArray[np.float64], *, strictly: bool = False) -> bool:
    steps = np.diff(values)
    inside = bool(np.isfinite(values).all()) and values[0] >= 0 and values[-1] <= 1
    return inside and bool((steps > 0).all() if strictly else (steps >= 0).all())
