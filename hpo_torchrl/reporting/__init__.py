"""Tables and figures, from plain numbers."""

from hpo_torchrl.reporting.figures import plot_inventory_policy, plot_learning_curve
from hpo_torchrl.reporting.table import format_summary

__all__ = ["format_summary", "plot_inventory_policy", "plot_learning_curve"]
