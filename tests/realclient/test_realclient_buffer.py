"""The real client through the double buffer: its compact request is answered from a checkpoint, and it goes on.

By itself and by hand, without and with a terminal, and with agents that compact at the same time. The fake API reports
a usage that grows towards each client's own wall; a request for a summary that reaches it is the checkpoint's, which
is known by what it does not hold yet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from clients import NEWEST
from island import EXIT, START, typed
from test_realclient_summary import AFTER, first_message, unchunked

pytestmark = pytest.mark.realclient

TELLING = ("phase_transition", "checkpoint_completed", "swap_executed", "swap_confirmed", "compact_native")
FILLING = "It tells in some length what was asked for, which files were read, and which step comes next. " * 4


def summary(name):
    return f"<analysis>\nLooked at {name}.\n</analysis>\n\n<summary>\nSUMMARY-{name} $' $&\n{FILLING}\n</summary>"


def bash(words, seconds=0.4):
    command = f"sleep {seconds} && echo {words}"
    return {"type": "tool_use", "name": "Bash", "input": {"command": command, "description": words}}


def spent(tokens):
    return {"input_tokens": 10, "cache_read_input_tokens": tokens - 60, "output_tokens": 50}


def fills(client):
    """Context sizes: below the threshold, at it, between, at the wall (967,000 and 167,000 tokens, client facts 4.2).

    They grow by less than what a log may hold, so that the first checkpoint is the one that is served.
    """
    return (400_000, 925_000, 935_000, 968_000) if client is NEWEST else (60_000, 135_000, 145_000, 168_000)


def working(client, name, last):
    """Answers to one thread: tool calls until its context is full, then a text."""
    steps = [
        {"blocks": [f"{name} step {n}.", bash(f"{name}-result-{n}")], "usage": spent(tokens)}
        for n, tokens in enumerate(fills(client))
    ]
    return [*steps, {"text": last, "usage": {"input_tokens": 3000}}]


def asked_for_summary(name, **match):
    made = {"text": summary(name), "first_byte_delay": 0.2, "usage": {"input_tokens": 900, "output_tokens": 90}}
    return {"match": {"role": "compaction", **match}, "answer": made}


@dataclass(frozen=True)
class Told:
    """What the proxy wrote down."""

    events: list[dict]
    swaps: list[dict]

    def of(self, name, **about):
        return [e for e in self.events if e["event"] == name and all(e.get(k) == v for k, v in about.items())]


def told_by(island):
    data = island.home / ".local" / "share" / "dbproxy"
    lines = (data / "logs" / "dbproxy.jsonl").read_text().splitlines()
    swaps = data / "plugin-data" / "double-buffer" / "swaps.jsonl"
    return Told([json.loads(line) for line in lines], [json.loads(line) for line in swaps.read_text().splitlines()])


def run(island, script, *steps):
    """The story of a run in which everything went well, and what the proxy wrote down."""
    story = island.run(script, *steps, island.step("dbproxy", "stop"))
    assert [step.missed for step in story.steps] == [""] * len(story.steps), story
    assert [step.code for step in story.steps] == [0] * len(story.steps), story
    return story, told_by(island)


def claude(island, *words, **how):
    return island.step("dbproxy", "claude", *words, "--allowedTools", "Bash,Agent,Task", **how)


def swapped_once(client, story, told, *, held, left):
    """One checkpoint, one swap from it, taken by the client; its next main request, and the text of its message 0.

    ``held`` stands in the checkpoint's request, ``left`` is what came later: it stands in the log alone.
    """
    asked = [unchunked(request) for request in story.messages if request.about["role"] == "compaction"]
    assert len(asked) == 1, story
    assert held.encode() in asked[0]
    assert left.encode() not in asked[0]
    assert len(told.of("swap_executed")) == len(told.of("swap_confirmed")) == 1, told.events
    assert not told.of("compact_native"), told.events
    phases = [event["to_phase"] for event in told.of("phase_transition", thread="main")]
    assert phases[:3] == ["CHECKPOINT_PENDING", "CHECKPOINTING", "WAL_ACTIVE"]
    assert phases[-2:] == ["PROVISIONAL", "IDLE"]
    assert told.swaps[0]["shortened"] == []
    assert told.swaps[0]["waited_ms"] < 1000.0
    after = next(request for request in story.messages if AFTER.encode() in unchunked(request))
    assert after.about["role"] == "main"
    text = first_message(after)
    assert f"Summary:\nSUMMARY-main $' $&\n{FILLING.strip()}" in text
    assert text.index("SUMMARY-main") < text.index("log of what followed the summary")
    assert text.index("log of what followed the summary") < text.index(left)
    return after, text


def answers(client, last="Done."):
    return [asked_for_summary("main"), {"match": {"role": "main"}, "answers": working(client, "main", last)}]


def test_by_itself_without_a_terminal(island, client):
    agent = claude(island, "-p", "please do it", "--output-format", "stream-json", "--verbose")
    story, told = run(island, {"rules": answers(client)}, agent)
    after, text = swapped_once(client, story, told, held="main-result-0", left="main-result-1")
    assert "main-result-2" in text
    assert "main-result-3" in unchunked(after).decode()  # in the log, or kept by the client itself
    lines = [json.loads(line) for line in story.steps[0].stdout.splitlines() if line.startswith("{")]
    boundary = next(line for line in lines if line.get("subtype") == "compact_boundary")
    assert boundary["compact_metadata"]["trigger"] == "auto"
    assert lines[-1]["result"] == "Done."


def test_by_hand_without_a_terminal(island, client):
    late = [{"text": "The late words.", "usage": spent(fills(client)[2])}, {"text": "Went on."}]
    early = working(client, "main", "")[:2]
    rules = [asked_for_summary("main"), {"match": {"role": "main"}, "answers": [*early, *late]}]
    steps = [claude(island, "-p", "please do it")]
    steps += [claude(island, "-p", "--continue", words) for words in ("/compact", "go on")]
    story, told = run(island, {"rules": rules}, *steps)
    _, text = swapped_once(client, story, told, held="main-result-0", left="main-result-1")
    assert "go on" in unchunked(story.messages[-1]).decode()
    assert "Went on." in story.steps[-2].stdout
    assert "The late words." in text or "The late words." in unchunked(story.messages[-1]).decode()


def test_by_itself_on_a_terminal(island, client):
    keys = [
        *START,
        *typed("please do it"),
        {"wait": "The work is done."},
        *typed("what about zebras"),
        {"wait": "Answered."},
    ]
    rules = [{"match": {"role": "main", "anywhere": "what about zebras"}, "answer": {"text": "Answered."}}]
    rules += answers(client, "The work is done.")
    story, told = run(island, {"rules": rules, "scenario": "plain"}, claude(island, keys=[*keys, *EXIT]))
    _, text = swapped_once(client, story, told, held="main-result-0", left="main-result-1")
    assert "main-result-2" in text


def test_by_hand_on_a_terminal(island, client):
    keys = [*START, *typed("please do it"), {"wait": "The late words."}, {"sleep": 1.0}]
    keys += [*typed("/compact"), {"wait": "to see full summary"}, {"sleep": 0.5}]
    keys += [*typed("what about zebras"), {"wait": "Answered."}, *EXIT]
    late = {"text": "The late words.", "usage": spent(fills(client)[2])}
    rules = [{"match": {"role": "main", "anywhere": "what about zebras"}, "answer": {"text": "Answered."}}]
    rules += [asked_for_summary("main")]
    rules += [{"match": {"role": "main"}, "answers": [*working(client, "main", "")[:2], late]}]
    story, told = run(island, {"rules": rules, "scenario": "plain"}, claude(island, keys=keys))
    swapped_once(client, story, told, held="main-result-0", left="main-result-1")


def test_agents_that_compact_at_the_same_time_get_their_own(island, client):
    """Two agents beside each other, and the main thread: in 2.1.329 at the same time, in 2.1.112 behind them."""
    names = ("alpha", "beta")
    rules = []
    for name in names:
        mark = f"You are the {name} worker"
        definition = (
            f"---\nname: {name}\ndescription: Does the {name} work.\ntools: Bash\n---\n{mark} of this project.\n"
        )
        (island.project / ".claude" / "agents" / f"{name}.md").write_text(definition)
        rules.append(asked_for_summary(name, anywhere=mark))
        rules.append({"match": {"anywhere": mark}, "answers": working(client, name, f"The {name} work is done.")})
    calls = [
        {"type": "tool_use", "name": "Agent" if client is NEWEST else "Task", "input": given}
        for given in (
            {"description": f"do {name}", "prompt": f"please do {name}", "subagent_type": name} for name in names
        )
    ]
    first = {"blocks": ["I delegate.", *calls], "usage": {"input_tokens": 3000}}
    rules.append(asked_for_summary("main"))
    rules.append({"match": {"role": "main"}, "answers": [first, *working(client, "main", "Main is done.")]})
    story, told = run(island, {"rules": rules, "scenario": "plain"}, claude(island, "-p", "please do it", seconds=90))
    assert "Main is done." in story.steps[0].stdout, story
    assert story.roles.count("compaction") == 3, story
    assert not told.of("compact_native"), told.events
    threads = {event["thread"] for event in told.of("swap_executed")}
    assert len(threads) == 3, told.events
    assert {event["thread"] for event in told.of("swap_confirmed")} == threads, told.events
    texts = {}
    for request in story.messages:
        if AFTER.encode() in unchunked(request):
            text = first_message(request)
            name = next(name for name in ("main", *names) if f"SUMMARY-{name} " in text)
            texts.setdefault(name, text)
    assert set(texts) == {"main", *names}, story
    for name, text in texts.items():
        assert f"{name}-result-1" in text
        others = {"main", *names} - {name}
        assert not any(f"SUMMARY-{other} " in text for other in others)
        assert name == "main" or not any(f"{other}-result" in text for other in others)
