"""What servers that speak Chat count, and answers of theirs that come as one document."""

from __future__ import annotations

import json

import pytest
from chattalk import DONE, USAGE, a_translation, chunk, document, document_of, heard

CONTENT = chunk({"content": "Hello"})
STOP = chunk({}, "stop")


def _counts(usage, *, translation=None):
    answer = heard(CONTENT, STOP, chunk(usage=usage), DONE, translation=translation).usage
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    return tuple(answer[name] for name in names)


def test_case_58_usage_behind_the_end_is_in_the_last_event():
    answer = heard(CONTENT, STOP, chunk(usage=USAGE), DONE)
    assert (answer.usage["input_tokens"], answer.usage["output_tokens"]) == (20, 5)


@pytest.mark.parametrize("usage", [USAGE, None])
def test_case_58_usage_may_come_before_the_end_and_with_it(usage):
    for events in (
        [chunk({"content": "Hello"}, usage=USAGE), STOP],
        [CONTENT, chunk({}, "stop", usage=USAGE)],
        [chunk({"content": "Hello"}, usage=USAGE), chunk({}, "stop", usage=usage)],
        [CONTENT, chunk(choices=[{"delta": {}, "finish_reason": "stop", "usage": USAGE}])],
    ):
        assert heard(*events).usage["input_tokens"] == 20


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 900}}, (100, 900, 0, 7)),
        ({"prompt_tokens_details": {"cached_tokens": 800, "cache_write_tokens": 150}}, (50, 800, 150, 7)),
        ({"prompt_cache_hit_tokens": 900, "prompt_cache_miss_tokens": 100}, (100, 900, 0, 7)),
        ({"cached_tokens": 900}, (100, 900, 0, 7)),
        ({"prompt_tokens_details": None, "completion_tokens_details": None}, (1000, 0, 0, 7)),
        ({"prompt_tokens_details": {"cached_tokens": "many"}}, (1000, 0, 0, 7)),
        # A server that leaves what its cache read out of the prompt.
        ({"prompt_tokens_details": {"cached_tokens": 5000}}, (1000, 5000, 0, 7)),
    ],
)
def test_case_58_what_a_cache_read_and_wrote_is_told_apart(usage, counts):
    assert _counts({"prompt_tokens": 1000, "completion_tokens": 7} | usage) == counts


def test_case_59_the_last_of_cumulative_counts_is_the_count():
    events = [chunk({"content": "x"}, usage={"prompt_tokens": 20, "completion_tokens": count}) for count in (1, 2, 3)]
    assert heard(*events, STOP, DONE).usage["output_tokens"] == 3


def test_case_60_what_nobody_counted_is_estimated():
    translation = a_translation()
    translation.estimate = 321
    answer = heard(CONTENT, STOP, translation=translation)
    assert answer.usage["input_tokens"] == 321
    assert answer.usage["output_tokens"] > 0
    assert translation.notes


@pytest.mark.parametrize(
    "usage", [None, 5, [], {}, {"prompt_tokens": 0}, {"prompt_tokens": "20"}, {"prompt_tokens": -1}]
)
def test_case_60_counts_that_are_none_are_estimated(usage):
    assert heard(CONTENT, chunk({}, "stop", usage=usage), DONE).usage["input_tokens"] == 1


def test_case_61_the_first_event_holds_an_estimate_in_the_client_s_measure():
    translation = a_translation()
    translation.estimate, translation.scale = 100, 2.0
    start = heard(CONTENT, end=False, translation=translation).events[0]
    assert start["message"]["usage"]["input_tokens"] == 200


def test_counts_are_told_in_the_client_s_measure():
    translation = a_translation()
    translation.scale = 2.0
    assert _counts({"prompt_tokens": 1000, "completion_tokens": 7, "cached_tokens": 900}, translation=translation) == (
        200,
        1800,
        0,
        14,
    )


@pytest.mark.parametrize(("total", "output"), [(60, 40), (70, 50)])
def test_thoughts_are_counted_once(total, output):
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": 40,
        "total_tokens": total,
        "completion_tokens_details": {"reasoning_tokens": 10},
    }
    answer = heard(CONTENT, STOP, chunk(usage=usage))
    assert answer.usage["output_tokens"] == output
    assert answer.usage["output_tokens_details"] == {"thinking_tokens": 10}


def test_counts_beyond_all_measure_break_nothing():
    body = b'{"choices":[],"usage":{"prompt_tokens":1%b,"completion_tokens":9%b}}' % (b"0" * 400, b"0" * 30)
    assert heard(CONTENT, STOP, body).failure is None


# ---- documents


def test_case_83_a_document_s_counts_are_split():
    answer = document(
        {"role": "assistant", "content": "Hello"},
        usage={"prompt_tokens": 1000, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 900}},
    )
    assert (answer.usage["input_tokens"], answer.usage["cache_read_input_tokens"]) == (100, 900)
    assert answer.blocks == [("text", "Hello")]


def test_a_document_s_thought_comes_first():
    answer = document({"role": "assistant", "content": "Yes", "reasoning_content": "Hm."})
    assert answer.blocks == [("thinking", "Hm."), ("text", "Yes")]


def test_a_document_s_tags_are_thoughts():
    answer = document({"content": "<think>Hm.</think>Yes"}, translation=a_translation(reasoning="think"))
    assert answer.blocks == [("thinking", "Hm."), ("text", "Yes")]


def test_a_document_s_content_may_come_in_parts():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Yes"}]
    assert document({"content": parts}).blocks == [("thinking", "Hm."), ("text", "Yes")]


@pytest.mark.parametrize(("finish", "stop"), [("stop", "end_turn"), (None, "end_turn"), ("length", "max_tokens")])
def test_a_document_is_whole_whatever_it_says_of_its_end(finish, stop):
    assert document({"content": "Hi"}, finish).stop == stop


def test_case_62_a_refusal_in_a_document_is_one():
    answer = document({"content": None, "refusal": "No."})
    assert (answer.blocks, answer.stop) == ([("text", "No.")], "refusal")


def test_case_84_a_document_names_the_client_s_model():
    assert document({"content": "Hi"}).message["model"] == "claude-sonnet-5-5"


def test_case_68_a_document_that_is_an_error_has_its_status_and_no_stream():
    answer = document_of(b'{"error":{"message":"slow down","code":"rate_limit_exceeded"}}')
    assert answer.failure.status == 429
    assert answer.data == b""


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"7", b"{}", b'{"choices":[]}', b'{"choices":{}}', b'{"choices":[']
)
def test_a_body_that_holds_no_answer_is_a_failure(body):
    answer = document_of(body)
    assert answer.failure.status == 502
    assert answer.failure.transient


def test_a_document_whose_choice_is_empty_is_an_empty_message():
    assert document_of(json.dumps({"choices": [None]}).encode()).blocks == []
