"""Backward recursion of a switched LQR on sets of Riccati matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpo_torchrl.problems.switched_lqr.matrices import check_matrices
from hpo_torchrl.problems.switched_lqr.quadratic_sets import pack, prune, unpack

# Matrices that go through one batched Riccati step.
_CHUNK = 1024


class System(NamedTuple):
    """The matrices, one per mode, in float64: ``(M, n, n)``, ``(M, n, m)`` and costs."""

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor

    @classmethod
    def of(cls, A: Any, B: Any, Q: Any, R: Any) -> System:
        """Check the matrices and bring them into one form."""
        return cls(*(torch.from_numpy(matrix.copy()) for matrix in check_matrices(A, B, Q, R)))

    @property
    def num_modes(self) -> int:
        """Number M of modes."""
        return self.A.shape[0]

    def gain(self, P: Tensor, mode: int | Tensor) -> Tensor:
        """Return K of the best u = -K x before a cost-to-go x'Px, ``(*, m, n)``."""
        A, B, R = self.A[mode], self.B[mode], self.R[mode]
        PB = P @ B
        return torch.cholesky_solve(PB.mT @ A, torch.linalg.cholesky(R + B.mT @ PB))

    def riccati(self, P: Tensor, mode: int | Tensor) -> Tensor:
        """Return the cost of one step in a mode and x'Px after it, ``(*, n, n)``.

        ``A'PA + Q - A'PB (R + B'PB)^-1 B'PA``, symmetric whatever the rounding.
        """
        A, B, R = self.A[mode], self.B[mode], self.R[mode]
        PB = P @ B
        factor = torch.linalg.cholesky(R + B.mT @ PB)
        W = torch.linalg.solve_triangular(factor, PB.mT @ A, upper=False)
        result = self.Q[mode] + A.mT @ (P @ A) - W.mT @ W
        return (result + result.mT) / 2

    def step(self, x: Tensor, u: Tensor, mode: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next states and the costs of a batch."""
        cost = torch.zeros(len(x), dtype=x.dtype)
        after = torch.empty_like(x)
        for m in range(self.num_modes):
            at, v, w = mode == m, x[mode == m], u[mode == m]
            cost[at] = ((v @ self.Q[m]) * v).sum(-1) + ((w @ self.R[m]) * w).sum(-1)
            after[at] = v @ self.A[m].mT + w @ self.B[m].mT
        return after, cost


class Stage(NamedTuple):
    """The matrices of one number of steps to go, with the decision that each stands for.

    Matrix i is one Riccati step in ``mode[i]`` from ``source[parent[i]]``.
    """

    packed: Tensor
    mode: Tensor
    parent: Tensor
    source: Tensor

    @classmethod
    def zero(cls, size: int) -> Stage:
        """Return the stage with no steps to go: nothing is left to pay."""
        nothing = pack(torch.zeros(1, size, size, dtype=torch.float64))
        return cls(nothing, torch.zeros(1).long(), torch.zeros(1).long(), nothing)


# From the candidates of a stage and its number, the matrices to keep and where they stood.
Select = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def recursion(system: System, num_stages: int, select: Select, limit: int) -> list[Stage]:
    """Step backwards from nothing to pay."""
    stages = [Stage.zero(system.A.shape[-1])]
    for number in range(1, num_stages + 1):
        source = stages[-1].packed
        size = system.num_modes * len(source)
        if size > limit:
            raise MemoryError(
                f"max_matrices={limit} is less than the {size} matrices with {number} steps to "
                "go; raise tolerance (a stage holds fewer), shorten horizon, or raise max_matrices."
            )
        modes = torch.arange(system.num_modes).repeat_interleave(len(source))
        parents = torch.arange(len(source)).repeat(system.num_modes)
        packed, kept = select(riccati_steps(system, source, modes, parents), number)
        stages.append(Stage(packed, modes[kept], parents[kept], source))
    return stages


def riccati_steps(system: System, source: Tensor, modes: Tensor, parents: Tensor) -> Tensor:
    """Step from each parent in its mode, packed."""
    # Per mode, so that the matrices of the system are shared and not gathered.
    result = torch.empty(len(modes), source.shape[-1], dtype=source.dtype)
    for mode in range(system.num_modes):
        for at in (modes == mode).nonzero().squeeze(-1).split(_CHUNK):
            result[at] = pack(system.riccati(unpack(source[parents[at]]), mode))
    return result


def pruning(losses: list[float]) -> Select:
    """Prune each stage by its loss, but not the last: it is evaluated and never stepped from."""

    def select(candidates: Tensor, number: int) -> tuple[Tensor, Tensor]:
        if number == len(losses):
            return candidates, torch.arange(len(candidates))
        return prune(candidates, losses[number - 1])

    return select
