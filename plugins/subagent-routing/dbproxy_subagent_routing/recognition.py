"""Who asks: what the head of a request tells at once, and what its place in the conversation adds.

Pure; imports nothing of dbproxy but its public values. Sources: client facts 3.3 (classes and headers), 3.4 (agents),
0.4 (a custom agent's name is not on the wire). Invariants: what the client says of itself beats what was found out; a
request whose head says ``main`` or ``auxiliary`` never waits for anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from dbproxy.api import Edge, RequestKind, json_members
from dbproxy_subagent_routing.rules import CUSTOM, Asker

if TYPE_CHECKING:
    from dbproxy.api import Agent, Fields, Link
    from dbproxy_subagent_routing.book import Standing
    from dbproxy_subagent_routing.rules import RuleSet

MAIN: Final = "main"
COMPACTION: Final = "compaction"
_CLASS: Final = b"x-claude-code-request-class"
_SPEAKING: Final = frozenset({"main", "subagent", "workflow"})
_TYPE_HEADER: Final = "header x-claude-code-agent-type"


class Role(Enum):
    """Who asks, as far as the head tells."""

    AGENT = "agent"
    MAIN = "main"
    COMPACTION = "compaction"
    SIDE = "side"
    UNKNOWN = "unknown"  # an older client, or another program


@dataclass(frozen=True, slots=True)
class Head:
    """What the fields of a request tell; empty texts where they do not."""

    role: Role
    session: str = ""
    agent_id: str = ""
    agent_type: str = ""
    trigger: str = ""  # of a compaction: manual, auto, reactive

    @classmethod
    def of(cls, fields: Fields) -> Head:
        """Read the fields of a request."""
        said, agent = _text(fields, _CLASS), _text(fields, b"x-claude-code-agent-id")
        session = _text(fields, b"x-claude-code-session-id")
        trigger = _text(fields, b"x-claude-code-compaction")
        return cls(_role(said, agent), session, agent, _text(fields, b"x-claude-code-agent-type"), trigger)

    @property
    def place(self) -> tuple[str, str] | None:
        """Conversation and thread, where the head tells both."""
        if not self.session:
            return None
        if self.agent_id:
            return self.session, self.agent_id
        return (self.session, MAIN) if self.role in (Role.MAIN, Role.COMPACTION) else None


def _role(said: str, agent: str) -> Role:
    if said == "compaction":
        return Role.COMPACTION
    if said and said not in _SPEAKING:
        return Role.SIDE
    if agent or said in ("subagent", "workflow"):
        return Role.AGENT
    return Role.MAIN if said else Role.UNKNOWN


def _text(fields: Fields, name: bytes) -> str:
    return (fields.get(name) or b"").decode("latin-1")


def may_concern(rules: RuleSet, head: Head, standing: Standing, *, pinned: bool, passed: bool) -> bool:
    """Could a rule fit, as far as the head tells? Asked of every request, so nothing is looked up here.

    ``pinned`` says that the thread goes elsewhere or has been there, ``passed`` that an agent was looked at before and
    stays. Without any rule an agent may still be led elsewhere by its own file (if it has one), or by the model that it
    asks for; the main line has no file, and is not looked into for a model's sake alone.
    """
    if pinned:
        return True
    if head.role is Role.AGENT:
        by_file = standing.anybody and head.agent_type in ("", CUSTOM)
        return not passed and (bool(rules) or standing.chosen or by_file)
    if head.role is Role.MAIN:
        return rules.main or rules.models
    if head.role is Role.COMPACTION:
        return rules.compaction or rules.models
    if head.role is Role.SIDE:
        return rules.side or rules.models
    return bool(rules) or standing.chosen


def is_agents_turn(link: Link) -> bool:
    """Does an agent take its turn here?"""
    if link.kind is RequestKind.AFTER_COMPACTION:
        return link.thread not in ("", MAIN)
    return link.kind in (RequestKind.SUBAGENT, RequestKind.NESTED)


def is_first(link: Link) -> bool:
    """Is this how its thread begins, as far as anybody knows?"""
    return link.edge in (Edge.SPAWN, Edge.ROOT)


def place_of(link: Link | None, head: Head) -> tuple[str, str] | None:
    """Conversation and thread; None for a side request, and where nobody knows."""
    if link is not None:
        return (link.conversation, link.thread) if link.thread else None
    return head.place if head.role is not Role.SIDE else None


def asker_of(link: Link | None, head: Head, model: str) -> Asker:
    """Who asks. Without a link only the head tells."""
    if link is None:
        agent = head.role is Role.AGENT
        kind = {Role.AGENT: "subagent", Role.MAIN: MAIN, Role.COMPACTION: "compaction"}.get(head.role, "")
        return Asker(kind, agent, "", head.agent_type if agent else "", model, _TYPE_HEADER if head.agent_type else "")
    if is_agents_turn(link):
        kind = RequestKind.SUBAGENT if link.kind is RequestKind.AFTER_COMPACTION else link.kind
        known = link.agent
        kind_of = head.agent_type or (known.type if known else "")
        name = known.name if known else ""
        return Asker(str(kind), True, name, kind_of, model, _proof(link, known, head))
    kind = RequestKind.MAIN if link.kind is RequestKind.AFTER_COMPACTION else link.kind
    return Asker(str(kind), model=model)


def _proof(link: Link, agent: Agent | None, head: Head) -> str:
    """Where the agent's name, or its type, is known from."""
    if agent is not None and agent.name:
        return next((item.source for item in link.evidence if item.question == "name"), "")
    if head.agent_type:
        return _TYPE_HEADER
    return "spawn ledger" if agent is not None and agent.tool_use_id else ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a Messages body a decision needs before anything is known: the ``model`` asked for; whether it opens or
    continues a message ``thread`` (API facts 2.6), and whether nobody has answered yet in its history (``begins``).

    ``guarded`` names a tool whose every use the client's auto mode wants judged by the server; "" for none.
    """

    model: str = ""
    thread: bool = False
    begins: bool = False
    guarded: str = ""


#: Tools that auto mode lets run without a verdict (measured with 2.1.329). All others are refused without one: Bash,
#: WebFetch, Agent, those of MCP servers.
_UNGUARDED: Final = frozenset(
    {
        "DeferredToolPlaceholder",
        "Edit",
        "Glob",
        "Grep",
        "LS",
        "MultiEdit",
        "NotebookEdit",
        "NotebookRead",
        "Read",
        "Skill",
        "SubagentHandback",
        "TaskCreate",
        "TaskGet",
        "TaskList",
        "TaskUpdate",
        "TodoWrite",
        "ToolSearch",
        "Write",
    }
)
_LOOKED_AT: Final = frozenset({b"model", b"thread", b"safeguards", b"tools"})


def read_asked(body: bytes) -> Asked | None:
    """The same of a body whose coding is undone; None where it is no JSON object of unique keys."""
    members = json_members(body)
    if members is None:
        return None
    spans = {member.key: body[member.start : member.end] for member in members if member.key in _LOOKED_AT}
    model, thread, guards = (json.loads(spans.get(key, b"null")) for key in (b"model", b"thread", b"safeguards"))
    continues = isinstance(thread, dict) and thread.get("type") == "continue"
    # Within a text the quotes would be escaped: this is a role, or a name, which only makes us careful.
    begins = not continues and b'"assistant"' not in body
    guarded = _first_guarded(json.loads(spans.get(b"tools", b"null"))) if guards else ""
    return Asked(model if isinstance(model, str) else "", bool(thread), begins, guarded)


def _first_guarded(tools: object) -> str:
    listed = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    names = (str(tool.get("name") or tool.get("type") or "a tool") for tool in listed)
    return next((name for name in names if name not in _UNGUARDED), "")
