"""``dbproxy log list / show / search / export / verify / prune``: what was captured, request by request.

Owns the options and what is printed; ``cli.logfile`` does what changes or checks the file and what writes others. Works
without a running proxy.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dbproxy.cli.captured import PAGE, add_filters, age, byte_size, filters, how_many, open_reader
from dbproxy.cli.common import print_json
from dbproxy.cli.options import UsageError
from dbproxy.cli.tables import (
    Cell,
    Column,
    Terminal,
    clean,
    clean_lines,
    count,
    duration,
    money,
    short_id,
    size,
    stamp,
    table,
)
from dbproxy.errors import DbproxyError

if TYPE_CHECKING:
    import argparse

    from dbproxy.store.reader import Reader
    from dbproxy.store.rows import ExchangeDetail, ExchangeRow, Hit

_ID = "an id from `dbproxy log list`, its beginning, or `last`"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``log`` and its six actions."""
    parser = subparsers.add_parser(
        "log",
        help="what was captured: list, show, search, export, verify, prune",
        description="Every captured request and answer. For the proxy's own events see `dbproxy logs`.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="the newest requests", description="List the newest requests.")
    listed.add_argument("-n", "--limit", type=how_many, default=PAGE, metavar="N", help=f"how many (default {PAGE})")
    add_filters(listed)
    listed.add_argument("--json", action="store_true", help="for scripts")
    _add_show(actions)
    search = actions.add_parser(
        "search",
        help="find words in messages and answers",
        description='Find messages and answers that hold all of the words; "words in quotation marks" stand together, '
        "and `word*` finds words that begin so.",
    )
    search.add_argument("words", metavar="WORDS", nargs="+", help="what to look for")
    search.add_argument("-n", "--limit", type=how_many, default=20, metavar="N", help="how many (default 20)")
    search.add_argument("--project", metavar="DIR", help="only of this working directory")
    search.add_argument("--json", action="store_true", help="for scripts")
    _add_export(actions)
    verify = actions.add_parser(
        "verify",
        help="rebuild every request and compare",
        description="Rebuild every captured request body and compare it with the checksum of what was sent. Exit code "
        "1 if one differs or the file is damaged.",
    )
    verify.add_argument("--json", action="store_true", help="for scripts")
    _add_prune(actions)


def _add_show(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = actions.add_parser(
        "show",
        help="one request and its answer",
        description="Show one request: its facts, its last message and the answer.",
    )
    show.add_argument("exchange", metavar="EXCHANGE", help=_ID)
    which = show.add_mutually_exclusive_group()
    which.add_argument("--request", action="store_true", help="print the request's body, byte for byte as it was sent")
    which.add_argument("--response", action="store_true", help="print the answer's final message as JSON")
    which.add_argument("--stream", action="store_true", help="print the answer as it came, where streams are kept")
    which.add_argument("--all", action="store_true", help="show every message that the model saw")
    which.add_argument("--json", action="store_true", help="the facts, for scripts")
    show.add_argument("--headers", action="store_true", help="also the headers; credentials are fingerprints")


def _add_export(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = actions.add_parser(
        "export",
        help="write requests as JSON lines or a conversation as Markdown",
        description="Write what was captured elsewhere: JSON lines with facts, request and answer of each exchange, or "
        "a transcript in Markdown of one exchange or conversation with all that came before.",
    )
    export.add_argument(
        "exchange", metavar="EXCHANGE", nargs="*", help=f"{_ID}; all that the options below select if left out"
    )
    export.add_argument(
        "--format", choices=("jsonl", "markdown"), default="jsonl", help="jsonl (default) or markdown, a transcript"
    )
    export.add_argument("-o", "--output", metavar="FILE", help="write there instead of to the terminal; only for you")
    export.add_argument("--redact", action="store_true", help="replace what looks like a credential in the texts")
    add_filters(export)


def _add_prune(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prune = actions.add_parser(
        "prune",
        help="free disk space",
        description="Remove the texts of old exchanges and give the space back. Facts (times, tokens, cost) are kept "
        "unless --facts is given.",
    )
    prune.add_argument("--older-than", type=age, metavar="AGE", help="remove what is older: 30d, 4w, 12h")
    prune.add_argument(
        "--max-size", type=byte_size, metavar="SIZE", help="remove the oldest until the file fits: 500MB"
    )
    prune.add_argument("--facts", action="store_true", help="remove times, tokens and cost, too")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    prune.add_argument("--json", action="store_true", help="for scripts")


def run(args: argparse.Namespace) -> int:
    """0 when done, 1 if `verify` found a difference; raises UnknownId, Unreadable or UsageError."""
    if args.action == "list":
        return _list(args)
    if args.action == "show":
        return _show(args)
    if args.action == "search":
        return _search(args)
    from dbproxy.cli import logfile

    if args.action == "export":
        return logfile.export(args)
    return logfile.verify(args) if args.action == "verify" else logfile.prune(args)


# ---- list

_COLUMNS = (
    Column("ID"),
    Column("TIME"),
    Column("CONV"),
    Column("KIND", least=8),
    Column("AGENT", least=6),
    Column("MODEL", least=10),
    Column("CONTEXT", right=True),
    Column("OUT", right=True),
    Column("COST", right=True),
    Column("TOOK", right=True),
    Column("OUTCOME", least=7),
)


def _list(args: argparse.Namespace) -> int:
    from dbproxy.store.rows import as_json

    with open_reader(args) as reader:
        rows = filters(args, reader).of(reader, args.limit)
    if args.json:
        print_json(as_json(rows))
        return 0
    if not rows:
        print("no such exchange was captured")
        return 0
    for line in table(_COLUMNS, (_row(row) for row in rows), Terminal.of_stdout()):
        print(line)
    return 0


def _row(row: ExchangeRow) -> list[Cell | str]:
    ended = row.outcome or row.state
    shown = f"{ended} {row.status}" if row.outcome in ("error", "cut") and row.status else ended
    return [
        Cell(row.id, "cyan"),
        stamp(row.started),
        short_id(row.conversation),
        row.kind or f"{row.method} {row.path}",
        row.thread if row.thread != "main" else "",
        row.model or row.model_asked,
        count(row.context_tokens),
        count(row.output_tokens),
        money(row.cost_usd),
        duration(row.duration_ms),
        Cell(shown, "" if ended in ("ok", "local", "open", "upgraded") else "red"),
    ]


# ---- show


def _show(args: argparse.Namespace) -> int:
    from dbproxy.store.rows import as_json

    with open_reader(args) as reader:
        detail = reader.exchange(args.exchange)
        if args.json:
            print_json(as_json(detail))
            return 0
        if args.request or args.response or args.stream:
            sys.stdout.buffer.write(_bytes(args, reader, detail))
            sys.stdout.buffer.flush()
            return 0
        terminal = Terminal.of_stdout()
        for line in _detail(detail, terminal, headers=args.headers):
            print(line)
        shown = _texts(reader, detail, everything=args.all)
    if shown:
        print()
        print(clean_lines(shown), end="")
    return 0


def _bytes(args: argparse.Namespace, reader: Reader, detail: ExchangeDetail) -> bytes:
    exchange = detail.exchange.id
    if args.request:
        body = reader.request_body(exchange)
        if body is None:
            raise DbproxyError(f"the request of {exchange} was not kept ({detail.exchange.body_kind})")
        return body
    if args.response:
        message = reader.response_message(exchange)
        if message is None:
            raise DbproxyError(f"there is no message of {exchange}: it ended as {detail.exchange.outcome or 'open'}")
        return message + b"\n"
    pieces = reader.stream(exchange)
    if not pieces:
        raise DbproxyError(
            f"the stream of {exchange} was not kept", hint="Streams are kept from now on with --capture-stream"
        )
    return b"".join(piece.data for piece in pieces)


def _detail(detail: ExchangeDetail, terminal: Terminal, *, headers: bool) -> list[str]:
    from dbproxy.app.explaining import sentences

    lines = []
    for index, text in enumerate(sentences(detail)):
        lines.append(terminal.paint(clean(text), "bold" if index == 0 else ""))
    row = detail.exchange
    facts = [("host", f"{row.method} {row.host}{row.path} ({row.via})"), ("project", row.project)]
    facts += [("client", row.client), ("account", row.account), ("request id", row.request_id)]
    facts += [("sent", f"{size(row.bytes_up)} in {row.message_count} messages"), ("received", size(row.bytes_down))]
    facts += [(f"label {name}", value) for name, value in detail.labels.items()]
    lines.append("")
    lines += [terminal.cut(f"  {name:<11} {clean(value)}") for name, value in facts if value]
    for limit in detail.limits:
        used = f"{limit.utilization:.0%}" if limit.utilization is not None else limit.status
        lines.append(f"  {'limit':<11} {clean(limit.window)}: {clean(used)}, resets {stamp(limit.resets) or 'unknown'}")
    if headers:
        for title, pairs in (("request", detail.request_headers), ("response", detail.response_headers)):
            lines += ["", terminal.paint(f"{title} headers", "bold")]
            lines += [terminal.cut(f"  {clean(name)}: {clean(value)}") for name, value in pairs]
    return lines


def _texts(reader: Reader, detail: ExchangeDetail, *, everything: bool) -> str:
    """The last message and the answer, or all messages, as a transcript."""
    from dbproxy.app.transcript import messages

    history = list(reader.history(detail.exchange.id))
    return messages(history if everything else history[-2:])


# ---- search


def _search(args: argparse.Namespace) -> int:
    from dbproxy.store.rows import as_json

    query = " ".join(args.words)
    if not any(char.isalnum() for char in query):
        raise UsageError("there is no word to look for")
    with open_reader(args) as reader:
        found = reader.search(query, limit=args.limit, project=args.project)
    if args.json:
        print_json(as_json(found))
        return 0
    terminal = Terminal.of_stdout()
    for hit in found.hits:
        print(_hit(hit, terminal))
    if not found.hits:
        print("nothing found")
    elif not found.complete:
        print(terminal.paint(f"there is more: -n {args.limit * 5} shows it", "dim"))
    return 0


def _hit(hit: Hit, terminal: Terminal) -> str:
    head = f"{terminal.paint(hit.exchange, 'cyan')}  {stamp(hit.started)}  {short_id(clean(hit.conversation))}"
    head += f"  {clean(hit.role)}"
    made, at = [], 0
    for start, end in hit.marks:
        made += [clean(hit.snippet[at:start]), terminal.paint(clean(hit.snippet[start:end]), "match")]
        at = end
    return f"{head}\n    {''.join([*made, clean(hit.snippet[at:])])}"
