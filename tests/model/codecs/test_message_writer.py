"""Pieces of an answer, in whatever order they come, are a grammatical message: blocks, ends, usage, or one error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.codecs.capabilities import Capabilities
from dbproxy.model.codecs.failure import Failure, overflow, too_long
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.translation import Translation
from dbproxy.model.codecs.writer import MessageWriter
from dbproxy.testing.origin.grammar import Reader, StreamError, check_stream


def _writer(**changes):
    can = changes.pop("can", {})
    return MessageWriter(Translation("asked", "model", "m1", capabilities=Capabilities(**can), **changes))


def _ended(writer, reason="end_turn", **usage):
    writer.usage(**usage)
    writer.stop(reason)
    writer.finish()
    return check_stream(writer.take())


def _content(writer, reason="end_turn"):
    return [
        (block["type"], block.get("text", block.get("thinking", block.get("input"))))
        for block in _ended(writer, reason)["content"]
    ]


# ---- the beginning


def test_a_message_begins_once_under_the_upstream_s_name():
    writer = _writer()
    writer.begin("chatcmpl-1")
    writer.begin("chatcmpl-2")
    message = _ended(writer)
    # An id that begins with msg_ would make the client anchor a thread on it.
    assert message["id"] == "routed_chatcmpl-1" == writer.message_id
    assert message["model"] == "asked"


def test_an_id_is_spelled_as_the_client_may_send_it():
    writer = _writer()
    writer.begin("a/b c")
    assert _ended(writer)["id"].replace("_", "").replace("-", "").isalnum()


def test_what_begins_nothing_is_not_there_to_see():
    writer = _writer()
    writer.begin()
    writer.text("")
    writer.thinking("")
    writer.call(0, id="t1", name="Read")
    assert not writer.substance
    writer.call(0, arguments="{}")
    assert writer.substance


def test_a_seal_without_words_is_nothing_to_see():
    writer = _writer()
    writer.sign("f#payload")
    assert not writer.substance
    writer.text("a")
    assert [block["type"] for block in _ended(writer)["content"]] == ["thinking", "text"]


# ---- text and thoughts


def test_each_change_of_kind_is_a_new_block():
    writer = _writer()
    for kind, text in (
        ("thinking", "a"),
        ("thinking", "b"),
        ("text", "c"),
        ("thinking", "d"),
        ("text", "e"),
        ("text", "f"),
    ):
        getattr(writer, kind)(text)
    assert _content(writer) == [("thinking", "ab"), ("text", "c"), ("thinking", "d"), ("text", "ef")]


def test_pieces_are_written_as_they_come():
    writer = _writer()
    writer.text("a")
    assert b'"a"' in writer.take()
    writer.text("b")
    assert writer.take().count(b"event: content_block_delta") == 1


def test_a_signature_ends_its_thought():
    writer = _writer()
    writer.thinking("a")
    writer.sign("f#1")
    writer.thinking("b")
    writer.sign("f#2")
    content = _ended(writer)["content"]
    assert [(block["thinking"], block["signature"]) for block in content] == [("a", "f#1"), ("b", "f#2")]


def test_a_signature_that_follows_no_thought_has_one_of_its_own():
    writer = _writer()
    writer.text("a")
    writer.sign("f#1")
    assert [block.get("signature") for block in _ended(writer)["content"]] == [None, "f#1"]


def test_a_closed_block_is_not_gone_on_with():
    writer = _writer()
    writer.text("a")
    writer.close()
    writer.text("b")
    writer.close()
    writer.close()
    assert _content(writer) == [("text", "a"), ("text", "b")]


def test_a_citation_belongs_to_the_text_at_hand():
    writer = _writer()
    writer.cite({"n": 0})
    writer.text("a")
    writer.cite({"n": 1})
    writer.text("b")
    assert _ended(writer)["content"] == [{"type": "text", "text": "ab", "citations": [{"n": 1}]}]


def test_whole_blocks_stand_where_they_came():
    writer = _writer()
    writer.text("a")
    writer.whole({"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "q"}})
    writer.whole({"type": "web_search_tool_result", "tool_use_id": "s1", "content": []})
    writer.text("b")
    content = _ended(writer)["content"]
    assert [block["type"] for block in content] == ["text", "server_tool_use", "web_search_tool_result", "text"]
    assert content[1]["input"] == {"query": "q"}


# ---- calls


def test_case_48_a_call_waits_for_the_one_before_it():
    writer = _writer()
    writer.call("a", id="t1", name="Read", arguments='{"x"')
    writer.call("b", id="t2", name="Read", arguments='{"y":2}')
    assert b"t2" not in writer.take()
    writer.call("a", arguments=":1}")
    assert b"t2" in writer.take()
    writer.text("done")
    writer.stop("tool_use")
    writer.finish()
    assert writer.calls == ["t1", "t2"]


def test_what_waits_is_written_in_the_order_in_which_it_began():
    writer = _writer()
    writer.call("a", id="t1", name="Read", arguments="{")
    writer.text("said")
    writer.call("b", id="t2", name="Read", arguments="{")
    writer.call("b", arguments="}")
    writer.call("a", arguments="}")
    assert _content(writer) == [("tool_use", {}), ("text", "said"), ("tool_use", {})]


@pytest.mark.parametrize(
    "names", [["Read"], ["Re", "ad"], ["Re", "Read"], ["Read", "Read"], ["R", "e", "a", "d"], ["", "Read"]]
)
def test_case_51_a_name_may_come_in_pieces_longer_each_time_or_again(names):
    writer = _writer()
    for name in names:
        writer.call(0, id="t1", name=name)
    writer.call(0, arguments="{}")
    writer.call(0, name="Read")
    assert _ended(writer)["content"][0]["name"] == "Read"


def test_a_name_comes_back_as_the_client_gave_it():
    names = ToolNames()
    writer = _writer(names=names)
    writer.call(0, id="t1", name=names.out("my.tool"), arguments="{}")
    assert _ended(writer)["content"][0]["name"] == "my.tool"


def test_a_call_without_a_name_is_left_out_and_noted():
    writer = _writer()
    writer.call(0, id="t1", arguments="{}")
    writer.text("a")
    assert _content(writer) == [("text", "a")]
    assert "a call without a name was left out" in writer.translation.notes


def test_ids_are_spelled_and_missing_ones_made_up():
    writer = _writer()
    writer.call(0, id="a:b", name="Read", arguments="{}")
    writer.call(1, name="Read", arguments="{}")
    writer.call(2, name="Read", arguments="{}")
    ids = [writer.client_id_of(key) for key in range(3)]
    content = _ended(writer)["content"]
    assert [block["id"] for block in content] == ids
    assert len(set(ids)) == 3
    assert writer.client_id_of("unknown") == ""


def test_case_54_arguments_that_come_at_the_end_are_added_and_not_doubled():
    writer = _writer()
    writer.call(0, id="t1", name="Read")
    writer.complete(0, '{"a":1}')
    writer.complete(0, '{"a":1}')
    writer.call(1, id="t2", name="Read", arguments='{"a"')
    writer.complete(1, '{"a":2}')
    writer.call(2, id="t3", name="Read", arguments='{"a":3}')
    writer.complete(2, '{"a":3}')
    writer.complete(9, "{}")
    assert _content(writer) == [("tool_use", {"a": 1}), ("tool_use", {"a": 2}), ("tool_use", {"a": 3})]


def test_arguments_that_come_at_the_end_and_are_others_do_not_go_on_with_the_first():
    writer = _writer()
    writer.call(0, id="t1", name="Read", arguments='{"a"')
    writer.complete(0, '{"b":1}')
    writer.stop("tool_use")
    writer.finish()
    assert writer.failure is not None


def test_blanks_behind_a_call_are_nothing_and_more_is_an_error():
    writer = _writer()
    writer.call(0, id="t1", name="Read", arguments="{}")
    writer.complete(0)
    writer.call(0, arguments=" \n")
    assert writer.failure is None
    writer.call(0, arguments="}")
    assert writer.failure is not None


def test_case_55_what_is_nearly_json_is_kept_until_it_is_whole_and_mended():
    writer = _writer(can={"reliable_json": False})
    writer.call(0, id="t1", name="Read", arguments="{'a'")
    assert b"'a'" not in writer.take()
    writer.call(0, arguments=":1}")
    writer.stop("tool_use")
    writer.finish()
    assert b'{\\"a\\":1}' in writer.take()


def test_what_is_valid_of_an_unreliable_server_stays_as_it_is():
    writer = _writer(can={"reliable_json": False})
    writer.call(0, id="t1", name="Read", arguments='{ "a" : 1 }')
    assert _content(writer) == [("tool_use", {"a": 1})]
    assert not any("repaired" in note for note in writer.translation.notes)


def test_only_one_call_passes_where_one_is_wanted():
    writer = _writer(single=True)
    for key in range(3):
        writer.call(key, id=f"t{key}", name="Read")
        writer.call(key, arguments="{}")
    assert _content(writer) == [("tool_use", {})]
    assert any("parallel" in note for note in writer.translation.notes)


def test_an_endless_queue_is_an_error(monkeypatch):
    monkeypatch.setattr("dbproxy.model.codecs.writer._MOST_WAITING", 100)
    writer = _writer()
    writer.call(0, id="t1", name="Read", arguments="{")
    writer.text("x" * 101)
    assert writer.failure is not None


# ---- the end


@pytest.mark.parametrize(
    ("told", "called", "reason"),
    [
        ("end_turn", False, "end_turn"),
        ("end_turn", True, "tool_use"),
        ("tool_use", True, "tool_use"),
        ("tool_use", False, "end_turn"),
        ("max_tokens", True, "max_tokens"),
        ("refusal", False, "refusal"),
    ],
)
def test_case_56_and_57_the_reason_fits_what_was_called(told, called, reason):
    writer = _writer()
    if called:
        writer.call(0, id="t1", name="Read", arguments="{}")
    assert _ended(writer, told)["stop_reason"] == reason == writer.stop_reason


def test_details_go_with_their_reason():
    writer = _writer()
    writer.stop("refusal", details={"type": "refusal"})
    writer.finish()
    assert check_stream(writer.take())["stop_details"] == {"type": "refusal"}


def test_case_66_an_end_without_a_reason_is_a_failure():
    writer = _writer()
    writer.text("a")
    writer.finish()
    assert writer.done
    assert writer.failure is not None
    with pytest.raises(StreamError):
        Reader().feed(writer.take())


def test_a_failure_before_the_beginning_writes_nothing():
    writer = _writer()
    writer.fail(Failure(429, "rate_limit_error", "slow down"))
    assert (writer.take(), writer.done, writer.substance) == (b"", True, False)
    assert writer.failure.status == 429


def test_nothing_is_written_behind_the_end():
    writer = _writer()
    _ended(writer)
    writer.text("a")
    writer.thinking("a")
    writer.sign("f#1")
    writer.call(0, id="t", name="n", arguments="{}")
    writer.whole({"type": "x"})
    writer.cite({})
    writer.close()
    writer.stop("refusal")
    writer.fail(Failure(500, "api_error", "no"))
    writer.finish()
    writer.begin()
    assert writer.take() == b""
    assert writer.failure is None
    assert writer.stop_reason == "end_turn"


def test_a_call_that_was_cut_is_allowed_only_in_a_cut_answer():
    cut, whole = _writer(), _writer()
    for writer, reason in ((cut, "max_tokens"), (whole, "end_turn")):
        writer.call(0, id="t1", name="Read", arguments='{"a"')
        writer.stop(reason)
        writer.finish()
    assert cut.failure is None
    assert whole.failure is not None


# ---- stop sequences


def test_a_stop_sequence_ends_the_answer_at_once():
    writer = _writer(stops=("END",))
    writer.text("one E")
    writer.text("ND two")
    assert writer.done
    message = check_stream(writer.take())
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    assert message["content"][0]["text"] == "one "


def test_text_that_only_begins_like_a_stop_sequence_comes_before_what_follows():
    for follow in (
        lambda w: w.thinking("t"),
        lambda w: w.call(0, id="t1", name="Read", arguments="{}"),
        MessageWriter.close,
    ):
        writer = _writer(stops=("END",))
        writer.text("one E")
        follow(writer)
        content = _ended(writer)["content"]
        assert content[0] == {"type": "text", "text": "one E"}


def test_a_stop_sequence_is_looked_for_in_texts_only():
    writer = _writer(stops=("END",))
    writer.thinking("END")
    writer.call(0, id="t1", name="Read", arguments='{"END":"END"}')
    assert _content(writer) == [("thinking", "END"), ("tool_use", {"END": "END"})]


@pytest.mark.parametrize("pieces", [("{'path': 'x'}",), ('{"path"', " 'x'}"), ("[1]",), ('{"a": tru', "th}")])
def test_case_55_what_is_no_json_never_goes_out_in_pieces(pieces):
    """The official SDKs raise at the first piece that cannot be the beginning of JSON."""
    writer = _writer()
    for piece in pieces:
        writer.call(0, id="t1", name="Read", arguments=piece)
    raw = writer.take()
    assert writer.failure is not None
    assert pieces[-1].encode() not in raw.replace(b'\\"', b'"')
    with pytest.raises(StreamError):
        check_stream(raw)


def test_blanks_before_an_input_are_left_out():
    writer = _writer()
    for piece in ("\n ", " ", '{"a": 1}'):
        writer.call(0, id="t1", name="Read", arguments=piece)
    assert b'"partial_json":"{' in writer.take()


# ---- usage


def test_counts_are_told_in_the_client_s_measure():
    writer = _writer(scale=2.0, estimate=10)
    writer.text("a")
    usage = _ended(writer, input=100, output=3, cache_read=50, cache_write=5, thinking=2)["usage"]
    assert usage == {
        "input_tokens": 200,
        "cache_creation_input_tokens": 10,
        "cache_read_input_tokens": 100,
        "output_tokens": 6,
        "output_tokens_details": {"thinking_tokens": 4},
    }
    # The upstream's own measure is kept for the record.
    assert writer.tokens.input == 100


def test_a_zero_leaves_no_estimate_standing():
    """The official SDKs believe a zero in message_delta, Claude Code keeps the estimate (client facts 4.2)."""
    usage = _ended(_writer(estimate=1000), input=0, output=0, cache_read=900)["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (1, 900, 1)


def test_case_59_the_last_word_of_each_count_counts():
    writer = _writer()
    writer.usage(input=1, output=1, cache_read=9)
    writer.usage(output=5)
    writer.usage(input=2, cache_read=-3)
    assert (writer.tokens.input, writer.tokens.output, writer.tokens.cache_read) == (2, 5, 0)


def test_case_60_and_61_counts_are_never_absent():
    writer = _writer(estimate=77, scale=0.001)
    writer.text("word " * 20)
    start = json.loads(writer.take().split(b"\n")[1].removeprefix(b"data: "))
    assert start["message"]["usage"]["input_tokens"] == 1
    writer.stop("end_turn")
    writer.finish()
    assert writer.tokens.input == 77
    assert writer.tokens.output == round(100 / 3.5)
    assert writer.translation.notes == ["the provider told no usage; it was estimated"]


def test_counts_beyond_all_measure_are_cut():
    writer = _writer(scale=3.5)
    assert _ended(writer, input=10**400, output=10**40)["usage"]["input_tokens"] < 1 << 53


@pytest.mark.parametrize(
    ("failure", "tokens", "limit"),
    [
        (overflow(1500, 1000), 3000, 2000),  # as the upstream tells them
        (overflow(1500, 0), 3000, 1600),  # it tells no window: the model's
        (overflow(0, 0), 1601, 1600),  # it tells nothing: at least one more than fits
    ],
)
def test_case_78_an_overflow_is_told_in_the_client_s_measure_once(failure, tokens, limit):
    writer = _writer(can={"context": 800}, scale=2.0, estimate=10)
    writer.text("so far")
    writer.fail(failure)
    assert writer.failure.message == too_long(tokens, limit)
    assert too_long(tokens, limit).encode() in writer.take()


# ---- anything in any order

PIECES = st.one_of(
    st.tuples(st.sampled_from(["text", "thinking"]), st.sampled_from(["a", "E", "ND", "", "\ud83d"])),
    st.tuples(st.just("sign"), st.sampled_from(["f#1", ""])),
    st.builds(
        lambda key, id, name, arguments: ("call", key, id, name, arguments),
        st.integers(0, 2),
        st.sampled_from(["", "t1", "a:b"]),
        st.sampled_from(["", "Read", "Re"]),
        st.sampled_from(["", "{", "}", "{}", "x", " "]),
    ),
    st.tuples(st.just("complete"), st.integers(0, 2), st.sampled_from([None, "{}", "{", '{"a":1}'])),
    st.just(("whole", {"type": "web_search_tool_result", "tool_use_id": "s", "content": []})),
    st.just(("cite", {"type": "c"})),
    st.just(("close",)),
    st.tuples(st.just("stop"), st.sampled_from(["end_turn", "tool_use", "max_tokens", "refusal"])),
    st.just(("finish",)),
    st.just(("fail", Failure(500, "api_error", "no"))),
)


@given(
    st.lists(PIECES, max_size=15),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(), ("END",)]),
)
def test_case_95_any_pieces_in_any_order_are_a_grammatical_stream_or_one_error(pieces, reliable, single, stops):
    writer = _writer(can={"reliable_json": reliable}, single=single, stops=stops)
    out = b""
    for name, *arguments in pieces:
        if name == "call":
            key, id, tool, text = arguments
            writer.call(key, id=id, name=tool, arguments=text)
        else:
            getattr(writer, name)(*arguments)
        out += writer.take()
    writer.finish()
    out += writer.take()
    assert writer.done
    if writer.failure is None:
        message = check_stream(out)
        assert [block["id"] for block in message["content"] if block["type"] == "tool_use"] == writer.calls
    elif out:
        with pytest.raises(StreamError):
            Reader().feed(out)


def test_parallel_calls_of_one_id_can_be_told_apart():
    writer = _writer()
    for key in (0, 1):
        writer.call(key, id="call_1", name="Read", arguments="{}")
    first, second = (block["id"] for block in _ended(writer)["content"])
    assert first == "call_1"
    assert second.startswith("toolu_m1_")
    assert [writer.client_id_of(key) for key in (0, 1)] == [first, second]
