"""What is kept of requests as they go through the whole proxy: every byte of a body, the answer, the facts, the end."""

from __future__ import annotations

import gzip
import hashlib
import json
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import zstandard
from blackbox import read_broken, read_response, request, reset
from rig import HOST, read_head

from dbproxy.api import LocalResponse, hookimpl
from dbproxy.exchange import Fields
from dbproxy.store.reader import Reader
from dbproxy.store.rows import NothingCaptured
from dbproxy.testing.origin import Answer, fail, say

SESSION = "01234567-89ab-cdef-0123-456789abcdef"
SESSION_FIELD = f"x-claude-code-session-id: {SESSION}\r\n"


def body_of(*texts, **more):
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return json.dumps({"model": "claude-opus-5-5", "max_tokens": 9, "messages": messages, **more}).encode()


BODY = body_of("hello", stream=True)


async def ask(r, body=BODY, *, extra="", chunks=0, target="/v1/messages?beta=true"):
    stream = await r.tls()
    await stream.send_all(request(target, body=body, extra=SESSION_FIELD + extra, chunks=chunks))
    return await read_response(stream)


@asynccontextmanager
async def reading(r):
    """The file, once all that is over is in it."""
    assert await r.proxy.archive.flush(10)
    with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
        yield reader


async def only(r):
    """The row and the detail of the one exchange, its body and its message."""
    async with reading(r) as reader:
        (row,) = reader.exchanges()
        message = reader.response_message(row.id)
        return row, reader.exchange(row.id), reader.request_body(row.id), json.loads(message) if message else None


class Holder:
    """Has every body read whole, and puts a filter before every answer."""

    @hookimpl
    def wants_body(self, exchange):
        return True

    @hookimpl
    def stream_filter(self, exchange, head):
        class Louder:
            def feed(self, event):
                return None

            def end(self):
                return None

        return Louder()


ODD = (
    b'{ "stream" : true,"messages":[ {"content":"\\u00e4 \\ud800","role":"user" } ],\n "model":"claude-opus-5-5",'
    b'"max_tokens":1.0e2,"x":9007199254740993123 }'
)


@pytest.mark.parametrize("body", [BODY, ODD, b"\xff\x00 no JSON", b"[]", b'{"messages":[]}'], ids=len)
@pytest.mark.parametrize("way", ["streamed", "chunked", "held"])
async def test_a_body_is_kept_byte_for_byte(rig, body, way):
    async with rig(say("Hi."), plugins=(("holder", Holder()),) if way == "held" else ()) as r:
        await ask(r, body, chunks=5 if way == "chunked" else 0)
        row, detail, kept, _ = await only(r)
        assert kept == body
        assert detail.body_sha256 == hashlib.sha256(body).hexdigest()
        assert row.bytes_up == len(body)
        assert not row.body_inexact
        async with reading(r) as reader:
            assert [check.result for check in reader.verify()] == ["exact"]


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_coded_body_is_kept_decoded_and_says_so(rig, coding):
    sent = gzip.compress(BODY) if coding == "gzip" else zstandard.ZstdCompressor().compress(BODY)
    async with rig(say("Hi.")) as r:
        await ask(r, sent, extra=f"content-encoding: {coding}\r\n")
        row, detail, kept, message = await only(r)
        assert kept == BODY
        assert detail.body_coding == coding
        assert row.bytes_up == len(sent)
        assert row.conversation == SESSION
        assert message["content"] == [{"type": "text", "text": "Hi."}]


async def test_a_body_whose_coding_is_broken_is_kept_as_it_is(rig):
    async with rig(say("Hi.")) as r:
        await ask(r, b"no gzip at all", extra="content-encoding: gzip\r\n")
        _, detail, kept, _ = await only(r)
        assert kept == b"no gzip at all"
        assert detail.body_coding == "gzip"


ANSWERS = {
    "chunked": {},
    "gzip": {"coding": "gzip"},
    "br": {"coding": "br"},
    "zstd": {"coding": "zstd"},
    "odd chunks": {"chunk_size": 7},
    "until the end": {"framing": "close"},
}


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("how", ANSWERS)
async def test_an_answer_is_kept_as_its_final_message(rig, how, filtered):
    usage = {"input_tokens": 1000, "cache_read_input_tokens": 2000, "output_tokens": 30}
    call = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"file_path": "ä 漢"}}
    answer = say("It is ä, 漢, 🙂.", call, usage=usage, **ANSWERS[how])
    async with rig(answer, plugins=(("holder", Holder()),) if filtered else ()) as r:
        await ask(r)
        row, detail, _, message = await only(r)
        assert message["content"] == [{"type": "text", "text": "It is ä, 漢, 🙂."}, call]
        assert message["stop_reason"] == row.stop_reason == "tool_use"
        assert (row.outcome, row.status, row.state) == ("ok", 200, "closed")
        assert (row.input_tokens, row.cache_read, row.output_tokens) == (1000, 2000, 30)
        assert row.cost_usd > 0
        assert 0 <= row.first_byte_ms <= row.duration_ms
        assert row.bytes_down > 100
        assert row.request_id
        assert not detail.has_stream


