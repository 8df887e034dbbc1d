"""Clients that speak only HTTP/2: the same requests, answers, ends and breaks as over HTTP/1.1."""

from __future__ import annotations

import json
from itertools import pairwise

import h2.events
import httpx2
import pytest
import trio
from blackbox import BODY, STREAM, Watcher, raw_upstream, transport
from h2client import END_STREAM, GOAWAY, HEADERS, Answer, H2Client, Raw, frame, open_tls
from rig import HOST, read_exactly, read_head

from dbproxy.api import Outcome, hookimpl
from dbproxy.testing.origin import say

JSON = [("content-type", "application/json"), ("x-api-key", "k"), ("anthropic-version", "2023-06-01")]
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED, CANCEL, HTTP_1_1_REQUIRED = 0, 1, 2, 7, 8, 13


def post(client, body=BODY, fields=JSON, **how):
    return client.ask("POST", "/v1/messages?beta=true", body, fields, **how)


async def settled(r, connections=1):
    """Wait until no exchange is open."""
    with trio.fail_after(5):
        while r.proxy.counters.exchanges_open or len(r.running.server.connections) != connections:
            await trio.sleep(0.01)


def answering(*pieces, body=True):
    """An upstream that reads one request and says ``pieces``, again and again."""

    async def handler(stream):
        rest = b""
        while True:
            try:
                head, rest = await read_head(stream, rest)
            except AssertionError:
                return  # the proxy closed it
            if body and b"content-length" in head.lower():
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                rest = (await read_exactly(stream, length, rest))[length:]
            for piece in pieces:
                await stream.send_all(piece)

    return handler


# ---- what goes up and what comes down


async def test_a_request_and_its_answer(rig):
    async with rig() as r:
        client = await H2Client.open(r)
        answer = await client.answer(await post(client, fields=[*JSON, ("content-length", str(len(BODY)))]))
        (received,) = r.origin.requests
        assert answer.status == 200
        assert answer.ended
        assert answer.body == bytes(received.sent.body)
        host = r.origin.url.removeprefix("https://")
        assert received.head.decode() == (
            f"POST /v1/messages?beta=true HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            f"x-api-key: k\r\nanthropic-version: 2023-06-01\r\ncontent-length: {len(BODY)}\r\n\r\n"
        )
        assert received.framed == BODY
        sent = [line.partition(b":") for line in received.sent.head.split(b"\r\n")[1:-2]]
        assert answer.fields[1:] == [
            (name.lower(), value.strip()) for name, _, value in sent if name.lower() != b"connection"
        ]
        assert r.proxy.counters.h2_connections_total == 1


async def test_a_body_without_a_length_goes_up_in_chunks_and_a_large_one_whole(rig):
    async with rig() as r:
        client = await H2Client.open(r)
        body = BODY + b" " * 5_000_000
        answer = await client.answer(await post(client, body))
        assert answer.status == 200
        (received,) = r.origin.requests
        assert received.header("transfer-encoding") == "chunked"
        assert bytes(received.body) == body


async def test_an_event_stream_arrives_event_by_event(rig):
    async with rig(say("word " * 50, gap=0.2, delta_chars=125)) as r:
        client = await H2Client.open(r)
        number = await post(client, STREAM)
        began = trio.current_time()
        await client.until(lambda: b"content_block_delta" in client.answers[number].body)
        assert trio.current_time() - began < 1.0
        assert not client.answers[number].ended
        answer = await client.answer(number)
        assert answer.body == bytes(r.origin.requests[0].sent.body)


async def test_a_hundred_streams_at_once(rig):
    async with rig(say("word " * 50, gap=0.01, delta_chars=50)) as r:
        client = await H2Client.open(r, window=1 << 20)
        numbers = [await post(client, STREAM) for _ in range(100)]
        for number in numbers:
            answer = await client.answer(number)
            assert answer.ended
            assert b"message_stop" in answer.body
        assert len(r.origin.requests) == 100
        await settled(r)


