"""A policy network for many batteries: the same weights for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpo_torchrl.modules import HybridNetwork
from hpo_torchrl.modules.layers import mlp

_OWN = 2  # learned numbers that tell one battery from another


class EachBattery(nn.Module):
    """One net for all batteries of a :class:`StorageEnv`, evaluated for each of them.

    It sees the battery's own content, the mean of all, the share of the batteries that are emptier
    (on ties, those that come first), what the observation says of the site, and two learned numbers
    of the battery.

    Args:
        number: number N of batteries, whose contents the observation begins with.
        observation_dim: length of the observation.
        outputs: numbers for each battery.
        hidden: width of each hidden layer.
        layout: how outputs come: ``"battery"`` by battery, ``"output"`` by output, or ``"mean"``,
            the mean over batteries.
        others: of the net: ``activation``, ``gain`` of the last layer, ``device`` and ``dtype``.
    """

    def __init__(
        self,
        number: int,
        observation_dim: int,
        outputs: int,
        hidden: Any,
        *,
        layout: str = "battery",
        **others: Any,
    ) -> None:
        super().__init__()
        place = {name: others[name] for name in ("device", "dtype") if name in others}
        self.number, self.layout = number, layout
        self.own = nn.Parameter(torch.zeros(number, _OWN, **place))
        self.net = mlp(observation_dim - number + 3 + _OWN, outputs, hidden, **others)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the outputs of all batteries, ``(*B, N * outputs)``, or their mean."""
        content, site = observation.split([self.number, observation.shape[-1] - self.number], -1)
        rank = content.argsort(dim=-1, stable=True).argsort(-1).to(content.dtype) / self.number
        mean = content.mean(-1, keepdim=True).expand_as(content)
        seen = torch.stack([content, mean, 2 * rank - 1], -1)
        site = site.unsqueeze(-2).expand(*seen.shape[:-1], -1)
        own = self.own.expand(*seen.shape[:-1], -1)
        found = self.net(torch.cat([seen, site, own], -1))
        if self.layout == "mean":
            return found.mean(-2)
        return (found.mT if self.layout == "output" else found).flatten(-2)


class FleetNetwork(HybridNetwork):
    """A :class:`~hpo_torchrl.modules.HybridNetwork` whose two nets are the same for each battery.

    Args:
        observation_dim, num_discrete, continuous_dim: of a :class:`StorageEnv`.
        num_heads: likewise; without heads the logits are the mean over the batteries.
        hidden: width of each hidden layer.
        control: the same of the continuous net, where it is another.
        activation: of the hidden layers.
        others: further arguments of :class:`~hpo_torchrl.modules.HybridNetwork`.

    Examples:
        >>> from hpo_torchrl import HybridPolicy
        >>> from hpo_torchrl.problems import StorageEnv
        >>> from hpo_torchrl.problems.storage.network import FleetNetwork
        >>> env = StorageEnv(num_batteries=5, batch_size=3, seed=0)
        >>> policy = HybridPolicy.for_env(env, network=FleetNetwork, hidden=[16])
        >>> env.rollout(2, policy)["action", "discrete"].shape
        torch.Size([3, 2, 5])
    """

    def __init__(
        self,
        observation_dim: int,
        num_discrete: int,
        continuous_dim: int,
        *,
        hidden: int | Sequence[int] = (64, 64),
        control: int | Sequence[int] | None = None,
        num_heads: int | None = None,
        activation: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **others: Any,
    ) -> None:
        def net(widths: Any, gain: float, layout: str) -> EachBattery:
            how: Any = {"activation": activation, "gain": gain, "device": device, "dtype": dtype}
            how["layout"] = "battery" if num_heads else layout
            return EachBattery(continuous_dim, observation_dim, num_discrete, widths, **how)

        super().__init__(
            observation_dim,
            num_discrete,
            continuous_dim,
            control=net(hidden if control is None else control, 0.01, "output"),
            choice=net(hidden, 0.0, "mean"),
            num_heads=num_heads,
            device=device,
            dtype=dtype,
            **others,
        )
