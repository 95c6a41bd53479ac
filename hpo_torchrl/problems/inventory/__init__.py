"""Inventory control: environments, exact optima and rules."""

from hpo_torchrl.problems.inventory.demand import Demand
from hpo_torchrl.problems.inventory.distributions import (
    Gamma,
    Intermittent,
    NegativeBinomial,
    Normal,
    Poisson,
)
from hpo_torchrl.problems.inventory.env import InventoryEnv
from hpo_torchrl.problems.inventory.family import InventoryFamily
from hpo_torchrl.problems.inventory.optima.joint_replenishment import joint_replenishment_optimum
from hpo_torchrl.problems.inventory.optima.lost_sales import lost_sales_optimum
from hpo_torchrl.problems.inventory.optima.order_cost import order_cost_optimum
from hpo_torchrl.problems.inventory.optima.s_S import optimal_s_S
from hpo_torchrl.problems.inventory.record import Record, Traces

__all__ = [
    "Demand",
    "Gamma",
    "Intermittent",
    "InventoryEnv",
    "InventoryFamily",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "Record",
    "Traces",
    "joint_replenishment_optimum",
    "lost_sales_optimum",
    "optimal_s_S",
    "order_cost_optimum",
]
