"""The checked matrices of a switched LQR, a Riccati step, and what staying in one mode costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import null_space, orth
from torch import Tensor

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.modules import RulePolicy

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
        A, B = _array("A", A), _array("B", B)
        if A.ndim != 3 or A.shape[1] != A.shape[2] or 0 in A.shape:
            raise ValueError(
                "A must have shape (M, n, n) with one square matrix per mode and at least one "
                f"mode, got {A.shape}; a single mode is A=[matrix]."
            )
        M, n = A.shape[:2]
        if B.ndim != 3 or B.shape[:2] != (M, n) or B.shape[2] == 0:
            raise ValueError(
                f"B must have shape (M, n, m) = ({M}, {n}, m), with the modes and rows of A and at "
                f"least one input, got {B.shape}; a single column per mode is [[b1], [b2], ...]."
            )
        Q = _cost("Q", Q, M, n, -_ROUNDING, "semidefinite", "costs of the state cannot be negative")
        why = "give every input a cost, if only a small one"
        R = _cost("R", R, M, B.shape[2], 1e-12, "definite", why)
        return cls(*(torch.from_numpy(matrix.copy()) for matrix in (A, B, Q, R)))

    @property
    def num_modes(self) -> int:
        """Number M of modes."""
        return self.A.shape[0]

    def riccati(self, P: Tensor, mode: int | Tensor) -> tuple[Tensor, Tensor]:
        """Step back from a cost-to-go x'Px.

        Returns:
            The matrix of the cost of one step in a mode and x'Px after it, ``(*, n, n)``, symmetric
            and positive semidefinite whatever the rounding; and K of the best u = -K x,
            ``(*, m, n)``.

        Raises:
            ValueError: float64 does not hold it.
        """
        A, B, Q, R = (matrix[mode] for matrix in self)
        PB = P @ B
        factor, failed = torch.linalg.cholesky_ex(R + B.mT @ PB)
        K = torch.cholesky_solve(PB.mT @ A, factor)
        closed = A - B @ K
        cost = Q + K.mT @ R @ K + closed.mT @ P @ closed
        if bool(failed.any()) or not bool(torch.isfinite(cost).all()):
            raise ValueError(
                "A and B make costs that float64 cannot tell apart from infinity or from rounding: "
                f"their largest entry is {float(self.A.abs().max()):.3g} (growth). Lower the "
                "growth, or shorten the horizon."
            )
        return (cost + cost.mT) / 2, K

    def step(self, x: Tensor, u: Tensor, mode: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next states and the costs of a batch."""
        A, B, Q, R = (matrix[mode] for matrix in self)
        x, u = x.unsqueeze(-1), u.unsqueeze(-1)
        cost = x.mT @ Q @ x + u.mT @ R @ u
        return (A @ x + B @ u).squeeze(-1), cost.squeeze((-2, -1))

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

    def fixed_modes(self, horizon: int) -> tuple[Tensor, Tensor]:
        """Return the cost-to-go of every mode, ``(M, n, n)``, and its gains, ``(T, M, m, n)``."""
        P, gains = torch.zeros_like(self.A), []
        for _ in range(horizon):
            P, K = self.riccati(P, torch.arange(self.num_modes))
            gains.append(K)
        return P, torch.stack(gains[::-1])

    def uncontrollable_growth(self) -> float:
        """Return the factor by which some direction grows at least per step, whatever is done.

        The directions that inputs can reach, in any order of the modes, span the smallest subspace
        that holds every ``im B_m`` and is invariant under every ``A_m``. Off it, a left eigenvector
        w that all modes share multiplies ``w'x`` by its eigenvalue; the mode chosen is the only
        say. For one mode, or one A for all, this is the Popov-Belevitch-Hautus test of
        stabilisability.

        Returns:
            The largest such factor, 0 if there is no such direction.
        """
        A, B = self.A.numpy(), self.B.numpy()
        units = A / np.abs(A).max((1, 2), keepdims=True).clip(1e-300)
        nothing = np.zeros((A.shape[1], 1))  # a span must have a column
        reached = np.hstack([nothing, *B])
        for _ in range(A.shape[1]):
            basis = orth(np.hstack([reached, *(units @ reached)]), rcond=1e-9)
            reached = np.hstack([nothing, basis])
        rest = null_space(reached.T)
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


