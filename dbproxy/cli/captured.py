"""What ``log``, ``conversations`` and ``explain`` share: opening the database file, ids, filters, times, sizes.

Must never import trio. Works without a running proxy: the file is read as it lies.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from dbproxy.cli.common import load_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dbproxy.store.reader import Reader
    from dbproxy.store.rows import ExchangeRow

#: What a list shows when nobody says how many.
PAGE = 50
_MOST = 100_000


def database(args: argparse.Namespace) -> Path:
    """The database file of this configuration; it may not be there yet."""
    from dbproxy.paths import Paths

    return Paths(load_config(args.overrides).settings.data_dir).database


def open_reader(args: argparse.Namespace, seconds: float = 60.0) -> Reader:
    """A reader of the database file; each of its questions may take ``seconds``. Raises Unreadable."""
    from dbproxy.store.reader import Reader

    return Reader.open(database(args), seconds=seconds)


class Filters(NamedTuple):
    """Which exchanges are meant."""

    known: dict[str, Any]

    def of(self, reader: Reader, limit: int) -> list[ExchangeRow]:
        """The newest of them, newest first, at most ``limit``."""
        found: list[ExchangeRow] = []
        before: str | None = None
        while len(found) < limit:
            page = reader.exchanges(before=before, limit=min(500, limit - len(found)), **self.known)
            found += page
            if len(page) < min(500, limit):
                break
            before = page[-1].id
        return found

    def oldest_first(self, reader: Reader) -> Iterator[ExchangeRow]:
        """All of them, a page at a time."""
        after = ""
        while page := reader.exchanges(after=after, limit=500, **self.known):
            yield from page
            after = page[-1].id


def add_filters(parser: argparse.ArgumentParser) -> None:
    """The options that say which exchanges are meant."""
    parser.add_argument("--conversation", metavar="ID", help="only of this conversation (a prefix is enough)")
    parser.add_argument("--kind", metavar="KIND", help="only of this kind: main, subagent, compaction, title, ...")
    parser.add_argument("--model", metavar="MODEL", help="only of this model")
    parser.add_argument("--outcome", metavar="OUTCOME", help="only with this outcome: ok, error, aborted, cut, failed")
    parser.add_argument(
        "--since", type=when, metavar="TIME", help="only from this time on: 30m, 2h, 7d, 2026-01-31, 2026-01-31T12:00"
    )


def filters(args: argparse.Namespace, reader: Reader) -> Filters:
    """The filters that were given."""
    known: dict[str, Any] = {
        name: value
        for name in ("kind", "model", "outcome", "since")
        if (value := getattr(args, name, None)) is not None
    }
    if args.conversation:
        known["conversation"] = conversation_id(reader, args.conversation)
    return Filters(known)


def conversation_id(reader: Reader, text: str) -> str:
    """The whole id of the conversation that ``text`` begins, or of the latest one for ``last``."""
    return reader.resolve_conversation(text)


def when(text: str) -> float:
    """A point in time as an argument."""
    from dbproxy.app.asking import parse_when

    return _argument(lambda: parse_when(text, time.time()))


def age(text: str) -> float:
    """An age in seconds as an argument."""
    from dbproxy.app.asking import parse_age

    return _argument(lambda: parse_age(text))


def byte_size(text: str) -> int:
    """A size in bytes as an argument."""
    from dbproxy.app.asking import parse_size

    return int(_argument(lambda: parse_size(text)))


def how_many(text: str) -> int:
    """A number of rows as an argument."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"a number from 1 to {_MOST} is needed, not {text!r}")
    return int(text)


def _argument(parse: Callable[[], float]) -> float:
    try:
        return parse()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
