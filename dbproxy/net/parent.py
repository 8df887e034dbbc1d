"""The user's own proxy, through which we reach the network where there is one.

Owns: reading its URL, the CONNECT handshake over http:// and https://, and the bridge that makes an https:// parent
look like a plain socket. Must never read the process environment: callers pass the mapping they mean. Must never
import ``dial`` (which imports this).

Invariants:
- Credentials go to the parent only, and appear in no text that we make.
- Nothing behind the parent's reply is lost: a server may speak first, right behind the 200.
- What we cannot speak (SOCKS, PAC files, NTLM) is said in one line, and then we go direct.
"""

from __future__ import annotations

import base64
import re
import select
import socket
import ssl
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes, urlsplit

import trio

from dbproxy.errors import UpstreamError
from dbproxy.net.address import NoProxy, is_own_listener, parse_ip, plain
from dbproxy.net.streams import ConnectionBroken, SocketStream, TlsStream

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

# Lower case first: curl ignores the upper-case HTTP_PROXY, requests and most others prefer the lower case. The client
# itself uses any of them for https (client facts, section 1).
VARIABLES: Final = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
NO_PROXY_VARIABLES: Final = ("no_proxy", "NO_PROXY")

HANGUP_SECONDS: Final = 0.25  # how soon a closed client ends a bridge that is only receiving
REPLY_LIMIT: Final = 16 * 1024  # bytes of a reply's head, interim replies included
_PORTS: Final = {"http": 80, "https": 443}
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] +([1-5][0-9]{2})(?: +([^\r\n]*))?\r?$")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class ParentConfig:
    """An HTTP proxy that we use for what ``no_proxy`` does not exempt. ``origin`` says who named it."""

    scheme: str  # "http" or "https": how we talk to the proxy itself
    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)  # value of Proxy-Authorization; empty: none
    no_proxy: NoProxy = field(default_factory=NoProxy)
    origin: str = "configuration"

    @property
    def url(self) -> str:
        """Its URL without credentials."""
        return f"{self.scheme}://{_authority(self.host, self.port)}"

    def applies_to(self, host: str, port: int) -> bool:
        """Whether a connection to ``host`` goes through it. This machine is always reached directly: to the parent,
        ``localhost`` would be its own.
        """
        address = parse_ip(host)
        if address is not None and (plain(address).is_loopback or plain(address).is_unspecified):
            return False
        if is_localhost(host):
            return False
        return not self.no_proxy.matches(host, port)

    @classmethod
    def parse(
        cls,
        setting: str | None,
        env: Mapping[str, str],
        *,
        no_proxy: Iterable[str] | str | None = None,
        own_listeners: Collection[tuple[str, int]] = (),
    ) -> tuple[ParentConfig | None, list[str]]:
        """The parent proxy to use, or None for direct connections, and notices: one line each, for the log.

        ``setting`` is what our own configuration says (``""``, ``none`` and ``direct`` mean no parent); None looks at
        ``env`` (names in VARIABLES). ``no_proxy`` None: from ``env`` too. A URL that leads to one of ``own_listeners``
        is a left-over of one of our own launches and is passed over.
        """
        notices: list[str] = []
        if no_proxy is None:
            no_proxy = next((env[name] for name in NO_PROXY_VARIABLES if env.get(name, "").strip()), "")
        exempt = NoProxy.parse(no_proxy)
        if setting is not None:
            candidates: Iterator[tuple[str, str]] = iter((("the parent proxy setting", setting),))
        else:
            candidates = ((name, env.get(name, "")) for name in VARIABLES)
        seen: set[str] = set()
        for origin, raw in candidates:
            text = raw.strip()
            if not text or text in seen or (setting is not None and text.lower() in ("none", "direct")):
                continue
            seen.add(text)
            parent, problem = _parse_url(text, exempt, origin)
            if parent is not None and _is_ours(parent, own_listeners):
                parent, problem = None, f"{origin} names dbproxy itself (left over from a launch): ignored"
            if problem:
                notices.append(problem)
            if parent is not None:
                return parent, notices
        return None, notices


class ParentUnusable(Exception):
    """The parent wants something that we cannot do; the text is the notice for it. Connections go direct."""


