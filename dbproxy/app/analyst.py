"""The thread that makes records of exchanges: decodes, classifies, links, counts and prices.

Owns the linker, which nothing else may touch. Works in the order in which requests became complete and answers ended.
Must never be waited for by a request, but by one that a policy holds back. Invariants: it never raises; a body that it
cannot read is kept as it is; credentials are taken out before a record leaves it. Pure Python is kept short here, since
the event loop wants the interpreter, too: parsing and hashing are done by C code over whole bodies.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import queue
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from dbproxy.app.capture import MESSAGES, project, recording_of, text_pairs
from dbproxy.app.crash import describe_crash
from dbproxy.app.pace import Pace
from dbproxy.errors import ProtocolViolation
from dbproxy.exchange import Fields, Outcome
from dbproxy.model import redact, shapes
from dbproxy.model.accumulate import Accumulator
from dbproxy.model.limits import rate_limits
from dbproxy.model.link import Edge, Evidence, Link, RequestKind
from dbproxy.model.messages import MessagesRequest
from dbproxy.model.parts import take_apart
from dbproxy.model.record import (
    ExchangeClosed,
    ExchangeLinked,
    ExchangeOpened,
    Record,
    RequestBody,
    StreamPiece,
)
from dbproxy.model.route import RouteFacts
from dbproxy.wire.coding import decoder
from dbproxy.wire.sse import SseSplitter

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.app.capture import Recording
    from dbproxy.exchange import Exchange
    from dbproxy.model.linking.linker import Linker
    from dbproxy.model.prices import Prices
    from dbproxy.model.usage import Usage

#: What an answer or a request may grow to when its content coding is undone (bytes).
DECODED_LIMIT = 256 * 1024 * 1024
#: What waits at most for a quiet moment, and what a job weighs beside its payload (bytes).
CROWD_BYTES, JOB_BYTES = 16 * 1024 * 1024, 2048
#: Calls for the event loop that go in one parcel.
OUTBOX = 64
_OUTCOMES = {
    Outcome.OK: "ok",
    Outcome.LOCAL: "local",
    Outcome.REFUSED: "local",
    Outcome.CLIENT_GONE: "aborted",
    Outcome.UPSTREAM_CUT: "cut",
    Outcome.UPSTREAM_FAILED: "failed",
    Outcome.UPGRADED: "upgraded",
}


_SESSION = b"x-claude-code-session-id"


class Sink(Protocol):
    """Where records go; `append` never blocks and never raises."""

    def append(self, record: Record, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What the thread works with."""

    sink: Sink
    linker: Linker
    prices: Prices


@dataclass(frozen=True, slots=True)
class Finding:
    """What became known about an exchange, for the event loop: ``opened``, ``linked`` or ``closed``."""

    exchange: Exchange
    stage: str
    record: Record
    link: Link | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    number: int
    since: float  # on the monotonic clock
    weight: int  # bytes that it keeps in memory, about
    work: Callable[[Any], object]
    subject: Any


