"""Where on a thread a request stands: which exchange it follows, and whether that is a turn, a retry or a rewind.

Owns the placing by longest common beginning and the growing of branches. Pure: works on one thread's state. Invariant:
a request whose history agrees with a branch up to its end continues that branch; a repeat of the same messages is no
branch, unless the conversation had gone on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from dbproxy.model.link import Edge
from dbproxy.model.linking import chains
from dbproxy.model.linking.state import OK, OPEN, Branch, Node, Thread, furthest

if TYPE_CHECKING:
    from collections.abc import Iterable

_AGE: Final = attrgetter("at", "id")
#: Of so many attempts at the same messages, and no more, the exchanges are remembered: the first and the last ones.
_ATTEMPTS: Final = 32


@dataclass(frozen=True, slots=True)
class Seen:
    """A request's history: the chain over its messages and their link hashes, joined; and what it says of itself.

    ``follows`` is the message id and ``request_id`` the upstream's request id of the answer before it, as far as the
    client names them (client facts 3.1); "" if not.
    """

    chain: bytes
    hashes: bytes
    follows: str = ""
    request_id: str = ""
    prompt_id: str = ""

    @property
    def depth(self) -> int:
        """How many of its messages take part."""
        return chains.depth(self.chain)

    @property
    def last(self) -> bytes:
        """The link hash of the last message."""
        return self.hashes[-chains.WIDTH :]


@dataclass(frozen=True, slots=True)
class Place:
    """The answer: ``branch`` is the one to go on with, or the one to leave at ``depth`` for edges that begin one (0 if
    there is none). ``rewritten`` says that the branch's own messages from ``depth`` on were changed by the client."""

    edge: Edge
    branch: int
    depth: int
    parent: Node | None
    source: str
    rewritten: bool = False


def shared(thread: Thread, branch: Branch, chain: bytes) -> int:
    """How many messages from the beginning the branch and ``chain`` have in common, if they part on the branch's own
    stretch; 0 if they part before it."""
    base = branch.base
    found = chains.common(branch.own, chain[base * chains.WIDTH :])
    return base + found if found else 0


def place(thread: Thread, seen: Seen, *, rewritten: bool = True) -> Place:
    """Find the request's place; changes nothing. ``rewritten`` says whether the client may have changed messages of a
    branch that it goes on with."""
    reach = [(shared(thread, branch, seen.chain), branch) for branch in thread.branches]
    depth = max((found for found, _ in reach), default=0)
    named = _named(thread, seen)
    if not depth:
        blank = next((branch for branch in thread.branches if not branch.depth), None)
        if blank:
            return Place(Edge.NEXT, blank.number, 0, blank.tip, "first messages")
        changed = _rewritten(reach, seen, named) if rewritten else None
        return changed or Place(Edge.ROOT, 0, 0, None, "no common message")
    best = [branch for found, branch in reach if found == depth]
    if depth == seen.depth:
        return _repeat(thread, best, seen, named)
    open_ended = [branch for branch in best if branch.depth == depth]
    if open_ended:
        branch = max(open_ended, key=lambda branch: _fit(branch, seen, named))
        return Place(Edge.NEXT, branch.number, depth, branch.tip, "longest prefix")
    changed = _rewritten(reach, seen, named) if rewritten else None
    if changed:
        return changed
    parent, branch = follow(thread, best, depth)
    return Place(Edge.REWIND, branch.number, depth, parent, "longest prefix")


def nearest(thread: Thread, chain: bytes) -> tuple[Node | None, int, int]:
    """The exchange that ``chain`` shares the longest beginning with, its branch, and how many messages that are; with
    none in common the newest branch's end."""
    reach = [(shared(thread, branch, chain), branch) for branch in thread.branches]
    depth = max((found for found, _ in reach), default=0)
    if depth:
        node, branch = follow(thread, [branch for found, branch in reach if found == depth], depth)
        return node, branch.number, depth
    return (thread.branches[-1].tip, thread.branches[-1].number, 0) if thread.branches else (None, 0, 0)


def follow(thread: Thread, holders: Iterable[Branch], depth: int) -> tuple[Node | None, Branch]:
    """The exchange that a history of ``depth`` messages of these branches continues, and the branch that holds them.

    That is the one whose own messages reach furthest without going beyond; if the first ones were never seen alone, the
    earliest that holds them.
    """
    choice: list[tuple[Node, Branch]] = []
    first: list[tuple[Node, Branch]] = []
    for holder in holders:
        branch: Branch | None = holder
        limit = depth
        while branch:
            within = furthest([node for node in branch.nodes if node.tip <= limit])
            if within:
                choice.append((within, holder))
            elif branch.nodes:
                first.append((min(branch.nodes, key=_AGE), holder))
            limit = min(limit, branch.base)
            branch = thread.branch(branch.origin)
    if choice:
        return max(choice, key=lambda item: (item[0].tip, item[0].state == OK, item[0].at, item[0].id))
    if first:
        return min(first, key=lambda item: _AGE(item[0]))
    return None, next(iter(holders))


def _fit(branch: Branch, seen: Seen, named: Node | None) -> tuple[bool, bool, float, str]:
    """How well a request goes on with a branch that ends where they part: its answer is the request's next message,
    the client names that answer; else the newest."""
    tip = branch.tip
    if tip is None:
        return (False, False, 0.0, "")
    here = Place(Edge.NEXT, branch.number, branch.depth, tip, "")
    return (answered(tip, here, seen), tip is named, tip.at, tip.id)


