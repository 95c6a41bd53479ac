"""Inventory control: environments, exact optima and rules."""

from hpo_torchrl.problems.inventory.demand import Demand, Normal, Poisson
from hpo_torchrl.problems.inventory.env import InventoryEnv
from hpo_torchrl.problems.inventory.optima.items import Items
from hpo_torchrl.problems.inventory.optima.joint_replenishment import (
    joint_replenishment_lower_bound,
    joint_replenishment_optimum,
)
from hpo_torchrl.problems.inventory.optima.lost_sales import lost_sales_optimum
from hpo_torchrl.problems.inventory.optima.order_cost import OrderCost, order_cost_optimum
from hpo_torchrl.problems.inventory.optima.recorded_demand import RecordedItems
from hpo_torchrl.problems.inventory.optima.s_S import optimal_s_S, s_S_cost
from hpo_torchrl.problems.inventory.record import Record, Traces
from hpo_torchrl.problems.inventory.rules import (
    OrderUpToPolicy,
    PeriodicPolicy,
    TablePolicy,
    TotalDemandPolicy,
)

__all__ = [
    "Demand",
    "InventoryEnv",
    "Items",
    "Normal",
    "OrderCost",
    "OrderUpToPolicy",
    "PeriodicPolicy",
    "Poisson",
    "Record",
    "RecordedItems",
    "TablePolicy",
    "TotalDemandPolicy",
    "Traces",
    "joint_replenishment_lower_bound",
    "joint_replenishment_optimum",
    "lost_sales_optimum",
    "optimal_s_S",
    "order_cost_optimum",
    "s_S_cost",
]
