"""Custom agents by what their files say: the body of an agent's file opens its last system block.

Owns the matching of a request's system prompt against known agent files and the protocol by which they are found.
Never reads a file. Source: client facts 3.4; the name of a custom agent is not on the wire (client facts 0.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class AgentFile:
    """One agent file: its ``name``, the text behind its front matter (trimmed), and where it lies: ``project`` or
    ``user``. ``source`` is the file's name, without its folder; ``model`` what its front matter names as its model, and
    ``route`` what it names as its route (a key or a comment ``# route: PROVIDER:MODEL``), "" for none."""

    name: str
    body: str
    origin: str = "user"
    source: str = ""
    model: str = ""
    route: str = ""


class AgentFiles(Protocol):
    """Finds the agent files that a launch's client would know."""

    def known(self, project: str) -> Iterable[AgentFile]:
        """Those of the user and of the project folder (the launch's working directory), project ones first. Called on
        the thread that links; answers from memory."""


def match(system: tuple[str, ...], files: Iterable[AgentFile]) -> AgentFile | None:
    """The file whose body opens the last system block; the longest body wins, among equals the first given."""
    if not system:
        return None
    last = system[-1].lstrip().replace("\r\n", "\n")
    best: AgentFile | None = None
    for file in files:
        if file.body and last.startswith(file.body) and (best is None or len(file.body) > len(best.body)):
            best = file
    return best
