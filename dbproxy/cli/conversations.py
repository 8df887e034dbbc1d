"""``dbproxy conversations list / show / reset``: the agent's conversations in their true shape.

Owns the list, the tree and their words. Reads the database file; only ``reset`` speaks to the running proxy.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dbproxy.cli.captured import PAGE, how_many, open_reader, when
from dbproxy.cli.common import load_config, print_json
from dbproxy.cli.tables import Cell, Column, Terminal, clean, count, money, short_id, stamp, table
from dbproxy.errors import DbproxyError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from dbproxy.store.rows import Branch, ConversationRow, ConversationTree, ExchangeRow, Thread

_WAIT = 10.0  # seconds for the proxy's answer


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``conversations`` and its three actions."""
    parser = subparsers.add_parser(
        "conversations",
        help="show the captured conversations",
        description="The agent's conversations as they were captured: the main line, its branches, its subagents, what "
        "each cost.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="the latest conversations", description="List the latest conversations.")
    listed.add_argument("-n", "--limit", type=how_many, default=PAGE, metavar="N", help=f"how many (default {PAGE})")
    listed.add_argument("--project", metavar="DIR", help="only of this working directory")
    listed.add_argument("--since", type=when, metavar="TIME", help="only with a request since then: 2h, 7d, 2026-01-31")
    listed.add_argument("--json", action="store_true", help="for scripts")
    show = actions.add_parser(
        "show",
        help="one conversation as a tree",
        description="Draw one conversation: its main line, branches (rewinds, forks, compactions), subagents with "
        "their number, type and name, and what each used and cost.",
    )
    show.add_argument("conversation", metavar="ID", help="an id, its beginning, or `last`")
    show.add_argument("--exchanges", action="store_true", help="also every single request")
    show.add_argument("--json", action="store_true", help="for scripts")
    reset = actions.add_parser(
        "reset",
        help="let the running proxy forget a conversation, or all",
        description="Let the running proxy forget what it holds in memory about one conversation, or about all. What "
        "was captured stays in the file: see `dbproxy log prune`.",
    )
    reset.add_argument("conversation", metavar="ID", nargs="?", help="an id or its beginning; all if left out")
    reset.add_argument("--json", action="store_true", help="for scripts")


def run(args: argparse.Namespace) -> int:
    """0 when done; raises UnknownId, Unreadable or DbproxyError."""
    return {"list": _list, "show": _show, "reset": _reset}[args.action](args)


# ---- list


def _list(args: argparse.Namespace) -> int:
    from dbproxy.store.rows import as_json

    with open_reader(args) as reader:
        rows = reader.conversations(limit=args.limit, project=args.project, since=args.since)
    if args.json:
        print_json(as_json(rows))
        return 0
    if not rows:
        print("no conversation was captured yet" if not (args.project or args.since) else "no such conversation")
        return 0
    for line in table(_COLUMNS, (_row(row) for row in rows), Terminal.of_stdout()):
        print(line)
    return 0


_COLUMNS = (
    Column("ID"),
    Column("LAST"),
    Column("TITLE", least=12),
    Column("PROJECT", least=10),
    Column("TURNS", right=True),
    Column("AGENTS", right=True),
    Column("CONTEXT", right=True),
    Column("COST", right=True),
    Column("MODEL", least=8),
)


def _row(row: ConversationRow) -> list[Cell | str]:
    return [
        Cell(short_id(row.id), "cyan"),
        stamp(row.last),
        row.title,
        row.project,
        str(row.turns),
        str(row.agents) if row.agents else "",
        count(row.context_tokens),
        _cost(row.cost_usd, row.unpriced),
        ", ".join(row.models),
    ]


def _cost(usd: float | None, unpriced: int) -> str:
    """With a plus where some requests have no price."""
    return money(usd) + ("+" if usd is not None and unpriced else "")


# ---- show


def _show(args: argparse.Namespace) -> int:
    from dbproxy.store.rows import as_json

    with open_reader(args) as reader:
        tree = reader.conversation(args.conversation)
    if args.json:
        print_json(as_json(tree))
        return 0
    for line in draw(tree, Terminal.of_stdout(), exchanges=args.exchanges):
        print(line)
    return 0


@dataclass(slots=True)
class Node:
    """One line of the tree and what hangs below it."""

    text: str
    facts: str = ""
    colour: str = ""
    below: list[Node] = field(default_factory=list)


def draw(tree: ConversationTree, terminal: Terminal, *, exchanges: bool = False) -> list[str]:
    """The lines of a conversation's tree."""
    row = tree.conversation
    lines = [terminal.paint(f"conversation {clean(row.id)}", "bold")]
    for name, value in _facts(row):
        lines.append(terminal.cut(f"  {name:<9} {clean(value)}"))
    lines.append("")
    nodes = [_thread(tree.main, exchanges)]
    if tree.asides:
        nodes.append(_asides(tree.asides, exchanges))
    for node in nodes:
        lines += _lines(node, "", "", terminal)
    return lines


def _facts(row: ConversationRow) -> list[tuple[str, str]]:
    facts = [("title", row.title), ("project", row.project), ("client", row.client), ("account", row.account)]
    facts.append(("time", f"{stamp(row.started)} to {stamp(row.last)}"))
    if row.forked_from:
        facts.append(("fork of", row.forked_from))
    tokens = [("in", row.input_tokens), ("cache read", row.cache_read)]
    tokens += [("cache write", row.cache_write_5m + row.cache_write_1h), ("out", row.output_tokens)]
    facts.append(("tokens", ", ".join(f"{count(number)} {name}" for name, number in tokens if number)))
    facts.append(("context", count(row.context_tokens)))
    cost = _cost(row.cost_usd, row.unpriced)
    facts.append(("cost", f"{cost} ({_many(row.unpriced, 'request')} without a known price)" if row.unpriced else cost))
    facts.append(("model", ", ".join(row.models)))
    return [(name, value) for name, value in facts if value]


def _thread(thread: Thread, exchanges: bool) -> Node:
    rows = [row for branch in thread.branches for row in branch.exchanges]
    if thread.agent is None:
        node = Node("main" if thread.key == "main" else f"agent {thread.key}", _sums(rows), "green")
    else:
        agent = thread.agent
        kind = f" ({agent.type})" if agent.type and agent.name and agent.name != agent.type else ""
        number = f" {agent.number}" if agent.number else ""
        node = Node(f"agent{number}: {agent.name or agent.type or agent.thread}{kind}", _sums(rows), "cyan")
    agents = _by_spawner(thread)
    single = len(thread.branches) == 1
    for branch in thread.branches:
        below = _branch(branch, agents, exchanges)
        if single and not _origin(branch):
            node.below += below
        else:
            node.below.append(
                Node(f"branch {branch.number}{_origin(branch)}", _sums(branch.exchanges), "yellow", below)
            )
    node.below += [_thread(agent, exchanges) for rest in agents.values() for agent in rest]
    return node


def _by_spawner(thread: Thread) -> dict[str, list[Thread]]:
    """The agents of a thread by the exchange whose answer started them."""
    found: dict[str, list[Thread]] = {}
    for agent in thread.agents:
        first = next((row for branch in agent.branches for row in branch.exchanges), None)
        found.setdefault(first.parent if first is not None else "", []).append(agent)
    return found


def _branch(branch: Branch, agents: dict[str, list[Thread]], exchanges: bool) -> list[Node]:
    """What hangs below a branch, in the order of time: compactions, the agents it started, and where asked its turns.

    Agents that it shows are taken out of ``agents``.
    """
    made = []
    for row in branch.exchanges:
        if exchanges:
            made.append(_exchange(row))
        elif row.kind == "compaction":
            ours = ", answered by dbproxy" if row.outcome == "local" else ""
            made.append(Node(f"compaction ({row.compaction or 'unknown'}){ours}", _sums([row]), "yellow"))
        elif row.edge == "retry" or row.outcome not in ("ok", "local", ""):
            made.append(_exchange(row))
        made += [_thread(agent, exchanges) for agent in agents.pop(row.id, ())]
    return made


_ORIGINS = {
    "rewind": ": a rewind, leaves at {parent}",
    "fork": ": a fork of {parent}",
    "compacted": ": after the compaction {parent}",
}


def _origin(branch: Branch) -> str:
    """Where a branch comes from, "" for one that begins its thread."""
    if not branch.exchanges:
        return ""
    first = branch.exchanges[0]
    return _ORIGINS.get(first.edge, "").format(parent=first.parent or "an unknown request")


def _exchange(row: ExchangeRow) -> Node:
    what = row.kind or f"{row.method} {row.path}"
    attempt = f", attempt {row.attempt}" if row.attempt > 1 else ""
    ended = "" if row.outcome in ("ok", "local") else f", {row.outcome or row.state}"
    error = f": {row.error}" if row.error and ended else ""
    text = f"{row.id} {stamp(row.started)} {what}{attempt}{ended}{error}"
    return Node(text, _sums([row], turns=False), "red" if ended and row.state != "open" else "dim")


def _asides(rows: Iterable[ExchangeRow], exchanges: bool) -> Node:
    rows = list(rows)
    kinds = Counter(row.kind or "other" for row in rows)
    named = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    node = Node(f"aside: {named}", _sums(rows, turns=False))
    if exchanges:
        node.below = [_exchange(row) for row in rows]
    return node


def _sums(rows: Iterable[ExchangeRow], *, turns: bool = True) -> str:
    rows = list(rows)
    speaking = sum(row.kind not in ("compaction", "") and row.attempt == 1 for row in rows)
    fresh = sum(row.input_tokens + row.cache_write_5m + row.cache_write_1h for row in rows)
    parts = [_many(speaking, "turn")] if turns and speaking else []
    for name, number in (
        ("in", fresh),
        ("cached", sum(row.cache_read for row in rows)),
        ("out", sum(row.output_tokens for row in rows)),
    ):
        if number:
            parts.append(f"{count(number)} {name}")
    priced = [row.cost_usd for row in rows if row.cost_usd is not None]
    if priced:
        parts.append(_cost(sum(priced), sum(row.cost_usd is None and row.output_tokens > 0 for row in rows)))
    return ", ".join(parts)


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _lines(node: Node, first: str, rest: str, terminal: Terminal) -> list[str]:
    text = clean(node.text)
    facts = clean(node.facts)
    whole = f"{text}  {facts}".rstrip()
    room = len(terminal.cut(whole, len(first)))
    shown = terminal.cut(whole, len(first))
    if room > len(text):
        line = terminal.paint(shown[: len(text)], node.colour) + terminal.paint(shown[len(text) :], "dim")
    else:
        line = terminal.paint(shown, node.colour)
    lines = [terminal.paint(first, "dim") + line]
    for index, child in enumerate(node.below):
        last = index == len(node.below) - 1
        lines += _lines(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "), terminal)
    return lines


# ---- reset


def _reset(args: argparse.Namespace) -> int:
    from dbproxy.paths import Paths
    from dbproxy.state import load, probe

    paths = Paths(load_config(args.overrides).settings.data_dir)
    state = load(paths.daemon_state)
    if state is None or probe(state, 2.0) is None:
        if args.json:
            print_json({"status": "not_running", "count": 0})
        else:
            print("no proxy runs, so there is nothing to forget; what was captured stays in the file")
        return 0
    question = {} if args.conversation is None else {"conv_id": args.conversation}
    answer = _ask(state.address, paths.control_token.read_text("ascii").strip(), question)
    if args.json:
        print_json(answer)
    elif answer.get("status") == "reset_all":
        print(f"forgotten: all {answer.get('count', 0)}; what was captured stays in the file")
    else:
        print(f"forgotten: {clean(str(answer.get('conv_id', '')))}; what was captured stays in the file")
    return 0


def _ask(address: tuple[str, int], token: str, question: object) -> dict[str, object]:
    """``POST /v1/_reset`` on the running proxy. Raises DbproxyError with what it said when it did not do it."""
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(address[0], address[1], timeout=_WAIT)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/_reset", json.dumps(question), headers)
        response = connection.getresponse()
        answer = json.loads(response.read(1_000_000))
    except (OSError, HTTPException, ValueError) as error:
        raise DbproxyError(f"the running proxy did not answer: {error}", hint="See `dbproxy status`") from None
    finally:
        connection.close()
    if response.status != 200:
        message = answer.get("error", {}).get("message", "") if isinstance(answer, dict) else ""
        raise DbproxyError(message.removeprefix("dbproxy: ") or f"the running proxy answered {response.status}")
    return dict(answer)
