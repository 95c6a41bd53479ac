"""The optimum of a switched linear system with quadratic cost, by sets of Riccati matrices."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.problems.switched_lqr.quadratic_sets import minimum, unpack
from hpo_torchrl.problems.switched_lqr.riccati import (
    Stage,
    System,
    pruning,
    recursion,
    riccati_steps,
)

__all__ = ["SwitchedLQROptimum", "fixed_mode_cost", "fixed_mode_gains", "switched_lqr_optimum"]

# States of the pilot study that spreads a tolerance over the stages.
_PILOT_STATES = 128
# No stage is told to be cruder than this.
_CRUDEST = 3.0


class SwitchedLQROptimum:
    """What :func:`switched_lqr_optimum` found: a policy, its cost, and a bound on all policies.

    Attributes:
        horizon: steps T.
        tolerance: the relative width that was aimed for.
        num_matrices: matrices of the bound with 1, 2, ... steps to go.
    """

    def __init__(
        self,
        system: System,
        tolerance: float,
        policy_stages: list[Stage],
        bound_stages: list[Stage],
    ) -> None:
        self.horizon, self.tolerance = len(policy_stages) - 1, tolerance
        self.num_matrices = tuple(len(stage.mode) for stage in bound_stages[1:])
        self._system, self._stages = system, policy_stages
        self._bound = bound_stages[-1].packed

    def cost(self, x0: Any) -> Tensor:
        """Return the total cost of the policy from x0, an upper bound on the optimum.

        Args:
            x0: initial states, ``(*B, n)``.

        Returns:
            The undiscounted cost of T steps in float64, ``(*B,)``; the optimum, if the tolerance
            is 0.

        Raises:
            ValueError: x0 has another shape or is not finite.
        """
        x0 = _states("x0", x0, self._system)
        return self._step_costs(x0.reshape(-1, x0.shape[-1])).sum(0).reshape(x0.shape[:-1])

    def lower_bound(self, x0: Any) -> Tensor:
        """Return what no policy can go below from x0, ``(*B,)``; arguments as for :meth:`cost`."""
        x0 = _states("x0", x0, self._system)
        return minimum(x0.reshape(-1, x0.shape[-1]), self._bound)[0].reshape(x0.shape[:-1])

    def width(self, x0: Any) -> float:
        """Return the certified relative width of the bounds on the mean optimal cost over x0.

        With U the mean of :meth:`cost` and L that of :meth:`lower_bound`, this is U / L - 1.
        """
        return float(self.cost(x0).mean() / self.lower_bound(x0).mean()) - 1.0

    def policy(self) -> SwitchedLQRPolicy:
        """Return the policy as a module that runs in ``env.rollout`` and TorchRL collectors."""
        return SwitchedLQRPolicy(self)

    def decide(self, x: Tensor, steps_to_go: int) -> tuple[Tensor, Tensor]:
        """Return mode ``(B,)`` and input ``(B, m)`` at states ``(B, n)``."""
        stage = self._stages[steps_to_go]
        chosen, where = minimum(x, stage.packed)[1].unique(return_inverse=True)
        mode = stage.mode[chosen]
        gains = self._system.gain(unpack(stage.source[stage.parent[chosen]]), mode)
        return mode[where], -(gains[where] @ x.unsqueeze(-1)).squeeze(-1)

    def _step_costs(self, x: Tensor) -> Tensor:
        costs = []
        for steps_to_go in range(self.horizon, 0, -1):
            mode, u = self.decide(x, steps_to_go)
            x, cost = self._system.step(x, u, mode)
            costs.append(cost)
        return torch.stack(costs)


class SwitchedLQRPolicy(TensorDictModuleBase):
    """Read ``"x"`` and ``"step"``, write ``("action", "discrete")`` and ``"continuous"``.

    It computes in float64 on the CPU and answers in the type and on the device of ``"x"``.
    """

    in_keys = ["x", "step"]  # noqa: RUF012  (tensordict's own declaration)
    out_keys = [("action", "discrete"), ("action", "continuous")]  # noqa: RUF012

    def __init__(self, optimum: SwitchedLQROptimum) -> None:
        super().__init__()
        self.optimum = optimum

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decide for every system, whatever its step."""
        place = tensordict.get("x")
        x = _states("x", place, self.optimum._system).reshape(-1, place.shape[-1])
        to_go = self.optimum.horizon - tensordict.get("step").detach().cpu().flatten()
        mode = torch.zeros(len(x), dtype=torch.long)
        u = x.new_zeros(len(x), self.optimum._system.B.shape[-1])
        for left in to_go.unique().tolist():
            at = to_go == left
            mode[at], u[at] = self.optimum.decide(x[at], max(1, left))
        shape = place.shape[:-1]
        action = {"discrete": mode.reshape(shape), "continuous": u.reshape(*shape, -1)}
        action["continuous"] = action["continuous"].to(place.dtype)
        return tensordict.update({"action": TensorDict(action, tensordict.shape).to(place.device)})


