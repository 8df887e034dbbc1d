"""Runs of small chunks, as events of a stream come: the quick way through them must agree with the slow one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.errors import ProtocolViolation
from dbproxy.wire.h1 import Body, Framing, Kind, chunk

CHUNKED = Framing(Kind.CHUNKED, 0)
EVENT = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0}\n\n'
PAYLOADS = st.one_of(
    st.just(EVENT), st.binary(min_size=1, max_size=40), st.sampled_from([b"\r\n", b"a\r\nb", b"\r", b"5\r\nhello\r\n"])
)


def known_sizes() -> None:
    """Let every size of these tests be one that was seen before."""
    body = Body(CHUNKED)
    body.feed(b"".join(chunk(b"x" * size) for size in range(1, 200)))


def walked(pieces: list[bytes], *, keep: bool = True) -> tuple[bytes, int, bool, int, list[bytes]]:
    body = Body(CHUNKED, keep=keep)
    used = 0
    for piece in pieces:
        used += body.feed(piece)
    return body.take(), body.count, body.done, used, body.trailers


@given(st.lists(PAYLOADS, min_size=3, max_size=60), st.sampled_from([b"0\r\n\r\n", b"0\r\nX-T: 1\r\n\r\n", b""]))
def test_a_run_is_walked_as_byte_by_byte(payloads: list[bytes], end: bytes) -> None:
    known_sizes()
    wire = b"".join(map(chunk, payloads)) + end
    behind = b"GET / HTTP/1.1\r\n\r\n" if end else b""
    whole = walked([wire + behind])
    assert whole == walked([wire[at : at + 1] for at in range(len(wire))])
    assert whole[0] == b"".join(payloads)
    assert whole[1] == len(whole[0])
    assert whole[2] is bool(end)
    assert whole[3] == len(wire)
    assert walked([wire + behind], keep=False)[1:] == whole[1:]


@given(st.lists(PAYLOADS, min_size=8, max_size=60), st.integers(0, 2000))
def test_a_run_cut_anywhere_goes_on(payloads: list[bytes], cut: int) -> None:
    known_sizes()
    wire = b"".join(map(chunk, payloads)) + b"0\r\n\r\n"
    assert walked([wire[:cut], wire[cut:]])[:4] == (b"".join(payloads), sum(map(len, payloads)), True, len(wire))


@pytest.mark.parametrize(
    "bad", [b"5\r\nhell\r\n", b"5\r\nhelloo\r\n", b"5\rhello\r\n", b"-5\r\nhello\r\n", b"5 5\r\nhello\r\n"]
)
def test_a_bad_chunk_inside_a_run_is_an_error(bad: bytes) -> None:
    known_sizes()
    good = chunk(EVENT) * 8
    with pytest.raises(ProtocolViolation):
        walked([good + bad + good + b"0\r\n\r\n"])


def test_nothing_is_taken_behind_the_end() -> None:
    known_sizes()
    body = Body(CHUNKED, keep=True)
    assert body.feed(b"0\r\n\r\n") == 5
    assert body.feed(chunk(EVENT) * 8) == 0
    assert body.take() == b""
