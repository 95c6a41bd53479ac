"""All randomness of a rollout, drawn beforehand; and what env and policy it is asked of."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torchrl.envs import EnvBase

from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import shown
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.core.wrappers import batched, differentiable, plain, remembered, transforms_of
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.sampling import Noise

Entries = Mapping[str, Tensor]
# From what is carried, and the inputs of one step, to what is carried on and the entries of it.
Step = Callable[[dict[str, Tensor], Any], tuple[dict[str, Tensor], dict[Any, Tensor]]]

# No logit is that large, and no random number.
_CERTAIN = 1e9


class Inputs(NamedTuple):
    """All randomness of a rollout, drawn beforehand, time first.

    Attributes:
        noise: the environment's, ``(T, *B, *noise_shape)``.
        policy: the policy's, or ``None`` where it does not sample.
        fresh: for each step the states that instances go on from whose episode ends; nothing; or a
            function that draws them where it turns out that they are needed.
    """

    noise: Tensor
    policy: Noise | None
    fresh: list[Any]

    def part(self, which: slice) -> Inputs:
        """Return some of the steps."""
        of_some = operator.itemgetter(which)
        own = tree_map_only(Tensor, of_some, self.policy)
        return Inputs(self.noise[which], own, self.fresh[which])


def one_by_one(
    step: Step, carried: dict[str, Tensor], inputs: Any, settings: Any = None
) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
    """Take steps of one kind, one after another.

    Args:
        step: takes one.
        carried: where the first one starts, by name.
        inputs: tensors of any structure, time first.
        settings: of no account here; see :class:`~hpo_torchrl.collectors.scan.Scan`.

    Returns:
        Where the last one leads to, and the entries of all, time first.
    """
    rows: list[dict[Any, Tensor]] = []
    parts, form = tree_flatten(inputs)
    for at in range(next(len(part) for part in parts if part is not None)):
        own = tree_unflatten([None if part is None else part[at] for part in parts], form)
        carried, entries = step(carried, own)
        rows.append(entries)
    return carried, {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def warn_uncompiled(name: str, cause: str, further: str = "") -> None:
    """Warn that something goes on uncompiled, with the cause and the usual ones."""
    warnings.warn(
        f"compile: {name} cannot be compiled, and go on as they are ({cause}). Usual causes: "
        "dynamics, networks or losses that look at a tensor's value (if, .item(), numpy), or "
        f"numbers of the environment that change from rollout to rollout{further}.",
        stacklevel=4,
    )


def steps_of(noise: Noise | None, num_steps: int) -> Sequence[Noise | None]:
    """Return the policy's noise of each step."""
    if noise is None:
        return [None] * num_steps
    rows = [value.unbind() for value in noise if value is not None]
    return [Noise(*row) for row in zip(*rows, strict=True)]


def policy_noise(
    env: EnvBase,
    policy: HybridPolicy,
    num_steps: int,
    randomness: Randomness | None,
    first: Tensor | None = None,
) -> Noise | None:
    """Draw a policy's random numbers of a rollout, time first; ``None`` if it does not sample.

    They are drawn step by step, in the order in which ``env.rollout`` draws them, from the
    policy's own source if no other is given.

    Args:
        env: the environment, batch size ``*B``.
        policy: the policy.
        num_steps: number of steps.
        randomness: where the numbers come from.
        first: discrete actions ``(*B,)`` that the first step is to take where they are allowed, at
            least 0; those below are drawn.
    """
    if not policy.acts_randomly:
        return None
    randomness = policy.randomness if randomness is None else randomness
    discrete = env.full_action_spec["action", "discrete"]
    continuous = env.full_action_spec["action", "continuous"]
    place: dict[str, Any] = {"dtype": continuous.dtype, "device": continuous.device}
    logs = torch.empty(num_steps, *discrete.shape, discrete.space.n, **place)
    own = torch.empty(num_steps, *continuous.shape, **place) if policy.stochastic else None
    for step, row in enumerate(logs.unbind()):
        randomness.fill("exponential", row)
        if own is not None:
            randomness.fill(policy.continuous_distribution.noise, own[step])
    logs.log_()
    if first is not None:  # the action whose logit less its number is the largest is taken
        forced = F.one_hot(first.clamp_min(0), discrete.space.n) * (first >= 0).unsqueeze(-1)
        logs[0] -= _CERTAIN * forced
    return Noise(logs, own)


