"""HTTP/1.1 heads and body framing as bytes in, values out.

Owns: parsing a head strictly, deciding where a body ends, walking a body without copying it, removing hop-by-hop
fields, writing heads. Must never import trio, sockets or clocks.

Invariants
- A head is accepted by the quick pattern below only if h11 accepts it with the same meaning; whatever the pattern does
  not match is decided by h11 itself (tests/wire/test_framing_oracle.py fuzzes that). h11 alone costs 46 us a head.
- Field lines are never rewritten: a forwarded line is the line that came.
- Ambiguous framing (length and transfer coding together, repeated or signed lengths, a coding other than chunked) is
  an error, never a guess: that is how requests get smuggled (RFC 9112 sections 6 and 11).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import h11

from dbproxy.errors import ProtocolViolation
from dbproxy.exchange import Fields, RequestHead, ResponseHead

#: Field-value bytes here are printable ASCII, blanks and obs-text; no control bytes, no folding. One class per field:
#: anything cleverer about blanks makes the pattern quadratic on a hostile head.
_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t\x21-\x7e\x80-\xff]*"
_REQUEST = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/1\.[01]\r\n(?:" + _FIELD + rb"\r\n)*\r\n")
_RESPONSE = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?: [ \t\x21-\x7e\x80-\xff]*)?\r\n(?:" + _FIELD + rb"\r\n)*\r\n")
_END = re.compile(rb"\n\r?\n")

#: Fields that belong to one connection only (RFC 9110 section 7.6.1) or to the proxy in front of us.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"upgrade",
    }
)
#: Framing and routing fields that a Connection field may not talk us into dropping.
_PROTECTED = frozenset({b"host", b"content-length", b"transfer-encoding", b"trailer", b"content-encoding"})

_MAX_CHUNK_LINE = 4096
_MAX_TRAILERS = 16384


class HeadBuffer:
    """Collects bytes until a head is complete; keeps what follows it.

    ``limit`` is the largest head in bytes. After ``take`` returned a head, ``rest()`` hands over what came behind it.
    """

    __slots__ = ("_buffer", "_searched", "limit")

    def __init__(self, limit: int, initial: bytes = b"") -> None:
        self.limit = limit
        self._buffer = bytearray(initial)
        self._searched = 0

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append what was received."""
        self._buffer += data

    def take(self) -> bytes | None:
        """The whole head including its blank line, or None while it is incomplete.

        Raises ProtocolViolation(431) when the head is larger than the limit.
        """
        buffer = self._buffer
        found = buffer.find(b"\r\n\r\n", self._searched)
        if found >= 0:
            end = found + 4
            if buffer.find(b"\n\n", self._searched, end) >= 0 or buffer.find(b"\n\r\n", self._searched, found) >= 0:
                found = -1
        if found < 0:
            match = _END.search(buffer, self._searched)
            if match is None:
                self._searched = max(0, len(buffer) - 3)
                if len(buffer) > self.limit:
                    raise ProtocolViolation("the header is larger than the limit", status=431)
                return None
            end = match.end()
        if end > self.limit:
            raise ProtocolViolation("the header is larger than the limit", status=431)
        head = bytes(buffer[:end])
        del buffer[:end]
        self._searched = 0
        return head

    def skip_blank_lines(self) -> None:
        """Drop empty lines before a request line, which a robust server ignores (RFC 9112 section 2.2)."""
        while self._buffer[:1] == b"\n" or self._buffer[:2] == b"\r\n":
            del self._buffer[: 1 if self._buffer[:1] == b"\n" else 2]
            self._searched = 0

    def rest(self) -> bytes:
        """Take everything that is buffered."""
        data = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return data


def _fields(lines: list[bytes], max_fields: int) -> Fields:
    if len(lines) > max_fields:
        raise ProtocolViolation(f"more than {max_fields} header fields", status=431)
    parts = [line.partition(b":") for line in lines]
    return Fields(lines, [part[0].lower() for part in parts], [part[2].strip(b" \t") for part in parts])


