"""From a continuous action to the piece it lies in, and back: on batches of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hpo_torchrl.core.pieces import BranchBounds, Pieces


class ActionPieces:
    """The discrete actions that pieces of a continuous action make.

    Three layouts:

    ========== ============================= ============== =============================
    layout     what the pieces cut           discrete       piece of an action u
    ========== ============================= ============== =============================
    scalar     the single coordinate, n = 1  ``(*B,)``      piece that holds u
    total      the sum over coordinates      ``(*B,)``      piece that holds sum(u)
    per item   every coordinate by itself    ``(*B, n)``    for each, the piece that holds it
    ========== ============================= ============== =============================

    The ends of a piece are those of its numbers *of this dtype*: an open end is the next number
    inwards, so that a value that is clamped to a piece lies in it, to the last bit.

    Args:
        pieces: one :class:`Pieces` for a joint cut, or one for each coordinate.
        continuous_dim: dimension n of the action.
        dtype: floating-point type of actions.
        device: where the tensors live.
        choices: discrete actions that the original has itself: each is combined with every piece,
            discrete = choice * M + piece.

    Raises:
        ValueError: a number of pieces that is neither 1 nor n, a total that may be negative or is
            to stand alone at another value than 0, or a piece without numbers of the dtype.
    """

    def __init__(
        self,
        pieces: Pieces | Sequence[Pieces],
        continuous_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        choices: int = 1,
    ) -> None:
        joint = isinstance(pieces, Pieces)
        self.pieces: tuple[Pieces, ...] = (pieces,) if isinstance(pieces, Pieces) else tuple(pieces)
        if not joint and len(self.pieces) != continuous_dim:
            raise ValueError(
                f"Breakpoints per item need one list for each of the {continuous_dim} coordinates, "
                f"got {len(self.pieces)}."
            )
        self.per_item = not joint and continuous_dim > 1
        self.of_total = joint and continuous_dim > 1
        self.continuous_dim, self.dtype, self.choices = continuous_dim, dtype, choices
        if self.per_item and choices > 1:
            raise ValueError(
                "Pieces per item cannot be combined with discrete actions that the environment has "
                f"already ({choices}); cut the total (per_item=False)."
            )
        self.num_discrete = max(len(cut.pieces) for cut in self.pieces)
        if self.of_total and self.pieces[0].pieces[0].low < 0:
            raise ValueError(
                "Pieces of a total need coordinates that are 0 or more, got pieces "
                f"{self.pieces[0]}; cut each coordinate instead (per_item=True)."
            )
        lone = [cut.low for cut in self.pieces[0].pieces if cut.is_point and cut.low != 0.0]
        if self.of_total and lone:
            raise ValueError(
                f"A total can stand alone only at 0, got {lone[0]:g}: a sum of {continuous_dim} "
                "coordinates cannot be held at a value to the last bit. Give the point a side."
            )
        # (H, M), H = 1 for a joint cut; a coordinate with fewer pieces has its last one repeatedly.
        self.low, self.high = (
            torch.tensor([self._ends(cut, end) for cut in self.pieces], dtype=dtype, device=device)
            for end in (0, 1)
        )
        if bool((self.low > self.high).any()):
            raise ValueError(f"A piece of {self} holds no number of {dtype}; set its ends apart.")

    def to(self, device: torch.device) -> ActionPieces:
        """Move the tensors."""
        self.low, self.high = self.low.to(device), self.high.to(device)
        return self

    @property
    def num_heads(self) -> int | None:
        """Number of discrete choices in a step, ``None`` for a single one."""
        return self.continuous_dim if self.per_item else None

    @property
    def bounds(self) -> BranchBounds:
        """Ends by discrete action, for the policy."""
        if self.per_item:
            return BranchBounds(self.low.unsqueeze(-1), self.high.unsqueeze(-1))
        low, high = (torch.cat([end[0]] * self.choices) for end in (self.low, self.high))
        if self.of_total:
            return BranchBounds(low, high, of_total=True)
        return BranchBounds(low.unsqueeze(-1), high.unsqueeze(-1))

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
            ValueError: a value is not offered.
        """
        piece, continuous = self.encode(action["continuous"])
        if self.choices > 1:
            piece = action["discrete"] * self.num_discrete + piece
        return {"discrete": piece, "continuous": continuous}

    def holds(self, action: Tensor) -> Tensor:
        """Whether each continuous action ``(*B, n)`` lies in pieces or gaps, bool ``(*B,)``."""
        value = self._cut_value(self._out_of_gaps(action))
        return ((value >= self.low) & (value <= self.high)).any(-1).all(-1)

    def encode(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return piece and continuous action that do what a continuous action ``(*B, n)`` does.

        A value in a gap is replaced by the one that does the same (not for a total).

        Raises:
            ValueError: a value lies in no piece and no gap.
        """
        action = self._out_of_gaps(action)
        value = self._cut_value(action)
        within = (value >= self.low) & (value <= self.high)
        if not bool(within.any(-1).all()):
            lost = value[~within.any(-1)].flatten()[0].item()
            raise ValueError(
                f"The action {'total ' * self.of_total}{lost:g} lies in none of the pieces "
                f"{' / '.join(map(str, self.pieces))}; offer an interval that holds it, or declare "
                "a gap with the value that does the same."
            )
        piece = within.to(torch.uint8).argmax(-1)
        return (piece if self.per_item else piece.squeeze(-1)), action

    def project(self, piece: Tensor, action: Tensor) -> Tensor:
        """Return the executed action ``(*B, n)``: the one given, moved into a piece.

        Inside the piece it is the action itself, with its gradient. Outside, a coordinate is
        clamped (and passes no gradient); of a total, all coordinates are scaled alike.
        """
        if not self.of_total:
            index = piece.unsqueeze(-1) if not self.per_item else piece
            low, high = self._ends_of(index)
            return torch.minimum(torch.maximum(action, low), high)
        low, high = (end.squeeze(-1) for end in self._ends_of(piece.unsqueeze(-1)))
        action = action.clamp_min(0.0)
        total = action.sum(-1)
        inside = (total >= low) & (total <= high)
        # Scaled a little further in than the end: rounding of the sum must not leave the piece.
        slack = 4 * self.continuous_dim * torch.finfo(self.dtype).eps
        inner_low, inner_high = low * (1 + slack), high * (1 - slack)
        target = torch.minimum(torch.maximum(total.detach(), inner_low), inner_high)
        target = torch.where(low == high, low, target)
        tiny = torch.finfo(self.dtype).tiny
        share = action / total.clamp_min(tiny).unsqueeze(-1)
        even = torch.full_like(action, 1.0 / self.continuous_dim)
        share = torch.where((total > tiny).unsqueeze(-1), share, even)
        return torch.where(inside.unsqueeze(-1), action, share * target.unsqueeze(-1))

    def _ends_of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the chosen pieces, ``(*B, H)``."""
        low, high = (end.expand(*index.shape, -1) for end in (self.low, self.high))
        index = index.unsqueeze(-1)
        return low.gather(-1, index).squeeze(-1), high.gather(-1, index).squeeze(-1)

    def _cut_value(self, action: Tensor) -> Tensor:
        """What is cut, ``(*B, H, 1)``."""
        return (action.sum(-1, keepdim=True) if self.of_total else action).unsqueeze(-1)

    def _out_of_gaps(self, action: Tensor) -> Tensor:
        if self.of_total:  # scaling to the value that does the same would round
            return action
        for i, cut in enumerate(self.pieces):
            for gap in cut.gaps:
                column = action[..., i : i + 1]
                inside = (column > gap.low) & (column < gap.high)
                moved = torch.where(inside, torch.full_like(column, gap.same_as), column)
                action = torch.cat([action[..., :i], moved, action[..., i + 1 :]], -1)
        return action

    def _ends(self, cut: Pieces, end: int) -> list[float]:
        inwards = torch.tensor(math.inf if end == 0 else -math.inf, dtype=self.dtype)
        tiny = torch.tensor(torch.finfo(self.dtype).tiny, dtype=self.dtype)
        ends = []
        for piece in cut.pieces:
            # Rounded first: a simulator compares actions with its breakpoint in this dtype too.
            value = torch.tensor(piece[end], dtype=self.dtype)
            closed = piece.low_closed if end == 0 else piece.high_closed
            if not closed and bool(value.isfinite()):
                value = torch.nextafter(value, inwards)
                if value.abs() < tiny:  # no subnormals: some devices flush them to zero
                    value = tiny * inwards.sign()
            ends.append(float(value))
        return ends + ends[-1:] * (self.num_discrete - len(ends))

    def __str__(self) -> str:
        what = "total" if self.of_total else "each item" if self.per_item else "action"
        return f"{what}: " + " / ".join(dict.fromkeys(map(str, self.pieces)))
