"""How many threads a run computes with, and how they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hpo_torchrl
from hpo_torchrl.experiments.threads import set_threads


@pytest.fixture(autouse=True)
def as_before():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def config(number, policy=(64, 64), critic=(64, 64)):
    nets = {"policy": {"hidden": policy}, "critic": {"hidden": critic}}
    return {"trainer": {"num_threads": number}, **nets}


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_the_default_is_by_the_size_of_the_nets(monkeypatch, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    many = min(cores, 4)
    assert set_threads(config(None)) == 1
    assert set_threads(config(None, policy=[])) == 1
    assert set_threads(config(None, policy=[64, 512])) == many == torch.get_num_threads()
    assert set_threads(config(None, critic=[256])) == many
    assert set_threads(config(3)) == 3 == torch.get_num_threads()


def test_sizes_that_will_be_refused_are_left_to_who_refuses_them():
    assert set_threads(config(None, policy="wide", critic=["512", None])) == 1


@pytest.mark.parametrize("number", [0, 1.5, "two"])
def test_bad_numbers_are_refused(number):
    with pytest.raises((TypeError, ValueError), match=r"trainer\.num_threads must be an integer"):
        set_threads(config(number))


def test_commands_let_waiting_threads_sleep():
    """By default, and before torch is loaded; who sets another policy keeps it."""
    source = (Path(hpo_torchrl.__file__).parent / "experiments" / "cli.py").read_text()
    before = source[: source.index("from hpo_torchrl")]
    shown = "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    code = f"import os, sys; exec({before!r}); {shown}"
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        others = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=others | given, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [expected, "False"]
