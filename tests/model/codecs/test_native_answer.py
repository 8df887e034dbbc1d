"""Answers in Messages from servers that are careless about it: a grammatical stream or one error comes out."""

from __future__ import annotations

import json

import pytest
from asking import assistant, tool_result, user
from foreigntalk import JSON, READ, ask, for_claude, for_others, from_native, hear, to_native, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.model.codecs.capabilities import Capabilities
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.native import NATIVE
from dbproxy.model.codecs.writer import MessageWriter

STOP = {"type": "message_stop"}
COUNTS = {"input_tokens": 100, "output_tokens": 7, "cache_read_input_tokens": 900, "cache_creation_input_tokens": 50}


def start(**usage: int) -> dict:
    message = {"id": "msg_01up", "type": "message", "role": "assistant", "model": "qwen3", "content": []}
    return {
        "type": "message_start",
        "message": {**message, "stop_reason": None, "usage": {"input_tokens": 10, **usage}},
    }


def begin(index: int, kind: str = "text", **keys: object) -> dict:
    empty: dict[str, dict] = {"text": {"text": ""}, "thinking": {"thinking": ""}, "tool_use": {"input": {}}}
    return {
        "type": "content_block_start",
        "index": index,
        "content_block": {"type": kind, **empty.get(kind, {}), **keys},
    }


def delta(index: int, kind: str, **keys: object) -> dict:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **keys}}


def say(index: int, text: str) -> dict:
    return delta(index, "text_delta", text=text)


def args(index: int, piece: str) -> dict:
    return delta(index, "input_json_delta", partial_json=piece)


def over(index: int) -> dict:
    return {"type": "content_block_stop", "index": index}


