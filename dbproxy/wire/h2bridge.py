"""Between the two notations of one message: HTTP/2 heads and DATA on one side, HTTP/1.1 bytes on the other.

The pipeline speaks HTTP/1.1 to clients and upstreams alike; a stream of an HTTP/2 connection wears that as a coat. Owns
the translation both ways (RFC 9113 section 8). Never imports trio, sockets or clocks.

Invariants
- What comes out as HTTP/1.1 has passed the same strict parser as a head from a socket: no name or value can bring a
  line of its own.
- A body is as long as it says, or the stream is reset; a body without a length is chunked. Truncated is never complete.
- Fields of one connection (RFC 9113 section 8.2.2) stay on their side.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbproxy.errors import ProtocolViolation
from dbproxy.wire import h1
from dbproxy.wire.h2gate import Code

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.exchange import Fields, RequestHead
    from dbproxy.wire.h2 import Pairs

#: Fields that HTTP/2 has no place for.
CONNECTION_SPECIFIC = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"http2-settings"}
)
#: What may not come behind a body (RFC 9110 section 6.5.1): it would change what was decided at the head.
_NO_TRAILER = CONNECTION_SPECIFIC | {b"content-length", b"host", b"content-encoding", b"content-type", b"trailer"}
_UNSAFE = re.compile(rb"[\r\n\0]")
_WITH_LENGTH = frozenset({b"POST", b"PUT", b"PATCH"})


class Malformed(Exception):
    """A message that its stream is reset for; ``code`` is an HTTP/2 error code."""

    def __init__(self, message: str, code: int = Code.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


# ---- from HTTP/2 to HTTP/1.1


class Incoming:
    """The body of one message on its way to HTTP/1.1 bytes. ``length`` is None without a Content-Length."""

    __slots__ = ("_left", "chunked", "ended")

    def __init__(self, length: int | None, *, ended: bool, empty: bool = False) -> None:
        if ended and length and not empty:
            raise Malformed("the body is shorter than its Content-Length")
        self.ended = ended
        self.chunked = length is None and not ended
        self._left = 0 if empty else length

    def data(self, data: bytes) -> bytes:
        """Body bytes as they stand in HTTP/1.1. Raises Malformed."""
        if not data:
            return b""
        if self._left is None:
            return h1.chunk(data)
        self._left -= len(data)
        if self._left < 0:
            raise Malformed("the body is longer than its Content-Length")
        return data

    def end(self, trailers: Pairs | None = None) -> bytes:
        """What HTTP/1.1 says at the end. Raises Malformed."""
        self.ended = True
        if self._left is not None:
            if self._left:
                raise Malformed("the body is shorter than its Content-Length")
            return b""
        lines = b"".join(
            b"%b: %b\r\n" % (name, value)
            for name, value in trailers or ()
            if name not in _NO_TRAILER and name[:1] != b":" and not _UNSAFE.search(name + value)
        )
        return b"0\r\n" + lines + b"\r\n"


def incoming_request(pairs: Pairs, *, ended: bool, max_fields: int) -> tuple[RequestHead, Incoming]:
    """A request as HTTP/1.1 has it, and its body's way. Raises Malformed, and ProtocolViolation to be answered."""
    pseudo, fields = _split(pairs)
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if method == b"CONNECT" or b":protocol" in pseudo:
        # A tunnel or a WebSocket (RFC 8441) inside a stream: what does that today can do it over HTTP/1.1.
        raise Malformed("CONNECT inside HTTP/2", Code.HTTP_1_1_REQUIRED)
    if not path.startswith(b"/") and not (path == b"*" and method == b"OPTIONS"):
        raise Malformed("the path does not begin with a slash")
    host = pseudo.get(b":authority")
    if host is None:
        host = next((value for name, value in fields if name == b"host"), b"")
    lines = [b"%b %b HTTP/1.1" % (method, path), b"host: " + host]
    length: int | None = None
    for name, value in fields:
        if name == b"content-length":
            if length is None:
                lines.append(b"content-length: " + value)
            length = _length(value, length)
        elif name not in CONNECTION_SPECIFIC and name != b"host":
            lines.append(name + b": " + value)
    body = Incoming(length, ended=ended)
    if body.chunked:
        lines.append(b"transfer-encoding: chunked")
    elif length is None and method in _WITH_LENGTH:
        lines.append(b"content-length: 0")
    return h1.parse_request_head(_joined(lines), max_fields=max_fields), body


def incoming_answer(pairs: Pairs, method: bytes, *, ended: bool) -> tuple[bytes, Incoming]:
    """The head of an answer as HTTP/1.1 bytes, and its body's way. Raises Malformed."""
    pseudo, fields = _split(pairs)
    status = pseudo.get(b":status", b"")
    if len(status) != 3 or not status.isdigit() or status[:1] == b"0" or status == b"101":
        raise Malformed("bad status")
    informational = status[:1] == b"1"
    empty = informational or method == b"HEAD" or status in (b"204", b"304")
    lines = [b"HTTP/1.1 %b " % status]
    length: int | None = None
    for name, value in fields:
        if name == b"content-length":
            if length is None:
                lines.append(b"content-length: " + value)
            length = _length(value, length)
        elif name not in CONNECTION_SPECIFIC:
            lines.append(name + b": " + value)
    body = Incoming(0 if empty and length is None else length, ended=ended and not informational, empty=empty)
    if length is None and not empty:
        lines.append(b"transfer-encoding: chunked" if body.chunked else b"content-length: 0")
    return _joined(lines), body


