"""Talking to the linker: a scripted client, a store for links that is a dict, and the captured conversations."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbproxy.exchange import Fields
from dbproxy.model.link import Edge, Link
from dbproxy.model.linking.history import StoredConversation, StoredExchange, StoredPoint
from dbproxy.model.linking.linker import Linker
from dbproxy.model.messages import MessagesRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.model.agents import AgentFiles
    from dbproxy.model.link import Agent

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
SESSION = "01234567-89ab-cdef-0123-456789abcdef"
OTHER = "fedcba98-7654-3210-fedc-ba9876543210"
CLIENT = "claude-cli/2.1.329 (external, cli)"
TOOLS = [{"name": "Agent"}, {"name": "Bash"}, {"name": "Read"}]
INSTRUCTION = (
    "CRITICAL: Respond with TEXT ONLY. Do NOT call any tools.\n\nYour task is to create a detailed summary of the "
    "conversation so far. Wrap your analysis in <analysis> tags and the result in <summary> tags."
)
Message = dict[str, Any]


def user(*blocks: str | dict[str, Any]) -> Message:
    return {"role": "user", "content": [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks]}


def said(*blocks: str | dict[str, Any]) -> Message:
    return {**user(*blocks), "role": "assistant"}


def call(id: str, prompt: str, kind: str = "code-reviewer", tool: str = "Agent") -> dict[str, Any]:
    given = {"description": "a task", "prompt": prompt, "subagent_type": kind}
    return {"type": "tool_use", "id": id, "name": tool, "input": given}


def result(id: str, *texts: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": text} for text in texts]}


def launched(id: str, agent: str) -> dict[str, Any]:
    return result(id, f"Async agent launched successfully.\nagentId: {agent} (an id to be used later)")


def continuation(summary: str) -> str:
    return (
        "This session is being continued from a previous conversation that ran out of context. The summary below "
        f"covers the earlier portion of the conversation.\n\nSummary:\n{summary}\n\nIf you need specific details, "
        "read the transcript. Continue without asking."
    )


@dataclass
class Told:
    """What the client sent and got of one exchange, for a history after a restart."""

    at: float
    account: str
    client: str
    outcome: str = ""
    message: dict[str, Any] | None = None
    request_id: str = ""


@dataclass
class Talk:
    """A linker, what it said last of each exchange, and a clock. Also the ``History`` of another linker."""

    linker: Linker = field(default_factory=Linker)
    links: dict[str, Link] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)
    now: float = 1_800_000_000.0
    session: str | None = SESSION
    headers: dict[str, str] = field(default_factory=lambda: {"user-agent": CLIENT})
    count: int = 0

    def ask(
        self,
        messages: Sequence[Message],
        *,
        id: str = "",
        session: str | None = "",
        headers: dict[str, str] | None = None,
        account: str = "acct",
        project: str = "",
        tools: list[dict[str, Any]] | None = None,
        path: str = "/v1/messages",
        **body: Any,
    ) -> Link:
        self.count += 1
        self.now += 1.0
        id = id or f"e{self.count:04d}"
        named = self.headers | (headers or {})
        session = self.session if session == "" else session
        if session:
            named["x-claude-code-session-id"] = session
        whole = {"model": "m", "max_tokens": 32000, "stream": True, "tools": TOOLS if tools is None else tools}
        view = MessagesRequest(json.dumps({**whole, "messages": list(messages), **body}).encode())
        return self.send(id, self.now, view, named, path, account, project)

    def send(
        self,
        id: str,
        at: float,
        view: MessagesRequest,
        named: dict[str, str],
        path: str,
        account: str,
        project: str = "",
    ) -> Link:
        fields = Fields.of([(name.encode(), value.encode()) for name, value in named.items()])
        links = self.linker.request(id, at, view, fields, path=path, account=account, project=project)
        assert links[0].exchange == id
        self.told[id] = Told(at, account, {k.lower(): v for k, v in named.items()}.get("user-agent", ""))
        self._take(links)
        return links[0]

    def reply(self, link: Link | str, *blocks: str | dict[str, Any], ok: bool = True, id: str = "") -> Message:
        """The answer to an exchange; returns the message as the client will send it back."""
        exchange = link if isinstance(link, str) else link.exchange
        message = said(*blocks) | {"id": id or f"msg_{exchange}", "type": "message"} if blocks else None
        self.end(exchange, message, ok=ok)
        return said(*blocks)

    def end(self, exchange: str, message: dict[str, Any] | None, *, ok: bool = True, request_id: str = "") -> None:
        told = self.told[exchange]
        told.outcome, told.message, told.request_id = "ok" if ok else "cut", message, request_id or f"req_{exchange}"
        links = self.linker.answer(exchange, message, ok=ok, request_id=told.request_id)
        assert exchange not in {link.exchange for link in links if link.edge is Edge.ROOT}
        self._take(links)

    def now_of(self, link: Link) -> Link:
        """The latest link of the same exchange."""
        return self.links[link.exchange]

    def restarted(self, agents: AgentFiles | None = None) -> Talk:
        """The same clients with another process's linker, which knows what was stored."""
        return Talk(
            Linker(self, agents=agents), self.links, self.told, self.now, self.session, self.headers, self.count
        )

    def _take(self, links: Sequence[Link]) -> None:
        self.links.update({link.exchange: link for link in links})

    # -- the history of what was told

    def conversation(self, conversation: str) -> StoredConversation | None:
        links = [link for _, link in sorted(self.links.items()) if link.conversation == conversation]
        if not links:
            return None
        exchanges = tuple(self._exchange(link) for link in links)
        rows: dict[tuple[str, int, int], StoredPoint] = {}
        agents: dict[str, Agent] = {}
        for link in links:
            for point in link.points:
                key = (link.thread, link.branch, point.depth)
                rows[key] = StoredPoint(link.thread, link.branch, point.depth, point.chain, link.exchange)
            if link.agent:
                agents[link.agent.thread] = link.agent
        points = tuple(row for _, row in sorted(rows.items()))
        first = self.told[links[0].exchange]
        return StoredConversation(conversation, first.account, first.client, exchanges, points, tuple(agents.values()))

    def _exchange(self, link: Link) -> StoredExchange:
        told = self.told[link.exchange]
        return StoredExchange(
            link.exchange,
            told.at,
            link.thread,
            link.branch,
            str(link.kind),
            link.compaction,
            link.parent,
            str(link.edge),
            link.attempt,
            told.outcome,
            message_id=(told.message or {}).get("id", ""),
            request_id=told.request_id,
        )

    def holding(self, chains: Sequence[bytes], *, account: str, limit: int) -> Sequence[str]:
        found: list[str] = []
        for chain in chains:
            for _, link in sorted(self.links.items(), reverse=True):
                known = any(point.chain == chain for point in link.points)
                if known and account in ("", self.told[link.exchange].account) and link.conversation not in found:
                    found.append(link.conversation)
        return found[:limit]

    def answered(self, message_id: str) -> tuple[str, str] | None:
        for id, told in self.told.items():
            if told.message and told.message.get("id") == message_id:
                return self.links[id].conversation, id
        return None

    def message(self, exchange: str) -> bytes | None:
        told = self.told.get(exchange)
        return json.dumps(told.message).encode() if told and told.message else None


def captured(name: str) -> list[dict[str, Any]]:
    """The exchanges of one captured run, in order."""
    found: list[dict[str, Any]] = json.loads((CAPTURES / f"{name}.json").read_text("utf-8"))
    return found


def short(link: Link) -> list[Any]:
    """A link as the expected results write it down."""
    agent = link.agent
    told = [agent.type, agent.name, agent.number, agent.parent_thread, agent.tool_use_id] if agent else None
    return [link.thread, link.branch, str(link.kind), link.compaction, str(link.edge), link.parent, link.attempt, told]