def last(reason: str | None = "end_turn", **keys: object) -> dict:
    return {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": COUNTS, **keys}


def blocks(heard) -> list[tuple]:
    inner = {"text": "text", "thinking": "thinking", "tool_use": "input", "server_tool_use": "input"}
    return [(block["type"], block[inner.get(block["type"], "content")]) for block in heard.content]


# ---- streams in order


def test_case_43_native_a_stream_of_text_with_our_id_and_the_clients_model():
    heard = from_native(start(), begin(0), say(0, "Good "), {"type": "ping"}, say(0, "day"), over(0), last(), STOP)
    assert blocks(heard) == [("text", "Good day")]
    assert (heard.message["model"], heard.message["stop_reason"]) == ("claude-sonnet-5-5", "end_turn")
    assert heard.message["id"] == "routed_msg_01up"


def test_case_84_native_documents_too_have_our_id_and_the_clients_model():
    value = {"id": "msg_01up", "type": "message", "model": "qwen3", "content": [{"type": "text", "text": "x"}]}
    heard = whole(NATIVE, {**value, "stop_reason": "end_turn", "usage": COUNTS}, for_others())
    assert (heard.message["model"], heard.message["id"]) == ("claude-sonnet-5-5", "routed_msg_01up")


def test_case_46_native_text_calls_and_text_again():
    heard = from_native(
        start(),
        begin(0),
        say(0, "a"),
        over(0),
        begin(1, "tool_use", id="t1", name="Read"),
        args(1, ""),
        args(1, '{"path"'),
        args(1, ':"x"}'),
        over(1),
        begin(2),
        say(2, "b"),
        over(2),
        last("tool_use"),
        STOP,
    )
    assert blocks(heard) == [("text", "a"), ("tool_use", {"path": "x"}), ("text", "b")]
    assert heard.message["stop_reason"] == "tool_use"


def test_blocks_of_one_kind_stay_apart():
    heard = from_native(start(), begin(0), say(0, "a"), over(0), begin(1), say(1, "b"), over(1), last(), STOP)
    assert blocks(heard) == [("text", "a"), ("text", "b")]


def test_text_that_might_begin_a_stop_sequence_stays_in_its_block():
    translation = for_others(stops=("END",))
    heard = from_native(
        start(),
        begin(0),
        say(0, "see EN"),
        over(0),
        begin(1),
        say(1, "D"),
        over(1),
        last(),
        STOP,
        translation=translation,
    )
    assert blocks(heard) == [("text", "see EN"), ("text", "D")]


def test_the_clients_names_and_one_call_at_a_time():
    long = "mcp__a_server_with_a_very_long_name__a_tool_whose_name_is_longer_still_x1"
    translation = for_others(names=ToolNames([long]), single=True)
    short = translation.names.out(long)
    calls = [begin(at, "tool_use", id=f"t{at}", name=short, input={"n": at}) for at in (0, 1)]
    heard = from_native(start(), *calls, last("tool_use"), STOP, translation=translation)
    assert [(block["name"], block["input"]) for block in heard.content] == [(long, {"n": 0})]


def test_case_48_native_blocks_that_are_open_side_by_side_come_one_after_the_other():
    heard = from_native(
        start(),
        begin(0, "tool_use", id="a", name="Read"),
        begin(1, "tool_use", id="b", name="Read"),
        args(0, '{"n":'),
        args(1, '{"n":'),
        args(0, "0}"),
        args(1, "1}"),
        over(0),
        over(1),
        last("tool_use"),
        STOP,
    )
    assert [(block["id"], block["input"]) for block in heard.content] == [("a", {"n": 0}), ("b", {"n": 1})]


# ---- thinking


def thought(signature: str = "c2ln") -> list[dict]:
    signed = [delta(0, "signature_delta", signature=signature)] if signature else []
    return [
        start(),
        begin(0, "thinking"),
        delta(0, "thinking_delta", thinking="hm"),
        *signed,
        over(0),
        begin(1),
        say(1, "x"),
    ]


def test_case_75_native_a_foreign_signature_tells_whose_it_is_and_claudes_stays():
    for translation, signature in ((for_others(), "ollama#c2ln"), (for_claude(), "c2ln")):
        heard = from_native(*thought(), over(1), last(), STOP, translation=translation)
        assert heard.content[0] == {"type": "thinking", "thinking": "hm", "signature": signature}


def test_a_foreign_thought_without_a_signature_comes_back_to_its_own_server_only():
    heard = from_native(*thought(""), over(1), last(), STOP)
    assert heard.content[0]["signature"] == "ollama#"
    history = ask(user("go"), {"role": "assistant", "content": heard.content}, user("and?"))
    assert to_native(history, for_others())["messages"][1]["content"][0]["signature"] == ""
    assert to_native(history, for_others(family="vllm"))["messages"][1] == assistant("x")
    assert to_native(history, for_claude())["messages"][1] == assistant("x")


def test_a_thought_without_words_keeps_its_signature():
    heard = from_native(
        start(), begin(0, "thinking", signature="c2ln"), over(0), last(), STOP, translation=for_claude()
    )
    assert heard.content == [{"type": "thinking", "thinking": "", "signature": "c2ln"}]
    assert from_native(start(), begin(0, "thinking"), over(0), last(), STOP).content == []


def test_a_thought_that_is_left_open_is_sealed_at_the_end():
    events = [start(), begin(0, "thinking"), delta(0, "thinking_delta", thinking="hm"), last("max_tokens")]
    assert from_native(*events).content == [{"type": "thinking", "thinking": "hm", "signature": "ollama#"}]


def test_a_thought_of_nothing_is_none():
    assert (
        from_native(start(), begin(0, "thinking"), delta(0, "thinking_delta", thinking=""), over(0), last()).content
        == []
    )


def test_redacted_thinking_is_claudes_alone():
    events = [start(), begin(0, "redacted_thinking", data="x"), over(0), begin(1), say(1, "y"), over(1), last(), STOP]
    assert from_native(*events, translation=for_claude()).kinds == ["redacted_thinking", "text"]
    translation = for_others()
    assert from_native(*events, translation=translation).kinds == ["text"]
    assert translation.notes == ["a block of the type redacted_thinking was left out"]


# ---- blocks of the server's own


def test_server_tools_and_citations_come_through():
    cited = {"type": "web_search_result_location", "url": "https://example.com", "title": "T", "cited_text": "c"}
    result = [{"type": "web_search_result", "url": "https://example.com", "title": "T", "encrypted_content": "Eo"}]
    heard = from_native(
        start(),
        begin(0, "server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        args(0, '{"query"'),
        args(0, ':"q"}'),
        over(0),
        begin(1, "web_search_tool_result", tool_use_id="srvtoolu_1", content=result),
        over(1),
        begin(2, citations=[]),
        delta(2, "citations_delta", citation={**cited, "cited_text": "before"}),
        say(2, "found"),
        delta(2, "citations_delta", citation=cited),
        over(2),
        begin(3),
        say(3, "more"),
        over(3),
        last(),
        STOP,
        translation=for_claude(),
    )
    assert blocks(heard) == [
        ("server_tool_use", {"query": "q"}),
        ("web_search_tool_result", result),
        ("text", "found"),
        ("text", "more"),
    ]
    assert [cited["cited_text"] for cited in heard.content[2]["citations"]] == ["before", "c"]
    assert "citations" not in heard.content[3]


def test_a_block_that_nobody_knows_comes_through_from_claude():
    events = [start(), begin(0, "from_the_future", x=1), delta(0, "future_delta", y=2), over(0), last(), STOP]
    assert from_native(*events, translation=for_claude()).content == [{"type": "from_the_future", "x": 1, "y": 2}]
    assert from_native(*events).content == []


def test_a_servers_call_without_a_name_is_left_out():
    assert from_native(start(), begin(0, "server_tool_use", id="s"), over(0), last(), STOP).content == []


# ---- streams out of order (seed-001 4.4)


def test_event_names_and_types_may_be_missing():
    writer = MessageWriter(for_others())
    reader = NATIVE.stream(writer.translation, writer)
    for event in (start(), begin(0), say(0, "x"), over(0), last(), STOP):
        untyped = {name: value for name, value in event.items() if name != "type"}
        reader.feed(event["type"].encode(), json.dumps(untyped).encode())
    reader.end()
    assert writer.stop_reason == "end_turn"


def test_gaps_in_the_indexes_and_one_index_for_all():
    for indexes in ((0, 2, 7), (0, 0, 0), (None, None, None)):
        events = []
        for at, index in enumerate(indexes):
            events += [begin(index), say(index, str(at)), over(index)]  # type: ignore[arg-type]
        assert blocks(from_native(start(), *events, last(), STOP)) == [("text", "0"), ("text", "1"), ("text", "2")]


def test_blocks_may_be_left_open():
    events = [
        start(),
        begin(0),
        say(0, "a"),
        begin(1),
        say(1, "b"),
        begin(2, "tool_use", id="t", name="Read"),
        args(2, "{}"),
    ]
    heard = from_native(*events, last("tool_use"), STOP)
    assert blocks(heard) == [("text", "a"), ("text", "b"), ("tool_use", {})]


def test_deltas_of_blocks_that_never_began():
    heard = from_native(start(), delta(0, "thinking_delta", thinking="hm"), say(1, "x"), say(1, "y"), last(), STOP)
    assert blocks(heard) == [("thinking", "hm"), ("text", "xy")]


def test_deltas_of_no_known_kind_and_pieces_of_no_call_are_passed_over():
    translation = for_others()
    odd = [delta(0, "future_delta", text="y"), delta(9, "future_delta", text="z"), args(0, "{}")]
    heard = from_native(start(), begin(0), say(0, "x"), *odd, over(0), last(), STOP, translation=translation)
    assert blocks(heard) == [("text", "x")]
    assert translation.notes == ["a piece of a call that never began was left out"]


def test_case_46_native_text_with_the_index_of_a_call_is_text_all_the_same():
    heard = from_native(
        start(),
        begin(0, "tool_use", id="t", name="Read"),
        args(0, '{"a":'),
        say(0, "x"),
        args(0, "1}"),
        say(0, "y"),
        last(),
        STOP,
    )
    assert blocks(heard) == [("tool_use", {"a": 1}), ("text", "xy")]


def test_the_input_may_stand_in_the_blocks_beginning():
    heard = from_native(
        start(), begin(0, "tool_use", id="t", name="Read", input={"a": 1}), over(0), last("tool_use"), STOP
    )
    assert blocks(heard) == [("tool_use", {"a": 1})]


def test_the_input_is_not_doubled():
    events = [begin(0, "tool_use", id="t", name="Read", input={"a": 1}), args(0, '{"a":1}'), over(0)]
    assert blocks(from_native(start(), *events, last("tool_use"), STOP)) == [("tool_use", {"a": 1})]


def test_case_47_native_a_call_alone_without_message_start():
    heard = from_native(begin(0, "tool_use", id="t", name="Read"), over(0), last("stop"))
    assert blocks(heard) == [("tool_use", {})]
    assert heard.message["stop_reason"] == "tool_use"


def test_an_input_that_is_nearly_json_is_mended_for_those_who_are_known_for_it():
    events = [
        start(),
        begin(0, "tool_use", id="t", name="Read"),
        args(0, "{'a': True}"),
        over(0),
        last("tool_use"),
        STOP,
    ]
    loose = for_others(Capabilities(api="messages", reliable_json=False))
    assert blocks(from_native(*events, translation=loose)) == [("tool_use", {"a": True})]
    assert from_native(*events).error["type"] == "api_error"


def test_several_message_deltas_and_no_message_stop():
    heard = from_native(
        start(),
        begin(0),
        say(0, "x"),
        over(0),
        last(None, usage={"output_tokens": 3}),
        last("end_turn", usage={"output_tokens": 0}),
        last(None, usage={"output_tokens": 9}),
    )
    assert (heard.text, heard.message["stop_reason"], heard.message["usage"]["output_tokens"]) == ("x", "end_turn", 9)


def test_message_stop_without_a_reason_is_an_end():
    assert from_native(start(), begin(0), say(0, "x"), STOP).message["stop_reason"] == "end_turn"


def test_nothing_behind_message_stop_counts():
    heard = from_native(
        start(), begin(0), say(0, "x"), last(), STOP, say(0, "y"), start(), {"type": "error", "error": {}}
    )
    assert heard.text == "x"


def test_a_second_message_start_is_passed_over():
    assert from_native(start(), start(), begin(0), say(0, "x"), start(), last(), STOP).text == "x"


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("max_tokens", "max_tokens"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("refusal", "refusal"),
        ("tool_calls", "end_turn"),  # without any call
        ("pause_turn", "pause_turn"),
        ("whatever", "end_turn"),
    ],
)
def test_why_it_stopped(told, reason):
    heard = from_native(start(), begin(0), say(0, "x"), over(0), last(told), STOP)
    assert (heard.text, heard.message["stop_reason"]) == ("x", reason)


def test_stop_sequences_and_details_come_through():
    ended = {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    heard = from_native(start(), begin(0), say(0, "x"), over(0), last(delta=ended), STOP)
    assert heard.message["stop_sequence"] == "END"
    refused = {"stop_reason": "refusal", "stop_details": {"type": "refusal", "category": "bio", "explanation": None}}
    heard = from_native(start(), last(delta=refused), STOP)
    assert heard.message["stop_details"] == refused["stop_details"]


def test_an_input_that_the_limit_cut_is_told_as_it_is():
    cut = [begin(0, "tool_use", id="t", name="Read"), args(0, '{"a":'), over(0)]
    writer = MessageWriter(for_others())
    reader = NATIVE.stream(writer.translation, writer)
    for event in (start(), *cut, last("max_tokens"), STOP):
        reader.feed(b"", json.dumps(event).encode())
    assert (writer.stop_reason, writer.failure) == ("max_tokens", None)
    assert rb'"partial_json":"{\"a\":"' in writer.take()


# ---- errors


def test_case_66_native_an_end_without_a_reason_is_an_error():
    assert from_native(start(), begin(0), say(0, "so f")).error["type"] == "api_error"
    nothing = from_native()
    assert (nothing.raw, nothing.writer.failure.status) == (b"", 502)


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        ({"type": "overloaded_error", "message": "busy"}, "overloaded_error", 529),
        ({"type": "rate_limit_error", "message": "slow"}, "rate_limit_error", 429),
        ({"type": "invalid_request_error", "message": "what"}, "invalid_request_error", 400),
        ({"code": 502, "message": "provider said no"}, "api_error", 500),
        ("plain", "api_error", 500),
    ],
)
def test_case_67_native_an_error_inside_the_stream(error, kind, status):
    event = {"type": "error", "error": error}
    before = from_native(start(), event)
    assert (before.writer.substance, before.writer.failure.kind, before.writer.failure.status) == (False, kind, status)
    after = from_native(start(), begin(0), say(0, "x"), {"error": error})
    assert after.error["type"] == kind
    assert after.error["message"].startswith("ollama: ")
    assert whole(NATIVE, event, for_others()).writer.failure.kind == kind


