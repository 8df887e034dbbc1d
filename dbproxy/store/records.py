"""Records as rows: what each kind of record changes in the file.

Owns the SQL that writes facts. Runs in the writer's thread, inside its transaction. Imports base, model and store.
Invariants: the same record twice changes nothing; records of one exchange may come in any order; a value that SQLite
cannot hold is mended, never a reason to lose a record.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import zstandard

from dbproxy.model import parts as bodies
from dbproxy.model.link import Edge, RequestKind
from dbproxy.model.record import ExchangeClosed, ExchangeLinked, ExchangeOpened
from dbproxy.store.blobs import BlobWriter, Codec, pack_stream, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dbproxy.model.link import Link
    from dbproxy.model.parts import Piece
    from dbproxy.model.record import RateLimit, Record
    from dbproxy.model.route import RouteFacts
    from dbproxy.model.usage import Usage
    from dbproxy.store.blobs import Put

#: Seconds after which a window's figures are written again although they are the same.
REPEAT_LIMITS: Final = 300.0
_REMEMBERED_LIMITS: Final = 256
_LONGEST_TITLE: Final = 200
_LARGEST: Final = 2**63 - 1


class Recorder:
    """Writes records through one connection.

    ``redact`` changes text before it reaches the search index; ``index`` False leaves the index alone.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        codec: Codec,
        blobs: BlobWriter,
        *,
        process: int,
        redact: Callable[[str], str],
        index: bool = True,
    ) -> None:
        self._connection = connection
        self._codec = codec
        self._blobs = blobs
        self._process = process
        self._redact = redact
        self._index = index
        self._limits: OrderedDict[tuple[str, str], tuple[RateLimit, float]] = OrderedDict()

    def forget(self) -> None:
        """Drop what was remembered of rows: after a transaction that was rolled back."""
        self._limits.clear()
        self._blobs.forget()

    def write(self, record: Record, shed: int = 0, breathe: Callable[[], bool] | None = None) -> None:
        """Write one record; ``shed`` is how many bytes of transcript it lost on its way here.

        ``breathe`` is called in long work, as ``BlobWriter.put_history`` says.
        """
        if isinstance(record, ExchangeOpened):
            self._opened(record, shed, breathe)
        elif isinstance(record, ExchangeClosed):
            self._closed(record, shed)
        else:
            assert isinstance(record, ExchangeLinked)
            self._skeleton(record.link.exchange)
            self._link(record.link)
        if shed:
            number = record.link.exchange if isinstance(record, ExchangeLinked) else record.id
            at = record.started if isinstance(record, ExchangeOpened) else _started(number)
            self._run("INSERT INTO shed(at, exchange, bytes) VALUES (?, ?, ?)", (at, number, shed))

    # -- the three kinds

    def _opened(self, record: ExchangeOpened, shed: int, breathe: Callable[[], bool] | None) -> None:
        known = self._run("SELECT method, conversation FROM exchange WHERE id = ?", (record.id,)).fetchone()
        if known is not None and known[0]:
            return
        body = record.body
        kind, template, systems, tools, tip = "shed" if shed else "none", None, None, None, None
        if body is not None:
            parent = record.link.parent if record.link is not None else ""
            before = self._run("SELECT template, message FROM exchange WHERE id = ?", (parent,)).fetchone()
            template_base, answer = before or (None, None)
            if body.parts is None:
                kind, template = "raw", self._blobs.put(body.raw).id
            else:
                kind = "parts"
                # The history first: it is what may be written in several goes.
                tip = self._blobs.put_history(
                    body.parts.messages,
                    base=answer,
                    fresh=lambda piece, put: self._found(piece, put, record.id),
                    breathe=breathe,
                )
                template = self._blobs.put(body.parts.template, base=template_base).id
                systems = self._blobs.put_list(body.parts.system)
                tools = self._blobs.put_list(body.parts.tools)
        values = {
            "started": record.started,
            "process": self._process,
            "method": record.method or "?",
            "host": record.host,
            "path": record.path,
            "via": record.via,
            "scope": record.scope,
            "project": record.project,
            "labels": to_json(dict(record.labels)).decode() if record.labels else "{}",
            "client": record.client,
            "account": record.account,
            "model_asked": record.model,
            "streamed": int(record.streamed),
            "message_count": record.message_count,
            "request_headers": self._codec.pack(record.headers),
            "body_kind": kind,
            "body_sha256": None if body is None else body.sha256,
            "body_coding": "" if body is None else body.coding,
            "body_inexact": 0 if body is None else int(body.inexact),
            "template": template,
            "system_list": systems,
            "tool_list": tools,
            "tip": tip,
        }
        if known is None:
            values |= {"id": record.id, "state": "open"}
            self._insert("exchange", values)
        else:
            self._update("exchange", values, record.id)
            # Its end came first and could not know these.
            self._run(
                "UPDATE exchange SET model = model_asked WHERE id = ? AND outcome <> '' AND model = ''", (record.id,)
            )
            self._run(
                "UPDATE OR IGNORE rate_limit SET account = ? WHERE account = '' AND exchange = ?",
                (record.account, record.id),
            )
        if record.link is not None and (known is None or not known[1]):
            self._link(record.link)
        elif known is not None and known[1]:
            self._conversation(known[1], record.id)

    def _closed(self, record: ExchangeClosed, shed: int) -> None:
        started = record.finished - max(record.duration_ms, 0.0) / 1000
        self._skeleton(record.id, started)
        row = self._run(
            "SELECT state, account, kind, conversation, model_asked FROM exchange WHERE id = ?", (record.id,)
        ).fetchone()
        state, account, kind, conversation, model_asked = row
        if state == "closed":
            return
        message = stream = None
        if record.message is not None:
            put = self._blobs.put(record.message)
            message = put.id
            if put.fresh:
                self._words(put.id, record.message, record.id)
        if record.stream is not None:
            stream = self._blobs.put(pack_stream([(p.at_ms, p.data) for p in record.stream])).id
        values = {
            "state": "closed",
            "finished": record.finished,
            "outcome": record.outcome,
            "status": record.status,
            "error": record.error,
            "first_byte_ms": _reached(record.first_byte_ms),
            "duration_ms": _reached(record.duration_ms),
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
            "response_headers": self._codec.pack(record.headers) if record.headers else None,
            # The name as it was asked for is known; the other one is only worth its bytes where it differs.
            "model": record.model or model_asked,
            "message_id": record.message_id,
            "request_id": record.request_id,
            "stop_reason": record.stop_reason,
            "message": message,
            "message_inexact": int(record.inexact),
            "stream": stream,
            "cost_usd": record.cost_usd,
            "priced_by": record.priced_by,
            "provider": record.route.provider if record.route is not None else "",
            "route": self._codec.pack(_route(record.route)) if record.route is not None else None,
            **(_tokens(record.usage) if record.usage is not None else {}),
        }
        self._update("exchange", values, record.id)
        for limit in record.limits:
            self._limit(limit, record.id, account, record.finished)
        if conversation:
            self._run("UPDATE conversation SET last = max(last, ?) WHERE id = ?", (record.finished, conversation))
            if kind == RequestKind.TITLE:
                self._entitle(conversation, record.id)

    def _link(self, link: Link) -> None:
        row = self._run("SELECT conversation FROM exchange WHERE id = ?", (link.exchange,)).fetchone()
        before = row[0] if row is not None else ""
        values = {
            "conversation": link.conversation,
            "thread": link.thread,
            "branch": link.branch,
            "kind": str(link.kind),
            "compaction": link.compaction,
            "parent": link.parent,
            "edge": str(link.edge),
            "attempt": link.attempt,
            "evidence": self._codec.pack([[e.question, e.answer, e.source, e.detail] for e in link.evidence]),
        }
        self._update("exchange", values, link.exchange)
        if before:
            self._run("DELETE FROM point WHERE conversation = ? AND exchange = ?", (before, link.exchange))
            if before != link.conversation:
                self._drop_empty(before)
        if not link.conversation:
            return
        self._conversation(link.conversation, link.exchange)
        if link.kind is RequestKind.TITLE:
            self._entitle(link.conversation, link.exchange)
        for point in link.points:
            self._run(
                "INSERT OR REPLACE INTO point(conversation, thread, branch, depth, chain, exchange)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (link.conversation, link.thread, link.branch, point.depth, point.chain, link.exchange),
            )
        if link.edge is Edge.FORK and link.parent:
            self._run(
                "UPDATE conversation SET forked_from = coalesce("
                "(SELECT conversation FROM exchange WHERE id = ? AND conversation <> conversation.id), '')"
                " WHERE id = ? AND forked_from = ''",
                (link.parent, link.conversation),
            )
        if link.agent is not None:
            agent = link.agent
            self._run(
                "INSERT INTO agent(conversation, thread, type, name, number, parent_thread, tool_use_id)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(conversation, thread) DO UPDATE SET"
                " type = CASE WHEN excluded.type <> '' THEN excluded.type ELSE type END,"
                " name = CASE WHEN excluded.name <> '' THEN excluded.name ELSE name END,"
                " number = CASE WHEN excluded.number <> 0 THEN excluded.number ELSE number END,"
                " parent_thread = excluded.parent_thread,"
                " tool_use_id = CASE WHEN excluded.tool_use_id <> '' THEN excluded.tool_use_id ELSE tool_use_id END",
                (
                    link.conversation,
                    agent.thread,
                    agent.type,
                    agent.name,
                    agent.number,
                    agent.parent_thread,
                    agent.tool_use_id,
                ),
            )

    # -- what hangs on them

    def _skeleton(self, number: str, started: float | None = None) -> None:
        """A row for an exchange whose opening is not known, or not yet."""
        self._run(
            "INSERT OR IGNORE INTO exchange(id, state, started, process, method, host, path, via)"
            " VALUES (?, 'open', ?, ?, '', '', '', '')",
            (number, _started(number) if started is None else started, self._process),
        )

    def _conversation(self, conversation: str, exchange: str) -> None:
        """Make the conversation of an exchange, or tell it of one more."""
        self._run(
            "INSERT INTO conversation(id, account, project, client, started, last)"
            " SELECT ?, account, project, client, started, max(started, coalesce(finished, started))"
            " FROM exchange WHERE id = ?"
            " ON CONFLICT(id) DO UPDATE SET started = min(started, excluded.started), last = max(last, excluded.last),"
            " account = CASE WHEN account = '' THEN excluded.account ELSE account END,"
            " project = CASE WHEN project = '' THEN excluded.project ELSE project END,"
            " client = CASE WHEN client = '' THEN excluded.client ELSE client END",
            (conversation, exchange),
        )

    def _entitle(self, conversation: str, exchange: str) -> None:
        """Give the conversation the title that this exchange answered."""
        sql = "SELECT message FROM exchange WHERE id = ? AND outcome = 'ok' AND message IS NOT NULL"
        row = self._run(sql, (exchange,)).fetchone()
        if row is None:
            return
        with contextlib.suppress(KeyError, zstandard.ZstdError):
            title = _title(self._blobs.get(row[0]))
            if title:
                self._run("UPDATE conversation SET title = ? WHERE id = ?", (title, conversation))

    def _drop_empty(self, conversation: str) -> None:
        """A conversation that a better link left without exchanges goes, and its agents."""
        if self._run("SELECT 1 FROM exchange WHERE conversation = ? LIMIT 1", (conversation,)).fetchone() is None:
            for table, column in (("conversation", "id"), ("agent", "conversation"), ("point", "conversation")):
                self._run(f"DELETE FROM {table} WHERE {column} = ?", (conversation,))

    def _limit(self, limit: RateLimit, exchange: str, account: str, at: float) -> None:
        known = self._limits.get((account, limit.window))
        if known is not None and known[0] == limit and abs(at - known[1]) < REPEAT_LIMITS:
            return
        self._run(
            "INSERT OR IGNORE INTO rate_limit(exchange, account, at, window, status, utilization, resets, quota,"
            " remaining) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                exchange,
                account,
                at,
                limit.window,
                limit.status,
                None if limit.utilization < 0 else limit.utilization,
                limit.resets or None,
                limit.limit or None,
                limit.remaining if limit.limit or limit.remaining else None,
            ),
        )
        self._limits[account, limit.window] = (limit, at)
        if len(self._limits) > _REMEMBERED_LIMITS:
            self._limits.popitem(last=False)

    def _found(self, piece: Piece, put: Put, exchange: str) -> None:
        """Index a message that was not there before, unless it is an answer that was indexed when it came."""
        if not put.delta:
            self._words(put.id, piece.canonical, exchange)

    def _words(self, blob: int, content: bytes, exchange: str) -> None:
        if not self._index:
            return
        try:
            role, text = bodies.search_text(content)
            text = self._redact(text) if text else ""
        except Exception:  # a plugin's redaction, or a content that nobody foresaw: kept, but not found by its words
            text = ""
        if not text:
            return
        self._run("INSERT INTO search(rowid, text) VALUES (?, ?)", (blob, text))
        self._run("INSERT OR REPLACE INTO found_in(blob, exchange, role) VALUES (?, ?, ?)", (blob, exchange, role))

    # -- SQL

    def _insert(self, table: str, values: dict[str, Any]) -> None:
        marks = ", ".join("?" * len(values))
        self._run(f"INSERT INTO {table}({', '.join(values)}) VALUES ({marks})", tuple(values.values()))

    def _update(self, table: str, values: dict[str, Any], number: str) -> None:
        columns = ", ".join(f"{name} = ?" for name in values)
        self._run(f"UPDATE {table} SET {columns} WHERE id = ?", (*values.values(), number))

    def _run(self, sql: str, values: Sequence[Any]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(sql, values)
        except (UnicodeError, OverflowError, sqlite3.IntegrityError):
            mended = [_mended(value) for value in values]
            if mended == list(values):
                raise
            return self._connection.execute(sql, mended)


def _mended(value: Any) -> Any:
    """A value that SQLite can hold: no lone surrogates, no numbers beyond 64 bits, no NaN."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int):
        return max(-_LARGEST, min(_LARGEST, value))
    if isinstance(value, float) and math.isnan(value):
        return 0.0
    return value


def _reached(milliseconds: float) -> float | None:
    return None if milliseconds < 0 else milliseconds


def _started(number: str) -> float:
    """When an exchange began, by its id."""
    try:
        return int(number[:12], 16) / 1000
    except ValueError:
        return 0.0


def _route(facts: RouteFacts) -> dict[str, Any]:
    return {
        "outcome": facts.outcome,
        "provider": facts.provider,
        "model": facts.model,
        "rule": facts.rule,
        "reason": facts.reason,
        "scale": facts.scale,
        "notes": list(facts.notes),
        "attempts": [[one.provider, one.model, one.status, one.ms, one.error] for one in facts.attempts],
    }


def _tokens(usage: Usage) -> dict[str, Any]:
    rounds = [
        {name: value for name in _USAGE if (value := getattr(part, name)) not in (0, "", ())}
        for part in usage.iterations
    ]
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read": usage.cache_read,
        "cache_write_5m": usage.cache_write_5m,
        "cache_write_1h": usage.cache_write_1h,
        "thinking_tokens": usage.thinking_tokens,
        "web_searches": usage.web_search_requests,
        "iterations": to_json(rounds).decode() if rounds else "[]",
    }


def _title(message: bytes) -> str:
    """The title that a title request's answer gives: plain text, or JSON with a ``title`` (client facts 3.3)."""
    _, text = bodies.search_text(message)
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(value, dict):
        value = value.get("title", "")
    return " ".join(value.split())[:_LONGEST_TITLE] if isinstance(value, str) else ""


_USAGE: Final = (
    "kind",
    "model",
    "input_tokens",
    "output_tokens",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "thinking_tokens",
    "web_search_requests",
)
