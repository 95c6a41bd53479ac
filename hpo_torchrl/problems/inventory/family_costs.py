"""What a policy for a family of items orders and costs, item by item, beside the optimum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hpo_torchrl.core.figures import BLUE, GREEN, ORANGE, new_figure, save_figure
from hpo_torchrl.envs.differentiable import State
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.inventory.family import NUMBERS, Rough
from hpo_torchrl.problems.inventory.optima.items import Levels
from hpo_torchrl.problems.inventory.optima.position_policy import position_policy_cost
from hpo_torchrl.problems.inventory.optima.s_S import optimal_s_S

if TYPE_CHECKING:
    from hpo_torchrl.problems.inventory.family import InventoryFamily


class ItemPolicy(RulePolicy):
    """The optimal (s, S) of each item that it meets, solved once for each."""

    in_keys = ["inventory", *NUMBERS]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[float, ...], tuple[float, float]] = {}

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Order up to S at s and below."""
        given = dict(zip(self.in_keys, state, strict=True))
        position = given["inventory"].sum(-1)
        rows = torch.cat([given[name] for name in NUMBERS], -1)
        found = [self._solved(tuple(row)) for row in rows.flatten(0, -2).double().tolist()]
        s, S = torch.tensor(found).to(position).reshape(*position.shape[:-1], 2).unbind(-1)
        # Positions are whole, up to rounding, once there has been an order.
        size, chosen = Rough.of(given).action_up_to(S.unsqueeze(-1))
        return size.squeeze(-1) * (position.squeeze(-1).round() <= s), chosen

    def _solved(self, item: tuple[float, ...]) -> tuple[float, float]:
        if item not in self._known:
            mean, h, p, K, lead_time = item
            rule = optimal_s_S(mean, h, p, K, round(lead_time)).policy
            self._known[item] = float(rule.S) - rule.Q, float(rule.S)
        return self._known[item]


@torch.no_grad()
def item_costs(env: InventoryFamily, policy: Any, start: State) -> pd.DataFrame:
    """Compute what a policy costs and what the optimum does, exactly, for each item.

    The most probable action is taken at every whole position with nothing on order, and the order
    is rounded to whole units: what a policy does that looks at the position alone.

    Args:
        env: the environment.
        policy: the policy.
        start: a state ``(B,)``, of which the items count.

    Returns:
        A table with a row for each item: its numbers, ``cost``, infinite where the policy does not
        order however much is owed, ``optimum`` and ``gap``.
    """
    table = pd.DataFrame({name: start[name].flatten().double().tolist() for name in NUMBERS})
    table["lead_time"] = table["lead_time"].round().astype(int)
    numbers = [(*row[:-1], int(row[-1])) for row in table.itertuples(index=False)]
    orders = zip(numbers, _orders_by_position(env, policy, start), strict=True)
    table["cost"] = [
        position_policy_cost(lowest, row, *item) if row[0] > 0 else math.inf
        for item, (lowest, row) in orders
    ]
    table["optimum"] = [optimal_s_S(*item).cost for item in numbers]
    return table.assign(gap=table["cost"] / table["optimum"] - 1)


def _orders_by_position(
    env: InventoryFamily, policy: Any, start: State
) -> Iterator[tuple[int, Levels]]:
    """Yield the lowest position that is looked at, and the orders from there on, of each item."""
    rough = Rough.of(start)
    low = (rough.level - 2 * rough.lot - 6 * rough.deviation).floor().long().flatten()
    high = (rough.level + 4 * rough.lot + 6 * rough.deviation).ceil().long().flatten()
    positions = [torch.arange(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    sizes = (high - low + 1).tolist()
    state = {name: start[name].repeat_interleave(high - low + 1, 0) for name in NUMBERS}
    on_hand = torch.cat(positions).to(start["inventory"]).view(-1, 1, 1)
    state["inventory"] = F.pad(on_hand, (0, start["inventory"].shape[-1] - 1))
    seen = TensorDict({**state, **env.show(state)}, batch_size=[len(on_hand)])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        units = env.orders(state, policy(seen)["action"]).flatten()
    rows = units.double().round().long().cpu().split(sizes)
    yield from zip(low.tolist(), (row.numpy() for row in rows), strict=True)


def gap_summary(table: pd.DataFrame) -> dict[str, Any]:
    """Return mean, quantiles and the largest of the gaps of :func:`item_costs`, with its item."""
    gap = table["gap"]
    quantiles = {"median": 0.5, "quantile_95": 0.95, "quantile_99": 0.99, "worst": 1.0}
    found = {"mean": float(gap.mean())}
    found |= {name: float(gap.quantile(at)) for name, at in quantiles.items()}
    worst = table.loc[gap.idxmax(), [*NUMBERS]].to_dict()
    rounded = {name: value if math.isfinite(value) else None for name, value in found.items()}
    return {"number": len(table), **rounded, "worst_item": worst}


def compare_items(
    test: Any, policies: Mapping[str, Any], folder: str | Path | None = None
) -> pd.DataFrame:
    """Return the exact costs of the items of a test in one table, with a first column ``policy``.

    Args:
        test: the test.
        policies: policies and rules by name.
        folder: where the table, ``items.csv``, and the picture of the gaps, ``gaps.png``, go.

    Returns:
        The tables of :func:`item_costs`, one below the other.
    """
    test.env.set_seed(test.seed)
    start = test.env.reset()
    tables = {name: item_costs(test.env, policy, start) for name, policy in policies.items()}
    whole = pd.concat(tables, names=["policy"]).reset_index(level=0).reset_index(drop=True)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        whole.to_csv(Path(folder) / "items.csv", index=False)
        _plot_gaps(Path(folder) / "gaps.png", tables)
    return whole


def _plot_gaps(path: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Draw the gaps of all items over their fixed costs."""
    figure, [[axis]] = new_figure(1)
    for (name, table), color in zip(tables.items(), (BLUE, ORANGE, GREEN), strict=False):
        gaps = 100 * table["gap"]
        axis.plot(table["fixed_cost"], gaps, ".", color=color, markersize=4, label=name)
    axis.set(xlabel="fixed cost", ylabel="gap to the optimum, %")
    axis.legend(frameon=False, fontsize="small")
    save_figure(figure, path)
