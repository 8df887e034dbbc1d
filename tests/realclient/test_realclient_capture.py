"""What is captured of the real client, as `dbproxy conversations show` draws it: agents by name, nesting, compaction.

2.1.329 names its agents' ids in headers; 2.1.112 sends none, so that only the calls tell who speaks (client facts 3.3).
"""

from __future__ import annotations

import json
import re

import pytest
import wirebytes
from clients import NEWEST

from dbproxy.store.reader import Reader

pytestmark = pytest.mark.realclient

AGENTS = {
    "planner.md": (
        "---\nname: planner\ndescription: Plans work and hands parts of it on.\ntools: Read, Agent\n---\n"
        "You plan the work of this project and hand parts of it on.\n"
    ),
    "code-reviewer.md": (
        "---\nname: code-reviewer\ndescription: Reviews code. Use after any code change.\ntools: Read, Bash\n"
        "model: haiku\n---\nYou are the reviewer of this project. Look at the files and report.\n"
    ),
}


def call(kind, prompt):
    return {
        "type": "tool_use",
        "name": "Agent",
        "input": {"description": prompt, "prompt": prompt, "subagent_type": kind},
    }


def rule(match, *blocks):
    return {"match": match, "answer": {"blocks": list(blocks)}}


SCRIPT = {
    "rules": [
        rule({"anywhere": "You plan the work", "tool_results": 0}, call("code-reviewer", "review the inner part")),
        rule({"anywhere": "You plan the work"}, "The plan is made."),
        rule({"anywhere": "You are the reviewer of"}, "Review: no findings."),
        rule(
            {"role": "main", "text": "please do it", "tool_results": 0},
            "I will delegate.",
            call("planner", "plan the outer part"),
            call("code-reviewer", "review the outer part"),
        ),
    ],
    "scenario": "compact",
    "options": {"steps": 0},
}
RUNS = (
    ("-p", "please do it", "--allowedTools", "Read,Agent,Task"),
    ("-p", "/compact keep the file names", "--continue"),
    ("-p", "next question", "--continue"),
)
ASKED = (
    ("conversations", "show", "last"),
    ("conversations", "show", "last", "--json"),
    ("log", "verify", "--json"),
    ("log", "list", "--json"),
)


class Captured:
    """What the commands said about one run, and the file itself."""

    def __init__(self, island, client):
        for name, text in AGENTS.items():
            (island.project / ".claude" / "agents" / name).write_text(text)
        steps = [island.step("dbproxy", "claude", *words) for words in RUNS]
        steps.append(island.step("dbproxy", "stop"))
        steps += [island.step("dbproxy", *words) for words in ASKED]
        self.story = island.run(SCRIPT, *steps)
        assert [step.code for step in self.story.steps] == [0] * len(steps), self.story
        self.drawn, *told = (step.stdout for step in self.story.steps[-len(ASKED) :])
        self.tree, self.verified, self.rows = (json.loads(text) for text in told)
        self.project = str(island.project)
        self.database = island.home / ".local" / "share" / "dbproxy" / "dbproxy.sqlite"
        self.newest = client is NEWEST

    def evidence(self, exchange):
        """(answer, source) of each question that linking asked about an exchange."""
        with Reader.open(self.database) as reader:
            return {one.question: (one.answer, one.source) for one in reader.exchange(exchange).evidence}


_runs: dict[str, Captured] = {}


@pytest.fixture
def captured(island, client):
    """One run of each client, looked at from all sides."""
    if client.version not in _runs:
        _runs[client.version] = Captured(island, client)
    return _runs[client.version]


def kinds(branch):
    return [row["kind"] for row in branch["exchanges"]]


def agents(thread):
    """What each agent of a thread is called, its number, its kinds of requests, and the same of those below it."""
    return [
        (
            made["agent"]["name"],
            made["agent"]["type"],
            made["agent"]["number"],
            *map(kinds, made["branches"]),
            agents(made),
        )
        for made in thread["agents"]
    ]


def plain(drawn):
    """The tree's lines as (depth, text before the sums), ids left out."""
    lines = drawn[drawn.index("\nmain ") :].strip().splitlines()
    found = []
    for line in lines:
        text = line.lstrip("│├└─ ")
        found.append(((len(line) - len(text)) // 3, re.sub(r" [0-9a-f]{18}\b", "", text.partition("  ")[0])))
    return found


def test_the_tree_shows_agents_by_name_and_the_compaction(captured):
    main, inner = captured.tree["main"], ["nested"]
    # 2.1.112 gives its agents no tool to start agents with, so nothing can be nested there.
    nested = [("code-reviewer", "custom", 1, inner, [])] if captured.newest else []
    assert agents(main) == [
        ("planner", "custom", 1, ["subagent", "subagent"], nested),
        ("code-reviewer", "custom", 2, ["subagent"], []),
    ]
    first, second = main["branches"]
    assert kinds(first) == ["main"] * (len(first["exchanges"]) - 1) + ["compaction"]
    assert kinds(second) == ["after-compaction"]
    compaction, after = first["exchanges"][-1], second["exchanges"][0]
    assert (after["edge"], after["parent"]) == ("compacted", compaction["id"])
    assert (compaction["edge"], compaction["parent"]) == ("aside", first["exchanges"][-2]["id"])
    # Without headers nobody says who wanted it.
    assert compaction["compaction"] == after["compaction"] == ("manual" if captured.newest else "unknown")
    assert plain(captured.drawn) == [
        (0, "main"),
        (1, "branch 1"),
        (2, "agent 1: planner (custom)"),
        *([(3, "agent 1: code-reviewer (custom)")] if captured.newest else []),
        (2, "agent 2: code-reviewer (custom)"),
        (2, f"compaction ({compaction['compaction']})"),
        (1, "branch 2: after the compaction"),
    ]


def test_every_request_is_in_it_once_and_exact(captured):
    tree, story = captured.tree, captured.story
    assert tree["conversation"]["project"] == captured.project
    assert tree["conversation"]["compactions"] == 1
    assert tree["conversation"]["agents"] == (3 if captured.newest else 2)
    rows = [row for row in captured.rows if row["path"] == "/v1/messages"]
    assert {row["conversation"] for row in rows} == {tree["conversation"]["id"]}
    assert {row["outcome"] for row in rows} == {"ok"}
    assert len(rows) == len(story.messages)
    assert captured.verified["wrong"] == captured.verified["inexact"] == 0
    assert captured.verified["exact"] == len(rows)
    sizes = sorted(len(wirebytes.messages(request.head + request.body)[0].body) for request in story.messages)
    assert sorted(row["bytes_up"] for row in rows) == sizes


def test_the_evidence_is_kept(captured):
    threads = {made["agent"]["number"]: made for made in captured.tree["main"]["agents"]}
    first = threads[1]["branches"][0]["exchanges"][0]["id"]
    found = captured.evidence(first)
    assert found["name"] == ("planner", "spawn ledger")
    assert found["call"][0] == threads[1]["agent"]["tool_use_id"]
    if captured.newest:
        assert found["agent"] == (threads[1]["key"], "x-claude-code-agent-id")
        assert found["call"][1] == "agent id in the tool result"
        assert found["kind"] == ("subagent", "header")
    else:
        assert found["agent"][1] == found["call"][1] == "equal prompt"
    assert found["session"] == (captured.tree["conversation"]["id"], "x-claude-code-session-id")
