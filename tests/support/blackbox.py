"""What the black-box tests of the proxy share: messages as bytes, an independent reader, raw upstreams, an observer.

Knows nothing of ``dbproxy.wire``: what the proxy sends is judged by a reader of its own.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import trio
import trustme
from rig import HOST, read_all, read_exactly, read_head

from dbproxy.api import Exchange, Outcome, hookimpl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

BODY = json.dumps({"model": "claude-x", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}).encode()
STREAM = json.dumps(
    {"model": "claude-x", "max_tokens": 8, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
).encode()
HOP = (b"connection:", b"keep-alive:", b"proxy-", b"te:", b"upgrade:")


def request(
    target: str = "/v1/messages?beta=true",
    *,
    method: str = "POST",
    body: bytes | None = BODY,
    extra: str = "",
    host: str = HOST,
    version: str = "1.1",
    chunks: int = 0,
    close: bool = False,
) -> bytes:
    """A request as the real client spells it; ``chunks``: body in chunks of so many bytes."""
    head = f"{method} {target} HTTP/{version}\r\nAccept: application/json\r\nX-Odd:  two blanks \r\nx-api-key: k\r\n"
    head += (
        f"anthropic-version: 2023-06-01\r\n{extra}Connection: {'close' if close else 'keep-alive'}\r\nHost: {host}\r\n"
    )
    if body is None:
        return (head + "\r\n").encode("latin-1")
    head += "Content-Type: application/json\r\n"
    if chunks:
        return (head + "Transfer-Encoding: chunked\r\n\r\n").encode("latin-1") + chunked(body, chunks)
    return (head + f"Content-Length: {len(body)}\r\n\r\n").encode("latin-1") + body


def chunked(body: bytes, size: int, trailers: str = "") -> bytes:
    """A body in chunks of ``size`` bytes."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + f"0\r\n{trailers}\r\n".encode()


def untouched(sent: bytes, *, authority: str = "") -> bytes:
    """What the other side must get for what was sent: the same less the fields of the hop, Host renamed if need be."""
    head, _, body = sent.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(HOP)]
    if authority:
        lines = [b"Host: " + authority.encode() if line.lower().startswith(b"host:") else line for line in lines]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass
class Response:
    """An answer as it came. ``framed`` is everything between its head and ``rest``."""

    head: bytes
    status: int
    fields: dict[str, str]
    framed: bytes
    body: bytes
    rest: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


async def read_response(stream: Any, seen: bytes = b"", *, method: str = "POST") -> Response:
    """One whole answer, by an own reading of RFC 9112; an assertion if it breaks off."""
    head, rest = await read_head(stream, seen)
    first, *lines = head[:-4].split(b"\r\n")
    fields = {name.decode("latin-1").lower(): value.strip().decode("latin-1") for name, _, value in map(_split, lines)}
    status = int(first.split(b" ")[1])
    if status < 200 or status in (204, 304) or method == "HEAD":
        return Response(head, status, fields, b"", b"", rest)
    if fields.get("transfer-encoding") == "chunked":
        framed, body, rest = await _chunks(stream, rest)
        return Response(head, status, fields, framed, body, rest)
    if "content-length" in fields:
        size = int(fields["content-length"])
        got = await read_exactly(stream, size, rest)
        return Response(head, status, fields, got[:size], got[:size], got[size:])
    got = await read_all(stream, rest)
    return Response(head, status, fields, got, got, b"")


def _split(line: bytes) -> tuple[bytes, bytes, bytes]:
    return line.partition(b":")


async def _chunks(stream: Any, seen: bytes) -> tuple[bytes, bytes, bytes]:
    got = bytearray(seen)
    at, body = 0, bytearray()

    async def line(at: int) -> int:
        while (end := got.find(b"\r\n", at)) < 0:
            data = await stream.receive_some()
            assert data, "closed inside a chunked body"
            got.extend(data)
        return end

    while True:
        end = await line(at)
        size = int(got[at:end].split(b";")[0], 16)
        at = end + 2
        if not size:
            while (end := await line(at)) != at:
                at = end + 2
            return bytes(got[: at + 2]), bytes(body), bytes(got[at + 2 :])
        while len(got) < at + size + 2:
            data = await stream.receive_some()
            assert data, "closed inside a chunk"
            got.extend(data)
        body += got[at : at + size]
        assert got[at + size : at + size + 2] == b"\r\n"
        at += size + 2


