"""Simulating every discrete action of a step: straight-through steps, estimates of Q."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from hpo_torchrl.collectors.engine import Transition
from hpo_torchrl.collectors.inputs import Entries, check_functional
from hpo_torchrl.core.categorical import ACTION_KEYS, unsqueeze_like
from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridDistribution, HybridPolicy
from hpo_torchrl.modules.sampling import Noise


def straight_through_step(
    env: DifferentiableEnv, policy: HybridPolicy, temperature: float
) -> Transition:
    """Return what takes one step of a :func:`straight_through_rollout`, whose formulas it is."""

    def transition(carried: Entries, noise: Tensor, own: Noise | None) -> tuple:
        logits, loc, scale = policy.network(carried["observation"])
        dist = HybridDistribution(
            logits,
            loc,
            scale,
            policy.mask_of(carried),
            validate_args=False,
            distribution=policy.continuous_distribution,
        )
        draw = dist.draw(own)
        action = {"discrete": draw.discrete, "continuous": draw.continuous}
        after, reward, over = env.advance(carried, action, noise)
        perturbed = dist.logits if own is None else dist.logits - own.discrete
        soft = (perturbed / temperature).softmax(-1)
        if soft.requires_grad:
            with torch.no_grad():  # what every action leads to, of batch (M, *B)
                branches = dist.actions(None if own is None else own.continuous).movedim(-2, 0)
                number, *batch, _ = branches.shape
                every = torch.arange(number, device=noise.device).view(-1, *(1,) * len(batch))
                forced = {"discrete": every.expand(number, *batch), "continuous": branches}
                copies = {k: value.expand(number, *value.shape) for k, value in carried.items()}
                others, rewards, _ = env.advance(copies, forced, noise.expand(number, *noise.shape))
            reward = _StraightThrough.apply(reward, soft, rewards)
            after = {
                key: _StraightThrough.apply(value, soft, others[key])
                if value.is_floating_point()
                else value
                for key, value in after.items()
            }
        return draw, after, reward, over

    return transition


class _StraightThrough(torch.autograd.Function):
    """The executed action's value, with the gradient of the sum of weight times value.

    A function of its own, because adding (soft - soft) * values would not be exact: it turns -0
    into 0, and the infinite value of an action not taken into NaN.
    """

    @staticmethod
    def forward(value: Tensor, soft: Tensor, values: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, soft, values = inputs
        ctx.leading = soft.ndim
        ctx.save_for_backward(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (values,) = ctx.saved_tensors
        slopes = (gradient * values).flatten(ctx.leading).sum(-1)
        return gradient, slopes.movedim(0, -1), None


@torch.no_grad()
def branched_returns(
    env: DifferentiableEnv,
    policy: HybridPolicy,
    rollout: TensorDictBase,
    noise: Tensor,
    *,
    gamma: float = 1.0,
    critic: TensorDictModuleBase | None = None,
    num_steps: int | None = None,
    critic_unit: Tensor | float = 1.0,
    randomness: Randomness | None = None,
) -> Tensor:
    r"""Estimate Q(s_t, d) of every visited state and discrete action, by simulating each of them.

    With heads the discrete actions of each head are tried in turn, beside those that the other
    heads took: 1 + H (M - 1) branches a state, where one choice has M. The estimate is of
    :math:`E[Q(s_t, d) | d_h]`, which is what the score of one head takes.

    From state :math:`s_t` action d is forced once, with the continuous action of its branch;
    then the policy acts for k steps in all, or until the episode or the rollout ends:

    .. math::
        \hat Q(s_t, d) = \sum_{j<k} \gamma^j r_{t+j} + \gamma^k V(s_{t+k})

    The last term needs a critic and is left out where the episode terminated (a truncated one is
    bootstrapped where it stopped). All discrete actions of a state face the same exogenous noise
    and the same random numbers of the policy (common random numbers), so that differences between
    them vary less than the estimates themselves. Actions are drawn afresh: each estimate is
    unbiased for the policy's Q, up to the critic.

    Without ``num_steps`` one pass over the rollout does it all: at step t, the (t + 1) M copies of
    the batch that have branched off so far take one step together, and the work is M (T + 1) / 2
    times that of a rollout without a graph. With it, all branch off at once, and the work is M k
    times that of the steps given.

    Args:
        env: the environment, batch size ``*B``; neither its state nor its generator is touched.
        policy: a policy that reads ``"observation"``, and no mask but the environment's.
        rollout: tensordict ``(*B, T)`` with the state entries and ``"observation"`` of each step
            and, where there are heads, ``"action"``, as :func:`differentiable_rollout` returns it;
            with ``num_steps``, of any steps.
        noise: the noise that the rollout was given, ``(*B, T, *noise_shape)``; with ``num_steps``
            that of each state's own branches, ``(*B, T, k, *noise_shape)``.
        gamma: discount factor, in [0, 1].
        critic: module from ``"observation"`` to ``"state_value"``; ``None`` adds no value at
            the end.
        num_steps: steps k of a branch; ``None`` goes on to the rollout's end.
        critic_unit: reward that is 1 in the unit of the critic's values.
        randomness: where the policy's random numbers come from; ``None`` is its own source.

    Returns:
        Tensor ``(*B, T, M)``, with heads ``(*B, T, H, M)``, without a graph.

    Raises:
        TypeError: the environment or policy has no functional core.
        KeyError: the rollout lacks an entry.
        ValueError: a shape, a key of the critic or a number is wrong.

    Examples:
        >>> from hpo_torchrl.collectors import branched_returns, differentiable_rollout
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(batch_size=4, initial_state="random")
        >>> policy = HybridPolicy.for_env(env)
        >>> noise = env.sample_noise(10)
        >>> rollout = differentiable_rollout(env, policy, 10, noise=noise)
        >>> branched_returns(env, policy, rollout, noise, gamma=0.95).shape
        torch.Size([4, 10, 2])
    """
    check_functional(
        "branched_returns", env, policy, "it branches the simulator, which must be pure"
    )
    if policy.num_seeds is not None:
        raise ValueError(
            "branched_returns adds an axis of its own before the batch, where that of the "
            f"{policy.num_seeds} seeds is; call it for each of policy.members."
        )
    check_float("gamma", gamma, minimum=0.0, maximum=1.0)
    _check_critic(critic)
    batch, time = tuple(env.batch_size), len(env.batch_size)
    names: tuple[Any, ...] = (*env.state_names, *env.shown_names)
    names += () if env.num_heads is None else ACTION_KEYS
    _check_data(env, rollout, noise, names, num_steps)
    randomness = policy.randomness if randomness is None else randomness
    visited = {key: rollout.get(key).movedim(time, 0) for key in names}
    here = policy.distribution(visited["observation"], policy.mask_of(visited))
    drawn = here.sample_noise((), randomness, 1) if policy.acts_randomly else None
    taken = [visited.pop(key) for key in ACTION_KEYS] if here.heads else []
    forced = _forced(here.actions(None if drawn is None else drawn.continuous), *taken)
    (steps, number), sample = forced[0].shape[:2], policy.sampler()

    # Rows are (time of branching, branch, *B); one whose episode is over stays as it is.
    rows: dict[str, Tensor] = {
        key: value.new_empty(0, number, *value.shape[1:]) for key, value in visited.items()
    }
    returns = forced[1].new_zeros(steps, number, *batch, 1)
    weight = torch.ones_like(returns)
    running = torch.ones_like(returns, dtype=torch.bool)
    begun = 0
    for step_noise in noise.unbind(time if num_steps is None else time + 1):
        new = slice(begun, steps if num_steps else begun + 1)
        chosen: list[list[Tensor]] = [[], []]
        if begun:  # networks take no empty batch
            shared = _shared_noise(here, begun, randomness) if policy.acts_randomly else None
            later = sample(rows["observation"], policy.mask_of(rows), shared)
            chosen = [[later.discrete], [later.continuous]]
        if fresh_rows := len(forced[0][new]):
            for part, branches in zip(chosen, forced, strict=True):
                part.append(branches[new])
            for key, value in visited.items():
                fresh = value[new].unsqueeze(1).expand(-1, number, *value.shape[1:])
                rows[key] = torch.cat([rows[key], fresh])
            begun += fresh_rows
        if num_steps is None:
            step_noise = step_noise.unsqueeze(time)
        faced = step_noise.movedim(time, 0).unsqueeze(1)
        faced = faced.expand(begun, number, *faced.shape[2:])
        discrete, continuous = map(torch.cat, chosen)
        action = {"discrete": discrete, "continuous": continuous}
        after, reward, over = env.advance(rows, action, faced)
        after |= env.show(after)
        moving, place = running[:begun], slice(begun)
        returns[place] += torch.where(moving, weight[place] * reward, 0.0)
        weight[place] = torch.where(moving, weight[place] * gamma, weight[place])
        if over is None:
            rows = after
            continue
        rows = {
            key: torch.where(unsqueeze_like(moving, value), value, rows[key])
            for key, value in after.items()
        }
        running[place] = moving & ~over
    if critic is not None:
        final = TensorDict({"observation": rows["observation"]}, batch_size=returns.shape[:-1])
        value = weight * critic_unit * critic(final).get("state_value")
        returns += torch.where(running, value, 0.0) if env.horizon_terminates else value
    found = returns.squeeze(-1).movedim((0, 1), (time, time + 1))
    return _by_head(found, taken[0].movedim(0, time), here.num_discrete) if taken else found


def _forced(actions: Tensor, *taken: Tensor) -> tuple[Tensor, Tensor]:
    """Return the discrete and the continuous actions of all branches, ``(T, N, *B, ...)``.

    Args:
        actions: the continuous action beside each discrete one, ``(T, *B, M, n)`` or
            ``(T, *B, H, M, k)``.
        taken: with heads, the discrete and continuous actions that the others keep. The first
            branch is these; then each head in turn takes each of its others.
    """
    if not taken:
        branches = actions.movedim(-2, 1)
        every = torch.arange(branches.shape[1], device=actions.device)
        return every.view(1, -1, *(1,) * (branches.ndim - 3)).expand(branches.shape[:-1]), branches
    discrete, continuous = taken
    heads, number, size = actions.shape[-3:]
    other = _others(discrete, number)  # (T, *B, H, M - 1)
    own = torch.eye(heads, dtype=torch.bool, device=actions.device).unsqueeze(-2)
    choices = torch.where(own, other.unsqueeze(-1), discrete[..., None, None, :])
    moved = actions.gather(-2, other.unsqueeze(-1).expand(*other.shape, size))
    kept = continuous.unflatten(-1, (heads, size))[..., None, None, :, :]
    powers = torch.where(own.unsqueeze(-1), moved.unsqueeze(-2), kept).flatten(-2)
    parts = [
        torch.cat([first.unsqueeze(-2), branches.flatten(-3, -2)], -2).movedim(-2, 1)
        for first, branches in ((discrete, choices), (continuous, powers))
    ]
    return parts[0], parts[1]


def _others(discrete: Tensor, number: int) -> Tensor:
    """Return the discrete actions of each head that were not taken, ``(*B, H, M - 1)``."""
    steps = torch.arange(1, number, device=discrete.device)
    return (discrete.unsqueeze(-1) + steps) % number


def _by_head(returns: Tensor, discrete: Tensor, number: int) -> Tensor:
    """Lay returns of branches ``(*B, N)`` out by head and discrete action, ``(*B, H, M)``."""
    heads = discrete.shape[-1]
    values = returns[..., :1, None].expand(*discrete.shape, number).clone()
    others = returns[..., 1:].unflatten(-1, (heads, number - 1))
    return values.scatter(-1, _others(discrete, number), others)


def _shared_noise(here: HybridDistribution, rows: int, randomness: Randomness) -> Noise:
    """Draw the random numbers of so many rows, which all discrete actions share: the second axis.

    Args:
        here: the distribution where the branches begin.
        rows: number of rows.
        randomness: where they come from.
    """
    place: dict[str, Any] = {"dtype": here.loc.dtype, "device": here.loc.device}
    logs = torch.empty((rows, 1, *here.logits.shape[1:]), **place)
    logs = randomness.fill("exponential", logs, 2).log_()
    if here.scale is None:
        return Noise(logs)
    own = torch.empty((rows, 1, *here.batch_shape[1:], *here.event_shape), **place)
    return Noise(logs, randomness.fill(here.distribution.noise, own, 2))


def _check_critic(critic: TensorDictModuleBase | None) -> None:
    keys = [*getattr(critic, "in_keys", ()), *getattr(critic, "out_keys", ())]
    if critic is not None and keys != ["observation", "state_value"]:
        raise ValueError(
            "critic must be a TensorDictModule that reads 'observation' alone and writes "
            f"'state_value', or None, got {type(critic).__name__} with the keys {keys}; build one "
            "with make_value_network(env)."
        )


def _check_data(
    env: DifferentiableEnv,
    rollout: TensorDictBase,
    noise: Tensor,
    names: tuple[str, ...],
    num_steps: int | None,
) -> None:
    batch, shape = tuple(env.batch_size), tuple(getattr(rollout, "shape", ()))
    if shape[:-1] != batch or len(shape) != len(batch) + 1:
        raise ValueError(
            f"rollout must be a tensordict of shape (*B, T) = {(*batch, 'T')}, got "
            f"{type(rollout).__name__} of shape {shape}."
        )
    if missing := [key for key in names if rollout.get(key, None) is None]:
        raise KeyError(
            f"rollout lacks {missing}: it must hold the state and observation of every step, as "
            "differentiable_rollout returns them."
        )
    if num_steps is None:
        env.check_noise(noise, shape[-1])
        return
    check_int("num_steps", num_steps, minimum=1)
    expected = (*shape, num_steps, *env.noise_shape)
    if tuple(noise.shape) != expected:
        raise ValueError(
            f"noise must have shape (*B, T, num_steps, *noise_shape) = {expected}, got "
            f"{tuple(noise.shape)}: each state has its own."
        )
