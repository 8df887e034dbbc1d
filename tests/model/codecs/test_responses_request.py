"""Messages requests in the words of the Responses API. Each written one is checked by the official SDK's types; the
numbers are those of seed-001 section 7."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pydantic
import pytest
from asking import ask, assistant, thinking, tool_result, tool_use, user
from responsestalk import PLAIN, a_tool, a_translation, check_request, items, sent

from dbproxy.model.codecs.capabilities import Capabilities
from dbproxy.model.codecs.naming import client_id
from dbproxy.model.codecs.request import INTERRUPTED, NO_OUTPUT, Unroutable
from dbproxy.model.codecs.schemas import with_items
from dbproxy.model.codecs.vault import Kept, Vault

PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}


def called(id: str = "call_1", **fields: Any) -> list[dict[str, Any]]:
    """A conversation in which one call was made and answered."""
    return [user("go"), assistant("I look.", tool_use(id)), user(tool_result(id, **fields), "and now?")]


def result_of(content: Any, **fields: Any) -> Any:
    return items(sent(ask(*called(content=content, **fields))), "function_call_output")[0]["output"]


def test_the_check_of_requests_refuses_what_the_api_does_not_know() -> None:
    body = sent(ask(user("hi")))
    check_request(body)
    for wrong in (
        {"top_k": 5},
        {"tool_choice": "any"},
        {"input": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}]},
    ):
        with pytest.raises(pydantic.ValidationError):
            check_request(body | wrong)


# ---- the top of the body


def test_the_least_request() -> None:
    assert sent(ask(user("hi"))) == {
        "model": "gpt-5.5",
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "store": False,
        "stream": True,
        "max_output_tokens": 1000,
        "include": ["reasoning.encrypted_content"],
    }


def test_the_system_prompt_is_the_instructions_without_the_billing_line() -> None:
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.329;"},
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be brief."},
    ]
    body = sent(ask(user("hi"), system=system))
    assert body["instructions"] == "You are an agent.\n\nBe brief."
    assert b"billing" not in json.dumps(body).encode()
    assert b"cache_control" not in json.dumps(body).encode()


def test_a_system_turn_in_the_middle_is_the_developers_in_its_place() -> None:
    body = sent(ask(user("hi"), assistant("hello"), {"role": "system", "content": "Tools changed."}, user("go on")))
    assert [(item["role"], item["content"]) for item in items(body)] == [
        ("user", [{"type": "input_text", "text": "hi"}]),
        ("assistant", "hello"),
        ("developer", [{"type": "input_text", "text": "Tools changed."}]),
        ("user", [{"type": "input_text", "text": "go on"}]),
    ]


def test_case_23_responses_a_reasoning_model_gets_max_output_tokens_and_nothing_that_it_refuses() -> None:
    translation = a_translation()
    body = sent(
        ask(user("hi"), max_tokens=64000, temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["END"]), translation
    )
    assert body["max_output_tokens"] == 64000
    assert not {"temperature", "top_p", "top_k", "stop", "max_tokens", "stop_sequences"} & set(body)
    assert translation.stops == ("END",)  # looked for in the answer
    assert len(translation.notes) == 3  # temperature, top_p, top_k


def test_temperature_and_top_p_go_to_a_model_that_takes_them() -> None:
    body = sent(ask(user("hi"), temperature=0, top_p=0.9), a_translation("gpt-4o"))
    assert (body["temperature"], body["top_p"]) == (0, 0.9)


@pytest.mark.parametrize(("asked", "limit"), [(64000, 16384), (16384, 16384), (1, 16)])
def test_max_tokens_is_kept_within_what_the_model_allows_with_a_note(asked: int, limit: int) -> None:
    translation = a_translation("gpt-4o")
    assert sent(ask(user("hi"), max_tokens=asked), translation)["max_output_tokens"] == limit
    assert bool(translation.notes) is (asked != limit)


def test_an_unknown_window_clamps_nothing() -> None:
    translation = a_translation(capabilities=Capabilities(api="responses"))
    assert sent(ask(user("hi"), max_tokens=500_000), translation)["max_output_tokens"] == 500_000
    assert "max_output_tokens" not in sent(ask(user("hi"), max_tokens=None), translation)


def test_case_28_responses_user_and_session_are_digests_and_no_account_leaves() -> None:
    account, session = "9a1f0c52-0000-4f0e-9d4f-6a0f9d1f7c11", "5f0c1a52-3f5e-4f0e-9d4f-6a0f9d1f7c11"
    who = json.dumps({"device_id": "d" * 64, "account_uuid": account, "session_id": session})
    body = sent(ask(user("hi"), metadata={"user_id": who}))
    assert 0 < len(body["safety_identifier"]) <= 64
    assert 0 < len(body["prompt_cache_key"]) <= 64
    assert "metadata" not in body
    assert "user" not in body
    for private in (account, session, "d" * 64):
        assert private not in json.dumps(body)
    again = sent(ask(user("another"), metadata={"user_id": who}))
    assert again["prompt_cache_key"] == body["prompt_cache_key"]


def test_what_has_no_twin_is_left_out() -> None:
    odd = {"context_management": {"edits": []}, "diagnostics": {}, "anything": 1, "betas": ["x"]}
    assert sent(ask(user("hi"), **odd)) == sent(ask(user("hi")))


def test_speed_becomes_a_service_tier() -> None:
    assert sent(ask(user("hi"), speed="fast"))["service_tier"] == "priority"


def test_what_a_model_refuses_is_left_out_by_name() -> None:
    translation = a_translation()
    refuses = frozenset({"safety_identifier", "reasoning.summary", "store", "model", "input", "max_output_tokens"})
    translation.capabilities = replace(translation.capabilities, refuses=refuses)
    body = sent(ask(user("hi"), metadata={"user_id": "someone"}, thinking={"type": "adaptive"}), translation)
    assert body["reasoning"] == {"effort": "medium"}
    assert set(body) == {"model", "input", "stream", "include", "reasoning"}
    assert sum("refuses" in note for note in translation.notes) == 4


# ---- thinking


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 8192}}, {"effort": "medium", "summary": "auto"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 8193}}, {"effort": "high", "summary": "auto"}),
        ({"thinking": {"type": "disabled"}}, {"effort": "none"}),
        ({"thinking": {"type": "adaptive"}}, {"effort": "medium", "summary": "auto"}),
        ({}, None),
    ],
)
def test_thinking_becomes_an_effort(fields: dict[str, Any], reasoning: dict[str, str] | None) -> None:
    assert sent(ask(user("hi"), **fields)).get("reasoning") == reasoning


def test_case_26_responses_an_effort_above_the_models_highest_becomes_it() -> None:
    translation = a_translation("o3")
    fields = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}
    assert sent(ask(user("hi"), **fields), translation)["reasoning"]["effort"] == "high"
    assert translation.notes == ["effort max became high, what the model allows"]


def test_a_model_without_reasoning_is_asked_for_none() -> None:
    body = sent(ask(user("hi"), thinking={"type": "adaptive"}), a_translation("gpt-4o"))
    assert "reasoning" not in body
    assert "include" not in body  # it would refuse that


# ---- tools


def test_case_21_responses_a_tool_with_optional_parameters_is_not_strict_and_requires_what_it_did() -> None:
    schema = {"type": "object", "properties": {"path": {"type": "string"}, "n": {"type": "integer"}}}
    schema["required"] = ["path"]  # type: ignore[assignment]
    translation = a_translation()
    tools = [{"name": "Read", "input_schema": schema, "strict": wanted} for wanted in (None, False, True)]
    for tool in tools:
        assert sent(ask(user("hi"), tools=[tool]), translation)["tools"] == [
            {"type": "function", "name": "Read", "parameters": schema, "strict": False}
        ]
    assert translation.notes == ["Read is not strict: it has optional parameters or is beyond strict mode"]


def test_a_strict_tool_is_strict_in_the_apis_form() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}, "required": ["a"]}
    [tool] = sent(ask(user("hi"), tools=[{"name": "T", "input_schema": schema, "strict": True}]))["tools"]
    assert tool["strict"] is True
    assert tool["parameters"]["additionalProperties"] is False
    assert tool["parameters"]["properties"]["a"]["additionalProperties"] is False
    assert "additionalProperties" not in schema  # the client's own stays as it was


def test_a_tool_is_described_and_keeps_its_schema() -> None:
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"type": "string"}}}
    [tool] = sent(ask(user("hi"), tools=[{"name": "T", "description": "Does.", "input_schema": schema}]))["tools"]
    assert (tool["description"], tool["parameters"]) == ("Does.", schema)


def test_case_17_responses_a_long_tool_name_is_short_everywhere_and_known_on_the_way_back() -> None:
    long = "mcp__a_server_with_a_long_name__" + "x" * 39
    assert len(long) == 71
    translation = a_translation()
    history = [user("go"), assistant(tool_use("call_1", long)), user(tool_result("call_1"))]
    body = sent(ask(*history, tools=[a_tool(long)], tool_choice={"type": "tool", "name": long}), translation)
    short = body["tools"][0]["name"]
    assert len(short) <= 64
    assert items(body, "function_call")[0]["name"] == body["tool_choice"]["name"] == short
    assert translation.names.back(short) == long


def test_case_18_responses_names_that_begin_alike_stay_apart() -> None:
    names = ["m" * 64 + "_one", "m" * 64 + "_two"]
    translation = a_translation()
    shorts = [tool["name"] for tool in sent(ask(user("hi"), tools=list(map(a_tool, names))), translation)["tools"]]
    assert len(set(shorts)) == 2
    assert list(map(translation.names.back, shorts)) == names


@pytest.mark.parametrize(
    ("choice", "written"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "Read"}, {"type": "function", "name": "Read"}),
        ({"type": "tool", "name": "nobody knows it"}, "required"),
    ],
)
def test_tool_choice(choice: dict[str, Any], written: Any) -> None:
    assert sent(ask(user("hi"), tools=[a_tool()], tool_choice=choice))["tool_choice"] == written


def test_case_15_responses_no_parallel_calls() -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    translation = a_translation()
    body = sent(ask(user("hi"), tools=[a_tool()], tool_choice=choice), translation)
    assert (body["parallel_tool_calls"], translation.single) == (False, False)
    # A model that refuses the parameter: the writer lets one call through.
    translation = a_translation("o3")
    body = sent(ask(user("hi"), tools=[a_tool()], tool_choice=choice), translation)
    assert "parallel_tool_calls" not in body
    assert translation.single


def test_case_16_responses_no_tools_no_choice() -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    body = sent(ask(user("hi"), tools=[], tool_choice=choice))
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(body)


def test_an_answers_schema_becomes_a_strict_format() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    body = sent(ask(user("hi"), output_config={"format": {"type": "json_schema", "schema": schema}}))
    assert body["text"]["format"] == {
        "type": "json_schema",
        "name": "answer",
        "schema": schema | {"additionalProperties": False},
        "strict": True,
    }


def test_an_answers_schema_beyond_strict_mode_goes_as_it_is() -> None:
    translation = a_translation()
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    body = sent(ask(user("hi"), output_config={"format": {"type": "json_schema", "schema": schema}}), translation)
    assert body["text"]["format"]["schema"] == schema
    assert body["text"]["format"]["strict"] is False
    assert translation.notes
    translation.capabilities = replace(translation.capabilities, structured=False)
    with pytest.raises(Unroutable, match="schema"):
        sent(ask(user("hi"), output_config={"format": {"type": "json_schema", "schema": schema}}), translation)


def test_arrays_say_what_is_in_them() -> None:
    listed = {"type": "array"}
    schema = {
        "type": "object",
        "properties": {
            "a": listed,
            "type": {"anyOf": [listed, {"type": ["array", "null"]}]},
            "default": {"type": "array"},
        },
        "enum": [{"type": "array"}],
    }
    filled = {"type": "array", "items": {}}
    found = with_items(schema)
    assert found["properties"]["a"] == filled
    assert found["properties"]["type"]["anyOf"] == [filled, {"type": ["array", "null"], "items": {}}]
    assert found["properties"]["default"] == filled
    assert found["enum"] == [{"type": "array"}]
    assert listed == {"type": "array"}
    assert with_items(found) is found
    pair = {"type": "array", "prefixItems": [{"type": "string"}]}
    assert with_items(pair) is pair
    [tool] = sent(ask(user("hi"), tools=[a_tool(list=listed)]))["tools"]
    assert tool["parameters"]["properties"]["list"] == filled


# ---- the search of the web


def test_the_servers_search_becomes_the_apis() -> None:
    place = {"type": "approximate", "city": "Bern", "country": "CH", "odd": 1}
    tool = SEARCH | {"allowed_domains": ["a.example"], "user_location": place, "max_uses": 3}
    body = sent(ask(user("hi"), tools=[tool], tool_choice={"type": "tool", "name": "web_search"}))
    assert body["tools"] == [
        {
            "type": "web_search",
            "filters": {"allowed_domains": ["a.example"]},
            "user_location": {"type": "approximate", "city": "Bern", "country": "CH"},
        }
    ]
    assert body["tool_choice"] == "required"
    assert body["max_tool_calls"] == 3
    assert body["include"] == ["web_search_call.action.sources", "reasoning.encrypted_content"]


def test_a_search_needs_more_than_the_least_effort() -> None:
    fields = {"thinking": {"type": "disabled"}}
    assert sent(ask(user("hi"), **fields), a_translation("gpt-5"))["reasoning"]["effort"] == "minimal"
    assert sent(ask(user("hi"), tools=[SEARCH], **fields), a_translation("gpt-5"))["reasoning"]["effort"] == "low"


def test_a_choice_of_the_search_among_other_tools_names_it() -> None:
    body = sent(ask(user("hi"), tools=[a_tool(), SEARCH], tool_choice={"type": "tool", "name": "web_search"}))
    assert body["tool_choice"] == {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}


@pytest.mark.parametrize(
    ("tool", "model", "reason"),
    [
        (SEARCH, "o3-mini", "cannot search"),
        (SEARCH | {"blocked_domains": ["a.example"]}, "gpt-5.5", "keep domains out"),
        ({"type": "code_execution_20250825", "name": "code_execution"}, "gpt-5.5", "no twin"),
        ({"type": "web_fetch_20250910", "name": "web_fetch"}, "gpt-5.5", "no twin"),
    ],
)
def test_server_tools_without_a_twin_are_unroutable(tool: dict[str, Any], model: str, reason: str) -> None:
    with pytest.raises(Unroutable, match=reason):
        sent(ask(user("hi"), tools=[tool]), a_translation(model))


# ---- the conversation


def test_case_06_responses_a_message_precedes_its_calls() -> None:
    body = sent(ask(user("go"), assistant("I look.", tool_use("call_1", path="a"), tool_use("call_2"))))
    assert items(body)[1:4] == [
        {"type": "message", "role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "call_1", "name": "Read", "arguments": '{"path":"a"}'},
        {"type": "function_call", "call_id": "call_2", "name": "Read", "arguments": "{}"},
    ]


def test_results_follow_their_calls_before_the_users_text() -> None:
    history = [
        user("go"),
        assistant(tool_use("a"), tool_use("b")),
        user("and now?", tool_result("b"), tool_result("a")),
    ]
    body = sent(ask(*history))
    assert [item.get("call_id", item["type"]) for item in items(body)] == ["message", "a", "b", "a", "b", "message"]


def test_case_08_responses_an_error_says_so() -> None:
    assert result_of("boom", is_error=True) == "Error: boom"
    assert result_of("boom") == "boom"


def test_case_09_responses_a_picture_in_a_result_is_seen_inside_it() -> None:
    output = result_of([{"type": "text", "text": "see"}, PNG, PDF], is_error=True)
    assert output == [
        {"type": "input_text", "text": "Error:"},
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "auto"},
        {"type": "input_file", "filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
    ]


@pytest.mark.parametrize("content", [None, [], "", [{"type": "text", "text": ""}]])
def test_case_10_responses_a_result_without_content_has_a_placeholder(content: Any) -> None:
    assert result_of(content) == NO_OUTPUT


def test_texts_of_a_result_are_one_text() -> None:
    assert result_of([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == "a\n\nb"


def test_case_12_responses_a_call_without_a_result_gets_one() -> None:
    body = sent(ask(user("go"), assistant(tool_use("call_1")), user("never mind")))
    assert [item["type"] for item in items(body)] == ["message", "function_call", "function_call_output", "message"]
    assert items(body)[2]["output"] == f"Error: {INTERRUPTED}"


def test_case_30_responses_a_picture_by_url_stays_a_url() -> None:
    picture = {"type": "image", "source": {"type": "url", "url": "https://a.example/p.png"}}
    [message] = items(sent(ask(user("see", picture, PNG))))
    assert message["content"][1:] == [
        {"type": "input_image", "image_url": "https://a.example/p.png", "detail": "auto"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "auto"},
    ]


def test_case_31_responses_a_pdf_is_an_input_file() -> None:
    by_url = {"type": "document", "source": {"type": "url", "url": "https://a.example/d.pdf"}}
    [message] = items(sent(ask(user(PDF | {"title": "Report.pdf"}, by_url))))
    assert message["content"] == [
        {"type": "input_file", "filename": "Report.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
        {"type": "input_file", "file_url": "https://a.example/d.pdf"},
    ]


def test_a_picture_among_the_assistants_own_blocks_is_not_lost() -> None:
    body = sent(ask(user("draw"), assistant("here:", PNG, "done"), user("thanks")))
    assert [item["role"] for item in items(body)] == ["user", "assistant", "user", "assistant", "user"]


def test_case_32_responses_what_claude_thought_is_never_sent() -> None:
    secret = "a thought of Claude's"
    for signature in ("EqQBCg==", "", "gemini#abc", "openai#no payload"):
        history = [user("go"), assistant(thinking(secret, signature), tool_use("a")), user(tool_result("a"))]
        body = sent(ask(*history))
        assert secret not in json.dumps(body)
        assert not items(body, "reasoning")


def test_case_36_responses_empty_texts_are_removed() -> None:
    body = sent(ask(user("hi", ""), assistant("", tool_use("a")), user("", tool_result("a"))))
    assert [item["type"] for item in items(body)] == ["message", "function_call", "function_call_output"]
    assert items(body)[0]["content"] == [{"type": "input_text", "text": "hi"}]


def test_case_77_responses_a_call_id_comes_back_as_the_provider_wrote_it() -> None:
    strange = "call_ab:c/1"
    outward = client_id(strange)
    body = sent(ask(*called(outward)))
    assert {item["call_id"] for item in items(body, "function_call", "function_call_output")} == {strange}
    long = "toolu_" + "x" * 80
    ids = {item["call_id"] for item in items(sent(ask(*called(long))), "function_call", "function_call_output")}
    assert len(ids) == 1
    assert len(ids.pop()) <= 64


# ---- what the model thought itself


def test_its_own_reasoning_is_given_back_before_what_it_led_to() -> None:
    own = thinking("I should look.", "openai#rs_1:gAAAA")
    body = sent(ask(user("go"), assistant(own, "I look.", tool_use("a")), user(tool_result("a"))))
    assert items(body)[1] == {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "I should look."}],
        "encrypted_content": "gAAAA",
    }
    assert [item["type"] for item in items(body)][1:4] == ["reasoning", "message", "function_call"]


def test_reasoning_without_words_is_given_back_too() -> None:
    body = sent(ask(user("go"), assistant(thinking("", "openai#rs_1:gAAAA"), "Done."), user("and?")))
    assert items(body, "reasoning")[0]["summary"] == []


def test_reasoning_that_led_to_nothing_is_left_out() -> None:
    own = thinking("cut", "openai#rs_1:gAAAA")
    assert not items(sent(ask(user("go"), assistant(own), user("go on"))), "reasoning")
    assert not items(sent(ask(user("go"), assistant("so far", own), user("go on"))), "reasoning")


def test_the_same_reasoning_is_given_back_once() -> None:
    own = thinking("t", "openai#rs_1:gAAAA")
    body = sent(ask(user("go"), assistant(own, "a"), user("and?"), assistant(own, "b"), user("and?")))
    assert len(items(body, "reasoning")) == 1


def test_reasoning_that_the_client_lost_comes_from_the_vault_for_all_calls_that_followed_it() -> None:
    vault = Vault()
    for id in ("a", "b"):
        vault.put(id, Kept("openai", "rs_1:gAAAA", "look"))
    vault.put("c", Kept("gemini", "rs_2:gAAAA"))
    history = [
        user("go"),
        assistant("I look.", tool_use("a"), tool_use("b")),
        user(tool_result("a"), tool_result("b")),
        assistant(tool_use("c")),
        user(tool_result("c")),
    ]
    body = sent(ask(*history), a_translation(vault=vault))
    kinds = [item["type"] for item in items(body)]
    assert kinds[:4] == ["message", "reasoning", "message", "function_call"]
    assert kinds.count("reasoning") == 1
    # Nothing twice where the client kept its block.
    history[1] = assistant(thinking("look", "openai#rs_1:gAAAA"), "I look.", tool_use("a"), tool_use("b"))
    assert sent(ask(*history), a_translation(vault=vault))["input"] == body["input"]


def test_the_plain_model_of_these_tests_has_what_they_rely_on() -> None:
    assert not PLAIN.efforts
    assert PLAIN.output == 16384
