"""The live feed: what happens now, for the web page and for scripts, as server-sent events.

Owns one ring of recent events, which every listener reads at its own pace, and the form in which they are sent. Must
never hold up whoever emits. Invariants: memory is bounded by the ring, however many listen and however slow they are;
a listener that falls behind the ring loses the oldest events and is told how many; no event holds message text, a
header's value or a credential.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from dbproxy.app.client import ClientGone
from dbproxy.model.record import ExchangeClosed, ExchangeOpened

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.exchange import SendBytes
    from dbproxy.model.link import Link
    from dbproxy.model.record import Record

#: What the ring holds at most; whichever is reached first.
RING_EVENTS: Final = 4096
RING_BYTES: Final = 4 * 1024 * 1024
#: Seconds of silence after which a comment is sent: proxies and browsers give up on a silent stream.
HEARTBEAT: Final = 15.0
#: Listeners at once; each holds a connection.
LISTENERS: Final = 32
#: Seconds in which a listener has to take what is sent; one that takes nothing for so long is gone.
PATIENCE: Final = 60.0
_LOOK: Final = 1.0  # seconds between looks at whether the proxy is about to end
_HELPING: Final = 256  # events in one write
_NAME = re.compile(rb'"event":"([\w.-]{1,64})"')
_ID = re.compile(r"([0-9a-f]{8})-([0-9]{1,15})\Z", re.ASCII)


class LiveFeed:
    """The ring and its listeners. ``line`` may be called in any thread, everything else on the event loop."""

    def __init__(
        self, *, events: int = RING_EVENTS, size: int = RING_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        #: Names this feed: an id that another process gave means nothing here.
        self.instance = secrets.token_hex(4)
        self.listeners = 0
        self._most = events
        self._limit = size
        self._clock = clock
        self._lock = threading.RLock()  # a finaliser may emit in the middle of an emit
        self._ring: deque[bytes] = deque()
        self._held = 0
        self._last = 0  # number of the newest event; the first is 1
        self._news: trio.Event | None = None
        self._loop: trio.lowlevel.TrioToken | None = None

    # ---- what happens

    def line(self, line: bytes) -> None:
        """Take one JSON object as the journal writes it, with its newline."""
        with self._lock:
            ring = self._ring
            ring.append(line)
            self._held += len(line)
            self._last += 1
            while len(ring) > self._most or (self._held > self._limit and len(ring) > 1):
                self._held -= len(ring.popleft())
            loop = self._loop if self._news is not None else None
        if loop is not None:
            try:
                loop.run_sync_soon(self._wake, idempotent=True)
            except trio.RunFinishedError:
                pass  # nobody is left to hear it

    def emit(
        self, event: str, *, at: float | None = None, level: str = "info", link: Link | None = None, **fields: object
    ) -> None:
        """An event of the feed alone, at ``at`` in Unix seconds. What is None or "" is left out."""
        fields |= _place(link)
        known = {name: value for name, value in fields.items() if value is not None and value != ""}
        stamp = timestamp(self._clock() if at is None else at)
        self.line(_encode({"timestamp": stamp, "level": level, "event": event, **known}) + b"\n")

    def record(self, record: Record, link: Link | None = None, scope: str | None = None) -> None:
        """What became known about an exchange: ``exchange_opened``, ``exchange_linked`` or ``exchange_closed``.

        ``link`` is what is known of its place, ``scope`` the id of its launch.
        """
        if isinstance(record, ExchangeOpened):
            self._opened(record, link or record.link)
        elif isinstance(record, ExchangeClosed):
            self._closed(record, link, scope)
        else:
            self.emit("exchange_linked", exchange_id=record.link.exchange, scope=scope, link=record.link)

    def _opened(self, record: ExchangeOpened, link: Link | None) -> None:
        self.emit(
            "exchange_opened",
            at=record.started,
            exchange_id=record.id,
            scope=record.scope,
            model=record.model,
            method=record.method,
            host=record.host,
            path=record.path,
            project=record.project,
            streamed=record.streamed,
            message_count=record.message_count,
            link=link,
        )

    def _closed(self, record: ExchangeClosed, link: Link | None, scope: str | None) -> None:
        usage = record.usage
        self.emit(
            "exchange_closed",
            at=record.finished,
            level="info" if record.outcome in ("ok", "local", "upgraded") else "warning",
            exchange_id=record.id,
            scope=scope,
            model=record.model,
            outcome=record.outcome,
            status=record.status or None,
            error=record.error,
            first_byte_ms=round(record.first_byte_ms, 2) if record.first_byte_ms >= 0 else None,
            duration_ms=round(record.duration_ms, 2) if record.duration_ms >= 0 else None,
            bytes_up=record.bytes_up,
            bytes_down=record.bytes_down,
            stop_reason=record.stop_reason,
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cache_read=usage.cache_read if usage else None,
            cache_write_5m=usage.cache_write_5m if usage else None,
            cache_write_1h=usage.cache_write_1h if usage else None,
            context_tokens=usage.context_tokens if usage else None,
            cost_usd=record.cost_usd,
            route=route.outcome if (route := record.route) else None,
            provider=route.provider or None if route else None,
            link=link,
        )

    # ---- who listens

    async def stream(
        self, send: SendBytes, *, after: str = "", ending: Callable[[], bool] = bool, heartbeat: float = HEARTBEAT
    ) -> None:
        """Send what happens from now on until the client goes away, stops reading, or ``ending`` says so.

        Raises ClientGone for the second. ``after`` is the id of the last event that the client has seen: what came
        since is sent first, as far as the ring still holds it.
        """
        self._loop = trio.lowlevel.current_trio_token()
        self.listeners += 1

        async def patiently(data: bytes) -> None:
            with trio.move_on_after(PATIENCE):
                await send(data)
                return
            raise ClientGone("the listener stopped reading")

        try:
            seen, lost = self._place_after(after)
            await patiently(self._opening(seen, resumed=bool(after) and lost == 0, lost=lost))
            while not ending():
                helping, seen, lost = self._after(seen)
                if lost:
                    await patiently(self._told(seen - len(helping), lost))
                if helping:
                    await patiently(self._events(helping, seen - len(helping)))
                elif not await self._wait(seen, ending, heartbeat):
                    await patiently(b": heartbeat\n\n")
            # Not a failure: the client comes again by itself and finds the next process.
            await patiently(b": the proxy ends\n\n")
        finally:
            self.listeners -= 1

    def _place_after(self, after: str) -> tuple[int, int | None]:
        """Where to begin, and how many events are lost already: None if nobody can tell, 0 for none."""
        match = _ID.match(after)
        if match is None:
            return self._last, None if after else 0
        number = int(match[2])
        if match[1] != self.instance or number > self._last:
            return self._last, None
        return number, 0

    def _after(self, seen: int) -> tuple[list[bytes], int, int]:
        """The next events, the number of the last of them, and how many before them are gone."""
        with self._lock:
            first = self._last - len(self._ring) + 1
            lost = max(0, first - seen - 1)
            start = seen + lost + 1 - first
            helping = [self._ring[index] for index in range(start, min(start + _HELPING, len(self._ring)))]
            return helping, seen + lost + len(helping), lost

    async def _wait(self, seen: int, ending: Callable[[], bool], heartbeat: float) -> bool:
        """Wait for an event behind ``seen``, for the end, or for so long that a heartbeat is due; False for that."""
        until = trio.current_time() + heartbeat
        while not ending():
            with self._lock:
                if self._last > seen:
                    return True
                if self._news is None:
                    self._news = trio.Event()
                news = self._news
            left = until - trio.current_time()
            if left <= 0:
                return False
            with trio.move_on_after(min(left, _LOOK)):
                await news.wait()
        return True

    def _wake(self) -> None:
        with self._lock:
            news, self._news = self._news, None
        if news is not None:
            news.set()

    # ---- how it is sent

    def _opening(self, seen: int, *, resumed: bool, lost: int | None) -> bytes:
        facts: dict[str, object] = {"timestamp": timestamp(self._clock()), "level": "info", "event": "feed_opened"}
        facts["resumed"] = resumed
        if lost is None:
            facts["lost"] = "unknown"  # the id was another process's
        return b"retry: 2000\n" + self._event(seen, b"feed_opened", msgspec.json.encode(facts))

    def _told(self, seen: int, lost: int) -> bytes:
        facts = {"timestamp": timestamp(self._clock()), "level": "warning", "event": "events_lost", "count": lost}
        return self._event(seen, b"events_lost", msgspec.json.encode(facts))

    def _events(self, lines: list[bytes], before: int) -> bytes:
        made = []
        for number, line in enumerate(lines, before + 1):
            name = _NAME.search(line, 0, 256)
            made.append(self._event(number, name[1] if name else b"message", line.rstrip(b"\n")))
        return b"".join(made)

    def _event(self, number: int, name: bytes, data: bytes) -> bytes:
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (self.instance.encode(), number, name, data)


def timestamp(at: float) -> str:
    """Unix seconds as the journal writes them: ISO 8601, UTC, milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _encode(value: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (ValueError, TypeError, OverflowError):  # a lone surrogate: a folder whose name is not UTF-8
        return json.dumps(value, default=str).encode()


def _place(link: Link | None) -> dict[str, object]:
    if link is None:
        return {}
    agent = link.agent
    return {
        "conv_id": link.conversation,
        "thread": link.thread,
        "branch": link.branch,
        "kind": link.kind.value,
        "edge": link.edge.value,
        "parent": link.parent,
        "compaction": link.compaction,
        "agent": {"number": agent.number, "type": agent.type, "name": agent.name} if agent is not None else None,
    }
