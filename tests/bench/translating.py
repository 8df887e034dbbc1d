"""What a translation costs, measured in a process of its own.

    python translating.py stream|request|first FOLDER
    python translating.py serve PORT                     a server that gives every request the same answer of Chat

Prints one JSON object. ``stream``: CPU for one event of an answer, from the upstream's bytes to the client's.
``request``: CPU to put a body of 200 KB and of 2 MB into another dialect. ``first``: time from a request to the first
word of its answer, through the proxy and straight to the provider; client, proxy and provider share one event loop, so
it is an upper bound.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import trio  # noqa: E402
from blackbox import request  # noqa: E402
from foreignpeer import Provider, Router, chunk, peer  # noqa: E402
from rig import open_rig  # noqa: E402

from dbproxy.api import Fields, ProviderCall, SseSplitter  # noqa: E402
from dbproxy.api.codecs import Capabilities, MessageWriter, Translation  # noqa: E402
from dbproxy.api.codecs import read_request as read  # noqa: E402
from dbproxy.api.dialects import CHAT, GEMINI, RESPONSES  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

EVENTS, TIMES, FIRSTS = 20_000, 15, 300
WORD = "word and "


def translation() -> Translation:
    capabilities = Capabilities(context=1_000_000, output=64_000, efforts=("low", "medium", "high"))
    return Translation("claude-haiku-4-5", "gpt-5", "routed_bench", capabilities, family="openai", estimate=50_000)


def chat_events(count: int) -> list[bytes]:
    """A streamed answer as OpenAI spells it, one piece a flush."""
    start = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5"}

    def one(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + json.dumps({**start, "choices": [choice], "usage": None}).encode() + b"\n\n"

    usage = {"prompt_tokens": 50_000, "completion_tokens": count, "total_tokens": 50_000 + count}
    last = json.dumps({**start, "choices": [], "usage": usage}).encode()
    return [
        one({"role": "assistant", "content": ""}),
        *[one({"content": WORD}) for _ in range(count)],
        one({}, "stop"),
        b"data: " + last + b"\n\n",
        b"data: [DONE]\n\n",
    ]


def responses_events(count: int) -> list[bytes]:
    item = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    usage = {"input_tokens": 50_000, "output_tokens": count, "total_tokens": 50_000 + count}
    made: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
    ]
    delta = {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0}
    made += [{**delta, "delta": WORD, "logprobs": []} for _ in range(count)]
    made.append({"type": "response.completed", "response": {"id": "resp_1", "status": "completed", "usage": usage}})
    return [
        b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps({**one, "sequence_number": number}).encode())
        for number, one in enumerate(made)
    ]


def gemini_events(count: int) -> list[bytes]:
    usage = {"promptTokenCount": 50_000, "candidatesTokenCount": count, "totalTokenCount": 50_000 + count}

    def one(text: str, **more: str) -> bytes:
        candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **more}
        said = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini", "responseId": "r1"}
        return b"data: " + json.dumps(said).encode() + b"\r\n\r\n"

    return [*[one(WORD) for _ in range(count)], one("", finishReason="STOP")]


DIALECTS = {
    "chat": (CHAT, chat_events),
    "responses": (RESPONSES, responses_events),
    "gemini": (GEMINI, gemini_events),
}


def stream(folder: Path) -> dict[str, Any]:
    """Microseconds of CPU for one event."""
    found = {}
    for name, (codec, make) in DIALECTS.items():
        pieces = make(EVENTS)
        taken = []
        for _ in range(5):
            about = translation()
            writer, splitter = MessageWriter(about), SseSplitter()
            reader = codec.stream(about, writer)
            size = 0
            began = time.process_time()
            for piece in pieces:
                for event in splitter.feed(piece):
                    if not writer.done:
                        reader.feed(event.name, event.data)
                size += len(writer.take())
            reader.end()
            size += len(writer.take())
            taken.append((time.process_time() - began) / len(pieces) * 1e6)
            assert writer.failure is None, writer.failure
            assert writer.done
            assert size > EVENTS * len(WORD)
        found[name] = statistics.median(taken)
    return found


def body(size: int) -> bytes:
    """A request like Claude Code's: a long system prompt, tools, turns with calls and their results."""
    tools = [
        {
            "name": f"tool_{number}",
            "description": "what it does " * 100,
            "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        }
        for number in range(12)
    ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "do it"}]
    made = {
        "model": "claude-haiku-4-5",
        "max_tokens": 32_000,
        "stream": True,
        "system": [{"type": "text", "text": "instructions " * 1500}],
        "tools": tools,
        "thinking": {"type": "adaptive"},
        "messages": messages,
    }
    left = size - len(json.dumps(made))
    number = 0
    while left > 0:
        number += 1
        call = {
            "type": "tool_use",
            "id": f"toolu_{number:06}",
            "name": "tool_1",
            "input": {"path": f"/src/{number}.py"},
        }
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "a line of a file\n" * 200}
        turns = [
            {"role": "assistant", "content": [{"type": "text", "text": "now the next one " * 10}, call]},
            {"role": "user", "content": [result]},
        ]
        messages += turns
        left -= len(json.dumps(turns))
    return json.dumps(made).encode()


