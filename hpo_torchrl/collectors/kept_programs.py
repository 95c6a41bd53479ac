"""Programs of XLA, kept on disk for later runs, and what they are compiled from."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import export

# The most bytes on disk, of which the least recently used go first, and how many seconds a program
# must have taken.
_KEPT_BYTES, _KEPT_SECONDS = 1 << 28, 0.05
# The most functions that are kept beside them.
_MOST_LOWERED = 2000
# What a process may be writing right now.
_WRITING_SECONDS = 60


def keep_programs() -> None:
    """Let JAX keep what it compiles on disk, for later runs of the same program.

    Programs are known by all that they are made of, with JAX's version; the folder,
    ``~/.cache/hpo_torchrl``, has a part for each kind of processor. Where it cannot be made,
    nothing is kept. Whoever has told JAX where to keep them (``JAX_COMPILATION_CACHE_DIR``) has the
    last word.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None:
        return
    kind = hashlib.sha256(_processor().encode()).hexdigest()[:16]
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "hpo_torchrl" / f"xla-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        _mend(folder)
    except (OSError, RuntimeError):  # nowhere to write, no home: JAX would warn of each program
        return
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_compilation_cache_max_size", _KEPT_BYTES)
    config.update("jax_persistent_cache_min_compile_time_secs", _KEPT_SECONDS)


def _mend(folder: Path) -> None:
    """Take programs away that a process was writing when it was killed.

    They lack the time of their last use, without which JAX would keep nothing any more.
    """
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process has done it
            used = path.with_name(path.name.removesuffix("-cache") + "-atime")
            if not used.exists() and time.time() - path.stat().st_mtime > _WRITING_SECONDS:
                path.unlink()


def _processor() -> str:
    """Return what a program compiled for this processor may rely on."""
    facts = Path("/proc/cpuinfo")
    if not facts.exists():
        return platform.processor()
    lines = {*facts.read_text().splitlines()}
    return "\n".join(sorted(line for line in lines if line.startswith(("model name", "flags"))))


def kept(function: Callable[..., Any], recipe: str) -> Callable[..., Any]:
    """Return a function as JAX compiles it, which later runs need not trace any more.

    JAX finds a compiled program by what it has translated a function to, which takes longer than to
    load the program. What it was translated to is kept too, in a folder beside the programs, by the
    recipe, the shapes of what is given, and the code that translates. Where it cannot be kept, the
    function is traced in every run.

    Args:
        function: of arrays, which always have the same shapes.
        recipe: all that the function does.
    """
    made: list[Callable[..., Any]] = []

    def call(*given: Any) -> Any:
        if not made:
            made.append(_lowered(function, recipe, given))
        return made[0](*given)

    return call


def _lowered(function: Callable[..., Any], recipe: str, given: Any) -> Callable[..., Any]:
    config: Any = jax.config
    plain, programs = jax.jit(function), config.jax_compilation_cache_dir
    if programs is None or not Path(programs).is_dir():
        return plain
    values, form = jax.tree.flatten(given)
    shapes = [(value.shape, str(value.dtype)) for value in values]
    facts = (jax.__version__, _code(), function.__name__, recipe, shapes, form)
    place = Path(programs) / "lowered" / hashlib.sha256(repr(facts).encode()).hexdigest()
    try:
        found = export.deserialize(bytearray(place.read_bytes()))
        os.utime(place)
    except Exception:  # there is none, or a damaged one, of which JAX may say anything
        try:
            found = export.export(plain, platforms=["cpu"])(*given)
        except ValueError:  # an operation that JAX does not promise to know in later versions
            return plain
        _write(place, bytes(found.serialize()))
    return jax.jit(found.call)


def _write(place: Path, content: bytes) -> None:
    """Write a file at once, and take those away that were not used for the longest time."""
    with contextlib.suppress(OSError):  # the disk is full, or another process has done it
        place.parent.mkdir(exist_ok=True)
        known = sorted(place.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in known[: max(0, len(known) - _MOST_LOWERED)]:
            path.unlink()
        part = place.with_suffix(f".{os.getpid()}")
        part.write_bytes(content)
        part.replace(place)


@functools.cache
def _code() -> bytes:
    """Return the code that translates graphs: other code makes other programs of them."""
    names = ("lowering.py", "program.py")
    return b"".join((Path(__file__).parent / name).read_bytes() for name in names)