async def test_a_held_body_reaches_the_policies(rig):
    seen = []

    class Reads:
        @hookimpl
        def wants_body(self, exchange):
            return True

        @hookimpl
        def transform_request(self, exchange, request):
            seen.append(request.body)

    async with rig(plugins=(("reads", Reads()),)) as r:
        client = await H2Client.open(r)
        assert (await client.answer(await post(client))).status == 200
        assert seen == [BODY]
        assert bytes(r.origin.requests[0].body) == BODY


async def test_cookies_come_joined_and_fields_of_the_hop_stay_here(rig):
    async with rig() as r:
        client = await H2Client.open(r)
        await client.get(fields=[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")])
        (received,) = r.origin.requests
        assert received.header("cookie") == "a=1; b=2"
        assert received.header("te") is None


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_no_body_is_said_where_a_body_is_usual(rig, method):
    async with rig() as r:
        client = await H2Client.open(r)
        await client.get(method, "/v1/other")
        assert r.origin.requests[0].header("content-length") == ("0" if method == "POST" else None)


async def test_answers_without_a_body(rig, tmp_path):
    for text, method in [
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET"),
        (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", "GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET"),
    ]:
        async with raw_upstream(answering(text), tmp_path) as up, rig(**up.settings) as r:
            client = await H2Client.open(r)
            for _ in range(2):
                answer = await client.get(method)
                assert answer.status == int(text.split()[1])
                assert answer.ended
                assert answer.body == b""


async def test_informational_heads_and_trailers(rig, tmp_path):
    pieces = (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n",
        b"3\r\nabc\r\n",
        b"0\r\nX-Sum: 7\r\nGrpc-Status: 0\r\nContent-Length: 9\r\n\r\n",
    )
    async with raw_upstream(answering(*pieces), tmp_path) as up, rig(**up.settings) as r:
        client = await H2Client.open(r)
        for _ in range(2):
            answer = await client.get()
            assert answer.informational == [{b":status": b"103", b"link": b"</a>"}]
            assert answer.body == b"abc"
            assert answer.trailers == [(b"x-sum", b"7"), (b"grpc-status", b"0")]
            assert answer.ended
            assert not answer.get(b"transfer-encoding")


async def test_trailers_of_a_request_go_up(rig):
    async with rig() as r:
        client = await H2Client.open(r)
        number = await post(client, end=False)
        client.conn.send_headers(number, [("x-sum", "7")], end_stream=True)
        await client.flush()
        assert (await client.answer(number)).status == 200
        assert r.origin.requests[0].framed.endswith(b"0\r\nx-sum: 7\r\n\r\n")


async def test_expect_100_continue(rig, tmp_path):
    async def handler(stream):
        _, rest = await read_head(stream)
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert not rest
        await read_exactly(stream, len(BODY))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with raw_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        client = await H2Client.open(r)
        fields = [*JSON, ("expect", "100-continue"), ("content-length", str(len(BODY)))]
        number = await client.ask("POST", "/v1/messages", fields=fields, end=False)
        await client.until(lambda: client.answers[number].informational)
        assert client.answers[number].informational == [{b":status": b"100"}]
        await client.send(number, BODY)
        assert (await client.answer(number)).body == b"ok"


async def test_httpx_speaks_it(rig):
    """An independent client; it opens the tunnel itself and offers h2 alone."""
    async with rig(say("word " * 2000)) as r:
        async with httpx2.AsyncClient(
            http1=False, http2=True, proxy=f"http://127.0.0.1:{r.running.port}", verify=r.client_context(), timeout=20
        ) as client:
            answers = []

            async def ask():
                answers.append(await client.post(f"https://{HOST}/v1/messages", content=STREAM, headers=dict(JSON)))

            await ask()
            async with trio.open_nursery() as nursery:
                for _ in range(9):
                    nursery.start_soon(ask)
        assert [answer.http_version for answer in answers] == ["HTTP/2"] * 10
        assert {answer.content for answer in answers} == {bytes(got.sent.body) for got in r.origin.requests}


# ---- our own port


async def test_curl_with_prior_knowledge_on_our_own_port_and_through_a_tunnel(rig):
    async with rig(say("word " * 2000), tls=False) as r:
        port = r.running.port

        async def curl(*arguments):
            done = await trio.run_process(
                [
                    "curl",
                    "-sS",
                    "-m",
                    "10",
                    "--http2-prior-knowledge",
                    "-w",
                    "|%{http_version} %{http_code}",
                    *arguments,
                ],
                capture_stdout=True,
            )
            return done.stdout

        health = await curl(f"http://127.0.0.1:{port}/health")
        assert health.endswith(b"|2 200")
        assert json.loads(health.partition(b"|")[0])["status"] == "ok"
        url = f"http://127.0.0.1:{port}"
        for way in ([f"{url}/v1/messages"], ["-p", "-x", url, f"http://{HOST}:80/v1/messages"]):
            got = await curl("-d", STREAM.decode(), *way)
            assert got == bytes(r.origin.requests[-1].sent.body) + b"|2 200"


async def test_tls_on_our_own_port(rig):
    async with rig() as r:
        context = r.client_context()
        context.check_hostname = False
        context.verify_mode = 0
        context.set_alpn_protocols(["h2"])
        stream = trio.SSLStream(await r.plain(), context, https_compatible=True)  # noqa: TID251
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == "h2"
        client = H2Client(stream)
        await client.begin()
        answer = await client.get(path="/health", host=f"localhost:{r.running.port}")
        assert json.loads(answer.body)["status"] == "ok"
        answer = await client.get(path="/health", fields=[("origin", "https://evil.example")])
        assert answer.status == 403


# ---- refusals


async def test_tunnels_and_websockets_are_asked_to_use_http1(rig):
    async with rig() as r:
        client = await H2Client.open(r)
        for pairs in (
            [(":method", "CONNECT"), (":authority", "example.com:443")],
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "https"),
                (":path", "/chat"),
                (":authority", HOST),
            ],
        ):
            number = client.conn.get_next_available_stream_id()
            client.answers[number] = Answer()
            client.conn.send_headers(number, pairs)
            await client.flush()
            assert (await client.answer(number)).reset == HTTP_1_1_REQUIRED
        assert (await client.get()).status == 200
        assert len(r.origin.requests) == 1


async def test_grpc_is_refused_in_its_own_words(rig):
    async with rig() as r:
        client = await H2Client.open(r)
        fields = [("content-type", "application/grpc+proto"), ("te", "trailers")]
        answer = await client.get("POST", "/pkg.Service/Call", b"\0\0\0\0\0", fields)
        assert answer.status == 200
        assert answer.get(b"grpc-status") == b"12"
        assert answer.ended
        assert not r.origin.requests


@pytest.mark.parametrize("path", ["http://127.0.0.1/x", "x", "*", "evil.example:80"])
async def test_a_target_is_a_path(rig, path):
    """An absolute target inside :path would send a request elsewhere than its :authority says."""
    async with rig() as r:
        client = await H2Client.open(r)
        assert (await client.get(path=path)).reset == PROTOCOL_ERROR
        assert (await client.get()).status == 200
        assert len(r.origin.requests) == 1


async def test_a_head_that_http1_refuses_is_answered(rig):
    async with rig(max_head_fields="50") as r:
        client = await H2Client.open(r)
        answer = await client.get(fields=[(f"x-{n}", "v") for n in range(60)])
        assert answer.status == 431
        assert answer.get(b"x-dbproxy-error") == b"1"
        assert answer.ended
        answer = await client.get(path="/a b")
        assert answer.status == 400
        assert (await client.get()).status == 200


@pytest.mark.parametrize("how", ["none", "less", "more", "trailers"])
async def test_a_body_that_is_not_as_long_as_it_says_never_reaches_the_upstream_whole(rig, how):
    """h2 looks at neither the first nor the last of these; an upstream would wait, or take the next request for it."""
    async with rig(plugins=(("watch", watcher := Watcher()),)) as r:
        client = await H2Client.open(r)
        fields = [*JSON, ("content-length", str(len(BODY) + (-1 if how == "more" else 1)))]
        number = await client.ask("POST", "/v1/messages", fields=fields, end=how == "none")
        if how != "none":
            await client.send(number, BODY, end=how != "trailers")
        if how == "trailers":
            client.conn.send_headers(number, [("x-sum", "7")], end_stream=True)
            await client.flush()
        answer = await client.answer(number)
        assert answer.reset == PROTOCOL_ERROR or client.goaways[0][0] == PROTOCOL_ERROR
        assert answer.status == 0
        if how == "none":
            assert not watcher.finished
        else:
            assert await watcher.outcomes() == [Outcome.CLIENT_GONE]
        assert all(len(received.framed) < int(received.header("content-length")) for received in r.origin.requests)


# ---- ends that are none


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"x" * 50),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"32\r\n" + b"x" * 50 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 50),
    ],
)
async def test_an_answer_that_was_cut_is_reset(rig, tmp_path, text, piece):
    async def handler(stream):
        await read_head(stream)
        await stream.send_all(text + piece)
        await trio.sleep(0.1)
        transport(stream).socket.close()  # TLS without its end

    async with (
        raw_upstream(handler, tmp_path) as up,
        rig(plugins=(("watch", watcher := Watcher()),), **up.settings) as r,
    ):
        client = await H2Client.open(r)
        answer = await client.get()
        assert answer.body == b"x" * 50
        assert answer.reset == INTERNAL_ERROR
        assert not answer.ended
        assert await watcher.outcomes() == [Outcome.UPSTREAM_CUT]
        await settled(r)


