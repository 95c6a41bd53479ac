"""A file of weekly demand with a year's season, as an analyst of operations would have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


def weekly_demand(seed: int, items: int = 12, weeks: int = 156) -> np.ndarray:
    """Return demand ``(weeks, items)``: negative binomial, with a year's season of +-40 %.

    Every fourth item is intermittent: asked for in three weeks of ten, in the same season.
    """
    rng = np.random.default_rng(seed)
    level = 1 + 0.4 * np.cos(2 * np.pi / 52 * (np.arange(weeks) - 26))
    columns = []
    for item, mean in enumerate(rng.uniform(5, 40, items)):
        if item % 4 == 3:
            sizes = 1 + rng.negative_binomial(2, 2 / (2 + mean - 1), weeks)
            columns.append(sizes * (rng.random(weeks) < 0.3 * level))
        else:
            columns.append(rng.negative_binomial(4, 4 / (4 + mean * level)))
    return np.stack(columns, axis=1)


def write_weekly_file(path: str | Path, seed: int, items: int = 12, weeks: int = 156) -> Path:
    """Write such a file, with costs by item, and return its path."""
    demand = weekly_demand(seed, items, weeks)
    costs = np.random.default_rng([seed, 1])
    table = pd.DataFrame(
        {
            "period": np.repeat(pd.date_range("2021-01-04", periods=weeks, freq="7D"), items),
            "item": [f"I{item:02}" for item in range(items)] * weeks,
            "demand": demand.flatten(),
            "holding_cost": np.tile(costs.uniform(0.7, 1.3, items).round(2), weeks),
            "shortage_cost": np.tile(costs.uniform(6.0, 12.0, items).round(2), weeks),
        }
    )
    table.to_csv(path, index=False, date_format="%Y-%m-%d")
    return Path(path)
