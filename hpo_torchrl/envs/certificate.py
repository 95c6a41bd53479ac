"""Prove by trying that a hybrid problem is its original, and find where it jumps inside a piece."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hpo_torchrl.core.checks import check_int, shown

# Lines through each piece along which jumps are looked for.
_LINES = 128
# Half-open pieces are tried this many action scales beyond all breakpoints, at least.
_SPAN = 4.0
# Halvings after the grid: what shrinks with the distance is below a thousandth of it by then.
_HALVINGS = 10
_GRID = 65
# Share of a step on the grid that is left after the halvings, if it was a jump.
_LEFT = 0.5


class Jump(NamedTuple):
    """A jump found inside a piece.

    Attributes:
        discrete: the discrete action.
        what: ``"reward"``, or the name of a state entry.
        before: continuous action on one side, ``(n,)`` as a list.
        after: on the other side.
        size: difference of the two values.
    """

    discrete: int
    what: str
    before: list[float]
    after: list[float]
    size: float

    def __str__(self) -> str:
        return (
            f"with discrete={self.discrete}, {self.what} changes by {self.size:.4g} between the "
            f"actions {[float(f'{value:.6g}') for value in self.before]} and "
            f"{[float(f'{value:.6g}') for value in self.after]}"
        )


@torch.no_grad()
def find_jumps(env: Any, *, num_lines: int = 32, seed: int = 0) -> list[Jump]:
    """Look for jumps of reward or next state inside the pieces of a hybridized problem.

    Along random lines through each piece the largest step of a grid is halved again and again: a
    kink or a steep slope shrinks with the distance, a jump stays.

    Args:
        env: an environment with ``pieces``, such as :func:`~hpo_torchrl.envs.hybridize` makes.
        num_lines: lines through each piece, at least.
        seed: seed of the lines, states and noise; the environment's generator is left as it was.

    Returns:
        The jumps found: of as many lines as there are instances, one at most for each discrete
        action and each of reward and state entries.
    """
    _check_pieces(env, seed)
    check_int("num_lines", num_lines, minimum=1)
    memory = env.rng.get_state()
    generator = torch.Generator(device=env.device or "cpu").manual_seed(seed)
    jumps: list[Jump] = []
    try:
        env.rng.manual_seed(seed)
        while num_lines > 0:  # as many at once as there are instances
            jumps += _along_lines(env, generator)
            num_lines -= max(1, env.batch_size.numel())
    finally:
        env.rng.set_state(memory)
    return jumps


def _check_pieces(env: Any, seed: Any) -> None:
    check_int("seed", seed, minimum=0)
    if getattr(env, "pieces", None) is None:
        raise TypeError(
            f"env must be an environment with pieces, as hybridize makes it, got {shown(env)}."
        )


def refuse_jumps(env: Any, fix: str) -> None:
    """Raise a ``ValueError`` that names a jump inside a piece, if :func:`find_jumps` finds one."""
    jumps = find_jumps(env)
    if jumps:
        raise ValueError(
            f"{type(env.original).__name__} still jumps inside a piece of {env.pieces}: {jumps[0]}."
            f" Add that value to the breakpoints ({fix})."
        )


def _along_lines(env: Any, generator: torch.Generator) -> list[Jump]:
    """Follow a line through each of the M pieces in every instance, all at once."""
    state, noise = _situation(env)
    names = ("reward", *(name for name in env.state_names if name != "step"))
    place = {"dtype": env.float_dtype, "device": env.device}
    heads = () if env.num_heads is None else (env.num_heads,)
    lines = (env.num_discrete, *env.batch_size)
    discrete = torch.arange(env.num_discrete, device=env.device)
    discrete = discrete.view(-1, *[1] * len((*env.batch_size, *heads))).expand(*lines, *heads)

    both = discrete.expand(2, *discrete.shape)

    def executed(u: Tensor) -> Tensor:
        return env.pieces.executed({"discrete": both, "continuous": u})["continuous"]

    shape = (2, *lines, env.continuous_dim)
    ends = torch.tensor([0.0, 1.0], **place).view(2, *[1] * len(shape[1:]))
    low, high = executed(((2 * ends - 1) * _reach(env)).expand(shape))
    uniform = torch.rand(shape, generator=generator, **place)
    # Some lines begin and end in the ends themselves: what jumps only there is met by no other.
    at_end = torch.rand(*shape[:-1], 1, generator=generator, device=env.device) < 0.5
    start, end = executed(torch.lerp(low, high, torch.where(at_end, ends, uniform)))

    def action(where: Tensor) -> Tensor:
        return start + where.unsqueeze(-1) * (end - start)

    def values(where: Tensor) -> Tensor:
        """Reward and sum of each state entry, ``(W, *shape)``, at places ``(..., M, *B)``."""
        more = where.shape[: where.ndim - len(env.batch_size)]
        after, reward = env.dynamics(
            {key: value.expand(*more, *value.shape) for key, value in state.items()},
            {"discrete": discrete.expand(*more[:-1], *discrete.shape), "continuous": action(where)},
            noise.expand(*more, *noise.shape),
        )
        sums = (after[name].reshape(*where.shape, -1).sum(-1) for name in names[1:])
        return torch.stack([reward, *sums])

    places = torch.linspace(0, 1, _GRID, **place)
    grid = torch.stack([values(each.expand(lines)) for each in places], -1)
    first, index = grid.diff(dim=-1).abs().max(-1)
    left, right = places[index], places[index + 1]
    before, after = (grid.gather(-1, at.unsqueeze(-1)).squeeze(-1) for at in (index, index + 1))
    for _ in range(_HALVINGS):
        middle = 0.5 * (left + right)
        # Each quantity has places of its own: the diagonal of all quantities at all places.
        value = values(middle).diagonal().movedim(-1, 0)
        upper = (after - value).abs() > (value - before).abs()
        left, before = torch.where(upper, middle, left), torch.where(upper, value, before)
        right, after = torch.where(upper, right, middle), torch.where(upper, after, value)
    last = (after - before).abs()
    # Rounding alone makes steps of this size.
    rounding = 1e3 * torch.finfo(env.float_dtype).eps * (1.0 + grid.abs().amax(-1))
    found = ((last > _LEFT * first) & (last > rounding)).reshape(len(names), lines[0], -1)
    jumps = []
    for choice, what in found.any(-1).T.nonzero().tolist():
        row = int(found[what, choice].float().argmax())
        sides = [
            action(side[what])[choice].reshape(-1, env.continuous_dim)[row].tolist()
            for side in (left, right)
        ]
        size = float(last[what, choice].flatten()[row])
        jumps.append(Jump(choice, names[what], sides[0], sides[1], size))
    return jumps


def _situation(env: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Initial states, and noise of one step."""
    state = env.fresh_state()
    return state, env.sample_noise(1, state).squeeze(len(env.batch_size))


