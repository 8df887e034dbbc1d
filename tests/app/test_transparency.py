"""N3 and its kin: what nobody asked us to change arrives as it left, both ways, through real sockets."""

from __future__ import annotations

import gzip
import json
import zlib

import brotli
import pytest
import trio
import zstandard
from blackbox import BODY, STREAM, Watcher, chunked, raw_upstream, read_response, request, strict, tls_client, untouched
from rig import HOST, read_all, read_exactly, read_head

from dbproxy.api import Accumulator, Outcome, hookimpl
from dbproxy.testing.origin import Answer, document, fail, say

ODD = (
    "X-CASE: Kept\r\nx-lower:tight\r\nX-Pad:   \t padded \t \r\nX-Empty:\r\nX-Latin: caf\xe9\r\nX-Twice: 1\r\n"
    'Cookie: a=b\r\nX-Twice: 2\r\nx-twice: 3\r\nCookie: c=d\r\nX-Unknown-Thing: {"a": [1, 2]}\r\n'
)
ANSWER = (
    b"HTTP/1.1 200 Quite  Fine\r\nX-CASE: Kept\r\nx-lower:tight\r\nX-Pad:   \t padded \t \r\nX-Empty:\r\n"
    b"X-Latin: caf\xe9\r\nSet-Cookie: a=b\r\nDate: now\r\nSet-Cookie: c=d\r\nSERVER: odd\r\n"
)


async def through(stream, sent, **how):
    await stream.send_all(sent)
    return await read_response(stream, **how)


def arrived(received):
    return received.head + received.framed


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [0, 1, 7, 100_000])
async def test_n3_an_unchanged_request_goes_out_byte_for_byte(rig, chunks):
    """Names, order, case, spacing, repeated and unknown fields, and the very chunks of its body."""
    async with rig() as r:
        sent = request(extra=ODD, chunks=chunks)
        await through(await r.tls(), sent)
        (received,) = r.origin.requests
        assert arrived(received) == untouched(sent, authority=r.origin.url.removeprefix("https://"))


class Holder:
    """Has every body read whole and changes nothing."""

    def __init__(self):
        self.bodies = []

    @hookimpl
    def wants_body(self, exchange):
        return True

    @hookimpl
    def intercept_request(self, exchange):
        self.bodies.append(exchange.body)

    @hookimpl
    def transform_request(self, exchange, request):
        return request


@pytest.mark.parametrize("chunks", [0, 1, 7])
async def test_n3_a_request_that_a_policy_read_and_left_alone_too(rig, chunks):
    holder = Holder()
    async with rig(plugins=(("holder", holder),)) as r:
        sent = request(extra=ODD, chunks=chunks)
        await through(await r.tls(), sent)
        (received,) = r.origin.requests
        assert arrived(received) == untouched(sent, authority=r.origin.url.removeprefix("https://"))
        assert holder.bodies == [BODY]


