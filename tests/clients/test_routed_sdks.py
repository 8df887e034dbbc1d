"""The official SDKs of both languages read what is made of every upstream stream, and agree with our own reading.

Every shape of seed-001 section 4.2 for each dialect: the regular ones of the conformance kit, and those that real
servers were seen to send. The bytes come from a real HTTP server; one Node process reads the whole table.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import oddstreams
import pytest
import trio

from dbproxy.model import shapes
from dbproxy.model.accumulate import Accumulator
from dbproxy.model.codecs.chat import CHAT
from dbproxy.model.codecs.gate import PING
from dbproxy.model.codecs.gemini import GEMINI
from dbproxy.model.codecs.native import NATIVE
from dbproxy.model.codecs.responses import RESPONSES
from dbproxy.testing.codecs import Bench, broken_of, shapes_of
from dbproxy.testing.origin import Answer, open_origin
from dbproxy.testing.providers import ChatDialect, GeminiDialect, MessagesDialect, ResponsesDialect
from dbproxy.wire.sse import SseSplitter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support" / "ts"))

import fetch

BENCHES = [
    Bench(CHAT, ChatDialect()),
    Bench(RESPONSES, ResponsesDialect()),
    Bench(GEMINI, GeminiDialect()),
    Bench(NATIVE, MessagesDialect()),
]
BY_NAME = {bench.dialect.name: bench for bench in BENCHES}
ASK = {"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


@dataclass(frozen=True)
class Row:
    """One stream: where it came from, and the bytes that the client gets."""

    name: str
    emitted: bytes

    @property
    def read(self) -> Accumulator:
        """Our own reading."""
        found = Accumulator()
        for event in SseSplitter().feed(self.emitted):
            found.feed(event.name, event.data)
        return found


def table() -> list[Row]:
    rows = []
    for bench in BENCHES:
        for shape in [*shapes_of(bench.dialect), *broken_of(bench.dialect)]:
            data = bench.spell(*shape.steps, stop=shape.stop, tokens=shape.tokens)
            rows.append(Row(f"{bench.dialect.name}: {shape.name}", bench.hear(data, pings=len(rows) % 2 == 0).raw))
    for odd in oddstreams.ALL:
        bench = BY_NAME[odd.dialect]
        can = replace(bench.dialect.capabilities, **odd.can)
        heard = bench.hear(odd.data, translation=bench.translation(capabilities=can))
        rows.append(Row(f"{odd.dialect}, seen: {odd.name}", heard.raw))
    # An answer that fails before anything was said has a status instead of a stream.
    return [row for row in rows if row.emitted.replace(PING, b"")]


TABLE = table()


def served(request: Any) -> Answer:
    """/N/v1/messages is row N, in pieces that fall anywhere."""
    return Answer(events=(TABLE[int(request.path.split("/")[1])].emitted,), chunk_size=97)


def told(message: dict[str, Any], without: set[int]) -> dict[str, Any]:
    """What must be the same everywhere. ``without`` are blocks whose input was cut: each reads it as far as it can."""
    keys = {"text": ("text",), "thinking": ("thinking", "signature"), "tool_use": ("id", "name", "input")}
    content = []
    for index, block in enumerate(message["content"]):
        kept = [key for key in keys.get(block["type"], block) if not (key == "input" and index in without)]
        content.append({"type": block["type"], **{key: block[key] for key in kept}})
    counts = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    usage = {name: message["usage"].get(name) for name in counts}
    return {
        **{key: message[key] for key in ("id", "model", "role", "stop_reason", "stop_sequence")},
        "content": content,
        "usage": usage,
    }


def ours(row: Row) -> tuple[dict[str, Any] | None, str]:
    """(the message, "") or (None, the type of the error) by our own reading."""
    found = row.read
    if found.error is not None:
        return None, found.error["type"]
    assert found.complete, row.name
    assert found.unknown == 0, row.name
    return told(found.message, set(found.unparsed_inputs)), ""


def compared(row: Row, message: dict[str, Any] | None, error: str) -> None:
    expected, kind = ours(row)
    if expected is None:
        assert (message, error) == (None, kind), row.name
    else:
        assert message is not None, f"{row.name}: {error}"
        assert told(message, set(row.read.unparsed_inputs)) == expected, row.name


def test_the_table_has_every_kind_of_answer():
    read = [row.read for row in TABLE]
    assert len(TABLE) > 160
    assert sum(found.error is not None for found in read) > 20
    assert sum(bool(found.unparsed_inputs) for found in read) >= 3
    assert {found.stop_reason for found in read} >= {"end_turn", "tool_use", "max_tokens", "refusal"}
    assert {block["type"] for found in read for block in found.message["content"]} == {"text", "thinking", "tool_use"}


def by_python(url: str, http: httpx2.Client) -> tuple[dict[str, Any] | None, str]:
    """(the message, "") or (None, the error's type) as the Python SDK reads the stream at ``url``."""
    client = anthropic.Anthropic(api_key="k", base_url=url, http_client=http, max_retries=0)
    try:
        with client.messages.stream(**ASK) as stream:
            texts = "".join(stream.text_stream)
            message = stream.get_final_message().model_dump(mode="json")
    except anthropic.APIStatusError as error:
        return None, shapes.mapping(shapes.mapping(error.body).get("error")).get("type", str(error))
    if texts != "".join(block["text"] for block in message["content"] if block["type"] == "text"):
        return None, "its pieces differ from the whole"
    return message, ""


async def test_the_python_sdk_reads_every_stream_as_we_do():
    def work(url: str) -> list[tuple[dict[str, Any] | None, str]]:
        with httpx2.Client(trust_env=False, timeout=10) as http:
            return [by_python(f"{url}/{number}", http) for number in range(len(TABLE))]

    async with open_origin(served) as origin:
        with trio.fail_after(100):
            results = await trio.to_thread.run_sync(work, origin.url)
    for row, result in zip(TABLE, results, strict=True):
        compared(row, *result)


async def test_the_typescript_sdk_reads_every_stream_as_we_do():
    node = fetch.clients.find_node()
    if node is None or not fetch.is_there():
        pytest.skip(f"{fetch.PACKAGE} {fetch.VERSION} is not fetched, or there is no Node: run `just clients`")
    script = Path(fetch.HERE) / "read.mjs"
    paths = [f"/{number}" for number in range(len(TABLE))]
    async with open_origin(served) as origin:
        command = [node, str(script), str(fetch.folder()), origin.url]
        with trio.fail_after(100):
            done = await trio.run_process(
                command, stdin=json.dumps(paths).encode(), capture_stdout=True, capture_stderr=True, check=False
            )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["path"] for result in results] == paths
    for row, result in zip(TABLE, results, strict=True):
        message, error = result.get("message"), result.get("error", {})
        compared(row, message, error.get("type") or error.get("message", ""))
        if message is not None:
            assert result["text"] == "".join(block["text"] for block in message["content"] if block["type"] == "text")
