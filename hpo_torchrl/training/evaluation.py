"""Measure what a policy costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.core.checks import check_int
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.envs import DifferentiableEnv
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
        >>> from hpo_torchrl.problems import InventoryEnv
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
        env = self.env

        def roll(state: Any, steps: int) -> TensorDictBase:
            return differentiable_rollout(env, policy, steps, tensordict=state)

        def carry(window: TensorDictBase) -> Any:
            return env.maybe_reset(env.step_mdp(window[..., -1].copy()))

        env.set_seed(self.seed)
        return _estimate(self._cost(env.reset(), env.batch_size, roll, carry))

    def reference(self) -> Reference:
        """Return what the best policy costs here, where the environment knows it."""
        known = getattr(self.env, "reference", None)
        return Reference() if known is None else known(self)

    def run_all(self, policies: Sequence[HybridPolicy]) -> list[CostEstimate]:
        """Simulate policies of one structure side by side and return the cost of each.

        They face the same world, as each would alone. Where that world depends on what a policy
        did (noise that is drawn for a state, episodes that end in a way of their own), each is
        simulated by itself instead.

        Args:
            policies: the policies; the environment must be a :class:`DifferentiableEnv`.

        Returns:
            What :meth:`run` returns of each, up to rounding.
        """
        if isinstance(self.env, DifferentiableEnv) and self.env.counts_steps:
            with contextlib.suppress(_WorldsPartError):
                return self._side_by_side(policies)
        return [self.run(policy) for policy in policies]

    def _side_by_side(self, policies: Sequence[HybridPolicy]) -> list[CostEstimate]:
        """Do what :meth:`run_all` does, as far as the policies face the same noise."""
        number, policy = len(policies), ModuleStack(policies).module
        worlds = shared_world(self.env, number)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            sample = policy.sampler()

        def act(carried: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
            draw = sample(carried["observation"], policy.mask_of(carried))
            return {"discrete": draw.discrete, "continuous": draw.continuous}

        def roll(state: Any, steps: int) -> TensorDictBase:
            asked = _Asked({key: state[key][0] for key in self.env.state_names})
            noise = self.env.sample_noise(steps, asked)
            # A function of what it was told, which all must have been told alike.
            if any(bool((state[key] != state[key][:1]).any()) for key in asked.names):
                raise _WorldsPartError
            return worlds.rollout(act, state, repeated(noise, number))

        self.env.set_seed(self.seed)
        start = self.env.reset()
        state = {key: repeated(start.get(key), number) for key in worlds.names}
        costs = self._cost(state, worlds.batch_size, roll, worlds.carry)
        return [_estimate(cost) for cost in costs.unbind(0)]

    def _cost(
        self,
        state: Any,
        shape: torch.Size,
        roll: Callable[[Any, int], TensorDictBase],
        carry: Callable[[TensorDictBase], Any],
    ) -> Tensor:
        """Return the cost per unit and period of each system, of the batch shape.

        Args:
            state: where the systems start.
            shape: their batch shape.
            roll: from a state and a number of steps to a rollout.
            carry: from a rollout to the state in which the next one starts.
        """
        total = torch.zeros(shape, dtype=torch.float64, device=self.env.device)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            # Windows keep memory flat however long the run is.
            for start in range(0, self.num_steps, _WINDOW):
                window = roll(state, min(_WINDOW, self.num_steps - start))
                reward = window.get(("next", "reward")).squeeze(-1)
                total -= reward[..., max(0, self.skip - start) :].double().sum(-1)
                state = carry(window)
        units = getattr(self.env, "cost_units", 1.0)
        return total / ((self.num_steps - self.skip) * units)


class _Asked(Mapping[str, Tensor]):
    """A state that remembers the names of the entries that were asked for."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        value = self._state[name]
        self.names.add(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


class _WorldsPartError(Exception):
    """The noise is drawn for states that policies have brought about."""


def _estimate(cost: Tensor) -> CostEstimate:
    cost = cost.flatten()
    error = cost.std() / cost.numel() ** 0.5 if cost.numel() > 1 else torch.tensor(float("nan"))
    return CostEstimate(float(cost.mean()), float(error))


def evaluate(
    env: EnvBase, policy: HybridPolicy, num_steps: int, *, skip: int = 0, seed: int = 0
) -> CostEstimate:
    """Simulate a policy once and return its cost; arguments as for :class:`Evaluation`."""
    return Evaluation(env, num_steps=num_steps, skip=skip, seed=seed).run(policy)


def reference_cost(env: EnvBase, *, seed: int = 0, num_steps: int = 1, skip: int = 0) -> Reference:
    """Return what the best policy costs in an environment; arguments as for :class:`Evaluation`."""
    return Evaluation(env, num_steps=num_steps, skip=skip, seed=seed).reference()
