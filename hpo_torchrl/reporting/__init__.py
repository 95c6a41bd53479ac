"""Tables and figures, from plain numbers."""

from hpo_torchrl.reporting.figures import (
    plot_inventory_policy,
    plot_learning_curve,
    plot_mode_plane,
)
from hpo_torchrl.reporting.gradients import format_gradients, plot_gradients, write_rows
from hpo_torchrl.reporting.table import format_summary

__all__ = [
    "format_gradients",
    "format_summary",
    "plot_gradients",
    "plot_inventory_policy",
    "plot_learning_curve",
    "plot_mode_plane",
    "write_rows",
]
