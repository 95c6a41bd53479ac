"""A policy network of your own: linear, and for many items the same weights for each of them.

A network maps the observation to ``(logits, loc, scale)``; ``HybridPolicy`` does the rest.

python examples/extending/network.py
hpo-train policy.network._target_=network.SharedNetwork env.num_items=3       # in this folder
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_torchrl import HPO, HybridPolicy, make_value_network
from hpo_torchrl.problems import InventoryEnv


class SharedNetwork(nn.Module):
    """One linear map, shared by all items, for the quantities; their mean for the choice.

    Args:
        observation_dim: length of the observation: k entries for each of n items.
        num_discrete: number M of discrete actions.
        continuous_dim: number n of items.
        action_scale: natural size of each quantity, ``(n,)``.
        dtype: of the weights.
        others: what else ``HybridPolicy.for_env`` offers: bounds, heads and device.
    """

    def __init__(
        self, observation_dim, num_discrete, continuous_dim, *, action_scale, dtype=None, **others
    ):
        super().__init__()
        self.items, self.branches = continuous_dim, num_discrete
        features = observation_dim // continuous_dim
        self.discrete = nn.Linear(features, num_discrete, dtype=dtype)
        self.continuous = nn.Linear(features, num_discrete, dtype=dtype)
        self.register_buffer("unit", action_scale.clone())

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return logits ``(*B, M)``, quantities ``(*B, M, n)`` and no scale: they are not drawn."""
        each = observation.unflatten(-1, (self.items, -1))
        quantity = F.softplus(self.continuous(each)).transpose(-1, -2) * self.unit
        return self.discrete(each.mean(-2)), quantity, None


def main(updates: int = 60) -> dict[str, float]:
    """Train on three items; return the cost of the first and the last batch."""
    torch.manual_seed(0)
    env = InventoryEnv(num_items=3, batch_size=64, initial_state="random", seed=0)
    policy = HybridPolicy.for_env(env, network=SharedNetwork)
    hpo = HPO(env, policy, make_value_network(env), seed=0)
    costs = [hpo.iterate()["cost"] for _ in range(updates)]
    print(f"{sum(p.numel() for p in policy.parameters())} weights")
    print(f"cost per item and period: {costs[0]:.1f} at first, {costs[-1]:.1f} at last")
    return {"first": costs[0], "last": costs[-1]}


if __name__ == "__main__":
    main()
