"""Conversations in the words of the Responses API and back, and whatever else may come in either direction."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from asking import ask, assistant, tool_result, tool_use, user
from hypothesis import given, settings
from hypothesis import strategies as st
from responsestalk import GPT, Heard, Talk, a_translation, check_request, items

from dbproxy.model.codecs.naming import ToolNames, client_id
from dbproxy.model.codecs.request import Unroutable, read_request
from dbproxy.model.codecs.responses import RESPONSES
from dbproxy.model.codecs.writer import MessageWriter

WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda text: not text.startswith(("Error: ", "x-anthropic-billing-header:"))
)
IDS = st.one_of(
    st.from_regex(r"(toolu|call)_[A-Za-z0-9_-]{4,20}", fullmatch=True),
    st.from_regex(r"call[:/.]{1,3}[a-z]{3,8}", fullmatch=True).map(client_id),
)
NAMES = st.one_of(
    st.from_regex(r"[A-Za-z_]{1,20}", fullmatch=True),
    st.from_regex(r"mcp__[a-z]{30}__[a-z.]{40,60}", fullmatch=True),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Whole exchanges: a text of the user, then texts, calls and their results."""
    found: list[dict[str, Any]] = []
    ids = iter(draw(st.lists(IDS, unique=True, min_size=12, max_size=12)))
    for _ in range(draw(st.integers(1, 3))):
        found.append(user(*draw(st.lists(WORDS, min_size=1, max_size=2))))
        texts = draw(st.lists(WORDS, max_size=2))
        calls = [
            tool_use(next(ids), draw(NAMES)) | {"input": draw(st.dictionaries(WORDS, VALUES, max_size=3))}
            for _ in range(draw(st.integers(0 if texts else 1, 4)))
        ]
        found.append(assistant(*texts, *calls))
        if calls:
            found.append(user(*(tool_result(call["id"], draw(WORDS), is_error=draw(st.booleans())) for call in calls)))
    return found


