"""Hybrid Policy Optimization: collect differentiable rollouts, update by mixed gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from hpo_torchrl.algorithms.base import Metrics, SeedState
from hpo_torchrl.algorithms.fused import FusedSteps, computable
from hpo_torchrl.algorithms.learner import setting
from hpo_torchrl.algorithms.pathwise import GraphLearner
from hpo_torchrl.algorithms.ppo import PassLearner
from hpo_torchrl.collectors import branched_returns
from hpo_torchrl.collectors.compiling import Scanned
from hpo_torchrl.collectors.inputs import is_functional
from hpo_torchrl.core import ranks
from hpo_torchrl.core.categorical import (
    ACTION_KEYS,
    ACTION_MASK,
    all_fixed,
    divergence_of,
    finite,
    insert_like,
    unsqueeze_like,
)
from hpo_torchrl.core.checks import accepted, check_int
from hpo_torchrl.core.objective import FEW_DIMENSIONS
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.modules import HybridNetwork

# Steps of a branch, and discrete actions up to which all are simulated.
_STEPS, _FEW_ACTIONS = 20, 8
# Learning rates by which the continuous net may learn where an update moves it less than it should:
# it makes one step in an update, the discrete net a pass of many.
_LONGEST = 3.0
# A start prefers one of the most used discrete actions by so many nats, down to none in this share
# of its updates. Fewer updates than these do not tell which start is best.
_MOST_PREFERRED, _PREFERENCE, _WEARS_OFF, _SHORTEST_START = 2, 3.0, 0.75, 50


@dataclass(kw_only=True, eq=False, repr=False)
class HPO(GraphLearner, PassLearner):
    r"""Hybrid Policy Optimization (Alvo, Russo & Kanoria 2026, arXiv 2605.14297).

    An update of one batch of differentiable rollouts:

    1. rewards on one running scale; advantages and value targets by GAE on detached data;
    2. one full-batch step on pathwise + cross + score-function + critic + entropy: the graph is
       used exactly once;
    3. ``epochs`` of minibatches on detached data: clipped score function, critic and entropy,
       stopped early when the policy has changed by ``target_kl``.

    With ``branch_steps`` above 0 every discrete action is simulated from some of the states, with
    common random numbers (:func:`~hpo_torchrl.collectors.branched_returns`), and the score function
    gives way to a regression of the discrete net's advantages on these estimates
    (``score_function="regression"`` of :class:`HPOLoss`): steps 2 and 3 have no entropy, clipping
    and early stop. The policy is the softmax of these advantages, at a temperature that falls from
    the spread of the estimates. Where the environment has an opposite of its noise
    (:meth:`DifferentiableEnv.opposite_noise`), an estimate is the mean of both.

    With heads the discrete actions of each head are simulated beside those that the other heads
    took, and the score function takes their expectation instead of the ones that were taken; so it
    does in a single choice with ``regress=False``. The entropy bonus then falls by a geometric
    schedule, from ``entropy_coeff`` to ``temperature_final`` differences between the best discrete
    action and the second. A policy that is homogeneous (:class:`HybridNetwork`) is told these
    values in units of the squared size of the state, so that small states count as much.

    With ``seed`` a sequence, the seeds are trained together; see :class:`Learner`.

    Args:
        env: the training environment: a :class:`DifferentiableEnv`, or any ``EnvBase`` whose step
            keeps the graph.
        policy: the hybrid policy.
        critic: the value network.
        loss: loss class, or callable ``(policy, critic, **coefficients)`` that returns a
            ``LossModule``. It is built twice, for step 2 and (with ``pathwise`` and ``cross_term``
            ``False``) for step 3, each time from those of the coefficients ``pathwise``,
            ``cross_term``, ``clip_epsilon``, ``critic_coeff``, ``entropy_coeff`` and ``functional``
            that it takes. Batches hold ``"advantage"`` and ``"value_target"``; what the loss
            returns under ``loss_*`` is summed, the rest is logged.
        cross_term: whether continuous actions are credited for the later discrete actions they
            cause: ``True``, ``False`` or ``"adaptive"``, see :class:`HPOLoss`.
        critic_coeff: weight of the critic's loss.
        clip_epsilon: clipping range of the ratio of discrete probabilities; ``None`` is off.
        epochs: passes over the detached data per update; 0 makes step 2 the whole update.
        num_minibatches: minibatches in a pass.
        target_kl: KL divergence of the discrete choice that an update aims at. The update stops
            early beyond it, and the discrete net's learning-rate multiplier follows it: where
            the observation has many entries, the same step changes the choice much more.
        target_action_change: root mean square change of the continuous action's mean, in action
            scales, that an update aims at; the continuous net's multiplier follows it.
        branch_steps: steps of a simulation of a discrete action, after which the critic's value is
            added; 0 keeps the score function. ``None`` is 20 (10 with opposite noise, which is
            simulated too) where the environment is functional and has 2 to 8 discrete actions, in
            one choice, and up to 4 continuous coordinates; else 0. With all steps of whole
            episodes of no more steps, branches go on to their end, for half the work.
        branch_fraction: share of the steps of a batch from which all discrete actions are tried.
        regress: whether advantages are regressed on what was simulated; ``False`` scores its
            expectation. ``None`` regresses a single choice; of heads it cannot be ``True``.
        temperature_final: temperature at the end, in units of the median difference between the
            advantages of the best discrete action and the second.
        temperature_until: fraction of the run by which it is reached.
        explore_fraction: share of the instances, where all discrete actions are simulated, that
            starts a batch from a state of the one before by a random discrete action, see
            :class:`DifferentiableCollector`. A simulation is worth what its continuous action is,
            which pathwise gradients teach only where the discrete one is taken.
        start_fraction: fraction of the run after which it is tried from several starts, where all
            discrete actions are simulated; 0 has one start. Each is a run in little, whose
            schedules end with it. The first prefers no discrete action, so that continuous actions
            are at first those that suit a random choice; the others go on from the best before, and
            prefer one of the two most used discrete actions, 20 to 1 at first and ever less.
        turns: number of turns that the continuous and the discrete net take, in this order, over
            the run (the paper's decentralised schedule); 0 lets both learn in every update.
        learner: further arguments, of :class:`Learner`.

    Raises:
        ValueError: an argument is out of range, or the policy does not fit the environment.

    Examples:
        >>> from hpo_torchrl.algorithms import HPO
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> env = InventoryEnv(batch_size=16, initial_state="random", seed=0)
        >>> hpo = HPO(env, HybridPolicy.for_env(env), make_value_network(env), unroll_length=20)
        >>> sorted(hpo.iterate())[:3]
        ['action_change', 'advantage_fit', 'cost']
    """

    cross_term: bool | str = True
    clip_epsilon: float | None = 0.2
    epochs: int = setting(2, check_int)
    target_kl: float = setting(0.015, strict=True)
    target_action_change: float = setting(0.1, strict=True)
    branch_steps: int = setting(None, check_int)
    branch_fraction: float = setting(0.25, maximum=1.0, strict=True)
    regress: bool | None = None
    temperature_final: float = setting(0.02, strict=True)
    temperature_until: float = setting(0.8, maximum=1.0, strict=True)
    explore_fraction: float = setting(0.25, maximum=1.0)
    start_fraction: float = setting(0.15, maximum=1.0)
    turns: int = setting(0, check_int)

    cooled = 0.0  # share of the cooling that is over
    resting: str | None = field(default=None, init=False)  # the net whose turn it is not
    # Whether this is a start; the preference that it began with; the actions to prefer, in order.
    starting = False
    wish: Any = field(default=None, init=False)
    most_used: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        own = getattr(self.policy.network, "action_scale", None)
        scale = getattr(self.env, "action_scale", 1.0) if own is None else own
        self.action_scale: Any = scale
        if self.turns and not {"discrete", "continuous"} <= {*self.optimization.groups}:
            raise ValueError(
                f"turns={self.turns} needs parameters of the discrete action alone and others, but "
                f"the policy has {sorted(self.policy.parameter_groups())}; leave turns at 0."
            )
        if self.branches and self.single:
            self.collector.explore_fraction = self.explore_fraction
        if self.evaluations is not None and computable(self.detached_loss):
            self.fused_steps = FusedSteps(self, self.detached_loss, self.collector.compiled)
        if self.regresses and "discrete" in self.optimization.groups:
            for group in self.optimization.param_groups("discrete"):
                group["lr_multiplier"] = 1.0

    @property
    def branches(self) -> bool:
        """Whether every discrete action is simulated."""
        return self.branch_steps > 0

    @property
    def regresses(self) -> bool:
        """Whether advantages are regressed on what was simulated."""
        return self.branches and self.single and self.regress is not False

    @property
    def single(self) -> bool:
        """Whether a step has one discrete choice, not one of each head."""
        return getattr(self.env, "num_heads", None) is None

    def _choose_branch_steps(self) -> int:
        """Return the steps of a branch; 0 by default where the choice is rather scored."""
        env: Any = self.env
        if self.regress and not self.single:
            raise ValueError(
                f"regress=True is of a single choice, but the environment has {env.num_heads} "
                "heads; leave algorithm.regress null."
            )
        regresses = self.single and self.regress is not False
        lacks = {
            "a functional environment and policy": is_functional(env, self.policy),
            f"2 to {_FEW_ACTIONS} discrete actions": 1
            < getattr(env, "num_discrete", 0)
            <= _FEW_ACTIONS,
            "a HybridNetwork, which has a temperature": not regresses
            or hasattr(self.policy.network, "temperature"),
            "a loss that takes score_function='regression'": "score_function"
            in accepted(self.loss),
        }
        missing = [name for name, there in lacks.items() if not there]
        if self.branch_steps is None:
            few = self.single and getattr(env, "continuous_dim", 0) <= FEW_DIMENSIONS
            if missing or not few:
                return 0
            # A noise and its opposite are twice the work.
            some = torch.zeros(*env.batch_size, 1, *env.noise_shape, device=env.device)
            return _STEPS if env.opposite_noise(some) is None else _STEPS // 2
        if getattr(env, "num_discrete", 0) == 1:  # nothing to choose
            return 0
        if self.branch_steps > 0 and missing:
            raise ValueError(
                f"branch_steps={self.branch_steps} simulates every discrete action, which needs "
                f"{missing[0]}; set algorithm.branch_steps=0, or leave it null."
            )
        return self.branch_steps

    def build_losses(self) -> None:
        """Build the loss of the differentiable step and that of the detached passes."""
        self.branch_steps = self._choose_branch_steps()
        names = ("clip_epsilon", "critic_coeff")
        others = {"score_function": "regression" if self.regresses else True}
        none = {"pathwise": False, "cross_term": False}
        self.detached_loss = self.build_loss(*names, **none, **others)
        # Nothing is differentiable in a choice that leaves no continuous action.
        if all_fixed(getattr(plain(self.env), "branch_bounds", None)):
            self.loss = self.build_loss(*names, **none, **others)
        else:
            self.loss = self.build_loss(*names, "cross_term", **others)

    def anneal(self, progress: float) -> None:
        """Anneal the temperature too, and the preference of a start, which is a run in little."""
        if self.starting:
            progress = min(1.0, progress / self.start_fraction)
        super().anneal(progress)
        if self.turns:
            self.resting = ("discrete", "continuous")[int(progress * self.turns) % 2]
        self.cooled = min(1.0, progress / self.temperature_until)
        if self.branches and not self.regresses:
            final = self.temperature_final
            first = self.first_bonus(final)
            self.entropy_bonus = first ** (1.0 - self.cooled) * final**self.cooled
            for loss in (self.loss, self.detached_loss):
                loss.entropy_coeff = self.entropy_bonus
        if self.wish is not None:
            preference: Any = self.policy.network.preference
            preference.copy_(self.wish * max(0.0, 1.0 - progress / _WEARS_OFF))

    def starts(self, num_updates: int) -> tuple[int, int]:
        """Return from how many starts a run may choose, and after how many updates it does."""
        updates = round(self.start_fraction * num_updates)
        if not self.regresses or updates < _SHORTEST_START:
            return 1, 0
        return 1 + min(self.env.num_discrete, _MOST_PREFERRED), updates

    def begin(self, start: int | None) -> Metrics | list[Metrics]:
        """Prefer no discrete action at first, then one after another of the most used ones.

        Args:
            start: its number; ``None`` is the run itself, which prefers none.

        Returns:
            The action that is preferred, -1 for none.
        """
        self.starting = start is not None
        preference: Any = self.policy.network.preference
        first = 0 if self.num_seeds is None else 1
        if start == 1:
            last: Any = self.last_batch
            used = F.one_hot(last["action", "discrete"], preference.shape[-1])
            used = ranks.total(used.flatten(first, -2).sum(first))
            self.most_used = used.sort(dim=-1, descending=True, stable=True).indices
        preferred = torch.full(preference.shape[:-1], -1, device=preference.device)
        self.wish = torch.zeros_like(preference)
        if start:
            preferred = self.most_used[..., start - 1]
            self.wish.scatter_(-1, preferred.unsqueeze(-1), _PREFERENCE)
        preference.copy_(self.wish)
        return self.numbers({"preferred_action": preferred})

    def update(self, batch: TensorDictBase) -> Metrics | list[Metrics]:
        """Do one update.

        The batch's graph is consumed, its rewards are rescaled, and advantages and value targets
        are added to it.
        """
        metrics, data = self.prepare(batch)
        if (forced := self.collector.forced) is not None:
            # The value of a state is not that of an action which the policy did not choose.
            value, target = data["state_value"], data["value_target"].clone()
            target[..., 0, :] = value[..., 0, :].where(forced.unsqueeze(-1), target[..., 0, :])
            for place in (batch, data):
                place.set("value_target", target)
        spread = self._branch(batch, data) if self.branches else None
        # A deterministic action is its own mean.
        mean = self._mean_action(data) if self.policy.stochastic else data["action", "continuous"]
        before = self._log_probabilities(data)
        metrics |= self.optimization.step(self.terms(batch), resting=self.resting)

        def descend(part: TensorDictBase, active: Tensor) -> dict[str, Tensor]:
            terms = self.detached_loss(part)
            found = self.optimization.step(terms, active, resting=self.resting)
            return {key: found[key] for key in ("clip_fraction",) if key in found}

        def moved(steps: Any = ()) -> Tensor:
            # A regression is no step of a policy, and does not stop early.
            return metrics["cost"] * 0.0 if self.regresses else self._divergence(data, before)

        metrics |= self.passes(
            data.exclude("next"), descend, metrics | {"kl": moved()}, moved, self._fused(data)
        )
        if spread is not None:
            # Not before: a rollout that is computed again needs the one that it was drawn with.
            metrics["temperature"] = self._set_temperature(data, spread)
            metrics["kl"] = self._divergence(data, before)
        change = (self._mean_action(data) - mean) / self.action_scale
        metrics["action_change"] = self.mean(change.square()).sqrt()
        if not self.regresses and self.resting != "discrete":
            # A divergence grows with the square of a step.
            self.optimization.adapt_lr("discrete", (metrics["kl"] / self.target_kl).sqrt())
        if self.resting != "continuous":
            ratio = metrics["action_change"] / self.target_action_change
            self.optimization.adapt_lr("continuous", ratio, _LONGEST)
        return self.numbers(metrics)

    def _fused(self, data: TensorDictBase) -> Any:
        """Return what makes the steps of a pass at once, where XLA takes the rollouts."""
        if self.fused_steps is None or self.fused_steps.remembers(data):
            return None

        def fused(data: TensorDictBase, rows: Tensor, active: Tensor) -> dict[str, Tensor]:
            found = self.fused_steps(data, rows, active, self.resting)
            return {key: found[key] for key in ("clip_fraction",) if key in found}

        return fused

    @torch.no_grad()
    def _branch(self, batch: TensorDictBase, data: TensorDictBase) -> Tensor | None:
        """Simulate every discrete action from some of the states.

        Added to both tensordicts are ``"action_value"``, in the unit of the scaled rewards, and
        ``"branched"``.

        Returns:
            The standard deviation of the estimates around their mean over the discrete actions,
            advantages and their noise together; ``None`` where they are not regressed on.
        """
        env: Any = self.env
        steps, number, heads = data.shape[-1], env.num_discrete, env.num_heads
        chosen = max(1, round(self.branch_fraction * steps))
        times = self.randomness.permutation(steps, data.device)[..., :chosen].sort(-1).values
        choices = (number,) if heads is None else (heads, number)
        values = data["state_value"].new_zeros(*data.shape, *choices)
        branched = torch.zeros(*data.shape, 1, dtype=torch.bool, device=data.device)
        to_end = self._branches_to_the_end(steps, chosen)
        # These are environment steps like any others.
        simulated = number if heads is None else 1 + heads * (number - 1)
        simulated *= steps * (steps + 1) // 2 if to_end else chosen * self.branch_steps
        # The same steps of all instances of a seed.
        place = times.view(*times.shape[:-1], *(1,) * (data.ndim - times.ndim), chosen)
        place = place.expand(*data.shape[:-1], chosen)
        names = (*env.state_names, *env.shown_names, *(() if heads is None else ACTION_KEYS))
        states = data.select(*names).gather(-1, place)
        how: dict[str, Any] = {"gamma": self.discount, "randomness": self.randomness}
        scale = self.scaler.scale.to(values.dtype)
        if not to_end:
            how |= {"critic": self.critic, "num_steps": self.branch_steps, "critic_unit": scale}
        if isinstance(compiled := self.collector.compiled, Scanned):
            how["loop"] = compiled.loop
        # Both ways round, what is linear in the noise cancels.
        faced = self._branch_noise(states, steps if to_end else None)
        ways = [each for each in (faced, env.opposite_noise(faced)) if each is not None]
        found = [branched_returns(env, self.policy, states, way, **how) for way in ways]
        self.collector.frames += ranks.count(len(ways) * simulated * states.shape[:-1].numel())
        mean, time = torch.stack(found).mean(0), data.ndim - 1
        mean = mean / unsqueeze_like(scale, mean)
        values = values.scatter(time, unsqueeze_like(place, mean).expand_as(mean), mean)
        branched = branched.scatter(time, place.unsqueeze(-1), True)
        for place in (batch, data):
            place.update({"action_value": values, "branched": branched})
        if not self.regresses:
            self._add_action_unit(batch, data)
            return None
        # What a masked action would lead to need not make sense.
        allowed = (branched & data.get(ACTION_MASK, branched)).expand_as(values)
        number = allowed.sum(-1, keepdim=True).clamp_min(1)
        mean = values.where(allowed, 0.0).sum(-1, keepdim=True) / number
        spread = (values - mean).where(allowed, 0.0)
        return (self.mean(spread.square()) / self.mean(allowed.to(values.dtype))).sqrt()

    def _branch_noise(self, states: TensorDictBase, num_steps: int | None) -> Tensor:
        """Draw the noise of branches, of each seed by its own environment.

        Args:
            states: where they begin, ``(*B, T')``.
            num_steps: steps of a whole episode, from the first of them; ``None`` is that of each
                state's own branches.
        """
        env: Any = self.env
        members = [env] if self.num_seeds is None else env.members
        rows = [states] if self.num_seeds is None else states.unbind(0)
        drawn = []
        for member, own in zip(cycle(members), rows, strict=False):
            starts = (own if num_steps is None else own[..., :1]).select(*member.state_names)
            number = self.branch_steps if num_steps is None else num_steps
            each = [member.sample_noise(number, start.to_dict()) for start in starts.unbind(-1)]
            drawn.append(
                torch.stack(each, len(member.batch_size)) if num_steps is None else each[0]
            )
        return drawn[0] if self.num_seeds is None else torch.stack(drawn)

    def _add_action_unit(self, *places: TensorDictBase) -> None:
        """Add the unit of ``"action_value"``, the squared size of the state, if policies have one.

        A homogeneous policy chooses alike in states of all sizes: it learns from all alike.
        """
        network: Any = self.policy.network
        if isinstance(network, HybridNetwork) and network.direction.entries:
            for place in places:
                observation = place.get(self.policy.observation_key).detach()
                place.set("action_unit", network.size_of(observation).square())

    def _branches_to_the_end(self, steps: int, chosen: int) -> bool:
        """Whether the branches of whole episodes go on to their end, all in one pass."""
        whole = self.env.horizon == steps and bool(self.reset_at_each_iter)
        return not self.regresses and whole and chosen == steps <= self.branch_steps

    @torch.no_grad()
    def _set_temperature(self, data: TensorDictBase, spread: Tensor) -> Tensor:
        """Cool the policy from the spread of the estimates to where its own advantages decide.

        Args:
            data: the batch.
            spread: what :meth:`_branch` returned.
        """
        network: Any = self.policy.network
        temperature, logits = network.temperature, self._logits(data)
        best = (logits - insert_like(network.preference, logits)).topk(2).values
        gap = best[..., 0] - best[..., 1]
        gap = ranks.gathered(gap, self._instances).flatten(0 if self.num_seeds is None else 1)
        gap = gap.where(gap.isfinite(), torch.nan).nanmedian(-1).values * temperature
        gap = gap.nan_to_num(0.0).clamp_min(1e-6)
        least = self.temperature_final * gap
        temperature.copy_(spread.clamp_min(1e-6) ** (1.0 - self.cooled) * least**self.cooled)
        return temperature.clone()

    def components(self, seed_index: int | None = None) -> dict[str, Any]:
        """Return the components of a learner, and the weight of an adaptive cross term."""
        found = super().components(seed_index)
        weight = getattr(self.loss, "cross_term_weight", None)
        if weight is not None:
            found["cross_term_weight"] = SeedState(weight, seed_index)
        return found

    @torch.no_grad()
    def _mean_action(self, data: TensorDictBase) -> Tensor:
        """The mean of the continuous actions at the discrete ones taken, ``(*B, T, n)``."""

        def mean_action(seen: TensorDictBase) -> Tensor:
            return self.policy.mean_action(seen, seen.get(("action", "discrete")))

        return self.evaluated(mean_action, self._seen(data))

    def _log_probabilities(self, data: TensorDictBase) -> Tensor:
        return finite(self._logits(data))

    @torch.no_grad()
    def _logits(self, data: TensorDictBase) -> Tensor:
        return self.evaluated(self.policy.discrete_logits, self._seen(data))

    def _seen(self, data: TensorDictBase) -> TensorDictBase:
        """Return what the policy reads, and the discrete actions taken."""
        mask = () if self.policy.mask_key is None else (self.policy.mask_key,)
        return data.select(*self.policy.in_keys, *mask, ("action", "discrete"))

    def _divergence(self, data: TensorDictBase, before: Tensor) -> Tensor:
        """Mean KL divergence of today's choice from that before the update."""

        def divergence(seen: TensorDictBase, before: Tensor) -> Tensor:
            now = finite(self.policy.discrete_logits(seen))
            return divergence_of(before, now, seen.ndim)

        found = self.mean(self.evaluated(divergence, self._seen(data), before))
        return found.clamp_min(0.0)  # rounding of equal choices
