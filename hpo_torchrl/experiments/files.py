"""The files of ``configs/``: where they lie, and what they say of a key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_PACKAGE = Path(__file__).parents[1]
# The wheel carries the configs inside the package; a checkout has them beside it.
CONFIGS = next(
    path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()
)
# Sections whose keys are always the same, those of this file.
_FIXED = {"collect": "default", "evaluation": "default", "trainer": "default", "logger": "csv"}


@cache
def fixed_keys(section: str) -> tuple[str, ...]:
    """Return the keys of a section that is the same for all problems and algorithms."""
    return tuple(_keys(CONFIGS / section / f"{_FIXED[section]}.yaml", section))


def choices_with(section: str, key: str) -> list[str]:
    """Return the choices of a section, as ``section=name``, whose files list a key."""
    files = sorted((CONFIGS / section).glob("*.yaml"))  # presets change what these list
    return [f"{section}={path.stem}" for path in files if key in _keys(path, section)]


def comment_on(section: str, name: str, key: str) -> str:
    """Return what the file of a choice says of a key, or nothing."""
    path = CONFIGS / section / f"{name}.yaml"
    text = path.read_text() if path.is_file() else ""
    found = re.search(rf"^ *{re.escape(key)}:.*?# *(.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def explained(chosen: Mapping[str, str | None], folder: str | Path = CONFIGS) -> str:
    """Return the texts of the files that a configuration is composed of, its own words first.

    Args:
        chosen: the choice of each section, as Hydra knows them.
        folder: where further files lie than in ``configs/``.
    """
    names = ["train", *(f"{section}/{name}" for section, name in chosen.items() if name)]
    texts: dict[str, str] = {}
    while names:
        name = names.pop(0)
        found = [Path(at) / f"{name}.yaml" for at in (folder, CONFIGS)]
        path = next(filter(Path.is_file, found), None)
        if name.startswith("hydra") or path is None or name in texts:
            continue
        title = name.replace("/", "=", 1)
        texts[name] = f"# ---- {title} ----\n{_without_wiring(path.read_text())}"
        if name != "train":  # whose sections are those that were chosen
            bases = (yaml.safe_load(path.read_text()) or {}).get("defaults", [])
            names[:0] = [base[1:] for base in bases if str(base).startswith("/")]
    return "\n".join(texts.values())


def _without_wiring(text: str) -> str:
    """Leave out of a file what composes it, which is no setting."""
    block = r"(?:#.*\n)?hydra:\n(?: +.*\n)+|defaults:\n(?: +.*\n)+"
    text = re.sub(rf"^(?:{block})", "", text, flags=re.MULTILINE)
    return re.sub(r"^(# @package.*|defaults:.*|_target_:.*)\n", "", text, flags=re.MULTILINE)


def _keys(path: Path, section: str) -> dict[str, Any]:
    """Return the section of a file, which a file for the whole configuration names."""
    content = yaml.safe_load(path.read_text()) or {}
    return content.get(section, {} if "defaults" in content else content)
