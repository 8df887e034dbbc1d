"""Reads what was captured: lists, one exchange, its bodies, conversations, search, sums.

Owns the queries over the database file. Never writes; works beside a running proxy and without one. Invariants: every
list is paged by cursor and bounded; every answer is of one moment of the file; ids may be given as any unambiguous
prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.store import search as searching
from dbproxy.store import tree as shaping
from dbproxy.store.connection import Connection, within
from dbproxy.store.content import Content, mapping, mappings
from dbproxy.store.rows import (
    AgentRow,
    Check,
    ConversationRow,
    ConversationTree,
    EvidenceRow,
    ExchangeDetail,
    ExchangeRow,
    Found,
    LimitRow,
    Size,
    StreamRow,
    UnknownId,
    UsageRow,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

#: A page is never longer than this, whatever is asked for.
MOST: Final = 1000
_HIGHEST: Final = "\U0010ffff"  # behind every id that begins with what stands before it

_COLUMNS: Final = tuple(ExchangeRow.__dataclass_fields__)
_ROW: Final = ", ".join(_COLUMNS)
_BOOLEANS: Final = tuple(_COLUMNS.index(name) for name in ("streamed", "body_inexact"))

#: Groupings of ``usage_rows`` and what they mean as SQL over ``exchange e``.
GROUPS: Final = {
    "session": "e.conversation",
    "conversation": "e.conversation",
    "branch": "e.conversation || ' ' || e.thread || '/' || e.branch",
    "agent": "CASE WHEN e.thread IN ('', 'main') THEN e.thread ELSE"
    " coalesce(nullif(a.name, ''), nullif(a.type, ''), 'agent') END",
    "thread": "e.thread",
    "kind": "e.kind",
    "model": "coalesce(nullif(e.model, ''), e.model_asked)",
    "provider": "e.provider",
    "account": "e.account",
    "project": "e.project",
    "outcome": "e.outcome",
    "day": "strftime('%Y-%m-%d', e.started, 'unixepoch', 'localtime')",
    "hour": "strftime('%Y-%m-%dT%H:00', e.started, 'unixepoch', 'localtime')",
}
_SPENT: Final = "(e.input_tokens + e.output_tokens + e.cache_read + e.cache_write_5m + e.cache_write_1h) > 0"
_ERRORS: Final = "sum(e.state <> 'open' AND e.outcome NOT IN ('ok', 'local', 'upgraded', 'aborted'))"


class Reader:
    """The captured exchanges of one database file. Any thread may use one; queries take turns."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._content = Content(connection)

    @classmethod
    def open(cls, path: Path, *, seconds: float = 10.0) -> Reader:
        """Open the file read-only; ``seconds`` bounds each query.

        Raises Unreadable (a DbproxyError) for a missing, damaged, locked, foreign or newer file, saying what to do.
        """
        return cls(Connection(path, seconds=seconds))

    def close(self) -> None:
        """Give the file back."""
        self.connection.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- exchanges

    def exchanges(
        self,
        *,
        conversation: str | None = None,
        thread: str | None = None,
        branch: int | None = None,
        project: str | None = None,
        account: str | None = None,
        model: str | None = None,
        kind: str | Sequence[str] | None = None,
        outcome: str | Sequence[str] | None = None,
        state: str | None = None,
        scope: str | None = None,
        since: float | None = None,
        until: float | None = None,
        before: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> list[ExchangeRow]:
        """Exchanges, newest first. ``before`` is the id of the last one of the page before; with ``after`` those that
        came later than this id, oldest first (to follow). ``model`` and ``project`` also match by their beginning;
        ``conversation`` is a full id; ``since`` and ``until`` are Unix seconds of the start."""
        where = _Where()
        where.equal("conversation", conversation)
        where.equal("thread", thread)
        where.equal("branch", branch)
        where.equal("account", account)
        where.equal("state", state)
        where.equal("scope", scope)
        where.among("kind", kind)
        where.among("outcome", outcome)
        where.project("project", project)
        if model:
            where.add(
                "(substr(model, 1, ?) = ? OR substr(model_asked, 1, ?) = ?)", len(model), model, len(model), model
            )
        where.span("id", since, until)
        if before is not None:
            where.add("id < ?", before)
        if after is not None:
            where.add("id > ?", after)
        order = "ASC" if after is not None else "DESC"
        sql = f"SELECT {_ROW} FROM exchange {where.sql} ORDER BY id {order} LIMIT ?"
        return [_exchange(row) for row in self.connection.rows(sql, [*where.values, _page(limit)])]

    def resolve(self, prefix: str) -> str:
        """The full id of the exchange meant: its id, a prefix of it, ``last``, or the answer's ``msg_`` or ``req_`` id.
        Raises UnknownId."""
        if prefix == "last":
            found = self.connection.row("SELECT id FROM exchange ORDER BY id DESC LIMIT 1")
            if found is None:
                raise UnknownId("nothing was captured yet", hint="Start a session with `dbproxy claude`")
            return str(found[0])
        if prefix.startswith(("msg_", "req_")):
            column = "message_id" if prefix.startswith("msg_") else "request_id"
            sql = f"SELECT id FROM exchange WHERE {column} = ? AND {column} <> '' ORDER BY id DESC LIMIT 1"
            found = self.connection.row(sql, [prefix])
            if found is not None:
                return str(found[0])
        return self._by_prefix("exchange", prefix.lower(), "`dbproxy log list` shows those that there are")

    def exchange(self, prefix: str) -> ExchangeDetail:
        """All that is known about one exchange but its texts; ``prefix`` as ``resolve`` takes it. Raises UnknownId."""
        with self.connection.snapshot():
            id = self.resolve(prefix)
            row = self.connection.row(
                f"SELECT {_ROW}, labels, request_headers, response_headers, evidence, iterations, body_sha256,"
                " body_coding, body_kind IN ('parts', 'raw'), message IS NOT NULL, message_inexact, stream IS NOT NULL,"
                " route"
                " FROM exchange WHERE id = ?",
                [id],
            )
            if row is None:
                raise UnknownId(f"there is no exchange {id}", hint="`dbproxy log list` shows those that there are")
            count = len(_COLUMNS)
            exchange, more = _exchange(row[:count]), row[count:]
            content = self._content
            return ExchangeDetail(
                exchange=exchange,
                labels=mapping(more[0]),
                request_headers=content.pairs(more[1]),
                response_headers=content.pairs(more[2]),
                evidence=tuple(EvidenceRow(*item) for item in content.texts(more[3], 4)),
                iterations=mappings(more[4]),
                limits=tuple(self._limits("WHERE exchange = ?", [id])),
                agent=self._agent(exchange.conversation, exchange.thread),
                body_sha256=(more[5] or b"").hex(),
                body_coding=more[6],
                has_request=bool(more[7]),
                has_message=bool(more[8]),
                message_inexact=bool(more[9]),
                has_stream=bool(more[10]),
                route=content.route(more[11]),
            )

    def evidence(self, prefix: str) -> tuple[EvidenceRow, ...]:
        """Why an exchange stands where it stands. Raises UnknownId."""
        return self.exchange(prefix).evidence

    def agent(self, conversation: str, thread: str) -> AgentRow | None:
        """The agent that speaks in a thread, None for the main one and unknown ones."""
        return self._agent(conversation, thread)

    # ---- bodies

    def request_body(self, prefix: str) -> bytes | None:
        """The request's body byte for byte as it was sent (content coding undone), None if it was not kept. Raises
        UnknownId."""
        with self.connection.snapshot():
            return self._content.request_body(self.resolve(prefix))

    def response_message(self, prefix: str) -> bytes | None:
        """The final message or error that answered, as JSON, None if there is none. Raises UnknownId."""
        with self.connection.snapshot():
            return self._content.message(self.resolve(prefix))

    def stream(self, prefix: str) -> list[StreamRow] | None:
        """The answer's body in the pieces and at the times in which it came, None if it was not kept. Raises
        UnknownId."""
        with self.connection.snapshot():
            return self._content.stream(self.resolve(prefix))

    def messages(self, prefix: str) -> list[bytes]:
        """The messages of one request, exact, as it carried them. Raises UnknownId."""
        with self.connection.snapshot():
            return self._content.messages(self.resolve(prefix))

    def history(self, prefix: str) -> list[bytes]:
        """Every message that the model saw, exact JSON, oldest first, and its answer as the last one if there is one.

        The requests of a message thread carry only what is new (API facts 2.6): what they continue is looked up and put
        before. Raises UnknownId.
        """
        with self.connection.snapshot():
            return self._content.history(self.resolve(prefix))

    # ---- conversations

    def conversations(
        self,
        *,
        project: str | None = None,
        account: str | None = None,
        since: float | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[ConversationRow]:
        """Conversations, the latest active first. ``before`` is the ``cursor`` of the last one of the page before.
        Raises UnknownId for a wrong one."""
        where = _Where()
        where.equal("account", account)
        where.project("project", project)
        if since is not None:
            where.add("last >= ?", since)
        if before is not None:
            where.add("(last, id) < (?, ?)", *shaping.cursor(before))
        sql = f"SELECT {shaping.COLUMNS} FROM conversation {where.sql} ORDER BY last DESC, id DESC LIMIT ?"
        with self.connection.snapshot():
            found = self.connection.rows(sql, [*where.values, _page(limit)])
            return shaping.conversations(self.connection, found)

    def resolve_conversation(self, prefix: str) -> str:
        """The full id of the conversation meant: its id, a prefix of it, or ``last``. Raises UnknownId."""
        if prefix == "last":
            found = self.connection.row("SELECT id FROM conversation ORDER BY last DESC, id DESC LIMIT 1")
            if found is None:
                raise UnknownId("nothing was captured yet", hint="Start a session with `dbproxy claude`")
            return str(found[0])
        return self._by_prefix("conversation", prefix, "`dbproxy conversations list` shows those that there are")

    def conversation(self, prefix: str) -> ConversationTree:
        """One conversation with its threads, branches and agents; ``prefix`` as ``resolve_conversation`` takes it.
        Raises UnknownId."""
        with self.connection.snapshot():
            id = self.resolve_conversation(prefix)
            found = self.connection.rows(f"SELECT {shaping.COLUMNS} FROM conversation WHERE id = ?", [id])
            rows = self.connection.rows(f"SELECT {_ROW} FROM exchange WHERE conversation = ? ORDER BY id", [id])
            agents = self.connection.rows(f"SELECT {_AGENT} FROM agent WHERE conversation = ?", [id])
            return shaping.tree(
                shaping.conversations(self.connection, found)[0],
                [_exchange(row) for row in rows],
                [AgentRow(*row) for row in agents],
            )

    # ---- search

    def search(
        self,
        query: str,
        *,
        project: str | None = None,
        conversation: str | None = None,
        role: str | None = None,
        before: str | None = None,
        limit: int = 20,
        seconds: float = 5.0,
    ) -> Found:
        """Messages and answers that hold every word, the newest first.

        ``query`` is words, ``"phrases in quotes"``, beginnings ``word*``, and the filters ``role:``, ``project:`` and
        ``conversation:``. Any text is a valid query. ``before`` is the ``cursor`` of the page before; ``seconds`` is
        how long to look. Raises Unreadable, and UnknownId for a wrong cursor.
        """
        with self.connection.snapshot():
            return searching.search(
                self.connection,
                self._content,
                query,
                filters=[("project", project or ""), ("conversation", conversation or ""), ("role", role or "")],
                before=before,
                limit=min(_page(limit), 100),
                seconds=seconds,
            )

    # ---- sums

    def usage_rows(
        self,
        *,
        by: Sequence[str] = (),
        since: float | None = None,
        until: float | None = None,
        conversation: str | None = None,
        project: str | None = None,
        account: str | None = None,
        model: str | None = None,
        kind: str | Sequence[str] | None = None,
        limit: int = MOST,
    ) -> list[UsageRow]:
        """Sums of exchanges by the groupings ``by`` (names of ``GROUPS``; none: one row for all), the most expensive
        first, days and hours in order. Days and hours are those of the local time zone. Raises ValueError for a
        grouping that does not exist."""
        unknown = [name for name in by if name not in GROUPS]
        if unknown:
            raise ValueError(f"unknown grouping {unknown[0]!r}; there are {', '.join(GROUPS)}")
        where = _Where()
        where.equal("e.conversation", conversation)
        where.equal("e.account", account)
        where.among("e.kind", kind)
        where.project("e.project", project)
        if model:
            where.add("substr(coalesce(nullif(e.model, ''), e.model_asked), 1, ?) = ?", len(model), model)
        where.span("e.id", since, until)
        keys = "".join(f"{GROUPS[name]} AS k{at}, " for at, name in enumerate(by))
        joined = "LEFT JOIN agent a ON a.conversation = e.conversation AND a.thread = e.thread" if "agent" in by else ""
        groups = ", ".join(f"k{at}" for at in range(len(by)))
        timed = [f"k{at}" for at, name in enumerate(by) if name in ("day", "hour")]
        order = ", ".join([*timed, "total(e.cost_usd) DESC", "count(*) DESC", *([groups] if by else [])])
        sql = (
            f"SELECT {keys} count(*), {_ERRORS}, sum(e.input_tokens), sum(e.output_tokens), sum(e.cache_read),"
            " sum(e.cache_write_5m), sum(e.cache_write_1h), sum(e.thinking_tokens), sum(e.web_searches),"
            f" sum(e.cost_usd), sum(e.cost_usd IS NULL AND {_SPENT}), min(e.started), max(e.started)"
            f" FROM exchange e {joined} {where.sql}"
            + (f" GROUP BY {groups}" if by else " HAVING count(*) > 0")
            + f" ORDER BY {order} LIMIT ?"
        )
        count = len(by)
        found = self.connection.rows(sql, [*where.values, max(1, limit)])
        return [UsageRow(tuple(str(key) for key in row[:count]), *row[count:]) for row in found]

    def limits(self, *, account: str | None = None) -> list[LimitRow]:
        """The latest figures of every window of every account (or one), the latest seen account first."""
        where = _Where()
        where.equal("account", account)
        return self._limits(
            f"JOIN (SELECT account AS a, window AS w, max(at) AS t FROM rate_limit {where.sql} GROUP BY 1, 2)"
            " ON account = a AND window = w AND at = t GROUP BY account, window ORDER BY at DESC, account, window",
            where.values,
        )

    def limit_history(
        self, account: str, window: str, *, since: float | None = None, limit: int = MOST
    ) -> list[LimitRow]:
        """How one window went, oldest first."""
        return self._limits(
            "WHERE account = ? AND window = ? AND at >= ? ORDER BY at LIMIT ?",
            [account, window, since or 0.0, max(1, limit)],
        )

    def size(self) -> Size:
        """What the file holds and takes. Reads every row's header: some 100 ms for a large file."""
        with self.connection.snapshot():
            path = self.connection.path
            log = path.with_name(path.name + "-wal")
            page, free = (self.connection.rows(f"PRAGMA {name}")[0][0] for name in ("page_size", "freelist_count"))
            one = self.connection.rows
            exchanges, bodies, oldest, newest = one(
                "SELECT count(*), coalesce(sum(bytes_up), 0), min(started), max(started) FROM exchange"
            )[0]
            blobs, raw, stored = one(
                "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(length(data)), 0) FROM blob"
            )[0]
            return Size(
                file_bytes=path.stat().st_size + (log.stat().st_size if log.exists() else 0),
                free_bytes=page * free,
                exchanges=exchanges,
                conversations=one("SELECT count(*) FROM conversation")[0][0],
                blobs=blobs,
                content_bytes=raw,
                stored_bytes=stored,
                body_bytes=bodies,
                shed=one("SELECT count(*) FROM shed")[0][0],
                oldest=oldest,
                newest=newest,
            )

    def verify(self, *, since: str | None = None) -> Iterator[Check]:
        """Rebuild every request body and compare it with what was sent, oldest first, from the id ``since`` on."""
        from dbproxy.store.verify import verify

        return verify(self, since=since)

    # ---- inside

    @property
    def content(self) -> Content:
        """The pieces behind the rows, for the modules beside this one."""
        return self._content

    def _by_prefix(self, table: str, prefix: str, hint: str) -> str:
        found = self.connection.rows(
            f"SELECT id FROM {table} WHERE id >= ? AND id < ? ORDER BY id LIMIT 2", [prefix, prefix + _HIGHEST]
        )
        name = table.replace("_", " ")
        if not prefix or not found:
            raise UnknownId(f"there is no {name} {prefix!r}", hint=hint)
        if len(found) > 1 and found[0][0] != prefix:
            raise UnknownId(f"several {name}s begin with {prefix!r}", hint="Give more of the id")
        return str(found[0][0])

    def _agent(self, conversation: str, thread: str) -> AgentRow | None:
        sql = f"SELECT {_AGENT} FROM agent WHERE conversation = ? AND thread = ?"
        row = self.connection.row(sql, [conversation, thread])
        return AgentRow(*row) if row else None

    def _limits(self, rest: str, values: Sequence[object]) -> list[LimitRow]:
        return [LimitRow(*row) for row in self.connection.rows(f"SELECT {_LIMIT} FROM rate_limit {rest}", values)]


_AGENT: Final = ", ".join(AgentRow.__dataclass_fields__)
_LIMIT: Final = ", ".join(LimitRow.__dataclass_fields__)


class _Where:
    """Conditions joined by AND, with their values."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self.values: list[object] = []

    @property
    def sql(self) -> str:
        return "WHERE " + " AND ".join(self._conditions) if self._conditions else ""

    def add(self, condition: str, *values: object) -> None:
        self._conditions.append(condition)
        self.values.extend(values)

    def equal(self, column: str, value: object) -> None:
        if value is not None:
            self.add(f"{column} = ?", value)

    def among(self, column: str, values: str | Sequence[str] | None) -> None:
        if values is not None:
            wanted = [values] if isinstance(values, str) else list(values)
            self.add(f"{column} IN ({', '.join('?' * len(wanted))})", *wanted)

    def project(self, column: str, folder: str | None) -> None:
        """The folder itself or one below it."""
        if folder:
            condition, values = within(column, folder)
            self.add(condition, *values)

    def span(self, column: str, since: float | None, until: float | None) -> None:
        """Ids begin with the milliseconds of the start, so that a time is a range of ids."""
        if since is not None:
            self.add(f"{column} >= ?", id_at(since))
        if until is not None:
            self.add(f"{column} < ?", id_at(until))


def id_at(at: float) -> str:
    """The lowest exchange id that begins at or after ``at`` (Unix seconds)."""
    return f"{min(max(0, int(at * 1000)), 0xFFFFFFFFFFFF):012x}"


def _page(limit: int) -> int:
    return max(1, min(limit, MOST))


def _exchange(row: tuple[Any, ...]) -> ExchangeRow:
    values = list(row)
    for at in _BOOLEANS:
        values[at] = bool(values[at])
    return ExchangeRow(*values)
