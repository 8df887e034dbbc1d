"""The fake API's contract: the official SDK accepts it, and everything it emits on purpose keeps the strict grammar."""

from __future__ import annotations

import json
import ssl

import anthropic
import h11
import httpx2
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.testing.origin import Answer, Match, Rule, document, fail, open_origin, say, text, thinking, tool_use
from dbproxy.testing.origin.__main__ import main as origin_main
from dbproxy.testing.origin.api import BUILT_IN, NEVER_SEEN_LIVE
from dbproxy.testing.origin.events import encode, message, message_events
from dbproxy.testing.origin.grammar import GrammarError, Reader, StreamError, check_stream
from dbproxy.testing.origin.scenarios import SCENARIOS

ASK = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"name": "Bash", "description": "Run", "input_schema": {"type": "object", "properties": {}}}


async def with_sdk(origin, work, **how):
    """Run ``work(client)`` with the synchronous SDK in a thread; real sockets, nothing mocked."""
    context = ssl.create_default_context(cadata=origin.ca_pem.decode())

    def run():
        how.setdefault("max_retries", 0)
        http = httpx2.Client(verify=context, trust_env=False)
        with anthropic.Anthropic(api_key="sk-ant-dummy", base_url=origin.url, http_client=http, **how) as client:
            return work(client)

    with trio.fail_after(20):
        return await trio.to_thread.run_sync(run)


@pytest.mark.parametrize("tls", [False, True])
async def test_sdk_streams(tls):
    async with open_origin("thinking", tls=tls) as origin:

        def work(client):
            with client.messages.stream(**ASK, tools=[TOOL]) as stream:
                kinds = [event.type for event in stream]
                return kinds, stream.get_final_message()

        kinds, final = await with_sdk(origin, work)
        assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
        assert final.content[0].signature
        assert final.content[2].input["command"] == "echo step 0"
        assert final.stop_reason == "tool_use"
        assert final.usage.output_tokens > 1
        assert {"message_start", "content_block_delta", "message_stop"} <= set(kinds)
        check_stream(bytes(origin.requests[0].sent.body))


async def test_sdk_tool_loop_to_its_end():
    async with open_origin("tools") as origin:

        def work(client):
            messages = list(ASK["messages"])
            replies = []
            while True:
                reply = client.messages.create(**{**ASK, "messages": messages}, tools=[TOOL])
                replies.append(reply)
                if reply.stop_reason != "tool_use":
                    return replies
                results = [
                    {"type": "tool_result", "tool_use_id": block.id, "content": "done"}
                    for block in reply.content
                    if block.type == "tool_use"
                ]
                messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": results}]

        replies = await with_sdk(origin, work)
        assert [reply.stop_reason for reply in replies] == ["tool_use", "tool_use", "end_turn"]
        assert replies[-1].content[0].text == "All done."


async def test_sdk_pings_comments_and_codings_are_invisible():
    answers = [
        say("ä漢🙂" * 9, coding=coding, chunk_size=1, first_byte_delay=0.02, ping_every=0.005, ping=ping)
        for coding in ("", "gzip", "deflate", "br")
        for ping in ("event", "comment")
    ]
    async with open_origin([Rule(tuple(answers), Match(path="/v1/messages"))]) as origin:

        def work(client):
            texts = []
            for _ in answers:
                with client.messages.stream(**ASK) as stream:
                    texts.append(stream.get_final_text())
            return texts

        assert await with_sdk(origin, work) == ["ä漢🙂" * 9] * len(answers)


ERRORS = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    403: anthropic.PermissionDeniedError,
    404: anthropic.NotFoundError,
    409: anthropic.ConflictError,
    413: anthropic.RequestTooLargeError if hasattr(anthropic, "RequestTooLargeError") else anthropic.APIStatusError,
    429: anthropic.RateLimitError,
    500: anthropic.InternalServerError,
    529: anthropic.OverloadedError if hasattr(anthropic, "OverloadedError") else anthropic.InternalServerError,
}


