"""Nonsense handed to the library: each input must end in an error that names it.

Every entry of the tables in ``inputs`` is a call that makes no sense, with the words that its error
must hold: the name of the argument or entry, and the value or shape that came. Counted are those
that return (nonsense accepted), and those that raise anything else than documented or without these
words (raw). Both must be 0.

    python -m benchmarks.faults.library
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

from benchmarks.faults.inputs.actions import discounts, numbers, steps
from benchmarks.faults.inputs.data import batches, wrapped
from benchmarks.faults.inputs.made import Bad
from benchmarks.faults.inputs.networks import networks, tools
from benchmarks.faults.inputs.problems import problems

KINDS: dict[str, Callable[[], Iterator[Bad]]] = {
    "steps": steps,
    "discounts": discounts,
    "numbers": numbers,
    "batches": batches,
    "wrappers": wrapped,
    "arguments of problems": problems,
    "arguments of networks and losses": networks,
    "arguments of collectors and diagnostics": tools,
}


def verdict(bad: Bad) -> str:
    """Return what became of an input: an empty string is as it should be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bad.call()
    except Exception as error:
        text = str(error)
        found = (
            any(one in text for one in (word if isinstance(word, tuple) else (word,)))
            for word in bad.words
        )
        if isinstance(error, bad.documented) and all(found):
            return ""
        first = text.strip().splitlines()[0] if text.strip() else ""
        return f"raw: {bad.what}: {type(error).__name__}: {first[:150]} (must hold {bad.words})"
    return f"accepted: {bad.what}"


def main(argv: Sequence[str] | None = None) -> int:
    """Try every input; return how many were accepted or ended raw."""
    number, accepted, raw = 0, 0, 0
    for kind, table in KINDS.items():
        found = [verdict(bad) for bad in table()]
        wrong = [line for line in found if line]
        number += len(found)
        accepted += sum(line.startswith("accepted") for line in wrong)
        raw += sum(line.startswith("raw") for line in wrong)
        print(f"{kind}: {len(found)} inputs, {len(wrong)} wrong")
        for line in wrong:
            print(f"  {line}")
    print(f"library: {number} inputs, nonsense accepted {accepted}, raw {raw}")
    return accepted + raw


if __name__ == "__main__":
    raise SystemExit(main())
