"""Our codecs and the fake servers talk an agent's whole run through: calls, results, signatures, the report."""

from __future__ import annotations

import json

import httpx2
import pytest
import trio

from dbproxy.model.codecs.capabilities import capabilities
from dbproxy.model.codecs.chat import CHAT
from dbproxy.model.codecs.gemini import GEMINI
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.request import read_request
from dbproxy.model.codecs.responses import RESPONSES
from dbproxy.model.codecs.translation import Translation
from dbproxy.model.codecs.vault import Vault
from dbproxy.model.codecs.writer import MessageWriter
from dbproxy.testing.codecs import verdict
from dbproxy.testing.providers import GEMINI_KEY, MARKER, OPENAI_KEY, open_gemini, open_openai
from dbproxy.wire.sse import SseSplitter

LONG = "mcp__a_server_with_a_very_long_name__a_tool_whose_name_is_longer_still_x1"
SCHEMA = {"type": "object", "properties": {"file_path": {"type": "string"}}, "required": ["file_path"]}
TOOLS = [{"name": name, "description": "d", "input_schema": SCHEMA} for name in ("Read", LONG)]
ASK = {
    "max_tokens": 32_000,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1;"},
        {"type": "text", "text": "Review."},
    ],
    "tools": TOOLS,
    "thinking": {"type": "adaptive"},
    "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "SECRET", "session_id": "s"})},
}
WAYS = [
    ("openai", "chat", CHAT, "gpt-4o", "/v1/chat/completions"),
    ("openai", "chat", CHAT, "gpt-5", "/v1/chat/completions"),
    ("openai", "responses", RESPONSES, "gpt-5.5", "/v1/responses"),
    ("openai", "responses", RESPONSES, "gpt-4o", "/v1/responses"),
    ("gemini", "gemini", GEMINI, "gemini-3.8-flash", "/v1beta/models/gemini-3.8-flash"),
    ("gemini", "gemini", GEMINI, "gemini-2.5-flash", "/v1beta/models/gemini-2.5-flash"),
]


async def ask(origin, way, body, vault):
    """One request of the client, put into the other's words; the message that came of it."""
    family, api, codec, model, path = way
    can = capabilities(family, model)
    translation = Translation("claude-x", model, "m1", capabilities=can, family=family, names=ToolNames(), vault=vault)
    request = read_request(json.dumps(body).encode())
    fields = {"content-type": "application/json", "authorization": f"Bearer {OPENAI_KEY}", "x-goog-api-key": GEMINI_KEY}
    if api == "gemini":
        path += ":streamGenerateContent?alt=sse" if request.stream else ":generateContent"
    content = codec.write(request, translation)

    def run():
        with httpx2.Client(base_url=origin.url, trust_env=False) as client:
            return client.post(path, content=content, headers=fields)

    with trio.fail_after(20):
        answer = await trio.to_thread.run_sync(run)
    assert answer.status_code == 200, answer.text
    writer = MessageWriter(translation)
    if request.stream:
        reader = codec.stream(translation, writer)
        for event in SseSplitter().feed(answer.content):
            reader.feed(event.name, event.data)
        reader.end()
    else:
        codec.document(answer.content, translation, writer)
    message, error = verdict(writer.take())
    assert error is None
    return message


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("way", WAYS, ids=[f"{api} {model}" for _, api, _, model, _ in WAYS])
async def test_an_agent_runs_to_its_report(way, stream):
    options = {"calls": 3, "rounds": 2, "file": "ä.md", "think": "Hm, let me see."}
    opened = open_openai if way[0] == "openai" else open_gemini
    async with opened({"scenario": "agent", "options": options}) as origin:
        messages = [{"role": "user", "content": "Review it. SUBPROMPT"}]
        vault, rounds = Vault(), 0
        while True:
            body = {**ASK, "model": "claude-x", "stream": stream, "messages": messages}
            message = await ask(origin, way, body, vault)
            calls = [block for block in message["content"] if block["type"] == "tool_use"]
            if not calls:
                break
            rounds += 1
            assert message["stop_reason"] == "tool_use"
            assert [call["name"] for call in calls] == ["Read", LONG, "Read"]
            assert calls[0]["input"] == {"file_path": "ä.md"}
            results = [
                {"type": "tool_result", "tool_use_id": call["id"], "content": f"R{rounds}{n}", "is_error": n == 1}
                for n, call in enumerate(calls)
            ]
            messages += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": results}]
        assert rounds == 2
        report = message["content"][-1]["text"]
        lines = [line.removeprefix("- ") for line in report.splitlines()]
        assert lines[0] == f"{MARKER}: 6 results."
        assert [line.split()[-1] for line in lines[1:]] == ["R10", "R11", "R12", "R20", "R21", "R22"]
        assert [line.startswith("failed: ") for line in lines[1:]] == [False, True, False] * 2
        assert message["stop_reason"] == "end_turn"
        assert origin.api.refused == []
        for request in origin.requests:
            assert b"SECRET" not in request.body
            assert b"billing" not in request.body


@pytest.mark.parametrize("way", [WAYS[2], WAYS[4]], ids=["responses", "gemini"])
async def test_what_was_thought_is_brought_back_to_who_thought_it(way):
    """Through the client's own history (its thinking blocks), and through the vault where the client lost them."""
    opened = open_openai if way[0] == "openai" else open_gemini
    async with opened({"scenario": "agent", "options": {"think": "Hm."}}) as origin:
        vault = Vault()
        body = {**ASK, "model": "claude-x", "stream": True, "messages": [{"role": "user", "content": "go"}]}
        message = await ask(origin, way, body, vault)
        calls = [block for block in message["content"] if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "R"} for call in calls]
        kept = [block for block in message["content"] if block["type"] != "thinking"]
        for content in (message["content"], kept):
            later = [{"role": "assistant", "content": content}, {"role": "user", "content": results}]
            await ask(origin, way, {**body, "messages": body["messages"] + later}, vault)
        sent = [request.body for request in origin.requests[1:]]
        mark = b"gAAAAsealed" if way[0] == "openai" else b'"thoughtSignature":"ZmFrZSBnZW1pbmk6'
        assert all(mark in body.replace(b'": "', b'":"') for body in sent)
