"""What was captured, over HTTP: the endpoints below ``/api`` that read the database file, and the live feed.

Owns their parameters, the shape of their answers and how long reading may take. Never writes. Invariants: the event
loop reads nothing, every question runs in a thread, few at a time and with a deadline; lists are paged by cursor; a
body comes back as the very bytes that were sent, and says so where they are not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import trio

from dbproxy.app import respond
from dbproxy.app.asking import parse_when
from dbproxy.app.live import LISTENERS, LiveFeed
from dbproxy.app.routes import BadQuestion, OwnRequest, Route
from dbproxy.exchange import Fields, LocalResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbproxy.app.analyst import Finding
    from dbproxy.app.proxy import Proxy
    from dbproxy.exchange import SendBytes
    from dbproxy.store.reader import Reader

#: Seconds that one question may take.
DEADLINE: Final = 10.0
#: Questions that are answered at once; more wait.
READERS: Final = 4
#: Rows of a page: when nobody says, and at most.
PAGE: Final = 50
MOST: Final = 500
_KINDS = {"parts": b"application/json", "raw": b"application/octet-stream"}
#: Captured content is shown to nobody's scripts, whatever it holds.
_INERT = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; sandbox"),
)
_EVENT_STREAM = Fields.of(
    [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
)


class CaptureEndpoints:
    """The endpoints of one proxy, and its live feed."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._turns = trio.CapacityLimiter(READERS)
        self.live = LiveFeed()
        proxy.journal.subscribe(self.live.line)
        proxy.archive.listeners.append(self._found)

    def routes(self) -> list[Route]:
        """The table of endpoints."""
        asked: dict[str, Callable[[OwnRequest], Callable[[Reader], LocalResponse]]] = {
            "/api/exchanges": _exchanges,
            "/api/exchanges/{id}": _exchange,
            "/api/exchanges/{id}/request": _request,
            "/api/exchanges/{id}/response": _response,
            "/api/exchanges/{id}/stream": _stream,
            "/api/exchanges/{id}/messages": _messages,
            "/api/exchanges/{id}/explain": _explain,
            "/api/conversations": _conversations,
            "/api/conversations/{id}": _conversation,
            "/api/search": _search,
            "/api/usage": _usage,
        }
        return [Route("/api/events", self._events), *(Route(path, self._reading(ask)) for path, ask in asked.items())]

    def _found(self, finding: Finding) -> None:
        self.live.record(finding.record, finding.link, finding.exchange.scope)

    def _reading(
        self, ask: Callable[[OwnRequest], Callable[[Reader], LocalResponse]]
    ) -> Callable[[OwnRequest], Awaitable[LocalResponse]]:
        """A handler that reads. ``ask`` checks the parameters and gives what is to be done in a thread."""

        async def handler(request: OwnRequest) -> LocalResponse:
            question = ask(request)
            with trio.move_on_after(DEADLINE):
                return await trio.to_thread.run_sync(
                    self._answered, question, abandon_on_cancel=True, limiter=self._turns
                )
            raise BadQuestion(
                f"reading took longer than {DEADLINE:g} s",
                status=504,
                hint="Ask for less: a smaller limit, one conversation, or a later since",
            )

        return handler

    def _answered(self, question: Callable[[Reader], LocalResponse]) -> LocalResponse:
        """In a thread: open the file, ask, and close it."""
        from dbproxy.store.reader import Reader
        from dbproxy.store.rows import NothingCaptured, UnknownId, Unreadable

        try:
            with Reader.open(self._proxy.paths.database, seconds=DEADLINE) as reader:
                return question(reader)
        except UnknownId as error:
            raise BadQuestion(str(error), status=404) from None
        except NothingCaptured as error:
            raise BadQuestion(str(error), status=404) from None
        except Unreadable as error:
            raise BadQuestion(str(error), status=503) from None

    # ---- the live feed

    async def _events(self, request: OwnRequest) -> LocalResponse:
        query = request.query("after")
        if self.live.listeners >= LISTENERS:
            return respond.error_response(
                529, f"{LISTENERS} listeners are connected already; close a page that shows the live feed"
            )
        after = query.get("after", "") or (request.fields.get(b"last-event-id") or b"").decode("latin-1")

        async def stream(send: SendBytes) -> None:
            await self.live.stream(send, after=after, ending=self._is_ending)

        return LocalResponse(200, _EVENT_STREAM, stream=stream)

    def _is_ending(self) -> bool:
        return self._proxy.draining or self._proxy.closing


# ---- questions: each checks its parameters on the event loop and answers in a thread

_FILTERS = ("conversation", "thread", "kind", "model", "outcome", "state", "project", "account")


