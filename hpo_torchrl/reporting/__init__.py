"""Tables and figures, from plain numbers and from the folders of runs."""

from hpo_torchrl.core.figures import (
    plot_learning_curve,
)
from hpo_torchrl.reporting.comparison import (
    compare_algorithms,
    compare_overall,
    compare_pairs,
    compare_times,
)
from hpo_torchrl.reporting.comparison_figures import (
    plot_gap_against_size,
    plot_learning_curves,
    plot_updates_against_size,
)
from hpo_torchrl.reporting.comparison_tables import format_comparison
from hpo_torchrl.reporting.gradients import format_gradients, plot_gradients, write_rows
from hpo_torchrl.reporting.groups import Problem, find_families, group_runs
from hpo_torchrl.reporting.report import write_report
from hpo_torchrl.reporting.runs import Run, RunFolders, read_runs
from hpo_torchrl.reporting.statistics import (
    Estimate,
    estimate_improvement,
    estimate_iqm,
    estimate_median_ratio,
    interquartile_mean,
    iqm_band,
)
from hpo_torchrl.reporting.table import format_seeds, format_summary

__all__ = [
    "Estimate",
    "Problem",
    "Run",
    "RunFolders",
    "compare_algorithms",
    "compare_overall",
    "compare_pairs",
    "compare_times",
    "estimate_improvement",
    "estimate_iqm",
    "estimate_median_ratio",
    "find_families",
    "format_comparison",
    "format_gradients",
    "format_seeds",
    "format_summary",
    "group_runs",
    "interquartile_mean",
    "iqm_band",
    "plot_gap_against_size",
    "plot_gradients",
    "plot_learning_curve",
    "plot_learning_curves",
    "plot_updates_against_size",
    "read_runs",
    "write_report",
    "write_rows",
]
