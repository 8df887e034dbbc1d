"""Cuts the bytes of one HTTP/1.1 connection into messages, for comparing what was sent with what arrived.

Deliberately not the project's parser: it knows content-length and chunked, and nothing may be left over.
"""

from __future__ import annotations

from dataclasses import dataclass

# RFC 9110 7.6.1 and the older ones that proxies remove; x-dbproxy-* is what we add to answers.
HOP_BY_HOP = {b"connection", b"proxy-connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade", b"trailer"}
HOP_BY_HOP |= {b"proxy-authorization", b"proxy-authenticate"}


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """Start line, end-to-end field lines in wire order, and the body without framing."""

    start: bytes
    fields: tuple[bytes, ...]
    body: bytes


def end_to_end(head: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Start line and the lines that are not hop-by-hop, byte for byte."""
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    named = [(line.partition(b":")[0].strip().lower(), line) for line in lines[1:]]
    kept = [line for name, line in named if name not in HOP_BY_HOP and not name.startswith(b"x-dbproxy-")]
    return lines[0], tuple(kept)


def unframe(head: bytes, rest: bytes) -> tuple[bytes, bytes]:
    """The body behind a head, without framing, and what follows it."""
    fields = dict(line.lower().partition(b":")[::2] for line in head.split(b"\r\n")[1:] if line)
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        body = b""
        while True:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size.partition(b";")[0], 16)
            if length == 0:
                _, found, after = (b"\r\n" + rest).partition(b"\r\n\r\n")
                assert found, "the last chunk has no end"
                return body, after
            assert rest[length : length + 2] == b"\r\n", "a chunk does not end where it says"
            body, rest = body + rest[:length], rest[length + 2 :]
    length = int(fields.get(b"content-length", b"0"))
    assert len(rest) >= length, "the body was cut"
    return rest[:length], rest[length:]


def messages(stream: bytes, *, of_heads: bool = False) -> list[Message]:
    """All messages of one direction of a connection; `of_heads` says that none has a body (answers to HEAD)."""
    found = []
    while stream:
        head, blank, rest = stream.partition(b"\r\n\r\n")
        assert blank, f"bytes that are no message: {stream[:80]!r}"
        body, stream = (b"", rest) if of_heads else unframe(head + blank, rest)
        found.append(Message(*end_to_end(head + blank), body))
    return found