async def test_an_answer_without_a_length_ends_with_its_connection(rig, tmp_path):
    async def handler(stream):
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        stream._https_compatible = False
        with trio.move_on_after(0.5):
            await stream.aclose()

    async with raw_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        client = await H2Client.open(r)
        for _ in range(2):
            answer = await client.get()
            assert answer.body == b"all of it"
            assert answer.ended


async def test_an_answer_before_the_end_of_its_request(rig, tmp_path):
    """The answer is whole; the rest of the request is declined with NO_ERROR (RFC 9113 section 8.1)."""

    async def handler(stream):
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await trio.sleep(0.2)

    async with raw_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        client = await H2Client.open(r)
        number = await client.ask("POST", "/v1/messages", b"x" * 1000, JSON, end=False)
        await client.until(lambda: client.answers[number].reset is not None)
        answer = client.answers[number]
        assert (answer.status, answer.body, answer.ended, answer.reset) == (413, b"big", True, NO_ERROR)


async def test_no_upstream_is_an_answer(rig):
    async with rig(upstream_url="http://127.0.0.1:9") as r:
        client = await H2Client.open(r)
        answer = await client.answer(await post(client))
        assert answer.status == 502
        assert json.loads(answer.body)["type"] == "error"
        assert answer.ended
        assert client.conn.open_outbound_streams == 0


