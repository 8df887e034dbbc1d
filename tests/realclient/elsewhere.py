"""A real client whose agents other providers' fake APIs answer, and everything that came of it.

Owns the agents, the settings and the reading of what each side received; island.py runs it. What a provider may never
see is collected from what the client really sent.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import wirebytes
from island import GEMINI_PORT, OPENAI_PORT

from dbproxy.testing.providers import GEMINI_KEY, OPENAI_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from island import Island, Request, Story

PROVIDERS = f"""
[providers.openai]
base_url = "http://api.openai.com:{OPENAI_PORT}/v1"
retries = 1

[providers.gemini]
base_url = "http://127.0.0.1:{GEMINI_PORT}/v1beta"
retries = 1
"""
BY_NAME = '[routes]\ncode-reviewer = "gpt-4o"\ndoc-writer = "gemini:gemini-2.5-pro"\nplanner = "gpt-5-codex"\n'
CLAUDES = "Claude did the work of"
KEYS = {"OPENAI_API_KEY": OPENAI_KEY, "GEMINI_API_KEY": GEMINI_KEY}
ALLOWED = ("--allowedTools", "Agent,Task,Bash,Read")
EVENTS = ("--output-format", "stream-json", "--verbose")
_HEADERS = ("x-claude-code-", "x-api-key", "anthropic-", "x-stainless-", "claude-cli/", "x-app", "proxy-authorization")
_TRANSCRIPT = re.compile(r"[^\s\"]*/projects/[^\s\"]*\.jsonl")
_BODIES = ("x-anthropic-billing-header", "cc_version", "user_id", "safeguards", "context_management", "cache_control")


def mark(name: str) -> str:
    """What tells an agent's requests apart: its file's first words, which the client sends as they are."""
    return f"You are the {name} of this project"


def agent(name: str, *, tools: str = "Read, Bash", more: str = "") -> str:
    """An agent's file."""
    head = f"---\nname: {name}\ndescription: Does what {name} does.\ntools: {tools}\n{more}---\n"
    return f"{head}{mark(name)}. Look at the files and report.\n"


def call(name: str, *, background: bool | None = None) -> dict[str, Any]:
    """The main model's call of an agent; ``background`` where it says how it wants it."""
    given: dict[str, Any] = {"description": name, "prompt": f"do what {name} does", "subagent_type": name}
    if background is not None:
        given["run_in_background"] = background
    return {"type": "tool_use", "name": "Agent", "input": given}


def first_turn(*blocks: Any, **how: Any) -> dict[str, Any]:
    """The rule for the main thread's first turn."""
    return {"match": {"role": "main", "tool_results": 0, "text": "please"}, "answer": {"blocks": list(blocks), **how}}


def delegating(*names: str, background: bool | None = None) -> dict[str, Any]:
    """The same where it calls these agents, beside each other."""
    return first_turn("I delegate.", *(call(name, background=background) for name in names))


def at_claude(*names: str) -> list[dict[str, Any]]:
    """Claude's answers to agents that stay there, or come back."""
    return [{"match": {"anywhere": mark(name)}, "answer": {"text": f"{CLAUDES} {name}."}} for name in names]


def bash(command: str, call_id: str = "") -> dict[str, Any]:
    """A call of the agent's."""
    made = {"type": "tool_use", "name": "Bash", "input": {"command": command, "description": "look"}}
    return made | ({"id": call_id} if call_id else {})


def body(request: Request) -> dict[str, Any]:
    """The JSON of a request."""
    parsed: dict[str, Any] = json.loads(wirebytes.messages(request.head + request.body)[0].body)
    return parsed


