"""Calls in the answers of servers that speak Chat: which pieces belong together, and what the client gets of them."""

from __future__ import annotations

import json

import pytest
from asking import ask, tool_result, tool_use, user
from asking import assistant as said
from chattalk import DONE, a_translation, call, calls, chunk, document, heard, sent

from dbproxy.model.codecs.chat.calls import CallBook
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.vault import Kept

CONTENT = chunk({"content": "Hello"})
STOP = chunk({}, "stop")
CALLED = chunk({}, "tool_calls")
X, Y = ("tool_use", ("c1", "Read", {"path": "x"})), ("tool_use", ("c2", "Read", {"path": "y"}))


def _whole(index, id, path, **fields):
    return call(index, id=id, name="Read", arguments=json.dumps({"path": path}), **fields)


def test_a_call_in_pieces_is_one_block_and_its_pieces_are_passed_on():
    pieces = ['{"pa', 'th":', '"x"}']
    answer = heard(
        calls(call(0, id="c1", name="Read", arguments="")),
        *(calls(call(0, arguments=piece)) for piece in pieces),
        CALLED,
    )
    assert answer.blocks == [X]
    assert answer.stop == "tool_use"
    assert [
        event["delta"]["partial_json"] for event in answer.events if "index" in event and "delta" in event
    ] == pieces


def test_case_46_text_behind_a_call_is_a_block_behind_it():
    answer = heard(CONTENT, calls(_whole(0, "c1", "x")), CONTENT, CALLED)
    assert answer.blocks == [("text", "Hello"), X, ("text", "Hello")]


def test_case_47_a_call_before_any_text_is_the_first_block():
    answer = heard(chunk({"role": "assistant", "content": None}), calls(_whole(0, "c1", "x")), CALLED)
    assert answer.blocks == [X]
    assert answer.events[1]["index"] == 0


def test_case_48_interleaved_calls_are_written_one_after_the_other():
    answer = heard(
        calls(call(0, id="c1", name="Read", arguments='{"path"'), call(1, id="c2", name="Read", arguments='{"pa')),
        calls(call(0, arguments=":")),
        calls(call(1, arguments='th":"y"')),
        calls(call(0, arguments='"x"}')),
        calls(call(1, arguments="}")),
        CALLED,
    )
    assert answer.blocks == [X, Y]


def test_case_49_two_calls_of_the_same_tool_are_two():
    assert heard(calls(_whole(0, "c1", "x")), calls(_whole(1, "c2", "y")), CALLED).blocks == [X, Y]
    assert heard(calls(_whole(0, "c1", "x"), _whole(1, "c2", "y")), CALLED).blocks == [X, Y]


# ---- what tells calls apart


def test_case_50_calls_without_an_index_are_known_by_their_ids():
    answer = heard(
        calls(call(id="c1", name="Read", arguments='{"path":')),
        calls(call(id="c1", arguments='"x"}')),
        calls(call(id="c2", name="Read", arguments='{"path":')),
        calls(call(id="c1", arguments="")),
        calls(call(id="c2", arguments='"y"}')),
        CALLED,
    )
    assert answer.blocks == [X, Y]


@pytest.mark.parametrize("later", [{}, {"id": ""}, {"id": None}, {"id": "c1"}, {"id": "", "name": ""}])
@pytest.mark.parametrize("index", [0, None])
def test_case_50_later_pieces_without_an_id_belong_to_the_call_at_hand(index, later):
    answer = heard(
        calls(call(index, id="c1", name="Read", arguments='{"path":')),
        calls(call(index, arguments='"x"', **later)),
        calls(call(index, arguments="}", **later)),
        CALLED,
    )
    assert answer.blocks == [X]


def test_case_50_pieces_with_neither_belong_to_the_call_that_stood_at_their_place():
    answer = heard(
        calls(call(id="c1", name="Read", arguments='{"path":'), call(id="c2", name="Read", arguments='{"path":')),
        calls(call(arguments='"x"}'), call(arguments='"y"}')),
        CALLED,
    )
    assert answer.blocks == [X, Y]


