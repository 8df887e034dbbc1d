"""Gemini's answers: chunks as the official types have them in, a grammatical Messages stream or one error out."""

from __future__ import annotations

import json

import pytest
from asking import assistant, tool_result, user
from foreigntalk import READ, ask, chunk, for_gemini, from_gemini, function_call, hear, to_gemini, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.model.codecs.gemini import GEMINI
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.vault import Kept, Vault
from dbproxy.model.codecs.writer import MessageWriter

USAGE = {"promptTokenCount": 1000, "cachedContentTokenCount": 900, "candidatesTokenCount": 20, "thoughtsTokenCount": 5}


def say(text: str) -> dict:
    return {"text": text}


def think(text: str, signature: str = "") -> dict:
    return {"text": text, "thought": True} | ({"thoughtSignature": signature} if signature else {})


def blocks(heard) -> list[tuple]:
    """Each block by its kind and what is in it."""
    inner = {"text": "text", "thinking": "thinking", "tool_use": "input", "server_tool_use": "input"}
    return [(block["type"], block[inner.get(block["type"], "content")]) for block in heard.content]


# ---- streams


def test_case_43_gemini_a_stream_of_text():
    heard = from_gemini(chunk(say("Good ")), chunk(say("day")), chunk(say(""), finish="STOP", usageMetadata=USAGE))
    assert blocks(heard) == [("text", "Good day")]
    assert heard.message["stop_reason"] == "end_turn"
    events = [line for line in heard.raw.split(b"\n") if line.startswith(b"event: ")]
    assert [event[7:].decode() for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_case_42_gemini_every_event_has_a_name_and_data_and_ends_with_a_blank_line():
    heard = from_gemini(chunk(think("hm")), chunk(say("x")), chunk(function_call(), finish="STOP"))
    assert heard.raw.endswith(b"\n\n")
    for event in heard.raw[:-2].split(b"\n\n"):
        name, data = event.split(b"\n")
        assert name == b"event: " + json.loads(data.removeprefix(b"data: "))["type"].encode()


def test_case_44_gemini_the_first_chunks_text_is_not_lost():
    assert from_gemini(chunk(say("all"), finish="STOP")).text == "all"


def test_case_45_gemini_thoughts_come_before_the_text_in_a_block_of_their_own():
    heard = from_gemini(chunk(think("h")), chunk(think("m"), say("Good ")), chunk(say("day"), finish="STOP"))
    assert blocks(heard) == [("thinking", "hm"), ("text", "Good day")]


def test_case_46_gemini_text_around_a_call():
    heard = from_gemini(chunk(say("a")), chunk(function_call(path="x"), say("b")), chunk(say("c"), finish="STOP"))
    assert blocks(heard) == [("text", "a"), ("tool_use", {"path": "x"}), ("text", "bc")]
    assert heard.message["stop_reason"] == "tool_use"


def test_case_47_gemini_a_call_without_any_text():
    heard = from_gemini(chunk(function_call(path="x")), chunk(finish="STOP"))
    assert blocks(heard) == [("tool_use", {"path": "x"})]


def test_case_48_and_49_gemini_parallel_calls_of_one_tool_are_two_blocks():
    heard = from_gemini(chunk(function_call(path="x"), function_call(path="y"), finish="STOP"))
    assert blocks(heard) == [("tool_use", {"path": "x"}), ("tool_use", {"path": "y"})]
    ids = [block["id"] for block in heard.content]
    assert len(set(ids)) == 2
    assert all(id.startswith("toolu_") for id in ids)


def test_a_call_keeps_the_id_that_gemini_gave_and_the_clients_name():
    long = "mcp__a_server_with_a_very_long_name__a_tool_whose_name_is_longer_still_x1"
    translation = for_gemini(names=ToolNames([long]))
    heard = from_gemini(
        chunk(function_call(translation.names.out(long), id="a/1"), finish="STOP"), translation=translation
    )
    call = heard.content[0]
    assert call["name"] == long
    body = to_gemini(ask(user("x"), assistant({**call}), user(tool_result(call["id"]))), translation)
    assert body["contents"][1]["parts"][0]["functionCall"]["id"] == "a/1"


def test_a_call_is_over_at_once():
    writer = MessageWriter(for_gemini())
    reader = GEMINI.stream(writer.translation, writer)
    reader.feed(b"", chunk(function_call(path="x")))
    assert b"event: content_block_stop" in writer.take()


@pytest.mark.parametrize("name", ["default_api.Read", "default_api:Read", "Read"])
def test_a_module_that_the_model_imagines_is_no_part_of_the_name(name):
    assert from_gemini(chunk(function_call(name), finish="STOP")).content[0]["name"] == "Read"


def test_one_call_at_a_time():
    translation = for_gemini()
    once = {"type": "auto", "disable_parallel_tool_use": True}
    to_gemini(ask(user("x"), tools=[READ], tool_choice=once), translation)
    heard = from_gemini(chunk(function_call(path="x"), function_call(path="y"), finish="STOP"), translation=translation)
    assert blocks(heard) == [("tool_use", {"path": "x"})]
    assert translation.notes


def test_case_77_gemini_ids_that_the_messages_api_does_not_allow_are_spelled_otherwise():
    heard = from_gemini(chunk(function_call(id="call_ab:c/1"), finish="STOP"))
    assert heard.content[0]["id"] == "dbpid_Y2FsbF9hYjpjLzE"


def test_stop_sequences_that_gemini_does_not_know_end_the_answer():
    translation = for_gemini(stops=("END",))
    heard = from_gemini(chunk(say("one EN")), chunk(say("D two")), translation=translation)
    assert heard.text == "one "
    assert (heard.message["stop_reason"], heard.message["stop_sequence"]) == ("stop_sequence", "END")


def test_text_that_might_begin_a_stop_sequence_stands_before_the_call_behind_it():
    heard = from_gemini(
        chunk(say("see EN"), function_call()), chunk(finish="STOP"), translation=for_gemini(stops=("END",))
    )
    assert blocks(heard) == [("text", "see EN"), ("tool_use", {})]


# ---- signatures


def test_case_34_gemini_a_signature_is_kept_for_its_call_and_comes_back_with_it():
    vault = Vault()
    heard = from_gemini(
        chunk(function_call(path="x", signature="c2lnMQ=="), function_call(path="y"), finish="STOP"),
        translation=for_gemini(vault=vault),
    )
    ids = [block["id"] for block in heard.content]
    assert vault.get(ids[0], "gemini") == Kept("gemini", "c2lnMQ==")
    assert vault.get(ids[1], "gemini") is None
    body = to_gemini(
        ask(user("x"), {"role": "assistant", "content": heard.content}, user(*map(tool_result, ids))),
        for_gemini(vault=vault),
    )
    assert [part.get("thoughtSignature") for part in body["contents"][1]["parts"]] == ["c2lnMQ==", None]


def test_case_34_gemini_a_call_behind_a_thought_keeps_its_signature_when_our_memory_is_gone():
    heard = from_gemini(chunk(think("hm", "b3du")), chunk(function_call(signature="c2lnMQ==")), chunk(finish="STOP"))
    assert heard.content[0]["signature"] == "gemini#c2lnMQ=="
    history = {"role": "assistant", "content": heard.content}
    body = to_gemini(ask(user("x"), history, user(tool_result(heard.content[1]["id"]))), for_gemini(vault=Vault()))
    assert body["contents"][1]["parts"] == [
        {"functionCall": {"name": "Read", "args": {}}, "thoughtSignature": "c2lnMQ=="},
    ]


def test_case_75_gemini_the_signature_stands_directly_before_the_end_of_its_thought():
    for parts in ([think("hm", "c2ln"), say("x")], [think("hm"), think("", "c2ln"), say("x")], [think("hm", "c2ln")]):
        heard = from_gemini(*(chunk(part) for part in parts), chunk(finish="STOP"))
        assert heard.content[0] == {"type": "thinking", "thinking": "hm", "signature": "gemini#c2ln"}
    lines = heard.raw.split(b"\n")
    at = next(number for number, line in enumerate(lines) if b"signature_delta" in line)
    assert lines[at + 2] == b"event: content_block_stop"


def test_a_signature_without_a_thought_adds_no_block():
    # A turn that ends with a thought would hide the agent's report.
    for last in ({"text": "", "thoughtSignature": "c2ln"}, think("", "c2ln")):
        heard = from_gemini(chunk(say("report")), chunk(last, finish="STOP"))
        assert blocks(heard) == [("text", "report")]
    assert blocks(from_gemini(chunk(think("", "c2ln"), say("x"), finish="STOP"))) == [("text", "x")]


def test_a_signature_that_comes_in_a_part_of_its_own_before_a_call_is_kept_for_it():
    heard = from_gemini(chunk(think("", "c2ln")), chunk(function_call(), finish="STOP"))
    assert [block.get("signature") for block in heard.content] == ["gemini#c2ln", None]


def test_a_thought_without_a_signature_tells_whose_it_is():
    heard = from_gemini(chunk(think("hm"), say("x"), finish="STOP"))
    assert heard.content[0]["signature"] == "gemini#"


# ---- the end


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("STOP", "end_turn"),
        ("MAX_TOKENS", "max_tokens"),
        ("SAFETY", "refusal"),
        ("RECITATION", "refusal"),
        ("PROHIBITED_CONTENT", "refusal"),
        ("BLOCKLIST", "refusal"),
        ("SPII", "refusal"),
        ("LANGUAGE", "refusal"),
    ],
)
def test_case_62_gemini_why_it_stopped_with_any_text_kept(finish, reason):
    heard = from_gemini(chunk(say("so far")), chunk(finish=finish))
    assert (heard.text, heard.message["stop_reason"]) == ("so far", reason)