def noise_of(env: DifferentiableEnv, start: Any, num_steps: int, noise: Tensor | None) -> Tensor:
    """Return the noise given for a rollout, checked, or draw it."""
    if noise is None:
        return env.sample_noise(num_steps, {key: start[key] for key in env.state_names})
    # Values are not looked at, for a rollout never waits. Losses refuse rewards of NaN.
    return env.check_noise(noise, num_steps)


@torch.no_grad()
def start_states(env: DifferentiableEnv, over: Tensor | None = None) -> dict[str, Tensor]:
    """Draw the entries that instances start an episode from; see ``env.fresh_state``."""
    state = env.fresh_state(over)
    state |= env.show(state)
    return {key: state[key] for key in (*env.state_names, *env.shown_names)}


def fresh_states(env: DifferentiableEnv, step: Tensor, num_steps: int) -> list[Any]:
    """Draw the states that instances go on from whose episode ends, for each step of a rollout.

    Which ones end is a matter of counting. Known beforehand, nothing within a rollout has to wait
    for what a device has computed, and a step can be computed twice. For an environment that ends
    episodes by itself, functions are returned that draw when they are called.
    """
    if not env.counts_steps:
        return [*[partial(start_states, env)] * (num_steps - 1), None]
    fresh: list[Any] = [None] * num_steps
    if env.horizon is None:
        return fresh
    step = step.cpu()
    for i in range(num_steps - 1):
        step = step + 1
        over = step >= env.horizon
        if ranks.anywhere(over):
            drawn = fresh[i] = start_states(env, over)
            step = torch.where(over, drawn["step"].cpu(), step)
    return fresh


def check_start(env: EnvBase, start: Any) -> None:
    """Raise an error if a tensordict is not where a rollout can start."""
    found = start.shape if isinstance(start, TensorDictBase) else None
    if found is None or (found != env.batch_size and env.batch_locked):
        raise ValueError(
            "tensordict, where a rollout starts, must be a tensordict of the environment's batch "
            f"size {tuple(env.batch_size)}, as env.reset() returns it, got "
            f"{shown(start) if found is None else tuple(found)}."
        )


def check_keeps_graph(env: EnvBase) -> None:
    """Raise a ``TypeError`` if TorchRL's part of an environment breaks the graph of a rollout."""
    if (several := batched(env)) is not None:
        raise TypeError(
            f"A differentiable rollout needs one environment, got a {type(several).__name__}: it "
            "steps its members in other processes or in memory of its own, which no gradient "
            "passes. Make one environment with batch_size=..., or ReplicatedEnv."
        )
    if not differentiable(env):
        raise TypeError(
            f"{type(plain(env)).__name__} is not differentiable: no gradient passes its steps. "
            "Train on it by PPO (algorithm=ppo) or DDPG (algorithm=ddpg or da_ac), or write its "
            "equations as a DifferentiableEnv."
        )
    for _, name, tensors in remembered(transforms_of(env)):
        if any(tensor.is_shared() for tensor in tensors):
            raise TypeError(
                f"A transform of the environment keeps {name!r} in memory that it shares with "
                "other processes, which no graph reaches: make the transform without sharing "
                "(shared_data, shared_td), or freeze a copy of it (transform.frozen_copy())."
            )


def is_functional(env: EnvBase, policy: HybridPolicy) -> bool:
    """Whether env and policy can be unrolled on plain tensors."""
    return (
        isinstance(env, DifferentiableEnv)
        and samples_as_ours(policy)
        and policy.mask_key in (None, *env.shown_names[1:])
        and (policy.observation_key, policy.memory) == ("observation", None)
    )


def samples_as_ours(policy: Any) -> bool:
    """Whether a policy is a hybrid one that samples as this package does."""
    return isinstance(policy, HybridPolicy) and type(policy).forward is HybridPolicy.forward


def check_functional(name: str, env: EnvBase, policy: HybridPolicy, fix: str) -> None:
    """Raise a ``TypeError`` if env and policy cannot be unrolled on plain tensors."""
    if not is_functional(env, policy):
        raise TypeError(
            f"{name} needs a DifferentiableEnv and a HybridPolicy that reads 'observation', "
            "without a memory, and without a mask or with the environment's own 'action_mask', got "
            f"{type(env).__name__} and {type(policy).__name__}; {fix}."
        )


def check_single_choice(name: str, env: DifferentiableEnv) -> None:
    """Raise a ``ValueError`` if a step has several discrete choices: they are enumerated."""
    if env.num_heads is not None:
        raise ValueError(
            f"{name} takes every discrete action of a step in turn and needs a single discrete "
            f"choice, but {type(env).__name__} has {env.num_heads} heads; use HPO's sampled score "
            "function."
        )
