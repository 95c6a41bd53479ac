"""Measure what a policy costs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl._checks import check_int
from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.modules import HybridPolicy

_WINDOW = 50


class CostEstimate(NamedTuple):
    """Mean cost per unit (item, dimension) and period, with its standard error over systems."""

    mean: float
    standard_error: float


class Evaluation:
    """A fixed test: the same initial states and noise for every policy, options by argmax.

    The cost of a system is its average over the periods after ``skip``; systems are independent,
    so the spread between them gives the standard error. No random number of a training run is
    touched: the environment has its own generator and acting deterministically needs none.

    Args:
        env: the test environment; its batch size is the number of systems.
        num_steps: periods simulated.
        skip: first periods that are not counted.
        seed: seed of the environment at the start of every run.

    Raises:
        ValueError: nothing is left to count.

    Examples:
        >>> from hpo_torchrl.envs import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> from hpo_torchrl.training import Evaluation
        >>> env = InventoryEnv(batch_size=64)
        >>> test = Evaluation(env, num_steps=100, skip=16, seed=0)
        >>> policy = HybridPolicy.for_env(env)
        >>> test.run(policy) == test.run(policy)
        True
    """

    def __init__(self, env: EnvBase, *, num_steps: int, skip: int = 0, seed: int) -> None:
        check_int("num_steps", num_steps, minimum=1)
        check_int("skip", skip, minimum=0)
        if skip >= num_steps:
            raise ValueError(
                f"skip must be below num_steps={num_steps}, got {skip}: no period is counted."
            )
        self.env, self.num_steps, self.skip, self.seed = env, num_steps, skip, seed

    def run(self, policy: HybridPolicy) -> CostEstimate:
        """Simulate the policy and return its cost."""
        self.env.set_seed(self.seed)
        total = torch.zeros(self.env.batch_size, dtype=torch.float64, device=self.env.device)
        state = self.env.reset()
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            # Windows keep memory flat however long the run is.
            for start in range(0, self.num_steps, _WINDOW):
                steps = min(_WINDOW, self.num_steps - start)
                window = differentiable_rollout(self.env, policy, steps, tensordict=state)
                reward = window.get(("next", "reward")).squeeze(-1)
                total -= reward[..., max(0, self.skip - start) :].double().sum(-1)
                state = self.env.maybe_reset(self.env.step_mdp(window[..., -1].copy()))
        units = getattr(self.env, "cost_units", 1.0)
        cost = total.flatten() / ((self.num_steps - self.skip) * units)
        error = cost.std() / cost.numel() ** 0.5 if cost.numel() > 1 else torch.tensor(float("nan"))
        return CostEstimate(float(cost.mean()), float(error))


def evaluate(
    env: EnvBase, policy: HybridPolicy, num_steps: int, *, skip: int = 0, seed: int = 0
) -> CostEstimate:
    """Simulate a policy once and return its cost; arguments as for :class:`Evaluation`."""
    return Evaluation(env, num_steps=num_steps, skip=skip, seed=seed).run(policy)