def test_a_call_turns_the_reason_into_tool_use_and_only_a_regular_one():
    assert from_gemini(chunk(function_call(), finish="STOP")).message["stop_reason"] == "tool_use"
    assert from_gemini(chunk(function_call(), finish="SAFETY")).message["stop_reason"] == "refusal"


@pytest.mark.parametrize(
    "finish", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "OTHER", "MISSING_THOUGHT_SIGNATURE"]
)
def test_what_is_no_end_of_the_models_own_is_a_failure_that_may_pass(finish):
    before = from_gemini(chunk(finish=finish))
    assert before.writer.failure is not None
    assert before.writer.failure.transient
    assert finish in before.writer.failure.message
    assert not before.writer.substance
    after = from_gemini(chunk(say("so far")), chunk(finish=finish))
    assert after.error["type"] == "api_error"


def test_case_64_gemini_safety_without_parts_is_a_whole_answer_that_refuses():
    safety = {"candidates": [{"finishReason": "SAFETY", "index": 0}], "usageMetadata": {"promptTokenCount": 9}}
    heard = from_gemini(json.dumps(safety).encode())
    assert (heard.content, heard.message["stop_reason"]) == ([], "refusal")
    assert heard.message["usage"]["input_tokens"] == 9
    assert "SAFETY" in heard.message["stop_details"]["explanation"]


