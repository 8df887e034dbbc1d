"""One HTTP/2 connection of many streams.

Owns the two tasks of a connection (one reads, one writes), who may send next, and when a connection ends. Must never
know what a request means.

Invariants
- The reader only parses and hands over; it never waits for a stream's consumer. A stream that nobody reads fills its
  own window and nothing else.
- Only the writer writes. Streams take turns, one frame each.
- A stream is known here from its first frame to its last; afterwards nothing of it is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from dbproxy.errors import ProtocolViolation
from dbproxy.net.h2stream import MuxStream, Turn
from dbproxy.net.streams import ConnectionBroken, SocketStream, close_gracefully
from dbproxy.wire import h2, h2bridge
from dbproxy.wire.h2gate import Code, H2Violation

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from dbproxy.exchange import RequestHead

#: Bytes that are written in one go; with streams taking turns nobody waits for more than that.
_BATCH = 131072
#: Unwritten control frames at which we stop reading from a peer that does not read.
_MOST_CONTROL = 65536
_LINGER = 1.0  # seconds for the last words


#: Serves one request of a stream; gets what was wrong with its head where something was.
Serve = Callable[["MuxStream", "RequestHead | ProtocolViolation"], "Awaitable[None]"]


class Mux:
    """A connection. Server: ``serve`` is started once per request, in a task of its own, and ends the stream itself.

    ``head_timeout`` and ``idle_timeout`` are seconds: for the rest of a header block, and for a connection without
    streams.
    """

    def __init__(
        self,
        transport: SocketStream,
        wire: h2.Wire,
        *,
        head_timeout: float,
        idle_timeout: float,
        head_limit: int,
        max_fields: int,
    ) -> None:
        self.transport = transport
        self.wire = wire
        self.head_timeout = head_timeout
        self.idle_timeout = idle_timeout
        self.head_limit = head_limit
        self.max_fields = max_fields
        self.streams: dict[int, MuxStream] = {}
        self.unnumbered: set[MuxStream] = set()
        self.served = 0
        self.failure = ""  # what the peer did wrong
        self.finishing = False  # either side said GOAWAY: what is under way finishes, nothing new begins
        self.over = False
        self._broken = False
        self._ready: dict[MuxStream, None] = {}  # in order: who may send next
        self._blocked: dict[MuxStream, None] = {}
        self._work = trio.Event()
        self._written = trio.Event()
        self._reading = trio.CancelScope()
        self._owes_since: float | None = None
        self._tasks: trio.Nursery | None = None
        self._serve: Serve | None = None

    # ---- tasks

    async def run(self, serve: Serve | None = None) -> None:
        """Keep the connection going until it ends; returns when the last request on it was served."""
        self._serve = serve
        try:
            async with trio.open_nursery() as self._tasks, trio.open_nursery() as own:
                own.start_soon(self._write)
                graceful = await self._read()
                self._end()
                if graceful:
                    graceful = await self._last_words()
                own.cancel_scope.cancel()
            if graceful:
                await close_gracefully(self.transport, _LINGER)
        finally:
            self._end()
            self.transport.close()

    def _end(self) -> None:
        """Nothing comes or goes any more: tell every stream."""
        self.over = True
        for stream in [*self.streams.values(), *self.unnumbered]:
            stream.lost("the connection is closed")

    async def _last_words(self) -> bool:
        with trio.move_on_after(_LINGER):
            await self._flush()
            return True
        return False

    async def _read(self) -> bool:
        """Read until the connection is over; whether last words make sense."""
        self.deadline()
        with self._reading:
            try:
                await self._read_frames()
            except ConnectionBroken:
                pass
            except H2Violation as error:
                self.failure = str(error)
                return True
            return False
        if self._broken:
            return False
        # A deadline, or the last stream of a connection that is to end has ended.
        if self.wire.owes:
            self.failure = "a header block or the preface did not arrive in time"
            self.wire.goaway(Code.PROTOCOL_ERROR)
        elif not self.finishing:
            self.wire.goaway(Code.NO_ERROR)
        return True

    async def _read_frames(self) -> None:
        wire, now = self.wire, trio.current_time
        while True:
            data = await self.transport.receive()
            if not data:
                return
            wire.feed(data)
            while (events := wire.step(now())) is not None:
                for event in events:
                    if not self._handle(event):
                        return
                self.kick()
                if wire.backlog > _MOST_CONTROL:
                    await self._flush()
                elif wire.pending:
                    await trio.lowlevel.checkpoint()  # a burst is taken in helpings
            self.deadline()

    async def _write(self) -> None:
        wire = self.wire
        while True:
            done = self._collect()
            data = wire.out()
            if data:
                try:
                    await self.transport.send(data)
                except ConnectionBroken:
                    self._broken = True
                    self._reading.cancel()
                    return
            for stream in done:
                stream.flushed()
            if not data and not self._ready:
                self._written.set()
                self._work = trio.Event()
                await self._work.wait()

    def _collect(self) -> list[MuxStream]:
        """Let the streams take turns until one batch is full; those that have nothing left."""
        done = []
        ready, wire = self._ready, self.wire
        while ready and wire.backlog < _BATCH:
            stream = next(iter(ready))
            del ready[stream]
            turn = stream.emit(wire)
            if turn is Turn.DONE:
                done.append(stream)
            else:
                (ready if turn is Turn.MORE else self._blocked)[stream] = None
        return done

    async def _flush(self) -> None:
        """Wait until the writer has nothing left to do."""
        self._written = trio.Event()
        self._work.set()
        await self._written.wait()

    def kick(self) -> None:
        """Wake the writer if there is something to write."""
        if self._ready or self.wire.backlog:
            self._work.set()

    def ready(self, stream: MuxStream) -> None:
        """A stream has something to send."""
        self._ready[stream] = None
        self._work.set()

    def deadline(self) -> None:
        """Put right until when the peer must have sent something."""
        if self.wire.owes:
            if self._owes_since is None:
                self._owes_since = trio.current_time()
            self._reading.deadline = self._owes_since + self.head_timeout
            return
        self._owes_since = None
        idle = not self.streams and not self.unnumbered
        self._reading.deadline = trio.current_time() + self.idle_timeout if idle else math.inf

    def shutdown(self) -> None:
        """Take no more streams; the connection ends with the last of those under way."""
        if not self.finishing:
            self.finishing = True
            self.wire.goaway(Code.NO_ERROR)
            self.kick()
            self._end_if_empty()

    def _end_if_empty(self) -> None:
        if self.finishing and not self.streams and not self.unnumbered:
            self._reading.cancel()

    # ---- streams

    def forget(self, stream: MuxStream) -> None:
        """A stream is over."""
        self._ready.pop(stream, None)
        self._blocked.pop(stream, None)
        self.unnumbered.discard(stream)
        if self.streams.get(stream.number) is stream:
            del self.streams[stream.number]
        self.kick()
        if self.unnumbered:
            self._opened(0)
        if not self.over:
            self.deadline()
            self._end_if_empty()

    def open(self, outgoing: h2bridge.OutgoingRequest) -> MuxStream:
        """A new stream of ours (client); it gets its number when its head is written."""
        stream = MuxStream(self, 0, outgoing, None)
        self.unnumbered.add(stream)
        self.deadline()
        return stream

    @property
    def takes_more(self) -> bool:
        """Whether one more stream could begin at once (client)."""
        return not self.over and not self.finishing and self.wire.can_open > len(self.unnumbered)

    def number_of(self, stream: MuxStream) -> bool:
        """Give a new stream its number, if the peer takes one more now."""
        number = self.wire.open() if self.wire.can_open > 0 else 0
        if number:
            stream.number = number
            self.unnumbered.discard(stream)
            self.streams[number] = stream
        return number > 0

    # ---- events

    def _handle(self, event: h2.Event) -> bool:
        """Hand an event to its stream; False when the connection is over."""
        if isinstance(event, h2.Opened):
            self._opened(event.stream)
            return True
        if isinstance(event, h2.GoneAway):
            return self._gone_away(event)
        if isinstance(event, h2.Head) and not self.wire.client:
            self._request(event)
            return True
        stream = self.streams.get(event.stream)
        if stream is None:
            if isinstance(event, h2.Data):
                self.wire.took(event.stream, event.length)
        elif isinstance(event, h2.Reset):
            if self.wire.client and stream.incoming is not None and stream.incoming.ended:
                stream.stop_sending()
            else:
                stream.lost(f"the peer reset the stream ({_name(event.code)})")
        else:
            try:
                self._message(stream, event)
            except h2bridge.Malformed as error:
                if isinstance(event, h2.Data):
                    self.wire.took(event.stream, event.length)
                stream.fail(error.code, str(error))
        return True

    def _message(self, stream: MuxStream, event: h2.Data | h2.Head | h2.Informational | h2.Trailers) -> None:
        """A part of the peer's message. Raises Malformed."""
        incoming = stream.incoming
        if isinstance(event, h2.Head | h2.Informational):
            method = stream.outgoing.method
            ended = isinstance(event, h2.Head) and event.ended
            head, incoming = h2bridge.incoming_answer(event.pairs, method, ended=ended)
            if isinstance(event, h2.Head):
                stream.incoming = incoming
            stream.arrived(head, 0, ended=ended)
        elif incoming is None:
            raise h2bridge.Malformed("a body without a head")
        elif isinstance(event, h2.Data):
            data = incoming.data(event.data)
            stream.arrived(data + incoming.end() if event.ended else data, event.length, ended=event.ended)
        else:
            stream.arrived(incoming.end(event.pairs), 0, ended=True)

    def _request(self, event: h2.Head) -> None:
        """A new stream: one more task, unless there are too many or we are about to stop."""
        number = event.stream
        if number > self.wire.last_accepted or len(self.streams) >= 2 * h2.MAX_STREAMS:
            self.wire.reset(number, Code.REFUSED_STREAM)
            return
        method = next((value for name, value in event.pairs if name == b":method"), b"")
        head: RequestHead | ProtocolViolation
        try:
            head, incoming = h2bridge.incoming_request(event.pairs, ended=event.ended, max_fields=self.max_fields)
        except h2bridge.Malformed as error:
            self.wire.reset(number, error.code)
            return
        except ProtocolViolation as error:
            head, incoming = error, h2bridge.Incoming(None, ended=event.ended)
        outgoing = h2bridge.OutgoingAnswer(method, head_limit=self.head_limit, max_fields=self.max_fields)
        stream = self.streams[number] = MuxStream(self, number, outgoing, incoming)
        stream.eof = event.ended
        self.served += 1
        self.deadline()
        if self._serve is not None and self._tasks is not None:
            self._tasks.start_soon(self._serve, stream, head)

    def _opened(self, number: int) -> None:
        if number:
            stream = self.streams.get(number)
            if stream is not None and stream in self._blocked:
                del self._blocked[stream]
                self._ready[stream] = None
        else:
            self._ready.update(self._blocked)
            self._blocked.clear()

    def _gone_away(self, event: h2.GoneAway) -> bool:
        """The peer takes no new streams; those that it never saw may be tried elsewhere."""
        self.finishing = True
        if event.code != Code.NO_ERROR:
            self.failure = f"the peer ended the connection ({_name(event.code)})"
            return False
        if self.wire.client:
            unseen = [stream for number, stream in self.streams.items() if number > event.last]
            for stream in [*unseen, *self.unnumbered]:
                stream.lost("the peer went away before it saw the request")
        self._end_if_empty()
        return True


def _name(code: int) -> str:
    try:
        return Code(code).name
    except ValueError:
        return str(code)
