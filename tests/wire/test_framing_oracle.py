"""HTTP/1 heads and bodies against h11: whatever we accept, h11 accepts with the same meaning, in every split.

The other direction does not hold and must not: where h11 is lenient (folded lines, repeated lengths, bare LF inside
chunk framing) we refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.errors import ProtocolViolation
from dbproxy.wire.h1 import (
    Body,
    HeadBuffer,
    Kind,
    parse_request_head,
    parse_response_head,
    request_framing,
    response_framing,
)

LIMIT = 65536


@dataclass(frozen=True)
class Message:
    """What one side understood of one message."""

    first: tuple[object, ...]
    fields: list[tuple[bytes, bytes]]
    payload: bytes
    trailers: list[tuple[bytes, bytes]]
    complete: bool


def plain(pairs: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Fields as h11 shows them: it lower-cases the transfer coding."""
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in pairs]


def read_trailers(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    found = [line.partition(b":") for line in lines]
    return [(name.lower(), value.strip(b" \t")) for name, _, value in found]


class Ours:
    """Reads a stream of messages with our parts, as a connection does."""

    def __init__(self, method: bytes | None) -> None:
        self.method = method  # of the request that was answered; None reads requests
        self.messages: list[Message] = []
        self.violated = False
        self._head = HeadBuffer(LIMIT)
        self._current: tuple[tuple[object, ...], list[tuple[bytes, bytes]]] | None = None
        self._body: Body | None = None
        self._payload = b""

    def feed(self, data: bytes) -> None:
        if self.violated:
            return
        try:
            self._feed(data)
        except ProtocolViolation:
            self.violated = True

    def _feed(self, data: bytes) -> None:
        while True:
            if self._body is None:
                self._head.feed(data)
                if self.method is None:
                    self._head.skip_blank_lines()
                head = self._head.take()
                if head is None:
                    return
                self._begin(head)
                data = self._head.rest()
            assert self._body is not None
            taken = self._body.feed(data)
            self._payload += self._body.take()
            if not self._body.done:
                assert taken == len(data)
                return
            data = data[taken:]
            self._end(True)

    def _begin(self, head: bytes) -> None:
        if self.method is None:
            request = parse_request_head(head)
            first: tuple[object, ...] = (request.method, request.target, request.version.removeprefix(b"HTTP/"))
            framing, fields = request_framing(request), request.fields
        else:
            response = parse_response_head(head)
            first = (response.status, response.reason, response.version.removeprefix(b"HTTP/"))
            framing, fields = response_framing(response, self.method), response.fields
        self._current = (first, plain(list(fields.pairs())))
        self._body = Body(framing, keep=True)
        self._payload = b""

    def _end(self, complete: bool) -> None:
        assert self._current is not None
        assert self._body is not None
        first, fields = self._current
        self.messages.append(Message(first, fields, self._payload, read_trailers(self._body.trailers), complete))
        self._body = self._current = None

    def close(self) -> None:
        """The peer closed: that completes a CLOSE body, and cuts any other."""
        if self._body is not None and not self.violated:
            self._end(self._body.kind is Kind.CLOSE)


def ours(pieces: list[bytes], method: bytes | None = None) -> Ours:
    reader = Ours(method)
    for piece in pieces:
        reader.feed(piece)
    reader.close()
    return reader


def theirs(data: bytes, method: bytes | None = None) -> list[Message]:
    """The same stream read by h11, one connection for each message, up to its first complaint."""
    messages: list[Message] = []
    while True:
        if method is None:
            # h11 refuses the empty lines that a server should skip (RFC 9112 2.2).
            while data.startswith((b"\n", b"\r\n")):
                data = data[1 if data[:1] == b"\n" else 2 :]
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMIT)
        else:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=LIMIT)
            connection.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
            connection.send(h11.EndOfMessage())
        if not data:
            return messages
        connection.receive_data(data)
        connection.receive_data(b"")
        message, data = read_one(connection)
        if message is None:
            return messages
        messages.append(message)
        if not message.complete:
            return messages


def read_one(connection: h11.Connection) -> tuple[Message | None, bytes]:
    first: tuple[object, ...] = ()
    fields: list[tuple[bytes, bytes]] = []
    payload, trailers, complete = b"", [], False
    try:
        while not complete:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                first = (event.method, event.target, event.http_version)
                fields = list(event.headers)
            elif isinstance(event, h11.Response | h11.InformationalResponse):
                first = (event.status_code, event.reason, event.http_version)
                fields = list(event.headers)
                # To h11 the final answer belongs to the same message; to us it is one of its own.
                complete = isinstance(event, h11.InformationalResponse)
            elif isinstance(event, h11.Data):
                payload += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                trailers, complete = list(event.headers), True
            else:
                break
    except h11.RemoteProtocolError:
        pass
    if not first:
        return None, b""
    return Message(first, fields, payload, trailers, complete), bytes(connection.trailing_data[0])


