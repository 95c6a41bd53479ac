"""Places in a record of demand: which there are, where systems start, what follows the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_int


def wrap(place: Tensor, periods: tuple[int, int], season: int | None) -> Tensor:
    """Bring places beyond the end of ``periods`` back to their beginning, by whole seasons.

    Examples:
        >>> wrap(torch.arange(8, 14), (0, 10), None).tolist()
        [8, 9, 0, 1, 2, 3]
        >>> wrap(torch.arange(8, 14), (0, 10), 4).tolist()
        [8, 9, 2, 3, 4, 5]
    """
    first, end = periods
    begin = first + (end - first) % _fitting(season or 1, end - first)
    return torch.where(place < end, place, begin + (place - begin) % (end - begin))


def draw_places(
    shape: Sequence[int], periods: tuple[int, int], season: int | None, rng: torch.Generator
) -> Tensor:
    """Draw where each item of each system starts, int64 ``(*B, n)``.

    Items of a system are multiples of a season apart; without a season they are together.
    """
    first, end = periods
    whole = _fitting(season or end - first, end - first)
    place: dict[str, Any] = {"generator": rng, "device": rng.device}
    phase = torch.randint(whole, (*shape[:-1], 1), **place)
    return first + phase + whole * torch.randint((end - first) // whole, shape, **place)


def check_record(record: Any) -> Tensor:
    """Return a record as a tensor of doubles, ``(T, n)``.

    Raises:
        ValueError: it has another shape, or holds NaN, infinity or negative numbers.
    """
    if not isinstance(record, Tensor):  # a copy: that of a file is read-only
        record = torch.from_numpy(np.array(record, dtype=np.float64))
    record = record.double()
    if record.ndim != 2 or 0 in record.shape:
        raise ValueError(
            f"record must have shape (T, n) = (periods, items), got {tuple(record.shape)}."
        )
    if not bool(torch.isfinite(record).all()) or bool((record < 0).any()):
        raise ValueError("record must be finite and >= 0; it holds NaN, inf or negatives.")
    return record


def check_periods(name: str, periods: Any, length: int, history: int) -> tuple[int, int]:
    """Return periods ``(first, end)`` of a record, of which one at least has a history.

    Raises:
        TypeError: they are not whole numbers.
        ValueError: there are no such periods.
    """
    if isinstance(periods, str) or not isinstance(periods, Sequence) or len(periods) != 2:
        raise ValueError(f"{name} must be two whole numbers (first, end), got {periods!r}.")
    first, end = (check_int(f"{name}[{i}]", at, minimum=0) for i, at in enumerate(periods))
    if not max(first, history) < end <= length:
        words = f", one of them with history={history} periods before it" if history else ""
        raise ValueError(
            f"{name} must be (first, end) within the {length} periods of the record{words}, got "
            f"{(first, end)}; take other periods, a longer record or a shorter history."
        )
    return first, end


def _fitting(season: int, length: int) -> int:
    return min(season, length)  # what holds no whole season is one season
