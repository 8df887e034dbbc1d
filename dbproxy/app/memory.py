"""How the worker's memory behaves: what is given back to the system, and what the collector looks at.

Owns three settings of the process, made once when it begins to serve. Must never import anything of dbproxy.
"""

from __future__ import annotations

import ctypes
import gc
import sys

# From <malloc.h>. Setting either stops glibc from raising both after the first large block was freed, which would let a
# process that once saw a 32 MB body keep tens of megabytes for good.
_M_TRIM_THRESHOLD, _TRIM = -1, 2 * 1024 * 1024
_M_MMAP_THRESHOLD, _MMAP = -3, 1024 * 1024  # above a receive buffer, so that streaming never maps and unmaps


_COLLECTED_AFTER = (700, 10, 10)  # as Python has it; the executable starts with far more, see ``proc.frozen``


def settle() -> None:
    """Call once everything is imported and the listeners are open. Never fails.

    Freed memory goes back to the system early. The objects of start-up, which live as long as the process, are taken
    out of the collector's sight, so that a full collection need not look at them; in the figures of the bench that made
    no difference that could be measured. They are not searched for garbage before, which would take 12 ms of the start
    and finds a few hundred objects of 40 000.
    """
    gc.freeze()
    gc.set_threshold(*_COLLECTED_AFTER)
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP)
    mallopt(_M_TRIM_THRESHOLD, _TRIM)
