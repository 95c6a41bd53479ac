"""Pieces of an action range: what lies between the points where a problem jumps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

SIDES = ("right", "left", "alone")


class Breakpoint(NamedTuple):
    """A value of the action at which reward or transition jumps, or their slopes do.

    Attributes:
        at: the value.
        belongs: whose value the point itself has: that of the interval to its ``"right"`` (a
            discount from 50 units on), of the one to its ``"left"`` (a truck that holds 50), or a
            value of its own, ``"alone"`` (no order at all): it is then a piece by itself.
    """

    at: float
    belongs: str = "right"


class Gap(NamedTuple):
    """Values in the open interval (low, high) that do what ``same_as`` does: no pieces."""

    low: float
    high: float
    same_as: float


class Piece(NamedTuple):
    """An interval of the action, or a single value where low and high are equal.

    Attributes:
        low: lower end; minus infinity where there is none.
        high: upper end; infinity where there is none.
        low_closed: whether the lower end belongs to it.
        high_closed: whether the upper end does.
    """

    low: float
    high: float
    low_closed: bool = True
    high_closed: bool = False

    @property
    def is_point(self) -> bool:
        """Whether it is a single value."""
        return self.low == self.high

    def holds(self, value: float) -> bool:
        """Whether a value lies in it."""
        above = value > self.low or (self.low_closed and value == self.low)
        return above and (value < self.high or (self.high_closed and value == self.high))

    def __str__(self) -> str:
        if self.is_point:
            return f"{{{self.low:g}}}"
        left = "[" if self.low_closed and math.isfinite(self.low) else "("
        right = "]" if self.high_closed and math.isfinite(self.high) else ")"
        return f"{left}{self.low:g}, {self.high:g}{right}"


class Pieces(NamedTuple):
    """The pieces of one action, in ascending order, and gaps between them.

    Attributes:
        pieces: the pieces.
        gaps: values that no piece offers, with the value that does the same.

    Examples:
        >>> from hpo_torchrl.envs import Breakpoint, Pieces
        >>> print(Pieces.cut([Breakpoint(0.0, "alone"), 50.0], low=0.0))
        {0} (0, 50) [50, inf)
        >>> print(Pieces.listed([0.0, (20.0, None)]))
        {0} [20, inf)
    """

    pieces: tuple[Piece, ...]
    gaps: tuple[Gap, ...] = ()

    @classmethod
    def cut(
        cls,
        breakpoints: Iterable[Breakpoint | float],
        *,
        low: float | None = None,
        high: float | None = None,
        gaps: Iterable[Gap] = (),
        name: str = "breakpoints",
    ) -> Pieces:
        """Cut a range at breakpoints.

        Args:
            breakpoints: where to cut, in ascending order; a bare number belongs to the right.
            low: lower end of the range, which belongs to it; ``None`` is none.
            high: upper end, which belongs to it; ``None`` is none.
            gaps: open intervals to leave out; their ends must be breakpoints.
            name: what to call the breakpoints in an error.

        Raises:
            ValueError: a breakpoint is not a number within the range, they are out of order, a side
                is unknown, or a gap is not bounded by breakpoints.
        """
        bottom, top = -math.inf if low is None else low, math.inf if high is None else high
        points = [_breakpoint(name, entry) for entry in breakpoints]
        for one, other in itertools.pairwise(points):
            if one.at >= other.at:
                raise ValueError(
                    f"{name} must be in ascending order, each listed once, but {one.at:g} comes "
                    f"before {other.at:g}."
                )
        for point in points:
            if not bottom <= point.at <= top:
                raise ValueError(
                    f"{name} must lie within the range [{bottom:g}, {top:g}] of the action, got "
                    f"{point.at:g}; correct it or widen the range."
                )
        pieces = []
        start, closed = bottom, True
        for at, side in points:
            if (at, side) in ((bottom, "left"), (top, "right")):
                side = "alone"  # nothing lies on its own side of it
            if at > start:
                pieces.append(Piece(start, at, closed, side == "left"))
            if side == "alone":
                pieces.append(Piece(at, at, True, True))
            start, closed = at, side == "right"
        if start < top:
            pieces.append(Piece(start, top, closed, True))
        return cls(tuple(pieces)).without(gaps, name=name)

    @classmethod
    def listed(cls, intervals: Sequence[Any], *, name: str = "intervals") -> Pieces:
        """Take the pieces as they are listed: numbers, and pairs ``(low, high)``.

        A pair holds its lower end and not its upper one, unless the same value is listed as a
        number; ``None`` is an end at infinity. What lies between two intervals is not offered.

        Raises:
            ValueError: an interval is empty, not in ascending order, or overlaps another.
        """
        if isinstance(intervals, str) or not isinstance(intervals, Sequence) or not intervals:
            raise ValueError(
                f"{name} must list at least one number or pair (low, high), got {intervals!r}."
            )
        points = {_number(name, entry) for entry in intervals if not isinstance(entry, Sequence)}
        pieces = [_listed_piece(name, entry, points) for entry in intervals]
        for one, other in itertools.pairwise(pieces):
            if other.low < one.high or (one.is_point and other.is_point and one.low == other.low):
                problem = "overlap" if other.high > one.low else "are out of order"
                raise ValueError(
                    f"{name} must be disjoint and in ascending order, but {one} and {other} "
                    f"{problem}; list each value once."
                )
        return cls(tuple(pieces))

    def without(self, gaps: Iterable[Gap], *, name: str = "breakpoints") -> Pieces:
        """Leave out the pieces that lie in gaps."""
        gaps = tuple(gaps)
        for gap in gaps:
            ends = {end for piece in self.pieces for end in (piece.low, piece.high)}
            if not gap.low < gap.high or not {gap.low, gap.high} <= ends:
                raise ValueError(
                    f"A gap must be an interval whose ends are {name}, got "
                    f"({gap.low:g}, {gap.high:g}) with {name} at "
                    f"{sorted(end for end in ends if math.isfinite(end))}."
                )
        kept = tuple(
            piece
            for piece in self.pieces
            if piece.is_point or not any(g.low <= piece.low and piece.high <= g.high for g in gaps)
        )
        found = Pieces(kept, self.gaps + gaps)
        for gap in gaps:
            if found.piece_of(gap.same_as) is None:
                raise ValueError(
                    f"A gap must do what some piece does, but same_as={gap.same_as:g} of "
                    f"({gap.low:g}, {gap.high:g}) lies in none of {found}."
                )
        return found

    def piece_of(self, value: float) -> int | None:
        """Return the index of the piece that holds a value; ``None`` where none does."""
        return next((i for i, piece in enumerate(self.pieces) if piece.holds(value)), None)

    def __str__(self) -> str:
        return " ".join(map(str, self.pieces))


def merge_breakpoints(*lists: Iterable[Breakpoint | float]) -> list[Breakpoint]:
    """Merge lists of breakpoints into one, ascending.

    A value that stands in several lists with different sides stands alone: with either neighbour it
    would share only some of the jumps.
    """
    sides: dict[float, str] = {}
    for entry in itertools.chain(*lists):
        at, side = _breakpoint("breakpoints", entry)
        sides[at] = side if sides.get(at, side) == side else "alone"
    return [Breakpoint(at, side) for at, side in sorted(sides.items())]


class BranchBounds(NamedTuple):
    """Ends of the continuous action by discrete action, for a policy that is to stay between them.

    Attributes:
        low: lower ends; minus infinity where there is none. Of shape ``(M, n)``, ``(H, M, k)`` for
            H heads, or ``(M,)`` for ends of the sum over all coordinates.
        high: upper ends, of the same shape.
        of_total: whether they are ends of the sum.
    """

    low: Any
    high: Any
    of_total: bool = False


def _breakpoint(name: str, entry: Any) -> Breakpoint:
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2:
        at, side = entry
        if side not in SIDES:
            raise ValueError(
                f"A breakpoint belongs to one of {SIDES}; {name} got {side!r} at {at}."
            )
        return Breakpoint(_number(name, at), side)
    return Breakpoint(_number(name, entry))


def _listed_piece(name: str, entry: Any, points: set[float]) -> Piece:
    if not isinstance(entry, Sequence):
        value = _number(name, entry)
        return Piece(value, value, True, True)
    if isinstance(entry, str) or len(entry) != 2:
        raise ValueError(f"{name} takes numbers and pairs (low, high), got {entry!r}.")
    low = -math.inf if entry[0] is None else _number(name, entry[0])
    high = math.inf if entry[1] is None else _number(name, entry[1])
    if not low < high:
        raise ValueError(
            f"An interval must have low < high, but {name} holds ({entry[0]}, {entry[1]}), which "
            "is empty; a single value is listed as a number."
        )
    return Piece(low, high, low not in points, math.isinf(high))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be finite numbers, got {value!r}.")
    return float(value)
