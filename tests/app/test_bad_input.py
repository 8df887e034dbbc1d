"""Bad input on a client's connection: a clear answer or a closed connection, and nobody else notices.

Each test has a second, good connection beside the bad one: it must be served before, during and after.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import struct
from contextlib import asynccontextmanager

import pytest
import trio
from rig import HOST, read_all, read_answer, read_head, read_to_end

from dbproxy.api import hookimpl

BODY = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}'
GOOD = (
    f"POST /v1/messages HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: k\r\nanthropic-version: 2023-06-01\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n".encode()
    + BODY
)


class Neighbour:
    """A connection that behaves, beside one that does not."""

    def __init__(self, r, stream):
        self.rig, self.stream = r, stream

    async def is_served(self, seconds=2.0):
        began = trio.current_time()
        with trio.fail_after(10):
            await self.stream.send_all(GOOD)
            head, _ = await read_answer(self.stream)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert trio.current_time() - began < seconds


@asynccontextmanager
async def beside(rig, *args, **how):
    """(rig, neighbour): the neighbour is served before and after whatever happens in the block; nothing crashed."""
    async with rig(*args, **how) as r:
        neighbour = Neighbour(r, await r.tls())
        await neighbour.is_served()
        yield r, neighbour
        await neighbour.is_served()
        assert r.proxy.counters.crashes_total == 0


def assert_refused(got, *statuses):
    head, _, body = got.partition(b"\r\n\r\n")
    assert int(head.split(b" ")[1]) in statuses, head
    assert b"x-dbproxy-error: 1" in head
    assert b"connection: close" in head.lower()
    error = json.loads(body)
    assert error["type"] == "error"
    assert error["error"]["message"].startswith("dbproxy: ")
    return error["error"]["message"]


async def sent(r, data, *, eof=False, tls=False):
    """What comes back for ``data`` on a fresh connection until its end."""
    stream = await (r.tls() if tls else r.plain())
    with trio.fail_after(20):
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            pass
        if eof:
            try:
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass
        got = await read_to_end(stream)
    if tls:
        await trio.aclose_forcefully(stream)
    return got


# -- garbage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00\x00\x00\r\n\r\n",
        b"\xff" * 1000 + b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.9\r\nHost: x\r\n\r\n",
        b"GET / JUNK/1.1\r\nHost: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nName : value\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: nul\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"CONNECT\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=lambda garbage: repr(garbage[:28]),
)
async def test_garbage_gets_a_clear_answer(rig, garbage):
    async with beside(rig) as (r, _):
        before = len(r.origin.requests)
        expected = 505 if re.search(rb"HTTP/(2\.0|1\.9)", garbage) else 400
        assert_refused(await sent(r, garbage), expected)
        assert_refused(await sent(r, garbage, tls=True), expected)
        assert len(r.origin.requests) == before


async def test_random_bytes_in_the_place_of_everything(rig):
    async with beside(rig) as (r, neighbour):
        for size in (1, 5, 100, 70_000):
            await sent(r, os.urandom(size) + b"\r\n\r\n", eof=True)
            stream = await r.connect()
            try:
                await stream.send_all(b"\x16\x03\x01" + os.urandom(size))
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass
            await read_to_end(stream)
        await neighbour.is_served()


@pytest.mark.parametrize(
    "target",
    [
        b"/\x00",
        b"/a\x00b",
        b"/r\xc3\xa9",
        b"/\xff",
        b"/a\tb",
        b"/\x7f",
        b"/\x01",
        b"http://a\x00b/",
        b"http://r\xe9.example/",
        b"http://user:pass@example.com/",
        b"http:///x",
        b"http://[::1/x",
        b"http://host:99999/",
        b"ftp://example.com/x",
        b"javascript:alert(1)",
        b"http://a b/",
        b"example.com:443",
    ],
)
async def test_nul_and_non_ascii_in_targets(rig, target):
    async with beside(rig) as (r, _):
        before = len(r.origin.requests)
        got = await sent(r, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        message = assert_refused(got, 400)
        assert "pass" not in message
        assert len(r.origin.requests) == before


@pytest.mark.parametrize(
    "target",
    [b"", b":443", b"host", b"host:", b"host:0x50", b"host:-1", b"host:65536", b"a\x00b:443", b"u:p@host:443",
     b"[::1:443", b"[::1]443", b"r\xc3\xa9:443", b"-bad-:443", b"..:443", b"a" * 300 + b":443", b"a:443:443",
     b"http://host:443/", b"*"],
)  # fmt: skip
async def test_connect_targets_that_make_no_sense(rig, target):
    async with beside(rig) as (r, _):
        assert_refused(await sent(r, b"CONNECT " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n"), 400)


async def test_numbers_that_are_no_addresses_are_names_that_do_not_resolve_to_us(rig):
    async with beside(rig) as (r, _):
        for host in ("2130706433", "0x7f000001", "127.1", "1", "0", "999.1"):
            got = await sent(r, f"CONNECT {host}:{r.running.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert_refused(got, 400, 502)


# -- half a TLS record ------------------------------------------------------------------------------------------------


def hello_bytes():
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("inside", [True, False], ids=["tunnel", "own port"])
async def test_half_a_tls_record(rig, inside):
    """More stalled handshakes than may compute at once: they hold up nobody, and they are ended."""
    async with beside(rig, handshake_timeout="1.5", handshake_concurrency="2", head_timeout="1.5") as (r, neighbour):
        whole = hello_bytes()
        stalled = []
        for cut in (1, 3, 5, 6, 20, len(whole) // 2, len(whole) - 1, len(whole), 4, 43):
            stream = await (r.connect() if inside else r.plain())
            await stream.send_all(whole[:cut])
            stalled.append(stream)
        await trio.sleep(0.1)
        began = trio.current_time()
        fresh = await r.tls()
        assert trio.current_time() - began < 1.0
        await Neighbour(r, fresh).is_served()
        await neighbour.is_served()
        if inside:  # the first bytes of a tunnel may be long in coming: nobody waits for them there
            stalled = stalled[1:]
        for stream in stalled:
            await read_to_end(stream)
        assert trio.current_time() - began < 8


async def test_a_hello_that_never_ends_is_not_collected(rig):
    async with beside(rig) as (r, _):
        stream = await r.connect()
        record = b"\x16\x03\x01\x40\x00"
        taken = 0
        with trio.move_on_after(20):
            try:
                await stream.send_all(record + b"\x01\xff\xff\xff" + b"a" * (0x4000 - 4))
                while taken < 2000:
                    await stream.send_all(record + b"a" * 0x4000)
                    taken += 1
            except trio.BrokenResourceError:
                pass
        assert taken < 1000  # the kernels hold some megabytes
        await read_to_end(stream)


async def test_a_client_that_leaves_in_the_middle_of_anything(rig):
    async with beside(rig) as (r, neighbour):
        whole = hello_bytes()
        for start, cut in [(b"", 0), (b"GE", 0), (b"CONNECT api.anth", 0), (b"", 10), (b"", len(whole)), (GOOD[:50], 0),
                           (GOOD[:-5], 0), (GOOD, 0)]:  # fmt: skip
            for reset in (False, True):
                if cut:
                    stream = await r.connect()
                    await stream.send_all(whole[:cut])
                else:
                    stream = await r.plain()
                    await stream.send_all(start)
                if reset:
                    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await trio.sleep(0.01)
                stream.socket.close()
        await neighbour.is_served()
        with trio.fail_after(5):
            while r.proxy.counters.connections_open > 1:
                await trio.sleep(0.02)
        assert r.proxy.counters.exchanges_open == 0


# -- heads that are slow or large -------------------------------------------------------------------------------------


async def test_slow_heads_hold_up_nobody_and_end(rig):
    async with beside(rig, head_timeout="1") as (r, neighbour):
        streams = [await r.plain() for _ in range(150)]
        tls = [await r.tls() for _ in range(10)]
        for stream in [*streams, *tls]:
            await stream.send_all(b"POST /v1/messages HTTP/1.1\r\n")

        async def drip(stream, answers):
            try:
                for number in range(100):
                    await stream.send_all(b"X-%d: y\r\n" % number)
                    with trio.move_on_after(0.2):
                        answers.append((await stream.receive_some()).split(b"\r\n")[0])
                        return
            except trio.BrokenResourceError:
                answers.append((await read_to_end(stream)).split(b"\r\n")[0])

        answers = []
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for stream in [*streams, *tls]:
                nursery.start_soon(drip, stream, answers)
            for _ in range(5):
                await trio.sleep(0.1)
                await neighbour.is_served(1.0)
        assert trio.current_time() - began < 6
        assert answers.count(b"HTTP/1.1 408 Request Timeout") >= 150
        assert len(answers) == 160


async def test_a_blank_line_now_and_then_is_no_head_either(rig):
    async with beside(rig, head_timeout="1", client_idle_timeout="1") as (r, _):
        stream = await r.plain()
        with trio.fail_after(15):
            try:
                for _ in range(100):
                    await stream.send_all(b"\r\n")
                    with trio.move_on_after(0.1):
                        await read_to_end(stream)
                        break
            except trio.BrokenResourceError:
                pass


def test_limits_are_what_the_tests_think():
    from pathlib import Path

    from dbproxy.config import Settings

    settings = Settings(data_dir=Path("x"))
    assert (settings.max_head_bytes, settings.max_head_fields) == (262_144, 1000)


async def test_a_64_kib_header_line_passes_unchanged(rig):
    async with beside(rig) as (r, _):
        line = b"X-Long: " + b"v" * 65_536
        stream = await r.tls()
        await stream.send_all(GOOD.replace(b"x-api-key: k", b"x-api-key: k\r\n" + line))
        assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 200 ")
        assert line + b"\r\n" in r.origin.requests[-1].head


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("ends", [True, False], ids=["complete", "endless"])
async def test_a_head_over_the_limit_is_a_431(rig, tls, ends):
    async with beside(rig) as (r, _):
        head = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"v" * 262_144 + (b"\r\n\r\n" if ends else b"v" * 300_000)
        got = await sent(r, head, tls=tls)
        assert_refused(got, 431)


@pytest.mark.parametrize("count", [1001, 10_000])
async def test_too_many_fields_are_a_431(rig, count):
    async with beside(rig) as (r, _):
        before = len(r.origin.requests)
        fields = b"".join(b"A%d: b\r\n" % number for number in range(count))
        assert_refused(await sent(r, b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n"), 431)
        assert len(r.origin.requests) == before


async def test_many_fields_pass(rig):
    async with beside(rig) as (r, _):
        fields = b"".join(b"A%d: b\r\n" % number for number in range(900))
        stream = await r.tls()
        await stream.send_all(GOOD.replace(b"x-api-key: k\r\n", b"x-api-key: k\r\n" + fields))
        assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 200 ")
        assert fields in r.origin.requests[-1].head


# -- request smuggling ------------------------------------------------------------------------------------------------

_SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
_CL = b"Content-Length: %d\r\n" % len(_SMUGGLED)
_TE = b"Transfer-Encoding: chunked\r\n"
#: Fields whose reading differs between servers. Each must end the connection before the second request is one.
SHAPES = [
    _CL + _TE,
    _TE + _CL,
    _TE + b"Content-Length: 0\r\n",
    b"content-length: 4\r\ntransfer-ENCODING: CHUNKED\r\n",
    _CL + b"Transfer-Encoding: identity\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Content-Length: 5\r\nContent-Length: 5\r\n",
    b"Content-Length: 5, 6\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: -5\r\n",
    b"Content-Length: 0x5\r\n",
    b"Content-Length: 5 5\r\n",
    b"Content-Length: 5_0\r\n",
    b"Content-Length: 5.0\r\n",
    b"Content-Length: 1e1\r\n",
    b"Content-Length:\r\n",
    b"Content-Length: \xb2\r\n",
    b"Content-Length: 99999999999999999999999\r\n",
    b"Content-Length : 5\r\n",
    b" Content-Length: 5\r\n",
    b"X: y\r\n Content-Length: 5\r\n",
    b"Content-Length: 5\x0b\r\n",
    b"Content-Length: 5\r \n",
    b"Content\x00-Length: 5\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding:\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"Transfer-Encoding: \x0cchunked\r\n",
    b"Transfer-Encoding: chunked\x00\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n",
    b"Transfer-Encoding\x00: chunked\r\n",
    b"Transfer-Encoding: chunked;q=1\r\n",
    b'Transfer-Encoding: "chunked"\r\n',
    b"Transfer-Encoding: 'chunked'\r\n",
    b"Transfer-Encoding: chun\tked\r\n",
    b"X: y\rTransfer-Encoding: chunked\r\n",
    b"\rTransfer-Encoding: chunked\r\n",
]


@pytest.mark.parametrize("held", [False, True], ids=["streamed", "held"])
@pytest.mark.parametrize("tls", [False, True], ids=["base url", "tunnel"])
async def test_smuggling_shapes_are_refused(rig, held, tls):
    assert len(SHAPES) >= 30
    async with beside(rig, plugins=(("reader", Reader()),) if held else ()) as (r, _):
        before = len(r.origin.requests)
        for shape in SHAPES:
            got = await sent(r, b"POST /v1/messages HTTP/1.1\r\nHost: x\r\n" + shape + b"\r\n" + _SMUGGLED, tls=tls)
            assert got, shape
            assert_refused(got, 400, 501)
            assert got.count(b"HTTP/1.1 ") == 1, shape
            assert len(r.origin.requests) == before, shape


async def test_http_1_0_with_a_transfer_coding_is_refused(rig):
    async with beside(rig) as (r, _):
        got = await sent(r, b"POST /v1/messages HTTP/1.0\r\nHost: x\r\n" + _TE + b"\r\n" + _SMUGGLED)
        assert_refused(got, 400)


@pytest.mark.parametrize(
    "nominated", [b"content-length", b"transfer-encoding", b"host", b"Content-Length, close", b"trailer"]
)
async def test_connection_cannot_take_the_framing_away(rig, nominated):
    async with beside(rig) as (r, _):
        stream = await r.tls()
        await stream.send_all(GOOD.replace(b"x-api-key: k", b"Connection: " + nominated))
        await read_head(stream)
        received = r.origin.requests[-1]
        assert received.header("content-length") == str(len(BODY))
        assert received.header("host")


async def test_a_body_with_a_get_is_that_requests_body(rig):
    async with beside(rig) as (r, _):
        before = len(r.origin.requests)
        stream = await r.tls()
        inner = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        one = b"GET /v1/models HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n" % (HOST.encode(), len(inner))
        await stream.send_all(one + inner + b"GET /v1/second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await read_to_end(stream)
        assert [request.path for request in r.origin.requests[before:]] == ["/v1/models", "/v1/second"]


CHUNKS = [
    b"x\r\n",
    b"-5\r\nabcde\r\n0\r\n\r\n",
    b"+5\r\nabcde\r\n0\r\n\r\n",
    b"0x5\r\nabcde\r\n0\r\n\r\n",
    b"5_0\r\nabcde\r\n0\r\n\r\n",
    b" 5\r\nabcde\r\n0\r\n\r\n",
    b"\r\nabcde\r\n0\r\n\r\n",
    b"5\nabcde\n0\n\n",
    b"5\r\nabcdeX\r\n0\r\n\r\n",
    b"5\r\nabcdeXX0\r\n\r\n",
    b"4\r\nabcde\r\n0\r\n\r\n",
    b"5;\x00\r\nabcde\r\n0\r\n\r\n",
    b"5;a=\rb\r\nabcde\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\nabcde\r\n",
    b"5" * 5000 + b"\r\n",
    b"5;" + b"e" * 5000 + b"\r\nabcde\r\n0\r\n\r\n",
    b"0\r\nno trailer\r\n\r\n",
    b"0\r\n: x\r\n\r\n",
    b"0\r\nA : x\r\n\r\n",
    b"0\r\n" + b"A: b\r\n" * 8000 + b"\r\n",
    b"\xb2\r\nabcde\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("held", [False, True], ids=["streamed", "held"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
async def test_bad_chunks_end_the_request_on_both_sides(rig, held, late):
    async with beside(rig, plugins=(("reader", Reader()),) if held else ()) as (r, _):
        before = len(r.origin.requests)
        head = f"POST /v1/messages HTTP/1.1\r\nHost: {HOST}\r\n".encode() + _TE + b"\r\n"
        for chunks in CHUNKS:
            stream = await r.tls()
            await stream.send_all(head if late else head + chunks)
            if late:
                await trio.sleep(0.02)
                await stream.send_all(chunks)
            got = await read_to_end(stream)
            assert got, chunks[:30]
            assert_refused(got, 400)
        with trio.fail_after(5):  # an upstream that already saw the head must not take it for a whole request
            while any(not request.connection.gone.is_set() for request in r.origin.requests[before:]):
                await trio.sleep(0.01)
        assert not any(request.complete for request in r.origin.requests[before:])


class Reader:
    """Asks for bodies and does nothing with them."""

    @hookimpl
    def wants_body(self, exchange):
        return True


# -- names ------------------------------------------------------------------------------------------------------------


async def test_a_host_that_disagrees_with_the_absolute_target_is_replaced(rig):
    """RFC 9112 3.2.2: the target says what is meant."""
    async with beside(rig) as (r, _):
        port = r.origin.port
        stream = await r.plain()
        await stream.send_all(
            f"GET https://localhost:{port}/v1/models HTTP/1.1\r\nHost: evil.example\r\nx-api-key: k\r\n\r\n".encode()
        )
        await read_answer(stream)
        assert r.origin.requests[-1].header("host") == f"localhost:{port}"


async def test_a_wrong_host_inside_a_tunnel_still_reaches_only_the_tunnels_server(rig):
    async with beside(rig) as (r, _):
        stream = await r.tls()
        await stream.send_all(GOOD.replace(HOST.encode(), b"evil.example"))
        assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 200 ")
        assert r.origin.requests[-1].connection


async def test_an_absolute_target_to_ourselves_never_loops(rig):
    async with beside(rig) as (r, _):
        port = r.running.port
        own = f"127.0.0.1:{port}"
        got = await sent(r, f"GET http://{own}/health HTTP/1.1\r\nHost: {own}\r\nConnection: close\r\n\r\n".encode())
        assert got.startswith(b"HTTP/1.1 200 ")
        opened = r.proxy.counters.connections_total
        got = await sent(r, f"CONNECT localhost:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 3)
        assert got.startswith(b"HTTP/1.1 200 ")
        assert_refused(got.partition(b"\r\n\r\n")[2], 400)
        assert r.proxy.counters.connections_total == opened + 1


# -- too many ---------------------------------------------------------------------------------------------------------


async def test_more_connections_than_allowed_are_told_so(rig):
    async with beside(rig, max_connections="16") as (r, neighbour):
        streams = [await r.plain() for _ in range(15)]
        await trio.sleep(0.05)
        assert r.proxy.counters.connections_open == 16
        for reset in (False, True):
            stream = await r.plain()
            if reset:
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream.socket.close()
            else:
                assert_refused(await read_to_end(stream), 529)
        await neighbour.is_served()
        streams[0].socket.close()
        await trio.sleep(0.05)
        stream = await r.plain()
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await read_all(stream)).startswith(b"HTTP/1.1 200 ")


async def test_a_burst_of_resets_in_the_backlog_takes_nothing_along(rig):
    async with beside(rig, max_connections="16") as (r, neighbour):
        streams = [await r.plain() for _ in range(15)]
        for _ in range(60):
            sock = socket.create_connection(("127.0.0.1", r.running.port))
            sock.sendall(b"x")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        await trio.sleep(0.1)
        await neighbour.is_served()
        assert len(streams) == 15
