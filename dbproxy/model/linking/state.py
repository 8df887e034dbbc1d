"""What linking remembers of a conversation: threads, their branches, and the exchanges on them.

Owns these shapes, their small form for idle conversations, and their rebuilding from stored rows. Decides nothing.
Invariants: only a branch of requests without messages has an empty chain; exchanges on a branch stand in the order of
their arrival; numbers of branches and spawns are given once and never change.
"""

from __future__ import annotations

import zlib
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from dbproxy.model.link import Agent, Edge, Evidence, RequestKind
from dbproxy.model.linking import chains

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbproxy.model.linking.history import StoredConversation, StoredExchange

MAIN: Final = "main"
OPEN: Final = 0
OK: Final = 1
FAILED: Final = 2


class Node(msgspec.Struct):
    """One linked exchange. ``tip`` is the depth that its history reaches, ``base`` the depth from which on its branch
    learned of messages through it."""

    id: str
    at: float
    branch: int
    tip: int
    base: int
    kind: RequestKind
    edge: Edge
    parent: str = ""
    compaction: str = ""
    attempt: int = 1
    state: int = OPEN
    last: bytes = b""  # link hash of its last message
    answer: bytes = b""  # link hash of its answer, b"" while there is none
    message_id: str = ""
    request_id: str = ""
    prompt_id: str = ""
    partial: bool = False  # its body held only the new messages (API facts 2.6)
    summary: str = ""  # the first words of the summary that answered it
    evidence: tuple[Evidence, ...] = ()


class Branch(msgspec.Struct):
    """A line of history: the first ``base`` messages are those of branch ``origin`` (0: none), the rest its own."""

    number: int
    origin: int
    base: int
    own: bytes
    nodes: list[Node]

    @property
    def depth(self) -> int:
        """How many messages it holds, shared ones included."""
        return self.base + chains.depth(self.own)

    @property
    def tip(self) -> Node | None:
        """The exchange that reaches furthest; of several attempts one that succeeded, else the latest."""
        return furthest(self.nodes)


def furthest(nodes: list[Node]) -> Node | None:
    """The exchange that reaches furthest; of several attempts one that succeeded, else the latest. A conversation has
    thousands, and this is asked several times for each request."""
    if not nodes:
        return None
    tip = max([node.tip for node in nodes])
    there = [node for node in nodes if node.tip == tip]
    return max([node for node in there if node.state == OK] or there, key=_AGE)


class Thread(msgspec.Struct):
    """The main line or one agent. For an agent the fields from ``hinted`` on tell what its requests said of it."""

    key: str
    branches: list[Branch]
    asides: list[Node]  # compaction requests
    agent_tool: bool = False  # may it start agents?
    hinted: bool = False  # the client named it by an agent id
    type: str = ""
    parent: str = ""  # thread, as the client named it
    file: str = ""  # name of the agent file that opens its system prompt
    prompts: tuple[bytes, ...] = ()
    start: str = ""  # its earliest exchange
    spawn: str = ""  # tool_use id that started it
    proof: str = ""  # how that was found out

    def branch(self, number: int) -> Branch | None:
        """The branch of that number."""
        return self.branches[number - 1] if 0 < number <= len(self.branches) else None

    def nodes(self) -> Iterator[Node]:
        """All its exchanges."""
        for branch in self.branches:
            yield from branch.nodes
        yield from self.asides


class Spawn(msgspec.Struct):
    """One Agent or Task tool_use. ``number`` counts those of its thread from 1 as they stand in the transcript."""

    id: str
    thread: str
    exchange: str  # the one whose answer it is part of
    number: int
    type: str = ""
    prompt: bytes = b""
    agent: str = ""  # the agent's id, once the client told it


class Conversation(msgspec.Struct):
    """Everything that linking keeps of a conversation. ``recalled`` is False as long as spawns of exchanges before a
    restart may be missing."""

    id: str
    account: str
    family: str
    last: float
    threads: dict[str, Thread]
    spawns: list[Spawn]
    recalled: bool = True
    joins: dict[str, str] = {}  # tool_use id -> agent id, told before the spawn was seen

    def thread(self, key: str) -> Thread:
        """The thread of that key, made if need be."""
        found = self.threads.get(key)
        if found is None:
            found = self.threads[key] = Thread(key, [], [])
        return found


_AGE: Final = attrgetter("at", "id")
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(Conversation).decode


def pack(conversation: Conversation) -> bytes:
    """The small form. What only recent exchanges are asked for is dropped."""
    for thread in conversation.threads.values():
        for branch in thread.branches:
            tip = branch.tip
            for node in branch.nodes:
                node.evidence = ()
                if node is not tip:
                    node.last = node.answer = b""
                    node.message_id = node.request_id = node.prompt_id = ""
        for node in thread.asides:
            node.evidence = ()
    return zlib.compress(_ENCODE(conversation), 1)