def agree(data: bytes, marks: list[int], method: bytes | None = None) -> Ours:
    """Every message that we read, h11 reads alike; the split changes nothing."""
    whole = ours([data], method)
    for split in (cut(data, marks), [data[i : i + 1] for i in range(len(data))]):
        other = ours(split, method)
        assert other.messages == whole.messages
        assert other.violated == whole.violated
    judged = theirs(data, method)
    finished = [message for message in whole.messages if message.complete]
    assert finished == judged[: len(finished)]
    for mine, other_side in zip(whole.messages, judged, strict=False):
        if not mine.complete:
            # Cut short: h11 has the same head and the payload so far.
            assert (mine.first, mine.fields, mine.payload) == (other_side.first, other_side.fields, other_side.payload)
            assert not other_side.complete
    return whole


def cut(data: bytes, marks: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(mark % (len(data) + 1) for mark in marks)})
    return [data[a:b] for a, b in pairwise(edges)]


ODD_BYTES = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\x01",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b"0",
    b"+",
    b"_",
    b"-",
    b"x",
]
FIELD_SHAPES = [
    b"Content-Length: 5",
    b"content-length:5",
    b"Content-Length: 05",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
    b"Content-Length: 0",
    b"Content-Length:",
    b"Content-Length: 5\x0b",
    b"Content-Length: 18446744073709551617",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding:\tChunked ",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:",
    b"X-A: \xc3\xa9 b\tc",
    b"X-B:",
    b"X-B:  \t ",
    b" folded: x",
    b"Connection: close",
    b"Connection: Keep-Alive, Upgrade",
    b"Upgrade: websocket",
    b"Host: again",
    b"no colon",
    b": empty",
    b"X\x80: a",
    b"X: a\x00b",
    b"Expect: 100-continue",
]
FIELDS = st.sampled_from(FIELD_SHAPES)
BODY_SHAPES = [
    b"",
    b"hello",
    b"hell",
    b"hello more",
    b"5\r\nhello\r\n0\r\n\r\n",
    b'5;x="y"\r\nhello\r\n0\r\nT: 1\r\nU:\r\n\r\n',
    b"05\r\nhello\r\n1\r\n!\r\n00\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhelloo\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"g\r\n",
    b"\r\n",
    b"A\r\n0123456789\r\n0\r\nX\r\n\r\n",
    b"0\r\n folded\r\n\r\n",
    b"0\r\nA: b\r\n c\r\n\r\n",
    b"0\r\nA: \x01\r\n\r\n",
    b"fffffffffffffffff\r\n",
    b"0\r\n\r\nGET / HTTP/1.1\r\n",
    b"5;\x00\r\nhello\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"5\r\r\nhello\r\n0\r\n\r\n",
    b"0\r\nA : b\r\n\r\n",
    b"5 ;x\r\nhello\r\n0\r\n\r\n",
    b"5\t; x\r\nhello\r\n0\r\n\r\n",
    b"5; x \t\r\nhello\r\n0\r\n\r\n",
    b"0\r\nA: a\x0bb\r\n\r\n",
    b"0\r\nA:\x0b\r\n\r\n",
    b"0\r\nA: \x7f\x80\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n",
]
BODIES = st.sampled_from(BODY_SHAPES)
REQUEST_SHAPES = [
    b"GET / HTTP/1.1",
    b"POST /v1/messages?beta=true HTTP/1.1",
    b"POST /x HTTP/1.0",
    b"GET  / HTTP/1.1",
    b"GET / HTTP/1.1 ",
    b"GET /\xc3\xa4 HTTP/1.1",
    b"GET / HTTP/2.0",
    b"GET / HTTP/1.2",
    b"GET /",
    b"GET",
    b"G(T / HTTP/1.1",
    b"get * HTTP/1.1",
    b"OPTIONS * http/1.1",
    b"GET /a b HTTP/1.1",
    b"HEAD http://a/ HTTP/1.1",
    b"GET\t/ HTTP/1.1",
]
REQUEST_LINES = st.sampled_from(REQUEST_SHAPES)
STATUS_SHAPES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200",
    b"HTTP/1.1 200 ",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 103 Early Hints",
    b"HTTP/1.1 099 Low",
    b"HTTP/1.1 000 None",
    b"HTTP/1.1 999 High",
    b"HTTP/1.1 20 Short",
    b"HTTP/1.1 2000 Long",
    b"HTTP/1.1  200 OK",
    b"HTTP/2 200",
    b"HTTP/1.1 529 \xc3\x9cber",
    b"HTTP/1.1 200 O\x00K",
    b"ICY 200 OK",
]
STATUS_LINES = st.sampled_from(STATUS_SHAPES)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"])


