"""How freed memory is kept. The C library's business; both backends allocate through it on a CPU."""

from __future__ import annotations

import ctypes
import functools
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


@functools.cache
def keep_freed_memory() -> bool:
    """Keep large blocks that are freed for the next ones, where the C library is glibc; whether it is.

    By itself glibc gives a block of more than 32 MiB back to the system when it is freed. A train step allocates such
    blocks again and again, and each time the system has to fill them with zeros: a quarter of a millisecond a MiB. What
    a process holds then is what it held at most. In an arena of a thread's own no block can be so large: there is but
    one arena from the call on, which has to come before JAX starts its threads. Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    options = (_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)
    return all(library.mallopt(option, value) for option, value in options)
