"""The files that a run reads: pinned by their content, and found again where they lie now.

A configuration has, besides its sections, ``files``: the SHA-256 digest of every file that one of
its values names, by the full name of that value (``env.path``); and ``units``: what the environment
derived from them, by the full name of the argument that gives it (``env.mean``). A policy thinks in
these units, so they stay what they were where it acts on other data.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def digest(path: str | Path) -> str:
    """Return the SHA-256 digest of a file, which is read once unless it changes."""
    version = Path(path).stat()
    return _digest(str(path), version.st_mtime_ns, version.st_size)


@functools.lru_cache(maxsize=64)
def _digest(path: str, modified: int, size: int) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def pinned(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the digests of the files that it names, if there are any."""
    rest = {key: value for key, value in config.items() if key != "files"}
    found = {key: digest(value) for key, value in _leaves(rest) if is_file(value)}
    return {**rest, "files": found} if found else rest


def moved(config: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration with other paths of its files.

    Args:
        config: the configuration.
        files: paths, by the full names of the values.

    Raises:
        ValueError: a name is not that of a file of the run.
    """
    config, known = copy.deepcopy(dict(config)), config.get("files", {})
    for key, path in files.items():
        if key not in known:
            raise ValueError(
                f"{key} is not a file that this run was trained on, and a run keeps its settings: "
                f"what can lie elsewhere now is {', '.join(known) or 'nothing'}."
            )
        place, name = _place(config, key)
        place[name] = str(Path(path).absolute())
    return config


def check_files(
    config: Mapping[str, Any], where: str | Path, accepted: Collection[str] = ()
) -> None:
    """Check that the files of a run have the content that it is pinned to.

    One without a digest, of a run older than digests, is taken with a warning: to refuse it would
    lose the run, and nobody knows that it changed.

    Args:
        config: the configuration.
        where: folder of the run.
        accepted: full names of those that may have another content.

    Raises:
        FileNotFoundError: a file is missing; the message says how to name its new place.
        ValueError: a file has another content.
    """
    known = config.get("files", {})
    for key in pinned(config).get("files", {}):
        if key not in known:
            warnings.warn(
                f"{where} does not say which content {key} had when it was trained: the file "
                f"{path_of(config, key)} is taken as it is.",
                stacklevel=2,
            )
    for key, content in known.items():
        path = path_of(config, key)
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path} is missing, and the run in {where} was trained on it ({key}). If it has "
                f"moved, say where it is: hpo-train resume={where} {key}=FILE, hpo-eval {where} "
                f"{key}=FILE, or load_run(..., files={{{key!r}: FILE}})."
            )
        if key not in accepted and (found := digest(path)) != content:
            raise ValueError(
                f"{path} ({key}) is not what the run in {where} was trained on: its SHA-256 was "
                f"{content[:12]}..., is {found[:12]}.... Name the right file by {key}=FILE. To "
                f"test on this one all the same: hpo-eval {where} {key}={path}; to go on training "
                f"with it: hpo-train resume={where} {key}={path} changed_files=true."
            )


def with_units(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of the environment, with the pinned units where they say none."""
    settings = copy.deepcopy(dict(settings))
    for key, unit in config.get("units", {}).items():
        with suppress(LookupError, TypeError):  # it may be of a demand that this test replaces
            place, name = _place({"env": settings}, key)
            if place.get(name) is None:
                place[name] = unit
    return settings


def path_of(config: Mapping[str, Any], key: str) -> str:
    """Return the path of a pinned file."""
    place, name = _place(config, key)
    return str(place[name])


def is_file(value: Any) -> bool:
    """Return whether a value of a configuration names a file that exists."""
    return isinstance(value, str) and bool(Path(value).suffix) and Path(value).is_file()


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """All values of a configuration, by their full names."""
    if isinstance(value, (Mapping, list)):
        items: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, entry in items:
            if "." not in str(key):
                yield from _leaves(entry, f"{at}.{key}".lstrip("."))
    else:
        yield at, value


def _place(config: Any, key: str) -> tuple[Any, Any]:
    """Return what holds the value of a full name, and its name or number there."""
    *path, last = key.split(".")
    for name in path:
        config = config[int(name) if isinstance(config, list) else name]
    return config, int(last) if isinstance(config, list) else last