def test_case_64_gemini_a_blocked_prompt_is_a_refusal():
    for value in (
        {"promptFeedback": {"blockReason": "SAFETY"}},
        {"candidates": [], "promptFeedback": {"blockReason": "OTHER"}},
    ):
        heard = from_gemini(json.dumps(value).encode())
        assert (heard.content, heard.message["stop_reason"]) == ([], "refusal")
        assert whole(GEMINI, value, for_gemini()).message["stop_reason"] == "refusal"


def test_case_65_gemini_an_empty_completion_is_a_whole_answer():
    heard = from_gemini(chunk(finish="STOP"))
    assert (heard.content, heard.message["stop_reason"]) == ([], "end_turn")


def test_case_66_gemini_an_end_without_a_reason_is_an_error():
    heard = from_gemini(chunk(say("so f")))
    assert heard.error["type"] == "api_error"
    nothing = from_gemini()
    assert (nothing.raw, nothing.writer.failure.transient) == (b"", True)
    unsaid = from_gemini(chunk(say("x"), finish="FINISH_REASON_UNSPECIFIED"))
    assert unsaid.error


@pytest.mark.parametrize("form", ["object", "list"])
def test_case_67_gemini_an_error_inside_the_stream(form):
    error = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    data = json.dumps([error] if form == "list" else error).encode()
    heard = from_gemini(chunk(say("so f")), data)
    assert heard.error == {"type": "overloaded_error", "message": "gemini: The model is overloaded."}
    assert from_gemini(data, translation=for_gemini(family="")).writer.failure.message.startswith("gemini: ")
    before = from_gemini(data)
    assert (before.raw, before.writer.failure.status) == (b"", 529)