def is_localhost(host: str) -> bool:
    """Whether the name stands for this machine (RFC 6761 6.3)."""
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def _is_ours(parent: ParentConfig, listeners: Collection[tuple[str, int]]) -> bool:
    host = "127.0.0.1" if is_localhost(parent.host) else parent.host
    address = parse_ip(host)
    return address is not None and is_own_listener(
        address, parent.port, listeners, lambda candidate: candidate.is_loopback
    )


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse_url(text: str, exempt: NoProxy, origin: str) -> tuple[ParentConfig | None, str]:
    """The parent that ``text`` names, or a notice. The text itself is never repeated: it may hold a password."""
    scheme, separator, _ = text.partition("://")
    scheme = scheme.lower() if separator else "http"
    if scheme.startswith("socks"):
        return None, f"{origin} names a SOCKS proxy, which dbproxy cannot use: connecting directly"
    if scheme.startswith("pac+") or re.search(r"\.(?:pac|dat)(?:[?#]|$)", text, re.IGNORECASE):
        return None, f"{origin} names a PAC file, which dbproxy cannot use: connecting directly"
    if scheme not in _PORTS:
        return None, f"{origin} has an unknown kind of proxy URL: connecting directly. Write http://HOST:PORT"
    try:
        parts = urlsplit(text if separator else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not host.isascii() or re.search(r"[\s\x00-\x1f\x7f]", host) or port == 0:
        return None, f"{origin} is not a readable proxy URL: connecting directly. Write http://HOST:PORT"
    authorization = b""
    if parts.username is not None:
        pair = unquote_to_bytes(parts.username) + b":" + unquote_to_bytes(parts.password or "")
        authorization = b"Basic " + base64.b64encode(pair)
    return ParentConfig(scheme, host, port or _PORTS[scheme], authorization, exempt, origin), ""


async def open_tunnel(
    sock: socket.socket,
    parent: ParentConfig,
    host: str,
    port: int,
    *,
    timeout: float,
    context: ssl.SSLContext | None = None,
    nursery: trio.Nursery | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> socket.socket:
    """Ask the parent, to which ``sock`` is connected, for a tunnel to ``host``:``port``.

    Returns a non-blocking socket that carries the tunnel: ``sock`` itself for an http:// parent, one end of a bridge
    for an https:// one (that needs ``context``, which verifies the parent, and a ``nursery`` for the bridge's task).
    ``timeout``: seconds for TLS and reply together. Takes ``sock`` over and closes it on failure. Raises
    UpstreamError("parent") and ParentUnusable.
    """
    try:
        with trio.fail_after(timeout):
            if parent.scheme == "http":
                await _ask(SocketStream(sock), parent, host, port, peek=True)
                return sock
            if context is None or nursery is None:
                raise ValueError("an https:// parent proxy needs a TLS context and a nursery")
            stream = TlsStream(sock, context, server_side=False, server_hostname=parent.host)
            await _shake_hands(stream, parent)
            await _ask(stream, parent, host, port, peek=False)
            ours, theirs = socket.socketpair()
            nursery.start_soon(bridge, stream, theirs, notice)
            ours.setblocking(False)
            return ours
    except trio.TooSlowError:
        _close(sock)
        raise UpstreamError(
            "parent", f"the proxy {parent.url} did not answer CONNECT {_authority(host, port)} within {timeout:g} s"
        ) from None
    except BaseException:
        _close(sock)
        raise


async def bridge(stream: TlsStream, inner: socket.socket, notice: Callable[[str], None]) -> None:
    """Carry bytes between the TLS connection to a parent and our end of a socket pair, until both directions ended.

    Why a pair: with it everything above sees a plain socket, and the common case, no parent or an http:// one, pays
    nothing for the rare one. Its price is one more copy, and that a cut connection ends like a closed one (a Unix
    socket knows no reset): what runs inside marks its own end, by TLS or by HTTP's framing.
    """
    inner.setblocking(False)
    plain_end = SocketStream(inner)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_bridge_up, plain_end, stream, nursery.cancel_scope)
            nursery.start_soon(_bridge_down, stream, plain_end, nursery.cancel_scope)
    except* Exception as failures:  # a bug may end this connection, never the nursery that it runs in
        notice(f"a connection through the parent proxy failed: {failures.exceptions[0]!r}")
    finally:
        plain_end.close()
        stream.close()


async def _bridge_up(source: SocketStream, sink: TlsStream, scope: trio.CancelScope) -> None:
    try:
        while data := await source.receive():
            await sink.send(data)
        try:
            sink.tls.unwrap()  # says close_notify; OpenSSL goes on reading
        except ssl.SSLError:
            pass
        await sink._flush()
        sink.sock.shutdown(socket.SHUT_WR)
        while True:
            if _hung_up(source.sock):
                break
            await trio.sleep(HANGUP_SECONDS)
    except (ConnectionBroken, OSError):
        pass
    scope.cancel()


async def _bridge_down(source: TlsStream, sink: SocketStream, scope: trio.CancelScope) -> None:
    try:
        while data := await source.receive():
            await sink.send(data)
        sink.sock.shutdown(socket.SHUT_WR)
    except (ConnectionBroken, OSError):
        scope.cancel()


def _hung_up(sock: socket.socket) -> bool:
    """Whether the other end of the pair is closed, not only done with sending. Known on Linux; elsewhere the next
    write finds out.
    """
    if sys.platform != "linux":
        return False
    poll = select.poll()
    poll.register(sock, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def _close(sock: socket.socket) -> None:
    trio.lowlevel.notify_closing(sock)
    sock.close()


async def _shake_hands(stream: TlsStream, parent: ParentConfig) -> None:
    try:
        await stream.handshake()
    except ssl.SSLError as failure:
        reason = getattr(failure, "verify_message", "") or failure.reason or "TLS failed"
        raise UpstreamError(
            "parent",
            f"no TLS with the proxy {parent.url}: {reason}",
            hint="If its certificate is your company's own, name the authority in DBPROXY_UPSTREAM_CA",
        ) from None
    except ConnectionBroken as failure:
        raise UpstreamError("parent", f"the proxy {parent.url} broke off the TLS handshake: {failure}") from None


async def _ask(stream: SocketStream, parent: ParentConfig, host: str, port: int, *, peek: bool) -> None:
    """Send CONNECT and read the reply. What stands behind it stays in the socket (``peek``) or in ``stream``."""
    target = _authority(host, port).encode("ascii")
    lines = [b"CONNECT " + target + b" HTTP/1.1", b"Host: " + target]
    if parent.authorization:
        lines.append(b"Proxy-Authorization: " + parent.authorization)
    reply = _Reply(parent)
    try:
        await stream.send(b"\r\n".join([*lines, b"", b""]))
        while True:
            data = await (_peek(stream.sock) if peek else stream.receive())
            if not data:
                raise UpstreamError("parent", f"the proxy {parent.url} closed the connection without a reply")
            used = reply.feed(data)
            if peek:
                stream.sock.recv(used)
            else:
                stream.unread(data[used:])
            if reply.complete:
                break
    except (ConnectionBroken, OSError) as failure:
        raise UpstreamError("parent", f"the proxy {parent.url} broke off: {failure}") from None
    reply.check(target.decode("ascii"))


async def _peek(sock: socket.socket) -> bytes:
    """What has arrived, left where it is: only the reply may be taken from the socket that others will read."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return sock.recv(REPLY_LIMIT, socket.MSG_PEEK)
        except BlockingIOError:
            continue


class _Reply:
    """The parent's answer to CONNECT, read as leniently as it is safe: proxies are old."""

    __slots__ = ("_buffer", "_parent", "_taken", "complete", "fields", "reason", "status")

    def __init__(self, parent: ParentConfig) -> None:
        self._parent = parent
        self._buffer = b""
        self._taken = 0
        self.complete = False
        self.status = 0
        self.reason = ""
        self.fields: list[tuple[str, str]] = []

    def feed(self, data: bytes) -> int:
        """Take bytes of the head; how many of ``data`` belong to it. Raises UpstreamError("parent")."""
        before = len(self._buffer)
        self._buffer += data
        if not b"HTTP/1.".startswith(self._buffer[:7]):
            raise UpstreamError("parent", f"the proxy {self._parent.url} does not answer in HTTP")
        end = _HEAD_END.search(self._buffer)
        length = end.end() if end else len(self._buffer)
        self._taken += length - before
        if self._taken > REPLY_LIMIT:
            raise UpstreamError("parent", f"the proxy {self._parent.url} sends a reply head without end")
        if end:
            self._parse(self._buffer[: end.start()])
            self._buffer = b""
            self.complete = self.status >= 200
        return length - before

    def _parse(self, head: bytes) -> None:
        first, *lines = head.split(b"\n")
        match = _STATUS_LINE.match(first)
        if match is None:
            raise UpstreamError("parent", f"the proxy {self._parent.url} answers with an unreadable status line")
        self.status = int(match[1])
        self.reason = _printable(match[2] or b"")
        pairs = (line.decode("latin-1").partition(":") for line in lines)
        self.fields = [(name.strip().lower(), value.strip()) for name, _, value in pairs]

    def check(self, target: str) -> None:
        """Raise unless the tunnel is open."""
        if 200 <= self.status < 300:
            return
        parent = self._parent
        if self.status != 407:
            said = f"{self.status} {self.reason}".strip()
            raise UpstreamError("parent", f"the proxy {parent.url} answered CONNECT {target} with {said}")
        offered = {
            value.split(None, 1)[0].rstrip(",").lower() for name, value in self.fields if name == _CHALLENGE and value
        }
        if offered and "basic" not in offered:
            names = ", ".join(_SPOKEN.get(scheme, _printable(scheme.encode())) for scheme in sorted(offered))
            raise ParentUnusable(
                f"the proxy {parent.url} wants a login by {names}, which dbproxy cannot do: connecting directly. "
                "A local relay such as cntlm or px can do it for both"
            )
        if parent.authorization:
            raise UpstreamError(
                "parent",
                f"the proxy {parent.url} refused the user name or password (407, Basic)",
                hint=f"Correct them in {parent.origin}; write special characters as %XX",
            )
        place = _authority(parent.host, parent.port)
        raise UpstreamError(
            "parent",
            f"the proxy {parent.url} wants a user name and a password (407, Basic)",
            hint=f"Put them into {parent.origin}: {parent.scheme}://USER:PASSWORD@{place}",
        )


_CHALLENGE: Final = "proxy-authenticate"
_SPOKEN: Final = {"ntlm": "NTLM", "negotiate": "Negotiate (Kerberos)", "digest": "Digest", "bearer": "Bearer"}


def _printable(data: bytes) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", data[:80].decode("latin-1"))
