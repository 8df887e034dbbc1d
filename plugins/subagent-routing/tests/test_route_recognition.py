"""Who asks: by the head alone, with a link, and what of a body is looked at."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from dbproxy_subagent_routing.book import Standing
from dbproxy_subagent_routing.recognition import (
    Asked,
    Head,
    Role,
    asker_of,
    is_first,
    may_concern,
    place_of,
    read_asked,
)
from dbproxy_subagent_routing.rules import Asker, RuleSet, read_rules

from dbproxy.api import Agent, Edge, Evidence, Fields, Link, RequestKind


def head(said: str = "", agent: str = "", type: str = "", session: str = "s-1") -> Head:
    names = {
        "X-Claude-Code-Session-Id": session,
        "x-claude-code-request-class": said,
        "x-claude-code-agent-id": agent,
        "x-claude-code-agent-type": type,
    }
    return Head.of(Fields.of([(name.encode(), value.encode()) for name, value in names.items() if value]))


def link(kind: RequestKind, thread: str = "main", agent: Agent | None = None, edge: Edge = Edge.NEXT) -> Link:
    named = (Evidence("name", "code-reviewer", "agent file"),) if agent is not None and agent.name else ()
    return Link("e1", "s-1", thread, 1, kind, edge=edge, agent=agent, evidence=named)


@pytest.mark.parametrize(
    ("said", "agent", "role"),
    [
        ("main", "", Role.MAIN),
        ("main", "a1", Role.AGENT),
        ("subagent", "a1", Role.AGENT),
        ("workflow", "a1", Role.AGENT),
        ("subagent", "", Role.AGENT),
        ("", "a1", Role.AGENT),
        ("compaction", "", Role.COMPACTION),
        ("compaction", "a1", Role.COMPACTION),
        ("auxiliary", "", Role.SIDE),
        ("side_reply", "a1", Role.SIDE),
        ("something-new", "", Role.SIDE),
        ("", "", Role.UNKNOWN),
    ],
)
def test_what_the_class_says(said, agent, role):
    assert head(said, agent).role is role


def test_the_place_that_a_head_tells():
    assert head("subagent", "a1").place == ("s-1", "a1")
    assert head("compaction", "a1").place == ("s-1", "a1")
    assert head("main").place == ("s-1", "main")
    assert head("compaction").place == ("s-1", "main")
    assert head("auxiliary").place is None
    assert head("").place is None
    assert head("subagent", "a1", session="").place is None


BY_NAME, BY_KIND, MAIN, SIDE, SUMMARY, MODEL, NONE = (
    RuleSet(read_rules(dict.fromkeys(keys, "a:b")))
    for keys in (["x"], ["kind:subagent"], ["kind:main"], ["kind:title"], ["kind:compaction"], ["model:y"], [])
)


@pytest.mark.parametrize(
    ("rules", "roles"),
    [
        (NONE, set()),
        (BY_NAME, {Role.AGENT, Role.UNKNOWN}),
        (BY_KIND, {Role.AGENT, Role.UNKNOWN}),
        (MAIN, {Role.AGENT, Role.MAIN, Role.UNKNOWN}),
        (SIDE, {Role.AGENT, Role.SIDE, Role.UNKNOWN}),
        (SUMMARY, {Role.AGENT, Role.COMPACTION, Role.UNKNOWN}),
        (MODEL, set(Role)),
    ],
)
def test_a_request_that_no_rule_can_fit_is_left_alone(rules, roles):
    heads = {role: Head(role, "s-1", agent_type="Explore") for role in Role}

    def concerned(*, anybody: bool = False, chosen: bool = False, type: str = "Explore", **how: bool) -> set[Role]:
        given = {"pinned": False, "passed": False, **how}
        standing = Standing(anybody, chosen)
        asked = {role: replace(one, agent_type=type) for role, one in heads.items()}
        return {role for role, one in asked.items() if may_concern(rules, one, standing, **given)}

    assert concerned() == roles
    assert concerned(pinned=True) == set(Role)
    assert concerned(passed=True) == roles - {Role.AGENT}
    # Where somebody could answer, a custom agent's own file may say so; the main line and the client's own have none.
    assert concerned(anybody=True) == roles
    assert concerned(anybody=True, type="custom") == concerned(anybody=True, type="") == roles | {Role.AGENT}
    assert concerned(anybody=True, chosen=True) == roles | {Role.AGENT, Role.UNKNOWN}


def test_an_agents_turn():
    agent = Agent("a1", "custom", "code-reviewer", tool_use_id="toolu_1")
    made = asker_of(link(RequestKind.SUBAGENT, "a1", agent), head("subagent", "a1", "custom"), "m")
    assert made == Asker("subagent", True, "code-reviewer", "custom", "m", "agent file")
    nested = asker_of(link(RequestKind.NESTED, "a1", Agent("a1", "Explore")), head("subagent", "a1", "Explore"), "m")
    assert nested == Asker("nested", True, "", "Explore", "m", "header x-claude-code-agent-type")
    old = asker_of(link(RequestKind.SUBAGENT, "t1", Agent("t1", "Plan", tool_use_id="t1")), head(), "m")
    assert old == Asker("subagent", True, "", "Plan", "m", "spawn ledger")


@pytest.mark.parametrize(
    ("kind", "thread", "asker"),
    [
        (RequestKind.MAIN, "main", Asker("main")),
        (RequestKind.AFTER_COMPACTION, "main", Asker("main")),
        (RequestKind.AFTER_COMPACTION, "a1", Asker("subagent", True)),
        (RequestKind.COMPACTION, "a1", Asker("compaction")),
        (RequestKind.TITLE, "", Asker("title")),
        (RequestKind.COUNT_TOKENS, "", Asker("count-tokens")),
    ],
)
def test_other_turns_are_no_agents(kind, thread, asker):
    assert asker_of(link(kind, thread), head(), "") == asker


def test_without_a_link_the_head_has_to_do():
    assert asker_of(None, head("subagent", "a1", "Explore"), "m").type == "Explore"
    assert asker_of(None, head("main"), "m") == Asker("main", model="m")
    assert asker_of(None, head("compaction"), "m") == Asker("compaction", model="m")
    assert asker_of(None, head("auxiliary"), "m") == Asker("", model="m")
    assert asker_of(None, head(), "m") == Asker("", model="m")


def test_the_place_of_a_request():
    assert place_of(link(RequestKind.SUBAGENT, "a1"), head()) == ("s-1", "a1")
    assert place_of(link(RequestKind.TITLE, ""), head("subagent", "a1")) is None
    assert place_of(None, head("subagent", "a1")) == ("s-1", "a1")
    assert place_of(None, head("auxiliary", "a1")) is None
    assert place_of(None, head()) is None


@pytest.mark.parametrize("edge", Edge)
def test_how_a_thread_begins(edge):
    assert is_first(link(RequestKind.SUBAGENT, "a1", edge=edge)) is (edge in (Edge.SPAWN, Edge.ROOT))


USER, ASSISTANT = {"role": "user", "content": 'the "assistant"'}, {"role": "assistant", "content": "well"}


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"model": "m", "messages": [USER]}, Asked("m", False, True)),
        ({"model": "m", "messages": [USER, ASSISTANT, USER]}, Asked("m", False, False)),
        ({"model": "m", "messages": [USER], "thread": {"type": "create"}}, Asked("m", True, True)),
        (
            {"model": "m", "messages": [USER], "thread": {"type": "continue", "previous_message_id": "x"}},
            Asked("m", True, False),
        ),
        ({"model": 5, "messages": [], "thread": None}, Asked("", False, True)),
        ({}, Asked("", False, True)),
    ],
)
def test_what_of_a_body_is_looked_at(body, asked):
    assert read_asked(json.dumps(body).encode()) == asked
    assert read_asked(json.dumps(body, indent=1).encode()) == asked


@pytest.mark.parametrize(
    ("tools", "guarded"),
    [
        ([], ""),
        (None, ""),
        (["Read", "Grep", "Edit", "Write", "TodoWrite", "SubagentHandback", "TaskUpdate"], ""),
        (["Read", "Bash"], "Bash"),
        (["WebFetch"], "WebFetch"),
        (["Agent"], "Agent"),
        (["Task"], "Task"),
        (["mcp__github__push"], "mcp__github__push"),
        ([{"type": "web_search_20250305"}], "web_search_20250305"),
        ([{}], "a tool"),
        ([5], ""),
    ],
)
def test_a_tool_whose_use_the_clients_auto_mode_wants_judged(tools, guarded):
    listed = [{"name": tool} if isinstance(tool, str) else tool for tool in tools] if tools is not None else None
    body = {"model": "m", "tools": listed}

    def of(safeguards: object) -> str:
        asked = read_asked(json.dumps({**body, "safeguards": safeguards}).encode())
        assert asked is not None
        return asked.guarded

    assert of([{"type": "dangerous_tool_use"}]) == guarded
    assert of([]) == ""
    assert of(None) == ""
    assert read_asked(json.dumps(body).encode()) == Asked("m", begins=True)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"model":"a","model":"b"}', b'{"model":', b"\xff"])
def test_what_is_no_object_is_nobodys(body):
    assert read_asked(body) is None
