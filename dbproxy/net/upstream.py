"""Connections to the servers behind us: opening, pooling, and speaking HTTP/1.1 on one.

Owns: dialling with TLS, the keep-alive pool, reading a response head with its informational heads. Must never know
what a request means.

Invariants
- A pooled connection whose end has been seen is never used; one that dies after the first byte was written is never
  retried, because the server may have acted.
- Nothing of one exchange is left on a connection that goes back to the pool.
- A connection is watched for its server hanging up from its first rest on, also while it is used: telling the kernel
  twice per request would cost more than an idle wake-up. So it ends through `Pool.release` or `Pool.discard` only.
- TLS is always verified.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from dbproxy.errors import ProtocolViolation, UpstreamError
from dbproxy.net.streams import ConnectionBroken, SocketStream, TlsStream, plain_socket
from dbproxy.net.trust import describe_verify_error
from dbproxy.wire import h1

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from dbproxy.exchange import ResponseHead
    from dbproxy.net.dial import Dialer
    from dbproxy.net.watch import HangupWatch

_INFORMATIONAL_LIMIT = 16


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request goes: the pool's key. ``private_ok`` False refuses addresses of this machine and its networks.

    ``http1`` asks for HTTP/1.1 where the pool would try HTTP/2, for what only that can do (upgrades).
    """

    scheme: str
    host: str
    port: int
    private_ok: bool = True
    direct: bool = False  # past the user's own proxy
    http1: bool = False


class UpstreamConnection:
    """One HTTP/1.1 connection to an origin."""

    __slots__ = ("head_limit", "idle_since", "max_fields", "origin", "requests", "stale", "stream", "watched")

    def __init__(self, origin: Origin, stream: SocketStream, *, head_limit: int, max_fields: int) -> None:
        self.origin = origin
        self.stream = stream
        self.head_limit = head_limit
        self.max_fields = max_fields
        self.idle_since = 0.0
        self.requests = 0
        self.stale = False  # the server hung up
        self.watched = -1  # the file number under which it is watched

    async def read_head(
        self, *, on_informational: Callable[[bytes, ResponseHead], Awaitable[None]]
    ) -> tuple[ResponseHead, bytes]:
        """The final response head, and what came behind it.

        Informational heads (100, 103) go to ``on_informational`` as raw bytes and parsed; 101 is final. Raises
        UpstreamError("closed") when the server ends the connection first and UpstreamError("protocol") on nonsense.
        """
        buffer = h1.HeadBuffer(self.head_limit)
        stream = self.stream
        try:
            for _ in range(_INFORMATIONAL_LIMIT):
                raw = buffer.take()
                while raw is None:
                    data = await stream.receive()
                    if not data:
                        how = "in the middle of its header" if len(buffer) else "before its answer"
                        raise UpstreamError("closed", f"{self.origin.host} closed the connection {how}")
                    buffer.feed(data)
                    raw = buffer.take()
                head = h1.parse_response_head(raw, max_fields=self.max_fields)
                if head.status >= 200 or head.status == 101:
                    return head, buffer.rest()
                await on_informational(raw, head)
        except ConnectionBroken as error:
            raise UpstreamError("closed", f"{self.origin.host}: {error}") from None
        except ProtocolViolation as error:
            raise UpstreamError("protocol", f"{self.origin.host}: {error}") from None
        raise UpstreamError("protocol", f"{self.origin.host} sends informational answers without end")


