"""The comparing parser: exact about what is there, loud about what is left over."""

from __future__ import annotations

import pytest
import wirebytes

POST = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nX-Two:  b \r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx-dbproxy-phase: IDLE\r\n\r\n"
    b"2\r\nab\r\n1;x=y\r\nc\r\n0\r\nT: 1\r\n\r\n"
)


def test_messages_are_cut_where_they_end():
    first, second = wirebytes.messages(POST + CHUNKED)
    assert first == wirebytes.Message(
        b"POST /v1/messages HTTP/1.1", (b"Host: a", b"X-Two:  b ", b"Content-Length: 3"), b"abc"
    )
    assert second == wirebytes.Message(b"HTTP/1.1 200 OK", (), b"abc")


@pytest.mark.parametrize("stream", [POST[:-1], POST + b"x", CHUNKED[:-4], CHUNKED.replace(b"ab\r\n", b"abc\r\n")])
def test_what_is_cut_or_left_over_is_no_match(stream):
    with pytest.raises((AssertionError, ValueError)):
        wirebytes.messages(stream)


def test_one_changed_byte_shows():
    assert wirebytes.messages(POST) != wirebytes.messages(POST.replace(b"abc", b"abd"))
    assert wirebytes.messages(POST) != wirebytes.messages(POST.replace(b"X-Two:  b", b"X-Two: b"))
