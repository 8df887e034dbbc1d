"""Links out of what linking remembers: the values that others get.

Pure. Invariant: the same state gives the same link, whichever requests and answers came to it in which order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbproxy.model.link import Agent, Edge, Evidence, Link, Point, RequestKind
from dbproxy.model.linking import branches, ledger
from dbproxy.model.linking.state import MAIN

if TYPE_CHECKING:
    from dbproxy.model.linking.state import Conversation, Node, Spawn, Thread


def link(conversation: Conversation, thread: Thread, node: Node) -> Link:
    """What is known now of one exchange's place."""
    kind, parent, evidence, agent = node.kind, node.parent, node.evidence, None
    if thread.key != MAIN:
        spawn = next((one for one in conversation.spawns if one.id == thread.spawn), None)
        agent = agent_of(conversation, thread, spawn)
        if kind in (RequestKind.SUBAGENT, RequestKind.NESTED):
            kind = RequestKind.SUBAGENT if agent.parent_thread == MAIN else RequestKind.NESTED
        if node.edge is Edge.SPAWN:
            parent = spawn.exchange if spawn else ""
        evidence = (*evidence, *_agent_evidence(thread, agent))
    else:
        node.evidence = ()
    branch = thread.branch(node.branch)
    moves = branch is not None and node.kind is not RequestKind.COMPACTION
    return Link(
        node.id,
        conversation.id,
        agent.thread if agent else MAIN,
        node.branch,
        kind,
        node.compaction,
        parent,
        node.edge,
        node.attempt,
        agent,
        tuple(Point(depth, chain) for depth, chain in branches.points(branch, node)) if branch and moves else (),
        evidence,
    )


def agent_of(conversation: Conversation, thread: Thread, spawn: Spawn | None) -> Agent:
    """The agent that speaks in a thread."""
    kind, name = ledger.name_of(thread, spawn)
    parent = thread.parent or (spawn.thread if spawn else MAIN)
    return Agent(
        _public(thread),
        kind,
        name,
        spawn.number if spawn else 0,
        _public(conversation.threads[parent]) if parent in conversation.threads else parent,
        spawn.id if spawn else "",
    )


def _public(thread: Thread) -> str:
    """The key by which others know a thread: without an agent id, that of the call that started it."""
    return thread.key if thread.hinted or thread.key == MAIN else thread.spawn or thread.key


def _agent_evidence(thread: Thread, agent: Agent) -> list[Evidence]:
    said = [
        Evidence("agent", agent.thread, "x-claude-code-agent-id" if thread.hinted else thread.proof or "heuristics")
    ]
    if thread.spawn:
        said.append(Evidence("call", thread.spawn, thread.proof, f"number {agent.number} of {agent.parent_thread}"))
    if agent.name:
        named = "spawn ledger" if thread.spawn else "agent file"
        said.append(Evidence("name", agent.name, named, thread.file))
    return said
