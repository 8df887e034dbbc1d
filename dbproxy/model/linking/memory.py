"""The conversations that linking holds, small when idle, and the indexes that find one without a session id.

Owns the bounds: at most ``limit`` conversations, idle ones packed, the oldest dropped and asked of the history when
they return. Invariant: the indexes name conversations of this memory only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from dbproxy.model.linking import chains
from dbproxy.model.linking.state import OPEN, Conversation, Thread, pack, restore, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dbproxy.model.linking.history import History

IDLE_SECONDS: Final = 600.0
#: An exchange that has been open for so long is not waited for.
STALE_SECONDS: Final = 3600.0
_LIVE: Final = 64  # conversations that stay unpacked without asking how long they have been idle
_SAME: Final = 32  # conversations remembered for one first message or one prompt


class Memory:
    """Conversations by id, most recently used last."""

    def __init__(self, history: History | None, limit: int) -> None:
        self._history = history
        self._limit = max(limit, 1)
        self._held: OrderedDict[str, Conversation | bytes] = OrderedDict()
        self._last: dict[str, float] = {}
        self._roots = _Index()
        self._prompts = _Index()
        self._summaries: OrderedDict[str, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, id: str) -> Conversation | None:
        """The conversation, from memory or out of the history; None if neither knows it."""
        held = self._held.get(id)
        if held is None:
            stored = self._history.conversation(id) if self._history else None
            if stored is None:
                return None
            held = restore(stored)
            self.put(held)
        elif isinstance(held, bytes):
            held = self._held[id] = unpack(held)
        self._held.move_to_end(id)
        return held

    def put(self, conversation: Conversation) -> None:
        """Take a new conversation in; the oldest go beyond the limit."""
        self._held[conversation.id] = conversation
        self._last[conversation.id] = conversation.last
        for thread in conversation.threads.values():
            self.index(conversation, thread)
        while len(self._held) > self._limit:
            self._drop(next(iter(self._held)))
        self._pack_oldest()

    def touch(self, conversation: Conversation, at: float) -> None:
        """It was just used."""
        conversation.last = max(conversation.last, at)
        self._last[conversation.id] = conversation.last
        self._held[conversation.id] = conversation
        self._held.move_to_end(conversation.id)

    def index(self, conversation: Conversation, thread: Thread) -> None:
        """Make the beginnings of a thread's branches findable. Agents that the client names need no finding."""
        if thread.hinted:
            return
        for branch in thread.branches:
            if not branch.base and branch.own:
                self._roots.add(chains.at(branch.own, 1), conversation.id)

    def index_prompt(self, prompt: bytes, conversation: Conversation) -> None:
        """An agent was started with this prompt."""
        if prompt:
            self._prompts.add(prompt, conversation.id)

    def index_summary(self, words: str, conversation: Conversation) -> None:
        """A summary that begins with these words was made."""
        self._summaries.setdefault(words, set()).add(conversation.id)
        while len(self._summaries) > self._limit:
            self._summaries.popitem(last=False)

    def rooted(self, chain: bytes) -> Iterator[Conversation]:
        """Conversations in memory that begin with the first message of ``chain``, the newest first."""
        yield from self._named(self._roots.get(chains.at(chain, 1)))

    def started(self, prompts: Sequence[bytes]) -> Iterator[Conversation]:
        """Conversations in memory that started an agent with one of these prompts, the newest first."""
        for prompt in prompts:
            yield from self._named(self._prompts.get(prompt))

    def summarised(self, texts: Sequence[str]) -> Iterator[Conversation]:
        """Conversations in memory one of whose summaries begins one of these texts, the newest first."""
        for words, ids in reversed(list(self._summaries.items())):
            if any(text.startswith(words) for text in texts):
                yield from self._named(sorted(ids, reverse=True))

    def stored(self, chain: bytes, account: str) -> Iterator[Conversation]:
        """Conversations out of the history that hold the most of ``chain``."""
        if self._history and chain:
            deepest = chains.split(chain)[::-1][:256]
            yield from self._named(self._history.holding(deepest, account=account, limit=8))

    def forget(self, prefix: str) -> int:
        """Drop conversations whose id begins so; how many."""
        gone = [id for id in self._held if id.startswith(prefix)]
        for id in gone:
            self._drop(id)
        return len(gone)

    def expire(self, now: float) -> int:
        """Pack what has been idle; how many conversations became small."""
        count = 0
        for id, held in list(self._held.items()):
            if isinstance(held, Conversation) and now - held.last > IDLE_SECONDS and not _busy(held, now):
                self._held[id] = pack(held)
                count += 1
        return count

    def _named(self, ids: Sequence[str]) -> Iterator[Conversation]:
        for id in ids:
            found = self.get(id)
            if found is not None:
                yield found

    def _drop(self, id: str) -> None:
        self._held.pop(id, None)
        self._last.pop(id, None)
        self._roots.drop(id)
        self._prompts.drop(id)
        for ids in self._summaries.values():
            ids.discard(id)

    def _pack_oldest(self) -> None:
        """Beyond the live ones the least recently used become small, whenever a conversation comes in."""
        spare = len(self._held) - _LIVE
        if spare <= 0:
            return
        now = max(self._last.values(), default=0.0)
        for id in list(self._held)[:spare]:
            held = self._held[id]
            if isinstance(held, Conversation) and not _busy(held, now):
                self._held[id] = pack(held)


def _busy(conversation: Conversation, now: float) -> bool:
    """Is one of its exchanges under way?"""
    return any(
        node.state == OPEN and now - node.at < STALE_SECONDS
        for thread in conversation.threads.values()
        for node in thread.nodes()
    )


class _Index:
    """Ids of conversations by a key, the newest first, a bounded number of each."""

    def __init__(self) -> None:
        self._ids: dict[bytes, list[str]] = {}
        self._keys: dict[str, set[bytes]] = {}

    def add(self, key: bytes, id: str) -> None:
        """``id`` has this key; it is the newest of them."""
        ids = self._ids.setdefault(key, [])
        if id in ids:
            ids.remove(id)
        ids.insert(0, id)
        self._keys.setdefault(id, set()).add(key)
        for old in ids[_SAME:]:
            self._keys[old].discard(key)
        del ids[_SAME:]

    def get(self, key: bytes) -> list[str]:
        """The ids of this key."""
        return list(self._ids.get(key, ()))

    def drop(self, id: str) -> None:
        """Forget everything about ``id``."""
        for key in self._keys.pop(id, ()):
            ids = self._ids[key]
            ids.remove(id)
            if not ids:
                del self._ids[key]
