"""The optimum of a switched linear system with quadratic cost, by sets of Riccati matrices."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.switched_lqr.quadratic_sets import (
    Stage,
    minimum,
    prune,
    recursion,
    step_back,
)
from hpo_torchrl.problems.switched_lqr.system import System, fixed_mode_cost

# States of the pilot study that spreads a tolerance over the stages.
_PILOT_STATES = 128
# No stage is told to be cruder than this.
_CRUDEST = 3.0
# Widths that a reference aims for in turn, with the largest set of matrices to spend on each:
# seconds in all.
_ATTEMPTS = ((0.001, 1000), (0.01, 50_000))
_EXACT = 20_000


class SwitchedLQRPolicy(RulePolicy):
    """The policy that :func:`switched_lqr_optimum` found, its cost, and a bound on all policies.

    It computes in float64 on the CPU and answers in the type and on the device of ``"x"``.

    Attributes:
        horizon: steps T.
        tolerance: the relative width that was aimed for.
        num_matrices: matrices of the bound with 1, 2, ... steps to go.
    """

    in_keys = ["x", "step"]  # noqa: RUF012

    def __init__(
        self, system: System, tolerance: float, stages: list[Stage], bound: list[Stage]
    ) -> None:
        super().__init__()
        self.system, self.stages, self.bound = system, stages, bound[-1].forms
        self.horizon, self.tolerance = len(stages) - 1, tolerance
        self.num_matrices = tuple(len(stage.mode) for stage in bound[1:])

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
        return self.step_costs(self.system.states("x0", x0)).sum(0)

    def lower_bound(self, x0: Any) -> Tensor:
        """Return what no policy can go below from x0, ``(*B,)``; arguments as for :meth:`cost`."""
        return minimum(self.system.states("x0", x0), self.bound)[0]

    def width(self, x0: Any) -> float:
        """Return the certified relative width of the bounds on the mean optimal cost over x0.

        With U the mean of :meth:`cost` and L that of :meth:`lower_bound`, this is U / L - 1.
        """
        return float(self.cost(x0).mean() / self.lower_bound(x0).mean()) - 1.0

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Return modes ``(*B,)`` and inputs ``(*B, m)``, whatever the step of each instance."""
        place, step = state
        x = self.system.states("x", place)
        to_go = (self.horizon - step.detach().cpu().squeeze(-1)).clamp_min(1)
        mode = torch.zeros(to_go.shape, dtype=torch.int64)
        u = x.new_zeros(*to_go.shape, self.system.B.shape[-1])
        for left in to_go.unique().tolist():
            at, stage, source = to_go == left, self.stages[left], self.stages[left - 1].forms
            chosen, where = minimum(x[at], stage.forms)[1].unique(return_inverse=True)
            mode[at] = stage.mode[chosen][where]
            _, gains = self.system.riccati(source[stage.parent[chosen]], stage.mode[chosen])
            u[at] = -(gains[where] @ x[at].unsqueeze(-1)).squeeze(-1)
        return mode.to(place.device), u.to(place)

    def step_costs(self, x: Tensor) -> Tensor:
        """Return the cost of every step from states ``(*B, n)``: ``(T, *B)``."""
        costs = []
        for step in range(self.horizon):
            mode, u = self.decide(x, torch.full((*x.shape[:-1], 1), step))
            x, cost = self.system.step(x, u, mode)
            costs.append(cost)
        return torch.stack(costs)


def switched_lqr_optimum(
    A: Any,
    B: Any,
    Q: Any,
    R: Any,
    horizon: int,
    tolerance: float = 0.0,
    *,
    max_matrices: int = 100_000,
) -> SwitchedLQRPolicy:
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
    certified on given initial states, :meth:`~SwitchedLQRPolicy.width` says.

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

    Returns:
        The policy, which knows its cost and the bound.

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
    pilot: list[Stage] = []
    losses = [0.0] * horizon
    if tolerance > 0:
        pilot, losses = _pilot(system, horizon, tolerance)
    # The last stage is evaluated and never stepped from: no need to prune it.
    selects = [*(partial(prune, tolerance=loss) for loss in losses[:-1]), None]
    bound = recursion(system, selects, limit)
    stages = _attained(system, pilot, bound) if pilot else bound
    return SwitchedLQRPolicy(system, tolerance, stages, bound)


