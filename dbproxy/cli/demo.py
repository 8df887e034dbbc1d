"""``dbproxy demo``: hands over to the built-in demonstration. Owns nothing else."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``demo``."""
    parser = subparsers.add_parser(
        "demo",
        help="watch the proxy work, without account and network",
        description="A built-in fake model API and a scripted agent, as strict as the real one, talk through the real "
        "proxy on this machine; the captured conversation is shown at the end. Needs no account and no network. Exit "
        "code 0 only if every byte matched.",
    )
    parser.add_argument("--keep", action="store_true", help="keep the files of the run and say where they are")
    # A frozen executable has no other way to start the agent's part of the demo.
    parser.add_argument("--as-agent", nargs=argparse.REMAINDER, default=None, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; 0 only if everything matched."""
    from dbproxy.testing.demo import main

    if args.as_agent is not None:
        return main(["--as-agent", *args.as_agent])
    return main(["--keep"] if args.keep else [])
