"""The demo tells the truth: green when every byte matched, red on each kind of bad answer and on a changed byte."""

from __future__ import annotations

import json
import os
import sys
from contextlib import asynccontextmanager

import pytest
from mitm import open_mitm

from dbproxy.testing.demo import Started, clean_environment, play


def through(*, ask=(), log=None, **how):
    """A stand-in for the real proxy: the demo's own logic is what is tested here."""

    @asynccontextmanager
    async def proxy(origin, folder):
        async with open_mitm(origin, **how) as (port, ca_pem, heads):
            certificate = folder / "ca.pem"
            certificate.write_bytes(ca_pem)
            environ = clean_environment(os.environ, folder) | {
                "HTTPS_PROXY": f"http://scope:secret@127.0.0.1:{port}",
                "NODE_EXTRA_CA_CERTS": str(certificate),
            }
            environ.pop("NO_PROXY")
            yield Started((), environ, f"stand-in on {port}", ask, log)
            assert heads
            assert all(b"Proxy-Authorization: Basic " in head for head in heads)

    return proxy


async def run(tmp_path, script, **how):
    said = []
    good = await play(tmp_path, script=script, say=said.append, proxy=through(**how), tool_seconds=0.0)
    return good, "\n".join(said)


async def test_a_faithful_proxy_passes(tmp_path):
    good, story = await run(tmp_path, "demo")
    assert good, story
    assert "every byte identical" in story
    assert story.count("identical") == len(json.loads((tmp_path / "agent.json").read_text())["attempts"]) + 1
    attempts = json.loads((tmp_path / "agent.json").read_text())["attempts"]
    kinds = [attempt["kind"] for attempt in attempts]
    assert kinds.count("compaction") == 1
    assert kinds.count("subagent") == 4
    assert kinds.count("main") == 9
    assert next(a["context"] for a in attempts if a["kind"] == "compaction") > 67_000  # the wall
    assert "checkpoint" not in story


@pytest.mark.parametrize("summary", ["empty", "no_block", "tool", "cut_always", "max_tokens", "error_400"])
async def test_a_bad_summary_fails_it(tmp_path, summary):
    good, story = await run(tmp_path, {"scenario": "demo", "options": {"summary": summary, "summary_seconds": 0.01}})
    assert not good
    assert "The agent gave up" in story
    assert "FAILED" in story


@pytest.mark.parametrize("summary", ["summary_only", "no_tags", "thinking", "cut", "error_500"])
async def test_an_odd_summary_that_the_real_client_takes_passes(tmp_path, summary):
    good, story = await run(tmp_path, {"scenario": "demo", "options": {"summary": summary, "summary_seconds": 0.01}})
    assert good, story


async def test_a_stream_that_is_always_cut_fails_it(tmp_path):
    rule = {"match": {"role": "main"}, "answer": {"text": "words " * 200, "cut_after": 3}}
    good, story = await run(tmp_path, {"scenario": "demo", "rules": [rule]})
    assert not good
    assert "after 4 tries" in story


@pytest.mark.parametrize(
    ("direction", "old", "new", "told"),
    [
        ("up", b"Be of use", b"Be no use", "request body"),
        ("up", b"X-Stainless-OS", b"x-stainless-os", "request head"),
        ("down", b"Two reviewers", b"Two reviewars", "answer body"),
        ("down", b"request-id: req_origin", b"request-id: req_Origin", "answer head"),
    ],
)
async def test_a_changed_byte_fails_it(tmp_path, direction, old, new, told):
    good, story = await run(tmp_path, "demo", **{direction: lambda data: data.replace(old, new)})
    assert not good
    assert f"DIFFERENT: {told}" in story


def saying(exact=14, wrong=0, code=0):
    """A stand-in for the commands about what was captured."""
    return (
        sys.executable,
        "-c",
        "import sys\n"
        "if sys.argv[1] == 'log':\n"
        f'    print(\'{{"exact": {exact}, "wrong": {wrong}}}\')\n'
        f"    sys.exit({int(bool(wrong))})\n"
        f"if {code}: sys.exit('dbproxy: there is no database')\n"
        "print('conversation 1\\n\\nmain  4 turns')",
    )


