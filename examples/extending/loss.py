"""A loss of your own: Hybrid Policy Optimization that also charges for large continuous actions.

Each term of ``HPOLoss`` is a method. A subclass overrides one and keeps the others.

python examples/extending/loss.py
hpo-train algorithm.loss._target_=loss.EffortLoss algorithm.loss.effort=0.1   # in this folder
"""

from functools import partial

import torch

from hpo_torchrl import HPO, HPOLoss, HybridPolicy, make_value_network
from hpo_torchrl.problems import SwitchedLQREnv


class EffortLoss(HPOLoss):
    """HPOLoss with ``effort`` times the squared continuous action taken off each reward."""

    def __init__(self, actor_network, critic_network=None, *, effort=0.1, **others):
        super().__init__(actor_network, critic_network, **others)
        self.effort = effort

    def pathwise_term(self, tensordict):
        """Return the rewards less the effort, with the graph of both: ``(*B, T)``."""
        action = tensordict["action", "continuous"]
        return super().pathwise_term(tensordict) - self.effort * action.square().mean(-1)


def main(updates: int = 30) -> dict[float, float]:
    """Train with and without a charge; return the mean squared action of the last batch."""
    sizes = {}
    for effort in (0.0, 1.0):
        torch.manual_seed(0)
        env = SwitchedLQREnv.from_recipe(2, 2, horizon=10, batch_size=64, seed=0)
        policy, critic = HybridPolicy.for_env(env), make_value_network(env)
        hpo = HPO(env, policy, critic, seed=0, loss=partial(EffortLoss, effort=effort))
        for _ in range(updates):
            hpo.iterate()
        sizes[effort] = float(hpo.last_batch["action", "continuous"].square().mean())
        print(f"effort {effort}: mean squared action {sizes[effort]:.3f}")
    return sizes


if __name__ == "__main__":
    main()