def _reach(env: Any) -> float:
    """How far from 0 actions are tried: all breakpoints are well within."""
    ends = torch.cat([env.pieces.low, env.pieces.high]).nan_to_num(posinf=0.0, neginf=0.0)
    return 2 * float(ends.abs().max()) + _SPAN * float(env.action_scale.max())


class Certificate(NamedTuple):
    """How far a hybrid problem was from its original.

    Attributes:
        num_actions: actions compared.
        num_skipped: actions that no piece offers; others were compared instead.
        reward_error: largest absolute difference of rewards.
        state_error: largest absolute difference of next states.
        discrete: how often each discrete action was used (by head, if there are several).
        jumps: jumps found inside the pieces, by :func:`find_jumps`.
    """

    num_actions: int
    num_skipped: int
    reward_error: float
    state_error: float
    discrete: list[int]
    jumps: list[Jump]

    @property
    def exact(self) -> bool:
        """Whether there was no difference at all, and no jump."""
        return not self.jumps and self.reward_error == 0.0 and self.state_error == 0.0


@torch.no_grad()
def certify(env: Any, num_actions: int = 1_000_000, *, seed: int = 0) -> Certificate:
    """Compare a hybridized problem with its original on random actions.

    Actions are uniform over the pieces' surroundings; a third of the instances act exactly on a
    breakpoint or on the nearest number beside it. States are the environment's own initial states,
    noise its own.

    Args:
        env: an environment with ``pieces`` and its ``original``, such as
            :func:`~hpo_torchrl.envs.hybridize` makes, with any batch size (large is faster).
        num_actions: how many actions to try, at least; rounded up to whole batches.
        seed: seed of actions, states and noise; the environment is left with it.

    Returns:
        The certificate; ``.exact`` if rewards and next states were equal to the last bit.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.envs import certify
        >>> from hpo_torchrl.problems.inventory.order_quantities import MinimumOrder
        >>> env = InventoryEnv(features=[MinimumOrder(20.0)], batch_size=1000)
        >>> certify(env, 10_000).exact
        True
    """
    _check_pieces(env, seed)
    check_int("num_actions", num_actions, minimum=1)
    env.set_seed(seed)
    generator = torch.Generator(device=env.device or "cpu").manual_seed(seed)
    instances = max(1, env.batch_size.numel())
    batches, skipped = math.ceil(num_actions / instances), 0
    reward_error = state_error = 0.0
    used = torch.zeros(env.num_discrete, dtype=torch.int64)
    for _ in range(batches):
        state, noise = _situation(env)
        u, choices = _actions(env, generator), env.original.num_discrete
        own = torch.randint(choices, env.batch_size, generator=generator, device=env.device)
        piece, _, offered = env.pieces.find(u)
        skipped += int((~offered).sum())
        u = torch.where(offered.unsqueeze(-1), u, env.pieces.project(piece, u))
        action = {"discrete": own, "continuous": u}
        hybrid = env.pieces.encoded(action)
        used += torch.bincount(hybrid["discrete"].flatten().cpu(), minlength=env.num_discrete)
        expected, reward = env.original.dynamics(state, action, noise)
        found, hybrid_reward = env.dynamics(state, hybrid, noise)
        reward_error = max(reward_error, _error(hybrid_reward, reward))
        state_error = max(state_error, *(_error(found[name], expected[name]) for name in expected))
    jumps = find_jumps(env, num_lines=_LINES, seed=seed)
    return Certificate(
        batches * instances, skipped, reward_error, state_error, used.tolist(), jumps
    )


