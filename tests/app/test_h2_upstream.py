"""HTTP/2 towards upstreams, where the setting allows it and the server offers it."""

from __future__ import annotations

import pytest
import trio
from blackbox import BODY, STREAM, Watcher, read_broken, read_response, request, transport
from h2client import H2Client
from h2upstream import h2_upstream
from rig import HOST, read_exactly, read_head

from dbproxy.api import Outcome

CANCEL, INTERNAL_ERROR = 8, 2


async def echo(asked):
    await asked.ended.wait()
    await asked.answer(asked.body or b"nothing", ("x-mixed", "yes"))


async def test_a_request_and_its_answer(rig, tmp_path):
    async with h2_upstream(echo, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        for _ in range(3):
            await stream.send_all(request())
            answer = await read_response(stream)
            assert (answer.status, answer.body) == (200, BODY)
            assert answer.fields["x-mixed"] == "yes"
        (connection,) = up.connections
        first = up.requests[0].pairs
        assert first[:4] == [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", f"127.0.0.1:{up.port}".encode()),
            (b":path", b"/v1/messages?beta=true"),
        ]
        assert (b"x-odd", b"two blanks") in first
        assert not {b"connection", b"host", b"transfer-encoding"} & {name for name, _ in first}
        assert len(connection.requests) == 3


async def test_it_is_off_unless_asked_for(rig, tmp_path):
    async with h2_upstream(echo, tmp_path) as up, rig(**up.settings | {"upstream_http2": "false"}) as r:
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 502  # this server speaks nothing else
        assert not up.connections


async def test_a_server_without_it_gets_http1(rig):
    async with rig(upstream_http2="true") as r:
        stream = await r.tls()
        for _ in range(3):
            await stream.send_all(request())
            assert (await read_response(stream)).status == 200
        assert {received.version for received in r.origin.requests} == {"HTTP/1.1"}
        assert len({received.connection.number for received in r.origin.requests}) == 1


async def test_requests_at_once_share_a_connection(rig, tmp_path):
    async def slow(asked):
        await asked.ended.wait()
        await trio.sleep(0.2)
        await asked.answer(asked.body)

    async with h2_upstream(slow, tmp_path) as up, rig(**up.settings) as r:
        client = await H2Client.open(r)
        await client.get()
        numbers = {await client.ask("POST", "/x", b"%d" % n): b"%d" % n for n in range(50)}
        for number, body in numbers.items():
            assert (await client.answer(number)).body == body
        assert len(up.connections) == 1
        (mux,) = next(iter(r.proxy.egresses.all()[0].pool._muxes.values()))
        with trio.fail_after(2):
            while mux.streams:
                await trio.sleep(0.01)
        assert mux.wire.open_streams() == 0


async def test_more_requests_than_the_server_takes_open_another_connection(rig, tmp_path):
    async def slow(asked):
        await asked.ended.wait()
        await trio.sleep(0.2)
        await asked.answer(b"ok")

    async with h2_upstream(slow, tmp_path, MAX_CONCURRENT_STREAMS=3) as up, rig(**up.settings) as r:
        client = await H2Client.open(r)
        await client.get()
        numbers = [await client.ask() for _ in range(8)]
        assert [(await client.answer(number)).status for number in numbers] == [200] * 8
        assert 2 <= len(up.connections) <= 8


@pytest.mark.parametrize("size", [0, 100, 3_000_000])
@pytest.mark.parametrize("chunks", [0, 50_000])
async def test_bodies_of_any_size_both_ways(rig, tmp_path, size, chunks):
    async with h2_upstream(echo, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        body = b"x" * size
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, request(body=body, chunks=chunks))
                answer = await read_response(stream)
        assert answer.body == (body or b"nothing")


async def test_an_event_stream_arrives_event_by_event_and_in_chunks(rig, tmp_path):
    async def events(asked):
        await asked.head(200, ("content-type", "text/event-stream"))
        for n in range(5):
            await asked.send(b"event: x\ndata: %d\n\n" % n)
            await trio.sleep(0.2)
        await asked.send(b"", end=True)

    async with h2_upstream(events, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request(body=STREAM))
        began = trio.current_time()
        head, rest = await read_head(stream)
        assert b"transfer-encoding: chunked" in head
        while b"data: 0" not in rest:
            rest += await stream.receive_some()
        assert trio.current_time() - began < 0.5
        while not rest.endswith(b"0\r\n\r\n"):
            rest += await stream.receive_some()
        assert trio.current_time() - began > 0.7


async def test_informational_heads_trailers_and_answers_without_a_body(rig, tmp_path):
    async def handler(asked):
        await asked.ended.wait()
        if asked.get(b":method") == b"HEAD":
            await asked.head(200, ("content-length", "5"), end=True)
        elif asked.get(b":path") == b"/empty":
            await asked.head(204, end=True)
        else:
            await asked.head(103, ("link", "</a>"))
            await asked.head(200)
            await asked.send(b"abc")
            asked.server.conn.send_headers(asked.number, [("x-sum", "7")], end_stream=True)
            await asked.server.flush()

    async with h2_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request("/empty", method="GET", body=None))
        head, _ = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 204 ")
        await stream.send_all(request(method="HEAD", body=None))
        head, _ = await read_head(stream)
        assert b"content-length: 5" in head
        await stream.send_all(request())
        head, rest = await read_head(stream)
        assert head == b"HTTP/1.1 103 \r\nlink: </a>\r\n\r\n"
        head, rest = await read_head(stream, rest)
        tail = b"3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"
        assert await read_exactly(stream, len(tail), rest) == tail


