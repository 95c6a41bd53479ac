"""Small hybrid problems of different fields, each beside its optimum: what do HPO and PPO reach?

    make suite                                     all problems, one seed, 40 minutes on two cores
    make suite ARGS="--problems battery,queue --seeds 0,1,2 --algorithms hpo"
    python -m benchmarks.suite --help

Each algorithm trains by the public route at its defaults, told nothing but the environment (and the
discount, where the discounted return counts). The last iterate is tested, with its most probable
discrete actions and with sampled ones, in the same world as the optimum and the yardsticks. What is
in the folder already is not computed again; remove it for new runs.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.suite.runs import PROBLEMS, find_optimum, train_one

ALGORITHMS = ("hpo", "ppo")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--problems", type=_among(PROBLEMS), default=PROBLEMS, help=", ".join(PROBLEMS))
    add("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[0])
    add("--algorithms", type=_among(ALGORITHMS), default=list(ALGORITHMS), help="hpo,ppo")
    add("--jobs", type=int, default=2, help="processes at once, one thread each")
    add("--updates", type=int, help="updates of a run, instead of the default")
    add("--folder", type=Path, default=Path("runs/suite"), help="where all of it goes")
    return parser.parse_args(arguments)


def _among(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return read


def main(arguments: Sequence[str] | None = None) -> str:
    """Compute what is missing, and print and return the table."""
    given = parse(arguments)
    settings = {} if given.updates is None else {"num_updates": given.updates}
    runs = list(itertools.product(given.problems, given.algorithms, given.seeds))
    jobs: dict[Any, tuple[str, ...]] = {}
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    started = time.monotonic()
    how: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    how["mp_context"] = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, **how) as pool:
        for problem in given.problems:
            jobs[pool.submit(find_optimum, problem, given.folder)] = (problem,)
        for run in runs:
            jobs[pool.submit(train_one, *run, given.folder, settings)] = run
        for done in as_completed(jobs):
            name = " ".join(map(str, jobs[done]))
            minutes = (time.monotonic() - started) / 60
            if error := done.exception():
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
            else:
                found[jobs[done]] = done.result()
                print(f"{len(found)}/{len(jobs)}  {name}, {minutes:.1f} minutes", flush=True)
    text = table(found, given)
    (given.folder / "table.md").write_text(text)
    print(f"\n{text}\n{given.folder / 'table.md'}")
    return text


def table(found: dict[tuple[Any, ...], dict[str, Any]], given: argparse.Namespace) -> str:
    """Return a markdown table: rewards a step, gaps in per cent of the optimum, medians of seeds.

    A gap compares two simulations in the same world. ``<`` marks a run below the best yardstick.
    """
    head = ["problem", "objective", "optimum", "best yardstick"]
    for algorithm in given.algorithms:
        head += [algorithm.upper(), "gap %", "sampled %", "seconds"]
    rows = [head, ["---"] * len(head)]
    for problem in given.problems:
        if (known := found.get((problem,))) is None:
            continue
        level, scale = known["simulated"], abs(known["optimum"]) / 100
        if abs(level - known["optimum"]) > 3 * scale:  # its policy left the grid
            level = known["optimum"]
        name, best = max(known["yardsticks"].items(), key=lambda pair: pair[1], default=("", None))
        row = [problem, known["objective"], f"{known['optimum']:.4g} ± {known['error']:.1g}"]
        row.append("" if best is None else f"{name}: {(level - best) / scale:.2f}")
        for algorithm in given.algorithms:
            runs = [found.get((problem, algorithm, seed)) for seed in given.seeds]
            ended = [run for run in runs if run is not None]
            if not ended:
                row += [""] * 4
                continue
            argmax, sampled, seconds = (
                median(run[key] for run in ended) for key in ("argmax", "sampled", "seconds")
            )
            below = " <" if best is not None and argmax < best else ""
            row += [f"{argmax:.4g}{below}"]
            row += [f"{(level - one) / scale:+.2f}" for one in (argmax, sampled)]
            row.append(f"{seconds:.0f}")
        rows.append(row)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