def _lines(head: bytes) -> list[bytes]:
    """The lines of a head that h11 accepted, which tolerates bare LF."""
    return [line.removesuffix(b"\r") for line in head.rstrip(b"\r\n").split(b"\n")]


def _why(error: h11.RemoteProtocolError) -> str:
    """What h11 says without the bytes that it quotes: a header line may be a key, and this ends up in logs."""
    return str(error).partition(":")[0]


def parse_request_head(head: bytes, *, max_fields: int = 256) -> RequestHead:
    """A request head from its exact bytes (blank line included). Raises ProtocolViolation."""
    if _REQUEST.fullmatch(head):
        first, *lines = head[:-4].split(b"\r\n")
    else:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + 1)
        connection.receive_data(head)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise ProtocolViolation(f"malformed request: {_why(error)}", status=error.error_status_hint) from None
        if not isinstance(event, h11.Request):
            raise ProtocolViolation("malformed request")
        first, *lines = _lines(head)
        if any(line[:1] in b" \t" for line in lines):
            raise ProtocolViolation("folded header lines are not supported")
    method, target, version = first.split(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise ProtocolViolation("only HTTP/1.1 and HTTP/1.0 are spoken here", status=505)
    request = RequestHead(method, target, version, _fields(lines, max_fields))
    hosts = request.fields.names.count(b"host")
    if hosts > 1 or (hosts == 0 and version == b"HTTP/1.1" and method != b"CONNECT"):
        raise ProtocolViolation("a request needs exactly one Host field")
    return request


def parse_response_head(head: bytes, *, max_fields: int = 512) -> ResponseHead:
    """A response head from its exact bytes (blank line included). Raises ProtocolViolation(502)."""
    if _RESPONSE.fullmatch(head):
        first, *lines = head[:-4].split(b"\r\n")
    else:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(head) + 1)
        connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        connection.send(h11.EndOfMessage())
        connection.receive_data(head)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise ProtocolViolation(f"malformed answer: {_why(error)}", status=502) from None
        if not isinstance(event, h11.Response | h11.InformationalResponse):
            raise ProtocolViolation("malformed answer", status=502)
        first, *lines = _lines(head)
        if any(line[:1] in b" \t" for line in lines):
            raise ProtocolViolation("folded header lines are not supported", status=502)
    version, _, rest = first.partition(b" ")
    code, _, reason = rest.partition(b" ")
    return ResponseHead(int(code), reason, version, _fields(lines, max_fields))


def serialise_request(head: RequestHead) -> bytes:
    """The bytes of a request head, field lines as they are."""
    return b"\r\n".join([b"%b %b %b" % (head.method, head.target, head.version), *head.fields.lines, b"", b""])


def serialise_response(head: ResponseHead) -> bytes:
    """The bytes of a response head, field lines as they are."""
    return b"\r\n".join([b"%b %d %b" % (head.version, head.status, head.reason), *head.fields.lines, b"", b""])


def end_to_end(fields: Fields, *, keep_upgrade: bool = False) -> Fields:
    """The fields less those of this hop. With ``keep_upgrade`` ``Upgrade`` stays and ``Connection`` says just that."""
    if HOP_BY_HOP.isdisjoint(fields.names):
        return fields
    nominated = fields.tokens(b"connection")
    drop = (HOP_BY_HOP | nominated) - _PROTECTED
    if keep_upgrade:
        kept = fields.without(drop - {b"upgrade", b"connection"})
        return kept.replaced(b"Connection", b"Upgrade")
    return fields.without(drop)


def wants_upgrade(fields: Fields) -> bool:
    """Whether a request asks to switch protocols."""
    return b"upgrade" in fields.names and b"upgrade" in fields.tokens(b"connection")


def keeps_alive(version: bytes, fields: Fields) -> bool:
    """Whether the sender of this head will use the connection again."""
    if b"connection" not in fields.names:
        return version == b"HTTP/1.1"
    tokens = fields.tokens(b"connection")
    if b"close" in tokens:
        return False
    return version == b"HTTP/1.1" or b"keep-alive" in tokens


