"""Server-sent events to exact bytes and back (WHATWG HTML 9.2), incremental and without I/O.

Owns the cut between events and the reading of their fields. Never imports trio, sockets or clocks, nor knows what the
data means.

Invariants: the ``raw`` parts of all events and ``rest`` joined are the input, byte for byte, whatever the split; the
names and data of the events do not depend on the split; no more than the size limit and one piece of input is held.
"""

from __future__ import annotations

import re
from itertools import starmap
from typing import Final

import msgspec

DEFAULT_LIMIT: Final = 8 * 1024 * 1024  # bytes of one event; blocks that arrive whole (tool results) are the large ones

_BOM: Final = b"\xef\xbb\xbf"
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
# Atomic, or a lone CRLF would be taken for two line ends.
_BLANK_LINE: Final = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
# The shape of every event of a Messages stream: two lines and a blank one. Nothing in it can match in two ways.
_PLAIN: Final = re.compile(rb"(event: ([a-z_]++)\ndata: ([^\n]*+)\n\n)")
_USUAL: Final = {
    b"event: " + name: name
    for name in (
        b"message_start",
        b"content_block_start",
        b"content_block_delta",
        b"content_block_stop",
        b"message_delta",
        b"message_stop",
        b"ping",
        b"error",
    )
}
_SEAM: Final = 3  # bytes of a blank line (CRLF CRLF) that may stand before the newest input


class SseEvent(msgspec.Struct, frozen=True, gc=False):
    """One block of the stream up to and with its blank line.

    ``raw`` are its exact bytes. ``name`` is empty where the block has no ``event`` field, ``data`` the ``data`` lines
    joined with LF; both are empty for a block of comments. ``parsed`` is False for a piece of an event beyond the size
    limit: its bytes pass, its fields were not read.
    """

    # A msgspec struct and no dataclass: one is made per event, and this costs a tenth.
    raw: bytes
    name: bytes
    data: bytes
    parsed: bool = True


class SseSplitter:
    """Cuts a byte stream into events. ``limit`` bounds the bytes held for one event."""

    __slots__ = ("_at_start", "_limit", "_pending", "_skipping")

    def __init__(self, *, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._pending = bytearray()
        self._skipping = False  # inside an event beyond the limit; _pending then holds bytes that were passed on
        self._at_start = True

    @property
    def rest(self) -> bytes:
        """Bytes of an event whose end has not come yet. At the end of the stream they are no event (WHATWG 9.2.6).

        They may also be the LF of a CRLF whose CR already ended the last event.
        """
        return b"" if self._skipping else bytes(self._pending)

    @property
    def between_events(self) -> bool:
        """Whether no part of an event is held: what was fed so far came out whole."""
        return not self._pending and not self._skipping

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that ``data`` completes, possibly none. Never raises on content."""
        if self._pending or self._skipping:
            return self._resume(data)
        lines = data.split(b"\n", 4) if len(data) <= self._limit else ()
        if len(lines) == 4:
            head, body, blank, rest = lines
            if not blank and not rest and head in _USUAL and body.startswith(b"data: ") and 13 not in body:
                # One usual event by itself, as a server flushes them.
                self._at_start = False
                return [SseEvent(data, _USUAL[head], body[6:])]
        return self._cut(data)

    def _resume(self, data: bytes) -> list[SseEvent]:
        if self._skipping:
            return self._skip(data)
        pending = self._pending
        # Only the seam is searched, so a large event in small pieces costs what it weighs, not its square.
        if not _has_blank_line(bytes(pending[-_SEAM:]) + data):
            pending += data
            return self._give_up() if len(pending) > self._limit else []
        if pending:
            data = bytes(pending) + data
            pending.clear()
        return self._cut(data)

    def _cut(self, data: bytes) -> list[SseEvent]:
        """Events of ``data``, which starts at an event's first byte; the tail becomes pending."""
        if 13 in data:  # an integer is sought at memory speed, b"\r" is not
            return self._cut_odd(data)
        size = len(data)
        events: list[SseEvent]
        if size <= self._limit:
            events = list(starmap(SseEvent, _PLAIN.findall(data)))
            at = sum([len(event.raw) for event in events])
            # They are all there is only if they fill everything up to the last blank line.
            if at and at == data.rfind(b"\n\n") + 2:
                self._at_start = False
                return events if at == size else self._hold(events, data[at:])
        events, at = [], 0
        while (end := data.find(b"\n\n", at) + 2) > 1:
            events.append(self._event(data[at:end], data[at : end - 2]))
            at = end
        return events if at == size else self._hold(events, data[at:])

    def _cut_odd(self, data: bytes) -> list[SseEvent]:
        """The same with CR or CRLF among the line ends.

        A blank line whose CR is the last byte so far ends its event at once; should its LF follow, that LF opens the
        next block and means nothing there.
        """
        events: list[SseEvent] = []
        at = 0
        for blank in _BLANK_LINE.finditer(data):
            events.append(self._event(data[at : blank.end()], data[at : blank.start()]))
            at = blank.end()
        return self._hold(events, data[at:])

    def _event(self, raw: bytes, block: bytes) -> SseEvent:
        if self._at_start:
            self._at_start = False
            block = block.removeprefix(_BOM)
        if len(raw) > self._limit:
            return SseEvent(raw, b"", b"", False)
        return SseEvent(raw, *_fields(block))

    def _hold(self, events: list[SseEvent], tail: bytes) -> list[SseEvent]:
        self._pending += tail
        return [*events, *self._give_up()] if len(tail) > self._limit else events

    def _give_up(self) -> list[SseEvent]:
        raw = bytes(self._pending)
        del self._pending[:-_SEAM]
        self._skipping = True
        self._at_start = False
        return [SseEvent(raw, b"", b"", False)]

    def _skip(self, data: bytes) -> list[SseEvent]:
        """Pass the bytes of an oversized event on until its blank line."""
        held = len(self._pending)
        seam = bytes(self._pending) + data
        end = _BLANK_LINE.search(seam)
        if end is None:
            self._pending = bytearray(seam[-_SEAM:])
            return [SseEvent(data, b"", b"", False)] if data else []
        self._pending.clear()
        self._skipping = False
        here = end.end() - held
        return [SseEvent(data[:here], b"", b"", False), *self._cut(data[here:])]


def _has_blank_line(data: bytes) -> bool:
    return b"\n\n" in data or (13 in data and _BLANK_LINE.search(data) is not None)


def _fields(block: bytes) -> tuple[bytes, bytes]:
    """The event name and the joined data lines of a block; other fields and comments have no meaning here."""
    name = b""
    data: list[bytes] = []
    for line in _LINE_END.split(block):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return name, b"\n".join(data)


def encode(name: bytes, data: bytes) -> bytes:
    """The bytes of one event; an empty ``name`` writes none. Data with line ends becomes several data lines.

    Raises ValueError for a name that would break out of its line. A CR in data comes back as LF: the format cannot
    carry it.
    """
    if b"\n" in name or b"\r" in name:
        raise ValueError("an event name holds a line end")
    lines = [b"event: " + name] if name else []
    lines += [b"data: " + line for line in _LINE_END.split(data)]
    return b"\n".join(lines) + b"\n\n"
