"""``dbproxy serve``: the proxy in the foreground. Owns nothing but the hand-over to ``dbproxy.app.run``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dbproxy.cli.common import load_config

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``serve``; its settings (``--listen``, ``--passthrough``, ...) are taken from the table of settings."""
    subparsers.add_parser(
        "serve",
        help="the proxy in the foreground",
        description="Run the proxy in the foreground until SIGINT or SIGTERM. Every setting can be given as "
        "--name VALUE, for example --listen HOST:PORT (repeatable), --passthrough, --log-level LEVEL.",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; 0 after a graceful end."""
    from dbproxy.app.run import serve_forever

    config = load_config(args.overrides, project=False)
    return serve_forever(config, os.environ)
