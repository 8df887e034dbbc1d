"""When to make a checkpoint: one decision for each answer that the client got.

Pure, and quick: it is asked for every answer of every conversation. Tokens are counted as the client counts them:
input, cache reads, cache writes and output of the last answer (client facts 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dbproxy_double_buffer.phases import Phase

if TYPE_CHECKING:
    from dbproxy_double_buffer.wall import Wall

#: Statuses of the account's windows at which no call of our own is made any more.
STAND_DOWN: Final = frozenset({"allowed_warning", "rejected", "queueing_soft", "queueing_hard"})
#: In adaptive mode a checkpoint starts when the wall is nearer than so many times the time that a summary takes.
SAFETY: Final = 3.0


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The settings that count here. ``mode`` is ``on``, ``observe`` or ``off``."""

    mode: str = "on"
    checkpoint: float = 0.70
    swap: float = 0.80
    floor_tokens: int = 50_000
    log_tokens: int = 50_000  # the log's budget; the smaller of this and a quarter of the window is used
    adaptive: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What is known of the buffer. ``checkpoint_tokens`` is the context that the newest checkpoint summarised, 0
    without one; ``growth`` tokens a second, ``summary_seconds`` how long a summary takes here, both 0 if unknown."""

    phase: Phase = Phase.IDLE
    checkpoint_tokens: int = 0
    growth: float = 0.0
    summary_seconds: float = 0.0
    native: bool = False  # the model is making the client's own summary right now
    precomputed: bool = False  # the client has one already that it asked for ahead of time


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer that has just come. ``limits`` are the statuses of the account's windows."""

    context_tokens: int
    limits: frozenset[str] = frozenset()
    passthrough: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """``start`` a checkpoint (or a newer one), call the swap ``ready``; ``act`` is False where it is only noted."""

    start: bool = False
    ready: bool = False
    act: bool = True
    reason: str = ""


def decide(state: State, answer: Answer, wall: Wall, thresholds: Thresholds) -> Decision:
    """What this answer gives reason for."""
    if answer.passthrough or thresholds.mode == "off":
        return Decision(act=False, reason="off")
    tokens = answer.context_tokens
    act, why = True, ""
    if thresholds.mode == "observe":
        act, why = False, "observing"
    elif not answer.limits.isdisjoint(STAND_DOWN):
        act, why = False, "the account's window is nearly spent"
    if tokens < thresholds.floor_tokens:
        return Decision(act=act, reason=why or "below the floor")
    if state.native:
        return Decision(act=act, reason=why or "the client is having its own summary made")
    start = tokens >= thresholds.checkpoint * wall.tokens or _soon(state, tokens, wall, thresholds)
    ready = tokens >= thresholds.swap * wall.tokens
    phase = state.phase
    if phase is Phase.IDLE and state.precomputed:
        return Decision(act=act, reason=why or "the client has a summary that it asked for ahead of time")
    if phase is Phase.IDLE:
        return Decision(start, False, act, why or ("threshold" if start else "below the threshold"))
    if phase in (Phase.WAL_ACTIVE, Phase.SWAP_READY):
        outgrown = tokens - state.checkpoint_tokens > log_budget(thresholds, wall)
        ready = ready and phase is Phase.WAL_ACTIVE
        return Decision(outgrown, ready, act, why or ("the log outgrew its budget" if outgrown else ""))
    return Decision(act=act, reason=why or str(phase))


def log_budget(thresholds: Thresholds, wall: Wall) -> int:
    """How many tokens of turns may follow a checkpoint."""
    return min(thresholds.log_tokens, wall.tokens // 4)


def _soon(state: State, tokens: int, wall: Wall, thresholds: Thresholds) -> bool:
    """Would the wall be reached before a summary is surely there?"""
    if not thresholds.adaptive or state.growth <= 0.0 or state.summary_seconds <= 0.0:
        return False
    return (wall.tokens - tokens) / state.growth <= SAFETY * state.summary_seconds
