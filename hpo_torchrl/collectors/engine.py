"""The rollout engine: chunks of steps as pure functions of a state and of random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from torch import Tensor

from hpo_torchrl.collectors.inputs import (
    Entries,
    Inputs,
    check_keeps_graph,
    noise_of,
    policy_noise,
    samples_as_ours,
    steps_of,
)
from hpo_torchrl.core import ranks
from hpo_torchrl.core.categorical import ACTION_KEYS, unsqueeze_like
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.core.rolled import check_unused
from hpo_torchrl.core.wrappers import renew, transforms_of
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.sampling import HybridDraw, Noise, check_mask

_LOG_PROBS = ("action_log_prob", "discrete_log_prob")
_SCORED = ("draw logits", "draw loc", "draw scale")

# From the entries of a step, the environment's noise and the policy's to the draw, and to what
# env.advance returns.
Transition = Callable[..., tuple[HybridDraw, dict[str, Tensor], Tensor, "Tensor | None"]]


def policy_step(env: DifferentiableEnv, policy: HybridPolicy) -> Transition:
    """Return what takes one step by sampling from the policy.

    A value computed once, such as a learned scale, belongs to the graph of one chunk.
    """
    sample = policy.sampler()

    def transition(carried: Entries, noise: Tensor, own: Noise | None) -> tuple:
        draw = sample(carried["observation"], policy.mask_of(carried), own)
        action = {"discrete": draw.discrete, "continuous": draw.continuous}
        return draw, *env.advance(carried, action, noise)

    return transition


@dataclass(eq=False, repr=False)
class Engine:
    """Takes the steps of rollouts: on plain tensors, in chunks, or with any environment.

    Attributes:
        env: the environment.
        policy: the policy.
        discount: factor on the gradient through each transition.
        randomness: where the policy's random numbers come from; ``None`` is ``policy.randomness``.
        make_step: makes what takes one step, of an environment and a policy.
    """

    env: Any
    policy: Any
    discount: float = field(default=1.0, kw_only=True)
    randomness: Randomness | None = field(default=None, kw_only=True)
    make_step: Callable[[Any, Any], Transition] = field(init=False)

    def chunk(
        self, carried: Entries, inputs: Inputs, once: bool
    ) -> tuple[Entries, dict[Any, Tensor]]:
        """Take some steps: a pure function of where they start and of random numbers.

        Args:
            carried: state and observation that the first step starts from.
            inputs: the random numbers.
            once: leave out the states that steps start from: where no instance is reset, they are
                those that the steps before lead to.

        Returns:
            Where the steps lead to, and the entries of each step, stacked.
        """
        env, transition = self.env, self.make_step(self.env, self.policy)
        never = torch.zeros((*env.batch_size, 1), dtype=torch.bool, device=env.device)
        own = steps_of(inputs.policy, len(inputs.noise))
        rows = []
        for noise, drawn, fresh in zip(inputs.noise.unbind(), own, inputs.fresh, strict=True):
            draw, after, reward, over = transition(carried, noise, drawn)
            after |= env.show(after)
            row: dict[Any, Tensor] = {} if once else dict(carried)
            row |= _entries_of(draw, self.policy)
            row |= {("next", key): value for key, value in after.items()}
            row |= {("next", "reward"): reward, ("next", "done"): never if over is None else over}
            rows.append(row)
            carried = {key: _discounted(value, self.discount) for key, value in after.items()}
            if over is None:
                continue
            if fresh is not None and not env.counts_steps:
                fresh = fresh(over) if ranks.anywhere(over) else None
            if fresh is not None:
                carried = {
                    key: torch.where(unsqueeze_like(over, value), fresh[key], value)
                    for key, value in carried.items()
                }
        # Popped, so that what is stacked already is not held twice.
        stacked = {key: torch.stack([row.pop(key) for row in rows]) for key in list(rows[0])}
        return carried, _scored(self.policy, stacked, inputs.policy)

    def finished(self, begin: Entries, pieces: list[dict[Any, Tensor]], once: bool) -> TensorDict:
        """Build the tensordict that ``env.rollout`` would have built.

        Args:
            begin: where the first step started.
            pieces: the entries of chunks of steps, time first; they are emptied.
            once: see :meth:`chunk`.
        """
        # Popped here too.
        stacked: dict[Any, Tensor] = {}
        for name in begin if once else ():
            values = [piece.pop(("next", name)) for piece in pieces]
            states = torch.cat([begin[name].unsqueeze(0), *values])
            stacked[name], stacked["next", name] = _States.apply(states, self.discount)
        for key in list(pieces[0]):
            values = [piece.pop(key) for piece in pieces]
            stacked[key] = values[0] if len(values) == 1 else torch.cat(values)
        del values
        mask = self.policy.mask_of(stacked)
        if mask is not None and mask.device.type == "cpu":  # elsewhere it would wait for the device
            check_mask(mask)
        over = stacked["next", "done"]
        never = torch.zeros_like(over)
        ends = (over, never) if self.env.horizon_terminates else (never, over)
        stacked["next", "terminated"], stacked["next", "truncated"] = ends
        # Whoever was done has been reset, so no step starts in a state that is done.
        stacked |= dict.fromkeys(("done", "terminated", "truncated"), never)
        time = len(self.env.batch_size)
        entries = {key: value.movedim(0, time) for key, value in stacked.items()}
        shape = entries["done"].shape[:-1]
        return TensorDict(entries, shape, device=self.env.device).refine_names(..., "time")

    def general(self, num_steps: int, carried: TensorDictBase, noise: Tensor | None) -> TensorDict:
        """Step any environment; a hybrid policy is sampled as on plain tensors."""
        env, policy = self.env, self.policy
        if isinstance(env, DifferentiableEnv):
            env.load_noise(noise_of(env, carried, num_steps, noise))
        elif noise is not None:
            raise ValueError(
                f"noise can be given only to a DifferentiableEnv; {type(env).__name__} draws its "
                "own."
            )
        drawn = sample = None
        if samples_as_ours(policy):
            drawn = policy_noise(env, policy, num_steps, self.randomness)
            sample = policy.sampler()
        steps: list[TensorDictBase] = []
        rows = []
        with_graph, parts = torch.is_grad_enabled(), transforms_of(env)
        discounted = partial(_discounted, discount=self.discount)
        if with_graph:
            check_keeps_graph(env)
        renew(parts, Tensor.detach, attached=True)
        try:
            for own in steps_of(drawn, num_steps):
                if steps:
                    if with_graph:
                        renew(parts, discounted)
                    carried = env.maybe_reset(env.step_mdp(steps[-1]))
                    if self.discount != 1.0:
                        carried = carried.apply(discounted)
                if with_graph:
                    renew(parts, torch.clone)  # a reset has written to it
                if sample is None:
                    carried = policy(carried)
                else:
                    if policy.memory is not None:
                        carried = policy.memory(carried)
                    mask = policy.mask_of(carried)
                    draw = sample(carried.get(policy.observation_key), mask, own)
                    rows.append(_entries_of(draw, policy))
                    for key in ACTION_KEYS:
                        carried.set(key, rows[-1][key])
                steps.append(env.step(carried))
        finally:
            if isinstance(env, DifferentiableEnv):
                env.load_noise(None)  # a failed rollout leaves none of its noise to the next one
            renew(parts, Tensor.detach, attached=True)
        time = len(env.batch_size)
        rollout = LazyStackedTensorDict.maybe_dense_stack(steps, time)
        rollout = rollout.exclude("logits", "loc", "scale")
        if sample is not None:
            if policy.mask_key is not None:
                check_mask(rollout.get(policy.mask_key))
            stacked = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            found = _scored(policy, stacked, drawn)
            scores = {key: found[key] for key in _LOG_PROBS if key in found}
            rollout.update({key: value.movedim(0, time) for key, value in scores.items()})
        return rollout.refine_names(..., "time")


class _States(torch.autograd.Function):
    """The states that steps start from and lead to, without resets: two views of one memory.

    The gradient of the former, but for the start, has passed a transition and is discounted.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, discount: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.discount = discount
        ctx.save_for_backward(states.new_empty(0))
        return states[:-1], states[1:]

    @staticmethod
    def backward(ctx: Any, before: Tensor | None, after: Tensor | None) -> tuple:
        check_unused(ctx)
        some = before if after is None else after
        if some is None:
            return None, None
        total = some.new_zeros(len(some) + 1, *some.shape[1:])
        if before is not None:
            total[:-1] = before * ctx.discount
            total[0] = before[0]  # no transition leads to the start
        if after is not None:
            total[1:] += after
        return total, None


