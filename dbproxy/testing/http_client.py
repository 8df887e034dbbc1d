"""The scripted agent's HTTP: CONNECT through a proxy, TLS, keep-alive tunnels, and exact records of what went.

Heads are written by hand, in the client's own order (h11 would put Host first); h11 reads the answers.
Independent of ``dbproxy.wire`` and ``dbproxy.net``: it stands for a foreign program.
"""

from __future__ import annotations

import base64
import re
import ssl
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

import brotli
import h11
import trio
import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
CONNECT_SECONDS = 30.0


class Broken(Exception):
    """The connection failed or ended before the answer did."""


class Silent(Exception):
    """No byte came for as long as the client is willing to wait."""


@dataclass(frozen=True, slots=True)
class Way:
    """How to reach the API: read from the environment that a launcher sets (client facts 1.3)."""

    scheme: str
    host: str
    port: int
    prefix: str = ""  # path of the base URL
    proxy: tuple[str, int] | None = None
    proxy_authorization: str = ""
    extra_ca: str = ""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Way:
        """From ANTHROPIC_BASE_URL, HTTPS_PROXY or https_proxy, NO_PROXY and NODE_EXTRA_CA_CERTS."""
        base = urlsplit(environ.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com")
        host = base.hostname or "api.anthropic.com"
        port = base.port or (443 if base.scheme == "https" else 80)
        chosen = environ.get("https_proxy") or environ.get("HTTPS_PROXY") or ""
        bypassed = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").replace(",", " ").split()
        if any(
            entry == "*" or host == entry.lstrip(".") or host.endswith("." + entry.lstrip(".")) for entry in bypassed
        ):
            chosen = ""
        if base.scheme == "http":
            chosen = ""
        proxy, credentials = None, ""
        if chosen:
            parts = urlsplit(chosen if "://" in chosen else f"http://{chosen}")
            proxy = (parts.hostname or "127.0.0.1", parts.port or 80)
            if parts.username is not None:
                pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                credentials = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(
            scheme=base.scheme,
            host=host,
            port=port,
            prefix=base.path.rstrip("/"),
            proxy=proxy,
            proxy_authorization=credentials,
            extra_ca=environ.get("NODE_EXTRA_CA_CERTS", ""),
        )

    @property
    def authority(self) -> str:
        """The Host field's value."""
        usual = {"https": 443, "http": 80}[self.scheme]
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == usual else f"{name}:{self.port}"

    def context(self) -> ssl.SSLContext:
        """TLS as the client does it: system roots and NODE_EXTRA_CA_CERTS, ALPN http/1.1 alone."""
        made = ssl.create_default_context()
        if self.extra_ca:
            made.load_verify_locations(self.extra_ca)
        made.set_alpn_protocols(["http/1.1"])
        return made


@dataclass(eq=False, repr=False)
class Attempt:
    """One request as it was sent and its answer as it came, byte for byte. Times are seconds on the loop's clock."""

    number: int
    method: str
    target: str
    kind: str
    head: bytes
    body: bytes
    key: str = ""  # x-client-request-id: new for each attempt
    tunnel: int = 0
    sent_at: float = 0.0
    first_byte_at: float | None = None
    finished_at: float | None = None
    status: int = 0
    answer_head: bytes = b""
    fields: list[tuple[str, str]] = field(default_factory=list)
    answer_body: bytearray = field(default_factory=bytearray)  # without framing, still coded
    complete: bool = False
    left: bool = False  # the agent itself turned away in the middle of the answer
    context: int = 0  # tokens that the answer reported, all four counts
    error: str = ""

    def field(self, name: str) -> str | None:
        """The first value of an answer field, by lower-case name."""
        return next((value for key, value in self.fields if key == name), None)

    def about(self) -> dict[str, Any]:
        """For the report: JSON, with bytes in base64."""
        return {
            "number": self.number,
            "kind": self.kind,
            "method": self.method,
            "target": self.target,
            "key": self.key,
            "tunnel": self.tunnel,
            "status": self.status,
            "complete": self.complete,
            "left": self.left,
            "context": self.context,
            "error": self.error,
            "first_byte": None if self.first_byte_at is None else self.first_byte_at - self.sent_at,
            "seconds": None if self.finished_at is None else self.finished_at - self.sent_at,
            "head": base64.b64encode(self.head).decode(),
            "body": base64.b64encode(self.body).decode(),
            "answer_head": base64.b64encode(self.answer_head).decode(),
            "answer_body": base64.b64encode(bytes(self.answer_body)).decode(),
        }


class Decoding:
    """One answer's content coding, undone as it comes."""

    def __init__(self, coding: str) -> None:
        self.feed: Callable[[bytes], bytes]
        if coding == "gzip":
            self.feed = zlib.decompressobj(31).decompress
        elif coding == "deflate":
            self.feed = zlib.decompressobj().decompress
        elif coding == "br":
            self.feed = brotli.Decompressor().process
        elif coding == "zstd":
            self.feed = zstandard.ZstdDecompressor().decompressobj().decompress
        elif coding in ("", "identity"):
            self.feed = bytes
        else:
            raise Broken(f"answer in the unknown content coding {coding}")


class Take(Protocol):
    """Gets the decoded bytes of an answer's body as they come; may raise."""

    def __call__(self, attempt: Attempt, data: bytes, /) -> None: ...


class _Tunnel:
    def __init__(self, number: int, stream: trio.abc.Stream) -> None:
        self.number = number
        self.stream = stream


async def _drop(stream: trio.SocketStream | None) -> None:
    if stream is not None:
        await trio.aclose_forcefully(stream)


class Client:
    """Sequential requests share one tunnel, parallel ones open more (client facts 1.2)."""

    def __init__(self, way: Way, *, idle_seconds: float = 180.0) -> None:
        self.way = way
        self.idle_seconds = idle_seconds
        self.attempts: list[Attempt] = []
        self.tunnels = 0
        self._idle: list[_Tunnel] = []
        self._context = way.context() if way.scheme == "https" else None

    async def close(self) -> None:
        """Close every idle tunnel, without a farewell as the real client does (client facts 0.10)."""
        while self._idle:
            try:
                await trio.aclose_forcefully(self._idle.pop().stream)
            except trio.Cancelled:
                # That one is closed all the same; so shall the others be.
                await self.close()
                raise

    async def _open(self) -> _Tunnel:
        self.tunnels += 1
        number = self.tunnels
        host, port = self.way.proxy or (self.way.host, self.way.port)
        raw: trio.SocketStream | None = None
        try:
            with trio.fail_after(CONNECT_SECONDS):
                raw = await trio.open_tcp_stream(host, port)
                stream: trio.abc.Stream = raw
                if self.way.proxy is not None:
                    await self._connect(stream)
                if self._context is not None:
                    secured = trio.SSLStream(  # noqa: TID251  a foreign program's TLS, on purpose not ours
                        stream, self._context, server_hostname=self.way.host, https_compatible=True
                    )
                    await secured.do_handshake()
                    stream = secured
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError) as error:
            await _drop(raw)
            raise Broken(f"cannot connect: {error.__cause__ or error!r}") from error
        except BaseException:
            await _drop(raw)
            raise
        return _Tunnel(number, stream)

    async def _connect(self, stream: trio.abc.Stream) -> None:
        target = f"{self.way.host}:{self.way.port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", "Proxy-Connection: Keep-Alive"]
        if self.way.proxy_authorization:
            lines.append(f"Proxy-Authorization: {self.way.proxy_authorization}")
        await stream.send_all("\r\n".join([*lines, "", ""]).encode("latin-1"))
        got = b""
        while b"\r\n\r\n" not in got:
            data = await stream.receive_some(4096)
            if not data:
                raise Broken("the proxy closed the connection without an answer")
            got += data
        if not got.startswith(b"HTTP/1.1 200"):
            first = got.split(b"\r\n", 1)[0].decode("latin-1")
            raise Broken(f"the proxy refused the tunnel: {first}")

    async def request(
        self, method: str, target: str, fields: list[tuple[str, str]], body: bytes, *, kind: str, take: Take
    ) -> Attempt:
        """Send one request and hand its answer to ``take``. Raises Broken, Silent, and what ``take`` raises."""
        target = self.way.prefix + target
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
        attempt = Attempt(len(self.attempts) + 1, method, target, kind, "\r\n".join(lines).encode("latin-1"), body)
        attempt.key = next((value for name, value in fields if name.lower() == "x-client-request-id"), "")
        self.attempts.append(attempt)
        keep = all(value.lower() != "close" for name, value in fields if name.lower() == "connection")
        done = False
        tunnel: _Tunnel | None = None
        try:
            tunnel = self._idle.pop() if self._idle and keep else await self._open()
            attempt.tunnel = tunnel.number
            attempt.sent_at = trio.current_time()
            with trio.fail_after(CONNECT_SECONDS):
                await tunnel.stream.send_all(attempt.head + body)
            done = await self._read(tunnel.stream, attempt, take) and keep
        except trio.TooSlowError as error:
            raise Silent("the request could not be sent in time") from error
        except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            raise Broken(str(error.__cause__ or error)) from error
        except BaseException as error:
            attempt.error = attempt.error or f"{type(error).__name__}: {error}"
            raise
        finally:
            attempt.finished_at = trio.current_time()
            if tunnel is not None and done:
                self._idle.append(tunnel)
            elif tunnel is not None:
                await trio.aclose_forcefully(tunnel.stream)
        return attempt

    async def _read(self, stream: trio.abc.Stream, attempt: Attempt, take: Take) -> bool:
        """Read the answer; True when the tunnel may be used again."""
        protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=1024 * 1024)
        protocol.send(h11.Request(method=attempt.method, target="/", headers=[("host", "x")]))
        protocol.send(h11.EndOfMessage())
        window = bytearray()
        coding = Decoding("")
        while True:
            event = protocol.next_event()
            if event is h11.NEED_DATA:
                with trio.move_on_after(self.idle_seconds) as waiting:
                    data = bytes(await stream.receive_some(65536))
                if waiting.cancelled_caught:
                    raise Silent(f"no byte for {self.idle_seconds:g} s")
                if attempt.first_byte_at is None and data:
                    attempt.first_byte_at = trio.current_time()
                if not attempt.status:
                    window += data
                protocol.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                end = _END_OF_HEAD.search(window)
                del window[: end.end() if end else 0]
            elif isinstance(event, h11.Response):
                end = _END_OF_HEAD.search(window)
                attempt.answer_head = bytes(window[: end.end()] if end else window)
                attempt.status = event.status_code
                attempt.fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
                coding = Decoding(attempt.field("content-encoding") or "")
            elif isinstance(event, h11.Data):
                attempt.answer_body += event.data
                try:
                    take(attempt, coding.feed(bytes(event.data)))
                except BaseException:
                    attempt.left = True
                    raise
            elif isinstance(event, h11.EndOfMessage):
                attempt.complete = True
                return protocol.their_state is h11.DONE and not protocol.trailing_data[0]
            else:
                raise Broken("the connection ended before the answer")
