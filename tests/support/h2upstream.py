"""An HTTP/2 server for tests, over the h2 package and apart from ours; what it does on each stream is a test's."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import trio
from blackbox import authority
from h2.config import H2Configuration
from h2client import frame


@dataclass(eq=False)
class Request:
    """One stream as the server has it."""

    server: Connection
    number: int
    pairs: list
    body: bytes = b""
    trailers: list = field(default_factory=list)
    ended: trio.Event = field(default_factory=trio.Event)
    reset: int | None = None
    gone: trio.Event = field(default_factory=trio.Event)

    def get(self, name):
        return next((value for key, value in self.pairs if key == name), None)

    async def head(self, status=200, *fields, end=False):
        self.server.conn.send_headers(self.number, [(":status", str(status)), *fields], end_stream=end)
        await self.server.flush()

    async def send(self, data, *, end=False):
        conn, view = self.server.conn, memoryview(data)
        while view:
            room = min(conn.local_flow_control_window(self.number), conn.max_outbound_frame_size)
            if not room:
                await self.server.changed()
                continue
            piece, view = bytes(view[:room]), view[room:]
            conn.send_data(self.number, piece)
            await self.server.flush()
        if end:
            conn.end_stream(self.number)
            await self.server.flush()

    async def answer(self, data=b"ok", *fields, status=200):
        await self.head(status, ("content-length", str(len(data))), *fields, end=not data)
        if data:
            await self.send(data, end=True)

    async def cancel(self, code):
        self.server.conn.reset_stream(self.number, code)
        await self.server.flush()


class Connection:
    """One connection; ``handler`` runs once per request, from its head on."""

    def __init__(self, stream, handler, nursery, settings, acknowledge):
        self.stream = stream
        self.handler = handler
        self.nursery = nursery
        self.acknowledge = acknowledge
        self.requests = {}
        self.goaways = []
        self.closed = trio.Event()
        self._changed = trio.Event()
        self._lock = trio.Lock()
        self.conn = h2.connection.H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.conn.local_settings = h2.settings.Settings(client=False, initial_values=settings)

    async def changed(self):
        await self._changed.wait()

    async def flush(self, raw=b""):
        async with self._lock:
            data = self.conn.data_to_send() + raw
            if data:
                await self.stream.send_all(data)

    async def goaway(self, last, code=0):
        """As a frame: the h2 package itself would take it for the end of everything."""
        await self.flush(frame(7, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big")))

    async def _safely(self, request):
        try:
            await self.handler(request)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h2.exceptions.ProtocolError):
            pass

    async def run(self):
        self.conn.initiate_connection()
        await self.flush()
        try:
            while True:
                data = await self.stream.receive_some(65536)
                if not data:
                    return
                for event in self.conn.receive_data(data):
                    self._take(event)
                self._changed.set()
                self._changed = trio.Event()
                await self.flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.closed.set()

    def _take(self, event):
        kind = type(event)
        request = self.requests.get(getattr(event, "stream_id", 0))
        if kind is h2.events.RequestReceived:
            made = self.requests[event.stream_id] = Request(self, event.stream_id, list(event.headers))
            self.nursery.start_soon(self._safely, made)
        elif kind is h2.events.DataReceived:
            request.body += event.data
            if self.acknowledge:
                self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif kind is h2.events.TrailersReceived:
            request.trailers = list(event.headers)
        elif kind is h2.events.StreamEnded:
            request.ended.set()
        elif kind is h2.events.StreamReset:
            request.reset = int(event.error_code)
            request.gone.set()
        elif kind is h2.events.ConnectionTerminated:
            self.goaways.append(int(event.error_code))


@dataclass
class H2Upstream:
    port: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)

    @property
    def requests(self):
        return [request for one in self.connections for request in one.requests.values()]


@asynccontextmanager
async def h2_upstream(handler, tmp_path, *, alpn=("h2", "http/1.1"), acknowledge=True, **values):
    """Run ``handler(request)`` for each request. ``settings`` point a rig at it, with HTTP/2 switched on."""
    made = H2Upstream()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(list(alpn))
    pem = tmp_path / "h2-upstream.pem"
    pem.write_bytes(authority().cert_pem.bytes())
    codes = {getattr(h2.settings.SettingCodes, name): value for name, value in values.items()}

    async def serve(stream):
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)  # noqa: TID251
        try:
            await secured.do_handshake()
            if secured.selected_alpn_protocol() != "h2":
                return
            async with trio.open_nursery() as nursery:
                one = Connection(secured, handler, nursery, codes, acknowledge)
                made.connections.append(one)
                await one.run()
                nursery.cancel_scope.cancel()
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made.port = listeners[0].socket.getsockname()[1]
        made.settings = {
            "upstream_url": f"https://127.0.0.1:{made.port}",
            "upstream_ca": str(pem),
            "upstream_http2": "true",
        }
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield made
        nursery.cancel_scope.cancel()
