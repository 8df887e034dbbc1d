"""The live feed: order, resuming, slow listeners, heartbeats, its end; and the same over real connections."""

from __future__ import annotations

import json
import threading

import pytest
import trio
from rig import HOST, read_head

from dbproxy.app.client import ClientGone
from dbproxy.app.live import LiveFeed
from dbproxy.model.link import Agent, Edge, Link, RequestKind
from dbproxy.model.record import ExchangeClosed, ExchangeLinked, ExchangeOpened
from dbproxy.model.usage import Usage
from dbproxy.testing.origin import say


def parse(data):
    """The blocks of an event stream: dicts of their fields, data as JSON, comments under ''."""
    made = []
    for block in data.decode().split("\n\n"):
        fields = {}
        for line in block.splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        if fields:
            made.append(fields | ({"data": json.loads(fields["data"])} if "data" in fields else {}))
    return made


class Listener:
    """Takes what the feed sends, as slowly as it is told to."""

    def __init__(self, feed, nursery, **how):
        self.got = b""
        self.gate = trio.Event()
        self.gate.set()
        self.ending = False
        nursery.start_soon(self.run, feed, how)

    async def run(self, feed, how):
        await feed.stream(self.send, ending=lambda: self.ending, **how)

    async def send(self, data):
        await self.gate.wait()
        self.got += data

    @property
    def events(self):
        return [block for block in parse(self.got) if "event" in block]

    def names(self):
        return [block["event"] for block in self.events]


@pytest.fixture
def feed():
    return LiveFeed(events=8, clock=lambda: 1_700_000_000.5)


async def test_events_arrive_in_order_with_ids(feed, nursery, autojump_clock):
    feed.emit("before")
    listener = Listener(feed, nursery)
    await trio.sleep(0.01)
    feed.emit("one", exchange_id="x", model="", scope=None, streamed=False)
    feed.line(b'{"timestamp":"t","level":"info","event":"two","message":"a\\nb"}\n')
    await trio.sleep(0.01)
    opened, one, two = listener.events
    assert opened["event"] == "feed_opened"
    assert opened["retry"] == "2000"
    assert opened["id"] == f"{feed.instance}-1"
    assert (one["id"], two["id"]) == (f"{feed.instance}-2", f"{feed.instance}-3")
    assert one["data"] == {
        "timestamp": "2023-11-14T22:13:20.500Z",
        "level": "info",
        "event": "one",
        "exchange_id": "x",
        "streamed": False,
    }
    assert two["event"] == "two"
    assert two["data"]["message"] == "a\nb"


async def test_a_listener_resumes_where_it_was(feed, nursery, autojump_clock):
    for number in range(4):
        feed.emit(f"event{number}")
    listener = Listener(feed, nursery, after=f"{feed.instance}-2")
    await trio.sleep(0.01)
    assert listener.names() == ["feed_opened", "event2", "event3"]
    assert listener.events[0]["data"]["resumed"] is True
    assert listener.events[0]["id"] == f"{feed.instance}-2"


async def test_resuming_behind_the_ring_says_what_is_lost(feed, nursery, autojump_clock):
    for number in range(20):
        feed.emit(f"event{number}")
    listener = Listener(feed, nursery, after=f"{feed.instance}-2")
    await trio.sleep(0.01)
    assert listener.names() == ["feed_opened", "events_lost", *(f"event{number}" for number in range(12, 20))]
    assert listener.events[1]["data"]["count"] == 10
    # Whoever breaks off right here is told nothing twice.
    assert listener.events[1]["id"] == f"{feed.instance}-12"


@pytest.mark.parametrize("after", ["deadbeef-1", "x", "{}-99", "{}-", "{}-1 ", "{}-\u0661", "\x00"])
async def test_an_id_of_another_process_begins_anew_and_says_so(feed, nursery, autojump_clock, after):
    feed.emit("old")
    listener = Listener(feed, nursery, after=after.format(feed.instance))
    await trio.sleep(0.01)
    feed.emit("new")
    await trio.sleep(0.01)
    assert listener.names() == ["feed_opened", "new"]
    assert listener.events[0]["data"]["lost"] == "unknown"
    assert listener.events[0]["data"]["resumed"] is False


