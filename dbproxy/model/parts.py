"""A Messages body taken apart into pieces that repeat, and put together again byte for byte.

Owns the canonical form of a message, system block and tool (the stored identity) and the patches that restore what
was really sent. Never does I/O. Invariants: ``put_together(take_apart(body)) == body`` for every body that is taken
apart at all; the canonical form of a message is the same wherever cache_control marks stand.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """One message, system block or tool. ``digest`` are the first 16 bytes of SHA-256 over ``canonical``; ``patch``
    restores the exact bytes from it, None if they are the same."""

    canonical: bytes
    digest: bytes
    patch: bytes | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """``template`` is the body around the pieces, with a mark where each list stood."""

    template: bytes
    system: tuple[Piece, ...] = ()
    tools: tuple[Piece, ...] = ()
    messages: tuple[Piece, ...] = ()