class Kind(Enum):
    """How a body ends."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Framing:
    """How a body ends; ``length`` in bytes, only for LENGTH."""

    kind: Kind
    length: int = 0


_NO_BODY = Framing(Kind.NONE)
_CHUNKED = Framing(Kind.CHUNKED)
_UNTIL_CLOSE = Framing(Kind.CLOSE)


def _length(fields: Fields, status: int) -> int | None:
    if b"content-length" not in fields.names:
        return None
    values = fields.get_all(b"content-length")
    value = values[0]
    if len(values) > 1 or not value.isdigit() or len(value) > 18:
        raise ProtocolViolation("bad Content-Length", status=status)
    return int(value)


def request_framing(head: RequestHead) -> Framing:
    """Where a request's body ends. Raises ProtocolViolation on everything ambiguous."""
    length = _length(head.fields, 400)
    if b"transfer-encoding" in head.fields.names:
        codings = head.fields.get_all(b"transfer-encoding")
        if length is not None:
            raise ProtocolViolation("both Content-Length and Transfer-Encoding")
        if head.version != b"HTTP/1.1":
            raise ProtocolViolation("Transfer-Encoding needs HTTP/1.1")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise ProtocolViolation("only the transfer coding chunked is supported", status=501)
        return _CHUNKED
    return Framing(Kind.LENGTH, length) if length else _NO_BODY


def response_framing(head: ResponseHead, method: bytes) -> Framing:
    """Where the body of the answer to a ``method`` request ends. Raises ProtocolViolation(502)."""
    bodyless = method == b"HEAD" or head.status in (204, 304) or head.status < 200
    length = _length(head.fields, 502)
    if b"transfer-encoding" in head.fields.names:
        codings = head.fields.get_all(b"transfer-encoding")
        if length is not None:
            raise ProtocolViolation("the answer has both Content-Length and Transfer-Encoding", status=502)
        if len(codings) > 1 or codings[0].lower() != b"chunked" or head.version != b"HTTP/1.1":
            raise ProtocolViolation("the answer has an unknown transfer coding", status=502)
        return _NO_BODY if bodyless else _CHUNKED
    if bodyless:
        return _NO_BODY
    if length is None:
        return _UNTIL_CLOSE
    return Framing(Kind.LENGTH, length) if length else _NO_BODY


