"""Tunnels: what a CONNECT asks for, and what is then spoken inside.

Owns the answer to CONNECT, who may tunnel where, blind relays, the look at the first bytes, TLS towards clients and the
clients that do not take our certificate. Must never know requests: those go back to the server. Invariants: every
CONNECT gets an answer; a client that we cannot read is relayed blindly rather than broken; bytes that arrived early are
never lost.
"""

from __future__ import annotations

import base64
import ssl
from typing import TYPE_CHECKING

import trio

from dbproxy.app import respond
from dbproxy.app.client import ClientConnection, ClientGone
from dbproxy.app.crash import CRASHES
from dbproxy.app.proxy import MODEL_HOST
from dbproxy.errors import CertificateError, DbproxyError, ProtocolViolation, Refused, UpstreamError
from dbproxy.exchange import Via
from dbproxy.hooks.specs import ConnectionFacts
from dbproxy.net import tunnel
from dbproxy.net.address import is_private
from dbproxy.net.streams import ConnectionBroken, TlsStream, close_gracefully
from dbproxy.net.tls import HTTP1, describe_peer_failure, is_rejection
from dbproxy.net.upstream import Origin
from dbproxy.wire.sniff import ClientHello, Sniff, client_hello, sniff
from dbproxy.wire.target import Authority, parse_authority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbproxy.app.proxy import Proxy
    from dbproxy.exchange import RequestHead
    from dbproxy.net.upstream import Pool
    from dbproxy.scope import Scope

_ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"
#: ALPN names of HTTP/1; a client that offers only HTTP/1.0 (curl --http1.0) goes on without ALPN.
_HTTP1 = frozenset({"http/1.1", "http/1.0"})
_SILENT_REJECTION = 2.0  # seconds after a handshake within which leaving without a word means no trust
LINGER = 2.0  # seconds for a client to take our last bytes while it still sends


