"""Content codings: every coding, every split, flushed events at once, bombs, truncation, damage."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.errors import ProtocolViolation
from dbproxy.exchange import Fields
from dbproxy.wire.coding import decodable, decode_body, decoder

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 1 << 20


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def identity(data: bytes) -> bytes:
    return data


CODERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "x-gzip": (b"X-GZip", gzip.compress),
    "zlib": (b"deflate", zlib.compress),
    "raw deflate": (b"deflate", raw_deflate),
    "zstd": (b"zstd", zstandard.compress),
    "br": (b"br", brotli.compress),
    "list": (b"gzip, br", lambda data: brotli.compress(gzip.compress(data))),
    "identity in a list": (b"identity , ZSTD,", zstandard.compress),
    "three": (b"zstd,deflate,gzip", lambda data: gzip.compress(zlib.compress(zstandard.compress(data)))),
    "identity": (b"identity", identity),
    "empty": (b"", identity),
    "two gzip members": (b"gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "padded gzip": (b"gzip", lambda data: gzip.compress(data) + b"\x00" * 7),
    "two zstd frames": (b"zstd", lambda data: zstandard.compress(data[:9]) + zstandard.compress(data[9:])),
    "skippable zstd frame": (b"zstd", lambda data: b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + zstandard.compress(data)),
}


def decode(name: bytes | None, pieces: list[bytes], limit: int = LIMIT) -> bytes:
    undo = decoder(name, limit=limit)
    return b"".join(undo.feed(piece) for piece in pieces) + undo.finish()


@pytest.mark.parametrize("kind", CODERS)
@settings(max_examples=40)
@given(data=st.binary(max_size=200), size=st.integers(1, 64))
def test_every_coding_in_every_split(kind: str, data: bytes, size: int) -> None:
    name, encode = CODERS[kind]
    coded = encode(data)
    assert decode(name, [coded]) == data
    assert decode(name, [coded[i : i + size] for i in range(0, len(coded), size)]) == data
    assert decode(name, [coded[i : i + 1] for i in range(len(coded))]) == data
    assert decode_body(Fields.of([(b"Content-Encoding", name)]), coded, LIMIT) == data


@pytest.mark.parametrize("kind", CODERS)
def test_large_bodies(kind: str) -> None:
    data = b"".join(b'{"n":%d},' % n for n in range(60000))
    name, encode = CODERS[kind]
    assert decode(name, [encode(data)], len(data)) == data


@pytest.mark.parametrize("name", [None, b"gzip", b"deflate", b"zstd", b"br", b"gzip, br"])
def test_no_bytes_are_a_complete_empty_body(name: bytes | None) -> None:
    assert decode(name, []) == b""
    assert decode(name, [b"", b""]) == b""


EVENTS = [b"event: ping\ndata: %d\n\n" % n for n in range(5)]


def flush_gzip() -> list[bytes]:
    stream = zlib.compressobj(wbits=31)
    return [stream.compress(event) + stream.flush(zlib.Z_SYNC_FLUSH) for event in EVENTS]


def flush_deflate() -> list[bytes]:
    stream = zlib.compressobj()
    return [stream.compress(event) + stream.flush(zlib.Z_SYNC_FLUSH) for event in EVENTS]


def flush_zstd() -> list[bytes]:
    stream = zstandard.ZstdCompressor().compressobj()
    return [stream.compress(event) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for event in EVENTS]


def flush_br() -> list[bytes]:
    stream = brotli.Compressor()
    return [stream.process(event) + stream.flush() for event in EVENTS]


@pytest.mark.parametrize(
    ("name", "pieces"),
    [(b"gzip", flush_gzip()), (b"deflate", flush_deflate()), (b"zstd", flush_zstd()), (b"br", flush_br())],
)
def test_flushed_events_are_visible_at_once(name: bytes, pieces: list[bytes]) -> None:
    undo = decoder(name, limit=LIMIT)
    assert [undo.feed(piece) for piece in pieces] == EVENTS
    with pytest.raises(ProtocolViolation, match="too early"):
        undo.finish()


@pytest.mark.parametrize("kind", [kind for kind in CODERS if kind not in ("identity", "empty")])
def test_a_truncated_body_is_never_complete(kind: str) -> None:
    name, encode = CODERS[kind]
    coded = (
        encode(b"some text, some more text, " * 9).rstrip(b"\x00") if kind == "padded gzip" else encode(b"text " * 50)
    )
    whole_parts = {len(gzip.compress((b"text " * 50)[:9])), len(zstandard.compress((b"text " * 50)[:9])), 11}
    for end in set(range(1, len(coded))) - (whole_parts if kind.startswith(("two", "skippable")) else set()):
        if kind == "padded gzip" and end >= len(coded):
            continue
        with pytest.raises(ProtocolViolation):
            decode(name, [coded[:end]])


@pytest.mark.parametrize("kind", CODERS)
def test_the_limit_is_exact(kind: str) -> None:
    name, encode = CODERS[kind]
    data = bytes(range(250)) * 40
    assert decode(name, [encode(data)], len(data) if kind not in ("list", "three") else LIMIT) == data
    coded = encode(data)  # once: gzip's head holds the time
    for pieces in ([coded], [coded[i : i + 1] for i in range(len(coded))]):
        with pytest.raises(ProtocolViolation) as caught:
            decode(name, pieces, len(data) - 1 if kind not in ("list", "three") else 100)
        assert caught.value.status == 413


def rle_zstd_bomb(blocks: int) -> bytes:
    """A frame of RLE blocks, 128 KiB out of four bytes each, made by hand from RFC 8878 3.1."""
    head = b"\x28\xb5\x2f\xfd\x00\x58"  # no size, window 2 MiB
    block = ((131072 << 3) | (1 << 1)).to_bytes(3, "little") + b"A"
    return head + block * blocks


@pytest.mark.parametrize(
    ("name", "bomb"),
    [
        (b"gzip", gzip.compress(bytes(64 << 20), 9)),
        (b"deflate", zlib.compress(bytes(64 << 20), 9)),
        (b"br", brotli.compress(bytes(64 << 20), quality=4)),
        (b"zstd", rle_zstd_bomb(16384)),  # 2 GiB out of 64 KiB
        (b"gzip, gzip", gzip.compress(gzip.compress(bytes(64 << 20), 9), 9)),
    ],
)
def test_bombs_are_stopped_before_they_are_unfolded(name: bytes, bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolViolation) as caught:
            decode(name, [bomb])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 8 * LIMIT


@settings(max_examples=60)
@given(st.sampled_from([b"gzip", b"deflate", b"zstd", b"br", b"br,gzip"]), st.binary(min_size=1, max_size=80))
def test_any_bytes_decode_or_are_a_violation(name: bytes, data: bytes) -> None:
    outcomes = []
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        try:
            outcomes.append(decode(name, pieces))
        except ProtocolViolation:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("kind", ["gzip", "zlib", "raw deflate", "br", "two gzip members"])
def test_bytes_behind_the_end_are_a_violation(kind: str) -> None:
    name, encode = CODERS[kind]
    for pieces in ([encode(b"text" * 9) + b"x"], [encode(b"text" * 9), b"x"]):
        with pytest.raises(ProtocolViolation):
            decode(name, pieces)


def test_a_window_beyond_the_standard_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(ProtocolViolation, match="window"):
        decode(b"zstd", [stream.compress(b"x" * 100) + stream.flush()])


@pytest.mark.parametrize("name", [b"compress", b"gzip, rot13", b"gzip\x00", b"aws-chunked", b"gzip;q=1", b"\xff"])
def test_unknown_codings_are_415(name: bytes) -> None:
    assert not decodable(name)
    with pytest.raises(ProtocolViolation) as caught:
        decoder(name, limit=LIMIT)
    assert caught.value.status == 415


def test_endless_lists_are_415() -> None:
    assert not decodable(b"gzip," * 5)
    with pytest.raises(ProtocolViolation) as caught:
        decoder(b"gzip," * 5, limit=LIMIT)
    assert caught.value.status == 415


@pytest.mark.parametrize("name", [None, b"", b"identity", b"gzip", b"BR", b"zstd,gzip"])
def test_decodable(name: bytes | None) -> None:
    assert decodable(name)


def test_a_body_without_coding_is_the_same_object() -> None:
    body = b"x" * 1000
    assert decode_body(Fields.of([(b"Content-Type", b"text/plain")]), body, 1000) is body
    with pytest.raises(ProtocolViolation) as caught:
        decode_body(Fields.of([]), body, 999)
    assert caught.value.status == 413


def test_two_field_lines_are_one_list() -> None:
    fields = Fields.of([(b"content-encoding", b"gzip"), (b"Content-Encoding", b"br")])
    assert decode_body(fields, brotli.compress(gzip.compress(b"text")), LIMIT) == b"text"


def test_the_clients_upload_of_flushed_blocks_is_one_member() -> None:
    """Large request bodies are built from sync-flushed deflate blocks in one gzip member (API facts 6.3)."""
    stream = zlib.compressobj(wbits=-15)
    blocks = b"".join(stream.compress(b'{"a":%d}' % n) + stream.flush(zlib.Z_SYNC_FLUSH) for n in range(99))
    plain = b"".join(b'{"a":%d}' % n for n in range(99))
    member = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + blocks + stream.flush()
    member += zlib.crc32(plain).to_bytes(4, "little") + len(plain).to_bytes(4, "little")
    assert decode(b"gzip", [member]) == plain