async def test_what_was_captured_stands_at_the_end(tmp_path):
    good, story = await run(tmp_path, "demo", ask=saying())
    assert good, story
    assert story.index("every byte identical") < story.index("  conversation 1\n\n  main  4 turns")
    assert "All 14 of its requests can be rebuilt" in story
    assert story.endswith("  dbproxy log list\n  dbproxy explain last")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"exact": 13}, "FAILED: 14 requests were sent, and 13 can be rebuilt"),
        ({"wrong": 1}, "FAILED: 14 requests were sent"),
        ({"code": 1}, "FAILED: what was captured cannot be shown: dbproxy: there is no database"),
    ],
)
async def test_what_was_not_captured_fails_it(tmp_path, how, told):
    good, story = await run(tmp_path, "demo", ask=saying(**how))
    assert not good
    assert told in story
    assert "look further" not in story


CONFIRMED = (
    {"event": "checkpoint_completed", "checkpoint": "b", "tokens": 61_816, "seconds": 0.6, "cache_share": 0.994},
    {
        "event": "swap_executed",
        "checkpoint": "b",
        "tokens_before": 67_047,
        "tokens_after": 7_810,
        "log_messages": 6,
        "log_tokens": 7_709,
        "kept": 9,
        "shortened": 2,
        "waited_ms": 4.0,
    },
    {"event": "swap_confirmed", "checkpoint": "b"},
)


async def test_a_confirmed_swap_is_told_with_its_numbers(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in CONFIRMED) + '{"event": "swap_')
    good, story = await run(tmp_path, "demo", log=log)
    assert good, story
    told = story.partition("The double buffer, as the log tells it")[2]
    for words in (
        "61,816 tokens, in the background; ready after 0.60 s",
        "67,047 tokens, answered in 4 ms",
        "6 messages since the checkpoint: 9 pieces, 7,709 tokens, 2 more shortened",
        "7,810 tokens, and the agent's next request begins with them: confirmed",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ((), "nothing was prepared"),
        (({"event": "checkpoint_failed", "reason": "empty"},), "the checkpoint failed: empty"),
        (({"event": "compact_native", "reason": "no checkpoint"},), "went to the model: no checkpoint"),
        ((CONFIRMED[1],), "did not confirm it"),
        ((CONFIRMED[1], {"event": "swap_rejected", "reason": "no"}), "did not take it: no"),
        ((*CONFIRMED[:2], {"event": "swap_confirmed", "checkpoint": "another"}), "did not confirm it"),
    ],
)
async def test_without_a_confirmed_swap_it_fails(tmp_path, monkeypatch, events, why):
    monkeypatch.setattr("dbproxy.testing.buffered.CONFIRM_SECONDS", 0.2)
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    good, story = await run(tmp_path, "demo", log=log)
    assert not good
    assert "FAILED: no swap was confirmed: " in story
    assert why in story


async def test_an_agent_that_cannot_reach_the_proxy_fails_it(tmp_path):
    @asynccontextmanager
    async def none(origin, folder):
        yield Started((), {"PATH": os.environ["PATH"]}, "there is none")

    said = []
    assert not await play(tmp_path, script="demo", say=said.append, proxy=none)
    assert "no proxy is set" in "\n".join(said)


def test_nothing_of_the_person_reaches_the_demo(tmp_path):
    made = clean_environment(
        {
            "PATH": "/bin",
            "HOME": "/somebody",
            "HTTPS_PROXY": "http://corporate",
            "no_proxy": "*",
            "ANTHROPIC_API_KEY": "key",
            "DBPROXY_PASSTHROUGH": "1",
            "XDG_CONFIG_HOME": "/somebody/else",
        },
        tmp_path,
    )
    assert made == {
        "PATH": "/bin",
        "HOME": str(tmp_path),
        "USERPROFILE": str(tmp_path),
        "NO_PROXY": "127.0.0.1,localhost,::1",
    }


def test_the_interpreter_is_ours():
    from dbproxy.testing.demo import agent_command, program

    assert program()[0] == sys.executable
    assert agent_command(["x"]) == [sys.executable, "-m", "dbproxy.testing.agent", "x"]
