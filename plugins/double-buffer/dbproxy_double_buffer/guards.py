"""What keeps checkpoints from costing too much: a breaker for each account and model, and a daily budget of tokens.

Pure state machines: every call brings the time (Unix seconds). Invariants: a breaker that is open lets exactly one try
through when its pause is over; what an upstream asked for (retry-after) is never undercut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: Failures in a row after which a breaker opens, its first pause and its longest (seconds).
OPEN_AFTER: Final = 3
FIRST_PAUSE: Final = 60.0
LONGEST_PAUSE: Final = 3600.0
#: Tries of one checkpoint, and the pause before the second (seconds; doubled before each further one).
TRIES: Final = 3
RETRY_PAUSE: Final = 2.0
#: Statuses after which the same request may do better (client facts 5); 0 stands for a broken connection.
RETRYABLE: Final = frozenset({0, 408, 409, 429, 500, 502, 503, 504, 529})
DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """Of one account and model. Closed while ``until`` lies in the past and ``failures`` are few."""

    failures: int = 0
    until: float = 0.0
    reason: str = ""

    def allows(self, now: float) -> bool:
        """May a checkpoint be tried now?"""
        return now >= self.until

    def failed(self, now: float, reason: str, retry_after: float = 0.0) -> Breaker:
        """After one more failure; ``retry_after`` (seconds) is what the upstream asked for."""
        failures = self.failures + 1
        pause = retry_after
        if failures >= OPEN_AFTER:
            pause = max(pause, min(FIRST_PAUSE * 2.0 ** (failures - OPEN_AFTER), LONGEST_PAUSE))
        return Breaker(failures, max(self.until, now + pause), reason)

    def succeeded(self) -> Breaker:
        """After a good checkpoint."""
        return Breaker()


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens (read, written and made) that checkpoints may use within a day; ``limit`` 0 sets none."""

    limit: int
    used: int = 0
    day: int = 0

    def allows(self, tokens: int, now: float) -> bool:
        """Is there room for a checkpoint of about so many tokens?"""
        return self.limit <= 0 or self.on(now).used + tokens <= self.limit

    def spent(self, tokens: int, now: float) -> Budget:
        """After a checkpoint has used so many."""
        today = self.on(now)
        return replace(today, used=today.used + tokens)

    def on(self, now: float) -> Budget:
        """The budget of the day of ``now`` (UTC)."""
        day = int(now // DAY)
        return self if day == self.day else Budget(self.limit, 0, day)


@dataclass(frozen=True, slots=True)
class Retry:
    """Whether and when (seconds from now) a failed checkpoint request is tried again."""

    again: bool
    pause: float = 0.0


def retry(status: int, attempt: int, *, retry_after: float = 0.0, patience: float = 120.0) -> Retry:
    """After try number ``attempt`` (1, 2, ...) ended with ``status`` (0: the connection broke).

    More than ``patience`` seconds are never waited: by then another request will have come.
    """
    if attempt >= TRIES or status not in RETRYABLE:
        return Retry(False)
    pause = max(retry_after, RETRY_PAUSE * 2.0 ** (attempt - 1))
    return Retry(True, pause) if pause <= patience else Retry(False)
