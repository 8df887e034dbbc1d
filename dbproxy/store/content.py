"""The texts behind the rows: bodies, answers, streams, histories and packed columns, as readers want them.

Owns what it takes to put an exchange's content together from its pieces, message threads included. Reads through a
``Connection``, never writes. Invariants: a body that is given is the one that was sent, byte for byte; content that is
missing or damaged is said to be so (``Unreadable``), never made up.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

import msgspec
import zstandard

from dbproxy.model.messages import MessagesRequest
from dbproxy.model.parts import apply
from dbproxy.store.blobs import BlobReader
from dbproxy.store.rows import AttemptRow, RouteRow, StreamRow, Unreadable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from dbproxy.store.connection import Connection

_BODY: Final = "body_kind, template, system_list, tool_list, tip"
_DAMAGE: Final = (KeyError, ValueError, IndexError, TypeError, zstandard.ZstdError, msgspec.MsgspecError)
#: Requests of one message thread that are followed back; an account's longest sessions have some thousands.
_LONGEST_THREAD: Final = 100_000


class _Answer(msgspec.Struct):
    role: msgspec.Raw = msgspec.Raw(b'"assistant"')
    content: msgspec.Raw = msgspec.Raw(b"")


_ANSWER: Final = msgspec.json.Decoder(_Answer).decode


class Content:
    """Takes content out of one file, whatever file stands behind the connection at the time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._blobs: BlobReader | None = None
        self._generation = -1

    @contextlib.contextmanager
    def reading(self, what: str) -> Iterator[tuple[sqlite3.Connection, BlobReader]]:
        """SQLite's connection and the blobs behind it. Raises Unreadable, naming ``what``, for damaged content."""
        with self._connection.reading() as connection:
            if self._blobs is None or self._generation != self._connection.generation:
                self._blobs = BlobReader(connection)
                self._generation = self._connection.generation
            try:
                yield connection, self._blobs
            except _DAMAGE as error:
                raise Unreadable(
                    f"{what} is damaged: {error}",
                    hint="`dbproxy log verify` shows what else is",
                ) from error

    # ---- of one exchange, by its full id

    def request_body(self, exchange: str) -> bytes | None:
        """The request's body as it was sent, None if it was not kept."""
        with self.reading(f"the request of {exchange}") as (connection, blobs):
            row = connection.execute(f"SELECT {_BODY} FROM exchange WHERE id = ?", (exchange,)).fetchone()
            return None if row is None else blobs.body(*row)

    def message(self, exchange: str) -> bytes | None:
        """The final message or error, as JSON."""
        return self._blob(exchange, "message", "answer")

    def stream(self, exchange: str) -> list[StreamRow] | None:
        """The answer's body in pieces, with their times."""
        with self.reading(f"the stream of {exchange}") as (connection, blobs):
            row = connection.execute("SELECT stream FROM exchange WHERE id = ?", (exchange,)).fetchone()
            if row is None or row[0] is None:
                return None
            return [StreamRow(at, data) for at, data in blobs.stream(row[0])]

    def messages(self, exchange: str) -> list[bytes]:
        """The messages that a request carried, exact."""
        with self.reading(f"the request of {exchange}") as (connection, blobs):
            row = connection.execute(f"SELECT {_BODY} FROM exchange WHERE id = ?", (exchange,)).fetchone()
            if row is None or row[0] not in ("parts", "raw") or row[1] is None:
                return []
            if row[0] == "raw":
                return [bytes(span) for span in MessagesRequest(blobs.blob(row[1])).spans]
            return [
                message.canonical if message.patch is None else apply(message.canonical, message.patch)
                for message in blobs.history(row[4])
            ]

    def history(self, exchange: str) -> list[bytes]:
        """All messages that the model saw and its answer; requests of a thread are joined with what they continue."""
        tail = self.answer(exchange)
        runs: list[list[bytes]] = [[] if tail is None else [tail]]
        seen = {exchange}
        at: str | None = exchange
        while at is not None and len(seen) <= _LONGEST_THREAD:
            runs.append(self.messages(at))
            at = self.continued(at)
            if at is None or at in seen:
                break
            seen.add(at)
            answer = self.answer(at)
            if answer is not None:
                runs.append([answer])
        return [message for run in reversed(runs) for message in run]

    def answer(self, exchange: str) -> bytes | None:
        """The answer as the next request would carry it: role and content. None if there was no message."""
        message = self.message(exchange)
        return None if message is None else as_turn(message)

    def continued(self, exchange: str) -> str | None:
        """The exchange whose thread this request continues (API facts 2.6), None for one with its whole history, or
        where that exchange is not in the file."""
        with self.reading(f"the request of {exchange}") as (connection, blobs):
            row = connection.execute(f"SELECT {_BODY} FROM exchange WHERE id = ?", (exchange,)).fetchone()
            if row is None or row[0] not in ("parts", "raw") or row[1] is None:
                return None
            if b'"thread"' not in blobs.blob(row[1]):  # the template holds every member but the long lists
                return None
            body = blobs.body(*row)
            before = MessagesRequest(body).continues if body is not None else None
            if not before:
                return None
            found = connection.execute(
                "SELECT id FROM exchange WHERE message_id = ? AND message_id <> '' AND id <> ?"
                " ORDER BY id DESC LIMIT 1",
                (before, exchange),
            ).fetchone()
            return None if found is None else str(found[0])

    def _blob(self, exchange: str, column: str, what: str) -> bytes | None:
        with self.reading(f"the {what} of {exchange}") as (connection, blobs):
            row = connection.execute(f"SELECT {column} FROM exchange WHERE id = ?", (exchange,)).fetchone()
            return None if row is None or row[0] is None else blobs.blob(row[0])

    # ---- packed columns

    def unpack(self, packed: bytes | None) -> Any:
        """The JSON of a packed column, None for NULL."""
        with self.reading("a row") as (_, blobs):
            return blobs.codec.unpack(packed)

    def pairs(self, packed: bytes | None) -> tuple[tuple[str, str], ...]:
        """Names and values of headers."""
        return tuple((str(name), str(value)) for name, value in self.unpack(packed) or ())

    def texts(self, packed: bytes | None, width: int) -> list[list[str]]:
        """Rows of ``width`` texts."""
        found = self.unpack(packed) or ()
        return [[str(value) for value in [*item, *[""] * width][:width]] for item in found]

    def route(self, packed: bytes | None) -> RouteRow | None:
        """What was decided about an exchange's way; None where nothing was."""
        found = self.unpack(packed)
        if not isinstance(found, dict):
            return None

        def text(name: str) -> str:
            return str(found.get(name) or "")

        return RouteRow(
            text("outcome"),
            text("provider"),
            text("model"),
            text("rule"),
            text("reason"),
            float(found.get("scale") or 1.0),
            tuple(map(str, found.get("notes") or ())),
            tuple(
                AttemptRow(str(provider), str(model), int(status), float(ms), str(error))
                for provider, model, status, ms, error in found.get("attempts") or ()
            ),
        )


def as_turn(message: bytes) -> bytes | None:
    """A final message as a message of a history; None for an error or anything else without content."""
    try:
        answer = _ANSWER(message)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if not bytes(answer.content):
        return None
    return b'{"role":' + bytes(answer.role) + b',"content":' + bytes(answer.content) + b"}"


def mapping(text: str) -> dict[str, str]:
    """A JSON object of texts; empty for anything else."""
    value = _parsed(text)
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}


def mappings(text: str) -> tuple[dict[str, Any], ...]:
    """A JSON list of objects; empty for anything else."""
    value = _parsed(text)
    return tuple(item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
