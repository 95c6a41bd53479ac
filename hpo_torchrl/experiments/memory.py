"""What the C library does with memory that is freed."""

from __future__ import annotations

import contextlib
import ctypes
import sys

# Parameters of glibc's mallopt(3), and the most that older versions take for the second.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MOST = -1, -3, 32 * 2**20


def keep_freed_memory() -> None:
    """Let the process keep memory that is freed, for the tensors that come next.

    Handing large tensors back to the system and fetching them again, page by page, takes a tenth of
    the time of many seeds at once. It is undone by nothing, and does nothing where there is no
    glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 2**30)
        if not mallopt(_MMAP_THRESHOLD, 2**30):
            mallopt(_MMAP_THRESHOLD, _MOST)
