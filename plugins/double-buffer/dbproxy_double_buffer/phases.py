"""The phases of a buffer as one table: what can happen in each, and what it leads to.

Owns the legal transitions and the diagram that the documents show. Invariant: anything that the table does not hold is
a fault of ours and raises; `Event.RESET` is legal everywhere.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """Where a buffer stands. One buffer belongs to one thread of one conversation."""

    IDLE = "IDLE"  # nothing prepared
    CHECKPOINT_PENDING = "CHECKPOINT_PENDING"  # wanted, and waiting for its turn or for a retry
    CHECKPOINTING = "CHECKPOINTING"  # the summary is being made
    WAL_ACTIVE = "WAL_ACTIVE"  # a summary is there; what follows it is kept whole
    SWAP_READY = "SWAP_READY"  # the same, and the client is near its wall
    PROVISIONAL = "PROVISIONAL"  # served, not yet seen in the client's next request


class Event(StrEnum):
    """What moves a buffer."""

    THRESHOLD = "threshold"  # the context grew past the checkpoint threshold
    STARTED = "started"  # the checkpoint request went out
    RETRY = "retry"  # it failed and will be tried again
    FAILED = "failed"  # it failed for good, for now
    COMPLETED = "completed"  # the summary is good
    NEAR_WALL = "near wall"  # the context grew past the swap threshold
    STALE = "stale"  # no checkpoint fits the conversation any more
    KEPT = "kept"  # an older checkpoint is still good
    RENEW = "renew"  # the log outgrew its budget: a newer checkpoint is wanted
    SERVED = "served"  # a compact request was answered from the checkpoint
    CONFIRMED = "confirmed"  # the client's next request starts from our summary
    ROLLED_BACK = "rolled back"  # the client went on without it
    COMPACTED = "compacted"  # the client got its summary from the model
    RESET = "reset"  # somebody asked for it


class IllegalTransition(Exception):
    """The table has no such move."""


_P, _E = Phase, Event
TRANSITIONS: Final[dict[tuple[Phase, Event], Phase]] = {
    (_P.IDLE, _E.THRESHOLD): _P.CHECKPOINT_PENDING,
    (_P.IDLE, _E.COMPACTED): _P.IDLE,
    (_P.IDLE, _E.KEPT): _P.WAL_ACTIVE,
    (_P.IDLE, _E.CONFIRMED): _P.IDLE,
    (_P.CHECKPOINT_PENDING, _E.STARTED): _P.CHECKPOINTING,
    (_P.CHECKPOINT_PENDING, _E.FAILED): _P.IDLE,
    (_P.CHECKPOINT_PENDING, _E.COMPACTED): _P.IDLE,
    # An older checkpoint is served while a newer one is made, or what was served before is taken only now.
    (_P.CHECKPOINT_PENDING, _E.SERVED): _P.PROVISIONAL,
    (_P.CHECKPOINT_PENDING, _E.CONFIRMED): _P.IDLE,
    (_P.CHECKPOINTING, _E.SERVED): _P.PROVISIONAL,
    (_P.CHECKPOINTING, _E.CONFIRMED): _P.IDLE,
    (_P.CHECKPOINTING, _E.RETRY): _P.CHECKPOINT_PENDING,
    (_P.CHECKPOINTING, _E.FAILED): _P.IDLE,
    (_P.CHECKPOINTING, _E.COMPLETED): _P.WAL_ACTIVE,
    (_P.CHECKPOINTING, _E.COMPACTED): _P.IDLE,
    (_P.WAL_ACTIVE, _E.NEAR_WALL): _P.SWAP_READY,
    (_P.WAL_ACTIVE, _E.SERVED): _P.PROVISIONAL,
    (_P.WAL_ACTIVE, _E.STALE): _P.IDLE,
    (_P.WAL_ACTIVE, _E.RENEW): _P.CHECKPOINT_PENDING,
    (_P.WAL_ACTIVE, _E.COMPACTED): _P.IDLE,
    (_P.WAL_ACTIVE, _E.CONFIRMED): _P.IDLE,  # a client that asks ahead comes back to what it was given
    (_P.SWAP_READY, _E.SERVED): _P.PROVISIONAL,
    (_P.SWAP_READY, _E.STALE): _P.IDLE,
    (_P.SWAP_READY, _E.RENEW): _P.CHECKPOINT_PENDING,
    (_P.SWAP_READY, _E.COMPACTED): _P.IDLE,
    (_P.SWAP_READY, _E.CONFIRMED): _P.IDLE,
    (_P.PROVISIONAL, _E.SERVED): _P.PROVISIONAL,
    (_P.PROVISIONAL, _E.CONFIRMED): _P.IDLE,
    (_P.PROVISIONAL, _E.ROLLED_BACK): _P.WAL_ACTIVE,
    (_P.PROVISIONAL, _E.COMPACTED): _P.IDLE,
    (_P.PROVISIONAL, _E.STALE): _P.IDLE,
    **{(phase, _E.RESET): _P.IDLE for phase in Phase},
}


def next_phase(phase: Phase, event: Event) -> Phase:
    """The phase that ``event`` leads to. Raises IllegalTransition."""
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        raise IllegalTransition(f"{event} cannot happen in {phase}") from None


def diagram() -> str:
    """The table as a Mermaid state diagram; `Event.RESET`, which leads home from everywhere, is left out."""
    lines = ["stateDiagram-v2", "    [*] --> IDLE"]
    lines += [
        f"    {phase} --> {after}: {event}" for (phase, event), after in TRANSITIONS.items() if event is not Event.RESET
    ]
    return "\n".join(lines) + "\n"
