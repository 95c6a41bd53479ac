"""The matrices of a switched LQR, checked, and one Riccati step; for the environment and optima."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import null_space, orth
from torch import Tensor

Array = NDArray[np.float64]

# Matrices given in float32 are symmetric and semidefinite up to rounding only.
_ROUNDING = 1e-6


class System(NamedTuple):
    """The matrices in float64, one per mode: A and Q ``(M, n, n)``, B ``(M, n, m)``, R."""

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor

    @classmethod
    def of(cls, A: Any, B: Any, Q: Any, R: Any) -> System:
        """Check the matrices and bring them into one form, with one Q and one R per mode.

        Args:
            A: transition matrices, ``(M, n, n)``; like the others a tensor, array or nested lists.
            B: input matrices, ``(M, n, m)``.
            Q: state cost, ``(M, n, n)`` or one ``(n, n)`` for all modes.
            R: input cost, ``(M, m, m)`` or one ``(m, m)`` for all modes.

        Raises:
            TypeError: an argument does not hold numbers.
            ValueError: shapes disagree, a number is not finite, Q or R is not symmetric, Q is not
                positive semidefinite or R not positive definite.
        """
        A = _array("A", A)
        if A.ndim != 3 or A.shape[1] != A.shape[2] or 0 in A.shape:
            raise ValueError(
                "A must have shape (M, n, n) with one square matrix per mode and at least one "
                f"mode, got {A.shape}; a single mode is A=[matrix]."
            )
        M, n = A.shape[:2]
        B = _array("B", B)
        if B.ndim != 3 or B.shape[:2] != (M, n) or B.shape[2] == 0:
            raise ValueError(
                f"B must have shape (M, n, m) = ({M}, {n}, m), with the modes and rows of A and at "
                f"least one input, got {B.shape}; a single column per mode is [[b1], [b2], ...]."
            )
        Q, R = _cost("Q", Q, M, n), _cost("R", R, M, B.shape[2])
        lowest = np.linalg.eigvalsh(Q).min(1)
        if (lowest < -_ROUNDING * np.abs(Q).max((1, 2))).any():
            raise ValueError(
                f"Q must be positive semidefinite, got a smallest eigenvalue of {lowest.min():.4g} "
                f"in mode {lowest.argmin()}; costs of the state cannot be negative."
            )
        lowest = np.linalg.eigvalsh(R).min(1)
        if (lowest <= 1e-12 * np.abs(R).max((1, 2))).any():
            raise ValueError(
                f"R must be positive definite, got a smallest eigenvalue of {lowest.min():.4g} in "
                f"mode {lowest.argmin()}; give every input a cost, if only a small one."
            )
        return cls(*(torch.from_numpy(matrix.copy()) for matrix in (A, B, Q, R)))

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

    def states(self, name: str, x: Any) -> Tensor:
        """Return states ``(*B, n)`` in float64 on the CPU.

        Raises:
            ValueError: the last axis is not n, or a number is not finite.
        """
        states = torch.as_tensor(x).detach().cpu().double()
        n = self.A.shape[-1]
        if states.ndim == 0 or states.shape[-1] != n:
            raise ValueError(
                f"{name} must have shape (*B, n) with n = {n} from A, got {tuple(states.shape)}."
            )
        if not bool(torch.isfinite(states).all()):
            raise ValueError(f"{name} must be finite; it holds NaN or infinity.")
        return states


def uncontrollable_growth(A: Any, B: Any) -> float:
    """Return the factor by which some direction grows at least per step, whatever is done.

    The directions that inputs can reach, in any order of the modes, span the smallest subspace
    that holds every ``im B_m`` and is invariant under every ``A_m``. Off it, a left eigenvector w
    that all modes share multiplies ``w'x`` by its eigenvalue; the mode chosen is the only say. For
    one mode, or one A for all, this is the Popov-Belevitch-Hautus test of stabilisability.

    Returns:
        The largest such factor, 0 if there is no such direction.
    """
    A, B = np.asarray(A), np.asarray(B)
    units = [matrix / max(np.abs(matrix).max(), 1e-300) for matrix in A]
    reached = orth(np.hstack(list(B)), rcond=1e-9) if B.any() else np.zeros((A.shape[1], 0))
    while 0 < reached.shape[1] < A.shape[1]:
        further = orth(np.hstack([reached, *(unit @ reached for unit in units)]), rcond=1e-9)
        if further.shape[1] == reached.shape[1]:
            break
        reached = further
    rest = null_space(reached.T) if reached.shape[1] else np.eye(A.shape[1])
    if rest.shape[1] == 0:
        return 0.0
    quotient = rest.T @ A @ rest
    growth = 0.0
    for w in np.linalg.eig(quotient[0].T)[1].T:
        images = w @ quotient
        factors = images @ w.conj()
        if np.allclose(images, factors[:, None] * w, rtol=0, atol=1e-8 * np.abs(A).max()):
            growth = max(growth, float(np.abs(factors).min()))
    return growth


def _array(name: str, value: Any) -> Array:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    elif isinstance(value, (list, tuple)):
        value = [_array(name, entry) for entry in value]
    try:
        array = np.array(value)
    except ValueError as error:
        raise ValueError(f"{name} must have rows of equal length; its rows are ragged.") from error
    if array.dtype.kind not in "iuf":
        raise TypeError(
            f"{name} must hold real numbers, as a tensor, an array or nested lists; got {value!r}."
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers; it holds NaN or infinity.")
    return array


def _cost(name: str, value: Any, M: int, size: int) -> Array:
    cost = _array(name, value)
    if cost.shape not in ((size, size), (M, size, size)):
        raise ValueError(
            f"{name} must have shape {(size, size)}, or {(M, size, size)} with one per mode, to "
            f"go with A and B; got {cost.shape}."
        )
    cost = np.broadcast_to(cost, (M, size, size))
    gap = np.abs(cost - cost.mT).max()
    if gap > _ROUNDING * np.abs(cost).max():
        raise ValueError(
            f"{name} must be symmetric, got entries that differ from their mirror image by up to "
            f"{gap:.4g}; (matrix + matrix transposed) / 2 is the same cost."
        )
    return (cost + cost.mT) / 2
