"""The documents: their Python runs, their links lead somewhere, and the site has every name."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import pytest
import yaml
from documents import ROOT, SMALL_RUN, pages, python_of, run_python
from shrunk import SMALL, TINY

from hpo_torchrl.experiments.cli import train

HOOKS = ROOT / "docs" / "hooks"
EXTENDING = ROOT / "examples" / "extending"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
needs_site = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="needs the extra 'docs'"
)


# -- what runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in pages() if python_of(ROOT / page)])
def test_python_of_the_documents_runs(page, tmp_path, monkeypatch, undrawn):
    """Every page from top to bottom, but for the sizes of what it trains and samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "path", list(sys.path))
    run_python(page, {"SMALL": SMALL_RUN})
    sys.modules.pop("policy", None)  # what a page has exported


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_what_their_cells_gave(notebook):
    """In order, without an error, with a text and a picture at least."""
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(output["output_type"] == "stream" for output in outputs)


def test_hybrid_actions_take_forty_lines(capsys):
    path = ROOT / "examples" / "hybrid_actions.py"
    runpy.run_path(str(path))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["PPO", "HPO"]
    assert len(path.read_text().splitlines()) <= 45


def extend(name: str):
    return runpy.run_path(str(EXTENDING / f"{name}.py"))["main"]


def test_the_loss_of_ones_own_keeps_actions_small():
    sizes = extend("loss")(updates=6)
    assert sizes[1.0] < 0.9 * sizes[0.0]


@pytest.mark.parametrize("name", ["algorithm", "network"])
def test_the_algorithm_and_the_network_of_ones_own_learn(name):
    costs = extend(name)(updates=12)
    assert costs["last"] < 0.7 * costs["first"]


def test_the_environment_of_ones_own_learns(undrawn):
    costs = extend("environment")(updates=15)
    assert costs["after"] < costs["before"]


@pytest.mark.parametrize("path", sorted(EXTENDING.glob("*.py")), ids=lambda path: path.stem)
def test_the_command_in_each_file_trains_it(path, tmp_path, monkeypatch, undrawn):
    (words,) = re.findall(r"^hpo-train (.*?)(?:  +#.*)?$", path.read_text(), re.MULTILINE)
    monkeypatch.chdir(EXTENDING)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    small = [*TINY, "evaluation.tests.test={batch_size: 8, num_steps: 20}"]
    if "env._target_" not in words:
        small = [text for text in SMALL if path.stem != "network" or "policy.hidden" not in text]
    train([*words.split(), *small, "reference=none", f"output_dir={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "summary.json").exists()


# -- links and pages ----------------------------------------------------------------------------


def broken_links(text: str, folder: Path) -> list[str]:
    """Return the relative links of a page in a folder that lead nowhere."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", re.sub(r"`[^`]*`", "", text))
    paths = [target for target in targets if not re.match(r"[a-z]+:", target)]
    return [target for target in paths if not (folder / target).exists()]


@pytest.mark.parametrize("page", [*pages(), "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(page):
    path = ROOT / page
    if path.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"])
    else:
        text = path.read_text()
    assert broken_links(text, path.parent) == []


def test_a_link_that_leads_nowhere_is_noticed():
    text = "[a](README.md#x) [b](docs/nowhere.md) [c](https://x.org) `[d](no.md)`"
    assert broken_links(text, ROOT) == ["docs/nowhere.md"]


def entries(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [
        page for part in (nav.values() if isinstance(nav, dict) else nav) for page in entries(part)
    ]


def test_the_navigation_has_every_page():
    nav = entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    docs = {page.removeprefix("docs/") for page in pages()} - {"README.md"}
    assert len(nav) == len(set(nav))
    assert docs <= set(nav)


def test_each_public_question_has_its_answer():
    text = (ROOT / "docs" / "questions.md").read_text()
    rows = re.findall(r"^\| \[(.*?)\]\(#", text, re.MULTILINE)
    parts = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert len(rows) >= 15
    assert rows == list(parts)
    assert all("```python" in part or "```bash" in part for part in parts.values())


# -- the site -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as ``make docs`` builds it: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@needs_site
def test_the_site_describes_every_public_name(site):
    data = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(data.split(b"\n", 4)[4]).decode().splitlines()
    described = {line.split(" ")[0] for line in lines}
    sys.path.insert(0, str(HOOKS))
    try:
        from public import rooms, where
    finally:
        sys.path.remove(str(HOOKS))
    names = [(package, name) for package, offered in rooms().items() for name in offered]
    assert len(names) > 80
    assert [pair for pair in names if where(*pair) not in described] == []


@needs_site
def test_the_site_needs_no_network_and_shows_no_markup(site):
    for path in site.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?:[^"]+)"', text)
        assert [url for url in loaded if "canonical" not in url] == [], path.name
        shown = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert not re.search(r":(class|func|meth|math|mod|data|attr):|\.\. math::", shown), path
        assert "--8<--" not in text, path.name
        assert "arithmatex" not in text, path.name


@needs_site
def test_formulas_are_well_formed(site):
    """A browser draws nothing of a formula that is not."""
    found = [
        formula
        for path in site.rglob("*.html")
        for formula in re.findall(r"<math.*?</math>", path.read_text(), re.DOTALL)
    ]
    assert len(found) > 50
    for formula in found:
        assert not re.search(r"\\[a-z]", ET.tostring(ET.fromstring(formula), "unicode")), formula
