"""Compare the library's speed with hand-written PyTorch: rollouts, their gradients, HPO's updates.

    make bench                                     a few sizes, three minutes
    make bench ARGS="--items 5 --batch 128 1024"   a grid of these sizes
    make bench ARGS="--full --out speed.json"      all sizes, hours
    python -m benchmarks.speed --help

All variants take turns in rounds, so that a noisy machine disturbs them alike; what counts is the
ratio to the hand-written loop within a round, its median and quartiles. "of the limit" is the time
of the matrix products of the hand-written loop, measured alone on the spot, over the time taken.
Memory is what one call adds to the peak.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensordict
import torch
import torchrl

from benchmarks.speed.cases import COMPILED, HAND, MATMUL, MEASURES, VARIANTS, Case, Workbench
from benchmarks.speed.measure import Clock, interleaved, peak_memory, ratios, spread

FULL = {"items": (1, 5, 50), "batch": (128, 1024, 8192), "width": (64, 512), "horizon": (100,)}
DEFAULT = [
    Case(1, 128, 64, 100),
    Case(50, 128, 64, 100),
    Case(5, 1024, 64, 100),
    Case(1, 128, 512, 100),
]
# Its only use is to load and allocate once what is not part of a measurement.
WARM_UP = Case(1, 2, 8, 2)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="the grid of all sizes")
    for name, sizes in FULL.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", help=f"for example {sizes[0]}")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of a case, at most")
    parser.add_argument("--seconds", type=float, default=25, help="no new round of a case after")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu leaves out what other processes take, on one thread",
    )
    half = round(0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    parser.add_argument(
        "--memory", type=float, default=half, help="GB a call may take on a CPU; more is left out"
    )
    parser.add_argument("--compile", action="store_true", help="measure compiled rollouts too")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args(arguments)
    if given.clock == "cpu" and (given.device != "cpu" or given.threads != 1):
        parser.error("--clock cpu needs --device cpu and --threads 1")
    return given


def cases(given: argparse.Namespace) -> list[Case]:
    """Return the sizes asked for; what is not given is as in the grid or the first default."""
    sizes = {name: getattr(given, name) for name in FULL}
    if not given.full and not any(sizes.values()):
        return DEFAULT
    others = FULL if given.full else {name: (getattr(DEFAULT[0], name),) for name in FULL}
    return [Case(*case) for case in itertools.product(*(sizes[key] or others[key] for key in FULL))]


def memory_of(case: Case, device: torch.device, limit: float) -> dict[tuple[str, str], int | None]:
    """Return the peak memory of every measure and variant, ``None`` where it is too much."""

    def maker(measure: str, variant: str):
        def make():
            Workbench(WARM_UP, device).call(measure, variant)()
            return Workbench(case, device).call(measure, variant)

        return make

    return {
        (measure, variant): peak_memory(maker(measure, variant), device, int(limit * 1e9))
        for measure in MEASURES
        for variant in VARIANTS
        if variant != MATMUL
    }


def rows_of(
    case: Case,
    peaks: dict[tuple[str, str], int | None],
    given: argparse.Namespace,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Time a case; one row for each measure and variant."""
    bench = Workbench(case, device)
    # Without a yardstick there is nothing to compare with, and no matmuls are known.
    measures = [measure for measure in MEASURES if peaks[measure, HAND] is not None]
    variants = [*VARIANTS, COMPILED] if given.compile else list(VARIANTS)
    calls = {
        (measure, variant): bench.call(measure, variant)
        for measure in measures
        for variant in variants
        if variant in (MATMUL, COMPILED) or peaks[measure, variant] is not None
    }
    clock = Clock(device, cpu=given.clock == "cpu")
    seconds = interleaved(calls, clock, rounds=given.rounds, limit=given.seconds)
    rows = []
    for measure, variant in itertools.product(MEASURES, variants):
        row: dict[str, Any] = {**case._asdict(), "measure": measure, "variant": variant}
        row["peak_bytes"] = peaks.get((measure, variant))
        if (measure, variant) in seconds:
            mine = seconds[measure, variant]
            row["seconds"] = spread(mine)
            row["rounds"] = len(mine)
            row["steps_per_second"] = case.frames / row["seconds"]["median"]
            row["over_hand"] = spread(ratios(mine, seconds[measure, HAND]))
            row["of_limit"] = spread(ratios(seconds[measure, MATMUL], mine))
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows of a case out."""
    lines = []
    for measure in MEASURES:
        head = f"{'ms':>10}{'steps/s':>13}   {'time / hand-written':<22}{'of the limit':>12}"
        lines.append(f"{measure:<28}{head}{'memory':>12}")
        for row in (row for row in rows if row["measure"] == measure):
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB"
            if "seconds" not in row:
                lines.append(f"  {row['variant']:<26}{'needs more than --memory':>48}")
                continue
            ratio = row["over_hand"]
            span = f"{ratio['median']:.2f}  ({ratio['lower']:.2f} - {ratio['upper']:.2f})"
            lines.append(
                f"  {row['variant']:<26}{1e3 * row['seconds']['median']:>10,.1f}"
                f"{row['steps_per_second']:>13,.0f}   {span:<22}"
                f"{row['of_limit']['median']:>12.0%}{peak:>12}"
            )
    return "\n".join(lines)


def machine(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Say what was measured on, with which versions, and when."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "clock": given.clock,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchrl": torchrl.__version__,
        "tensordict": tensordict.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device, chosen = torch.device(given.device), cases(given)
    about = machine(given, device)
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    # Memory first: the fork of a process that has used much does not show what it needs.
    peaks = [memory_of(case, device, given.memory) for case in chosen]
    rows: list[dict[str, Any]] = []
    for case, peak in zip(chosen, peaks, strict=True):
        found = rows_of(case, peak, given, device)
        rows += found
        count = max(row.get("rounds", 0) for row in found)
        print(f"\n{case}, {count} rounds\n{table(found)}", flush=True)
        if given.out is not None:  # after each case: a long run that is ended leaves what it has
            given.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
