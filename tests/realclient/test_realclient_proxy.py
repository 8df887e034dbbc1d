"""The real Claude Code through `dbproxy claude` and through a base URL: plain, tools, agents, /compact, the terminal.

Client facts 3.2 say what each generation sends; the fake API plays the other side.
"""

from __future__ import annotations

import pytest
from island import EXIT, START, typed

pytestmark = pytest.mark.realclient

COMPACT = [
    ("-p", "please do it", "--allowedTools", "Bash"),
    ("-p", "/compact keep the file names", "--continue", "--output-format", "stream-json", "--verbose"),
    ("-p", "next question", "--continue"),
]


@pytest.fixture(params=["launcher", "base-url"])
def through(request, island):
    """Runs the client's argument lists through the proxy in one of the two modes; every step must succeed."""

    def run(script, *argument_lists, env=None, seconds=60):
        base = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8080"} | dict(env or {})
        if request.param == "launcher":
            steps = [island.step("dbproxy", "claude", *words, env=env, seconds=seconds) for words in argument_lists]
        else:
            island.configure(upstream_ca=str(island.ca))
            steps = [island.step("dbproxy", "start", env={"DBPROXY_UPSTREAM_CA": None})]
            steps += [island.step("claude", *words, env=base, seconds=seconds) for words in argument_lists]
        story = island.run(script, *steps, island.step("dbproxy", "stop"))
        assert [step.code for step in story.steps] == [0] * len(story.steps), story
        assert all("dbproxy:" not in step.stderr for step in story.steps[:-1]), story
        if request.param == "launcher":
            assert [step.stderr for step in story.steps[:-1]] == [""] * (len(story.steps) - 1), story
        # Only the proxy asks for the API's name; a client that went past it would fail on the fake API's certificate.
        assert set(story.asked) <= {"api.anthropic.com"}, story
        assert all(request.about["answer"]["complete"] for request in story.requests), story
        return story

    run.mode = request.param
    return run


def answers(story):
    """What the steps with the client wrote."""
    return [step.stdout for step in story.steps if "dbproxy" not in step.stdout]


def test_a_question_and_its_answer(through):
    story = through({"scenario": "plain"}, ("-p", "hi"))
    assert story.roles == ["main"], story
    assert "OK from the fake API." in "".join(answers(story)), story


def test_tools_are_used(through):
    script = {"scenario": "tools", "options": {"steps": 3}}
    story = through(script, ("-p", "please do it", "--allowedTools", "Bash"))
    assert story.roles == ["main"] * 4, story
    assert "All done." in "".join(answers(story)), story


def test_an_agent_is_sent(through, island, client):
    script = {"scenario": "agent", "options": {"file": str(island.project / "README.md")}}
    story = through(
        script,
        ("-p", "please do it", "--allowedTools", "Read,Agent,Task"),
        env={"CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1"},
    )
    assert "Main is done." in "".join(answers(story)), story
    # 2.1.329 lets the agent run beside the main thread and reports back; 2.1.112 waits for it (client facts 3.2).
    mains = 3 if client.version == "2.1.329" else 2
    if client.version == "2.1.329":
        assert sorted(story.roles) == ["main"] * mains + ["subagent"] * 2, story
    assert len(story.roles) == mains + 2, story


def test_a_conversation_is_compacted_and_goes_on(through):
    story = through({"scenario": "compact"}, *COMPACT)
    compactions = [number for number, role in enumerate(story.roles) if role == "compaction"]
    assert len(compactions) == 1, story
    after = story.messages[compactions[0] + 1]
    assert b"ORIGIN-SUMMARY" in after.body
    assert b"continued from a previous conversation" in after.body


def test_the_terminal_with_a_compaction(island):
    keys = [
        *(*START, *typed("hello"), {"wait": "OK from the fake API."}),
        *(*typed("/compact"), {"wait": "to see full summary"}, {"sleep": 0.5}),
        *(*typed("next question"), {"wait": "OK from the fake API."}, *EXIT),
    ]
    terminal = island.step("dbproxy", "claude", keys=keys, seconds=60)
    story = island.run({"scenario": "plain"}, terminal, island.step("dbproxy", "stop"))
    assert story.steps[0].missed == "", story
    assert story.steps[0].code == 0, story
    roles = [role for role in story.roles if role in ("main", "compaction")]
    assert roles == ["main", "compaction", "main"], story
    last = [request for request in story.messages if request.about["role"] == "main"][-1]
    assert b"continued from a previous conversation" in last.body, story


@pytest.mark.parametrize(
    "slow",
    [{"first_byte_delay": 40.0}, {"stall_after": 4, "stall": 40.0}, {"head_delay": 40.0}],
    ids=lambda pace: next(iter(pace)),
)
def test_escape_reaches_the_api_within_a_second(island, slow):
    """A bare close of the tunnel, before or after the first byte (client facts 1.2, 0.10)."""
    answer = {"text": "word " * 500} | slow
    rule = {"match": {"text": "hello"}, "answer": answer, "times": 1}
    pause = 3.0
    keys = [
        *(*START, *typed("hello"), {"wait": "esc to interrupt"}, {"sleep": 1}, "\x1b", {"sleep": pause}),
        *("\x15", *typed("once more"), {"wait": "OK from the fake API."}, *EXIT),
    ]
    terminal = island.step("dbproxy", "claude", keys=keys, seconds=60)
    story = island.run({"rules": [rule], "scenario": "plain"}, terminal, island.step("dbproxy", "stop"))
    assert story.steps[0].missed == "", story
    broken = [request for request in story.messages if not request.about["answer"]["complete"]]
    assert len(broken) == 1, story
    # What is typed after the pause is answered at once; the broken answer must have ended a second after Esc.
    assert story.messages[-1].finished - broken[0].finished > pause - 1.0, story
