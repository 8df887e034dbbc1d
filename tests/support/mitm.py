"""The smallest CONNECT proxy that opens TLS: for tests of the agent and the demo that are not about our own proxy."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager

import trio
import trustme


@asynccontextmanager
async def open_mitm(origin, *, up=lambda data: data, down=lambda data: data):
    """Yields (port, CA in PEM, list of CONNECT heads); ``up`` and ``down`` may change bytes on their way."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("api.anthropic.com").configure_cert(server)
    server.set_alpn_protocols(["http/1.1"])
    client = ssl.create_default_context(cadata=origin.ca_pem.decode())
    heads = []

    async def pump(source, sink, change, scope):
        try:
            async for data in source:
                await sink.send_all(change(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    async def serve(stream):
        head = b""
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some(4096)
            if not data:
                return
            head += data
        heads.append(head)
        await stream.send_all(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        near = trio.SSLStream(stream, server, server_side=True, https_compatible=True)  # noqa: TID251
        raw = await trio.open_tcp_stream("127.0.0.1", origin.tls_port)
        far = trio.SSLStream(raw, client, server_hostname="127.0.0.1", https_compatible=True)  # noqa: TID251
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, near, far, up, nursery.cancel_scope)
                nursery.start_soon(pump, far, near, down, nursery.cancel_scope)
        finally:
            # A cancelled close closes and then raises: the second must not depend on it.
            try:
                await trio.aclose_forcefully(stream)
            finally:
                await trio.aclose_forcefully(raw)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1], authority.cert_pem.bytes(), heads
        nursery.cancel_scope.cancel()
