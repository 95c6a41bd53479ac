"""Prove by trying that a hybrid problem is its original, and find where it jumps inside a piece."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.envs.action_pieces import ActionPieces
from hpo_torchrl.envs.differentiable import DifferentiableEnv

# Lines through each piece along which jumps are looked for.
_LINES = 128
# Half-open pieces are tried this many action scales far.
SPAN = 4.0
# Halvings after the grid: what shrinks with the distance is below a thousandth of it by then.
_HALVINGS = 10
_GRID = 65
# Share of a step on the grid that is left after the halvings, if it was a jump.
_LEFT = 0.5


class PiecewiseEnv(Protocol):
    """A :class:`DifferentiableEnv` whose discrete action picks a piece of the continuous one."""

    pieces: ActionPieces
    original: DifferentiableEnv

    def __getattr__(self, name: str) -> Any: ...


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
def find_jumps(env: PiecewiseEnv, *, num_lines: int = 32, seed: int = 0) -> list[Jump]:
    """Look for jumps of reward or next state inside the pieces of a hybridized problem.

    Along random lines through each piece the largest step of a grid is halved again and again: a
    kink or a steep slope shrinks with the distance, a jump stays.

    Args:
        env: an environment with pieces, such as :func:`~hpo_torchrl.envs.hybridize` makes.
        num_lines: lines through each piece, at least.
        seed: seed of the lines, states and noise; the environment's generator is left as it was.

    Returns:
        The jumps found, one at most for each discrete action and each of reward and state entries.
    """
    memory = env.rng.get_state()
    generator = torch.Generator(device=env.device or "cpu").manual_seed(seed)
    try:
        jumps: list[Jump] = []
        env.rng.manual_seed(seed)
        for choice in range(env.num_discrete):
            found: dict[str, Jump] = {}
            for _ in range(math.ceil(num_lines / max(1, env.batch_size.numel()))):
                for jump in _along_lines(env, choice, generator):
                    found.setdefault(jump.what, jump)
            jumps += found.values()
        return jumps
    finally:
        env.rng.set_state(memory)


def refuse_jumps(env: PiecewiseEnv, fix: str) -> None:
    """Raise a ``ValueError`` that names a jump inside a piece, if :func:`find_jumps` finds one."""
    jumps = find_jumps(env)
    if jumps:
        raise ValueError(
            f"{type(env.original).__name__} still jumps inside a piece of {env.pieces}: {jumps[0]}."
            f" Add that value to the breakpoints ({fix})."
        )


def _along_lines(env: PiecewiseEnv, choice: int, generator: torch.Generator) -> list[Jump]:
    state, noise = situation(env)
    shape = (*env.batch_size, env.continuous_dim)
    heads = () if env.num_heads is None else (env.num_heads,)
    discrete = torch.full((*env.batch_size, *heads), choice, device=env.device)

    def executed(u: Tensor) -> Tensor:
        return env.pieces.executed({"discrete": discrete, "continuous": u})["continuous"]

    def value(what: str, u: Tensor) -> Tensor:
        after, reward = env.dynamics(state, {"discrete": discrete, "continuous": u}, noise)
        return reward if what == "reward" else after[what].flatten(len(env.batch_size)).sum(-1)

    low, span = _window(env, choice)
    ends = []
    for _ in range(2):
        uniform = torch.rand(shape, generator=generator, device=env.device, dtype=env.float_dtype)
        ends.append(executed(low + span * uniform))
    # Some lines begin and end in the ends themselves: what jumps only there is met by no other.
    for side, corner in enumerate((low, low + span)):
        chosen = torch.rand(env.batch_size, generator=generator, device=env.device) < 0.5
        exact = executed(corner + torch.zeros_like(ends[side]))
        ends[side] = torch.where(chosen.unsqueeze(-1), exact, ends[side])
    jumps = []
    for what in ("reward", *(name for name in env.state_names if name != "step")):
        left, right = (torch.zeros(env.batch_size, device=env.device, dtype=env.float_dtype),) * 2
        right = right + 1

        def at(place: Tensor, what: str = what) -> Tensor:
            return value(what, ends[0] + place.unsqueeze(-1) * (ends[1] - ends[0]))

        places = torch.linspace(0, 1, _GRID, dtype=env.float_dtype, device=env.device)
        grid = torch.stack([at(place.expand(env.batch_size)) for place in places], -1)
        steps = grid.diff(dim=-1).abs()
        first, index = steps.max(-1)
        left, right = places[index], places[index + 1]
        for _ in range(_HALVINGS):
            middle = 0.5 * (left + right)
            lower = (at(middle) - at(left)).abs()
            upper = (at(right) - at(middle)).abs()
            left = torch.where(upper > lower, middle, left)
            right = torch.where(upper > lower, right, middle)
        last = (at(right) - at(left)).abs()
        # Rounding alone makes steps of this size.
        noise_level = 1e3 * torch.finfo(env.float_dtype).eps * (1.0 + grid.abs().amax(-1))
        found = ((last > _LEFT * first) & (last > noise_level)).flatten()
        if bool(found.any()):
            row = int(found.float().argmax())
            before, after = (
                (ends[0] + side.unsqueeze(-1) * (ends[1] - ends[0])).reshape(-1, shape[-1])[row]
                for side in (left, right)
            )
            size = last.flatten()[row].item()
            jumps.append(Jump(choice, what, before.tolist(), after.tolist(), size))
    return jumps


def situation(env: PiecewiseEnv) -> tuple[dict[str, Tensor], Tensor]:
    """Initial states, and noise of one step."""
    step = torch.zeros((*env.batch_size, 1), dtype=torch.int64, device=env.device)
    state = {**env.initial_state(), "step": step}
    return state, env.sample_noise(1, state).select(len(env.batch_size), 0)


def _window(env: PiecewiseEnv, choice: int) -> tuple[Tensor, Tensor]:
    """Lower end and width of what is probed of a piece, each broadcastable to ``(*B, n)``."""
    pieces = env.pieces
    column = choice % pieces.num_discrete
    low, high = pieces.low[:, column], pieces.high[:, column]
    scale = SPAN * env.action_scale
    if pieces.of_total:
        low, high, scale = low / env.continuous_dim, high / env.continuous_dim, scale.mean()
    bottom = torch.where(low.isfinite(), low, torch.where(high.isfinite(), high - scale, -scale))
    top = torch.where(high.isfinite(), high, bottom + (1 + low.isinf()) * scale)
    return bottom, top - bottom


class Certificate(NamedTuple):
    """How far a hybrid problem was from its original.

    Attributes:
        num_actions: actions compared.
        num_skipped: actions that no piece offers.
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
def certify(env: PiecewiseEnv, num_actions: int = 1_000_000, *, seed: int = 0) -> Certificate:
    """Compare a hybridized problem with its original on random actions.

    Actions are uniform over the pieces' surroundings; a third of the instances act exactly on a
    breakpoint or on the nearest number beside it, and some at the least action. States are the
    environment's own initial states, noise its own.

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
        >>> from hpo_torchrl.problems.inventory.features import MinimumOrder
        >>> env = InventoryEnv(features=[MinimumOrder(20.0)], batch_size=1000)
        >>> certify(env, 10_000).exact
        True
    """
    check_int("num_actions", num_actions, minimum=1)
    env.set_seed(seed)
    generator = torch.Generator(device=env.device or "cpu").manual_seed(seed)
    instances = max(1, env.batch_size.numel())
    tried = skipped = 0
    errors = {"reward": 0.0, "state": 0.0}
    used = torch.zeros(env.num_discrete, dtype=torch.int64)
    while tried < num_actions:
        tried += instances
        state, noise = situation(env)
        action = {"continuous": _actions(env, generator)}
        own = torch.zeros(env.batch_size, dtype=torch.int64, device=env.device)
        if env.original.num_discrete > 1:
            own = torch.randint(
                env.original.num_discrete, env.batch_size, generator=generator, device=env.device
            )
        action["discrete"] = own
        offered = env.pieces.holds(action["continuous"])
        skipped += int((~offered).sum())
        least = torch.tensor(_least(env), dtype=env.float_dtype, device=env.device)
        action["continuous"] = torch.where(offered.unsqueeze(-1), action["continuous"], least)
        offered |= env.pieces.holds(action["continuous"])
        expected = env.original.dynamics(state, action, noise)
        hybrid = env.pieces.encoded(action)
        used += torch.bincount(hybrid["discrete"].flatten().cpu(), minlength=env.num_discrete)
        found = env.dynamics(state, hybrid, noise)
        errors["reward"] = max(errors["reward"], _error(found[1], expected[1], offered))
        for name, value in expected[0].items():
            errors["state"] = max(errors["state"], _error(found[0][name], value, offered))
    jumps = find_jumps(env, num_lines=_LINES, seed=seed)
    return Certificate(tried, skipped, errors["reward"], errors["state"], used.tolist(), jumps)


