"""Simulating every discrete action of a step: straight-through steps, estimates of Q."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.utils._pytree import tree_map

from hpo_torchrl.collectors.engine import Transition
from hpo_torchrl.collectors.inputs import Entries, check_functional, one_by_one
from hpo_torchrl.core.categorical import ACTION_KEYS, unsqueeze_like
from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridDistribution, HybridPolicy
from hpo_torchrl.modules.sampling import Noise

# What is counted of a row: its rewards so far, what the next one weighs, and whether it goes on.
_TALLY = ("branch value", "branch weight", "branch goes on")


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
    loop: Callable[..., Any] = one_by_one,
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
        policy: a policy that reads ``"observation"``, and no mask but the environment's; of S seeds
            beside a :class:`ReplicatedEnv`, whose batch size begins with S.
        rollout: tensordict ``(*B, T)`` with the state entries and ``"observation"`` of each step
            and, where there are heads, ``"action"``, as :func:`differentiable_rollout` returns it;
            with ``num_steps``, of any steps.
        noise: the noise that the rollout was given, ``(*B, T, *noise_shape)``; with ``num_steps``
            that of each state's own branches, ``(*B, T, k, *noise_shape)``.
        gamma: discount factor, in [0, 1].
        critic: module from ``"observation"`` to ``"state_value"``; ``None`` adds no value at
            the end.
        num_steps: steps k of a branch; ``None`` goes on to the rollout's end.
        critic_unit: reward that is 1 in the unit of the critic's values, of each seed ``(S,)``.
        randomness: where the policy's random numbers come from; ``None`` is its own source.
        loop: takes the steps after the first, with ``num_steps``: one by one, or a
            :class:`~hpo_torchrl.collectors.scan.Scan`.

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
    if (found := getattr(env, "num_seeds", None)) != policy.num_seeds:
        raise ValueError(
            f"The environment has num_seeds={found} and the policy {policy.num_seeds}: "
            "branched_returns needs a ReplicatedEnv of as many seeds, or one of policy.members."
        )
    check_float("gamma", gamma, minimum=0.0, maximum=1.0)
    _check_critic(critic)
    # Seeds stay the first axis.
    lead, time = int(policy.num_seeds is not None), len(env.batch_size)
    seeds, batch = tuple(env.batch_size[:lead]), tuple(env.batch_size[lead:])
    equations: Any = env.equations
    names: tuple[Any, ...] = (*env.state_names, *env.shown_names)
    names += () if env.num_heads is None else ACTION_KEYS
    _check_data(env, rollout, noise, names, num_steps)
    randomness = policy.randomness if randomness is None else randomness
    visited = {key: rollout.get(key).movedim(time, lead) for key in names}
    here = policy.distribution(visited["observation"], policy.mask_of(visited))
    drawn = here.sample_noise((), randomness, lead + 1) if policy.acts_randomly else None
    taken = [visited.pop(key) for key in ACTION_KEYS] if here.heads else []
    actions = here.actions(None if drawn is None else drawn.continuous)
    forced = _forced(lead, actions, *taken)
    steps, number = forced[0].shape[lead : lead + 2]
    ones = forced[1].new_ones(*seeds, steps, number, *batch, 1)
    # Rows are (time of branching, branch, *B); one whose episode is over stays as it is.
    fresh = {
        key: value.unsqueeze(lead + 1).expand(*seeds, -1, number, *value.shape[lead + 1 :])
        for key, value in visited.items()
    } | dict(zip(_TALLY, (torch.zeros_like(ones), ones, ones.bool()), strict=True))

    def stepped(
        rows: dict[str, Tensor], discrete: Tensor, continuous: Tensor, faced: Tensor
    ) -> dict[str, Tensor]:
        """Take a step of all rows, with noise that all branches share."""
        rows = dict(rows)
        value, weight, running = (rows.pop(key) for key in _TALLY)
        action = {"discrete": discrete, "continuous": continuous}
        faced = faced.expand(*discrete.shape[: lead + 2], *faced.shape[lead + 2 :])
        after, reward, over = equations.advance(rows, action, faced)
        after |= equations.show(after)
        value = value + torch.where(running, weight * reward, 0.0)
        weight = torch.where(running, weight * gamma, weight)
        if over is not None:
            after = {
                key: torch.where(unsqueeze_like(running, found), found, rows[key])
                for key, found in after.items()
            }
            running = running & ~over
        return after | dict(zip(_TALLY, (value, weight, running), strict=True))

    def decided(rows: dict[str, Tensor], shared: Noise | None) -> tuple[Tensor, Tensor]:
        """Let the policy act in all rows."""
        return policy.sampler()(rows["observation"], policy.mask_of(rows), shared)[:2]

    def shared_noise(number: int) -> Noise | None:
        return _shared_noise(here, lead, number, randomness) if policy.acts_randomly else None

    def later(rows: dict[str, Tensor], given: Any) -> tuple[dict[str, Tensor], dict]:
        shared, faced = given
        return stepped(rows, *decided(rows, shared), faced), {}

    if num_steps is None:
        rows = {key: value.narrow(lead, 0, 0) for key, value in fresh.items()}
        for at, faced in enumerate(noise.movedim(time, 0)):
            chosen = [part.narrow(lead, at, 1) for part in forced]
            if at:
                before = decided(rows, shared_noise(at))
                chosen = [torch.cat(parts, lead) for parts in zip(before, chosen, strict=True)]
            rows = {
                key: torch.cat([rows[key], value.narrow(lead, at, 1)], lead)
                for key, value in fresh.items()
            }
            discrete, continuous = chosen
            rows = stepped(rows, discrete, continuous, faced.unsqueeze(lead).unsqueeze(lead))
    else:
        faces = noise.movedim((time + 1, time), (0, lead + 1)).unsqueeze(lead + 2)
        rows = stepped(fresh, *forced, faces[0])
        if num_steps > 1:
            own = [shared_noise(steps) for _ in range(num_steps - 1)]
            shared = tree_map(
                lambda *parts: torch.stack(parts) if parts[0] is not None else None, *own
            )
            rows, _ = loop(later, rows, (shared, faces[1:]), (gamma,))
    returns, weight, running = (rows[key] for key in _TALLY)
    if critic is not None:
        final = TensorDict({"observation": rows["observation"]}, batch_size=returns.shape[:-1])
        value = critic(final).get("state_value")
        unit = torch.as_tensor(critic_unit, dtype=value.dtype, device=value.device)
        value = weight * unsqueeze_like(unit, value) * value
        returns += torch.where(running, value, 0.0) if env.horizon_terminates else value
    found = returns.squeeze(-1).movedim((lead, lead + 1), (time, time + 1))
    return _by_head(found, taken[0].movedim(lead, time), here.num_discrete) if taken else found


def _forced(lead: int, actions: Tensor, *taken: Tensor) -> tuple[Tensor, Tensor]:
    """Return the discrete and the continuous actions of all branches, ``(T, N, *B, ...)``.

    Args:
        lead: the axis of time, before which seeds are.
        actions: the continuous action beside each discrete one, ``(T, *B, M, n)`` or
            ``(T, *B, H, M, k)``.
        taken: with heads, the discrete and continuous actions that the others keep. The first
            branch is these; then each head in turn takes each of its others.
    """
    if not taken:
        branches = actions.movedim(-2, lead + 1)
        every = torch.arange(branches.shape[lead + 1], device=actions.device)
        every = every.view(-1, *(1,) * (branches.ndim - lead - 3))
        return every.expand(branches.shape[:-1]), branches
    discrete, continuous = taken
    heads, number, size = actions.shape[-3:]
    other = _others(discrete, number)  # (T, *B, H, M - 1)
    own = torch.eye(heads, dtype=torch.bool, device=actions.device).unsqueeze(-2)
    choices = torch.where(own, other.unsqueeze(-1), discrete[..., None, None, :])
    moved = actions.gather(-2, other.unsqueeze(-1).expand(*other.shape, size))
    kept = continuous.unflatten(-1, (heads, size))[..., None, None, :, :]
    powers = torch.where(own.unsqueeze(-1), moved.unsqueeze(-2), kept).flatten(-2)
    parts = [
        torch.cat([first.unsqueeze(-2), branches.flatten(-3, -2)], -2).movedim(-2, lead + 1)
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


def _shared_noise(here: HybridDistribution, lead: int, rows: int, randomness: Randomness) -> Noise:
    """Draw the random numbers of so many rows, which all discrete actions share: the axis after.

    Args:
        here: the distribution where the branches begin.
        lead: the axis of rows, before which seeds are.
        rows: number of rows.
        randomness: where they come from.
    """
    place: dict[str, Any] = {"dtype": here.loc.dtype, "device": here.loc.device}
    seeds, rest = here.logits.shape[:lead], here.logits.shape[lead + 1 :]
    logs = torch.empty((*seeds, rows, 1, *rest), **place)
    logs = randomness.fill("exponential", logs, lead + 2).log_()
    if here.scale is None:
        return Noise(logs)
    shape = (*seeds, rows, 1, *here.batch_shape[lead + 1 :], *here.event_shape)
    own = torch.empty(shape, **place)
    return Noise(logs, randomness.fill(here.distribution.noise, own, lead + 2))


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
