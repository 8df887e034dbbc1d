"""``dbproxy usage``: the account's windows as the API stated them, and what went through this proxy, by anything.

Owns how the figures are written; what they are is in ``dbproxy.app.usage``. Works without a running proxy.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from dbproxy.cli.captured import conversation_id, open_reader, when
from dbproxy.cli.common import print_json
from dbproxy.cli.tables import Cell, Column, Terminal, clean, count, money, short_id, stamp, table
from dbproxy.model.usage_report import GROUPINGS, figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.app.usage import Report
    from dbproxy.model.usage_report import Sums, Window

_DAYS = 30
_ROWS = 100
_SESSIONS = 10
_FIGURES = (
    Column("requests", right=True),
    Column("errors", right=True),
    Column("input", right=True),
    Column("cache read", right=True),
    Column("write 5m", right=True),
    Column("write 1h", right=True),
    Column("output", right=True),
    Column("searches", right=True),
    Column("cost", right=True),
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``usage``."""
    parser = subparsers.add_parser(
        "usage",
        help="what was used: the account's windows, tokens and cost",
        description="The account's windows as the API last stated them, and the tokens and cost of what went through "
        "this proxy. Costs are list prices of each request's day; for a subscription they say what the same use would "
        "cost by the token.",
    )
    parser.add_argument(
        "--by",
        type=groupings,
        default=("day",),
        metavar="WHAT",
        help=f"group by one or several, with commas: {', '.join(GROUPINGS)} (default: day)",
    )
    parser.add_argument(
        "--since", type=when, metavar="TIME", help=f"from this time on: 5h, 7d, 2026-01-31 (default: {_DAYS}d)"
    )
    parser.add_argument("--until", type=when, metavar="TIME", help="up to this time")
    parser.add_argument("--conversation", "--session", metavar="ID", help="only this one (a prefix is enough)")
    parser.add_argument("--project", metavar="DIR", help="only launches in this folder or below it")
    parser.add_argument("--model", metavar="MODEL", help="only models whose name begins so")
    parser.add_argument("--account", metavar="FINGERPRINT", help="only this account")
    parser.add_argument("--kind", metavar="KIND", help="only requests of this kind: main, subagent, compaction, ...")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything, as one JSON document")
    form.add_argument("--csv", action="store_true", help="the rows alone, for a spreadsheet")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from dbproxy.app.usage import usage

    now = time.time()
    with open_reader(args) as reader:
        report = usage(
            reader,
            now=now,
            by=args.by,
            since=now - _DAYS * 86_400 if args.since is None else args.since,
            until=args.until,
            conversation=conversation_id(reader, args.conversation) if args.conversation else None,
            project=args.project,
            account=args.account,
            model=args.model,
            kind=args.kind,
        )
    if args.json:
        print_json(report.as_json())
    elif args.csv:
        print(csv_of(report), end="")
    else:
        print("\n".join(text_of(report, Terminal.of_stdout())))
    return 0


def groupings(text: str) -> tuple[str, ...]:
    """``day,model`` as an argument."""
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [name for name in found if name not in GROUPINGS]
    if unknown or not found:
        raise argparse.ArgumentTypeError(f"{(unknown or ['nothing'])[0]!r} is none of {', '.join(GROUPINGS)}")
    return found


def text_of(report: Report, terminal: Terminal) -> list[str]:
    """The report for a person."""
    lines = _limits(report, terminal)
    lines += [terminal.paint("Sums of what went through this proxy", "bold")]
    columns = [Column(""), *_FIGURES]
    lines += _indented(table(columns, [[name, *_cells(sums)] for name, sums in report.rolling], terminal))
    lines += ["", terminal.paint(f"By {', '.join(report.by)}{_span(report)}", "bold")]
    if not report.rows:
        return [*lines, "  nothing was captured in this time"]
    keys = [Column(name, least=8 if name in ("project", "session", "conversation") else 0) for name in report.by]
    columns = [*keys, Column("title", least=8), *_FIGURES]
    shown = report.rows[-_ROWS:] if report.by[0] in ("day", "hour") else report.rows[:_ROWS]
    rows = [[*_names(report, row.keys, terminal), *_cells(row)] for row in shown]
    if len(report.rows) > 1:
        rows.append(["total", *[""] * len(report.by), *_cells(report.total)])
    lines += _indented(table(columns, rows, terminal))
    if len(shown) < len(report.rows):
        lines.append(f"  {len(report.rows) - len(shown)} more rows: --json and --csv have them all")
    if report.total.unpriced:
        lines.append(
            f"  + no price is known for {count(report.total.unpriced)} of the requests; the cost is without them"
        )
    return lines + _shares(report, terminal)


