"""Streamed answers of servers that speak Chat, as the client gets them: well-formed ones, whatever their spelling."""

from __future__ import annotations

import json

import pytest
from chattalk import DONE, USAGE, a_translation, chunk, document, heard

CONTENT = chunk({"content": "Hello"})
STOP = chunk({}, "stop")


def _thinking(**can):
    return a_translation(reasoning="think", **can)


# ---- the stream


def test_case_42_every_event_has_its_name_its_data_and_a_blank_line():
    answer = heard(CONTENT, STOP, DONE)
    for event in answer.data.removesuffix(b"\n\n").split(b"\n\n"):
        name, data = event.split(b"\n")
        assert name == b"event: " + json.loads(data.removeprefix(b"data: "))["type"].encode()


def test_case_43_a_text_is_one_block():
    answer = heard(
        chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"}), chunk({"content": "lo"}), STOP
    )
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


def test_a_piece_of_text_is_passed_on_when_it_comes():
    assert heard(CONTENT, end=False).events[-1]["delta"] == {"type": "text_delta", "text": "Hello"}


def test_case_44_the_first_piece_may_hold_role_and_text():
    assert heard(chunk({"role": "assistant", "content": "Hi"}), STOP).blocks == [("text", "Hi")]


def test_case_65_an_answer_without_anything_is_an_empty_message():
    answer = heard(chunk({"role": "assistant", "content": ""}), STOP, chunk(usage=USAGE), DONE)
    assert answer.blocks == []
    assert answer.stop == "end_turn"


def test_case_74_repeated_first_chunks_begin_one_message():
    first = chunk({"role": "assistant", "content": "", "refusal": None})
    answer = heard(first, first, CONTENT, first, STOP)
    assert [event["type"] for event in answer.events].count("message_start") == 1
    assert answer.blocks == [("text", "Hello")]


def test_case_84_the_answer_names_the_model_that_the_client_asked_for():
    answer = heard(chunk({"content": "Hi"}, model="gpt-4o-2024-08-06"), STOP)
    assert answer.message["model"] == "claude-sonnet-5-5"
    assert b"gpt-4o" not in answer.data
    assert answer.message["id"] == "routed_chatcmpl-1"


def test_an_id_without_end_is_cut():
    assert len(heard(chunk({"content": "Hi"}, "stop", id="x" * 10_000)).message["id"]) < 200


def test_an_answer_without_an_id_gets_one():
    assert heard(chunk({"content": "Hi"}, id=None), STOP).message["id"] == "m1"


# ---- thoughts


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "Hm."},
        {"reasoning": "Hm."},
        {"reasoning_content": "Hm.", "reasoning": "Hm."},
        {"reasoning": "Hm.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
        {
            "reasoning_details": [
                {"type": "reasoning.summary", "summary": "Hm."},
                {"type": "reasoning.encrypted", "data": "x"},
            ]
        },
        {"reasoning": {"content": "Hm."}},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]},
    ],
)
def test_case_45_a_thought_is_a_block_of_its_own_before_the_text(delta):
    answer = heard(chunk({"content": None} | delta), chunk({"content": "Yes", "reasoning_content": None}), STOP)
    assert answer.blocks == [("thinking", "Hm."), ("text", "Yes")]


def test_a_thought_that_shares_a_chunk_with_text_comes_first():
    assert heard(chunk({"content": "Yes", "reasoning_content": "Hm."}), STOP).blocks == [
        ("thinking", "Hm."),
        ("text", "Yes"),
    ]


def test_a_thought_goes_on_over_chunks_and_empty_pieces():
    pieces = [chunk({"reasoning_content": piece, "content": ""}) for piece in ("I ", "", "think", None)]
    assert heard(*pieces, CONTENT, STOP).blocks == [("thinking", "I think"), ("text", "Hello")]


def test_case_75_the_signature_stands_directly_before_the_end_of_its_block():
    translation = a_translation(echo=True)
    answer = heard(chunk({"reasoning_content": "Hm."}), CONTENT, STOP, translation=translation)
    assert answer.content[0]["signature"] == "openai#"
    kinds = [event.get("delta", event).get("type") for event in answer.events]
    assert kinds[2:5] == ["thinking_delta", "signature_delta", "content_block_stop"]


def test_a_thought_is_signed_at_the_end_of_an_answer_of_nothing_else():
    answer = heard(chunk({"reasoning_content": "Hm."}), STOP, translation=a_translation(echo=True))
    assert answer.content == [{"type": "thinking", "thinking": "Hm.", "signature": "openai#"}]


def test_a_thought_that_nobody_wants_back_has_no_signature():
    assert heard(chunk({"reasoning_content": "Hm."}), STOP).content[0]["signature"] == ""


TAGGED = "<think>\nI wonder.\n</think>\n\nYes, <b>indeed</b>."


