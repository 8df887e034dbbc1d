"""``dbproxy explain EXCHANGE``: why a request was taken for what it is, and what it cost, in sentences.

Owns nothing but the output; the words are in ``dbproxy.app.explaining``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbproxy.cli.captured import open_reader
from dbproxy.cli.common import print_json
from dbproxy.cli.tables import Terminal, clean

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``explain``."""
    parser = subparsers.add_parser(
        "explain",
        help="say why a request was taken for what it is",
        description="Say what a captured request is, which conversation and agent it belongs to, what it follows, on "
        "what evidence, and what it cost.",
    )
    parser.add_argument("exchange", metavar="EXCHANGE", help="an id from `dbproxy log list`, its beginning, or `last`")
    parser.add_argument("--json", action="store_true", help="for scripts")


def run(args: argparse.Namespace) -> int:
    """0 when done; raises UnknownId or Unreadable."""
    from dbproxy.app.explaining import sentences
    from dbproxy.store.rows import as_json

    with open_reader(args) as reader:
        detail = reader.exchange(args.exchange)
    said = sentences(detail)
    if args.json:
        print_json({"exchange": detail.exchange.id, "sentences": said, "evidence": as_json(detail.evidence)})
        return 0
    terminal = Terminal.of_stdout()
    for index, text in enumerate(said):
        print(terminal.paint(clean(text), "bold" if index == 0 else ""))
    return 0
