"""Tables and figures, from plain numbers and from the folders of runs."""

from hpo_torchrl.reporting.figures import plot_gradients, plot_learning_curve
from hpo_torchrl.reporting.report import write_report
from hpo_torchrl.reporting.tables import format_gradients, format_seeds, format_summary, write_rows

__all__ = [
    "format_gradients",
    "format_seeds",
    "format_summary",
    "plot_gradients",
    "plot_learning_curve",
    "write_report",
    "write_rows",
]
