"""The cost of the optimum, or bounds on it, as figures to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tensordict.nn import TensorDictModuleBase


class Test(Protocol):
    """The part of a test that a problem may use: see :class:`~hpo_torchrl.training.Evaluation`."""

    env: Any
    num_steps: int
    skip: int
    seed: int

    def run(self, policy: Any) -> Any:
        """Simulate a policy; the answer's ``mean`` is its cost per unit and period."""


@dataclass(frozen=True)
class Optimum:
    """A policy that a solver or a search found, with its cost and what is proved about it.

    Attributes:
        cost: average cost per period of the policy, over all items or dimensions; the optimum
            cannot lie above it.
        policy: the policy, a :class:`~hpo_torchrl.modules.RulePolicy` with its numbers.
        lower: a cost that no policy at all goes below, or ``None`` where the policy is only the
            best of its kind and nothing is proved about others.
    """

    cost: float
    policy: Any = field(compare=False)
    lower: float | None = None


@dataclass(frozen=True)
class Reference:
    """Cost per unit and period of the optimum, or bounds on it; ``None`` where unknown.

    Attributes:
        optimal_cost: cost of the optimum.
        lower_bound: what no policy can go below.
        upper_bound: what some known policy attains.
        baselines: costs of simple rules by name.
        policy: the optimal policy, or that of the upper bound.
        paired: whether the costs are of the test's own initial states, and all its noise is in
            those: gaps then have no sampling error of their own.
        details: further facts by name, as the problem's ``describe`` puts them in the summary.
    """

    optimal_cost: float | None = None
    lower_bound: float | None = None
    upper_bound: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    policy: TensorDictModuleBase | None = field(default=None, compare=False)
    paired: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def loses_to(self, cost: float) -> str | None:
        """Say which of the baselines costs least, if that is less than this, by 0.1 % or more.

        Examples:
            >>> from hpo_torchrl.core.reference import Reference
            >>> Reference(baselines={"(s, S) rule": 36.0}).loses_to(37.8)
            '(s, S) rule (36) by 5.0 %'
        """
        if not self.baselines:
            return None
        name, least = min(self.baselines.items(), key=lambda item: item[1])
        share = (cost - least) / (abs(least) or 1.0)
        return f"{name} ({least:.4g}) by {share:.1%}".replace("%", " %") if share > 1e-3 else None

    def gaps(self, cost: float) -> dict[str, float | None]:
        """Return cost / optimum - 1 as ``gap``, and the same for either bound; ``None`` if unknown.

        Between a lower and an upper bound the true gap is between ``gap_to_upper_bound`` (at
        least) and ``gap_to_lower_bound`` (at most).
        """
        known = {
            "gap": self.optimal_cost,
            "gap_to_lower_bound": self.lower_bound,
            "gap_to_upper_bound": self.upper_bound,
        }
        # Relative to the size of the base: the negated cost of a profit is below 0.
        return {
            name: None if base is None else (cost - base) / (abs(base) or 1.0)
            for name, base in known.items()
        }
