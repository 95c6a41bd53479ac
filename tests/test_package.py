"""The package as a whole: documentation that runs, configs, layers, and the wheel."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shrunk import TINY

import hpo_torchrl
from hpo_torchrl.experiments.build import build_algorithm, build_tests
from hpo_torchrl.experiments.config import choices, compose_config
from hpo_torchrl.problems import InventoryEnv

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
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hpo_torchrl."):
            other = node.module.split(".")[1]
            if other != here and not other.startswith("_"):
                assert floor(other) < floor(here), f"{path.name} imports {node.module}"


GROUPS = sorted(path for path in (ROOT / "configs").glob("*/*.yaml"))
# A rule is of one problem; a file of demand must be given.
PROBLEMS = {
    "fixed_mode": ["env=switched_lqr"],
    "inventory_traces": ["env.demand.traces=demand.npy"],
    "inventory_from_file": [f"env.path={ROOT / 'examples' / 'data' / 'generated_demand.csv'}"],
}


@pytest.mark.parametrize(
    "path",
    [path for path in GROUPS if path.parent.name not in ("experiment", "tuned", "logger")],
    ids=lambda path: f"{path.parent.name}={path.stem}",
)
def test_every_yaml_file_builds_and_its_keys_are_accepted(path, tmp_path, monkeypatch):
    """Whatever stands in a group's file is what the classes that it names take."""
    monkeypatch.chdir(tmp_path)
    np.save("demand.npy", np.ones((8, 30, 1)))
    tiny = [text for text in TINY if "hidden" not in text and "batch_size" not in text]
    if path.parent.name == "evaluation":  # of the problem that asks for it
        asking = [env for env in choices("env") if f"evaluation: {path.stem} " in _env(env)]
        overrides = [f"env={asking[0]}", *PROBLEMS.get(asking[0], [])] if asking else []
    else:
        overrides = [f"{path.parent.name}={path.stem}", *PROBLEMS.get(path.stem, [])]
    config = compose_config([*overrides, *tiny])
    if path.parent.name in ("env", "evaluation"):
        tests, primary, validation = build_tests(config)
        assert primary in tests
        assert validation.num_steps <= tests[primary].num_steps
    build_algorithm(config)


def _env(name: str) -> str:
    return (ROOT / "configs" / "env" / f"{name}.yaml").read_text()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/tuned").glob("*.yaml")), ids=lambda p: p.stem
)
def test_tuned_settings_are_of_a_known_pair(path):
    """Hydra looks them up by name: a misspelt one would silently never be used."""
    pairs = {
        f"{env}_{name}": (env, name) for env in choices("env") for name in choices("algorithm")
    }
    env, algorithm = pairs[path.stem]
    plain = compose_config([f"env={env}", f"algorithm={algorithm}", "~tuned"])
    assert compose_config([f"env={env}", f"algorithm={algorithm}"]) != plain


def test_the_configuration_stays_short():
    files = (ROOT / "configs").rglob("*.yaml")
    assert sum(len(path.read_text().splitlines()) for path in files) <= 450


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
def test_python_of_the_documents_runs(page, tmp_path, monkeypatch):
    """Each block as it stands, but for the sizes of what it trains and samples."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    test = "hpo_torchrl.Evaluation(InventoryEnv(num_items=2), num_steps=9, seed=0)"
    for block in blocks:
        text = block.replace("num_updates=50", f"num_updates=2, tests={test}").replace(
            "1_000_000", "10_000"
        )
        exec(compile(text, page, "exec"), {"InventoryEnv": InventoryEnv})


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
    listed = subprocess.run(
        ["make", "--dry-run", "train", "test", "lint"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(command in listed for command in ("hpo-train", "pytest", "ruff"))


def test_wheel_in_a_clean_folder_finds_its_configs(tmp_path):
    """And its commands do not wait for what only pictures and comparisons need."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, str(site), str(wheel)], check=True, capture_output=True)
    program = (
        "import sys; from hpo_torchrl.experiments import cli, config; "
        "print(*sys.modules); print(cli.__file__); print(config.CONFIGS); cli.train(['--cfg'])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    loaded, module, configs, *printed = shown.splitlines()
    assert module.startswith(str(site))
    assert configs.startswith(str(site))
    assert "fixed_cost_per_item: 64.0" in "\n".join(printed)
    assert "hpo_torchrl.experiments.run" in loaded.split()
    assert not {*loaded.split()} & {"matplotlib", "scipy.stats", "pyarrow", "tensorboard"}
