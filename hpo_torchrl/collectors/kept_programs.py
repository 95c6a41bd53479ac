"""Programs of XLA, kept on disk for later runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax

# The most bytes on disk, of which the least recently used go first, and how many seconds a program
# must have taken.
_KEPT_BYTES, _KEPT_SECONDS = 1 << 28, 0.05
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
