"""The bytes of one exchange between a client and an upstream, both ways.

Owns the upload, the answer's relay loop, informational heads and upgraded connections. Must never know policies:
filters and taps come in as values. Invariants: what was read is written before anything else sees it; a tap gets a copy
and is never awaited; a truncated answer never ends cleanly; nothing decides by content type whether to forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from dbproxy.app.client import ClientGone
from dbproxy.errors import ProtocolViolation, UpstreamError
from dbproxy.exchange import ResponseHead
from dbproxy.net.streams import ConnectionBroken
from dbproxy.wire import h1

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.app.capture import Recording
    from dbproxy.app.client import ClientConnection
    from dbproxy.exchange import Exchange
    from dbproxy.net.streams import SocketStream
    from dbproxy.net.upstream import UpstreamConnection
    from dbproxy.wire.sse import SseEvent


class Filters(Protocol):
    """Inline filters of one answer: payload in, payload out; ``events`` are those that the last payload completed."""

    events: list[SseEvent]

    def feed(self, data: bytes, /) -> bytes: ...
    def end(self, complete: bool, /) -> bytes: ...


class Feed(Protocol):
    """Where copies of an answer's payload go, as bytes or, split already, as events; both calls return at once."""

    def data(self, chunk: bytes, /) -> None: ...
    def events(self, events: list[SseEvent], size: int, /) -> None: ...


class Flight:
    """What is known of an exchange under way, for the sweeper and for status pages.

    ``waiting`` is the time since when we wait for the upstream, 0.0 while we do not.
    """

    __slots__ = ("answered", "client", "exchange", "scope", "timed_out", "waiting")

    def __init__(self, exchange: Exchange, client: ClientConnection, scope: trio.CancelScope) -> None:
        self.exchange = exchange
        self.client = client
        self.scope = scope
        self.waiting = 0.0
        self.answered = False  # a byte of an answer went to the client
        self.timed_out = False

    def give_up(self) -> None:
        """End the exchange because the upstream was silent for too long."""
        self.timed_out = True
        self.scope.cancel()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request ready to be sent: ``first`` are the head and the body bytes at hand, ``body`` finds the body's end.

    ``rest`` are body bytes at hand that are too many to be copied behind the head.
    """

    first: bytes
    body: h1.Body
    rest: bytes = b""


async def send_request(flight: Flight, upstream: UpstreamConnection, outgoing: Outgoing) -> None:
    """Send what is at hand. Raises UpstreamError."""
    flight.waiting = trio.current_time()
    try:
        await upstream.stream.send(outgoing.first)
        if outgoing.rest:
            await upstream.stream.send(outgoing.rest)
    except ConnectionBroken as error:
        raise UpstreamError("closed", f"{upstream.origin.host}: {error}") from None


class _Both:
    """Two feeds as one."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Feed, second: Feed) -> None:
        self._first, self._second = first, second

    def data(self, chunk: bytes) -> None:
        self._first.data(chunk)
        self._second.data(chunk)

    def events(self, events: list[SseEvent], size: int) -> None:
        self._first.events(events, size)
        self._second.events(events, size)


def both(first: Feed | None, second: Feed | None) -> Feed | None:
    """One feed for both, or the only one that there is."""
    return _Both(first, second) if first is not None and second is not None else first or second


async def upload(
    flight: Flight, upstream: UpstreamConnection, body: h1.Body, recording: Recording | None = None
) -> None:
    """Stream the rest of a request body. Raises ClientGone and ProtocolViolation; an upstream that stops reading is
    left to whoever reads its answer."""
    client = flight.client
    stream = upstream.stream
    exchange = flight.exchange
    while not body.done:
        flight.waiting = 0.0  # for as long as the client makes us wait, the upstream's silence is not its fault
        data = await client.receive_body()
        flight.waiting = trio.current_time()
        used = body.feed(data)
        if used < len(data):
            client.unread(data[used:])
            data = data[:used]
        exchange.bytes_up = body.count
        try:
            await stream.send(data)
        except ConnectionBroken:
            return
        if recording is not None and body.keep:
            recording.uploaded(body.take())


def client_head(
    head: ResponseHead, framing: h1.Framing, *, rewritten: bool, version: bytes, close: bool
) -> ResponseHead:
    """The head as the client gets it: fields of this hop removed, framing as the body will really be sent.

    ``rewritten`` says that the payload may change its length; ``close`` that we close afterwards.
    """
    fields = h1.end_to_end(head.fields, keep_upgrade=head.status == 101)
    if framing.kind is not h1.Kind.NONE:
        if version != b"HTTP/1.1" and framing.kind is h1.Kind.CHUNKED:
            fields = fields.without(frozenset({b"transfer-encoding", b"trailer"}))
        elif rewritten and framing.kind is h1.Kind.LENGTH:
            fields = fields.without(frozenset({b"content-length"}))
            if version == b"HTTP/1.1":
                fields = fields.plus(b"Transfer-Encoding", b"chunked")
    if close and head.status != 101:
        fields = fields.plus(b"Connection", b"close")
    elif version != b"HTTP/1.1" and head.status != 101:
        fields = fields.plus(b"Connection", b"keep-alive")  # without it a client of HTTP/1.0 would wait for the end
    if fields is head.fields and head.version == b"HTTP/1.1":
        return head
    return ResponseHead(head.status, head.reason, b"HTTP/1.1", fields)


