"""Byte fidelity with the real client: what our listener decrypted is what the API received, and back the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import wirebytes

pytestmark = pytest.mark.realclient
HERE = Path(__file__).resolve().parent


def test_every_decrypted_byte_arrives_both_ways(island, client):
    notes = island.folder / "heard"
    listener = [sys.executable, str(HERE / "eavesdrop.py"), str(notes), *client.command()]
    arguments = ("-p", "please do it", "--allowedTools", "Bash")
    script = {"scenario": "tools", "options": {"steps": 3}}
    story = island.run(
        script, island.step("dbproxy", "run", "--", *listener, *arguments), island.step("dbproxy", "stop")
    )
    assert [step.code for step in story.steps] == [0, 0], story
    assert len(story.messages) >= 4

    sent, got = [], []
    for file in sorted(notes.glob("*.host")):
        assert file.read_text() == "api.anthropic.com"
        sent += wirebytes.messages(file.with_suffix(".sent").read_bytes())
        got += wirebytes.messages(file.with_suffix(".got").read_bytes())
    received = [r.head + r.body for r in story.requests]
    arrived = [wirebytes.messages(stream)[0] for stream in received]
    assert sorted(sent) == sorted(arrived)

    answered = []
    for request in story.requests:
        answer = request.about["answer"]
        start, fields = wirebytes.end_to_end(answer["head"].encode("latin-1"))
        answered.append(wirebytes.Message(start, fields, answer["body"].encode("latin-1")))
    assert sorted(got) == sorted(answered)
