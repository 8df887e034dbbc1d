"""The demo through the real proxy and the real launcher, as a person runs it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


def demo(*words, module="dbproxy", cwd):
    command = [sys.executable, "-W", "error", "-m", module, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL)


def test_the_command_succeeds_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = demo("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every byte identical on both sides" in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert "  answered by dbproxy\n" in done.stdout
    assert "our own: request 12, byte for byte, and " in done.stdout
    buffered, _, captured = done.stdout.partition("The double buffer")[2].partition("Captured on the way")
    for words in ("came out of the prompt cache", "every one word for word", "begins with them: confirmed"):
        assert words in buffered
    for line in (
        "agent 1: code-reviewer (custom)  2 turns",
        "agent 2: code-reviewer (custom)  2 turns",
        "compaction (auto), answered by dbproxy",
        "branch 2: after the compaction",
        "cost      $0.",
        "All 15 of its requests can be rebuilt",
        "dbproxy explain last",
    ):
        assert line in captured


def test_keep_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = demo("demo", "--keep", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1].removeprefix("Kept: "))
    assert folder.parent == tmp_path
    assert (folder / "data" / "logs").is_dir()
    # The commands that it names do work.
    look = [line.strip() for line in done.stdout.splitlines() if line.startswith("  DBPROXY_DATA_DIR=")]
    assert len(look) == 2
    for line in look:
        found = subprocess.run(
            line.replace(" dbproxy ", f" {shlex.quote(sys.executable)} -m dbproxy "),
            shell=True,
            capture_output=True,
            timeout=30,
        )
        assert found.returncode == 0, found
        assert b"after-compaction" in found.stdout or b"the first turn after a compaction (auto)" in found.stdout
    report = json.loads((folder / "agent.json").read_text())
    assert report["compactions"] == 1
    assert all(attempt["status"] in (200, 404) for attempt in report["attempts"])


SCRIPTS = {
    "an empty summary": {"options": {"summary": "empty", "summary_seconds": 0.01}},
    "a tool call as summary": {"options": {"summary": "tool", "summary_seconds": 0.01}},
    "a stream that is always cut": {
        "rules": [{"match": {"role": "main"}, "answer": {"text": "words " * 200, "cut_after": 3}}]
    },
    "a malformed stream": {"rules": [{"match": {"role": "main"}, "answer": {"events": [{"type": "message_stop"}]}}]},
    "an error that ends it": {"rules": [{"match": {"role": "main"}, "answer": {"status": 403, "fail": {}}}]},
}


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_bad_answers_make_it_exit_1(tmp_path, name):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"scenario": "demo", **SCRIPTS[name]}))
    done = demo("--script", str(script), module="dbproxy.testing.demo", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The agent gave up" in done.stdout
    # The proxy relayed even these answers faithfully.
    assert "DIFFERENT" not in done.stdout
    assert "identical" in done.stdout
    # And even these are captured.
    assert "of its requests can be rebuilt" in done.stdout


def test_a_broken_script_is_one_clear_line(tmp_path):
    script = tmp_path / "script.json"
    script.write_text('{"scenari": "demo"}')
    done = demo("--script", str(script), module="dbproxy.testing.demo", cwd=tmp_path)
    assert done.returncode == 1
    assert "did you mean 'scenario'" in done.stderr
    assert "Traceback" not in done.stderr
