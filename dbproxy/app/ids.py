"""Ids of exchanges. Imports nothing of dbproxy. Invariant: they sort by the time at which they were made."""

from __future__ import annotations

import itertools
import secrets
import time

_ids = itertools.count(secrets.randbits(23))  # several proxies may share one store


def new_id() -> str:
    """A sortable exchange id: milliseconds since 1970 and a counter, in hexadecimal."""
    return f"{time.time_ns() // 1_000_000:012x}{next(_ids) & 0xFFFFFF:06x}"
