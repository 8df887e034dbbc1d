"""N18: WebSocket and other upgrades are relayed, both ways and unbuffered, in and outside TLS, and never pooled."""

from __future__ import annotations

import base64
import os
import ssl

import pytest
import trio
from blackbox import BODY, Watcher, raw_upstream, read_broken, read_response, request
from rig import HOST, read_all, read_exactly, read_head

from dbproxy.api import Outcome
from dbproxy.testing.origin import Answer
from dbproxy.testing.origin.upgrade import accept_key

ECHO = {"rules": [{"match": {"path": "/v1/live"}, "answer": {"upgrade": "echo"}}]}
SOCKET = {"rules": [{"match": {"path": "/v1/code/sessions"}, "answer": {"upgrade": "websocket"}}]}


def upgrade(path: str = "/v1/live", *, protocol: str = "raw", extra: str = "", connection: str = "Upgrade") -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nconnection: {connection}\r\nUPGRADE: {protocol}\r\n{extra}"
        "x-api-key: k\r\n\r\n"
    ).encode()


async def plain(r):
    return await r.plain()


async def tls(r):
    return await r.tls()


async def http_in_tunnel(r):
    return await r.connect(f"{HOST}:80")


WAYS = pytest.mark.parametrize("way", [tls, plain, http_in_tunnel])


@WAYS
@pytest.mark.parametrize("upstream_tls", [True, False])
async def test_n18_an_upgrade_is_relayed_both_ways(rig, way, upstream_tls):
    watcher = Watcher()
    async with rig(ECHO, tls=upstream_tls, plugins=(("watcher", watcher),)) as r:
        stream = await way(r)
        await stream.send_all(upgrade(connection="keep-alive, Upgrade"))
        head, rest = await read_head(stream)
        assert head == b"HTTP/1.1 101 Switching Protocols\r\nupgrade: raw\r\nconnection: Upgrade\r\n\r\n"
        received = r.origin.requests[0]
        assert received.header("connection") == "Upgrade"
        assert (b"UPGRADE", b"raw") in received.fields
        for size in (1, 1000, 300_000):
            data = os.urandom(size)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, data)
                got = await read_exactly(stream, size, rest)
            assert got == data
            rest = b""
        await stream.aclose()
        assert await watcher.outcomes() == [Outcome.UPGRADED]
        assert watcher.finished[0].bytes_up == watcher.finished[0].bytes_down == 301_001


async def test_n18_a_websocket(rig):
    key = base64.b64encode(os.urandom(16)).decode()
    async with rig(SOCKET) as r:
        stream = await r.tls()
        extra = f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        extra += "Sec-WebSocket-Extensions: permessage-deflate\r\n"
        await stream.send_all(upgrade("/v1/code/sessions", protocol="websocket", extra=extra))
        head, rest = await read_head(stream)
        assert f"sec-websocket-accept: {accept_key(key)}".encode() in head
        assert r.origin.requests[0].header("sec-websocket-extensions") == "permessage-deflate"
        mask = b"\1\2\3\4"
        frame = b"\x81\x85" + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(b"hello"))
        for _ in range(3):
            await stream.send_all(frame)
            assert await read_exactly(stream, 7, rest) == b"\x81\x05hello"


@WAYS
async def test_bytes_sent_behind_the_request_head_are_the_new_protocols(rig, way):
    async with rig(ECHO) as r:
        stream = await way(r)
        await stream.send_all(upgrade() + b"eager ")
        _, rest = await read_head(stream)
        await stream.send_all(b"later")
        assert await read_exactly(stream, 11, rest) == b"eager later"


