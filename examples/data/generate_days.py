"""Generate a sample of days: nobody's demand and wind, drawn from a formula and a seed.

python examples/data/generate_days.py [FOLDER]

Fourteen days by the hour, Monday first, in demand.csv, and the day after in tomorrow.csv. Demand
has a peak at noon and a higher one in the evening, is 12 % lower at weekends, and differs by up to
6 % from day to day. Wind, of a park of 180 MW, moves slowly about 60 MW. The files are the same to
the byte on every machine.
"""

from __future__ import annotations

import math
import random
import sys
from datetime import datetime, timedelta
from pathlib import Path

FOLDER = Path(__file__).parent
SEED, FIRST_HOUR, NUM_DAYS = 20260105, datetime(2026, 1, 5), 14
NIGHT, NOON, EVENING = 430.0, 300.0, 430.0  # MW: the base, and what the peaks add
PARK, USUAL, KEPT = 180.0, 60.0, 0.93  # MW of wind, and its share that is left after an hour


def peak(hour: int, at: float, width: float) -> float:
    """Return 1 at an hour, and less before and after it."""
    return math.exp(-(((hour - at) / width) ** 2))


def generate() -> dict[str, str]:
    """Return the contents of the files by their names."""
    rng = random.Random(SEED)
    lines, wind = [], USUAL
    for day in range(NUM_DAYS + 1):
        level = (0.88 if day % 7 > 4 else 1.0) * (1 + 0.06 * (2 * rng.random() - 1))
        for hour in range(24):
            demand = NIGHT + NOON * peak(hour, 11.5, 3.5) + EVENING * peak(hour, 18.5, 2.5)
            wind = USUAL + KEPT * (wind - USUAL) + 35.0 * (2 * rng.random() - 1)
            time = FIRST_HOUR + timedelta(days=day, hours=hour)
            wind = min(max(wind, 0.0), PARK)
            lines.append(f"{time:%Y-%m-%d %H:00},{level * demand:.0f},{wind:.0f}")
    parts = {"demand.csv": lines[:-24], "tomorrow.csv": lines[-24:]}
    return {name: "\n".join(["time,demand,wind", *part, ""]) for name, part in parts.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name, text in generate().items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"written: {folder / name}")
