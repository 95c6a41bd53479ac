"""Demand of an inventory problem: the base class, and demand drawn from a distribution."""

from __future__ import annotations

import abc
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from hpo_torchrl.core.checks import check_choice, check_sizes, did_you_mean, per_item
from hpo_torchrl.envs.differentiable import DifferentiableEnv, State

Made = TypeVar("Made")


class Demand(abc.ABC):
    """Demand of n items, period by period: a description that an environment binds to itself.

    A new kind of demand is a subclass with :meth:`draw`; ``class Mine(Demand, name="mine")`` can
    also be written ``{name: mine, mean: 10}`` in a configuration. Demand that depends on the past
    adds entries to the state: see :class:`~hpo_torchrl.problems.inventory.record.Record`.

    Args:
        mean: mean demand per period, one number or one per item: the unit of observations and
            actions.

    Attributes:
        mean: the same as a tensor ``(n,)``, once bound.
        poisson: whether demand is Poisson and independent, so that the exact optima apply.
        num_items: number of items, where the demand fixes it.
        batch_size: number of env instances, where the demand fixes it or once bound.
        horizon: periods in an episode, the same.
        num_periods: periods that there are to be replayed, where there is an end.
    """

    KINDS: ClassVar[dict[str, type[Demand]]] = {}
    poisson: ClassVar[bool] = False
    num_items: int | None = None
    batch_size: Any = None
    horizon: int | None = None
    num_periods: int | None = None
    mean: Tensor

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.KINDS[name] = cls

    def __init__(self, mean: float | Sequence[float] = 10.0) -> None:
        self.given_mean = mean

    def bind(self, num_items: int, horizon: int | None, batch_size: Any, **place: Any) -> Self:
        """Return a copy for an environment, with its horizon, and tensors of its dtype and device.

        Args:
            num_items: number of items n.
            horizon: periods in an episode; ``None`` leaves it to the demand.
            batch_size: number of env instances, an int or a shape; ``None`` the same.
            place: dtype and device.

        Raises:
            ValueError: the environment does not fit the demand.
        """
        if self.num_items not in (None, num_items):
            raise ValueError(
                f"demand is of {self.num_items} items, but num_items = {num_items}; leave "
                "num_items out (on the command line: env.num_items=null) or make them equal."
            )
        sizes = [] if batch_size is None else check_sizes("batch_size", batch_size)
        if self.batch_size is not None and sizes not in ([], [self.batch_size]):
            raise ValueError(
                f"batch_size={batch_size} disagrees with demand of {self.batch_size} env "
                "instances; leave it out (on the command line: env.batch_size=null) or make them "
                "equal."
            )
        bound = copy.copy(self)
        bound.mean = per_item("demand.mean", self.given_mean, num_items, strict=True, **place)
        bound.horizon = self.horizon if horizon is None else horizon
        bound.batch_size = self.batch_size if batch_size is None else batch_size
        return bound

    @abc.abstractmethod
    def draw(self, num_steps: int, state: State, env: DifferentiableEnv) -> Tensor:
        """Draw the demand of the coming periods.

        Args:
            num_steps: number of periods T.
            state: where they begin; it matters only to demand that depends on it.
            env: the environment: its batch and its generator.

        Returns:
            Units, ``(*B, T, n)``.
        """

    def pmf(self, number: int) -> NDArray[np.float64] | None:
        """Return the probabilities of 0, ..., ``number - 1`` units of each item, ``(n, number)``.

        ``None`` where demand is not independent of the past, or no whole number: no exact optimum
        of :mod:`~hpo_torchrl.problems.inventory.optima.discounted` applies then.
        """
        return None

    def draw_any(self, env: DifferentiableEnv) -> Tensor:
        """Draw the demand of some period, ``(*B, n)``: for stocks that are warmed up."""
        return self.draw(1, {}, env).squeeze(-2)

    def state_shapes(self, num_items: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the state entries that the demand adds, without the batch."""
        return {}

    def observation_dim(self, num_items: int) -> int:
        """Length of what :meth:`observe` returns."""
        return 0

    def start(self, env: DifferentiableEnv) -> dict[str, Tensor]:
        """Draw these entries at the start of an episode."""
        return {}

    def usual_start(self, env: DifferentiableEnv) -> dict[str, Tensor]:
        """Return the entries of the start, if it is always the same.

        Raises:
            ValueError: it is not, and the demand depends on it.
        """
        return {}

    def advance(self, state: State, met: Tensor) -> dict[str, Tensor]:
        """Return the entries after a period in which the demand ``met`` ``(*B, n)`` occurred."""
        return {}

    def observe(self, state: State) -> Tensor | None:
        """Return what the policy sees besides the inventory, flat; ``None`` is nothing."""
        return None

    def to(self, device: torch.device) -> None:
        """Move the tensors."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    def __repr__(self) -> str:
        return type(self).__name__.lower()


class Poisson(Demand, name="poisson"):
    """Independent Poisson demand.

    Args:
        mean: mean demand per period, one number or one per item.
    """

    poisson = True

    def pmf(self, number: int) -> NDArray[np.float64]:
        """Return the probabilities of 0, ..., ``number - 1`` units."""
        from scipy.stats import poisson  # slow to load

        return poisson.pmf(np.arange(number), self.mean.double().cpu().numpy()[:, None])

    def draw(self, num_steps: int, state: State, env: DifferentiableEnv) -> Tensor:
        """Draw counts with the mean, ``(*B, T, n)``."""
        mean = self.mean.expand(*env.batch_size, num_steps, -1)
        return torch.poisson(mean, generator=env.rng)


class Normal(Demand, name="normal"):
    """Independent normal demand, clipped at 0.

    Args:
        mean: mean demand per period before clipping, one number or one per item.
        deviation: its standard deviation, the same; ``None`` is the root of the mean.
    """

    deviation: Tensor

    def __init__(
        self,
        mean: float | Sequence[float] = 10.0,
        deviation: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(mean)
        self.given_deviation = deviation

    def bind(self, num_items: int, horizon: int | None, batch_size: Any, **place: Any) -> Self:
        """Return a copy for an environment; see :class:`Demand`."""
        bound = super().bind(num_items, horizon, batch_size, **place)
        given = self.given_deviation
        bound.deviation = (
            bound.mean.sqrt()
            if given is None
            else per_item("demand.deviation", given, num_items, **place)
        )
        return bound

    def draw(self, num_steps: int, state: State, env: DifferentiableEnv) -> Tensor:
        """Draw and clip, ``(*B, T, n)``."""
        shape = (*env.batch_size, num_steps, *self.mean.shape)
        noise = self.mean.new_empty(shape).normal_(generator=env.rng)
        return (self.mean + self.deviation * noise).clamp_min(0.0)


class NegativeBinomial(Demand, name="negative_binomial"):
    r"""Independent negative-binomial demand of mean :math:`\mu` and standard deviation
    :math:`v \mu`.

    It is Poisson with a mean drawn anew in every period, from a gamma distribution of shape
    :math:`k = \mu^2 / ((v \mu)^2 - \mu)` and mean :math:`\mu`.

    Args:
        mean: mean demand :math:`\mu` per period, one number or one per item.
        variation: coefficient of variation v, one number or one per item; above that of Poisson
            demand, :math:`1 / \sqrt \mu`.

    Raises:
        ValueError: an item's demand varies no more than Poisson demand, once bound.
    """

    shape: Tensor

    def __init__(
        self, mean: float | Sequence[float] = 10.0, variation: float | Sequence[float] = 1.0
    ) -> None:
        super().__init__(mean)
        self.given_variation = variation

    def bind(self, num_items: int, horizon: int | None, batch_size: Any, **place: Any) -> Self:
        """Return a copy for an environment; see :class:`Demand`."""
        bound = super().bind(num_items, horizon, batch_size, **place)
        name = "demand.variation"
        variation = per_item(name, self.given_variation, num_items, strict=True, **place)
        excess = (variation * bound.mean).square() - bound.mean
        if not bool((excess > 0).all()):
            raise ValueError(
                f"{name} must be above 1 / sqrt(mean), which is Poisson demand: above "
                f"{bound.mean.rsqrt().tolist()}, got {variation.tolist()}."
            )
        bound.shape = bound.mean.square() / excess
        return bound

    def pmf(self, number: int) -> NDArray[np.float64]:
        """Return the probabilities of 0, ..., ``number - 1`` units."""
        from scipy.stats import nbinom  # slow to load

        mean, k = (row.double().cpu().numpy()[:, None] for row in (self.mean, self.shape))
        return nbinom.pmf(np.arange(number), k, k / (k + mean))

    def draw(self, num_steps: int, state: State, env: DifferentiableEnv) -> Tensor:
        """Draw counts, ``(*B, T, n)``."""
        many = self.shape.expand(*env.batch_size, num_steps, -1)
        rate = torch._standard_gamma(many, generator=env.rng) * (self.mean / self.shape)
        return torch.poisson(rate, generator=env.rng)


def make_demand(entry: Any) -> Demand:
    """Return the demand that is meant: one, a mapping with its name, its name, or a mean.

    Raises:
        TypeError: it is none of these.
        ValueError: the name or a key is unknown.

    Examples:
        >>> make_demand(10.0), make_demand({"name": "normal", "mean": [1.0, 2.0]})
        (poisson, normal)
    """
    if isinstance(entry, Demand):
        return entry
    if isinstance(entry, str):
        entry = {"name": entry}
    if isinstance(entry, Mapping):
        return from_mapping("demand", entry, Demand.KINDS, "{name: poisson, mean: 10}")
    return Poisson(entry)  # which checks the mean


def from_mapping(
    section: str, entry: Any, kinds: Mapping[str, Callable[..., Made]], example: str
) -> Made:
    """Make the object that a mapping names, with the mapping's other entries as arguments.

    An entry that is ``None`` is not given: so a configuration takes back what another has set.

    Raises:
        ValueError: it is no mapping with a name, or the name or a key is unknown.
    """
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise ValueError(
            f"{section} must be given as objects, or mappings with a name such as {example}, got "
            f"{entry!r}."
        )
    arguments = {key: value for key, value in entry.items() if value is not None}
    name = check_choice(section, arguments.pop("name"), kinds)
    known = list(inspect.signature(kinds[name]).parameters)
    for key in arguments:
        if key not in known:
            raise ValueError(
                f"Unknown key {key!r} of {section} {name!r}.{did_you_mean(key, known)} It takes "
                f"{', '.join(known) or 'nothing'}."
            )
    try:
        return kinds[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{section} {name!r}: {error}") from error
