"""A state space as a grid: lines of points for what is continuous, tables for what is discrete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Distinct values up to which part of a state is a table, and points of a line of integers.
_LABELS, _INTEGERS = 64, 400
# Share of a line beside what was visited, bins of what was, and how much denser points may be.
_MARGIN, _BINS, _DENSEST = 0.1, 40, 3.0
_FAR_OUT = (0.1, 0.3, 1.0)  # points beyond a margin, in ranges of what was visited
_EQUAL = 1e-5  # of a coordinate's range: what counts as the same value


class Layout(NamedTuple):
    """Where the entries of a state stand among its C coordinates."""

    shapes: Mapping[str, tuple[int, ...]]

    def flat(self, state: Mapping[str, Tensor], ndim: int) -> Tensor:
        """Return the coordinates ``(*B, C)`` of a state whose batch has ``ndim`` dimensions."""
        parts = (state[name].reshape(*state[name].shape[:ndim], -1) for name in self.shapes)
        return torch.cat([part.double() for part in parts], -1)

    def state(self, coordinates: Tensor, time: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the state of coordinates ``(P, C)`` at a step of the episode."""
        found, at = {}, 0
        for name, shape in self.shapes.items():
            size = int(np.prod(shape))
            part = coordinates[:, at : at + size].to(dtype)
            found[name], at = part.reshape(-1, *shape), at + size
        found["step"] = torch.full((len(coordinates), 1), time, dtype=torch.int64)
        return found


class Line(NamedTuple):
    """A coordinate with its points in ascending order; ``whole`` numbers are not interpolated."""

    column: int
    points: Tensor
    whole: bool


class Table(NamedTuple):
    """Coordinates that take few values together: their columns, and those values ``(K, c)``."""

    columns: list[int]
    rows: Tensor


