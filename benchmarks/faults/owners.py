"""Give one folder to two processes at once, and count where not exactly one was refused.

    python -m benchmarks.faults.owners [--pairs 20] [--seed 0]

Two commands start at nearly the same time: both new, both resuming, or one resuming a live run.
One must end with an error that names the other, or the run that lies there; the other must leave
what a run leaves that was alone.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.kills import INVENTORY, SMALL, content, finish, run


def main(argv: Sequence[str] | None = None) -> int:
    """Start pairs of processes and return how many pairs went wrong."""
    parser = argparse.ArgumentParser(description="Two processes in one folder.")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    chance, wrong = random.Random(given.seed), 0
    new = [*SMALL, *INVENTORY, "trainer.checkpoint_every=1"]
    with tempfile.TemporaryDirectory() as temporary:
        alone, begun = Path(temporary) / "alone", Path(temporary) / "begun"
        finish(run([*new, f"output_dir={alone}"]), alone)
        expected = content(alone)
        shutil.copytree(alone, begun)
        (begun / "summary.json").unlink()
        for number in range(given.pairs):
            folder, said = Path(temporary) / str(number), Path(temporary) / f"{number}.txt"
            kind = ("new", "resumed", "live")[number % 3]
            first = second = [f"resume={folder}"]
            if kind == "resumed":
                shutil.copytree(begun, folder)
            else:
                first = [*new, f"output_dir={folder}"]
                second = first if kind == "new" else second
            children = [run(first, said)]
            # A live run is met once it has begun, two alike within a tenth of a second.
            while kind == "live" and not (folder / "config.yaml").exists():
                time.sleep(0.02)
            time.sleep(chance.uniform(0.0, 0.1))
            children.append(run(second, said))
            codes = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children]
            words = said.read_text(encoding="utf-8", errors="replace")
            named = any(f"in use by process {one}" in words for one in children)
            good = sorted(codes) == [0, 2] and (named or "already holds a run" in words)
            good = good and content(folder) == expected
            wrong += not good
            print(f"{kind:<8} exit codes {codes}, {'right' if good else 'WRONG: ' + words}")
    print(f"owners: {given.pairs} pairs, wrong {wrong}")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main()))
