"""Demand drawn from models that are fitted to the training periods of a record."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.envs.differentiable import DifferentiableEnv, State
from hpo_torchrl.problems.inventory.mixed import Mixed
from hpo_torchrl.problems.inventory.record import Record


class Fitted(Record, name="fitted"):
    """Demand drawn from models of a record's training periods, instead of the periods themselves.

    What a policy sees is what it sees of the :class:`Record`, in the same unit, so that a policy
    that learns here runs there. Rules are tuned to the record. A start is anywhere in the season.

    Args:
        args, given: as for :class:`Record`; ``season`` is the periods of a season that is fitted,
            which begins with the first training period, and there is no ``start_period``.

    Attributes:
        fit: the models, a :class:`~hpo_torchrl.problems.inventory.demand_fit.DemandFit`.

    Raises:
        ValueError: the training periods cannot be fitted; see
            :func:`~hpo_torchrl.problems.inventory.demand_fit.fit_demand`.

    Examples:
        >>> import numpy as np
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> record = np.random.default_rng(0).poisson(6.0, (80, 1))
        >>> env = InventoryEnv(demand=Fitted(record, history=2), batch_size=5, seed=0)
        >>> env.demand.fit.models[0].kind, env.sample_noise(300, env.reset()).shape
        ('poisson', torch.Size([5, 300, 1]))
    """

    model: Mixed

    def __init__(self, *args: Any, **given: Any) -> None:
        from hpo_torchrl.problems.inventory.demand_fit import fit_demand  # pandas is slow to load

        history = check_int("history", given.setdefault("history", 1), minimum=1)
        if given.get("start_period", "random") != "random":
            raise ValueError(
                f"start_period={given['start_period']!r} is of a record that is replayed, but "
                "demand is drawn from a model fitted to it; leave it out, or take a Record."
            )
        super().__init__(*args, **given)
        if self.record.ndim != 2:
            raise ValueError(
                f"record must have shape (T, n), one for all env instances, got "
                f"{tuple(self.record.shape)}; models are not fitted by instance."
            )
        first, end = self.train_periods
        self.fit = fit_demand(self.record[first:end].numpy(), self.season, first)
        self.model = self.fit.demand(history)

    def bind(self, num_items: int, horizon: int | None, batch_size: Any, **place: Any) -> Self:
        """Return a copy for an environment, with its models; see :class:`Record`."""
        bound = super().bind(num_items, horizon, batch_size, **place)
        bound.model = self.model.bind(num_items, None, batch_size, **place)
        return bound

    def draw(self, num_steps: int, state: State, env: DifferentiableEnv) -> Tensor:
        """Draw the demand of the coming periods, ``(*B, T, n)``."""
        return self.model.draw(num_steps, state, env)

    def draw_any(self, env: DifferentiableEnv) -> Tensor:
        """Draw the demand of some period of the season, ``(*B, n)``."""
        return self.model.draw_any(env)

    def start(self, env: DifferentiableEnv) -> dict[str, Tensor]:
        """Draw a place in the season, with the demand before it."""
        return self.model.start(env)

    def wrapped(self, place: Tensor) -> Tensor:
        """Return places within the season."""
        return self.model.wrapped(place)

    def to(self, device: torch.device) -> None:
        """Move the tensors and the models."""
        super().to(device)
        self.model.to(device)