def _actions(env: PiecewiseEnv, generator: torch.Generator) -> Tensor:
    """Random continuous actions, many of them on and beside the ends of pieces: ``(*B, n)``."""
    shape, place = (*env.batch_size, env.continuous_dim), {"device": env.device}
    uniform = torch.rand(shape, generator=generator, dtype=env.float_dtype, **place)
    marks = torch.cat([env.pieces.low.flatten(), env.pieces.high.flatten()])
    marks = marks[marks.isfinite()].unique()
    inf = torch.full_like(marks, torch.inf)
    tiny = torch.finfo(env.float_dtype).tiny
    marks = torch.cat([marks, torch.nextafter(marks, inf), torch.nextafter(marks, -inf)])
    low, high = env.continuous_bounds
    marks = marks[(marks >= (low if low is not None else -torch.inf)) & (marks.abs() >= tiny)]
    marks = torch.cat([marks, torch.tensor([_least(env)], dtype=env.float_dtype, **place)])
    if high is not None:
        marks = marks[marks <= high]
    reach = 2 * float(marks.abs().max()) + SPAN * float(env.action_scale.max())
    bottom = -reach if low is None else low
    actions = bottom + ((reach if high is None else high) - bottom) * uniform
    pick = torch.randint(len(marks), shape, generator=generator, **place)
    exact = marks[pick]
    if env.pieces.of_total:  # one coordinate bears the total
        actions = actions / env.continuous_dim
        bearer = torch.randint(env.continuous_dim, shape[:-1], generator=generator, **place)
        alone = torch.zeros_like(exact).scatter(-1, bearer.unsqueeze(-1), 1.0)
        exact = exact * alone
    on_mark = torch.rand(shape[:-1], generator=generator, **place) < 1 / 3
    return torch.where(on_mark.unsqueeze(-1), exact, actions)


def _least(env: PiecewiseEnv) -> float:
    low, high = env.continuous_bounds
    return low if low is not None else high if high is not None else 0.0


def _error(found: Tensor, expected: Tensor, offered: Tensor) -> float:
    difference = (found - expected).abs().nan_to_num(nan=math.inf)
    # Equal infinities are equal.
    difference = torch.where(found == expected, torch.zeros_like(difference), difference)
    rows = difference.reshape(offered.numel(), -1)
    kept = rows[offered.flatten()]
    return float(kept.max()) if kept.numel() else 0.0
