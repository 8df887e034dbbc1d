"""Another provider with a dialect of its own, for tests of how a route is carried out; and a plugin that routes to it.

The dialect: a request is {"model", "say": [texts]}; an answer is events or one document of {"text"}, {"thought"},
{"call": [id, name, arguments]}, {"usage": [input, output]}, {"stop"}, {"oops"}. It exists nowhere else.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
from rig import read_exactly, read_head

from dbproxy.api import Declined, Fields, ProviderCall, ProviderLimits, Route, Target, hookimpl
from dbproxy.api.codecs import Capabilities, Failure, Text, Unroutable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

KEY = "elsewhere-key-1"
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(**said: Any) -> bytes:
    return f"data: {json.dumps(said, ensure_ascii=False)}\n\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def events(*said: dict[str, Any]) -> bytes:
    """A whole streamed answer."""
    return SSE_HEAD + b"".join(chunk(event(**one)) for one in said) + b"0\r\n\r\n"


def document(value: Any, status: int = 200, extra: str = "") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


SAYS_HI = events({"text": "Hel"}, {"text": "lo"}, {"usage": [1000, 20]}, {"stop": "end_turn"})


class _Reader:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def feed(self, name: bytes, data: bytes) -> None:
        self.take(json.loads(data))

    def take(self, said: dict[str, Any]) -> None:
        writer = self.writer
        writer.begin("their/id")
        if "raise" in said:
            raise RuntimeError("a codec that breaks")
        if "text" in said:
            writer.text(said["text"])
        if "thought" in said:
            writer.thinking(said["thought"])
            writer.sign("elsewhere#sealed")
        if "call" in said:
            id, name, arguments = said["call"]
            writer.call(id, id=id, name=name, arguments=arguments)
        if "usage" in said:
            writer.usage(input=said["usage"][0], output=said["usage"][1])
        if "stop" in said:
            writer.stop(said["stop"])
        if "oops" in said:
            writer.fail(Failure(529, "overloaded_error", said["oops"], transient=True))

    def end(self) -> None:
        self.writer.finish()


class Codec:
    name = "elsewhere"

    def write(self, request: Any, translation: Any) -> bytes:
        texts = [part.text for turn in request.turns for part in turn.parts if isinstance(part, Text)]
        return json.dumps({"model": translation.model, "stream": request.stream, "say": texts}).encode()

    def stream(self, translation: Any, writer: Any) -> _Reader:
        return _Reader(writer)

    def document(self, body: bytes, translation: Any, writer: Any) -> None:
        reader = _Reader(writer)
        for said in json.loads(body):
            reader.take(said)
        reader.end()


@dataclass
class Provider:
    """Registered under ``name``; what a test wants of it stands in its attributes."""

    port: int
    name: str = "elsewhere"
    limits: ProviderLimits = field(
        default_factory=lambda: ProviderLimits(connect=2, first_byte=5, silence=5, retries=0)
    )
    can: Capabilities = field(default_factory=Capabilities)
    not_ready: str = ""
    declines: str = ""
    as_client: bool = False
    raises: Exception | None = None
    calls: int = 0

    def unready(self) -> str:
        return self.not_ready

    def capabilities(self, model: str) -> Capabilities:
        return self.can

    def decline(self, request: Any, model: str) -> str:
        return self.declines

    def call(self, request: Any, translation: Any) -> ProviderCall:
        self.calls += 1
        if self.raises is not None:
            raise self.raises
        if self.as_client:
            return ProviderCall(json.dumps({**request.raw, "model": translation.model}).encode(), as_client=True)
        translation.note("said in another dialect")
        fields = Fields.of([(b"content-type", b"application/json"), (b"authorization", f"Bearer {KEY}".encode())])
        body = Codec().write(request, translation)
        return ProviderCall(body, f"http://127.0.0.1:{self.port}/v9/say?x=1", fields, Codec(), (KEY,))


class Router:
    """A plugin that brings the providers and routes every message by one decision."""

    def __init__(self, *providers: Provider, decision: Any = None, **how: Any) -> None:
        self.named = providers
        targets = tuple(Target(provider.name, f"{provider.name}-1") for provider in providers)
        self.decision = decision or Route(targets, rule="all = elsewhere", reason="the test says so", **how)

    @hookimpl
    def providers(self) -> Any:
        return self.named

    @hookimpl
    def wants_body(self, exchange: Any) -> bool:
        return True

    @hookimpl
    def route_request(self, exchange: Any) -> Any:
        return self.decision


@dataclass
class Peer:
    """A server that answers its n-th request with the n-th of ``answers`` (the last one again and again)."""

    port: int
    answers: list[Any]
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    closed: trio.Event = field(default_factory=trio.Event)
    connections: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        seen = b""
        try:
            while True:
                head, seen = await read_head(stream, seen)
                lines = (line.lower() for line in head.split(b"\r\n"))
                size = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
                body = await read_exactly(stream, size, seen)
                seen = body[size:]
                self.heads.append(head)
                self.bodies.append(body[:size])
                answer = self.answers[min(len(self.heads), len(self.answers)) - 1]
                if callable(answer):
                    await self.watched(answer, stream)
                else:
                    await stream.send_all(answer)
        except (AssertionError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.closed.set()
        finally:
            await trio.aclose_forcefully(stream)

    async def watched(self, answer: Any, stream: trio.SocketStream) -> None:
        """Answer, unless the other side hangs up meanwhile."""

        async def watch() -> None:
            try:
                gone = not await stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                gone = True
            if gone:
                self.closed.set()
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                await answer(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def peer(*answers: bytes | Callable[[Any], Awaitable[None]], port: int = 0) -> AsyncIterator[Peer]:
    """A provider's server on loopback."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        made = Peer(listeners[0].socket.getsockname()[1], list(answers))
        nursery.start_soon(trio.serve_listeners, made.serve, listeners)
        yield made
        nursery.cancel_scope.cancel()


async def hang_up(stream: Any) -> None:
    """Close without an answer."""
    await stream.aclose()


def cut(*said: dict[str, Any]) -> Callable[[Any], Awaitable[None]]:
    """A stream that breaks off after these events."""

    async def answer(stream: Any) -> None:
        await stream.send_all(SSE_HEAD + b"".join(chunk(event(**one)) for one in said))
        await stream.aclose()

    return answer


def slow(seconds: float, *said: dict[str, Any], first: bytes = b"") -> Callable[[Any], Awaitable[None]]:
    """A whole answer after so long, ``first`` before it."""

    async def answer(stream: Any) -> None:
        if first:
            await stream.send_all(first)
        await trio.sleep(seconds)
        await stream.send_all(events(*said)[len(SSE_HEAD) if first else 0 :])

    return answer


__all__ = [
    "KEY", "SAYS_HI", "SSE_HEAD", "Capabilities", "Declined", "Provider", "ProviderLimits", "Router", "Unroutable",
    "chunk", "cut", "document", "event", "events", "hang_up", "peer", "slow",
]  # fmt: skip
