"""Measure what a policy costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.core.checks import check_int, checked
from hpo_torchrl.core.finite import NonFiniteError, not_finite, spoilt_first
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.envs import DifferentiableEnv, ReplicatedEnv
from hpo_torchrl.modules.sampler import DISCRETE_LOG_PROB

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

        Raises:
            NonFiniteError: a weight of the policy, what it decides or what that costs is NaN or
                infinite; the message names what was spoilt first.
        """
        number, env = getattr(policy, "num_seeds", None), self.env
        if number is None:
            return self._one(policy)
        if not isinstance(env, DifferentiableEnv) or not env.counts_steps:
            # When episodes end depends on what a policy does, and so would the draws that follow.
            return [self._one(member, at) for at, member in enumerate(policy.members)]
        for at, member in enumerate(policy.members):
            _check_weights(member, at)
        return [_estimate(cost) for cost in self._cost(ReplicatedEnv(env, number), policy)]

    def _one(self, policy: Any, at: int | None = None) -> CostEstimate:
        """Test one policy, that of a seed."""
        try:
            _check_weights(policy, at)
            return _estimate(self._cost(self.env, policy))
        except NonFiniteError as error:
            error.seed_index = at
            raise

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
                _check(env, policy, piece, total)
                state = env.maybe_reset(env.step_mdp(piece[..., -1].copy()))
        return total / ((self.num_steps - self.skip) * getattr(plain(env), "cost_units", 1.0))

    def reference(self) -> Reference:
        """Return what the best policy costs here, where the environment knows it."""
        known = getattr(plain(self.env), "reference", None)
        return Reference() if known is None else known(self)


def _check_weights(policy: Any, at: int | None) -> None:
    """Raise a :class:`NonFiniteError` if a weight of a policy is not finite."""
    if bad := not_finite(dict(getattr(policy, "named_parameters", dict)())):
        raise NonFiniteError(f"The policy's weight {bad} is not finite: it is not tested.", at)


def _check(env: EnvBase, policy: Any, piece: TensorDictBase, total: Tensor) -> None:
    """Raise a :class:`NonFiniteError` if choices or costs of some steps are not finite.

    The choices too: the argmax of NaN is 0, and costs look finite.
    """
    if piece.get(DISCRETE_LOG_PROB, None) is None and hasattr(policy, "discrete_logits"):
        piece.set(DISCRETE_LOG_PROB, policy.discrete_logits(piece)[..., 0])
    score = piece.get(DISCRETE_LOG_PROB, total)
    if bool(total.isfinite().all() & ~score.isnan().any()):
        return
    first = spoilt_first(env, piece, many=isinstance(env, ReplicatedEnv))
    what, at = first or ("the sum of the costs", None)
    raise NonFiniteError(f"{what} is not finite in the test.", at)


def _estimate(cost: Tensor) -> CostEstimate:
    cost = cost.flatten()
    error = cost.std() / cost.numel() ** 0.5 if cost.numel() > 1 else torch.tensor(math.nan)
    return CostEstimate(float(cost.mean()), float(error))
