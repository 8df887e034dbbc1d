"""The client's side of an answer that is made here piece by piece: its head, its events, the pings while nothing comes.

Owns when the head goes out and what the taps, the filters and the recording see. Must never know where the pieces come
from. Invariants: one writer at a time; before `commit` nothing of the answer is out; what a client reads of an event is
whole; HTTP/1.0 gets the payload without chunks and the connection's end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from dbproxy.app.relay import both
from dbproxy.exchange import Fields, ResponseHead
from dbproxy.hooks.taps import StreamFilters
from dbproxy.model.codecs.gate import PING
from dbproxy.wire import h1

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.app.capture import Recording
    from dbproxy.app.client import ClientConnection
    from dbproxy.app.proxy import Proxy
    from dbproxy.app.relay import Feed, Flight
    from dbproxy.exchange import Exchange
    from dbproxy.hooks.taps import TapFeed

#: Seconds without a byte after which a client is pinged. It gives up after 180 (client facts 0.8).
PING_EVERY: Final = 15.0
#: Seconds for which the head is held back, so that a failure can still be told by its status. Without a head the client
#: gives up after 182 (client facts 5).
HOLD: Final = 25.0


@dataclass(frozen=True, slots=True)
class Flow:
    """One exchange under way with all that acts on it."""

    proxy: Proxy
    exchange: Exchange
    client: ClientConnection
    flight: Flight
    recording: Recording | None


class Delivery:
    """Writes one streamed answer. ``fields`` are asked for when the head goes out."""

    def __init__(self, flow: Flow, fields: Callable[[], Fields]) -> None:
        self.committed = False
        self.feed: TapFeed | None = None
        self._flow = flow
        self._fields = fields
        self._filters: StreamFilters | None = None
        self._seen: Feed | None = None
        self._lock = trio.Lock()
        self._began = self._last = trio.current_time()
        self._chunked = flow.exchange.request.version == b"HTTP/1.1"
        self._out = b""  # the head, until it goes out with the first bytes

    @property
    def keeps(self) -> bool:
        """Can the client's connection carry another request afterwards?"""
        return self._chunked

    async def write(self, data: bytes) -> None:
        """Send events. Raises ClientGone."""
        if not data:
            return
        async with self._lock:
            await self._write(data)

    async def keep_alive(self) -> None:
        """Ping the client whenever it hears nothing else, until cancelled. Raises ClientGone."""
        while True:
            due = (self._last + PING_EVERY) if self.committed else (self._began + HOLD)
            now = trio.current_time()
            if now < due:
                await trio.sleep_until(min(due, now + PING_EVERY))
                continue
            async with self._lock:
                await self._write(PING)

    async def finish(self) -> None:
        """The answer is whole. Raises ClientGone."""
        async with self._lock:
            tail = self._filters.end(True) if self._filters is not None else b""
            if tail:
                await self._send(tail)
            if self._chunked:
                await self._flow.client.send(self._out + b"0\r\n\r\n")
                self._out = b""

    async def _write(self, data: bytes) -> None:
        if not self.committed:
            self._commit()
        shown = data
        if self._filters is not None:
            shown = self._filters.feed(data)
        if shown:
            await self._send(shown)
        self._last = trio.current_time()
        if self._seen is not None:
            if self._filters is None:
                self._seen.data(data)
            else:
                events, self._filters.events = self._filters.events, []
                self._seen.events(events, len(data))

    async def _send(self, data: bytes) -> None:
        flow = self._flow
        out = self._out + (h1.chunk(data) if self._chunked else data)
        self._out = b""
        await flow.client.send(out)
        flow.flight.answered = True
        flow.exchange.bytes_down += len(data)

    def _commit(self) -> None:
        """From here on the answer is a stream with status 200."""
        flow, exchange = self._flow, self._flow.exchange
        self.committed = True
        exchange.timings.first_byte = exchange.timings.first_byte or trio.current_time()
        head = exchange.response = ResponseHead(200, b"OK", b"HTTP/1.1", self._fields())
        dispatch = flow.proxy.dispatch
        if dispatch.has("transform_response_head"):
            head = dispatch.transform_sync("transform_response_head", head, exchange=exchange)
        self._filters = StreamFilters.for_exchange(dispatch, exchange, head)
        self.feed = flow.proxy.taps.open(exchange, exchange.response)
        self._seen = both(self.feed, flow.recording)
        gone = frozenset({b"content-length", b"transfer-encoding", b"connection", b"trailer"})
        fields = head.fields.without(gone)
        if self._chunked:
            fields = fields.plus(b"transfer-encoding", b"chunked")
        if not self._chunked or not h1.keeps_alive(exchange.request.version, exchange.request.fields):
            fields = fields.plus(b"connection", b"close")
        self._out = h1.serialise_response(ResponseHead(head.status, head.reason, b"HTTP/1.1", fields))
