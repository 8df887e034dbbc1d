"""The last stage lets a grammatical stream pass, and refuses everything else before a byte of it is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.codecs.gate import PING, Gate, Ungrammatical, is_object
from dbproxy.testing.origin.grammar import GrammarError, Reader, StreamError, check_stream

MESSAGE = {
    "id": "routed_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
USAGE = {"output_tokens": 3}
TEXT = {"type": "text", "text": ""}
THINKING = {"type": "thinking", "thinking": "", "signature": ""}
TOOL = {"type": "tool_use", "id": "t1", "name": "Read", "input": {}}
RESULT = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}


def _started():
    gate = Gate()
    gate.start(dict(MESSAGE))
    return gate


def test_a_whole_message_is_what_the_strict_reader_takes():
    gate = _started()
    gate.block(THINKING)
    gate.delta("thinking_delta", "hm")
    gate.delta("signature_delta", "c2ln")
    gate.stop_block()
    gate.block(TEXT)
    gate.delta("text_delta", 'a "quoted"\ntext \u2028 \U0001f600')
    gate.citation({"type": "web_search_result_location", "url": "u"})
    gate.stop_block()
    gate.block(TOOL)
    gate.delta("input_json_delta", '{"a":')
    gate.delta("input_json_delta", "1}")
    gate.stop_block()
    gate.block(RESULT)
    gate.stop_block()
    gate.finish("tool_use", USAGE)
    message = check_stream(gate.take())
    assert [block["type"] for block in message["content"]] == [
        "thinking",
        "text",
        "tool_use",
        "web_search_tool_result",
    ]
    assert message["content"][1]["text"] == 'a "quoted"\ntext \u2028 \U0001f600'
    assert message["content"][2]["input"] == {"a": 1}
    assert gate.blocks == 4
    assert gate.ended


def test_what_was_taken_is_not_given_again():
    gate = _started()
    assert gate.take()
    assert gate.take() == b""


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE | {"usage": {}},
        MESSAGE | {"usage": None},
        MESSAGE | {"usage": {"input_tokens": "1"}},
        MESSAGE | {"usage": {"input_tokens": True}},
        MESSAGE | {"usage": {"input_tokens": -1}},
        MESSAGE | {"id": ""},
        MESSAGE | {"model": ""},
        MESSAGE | {"content": [TEXT]},
    ],
)
def test_a_message_does_not_begin_without_what_clients_need(message):
    gate = Gate()
    with pytest.raises(Ungrammatical):
        gate.start(message)
    assert gate.take() == b""


def _in_text():
    gate = _started()
    gate.block(TEXT)
    return gate


def _signed():
    gate = _started()
    gate.block(THINKING)
    gate.delta("signature_delta", "c2ln")
    return gate


def _in_call(arguments):
    gate = _started()
    gate.block(TOOL)
    gate.delta("input_json_delta", arguments)
    return gate


def _ended():
    gate = _started()
    gate.finish("end_turn", USAGE)
    return gate


def _failed():
    gate = _started()
    gate.error("api_error", "no")
    return gate


FAULTS = {
    "a second message_start": (_started, lambda gate: gate.start(dict(MESSAGE))),
    "a block before the message": (Gate, lambda gate: gate.block(TEXT)),
    "an end before the message": (Gate, lambda gate: gate.finish("end_turn", USAGE)),
    "a block inside a block": (_in_text, lambda gate: gate.block(TEXT)),
    "a block without a type": (_started, lambda gate: gate.block({"text": ""})),
    "a text that begins full": (_started, lambda gate: gate.block({"type": "text", "text": "a"})),
    "a call that begins full": (_started, lambda gate: gate.block(TOOL | {"input": {"a": 1}})),
    "a call without a name": (_started, lambda gate: gate.block(TOOL | {"name": ""})),
    "a call without an id": (_started, lambda gate: gate.block(TOOL | {"id": ""})),
    "a delta outside of a block": (_started, lambda gate: gate.delta("text_delta", "a")),
    "a delta of another type": (_in_text, lambda gate: gate.delta("input_json_delta", "a")),
    "a delta behind the signature": (_signed, lambda gate: gate.delta("thinking_delta", "a")),
    "a second signature": (_signed, lambda gate: gate.delta("signature_delta", "a")),
    "a citation in a thought": (_signed, lambda gate: gate.citation({})),
    "a citation outside of a block": (_started, lambda gate: gate.citation({})),
    "an end without a beginning": (_started, lambda gate: gate.stop_block()),
    "an input that is no object": (lambda: _in_call(""), lambda gate: gate.delta("input_json_delta", "[1]")),
    "an input that cannot become JSON": (lambda: _in_call("{"), lambda gate: gate.delta("input_json_delta", "'a'")),
    "an input that was cut": (lambda: _in_call('{"a"'), lambda gate: gate.stop_block()),
    "the end inside a block": (_in_text, lambda gate: gate.finish("end_turn", USAGE)),
    "an unknown reason": (_started, lambda gate: gate.finish("tired", USAGE)),
    "the end without usage": (_started, lambda gate: gate.finish("end_turn", {})),
    "a block behind the end": (_ended, lambda gate: gate.block(TEXT)),
    "a second end": (_ended, lambda gate: gate.finish("end_turn", USAGE)),
    "an error behind the end": (_ended, lambda gate: gate.error("api_error", "no")),
    "a block behind an error": (_failed, lambda gate: gate.block(TEXT)),
    "a second error": (_failed, lambda gate: gate.error("api_error", "no")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_out_of_place_is_refused_and_not_written(name):
    make, act = FAULTS[name]
    gate = make()
    gate.take()
    with pytest.raises(Ungrammatical):
        act(gate)
    assert gate.take() == b""


def test_nothing_follows_an_error_inside_a_block():
    gate = _in_text()
    gate.error("overloaded_error", "busy")
    with pytest.raises(Ungrammatical):
        gate.delta("text_delta", "more")
    with pytest.raises(StreamError, match="busy"):
        Reader().feed(gate.take())


def test_an_input_may_be_cut_only_where_the_answer_was():
    cut = _in_call('{"a"')
    cut.stop_block(cut=True)
    with pytest.raises(Ungrammatical):
        cut.finish("end_turn", USAGE)
    cut.finish("max_tokens", USAGE)
    assert cut.ended


def test_a_block_that_cannot_be_written_is_refused():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(Ungrammatical):
        _started().block(RESULT | {"content": nested})


def test_a_ping_is_an_event_that_readers_pass_over():
    reader = Reader()
    reader.feed(PING)
    assert reader.pings == 1


@pytest.mark.parametrize(
    ("text", "object_"), [("{}", True), (' {"a":1} ', True), ("[]", False), ("", False), ("{", False)]
)
def test_what_an_object_is(text, object_):
    assert is_object(text) is object_


STEPS = st.one_of(
    st.sampled_from([TEXT, THINKING, TOOL, RESULT]).map(lambda block: ("block", block)),
    st.tuples(
        st.just("delta"),
        st.sampled_from(["text_delta", "thinking_delta", "signature_delta", "input_json_delta"]),
        st.sampled_from(["{}", "{", "x", ""]),
    ),
    st.just(("citation", {"type": "c"})),
    st.booleans().map(lambda cut: ("stop_block", cut)),
    st.sampled_from(["end_turn", "max_tokens", "nonsense"]).map(lambda reason: ("finish", reason, USAGE)),
    st.just(("error", "api_error", "no")),
)


@given(st.lists(STEPS, max_size=12))
def test_whatever_is_tried_in_whatever_order_only_grammar_comes_out(steps):
    gate = _started()
    for name, *arguments in steps:
        try:
            if name == "stop_block":
                gate.stop_block(cut=arguments[0])
            else:
                getattr(gate, name)(*arguments)
        except Ungrammatical:
            pass
    reader = Reader()
    try:
        reader.feed(gate.take())
    except StreamError:
        assert gate.ended
    except GrammarError as error:
        raise AssertionError(f"the reader refuses what passed: {error}") from error