# ---- clients that leave


async def test_a_stream_that_its_client_resets_closes_its_upstream_at_once(rig):
    async with rig(say("late", head_delay=30), plugins=(("watch", watcher := Watcher()),)) as r:
        client = await H2Client.open(r)
        number = await post(client, STREAM)
        (received,) = await r.origin.wait_requests(1)
        began = trio.current_time()
        client.conn.reset_stream(number, CANCEL)
        await client.flush()
        with trio.fail_after(5):
            await received.connection.closed.wait()
        assert trio.current_time() - began < 1.0
        assert await watcher.outcomes() == [Outcome.CLIENT_GONE]
        assert len(r.running.server.connections) == 1


async def test_a_client_that_goes_ends_all_its_streams(rig):
    async with rig(say("late", head_delay=30), plugins=(("watch", watcher := Watcher()),)) as r:
        client = await H2Client.open(r)
        for _ in range(5):
            await post(client, STREAM)
        received = await r.origin.wait_requests(5)
        transport(client.stream).socket.close()
        assert await watcher.outcomes(5) == [Outcome.CLIENT_GONE] * 5
        with trio.fail_after(1):
            for one in received:
                await one.connection.closed.wait()
        await settled(r, 0)


async def test_200_cancelled_event_streams_leave_nothing_behind(rig):
    """httpcore #943: cancelled streams that stay in the accounts stop the connection after a hundred."""
    async with rig(say("word " * 400, gap=0.02, delta_chars=20)) as r:
        client = await H2Client.open(r, acknowledge=True)
        assert (await client.answer(await post(client))).ended
        (server,) = r.running.server.h2
        await settled(r)
        before = server.mux.wire.windows()[0], server.mux.wire.open_streams(), len(server.mux.streams)
        assert before[1:] == (0, 0)
        for _ in range(10):
            numbers = [await post(client, STREAM + b" " * 20000) for _ in range(20)]
            await client.until(lambda numbers=numbers: all(client.answers[n].body for n in numbers))
            for number in numbers:
                client.conn.reset_stream(number, CANCEL)
            await client.flush()
        await settled(r)
        assert len(r.origin.requests) == 201
        answer = await client.answer(await post(client))
        assert answer.ended
        await settled(r)
        mux = server.mux
        assert (mux.wire.windows()[0], mux.wire.open_streams(), len(mux.streams)) == before
        assert not mux._ready
        assert not mux._blocked
        # What we may send: everything that was sent and arrived was given back, what was dropped on the way too.
        assert client.conn.inbound_flow_control_window > 0


