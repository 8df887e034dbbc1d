"""The kinds of hooks: how implementations of one hook are called together, and how long each may take.

Data only; imports nothing of dbproxy. Invariant: every hook has exactly one kind, and every kind has a rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: A synchronous implementation promises not to block the event loop. Above this it is counted as slow (seconds).
SLOW_CALL = 0.05

#: So many failures of one implementation in a row put its plugin into quarantine.
QUARANTINE_AFTER = 5


class Kind(Enum):
    """How the implementations of one hook act together."""

    LIFECYCLE = "lifecycle"
    SERVICE = "service"
    ALL = "all"
    DECIDE = "decide"
    TRANSFORM = "transform"
    FILTER = "filter"
    TAP = "tap"
    OBSERVE = "observe"


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for every hook of a kind. ``deadline`` is the default in seconds; None means that none applies."""

    deadline: float | None
    awaitable: bool
    summary: str


RULES: dict[Kind, Rule] = {
    Kind.LIFECYCLE: Rule(
        10.0, True, "Awaited one after the other at start and stop. A plugin whose start-up fails is set aside at once."
    ),
    Kind.SERVICE: Rule(
        None,
        False,
        "Returns long-running async functions. Each runs in a supervised task and is restarted with backoff.",
    ),
    Kind.ALL: Rule(1.0, True, "Every implementation is asked, every answer is used. None means: nothing to say."),
    Kind.DECIDE: Rule(
        1.0, True, "The first answer that is neither None nor False wins; later implementations are not asked."
    ),
    Kind.TRANSFORM: Rule(
        2.0, True, "A value is threaded through all implementations. None means: unchanged. A failing step is skipped."
    ),
    Kind.FILTER: Rule(
        None,
        False,
        "Returns a synchronous object that stands in the stream. When it fails it is taken out of the stream.",
    ),
    Kind.TAP: Rule(
        5.0, False, "Returns an object that sees the stream off its path. A slow or dead tap loses its own events only."
    ),
    Kind.OBSERVE: Rule(
        5.0,
        True,
        "Told through a bounded queue of the plugin's own, never awaited by the request. Overflow is counted.",
    ),
}