def _discounted(value: Tensor, discount: float) -> Tensor:
    """Return a value with its gradient, if it has one, multiplied by ``discount``.

    The value stays the same to the last bit; only an infinite one becomes NaN.
    """
    if discount == 1.0 or not value.requires_grad:
        return value
    # Between a value and itself, of which one end has a gradient: two operations of torch's own
    # take half the time of a function in Python, which could leave infinities alone.
    return torch.lerp(value.detach(), value, discount)


def _entries_of(draw: HybridDraw, policy: HybridPolicy) -> dict[Any, Tensor]:
    """Return the entries of a draw: the action, and what it is scored by, once for all steps."""
    entries: dict[Any, Tensor] = dict(zip(ACTION_KEYS, draw[:2], strict=True))
    if policy.return_log_prob:
        parts = zip(_SCORED, draw[2:], strict=True)
        entries |= {key: value for key, value in parts if value is not None}
    return entries


def _scored(
    policy: HybridPolicy, stacked: dict[Any, Tensor], noise: Noise | None
) -> dict[Any, Tensor]:
    """Put log-probabilities in the place of what they follow from, time first."""
    if _SCORED[0] not in stacked:
        return stacked
    own: Any = [stacked.pop(key, None) for key in _SCORED]
    draw = HybridDraw(*(stacked[key] for key in ACTION_KEYS), *own)
    kept = None if noise is None else noise.continuous
    found = draw.log_probs(kept, policy.continuous_distribution)
    return stacked | dict(zip(_LOG_PROBS, found, strict=True))
