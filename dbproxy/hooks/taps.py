"""The taps of all answers: what plugins may see of a stream without standing in its way.

The relay appends what it has written to a bounded queue, and one task for the whole process wakes some 50 times a
second, decodes, splits and shows the events to the taps in short slices (a wake-up for each event would cost ten times
as much as the event).

Must not import net, store, proc or app. Invariants: `TapFeed.data` and `TapFeed.end` never wait and never raise; a
plugin's failure detaches its own object and nothing else; a slow or dead tap loses its own events, counted; after
`TapFeed.end` its callback runs exactly once, whatever happens.
"""

from __future__ import annotations

import inspect
from collections import deque
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any

import trio

from dbproxy.errors import ProtocolViolation
from dbproxy.hooks.calls import FAILURES, SYNC_FAILURES, Calls, DeadlinePassed, Implementation, running_plugin
from dbproxy.hooks.filters import BlocksLoop, is_event_stream
from dbproxy.hooks.filters import StreamFilters as StreamFilters
from dbproxy.hooks.kinds import QUARANTINE_AFTER, RULES, SLOW_CALL, Kind
from dbproxy.hooks.metrics import Sample
from dbproxy.wire.coding import Decoder, decoder
from dbproxy.wire.sse import SseEvent, SseSplitter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dbproxy.exchange import Exchange, Outcome, ResponseHead

KIB, MIB = 1024, 1024 * 1024

#: What a tap may see of one coded answer, decoded (bytes): a bound against bombs.
DECODED_LIMIT = 256 * MIB

#: So many bytes are decoded and split at once.
PIECE = 64 * KIB

#: So many events are shown to one tap before the clock is read and the next tap gets its turn.
BATCH = 16


_is_async_function = lru_cache(maxsize=256)(inspect.iscoroutinefunction)


def _is_async(method: Callable[..., Any] | None) -> bool:
    # Asked four times for each answer; a method's function lives as long as its class, so the answer can be kept.
    function = getattr(method, "__func__", None)
    return inspect.iscoroutinefunction(method) if function is None else _is_async_function(function)


class _Tap:
    """A plugin's tap object of one exchange with its methods resolved."""

    __slots__ = ("body", "end", "event", "impl", "live", "lost", "queue", "slow")

    def __init__(self, impl: Implementation, tap_object: Any) -> None:
        self.impl = impl
        self.event: Callable[[SseEvent], Any] | None = getattr(tap_object, "event", None)
        self.body: Callable[[bytes], Any] | None = getattr(tap_object, "body", None)
        self.lost: Callable[[int], Any] | None = getattr(tap_object, "lost", None)
        self.end: Callable[[Outcome], Any] | None = getattr(tap_object, "end", None)
        self.live = True
        self.slow = 0
        waits = any(map(_is_async, (self.event, self.body, self.lost, self.end)))
        self.queue = _TapQueue() if waits else None


class _TapQueue:
    """What waits for a tap with async methods. Bounded in entries and bytes; ``gap`` counts bytes dropped since."""

    __slots__ = ("gap", "items", "size", "started", "wake")

    ENTRIES, BYTES = 256, MIB

    def __init__(self) -> None:
        self.items: deque[tuple[Callable[[Any], Any], Any, int]] = deque()
        self.size = 0
        self.gap = 0
        self.started = False
        self.wake = trio.Event()

    def offer(self, tap: _Tap, method: Callable[[Any], Any], value: Any, size: int) -> None:
        if len(self.items) >= self.ENTRIES or (self.size and self.size + size > self.BYTES):
            self.gap += size
            tap.impl.account.dropped += 1
            return
        self.close_gap(tap)
        self.items.append((method, value, size))
        self.size += size

    def close_gap(self, tap: _Tap) -> None:
        if self.gap and tap.lost is not None:
            self.items.append((tap.lost, self.gap, 0))
        self.gap = 0


