"""One answer on the wire: head, framing, content coding, pace, and every way of breaking off.

Works on any peer that can ``send``; all waiting is on the event loop's clock.
"""

from __future__ import annotations

import json
import zlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import brotli
import trio
import zstandard

from dbproxy.testing.origin import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.testing.origin.received import Received
    from dbproxy.testing.origin.script import Answer


class Cut(Exception):
    """The script breaks the connection here; ``how`` as in ``Answer.cut_how``."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class Sender(Protocol):
    """Where an answer goes."""

    async def send(self, data: bytes) -> None: ...


class Coder:
    """A content coding, flushed after every piece so that a reader sees each event when it comes."""

    def __init__(self, coding: str) -> None:
        self._piece: Callable[[bytes], bytes]
        self._end: Callable[[], bytes]
        if coding in ("gzip", "deflate", "deflate-raw"):
            packer = zlib.compressobj(6, zlib.DEFLATED, {"gzip": 31, "deflate": 15, "deflate-raw": -15}[coding])
            self._piece = lambda data: packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
            self._end = packer.flush
        elif coding == "br":
            squeezer = brotli.Compressor(quality=5)
            self._piece = lambda data: bytes(squeezer.process(data)) + bytes(squeezer.flush())
            self._end = lambda: bytes(squeezer.finish())
        elif coding == "zstd":
            writer = zstandard.ZstdCompressor().compressobj()
            self._piece = lambda data: writer.compress(data) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            self._end = lambda: writer.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)
        else:
            self._piece = lambda data: data
            self._end = lambda: b""

    def piece(self, data: bytes) -> bytes:
        """``data`` coded, up to its last byte."""
        return self._piece(data)

    def end(self) -> bytes:
        """What closes the coding."""
        return self._end()


def reason_of(status: int) -> str:
    """The usual reason phrase, empty for statuses without one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def head_bytes(status: int, reason: str, fields: list[tuple[str, str]]) -> bytes:
    """A response head."""
    lines = [
        f"HTTP/1.1 {status} {reason or reason_of(status)}",
        *(f"{name}: {value}" for name, value in fields),
        "",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1")


def content_of(request: Received, answer: Answer) -> tuple[list[bytes], bool, str]:
    """The pieces of the answer's body, whether they are a stream of events, and their content type."""
    if answer.events is not None:
        return list(answer.events), True, "text/event-stream; charset=utf-8"
    if answer.body is not None:
        return [answer.body] if answer.body else [], False, answer.content_type
    if answer.fault is not None:
        kind, told, details = (answer.fault[name] for name in ("type", "message", "details"))
        body = events.error_body(kind, told, request_id=request_id(request), details=details)
        return [body], False, answer.content_type or "application/json"
    if answer.blocks is None:
        return [], False, answer.content_type
    blocks = list(answer.blocks)
    if answer.repeat != 1:
        blocks = [{**b, "text": b["text"] * answer.repeat} if b["type"] == "text" else b for b in blocks]
    model = answer.model or request.model or "claude-origin"
    size = max(1, len(request.body) // 4)
    if request.stream or not request.is_messages:
        made = events.message_events(
            blocks,
            model=model,
            message_id=answer.message_id,
            usage=answer.usage,
            stop_reason=answer.stop_reason,
            input_tokens=size,
            delta_chars=answer.delta_chars,
        )
        return [events.encode(event) for event in made], True, "text/event-stream; charset=utf-8"
    whole = events.message(
        blocks,
        model=model,
        message_id=answer.message_id,
        usage=answer.usage,
        stop_reason=answer.stop_reason,
        input_tokens=size,
    )
    return [json.dumps(whole, ensure_ascii=False).encode()], False, "application/json"


class _Body:
    """Writes body pieces with the answer's framing and records them."""

    def __init__(self, peer: Sender, request: Received, answer: Answer, framing: str) -> None:
        self._peer = peer
        self._sent = request.sent
        self._answer = answer
        self._framing = framing
        self._coder = Coder(answer.coding)

    async def piece(self, data: bytes) -> None:
        """One piece, coded and framed, as one write or as many as ``chunk_size`` asks for."""
        await self._coded(self._coder.piece(data))

    async def _coded(self, data: bytes) -> None:
        size = self._answer.chunk_size or len(data)
        limit = self._answer.cut_bytes
        for start in range(0, len(data), max(1, size)):
            part = data[start : start + size]
            if limit is not None and self._sent.size + len(part) >= limit:
                part = part[: max(0, limit - self._sent.size)]
                if part:
                    await self._write(part)
                raise Cut(self._answer.cut_how)
            await self._write(part)

    async def _write(self, part: bytes) -> None:
        framed = b"%x\r\n%s\r\n" % (len(part), part) if self._framing == "chunked" else part
        sent = self._sent
        if sent.first_at is None:
            sent.first_at = trio.current_time()
        sent.size += len(part)
        sent.body += part
        sent.framed += framed
        await self._peer.send(framed)

    async def end(self) -> None:
        """The end that the framing promises."""
        tail = self._coder.end()
        if tail:
            await self._coded(tail)
        if self._framing == "chunked":
            lines = "".join(f"{name}: {value}\r\n" for name, value in self._answer.trailers)
            last = b"0\r\n" + lines.encode("latin-1") + b"\r\n"
            self._sent.framed += last
            await self._peer.send(last)
        self._sent.complete = True


async def write_answer(peer: Sender, request: Received, answer: Answer, *, closing: bool) -> None:
    """Write ``answer`` to ``request``. Raises Cut where the script breaks off, and what ``peer.send`` raises."""
    if answer.head_delay:
        await trio.sleep(answer.head_delay)
    for status, extra in answer.informational:
        await peer.send(head_bytes(status, "", list(extra)))
    if answer.raw is not None:
        request.sent.framed += answer.raw
        await peer.send(answer.raw)
        raise Cut(answer.cut_how)
    if answer.cut_after is not None and answer.cut_after < 0:
        raise Cut(answer.cut_how)  # before the head
    parts, streamed, content_type = content_of(request, answer)
    bodiless = request.method == "HEAD" or answer.status in (204, 304)
    framing = answer.framing or ("chunked" if streamed or answer.trailers or answer.chunk_size else "length")
    if framing == "length" and answer.coding:
        coder = Coder(answer.coding)
        parts = [*(coder.piece(part) for part in parts), coder.end()]
    fields = [("content-type", content_type)] if content_type else []
    if streamed:
        fields.append(("cache-control", "no-cache"))
    if answer.coding:
        fields.append(("content-encoding", "deflate" if answer.coding == "deflate-raw" else answer.coding))
    given = {name.lower() for name, _ in answer.fields}
    fields = [(name, value) for name, value in fields if name not in given] + list(answer.fields)
    fields = [*(standard_fields(request, given) if answer.identified else ()), *fields]
    if not bodiless or request.method == "HEAD":
        if framing == "chunked":
            fields.append(("transfer-encoding", "chunked"))
        elif framing == "length":
            fields.append(("content-length", str(sum(map(len, parts)))))
    if closing or answer.close or framing == "close":
        fields.append(("connection", "close"))
    request.sent.status = answer.status
    request.sent.head = head_bytes(answer.status, answer.reason, fields)
    await peer.send(request.sent.head)
    if bodiless:
        request.sent.complete = True
        return
    if framing == "length":
        # Coded already, and counted: nothing may be put between.
        answer = answer.but(coding="", ping_every=0.0)
    await _paced(_Body(peer, request, answer, framing), answer, parts)


def request_id(request: Received) -> str:
    """The id of a request, in its answer's head and in error bodies."""
    return f"req_origin{request.number:06d}"


def standard_fields(request: Received, given: set[str]) -> list[tuple[str, str]]:
    """What every answer of the API carries: the request's id, and rate limits on messages (anthropic-api 1.8).

    The unified-* fields are left out on purpose: their presence changes how the client reads a 429.
    """
    fields = [("request-id", request_id(request))]
    if request.is_messages:
        for kind, limit in (("requests", 4000), ("input-tokens", 2000000), ("output-tokens", 400000)):
            prefix = f"anthropic-ratelimit-{kind}"
            fields += [
                (f"{prefix}-limit", str(limit)),
                (f"{prefix}-remaining", str(limit - 1)),
                (f"{prefix}-reset", "2026-11-20T00:00:00Z"),
            ]
    return [(name, value) for name, value in fields if name not in given]


async def _paced(body: _Body, answer: Answer, parts: list[bytes]) -> None:
    if answer.first_byte_delay:
        await _wait(body, answer, answer.first_byte_delay)
    began = trio.current_time()
    for number, part in enumerate(parts):
        if answer.error_after == number:
            await body.piece(events.encode(dict(answer.error or _OVERLOADED)))
            break
        if answer.cut_after == number:
            raise Cut(answer.cut_how)
        if answer.stall_after == number:
            await _wait(body, answer, answer.stall)
        await body.piece(part)
        if answer.rate:
            await trio.sleep_until(began + (number + 1) / answer.rate)
        elif answer.gap:
            await trio.sleep(answer.gap)
    else:
        if answer.cut_after is not None and answer.cut_after >= len(parts):
            raise Cut(answer.cut_how)  # everything but the framing's own end
    await body.end()


_OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


async def _wait(body: _Body, answer: Answer, seconds: float) -> None:
    """Wait, with pings where the script wants them (client facts 0.8: any byte keeps the client waiting)."""
    until = trio.current_time() + seconds
    if answer.ping_every <= 0:
        await trio.sleep_until(until)
        return
    due = trio.current_time() + answer.ping_every
    while due < until:
        await trio.sleep_until(due)
        await body.piece(events.COMMENT if answer.ping == "comment" else events.PING)
        due += answer.ping_every
    await trio.sleep_until(until)
