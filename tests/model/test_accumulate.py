"""The accumulator against the official SDK's reading of the same bytes, against what the stream was made from, and
against everything a newer or broken server may send."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import anthropic
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.model.accumulate import Accumulator
from dbproxy.model.usage import Usage

Event = dict[str, Any]

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
NAMES = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=4)
TOKENS = st.integers(1, 10**7)
WHOLE_BLOCKS = st.one_of(
    st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": TEXT}),
    st.fixed_dictionaries({"type": st.just("compaction"), "content": TEXT, "signature": TEXT}),
    st.fixed_dictionaries({"type": st.just("container_upload"), "file_id": TEXT}),
    st.fixed_dictionaries(
        {
            "type": st.just("web_search_tool_result"),
            "tool_use_id": NAMES,
            "content": st.just([{"type": "web_search_result", "title": "t", "url": "u", "encrypted_content": "e"}]),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("bash_code_execution_tool_result"),
            "tool_use_id": NAMES,
            "content": st.just(
                {
                    "type": "bash_code_execution_result",
                    "stdout": "o",
                    "stderr": "",
                    "return_code": 0,
                    "content": [],
                }
            ),
        }
    ),
)
CITATION = {"type": "char_location", "cited_text": "c", "document_index": 0, "start_char_index": 0, "end_char_index": 1}


def event(kind: str, **keys: Any) -> Event:
    return {"type": kind, **keys}


def delta(index: int, kind: str, **keys: Any) -> Event:
    return event("content_block_delta", index=index, delta={"type": kind, **keys})


def pieces(draw: st.DrawFn, text: str) -> list[str]:
    marks = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=4))})
    return [text[a:b] for a, b in pairwise(marks)]


def block(draw: st.DrawFn, index: int) -> tuple[dict[str, Any], list[Event]]:
    """One block as the final message shows it, and the events that carry it."""
    kind = draw(
        st.sampled_from(["text", "thinking", "tool_use", "server_tool_use", "mcp_tool_use", "compacted", "whole"])
    )
    if kind == "text":
        text, cited = draw(TEXT), draw(st.booleans())
        start = {"type": "text", "text": ""}
        deltas = [delta(index, "text_delta", text=piece) for piece in pieces(draw, text)]
        final = {"type": "text", "text": text}
        if cited:
            deltas.append(delta(index, "citations_delta", citation=CITATION))
            final["citations"] = [CITATION]
    elif kind == "thinking":
        text, signature = draw(TEXT), draw(TEXT)
        start = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [delta(index, "thinking_delta", thinking=piece) for piece in pieces(draw, text)]
        deltas.append(delta(index, "signature_delta", signature=signature))
        final = {"type": "thinking", "thinking": text, "signature": signature}
    elif kind == "compacted":
        text = draw(TEXT)
        start = {"type": "compaction", "content": None, "encrypted_content": None}
        deltas = [delta(index, "compaction_delta", content=text, encrypted_content="e")]
        final = {"type": "compaction", "content": text, "encrypted_content": "e"}
    elif kind == "whole":
        start = final = draw(WHOLE_BLOCKS)
        deltas = []
    else:
        value = draw(OBJECTS)
        start = {"type": kind, "id": "toolu_1", "name": "Bash", "input": {}}
        if kind == "server_tool_use":
            start["name"] = "web_search"
        if kind == "mcp_tool_use":
            start["server_name"] = "s"
        spelled = json.dumps(value, ensure_ascii=draw(st.booleans()))
        deltas = [delta(index, "input_json_delta", partial_json=piece) for piece in ["", *pieces(draw, spelled)]]
        final = {**start, "input": value}
    return final, [
        event("content_block_start", index=index, content_block=start),
        *deltas,
        event("content_block_stop", index=index),
    ]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[dict[str, Any], list[Event]]:
    """A final message and the events of its stream, in an order that the API may use."""
    usage = {"input_tokens": draw(TOKENS), "cache_read_input_tokens": draw(TOKENS), "output_tokens": 1}
    start = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-5-5",
        "content": [],
        "usage": usage,
    }
    events = [event("message_start", message={**start, "stop_reason": None})]
    content = []
    for index in range(draw(st.integers(0, 5))):
        final, carried = block(draw, index)
        content.append(final)
        events += carried
    reported: dict[str, Any] = {"output_tokens": draw(TOKENS)}
    if draw(st.booleans()):
        reported |= {
            "input_tokens": draw(TOKENS),
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
            "iterations": [{"type": "message", "input_tokens": 3, "output_tokens": 4}],
        }
    stop = draw(st.sampled_from(["end_turn", "tool_use", "max_tokens", "compaction", "pause_turn", "refusal"]))
    events.append(event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage=reported))
    events.append(event("message_stop"))
    for _ in range(draw(st.integers(0, 3))):
        events.insert(draw(st.integers(0, len(events) - 1)), event("ping"))
    return {**start, "content": content, "stop_reason": stop, "usage": {**usage, **reported}}, events


def accumulated(events: list[Event]) -> Accumulator:
    accumulator = Accumulator()
    for one in events:
        accumulator.feed(one["type"].encode(), json.dumps(one).encode())
    return accumulator


def bare(value: Any) -> Any:
    """Without nulls, which the SDK adds for what the API left out."""
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if item is not None}
    return [bare(item) for item in value] if isinstance(value, list) else value


def official(events: list[Event]) -> dict[str, Any]:
    """The message that the official SDK makes of the stream."""
    body = b"".join(b"event: %s\ndata: %s\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in events)
    answer = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    transport = httpx2.MockTransport(lambda request: answer)
    with (
        anthropic.Anthropic(
            api_key="k", base_url="http://127.0.0.1:9", http_client=httpx2.Client(transport=transport)
        ) as client,
        client.beta.messages.stream(model="m", max_tokens=5, messages=[{"role": "user", "content": "x"}]) as stream,
    ):
        return stream.get_final_message().to_dict()


@settings(max_examples=60, deadline=None)
@given(conversations())
def test_streams_spell_the_message_they_were_made_from(made: tuple[dict[str, Any], list[Event]]) -> None:
    final, events = made
    accumulator = accumulated(events)
    assert accumulator.complete
    assert accumulator.unknown == 0
    assert accumulator.error is None
    assert accumulator.unparsed_inputs == {}
    assert bare(accumulator.message) == bare(final)
    assert (accumulator.model, accumulator.stop_reason) == (final["model"], final["stop_reason"])
    assert accumulator.usage == Usage.of(final["usage"]) == Accumulator.from_message(final).usage


@settings(max_examples=30, deadline=None)
@given(conversations())
def test_the_official_sdk_reads_the_same_message(made: tuple[dict[str, Any], list[Event]]) -> None:
    _, events = made
    assert bare(accumulated(events).message) == bare(official(events))


@settings(max_examples=60, deadline=None)
@given(conversations(), st.data())
def test_a_stream_that_breaks_off_is_not_complete(
    made: tuple[dict[str, Any], list[Event]], data: st.DataObject
) -> None:
    _, events = made
    stop = next(i for i, one in enumerate(events) if one["type"] == "message_stop")
    accumulator = accumulated(events[: data.draw(st.integers(0, stop))])
    assert not accumulator.complete
    json.dumps(accumulator.message)


START = event(
    "message_start",
    message={"id": "msg_1", "type": "message", "model": "m", "content": [], "usage": {"input_tokens": 9}},
)
TEXT_START = event("content_block_start", index=0, content_block={"type": "text", "text": ""})


def test_usage_of_the_delta_wins_only_above_zero() -> None:
    start = event(
        "message_start",
        message={
            "usage": {
                "input_tokens": 10,
                "cache_read_input_tokens": 500,
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens": 1,
                "service_tier": "standard",
            }
        },
    )
    end = event(
        "message_delta", delta={}, usage={"input_tokens": 0, "cache_read_input_tokens": None, "output_tokens": 77}
    )
    usage = accumulated([start, end]).usage
    assert (usage.input_tokens, usage.cache_read, usage.output_tokens) == (10, 500, 77)
    assert (usage.cache_write_5m, usage.cache_write_1h, usage.service_tier) == (10, 20, "standard")
    higher = event("message_delta", delta={}, usage={"input_tokens": 990_000})
    assert accumulated([start, end, higher]).usage.input_tokens == 990_000


def test_iterations_are_kept_and_billed() -> None:
    iterations = [
        {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500},
        {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000},
    ]
    accumulator = accumulated(
        [START, event("message_delta", delta={}, usage={"output_tokens": 1_000, "iterations": iterations})]
    )
    assert [part.kind for part in accumulator.usage.billed()] == ["compaction", "message"]
    assert accumulator.message["usage"]["iterations"] == iterations
    assert accumulator.usage.context_tokens == 9 + 1_000


@pytest.mark.parametrize("before", [[], [START], [START, TEXT_START, delta(0, "text_delta", text="part")]])
def test_error_events_are_kept_and_never_complete(before: list[Event]) -> None:
    accumulator = accumulated([*before, event("error", error={"type": "overloaded_error", "message": "Overloaded"})])
    assert accumulator.error == {"type": "overloaded_error", "message": "Overloaded"}
    assert not accumulator.complete


def test_the_data_tells_the_type_and_the_name_stands_in() -> None:
    accumulator = Accumulator()
    for one in (START, TEXT_START, delta(0, "text_delta", text="a")):
        accumulator.feed(b"", json.dumps(one).encode())
    accumulator.feed(b"content_block_delta", b'{"index":0,"delta":{"type":"text_delta","text":"b"}}')
    accumulator.feed(b"content_block_delta", json.dumps(event("message_stop")).encode())
    accumulator.feed(b"", b"")
    assert accumulator.message["content"] == [{"type": "text", "text": "ab"}]
    assert accumulator.complete
    assert accumulator.unknown == 0


def test_a_second_start_does_not_erase_the_message() -> None:
    accumulator = accumulated([START, TEXT_START, delta(0, "text_delta", text="kept"), START])
    assert accumulator.message["content"][0]["text"] == "kept"
    assert accumulator.unknown == 1


def test_a_stop_without_a_start_completes_nothing() -> None:
    assert not accumulated([event("message_stop")]).complete


def test_blocks_stand_in_the_order_of_their_index() -> None:
    second = event("content_block_start", index=1, content_block={"type": "text", "text": "b"})
    first = event("content_block_start", index=0, content_block={"type": "text", "text": "a"})
    content = accumulated([START, second, first]).message["content"]
    assert [block["text"] for block in content] == ["a", "b"]


def test_a_fallback_block_names_the_model_that_answered() -> None:
    fallback = {"type": "fallback", "from": {"model": "m"}, "to": {"model": "claude-opus-5"}}
    accumulator = accumulated([START, event("content_block_start", index=0, content_block=fallback)])
    assert accumulator.model == "claude-opus-5"


def test_keys_beside_the_delta_reach_the_message() -> None:
    end = event(
        "message_delta",
        delta={"stop_reason": "end_turn", "container": None, "new_key": 1},
        usage={},
        context_management={"applied_edits": []},
        newer={"a": 1},
    )
    message = accumulated([START, end, event("message_delta", delta={"stop_reason": None}, usage={})]).message
    assert message["stop_reason"] == "end_turn"
    assert message["context_management"] == {"applied_edits": []}
    assert (message["newer"], message["new_key"]) == ({"a": 1}, 1)


@pytest.mark.parametrize("spelled", ['{"command": "ls', '["list"]', "{} {}", "nothing"])
def test_tool_input_that_is_no_object_is_kept_as_text(spelled: str) -> None:
    start = event(
        "content_block_start", index=2, content_block={"type": "tool_use", "id": "t", "name": "n", "input": {}}
    )
    accumulator = accumulated([START, start, delta(2, "input_json_delta", partial_json=spelled)])
    assert accumulator.message["content"][0]["input"] == {}
    assert accumulator.unparsed_inputs == {2: spelled}


def test_surrogate_halves_in_two_events_become_their_character() -> None:
    accumulator = accumulated([START, TEXT_START])
    for half in (rb"a\ud83d", rb"\ude00b", rb"\udc00"):
        accumulator.feed(
            b"content_block_delta",
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"}}' % half,
        )
    assert accumulator.message["content"][0]["text"] == "a😀b\ufffd"
    assert accumulator.unknown == 0


UNKNOWN = [
    event("brand_new_event", index=0),
    delta(0, "brand_new_delta", text="x"),
    delta(7, "text_delta", text="no such block"),
    delta(0, "text_delta", text=5),
    event("content_block_delta", index="0", delta={"type": "text_delta", "text": "x"}),
    event("content_block_delta", index=0, delta={"type": ["text_delta"]}),
    event("content_block_delta", index=0, delta="text"),
    event("content_block_delta"),
    event("content_block_start", index=None, content_block={}),
    event("content_block_start", index=1, content_block=[]),
]


@pytest.mark.parametrize("odd", UNKNOWN)
def test_what_is_not_understood_is_counted_and_passed_over(odd: Event) -> None:
    accumulator = accumulated(
        [START, TEXT_START, delta(0, "text_delta", text="a"), odd, delta(0, "text_delta", text="b")]
    )
    assert accumulator.unknown == 1
    assert accumulator.message["content"] == [{"type": "text", "text": "ab"}]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"\xff",
        b'{"type":5}',
        b"[" * 100_000,
        b'{"a":NaN}',
        b'{"type":"\\ud800"}',
    ],
)
@pytest.mark.parametrize("name", [b"content_block_delta", b"message_delta", b"message_start", b"brand_new", b"\xff"])
def test_broken_data_never_raises(name: bytes, data: bytes) -> None:
    accumulator = accumulated([START, TEXT_START])
    accumulator.feed(name, data)
    json.dumps(accumulator.message).encode()
    assert not accumulator.complete
    assert accumulator.usage.input_tokens == 9


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.dictionaries(
                st.sampled_from(["index", "delta", "usage", "message", "content_block", "error"]), JSON, max_size=5
            ),
            st.sampled_from([START, TEXT_START, *UNKNOWN]),
        ),
        max_size=8,
    ),
    st.lists(
        st.sampled_from(
            ["message_start", "content_block_start", "content_block_delta", "message_delta", "message_stop", "error"]
        )
    ),
)
def test_any_shape_under_any_name_never_raises(bodies: list[dict[str, Any]], names: list[str]) -> None:
    accumulator = Accumulator()
    for name, body in zip(names, bodies, strict=False):
        accumulator.feed(name.encode(), json.dumps({"type": name, **body}).encode())
    json.dumps([accumulator.message, accumulator.error, accumulator.unparsed_inputs]).encode()
    assert isinstance(accumulator.usage, Usage)
    assert accumulator.stop_reason is None or isinstance(accumulator.stop_reason, str)
    assert accumulator.model is None or isinstance(accumulator.model, str)


def test_answers_that_came_whole() -> None:
    message = {
        "type": "message",
        "model": "m",
        "content": [{"type": "text", "text": "hi"}],
        "usage": {"input_tokens": 4},
    }
    accumulator = Accumulator.from_body(json.dumps(message).encode())
    assert accumulator.complete
    assert accumulator.message == message
    assert accumulator.usage.input_tokens == 4
    failed = Accumulator.from_body(
        b'{"type":"error","error":{"type":"rate_limit_error","message":"slow"},"request_id":"req_1"}'
    )
    assert failed.error == {"type": "rate_limit_error", "message": "slow"}
    assert not failed.complete
    counted = Accumulator.from_body(b'{"input_tokens": 12}')
    assert not counted.complete
    for body in (b"", b"<html>", b"[]", b"null"):
        assert Accumulator.from_body(body).message == {}
        assert not Accumulator.from_body(body).complete
