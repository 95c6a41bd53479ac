"""Rollouts that keep the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from hpo_torchrl.collectors.discounting import Entries, discount_gradients
from hpo_torchrl.collectors.unrolling import (
    LOG_PROBS,
    Transition,
    entries_of,
    scored,
    stack_steps,
    unroll,
)
from hpo_torchrl.core.checks import check_choice, check_float, check_int
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.distribution import HybridDraw

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
) -> TensorDict:
    r"""Roll a policy out and keep the graph: gradients flow along the whole trajectory.

    Two routes give the same numbers to the last bit. ``"functional"`` calls ``env.dynamics`` on
    plain tensors and builds one tensordict at the end; it needs a :class:`DifferentiableEnv` and
    a :class:`HybridPolicy`. ``"general"`` steps any :class:`~torchrl.envs.EnvBase` whose step
    keeps the graph. Systems that are done within the rollout are reset and go on.

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
            needs the functional route, first derivatives only, and the parameters must still be
            those of the rollout when gradients are taken. ``None`` keeps the whole graph.

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
        if noise is not None and noise.requires_grad:
            raise ValueError(
                "With checkpoint_steps no gradient reaches the noise, and the one given asks for "
                "one; detach it, or leave checkpoint_steps out."
            )
        check_counted("checkpoint_steps", env)
    functional = is_functional(env, policy)
    if route == "functional":
        check_functional("The functional route", env, policy, "use route='auto' or 'general'")
    start = env.reset() if tensordict is None else tensordict.copy()
    if isinstance(env, DifferentiableEnv):
        noise = noise_of(env, start, num_steps, noise)
    elif noise is not None:
        raise ValueError(
            f"noise can be given only to a DifferentiableEnv; {type(env).__name__} draws its own."
        )
    if functional and noise is not None and route != "general":

        def begin() -> Transition:
            sample = policy.sampler()

            def transition(carried: Entries, step_noise: Tensor) -> tuple:
                draw = sample(carried["observation"], policy.mask_of(carried))
                chosen = {"discrete": draw.discrete, "continuous": draw.continuous}
                return entries_of(draw, policy), *env.advance(carried, chosen, step_noise)

            return transition

        return unroll(
            env,
            begin,
            start,
            noise,
            discount,
            checkpoint_steps=checkpoint_steps,
            parameters=[*policy.parameters(), *_learned(env)],
        )
    steps = _general_route(env, policy, num_steps, start, noise, discount)
    return steps.refine_names(..., "time")


def _general_route(
    env: EnvBase,
    policy: HybridPolicy,
    num_steps: int,
    start: TensorDictBase,
    noise: Tensor | None,
    discount: float,
) -> TensorDict:
    steps = []
    draws: list[HybridDraw] = []
    if noise is not None:
        env.load_noise(noise)
    plain = isinstance(policy, HybridPolicy) and policy.is_plain
    act, rewritten = (_actor(policy, draws), []) if plain else (policy, policy.out_keys)
    keys: list[Any] = []
    carried = start
    try:
        for step in range(num_steps):
            carried = act(carried)
            if step == num_steps - 1:
                steps.append(env.step(carried))
            else:
                taken, carried = env.step_and_maybe_reset(carried)
                steps.append(taken)
                if discount != 1.0:
                    keys = keys or _floating(carried, rewritten)
                    state = {key: carried.get(key) for key in keys}
                    for key, value in discount_gradients(state, discount).items():
                        if value is not state[key]:
                            carried.set(key, value)
    finally:
        if noise is not None:  # a failed rollout leaves none of its noise to the next one
            env.load_noise(None)
    time = len(env.batch_size)
    rollout = LazyStackedTensorDict.maybe_dense_stack(steps, time).exclude(*_PARAMETERS)
    if plain and policy.return_log_prob:
        rows = [entries_of(draw, policy) for draw in draws]
        log_probs = scored(stack_steps(rows))
        for key in LOG_PROBS:
            rollout.set(key, log_probs[key].movedim(0, time))
    return rollout


def _floating(tensordict: TensorDictBase, without: Sequence[Any]) -> list[Any]:
    """Keys of what may carry a gradient from step to step, nested ones too."""
    leaves = tensordict.items(include_nested=True, leaves_only=True)
    return [key for key, value in leaves if value.is_floating_point() and key not in without]


def _actor(
    policy: HybridPolicy, draws: list[HybridDraw]
) -> Callable[[TensorDictBase], TensorDictBase]:
    """Return what writes a policy's action, and adds the draw to a list."""
    sample = policy.sampler()

    def act(tensordict: TensorDictBase) -> TensorDictBase:
        draw = sample(tensordict.get(policy.observation_key), policy.mask_of(tensordict))
        draws.append(draw)
        action = {"discrete": draw.discrete, "continuous": draw.continuous}
        own = TensorDict(action, batch_size=tensordict.batch_size, device=tensordict.device)
        return tensordict.set("action", own)

    return act


def _learned(env: EnvBase) -> list[Tensor]:
    """Tensors of an environment, and of those within it, that gradients flow to."""
    held = (value for module in env.modules() for value in vars(module).values())
    loose = [value for value in held if isinstance(value, Tensor) and value.requires_grad]
    return [*env.parameters(), *loose]


def is_functional(env: EnvBase, policy: HybridPolicy) -> bool:
    """Whether env and policy can be unrolled on plain tensors."""
    return (
        isinstance(env, DifferentiableEnv)
        and isinstance(policy, HybridPolicy)
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
    """Raise a ``ValueError`` if a step has several discrete choices: options are enumerated."""
    if env.num_heads is not None:
        raise ValueError(
            f"{name} takes every option of a step in turn and needs a single discrete choice, but "
            f"{type(env).__name__} has {env.num_heads} heads; use HPO's sampled score function."
        )


def noise_of(
    env: DifferentiableEnv, start: TensorDictBase, num_steps: int, noise: Tensor | None
) -> Tensor:
    """Return the noise given for a rollout, checked, or draw it."""
    if noise is None:
        return env.sample_noise(num_steps, {key: start.get(key) for key in env.state_names})
    expected = (*env.batch_size, num_steps, *env.noise_shape)
    if tuple(noise.shape) != expected:
        raise ValueError(
            f"noise must have shape (*B, T, *noise_shape) = {expected}, got {tuple(noise.shape)}; "
            f"draw it with env.sample_noise({num_steps})."
        )
    return noise