@pytest.mark.parametrize("status", list(ERRORS))
async def test_sdk_errors_have_their_classes(status):
    async with open_origin([Rule((fail(status, "told so"),))]) as origin:

        def work(client):
            with pytest.raises(ERRORS[status]) as caught:
                client.messages.create(**ASK)
            return caught.value

        error = await with_sdk(origin, work)
        assert error.status_code == status
        assert error.body["error"]["message"] == "told so"
        assert error.request_id == error.body["request_id"] == "req_origin000001"


async def test_sdk_honours_retry_after():
    answers = (fail(429, "wait", fields=(("retry-after", "1"),)), say("at last"))
    async with open_origin([Rule(answers, Match(path="/v1/messages"))]) as origin:
        reply = await with_sdk(origin, lambda client: client.messages.create(**ASK), max_retries=1)
        assert reply.content[0].text == "at last"
        first, second = origin.requests
        assert second.time - first.time >= 1.0
        assert first.body == second.body


async def test_sdk_honours_x_should_retry():
    answer = fail(500, "never mind", fields=(("x-should-retry", "false"),))
    async with open_origin([Rule((answer,))]) as origin:

        def work(client):
            with pytest.raises(anthropic.InternalServerError):
                client.messages.create(**ASK)

        await with_sdk(origin, work, max_retries=3)
        assert len(origin.requests) == 1


async def test_sdk_sees_error_events_and_cuts():
    answers = (say("x" * 900, error_after=3), say("x" * 900, cut_after=3))
    async with open_origin([Rule(answers, Match(path="/v1/messages"))]) as origin:

        def work(client):
            with pytest.raises(anthropic.APIStatusError), client.messages.stream(**ASK) as stream:
                stream.until_done()
            broken = (httpx2.RemoteProtocolError, anthropic.APIConnectionError)
            with pytest.raises(broken), client.messages.stream(**ASK) as stream:
                stream.until_done()

        await with_sdk(origin, work)


async def test_sdk_counts_tokens_and_lists_models():
    async with open_origin() as origin:

        def work(client):
            counted = client.messages.count_tokens(model=ASK["model"], messages=ASK["messages"])
            models = client.models.list().data
            one = client.models.retrieve("claude-haiku-4-5")
            with pytest.raises(anthropic.NotFoundError):
                client.models.retrieve("claude-none")
            return counted, models, one

        counted, models, one = await with_sdk(origin, work)
        assert counted.input_tokens > 5
        assert [model.id for model in models] == ["claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-4-5"]
        assert one.display_name == "Claude Haiku 4.5"


# Built-in rules over a plain client


