"""What linking finds out about a request: its kind, its place in a conversation, and why.

Values only. Invariants: a link names an exchange that exists and, as parent, one that was linked before; evidence holds
names, ids and numbers, never message text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RequestKind(StrEnum):
    """Which of the client's requests this is (client facts 3.3). Only the first five take part in conversations."""

    MAIN = "main"
    SUBAGENT = "subagent"
    NESTED = "nested"  # an agent started by an agent
    COMPACTION = "compaction"  # asks for a summary of the conversation
    AFTER_COMPACTION = "after-compaction"  # the first turn that starts from a summary
    TITLE = "title"
    QUOTA = "quota"
    WARMUP = "warmup"
    TOPIC = "topic"
    COUNT_TOKENS = "count-tokens"
    WEB = "web"  # a side request that fetches or searches for the agent
    AUXILIARY = "auxiliary"  # any other side request
    OWN = "own"  # made by the proxy, for a plugin

    @property
    def speaks(self) -> bool:
        """Does it belong to a conversation's turns? Side requests never move one."""
        return self in _SPEAKING


_SPEAKING = frozenset(
    {
        RequestKind.MAIN,
        RequestKind.SUBAGENT,
        RequestKind.NESTED,
        RequestKind.COMPACTION,
        RequestKind.AFTER_COMPACTION,
    }
)


class Edge(StrEnum):
    """How a request follows its parent."""

    ROOT = "root"  # no parent: a conversation or an agent begins
    NEXT = "next"  # the parent's history, its answer, and more
    RETRY = "retry"  # the parent's body once more; not a branch
    REWIND = "rewind"  # follows the parent as another request did before: a new branch
    FORK = "fork"  # the same history under another session
    COMPACTED = "compacted"  # starts from the summary that the parent asked for
    SPAWN = "spawn"  # an agent's first request; the parent is the request whose answer started it
    ASIDE = "aside"  # a side request or a compaction request, at its parent's point


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why one question was answered as it was: ``session``, ``kind``, ``agent``, ``parent``, ``branch``, ...

    ``source`` is where the answer came from (a header's name, ``metadata.user_id``, ``spawn ledger``, ``agent file``,
    ``longest prefix``, ...), ``detail`` an id, a number or a name that lets a person check it.
    """

    question: str
    answer: str
    source: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Agent:
    """A subagent of a conversation. ``thread`` is its key there: the agent id where the client sends one, else the id
    of the tool_use that started it.

    ``number`` counts the agents of ``parent_thread`` from 1 in the order in which their starts stand in that thread's
    transcript; 0 while that is not known. (So two agents that start agents at the same time do not shift each other's.)
    ``name`` is the custom agent's own name, "" while it is not known.
    """

    thread: str
    type: str = ""
    name: str = ""
    number: int = 0
    parent_thread: str = "main"
    tool_use_id: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """One message of a branch, for finding the longest common prefix again after a restart.

    ``depth`` counts the messages that take part in linking from 1; ``chain`` is the running hash up to it.
    """

    depth: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """The place of one exchange. A later Link for the same exchange replaces the earlier one."""

    exchange: str
    conversation: str  # the session id where the client names one, else "c-" and 16 hex; "" for a side request without
    thread: str  # "main", an agent's key, or "" for side requests
    branch: int  # 1, 2, ... within the thread; 0 for side requests
    kind: RequestKind
    compaction: str = ""  # manual, auto, reactive or unknown for compaction and after-compaction
    parent: str = ""  # the exchange that this one follows; "" if none
    edge: Edge = Edge.ROOT
    attempt: int = 1  # 2, 3, ... for repeats of the same body
    agent: Agent | None = None  # of every thread but "main"
    points: tuple[Point, ...] = ()  # those that this exchange adds to its branch
    evidence: tuple[Evidence, ...] = ()
