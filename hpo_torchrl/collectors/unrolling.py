"""Transitions in a row: from a start and its noise to the tensordict of a rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from hpo_torchrl.collectors.discounting import Entries, discount_gradients, stack_states
from hpo_torchrl.collectors.recomputing import NEXT, recomputed
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.distribution import HybridDraw

# What a draw is scored by: once for the whole rollout. No entry of an environment has such a name.
SCORED = ("draw logits", "draw noise", "draw scale")
LOG_PROBS = ("action_log_prob", "discrete_log_prob")
# From the state, the observation and one step's noise to the action (with its log-probabilities, or
# what they follow from) and what env.advance returns.
Transition = Callable[
    [Entries, Tensor],
    tuple[Mapping[str, Tensor | None], dict[str, Tensor], Tensor, Tensor | None],
]
# States after a reset, nothing, or what draws them if it turns out that they are needed.
Fresh = Entries | Callable[[], Entries] | None


def unroll(
    env: DifferentiableEnv,
    begin: Callable[[], Transition],
    start: TensorDictBase,
    noise: Tensor,
    discount: float,
    *,
    checkpoint_steps: int | None = None,
    parameters: Sequence[Tensor] = (),
    restart: Callable[[Tensor], Any] | None = None,
) -> TensorDict:
    """Take a transition for each step of noise, with resets, and build the tensordict.

    Args:
        env: the environment, batch size ``*B``.
        begin: returns what takes one step; called wherever a graph begins.
        start: where to start.
        noise: noise of all steps, ``(*B, T, *noise_shape)``.
        discount: factor on the gradient through each transition.
        checkpoint_steps: steps whose graph is kept at once; see :func:`differentiable_rollout`.
        parameters: with ``checkpoint_steps``, all that gradients may flow to besides the start.
        restart: draws fresh states for the systems that need one, bool ``(*B, 1)``; by default the
            environment does, for all systems.
    """
    time = len(env.batch_size)
    carried = {key: start.get(key) for key in (*env.state_names, *env.shown_names)}
    steps = Steps(env, begin, discount)
    fresh: Any = fresh_states(env, carried["step"], noise.shape[time], restart)
    if checkpoint_steps is None:
        stacked = _stack_all(steps(carried, noise.unbind(time), fresh)[1], tuple(carried), fresh)
    else:
        rows = noise.movedim(time, 0)
        stacked = recomputed(steps, carried, rows, fresh, checkpoint_steps, discount, parameters)
    return finished(env, stacked)


def _stack_all(
    history: list[dict[str, Any]], names: Sequence[str], fresh: Sequence[Fresh]
) -> dict[str, Tensor]:
    """Stack all steps. Without resets, states before and after steps are held once."""
    if any(new is not None for new in fresh):
        return stack_steps(history)
    states = {}
    for name in names:
        before, after = ([row.pop(key) for row in history] for key in (name, NEXT + name))
        states[name], states[NEXT + name] = stack_states(before, after)
    return stack_steps(history) | states


def finished(env: DifferentiableEnv, stacked: Entries) -> TensorDict:
    """Build the tensordict of a rollout from its entries, time first."""
    time = len(env.batch_size)
    in_place = {key: value.movedim(0, time) for key, value in scored(dict(stacked)).items()}
    return _assemble(env, in_place).refine_names(..., "time")


class Steps:
    """A stretch of a rollout: some steps from where it has got to."""

    def __init__(
        self, env: DifferentiableEnv, begin: Callable[[], Transition], discount: float
    ) -> None:
        self.env, self.begin, self.discount = env, begin, discount
        self.asks = not env.counts_steps

    def __call__(
        self, carried: Entries, noise: Sequence[Tensor], fresh: Sequence[Any]
    ) -> tuple[Entries, list[dict[str, Any]]]:
        """Return where the stretch leads to, and the entries of each step."""
        history, transition = [], self.begin()
        shape = (*self.env.batch_size, 1)
        never = torch.zeros(shape, dtype=torch.bool, device=self.env.device)
        for step_noise, new in zip(noise, fresh, strict=True):
            chosen, after, reward, over = transition(carried, step_noise)
            after |= self.env.show(after)
            row = {**carried, **chosen, "reward": reward}
            row["over"] = never if over is None else over
            history.append({**row, **{(NEXT + key): value for key, value in after.items()}})
            carried = discount_gradients(after, self.discount)
            if self.asks and new is not None:
                new = new() if over is not None and bool(over.any()) else None
            if new is not None and over is not None:
                carried = {
                    key: torch.where(expand_mask(over, value), new[key], value)
                    for key, value in carried.items()
                }
        return carried, history


def fresh_states(
    env: DifferentiableEnv,
    step: Tensor,
    num_steps: int,
    restart: Callable[[Tensor], Any] | None = None,
) -> list[Fresh]:
    """Draw the states that systems go on from whose episode ends, for each step of a rollout.

    Which ones end is a matter of counting. Known beforehand, nothing within a rollout has to wait
    for what a device has computed, and a step can be computed twice. Of an environment that ends
    episodes by itself, what is returned draws when it is asked.
    """
    names = (*env.state_names, *env.shown_names)
    if not env.counts_steps:
        return [*[lambda: {key: env._reset().get(key) for key in names}] * (num_steps - 1), None]
    fresh: list[Fresh] = [None] * num_steps
    if env.horizon is None:
        return fresh
    step = step.cpu()
    for i in range(num_steps - 1):
        step = step + 1
        over = step >= env.horizon
        if bool(over.any()):
            drawn = env._reset() if restart is None else restart(over)
            fresh[i] = {key: drawn.get(key) for key in names}
            step = torch.where(over, drawn.get("step").cpu(), step)
    return fresh


def expand_mask(mask: Tensor, value: Tensor) -> Tensor:
    """Append dimensions to a mask ``(*B, 1)`` until it broadcasts with an entry."""
    return mask.reshape(*mask.shape, *(1,) * (value.ndim - mask.ndim))


def stack_steps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Stack the entries of steps, time first; those that are ``None`` are left out."""
    return {
        # Time first, so that each step is copied in one piece.
        key: torch.stack([row[key] for row in rows])
        for key, value in rows[0].items()
        if value is not None
    }


