"""How a person writes a time or an exchange, in a query string and on the command line.

Pure; no clock: the present comes in. Raises ValueError with what would be right.
"""

from __future__ import annotations

import re
from datetime import datetime

_AGE = re.compile(r"(\d{1,6}(?:\.\d+)?)\s*([smhdw])\Z", re.ASCII)
_UNIX = re.compile(r"\d{9,11}(?:\.\d+)?\Z", re.ASCII)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d+)?)\s*([kmgt]?)(i?)b?\Z", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_age(text: str) -> float:
    """Seconds that ``30m``, ``2h``, ``7d`` or ``4w`` mean."""
    match = _AGE.match(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is no age: write 30m, 2h, 7d or 4w")
    return float(match[1]) * _SECONDS[match[2]]


def parse_when(text: str, now: float) -> float:
    """The Unix seconds that an age, a date, a date with time (local unless it says otherwise) or Unix seconds mean."""
    text = text.strip()
    if _UNIX.match(text):
        return float(text)
    try:
        return now - parse_age(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is no time: write 30m, 2h, 7d, 2026-01-31 or 2026-01-31T12:00") from None


def parse_size(text: str) -> int:
    """Bytes that ``500MB``, ``2GiB`` or ``1000000`` mean."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: write 500MB, 2GB or 1.5GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].lower()])
