"""Demand drawn from a distribution, around a level that may move."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from hpo_torchrl.core.checks import check_bool, per_item
from hpo_torchrl.envs.differentiable import DifferentiableEnv, State
from hpo_torchrl.problems.inventory.counts import LEFT_OUT, MOST_CELLS, CountTable
from hpo_torchrl.problems.inventory.demand import Demand
from hpo_torchrl.problems.inventory.season import make_season

# What may be left of a start where autoregressive demand begins; and rounding of single precision.
_REMEMBERED, _ROUNDING = 0.01, 1e-5


class Simulated(Demand):
    r"""Demand drawn from a distribution around a level that may move.

    With the season's factors :math:`f`, of mean 1, and the coefficient :math:`\phi`, the demand of
    a period has, given the one before, the mean

    .. math:: \mu f_t \left(1 - \phi + \phi \frac{D_{t-1}}{\mu f_{t-1}}\right),

    a conditional linear autoregression: the mean is :math:`\mu f_t`, and the autocorrelation of
    :math:`D_t / f_t` is :math:`\phi^k` at lag k. What the next period depends on is thus seen. The
    parameters of a distribution are those at level 1. A subclass has :meth:`sample`. Where the
    level does not move and there are probabilities (:meth:`pmf`), a table of them is drawn from
    instead, :class:`~hpo_torchrl.problems.inventory.counts.CountTable`.

    Without a horizon, episodes begin anywhere in the season; with one, at its first place.

    Source: G. K. Grunwald, R. J. Hyndman, L. Tedesco and R. L. Tweedie (2000), "Non-Gaussian
    conditional linear AR(1) models", Australian & New Zealand Journal of Statistics 42(4), 479-495.

    Args:
        mean: mean demand per period, one number or one per item.
        season: ``None``; the factors of the places in the season, which are divided by their mean;
            or ``{"length": 52, "amplitude": 0.4, "peak": 26}``: see
            :class:`~hpo_torchrl.problems.inventory.season.Season`.
        autoregression: :math:`\phi`, from 0 to below 1, one number or one per item; ``None`` is 0.

    Raises:
        ValueError: the coefficient is out of range, or so large that the variance is infinite, once
            bound.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> week = [0.5, 0.5, 1, 1, 1, 1, 2]
        >>> env = InventoryEnv(demand={"name": "poisson", "season": week}, batch_size=1000, seed=0)
        >>> env.sample_noise(7, {"period": torch.zeros(1000, 1)}).mean((0, 2)).round().tolist()
        [5.0, 5.0, 10.0, 10.0, 10.0, 10.0, 20.0]
    """

    factors: Tensor | None = None
    coefficient: Tensor | None = None
    table: CountTable | None = None

    def __init__(
        self,
        mean: float | Sequence[float] = 10.0,
        *,
        season: Any = None,
        autoregression: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(mean)
        self.season = None if season is None else make_season(season)
        self.autoregression = autoregression
        self.moves = not (season is None and autoregression is None)
        self.history = 0 if autoregression is None else 1
        self.keeps_place = season is not None
        self.shown_season = None if self.season is None else self.season.length

    def bind(self, num_items: int, horizon: int | None, batch_size: Any, **place: Any) -> Self:
        """Return a copy for an environment; see :class:`Demand`."""
        bound = super().bind(num_items, horizon, batch_size, **place)
        bound.shape_up(num_items, **place)
        if self.season is not None:
            bound.factors = torch.as_tensor(self.season.by_item(num_items), **place)
        if self.autoregression is not None:
            name = "demand.autoregression"
            found = per_item(name, self.autoregression, num_items, **place)
            most = (1 + bound.dispersion).rsqrt().expand_as(found)
            if not bool((found < most).all()):
                raise ValueError(
                    f"{name} must be below {most.tolist()}, beyond which the variance of demand "
                    f"is infinite, got {found.tolist()}."
                )
            bound.coefficient = found
        pmf = None if self.moves else bound.almost_all(LEFT_OUT, most=MOST_CELLS)
        bound.table = None if pmf is None else CountTable(pmf, **place)
        return bound

    def shape_up(self, num_items: int, **place: Any) -> None:
        """Make the tensors of the distribution's own parameters; called once, when bound."""

    @property
    def dispersion(self) -> Tensor:
        r"""The part of the variance that grows with the square of the mean :math:`m`.

        It is :math:`\alpha` in the variance :math:`c\,m + \alpha m^2` of a period, ``(n,)``.
        """
        return torch.zeros_like(self.mean)

    @abc.abstractmethod
    def sample(self, level: Tensor, rng: torch.Generator) -> Tensor:
        """Draw demand with ``level`` times the mean, ``(..., n)`` of levels ``(..., n)``."""

    def draw(self, num_steps: int, state: State, env: DifferentiableEnv) -> Tensor:
        """Draw the demand of the coming periods, ``(*B, T, n)``."""
        return self.simulate(num_steps, state, env.batch_size, env.rng)

    def simulate(
        self, num_steps: int, state: State, batch: Sequence[int], rng: torch.Generator
    ) -> Tensor:
        """Draw the demand of T periods, ``(*batch, T, n)``, without an environment.

        Args:
            num_steps: number of periods T.
            state: ``"period"`` and ``"recent"``, where demand depends on them.
            batch: shape of the batch.
            rng: the generator.
        """
        if self.table is not None:
            return self.table.draw((*batch, num_steps, len(self.mean)), rng)
        steps = torch.arange(num_steps, device=self.mean.device).unsqueeze(-1)
        place = torch.zeros_like(self.mean) if self.factors is None else state["period"]
        level = self._season_at(place.unsqueeze(-2) + steps).expand(*batch, num_steps, -1)
        if self.coefficient is None:
            return self.sample(level, rng)
        before, met, found = self._season_at(place - 1), state["recent"][..., -1], []
        for usual in level.unbind(-2):
            # Where nothing is ever asked for, the demand met says nothing.
            there = before > 0
            relative = torch.where(there, met / (self.mean * before).where(there, 1.0), 1.0)
            met = self.sample(usual * (1 + self.coefficient * (relative - 1)), rng)
            before = usual
            found.append(met)
        return torch.stack(found, -2)

    def draw_any(self, env: DifferentiableEnv) -> Tensor:
        """Draw the demand of some period of the season, ``(*B, n)``."""
        shape = (*env.batch_size, len(self.mean))
        if self.table is not None:
            return self.table.draw(shape, env.rng)
        return self.sample(self._season_at(self._place(env)).expand(shape), env.rng)

    def start(self, env: DifferentiableEnv) -> dict[str, Tensor]:
        """Draw a place in the season, the same for all items, and the demand before it."""
        entries = {}
        place = self._place(env)
        if self.history:
            before = self.history + self._forgetting()
            usual = self.mean * self._season_at(place - before - 1)
            past = {"period": place - before, "recent": usual.unsqueeze(-1)}
            run = self.simulate(before, past, env.batch_size, env.rng)
            entries["recent"] = run[..., -self.history :, :].transpose(-1, -2)
        return entries | ({"period": place} if self.keeps_place else {})

    def usual_start(self, env: DifferentiableEnv) -> dict[str, Tensor]:
        """Return nothing, which suffices where the level does not move."""
        if self.moves:
            raise ValueError(
                "Demand with a season or autoregression depends on where a rollout starts: give "
                "that too, env.sample_noise(T, env.reset())."
            )
        return {}

    def wrapped(self, place: Tensor) -> Tensor:
        """Return places within the season."""
        return place % (1 if self.factors is None else len(self.factors))

    def _place(self, env: DifferentiableEnv) -> Tensor:
        """Return places in the season where episodes begin, ``(*B, n)``."""
        shape, length = (*env.batch_size, len(self.mean)), 1
        if self.factors is not None and self.horizon is None:
            length = len(self.factors)
        one = (*env.batch_size, 1)
        # A level without a season draws no place: it leaves the generator alone.
        drawn = (
            torch.randint(length, one, generator=env.rng, device=env.rng.device)
            if length > 1
            else torch.zeros(one, device=self.mean.device)
        )
        return drawn.to(self.mean.dtype).expand(shape).contiguous()

    def _season_at(self, place: Tensor) -> Tensor:
        """Return the season's factors at places of the items, ``(..., n)``."""
        if self.factors is None:
            return torch.ones_like(place, dtype=self.mean.dtype)
        item = torch.arange(len(self.mean), device=place.device)
        return self.factors[(place % len(self.factors)).long(), item]

    def _forgetting(self) -> int:
        """Return the periods after which a start has no more than a hundredth of its weight."""
        most = 0.0 if self.coefficient is None else float(self.coefficient.max())
        return 0 if most == 0 else math.ceil(math.log(_REMEMBERED) / math.log(most))


