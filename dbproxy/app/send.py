"""Upstream calls that a plugin makes of its own: same pool, same way out, captured, never a turn of a conversation.

Owns the life of such a call. It shares nothing with the path of a client's bytes but the pool. Invariants: every call
stands under the caller's deadline; a connection on which a call did not end cleanly is closed; the call's exchange is
recorded whatever happens.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from dbproxy.app.calls import Payload, ask
from dbproxy.app.ids import new_id
from dbproxy.errors import UpstreamError
from dbproxy.exchange import Exchange, Outcome, RequestHead, ResponseHead

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dbproxy.app.capture import Recording
    from dbproxy.app.proxy import Proxy
    from dbproxy.net.upstream import UpstreamConnection

_DECODED_LIMIT = 256 * 1024 * 1024


class Answer:
    """The upstream's answer: its head, and its body as decoded pieces. ``exchange`` is the call's own record."""

    def __init__(self, exchange: Exchange, head: ResponseHead, pieces: AsyncIterator[bytes]) -> None:
        self.exchange = exchange
        self.head = head
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def body(self) -> bytes:
        """All of it. Raises UpstreamError if it breaks off."""
        return b"".join([piece async for piece in self])


@asynccontextmanager
async def send(
    proxy: Proxy, on_behalf: Exchange, head: RequestHead, body: bytes, *, purpose: str, deadline: float
) -> AsyncIterator[Answer]:
    """Send a request to where ``on_behalf`` went, in its launch's way, and give its answer.

    ``head`` is in origin form and has no framing fields (they are put right here). ``deadline`` in seconds covers
    everything up to the answer's end; past it an UpstreamError("timeout") is raised. ``purpose`` names the call in the
    record. Raises UpstreamError and Refused.
    """
    scope = proxy.scopes.known(on_behalf.scope) if on_behalf.scope else None
    gone = frozenset({b"content-length", b"transfer-encoding", b"content-encoding", b"expect", b"connection"})
    fields = head.fields.without(gone).plus(b"Content-Length", b"%d" % len(body))
    request = RequestHead(head.method, head.target, b"HTTP/1.1", fields)
    exchange = Exchange(
        id=new_id(),
        connection=0,
        via=on_behalf.via,
        scheme=on_behalf.scheme,
        host=on_behalf.host,
        port=on_behalf.port,
        path=head.target.partition(b"?")[0].decode("latin-1"),
        request=request,
        scope=on_behalf.scope,
        authorised=on_behalf.authorised,
        loopback=on_behalf.loopback,
        body=body,
    )
    exchange.timings.received = trio.current_time()
    recording = proxy.archive.capture.begin(exchange, scope, proxy.settings_for(scope))
    if recording is not None:
        recording.purpose, recording.on_behalf = purpose, on_behalf
        recording.uploaded(body)
    call = _Call(proxy, exchange, recording)
    try:
        with trio.move_on_after(deadline) as limit:
            egress = proxy.egress_for(scope)
            origin, sent = proxy.destination(exchange, fields)
            connection = await egress.pool.acquire(origin)
            clean = False
            try:
                response, rest = await call.ask(connection, sent, body)
                yield Answer(exchange, response, call.pieces(connection, response, rest))
                clean = call.reusable
            finally:
                (egress.pool.release if clean else egress.pool.discard)(connection)
        if limit.cancelled_caught:
            raise UpstreamError("timeout", f"{exchange.host} did not finish within {deadline:g} s")
    except UpstreamError as error:
        exchange.outcome, exchange.error = Outcome.UPSTREAM_FAILED, str(error)
        if exchange.response is not None:
            exchange.outcome = Outcome.UPSTREAM_CUT
        raise
    finally:
        if exchange.outcome is None:
            exchange.outcome = Outcome.OK if call.complete else Outcome.CLIENT_GONE
        exchange.timings.finished = trio.current_time()
        if recording is not None:
            recording.finish()


class _Call:
    """``complete``: the answer came whole; ``reusable``: and its connection can be used again."""

    def __init__(self, proxy: Proxy, exchange: Exchange, recording: Recording | None) -> None:
        self.proxy = proxy
        self.exchange = exchange
        self.recording = recording
        self.complete = self.reusable = False

    async def ask(self, connection: UpstreamConnection, head: RequestHead, body: bytes) -> tuple[ResponseHead, bytes]:
        exchange = self.exchange
        exchange.timings.sent = trio.current_time()
        exchange.bytes_up = len(body)
        response, rest = await ask(connection, head, body)
        exchange.response = response
        exchange.timings.first_byte = trio.current_time()
        if self.recording is not None:
            self.recording.request_read()
        return response, rest

    async def pieces(self, connection: UpstreamConnection, head: ResponseHead, rest: bytes) -> AsyncIterator[bytes]:
        exchange, recording = self.exchange, self.recording

        def note(piece: bytes) -> None:
            exchange.bytes_down += len(piece)
            if recording is not None:
                recording.data(piece)

        try:
            payload = Payload(connection, head, rest, limit=_DECODED_LIMIT, method=exchange.request.method, raw=note)
            while (piece := await payload.next()) is not None:
                yield piece
        except UpstreamError as error:
            raise UpstreamError(error.kind, f"{exchange.host}: {error}") from None
        self.complete, self.reusable = payload.ended, payload.reusable
