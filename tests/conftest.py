"""Every test runs on one thread, from the same seed."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
# What is compiled is kept for other tests and processes of them, and not where users have theirs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/hpo_torchrl_tests_xla")
# A shell starts what it runs in the background deaf to interrupts, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Leave pictures empty, which take half the time of a small run; other tests look at them."""
    save = "matplotlib.figure.Figure.savefig"
    monkeypatch.setattr(save, lambda self, path, **how: Path(path).touch())