def texts(value: object) -> str:
    """All texts in a JSON value."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "\n".join(texts(inner) for inner in value.values())
    return "\n".join(texts(inner) for inner in value) if isinstance(value, list) else ""


_MARK = re.compile(mark(r"([\w-]+)"))


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    story: Story
    home: Path
    environment: Mapping[str, str]

    def agents_at(self, provider: str) -> list[str]:
        """Whose requests a provider received, in order: names of agents; "?" for what is none of them."""
        return [_whose(body(request)) for request in getattr(self.story, provider)]

    @property
    def agents_at_claude(self) -> list[str]:
        """The same of Claude; the main thread's and side requests left out."""
        found = [_whose(body(request)) for request in self.story.messages]
        return [name for name in found if name != "?"]

    @property
    def reports(self) -> str:
        """What the main thread was told in the end."""
        turns = [request for request in self.story.messages if request.about["role"] == "main"]
        return texts(body(turns[-1])["messages"])

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the client said on its output."""
        lines = self.story.steps[-2].stdout.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def log(self) -> list[dict[str, Any]]:
        """The proxy's own log."""
        lines = (self.home / ".local" / "share" / "dbproxy" / "logs" / "dbproxy.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def said(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one kind."""
        return [line for line in self.log if line["event"] == event]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The captured Messages requests, the first first."""
        listed = json.loads(self._command("log", "list", "--json"))
        return [row for row in reversed(listed) if row["path"] == "/v1/messages"]

    def explained(self, kind: str = "subagent") -> list[str]:
        """What `dbproxy explain` says of each request of a kind, the first first."""
        return [self._command("explain", row["id"]) for row in self.rows if row["kind"] == kind]

    def _command(self, *words: str) -> str:
        command = [sys.executable, "-m", "dbproxy", *words]
        environment = {"PATH": self.environment["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    @cached_property
    def private(self) -> set[str]:
        """What the client told Claude about itself: its credential, and the ids of its device, account and session."""
        found: set[str] = set()
        for request in self.story.messages:
            user = body(request)["metadata"]["user_id"]
            told = json.loads(user) if user.startswith("{") else {"user_id": user}
            found |= {value for value in told.values() if value}
            for name in ("x-api-key", "authorization", "x-claude-code-session-id"):
                found.add((request.field(name) or "").removeprefix("Bearer "))
        found.discard("")
        assert len(found) >= 3, "the client told less about itself than it does"
        return found

    def given_away(self) -> list[str]:
        """Whatever of the client's own a provider received: nothing, if all is well."""
        received = [*self.story.openai, *self.story.gemini]
        assert received, "nothing was received: nothing can have been given away"
        parts = [part for request in received for part in (request.head, request.head.lower(), request.body)]
        wire = b"\n".join(parts).decode("utf-8", "replace")
        # After a compaction the client tells its model where its transcript lies: a path, and part of what is said.
        wire = _TRANSCRIPT.sub("", wire)
        return [text for text in (*self.private, *_HEADERS, *_BODIES) if text in wire]


def _whose(given: dict[str, Any]) -> str:
    """The agent whose instructions a request carries. The main thread's history may quote them, but nowhere else."""
    where = [given.get(key) for key in ("system", "instructions", "systemInstruction")]
    where += [one for one in given.get("messages") or [] if one.get("role") in ("system", "developer")]
    where += [one for one in given.get("input") or [] if one.get("role") in ("system", "developer")]
    found = _MARK.search(texts([one for one in where if one]))
    return found[1] if found else "?"


def settled(island: Island, text: str) -> None:
    """Writes the user's settings."""
    file = island.home / ".config" / "dbproxy" / "config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def go(
    island: Island,
    rules: list[dict[str, Any]],
    providers: Mapping[str, Any],
    *,
    settings: str = PROVIDERS + BY_NAME,
    agents: Mapping[str, str],
    words: tuple[str, ...] = ALLOWED,
    before: tuple[dict[str, Any], ...] = (),
    env: Mapping[str, str | None] | None = None,
    seconds: float = 60.0,
) -> Outcome:
    """One prompt through `dbproxy claude`, with agents (name -> file) in the project and keys in the environment."""
    if settings:
        settled(island, settings)
    for name, text in agents.items():
        (island.project / ".claude" / "agents" / f"{name}.md").write_text(text)
    environment = KEYS | dict(env or {})
    asked = island.step("dbproxy", "claude", "-p", "please do it", *words, *EVENTS, env=environment, seconds=seconds)
    steps = [*before, asked, island.step("dbproxy", "stop")]
    story = island.run({"rules": rules, "scenario": "plain"}, *steps, providers=providers)
    assert [step.code for step in story.steps] == [0] * len(steps), story
    return Outcome(story, island.home, island.environment)