def requests(folder: Path) -> dict[str, Any]:
    """Milliseconds of CPU to read and to write one body."""
    found: dict[str, Any] = {}
    for label, size in (("200 KB", 200_000), ("2 MB", 2_000_000)):
        sent = body(size)
        found[label] = {"bytes": len(sent)}
        for name, (codec, _) in DIALECTS.items():
            taken = []
            for _ in range(TIMES):
                began = time.process_time()
                written = codec.write(read(sent), translation())
                taken.append((time.process_time() - began) * 1e3)
                assert len(written) > size / 2
            found[label][name] = statistics.median(taken)
    return found


class ChatProvider(Provider):
    """A server that speaks Chat."""

    def call(self, request: Any, translation: Any) -> ProviderCall:
        fields = Fields.of([(b"content-type", b"application/json")])
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return ProviderCall(CHAT.write(request, translation), url, fields, CHAT)


async def until(stream: Any, mark: bytes, end: bytes) -> float:
    """When the mark came; then everything up to the answer's end is read."""
    got = b""
    at = 0.0
    while not got.endswith(end):
        got += await stream.receive_some()
        if not at and mark in got:
            at = time.perf_counter()
    return at


def chat_answer() -> bytes:
    """A whole streamed answer of twenty words."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(map(chunk, chat_events(20))) + b"0\r\n\r\n"


async def serve(port: int) -> None:
    """Give every request that answer, until killed."""
    async with peer(chat_answer(), port=port):
        await trio.sleep_forever()


async def first(folder: Path) -> dict[str, Any]:
    """Milliseconds to the first word, through the proxy and without it, in turns."""
    answer = chat_answer()
    small = json.dumps(
        {"model": "claude-haiku-4-5", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    ).encode()
    async with peer(answer) as server:
        provider = ChatProvider(server.port)
        async with open_rig(folder, plugins=(("router", Router(provider)),), plugins_disabled="subagent-routing") as r:
            ours = await r.tls()
            direct = await trio.open_tcp_stream("127.0.0.1", server.port)
            through, straight = [], []
            translated = CHAT.write(read(small), translation())
            for _ in range(FIRSTS):
                began = time.perf_counter()
                await ours.send_all(request(body=small))
                through.append((await until(ours, b'"text":"word', b"0\r\n\r\n") - began) * 1e3)
                began = time.perf_counter()
                await direct.send_all(request("/v1/chat/completions", body=translated))
                straight.append((await until(direct, b"word and", b"0\r\n\r\n") - began) * 1e3)
            await direct.aclose()
    return {"through": statistics.median(through), "direct": statistics.median(straight)}


WHAT: dict[str, Callable[[Path], Any]] = {
    "stream": stream,
    "request": requests,
    "first": lambda folder: trio.run(first, folder),
}

if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve, int(sys.argv[2]))
    print(json.dumps(WHAT[sys.argv[1]](Path(sys.argv[2]))))
