"""What linking asks of a store about conversations that it no longer holds in memory.

Owns the protocol and its rows; whoever keeps exchanges implements it. Called on the thread that links, never on the
event loop; it may do I/O. Invariants: an implementation never raises for a failing store, it answers as if nothing
were known; rows are those of the latest Link of each exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.model.link import Agent


@dataclass(frozen=True, slots=True)
class StoredExchange:
    """One linked exchange of a conversation. ``outcome`` is that of ``ExchangeClosed``, "" while it is open."""

    id: str
    started: float
    thread: str
    branch: int
    kind: str
    compaction: str = ""
    parent: str = ""
    edge: str = "root"
    attempt: int = 1
    outcome: str = ""
    streamed: bool = True
    message_id: str = ""
    request_id: str = ""  # the upstream's


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """A row of ``point``: the exchange that added this message to its branch."""

    thread: str
    branch: int
    depth: int
    chain: bytes
    exchange: str


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """All that linking needs of one conversation; each sequence ordered by exchange id, points by branch and depth."""

    id: str
    account: str = ""
    client: str = ""  # User-Agent of its first exchange
    exchanges: tuple[StoredExchange, ...] = ()
    points: tuple[StoredPoint, ...] = ()
    agents: tuple[Agent, ...] = ()


class History(Protocol):
    """Lookups in what was stored before."""

    def conversation(self, conversation: str) -> StoredConversation | None:
        """The conversation of exactly this id, None if it is not stored."""

    def holding(self, chains: Sequence[bytes], *, account: str, limit: int) -> Sequence[str]:
        """Ids of conversations of this account with a point of one of ``chains``: those that hold an earlier item of
        ``chains`` first (the caller gives the deepest first), among equals the newest first; at most ``limit``."""

    def answered(self, message_id: str) -> tuple[str, str] | None:
        """Conversation and exchange whose answer has this message id (API facts 2.6), None if there is none."""

    def message(self, exchange: str) -> bytes | None:
        """The final message that answered an exchange, as JSON."""