async def test_an_answer_that_is_no_stream_is_kept(rig):
    async with rig(say("Whole.")) as r:
        await ask(r, body_of("hello"))
        row, _, _, message = await only(r)
        assert message["content"] == [{"type": "text", "text": "Whole."}]
        assert row.output_tokens > 0
        assert not row.streamed


async def test_an_error_is_kept_with_its_type(rig):
    async with rig(fail(529, "Overloaded")) as r:
        await ask(r)
        row, _, _, message = await only(r)
        assert (row.outcome, row.status, row.error) == ("error", 529, "overloaded_error")
        assert message["error"]["message"] == "Overloaded"


async def test_an_answer_that_is_no_json_is_kept_as_it_came(rig):
    async with rig(Answer(status=502, body=b"<html>bad</html>", content_type="text/html")) as r:
        await ask(r)
        async with reading(r) as reader:
            (row,) = reader.exchanges()
            assert reader.response_message(row.id) == b"<html>bad</html>"
            assert row.outcome == "error"


@pytest.mark.parametrize("coding", ["", "gzip"])
async def test_a_cut_answer_is_kept_as_far_as_it_came(rig, coding):
    async with rig(say("one two three " * 40, delta_chars=14, cut_after=12, coding=coding)) as r:
        stream = await r.tls()
        await stream.send_all(request(body=BODY, extra=SESSION_FIELD))
        await read_broken(stream)
        row, _, kept, message = await only(r)
        assert (row.outcome, row.state) == ("cut", "closed")
        assert kept == BODY
        assert message["content"][0]["text"].startswith("one two three one two")


async def test_an_aborted_answer_is_kept_as_far_as_it_came(rig):
    async with rig(say("one two three " * 40, delta_chars=14, stall_after=12, stall=30.0)) as r:
        stream = await r.tls()
        await stream.send_all(request(body=BODY, extra=SESSION_FIELD))
        _, seen = await read_head(stream)
        while b"three one" not in seen and seen.count(b"text_delta") < 5:
            seen += await stream.receive_some()
        reset(stream)
        with trio.fail_after(10):
            while r.proxy.counters.exchanges_open:
                await trio.sleep(0.01)
        row, _, kept, message = await only(r)
        assert (row.outcome, row.state) == ("aborted", "closed")
        assert kept == BODY
        assert message["content"][0]["text"].startswith("one two three")


async def test_a_request_that_nobody_answers_is_kept(rig, tmp_path):
    async with rig(Answer(raw=b"")) as r:
        await ask(r)
        row, _, kept, message = await only(r)
        assert row.outcome == "failed"
        assert row.error
        assert kept == BODY
        assert message["error"]["message"].startswith("dbproxy: ")  # what the client was told


class Local:
    """Answers by itself, whole or in pieces."""

    def __init__(self, pieces):
        self.pieces = pieces

    @hookimpl
    def intercept_request(self, exchange):
        fields = Fields.of([(b"content-type", b"text/event-stream")])
        if len(self.pieces) == 1:
            return LocalResponse(200, fields, self.pieces[0])

        async def stream(send):
            for piece in self.pieces:
                await send(piece)

        return LocalResponse(200, fields, stream=stream)


@pytest.mark.parametrize("many", [False, True])
async def test_our_own_answer_is_kept_as_such(rig, many):
    from dbproxy.testing.origin.events import encode, message_events, text

    pieces = [encode(event) for event in message_events([text("Local.")], model="claude-opus-5-5")]
    async with rig(plugins=(("local", Local(pieces if many else [b"".join(pieces)])),)) as r:
        await ask(r)
        row, _, kept, message = await only(r)
        assert row.outcome == "local"
        assert (row.cost_usd, row.output_tokens) == (None, 0)  # nobody was paid for it
        assert kept == BODY
        assert message["content"] == [{"type": "text", "text": "Local."}]
        assert not r.origin.requests


