"""Requests in Messages: what Claude gets with a key of ours, and what every other server gets that speaks Messages."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from asking import assistant, thinking, tool_result, tool_use, user
from foreigntalk import (
    PATHS,
    PIXEL,
    READ,
    ask,
    bodies,
    document,
    for_claude,
    for_others,
    image,
    names_of,
    read,
    to_native,
)
from hypothesis import given, settings

from dbproxy.model.codecs.capabilities import Capabilities, capabilities
from dbproxy.model.codecs.native import NATIVE
from dbproxy.model.codecs.request import Unroutable
from dbproxy.model.codecs.vault import join_signature

BILLING = "x-anthropic-billing-header: cc_version=2.1.329.7b2; cc_entrypoint=cli; cch=0c0de;"
ACCOUNT = "5d8f7a3e-aaaa-bbbb-cccc-0123456789ab"
USER_ID = json.dumps({"device_id": "d" * 64, "account_uuid": ACCOUNT, "session_id": "s" * 36})
MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
GLOBAL = {"cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"}}
HAIKU, OPUS = capabilities("anthropic", "claude-haiku-4-5"), capabilities("anthropic", "claude-opus-5-5")
LOCAL = capabilities("ollama", "qwen3-coder")


def text(value: str, **more: object) -> dict:
    return {"type": "text", "text": value, **more}


# ---- Claude


def test_case_02_claude_gets_the_system_array_as_it_came():
    system = [text(BILLING), text("You are Claude Code.", **GLOBAL), text("", extra=1)]
    body = to_native(ask(user("hi"), system=system), for_claude())
    assert body["system"] == system
    assert body["model"] == "claude-haiku-4-5"


def test_case_29_claude_gets_every_key_as_it_came():
    body = ask(
        user("hi", {"type": "from_the_future", "x": [1, 2.5, None]}),
        {"role": "system", "content": [text("note")], "output_config": {"effort": "low"}},
        top_k=5,
        temperature=0.3,
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        thread={"type": "create"},
        diagnostics={"previous_message_id": "msg_1"},
        speed="fast",
        unknown_key={"deep": [1.0, {"a": "ä"}]},
        tools=[{**READ, "defer_loading": True, "strict": True}, {"type": "web_search_20250305", "name": "web_search"}],
        metadata={"user_id": USER_ID},
        thinking={"type": "adaptive", "display": "updates"},
    )
    translation = for_claude()
    written = NATIVE.write(read(body), translation)
    assert json.loads(written) == {**body, "model": "claude-haiku-4-5"}
    assert list(json.loads(written)) == list(body)
    assert translation.notes == []


def test_case_33_claude_gets_no_foreign_thinking():
    own, alien = thinking("mine", "EqQBown=="), thinking("theirs", join_signature("gemini", "c2ln"))
    turns = [user("go"), assistant(own, alien, tool_use("toolu_1")), user(tool_result("toolu_1"))]
    assert to_native(ask(*turns), for_claude())["messages"][1] == assistant(own, tool_use("toolu_1"))
    loop = [user("go"), assistant(alien, tool_use("toolu_1")), user(tool_result("toolu_1"))]
    body = to_native(ask(*loop, thinking={"type": "enabled", "budget_tokens": 2000}), for_claude())
    assert "thinking" not in body


def test_a_claude_with_budgets_gets_one():
    translation = for_claude(HAIKU)
    asked = ask(
        user("hi"),
        {"role": "system", "content": "note"},
        max_tokens=128000,
        thinking={"type": "adaptive", "display": "updates"},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {}}},
        speed="fast",
    )
    body = to_native(asked, translation)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 24576}
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": {}}}
    assert body["max_tokens"] == 64000
    assert body["messages"] == [user("hi", "<system-reminder>\nnote\n</system-reminder>")]
    assert "speed" not in body
    assert len(translation.notes) == 5


def test_a_claude_without_budgets_gets_an_effort():
    translation = for_claude(OPUS)
    asked = ask(user("hi"), temperature=1, thinking={"type": "enabled", "budget_tokens": 31999})
    body = to_native({**asked, "tool_choice": {"type": "any"}, "tools": [READ]}, translation)
    assert body["thinking"] == {"type": "adaptive"}
    assert body["output_config"] == {"effort": "xhigh"}
    assert body["tool_choice"] == {"type": "auto"}
    assert "temperature" not in body
    assert len(translation.notes) == 3
    # What it has by itself stays.
    kept = ask(user("hi"), thinking={"type": "adaptive"}, output_config={"effort": "max"})
    assert to_native(kept, for_claude(OPUS)) == {**kept, "model": "claude-haiku-4-5"}


def test_a_claude_that_cannot_do_without_thinking_is_not_told_to():
    asked = ask(user("hi"), thinking={"type": "disabled"})
    translation = for_claude(OPUS)
    assert "thinking" not in to_native(asked, translation)
    assert translation.notes == ["thinking stayed on: the model cannot be told to do without"]
    assert to_native(asked, for_claude(HAIKU))["thinking"] == {"type": "disabled"}


def test_without_thinking_an_effort_is_high_at_most():
    asked = ask(user("hi"), thinking={"type": "disabled"}, output_config={"effort": "max"})
    translation = for_claude(capabilities("anthropic", "claude-opus-5"))
    assert to_native(asked, translation)["output_config"] == {"effort": "high"}
    assert translation.notes == ["effort max became high"]


def test_a_claude_of_whose_efforts_nothing_is_known_gets_none():
    body = to_native(
        ask(user("hi"), thinking={"type": "enabled", "budget_tokens": 2000}),
        for_claude(Capabilities(api="messages", thinking="adaptive")),
    )
    assert body["thinking"] == {"type": "adaptive"}
    assert "output_config" not in body


def test_no_room_for_thinking_means_none():
    body = to_native(ask(user("hi"), max_tokens=1500, thinking={"type": "adaptive"}), for_claude(HAIKU))
    assert "thinking" not in body


def test_a_claude_that_takes_no_begun_answer_is_not_asked_for_one():
    with pytest.raises(Unroutable, match="begun"):
        to_native(ask(user("hi"), assistant("{")), for_claude(OPUS))


def test_system_messages_stand_behind_the_results_of_calls():
    note, more = {"role": "system", "content": "note"}, {"role": "system", "content": []}
    body = to_native(
        ask(
            user("go"), assistant(tool_use("a")), note, more, user("and?", tool_result("a")), note, assistant("x"), note
        ),
        for_claude(HAIKU),
    )
    said = text("<system-reminder>\nnote\n</system-reminder>")
    assert body["messages"] == [
        user("go"),
        assistant(tool_use("a")),
        user(tool_result("a"), said, "and?", said),
        assistant("x"),
        user(said),
    ]


def test_system_messages_between_two_turns_of_the_assistants_have_a_turn_of_their_own():
    note, nothing = {"role": "system", "content": "note"}, {"role": "system", "content": []}
    said = text("<system-reminder>\nnote\n</system-reminder>")
    body = to_native(ask(note, assistant("a"), note, assistant("b"), user("c"), nothing), for_claude(HAIKU))
    assert body["messages"] == [user(said), assistant("a"), user(said), assistant("b"), user("c")]


# ---- other servers


def test_others_get_what_they_know_and_nothing_else():
    translation = for_others()
    body = to_native(
        ask(
            {"role": "user", "content": [text("hi", **GLOBAL)]},
            system=[text(BILLING), text("Be brief.", **GLOBAL), text("")],
            tools=[
                {
                    **READ,
                    "input_schema": PATHS,
                    "strict": True,
                    "eager_input_streaming": True,
                    "input_examples": [{}],
                    **GLOBAL,
                },
                {"name": "Hidden", "input_schema": PATHS, "defer_loading": True},
            ],
            tool_choice={"type": "tool", "name": "Read"},
            metadata={"user_id": USER_ID},
            thread={},
            context_management={"edits": []},
            compaction={"type": "summarize"},
            diagnostics={"previous_message_id": None},
            speed="fast",
            cache_control={"type": "ephemeral"},
            unknown_key=1,
            temperature=0.5,
            top_p=0.9,
            top_k=5,
            stop_sequences=["END"],
        ),
        translation,
    )
    assert body == {
        "model": "qwen3-coder",
        "max_tokens": 8000,
        "system": [text("Be brief.", **MARK)],
        "messages": [{"role": "user", "content": [text("hi", **MARK)]}],
        "tools": [{"name": "Read", "description": "Reads a file.", "input_schema": PATHS, **MARK}],
        "tool_choice": {"type": "tool", "name": "Read"},
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop_sequences": ["END"],
        "metadata": {"user_id": body["metadata"]["user_id"]},
        "stream": True,
    }
    assert len(body["metadata"]["user_id"]) == 32
    assert ACCOUNT not in json.dumps(body)
    assert translation.notes == ["speed was left out: the server has no such thing"]


def test_case_01_others_get_no_billing_line_of_a_system_string():
    assert to_native(ask(user("hi"), system=f"{BILLING}\nBe brief."), for_others())["system"] == "Be brief."
    assert "system" not in to_native(ask(user("hi"), system=BILLING), for_others())


def test_an_answer_that_is_begun_goes_to_others_as_it_is():
    assert to_native(ask(user("hi"), assistant("{")), for_others())["messages"][-1] == assistant("{")


def test_cache_marks_go_where_they_are_refused():
    can = Capabilities(api="messages", refuses=frozenset({"cache_control", "metadata"}))
    body = to_native(ask({"role": "user", "content": [text("hi", **MARK)]}, metadata={"user_id": "u"}), for_others(can))
    assert body["messages"] == [user("hi")]
    assert "metadata" not in body


def test_case_32_others_get_only_what_their_own_family_thought():
    own, alien = thinking("mine", join_signature("ollama", "sig")), thinking("theirs", "EqQBclaude==")
    unsigned, redacted = thinking("whose?", ""), {"type": "redacted_thinking", "data": "x"}
    body = to_native(ask(user("go"), assistant(alien, own, unsigned, redacted, "said"), user("and?")), for_others())
    assert body["messages"][1] == assistant(thinking("mine", "sig"), "said")


def test_case_36_native_empty_texts_are_left_out_and_what_is_empty_then():
    body = to_native(ask(user("one"), assistant("", thinking("x", "y")), user("", "two")), for_others())
    assert body["messages"] == [user("one", "two")]


def test_blocks_that_only_the_messages_api_knows_become_text():
    reference = {"type": "tool_reference", "tool_name": "WebFetch"}
    body = to_native(
        ask(
            user(
                "go",
                {"type": "document", "source": {"type": "text", "data": "plain"}},
                {"type": "document", "source": {"type": "content", "content": [text("inner"), image()]}},
                {"type": "container_upload", "file_id": "f"},
                {"type": "from_the_future", "x": 1},
            ),
            assistant(tool_use("a")),
            user(tool_result("a", [reference, text(""), image()])),
        ),
        for_others(),
    )
    future = text('{"type":"from_the_future","x":1}')
    assert body["messages"][0]["content"] == [text("go"), text("plain"), text("inner"), image(), future]
    assert body["messages"][2] == user(tool_result("a", [text("[Loaded tool: WebFetch]"), image()]))


def test_pictures_and_documents_go_as_they_are():
    titled = {**document(), "title": "T", "citations": {"enabled": True}}
    body = to_native(ask(user(image(), titled)), for_others())
    assert body["messages"] == [user(image(), {**document(), "title": "T"})]
    assert PIXEL in json.dumps(body)


def test_case_10_and_12_native_each_call_has_one_result_that_says_something():
    body = to_native(
        ask(
            user("go"),
            assistant(tool_use("a"), tool_use("b"), tool_use("c")),
            user(
                "text",
                tool_result("gone", "STRAY"),
                tool_result("c", is_error=True, content="boom"),
                tool_result("a", []),
            ),
        ),
        for_others(),
    )
    results = body["messages"][2]["content"]
    assert [block.get("tool_use_id") for block in results[:3]] == ["a", "b", "c"]
    assert results[0]["content"] == "(no output)"
    assert results[1]["is_error"] is True
    assert results[2] == tool_result("c", "boom", is_error=True)
    assert [block["text"] for block in results[3:]] == [
        "text",
        "[result of a call that is not in this history]",
        "STRAY",
    ]
    last = to_native(ask(user("go"), assistant(tool_use("a"))), for_others())["messages"][-1]
    assert (last["role"], last["content"][0]["tool_use_id"]) == ("user", "a")


def test_case_04_native_a_system_message_in_mid_conversation_keeps_its_place():
    body = to_native(
        ask(user("one"), {"role": "system", "content": "NOTE"}, assistant("two"), user("three")), for_others()
    )
    assert body["messages"] == [
        user("one", "<system-reminder>\nNOTE\n</system-reminder>"),
        assistant("two"),
        user("three"),
    ]


def test_case_77_native_an_id_of_the_servers_own_comes_back_to_it():
    body = to_native(
        ask(user("go"), assistant(tool_use("dbpid_Y2FsbF9hYjpjLzE")), user(tool_result("dbpid_Y2FsbF9hYjpjLzE"))),
        for_others(),
    )
    assert body["messages"][1]["content"][0]["id"] == "call_ab:c/1"
    assert body["messages"][2]["content"][0]["tool_use_id"] == "call_ab:c/1"


def test_case_17_native_long_names_of_tools_are_short_there():
    long = "mcp__a_server_with_a_very_long_name__a_tool_whose_name_is_longer_still_x1"
    translation = for_others(names=names_of(long))
    choice = {"type": "tool", "name": long, "disable_parallel_tool_use": True}
    turns = [user("go"), assistant(tool_use("a", long)), user(tool_result("a"))]
    body = to_native(ask(*turns, tools=[{**READ, "name": long}], tool_choice=choice), translation)
    short = body["tools"][0]["name"]
    assert len(short) <= 64
    assert body["messages"][1]["content"][0]["name"] == short
    assert body["tool_choice"] == {"type": "tool", "name": short, "disable_parallel_tool_use": True}
    assert translation.single
    assert translation.names.back(short) == long


def test_a_tool_that_the_history_brought_in_is_there():
    tools = [{"name": "WebFetch", "input_schema": PATHS, "defer_loading": True}]
    reference = {"type": "tool_reference", "tool_name": "WebFetch"}
    turns = [user("go"), assistant(tool_use("a")), user(tool_result("a", [reference]))]
    assert [tool["name"] for tool in to_native(ask(*turns, tools=tools), for_others())["tools"]] == ["WebFetch"]


ENABLED = {"thinking": {"type": "enabled", "budget_tokens": 3000}}
ADAPTIVE, OFF = {"thinking": {"type": "adaptive", "display": "updates"}}, {"thinking": {"type": "disabled"}}


@pytest.mark.parametrize(
    ("can", "asked", "found", "config"),
    [
        ({}, ENABLED, None, None),
        ({"thinking": "enabled"}, ENABLED, {"type": "enabled", "budget_tokens": 3000}, None),
        ({"thinking": "enabled"}, ADAPTIVE, {"type": "enabled", "budget_tokens": 4000}, None),
        ({"thinking": "enabled"}, {**ADAPTIVE, "max_tokens": 1024}, None, None),
        ({"thinking": "adaptive"}, ENABLED, {"type": "adaptive"}, None),
        ({"thinking": "enabled"}, OFF, None, None),
        ({"thinking": "enabled", "efforts": ("none",)}, OFF, {"type": "disabled"}, None),
        ({"thinking": "enabled", "efforts": ("none", "high", "max")}, OFF, {"type": "disabled"}, None),
        (
            {"thinking": "adaptive", "efforts": ("none", "high", "max")},
            {**ADAPTIVE, "output_config": {"effort": "low", "task_budget": {}}},
            {"type": "adaptive"},
            {"effort": "high"},
        ),
        ({"efforts": ("low", "high")}, ADAPTIVE, None, {"effort": "low"}),
        ({"efforts": ("low", "high")}, OFF, None, {"effort": "low"}),
        ({"thinking": "enabled", "efforts": ("none", "high")}, {}, None, None),
    ],
)
def test_how_hard_others_think(can, asked, found, config):
    body = to_native(ask(user("x"), **asked), for_others(Capabilities(api="messages", **can)))
    assert (body.get("thinking"), body.get("output_config")) == (found, config)


def test_what_became_of_thinking_is_noted():
    for can, most, note in (
        ({}, 8000, "thinking was left out: the model knows no such thing"),
        ({"thinking": "enabled"}, 1024, "thinking was left out: max_tokens leaves no room for it"),
        ({"thinking": "adaptive", "efforts": ("high",)}, 8000, "effort medium became high"),
    ):
        translation = for_others(Capabilities(api="messages", **can))
        to_native(ask(user("x"), max_tokens=most, **ADAPTIVE), translation)
        assert translation.notes == [note]


def test_the_answers_schema_goes_to_who_takes_it():
    form = {"type": "json_schema", "schema": {"type": "object"}}
    asked = ask(user("x"), output_config={"format": form})
    assert to_native(asked, for_others())["output_config"] == {"format": form}
    translation = for_others(LOCAL)
    assert "output_config" not in to_native(asked, translation)
    assert translation.notes == ["the answer's schema was left out: the model takes none"]


def test_the_answer_fits_behind_the_prompt_and_has_a_length():
    can = Capabilities(api="messages", context=10_000, output=6_000)
    translation = for_others(can)
    assert to_native(ask(user("x"), max_tokens=64000), translation)["max_tokens"] == 6_000
    assert translation.notes == ["max_tokens was 64000, and is 6000 for this model"]
    assert to_native(ask(user("x")), for_others(can, estimate=8_000))["max_tokens"] == 2_000
    assert to_native(ask(user("x"), max_tokens=None), for_others(can))["max_tokens"] == 6_000
    assert to_native(ask(user("x"), max_tokens=None), for_others())["max_tokens"] == 32_000


def test_what_a_model_refuses_is_left_out_or_seen_to_here():
    refused = {"temperature", "top_p", "top_k", "stop", "forced_tool_choice", "parallel_tool_calls"}
    translation = for_others(Capabilities(api="messages", refuses=frozenset(refused)))
    choice = {"type": "any", "disable_parallel_tool_use": True}
    sampling = {"temperature": 1, "top_p": 1, "top_k": 1, "stop_sequences": ["END"]}
    body = to_native(ask(user("x"), tools=[READ], tool_choice=choice, **sampling), translation)
    assert not {*sampling} & {*body}
    assert body["tool_choice"] == {"type": "auto"}
    assert (translation.stops, translation.single) == (("END",), True)
    bare = for_others(Capabilities(api="messages", refuses=frozenset({"tool_choice"})))
    assert "tool_choice" not in to_native(ask(user("x"), tools=[READ], tool_choice=choice), bare)


NO_TOOLS = Capabilities(api="messages", tools=False)


@pytest.mark.parametrize(
    ("body", "can", "reason"),
    [
        (
            ask(user("x"), tools=[{"type": "web_search_20250305", "name": "web_search"}]),
            LOCAL,
            "server tool web_search",
        ),
        (ask(user("x"), tools=[{"type": "bash_20250124", "name": "bash"}]), LOCAL, "bash_20250124"),
        (ask(user("x"), tools=[READ]), NO_TOOLS, "no tools"),
        (ask(user(image())), LOCAL, "no images"),
        (ask(user(document())), LOCAL, "no documents"),
        (ask(user({"type": "document", "source": {"type": "file", "file_id": "f"}})), LOCAL, "uploaded"),
        (ask(user("x"), thread={"type": "continue", "previous_message_id": "msg_1"}), LOCAL, "thread"),
        (ask(user("x"), assistant("{")), replace(LOCAL, refuses=frozenset({"prefill"})), "begun"),
        (ask(user("x"), max_tokens=0), LOCAL, "max_tokens is 0"),
    ],
)
def test_what_others_cannot_be_told_is_not_routed(body, can, reason):
    with pytest.raises(Unroutable, match=reason):
        to_native(body, for_others(can))


@settings(max_examples=150, deadline=None)
@given(bodies)
def test_whatever_the_history_is_others_get_one_that_is_in_order(body):
    NATIVE.write(read(body), for_claude(HAIKU))
    try:
        found = json.loads(NATIVE.write(read(body), for_others()))
    except Unroutable:
        return
    waiting: list[str] = []
    before = ""
    for message in found["messages"]:
        assert message["role"] != before
        assert message["content"]
        before = message["role"]
        results = [block["tool_use_id"] for block in message["content"] if block["type"] == "tool_result"]
        assert results == waiting
        assert all(block["type"] == "tool_result" for block in message["content"][: len(results)])
        assert all(block["text"] for block in message["content"] if block["type"] == "text")
        calls = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
        waiting = list(dict.fromkeys(calls)) if before == "assistant" else []
    assert not waiting
