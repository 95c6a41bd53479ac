"""Faults planted in the method, one at a time: how many do its tests find, and which ones live?

mutmut makes the mutants, runs each in a forked child with the tests that reach its function, and
keeps the results (``mutants/``; ``mutmut show NAME`` prints one). The whole takes hours, so this
script draws a sample, evenly over all mutants of the files of ``[tool.mutmut]`` in
``pyproject.toml``; long files weigh more.

Not mutated: strings (names, messages, docstrings), type hints, statements that raise or warn, and,
by the tool's own rule, functions below a decorator other than ``staticmethod``, ``classmethod``.

Some survivors no test can find: a device on a machine that has one only, ``strict`` of a ``zip`` of
equal lengths, a shortcut not taken (slower), nodes of a quadrature in another order, a draw that is
exactly 0; and what runs only while the package is imported, before the tool switches a mutant on.

    make mutants                                # 200 mutants, seed 0
    make mutants ARGS="--sample 50 --seed 3 --only modules"
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate, chain, zip_longest
from pathlib import Path

from mutmut import __main__ as tool
from mutmut.mutation.mutators import mutation_operators, operator_string
from mutmut.state import state
from mutmut.stats import status_by_exit_code

SECONDS = 30.0  # of tests that a mutant may live through, those of the fewest functions first
FOUND = ("killed", "timeout", "segfault")  # the tool's limit is far above the unmutated tests' time


def main(argv: Sequence[str] | None = None) -> int:
    """Print the share of found mutants and every survivor; return the number of survivors."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.mutants")
    parser.add_argument("--sample", type=int, default=200, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="mutants with this text in their name")
    parser.add_argument("--anew", action="store_true", help="forget all earlier mutants and times")
    options = parser.parse_args(argv)

    os.chdir(Path(__file__).parents[2])
    mutation_operators[:] = [pair for pair in mutation_operators if pair[1] is not operator_string]
    tool.collect_or_load_stats = _few_tests(tool.collect_or_load_stats)
    _renew(everything=options.anew)

    names = [name for name in sorted(_exit_codes()) if options.only in name]
    sample = random.Random(options.seed).sample(names, min(options.sample, len(names)))
    print(f"{len(sample)} of {len(names)} mutants, seed {options.seed}", flush=True)
    tool._run(sample, max_children=1)
    return _report(sample)


def _renew(*, everything: bool) -> None:
    """Mutate the files that changed; those that are not mutated are copied anew."""
    mutants = Path("mutants")
    if everything:
        shutil.rmtree(mutants, ignore_errors=True)
    mutants.mkdir(exist_ok=True)
    tool.copy_src_dir()
    tool.create_mutants(max_children=1)


def _few_tests(collect):
    """Wrap the tool's choice: of the tests that reach a function, ``SECONDS`` of the nearest."""

    def collect_few(*arguments, **options) -> None:
        collect(*arguments, **options)
        seconds, of = state().duration_by_test, state().tests_by_mangled_function_name
        reached = Counter(chain(*of.values()))
        for function, tests in of.items():
            by_file = defaultdict(list)
            for test in sorted(tests, key=lambda test: (reached[test], seconds[test], test)):
                by_file[test.split("::")[0]].append(test)
            # The files take turns, for variety.
            turns = [test for turn in zip_longest(*by_file.values()) for test in turn if test]
            until = accumulate(seconds[test] for test in turns)
            few = [test for test, end in zip(turns, until, strict=True) if end <= SECONDS]
            of[function] = few or turns[:1]

    return collect_few


def _exit_codes() -> dict[str, int | None]:
    """Every mutant by name, with what its tests ended with (``None``: not run yet)."""
    codes: dict[str, int | None] = {}
    for path in tool.walk_mutatable_files():
        data = tool.SourceFileMutationData(path=path)
        data.load()
        codes |= data.exit_code_by_key
    return codes


def _report(sample: Sequence[str]) -> int:
    codes = _exit_codes()
    status = {name: status_by_exit_code[codes[name]] for name in sample}
    survivors = [name for name in sorted(sample) if status[name] not in FOUND]
    for name in survivors:
        print(f"\n{status[name]}: {name}")
        print("\n".join(tool.get_diff_for_mutant(name).splitlines()[2:]))
    print(f"\n{dict(Counter(status.values()))}")
    found = len(sample) - len(survivors)
    print(f"mutants: {len(sample)} planted, {found} found ({found / len(sample):.1%})")
    return len(survivors)


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
