"""Messages requests as Gemini's: every one of them is checked against the official SDK's types."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from asking import assistant, thinking, tool_result, tool_use, user
from foreigntalk import (
    FLASH,
    OLDER,
    PATHS,
    PDF,
    PIXEL,
    READ,
    ask,
    bodies,
    document,
    for_gemini,
    image,
    names_of,
    read,
    to_gemini,
)
from hypothesis import given, settings

from dbproxy.model.codecs.capabilities import Capabilities, capabilities
from dbproxy.model.codecs.gemini import GEMINI
from dbproxy.model.codecs.gemini.request import NO_SIGNATURE
from dbproxy.model.codecs.request import Unroutable
from dbproxy.model.codecs.vault import Kept, Vault, join_signature

PRO = capabilities("gemini", "gemini-2.5-pro")
MARK = {"cache_control": {"type": "ephemeral", "scope": "global"}}


def contents(*messages: dict, **fields: object) -> list[tuple[str, list[dict]]]:
    return [(content["role"], content["parts"]) for content in to_gemini(ask(*messages, **fields))["contents"]]


def calls(body: dict) -> list[dict]:
    """The parts that call."""
    return [part for content in body["contents"] for part in content["parts"] if "functionCall" in part]


# ---- the conversation


def test_who_speaks_and_what_is_said():
    system = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    body = to_gemini(ask(user("one"), assistant("two"), user("three", "four"), system=system))
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]}
    assert body["contents"] == [
        {"role": "user", "parts": [{"text": "one"}]},
        {"role": "model", "parts": [{"text": "two"}]},
        {"role": "user", "parts": [{"text": "three"}, {"text": "four"}]},
    ]
    assert "model" not in body  # it stands in the URL


def test_neighbours_of_one_role_are_one_turn():
    found = contents(user("one"), user("two"), assistant(thinking("hm", "x")), user("three"))
    assert found == [("user", [{"text": "one"}, {"text": "two"}, {"text": "three"}])]


def test_a_system_message_in_mid_conversation_is_said_by_the_user_in_its_place():
    found = contents(user("one"), {"role": "system", "content": "NOTE"}, assistant("two"), user("three"))
    assert found == [
        ("user", [{"text": "one"}, {"text": "<system-reminder>\nNOTE\n</system-reminder>"}]),
        ("model", [{"text": "two"}]),
        ("user", [{"text": "three"}]),
    ]


def test_the_user_speaks_first():
    found = contents(assistant("I go on."), user("yes"))
    assert [role for role, _ in found] == ["user", "model", "user"]


def test_case_36_gemini_empty_texts_are_left_out():
    found = contents(user("one", ""), assistant("", "two"), user("three"))
    assert [part for _, parts in found for part in parts] == [{"text": "one"}, {"text": "two"}, {"text": "three"}]


def test_calls_and_their_results():
    body = to_gemini(
        ask(
            user("go"),
            assistant("I look.", tool_use("toolu_1", path="a"), tool_use("toolu_2", "Bash", command="ls")),
            user("and now?", tool_result("toolu_2", "B"), tool_result("toolu_1", "boom", is_error=True)),
        )
    )
    assert body["contents"][1]["parts"] == [
        {"text": "I look."},
        {"functionCall": {"name": "Read", "args": {"path": "a"}}, "thoughtSignature": NO_SIGNATURE},
        {"functionCall": {"name": "Bash", "args": {"command": "ls"}}},
    ]
    assert body["contents"][2]["parts"] == [
        {"functionResponse": {"name": "Read", "response": {"error": "boom"}}},
        {"functionResponse": {"name": "Bash", "response": {"output": "B"}}},
        {"text": "and now?"},
    ]


def test_ids_that_gemini_gave_come_back_on_call_and_response_others_do_not():
    body = to_gemini(
        ask(
            user("go"),
            assistant(tool_use("a1b2"), tool_use("toolu_m1_2"), tool_use("dbpid_Y2FsbF9hYjpjLzE")),
            user(tool_result("a1b2"), tool_result("toolu_m1_2"), tool_result("dbpid_Y2FsbF9hYjpjLzE")),
        )
    )
    ids = [part["functionCall"].get("id") for part in body["contents"][1]["parts"]]
    assert ids == ["a1b2", None, "call_ab:c/1"]
    assert [part["functionResponse"].get("id") for part in body["contents"][2]["parts"]] == ids


def test_a_response_has_the_name_of_its_call_as_gemini_knows_it():
    long = "mcp__a_server_with_a_very_long_name__a_tool_whose_name_is_longer_still_x1"
    translation = for_gemini(names=names_of(long, "3d_render"))
    body = to_gemini(
        ask(
            user("go"),
            assistant(tool_use("toolu_1", long), tool_use("toolu_2", "3d_render")),
            user(tool_result("toolu_1"), tool_result("toolu_2")),
            tools=[{**READ, "name": long}, {**READ, "name": "3d_render"}],
            tool_choice={"type": "tool", "name": long},
        ),
        translation,
    )
    declared = [tool["name"] for tool in body["tools"][0]["functionDeclarations"]]
    assert [part["functionCall"]["name"] for part in calls(body)] == declared
    assert [part["functionResponse"]["name"] for part in body["contents"][2]["parts"]] == declared
    assert body["toolConfig"]["functionCallingConfig"]["allowedFunctionNames"] == declared[:1]
    assert all(len(name) <= 64 and (name[0].isalpha() or name[0] == "_") for name in declared)
    assert [translation.names.back(name) for name in declared] == [long, "3d_render"]


def test_case_31_gemini_a_pdf_and_pictures_stand_in_their_turn():
    body = to_gemini(ask(user("look", document(), image())))
    assert body["contents"][0]["parts"] == [
        {"text": "look"},
        {"inlineData": {"mimeType": "application/pdf", "data": PDF}},
        {"inlineData": {"mimeType": "image/png", "data": PIXEL}},
    ]


def test_pictures_in_results_stand_beside_the_responses_and_say_whose_they_are():
    body = to_gemini(
        ask(
            user("go"),
            assistant(tool_use("toolu_1"), tool_use("toolu_2")),
            user(
                tool_result("toolu_1", [{"type": "text", "text": "a shot"}, image()]),
                tool_result("toolu_2", [document()]),
                "what is it?",
            ),
        )
    )
    parts = body["contents"][2]["parts"]
    assert [next(iter(part)) for part in parts] == [
        "functionResponse",
        "functionResponse",
        "text",
        "inlineData",
        "text",
        "inlineData",
        "text",
        "text",
    ]
    assert parts[0]["functionResponse"]["response"] == {"output": "a shot"}
    assert parts[1]["functionResponse"]["response"]["output"]
    assert parts[-1] == {"text": "what is it?"}


def test_pictures_and_documents_at_a_url():
    at = [
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.PNG?x=1"}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a"}},
        {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}},
    ]
    assert to_gemini(ask(user(*at)))["contents"][0]["parts"] == [
        {"fileData": {"fileUri": "https://example.com/a.PNG?x=1", "mimeType": "image/png"}},
        {"fileData": {"fileUri": "https://example.com/a"}},
        {"fileData": {"fileUri": "https://example.com/a.pdf", "mimeType": "application/pdf"}},
    ]


# ---- signatures


def test_case_32_gemini_a_thought_of_claudes_is_never_sent():
    body = to_gemini(
        ask(
            user("go"),
            assistant(thinking("SECRET", "EqQBclaude=="), "said", tool_use("toolu_1")),
            user(tool_result("toolu_1")),
        )
    )
    assert "SECRET" not in json.dumps(body)
    assert "EqQBclaude" not in json.dumps(body)
    assert [part["thoughtSignature"] for part in calls(body)] == [NO_SIGNATURE]


def test_case_34_gemini_a_call_gets_the_signature_that_it_came_with():
    vault = Vault()
    vault.put("toolu_2", Kept("gemini", "c2lnMg=="))
    vault.put("toolu_3", Kept("openai", "Zm9yZWlnbg=="))
    body = to_gemini(
        ask(
            user("go"),
            assistant(thinking("hm", join_signature("gemini", "c2lnMQ==")), tool_use("toolu_1")),
            user(tool_result("toolu_1")),
            assistant(thinking("hm", join_signature("gemini", "b2xk")), tool_use("toolu_2"), tool_use("toolu_2b")),
            user(tool_result("toolu_2"), tool_result("toolu_2b")),
            assistant(thinking("hm", join_signature("openai", "eA==")), tool_use("toolu_3"), tool_use("toolu_4")),
            user(tool_result("toolu_3"), tool_result("toolu_4")),
            assistant(thinking("hm", join_signature("gemini", "b2xk")), "a text between", tool_use("toolu_5")),
            user(tool_result("toolu_5")),
        ),
        for_gemini(vault=vault),
    )
    assert [part.get("thoughtSignature") for part in calls(body)] == [
        "c2lnMQ==",  # of the thought before it
        "c2lnMg==",  # what is remembered of the call itself comes first
        None,  # parallel calls have one signature
        NO_SIGNATURE,  # another family's is of no use
        None,
        NO_SIGNATURE,
    ]
    assert '"hm"' not in json.dumps(body)


def test_models_before_levels_of_thinking_need_no_stand_in():
    body = to_gemini(ask(user("go"), assistant(tool_use("toolu_1")), user(tool_result("toolu_1"))), for_gemini(OLDER))
    assert "thoughtSignature" not in json.dumps(body)


# ---- tools


def test_tools_and_their_schemas():
    tools = [
        {"name": "Read", "description": "Reads.", "input_schema": PATHS, "strict": True, "type": "custom", **MARK},
        {"name": "Now", "input_schema": {}, "input_examples": [{}]},
        {"name": "Hidden", "input_schema": PATHS, "defer_loading": True},
    ]
    body = to_gemini(ask(user("go"), tools=tools))
    assert body["tools"] == [
        {
            "functionDeclarations": [
                {"name": "Read", "description": "Reads.", "parametersJsonSchema": PATHS},
                {"name": "Now", "description": "Now"},
            ]
        }
    ]
    assert "toolConfig" not in body


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({"type": "auto"}, {"mode": "AUTO"}),
        ({"type": "none"}, {"mode": "NONE"}),
        ({"type": "any"}, {"mode": "ANY"}),
        ({"type": "tool", "name": "Read"}, {"mode": "ANY", "allowedFunctionNames": ["Read"]}),
        ({"type": "tool", "name": "Gone"}, {"mode": "ANY"}),
    ],
)
def test_how_to_choose_among_the_tools(choice, found):
    translation = for_gemini()
    body = to_gemini(ask(user("go"), tools=[READ], tool_choice=choice), translation)
    assert body["toolConfig"] == {"functionCallingConfig": found}
    assert not translation.single
    assert bool(translation.notes) is (choice.get("name") == "Gone")
    assert "toolConfig" not in to_gemini(ask(user("go"), tools=[], tool_choice=choice))


def test_one_call_at_a_time_is_seen_to_here():
    translation = for_gemini()
    to_gemini(
        ask(user("go"), tools=[READ], tool_choice={"type": "auto", "disable_parallel_tool_use": True}), translation
    )
    assert translation.single


def test_a_web_search_is_googles_own():
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    translation = for_gemini()
    body = to_gemini(ask(user("go"), tools=[search], tool_choice={"type": "auto"}), translation)
    assert body["tools"] == [{"googleSearch": {}}]
    assert "toolConfig" not in body
    assert translation.notes == ["max_uses of the web search was left out: Gemini's has no such setting"]


SEARCH = {"type": "web_search_20250305", "name": "web_search"}


@pytest.mark.parametrize(
    ("body", "can", "reason"),
    [
        (ask(user("x"), tools=[SEARCH]), replace(FLASH, web_search=False), "server tool web_search"),
        (ask(user("x"), tools=[{**SEARCH, "allowed_domains": ["example.com"]}]), FLASH, "certain domains"),
        (ask(user("x"), tools=[{**SEARCH, "blocked_domains": ["example.com"]}]), FLASH, "certain domains"),
        (ask(user("x"), tools=[SEARCH, READ]), FLASH, "beside other tools"),
        (
            ask(user("x"), tools=[{"type": "code_execution_20250825", "name": "code_execution"}]),
            FLASH,
            "code_execution",
        ),
        (ask(user("x"), tools=[{"type": "bash_20250124", "name": "bash"}]), FLASH, "bash_20250124"),
        (ask(user("x"), tools=[READ]), replace(FLASH, tools=False), "no tools"),
        (ask(user(image())), replace(FLASH, images=False), "no images"),
        (ask(user(image(media_type="image/gif"))), FLASH, "image/gif"),
        (ask(user(document())), replace(FLASH, documents=False), "no documents"),
        (ask(user({"type": "image", "source": {"type": "file", "file_id": "file_1"}})), FLASH, "uploaded"),
        (ask(user("x"), thread={"type": "continue", "previous_message_id": "msg_1"}), FLASH, "thread"),
        (ask(user("x"), assistant("{")), FLASH, "begun"),
        (ask(user("x"), max_tokens=0), FLASH, "max_tokens is 0"),
        (ask(), FLASH, "nothing"),
    ],
)
def test_what_cannot_be_said_is_not_routed(body, can, reason):
    with pytest.raises(Unroutable, match=reason):
        to_gemini(body, for_gemini(can))


def test_an_answer_that_is_begun_goes_to_models_that_take_it():
    assert to_gemini(ask(user("x"), assistant("{")), for_gemini(OLDER))["contents"][-1]["role"] == "model"


# ---- how to answer


def test_sampling_and_length():
    translation = for_gemini(replace(FLASH, output=4000))
    body = to_gemini(ask(user("x"), max_tokens=64000, temperature=0.5, top_p=0.9, top_k=40), translation)
    assert body["generationConfig"] == {"maxOutputTokens": 4000, "temperature": 0.5, "topP": 0.9, "topK": 40}
    assert translation.notes == ["max_tokens was 64000, and is 4000 for this model"]


def test_what_the_model_refuses_is_left_out():
    can = replace(FLASH, refuses=frozenset({"temperature", "top_p", "top_k", "stop"}))
    translation = for_gemini(can)
    body = to_gemini(ask(user("x"), temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["END"]), translation)
    assert body["generationConfig"] == {"maxOutputTokens": 8000}
    assert translation.stops == ("END",)
    assert len(translation.notes) == 3


def test_stop_sequences_beyond_the_fifth_are_watched_for_here():
    translation = for_gemini()
    body = to_gemini(ask(user("x"), stop_sequences=["a", "b", "c", "d", "e", "f", "g"]), translation)
    assert body["generationConfig"]["stopSequences"] == ["a", "b", "c", "d", "e"]
    assert translation.stops == ("f", "g")


def test_the_answers_schema():
    schema = {"type": "object", "properties": {"title": {"type": "string", "minLength": 1}}, "$schema": "x"}
    wanted = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    found = to_gemini(ask(user("x"), **wanted))["generationConfig"]
    assert found["responseMimeType"] == "application/json"
    assert found["responseJsonSchema"]["properties"]["title"]["type"] == "string"
    for can, tools in ((replace(FLASH, structured=False), None), (OLDER, [READ])):
        translation = for_gemini(can)
        found = to_gemini(ask(user("x"), tools=tools, **wanted), translation)["generationConfig"]
        assert "responseMimeType" not in found
        assert len(translation.notes) == 1


LOW = capabilities("gemini", "gemini-3-pro-preview")
ADAPTIVE, OFF = {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "disabled"}}


def budget(tokens: int, most: int = 64000) -> dict:
    return {"thinking": {"type": "enabled", "budget_tokens": tokens}, "max_tokens": most}


def shown(**config: object) -> dict:
    return {**config, "includeThoughts": True}


@pytest.mark.parametrize(
    ("can", "asked", "found"),
    [
        (FLASH, ADAPTIVE, shown(thinkingLevel="MEDIUM")),
        (FLASH, {**ADAPTIVE, "output_config": {"effort": "max"}}, shown(thinkingLevel="HIGH")),
        (FLASH, budget(2000), shown(thinkingLevel="MEDIUM")),
        (FLASH, OFF, {"thinkingLevel": "MINIMAL"}),
        (LOW, ADAPTIVE, shown(thinkingLevel="LOW")),
        (LOW, OFF, {"thinkingLevel": "LOW"}),
        (FLASH, {}, None),
        (FLASH, {"max_tokens": 512}, {"thinkingLevel": "MINIMAL"}),
        (OLDER, OFF, {"thinkingBudget": 0}),
        (OLDER, {"max_tokens": 512}, {"thinkingBudget": 0}),
        (PRO, OFF, {"thinkingBudget": 512}),
        (OLDER, budget(3000), shown(thinkingBudget=3000)),
        (OLDER, budget(31999), shown(thinkingBudget=24576)),
        (PRO, budget(31999), shown(thinkingBudget=31999)),
        (PRO, {"output_config": {"effort": "high"}, "max_tokens": 8000}, shown(thinkingBudget=4000)),
        (Capabilities(thinking="budget"), {"output_config": {"effort": "low"}}, shown(thinkingBudget=1024)),
        (
            Capabilities(thinking="budget", efforts=("none", "low")),
            {"output_config": {"effort": "high"}},
            shown(thinkingBudget=1024),
        ),
        (Capabilities(), ADAPTIVE, None),
    ],
)
def test_how_hard_to_think(can, asked, found):
    assert (
        to_gemini(ask(user("x"), **asked), for_gemini(can)).get("generationConfig", {}).get("thinkingConfig") == found
    )


def test_an_effort_that_the_model_does_not_know_is_noted():
    translation = for_gemini(LOW)
    to_gemini(ask(user("x"), thinking={"type": "adaptive"}), translation)
    assert translation.notes == ["effort medium became low"]
    unasked = for_gemini()
    to_gemini(ask(user("x"), max_tokens=512), unasked)
    assert unasked.notes == []


# ---- what must not get there


def test_nothing_tells_who_the_user_is_and_nothing_is_there_that_gemini_does_not_know():
    account = "5d8f7a3e-aaaa-bbbb-cccc-0123456789ab"
    body = to_gemini(
        ask(
            {"role": "user", "content": [{"type": "text", "text": "hi", **MARK}]},
            system=[
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.329; cch=0c0de;"},
                {"type": "text", "text": "Be brief.", **MARK},
            ],
            metadata={"user_id": json.dumps({"account_uuid": account, "session_id": "s" * 36})},
            context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            diagnostics={"previous_message_id": "msg_1"},
            speed="fast",
            unknown_key={"a": 1},
        )
    )
    assert set(body) == {"systemInstruction", "contents", "generationConfig"}
    written = json.dumps(body)
    for word in (account, "cache_control", "billing", "msg_1", "unknown_key"):
        assert word not in written


# ---- whatever comes


@settings(max_examples=150, deadline=None)
@given(bodies)
def test_whatever_the_history_is_it_is_routed_or_refused_with_a_reason(body):
    translation = for_gemini()
    try:
        found = json.loads(GEMINI.write(read(body), translation))
    except Unroutable:
        return
    roles = [content["role"] for content in found["contents"]]
    assert roles[0] == "user"
    assert all(one != other for one, other in itertools.pairwise(roles))
    before = 0
    for content in found["contents"]:
        answered = [part for part in content["parts"] if "functionResponse" in part]
        assert len(answered) == before
        assert answered == content["parts"][:before]
        assert content["parts"]
        before = sum("functionCall" in part for part in content["parts"])
    assert before == 0