class Analyst:
    """One thread and its queue. ``tools`` is called in the thread, since what it loads is too slow for a start.

    ``post`` runs a function on the event loop soon; ``found`` is called there with every `Finding`; ``failed`` is told
    about faults of our own. ``key`` fingerprints credentials. ``broken`` says why the tools could not be had; then
    nothing is kept.
    """

    def __init__(
        self,
        tools: Callable[[], Tools],
        *,
        key: bytes,
        post: Callable[[Callable[[], object]], None],
        found: Callable[[Finding], object],
        failed: Callable[[str], object],
        redact_message: Callable[[bytes], bytes],
    ) -> None:
        self.errors = 0
        self.broken = ""
        self._make_tools = tools
        self._tools: Tools
        self._key = key
        self._post = post
        self._found = found
        self._failed = failed
        self._redact_message = redact_message
        self.pace = Pace()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._last = 0  # the number of the job that the event loop queued last
        self._queued = 0  # what all jobs weighed so far; counted by the event loop
        self._taken = 0  # the same of those that were begun; counted by the thread
        self._outbox: list[Callable[[], object]] = []
        self._links: dict[str, Link] = {}
        self._thread = threading.Thread(target=self._run, name="analyst", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def open(self, recording: Recording) -> None:
        """A request is complete. Never waits."""
        self._put(self._open, recording, recording.held)

    def close(self, recording: Recording) -> None:
        """An exchange is over. Never waits."""
        self._put(self._close, recording, recording.held)

    def hurry(self) -> None:
        """Somebody waits for what was queued so far. Never waits."""
        self.pace.hurry(self._last)

    def forget(self, prefix: str | None) -> None:
        """Forget conversations whose id begins with ``prefix``, or all."""
        self._put(lambda begin: self._tools.linker.forget(begin or ""), prefix)

    def expire(self, now: float) -> None:
        """Drop from memory what has long been silent; it stays in the store."""
        self._put(lambda at: self._tools.linker.expire(at), now)

    def settle(self, seconds: float) -> bool:
        """Wait until everything queued so far is done, at most so long; whether it is. Not on the event loop."""
        done = threading.Event()
        number = next(self._numbers)
        self._queue.put(_Job(number, time.monotonic(), 0, lambda event: event.set(), done))
        self.pace.hurry(number)
        return done.wait(seconds)

    def stop(self, seconds: float) -> bool:
        """Finish what is queued, waiting at most so long; whether it did. Blocks: not on the event loop."""
        if not self._thread.is_alive():
            return True
        self.pace.hurry(sys.maxsize)
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _put(self, work: Callable[[Any], object], subject: Any, held: int = 0) -> None:
        """Queue a job. On the event loop."""
        self._last = next(self._numbers)
        weight = held + JOB_BYTES
        self._queued += weight
        self._queue.put(_Job(self._last, time.monotonic(), weight, work, subject))

    # ---- the thread

    def _run(self) -> None:
        try:
            self._tools = self._make_tools()
        except Exception as error:
            self.broken = describe_crash(error)
            self._failed(self.broken)
        while (job := self._queue.get()) is not None:
            if not self.pace.ready(job.number) and self._crowd() < 1.0:
                self._deliver()
                self.pace.wait(job.number, job.since, self._crowd)
            self._taken += job.weight
            try:
                job.work(job.subject)
            except Exception as error:
                self.errors += 1
                self._failed(describe_crash(error))
            del job  # or this thread would keep the last bodies until the next request
            self.pace.done()
            if len(self._outbox) >= OUTBOX or self._queue.empty():
                self._deliver()
        self._deliver()

    def _crowd(self) -> float:
        return (self._queued - self._taken) / CROWD_BYTES

    def _tell(self, call: Callable[[], object]) -> None:
        """Run this on the event loop soon, together with others: each time wakes it up."""
        self._outbox.append(call)

    def _deliver(self) -> None:
        calls, self._outbox = self._outbox, []
        if not calls:
            return

        def deliver() -> None:
            for call in calls:
                try:
                    call()
                except Exception as error:  # a listener's
                    self.errors += 1
                    self._failed(describe_crash(error))

        self._post(deliver)

    # ---- a request

    def _open(self, recording: Recording) -> None:
        if self.broken:
            self._tell(lambda: recording.found(None))
            return
        links: tuple[Link, ...] = ()
        try:
            opened, links = self._opened(recording)
        except Exception as error:
            self.errors += 1
            self._failed(describe_crash(error))
            opened = self._facts(recording)
        finally:
            link = links[0] if links else None
            self._tell(lambda: recording.found(link))
        self._append(recording, "opened", opened, link=link)
        for other in links[1:]:
            self._append(recording, "linked", ExchangeLinked(other), link=other)
        if link is not None:
            self._links[opened.id] = link

    def _facts(self, recording: Recording, named: str = "") -> ExchangeOpened:
        exchange, scope = recording.exchange, recording.scope
        fields = exchange.request.fields
        return ExchangeOpened(
            id=exchange.id,
            started=recording.started,
            method=exchange.request.method.decode("latin-1"),
            host=exchange.host,
            path=exchange.path,
            via=exchange.via.value,
            scope=exchange.scope or "",
            project=project(scope),
            labels=tuple(scope.labels.items()) if scope is not None else (),
            client=(fields.get(b"user-agent") or b"").decode("latin-1"),
            account=_account(fields, named, self._key),
            headers=redact.redact_headers(text_pairs(fields), self._key),
        )

    def _opened(self, recording: Recording) -> tuple[ExchangeOpened, tuple[Link, ...]]:
        if not recording.whole or recording.shed:
            return self._facts(recording), ()
        fields = recording.exchange.request.fields
        coding = _coding(fields)
        sent = recording.up[0] if len(recording.up) == 1 else b"".join(recording.up)
        raw = decoded_body(fields, [sent])
        if raw is None:
            facts = self._facts(recording)
            if recording.redacts:
                return facts, ()  # nobody can say what is in it
            return replace(facts, body=RequestBody(sent, hashlib.sha256(sent).digest(), coding=coding)), ()
        view = MessagesRequest(raw)
        facts = self._facts(recording, view.identity.account)
        links: tuple[Link, ...] = ()
        if recording.purpose:
            links = (_own_link(recording),)
        elif view.readable:
            if self._tools.linker.is_new_agent(view, fields):
                self._look_at_open_answers(recording)
            links = self._tools.linker.request(
                facts.id,
                facts.started,
                view,
                fields,
                scope=facts.scope,
                account=facts.account,
                project=facts.project,
                path=facts.path,
            )
        kept = self._redact_message(raw) if recording.redacts else raw
        # The view has split the body already: it is scanned once.
        parts = take_apart(view.split if kept is raw and view.split is not None else kept)
        body = RequestBody(kept, hashlib.sha256(kept).digest(), parts, coding, kept != raw)
        opened = replace(
            facts,
            model=view.model or "",
            streamed=view.stream,
            message_count=view.message_count,
            body=body,
            link=links[0] if links else None,
        )
        return opened, links

    def _look_at_open_answers(self, recording: Recording) -> None:
        """What the answers that are under way in the same session have said so far: one of them started this agent."""
        session = recording.exchange.request.fields.get(_SESSION)
        for other in list(recording.capture.under_way.values()):
            fields = other.exchange.request.fields
            if other is not recording and other.down and session and fields.get(_SESSION) == session:
                blocks = _complete_blocks(other)
                if blocks:
                    self._tools.linker.started(other.exchange.id, blocks)

    # ---- an answer

    def _close(self, recording: Recording) -> None:
        exchange = recording.exchange
        try:
            if not self.broken:
                self._closed(recording)
        finally:
            self._links.pop(exchange.id, None)
            recording.up.clear()
            recording.down.clear()
            recording.times.clear()
            self._tell(recording.released)

    def _closed(self, recording: Recording) -> None:
        exchange = recording.exchange
        head, times = exchange.response, exchange.timings
        fields = head.fields if head is not None else None
        answer = Accumulator()
        stream: tuple[StreamPiece, ...] | None = None
        body = b""
        if fields is not None and recording.whole and not recording.shed:
            pieces = _pieces(fields, recording)
            if _is_events(fields):
                splitter = SseSplitter()
                for piece in pieces:
                    for event in splitter.feed(piece.data):
                        answer.feed(event.name, event.data)
                if recording.streams:
                    stream = tuple(pieces)
            else:
                body = b"".join(piece.data for piece in pieces)
                answer = Accumulator.from_body(body)
        # What a plugin answered was paid with the calls that it made for it, if at all: those are counted.
        paid = answer.model is not None and exchange.outcome is not Outcome.LOCAL
        usage = answer.usage if paid else None
        model = answer.model or ""
        found = exchange.attributes.get("route")
        route = found if isinstance(found, RouteFacts) else None
        if route is not None and route.usage is not None:
            # The client was told another model's answer in its own measure; what is kept are the true figures.
            usage, model = route.usage, route.model
        finished = time.time()
        cost = None
        if usage is not None:
            cost = self._tools.prices.cost(model, usage, recording.started)
        message: Any = {"type": "error", "error": answer.error} if answer.error is not None else answer.message
        final = _json(message) if message else (body or None)
        kept = self._redact_message(final) if recording.redacts and final is not None else final
        closed = ExchangeClosed(
            id=exchange.id,
            finished=finished,
            outcome=_outcome(exchange, answer),
            status=head.status if head is not None else 0,
            error=exchange.error or _error_type(answer),
            first_byte_ms=(times.first_byte - times.received) * 1e3 if times.first_byte else -1.0,
            duration_ms=(times.finished - times.received) * 1e3,
            bytes_up=exchange.bytes_up,
            bytes_down=exchange.bytes_down,
            headers=redact.redact_headers(text_pairs(fields), self._key),
            model=model,
            message_id=_text(answer.message.get("id")),
            request_id=(fields.get(b"request-id") or b"").decode("latin-1") if fields is not None else "",
            stop_reason=answer.stop_reason or "",
            usage=usage,
            cost_usd=cost.usd if cost is not None else None,
            priced_by=cost.row if cost is not None else "",
            message=kept,
            inexact=kept != final,
            stream=None if recording.redacts else stream,
            limits=rate_limits(fields) if fields is not None else (),
            route=route,
        )
        link = self._links.get(exchange.id)
        self._append(recording, "closed", closed, link=link, usage=usage)
        if link is not None and exchange.path == MESSAGES:
            ok = closed.outcome in ("ok", "local") and answer.complete
            for other in self._tools.linker.answer(exchange.id, answer.message, ok=ok, request_id=closed.request_id):
                self._append(recording, "linked", ExchangeLinked(other), link=other)

    def _append(
        self, recording: Recording, stage: str, record: Record, *, link: Link | None, usage: Usage | None = None
    ) -> None:
        if recording.keep == "facts":
            record = _without_text(record)
        if recording.keep != "off":
            self._tools.sink.append(record)
        finding = Finding(recording.exchange, stage, record, link, usage)
        self._tell(lambda: self._found(finding))


def _without_text(record: Record) -> Record:
    """The facts alone."""
    if isinstance(record, ExchangeOpened):
        return replace(record, body=None)
    if isinstance(record, ExchangeClosed):
        return replace(record, message=None, stream=None)
    return record


def _own_link(recording: Recording) -> Link:
    """The place of a call that a plugin made: beside the exchange for whose sake it was made."""
    behalf = recording.on_behalf
    near = recording_of(behalf) if behalf is not None else None
    link = near.link if near is not None else None
    found = link or (behalf.attributes.get("link") if behalf is not None else None)
    evidence = (Evidence("kind", "own", "plugin", recording.purpose),)
    if not isinstance(found, Link):
        return Link(recording.exchange.id, "", "", 0, RequestKind.OWN, edge=Edge.ASIDE, evidence=evidence)
    return Link(
        recording.exchange.id,
        found.conversation,
        found.thread,
        0,
        RequestKind.OWN,
        parent=found.exchange,
        edge=Edge.ASIDE,
        evidence=evidence,
    )


def _account(fields: Fields, named: str, key: bytes) -> str:
    """Whose account this is, as a fingerprint: the one that the client names, since a login's tokens change."""
    return redact.account(Fields.of([(b"x-api-key", named.encode("utf-8", "replace"))]) if named else fields, key)


def _coding(fields: Fields) -> str:
    return b",".join(fields.get_all(b"content-encoding")).decode("latin-1").lower()


def decoded_body(fields: Fields, pieces: list[bytes]) -> bytes | None:
    """A payload with its content coding undone; None if that cannot be done."""
    if fields.get(b"content-encoding") is None:
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]
    try:
        undo = decoder(_coding(fields).encode("latin-1"), limit=DECODED_LIMIT)
        return b"".join([undo.feed(piece) for piece in pieces] + [undo.finish()])
    except ProtocolViolation:
        return None