class TapFeed:
    """One answer on its way to the taps. The relay calls `data` for what it has written, and `end` once."""

    __slots__ = (
        "_batches", "_chunks", "_decoder", "_hub", "_lost", "_lost_chunks", "_overflowed", "_queued", "_size",
        "_splitter", "_then", "_undecodable", "coding", "finished", "outcome", "taps",
    )  # fmt: skip

    def __init__(self, hub: TapHub, head: ResponseHead, taps: list[_Tap]) -> None:
        self._hub = hub
        self._chunks: deque[bytes] = deque()
        self._batches: deque[tuple[list[SseEvent], int]] = deque()  # events and what they weigh in _size
        self._size = 0
        self._queued = False
        self._lost = 0  # bytes that will never be shown and were not reported yet
        self._lost_chunks = 0
        self._overflowed = False  # something in the middle is missing: nothing behind it can be decoded
        self._decoder: Decoder | None = None  # made when the first bytes are shown, off the path
        self._undecodable = False
        self._splitter = SseSplitter() if is_event_stream(head) else None
        self._then: Callable[[], None] | None = None
        self.coding = b",".join(head.fields.get_all(b"content-encoding"))
        self.taps = taps
        self.outcome: Outcome | None = None
        self.finished = False

    def data(self, chunk: bytes) -> None:
        """Body bytes exactly as the client got them. ``chunk`` must not change afterwards."""
        if not chunk:
            return
        size = self._size + len(chunk)
        if self._overflowed or size > self._hub.feed_limit:
            self._overflowed = True
            self._lost += len(chunk)
            self._lost_chunks += 1
        else:
            self._chunks.append(chunk)
            self._size = size
        self._tell(size)

    def events(self, events: list[SseEvent], size: int) -> None:
        """Events that the filters' splitter found in ``size`` bytes which the upstream sent, in place of those bytes.

        All of an answer comes through `data`, or all of it through this.
        """
        if not events:
            return
        weight = self._size + 2 * size  # an event has its data twice
        if self._overflowed or weight > self._hub.feed_limit:
            self._overflowed = True
            self._lost += size
            self._lost_chunks += 1
        else:
            self._batches.append((events, 2 * size))
            self._size = weight
        self._tell(weight)

    def _tell(self, size: int) -> None:
        """See that the pump comes, and at once if much is waiting."""
        if not self._queued:
            self._queued = True
            self._hub._announce(self)
        if size > self._hub.hurry_above:
            self._hub._hurry.set()

    def end(self, outcome: Outcome, then: Callable[[], None] | None = None) -> None:
        """No more data. ``then`` is called once, after every synchronous tap has seen its end."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        self._then = then
        if self._hub._closed:
            self._finish()
        elif not self._queued:
            self._queued = True
            self._hub._announce(self)

    def _take(self) -> bytes:
        """The oldest bytes, some 64 KiB at once: decoding and splitting cost by the call."""
        chunks = self._chunks
        first = chunks.popleft()
        if len(first) > PIECE:
            chunks.extendleft(first[at : at + PIECE] for at in range((len(first) - 1) // PIECE * PIECE, 0, -PIECE))
            first = first[:PIECE]
        size, pieces = len(first), [first]
        while chunks and size + len(chunks[0]) <= PIECE:
            size += len(chunks[0])
            pieces.append(chunks.popleft())
        self._size -= size
        return first if len(pieces) == 1 else b"".join(pieces)

    def _finish(self) -> None:
        if self.finished:
            return
        self.finished = True
        self._chunks.clear()
        self._batches.clear()
        self._size = 0
        then, self._then = self._then, None
        if then is not None:
            try:
                then()
            except Exception:
                self._hub.errors += 1


class TapHub:
    """All taps of the process and the task that serves them.

    ``interval``, ``slice_seconds`` and ``async_deadline`` (one call of an async tap) in seconds. ``feed_limit`` bounds
    what one answer may queue (bytes); above ``hurry_above`` queued bytes the pump does not wait for the interval.
    ``errors`` counts faults of our own, ``undecodable`` answers whose coding was broken or unknown, ``overflowed``
    answers that came faster than the pump.
    """

    def __init__(
        self,
        calls: Calls,
        *,
        interval: float = 0.02,
        slice_seconds: float = 0.0005,
        async_deadline: float = RULES[Kind.TAP].deadline or 5.0,
        feed_limit: int = 8 * MIB,
        hurry_above: int = 256 * KIB,
    ) -> None:
        self.feed_limit = feed_limit
        self.hurry_above = hurry_above
        self.errors = 0
        self.undecodable = 0
        self.overflowed = 0
        self._calls = calls
        self._async_deadline = async_deadline
        self._interval = interval
        self._slice = slice_seconds
        self._ready: list[TapFeed] = []
        self._async_taps = 0
        self._wake = trio.Event()
        self._hurry = trio.Event()
        self._idle: trio.Event | None = None
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._slice_began = 0.0

    def open(self, exchange: Exchange, head: ResponseHead) -> TapFeed | None:
        """A feed for this answer, or None if no plugin wants to see it: then nothing is to be done or paid."""
        if not self._calls.has("stream_tap") or self._closed or head.status < 200:
            return None
        found = self._calls.collect_sync("stream_tap", exchange=exchange, head=head)
        if not found:
            return None
        return TapFeed(self, head, [_Tap(impl, answer) for impl, answer in found])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the taps until cancelled. What is queued then is dropped; `drain` before."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await self._round()
        finally:
            self._closed = True
            self._nursery = None
            for feed in self._ready:
                if feed.outcome is not None:
                    feed._finish()
            self._ready.clear()

    async def drain(self, seconds: float) -> bool:
        """Wait until all that was queued has been shown and async taps are done, at most so long."""
        with trio.move_on_after(seconds):
            while self._ready or self._async_taps or self._slice_began:
                self._idle = trio.Event()
                self._hurry.set()
                await self._idle.wait()
            return True
        return False

    def samples(self) -> list[Sample]:
        """Our own metrics about taps."""
        return [
            Sample("dbproxy_tap_overflows_total", self.overflowed, help="Answers that came faster than their taps."),
            Sample("dbproxy_tap_undecodable_total", self.undecodable, help="Answers whose content coding was bad."),
            Sample("dbproxy_tap_errors_total", self.errors, help="Faults of our own while serving taps."),
        ]

    # ---- the pump ----------------------------------------------------------------------------------------------

    def _announce(self, feed: TapFeed) -> None:
        self._ready.append(feed)
        self._wake.set()

    async def _round(self) -> None:
        await self._wake.wait()
        with trio.move_on_after(self._interval):
            await self._hurry.wait()
        self._wake, self._hurry = trio.Event(), trio.Event()
        ready, self._ready = self._ready, []
        self._slice_began = perf_counter()
        for position, feed in enumerate(ready):
            feed._queued = False
            try:
                await self._serve(feed)
            except Exception:
                self.errors += 1
                feed._overflowed = True
                if feed.outcome is not None:
                    feed._finish()
            except BaseException:
                self._ready[:0] = ready[position:]  # so that each gets its end
                raise
        self._slice_began = 0.0
        self._nudge()

    def _nudge(self) -> None:
        if self._idle is not None and not self._ready and not self._async_taps:
            self._idle.set()

    async def _breathe(self) -> None:
        """Let everything else run if our slice is used up."""
        if perf_counter() - self._slice_began > self._slice:
            await trio.lowlevel.checkpoint()
            self._slice_began = perf_counter()

    async def _serve(self, feed: TapFeed) -> None:
        budget = feed._size  # what arrives meanwhile waits for the next round, so that each feed gets its turn
        while feed._chunks and budget > 0:
            piece = feed._take()
            budget -= len(piece)
            await self._show(feed, self._decode(feed, piece))
        while feed._batches and budget > 0:
            events, weight = feed._batches.popleft()
            feed._size -= weight
            budget -= weight
            await self._show_events(feed, events)
        if feed.outcome is not None and not feed._chunks and not feed._batches and not feed.finished:
            if not feed._overflowed:
                await self._show(feed, self._decode(feed, None))
            if feed._lost:
                self._report_loss(feed)
            self._show_end(feed, feed.outcome)
            feed._finish()
        self._start_async_taps(feed)

    def _decode(self, feed: TapFeed, data: bytes | None) -> bytes:
        """Remove the content coding; None stands for the end."""
        if not feed._undecodable:
            try:
                if feed._decoder is None:
                    feed._decoder = decoder(feed.coding, limit=DECODED_LIMIT)
                return feed._decoder.finish() if data is None else feed._decoder.feed(data)
            except ProtocolViolation:
                feed._undecodable = True
                self.undecodable += 1
        feed._lost += 0 if data is None else len(data)
        return b""

    async def _show(self, feed: TapFeed, data: bytes) -> None:
        if not data:
            return
        if feed._splitter is None:
            for tap in feed.taps:
                if tap.live and tap.body is not None:
                    self._deliver(tap, tap.body, (data,), len(data))
            await self._breathe()
            return
        await self._show_events(feed, feed._splitter.feed(data))

    async def _show_events(self, feed: TapFeed, events: list[SseEvent]) -> None:
        for start in range(0, len(events), BATCH):
            batch = events[start : start + BATCH]
            for tap in feed.taps:
                if tap.live and tap.event is not None:
                    self._deliver(tap, tap.event, batch, 0)
            await self._breathe()

    def _deliver(self, tap: _Tap, method: Callable[[Any], Any], values: Sequence[Any], size: int) -> None:
        if tap.queue is not None:
            for value in values:
                tap.queue.offer(tap, method, value, size or len(value.raw))
            return
        token = running_plugin.set(tap.impl.account.name)
        began = perf_counter()
        try:
            for value in values:
                method(value)
        except SYNC_FAILURES as error:
            self._detach(tap, error)
        finally:
            running_plugin.reset(token)
        spent = perf_counter() - began
        if spent > SLOW_CALL:
            self._calls.took(tap.impl, spent)
            tap.slow += 1
            if tap.slow >= QUARANTINE_AFTER and tap.live:
                self._detach(tap, BlocksLoop("it blocks the event loop"))

    def _report_loss(self, feed: TapFeed) -> None:
        self.overflowed += feed._overflowed
        count, chunks = feed._lost, feed._lost_chunks or 1
        for tap in feed.taps:
            if tap.live:
                tap.impl.account.dropped += chunks
                if tap.lost is not None:
                    self._deliver(tap, tap.lost, (count,), 1)

    def _show_end(self, feed: TapFeed, outcome: Outcome) -> None:
        for tap in feed.taps:
            if not tap.live:
                continue
            if tap.queue is not None:
                tap.queue.close_gap(tap)
                tap.queue.items.append((tap.end or _ignore, outcome, 0))
                continue
            if tap.end is not None:
                self._deliver(tap, tap.end, (outcome,), 1)
            if tap.live:
                tap.impl.consecutive = 0

    def _detach(self, tap: _Tap, error: BaseException) -> None:
        tap.live = False
        self._calls.failed(tap.impl, error)

    # ---- taps with async methods -------------------------------------------------------------------------------

    def _start_async_taps(self, feed: TapFeed) -> None:
        for tap in feed.taps:
            queue = tap.queue
            if queue is None or not queue.items:
                continue
            queue.wake.set()
            if not queue.started and self._nursery is not None:
                queue.started = True
                self._async_taps += 1
                self._nursery.start_soon(self._serve_async, feed, tap, queue, name=f"tap {tap.impl.account.name}")

    async def _serve_async(self, feed: TapFeed, tap: _Tap, queue: _TapQueue) -> None:
        """Call one tap's methods, one after the other, each within the deadline; ends with the exchange."""
        running_plugin.set(tap.impl.account.name)
        try:
            while tap.live:
                while queue.items and tap.live:
                    method, value, size = queue.items.popleft()
                    queue.size -= size
                    await self._call_async(tap, method, value)
                if feed.finished and not queue.items:
                    break
                await queue.wake.wait()
                queue.wake = trio.Event()
            if tap.live:
                tap.impl.consecutive = 0
        finally:
            queue.items.clear()
            self._async_taps -= 1
            self._nudge()

    async def _call_async(self, tap: _Tap, method: Callable[[Any], Any], value: Any) -> None:
        try:
            with trio.move_on_after(self._async_deadline) as scope:
                answer = method(value)
                if inspect.isawaitable(answer):
                    await answer
            if scope.cancelled_caught:
                raise DeadlinePassed(self._async_deadline)
        except FAILURES as error:
            self._detach(tap, error)
        except BaseExceptionGroup as group:
            mine, rest = group.split(FAILURES)
            if mine is not None:
                self._detach(tap, mine)
            if rest is not None:
                raise rest from None


def _ignore(outcome: Outcome) -> None:
    """Stands for the end of a tap that has no `end`."""
