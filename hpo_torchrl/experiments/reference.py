"""Comparisons of a run: with the optimum, bounds on it, or simple rules."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

from hpo_torchrl.core.console import announced
from hpo_torchrl.core.objective import OBJECTIVES
from hpo_torchrl.core.reference import Reference
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.diagnostics.grid import GridOptimum, grid_optimum
from hpo_torchrl.diagnostics.yardsticks import TROUBLE, yardsticks
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.envs.wrapped import WrappedEnv
from hpo_torchrl.training import Evaluation

KINDS = ("auto", "exact", "grid", "yardsticks", "none")
# Continuous coordinates of a state, and seconds, that a grid may have without being asked for.
_LINES, _SECONDS = 2, 40.0


class References:
    """Finds what the tests of a run are compared with; what is solved or searched, only once.

    Args:
        kind: ``"exact"`` is what the environment knows itself; ``"grid"`` solves it by
            :func:`~hpo_torchrl.diagnostics.grid_optimum`; ``"yardsticks"`` searches simple rules;
            ``"none"`` is nothing. ``"auto"`` is the first that there is: what the environment
            knows, a grid (with the yardsticks) if it is small, the yardsticks.
        shown: whether it is said what takes the time.
    """

    def __init__(self, kind: str, *, shown: bool) -> None:
        self.kind, self.shown = kind, shown
        self.optimum: GridOptimum | None = None
        self.rules: Mapping[str, Any] | None = None

    def of(self, test: Evaluation, *, anew: bool = True) -> Reference:
        """Return what a test is compared with.

        Args:
            test: the test.
            anew: whether it is of another problem than the one before.

        Raises:
            ValueError: the kind is ``"grid"``, and the environment is beyond the reach of one.
            TypeError: likewise, it is no plain :class:`DifferentiableEnv`.
        """
        if self.kind == "none":
            return Reference()
        with announced(
            "finding what the best policy costs (reference=none: not)", shown=self.shown
        ):
            if self.kind == "exact" or (self.kind == "auto" and _knows_itself(plain(test.env))):
                return test.reference()
            aim = _objective(test)
            if aim is None:
                return Reference()
            if anew:
                self.optimum, self.rules = None, None
            return self._found(test, aim)

    def _found(self, test: Evaluation, aim: Mapping[str, Any]) -> Reference:
        if self.kind == "grid" and self.optimum is None:
            self.optimum = grid_optimum(test.env, **aim)
        elif self.kind == "auto" and self.rules is None:
            with contextlib.suppress(*TROUBLE):
                self.optimum = grid_optimum(test.env, **aim, lines=_LINES, seconds=_SECONDS)
        if self.rules is None:
            self.rules = yardsticks(test)
            costs = {name: cost for name, (cost, _) in self.rules.items()}
        else:
            costs = {name: test.run(policy).mean for name, (_, policy) in self.rules.items()}
        details = {"yardsticks": {name: repr(policy) for name, (_, policy) in self.rules.items()}}
        if self.optimum is None:
            return Reference(baselines=costs, details=details, **aim)
        # On the test itself: the same starts and noise as the policy's, so that gaps hardly err.
        run, doubt = test.run(self.optimum.policy), self.optimum.doubt
        lost = Reference(baselines=costs).loses_to(run.mean)
        if lost and run.mean - min(costs.values()) > self.optimum.error + 3 * run.standard_error:
            doubt = f"the grid's policy ({run.mean:.4g}) is no optimum, it loses to the {lost}"
        if doubt is not None and self.kind == "grid":
            warnings.warn(f"{doubt}: it is no more than an upper bound.", stacklevel=2)
        return Reference(
            optimal_cost=run.mean if doubt is None else None,
            upper_bound=None if doubt is None else run.mean,
            baselines=costs,
            policy=self.optimum.policy,
            details={**details, "grid": self.optimum.facts},
            no_gap=doubt,
            **aim,
        )


def _knows_itself(env: Any) -> bool:
    """Whether an environment has a reference of its own."""
    while isinstance(env, WrappedEnv):
        env = env.original
    own = getattr(env, "reference", None)
    return own is not None and getattr(own, "__func__", None) is not DifferentiableEnv.reference


def _objective(test: Evaluation) -> dict[str, Any] | None:
    """Return what a test measures, as :func:`grid_optimum` is told; ``None`` if it is nothing."""
    if test.objective not in OBJECTIVES:
        return None
    discount = {"discount": test.discount} if test.objective == "discounted" else {}
    return {"objective": test.objective, **discount}
