"""The parameters of a Chat request: what is asked of another model, in its words, and nothing that it would refuse."""

from __future__ import annotations

import json

import pytest
from asking import ask, tool_result, tool_use, user
from asking import assistant as said
from chattalk import READ, WRITE, a_translation, check_request, sent
from pydantic import ValidationError

from dbproxy.model.codecs.request import Unroutable

GPT_5 = {
    "max_tokens_key": "max_completion_tokens",
    "developer": True,
    "output": 128_000,
    "efforts": ("minimal", "low", "medium", "high"),
    "refuses": frozenset({"temperature", "top_p", "stop"}),
}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
USER_ID = json.dumps(
    {
        "device_id": "d" * 64,
        "account_uuid": "11111111-2222-3333-4444-555555555555",
        "session_id": "99999999-8888-7777-6666-555555555555",
        "more": "m" * 40,
    }
)


@pytest.mark.parametrize("change", [{"nonsense": 1}, {"tool_choice": "any"}, {"messages": [{"role": "nobody"}]}])
def test_the_official_types_refuse_what_chat_does_not_know(change):
    body = sent(ask(user("hi")))
    with pytest.raises(ValidationError):
        check_request(body | change)


def test_a_plain_request_says_no_more_than_needed():
    body = sent(ask(user("hi"), stream=False))
    assert body == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 1000,
        "stream": False,
    }


def test_a_streamed_answer_is_asked_to_end_with_its_usage():
    body = sent(ask(user("hi")))
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


# ---- tools


def test_case_13_any_tool_is_required():
    body = sent(ask(user("hi"), tools=[READ], tool_choice={"type": "any"}))
    assert body["tool_choice"] == "required"


def test_case_14_no_tool_is_none_and_the_tools_stay():
    body = sent(ask(user("hi"), tools=[READ], tool_choice={"type": "none"}))
    assert body["tool_choice"] == "none"
    assert len(body["tools"]) == 1


def test_no_tool_leaves_the_tools_out_where_it_cannot_be_said():
    translation = a_translation(refuses=frozenset({"tool_choice"}))
    body = sent(ask(user("hi"), tools=[READ], tool_choice={"type": "none"}), translation)
    assert not body.keys() & {"tools", "tool_choice"}
    assert translation.notes


def test_case_15_parallel_calls_are_forbidden_upstream_and_here():
    translation = a_translation()
    body = sent(
        ask(user("hi"), tools=[READ], tool_choice={"type": "auto", "disable_parallel_tool_use": True}), translation
    )
    assert body["tool_choice"] == "auto"
    assert body["parallel_tool_calls"] is False
    assert translation.single


def test_case_15_parallel_calls_are_forbidden_here_alone_where_the_model_refuses_the_parameter():
    translation = a_translation(refuses=frozenset({"parallel_tool_calls"}))
    body = sent(
        ask(user("hi"), tools=[READ], tool_choice={"type": "auto", "disable_parallel_tool_use": True}), translation
    )
    assert "parallel_tool_calls" not in body
    assert translation.single


def test_parallel_calls_are_not_spoken_of_without_tools():
    body = sent(ask(user("hi"), tool_choice={"type": "auto", "disable_parallel_tool_use": True}))
    assert not body.keys() & {"parallel_tool_calls", "tool_choice", "tools"}


def test_case_16_an_empty_list_of_tools_goes_with_its_choice():
    body = sent(ask(user("hi"), tools=[], tool_choice={"type": "auto"}))
    assert not body.keys() & {"tools", "tool_choice"}


def test_one_tool_can_be_demanded():
    body = sent(ask(user("hi"), tools=[READ, WRITE], tool_choice={"type": "tool", "name": "Write"}))
    assert body["tool_choice"] == {"type": "function", "function": {"name": "Write"}}


def test_a_demanded_tool_that_is_not_there_becomes_any():
    translation = a_translation()
    body = sent(ask(user("hi"), tools=[READ], tool_choice={"type": "tool", "name": "Gone"}), translation)
    assert body["tool_choice"] == "required"
    assert translation.notes


LONG = "mcp__a_server_with_a_long_name__a_tool_with_an_even_longer_name_than_it"


def test_case_17_a_name_of_71_characters_is_shortened_everywhere_alike():
    assert len(LONG) == 71
    tool = {"name": LONG, "input_schema": {"type": "object"}}
    history = (user("hi"), said(tool_use("t1", LONG)), user(tool_result("t1")))
    translation = a_translation()
    body = sent(ask(*history, tools=[tool], tool_choice={"type": "tool", "name": LONG}), translation)
    short = body["tools"][0]["function"]["name"]
    assert len(short) <= 64
    assert body["messages"][1]["tool_calls"][0]["function"]["name"] == short
    assert body["tool_choice"]["function"]["name"] == short
    assert translation.names.back(short) == LONG