@pytest.mark.parametrize("index", [0, None, "0", 0.0])
def test_case_50_calls_that_all_say_index_0_are_told_apart(index):
    pieces = [_whole(index, "c1", "x"), _whole(index, "c2", "y")]
    assert heard(*map(calls, pieces), CALLED).blocks == [X, Y]


@pytest.mark.parametrize("index", [0, None])
def test_case_50_calls_without_ids_are_told_apart_once_the_first_is_complete(index):
    answer = heard(calls(_whole(index, None, "x")), calls(_whole(index, None, "x")), CALLED)
    assert [block[1][2] for block in answer.blocks] == [{"path": "x"}, {"path": "x"}]
    assert len({block[1][0] for block in answer.blocks}) == 2


def test_case_50_a_name_that_is_repeated_begins_no_other_call():
    answer = heard(
        *(calls(call(0, id="c1", name="Read", arguments=piece)) for piece in ('{"path"', ':"x"}', "")),
        CALLED,
    )
    assert answer.blocks == [X]


def test_case_50_a_name_that_is_repeated_without_arguments_begins_no_other_call():
    pieces = [call(name="Read", arguments=piece) for piece in ('{"path":"x"}', "")]
    assert len(heard(*map(calls, pieces), CALLED).blocks) == 1


def test_case_50_an_id_of_its_own_for_each_piece_begins_no_other_call():
    # Old versions of vLLM make one up for each.
    pieces = [call(0, id="c1"), call(0, id="r2", name="Read"), call(0, id="r3", arguments='{"path":"x"}')]
    assert heard(*map(calls, pieces), CALLED).blocks == [X]


def test_a_single_call_needs_no_list():
    assert heard(chunk({"tool_calls": _whole(0, "c1", "x")}), CALLED).blocks == [X]


def test_a_null_inside_of_arguments_is_one():
    pieces = [call(0, id="c1", name="Go", arguments='{"a":'), call(0, arguments="null"), call(0, arguments="}")]
    assert heard(*map(calls, pieces), CALLED).content[0]["input"] == {"a": None}


def test_a_character_of_the_arguments_that_is_cut_in_two_is_whole_again():
    halves = [rb"{\"path\":\"\ud83d", rb"\ude00\"}"]
    events = [
        b'{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c1","function":{"name":"Read","arguments":"%b"}}]}}]}'
        % half
        for half in halves
    ]
    assert heard(*events, CALLED).content[0]["input"] == {"path": "\U0001f600"}


def test_a_number_for_an_id_is_one():
    assert heard(calls(_whole(0, 17, "x")), CALLED).content[0]["id"] == "17"


def test_a_call_without_an_id_gets_one_that_stays():
    answer = heard(calls(call(0, name="Read", arguments="{}")), CALLED)
    assert answer.content[0]["id"].startswith("toolu_m1_")
    assert answer.writer.calls == [answer.content[0]["id"]]


def test_ids_that_come_late_are_used_if_the_call_waits_for_its_name():
    answer = heard(
        calls(call(0, arguments='{"path":"x"}')),
        calls(call(0, id="c1")),
        calls(call(0, name="Read")),
        CALLED,
    )
    assert answer.blocks == [X]


# ---- names


def test_case_51_a_name_in_pieces_is_whole_on_the_wire():
    answer = heard(
        calls(call(0, id="c1", name="Re")),
        calls(call(0, name="ad")),
        calls(call(0, arguments='{"path":"x"}')),
        CALLED,
    )
    assert answer.blocks == [X]


def test_case_51_a_call_does_not_begin_before_its_name_is_known():
    pieces = [calls(call(0, id="c1", arguments='{"path":')), calls(call(0, arguments='"x"}'))]
    assert heard(*pieces, end=False).content == []
    assert heard(*pieces, calls(call(0, name="Read")), CALLED).blocks == [X]


