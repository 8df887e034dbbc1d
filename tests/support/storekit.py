"""Records for tests of the store, and a look into the file that depends on as little of the store as possible."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any

from dbproxy.model.link import Link, RequestKind
from dbproxy.model.parts import take_apart
from dbproxy.model.record import ExchangeClosed, ExchangeOpened, RequestBody
from dbproxy.store import Store
from dbproxy.store.blobs import BlobReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

START = 1_790_000_000.0


def make_id(number: int) -> str:
    """The id of an exchange that starts ``number`` seconds after START."""
    return f"{int((START + number) * 1000):012x}{number & 0xFFFFFF:06x}"


def talk(*texts: str, **more: Any) -> bytes:
    """A request body whose messages have these texts."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return json.dumps({"model": "m", "messages": messages, **more}, separators=(",", ":")).encode()


def opened(number: int, body: bytes | None = None, **more: Any) -> ExchangeOpened:
    """A request, linked as main of one conversation unless ``link`` says otherwise."""
    kept = None
    if body is not None:
        kept = RequestBody(body, hashlib.sha256(body).digest(), take_apart(body))
    values: dict[str, Any] = {
        "id": make_id(number),
        "started": START + number,
        "method": "POST",
        "host": "api.anthropic.com",
        "path": "/v1/messages",
        "via": "tunnel",
        "body": kept,
        "link": link(number),
    }
    return ExchangeOpened(**(values | more))


def closed(number: int, text: str | None = None, **more: Any) -> ExchangeClosed:
    """Its end, with an answer of this text."""
    values: dict[str, Any] = {
        "id": make_id(number),
        "finished": START + number + 2,
        "outcome": "ok",
        "status": 200,
        "duration_ms": 2000.0,
    }
    if text is not None:
        values["message"] = answer(text)
    return ExchangeClosed(**(values | more))


def answer(text: str) -> bytes:
    """A final message."""
    return json.dumps(
        {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": text}]},
        separators=(",", ":"),
    ).encode()


def link(number: int, conversation: str = "c-1", **more: Any) -> Link:
    """A link of exchange ``number``."""
    values: dict[str, Any] = {"thread": "main", "branch": 1, "kind": RequestKind.MAIN}
    return Link(make_id(number), conversation, **(values | more))


class States:
    """What a store said of itself."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, state: str) -> None:
        self.said.append(state)


@contextlib.contextmanager
def store_at(path: Path, **more: Any) -> Iterator[Store]:
    """A store that gathers for a moment only, closed at the end."""
    values: dict[str, Any] = {"redact": str, "on_state": lambda state: None, "batch_seconds": 0.0}
    store = Store.open(path, **(values | more))
    try:
        yield store
    finally:
        store.close(10)


@contextlib.contextmanager
def look(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of our own to the file."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        yield connection


def rows(path: Path, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """What a query finds in the file."""
    with look(path) as connection:
        return connection.execute(sql, values).fetchall()


def row(path: Path, number: int) -> dict[str, Any]:
    """The row of an exchange."""
    with look(path) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM exchange WHERE id = ?", (make_id(number),)).fetchone()
        assert found is not None, f"exchange {number} is not in the file"
        return dict(found)


def body_of(path: Path, number: int) -> bytes | None:
    """The body of an exchange, rebuilt."""
    with look(path) as connection:
        found = connection.execute(
            "SELECT body_kind, template, system_list, tool_list, tip FROM exchange WHERE id = ?", (make_id(number),)
        ).fetchone()
        assert found is not None, f"exchange {number} is not in the file"
        return BlobReader(connection).body(*found)


def assert_sound(path: Path) -> int:
    """The file is whole, and every body in it is the one that was sent; returns how many there are."""
    with look(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        reader = BlobReader(connection)
        found = connection.execute(
            "SELECT body_sha256, body_kind, template, system_list, tool_list, tip FROM exchange"
            " WHERE body_kind IN ('raw', 'parts')"
        ).fetchall()
        for sha256, *where in found:
            body = reader.body(*where)
            assert body is not None
            assert hashlib.sha256(body).digest() == sha256
        return len(found)
