"""The cost of the best inventory policy, where it is known, and the look of a learned one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.core.figures import BLUE, GREEN, ORANGE, new_figure, save_figure
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.problems.inventory.optima.discounted import MAX_ITEMS, discounted_optimum
from hpo_torchrl.problems.inventory.optima.items import Items
from hpo_torchrl.problems.inventory.optima.joint_replenishment import (
    joint_replenishment_lower_bound,
    joint_replenishment_optimum,
)
from hpo_torchrl.problems.inventory.optima.lost_sales import lost_sales_optimum
from hpo_torchrl.problems.inventory.optima.order_cost import OrderCost, order_cost_optimum
from hpo_torchrl.problems.inventory.optima.s_S import optimal_s_S, s_S_cost
from hpo_torchrl.problems.inventory.order_costs import FixedCost, ItemFixedCost
from hpo_torchrl.problems.inventory.rules import PeriodicPolicy, TotalDemandPolicy
from hpo_torchrl.problems.inventory.sales import Profit

# Items up to which a grid of all positions is solved in seconds where each item in an order has a
# cost of its own. With a joint cost alone, joint_replenishment_optimum draws the line itself.
_EXACT_ITEMS = 2
# Demands whose probability is computed, at least, and the share that may be left out.
_FEWEST, _LEFT_OUT = 64, 1e-12
# Steps of the simulation and points of the grid on which a policy is looked at.
_STEPS, _GRID = 100, 2000


def inventory_reference(env: Any, test: Test) -> Reference:
    """Return the exact optimum of an inventory problem, bounds on it, or the best rule's cost.

    On recorded demand the best rule of the training periods is run on the test. Otherwise, with
    Poisson demand, the optimum is known of a single item with any order cost whose breakpoints are
    integers, backlogged or (up to a lead time of 2) with lost sales; of up to three items with a
    joint fixed cost, and two with fixed costs for each item as well. More items with a joint cost
    have bounds. Where the discounted return counts, it is known of up to two items with a joint
    cost and demand that has a probability mass function, from an empty system. Profit is income
    less cost: where all demand is sold in the end the income is what it is, and a sale that is lost
    costs its price on top of p.

    Args:
        env: the problem in its original form.
        test: the test to compare with.

    Returns:
        The reference, per item and period; all ``None`` where nothing is known.
    """
    if env.recorded and env.ordering.delays is None:
        policy = TotalDemandPolicy.best(env)
        cost = test.run(policy).mean
        # The same starts and the same demand: no sampling error of the test is in the comparison.
        baselines = {"(s, S) rule": cost}
        known: Any = {"objective": test.objective, "discount": test.discount}
        return Reference(None, None, cost, baselines, policy, paired=True, **known)
    # Beyond what the solvers search: no reason to refuse a training.
    with contextlib.suppress(ValueError):
        alike = bool((env.lead_times == env.lead_time).all())
        joint = env.ordering.only_fixed_cost and not env.lost_sales and alike
        if getattr(test, "objective", None) == "discounted":
            if joint and env.num_items <= MAX_ITEMS and env.start == "empty":
                return _discounted_reference(env, test.discount)
        elif (
            env.demand.poisson
            and env.ordering.delays is None
            and not env.ordering.limited
            and alike
            and bool((env.holding_cost > 0).all())
        ):
            return replace(_stationary_reference(env), objective="average")
    return Reference()


def _discounted_reference(env: Any, discount: float) -> Reference:
    """Return the optimum of one or two items with a joint cost, from an empty system."""
    pmf = env.demand.almost_all(_LEFT_OUT, _FEWEST)
    if pmf is None:
        return Reference()
    rows = (env.holding_cost, env.shortage_cost, env.procurement_cost)
    h, p, c = (row.double().cpu().numpy() for row in rows)
    found = discounted_optimum(pmf, h, p, c, env.fixed_cost, env.lead_time, discount)
    known: dict[str, Any] = {"objective": "discounted", "discount": discount}
    return Reference(found.cost / env.num_items, policy=found.policy, **known)


def _stationary_reference(env: Any) -> Reference:
    n, L = env.num_items, env.lead_time
    rows = (env.demand_mean, env.holding_cost, env.shortage_cost)
    mean, h, p = (row.double().tolist() for row in rows)
    # Of a single item, values by item are numbers.
    features = [f.of_item(0) for f in env.features] if n == 1 else env.features
    prices: list[Any] = [f.price for f in features if isinstance(f, Profit)]
    income = float(sum((env.demand_mean.double().cpu() * torch.tensor(x)).sum() for x in prices))
    if any(isinstance(f, ItemFixedCost) and isinstance(f.cost, list) for f in features):
        return Reference()
    # Backlogged demand is all bought in the end, whatever the policy.
    bought = float((env.demand_mean * env.procurement_cost).double().sum())

    def per_item(cost: float) -> float:
        return (cost + bought - income) / n

    if not env.lost_sales and {type(f) for f in env.features} <= {FixedCost, ItemFixedCost, Profit}:
        joint, minor = (
            float(sum(f.cost for f in features if type(f) is kind))
            for kind in (FixedCost, ItemFixedCost)
        )
        if n == 1:
            found = optimal_s_S(mean[0], h[0], p[0], joint + minor, L)
            S = round(float(found.policy.S))
            details = {"optimal_s": S - round(found.policy.Q), "optimal_S": S}
            return Reference(optimal_cost=per_item(found.cost), details=details)
        items = Items(mean, h, p, joint, L)
        if minor == 0:
            return _joint_reference(items, per_item)
        if n <= _EXACT_ITEMS:
            found = joint_replenishment_optimum(items, minor_costs=minor)
            return Reference(optimal_cost=per_item(found.cost))
    if n > 1 or not all(float(at).is_integer() for at, _ in env.breakpoints()):
        return Reference()
    if env.lost_sales:
        found = lost_sales_optimum(mean[0], h[0], p[0] + sum(prices), _order_cost(env), L)
    else:
        found = order_cost_optimum(mean[0], h[0], p[0], _order_cost(env), L)
    return Reference(optimal_cost=found.cost - income)


def _joint_reference(items: Items, per_item: Any) -> Reference:
    rules = {
        "(Q, S) rule": per_item(TotalDemandPolicy.optimum(items).cost),
        "(R, S) rule": per_item(PeriodicPolicy.optimum(items).cost),
    }
    bound = None
    with contextlib.suppress(ValueError):  # too many items or positions
        optimum = per_item(joint_replenishment_optimum(items).cost)
        return Reference(optimal_cost=optimum, baselines=rules)
    with contextlib.suppress(ValueError):
        bound = per_item(joint_replenishment_lower_bound(items)[0])
    return Reference(lower_bound=bound, upper_bound=min(rules.values()), baselines=rules)


def _order_cost(env: Any) -> OrderCost:
    """Return the cost of ordering 0, 1, 2, ... units; infinite where they are not delivered."""

    def cost(quantities: np.ndarray) -> np.ndarray:
        asked = torch.as_tensor(quantities, dtype=torch.float64).unsqueeze(-1)
        given = env.ordering.delivered(asked, torch.zeros_like(asked).unsqueeze(-1))
        discrete = torch.zeros(len(asked), dtype=torch.int64)
        total = float(env.procurement_cost.double()) * given.sum(-1)
        for feature in env.features:
            total = total + feature.order_cost(given, discrete)
        return torch.where((given == asked).all(-1), total, torch.inf).numpy()

    return cost


# -- a learned policy ----------------------------------------------------------------------------


class InventoryPolicyView(NamedTuple):
    """A policy over the inventory position (on hand plus on order), in units per item.

    ``position``, ``order_probability`` and ``order_up_to`` run over a grid of states: all items
    equally far stocked, nothing on order. ``visited_position`` and ``visited_order_up_to`` are the
    states in which the simulated instances did order.
    """

    position: Tensor
    order_probability: Tensor
    order_up_to: Tensor
    visited_position: Tensor
    visited_order_up_to: Tensor

    @property
    def reorder_point(self) -> int | None:
        """Learned s: the policy orders at this position and at all below on the grid."""
        below = int((self.order_probability >= 0.5).cumprod(0).sum())
        return round(float(self.position[below - 1])) if 0 < below < len(self.position) else None

    @property
    def order_up_to_level(self) -> int | None:
        """Learned S: the mean position that an order reached in the simulation."""
        reached = self.visited_order_up_to
        return round(float(reached.mean())) if len(reached) else None


@torch.no_grad()
def view_inventory_policy(env, policy) -> InventoryPolicyView:
    """Evaluate a policy on a grid of inventory positions and in a simulation.

    Args:
        env: a test environment, whose whole batch is simulated.
        policy: the policy.
    """
    mean = env.demand_mean.cpu()
    # Whole units of an average item, from two periods of backlog to the rough order-up-to level.
    unit = float(mean.mean())
    low, high = min(-2, round(-2 * unit)), round(1.5 * float(env.order_up_to.mean()))
    step = max(1, (high - low) // _GRID)
    # Not integers, which end at 2**63.
    count = (high - low) // step + 1
    position = float(low) + float(step) * torch.arange(count, dtype=torch.float64)
    inventory = torch.zeros(len(position), *env.state_spec["inventory"].shape[-2:])
    inventory[..., 0] = position.unsqueeze(-1) / unit * mean
    inventory = inventory.to(dtype=env.float_dtype, device=env.device)
    # Other entries of the state are at their mean over fresh instances.
    others = [key for key in env.state_names if key not in ("inventory", "step")]
    fresh = env.reset().reshape(-1) if others else {}
    usual = {key: fresh[key].mean(0).expand(len(position), *fresh[key].shape[1:]) for key in others}
    dist = policy.distribution(env.observe({"inventory": inventory, **usual}))
    order = torch.ones(len(position), dtype=torch.int64, device=env.device)
    reached = inventory[..., 0] + dist.mode_of(order)

    with set_exploration_type(ExplorationType.DETERMINISTIC):
        run = env.rollout(_STEPS, policy, break_when_any_done=False)
    ordered = run["action", "discrete"] == 1
    before = run["inventory"].sum(-1)[ordered]
    after = before + run["action", "continuous"][ordered].clamp_min(0.0)
    probability, *levels = dist.probs[..., 1], reached.mean(-1), before.mean(-1), after.mean(-1)
    return InventoryPolicyView(position, probability.cpu(), *(level.cpu() for level in levels))


def describe_inventory(
    env: Any,
    policy: Any,
    tests: Mapping[str, Test],
    reference: Reference,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Read the learned (s, S) off the policy, and draw it; run a record's rule on all tests.

    Args:
        env: the environment of the primary test.
        policy: the policy.
        tests: all tests by name.
        reference: that of the primary test.
        folder: where ``policy.png`` goes, or ``None``.

    Returns:
        For a single item with a known (s, S), ``optimal_s`` and ``optimal_S`` with the learned
        ones and what these cost, and ``in_words``, the line of the printed summary. Where demand is
        recorded, ``record``: for each test its counted periods and the rule's cost, paired with the
        policy's (the same starts and demand); and the ``rule``: items, Q (``None`` is never to
        order), S. Where demand is fitted, ``demand_fit``: the number of items by model, and by item
        what of the record the models do not show. All of the fit is in the folder,
        ``demand_fit.csv``.
    """
    known = dict(reference.details) if env.ordering.simple else {}
    details = _describe_fit(env, folder) | known
    if env.ordering.simple:
        view = view_inventory_policy(env, policy)
        if folder is not None:
            plot_inventory_policy(folder / "policy.png", view, **known)
    if known:
        s, S = view.reorder_point, view.order_up_to_level
        details |= {"learned_s": s, "learned_S": S, "learned_rule_cost": None}
        if s is not None and S is not None:
            if s < S:
                costs = (env.demand_mean, env.holding_cost, env.shortage_cost)
                mean, holding, shortage = (float(value) for value in costs)
                cost = s_S_cost(s, S, mean, holding, shortage, env.fixed_cost, env.lead_time)
                details["learned_rule_cost"] = cost + mean * float(env.procurement_cost)
            details["in_words"] = {"learned (s, S)": _in_words(details)}
    if env.recorded and tests and (rule := reference.policy) is not None:
        Q = rule.Q if math.isfinite(rule.Q) else None  # never
        details["rule"] = {"items": env.demand.items, "Q": Q, "S": rule.S.tolist()}
        details["record"] = {
            name: {
                "periods": test.env.demand.span(test.skip, test.num_steps),
                "rule_cost": test.run(rule).mean,
            }
            for name, test in tests.items()
        }
    return details


