"""What a policy does for each item: service, stock and costs, and how they come about in time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from hpo_torchrl.core.figures import BLUE, GREEN, ORANGE, new_figure, save_figure
from hpo_torchrl.problems.inventory.order_costs import ItemFixedCost

# Items that the picture shows, and periods, the last ones.
_DRAWN, _PERIODS = 4, 60
TOTAL = "all items"


class Flow(NamedTuple):
    """The counted periods of a test, each ``(*B, T, n)`` in units.

    ``available`` can meet the demand of a period, ``level`` is what is left of it (below 0 is
    owed or lost), ``order`` is placed and ``arriving`` comes in; ``ordering``, ``(*B, T)``, says
    whether anything is ordered.
    """

    demand: Tensor
    available: Tensor
    level: Tensor
    order: Tensor
    arriving: Tensor
    ordering: Tensor


def flow_of(test: Any, policy: Any) -> Flow:
    """Simulate a policy in a test, with the most probable actions.

    Args:
        test: the test, an ``Evaluation`` of an :class:`~hpo_torchrl.problems.InventoryEnv`.
        policy: the policy or rule.
    """
    env, found = test.env, list[tuple[Tensor, ...]]()
    time = len(env.batch_size)
    for run, noise in test.rollouts(policy):
        stock = run["inventory"]
        order, ordering, _ = env.ordering.placed(run["action"], stock)
        available = stock[..., 0] + order * (env.lead_times == 0)
        arriving = order * (env.lead_times <= 1)
        if stock.shape[-1] > 1:
            arriving = arriving + stock[..., 1]
        demand = noise[..., : env.num_items]
        found.append((demand, available, available - demand, order, arriving, ordering))
    whole = (torch.cat(parts, time) for parts in zip(*found, strict=True))
    return Flow(*(part.narrow(time, test.skip, part.shape[time] - test.skip) for part in whole))


def item_details(test: Any, policy: Any) -> pd.DataFrame:
    """Return service, stock and costs of each item in a test, and of all together.

    Args:
        test: the test, an ``Evaluation`` of an :class:`~hpo_torchrl.problems.InventoryEnv` whose
            orders have fixed costs alone, of all items together and of each.
        policy: the policy or rule.

    Returns:
        A row for each item and one for all: ``demand`` per period; ``fill_rate``, the share of it
        that is met from stock; ``cycle_service``, the share of cycles from one arrival to the next
        in which nothing is short; ``stock``, the mean units on hand at the end of a period;
        ``orders`` per period; and costs per period: ``holding``, ``shortage``, ``purchase``,
        ``fixed`` (of an item its own, of all items the joint one too) and ``cost``, their sum.

    Raises:
        ValueError: orders have other costs than these.
    """
    return _details_of(test.env, flow_of(test, policy))


def _details_of(env: Any, flow: Flow) -> pd.DataFrame:
    if others := env.ordering.other_costs:
        raise ValueError(
            "details are of costs of holding, shortage and purchase, of fixed costs and of lead "
            f"times by item; these orders have others: {', '.join(others)}."
        )
    mean: dict[str, Tensor] = {
        "demand": flow.demand,
        "met": torch.minimum(flow.demand, flow.available.clamp_min(0.0)),
        "stock": flow.level.clamp_min(0.0),
        "orders": (flow.order > 0).to(flow.order.dtype),
        "holding": env.holding_cost * flow.level.clamp_min(0.0),
        "shortage": env.shortage_cost * (-flow.level).clamp_min(0.0),
        "purchase": env.procurement_cost * flow.order,
        "fixed": sum(
            (f.costs(flow.order) for f in env.features if isinstance(f, ItemFixedCost)),
            start=torch.zeros_like(flow.order),
        ),
    }
    rows = pd.DataFrame(
        {name: part.double().flatten(0, -2).mean(0).tolist() for name, part in mean.items()}
    )
    rows.insert(0, "item", env.item_names)
    rows["cycle_service"] = _cycle_service(flow, env.lead_times == 0).tolist()
    total = rows.drop(columns=["item", "cycle_service"]).sum()
    total["orders"] = float(flow.ordering.double().mean())
    total["cycle_service"] = rows["cycle_service"].mean()
    total["fixed"] += env.ordering.joint_cost * total["orders"]
    rows = pd.concat([rows, pd.DataFrame([{"item": TOTAL, **total}])], ignore_index=True)
    rows["fill_rate"] = rows["met"] / rows["demand"].where(rows["demand"] > 0)
    rows["cost"] = rows[["holding", "shortage", "purchase", "fixed"]].sum(axis=1)
    shares, costs = ["fill_rate", "cycle_service"], ["holding", "shortage", "purchase", "fixed"]
    return rows[["item", "demand", *shares, "stock", "orders", *costs, "cost"]]


def compare_details(
    test: Any, policies: Mapping[str, Any], folder: str | Path | None = None
) -> pd.DataFrame:
    """Return the details of several policies in one table, with a first column ``policy``.

    Args:
        test: as for :func:`item_details`.
        policies: policies and rules by name; all meet the same demand.
        folder: where the table, ``items.csv``, and the picture of :func:`plot_stock`,
            ``stock.png``, go.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy
        >>> from hpo_torchrl.training import Evaluation
        >>> test = Evaluation(InventoryEnv(batch_size=64), num_steps=400, skip=100, seed=0)
        >>> rules = {"(26, 62)": TotalDemandPolicy(36, 62), "(10, 62)": TotalDemandPolicy(52, 62)}
        >>> found = compare_details(test, rules).set_index("policy")
        >>> found.loc[found["item"] == "1", "fill_rate"].round(2).tolist()
        [0.95, 0.74]
    """
    flows = {name: flow_of(test, policy) for name, policy in policies.items()}
    tables = [_details_of(test.env, flow).assign(policy=name) for name, flow in flows.items()]
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "policy", table.pop("policy"))
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        table.to_csv(Path(folder) / "items.csv", index=False)
        plot_stock(Path(folder) / "stock.png", test, flows)
    return table


def _cycle_service(flow: Flow, at_once: Tensor) -> Tensor:
    """Return the share of whole cycles in which no demand of an item is short, ``(n,)``.

    A cycle begins with an arrival: in the same period for items whose orders arrive at once, bool
    ``(n,)``, else in the next one. NaN is no whole cycle.
    """
    short, arrives = (
        part.flatten(0, -3) if part.ndim > 2 else part.unsqueeze(0)
        for part in (flow.level < 0, flow.arriving > 0)
    )
    number = arrives.cumsum(1) - (arrives & ~at_once).long()
    all_of_them = arrives.sum(1, keepdim=True)
    size = (len(short), int(all_of_them.max()) + 1, short.shape[-1])
    spoilt = torch.zeros(size, dtype=torch.float64, device=short.device)
    spoilt.scatter_reduce_(1, number, short.double(), "amax")
    place = torch.arange(size[1], device=short.device).view(1, -1, 1)
    whole = (place > 0) & (place < all_of_them)
    return 1.0 - (spoilt * whole).sum((0, 1)) / whole.sum((0, 1))


def plot_stock(path: str | Path, test: Any, flows: Mapping[str, Flow]) -> Path:
    """Draw stock and orders of the first items over the last periods, in the first instance.

    Args:
        path: the PNG file to write.
        test: the test.
        flows: what policies and rules did in it, by name; the first two are drawn.

    Returns:
        The path.
    """
    names = test.env.item_names
    figure, axes = new_figure(min(_DRAWN, len(names)))
    for item, axis in enumerate(row[0] for row in axes):
        for (name, flow), color in zip(flows.items(), (BLUE, ORANGE), strict=False):
            parts = (flow.level, flow.order)
            one = [part.flatten(0, -3)[0][-_PERIODS:, item].cpu() for part in parts]
            times = range(test.num_steps - len(one[0]), test.num_steps)
            axis.plot(times, one[0], color=color, linewidth=1.3, label=f"stock, {name}")
            placed = one[1] > 0
            when = [time for time, there in zip(times, placed, strict=True) if there]
            axis.plot(when, one[1][placed], "o", color=color, markersize=3, label=f"order, {name}")
        axis.axhline(0.0, color=GREEN, linewidth=0.8)
        axis.set(ylabel=f"{names[item]}, units")
    axes[0][0].legend(frameon=False, fontsize="small", ncols=2)
    axes[-1][0].set(xlabel="period of the test")
    return save_figure(figure, path)
