"""Demand of an inventory problem: the base class, and demand by its name."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from hpo_torchrl.core.checks import (
    accepted,
    check_choice,
    check_sizes,
    did_you_mean,
    per_item,
)
from hpo_torchrl.envs.differentiable import DifferentiableEnv, State
from hpo_torchrl.problems.inventory.counts import CountTable

Made = TypeVar("Made")


class Demand(abc.ABC):
    """Demand of n items, period by period: a description that an environment binds to itself.

    A new kind of demand is a subclass with :meth:`draw`; ``class Mine(Demand, name="mine")`` can
    also be written ``{name: mine, mean: 10}`` in a configuration. An independent distribution is a
    :class:`~hpo_torchrl.problems.inventory.distributions.Simulated` with ``sample``, which gives it
    a season and autoregression.

    Demand that depends on the time adds entries to the state: with ``history``, ``"recent"``,
    ``(*B, n, k)``, the last k demands met, oldest first; with ``keeps_place``, ``"period"``,
    ``(*B, n)``, the places of the demand to come, as floats. The observation has the recent demand
    in periods of mean demand, then, with ``shown_season``, sine and cosine of the place in it.

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
        history: number k of recent demands in the state and the observation.
        keeps_place: whether the place in time is in the state.
        shown_season: periods of the season whose place is in the observation, ``None`` for none.
    """

    KINDS: ClassVar[dict[str, type[Demand]]] = {}
    poisson: bool = False
    num_items: int | None = None
    batch_size: Any = None
    horizon: int | None = None
    num_periods: int | None = None
    history: int = 0
    keeps_place: bool = False
    shown_season: int | None = None
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

    def almost_all(
        self, left_out: float, fewest: int = 8, most: float = math.inf
    ) -> NDArray[np.float64] | None:
        """Return :meth:`pmf` of so many units that little is left out of any item's demand.

        Args:
            left_out: the probability that may be.
            fewest: number of units to begin with, doubled until it is enough.
            most: number of units beyond which it is ``None``.
        """
        number = fewest
        while (found := self.pmf(number)) is not None and found.sum(1).min() < 1 - left_out:
            number *= 2
            if number > most:
                return None
        return found

    def draw_any(self, env: DifferentiableEnv) -> Tensor:
        """Draw the demand of some period, ``(*B, n)``: for stocks that are warmed up."""
        return self.draw(1, {}, env).squeeze(-2)

    def state_shapes(self, num_items: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the state entries that the demand adds, without the batch."""
        shapes = {"recent": (num_items, self.history), "period": (num_items,)}
        kept = {"recent": self.history > 0, "period": self.keeps_place}
        return {name: shape for name, shape in shapes.items() if kept[name]}

    def observation_dim(self, num_items: int) -> int:
        """Length of what :meth:`observe` returns."""
        return num_items * self.history + (0 if self.shown_season is None else 2)

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
        after = {}
        if "period" in state:  # stocks that are warmed up have no place yet
            after["period"] = self.wrapped(state["period"] + 1)
        if "recent" in state:
            after["recent"] = torch.cat([state["recent"][..., 1:], met.unsqueeze(-1)], -1)
        return after

    def wrapped(self, place: Tensor) -> Tensor:
        """Bring places beyond the end of the time there is back into it."""
        return place

    def observe(self, state: State) -> Tensor | None:
        """Return what the policy sees besides the inventory, flat; ``None`` is nothing."""
        shown = []
        if self.history:
            shown.append((state["recent"] / self.mean.unsqueeze(-1)).flatten(-2))
        if self.shown_season is not None:
            # Items stand at the same place of the season, whatever their places are.
            place = state["period"][..., :1] % self.shown_season
            angle = 2 * math.pi / self.shown_season * place
            shown += [angle.sin(), angle.cos()]
        return torch.cat(shown, -1) if shown else None

    def to(self, device: torch.device) -> None:
        """Move the tensors."""
        for name, value in vars(self).items():
            if isinstance(value, (Tensor, CountTable)):
                setattr(self, name, value.to(device))

    def __repr__(self) -> str:
        return type(self).__name__.lower()


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
    return Demand.KINDS["poisson"](entry)  # which checks the mean


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
    known = list(accepted(kinds[name]))
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
