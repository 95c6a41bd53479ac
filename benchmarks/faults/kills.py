"""Kill runs at random moments, resume them, and compare with the run that was left alone.

    python -m benchmarks.faults.kills [--kills 100] [--seed 0] [--kinds inventory,ppo]

Each run is a forked process, killed by SIGKILL after a random part of the time that the whole run
takes, pictures included, and resumed until it ends. Identical means: every tensor of the last
checkpoint, every logged number and every number of the summary, seconds apart.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hpo_torchrl.experiments import cli
from hpo_torchrl.training import Checkpoint, RunFolder

SMALL = [
    "trainer.num_updates=12",
    "trainer.checkpoint_every=3",
    "trainer.eval_every=4",
    "trainer.progress=false",
    "collect.batch_size=16",
    "collect.unroll_length=10",
    "policy.hidden=[8]",
    "critic.hidden=[8]",
]
INVENTORY = [
    "evaluation.validation.num_steps=60",
    "evaluation.tests.long_run.batch_size=16",
    "evaluation.tests.long_run.num_steps=250",
    "evaluation.tests.protocol.batch_size=16",
]
KINDS = {
    "inventory": INVENTORY,
    "ppo": ["algorithm=ppo", *INVENTORY],
    "many seeds": ["num_seeds=2", *INVENTORY],
    "select best": ["trainer.select=best", *INVENTORY],
    "lqr": ["env=switched_lqr", "env.dim=2", "env.num_modes=2"],
    "compiled": ["collect.compile=true", *INVENTORY],
}


SECONDS = ("wall_seconds", "compile_seconds")


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, resume, compare, and return how many ended otherwise."""
    parser = argparse.ArgumentParser(description="Kill runs at random and resume them.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args(argv)
    chance, kinds = random.Random(given.seed), given.kinds.split(",")
    identical = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        for kind in kinds:
            settings = [*SMALL, *KINDS[kind]]
            whole = Path(temporary) / kind / "whole"
            start = time.monotonic()
            finish(run([*settings, f"output_dir={whole}"]), whole)
            seconds = time.monotonic() - start
            kills = given.kills // len(kinds) + (kinds.index(kind) < given.kills % len(kinds))
            for number in range(kills):
                parts = Path(temporary) / kind / str(number)
                moment = chance.uniform(0.0, 1.05 * seconds)
                child = run([*settings, f"output_dir={parts}"])
                time.sleep(moment)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                go_on(settings, parts)
                same = content(parts) == content(whole)
                identical, total = identical + same, total + 1
                if not same:
                    print(f"DIFFERENT  {kind}, killed after {moment:.3f} s", flush=True)
            print(f"{kind:<12} {seconds:5.1f} s a run, {kills} kills", flush=True)
    print(f"kills: {total}, identical {identical}")
    return total - identical


def run(arguments: list[str], said: str | Path = os.devnull) -> int:
    """Start ``hpo-train`` in a fork of this process, which has imported everything.

    Args:
        arguments: those of the command.
        said: file for what it prints as its error.

    Returns:
        The process.
    """
    if child := os.fork():
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    code = 1
    try:
        cli.train(arguments)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def finish(child: int, folder: Path) -> None:
    """Wait for a run that is expected to end well."""
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError(f"The run in {folder} failed.")


def go_on(settings: list[str], folder: Path) -> None:
    """Do what a user would: resume what has begun, start again what has not."""
    begun = RunFolder(folder).found
    finish(run([f"resume={folder}"] if begun else [*settings, f"output_dir={folder}"]), folder)


def content(folder: Path) -> list[Any]:
    """Return everything that must be equal."""
    seeds = RunFolder(folder).read_seeds()
    runs = [RunFolder(folder)] if seeds is None else [RunFolder(folder).of_seed(s) for s in seeds]
    found: list[Any] = []
    for one in runs:
        found.append({k: v for k, v in one.read_summary().items() if k not in SECONDS})
        found.append(
            [{k: v for k, v in row.items() if k not in SECONDS} for row in one.read_metrics()]
        )
        last = Checkpoint(one.path, {}, config=one.read_config())
        found.append(flat(last.read(last.updates()[-1]).states))
        found.append(sorted(path.name for path in one.path.iterdir() if path.name != ".lock"))
    return found


def flat(state: Any) -> Any:
    """Return a nested state with lists in place of tensors, which compare as a whole."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {key: flat(one) for key, one in state.items()}
    return [flat(one) for one in state] if isinstance(state, (list, tuple)) else state


if __name__ == "__main__":
    sys.exit(bool(main()))
