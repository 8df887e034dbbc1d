"""Hostile HTTP/2 clients: each is told to be calm or what it did, loses its connection, and disturbs nobody.

h2spec is in no package registry; its cases that matter to a server in front of an HTTP/1.1 upstream are in the table of
``test_h2spec_cases``, with the sections of RFC 9113 under which h2spec has them.
"""

from __future__ import annotations

import hpack
import pytest
import trio
from blackbox import STREAM
from h2client import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    H2Client,
    Raw,
    frame,
    open_tls,
)
from rig import HOST

from dbproxy.testing.origin import say

PROTOCOL_ERROR, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE, REFUSED, COMPRESSION, CALM = 1, 3, 5, 6, 7, 9, 11
CANCEL = (8).to_bytes(4, "big")


def block(*more, method="GET", path="/v1/models", pseudo=True):
    """A header block without entries in the dynamic table."""
    pairs = [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", path)] if pseudo else []
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*pair) for pair in [*pairs, *more]], huffman=False)


def get(stream, *more, flags=END_HEADERS | END_STREAM, **how):
    return frame(HEADERS, flags, stream, block(*more, **how))


def increment(stream, size):
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def setting(code, value):
    return frame(SETTINGS, 0, 0, code.to_bytes(2, "big") + value.to_bytes(4, "big"))


async def flooded(r, raw, frames, *, rounds=400):
    """Send until the server has enough of it; whether that happened."""
    try:
        with trio.fail_after(20):
            for number in range(rounds):
                await raw.send(*frames(number))
    except trio.BrokenResourceError:
        return True
    return await raw.read(5)


async def blamed(r):
    """Wait until the proxy has noted what the client did."""
    with trio.fail_after(5):
        while not r.proxy.counters.protocol_errors_total:
            await trio.sleep(0.01)
    assert r.proxy.counters.protocol_errors_total == 1


async def unharmed(r):
    """Another client is served, and nothing is left of the hostile one."""
    client = await H2Client.open(r)
    assert (await client.get()).status == 200
    with trio.fail_after(5):
        while len(r.running.server.connections) != 1 or r.proxy.counters.exchanges_open:
            await trio.sleep(0.01)
    assert not r.proxy.counters.crashes_total


FLOODS = {
    "ping": lambda n: [frame(PING, 0, 0, bytes(8))] * 50,
    "ping acks that nobody asked for": lambda n: [frame(PING, ACK, 0, bytes(8))] * 50,
    "settings": lambda n: [setting(3, 100)] * 10,
    "settings acks": lambda n: [frame(SETTINGS, ACK)] * 10,
    "empty settings": lambda n: [frame(SETTINGS)] * 10,
    "priority": lambda n: [frame(PRIORITY, 0, 2 * n + 1, bytes(5))] * 50,
    "unknown frames": lambda n: [frame(0xBB, 0, 0, b"x")] * 50,
    "window updates": lambda n: [increment(0, 1)] * 50,
    "rapid reset": lambda n: [get(2 * n + 1), frame(RST_STREAM, 0, 2 * n + 1, CANCEL)],
}


@pytest.mark.parametrize("name", FLOODS)
async def test_floods_end_in_enhance_your_calm(rig, name):
    async with rig(say("late", head_delay=5)) as r:
        raw = await Raw.open(r)
        began = trio.current_time()
        assert await flooded(r, raw, FLOODS[name], rounds=1200 if name == "rapid reset" else 400)
        await raw.read(0.5)
        # Our GOAWAY may be lost behind the reset that the flood itself brings about; the log has the reason.
        assert raw.goaway() in (CALM, None)
        assert trio.current_time() - began < 15
        await blamed(r)
        await unharmed(r)


async def test_the_goaway_of_a_flood_reaches_a_client_that_reads(rig):
    async with rig() as r:
        raw = await Raw.open(r)
        await raw.send(*[frame(PING, 0, 0, bytes(8))] * 1500)
        assert await raw.read(5)
        assert raw.goaway() == CALM
        await unharmed(r)


async def test_empty_data_without_end(rig):
    async with rig() as r:
        raw = await Raw.open(r)
        await raw.send(get(1, method="POST", flags=END_HEADERS))
        await flooded(r, raw, lambda n: [frame(DATA, 0, 1), frame(DATA, PADDED, 1, b"\x02\0\0")] * 20)
        await blamed(r)
        await unharmed(r)


