"""Statistics of a handful of training runs, with intervals that say how little a handful tells.

The measures are those of Agarwal, Schwarzer, Castro, Courville & Bellemare (2021), *Deep
reinforcement learning at the edge of the statistical precipice*, NeurIPS, and of their package
rliable: the interquartile mean and the probability of improvement, with percentile intervals of a
stratified bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
_SEED = 20210830
Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number and its bootstrap interval.

    Attributes:
        value: the estimate from all runs; NaN if there are none.
        low: lower end of the interval; ``None`` where a single run allows none.
        high: upper end of the interval, or ``None``.
    """

    value: Any
    low: Any = None
    high: Any = None


def estimate_iqm(*strata: ArrayLike, level: float = LEVEL, seed: int = _SEED) -> Estimate:
    """Estimate the interquartile mean over one or several problems, with a bootstrap interval.

    From the sorted scores ``x_(1) <= ... <= x_(N)`` the lowest and the highest ``k = floor(N / 4)``
    are left out: ``IQM = sum_{i = k + 1}^{N - k} x_(i) / (N - 2 k)``. Up to three scores it is the
    mean. Between mean and median, it is robust to a run that failed and yet uses half of the data
    (Agarwal et al. 2021, section 4.3). The bootstrap is stratified: runs are drawn anew, with
    replacement, within each problem, and the scores of all problems are then pooled (section 4.1).

    Args:
        strata: the scores of each problem, shape ``(*points, runs)``; the numbers of runs may
            differ. Points of a curve are estimated one by one, from the same resampled runs.
        level: probability that the interval is meant to cover. Percentile intervals are too narrow
            with few runs: of normal scores, 95 % intervals cover the truth in 50 % of all cases
            with two runs, 76 % with three, 91 % with five and 94 % with ten.
        seed: seed of the bootstrap.

    Returns:
        The estimate, arrays of shape ``points`` if there are any; without an interval where a
        problem has a single run.

    Raises:
        ValueError: there is no problem, a problem has no score, or a score is NaN.

    Examples:
        >>> from hpo_torchrl.reporting.statistics import estimate_iqm
        >>> estimate = estimate_iqm([1.0, 2.0, 3.0, 4.0, 100.0])
        >>> estimate.value, estimate.low < 3.0 < estimate.high
        (3.0, True)
        >>> estimate_iqm([1.0])
        Estimate(value=1.0, low=None, high=None)
    """
    if not strata:
        raise ValueError("strata must hold the scores of at least one problem, got none.")

    def pooled(*data: Array) -> Array:
        values = np.sort(np.concatenate(data, axis=-1), axis=-1)
        number = values.shape[-1]
        return values[..., number // 4 : number - number // 4].mean(-1)

    return _estimate(pooled, [_sample("strata", scores) for scores in strata], level, seed)


def estimate_improvement(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    *,
    level: float = LEVEL,
    seed: int = _SEED,
) -> Estimate:
    """Estimate the probability that a run of the first algorithm costs less than one of the second.

    On each problem ``P = (#{x < y} + #{x = y} / 2) / (N_x N_y)`` over all pairs of runs, the
    Mann-Whitney statistic; then the mean over problems (Agarwal et al. 2021, section 4.3, with the
    sign turned: here lower is better).

    Args:
        first: costs of the first algorithm on each problem, each of shape ``(runs,)``.
        second: costs of the second algorithm on the same problems.
        level: as for :func:`estimate_iqm`.
        seed: seed of the bootstrap, which draws the runs of each algorithm and problem anew. Where
            all runs of one beat all of the other it can only return [1, 1], which is no certainty.

    Returns:
        The estimate; without an interval where an algorithm has a single run on a problem.

    Raises:
        ValueError: the numbers of problems differ or are zero, a problem has no cost, or one is
            NaN.

    Examples:
        >>> from hpo_torchrl.reporting.statistics import estimate_improvement
        >>> estimate_improvement([[1.0, 2.0, 4.0]], [[3.0, 4.0]]).value
        0.75
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(
            "first and second must hold costs on the same problems, at least one, got "
            f"{len(first)} and {len(second)} problems."
        )

    def improvement(*data: Array) -> Array:
        pairs = zip(data[: len(first)], data[len(first) :], strict=True)
        signs = [np.sign(y[..., None, :] - x[..., :, None]).mean((-2, -1)) for x, y in pairs]
        return 0.5 + 0.5 * np.mean(signs, axis=0)

    samples = [_sample("first", costs) for costs in first]
    return _estimate(improvement, samples + [_sample("second", c) for c in second], level, seed)


def estimate_median_ratio(
    numerator: ArrayLike, denominator: ArrayLike, *, level: float = LEVEL, seed: int = _SEED
) -> Estimate:
    """Estimate how many times as long one algorithm takes as another: a ratio of medians.

    Args:
        numerator: times of one algorithm, shape ``(runs,)``, positive; infinity for a run that
            never arrives.
        denominator: times of the other.
        level: as for :func:`estimate_iqm`.
        seed: seed of the bootstrap, which draws the runs of both anew. Resamples in which neither
            median arrives tell nothing: they widen the interval at both ends.

    Returns:
        ``median(numerator) / median(denominator)``, NaN if both are infinite; without an interval
        where an algorithm has a single run.

    Raises:
        ValueError: an algorithm has no time, or one is NaN or not positive.

    Examples:
        >>> from hpo_torchrl.reporting.statistics import estimate_median_ratio
        >>> estimate_median_ratio([30.0, 60.0, float("inf")], [20.0, 20.0, 20.0])
        Estimate(value=3.0, low=1.5, high=inf)
    """
    samples = [_sample("numerator", numerator), _sample("denominator", denominator)]
    if any((sample <= 0).any() for sample in samples):
        raise ValueError("numerator and denominator must hold positive times.")
    return _estimate(
        lambda x, y: np.median(x, axis=-1) / np.median(y, axis=-1), samples, level, seed
    )


def _sample(name: str, scores: ArrayLike) -> Array:
    """Return scores as an array with at least one number per row."""
    sample = np.atleast_1d(np.asarray(scores, dtype=np.float64))
    if not sample.size or np.isnan(sample).any():
        raise ValueError(
            f"{name} must hold at least one number per problem and no NaN, got {sample.tolist()}; "
            "leave out runs without a result."
        )
    return sample


def _estimate(
    statistic: Callable[..., Array], samples: Sequence[Array], level: float, seed: int
) -> Estimate:
    """Apply a statistic, which reduces the last axis, to samples and to resamples of them."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be a probability between 0 and 1, got {level}.")
    curve = samples[0].ndim > 1
    with np.errstate(invalid="ignore"):  # a ratio of infinite times
        value = statistic(*samples)
        ends: list[Any] = []
        if min(sample.shape[-1] for sample in samples) > 1:
            number, generator = 1000 if curve else 5000, np.random.default_rng(seed)
            runs = [sample.shape[-1] for sample in samples]
            drawn = statistic(
                *(
                    sample[..., generator.integers(size, size=(number, size))]
                    for sample, size in zip(samples, runs, strict=True)
                )
            )
            # Sorted positions instead of interpolation, which infinity would turn into NaN. NaN
            # stands for a ratio of two infinite times: anything from 0 to infinity.
            tail = int(np.floor(0.5 * (1.0 - level) * (number - 1)))
            ends = [
                np.sort(np.where(np.isnan(drawn), least, drawn), axis=-1)[..., place]
                for least, place in ((0.0, tail), (np.inf, -1 - tail))
            ]
    return Estimate(*(end if curve else float(end) for end in (value, *ends)))