async def test_a_crash_of_ours_ends_one_stream(rig):
    class Breaks:
        @hookimpl
        def exchange_finished(self, exchange):
            return None

    async with rig(say("word " * 100, gap=0.01, delta_chars=20), plugins=(("breaks", Breaks()),)) as r:
        client = await H2Client.open(r)
        good = await post(client, STREAM)
        handle = r.running.server.pipeline.handle

        async def broken(client, head, **how):
            if head.target.startswith(b"/crash"):
                raise KeyError("secret")
            return await handle(client, head, **how)

        r.running.server.pipeline.handle = broken
        assert (await client.get(path="/crash")).reset == INTERNAL_ERROR
        assert r.proxy.counters.crashes_total == 1
        assert (await client.answer(good)).ended
        assert (await client.get()).status == 200


async def test_an_answer_that_nobody_finished_is_reset(rig):
    async with rig() as r:
        client = await H2Client.open(r)

        async def unfinished(client, head, **how):
            await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
            return True

        r.running.server.pipeline.handle = unfinished
        answer = await client.get()
        assert (answer.body, answer.ended, answer.reset) == (b"part", False, INTERNAL_ERROR)


# ---- nobody waits for anybody


async def test_a_client_that_does_not_read_one_stream_gets_the_others(rig):
    async with rig(say("word " * 40000)) as r:
        client = await H2Client.open(r, acknowledge=False)
        client.conn.increment_flow_control_window(10_000_000)
        client.conn.increment_flow_control_window(1)
        await client.flush()
        slow = await post(client, STREAM)
        await client.until(lambda: len(client.answers[slow].body) >= 65535)
        with trio.fail_after(3):
            for _ in range(5):
                number = await client.ask(path="/v1/models")
                assert (await client.answer(number)).status == 200
        assert not client.answers[slow].ended
        client.conn.increment_flow_control_window(10_000_000, slow)
        await client.flush()
        assert (await client.answer(slow)).body == bytes(r.origin.requests[0].sent.body)


async def test_an_upstream_that_does_not_read_fills_its_streams_window_and_nothing_else(rig, tmp_path):
    async def handler(stream):
        head, _ = await read_head(stream)
        if head.startswith(b"GET"):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await trio.sleep(0.1)
        else:
            await trio.sleep_forever()

    async with raw_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        client = await H2Client.open(r)
        slow = await client.ask("POST", "/upload", fields=JSON, end=False)
        piece = b"x" * 16384
        sent = 0
        stuck = False
        while sent < 64_000_000 and not stuck:
            while client.conn.local_flow_control_window(slow) < len(piece) and not stuck:
                with trio.move_on_after(0.5) as scope:
                    await client.pump()
                stuck = scope.cancelled_caught
            if not stuck:
                await client.send(slow, piece, end=False)
                sent += len(piece)
        assert stuck
        (server,) = r.running.server.h2
        assert server.mux.streams[slow]._unacknowledged <= 1 << 20
        with trio.fail_after(3):
            answer = await client.get()
        assert answer.body == b"ok"


async def test_frames_of_two_large_answers_alternate(rig, tmp_path):
    size = 2_000_000
    text = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    async with raw_upstream(answering(text), tmp_path) as up, rig(**up.settings) as r:
        client = await H2Client.open(r, window=4_000_000)
        client.conn.increment_flow_control_window(16_000_000)
        await client.flush()
        order = []
        take = client._take

        def noted(event):
            if isinstance(event, h2.events.DataReceived):
                order.append(event.stream_id)
            take(event)

        client._take = noted
        one, two = await client.ask(), await client.ask()
        await client.answer(one)
        await client.answer(two)
        assert len(client.answers[one].body) == len(client.answers[two].body) == size
        turns = sum(a != b for a, b in pairwise(order))
        assert turns > 20