async def test_the_stream_is_kept_with_its_times_if_wanted(rig):
    answer = say("one two three", delta_chars=4, gap=0.02)
    async with rig(answer, capture_stream="true") as r:
        got = await ask(r)
        async with reading(r) as reader:
            (row,) = reader.exchanges()
            pieces = reader.stream(row.id)
            assert b"".join(piece.data for piece in pieces) == got.body
            times = [piece.at_ms for piece in pieces]
            assert times == sorted(times)
            assert times[-1] - times[0] >= 20
            assert len(pieces) > 3


async def test_only_facts_if_only_facts_are_wanted(rig):
    async with rig(say("ANSWERTEXT"), capture="facts") as r:
        await ask(r, body_of("QUESTIONTEXT", stream=True))
        row, detail, kept, message = await only(r)
        assert kept is None
        assert message is None
        assert row.body_kind == "none"
        assert (row.conversation, row.kind, row.outcome) == (SESSION, "main", "ok")
        assert row.output_tokens > 0
        assert detail.request_headers
        async with reading(r) as reader:
            assert reader.search("QUESTIONTEXT").hits == reader.search("ANSWERTEXT").hits == ()
    assert_absent(r.data_dir, b"QUESTIONTEXT", b"ANSWERTEXT")


@pytest.mark.parametrize("passthrough", ["true", "false"])
async def test_nothing_if_nothing_is_wanted(rig, passthrough):
    async with rig(say("Hi."), capture="off", passthrough=passthrough) as r:
        assert (await ask(r)).status == 200
        assert await r.proxy.archive.flush(10)
        assert r.proxy.archive.analyst.errors == 0
        assert (r.proxy.archive.capture.held, r.proxy.archive.capture.shed) == (0, 0)
    with suppress(NothingCaptured), Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
        assert reader.exchanges() == []
    assert_absent(r.data_dir, b"hello")


async def test_passthrough_changes_nothing_about_capture(rig):
    async with rig(say("Hi."), passthrough="true") as r:
        await ask(r)
        row, _, kept, message = await only(r)
        assert kept == BODY
        assert message["content"]
        assert row.conversation == SESSION


async def test_of_other_requests_only_the_facts(rig):
    rule = {"match": {"path": "/api/*"}, "answer": {"body": {"limits": "SECRETLIMITS"}}}
    async with rig({"rules": [rule]}) as r:
        answered = await ask(r, b'{"SECRETQUESTION": 1}', target="/api/claude_code/settings?SECRETQUERY=1")
        assert b"SECRETLIMITS" in answered.body
        row, _, kept, message = await only(r)
        assert (row.method, row.host, row.path) == ("POST", HOST, "/api/claude_code/settings")
        assert (kept, message, row.kind, row.conversation) == (None, None, "", "")
    assert_absent(r.data_dir, b"SECRETQUESTION", b"SECRETLIMITS", b"SECRETQUERY")


async def test_counting_tokens_is_kept_and_moves_nothing(rig):
    rule = {"match": {"path": "/v1/messages/count_tokens"}, "answer": {"body": {"input_tokens": 12}}}
    async with rig({"rules": [rule]}) as r:
        await ask(r, body_of("hello"), target="/v1/messages/count_tokens?beta=true")
        row, _, kept, message = await only(r)
        assert (row.kind, row.thread, row.branch) == ("count-tokens", "", 0)
        assert kept == body_of("hello")
        assert message == {"input_tokens": 12}


async def test_a_conversation_is_linked_as_it_goes(rig):
    async with rig(say("Sure.")) as r:
        await ask(r, body_of("one"))
        await ask(r, body_of("one", "Sure.", "two"))
        await ask(r, body_of("one", "Sure.", "two", "Sure.", "three"))
        await ask(r, body_of("one", "Sure.", "something else"))
        async with reading(r) as reader:
            tree = reader.conversation(SESSION)
            first, second = tree.main.branches
            assert [row.edge for row in first.exchanges] == ["root", "next", "next"]
            assert [row.edge for row in second.exchanges] == ["rewind"]
            assert [json.loads(message)["content"] for message in reader.history(first.exchanges[0].id)] == [
                "one",
                [{"type": "text", "text": "Sure."}],
            ]


def assert_absent(folder, *secrets):
    """In none of the database's files."""
    for path in folder.glob("dbproxy.sqlite*"):
        data = path.read_bytes()
        assert [secret for secret in secrets if secret in data] == []
