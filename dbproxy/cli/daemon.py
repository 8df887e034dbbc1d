"""``dbproxy start / stop / restart / status``: the background proxy, seen from a terminal.

Owns the words; every decision is in ``dbproxy.proc.daemon``. Must never import trio.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from dbproxy.cli.common import load_config, print_json, say

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the four commands."""
    subparsers.add_parser(
        "start",
        help="start the background proxy, if none runs",
        description="Start the background proxy of this user, if none answers. It has its own process session and "
        "lives until it is stopped. If its port is taken by another program, it takes a free one and says so.",
    )
    stop = subparsers.add_parser(
        "stop",
        help="stop the background proxy",
        description="Stop the background proxy: it takes no new connections at once and finishes the answers that run.",
    )
    stop.add_argument("--force", action="store_true", help="do not wait for running answers: cut them off")
    subparsers.add_parser(
        "restart",
        help="replace the background proxy",
        description="Start the background proxy anew on the same port; the old process finishes its running answers.",
    )
    status = subparsers.add_parser(
        "status",
        help="say whether the background proxy runs, and where",
        description="Say whether the background proxy runs, and where. Exit code 0 if it answers, 1 otherwise.",
    )
    status.add_argument("--json", action="store_true", help="machine-readable, one JSON document")


def run(args: argparse.Namespace) -> int:
    """Run the command named in ``args.command``."""
    handlers = {"start": _start, "stop": _stop, "restart": _restart, "status": _status}
    return handlers[args.command](args)


def _start(args: argparse.Namespace) -> int:
    from dbproxy.cli import main
    from dbproxy.proc import daemon

    running = daemon.ensure(load_config(args.overrides), dict(os.environ), explicit=True, here=main)
    for notice in running.notices:
        say(notice)
    print(f"{'started' if running.started else 'already running'}: {running.state.url} (pid {running.state.pid})")
    return 0


def _restart(args: argparse.Namespace) -> int:
    from dbproxy.cli import main
    from dbproxy.proc import daemon

    running = daemon.restart(load_config(args.overrides), dict(os.environ), here=main)
    for notice in running.notices:
        say(notice)
    print(f"started: {running.state.url} (pid {running.state.pid})")
    return 0


def _stop(args: argparse.Namespace) -> int:
    from dbproxy.paths import Paths
    from dbproxy.proc import daemon

    config = load_config(args.overrides)
    outcome = daemon.stop(Paths(config.settings.data_dir), wait=daemon.CLOSE_TIMEOUT, force=args.force)
    if outcome is daemon.Stopped.DRAINING:
        print("stopped: the port is closed; running answers finish first")
    else:
        print(outcome.value)
    return 0


def _status(args: argparse.Namespace) -> int:
    from dbproxy.paths import Paths
    from dbproxy.state import is_alive, load, probe

    config = load_config(args.overrides)
    paths = Paths(config.settings.data_dir)
    state = load(paths.daemon_state)
    health = probe(state, 2.0) if state is not None else None
    if args.json:
        print_json(
            {
                "running": health is not None,
                "pid": state.pid if state is not None and health is not None else None,
                "url": state.url if state is not None and health is not None else None,
                "listen": list(state.listen) if state is not None and health is not None else [],
                "version": health.version if health is not None else None,
                "data_dir": str(paths.data_dir),
                "health": dict(health.body) if health is not None else None,
            }
        )
        return 0 if health is not None else 1
    if state is None or health is None:
        print("not running" if state is None or not is_alive(state.pid, state.pid_identity) else _silent(state.pid))
        return 1
    print(f"running: {state.url} (pid {state.pid}, version {health.version or state.version})")
    print(f"  since         {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(state.started))}")
    print(f"  listens       {', '.join(state.listen)}")
    print(f"  reads         {', '.join(state.intercept) or 'nothing'}")
    print(f"  data          {state.data_dir}")
    for name in ("conversations", "passthrough"):
        if name in health.body:
            print(f"  {name:<13} {json.dumps(health.body[name])}")
    problems = health.body.get("problems")
    for name, reason in problems.items() if isinstance(problems, dict) else ():
        print(f"  {'DEGRADED':<13} {name}: {reason}")
    return 0


def _silent(pid: int) -> str:
    return f"not answering: pid {pid} lives; it is finishing its last answers, or `dbproxy stop --force` ends it"