@pytest.mark.parametrize("size", [0, 1, 16000])
async def test_a_header_block_without_end(rig, size):
    """CVE-2024-27316 and its kin: CONTINUATION after CONTINUATION, empty or full."""
    piece = (b"\x40\x01a\x7f\x00" + b"x" * 127) * 200
    async with rig() as r:
        raw = await Raw.open(r)
        await raw.send(frame(HEADERS, END_STREAM, 1, block()))
        assert await flooded(r, raw, lambda n: [frame(CONTINUATION, 0, 1, piece[:size])], rounds=200)
        assert raw.goaway() in (CALM, None)
        await blamed(r)
        await unharmed(r)


async def test_a_small_block_that_decodes_to_a_huge_list(rig):
    """CVE-2016-6581: one entry of the table, referred to again and again."""
    async with rig(max_head_bytes="16384") as r:
        raw = await Raw.open(r)
        encoder = hpack.Encoder()
        first = encoder.encode([("x-bomb", "v" * 3900)], huffman=False)
        await raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + first + b"\xbe" * 4000))
        assert await raw.read(5)
        assert raw.goaway() == CALM
        await unharmed(r)


async def test_rapid_reset_never_reaches_many_upstreams_at_once(rig):
    """CVE-2023-44487: a stream that is reset at once counts until its exchange is really over."""
    async with rig(say("late", head_delay=30)) as r:
        raw = await Raw.open(r)
        await flooded(r, raw, FLOODS["rapid reset"], rounds=450)
        assert r.proxy.counters.exchanges_total <= 450
        with trio.fail_after(5):
            while r.proxy.counters.exchanges_open:
                await trio.sleep(0.01)


async def test_an_honest_client_may_cancel_a_lot(rig):
    async with rig(say("late", head_delay=30)) as r:
        client = await H2Client.open(r)
        for _ in range(4):
            numbers = [await client.ask("POST", "/v1/messages", STREAM) for _ in range(50)]
            for number in numbers:
                client.conn.reset_stream(number, 8)
            await client.flush()
        assert (await client.get()).status == 200


async def test_an_honest_client_acknowledges_every_event(rig):
    """Two WINDOW_UPDATEs for each small DATA frame are usual; they are paid for by the frames that they answer."""
    async with rig(say("word " * 3000, delta_chars=5, gap=0.0002)) as r:
        raw = await Raw.open(r)
        await raw.send(
            frame(
                HEADERS, END_HEADERS, 1, block(("content-type", "application/json"), method="POST", path="/v1/messages")
            )
        )
        await raw.send(frame(DATA, END_STREAM, 1, STREAM))
        seen = 0
        with trio.fail_after(30):
            while not any(kind == DATA and flags & END_STREAM for kind, flags, *_ in raw.frames):
                assert not await raw.read(0.02)
                fresh = [p for kind, _, _, p in raw.frames[seen:] if kind == DATA and p]
                seen = len(raw.frames)
                for payload in fresh:
                    await raw.send(increment(0, len(payload)), increment(1, len(payload)))
        assert raw.goaway() is None
        assert sum(kind == DATA for kind, *_ in raw.frames) > 1000


async def test_a_client_that_opens_its_window_byte_by_byte_is_sent_away(rig):
    async with rig(say("word " * 4000)) as r:
        raw = Raw(await open_tls(r))
        await raw.send(PREFACE, setting(4, 0))
        await raw.send(
            frame(HEADERS, END_HEADERS, 1, block(method="POST", path="/v1/messages")),
            frame(DATA, END_STREAM, 1, STREAM),
        )
        ended = False
        with trio.fail_after(20):
            for _ in range(3000):
                await raw.send(increment(1, 1))
                data = await raw.stream.receive_some()
                if not data or data[3] == GOAWAY:
                    ended = True
                    break
        assert ended
        await blamed(r)
        await unharmed(r)


async def test_a_client_that_pings_and_never_reads_is_not_answered_without_end(rig):
    async with rig() as r:
        raw = Raw(await open_tls(r))
        await raw.send(PREFACE, frame(SETTINGS))
        with trio.move_on_after(10):
            try:
                while True:
                    await raw.send(*[frame(PING, 0, 0, bytes(8))] * 10)
                    await trio.sleep(0.001)
            except trio.BrokenResourceError:
                pass
        await blamed(r)
        await unharmed(r)


async def test_the_peers_table_size_is_not_our_memory(rig):
    async with rig() as r:
        raw = Raw(await open_tls(r))
        await raw.send(PREFACE, setting(1, 0x7FFFFFFF))
        await raw.send(get(1))
        await raw.read(0.5)
        (server,) = r.running.server.h2
        assert server.mux.wire._conn.encoder.header_table_size <= 4096
        decoder = hpack.Decoder()
        decoder.max_allowed_table_size = 0x7FFFFFFF
        heads = [p for kind, _, _, p in raw.frames if kind == HEADERS]
        assert (":status", "200") in [tuple(pair) for pair in decoder.decode(heads[0])]


