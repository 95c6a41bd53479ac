"""Demand of items whose distributions are of different kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.problems.inventory.distributions import Simulated, gamma_draw


class Mixed(Simulated):
    r"""Demand of items of different kinds, with a season and autoregression for all.

    Items may have a part of the chance in common: in every period one factor, of a gamma
    distribution of mean 1 and variance :math:`\tau^2`, multiplies the level of all. The covariance
    of two items is then :math:`\tau^2` times the product of their means.

    Args:
        parts: distributions without a moving level, each with the numbers of its items, from 0.
        season: as for :class:`Simulated`.
        autoregression: the same.
        common: :math:`\tau^2`, 0 and up.
        history: number k of recent demands in the state.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.problems.inventory import Gamma, Poisson
        >>> demand = Mixed([([1], Poisson([5.0])), ([0, 2], Gamma([9.0, 2.0], 0.5))])
        >>> env = InventoryEnv(3, demand=demand, batch_size=4, seed=0)
        >>> env.demand_mean.tolist(), env.sample_noise(7).shape
        ([9.0, 5.0, 2.0], torch.Size([4, 7, 3]))
    """

    parts: list[tuple[Tensor, Simulated]]

    def __init__(
        self,
        parts: Sequence[tuple[Sequence[int], Simulated]],
        *,
        season: Any = None,
        autoregression: float | Sequence[float] | None = None,
        common: float = 0.0,
        history: int = 0,
    ) -> None:
        means = {
            item: mean
            for items, part in parts
            for item, mean in zip(items, part.given_mean, strict=True)  # type: ignore[arg-type]
        }
        super().__init__(
            [means[item] for item in sorted(means)], season=season, autoregression=autoregression
        )
        self.given_parts = list(parts)
        self.common = check_float("common", common, minimum=0.0)
        self.history = max(self.history, history)
        # A place in time, even without a season: the state is that of a record.
        self.keeps_place = True

    def shape_up(self, num_items: int, **place: Any) -> None:
        """Bind the parts."""
        self.parts = [
            (
                torch.tensor(items, device=place["device"]),
                part.bind(len(items), None, None, **place),
            )
            for items, part in self.given_parts
        ]
        self.shared = torch.tensor(self.common, **place)

    @property
    def dispersion(self) -> Tensor:
        """That of each item, of its own and in common."""
        own = torch.zeros_like(self.mean)
        for items, part in self.parts:
            own[items] = part.dispersion
        return (1 + own) * (1 + self.shared) - 1

    def sample(self, level: Tensor, rng: torch.Generator) -> Tensor:
        """Draw each item from its own kind, ``(..., n)``."""
        if self.common > 0:
            level = level * gamma_draw(torch.ones_like(level[..., :1]), self.shared, rng)
        drawn = torch.empty_like(level)
        for items, part in self.parts:
            drawn[..., items] = part.sample(level[..., items], rng)
        return drawn

    def to(self, device: torch.device) -> None:
        """Move the tensors and the parts."""
        super().to(device)
        for _, part in self.parts:
            part.to(device)
        self.parts = [(items.to(device), part) for items, part in self.parts]
