"""The figures of a run, under the names that every run uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo_torchrl.core.reference import Reference
from hpo_torchrl.training.evaluation import CostEstimate


def summarise(
    costs: Mapping[str, CostEstimate],
    primary: str,
    reference: Reference,
    counters: Mapping[str, Any],
    *,
    reports: str = "cost",
) -> dict[str, Any]:
    """Compare the primary cost with the optimum.

    Args:
        costs: what the policy costs in each test, by name.
        primary: the test that is compared with the reference.
        reference: cost of the optimum, or bounds.
        counters: further entries: names, steps, seconds.
        reports: ``"reward"`` adds ``test_reward``, the cost with the other sign.

    Returns:
        ``test_cost`` and ``test_cost_se`` of the primary, ``optimal_cost``, ``lower_bound``,
        ``upper_bound``, ``gap``, ``gap_to_lower_bound`` and ``gap_to_upper_bound`` (``None`` where
        unknown), ``baseline_costs`` of simple rules, the counters, and for each test
        ``<name>_cost`` and ``<name>_cost_se``.
    """
    cost = costs[primary]
    summary: dict[str, Any] = {
        **{key: counters[key] for key in ("env", "algorithm", "seed")},
        "test_cost": cost.mean,
        "test_cost_se": cost.standard_error,
        "optimal_cost": reference.optimal_cost,
        "lower_bound": reference.lower_bound,
        "upper_bound": reference.upper_bound,
        **reference.gaps(cost.mean),
        "baseline_costs": dict(reference.baselines),
        **{key: counters[key] for key in counters if key not in ("env", "algorithm", "seed")},
    }
    if reports == "reward":
        summary["test_reward"] = -cost.mean
    for name, estimate in costs.items():
        summary[f"{name}_cost"] = estimate.mean
        summary[f"{name}_cost_se"] = estimate.standard_error
    return summary
