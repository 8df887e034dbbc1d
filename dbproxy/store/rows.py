"""What readers of the database file are given: one frozen dataclass for each kind of answer.

Values only; imports errors and nothing else of dbproxy. Names are those of the tables' columns. Invariants: times are
Unix seconds, durations milliseconds (None: never reached), cost in USD (None: no price known); "" stands for "not
known"; every row turns into plain JSON with ``as_json``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dbproxy.errors import DbproxyError


class Unreadable(DbproxyError):
    """The database file is missing, damaged, of another version, busy or cannot be opened; the text says what to do."""


class NothingCaptured(Unreadable):
    """There is no file yet, or nothing was ever written to it."""


class UnknownId(DbproxyError):
    """No exchange or conversation has this id or prefix, or several have."""


def as_json(row: Any) -> Any:
    """A row, or any nest of rows, as dicts, lists and plain values; bytes become hexadecimal."""
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        return {field.name: as_json(getattr(row, field.name)) for field in dataclasses.fields(row)}
    if isinstance(row, dict):
        return {key: as_json(value) for key, value in row.items()}
    if isinstance(row, list | tuple):
        return [as_json(value) for value in row]
    return row.hex() if isinstance(row, bytes) else row


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """One exchange without its texts: what a list shows. ``id`` is also the cursor of paging."""

    id: str
    state: str  # open, closed, lost
    started: float
    finished: float | None
    method: str
    host: str
    path: str
    via: str
    scope: str
    project: str
    client: str
    account: str
    conversation: str
    thread: str
    branch: int
    kind: str
    compaction: str
    parent: str
    edge: str
    attempt: int
    model_asked: str
    streamed: bool
    message_count: int
    bytes_up: int
    body_kind: str  # none, parts, raw, shed, pruned
    body_inexact: bool
    status: int
    outcome: str
    error: str
    first_byte_ms: float | None
    duration_ms: float | None
    bytes_down: int
    model: str
    message_id: str
    request_id: str
    stop_reason: str
    input_tokens: int
    output_tokens: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    thinking_tokens: int
    web_searches: int
    cost_usd: float | None
    priced_by: str
    provider: str  # that answered in place of the upstream, "" for the upstream

    @property
    def context_tokens(self) -> int:
        """What filled the context: input, cached or not."""
        return self.input_tokens + self.cache_read + self.cache_write_5m + self.cache_write_1h


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """Why one question about an exchange was answered as it was."""

    question: str
    answer: str
    source: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LimitRow:
    """One window of an account's limits as an answer's headers gave it; None where they did not."""

    exchange: str
    account: str
    at: float
    window: str
    status: str
    utilization: float | None
    resets: float | None
    quota: int | None
    remaining: int | None


@dataclass(frozen=True, slots=True)
class AgentRow:
    """A subagent of a conversation."""

    conversation: str
    thread: str
    type: str
    name: str
    number: int
    parent_thread: str
    tool_use_id: str

    @property
    def label(self) -> str:
        """What to call it: its own name, else its type, with its number where known."""
        what = self.name or self.type or "agent"
        return f"{what} #{self.number}" if self.number else what


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try at a provider; ``status`` 0 without an answer, ``error`` "" for one that was delivered."""

    provider: str
    model: str
    status: int
    ms: float
    error: str


@dataclass(frozen=True, slots=True)
class RouteRow:
    """What was decided about where a request goes: ``outcome`` is routed, declined, fell back or failed.

    ``provider`` and ``model`` answered ("" for the client's own upstream); ``rule`` and ``reason`` say why; the token
    counts that the client was told are the upstream's times ``scale``.
    """

    outcome: str
    provider: str
    model: str
    rule: str
    reason: str
    scale: float
    notes: tuple[str, ...]
    attempts: tuple[AttemptRow, ...]