def _in_words(details: Mapping[str, Any]) -> str:
    """Return the learned (s, S) beside the optimal one, as the printed summary has them."""
    text = "({learned_s}, {learned_S})"
    text += "" if details["learned_rule_cost"] is None else ", exact cost {learned_rule_cost:.4f}"
    return (text + "; optimal ({optimal_s}, {optimal_S})").format(**details)


def _describe_fit(env: Any, folder: Path | None) -> dict[str, Any]:
    """Write the fit of a file's demand to a folder, and return its summary."""
    if env.demand_fit is None:
        return {}
    table = env.demand_fit.table.assign(item=env.item_names).set_index("item")
    if folder is not None:
        table.to_csv(folder / "demand_fit.csv")
    odd = table.loc[table["odd"] != "", "odd"]
    return {"demand_fit": {"models": table["model"].value_counts().to_dict(), "odd": odd.to_dict()}}


def plot_inventory_policy(
    path: str | Path,
    view: InventoryPolicyView,
    optimal_s: float | None = None,
    optimal_S: float | None = None,
) -> Path:
    """Draw a policy over the inventory position: when it orders, and up to what level.

    Args:
        path: the PNG file to write.
        view: the policy.
        optimal_s: reorder point of the optimal rule.
        optimal_S: order-up-to level of the optimal rule.

    Returns:
        The path.
    """
    figure, [[upper], [lower]] = new_figure(2)
    upper.plot(view.position, view.order_probability, color=BLUE, linewidth=1.8)
    upper.set(ylabel="probability of ordering", ylim=(-0.04, 1.12), title="Learned policy")
    dots: Any = {"s": 5, "color": GREEN, "alpha": 0.4, "linewidths": 0}
    visited, reached = view.visited_position, view.visited_order_up_to
    lower.scatter(visited, reached, label="orders in the simulation", **dots)
    # Where it seldom orders, the level that an order would reach is not used: drawn dotted.
    orders = view.order_probability >= 0.5
    for shown, style in ((orders, "-"), (~orders, ":")):
        chosen = view.order_up_to.double().masked_fill(~shown, math.nan)
        lower.plot(view.position, chosen, color=BLUE, linewidth=1.5, linestyle=style)
    lower.set(ylabel="order-up-to level", xlabel="inventory position (units per item)")
    dashed: Any = {"color": ORANGE, "linewidth": 1.2, "linestyle": "--"}
    if optimal_s is not None:
        upper.axvline(optimal_s, **dashed)
        lower.axvline(optimal_s, label=f"optimal s = {optimal_s:g}", **dashed)
    if optimal_S is not None:
        lower.axhline(optimal_S, label=f"optimal S = {optimal_S:g}", **dashed)
    lower.legend(frameon=False, fontsize="small")
    return save_figure(figure, path)