def test_case_18_names_equal_in_their_first_64_characters_stay_two():
    names = ["n" * 64 + "one", "n" * 64 + "two"]
    translation = a_translation()
    body = sent(ask(user("hi"), tools=[{"name": name, "input_schema": {}} for name in names]), translation)
    short = [tool["function"]["name"] for tool in body["tools"]]
    assert len(set(short)) == 2
    assert [translation.names.back(name) for name in short] == names


def test_case_19_keys_beside_the_schema_do_not_get_into_it():
    tool = {
        "type": "custom",
        "name": "Find",
        "description": "Finds.",
        "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
        "input_examples": [{"q": "x"}],
        "defer_loading": False,
        "eager_input_streaming": True,
        "cache_control": {"type": "ephemeral"},
    }
    assert sent(ask(user("hi"), tools=[tool]))["tools"] == [
        {
            "type": "function",
            "function": {"name": "Find", "description": "Finds.", "parameters": tool["input_schema"]},
        }
    ]


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": None}, {"properties": []}])
def test_case_20_an_empty_schema_is_an_object_without_properties(schema):
    body = sent(ask(user("hi"), tools=[{"name": "Go", "input_schema": schema}]))
    assert body["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}


def test_case_22_a_schema_keeps_its_definitions_and_words():
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"items": {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/n"}}},
        "$defs": {"n": {"type": "number", "exclusiveMinimum": 0}},
    }
    body = sent(ask(user("hi"), tools=[{"name": "Go", "input_schema": schema}]))
    assert body["tools"][0]["function"]["parameters"] == schema


def test_an_array_says_what_is_in_it():
    schema = {"type": "object", "properties": {"list": {"type": "array"}}}
    body = sent(ask(user("hi"), tools=[{"name": "Go", "input_schema": schema}]))
    assert body["tools"][0]["function"]["parameters"]["properties"]["list"] == {"type": "array", "items": {}}


def test_strict_goes_as_it_was_given():
    for strict in (True, False):
        function = sent(ask(user("hi"), tools=[READ | {"strict": strict}]))["tools"][0]["function"]
        assert function["strict"] is strict
        assert function["parameters"].get("additionalProperties") is (False if strict else None)


def test_a_strict_tool_that_would_be_refused_as_one_is_not_strict():
    translation = a_translation()
    function = sent(ask(user("hi"), tools=[WRITE | {"strict": True}]), translation)["tools"][0]["function"]
    assert function["strict"] is False
    assert function["parameters"] == WRITE["input_schema"]
    assert translation.notes


def test_strict_goes_nowhere_by_itself_or_against_a_refusal():
    assert "strict" not in sent(ask(user("hi"), tools=[READ]))["tools"][0]["function"]
    translation = a_translation(refuses=frozenset({"strict"}))
    assert "strict" not in sent(ask(user("hi"), tools=[READ | {"strict": True}]), translation)["tools"][0]["function"]


# ---- length and sampling


def test_case_23_gpt_5_gets_max_completion_tokens_and_nothing_that_it_refuses():
    translation = a_translation(**GPT_5)
    body = sent(
        ask(user("hi"), max_tokens=64_000, temperature=0.5, top_p=0.9, stop_sequences=["END"]),
        translation,
    )
    assert body["max_completion_tokens"] == 64_000
    assert not body.keys() & {"max_tokens", "temperature", "top_p", "stop"}
    assert translation.stops == ("END",)
    assert len(translation.notes) == 2


def test_case_24_max_tokens_is_clamped_to_what_the_model_can_and_noted():
    translation = a_translation(output=16_384)
    assert sent(ask(user("hi"), max_tokens=64_000), translation)["max_tokens"] == 16_384
    assert translation.notes == ["max_tokens was 64000, and is 16384 for this model"]
    assert sent(ask(user("hi"), max_tokens=16_384), a_translation(output=16_384))["max_tokens"] == 16_384


def test_max_tokens_leaves_room_for_the_prompt():
    # vLLM refuses a request whose prompt and max_tokens exceed the window together, in words that look like overflow.
    translation = a_translation(context=32_768)
    translation.estimate = 12_768
    assert sent(ask(user("hi"), max_tokens=64_000), translation)["max_tokens"] == 20_000


def test_an_answer_is_never_asked_to_be_too_short_to_be_one():
    # The prompt's size is a guess, and of some models the window is the prompt's alone.
    translation = a_translation(context=32_000)
    translation.estimate = 33_000
    assert sent(ask(user("hi"), max_tokens=64_000), translation)["max_tokens"] == 4_000
    assert sent(ask(user("hi"), max_tokens=64), translation)["max_tokens"] == 64


def test_temperature_and_top_p_go_together():
    body = sent(ask(user("hi"), temperature=0, top_p=0.5))
    assert (body["temperature"], body["top_p"]) == (0, 0.5)


def test_the_first_stop_sequences_are_sent_and_the_others_watched_for():
    translation = a_translation(most_stops=4)
    body = sent(ask(user("hi"), stop_sequences=["a", "b", "c", "d", "e", "f"]), translation)
    assert body["stop"] == ["a", "b", "c", "d"]
    assert translation.stops == ("e", "f")


def test_no_stop_sequence_is_sent_to_a_model_that_takes_none():
    translation = a_translation(most_stops=0)
    assert "stop" not in sent(ask(user("hi"), stop_sequences=["a"]), translation)
    assert translation.stops == ("a",)


# ---- effort


@pytest.mark.parametrize(
    ("thinking", "word"),
    [
        ({"type": "enabled", "budget_tokens": 8192}, "medium"),
        ({"type": "enabled", "budget_tokens": 8193}, "high"),
        ({"type": "disabled"}, "none"),
        ({"type": "adaptive"}, "medium"),
    ],
)
def test_case_25_a_budget_becomes_a_word(thinking, word):
    translation = a_translation(efforts=("none", "low", "medium", "high"))
    assert sent(ask(user("hi"), thinking=thinking), translation)["reasoning_effort"] == word


@pytest.mark.parametrize(
    ("efforts", "word"),
    [(("minimal", "low", "high"), "minimal"), (("low", "high"), "low"), (("high",), None), ((), None)],
)
def test_case_25_no_thinking_is_none_only_where_that_is_supported(efforts, word):
    body = sent(ask(user("hi"), thinking={"type": "disabled"}), a_translation(efforts=efforts))
    assert body.get("reasoning_effort") == word


def test_case_26_max_becomes_the_most_that_the_model_can():
    translation = a_translation(efforts=("low", "medium", "high"))
    body = sent(ask(user("hi"), thinking={"type": "adaptive"}, output_config={"effort": "max"}), translation)
    assert body["reasoning_effort"] == "high"
    assert translation.notes == ["effort max became high"]


def test_an_effort_is_left_out_beside_tools_where_chat_refuses_both():
    translation = a_translation(efforts=("low", "high"), tools_with_effort=False)
    body = sent(ask(user("hi"), thinking={"type": "adaptive"}, tools=[READ]), translation)
    assert "reasoning_effort" not in body
    assert translation.notes
    assert "reasoning_effort" in sent(ask(user("hi"), thinking={"type": "adaptive"}), translation)


@pytest.mark.parametrize("asked", [{"thinking": {"type": "adaptive"}}, {}])
def test_a_model_that_always_thinks_is_told_not_to_where_chat_refuses_tools_beside_it(asked):
    translation = a_translation(efforts=("none", "low", "high"), tools_with_effort=False)
    assert sent(ask(user("hi"), tools=[READ], **asked), translation)["reasoning_effort"] == "none"
    assert bool(translation.notes) is bool(asked)


def test_an_effort_is_left_out_with_a_note_where_the_model_takes_none():
    translation = a_translation()
    assert "reasoning_effort" not in sent(ask(user("hi"), thinking={"type": "adaptive"}), translation)
    assert translation.notes == ["effort medium was left out: the model takes none"]


# ---- the answer's form


def _form(schema, **can):
    translation = a_translation(**can)
    body = sent(ask(user("hi"), output_config={"format": {"type": "json_schema", "schema": schema}}), translation)
    return body.get("response_format"), translation


TITLE = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}


