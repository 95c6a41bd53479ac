"""The package as a whole: documentation that runs, configs, layers, and the wheel."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hpo_torchrl
from hpo_torchrl.experiments.build import ALGORITHMS, accepted
from hpo_torchrl.experiments.cli import compose_config
from hpo_torchrl.modules import HybridNetwork, make_value_network
from hpo_torchrl.problems import InventoryEnv, SwitchedLQREnv
from hpo_torchrl.training import Trainer

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hpo_torchrl"
MODULES = sorted(m.name for m in pkgutil.walk_packages(hpo_torchrl.__path__, "hpo_torchrl."))
ROOMS = ("envs", "modules", "objectives", "oracles", "reporting")
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
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hpo_torchrl."):
            other = node.module.split(".")[1]
            if other != here and not other.startswith("_"):
                assert floor(other) < floor(here), f"{path.name} imports {node.module}"


def config(name: str) -> dict:
    return yaml.safe_load((ROOT / "configs" / name).read_text())


def defaults(function) -> dict:
    """Return the arguments that have a default, as a configuration writes it."""
    found = {name: p.default for name, p in accepted(function).items() if p.default is not p.empty}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in found.items()}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_config_has_the_keys_of_the_constructor(name):
    settings = compose_config([f"algorithm={name}"])["algorithm"]
    assert settings.pop("name") == name
    assert {"policy": None, "critic": None, **settings} == {
        "policy": None,
        "critic": None,
        **defaults(ALGORITHMS[name]),
    }


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("inventory", InventoryEnv),
        ("inventory_variant", InventoryEnv),
        ("switched_lqr", SwitchedLQREnv.from_recipe),
        ("switched_lqr_2d", SwitchedLQREnv),
    ],
)
def test_environment_config_has_the_keys_of_the_constructor(name, function):
    settings = compose_config([f"env={name}"])["env"]
    assert set(settings) - {"name", "evaluation"} == set(accepted(function))


def test_heterogeneous_inventory_config_differs_where_its_items_do():
    settings = compose_config(["env=inventory_heterogeneous"])["env"]
    drawn = {"holding_cost", "shortage_cost"}
    known = set(accepted(InventoryEnv.heterogeneous)) - drawn
    assert set(settings) - {"name", "evaluation"} == known
    for key, value in defaults(InventoryEnv.heterogeneous).items():
        if key.endswith("range") or key == "instance_seed":
            assert settings[key] == value


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/tuned").glob("*.yaml")), ids=lambda p: p.stem
)
def test_tuned_settings_are_of_a_known_pair(path):
    """Hydra looks them up by name: a misspelt one would silently never be used."""
    envs = sorted((p.stem for p in (ROOT / "configs/env").glob("*.yaml")), key=len, reverse=True)
    env = next(name for name in envs if path.stem.startswith(f"{name}_"))
    assert path.stem.removeprefix(f"{env}_") in ALGORITHMS


def test_network_configs_have_the_keys_of_the_networks():
    derived = {"continuous_bounds", "action_scale", "device", "dtype", "observation_key"}
    derived |= {"branch_bounds", "num_heads"}
    for name, function in (("policy", HybridNetwork.__init__), ("critic", make_value_network)):
        known = {key: value for key, value in defaults(function).items() if key not in derived}
        assert config(f"{name}/mlp.yaml") == known


def test_trainer_config_has_known_keys():
    known = set(inspect.signature(Trainer.__init__).parameters) | {"num_threads"}
    assert set(config("trainer/default.yaml")) <= known


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


@pytest.mark.parametrize("page", ["README.md", "docs/gradients.md"])
def test_python_of_the_documents_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_gradients_page_names_what_there_is():
    """The places in the code that the derivation points to exist."""
    page = (ROOT / "docs/gradients.md").read_text()
    for row in re.findall(r"^\|.*\| (`[a-z]+/.*) \|$", page, re.MULTILINE):
        path, *names = re.findall(r"`([^`]+)`", row)
        source = (PACKAGE / path).read_text()
        for name in names:
            if "/" not in name:
                assert re.search(rf"\b{name.split('.')[-1]}\b", source) or "branch" in name, name


@pytest.mark.parametrize("target", ["train", "test", "lint"])
def test_make_targets_of_the_readme_exist(target):
    listed = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    command = {"train": "hpo-train", "test": "pytest", "lint": "ruff"}[target]
    assert command in listed


def test_readme_names_the_two_commands_and_ci_runs_them():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "make train" in readme
    assert "make test" in readme
    assert {"make lint", "make test"} <= set(ci.splitlines())


def test_wheel_in_a_clean_folder_finds_its_configs(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, str(site), str(wheel)], check=True, capture_output=True)
    program = (
        "import hpo_torchrl.experiments.cli as cli; "
        "print(cli.__file__); print(cli.CONFIGS); cli.train()"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, "--cfg", "job"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    module, configs, *printed = shown.splitlines()
    assert module.startswith(str(site))
    assert configs.startswith(str(site))
    assert "fixed_cost_per_item: 64.0" in "\n".join(printed)


def test_commands_do_not_wait_for_what_only_pictures_and_comparisons_need():
    code = "import sys, hpo_torchrl.experiments.cli; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    loaded = set(shown.stdout.split())
    assert "hpo_torchrl.experiments.run" in loaded
    assert not loaded & {"matplotlib", "scipy.stats", "pyarrow", "tensorboard"}