@pytest.mark.parametrize("size", range(1, 12))
def test_case_73_think_tags_are_found_wherever_they_are_cut(size):
    pieces = [chunk({"content": TAGGED[at : at + size]}) for at in range(0, len(TAGGED), size)]
    answer = heard(*pieces, STOP, translation=_thinking())
    assert answer.blocks == [("thinking", "I wonder.\n"), ("text", "Yes, <b>indeed</b>.")]


@pytest.mark.parametrize("text", ["<think>I wonder", "<think>I wonder</thi"])
def test_case_73_a_thought_without_end_is_closed_at_the_end(text):
    answer = heard(chunk({"content": text}), STOP, translation=_thinking())
    assert answer.blocks == [("thinking", text.removeprefix("<think>"))]


def test_case_73_tags_are_text_where_the_model_is_not_known_for_them():
    assert heard(chunk({"content": TAGGED}), STOP).blocks == [("text", TAGGED)]


def test_tagged_thoughts_are_echoed_too():
    answer = heard(chunk({"content": TAGGED}), STOP, translation=_thinking(echo=True))
    assert answer.content[0]["signature"] == "openai#"


# ---- how it ends


@pytest.mark.parametrize(
    ("finish", "stop"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("eos", "end_turn"),
        ("max_tokens", "max_tokens"),
        ("something_new", "end_turn"),
    ],
)
def test_reasons_to_stop_in_the_client_s_words(finish, stop):
    assert heard(CONTENT, chunk({}, finish)).stop == stop


def test_an_unknown_reason_is_noted():
    translation = a_translation()
    heard(CONTENT, chunk({}, "something_new"), translation=translation)
    assert translation.notes[0].endswith("something_new")


def test_text_and_reason_may_share_a_chunk():
    answer = heard(chunk({"content": "Hi"}, "length"), DONE)
    assert (answer.blocks, answer.stop) == ([("text", "Hi")], "max_tokens")


def test_text_behind_a_reason_is_not_lost():
    assert heard(chunk({"content": "Hel"}, "stop"), chunk({"content": "lo"}, "stop"), DONE).blocks == [
        ("text", "Hello")
    ]


def test_case_57_calls_that_were_never_made_are_the_end_of_a_turn():
    assert heard(CONTENT, chunk({}, "tool_calls")).stop == "end_turn"


def test_case_62_a_filtered_answer_is_a_refusal_and_keeps_its_text():
    answer = heard(CONTENT, chunk({}, "content_filter"), DONE)
    assert answer.blocks == [("text", "Hello")]
    assert answer.stop == "refusal"
    assert answer.message["stop_details"] == {"type": "refusal", "category": None, "explanation": None}


def test_case_62_a_refusal_is_shown_and_explained():
    pieces = [chunk({"content": None, "refusal": piece}) for piece in ("I can", "not.")]
    answer = heard(chunk({"role": "assistant", "refusal": None}), *pieces, STOP, DONE)
    assert answer.blocks == [("text", "I cannot.")]
    assert answer.stop == "refusal"
    assert answer.message["stop_details"]["explanation"] == "I cannot."


def test_case_66_a_stream_that_breaks_off_is_an_error():
    answer = heard(CONTENT)
    assert answer.events[-1]["type"] == "error"
    assert answer.failure.status == 502
    assert answer.failure.transient


@pytest.mark.parametrize("events", [(), (DONE,), (chunk({"role": "assistant"}),), (CONTENT, DONE)])
def test_case_66_nothing_is_whole_without_a_reason_to_stop(events):
    assert heard(*events).failure is not None


def test_case_71_the_end_is_known_by_its_reason_where_done_is_missing():
    assert heard(CONTENT, STOP).stop == "end_turn"


def test_case_71_nothing_behind_done_is_read():
    answer = heard(CONTENT, STOP, b" [DONE] ", b"<garbage", CONTENT, b'{"error":{"message":"no"}}', DONE)
    assert answer.blocks == [("text", "Hello")]
    assert answer.failure is None


# ---- errors


def test_case_67_an_error_behind_text_is_an_error_event():
    answer = heard(CONTENT, b'{"error":{"message":"Overloaded","type":"server_error","code":"server_is_overloaded"}}')
    assert answer.events[-1] == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "openai: Overloaded"},
    }
    assert answer.message["content"][0]["text"] == "Hello"