class Watcher:
    """A plugin that sees every exchange end."""

    def __init__(self) -> None:
        self.finished: list[Exchange] = []
        self._changed = trio.Event()

    @hookimpl
    def exchange_finished(self, exchange: Exchange) -> None:
        """Notes it."""
        self.finished.append(exchange)
        self._changed.set()
        self._changed = trio.Event()

    async def outcomes(self, count: int = 1, *, seconds: float = 10.0) -> list[Outcome | None]:
        """The outcomes of the first ``count`` exchanges, once they are over."""
        with trio.fail_after(seconds):
            while len(self.finished) < count:
                await self._changed.wait()
        return [exchange.outcome for exchange in self.finished]


@cache
def authority() -> trustme.CA:
    """A certificate authority for raw upstreams."""
    return trustme.CA()


@cache
def raw_context() -> ssl.SSLContext:
    """A server's context for loopback names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1", "localhost", HOST).configure_cert(context)
    return context


def tls_client(stream: Any, context: ssl.SSLContext, name: str | None = HOST) -> Any:
    """TLS of an independent client over ``stream``."""
    return trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)  # noqa: TID251


def tls_server(stream: Any) -> Any:
    """TLS of an independent server over ``stream``, with a certificate that is not ours."""
    return trio.SSLStream(stream, raw_context(), server_side=True, https_compatible=True)  # noqa: TID251


@dataclass
class RawUpstream:
    """A server whose every byte a test decides. ``settings`` point a rig at it."""

    port: int
    tls: bool
    settings: dict[str, Any]
    seen: list[Any] = field(default_factory=list)  # the streams, in order of arrival


@asynccontextmanager
async def raw_upstream(
    handler: Callable[[Any], Awaitable[None]], tmp_path: Any, *, tls: bool = True, path: str = ""
) -> AsyncIterator[RawUpstream]:
    """Run ``handler(stream)`` for every connection; an end of the proxy's is no error."""
    made = RawUpstream(0, tls, {})

    async def serve(stream: trio.SocketStream) -> None:
        talk: Any = stream
        if tls:
            talk = tls_server(stream)
        try:
            if tls:
                await talk.do_handshake()
            made.seen.append(talk)
            await handler(talk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    pem = tmp_path / "raw.pem"
    pem.write_bytes(authority().cert_pem.bytes())
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made.port = listeners[0].socket.getsockname()[1]
        scheme = "https" if tls else "http"
        made.settings = {"upstream_url": f"{scheme}://127.0.0.1:{made.port}{path}", "upstream_ca": str(pem)}
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield made
        nursery.cancel_scope.cancel()


def transport(stream: Any) -> trio.SocketStream:
    """The TCP stream under whatever it carries."""
    while not isinstance(stream, trio.SocketStream):
        stream = stream.transport_stream
    return stream


def reset(stream: Any) -> None:
    """Close with a TCP reset."""
    raw = transport(stream).socket
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


async def read_broken(stream: Any, seen: bytes = b"") -> tuple[bytes, str]:
    """Everything up to the end, and how it ended: ``eof``, ``truncated`` (TLS without its end) or ``reset``."""
    got = bytearray(seen)
    try:
        while data := await stream.receive_some():
            got += data
    except trio.BrokenResourceError as error:
        return bytes(got), "reset" if isinstance(error.__cause__, ConnectionError) else "truncated"
    return bytes(got), "eof"


def strict(stream: Any) -> Any:
    """The same TLS stream, but an end without close_notify is an error."""
    stream._https_compatible = False
    return stream
