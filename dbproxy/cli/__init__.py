"""The commands: finds the one that was asked for, runs it, and turns every failure into one clear line.

Owns the table of commands and the exit codes: 0 well, 1 it failed, 2 wrong usage; a launcher passes the child's.
Must never import trio, cryptography or argparse at import time: ``dbproxy claude`` pays for each import on every start.
Convention for command modules: ``add_parser(subparsers)`` and ``run(args) -> int``, imported by name when needed;
``args`` carries ``command``, ``overrides`` (settings given on the command line), ``debug`` and what the parser adds.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from dbproxy import __version__
from dbproxy.errors import DbproxyError

TYPE_CHECKING = False  # not from typing, which the supervisor's process can do without
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from dbproxy.cli.options import CommandLine


class Command:
    """Where a command lives and what it does, in one line. A plain class, because nothing is made faster."""

    __slots__ = ("launches", "module", "summary")

    def __init__(self, module: str, summary: str, launches: bool = False) -> None:
        self.module = module
        self.summary = summary
        self.launches = launches


COMMANDS: dict[str, Command] = {
    "claude": Command("launch", "start Claude Code through the proxy; everything behind the word is Claude's", True),
    "run": Command("launch", "start any other program with the same environment: run [--] CMD [ARGS...]", True),
    "serve": Command("serve", "the proxy in the foreground"),
    "start": Command("daemon", "start the background proxy, if none runs"),
    "stop": Command("daemon", "stop the background proxy; running answers finish first"),
    "restart": Command("daemon", "replace the background proxy; running answers finish first"),
    "status": Command("daemon", "say whether the background proxy runs, and where"),
    "logs": Command("logs", "show the event log"),
    "conversations": Command("conversations", "show the captured conversations as trees; let the proxy forget them"),
    "log": Command("log", "what was captured: list, show, search, export, verify, prune"),
    "explain": Command("explain", "say why a request was taken for what it is, and what it cost"),
    "routes": Command("routes", "the rules by which other models answer, and what they would make of a request"),
    "usage": Command("usage", "what was used: the account's windows, tokens and cost"),
    "demo": Command("demo", "no account, no network: watch the proxy work against a built-in fake model API"),
    "doctor": Command("doctor", "find and explain what would break"),
    "statusline": Command("statusline", "show in Claude Code's status line whether this session goes through dbproxy"),
    "config": Command("config", "show and check the settings and where each came from"),
    "certs": Command("certs", "show or rotate the interception root"),
    "selftest": Command("selftest", "check that this installation works, and print its versions"),
    "uninstall": Command("uninstall", "undo everything that dbproxy has set up for this user"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Never raises for what a user can cause."""
    return _guarded(list(sys.argv[1:] if argv is None else argv))


def main_seed(argv: Sequence[str] | None = None) -> int:
    """``claude-db-proxy [ARGS]``: ``dbproxy claude [ARGS]``, with the few subcommands that the older tool had."""
    from dbproxy.cli.seed import translate

    return _guarded(translate(list(sys.argv[1:] if argv is None else argv)))


def _guarded(words: list[str]) -> int:
    if words[:1] == ["supervise"]:  # what `serve` becomes: before anything is loaded, for it stays small for ever
        from dbproxy.proc.supervisor import main as supervise

        return supervise(words[1:])
    from dbproxy.cli.options import CommandLine, UsageError

    line = CommandLine()
    try:
        return _dispatch(words, line)
    except UsageError as error:
        _complain(f"{error}. `dbproxy --help` lists the commands and options")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`dbproxy logs | head`): nothing failed. The interpreter's flush at exit
        # must not complain a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except DbproxyError as error:
        if line.debug:
            raise
        _complain(str(error))
        return 1
    except OSError as error:
        if line.debug:
            raise
        _complain(f"{error}. `dbproxy --debug COMMAND` shows where")
        return 1
    except Exception as error:
        if line.debug:
            raise
        known = _known(error)
        if known:
            _complain("\n".join(known))
            return 1
        _complain(f"internal error: {type(error).__name__}: {error}. `dbproxy --debug COMMAND` shows where")
        return 1


def _dispatch(words: list[str], line: CommandLine) -> int:
    from dbproxy.cli import options

    options.split(words, line)
    if line.version:
        print(f"dbproxy {__version__}")
        return 0
    if line.command == "help":
        line.command, line.rest, line.help = (line.rest[0] if line.rest else None), [], True
    if line.command is None:
        from dbproxy.cli.help import overview

        if not line.help:
            raise options.UsageError("a command is missing")
        print(overview())
        return 0
    if line.command == "work":  # started by the supervisor
        return int(import_module("dbproxy.cli.serve").work(line.rest))
    command = COMMANDS.get(line.command)
    if command is None:
        raise options.UsageError(_unknown_command(line.command))
    if command.launches:
        # `dbproxy claude --help` is Claude's; only `run` can be asked without taking anything from its program.
        if not line.help and not (line.command == "run" and line.rest[:1] in (["-h"], ["--help"])):
            return int(import_module("dbproxy.cli.launch").launch(line.command, line.rest, line.overrides))
        from dbproxy.cli.help import launcher

        print(launcher(line.command))
        return 0
    return _run_parsed(line, command)


def _run_parsed(line: CommandLine, command: Command) -> int:
    import argparse

    from dbproxy.cli import options

    name = line.command or ""
    module = import_module(f"dbproxy.cli.{command.module}")
    remainder = options.take_settings(line.rest, line)
    parser = build_parser()
    module.add_parser(parser.add_subparsers(dest="command", metavar="COMMAND", required=True))
    args = argparse.Namespace(overrides=line.overrides, debug=line.debug)
    try:
        parser.parse_args([name, *(["--help"] if line.help else []), *remainder], namespace=args)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    return int(module.run(args))


def build_parser() -> argparse.ArgumentParser:
    """The parser to which command modules add theirs."""
    import argparse

    return argparse.ArgumentParser(prog="dbproxy", allow_abbrev=False)


def _known(error: BaseException) -> list[str]:
    """The messages of our own errors inside an exception group, as a nursery wraps them; none if one is not ours."""
    if isinstance(error, BaseExceptionGroup):
        parts = [_known(part) for part in error.exceptions]
        return [text for part in parts for text in part] if all(parts) else []
    return [str(error)] if isinstance(error, DbproxyError) else []


def _unknown_command(word: str) -> str:
    import difflib

    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.6)
    advice = f" Did you mean `dbproxy {near[0]}`?" if near else ""
    return f"unknown command {word!r}.{advice} `dbproxy run {word}` starts a program of that name"


def _complain(text: str) -> None:
    for line in text.splitlines():
        print(f"dbproxy: {line}", file=sys.stderr)