def told(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What was said, by whom, in its order."""
    found: list[tuple[Any, ...]] = []
    for message in messages:
        for block in message["content"]:
            if block["type"] == "text":
                found.append((message["role"], block["text"]))
            elif block["type"] == "tool_use":
                found.append(("call", block["id"], block["name"], json.dumps(block["input"], sort_keys=True)))
            else:
                found.append(("result", block["tool_use_id"], block["content"], block["is_error"]))
    return found


def told_back(body: dict[str, Any], names: ToolNames) -> list[tuple[Any, ...]]:
    """The same, read out of a written request as its server reads it."""
    found: list[tuple[Any, ...]] = []
    for item in body["input"]:
        if item["type"] == "message":
            parts = item["content"] if isinstance(item["content"], list) else [{"text": item["content"]}]
            found.extend((item["role"], part["text"]) for part in parts)
        elif item["type"] == "function_call":
            arguments = json.dumps(json.loads(item["arguments"]), sort_keys=True)
            found.append(("call", client_id(item["call_id"]), names.back(item["name"]), arguments))
        else:
            output, marked = item["output"], item["output"].startswith("Error: ")
            found.append(("result", client_id(item["call_id"]), output.removeprefix("Error: "), marked))
    return found


@settings(max_examples=100, deadline=None)
@given(conversations())
def test_case_94_responses_a_conversation_comes_back_as_it_was(messages: list[dict[str, Any]]) -> None:
    translation = a_translation()
    body = json.loads(RESPONSES.write(read_request(json.dumps(ask(*messages)).encode()), translation))
    check_request(body)
    assert all(len(item.get("name", "")) <= 64 for item in items(body))
    assert told_back(body, translation.names) == told(messages)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "system",
                "tools",
                "tool_choice",
                "thinking",
                "output_config",
                "stop_sequences",
                "max_tokens",
                "temperature",
                "metadata",
            ]
        ),
        JSON,
    ),
    st.lists(JSON, max_size=4),
)
def test_any_body_is_written_or_unroutable(fields: dict[str, Any], blocks: list[Any]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": blocks}, user("x")], **fields}
    try:
        request = read_request(json.dumps(body).encode())
        written = RESPONSES.write(request, a_translation())
    except Unroutable:
        return
    assert isinstance(json.loads(written), dict)


# ---- answers of any kind

TYPES = st.sampled_from(
    [
        *sorted(
            {
                event["type"]
                for talk in (
                    Talk().reasoning("a").message("b").call("Read", "{}").search("q", "u"),
                    Talk().message("r", kind="refusal"),
                )
                for event in talk.end()
            }
        ),
        "response.reasoning_text.delta",
        "response.output_text.annotation.added",
        "response.incomplete",
        "response.failed",
        "error",
        "",
    ]
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["output_text", "refusal", "summary_text", "reasoning_text", "x"])},
    optional={"text": WORDS, "refusal": WORDS, "annotations": st.lists(JSON, max_size=2)},
)
ITEMS = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "reasoning", "function_call", "web_search_call", "x"])},
    optional={
        "id": st.sampled_from(["a", "b", ""]),
        "call_id": st.sampled_from(["c", "d", ""]),
        "name": st.sampled_from(["Read", "R", ""]),
        "arguments": st.sampled_from(["", " ", "{", "{}", '{"a":1}', "[]", "null", '{"a":']),
        "content": st.lists(PARTS, max_size=2),
        "summary": st.lists(PARTS, max_size=2),
        "encrypted_content": st.sampled_from(["", "gAAAA"]),
        "status": st.sampled_from(["completed", "incomplete", "failed"]),
        "action": JSON,
        "phase": st.sampled_from(["commentary", None]),
    },
)
SMALL = st.sampled_from([0, 0, 1, 2, -1, None, "0"])
EVENTS = st.fixed_dictionaries(
    {"type": TYPES},
    optional={
        "output_index": SMALL,
        "content_index": SMALL,
        "summary_index": SMALL,
        "annotation_index": SMALL,
        "sequence_number": SMALL,
        "item_id": st.sampled_from(["a", "b", "", None, 5]),
        "delta": st.one_of(WORDS, st.sampled_from(["{", "}", '"a":1', "\ud83d", None, {}])),
        "text": WORDS,
        "refusal": WORDS,
        "arguments": st.sampled_from(["", "{}", '{"a":1}', "{", "[1]"]),
        "item": st.one_of(ITEMS, JSON),
        "part": st.one_of(PARTS, JSON),
        "annotation": JSON,
        "error": JSON,
        "response": st.one_of(
            JSON,
            st.fixed_dictionaries(
                {},
                optional={
                    "id": st.one_of(WORDS, st.none()),
                    "status": st.sampled_from(["completed", "incomplete", "failed", "cancelled", "x"]),
                    "output": st.one_of(st.lists(ITEMS, max_size=3), JSON),
                    "usage": JSON,
                    "error": JSON,
                    "incomplete_details": JSON,
                },
            ),
        ),
    },
)


def fed(data: list[tuple[bytes, bytes]], **fields: Any) -> Heard:
    """What becomes of events: a message by the strict reading or one error. Nothing may be raised."""
    translation = a_translation(**fields)
    writer = MessageWriter(translation)
    reader = RESPONSES.stream(translation, writer)
    for name, item in data:
        reader.feed(name, item)
    reader.end()
    assert writer.done
    return Heard(writer.take(), writer)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=12), st.booleans(), st.booleans())
def test_any_events_are_an_answer_or_one_error(events: list[Any], single: bool, reliable: bool) -> None:
    capabilities = replace(GPT, reliable_json=reliable)
    fed([(b"", json.dumps(event).encode()) for event in events], single=single, capabilities=capabilities)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.just(b""), TYPES.map(str.encode), st.binary(max_size=5)),
            st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())),
        ),
        max_size=6,
    )
)
def test_any_bytes_are_an_answer_or_one_error(data: list[tuple[bytes, bytes]]) -> None:
    fed(data)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.fixed_dictionaries(
            {"output": st.lists(ITEMS, max_size=4)},
            optional={"status": st.sampled_from(["completed", "incomplete", "failed", "x", None]), "usage": JSON},
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_document_is_an_answer_or_one_error(body: bytes) -> None:
    translation = a_translation()
    writer = MessageWriter(translation)
    RESPONSES.document(body, translation, writer)
    assert writer.done
    Heard(writer.take(), writer)


@pytest.mark.parametrize("depth", [200, 20_000])
def test_values_that_nest_beyond_reason_do_no_harm(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    for event in (
        deep,
        b'{"type":"response.output_item.done","item":%b}' % deep,
        b'{"type":"response.completed","response":{"output":%b,"usage":%b}}' % (deep, deep),
    ):
        fed([(b"", event)])