class Poisson(Simulated, name="poisson"):
    """Poisson demand.

    Args:
        mean: mean demand per period, one number or one per item.
        level: season and autoregression; see :class:`Simulated`.
    """

    def __init__(self, mean: float | Sequence[float] = 10.0, **level: Any) -> None:
        super().__init__(mean, **level)
        self.poisson = not self.moves

    def pmf(self, number: int) -> NDArray[np.float64] | None:
        """Return the probabilities of 0, ..., ``number - 1`` units."""
        if self.moves:
            return None
        mean = self.mean.double().cpu().unsqueeze(-1)
        counts = torch.arange(number, dtype=torch.float64)
        return (torch.xlogy(counts, mean) - mean - torch.lgamma(counts + 1)).exp().numpy()

    def sample(self, level: Tensor, rng: torch.Generator) -> Tensor:
        """Draw counts with the mean, ``(..., n)``."""
        return torch.poisson(self.mean * level, generator=rng)


class Normal(Simulated, name="normal"):
    """Normal demand, clipped at 0; its deviation is proportional to the level.

    Args:
        mean: mean demand per period before clipping, one number or one per item.
        deviation: its standard deviation, the same; ``None`` is the root of the mean.
        level: season and autoregression; see :class:`Simulated`.
    """

    deviation: Tensor

    def __init__(
        self,
        mean: float | Sequence[float] = 10.0,
        deviation: float | Sequence[float] | None = None,
        **level: Any,
    ) -> None:
        super().__init__(mean, **level)
        self.given_deviation = deviation

    def shape_up(self, num_items: int, **place: Any) -> None:
        """Make the deviation."""
        given = self.given_deviation
        self.deviation = (
            self.mean.sqrt()
            if given is None
            else per_item("demand.deviation", given, num_items, **place)
        )

    @property
    def dispersion(self) -> Tensor:
        """The squared coefficient of variation."""
        return (self.deviation / self.mean).square()

    def sample(self, level: Tensor, rng: torch.Generator) -> Tensor:
        """Draw and clip, ``(..., n)``."""
        noise = self.mean.new_empty(level.shape).normal_(generator=rng)
        return (level * (self.mean + self.deviation * noise)).clamp_min(0.0)


