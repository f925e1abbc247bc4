"""Means with intervals, paired tests and their adjustment for many comparisons.

Everything works on values by seed. Two values with the same seed come from the same start, data
order and sample noise, so that differences are taken within a seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
MOST_FLIPS = 20
"""Differences whose 2^n sign patterns are still enumerated."""

Values = Mapping[int, float]
"""A metric by seed."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` seeds and its Student t-interval.

    The bounds are None with fewer than two seeds, and where all values are equal: such values
    measure no spread.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def sign(self) -> int | None:
        """-1 or 1 where the interval lies below or above zero, 0 where it covers it."""
        if self.low is None or self.high is None:
            return None
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


@dataclass(frozen=True)
class Paired:
    """Differences within seeds, method minus baseline."""

    seeds: tuple[int, ...]
    alone: Estimate
    """Mean difference; the interval covers with 95 % if this is the only comparison made."""
    joint: Estimate
    """The same mean; with 95 % all joint intervals of one call of `compare` cover at once."""
    p_t: float | None
    """Two-sided paired t-test."""
    p_holm: float | None
    """`p_t` adjusted by Holm over the family."""
    p_flip: float | None
    """Exact two-sided sign-flip test: the share of 2^n sign patterns with as large a mean."""

    @property
    def smallest_p_flip(self) -> float | None:
        """What `p_flip` is at best with this number of seeds."""
        return None if self.p_flip is None else 2.0 ** (1 - len(self.seeds))


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """The mean of finite values and its two-sided t-interval."""
    count = len(values)
    if not count:
        return Estimate(math.nan, None, None, 0)
    mean, error = _mean_and_error(values)
    if not error:
        return Estimate(mean, None, None, count)
    from scipy.special import stdtrit

    half = float(stdtrit(count - 1, (1 + level) / 2)) * error
    return Estimate(mean, mean - half, mean + half, count)


def compare(pairs: Sequence[tuple[Values, Values]]) -> list[Paired]:
    """A family of comparisons, each (method, baseline) on the seeds that both have.

    The joint intervals are Bonferroni's, at 1 - 0.05/m for the m comparisons that can be tested.
    Holm's adjusted p is never above Bonferroni's, so an interval that excludes zero always has
    p_holm < 0.05; the reverse may fail, and then the interval has the last word. (Intervals that
    match Holm's steps exactly exist, but say nothing on the size of a difference once zero is
    excluded: Strassburger and Bretz 2008.)
    """
    common = [tuple(sorted(set(method) & set(other))) for method, other in pairs]
    differences = [
        [method[seed] - other[seed] for seed in seeds]
        for (method, other), seeds in zip(pairs, common, strict=True)
    ]
    tests = [t_test(values) for values in differences]
    adjusted = iter(holm([p for p in tests if p is not None]))
    level = 1 - (1 - LEVEL) / max(1, sum(p is not None for p in tests))
    return [
        Paired(
            seeds=seeds,
            alone=estimate(values),
            joint=estimate(values, level),
            p_t=p,
            p_holm=None if p is None else next(adjusted),
            p_flip=sign_flip(values),
        )
        for seeds, values, p in zip(common, differences, tests, strict=True)
    ]


def t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of mean zero; None with fewer than two values or without any spread."""
    mean, error = _mean_and_error(differences) if differences else (0.0, 0.0)
    if not error:
        return None
    from scipy.special import stdtr

    return 2 * float(stdtr(len(differences) - 1, -abs(mean / error)))


def sign_flip(differences: Sequence[float]) -> float | None:
    """Exact two-sided p over all 2^n signs; None for fewer than 2 or more than 20 values."""
    count = len(differences)
    if not 2 <= count <= MOST_FLIPS:
        return None
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    slack = 1e-9 * float(np.abs(differences).sum())  # equal sums may differ in the last bits
    return float(np.mean(np.abs(sums) >= abs(sum(differences)) - slack))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given (Holm 1979)."""
    count = len(p_values)
    adjusted = [0.0] * count
    running = 0.0
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; 0 stands for no measurable spread."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2 or float(np.ptp(array)) <= 1e-12 * float(np.abs(array).max()):
        return mean, 0.0
    return mean, float(array.std(ddof=1)) / math.sqrt(len(array))
