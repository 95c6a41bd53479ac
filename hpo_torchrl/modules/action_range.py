"""The range of a continuous action, and the maps of raw outputs to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_torchrl.core.categorical import BranchBounds

Bound = float | Sequence[float] | Tensor | None
Bounds = tuple[Bound, Bound]

# Sharpness of the softplus that keeps an action on its side of a bound.
_SHARPNESS = 4.0
# Where an untrained policy acts, in action scales from the bound: rather too much than too little.
_START = 1.3


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

    def __init__(
        self,
        bounds: Bounds,
        unit: Tensor,
        branch_bounds: BranchBounds | None = None,
        num_heads: int | None = None,
        **place: Any,
    ) -> None:
        super().__init__()
        unit = unit.to(**place).clone()
        self.register_buffer("unit", unit if num_heads is None else unit.view(num_heads, 1, -1))
        self.of_total = branch_bounds is not None and branch_bounds.of_total
        low, high = bounds if branch_bounds is None else branch_bounds[:2]
        if all(end is None or isinstance(end, (int, float)) for end in (low, high)):
            # Numbers: no masks are needed, and one map serves all coordinates.
            self.kind: str | None = _KINDS[low is not None, high is not None]
            self.low, self.high = low, high
            return
        self.kind = None
        ends = []
        for end, infinite in ((low, -math.inf), (high, math.inf)):
            end = torch.as_tensor(infinite if end is None else end).to(**place)
            if branch_bounds is None:
                end = end.expand(unit.shape).reshape(self.unit.shape)
            ends.append(end)
        if bool((ends[0] > ends[1]).any()):
            raise ValueError(f"The range of an action must have low <= high, got {low} and {high}.")
        for name, end in zip(("low", "high"), ends, strict=True):
            self.register_buffer(f"has_{name}", end.isfinite())
            # Ends at infinity are 0 here: what is not selected below must still be finite.
            self.register_buffer(name, end.nan_to_num(posinf=0.0, neginf=0.0))

    @property
    def per_branch(self) -> bool:
        """Whether the ends differ by discrete action."""
        return self.kind is None and self.low.ndim > 0 and self.low.shape[-2:-1] not in ((), (1,))

    def forward(self, raw: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the actions, of the shape of ``raw``.

        Args:
            raw: ``(*B, M, n)`` or ``(*B, H, M, k)``; of one branch each, with 1 in the place of M.
            index: which branch that is, of the shape of ``raw``; ``None`` is all in order.
        """
        if self.of_total:
            return self._of_total(raw, index)
        return self._mapped(_VALUES, raw, index)

    def inverse(self, value: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the raw outputs of actions; finite also where an action is at an end."""
        return self._mapped(_INVERSES, value, index)

    def log_slope(self, raw: Tensor, index: Tensor | None = None) -> Tensor:
        """Return log|du/dz|; it means nothing where both ends are equal."""
        return self._mapped(_LOG_SLOPES, raw, index)

    def fixed(self, index: Tensor | None = None) -> Tensor | None:
        """Return which actions have both ends equal; ``None`` if none has."""
        if self.kind is not None:
            return None
        low, high, has_low, has_high = self._ends(index)
        return has_low & has_high & (low == high)

    def _mapped(self, maps: dict[str, Callable], value: Tensor, index: Tensor | None) -> Tensor:
        if self.kind is not None:
            return maps[self.kind](value, self.low, self.high, self.unit)
        low, high, has_low, has_high = self._ends(index)
        found = {kind: maps[kind](value, low, high, self.unit) for kind in _KINDS.values()}
        one = torch.where(has_low, found["above"], found["below"])
        some = torch.where(has_low & has_high, found["between"], one)
        return torch.where(has_low | has_high, some, found["free"])

    def _of_total(self, raw: Tensor, index: Tensor | None) -> Tensor:
        size = _softplus(raw, self.unit)
        total = size.sum(-1)
        low, high, _, has_high = self._ends(None if index is None else index[..., 0])
        width, middle = high - low, _START * self.unit.sum(-1)
        aim = torch.where(has_high, width * total / (total + middle), total) + low
        return size * (aim / total).unsqueeze(-1)

    def _ends(self, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ends = (self.low, self.high, self.has_low, self.has_high)
        if index is None or not (self.of_total or self.per_branch):
            return ends
        if self.of_total:
            found = [end.expand(*index.shape[:-1], -1).gather(-1, index) for end in ends]
        else:
            size = index.shape[-1]
            wide = [end.expand(*index.shape[:-2], end.shape[-2], size) for end in ends]
            found = [end.gather(-2, index) for end in wide]
        return found[0], found[1], found[2], found[3]


_KINDS = {
    (False, False): "free",
    (True, False): "above",
    (False, True): "below",
    (True, True): "between",
}


def _softplus(raw: Tensor, unit: Tensor) -> Tensor:
    return unit * F.softplus(raw + _START, beta=_SHARPNESS)


def _inverse_softplus(size: Tensor, unit: Tensor) -> Tensor:
    size = (size / unit).clamp_min(torch.finfo(size.dtype).tiny)
    return size + torch.log(-torch.expm1(-_SHARPNESS * size)) / _SHARPNESS - _START


def _softplus_log_slope(raw: Tensor, unit: Tensor) -> Tensor:
    return F.logsigmoid(_SHARPNESS * (raw + _START)) + unit.log()


def _logit(value: Tensor, low: Any, high: Any) -> Tensor:
    width = high - low
    if isinstance(width, Tensor):
        width = width.masked_fill(width == 0, 1.0)
    smallest = torch.finfo(value.dtype).eps / 2
    return ((value - low) / width).clamp(smallest, 1 - smallest).logit()


def _sigmoid_log_slope(raw: Tensor, low: Any, high: Any) -> Tensor:
    width = high - low
    if isinstance(width, Tensor):
        size: Any = width.masked_fill(width == 0, 1.0).log()
    else:
        size = math.log(width) if width else 0.0
    return F.logsigmoid(raw) + F.logsigmoid(-raw) + size


def _above(raw: Tensor, low: Any, high: Any, unit: Tensor) -> Tensor:
    size = _softplus(raw, unit)
    return size if isinstance(low, (int, float)) and low == 0 else size + low


_VALUES: dict[str, Callable] = {
    "free": lambda z, low, high, unit: unit * z,
    "above": _above,
    "below": lambda z, low, high, unit: -_softplus(z, unit) + high,
    "between": lambda z, low, high, unit: low + (high - low) * torch.sigmoid(z),
}
_INVERSES: dict[str, Callable] = {
    "free": lambda u, low, high, unit: u / unit,
    "above": lambda u, low, high, unit: _inverse_softplus(u - low, unit),
    "below": lambda u, low, high, unit: _inverse_softplus(high - u, unit),
    "between": lambda u, low, high, unit: _logit(u, low, high),
}
_LOG_SLOPES: dict[str, Callable] = {
    "free": lambda z, low, high, unit: unit.log().expand_as(z),
    "above": lambda z, low, high, unit: _softplus_log_slope(z, unit),
    "below": lambda z, low, high, unit: _softplus_log_slope(z, unit),
    "between": lambda z, low, high, unit: _sigmoid_log_slope(z, low, high),
}
