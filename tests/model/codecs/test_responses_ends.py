"""How answers of the Responses API end, well or not, and what else may come. Numbers are of seed-001 section 7."""

from __future__ import annotations

import json

import pytest
from responsestalk import WHOLE, Talk, a_full_talk, a_translation, heard, read, without

# ---- how it ends


@pytest.mark.parametrize(
    "lost", [(), ("refusal.delta",), ("refusal.delta", *WHOLE), ("refusal.delta", "item.done", *WHOLE)]
)
def test_case_62_responses_a_refusal_keeps_its_text(lost: tuple[str, ...]) -> None:
    talk = Talk().message("I cannot ", "do that.", kind="refusal")
    answer = heard(without(talk.end(), *lost))
    assert answer.blocks == [("text", "I cannot do that.")]
    assert answer.stop == "refusal"
    assert answer.message["stop_details"] == {"type": "refusal", "category": None, "explanation": "I cannot do that."}
    assert read(talk.document()).message == answer.message


def test_case_62_responses_a_content_filter_is_a_refusal_with_what_was_said() -> None:
    answer = heard(Talk().message("So far").end("incomplete", incomplete_details={"reason": "content_filter"}))
    assert answer.blocks == [("text", "So far")]
    assert answer.stop == "refusal"


@pytest.mark.parametrize("reason", ["max_output_tokens", "steered", None])
def test_case_63_responses_an_incomplete_answer_was_cut(reason: str | None) -> None:
    fields = {"incomplete_details": {"reason": reason}}
    for answer in (
        heard(Talk().message("So far").end("incomplete", **fields)),
        read(Talk().message("So far").document("incomplete", **fields)),
    ):
        assert answer.blocks == [("text", "So far")]
        assert answer.stop == "max_tokens"
        assert bool(answer.notes) is (reason != "max_output_tokens")


def test_an_answer_that_was_cut_inside_a_call() -> None:
    talk = Talk().call("Read", '{"path":"a', call_id="c")
    talk.output[-1]["status"] = "incomplete"
    fields = {"incomplete_details": {"reason": "max_output_tokens"}}
    for answer in (heard(talk.end("incomplete", **fields)), read(talk.document("incomplete", **fields))):
        assert answer.stop == "max_tokens"
        assert answer.failure is None
        assert b'{\\"path\\":\\"a' in answer.data
    # The same without a word on it is no answer.
    assert heard(Talk().call("Read", '{"path":"a', call_id="c").end()).failure is not None


def test_case_63_responses_a_failed_answer_is_an_error() -> None:
    error = {"code": "server_error", "message": "The model did not work."}
    for answer in (
        heard(Talk().message("So far").end("failed", error=error)),
        read(Talk().document("failed", error=error)),
    ):
        assert answer.failure is not None
        assert answer.failure.kind == "api_error"
        assert answer.failure.transient
        assert "The model did not work." in answer.failure.message


def test_a_failure_before_anything_was_said_leaves_nothing_to_see() -> None:
    answer = heard(Talk().end("failed", error={"code": "server_error", "message": "no"}))
    assert answer.failure is not None
    assert not answer.writer.substance


@pytest.mark.parametrize(
    ("code", "kind"),
    [("rate_limit_exceeded", "rate_limit_error"), ("server_is_overloaded", "overloaded_error")],
)
def test_a_code_tells_what_failed(code: str, kind: str) -> None:
    answer = heard([{"type": "error", "code": code, "message": "later", "param": None}])
    assert answer.failure is not None
    assert answer.failure.kind == kind


def test_a_context_that_overflows_is_recognised_inside_a_stream() -> None:
    error = {"type": "invalid_request_error", "code": "context_length_exceeded", "param": "input"}
    said = "Your input exceeds the context window of this model. Please adjust your input and try again."
    translation = a_translation(estimate=300_000)
    answer = heard([{"type": "error", "sequence_number": 2, "error": error | {"message": said}}], translation)
    assert answer.failure is not None
    assert answer.failure.overflow
    limit = translation.capabilities.context
    assert answer.failure.message == f"prompt is too long: {limit + 1} tokens > {limit} maximum"


def test_case_67_responses_an_error_in_mid_stream_has_the_nested_form() -> None:
    begun = Talk().message("So far").events
    for error in (
        {"type": "error", "code": "server_error", "message": "broke", "param": None, "sequence_number": 9},
        {"type": "error", "error": {"type": "server_error", "code": None, "message": "broke"}},
        {"error": {"message": "broke"}},
        {"error": "broke"},
    ):
        answer = heard([*begun, json.dumps(error).encode()])
        assert answer.message["content"] == [{"type": "text", "text": "So far"}]
        assert answer.events[-1] == {"type": "error", "error": {"type": "api_error", "message": "openai: broke"}}


def test_case_66_responses_a_stream_that_breaks_off_is_an_error() -> None:
    events = a_full_talk().end()[:-1]
    for cut in range(len(events)):
        answer = heard(events[:cut])
        assert answer.failure is not None
        assert answer.failure.transient
    assert heard([*events, b"[DONE]"]).failure is not None