class Space:
    """The grid: every combination of points of the lines and rows of the tables.

    Args:
        layout: the coordinates.
        visited: states of the policies that matter, ``(V, C)``: how far each coordinate goes.
        seen: all states that are known, ``(W, C)``: what is discrete, and what is constant.
        count: points of a continuous line.

    Raises:
        ValueError: part of the state takes too many values for a table.

    Attributes:
        lines: the lines; tables: the tables; size: the number N of nodes.
    """

    def __init__(self, layout: Layout, visited: Tensor, seen: Tensor, count: int) -> None:
        self.constant, self.lines, self.tables = seen[0].clone(), [], []
        width = seen.amax(0) - seen.amin(0)
        self.same = _EQUAL * width.clamp_min(1e-6) + 1e-7 * seen.abs().amax(0)
        at = 0
        for shape in layout.shapes.values():
            size = int(np.prod(shape))
            columns = [at + k for k in range(size) if width[at + k] > self.same[at + k]]
            at += size
            few = [c for c in columns if len(self._rows(seen, [c])) <= _LABELS]
            if len(few) > 1 and len(rows := self._rows(seen, few)) <= _LABELS:
                self.tables.append(Table(few, rows))
                columns = [c for c in columns if c not in few]
            for column in columns:
                known = visited[:, column]
                if _whole(seen[:, column]) and width[column] <= _INTEGERS:
                    self.lines.append(self._integers(column, known))
                elif column in few:
                    self.tables.append(Table([column], self._rows(seen, [column])))
                else:
                    self.lines.append(self._points(column, known, count))
        sizes = [len(line.points) for line in self.lines] + [len(t.rows) for t in self.tables]
        self.sizes, self.size = sizes, int(np.prod(sizes))

    @property
    def smooth(self) -> list[Line]:
        """Lines that are interpolated."""
        return [line for line in self.lines if not line.whole]

    def _rows(self, seen: Tensor, columns: list[int]) -> Tensor:
        """Return the distinct values of columns, no more than one beyond what a table holds."""
        part = seen[:, columns]
        keys = (part / (2 * self.same[columns])).round()
        _, index = np.unique(keys[: 4 * _LABELS].numpy(), axis=0, return_index=True)
        if len(index) <= _LABELS:
            _, index = np.unique(keys.numpy(), axis=0, return_index=True)
        return part[index]

    @staticmethod
    def _integers(column: int, known: Tensor) -> Line:
        low, high = round(float(known.min())), round(float(known.max()))
        beside = max(2, round(_MARGIN * (high - low)))
        low = low if low in (0, 1) else low - beside
        return Line(column, torch.arange(low, high + beside + 1, dtype=torch.float64), True)

    @staticmethod
    def _points(column: int, known: Tensor, count: int) -> Line:
        """Points over what was visited and a margin, half of them evenly, half where it was often.

        An end at which several states lie is an end of the problem's own: no margin.
        """
        low, high = float(known.min()), float(known.max())
        beside = _MARGIN * (high - low)
        least, most = (int((known == end).sum()) < 5 for end in (low, high))
        bottom = low - beside * least
        if low >= 0 > bottom:  # what has not been negative may not be allowed to
            bottom = 0.0 if low < beside else low
        edges = np.linspace(bottom, high + beside * most, _BINS + 1)
        share = np.histogram(known.numpy(), edges)[0] / len(known)
        density = 1 + np.minimum(share * _BINS, _DENSEST)
        reached = np.concatenate([[0.0], np.cumsum(density / density.sum())])
        points = np.interp(np.linspace(0, 1, count), reached, edges)
        # Beyond an end a state counts as at it, so that nothing could get worse any more there: a
        # policy would let go. A few points farther out, where it hardly comes, say otherwise.
        out = np.array(_FAR_OUT) * (high - low)
        above = high + beside + out if most else out[:0]
        below = low - beside - out[::-1] if least and bottom < low and bottom != 0 else out[:0]
        return Line(column, torch.as_tensor(np.concatenate([below, points, above])), False)

    def nodes(self) -> Tensor:
        """Return the coordinates of all nodes, ``(N, C)``."""
        found = self.constant.repeat(self.size, 1)
        index = np.unravel_index(np.arange(self.size), self.sizes) if self.sizes else []
        for line, own in zip(self.lines, index, strict=False):
            found[:, line.column] = line.points[torch.as_tensor(own)]
        for table, own in zip(self.tables, index[len(self.lines) :], strict=True):
            found[:, table.columns] = table.rows[torch.as_tensor(own)]
        return found

    def locate(self, coordinates: Tensor) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        """Return the lowest node around states ``(P, C)``, and the way to the others.

        Those ways are, for each line that is interpolated, how far the next node is, and the share
        ``(P,)`` of the way there. Beyond a line's end counts as at its end.
        """
        index, ways = torch.zeros(len(coordinates), dtype=torch.int64), []
        strides = np.cumprod([1, *self.sizes[:0:-1]])[::-1].tolist() if self.sizes else []
        for (column, points, whole), stride in zip(self.lines, strides, strict=False):
            value = coordinates[:, column].contiguous()
            if whole:
                own = value.sub(points[0]).round_().clamp_(0, len(points) - 1).long()
            else:
                own = torch.searchsorted(points, value, right=True).clamp_(1, len(points) - 1) - 1
                base = points[own]
                share = value.sub(base).div_(points[own + 1].sub_(base)).clamp_(0, 1)
                ways.append((stride, share))
            index += own.mul_(stride)
        for (columns, rows), stride in zip(self.tables, strides[len(self.lines) :], strict=True):
            unit = self.same[columns]
            index += stride * torch.cdist(coordinates[:, columns] / unit, rows / unit).argmin(-1)
        return index, ways

    def corners(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nodes around states ``(P, C)`` and their weights, each ``(P, 2**lines)``."""
        index, ways = self.locate(coordinates)
        index, weight = index.unsqueeze(-1), torch.ones(len(index), 1, dtype=torch.float64)
        for stride, share in ways:
            index, share = torch.cat([index, index + stride], -1), share.unsqueeze(-1)
            weight = torch.cat([weight * (1 - share), weight * share], -1)
        return index, weight

    def read(self, table: Tensor, coordinates: Tensor) -> Tensor:
        """Interpolate the numbers of all nodes, ``(N,)``, to states ``(P, C)``: multilinearly."""
        index, ways = self.locate(coordinates)

        def at(offset: int, left: list[tuple[int, Tensor]]) -> Tensor:
            if not left:
                return table[index + offset if offset else index]
            (stride, share), *others = left
            return torch.lerp(at(offset, others), at(offset + stride, others), share)

        return at(0, ways)

    def missing(self, coordinates: Tensor) -> Tensor:
        """Return which states ``(P,)`` have discrete parts that no table holds."""
        lost = torch.zeros(len(coordinates), dtype=torch.bool)
        for columns, rows in self.tables:
            unit = self.same[columns]
            far = torch.cdist(coordinates[:, columns] / unit, rows / unit).amin(-1)
            lost |= far > 3 * len(columns) ** 0.5
        return lost

    def beyond(self, coordinates: Tensor) -> Tensor:
        """Return the share of states beyond the end of a line."""
        out = torch.zeros(len(coordinates), dtype=torch.bool)
        for column, points, _ in self.lines:
            value, slack = coordinates[:, column], self.same[column]
            out |= (value < points[0] - slack) | (value > points[-1] + slack)
        return out.double().mean()


def _whole(values: Tensor) -> bool:
    return bool(((values - values.round()).abs() < 1e-6).all())
