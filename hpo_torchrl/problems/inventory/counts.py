"""Whole numbers drawn from tables of their probabilities, one uniform number each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Probability that a table may leave out, which no uniform number of single precision comes near;
# and cells of a table at most, so that such a number still tells them apart.
LEFT_OUT, MOST_CELLS = 1e-10, 256


class CountTable:
    r"""Draws of whole numbers, one distribution for each item, by the alias method.

    The K cells of a table have the probability 1 / K each. A cell holds its own number and one
    other: the uniform number says in which cell it falls, and whether it lies below the cell's
    threshold. K is a power of two (zeros are added), so that no rounding happens on the way.

    Source: A. J. Walker (1977), "An efficient method for generating discrete random variables with
    general distributions", ACM Transactions on Mathematical Software 3(3), 253-256.

    Args:
        probabilities: of 0, ..., K - 1, ``(n, K)``; rows are divided by their sums.
        place: dtype and device of the numbers that are drawn.

    Examples:
        >>> table = CountTable(np.array([[0.5, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]]))
        >>> drawn = table.draw((1000, 2), torch.Generator().manual_seed(0))
        >>> drawn[:, 0].unique().tolist(), drawn[:, 1].unique().tolist()
        ([0.0, 2.0], [1.0])
    """

    def __init__(self, probabilities: NDArray[np.float64], **place: Any) -> None:
        rows, which = np.unique(probabilities, axis=0, return_inverse=True)
        self.size = 1 << (rows.shape[1] - 1).bit_length()
        rows = np.pad(rows, ((0, 0), (0, self.size - rows.shape[1])))
        tables = np.stack([_alias(row / row.sum()) for row in rows])  # (rows, 2, K)
        thresholds, others = torch.as_tensor(tables, **place).unbind(1)
        self.thresholds, self.others = thresholds.flatten(), others.flatten()
        first = torch.as_tensor(which.reshape(-1) * self.size, dtype=torch.int32)
        self.first = first.to(thresholds.device)  # cell of each item

    def to(self, device: torch.device) -> CountTable:
        """Move the tensors."""
        for name in ("thresholds", "others", "first"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def draw(self, shape: Sequence[int], rng: torch.Generator) -> Tensor:
        """Draw numbers, as floats of the shape ``(..., n)``."""
        drawn = self.others.new_empty(tuple(shape)).uniform_(generator=rng).mul_(self.size)
        own = drawn.floor()
        cell = (own.to(torch.int32) + self.first).flatten()
        threshold = self.thresholds.index_select(0, cell).view(own.shape)
        other = self.others.index_select(0, cell).view(own.shape)
        return torch.where(drawn < threshold, own, other)


def _alias(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each cell's threshold, from its own number on, and its other number, ``(2, K)``."""
    size = len(probabilities)
    share, other = probabilities * size, np.arange(size)
    poor = [cell for cell in range(size) if share[cell] < 1]
    rich = [cell for cell in range(size) if share[cell] >= 1]
    while poor and rich:
        cell, giver = poor.pop(), rich[-1]
        other[cell] = giver
        share[giver] -= 1 - share[cell]
        if share[giver] < 1:
            poor.append(rich.pop())
    share[[*poor, *rich]] = 1.0  # rounding
    return np.stack([np.arange(size) + share, other])
