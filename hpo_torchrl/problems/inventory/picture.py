"""What a learned inventory policy looks like: its rule as figures and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.core.figures import BLUE, GREEN, ORANGE, new_figure, save_figure
from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.problems.inventory.optima.s_S import s_S_cost

_STEPS, _GRID = 100, 2000


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
        orders = self.order_probability >= 0.5
        first_without = int((~orders).to(torch.int8).argmax()) if not bool(orders.all()) else None
        if first_without in (None, 0):
            return None
        return round(float(self.position[first_without - 1]))

    @property
    def order_up_to_level(self) -> int | None:
        """Learned S: the mean position that an order reached in the simulation."""
        if not len(self.visited_order_up_to):
            return None
        return round(float(self.visited_order_up_to.mean()))


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
    position = torch.arange(low, high + 1, max(1, (high - low) // _GRID))
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
    return InventoryPolicyView(
        position=position,
        order_probability=dist.probs[..., 1].cpu(),
        order_up_to=reached.mean(-1).cpu(),
        visited_position=before.mean(-1).cpu(),
        visited_order_up_to=after.mean(-1).cpu(),
    )


def describe_inventory(
    env: Any,
    policy: Any,
    tests: Mapping[str, Test],
    reference: Reference,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Read a policy's rule off its decisions, draw it, and run the recorded rule beside it.

    Args:
        env: the environment of the primary test.
        policy: the policy.
        tests: all tests by name.
        reference: that of the primary test.
        folder: where ``policy.png`` goes, or ``None``.

    Returns:
        For a single item with a known (s, S), ``optimal_s`` and ``optimal_S`` with the learned
        ones and what these cost. Where demand is recorded, ``record``: for each test its counted
        periods and the rule's cost, paired with the policy's (the same starts and demand); and the
        ``rule``: items, Q, S.
    """
    view = view_inventory_policy(env, policy)
    details = dict(reference.details)
    if folder is not None:
        plot_inventory_policy(folder / "policy.png", view, **details)
    if details:
        s, S = view.reorder_point, view.order_up_to_level
        details |= {"learned_s": s, "learned_S": S, "learned_rule_cost": None}
        if s is not None and S is not None and s < S:
            costs = (env.demand_mean, env.holding_cost, env.shortage_cost)
            mean, holding, shortage = (float(value) for value in costs)
            cost = s_S_cost(s, S, mean, holding, shortage, env.fixed_cost, env.lead_time)
            details["learned_rule_cost"] = cost + mean * float(env.procurement_cost)
    rule_policy: Any = reference.policy
    if not env.recorded or rule_policy is None:
        return details
    rows = {
        name: {
            "periods": test.env.span(test.skip, test.num_steps),
            "rule_cost": test.run(rule_policy).mean,
        }
        for name, test in tests.items()
    }
    rule = {"items": env.items, "Q": rule_policy.Q, "S": rule_policy.S.tolist()}
    return details | ({"record": rows, "rule": rule} if rows else {})


def plot_inventory_policy(
    path: str | Path,
    view: InventoryPolicyView,
    *,
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
    visited, reached = view.visited_position, view.visited_order_up_to
    lower.scatter(visited, reached, s=5, color=GREEN, alpha=0.4, linewidths=0)
    # Where it seldom orders, the level that an order would reach is not used: drawn dotted.
    orders = view.order_probability >= 0.5
    for shown, style in ((orders, "-"), (~orders, ":")):
        chosen = view.order_up_to.double().masked_fill(~shown, math.nan)
        lower.plot(view.position, chosen, color=BLUE, linewidth=1.5, linestyle=style)
    near: Any = {"textcoords": "offset points"}
    if len(reached):
        corner = float(visited.max()), float(reached.max())
        lower.annotate("orders in the simulation", corner, xytext=(6, -18), color=GREEN, **near)
    lower.set(ylabel="order-up-to level", xlabel="inventory position (units per item)")
    if optimal_s is not None:
        for axes in (upper, lower):
            axes.axvline(optimal_s, color=ORANGE, linewidth=1.2, linestyle="--")
        place = (optimal_s, 1.04)
        upper.annotate(f"optimal s = {optimal_s:g}", place, xytext=(5, 0), color=ORANGE, **near)
    if optimal_S is not None:
        lower.axhline(optimal_S, color=ORANGE, linewidth=1.2, linestyle="--")
        near |= {"xycoords": ("axes fraction", "data"), "ha": "right", "color": ORANGE}
        lower.annotate(f"optimal S = {optimal_S:g}", (0.99, optimal_S), xytext=(0, 5), **near)
    return save_figure(figure, path)
