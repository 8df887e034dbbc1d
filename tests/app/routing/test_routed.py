"""A route is carried out: another model answers, in the client's words; or the client's own upstream does after all."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from blackbox import Watcher, read_response, request
from foreignpeer import (
    KEY,
    SAYS_HI,
    SSE_HEAD,
    Capabilities,
    Declined,
    Provider,
    ProviderLimits,
    Router,
    Unroutable,
    chunk,
    cut,
    document,
    event,
    events,
    hang_up,
    peer,
    slow,
)
from h2client import H2Client

from dbproxy.api import hookimpl
from dbproxy.api.codecs import scale_of
from dbproxy.app.explaining import sentences
from dbproxy.app.routing import delivery
from dbproxy.exchange import Outcome
from dbproxy.store.reader import Reader
from dbproxy.testing.origin import fail, say
from dbproxy.testing.origin.grammar import StreamError, check_stream

CLIENT = "User-Agent: claude-cli/2.1.329 (external, sdk-cli)\r\n"
OLDER = "User-Agent: claude-cli/2.1.112 (external, cli)\r\n"


def body(*, stream=True, messages=None, **more):
    said = messages or [{"role": "user", "content": "hi there"}]
    return json.dumps(
        {"model": "claude-haiku-4-5", "max_tokens": 64, "stream": stream, "messages": said, **more}
    ).encode()


@asynccontextmanager
async def routed(rig, *answers, script=None, providers=None, decision=None, fallback=True, settings=None, **about):
    """A rig whose messages go to a provider that gives these answers."""
    async with peer(*answers) as server:
        named = providers(server) if providers else [Provider(server.port, **about)]
        watcher = Watcher()
        router = Router(*named, decision=decision, **({} if decision else {"fallback": fallback}))
        plugins = (("router", router), ("watcher", watcher))
        async with rig(script or say("from Claude"), plugins=plugins, **(settings or {})) as r:
            r.server, r.providers, r.watcher = server, named, watcher
            yield r


async def ask(r, sent=None, *, extra=CLIENT, stream=None):
    stream = stream or await r.tls()
    await stream.send_all(request(body=body() if sent is None else sent, extra=extra))
    with trio.fail_after(20):
        return await read_response(stream)


async def stored(r):
    """Everything that the record knows of the last exchange."""
    await r.proxy.archive.flush(5.0)
    with Reader.open(r.proxy.paths.database) as reader:
        return reader.exchange("last")


async def facts(r):
    await r.watcher.outcomes()
    return r.watcher.finished[-1].attributes["route"]


# ---- an answer


async def test_a_streamed_answer_in_the_client_s_words(rig):
    async with routed(rig, SAYS_HI) as r:
        answer = await ask(r)
        message = check_stream(answer.body)
        assert answer.status == 200
        assert answer.fields["content-type"].startswith("text/event-stream")
        assert answer.fields["x-dbproxy-routed-model"] == "elsewhere:elsewhere-1"
        assert answer.fields["request-id"].startswith("req_")
        assert message["content"] == [{"type": "text", "text": "Hello"}]
        assert (message["model"], message["stop_reason"]) == ("claude-haiku-4-5", "end_turn")
        assert not message["id"].startswith("msg_")
        assert await r.watcher.outcomes() == [Outcome.OK]
        assert r.origin.requests == []


async def test_case_39_nothing_of_the_client_s_credential_goes_to_the_provider(rig):
    async with routed(rig, SAYS_HI) as r:
        secret = "Authorization: Bearer sk-ant-oat01-mine\r\nanthropic-beta: some-beta\r\nx-app: cli\r\n"
        sent = body(metadata={"user_id": json.dumps({"account_uuid": "my-account", "session_id": "my-session"})})
        await ask(r, sent, extra=CLIENT + secret)
        (head,) = r.server.heads
        assert head.startswith(b"POST /v9/say?x=1 HTTP/1.1\r\n")
        assert f"authorization: Bearer {KEY}".encode() in head.lower().replace(b"bearer", b"Bearer")
        for word in (b"sk-ant", b"x-api-key", b"anthropic", b"claude-cli", b"x-app", b"X-Odd"):
            assert word.lower() not in head.lower()
        assert f"Host: 127.0.0.1:{r.server.port}\r\n".encode() in head
        assert b"my-" not in r.server.bodies[0]


async def test_an_answer_for_a_client_that_does_not_stream(rig):
    said = [{"text": "Hello"}, {"call": ["c1", "Read", '{"a":1}']}, {"usage": [10, 2]}, {"stop": "end_turn"}]
    async with routed(rig, document(said)) as r:
        answer = await ask(r, body(stream=False))
        assert answer.fields["content-type"] == "application/json"
        message = answer.json
        assert [block["type"] for block in message["content"]] == ["text", "tool_use"]
        assert message["content"][1]["input"] == {"a": 1}
        assert message["stop_reason"] == "tool_use"
        assert message["usage"]["output_tokens"] > 0
        assert await r.watcher.outcomes() == [Outcome.OK]


async def test_a_stream_is_gathered_for_a_client_that_does_not_and_a_document_streamed_for_one_that_does(rig):
    async with routed(rig, SAYS_HI, document([{"text": "whole"}, {"stop": "end_turn"}])) as r:
        assert (await ask(r, body(stream=False))).json["content"] == [{"type": "text", "text": "Hello"}]
        assert check_stream((await ask(r)).body)["content"][0]["text"] == "whole"


async def test_both_connections_are_used_again(rig):
    async with routed(rig, SAYS_HI) as r:
        stream = await r.tls()
        for _ in range(3):
            assert check_stream((await ask(r, stream=stream)).body)
        assert len(r.server.heads) == 3
        assert r.server.connections == 1


async def test_a_client_of_http_1_0(rig):
    async with routed(rig, SAYS_HI) as r:
        stream = await r.tls()
        await stream.send_all(request(body=body(), version="1.0", close=True))
        answer = await read_response(stream)
        assert "transfer-encoding" not in answer.fields
        assert check_stream(answer.body)["content"][0]["text"] == "Hello"


async def test_a_client_of_http_2(rig):
    async with routed(rig, SAYS_HI) as r:
        client = await H2Client.open(r)
        number = await client.ask("POST", "/v1/messages", fields=[("content-type", "application/json")], body=body())
        answer = await client.answer(number)
        assert answer.status == 200
        assert check_stream(answer.body)["content"][0]["text"] == "Hello"


async def test_a_coded_request_and_a_large_one(rig):
    big = body(messages=[{"role": "user", "content": "word " * 100_000}])
    async with routed(rig, SAYS_HI) as r:
        await ask(r, gzip.compress(body()), extra=CLIENT + "Content-Encoding: gzip\r\n")
        assert json.loads(r.server.bodies[0])["say"] == ["hi there"]
        assert check_stream((await ask(r, big)).body)
        assert len(r.server.bodies[1]) > 400_000


@pytest.mark.parametrize(
    ("window", "context", "client_counts", "model_has"),
    [
        (200_000, 200_000, 167_000, 167_000),
        (1_000_000, 128_000, 967_000, 106_880),
        (200_000, 1_050_000, 167_000, 1_017_000),
    ],
)
def test_the_client_compacts_where_the_model_s_context_is_nearly_full(window, context, client_counts, model_has):
    assert round(model_has * scale_of(window, context)) == client_counts
    assert scale_of(0, context) == scale_of(window, 0) == 1.0


async def test_the_client_is_told_in_the_measure_of_its_own_window(rig):
    async with routed(rig, SAYS_HI, can=Capabilities(context=100_000)) as r:
        await ask(r)  # so that the price table is there
        await r.proxy.archive.flush(5)
        usage = check_stream((await ask(r)).body)["usage"]
        # It reckons with 200,000 and compacts at 167,000: where the model has 16,500 left.
        assert (usage["input_tokens"], usage["output_tokens"]) == (2000, 40)
        other = check_stream((await ask(r, extra="User-Agent: python-sdk\r\n")).body)["usage"]
        assert other["input_tokens"] == 1000  # who does not compact by it is told the truth
        detail = await stored(r)
        assert (detail.exchange.input_tokens, detail.exchange.output_tokens) == (1000, 20)


# ---- the record


async def test_what_is_stored_and_explained(rig):
    async with routed(rig, SAYS_HI) as r:
        await ask(r)
        await r.watcher.outcomes()
        detail = await stored(r)
        row, route = detail.exchange, detail.route
        assert (row.model_asked, row.model, row.provider) == ("claude-haiku-4-5", "elsewhere-1", "elsewhere")
        assert (row.outcome, row.stop_reason, row.input_tokens) == ("ok", "end_turn", 1000)
        assert (route.outcome, route.rule, route.reason) == ("routed", "all = elsewhere", "the test says so")
        assert [(one.provider, one.status, one.error) for one in route.attempts] == [("elsewhere", 200, "")]
        text = " ".join(sentences(detail))
        assert (
            "It was answered by elsewhere-1 at elsewhere by the rule all = elsewhere, because the test says so." in text
        )
        assert "Translated: said in another dialect." in text
        with sqlite3.connect(r.proxy.paths.database) as file:
            assert KEY.encode() not in b"".join(str(line).encode() for line in file.iterdump())


async def test_a_request_that_stays_says_why_and_loses_what_others_thought(rig):
    history = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "mine", "signature": "elsewhere#sealed"},
                {"type": "text", "text": "so"},
            ],
        },
        {"role": "user", "content": "and?"},
    ]
    decision = Declined("the provider has no key", rule="x = elsewhere", foreign=True)
    async with routed(rig, SAYS_HI, decision=decision) as r:
        answer = await ask(r, body(messages=history))
        assert check_stream(answer.body)["content"][0]["text"] == "from Claude"
        assert b"elsewhere#sealed" not in r.origin.requests[0].decoded
        assert r.origin.requests[0].json["messages"][1]["content"] == [{"type": "text", "text": "so"}]
        detail = await stored(r)
        assert (detail.route.outcome, detail.route.reason) == ("declined", "the provider has no key")
        assert "It stayed where the client sent it by the rule x = elsewhere, because the provider has no key." in (
            sentences(detail)
        )
        assert r.server.heads == []


async def test_a_request_that_stays_without_foreign_thoughts_goes_byte_for_byte(rig):
    decision = Declined("no", foreign=True)
    odd = body().replace(b'"stream": true', b'"stream" :  true')
    async with routed(rig, SAYS_HI, decision=decision) as r:
        await ask(r, odd)
        assert r.origin.requests[0].decoded == odd


async def test_a_target_at_the_client_s_own_upstream_keeps_the_client_s_credential(rig):
    async with routed(rig, SAYS_HI, as_client=True) as r:
        answer = await ask(r)
        assert check_stream(answer.body)["content"][0]["text"] == "from Claude"
        (received,) = r.origin.requests
        assert received.json["model"] == "elsewhere-1"
        assert received.header("x-api-key") == "k"
        assert answer.fields["x-dbproxy-routed-model"] == "elsewhere:elsewhere-1"
        assert (await facts(r)).outcome == "routed"
        assert r.server.heads == []


async def test_passthrough_routes_nothing(rig):
    async with routed(rig, SAYS_HI, settings={"passthrough": "true"}) as r:
        await ask(r)
        assert r.server.heads == []
        assert len(r.origin.requests) == 1


class Taps:
    """Sees whose answer it is from its head on."""

    def __init__(self):
        self.seen, self.text = [], b""

    @hookimpl
    def stream_tap(self, exchange, head):
        route = exchange.attributes.get("route")
        self.seen.append((route.outcome, route.target))
        return self

    def event(self, event):
        self.text += event.raw


async def test_taps_see_the_answer_and_whose_it_is(rig):
    taps = Taps()
    async with peer(SAYS_HI) as server:
        plugins = (("router", Router(Provider(server.port))), ("taps", taps), ("watcher", watcher := Watcher()))
        async with rig(say("from Claude"), plugins=plugins) as r:
            answer = await ask(r)
            await watcher.outcomes()
            assert taps.seen == [("routed", "elsewhere:elsewhere-1")]
            assert taps.text == answer.body


class Shouting:
    """A filter changes a translated answer as it changes any."""

    @hookimpl
    def stream_filter(self, exchange, head):
        return self

    def feed(self, event):
        return event.raw.replace(b"Hel", b"HEL")

    def end(self):
        return b": the end\n\n"


async def test_filters_stand_in_the_stream(rig):
    async with peer(SAYS_HI) as server:
        plugins = (("router", Router(Provider(server.port))), ("shouting", Shouting()))
        async with rig(say("from Claude"), plugins=plugins) as r:
            answer = await ask(r)
            assert check_stream(answer.body.removesuffix(b": the end\n\n"))["content"][0]["text"] == "HELlo"
            assert answer.body.endswith(b": the end\n\n")


async def test_metrics_and_usage_name_the_provider(rig):
    async with routed(rig, SAYS_HI) as r:
        await ask(r)
        await r.watcher.outcomes()
        stream = await r.plain()
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        text = (await read_response(stream, method="GET")).body.decode()
        assert 'dbproxy_routed_requests_total{target="elsewhere:elsewhere-1",outcome="routed"} 1' in text
        assert 'dbproxy_provider_breaker_state{provider="elsewhere"} 0' in text
        await r.proxy.archive.flush(5.0)
        with Reader.open(r.proxy.paths.database) as reader:
            (row,) = reader.usage_rows(by=("provider", "model"))
            assert (row.keys, row.input_tokens) == (("elsewhere", "elsewhere-1"), 1000)


# ---- failures before anything was there to see


@pytest.mark.parametrize(
    "broken",
    [
        hang_up,
        document({"error": {"message": "no"}}, 500),
        document({"error": {"message": "bad", "code": "bad"}}, 400),
        document(b"<html><title>Bad gateway</title></html>", 502),
        document({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401),
        document([{"oops": "busy"}]),
        document(b"no json at all"),
        events({"oops": "busy"}),
        events({"raise": 1}),
        events({"thought": ""}),
        cut(),
        cut({"usage": [1, 1]}),
        b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n",
        b"not http\r\n\r\n",
    ],
    ids=lambda value: getattr(value, "__name__", "")[:20] or value[:40].decode("latin-1"),
)
async def test_a_provider_that_fails_before_its_answer_costs_nothing_but_time(rig, broken):
    odd = body().replace(b'"stream": true', b'"stream" :  true')
    async with routed(rig, broken) as r:
        answer = await ask(r, odd)
        assert check_stream(answer.body)["content"][0]["text"] == "from Claude"
        assert "x-dbproxy-routed-model" not in answer.fields
        assert r.origin.requests[0].decoded == odd, "byte for byte as the client sent it"
        assert r.origin.requests[0].header("x-api-key") == "k"
        found = await facts(r)
        assert found.outcome == "fell back"
        assert found.attempts[-1].error
        assert KEY not in repr(found)


async def test_nobody_listens(rig):
    async with routed(rig, SAYS_HI, providers=lambda server: [Provider(1)]) as r:
        assert check_stream((await ask(r)).body)["content"][0]["text"] == "from Claude"
        assert "elsewhere" in (await facts(r)).attempts[0].error


async def test_the_next_target_is_asked(rig):
    def two(server):
        return [Provider(1, "first"), Provider(server.port, "second")]

    async with routed(rig, SAYS_HI, providers=two) as r:
        answer = await ask(r)
        assert answer.fields["x-dbproxy-routed-model"] == "second:second-1"
        assert check_stream(answer.body)
        found = await facts(r)
        assert [one.provider for one in found.attempts] == ["first", "second"]
        assert (found.provider, found.outcome) == ("second", "routed")


async def test_tries_again_before_the_first_byte(rig, monkeypatch):
    monkeypatch.setattr("dbproxy.app.routing.routed._PAUSES", (0.01,))
    limits = ProviderLimits(connect=2, first_byte=5, silence=5, retries=2)
    async with routed(rig, document({}, 503), hang_up, SAYS_HI, limits=limits) as r:
        assert check_stream((await ask(r)).body)["content"][0]["text"] == "Hello"
        found = await facts(r)
        assert [one.status for one in found.attempts] == [503, 0, 200]
        assert r.proxy.routing.retries == 2


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"not_ready": "it has no key"}, "it has no key"),
        ({"declines": "it takes no PDF"}, "it takes no PDF"),
        ({"raises": Unroutable("a web search")}, "a web search"),
        ({"raises": ZeroDivisionError("secret words")}, "ZeroDivisionError"),
        ({"can": Capabilities(context=1)}, "too large"),
    ],
)
async def test_a_provider_that_cannot_is_not_asked(rig, about, why):
    async with routed(rig, SAYS_HI, **about) as r:
        assert check_stream((await ask(r, extra=OLDER)).body)["content"][0]["text"] == "from Claude"
        assert r.server.heads == []
        found = await facts(r)
        assert why in found.attempts[0].error
        assert "secret words" not in found.attempts[0].error


async def test_a_provider_that_takes_no_time_to_answer_is_not_waited_for(rig):
    limits = ProviderLimits(connect=2, first_byte=0.2, silence=5, retries=0)
    async with routed(rig, slow(30), limits=limits) as r:
        assert check_stream((await ask(r)).body)["content"][0]["text"] == "from Claude"
        assert "gave no answer for 0.2 s" in (await facts(r)).attempts[0].error


async def test_a_provider_that_fails_again_and_again_is_left_alone_for_a_while(rig):
    limits = ProviderLimits(connect=2, first_byte=5, silence=5, retries=0, failures=2, cooldown=60)
    async with routed(rig, document({}, 500), document({}, 500), SAYS_HI, limits=limits) as r:
        for _ in range(3):
            await ask(r)
        assert len(r.server.heads) == 2
        await r.watcher.outcomes(3)
        assert "left alone" in (await facts(r)).attempts[0].error
        breaker = r.proxy.routing.get("elsewhere").breaker
        assert breaker.state(trio.current_time()) == "open"
        breaker.until = trio.current_time()
        assert breaker.state(trio.current_time()) == "half-open"
        assert check_stream((await ask(r)).body)["content"][0]["text"] == "Hello"
        assert r.proxy.routing.get("elsewhere").breaker.state(trio.current_time()) == "closed"


async def test_without_a_way_back_the_client_is_told_and_never_to_log_in(rig):
    answers = [
        document({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401),
        document({"error": {"message": "slow down"}}, 429, "Retry-After: 7.2\r\n"),
        document({"error": {"message": "quota", "code": "insufficient_quota"}}, 429),
        document({"error": {"message": "no such model"}}, 404),
    ]
    async with routed(rig, *answers, fallback=False) as r:
        denied = await ask(r)
        assert (denied.status, denied.json["error"]["type"]) == (400, "invalid_request_error")
        assert KEY not in denied.body.decode()
        assert "elsewhere" in denied.json["error"]["message"]
        limited = await ask(r)
        assert (limited.status, limited.fields["retry-after"]) == (429, "8")
        broke = await ask(r)
        assert (broke.status, broke.fields["x-should-retry"]) == (429, "false")
        assert (await ask(r)).status == 404
        assert r.origin.requests == []


async def test_case_78_an_overflow_is_what_the_client_compacts_on(rig):
    said = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "on"},
    ]
    history = body(messages=said)
    error = {"error": {"code": "context_length_exceeded", "message": "maximum context length is 100000 tokens, 120500"}}
    async with routed(rig, document(error, 400), can=Capabilities(context=100_000)) as r:
        await ask(r)
        await r.proxy.archive.flush(5)
        r.origin.requests.clear()
        answer = await ask(r, history)
        assert answer.status == 400
        assert answer.json["error"] == {
            "type": "invalid_request_error",
            "message": "prompt is too long: 241000 tokens > 200000 maximum",
        }
        assert r.origin.requests == []
        await ask(r, history, extra=OLDER)  # for it that would be the end
        assert len(r.origin.requests) == 1
        await ask(r)  # so it would be without an answer to sum up
        await ask(r, history, extra=CLIENT + "x-claude-code-request-class: compaction\r\n")
        await ask(r, history, extra=CLIENT + "x-claude-code-context-compacted: auto\r\n")
        assert len(r.origin.requests) == 4


# ---- later failures


@pytest.mark.parametrize(
    "broken", [cut({"text": "Hel"}), events({"text": "Hel"}, {"oops": "gone"}), events({"text": "a"})]
)
async def test_case_67_a_failure_behind_the_first_words_is_one_error_event(rig, broken):
    async with routed(rig, broken) as r:
        answer = await ask(r)
        with pytest.raises(StreamError) as error:
            check_stream(answer.body)
        assert error.value.after_content
        assert answer.body.count(b"event: error") == 1
        assert r.origin.requests == [], "what the client has seen cannot be unsaid"
        assert (await facts(r)).outcome == "failed"
        assert (await stored(r)).exchange.outcome == "error"


async def test_case_82_a_key_in_an_error_is_shown_to_nobody(rig):
    said = f"Incorrect API key provided: {KEY}"
    answers = events({"text": "Hel"}, {"oops": said}), events({"oops": said}), document([{"oops": said}])
    async with routed(rig, *answers, fallback=False) as r:
        answer = await ask(r)
        with pytest.raises(StreamError, match=r"provided: \[key\]"):
            check_stream(answer.body)
        for _ in range(2):
            shown = await ask(r)
            assert "[key]" in shown.json["error"]["message"]
            assert KEY not in shown.body.decode()
        await r.watcher.outcomes(3)
        await r.proxy.archive.flush(5.0)
        assert KEY not in repr([one.attributes["route"] for one in r.watcher.finished])
        assert KEY not in repr([one.error for one in r.watcher.finished])
    kept = [file.read_bytes() for file in r.data_dir.rglob("*") if file.is_file()]
    assert any(b"request_routed" in data for data in kept)
    assert all(KEY.encode() not in data for data in kept)


async def test_a_stream_that_falls_silent_ends_in_an_error(rig):
    limits = ProviderLimits(connect=2, first_byte=5, silence=0.3, retries=0)
    async with routed(rig, slow(30, first=SSE_HEAD + chunk(event(text="Hel"))), limits=limits) as r:
        with pytest.raises(StreamError, match=r"silent for 0\.3 s"):
            check_stream((await ask(r)).body)


async def test_case_69_the_client_is_pinged_while_the_provider_is_silent(rig, monkeypatch):
    monkeypatch.setattr(delivery, "PING_EVERY", 0.1)
    async with routed(
        rig, slow(0.5, {"text": "lo"}, {"stop": "end_turn"}, first=SSE_HEAD + chunk(event(text="Hel")))
    ) as r:
        answer = await ask(r)
        assert answer.body.count(b"event: ping") >= 2
        assert check_stream(answer.body)["content"] == [{"type": "text", "text": "Hello"}]


def spelled(*said, line_end=b"\n", size=0, coding=None):
    """The same answer in another framing: other line ends, pieces of so many bytes, coded."""
    text = b"".join(event(**one) for one in said).replace(b"\n", line_end)
    text = coding(text) if coding else text
    head = SSE_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") if coding else SSE_HEAD
    pieces = [text[at : at + size] for at in range(0, len(text), size)] if size else [text]

    async def answer(stream):
        await stream.send_all(head)
        for number, piece in enumerate(pieces):
            await stream.send_all(chunk(piece))
            if number < 40:
                await trio.sleep(0.001)  # so that they are read one by one
        await stream.send_all(b"0\r\n\r\n")

    return answer


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
async def test_case_72_framing_does_not_matter(rig, size, line_end):
    said = [{"text": "żółw "}, {"text": "🐢"}, {"call": ["c", "Read", '{"a": "é"}']}, {"stop": "end_turn"}]
    async with routed(rig, spelled(*said, line_end=line_end, size=size)) as r:
        content = check_stream((await ask(r)).body)["content"]
        assert content[0]["text"] == "żółw 🐢"
        assert content[1]["input"] == {"a": "é"}


async def test_case_72_a_line_of_a_megabyte_and_a_coded_stream(rig):
    long = "x" * 1_000_000
    answers = (
        spelled({"text": long}, {"stop": "end_turn"}),
        spelled({"text": "hi"}, {"stop": "end_turn"}, coding=gzip.compress),
    )
    async with routed(rig, *answers) as r:
        assert check_stream((await ask(r)).body)["content"][0]["text"] == long
        assert check_stream((await ask(r)).body)["content"][0]["text"] == "hi"


async def test_case_72_a_last_event_without_its_blank_line(rig):
    whole = b"".join(event(**one) for one in ({"text": "hi"}, {"stop": "end_turn"})).rstrip(b"\n")
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole
    async with routed(rig, answer) as r:
        assert check_stream((await ask(r)).body)["content"][0]["text"] == "hi"


async def test_a_long_thought_before_the_first_word_is_pinged_too(rig, monkeypatch):
    monkeypatch.setattr(delivery, "PING_EVERY", 0.1)
    monkeypatch.setattr(delivery, "HOLD", 0.1)
    async with routed(rig, slow(0.5, {"text": "Hello"}, {"stop": "end_turn"})) as r:
        answer = await ask(r)
        assert answer.body.startswith(b"event: ping\n")
        assert check_stream(answer.body)["content"] == [{"type": "text", "text": "Hello"}]


async def late(stream):
    await trio.sleep(0.5)
    await stream.send_all(document({"error": {"message": "no"}}, 500))


async def test_after_a_long_wait_the_way_back_is_still_open(rig, monkeypatch):
    monkeypatch.setattr(delivery, "HOLD", 0.1)
    async with routed(rig, late) as r:
        answer = await ask(r)
        assert answer.body.startswith(b"event: ping\n")
        assert check_stream(answer.body)["content"][0]["text"] == "from Claude"
        assert len(r.origin.requests) == 1
        assert (await facts(r)).outcome == "fell back"


class Renaming:
    """Puts a model into what goes where the client sent it."""

    @hookimpl
    def transform_request(self, exchange, request):
        return replace(request, body=request.body.replace(b"claude-haiku-4-5", b"claude-opus-5-5"))


async def test_after_a_long_wait_plugins_see_the_request_as_on_the_straight_way(rig, monkeypatch):
    monkeypatch.setattr(delivery, "HOLD", 0.1)
    async with peer(late) as server:
        plugins = (("router", Router(Provider(server.port))), ("renaming", Renaming()))
        async with rig(say("from Claude"), plugins=plugins) as r:
            sent = gzip.compress(body())
            answer = await ask(r, sent, extra=CLIENT + "Content-Encoding: gzip\r\n")
            assert check_stream(answer.body)["content"][0]["text"] == "from Claude"
            assert r.origin.requests[0].json["model"] == "claude-opus-5-5"


async def test_after_a_long_wait_the_way_back_may_fail_too(rig, monkeypatch):
    monkeypatch.setattr(delivery, "HOLD", 0.1)
    async with routed(rig, late, script=fail(529, "Overloaded")) as r:
        with pytest.raises(StreamError) as error:
            check_stream((await ask(r)).body)
        assert error.value.error["type"] == "overloaded_error"


async def test_after_a_long_wait_without_a_way_back(rig, monkeypatch):
    monkeypatch.setattr(delivery, "HOLD", 0.1)
    async with routed(rig, late, fallback=False) as r:
        with pytest.raises(StreamError, match="no"):
            check_stream((await ask(r)).body)


async def test_case_70_a_client_that_goes_away_ends_it_at_once(rig):
    async with routed(rig, slow(60, first=SSE_HEAD + chunk(event(text="Hel")))) as r:
        stream = await r.tls()
        await stream.send_all(request(body=body(), extra=CLIENT))
        got = b""
        while b"Hel" not in got:
            got += await stream.receive_some()
        await trio.aclose_forcefully(stream)
        with trio.fail_after(1):
            await r.server.closed.wait()
        assert await r.watcher.outcomes() == [Outcome.CLIENT_GONE]
        detail = await stored(r)
        assert detail.exchange.outcome == "aborted"
        assert detail.has_message
        assert detail.route.attempts[-1].error == "the client went away"


async def test_a_client_that_goes_away_before_the_answer(rig):
    async with routed(rig, slow(60)) as r:
        stream = await r.tls()
        await stream.send_all(request(body=body(), extra=CLIENT))
        with trio.fail_after(5):
            while not r.server.heads:
                await trio.sleep(0.01)
        await trio.aclose_forcefully(stream)
        with trio.fail_after(1):
            await r.server.closed.wait()


async def test_a_body_that_is_no_messages_request_takes_its_own_way(rig):
    async with routed(rig, SAYS_HI) as r:
        await ask(r, b'{"model": "claude-x"}')
        assert len(r.origin.requests) == 1
        assert (await facts(r)).outcome == "fell back"


async def test_a_call_to_ourselves_is_refused_and_falls_back(rig):
    async with routed(rig, SAYS_HI) as r:
        r.providers[0].port = r.running.port
        assert check_stream((await ask(r)).body)["content"][0]["text"] == "from Claude"
