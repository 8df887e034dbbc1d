"""A client that does not read, or sleeps, holds its upstream back: bounded memory, no limit of time, nothing lost."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
import trio
from blackbox import Watcher, raw_upstream, read_response, request
from rig import read_exactly, read_head

from dbproxy.api import Outcome, hookimpl
from dbproxy.testing.origin import say

MB = 1 << 20
PIECE = bytes(range(256)) * 256


def fountain(size, sent):
    """Sends ``size`` bytes as fast as they are taken, and counts them."""

    async def handler(stream):
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent[0] < size:
            await stream.send_all(PIECE)
            sent[0] += len(PIECE)
        await trio.sleep(5)

    return handler


async def settled(sent):
    """Wait until nothing moves any more; how much was taken by then."""
    last = -1
    while sent[0] != last:
        last = sent[0]
        await trio.sleep(0.4)
    return last


class Tap:
    """Costs what a tap costs."""

    @hookimpl
    def stream_tap(self, exchange, head):
        return self

    def body(self, data):
        pass


@pytest.mark.parametrize("tapped", [False, True])
async def test_a_client_that_does_not_read_stops_the_upstream(rig, tmp_path, tapped):
    size, sent = 96 * MB, [0]
    watcher = Watcher()
    plugins = (("watcher", watcher), *((("tap", Tap()),) if tapped else ()))
    async with raw_upstream(fountain(size, sent), tmp_path) as up, rig(**up.settings, plugins=plugins) as r:
        r.proxy.settings = replace(r.proxy.settings, upstream_silence_timeout=0.5)
        stream = await r.tls()
        await stream.send_all(request("/v1/files", method="GET", body=None))
        tracemalloc.start()
        try:
            stopped = await settled(sent)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert stopped < 40 * MB  # the kernel's buffers on both sides
        assert peak < 8 * MB
        # A client that was stopped is not late: the sweeper, told to be impatient, passes by several times.
        await trio.sleep(2.2)
        assert sent[0] == stopped
        head, rest = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 200 ")
        count = 0
        while True:
            for at in range(0, len(rest), len(PIECE)):
                piece = rest[at : at + len(PIECE)]
                start = (count + at) % 256
                assert piece == (PIECE + PIECE)[start : start + len(piece)]
            count += len(rest)
            if count >= size:
                break
            rest = await stream.receive_some(MB)
            assert rest
        assert count == size
        assert await watcher.outcomes() == [Outcome.OK]


async def test_an_upstream_that_does_not_read_stops_the_client(rig):
    rules = [{"match": {"path": "/v1/files"}, "answer": {"body": "ok", "read_delay": 2.0}}]
    async with rig(rules) as r:
        stream = await r.tls()
        size = 64 * MB
        taken = [0]

        async def send():
            await stream.send_all(request("/v1/files", body=None, extra=f"Content-Length: {size}\r\n"))
            while taken[0] < size:
                await stream.send_all(PIECE)
                taken[0] += len(PIECE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(1.5)
            assert 0 < taken[0] < 40 * MB
            with trio.fail_after(60):
                assert (await read_response(stream)).body == b"ok"
        assert r.origin.requests[0].size == size


async def test_a_stopped_client_holds_nobody_else_up(rig, tmp_path):
    async with rig() as r:
        sent = [0]
        async with raw_upstream(fountain(64 * MB, sent), tmp_path, tls=False) as up:
            lazy = await r.plain()
            target = f"http://127.0.0.1:{up.port}/x"
            await lazy.send_all(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{up.port}\r\n\r\n".encode())
            await settled(sent)
            assert 0 < sent[0] < 40 * MB
            stream = await r.tls()
            began = trio.current_time()
            for _ in range(20):
                await stream.send_all(request())
                assert (await read_response(stream)).status == 200
            assert trio.current_time() - began < 5


async def test_a_slow_tap_loses_only_its_own_events(rig):
    """It is told how much it missed; the client gets every byte at its own pace."""

    class Slow:
        def __init__(self):
            self.seen, self.lost_bytes, self.ended = 0, 0, trio.Event()

        @hookimpl
        def stream_tap(self, exchange, head):
            return self

        async def event(self, event):
            self.seen += len(event.raw)
            await trio.sleep(0.02)

        async def lost(self, count):
            self.lost_bytes += count

        async def end(self, outcome):
            self.ended.set()

    class Quick(Slow):
        async def event(self, event):
            self.seen += len(event.raw)

    slow, quick = Slow(), Quick()
    async with rig(say("word " * 40_000, delta_chars=50), plugins=(("slow", slow), ("quick", quick))) as r:
        stream = await r.tls()
        began = trio.current_time()
        from blackbox import STREAM

        await stream.send_all(request(body=STREAM))
        answer = await read_response(stream)
        took = trio.current_time() - began
        assert answer.framed == bytes(r.origin.requests[0].sent.framed)
        assert took < 10
        with trio.fail_after(30):
            await quick.ended.wait()
            await slow.ended.wait()
        assert slow.lost_bytes > 0
        assert slow.seen + slow.lost_bytes == len(answer.body)
        assert quick.seen + quick.lost_bytes == len(answer.body)
        assert quick.lost_bytes < slow.lost_bytes


async def test_a_reader_of_one_byte_at_a_time(rig):
    async with rig(say("word " * 30)) as r:
        stream = await r.plain()
        await stream.send_all(request())
        head, got = await read_head(stream)
        assert head
        size = len(r.origin.requests[0].sent.framed)
        while len(got) < size:
            got += await read_exactly(stream, 1)
        assert got == bytes(r.origin.requests[0].sent.framed)
