"""A mixed-integer linear program, written in arrays of variables and rows; HiGHS solves it."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp


class LinearProgram:
    """Variables and constraints, added in arrays: minimise the cost of the variables.

    Examples:
        >>> program = LinearProgram()
        >>> x = program.variables((3,), high=2, cost=[1.0, 2.0, 3.0], integer=True)
        >>> total = program.rows((), low=2.5)  # one row: x_1 + x_2 + x_3 >= 2.5
        >>> program.put(total, x, 1.0)
        >>> float(program.solve().fun)
        4.0
    """

    def __init__(self) -> None:
        self._columns: list[tuple[np.ndarray, ...]] = []
        self._rows: list[tuple[np.ndarray, ...]] = []
        self._entries: list[tuple[np.ndarray, ...]] = []
        self.num_variables = self.num_rows = 0

    def copy(self) -> LinearProgram:
        """Return a program to which more can be added without changing this one."""
        other = copy.copy(self)
        for name in ("_columns", "_rows", "_entries"):
            setattr(other, name, list(getattr(self, name)))
        return other

    def variables(
        self,
        shape: tuple[int, ...],
        *,
        low: Any = 0.0,
        high: Any = math.inf,
        cost: Any = 0.0,
        integer: bool = False,
    ) -> np.ndarray:
        """Add variables and return their numbers, in an array of that shape."""
        columns = (np.broadcast_to(part, shape).ravel() for part in (low, high, cost, integer))
        self._columns.append(tuple(part.astype(np.float64) for part in columns))
        first, self.num_variables = self.num_variables, self.num_variables + math.prod(shape)
        return np.arange(first, self.num_variables).reshape(shape)

    def rows(
        self, shape: tuple[int, ...], *, low: Any = -math.inf, high: Any = math.inf
    ) -> np.ndarray:
        """Add constraints ``low <= row <= high``, empty as yet; return their numbers."""
        ends = (np.broadcast_to(part, shape).ravel() for part in (low, high))
        self._rows.append(tuple(part.astype(np.float64) for part in ends))
        first, self.num_rows = self.num_rows, self.num_rows + math.prod(shape)
        return np.arange(first, self.num_rows).reshape(shape)

    def put(self, row: np.ndarray, variable: np.ndarray, coefficient: Any) -> None:
        """Add coefficients to rows; the three arrays broadcast, and equal places add up."""
        arrays = np.broadcast_arrays(row, variable, np.asarray(coefficient, dtype=np.float64))
        used = arrays[2].ravel() != 0
        self._entries.append(tuple(part.ravel()[used] for part in arrays))

    def solve(
        self,
        *,
        gap: float = 0.0,
        time_limit: float = math.inf,
        fixed: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> OptimizeResult:
        """Return what ``scipy.optimize.milp`` finds.

        Args:
            gap: relative distance to the bound at which it may stop.
            time_limit: in seconds; a model that is built takes at least one more.
            fixed: numbers and values of variables that are held; the rest is then continuous.
        """
        low, high, cost, integer = (
            np.concatenate(part) for part in zip(*self._columns, strict=True)
        )
        if fixed is not None:
            low[fixed[0]] = high[fixed[0]] = fixed[1]
            integer[:] = 0
        row, column, value = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        shape = (self.num_rows, self.num_variables)
        matrix = sparse.csr_array((value, (row, column)), shape=shape)
        ends = (np.concatenate(part) for part in zip(*self._rows, strict=True))
        options: dict[str, float] = {"mip_rel_gap": gap}
        if time_limit < math.inf:
            options["time_limit"] = time_limit
        return milp(
            cost,
            integrality=integer,
            bounds=Bounds(low, high),
            constraints=LinearConstraint(matrix, *ends),
            options=options,
        )
