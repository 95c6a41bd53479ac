"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import os
import platform

# Parameters of mallopt in glibc's <malloc.h>: blocks from this size on are mapped one by one; free
# memory above this at the end of the heap goes back to the system; so many heaps there are.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_BLOCK, _MOST_FREE = 1 << 28, 1 << 30


def keep_freed_memory() -> bool:
    """Let the C library keep up to a gigabyte of freed memory for the tensors to come.

    By default it gives large blocks back to the system at once. Every update has tensors of the
    same sizes, and gets their memory anew, page by page and filled with zeros: with large batches
    that takes up to half of the time. Kept, blocks of many sizes lie between each other, so that
    the most memory that is used grows by up to a quarter. Threads share one heap: an empty part
    of the heaps of their own, which XLA's threads would have, goes back at once.

    An environment variable ``MALLOC_...`` (see ``man mallopt``) has the last word, and other C
    libraries than glibc are left as they are.

    Returns:
        Whether memory is kept from now on.

    Examples:
        >>> from hpo_torchrl.core.memory import keep_freed_memory
        >>> kept = keep_freed_memory()
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    change = ctypes.CDLL(None).mallopt
    limits = {_MMAP_THRESHOLD: _LARGEST_BLOCK, _TRIM_THRESHOLD: _MOST_FREE, _ARENA_MAX: 1}
    return all(change(name, size) == 1 for name, size in limits.items())
