"""Inventory control: environments, exact optima and rules."""

from hpo_torchrl.problems.inventory.demand import Demand, Normal, Poisson
from hpo_torchrl.problems.inventory.env import InventoryEnv
from hpo_torchrl.problems.inventory.optima.joint_replenishment import (
    CostAllocation,
    JointReplenishmentOptimum,
    joint_replenishment_lower_bound,
    joint_replenishment_optimum,
)
from hpo_torchrl.problems.inventory.optima.lost_sales import LostSalesOptimum, lost_sales_optimum
from hpo_torchrl.problems.inventory.optima.order_cost import (
    OrderCost,
    OrderCostOptimum,
    order_cost_optimum,
)
from hpo_torchrl.problems.inventory.optima.periodic_rule import (
    PeriodicRule,
    best_periodic_rule,
    periodic_rule_cost,
)
from hpo_torchrl.problems.inventory.optima.recorded_demand import (
    RecordedRule,
    best_recorded_rule,
    recorded_rule_cost,
)
from hpo_torchrl.problems.inventory.optima.s_S import optimal_s_S, s_S_cost
from hpo_torchrl.problems.inventory.optima.total_demand_rule import (
    TotalDemandRule,
    best_total_demand_rule,
    total_demand_rule_cost,
)
from hpo_torchrl.problems.inventory.record import Record, Traces

__all__ = [
    "CostAllocation",
    "Demand",
    "InventoryEnv",
    "JointReplenishmentOptimum",
    "LostSalesOptimum",
    "Normal",
    "OrderCost",
    "OrderCostOptimum",
    "PeriodicRule",
    "Poisson",
    "Record",
    "RecordedRule",
    "TotalDemandRule",
    "Traces",
    "best_periodic_rule",
    "best_recorded_rule",
    "best_total_demand_rule",
    "joint_replenishment_lower_bound",
    "joint_replenishment_optimum",
    "lost_sales_optimum",
    "optimal_s_S",
    "order_cost_optimum",
    "periodic_rule_cost",
    "recorded_rule_cost",
    "s_S_cost",
    "total_demand_rule_cost",
]
