"""Spaces of Gymnasium: one hybrid action made of the parts of a space, and flat observations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpo_torchrl.core.categorical import BranchBounds
from hpo_torchrl.core.checks import check_int, entries_of, shown
from hpo_torchrl.core.extras import extra

gymnasium = extra("gymnasium", "gym")
spaces = gymnasium.spaces

# Discrete actions, the product of all discrete parts, beyond which a policy would hardly learn.
_MOST = 4096


class HybridSpace:
    r"""The hybrid action that a Gymnasium space amounts to: one discrete choice, n coordinates.

    The discrete parts of a ``Tuple`` or ``Dict``, at any depth, are one discrete action: of parts
    with :math:`m_1, \dots, m_k` values, in the order of the space, the last moves fastest. The
    ``Box`` parts, flattened in the same order, are the continuous action.

    **Which coordinates an action uses.** With a single ``Discrete(K)`` and K boxes, box k belongs
    to discrete action k. Otherwise every discrete action uses all coordinates, unless
    ``coordinates`` says which. A coordinate that is not used is 0, or the end next to it.

    Args:
        space: ``Tuple`` or ``Dict`` of ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, ``Box``.
        coordinates: the coordinates that each discrete action uses, such as ``[[0], [1], []]``.

    Attributes:
        num_discrete: number M of discrete actions.
        low: lower ends of the coordinates, ``(n,)``, minus infinity where there is none.
        high: upper ends, likewise.
        used: which coordinates each discrete action uses, bool ``(M, n)``.

    Raises:
        TypeError: ``coordinates`` is no sequence of sequences of integers.
        ValueError: the space is not hybrid, has a part of another kind, or too many discrete
            actions; or ``coordinates`` does not fit it.

    Examples:
        >>> from gymnasium.spaces import Box, Discrete, Tuple
        >>> from hpo_torchrl.envs.gym import HybridSpace
        >>> space = HybridSpace(Tuple([Discrete(2), Box(0, 1, (1,)), Box(-1, 1, (2,))]))
        >>> space.used.tolist()
        [[True, False, False], [False, True, True]]
        >>> HybridSpace(Tuple([Discrete(3), Box(-1, 1, (2,))]), [[0], [1], []]).used.tolist()
        [[True, False], [False, True], [False, False]]
    """

    def __init__(self, space: Any, coordinates: Any = None) -> None:
        self.space = space
        leaves = [*_leaves("action_space", space)]
        choices = [leaf for _, leaf in leaves if not isinstance(leaf, spaces.Box)]
        boxes = [leaf for _, leaf in leaves if isinstance(leaf, spaces.Box)]
        if not choices or not boxes:
            missing = "no Box, so no continuous" if choices else "a Box alone, so no discrete"
            raise ValueError(
                f"The action space must be hybrid, such as Tuple(Discrete(3), Box(-1, 1, (2,))), "
                f"got {shown(space)}: {missing} part. TorchRL's own GymEnv and losses suit it."
            )
        for name, leaf in leaves:
            if isinstance(leaf, spaces.Box) and not np.issubdtype(leaf.dtype, np.floating):
                raise ValueError(
                    f"{name} must be a Box of real numbers, got one of {leaf.dtype}; make it "
                    "Discrete or MultiDiscrete."
                )
        self.sizes = [size for leaf in choices for size in _sizes(leaf)]
        self.num_discrete = math.prod(self.sizes)
        if self.num_discrete > _MOST:
            raise ValueError(
                f"The discrete parts of {shown(space)} have {self.num_discrete} values together; "
                f"a policy takes {_MOST} at most. Make fewer of them."
            )
        self.low, self.high = (
            np.concatenate([getattr(box, end).ravel().astype(np.float64) for box in boxes])
            for end in ("low", "high")
        )
        widths = [math.prod(box.shape) for box in boxes]
        self.used = self._used(coordinates, widths, simple=isinstance(choices[0], spaces.Discrete))

    def _used(self, coordinates: Any, widths: Sequence[int], simple: bool) -> np.ndarray:
        number, dimension = self.num_discrete, len(self.low)
        if coordinates is None:
            owned = simple and len(self.sizes) == 1 and number == len(widths) > 1
            if not owned:
                return np.ones((number, dimension), dtype=bool)
            return np.repeat(np.arange(len(widths)), widths) == np.arange(number)[:, None]
        rows = [entries_of("coordinates", row) for row in entries_of("coordinates", coordinates)]
        if len(rows) != number:
            raise ValueError(
                f"coordinates must have a list for each of the {number} discrete actions, got "
                f"{len(rows)}: {shown(coordinates)}."
            )
        used = np.zeros((number, dimension), dtype=bool)
        for at, row in enumerate(rows):
            for entry in row:
                name = f"coordinates[{at}]"
                if check_int(name, entry, minimum=0) >= dimension:
                    raise ValueError(f"{name} must be below {dimension}, got {entry}.")
                used[at, entry] = True
        return used

    @property
    def branch_bounds(self) -> BranchBounds | None:
        """Ends by discrete action, both equal for what is not used; ``None`` if all is used."""
        if self.used.all():
            return None
        rest = np.clip(0.0, self.low, self.high)
        low, high = (np.where(self.used, end, rest).tolist() for end in (self.low, self.high))
        return BranchBounds(low, high)

    @property
    def unit(self) -> np.ndarray:
        """Natural size of each coordinate, ``(n,)``: half the width of its range, 1 without one."""
        with np.errstate(over="ignore"):
            half = (self.high - self.low) / 2.0
        return np.where(np.isfinite(half) & (half > 0.0), half, 1.0)

    def encode(self, discrete: np.ndarray, continuous: np.ndarray) -> Any:
        """Return actions of the space, batched as ``gymnasium.vector`` takes them.

        Args:
            discrete: discrete actions, ``(B,)``.
            continuous: continuous actions, ``(B, n)``; what is beyond the ends is moved to them.
        """
        values = iter(np.stack(np.unravel_index(discrete, self.sizes), -1).T)
        numbers = iter(np.clip(continuous, self.low, self.high).T)

        def part(space: Any) -> Any:
            if isinstance(space, spaces.Tuple):
                return tuple(part(inner) for inner in space.spaces)
            if isinstance(space, spaces.Dict):
                return {key: part(inner) for key, inner in space.spaces.items()}
            if isinstance(space, spaces.Box):
                rows = np.stack([next(numbers) for _ in range(math.prod(space.shape))], -1)
                return rows.reshape(-1, *space.shape).astype(space.dtype)
            rows = np.stack([next(values) for _ in _sizes(space)], -1)
            rows = rows.reshape(-1, *space.shape) + getattr(space, "start", 0)
            return rows.astype(space.dtype)

        return part(self.space)


def observation_size(space: Any) -> int:
    """Return the length of a flat observation.

    Raises:
        ValueError: the space has a part that has no fixed size.
    """
    for name, leaf in _leaves("observation_space", space):
        if not isinstance(leaf, spaces.Box):
            _sizes(leaf, name)
    return int(spaces.flatdim(space))


def flat_observations(space: Any, batch: Any, number: int) -> np.ndarray:
    """Return batched observations of a space as rows, ``(B, k)``, in the order of ``flatten``.

    Boxes come as they are, discrete parts one-hot.

    Args:
        space: the space of a single observation.
        batch: observations as ``gymnasium.vector`` batches them.
        number: the batch size B.
    """
    if isinstance(space, (spaces.Tuple, spaces.Dict)):
        keys = range(len(space)) if isinstance(space, spaces.Tuple) else space.spaces
        parts = [flat_observations(space[key], batch[key], number) for key in keys]
        return np.concatenate(parts, -1)
    rows = np.asarray(batch).reshape(number, -1)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return rows.astype(np.float64)
    rows = rows - np.ravel(space.start)
    hot = [np.eye(size)[rows[:, at]] for at, size in enumerate(_sizes(space))]
    return np.concatenate(hot, -1)


def _leaves(name: str, space: Any) -> list[tuple[str, Any]]:
    """Return the parts of a space in order, with their names in messages."""
    if isinstance(space, (spaces.Tuple, spaces.Dict)):
        keys = range(len(space)) if isinstance(space, spaces.Tuple) else space.spaces
        return [leaf for key in keys for leaf in _leaves(f"{name}[{key!r}]", space[key])]
    if not isinstance(space, spaces.Box):
        _sizes(space, name)
    return [(name, space)]


def _sizes(space: Any, name: str = "space") -> list[int]:
    """Return the numbers of values of a discrete space's entries."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(size) for size in np.ravel(space.nvec)]
    if isinstance(space, spaces.MultiBinary):
        return [2] * math.prod(space.shape)
    raise ValueError(
        f"{name} must be made of Box, Discrete, MultiDiscrete and MultiBinary in Tuple and Dict, "
        f"got {shown(space)}; change it by a wrapper of Gymnasium."
    )
