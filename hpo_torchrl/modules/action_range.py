"""The range of a continuous action, and the maps of raw outputs to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_torchrl.core.categorical import BranchBounds
from hpo_torchrl.core.checks import check_range, checked

Bound = float | Sequence[float] | Tensor | None
Bounds = Sequence[Bound]

# Sharpness of the softplus that keeps an action on its side of a bound.
_SHARPNESS = 4.0
# Where an untrained policy acts, in action scales from the bound: rather too much than too little.
START = 1.3
# Size in action scales below which raw outputs of a given size go on straight.
_CORNER = 0.05
# Raw output up to which the slope of a sigmoid is its own, and that slope.
_LINEAR = 3.0
_SLOPE = 1.0 / (2.0 + math.exp(_LINEAR) + math.exp(-_LINEAR))


class ActionRange(nn.Module):
    """Map raw outputs z of a network to continuous actions u in their range.

    The table of the maps is in :class:`HybridNetwork`. All of them act on every coordinate by
    itself, except where ``branch_bounds`` limits the sum over coordinates.

    Args:
        bounds: ``(low, high)``, each one number, one per coordinate, or ``None`` (unbounded).
        unit: natural size of each coordinate, ``(n,)``.
        branch_bounds: ends by discrete action, instead of ``bounds``.
        num_heads: number H of discrete choices, each with its own n / H coordinates.
        place: device and dtype.

    Raises:
        ValueError: a lower end is above the upper one.
    """

    unit: Tensor
    low: Any
    high: Any
    has_low: Tensor
    has_high: Tensor

    @checked
    def __init__(
        self,
        bounds: Bounds,
        unit: Tensor,
        branch_bounds: BranchBounds | None = None,
        num_heads: int | None = None,
        **place: Any,
    ) -> None:
        super().__init__()
        if not bool((unit > 0).all() & unit.isfinite().all()):
            raise ValueError(f"unit, the action_scale, must be above 0, got {unit.tolist()}.")
        if branch_bounds is None:
            check_range("continuous_bounds", bounds, len(unit))
        unit = unit.to(**place).clone()
        self.register_buffer("unit", unit if num_heads is None else unit.view(num_heads, 1, -1))
        self.per_branch = branch_bounds is not None
        self.of_total = branch_bounds is not None and branch_bounds.of_total
        low, high = bounds if branch_bounds is None else branch_bounds[:2]
        self.kind: str | None = None
        if all(end is None or isinstance(end, (int, float)) for end in (low, high)):
            # Numbers: no masks are needed, and one map serves all coordinates.
            self.kind = _KINDS[low is not None, high is not None]
            self.low, self.high = low, high
            return
        for name, end, infinite in (("low", low, -math.inf), ("high", high, math.inf)):
            end = torch.as_tensor(infinite if end is None else end).to(**place)
            if self.of_total:
                end = end.unsqueeze(-1)
            elif branch_bounds is None:
                end = end.expand(unit.shape).reshape(self.unit.shape)
            self.register_buffer(f"has_{name}", end.isfinite())
            # Ends at infinity are 0 here: what is not selected below must still be finite.
            self.register_buffer(name, end.nan_to_num(posinf=0.0, neginf=0.0))
        if bool((self.has_low & self.has_high & (self.low > self.high)).any()):
            raise ValueError(f"The range of an action must have low <= high, got {low} and {high}.")

    def forward(self, raw: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the actions, of the shape of ``raw``.

        Args:
            raw: ``(*B, M, n)`` or ``(*B, H, M, k)``; of one branch each, with 1 in the place of M.
            index: which branch that is, of the shape of ``raw``; ``None`` is all in order.
        """
        if not self.of_total:
            return self._mapped(_value, raw, index)
        size = _softplus(raw, self.unit)
        total = size.sum(-1, keepdim=True)
        low, high, _, has_high = self._ends(None if index is None else index[..., :1])
        width, middle = high - low, START * self.unit.sum(-1, keepdim=True)
        aim = torch.where(has_high, width * total / (total + middle), total) + low
        return size * (aim / total)

    def inverse(self, value: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the raw outputs of actions; finite also where an action is at an end."""
        return self._mapped(_inverse, value, index)

    def log_slope(self, raw: Tensor, index: Tensor | None = None) -> Tensor:
        """Return log|du/dz|; it means nothing where both ends are equal."""
        return self._mapped(_log_slope, raw, index)

    def fixed(self, index: Tensor | None = None) -> Tensor | None:
        """Return which actions have a single value; ``None`` where the range is two numbers.

        That is both ends equal, or, of a sum of what is never below 0, both ends 0.
        """
        if self.kind is not None:
            return None
        low, high, has_low, has_high = self._ends(index)
        same = has_low & has_high & (low == high)
        return same & (high == 0) if self.of_total else same

    def _mapped(self, function: Callable, value: Tensor, index: Tensor | None) -> Tensor:
        if self.kind is not None:
            return function(self.kind, value, self.low, self.high, self.unit)
        low, high, has_low, has_high = self._ends(index)
        found = {kind: function(kind, value, low, high, self.unit) for kind in _KINDS.values()}
        one = torch.where(has_low, found["above"], found["below"])
        some = torch.where(has_low & has_high, found["between"], one)
        return torch.where(has_low | has_high, some, found["free"])

    def _ends(self, index: Tensor | None) -> list[Tensor]:
        ends = [self.low, self.high, self.has_low, self.has_high]
        if index is None or not self.per_branch:
            return ends
        shape = (*index.shape[:-2], self.low.shape[-2], index.shape[-1])
        return [end.expand(shape).gather(-2, index) for end in ends]


_KINDS = {
    (False, False): "free",
    (True, False): "above",
    (False, True): "below",
    (True, True): "between",
}


def _value(kind: str, z: Tensor, low: Any, high: Any, unit: Tensor) -> Tensor:
    if kind == "free":
        return unit * z
    if kind == "between":
        return low + (high - low) * _share(z)
    size = _softplus(z, unit)
    if kind == "below":
        return -size + high
    return size if isinstance(low, (int, float)) and low == 0 else size + low


def _share(z: Tensor) -> Tensor:
    """Return the sigmoid of z, with a gradient that falls more slowly than its slope beyond 3.

    Where most states ask for full power, the few that do not are soon at z = 10, where the slope
    is 5e-5, and never come back. There the gradient is that of slope(3) e / (1 + |e| / 2), with e
    how far z is beyond 3: of the same sign, and 0.002.
    """
    share = torch.sigmoid(z)
    if not (z.requires_grad and torch.is_grad_enabled()):
        return share
    inside = z.clamp(-_LINEAR, _LINEAR)
    beyond = z - inside
    steady = torch.sigmoid(inside) + _SLOPE * beyond / (1.0 + 0.5 * beyond.abs())
    return share.detach() + (steady - steady.detach())


def _inverse(kind: str, u: Tensor, low: Any, high: Any, unit: Tensor) -> Tensor:
    finfo = torch.finfo(u.dtype)
    if kind == "free":
        return u / unit
    if kind == "between":
        share = (u - low) / _width(u, low, high)
        return share.clamp(finfo.eps / 2, 1 - finfo.eps / 2).logit()
    size = ((u - low if kind == "above" else high - u) / unit).clamp_min(finfo.tiny)
    return size + torch.log(-torch.expm1(-_SHARPNESS * size)) / _SHARPNESS - START


def raw_of(size: Tensor) -> Tensor:
    """Return the raw outputs that the range [0, inf) maps to ``max(size, 0)``, in its unit.

    From a twentieth of the unit on they are exact; below they go on straight, so that the action
    falls to 0 fast and a gradient still passes.
    """
    within = size.clamp_min(_CORNER)
    slope = 1.0 / -math.expm1(-_SHARPNESS * _CORNER)
    return _inverse("above", within, 0.0, None, size.new_ones(())) + slope * (size - within)


def _log_slope(kind: str, z: Tensor, low: Any, high: Any, unit: Tensor) -> Tensor:
    if kind == "free":
        return unit.log().expand_as(z)
    if kind == "between":
        return F.logsigmoid(z) + F.logsigmoid(-z) + _width(z, low, high).log()
    return F.logsigmoid(_SHARPNESS * (z + START)) + unit.log()


def _softplus(z: Tensor, unit: Tensor) -> Tensor:
    return unit * F.softplus(z + START, beta=_SHARPNESS)


def _width(like: Tensor, low: Any, high: Any) -> Tensor:
    """Width of a range; 1 where it is a single point."""
    width = torch.as_tensor(high - low, dtype=like.dtype, device=like.device)
    return width.masked_fill(width == 0, 1.0)
