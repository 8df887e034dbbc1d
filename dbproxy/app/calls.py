"""A request of our own on a pooled connection: the upload beside the answer's head, and the payload as it comes.

Owns the two steps that every such call takes; whose call it is, its deadline and its record are the caller's. It shares
nothing with the path of a client's bytes. Invariants: a server may answer before it has read everything; an answer that
breaks off is never taken for a whole one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from dbproxy.errors import ProtocolViolation, UpstreamError
from dbproxy.net.streams import ConnectionBroken
from dbproxy.wire import h1
from dbproxy.wire.coding import decoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.exchange import RequestHead, ResponseHead
    from dbproxy.net.upstream import UpstreamConnection


async def ask(connection: UpstreamConnection, head: RequestHead, body: bytes) -> tuple[ResponseHead, bytes]:
    """Send a request; the answer's head and what came behind it. Raises UpstreamError.

    The error leaves the nursery by hand, because a group of one is still a group.
    """

    async def upload() -> None:
        try:
            await connection.stream.send(h1.serialise_request(head))
            await connection.stream.send(body)
        except ConnectionBroken:
            pass  # the answer, or its absence, tells

    async def ignore(raw: bytes, informational: ResponseHead) -> None:
        pass

    failure: UpstreamError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload)
        try:
            answer = await connection.read_head(on_informational=ignore)
        except UpstreamError as error:
            failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return answer


class Payload:
    """An answer's payload as it comes, decoded. Not a generator: one that is left in the middle needs closing.

    ``ended`` says that it came whole; ``reusable`` that the connection can carry another request after it.
    """

    def __init__(
        self,
        connection: UpstreamConnection,
        head: ResponseHead,
        rest: bytes,
        *,
        limit: int,
        method: bytes = b"POST",
        silence: tuple[trio.CancelScope, float] | None = None,
        raw: Callable[[bytes], None] | None = None,
    ) -> None:
        """``limit`` (bytes, decoded) is the most that is taken; ``silence`` a scope that is given a deadline for each
        wait, and the longest one (seconds); ``raw`` sees every piece before it is decoded. Raises UpstreamError."""
        self.ended = False
        self._connection = connection
        self._head = head
        self._data = rest
        self._silence = silence
        self._raw = raw
        try:
            self._body = h1.Body(h1.response_framing(head, method), keep=True)
            self._undo = decoder(b",".join(head.fields.get_all(b"content-encoding")) or None, limit=limit)
        except ProtocolViolation as error:
            raise UpstreamError("protocol", str(error)) from None

    @property
    def count(self) -> int:
        """Bytes of it so far, before decoding."""
        return self._body.count

    @property
    def reusable(self) -> bool:
        head, kind = self._head, self._body.kind
        return self.ended and kind is not h1.Kind.CLOSE and h1.keeps_alive(head.version, head.fields)

    async def next(self) -> bytes | None:
        """The next piece, never empty; None at the end. Raises UpstreamError where it breaks off, or is too large."""
        try:
            while not self.ended:
                plain = self._taken()
                if plain:
                    return plain
                if not self._body.done:
                    await self._receive()
                if self._body.done and not self._data:
                    last = self._undo.finish()
                    self.ended = True
                    if last:
                        return last
        except ConnectionBroken as error:
            raise UpstreamError("closed", str(error)) from None
        except ProtocolViolation as error:
            raise UpstreamError("protocol", str(error)) from None
        return None

    async def all(self) -> bytes:
        """Everything that is left. Raises UpstreamError."""
        pieces = []
        while (piece := await self.next()) is not None:
            pieces.append(piece)
        return b"".join(pieces)

    def _taken(self) -> bytes:
        """What the bytes at hand hold of the payload."""
        data, self._data = self._data, b""
        if not data:
            return b""
        if self._body.feed(data) < len(data):
            self._connection.stale = True  # it sent more than its answer: not to be used again
        payload = self._body.take()
        if not payload:
            return b""
        if self._raw is not None:
            self._raw(payload)
        return self._undo.feed(payload)

    async def _receive(self) -> None:
        if self._silence is not None:
            scope, seconds = self._silence
            scope.deadline = trio.current_time() + seconds
        self._data = await self._connection.stream.receive()
        if self._silence is not None:
            scope.deadline = float("inf")  # from here on it is the client's time
        if not self._data:
            if self._body.kind is not h1.Kind.CLOSE or self._connection.stream.truncated:
                raise UpstreamError("closed", "it broke off in the middle of its answer")
            self._body.done = True