def test_an_event_that_is_no_json_is_an_error_and_none_behind_the_reason():
    events = [json.dumps(event).encode() for event in (start(), begin(0), say(0, "x"))]
    assert hear(NATIVE, [*events, b"{oops"], for_others()).error
    ended = [*events, json.dumps(last()).encode()]
    assert hear(NATIVE, [*ended, b"{oops"], for_others()).text == "x"
    assert hear(NATIVE, [*ended, b"[DONE]"], for_others()).text == "x"


# ---- usage


def test_case_58_native_the_last_counts_are_the_ones():
    heard = from_native(start(input_tokens=5, output_tokens=1), begin(0), say(0, "x"), over(0), last(), STOP)
    usage = heard.message["usage"]
    assert {name: usage[name] for name in COUNTS} == COUNTS


def test_counts_of_the_beginning_hold_where_the_end_tells_none():
    events = [
        start(cache_read_input_tokens=7),
        begin(0),
        say(0, "x" * 35),
        over(0),
        last(usage={"input_tokens": 0}),
        STOP,
    ]
    usage = from_native(*events).message["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (10, 7, 10)


def test_case_60_and_61_native_without_counts_they_are_estimated():
    event = {**last(), "usage": None}
    heard = from_native(begin(0), say(0, "x" * 35), event, translation=for_others(estimate=321))
    assert (heard.message["usage"]["input_tokens"], heard.message["usage"]["output_tokens"]) == (321, 10)


def test_thinking_tokens_are_told():
    heard = from_native(begin(0), say(0, "x"), last(usage={**COUNTS, "output_tokens_details": {"thinking_tokens": 5}}))
    assert heard.message["usage"]["output_tokens_details"] == {"thinking_tokens": 5}


def test_counts_are_told_in_the_clients_measure():
    heard = from_native(start(), begin(0), say(0, "x"), last(), STOP, translation=for_others(scale=2.0))
    assert heard.message["usage"]["input_tokens"] == 200


# ---- documents


def test_case_83_native_a_document_with_every_kind_of_block():
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "text", "text": "a", "citations": None},
        {"type": "text", "text": "b"},
        {"type": "tool_use", "id": "t", "name": "Read", "input": {"n": 1}},
        {"type": "tool_use", "id": "u", "name": "Read", "input": {}},
    ]
    value = {"id": "x", "type": "message", "content": content, "stop_reason": "tool_use", "usage": COUNTS}
    heard = whole(NATIVE, value, for_others())
    assert blocks(heard) == [("thinking", "hm"), ("text", "a"), ("text", "b"), ("tool_use", {"n": 1}), ("tool_use", {})]
    assert heard.content[0]["signature"] == "ollama#c2ln"
    usage = heard.message["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (100, 900)


def test_a_document_may_be_a_mere_text_without_a_reason():
    heard = whole(NATIVE, {"content": "hello"}, for_others())
    assert (heard.text, heard.message["stop_reason"]) == ("hello", "end_turn")


@pytest.mark.parametrize("body", [b"", b"<html>", b"3", b"{}", b"[]", b'{"choices": []}'])
def test_a_document_that_is_no_answer_fails(body):
    heard = whole(NATIVE, body, for_others())
    assert heard.raw == b""
    assert heard.writer.failure.transient


def test_a_call_and_its_result_go_back_as_they_came():
    heard = from_native(
        start(), begin(0, "tool_use", id="functions.Read:0", name="Read"), over(0), last("tool_use"), STOP
    )
    call = heard.content[0]
    body = to_native(ask(user("go"), assistant(call), user(tool_result(call["id"])), tools=[READ]), for_others())
    assert body["messages"][1]["content"][0]["id"] == "functions.Read:0"


# ---- whatever comes

_index = st.sampled_from([0, 0, 1, 2, None, "0"])
_words = st.sampled_from(["", "x", "{", '{"a":1}', "}"]) | JSON
_blocks = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["text", "thinking", "tool_use", "server_tool_use", "web_search_tool_result", "?"])
        | JSON
    },
    optional={"text": _words, "thinking": _words, "signature": _words, "id": _words, "name": _words, "input": JSON},
)
_deltas = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["text_delta", "thinking_delta", "signature_delta", "input_json_delta", "citations_delta", "?"]
        )
        | JSON
    },
    optional={"text": _words, "thinking": _words, "signature": _words, "partial_json": _words, "citation": JSON},
)
_events = st.one_of(
    st.fixed_dictionaries({"type": st.just("content_block_start"), "index": _index, "content_block": _blocks | JSON}),
    st.fixed_dictionaries({"type": st.just("content_block_delta"), "index": _index, "delta": _deltas | JSON}),
    st.fixed_dictionaries({"type": st.just("content_block_stop"), "index": _index}),
    st.fixed_dictionaries(
        {
            "type": st.just("message_start"),
            "message": JSON | st.fixed_dictionaries({"content": st.lists(_blocks, max_size=2)}),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("message_delta"),
            "delta": st.fixed_dictionaries({"stop_reason": st.sampled_from(["end_turn", "max_tokens", "?", None])})
            | JSON,
            "usage": JSON | st.fixed_dictionaries({"output_tokens": JSON}),
        }
    ),
    st.just(STOP),
    JSON,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_events, max_size=9), st.booleans(), st.booleans(), st.sampled_from([for_others, for_claude]))
def test_case_95_native_whatever_comes_is_a_grammatical_answer_or_one_error(events, once, stops, attempt):
    fields = {"single": once, "stops": ("x",) if stops else ()}
    hear(NATIVE, [json.dumps(event).encode() for event in events], attempt(**fields))
    for event in events:
        whole(NATIVE, event, attempt(**fields))
