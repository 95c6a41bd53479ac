"""Pages that the site makes of other files: the API, sources, notebooks, documents outside docs/.

MkDocs calls the functions named ``on_...``. Links keep the form that they have in the repository,
so that they work there too; here they lead to the pages. Formulas between dollars become MathML.
"""

from __future__ import annotations

import html
import importlib
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from formulas import formula
from mkdocs.structure.files import File, Files
from public import rooms, where

ROOT = Path(__file__).parents[2]
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# Sources that a document may link to, with their language, and where their pages are.
SOURCES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".csv": "text"}
SOURCE_PAGES = "sources/"


# -- the API ------------------------------------------------------------------------------------


def api_pages() -> dict[str, str]:
    """Return a page for each package; a name of two packages is described by the inner one."""
    shown: dict[str, str] = {}  # by path: where it is described
    pages = {}
    for package, names in sorted(rooms().items(), key=lambda item: -item[0].count(".")):
        first = (importlib.import_module(package).__doc__ or "").strip().split("\n")[0]
        lines, also = [f"# {package}", first], []
        for name in names:
            path = where(package, name)
            if path in shown:
                also.append(f"[`{name}`][{path}]")
            else:
                shown[path] = package
                lines.append(f"::: {path}")
        lines[2:2] = [f"Described elsewhere: {', '.join(also)}."] if also else []
        pages[f"api/{package}.md"] = "\n\n".join(lines) + "\n"
    return pages


# -- sources, notebooks, documents --------------------------------------------------------------


def source_page(name: str) -> str:
    """Return the page of a file that is not Markdown: its text."""
    path = ROOT / name
    return f'# {path.name}\n\n```{SOURCES[path.suffix]} title="{name}"\n{path.read_text()}```\n'


def linked_sources() -> set[str]:
    """Return the sources, as paths in the repository, that documents link to."""
    documents = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs" / "notebooks").glob("*.ipynb")]
    found = set()
    for path in [*documents, *(ROOT / source for source in OUTSIDE)]:
        for target in re.findall(r"\]\(([^)#\s:]+)", path.read_text()):
            file = (path.parent / target).resolve()
            if file.suffix in SOURCES and file.is_file():
                found.add(file.relative_to(ROOT).as_posix())
    return found


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown, its pictures within the page."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![what the cell draws](data:image/png;base64,{picture})")
                continue
            text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
            parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def generated() -> Iterator[tuple[str, str]]:
    """Yield all pages that are made, with their text."""
    yield from api_pages().items()
    for source, page in OUTSIDE.items():
        yield page, (ROOT / source).read_text()
    for name in sorted(linked_sources()):
        yield f"{SOURCE_PAGES}{name}.md", source_page(name)
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        yield path.relative_to(ROOT / "docs").with_suffix(".md").as_posix(), notebook_page(path)


# -- MkDocs -------------------------------------------------------------------------------------


def on_config(config: Any) -> None:
    """Fill the part of the navigation that is made: a page for each package."""
    packages = sorted(Path(page).stem for page in api_pages())
    for section in config.nav:
        for title, entries in section.items():
            if entries == "api/":
                names = {name: name.removeprefix("hpo_torchrl.") for name in packages}
                section[title] = [{shown: f"api/{name}.md"} for name, shown in names.items()]
            elif isinstance(entries, list):
                section[title] = [re.sub(r"\.ipynb$", ".md", entry) for entry in entries]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made; sources are found by links, not by the navigation."""
    for page, text in generated():
        file = File.generated(config, page, content=text)
        if page.startswith(SOURCE_PAGES):
            file.inclusion = file.inclusion.NOT_IN_NAV
        files.append(file)
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Turn links to files of the repository into links to their pages."""
    here = posixpath.dirname(page.file.src_uri)
    source = posixpath.dirname(_repository_path(page.file.src_uri))

    def moved(found: re.Match[str]) -> str:
        target, anchor = found[2], found[3] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(source, target))
        place = _page_of(path)
        if place is None:
            return found[0]
        return f"{found[1]}({posixpath.relpath(place, here or '.')}{anchor})"

    return re.sub(r"(!?\[[^\]]*\])\(([^)#\s]+)(#[^)\s]*)?\)", moved, markdown)


def on_page_content(content: str, **others: Any) -> str:
    """Turn formulas into MathML."""
    found = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
    kinds = {"span": "inline", "div": "block"}
    return found.sub(lambda part: formula(html.unescape(part[2]), kinds[part[1]]), content)


def _repository_path(page: str) -> str:
    """Return the file of the repository that a page is made of."""
    for source, made in OUTSIDE.items():
        if page == made:
            return source
    return f"docs/{page}"


def _page_of(path: str) -> str | None:
    """Return the page that shows a file of the repository, if any does."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/").replace(".ipynb", ".md")
    if Path(path).suffix in SOURCES and (ROOT / path).is_file():
        return f"{SOURCE_PAGES}{path}.md"
    return None