@pytest.mark.parametrize("how", ["reset", "cut", "goaway", "short"])
async def test_an_answer_that_was_cut_never_ends_cleanly(rig, tmp_path, how):
    async def handler(asked):
        await asked.head(200, ("content-length", "100")) if how == "short" else await asked.head(200)
        await asked.send(b"part")
        await trio.sleep(0.1)
        if how == "reset":
            await asked.cancel(INTERNAL_ERROR)
        elif how == "goaway":
            await asked.server.goaway(asked.number, INTERNAL_ERROR)
        elif how == "short":
            await asked.server.flush(bytes((0, 0, 0, 0, 1)) + asked.number.to_bytes(4, "big"))
        else:
            transport(asked.server.stream).socket.close()

    async with (
        h2_upstream(handler, tmp_path) as up,
        rig(plugins=(("watch", watcher := Watcher()),), **up.settings) as r,
    ):
        stream = await r.tls()
        stream._https_compatible = False
        await stream.send_all(request())
        got, ended = await read_broken(stream)
        assert b"part" in got
        assert not got.endswith(b"0\r\n\r\n")
        assert ended != "eof"
        assert await watcher.outcomes() == [Outcome.UPSTREAM_CUT]


async def test_no_answer_at_all_is_an_error_that_is_retried(rig, tmp_path):
    async def handler(asked):
        await asked.cancel(7)

    async with h2_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 502


async def test_a_graceful_goaway_lets_the_answer_finish_and_the_next_goes_elsewhere(rig, tmp_path):
    """h2 #1181; style: the stream under way completes, nothing new begins on the connection."""

    async def handler(asked):
        await asked.ended.wait()
        await asked.head(200)
        await asked.send(b"first ")
        if asked.get(b":path") == b"/last":
            await asked.server.goaway(asked.number)
            await trio.sleep(0.3)
        await asked.send(b"last", end=True)

    async with h2_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request("/last"))
        assert (await read_response(stream)).body == b"first last"
        await stream.send_all(request("/next"))
        assert (await read_response(stream)).body == b"first last"
        assert len(up.connections) == 2
        with trio.fail_after(5):
            await up.connections[0].closed.wait()


async def test_a_client_that_goes_resets_its_stream_and_no_other(rig, tmp_path):
    async def handler(asked):
        await asked.ended.wait()
        if asked.get(b":path") == b"/slow":
            await asked.gone.wait()
        else:
            await asked.answer(b"ok")

    async with h2_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request("/quick"))
        assert (await read_response(stream)).body == b"ok"
        leaves = await r.tls()
        await leaves.send_all(request("/slow"))
        with trio.fail_after(5):
            while len(up.requests) < 2:
                await trio.sleep(0.01)
        transport(leaves).socket.close()
        with trio.fail_after(1):
            await up.requests[1].gone.wait()
        assert up.requests[1].reset == CANCEL
        await stream.send_all(request("/quick"))
        assert (await read_response(stream)).body == b"ok"
        assert len(up.connections) == 1