async def test_fields_of_the_hop_end_here_and_those_that_connection_names(rig):
    async with rig() as r:
        sent = (
            f"GET /v1/models HTTP/1.1\r\nHost: {HOST}\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nX-Mine: 1\r\n"
            "Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\n"
            "Connection: keep-alive, X-Mine, Host\r\nX-Theirs: 2\r\nx-api-key: k\r\n\r\n"
        )
        await through(await r.tls(), sent.encode())
        names = [name.decode().lower() for name, _ in r.origin.requests[0].fields]
        assert names == ["host", "x-theirs", "x-api-key"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get"])
async def test_any_method_passes(rig, method):
    async with rig() as r:
        sent = request("/v1/files/x%20y?a=b&&c=%00#", method=method, body=None)
        await through(await r.tls(), sent)
        assert r.origin.requests[0].head == untouched(sent, authority=r.origin.url.removeprefix("https://"))


async def test_keep_alive_and_requests_sent_ahead(rig):
    """Twenty requests in one write come back in order, on one upstream connection."""
    async with rig() as r:
        stream = await r.tls()
        sent = [request(f"/v1/messages?n={number}", chunks=number % 3 * 11) for number in range(20)]
        await stream.send_all(b"".join(sent))
        rest = b""
        for number in range(20):
            answer = await read_response(stream, rest)
            rest = answer.rest
            assert answer.fields["request-id"] == f"req_origin{number + 1:06d}"
        authority = r.origin.url.removeprefix("https://")
        assert [arrived(x) for x in r.origin.requests] == [untouched(one, authority=authority) for one in sent]
        assert len({x.connection.number for x in r.origin.requests}) == 1


async def test_a_pipelined_connection_ends_where_the_client_said_close(rig):
    async with rig() as r:
        stream = await r.tls()
        await stream.send_all(request(close=True) + request())
        answer = await read_response(stream)
        assert answer.fields["connection"] == "close"
        assert await read_all(stream, answer.rest) == b""
        assert len(r.origin.requests) == 1


async def test_blank_lines_between_requests_are_skipped(rig):
    async with rig() as r:
        stream = await r.tls()
        for _ in range(2):
            assert (await through(stream, b"\r\n\r\n" + request())).status == 200


# -- answers ----------------------------------------------------------------------------------------------------------


async def answering(stream, *pieces, gap=0.0):
    """A raw server: takes one request after the other and answers each with ``pieces``."""
    rest = b""
    while True:
        while b"\r\n\r\n" not in rest:
            data = await stream.receive_some()
            if not data:
                return
            rest += data
        head, rest = await read_head(stream, rest)
        size = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if size:
            count = int(size[0].split(b":")[1])
            rest = (await read_exactly(stream, count, rest))[count:]
        for piece in pieces:
            await stream.send_all(piece)
            if gap:
                await trio.sleep(gap)


async def test_n3_an_answer_comes_back_byte_for_byte(rig, tmp_path):
    body = chunked(b"abc" * 50, 7)
    head = ANSWER + b"Transfer-Encoding: chunked\r\n\r\n"
    async with raw_upstream(lambda stream: answering(stream, head, body), tmp_path) as up, rig(**up.settings) as r:
        answer = await through(await r.tls(), request())
        assert answer.head == head
        assert answer.framed == body


async def test_fields_of_the_hop_are_taken_out_of_answers(rig, tmp_path):
    head = ANSWER + b"Connection: keep-alive, X-Lower\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\n"
    async with raw_upstream(lambda stream: answering(stream, head, b"ok"), tmp_path) as up, rig(**up.settings) as r:
        answer = await through(await r.tls(), request())
        kept = [
            line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection", b"keep-", b"x-low"))
        ]
        assert answer.head == b"\r\n".join(kept)
        assert answer.body == b"ok"


async def test_chunk_extensions_and_trailers_survive(rig, tmp_path):
    head = b"HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'3;name="a";b\r\nabc\r\n0003\r\ndef\r\n0;last\r\nX-Sum: 1\r\nx-other:  2\r\n\r\n'
    async with raw_upstream(lambda stream: answering(stream, head, body), tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        for _ in range(2):
            answer = await through(stream, request())
            assert (answer.head, answer.framed, answer.rest) == (head, body, b"")
        assert len(up.seen) == 1


async def test_trailers_of_a_request_survive(rig):
    async with rig() as r:
        head = request(body=None, extra="Trailer: x-sum\r\nTransfer-Encoding: chunked\r\n")
        sent = head + chunked(BODY, 9, trailers="X-Sum: 77\r\n")
        await through(await r.tls(), sent)
        (received,) = r.origin.requests
        assert arrived(received) == untouched(sent, authority=r.origin.url.removeprefix("https://"))
        assert [(name.lower(), value) for name, value in received.trailers] == [(b"x-sum", b"77")]


async def test_n1_every_split_of_every_byte_arrives(rig):
    """Multibyte text in chunks of one byte, each written alone."""
    text = "zażółć 漢字 🙂 " * 3
    async with rig(say(text, chunk_size=1, framing="chunked")) as r:
        answer = await through(await r.tls(), request(body=STREAM))
        assert answer.framed == bytes(r.origin.requests[0].sent.framed)
        accumulator = Accumulator()
        for event in answer.body.split(b"\n\n"):
            name, data = (b"", b"")
            for line in event.split(b"\n"):
                key, _, value = line.partition(b": ")
                name, data = (value, data) if key == b"event" else (name, value)
            if name:
                accumulator.feed(name, data)
        assert accumulator.message["content"][0]["text"] == text


async def test_n1_a_tap_sees_the_text_whole_whatever_the_split(rig):
    text = "zażółć 漢字 🙂 " * 3
    tap = Tap()
    async with rig(say(text, chunk_size=1, framing="chunked"), plugins=(("tap", tap),)) as r:
        answer = await through(await r.tls(), request(body=STREAM))
        await tap.ended(1)
        assert b"".join(tap.events) == answer.body


class Tap:
    """Collects what taps are shown."""

    def __init__(self):
        self.events, self.bodies, self.lost_bytes, self.outcomes = [], [], 0, []
        self._changed = trio.Event()

    @hookimpl
    def stream_tap(self, exchange, head):
        return self

    def event(self, event):
        self.events.append(event.raw)

    def body(self, data):
        self.bodies.append(data)

    def lost(self, count):
        self.lost_bytes += count

    def end(self, outcome):
        self.outcomes.append(outcome)
        self._changed.set()
        self._changed = trio.Event()

    async def ended(self, count):
        with trio.fail_after(10):
            while len(self.outcomes) < count:
                await self._changed.wait()


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "deflate-raw"])
async def test_n15_a_coded_answer_stays_coded_and_taps_read_it(rig, coding, framing):
    tap = Tap()
    async with rig(say("word " * 200, coding=coding, framing=framing), plugins=(("tap", tap),)) as r:
        answer = await through(await r.tls(), request(body=STREAM))
        received = r.origin.requests[0]
        assert answer.fields["content-encoding"] == coding.removesuffix("-raw")
        assert answer.body == bytes(received.sent.body)
        assert answer.framed == bytes(received.sent.framed)
        plain = {
            "gzip": gzip.decompress,
            "br": brotli.decompress,
            "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
            "deflate": zlib.decompress,
            "deflate-raw": lambda data: zlib.decompress(data, -15),
        }[coding](answer.body)
        assert b"message_stop" in plain
        await tap.ended(1)
        assert b"".join(tap.events) == plain
        assert tap.lost_bytes == 0


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_n15_a_coded_request_stays_coded(rig, coding, held):
    packed = gzip.compress(BODY) if coding == "gzip" else zstandard.ZstdCompressor().compress(BODY)
    plugins = (("holder", Holder()),) if held else ()
    async with rig(plugins=plugins) as r:
        sent = request(body=packed, extra=f"Content-Encoding: {coding}\r\n")
        assert (await through(await r.tls(), sent)).status == 200
        (received,) = r.origin.requests
        assert arrived(received) == untouched(sent, authority=r.origin.url.removeprefix("https://"))
        assert received.decoded == BODY