# ---- ends of a connection


async def test_a_drain_says_goaway_and_lets_streams_finish(rig):
    async with rig(say("word " * 60, gap=0.05, delta_chars=10), drain_timeout="10") as r:
        client = await H2Client.open(r)
        number = await post(client, STREAM)
        await client.until(lambda: client.answers[number].body)
        raw = await Raw.open(r)
        await raw.read(0.3)
        r.proxy.draining = True
        for one in list(r.running.server.connections):
            if one.idle is not None:
                one.idle.cancel()
        # h2 itself would take the GOAWAY for the end of everything: read by hand from here on.
        late = client.conn.get_next_available_stream_id()
        await trio.sleep(0.1)
        client.conn.send_headers(
            late, [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", "/")], end_stream=True
        )
        await client.flush()
        rest = Raw(client.stream)
        assert await rest.read(10)
        assert rest.goaway() == NO_ERROR
        assert rest.resets() == {late: REFUSED}
        got = client.answers[number].body + b"".join(
            p for kind, _, stream, p in rest.frames if (kind, stream) == (0, 1)
        )
        assert got == bytes(r.origin.requests[0].sent.body)
        assert any(flags & END_STREAM for kind, flags, stream, _ in rest.frames if (kind, stream) == (0, 1))
        assert await raw.read(5)
        assert raw.goaway() == NO_ERROR
        await settled(r, 0)


async def test_a_client_that_says_goaway_gets_its_answers(rig):
    """h2 #1181: the state machine would refuse every further frame of the stream under way."""
    async with rig(say("word " * 60, gap=0.02, delta_chars=10)) as r:
        client = await H2Client.open(r)
        number = await post(client, STREAM)
        await client.until(lambda: client.answers[number].body)
        await client.stream.send_all(frame(GOAWAY, 0, 0, bytes(8)))
        assert (await client.answer(number)).body == bytes(r.origin.requests[0].sent.body)
        await client.until(lambda: client.closed)
        assert client.closed
        await settled(r, 0)


async def test_a_client_that_says_goaway_with_an_error_is_gone(rig):
    async with rig(say("late", head_delay=30), plugins=(("watch", watcher := Watcher()),)) as r:
        client = await H2Client.open(r)
        await post(client, STREAM)
        await r.origin.wait_requests(1)
        await client.stream.send_all(frame(GOAWAY, 0, 0, bytes(7) + b"\2"))
        assert await watcher.outcomes() == [Outcome.CLIENT_GONE]
        await settled(r, 0)


async def test_an_idle_connection_is_closed_in_good_order(rig):
    async with rig(client_idle_timeout="1") as r:
        raw = await Raw.open(r)
        began = trio.current_time()
        assert await raw.read(10)
        assert 0.8 < trio.current_time() - began < 3
        assert raw.goaway() == NO_ERROR
        await settled(r, 0)


async def test_a_connection_with_a_stream_is_not_idle(rig):
    async with rig(say("late", head_delay=2.5), client_idle_timeout="1") as r:
        client = await H2Client.open(r)
        assert (await client.answer(await post(client))).ended


@pytest.mark.parametrize(
    "late",
    [
        [b"PRI * HTTP/2.0\r\n\r\nSM"],
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4), frame(HEADERS, END_STREAM, 1, b"\x82\x86")],
    ],
)
async def test_a_client_that_stops_where_it_may_not_is_told(rig, late):
    async with rig(head_timeout="0.5") as r:
        raw = Raw(await open_tls(r))
        await raw.send(*late)
        assert await raw.read(5)
        assert raw.goaway() == PROTOCOL_ERROR
        await settled(r, 0)


async def test_a_client_of_another_protocol_behind_alpn_h2(rig):
    async with rig() as r:
        raw = Raw(await open_tls(r))
        await raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await raw.read(5)
        assert raw.goaway() == PROTOCOL_ERROR