def _limits(report: Report, terminal: Terminal) -> list[str]:
    from dbproxy.app.usage import shown_windows

    shown = shown_windows(report.windows)
    lines = [terminal.paint("Limits, as the API last stated them", "bold")]
    if not shown:
        return [*lines, "  no answer has stated any", ""]
    accounts = {window.account for window in shown}
    rows: list[list[Cell | str]] = [
        [
            clean(window.account) if len(accounts) > 1 else "",
            clean(window.window),
            _used(window),
            _state(window),
            _end(window, report.now),
            f"stated {stamp(window.seen, report.now)}",
        ]
        for window in shown
    ]
    columns = [Column("account", least=8), Column("window"), Column("used", right=True), *[Column("")] * 3]
    return [*lines, *_indented(table(columns, rows, terminal)[1:]), ""]


def _used(window: Window) -> str:
    if window.utilization is not None:
        return f"{int(window.utilization * 100 + 1e-6)}%"
    if window.quota and window.remaining is not None:
        return f"{window.quota - window.remaining:,} of {window.quota:,}"
    return ""


def _state(window: Window) -> Cell:
    if window.over:
        return Cell("began anew; its use was not stated yet", "dim")
    colour = {"allowed": "green", "allowed_warning": "yellow", "rejected": "red"}.get(window.status, "")
    return Cell(window.status.replace("_", " "), colour)


def _end(window: Window, now: float) -> str:
    if window.resets is None:
        return ""
    if window.over:
        return f"since {stamp(window.resets, now)}"
    left = int(window.resets - now)
    days, hours, minutes = left // 86_400, left % 86_400 // 3600, left % 3600 // 60
    remains = f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"
    return f"until {stamp(window.resets, now)} (in {remains})"


def _cells(sums: Sums) -> list[str]:
    cost = money(sums.cost_usd)
    if sums.unpriced:
        cost = f"{cost or '?'}+"
    counts = (sums.input_tokens, sums.cache_read, sums.cache_write_5m, sums.cache_write_1h, sums.output_tokens)
    return [
        str(sums.exchanges),
        str(sums.errors or ""),
        *(count(number) for number in counts),
        str(sums.web_searches or ""),
        cost,
    ]


def _names(report: Report, keys: Sequence[str], terminal: Terminal) -> list[str]:
    title = next((report.titles[key] for key in keys if key in report.titles), "")
    shown = [
        short_id(key) if name in ("session", "conversation") and terminal.width else key
        for name, key in zip(report.by, keys, strict=True)
    ]
    return [*(text or "-" for text in shown), title]


def _span(report: Report) -> str:
    since = f" since {stamp(report.since, report.now)}" if report.since is not None else ""
    return since + (f" until {stamp(report.until, report.now)}" if report.until is not None else "")


def _shares(report: Report, terminal: Terminal) -> list[str]:
    """Who used the windows that run now. Estimates, and said so."""
    lines: list[str] = []
    for share in report.shares:
        parts = [(report.titles.get(session) or short_id(session) or "-", part) for session, part in share.sessions]
        others = sum(part for _, part in parts[_SESSIONS:])
        parts = [*parts[:_SESSIONS], *([("other sessions", others)] if others else [])]
        parts += [
            (name, part)
            for name, part in (
                ("used elsewhere or unpriced", share.elsewhere),
                ("before it was first stated", share.before),
            )
            if part > 0
        ]
        if not share.sessions and not share.elsewhere:
            continue
        lines += ["", terminal.paint(f"Estimated share of the {share.window} window (split by cost)", "bold")]
        rows = [[f"~{part * 100:.1f}%", name] for name, part in parts]
        lines += _indented(table([Column("", right=True), Column("", least=8)], rows, terminal)[1:])
    return lines


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def csv_of(report: Report) -> str:
    """The rows as comma-separated values with a heading; a cell never begins with what a spreadsheet would compute."""
    import csv
    import io

    out = io.StringIO()
    names = list(figures(report.total))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*report.by, "title", *names])
    for row in report.rows:
        sums = figures(row)
        title = next((report.titles[key] for key in row.keys if key in report.titles), "")
        cells = [f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text for text in (*row.keys, title)]
        writer.writerow([*cells, *("" if sums[name] is None else sums[name] for name in names)])
    return out.getvalue()
