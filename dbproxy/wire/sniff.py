"""What does a new byte stream speak, and what does its TLS ClientHello say?

Owns the first look at a connection: TLS, HTTP/2 preface, HTTP/1, or none of these. Never imports trio, sockets or
clocks, and never decrypts anything: a ClientHello is plain text (RFC 8446 4.1.2).

Invariants: nothing is consumed (the caller replays the same bytes to whoever takes over); the answer for a prefix of a
stream is either "need more" or the answer for the whole of it; work and memory are bounded by ``MAX_HELLO``.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from dbproxy.errors import ProtocolViolation
from dbproxy.wire.target import normalise_host

H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 3.4
MAX_HELLO: Final = 65536  # bytes of records; real ones are 254 to 1508 (client facts 1.2), post-quantum ones a few KiB
MAX_METHOD: Final = 32  # bytes of a method before its blank; the longest registered one has 17
_BLANK_LINES: Final = 4  # bytes of empty lines that may precede a request (RFC 9112 2.2)
_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")

_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 1
_MAX_RECORD: Final = 16384  # RFC 8446 5.1, plain text
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_PADDING: Final = 21
_SUPPORTED_VERSIONS: Final = 43
# Left out of the fingerprint: the name, padding, and what only a resumed or retried handshake carries
# (pre_shared_key, early_data, cookie). The same client must look the same every time.
_VARYING: Final = frozenset({_SERVER_NAME, _PADDING, 41, 42, 44})


class Sniff(Enum):
    """What a stream speaks."""

    NEED_MORE = "need_more"
    TLS = "tls"
    H2_PREFACE = "h2_preface"
    HTTP = "http"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client offers at the start of TLS.

    ``server_name`` is normalised, None without SNI; ``alpn`` is empty without the extension (axios sends none, client
    facts 0.1). ``fingerprint`` names the kind of client: 16 hex digits over versions, cipher suites and the set of
    extension types, the same for every connection of one TLS library. ``record_length`` counts the bytes of the
    records that carry the hello; whatever stands behind them is not part of it.
    """

    server_name: str | None
    alpn: tuple[str, ...]
    fingerprint: str
    record_length: int


def sniff(first: bytes) -> Sniff:
    """Tell the protocol from the first bytes of a stream; NEED_MORE until it is certain, at most some 40 bytes."""
    if not first:
        return Sniff.NEED_MORE
    if first[0] == _HANDSHAKE:
        if len(first) == 1:
            return Sniff.NEED_MORE
        return Sniff.TLS if first[1] == 3 else Sniff.OTHER
    if first.startswith(H2_PREFACE):
        return Sniff.H2_PREFACE
    if H2_PREFACE.startswith(first):
        return Sniff.NEED_MORE
    return _sniff_http(first)


def _sniff_http(first: bytes) -> Sniff:
    start = 0
    while start < len(first) and first[start] in b"\r\n":
        start += 1
        if start > _BLANK_LINES:
            return Sniff.OTHER
    line = first[start : start + MAX_METHOD + 1]
    for index, byte in enumerate(line):
        if byte == 0x20 and index:
            return Sniff.HTTP
        if byte not in _TOKEN:
            return Sniff.OTHER
    return Sniff.OTHER if len(line) > MAX_METHOD else Sniff.NEED_MORE


def client_hello(data: bytes) -> ClientHello | None:
    """Read a ClientHello from the start of a stream, over as many TLS records as it takes.

    None means that more bytes are needed. Raises ProtocolViolation for anything that no TLS server would take:
    other records, lengths that contradict each other, more than ``MAX_HELLO`` bytes.
    """
    fragments: list[bytes] = []
    have, need, offset = 0, 4, 0
    while have < need:
        if offset > MAX_HELLO:
            raise ProtocolViolation("TLS ClientHello too large")
        head = data[offset : offset + 5]
        _check_record_head(head)
        if len(head) < 5:
            return None
        length = int.from_bytes(head[3:5], "big")
        end = offset + 5 + length
        fragment = data[offset + 5 : end]
        fragments.append(fragment)
        have += len(fragment)
        if need == 4 and have >= 4:
            need = 4 + _hello_length(b"".join(fragments)[:4])
        elif have:
            _check_message_type(fragments)
        if len(data) < end:
            return None
        offset = end
    message = b"".join(fragments)[4:need]
    return _parse(_Reader(message), offset)


