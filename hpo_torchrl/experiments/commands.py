"""The installed commands: an interrupt is a line from the first moment, while torch is loaded."""

from __future__ import annotations

import gc
import os
import signal
import sys
from functools import partial
from importlib import import_module
from typing import Any


def _run(room: str, name: str) -> None:
    def stop(*_: Any) -> None:
        # At once: an exception in the midst of an import is turned into others, or swallowed.
        os.write(2, f"{os.path.basename(sys.argv[0])}: error: interrupted\n".encode())
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a job in the background ignores it
        signal.signal(signal.SIGINT, stop)
    # What is imported stays: to look for cycles in it, again and again, would take a second.
    gc.disable()
    command = getattr(import_module(f"hpo_torchrl.{room}"), name)
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, before)
    try:
        command()
    except KeyboardInterrupt:
        stop()


train = partial(_run, "experiments.cli", "train")
evaluate = partial(_run, "experiments.cli", "evaluate")
data = partial(_run, "experiments.cli", "data")
order = partial(_run, "experiments.cli", "order")
gradients = partial(_run, "experiments.cli", "gradients")
export = partial(_run, "experiments.cli", "export")
report = partial(_run, "reporting.report", "main")
