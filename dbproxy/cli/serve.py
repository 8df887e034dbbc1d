"""``dbproxy serve``: the proxy in the foreground, and the two programs that it is made of.

Owns nothing but the hand-over: to ``dbproxy.proc.serve``, which becomes the supervisor, and in a worker process to
``dbproxy.app.worker``. Without a supervisor (Windows) the proxy serves in this very process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dbproxy.cli.common import load_config
from dbproxy.cli.options import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``serve``; its settings (``--listen``, ``--passthrough``, ...) are taken from the table of settings."""
    from argparse import SUPPRESS

    parser = subparsers.add_parser(
        "serve",
        help="the proxy in the foreground",
        description="Run the proxy in the foreground until SIGINT or SIGTERM. Every setting can be given as "
        "--name VALUE, for example --listen HOST:PORT (repeatable), --passthrough, --log-level LEVEL.",
    )
    # For our own use: what `start`, `restart` and the launcher say to the process that they start.
    parser.add_argument("--take-over", action="store_true", help=SUPPRESS)
    parser.add_argument("--patient", action="store_true", help=SUPPRESS)
    parser.add_argument("--supervision", default="", help=SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; 0 after a graceful end."""
    from dbproxy.cli import main
    from dbproxy.proc import serve

    config = load_config(args.overrides, project=False)
    try:
        tuning = serve.parse_tuning(args.supervision)
    except ValueError as error:
        raise UsageError(f"--supervision takes name=seconds,...: {error}") from None
    if serve.is_supported():
        serve.supervise(
            config,
            os.environ,
            take_over=args.take_over,
            patient=args.patient,
            debug=args.debug,
            tuning=tuning,
            here=main,
        )
    from dbproxy.app.run import serve_forever

    return serve_forever(config, os.environ)


def work(words: Sequence[str]) -> int:
    """``work --name=value...``: a worker process, started by the supervisor."""
    from dbproxy.app.worker import work as work_as_worker

    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    return work_as_worker(
        int(given["config"]),
        [int(fd) for fd in given["listen"].split(",")],
        int(given["control"]),
        os.environ,
        instance=given["instance"],
        after=given["after"],
        degraded=given["degraded"],
    )
