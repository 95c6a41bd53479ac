"""The season of demand: factors by which its level is multiplied, place by place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_torchrl.core.checks import check_float, check_int, did_you_mean, entries_of, shown

_WAVE = {"length", "amplitude", "peak"}


class Season:
    r"""Multiplicative factors of a cycle, of mean 1 for each item.

    Args:
        factors: one for each place, or one for each place and item, ``(s, n)``; s is 2 or more.

    Raises:
        TypeError: they are no numbers.
        ValueError: there are too few, one is negative, NaN or infinite, or all of an item are 0.

    Examples:
        >>> Season([1, 3]).factors.tolist()
        [[0.5], [1.5]]
        >>> Season.wave(length=4, amplitude=0.5, peak=1).factors.flatten().round(2).tolist()
        [1.0, 1.5, 1.0, 0.5]
    """

    def __init__(self, factors: Any) -> None:
        try:
            found = np.array(factors, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(
                "season must hold the factors of its places, such as [0.8, 1.2], or be such as "
                f"{{length: 52, amplitude: 0.4, peak: 26}}, got {shown(factors)}."
            ) from error
        if found.ndim not in (1, 2) or len(found) < 2 or found.size == 0:
            raise ValueError(
                "season must hold the factors of 2 places or more, one for each place or one for "
                f"each place and item, got numbers of shape {found.shape}."
            )
        found = found.reshape(len(found), -1)
        if not (np.isfinite(found) & (found >= 0)).all() or (found.sum(axis=0) == 0).any():
            raise ValueError(
                f"season must hold finite factors >= 0 that are not all 0, got {shown(factors)}."
            )
        self.factors: NDArray[np.float64] = found / found.mean(axis=0)

    @classmethod
    def wave(cls, length: int, amplitude: Any = 0.5, peak: float = 0.0) -> Season:
        r"""Return the season :math:`1 + a \cos(2 \pi (t - t_0) / s)`.

        Args:
            length: periods s of the season, 2 or more.
            amplitude: a, from 0 to 1, one number or one per item.
            peak: :math:`t_0`, the place of the highest level, counted from 0.
        """
        place = np.arange(check_int("season.length", length, minimum=2))
        angle = 2 * math.pi / length * (place - check_float("season.peak", peak))
        many = entries_of("season.amplitude", [amplitude] if np.ndim(amplitude) == 0 else amplitude)
        a = [check_float("season.amplitude", each, minimum=0.0, maximum=1.0) for each in many]
        return cls(1 + np.outer(np.cos(angle), a))

    @property
    def length(self) -> int:
        """Number s of places."""
        return len(self.factors)

    def by_item(self, num_items: int) -> NDArray[np.float64]:
        """Return the factors of n items, ``(s, n)``.

        Raises:
            ValueError: there are factors for another number of items.
        """
        if self.factors.shape[1] not in (1, num_items):
            raise ValueError(
                f"demand.season must have one factor for each place, or one for each of "
                f"num_items={num_items} items, got {self.factors.shape[1]}."
            )
        return np.broadcast_to(self.factors, (self.length, num_items)).copy()


def make_season(entry: Any) -> Season:
    """Return the season that is meant: one, its factors, or the arguments of :meth:`Season.wave`.

    Raises:
        TypeError, ValueError: it is none of these; see :class:`Season`.
    """
    if isinstance(entry, Season):
        return entry
    if not isinstance(entry, Mapping):
        return Season(entry)
    for key in entry:
        if key not in _WAVE:
            raise ValueError(
                f"Unknown key {key!r} of season.{did_you_mean(str(key), _WAVE)} It takes length, "
                "amplitude and peak; or write the factors, such as [0.8, 1.2]."
            )
    if "length" not in entry:
        raise ValueError(f"season needs its length in periods, such as 52, got {dict(entry)!r}.")
    return Season.wave(**entry)