def test_a_schema_that_can_be_strict_is_closed_and_declared_so():
    form, _ = _form(TITLE)
    assert form == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": TITLE | {"additionalProperties": False}},
    }


@pytest.mark.parametrize(
    "schema",
    [
        TITLE | {"required": []},
        TITLE | {"additionalProperties": True},
        TITLE | {"anyOf": [TITLE]},
        TITLE | {"properties": {"title": {}}},
        TITLE | {"properties": {"title": {"type": "array"}}},
        TITLE | {"properties": {"title": {"type": "array", "uniqueItems": True, "items": {"type": "string"}}}},
        TITLE | {"properties": {"title": {"type": "object"}}},
        TITLE | {"properties": {"title": {"anyOf": [{"type": "null"}, {"type": "object"}]}}},
        TITLE | {"properties": {"title": {"type": "array", "items": {"type": ["object", "null"]}}}},
        TITLE | {"$defs": {"a": {"type": "object", "properties": {"b": {}}}}},
        {"type": "array", "items": {"type": "string"}},
    ],
)
def test_any_other_schema_goes_as_it_is(schema):
    form, _ = _form(schema)
    assert form["json_schema"] == {"name": "answer", "strict": False, "schema": schema}


def test_every_object_inside_a_strict_schema_is_closed():
    inner = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    schema = {
        "type": "object",
        "properties": {"list": {"type": "array", "items": inner}, "one": {"anyOf": [inner, {"$ref": "#/$defs/d"}]}},
        "required": ["list", "one"],
        "$defs": {"d": inner},
    }
    form, _ = _form(schema)
    assert form["json_schema"]["strict"] is True
    assert json.dumps(form).count('"additionalProperties": false') == json.dumps(schema).count('"properties"')


