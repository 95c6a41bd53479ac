"""What can be run in the documents: Python, a page at a time, and how it is made small."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from shrunk import SMALL

ROOT = Path(__file__).parents[1]

# The settings of a small run of an inventory, but for its length.
SMALL_RUN = {key: yaml.safe_load(value) for key, value in (each.split("=") for each in SMALL[1:])}
# What makes a piece of code small, by the words that it replaces.
SMALLER = {
    "num_updates=50": "num_updates=2, **SMALL",
    "num_updates=60": "num_updates=2",
    "num_updates=100": "num_updates=2, **SMALL",
    "callbacks=[GoodEnough(below=38.0)]": "callbacks=[GoodEnough(1e9)], num_updates=2, **SMALL",
    "my_package:Moving-v0": "gym_worlds:Moving-v0",
    'train(env, algorithm="ppo")': 'train(env, "ppo", num_updates=1, unroll_length=5, tests=TESTS)',
    "1_000_000": "10_000",
    "64 * 30": "64 * 5",
    "horizon=8": "horizon=4",
    "num_steps=8": "num_steps=4",
    "num_batches=10, num_reference=20": "num_batches=3, num_reference=3",
    "num_batches=40, num_reference=200": "num_batches=3, num_reference=3",
}

# What a page takes for granted, where its pieces are parts of a reader's own code. A piece that
# is fenced as ``py`` is not run: it needs a package that the tests do not have.
GIVEN = {
    "docs/deploy.md": """
import shutil, sys
import hpo_torchrl
run = hpo_torchrl.train("inventory", folder="runs/mine", num_updates=2, **SMALL)
for format in ("onnx", "pt2", "numpy"):
    run.export(format, ".")
shutil.copytree("runs/mine/policy", "somewhere/policy")
sys.path.insert(0, ".")
""",
    "docs/gymnasium.md": """
import hpo_torchrl
from hpo_torchrl.envs.gym import GymHybridEnv
world = GymHybridEnv("gym_worlds:Moving-v0", num_envs=2)
TESTS = hpo_torchrl.Evaluation(world, num_steps=5, seed=1)
""",
    "docs/variants.md": """
import torch
from hpo_torchrl.problems import InventoryEnv
from hpo_torchrl.problems.inventory import Demand, NegativeBinomial
from hpo_torchrl.problems.inventory.order_costs import FixedCost
plain = InventoryEnv(features=[FixedCost(64)], batch_size=64).original
""",
}


def python_of(page: Path) -> list[str]:
    """Return the pieces of Python of a page, or the cells of a notebook."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return re.findall(r"^```python[^\n]*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def pages() -> list[str]:
    """Return the README, all pages and all notebooks."""
    docs = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "notebooks").glob("*.ipynb")]
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in docs)]


def run_python(page: str, names: dict[str, Any]) -> None:
    """Run a page from top to bottom, as a reader would: later pieces know the earlier names."""
    exec(GIVEN.get(page, ""), names)
    for piece in python_of(ROOT / page):
        for written, small in SMALLER.items():
            piece = piece.replace(written, small)
        exec(compile(piece, page, "exec"), names)
