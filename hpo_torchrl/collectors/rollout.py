"""Rollouts that keep the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from hpo_torchrl._checks import check_choice, check_float, check_int
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.distribution import HybridDraw

ROUTES = ("auto", "functional", "general")
_PARAMETERS = ("logits", "loc", "scale")
# What a draw is scored by: once for the whole rollout. No entry of an environment has such a name.
_SCORED = ("draw logits", "draw noise", "draw scale")
_LOG_PROBS = ("action_log_prob", "discrete_log_prob")
# From the state, the observation and one step's noise to the action (with its log-probabilities, or
# what they follow from) and what env.advance returns.
Transition = Callable[
    [Mapping[str, Tensor], Tensor],
    tuple[Mapping[str, Tensor | None], dict[str, Tensor], Tensor, Tensor | None],
]


def differentiable_rollout(
    env: EnvBase,
    policy: HybridPolicy,
    num_steps: int,
    *,
    tensordict: TensorDictBase | None = None,
    noise: Tensor | None = None,
    discount: float = 1.0,
    route: str = "auto",
) -> TensorDict:
    r"""Roll a policy out and keep the graph: gradients flow along the whole trajectory.

    Two routes give the same numbers to the last bit. ``"functional"`` calls ``env.dynamics`` on
    plain tensors and builds one tensordict at the end; it needs a :class:`DifferentiableEnv` and
    a :class:`HybridPolicy`. ``"general"`` steps any :class:`~torchrl.envs.EnvBase` whose step
    keeps the graph. Systems that are done within the rollout are reset and go on.

    With ``discount`` :math:`\gamma < 1` the gradient through every state transition is multiplied
    by :math:`\gamma` (values do not change). The gradient of :math:`\sum_t r_t` is then the sum
    over t of the gradient of the *discounted* return from t: each action is credited with its
    discounted future, and late actions weigh as much as early ones.

    Args:
        env: the environment, batch size ``*B``.
        policy: the policy; it samples unless ``set_exploration_type`` says otherwise.
        num_steps: number of steps T.
        tensordict: where to start, as ``env.reset()`` returns it; ``None`` resets.
        noise: noise of the rollout, ``(*B, T, *noise_shape)``, as ``env.sample_noise(T)`` returns
            it; ``None`` draws it. Only for a :class:`DifferentiableEnv`.
        discount: factor on the gradient through each transition, in (0, 1].
        route: ``"auto"`` (functional where possible), ``"functional"`` or ``"general"``.

    Returns:
        Tensordict of shape ``(*B, T)`` as ``env.rollout`` returns it, without the distribution's
        parameters.

    Raises:
        TypeError: the functional route is asked for an env or policy that has none.
        ValueError: an argument is out of range or the noise has the wrong shape.

    Examples:
        >>> from hpo_torchrl.collectors import differentiable_rollout
        >>> from hpo_torchrl.envs import InventoryEnv
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
        sample = policy.sampler()

        def transition(carried: Mapping[str, Tensor], step_noise: Tensor) -> tuple:
            draw = sample(carried["observation"], policy.mask_of(carried))
            chosen = {"discrete": draw.discrete, "continuous": draw.continuous}
            return entries_of(draw, policy), *env.advance(carried, chosen, step_noise)

        return unroll(env, transition, start, noise, discount)
    steps = _general_route(env, policy, num_steps, start, noise, discount)
    return steps.refine_names(..., "time")


def unroll(
    env: DifferentiableEnv,
    transition: Transition,
    start: TensorDictBase,
    noise: Tensor,
    discount: float,
) -> TensorDict:
    """Apply ``transition`` once per step of noise, with resets, and build the tensordict."""
    time = len(env.batch_size)
    carried = {key: start.get(key) for key in (*env.state_names, *env.shown_names)}
    never = torch.zeros((*env.batch_size, 1), dtype=torch.bool, device=env.device)
    history: list[dict[str, Tensor]] = []
    for step, step_noise in enumerate(noise.unbind(time)):
        chosen, after, reward, over = transition(carried, step_noise)
        after |= env.show(after)
        row = {**carried, **chosen, "reward": reward, "over": never if over is None else over}
        history.append({**row, **{("next " + key): value for key, value in after.items()}})
        carried = _discount_gradients(after, discount)
        if over is not None and step < noise.shape[time] - 1 and bool(over.any()):
            fresh = env._reset()
            carried = {
                key: torch.where(expand_mask(over, value), fresh.get(key), value)
                for key, value in carried.items()
            }
    # Time first: each step is copied in one piece.
    stacked = {
        key: torch.stack([row[key] for row in history]).movedim(0, time)
        for key, value in history[0].items()
        if value is not None
    }
    if _SCORED[0] in stacked:
        logits, scores = stacked.pop(_SCORED[0]), [stacked.pop(key, None) for key in _SCORED[1:]]
        draw = HybridDraw(stacked["discrete"], stacked["continuous"], logits, *scores)
        stacked |= zip(_LOG_PROBS, draw.log_probs(), strict=True)
    return _assemble(env, stacked).refine_names(..., "time")


