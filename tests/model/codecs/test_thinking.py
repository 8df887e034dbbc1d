"""What other models thought is taken out of a history before Claude reads it, and nothing else is touched."""

from __future__ import annotations

import copy

import pytest
from asking import ask, assistant, thinking, tool_result, tool_use, user

from dbproxy.model.codecs.thinking import without_foreign_thinking
from dbproxy.model.codecs.vault import join_signature

OWN, ALIEN = thinking("mine", "EqQBown=="), thinking("theirs", join_signature("openai", "gAAAA"))
UNSIGNED = thinking("whose?", "")
ENABLED = {"type": "enabled", "budget_tokens": 4000}
CLEARING = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}


def without(*messages: dict, everything: bool = False, **fields: object) -> dict | None:
    body = ask(*messages, **fields)
    before = copy.deepcopy(body)
    found = without_foreign_thinking(body, everything=everything)
    assert body == before  # the client's own body may still be sent as it is
    return found


def contents(body: dict | None) -> list:
    assert body is not None
    return [message["content"] for message in body["messages"]]


def test_case_33_foreign_thinking_goes_and_claudes_stays():
    found = without(
        user("go"), assistant(OWN, ALIEN, UNSIGNED, "said", tool_use("toolu_1")), user(tool_result("toolu_1"))
    )
    assert contents(found)[1] == [OWN, {"type": "text", "text": "said"}, tool_use("toolu_1")]


def test_a_history_of_claudes_alone_is_not_touched():
    redacted = {"type": "redacted_thinking", "data": "x"}
    for thinks in (None, ENABLED, {"type": "adaptive"}):
        turns = [user("go"), assistant(OWN, redacted, tool_use("toolu_1")), user(tool_result("toolu_1"))]
        assert without(*turns, thinking=thinks) is None
    assert without({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}) is None


def test_a_message_of_which_nothing_is_left_goes_as_a_whole():
    found = without(user("go"), assistant(ALIEN), user("and?"))
    assert found is not None
    assert found["messages"] == [user("go"), user("and?")]


def test_case_89_everything_goes_where_another_account_thought():
    redacted = {"type": "redacted_thinking", "data": "x"}
    found = without(user("go"), assistant(OWN, redacted, "said"), user("and?"), everything=True)
    assert contents(found)[1] == [{"type": "text", "text": "said"}]


def test_case_89_no_thinking_is_demanded_of_a_loop_that_lost_its_own():
    found = without(
        user("go"),
        assistant(ALIEN, tool_use("call_1")),
        user(tool_result("call_1")),
        thinking=ENABLED,
        context_management=CLEARING,
    )
    assert found is not None
    assert "thinking" not in found
    assert "context_management" not in found
    assert contents(found)[1] == [tool_use("call_1")]


def test_case_89_other_edits_stay_where_thinking_is_not_demanded_any_more():
    other = {"type": "clear_tool_uses_20250919"}
    found = without(
        user("go"),
        assistant(ALIEN, tool_use("call_1")),
        user(tool_result("call_1")),
        thinking=ENABLED,
        context_management={"edits": [*CLEARING["edits"], other], "x": 1},
    )
    assert found is not None
    assert found["context_management"] == {"edits": [other], "x": 1}


def test_case_89_a_loop_that_never_had_thinking_is_not_asked_for_any():
    # The other model showed none, so that nothing is taken out.
    turns = [
        user("go"),
        assistant(tool_use("call_1")),
        user(tool_result("call_1"), "note"),
        {"role": "system", "content": "s"},
    ]
    found = without(*turns, thinking=ENABLED)
    assert found is not None
    assert "thinking" not in found
    assert found["messages"] == ask(*turns)["messages"]
    assert without(*turns, thinking={"type": "adaptive"}) is None


def test_case_89_a_loop_that_lost_thinking_in_its_middle_is_not_asked_for_any():
    turns = [user("go"), assistant(OWN, tool_use("a")), user(tool_result("a")), assistant(ALIEN, tool_use("b"))]
    found = without(*turns, user(tool_result("b")), thinking=ENABLED)
    assert found is not None
    assert "thinking" not in found


@pytest.mark.parametrize(
    "turns",
    [
        # A new question begins a new turn, whatever stood before it.
        [user("go"), assistant(ALIEN, tool_use("a")), user(tool_result("a")), assistant("done"), user("and?")],
        # The loop begins with Claude's own thinking; the foreign one is older.
        [user("one"), assistant(ALIEN, "two"), user("three"), assistant(OWN, tool_use("a")), user(tool_result("a"))],
    ],
)
def test_thinking_stays_on_where_the_loop_at_hand_has_its_own(turns):
    found = without(*turns, thinking=ENABLED, context_management=CLEARING)
    assert found is not None
    assert found["thinking"] == ENABLED
    assert found["context_management"] == CLEARING


def test_claudes_later_calls_of_a_loop_need_no_thinking_of_their_own():
    turns = [
        user("go"),
        assistant(OWN, tool_use("a")),
        user(tool_result("a")),
        assistant(tool_use("b")),
        user(tool_result("b")),
    ]
    assert without(*turns, thinking=ENABLED) is None


def test_results_of_another_servers_search_become_text():
    hit = {"type": "web_search_result", "url": "https://example.com/a", "title": "A"}
    cited = {"type": "web_search_result_location", "url": "https://example.com/a", "title": "A", "cited_text": "t"}
    turn = assistant(
        {"type": "text", "text": "found", "citations": [{**cited, "encrypted_index": ""}]},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{**hit, "encrypted_content": ""}]},
    )
    found = contents(without(user("go"), turn, user("and?")))[1]
    assert [block["type"] for block in found] == ["text", "text", "text"]
    assert found[0] == {"type": "text", "text": "found"}
    assert "q" in found[1]["text"]
    assert "https://example.com/a" in found[2]["text"]


def test_claudes_own_searches_stay():
    hit = {"type": "web_search_result", "url": "https://example.com/a", "title": "A", "encrypted_content": "Eo8"}
    cited = {"type": "web_search_result_location", "url": "https://example.com/a", "encrypted_index": "Eo8"}
    failed = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    turn = assistant(
        {"type": "text", "text": "found", "citations": [cited]},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [hit]},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_2", "content": failed},
    )
    assert without(user("go"), turn, user("and?")) is None


NO_HISTORIES = [None, 3, [], [3, None, []], [{"role": "assistant"}], [{"role": "assistant", "content": [3, None]}]]


@pytest.mark.parametrize("messages", NO_HISTORIES)
def test_what_is_no_history_is_not_touched(messages):
    body = {"messages": messages, "thinking": ENABLED}
    assert without_foreign_thinking(body, everything=False) is None
    assert without_foreign_thinking({}, everything=True) is None
