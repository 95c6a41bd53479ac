"""Estimate the season of recorded demand: shared by all items, with what is each one's own."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import kl_div

from hpo_torchrl.core.checks import check_int

Array = NDArray[np.float64]

# A pair of sine and cosine is estimated from so many periods with demand at least.
_PERIODS = 10
# Where there is no demand for long a factor would be 0, and its logarithm infinite.
_RIDGE, _TINY = 0.01, 1e-9


def fit_season(demand: Array, length: int, first: int = 0) -> Array:
    r"""Estimate multiplicative factors of the places in a season.

    Their logarithm is a sum of waves. A Poisson regression of the items' mean relative demand,
    weighted by precision, gives the waves that they share; the Bayesian information criterion, with
    the deviance over the dispersion, says how many. Each item then has deviations of its own, one
    Newton step away, shrunk by :math:`\tau^2 / (\tau^2 + \text{se}^2)`, with the variance
    :math:`\tau^2` between items by the method of moments: in a short record an item's factors are
    nearly those of all.

    Args:
        demand: ``(T, n)``, of at least one season; each item has some.
        length: periods s of the season.
        first: place in the season of the first period.

    Returns:
        Factors ``(s, n)`` of mean 1.

    Raises:
        TypeError: the length is not a whole number.
        ValueError: it is below 2, or the record is shorter than a season.

    Examples:
        >>> week = np.array([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5])
        >>> fit_season(np.tile(100 * week, 60)[:, None], 7).flatten().round(2).tolist()
        [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5]
    """
    check_int("season", length, minimum=2)
    number = len(demand)
    if number < length:
        raise ValueError(
            f"A season of {length} periods cannot be fitted to {number} periods of training; give "
            "a longer record, a shorter season, or none (env.season=0)."
        )
    relative, place = demand / demand.mean(axis=0), (first + np.arange(number)) % length
    weight = 1 / np.maximum(relative.var(axis=0), _TINY)
    pooled = relative @ weight / weight.sum()
    most = max(1, min(length // 2, (pooled > 0).sum() // _PERIODS))
    fits = [_regression(_waves(length, count)[place], pooled) for count in range(most + 1)]
    fitted = [np.exp(_with_one(_waves(length, k)[place]) @ row) for k, row in enumerate(fits)]
    left = max(number - fits[-1].size, 1)
    dispersion = max(((pooled - fitted[-1]) ** 2 / fitted[-1]).sum() / left, _TINY)
    criteria = [
        2 * kl_div(pooled, own).sum() / dispersion + math.log(number) * row.size
        for own, row in zip(fitted, fits, strict=True)
    ]
    best = int(np.argmin(criteria))
    log_factors = np.tile((_waves(length, best) @ fits[best][1:])[:, None], demand.shape[1])
    if demand.shape[1] > 1:
        waves = _waves(length, max(best, 1))
        log_factors += waves @ _deviations(demand, log_factors[place, 0], waves[place]).T
    factors = np.exp(log_factors)
    return factors / factors.mean(axis=0)


def _waves(length: int, count: int) -> Array:
    """Return the cosines and sines of the first waves of a season, ``(s, about 2 count)``."""
    angle = 2 * math.pi / length * np.outer(np.arange(length), np.arange(1, count + 1))
    waves = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    return waves[:, :-1] if 2 * count == length else waves  # the sine of the last is 0 everywhere


def _with_one(waves: Array) -> Array:
    return np.column_stack([np.ones(len(waves)), waves])


def _regression(waves: Array, demand: Array) -> Array:
    """Return the intercept and the coefficients of a Poisson regression."""
    design = _with_one(waves)

    def loss(row: Array) -> tuple[float, Array]:
        mean, small = np.exp(design @ row), _RIDGE * row
        value = mean.sum() - demand @ (design @ row) + small @ row / 2
        return float(value), design.T @ (mean - demand) + small

    start = np.zeros(design.shape[1])
    start[0] = math.log(demand.mean())
    return minimize(loss, start, jac=True, method="BFGS").x


def _deviations(demand: Array, log_factors: Array, waves: Array) -> Array:
    """Return the coefficients by which items deviate from a common season, shrunk, ``(n, k)``."""
    level, design = np.exp(log_factors), _with_one(waves)
    mean = np.outer(level, demand.sum(axis=0) / level.sum())
    covariance = np.linalg.inv(np.einsum("tj,ti,tk->ijk", design, mean, design))
    step = np.einsum("ijk,tk,ti->ij", covariance, design, demand - mean)[:, 1:]
    left = max(len(demand) - design.shape[1], 1)
    dispersion = np.maximum(((demand - mean) ** 2 / mean).sum(axis=0) / left, _TINY)
    squared_error = dispersion[:, None] * np.diagonal(covariance, axis1=1, axis2=2)[:, 1:]
    excess = (step**2 / squared_error).sum() - step.size
    between = max(0.0, excess / (1 / squared_error).sum())
    return step * between / (between + squared_error)
