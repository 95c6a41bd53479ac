"""How many threads a run computes with, how they wait, and which memory is kept."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hpo_torchrl
from hpo_torchrl.experiments.run import threads


def used(number, **hidden) -> int:
    nets = {name: {"hidden": hidden.get(name, [64, 64])} for name in ("policy", "critic")}
    with threads({"trainer": {"num_threads": number}, **nets}):
        return torch.get_num_threads()


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_the_default_is_by_the_size_of_the_nets(cores):
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        many = min(cores, 4)
        assert used(None) == used(None, policy=[]) == 1
        assert used(None, policy=[64, 512]) == used(None, critic=[256]) == many
        assert used(3) == 3
        # Sizes that will be refused are left to who refuses them.
        assert used(None, policy="wide", critic=["512", None]) == 1
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", [0, "two"])
def test_bad_numbers_are_refused(number):
    with pytest.raises((TypeError, ValueError), match=r"trainer\.num_threads must be an integer"):
        used(number)


def test_commands_let_waiting_threads_sleep():
    """By default, and before torch is loaded; who sets another policy keeps it."""
    source = (Path(hpo_torchrl.__file__).parent / "experiments" / "cli.py").read_text()
    before = source[: source.index("from hpo_torchrl")]
    shown = "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    code = f"import os, sys; exec({before!r}); {shown}"
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        others = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        how = {"env": others | given, "text": True, "check": True}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, **how)
        assert done.stdout.split() == [expected, "False"]


FAULTS = """
import resource, sys, torch
from hpo_torchrl.core.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks = lambda: [torch.ones(2**21 * size) for size in (1, 5, 9)]  # 8, 40 and 72 MB
for _ in range(8):  # until there is room for all of them
    blocks()
before = faults()
for _ in range(5):
    blocks()
print(kept, faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries stay as they are")
@pytest.mark.parametrize("variable", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_freed_memory_serves_the_next_batch(variable):
    """Pages are not fetched anew for blocks of the same sizes; who sets a variable decides."""

    def measured(way: str) -> tuple[str, int]:
        others = {key: value for key, value in os.environ.items() if key[:7] != "MALLOC_"}
        how = {"env": others | variable, "text": True, "check": True, "capture_output": True}
        kept, faults = subprocess.run([sys.executable, "-c", FAULTS, way], **how).stdout.split()
        return kept, int(faults)

    _, usual = measured("leave")
    kept, faults = measured("keep")
    assert kept == str(not variable)
    assert usual > 10_000
    assert (faults < usual / 2) == (not variable)
