"""One stream of an HTTP/2 connection, in the coat of a byte stream with HTTP/1.1 on it.

So the pipeline and the pool, which know HTTP/1.1 alone, need not know. Owns what of one stream waits to be read or
written. Must never know what a request means, nor write to the connection itself.

Invariants
- What ``send`` was given is out when it returns; a ``send`` that was cancelled leaves the stream broken for good.
- Received bytes are acknowledged when ``receive`` hands them out, or when the stream is given up.
- A stream ends with END_STREAM only if its message was complete; everything else is a reset.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

import trio

from dbproxy.errors import ProtocolViolation
from dbproxy.net.streams import ConnectionBroken, SocketStream
from dbproxy.wire import h2, h2bridge
from dbproxy.wire.h2gate import Code

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.net.h2mux import Mux


class Turn(Enum):
    """What became of a stream's turn to send."""

    DONE = "done"
    MORE = "more"
    BLOCKED = "blocked"


class MuxStream(SocketStream):
    """One stream. ``on_gone`` is called once when the peer gives it up or the connection is lost."""

    __slots__ = (
        "_arrived",
        "_flushed",
        "_inbox",
        "_lost",
        "_mux",
        "_offset",
        "_queue",
        "_unacknowledged",
        "_unwanted",
        "incoming",
        "number",
        "on_gone",
        "outgoing",
    )

    secure = True

    def __init__(self, mux: Mux, number: int, outgoing: h2bridge.Outgoing, incoming: h2bridge.Incoming | None) -> None:
        super().__init__(mux.transport.sock)
        self.number = number
        self.incoming = incoming
        self.outgoing = outgoing
        self.on_gone: Callable[[], None] | None = None
        self._mux = mux
        self._inbox: list[bytes] = []
        self._unacknowledged = 0
        self._arrived: trio.Event | None = None
        self._queue: deque[h2bridge.Send] = deque()
        self._offset = 0
        self._flushed: trio.Event | None = None
        self._unwanted = False  # the peer has answered and takes no more of the request
        self._lost = ""  # why nothing can come or go any more

    # ---- as a byte stream

    @property
    def gone(self) -> bool:
        """Whether the peer gave the stream up or the connection is lost."""
        return bool(self._lost)

    @property
    def buffered(self) -> bool:
        return bool(self._prefix or self._inbox)

    async def receive(self) -> bytes:
        """The next bytes of the HTTP/1.1 form; ``b""`` behind the end. Raises ConnectionBroken."""
        await trio.lowlevel.checkpoint()
        if self._prefix:
            data, self._prefix = self._prefix, b""
            return data
        while not self._inbox:
            if self.eof:
                return b""
            if self._lost:
                raise ConnectionBroken(self._lost)
            self._arrived = trio.Event()
            await self._arrived.wait()
        data = self._inbox[0] if len(self._inbox) == 1 else b"".join(self._inbox)
        self._inbox.clear()
        self._acknowledge()
        self.bytes_in += len(data)
        return data

    async def send(self, data: bytes) -> None:
        """Write HTTP/1.1 bytes; returns when all that they mean is on its way. Raises ConnectionBroken."""
        if self._lost or self._broken or self._closed:
            raise ConnectionBroken(self._refusal() or "the stream is closed")
        self._broken = True  # until all of it is out
        try:
            self._queue.extend(self.outgoing.feed(data))
        except ProtocolViolation as error:
            self.drop()
            raise ConnectionBroken(f"not expressible in HTTP/2: {error}") from None
        if self._queue:
            flushed = self._flushed = trio.Event()
            self._mux.ready(self)
            await flushed.wait()
            self._flushed = None
            if refusal := self._refusal():
                raise ConnectionBroken(refusal)
        else:
            await trio.lowlevel.checkpoint()
        self.bytes_out += len(data)
        self._broken = False

    def _refusal(self) -> str:
        return self._lost or ("the peer takes no more of the request" if self._unwanted else "")

    def send_nowait(self, data: bytes) -> bytes:
        """A stream has no such thing as room in the kernel: nothing is taken."""
        return data

    async def send_eof(self) -> None:
        """End our direction."""
        await trio.lowlevel.checkpoint()
        self.finish()

    def is_quiet(self) -> bool:
        return not self._lost and not self.eof and not self.buffered

    def finish(self) -> None:
        """What was sent is all there will be: END_STREAM for a complete message, else a reset."""
        if self._closed or self._lost:
            return
        if not self._broken:
            self._queue.extend(self.outgoing.close())
        if self._broken or not self.outgoing.done:
            self.drop()
            return
        mux = self._mux
        if self._queue:
            self.emit(mux.wire)
        self._closed = True
        if self.incoming is None or not self.incoming.ended:
            # The answer is complete although the request is not: nobody wants the rest of it (RFC 9113 section 8.1).
            mux.wire.reset(self.number, Code.NO_ERROR)
        self._forget()

    def drop(self) -> None:
        """Reset the stream: the peer cannot take what it got for the whole."""
        self._reset(Code.CANCEL if self._mux.wire.client else Code.INTERNAL_ERROR)

    def abort(self) -> None:
        self.drop()

    def fail(self, code: int, why: str) -> None:
        """Reset the stream because of what the peer did on it, and tell who serves it."""
        self._mux.wire.reset(self.number, code)
        self.lost(why)

    def close(self) -> None:
        """Give the stream back; a complete exchange needs no more words."""
        if self._closed:
            return
        if self.outgoing.done and not self._queue and self.incoming is not None and self.incoming.ended:
            self._closed = True
            self._forget()
        else:
            self.drop()

    def _reset(self, code: int) -> None:
        if self._closed:
            return
        self._closed = True
        self._inbox.clear()
        if not self._lost and self.number:
            self._mux.wire.reset(self.number, code)
        self._gone("the stream was closed here")

    # ---- for the connection

    def arrived(self, data: bytes, length: int, *, ended: bool) -> None:
        """Bytes of the HTTP/1.1 form; ``length`` of them count against the windows."""
        if data:
            self._inbox.append(data)
        self._unacknowledged += length
        if not data and length:
            self._acknowledge()  # nothing but padding
        if ended:
            self.eof = True
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None

    def lost(self, why: str) -> None:
        """The peer gave the stream up, or the connection is gone."""
        if not self._lost:
            self._gone(why)
            if self.on_gone is not None:
                self.on_gone()

    def stop_sending(self) -> None:
        """The peer has answered in full and wants no more of the request."""
        self._broken = self._unwanted = True
        self._queue.clear()
        self._wake()

    def _gone(self, why: str) -> None:
        # What arrived before may still be read: an answer that is whole stays whole.
        self._lost = why
        self._broken = True
        self.truncated = not self.eof
        self._queue.clear()
        self._wake()
        self._forget()

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None
        if self._flushed is not None:
            self._flushed.set()

    def _forget(self) -> None:
        self._acknowledge()
        self._mux.forget(self)

    def _acknowledge(self) -> None:
        length, self._unacknowledged = self._unacknowledged, 0
        if length and self.number:
            self._mux.wire.took(self.number, length)
            self._mux.kick()

    def emit(self, wire: h2.Wire) -> Turn:
        """Turn what is queued into frames, as far as one turn goes."""
        queue = self._queue
        while queue:
            item = queue[0]
            if isinstance(item, h2bridge.SendData):
                size = len(item.data) - self._offset
                room = wire.room(self.number) if size else 0
                if size and not room:
                    return Turn.BLOCKED
                cut = size > room
                data: bytes | memoryview = item.data
                if cut or self._offset:
                    data = memoryview(item.data)[self._offset : self._offset + min(size, room)]
                good = room >= 0 and wire.send_data(self.number, data, end=item.end and not cut, cut=cut)
                if good and cut:
                    self._offset += room
                    return Turn.MORE
                self._offset = 0
            elif isinstance(item, h2bridge.SendHead):
                if not self.number and not self._mux.number_of(self):
                    return Turn.BLOCKED
                good = wire.send_head(self.number, item.pairs, end=item.end)
            else:
                good = wire.send_head(self.number, item.pairs, end=True)
            if not good:
                self.lost("the stream is gone")
                return Turn.DONE
            queue.popleft()
        return Turn.DONE

    def flushed(self) -> None:
        """The writer wrote everything that was queued."""
        if self._flushed is not None and not self._queue:
            self._flushed.set()
