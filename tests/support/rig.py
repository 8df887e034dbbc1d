"""A real proxy in front of a real fake API, in the test's own event loop, and raw clients for both sides."""

from __future__ import annotations

import base64
import re
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from dbproxy.app.run import Running, bind, open_proxy
from dbproxy.config import HostPort, load
from dbproxy.testing.origin import Origin, open_origin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOST = "api.anthropic.com"


async def read_head(stream: trio.abc.ReceiveStream, seen: bytes = b"") -> tuple[bytes, bytes]:
    """A whole head (blank line included) and what came behind it."""
    while b"\r\n\r\n" not in seen:
        data = await stream.receive_some()
        assert data, f"closed in the middle of a head: {seen!r}"
        seen += data
    head, _, rest = seen.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


async def read_all(stream: trio.abc.ReceiveStream, seen: bytes = b"") -> bytes:
    """Everything up to the end of the stream."""
    return b"".join([seen, *[data async for data in stream]])


async def read_exactly(stream: trio.abc.ReceiveStream, size: int, seen: bytes = b"") -> bytes:
    """``size`` bytes or an assertion."""
    while len(seen) < size:
        data = await stream.receive_some()
        assert data, f"closed after {len(seen)} of {size} bytes"
        seen += data
    return seen


async def read_answer(stream: trio.abc.ReceiveStream, seen: bytes = b"") -> tuple[bytes, bytes]:
    """Head and body of an answer that says its length."""
    head, rest = await read_head(stream, seen)
    length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
    assert length, head
    return head, await read_exactly(stream, int(length[1]), rest)


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything up to the end, which may be a reset, and has to come soon."""
    got = b""
    with trio.fail_after(10):
        try:
            while data := await stream.receive_some():
                got += data
        except trio.BrokenResourceError:
            pass
    return got


@dataclass
class Rig:
    """A proxy, the API behind it, and ways to talk to the proxy."""

    running: Running
    origin: Origin
    data_dir: Path
    opened: list[trio.SocketStream] = field(default_factory=list)

    @property
    def proxy(self) -> Any:
        return self.running.proxy

    async def plain(self) -> trio.SocketStream:
        """A TCP connection to the proxy's port."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.running.port)
        self.opened.append(stream)
        return stream

    async def connect(
        self, authority: str = f"{HOST}:443", *, extra: str = "", userinfo: str = ""
    ) -> trio.SocketStream:
        """A tunnel: CONNECT sent and granted."""
        stream = await self.plain()
        if userinfo:
            extra += f"Proxy-Authorization: Basic {base64.b64encode(userinfo.encode()).decode()}\r\n"
        await stream.send_all(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{extra}\r\n".encode())
        head, rest = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 200 "), head
        assert not rest
        return stream

    def client_context(self) -> ssl.SSLContext:
        """Trusts our root and nothing else."""
        context = ssl.create_default_context(cadata=self.proxy.authority.bundle_pem.decode())
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def tls(self, host: str = HOST, **how: Any) -> Any:
        """TLS inside a tunnel, ready for requests."""
        stream = trio.SSLStream(  # noqa: TID251 - an independent client is the point
            await self.connect(f"{host}:443", **how), self.client_context(), server_hostname=host, https_compatible=True
        )
        await stream.do_handshake()
        return stream


@asynccontextmanager
async def open_rig(
    tmp_path: Path,
    script: Any = None,
    *,
    plugins: tuple[tuple[str, object], ...] = (),
    tls: bool = True,
    **settings: Any,
) -> AsyncIterator[Rig]:
    """A rig; ``settings`` are those of the table."""
    async with open_origin(script, tls=tls) as origin:
        ca = tmp_path / "origin.pem"
        ca.write_bytes(origin.ca_pem)
        data_dir = tmp_path / "data"
        given = {
            "listen": "127.0.0.1:0",
            "data_dir": str(data_dir),
            "upstream_url": origin.url,
            "upstream_ca": str(ca),
            "drain_timeout": "2",
            **settings,
        }
        env = {"HOME": str(tmp_path)}
        config = load(given, env, None)
        async with open_proxy(config, sockets=bind((HostPort("127.0.0.1", 0),)), plugins=plugins, env=env) as running:
            made = Rig(running, origin, data_dir)
            try:
                yield made
            finally:
                for stream in made.opened:
                    stream.socket.close()
