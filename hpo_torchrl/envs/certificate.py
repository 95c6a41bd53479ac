"""Prove by trying that a hybridized problem is its original."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.envs.jumps import SPAN, Jump, PiecewiseEnv, find_jumps, situation

# Lines through each piece along which jumps are looked for.
_LINES = 128


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