@pytest.mark.parametrize("status", [429, 529])
async def test_n4_errors_keep_what_tells_the_client_when_to_come_back(rig, status):
    fields = (
        ("retry-after", "17"),
        ("x-should-retry", "true"),
        ("anthropic-ratelimit-unified-status", "allowed_warning"),
        ("anthropic-ratelimit-requests-remaining", "0"),
        ("anthropic-ratelimit-unified-5h-utilization", "0.93"),
    )
    async with rig(fail(status, "later", fields=fields)) as r:
        answer = await through(await r.tls(), request())
        assert answer.status == status
        for name, value in fields:
            assert answer.fields[name] == value
        assert answer.fields["request-id"] == "req_origin000001"
        assert answer.head == r.origin.requests[0].sent.head
        assert answer.body == bytes(r.origin.requests[0].sent.body)
        assert len(r.origin.requests) == 1  # repeating is the client's business


async def test_n4_a_success_keeps_its_rate_limits(rig):
    async with rig() as r:
        answer = await through(await r.tls(), request())
        assert answer.fields["anthropic-ratelimit-input-tokens-remaining"] == "1999999"
        assert answer.head == r.origin.requests[0].sent.head


@pytest.mark.parametrize("prefix", ["", "Bearer "])
async def test_c23_both_kinds_of_credentials_reach_the_api_and_nothing_else_keeps_them(rig, prefix):
    secret = "sk-ant-oat01-SECRET" if prefix else "sk-ant-api03-SECRET"
    field = f"authorization: {prefix}{secret}" if prefix else f"x-api-key: {secret}"
    sent = request().replace(b"x-api-key: k", field.encode())
    async with rig(log_level="DEBUG") as r:
        assert (await through(await r.tls(), sent)).status == 200
        name = field.partition(":")[0]
        assert r.origin.requests[0].header(name) == prefix + secret
        data_dir = r.data_dir
    kept = b"".join(path.read_bytes() for path in data_dir.rglob("*") if path.is_file())
    assert b"exchange_finished" in kept
    assert b"SECRET" not in kept


