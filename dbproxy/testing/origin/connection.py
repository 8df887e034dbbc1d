"""One connection of the fake API: requests read through h11, answers written by hand so that they may also be wrong.

Reading runs ahead in its own task, so a client that goes away is seen at once, whatever we are doing.
Never imports ``dbproxy.wire``: this is its oracle.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
from typing import TYPE_CHECKING, Protocol

import h11
import trio

from dbproxy.testing.origin import upgrade
from dbproxy.testing.origin.answering import Cut, write_answer
from dbproxy.testing.origin.received import Received

if TYPE_CHECKING:
    from dbproxy.testing.origin.received import Connection
    from dbproxy.testing.origin.script import Answer

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
READ_SIZE = 256 * 1024
RUN_AHEAD = 1024 * 1024
HEAD_LIMIT = 2 * 1024 * 1024


class Gone(Exception):
    """The peer closed or reset."""


class Host(Protocol):
    """What a connection needs from its server."""

    keep_bodies: bool
    peer_seconds: float

    def early_answer(self, request: Received) -> Answer | None: ...
    def answer(self, request: Received) -> Answer: ...
    def arrived(self, request: Received) -> None: ...
    def finished(self, request: Received) -> None: ...
    def violation(self, connection: Connection, text: str) -> None: ...


class Peer:
    """The byte stream of a connection, with reading ahead and exact recording."""

    def __init__(self, stream: trio.abc.Stream, connection: Connection, *, keep: bool, seconds: float) -> None:
        self.stream = stream
        self.connection = connection
        self.seconds = seconds
        self._keep = keep
        self._chunks: list[bytes] = []
        self._waiting = 0
        self._changed = trio.Event()
        self._room = trio.Event()
        self._ended = False

    async def pump(self) -> None:
        """Read until the end; set ``connection.gone`` then."""
        connection = self.connection
        how = "eof"
        try:
            while True:
                data = await self.stream.receive_some(READ_SIZE)
                if not data:
                    break
                connection.received += len(data)
                if self._keep:
                    connection.raw += data
                self._chunks.append(bytes(data))
                self._waiting += len(data)
                self._changed.set()
                while self._waiting > RUN_AHEAD:
                    self._room = trio.Event()
                    await self._room.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            cause = error.__cause__
            how = "reset" if isinstance(cause, ConnectionError) else f"broken: {cause or error!r}"
        if not connection.how:
            connection.how = how
        connection.gone_at = trio.current_time()
        connection.gone.set()
        self._ended = True
        self._changed.set()

    async def more(self) -> bytes:
        """The next bytes; empty at the end."""
        while not self._chunks:
            if self._ended:
                return b""
            self._changed = trio.Event()
            await self._changed.wait()
        data = self._chunks.pop(0) if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._waiting = 0
        self._room.set()
        return data

    async def send(self, data: bytes) -> None:
        """Write all of ``data``. Raises Gone when the peer is away, or takes nothing for ``seconds``."""
        try:
            with trio.fail_after(self.seconds):
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            raise Gone(str(error) or "too slow") from error

    def _socket(self) -> trio.SocketStream:
        inner: trio.abc.Stream = self.stream
        while not isinstance(inner, trio.SocketStream):
            inner = inner.transport_stream  # type: ignore[attr-defined]
        return inner

    async def farewell(self) -> None:
        """Close as a proper server does: with a close_notify where there is TLS."""
        if isinstance(self.stream, trio.SSLStream):  # noqa: TID251  the oracle is apart from our own TLS on purpose
            # Opened as https_compatible, so that clients may leave without one; closed that way, it would send none.
            self.stream._https_compatible = False
        with trio.move_on_after(1.0):
            try:
                await self.stream.aclose()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # cut already

    async def cut(self, how: str) -> None:
        """End the connection: ``fin`` (no close_notify), ``close_notify`` or ``rst``."""
        self.connection.how = self.connection.how or "ours"
        if how == "close_notify":
            await self.farewell()
        raw = self._socket()
        if how == "rst" and raw.socket.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif raw.socket.fileno() >= 0:
            # A close with unread bytes would become a reset; the FIN first keeps the two apart.
            try:
                raw.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        await trio.aclose_forcefully(raw)


class Talk:
    """The requests and answers of one connection, one after the other."""

    def __init__(self, peer: Peer, host: Host, next_number: NextNumber) -> None:
        self.peer = peer
        self.host = host
        self._next_number = next_number
        self._left = b""

    async def run(self) -> None:
        """Serve until the connection ends; every way of ending it is normal."""
        connection = self.peer.connection
        try:
            while await self._one():
                pass
        except Gone:
            pass
        except Cut as cut:
            await self.peer.cut(cut.how)
        except h11.RemoteProtocolError as error:
            connection.how = f"protocol: {error}"
            self.host.violation(connection, str(error))
            try:
                await self.peer.send(
                    b"HTTP/1.1 %d Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    % (error.error_status_hint or 400)
                )
            except Gone:
                pass

    async def _one(self) -> bool:
        """One request and its answer; False when the connection is to be closed."""
        protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        window = bytearray(self._left)
        if self._left:
            protocol.receive_data(self._left)
            self._left = b""
        event = await self._next(protocol, window)
        if not isinstance(event, h11.Request):
            if window.strip(b"\r\n"):
                self.host.violation(self.peer.connection, "the connection ended inside a request head")
            return False
        request, head_size = self._begin(event, window)
        self.host.arrived(request)
        early = self.host.early_answer(request)
        if early is not None and early.early:
            return await self._respond(request, early, protocol, window, head_size)
        if early is not None and early.read_delay:
            await trio.sleep(early.read_delay)
        await self._read_body(protocol, window, request, head_size)
        return await self._respond(request, self.host.answer(request), protocol, window, head_size)

    async def _next(self, protocol: h11.Connection, window: bytearray) -> object:
        while True:
            event = protocol.next_event()
            if event is not h11.NEED_DATA:
                return event
            if protocol.they_are_waiting_for_100_continue:
                informational = protocol.send(
                    h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                )
                await self.peer.send(informational or b"")
            data = await self.peer.more()
            if self.host.keep_bodies or protocol.their_state is h11.IDLE:
                window += data
            try:
                protocol.receive_data(data)
            except RuntimeError:  # data behind the end: the peer closed twice
                raise Gone("closed") from None

    def _begin(self, event: h11.Request, window: bytearray) -> tuple[Received, int]:
        end = _END_OF_HEAD.search(window)
        head_size = end.end() if end else len(window)
        connection = self.peer.connection
        request = Received(
            number=self._next_number(),
            connection=connection,
            time=trio.current_time(),
            method=event.method.decode("ascii"),
            target=event.target.decode("latin-1"),
            version="HTTP/" + event.http_version.decode("ascii"),
            head=bytes(window[:head_size]),
            fields=[(bytes(name), bytes(value)) for name, value in event.headers.raw_items()],
        )
        connection.requests.append(request)
        return request, head_size

    async def _read_body(self, protocol: h11.Connection, window: bytearray, request: Received, head_size: int) -> None:
        keep = self.host.keep_bodies
        parts: list[bytes] = []
        digest = hashlib.sha256()
        while True:
            event = await self._next(protocol, window)
            if isinstance(event, h11.Data):
                request.size += len(event.data)
                digest.update(event.data)
                # A body that a scenario may read is kept in any case; only big ones are dropped.
                if keep or request.size <= RUN_AHEAD:
                    parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                request.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
                break
            else:
                raise Gone("the connection ended inside a body")
        request.body = b"".join(parts)
        request.digest = digest.hexdigest()
        behind = protocol.trailing_data[0]
        if keep:
            request.framed = bytes(window[head_size : len(window) - len(behind)])
        request.complete = True
        request.complete_at = trio.current_time()

    async def _respond(
        self, request: Received, answer: Answer, protocol: h11.Connection, window: bytearray, head_size: int
    ) -> bool:
        peer = self.peer
        asked_to_close = _wants_close(request)
        ended: Gone | Cut | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await peer.connection.gone.wait()
                nursery.cancel_scope.cancel()

            if not answer.upgrade:
                nursery.start_soon(watch)
            try:
                if answer.upgrade:
                    await upgrade.serve(peer, request, answer.upgrade, first=bytes(protocol.trailing_data[0]))
                else:
                    await write_answer(peer, request, answer, closing=asked_to_close)
            except (Gone, Cut) as error:
                ended = error  # raised outside, where no exception group wraps it
            finally:
                request.sent.finished_at = trio.current_time()
                self.host.finished(request)
            nursery.cancel_scope.cancel()
        if ended is not None:
            raise ended
        if answer.upgrade or peer.connection.gone.is_set():
            return False
        if not request.complete and protocol.they_are_waiting_for_100_continue:
            return False  # nobody will send that body, and a 100 behind a final answer would be wrong
        if not request.complete:
            # Answered early: whether the rest still comes is the client's choice. Take it for a while, then close.
            with trio.move_on_after(peer.seconds if not answer.close else 0.0):
                await self._read_body(protocol, window, request, head_size)
            if not request.complete:
                return False
        self._left = bytes(protocol.trailing_data[0])
        return not (asked_to_close or answer.close or answer.framing == "close" or answer.raw is not None)


class NextNumber(Protocol):
    """Gives request numbers, from 1."""

    def __call__(self) -> int: ...


def _wants_close(request: Received) -> bool:
    tokens = {
        token.strip().lower()
        for name, value in request.fields
        if name.lower() == b"connection"
        for token in value.decode("latin-1").split(",")
    }
    return "close" in tokens or (request.version == "HTTP/1.0" and "keep-alive" not in tokens)