async def test_bytes_in_the_same_segment_as_the_101_arrive(rig, tmp_path):
    async def eager(stream):
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\nfirst words")
        await read_all(stream)

    async with raw_upstream(eager, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(upgrade())
        head, rest = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 101 Go\r\n")
        assert await read_exactly(stream, 11, rest) == b"first words"


@WAYS
@pytest.mark.parametrize("upstream_tls", [True, False])
async def test_the_end_of_one_direction_leaves_the_other_open(rig, tmp_path, way, upstream_tls):
    """The client ends its side; what the server says afterwards still arrives, also inside TLS."""
    got = []

    async def patient(stream):
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
        got.append(await read_all(stream))
        for _ in range(3):
            await trio.sleep(0.05)
            await stream.send_all(b"after")
        await stream.aclose()

    async with raw_upstream(patient, tmp_path, tls=upstream_tls) as up, rig(**up.settings) as r:
        stream = await way(r)
        await stream.send_all(upgrade())
        _, rest = await read_head(stream)
        await stream.send_all(b"last words")
        if way is tls:
            # close_notify and FIN by hand: trio would close the whole stream.
            with pytest.raises(ssl.SSLWantReadError):
                stream._ssl_object.unwrap()
            await stream.transport_stream.send_all(stream._outgoing.read())
            await stream.transport_stream.send_eof()
        else:
            await stream.send_eof()
        with trio.fail_after(5):
            said, _ = await read_broken(stream, rest)
        assert said == b"after" * 3
        assert got == [b"last words"]


async def test_an_upgraded_upstream_is_never_pooled(rig):
    watcher = Watcher()
    async with rig(ECHO, plugins=(("watcher", watcher),)) as r:
        stream = await r.tls()
        await stream.send_all(upgrade())
        await read_head(stream)
        await stream.aclose()
        await watcher.outcomes()
        with trio.fail_after(2):
            await r.origin.requests[0].connection.gone.wait()
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
        assert r.origin.requests[0].connection is not r.origin.requests[1].connection


async def test_an_upgraded_connection_has_no_idle_limit(rig):
    """The sweeper looks at it as if it had been silent for a day, and leaves it alone."""
    async with rig(ECHO) as r:
        stream = await r.tls()
        await stream.send_all(upgrade())
        await read_head(stream)
        (flight,) = r.running.server.pipeline.flights.values()
        assert flight.waiting == 0.0
        await trio.sleep(1.3)
        await stream.send_all(b"x")
        assert await read_exactly(stream, 1) == b"x"


async def test_a_refused_upgrade_is_an_ordinary_answer(rig):
    async with rig({"rules": [{"match": {"path": "/v1/live"}, "answer": {"status": 426, "body": "no"}}]}) as r:
        stream = await r.tls()
        await stream.send_all(upgrade(connection="keep-alive, Upgrade"))
        answer = await read_response(stream)
        assert (answer.status, answer.body) == (426, b"no")
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200


async def test_protocols_switched_unasked_are_an_error(rig, tmp_path):
    async def wrong(stream):
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
        await read_all(stream)

    async with raw_upstream(wrong, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request(body=None, method="GET"))
        assert (await read_response(stream)).status == 502


async def test_protocols_switched_in_the_middle_of_the_request_are_an_error(rig, tmp_path):
    """Two readers of one client would tear its bytes apart."""

    async def early(stream):
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
        await read_all(stream)

    async with raw_upstream(early, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(upgrade(extra="Content-Length: 100000\r\n") + b"x")
        assert (await read_response(stream)).status == 502


async def test_the_server_breaking_an_upgraded_connection_ends_the_clients(rig, tmp_path):
    from blackbox import reset

    async def breaks(stream):
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
        await stream.receive_some()
        reset(stream)

    async with raw_upstream(breaks, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(upgrade())
        await read_head(stream)
        await stream.send_all(b"x")
        with trio.fail_after(3):
            try:
                assert await read_all(stream) == b""
            except trio.BrokenResourceError:
                pass


# -- Expect: 100-continue ---------------------------------------------------------------------------------------------


async def test_expect_100_continue_goes_through_when_the_body_is_streamed(rig):
    async with rig() as r:
        stream = await r.tls()
        sent = request(extra="Expect: 100-continue\r\n")
        head, body = sent[: -len(BODY)], sent[-len(BODY) :]
        await stream.send_all(head)
        with trio.fail_after(3):
            first, rest = await read_head(stream)
        assert first.startswith(b"HTTP/1.1 100 ")
        await stream.send_all(body)
        assert (await read_response(stream, rest)).status == 200
        assert r.origin.requests[0].header("expect") == "100-continue"
        assert r.origin.requests[0].body == BODY


async def test_expect_100_continue_is_answered_here_when_a_policy_wants_the_body(rig):
    from dbproxy.api import hookimpl

    class Holder:
        @hookimpl
        def wants_body(self, exchange):
            return True

    async with rig(plugins=(("holder", Holder()),)) as r:
        stream = await r.tls()
        await stream.send_all(request(extra="Expect: 100-continue\r\n")[: -len(BODY)])
        with trio.fail_after(3):
            first, rest = await read_head(stream)
        assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert not r.origin.requests
        await stream.send_all(BODY)
        assert (await read_response(stream, rest)).status == 200
        assert r.origin.requests[0].header("expect") is None


async def test_a_refused_expectation_sends_no_body(rig):
    async with rig(Answer(status=417, body=b"no", early=True)) as r:
        stream = await r.tls()
        await stream.send_all(request(extra="Expect: 100-continue\r\n")[: -len(BODY)])
        with trio.fail_after(3):
            answer = await read_response(stream)
            assert (answer.status, answer.body) == (417, b"no")
            assert await read_all(stream, answer.rest) == b""
        assert r.origin.requests[0].size == 0
