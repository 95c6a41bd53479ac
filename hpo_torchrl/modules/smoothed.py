"""A continuous action alone, whose jump is smoothed away: a rival of hybrid actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.envs import EnvBase

from hpo_torchrl.core.checks import check_float, checked
from hpo_torchrl.modules.network import HybridNetwork
from hpo_torchrl.modules.policy import HybridPolicy

_LEAST = 1e-6  # of a share: its logarithm is finite, and so is that of what is left


class SmoothedNetwork(HybridNetwork):
    r"""Act by how much alone: the smaller the continuous action, the less likely anything is done.

    There is no discrete net. With q the root mean square of the continuous action of "something",
    in its natural units, and the width w of the smoothing,

    .. math:: P(\text{something}) = 1 - e^{-q / w}

    so that a fixed cost K is one of :math:`K (1 - e^{-q / w})` on average, whose slope a gradient
    along a straight-through rollout sees (``algorithm=gumbel_softmax``, with
    ``algorithm.temperature=1``). The most probable action does something where q is above w log 2.
    A jump that is far away stays out of sight: which is what a discrete action is for.

    Args:
        observation_dim: see :class:`HybridNetwork`.
        num_discrete: 2: 0 does nothing, 1 something.
        continuous_dim: see :class:`HybridNetwork`.
        width: w, in natural units of the continuous action.
        network: further arguments, of :class:`HybridNetwork`.

    Raises:
        ValueError: there are other discrete actions than these two, or several choices; or the
            width is not above 0.

    Examples:
        >>> from hpo_torchrl.modules import SmoothedNetwork
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = InventoryEnv(num_items=2, batch_size=4)
        >>> policy = SmoothedNetwork.for_env(env, width=0.5)
        >>> env.rollout(3, policy)["action", "continuous"].shape
        torch.Size([4, 3, 2])
    """

    @checked
    def __init__(
        self,
        observation_dim: int,
        num_discrete: int,
        continuous_dim: int,
        *,
        width: float = 0.3,
        **network: Any,
    ) -> None:
        self.width = check_float("width", width, minimum=0.0, strict=True)
        heads = network.get("num_heads")
        if num_discrete != 2 or heads is not None:
            found = f"{num_discrete} discrete actions" if heads is None else f"{heads} choices"
            raise ValueError(
                "A SmoothedNetwork does something or nothing: it needs one choice of 2 discrete "
                f"actions, got {found}; use policy=mlp."
            )
        sizes = observation_dim, num_discrete, continuous_dim
        super().__init__(*sizes, choice=nn.Identity(), **network)

    @classmethod
    def for_env(cls, env: EnvBase, **arguments: Any) -> HybridPolicy:
        """Build the policy of an environment.

        Args:
            env: the environment.
            arguments: ``width``, and those of :meth:`HybridPolicy.for_env`.
        """
        return HybridPolicy.for_env(env, network=cls, **arguments)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits ``(*B, 2)``, loc ``(*B, 2, n)`` and scale (same shape, or ``None``)."""
        loc, scale = self.branches(observation)
        return self._logits_of(loc), loc, None if scale is None else scale.expand_as(loc)

    def sampler(self) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]:
        """Return a function that computes what :meth:`forward` does, with logits off the graph."""

        def parameters(observation: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            logits, loc, scale = self.forward(observation)
            return logits.detach(), loc, scale

        return parameters

    def logits(self, observation: Tensor) -> Tensor:
        """Return the logits alone, ``(*B, 2)``."""
        return self._logits_of(self.branches(observation)[0])

    def _logits_of(self, loc: Tensor) -> Tensor:
        amount = loc[..., 1, :] / self.action_scale
        # A root has no slope at 0, which an order far below its corner is in float32.
        size = (amount.square().mean(-1) + _LEAST**2).sqrt()
        nothing = (-size / self.width).exp()
        nothing = nothing.clamp(_LEAST, 1.0 - _LEAST)
        return self._in_heads(torch.stack([nothing.log(), (1.0 - nothing).log()], -1))
