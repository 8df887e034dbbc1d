"""One client connection as the pipeline sees it: heads, body bytes, answers, and whether the client is still there.

Owns reading requests off a stream and writing answers to it. Must never know upstreams or policies.
Invariants: a byte that was read and not consumed is still there for the next reader; after a failed or cancelled write
the connection is not used again.
"""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING

import trio

from dbproxy.app import respond
from dbproxy.errors import ProtocolViolation
from dbproxy.exchange import Via
from dbproxy.net.streams import ConnectionBroken, SocketStream
from dbproxy.wire import h1

if TYPE_CHECKING:
    from dbproxy.exchange import LocalResponse, RequestHead
    from dbproxy.scope import Scope


class ClientGone(Exception):
    """The client closed or broke its connection."""


class ClientConnection:
    """A client's byte stream with HTTP/1.1 on it.

    ``via``, ``scheme``, ``host`` and ``port`` say what origin-form requests on it mean.
    """

    __slots__ = (
        "buffer",
        "fresh",
        "gone",
        "head_limit",
        "host",
        "id",
        "idle",
        "local_address",
        "local_port",
        "loopback",
        "looped",
        "max_fields",
        "peer",
        "port",
        "requests",
        "scheme",
        "scope",
        "stream",
        "under_way",
        "via",
    )

    def __init__(
        self, stream: SocketStream, *, number: int, peer: str, loopback: bool, head_limit: int, max_fields: int
    ) -> None:
        self.stream = stream
        self.id = number
        self.peer = peer
        self.loopback = loopback
        self.looped = False  # inside a tunnel to ourselves
        self.head_limit = head_limit
        self.max_fields = max_fields
        self.local_address = ""
        self.local_port = 0
        self.idle: trio.CancelScope | None = None  # the wait for the next request, which a drain may end
        self.via = Via.BASE_URL
        self.scheme = "http"
        self.host = ""
        self.port = 0
        self.scope: Scope | None = None
        self.buffer = h1.HeadBuffer(head_limit)
        self.gone = False
        self.requests = 0
        self.fresh = True  # connected or granted a tunnel, and not yet asked for anything
        self.under_way: trio.CancelScope | None = None

    def hung_up(self) -> None:
        """Told by the hang-up watch: ends the request that is under way."""
        self.gone = True
        if self.under_way is not None:
            self.under_way.cancel()

    def is_about_to_ask(self) -> bool:
        """Whether a request can be expected: part of one is here, or the client has only just come.

        To close on such a client loses its request; on one that has been served it is what clients are prepared for.
        """
        if self.fresh or len(self.buffer):
            return True
        try:
            return bool(self.stream.sock.recv(1, socket.MSG_PEEK))
        except OSError:  # nothing there, or nobody
            return False

    async def read_head(self, *, idle_timeout: float, head_timeout: float) -> RequestHead | None:
        """The next request head; None when the client ended or idled away between two requests.

        Where ``idle`` is set its deadline bounds the wait, not ``idle_timeout``.
        Raises ProtocolViolation (408 when the head does not come to its end in time) and ClientGone.
        """
        buffer = self.buffer
        buffer.skip_blank_lines()
        if not len(buffer):
            data = await self._first_of_head(idle_timeout)
            if not data:
                return None
            buffer.feed(data)
            buffer.skip_blank_lines()
            if not len(buffer):
                return None
        raw = buffer.take()
        if raw is None:
            if self.idle is not None:
                self.idle.deadline = math.inf  # it is not idle any more
            raw = await self._rest_of_head(head_timeout)
            if raw is None:
                return None
        self.requests += 1
        self.fresh = False
        return h1.parse_request_head(raw, max_fields=self.max_fields)

    async def _first_of_head(self, idle_timeout: float) -> bytes:
        """What begins the next request; empty when the client ended or idled away."""
        if self.idle is not None:
            return await self._receive()  # the caller's scope ends the wait; one more would cost every request
        with trio.move_on_after(idle_timeout):
            return await self._receive()
        return b""

    async def _rest_of_head(self, head_timeout: float) -> bytes | None:
        buffer = self.buffer
        with trio.move_on_after(head_timeout):
            while True:
                data = await self._receive()
                if not data:
                    return None
                buffer.feed(data)
                raw = buffer.take()
                if raw is not None:
                    return raw
        raise ProtocolViolation("the request header did not arrive in time", status=408)

    async def _receive(self) -> bytes:
        try:
            return await self.stream.receive()
        except ConnectionBroken as error:
            raise ClientGone(str(error)) from None

    async def receive_body(self) -> bytes:
        """More bytes of a request body. Raises ClientGone at the end of the stream."""
        if len(self.buffer):
            return self.buffer.rest()
        data = await self._receive()
        if not data:
            raise ClientGone("the client closed the connection before the end of its request")
        return data

    def unread(self, data: bytes) -> None:
        """Give back bytes that belong to the next request."""
        if data:
            self.buffer.feed(data)

    async def send(self, data: bytes) -> None:
        """Write to the client, for as long as it takes. Raises ClientGone."""
        try:
            await self.stream.send(data)
        except ConnectionBroken as error:
            raise ClientGone(str(error)) from None

    async def answer(self, response: LocalResponse, *, method: bytes, version: bytes, close: bool) -> int:
        """Send a local answer whole; the number of body bytes sent. Raises ClientGone.

        An exception from the answer's own ``stream`` passes through; the caller must then drop the connection.
        """
        chunked = response.stream is not None and version == b"HTTP/1.1"
        close = close or (response.stream is not None and not chunked)
        head = h1.serialise_response(respond.response_head(response, close=close, chunked=chunked))
        if response.stream is None or method == b"HEAD":
            body = b"" if method == b"HEAD" else response.body
            await self.send(head + body)
            return len(body)
        await self.send(head)
        sent = 0

        async def send_body(data: bytes) -> None:
            nonlocal sent
            if data:
                await self.send(h1.chunk(data) if chunked else data)
                sent += len(data)

        await response.stream(send_body)
        if chunked:
            await self.send(b"0\r\n\r\n")
        return sent