class Gamma(Simulated, name="gamma"):
    r"""Gamma demand of mean :math:`\mu` and standard deviation :math:`v \mu`: no whole numbers.

    Args:
        mean: mean demand :math:`\mu` per period, one number or one per item.
        variation: coefficient of variation v, above 0, one number or one per item.
        level: season and autoregression; see :class:`Simulated`.
    """

    variation: Tensor

    def __init__(
        self,
        mean: float | Sequence[float] = 10.0,
        variation: float | Sequence[float] = 0.5,
        **level: Any,
    ) -> None:
        super().__init__(mean, **level)
        self.given_variation = variation

    def shape_up(self, num_items: int, **place: Any) -> None:
        """Make the variation."""
        name = "demand.variation"
        self.variation = per_item(name, self.given_variation, num_items, strict=True, **place)

    @property
    def dispersion(self) -> Tensor:
        """The squared coefficient of variation."""
        return self.variation.square()

    def sample(self, level: Tensor, rng: torch.Generator) -> Tensor:
        """Draw, ``(..., n)``."""
        return gamma_draw(self.mean * level, self.dispersion, rng)


class NegativeBinomial(Simulated, name="negative_binomial"):
    r"""Negative-binomial demand of mean :math:`\mu` and standard deviation :math:`v \mu`.

    It is Poisson with a mean drawn anew in every period, from a gamma distribution of shape
    :math:`k = \mu^2 / ((v \mu)^2 - \mu)` and mean :math:`\mu`. A level moves the mean and leaves k.

    Args:
        mean: mean demand :math:`\mu` per period, one number or one per item.
        variation: coefficient of variation v, one number or one per item; above that of Poisson
            demand, :math:`1 / \sqrt \mu`.
        level: season and autoregression; see :class:`Simulated`.

    Raises:
        ValueError: an item's demand varies no more than Poisson demand, once bound.
    """

    shape: Tensor

    def __init__(
        self,
        mean: float | Sequence[float] = 10.0,
        variation: float | Sequence[float] = 1.0,
        **level: Any,
    ) -> None:
        super().__init__(mean, **level)
        self.given_variation = variation

    def shape_up(self, num_items: int, **place: Any) -> None:
        """Make the shape k."""
        name = "demand.variation"
        variation = per_item(name, self.given_variation, num_items, strict=True, **place)
        excess = (variation * self.mean).square() - self.mean
        if not bool((excess > 0).all()):
            raise ValueError(
                f"{name} must be above 1 / sqrt(mean), which is Poisson demand: above "
                f"{self.mean.rsqrt().tolist()}, got {variation.tolist()}."
            )
        self.shape = self.mean.square() / excess

    @property
    def dispersion(self) -> Tensor:
        """The inverse of the shape, 1 / k."""
        return self.shape.reciprocal()

    def pmf(self, number: int) -> NDArray[np.float64] | None:
        """Return the probabilities of 0, ..., ``number - 1`` units."""
        from scipy.stats import nbinom  # slow to load

        if self.moves:
            return None
        mean, k = (row.double().cpu().numpy()[:, None] for row in (self.mean, self.shape))
        return nbinom.pmf(np.arange(number), k, k / (k + mean))

    def sample(self, level: Tensor, rng: torch.Generator) -> Tensor:
        """Draw counts, ``(..., n)``."""
        return torch.poisson(gamma_draw(self.mean * level, self.dispersion, rng), generator=rng)


