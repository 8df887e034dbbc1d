"""``dbproxy routes list / test``: the rules by which other models answer, and what they would make of a request.

Owns the options and what is printed; the plugins themselves are asked, offline (``dbproxy.app.routing.rehearsal``).
Works without a running proxy, and sends nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dbproxy.cli.captured import database
from dbproxy.cli.common import current_folder, load_config, print_json, say
from dbproxy.cli.options import UsageError
from dbproxy.cli.tables import Cell, Column, Terminal, clean, table
from dbproxy.errors import DbproxyError

if TYPE_CHECKING:
    import argparse

    from dbproxy.app.routing.rehearsal import Captured, Listed, Rehearsed
    from dbproxy.config import Config

_MOST = 256 * 1024 * 1024  # bytes of a file


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``routes`` and its two actions."""
    parser = subparsers.add_parser(
        "routes",
        help="the rules by which other models answer",
        description="The rules by which other models answer for agents. They are settings: `routes` in dbproxy.toml or "
        "in your own configuration.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listed = actions.add_parser(
        "list",
        help="the rules that hold here, and whether each can be followed",
        description="List the rules that hold for a launch in this folder, where each came from, and why one is "
        "refused. Keys are looked for in this shell; a proxy that runs may know others.",
    )
    listed.add_argument("--json", action="store_true", help="for scripts")
    test = actions.add_parser(
        "test",
        help="what the rules would make of a captured request",
        description="Say which rule fits a captured request, why, what would be sent where, and what would forbid it. "
        "Nothing is sent. The request counts as its agent's first one.",
    )
    test.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="a Messages body, or a line of `dbproxy log export`; - for standard input",
    )
    test.add_argument(
        "--exchange",
        metavar="ID",
        help="take it from the record: an id from `dbproxy log list`, its beginning, or `last`",
    )
    test.add_argument("--agent", metavar="NAME", default="", help="as if the custom agent of this name had sent it")
    test.add_argument("--type", metavar="TYPE", default="", help="as if an agent of this type had: Explore, Plan, ...")
    test.add_argument("--model", metavar="MODEL", default="", help="as if it asked for this model")
    test.add_argument("--json", action="store_true", help="for scripts")


def run(args: argparse.Namespace) -> int:
    """0 when done; raises DbproxyError, Unreadable, UnknownId or UsageError."""
    import trio

    config = load_config(args.overrides)
    if config.project is not None and config.project.notice:
        say(config.project.notice)
    if args.action == "list":
        return _print_rules(args, trio.run(_rules, config, _project()))
    if args.type and args.type != "custom" and args.agent:
        raise UsageError("--agent names a custom agent, and --type another kind: give one of them")
    captured = _captured(args)
    return _print_rehearsed(args, trio.run(_rehearsed, config, captured, captured.project or _project()))


def _project() -> str:
    return str(current_folder() or "")


# ---- list


async def _rules(config: Config, project: str) -> list[Listed]:
    from dataclasses import replace

    from dbproxy.app.routing.rehearsal import open_stage

    async with open_stage(config, project) as stage:
        _complain(stage.failed, able=stage.follows_rules)
        return [replace(rule, origin=_origin(config, rule.key)) for rule in await stage.rules()]


def _origin(config: Config, key: str) -> str:
    """Where a rule came from: the strongest source that has it."""
    for layer in config.layers.get("routes", ()):
        if any(name.lower() == key.lower() for name in layer.value):
            return str(layer.origin)
    return str(config.origin("routes"))


def _print_rules(args: argparse.Namespace, rules: list[Listed]) -> int:
    from dataclasses import asdict

    if args.json:
        print_json([asdict(rule) for rule in rules])
        return 0
    if not rules:
        print("no rules: every request goes where the client sends it")
        return 0
    columns = (
        Column("RULE", least=12),
        Column("GOES TO", least=16),
        Column("STATE", least=16),
        Column("FROM", least=12),
    )
    for line in table(columns, (_row(rule) for rule in rules), Terminal.of_stdout()):
        print(line)
    return 0


def _row(rule: Listed) -> list[Cell | str]:
    back = "" if rule.fallback else " (no way back)"
    state = Cell(f"refused: {rule.refused}", "red") if rule.refused else Cell("ready", "green")
    return [Cell(rule.key, "cyan"), f"{', '.join(rule.targets)}{back}", state, rule.origin]


# ---- test


def _captured(args: argparse.Namespace) -> Captured:
    from dbproxy.app.routing.rehearsal import as_agent, captured_exchange, read_captured

    if (args.file is None) == (args.exchange is None):
        raise UsageError("give a FILE (or - for standard input), or --exchange ID")
    if args.exchange is not None:
        from dbproxy.store.reader import Reader

        with Reader.open(database(args), seconds=60.0) as reader:
            detail = reader.exchange(args.exchange)
            found = captured_exchange(detail, reader.request_body(detail.exchange.id))
    else:
        name = "standard input" if args.file == "-" else args.file
        found = read_captured(_read(args.file), name, _project())
    return as_agent(found, name=args.agent, type=args.type, model=args.model)


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read(_MOST)
    try:
        handle = os.open(Path(name), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            return file.read(_MOST)
    except (OSError, ValueError) as error:
        raise DbproxyError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None


async def _rehearsed(config: Config, captured: Captured, project: str) -> Rehearsed:
    from dbproxy.app.routing.rehearsal import open_stage

    async with open_stage(config, project) as stage:
        found = await stage.rehearse(captured)
        _complain(stage.failed, able=stage.follows_rules)
        return found


def _complain(failed: list[str], *, able: bool) -> None:
    """Say on stderr what is wrong with the plugins; raise where none is left that follows rules."""
    for text in failed:
        say(clean(text))
    if not able:
        raise DbproxyError(
            "no plugin follows rules", hint="Is subagent-routing installed, and not named in plugins.disabled?"
        )


def _print_rehearsed(args: argparse.Namespace, found: Rehearsed) -> int:
    from dataclasses import asdict

    from dbproxy.app.routing.rehearsal import sentences

    if args.json:
        print_json(asdict(found))
        return 0
    terminal = Terminal.of_stdout()
    for index, text in enumerate(sentences(found)):
        print(terminal.paint(clean(text), "bold" if index == 0 else ""))
    return 0
