"""The optimum of a problem with a small state, by dynamic programming on a grid."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.core.checks import check_choice, check_float
from hpo_torchrl.core.objective import OBJECTIVES
from hpo_torchrl.core.reference import Test
from hpo_torchrl.diagnostics.grid_core import Core, Run
from hpo_torchrl.diagnostics.grid_solver import Solver
from hpo_torchrl.diagnostics.grid_space import Space

# Points of a continuous line and nodes of a noise coordinate, level by level, by number of lines.
_LEVELS = {
    0: [(2, 9), (2, 17)],
    1: [(101, 9), (401, 15), (1601, 25)],
    2: [(31, 7), (61, 11), (121, 15), (181, 17)],
    3: [(13, 5), (23, 7), (37, 9)],
}
# Attempts at finding how far the optimal policy goes, and the share of states that may be beyond.
_RANGES, _BEYOND = 8, 1e-3
# Passes of a solution, steps of a simulation, and those of them before it counts.
_PASSES, _STEPS, _SKIP = 30, 200, 50
# Draws of a policy's steps that check its values, in so many independent parts.
_CHECKS, _PARTS = 2**20, 8
_TRUSTED = 0.03  # relative error beyond which nothing should be compared with a solution
_STATES = 4000  # states in which a policy is looked at
_SEEN = 10_000  # states of a simulation that say what is discrete


@dataclass
class GridOptimum:
    """What dynamic programming on a grid found; costs are per unit and step, as in a test.

    Attributes:
        cost: cost of the optimum, by interpolation on the grid.
        error: how far off that may be: the most of the difference to the coarser grid, to what the
            policy costs by the Bellman errors of the values under noise of its own (twice if it
            costs less: the optimum then costs still less), and to the simulation, less three
            standard errors; and two standard errors of what rests on draws.
        simulated: what the policy costs in a simulation.
        simulated_error: the standard error of that.
        policy: the optimal policy; it reads the entries of the state.
        levels: nodes of the grids and the cost on each.
        seconds: how long it took.
    """

    cost: float
    error: float
    simulated: float
    simulated_error: float
    policy: Any
    levels: list[tuple[int, float]]
    seconds: float
    solver: Solver = field(repr=False)

    @property
    def doubt(self) -> str | None:
        """Say why nothing should be compared with it, if its error is large."""
        if self.error <= _TRUSTED * abs(self.cost):
            return None
        return (
            f"the grid's optimum ({self.cost:.4g}) may be off by {self.error:.2g}; "
            f"in a simulation its policy costs {self.simulated:.4g}"
        )

    @property
    def facts(self) -> dict[str, float]:
        """The figures, rounded, for a summary."""
        names = ("cost", "error", "simulated", "simulated_error", "seconds")
        return {name: float(f"{getattr(self, name):.5g}") for name in names}

    def best(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what each discrete action is worth, with its best u, and that u.

        Args:
            state: entries of the state by name, with one batch dimension of size N.

        Returns:
            ``(N, M)``, differential values (average) or values, and ``(N, M, n)``. With heads, M
            counts their combinations, those of the last head fastest.
        """
        return self.solver.best(*self._at(state))

    def values(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return what each discrete action is worth with its best u, ``(N, M)``."""
        return self.best(state)[0]

    def value_of(self, state: Mapping[str, Tensor], discrete: Tensor, u: Tensor) -> Tensor:
        """Return what any action is worth in these states, ``(N,)``: Q*(s, d, u).

        Args:
            state: entries of the state, with one batch dimension of size N.
            discrete: its discrete action, ``(N,)`` or ``(N, H)``.
            u: its continuous action, ``(N, n)``.
        """
        coordinates, now = self._at(state)
        core, value = self.solver.core, self.solver.ahead_of(now)[0]
        choice = core.index_of(discrete)
        return self.solver.ahead(coordinates, choice, u.double(), value, now)

    def _at(self, state: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        steps = state["step"].unique() if self.solver.tables else torch.zeros(1, dtype=torch.int64)
        if len(steps) > 1:
            raise ValueError(f"States must be of one step of the episode, got {steps.tolist()}.")
        return self.solver.core.layout.flat(state, 1), int(steps[0])


@torch.no_grad()
def grid_optimum(
    env: Any,
    *,
    objective: str = "average",
    discount: float = 0.99,
    tolerance: float = 1e-3,
    lines: int = max(_LEVELS),
    seconds: float = 60.0,
    seed: int = 0,
) -> GridOptimum:
    r"""Solve a problem of a small state by dynamic programming on a grid.

    Everything is found from the environment: what of the state is constant, discrete or continuous,
    how far the optimal policy goes (by simulating random and then ever better policies), which
    noise matters and how it is distributed. Expectations are sums over a quadrature of the noise,
    values between nodes are interpolated multilinearly, continuous actions are tried over all their
    range with its ends and refined around the best. Stationary problems are solved by modified
    policy iteration (Puterman, 2005, sections 6.5 and 8.5; relative values for the average), those
    with a horizon backwards in time. The error of an interpolation falls with the square of the
    grid's step, by which the costs of two grids are extrapolated to a step of 0.

    Args:
        env: a :class:`DifferentiableEnv` whose instances differ in their states alone. At most
            three continuous coordinates of the state and of the action, 32 discrete actions (all
            combinations of the heads), noise that is the same in every step.
        objective: ``"average"`` reward of a step in the long run, ``"discounted"`` return from the
            initial states, or ``"return"``: of an episode of ``env.horizon`` steps, or until it
            ends by itself. With a horizon the discounted return is that of an episode as well.
        discount: discount factor, of the objective ``"discounted"``.
        tolerance: relative difference between two extrapolated costs that is small enough.
        lines: number of continuous coordinates of the state beyond which it is refused.
        seconds: time after which no finer grid is begun.
        seed: seed of the simulations that find how far states go.

    Returns:
        The cost, its error, the policy and what actions are worth.

    Raises:
        TypeError: the environment is no plain :class:`DifferentiableEnv`.
        ValueError: it is beyond the reach of a grid; the message says in what.

    Examples:
        >>> import torch
        >>> from hpo_torchrl import grid_optimum
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> env = InventoryEnv(lead_time=0, demand=2.0, fixed_cost_per_item=8.0, batch_size=64)
        >>> optimum = grid_optimum(env, seconds=1.0)
        >>> abs(optimum.cost - 6.426) < 0.05  # exactly, by Zheng and Federgruen
        True
        >>> optimum.values({"inventory": torch.tensor([[[-3.0]], [[5.0]]])}).argmax(1)
        tensor([1, 0])
    """
    started = time.monotonic()
    check_choice("objective", objective, OBJECTIVES)
    check_float("discount", discount, minimum=0.0)
    gamma = discount if objective == "discounted" else 1.0
    core, deadline = Core(env, seed), started + seconds
    how: Any = {"objective": objective, "discount": gamma}
    solver, visited, seen = _coarse(core, how, tolerance, deadline, lines)
    levels: list[tuple[int, float]] = []
    guesses: list[float] = []
    for points, nodes in _LEVELS[len(solver.space.smooth)]:
        space = Space(core.layout, visited, seen, points)
        solver = Solver(core, space, core.noise.rule(nodes), **how, start=solver)
        solver.solve(_PASSES, tolerance, deadline)
        levels.append((points, -solver.level()))
        guesses.append(_extrapolated(levels[-2:]))
        if len(levels) > 2 and abs(guesses[-1] - guesses[-2]) < tolerance * abs(guesses[-1]):
            break
        if len(levels) > 1 and time.monotonic() > deadline:
            break
    again, steps = objective == "average", core.horizon or _STEPS
    run = core.simulate(solver.act, 2 * _STEPS if again else steps, 1024, again)
    weights = gamma ** torch.arange(len(run.rewards), dtype=torch.float64)
    weights[: _SKIP if again else 0] = 0.0
    # Of episodes that end by themselves the sum counts, else the (weighted) average of a step.
    own = objective == "return" and core.horizon is None
    periods = 1.0 if own else float(weights.sum())
    endless = objective == "discounted" and core.horizon is None
    whole = 1.0 if again else 1 / (1 - gamma) if endless else periods  # of what the values sum up
    units = core.env.cost_units
    cost, between = (x / (units * whole) for x in (guesses[-1], abs(guesses[-1] - guesses[-2])))
    costs = -(weights @ run.rewards) / (periods * units)
    simulated, chance = float(costs.mean()), float(costs.std()) / len(costs) ** 0.5
    off, risks = _bellman_errors(solver, run, weights)
    off = levels[-1][1] / (units * whole) - off / (periods * units) - cost
    risk = (risks / (periods * units)).square().sum()
    if core.drawn and not again:
        starts = solver.space.read(solver.value, core.initial) / (units * whole)
        risk += starts.var() / len(starts)
    return GridOptimum(
        cost=cost,
        error=max(between, off, -2 * off, abs(simulated - cost) - 3 * chance)
        + 2 * float(risk**0.5),
        simulated=simulated,
        simulated_error=chance,
        policy=solver.policy(),
        levels=levels,
        seconds=time.monotonic() - started,
        solver=solver,
    )


def _coarse(
    core: Core, how: Any, tolerance: float, deadline: float, lines: int
) -> tuple[Solver, Tensor, Tensor]:
    """Solve a coarse grid again and again, until its policy stays on it.

    Returns:
        The solution, the states that its policy visits, and all that were seen.
    """
    visited = seen = core.explore(30)
    again, steps = how["objective"] == "average", core.horizon or _STEPS
    for attempt in range(_RANGES):
        smooth = len(Space(core.layout, visited, seen, 2).smooth)
        if smooth > lines:
            raise ValueError(
                f"grid_optimum solves up to {lines} continuous coordinates of the state, "
                f"got {smooth}; use reference=yardsticks."
            )
        points, nodes = _LEVELS[smooth][0]
        space = Space(core.layout, visited, seen, points)
        solver = Solver(core, space, core.noise.rule(nodes), **how)
        solver.solve(_PASSES, tolerance, deadline)
        runs = core.simulate(solver.act, steps if not again else _STEPS, 512, again).states
        runs = runs.flatten(0, 1)
        runs = runs[runs.isfinite().all(-1)]
        settled = space.beyond(runs) < _BEYOND and not space.missing(runs).any()
        if attempt and (settled or time.monotonic() > deadline):
            break
        # What was visited under other policies counts as well if the range does not settle.
        visited = torch.cat([core.initial[:2048], runs, *([visited] if attempt >= 3 else [])])
        seen = torch.cat([seen, runs[:: max(1, len(runs) // _SEEN)]])
    return solver, visited, seen


def _bellman_errors(solver: Solver, run: Run, weights: Tensor) -> tuple[float, Tensor]:
    """Sum up the Bellman errors of the values where their policy goes, under noise of their own.

    This is how much more the policy earns than the values say, whatever those are and however good
    the quadrature that they are from (the performance difference lemma of Kakade and Langford,
    2002; for the average, stationary states do the same).

    Args:
        solver: the solution.
        run: its policy.
        weights: what each step of that counts, ``(T,)``.

    Returns:
        The sum, and standard errors ``(2,)``: of the sum, and, where the distribution of the noise
        is that of a sample, of that.
    """
    core, space, generator = solver.core, solver.space, np.random.default_rng(1)
    times = torch.arange(len(weights)).split(1 if solver.tables else len(weights))
    count = max(_CHECKS // (2 * _PARTS * len(times)), 32)
    sums, deviation = torch.zeros(_PARTS, dtype=torch.float64), 0.0
    for time_, part in itertools.product(times, range(_PARTS)):
        now, own = int(time_[0]), slice(part, None, _PARTS)
        share = weights[time_, None] * run.alive[time_, own]
        if not share.any():
            continue
        pick = torch.multinomial(share.flatten(), count, True, generator=core.generator).repeat(2)
        states, choice, u = (x[time_, own].flatten(0, 1)[pick] for x in run[:3])
        noise = core.noise.points(count, generator)
        after, reward, over = core.step(states, choice, u, noise, now if core.timed else 0)
        value = solver.ahead_of(now)[0]
        worth = space.read(value, after)
        if over is not None:
            worth = torch.where(over, solver.restart(value), worth)
        before = solver.values[now] if solver.tables else value
        error = reward + solver.discount * worth - space.read(before, states) - solver.gain
        mass = float(share.sum() / share.shape[1])
        sums[part] += mass * error.mean()
        deviation += mass * float(error.std()) / _PARTS
    drawn = deviation / len(core.noise.sample) ** 0.5 if core.noise.sampled else 0.0
    return float(sums.mean()), torch.tensor([float(sums.std()) / _PARTS**0.5, drawn])


def _extrapolated(levels: list[tuple[int, float]]) -> float:
    """Return the cost of an infinitely fine grid: the error falls with the square of its step."""
    (_, coarse), (_, fine) = levels[0], levels[-1]
    (before, after) = ((1 / max(points - 1, 1)) ** 2 for points in (levels[0][0], levels[-1][0]))
    return fine if before == after else fine + (fine - coarse) * after / (before - after)


@torch.no_grad()
def split_gap(optimum: GridOptimum, policy: Any, test: Test) -> dict[str, float]:
    """Split what a policy loses to the optimum into its discrete and its continuous actions.

    By the performance difference lemma (Kakade and Langford, 2002) a policy costs more than the
    optimum by the mean, over the states that the policy itself visits, of how much worse its action
    is than the best one: Q*(s, d*, u*) - Q*(s, d, u). With u*(d), the best u beside the d that was
    chosen, this is Q*(s, d*, u*(d*)) - Q*(s, d, u*(d)), the part of the discrete action, and
    Q*(s, d, u*(d)) - Q*(s, d, u), that of the continuous one.

    Args:
        optimum: the optimum.
        policy: the policy; discrete actions are by argmax.
        test: a test of the problem and objective that were solved.

    Returns:
        ``"discrete"`` and ``"continuous"``, in cost per unit and step, and ``"total"``.
    """
    env, solver = test.env, optimum.solver
    core, found = solver.core, []
    env.set_seed(test.seed)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        run = env.rollout(
            test.num_steps, policy, break_when_any_done=False, break_when_all_done=False
        )
    run = run.reshape(-1, run.shape[-1])[:, test.skip :]
    names = [*core.layout.shapes, "step", "action"]
    weights = solver.discount ** torch.arange(run.shape[1], dtype=torch.float64)
    if solver.tables:
        each = torch.arange(run.shape[1]).repeat_interleave(max(1, _STATES // run.shape[1]))
        times = each.split(max(1, _STATES // run.shape[1]))
    else:
        times = [torch.multinomial(weights, _STATES, True, generator=core.generator)]
        weights = torch.ones(1, dtype=torch.float64)
    for time_ in times:
        pick = torch.randint(len(run), time_.shape, generator=core.generator)
        state = run[pick, time_].select(*names).cpu()
        worth, _ = optimum.best(state)
        allowed = core.allowed(core.layout.flat(state, 1), int(time_[0]))
        choice = core.index_of(state["action", "discrete"])
        own = optimum.value_of(state, state["action", "discrete"], state["action", "continuous"])
        beside = torch.maximum(worth[torch.arange(len(pick)), choice], own)
        most = torch.maximum(worth.masked_fill(~allowed, -torch.inf).amax(1), beside)
        found.append(torch.stack([(most - beside).mean(), (beside - own).mean()]))
    parts = weights @ torch.stack(found) / (weights.sum() * core.env.cost_units)
    discrete, continuous = parts.tolist()
    return {"discrete": discrete, "continuous": continuous, "total": discrete + continuous}
