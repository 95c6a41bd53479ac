"""A model of demand fitted to a record, item by item, and a check whether it resembles it."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.optimize import minimize_scalar

from hpo_torchrl.problems.inventory.demand import Demand
from hpo_torchrl.problems.inventory.mixed import Mixed
from hpo_torchrl.problems.inventory.season_fit import Array, fit_season

# Dispersions that are looked at, as logarithms; a probability that is not quite 0.
_RANGE, _TINY = (math.log(1e-4), math.log(1e2)), 1e-9
# Largest autoregression, and its part of the largest with a finite variance.
_MOST, _SAFE = 0.95, 0.95
# A common variance counts from so many standard errors on.
_ERRORS = 2.0
# Records that are simulated for the check, numbers in all, and the share on each side that is rare.
_RECORDS, _FEWEST, _NUMBERS, _RARE = 200, 40, 4_000_000, 0.005
_QUANTILE = 0.95


class ItemModel(NamedTuple):
    """The model of an item's demand in a period of the level 1.

    ``kind`` is the name of a distribution and ``arguments`` are its parameters; ``dispersion`` is
    that of :class:`Simulated` (for an intermittent kind, of its sizes); ``bic`` has the Bayesian
    information criterion of each kind that was tried.
    """

    kind: str
    arguments: dict[str, Any]
    dispersion: float
    autoregression: float
    bic: dict[str, float]

    @property
    def variation(self) -> float:
        """Coefficient of variation of a period, given its level."""
        mean = self.arguments["mean"]
        if self.kind == "intermittent":
            p, size = self.arguments["probability"], self.arguments["variation"]
            return math.sqrt((1 + size**2) / p - 1)
        counted = self.kind in ("poisson", "negative_binomial")
        return math.sqrt(counted / mean + self.dispersion)


@dataclass(frozen=True, eq=False)
class DemandFit:
    """Models of the demand of n items.

    Attributes:
        observed: the demand that they are fitted to, ``(T, n)``.
        models: one for each item.
        factors: of the season, ``(s, n)``; ``None`` without one.
        first: place in the season of the first period observed.
        common: variance of the factor that all items have in common.
    """

    observed: Array
    models: tuple[ItemModel, ...]
    factors: Array | None
    first: int
    common: float

    def demand(self, history: int = 0) -> Mixed:
        """Return the demand that the models describe; see :class:`Mixed`."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for item, model in enumerate(self.models):
            groups[model.kind, model.arguments.get("whole")].append(item)
        parts = []
        for (kind, whole), items in groups.items():
            rows = [self.models[item].arguments for item in items]
            given = {name: [row[name] for row in rows] for name in rows[0] if name != "whole"}
            made: Any = Demand.KINDS[kind]
            parts.append((items, made(**given, **({} if whole is None else {"whole": whole}))))
        found = [model.autoregression for model in self.models]
        return Mixed(
            parts,
            season=self.factors,
            autoregression=found if any(found) else None,
            common=self.common,
            history=history,
        )

    @cached_property
    def table(self) -> pd.DataFrame:
        """What was fitted, a row for each item, and how it compares with the record.

        ``model``; ``mean``, ``variation`` (of a period, given its level), ``autoregression``;
        ``low`` and ``high``, the least and largest factor of the season; ``zeros`` and
        ``quantile``, the share of periods without demand and the 95 % quantile in the record, and
        ``zeros_model`` and ``quantile_model``, their mean in simulated records of its length;
        ``odd``, which of the two lies beyond 99 % of the simulated ones, in words.
        """
        rows = pd.DataFrame(
            {
                "model": [model.kind for model in self.models],
                "mean": [model.arguments["mean"] for model in self.models],
                "variation": [model.variation for model in self.models],
                "autoregression": [model.autoregression for model in self.models],
                "low": 1.0 if self.factors is None else self.factors.min(axis=0),
                "high": 1.0 if self.factors is None else self.factors.max(axis=0),
            }
        )
        simulated, odd = self._simulated(), [list[str]() for _ in self.models]
        measures: dict[str, Callable[..., Array]] = {
            "zeros": lambda demand: (demand == 0).mean(axis=-2),
            "quantile": lambda demand: np.quantile(demand, _QUANTILE, axis=-2),
        }
        for name, measure in measures.items():
            own, many = measure(self.observed), measure(simulated)
            rows[name], rows[f"{name}_model"] = own, many.mean(axis=0)
            low, high = np.quantile(many, [_RARE, 1 - _RARE], axis=0)
            for item in np.flatnonzero((own < low) | (own > high)):
                odd[item].append(f"{name} {own[item]:.3g}, not {low[item]:.3g} to {high[item]:.3g}")
        rows["odd"] = ["; ".join(words) for words in odd]
        return rows

    def _simulated(self) -> Array:
        """Return records of the length of the one observed, ``(many, T, n)``."""
        place: dict[str, Any] = {"dtype": torch.float64, "device": None}
        (periods, n), rng = self.observed.shape, torch.Generator().manual_seed(0)
        many = max(_FEWEST, min(_RECORDS, _NUMBERS // self.observed.size))
        demand = self.demand(history=1).bind(n, None, many, **place)
        usual = demand.mean.expand(many, n)
        if demand.factors is not None:
            usual = usual * demand.factors[(self.first - 1) % len(demand.factors)]
        period = torch.full((many, n), float(self.first), dtype=torch.float64)
        state = {"period": period, "recent": usual.unsqueeze(-1)}
        return demand.simulate(periods, state, (many,), rng).numpy()


def fit_demand(demand: Any, season: int | None = None, first: int = 0) -> DemandFit:
    """Fit a model to the demand of each item.

    Whole numbers are Poisson, negative binomial or, where some are 0, intermittent; others gamma or
    normal, or with zeros intermittent. The Bayesian information criterion chooses. The season is
    that of :func:`~hpo_torchrl.problems.inventory.season_fit.fit_season`, the mean the quotient of
    the sums of demand and factors, the dispersion that of the largest likelihood. Autoregression is
    the first autocorrelation, corrected for its bias, where the criterion is less with it. What
    items have in common is the mean covariance of their relative demand, above two of its standard
    errors.

    Source: F. H. C. Marriott and J. A. Pope (1954), "Bias in the estimation of autocorrelations",
    Biometrika 41, 390-402.

    Args:
        demand: ``(T, n)``, 0 and up, periods without a gap.
        season: periods of a season; ``None`` is none.
        first: place in the season of the first period.

    Raises:
        ValueError: an item has no demand, or there are fewer periods than in a season.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> demand = np.stack([rng.poisson(8, 400), rng.gamma(4.0, 5.0, 400)], axis=1)
        >>> [(model.kind, round(model.variation, 1)) for model in fit_demand(demand).models]
        [('poisson', 0.4), ('gamma', 0.5)]
    """
    found = np.ascontiguousarray(demand, dtype=np.float64)
    return _fitted(found.tobytes(), found.shape, season, first)


# Each test of a run asks for the same one.
@functools.lru_cache(maxsize=4)
def _fitted(data: bytes, shape: tuple[int, int], season: int | None, first: int) -> DemandFit:
    demand = np.frombuffer(data).reshape(shape)
    if silent := np.flatnonzero(demand.sum(axis=0) == 0).tolist():
        raise ValueError(
            f"No model can be fitted to the items at places {silent}, which have no demand in the "
            "training part; leave them out."
        )
    factors = None if season is None else fit_season(demand, season, first)
    level = np.ones(shape)
    if factors is not None:
        level = factors[(first + np.arange(len(demand))) % len(factors)]
    mean = demand.sum(axis=0) / level.sum(axis=0)
    relative = demand / (mean * level)
    common = _common_variance(relative)
    models = [_item_model(*rows, common) for rows in zip(demand.T, level.T, strict=True)]
    return DemandFit(demand, tuple(models), factors, first, common)


# -- one item ------------------------------------------------------------------------------------


def _poisson(demand: Array, mean: Array, dispersion: float, chance: Array) -> Array:
    return stats.poisson.logpmf(demand, mean)


def _negative_binomial(demand: Array, mean: Array, dispersion: float, chance: Array) -> Array:
    return stats.nbinom.logpmf(demand, 1 / dispersion, 1 / (1 + dispersion * mean))


def _gamma(demand: Array, mean: Array, dispersion: float, chance: Array) -> Array:
    return stats.gamma.logpdf(demand, 1 / dispersion, scale=dispersion * mean)


def _normal(demand: Array, mean: Array, dispersion: float, chance: Array) -> Array:
    return stats.norm.logpdf(demand, mean, mean * math.sqrt(dispersion))


def _intermittent(
    sizes: Callable[..., Array], least: int
) -> Callable[[Array, Array, float, Array], Array]:
    def log_likelihood(demand: Array, mean: Array, dispersion: float, chance: Array) -> Array:
        there, more = demand > 0, np.maximum(mean / chance - least, _TINY)
        size = sizes(np.where(there, demand - least, 1.0), more, dispersion, chance)
        never = np.log(np.maximum(1 - chance, _TINY))
        return np.where(there, np.log(chance) + size, never)

    return log_likelihood


class _Kind(NamedTuple):
    """The log-likelihood of a kind, by period, its number of parameters, and its sizes."""

    log_likelihood: Callable[[Array, Array, float, Array], Array]
    parameters: int
    whole: bool | None = None


_WHOLE = {"poisson": _Kind(_poisson, 1), "negative_binomial": _Kind(_negative_binomial, 2)}
_WHOLE_ZEROS = {"intermittent": _Kind(_intermittent(_negative_binomial, 1), 3, True)}
_POSITIVE = {"gamma": _Kind(_gamma, 2), "normal": _Kind(_normal, 2)}
_ZEROS = {"intermittent": _Kind(_intermittent(_gamma, 0), 3, False)}


class _Series(NamedTuple):
    """The demand of an item, ``(T,)``, with its mean and probability at the level 1."""

    demand: Array
    mean: float
    probability: float

    def criterion(self, kind: _Kind, level: Array) -> tuple[float, float]:
        """Return the Bayesian information criterion of a kind and the best dispersion."""
        chance = np.clip(self.probability * level, _TINY, 1.0)

        def loss(log_dispersion: float) -> float:
            a = math.exp(log_dispersion)
            return -2 * float(kind.log_likelihood(self.demand, self.mean * level, a, chance).sum())

        penalty = kind.parameters * math.log(len(self.demand))
        if kind.parameters == 1:
            return loss(0.0) + penalty, 0.0
        found = minimize_scalar(loss, bounds=_RANGE, method="bounded", options={"xatol": 1e-3})
        return float(found.fun) + penalty, math.exp(found.x)


def _kinds_of(demand: Array) -> dict[str, _Kind]:
    """Return the kinds that demand may be of."""
    zeros = bool((demand == 0).any())
    if (demand == np.round(demand)).all():
        return _WHOLE | (_WHOLE_ZEROS if zeros else {})
    return _ZEROS if zeros else _POSITIVE


def _item_model(demand: Array, season: Array, common: float) -> ItemModel:
    """Return the model of least criterion for the demand of an item, ``(T,)``."""
    mean, kinds = float(demand.sum() / season.sum()), _kinds_of(demand)
    p = min(1.0, float((demand > 0).sum() / season.sum()))
    series = _Series(demand, mean, p)
    tried = {name: series.criterion(kind, season) for name, kind in kinds.items()}
    name = min(tried, key=lambda known: tried[known][0])
    best, dispersion = tried[name]
    relative = demand / (mean * season)
    phi = _autoregression(relative)
    level = season * (1 + phi * (np.concatenate([[1.0], relative[:-1]]) - 1))
    moving, given_level = series.criterion(kinds[name], level)
    if phi > 0 and moving + math.log(len(demand)) < best:
        dispersion = given_level
        phi = min(phi, _SAFE / math.sqrt((1 + dispersion) * (1 + common)))
    else:
        phi = 0.0
    # What items have in common is a part of each one's dispersion.
    least, kind = math.exp(_RANGE[0]), name
    own = dispersion if name == "intermittent" else (1 + dispersion) / (1 + common) - 1
    if name in _WHOLE and own <= least:
        kind, own = "poisson", 0.0
    own = own if kind == "poisson" else max(own, least)
    arguments = _arguments(kind, mean, p, own, kinds[name].whole)
    bic = {known: row[0] for known, row in tried.items()}
    return ItemModel(kind, arguments, own, phi, bic)


def _arguments(kind: str, mean: float, p: float, a: float, whole: bool | None) -> dict[str, Any]:
    """Return the arguments of a distribution, from its mean and dispersion."""
    if kind == "poisson":
        return {"mean": mean}
    if kind == "negative_binomial":
        return {"mean": mean, "variation": math.sqrt(1 / mean + a)}
    if kind == "gamma":
        return {"mean": mean, "variation": math.sqrt(a)}
    if kind == "normal":
        return {"mean": mean, "deviation": mean * math.sqrt(a)}
    size, least = mean / p, int(bool(whole))
    more = max(size - least, 0.0)
    variation = math.sqrt(more * least + a * more**2) / size
    found = {"mean": mean, "probability": p, "variation": max(variation, 1e-6)}
    return found | {"whole": bool(whole)}


def _autoregression(relative: Array) -> float:
    """Return the first autocorrelation, corrected for its bias, from 0 to below 1."""
    apart, number = relative - 1, len(relative)
    if not apart.any():
        return 0.0
    found = float(apart[1:] @ apart[:-1] / (apart @ apart))
    found += (1 + 4 * found) / number
    return min(max(found, 0.0), _MOST)


def _common_variance(relative: Array) -> float:
    """Return the mean covariance of two items' relative demand, by precision; 0 if it is noise."""
    number, n = relative.shape
    apart = relative - 1
    variance = apart.var(axis=0)
    if n == 1 or (variance == 0).any():
        return 0.0
    weight = 1 / variance
    # Sums over all pairs of different items.
    pairs = weight.sum() ** 2 - (weight**2).sum()
    covered = ((apart @ weight) ** 2).mean() - ((apart * weight) ** 2).mean(axis=0).sum()
    error = math.sqrt(2 / (number * pairs))
    found = float(covered / pairs)
    return found if found > _ERRORS * error else 0.0
