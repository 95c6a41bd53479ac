"""All randomness of a rollout, drawn beforehand; and what env and policy it is asked of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridNetwork, HybridPolicy
from hpo_torchrl.modules.sampling import Noise

Entries = Mapping[str, Tensor]
# States after a reset, nothing, or a function that draws them where it turns out that they are
# needed.
Fresh = Entries | Callable[[Tensor], Entries] | None


class Inputs(NamedTuple):
    """All randomness of a rollout, drawn beforehand, time first.

    Attributes:
        noise: the environment's, ``(T, *B, *noise_shape)``.
        policy: the policy's, or ``None`` where it does not sample.
        fresh: for each step the states that instances go on from whose episode ends.
    """

    noise: Tensor
    policy: Noise | None
    fresh: Sequence[Fresh]

    def part(self, which: slice) -> Inputs:
        """Return some of the steps."""
        own = self.policy
        if own is not None:
            own = Noise(*(None if value is None else value[which] for value in own))  # type: ignore[arg-type]
        return Inputs(self.noise[which], own, self.fresh[which])


def steps_of(noise: Noise | None, num_steps: int) -> Sequence[Noise | None]:
    """Return the policy's noise of each step."""
    if noise is None:
        return [None] * num_steps
    if noise.continuous is None:
        return [Noise(row) for row in noise.discrete.unbind()]
    return list(map(Noise, noise.discrete.unbind(), noise.continuous.unbind()))


def policy_noise(
    env: EnvBase,
    policy: HybridPolicy,
    start: Any,
    num_steps: int,
    randomness: Randomness | None = None,
) -> Noise | None:
    """Draw a policy's random numbers of a rollout, time first; ``None`` if it does not sample.

    They are drawn step by step, in the order in which ``env.rollout`` draws them.

    Args:
        env: the environment, whose specs give the shapes.
        policy: the policy.
        start: the entries of the first step.
        num_steps: number of steps T.
        randomness: where they come from; by default ``policy.randomness``.
    """
    if not policy.acts_randomly:
        return None
    randomness = policy.randomness if randomness is None else randomness
    discrete = env.full_action_spec["action", "discrete"]
    continuous = env.full_action_spec["action", "continuous"]
    place: dict[str, Any] = {"dtype": continuous.dtype, "device": continuous.device}
    logs = torch.empty(num_steps, *discrete.shape, discrete.space.n, **place)
    own = None
    if policy.stochastic and _has_scale(policy, start):
        own = torch.empty(num_steps, *continuous.shape, **place)
    kind = policy.continuous_distribution.noise
    for step, row in enumerate(logs.unbind()):
        randomness.fill("exponential", row)
        if own is not None:
            randomness.fill(kind, own[step])
    return Noise(logs.log_(), own)


@torch.no_grad()
def _has_scale(policy: HybridPolicy, start: Any) -> bool:
    """Whether a network answers with a scale; one of the user's own is checked by asking it."""
    if isinstance(policy.network, HybridNetwork):
        return True
    observation = start[policy.observation_key]
    return policy.distribution(observation, policy.mask_of(start)).scale is not None


def noise_of(env: DifferentiableEnv, start: Any, num_steps: int, noise: Tensor | None) -> Tensor:
    """Return the noise given for a rollout, checked, or draw it."""
    if noise is None:
        return env.sample_noise(num_steps, {key: start[key] for key in env.state_names})
    expected = (*env.batch_size, num_steps, *env.noise_shape)
    if tuple(noise.shape) != expected:
        raise ValueError(
            f"noise must have shape (*B, T, *noise_shape) = {expected}, got {tuple(noise.shape)}; "
            f"draw it with env.sample_noise({num_steps})."
        )
    return noise


@torch.no_grad()
def start_states(env: DifferentiableEnv, over: Tensor | None = None) -> dict[str, Tensor]:
    """Draw the entries that instances start an episode from; see ``env.fresh_state``."""
    state = env.fresh_state(over)
    state |= env.show(state)
    return {key: state[key] for key in (*env.state_names, *env.shown_names)}


def fresh_states(env: DifferentiableEnv, step: Tensor, num_steps: int) -> list[Fresh]:
    """Draw the states that instances go on from whose episode ends, for each step of a rollout.

    Which ones end is a matter of counting. Known beforehand, nothing within a rollout has to wait
    for what a device has computed, and a step can be computed twice. For an environment that ends
    episodes by itself, functions are returned that draw when they are called.
    """
    if not env.counts_steps:
        return [*[lambda over: start_states(env, over)] * (num_steps - 1), None]
    fresh: list[Fresh] = [None] * num_steps
    if env.horizon is None:
        return fresh
    step = step.cpu()
    for i in range(num_steps - 1):
        step = step + 1
        over = step >= env.horizon
        if bool(over.any()):
            drawn = fresh[i] = start_states(env, over)
            step = torch.where(over, drawn["step"].cpu(), step)
    return fresh


def is_functional(env: EnvBase, policy: HybridPolicy) -> bool:
    """Whether env and policy can be unrolled on plain tensors."""
    return (
        isinstance(env, DifferentiableEnv)
        and isinstance(policy, HybridPolicy)
        and type(policy).forward is HybridPolicy.forward
        and policy.mask_key in (None, *env.shown_names[1:])
        and policy.observation_key == "observation"
    )


def check_functional(name: str, env: EnvBase, policy: HybridPolicy, fix: str) -> None:
    """Raise a ``TypeError`` if env and policy cannot be unrolled on plain tensors."""
    if not is_functional(env, policy):
        raise TypeError(
            f"{name} needs a DifferentiableEnv and a HybridPolicy that reads 'observation' "
            "without a mask or with the environment's own 'action_mask', got "
            f"{type(env).__name__} and {type(policy).__name__}; {fix}."
        )


def check_counted(name: str, env: DifferentiableEnv) -> None:
    """Raise a ``TypeError`` if an environment decides by itself when its episodes end."""
    if not env.counts_steps:
        raise TypeError(
            f"{name} needs episodes that end at the horizon, but {type(env).__name__} has an "
            "advance of its own, which may end them; leave it out."
        )


def check_single_choice(name: str, env: DifferentiableEnv) -> None:
    """Raise a ``ValueError`` if a step has several discrete choices: they are enumerated."""
    if env.num_heads is not None:
        raise ValueError(
            f"{name} takes every discrete action of a step in turn and needs a single discrete "
            f"choice, but {type(env).__name__} has {env.num_heads} heads; use HPO's sampled score "
            "function."
        )
