"""Is one family better within the same patient? Win probabilities and their randomisation, and that of differences' signs.

Belongs here: the tests themselves, on arrays, so that their level and power can be simulated. Does not belong here: tables of
scores, corrections over pairs, sizes of effects (`families`).
"""

from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ROUNDING = 1e-7
"""Two values closer than this, relative to the larger, count as equal: they differ only by the rounding of sums and of
stored volumes, whose probabilities are kept on logarithmic levels (each within 1e-4, sums over voxels much closer).
`confidence` is linear in the probabilities, so all families have the same mean; without this rule, rounding would be
tested as an effect."""
ENUMERATED = 20_000
"""Most ways to choose a patient's first family that are listed and drawn from; with more, predictors are shuffled."""
BLOCK = 4_000_000
"""Numbers held at once while drawing: 32 MB."""
EQUAL = 1e-9
"""Sums of the same win probabilities in another order differ by less; a draw this close to what was observed counts as equal."""


class Randomised(NamedTuple):
    """What `randomise` found.

    Attributes:
        wins: (patients with both families,) each patient's win probability.
        win_probability: their mean; NaN without such a patient.
        p: one-sided, that the first family is better.
        p_two_sided: that it differs.
        smallest: the least that `p` could be with these patients and as many predictors: that of the best choice in each.
    """

    wins: Floats
    win_probability: float
    p: float
    p_two_sided: float
    smallest: float


def randomise(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    alternative: Literal["greater", "less"],
    *,
    draws: int = 9999,
    seed: int | np.random.Generator = 20250515,
) -> Randomised:
    """Test the mean win probability of the first family against ½ by randomisation within patients.

    A patient's win probability is the share of (first, second) predictor pairs in which the first is better, ties half.
    Under the hypothesis that it makes no difference within a patient which predictors are called the first family,
    every choice of that many of the patient's predictors is equally likely. A draw makes such a choice for every
    patient and averages the win probabilities over patients, as is done for the observed families. So nothing is
    assumed of the values' shape, of how patients differ, or of how many predictors a patient has; p counts what was
    observed as a draw of its own, (1 + k) / (1 + draws), and therefore rejects at most as often as its level says.

    Args:
        first: (patients, predictors of the first family) values; NaN where there is none. An infinite distance is the worst.
        second: (patients, predictors of the second family).
        alternative: `greater` where higher is better, `less` where lower is.
        draws: how many.
        seed: of the draws; or a generator, from which they continue.

    References:
        Phipson & Smyth 2010, doi:10.2202/1544-6115.1585 (the observed one counts); Acion et al. 2006,
        doi:10.1002/sim.2256 (the probability that the first is better as a size of effect).

    >>> randomise([[3.0], [2.0]], [[1.0, 2.0], [2.0, 9.0]], "greater", draws=99).wins
    array([1.  , 0.25])
    """
    one, two = np.atleast_2d(np.asarray(first, float)), np.atleast_2d(np.asarray(second, float))
    pooled = np.concatenate([one, two], axis=1) * (1 if alternative == "greater" else -1)  # now higher is better
    order = np.argsort(pooled, axis=1, kind="stable")  # NaN last
    ranks = _middle_ranks(np.take_along_axis(pooled, order, axis=1))
    n_first, n_second = (~np.isnan(one)).sum(axis=1), (~np.isnan(two)).sum(axis=1)
    of_first = (order < one.shape[1]) & (np.arange(pooled.shape[1]) < (n_first + n_second)[:, None])
    both = (n_first > 0) & (n_second > 0)
    if not both.any():
        return Randomised(np.empty(0), np.nan, np.nan, np.nan, np.nan)
    ranks, of_first, n_first, n_second = ranks[both], of_first[both], n_first[both], n_second[both]
    wins = _share((ranks * of_first).sum(axis=1), n_first, n_second)
    drawn = np.zeros(draws)
    generator = np.random.default_rng(seed)
    for n_1, n_2 in sorted(set(zip(n_first.tolist(), n_second.tolist(), strict=True))):
        same = (n_first == n_1) & (n_second == n_2)
        _add_draws(drawn, ranks[same, : n_1 + n_2], n_1, generator)
    centre = wins.size / 2
    observed, drawn = float(wins.sum()) - centre, drawn - centre
    above = np.count_nonzero(drawn >= observed - EQUAL)
    beyond = np.count_nonzero(np.abs(drawn) >= abs(observed) - EQUAL)
    smallest = max(1 / (1 + draws), float(np.prod(_best_choices(ranks, n_first, n_first + n_second))))
    return Randomised(wins, float(wins.mean()), (1 + above) / (1 + draws), (1 + beyond) / (1 + draws), smallest)