def test_a_context_that_overflows_is_told_in_the_words_on_which_the_client_compacts():
    message = "The input token count (1300000) exceeds the maximum number of tokens allowed (1048576)."
    error = {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}
    failure = from_gemini(json.dumps(error).encode()).writer.failure
    assert failure.status == 400
    assert failure.message == "prompt is too long: 1300000 tokens > 1048576 maximum"


def test_a_chunk_that_is_no_json_is_an_error_and_nothing_behind_the_end_is():
    assert from_gemini(chunk(say("x")), b'{"candidates": [', chunk(finish="STOP")).error
    assert from_gemini(b"", chunk(say("x"), finish="STOP"), b"[DONE]", b"garbage").text == "x"


# ---- usage


def test_case_58_and_59_gemini_the_last_count_is_the_one_and_the_cached_part_stands_apart():
    heard = from_gemini(
        chunk(say("a"), usageMetadata={"promptTokenCount": 1000, "candidatesTokenCount": 3}),
        chunk(say("b"), usageMetadata={**USAGE, "candidatesTokenCount": 7}),
        chunk(finish="STOP", usageMetadata=USAGE),
    )
    usage = heard.message["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (100, 900, 25)
    assert usage["output_tokens_details"] == {"thinking_tokens": 5}


def test_usage_may_come_behind_the_reason():
    heard = from_gemini(chunk(say("a"), finish="STOP"), json.dumps({"usageMetadata": USAGE}).encode())
    assert heard.message["usage"]["output_tokens"] == 25


def test_case_60_and_61_gemini_without_counts_they_are_estimated():
    heard = from_gemini(chunk(say("a" * 70), finish="STOP"), translation=for_gemini(estimate=321))
    assert json.loads(heard.raw.split(b"\n")[1][6:])["message"]["usage"]["input_tokens"] == 321
    assert (heard.message["usage"]["input_tokens"], heard.message["usage"]["output_tokens"]) == (321, 20)


# ---- documents


def test_case_83_gemini_a_document_with_cached_tokens():
    value = json.loads(chunk(think("hm"), say("x"), finish="STOP", usageMetadata=USAGE))
    heard = whole(GEMINI, value, for_gemini())
    assert blocks(heard) == [("thinking", "hm"), ("text", "x")]
    assert (heard.message["usage"]["input_tokens"], heard.message["usage"]["cache_read_input_tokens"]) == (100, 900)


def test_case_84_gemini_the_model_is_the_one_that_was_asked_for():
    heard = from_gemini(chunk(say("x"), finish="STOP"))
    assert heard.message["model"] == "claude-sonnet-5-5"
    assert not heard.message["id"].startswith("msg_")
    assert "resp-1" in heard.message["id"]


def test_a_list_of_chunks_is_a_document():
    value = [json.loads(chunk(say("a"))), json.loads(chunk(say("b"), finish="STOP", usageMetadata=USAGE))]
    heard = whole(GEMINI, value, for_gemini())
    assert (heard.text, heard.message["usage"]["output_tokens"]) == ("ab", 25)


@pytest.mark.parametrize("body", [b"", b"<html>", b"3", b"{}", b"[]", b'[{"candidates": 3}]', b'"x"'])
def test_a_document_that_is_no_answer_fails(body):
    heard = whole(GEMINI, body, for_gemini())
    assert heard.raw == b""
    assert heard.writer.failure.transient
    assert ("no JSON object" in heard.writer.failure.message) == (body[:1] not in b"{[" or not body)


# ---- what it found on the web


def test_case_76_gemini_a_search_is_shown_as_the_messages_apis_own():
    grounding = {
        "webSearchQueries": ["trio python"],
        "groundingChunks": [
            {"web": {"uri": "https://example.com/a", "title": "A"}},
            {"web": {"uri": "https://example.com/b"}},
        ],
        "groundingSupports": [
            {"segment": {"startIndex": 0, "endIndex": 4, "text": "Trio"}, "groundingChunkIndices": [0, 9]},
        ],
    }
    told = json.loads(chunk(say(" is nice."), finish="STOP"))
    told["candidates"][0]["groundingMetadata"] = grounding
    heard = from_gemini(chunk(say("Trio")), json.dumps(told).encode())
    assert heard.kinds == ["text", "server_tool_use", "web_search_tool_result"]
    text, call, result = heard.content
    assert [(cited["url"], cited["cited_text"]) for cited in text["citations"]] == [("https://example.com/a", "Trio")]
    assert call["input"] == {"query": "trio python"}
    assert call["id"].startswith("srvtoolu_")
    assert result["tool_use_id"] == call["id"]
    assert [(hit["url"], hit["title"]) for hit in result["content"]] == [
        ("https://example.com/a", "A"),
        ("https://example.com/b", "https://example.com/b"),
    ]
    assert heard.message["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    ("grounding", "query", "hits"),
    [
        ({"webSearchQueries": ["a", 3, "b"]}, {"query": "a; b"}, 0),
        ({"groundingChunks": [{"web": {"uri": "https://example.com"}}, {"maps": {}}]}, {"query": ""}, 1),
    ],
)
def test_a_search_may_tell_only_what_was_asked_or_only_what_was_found(grounding, query, hits):
    told = json.loads(chunk(say("x"), finish="STOP"))
    told["candidates"][0]["groundingMetadata"] = grounding
    heard = whole(GEMINI, told, for_gemini())
    assert heard.content[1]["input"] == query
    assert len(heard.content[2]["content"]) == hits
    assert from_gemini(chunk(say("x"), finish="STOP")).kinds == ["text"]


def test_parts_that_have_no_twin_are_noted():
    translation = for_gemini()
    picture = {"inlineData": {"mimeType": "image/png", "data": "eA=="}}
    heard = from_gemini(chunk(picture, say("x"), finish="STOP", usageMetadata=USAGE), translation=translation)
    assert blocks(heard) == [("text", "x")]
    assert translation.notes == ["a part of the answer that is neither text nor a call was left out"]


# ---- whatever comes

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_parts = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(max_size=5) | _json,
        "thought": st.booleans() | _json,
        "thoughtSignature": st.text(max_size=3) | _json,
        "functionCall": _json
        | st.fixed_dictionaries({"name": st.text(max_size=5) | _json, "args": _json}, optional={"id": _json}),
        "inlineData": _json,
    },
)
_numbers = ["promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount"]
_chunks = st.fixed_dictionaries(
    {},
    optional={
        "candidates": _json
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "content": _json | st.fixed_dictionaries({"parts": st.lists(_parts, max_size=4) | _json}),
                    "finishReason": st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY", "OTHER", "?"]) | _json,
                    "groundingMetadata": _json
                    | st.fixed_dictionaries({"groundingChunks": _json, "webSearchQueries": _json}),
                },
            ),
            max_size=2,
        ),
        "usageMetadata": _json | st.dictionaries(st.sampled_from(_numbers), _json, max_size=4),
        "promptFeedback": _json | st.fixed_dictionaries({"blockReason": _json}),
        "responseId": _json,
        "error": _json,
    },
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_chunks | _json, max_size=6), st.booleans(), st.booleans())
def test_case_95_gemini_whatever_comes_is_a_grammatical_answer_or_one_error(chunks, once, stops):
    fields = {"single": once, "stops": ("a", "bc") if stops else ()}
    hear(GEMINI, [json.dumps(value).encode() for value in chunks], for_gemini(**fields))
    whole(GEMINI, chunks, for_gemini(**fields))
