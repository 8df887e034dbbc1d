"""The real client when a provider fails, is full, or cannot serve it: the main thread sees nothing but results.

What the client does at each kind of answer was measured (client facts 4.2, 4.4 and 5); here the proxy stands between.
"""

from __future__ import annotations

import pytest
from clients import NEWEST
from elsewhere import (
    BY_NAME,
    CLAUDES,
    KEYS,
    PROVIDERS,
    agent,
    at_claude,
    bash,
    body,
    call,
    delegating,
    first_turn,
    go,
    mark,
    texts,
)
from island import GEMINI_PORT

from dbproxy.testing.origin import events
from dbproxy.testing.providers import MARKER

pytestmark = pytest.mark.realclient

AGENT = {"scenario": "agent"}
LONG = "word " * 400
REVIEWER = {"code-reviewer": agent("code-reviewer")}
#: Nobody is left alone for the failures of others here.
PATIENT = PROVIDERS.replace("retries = 1", "retries = 1\nfailures = 100")

#: What the older client does not have.
ONLY_NEWEST = pytest.mark.parametrize("client", [NEWEST], indirect=True, ids=lambda one: one.version)


def well(outcome):
    """The main thread came to its end as if nothing had been."""
    assert outcome.events[-1]["result"] == "OK from the fake API.", outcome.story
    assert not outcome.events[-1]["is_error"]
    assert "terminated early" not in outcome.reports
    assert "API Error" not in outcome.reports
    assert not outcome.said("plugin_failed")


def told_of(outcome, name):
    """What `dbproxy explain` says of an agent's requests, the first first."""
    return [text for text in outcome.explained() if f"agent {name} " in text]


def at_openai(name, answer, **rule):
    """A rule of the fake OpenAI's for one agent."""
    return {"match": {"method": "POST", "anywhere": mark(name)}, "answer": answer, **rule}


#: What a provider may do before it has said a word, and what is told of it.
BEFORE = {
    "broken": {"status": 500, "fail": {"message": "The server had an error."}},
    "keyless": {"status": 401, "fail": {"message": "Incorrect API key provided."}},
    "limited": {"status": 429, "retry_after": 3600, "fail": {"message": "Rate limit reached."}},
    "silent": {"text": "never seen", "cut_after": -1},
    "failing": {"text": LONG, "error_after": 0},
    "misled": {"status": 200, "body": "<html>maintenance</html>", "content_type": "text/html"},
}


def test_a_provider_that_fails_before_its_first_word(island, client):
    """Claude answers, in the same request of the client's; the agents beside do not notice."""
    routes = "".join(f'{name} = "gpt-4o"\n' for name in (*BEFORE, "lucky"))
    settings = PATIENT.replace(f":{GEMINI_PORT}", ":9") + f'[routes]\n{routes}lonely = "gemini:gemini-2.5-pro"\n'
    rules = [at_openai(name, answer) for name, answer in BEFORE.items()]
    lost = (*BEFORE, "lonely")
    outcome = go(
        island,
        [*at_claude(*lost), delegating(*lost, "lucky")],
        {"openai": {"rules": rules, **AGENT}, "gemini": AGENT},
        settings=settings,
        agents={name: agent(name) for name in (*lost, "lucky")},
        seconds=90,
    )
    well(outcome)
    assert sorted(outcome.agents_at_claude) == sorted(lost)  # once each: what was tried before is the proxy's business
    for name in lost:
        assert f"{CLAUDES} {name}." in outcome.reports
        (told,) = told_of(outcome, name)
        assert f"It was to go elsewhere by the rule {name} = " in told
        assert "the upstream that the client chose answered instead" in told
        assert "\nTried " in told
    assert f"{MARKER}: 2 results." in outcome.reports
    assert outcome.agents_at("openai").count("lucky") == 2
    assert outcome.agents_at("openai").count("broken") == 2  # once more before Claude is asked
    assert not outcome.given_away()


def test_a_provider_that_fails_once_and_one_that_fails_in_the_middle(island, client):
    """The first is asked again unseen. Of the others the client learns by an error event, and asks for the whole: from
    one it comes, the last one's Claude has to give."""
    middle = {"text": LONG, "error_after": 4}
    rules = [
        at_openai("hiccup", BEFORE["broken"], times=1),
        at_openai("stumbling", middle, times=1),
        at_openai("cut", {"text": LONG, "cut_after": 4}, times=1),
        {"match": {"method": "POST", "anywhere": mark("falling"), "stream": True}, "answer": middle},
        at_openai("falling", BEFORE["broken"]),
    ]
    names = ("hiccup", "stumbling", "cut", "falling")
    settings = PATIENT + "[routes]\n" + "".join(f'{name} = "gpt-4o"\n' for name in names)
    outcome = go(
        island,
        [*at_claude("falling"), delegating(*names)],
        {"openai": {"rules": rules, **AGENT}, "gemini": AGENT},
        settings=settings,
        agents={name: agent(name) for name in names},
        seconds=90,
    )
    well(outcome)
    assert outcome.agents_at_claude == ["falling"]
    assert f"{CLAUDES} falling." in outcome.reports
    assert outcome.reports.count(f"{MARKER}: 2 results.") == 3
    asked = {
        name: [
            (body(request).get("stream", False), request.about["answer"]["status"])
            for request in outcome.story.openai
            if mark(name) in texts(body(request))
        ]
        for name in names
    }
    assert asked["hiccup"] == [(True, 500), (True, 200), (True, 200)]
    assert asked["stumbling"] == asked["cut"] == [(True, 200), (False, 200), (True, 200)]
    assert asked["falling"] == [(True, 200), (False, 500), (False, 500)]
    assert "It was to go elsewhere by the rule stumbling = gpt-4o" in told_of(outcome, "stumbling")[0]
    assert "and failed there" in told_of(outcome, "stumbling")[0]
    assert "\nTried openai:gpt-4o: " in told_of(outcome, "hiccup")[0]
    assert not outcome.given_away()