def entries_of(draw: HybridDraw, policy: HybridPolicy) -> dict[str, Tensor | None]:
    """Return what a transition says of a draw: the action, and what it is scored by."""
    chosen = {"discrete": draw.discrete, "continuous": draw.continuous}
    scored = zip(_SCORED, draw[2:], strict=True) if policy.return_log_prob else ()
    return {**chosen, **dict(scored)}


def _assemble(env: DifferentiableEnv, stacked: dict[str, Tensor]) -> TensorDict:
    """Build the tensordict that ``env.rollout`` would have built."""
    over = stacked.pop("over")
    shape = over.shape[:-1]
    never = torch.zeros_like(over)
    terminated, truncated = (over, never) if env.horizon_terminates else (never, over)
    after: dict[str, Any] = {
        key.removeprefix("next "): stacked.pop(key)
        for key in list(stacked)
        if key.startswith("next ")
    }
    after |= {"reward": stacked.pop("reward"), "done": over}
    after |= {"terminated": terminated, "truncated": truncated}
    action = {key: stacked.pop(key) for key in ("discrete", "continuous")}
    root: dict[str, Any] = {**stacked, "action": TensorDict(action, batch_size=shape)}
    # Whoever was done has been reset, so no step starts in a state that is done.
    root |= {"done": never, "terminated": never, "truncated": never}
    root["next"] = TensorDict(after, batch_size=shape)
    return TensorDict(root, batch_size=shape, device=env.device)


def _general_route(
    env: EnvBase,
    policy: HybridPolicy,
    num_steps: int,
    start: TensorDictBase,
    noise: Tensor | None,
    discount: float,
) -> TensorDict:
    steps = []
    if noise is not None:
        env.load_noise(noise)
    plain = isinstance(policy, HybridPolicy) and policy.is_plain
    act, rewritten = (_actor(policy), ()) if plain else (policy, policy.out_keys)
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
                    carried = carried.exclude(*rewritten).flatten_keys()
                    carried = carried.update(_discount_gradients(carried, discount))
                    carried = carried.unflatten_keys()
    finally:
        if noise is not None:  # a failed rollout leaves none of its noise to the next one
            env.load_noise(None)
    rollout = LazyStackedTensorDict.maybe_dense_stack(steps, len(env.batch_size))
    rollout = rollout.exclude(*_PARAMETERS)
    if _SCORED[0] in rollout.keys():  # noqa: SIM118
        logits, *scores = (rollout.pop(key, None) for key in _SCORED)
        action = rollout.get("action")
        draw = HybridDraw(action["discrete"], action["continuous"], logits, *scores)
        for key, score in zip(_LOG_PROBS, draw.log_probs(), strict=True):
            rollout.set(key, score)
    return rollout


def _actor(policy: HybridPolicy) -> Callable[[TensorDictBase], TensorDictBase]:
    """Return what writes a policy's action, and what it is scored by at the end of a rollout."""
    sample = policy.sampler()

    def act(tensordict: TensorDictBase) -> TensorDictBase:
        draw = sample(tensordict.get(policy.observation_key), policy.mask_of(tensordict))
        for key, value in entries_of(draw, policy).items():
            if value is not None:
                tensordict.set(key if key in _SCORED else ("action", key), value)
        return tensordict

    return act


class _ScaleGradients(torch.autograd.Function):
    """The identity on all values, with their gradients multiplied by a factor."""

    # With the context in ``forward``: apart, torch binds the arguments by signature in every call,
    # which takes four times as long as all the rest.
    @staticmethod
    def forward(ctx: Any, factor: float, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.factor = factor
        return tuple([value.view_as(value) for value in values])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[gradient * ctx.factor for gradient in gradients]


def _discount_gradients(entries: Mapping[str, Tensor], discount: float) -> dict[str, Tensor]:
    """Return the entries with the gradients of those that have any multiplied by ``discount``."""
    entries = dict(entries)
    if discount != 1.0:
        names = [key for key, value in entries.items() if value.requires_grad]
        if names:
            scaled = _ScaleGradients.apply(discount, *(entries[key] for key in names))
            entries |= zip(names, scaled, strict=True)
    return entries


def expand_mask(mask: Tensor, value: Tensor) -> Tensor:
    """Append dimensions to a mask ``(*B, 1)`` until it broadcasts with an entry."""
    return mask.reshape(*mask.shape, *(1,) * (value.ndim - mask.ndim))


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