def flip_signs(
    values: npt.ArrayLike, *, draws: int = 9999, seed: int | np.random.Generator = 20250515
) -> tuple[float, float]:
    """Test that the mean of patients' values is above 0, by turning their signs; p, and the least that it could be.

    Under the hypothesis that a patient's value is as likely on either side of 0, every choice of signs is equally likely.
    All are listed if they are at most `ENUMERATED`; else they are drawn, and the observed one counts. So p is never below
    2⁻ⁿ of n patients: 3 give 0.125, 5 give 0.031. Values of 0 have no sign and tell nothing. On values that are not
    symmetric about their mean it is approximate, as the t test is.

    Args:
        values: (patients,) finite.
        draws: how many.
        seed: of the draws; or a generator, from which they continue.

    >>> flip_signs([1.0, 2.0, 3.0])
    (0.125, 0.125)
    """
    given = np.asarray(values, float)
    signed = given[given != 0]
    tolerance, observed = EQUAL * np.abs(signed).sum(), signed.sum()
    smallest = smallest_of_signs(signed.size, draws)
    if 2**signed.size <= ENUMERATED:
        signs = (np.arange(2**signed.size)[:, None] >> np.arange(signed.size)) & 1
        sums = (1 - 2.0 * signs) @ signed
        return float(np.mean(sums >= observed - tolerance)), smallest
    generator, above = np.random.default_rng(seed), 0
    step = max(1, BLOCK // signed.size)
    for start in range(0, draws, step):
        signs = generator.integers(2, size=(min(step, draws - start), signed.size), dtype=np.int8)
        above += int(np.count_nonzero((1 - 2.0 * signs) @ signed >= observed - tolerance))
    return (1 + above) / (1 + draws), smallest


def smallest_of_signs(patients: int, draws: int) -> float:
    """The least p that `flip_signs` can give to so many patients, none of whose values is 0.

    >>> smallest_of_signs(3, 9999), smallest_of_signs(20, 9999)
    (0.125, 0.0001)
    """
    listed = 0.5**patients
    return listed if 2**patients <= ENUMERATED else max(1 / (1 + draws), listed)


def _best_choices(ranks: Floats, n_first: npt.NDArray[np.int_], predictors: npt.NDArray[np.int_]) -> Floats:
    """Share of each patient's choices that give the first family the best ranks, equal ones included."""
    shares = np.empty(len(ranks))
    for row, (own, chosen, count) in enumerate(zip(ranks, n_first.tolist(), predictors.tolist(), strict=True)):
        least = own[count - chosen]  # ranks ascend along the row, undefined ones come last
        better, equal = np.count_nonzero(own[:count] > least), np.count_nonzero(own[:count] == least)
        shares[row] = comb(equal, chosen - better) / comb(count, chosen)
    return shares


def _middle_ranks(ordered: Floats) -> Floats:
    """Ranks from 1 of values (patients, predictors) that ascend along the rows; equal ones share the middle of theirs."""
    places = np.broadcast_to(np.arange(1, ordered.shape[1] + 1, dtype=float), ordered.shape)
    low, high = ordered[:, :-1], ordered[:, 1:]
    with np.errstate(invalid="ignore"):
        scale = np.maximum(np.abs(low), np.abs(high))
        equal = (low == high) | (high - low <= ROUNDING * np.where(np.isfinite(scale), scale, 0))
    edge = np.ones((ordered.shape[0], 1), bool)
    starts, ends = np.concatenate([edge, ~equal], axis=1), np.concatenate([~equal, edge], axis=1)
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, places, np.inf)[:, ::-1], axis=1)[:, ::-1]
    return (first + last) / 2


def _share(rank_sums: Floats, n_first: npt.ArrayLike, n_second: npt.ArrayLike) -> Floats:
    """Rank sums of the first family as the share of pairs in which it is better."""
    one, two = np.asarray(n_first, float), np.asarray(n_second, float)
    return (rank_sums - one * (one + 1) / 2) / (one * two)


def _add_draws(drawn: Floats, ranks: Floats, n_first: int, generator: np.random.Generator) -> None:
    """Add to each draw the win probabilities of these patients (patients, predictors), all with as many of each family."""
    patients, predictors = ranks.shape
    if comb(predictors, n_first) <= ENUMERATED:
        choices = _choices(predictors, n_first)
        step = max(1, BLOCK // max(drawn.size, len(choices)))
        for start in range(0, patients, step):
            shares = _share(ranks[start : start + step] @ choices.T, n_first, predictors - n_first)
            which = generator.integers(len(choices), size=(len(shares), drawn.size), dtype=np.int32)
            drawn += np.take_along_axis(shares, which, axis=1).sum(axis=0)
        return
    step = max(1, BLOCK // predictors)
    for row in ranks:
        for start in range(0, drawn.size, step):
            part = drawn[start : start + step]
            chosen = generator.random((part.size, predictors)).argpartition(n_first, axis=1)[:, :n_first]
            part += _share(row[chosen].sum(axis=1), n_first, predictors - n_first)


@lru_cache(maxsize=16)
def _choices(predictors: int, n_first: int) -> Floats:
    """Every choice of `n_first` of so many predictors: (choices, predictors), 1 where chosen."""
    chosen = np.array(list(combinations(range(predictors), n_first)))
    table = np.zeros((len(chosen), predictors))
    np.put_along_axis(table, chosen, 1.0, axis=1)
    table.flags.writeable = False
    return table
