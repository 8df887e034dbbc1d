"""The real Claude Code while the proxy's worker is killed in the middle of its answers: its own retry carries it on."""

from __future__ import annotations

import json
import sqlite3
import ssl
import sys
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

ASSASSIN = str(Path(__file__).resolve().parent / "assassin.py")
WORDS = "".join(f"word{number} " for number in range(200))
#: Some one and a half seconds long.
SLOW = {"rules": [{"match": {"path": "/v1/messages"}, "answer": {"text": WORDS, "delta_chars": 20, "gap": 0.02}}]}


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
    assert len(whole(island.home / ".local" / "share" / "dbproxy")) >= 5
    assert len(whole(island.home / ".claude")) >= 1


def whole(folder):
    """The files below a folder of whose format something is known; each must be readable to its last byte."""
    read = [path for path in sorted(folder.rglob("*")) if path.is_file() and is_whole(path)]
    assert not list(folder.rglob("*.tmp")), "a file was begun and not finished"
    return read


def is_whole(path):
    """False where nothing can be said; an exception of the format's reader where it is damaged."""
    content = path.read_bytes()
    if content.startswith(b"SQLite format 3\0"):
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)], path
            assert database.execute("PRAGMA foreign_key_check").fetchall() == [], path
    elif path.suffix == ".jsonl":
        assert content.endswith(b"\n"), path
        for line in content.splitlines():
            json.loads(line)
    elif path.suffix == ".json":
        json.loads(content)
    elif path.suffix == ".pem":
        if b"CERTIFICATE" in content:
            # A bundle holds the system's roots too, of which some are odder than a strict reader takes.
            assert ssl.create_default_context(cadata=content.decode()).cert_store_stats()["x509"] > 0, path
        if b"PRIVATE KEY" in content:
            load_pem_private_key(content, None)
    else:
        return False
    return True


@pytest.mark.realclient
@pytest.mark.parametrize("round_number", range(5))
def test_a_killed_worker_costs_the_client_a_retry(island, round_number):
    """A tenth of the hundred below."""
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