def switched_lqr_optimum(
    A: Any,
    B: Any,
    Q: Any,
    R: Any,
    horizon: int,
    tolerance: float = 0.0,
    *,
    max_matrices: int = 100_000,
) -> SwitchedLQROptimum:
    r"""Solve the switched LQR without noise: exactly, or between certified bounds.

    With k steps to go the optimal cost is the minimum of finitely many quadratic forms,

    .. math::
        V_k(x) = \min_{P \in H_k} x^\top P x, \qquad H_0 = \{0\}, \qquad
        H_{k+1} = \{\rho_m(P) : P \in H_k,\ m = 1 \dots M\}

    where :math:`\rho_m` is one Riccati step in mode m. A P that another one is below in the Loewner
    order is dropped: nothing is lost. With more than two modes, or without structure, the sets may
    grow beyond reach; a tolerance of 1 % makes them small again.

    With a tolerance, a P is also dropped if another, divided by a number above 1, is below it,
    and the other takes that lower place. The forms then are an under-estimate of the optimal cost
    at every state, which gives the bound; following the decisions behind them gives the policy and
    its cost. Each stage may lose an equal share of the tolerance, measured along the trajectories
    of a pilot study, so the many stages in which little is at stake stay small. Since
    :math:`V_k` grows with k, stages beyond those after which next to no cost is left are not
    computed: the last one bounds them from below. The width aimed for is a guide; what is
    certified on given initial states, :meth:`~SwitchedLQROptimum.width` says.

    Sources: W. Zhang, J. Hu and A. Abate, "On the value functions of the discrete-time switched
    LQR problem", IEEE Trans. Automatic Control 54(11), 2009; B. Lincoln and A. Rantzer, "Relaxing
    dynamic programming", IEEE Trans. Automatic Control 51(8), 2006.

    Args:
        A: transition matrices, ``(M, n, n)``; like the others a tensor, array or nested lists.
        B: input matrices, ``(M, n, m)``.
        Q: cost of the state before the step, ``(M, n, n)`` or ``(n, n)``.
        R: cost of the input, ``(M, m, m)`` or ``(m, m)``.
        horizon: steps T; nothing is charged after the last.
        tolerance: relative width aimed for; 0 is exact.
        max_matrices: refuse to hold more matrices than this for one stage.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes disagree, or an argument is not finite or out of range.
        MemoryError: a stage needs more than ``max_matrices``.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.problems.switched_lqr import switched_lqr_optimum
        >>> A, B = [[[2, 1], [0, 1]], [[2, 1], [0, 0.5]]], [[[1], [1]], [[1], [2]]]
        >>> optimum = switched_lqr_optimum(A, B, Q=[[1, 0], [0, 1]], R=[[1]], horizon=8)
        >>> x0 = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> optimum.cost(x0).shape, optimum.width(x0) < 1e-9
        (torch.Size([2]), True)
    """
    system = System.of(A, B, Q, R)
    horizon = check_int("horizon", horizon, minimum=1)
    tolerance = check_float("tolerance", tolerance, minimum=0.0)
    limit = check_int("max_matrices", max_matrices, minimum=1)
    if tolerance == 0:
        exact = recursion(system, horizon, pruning([0.0] * horizon), limit)
        return SwitchedLQROptimum(system, tolerance, exact, exact)
    pilot = _pilot(system, horizon)
    losses = _spread(pilot, tolerance)
    bound = recursion(system, len(losses), pruning(losses), limit)
    return SwitchedLQROptimum(system, tolerance, _attained(system, pilot._stages, bound), bound)


