"""What linking asks of the file about conversations that memory has forgotten.

Implements ``model.linking.history.History``. Runs on the thread that links; reads only. Invariants: never raises, a
file that is missing, damaged or busy knows nothing; a call takes a bounded time; nothing is opened before the first
question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model.link import Agent
from dbproxy.model.linking.history import StoredConversation, StoredExchange, StoredPoint
from dbproxy.store.connection import Connection
from dbproxy.store.content import Content
from dbproxy.store.rows import Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import TypeVar

    T = TypeVar("T")

#: Seconds for one lookup: a slow disk must not hold linking up, which can do without.
PATIENCE: Final = 2.0
_AT_ONCE: Final = 500  # hashes in one query
_EXCHANGE: Final = (
    "id, started, thread, branch, kind, compaction, parent, edge, attempt, outcome, streamed, message_id, request_id"
)


class StoreHistory:
    """Lookups in the database file at ``path``, which need not exist yet."""

    def __init__(self, path: Path, *, seconds: float = PATIENCE) -> None:
        self._path = path
        self._seconds = seconds
        self._connection: Connection | None = None
        self._content: Content | None = None

    def close(self) -> None:
        """Give the file back; the next question opens it again."""
        if self._connection is not None:
            self._connection.close()

    def conversation(self, conversation: str) -> StoredConversation | None:
        """The conversation of exactly this id, None if it is not stored."""
        return self._answer(lambda connection, _: _conversation(connection, conversation), None)

    def holding(self, chains: Sequence[bytes], *, account: str, limit: int) -> Sequence[str]:
        """Ids of conversations of this account with a point of one of ``chains``: those that hold an earlier item
        first, among equals the newest first."""
        return self._answer(lambda connection, _: _holding(connection, chains, account, limit), ())

    def answered(self, message_id: str) -> tuple[str, str] | None:
        """Conversation and exchange whose answer has this message id."""
        return self._answer(lambda connection, _: _answered(connection, message_id), None)

    def message(self, exchange: str) -> bytes | None:
        """The final message that answered an exchange, as JSON."""
        return self._answer(lambda _, content: content.message(exchange), None)

    def _answer(self, ask: Callable[[Connection, Content], T], nothing: T) -> T:
        try:
            if self._connection is None or self._content is None:
                self._connection = Connection(self._path, seconds=self._seconds)
                self._content = Content(self._connection)
            with self._connection.snapshot():
                return ask(self._connection, self._content)
        except (Unreadable, UnicodeError):
            return nothing


def _conversation(connection: Connection, id: str) -> StoredConversation | None:
    row = connection.row("SELECT account, client FROM conversation WHERE id = ?", [id])
    if row is None:
        return None
    exchanges = connection.rows(f"SELECT {_EXCHANGE} FROM exchange WHERE conversation = ? ORDER BY id", [id])
    points = connection.rows(
        "SELECT thread, branch, depth, chain, exchange FROM point WHERE conversation = ?"
        " ORDER BY thread, branch, depth",
        [id],
    )
    agents = connection.rows(
        "SELECT thread, type, name, number, parent_thread, tool_use_id FROM agent WHERE conversation = ?"
        " ORDER BY number, thread",
        [id],
    )
    return StoredConversation(
        id,
        account=row[0],
        client=row[1],
        exchanges=tuple(_exchange(values) for values in exchanges),
        points=tuple(StoredPoint(*values) for values in points),
        agents=tuple(Agent(*values) for values in agents),
    )


def _exchange(values: tuple[Any, ...]) -> StoredExchange:
    *before, streamed, message_id, request_id = values
    return StoredExchange(*(*before, bool(streamed), message_id, request_id))


def _holding(connection: Connection, chains: Sequence[bytes], account: str, limit: int) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for start in range(0, len(chains), _AT_ONCE):
        some = chains[start : start + _AT_ONCE]
        rank = {chain: place for place, chain in reversed(list(enumerate(some)))}
        rows = connection.rows(
            "SELECT DISTINCT p.chain, c.last, c.id FROM point p JOIN conversation c ON c.id = p.conversation"
            f" WHERE p.chain IN ({', '.join('?' * len(rank))}) AND c.account = ?",
            [*rank, account],
        )
        for _, _, id in sorted((rank[bytes(chain)], -last, id) for chain, last, id in rows):
            found[id] = None
            if len(found) == limit:
                return tuple(found)
    return tuple(found)


def _answered(connection: Connection, message_id: str) -> tuple[str, str] | None:
    if not message_id:
        return None
    row = connection.row(
        "SELECT conversation, id FROM exchange WHERE message_id = ? AND message_id <> ''"
        " ORDER BY conversation = '', id DESC LIMIT 1",
        [message_id],
    )
    return None if row is None else (row[0], row[1])