def _exchanges(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    query = request.query(*_FILTERS, "since", "until", "before", "after", "limit")
    times, limit = _times(query), _limit(query)
    if "before" in query and "after" in query:
        raise BadQuestion("before and after cannot be asked for together", hint="Leave one out")
    known: dict[str, Any] = {name: query[name] for name in _FILTERS if name in query}
    for name in ("kind", "outcome"):
        if name in known:
            known[name] = known[name].split(",")
    cursors: dict[str, Any] = {name: query.get(name) for name in ("before", "after")}

    def answer(reader: Reader) -> LocalResponse:
        if "conversation" in known:
            known["conversation"] = reader.resolve_conversation(known["conversation"])
        rows = reader.exchanges(**known, **times, **cursors, limit=limit)
        return _json({"exchanges": rows, "next": rows[-1].id if len(rows) == limit else None})

    return answer


def _exchange(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    request.query()
    return lambda reader: _json(reader.exchange(request.parts["id"]))


def _request(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    request.query()

    def answer(reader: Reader) -> LocalResponse:
        detail = reader.exchange(request.parts["id"])
        row = detail.exchange
        body = reader.request_body(row.id)
        if body is None:
            raise BadQuestion(f"the request of {row.id} was not kept ({row.body_kind})", status=404)
        pairs = [(b"content-type", _KINDS.get(row.body_kind, b"application/octet-stream"))]
        pairs += [(b"x-dbproxy-exchange", row.id.encode()), (b"x-dbproxy-sha256", detail.body_sha256.encode())]
        if row.body_inexact:
            pairs.append((b"x-dbproxy-inexact", b"1"))
        return LocalResponse(200, Fields.of([*pairs, *_INERT]), body)

    return answer


def _response(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    request.query()

    def answer(reader: Reader) -> LocalResponse:
        detail = reader.exchange(request.parts["id"])
        row = detail.exchange
        message = reader.response_message(row.id)
        if message is None:
            raise BadQuestion(f"there is no message of {row.id}: it is {row.outcome or row.state}", status=404)
        kind = b"application/json" if message[:1] == b"{" else b"application/octet-stream"
        pairs = [(b"content-type", kind), (b"x-dbproxy-exchange", row.id.encode())]
        if detail.message_inexact:
            pairs.append((b"x-dbproxy-inexact", b"1"))
        return LocalResponse(200, Fields.of([*pairs, *_INERT]), message)

    return answer


def _stream(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    request.query()

    def answer(reader: Reader) -> LocalResponse:
        exchange = reader.resolve(request.parts["id"])
        pieces = reader.stream(exchange)
        if pieces is None:
            raise BadQuestion(
                f"the stream of {exchange} was not kept", status=404, hint="Streams are kept with --capture-stream"
            )
        shown = [{"at_ms": piece.at_ms, "text": piece.data.decode("utf-8", "replace")} for piece in pieces]
        return _json({"exchange": exchange, "pieces": shown})

    return answer


def _messages(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    """All that the model saw and what it answered. The texts go out as they are kept, not parsed and written anew."""
    request.query()

    def answer(reader: Reader) -> LocalResponse:
        exchange = reader.resolve(request.parts["id"])
        history = reader.history(exchange)
        body = b'{"exchange": "%s", "messages": [%s]}\n' % (exchange.encode(), b", ".join(history))
        return LocalResponse(200, Fields.of([(b"content-type", b"application/json"), *_INERT]), body)

    return answer


def _explain(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    from dbproxy.app.explaining import sentences

    request.query()

    def answer(reader: Reader) -> LocalResponse:
        detail = reader.exchange(request.parts["id"])
        return _json({"exchange": detail.exchange.id, "sentences": sentences(detail), "evidence": detail.evidence})

    return answer


def _conversations(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    query = request.query("project", "account", "since", "before", "limit")
    since, limit = _times(query)["since"], _limit(query)

    def answer(reader: Reader) -> LocalResponse:
        rows = reader.conversations(
            project=query.get("project"),
            account=query.get("account"),
            since=since,
            before=query.get("before"),
            limit=limit,
        )
        return _json({"conversations": rows, "next": rows[-1].cursor if len(rows) == limit else None})

    return answer


def _conversation(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    request.query()
    return lambda reader: _json(reader.conversation(request.parts["id"]))


def _search(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    query = request.query("q", "project", "conversation", "role", "before", "limit")
    words, limit = query.get("q", ""), min(_limit(query), 100)
    if not any(char.isalnum() for char in words):
        raise BadQuestion("there is no word to look for", hint="Ask for ?q=words, %22a phrase%22 or begin*")

    def answer(reader: Reader) -> LocalResponse:
        conversation = query.get("conversation")
        found = reader.search(
            words,
            project=query.get("project"),
            conversation=None if conversation is None else reader.resolve_conversation(conversation),
            role=query.get("role"),
            before=query.get("before"),
            limit=limit,
            seconds=DEADLINE / 2,
        )
        return _json({"hits": found.hits, "complete": found.complete, "next": found.cursor or None})

    return answer


def _usage(request: OwnRequest) -> Callable[[Reader], LocalResponse]:
    from dbproxy.model.usage_report import GROUPINGS

    query = request.query("by", "since", "until", "conversation", "project", "account", "model", "kind")
    times, now = _times(query), time.time()
    by = tuple(dict.fromkeys(name.strip() for name in query.get("by", "day").split(",") if name.strip()))
    unknown = [name for name in by if name not in GROUPINGS]
    if unknown:
        raise BadQuestion(f"unknown grouping {unknown[0][:64]!r}", hint=f"Known: {', '.join(GROUPINGS)}")

    def answer(reader: Reader) -> LocalResponse:
        from dbproxy.app.usage import usage

        known: dict[str, Any] = {name: query[name] for name in ("project", "account", "model") if name in query}
        if "kind" in query:
            known["kind"] = query["kind"].split(",")
        if "conversation" in query:
            known["conversation"] = reader.resolve_conversation(query["conversation"])
        return _json(usage(reader, now=now, by=by, **known, **times).as_json())

    return answer


# ---- parameters and answers


def _limit(query: dict[str, str]) -> int:
    text = query.get("limit")
    if text is None:
        return PAGE
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MOST:
        raise BadQuestion(f"limit is a number from 1 to {MOST}", hint="Follow `next` for more")
    return int(text)


def _times(query: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"since": None, "until": None}
    for name in found:
        if name in query:
            try:
                found[name] = parse_when(query[name], time.time())
            except ValueError as error:
                raise BadQuestion(f"{name}: {error}") from None
    return found


def _json(value: object) -> LocalResponse:
    from dbproxy.store.rows import as_json

    return respond.json_response(200, as_json(value), _INERT[1:])
