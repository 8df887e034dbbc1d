"""The real client with agents that other models answer: what they do, what comes back, what the others never see.

The main thread is on the fake Messages API, the agents on the fake OpenAI API (Chat and Responses) and the fake Gemini
API. `dbproxy explain` must tell why each request went where it went.
"""

from __future__ import annotations

import json

import pytest
from clients import NEWEST
from elsewhere import (
    ALLOWED,
    CLAUDES,
    KEYS,
    PROVIDERS,
    agent,
    at_claude,
    body,
    call,
    delegating,
    first_turn,
    go,
    mark,
    texts,
)
from island import OPENAI_PORT

from dbproxy.testing.providers import GEMINI_KEY, MARKER, OPENAI_KEY

pytestmark = pytest.mark.realclient

EVERYONE = ("code-reviewer", "doc-writer", "planner")
AGENTS = {name: agent(name) for name in EVERYONE}
#: How another model answers an agent: it calls two of the tools, and reports what they said.
AGENT = {"scenario": "agent"}
PATHS = {
    "code-reviewer": "/v1/chat/completions",
    "doc-writer": "/v1beta/models/gemini-2.5-pro:streamGenerateContent",
    "planner": "/v1/responses",
}
REASON = "because the agent is named {}, as the spawn ledger says"

#: What the older client does not have.
ONLY_NEWEST = pytest.mark.parametrize("client", [NEWEST], indirect=True, ids=lambda one: one.version)


def asked_by(outcome, name):
    """What other providers received from one agent, in order."""
    return [one for one in (*outcome.story.openai, *outcome.story.gemini) if mark(name) in texts(body(one))]


def models(outcome):
    """The models at OpenAI that each agent was answered by."""
    return {name: {body(request)["model"] for request in asked_by(outcome, name)} for name in EVERYONE}


def succeeded(outcome):
    """Nobody saw a failure: neither the client nor a provider; and the main thread came to its end."""
    assert outcome.events[-1]["result"] == "OK from the fake API.", outcome.story
    assert not outcome.events[-1]["is_error"]
    received = [*outcome.story.openai, *outcome.story.gemini]
    assert {request.about["answer"]["status"] for request in received} <= {200}, outcome.story
    assert not outcome.said("plugin_failed")
    assert {row["outcome"] for row in outcome.rows} == {"ok"}


def worked(outcome):
    """Every agent called its tools at its own provider, read what they said, and reported to the main thread."""
    succeeded(outcome)
    assert outcome.agents_at_claude == []
    assert outcome.story.roles.count("main") == len(outcome.story.messages)
    for name in EVERYONE:
        first, second = asked_by(outcome, name)
        assert first.path == second.path == PATHS[name]
        assert f"do what {name} does" in texts(body(first))
        shown = texts(body(second))
        assert "# scratch" in shown
        assert "from another provider" in shown
    assert outcome.reports.count(f"{MARKER}: 2 results.") == len(EVERYONE)
    assert not outcome.given_away()


_runs = {}


@pytest.fixture
def usual(island, client):
    """One run of each client, looked at from all sides: three agents beside each other, as the client starts them."""
    if client.version not in _runs:
        _runs[client.version] = go(island, [delegating(*EVERYONE)], AGENT, agents=AGENTS)
    return _runs[client.version]


def test_agents_beside_each_other_on_three_apis(usual):
    worked(usual)


def test_agents_started_in_the_other_way(island, client):
    """2.1.329 starts them in the background by itself, 2.1.112 waits for them."""
    worked(go(island, [delegating(*EVERYONE, background=client is not NEWEST)], AGENT, agents=AGENTS))


def test_each_request_tells_why_it_went_there(usual):
    told = {name: [text for text in usual.explained() if f"agent {name} " in text] for name in EVERYONE}
    targets = ("gpt-4o at openai", "gemini-2.5-pro at gemini", "gpt-5-codex at openai")
    rules = ("code-reviewer = gpt-4o", "doc-writer = gemini:gemini-2.5-pro", "planner = gpt-5-codex")
    for name, target, rule in zip(EVERYONE, targets, rules, strict=True):
        assert len(told[name]) == 2
        for text in told[name]:
            assert f"It was answered by {target} by the rule {rule}" in text
            assert f"The model is {target.partition(' ')[0]}" in text
        assert REASON.format(name) in told[name][0]


