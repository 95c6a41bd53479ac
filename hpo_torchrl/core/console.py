"""The end of a command, whatever stops it, and what is said while it works in silence."""

from __future__ import annotations

import argparse
import dis
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from hpo_torchrl.core import ranks
from hpo_torchrl.core.checks import first_line

PATIENCE = 5.0  # seconds of silence that nobody minds
_LET_SPEAK = 3.0  # seconds that rank 0 has to say what happened
_INTERRUPTED = "interrupted; go on with hpo-train resume=FOLDER, a sweep by the same command again"
# Where words for a user are written: here, and in classes of their own, not in libraries.
_LIBRARIES = {"torch", "torchrl", "tensordict", "numpy", "scipy", "pandas", "matplotlib", "hydra"}
_LIBRARIES |= {"omegaconf", "antlr4", "yaml", "tqdm", *sys.stdlib_module_names}
_NO_MEMORY = "allocate|bad_alloc|not enough memory|calculation overflowed|too big|multiplication ov"


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    action: Callable[[argparse.Namespace], Any],
) -> None:
    """Run a command; what a user can mend is one line, a fault of the program shows its trace too.

    A line is what the operating system refuses, what asks for more memory than there is, and what
    this package or a class of the user's own says by a ``raise``. An error that came about in any
    other way was foreseen by nobody: its trace is all there is to find it by.

    Raises:
        SystemExit: it did not end well: 2 where a user can mend it, 130 where it was interrupted,
            1 for a fault.
    """
    given = parser.parse_intermixed_args(argv)
    try:
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # a module of one's own may lie there
        action(given)
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        code, words = _ending(error)
        if ranks.told_by_main(error):
            time.sleep(_LET_SPEAK)  # torchrun ends all ranks when the first one ends
            parser.exit(code)
        if code == 1:
            traceback.print_exc()
        who = f"rank {own}: " if (own := ranks.launched_as()) else ""
        parser.exit(code, f"{parser.prog}: error: {who}{words}\n")


def _ending(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error and the line that says what happened."""
    cause: BaseException | None = error
    while cause is not None:
        # Interrupted while it has swapped a module's parameters, tensordict 0.14 raises an error
        # of its own on top of the interrupt.
        if isinstance(cause, KeyboardInterrupt):
            return 130, _INTERRUPTED
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) or _in_words(error):
        return 2, str(error)
    large = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if large or (
        isinstance(error, (RuntimeError, ValueError)) and re.search(_NO_MEMORY, f"{error}")
    ):
        asked = re.search(r"(\d+) bytes", str(error))
        size = f"{int(asked[1]) / 1e9:,.0f} GB at once" if asked else first_line(error)
        return 2, (
            f"There is not enough memory ({size}). Lower what is large of env.num_items or "
            "env.dim, env.lead_time, policy.hidden, critic.hidden, collect.batch_size, "
            "collect.unroll_length, and the batch_size of evaluation.tests and .validation."
        )
    return 1, (
        f"{type(error).__name__}: {first_line(error)}. This is a fault of hpo_torchrl, or of a "
        "module of your own that the trace above names; please report it with the trace."
    )


def _in_words(error: BaseException) -> bool:
    """Say whether a ``raise`` of this package, or of a module that is no library, made it."""
    if not isinstance(error, (ValueError, TypeError, RuntimeError, MemoryError)):
        return False
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return False
    frame = place.tb_frame
    by_raise = dis.opname[frame.f_code.co_code[place.tb_lasti]] == "RAISE_VARARGS"
    return by_raise and frame.f_globals.get("__name__", "").split(".")[0] not in _LIBRARIES


@contextmanager
def announced(what: str, *, shown: bool = True) -> Iterator[None]:
    """Say what is going on, and for how long, once it has lasted ``PATIENCE`` seconds.

    Args:
        what: what is done here.
        shown: whether to say anything.
    """
    ended = threading.Event()
    live = sys.stderr.isatty()

    def show() -> None:
        if ended.wait(PATIENCE):
            return
        form = "{desc}: {elapsed}"
        with tqdm(desc=what, bar_format=form, leave=not live, dynamic_ncols=True) as bar:
            bar.start_t = start
            bar.refresh()
            while not ended.wait(1.0 if live else 60.0):  # a line cannot be overwritten in a file
                bar.refresh()

    start = time.time()
    clock = threading.Thread(target=show, daemon=True)
    if shown:
        clock.start()
    try:
        yield
    finally:
        ended.set()
        if shown:
            clock.join()
