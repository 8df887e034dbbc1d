"""The account's limits as an answer's header fields state them.

Owns the names of those fields (API facts 1.8). Knows no clock and does no I/O. Invariants: what a header does not say
is not made up: a window without a field is absent, a number that cannot be read counts as not given. The ``unified``
fields are seen but not specified, so any window that they name is taken as it is.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import TYPE_CHECKING, Final

from dbproxy.model.record import RateLimit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.exchange import Fields

#: The verdict over all windows of a subscription; every other unified window stands under its own name.
OVERALL: Final = "unified"
#: Length in seconds of the windows that have one.
LENGTHS: Final = {"5h": 5 * 3600.0, "7d": 7 * 86_400.0, "7d_oi": 7 * 86_400.0}

_UNIFIED: Final = re.compile(
    r"anthropic-ratelimit-unified-(?:([a-z0-9][a-z0-9_-]{0,39})-)?(status|utilization|reset)\Z"
)
_BUCKET: Final = re.compile(
    r"anthropic-(?:ratelimit-|(?=priority-|fast-))([a-z][a-z0-9-]{0,39})-(limit|remaining|reset)\Z"
)
_STATUS: Final = re.compile(r"[A-Za-z0-9_.:-]{1,40}\Z")
_PREFIX: Final = b"anthropic-"
_MOST: Final = 32


def rate_limits(fields: Fields) -> tuple[RateLimit, ...]:
    """The limits among an answer's header fields, in their order. Of a field that is sent twice, the first counts."""
    found: dict[str, dict[str, str]] = {}
    for raw, value in fields.pairs():
        if not raw.startswith(_PREFIX):
            continue
        name = raw.decode("latin-1")
        match = _UNIFIED.match(name)
        window = (match[1] or OVERALL) if match else ""
        if match is None:
            match = _BUCKET.match(name)
            if match is None or match[1].startswith("unified"):
                continue
            window = match[1]
        if window in found or len(found) < _MOST:
            found.setdefault(window, {}).setdefault(match[2], value.decode("latin-1").strip())
    return tuple(_limit(window, fields) for window, fields in found.items())


def _limit(window: str, said: dict[str, str]) -> RateLimit:
    status = said.get("status", "")
    return RateLimit(
        window=window,
        status=status if _STATUS.match(status) else "",
        utilization=_number(said.get("utilization", ""), -1.0),
        resets=_time(said.get("reset", "")),
        limit=int(_number(said.get("limit", ""), 0.0)),
        remaining=int(_number(said.get("remaining", ""), 0.0)),
    )


def _number(text: str, default: float) -> float:
    try:
        value = float(text)
    except ValueError:
        return default
    return value if 0 <= value < 1e15 else default


def _time(text: str) -> float:
    """Unix seconds from either form in use: seconds (subscriptions) or RFC 3339 (API keys)."""
    seconds = _number(text, 0.0)
    if seconds or not text[:1].isdigit():
        return seconds
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    # Without an offset it would be this machine's local time: not given.
    return max(moment.timestamp(), 0.0) if moment.tzinfo is not None and math.isfinite(moment.timestamp()) else 0.0


def overall_status(limits: Iterable[RateLimit]) -> str:
    """``allowed``, ``allowed_warning``, ``rejected`` or another word over all windows; "" where none was said."""
    return next((limit.status for limit in limits if limit.window == OVERALL), "")
