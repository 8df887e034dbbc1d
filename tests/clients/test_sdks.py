"""The official SDKs through the proxy: by HTTPS_PROXY and by base URL; C23: API key and OAuth bearer."""

from __future__ import annotations

import ssl

import openai
import pytest
from anthropic import Anthropic, DefaultHttpxClient, InternalServerError, RateLimitError

from dbproxy.testing.origin import document, fail, say, tool_use

MESSAGES = [{"role": "user", "content": "hi"}]
WAYS = pytest.mark.parametrize("way", ["proxy", "base"])


def transport(served, way, make=DefaultHttpxClient):
    """The SDK's own HTTP client for one of the two ways; nothing of the test's own environment counts."""
    context = ssl.create_default_context(cafile=str(served.bundle))
    if way == "proxy":
        return make(proxy=f"http://127.0.0.1:{served.port}", verify=context, trust_env=False)
    return make(trust_env=False)


def base(served, way, path=""):
    return f"https://api.anthropic.com{path}" if way == "proxy" else f"http://127.0.0.1:{served.port}{path}"


@WAYS
@pytest.mark.parametrize("auth", ["key", "bearer"])
def test_c23_a_message_whole_and_streamed(served, way, auth):
    served.script(say("Grüße 🙂 from the model", tool_use("Read", {"file_path": "/x"})))
    secret = {"api_key": "sk-ant-api03-x"} if auth == "key" else {"auth_token": "sk-ant-oat01-x", "api_key": None}
    with (
        transport(served, way) as http,
        Anthropic(base_url=base(served, way), http_client=http, max_retries=0, **secret) as client,
    ):
        whole = client.messages.create(model="claude-x", max_tokens=9, messages=MESSAGES)
        assert whole.content[0].text == "Grüße 🙂 from the model"
        assert whole.content[1].input == {"file_path": "/x"}
        with client.messages.stream(model="claude-x", max_tokens=9, messages=MESSAGES) as stream:
            assert "".join(stream.text_stream) == "Grüße 🙂 from the model"
            assert stream.get_final_message().content[1].input == {"file_path": "/x"}
    assert len(served.requests) == 2
    shown = {None, "Bearer sk-ant-oat01-x"} if auth == "bearer" else {None, "sk-ant-api03-x", "Bearer sk-ant-api03-x"}
    for received in served.requests:
        sent = {received.header("x-api-key"), received.header("authorization")}  # newer SDKs send a key as a bearer
        assert sent <= shown
        assert len(sent) == 2


@WAYS
def test_n15_coded_answers(served, way):
    """In every coding that this SDK says it takes."""
    with (
        transport(served, way) as http,
        Anthropic(base_url=base(served, way), http_client=http, api_key="k", max_retries=0) as client,
    ):
        client.models.list()
        accepted = served.requests[0].header("accept-encoding").replace(" ", "").split(",")
        assert {"gzip", "deflate"} <= set(accepted)
        for coding in accepted:
            served.script(say("word " * 100, coding=coding))
            with client.messages.stream(model="claude-x", max_tokens=9, messages=MESSAGES) as stream:
                assert "".join(stream.text_stream) == "word " * 100
            assert served.requests[-1].sent.head.count(f"content-encoding: {coding}".encode()) == 1


@WAYS
def test_n4_the_sdk_waits_as_it_is_told_and_tries_again(served, way):
    rules = {
        "rules": [
            {
                "match": {"path": "/v1/messages"},
                "times": 2,
                "answers": [
                    {"status": 429, "fail": {"message": "slow down"}, "retry_after": 0.1},
                    {"status": 529, "fail": {"message": "busy"}, "retry_after": 0.1},
                ],
            }
        ]
    }
    served.script(rules)
    with (
        transport(served, way) as http,
        Anthropic(base_url=base(served, way), http_client=http, api_key="k", max_retries=3) as client,
    ):
        answer = client.messages.with_raw_response.create(model="claude-x", max_tokens=9, messages=MESSAGES)
        assert answer.headers["anthropic-ratelimit-requests-limit"] == "4000"
        assert [received.header("x-stainless-retry-count") for received in served.requests] == ["0", "1", "2"]


@WAYS
def test_errors_are_the_api_s_own(served, way):
    with (
        transport(served, way) as http,
        Anthropic(base_url=base(served, way), http_client=http, api_key="k", max_retries=0) as client,
    ):
        served.script(fail(429, "later", fields=(("retry-after", "7"),)))
        with pytest.raises(RateLimitError) as limited:
            client.messages.create(model="claude-x", max_tokens=9, messages=MESSAGES)
        assert limited.value.response.headers["retry-after"] == "7"
        served.script(fail(529, "busy"))
        with pytest.raises(InternalServerError) as busy:
            client.messages.create(model="claude-x", max_tokens=9, messages=MESSAGES)
        assert busy.value.status_code == 529


@WAYS
def test_counting_and_listing(served, way):
    with (
        transport(served, way) as http,
        Anthropic(base_url=base(served, way), http_client=http, api_key="k", max_retries=0) as client,
    ):
        assert client.messages.count_tokens(model="claude-x", messages=MESSAGES).input_tokens > 0
        client.models.list()
    assert [received.path for received in served.requests] == ["/v1/messages/count_tokens", "/v1/models"]


CHAT = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-x",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "żółw"}}],
}
CHUNK = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-x","choices":'
    b'[{"index":0,"delta":{"content":"%b"}}]}\n\n'
)


@WAYS
def test_the_openai_sdk(served, way):
    """Its endpoint beside the Messages API: not ours to understand, relayed all the same."""
    from dbproxy.testing.origin import Answer

    chunks = tuple(CHUNK.replace(b"%b", word.encode()) for word in ("ż", "ó", "łw"))

    def answer(received):
        if received.json.get("stream"):
            return Answer(events=(*chunks, b"data: [DONE]\n\n"), chunk_size=5)
        return document(CHAT)

    served.script(answer)
    with (
        transport(served, way, openai.DefaultHttpxClient) as http,
        openai.OpenAI(base_url=base(served, way, "/v1"), http_client=http, api_key="sk-x", max_retries=0) as client,
    ):
        whole = client.chat.completions.create(model="gpt-x", messages=MESSAGES)
        assert whole.choices[0].message.content == "żółw"
        with client.chat.completions.create(model="gpt-x", messages=MESSAGES, stream=True) as stream:
            assert "".join(piece.choices[0].delta.content for piece in stream) == "żółw"
    assert [received.path for received in served.requests] == ["/v1/chat/completions"] * 2
    assert served.requests[0].header("authorization") == "Bearer sk-x"
