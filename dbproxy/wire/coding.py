"""Content codings of message bodies: gzip, deflate, zstd, br and lists of them, incremental and bounded.

Owns the decoding of copies: what taps watch and what a policy reads. Never used on the client's path, where codings
stay untouched. Never imports trio, sockets or clocks.

Invariants: what can be decoded from the bytes so far comes out at once (events that the server flushed are visible);
no more than ``limit`` bytes ever come out of a decoder, nor are allocated for it beyond one internal block; the result
does not depend on how the input was split.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, Protocol

import brotli
import zstandard

from dbproxy.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.exchange import Fields

_MAX_CODINGS: Final = 4  # nobody applies more, and each one multiplies what a hostile body can cost
_ZSTD_WINDOW: Final = 8 * 1024 * 1024  # bytes, RFC 9659 3
# A zstd block makes at most 128 KiB out of at least 4 bytes (RFC 8878 3.1.1.2), so a slice this much smaller than what
# is left of the limit cannot overrun it by more than the one block that was begun before.
_ZSTD_EXPANSION: Final = 32768


class Decoder(Protocol):
    """Undoes one or more content codings."""

    def feed(self, data: bytes, /) -> bytes:
        """What ``data`` makes visible, possibly nothing. Raises ProtocolViolation on bad or oversized data."""
        ...

    def finish(self) -> bytes:
        """The last bytes, at the end of the body. Raises ProtocolViolation if the coded body ended too early."""
        ...


def decoder(content_encoding: bytes | None, *, limit: int) -> Decoder:
    """A decoder for the value of a Content-Encoding field; None, empty and ``identity`` pass the bytes through.

    ``limit`` bounds the decoded size in bytes over the whole body. Raises ProtocolViolation (415) for an unknown
    coding.
    """
    codings = _codings(content_encoding)
    if len(codings) > _MAX_CODINGS:
        raise ProtocolViolation(f"more than {_MAX_CODINGS} content codings", status=415)
    stages: list[Decoder] = []
    for coding in reversed(codings):  # listed in the order of application (RFC 9110 8.4)
        make = _CODINGS.get(coding)
        if make is None:
            shown = coding[:40].decode("ascii", "backslashreplace")
            raise ProtocolViolation(f"unknown content coding {shown!r}", status=415)
        stages.append(make(limit))
    if not stages:
        return _Identity(limit)
    return stages[0] if len(stages) == 1 else _Chain(stages)


def decodable(content_encoding: bytes | None) -> bool:
    """Would ``decoder`` take this value of a Content-Encoding field?"""
    codings = _codings(content_encoding)
    return len(codings) <= _MAX_CODINGS and all(coding in _CODINGS for coding in codings)


def decode_body(fields: Fields, body: bytes, limit: int) -> bytes:
    """A complete body without its content codings, at most ``limit`` bytes.

    The same object comes back where no coding was applied. Raises ProtocolViolation: 400 for bad data, 413 for too
    much of it, 415 for an unknown coding.
    """
    undo = decoder(b",".join(fields.get_all(b"content-encoding")), limit=limit)
    if isinstance(undo, _Identity):
        return undo.feed(body)
    return undo.feed(body) + undo.finish()


def _codings(value: bytes | None) -> list[bytes]:
    tokens = [part.strip(b" \t").lower() for part in (value or b"").split(b",")]
    return [token for token in tokens if token not in (b"", b"identity")]


def _too_large(limit: int) -> ProtocolViolation:
    return ProtocolViolation(f"the decoded body passes {limit} bytes", status=413)


def _bad(coding: str, problem: str) -> ProtocolViolation:
    return ProtocolViolation(f"the {coding} coded body {problem}")


class _Identity:
    __slots__ = ("_left", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def feed(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._limit)
        return data

    def finish(self) -> bytes:
        return b""


class _Chain:
    __slots__ = ("_stages",)

    def __init__(self, stages: list[Decoder]) -> None:
        self._stages = stages

    def feed(self, data: bytes) -> bytes:
        for stage in self._stages:
            data = stage.feed(data)
        return data

    def finish(self) -> bytes:
        data = b""
        for stage in self._stages:
            data = stage.feed(data) + stage.finish()
        return data


class _Zlib:
    """gzip (one member or several, RFC 1952 2.2) and deflate (zlib as specified, raw as some servers send it)."""

    __slots__ = ("_between", "_gzip", "_head", "_left", "_limit", "_name", "_stream")

    def __init__(self, limit: int, *, gzip: bool) -> None:
        self._limit = self._left = limit
        self._gzip = gzip
        self._name = "gzip" if gzip else "deflate"
        self._head = b""  # of a deflate body, until two bytes tell its kind
        self._stream: zlib._Decompress | None = None  # None before the first and between two members
        self._between = False

    def feed(self, data: bytes) -> bytes:
        out = []
        while data:
            if self._stream is None:
                data = self._open(data)
                if self._stream is None:
                    break
            out.append(self._decompress(self._stream, data))
            if not self._stream.eof:
                break
            data = self._stream.unused_data
            if not self._gzip:
                if data:
                    raise _bad(self._name, "goes on after its end")
                break
            self._stream = None
            self._between = True
        return out[0] if len(out) == 1 else b"".join(out)

    def _open(self, data: bytes) -> bytes:
        if self._gzip:
            if self._between:
                # Some writers pad with zeros behind the last member; anything else must be another member.
                data = data.lstrip(b"\x00")
            if data:
                self._stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
            return data
        data = self._head + data
        if len(data) < 2:
            self._head = data
            return b""
        self._head = b""
        self._stream = zlib.decompressobj(zlib.MAX_WBITS if _is_zlib(data) else -zlib.MAX_WBITS)
        return data

    def _decompress(self, stream: zlib._Decompress, data: bytes) -> bytes:
        try:
            out = stream.decompress(data, self._left + 1)
        except zlib.error:
            raise _bad(self._name, "is damaged") from None
        self._left -= len(out)
        if self._left < 0:
            raise _too_large(self._limit)
        return out

    def finish(self) -> bytes:
        if self._head or (self._stream is not None and not self._stream.eof):
            raise _bad(self._name, "ends too early")
        return b""


def _is_zlib(data: bytes) -> bool:
    """Do the first two bytes make a zlib header (RFC 1950 2.2)?"""
    return data[0] & 0x0F == 8 and data[0] >> 4 <= 7 and (data[0] << 8 | data[1]) % 31 == 0


class _Zstd:
    """zstd, one frame or several (RFC 8878 3.1)."""

    __slots__ = ("_decompressor", "_frame", "_left", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def feed(self, data: bytes) -> bytes:
        out = []
        at = 0
        while at < len(data):
            size = max(64, self._left // _ZSTD_EXPANSION)
            out.append(self._decompress(data[at : at + size]))
            at += size
        return out[0] if len(out) == 1 else b"".join(out)

    def _decompress(self, data: bytes) -> bytes:
        out = []
        while data:
            frame = self._frame = self._frame or self._decompressor.decompressobj()
            try:
                piece = frame.decompress(data)
            except zstandard.ZstdError:
                raise _bad("zstd", "is damaged or needs too large a window") from None
            self._left -= len(piece)
            if self._left < 0:
                raise _too_large(self._limit)
            out.append(piece)
            if not frame.eof:
                break
            data = frame.unused_data
            self._frame = None
        return out[0] if len(out) == 1 else b"".join(out)

    def finish(self) -> bytes:
        if self._frame is not None:
            raise _bad("zstd", "ends too early")
        return b""


class _Brotli:
    __slots__ = ("_any", "_left", "_limit", "_stream")

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._stream = brotli.Decompressor()
        self._any = False

    def feed(self, data: bytes) -> bytes:
        if not data:
            return b""
        if self._stream.is_finished():
            raise _bad("br", "goes on after its end")
        self._any = True
        out = []
        while True:
            try:
                piece: bytes = self._stream.process(data, output_buffer_limit=self._left + 1)
            except brotli.error:
                raise _bad("br", "is damaged") from None
            self._left -= len(piece)
            if self._left < 0:
                raise _too_large(self._limit)
            out.append(piece)
            if self._stream.can_accept_more_data():
                return out[0] if len(out) == 1 else b"".join(out)
            data = b""

    def finish(self) -> bytes:
        if self._any and not self._stream.is_finished():
            raise _bad("br", "ends too early")
        return b""


def _gzip(limit: int) -> Decoder:
    return _Zlib(limit, gzip=True)


def _deflate(limit: int) -> Decoder:
    return _Zlib(limit, gzip=False)


_CODINGS: Final[dict[bytes, Callable[[int], Decoder]]] = {
    b"gzip": _gzip,
    b"x-gzip": _gzip,  # RFC 9110 8.4.1.3
    b"deflate": _deflate,
    b"zstd": _Zstd,
    b"br": _Brotli,
}
