"""Compare the library's speed with hand-written PyTorch: rollouts, their gradients, HPO's updates.

    make bench                                     a few sizes, three minutes
    make bench ARGS="--items 5 --batch 128 1024"   a grid of these sizes
    make bench ARGS="--full --out speed.json"      all sizes, hours
    make bench-jax                                 beside JAX, four problems
    python -m benchmarks.speed --help

All variants take turns in rounds, so that a noisy machine disturbs them alike; what counts is the
ratio within a round to the hand-written loop, or beside JAX to the functional route: its median and
quartiles. "of the limit" is the time of the matrix products of the hand-written loop (where there
is none, of the functional route), measured alone on the spot, over the time taken. Memory is what
one call adds to the peak.

Beside JAX everything runs on one core and processor time counts. That JAX computes the same numbers
is checked first, in single and in double precision; where it does not, nothing is timed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
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

from benchmarks.speed.cases import (
    COMPILED,
    FUNCTIONAL,
    HAND,
    JAX,
    MATMUL,
    PROBLEMS,
    VARIANTS,
    Case,
    Workbench,
)
from benchmarks.speed.measure import (
    Clock,
    first_calls,
    interleaved,
    keep_to_one_core,
    peak_memory,
    ratios,
    spread,
)
from hpo_torchrl.core.memory import keep_freed_memory

FULL = {"items": (1, 5, 50), "batch": (128, 1024, 8192), "width": (64, 512), "horizon": (100,)}
DEFAULT = [
    Case(1, 128, 64, 100),
    Case(50, 128, 64, 100),
    Case(5, 1024, 64, 100),
    Case(1, 128, 512, 100),
]
DEFAULT_BESIDE_JAX = [
    *(Case(items, batch, 64, 100) for items in (1, 50) for batch in (128, 1024)),
    Case(16, 128, 64, 20, "switched_lqr"),
    Case(1, 128, 64, 100, "battery"),
    Case(1, 128, 64, 100, "car"),
]
BESIDE_JAX = (HAND, FUNCTIONAL, COMPILED, JAX, MATMUL)
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
    parser.add_argument("--problem", choices=PROBLEMS, help="of these sizes, not the inventory")
    parser.add_argument("--jax", action="store_true", help="beside JAX, compiled rollouts too")
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
    if given.jax:
        if given.device != "cpu" or given.threads != 1:
            parser.error("--jax compares on one core: leave --device and --threads out")
        if importlib.util.find_spec("jax") is None:
            parser.error("--jax needs JAX: pip install 'hpo-torchrl[jax]', or make bench-jax")
        given.clock = "cpu"
    if given.clock == "cpu" and (given.device != "cpu" or given.threads != 1):
        parser.error("--clock cpu needs --device cpu and --threads 1")
    return given


def cases(given: argparse.Namespace) -> list[Case]:
    """Return the sizes asked for; what is not given is as in the grid or the first default."""
    sizes = {name: getattr(given, name) for name in FULL}
    if not given.full and not any(sizes.values()) and given.problem is None:
        return DEFAULT_BESIDE_JAX if given.jax else DEFAULT
    others = FULL if given.full else {name: (getattr(DEFAULT[0], name),) for name in FULL}
    grid = itertools.product(*(sizes[key] or others[key] for key in FULL))
    return [Case(*case, given.problem or PROBLEMS[0]) for case in grid]


def variants_of(case: Case, given: argparse.Namespace) -> tuple[str, ...]:
    """Return what is measured of a case, the first one being what ratios are to."""
    if given.jax:
        found = (FUNCTIONAL, *(variant for variant in BESIDE_JAX if variant != FUNCTIONAL))
    else:
        found = (*VARIANTS, *([COMPILED] if given.compile else []))
    return tuple(v for v in found if v != HAND or case.problem == PROBLEMS[0])


def memory_of(
    case: Case, device: torch.device, given: argparse.Namespace
) -> dict[tuple[str, str], int | None]:
    """Return the peak memory of every measure and variant, ``None`` where it is too much.

    What is not in it is not measured: whatever compiles, and everything beside JAX, which no fork
    of a process gets on with.
    """

    def maker(measure: str, variant: str):
        def make():
            warm_up = WARM_UP._replace(items=case.items, problem=case.problem)
            Workbench(warm_up, device).call(measure, variant)()
            return Workbench(case, device).call(measure, variant)

        return make

    limit = int(given.memory * 1e9)
    return {
        (measure, variant): peak_memory(maker(measure, variant), device, limit)
        for measure in case.measures
        for variant in variants_of(case, given)
        if variant not in (MATMUL, COMPILED) and not given.jax
    }


def rows_of(
    case: Case,
    peaks: dict[tuple[str, str], int | None],
    given: argparse.Namespace,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Time a case; one row for each measure and variant."""
    bench, variants = Workbench(case, device), variants_of(case, given)
    base = variants[0]
    # Without what is compared with there are no ratios, and no matmuls are known.
    measures = [measure for measure in case.measures if peaks.get((measure, base), 0) is not None]
    calls = {
        (measure, variant): bench.call(measure, variant)
        for measure in measures
        for variant in variants
        if peaks.get((measure, variant), 0) is not None
    }
    first = first_calls(calls)
    clock = Clock(device, cpu=given.clock == "cpu")
    seconds = interleaved(calls, clock, rounds=given.rounds, limit=given.seconds)
    rows = []
    for measure, variant in itertools.product(case.measures, variants):
        row: dict[str, Any] = {**case._asdict(), "measure": measure, "variant": variant}
        row["base"], row["peak_bytes"] = base, peaks.get((measure, variant))
        if (measure, variant) in seconds:
            mine = seconds[measure, variant]
            row["first_call_seconds"] = first[measure, variant]
            row["seconds"] = spread(mine)
            row["rounds"] = len(mine)
            row["steps_per_second"] = case.frames / row["seconds"]["median"]
            row["over_base"] = spread(ratios(mine, seconds[measure, base]))
            row["of_limit"] = spread(ratios(seconds[measure, MATMUL], mine))
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows of a case out."""
    lines = []
    for measure in dict.fromkeys(row["measure"] for row in rows):
        base = f"time / {rows[0]['base']}"
        head = f"{'ms':>10}{'steps/s':>13}   {base:<24}{'of the limit':>12}"
        lines.append(f"{measure:<28}{head}{'first call':>12}{'memory':>12}")
        for row in (row for row in rows if row["measure"] == measure):
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB"
            if "seconds" not in row:
                lines.append(f"  {row['variant']:<26}{'needs more than --memory':>48}")
                continue
            ratio = row["over_base"]
            span = f"{ratio['median']:.2f}  ({ratio['lower']:.2f} - {ratio['upper']:.2f})"
            lines.append(
                f"  {row['variant']:<26}{1e3 * row['seconds']['median']:>10,.1f}"
                f"{row['steps_per_second']:>13,.0f}   {span:<24}"
                f"{row['of_limit']['median']:>12.0%}{row['first_call_seconds']:>10.1f} s{peak:>12}"
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
        **({"jax": importlib.metadata.version("jax")} if given.jax else {}),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def check_jax(chosen: Sequence[Case]) -> None:
    """Check that JAX computes what PyTorch does; see :func:`benchmarks.speed.bridge.check`."""
    from benchmarks.speed.bridge import check

    for case in dict.fromkeys(case._replace(batch=1, horizon=1) for case in chosen):
        for dtype in (torch.float64, torch.float32):
            found = check(case, dtype)
            parts = ", ".join(f"{measure} {gap:.0e}" for measure, gap in found.items())
            print(
                f"{case.problem}, {case.items}: JAX and PyTorch differ by {parts} ({dtype})",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device, chosen = torch.device(given.device), cases(given)
    about = machine(given, device)
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    # Memory first: the fork of a process that has used much does not show what it needs.
    peaks = [memory_of(case, device, given) for case in chosen]
    keep_freed_memory()  # as trainings do, before other threads have memory of their own
    if given.jax:
        keep_to_one_core()
        check_jax(chosen)
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