# -- passthrough ------------------------------------------------------------------------------------------------------


class Meddler:
    """Would change everything."""

    def __init__(self):
        self.called = []

    @hookimpl
    def tunnel_policy(self, connection, host, port):
        self.called.append("tunnel_policy")
        return "refuse"

    @hookimpl
    def wants_body(self, exchange):
        self.called.append("wants_body")
        return True

    @hookimpl
    def intercept_request(self, exchange):
        from dbproxy.api import Fields, LocalResponse

        self.called.append("intercept_request")
        return LocalResponse(200, Fields.of([]), b"mine")

    @hookimpl
    def transform_request(self, exchange, request):
        self.called.append("transform_request")

    @hookimpl
    def transform_response_head(self, exchange, head):
        from dataclasses import replace

        self.called.append("transform_response_head")
        return replace(head, fields=head.fields.plus(b"x-meddled", b"1"))

    @hookimpl
    def stream_filter(self, exchange, head):
        self.called.append("stream_filter")


async def test_n5_passthrough_asks_no_policy_and_calls_nobody_else(rig):
    meddler = Meddler()
    async with rig(plugins=(("meddler", meddler),), passthrough="true") as r:
        stream = await r.tls()
        sent = request(body=STREAM, extra=ODD)
        answer = await through(stream, sent)
        (received,) = r.origin.requests
        assert arrived(received) == untouched(sent, authority=r.origin.url.removeprefix("https://"))
        assert answer.head == received.sent.head
        assert answer.framed == bytes(received.sent.framed)
        assert meddler.called == []
        await trio.sleep(0.1)
        assert len(r.origin.requests) == 1


async def test_n5_without_passthrough_the_same_plugin_is_asked(rig):
    meddler = Meddler()
    async with rig(plugins=(("meddler", meddler),)) as r:
        stream = await r.plain()
        answer = await through(stream, request())
        assert answer.body == b"mine"
        assert meddler.called == ["wants_body", "intercept_request"]


# -- heads of other kinds ---------------------------------------------------------------------------------------------


async def test_103_early_hints_come_before_the_answer(rig):
    hints = (("link", "</a>; rel=preload"),)
    async with rig(say("x", informational=((103, hints), (103, ())))) as r:
        stream = await r.tls()
        await stream.send_all(request())
        first, rest = await read_head(stream)
        assert first == b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"
        second, rest = await read_head(stream, rest)
        assert second.startswith(b"HTTP/1.1 103 ")
        assert (await read_response(stream, rest)).status == 200


async def test_103_is_not_for_http_1_0(rig):
    async with rig(say("x", informational=((103, ()),))) as r:
        answer = await through(await r.tls(), request(version="1.0"))
        assert answer.status == 200


async def test_head_requests(rig):
    async with rig([{"match": {"path": "/v1/x"}, "answer": {"body": "twelve bytes"}}]) as r:
        stream = await r.tls()
        for _ in range(2):
            answer = await through(stream, request("/v1/x", method="HEAD", body=None), method="HEAD")
            assert answer.fields["content-length"] == "12"
            assert answer.rest == b""
        assert len({received.connection.number for received in r.origin.requests}) == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body(rig, status):
    async with rig(Answer(status=status)) as r:
        stream = await r.tls()
        for _ in range(2):
            answer = await through(stream, request())
            assert (answer.status, answer.rest) == (status, b"")
        assert len({received.connection.number for received in r.origin.requests}) == 1