@dataclass(frozen=True, slots=True)
class ExchangeDetail:
    """One exchange with all that is known about it but the texts."""

    exchange: ExchangeRow
    labels: dict[str, str]
    request_headers: tuple[tuple[str, str], ...]  # credentials replaced by fingerprints
    response_headers: tuple[tuple[str, str], ...]
    evidence: tuple[EvidenceRow, ...]
    iterations: tuple[dict[str, Any], ...]
    limits: tuple[LimitRow, ...]
    agent: AgentRow | None
    body_sha256: str
    body_coding: str
    has_request: bool
    has_message: bool
    message_inexact: bool
    has_stream: bool
    route: RouteRow | None = None


@dataclass(frozen=True, slots=True)
class ConversationRow:
    """One conversation as a list shows it. ``cursor`` is what the next page's ``before`` takes."""

    id: str
    account: str
    project: str
    client: str
    title: str
    started: float
    last: float
    forked_from: str
    exchanges: int
    turns: int  # exchanges that belong to the conversation's turns, side requests left out
    errors: int
    open: int
    agents: int
    branches: int  # of the main thread
    compactions: int
    input_tokens: int
    output_tokens: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    cost_usd: float | None  # of those that have a price; None if none has
    unpriced: int  # exchanges that used tokens and have no price
    models: tuple[str, ...]
    context_tokens: int  # of the main thread's latest answer
    latest: str  # id of its latest exchange
    cursor: str


@dataclass(frozen=True, slots=True)
class Branch:
    """A run of exchanges of one thread, oldest first. The first one's ``edge`` and ``parent`` say where it leaves."""

    number: int
    exchanges: tuple[ExchangeRow, ...]


@dataclass(frozen=True, slots=True)
class Thread:
    """The main line of a conversation, or one agent's, with the agents that it started."""

    key: str  # "main" or the agent's key
    agent: AgentRow | None
    branches: tuple[Branch, ...]
    agents: tuple[Thread, ...]


@dataclass(frozen=True, slots=True)
class ConversationTree:
    """A conversation's true shape. ``asides`` are side requests and requests of no thread, oldest first."""

    conversation: ConversationRow
    main: Thread
    asides: tuple[ExchangeRow, ...]


@dataclass(frozen=True, slots=True)
class StreamRow:
    """One piece of an answer's body and when it came (ms after the head)."""

    at_ms: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Hit:
    """A message or answer that matches a search. ``exchange`` is the one in which it was first seen; ``cursor`` is what
    the next page's ``before`` takes. ``marks`` are start and end of each match within ``snippet``."""

    exchange: str
    conversation: str
    thread: str
    project: str
    started: float
    role: str
    snippet: str
    marks: tuple[tuple[int, int], ...]
    cursor: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gave. ``complete`` is False where it stopped before it had looked at everything (there is more, or
    it took too long); ``cursor`` continues it, "" if there is nothing left."""

    hits: tuple[Hit, ...]
    complete: bool
    cursor: str


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Sums over a group of exchanges. ``keys`` are the values of the groupings, in the order asked for."""

    keys: tuple[str, ...]
    exchanges: int
    errors: int
    input_tokens: int
    output_tokens: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    thinking_tokens: int
    web_searches: int
    cost_usd: float | None  # of those that have a price; None if none has
    unpriced: int  # exchanges that used tokens and have no price
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Size:
    """What the file holds and takes, in bytes and rows."""

    file_bytes: int  # with its write-ahead log
    free_bytes: int  # unused pages within
    exchanges: int
    conversations: int
    blobs: int
    content_bytes: int  # of the distinct pieces, before compression
    stored_bytes: int  # the same, compressed
    body_bytes: int  # of all request bodies as they were sent
    shed: int  # transcripts dropped under load
    oldest: float | None
    newest: float | None


@dataclass(frozen=True, slots=True)
class Check:
    """What verifying one exchange found. ``result`` is ``exact``, ``inexact`` (changed on purpose by a redaction),
    ``absent`` (no body was kept) or ``wrong``; ``detail`` says why."""

    exchange: str
    result: str
    detail: str = ""
