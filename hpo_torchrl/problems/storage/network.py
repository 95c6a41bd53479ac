"""A policy network for many batteries: the same weights for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpo_torchrl.core.categorical import BranchBounds
from hpo_torchrl.modules import HybridNetwork
from hpo_torchrl.modules.layers import mlp


class EachBattery(nn.Module):
    """One net for all batteries of a :class:`StorageEnv`, evaluated for each of them.

    It sees the battery's own content, the mean of all, the share of the batteries that are emptier
    (on ties, those that come first), what the observation says of the site, and which battery it
    is.

    Args:
        number: number N of batteries, whose contents the observation begins with.
        observation_dim: length of the observation.
        outputs: numbers for each battery.
        hidden: width of each hidden layer.
        layout: how outputs come: ``"battery"`` by battery, ``"output"`` by output, or ``"mean"``,
            the mean over batteries.
        others: of the net: ``activation``, ``gain`` of the last layer, ``device`` and ``dtype``.
    """

    takes_leading_axes = True  # of seeds

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
        self.number, self.layout = number, layout
        self.net = mlp(observation_dim + 3, outputs, hidden, **others)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the outputs of all batteries, ``(*B, N * outputs)``, or their mean."""
        content, site = observation.split([self.number, observation.shape[-1] - self.number], -1)
        rank = content.argsort(dim=-1, stable=True).argsort(-1).to(content.dtype) / self.number
        mean = content.mean(-1, keepdim=True).expand_as(content)
        seen = torch.stack([content, mean, 2 * rank - 1], -1)
        site = site.unsqueeze(-2).expand(*seen.shape[:-1], -1)
        which = torch.eye(self.number, dtype=content.dtype, device=content.device)
        found = self.net(torch.cat([seen, site, which.expand(*seen.shape[:-1], -1)], -1))
        if self.layout == "mean":
            return found.mean(-2)
        return (found.mT if self.layout == "output" else found).flatten(-2)

    @classmethod
    def network(
        cls,
        observation_dim: int,
        num_discrete: int,
        continuous_dim: int,
        *,
        hidden: int | Sequence[int] = (64, 64),
        control: int | Sequence[int] | None = None,
        num_heads: int | None = None,
        activation: str = "relu",
        scale: float = 0.0,
        learn_scale: bool = False,
        shared_trunk: bool = False,
        linear_skip: bool = True,
        products: int = 0,
        continuous_bounds: Any = (None, None),
        branch_bounds: BranchBounds | None = None,
        action_scale: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> HybridNetwork:
        """Make a policy network whose two nets are the same for each battery.

        Args:
            observation_dim: length of the observation of a :class:`StorageEnv`.
            num_discrete: number M of modes.
            continuous_dim: number N of batteries.
            hidden: width of each hidden layer.
            control: the same of the continuous net, where it is another.
            num_heads: N, or ``None`` for one choice, whose logits are the mean over the batteries.
            activation: of the hidden layers.
            scale: as of :class:`~hpo_torchrl.modules.HybridNetwork`, as those below.
            learn_scale: likewise.
            shared_trunk: not offered: the nets are apart.
            linear_skip: not used, nor are products: the nets have no such parts.
            products: see above.
            continuous_bounds: of the environment.
            branch_bounds: of the environment.
            action_scale: of the environment.
            device: where the weights live.
            dtype: of the weights.

        Raises:
            ValueError: ``shared_trunk`` is true, or an argument is out of range.

        Examples:
            >>> from hpo_torchrl import HybridPolicy
            >>> from hpo_torchrl.problems import StorageEnv
            >>> from hpo_torchrl.problems.storage.network import EachBattery
            >>> env = StorageEnv(num_batteries=5, batch_size=3, seed=0)
            >>> policy = HybridPolicy.for_env(env, network=EachBattery.network, hidden=[16])
            >>> env.rollout(2, policy)["action", "discrete"].shape
            torch.Size([3, 2, 5])
        """
        place: dict[str, Any] = {"device": device, "dtype": dtype}

        def net(widths: Any, gain: float, layout: str) -> EachBattery:
            how: Any = {"layout": "battery" if num_heads else layout, "activation": activation}
            how |= {"gain": gain, **place}
            return cls(continuous_dim, observation_dim, num_discrete, widths, **how)

        return HybridNetwork(
            observation_dim,
            num_discrete,
            continuous_dim,
            control=net(hidden if control is None else control, 0.01, "output"),
            choice=net(hidden, 0.0, "mean"),
            num_heads=num_heads,
            scale=scale,
            learn_scale=learn_scale,
            shared_trunk=shared_trunk,
            continuous_bounds=continuous_bounds,
            branch_bounds=branch_bounds,
            action_scale=action_scale,
            **place,
        )
