"""The fake OpenAI and Gemini servers, asked by the official SDK and by hand: answers, errors, cuts, records."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx2
import openai
import pytest
import trio

from dbproxy.testing.origin import Answer, Match, Rule, fail, say, text, thinking, tool_use
from dbproxy.testing.providers import GEMINI_KEY, MARKER, OPENAI_KEY, open_gemini, open_openai
from dbproxy.testing.providers.__main__ import main as providers_main
from dbproxy.testing.providers.signatures import thought_signature

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
FUNCTION = {"name": "Look", "description": "Looks", "parameters": SCHEMA}
ASK = [{"role": "user", "content": "hi"}]
GEMINI_ASK = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
EVERYTHING = say(
    thinking("Hm, ä."), "I look: 漢🙂.", tool_use("Look", {"path": "ö"}, call_id="c1"), tool_use("Look", {"path": "b"})
)


async def with_sdk(origin, work, *, key=OPENAI_KEY):
    """Run ``work(client)`` with the synchronous SDK in a thread; real sockets, nothing mocked."""

    def run():
        http = httpx2.Client(trust_env=False)
        with openai.OpenAI(base_url=f"{origin.url}/v1", api_key=key, max_retries=0, http_client=http) as client:
            return work(client)

    with trio.fail_after(20):
        return await trio.to_thread.run_sync(run)


async def post(origin, path, body, **fields):
    """(status, fields, body) of one request by hand."""

    def run():
        with httpx2.Client(base_url=origin.url, trust_env=False) as client:
            return client.post(path, json=body, headers={name.replace("_", "-"): v for name, v in fields.items()})

    with trio.fail_after(20):
        return await trio.to_thread.run_sync(run)


def gemini_path(model="gemini-3.8-flash", method="streamGenerateContent?alt=sse"):
    return f"/v1beta/models/{model}:{method}"


def gemini_chunks(body):
    return [json.loads(line[6:]) for line in body.decode().split("\r\n\r\n") if line]


# ---- answers


async def test_chat_whole_and_streamed():
    async with open_openai(
        EVERYTHING.but(usage={"input_tokens": 7, "output_tokens": 5, "cache_read_input_tokens": 3})
    ) as o:
        tools = [{"type": "function", "function": FUNCTION}]

        def work(client):
            whole = client.chat.completions.create(model="gpt-4o", messages=ASK, tools=tools)
            options = {"include_usage": True}
            with client.chat.completions.create(
                model="gpt-4o", messages=ASK, tools=tools, stream=True, stream_options=options
            ) as stream:
                return whole, list(stream)

        whole, chunks = await with_sdk(o, work)
        message = whole.choices[0].message
        assert (message.content, message.reasoning_content) == ("I look: 漢🙂.", "Hm, ä.")
        called = [(call.id, call.function.arguments) for call in message.tool_calls]
        assert called[0] == ("c1", '{"path":"ö"}')
        assert called[1][0].startswith("call_")
        assert whole.choices[0].finish_reason == "tool_calls"
        assert (whole.usage.prompt_tokens, whole.usage.prompt_tokens_details.cached_tokens) == (10, 3)
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert "".join(delta.content or "" for delta in deltas) == "I look: 漢🙂."
        pieces = [call for delta in deltas for call in delta.tool_calls or []]
        assert [call.function.name for call in pieces if call.id] == ["Look", "Look"]
        assert [call.index for call in pieces] == sorted(call.index for call in pieces)
        assert "".join(call.function.arguments for call in pieces if call.index == 0) == '{"path":"ö"}'
        assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 5)
        assert bytes(o.requests[1].sent.body).endswith(b"data: [DONE]\n\n")


async def test_chat_tells_usage_in_a_stream_only_if_asked():
    async with open_openai(say("hi")) as o:

        def work(client):
            with client.chat.completions.create(model="gpt-4o", messages=ASK, stream=True) as stream:
                return [chunk.usage for chunk in stream]

        assert set(await with_sdk(o, work)) == {None}


@pytest.mark.parametrize("sealed", [True, False])
async def test_responses_whole_and_streamed(sealed):
    async with open_openai(EVERYTHING) as o:
        how = {"model": "gpt-5.5", "input": "hi", "tools": [{"type": "function", "strict": False, **FUNCTION}]}
        if sealed:
            how["include"] = ["reasoning.encrypted_content"]

        def work(client):
            with client.responses.create(**how, stream=True) as stream:
                return client.responses.create(**how), list(stream)

        whole, events = await with_sdk(o, work)
        assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
        assert (whole.output[0].encrypted_content is not None) is sealed
        assert (whole.output_text, whole.status) == ("I look: 漢🙂.", "completed")
        assert events[-1].type == "response.completed"
        assert events[-1].response.output == whole.output
        assert [event.sequence_number for event in events] == list(range(len(events)))
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert done == whole.output


async def test_gemini_whole_and_streamed():
    async with open_gemini(EVERYTHING) as g:
        whole = await post(g, gemini_path(method="generateContent"), GEMINI_ASK, x_goog_api_key=GEMINI_KEY)
        streamed = await post(g, gemini_path(), GEMINI_ASK, x_goog_api_key=GEMINI_KEY)
        parts = whole.json()["candidates"][0]["content"]["parts"]
        assert parts[0] == {"text": "Hm, ä.", "thought": True}
        assert [("thoughtSignature" in part, "functionCall" in part) for part in parts] == [
            (False, False),
            (False, False),
            (True, True),
            (False, True),
        ]
        chunks = gemini_chunks(streamed.content)
        assert [part for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"]] == [
            *parts,
            {"text": ""},
        ]
        assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
        assert chunks[-1]["usageMetadata"]["promptTokenCount"] > 0


@pytest.mark.parametrize(
    ("reason", "finish", "status", "gemini"),
    [("max_tokens", "length", "incomplete", "MAX_TOKENS"), ("refusal", "content_filter", "incomplete", "SAFETY")],
)
async def test_other_ends(reason, finish, status, gemini):
    answer = say("cut", stop_reason=reason)
    async with open_openai(answer) as o, open_gemini(answer) as g:

        def work(client):
            chat = client.chat.completions.create(model="gpt-4o", messages=ASK)
            return chat.choices[0].finish_reason, client.responses.create(model="gpt-5.5", input="hi").status

        assert await with_sdk(o, work) == (finish, status)
        told = await post(g, gemini_path(method="generateContent"), GEMINI_ASK, x_goog_api_key=GEMINI_KEY)
        assert told.json()["candidates"][0]["finishReason"] == gemini


# ---- who may ask, and what is refused


async def test_a_wrong_key_is_refused_and_repeated_starred():
    async with open_openai() as o:

        def work(client):
            with pytest.raises(openai.AuthenticationError) as caught:
                client.chat.completions.create(model="gpt-4o", messages=ASK)
            return caught.value

        error = await with_sdk(o, work, key="another-key-entirely")
        assert (error.status_code, error.code) == (401, "invalid_api_key")
        assert "anot********rely" in error.message
        without = await post(o, "/v1/responses", {"model": "gpt-5.5", "input": "hi"})
        assert without.status_code == 401
        assert without.headers["x-request-id"] == "req_000002"
        assert "request-id" not in without.headers


async def test_gemini_wants_its_key_in_a_field():
    async with open_gemini() as g:
        wrong = await post(g, gemini_path(), GEMINI_ASK, x_goog_api_key="other")
        missing = await post(g, f"{gemini_path()}&key={GEMINI_KEY}", GEMINI_ASK)
        assert (wrong.status_code, wrong.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
        assert (missing.status_code, missing.json()["error"]["status"]) == (403, "PERMISSION_DENIED")


async def test_what_breaks_a_rule_is_refused_and_counted():
    async with open_openai(say("never")) as o, open_gemini(say("never")) as g:

        def work(client):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(model="gpt-5", messages=ASK, temperature=0.2)
            with pytest.raises(openai.NotFoundError):
                client.responses.create(model="llama-4", input="hi")
            return caught.value

        error = await with_sdk(o, work)
        assert (error.param, error.code) == ("temperature", "unsupported_value")
        assert [told[:17] for told in o.api.refused] == ["Unsupported value", "The model `llama-"]
        bad = await post(g, gemini_path(), {**GEMINI_ASK, "stop": []}, x_goog_api_key=GEMINI_KEY)
        assert bad.json()["error"]["message"].startswith("Invalid JSON payload received. Unknown name")
        unknown = await post(g, gemini_path("gpt-4o"), GEMINI_ASK, x_goog_api_key=GEMINI_KEY)
        assert unknown.status_code == 404
        plain = await post(g, gemini_path(method="streamGenerateContent"), GEMINI_ASK, x_goog_api_key=GEMINI_KEY)
        assert plain.status_code == 400


async def test_a_body_that_is_none_and_a_path_that_is_none():
    async with open_openai() as o:

        def run():
            fields = {"authorization": f"Bearer {OPENAI_KEY}"}
            with httpx2.Client(base_url=o.url, trust_env=False, headers=fields) as client:
                return [
                    client.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}),
                    client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"}),
                    client.post("/v1/messages", json={}),
                    client.get("/v1/models"),
                ]

        assert [answer.status_code for answer in await trio.to_thread.run_sync(run)] == [400, 400, 404, 200]


async def test_other_models_and_a_prefix():
    async with open_openai(say("hi"), models=["qwen*"], prefix="/api") as o:
        fields = {"authorization": f"Bearer {OPENAI_KEY}"}
        body = {"model": "qwen3-coder", "messages": ASK}
        assert (await post(o, "/api/v1/chat/completions", body, **fields)).status_code == 200
        assert (await post(o, "/v1/chat/completions", body, **fields)).status_code == 404
        assert (await post(o, "/api/v1/chat/completions", {**body, "model": "gpt-4o"}, **fields)).status_code == 404


async def test_a_context_that_overflows():
    script = {"options": {"context": 10}}
    async with open_openai(script) as o, open_gemini(script) as g:

        def work(client):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "word " * 50}])
            return caught.value

        error = await with_sdk(o, work)
        assert error.code == "context_length_exceeded"
        assert "maximum context length is 10 tokens" in error.message
        told = await post(g, gemini_path(), GEMINI_ASK, x_goog_api_key=GEMINI_KEY)
        assert "exceeds the maximum number of tokens allowed (10)" in told.json()["error"]["message"]


# ---- scripts


async def test_rules_match_on_what_was_said():
    script = {
        "rules": [
            {"match": {"path": "/v1/responses"}, "answer": {"text": "by path"}},
            {"match": {"tool_results": 1}, "answer": {"text": "by results"}},
            {
                "match": {"text": "hi"},
                "times": 1,
                "answer": {"status": 429, "fail": {"message": "slow"}, "retry_after": 2},
            },
            {"match": {"model": "4.1"}, "answer": {"text": "by model"}},
            {"match": {"stream": True}, "answer": {"events": ['data: {"choices": []}\n\n', "data: [DONE]\n\n"]}},
        ],
        "scenario": "plain",
        "options": {"text": "otherwise"},
    }
    async with open_openai(script) as o:
        call = {"id": "c", "type": "function", "function": {"name": "Look", "arguments": "{}"}}
        history = [*ASK, {"role": "assistant", "tool_calls": [call]}]
        history += [{"role": "tool", "tool_call_id": "c", "content": "x"}]

        def work(client):
            def ask(model="gpt-4o", messages=ASK):
                return client.chat.completions.create(model=model, messages=messages).choices[0].message.content

            with pytest.raises(openai.RateLimitError) as caught:
                ask()
            text_ = client.responses.create(model="gpt-5.5", input="hi").output_text
            return caught.value, [text_, ask(messages=history), ask("gpt-4.1"), ask()]

        error, said = await with_sdk(o, work)
        streamed = {"model": "gpt-4o", "messages": ASK, "stream": True}
        raw = (await post(o, "/v1/chat/completions", streamed, authorization=f"Bearer {OPENAI_KEY}")).text
        assert (error.code, error.response.headers["retry-after"]) == ("rate_limit_exceeded", "2")
        assert raw == 'data: {"choices": []}\n\ndata: [DONE]\n\n'
        assert said == ["by path", "by results", "by model", "otherwise"]


@pytest.mark.parametrize(
    ("answer", "status", "kind", "code"),
    [
        (fail(503, "busy"), 503, "server_error", None),
        (
            fail(429, "no money", kind="insufficient_quota", details={"error_code": "insufficient_quota"}),
            429,
            "insufficient_quota",
            "insufficient_quota",
        ),
        (fail(500, "early", early=True), 500, "server_error", None),
    ],
)
async def test_scripted_failures_have_the_api_s_own_shape(answer, status, kind, code):
    async with open_openai([Rule((answer,))]) as o, open_gemini([Rule((answer,))]) as g:

        def work(client):
            with pytest.raises(openai.APIStatusError) as caught:
                client.chat.completions.create(model="gpt-4o", messages=ASK)
            return caught.value

        error = await with_sdk(o, work)
        assert (error.status_code, error.type, error.code) == (status, kind, code)
        told = await post(g, gemini_path(), GEMINI_ASK, x_goog_api_key=GEMINI_KEY)
        assert (told.status_code, told.json()["error"]["code"]) == (status, status)


async def test_errors_and_cuts_in_the_middle_of_a_stream():
    answers = (say("word " * 200, error_after=2), say("word " * 200, cut_after=2))
    async with open_openai([Rule(answers)]) as o, open_gemini([Rule(answers)]) as g:

        def work(client):
            def read():
                with client.chat.completions.create(model="gpt-4o", messages=ASK, stream=True) as stream:
                    list(stream)

            with pytest.raises(openai.APIError, match="Overloaded"):
                read()
            with pytest.raises((httpx2.RemoteProtocolError, openai.APIConnectionError)):
                read()

        await with_sdk(o, work)
        told = await post(g, gemini_path(), GEMINI_ASK, x_goog_api_key=GEMINI_KEY)
        assert gemini_chunks(told.content)[-1]["error"]["status"] == "UNAVAILABLE"
        with pytest.raises(httpx2.RemoteProtocolError):
            await post(g, gemini_path(), GEMINI_ASK, x_goog_api_key=GEMINI_KEY)


async def test_silence_is_filled_with_comments_and_never_with_pings():
    answer = say("word " * 300, stall_after=1, stall=0.1, ping_every=0.02)
    async with open_openai(answer) as o:

        def work(client):
            with client.chat.completions.create(model="gpt-4o", messages=ASK, stream=True) as stream:
                return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

        assert await with_sdk(o, work) == "word " * 300
        sent = bytes(o.requests[0].sent.body)
        assert b"\n\n: keep-alive\n\n" in sent
        assert b"event: ping" not in sent


async def test_a_script_may_be_replaced_and_may_decide_by_itself():
    async with open_openai(lambda asked: say(f"{asked.model}, {len(asked.messages)}, {asked.tools}")) as o:

        def work(client):
            return client.chat.completions.create(model="gpt-4o", messages=ASK).choices[0].message.content

        assert await with_sdk(o, work) == "gpt-4o, 1, []"
        o.script = Answer(blocks=(text("another"),))
        assert await with_sdk(o, work) == "another"
        o.script = [Rule((say("ruled"),), Match(text="hi"))]
        assert await with_sdk(o, work) == "ruled"


# ---- the process


def test_as_a_process_it_records_every_request_exactly(tmp_path):
    script = {"openai": {"rules": [{"answer": {"text": "from a file"}}]}, "gemini": {"scenario": "agent"}}
    (tmp_path / "script.json").write_text(json.dumps(script))
    command = [sys.executable, "-m", "dbproxy.testing.providers", "--until-eof", "--record", str(tmp_path / "seen")]
    with subprocess.Popen(
        [*command, "--script", str(tmp_path / "script.json"), "--openai-key", "k1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        with httpx2.Client(trust_env=False, timeout=10) as client:
            body = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "\xc3\xa4"}]}'
            fields = {"Authorization": "Bearer k1", "Content-Type": "application/json", "X-Odd-Case": "1"}
            said = client.post(f"{ready['openai']}/chat/completions", content=body, headers=fields).json()
            assert said["choices"][0]["message"]["content"] == "from a file"
            url = f"{ready['gemini']}{gemini_path(method='generateContent')}"
            report = client.post(url, json=GEMINI_ASK, headers={"x-goog-api-key": GEMINI_KEY}).json()
            assert report["candidates"][0]["content"]["parts"][0]["text"].startswith(f"{MARKER}: 0 results")
        process.stdin.close()
        assert process.wait(20) == 0
    folder = tmp_path / "seen" / "openai"
    assert (folder / "000001.body").read_bytes() == body
    head = (folder / "000001.head").read_bytes()
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"\r\nX-Odd-Case: 1\r\n" in head
    assert json.loads((folder / "000001.json").read_text())["answer"]["status"] == 200
    assert len(list((tmp_path / "seen" / "gemini").glob("*.json"))) == 1


@pytest.mark.parametrize("script", ['{"rules": [{"match": {"txt": "x"}, "answer": {}}]}', "{", '{"scenario": "none"}'])
def test_a_bad_script_is_one_line_and_no_server(tmp_path, capsys, script):
    file = tmp_path / "bad.json"
    file.write_text(script)
    assert providers_main(["--script", str(file)]) == 1
    assert capsys.readouterr().err.startswith("providers: ")


def test_signatures_of_others_are_known_as_such():
    from dbproxy.testing.providers.signatures import is_thought_signature

    assert is_thought_signature(thought_signature("Read"))
    assert not any(map(is_thought_signature, ["", "x", "c2lnbmF0dXJl", "\u00e4"]))