def _split(pairs: Pairs) -> tuple[dict[bytes, bytes], Pairs]:
    """Pseudo-header fields, and the others. h2 has checked their order and that none is repeated."""
    pseudo = {name: value for name, value in pairs if name[:1] == b":"}
    return pseudo, [pair for pair in pairs if pair[0][:1] != b":"]


def _length(value: bytes, known: int | None) -> int:
    if not value.isdigit() or len(value) > 18 or (known is not None and int(value) != known):
        raise Malformed("bad Content-Length")
    return int(value)


def _joined(lines: list[bytes]) -> bytes:
    if any(_UNSAFE.search(line) for line in lines):
        raise Malformed("a field with a line end in it")
    return b"\r\n".join([*lines, b"", b""])


# ---- from HTTP/1.1 to HTTP/2


@dataclass(slots=True)
class SendHead:
    """Write a head; ``end`` without a body."""

    pairs: Pairs
    end: bool


@dataclass(slots=True)
class SendData:
    """Write body bytes; with ``end`` the stream ends behind them."""

    data: bytes
    end: bool


@dataclass(slots=True)
class SendTrailers:
    """Write trailers, which end the stream."""

    pairs: Pairs


Send = SendHead | SendData | SendTrailers


class Outgoing(ABC):
    """HTTP/1.1 bytes of one message in, what to write to its stream out.

    ``done`` says that the message is complete. The bytes are our own pipeline's: ProtocolViolation means that it went
    wrong, and the stream is to be reset.
    """

    __slots__ = ("_body", "_buffer", "_max_fields", "done", "method")

    def __init__(self, method: bytes, *, head_limit: int, max_fields: int) -> None:
        self.method = method  # of the request
        # A head that was accepted may have grown by the fields that we add.
        self._buffer = h1.HeadBuffer(head_limit + 65536)
        self._max_fields = max_fields + 100
        self._body: h1.Body | None = None
        self.done = False

    def feed(self, data: bytes) -> list[Send]:
        """Take what was sent. Raises ProtocolViolation."""
        sends: list[Send] = []
        while data and not self.done:
            if self._body is not None:
                return self._body_bytes(sends, self._body, data)
            self._buffer.feed(data)
            raw = self._buffer.take()
            if raw is None:
                break
            data = self._buffer.rest()
            pairs, body = self._head(raw)
            if body is None:
                sends.append(SendHead(pairs, False))
                continue
            self._body = body
            self.done = body.done
            sends.append(SendHead(pairs, body.done))
        return sends

    def close(self) -> list[Send]:
        """The sender closes its connection in good order: ends a body that only that can end.

        Anything else was cut short, then ``done`` stays False.
        """
        if self._body is not None and self._body.kind is h1.Kind.CLOSE and not self.done:
            self.done = True
            return [SendData(b"", True)]
        return []

    def _body_bytes(self, sends: list[Send], body: h1.Body, data: bytes) -> list[Send]:
        body.feed(data)
        payload = body.take()
        self.done = body.done
        trailers = _trailers(body.trailers) if body.done and body.trailers else []
        if payload or (body.done and not trailers):
            sends.append(SendData(payload, body.done and not trailers))
        if trailers:
            sends.append(SendTrailers(trailers))
        return sends

    @abstractmethod
    def _head(self, raw: bytes) -> tuple[Pairs, h1.Body | None]:
        """The pairs of a head, and its body; None for an informational one."""


class OutgoingAnswer(Outgoing):
    """The answer to a request."""

    __slots__ = ()

    def _head(self, raw: bytes) -> tuple[Pairs, h1.Body | None]:
        head = h1.parse_response_head(raw, max_fields=self._max_fields)
        pairs = [(b":status", b"%d" % head.status), *_fields(head.fields)]
        if head.status == 101:
            raise ProtocolViolation("HTTP/2 cannot switch protocols", status=502)
        if head.status < 200:
            return pairs, None
        return pairs, h1.Body(h1.response_framing(head, self.method), keep=True)


class OutgoingRequest(Outgoing):
    """A request to ``scheme``; ``method`` is known once its head was fed."""

    __slots__ = ("_scheme",)

    def __init__(self, scheme: bytes, *, head_limit: int, max_fields: int) -> None:
        super().__init__(b"", head_limit=head_limit, max_fields=max_fields)
        self._scheme = scheme

    def _head(self, raw: bytes) -> tuple[Pairs, h1.Body | None]:
        head = h1.parse_request_head(raw, max_fields=self._max_fields)
        self.method = head.method
        pairs = [
            (b":method", head.method),
            (b":scheme", self._scheme),
            (b":authority", head.fields.get(b"host") or b""),
            (b":path", head.target),
            *((name, value) for name, value in _fields(head.fields) if name != b"host"),
        ]
        return pairs, h1.Body(h1.request_framing(head), keep=True)


def _fields(fields: Fields) -> Iterable[tuple[bytes, bytes]]:
    gone = CONNECTION_SPECIFIC
    if b"connection" in fields.names:
        gone = gone | (fields.tokens(b"connection") - {b"content-length", b"host"})
    return [pair for pair in fields.pairs() if pair[0] not in gone]


def _trailers(lines: list[bytes]) -> Pairs:
    pairs: Pairs = []
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name not in _NO_TRAILER:
            pairs.append((name, value.strip(b" \t")))
    return pairs