class Tunnels:
    """Answers CONNECT. ``serve`` takes a connection from its first bytes, ``requests`` and ``h2`` one that speaks HTTP;
    ``crashed`` notes an error of ours that ends nothing but its own task.
    """

    def __init__(
        self,
        proxy: Proxy,
        nursery: trio.Nursery,
        *,
        serve: Callable[[ClientConnection], Awaitable[None]],
        requests: Callable[[ClientConnection], Awaitable[None]],
        h2: Callable[[ClientConnection], Awaitable[None]],
        crashed: Callable[..., None],
    ) -> None:
        self.proxy = proxy
        self._nursery = nursery
        self._serve = serve
        self._requests = requests
        self._h2 = h2
        self._crashed = crashed

    async def sniff(self, client: ClientConnection, seconds: float) -> tuple[bytes, Sniff]:
        """The first bytes, and what they are; garbage counts as HTTP, which then says what is wrong with it."""
        seen = b""
        kind = Sniff.NEED_MORE
        with trio.move_on_after(seconds) as client.idle:
            if self.proxy.closing:
                raise ClientGone("told to stop before its first byte")
            while kind is Sniff.NEED_MORE:
                data = await client.stream.receive()
                if not data:
                    raise ClientGone("closed without a request")
                seen += data
                client.idle = None
                kind = sniff(seen)
        if not seen:
            raise ClientGone("no byte in time")
        return seen, kind

    def take_scope(self, client: ClientConnection, head: RequestHead) -> None:
        """Learn from Proxy-Authorization which launch this is; credentials that name none count as none."""
        raw = head.fields.get(b"proxy-authorization")
        if raw is not None:
            client.scope = self._scope(raw)

    def _scope(self, raw: bytes) -> Scope | None:
        scheme, _, value = raw.partition(b" ")
        if scheme.lower() != b"basic":
            return None
        try:
            user, _, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except ValueError:
            return None
        return self.proxy.scopes.lookup(user, password)

    async def connect(self, client: ClientConnection, head: RequestHead) -> None:
        """Answer a CONNECT and become what it asked for."""
        proxy = self.proxy
        if client.stream.secure or client.via is Via.TUNNEL:
            # What follows works on the bare socket, and inside somebody's tunnel CONNECT is not ours to answer.
            error = ProtocolViolation(
                "CONNECT needs a plain connection to this proxy", hint="Use http:// in HTTPS_PROXY"
            )
            await self._connect_failed(client, head, error.status, error)
            return
        self.take_scope(client, head)
        try:
            authority = parse_authority(head.target, None)
            if not client.loopback and _is_private_name(authority.host):
                raise Refused(403, "permission_error", "private addresses are not reachable from another machine")
            decision = await self._policy(client, authority)
        except (ProtocolViolation, Refused) as error:
            await self._connect_failed(client, head, error.status, error)
            return
        if proxy.is_own(authority.host, authority.port):
            # Some clients tunnel to their loopback base URL through the proxy: that is us, so serve it here.
            if client.looped:
                loop = ProtocolViolation("a tunnel to this proxy inside a tunnel to this proxy")
                await self._connect_failed(client, head, loop.status, loop)
                return
            client.looped = True
            await client.send(_ESTABLISHED)
            client.stream.unread(client.buffer.rest())
            proxy.watch.remove(client.stream.sock.fileno())
            await self._serve(client)
        elif decision == "pass":
            await self._pass(client, head, authority)
        else:
            await client.send(_ESTABLISHED)
            await self._intercept(client, authority)

    async def _policy(self, client: ClientConnection, authority: Authority) -> str:
        proxy = self.proxy
        decision = "pass" if proxy.degraded else None
        if not decision and proxy.dispatch.has("tunnel_policy") and not proxy.passthrough_for(client.scope):
            facts = ConnectionFacts(client.id, client.peer, client.loopback, client.scope.id if client.scope else None)
            decision = await proxy.dispatch.decide(
                "tunnel_policy", connection=facts, host=authority.host, port=authority.port
            )
        if decision == "refuse":
            raise Refused(403, "permission_error", f"a plugin refuses connections to {authority.host}")
        return decision or ("intercept" if authority.host in proxy.intercepted else "pass")

    async def _connect_failed(self, client: ClientConnection, head: RequestHead, status: int, error: Exception) -> None:
        self.proxy.counters.connects_refused_total += 1
        self.proxy.journal.emit(
            "connect_failed", level="warning", status=status, message=str(error), scope=_scope_id(client)
        )
        response = respond.error_response(status, str(error))
        await client.answer(response, method=b"GET", version=head.version, close=True)
        await close_gracefully(client.stream, LINGER)

    async def _pass(self, client: ClientConnection, head: RequestHead, authority: Authority) -> None:
        """A blind tunnel; the CONNECT is answered once the other side is reached."""
        try:
            with _watched(client) as scope:
                dialer = self.proxy.egress_for(client.scope).dialer
                upstream = await dialer.connect(authority.host, authority.port, allow_private=client.loopback)
        except UpstreamError as error:
            await self._connect_failed(client, head, 504 if error.kind == "timeout" else 502, error)
            return
        except Refused as error:
            await self._connect_failed(client, head, error.status, error)
            return
        except DbproxyError as error:  # a setting of this launch that cannot be used, for example its upstream_ca
            await self._connect_failed(client, head, 502, error)
            return
        if scope.cancelled_caught:
            return
        try:
            await client.send(_ESTABLISHED)
        except BaseException:
            upstream.close()
            raise
        await self._blind(client, upstream, client.buffer.rest(), authority, "not_intercepted")

    async def _blind(
        self, client: ClientConnection, upstream: trio.socket.SocketType, seen: bytes, authority: Authority, why: str
    ) -> None:
        proxy = self.proxy
        proxy.counters.connects_tunnelled_total += 1
        proxy.journal.emit(
            "connect_passthrough", host=authority.host, port=authority.port, reason=why, scope=_scope_id(client)
        )
        proxy.watch.remove(client.stream.sock.fileno())
        stats = await tunnel.relay(client.stream.sock, upstream, preface_to_b=seen)
        proxy.counters.tunnel_bytes_total += stats.bytes_a_to_b + stats.bytes_b_to_a

    async def _dial_and_blind(self, client: ClientConnection, seen: bytes, authority: Authority, why: str) -> None:
        """Turn a tunnel that was already granted into a blind one."""
        try:
            dialer = self.proxy.egress_for(client.scope).dialer
            upstream = await dialer.connect(authority.host, authority.port, allow_private=client.loopback)
        except DbproxyError as error:
            self.proxy.journal.emit("connect_failed", level="warning", message=str(error), scope=_scope_id(client))
            return
        await self._blind(client, upstream, seen, authority, why)

    # ---- interception

    async def _intercept(self, client: ClientConnection, authority: Authority) -> None:
        """Speak for ``authority`` inside the tunnel, whatever the client speaks."""
        proxy = self.proxy
        proxy.watch.remove(client.stream.sock.fileno())
        client.stream.unread(client.buffer.rest())
        client.via, client.host, client.port = Via.TUNNEL, authority.host, authority.port
        client.fresh = True
        proxy.journal.emit("connect_redirect", host=authority.host, port=authority.port, scope=_scope_id(client))
        seen, kind = await self.sniff(client, proxy.settings.client_idle_timeout)
        if kind in (Sniff.HTTP, Sniff.H2_PREFACE):
            proxy.counters.connects_intercepted_total += 1
            client.scheme = "http"
            if kind is Sniff.H2_PREFACE:
                client.stream.unread(seen)
                await self._h2(client)
            else:
                client.unread(seen)
                await self._requests(client)
            return
        if kind is not Sniff.TLS:
            await self._dial_and_blind(client, seen, authority, "not_http")
            return
        seen, hello = await self._hello(client, seen)
        name, why = self._leaf_name(client, authority, hello)
        if why:
            await self._dial_and_blind(client, seen, authority, why)
            return
        client.scheme = "https"
        self._warm_up(client.scope, authority)
        # HTTP/1.1 wherever it is offered: that way every byte is relayed as it came.
        h2 = hello is not None and "h2" in hello.alpn and _HTTP1.isdisjoint(hello.alpn)
        await self._speak_tls(client, authority, seen, name, hello.fingerprint if hello else "", h2=h2)

    async def _hello(self, client: ClientConnection, seen: bytes) -> tuple[bytes, ClientHello | None]:
        """The whole ClientHello; None if it is none, which the handshake will then say in TLS."""
        try:
            hello = client_hello(seen)
            if hello is not None:  # nearly always: it comes in one piece
                return seen, hello
            with trio.move_on_after(self.proxy.settings.handshake_timeout):
                while True:
                    data = await client.stream.receive()
                    if not data:
                        raise ClientGone("closed in the middle of its ClientHello")
                    seen += data
                    hello = client_hello(seen)
                    if hello is not None:
                        return seen, hello
        except ProtocolViolation:
            return seen, None
        raise ClientGone("the ClientHello did not arrive in time")

    def _leaf_name(self, client: ClientConnection, authority: Authority, hello: ClientHello | None) -> tuple[str, str]:
        """The name to show a certificate for, or why this tunnel stays blind."""
        proxy = self.proxy
        name = authority.host
        if hello is None:
            return name, ""
        if hello.server_name and hello.server_name != name:
            if hello.server_name not in proxy.intercepted:
                return "", "other_server_name"
            name = hello.server_name
        if hello.alpn and "h2" not in hello.alpn and _HTTP1.isdisjoint(hello.alpn):
            return "", "no_http"
        root = client.scope.root if client.scope else None
        if not proxy.authority.covers(name, root):
            return "", "root_does_not_cover"
        if proxy.rejections.should_tunnel(_scope_id(client), name, hello.fingerprint, trio.current_time()):
            return "", "certificate_rejected"
        return name, ""

    async def _speak_tls(
        self, client: ClientConnection, authority: Authority, seen: bytes, name: str, kind: str, *, h2: bool
    ) -> None:
        proxy = self.proxy
        alpn = ("h2",) if h2 else HTTP1
        try:
            context = proxy.authority.leaf_context(name, client.scope.root if client.scope else None, alpn=alpn)
        except CertificateError as error:
            proxy.journal.emit("certificate_failed", level="error", message=str(error), host=name)
            await self._dial_and_blind(client, seen, authority, "no_certificate")
            return
        stream = TlsStream(client.stream.sock, context, server_side=True, prefix=seen)
        if not await self.handshake(client, stream, host=name, kind=kind):
            return
        proxy.counters.connects_intercepted_total += 1
        began = trio.current_time()
        first = b""
        try:
            with trio.move_on_after(proxy.settings.client_idle_timeout) as client.idle:
                if not proxy.closing:
                    first = await stream.receive()
        except ConnectionBroken:
            pass
        if first:
            proxy.rejections.worked(_scope_id(client), name, kind)
            if h2:
                stream.unread(first)
                await self._h2(client)
            else:
                client.unread(first)
                await self._requests(client)
        elif not proxy.closing and trio.current_time() - began < _SILENT_REJECTION:
            # With TLS 1.2 a client checks the certificate when we are done already, and just leaves.
            self._rejected(client, name, kind, "it left without a request after the handshake")

    async def handshake(self, client: ClientConnection, stream: TlsStream, *, host: str = "", kind: str = "") -> bool:
        """Complete a client's handshake, a few at a time; whether it succeeded."""
        proxy = self.proxy
        failure: BaseException
        try:
            with trio.fail_after(proxy.settings.handshake_timeout):
                await stream.handshake(turn=proxy.handshakes)
            client.stream = stream
            return True
        except trio.TooSlowError:
            failure = TimeoutError()
        except ConnectionBroken:
            failure = ConnectionResetError()
        except ssl.SSLError as error:
            failure = error
        proxy.counters.handshakes_failed_total += 1
        if host and is_rejection(failure, answered=stream.bytes_out > 0):
            self._rejected(client, host, kind, describe_peer_failure(failure))
        else:
            proxy.journal.emit(
                "handshake_failed",
                level="warning",
                host=host or None,
                message=describe_peer_failure(failure),
                scope=_scope_id(client),
            )
        return False

    def _rejected(self, client: ClientConnection, host: str, kind: str, why: str) -> None:
        proxy = self.proxy
        proxy.counters.certificates_rejected_total += 1
        tunnelled = proxy.rejections.failed(_scope_id(client), host, kind, trio.current_time())
        proxy.journal.emit(
            "certificate_rejected",
            level="warning",
            host=host,
            message=why,
            tunnelled_now=tunnelled,
            scope=_scope_id(client),
        )

    def _warm_up(self, scope: Scope | None, authority: Authority) -> None:
        """Open the upstream connection while the client still shakes hands, unless one is waiting already."""
        upstream = self.proxy.upstream
        origin = (
            Origin(upstream.scheme, upstream.host, upstream.port)
            if authority.host == MODEL_HOST
            else Origin("https", authority.host, authority.port)
        )
        try:
            pool = self.proxy.egress_for(scope).pool
        except DbproxyError:
            return
        if not pool.is_warm(origin):
            self._nursery.start_soon(self._warm, pool, origin)

    async def _warm(self, pool: Pool, origin: Origin) -> None:
        try:
            await pool.warm(origin)
        except DbproxyError:
            pass
        except CRASHES as error:
            self._crashed(error)


class _watched:
    """A cancel scope that the hang-up watch cancels when the client goes."""

    def __init__(self, client: ClientConnection) -> None:
        self._client = client
        self._scope = trio.CancelScope()

    def __enter__(self) -> trio.CancelScope:
        self._client.under_way = self._scope
        if self._client.gone:
            self._scope.cancel()
        return self._scope.__enter__()

    def __exit__(self, *error: object) -> bool | None:
        self._client.under_way = None
        return self._scope.__exit__(*error)  # type: ignore[arg-type]


def _scope_id(client: ClientConnection) -> str | None:
    return client.scope.id if client.scope else None


def _is_private_name(host: str) -> bool:
    """Whether a literal address is private; names are checked when they are resolved."""
    try:
        return is_private(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
