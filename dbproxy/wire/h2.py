"""HTTP/2 as bytes in and events out, for either side of a connection, over the h2 package.

Owns windows, settings, stream states as h2 keeps them, and what of the peer's frames h2 gets to see. Never imports
trio, sockets or clocks; the time comes in as an argument.

Invariants
- A graceful GOAWAY (NO_ERROR) never reaches h2, which would end every stream at once (h2 issue 1181); it makes the
  connection ``draining``, and ours is written as a frame for the same reason.
- Received DATA is acknowledged when its consumer took it, or when its stream is reset: nothing leaks from a window.
- Whatever the peer does raises H2Violation, after which ``out`` holds the GOAWAY that explains it.
"""

from __future__ import annotations

from dataclasses import dataclass

from h2 import events as h2e
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import H2Error, ProtocolError
from h2.settings import SettingCodes, Settings

from dbproxy.wire.h2gate import MAX_FRAME, Code, FrameGate, H2Violation, Type, frame

Pairs = list[tuple[bytes, bytes]]

MAX_STREAMS = 100
#: Received bytes that may wait for their consumer: per stream, and per connection of a client.
STREAM_WINDOW, CLIENT_WINDOW = 1 << 20, 4 << 20
#: Per connection to an upstream. Clients that know nothing of each other share it: one that stops reading must not use
#: up the room of the others, so all streams' together fit. Over HTTP/1.1 the kernel would hold as much.
UPSTREAM_WINDOW = MAX_STREAMS * STREAM_WINDOW
#: The largest header table that we keep for a peer, whatever it offers: its size is our memory.
_MAX_TABLE = 4096
#: A frame that the peer's window cut to less than this pays nothing back: windows of a few bytes are a game.
_TINY = 512
_LAST_STREAM = 0x7FFFFFFF


@dataclass(slots=True)
class Head:
    """A request or the final head of an answer."""

    stream: int
    pairs: Pairs
    ended: bool


@dataclass(slots=True)
class Informational:
    """A head with status 1xx."""

    stream: int
    pairs: Pairs


@dataclass(slots=True)
class Data:
    """Body bytes; ``length`` counts against the windows and includes padding."""

    stream: int
    data: bytes
    length: int
    ended: bool


@dataclass(slots=True)
class Trailers:
    """Fields behind the body; they end the stream."""

    stream: int
    pairs: Pairs


@dataclass(slots=True)
class Reset:
    """The peer gave the stream up, or will never look at it (REFUSED_STREAM)."""

    stream: int
    code: int


@dataclass(slots=True)
class Opened:
    """More may be sent than before, on one stream or (0) on all."""

    stream: int


@dataclass(slots=True)
class GoneAway:
    """The peer takes no new streams; with NO_ERROR those up to ``last`` go on, otherwise the connection is over."""

    last: int
    code: int


Event = Head | Informational | Data | Trailers | Reset | Opened | GoneAway


