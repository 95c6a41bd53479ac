"""Measure what a policy costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.collectors import differentiable_rollout
from hpo_torchrl.collectors.episodes import begun, follow
from hpo_torchrl.core.checks import check_choice, check_float, check_int, checked
from hpo_torchrl.core.finite import NonFiniteError, not_finite, spoilt_first
from hpo_torchrl.core.objective import OBJECTIVES, WINDOW, discounted_steps, endings, worded
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.envs import DifferentiableEnv, ReplicatedEnv
from hpo_torchrl.modules.sampler import DISCRETE_LOG_PROB

# What a validation may have otherwise and still be of the same problem.
_SIZES = {"like", "batch_size", "num_steps", "skip", "seed"}
_PIECE = 50  # steps simulated at once
# Share of a discounted return's weights that may lie beyond the last step of a test.
_TAIL = 0.01


class CostEstimate(NamedTuple):
    """Mean cost per unit (item, dimension) and period, and its standard error over instances.

    It is the weighted average cost of a period for the discounted objective, ``1 - discount`` times
    the discounted sum, and the sum of an episode where episodes end by themselves.

    Attributes:
        mean: the cost.
        standard_error: its standard error.
        episode_return: mean sum of the rewards of the first episode of each instance, in the units
            of the environment; ``None`` if one of them had not ended.
        episode_length: mean number of its steps, likewise.
    """

    mean: float
    standard_error: float
    episode_return: float | None = None
    episode_length: float | None = None

    def episode(self) -> dict[str, float]:
        """Return ``"test_return"`` and ``"test_length"``, if episodes have ended."""
        known = {"test_return": self.episode_return, "test_length": self.episode_length}
        return {name: value for name, value in known.items() if value is not None}


class Evaluation:
    """A fixed test: the same initial states and noise for every policy.

    The cost of an env instance is its average over the periods after ``skip``, weighted by the
    discount if there is one; instances are independent, so the spread between them gives the
    standard error. A training run's random numbers stay as they are: the environment has its own
    generator, and a deterministic action needs none.

    Args:
        env: the test environment; its batch size is the number of instances.
        num_steps: periods simulated.
        skip: first periods that are not counted.
        seed: seed of the environment at the start of every run.
        objective: what it measures: ``"average"`` (in the long run: first periods are skipped until
            the start is forgotten), ``"discounted"`` (from the starts), ``"return"`` (of whole
            episodes; where they end by themselves, of the first one) or ``"window"`` (of some
            periods, which is none of these). ``None`` is ``"discounted"`` with a discount,
            ``"return"`` of whole episodes, ``"average"`` where nothing ends and some periods are
            skipped, else ``"window"``. Only costs of the same objective are compared.
        discount: of the discounted objective; ``None`` is 0.99 there.

    Attributes:
        measures: the objective in words.
        per: what the cost is of, a ``"period"`` or an ``"episode"`` that ends by itself.

    Raises:
        ValueError: nothing is left to count, or the steps do not suit the objective.

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
    def __init__(
        self,
        env: EnvBase,
        *,
        num_steps: int,
        skip: int = 0,
        seed: int,
        objective: str | None = None,
        discount: float | None = None,
    ) -> None:
        check_int("num_steps", num_steps, minimum=1)
        check_int("skip", skip, minimum=0)
        check_int("seed", seed, minimum=0)
        if skip >= num_steps:
            raise ValueError(
                f"skip must be below num_steps={num_steps}, got {skip}: no period is counted."
            )
        self.env, self.num_steps, self.skip, self.seed = env, num_steps, skip, seed
        if objective is None and discount is not None:
            objective = "discounted"
        self.objective = self._suited(objective)
        discounted = self.objective == "discounted"
        self.discount = 1.0 if not discounted else 0.99 if discount is None else discount
        check_float("discount", self.discount, minimum=0.0, maximum=1.0, strict=True)
        if discount is not None and (not discounted or discount == 1.0):
            raise ValueError(
                f"A test with objective={self.objective!r} and discount={discount:g}: only "
                "'discounted' has a discount, which is below 1; leave one of the two out."
            )
        episode, _ = endings(env)
        if discounted and not episode and num_steps < discounted_steps(self.discount, _TAIL):
            raise ValueError(
                f"num_steps must be at least {discounted_steps(self.discount, _TAIL)} for a return "
                f"discounted by {self.discount:g}, got {num_steps}: what comes later has weight."
            )
        # Of episodes that end by themselves, and of discounted ones, the first alone is counted.
        self._once = discounted or (self.objective == "return" and not episode)
        self.per = "episode" if self._once and not discounted else "period"
        self.measures = worded(self.objective, self.discount)
        if self.objective == WINDOW:
            self.measures = f"a window of {num_steps - skip} periods"
            self.measures += f" after the first {skip}" if skip else ""

    def _suited(self, objective: str | None) -> str:
        """Return what so many steps of the environment can measure; refuse what they cannot."""
        episode, continuing = endings(self.env)
        horizon = getattr(plain(self.env), "horizon", None)
        uncut = horizon is None or self.num_steps <= horizon
        whole = self.skip == 0 and (not episode or self.num_steps % episode == 0)
        suits = {
            "average": (uncut and not episode, "no episode that ends, and no restart on the way"),
            "discounted": (self.skip == 0 and (episode or uncut), "skip=0 and no restart"),
            "return": (whole and not continuing, "skip=0 and whole episodes"),
            WINDOW: (True, ""),
        }
        if objective is None:
            # Episodes that end by themselves are whole within their time limit.
            limited = not continuing and horizon is not None and self.num_steps >= horizon
            if whole and (episode or limited):
                return "return"
            return "average" if continuing and uncut and self.skip else WINDOW
        fits, needed = suits[check_choice("objective", objective, (*OBJECTIVES, WINDOW))]
        if not fits:
            raise ValueError(
                f"A test with objective={objective!r} needs {needed}, got num_steps="
                f"{self.num_steps}, skip={self.skip} and horizon={horizon}; choose these "
                f"otherwise, or objective={WINDOW!r}, whose cost is compared with no optimum."
            )
        return objective

    def run(self, policy: Any, *, sampled: bool = False) -> Any:
        """Simulate the policy and return its cost.

        Args:
            sampled: draw the actions of a hybrid policy, by random numbers of the test's seed, as
                training does; by default they are the most probable ones.
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
            return self._one(policy, sampled=sampled)
        if not isinstance(env, DifferentiableEnv) or not env.counts_steps:
            # When episodes end depends on what a policy does, and so would the draws that follow.
            return [self._one(member, at, sampled) for at, member in enumerate(policy.members)]
        for at, member in enumerate(policy.members):
            _check_weights(member, at)
        found = self._cost(ReplicatedEnv(env, number), policy, sampled)
        return [_estimate(*rows) for rows in zip(*found, strict=True)]

    def _one(self, policy: Any, at: int | None = None, sampled: bool = False) -> CostEstimate:
        """Test one policy, that of a seed."""
        try:
            _check_weights(policy, at)
            return _estimate(*self._cost(self.env, policy, sampled))
        except NonFiniteError as error:
            error.seed_index = at
            raise

    def _cost(self, env: EnvBase, policy: Any, sampled: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return of every instance the cost per unit and period, and the first episode's return
        and length, NaN where it has not ended: each of the batch shape.
        """
        if sampled:
            number, own = getattr(policy, "num_seeds", None), policy.randomness
            seeds = self.seed if number is None else [self.seed] * number
            policy.randomness = Randomness(seeds, env.device)
            try:
                with set_exploration_type(ExplorationType.RANDOM):
                    return self._simulated(env, policy)
            finally:
                policy.randomness = own
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            return self._simulated(env, policy)

    def _simulated(self, env: EnvBase, policy: Any) -> tuple[Tensor, Tensor, Tensor]:
        env.set_seed(self.seed)
        total = torch.zeros(env.batch_size, dtype=torch.float64, device=env.device)
        times = torch.arange(self.num_steps, dtype=torch.float64, device=env.device)
        weights = self.discount**times * (times >= self.skip)
        over = torch.zeros(env.batch_size, dtype=torch.bool, device=env.device)
        running, firsts = begun(env), torch.full((2, total.numel()), math.nan).to(total)
        state = env.reset()
        with torch.no_grad():
            for start, steps in self.pieces():
                piece = differentiable_rollout(env, policy, steps, tensordict=state)
                reward = piece.get(("next", "reward")).squeeze(-1)
                counted = weights[start : start + steps]
                if self._once:
                    done = piece.get(("next", "done")).squeeze(-1)
                    counted = counted * ~(over.unsqueeze(-1) | (done.cumsum(-1) > done.int()))
                    over = over | done.any(-1)
                total -= (counted * reward.double()).sum(-1)
                _check(env, policy, piece, total)
                running, ended = follow(running, reward.unsqueeze(-1), piece["next", "done"])
                at, *facts = ended.first()
                fresh = firsts[0, at].isnan()
                firsts[:, at[fresh]] = torch.stack(facts)[:, fresh]
                if self._once and bool(over.all()):
                    break  # what comes later is not counted
                state = env.maybe_reset(env.step_mdp(piece[..., -1].copy()))
        periods = 1.0 if self.per == "episode" else weights.sum()
        cost = total / (periods * getattr(plain(env), "cost_units", 1.0))
        totals, lengths = firsts.reshape(2, *cost.shape)
        return cost, totals, lengths

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield the first step and the length of pieces that keep memory flat in a long test."""
        for start in range(0, self.num_steps, _PIECE):
            yield start, min(_PIECE, self.num_steps - start)

    def rollouts(self, policy: Any) -> Iterator[tuple[TensorDictBase, Tensor]]:
        """Yield the test of a policy piece by piece: its steps ``(*B, T)``, and their noise.

        Args:
            policy: the policy or rule; its actions are the most probable ones.
        """
        env = self.env
        env.set_seed(self.seed)
        state = env.reset()
        for _, steps in self.pieces():
            noise = env.sample_noise(steps, state.select(*env.state_names).to_dict())
            with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
                run = differentiable_rollout(env, policy, steps, tensordict=state, noise=noise)
                state = env.maybe_reset(env.step_mdp(run[..., -1].copy()))
            yield run, noise

    def reference(self) -> Reference:
        """Return what the best policy costs here, where the environment knows it."""
        known = getattr(plain(self.env), "reference", None)
        return Reference() if known is None else known(self)


def validates_primary(evaluation: Mapping[str, Any]) -> bool:
    """Whether the validation is the primary test with other sizes, so that their costs compare.

    Args:
        evaluation: the section of a configuration.

    Examples:
        >>> from hpo_torchrl.training.evaluation import validates_primary
        >>> validates_primary({"primary": "long", "validation": {"like": "long", "num_steps": 30}})
        True
        >>> validates_primary({"primary": "long", "validation": {"like": "dev"}})
        False
    """
    primary, own = evaluation.get("primary", "test"), evaluation.get("validation", {})
    return bool(own.get("like", primary) == primary and {*own} <= _SIZES)


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


def _estimate(cost: Tensor, *first: Tensor) -> CostEstimate:
    cost = cost.flatten()
    error = cost.std() / cost.numel() ** 0.5 if cost.numel() > 1 else torch.tensor(math.nan)
    means = [float(facts.mean()) for facts in first]
    whole = [None if math.isnan(mean) else mean for mean in means]
    return CostEstimate(float(cost.mean()), float(error), *whole)
