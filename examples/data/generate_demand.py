"""Generate the sample of a demand file: nobody's sales, drawn from a formula and a seed.

python examples/data/generate_demand.py [FILE]

Three items over 730 days. Demand is negative binomial with the mean

    level * weekday factor * (1 + 0.12 * days / 365)

and the variance mean + mean^2 / 8, independent between days and items: a week's season, a slow
trend and more spread than Poisson demand has. The file is the same to the byte on every machine.
"""

from __future__ import annotations

import random
import sys
from datetime import date, timedelta
from pathlib import Path

FILE = Path(__file__).with_name("generated_demand.csv")
SEED, FIRST_DAY, NUM_DAYS = 20260101, date(2023, 1, 1), 730
# Mean demand on the first day, holding and shortage cost per unit and day.
ITEMS = {"A": (20.0, 1.0, 9.0), "B": (10.0, 0.8, 7.2), "C": (6.0, 1.5, 13.5)}
WEEKDAYS = (0.9, 0.85, 0.9, 1.0, 1.3, 1.5, 0.55)  # Monday to Sunday; their mean is 1
GROWTH_PER_YEAR, DISPERSION = 0.12, 8.0


def mean_demand(level: float, day: int) -> float:
    """Return the mean demand of an item on a day, counted from 0."""
    weekday = (FIRST_DAY + timedelta(days=day)).weekday()
    return level * WEEKDAYS[weekday] * (1 + GROWTH_PER_YEAR * day / 365)


def draw(rng: random.Random, mean: float) -> int:
    """Draw from the negative binomial distribution by inverting it.

    Python promises ``random()`` alone to be the same in every version.
    """
    left, count = rng.random(), 0
    probability = (DISPERSION / (DISPERSION + mean)) ** DISPERSION
    while left > probability and count < 1000:
        left -= probability
        probability *= (DISPERSION + count) / (count + 1) * mean / (DISPERSION + mean)
        count += 1
    return count


def generate() -> str:
    """Return the content of the file."""
    rng = random.Random(SEED)
    lines = ["period,item,demand,holding_cost,shortage_cost"]
    for day in range(NUM_DAYS):
        for item, (level, holding, shortage) in ITEMS.items():
            demand = draw(rng, mean_demand(level, day))
            lines.append(f"{FIRST_DAY + timedelta(days=day)},{item},{demand},{holding},{shortage}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    path.write_text(generate(), encoding="utf-8", newline="\n")
    print(f"written: {path}")