def test_a_rule_whose_provider_has_no_key(island, client):
    rules = [*at_claude("code-reviewer"), delegating("code-reviewer")]
    outcome = go(island, rules, AGENT, env=dict.fromkeys(KEYS), agents=REVIEWER)
    well(outcome)
    assert not outcome.story.openai
    assert f"{CLAUDES} code-reviewer." in outcome.reports
    (told,) = told_of(outcome, "code-reviewer")
    assert "It stayed where the client sent it by the rule code-reviewer = gpt-4o" in told
    assert "no key: set OPENAI_API_KEY" in told


def test_claude_is_not_asked_for_another_ones_model(island, client):
    """An agent's file may name the model: Claude gets the name of one that it has when that provider fails."""
    agents = {"code-reviewer": agent("code-reviewer", more="model: openai:gpt-4o\n")}
    providers = {"openai": {"rules": [{"match": {"method": "POST"}, "answer": BEFORE["broken"]}]}, "gemini": AGENT}
    rules = [*at_claude("code-reviewer"), delegating("code-reviewer")]
    outcome = go(island, rules, providers, settings=PROVIDERS, agents=agents)
    well(outcome)
    assert f"{CLAUDES} code-reviewer." in outcome.reports
    assert outcome.agents_at("openai") == ["code-reviewer"] * 2
    asked = {body(request)["model"] for request in outcome.story.messages}
    assert len(asked) == 1, asked  # the main thread's own
    assert asked.pop().startswith("claude-")


# ---- what is too large

