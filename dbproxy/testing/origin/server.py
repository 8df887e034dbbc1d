"""The fake API's listeners, certificates and life: ``open_origin``.

Own HTTP/1.1 on trio over h11, plain and TLS. Every await on a peer has a deadline.
"""

from __future__ import annotations

import datetime
import ssl
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import trio
import trustme

from dbproxy.errors import ConfigError
from dbproxy.testing.origin.api import Api
from dbproxy.testing.origin.connection import Peer, Talk
from dbproxy.testing.origin.received import Connection, Received

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from dbproxy.testing.origin.script import Answer, Script

NAMES = ("127.0.0.1", "localhost", "api.anthropic.com", "::1")
CERTIFICATES = ("good", "expired", "wrong_name", "untrusted")
RECORDS = ("all", "bodies", "heads")


# The TLS library calls back inside the handshake, which runs in the connection's own task.
_server_name: ContextVar[Connection] = ContextVar("connection in handshake")


def _note_server_name(_socket: object, name: str | None, _context: object) -> None:
    _server_name.get().server_name = name


class Origin:
    """A running fake API. Attributes may be read at any time; ``script`` may be replaced."""

    def __init__(self, api: Api, *, record: str, keep: int, peer_seconds: float) -> None:
        self.api = api
        self.host = "127.0.0.1"
        self.port = 0
        self.plain_port = 0
        self.tls_port = 0
        self.ca = trustme.CA()
        self.requests: list[Received] = []
        self.connections: list[Connection] = []
        self.violations: list[tuple[int, str]] = []  # connection number and what was not HTTP
        self.keep_bodies = record == "all"
        self.peer_seconds = peer_seconds
        self._keep_raw = record == "all"
        self._keep = keep
        self._count = 0
        self._connection_count = 0
        self._changed = trio.Event()
        self.on_finished: list[Any] = []  # called with each finished request; must not block

    @property
    def script(self) -> Script:
        """The script in force."""
        return self.api.script

    @script.setter
    def script(self, given: Any) -> None:
        self.api.replace(given)

    @property
    def url(self) -> str:
        """Base URL of the TLS listener where there is one, else of the plain one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.tls_port}" if self.tls_port else f"http://{host}:{self.plain_port}"

    @property
    def ca_pem(self) -> bytes:
        """The certificate that a client of the TLS listener must trust."""
        return self.ca.cert_pem.bytes()

    @property
    def open_connections(self) -> list[Connection]:
        """Those that neither side has ended."""
        return [connection for connection in self.connections if connection.closed_at is None]

    async def wait_requests(self, count: int, *, complete: bool = True, seconds: float = 10.0) -> list[Received]:
        """Wait until ``count`` requests came (and are complete); returns them. TooSlowError after ``seconds``."""
        with trio.fail_after(seconds):
            while True:
                got = [request for request in self.requests if request.complete or not complete]
                if len(got) >= count:
                    return got
                await self._changed.wait()

    async def wait_answered(self, *, seconds: float = 10.0) -> None:
        """Wait until every request's answer ended, one way or the other. TooSlowError after ``seconds``."""
        with trio.fail_after(seconds):
            while any(request.sent.finished_at is None for request in self.requests):
                await self._changed.wait()

    # What a connection asks of its server

    def early_answer(self, request: Received) -> Answer | None:
        """By the head alone."""
        return self.api.early(request)

    def answer(self, request: Received) -> Answer:
        """With the body."""
        self._note()
        return self.api.answer(request)

    def arrived(self, request: Received) -> None:
        """A head is there."""
        self.requests.append(request)
        if len(self.requests) > self._keep:
            old = self.requests.pop(0)
            old.connection.requests[:] = [r for r in old.connection.requests if r is not old]
        self._note()

    def finished(self, request: Received) -> None:
        """Its answer ended, one way or the other."""
        self._note()
        for call in self.on_finished:
            call(request)

    def violation(self, connection: Connection, text: str) -> None:
        """A connection said something that is not HTTP."""
        self.violations.append((connection.number, text))
        self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def next_number(self) -> int:
        """Numbers for requests, from 1."""
        self._count += 1
        return self._count

    # Connections

    async def serve_plain(self, stream: trio.SocketStream) -> None:
        """One plain connection."""
        await self._serve(stream, stream, self._new(tls=False))

    async def serve_tls(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        """One TLS connection."""
        connection = self._new(tls=True)
        _server_name.set(connection)
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)  # noqa: TID251  the oracle is apart from our own TLS on purpose
        try:
            with trio.fail_after(min(10.0, self.peer_seconds)):
                await secured.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            connection.how = f"tls: {error.__cause__ or error!r}"
            self._end(connection)
            await trio.aclose_forcefully(stream)
            return
        connection.alpn = secured.selected_alpn_protocol()
        await self._serve(secured, stream, connection)

    def _new(self, *, tls: bool) -> Connection:
        self._connection_count += 1
        connection = Connection(number=self._connection_count, tls=tls, opened=trio.current_time())
        self.connections.append(connection)
        if len(self.connections) > self._keep:
            del self.connections[0]
        return connection

    def _end(self, connection: Connection) -> None:
        connection.closed_at = trio.current_time()
        connection.closed.set()
        self._note()

    async def _serve(self, stream: trio.abc.Stream, raw: trio.SocketStream, connection: Connection) -> None:
        peer = Peer(stream, connection, keep=self._keep_raw, seconds=self.peer_seconds)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.pump)
                await Talk(peer, self, self.next_number).run()
                connection.how = connection.how or "ours"
                nursery.cancel_scope.cancel()
            await peer.farewell()
        finally:
            try:
                await trio.aclose_forcefully(raw)
            finally:
                self._end(connection)


