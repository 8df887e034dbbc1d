"""Taps: off the path, each on its own, never behind more than its bound."""

from __future__ import annotations

import gzip
import zlib
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from dbproxy.exchange import Outcome
from dbproxy.hooks.calls import running_plugin
from dbproxy.hooks.taps import MIB, TapHub
from dbproxy.wire.sse import SseSplitter, encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Recorder:
    """A synchronous tap that keeps what it saw."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.bodies: list[bytes] = []
        self.missing = 0
        self.outcomes: list[Outcome] = []

    def event(self, event) -> None:
        self.events.append(event.data)

    def body(self, data) -> None:
        self.bodies.append(data)

    def lost(self, count) -> None:
        self.missing += count

    def end(self, outcome) -> None:
        self.outcomes.append(outcome)


@asynccontextmanager
async def running(dispatch, **options: object) -> AsyncIterator[TapHub]:
    hub = TapHub(dispatch, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        yield hub
        nursery.cancel_scope.cancel()
    assert hub.errors == 0


@pytest.fixture
def tap(plug) -> Callable[..., None]:
    def register(name: str, value: object) -> None:
        plug(name, stream_tap=lambda: value)

    return register


EVENTS = [str(n).encode() for n in range(200)]
CHUNKS = [encode(b"delta", data) for data in EVENTS]


async def test_hook_stream_tap(dispatch, plug, exchange, stream_head, autojump_clock) -> None:
    recorder = Recorder()
    plug("tap", stream_tap=lambda exchange, head: recorder if head.status == 200 else None)
    done = trio.Event()
    async with running(dispatch) as hub:
        feed = hub.open(exchange, stream_head)
        for chunk in CHUNKS:
            feed.data(chunk[:4])
            feed.data(chunk[4:])
        assert recorder.events == []  # nothing inline
        feed.end(Outcome.OK, done.set)
        feed.end(Outcome.UPSTREAM_CUT, lambda: pytest.fail("only the first end counts"))
        began = trio.current_time()
        await done.wait()
        assert trio.current_time() - began == pytest.approx(0.02)
        assert recorder.events == EVENTS
        assert recorder.outcomes == [Outcome.OK]
        feed.end(Outcome.CLIENT_GONE, lambda: pytest.fail("only the first end counts"))
        assert await hub.drain(1)
        assert recorder.outcomes == [Outcome.OK]


async def test_no_taps_no_feed(dispatch, plug, exchange, stream_head, response) -> None:
    async with running(dispatch) as hub:
        assert hub.open(exchange, stream_head) is None
        plug("uninterested", stream_tap=lambda: None)
        assert hub.open(exchange, stream_head) is None
        plug("tap", stream_tap=Recorder)
        assert hub.open(exchange, stream_head) is not None
        assert hub.open(exchange, response(status=101)) is None


async def test_one_dead_and_one_stalled(dispatch, tap, exchange, stream_head, autojump_clock) -> None:
    """200 chunks with a dead and a stalled observer: only they lose, and all of it is counted."""

    class Dead(Recorder):
        def event(self, event) -> None:
            super().event(event)
            raise ValueError

    class Stalled:
        def __init__(self) -> None:
            self.seen = 0

        async def event(self, event) -> None:
            self.seen += 1
            await trio.sleep_forever()

        async def end(self, outcome) -> None:
            pytest.fail("it was set aside before")

    class Slow(Recorder):
        async def event(self, event) -> None:
            await trio.sleep(0.001)
            super().event(event)

    dead, stalled, slow, good = Dead(), Stalled(), Slow(), Recorder()
    for name, value in [("dead", dead), ("stalled", stalled), ("slow", slow), ("good", good)]:
        tap(name, value)
    done = trio.Event()
    async with running(dispatch) as hub:
        feed = hub.open(exchange, stream_head)
        began = perf_counter()
        for chunk in CHUNKS * 2:
            feed.data(chunk)
        assert perf_counter() - began < 0.05
        feed.end(Outcome.OK, done.set)
        await done.wait()
        assert trio.current_time() < 1
        assert good.events == EVENTS * 2
        assert (good.missing, good.outcomes) == (0, [Outcome.OK])
        assert (len(dead.events), dead.outcomes) == (1, [])
        assert await hub.drain(60)
        assert dispatch.account("dead").failures == dispatch.account("stalled").failures == 1
        assert dispatch.account("stalled").error == "no answer within 5 s in stream_tap"
        assert stalled.seen == 1
        assert dispatch.account("slow").dropped == dispatch.account("stalled").dropped == 400 - 256
        assert slow.events == (EVENTS * 2)[:256]
        assert slow.missing == sum(map(len, (CHUNKS * 2)[256:]))
        assert slow.outcomes == [Outcome.OK]
        assert dispatch.account("good").dropped == 0


async def test_async_tap_that_keeps_up_loses_nothing(dispatch, tap, exchange, stream_head, autojump_clock) -> None:
    class Waits(Recorder):
        async def event(self, event) -> None:
            await trio.sleep(0)
            assert running_plugin.get() == "waits"
            super().event(event)

    waits = Waits()
    tap("waits", waits)
    async with running(dispatch) as hub:
        feed = hub.open(exchange, stream_head)
        for _ in range(5):
            for chunk in CHUNKS:
                feed.data(chunk)
            await trio.sleep(0.1)
        feed.end(Outcome.OK)
        assert await hub.drain(1)
        assert waits.events == EVENTS * 5
        assert (waits.missing, waits.outcomes) == (0, [Outcome.OK])
        assert dispatch.account("waits").failures == 0


async def test_failures_of_async_taps(dispatch, plug, exchange, stream_head, autojump_clock) -> None:
    class Child:
        async def event(self, event) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise KeyError

    plug("child", stream_tap=Child)
    async with running(dispatch) as hub:
        for round in range(5):
            assert not dispatch.account("child").quarantined
            feed = hub.open(exchange, stream_head)
            feed.data(CHUNKS[0])
            feed.data(CHUNKS[1])
            feed.end(Outcome.OK)
            assert await hub.drain(10)
            assert dispatch.account("child").failures == round + 1
        assert hub.open(exchange, stream_head) is None


async def test_hub_stopped_while_an_async_tap_runs(dispatch, plug, exchange, stream_head) -> None:
    class Stubborn:
        async def event(self, event) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError

    plug("stubborn", stream_tap=Stubborn)
    async with running(dispatch, interval=0) as hub:
        feed = hub.open(exchange, stream_head)
        feed.data(CHUNKS[0])
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert dispatch.account("stubborn").failures == 1


async def test_wrong_taps(dispatch, plug, exchange, stream_head) -> None:
    async def event(event) -> None: ...

    plug("nothing", stream_tap=lambda: object())
    plug("raises", stream_tap=lambda: 1 // 0)
    async with running(dispatch) as hub:
        assert hub.open(exchange, stream_head) is None
    assert dispatch.account("nothing").failures == dispatch.account("raises").failures == 1


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"identity"])
@pytest.mark.parametrize("size", [1, 100, 10**6])
async def test_coded_streams(dispatch, tap, exchange, response, coding, size, autojump_clock) -> None:
    recorder = Recorder()
    tap("tap", recorder)
    head = response((b"content-type", b"text/event-stream"), (b"content-encoding", coding))
    data = b"".join(CHUNKS)
    data = {b"gzip": gzip.compress, b"deflate": zlib.compress, b"identity": bytes}[coding](data)
    async with running(dispatch) as hub:
        feed = hub.open(exchange, head)
        for at in range(0, len(data), size):
            feed.data(data[at : at + size])
        feed.end(Outcome.OK)
        assert await hub.drain(1)
        assert recorder.events == EVENTS


@pytest.mark.parametrize("coding", [b"gzip", b"what"])
async def test_undecodable(dispatch, tap, exchange, response, coding, autojump_clock) -> None:
    recorder = Recorder()
    tap("tap", recorder)
    head = response((b"content-type", b"text/event-stream"), (b"content-encoding", coding))
    async with running(dispatch) as hub:
        feed = hub.open(exchange, head)
        feed.data(b"this is not coded")
        feed.data(b"nor is this")
        feed.end(Outcome.OK)
        assert await hub.drain(1)
        assert (recorder.events, recorder.missing, recorder.outcomes) == ([], 28, [Outcome.OK])
        assert hub.undecodable == 1
        assert dispatch.account("tap").failures == 0  # not its fault


async def test_truncated_coded_body_still_ends(dispatch, tap, exchange, response, autojump_clock) -> None:
    recorder = Recorder()
    tap("tap", recorder)
    async with running(dispatch) as hub:
        feed = hub.open(exchange, response((b"content-encoding", b"gzip")))
        feed.data(gzip.compress(b"x" * 100)[:-9])
        feed.end(Outcome.UPSTREAM_CUT)
        assert await hub.drain(1)
        assert recorder.outcomes == [Outcome.UPSTREAM_CUT]


async def test_other_bodies(dispatch, tap, exchange, response, autojump_clock) -> None:
    recorder = Recorder()
    tap("tap", recorder)
    async with running(dispatch) as hub:
        feed = hub.open(exchange, response((b"content-type", b"application/json")))
        body = bytes(range(256)) * 4096
        feed.data(body)
        feed.data(b"")
        feed.data(b"tail")
        feed.end(Outcome.OK)
        assert await hub.drain(1)
        assert b"".join(recorder.bodies) == body + b"tail"
        assert recorder.events == []


async def test_empty_answer(dispatch, tap, exchange, response, autojump_clock) -> None:
    recorder = Recorder()
    tap("tap", recorder)
    async with running(dispatch) as hub:
        feed = hub.open(exchange, response(status=204))
        feed.data(b"")
        feed.end(Outcome.OK)
        assert await hub.drain(1)
        assert recorder.outcomes == [Outcome.OK]


async def test_overflow_is_bounded_and_told(dispatch, tap, exchange, stream_head, autojump_clock) -> None:
    recorder, other = Recorder(), Recorder()
    tap("tap", recorder)
    async with running(dispatch, feed_limit=1000, interval=0.02) as hub:
        feed = hub.open(exchange, stream_head)
        for chunk in CHUNKS:
            feed.data(chunk)
        feed.data(b"x")  # behind a gap nothing can be shown any more, even if there is room
        feed.end(Outcome.OK)
        assert await hub.drain(1)
        shown = len(recorder.events)
        assert recorder.events == EVENTS[:shown]
        assert sum(map(len, CHUNKS[:shown])) <= 1000
        assert recorder.missing == sum(map(len, CHUNKS[shown:])) + 1
        assert recorder.outcomes == [Outcome.OK]
        assert [sample.value for sample in hub.samples()] == [1, 0, 0]
        assert (hub.overflowed, dispatch.account("tap").dropped) == (1, 200 - shown + 1)
        tap("other", other)
        feed = hub.open(exchange, stream_head)
        feed.data(CHUNKS[0])
        feed.end(Outcome.OK)
        await hub.drain(1)
        assert other.events == EVENTS[:1]


async def test_events_that_were_split_already(dispatch, tap, exchange, stream_head, autojump_clock) -> None:
    """The same as their bytes would be: order, slices, bound, loss and end."""
    recorder = Recorder()
    tap("tap", recorder)
    done = trio.Event()
    batches = [b"".join(CHUNKS[at : at + 20]) for at in range(0, 200, 20)]
    async with running(dispatch) as hub:
        feed = hub.open(exchange, stream_head)
        for batch in batches:
            feed.events(SseSplitter().feed(batch), len(batch))
        feed.events([], 7)
        assert recorder.events == []  # nothing inline
        feed.end(Outcome.OK, done.set)
        await done.wait()
        assert (recorder.events, recorder.outcomes, recorder.missing) == (EVENTS, [Outcome.OK], 0)
    async with running(dispatch, feed_limit=2 * sum(map(len, batches[:3]))) as hub:
        feed = hub.open(exchange, stream_head)
        for batch in batches:
            feed.events(SseSplitter().feed(batch), len(batch))
        feed.end(Outcome.OK)
        assert await hub.drain(1)
        assert recorder.events == EVENTS + EVENTS[:60]
        assert recorder.missing == sum(map(len, batches[3:]))
        assert hub.overflowed == 1
    async with running(dispatch, interval=1000, hurry_above=100) as hub:
        feed = hub.open(exchange, stream_head)
        feed.events(SseSplitter().feed(batches[0]), len(batches[0]))
        await trio.testing.wait_all_tasks_blocked()
        assert recorder.events[260:] == EVENTS[:20]  # much is waiting: not for the interval
        feed.events(SseSplitter().feed(batches[1]), len(batches[1]))
        await trio.testing.wait_all_tasks_blocked()
        assert recorder.events[280:] == EVENTS[20:40]


async def test_a_flood_is_served_before_the_interval(dispatch, tap, exchange, response, autojump_clock) -> None:
    recorder = Recorder()
    tap("tap", recorder)
    async with running(dispatch, interval=1000) as hub:
        feed = hub.open(exchange, response())
        for _ in range(64):
            feed.data(bytes(MIB // 2))
            await trio.sleep(0.001)
        assert trio.current_time() < 1
        assert sum(map(len, recorder.bodies)) >= 31 * MIB
        assert recorder.missing == 0


async def test_slices(dispatch, tap, exchange, stream_head) -> None:
    """A mountain of events does not keep the loop: others run between slices of 2 ms."""

    class Busy:
        def event(self, event) -> None:
            until = perf_counter() + 0.0001
            while perf_counter() < until:
                pass

    tap("busy", Busy())
    longest = 0.0
    done = trio.Event()
    async with running(dispatch) as hub:
        feed = hub.open(exchange, stream_head)
        feed.data(b"".join(CHUNKS) * 5)
        feed.end(Outcome.OK, done.set)
        turns = 0
        before = perf_counter()
        while not done.is_set():
            await trio.lowlevel.checkpoint()
            now = perf_counter()
            longest = max(longest, now - before)
            before, turns = now, turns + 1
    assert turns >= 20
    assert longest < 0.05  # 100 ms of work in slices of some 3 ms; the rest is for a busy machine


async def test_blocking_tap_is_detached(dispatch, tap, exchange, stream_head) -> None:
    class Blocks:
        calls = 0

        def event(self, event) -> None:
            self.calls += 1
            until = perf_counter() + 0.055
            while perf_counter() < until:
                pass

    blocks, good = Blocks(), Recorder()
    tap("blocks", blocks)
    tap("good", good)
    async with running(dispatch, interval=0) as hub:
        feed = hub.open(exchange, stream_head)
        for chunk in CHUNKS[:8]:
            feed.data(chunk)
            await trio.sleep(0.001)
        feed.end(Outcome.OK)
        assert await hub.drain(5)
    assert dispatch.account("blocks").slow == 5
    assert "blocks the event loop" in dispatch.account("blocks").error
    assert good.events == EVENTS[:8]


async def test_end_after_the_hub_stopped(dispatch, tap, exchange, stream_head) -> None:
    ended = []
    tap("tap", Recorder())
    async with running(dispatch) as hub:
        queued = hub.open(exchange, stream_head)
        later = hub.open(exchange, stream_head)
        queued.data(CHUNKS[0])
        queued.end(Outcome.OK, lambda: ended.append("queued"))
        later.data(CHUNKS[0])
    assert ended == ["queued"]
    later.end(Outcome.OK, lambda: ended.append("later"))
    assert ended == ["queued", "later"]
    assert hub.open(exchange, stream_head) is None


async def test_hub_stopped_in_the_middle_of_an_answer(dispatch, plug, exchange, stream_head) -> None:
    class Slow(Recorder):
        def event(self, event) -> None:
            super().event(event)
            until = perf_counter() + 0.001
            while perf_counter() < until:
                pass

    slow, ended = Slow(), []
    plug("slow", stream_tap=lambda: slow)
    async with running(dispatch, interval=0) as hub:
        for name in ("first", "second"):
            feed = hub.open(exchange, stream_head)
            feed.data(b"".join(CHUNKS))
            feed.end(Outcome.OK, partial(ended.append, name))
        while not slow.events:
            await trio.lowlevel.checkpoint()
    assert 0 < len(slow.events) < 200
    assert ended == ["first", "second"]


async def test_callback_that_fails_is_ours(dispatch, tap, exchange, stream_head) -> None:
    tap("tap", Recorder())
    hub = TapHub(dispatch, interval=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        for _ in range(2):
            hub.open(exchange, stream_head).end(Outcome.OK, lambda: 1 // 0)
        assert await hub.drain(1)
        assert hub.errors == 2
        nursery.cancel_scope.cancel()


async def test_drain_gives_up(dispatch, plug, exchange, stream_head, autojump_clock) -> None:
    class Hangs:
        async def end(self, outcome) -> None:
            await trio.sleep_forever()

    plug("hangs", stream_tap=Hangs)
    async with running(dispatch) as hub:
        hub.open(exchange, stream_head).end(Outcome.OK)
        assert not await hub.drain(1)
        assert await hub.drain(10)


async def test_quiet_process_does_not_wake(dispatch, tap, exchange, stream_head, mock_clock) -> None:
    """Between answers the pump sleeps without a timer."""
    tap("tap", Recorder())
    async with running(dispatch) as hub:
        feed = hub.open(exchange, stream_head)
        feed.data(CHUNKS[0])
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(0.03)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