def unpack(data: bytes) -> Conversation:
    """What ``pack`` made small."""
    return _DECODE(zlib.decompress(data))


def restore(stored: StoredConversation) -> Conversation:
    """A conversation from its rows. Rows that do not fit together are left out."""
    conversation = Conversation(stored.id, stored.account, family(stored.client), 0.0, {}, [], recalled=False)
    rows = {row.id: row for row in stored.exchanges}
    own: dict[tuple[str, int], dict[int, bytes]] = {}
    reach: dict[str, tuple[int, int]] = {}
    for point in stored.points:
        own.setdefault((point.thread, point.branch), {})[point.depth] = point.chain
        low, high = reach.get(point.exchange, (point.depth, point.depth))
        reach[point.exchange] = (min(low, point.depth), max(high, point.depth))
    for (key, number), points in sorted(own.items()):
        thread = conversation.thread(key)
        depths = sorted(points)
        # Branches are numbered without gaps, and a chain without holes; anything else is a damaged file.
        whole = depths[-1] - depths[0] + 1 == len(depths) and number == len(thread.branches) + 1
        if whole and all(len(points[depth]) == chains.WIDTH for depth in depths):
            thread.branches.append(Branch(number, 0, depths[0] - 1, b"".join(points[d] for d in depths), []))
    nodes: dict[str, Node] = {}
    for row in sorted(stored.exchanges, key=lambda row: row.id):
        _restore_exchange(conversation, row, rows, reach, nodes)
    for thread in conversation.threads.values():
        _join_branches(thread, nodes)
    for agent in stored.agents:
        _restore_agent(conversation, agent)
    return conversation


def _restore_exchange(
    conversation: Conversation,
    row: StoredExchange,
    rows: dict[str, StoredExchange],
    reach: dict[str, tuple[int, int]],
    nodes: dict[str, Node],
) -> None:
    try:
        kind, edge = RequestKind(row.kind), Edge(row.edge)
    except ValueError:
        return
    if not kind.speaks or not row.thread:
        return
    conversation.last = max(conversation.last, row.started)
    thread = conversation.thread(row.thread)
    branch = thread.branch(row.branch)
    parent = nodes.get(row.parent)
    low, tip = reach.get(row.id, (0, parent.tip if parent and rows[parent.id].thread == row.thread else 0))
    state = OK if row.outcome in ("ok", "local") else FAILED if row.outcome else OPEN
    node = Node(
        row.id,
        row.started,
        row.branch,
        tip,
        low - 1 if low else tip,
        kind,
        edge,
        row.parent,
        row.compaction,
        row.attempt,
        state,
        message_id=row.message_id,
        request_id=row.request_id,
    )
    nodes[row.id] = node
    if kind is RequestKind.COMPACTION:
        thread.asides.append(node)
    elif branch:
        branch.nodes.append(node)
    if not thread.start or row.id < thread.start:
        thread.start = row.id


def _join_branches(thread: Thread, nodes: dict[str, Node]) -> None:
    """Which branch the shared beginning of each is on: the one of the first exchange's parent, else the one before."""
    for branch in thread.branches:
        if not branch.base:
            continue
        parent = nodes.get(branch.nodes[0].parent) if branch.nodes else None
        origin = parent.branch if parent and thread.branch(parent.branch) else 0
        while origin and (found := thread.branch(origin)) and not found.base < branch.base <= found.depth:
            origin = found.origin if branch.base <= found.base and found.origin < origin else 0
        if not origin or origin >= branch.number:
            holds = [b.number for b in thread.branches if b.number < branch.number and b.base < branch.base <= b.depth]
            origin = holds[0] if holds else 0
        branch.origin = origin


def _restore_agent(conversation: Conversation, agent: Agent) -> None:
    thread = conversation.threads.get(agent.thread)
    if thread is None or agent.thread == MAIN:
        return
    thread.type = agent.type
    thread.hinted = agent.thread != agent.tool_use_id and not agent.thread.startswith("a-")
    thread.parent = agent.parent_thread if thread.hinted else ""
    thread.file = agent.name
    if agent.tool_use_id:
        first = min(thread.nodes(), key=lambda node: node.id, default=None)
        thread.spawn, thread.proof = agent.tool_use_id, "stored"
        conversation.spawns.append(
            Spawn(
                agent.tool_use_id,
                agent.parent_thread,
                first.parent if first and first.edge is Edge.SPAWN else "",
                agent.number,
                agent.name or agent.type,
                agent=agent.thread,
            )
        )


def family(client: str) -> str:
    """The program that a User-Agent names, without its version."""
    return client.partition("/")[0].partition(" ")[0].lower()