async def test_304_may_name_a_length(rig, tmp_path):
    head = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: x\r\n\r\n"
    async with raw_upstream(lambda stream: answering(stream, head), tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        for _ in range(2):
            answer = await through(stream, request())
            assert (answer.head, answer.rest) == (head, b"")


# -- HTTP/1.0 and ends by closing -------------------------------------------------------------------------------------


async def test_an_http_1_0_client_gets_the_payload_and_the_end(rig):
    async with rig(say("word " * 20)) as r:
        stream = await r.tls()
        await stream.send_all(request(version="1.0", body=STREAM, close=True))
        head, rest = await read_head(stream)
        assert b"transfer-encoding" not in head.lower()
        assert await read_all(stream, rest) == bytes(r.origin.requests[0].sent.body)


async def test_an_http_1_0_client_may_keep_its_connection(rig):
    async with rig(document({"a": 1})) as r:
        stream = await r.tls()
        for _ in range(2):
            answer = await through(stream, request(version="1.0"))
            assert answer.fields["connection"].lower() == "keep-alive"
            assert answer.json == {"a": 1}


async def test_an_http_1_0_server(rig, tmp_path):
    """Its answer ends by closing, and so must ours; nothing is pooled."""

    async def old(stream):
        await read_head(stream)
        await stream.send_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        for _ in range(3):
            await trio.sleep(0.02)
            await stream.send_all(b"part ")
        await strict(stream).aclose()  # with a close_notify: without it the answer would be a broken one

    async with raw_upstream(old, tmp_path) as up, rig(**up.settings) as r:
        for _ in range(2):
            answer = await through(await r.tls(), request("/x", body=None, method="GET"))
            assert answer.body == b"part part part "
            assert answer.fields["connection"] == "close"
            assert answer.head.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_answer_that_ends_by_closing(rig, version):
    watcher = Watcher()
    async with rig(say("word " * 20, framing="close"), plugins=(("watcher", watcher),)) as r:
        stream = await r.tls()
        answer = await through(stream, request(body=STREAM, version=version))
        assert answer.body == bytes(r.origin.requests[0].sent.body)
        assert await watcher.outcomes() == [Outcome.OK]


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json", "application/octet-stream", ""])
async def test_the_first_byte_is_forwarded_when_it_arrives_whatever_the_type(rig, kind):
    answer = Answer(events=(b"first", b"second"), fields=(("content-type", kind),) if kind else (), gap=0.4)
    async with rig([{"match": {"path": "/any"}, "answer": {"events": ["first", "second"], "gap": 0.4}}]) as r:
        r.origin.script = lambda received: answer
        stream = await r.tls()
        await stream.send_all(request("/any"))
        began = trio.current_time()
        _, rest = await read_head(stream)
        while b"first" not in rest:
            rest += await stream.receive_some()
        assert trio.current_time() - began < 0.3
        assert b"second" not in rest


async def test_the_head_is_forwarded_before_the_first_byte_of_the_body(rig):
    async with rig(say("x", first_byte_delay=0.5)) as r:
        stream = await r.tls()
        await stream.send_all(request(body=STREAM))
        began = trio.current_time()
        await read_head(stream)
        assert trio.current_time() - began < 0.3


# -- our own port -----------------------------------------------------------------------------------------------------


async def test_base_url_with_tls_on_our_own_port(rig):
    import ssl

    async with rig() as r:
        context = ssl.create_default_context(cadata=r.proxy.authority.own_pem().decode())
        stream = tls_client(await r.plain(), context, "localhost")
        sent = request("/base/v1/messages", host=f"localhost:{r.running.port}")
        assert (await through(stream, sent)).status == 200
        authority = r.origin.url.removeprefix("https://")
        assert arrived(r.origin.requests[0]) == untouched(sent, authority=authority)


@pytest.mark.parametrize("tunnel", [False, True])
async def test_a_path_prefix_of_the_upstream_stands_in_front(rig, tmp_path, tunnel):
    seen = []

    async def note(stream):
        head, _ = await read_head(stream)
        seen.append(head.split(b" ")[1])
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with raw_upstream(note, tmp_path, path="/deep/er/") as up, rig(**up.settings) as r:
        stream = await r.tls() if tunnel else await r.plain()
        assert (await through(stream, request("/v1/models?x", method="GET", body=None))).status == 200
        assert seen == [b"/deep/er/v1/models?x"]


async def test_json_errors_of_ours_have_the_api_s_shape(rig):
    async with rig(upstream_url="https://127.0.0.1:1") as r:
        answer = await through(await r.tls(), request())
        assert answer.status == 502
        assert answer.fields["x-dbproxy-error"] == "1"
        error = json.loads(answer.body)
        assert error["type"] == "error"
        assert error["error"]["type"] == "api_error"