async def test_a_slow_listener_loses_and_is_told_and_holds_nobody_up(feed, nursery, autojump_clock):
    slow, quick = Listener(feed, nursery), Listener(feed, nursery)
    await trio.sleep(0.01)
    slow.gate = trio.Event()
    for number in range(30):
        feed.emit(f"event{number}")
        await trio.sleep(0.01)
    assert quick.names() == ["feed_opened", *(f"event{number}" for number in range(30))]
    slow.gate.set()
    await trio.sleep(0.01)
    names = slow.names()
    # The one that was under way, the word about those that are gone, and what the ring holds.
    assert names == ["feed_opened", "event0", "events_lost", *(f"event{number}" for number in range(22, 30))]
    assert slow.events[2]["data"]["count"] == 21


async def test_the_ring_is_bounded_in_bytes(nursery, autojump_clock):
    feed = LiveFeed(size=10_000)
    for number in range(50):
        feed.emit(f"event{number}", message="x" * 1000)
    listener = Listener(feed, nursery, after=f"{feed.instance}-0")
    await trio.sleep(0.01)
    assert 5 <= len(listener.names()) - 2 <= 10
    assert listener.names()[-1] == "event49"
    feed.emit("huge", message="x" * 50_000)  # the newest is kept, whatever its size
    await trio.sleep(0.01)
    assert listener.names()[-1] == "huge"


async def test_silence_is_filled_with_comments(feed, nursery, autojump_clock):
    listener = Listener(feed, nursery, heartbeat=15.0)
    await trio.sleep(46)
    assert [block for block in parse(listener.got) if "" in block] == [{"": "heartbeat"}] * 3
    feed.emit("later")
    await trio.sleep(0.01)
    assert listener.names()[-1] == "later"


async def test_events_of_other_threads_wake_a_listener(feed, nursery):
    listener = Listener(feed, nursery)
    await trio.sleep(0.05)
    thread = threading.Thread(target=feed.emit, args=("from_a_thread",))
    thread.start()
    with trio.fail_after(0.9):  # less than the time after which it would look by itself
        while listener.names()[-1] != "from_a_thread":
            await trio.sleep(0.01)
    thread.join()


async def test_the_end_of_the_proxy_ends_the_stream(feed, nursery, autojump_clock):
    listener = Listener(feed, nursery)
    await trio.sleep(0.01)
    assert feed.listeners == 1
    listener.ending = True
    await trio.sleep(1.5)
    assert feed.listeners == 0
    assert parse(listener.got)[-1] == {"": "the proxy ends"}


async def test_a_listener_that_stopped_reading_is_let_go(feed, autojump_clock):
    with pytest.raises(ClientGone):
        await feed.stream(_never)
    assert trio.current_time() >= 60
    assert feed.listeners == 0


async def _never(data):
    await trio.sleep_forever()


def test_emitting_after_the_loop_ended_does_no_harm(feed):
    async def once():
        with trio.move_on_after(0.01):
            await feed.stream(_swallow)

    trio.run(once)
    feed.emit("late")


async def _swallow(data):
    pass


AGENT = Agent("a1", type="Explore", name="scout", number=2)
LINK = Link("e1", "s1", "a1", 1, RequestKind.SUBAGENT, parent="e0", edge=Edge.SPAWN, agent=AGENT)


async def test_exchanges_are_told_without_content(feed, nursery, autojump_clock):
    listener = Listener(feed, nursery)
    await trio.sleep(0.01)
    headers = (("authorization", "hmac:0123456789abcdef"),)
    feed.record(
        ExchangeOpened(
            "e1", 5.0, "POST", "api.anthropic.com", "/v1/messages", "tunnel", scope="sc", model="m", headers=headers
        ),
        LINK,
    )
    feed.record(ExchangeLinked(LINK), scope="sc")
    usage = Usage(input_tokens=1, output_tokens=2, cache_read=3, cache_write_5m=4)
    feed.record(
        ExchangeClosed(
            "e1", 6.0, "ok", 200, first_byte_ms=1.234, headers=headers, usage=usage, cost_usd=0.5, message=b"secret"
        ),
        LINK,
        "sc",
    )
    feed.record(ExchangeClosed("e2", 7.0, "cut", error="the upstream closed"))
    feed.record(ExchangeOpened("e3", 5.0, "GET", "h", "/\udc80", "tunnel", project="/home/\udcff"))
    await trio.sleep(0.01)
    assert b"hmac" not in listener.got
    assert b"secret" not in listener.got
    _, opened, linked, closed, cut, odd = (block["data"] for block in listener.events)
    for facts in (opened, linked, closed):
        assert (facts["exchange_id"], facts["conv_id"], facts["scope"], facts["kind"]) == ("e1", "s1", "sc", "subagent")
        assert facts["agent"] == {"number": 2, "type": "Explore", "name": "scout"}
    assert opened["timestamp"] == "1970-01-01T00:00:05.000Z"
    assert (closed["context_tokens"], closed["cost_usd"], closed["first_byte_ms"]) == (10, 0.5, 1.23)
    assert "duration_ms" not in closed
    assert (cut["level"], cut["outcome"], "conv_id" in cut) == ("warning", "cut", False)
    assert odd["exchange_id"] == "e3"


