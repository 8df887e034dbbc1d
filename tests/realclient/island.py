"""One run of a real client on the island, as a test sees it: what to run, and what came of it.

Owns paths, environments and the reading of records; isolate.py makes the island, voyage.py acts on it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients import find_node

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clients import Client

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLAIN_PORT, OPENAI_PORT, GEMINI_PORT = 8081, 8082, 8083
KEY = "sk-ant-api03-" + "dummy"
# Telemetry, updates and error reports off: "quiet" in the client facts.
QUIET = {
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
_AGENTS = {
    "code-reviewer.md": (
        "---\nname: code-reviewer\ndescription: Reviews code. Use after any code change.\ntools: Read, Bash\n"
        "model: haiku\n---\nYou are the reviewer of this project. Look at the files and report.\n"
    )
}


# Keys for the client on a terminal: until its prompt stands there, and out again.
START = ({"wait": "/effort"}, {"sleep": 0.5})
EXIT = ("/exit", {"sleep": 0.5}, "\r", {"wait": "Resume this session"})


def typed(line):
    """A line and, after a moment (else it counts as pasted), the return key."""
    return (line, {"sleep": 0.5}, "\r")


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the fake API received it; `head` and `body` are exact bytes, the body with its framing."""

    head: bytes
    body: bytes
    about: Mapping[str, Any]
    finished: float  # when its answer ended, one way or the other; seconds of the wall clock

    @property
    def path(self) -> str:
        return str(self.about["target"]).partition("?")[0]

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.about["fields"] if key.lower() == name), None)


@dataclass(frozen=True, slots=True, repr=False)
class Step:
    """How one command went. `code` is None where a terminal's command had to be killed."""

    code: int | None
    late: bool
    stdout: str
    stderr: str
    seconds: float
    missed: str = ""

    def __repr__(self) -> str:
        missed = f", never showed {self.missed!r}" if self.missed else ""
        return f"exit {self.code} after {self.seconds} s{missed}\n{self.stdout[-3000:]}\n{self.stderr[-3000:]}"


@dataclass(frozen=True, slots=True, repr=False)
class Story:
    """What came of a run."""

    steps: Sequence[Step]
    asked: Sequence[str]
    requests: Sequence[Request]
    openai: Sequence[Request] = ()  # what other providers' fake APIs received
    gemini: Sequence[Request] = ()

    @property
    def messages(self) -> list[Request]:
        return [request for request in self.requests if request.path == "/v1/messages"]

    @property
    def roles(self) -> list[str]:
        return [request.about["role"] for request in self.messages]

    def __repr__(self) -> str:
        lines = [repr(step) for step in self.steps]
        lines += [
            f"{r.about['method']} {r.about['target']} {r.about['role']} {r.about['answer']['status']}"
            for r in (*self.requests, *self.openai, *self.gemini)
        ]
        return "\n" + "\n".join([*lines, f"asked for {sorted(set(self.asked))}"])


@dataclass
class Island:
    """A scratch folder with a home, a small project and programs; `run` is one voyage."""

    folder: Path
    client: Client
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        command = self.client.command()
        assert command is not None, "the fixture skips without the client"
        for path in (self.home, self.project / ".claude" / "agents", self.programs):
            path.mkdir(parents=True, exist_ok=True)
        (self.project / "README.md").write_text("# scratch\n")
        for name, text in _AGENTS.items():
            (self.project / ".claude" / "agents" / name).write_text(text)
        self.program("claude", f'exec {shlex.join(command)} "$@"')
        self.write_client_state()
        node = find_node()
        folders = [str(self.programs), str(Path(sys.executable).parent), *([str(Path(node).parent)] if node else [])]
        self.environment = {
            "PATH": ":".join([*folders, "/usr/local/bin", "/usr/bin", "/bin"]),
            "HOME": str(self.home),
            "TMPDIR": "/tmp",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "USER": "tester",
            "SHELL": "/bin/bash",
            "ANTHROPIC_API_KEY": KEY,
            "DBPROXY_UPSTREAM_CA": str(self.ca),
            **QUIET,
        }

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    @property
    def ca(self) -> Path:
        """What the fake API's clients must trust; exists once it runs."""
        return self.folder / "out" / "ca.pem"

    def program(self, name: str, body: str) -> Path:
        """A shell script on the island's path."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def write_client_state(self) -> None:
        """A home that skips the first-run screens (client facts 7)."""
        project = {"hasTrustDialogAccepted": True, "hasCompletedProjectOnboarding": True, "allowedTools": []}
        state = {
            "hasCompletedOnboarding": True,
            "theme": "dark",
            "lastOnboardingVersion": "9.9.9",
            "numStartups": 5,
            "customApiKeyResponses": {"approved": [KEY[-20:]], "rejected": []},
            "projects": {str(self.project): project},
        }
        (self.home / ".claude.json").write_text(json.dumps(state))

    def configure(self, **settings: str) -> None:
        """The user's own configuration file: what holds for traffic without a launch scope."""
        file = self.home / ".config" / "dbproxy" / "config.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))

    def step(
        self,
        *command: str,
        env: Mapping[str, str | None] | None = None,
        seconds: float = 60.0,
        keys: Sequence[object] | None = None,
    ) -> dict[str, Any]:
        """A step of a plan; a variable that is None is left out."""
        changed = self.environment | dict(env or {})
        made: dict[str, Any] = {
            "command": list(command),
            "env": {name: value for name, value in changed.items() if value is not None},
            "cwd": str(self.project),
            "seconds": seconds,
        }
        return made if keys is None else made | {"keys": list(keys)}

    def run(
        self, script: Mapping[str, Any], *steps: dict[str, Any], providers: Mapping[str, Any] | None = None
    ) -> Story:
        """Runs the steps on the island against a fake API that follows the script; ``providers`` is the script of the
        fake OpenAI and Gemini beside it."""
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        plan = out / "plan.json"
        origin = {"script": dict(script), "tls_port": 443, "port": PLAIN_PORT}
        whole: dict[str, Any] = {"out": str(out), "origin": origin, "steps": steps}
        if providers is not None:
            whole["providers"] = {"script": providers, "openai_port": OPENAI_PORT, "gemini_port": GEMINI_PORT}
        plan.write_text(json.dumps(whole))
        keep = {ROOT, self.folder, Path(sys.base_prefix), Path(sys.prefix), self.client.folder}
        node = find_node()
        if node is not None:
            keep.add(Path(node).resolve().parent.parent)
        command = [sys.executable, str(HERE / "isolate.py")]
        # The packages may lie elsewhere (a scratch environment shares them).
        keep |= {Path(entry) for entry in sys.path if entry}
        for path in sorted(keep):
            command += ["--keep", str(path)]
        limit = sum(step["seconds"] for step in steps) + 60
        result = subprocess.run(
            [*command, "--", sys.executable, str(HERE / "voyage.py"), str(plan)],
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        assert result.returncode == 0, f"the island failed ({result.returncode}):\n{result.stdout}\n{result.stderr}"
        told = json.loads((out / "result.json").read_text())
        received = (read_record(out / folder) for folder in ("record", "providers/openai", "providers/gemini"))
        return Story([Step(**step) for step in told["steps"]], told["asked"], *received)


def read_record(folder: Path) -> list[Request]:
    """The requests in the order of their arrival."""
    return [
        Request(
            path.with_suffix(".head").read_bytes(),
            path.with_suffix(".body").read_bytes(),
            json.loads(path.read_text()),
            path.stat().st_mtime,
        )
        for path in sorted(folder.glob("*.json"))
    ]