def switched_lqr_reference(env: Any, test: Test) -> Reference:
    """Return the exact optimum on a test's initial states, or certified bounds, per unit and step.

    Nothing is known with process noise; no lower bound where the guard might pay.
    """
    if env.process_noise > 0:
        return Reference()
    if test.seed is not None:
        env.set_seed(test.seed)
    x0 = env.reset().get("x").reshape(-1, env.A.shape[-1])
    matrices, units = (env.A, env.B, env.Q, env.R), env.horizon * env.cost_units
    fixed = fixed_mode_cost(*matrices, env.horizon, x0).flatten(1).mean(1) / units
    baselines, of = {"best fixed mode": float(fixed.min())}, "return"
    attempts = [(0.0, _EXACT)] if env.num_discrete <= 2 else []
    for tolerance, limit in [*attempts, *_ATTEMPTS]:
        try:
            policy = switched_lqr_optimum(*matrices, env.horizon, tolerance, max_matrices=limit)
        except MemoryError:
            continue
        costs = policy.cost(x0)
        known = {"upper_bound": float(costs.mean()) / units}
        # The recursion knows of no guard. One that acts before the end leaves a coordinate at the
        # limit, to be paid: only where that is dearer than the optimum is it sure to be one.
        touching = float(torch.linalg.eigvalsh(env.Q.double()).min()) * env.state_limit**2
        if not bool((costs > touching).any()):
            if tolerance == 0.0:
                known = {"optimal_cost": known["upper_bound"]}
            else:
                known["lower_bound"] = float(policy.lower_bound(x0).mean()) / units
        return Reference(**known, baselines=baselines, policy=policy, paired=True, objective=of)
    return Reference(baselines=baselines, objective=of)


def _pilot(system: System, horizon: int, tolerance: float) -> tuple[list[Stage], list[float]]:
    """Return the stages of a fair policy, and the tolerance of each that is worth computing.

    Only the best form of each stage for some random states is kept. Such a policy shows how the
    cost spreads over time: ``left[t]`` is the share of it that comes after t steps. A relative loss
    e with T - t steps to go is the share e left[t] of the whole.
    """
    states, others = (
        torch.randn(
            (_PILOT_STATES, system.A.shape[-1]),
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
        )
        for seed in (0, 1)
    )

    def winners(candidates: Tensor) -> tuple[Tensor, Tensor]:
        kept = minimum(states, candidates)[1].unique()
        return candidates[kept], kept

    stages = recursion(system, [winners] * horizon, limit=_PILOT_STATES * system.num_modes)
    costs = SwitchedLQRPolicy(system, 0.0, stages, stages).step_costs(others).sum(1)
    left = costs.flip(0).cumsum(0).flip(0) / costs.sum().clamp_min(1e-300)
    # Cutting the horizon loses a few times what a policy that knows of no cut leaves after it.
    worthwhile = int((left > tolerance / 8).sum())
    num_stages = min(horizon, max(2, worthwhile))
    share = 0.75 * tolerance / max(1, num_stages - 1)
    losses = (share / left[:num_stages].clamp_min(1e-300)).clamp_max(_CRUDEST)
    return stages, losses.flip(0).tolist()


def _attained(system: System, pilot: list[Stage], bound: list[Stage]) -> list[Stage]:
    """Turn the decisions behind a bound into forms of costs that a policy attains.

    The decisions are followed while the bound has stages, then the pilot's; or the pilot's from the
    start, where that is cheaper. Being greedy with respect to costs that can be attained never
    costs more than they say; a bound, which leaves out the end, gives no such promise.
    """
    cut = len(pilot) - len(bound)
    # The bound ends with one form: the best of the pilot's on average over all directions.
    end = pilot[cut].forms.diagonal(dim1=-2, dim2=-1).sum(-1).argmin().unsqueeze(0)
    own = Stage(*(part[end] for part in pilot[cut]))
    stages = [*pilot[:cut], _union(own, pilot[cut])]
    for stage, rival in zip(bound[1:], pilot[cut + 1 :], strict=True):
        shift = len(own.mode)
        own = step_back(system, own.forms, stage.mode, stage.parent)
        stages.append(_union(own, rival._replace(parent=rival.parent + shift)))
    return stages


def _union(one: Stage, other: Stage) -> Stage:
    return Stage(*(torch.cat(parts) for parts in zip(one, other, strict=True)))
