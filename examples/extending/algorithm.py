"""An algorithm of your own: one step of the mixed gradient on each batch, and nothing else.

``Learner`` has the collector, the optimizer and its schedules, the reward scale and advantages.

python examples/extending/algorithm.py
hpo-train algorithm._target_=algorithm.OneStep algorithm.cross_term=false     # in this folder
"""

from dataclasses import dataclass

import torch

from hpo_torchrl import HPOLoss, HybridPolicy, make_value_network
from hpo_torchrl.algorithms import Learner
from hpo_torchrl.problems import InventoryEnv


@dataclass(kw_only=True, eq=False, repr=False)
class OneStep(Learner):
    """Collect a differentiable rollout, make one step on it, throw it away.

    Args:
        cross_term: whether the loss has the cross term.
    """

    differentiable = True  # rollouts keep the simulator's graph

    cross_term: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.loss = HPOLoss(self.policy, self.critic, cross_term=self.cross_term, clip_epsilon=None)

    def update(self, batch):
        """Add advantages to the batch, descend, and return what is worth logging."""
        metrics, _ = self.prepare(batch)
        return self.numbers(metrics | self.optimization.step(self.loss(batch)))


def main(updates: int = 60) -> dict[str, float]:
    """Train on a single item; return the cost of the first and the last batch."""
    torch.manual_seed(0)
    env = InventoryEnv(batch_size=64, initial_state="random", seed=0)
    learner = OneStep(env, HybridPolicy.for_env(env), make_value_network(env), seed=0)
    costs = []
    for update in range(updates):
        learner.anneal(update / updates)
        costs.append(learner.iterate()["cost"])
    print(f"cost per period: {costs[0]:.1f} at first, {costs[-1]:.1f} at last")
    return {"first": costs[0], "last": costs[-1]}


if __name__ == "__main__":
    main()