def _complete_blocks(recording: Recording) -> list[object]:
    """The blocks of an answer under way that have come to their end."""
    head = recording.exchange.response
    if head is None or not _is_events(head.fields):
        return []
    answer, splitter, ended = Accumulator(), SseSplitter(), set()
    for data in _decoded_pieces(head.fields, list(recording.down)):
        for event in splitter.feed(data):
            answer.feed(event.name, event.data)
            if event.name == b"content_block_stop":
                ended.add(shapes.mapping(shapes.parse(event.data)).get("index"))
    content = shapes.sequence(answer.message.get("content"))
    return [block for index, block in enumerate(content) if index in ended]


def _decoded_pieces(fields: Fields, pieces: list[bytes]) -> list[bytes]:
    """Pieces of a payload with the content coding undone, as far as that goes: of a stream that was cut, what came."""
    if fields.get(b"content-encoding") is None:
        return pieces
    found: list[bytes] = []
    with suppress(ProtocolViolation):
        undo = decoder(_coding(fields).encode("latin-1"), limit=DECODED_LIMIT)
        found.extend(map(undo.feed, pieces))
    return found


def _pieces(fields: Fields, recording: Recording) -> list[StreamPiece]:
    """The answer's payload, decoded as far as that goes: of one that was cut short, what came."""
    began = recording.exchange.timings.first_byte
    times = recording.times or [began] * len(recording.down)
    if fields.get(b"content-encoding") is None and not recording.streams:
        return [StreamPiece(0.0, b"".join(recording.down))]
    plain = _decoded_pieces(fields, recording.down)
    return [StreamPiece((at - began) * 1e3, data) for at, data in zip(times, plain, strict=False)]


def _is_events(fields: Fields) -> bool:
    kind = fields.get(b"content-type") or b""
    return kind.partition(b";")[0].strip().lower() == b"text/event-stream"


def _outcome(exchange: Exchange, answer: Accumulator) -> str:
    outcome = _OUTCOMES[exchange.outcome or Outcome.CLIENT_GONE]
    if outcome == "ok" and (answer.error is not None or (exchange.response and exchange.response.status >= 400)):
        return "error"
    return outcome


def _error_type(answer: Accumulator) -> str:
    return _text(answer.error.get("type")) if answer.error is not None else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