def test_a_key_goes_to_its_provider_and_nowhere_else(usual):
    story = usual.story
    assert {request.field("authorization") for request in story.openai} == {f"Bearer {OPENAI_KEY}"}
    assert {request.field("x-goog-api-key") for request in story.gemini} == {GEMINI_KEY}
    assert GEMINI_KEY.encode() not in b"".join(request.head + request.body for request in story.openai)
    assert OPENAI_KEY.encode() not in b"".join(request.head + request.body for request in story.gemini)
    keys = (OPENAI_KEY.encode(), GEMINI_KEY.encode())
    assert not any(key in request.head + request.body for request in story.requests for key in keys)
    files = [path for path in (usual.home / ".local" / "share" / "dbproxy").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert [path for path in files if any(key in path.read_bytes() for key in keys)] == []


def test_nothing_of_an_account_reaches_another_provider(island, client):
    """The client is logged in: it tells Claude a token, and the account's id."""
    account = "11111111-2222-4333-8444-555555555555"
    state = island.home / ".claude.json"
    known = json.loads(state.read_text()) | {"oauthAccount": {"accountUuid": account, "emailAddress": "a@example.test"}}
    state.write_text(json.dumps(known))
    env = {"ANTHROPIC_API_KEY": None, "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-" + "dummy"}
    outcome = go(island, [delegating(*EVERYONE)], AGENT, agents=AGENTS, env=env)
    worked(outcome)
    told = outcome.story.messages[0]
    assert told.field("authorization") == f"Bearer {env['CLAUDE_CODE_OAUTH_TOKEN']}"
    assert account in body(told)["metadata"]["user_id"]
    assert account in outcome.private
    assert env["CLAUDE_CODE_OAUTH_TOKEN"] in outcome.private


def test_agents_that_nobody_moves_stay(island, client):
    """Beside one that goes: a rule that says so, and none at all."""
    settings = PROVIDERS + '[routes]\nCode-Reviewer = "gpt-4o"\nplanner = "claude"\n'
    rules = [*at_claude("planner", "doc-writer"), delegating(*EVERYONE)]
    outcome = go(island, rules, AGENT, settings=settings, agents=AGENTS)
    succeeded(outcome)
    assert sorted(outcome.agents_at_claude) == ["doc-writer", "planner"]
    assert outcome.agents_at("openai") == ["code-reviewer"] * 2
    told = {name: [text for text in outcome.explained() if f"agent {name} " in text] for name in EVERYONE}
    assert "It stayed where the client sent it by the rule planner = claude" in told["planner"][0]
    assert "by the rule" not in told["doc-writer"][0]
    assert "answered by" not in told["doc-writer"][0]


def test_a_rule_for_all_of_a_type_and_a_better_one(island, client):
    settings = PROVIDERS + '[routes]\n"type:custom" = "gemini:gemini-2.5-pro"\ncode-reviewer = "openai/gpt-4o"\n'
    outcome = go(island, [delegating(*EVERYONE)], AGENT, settings=settings, agents=AGENTS)
    succeeded(outcome)
    assert outcome.agents_at_claude == []
    assert outcome.agents_at("openai") == ["code-reviewer"] * 2
    assert sorted(outcome.agents_at("gemini")) == ["doc-writer"] * 2 + ["planner"] * 2


def test_the_seeds_variable(island, client):
    env = {
        "SUBAGENT_MAPPINGS": "code-reviewer:gpt-4o,doc-writer:gpt-3.5-turbo",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{OPENAI_PORT}/v1",
    }
    rules = [*at_claude("planner"), delegating(*EVERYONE)]
    outcome = go(island, rules, AGENT, settings="", env=env, agents=AGENTS)
    succeeded(outcome)
    assert outcome.agents_at_claude == ["planner"]
    assert models(outcome) == {"code-reviewer": {"gpt-4o"}, "doc-writer": {"gpt-3.5-turbo"}, "planner": set()}
    assert not outcome.given_away()


#: As the seed's README has it.
SEED_FILE = """\
server:
  port: 3001

providers:
  anthropic:
    base_url: "https://api.anthropic.com"

  openai: # if enabling subagent routing
    api_key: "your-openai-key"  # Or set OPENAI_API_KEY env var

storage:
  db_path: "requests.db"

subagents:
  enable: true  # Set to true to enable subagent routing
  mappings:
    code-reviewer: "gpt-4o"
    data-analyst: "o3"
    doc-writer: "gpt-3.5-turbo"
"""


def test_the_seeds_file(island, client):
    (island.project / "config.yaml").write_text(SEED_FILE)
    before = (island.step("dbproxy", "config", "import", "config.yaml"),)
    env = {"OPENAI_BASE_URL": f"http://127.0.0.1:{OPENAI_PORT}/v1"}
    rules = [*at_claude("planner"), delegating(*EVERYONE)]
    outcome = go(island, rules, AGENT, settings="", before=before, env=env, agents=AGENTS)
    succeeded(outcome)
    assert outcome.agents_at_claude == ["planner"]
    assert models(outcome) == {"code-reviewer": {"gpt-4o"}, "doc-writer": {"gpt-3.5-turbo"}, "planner": set()}
    assert not outcome.given_away()


def test_what_an_agents_own_file_says(island, client):
    agents = {
        "code-reviewer": agent("code-reviewer", more="model: openai:gpt-4o\n"),
        "doc-writer": agent("doc-writer", more="model: haiku\nroute: gemini:gemini-2.5-pro\n"),
        "planner": agent("planner", more="model: haiku\n"),
    }
    outcome = go(island, [*at_claude("planner"), delegating(*EVERYONE)], AGENT, settings=PROVIDERS, agents=agents)
    succeeded(outcome)
    assert outcome.agents_at_claude == ["planner"]
    assert outcome.agents_at("openai") == ["code-reviewer"] * 2
    assert outcome.agents_at("gemini") == ["doc-writer"] * 2
    assert not outcome.given_away()


def test_an_agent_is_known_before_the_answer_that_started_it_has_ended(island, client):
    """2.1.329 starts an agent when its call's block ends; the main model may go on for long after that. This one has no
    file, so that its name stands in the call alone."""
    made = {"description": "Plans.", "prompt": f"{mark('planner')}.", "tools": ["Read", "Bash"]}
    slow = first_turn("I delegate.", call("planner"), "And I go on talking.", stall_after=8, stall=4.0)
    words = (*ALLOWED, "--agents", json.dumps({"planner": made}))
    outcome = go(island, [slow], AGENT, agents={}, words=words)
    succeeded(outcome)
    assert outcome.agents_at_claude == []
    assert outcome.agents_at("openai") == ["planner"] * 2
    assert REASON.format("planner") in outcome.explained()[0]
    early = outcome.story.openai[1].finished < outcome.story.messages[0].finished
    assert early == (client is NEWEST)


@ONLY_NEWEST  # 2.1.112 gives its agents no tool to start agents with
def test_an_agent_elsewhere_starts_an_agent_elsewhere(island, client):
    started = call("code-reviewer", background=False) | {"id": "call_inner"}
    rules = [
        {"match": {"anywhere": mark("planner"), "tool_results": 0}, "answer": {"blocks": [started]}},
        {"match": {"anywhere": mark("planner")}, "answer": {"text": "The planner has heard of it."}},
    ]
    providers = {"openai": {"rules": rules}, "gemini": AGENT}
    settings = PROVIDERS + '[routes]\nplanner = "gpt-5-codex"\ncode-reviewer = "gemini:gemini-2.5-pro"\n'
    agents = {"planner": agent("planner", tools="Read, Agent"), "code-reviewer": agent("code-reviewer")}
    outcome = go(island, [delegating("planner")], providers, settings=settings, agents=agents)
    succeeded(outcome)
    assert outcome.agents_at_claude == []
    assert outcome.agents_at("gemini") == ["code-reviewer"] * 2
    assert outcome.agents_at("openai") == ["planner"] * 2
    assert f"{MARKER}: 2 results." in texts(body(outcome.story.openai[-1]))
    assert "The planner has heard of it." in outcome.reports
    assert [row["kind"] for row in outcome.rows].count("nested") == 2
    assert REASON.format("code-reviewer") in outcome.explained("nested")[0]
    assert not outcome.given_away()


def test_without_rules_and_keys_nothing_goes_elsewhere(island, client):
    rules = [*at_claude(*EVERYONE), delegating(*EVERYONE)]
    outcome = go(island, rules, AGENT, settings="", env=dict.fromkeys(KEYS), agents=AGENTS)
    succeeded(outcome)
    assert not outcome.story.openai
    assert not outcome.story.gemini
    assert sorted(outcome.agents_at_claude) == sorted(EVERYONE)
    assert all(f"{CLAUDES} {name}." in outcome.reports for name in EVERYONE)