def fixed_mode_cost(A: Any, B: Any, Q: Any, R: Any, horizon: int, x0: Any) -> Tensor:
    """Return the least total cost of staying in one mode, for each: a line to beat.

    Args:
        A: this and the next ones: as for :func:`switched_lqr_optimum`.
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
    x = _states("x0", x0, system)
    P, modes = torch.zeros_like(system.A), torch.arange(system.num_modes)
    for _ in range(check_int("horizon", horizon, minimum=1)):
        P = system.riccati(P, modes)
    return torch.einsum("...i,mij,...j->m...", x, P, x)


def fixed_mode_gains(A: Any, B: Any, Q: Any, R: Any, horizon: int, mode: int) -> Tensor:
    """Return the best feedback u = -K x of a mode that is never left, by steps gone.

    Args:
        A: this and the next ones: as for :func:`switched_lqr_optimum`.
        B: see there.
        Q: see there.
        R: see there.
        horizon: steps T.
        mode: the mode.

    Returns:
        K in float64, ``(T, m, n)``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes disagree, an argument is out of range, or there is no such mode.
    """
    system = System.of(A, B, Q, R)
    if check_int("mode", mode, minimum=0) >= system.num_modes:
        raise ValueError(f"mode must be one of the {system.num_modes} modes from 0 on, got {mode}.")
    P, gains = torch.zeros_like(system.A[mode]), []
    for _ in range(check_int("horizon", horizon, minimum=1)):
        gains.append(system.gain(P, mode))
        P = system.riccati(P, mode)
    return torch.stack(gains[::-1])


def _pilot(system: System, horizon: int) -> SwitchedLQROptimum:
    """Keep of each stage only the best matrix for some random states: a fair policy."""
    generator = torch.Generator().manual_seed(0)
    shape = (_PILOT_STATES, system.A.shape[-1])
    states = torch.randn(shape, generator=generator, dtype=torch.float64)

    def winners(candidates: Tensor, number: int) -> tuple[Tensor, Tensor]:
        kept = minimum(states, candidates)[1].unique()
        return candidates[kept], kept

    stages = recursion(system, horizon, winners, limit=_PILOT_STATES * system.num_modes)
    return SwitchedLQROptimum(system, 0.0, stages, stages)


def _spread(pilot: SwitchedLQROptimum, tolerance: float) -> list[float]:
    """Return the tolerance of each stage that is worth computing, by steps to go.

    A fair policy shows how the cost spreads over time: ``left[t]`` is the share of it that comes
    after t steps. A relative loss e with T - t steps to go is the share e left[t] of the whole.
    """
    generator = torch.Generator().manual_seed(1)
    shape = (_PILOT_STATES, pilot._system.A.shape[-1])
    costs = pilot._step_costs(torch.randn(shape, generator=generator, dtype=torch.float64)).sum(1)
    left = costs.flip(0).cumsum(0).flip(0) / costs.sum().clamp_min(1e-300)
    # Cutting the horizon loses a few times what a policy that knows of no cut leaves after it.
    worthwhile = int((left > tolerance / 8).sum())
    num_stages = min(pilot.horizon, max(2, worthwhile))
    share = 0.75 * tolerance / max(1, num_stages - 1)
    losses = (share / left[:num_stages].clamp_min(1e-300)).clamp_max(_CRUDEST)
    return losses.flip(0).tolist()


def _attained(system: System, pilot: list[Stage], bound: list[Stage]) -> list[Stage]:
    """Turn the decisions behind a bound into matrices of costs that a policy attains.

    The decisions are followed while the bound has stages, then the pilot's; or the pilot's from the
    start, where that is cheaper. Being greedy with respect to costs that can be attained never
    costs more than they say; a bound, which leaves out the end, gives no such promise.
    """
    cut = len(pilot) - len(bound)
    stages = pilot[: cut + 1]
    tail = stages[-1].packed
    # One matrix to end with: the best of the pilot's on average over all directions.
    source = tail[unpack(tail).diagonal(dim1=-2, dim2=-1).sum(-1).argmin()].unsqueeze(0)
    for stage, rival in zip(bound[1:], pilot[cut + 1 :], strict=True):
        packed = riccati_steps(system, source, stage.mode, stage.parent)
        union = Stage(
            torch.cat([packed, rival.packed]),
            torch.cat([stage.mode, rival.mode]),
            torch.cat([stage.parent, rival.parent + len(source)]),
            torch.cat([source, rival.source]),
        )
        stages.append(union)
        source = packed
    return stages


def _states(name: str, x: Any, system: System) -> Tensor:
    states = torch.as_tensor(x).detach().cpu().double()
    n = system.A.shape[-1]
    if states.ndim == 0 or states.shape[-1] != n:
        raise ValueError(
            f"{name} must have shape (*B, n) with n = {n} from A, got {tuple(states.shape)}."
        )
    if not bool(torch.isfinite(states).all()):
        raise ValueError(f"{name} must be finite; it holds NaN or infinity.")
    return states
