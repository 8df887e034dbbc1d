"""How the worker's memory behaves: what is given back to the system, and what the collector looks at.

Owns two settings of the process, made once when it begins to serve. Must never import anything of dbproxy.
"""

from __future__ import annotations

import ctypes
import gc
import sys

# From <malloc.h>. Setting either stops glibc from raising both after the first large block was freed, which would let a
# process that once saw a 32 MB body keep tens of megabytes for good.
_M_TRIM_THRESHOLD, _TRIM = -1, 2 * 1024 * 1024
_M_MMAP_THRESHOLD, _MMAP = -3, 1024 * 1024  # above a receive buffer, so that streaming never maps and unmaps


def settle() -> None:
    """Call once everything is imported and the listeners are open. Never fails.

    Freed memory goes back to the system early. The objects of start-up, which live as long as the process, are taken
    out of the collector's sight, so that a full collection need not look at them; in the figures of the bench that made
    no difference that could be measured.
    """
    gc.collect()
    gc.freeze()
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP)
    mallopt(_M_TRIM_THRESHOLD, _TRIM)