def test_case_51_a_call_that_never_got_a_name_is_left_out_and_noted():
    translation = a_translation()
    answer = heard(CONTENT, calls(call(0, id="c1", arguments="{}")), CALLED, translation=translation)
    assert answer.blocks == [("text", "Hello")]
    assert answer.stop == "end_turn"
    assert any("was left out" in note for note in translation.notes)


def test_case_17_a_short_name_comes_back_as_the_client_knows_it():
    translation = a_translation()
    long = "mcp__" + "x" * 70
    translation.names = ToolNames([long])
    answer = heard(
        calls(call(0, id="c1", name=translation.names.out(long), arguments="{}")), CALLED, translation=translation
    )
    assert answer.content[0]["name"] == long


def test_case_77_an_id_that_the_client_could_not_send_comes_back_as_it_was():
    id = heard(calls(_whole(0, "call_ab:c/1", "x")), CALLED).content[0]["id"]
    assert id.replace("_", "").replace("-", "").isalnum()
    body = sent(ask(user("a"), said(tool_use(id)), user(tool_result(id))))
    assert body["messages"][1]["tool_calls"][0]["id"] == "call_ab:c/1"
    assert body["messages"][2]["tool_call_id"] == "call_ab:c/1"


# ---- arguments and ends


def test_case_52_a_whole_call_may_share_a_chunk_with_the_end():
    answer = heard(calls(_whole(0, "c1", "x"), finish="tool_calls"))
    assert answer.blocks == [X]
    assert [event["type"] for event in answer.events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert answer.stop == "tool_use"


@pytest.mark.parametrize("arguments", ["", None, "null", {}])
def test_case_53_no_arguments_are_an_empty_object(arguments):
    answer = heard(calls(call(0, id="c1", name="Go", arguments=arguments)), CALLED)
    assert answer.blocks == [("tool_use", ("c1", "Go", {}))]


def test_case_53_an_empty_object_is_not_doubled():
    answer = heard(calls(call(0, id="c1", name="Go", arguments="")), calls(call(0, arguments="{}")), CALLED)
    assert answer.blocks == [("tool_use", ("c1", "Go", {}))]


def test_arguments_that_are_an_object_are_written():
    assert heard(calls(call(0, id="c1", name="Read", arguments={"path": "x"})), CALLED).blocks == [X]


def test_case_55_what_is_nearly_json_is_mended_for_a_server_that_is_known_for_it():
    translation = a_translation(reliable_json=False)
    answer = heard(
        calls(call(0, id="c1", name="Read", arguments="{'path'")),
        calls(call(0, arguments=":'x'}")),
        CALLED,
        translation=translation,
    )
    assert answer.blocks == [X]
    assert any("repaired" in note for note in translation.notes)


@pytest.mark.parametrize("reliable", [True, False])
@pytest.mark.parametrize("arguments", ["not json", "[1]", "7", '{"a":1}}'])
def test_case_55_what_cannot_be_mended_is_an_error_and_never_a_call(arguments, reliable):
    answer = heard(
        calls(call(0, id="c1", name="Read", arguments=arguments)),
        CALLED,
        translation=a_translation(reliable_json=reliable),
    )
    assert answer.failure is not None
    assert answer.events[-1]["type"] == "error"


def test_case_56_stop_beside_calls_means_that_tools_are_called():
    assert heard(calls(_whole(0, "c1", "x")), STOP).stop == "tool_use"


def test_a_call_that_the_limit_cut_is_max_tokens():
    answer = heard(calls(call(0, id="c1", name="Read", arguments='{"path":"x"')), chunk({}, "length"))
    assert (answer.writer.stop_reason, answer.failure) == ("max_tokens", None)


def test_a_function_call_of_old_is_a_call():
    answer = heard(
        chunk({"role": "assistant", "content": None, "function_call": {"name": "Read", "arguments": ""}}),
        chunk({"function_call": {"arguments": '{"path":'}}),
        chunk({"function_call": {"arguments": '"x"}'}}),
        chunk({}, "function_call"),
    )
    assert [block[1][1:] for block in answer.blocks] == [("Read", {"path": "x"})]
    assert answer.stop == "tool_use"


def test_only_the_first_call_passes_where_the_client_wants_one_at_a_time():
    translation = a_translation()
    translation.single = True
    answer = heard(calls(_whole(0, "c1", "x"), _whole(1, "c2", "y")), CALLED, translation=translation)
    assert answer.blocks == [X]
    assert any("parallel" in note for note in translation.notes)


# ---- what has to be brought back


def test_case_35_what_was_thought_before_calls_is_kept_for_each_of_them():
    translation = a_translation(echo=True)
    answer = heard(
        chunk({"reasoning_content": "I shall "}),
        chunk({"reasoning_content": "read."}),
        calls(_whole(0, "c1", "x"), _whole(1, "c:2", "y")),
        CALLED,
        translation=translation,
    )
    assert translation.vault.get("c1", "openai") == Kept("openai", "", "I shall read.")
    assert [block.get("signature") for block in answer.content] == ["openai#", None, None]
    assert len(translation.vault) == 2
    assert translation.vault.get("c1", "kimi") is None


def test_case_35_the_second_tool_turn_brings_back_what_was_thought():
    translation = a_translation(echo=True)
    answer = heard(
        chunk({"reasoning_content": "I shall."}), calls(_whole(0, "c1", "x")), CALLED, translation=translation
    )
    for content in (answer.content, answer.content[1:]):  # the client may lose the thought
        following = a_translation(echo=True, vault=translation.vault)
        history = ({"role": "assistant", "content": content}, user(tool_result("c1")))
        assert sent(ask(user("a"), *history), following)["messages"][1]["reasoning_content"] == "I shall."


def test_nothing_is_kept_of_a_server_that_wants_nothing_back():
    translation = a_translation()
    heard(chunk({"reasoning_content": "Hm."}), calls(_whole(0, "c1", "x")), CALLED, translation=translation)
    assert len(translation.vault) == 0


def test_what_a_server_sends_along_with_a_call_is_kept():
    translation = a_translation()
    extra = {"google": {"thought_signature": "c2ln"}}
    heard(calls(_whole(0, "c1", "x") | {"extra_content": extra}), CALLED, DONE, translation=translation)
    history = (user("a"), said(tool_use("c1")), user(tool_result("c1")))
    call = sent(ask(*history), a_translation(vault=translation.vault))["messages"][1]["tool_calls"][0]
    assert call["extra_content"] == extra


# ---- documents


def test_calls_in_a_document_are_told_apart_by_their_place():
    answer = document({"content": None, "tool_calls": [_whole(None, "c1", "x"), _whole(None, "c2", "y")]}, "tool_calls")
    assert answer.blocks == [X, Y]
    nameless = document({"tool_calls": [_whole(None, None, "x"), _whole(None, None, "x")]}, "tool_calls")
    assert len(nameless.blocks) == 2


@pytest.mark.parametrize("arguments", ["{'path': 'x'}", '"{\\"path\\": \\"x\\"}"', '```json\n{"path": "x"}\n```'])
def test_case_55_nearly_json_in_a_document_is_mended_whoever_sent_it(arguments):
    translation = a_translation()
    message = {"tool_calls": [call(id="c1", name="Read", arguments=arguments)]}
    assert document(message, "tool_calls", translation).blocks == [X]
    assert any("repaired" in note for note in translation.notes)


def test_an_old_function_call_in_a_document_is_a_call():
    answer = document(
        {"content": None, "function_call": {"name": "Read", "arguments": '{"path":"x"}'}}, "function_call"
    )
    assert answer.content[0]["input"] == {"path": "x"}


def test_a_book_keeps_calls_in_the_order_in_which_they_began():
    book = CallBook()
    first, second = book.of(0, 3, "a", "A", ""), book.of(0, 1, "b", "B", "")
    assert list(book) == [first, second]
    assert book.of(0, 3, "", "", "x") is first