def scored(stacked: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put log-probabilities in the place of what they follow from."""
    if SCORED[0] not in stacked:
        return stacked
    logits, *scores = stacked.pop(SCORED[0]), *(stacked.pop(key, None) for key in SCORED[1:])
    draw = HybridDraw(stacked["discrete"], stacked["continuous"], logits, *scores)
    return stacked | dict(zip(LOG_PROBS, draw.log_probs(), strict=True))


def entries_of(draw: HybridDraw, policy: HybridPolicy) -> dict[str, Tensor | None]:
    """Return what a transition says of a draw: the action, and what it is scored by."""
    chosen = {"discrete": draw.discrete, "continuous": draw.continuous}
    scored = zip(SCORED, draw[2:], strict=True) if policy.return_log_prob else ()
    return {**chosen, **dict(scored)}


def _assemble(env: DifferentiableEnv, stacked: dict[str, Tensor]) -> TensorDict:
    """Build the tensordict that ``env.rollout`` would have built."""
    over = stacked.pop("over")
    shape = over.shape[:-1]
    never = torch.zeros_like(over)
    terminated, truncated = (over, never) if env.horizon_terminates else (never, over)
    after: dict[str, Any] = {
        key.removeprefix(NEXT): stacked.pop(key) for key in list(stacked) if key.startswith(NEXT)
    }
    after |= {"reward": stacked.pop("reward"), "done": over}
    after |= {"terminated": terminated, "truncated": truncated}
    action = {key: stacked.pop(key) for key in ("discrete", "continuous")}
    root: dict[str, Any] = {**stacked, "action": TensorDict(action, batch_size=shape)}
    # Whoever was done has been reset, so no step starts in a state that is done.
    root |= {"done": never, "terminated": never, "truncated": never}
    root["next"] = TensorDict(after, batch_size=shape)
    return TensorDict(root, batch_size=shape, device=env.device)
