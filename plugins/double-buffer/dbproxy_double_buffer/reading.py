"""Reading the requests of a conversation: their histories, and what a checkpoint can stand on.

Owns the one `Historian` and its place in worker threads. Invariants: nothing here changes a phase; what cannot be read
is None, and its request goes on as if nobody had looked.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import trio

from dbproxy.api import json_members
from dbproxy_double_buffer.checkpoints import Base
from dbproxy_double_buffer.history import Historian, History
from dbproxy_double_buffer.log import calibrate
from dbproxy_double_buffer.wall import parse_version

if TYPE_CHECKING:
    from dbproxy.api import Exchange, Link, Services
    from dbproxy_double_buffer.buffers import Buffer
    from dbproxy_double_buffer.tap import Tap

#: Seconds to wait for the place of a request in its conversation.
LINK_SECONDS: Final = 2.0


class Reader:
    """Reads bodies in worker threads."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._historian = Historian()
        self._reading = trio.Lock()  # the historian's memo is no two threads' at once

    async def read(self, body: bytes, exchange: Exchange, earlier: tuple[bytes, ...] = ()) -> History | None:
        """The history of a request; ``earlier`` are messages that stand before those of its body."""
        async with self._reading:
            return await trio.to_thread.run_sync(self._historian.read, body, exchange.request.fields, earlier)

    async def whole(self, history: History, body: bytes, exchange: Exchange) -> History | None:
        """The history of a continued message thread, with the messages that the server remembers."""
        earlier = await self.earlier(exchange)
        return await self.read(body, exchange, earlier) if earlier else None

    async def earlier(self, exchange: Exchange) -> tuple[bytes, ...]:
        """The messages before those of a continued thread's request, () if they are not known."""
        link = await self._services.link(exchange, LINK_SECONDS)
        if link is None or not link.parent:
            return ()
        return tuple(await self._services.history(link.parent))

    async def base(self, tap: Tap, buffer: Buffer, link: Link, tokens: int) -> Base | None:
        """The request of this answer as the base of a checkpoint, None if it cannot be one."""
        exchange = tap.exchange
        body = await tap.held.read() if tap.held is not None else None
        history = await self.read(body, exchange) if body is not None else None
        if body is None or history is None or history.request is not None or not history.spans:
            return None
        if history.thread is not None:
            whole = await self._whole_body(exchange, buffer, history)
            if whole is None:
                return None
            body = whole
            history = await self.read(body, exchange)
            if history is None:
                return None
        buffer.bytes_per_token = calibrate(len(body), tokens)
        buffer.place = link.branch, tap.answer.model or ""
        fields = exchange.request.fields
        account = _digest(fields.get(b"authorization") or fields.get(b"x-api-key") or b"")
        return Base(
            exchange,
            exchange.id,
            exchange.request,
            body,
            history.chain,
            len(history.spans),
            tokens,
            history.model,
            account,
            parse_version((fields.get(b"user-agent") or b"").decode("latin-1")),
            tap.answer.model or "",
        )

    async def _whole_body(self, exchange: Exchange, buffer: Buffer, history: History) -> bytes | None:
        """A full body for a continued thread: that of its newest whole request, with all messages since."""
        if not buffer.full:
            return None
        whole = await self._services.stored_body(buffer.full)
        earlier = await self.earlier(exchange)
        if whole is None or not earlier:
            return None
        members = json_members(whole)
        place = next((m for m in members or () if m.key == b"messages"), None)
        if place is None:
            return None
        messages = b"[" + b",".join([*earlier, *history.spans]) + b"]"
        return whole[: place.start] + messages + whole[place.end :]


def _digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:16] if value else ""