async def test_more_streams_than_allowed(rig):
    async with rig(say("late", head_delay=5)) as r:
        raw = await Raw.open(r)
        for number in range(150):
            await raw.send(frame(HEADERS, END_HEADERS, 2 * number + 1, block(method="POST", path="/v1/messages")))
        assert await raw.read(5)
        assert raw.goaway() == PROTOCOL_ERROR
        assert r.proxy.counters.exchanges_total <= 100


# name: (what is sent behind the preface and SETTINGS, codes of the GOAWAY or RST_STREAM that are right)
H2SPEC = {
    "4.1 unknown frame type is ignored": ([frame(0x16, 0, 0, bytes(8)), get(1)], None),
    "4.1 undefined flags are ignored": ([frame(PING, 0x16, 0, bytes(8)), get(1)], None),
    "4.2 DATA larger than allowed": ([get(1, flags=END_HEADERS), frame(DATA, 0, 1, bytes(16385))], {FRAME_SIZE}),
    "4.2 HEADERS larger than allowed": ([frame(HEADERS, END_HEADERS, 1, bytes(16385))], {FRAME_SIZE}),
    "4.3 invalid header block": (
        [frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x00\x00\x00\x00")],
        {COMPRESSION, PROTOCOL_ERROR},
    ),
    "4.3 PRIORITY inside a header block": (
        [frame(HEADERS, END_STREAM, 1, block()), frame(PRIORITY, 0, 1, bytes(5))],
        {PROTOCOL_ERROR},
    ),
    "4.3 HEADERS inside another's header block": ([frame(HEADERS, END_STREAM, 1, block()), get(3)], {PROTOCOL_ERROR}),
    "5.1 idle: DATA": ([frame(DATA, END_STREAM, 1, b"x")], {PROTOCOL_ERROR, STREAM_CLOSED}),
    "5.1 idle: RST_STREAM": ([frame(RST_STREAM, 0, 1, CANCEL)], {PROTOCOL_ERROR}),
    "5.1 idle: WINDOW_UPDATE": ([increment(1, 100)], {PROTOCOL_ERROR}),
    "5.1 idle: CONTINUATION": ([frame(CONTINUATION, END_HEADERS, 1, block())], {PROTOCOL_ERROR}),
    "5.1 half closed: DATA": ([get(1), frame(DATA, END_STREAM, 1, b"x")], {STREAM_CLOSED, PROTOCOL_ERROR}),
    "5.1 half closed: HEADERS": ([get(1), get(1)], {STREAM_CLOSED, PROTOCOL_ERROR}),
    "5.1 reset: HEADERS": ([get(1, flags=END_HEADERS), frame(RST_STREAM, 0, 1, CANCEL), get(1)], {STREAM_CLOSED}),
    "5.1 reset: DATA": (
        [get(1, flags=END_HEADERS), frame(RST_STREAM, 0, 1, CANCEL), frame(DATA, 1, 1, b"x")],
        {STREAM_CLOSED},
    ),
    "5.1.1 even stream number": ([get(2)], {PROTOCOL_ERROR}),
    "5.1.1 smaller stream number": ([get(5), get(3)], {PROTOCOL_ERROR, STREAM_CLOSED}),
    "5.3.1 stream depends on itself by HEADERS": (
        [frame(HEADERS, END_HEADERS | END_STREAM | 0x20, 1, (1).to_bytes(4, "big") + b"\xff" + block())],
        {PROTOCOL_ERROR},
    ),
    "5.4.1 GOAWAY ends": ([frame(GOAWAY, 0, 0, bytes(7) + b"\1")], {0, None}),
    "6.1 DATA on stream 0": ([frame(DATA, END_STREAM, 0, b"x")], {PROTOCOL_ERROR}),
    "6.1 DATA with too much padding": (
        [get(1, flags=END_HEADERS), frame(DATA, PADDED | END_STREAM, 1, b"\x09x")],
        {PROTOCOL_ERROR},
    ),
    "6.2 HEADERS on stream 0": ([get(0)], {PROTOCOL_ERROR}),
    "6.2 HEADERS with too much padding": (
        [frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\xff" + block())],
        {PROTOCOL_ERROR},
    ),
    "6.3 PRIORITY on stream 0": ([frame(PRIORITY, 0, 0, bytes(5))], {PROTOCOL_ERROR}),
    "6.3 PRIORITY of another size": ([frame(PRIORITY, 0, 1, bytes(4))], {FRAME_SIZE}),
    "6.4 RST_STREAM on stream 0": ([frame(RST_STREAM, 0, 0, CANCEL)], {PROTOCOL_ERROR}),
    "6.4 RST_STREAM of another size": ([get(1, flags=END_HEADERS), frame(RST_STREAM, 0, 1, bytes(3))], {FRAME_SIZE}),
    "6.5 SETTINGS ACK with a payload": ([frame(SETTINGS, ACK, 0, bytes(6))], {FRAME_SIZE}),
    "6.5 SETTINGS on a stream": ([frame(SETTINGS, 0, 1)], {PROTOCOL_ERROR}),
    "6.5 SETTINGS of an odd size": ([frame(SETTINGS, 0, 0, bytes(5))], {FRAME_SIZE}),
    "6.5.2 ENABLE_PUSH neither 0 nor 1": ([setting(2, 2)], {PROTOCOL_ERROR}),
    "6.5.2 INITIAL_WINDOW_SIZE too large": ([setting(4, 1 << 31)], {FLOW_CONTROL}),
    "6.5.2 MAX_FRAME_SIZE too small": ([setting(5, 16383)], {PROTOCOL_ERROR}),
    "6.5.2 MAX_FRAME_SIZE too large": ([setting(5, 1 << 24)], {PROTOCOL_ERROR}),
    "6.5.2 unknown setting is ignored": ([setting(0xFF, 1), get(1)], None),
    "6.6 PUSH_PROMISE from a client": (
        [get(1, flags=END_HEADERS), frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4) + block())],
        {PROTOCOL_ERROR},
    ),
    "6.7 PING on a stream": ([frame(PING, 0, 1, bytes(8))], {PROTOCOL_ERROR}),
    "6.7 PING of another size": ([frame(PING, 0, 0, bytes(6))], {FRAME_SIZE}),
    "6.8 GOAWAY on a stream": ([frame(GOAWAY, 0, 1, bytes(8))], {PROTOCOL_ERROR}),
    "6.9 WINDOW_UPDATE of 0 on the connection": ([increment(0, 0)], {PROTOCOL_ERROR}),
    "6.9 WINDOW_UPDATE of 0 on a stream": ([get(1, flags=END_HEADERS), increment(1, 0)], {PROTOCOL_ERROR}),
    "6.9 WINDOW_UPDATE of another size": ([frame(WINDOW_UPDATE, 0, 0, bytes(3))], {FRAME_SIZE}),
    "6.9.1 connection window beyond its largest": ([increment(0, 0x7FFFFFFF)] * 2, {FLOW_CONTROL}),
    "6.9.1 stream window beyond its largest": (
        [get(1, flags=END_HEADERS), *[increment(1, 0x7FFFFFFF)] * 2],
        {FLOW_CONTROL},
    ),
    "6.10 CONTINUATION behind END_HEADERS": (
        [get(1), frame(CONTINUATION, END_HEADERS, 1, block(pseudo=False))],
        {PROTOCOL_ERROR, STREAM_CLOSED},
    ),
    "6.10 CONTINUATION on stream 0": (
        [frame(HEADERS, END_STREAM, 1, block()), frame(CONTINUATION, END_HEADERS, 0)],
        {PROTOCOL_ERROR},
    ),
    "8.1 trailers without END_STREAM": (
        [get(1, flags=END_HEADERS), get(1, ("x", "y"), flags=END_HEADERS, pseudo=False)],
        {PROTOCOL_ERROR},
    ),
    "8.2.1 upper-case name": ([get(1, ("X-Test", "ok"))], {PROTOCOL_ERROR}),
    "8.2.1 line end in a value": ([get(1, ("x-test", "a\r\nhost: evil"))], {PROTOCOL_ERROR}),
    "8.2.1 NUL in a value": ([get(1, ("x-test", "a\0b"))], {PROTOCOL_ERROR}),
    "8.2.1 colon in a name": ([get(1, ("x:test", "a"))], {PROTOCOL_ERROR}),
    "8.2.2 connection field": ([get(1, ("connection", "keep-alive"))], {PROTOCOL_ERROR}),
    "8.2.2 transfer-encoding": ([get(1, ("transfer-encoding", "chunked"))], {PROTOCOL_ERROR}),
    "8.2.2 TE other than trailers": ([get(1, ("te", "trailers, deflate"))], {PROTOCOL_ERROR}),
    "8.3 unknown pseudo-header": ([get(1, (":test", "ok"))], {PROTOCOL_ERROR}),
    "8.3 pseudo-header of an answer": ([get(1, (":status", "200"))], {PROTOCOL_ERROR}),
    "8.3 pseudo-header behind a field": (
        [frame(HEADERS, 5, 1, block(("a", "b"), (":path", "/"), pseudo=False))],
        {PROTOCOL_ERROR},
    ),
    "8.3 pseudo-header in trailers": (
        [get(1, flags=END_HEADERS, method="POST"), get(1, (":method", "GET"), pseudo=False)],
        {PROTOCOL_ERROR},
    ),
    "8.3.1 empty :path": ([get(1, path="")], {PROTOCOL_ERROR}),
    "8.3.1 no :method": (
        [frame(HEADERS, 5, 1, block((":scheme", "https"), (":path", "/"), pseudo=False))],
        {PROTOCOL_ERROR},
    ),
    "8.3.1 :method twice": ([get(1, (":method", "GET"))], {PROTOCOL_ERROR}),
    "8.3.1 a Host that differs": ([get(1, ("host", "evil.example"))], {PROTOCOL_ERROR}),
    "8.1.1 content-length and no body": ([get(1, ("content-length", "1"))], {PROTOCOL_ERROR}),
    "8.1.1 content-length of another length": (
        [get(1, ("content-length", "1"), method="POST", flags=END_HEADERS), frame(DATA, END_STREAM, 1, b"test")],
        {PROTOCOL_ERROR},
    ),
    "8.1.1 content-length twice": (
        [get(1, ("content-length", "1"), ("content-length", "2"), method="POST", flags=END_HEADERS)],
        {PROTOCOL_ERROR},
    ),
    "8.1.1 content-length that is no number": (
        [get(1, ("content-length", "+1"), method="POST", flags=END_HEADERS)],
        {PROTOCOL_ERROR},
    ),
}


