"""N16: an upstream that ends too early never looks like a clean end; a client that goes takes its upstream along."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
import trio
from blackbox import (
    BODY,
    STREAM,
    Watcher,
    raw_upstream,
    read_broken,
    read_response,
    request,
    reset,
    strict,
    transport,
)
from rig import HOST, read_exactly, read_head

from dbproxy.api import Outcome
from dbproxy.testing.origin import Answer, say

HEADS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    "close": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
}
PIECES = {"length": b"x" * 50, "chunked": b"32\r\n" + b"x" * 50 + b"\r\n", "close": b"x" * 50}


async def end(stream, how):
    """End a raw upstream's connection in one of three ways."""
    if how == "rst":
        reset(stream)
        return
    if how == "close_notify":
        stream._https_compatible = False
        with trio.move_on_after(0.5):
            await stream.aclose()
        return
    await transport(stream).send_eof()
    with trio.move_on_after(0.5):
        while await stream.receive_some():
            pass


def breaking(*pieces, how):
    async def handler(stream):
        _, rest = await read_head(stream)
        await read_exactly(stream, len(BODY), rest)
        for piece in pieces:
            await stream.send_all(piece)
            await trio.sleep(0.05)
        await end(stream, how)

    return handler


HOWS = pytest.mark.parametrize("how", ["fin", "close_notify", "rst"])


@HOWS
@pytest.mark.parametrize("pieces", [(), (b"HTTP/1.1 200 OK\r\nContent-",), (b"HTTP/1.1 103 Early Hints\r\n\r\n",)])
async def test_n16_no_answer_is_an_error_that_clients_retry(rig, tmp_path, how, pieces):
    watcher = Watcher()
    async with (
        raw_upstream(breaking(*pieces, how=how), tmp_path) as up,
        rig(**up.settings, plugins=(("watcher", watcher),)) as r,
    ):
        stream = await r.tls()
        await stream.send_all(request())
        answer = await read_response(stream)
        if answer.status == 103:
            answer = await read_response(stream, answer.rest)
        assert answer.status == 502
        assert answer.fields["x-dbproxy-error"] == "1"
        assert answer.json["type"] == "error"
        assert await watcher.outcomes() == [Outcome.UPSTREAM_FAILED]
        # The client's own connection is none the worse.
        await stream.send_all(request())
        assert (await read_response(stream)).status in (103, 502)


@HOWS
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("framing", HEADS)
@pytest.mark.parametrize("stage", ["head", "body"])
async def test_n16_a_broken_answer_reaches_the_client_as_broken(rig, tmp_path, how, framing, stage, filtered):
    if framing == "close" and how == "close_notify":
        await check_clean_end(rig, tmp_path, stage)
        return
    watcher = Watcher()
    pieces = (HEADS[framing],) + ((PIECES[framing],) if stage == "body" else ())
    plugins = (("watcher", watcher), *((("same", Same()),) if filtered else ()))
    async with raw_upstream(breaking(*pieces, how=how), tmp_path) as up, rig(**up.settings, plugins=plugins) as r:
        stream = strict(await r.tls())
        await stream.send_all(request())
        head, rest = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 200 ")
        got, ended = await read_broken(stream, rest)
        assert ended == ("reset" if framing == "close" else "truncated")
        assert b"x" * 50 in got if stage == "body" and framing != "close" else True
        assert b"0\r\n" not in got
        assert b"HTTP/1.1" not in got
        assert await watcher.outcomes() == [Outcome.UPSTREAM_CUT]


class Same:
    """A filter that changes nothing, which has the answer framed anew."""

    from dbproxy.api import hookimpl

    @hookimpl
    def stream_filter(self, exchange, head):
        return self

    def feed(self, event):
        return None

    def end(self):
        return None


async def check_clean_end(rig, tmp_path, stage):
    """The one proper end among them: an answer without length, and the server says that this is all."""
    watcher = Watcher()
    pieces = (HEADS["close"],) + ((PIECES["close"],) if stage == "body" else ())
    async with (
        raw_upstream(breaking(*pieces, how="close_notify"), tmp_path) as up,
        rig(**up.settings, plugins=(("watcher", watcher),)) as r,
    ):
        stream = strict(await r.tls())
        await stream.send_all(request())
        _, rest = await read_head(stream)
        assert await read_broken(stream, rest) == (PIECES["close"] if stage == "body" else b"", "eof")
        assert await watcher.outcomes() == [Outcome.OK]


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("framing", HEADS)
async def test_n16_the_same_without_tls(rig, tmp_path, how, framing):
    async with (
        raw_upstream(breaking(HEADS[framing], PIECES[framing], how=how), tmp_path, tls=False) as up,
        rig(**up.settings) as r,
    ):
        stream = await r.plain()
        await stream.send_all(request())
        _, rest = await read_head(stream)
        got, ended = await read_broken(stream, rest)
        if (framing, how) == ("close", "fin"):
            assert (got, ended) == (PIECES["close"], "eof")  # that is how such an answer ends
        elif framing == "close":
            assert ended == "reset"
        else:
            assert got == PIECES[framing]


