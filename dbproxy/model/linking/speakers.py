"""Which thread of a conversation speaks: the main line, or which agent.

Owns the order of evidence where the client does not name an agent (client facts 3.3, 3.4): the prompt of a call that
still waits for its agent, the longest common beginning, the billing block, a continued summary, the agent file, the
tools. Pure; looks at one conversation and one request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from dbproxy.model.kinds import AGENT_ID, AGENT_TOOLS, AGENT_TYPE, CLASS, PARENT_AGENT_ID
from dbproxy.model.link import Edge, Evidence, RequestKind
from dbproxy.model.linking import branches, compaction, ledger
from dbproxy.model.linking.state import FAILED, MAIN, Conversation, Thread
from dbproxy.model.messages import header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbproxy.exchange import Fields
    from dbproxy.model.linking.branches import Seen
    from dbproxy.model.messages import MessagesRequest


@dataclass(slots=True)
class Asked:
    """A request on its way through linking, with what was found out so far."""

    id: str
    at: float
    view: MessagesRequest
    fields: Fields
    kind: RequestKind
    compaction: str
    account: str
    project: str
    evidence: list[Evidence] = field(default_factory=list)
    #: Index of each message that takes part.
    places: list[int] = field(default_factory=list)
    #: The thread of the answer that the request continues (API facts 2.6), "" if it does not say or that is not known.
    continued_thread: str = ""

    def say(self, question: str, answer: str, source: str, detail: str = "") -> None:
        """Keep a piece of evidence."""
        self.evidence.append(Evidence(question, answer, source, detail))


def begins(view: MessagesRequest) -> bool:
    """Has nobody answered yet in this request's history?"""
    return 0 < view.message_count <= 8 and all(
        view.message(index).get("role") != "assistant" for index in range(view.message_count)
    )


def thread_of(conversation: Conversation, asked: Asked, seen: Seen, file: str) -> Thread:
    """The speaking thread, made if need be. ``file`` is the agent file that opens the system prompt, "" if none."""
    named = header(asked.fields, AGENT_ID)[:128]
    if named:
        thread = conversation.thread(named)
        thread.hinted = True
        thread.type = header(asked.fields, AGENT_TYPE)[:128] or thread.type
        thread.parent = header(asked.fields, PARENT_AGENT_ID)[:128] or thread.parent
        return _with_start(thread, asked, file)
    if header(asked.fields, CLASS):
        thread = conversation.thread(MAIN)
    elif asked.continued_thread in conversation.threads:
        thread = conversation.threads[asked.continued_thread]
    else:
        thread = _unnamed(conversation, asked, seen, file)
    if thread.key != MAIN:
        return _with_start(thread, asked, file)
    if not thread.agent_tool and not AGENT_TOOLS.isdisjoint(asked.view.tool_names):
        thread.agent_tool = True
    return thread


def _with_start(thread: Thread, asked: Asked, file: str) -> Thread:
    thread.file = thread.file or file
    if not thread.start or asked.id < thread.start:
        thread.start = asked.id
    if not thread.prompts:
        thread.prompts = ledger.prompts(asked.view)
    return thread


def unnamed_threads(conversation: Conversation) -> Iterator[Thread]:
    """The main line and the agents without an id of their own."""
    yield from (thread for thread in conversation.threads.values() if not thread.hinted)


def _unnamed(conversation: Conversation, asked: Asked, seen: Seen, file: str) -> Thread:
    prompts = ledger.prompts(asked.view) if begins(asked.view) else ()
    summarises = asked.kind is RequestKind.COMPACTION
    if prompts and not summarises:
        again = _failed_start(conversation, seen)
        if again:
            return again
        if waiting(conversation, prompts):
            return _new_agent(conversation, asked)
    nearest = nearest_thread(conversation, seen)
    if nearest:
        return nearest
    if asked.kind is RequestKind.SUBAGENT:
        return _new_agent(conversation, asked)
    text = compaction.continuation(asked.view)
    if text:
        return _summarised(conversation, text) or conversation.thread(MAIN)
    main = conversation.threads.get(MAIN)
    if main is None or summarises:
        return conversation.thread(MAIN)
    poorer = main.agent_tool and AGENT_TOOLS.isdisjoint(asked.view.tool_names) and bool(asked.view.tool_names)
    return _new_agent(conversation, asked) if file or poorer else main


def waiting(conversation: Conversation, prompts: tuple[bytes, ...]) -> bool:
    """Does a call with such a prompt wait for its agent?"""
    taken = {thread.spawn for thread in conversation.threads.values()}
    return any(spawn.prompt in prompts and spawn.id not in taken for spawn in conversation.spawns)


def nearest_thread(conversation: Conversation, seen: Seen) -> Thread | None:
    """The thread that shares the longest beginning with the request, None if none shares any."""
    best: tuple[tuple[int, bool, bool, str], Thread] | None = None
    for thread in unnamed_threads(conversation):
        placed = branches.place(thread, seen)
        if placed.edge is Edge.ROOT or not placed.depth:
            continue
        parent = placed.parent
        rank = (
            placed.depth,
            branches.answered(parent, placed, seen),
            placed.edge is not Edge.REWIND,
            parent.id if parent else "",
        )
        if best is None or rank > best[0]:
            best = (rank, thread)
    return best[1] if best else None


def _failed_start(conversation: Conversation, seen: Seen) -> Thread | None:
    """An agent whose first request failed and comes again."""
    for thread in unnamed_threads(conversation):
        if thread.key == MAIN:
            continue
        placed = branches.place(thread, seen)
        if placed.edge is Edge.RETRY and placed.parent and placed.parent.state == FAILED:
            return thread
    return None


def _summarised(conversation: Conversation, text: str) -> Thread | None:
    """The thread whose summary the request goes on from, else the one that asked for a summary last."""
    asked = [(node, thread) for thread in unnamed_threads(conversation) for node in thread.asides]
    texts = compaction.summaries(text)
    for node, thread in sorted(asked, key=lambda pair: pair[0].id, reverse=True):
        if node.summary and any(one.startswith(node.summary) for one in texts):
            return thread
    return max(asked, key=lambda pair: pair[0].id)[1] if asked else None


def _new_agent(conversation: Conversation, asked: Asked) -> Thread:
    """A thread for an agent that has no id: its key is made of its first request's."""
    return conversation.thread("a-" + blake2b(asked.id.encode(), digest_size=8).hexdigest())
