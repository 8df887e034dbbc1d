"""``dbproxy selftest [--json]``: prints what ``dbproxy.testing.selftest`` finds. Owns the layout and the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbproxy.cli.common import print_json

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``selftest``."""
    parser = subparsers.add_parser(
        "selftest",
        help="check that this installation works, and print its versions",
        description="One request through the real proxy in this process, to a built-in fake API: CONNECT, TLS and a "
        "streamed answer, compared byte for byte; and the versions of everything inside. Needs no account, no network "
        "and no settings. Exit code 0 only if all went well.",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable, one JSON document")


def run(args: argparse.Namespace) -> int:
    """Run it and say how it went; 1 if something is wrong."""
    from dbproxy.testing import selftest

    made_of = selftest.versions()
    result = selftest.run()
    well = selftest.is_well(result, made_of)
    if args.json:
        print_json(selftest.about(result, made_of))
    else:
        print("\n".join(selftest.describe(result, made_of)))
        if not well and not result.trouble:
            print("FAILED: something is missing, see above")
    return 0 if well else 1