class Intermittent(Simulated, name="intermittent"):
    r"""Demand in some periods only: with probability p, of a size of mean :math:`m = \mu / p`.

    Sizes are whole, 1 and a negative-binomial number of mean :math:`m - 1`, by default geometric;
    or they have a gamma distribution. A level moves the probability, and what would bring it above
    1 moves the sizes.

    Source: J. D. Croston (1972), "Forecasting and stock control for intermittent demands",
    Operational Research Quarterly 23(3), 289-303, for occurrences that are independent in time.

    Args:
        mean: mean demand :math:`\mu` per period, zeros included, one number or one per item.
        probability: p, above 0 and up to 1, one number or one per item; for whole sizes at most
            :math:`\mu`.
        variation: coefficient of variation of the sizes, one number or one per item; for whole
            sizes at least :math:`\sqrt{m - 1} / m`. ``None`` makes them geometric, or exponential.
        whole: whether sizes are whole numbers.
        level: season and autoregression; see :class:`Simulated`.

    Raises:
        ValueError: a probability is above 1, a size is below 1 or varies too little, once bound.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> demand = Intermittent(mean=2.0, probability=0.25)  # sizes of mean 8
        >>> env = InventoryEnv(demand=demand, batch_size=1)
        >>> env.demand.pmf(3).round(4).tolist()  # (1 - p), p / 8, p / 8 * 7 / 8
        [[0.75, 0.0312, 0.0273]]
    """

    probability: Tensor
    variation: Tensor

    def __init__(
        self,
        mean: float | Sequence[float] = 10.0,
        probability: float | Sequence[float] = 0.3,
        variation: float | Sequence[float] | None = None,
        whole: bool = True,
        **level: Any,
    ) -> None:
        super().__init__(mean, **level)
        self.given_probability, self.given_variation = probability, variation
        self.whole = check_bool("demand.whole", whole)

    def shape_up(self, num_items: int, **place: Any) -> None:
        """Make the probability and the dispersion of the sizes."""
        name = "demand.probability"
        p = per_item(name, self.given_probability, num_items, strict=True, **place)
        most = self.mean.clamp_max(1.0) if self.whole else torch.ones_like(self.mean)
        if bool((p > most * (1 + _ROUNDING)).any()):
            raise ValueError(
                f"{name} must be at most {most.tolist()} (1; and the mean, as whole sizes are 1 "
                f"and up), got {p.tolist()}."
            )
        self.probability, size = p, self.mean / p
        more = (size - int(self.whole)).clamp_min(0.0)
        if self.given_variation is None:
            self.sizes_dispersion = torch.ones_like(p)
            return
        name = "demand.variation"
        variation = per_item(name, self.given_variation, num_items, strict=True, **place)
        excess = (variation * size).square() - more * int(self.whole)
        if bool((excess < -_ROUNDING * more).any()):
            raise ValueError(
                f"{name} of whole sizes must be at least sqrt(m - 1) / m, with m = mean / "
                f"probability: {(more.sqrt() / size).tolist()}, got {variation.tolist()}."
            )
        square = more.square()
        self.sizes_dispersion = (excess.clamp_min(0.0) / square).where(square > 0, 0.0)

    @property
    def dispersion(self) -> Tensor:
        """That of the sizes, which is all where demand is certain."""
        return self.sizes_dispersion

    def pmf(self, number: int) -> NDArray[np.float64] | None:
        """Return the probabilities of 0, ..., ``number - 1`` units."""
        from scipy.stats import nbinom, poisson  # slow to load

        if self.moves or not self.whole:
            return None
        rows = (self.mean / self.probability - 1, self.sizes_dispersion, self.probability)
        more, a, p = (row.double().cpu().numpy()[:, None].clip(min=0) for row in rows)
        k = 1 / np.where(a > 0, a, 1.0)
        above = np.arange(number - 1)
        sizes = np.where(a > 0, nbinom.pmf(above, k, k / (k + more)), poisson.pmf(above, more))
        return np.concatenate([1 - p, p * sizes], axis=1)[:, :number]

    def sample(self, level: Tensor, rng: torch.Generator) -> Tensor:
        """Draw zeros and sizes, ``(..., n)``."""
        mean, chance = self.mean * level, (self.probability * level).clamp_max(1.0)
        occurs = torch.empty_like(mean).uniform_(generator=rng) < chance
        more = (mean / chance.where(chance > 0, 1.0) - int(self.whole)).clamp_min(0.0)
        size = gamma_draw(more, self.sizes_dispersion, rng)
        if self.whole:
            size = 1 + torch.poisson(size, generator=rng)
        return size * occurs


def gamma_draw(mean: Tensor, dispersion: Tensor, rng: torch.Generator) -> Tensor:
    """Draw from gamma distributions of a mean and a squared variation; 0 gives the mean itself."""
    certain = dispersion == 0
    shape = dispersion.where(~certain, 1.0).reciprocal()
    drawn = torch._standard_gamma(shape.expand_as(mean).contiguous(), generator=rng)
    return torch.where(certain, mean, drawn * (mean / shape))