async def test_200_cancelled_streams_leave_nothing_behind(rig, tmp_path):
    async def handler(asked):
        await asked.head(200)
        await asked.send(b"x" * 20_000)
        await asked.gone.wait()

    async with h2_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        client = await H2Client.open(r)
        for _ in range(10):
            numbers = [await client.ask("POST", "/x", b"y" * 5000) for _ in range(20)]
            await client.until(lambda numbers=numbers: all(client.answers[n].body for n in numbers))
            for number in numbers:
                client.conn.reset_stream(number, CANCEL)
            await client.flush()
        with trio.fail_after(5):
            while r.proxy.counters.exchanges_open:
                await trio.sleep(0.01)
        for muxes in r.proxy.egresses.all()[0].pool._muxes.values():
            for mux in muxes:
                await trio.sleep(0.1)
                assert not mux.streams
                assert not mux.unnumbered
                assert not mux._blocked
                assert mux.wire.open_streams() == 0
                assert mux.wire.windows()[0] >= (100 << 20) - 16384
        assert len(up.requests) == 200


async def test_a_server_that_answers_before_it_read_everything(rig, tmp_path):
    async def handler(asked):
        await asked.answer(b"too large", status=413)
        await asked.cancel(0)

    async with h2_upstream(handler, tmp_path, acknowledge=False) as up, rig(**up.settings) as r:
        client = await H2Client.open(r)
        number = await client.ask("POST", "/x", b"y" * 300_000)
        answer = await client.answer(number)
        assert (answer.status, answer.body, answer.ended) == (413, b"too large", True)


async def test_a_server_that_does_not_read_stops_only_its_stream(rig, tmp_path):
    async def handler(asked):
        if asked.get(b":method") == b"GET":
            await asked.answer(b"ok")

    async with h2_upstream(handler, tmp_path, acknowledge=False) as up, rig(**up.settings) as r:
        client = await H2Client.open(r)
        assert (await client.get()).body == b"ok"
        slow = await client.ask("POST", "/x", b"y" * 500_000)
        for _ in range(3):
            assert (await client.get()).body == b"ok"
        assert not client.answers[slow].ended
        assert len(up.connections) == 1


async def test_upgrades_take_http1(rig):
    async with rig(upstream_http2="true") as r:
        seen = []
        pool = r.proxy.egresses.default().pool
        context_for = pool._context_for
        pool._context_for = lambda origin: seen.append(origin.http1) or context_for(origin)
        stream = await r.tls()
        extra = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        await stream.send_all(f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\n{extra}\r\n".encode())
        await read_head(stream)
        assert seen[-1] is True


async def test_an_idle_connection_is_closed_and_the_next_request_opens_one(rig, tmp_path):
    async with h2_upstream(echo, tmp_path) as up, rig(pool_idle_timeout="1", **up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
        with trio.fail_after(5):
            await up.connections[0].closed.wait()
        assert up.connections[0].goaways == [0]
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
        assert len(up.connections) == 2


async def test_a_crash_of_ours_ends_one_connection(rig, tmp_path):
    async with h2_upstream(echo, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
        (mux,) = next(iter(r.proxy.egresses.all()[0].pool._muxes.values()))

        def broken(now):
            raise KeyError("secret")

        mux.wire.step = broken
        await stream.send_all(request())
        assert (await read_response(stream)).status == 502
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200


async def test_clients_that_do_not_read_never_hold_up_another(rig, tmp_path):
    """They share a connection that none of them chose; its window must have room for all their streams'."""

    async def handler(asked):
        await asked.ended.wait()
        if asked.get(b":path") == b"/large":
            await asked.head(200)
            await asked.send(b"x" * 24_000_000, end=True)
        else:
            await asked.answer(b"ok")

    async with h2_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        quick = await r.tls()
        await quick.send_all(request())
        assert (await read_response(quick)).body == b"ok"
        for _ in range(6):
            stalled = await r.tls()
            await stalled.send_all(request("/large"))
            await read_head(stalled)
        (mux,) = next(iter(r.proxy.egresses.all()[0].pool._muxes.values()))
        with trio.fail_after(20):
            # A window is renewed once half of it was used: a stream stands still with more than half of it here, and
            # how much more depends on the sockets' buffers on the way.
            waiting, before = [0], [-1]
            while min(waiting) < 500_000 or waiting != before:
                await trio.sleep(0.3)
                before, waiting = waiting, [stream._unacknowledged for stream in mux.streams.values()]
        with trio.fail_after(3):
            for _ in range(3):
                await quick.send_all(request())
                assert (await read_response(quick)).body == b"ok"
        assert len(up.connections) == 1