@pytest.mark.parametrize(
    ("event", "status", "kind"),
    [
        ({"error": {"message": "no"}}, 500, "api_error"),
        ({"error": "no"}, 500, "api_error"),
        ({"error": {"message": "slow down", "code": 429}}, 429, "rate_limit_error"),
        ({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429, "rate_limit_error"),
        ({"error": {"message": "bad", "code": 400}, "choices": [{"delta": {}, "finish_reason": "error"}]}, 400, None),
        ({"object": "error", "message": "no", "type": "BadRequestError"}, 500, "api_error"),
        ({"detail": "no"}, 500, "api_error"),
        ([{"error": {"message": "no", "code": 503}}], 529, "overloaded_error"),
        ({"choices": [{"delta": {}, "finish_reason": "error"}]}, 502, "api_error"),
        ({"choices": [{"delta": {}, "finish_reason": "insufficient_system_resource"}]}, 502, "api_error"),
    ],
)
def test_an_error_before_anything_is_a_failure_that_another_can_make_good(event, status, kind):
    answer = heard(json.dumps(event).encode())
    assert answer.failure is not None
    assert answer.failure.status == status
    assert kind in (None, answer.failure.kind)
    assert not answer.writer.substance


def test_an_event_named_error_is_one_whatever_it_holds():
    for data in (b"upstream went away", b"{}", b'{"choices":[]}'):
        assert heard(data, name=b"error").failure.status == 500


def test_a_context_that_overflows_in_mid_stream_is_told_in_the_client_s_measure():
    translation = a_translation(context=1000)
    translation.scale = 2.0
    answer = heard(b'{"error":{"message":"too many tokens","code":"context_length_exceeded"}}', translation=translation)
    assert answer.failure.overflow
    assert answer.failure.message == "prompt is too long: 2001 tokens > 2000 maximum"


def test_a_chunk_that_was_cut_is_an_error_since_text_is_missing():
    assert heard(CONTENT, STOP[:-4], STOP).failure is not None


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b": OPENROUTER PROCESSING",
        b"ping",
        b"null",
        b"[]",
        b'"x"',
        b"12",
        b"{}",
        b'{"choices":[],"message":"queued"}',
    ],
)
def test_noise_between_chunks_is_passed_over(noise):
    assert heard(noise, CONTENT, noise, STOP, noise).blocks == [("text", "Hello")]


# ---- other spellings


@pytest.mark.parametrize(
    "delta",
    [
        {"content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}, {"type": "reference"}]},
        {"content": ["Hel", "lo"]},
        {"content": {"text": "Hello"}},
        {"content": "Hello", "tool_calls": None, "function_call": None, "annotations": None, "refusal": ""},
        {"content": "Hello", "tool_calls": []},
        {"content": "Hello", "reasoning": 7, "tool_calls": "none"},
    ],
)
def test_a_text_is_read_however_it_is_wrapped(delta):
    assert heard(chunk(delta), STOP).blocks == [("text", "Hello")]


def test_a_whole_message_in_a_chunk_is_read_if_nothing_came_in_pieces():
    whole = chunk(choices=[{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}])
    assert heard(whole).blocks == [("text", "Hello")]
    assert heard(CONTENT, whole).blocks == [("text", "Hello")]


def test_a_character_cut_in_two_is_whole_again():
    pieces = (rb"a\ud83d", rb"\ude00b\ud83d", rb"c")
    events = [b'{"choices":[{"delta":{"content":"%b"}}]}' % piece for piece in pieces]
    assert heard(*events, STOP).blocks == [("text", "a\U0001f600b\ufffdc")]


def test_a_half_character_at_the_end_is_no_text():
    assert heard(rb'{"choices":[{"delta":{"content":"a\ud83d"},"finish_reason":"stop"}]}').blocks == [("text", "a")]


def test_a_stop_sequence_that_is_watched_for_here_ends_the_answer():
    translation = a_translation()
    translation.stops = ("END",)
    answer = heard(chunk({"content": "one E"}), chunk({"content": "ND two"}), STOP, DONE, translation=translation)
    assert answer.blocks == [("text", "one ")]
    assert (answer.stop, answer.message["stop_sequence"]) == ("stop_sequence", "END")


# ---- web search

CITED = {
    "type": "url_citation",
    "url_citation": {"url": "https://a.example", "title": "A", "start_index": 0, "end_index": 5},
}


def test_citations_stand_at_their_text():
    answer = heard(CONTENT, chunk({"annotations": [CITED, {"type": "other"}, 5]}), STOP)
    assert answer.content[0]["citations"] == [
        {
            "type": "web_search_result_location",
            "url": "https://a.example",
            "title": "A",
            "cited_text": "",
            "encrypted_index": "",
        }
    ]
    assert len(answer.content) == 1


def test_citations_in_a_document_stand_at_its_text_though_calls_follow():
    call = {"id": "c1", "function": {"name": "Read", "arguments": "{}"}}
    answer = document({"content": "Hello", "tool_calls": [call], "annotations": [CITED]}, "tool_calls")
    assert [len(block.get("citations", ())) for block in answer.content] == [1, 0]


def test_what_a_web_search_found_is_a_result_that_the_client_can_list():
    answer = heard(CONTENT, chunk({"annotations": [CITED, CITED]}), STOP, translation=a_translation(web_search=True))
    text, search, found = answer.content
    assert text["text"] == "Hello"
    assert (search["type"], search["name"], search["id"]) == ("server_tool_use", "web_search", found["tool_use_id"])
    assert [(hit["url"], hit["title"]) for hit in found["content"]] == [("https://a.example", "A")]
    assert answer.stop == "end_turn"
