"""The client-facing side: what arrives on our port, and what it turns into.

Owns accepting, the first bytes on our own port and the loop of requests on a connection; tunnels are next door. Must
never know policies. Invariants: one bad connection ends itself and nothing else; bytes that arrived early are never
lost.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import trio

from dbproxy.app import guard, respond
from dbproxy.app.client import ClientConnection, ClientGone
from dbproxy.app.crash import CRASHES, describe_crash
from dbproxy.app.own import BODY_LIMIT, OwnEndpoints
from dbproxy.app.tunnels import LINGER, Tunnels
from dbproxy.errors import ProtocolViolation
from dbproxy.exchange import Via
from dbproxy.net.streams import ConnectionBroken, SocketStream, TlsStream, close_gracefully
from dbproxy.wire import h1
from dbproxy.wire.sniff import Sniff
from dbproxy.wire.target import Form, parse_target

if TYPE_CHECKING:
    from dbproxy.app.h2 import H2Server
    from dbproxy.app.pipeline import Pipeline
    from dbproxy.app.proxy import Proxy
    from dbproxy.exchange import LocalResponse, RequestHead

_MOST_LEAVING = 16  # clients over the limit that are let down gently at a time; each holds a file descriptor
#: accept() failing with one of these is our shortage, not the client's fault.
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class Server:
    """Serves client connections until told to drain."""

    def __init__(self, proxy: Proxy, pipeline: Pipeline, nursery: trio.Nursery) -> None:
        self.proxy = proxy
        self.pipeline = pipeline
        self.own = OwnEndpoints(proxy, pipeline)
        self.connections: set[ClientConnection] = set()
        self.h2: set[H2Server] = set()
        self._nursery = nursery
        self._numbers = 0
        self._most = proxy.connection_limit()
        self._leaving = 0
        self._emptied: trio.Event | None = None
        self.tunnels = Tunnels(
            proxy, nursery, serve=self._first_bytes, requests=self._requests, h2=self._h2, crashed=self._crashed
        )

    async def wait_empty(self) -> None:
        """Wait until the last connection has ended."""
        while self.connections:
            self._emptied = trio.Event()
            await self._emptied.wait()

    # ---- accepting

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections on a listening, non-blocking socket until cancelled."""
        proxy = self.proxy
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()  # the socket is closed in the moment of the cancellation
            await trio.lowlevel.wait_readable(listener)
            # A burst of tunnels is taken in small helpings, so that running streams get their turn in between.
            for _ in range(8):
                try:
                    sock, address = listener.accept()
                except (BlockingIOError, InterruptedError):
                    break
                except OSError as error:
                    if error.errno in _SHORTAGE:
                        proxy.counters.accept_errors_total += 1
                        proxy.journal.emit("accept_failed", level="error", message=error.strerror)
                        await trio.sleep(0.2)
                    break
                try:
                    self._accepted(sock, address)
                except (OSError, ConnectionBroken):
                    sock.close()  # reset before it was taken: nobody is there to be told

    def _accepted(self, sock: socket.socket, address: tuple[str, int]) -> None:
        counters = self.proxy.counters
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if counters.connections_open >= self._most:
            counters.connections_refused_total += 1
            busy = respond.error_response(
                529, "too many connections are open; raise max_connections and the limit of open files"
            )
            head = h1.serialise_response(respond.response_head(busy, close=True))
            SocketStream(sock).send_nowait(head + busy.body)
            if self._leaving < _MOST_LEAVING:
                self._leaving += 1
                self._nursery.start_soon(self._turned_away, sock)
            else:
                sock.close()
            return
        local = sock.getsockname()[:2]
        self._numbers += 1
        counters.connections_total += 1
        counters.connections_open += 1
        self._nursery.start_soon(self._serve, sock, self._numbers, address[0], local)

    async def _turned_away(self, sock: socket.socket) -> None:
        """See that a client which was told to go hears it: its request, unread, would turn our close into a reset."""
        try:
            await close_gracefully(SocketStream(sock), 1.0)
        finally:
            sock.close()
            self._leaving -= 1

    async def _serve(self, sock: socket.socket, number: int, peer: str, local: tuple[str, int]) -> None:
        """One connection from its first byte to its end: the crash boundary."""
        settings = self.proxy.settings
        client = ClientConnection(
            SocketStream(sock),
            number=number,
            peer=peer,
            loopback=_is_loopback(peer),
            head_limit=settings.max_head_bytes,
            max_fields=settings.max_head_fields,
        )
        client.local_address, client.local_port = local
        self.connections.add(client)
        fd = sock.fileno()
        try:
            await self._first_bytes(client)
        except (ClientGone, ConnectionBroken):
            pass
        except CRASHES as error:
            self._crashed(error, connection=number, peer=peer)
        except BaseExceptionGroup as group:
            # Cancelled from outside while something of ours failed: only the cancellation goes on.
            mine, rest = group.split(CRASHES)
            if mine is not None:
                self._crashed(mine, connection=number, peer=peer)
            if rest is not None:
                raise rest from None
        finally:
            # A tunnel has closed its socket already, and the number may be another connection's by now.
            self.proxy.watch.remove(fd, client.hung_up)
            client.stream.close()
            self.connections.discard(client)
            if self._emptied is not None and not self.connections:
                self._emptied.set()
            self.proxy.counters.connections_open -= 1

    def _crashed(self, error: BaseException, **where: object) -> None:
        self.proxy.counters.crashes_total += 1
        self.proxy.journal.emit("connection_crashed", level="error", error=describe_crash(error), **where)

    async def _first_bytes(self, client: ClientConnection) -> None:
        """See what protocol is spoken to our own port."""
        seen, kind = await self.tunnels.sniff(client, self.proxy.settings.head_timeout)
        if kind is Sniff.TLS:
            stream = TlsStream(client.stream.sock, self.proxy.authority.own_context(), server_side=True, prefix=seen)
            if not await self.tunnels.handshake(client, stream):
                return
            seen = b""
            if stream.tls.selected_alpn_protocol() == "h2":
                await self._h2(client)
                return
        if kind is Sniff.H2_PREFACE:
            client.stream.unread(seen)
            await self._h2(client)
        else:
            client.unread(seen)
            await self._requests(client)

    # ---- requests

    async def _requests(self, client: ClientConnection) -> None:
        """The loop of requests on one connection, inside or outside a tunnel."""
        settings = self.proxy.settings
        self.proxy.watch.add(client.stream.sock.fileno(), client.hung_up)
        while True:
            try:
                idle_until = trio.current_time() + settings.client_idle_timeout
                with trio.CancelScope(deadline=idle_until) as client.idle:
                    if self.proxy.closing or (self.proxy.draining and not client.fresh):
                        return
                    head = await client.read_head(
                        idle_timeout=settings.client_idle_timeout, head_timeout=settings.head_timeout
                    )
                if client.idle.cancelled_caught or head is None:
                    return
                client.idle = None
                if head.method == b"CONNECT":
                    await self.tunnels.connect(client, head)
                    return
                keep = await self._request(client, head)
            except ProtocolViolation as error:
                self.proxy.counters.protocol_errors_total += 1
                await client.answer(
                    respond.error_response(error.status, str(error)), method=b"GET", version=b"HTTP/1.1", close=True
                )
                keep = False
            if not keep:
                if not client.stream.closed:
                    await close_gracefully(client.stream, LINGER)
                return

    async def _h2(self, client: ClientConnection) -> None:
        """The requests of a client that speaks HTTP/2; each stream is a client of its own."""
        from dbproxy.app.h2 import H2Server  # most proxies never meet such a client

        client.fresh = False  # it is told in good order to go, and loses nothing
        await H2Server(self.proxy, client, self._request, self._crashed).run(self.h2)

    async def _request(self, client: ClientConnection, head: RequestHead) -> bool:
        """Find out what a request is for; whether the connection can carry another one."""
        target = parse_target(head.target)
        via, scheme, host, port = client.via, client.scheme, client.host, client.port
        if target.form is Form.ABSOLUTE:
            if not self.proxy.is_own(target.host, target.port):
                via, scheme, host, port = Via.ABSOLUTE, target.scheme, target.host, target.port
                self.tunnels.take_scope(client, head)
        elif target.form is Form.AUTHORITY:
            raise ProtocolViolation("a request target needs a path")
        path = target.path_and_query
        if via is Via.BASE_URL:
            names = (client.local_address,)
            if guard.is_cross_site(head.fields, names):
                return await self._local(
                    client, head, respond.error_response(403, "a page of another site may not use this proxy")
                )
            if self.own.owns(target.path):
                return await self._own(client, head, target.path)
            upstream = self.proxy.upstream
            scheme, host, port = upstream.scheme, upstream.host, upstream.port
        elif via is Via.ABSOLUTE and guard.is_cross_site(head.fields, (client.local_address, host)):
            return await self._local(
                client, head, respond.error_response(403, "a page of another site may not use this proxy")
            )
        return await self.pipeline.handle(client, head, via=via, scheme=scheme, host=host, port=port, target=path)

    async def _own(self, client: ClientConnection, head: RequestHead, path: str) -> bool:
        body = h1.Body(h1.request_framing(head), keep=True)
        with trio.move_on_after(self.proxy.settings.head_timeout):
            while not body.done and body.count <= BODY_LIMIT:
                data = await client.receive_body()
                client.unread(data[body.feed(data) :])
        if not body.done or body.count > BODY_LIMIT:
            late = body.count <= BODY_LIMIT
            refusal = (408, "the body did not arrive in time") if late else (413, "the body is too large")
            return await self._local(client, head, respond.error_response(*refusal))
        response = await self.own.answer(
            head, path, body.take(), names=(client.local_address,), loopback=client.loopback
        )
        return await self._local(client, head, response, keep=True)

    async def _local(
        self, client: ClientConnection, head: RequestHead, response: LocalResponse, *, keep: bool = False
    ) -> bool:
        keep = keep and h1.keeps_alive(head.version, head.fields)
        await client.answer(response, method=head.method, version=head.version, close=not keep)
        return keep


def _is_loopback(peer: str) -> bool:
    return peer == "127.0.0.1" or peer == "::1" or peer.startswith(("127.", "::ffff:127."))