def _named(thread: Thread, seen: Seen) -> Node | None:
    """The exchange whose answer the client names as the one before this request."""
    if not seen.follows and not seen.request_id:
        return None
    for branch in reversed(thread.branches):
        for node in reversed(branch.nodes):
            if node.message_id and node.message_id == seen.follows:
                return node
            if node.request_id and node.request_id == seen.request_id:
                return node
    return None


def _repeat(thread: Thread, best: list[Branch], seen: Seen, named: Node | None) -> Place:
    """All messages are known: a retry, unless that history was answered and the conversation went on from it."""
    depth = seen.depth
    same = [
        (max(nodes, key=_AGE), branch)
        for branch in best
        if (nodes := [node for node in branch.nodes if node.tip == depth])
    ]
    if not same:
        parent, branch = follow(thread, best, depth - 1)
        return Place(Edge.REWIND, branch.number, depth - 1, parent, "known messages")
    node, branch = max(same, key=lambda pair: _AGE(pair[0]))
    prompt = bool(seen.prompt_id) and seen.prompt_id == node.prompt_id
    if node.state != OK or branch.depth == depth or prompt:
        return Place(Edge.RETRY, branch.number, depth, node, "same messages")
    parent, _ = follow(thread, [branch], depth - 1)
    return Place(Edge.REWIND, branch.number, depth - 1, parent, "same messages, but the branch had gone on")


def _rewritten(reach: list[tuple[int, Branch]], seen: Seen, named: Node | None) -> Place | None:
    """Did the client change earlier messages (it clears old tool results), and go on all the same?

    It did if it names the answer at a branch's end as the one before, or if that branch's last message and its answer
    stand in the request one behind the other.
    """
    for found, branch in sorted(reach, key=lambda pair: (pair[0], pair[1].number), reverse=True):
        tip = branch.tip
        if tip is None:
            continue
        if tip is named and seen.follows:
            return Place(Edge.NEXT, branch.number, found, tip, "previous_message_id", rewritten=True)
        if tip.last and tip.answer and _holds(seen.hashes, tip.last + tip.answer):
            return Place(Edge.NEXT, branch.number, found, tip, "same last turn", rewritten=True)
    return None


def _holds(hashes: bytes, part: bytes) -> bool:
    start = hashes.rfind(part)
    while start > 0 and start % chains.WIDTH:
        start = hashes.rfind(part, 0, start + len(part) - 1)
    return start >= 0


def begin(thread: Thread, origin: int, depth: int, chain: bytes) -> Branch:
    """A new branch that leaves ``origin`` behind message ``depth``. Messages that it shares stay with the older one."""
    holder = thread.branch(origin)
    while holder and depth <= holder.base and holder.origin:
        holder = thread.branch(holder.origin)
    base = depth if holder else 0
    branch = Branch(len(thread.branches) + 1, holder.number if holder else 0, base, chain[base * chains.WIDTH :], [])
    thread.branches.append(branch)
    return branch


def grow(branch: Branch, chain: bytes) -> None:
    """The branch goes on to the end of ``chain``, which agrees with it so far."""
    branch.own += chain[branch.depth * chains.WIDTH :]


def thin(branch: Branch, tip: int) -> None:
    """Of very many attempts that reach equally far forget those in the middle: nothing is asked of them any more."""
    same = [node for node in branch.nodes if node.tip == tip]
    if len(same) <= _ATTEMPTS:
        return
    best = furthest(same)
    gone = {node.id for node in same[1 : 1 - _ATTEMPTS] if node.state != OPEN and node is not best}
    branch.nodes[:] = [node for node in branch.nodes if node.id not in gone]


def rewrite(thread: Thread, branch: Branch, depth: int, chain: bytes) -> None:
    """The branch's messages behind ``depth`` become those of ``chain``."""
    if depth < branch.base:
        holder = thread.branch(branch.origin)
        while holder and depth <= holder.base and holder.origin:
            holder = thread.branch(holder.origin)
        branch.origin = holder.number if holder and depth else 0
        branch.base = depth if branch.origin else 0
    branch.own = chain[branch.base * chains.WIDTH :]


def whole(thread: Thread, branch: Branch, depth: int) -> bytes:
    """The chain of a branch's first ``depth`` messages, shared ones included."""
    own = branch.own[: max(depth - branch.base, 0) * chains.WIDTH]
    origin = thread.branch(branch.origin)
    return (whole(thread, origin, min(depth, branch.base)) if origin and branch.base else b"") + own


def points(branch: Branch, node: Node) -> list[tuple[int, bytes]]:
    """Depth and chain of each message that an exchange added to its branch."""
    first = max(node.base, branch.base)
    return [
        (depth, chains.at(branch.own, depth - branch.base))
        for depth in range(first + 1, min(node.tip, branch.depth) + 1)
    ]


def answered(parent: Node | None, placed: Place, seen: Seen) -> bool:
    """Is the request's message behind the common beginning the answer that its parent got?"""
    at = placed.depth * chains.WIDTH
    return parent is not None and bool(parent.answer) and seen.hashes[at : at + chains.WIDTH] == parent.answer
