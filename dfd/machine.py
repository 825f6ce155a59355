"""What the machine gives to this process: cores, and memory that it keeps."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed() -> bool:
    """Let the C library keep freed blocks up to 1 GiB, where it is glibc; say whether it will.

    It would give large ones back to the kernel at once and get them anew, page by page and zeroed, in each step:
    6 to 8 % of a training step on two cores (PERFORMANCE.md), for about a tenth more memory at the peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))