@pytest.mark.parametrize("bad", [b"zz\r\n", b"-1\r\n", b"5\r\nabcdeXX", b"ffffffffffffffffff\r\n"])
async def test_n16_bad_chunks_break_the_answer_off(rig, tmp_path, bad):
    async with (
        raw_upstream(breaking(HEADS["chunked"], PIECES["chunked"], bad, how="close_notify"), tmp_path) as up,
        rig(**up.settings) as r,
    ):
        stream = strict(await r.tls())
        await stream.send_all(request())
        _, rest = await read_head(stream)
        got, ended = await read_broken(stream, rest)
        assert ended in ("truncated", "reset")
        assert not got.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-x\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"],
)
async def test_an_upstream_that_talks_nonsense_is_a_502(rig, tmp_path, answer):
    async with raw_upstream(breaking(answer, how="close_notify"), tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 502


# -- the pool ---------------------------------------------------------------------------------------------------------


def once(answers, how, *, late=False):
    """Answers so many requests on a connection and then ends it: at once, or when the next request came."""
    heads = []

    async def handler(stream):
        rest = b""
        for _ in range(answers):
            head, rest = await read_head(stream, rest)
            heads.append(head)
            rest = (await read_exactly(stream, len(BODY), rest))[len(BODY) :]
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if late:
            head, rest = await read_head(stream, rest)
            heads.append(head)
        await end(stream, how)

    return handler, heads


@HOWS
async def test_a_pooled_connection_that_has_ended_is_not_used(rig, tmp_path, how):
    handler, heads = once(1, how)
    async with raw_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        for _ in range(4):
            await stream.send_all(request())
            assert (await read_response(stream)).status == 200
            await trio.sleep(0.1)
        assert len(heads) == 4
        assert r.proxy.egresses.idle_connections() == 0


@HOWS
async def test_nothing_is_repeated_once_bytes_were_written(rig, tmp_path, how):
    """The server may have acted on it: whether to ask again is the client's to decide."""
    handler, heads = once(1, how, late=True)
    async with raw_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
        await stream.send_all(request())
        assert (await read_response(stream)).status == 502
        await trio.sleep(0.1)
        assert len(heads) == 2


async def test_what_came_unasked_on_a_pooled_connection_is_nobody_s_answer(rig, tmp_path):
    async def chatty(stream):
        _, rest = await read_head(stream)
        await read_exactly(stream, len(BODY), rest)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await trio.sleep(0.1)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await trio.sleep(1)

    async with raw_upstream(chatty, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        for _ in range(3):
            await stream.send_all(request())
            assert (await read_response(stream)).body == b"ok"
            await trio.sleep(0.2)


async def test_what_came_behind_an_answer_is_nobody_s_answer(rig, tmp_path):
    handler = breaking(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        how="close_notify",
    )
    async with raw_upstream(handler, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        for _ in range(2):
            await stream.send_all(request())
            answer = await read_response(stream)
            assert (answer.body, answer.rest) == (b"ok", b"")
        assert len(up.seen) >= 2


# -- the client goes --------------------------------------------------------------------------------------------------


async def leave(stream, how):
    if how == "rst":
        reset(stream)
    else:
        await trio.aclose_forcefully(transport(stream))


async def gone_within_a_second(received):
    with trio.fail_after(1.0):
        await received.connection.gone.wait()


LEAVING = pytest.mark.parametrize("how", ["close", "rst"])


@LEAVING
async def test_a_client_that_goes_before_the_first_byte(rig, how):
    watcher = Watcher()
    async with rig(say("late", head_delay=30), plugins=(("watcher", watcher),)) as r:
        stream = await r.tls()
        await stream.send_all(request())
        await r.origin.wait_requests(1)
        await leave(stream, how)
        await gone_within_a_second(r.origin.requests[0])
        assert await watcher.outcomes() == [Outcome.CLIENT_GONE]


@LEAVING
async def test_a_client_that_goes_between_head_and_body(rig, how):
    watcher = Watcher()
    async with rig(say("late", first_byte_delay=30), plugins=(("watcher", watcher),)) as r:
        stream = await r.tls()
        await stream.send_all(request(body=STREAM))
        await read_head(stream)
        await leave(stream, how)
        await gone_within_a_second(r.origin.requests[0])
        assert await watcher.outcomes() == [Outcome.CLIENT_GONE]


@LEAVING
async def test_a_client_that_goes_in_the_middle_of_a_stream(rig, how):
    watcher = Watcher()
    async with rig(say("word " * 5000, gap=0.05), plugins=(("watcher", watcher),)) as r:
        stream = await r.tls()
        await stream.send_all(request(body=STREAM))
        await read_exactly(stream, 1500)
        await leave(stream, how)
        await gone_within_a_second(r.origin.requests[0])
        assert await watcher.outcomes() == [Outcome.CLIENT_GONE]


@LEAVING
@pytest.mark.parametrize("held", [False, True])
async def test_a_client_that_goes_in_the_middle_of_its_upload(rig, how, held):
    from dbproxy.api import hookimpl

    class Holder:
        @hookimpl
        def wants_body(self, exchange):
            return held

    watcher = Watcher()
    plugins = (("watcher", watcher), ("holder", Holder()))
    async with rig(plugins=plugins, plugins_disabled="double-buffer") as r:  # it holds bodies until it has loaded
        stream = await r.tls()
        await stream.send_all(request(body=b"x" * 200_000)[:100_000])
        if not held:
            await r.origin.wait_requests(1, complete=False)
        await trio.sleep(0.05)
        await leave(stream, how)
        if not held:
            await gone_within_a_second(r.origin.requests[0])
        assert await watcher.outcomes(seconds=1.0) == [Outcome.CLIENT_GONE]
        assert not [received for received in r.origin.requests if received.complete]


async def test_a_client_that_goes_while_its_upload_is_not_read(rig):
    """Backpressure holds the upload; the client's end lies unread behind it and is seen all the same."""
    watcher = Watcher()
    rules = [{"match": {"path": "/v1/files"}, "answer": {"body": "ok", "read_delay": 30}}]
    async with rig(rules, plugins=(("watcher", watcher),)) as r:
        stream = await r.tls()
        body = b"x" * 40_000_000
        with trio.move_on_after(1.0):
            await stream.send_all(request("/v1/files", body=body))
        await trio.aclose_forcefully(transport(stream))
        assert await watcher.outcomes(seconds=2.0) == [Outcome.CLIENT_GONE]


async def test_a_client_that_goes_while_we_still_dial(rig):
    watcher = Watcher()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        taken = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            taken.append(sock)
        settings = {"upstream_url": f"https://127.0.0.1:{port}", "connect_timeout": "30"}
        async with rig(**settings, plugins=(("watcher", watcher),)) as r:
            stream = await r.plain()
            await stream.send_all(request())
            await trio.sleep(0.1)
            await stream.aclose()
            assert await watcher.outcomes(seconds=1.0) == [Outcome.CLIENT_GONE]
        for sock in taken:
            sock.close()


async def test_one_client_that_goes_does_not_disturb_another(rig):
    async with rig(say("word " * 400, gap=0.01)) as r:
        first, second = await r.tls(), await r.tls()
        await first.send_all(request(body=STREAM))
        await second.send_all(request(body=STREAM))
        await read_exactly(first, 1000)
        await leave(first, "rst")
        answer = await read_response(second)
        assert answer.framed.endswith(b"0\r\n\r\n")


# -- silence ----------------------------------------------------------------------------------------------------------


def impatient(r, seconds=0.5):
    r.proxy.settings = replace(r.proxy.settings, upstream_silence_timeout=seconds)


async def test_minutes_of_silence_are_normal(rig):
    """No limit is under fifteen minutes, and the sweeper has passed several times by the time of the answer."""
    async with rig(say("late", head_delay=2.5)) as r:
        assert r.proxy.settings.upstream_silence_timeout >= 900
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200


async def test_silence_before_the_head_ends_with_an_error(rig):
    watcher = Watcher()
    async with rig(say("never", head_delay=30), plugins=(("watcher", watcher),)) as r:
        impatient(r)
        stream = await r.tls()
        await stream.send_all(request())
        with trio.fail_after(5):
            answer = await read_response(stream)
        assert answer.status == 504
        assert await watcher.outcomes() == [Outcome.UPSTREAM_FAILED]
        await gone_within_a_second(r.origin.requests[0])


async def test_silence_in_the_middle_ends_with_a_broken_answer(rig):
    watcher = Watcher()
    async with rig(say("word " * 100, stall_after=3, stall=30), plugins=(("watcher", watcher),)) as r:
        impatient(r)
        stream = strict(await r.tls())
        await stream.send_all(request(body=STREAM))
        with trio.fail_after(5):
            got, ended = await read_broken(stream)
        assert ended == "truncated"
        assert got.count(b"HTTP/1.1") == 1
        assert b"0\r\n\r\n" not in got
        assert await watcher.outcomes() == [Outcome.UPSTREAM_CUT]


async def test_pings_keep_it_alive(rig):
    async with rig(say("word", first_byte_delay=3, ping_every=0.2)) as r:
        impatient(r, 1.0)
        stream = await r.tls()
        await stream.send_all(request(body=STREAM))
        answer = await read_response(stream)
        assert b"message_stop" in answer.body


async def test_a_client_that_pauses_its_upload_is_not_the_upstream_s_silence(rig):
    """Ctrl-Z in the middle of an upload: for as long as the client sleeps."""
    async with rig() as r:
        impatient(r)
        stream = await r.tls()
        sent = request()
        await stream.send_all(sent[:-20])
        await trio.sleep(2.5)
        await stream.send_all(sent[-20:])
        assert (await read_response(stream)).status == 200


async def test_an_idle_tunnel_to_the_same_host_is_not_an_exchange(rig):
    async with rig(Answer(body=b"x")) as r:
        impatient(r)
        stream = await r.tls(HOST)
        await trio.sleep(2.2)
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
