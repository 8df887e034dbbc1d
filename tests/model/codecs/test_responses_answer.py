"""Answers of the Responses API as the client gets them. Every stream is read strictly; the events are those of the
official SDK's types unless a test breaks them. The numbers are those of seed-001 section 7."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asking import ASKED, ask, user
from responsestalk import FULL, USAGE, WHOLE, Talk, a_full_talk, a_translation, heard, items, read, seen, sent, without

from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.vault import Kept, Vault, join_signature

# ---- streams


def test_a_stream_as_the_api_sends_it() -> None:
    answer = heard(a_full_talk().end())
    assert answer.blocks == FULL
    assert answer.stop == "tool_use"
    assert answer.notes == []
    assert answer.content[0]["signature"] == join_signature("openai", "rs_1:gAAAA1")
    assert answer.message["id"] == "routed_resp_1"


def test_the_same_answer_as_a_document() -> None:
    streamed, whole = heard(a_full_talk().end()), read(a_full_talk().document())
    assert whole.message == streamed.message
    assert whole.notes == []


def test_the_name_of_an_event_may_be_missing_or_its_type() -> None:
    events = a_full_talk().end()
    assert heard(events, named=False).message == heard(events).message
    untyped = Talk().message("Hi").end()
    for event in untyped:
        event["name"] = event.pop("type")
    assert heard(untyped).message == heard(Talk().message("Hi").end()).message


def test_case_42_responses_every_event_has_its_two_lines_and_a_blank_one() -> None:
    answer = heard(a_full_talk().end())
    for event in answer.data.removesuffix(b"\n\n").split(b"\n\n"):
        name, data = event.split(b"\n")
        assert name.startswith(b"event: ")
        assert json.loads(data.removeprefix(b"data: "))["type"].encode() == name.removeprefix(b"event: ")


def test_case_43_responses_text_alone() -> None:
    answer = heard(Talk().message("Hel", "lo").end())
    assert [event["type"] for event in answer.events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert answer.blocks == [("text", "Hello")]
    assert answer.stop == "end_turn"


def test_case_44_responses_text_that_comes_with_the_part_is_not_lost() -> None:
    events = Talk().message("Hello").end()
    added = next(event for event in events if event["type"] == "response.content_part.added")
    delta = next(event for event in events if event["type"] == "response.output_text.delta")
    added["part"]["text"], delta["delta"] = "Hel", "lo"
    assert heard(events).blocks == [("text", "Hello")]
    assert heard(without(events, *WHOLE)).blocks == [("text", "Hello")]


def test_case_45_responses_a_thought_then_text() -> None:
    answer = heard(Talk().reasoning("Hm.").message("Yes.").end())
    assert answer.blocks == [("thinking", "Hm."), ("text", "Yes.")]
    assert [event["index"] for event in answer.events if event["type"] == "content_block_stop"] == [0, 1]


def test_case_46_responses_text_between_calls_has_blocks_of_its_own() -> None:
    answer = heard(Talk().message("a").call("Read", "{}", call_id="c").message("b").end())
    assert answer.blocks == [("text", "a"), ("tool_use", ("c", "Read", {})), ("text", "b")]


def test_case_47_responses_a_call_before_any_text() -> None:
    answer = heard(Talk().call("Read", '{"a":1}', call_id="c").end())
    assert answer.blocks == [("tool_use", ("c", "Read", {"a": 1}))]


@pytest.mark.parametrize("told_by", ["index", "id"])
def test_case_48_responses_parallel_calls_that_interleave(told_by: str) -> None:
    events = Talk().call("Read", '{"a":', "1}", call_id="a").call("Write", '{"b":', "2}", call_id="b").end()
    deltas = [event for event in events if event["type"].endswith("arguments.delta")]
    added = [event for event in events if event["type"].endswith("item.added")]
    mixed = [events[0], *added, deltas[0], deltas[2], deltas[1], deltas[3], events[-1]]
    if told_by == "id":  # as servers do that have but one place for everything
        mixed = [event | {"output_index": 0} if "output_index" in event else event for event in mixed]
    else:  # as gateways do that change every id
        mixed = [event | {"item_id": f"x{n}"} if "item_id" in event else event for n, event in enumerate(mixed)]
    answer = heard(mixed)
    assert answer.blocks == [("tool_use", ("a", "Read", {"a": 1})), ("tool_use", ("b", "Write", {"b": 2}))]


def test_case_49_responses_two_calls_of_one_name() -> None:
    answer = heard(Talk().call("Read", '{"a":1}', call_id="a").call("Read", '{"a":2}', call_id="b").end())
    assert [inside for _, inside in answer.blocks] == [("a", "Read", {"a": 1}), ("b", "Read", {"a": 2})]


def test_case_50_responses_a_call_without_place_or_id_is_one_block() -> None:
    events = []
    for event in Talk().call("Read", '{"a":', "1}", call_id="c").end():
        event = {name: value for name, value in event.items() if name not in ("output_index", "item_id")}
        if "item" in event:
            event["item"] = {name: value for name, value in event["item"].items() if name not in ("id", "call_id")}
        events.append(event)
    answer = heard(events)
    [(kind, (id, name, arguments))] = answer.blocks
    assert (kind, name, arguments) == ("tool_use", "Read", {"a": 1})
    assert id == "c" or id.startswith("toolu_")


def test_case_51_responses_a_name_that_comes_at_the_end_is_waited_for() -> None:
    events = Talk().call("Read", '{"a":', "1}", call_id="c").end()
    answer = heard(without(events, "item.added"))
    assert answer.blocks == [("tool_use", ("c", "Read", {"a": 1}))]
    for event in events:
        if event["type"].endswith("item.added"):
            event["item"]["name"] = ""
    assert heard(events).blocks == answer.blocks


def test_case_52_responses_a_call_that_comes_in_one_event() -> None:
    events = Talk().call("Read", '{"a":1}', call_id="c").end()
    only = [event for event in events if event["type"] in ("response.output_item.done", "response.completed")]
    answer = heard(only)
    assert answer.blocks == [("tool_use", ("c", "Read", {"a": 1}))]
    assert answer.stop == "tool_use"


@pytest.mark.parametrize("pieces", [(), ("",), ("{}",)])
def test_case_53_responses_a_call_without_arguments_has_an_empty_input(pieces: tuple[str, ...]) -> None:
    assert heard(Talk().call("Read", *pieces, call_id="c").end()).blocks == [("tool_use", ("c", "Read", {}))]
    assert read(Talk().call("Read", *pieces, call_id="c").document()).blocks == [("tool_use", ("c", "Read", {}))]


@pytest.mark.parametrize(
    "lost",
    [
        ("arguments.delta",),
        ("arguments.delta", "arguments.done"),
        ("arguments.delta", "item.done"),
        ("arguments.delta", "arguments.done", "item.done"),
        ("arguments.done",),
        ("item.done",),
        (),
    ],
)
def test_case_54_responses_arguments_are_told_once_wherever_they_stand(lost: tuple[str, ...]) -> None:
    answer = heard(without(Talk().call("Read", '{"a":', "1}", call_id="c").end(), *lost))
    assert answer.blocks == [("tool_use", ("c", "Read", {"a": 1}))]


def test_arguments_that_came_in_part_are_completed() -> None:
    events = Talk().call("Read", '{"a":', "1}", call_id="c").end()
    del events[4]  # the second piece
    assert events[3]["delta"] == '{"a":'
    assert heard(events).blocks == [("tool_use", ("c", "Read", {"a": 1}))]


@pytest.mark.parametrize("lost", [WHOLE, ("text.delta",), ("text.delta", *WHOLE), ("text.delta", "item.done"), ()])
def test_texts_and_thoughts_are_told_once_wherever_they_stand(lost: tuple[str, ...]) -> None:
    answer = heard(without(a_full_talk().end(), *lost))
    assert answer.blocks == FULL
    assert answer.content[0]["signature"] or "item.done" in lost


def test_a_piece_that_was_lost_is_told_at_the_end() -> None:
    events = without(Talk().message("Hel", "lo").end(), "content_part.done", "item.done")
    del events[5]
    assert heard(events).blocks == [("text", "Hello")]


def test_what_differs_at_the_end_is_not_told_twice() -> None:
    events = Talk().message("Hello").end()
    events[4]["delta"] = "Hullo"
    answer = heard(events)
    assert answer.blocks == [("text", "Hullo")]
    assert any("two ways" in note for note in answer.notes)


def test_a_final_response_is_told_where_nothing_streamed() -> None:
    events = a_full_talk().end()
    answer = heard([events[0], events[-1]])
    assert answer.message == heard(events).message


def test_a_final_response_adds_what_never_streamed() -> None:
    first = Talk().message("a").events
    whole = Talk().message("a").call("Read", "{}", call_id="c").message("b").end()
    answer = heard([*first, whole[-1]])
    assert answer.blocks == [("text", "a"), ("tool_use", ("c", "Read", {})), ("text", "b")]


def test_a_final_response_without_what_streamed_changes_nothing() -> None:
    events = a_full_talk().end()
    events[-1]["response"]["output"] = events[-1]["response"]["output"][1:]  # the places are others now
    assert heard(events).blocks == FULL
    for item in events[-1]["response"]["output"]:
        item["id"] = "another"  # and the ids
    assert heard(events).blocks == FULL
    events[-1]["response"]["output"] = []
    assert heard(events).blocks == FULL


def test_two_messages_are_two_texts() -> None:
    answer = heard(Talk().message("I look.", phase="commentary").message("Done.", phase="final_answer").end())
    assert answer.blocks == [("text", "I look."), ("text", "Done.")]


def test_thoughts_that_are_not_sealed_stay_apart() -> None:
    talk = Talk().reasoning("a", encrypted="").reasoning("b", encrypted="").message("c")
    assert heard(talk.end()).blocks == [("thinking", "a"), ("thinking", "b"), ("text", "c")]


def test_of_a_summary_and_the_thought_itself_the_first_is_told() -> None:
    events = Talk().reasoning("short").message("c").end()
    at = next(n for n, event in enumerate(events) if event["type"].endswith("summary_text.delta"))
    where = {"item_id": events[at]["item_id"], "output_index": 0, "content_index": 0, "sequence_number": 0}
    thought = {"type": "response.reasoning_text.delta", "delta": "at length", **where}
    assert heard([*events[: at + 1], thought, *events[at + 1 :]]).blocks[0] == ("thinking", "short")
    assert heard([*events[:at], thought, *events[at + 1 :]]).blocks[0] == ("thinking", "at length")


def test_reasoning_text_of_open_models() -> None:
    item = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm, so."}]}
    where = {"item_id": "r", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.reasoning_text.delta", "delta": "Hm,", **where},
        {"type": "response.reasoning_text.delta", "delta": " so.", **where},
        {"type": "response.reasoning_text.done", "text": "Hm, so.", **where},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        *Talk().message("Yes.").end()[-1:],
    ]
    assert heard(events).blocks[0] == ("thinking", "Hm, so.")
    assert heard(events[2:]).blocks[0] == ("thinking", "Hm, so.")
    assert heard(events[3:]).blocks[0] == ("thinking", "Hm, so.")


# ---- what comes back at the next request


def test_case_75_responses_the_seal_stands_directly_before_its_blocks_end() -> None:
    answer = heard(a_full_talk().end())
    at = next(n for n, event in enumerate(answer.events) if event.get("delta", {}).get("type") == "signature_delta")
    assert answer.events[at]["index"] == 0
    assert answer.events[at + 1] == {"type": "content_block_stop", "index": 0}
    assert sum(event.get("delta", {}).get("type") == "signature_delta" for event in answer.events) == 1


def test_the_seal_of_the_beginning_is_not_taken() -> None:
    answer = heard(without(a_full_talk().end(), "item.done", "completed") + Talk().end("incomplete"))
    assert "signature" not in answer.content[0] or not answer.content[0]["signature"]


def test_a_sealed_thought_without_words_is_kept() -> None:
    answer = heard(Talk().reasoning(encrypted="gAAAA", id="rs_9").message("Yes.").end())
    assert answer.content[0] == {"type": "thinking", "thinking": "", "signature": "openai#rs_9:gAAAA"}


def test_reasoning_comes_back_to_the_model_from_the_client_or_from_the_vault() -> None:
    vault = Vault()
    answer = heard(a_full_talk().end(), a_translation(vault=vault))
    assert vault.get("call_a", "openai") == Kept("openai", "rs_1:gAAAA1", "I should look.\n\nBoth files.")
    assert vault.get("call_b", "openai") == vault.get("call_a", "openai")
    results = [{"type": "tool_result", "tool_use_id": id, "content": "x"} for id in ("call_a", "call_b")]
    kept = [user("go"), {"role": "assistant", "content": seen(answer)}, user(*results)]
    lost = [user("go"), {"role": "assistant", "content": seen(answer)[1:]}, user(*results)]
    body = sent(ask(*kept), a_translation(vault=vault))
    assert sent(ask(*lost), a_translation(vault=vault)) == body
    assert items(body)[1:3] == [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "I should look.\n\nBoth files."}],
            "encrypted_content": "gAAAA1",
        },
        {"type": "message", "role": "assistant", "content": "I look at both.", "phase": "commentary"},
    ]
    # Another family gets neither.
    assert "gAAAA1" not in json.dumps(sent(ask(*kept), a_translation(vault=vault, family="elsewhere")))


def test_reasoning_belongs_to_the_calls_that_follow_it_and_to_no_others() -> None:
    talk = Talk().call("Read", "{}", call_id="before").reasoning("a", encrypted="A", id="rs_a")
    talk.call("Read", "{}", call_id="one").reasoning("b", encrypted="B", id="rs_b").call("Read", "{}", call_id="two")
    for events in (talk.end(), None):
        vault = Vault()
        if events is None:
            read(talk.document(), a_translation(vault=vault))
        else:
            heard(events, a_translation(vault=vault))
        assert vault.get("before", "openai") is None
        assert vault.get("one", "openai") == Kept("openai", "rs_a:A", "a")
        assert vault.get("two", "openai") == Kept("openai", "rs_b:B", "b")


def test_a_phase_comes_back_with_its_message() -> None:
    vault = Vault()
    heard(Talk().message("All ", "done.", phase="final_answer").end(), a_translation(vault=vault))
    heard(Talk().message("No phase.").end(), a_translation(vault=vault))
    history = [
        user("go"),
        {"role": "assistant", "content": "All done.\n"},
        user("go"),
        {"role": "assistant", "content": "No phase."},
        user("?"),
    ]
    said = [item for item in items(sent(ask(*history), a_translation(vault=vault))) if item["role"] == "assistant"]
    assert [item.get("phase") for item in said] == ["final_answer", None]
    # It does not end a turn that goes on.
    call = {"type": "tool_use", "id": "c", "name": "Read", "input": {}}
    history = [user("go"), {"role": "assistant", "content": [{"type": "text", "text": "All done."}, call]}]
    assert "phase" not in items(sent(ask(*history), a_translation(vault=vault)))[1]


def test_without_a_family_nothing_is_sealed() -> None:
    vault = Vault()
    answer = heard(a_full_talk().end(), a_translation(vault=vault, family=""))
    assert answer.blocks == FULL
    assert not any(block.get("signature") for block in answer.content)
    assert len(vault) == 0


# ---- names, ids, the model


def test_case_77_responses_a_strange_id_is_one_that_the_client_takes() -> None:
    vault = Vault()
    talk = Talk().reasoning("t", id="rs_1").call("Read", "{}", call_id="call_ab:c/1")
    [_, block] = heard(talk.end(), a_translation(vault=vault)).content
    assert block["id"].replace("_", "").replace("-", "").isalnum()
    assert vault.get(block["id"], "openai") is not None
    history = [user("go"), {"role": "assistant", "content": [block]}]
    assert items(sent(ask(*history)), "function_call")[0]["call_id"] == "call_ab:c/1"


def test_case_17_responses_the_clients_own_name_of_a_tool_comes_back() -> None:
    long = "mcp__server__" + "x" * 58
    translation = a_translation(names=ToolNames([long]))
    talk = Talk().call(translation.names.out(long), "{}", call_id="c")
    assert heard(talk.end(), translation).blocks == [("tool_use", ("c", long, {}))]


def test_case_84_responses_the_model_is_the_one_that_the_client_asked_for() -> None:
    for answer in (heard(Talk().message("x").end()), read(Talk().message("x").document())):
        assert answer.message["model"] == ASKED
        assert not answer.message["id"].startswith("msg_")


def test_one_call_at_a_time_where_the_model_cannot_be_told() -> None:
    vault = Vault()
    answer = heard(a_full_talk().end(), a_translation(vault=vault, single=True))
    assert answer.blocks == FULL[:3]
    assert vault.get("call_b", "openai") is None


def test_a_stop_sequence_ends_the_answer() -> None:
    answer = heard(Talk().message("one E", "ND two").end(), a_translation(stops=("END",)))
    assert answer.blocks == [("text", "one ")]
    assert (answer.stop, answer.message["stop_sequence"]) == ("stop_sequence", "END")


# ---- usage


def test_case_58_responses_usage_stands_in_the_last_event_with_the_cache_apart() -> None:
    usage = USAGE | {"input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 300}}
    answer = heard(Talk().message("x").end(usage=usage))
    assert answer.usage == {
        "input_tokens": 100,
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 600,
        "output_tokens": 50,
        "output_tokens_details": {"thinking_tokens": 30},
    }


@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": 0, "output_tokens": 0}, {"input_tokens": "many"}])
def test_case_60_responses_without_usage_it_is_estimated(usage: Any) -> None:
    events = Talk().message("x" * 70).end(usage=None)
    events[-1]["response"]["usage"] = usage
    answer = heard(events, a_translation(estimate=123))
    assert answer.usage["input_tokens"] == 123
    assert answer.usage["output_tokens"] == (1 if usage and usage.get("output_tokens") == 0 else 20)


def test_case_61_responses_the_start_has_an_estimate() -> None:
    answer = heard(Talk().message("x").end(), a_translation(estimate=123, scale=2.0))
    assert answer.events[0]["message"]["usage"]["input_tokens"] == 246


def test_case_83_responses_a_document_with_900_of_1000_cached() -> None:
    answer = read(Talk().message("x").document())
    assert (answer.usage["input_tokens"], answer.usage["cache_read_input_tokens"]) == (100, 900)
    assert answer.usage["output_tokens"] == 50  # the thought is in it, once


def test_absurd_counts_are_bounded() -> None:
    events = Talk().message("x").end()
    events[-1]["response"]["usage"] = {"input_tokens": 10**300, "output_tokens": -5}
    answer = heard(events, a_translation(scale=1.5))
    assert answer.usage["input_tokens"] < 10**17
    assert answer.usage["output_tokens"] == 1
