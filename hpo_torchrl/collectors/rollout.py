"""Rollouts that keep the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from hpo_torchrl.collectors.engine import Rollout
from hpo_torchrl.collectors.entries import LOG_PROBS, discount_gradients, entries_of, scored
from hpo_torchrl.collectors.inputs import (
    check_functional,
    is_functional,
    noise_of,
    policy_noise,
    steps_of,
)
from hpo_torchrl.core.checks import check_choice, check_float, check_int
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.sampling import check_mask

ROUTES = ("auto", "functional", "general")
_PARAMETERS = ("logits", "loc", "scale")


def differentiable_rollout(
    env: EnvBase,
    policy: HybridPolicy,
    num_steps: int,
    *,
    tensordict: TensorDictBase | None = None,
    noise: Tensor | None = None,
    discount: float = 1.0,
    route: str = "auto",
    checkpoint_steps: int | None = None,
    randomness: Randomness | None = None,
) -> TensorDict:
    r"""Roll a policy out and keep the graph: gradients flow along the whole trajectory.

    Two routes give the same numbers to the last bit. ``"functional"`` calls ``env.dynamics`` on
    plain tensors and builds one tensordict at the end; it needs a :class:`DifferentiableEnv` and
    a :class:`HybridPolicy`. ``"general"`` steps any :class:`~torchrl.envs.EnvBase` whose step
    keeps the graph. Instances that are done within the rollout are reset and go on. For many
    rollouts of one kind, and for compiled ones, make a :class:`Rollout` once.

    With ``discount`` :math:`\gamma < 1` the gradient through every state transition is multiplied
    by :math:`\gamma` (values do not change, but for infinite ones). The gradient of
    :math:`\sum_t r_t` is then the sum over t of the gradient of the *discounted* return from t:
    each action is credited with its discounted future, and late actions weigh as much as early
    ones.

    Args:
        env: the environment, batch size ``*B``.
        policy: the policy; it samples unless ``set_exploration_type`` says otherwise.
        num_steps: number of steps T.
        tensordict: where to start, as ``env.reset()`` returns it; ``None`` resets.
        noise: noise of the rollout, ``(*B, T, *noise_shape)``, as ``env.sample_noise(T)`` returns
            it; ``None`` draws it. Only for a :class:`DifferentiableEnv`.
        discount: factor on the gradient through each transition, in (0, 1].
        route: ``"auto"`` (functional where possible), ``"functional"`` or ``"general"``.
        checkpoint_steps: keep the graph of that many steps at once and compute the others again
            when gradients flow back (activation checkpointing): less memory for more time. It
            needs the functional route, and the parameters must still be those of the rollout when
            gradients are taken. ``None`` keeps the whole graph.
        randomness: where the policy's random numbers come from; ``None`` is ``policy.randomness``.

    Returns:
        Tensordict of shape ``(*B, T)`` as ``env.rollout`` returns it, without the distribution's
        parameters. On the functional route, without resets, what a step leads to and what the next
        one starts from share their memory: change one in place and the other changes too.

    Raises:
        TypeError: the functional route is asked for an env or policy that has none.
        ValueError: an argument is out of range or the noise has the wrong shape.

    Examples:
        >>> from hpo_torchrl.collectors import differentiable_rollout
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4, initial_state="random")
        >>> policy = HybridPolicy.for_env(env)
        >>> rollout = differentiable_rollout(env, policy, 10)
        >>> (-rollout["next", "reward"].mean()).backward()
        >>> policy.network.continuous[-1].bias.grad is not None
        True
    """
    check_int("num_steps", num_steps, minimum=1)
    check_float("discount", discount, minimum=0.0, maximum=1.0, strict=True)
    check_choice("route", route, ROUTES)
    if checkpoint_steps is not None:
        check_int("checkpoint_steps", checkpoint_steps, minimum=1)
        check_functional("checkpoint_steps", env, policy, "leave it out")
        if route == "general":
            raise ValueError(
                "checkpoint_steps needs the functional route, got route='general'; leave one out."
            )
    if route == "functional":
        check_functional("The functional route", env, policy, "use route='auto' or 'general'")
    if route != "general" and is_functional(env, policy):
        settings: dict[str, Any] = {"checkpoint_steps": checkpoint_steps, "randomness": randomness}
        rollout = Rollout(env, policy, discount=discount, **settings)
        return rollout(num_steps, tensordict=tensordict, noise=noise)
    start = env.reset() if tensordict is None else tensordict.copy()
    return general_rollout(env, policy, num_steps, start, noise, discount, randomness)


def general_rollout(
    env: EnvBase,
    policy: HybridPolicy,
    num_steps: int,
    start: TensorDictBase,
    noise: Tensor | None,
    discount: float,
    randomness: Randomness | None = None,
) -> TensorDict:
    """Step any environment; the policy is sampled as by :class:`Rollout` if it is a hybrid one."""
    if isinstance(env, DifferentiableEnv):
        env.load_noise(noise_of(env, start, num_steps, noise))
    elif noise is not None:
        raise ValueError(
            f"noise can be given only to a DifferentiableEnv; {type(env).__name__} draws its own."
        )
    hybrid = isinstance(policy, HybridPolicy) and type(policy).forward is HybridPolicy.forward
    drawn = policy_noise(env, policy, start, num_steps, randomness) if hybrid else None
    own = steps_of(drawn, num_steps)
    sample = policy.sampler() if hybrid else None
    steps, rows = [], []
    keys: list[Any] = []
    carried = start
    try:
        for step in range(num_steps):
            if sample is None:
                carried = policy(carried)
            else:
                mask = policy.mask_of(carried)
                draw = sample(carried.get(policy.observation_key), mask, own[step])
                rows.append(entries_of(draw, policy))
                action = {"discrete": draw.discrete, "continuous": draw.continuous}
                place = {"batch_size": carried.batch_size, "device": carried.device}
                carried = carried.set("action", TensorDict(action, **place))
            if step == num_steps - 1:
                steps.append(env.step(carried))
                break
            taken, carried = env.step_and_maybe_reset(carried)
            steps.append(taken)
            if discount != 1.0:
                keys = keys or _floating(carried, [] if hybrid else policy.out_keys)
                state = {key: carried.get(key) for key in keys}
                for key, value in discount_gradients(state, discount).items():
                    if value is not state[key]:
                        carried.set(key, value)
    finally:
        if isinstance(env, DifferentiableEnv):
            env.load_noise(None)  # a failed rollout leaves none of its noise to the next one
    time = len(env.batch_size)
    rollout = LazyStackedTensorDict.maybe_dense_stack(steps, time).exclude(*_PARAMETERS)
    if hybrid and policy.mask_key is not None:
        check_mask(rollout.get(policy.mask_key))
    if hybrid and policy.return_log_prob:
        stacked = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        log_probs = scored(policy, stacked, drawn)
        for key in LOG_PROBS:
            rollout.set(key, log_probs[key].movedim(0, time))
    return rollout.refine_names(..., "time")


def _floating(tensordict: TensorDictBase, without: Sequence[Any]) -> list[Any]:
    """Keys of what may carry a gradient from step to step, nested ones too."""
    leaves = tensordict.items(include_nested=True, leaves_only=True)
    return [key for key, value in leaves if value.is_floating_point() and key not in without]
