"""Which request is which: every row of the client facts' table 3.3, by header and by marks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from linktalk import INSTRUCTION, continuation, said, user

from dbproxy.exchange import Fields
from dbproxy.model.kinds import classify
from dbproxy.model.link import RequestKind
from dbproxy.model.messages import MessagesRequest

CLAUDE = {"user-agent": "claude-cli/2.0.77 (external, cli)"}
TITLE_FORMAT = {"format": {"type": "json_schema", "schema": {"type": "object", "properties": {"title": {}}}}}
CLASS = "x-claude-code-request-class"


def kind(
    messages: list[dict[str, Any]], headers: dict[str, str] | None = None, path: str = "/v1/messages", **body: Any
) -> tuple[str, str]:
    whole = {
        "model": "m",
        "max_tokens": 32000,
        "stream": True,
        "tools": [{"name": "Bash"}],
        "messages": messages,
    } | body
    fields = Fields.of([(k.encode(), v.encode()) for k, v in (CLAUDE if headers is None else headers).items()])
    found, compaction, evidence = classify(MessagesRequest(json.dumps(whole).encode()), fields, path)
    assert evidence.question == "kind"
    assert evidence.answer == found
    return str(found), compaction


HI = [user("hi")]


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({CLASS: "main"}, {}, "main"),
        ({CLASS: "subagent", "x-claude-code-agent-id": "a"}, {}, "subagent"),
        ({CLASS: "workflow", "x-claude-code-agent-id": "a"}, {}, "subagent"),
        ({CLASS: "subagent", "x-claude-code-agent-id": "a", "x-claude-code-parent-agent-id": "b"}, {}, "nested"),
        ({"x-claude-code-agent-id": "a"}, {}, "subagent"),
        ({"x-claude-code-agent-id": "a", "x-claude-code-parent-agent-id": "b"}, {}, "nested"),
        ({CLASS: "main", "x-claude-code-context-compacted": "auto"}, {}, "after-compaction"),
        ({CLASS: "main", "x-cc-context-compacted": "auto"}, {}, "after-compaction"),
        ({CLASS: "auxiliary"}, {}, "auxiliary"),
        ({CLASS: "side_reply"}, {}, "auxiliary"),
        ({CLASS: "something-new"}, {}, "auxiliary"),
        ({CLASS: "auxiliary"}, {"tools": [], "output_config": TITLE_FORMAT}, "title"),
        ({CLASS: "auxiliary", "x-claude-1p-request-class": "main"}, {"tools": []}, "web"),
        ({CLASS: "auxiliary"}, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web"),
        ({CLASS: "main"}, {"max_tokens": 0}, "warmup"),
        (
            {
                "x-claude-code-request-class": "auxiliary",
                "x-claude-1p-request-class": "main",
                "anthropic-beta": "oauth-2025-04-20,auto-mode-classifier-2026-07-16",
            },
            {"tools": []},
            "auxiliary",
        ),
    ],
)
def test_by_header(headers: dict[str, str], body: dict[str, Any], expected: str) -> None:
    assert kind(HI, headers, **body)[0] == expected


@pytest.mark.parametrize(
    ("messages", "body", "expected"),
    [
        (HI, {}, "main"),
        ([user("quota")], {"max_tokens": 1, "tools": []}, "quota"),
        ([user("Warmup")], {}, "warmup"),
        (
            [user("x")],
            {"tools": [], "system": [{"type": "text", "text": "You are naming a coding session. So"}]},
            "title",
        ),
        ([user("x")], {"tools": [], "system": "Generate a concise, sentence-case title (3-7 words)"}, "title"),
        ([user("Please write a 5-10 word title for this")], {"tools": []}, "title"),
        (
            [user("x"), said("{")],
            {"tools": [], "system": "Analyze if this message indicates a new conversation topic."},
            "topic",
        ),
        ([user("x")], {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web"),
        ([user("Command: ls\nOutput: a")], {"tools": [], "system": "Extract any file paths"}, "auxiliary"),
        (
            HI,
            {"system": [{"type": "text", "text": "x-anthropic-billing-header: a=b; cc_is_subagent=true;"}]},
            "subagent",
        ),
        ([user(continuation("all of it"))], {}, "main"),
        ([user("more")], {"tools": [], "thread": {"type": "continue", "previous_message_id": "msg"}}, "main"),
    ],
)
def test_by_marks(messages: list[dict[str, Any]], body: dict[str, Any], expected: str) -> None:
    assert kind(messages, **body)[0] == expected


def test_an_unknown_program_without_tools_holds_a_conversation() -> None:
    """The marks are Claude Code's own; another program may ask for a title or say quota and mean it."""
    curl = {"user-agent": "curl/8"}
    assert kind(HI, curl, tools=[])[0] == "main"
    assert kind(HI, curl, tools=[], output_config=TITLE_FORMAT)[0] == "main"
    assert kind([user("quota")], curl, tools=[], max_tokens=1)[0] == "main"
    assert kind([user("Warmup")], curl)[0] == "main"
    assert kind([user("Please write a 5-10 word title")], curl, tools=[])[0] == "main"
    assert kind(HI, curl, tools=[{"type": "web_search_20250305", "name": "web_search"}])[0] == "main"


@pytest.mark.parametrize(
    "path", ["/v1/messages/count_tokens", "/v1/messages/count_tokens?beta=true", "/s/x/v1/messages/count_tokens"]
)
def test_count_tokens(path: str) -> None:
    assert kind(HI, {CLASS: "main"}, path)[0] == "count-tokens"


@pytest.mark.parametrize("how", ["manual", "auto", "reactive"])
def test_compaction_by_header(how: str) -> None:
    headers = {CLASS: "compaction", "x-claude-code-compaction": how, "x-claude-code-agent-id": "a"}
    assert kind(HI, headers) == ("compaction", how)


def test_compaction_by_its_instruction() -> None:
    assert kind([user("a"), said("b"), user(INSTRUCTION)]) == ("compaction", "unknown")
    assert kind([user(INSTRUCTION)], {CLASS: "main"})[0] == "main"
    assert kind([user(INSTRUCTION), said("b"), user("thanks")])[0] == "main"


def test_bodies_that_are_none() -> None:
    for body in (
        b"",
        b"[]",
        b"\xff",
        b'{"messages": 7, "system": {}, "tools": "x", "thread": []}',
        b'{"messages":[1,null]}',
    ):
        found, compaction, _ = classify(MessagesRequest(body), Fields.of([(b"user-agent", b"curl")]))
        assert (found, compaction) == (RequestKind.MAIN, "")
