"""What may reach the HTTP/2 state machine: whole frames, one helping at a time, and none of a flood.

Owns splitting a byte stream by the 9-byte frame header (RFC 9113 section 4.1), holding back a graceful GOAWAY, and
counting frames that cost us work and their sender nothing. Never imports trio, sockets or clocks; the time comes in.

Invariants
- Frames pass in order and unchanged. The same bytes give the same helpings of frames however they were cut.
- A frame is judged by its header, before its payload is there: an overlong one is never collected.
- What is counted is refilled by time and by useful work, so a long life of a busy connection never ends in a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from dbproxy.errors import ProtocolViolation
from dbproxy.wire.sniff import H2_PREFACE

#: Frames that one helping holds at most, so that a burst never keeps the event loop for long.
HELPING = 32
#: The largest frame that we take, which is also what SETTINGS says by not saying anything (RFC 9113 section 6.5.2).
MAX_FRAME = 16384
_MAX_CONTINUATIONS = 32
_GOAWAY_SIZE = 8
_ACK = END_STREAM = 0x1
END_HEADERS = 0x4
_PADDED = 0x8


class Type(IntEnum):
    """Frame types (RFC 9113 section 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Code(IntEnum):
    """Error codes (RFC 9113 section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class H2Violation(ProtocolViolation):
    """The peer broke HTTP/2 in a way that ends the connection; ``code`` goes into our GOAWAY."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Allowance:
    """So many at once, and so many a second in the long run."""

    __slots__ = ("_at", "_left", "capacity", "per_second")

    def __init__(self, capacity: float, per_second: float) -> None:
        self.capacity = capacity
        self.per_second = per_second
        self._left = capacity
        self._at: float | None = None

    def spend(self, now: float) -> bool:
        """Take one; whether there was one left. ``now`` in seconds of any clock that never goes back."""
        if self._at is not None:
            self._left = min(self.capacity, self._left + (now - self._at) * self.per_second)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def earn(self, count: float) -> None:
        """Useful work pays ``count`` back."""
        self._left = min(self.capacity, self._left + count)


@dataclass(frozen=True, slots=True)
class Helping:
    """Whole frames; after them a graceful GOAWAY that was held back, as the last stream it speaks of."""

    frames: list[bytes]
    goaway: int | None = None


class FrameGate:
    """Splits what one peer sends. ``max_block`` bounds the bytes of one header block."""

    def __init__(self, *, preface: bool, max_block: int) -> None:
        self._buffer = bytearray()
        self._at = 0  # what stands before it was handed out
        self._preface = len(H2_PREFACE) if preface else 0
        self._max_block = max_block
        self._block = 0  # bytes of the header block that is not finished, 0 outside of one
        self._continuations = 0
        self._judged = False  # the frame at ``_at`` was counted already
        self.first = True  # nothing but the preface came yet
        self.resets = Allowance(500, 50)
        self.settings = Allowance(100, 10)
        self.control = Allowance(1000, 100)

    def feed(self, data: bytes) -> None:
        """Append what was received."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    @property
    def in_block(self) -> bool:
        """Whether the peer owes us the rest of a header block, the preface or its first SETTINGS."""
        return self._block > 0 or self.first

    @property
    def pending(self) -> bool:
        """Whether bytes wait here, of a whole frame or of a part."""
        return self._at < len(self._buffer)

    def take(self, now: float) -> Helping | None:
        """The next frames, or None while none is complete. Raises H2Violation."""
        buffer, size = self._buffer, len(self._buffer)
        start = at = self._at
        frames = []
        if self._preface:
            at = self._take_preface(at, size)
            if self._preface:
                return None
            frames.append(H2_PREFACE)
        for _ in range(HELPING):
            if size - at < 9:
                break
            length = (buffer[at] << 16) | (buffer[at + 1] << 8) | buffer[at + 2]
            kind, flags = buffer[at + 3], buffer[at + 4]
            if kind == Type.DATA and flags & _PADDED and size - at == 9 and length:
                break  # its first byte says how much of it is padding
            if not self._judged:
                try:
                    self._judge(at, length, kind, flags, now)
                except H2Violation:
                    if at == start:
                        raise
                    break  # what came before it is good; this is said next time
                self._judged = True
            end = at + 9 + length
            if end > size:
                break
            self._judged = False
            if kind == Type.GOAWAY and self._is_graceful(at, length):
                self._at = end
                return Helping(frames, int.from_bytes(buffer[at + 9 : at + 13], "big") & 0x7FFFFFFF)
            frames.append(bytes(buffer[at:end]))
            at = end
        if at == start:
            return None
        self._at = at
        return Helping(frames)

    def _take_preface(self, at: int, size: int) -> int:
        end = min(size, at + self._preface)
        if self._buffer[at:end] != H2_PREFACE[: end - at]:
            raise H2Violation("no HTTP/2 preface", Code.PROTOCOL_ERROR)
        if size - at < self._preface:
            return at
        self._preface = 0
        return end

    def _is_graceful(self, at: int, length: int) -> bool:
        buffer = self._buffer
        return length >= _GOAWAY_SIZE and not any(buffer[at + 13 : at + 17]) and not any(buffer[at + 5 : at + 9])

    def _judge(self, at: int, length: int, kind: int, flags: int, now: float) -> None:
        if self.first:
            if kind != Type.SETTINGS or flags & _ACK:
                raise H2Violation("the first frame is no SETTINGS", Code.PROTOCOL_ERROR)
            self.first = False
        if length > MAX_FRAME:
            raise H2Violation("a frame is larger than we allow", Code.FRAME_SIZE_ERROR)
        if kind == Type.HEADERS or kind == Type.CONTINUATION:
            self._judge_block(length, kind, flags)
        elif self._block:
            raise H2Violation("another frame inside a header block", Code.PROTOCOL_ERROR)
        elif kind == Type.DATA:
            payload = length
            if flags & _PADDED and length:
                payload -= 1 + self._buffer[at + 9]
            if payload > 0:
                self.control.earn(1)
            elif not flags & END_STREAM:
                self._count(self.control, now, "frames without a purpose")
        elif kind == Type.RST_STREAM:
            self._count(self.resets, now, "cancelled streams")
        elif kind == Type.SETTINGS:
            if flags & _ACK and length:
                raise H2Violation("a SETTINGS acknowledgement with a payload", Code.FRAME_SIZE_ERROR)
            self._count(self.settings, now, "SETTINGS")
        elif kind != Type.GOAWAY:
            self._count(self.control, now, "frames without a purpose")

    def _judge_block(self, length: int, kind: int, flags: int) -> None:
        if kind == Type.HEADERS:
            if self._block:
                raise H2Violation("another frame inside a header block", Code.PROTOCOL_ERROR)
            self._continuations = 0
        else:
            self._continuations += 1
        self._block += length + 1
        if self._block > self._max_block + 64 or self._continuations > _MAX_CONTINUATIONS:
            raise H2Violation("a header block without end", Code.ENHANCE_YOUR_CALM)
        if flags & END_HEADERS:
            self._block = 0

    @staticmethod
    def _count(allowance: Allowance, now: float, what: str) -> None:
        if not allowance.spend(now):
            raise H2Violation(f"too many {what}", Code.ENHANCE_YOUR_CALM)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
