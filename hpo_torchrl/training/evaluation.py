"""Measure what a policy costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.core.checks import check_int, checked
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.envs import DifferentiableEnv, ReplicatedEnv

_PIECE = 50  # steps simulated at once


class CostEstimate(NamedTuple):
    """Mean cost per unit (item, dimension) and period, and its standard error over instances."""

    mean: float
    standard_error: float


class Evaluation:
    """A fixed test: the same initial states and noise for every policy, discrete actions by argmax.

    The cost of an env instance is its average over the periods after ``skip``; instances are
    independent, so the spread between them gives the standard error. A training run's random
    numbers stay as they are: the environment has its own generator, and a deterministic action
    needs none.

    Args:
        env: the test environment; its batch size is the number of instances.
        num_steps: periods simulated.
        skip: first periods that are not counted.
        seed: seed of the environment at the start of every run.

    Raises:
        ValueError: nothing is left to count.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> from hpo_torchrl.training import Evaluation
        >>> env = InventoryEnv(batch_size=64)
        >>> test = Evaluation(env, num_steps=100, skip=16, seed=0)
        >>> policy = HybridPolicy.for_env(env)
        >>> test.run(policy) == test.run(policy)
        True
    """

    @checked
    def __init__(self, env: EnvBase, *, num_steps: int, skip: int = 0, seed: int) -> None:
        check_int("num_steps", num_steps, minimum=1)
        check_int("skip", skip, minimum=0)
        check_int("seed", seed, minimum=0)
        if skip >= num_steps:
            raise ValueError(
                f"skip must be below num_steps={num_steps}, got {skip}: no period is counted."
            )
        self.env, self.num_steps, self.skip, self.seed = env, num_steps, skip, seed

    def run(self, policy: Any) -> Any:
        """Simulate the policy and return its cost.

        Args:
            policy: the policy; one of several seeds (``policy.num_seeds``) is tested with all seeds
                side by side, which face the same world as each would alone.

        Returns:
            A :class:`CostEstimate`, or a list with one for each seed if there are several.
        """
        number, env = getattr(policy, "num_seeds", None), self.env
        if number is None:
            return _estimate(self._cost(env, policy))
        if not isinstance(env, DifferentiableEnv) or not env.counts_steps:
            # When episodes end depends on what a policy does, and so would the draws that follow.
            return [self.run(member) for member in policy.members]
        return [_estimate(cost) for cost in self._cost(ReplicatedEnv(env, number), policy)]

    def _cost(self, env: EnvBase, policy: Any) -> Tensor:
        """Return the cost per unit and period of every instance, of the batch shape."""
        env.set_seed(self.seed)
        total = torch.zeros(env.batch_size, dtype=torch.float64, device=env.device)
        state = env.reset()
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            # Pieces keep memory flat however long the run is.
            for start in range(0, self.num_steps, _PIECE):
                steps = min(_PIECE, self.num_steps - start)
                piece = differentiable_rollout(env, policy, steps, tensordict=state)
                reward = piece.get(("next", "reward")).squeeze(-1)
                total -= reward[..., max(0, self.skip - start) :].double().sum(-1)
                state = env.maybe_reset(env.step_mdp(piece[..., -1].copy()))
        return total / ((self.num_steps - self.skip) * getattr(plain(env), "cost_units", 1.0))

    def reference(self) -> Reference:
        """Return what the best policy costs here, where the environment knows it."""
        known = getattr(plain(self.env), "reference", None)
        return Reference() if known is None else known(self)


def _estimate(cost: Tensor) -> CostEstimate:
    cost = cost.flatten()
    error = cost.std() / cost.numel() ** 0.5 if cost.numel() > 1 else torch.tensor(math.nan)
    return CostEstimate(float(cost.mean()), float(error))
