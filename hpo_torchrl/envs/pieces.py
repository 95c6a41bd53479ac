"""Pieces of a continuous action: what lies between the points where a problem jumps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpo_torchrl.core.categorical import BranchBounds
from hpo_torchrl.core.checks import check_choice, check_float, entries_of

# Whether the cuts of a breakpoint are behind it, by whose it is; one that stands alone has two.
SIDES = {"right": (False,), "left": (True,), "alone": (False, True)}


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


class Cut(NamedTuple):
    """A place between numbers, in their order: just before the number ``at``, or just behind it."""

    at: float
    behind: bool


class Piece(NamedTuple):
    """The numbers between two cuts: an interval of the action, or a single value."""

    low: Cut
    high: Cut

    def __str__(self) -> str:
        low, high = self
        if low.at == high.at:
            return f"{{{low.at:g}}}"
        left = "(" if low.behind or math.isinf(low.at) else "["
        right = "]" if high.behind and math.isfinite(high.at) else ")"
        return f"{left}{low.at:g}, {high.at:g}{right}"


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
    ) -> Pieces:
        """Cut a range at breakpoints.

        Args:
            breakpoints: where to cut, in any order; a bare number belongs to the right. A value
                that is given several times with different sides stands alone.
            low: lower end of the range, which belongs to it; ``None`` is none.
            high: upper end, which belongs to it; ``None`` is none.

        Raises:
            TypeError: a breakpoint is not a number.
            ValueError: a breakpoint is not in the range, or a side is unknown.
        """
        bottom = Cut(-math.inf if low is None else check_float("low", low), False)
        top = Cut(math.inf if high is None else check_float("high", high), True)
        cuts = {bottom, top}
        for entry in entries_of("breakpoints", breakpoints):
            point = Breakpoint(*entry) if isinstance(entry, (tuple, list)) else Breakpoint(entry)
            at = check_float("a breakpoint", point.at, minimum=bottom.at, maximum=top.at)
            side = check_choice("the side of a breakpoint", point.belongs, SIDES)
            cuts |= {Cut(at, behind) for behind in SIDES[side]}
        pieces = itertools.starmap(Piece, itertools.pairwise(sorted(cuts)))
        return cls(tuple(pieces))

    @classmethod
    def listed(cls, intervals: Sequence[Any]) -> Pieces:
        """Take the pieces as they are listed: numbers, and pairs ``(low, high)``.

        A pair holds its lower end and not its upper one, unless the same value is listed as a
        number; ``None`` is an end at infinity. What lies between two intervals is not offered.

        Raises:
            TypeError: an end is not a number.
            ValueError: an interval is empty, not in ascending order, or overlaps another.
        """
        if not entries_of("intervals", intervals):
            raise ValueError("intervals must list at least one number or pair (low, high), got [].")
        numbers = [entry for entry in intervals if not isinstance(entry, (tuple, list))]
        pieces = []
        for entry in intervals:
            ends = entry if isinstance(entry, (tuple, list)) and entry else (entry, entry)
            low = -math.inf if ends[0] is None else check_float("an end of intervals", ends[0])
            high = math.inf if ends[-1] is None else check_float("an end of intervals", ends[-1])
            if len(ends) != 2 or low > high:
                raise ValueError(
                    "intervals are numbers and pairs (low, high) in ascending order, got "
                    f"{entry!r}; None is an end at infinity."
                )
            alone = low == high
            low_open, high_closed = low in numbers and not alone, alone or math.isinf(high)
            pieces.append(Piece(Cut(low, low_open), Cut(high, high_closed)))
        for one, other in itertools.pairwise(pieces):
            if other.low < one.high:
                raise ValueError(
                    f"intervals must be disjoint and in ascending order, but {other} follows "
                    f"{one}; list each value once."
                )
        return cls(tuple(pieces))

    def without(self, gaps: Iterable[Gap]) -> Pieces:
        """Leave out the pieces that lie in gaps, whose ends must be breakpoints.

        Raises:
            ValueError: a gap does not end where pieces do, or ``same_as`` lies in no other piece.
        """
        ends = {end.at for piece in self.pieces for end in piece}
        found, gaps = self, tuple(Gap(*entries_of("each of gaps", gap)) for gap in gaps)
        for low, high, _ in gaps:
            if not low < high or not {low, high} <= ends:
                raise ValueError(
                    f"A gap must be an interval whose ends are breakpoints, got ({low:g}, "
                    f"{high:g}) with breakpoints at {sorted(filter(math.isfinite, ends))}."
                )
            kept = (p for p in found.pieces if not low <= p.low.at < p.high.at <= high)
            found = Pieces(tuple(kept), self.gaps + gaps)
        for low, high, same_as in gaps:
            if not any(p.low <= Cut(same_as, False) < p.high for p in found.pieces):
                raise ValueError(
                    f"A gap must do what some piece does, but same_as={same_as:g} of "
                    f"({low:g}, {high:g}) lies in none of {found}."
                )
        return found

    def __str__(self) -> str:
        return " ".join(map(str, self.pieces))


class ActionPieces:
    """The discrete actions that pieces of a continuous action make, on batches of tensors.

    The pieces cut a single coordinate, n = 1, or the sum over coordinates (discrete ``(*B,)``), or
    every coordinate by itself (discrete ``(*B, n)``).

    The ends of a piece, ``low`` and ``high``, are those of its numbers *of this dtype*: an open end
    is the next number inwards, so that a value that is clamped to a piece lies in it, to the last
    bit. They are ``(M,)``, or ``(n, M)`` where each coordinate has pieces of its own; one that has
    fewer than others repeats its last piece.

    Args:
        cut: the pieces; or those of each coordinate, which is cut by itself then.
        continuous_dim: dimension n of the action.
        per_item: whether they cut every coordinate by itself, else the sum over them.
        choices: discrete actions that the original has itself: each is combined with every piece,
            discrete = choice * M + piece.
        dtype: floating-point type of actions.
        device: where the tensors live.

    Raises:
        ValueError: a total that may be negative or is to stand alone at another value than 0,
            choices beside pieces per item, or a piece without numbers of the dtype.
    """

    def __init__(
        self,
        cut: Pieces | Sequence[Pieces],
        continuous_dim: int,
        *,
        per_item: bool = False,
        choices: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.cuts = (cut,) if isinstance(cut, Pieces) else tuple(dict.fromkeys(cut))
        own = len(self.cuts) > 1
        self.continuous_dim, self.choices, self.dtype = continuous_dim, choices, dtype
        self.per_item = (per_item or own) and continuous_dim > 1
        self.of_total = not (per_item or own) and continuous_dim > 1
        self.num_discrete = max(len(each.pieces) for each in self.cuts)
        if self.per_item and choices > 1:
            raise ValueError(
                "Pieces per item cannot be combined with discrete actions that the environment has "
                f"already ({choices}); cut the total (per_item=False)."
            )
        first = self.cuts[0]
        if self.of_total and first.pieces[0].low.at < 0:
            raise ValueError(
                f"Pieces of a total need coordinates that are 0 or more, got pieces {first}; cut "
                "each coordinate instead (per_item=True)."
            )
        lone = [low.at for low, high in first.pieces if low.at == high.at != 0.0]
        if self.of_total and lone:
            raise ValueError(
                f"A total can stand alone only at 0, got {lone[0]:g}: a sum of {continuous_dim} "
                "coordinates cannot be held at a value to the last bit. Give the point a side."
            )
        places = [self.cuts.index(each) for each in cut] if own else 0
        self.low, self.high = (
            torch.stack([self._numbers(each, end) for each in self.cuts])[places].to(device)
            for end in (0, 1)
        )
        # Gaps as (low, high, same_as); an item without one has an empty one.
        most = max(len(each.gaps) for each in self.cuts)
        gaps = [[*each.gaps, *[Gap(0.0, 0.0, 0.0)] * most][:most] for each in self.cuts]
        rows = torch.tensor(gaps, dtype=dtype).reshape(len(gaps), most, 3)
        self._gaps = rows[places].to(device)
        if bool((self.low > self.high).any()):
            raise ValueError(f"A piece of {self} holds no number of {dtype}; set its ends apart.")

    def _numbers(self, cut: Pieces, side: int) -> Tensor:
        """The last numbers of pieces before their ends, the lower (0) or upper (1): ``(M,)``."""
        pieces = [*cut.pieces, *[cut.pieces[-1]] * (self.num_discrete - len(cut.pieces))]
        ends, inwards = [piece[side] for piece in pieces], -math.inf if side else math.inf
        # Rounded first: a simulator compares actions with its breakpoint in this dtype too.
        at = torch.tensor([end.at for end in ends], dtype=self.dtype)
        inner = torch.nextafter(at, torch.full_like(at, inwards))
        # No subnormals: some devices flush them to zero.
        tiny = torch.finfo(self.dtype).tiny
        inner = torch.where(inner.abs() < tiny, math.copysign(tiny, inwards), inner)
        is_open = torch.tensor([end.behind == (inwards > 0) for end in ends])
        return torch.where(is_open, inner, at)

    def to(self, device: torch.device) -> ActionPieces:
        """Move the tensors."""
        for name in ("low", "high", "_gaps"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    @property
    def num_heads(self) -> int | None:
        """Number of discrete choices in a step, ``None`` for a single one."""
        return self.continuous_dim if self.per_item else None

    @property
    def bounds(self) -> BranchBounds:
        """Ends by discrete action, for the policy."""
        many = (*[1] * (self.low.ndim - 1), self.choices)
        low, high = self.low.repeat(many), self.high.repeat(many)
        if self.of_total:
            return BranchBounds(low, high, of_total=True)
        shape = (self.continuous_dim, -1, 1) if self.per_item else (-1, 1)
        return BranchBounds(low.unsqueeze(-1).expand(shape), high.unsqueeze(-1).expand(shape))

    def executed(self, action: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the original's action of a hybrid one: its own choice, and u moved into the piece.

        Args:
            action: ``"discrete"`` ``(*B,)`` or ``(*B, n)`` and ``"continuous"`` ``(*B, n)``.
        """
        piece, u = action["discrete"], action["continuous"]
        own = torch.zeros(u.shape[:-1], dtype=torch.int64, device=u.device)
        if self.choices > 1:
            own, piece = piece // self.num_discrete, piece % self.num_discrete
        return {"discrete": own, "continuous": self.project(piece, u)}

    def encoded(self, action: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the hybrid action that does what an action of the original does.

        Args:
            action: ``"continuous"`` ``(*B, n)`` and, if the original has choices, ``"discrete"``.

        Raises:
            ValueError: a value lies in no piece and no gap.
        """
        piece, continuous, offered = self.find(action["continuous"])
        if not bool(offered.all()):
            lost = action["continuous"][~offered][0].tolist()
            raise ValueError(
                f"The action {lost} lies in none of the pieces ({self}); offer an interval that "
                "holds it, or declare a gap with the value that does the same."
            )
        if self.choices > 1:
            piece = action["discrete"] * self.num_discrete + piece
        return {"discrete": piece, "continuous": continuous}

    def find(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the piece of each continuous action ``(*B, n)``, the action, whether it has one.

        A value in a gap is replaced by the one that does the same (not for a total). The piece is
        ``(*B,)``, or ``(*B, n)`` per item, and where there is none the next one; bool ``(*B,)``
        says whether there is one.
        """
        for gap in () if self.of_total else self._gaps.unbind(-2):  # scaling a total would round
            low, high, same_as = gap.unbind(-1)
            action = torch.where((action > low) & (action < high), same_as, action)
        value = action.sum(-1, keepdim=True) if self.of_total else action
        piece = (value.unsqueeze(-1) > self.high).sum(-1).clamp_max(self.num_discrete - 1)
        low, high = self._ends(piece)
        offered = (value >= low) & (value <= high)
        return piece if self.per_item else piece.squeeze(-1), action, offered.all(-1)

    def project(self, piece: Tensor, action: Tensor) -> Tensor:
        """Return the executed action ``(*B, n)``: the one given, moved into a piece.

        Inside the piece it is the action itself, with its gradient. Outside, a coordinate is
        clamped (and passes no gradient); of a total, all coordinates are scaled alike.
        """
        low, high = self._ends(piece if self.per_item else piece.unsqueeze(-1))
        if not self.of_total:
            return torch.minimum(torch.maximum(action, low), high)
        action = action.clamp_min(0.0)
        total = action.sum(-1, keepdim=True)
        # Scaled a little further in than the end: rounding of the sum must not leave the piece.
        slack = 4 * self.continuous_dim * torch.finfo(self.dtype).eps
        target = torch.maximum(total.detach(), low * (1 + slack))
        target = torch.minimum(target, high * (1 - slack))
        target = torch.where(low == high, low, target)
        tiny = torch.finfo(self.dtype).tiny
        share = torch.where(total > tiny, action / total.clamp_min(tiny), 1 / self.continuous_dim)
        return torch.where((total >= low) & (total <= high), action, share * target)

    def _ends(self, piece: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the pieces of each coordinate, or of the total."""
        if self.low.ndim == 1:
            return self.low[piece], self.high[piece]
        item = torch.arange(self.continuous_dim, device=piece.device)
        return self.low[item, piece], self.high[item, piece]

    def __str__(self) -> str:
        what = "total" if self.of_total else "each item" if self.per_item else "action"
        return f"{what}: {' or '.join(map(str, self.cuts))}"
