"""``dbproxy logs``: the end of the event log, and what is added to it.

Owns reading the journal's files as plain lines, across their hourly rotation. Must never write them.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, BinaryIO

from dbproxy.cli.common import load_config, say

if TYPE_CHECKING:
    from pathlib import Path

_POLL_SECONDS = 0.2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``logs``."""
    parser = subparsers.add_parser(
        "logs",
        help="show the event log",
        description="Print the last events, one JSON object a line.",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added, until Ctrl-C")
    parser.add_argument("-n", "--lines", type=_count, default=50, metavar="N", help="how many lines (default 50)")


def run(args: argparse.Namespace) -> int:
    """Print the last lines; 1 when there is no log and nothing to wait for."""
    from dbproxy.paths import Paths

    log = Paths(load_config(args.overrides).settings.data_dir).log_file
    lines = tail(log, args.lines)
    sys.stdout.buffer.writelines(lines)
    sys.stdout.buffer.flush()
    if args.follow:
        _follow(log)
    elif not log.exists():
        say(f"there is no log yet at {log}: start the proxy with `dbproxy start`")
        return 1
    return 0


def tail(log: Path, count: int) -> list[bytes]:
    """The last ``count`` lines of the log, reaching back into rotated files as needed."""
    try:
        older = sorted(log.parent.glob(f"{log.name}?*"), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        older = []
    lines: list[bytes] = []
    for path in (log, *older):
        if len(lines) >= count:
            break
        try:
            lines = path.read_bytes().splitlines(keepends=True) + lines
        except OSError:
            continue
    return lines[-count:] if count else []


def _follow(log: Path) -> None:
    from dbproxy.state import pause_for

    file: BinaryIO | None = None
    end = True
    try:
        while True:
            if file is None:
                try:
                    file = log.open("rb")
                    if end:
                        file.seek(0, os.SEEK_END)
                except OSError:
                    pass
                end = False
            chunk = file.read(65_536) if file is not None else b""
            if chunk:
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                continue
            if file is not None and _replaced(file, log):
                sys.stdout.buffer.write(file.read())
                file.close()
                file = None
                continue
            pause_for(_POLL_SECONDS)
    finally:
        if file is not None:
            file.close()


def _replaced(file: BinaryIO, log: Path) -> bool:
    try:
        now, then = log.stat(), os.fstat(file.fileno())
    except OSError:
        return False
    return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino) or now.st_size < file.tell()


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"a number of lines is needed, not {text!r}")
    return int(text)