@pytest.mark.parametrize("name", H2SPEC)
async def test_h2spec_cases(rig, name):
    sent, codes = H2SPEC[name]
    async with rig(head_timeout="1") as r:
        raw = await Raw.open(r)
        await raw.send(*sent)
        if codes is None:
            await raw.read(0.5)
            assert raw.goaway() is None
            assert not raw.resets()
            assert any(kind == HEADERS for kind, *_ in raw.frames)
            return
        if None in codes:
            assert await raw.read(5)
            return
        with trio.fail_after(5):
            while raw.goaway() is None and not raw.resets():
                await raw.read(0.05)
        assert {raw.goaway(), *raw.resets().values()} & codes
        assert not r.proxy.counters.crashes_total


async def test_h2spec_windows(rig):
    """6.9.1, 6.9.2: a window of one byte, one that grows, one that was made negative by a later SETTINGS."""
    async with rig() as r:
        raw = Raw(await open_tls(r))
        await raw.send(PREFACE, setting(4, 1), get(1))
        await raw.read(0.3)
        sizes = [len(p) for kind, _, stream, p in raw.frames if (kind, stream) == (DATA, 1)]
        assert sizes == [1]
        await raw.send(setting(4, 3))
        await raw.read(0.3)
        assert sum(len(p) for kind, *_, p in raw.frames if kind == DATA) == 3
        await raw.send(setting(4, 2), increment(1, 1))
        await raw.read(0.3)
        assert sum(len(p) for kind, *_, p in raw.frames if kind == DATA) == 3
        await raw.send(increment(1, 3))
        await raw.read(0.3)
        assert sum(len(p) for kind, *_, p in raw.frames if kind == DATA) == 6
        await raw.send(setting(4, 100000))
        await raw.read(0.3)
        assert any(kind == DATA and flags & END_STREAM for kind, flags, *_ in raw.frames)


async def test_h2spec_ping_is_answered_with_its_payload(rig):
    async with rig() as r:
        raw = await Raw.open(r)
        await raw.send(frame(PING, 0, 0, b"h2spec!!"))
        await raw.read(0.3)
        assert (PING, ACK, 0, b"h2spec!!") in raw.frames


@pytest.mark.parametrize("at", range(0, 200, 13))
async def test_any_cut_of_a_connection_leaves_nothing(rig, at):
    async with rig(say("late", head_delay=5)) as r:
        sent = (
            PREFACE
            + frame(SETTINGS)
            + frame(HEADERS, END_HEADERS, 1, block(method="POST", path="/v1/messages"))
            + frame(DATA, 0, 1, STREAM)
        )
        raw = Raw(await open_tls(r))
        await raw.send(sent[:at])
        await trio.sleep(0.05)
        raw.stream.transport_stream.socket.close()
        with trio.fail_after(5):
            while r.running.server.connections or r.proxy.counters.exchanges_open:
                await trio.sleep(0.01)
        assert not r.proxy.counters.crashes_total