def server_context(
    origin: Origin, names: Sequence[str], alpn: Sequence[str], certificate: str = "good"
) -> ssl.SSLContext:
    """The TLS listener's context, with a certificate that is good or bad in one way."""
    if certificate not in CERTIFICATES:
        raise ConfigError(f"no certificate kind {certificate!r}", hint=f"use one of {', '.join(CERTIFICATES)}")
    authority = trustme.CA() if certificate == "untrusted" else origin.ca
    if certificate == "wrong_name":
        names = ("somewhere.else.test",)
    now = datetime.datetime.now(datetime.UTC)
    if certificate == "expired":
        leaf = authority.issue_cert(
            *names, not_before=now - datetime.timedelta(days=9), not_after=now - datetime.timedelta(days=1)
        )
    else:
        leaf = authority.issue_cert(*names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    context.sni_callback = _note_server_name
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@asynccontextmanager
async def open_origin(
    script: Any = None,
    *,
    tls: bool = False,
    host: str = "127.0.0.1",
    port: int = 0,
    plain_port: int | None = None,
    names: Sequence[str] = NAMES,
    alpn: Sequence[str] = ("http/1.1",),
    certificate: str = "good",
    record: str = "all",
    keep: int = 100_000,
    peer_seconds: float = 900.0,
    make: Callable[[Any], Api] = Api,
) -> AsyncIterator[Origin]:
    """Run a fake Messages API on loopback.

    ``script`` is what ``script_from`` takes: None, a scenario's name, one Answer for every message, a callable,
    rules, a JSON object or a path. ``port`` is the one of the TLS listener with ``tls``, else of the plain one;
    ``plain_port`` adds a plain listener beside TLS. ``record``: ``all`` keeps every byte, ``bodies`` no raw bytes and
    bodies up to 1 MiB, ``heads`` the same without connections' bytes; ``keep`` bounds the number of requests and
    connections kept. ``peer_seconds`` is how long a peer may take nothing. ``make`` gives another API than Messages.
    """
    if record not in RECORDS:
        raise ConfigError(f"no record kind {record!r}", hint=f"use one of {', '.join(RECORDS)}")
    origin = Origin(make(script), record=record, keep=keep, peer_seconds=peer_seconds)
    origin.host = host
    async with trio.open_nursery() as nursery:
        if tls:
            context = server_context(origin, names, alpn, certificate)

            async def serve_tls(stream: trio.SocketStream) -> None:
                await origin.serve_tls(stream, context)

            listeners = await trio.open_tcp_listeners(port, host=host, backlog=512)
            origin.tls_port = origin.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, serve_tls, listeners)
        if not tls or plain_port is not None:
            listeners = await trio.open_tcp_listeners(port if not tls else plain_port or 0, host=host, backlog=512)
            origin.plain_port = listeners[0].socket.getsockname()[1]
            origin.port = origin.port or origin.plain_port
            nursery.start_soon(trio.serve_listeners, origin.serve_plain, listeners)
        try:
            yield origin
        finally:
            nursery.cancel_scope.cancel()
