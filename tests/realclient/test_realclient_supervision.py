"""The real Claude Code while the proxy's worker is killed in the middle of its answers: its own retry carries it on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ASSASSIN = str(Path(__file__).resolve().parent / "assassin.py")
WORDS = "".join(f"word{number} " for number in range(200))
#: Some three seconds long.
SLOW = {"rules": [{"match": {"path": "/v1/messages"}, "answer": {"text": WORDS, "delta_chars": 20, "gap": 0.035}}]}


def survived(island, number, times, seconds):
    client = ("dbproxy", "claude", "-p", "hello")
    story = island.run(
        SLOW,
        island.step(sys.executable, ASSASSIN, number, str(times), *client, seconds=seconds),
        island.step("dbproxy", "stop", "--force"),
    )
    assert story.steps[0].code == 0, story
    assert WORDS.strip() in story.steps[0].stdout, story
    # Each worker that goes takes an answer with it, and the client asks again. (With a stopped one the fake API does
    # not notice: all that it has to say fits into the kernel's buffers.)
    assert len(story.messages) >= times + 1, story
    if number == "SIGKILL":
        assert not all(request.about["answer"]["complete"] for request in story.messages), story


@pytest.mark.realclient
def test_a_killed_worker_costs_the_client_a_retry(island):
    survived(island, "SIGKILL", 1, 90)


@pytest.mark.realclient
def test_a_stopped_worker_costs_the_client_a_pause(island):
    survived(island, "SIGSTOP", 1, 90)


@pytest.mark.soak
@pytest.mark.realclient
@pytest.mark.parametrize("round_number", range(50))
def test_a_hundred_kills(island, round_number):
    """Two generations, fifty each. (After a cut 2.1.112 asks for the rest in one piece, which leaves no second go.)"""
    survived(island, "SIGKILL", 1, 120)


@pytest.mark.soak
@pytest.mark.realclient
@pytest.mark.parametrize("round_number", range(5))
def test_ten_stops(island, round_number):
    survived(island, "SIGSTOP", 1, 120)