# -- over real connections --------------------------------------------------------------------------------------------


async def listen(r, *fields, token=True):
    stream = await r.plain()
    lines = ["GET /api/events HTTP/1.1", f"Host: 127.0.0.1:{r.running.port}", *fields]
    if token:
        lines.append(f"Authorization: Bearer {r.proxy.token}")
    await stream.send_all("\r\n".join([*lines, "", ""]).encode())
    head, rest = await read_head(stream)
    return stream, head.lower(), rest


async def until(stream, seen, wanted):
    with trio.fail_after(5):
        while wanted not in seen:
            data = await stream.receive_some()
            assert data, seen
            seen += data
    return seen


async def test_the_journal_can_be_listened_to(rig):
    async with rig() as r:
        stream, head, seen = await listen(r)
        assert head.startswith(b"http/1.1 200 ")
        assert b"content-type: text/event-stream" in head
        assert b"cache-control: no-store" in head
        seen = await until(stream, seen, b"feed_opened")
        r.proxy.journal.emit("phase_transition", trigger="x", message="Bearer abcdefgh12345678")
        seen = await until(stream, seen, b"event: phase_transition")
        seen = await until(stream, seen, b"}\n\n")
        assert b"abcdefgh12345678" not in seen
        await stream.aclose()


async def test_listening_needs_the_token(rig):
    async with rig() as r:
        _, head, _ = await listen(r, token=False)
        assert head.startswith(b"http/1.1 401 ")
        assert not r.origin.requests


async def test_a_listener_does_not_hold_up_the_end(rig):
    async with rig(drain_timeout="30") as r:
        stream, _, seen = await listen(r)
        await until(stream, seen, b"feed_opened")
        started = trio.current_time()
        r.running.stop()
    assert trio.current_time() - started < 5


async def test_there_are_only_so_many_listeners(rig, monkeypatch):
    monkeypatch.setattr("dbproxy.app.api.LISTENERS", 1)
    async with rig() as r:
        stream, _, seen = await listen(r)
        await until(stream, seen, b"feed_opened")
        _, head, _ = await listen(r)
        assert head.startswith(b"http/1.1 529 ")


async def test_last_event_id_is_understood(rig):
    async with rig() as r:
        stream, _, seen = await listen(r)
        seen = await until(stream, seen, b"feed_opened")
        last = parse(seen.partition(b"\r\n")[2].rpartition(b"\r\n")[0])[0]["id"]
        await stream.aclose()
        r.proxy.journal.emit("while_away")
        stream, _, seen = await listen(r, f"Last-Event-ID: {last}")
        await until(stream, seen, b"event: while_away")


async def test_a_request_is_followed_from_its_beginning_to_its_end(rig):
    body = json.dumps({"model": "claude-opus-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "zebra"}]})
    async with rig(say("A secret answer.")) as r:
        stream, _, seen = await listen(r)
        seen = await until(stream, seen, b"feed_opened")
        tunnel = await r.tls()
        await tunnel.send_all(
            f"POST /v1/messages HTTP/1.1\r\nHost: {HOST}\r\nx-claude-code-session-id: session-0001\r\n"
            f"x-api-key: sk-ant-0123456789\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        seen = await until(stream, seen, b"event: exchange_closed")
        for word in (b"zebra", b"secret answer", b"sk-ant"):
            assert word not in seen
        assert b"event: exchange_opened" in seen
        assert b'"conv_id":"session-0001"' in seen