class FixedModePolicy(RulePolicy):
    """Stay in one mode of a switched linear system and feed back linearly, u = -K x.

    Args:
        mode: the mode.
        gains: K with 0, 1, ..., T - 1 steps gone, ``(T, m, n)``.
    """

    in_keys = ["x", "step"]  # noqa: RUF012

    def __init__(self, mode: int, gains: Any) -> None:
        super().__init__()
        self.mode = check_int("mode", mode, minimum=0)
        self.register_buffer("gains", torch.as_tensor(gains))

    @classmethod
    def best(cls, env: Any) -> FixedModePolicy:
        """Return the mode that is cheapest on average, with its time-varying Riccati feedback.

        Process noise, which the feedback need not know of, does not enter the choice of the mode.
        """
        P, gains = System.of(env.A, env.B, env.Q, env.R).fixed_modes(env.horizon)
        # Initial states are uniform in a cube: their mean cost is proportional to the trace.
        mode = int(P.diagonal(dim1=-2, dim2=-1).sum(-1).argmin())
        return cls(mode, gains[:, mode]).to(env.device)

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Feed back by the gain of the step."""
        x, step = state
        gain = self.gains.to(x)[step.squeeze(-1).clamp_max(len(self.gains) - 1)]
        u = -(gain @ x.unsqueeze(-1)).squeeze(-1)
        return torch.full(x.shape[:-1], self.mode, device=x.device), u


def fixed_mode_cost(A: Any, B: Any, Q: Any, R: Any, horizon: int, x0: Any) -> Tensor:
    """Return the least total cost of staying in one mode, for each mode: a baseline.

    Args:
        A: matrices, like the next three as for :func:`switched_lqr_optimum`.
        B: see there.
        Q: see there.
        R: see there.
        horizon: steps T.
        x0: initial states, ``(*B, n)``.

    Returns:
        Undiscounted costs in float64, ``(M, *B)``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes disagree, or an argument is not finite or out of range.
    """
    system = System.of(A, B, Q, R)
    x = system.states("x0", x0)
    P, _ = system.fixed_modes(check_int("horizon", horizon, minimum=1))
    return torch.einsum("...i,mij,...j->m...", x, P, x)


def _array(name: str, value: Any) -> Array:
    if isinstance(value, Tensor):
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
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers; it holds NaN or infinity.")
    return array.astype(np.float64)


def _cost(name: str, value: Any, M: int, size: int, least: float, kind: str, why: str) -> Array:
    """Check a cost, whose eigenvalues must be above ``least`` times its largest entry."""
    cost = _array(name, value)
    if cost.shape not in ((size, size), (M, size, size)):
        raise ValueError(
            f"{name} must have shape {(size, size)}, or {(M, size, size)} with one per mode, to "
            f"go with A and B; got {cost.shape}."
        )
    cost = np.broadcast_to(cost, (M, size, size))
    scale, gap = np.abs(cost).max((1, 2)), np.abs(cost - cost.mT).max()
    if gap > _ROUNDING * scale.max():
        raise ValueError(
            f"{name} must be symmetric, got entries that differ from their mirror image by up to "
            f"{gap:.4g}; (matrix + matrix transposed) / 2 is the same cost."
        )
    cost = (cost + cost.mT) / 2
    lowest = np.linalg.eigvalsh(cost).min(1)
    if (lowest < least * scale).any() or (least > 0 and not scale.all()):
        raise ValueError(
            f"{name} must be positive {kind}, got a smallest eigenvalue of {lowest.min():.4g} in "
            f"mode {lowest.argmin()}; {why}."
        )
    return cost