class Pool:
    """Keep-alive connections, the newest first, and eager ones.

    ``size`` bounds the idle connections per origin; one idle for more than ``idle_timeout`` seconds is closed.
    """

    def __init__(
        self,
        dialer: Dialer,
        context: ssl.SSLContext,
        watch: HangupWatch,
        *,
        size: int,
        idle_timeout: float,
        handshake_timeout: float,
        head_limit: int,
        max_fields: int,
    ) -> None:
        self._dialer = dialer
        self._context = context
        self._watch = watch
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._warming: dict[Origin, trio.Event] = {}
        self.size = size
        self.idle_timeout = idle_timeout
        self.handshake_timeout = handshake_timeout
        self.head_limit = head_limit
        self.max_fields = max_fields
        self.opened = 0
        self.reused = 0

    def idle_count(self) -> int:
        """How many connections wait in the pool."""
        return sum(map(len, self._idle.values()))

    def take_nowait(self, origin: Origin) -> UpstreamConnection | None:
        """An idle connection whose end has not been seen, or None."""
        idle = self._idle.get(origin)
        now = trio.current_time()
        while idle:
            connection = idle.pop()
            if connection.stale or now - connection.idle_since > self.idle_timeout or not connection.stream.is_quiet():
                self.discard(connection)
                continue
            self.reused += 1
            return connection
        return None

    async def acquire(self, origin: Origin) -> UpstreamConnection:
        """An idle connection or a new one. Raises UpstreamError or Refused."""
        connection = self.take_nowait(origin)
        if connection is None and origin in self._warming:
            await self._warming[origin].wait()
            connection = self.take_nowait(origin)
        return connection or await self.open(origin)

    async def open(self, origin: Origin) -> UpstreamConnection:
        """Dial ``origin`` anew. Raises UpstreamError or Refused."""
        sock = plain_socket(
            await self._dialer.connect(origin.host, origin.port, direct=origin.direct, allow_private=origin.private_ok)
        )
        stream: SocketStream
        try:
            if origin.scheme == "https":
                stream = await self._start_tls(sock, origin)
            else:
                stream = SocketStream(sock)
        except BaseException:
            sock.close()
            raise
        self.opened += 1
        return UpstreamConnection(origin, stream, head_limit=self.head_limit, max_fields=self.max_fields)

    def _context_for(self, origin: Origin) -> ssl.SSLContext:
        return self._context

    async def _start_tls(self, sock: socket.socket, origin: Origin) -> TlsStream:
        stream = TlsStream(sock, self._context_for(origin), server_side=False, server_hostname=origin.host)
        try:
            with trio.fail_after(self.handshake_timeout):
                await stream.handshake()
        except trio.TooSlowError:
            raise UpstreamError("timeout", f"no TLS handshake with {origin.host} in time") from None
        except ConnectionBroken as error:
            raise UpstreamError("tls", f"{origin.host} broke the TLS handshake: {error}") from None
        except (ssl.SSLError, ssl.CertificateError) as error:
            sentence, hint = describe_verify_error(error, origin.host)
            raise UpstreamError("tls", sentence, hint=hint) from None
        return stream

    def release(self, connection: UpstreamConnection) -> None:
        """Take back a connection on which an exchange ended cleanly."""
        stream = connection.stream
        idle = self._idle.setdefault(connection.origin, [])
        unfit = stream.closed or stream.broken or stream.eof or stream.buffered
        if connection.stale or unfit or len(idle) >= self.size:
            self.discard(connection)
            return
        connection.idle_since = trio.current_time()
        idle.append(connection)
        if connection.watched < 0:
            connection.watched = stream.sock.fileno()
            self._watch.add(connection.watched, lambda: self._hung_up(connection))

    def _hung_up(self, connection: UpstreamConnection) -> None:
        connection.stale = True
        idle = self._idle.get(connection.origin, [])
        if connection in idle:
            idle.remove(connection)
            self.discard(connection)

    def discard(self, connection: UpstreamConnection) -> None:
        """Close a connection that is not used again."""
        if connection.watched >= 0:
            self._watch.remove(connection.watched)
            connection.watched = -1
        connection.stream.close()

    def is_warm(self, origin: Origin) -> bool:
        """Whether `warm` has nothing to do."""
        return bool(self._idle.get(origin)) or origin in self._warming

    async def warm(self, origin: Origin) -> None:
        """Have one idle connection ready, without waiting for a request; failures are left to the request."""
        if self.is_warm(origin):
            return
        done = self._warming[origin] = trio.Event()
        try:
            self.release(await self.open(origin))
        except (UpstreamError, OSError):
            pass
        finally:
            del self._warming[origin]
            done.set()

    def expire(self) -> None:
        """Close what has been idle for too long."""
        horizon = trio.current_time() - self.idle_timeout
        for origin, idle in list(self._idle.items()):
            for connection in [c for c in idle if c.idle_since < horizon]:
                idle.remove(connection)
                self.discard(connection)
            if not idle:
                del self._idle[origin]

    def close(self) -> None:
        """Close every idle connection."""
        for idle in self._idle.values():
            for connection in idle:
                self.discard(connection)
        self._idle.clear()
