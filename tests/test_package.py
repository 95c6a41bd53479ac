"""The package as a whole: documentation that runs, configs and layers."""

from __future__ import annotations

import ast
import doctest
import importlib
import itertools
import pkgutil
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from shrunk import TINY

import hpo_torchrl
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.config import choices, compose_config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hpo_torchrl"
MODULES = sorted(m.name for m in pkgutil.walk_packages(hpo_torchrl.__path__, "hpo_torchrl."))
FLOORS = [
    {"core"},
    {"envs", "modules", "objectives"},
    {"collectors"},
    {"algorithms", "diagnostics"},
    {"problems"},
    {"training"},
    {"reporting"},
    {"experiments"},
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    failed, _ = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failed == 0


def floor(room: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_run_downwards(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here.startswith("_"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("hydra._"), f"{path.name}: Hydra's inside"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hpo_torchrl."):
            other = node.module.split(".")[1]
            if other != here and not other.startswith("_"):
                assert floor(other) < floor(here), f"{path.name} imports {node.module}"


GROUPS = sorted(path for path in (ROOT / "configs").rglob("*/*.yaml"))
ELSEWHERE = ("experiment", "tuned", "logger", "evaluation")  # env files ask for the last
ALWAYS = ("mlp", "default")  # what every configuration has
# A rule is of one problem; a file of demand must be given.
PROBLEMS = {
    "fixed_mode": ["env=switched_lqr"],
    "priority_list": ["env=unit_commitment"],
    "gym": ["env.id=gym_worlds:Moving-v0", "algorithm=ppo"],
    "inventory_traces": ["env.demand.traces=demand.npy"],
    "inventory_from_file": [f"env.path={ROOT / 'examples' / 'data' / 'generated_demand.csv'}"],
}


def group_of(path):
    return path.relative_to(ROOT / "configs").parts[0]


def name_of(path):
    """By which it is chosen: of a preset, with its folder."""
    return "/".join(path.relative_to(ROOT / "configs").with_suffix("").parts[1:])


@pytest.mark.parametrize(
    "path",
    [path for path in GROUPS if group_of(path) not in ELSEWHERE and path.stem not in ALWAYS],
    ids=lambda path: "=".join((group_of(path), name_of(path))),
)
def test_every_yaml_file_builds_and_its_keys_are_accepted(path, tmp_path, monkeypatch):
    """Whatever stands in a group's file is what the classes that it names take."""
    monkeypatch.chdir(tmp_path)
    np.save("demand.npy", np.ones((8, 30, 1)))
    tiny = [text for text in TINY if "hidden" not in text and "batch_size" not in text]
    named = f"{group_of(path)}={name_of(path)}"
    config = compose_config([named, *PROBLEMS.get(path.stem, []), *tiny])
    if group_of(path) == "env":
        tests, primary, validation = build_tests(config)
        assert primary in tests
        assert validation.num_steps <= tests[primary].num_steps
    build_algorithm(config)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/tuned").rglob("*.yaml")), ids=lambda path: name_of(path)
)
def test_tuned_settings_are_of_a_known_pair(path):
    """Hydra looks them up by name: a misspelt one would silently never be used."""
    pairs = itertools.product(choices("env"), choices("algorithm"))
    ((env, algorithm),) = (pair for pair in pairs if "_".join(pair) == name_of(path))
    words = [f"env={env}", f"algorithm={algorithm}"]
    assert compose_config(words) != compose_config([*words, "~tuned"])


def test_the_configuration_stays_short():
    """But for presets, which are other people's numbers."""
    files = [path for path in (ROOT / "configs").rglob("*.yaml") if "/" not in name_of(path)]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 565


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=str)
def test_every_config_line_is_explained(path):
    """A key has a comment on its line or above the run of keys that it belongs to."""
    explained = False
    for line in path.read_text().splitlines():
        text = line.strip()
        if text.startswith("#") or "#" in text:
            explained = True
        elif not text:
            explained = False
        else:
            passed_on = re.search(r"\$\{|hydra|:$", text) or line.startswith("  ")
            assert explained or passed_on, f"{path.name}: {line!r} has no comment"


def test_gradients_page_names_what_there_is():
    """The places in the code that the derivation points to exist."""
    page = (ROOT / "docs/gradients.md").read_text()
    for row in re.findall(r"^\|.*\| (`[a-z]+/.*) \|$", page, re.MULTILINE):
        path, *names = re.findall(r"`([^`]+)`", row)
        source = (PACKAGE / path).read_text()
        for name in names:
            if "/" not in name:
                assert re.search(rf"\b{name.split('.')[-1]}\b", source) or "branch" in name, name


def test_the_readme_names_the_commands_that_make_and_ci_run():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "make train" in readme
    assert "make test" in readme
    assert {"make lint", "make test"} <= set(ci.splitlines())
    command = ["make", "--dry-run", "train", "test", "lint"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(command in listed for command in ("hpo-train", "pytest", "ruff"))
