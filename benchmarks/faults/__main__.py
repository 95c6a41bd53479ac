"""Inject faults of every kind, and count those that were not noticed.

    make faults                                 # all, about an hour
    python -m benchmarks.faults [NAME ...]

Without names all of ``NAMES``. ``files`` are the tests of damaged and hostile files,
tests/test_trust.py; each other one is a module here, which says what it does and runs alone too,
as ``python -m benchmarks.faults.kills --kills 20``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib import import_module

import pytest

NAMES = ("files", "data", "owners", "nans", "library", "commands", "kills")


def main(argv: Sequence[str]) -> int:
    """Run the scripts of these names and return the number of faults that were not noticed."""
    if unknown := {*argv} - {*NAMES}:
        raise SystemExit(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(NAMES)}.")
    failures = {}
    for name in argv or NAMES:
        start = time.monotonic()
        print(f"== {name}", flush=True)
        if name == "files":
            failures[name] = int(pytest.main(["-q", "-n", "0", "tests/test_trust.py"]))
        else:
            failures[name] = import_module(f"benchmarks.faults.{name}").main([])
        print(f"== {name}: {failures[name]} failed, {time.monotonic() - start:.0f} s", flush=True)
    return sum(failures.values())


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
