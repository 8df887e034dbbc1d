"""The command line as a person meets it: a process of its own, with its own HOME and nothing inherited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Shell:
    """Runs ``dbproxy`` (and ``claude-db-proxy``) with ``env`` on top of a scrubbed environment."""

    home: Path
    cwd: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return Path(self.env["DBPROXY_DATA_DIR"])

    @property
    def bin(self) -> Path:
        return self.home / "bin"

    def environment(self, **env: str) -> dict[str, str]:
        return {**self.env, **env}

    def run(self, *words: str, entry: str = "main", stdin: str = "", cwd: Path | None = None, **env: str):
        code = f"import sys; from dbproxy.cli import {entry}; sys.exit({entry}())"
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            env=self.environment(**env),
            cwd=cwd or self.cwd,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def script(self, name: str, text: str) -> Path:
        """An executable on the PATH of every command that runs here."""
        self.bin.mkdir(exist_ok=True)
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def state(self) -> dict[str, object]:
        return json.loads((self.data / "run" / "daemon.json").read_text())


@pytest.fixture
def shell(own_home, tmp_path):
    """A person's shell. The background proxy that a test starts is ended with it."""
    cwd = tmp_path / "project"
    cwd.mkdir()
    path = os.pathsep.join([str(own_home / "bin"), str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    env = {
        "PATH": path,
        "HOME": str(own_home),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "DBPROXY_DATA_DIR": str(own_home / "data"),
        "DBPROXY_LISTEN": "127.0.0.1:0",
    }
    person = Shell(own_home, cwd, env)
    yield person
    person.run("stop", "--force")


@pytest.fixture
def claude(shell):
    """A ``claude`` that says what it was given: its arguments and its environment, as JSON."""
    return shell.script(
        "claude",
        # To sh this starts Python, to Python it is a string; an interpreter line could not hold a path with a blank.
        f"#!/bin/sh\n''':'\nexec \"{sys.executable}\" \"$0\" \"$@\"\n'''\n"
        "import json, os, sys\n"
        "print(json.dumps({'args': sys.argv, 'env': dict(os.environ), 'pid': os.getpid(), 'cwd': os.getcwd()}))\n"
        "sys.exit(int(os.environ.get('CLAUDE_EXIT', '0')))\n",
    )