class Plain:
    """A client that says exactly what it is told, through httpx2 in a thread."""

    def __init__(self, origin):
        self.origin = origin

    async def __call__(self, method, path, body=None, **fields):
        fields = {name.replace("_", "-"): value for name, value in fields.items()}
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()

        def run():
            with httpx2.Client(base_url=self.origin.url, trust_env=False) as client:
                return client.request(method, path, content=content, headers=fields)

        with trio.fail_after(10):
            return await trio.to_thread.run_sync(run)

    async def ask(self, body, path="/v1/messages", **fields):
        return await self("POST", path, body, x_api_key="k", anthropic_version="2023-06-01", **fields)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/", 200),
        ("HEAD", "/api/hello", 200),
        ("GET", "/api/hello", 200),
        ("GET", "/api/claude_code/settings", 404),
        ("GET", "/api/claude_code/policy_limits", 404),
        ("POST", "/api/event_logging/v2/batch", 200),
        ("POST", "/v1/messages/cache_touch", 200),
        ("POST", "/v1/messages/unknown", 404),
        ("GET", "/nowhere", 404),
        ("POST", "/v1/messages", 401),
    ],
)
async def test_neighbours_answer_at_once(method, path, status):
    async with open_origin() as origin:
        answer = await Plain(origin)(method, path, b"{}" if method == "POST" else None)
        assert answer.status_code == status
        assert answer.headers["request-id"] == "req_origin000001"
        if status >= 400:
            assert answer.json()["type"] == "error"
            assert answer.json()["request_id"] == "req_origin000001"
        if method == "HEAD":
            assert answer.content == b""


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be an object"),
        ({**ASK, "model": ""}, "model"),
        ({**ASK, "max_tokens": None}, "max_tokens"),
        ({**ASK, "messages": []}, "messages"),
    ],
)
async def test_what_is_no_request_gets_a_400(body, told):
    async with open_origin() as origin:
        answer = await Plain(origin).ask(body)
        assert answer.status_code == 400
        assert told in answer.json()["error"]["message"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_coded_request_bodies_are_read(coding):
    from dbproxy.testing.origin.answering import Coder

    coder = Coder(coding)
    coded = coder.piece(json.dumps(ASK).encode()) + coder.end()
    async with open_origin() as origin:
        answer = await Plain(origin).ask(coded, content_encoding=coding)
        assert answer.json()["content"][0]["text"] == "OK from the fake API."
        assert origin.requests[0].body == coded
        assert origin.requests[0].json == ASK
        assert (await Plain(origin).ask(b"garbage", content_encoding=coding)).status_code == 400
        assert (await Plain(origin).ask(coded, content_encoding="lzw")).status_code == 400


async def test_threads_continue_with_new_messages_only():
    """anthropic-api 2.6."""
    tools = [{"name": "Bash"}, {"name": "Agent"}]
    async with open_origin({"scenario": "tools", "options": {"steps": 1}}) as origin:
        plain = Plain(origin)
        first = (await plain.ask({**ASK, "tools": tools, "thread": {"type": "create"}})).json()
        call = first["content"][1]["id"]
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call, "content": "x"}]}
        onward = {**ASK, "messages": [result], "thread": {"type": "continue", "previous_message_id": first["id"]}}

        changed = await plain.ask({**onward, "model": "claude-sonnet-5-5"})
        assert changed.json()["error"]["details"]["error_code"] == "thread_fingerprint_mismatch"
        second = await plain.ask(onward)
        assert second.json()["content"][0]["text"] == "All done."
        assert [m["role"] for m in origin.requests[-1].messages] == ["user", "assistant", "user"]
        again = await plain.ask(onward)
        assert (again.status_code, again.json()["error"]["details"]["error_code"]) == (400, "thread_already_continued")
        unknown = {**onward, "thread": {"type": "continue", "previous_message_id": "msg_none"}}
        answer = await plain.ask(unknown)
        assert (answer.status_code, answer.json()["error"]["details"]["error_code"]) == (404, "thread_not_found")
        answer = await plain.ask({**onward, "thread": {"type": "fork"}})
        assert answer.json()["error"]["details"]["error_code"] == "thread_unsupported_request"


def test_every_rule_names_its_source(capsys):
    assert all(rule.source for rule in BUILT_IN)
    assert all(scenario.source for scenario in SCENARIOS.values())
    assert all(source for _, source in NEVER_SEEN_LIVE)
    assert origin_main(["--rules"]) == 0
    told = capsys.readouterr().out
    for name in (*(rule.name for rule in BUILT_IN), *SCENARIOS, *(what for what, _ in NEVER_SEEN_LIVE)):
        assert name in told


# The grammar, both ways: all that we emit passes, and each fault is found

blocks = st.one_of(
    st.text().map(text),
    st.text().map(thinking),
    st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none(), max_size=3).map(
        lambda given: tool_use("Bash", given)
    ),
    st.just({"type": "redacted_thinking", "data": "x"}),
    st.just({"type": "compaction", "content": "all of it"}),
    st.just({"type": "web_search_tool_result", "tool_use_id": "x", "content": []}),
)