class Wire:
    """One connection's protocol state. ``max_head`` bounds a header block and the decoded list, in bytes."""

    def __init__(self, *, client: bool, max_head: int) -> None:
        self.client = client
        self.draining = False  # the peer said GOAWAY
        self.last_accepted = _LAST_STREAM  # our GOAWAY: streams above this are refused
        self._gate = FrameGate(preface=not client, max_block=max_head)
        self._extra = bytearray()
        self._violation: H2Violation | None = None
        self._conn = H2Connection(
            H2Configuration(
                client_side=client,
                header_encoding=None,
                validate_outbound_headers=False,  # the bridge builds them, from heads that were checked
                normalize_outbound_headers=False,
            )
        )
        self._conn.local_settings = Settings(
            client=client,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: max_head,
            },
        )
        if client:
            self._conn.local_settings[SettingCodes.ENABLE_PUSH] = 0
            self._conn.local_settings.acknowledge()
        self._conn.decoder.max_header_list_size = max_head
        self._conn.initiate_connection()
        self._conn.increment_flow_control_window((UPSTREAM_WINDOW if client else CLIENT_WINDOW) - 65535)

    # ---- what the peer sends

    def feed(self, data: bytes) -> None:
        """Append what was received."""
        self._gate.feed(data)

    @property
    def owes(self) -> bool:
        """Whether the peer stopped where it may not rest: in its preface or in a header block."""
        return self._gate.in_block

    @property
    def pending(self) -> bool:
        """Whether bytes wait for the next ``step``."""
        return self._gate.pending

    def step(self, now: float) -> list[Event] | None:
        """The events of the next few frames; None when there is no whole frame left. Raises H2Violation."""
        if self._violation is not None:
            raise self._violation
        try:
            helping = self._gate.take(now)
        except H2Violation as error:
            self.goaway(error.code)
            self._violation = error
            raise
        if helping is None:
            return None
        events: list[Event] = []
        for whole in helping.frames:
            try:
                # One at a time: h2 forgets the events before the frame that it refuses.
                for event in self._conn.receive_data(whole):
                    self._translate(event, events)
            except H2Error as error:
                if not isinstance(error, ProtocolError):
                    self.goaway(Code.PROTOCOL_ERROR)
                code = int(error.error_code) if isinstance(error, ProtocolError) else Code.PROTOCOL_ERROR
                self._violation = H2Violation(f"HTTP/2: {_why(error)}", code)
                if not events:
                    raise self._violation from None
                return events
        if helping.goaway is not None:
            self.draining = True
            events.append(GoneAway(helping.goaway, Code.NO_ERROR))
        return events

    def _translate(self, event: h2e.Event, events: list[Event]) -> None:
        if isinstance(event, h2e.DataReceived):
            events.append(
                Data(
                    event.stream_id or 0, event.data or b"", event.flow_controlled_length or 0, bool(event.stream_ended)
                )
            )
        elif isinstance(event, h2e.RequestReceived | h2e.ResponseReceived):
            events.append(Head(event.stream_id or 0, _pairs(event.headers), bool(event.stream_ended)))
        elif isinstance(event, h2e.TrailersReceived):
            events.append(Trailers(event.stream_id or 0, _pairs(event.headers)))
        elif isinstance(event, h2e.InformationalResponseReceived):
            events.append(Informational(event.stream_id or 0, _pairs(event.headers)))
        elif isinstance(event, h2e.StreamReset):
            events.append(Reset(event.stream_id or 0, int(event.error_code or 0)))
        elif isinstance(event, h2e.WindowUpdated):
            events.append(Opened(event.stream_id or 0))
        elif isinstance(event, h2e.RemoteSettingsChanged):
            if self._conn.encoder.header_table_size > _MAX_TABLE:
                self._conn.encoder.header_table_size = _MAX_TABLE
            events.append(Opened(0))
        elif isinstance(event, h2e.ConnectionTerminated):
            self.draining = True
            events.append(GoneAway(event.last_stream_id or 0, int(event.error_code or 0)))

    def took(self, stream: int, length: int) -> None:
        """``length`` received bytes of a stream were consumed or thrown away."""
        if length:
            try:
                self._conn.acknowledge_received_data(length, stream)
            except H2Error:
                pass  # the connection is over

    # ---- what we send

    def out(self) -> bytes:
        """Everything that is to be written now."""
        data = self._conn.data_to_send()
        if self._extra:
            data += bytes(self._extra)
            self._extra.clear()
        return data

    @property
    def backlog(self) -> int:
        """Bytes that wait to be written."""
        return len(self._conn._data_to_send) + len(self._extra)

    @property
    def can_open(self) -> int:
        """How many more streams we may open now (client)."""
        if self.draining:
            return 0
        return min(self._conn.remote_settings.max_concurrent_streams, MAX_STREAMS) - self._conn.open_outbound_streams

    def open(self) -> int:
        """The number of a new stream of ours (client), to be used at once; 0 when there can be no more."""
        try:
            return self._conn.get_next_available_stream_id()
        except H2Error:
            self.draining = True
            return 0

    def send_head(self, stream: int, pairs: Pairs, *, end: bool) -> bool:
        """Write a head, informational ones included, or trailers. False: the stream is gone, or now reset."""
        try:
            self._conn.send_headers(stream, pairs, end_stream=end)
        except H2Error:
            self.reset(stream, Code.INTERNAL_ERROR)
            return False
        return True

    def room(self, stream: int) -> int:
        """How many body bytes of a stream may be written now in one frame; -1 if there is no such stream."""
        try:
            window = self._conn.local_flow_control_window(stream)
        except H2Error:
            return -1
        return max(0, min(window, self._conn.max_outbound_frame_size, MAX_FRAME))

    def send_data(self, stream: int, data: bytes | memoryview, *, end: bool, cut: bool) -> bool:
        """Write body bytes, at most ``room``; ``cut`` says that there were more. False: the stream is gone."""
        try:
            self._conn.send_data(stream, bytes(data), end_stream=end)
        except H2Error:
            self.reset(stream, Code.INTERNAL_ERROR)
            return False
        if not cut or len(data) >= _TINY:
            self._gate.control.earn(4)
        return True

    def reset(self, stream: int, code: int) -> None:
        """Give a stream up; harmless if it is gone."""
        try:
            self._conn.reset_stream(stream, code)
        except H2Error:
            pass

    def goaway(self, code: int) -> None:
        """Say that no further streams are taken. With NO_ERROR those under way go on."""
        last = self._conn.highest_inbound_stream_id
        self.last_accepted = min(self.last_accepted, last)
        self._extra += frame(Type.GOAWAY, 0, 0, last.to_bytes(4, "big") + int(code).to_bytes(4, "big"))

    # ---- for tests and health

    def windows(self) -> tuple[int, int]:
        """What the peer may still send on the connection, told to it or about to be, and what we may."""
        inbound = self._conn._inbound_flow_control_window_manager
        return inbound.current_window_size + inbound._bytes_processed, self._conn.outbound_flow_control_window

    def open_streams(self) -> int:
        """Streams that are not closed, both sides' together."""
        return self._conn.open_inbound_streams + self._conn.open_outbound_streams


def _pairs(headers: object) -> Pairs:
    return [(bytes(name), bytes(value)) for name, value in headers]  # type: ignore[attr-defined]


def _why(error: Exception) -> str:
    """What h2 says without the values that it quotes: a field may be a key, and this ends up in logs."""
    return (str(error) or type(error).__name__).partition(":")[0].partition(" b'")[0]
