"""Agent files: found where the client finds them, read again when they change, and never a danger."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest
from linktalk import Talk, user

from dbproxy.app.agent_files import AgentFolders, models, parse
from dbproxy.model.linking.linker import Linker

if TYPE_CHECKING:
    from pathlib import Path

    from dbproxy.model.agents import AgentFile


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


def write(folder: Path, name: str, body: str, file: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (file or f"{name}.md")
    path.write_text(f"---\nname: {name}\ndescription: does things\ntools: Read, Bash\n---\n\n{body}\n", "utf-8")
    return path


def names(files: tuple[AgentFile, ...]) -> list[str]:
    return [file.name for file in files]


def test_project_files_come_before_the_users(tmp_path: Path) -> None:
    write(tmp_path / "home" / "agents", "reviewer", "You review.")
    write(tmp_path / "repo" / ".claude" / "agents", "tester", "You test.")
    write(tmp_path / "repo" / "sub" / ".claude" / "agents", "inner", "You are inside.")
    (tmp_path / "repo" / ".git").mkdir()
    write(tmp_path / ".claude" / "agents", "outside", "Not of this repository.")
    folders = AgentFolders(tmp_path / "home" / "agents")
    assert names(folders.known(str(tmp_path / "repo" / "sub"))) == ["inner", "tester", "reviewer"]
    assert names(folders.known("")) == ["reviewer"]
    assert [file.origin for file in folders.known(str(tmp_path / "repo"))] == ["project", "user"]


def test_a_change_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path, "one", "First body.")
    folders = AgentFolders(tmp_path, clock=Clock())
    assert [file.body for file in folders.known("")] == ["First body."]
    write(tmp_path, "one", "Second, longer body.")
    write(tmp_path / "team", "two", "In a folder.")
    assert [file.body for file in folders.known("")] == ["Second, longer body.", "In a folder."]
    path.unlink()
    assert names(folders.known("")) == ["two"]


def test_the_file_system_is_asked_twice_a_second(tmp_path: Path) -> None:
    now = [100.0]
    folders = AgentFolders(tmp_path, clock=lambda: now[0])
    assert folders.known("") == ()
    write(tmp_path, "one", "Body.")
    now[0] += 0.4
    assert folders.known("") == ()
    now[0] += 0.2
    assert names(folders.known("")) == ["one"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nname: x\n---\nBody\n", ("x", "Body")),
        ("\ufeff---\r\nname: 'x y'\r\n---\r\n\r\nA\r\nB\r\n", ("x y", "A\nB")),
        ("---\nmodel: haiku\n---\nBody", ("stem", "Body")),
        ("---\nname: x\nno end", ("stem", "---\nname: x\nno end")),
        ("Just text", ("stem", "Just text")),
        ("", ("stem", "")),
        ("---\nname:\ndescription: name: y\n---\n", ("stem", "")),
    ],
)
def test_front_matter(text: str, expected: tuple[str, str]) -> None:
    assert parse(text, "stem") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nname: x\nmodel: haiku\n---\nBody", ("haiku", "")),
        ("---\nmodel: openai:gpt-5\n---\n", ("openai:gpt-5", "")),
        ('---\r\nmodel: "openai/gpt-5" # dear\r\n---\r\n', ("openai/gpt-5", "")),
        ("---\nmodel: inherit  # as the main one\n# route: openai:gpt-5\n---\n", ("inherit", "openai:gpt-5")),
        ("---\n#route: 'ollama:qwen3:8b'\n---\n", ("", "ollama:qwen3:8b")),
        ("---\nroute: openai:gpt-5\n---\n", ("", "openai:gpt-5")),
        ("---\nname: x\n  # dbproxy: openai:gpt-5\n---\n", ("", "openai:gpt-5")),
        ("---\ndbproxy: openai:gpt-5\n# a route: openai:gpt-5\n---\n", ("", "")),
        ("---\nmodel: " + "m" * 300 + "\nroute: a\0b\n---\n", ("", "")),
        ("---\nmodel: 'odd\nroute:\n---\n", ("odd", "")),
        ("---\nname: x\n---\nmodel: no\nroute: no", ("", "")),
        ("model: no\nroute: no", ("", "")),
    ],
)
def test_the_models_that_a_file_names(text: str, expected: tuple[str, str]) -> None:
    assert models(text) == expected


def test_the_models_come_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("---\nname: x\nmodel: haiku\nroute: openai:gpt-5\n---\nBody")
    (file,) = AgentFolders(tmp_path).known("")
    assert (file.source, file.model, file.route) == ("x.md", "haiku", "openai:gpt-5")


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes as files")
def test_odd_files_do_no_harm(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "loop.md").symlink_to(tmp_path / "loop.md")
    (tmp_path / "zero.md").symlink_to("/dev/zero")
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "big.md").write_bytes(b"x" * 300_000)
    (tmp_path / "bytes.md").write_bytes(b"---\nname: b\n---\n\xff\xfe body")
    (tmp_path / "up").symlink_to(tmp_path)
    assert names(AgentFolders(tmp_path).known("relative/path")) == ["b"]
    assert AgentFolders(tmp_path / "missing").known("/also/\0missing") == ()
    assert AgentFolders(None).known(str(tmp_path / "nothing")) == ()


def asked_by(talk: Talk, system: list[str], project: Path, agent: str) -> tuple[str, list[str]]:
    """The name by which the linker knows an agent with these system blocks, and the evidence for it."""
    link = talk.ask(
        [user("please review")],
        headers={"x-claude-code-agent-id": agent, "x-claude-code-agent-type": "custom"},
        system=[{"type": "text", "text": text} for text in system],
        project=str(project),
    )
    assert link.agent is not None
    return link.agent.name, [one.source for one in link.evidence if one.question == "name"]


ENVIRONMENT = "\n\nHere is useful information about the environment you are running in:\n<env>\nPlatform: linux\n</env>"
BODY = "You review.\n\n---\n\nBe kind.\n\n| a | b |\n|---|---|\n\n---\nThe end."


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("sent", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "tail", ["", ENVIRONMENT, "\n\nNotes:\n- Agent threads reset their folder.", "\nNotes: x" + ENVIRONMENT]
)
def test_case_85_an_agent_is_known_whatever_its_file_holds(tmp_path: Path, end: str, sent: str, tail: str) -> None:
    """Seed 001 lost it by line ends, by a rule in its text, without Notes: and with anything behind it."""
    folder = tmp_path / ".claude" / "agents"
    folder.mkdir(parents=True)
    text = f"---\nname: reviewer\ndescription: reviews\nroute: openai:gpt-4o\n---\n\n{BODY}\n"
    (folder / "any.md").write_bytes(text.replace("\n", end).encode())
    (folder / "bare.md").write_bytes(f"Bare.{end}{end}---{end}No front matter.".encode())
    talk = Talk(Linker(agents=AgentFolders(None)))
    (file, _) = AgentFolders(None).known(str(tmp_path))
    assert (file.name, file.body, file.route) == ("reviewer", BODY, "openai:gpt-4o")
    told = [block.replace("\n", sent) for block in ("x-anthropic-billing-header: v=1", "Identity.", BODY + tail)]
    assert asked_by(talk, told, tmp_path, "a1") == ("reviewer", ["agent file"])
    told[-1] = ("Bare.\n\n---\nNo front matter." + tail).replace("\n", sent)
    assert asked_by(talk, told, tmp_path, "a2") == ("bare", ["agent file"])


def test_case_86_a_file_that_is_edited_counts_within_a_second(tmp_path: Path) -> None:
    """On the real clock, as the linker asks: a new body, a new route, a new file."""
    folder = tmp_path / ".claude" / "agents"
    path = write(folder, "one", "First body.")
    folders = AgentFolders(None)
    talk = Talk(Linker(agents=folders))
    assert asked_by(talk, ["Identity.", "First body."], tmp_path, "a1")[0] == "one"
    began = time.monotonic()
    path.write_text("---\nname: one\nroute: openai:o3\n---\nSecond body.")
    write(folder, "two", "Another.")
    while [file.body for file in folders.known(str(tmp_path))] != ["Second body.", "Another."]:
        assert time.monotonic() - began < 1.0
        time.sleep(0.02)  # noqa: TID251 - no event loop here
    assert folders.known(str(tmp_path))[0].route == "openai:o3"
    assert asked_by(talk, ["Identity.", "Second body." + ENVIRONMENT], tmp_path, "a2")[0] == "one"
    assert asked_by(talk, ["Identity.", "Another."], tmp_path, "a3")[0] == "two"


def test_an_agent_is_named_by_its_file(tmp_path: Path) -> None:
    """Its call was never seen: the file's body opens its last system block (client facts 3.4)."""
    write(tmp_path / ".claude" / "agents", "reviewer", "You review.\n\nBe kind.")
    write(tmp_path / ".claude" / "agents", "short", "You review.")
    talk = Talk(Linker(agents=AgentFolders(None)))
    link = talk.ask(
        [user("please review")],
        headers={"x-claude-code-agent-id": "a1", "x-claude-code-agent-type": "custom"},
        system=[
            {"type": "text", "text": "Sentence."},
            {"type": "text", "text": "You review.\n\nBe kind.\n\nNotes: ..."},
        ],
        project=str(tmp_path),
    )
    assert link.agent is not None
    assert (link.agent.type, link.agent.name) == ("custom", "reviewer")
    assert [one.source for one in link.evidence if one.question == "name"] == ["agent file"]
