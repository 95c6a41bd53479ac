"""Figures that others published for the presets, to stand beside the runs of these."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

PUBLISHED = "published "  # begins the name of an algorithm that was not run here
_FILE = Path(__file__).with_name("published.csv")


def published_costs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what others report for the problems of some runs.

    ``published.csv`` has a line per figure: the preset and its settings, whose algorithm, which of
    the preset's tests measures the same, the figure, and over how many units and periods it sums.
    The figures are those of the tables of Alvo, Russo & Kanoria (2026, arXiv 2605.14297) and of
    Ata, van Eekelen & Zhong (2025, arXiv 2511.11830).

    Args:
        runs: the columns ``problem``, ``env`` and ``settings``, as :class:`Groups` holds them.

    Returns:
        The columns ``problem``, ``test``, ``algorithm`` and ``cost_iqm``, per unit and period.

    Examples:
        >>> import pandas as pd
        >>> from hpo_torchrl.reporting.published import published_costs
        >>> runs = pd.DataFrame({"problem": ["ours"], "env": ["paper/joint"],
        ...     "settings": [{"env.num_items": 50}]})
        >>> print(published_costs(runs).head(1).to_string(index=False))
        problem     test     algorithm cost_iqm
           ours protocol published HPO    43.47
    """
    known = pd.read_csv(_FILE, keep_default_na=False)
    known["algorithm"] = PUBLISHED + known["algorithm"]
    known["cost_iqm"] = known["cost"] / known["periods"]
    found = [known.assign(problem="").head(0)]
    for run in runs.drop_duplicates("problem").itertuples():
        same = known["env"] == run.env
        for text in known["settings"][same].unique():
            pairs = (setting.split("=") for setting in text.split())
            if all(str(run.settings.get(f"env.{key}")) == value for key, value in pairs):
                found.append(known[same & (known["settings"] == text)].assign(problem=run.problem))
    return pd.concat(found)[["problem", "test", "algorithm", "cost_iqm"]]
