"""Filters in a stream: one that changes nothing is not seen, one that changes something changes just that."""

from __future__ import annotations

import pytest
import trio
from blackbox import STREAM, Watcher, raw_upstream, read_response, request
from rig import read_exactly, read_head

from dbproxy.api import Fields, LocalResponse, Outcome, encode_event, hookimpl
from dbproxy.testing.origin import say


class Filter:
    """What ``feed`` does is given; ``tail`` follows the last event."""

    def __init__(self, feed=lambda event: None, tail=b""):
        self._feed, self.tail, self.kinds = feed, tail, []

    @hookimpl
    def stream_filter(self, exchange, head):
        return self

    def feed(self, event):
        self.kinds.append(event.name)
        return self._feed(event)

    def end(self):
        return self.tail


async def asked(r, *, version="1.1", body=STREAM):
    stream = await r.tls()
    await stream.send_all(request(body=body, version=version))
    return await read_response(stream)


@pytest.mark.parametrize("feed", [lambda event: None, lambda event: event.raw, lambda event: [event.raw]])
@pytest.mark.parametrize("chunk_size", [0, 1, 7, 4096])
async def test_a_filter_that_changes_nothing_is_not_seen(rig, feed, chunk_size):
    text = "zażółć 漢字 🙂 " * 20
    async with rig(say(text, chunk_size=chunk_size), plugins=(("filter", Filter(feed)),)) as r:
        answer = await asked(r)
        sent = r.origin.requests[0].sent
        assert answer.head == sent.head
        assert answer.body == bytes(sent.body)


@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_events_are_dropped_changed_and_added(rig, version, framing):
    def feed(event):
        if event.name == b"ping":
            return b""
        if event.name == b"message_start":
            return [event.raw, encode_event(b"hello", b'{"type": "hello"}')]
        if event.name == b"content_block_delta":
            return event.raw.replace(b"word", b"WORD")
        return None

    plugin = Filter(feed, tail=encode_event(b"bye", b'{"type": "bye"}'))
    script = say("word " * 20, framing=framing, first_byte_delay=0.2, ping_every=0.05)
    async with rig(script, plugins=(("filter", plugin),)) as r:
        answer = await asked(r, version=version)
        sent = bytes(r.origin.requests[0].sent.body)
        assert b"ping" in plugin.kinds
        assert b"event: ping" in sent
        assert b"event: ping" not in answer.body
        assert answer.body.count(b"event: hello") == 1
        assert answer.body.endswith(encode_event(b"bye", b'{"type": "bye"}'))
        assert answer.body.count(b"WORD") == sent.count(b"word")
        assert b"word" not in answer.body


async def test_an_event_is_held_back_until_it_is_complete_and_no_longer(rig, tmp_path):
    async def slowly(stream):
        await read_head(stream)
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"14\r\nevent: a\ndata: 1\n\nev\r\n"
        )
        await trio.sleep(0.5)
        await stream.send_all(b"10\r\nent: b\ndata: 2\n\n\r\n0\r\n\r\n")
        await trio.sleep(1)

    async with raw_upstream(slowly, tmp_path) as up, rig(**up.settings, plugins=(("filter", Filter()),)) as r:
        stream = await r.tls()
        await stream.send_all(request(body=STREAM))
        began = trio.current_time()
        _, rest = await read_head(stream)
        while b"data: 1\n\n" not in rest:
            rest += await stream.receive_some()
        assert trio.current_time() - began < 0.4
        assert b"ev\r\n" not in rest
        while not rest.endswith(b"0\r\n\r\n"):
            rest += await stream.receive_some()
        assert rest.index(b"event: b\ndata: 2\n\n") > 0


async def test_a_filter_that_raises_is_taken_out_and_the_stream_goes_on(rig):
    def feed(event):
        raise RuntimeError("broken plugin")

    watcher = Watcher()
    async with rig(say("word " * 200), plugins=(("filter", Filter(feed)), ("watcher", watcher))) as r:
        answer = await asked(r)
        assert answer.body == bytes(r.origin.requests[0].sent.body)
        assert await watcher.outcomes() == [Outcome.OK]


@pytest.mark.parametrize("how", [{"coding": "gzip"}, {"framing": "length"}])
async def test_what_a_filter_cannot_read_passes_by(rig, how):
    plugin = Filter(lambda event: b"")
    async with rig(say("word " * 20, **how), plugins=(("filter", plugin),)) as r:
        answer = await asked(r)
        assert answer.body == bytes(r.origin.requests[0].sent.body)
        assert plugin.kinds == []


async def test_trailers_stand_behind_filtered_events(rig):
    async with rig(say("word", trailers=(("x-sum", "1"),)), plugins=(("filter", Filter()),)) as r:
        answer = await asked(r)
        assert answer.framed.endswith(b"0\r\nx-sum: 1\r\n\r\n")


class Local:
    """Answers by itself."""

    def __init__(self, response):
        self.response = response

    @hookimpl
    def intercept_request(self, exchange):
        return self.response


async def test_an_answer_of_a_plugin_is_streamed_as_it_is_made(rig):
    async def make(send):
        await send(b"one ")
        await trio.sleep(0.4)
        await send(b"two")

    response = LocalResponse(200, Fields.of([(b"content-type", b"text/event-stream")]), stream=make)
    watcher = Watcher()
    async with rig(plugins=(("local", Local(response)), ("watcher", watcher))) as r:
        stream = await r.tls()
        for _ in range(2):
            await stream.send_all(request())
            began = trio.current_time()
            _, rest = await read_head(stream)
            rest = await read_exactly(stream, 9, rest)
            assert rest == b"4\r\none \r\n"
            assert trio.current_time() - began < 0.3
            assert await read_exactly(stream, 13) == b"3\r\ntwo\r\n0\r\n\r\n"
        assert await watcher.outcomes(2) == [Outcome.LOCAL] * 2
        assert not r.origin.requests


async def test_an_answer_of_a_plugin_that_breaks_off_is_broken_for_the_client(rig):
    async def make(send):
        await send(b"one ")
        raise RuntimeError("no more")

    response = LocalResponse(200, Fields.of([]), stream=make)
    from blackbox import read_broken, strict

    async with rig(plugins=(("local", Local(response)),)) as r:
        stream = strict(await r.tls())
        await stream.send_all(request())
        got, ended = await read_broken(stream)
        assert ended != "eof"
        assert b"0\r\n\r\n" not in got