FULL = {
    "status": 400,
    "body": {
        "error": {
            "message": "This model's maximum context length is 128000 tokens. However, your messages resulted in "
            "140000 tokens. Please reduce the length of the messages.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    },
}
SUMMARY = "<analysis>\nLooked.\n</analysis>\n\n<summary>\nSUMMARY-OF-THE-AGENT\n</summary>"
AFTER = {"match": {"method": "POST", "anywhere": "SUMMARY-OF-THE-AGENT"}, "answer": {"text": f"{MARKER}: after it."}}


def test_an_agent_whose_context_is_full(island, client):
    """2.1.329 has it summed up, which Claude must do, and goes on at its provider. 2.1.112 would give it up: Claude
    goes on with it."""
    rules = [
        {"match": {"method": "POST", "tool_results": 1}, "times": 1, "answer": FULL},
        AFTER,
        {"match": {"method": "POST"}, "answer": {"blocks": ["A step.", bash("echo one", "call_1")]}},
    ]
    summing_up = {"match": {"role": "compaction"}, "answer": {"text": SUMMARY}}
    outcome = go(
        island,
        [summing_up, *at_claude("code-reviewer"), delegating("code-reviewer")],
        {"openai": {"rules": rules}, "gemini": AGENT},
        agents=REVIEWER,
    )
    well(outcome)
    compactions = [request for request in outcome.story.messages if request.about["role"] == "compaction"]
    if client is NEWEST:
        assert [request.field("x-claude-code-compaction") for request in compactions] == ["reactive"]
        assert f"{MARKER}: after it." in outcome.reports
        assert outcome.agents_at("openai") == ["code-reviewer"] * 3
    else:
        assert not compactions
        assert f"{CLAUDES} code-reviewer." in outcome.reports
        assert outcome.agents_at_claude == ["code-reviewer"]
    assert not outcome.given_away()


def test_an_agent_that_is_too_large_from_the_start(island, client):
    """There is nothing to sum up: both clients would give the agent up, so that Claude answers."""
    providers = {"openai": {"rules": [{"match": {"method": "POST"}, "answer": FULL}]}, "gemini": AGENT}
    outcome = go(island, [*at_claude("code-reviewer"), delegating("code-reviewer")], providers, agents=REVIEWER)
    well(outcome)
    assert f"{CLAUDES} code-reviewer." in outcome.reports
    assert outcome.agents_at_claude == ["code-reviewer"]


def test_the_client_compacts_where_the_models_window_ends(island, client):
    """gpt-4o holds 128,000 tokens: what it reports is told in the client's measure, so that the client compacts by
    itself while there is room for a summary, and not before."""

    def step(number, tokens):
        answer = {"blocks": [bash(f"echo {number}", f"call_{number}")], "usage": {"input_tokens": tokens - 50}}
        return {"match": {"method": "POST", "tool_results": number}, "answer": answer}

    rules = [
        {"match": {"role": "compaction"}, "answer": {"text": SUMMARY, "usage": {"input_tokens": 110_000}}},
        AFTER,
        *(step(number, tokens) for number, tokens in enumerate((50_000, 100_000, 112_000))),
    ]
    providers = {"openai": {"rules": rules}, "gemini": AGENT}
    outcome = go(island, [delegating("code-reviewer")], providers, agents=REVIEWER)
    well(outcome)
    assert outcome.agents_at_claude == []
    asked = [row for row in outcome.rows if row["kind"] != "main"]
    assert [row["kind"] for row in asked] == ["subagent"] * 3 + ["compaction", "after-compaction"]
    assert asked[3]["compaction"] == ("auto" if client is NEWEST else "unknown")
    assert {row["model"] for row in asked} == {"gpt-4o"}
    # What is kept is what the model reported.
    assert [row["input_tokens"] for row in asked[:4]] == [49_950, 99_950, 111_950, 110_000]
    assert f"{MARKER}: after it." in outcome.reports
    assert "in the measure of its own window" in outcome.explained()[0]
    assert not outcome.given_away()


# ---- what the client must be asked for, and what must stay


@ONLY_NEWEST  # 2.1.112 has no message threads
def test_agents_in_message_threads_are_asked_for_their_whole_history(island, client):
    names = ("code-reviewer", "doc-writer", "planner")
    settings = PROVIDERS + BY_NAME.replace('planner = "gpt-5-codex"', 'planner = "claude"')
    outcome = go(
        island,
        [*at_claude("planner"), delegating(*names)],
        AGENT,
        settings=settings,
        agents={name: agent(name) for name in names},
        env={"CLAUDE_CODE_TETHER_LIVE": "1"},
    )
    well(outcome)
    threads = [body(request).get("thread", {}).get("type") for request in outcome.story.messages]
    assert threads.count("create") == 2  # the main thread and the planner keep theirs
    assert "continue" in threads
    assert set(outcome.agents_at_claude) == {"planner"}
    assert outcome.agents_at("openai") == ["code-reviewer"] * 2
    assert outcome.agents_at("gemini") == ["doc-writer"] * 2
    assert outcome.reports.count(f"{MARKER}: 2 results.") == 2
    assert not outcome.given_away()


def judged(*blocks):
    """An answer with the server's verdict on its tool calls, which auto mode waits for."""
    made = [events.text(block) if isinstance(block, str) else block for block in blocks]
    calls = {block["id"]: {"type": "evaluated", "outcome": "not_flagged"} for block in made if "id" in block}
    told = events.message_events(made, model="claude-opus-5-5")
    delta = next(event["delta"] for event in told if event["type"] == "message_delta")
    delta["safeguard_results"] = [
        {"type": "dangerous_tool_use", "status": {"type": "available", "tool_uses": calls}},
    ]
    return {"events": told}


@ONLY_NEWEST  # 2.1.112 has no auto mode
def test_agents_of_auto_mode_that_need_a_verdict_stay_with_claude(island, client):
    """No other server judges tool calls, and the client refuses what needs a judgement and has none."""
    reports = {
        name: {"type": "tool_use", "id": f"call_{name}", "name": "SubagentHandback", "input": {"message": words}}
        for name, words in (("code-reviewer", CLAUDES), ("doc-writer", MARKER))
    }
    calls = [call(name, background=False) | {"id": f"toolu_{name}"} for name in reports]
    judge = bash("echo '' > judged && whoami && echo $((6 * 7))", "toolu_bash")
    rules = [
        {"match": {"anywhere": "security monitor"}, "answer": {"text": "<severity>0</severity>"}},
        {"match": {"anywhere": mark("code-reviewer"), "tool_results": 0}, "answer": judged(judge)},
        {"match": {"anywhere": mark("code-reviewer")}, "answer": judged(reports["code-reviewer"])},
        first_turn() | {"answer": judged("I delegate.", *calls)},
        {"match": {"role": "main"}, "answer": judged("OK from the fake API.")},
    ]
    answers = [{"match": {"method": "POST"}, "answer": {"blocks": [reports["doc-writer"]]}}]
    agents = {"code-reviewer": agent("code-reviewer"), "doc-writer": agent("doc-writer", tools="Read")}
    providers = {"openai": AGENT, "gemini": {"rules": answers}}
    outcome = go(island, rules, providers, agents=agents, words=("--permission-mode", "auto"))
    well(outcome)
    assert outcome.agents_at_claude == ["code-reviewer"] * 2
    assert (island.project / "judged").exists()
    assert outcome.agents_at("gemini") == ["doc-writer"]
    assert CLAUDES in outcome.reports
    assert MARKER in outcome.reports
    assert "auto mode" in told_of(outcome, "code-reviewer")[0]
    assert not outcome.given_away()