def _check_record_head(head: bytes) -> None:
    if (head and head[0] != _HANDSHAKE) or (len(head) > 1 and head[1] != 3):
        raise ProtocolViolation("not a TLS handshake record")
    if len(head) == 5 and not 0 < int.from_bytes(head[3:5], "big") <= _MAX_RECORD:
        raise ProtocolViolation("TLS record of impossible length")


def _check_message_type(fragments: list[bytes]) -> None:
    if next(fragment[0] for fragment in fragments if fragment) != _CLIENT_HELLO:
        raise ProtocolViolation("the TLS stream does not open with a ClientHello")


def _hello_length(head: bytes) -> int:
    if head[0] != _CLIENT_HELLO:
        raise ProtocolViolation("the TLS stream does not open with a ClientHello")
    length = int.from_bytes(head[1:4], "big")
    if length > MAX_HELLO:
        raise ProtocolViolation("TLS ClientHello too large")
    return length


_EXTENSION_HEAD = struct.Struct(">HH")  # kind and length


class _Reader:
    """Length-checked reads over one message: every lie about a length ends in ProtocolViolation."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ProtocolViolation("TLS ClientHello with contradicting lengths")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Bytes behind a length of ``size`` bytes."""
        return self.take(self.number(size))

    def done(self) -> None:
        if self:
            raise ProtocolViolation("TLS ClientHello with contradicting lengths")


def _parse(reader: _Reader, record_length: int) -> ClientHello:
    versions: tuple[int, ...] = (reader.number(2),)
    reader.take(32)  # random
    reader.vector(1)  # session id
    ciphers = _numbers(reader.vector(2))
    reader.vector(1)  # compression methods
    extensions: dict[int, bytes] = {}
    if reader:
        extensions = _extensions(reader.vector(2))
        reader.done()
    if _SUPPORTED_VERSIONS in extensions:
        inner = _Reader(extensions[_SUPPORTED_VERSIONS])
        versions += _numbers(inner.vector(1))
        inner.done()
    return ClientHello(
        _server_name(extensions.get(_SERVER_NAME)),
        _protocols(extensions.get(_ALPN)),
        _fingerprint(versions, ciphers, tuple(sorted(extensions))),
        record_length,
    )


def _extensions(block: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at, size = 0, len(block)
    while at + 4 <= size:
        kind, length = _EXTENSION_HEAD.unpack_from(block, at)
        if kind in found:
            raise ProtocolViolation("TLS ClientHello with a repeated extension")
        at += 4 + length
        found[kind] = block[at - length : at]
    if at != size:
        raise ProtocolViolation("TLS ClientHello with contradicting lengths")
    return found


def _numbers(data: bytes) -> tuple[int, ...]:
    if len(data) % 2:
        raise ProtocolViolation("TLS ClientHello with a list of odd length")
    return struct.unpack(f">{len(data) // 2}H", data)


def _server_name(body: bytes | None) -> str | None:
    if not body:
        return None
    outer = _Reader(body)
    names = _Reader(outer.vector(2))
    outer.done()
    found: str | None = None
    while names:
        kind, name = names.number(1), names.vector(2)
        if kind == 0 and found is None:
            try:
                found = normalise_host(name.decode("ascii"))
            except ValueError:  # UnicodeDecodeError is one
                raise ProtocolViolation("TLS server name is not a host name") from None
    return found


def _protocols(body: bytes | None) -> tuple[str, ...]:
    if body is None:
        return ()
    outer = _Reader(body)
    names = _Reader(outer.vector(2))
    outer.done()
    protocols = []
    while names:
        name = names.vector(1)
        if not name:
            raise ProtocolViolation("TLS ClientHello with an empty ALPN name")
        # GREASE names are two equal bytes (RFC 8701) and may be no text at all: latin-1 keeps any byte.
        protocols.append(name.decode("latin-1"))
    return tuple(protocols)


def _is_grease(value: int) -> bool:
    """Reserved values that clients mix in at random to keep servers tolerant (RFC 8701)."""
    return value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF


@lru_cache(maxsize=256)  # a client says the same each time, but for GREASE
def _fingerprint(versions: tuple[int, ...], ciphers: tuple[int, ...], extensions: tuple[int, ...]) -> str:
    # ``extensions`` are sorted, because some libraries shuffle theirs for each connection.
    kinds = [kind for kind in extensions if kind not in _VARYING and not _is_grease(kind)]
    parts = ([v for v in versions if not _is_grease(v)], [c for c in ciphers if not _is_grease(c)], kinds)
    text = ";".join(",".join(f"{value:04x}" for value in part) for part in parts)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