def test_a_schema_is_left_out_with_a_note_where_the_model_takes_none():
    form, translation = _form(TITLE, structured=False)
    assert form is None
    assert translation.notes


# ---- who asks


def test_case_28_no_account_leaves_and_the_names_are_short():
    assert len(USER_ID) > 200
    body = sent(ask(user("hi"), metadata={"user_id": USER_ID}))
    assert 0 < len(body["safety_identifier"]) <= 64
    assert 0 < len(body["prompt_cache_key"]) <= 64
    assert "user" not in body
    for secret in ("1111", "9999", "dddd"):
        assert secret not in json.dumps(body)


def test_the_same_user_and_session_have_the_same_names_every_time():
    one, two = (sent(ask(user(text), metadata={"user_id": USER_ID})) for text in ("a", "b"))
    assert one["safety_identifier"] == two["safety_identifier"]
    assert one["prompt_cache_key"] == two["prompt_cache_key"]
    other = sent(ask(user("a"), metadata={"user_id": USER_ID.replace("9999", "7777")}))
    assert other["prompt_cache_key"] != one["prompt_cache_key"]


def test_names_that_a_server_does_not_know_are_not_sent():
    translation = a_translation(refuses=frozenset({"safety_identifier"}))
    body = sent(ask(user("hi"), metadata={"user_id": USER_ID}), translation)
    assert body["user"]
    bare = a_translation(refuses=frozenset({"safety_identifier", "user", "prompt_cache_key", "stream_options"}))
    body = sent(ask(user("hi"), metadata={"user_id": USER_ID}), bare)
    assert not body.keys() & {"safety_identifier", "user", "prompt_cache_key", "stream_options"}


def test_a_fast_answer_is_a_matter_of_the_service_tier():
    assert sent(ask(user("hi"), speed="fast"))["service_tier"] == "priority"
    assert "service_tier" not in sent(ask(user("hi"), speed="standard"))
    assert "service_tier" not in sent(ask(user("hi"), speed="fast"), a_translation(refuses=frozenset({"service_tier"})))


def test_case_29_what_chat_does_not_know_is_left_out():
    translation = a_translation()
    body = sent(
        ask(
            user("hi"),
            top_k=5,
            context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            diagnostics={"previous_message_id": "msg_1"},
            inference_geo="us",
            an_unknown_key=[1],
            cache_control={"type": "ephemeral"},
        ),
        translation,
    )
    assert body.keys() == {"model", "messages", "max_tokens", "stream", "stream_options"}
    assert {note.split(" ")[0] for note in translation.notes} == {"top_k", "inference_geo"}


# ---- what cannot be asked


@pytest.mark.parametrize(
    ("fields", "can", "why"),
    [
        ({"tools": [SEARCH]}, {}, "server tool web_search"),
        (
            {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
            {"web_search": True},
            "server tool",
        ),
        ({"tools": [SEARCH | {"allowed_domains": ["a.example"]}]}, {"web_search": True}, "restricted"),
        ({"tools": [SEARCH | {"blocked_domains": ["a.example"]}]}, {"web_search": True}, "restricted"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, {}, "client tool bash_20250124"),
        ({"tools": [READ]}, {"tools": False}, "no tools"),
        ({"thread": {"type": "create"}}, {}, "thread"),
        ({"max_tokens": 0}, {}, "max_tokens"),
    ],
)
def test_what_cannot_be_asked_makes_the_request_unroutable(fields, can, why):
    with pytest.raises(Unroutable, match=why):
        sent(ask(user("hi"), **fields), a_translation(**can))


def test_a_web_search_is_asked_of_a_model_that_can():
    place = {"type": "approximate", "city": "Utrecht", "country": "NL", "region": None}
    translation = a_translation(web_search=True)
    body = sent(ask(user("hi"), tools=[SEARCH | {"user_location": place, "max_uses": 3}]), translation)
    assert body["web_search_options"] == {
        "user_location": {"type": "approximate", "approximate": {"city": "Utrecht", "country": "NL"}}
    }
    assert "tools" not in body
    assert translation.notes


def test_a_web_search_anywhere_has_no_options():
    assert sent(ask(user("hi"), tools=[SEARCH]), a_translation(web_search=True))["web_search_options"] == {}
