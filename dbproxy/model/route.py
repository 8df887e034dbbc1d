"""Where a request went instead of where it was sent, and why: what is stored and explained of a route.

Values only. Invariant: names, numbers and reasons, never message text, never a credential.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dbproxy.model.usage import Usage

#: What became of a decision: another model answered; the request stayed where it was sent; it was tried elsewhere, and
#: the client's own upstream answered then; it failed.
ROUTED, DECLINED, FELL_BACK, FAILED = "routed", "declined", "fell back", "failed"
OUTCOMES: Final = (ROUTED, DECLINED, FELL_BACK, FAILED)
#: The header field that names the model that answered instead.
ROUTED_MODEL: Final = b"x-dbproxy-routed-model"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try. ``status`` is the upstream's, 0 without an answer; ``ms`` until its answer began or failed."""

    provider: str
    model: str
    status: int = 0
    ms: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """One request's route. ``provider`` and ``model`` are those that answered, "" for the client's own upstream.

    ``rule`` is the rule as its author wrote it, ``reason`` why it fitted, or why the request stayed. ``usage`` is the
    upstream's own count (the client is told it in its own measure, times ``scale``); None where another did not answer.
    """

    outcome: str
    provider: str = ""
    model: str = ""
    rule: str = ""
    reason: str = ""
    scale: float = 1.0
    notes: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    usage: Usage | None = None

    @property
    def target(self) -> str:
        """Provider and model that answered, "" for the client's own upstream."""
        return f"{self.provider}:{self.model}" if self.provider else ""