class Body:
    """Walks the bytes of one body as they pass and finds its end.

    ``feed`` returns how many bytes of ``data`` belong to the body's wire form (chunk framing and trailers included).
    With ``keep`` the payload without framing is collected for the caller to ``take``. ``count`` says how many payload
    bytes came so far. A CLOSE body is never done by itself: the end of the connection ends it.
    """

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes", "count", "done", "keep", "kind", "payload", "trailers")

    def __init__(self, framing: Framing, *, keep: bool = False) -> None:
        self.kind = framing.kind
        self.keep = keep
        self.payload: list[bytes] = []
        self.trailers: list[bytes] = []
        self.count = 0
        self.done = framing.kind is Kind.NONE
        self._left = framing.length
        self._state = 0  # chunked: 0 size line, 1 data, 2 line end behind data, 3 trailers
        self._line = b""
        self._trailer_bytes = 0

    def take(self) -> bytes:
        """The payload collected since the last call."""
        payload = self.payload
        if not payload:
            return b""
        data = payload[0] if len(payload) == 1 else b"".join(payload)
        payload.clear()
        return data

    def feed(self, data: bytes) -> int:
        """Walk ``data``; raises ProtocolViolation on bad chunk framing."""
        if self.kind is Kind.CHUNKED:
            return self._feed_chunked(data)
        size = len(data)
        if self.kind is Kind.LENGTH:
            if size >= self._left:
                size = self._left
                self.done = True
            self._left -= size
        elif self.kind is Kind.NONE:
            return 0
        self.count += size
        if self.keep and size:
            self.payload.append(data if size == len(data) else data[:size])
        return size

    def _feed_chunked(self, data: bytes) -> int:
        at, size = 0, len(data)
        state = self._state
        sizes = _SIZES
        if state == 0 and size > _RUN and not self._line and not self.done:
            at = self._whole_chunks(data)
        while at < size and not self.done:
            if state == 0 and not self._line:
                # Whole chunks with a size line seen before: one event of a stream is usually one such chunk.
                end = data.find(b"\r\n", at, at + 20)
                left = sizes.get(data[at:end]) if end > 0 else None
                if left is not None:
                    after = end + 2 + left
                    if after + 2 <= size and data[after] == 13 and data[after + 1] == 10:
                        if self.keep:
                            self.payload.append(data[end + 2 : after])
                        self.count += left
                        at = after + 2
                        continue
            if state == 1:
                step = min(self._left, size - at)
                if self.keep:
                    self.payload.append(data[at : at + step])
                self.count += step
                at += step
                self._left -= step
                if not self._left:
                    state = 2
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                if len(self._line) > _MAX_CHUNK_LINE:
                    raise ProtocolViolation("a chunk line is too long")
                at = size
                break
            line = data[at:end] if not self._line else self._line + data[at:end]
            self._line = b""
            at = end + 1
            if line[-1:] != b"\r" or b"\r" in line[:-1] or b"\0" in line or len(line) > _MAX_CHUNK_LINE:
                raise ProtocolViolation("bad chunk framing")
            state = self._chunk_line(state, line[:-1])
        self._state = state
        return at

    def _whole_chunks(self, data: bytes) -> int:
        """Take the small whole chunks that ``data`` begins with; returns where the rest starts.

        Events of a stream come as such chunks, many at once under load. A payload without a line end in it is what
        stands between two line ends, so one split finds them all; whatever does not fit exactly is left to the walk.
        """
        first = _SIZES.get(data[: data.find(b"\r\n", 0, 8)])
        if first is None or first > _SMALL_CHUNK or first * 2 > len(data):
            return 0
        parts = data.split(b"\r\n")
        del parts[-1]  # what stands behind the last line end is no whole chunk yet
        chunks = len(parts) // 2
        lines, pieces = parts[0 : 2 * chunks : 2], parts[1 : 2 * chunks : 2]
        sizes = list(map(len, pieces))
        if list(map(_SIZES.get, lines)) != sizes:
            # What does not fit, and all behind it, is left to the walk.
            chunks = next(at for at, size in enumerate(sizes) if _SIZES.get(lines[at]) != size)
            lines, pieces, sizes = lines[:chunks], pieces[:chunks], sizes[:chunks]
        count = sum(sizes)
        self.count += count
        if self.keep:
            self.payload += pieces
        return count + sum(map(len, lines)) + 4 * chunks

    def _chunk_line(self, state: int, line: bytes) -> int:
        """Take one complete line of chunk framing; returns the next state."""
        if state == 2:
            if line:
                raise ProtocolViolation("bad chunk framing")
            return 0
        if state == 0:
            digits, semicolon, _ = line.partition(b";")
            if not semicolon:
                digits = digits.rstrip(b" \t")
            # int() would take signs, blanks and underscores.
            if not 0 < len(digits) <= 16 or digits.strip(b"0123456789abcdefABCDEF"):
                raise ProtocolViolation("bad chunk size")
            self._left = left = int(digits, 16)
            if left and len(line) <= 6 and len(_SIZES) < 8192:
                _SIZES[line] = left
            return 1 if left else 3
        if not line:
            self.done = True
            return 0
        self._trailer_bytes += len(line)
        if not _TRAILER.fullmatch(line) or self._trailer_bytes > _MAX_TRAILERS:
            raise ProtocolViolation("bad trailer field")
        self.trailers.append(line)
        return 3


#: Chunks up to this size (bytes) are looked for in whole runs, in helpings of at least that many bytes.
_SMALL_CHUNK, _RUN = 4096, 384
#: Size lines that were found well-formed, for the quick way through a chunk.
_SIZES: dict[bytes, int] = {}
_TRAILER = re.compile(_FIELD)


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked coding; ``data`` must not be empty (that would end the body)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
