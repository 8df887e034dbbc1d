"""HTTP/2 towards clients: each stream becomes a client of its own with one request.

Owns what is said about a client's HTTP/2 connection, and the crash boundary of its streams. Must never know frames or
policies. Invariants: one bad stream ends itself and nothing else; a stream that its client gave up ends its exchange at
once; a drain lets what is under way finish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from dbproxy.app import respond
from dbproxy.app.client import ClientConnection, ClientGone
from dbproxy.app.crash import CRASHES
from dbproxy.errors import ProtocolViolation
from dbproxy.exchange import Fields, LocalResponse
from dbproxy.net.h2mux import Mux
from dbproxy.net.streams import ConnectionBroken
from dbproxy.wire.h2 import Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbproxy.app.proxy import Proxy
    from dbproxy.exchange import RequestHead
    from dbproxy.net.h2stream import MuxStream

    #: Serves one request on a client connection, as for HTTP/1.1.
    Handle = Callable[[ClientConnection, RequestHead], Awaitable[bool]]
    Crashed = Callable[..., None]

ALPN = ("h2",)


class H2Server:
    """One client's HTTP/2 connection. ``handle`` serves a request, ``crashed`` is told what went wrong here."""

    def __init__(self, proxy: Proxy, client: ClientConnection, handle: Handle, crashed: Crashed) -> None:
        settings = proxy.settings
        self._proxy = proxy
        self._client = client
        self._handle = handle
        self._crashed = crashed
        self.mux = Mux(
            client.stream,
            Wire(client=False, max_head=settings.max_head_bytes),
            head_timeout=settings.head_timeout,
            idle_timeout=settings.client_idle_timeout,
            head_limit=settings.max_head_bytes,
            max_fields=settings.max_head_fields,
        )

    async def run(self, running: set[H2Server]) -> None:
        """Serve the connection until it ends; it stands in ``running`` for so long."""
        proxy, client, mux = self._proxy, self._client, self.mux
        proxy.counters.h2_connections_total += 1
        proxy.watch.remove(client.stream.sock.fileno())  # its reader notices by itself
        running.add(self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_drain)
                await mux.run(self._stream)
                nursery.cancel_scope.cancel()
        finally:
            running.discard(self)
            client.idle = None
            if mux.failure:
                proxy.counters.protocol_errors_total += 1
                proxy.journal.emit("h2_failed", level="warning", message=mux.failure, connection=client.id)

    async def _until_drain(self) -> None:
        """A drain cancels what waits for the next request; here that means GOAWAY."""
        with trio.CancelScope() as self._client.idle:
            if not self._proxy.draining:
                await trio.sleep_forever()
        self.mux.shutdown()

    async def _stream(self, stream: MuxStream, head: RequestHead | ProtocolViolation) -> None:
        """One request, from its head to the end of its stream."""
        client = self._client_of(stream)
        if stream.gone:
            client.hung_up()
        try:
            await self._answer(client, head)
        except (ClientGone, ConnectionBroken):
            stream.drop()
        except CRASHES as error:
            stream.drop()
            self._crashed(error, connection=client.id)
        except BaseExceptionGroup as group:
            stream.drop()
            mine, rest = group.split(CRASHES)
            if mine is not None:
                self._crashed(mine, connection=client.id)
            if rest is not None:
                raise rest from None
        except BaseException:
            stream.drop()
            raise
        else:
            stream.finish()

    async def _answer(self, client: ClientConnection, head: RequestHead | ProtocolViolation) -> None:
        error: ProtocolViolation
        if isinstance(head, ProtocolViolation):
            error = head
        else:
            try:
                if _is_grpc(head):
                    await client.answer(_NO_GRPC, method=head.method, version=b"HTTP/1.1", close=True)
                else:
                    await self._handle(client, head)
                return
            except ProtocolViolation as violation:
                error = violation
        self._proxy.counters.protocol_errors_total += 1
        response = respond.error_response(error.status, str(error))
        await client.answer(response, method=b"GET", version=b"HTTP/1.1", close=True)

    def _client_of(self, stream: MuxStream) -> ClientConnection:
        """The connection's client as the client of one stream."""
        whole, settings = self._client, self._proxy.settings
        client = ClientConnection(
            stream,
            number=whole.id,
            peer=whole.peer,
            loopback=whole.loopback,
            head_limit=settings.max_head_bytes,
            max_fields=settings.max_head_fields,
        )
        client.local_address, client.local_port = whole.local_address, whole.local_port
        client.via, client.scheme, client.host, client.port = whole.via, whole.scheme, whole.host, whole.port
        client.scope, client.looped = whole.scope, whole.looped
        client.requests = 1
        stream.on_gone = client.hung_up
        return client


def _is_grpc(head: RequestHead) -> bool:
    return (head.fields.get(b"content-type") or b"").lower().startswith(b"application/grpc")


#: UNIMPLEMENTED, as an answer without messages, which a gRPC client understands. gRPC needs HTTP/2 all the way.
_NO_GRPC = LocalResponse(
    200,
    Fields.of(
        [
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"12"),
            (b"grpc-message", b"dbproxy: gRPC is not relayed"),
            (b"x-dbproxy-error", b"1"),
        ]
    ),
)