def test_case_71_responses_what_follows_the_end_is_ignored() -> None:
    events = a_full_talk().end()
    assert heard([*events, b"[DONE]", b"garbage", *events]).message == heard(events).message


@pytest.mark.parametrize("status", ["cancelled", "queued", "in_progress"])
def test_an_answer_that_did_not_finish_is_an_error(status: str) -> None:
    assert read(Talk().message("x").document(status)).failure is not None


def test_a_cancelled_stream_is_an_error() -> None:
    events = Talk().message("So far").end()
    events[-1]["type"] = "response.cancelled"
    events[-1]["response"]["status"] = "cancelled"
    answer = heard(events)
    assert answer.failure is not None
    assert "cancelled" in answer.failure.message


def test_the_responses_own_status_counts() -> None:
    events = Talk().message("So far").end(incomplete_details={"reason": "max_output_tokens"})
    events[-1]["response"]["status"] = "incomplete"
    assert heard(events).stop == "max_tokens"


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b"<html>", b'{"output":7}', b'"x"'])
def test_a_document_that_is_no_response_is_an_error(body: bytes) -> None:
    assert read(body).failure is not None


def test_an_error_as_a_document() -> None:
    answer = read({"error": {"message": "no such model", "code": "server_error"}})
    assert answer.failure is not None
    assert answer.failure.message == "openai: no such model"


# ---- the unexpected


def test_gaps_in_the_numbers_are_noted() -> None:
    events = Talk().message("Hel", "lo").end()
    assert heard(events).notes == []
    del events[5]
    assert any("missing" in note for note in heard(events).notes)


def test_what_comes_twice_is_told_once() -> None:
    talk = a_full_talk().search("q").message("No.", kind="refusal").end()
    doubled = [again for event in talk for again in [event] * (1 if event["type"].endswith("delta") else 2)]
    assert heard(doubled).message == heard(talk).message


def test_whole_items_at_one_place_are_different_items() -> None:
    events = Talk().call("Read", "{}", call_id="a").message("x").call("Read", "{}", call_id="b").end()
    whole = [event | {"output_index": 0} for event in events if event["type"] == "response.output_item.done"]
    expected = [("tool_use", ("a", "Read", {})), ("text", "x"), ("tool_use", ("b", "Read", {}))]
    assert heard([*whole, events[-1]]).blocks == expected
    calls = [whole[0], whole[2]]
    events[-1]["response"]["output"] = []
    assert heard([*calls, events[-1]]).blocks == [expected[0], expected[2]]


def test_nothing_is_added_to_a_thought_behind_its_seal() -> None:
    events = Talk().reasoning(encrypted="gAAAA", id="rs_1").end()
    late = {"item_id": "rs_1", "output_index": 0, "summary_index": 0, "delta": "late"}
    answer = heard([*events[:-1], {"type": "response.reasoning_summary_text.delta", **late}, events[-1]])
    assert answer.blocks == [("thinking", "")]


def test_a_seal_names_the_item_as_it_was_when_it_was_whole() -> None:
    events = Talk().reasoning("t", encrypted="gAAAA", id="rs_1").end()
    for event in events:
        if event["type"] == "response.output_item.done":
            event["item"] = event["item"] | {"id": "rs_2"}
    assert heard(events[:-1] + Talk().end()[-1:]).content[0]["signature"] == "openai#rs_2:gAAAA"


def test_unknown_events_and_items_are_ignored_and_items_noted() -> None:
    events = Talk().message("x").end()
    strange = {"type": "image_generation_call", "id": "ig", "result": "AAAA", "status": "completed"}
    more = [
        {"type": "response.image_generation_call.partial_image", "error": {"message": "not ours"}, "output_index": 9},
        {"type": "response.output_item.added", "output_index": 9, "item": strange},
        {"type": "response.output_item.done", "output_index": 9, "item": strange},
        {"type": "response.output_item.done", "output_index": 10, "item": {"type": "a secret text " * 9}},
        {"type": "keepalive"},
    ]
    answer = heard([*events[:-1], *more, events[-1]])
    assert answer.blocks == [("text", "x")]
    assert "an item of the answer was left out: image_generation_call" in answer.notes
    assert not any("secret" in note for note in answer.notes)


def test_fields_of_the_wrong_type_are_as_if_they_were_absent() -> None:
    events = Talk().message("Hel", "lo").end()
    for event in events:
        event["content_index"] = "0"
        event["sequence_number"] = True
        if event["type"].endswith("text.delta"):
            event["output_index"] = None
    answer = heard(events)
    assert answer.blocks == [("text", "Hello")]
    assert answer.notes == []


def test_halves_of_a_character_do_no_harm() -> None:
    events = Talk().message("x").end()
    half = json.dumps(events[4] | {"delta": "@"}).replace("@", "\\ud83d").encode()
    answer = heard([*events[:4], half, *without(events[5:], *WHOLE, "item.done")])
    assert answer.blocks == [("text", "\ufffd")]
