"""The agent files of the user and of the projects that launches run in, read again when they change.

Owns the finding and reading of ``agents/*.md`` below the user's and the project's ``.claude`` folders. Called on the
thread that links, never on the event loop: it asks the file system, at most twice a second for each folder. Invariants:
only regular files are opened; sizes, numbers and depth are bounded; an unreadable file is no file; never raises.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dbproxy.model.agents import AgentFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FRESH_SECONDS: Final = 0.5  # a file that was edited counts within a second (case 86)
_MAX_BYTES: Final = 256 << 10  # of one file; the prompts seen are a few kilobytes
_MAX_FILES: Final = 500  # in one folder
_MAX_DEPTH: Final = 3  # of folders in it
_MAX_PARENTS: Final = 32  # of a project's folder
_MAX_PROJECTS: Final = 64
_MAX_VALUE: Final = 256  # characters of a name, a model or a route
_AGENTS: Final = Path(".claude", "agents")
_NAME: Final = re.compile(r"^name:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_MODEL: Final = re.compile(r"^model:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
#: A key that the client does not know, or a comment: both leave the agent as it is (tried with 2.1.112 and 2.1.329).
_ROUTE: Final = re.compile(r"^(?:route|[ \t]*#[ \t]*(?:route|dbproxy)):[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_Stamp = tuple[int, int, int]


def parse(text: str, stem: str) -> tuple[str, str]:
    """Name and body of an agent file: the ``name`` of its front matter, else the file's; the text behind it, trimmed,
    as it opens the agent's system prompt (client facts 3.4)."""
    head, body = _split(text)
    return _value(_NAME, head) or stem, body.strip()


def models(text: str) -> tuple[str, str]:
    """What the front matter of an agent file names as its model and as its route; "" for none."""
    head, _ = _split(text)
    return _value(_MODEL, head), _value(_ROUTE, head)


def _split(text: str) -> tuple[str, str]:
    """Front matter and the text behind it."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    lines = text.split("\n")
    if lines[0].rstrip() == "---":
        end = next((place for place, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), 0)
        if end:
            return "\n".join(lines[1:end]), "\n".join(lines[end + 1 :])
    return "", text


def _value(key: re.Pattern[str], head: str) -> str:
    """The value of a key, without its quotes and without a comment behind it."""
    found = key.search(head)
    if found is None:
        return ""
    value = found[1]
    if len(value) > _MAX_VALUE or not value.isprintable():
        return ""
    if value[0] in "'\"":
        return value[1:].partition(value[0])[0] if value.count(value[0]) > 1 else value.strip("'\"")
    return re.split(r"[ \t]#", value)[0].strip()


def user_agents() -> Path | None:
    """The folder of the user's own agent files; None where nobody knows a home."""
    try:
        return Path.home() / ".claude" / "agents"
    except RuntimeError:
        return None


class AgentFolders:
    """Agent files from memory, looked after on the way. An ``AgentFiles`` (model/agents.py)."""

    def __init__(self, user: Path | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``user`` is the folder of the user's own agent files, usually ``~/.claude/agents``; None for none."""
        self._user = user
        self._clock = clock
        self._folders: OrderedDict[Path, _Folder] = OrderedDict()
        self._above: OrderedDict[str, tuple[Path, ...]] = OrderedDict()

    def known(self, project: str) -> tuple[AgentFile, ...]:
        """Those of the project folder (the nearest first), then those of the user."""
        found: list[AgentFile] = []
        for folder in self._project_folders(project):
            found.extend(self._read(folder, "project"))
        if self._user is not None:
            found.extend(self._read(self._user, "user"))
        return tuple(found)

    def _project_folders(self, project: str) -> tuple[Path, ...]:
        """The agent folders of a working directory and those above it, up to the repository that it lies in."""
        if not project or not os.path.isabs(project) or "\0" in project:
            return ()
        known = self._above.get(project)
        if known is None:
            known = self._above[project] = tuple(_folders_above(Path(project), self._user))
            while len(self._above) > _MAX_PROJECTS:
                self._above.popitem(last=False)
        return known

    def _read(self, path: Path, origin: str) -> tuple[AgentFile, ...]:
        folder = self._folders.get(path)
        if folder is None:
            folder = self._folders[path] = _Folder(path, origin)
            while len(self._folders) > 4 * _MAX_PROJECTS:
                self._folders.popitem(last=False)
        self._folders.move_to_end(path)
        now = self._clock()
        if now >= folder.fresh_until:
            folder.look()
            folder.fresh_until = now + _FRESH_SECONDS
        return folder.files


def _folders_above(project: Path, user: Path | None) -> Iterator[Path]:
    for folder in (project, *project.parents[:_MAX_PARENTS]):
        if folder / _AGENTS != user:
            yield folder / _AGENTS
        if (folder / ".git").exists():
            return


@dataclass(slots=True)
class _Folder:
    """One agents folder: what each file said when it was read last."""

    path: Path
    origin: str
    files: tuple[AgentFile, ...] = ()
    fresh_until: float = float("-inf")
    read: dict[Path, tuple[_Stamp, AgentFile | None]] | None = None

    def look(self) -> None:
        """Read what is new or changed."""
        before = self.read or {}
        now: dict[Path, tuple[_Stamp, AgentFile | None]] = {}
        for path, stamp in _listing(self.path, _MAX_DEPTH):
            if len(now) >= _MAX_FILES:
                break
            known = before.get(path)
            now[path] = known if known and known[0] == stamp else (stamp, _load(path, self.origin))
        self.read = now
        self.files = tuple(file for _, (_, file) in sorted(now.items()) if file)


def _listing(folder: Path, depth: int) -> Iterator[tuple[Path, _Stamp]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError):
        return
    for entry in found:
        try:
            about = entry.stat()
            if stat.S_ISDIR(about.st_mode) and depth > 1 and not entry.is_symlink():
                yield from _listing(Path(entry.path), depth - 1)
            elif stat.S_ISREG(about.st_mode) and entry.name.endswith(".md") and about.st_size <= _MAX_BYTES:
                yield Path(entry.path), (about.st_mtime_ns, about.st_size, about.st_ino)
        except OSError:
            continue


def _load(path: Path, origin: str) -> AgentFile | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError:
        return None
    if len(data) > _MAX_BYTES:
        return None
    text = data.decode("utf-8", "replace")
    name, body = parse(text, path.stem)
    return AgentFile(name, body, origin, path.name, *models(text)) if body else None