@st.composite
def messages(draw: st.DrawFn, first_lines: st.SearchStrategy[bytes], host: bool) -> bytes:
    lines = [draw(first_lines)]
    if host and draw(st.integers(0, 9)):
        lines.append(b"Host: api.anthropic.com")
    lines += draw(st.lists(FIELDS, max_size=3))
    end = draw(ENDS)
    return b"".join(line + end for line in lines) + end + draw(BODIES)


@st.composite
def streams(draw: st.DrawFn, first_lines: st.SearchStrategy[bytes], host: bool) -> bytes:
    """One or two messages one behind the other, mostly in order, some with a few bytes changed."""
    data = b"".join(draw(st.lists(messages(first_lines, host), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from([b"", *ODD_BYTES])) + data[at + draw(st.integers(0, 2)) :]
    return data


MARKS = st.lists(st.integers(0, 500), max_size=5)


@pytest.mark.parametrize("body", BODY_SHAPES)
def test_every_listed_body_in_both_directions(body: bytes) -> None:
    for fields in (b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b""):
        agree(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + body, [])
        agree(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body, [], b"GET")


@pytest.mark.parametrize("line", FIELD_SHAPES)
def test_every_listed_field_in_both_directions(line: bytes) -> None:
    for end in (b"\r\n", b"\n"):
        agree(end.join([b"POST / HTTP/1.1", b"Host: a", line, b"", b"hello"]), [])
        agree(end.join([b"HTTP/1.1 200 OK", line, b"", b"hello"]), [], b"GET")


@pytest.mark.parametrize("first", [*REQUEST_SHAPES, *STATUS_SHAPES])
def test_every_listed_first_line(first: bytes) -> None:
    for end in (b"\r\n", b"\n"):
        data = end.join([first, b"Host: a", b"Content-Length: 5", b"", b"hello"])
        agree(data, [])
        agree(data, [], b"GET")


@settings(max_examples=1000, deadline=None)
@given(streams(REQUEST_LINES, True), MARKS)
def test_requests(data: bytes, marks: list[int]) -> None:
    agree(data, marks)


@settings(max_examples=1000, deadline=None)
@given(streams(STATUS_LINES, False), MARKS, st.sampled_from([b"GET", b"HEAD", b"POST"]))
def test_responses(data: bytes, marks: list[int], method: bytes) -> None:
    agree(data, marks, method)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), MARKS)
def test_any_bytes(data: bytes, marks: list[int]) -> None:
    agree(data, marks)
    agree(data, marks, b"GET")


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A payload and one of its chunked forms."""
    parts = draw(st.lists(st.binary(min_size=1, max_size=30), max_size=6))
    coded = b""
    for part in parts:
        digits = draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % len(part)
        coded += digits + draw(st.sampled_from([b"", b";a", b'; a="b"'])) + b"\r\n" + part + b"\r\n"
    trailers = draw(st.sampled_from([b"", b"X-Checksum: 1\r\n", b"A:\r\nB: \xc3\xa9\r\n"]))
    return b"".join(parts), coded + draw(st.sampled_from([b"0", b"000", b"0;x"])) + b"\r\n" + trailers + b"\r\n"


@settings(max_examples=300, deadline=None)
@given(st.lists(chunked(), min_size=1, max_size=3), MARKS)
def test_well_formed_chunked_requests_are_all_read(bodies: list[tuple[bytes, bytes]], marks: list[int]) -> None:
    head = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = b"".join(head + coded for _, coded in bodies)
    reader = agree(data, marks)
    assert not reader.violated
    assert [message.payload for message in reader.messages] == [payload for payload, _ in bodies]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=3), MARKS)
def test_well_formed_requests_with_a_length_are_all_read(bodies: list[bytes], marks: list[int]) -> None:
    data = b"".join(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body) for body in bodies)
    reader = agree(data, marks)
    assert not reader.violated
    assert [message.payload for message in reader.messages] == bodies


SMUGGLING = [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5\r\nContent-Length: 5",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
    b"Content-Length: -5",
    b"Content-Length: 0x5",
    b"Content-Length: 5_0",
    b"Content-Length: ",
    b"Content-Length: \xb2",
    b"Content-Length : 5",
    b"Content-Length\x00: 5",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding : chunked",
    b"X: a\r\n Transfer-Encoding: chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"X: a\rTransfer-Encoding: chunked",
]


@pytest.mark.parametrize("fields", SMUGGLING)
def test_smuggling_shapes_are_refused(fields: bytes) -> None:
    data = b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\nhello0\r\n\r\n"
    assert agree(data, [40]).violated
    answer = b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n\r\nhello0\r\n\r\n"
    assert agree(answer, [30], b"GET").violated
