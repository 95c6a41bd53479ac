"""Tables and figures, from plain numbers and from the folders of runs."""

from hpo_torchrl.reporting.figures import plot_learning_curve
from hpo_torchrl.reporting.gradients import format_gradients, plot_gradients
from hpo_torchrl.reporting.report import write_report
from hpo_torchrl.reporting.tables import format_seeds, format_summary, write_rows

__all__ = [
    "format_gradients",
    "format_seeds",
    "format_summary",
    "plot_gradients",
    "plot_learning_curve",
    "write_report",
    "write_rows",
]
