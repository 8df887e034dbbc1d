"""A conversation's shape out of its rows: lists with their sums, threads, branches, agents below agents.

Owns the shaping; the only query here sums a page of conversations. Never writes. Invariants: every exchange of a
conversation appears exactly once in its tree, whatever its links say; agents whose parents form a circle or are
missing hang on the main thread.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model.link import RequestKind
from dbproxy.store.rows import AgentRow, Branch, ConversationRow, ConversationTree, ExchangeRow, Thread, UnknownId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dbproxy.store.connection import Connection

COLUMNS: Final = "id, account, project, client, title, started, last, forked_from"
MAIN: Final = "main"
_DEEPEST: Final = 64  # agents below agents; what nests deeper is listed below the main thread
_SPEAKING: Final = ", ".join(f"'{kind.value}'" for kind in RequestKind if kind.speaks)
_SUMS: Final = f"""
SELECT conversation, count(*), sum(kind IN ({_SPEAKING})),
  sum(state <> 'open' AND outcome NOT IN ('ok', 'local', 'upgraded', 'aborted')), sum(state = 'open'),
  count(DISTINCT CASE WHEN thread NOT IN ('', 'main') THEN thread END),
  count(DISTINCT CASE WHEN thread = 'main' AND branch > 0 THEN branch END),
  sum(kind = 'compaction'),
  sum(input_tokens), sum(output_tokens), sum(cache_read), sum(cache_write_5m), sum(cache_write_1h), sum(cost_usd),
  sum(cost_usd IS NULL AND input_tokens + output_tokens + cache_read + cache_write_5m + cache_write_1h > 0),
  json_group_array(DISTINCT coalesce(nullif(model, ''), model_asked)), max(id)
FROM exchange WHERE conversation IN ({{}}) GROUP BY conversation
"""
_CONTEXT: Final = """
SELECT input_tokens + cache_read + cache_write_5m + cache_write_1h FROM exchange
WHERE conversation = ? AND thread = 'main' AND outcome = 'ok' AND kind IN ('main', 'after-compaction')
ORDER BY id DESC LIMIT 1
"""


def cursor(text: str) -> tuple[float, str]:
    """What a conversation's ``cursor`` says: where its page ended. Raises UnknownId for any other text."""
    last, _, id = text.partition("~")
    try:
        return float(last), id
    except ValueError:
        raise UnknownId(f"{text[:40]!r} is no place in the list", hint="Take the cursor of the page before") from None


def conversations(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> list[ConversationRow]:
    """Rows of ``COLUMNS`` with the sums of their exchanges. Raises Unreadable."""
    if not rows:
        return []
    marks = ", ".join("?" * len(rows))
    sums = {row[0]: row[1:] for row in connection.rows(_SUMS.format(marks), [row[0] for row in rows])}
    return [_conversation(connection, row, sums.get(row[0], _NOTHING)) for row in rows]


_NOTHING: Final = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, 0, "[]", "")


def _conversation(connection: Connection, row: tuple[Any, ...], sums: tuple[Any, ...]) -> ConversationRow:
    context = connection.row(_CONTEXT, [row[0]])
    *counts, models, latest = sums
    names = tuple(sorted(name for name in json.loads(models) if name))
    values = [*row, *counts, names, context[0] if context else 0, latest, f"{row[6]!r}~{row[0]}"]
    return ConversationRow(*values)


def tree(
    conversation: ConversationRow, exchanges: Iterable[ExchangeRow], agents: Iterable[AgentRow]
) -> ConversationTree:
    """The shape of one conversation; ``exchanges`` in the order of their ids."""
    threads: dict[str, dict[int, list[ExchangeRow]]] = {MAIN: {}}
    asides: list[ExchangeRow] = []
    for exchange in exchanges:
        if not exchange.thread or exchange.branch <= 0:
            asides.append(exchange)
        else:
            threads.setdefault(exchange.thread, {}).setdefault(exchange.branch, []).append(exchange)
    known = {agent.thread: agent for agent in agents if agent.thread not in ("", MAIN)}
    for thread in known:
        threads.setdefault(thread, {})
    below = _below(threads, known)
    return ConversationTree(conversation, _thread(MAIN, threads, known, below), tuple(asides))


def _below(threads: Iterable[str], known: dict[str, AgentRow]) -> dict[str, list[str]]:
    """The agents that each thread started, by number and then by key."""
    below: dict[str, list[str]] = {}
    for thread in threads:
        if thread != MAIN:
            below.setdefault(_parent(thread, known), []).append(thread)
    for found in below.values():
        found.sort(key=lambda key: _order(key, known))
    return below


def _order(key: str, known: dict[str, AgentRow]) -> tuple[bool, int, str]:
    number = known[key].number if key in known else 0
    return not number, number, key


def _parent(thread: str, known: dict[str, AgentRow]) -> str:
    """The thread that a thread hangs on."""
    agent = known.get(thread)
    parent = agent.parent_thread if agent is not None else MAIN
    if parent not in known:
        return MAIN
    seen = {thread}
    at = parent
    while at in known:
        if at in seen or len(seen) > _DEEPEST:
            return MAIN
        seen.add(at)
        at = known[at].parent_thread
    return parent


def _thread(
    key: str, threads: dict[str, dict[int, list[ExchangeRow]]], known: dict[str, AgentRow], below: dict[str, list[str]]
) -> Thread:
    branches = tuple(Branch(number, tuple(rows)) for number, rows in sorted(threads[key].items()))
    agents = tuple(_thread(child, threads, known, below) for child in below.get(key, ()))
    return Thread(key, known.get(key), branches, agents)