class ResponseRelay:
    """One answer on its way from the upstream to the client."""

    def __init__(
        self,
        flight: Flight,
        upstream: UpstreamConnection,
        framing: h1.Framing,
        filters: Filters | None,
        feed: Feed | None,
    ) -> None:
        self._flight = flight
        self._upstream = upstream
        self._filters = filters
        self._feed = feed
        self._version = flight.exchange.request.version
        # An HTTP/1.0 client does not know chunks: it gets the payload and then the end of the connection.
        self._unwrap = framing.kind is h1.Kind.CHUNKED and self._version != b"HTTP/1.1"
        self._wrap = filters is not None and not self._unwrap and framing.kind in (h1.Kind.CHUNKED, h1.Kind.LENGTH)
        self._wrap = self._wrap and self._version == b"HTTP/1.1"
        self.body = h1.Body(framing, keep=filters is not None or feed is not None or self._unwrap)

    async def run(self, head: bytes, rest: bytes) -> None:
        """Relay everything; ``head`` goes out with the first bytes.

        Raises UpstreamError("closed") when the upstream ended too early, and ClientGone.
        """
        flight, body, feed, filters = self._flight, self.body, self._feed, self._filters
        stream = self._upstream.stream
        exchange = flight.exchange
        send = flight.client.stream.send
        plain = filters is None and not self._unwrap
        data = rest
        out = head
        now = trio.current_time
        try:
            while True:
                payload = b""
                if data:
                    used = body.feed(data)
                    if used < len(data):
                        self._upstream.stale = True  # it sent more than its answer: not to be used again
                    if body.keep:
                        payload = body.take()
                    if plain:
                        piece = data if used == len(data) else data[:used]
                    else:
                        piece = self._transformed(payload)
                    out = out + piece if out else piece
                if body.done and not plain:
                    out += self._end()
                if out:
                    flight.waiting = 0.0
                    await send(out)
                    flight.answered = True
                    out = b""
                exchange.bytes_down = body.count
                if payload and feed is not None:
                    if filters is None:
                        feed.data(payload)
                    else:
                        events, filters.events = filters.events, []
                        feed.events(events, len(payload))
                if body.done:
                    return
                flight.waiting = now()
                try:
                    data = await stream.receive()
                except ConnectionBroken as error:
                    raise UpstreamError("closed", f"{self._upstream.origin.host}: {error}") from None
                if not data:
                    await self._upstream_ended(send)
                    return
        except ConnectionBroken as error:
            raise ClientGone(str(error)) from None
        except ProtocolViolation as error:
            await self._flush_filters()
            raise UpstreamError("protocol", f"{self._upstream.origin.host}: {error}") from None
        except UpstreamError:
            await self._flush_filters()
            raise

    async def _flush_filters(self) -> None:
        """Hand over the part of an event that a filter was waiting to see whole: the break must lose nothing."""
        if self._filters is not None:
            held = self._filters.end(False)
            if held:
                await self._flight.client.send(h1.chunk(held) if self._wrap else held)

    async def _upstream_ended(self, send: Callable[[bytes], object]) -> None:
        if self.body.kind is not h1.Kind.CLOSE or self._upstream.stream.truncated:
            raise UpstreamError("closed", f"{self._upstream.origin.host} broke off in the middle of its answer")
        self.body.done = True
        tail = self._end()
        if tail:
            await self._flight.client.send(tail)

    def _transformed(self, payload: bytes) -> bytes:
        if self._filters is not None:
            payload = self._filters.feed(payload)
        return h1.chunk(payload) if payload and self._wrap else payload

    def _end(self) -> bytes:
        tail = self._filters.end(True) if self._filters is not None else b""
        if not self._wrap:
            return tail
        trailers = b"".join(line + b"\r\n" for line in self.body.trailers)
        return (h1.chunk(tail) if tail else b"") + b"0\r\n" + trailers + b"\r\n"


async def both_ways(
    client: SocketStream, upstream: SocketStream, to_client: bytes, to_upstream: bytes
) -> tuple[int, int]:
    """Relay an upgraded connection until both directions ended; (bytes up, bytes down). No idle limit.

    A direction that ends is half-closed towards the other side. A broken side ends both.
    """
    counts = [0, 0]

    async def pump(source: SocketStream, sink: SocketStream, first: bytes, index: int, scope: trio.CancelScope) -> None:
        try:
            data = first
            while True:
                if data:
                    await sink.send(data)
                    counts[index] += len(data)
                data = await source.receive()
                if not data:
                    break
            await sink.send_eof()
        except ConnectionBroken:
            scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, client, upstream, to_upstream, 0, nursery.cancel_scope)
        nursery.start_soon(pump, upstream, client, to_client, 1, nursery.cancel_scope)
    return counts[0], counts[1]
