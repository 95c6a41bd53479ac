"""The files that a run reads: pinned by their content, and found again where they lie now.

A configuration has, besides its sections, ``files``: the SHA-256 digest of every file that one of
its values names, by the full name of that value (``env.path``); and ``units``: what the environment
derived from them, by the full name of the argument that gives it (``env.mean``). A policy thinks in
these units, so they stay what they were where it acts on other data.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils._pytree import tree_leaves_with_path


def pinned(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the digests of the files that it names, if there are any."""
    rest, found = {key: value for key, value in config.items() if key != "files"}, {}
    for path, value in tree_leaves_with_path(rest):
        names = [str(getattr(step, "key", getattr(step, "idx", "."))) for step in path]
        if is_file(value) and "." not in "".join(names):
            found[".".join(names)] = _digest(value)
    return {**rest, "files": found} if found else rest


def moved(config: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration with other paths of its files, by the names of the values.

    Raises:
        ValueError: a name is not that of a file of the run.
    """
    found, known = copy.deepcopy({**config}), config.get("files", {})
    for key, path in files.items():
        if key not in known:
            raise ValueError(
                f"{key} is not a file that this run was trained on, and a run keeps its settings: "
                f"what can lie elsewhere now is {', '.join(known) or 'nothing'}."
            )
        place, name = _place(found, key)
        place[name] = str(Path(path).absolute())
    return found


def files_of(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield name, path, pinned digest and digest of today of each file; ``None`` if missing."""
    for key, known in config.get("files", {}).items():
        place, name = _place(config, key)
        yield key, place[name], known, _digest(place[name]) if is_file(place[name]) else None


def check_files(
    config: Mapping[str, Any], where: str | Path, accepted: Collection[str] = ()
) -> None:
    """Check that the files of a run have the content that it is pinned to.

    Args:
        config: the configuration.
        where: folder of the run.
        accepted: full names of those that may have another content.

    Raises:
        FileNotFoundError: a file is missing; the message says how to name its new place.
        ValueError: a file has another content.
    """
    for key, path, known, found in files_of(config):
        if found is None:
            raise FileNotFoundError(
                f"{path} is missing, and the run in {where} was trained on it ({key}). If it has "
                f"moved, say where it is: hpo-train resume={where} {key}=FILE, hpo-eval {where} "
                f"{key}=FILE, or load_run(..., files={{{key!r}: FILE}})."
            )
        if found != known and key not in accepted:
            raise ValueError(
                f"{path} ({key}) is not what the run in {where} was trained on: its SHA-256 was "
                f"{known[:12]}..., is {found[:12]}.... Name the right file by {key}=FILE. To test "
                f"on this one all the same: hpo-eval {where} {key}={path}; to go on training with "
                f"it: hpo-train resume={where} {key}={path} changed_files=true."
            )


def with_units(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of the environment, with the pinned units where they say none."""
    found = copy.deepcopy({**settings})
    for key, unit in config.get("units", {}).items():
        with suppress(LookupError, TypeError):  # it may be of a demand that this test replaces
            place, name = _place({"env": found}, key)
            if place.get(name) is None:
                place[name] = unit
    return found


def is_file(value: Any) -> bool:
    """Return whether a value of a configuration names a file that exists."""
    return isinstance(value, str) and bool(Path(value).suffix) and Path(value).is_file()


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _place(config: Any, key: str) -> tuple[Any, Any]:
    """Return what holds the value of a full name, and its name or number there."""
    *path, last = key.split(".")
    for name in path:
        config = config[int(name) if isinstance(config, list) else name]
    return config, int(last) if isinstance(config, list) else last
