"""The fake API on the wire: what it records, how it frames, codes, paces and breaks, through raw sockets and h11."""

from __future__ import annotations

import gzip
import json
import ssl
import zlib

import brotli
import h11
import pytest
import trio
import zstandard

from dbproxy.errors import ConfigError
from dbproxy.testing.origin import Answer, Match, Rule, fail, open_origin, say, script_from
from dbproxy.testing.origin.grammar import check_stream

BODY = json.dumps(
    {"model": "claude-opus-5-5", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
).encode()


def message(body=BODY, *extra):
    head = [b"POST /v1/messages?beta=true HTTP/1.1", b"HOST: a", b"X-Api-Key:k", b"anthropic-version: 2023-06-01"]
    head += [*extra, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


class Talker:
    """A raw client: sends bytes, reads answers through h11, which is strict."""

    def __init__(self, stream):
        self.stream = stream
        self.left = b""

    async def send(self, data):
        await self.stream.send_all(data)

    async def answer(self, method="POST"):
        """(statuses of informational answers, response, body, trailers); raises h11's error on a broken answer."""
        protocol = h11.Connection(h11.CLIENT)
        protocol.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        protocol.send(h11.EndOfMessage())
        if self.left:
            protocol.receive_data(self.left)
        early, response, body = [], None, b""
        while True:
            event = protocol.next_event()
            if event is h11.NEED_DATA:
                protocol.receive_data(await self.stream.receive_some(65536))
            elif isinstance(event, h11.InformationalResponse):
                early.append(event.status_code)
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self.left = protocol.trailing_data[0]
                return early, response, body, list(event.headers)
            else:
                raise EOFError(event)


@pytest.fixture
async def connect():
    """Opens raw clients, TLS where the origin's first port is; whatever a test leaves open is closed at its end."""
    opened = []

    async def connect(origin, name="api.anthropic.com"):
        stream = await trio.open_tcp_stream("127.0.0.1", origin.port)
        opened.append(stream)
        if origin.tls_port == origin.port:
            context = ssl.create_default_context(cadata=origin.ca_pem.decode())
            context.set_alpn_protocols(["http/1.1"])
            stream = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)  # noqa: TID251
            try:
                await stream.do_handshake()
            except trio.BrokenResourceError:
                await trio.aclose_forcefully(opened[-1])
                raise
        return Talker(stream)

    yield connect
    for stream in opened:
        await trio.aclose_forcefully(stream)


@pytest.fixture
async def ask(connect):
    """One request on a connection of its own; its answer, once the origin has booked it."""

    async def ask(origin, data=None, method="POST"):
        talker = await connect(origin)
        async with talker.stream:
            await talker.send(message() if data is None else data)
            with trio.fail_after(5):
                answer = await talker.answer(method)
                await origin.wait_answered()
                return answer

    return ask


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("step", [1, 7, 100000])
async def test_records_every_byte_of_pipelined_requests(tls, step, connect):
    first = message(BODY, b"x-odd:   spaced  ")
    chunked = (
        b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: k\r\nanthropic-version: v\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
        b"5;note=1\r\n" + BODY[:5] + b"\r\n%x\r\n" % (len(BODY) - 5) + BODY[5:] + b"\r\n0\r\nx-sum: 1\r\n\r\n"
    )
    third = b"GET /api/hello HTTP/1.1\r\nHost: a\r\n\r\n"
    async with open_origin("plain", tls=tls) as origin:
        talker = await connect(origin)
        wire = first + chunked + third
        async with trio.open_nursery() as nursery:

            async def send():
                for start in range(0, len(wire), step):
                    await talker.send(wire[start : start + step])

            nursery.start_soon(send)
            with trio.fail_after(10):
                for method in ("POST", "POST", "GET"):
                    assert (await talker.answer(method))[1].status_code == 200
        await talker.stream.aclose()
        with trio.fail_after(2):
            await origin.connections[0].closed.wait()
        one, two, three = origin.requests
        assert bytes(origin.connections[0].raw) == wire
        assert one.head + one.framed == first
        assert two.head + two.framed == chunked
        assert three.head + three.framed == third
        assert one.body == two.body == BODY
        assert two.trailers == [(b"x-sum", b"1")]
        assert (b"x-odd", b"spaced") in one.fields
        assert (b"HOST", b"a") in one.fields
        assert [request.number for request in origin.requests] == [1, 2, 3]
        assert origin.violations == []
        assert origin.connections[0].how == "eof"
        if tls:
            assert origin.connections[0].server_name == "api.anthropic.com"
            assert origin.connections[0].alpn == "http/1.1"


DECODERS = {
    "": bytes,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "deflate-raw": lambda data: zlib.decompress(data, -15),
    "br": brotli.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("coding", list(DECODERS))
@pytest.mark.parametrize("chunk_size", [0, 1])
async def test_codings_and_framings(framing, coding, chunk_size, ask):
    answer = say("ä漢🙂" * 5, framing=framing, coding=coding, chunk_size=chunk_size, delta_chars=3)
    async with open_origin(answer) as origin:
        _, response, body, _ = await ask(origin)
        assert check_stream(DECODERS[coding](body))["content"] == [{"type": "text", "text": "ä漢🙂" * 5}]
        names = {name for name, _ in response.headers}
        assert (b"transfer-encoding" in names) == (framing == "chunked")
        assert (b"content-length" in names) == (framing == "length")
        assert ((b"connection", b"close") in list(response.headers)) == (framing == "close")
        sent = origin.requests[0].sent
        assert bytes(sent.body) == body
        assert sent.complete
        if framing != "chunked":
            assert bytes(sent.framed) == body


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_a_coded_stream_is_flushed_at_every_event(coding, connect):
    """Each event can be decoded when it arrives, long before the next one (client facts 1.4)."""
    answer = say("one two three", coding=coding, stall_after=3, stall=60)
    async with open_origin(answer) as origin:
        talker = await connect(origin)
        await talker.send(message())
        await origin.wait_requests(1)
        undo = {
            "gzip": lambda: zlib.decompressobj(31).decompress(bytes(origin.requests[0].sent.body)),
            "deflate": lambda: zlib.decompressobj().decompress(bytes(origin.requests[0].sent.body)),
            "br": lambda: brotli.Decompressor().process(bytes(origin.requests[0].sent.body)),
            "zstd": lambda: (
                zstandard.ZstdDecompressor().decompressobj().decompress(bytes(origin.requests[0].sent.body))
            ),
        }[coding]
        with trio.fail_after(3):
            while undo().count(b"\n\n") < 3:
                await trio.sleep(0.01)
        await talker.stream.aclose()


async def test_trailers_and_informational_answers(ask):
    hints = ((103, (("link", "</x>"),)),)
    async with open_origin(say("x", trailers=(("x-sum", "7"),), informational=hints)) as origin:
        early, _, _, trailers = await ask(origin)
        assert early == [103]
        assert trailers == [(b"x-sum", b"7")]


async def test_continue_is_sent_only_when_waited_for(connect):
    async with open_origin("plain") as origin:
        talker = await connect(origin)
        whole = message(BODY, b"Expect: 100-continue")
        split = whole.index(BODY)
        await talker.send(whole[:split])
        with trio.fail_after(2):
            assert (await talker.stream.receive_some(100)).startswith(b"HTTP/1.1 100")
        await talker.send(whole[split:])
        with trio.fail_after(2):
            assert (await talker.answer())[1].status_code == 200
        await talker.send(whole)
        with trio.fail_after(2):
            assert (await talker.answer())[0] == []
        await talker.stream.aclose()


async def test_an_early_answer_does_not_wait_for_the_body(connect):
    rule = Rule((fail(413, "too large", early=True),), Match(path="/v1/messages"))
    async with open_origin([rule]) as origin:
        talker = await connect(origin)
        whole = message(BODY)
        await talker.send(whole[:-10])
        with trio.fail_after(2):
            assert (await talker.answer())[1].status_code == 413
        assert not origin.requests[0].complete
        await talker.send(whole[-10:] + b"GET /api/hello HTTP/1.1\r\nHost: a\r\n\r\n")
        with trio.fail_after(2):
            assert (await talker.answer("GET"))[1].status_code == 200
        assert origin.requests[0].body == BODY
        await talker.stream.aclose()


async def test_an_early_answer_to_a_waiting_client_closes(connect):
    rule = Rule((fail(413, "too large", early=True),), Match(path="/v1/messages"))
    async with open_origin([rule]) as origin:
        talker = await connect(origin)
        await talker.send(message(BODY, b"Expect: 100-continue")[: -len(BODY)])
        with trio.fail_after(2):
            early, response, _, _ = await talker.answer()
            assert (early, response.status_code) == ([], 413)
            assert await talker.stream.receive_some(10) == b""


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("how", ["fin", "close_notify", "rst"])
async def test_cuts(tls, how, connect):
    async with open_origin(say("x" * 5000, cut_after=4, cut_how=how), tls=tls) as origin:
        talker = await connect(origin)
        await talker.send(message())
        with trio.fail_after(3):
            with pytest.raises((h11.RemoteProtocolError, trio.BrokenResourceError)) as caught:
                await talker.answer()
            await trio.aclose_forcefully(talker.stream)
            await origin.connections[0].closed.wait()
        if how == "rst":
            assert isinstance(caught.value.__cause__, ConnectionResetError)
        if how == "close_notify" or not tls:
            assert isinstance(caught.value, h11.RemoteProtocolError) or how == "rst"
        sent = origin.requests[0].sent
        assert not sent.complete
        assert bytes(sent.body).count(b"\n\n") == 4


async def test_cut_inside_an_event_and_before_the_head(ask):
    async with open_origin([Rule((say("x", cut_bytes=50), say("x", cut_after=-1)))]) as origin:
        with pytest.raises(h11.RemoteProtocolError):
            await ask(origin)
        assert origin.requests[0].sent.size == 50
        with pytest.raises((h11.RemoteProtocolError, EOFError)):
            await ask(origin)
        assert origin.requests[1].sent.head == b""


@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_goes_away_is_seen_at_once(tls, connect):
    async with open_origin(say("x", stall_after=1, stall=60), tls=tls) as origin:
        talker = await connect(origin)
        await talker.send(message())
        await origin.wait_requests(1)
        await trio.sleep(0.05)
        before = trio.current_time()
        await trio.aclose_forcefully(talker.stream)
        with trio.fail_after(1):
            await origin.connections[0].closed.wait()
        assert origin.connections[0].gone_at - before < 0.5
        assert origin.requests[0].sent.finished_at is not None
        assert not origin.requests[0].sent.complete
        assert origin.open_connections == []


@pytest.mark.parametrize(("kind", "seen"), [("event", b"event: ping\n"), ("comment", b": keep-alive\n\n")])
async def test_pings_while_it_waits(kind, seen, autojump_clock):
    """Pace is virtual here: only the origin's own waiting, no sockets' deadline, is looked at."""
    from dbproxy.testing.origin.answering import write_answer
    from dbproxy.testing.origin.received import Connection, Received

    class Sink:
        got = b""
        times = ()

        async def send(self, data):
            self.got += data
            self.times += (trio.current_time(),)

    connection = Connection(1, False, trio.current_time())
    request = Received(1, connection, 0.0, "POST", "/v1/messages", "HTTP/1.1", b"", [], body=BODY)
    sink = Sink()
    began = trio.current_time()
    answer = say("x" * 40, delta_chars=10, first_byte_delay=50, ping_every=20, ping=kind, rate=2.0)
    await write_answer(sink, request, answer, closing=False)
    assert sink.got.count(seen) == 2
    assert sink.times[1] - began == pytest.approx(20)
    # Two events per second, by the clock: 9 events need 4.5 s.
    assert trio.current_time() - began == pytest.approx(54.5)


async def test_error_events_first_and_after_content(ask):
    from dbproxy.testing.origin.grammar import Reader, StreamError

    async with open_origin([Rule((say("x", error_after=0), say("x", error_after=3)))]) as origin:
        for after_content in (False, True):
            _, _, body, _ = await ask(origin)
            with pytest.raises(StreamError) as caught:
                Reader().feed(body)
            assert caught.value.after_content is after_content
            assert caught.value.error["type"] == "overloaded_error"


async def test_raw_answers_are_written_as_they_stand(connect):
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"
    async with open_origin(Answer(raw=raw)) as origin:
        talker = await connect(origin)
        await talker.send(message())
        got = b""
        with trio.fail_after(2):
            async for data in talker.stream:
                got += data
        assert got == raw


async def test_garbage_is_recorded_as_a_violation(connect):
    async with open_origin() as origin:
        talker = await connect(origin)
        await talker.send(b"\x00\x01garbage\r\n\r\n")
        with trio.fail_after(2):
            assert (await talker.answer())[1].status_code == 400
        await talker.stream.aclose()
        assert len(origin.violations) == 1
        talker = await connect(origin)
        await talker.send(b"GET / HT")
        await talker.stream.aclose()
        with trio.fail_after(2):
            await origin.connections[1].closed.wait()
        assert len(origin.violations) == 2


async def test_websocket_frames_come_back_unmasked(connect):
    async with open_origin() as origin:
        talker = await connect(origin)
        frame = bytes([0x81, 0x85, 1, 2, 3, 4]) + bytes(
            a ^ b for a, b in zip(b"hello", b"\x01\x02\x03\x04\x01", strict=True)
        )
        await talker.send(
            b"GET /api/ws/echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + frame
        )
        got = b""
        with trio.fail_after(2):
            while not got.endswith(b"\x81\x05hello"):
                got += await talker.stream.receive_some(1000)
            assert b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in got  # the example of RFC 6455 1.3
            await talker.send(bytes([0x88, 0x80, 0, 0, 0, 0]))
            assert (await talker.stream.receive_some(10)) == b"\x88\x00"


@pytest.mark.parametrize("certificate", ["expired", "wrong_name", "untrusted"])
async def test_bad_certificates_are_refused_by_a_verifying_client(certificate, connect):
    async with open_origin(tls=True, certificate=certificate) as origin:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await connect(origin)
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        with trio.fail_after(2):
            while origin.open_connections:
                await trio.sleep(0.01)
        assert origin.connections[0].how.startswith("tls: ")


async def test_parallel_handshakes_keep_their_names_apart(connect):
    async with open_origin(tls=True) as origin:

        async def one(name):
            talker = await connect(origin, name)
            await talker.send(f"GET /{name} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            assert (await talker.answer("GET"))[1].status_code == 404
            await talker.stream.aclose()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(one, "localhost")
                    nursery.start_soon(one, "api.anthropic.com")
        assert len(origin.requests) == 20
        assert all(request.path == f"/{request.connection.server_name}" for request in origin.requests)


async def test_backpressure_reaches_the_sender(connect):
    """While the script does not read, a big upload stalls; the rest is taken afterwards, whole."""
    big = json.dumps(
        {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x" * 12_000_000}]}
    ).encode()
    rule = Rule((say("ok", read_delay=0.5),), Match(path="/v1/messages"))
    async with open_origin([rule]) as origin:
        talker = await connect(origin)
        sent_at = []

        async def send():
            await talker.send(message(big))
            sent_at.append(trio.current_time())

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                began = trio.current_time()
                nursery.start_soon(send)
                assert (await talker.answer())[1].status_code == 200
        assert sent_at[0] - began > 0.45
        assert origin.requests[0].body == big
        await talker.stream.aclose()


async def test_records_can_be_kept_small(ask):
    async with open_origin(record="heads", keep=2) as origin:
        for _ in range(3):
            await ask(origin)
        assert len(origin.requests) == 2
        assert origin.requests[-1].digest
        assert origin.requests[-1].framed == b""
        assert origin.connections[-1].raw == b""


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ({"rule": []}, "did you mean 'rules'"),
        ({"rules": [{"answer": {"cut_aftre": 1}}]}, "did you mean 'cut_after'"),
        ({"rules": [{"match": {"pathh": "x"}, "answer": {}}]}, "did you mean 'path'"),
        ({"rules": [{"match": {}}]}, "without an answer"),
        ({"rules": [{"answer": {"coding": "lzw"}}]}, "coding is 'lzw'"),
        ({"scenario": "nothing"}, "use one of plain"),
    ],
)
async def test_a_misspelt_script_is_refused(script, told):
    with pytest.raises((ConfigError, BaseExceptionGroup)) as caught:
        async with open_origin(script):
            raise AssertionError
    assert told in str(caught.value)


def test_scripts_in_json_say_the_same_as_in_python():
    made = script_from(
        {
            "rules": [
                {
                    "match": {"path": "/v1/messages", "role": "main"},
                    "answers": [
                        {"text": "hi", "usage": {"input_tokens": 3}, "fields": {"x-a": "b"}},
                        {"status": 429, "fail": {"message": "slow down"}, "retry_after": 3},
                        {"events": [{"type": "ping"}, "raw\n\n", {"base64": "AAE="}]},
                        {"body": {"a": 1}},
                    ],
                    "times": 4,
                    "skip": 1,
                }
            ]
        }
    )
    (rule,) = made.rules
    assert rule.answers[0] == say("hi", usage={"input_tokens": 3}, fields=(("x-a", "b"),))
    assert rule.answers[1] == fail(429, "slow down", fields=(("retry-after", "3"),))
    assert rule.answers[2].events == (b'event: ping\ndata: {"type":"ping"}\n\n', b"raw\n\n", b"\x00\x01")
    assert rule.answers[3].body == b'{"a": 1}'
    assert (rule.times, rule.skip) == (4, 1)


async def test_rules_take_turns_and_run_out(ask):
    rules = [Rule((say("a"), say("b")), Match(path="/v1/messages"), times=3, skip=1)]
    async with open_origin(rules) as origin:
        seen = []
        for _ in range(6):
            _, _, body, _ = await ask(origin)
            seen.append(check_stream(body)["content"][0]["text"])
        assert seen == ["OK from the fake API.", "a", "b", "b", *["OK from the fake API."] * 2]


async def test_a_counted_answer_gets_no_ping_between(ask):
    answer = fail(500, "no", first_byte_delay=0.05, ping_every=0.01)
    async with open_origin(answer) as origin:
        _, response, body, _ = await ask(origin)
        assert json.loads(body)["error"]["message"] == "no"
        assert (b"content-length", b"%d" % len(body)) in list(response.headers)


async def test_blank_lines_before_a_request_are_a_violation(connect):
    """A server may ignore them (RFC 9112 2.2); an oracle tells: no proxy should send them."""
    wire = b"\r\n\r\nGET /api/hello HTTP/1.1\r\nHost: a\r\n\r\n"
    async with open_origin() as origin:
        talker = await connect(origin)
        await talker.send(wire)
        with trio.fail_after(2):
            assert (await talker.answer("GET"))[1].status_code == 400
        assert bytes(origin.connections[0].raw) == wire
        assert origin.requests == []
        assert len(origin.violations) == 1