@given(st.lists(blocks, max_size=5), st.integers(1, 50), st.integers(1, 40))
def test_everything_emitted_keeps_the_grammar_in_every_split(content, delta_chars, step):
    made = message_events(content, model="m", delta_chars=delta_chars)
    wire = b"".join(encode(event) for event in made)
    reader = Reader()
    for start in range(0, len(wire), step):
        reader.feed(wire[start : start + step])
    final = reader.finish()
    assert final["content"] == content
    whole = message(content, model="m", message_id=final["id"])
    assert final["stop_reason"] == whole["stop_reason"]
    assert final["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


GOOD = message_events([text("hello"), tool_use("Bash", {"a": 1}), thinking("hm")], model="m")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda e: e[1:], "content_block_start in state"),
        (lambda e: [e[0], *e], "message_start in state"),
        (lambda e: e[:-1], "ended in state 'ending'"),
        (lambda e: e[:-2] + e[-1:], "message_stop in state"),
        (lambda e: [*e, e[-1]], "message_stop in state"),
        (lambda e: [e[0], *e[2:]], "open: None"),
        (lambda e: [x for x in e if x["type"] != "content_block_stop"], "open: 0"),
        (lambda e: [{**x, "index": 5} if "index" in x else x for x in e], "starts after 0"),
        (
            lambda e: [*e[:4], {**e[4], "content_block": {"type": "text", "text": "full"}}, *e[5:]],
            "does not start empty",
        ),
        (lambda e: [*e[:2], {**e[2], "delta": {"type": "input_json_delta", "partial_json": ""}}, *e[3:]], "in a text"),
        (lambda e: [*e, {"type": "novelty"}], "unknown event"),
        (lambda e: [{**e[0], "message": {**e[0]["message"], "usage": {}}}, *e[1:]], "usage lacks"),
        (lambda e: [*e[:-2], {**e[-2], "delta": {"stop_reason": "because"}}, e[-1]], "unknown stop_reason"),
        (lambda e: [*e[:-2], {**e[-2], "delta": {}}, e[-1]], "without a stop_reason"),
    ],
)
def test_each_fault_of_a_stream_is_found(change, told):
    with pytest.raises(GrammarError, match=told):
        check_stream(b"".join(encode(event) for event in change(GOOD)))


def _cut_input(events, partial, reason):
    """The stream with another input for its call, of which the deltas are known by their index."""
    out = [e for e in events if e.get("delta", {}).get("type") != "input_json_delta"]
    at = next(i for i, e in enumerate(out) if e["type"] == "content_block_stop" and e["index"] == 1)
    delta = {"type": "input_json_delta", "partial_json": partial}
    out.insert(at, {"type": "content_block_delta", "index": 1, "delta": delta})
    out[-2] = {**out[-2], "delta": {"stop_reason": reason, "stop_sequence": None}}
    return b"".join(encode(event) for event in out)


@pytest.mark.parametrize("partial", ['{"a": [1', "[1]", "{" * 100_000])
def test_an_incomplete_input_is_allowed_only_where_the_answer_was_cut(partial):
    assert check_stream(_cut_input(GOOD, partial, "max_tokens"))["content"][1]["input"] == {}
    for reason in ("tool_use", "end_turn", "pause_turn"):
        with pytest.raises(GrammarError, match="no JSON object"):
            check_stream(_cut_input(GOOD, partial, reason))


@pytest.mark.parametrize("wire", [b"data: {}\n\n", b"event: ping\ndata: {}\n\n", b"event: ping\ndata: {\n\n", b"\n\n"])
def test_lines_that_are_no_event_are_found(wire):
    with pytest.raises(GrammarError):
        check_stream(wire)


def test_an_error_event_is_an_error():
    with pytest.raises(StreamError, match="overloaded_error"):
        check_stream(encode({"type": "error", "error": {"type": "overloaded_error", "message": "x"}}))


async def test_every_scenario_streams_well_for_every_role():
    """Also the odd ones are well formed, where they are meant to be: only cuts and errors break off."""
    from dbproxy.testing.origin.received import Connection, Received

    for scenario in SCENARIOS.values():
        for role in ("main", "subagent", "compaction", "auxiliary"):
            body = json.dumps({**ASK, "stream": True, "tools": [TOOL, {"name": "Agent"}]}).encode()
            connection = Connection(1, False, 0.0)
            fields = [(b"x-claude-code-request-class", role.encode())]
            request = Received(1, connection, 0.0, "POST", "/v1/messages", "HTTP/1.1", b"", fields, body=body)
            answer = scenario.answer(request, {}, {})
            assert answer.blocks
            made = message_events(list(answer.blocks), model="m", usage=answer.usage)
            assert check_stream(b"".join(encode(event) for event in made))["content"] == list(answer.blocks)


def test_answers_parse_in_h11():
    """The oracle's own heads are held against h11 once more, without a socket."""
    from dbproxy.testing.origin.answering import head_bytes

    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(head_bytes(529, "", [("content-length", "0")]))
    assert client.next_event().status_code == 529


def test_documents_are_json():
    assert document({"a": "ä"}) == Answer(body=b'{"a": "\\u00e4"}', content_type="application/json")
