"""Change what a run has read and written, let the disk fail, and see that it is told.

    python -m benchmarks.faults.data [--mutants 200] [--faults 24] [--seed 0]

``metrics``: a resume meets a ``metrics.csv`` that was edited, cut or deleted: it must say so and
restore the file. ``data``: the file that a run was trained on was edited, replaced or moved: every
command must say so, and a moved one, once named, must lead to the identical end. ``disk``: a write
fails in the middle of a run: the message must name the path and the way on, which must lead to the
identical end.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from hpo_torchrl.experiments import cli
from hpo_torchrl.training import Checkpoint, RunFolder
from hpo_torchrl.training.run_logger import RunLogger

SMALL = [
    "env=inventory_from_file",
    "env.history=2",
    "env.season=1",
    "trainer.num_updates=4",
    "trainer.checkpoint_every=1",
    "trainer.eval_every=1",
    "trainer.progress=false",
    "collect.batch_size=4",
    "collect.unroll_length=5",
    "policy.hidden=[4]",
    "critic.hidden=[4]",
    *(f"evaluation.tests.{name}.skip=2" for name in ("test", "dev", "train")),
    *(f"evaluation.tests.{name}.batch_size=2" for name in ("test", "dev", "train")),
]
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EACCES, errno.EIO)


def main(argv: Sequence[str] | None = None) -> int:
    """Inject all faults and return the number of those that were not told, or did harm."""
    parser = argparse.ArgumentParser(description="Change files of a run, and let the disk fail.")
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--faults", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        failed = change_metrics(place, chance, given.mutants)
        path = place / "demand.csv"
        days = [f"{day},{item},{chance.randrange(9)}\n" for day in range(40) for item in "AB"]
        path.write_text("period,item,demand\n" + "".join(days))
        command(cli.train, [*SMALL, f"env.path={path}", f"output_dir={place / 'whole'}"])
        failed += change_data(place, path) + fail_disk(place, chance, given.faults)
    return failed


def change_metrics(place: Path, chance: random.Random, mutants: int) -> int:
    """Damage the rows of a run at random; return how often that was silent or did harm."""
    logger, silent, wrong = RunLogger(place), 0, 0
    for update in range(1, 9):
        row = {"update": update, "cost": chance.uniform(0, 99), "steps": 40 * update}
        logger.log(row if update % 2 else row | {"test_cost": chance.uniform(0, 99)})
    path, rows = logger.folder.metrics, logger.folder.read_metrics()
    whole = path.read_bytes()
    for _ in range(mutants):
        lines, at = whole.splitlines(keepends=True), chance.randrange(len(whole))
        line = chance.randrange(len(lines))
        byte = bytes([whole[at] ^ 1 << chance.randrange(8)])
        mutant = chance.choice(
            [
                whole[:at] + byte + whole[at + 1 :],
                whole[:at],
                b"".join(lines[:line] + lines[line + 1 :]),
                b"".join(lines[: line + 1] + lines[line:]),
                b"".join(chance.sample(lines, len(lines))),
                None,
            ]
        )
        path.unlink(missing_ok=True)
        if mutant is not None:
            path.write_bytes(mutant)
        try:
            same = logger.folder.read_metrics() == rows
        except ValueError:
            same = False
        again = RunLogger(place)
        again.rows = [dict(row) for row in rows]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            again.resume()
        silent += not same and not told
        wrong += path.read_bytes() != whole or again.rows != rows
    path.unlink()
    print(f"metrics      {mutants} mutants, silent {silent}, not restored {wrong}", flush=True)
    return silent + wrong


def change_data(place: Path, path: Path) -> int:
    """Change the file of a run in many ways, and open it by every command."""
    original, moved = path.read_bytes(), place / "moved.csv"
    more = b"".join(b"%d,%c,5\n" % (day, item) for day in range(40, 70) for item in b"AB")
    changes: dict[str, bytes | None] = {
        "a digit": original[:-2] + bytes([original[-2] ^ 1]) + original[-1:],
        "30 days more": original + more,
        "a row less": original[: original.rindex(b"\n", 0, -1) + 1],
        "empty": b"",
        "missing": None,
    }
    run = part(place, "run")
    commands: dict[str, tuple[Callable[..., Any], list[str]]] = {
        "resume": (cli.train, [f"resume={run}"]),
        "hpo-eval": (cli.evaluate, [str(run)]),
        "hpo-gradients": (cli.gradients, [str(run), "--batches=2", "--reference=2"]),
    }
    failed = 0
    for change, content in changes.items():
        path.unlink() if content is None else path.write_bytes(content)
        for name, (action, words) in commands.items():
            said = command(action, words)
            if not (str(path) in said and "env.path=" in said and f"resume={run}" in said):
                failed += 1
                print(f"NOT TOLD  {name}, {change}: {said}", flush=True)
    moved.write_bytes(original)
    for name, (action, words) in reversed(commands.items()):
        if said := command(action, [*words, f"env.path={moved}"]):
            failed += 1
            print(f"REFUSED  {name}, moved: {said}", flush=True)
    path.write_bytes(original)
    different = content_of(run) != content_of(place / "whole")
    number = len(commands) * (len(changes) + 1)
    print(f"data         {number} openings, not told {failed}, different {different:d}", flush=True)
    return failed + different


def fail_disk(place: Path, chance: random.Random, faults: int) -> int:
    """Let one of the writes of a run fail, and go on as the message says."""
    untold = different = hit = 0
    for number in range(faults):
        run, code = part(place, f"disk-{number}"), chance.choice(ERRORS)
        name = chance.choice(["fsync", "replace"])
        write, left = getattr(os, name), [chance.randrange(4)]

        def fail(*given: Any, write: Any = write, left: list[int] = left, code: int = code) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(code, os.strerror(code))
            write(*given)

        with mock.patch.object(os, name, fail):
            said = command(cli.train, [f"resume={run}"])
        hit += left[0] < 0
        told = f"{run}/" in said and os.strerror(code) in said and f"resume={run}." in said
        if (left[0] < 0 and not told) or list(run.rglob("*.tmp")):
            untold += 1
            print(f"NOT TOLD  {name} {os.strerror(code)}: {said}", flush=True)
        command(cli.train, [f"resume={run}"])
        different += content_of(run) != content_of(place / "whole")
    print(f"disk         {hit} faults, not told {untold}, different {different}", flush=True)
    return untold + different


def part(place: Path, name: str) -> Path:
    """Return a copy of the whole run that was killed before its last update."""
    run = shutil.copytree(place / "whole", place / name)
    max((run / "checkpoints").glob("*")).unlink()
    (run / "summary.json").unlink()
    return run


def command(action: Callable[..., Any], words: list[str]) -> str:
    """Run a command, and return its line of error; empty where it ended well."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            action(words)
        except SystemExit:
            return said.getvalue().strip()
    return ""


def content_of(folder: Path) -> tuple[Any, ...]:
    """Return everything that must be equal, but for the time it took."""
    run = RunFolder(folder)
    summary = {**run.read_summary(), "wall_seconds": None}
    rows = [{**row, "wall_seconds": None} for row in run.read_metrics()]
    last = Checkpoint(run.path, {}, config=run.read_config())
    policy = last.read(last.updates()[-1]).states["policy"]
    return summary, rows, {name: value.tolist() for name, value in policy.items()}


if __name__ == "__main__":
    sys.exit(bool(main()))
