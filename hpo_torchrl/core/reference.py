"""The cost of the optimum, or bounds on it, as figures to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tensordict.nn import TensorDictModuleBase

from hpo_torchrl.core.objective import OBJECTIVES, worded


def excess(cost: Any, base: Any) -> Any:
    """Return how far a cost is above another, relative to its size: negated profits are below 0.

    Args:
        cost: a number, or an array or table of them.
        base: likewise; 0 is taken for the unit.

    Examples:
        >>> from hpo_torchrl.core.reference import excess
        >>> excess(42.0, 40.0), excess(-38.0, -40.0), excess(3.0, 0.0)
        (0.05, 0.05, 3.0)
    """
    return (cost - base) / (abs(base) + (base == 0))


class Test(Protocol):
    """The part of a test that a problem may use: see :class:`~hpo_torchrl.training.Evaluation`."""

    env: Any
    num_steps: int
    skip: int
    seed: int
    objective: str
    discount: float

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
        objective: what all these costs are of: ``"average"``, ``"discounted"`` (the weighted
            average cost, ``1 - discount`` times the discounted sum) or ``"return"`` (of an episode,
            divided by its steps). Costs that are simulated on the test are of the test's objective.
        discount: of the discounted objective.
        lower_bound: what no policy can go below.
        upper_bound: what some known policy attains.
        baselines: costs of simple rules by name.
        policy: the optimal policy, or that of the upper bound.
        paired: whether the costs are of the test's own initial states, and all its noise is in
            those: gaps then have no sampling error of their own.
        details: further facts by name, as the problem's ``describe`` puts them in the summary.
        no_gap: why there is nothing to compare with, of what :meth:`compared` returns.
    """

    optimal_cost: float | None = None
    objective: str | None = field(default=None, kw_only=True)
    discount: float = field(default=1.0, kw_only=True)
    lower_bound: float | None = None
    upper_bound: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    policy: TensorDictModuleBase | None = field(default=None, compare=False)
    paired: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    no_gap: str | None = None

    def compared(self, test: Any, run: Any = None) -> Reference:
        """Return this if its costs are of what the test measures and the run is trained for.

        Otherwise all costs are left out, so that nothing that is printed or drawn can compare them,
        and ``no_gap`` says why.

        Args:
            test: the test; has ``objective`` and ``discount``.
            run: the algorithm, likewise; a rule, which is not trained, has none.

        Examples:
            >>> from hpo_torchrl.core.reference import Reference
            >>> from hpo_torchrl.problems import InventoryEnv
            >>> from hpo_torchrl.training import Evaluation
            >>> test = Evaluation(InventoryEnv(batch_size=8), num_steps=50, seed=0)
            >>> Reference(optimal_cost=37.0, objective="average").compared(test).no_gap
            'the test measures a window of 50 periods, the optimum (37) is of the long-run average'
        """
        costs = (self.optimal_cost, self.lower_bound, self.upper_bound, *self.baselines.values())
        # Only of the discounted return is a discount part; elsewhere it is how a run learns.
        own, measured, trained = (
            (aim, getattr(one, "discount", 1.0) if aim == "discounted" else 1.0)
            for one in (self, test, run)
            for aim in [getattr(one, "objective", None)]
        )
        named = own[0] in OBJECTIVES and own == measured and trained in (own, (None, 1.0))
        if named or all(cost is None for cost in costs):
            return self
        measures = f"the test measures {getattr(test, 'measures', worded(*measured))}"
        found = "" if self.optimal_cost is None else f" ({self.optimal_cost:g})"
        why = f"{measures}, the optimum{found} is of {worded(*own)}"
        if own == measured:
            why = f"the run is trained for {worded(*trained)}, {measures}"
        kept: dict[str, Any] = {"objective": self.objective, "details": self.details}
        return Reference(policy=self.policy, discount=self.discount, no_gap=why, **kept)

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
        share = excess(cost, least)
        return f"{name} ({least:.4g}) by {share:.1%}".replace("%", " %") if share > 1e-3 else None

    def gaps(self, cost: float, test: Any, run: Any = None) -> dict[str, float | None]:
        """Return cost / optimum - 1 as ``gap``, and the same for either bound; ``None`` if unknown.

        Between a lower and an upper bound the true gap is between ``gap_to_upper_bound`` (at
        least) and ``gap_to_lower_bound`` (at most). All are ``None`` where the costs are of another
        objective than the test's or the run's, see :meth:`compared`.
        """
        fit = self.compared(test, run)
        known = {
            "gap": fit.optimal_cost,
            "gap_to_lower_bound": fit.lower_bound,
            "gap_to_upper_bound": fit.upper_bound,
        }
        return {name: None if base is None else excess(cost, base) for name, base in known.items()}