def _actions(env: Any, generator: torch.Generator) -> Tensor:
    """Random continuous actions, many of them on and beside the ends of pieces: ``(*B, n)``."""
    n, shape = env.continuous_dim, (*env.batch_size, env.continuous_dim)
    place: dict[str, Any] = {"generator": generator, "device": env.device}
    low, high = env.continuous_bounds
    low, high = -_reach(env) if low is None else low, _reach(env) if high is None else high
    marks = torch.cat([env.pieces.low, env.pieces.high]).clamp(low, high)
    infinity = torch.full_like(marks, torch.inf)
    marks = torch.cat([marks, marks.nextafter(infinity), marks.nextafter(-infinity)])
    marks = marks.clamp(low, high).unique()
    # No subnormals: no piece has any.
    marks = marks[(marks == 0) | (marks.abs() >= torch.finfo(marks.dtype).tiny)]
    actions = low + (high - low) * torch.rand(shape, dtype=env.float_dtype, **place)
    exact = marks[torch.randint(len(marks), shape, **place)]
    if env.pieces.of_total:  # one coordinate bears the total
        actions = actions / n
        exact = exact * one_hot(torch.randint(n, env.batch_size, **place), n)
    on_mark = torch.rand((*env.batch_size, 1), **place) < 1 / 3
    return torch.where(on_mark, exact, actions)


def _error(found: Tensor, expected: Tensor) -> float:
    difference = (found - expected).abs().nan_to_num(nan=math.inf)
    # Equal infinities are equal.
    return float(torch.where(found == expected, 0.0, difference).max())
