"""An HTTP/2 client for tests, over the h2 package and apart from ours; and a raw one that sends what it likes."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

import h2.connection
import h2.events
import h2.settings
import trio
from h2.config import H2Configuration
from rig import HOST

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 1
END_HEADERS, PADDED = 4, 8


def frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


async def open_tls(r, host=HOST, *, alpn=("h2",), **how):
    """TLS with ALPN h2 inside a tunnel."""
    context = r.client_context()
    context.set_alpn_protocols(list(alpn))
    stream = trio.SSLStream(  # noqa: TID251 - an independent client is the point
        await r.connect(f"{host}:443", **how), context, server_hostname=host, https_compatible=True
    )
    await stream.do_handshake()
    return stream


@dataclass
class Answer:
    status: int = 0
    fields: list = field(default_factory=list)
    body: bytes = b""
    trailers: list = field(default_factory=list)
    informational: list = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    def get(self, name):
        return next((value for key, value in self.fields if key == name), None)


class H2Client:
    """One connection. ``acknowledge`` False leaves the windows to run out."""

    def __init__(self, stream, *, window=65535, acknowledge=True):
        self.stream = stream
        self.acknowledge = acknowledge
        self.answers = {}
        self.goaways = []
        self.closed = False
        self.conn = h2.connection.H2Connection(H2Configuration(client_side=True, header_encoding=None))
        values = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window, h2.settings.SettingCodes.ENABLE_PUSH: 0}
        self.conn.local_settings = h2.settings.Settings(client=True, initial_values=values)

    @classmethod
    async def open(cls, r, host=HOST, **how):
        tunnel = {key: how.pop(key) for key in ("extra", "userinfo") if key in how}
        stream = await open_tls(r, host, **tunnel)
        assert stream.selected_alpn_protocol() == "h2"
        client = cls(stream, **how)
        await client.begin()
        return client

    async def begin(self):
        self.conn.initiate_connection()
        await self.flush()

    async def flush(self):
        data = self.conn.data_to_send()
        if data:
            await self.stream.send_all(data)

    async def ask(self, method="GET", path="/v1/models", body=b"", fields=(), *, end=True, host=HOST):
        """Send a request; ``end`` False leaves its stream open for more."""
        number = self.conn.get_next_available_stream_id()
        pairs = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path), *fields]
        self.answers[number] = Answer()
        self.conn.send_headers(number, pairs, end_stream=end and not body)
        await self.flush()
        if body:
            await self.send(number, body, end=end)
        return number

    async def send(self, number, body, *, end=True):
        view = memoryview(body)
        while view:
            room = min(self.conn.local_flow_control_window(number), self.conn.max_outbound_frame_size)
            if not room:
                if self.answers[number].reset is not None:
                    return
                await self.pump()
                continue
            piece, view = bytes(view[:room]), view[room:]
            self.conn.send_data(number, piece, end_stream=end and not view)
            await self.flush()

    async def pump(self):
        """Take in what the server sends next."""
        data = b""
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            pass
        if not data:
            self.closed = True
            return
        for event in self.conn.receive_data(data):
            self._take(event)
        await self.flush()

    def _take(self, event):
        kind = type(event)
        answer = self.answers.get(getattr(event, "stream_id", 0))
        if kind is h2.events.ResponseReceived:
            answer.fields = list(event.headers)
            answer.status = int(answer.get(b":status"))
        elif kind is h2.events.InformationalResponseReceived:
            answer.informational.append(dict(event.headers))
        elif kind is h2.events.DataReceived:
            answer.body += event.data
            if self.acknowledge:
                self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif kind is h2.events.TrailersReceived:
            answer.trailers = list(event.headers)
        elif kind is h2.events.StreamEnded:
            answer.ended = True
        elif kind is h2.events.StreamReset:
            answer.reset = int(event.error_code)
        elif kind is h2.events.ConnectionTerminated:
            self.goaways.append((int(event.error_code), event.last_stream_id))

    async def until(self, done):
        with trio.fail_after(20):
            while not done() and not self.closed:
                await self.pump()

    async def answer(self, number):
        """The answer of a stream, once it has ended one way or another."""
        answer = self.answers[number]
        await self.until(lambda: answer.ended or answer.reset is not None or self.goaways)
        return answer

    async def get(self, *args, **how):
        return await self.answer(await self.ask(*args, **how))


class Raw:
    """Frames by hand."""

    def __init__(self, stream):
        self.stream = stream
        self.seen = b""
        self.frames = []

    @classmethod
    async def open(cls, r, **how):
        raw = cls(await open_tls(r, **how))
        await raw.stream.send_all(PREFACE + frame(SETTINGS))
        return raw

    async def send(self, *frames):
        await self.stream.send_all(b"".join(frames))

    async def read(self, seconds=5.0):
        """Frames until the server closes, or for so long; whether it closed."""
        with trio.move_on_after(seconds):
            while True:
                try:
                    data = await self.stream.receive_some(65536)
                except (trio.BrokenResourceError, ssl.SSLError):
                    return True
                if not data:
                    return True
                self.seen += data
                while len(self.seen) >= 9 and len(self.seen) >= 9 + int.from_bytes(self.seen[:3], "big"):
                    end = 9 + int.from_bytes(self.seen[:3], "big")
                    one, self.seen = self.seen[:end], self.seen[end:]
                    self.frames.append((one[3], one[4], int.from_bytes(one[5:9], "big"), one[9:]))
        return False

    def goaway(self):
        """The code of the server's GOAWAY, or None."""
        return next((int.from_bytes(p[4:8], "big") for kind, _, _, p in self.frames if kind == GOAWAY), None)

    def resets(self):
        return {stream: int.from_bytes(p, "big") for kind, _, stream, p in self.frames if kind == RST_STREAM}
