"""Exact optima that a learned policy can be measured against."""

from hpo_torchrl.oracles.joint_replenishment import (
    CostAllocation,
    JointReplenishmentOptimum,
    joint_replenishment_lower_bound,
    joint_replenishment_optimum,
)
from hpo_torchrl.oracles.lost_sales import LostSalesOptimum, lost_sales_optimum
from hpo_torchrl.oracles.order_cost import OrderCost, OrderCostOptimum, order_cost_optimum
from hpo_torchrl.oracles.periodic_rule import (
    PeriodicRule,
    best_periodic_rule,
    periodic_rule_cost,
)
from hpo_torchrl.oracles.recorded_demand import (
    RecordedRule,
    best_recorded_rule,
    recorded_rule_cost,
)
from hpo_torchrl.oracles.s_S import optimal_s_S, s_S_cost
from hpo_torchrl.oracles.switched_lqr import (
    SwitchedLQROptimum,
    fixed_mode_cost,
    fixed_mode_gains,
    switched_lqr_optimum,
)
from hpo_torchrl.oracles.total_demand_rule import (
    TotalDemandRule,
    best_total_demand_rule,
    total_demand_rule_cost,
)

__all__ = [
    "CostAllocation",
    "JointReplenishmentOptimum",
    "LostSalesOptimum",
    "OrderCost",
    "OrderCostOptimum",
    "PeriodicRule",
    "RecordedRule",
    "SwitchedLQROptimum",
    "TotalDemandRule",
    "best_periodic_rule",
    "best_recorded_rule",
    "best_total_demand_rule",
    "fixed_mode_cost",
    "fixed_mode_gains",
    "joint_replenishment_lower_bound",
    "joint_replenishment_optimum",
    "lost_sales_optimum",
    "optimal_s_S",
    "order_cost_optimum",
    "periodic_rule_cost",
    "recorded_rule_cost",
    "s_S_cost",
    "switched_lqr_optimum",
    "total_demand_rule_cost",
]
