"""What is compared with what: pairs of families or predictors, and the rows of a table that each side has.

Belongs here: which pairs a study compares, and the two sides of one. Does not belong here: the tests (`families`).
"""

from typing import Literal, NamedTuple
from zlib import crc32

import pandas as pd

from curvas_assets.study import Study

Kind = Literal["families", "made from", "configured"]
"""Why a pair is compared: it is one of the study's three questions, one side is made from the other, or the study names it."""


class Pair(NamedTuple):
    """Two sides that are compared; the claim is that the first is better.

    Attributes:
        first: a family (`general`) or a predictor (`isotonic_ensemble_all`).
        second: the same of the other side.
        kind: why they are compared. Corrections of one metric count the pairs of one kind.
    """

    first: str
    second: str
    kind: Kind = "families"

    def __str__(self) -> str:
        return f"{self.first} vs {self.second}"

    @property
    def number(self) -> int:
        """What the pair's draws are seeded with beside the study's seed: of the pair alone, not of its place among others."""
        sides = (self.first, self.second)
        return _NUMBERS[sides] if sides in _NUMBERS else 3 + crc32("|".join(sides).encode())


_FAMILIES = (("general", "annotator"), ("general", "individual"), ("annotator", "individual"))
_NUMBERS = {sides: number for number, sides in enumerate(_FAMILIES)}
PAIRS = tuple(Pair(*sides) for sides in _FAMILIES)
"""The three comparisons of every study, in its order."""


def pairs_of(study: Study) -> tuple[Pair, ...]:
    """The pairs that a study compares: those of `statistics.comparisons`, or the usual ones.

    The usual ones are the three pairs of general, annotator and individual; then each further predictor against what it
    is made from (`Study.made_from`): what is calibrated against the same uncalibrated, flips and snapshots against their
    model. Fused labels are compared at the same number of trainings: each ensemble of fused labels with the annotators'
    ensembles, models of fused labels with individual models. So are the ensembles of folds, with the individual models.
    Where no annotator is learned alone, the ensembles of fused labels are compared with their models.

    >>> from curvas_assets.study import load_study
    >>> [str(pair) for pair in pairs_of(load_study("curvas"))]
    ['general vs annotator', 'general vs individual', 'annotator vs individual']
    """
    if study.statistics.comparisons:
        return tuple(Pair(first, second, "configured") for first, second in study.statistics.comparisons)
    further: list[tuple[str, str]] = []
    for predictor in study.predictors:
        family, source = study.family(predictor), study.made_from(predictor)
        if source is not None:
            further.append((predictor, source))
        elif family == "fused ensemble":
            further.append((predictor, "annotator"))
    further += [(family, "individual") for family in ("fused", "folds")]
    if "individual" not in study.families:  # no annotator is learned alone
        further.append(("fused ensemble", "fused"))
    there = {*study.families, *study.predictors}
    return (*PAIRS, *(Pair(*sides, "made from") for sides in further if there.issuperset(sides)))


def sides_of(reduced: pd.DataFrame, pair: Pair) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """The rows of both sides, and what there is to say about them.

    A name is a family's if the table has rows of that family, else a predictor's. A predictor that is on both sides
    would be compared with itself; it counts on the side that is named more narrowly, the predictor's own.

    Args:
        reduced: with `predictor` and `family`.
        pair: to compare.
    """
    families = set(reduced["family"])
    sides = [
        reduced[reduced["family" if name in families else "predictor"] == name] for name in (pair.first, pair.second)
    ]
    shared = sorted(set(sides[0]["predictor"]) & set(sides[1]["predictor"]))
    if not shared:
        return sides[0], sides[1], ""
    wide = 0 if pair.first in families else 1
    sides[wide] = sides[wide][~sides[wide]["predictor"].isin(shared)]
    return sides[0], sides[1], f"{', '.join(shared)} is on both sides: left out of {(pair.first, pair.second)[wide]}"
