"""A scripted agent that behaves like Claude Code 2.1.329 on the wire, and is as strict.

Not a model and no tools of consequence: it "runs" its tools by making up their output. What it imitates is cited from
the client facts. It exits 1 on a bad answer exactly where the real client does, so that a demo or a test that passes
with it means something.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from dbproxy.testing.conversation import Conversation, Failure, Settings
from dbproxy.testing.http_client import Way

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m dbproxy.testing.agent", description="A scripted agent.")
    made.add_argument("-p", "--prompt", action="append", help="what to ask; repeat for several turns (default: one)")
    made.add_argument("--model", default="claude-opus-5-5")
    made.add_argument("--compact", action="store_true", help="ask for a compaction after the last prompt")
    made.add_argument("--report", type=Path, metavar="FILE", help="write all that was sent and received as JSON")
    made.add_argument("--time-scale", type=float, default=1.0, help="factor on every wait (default 1)")
    made.add_argument("--tool-seconds", type=float, default=0.0, help="how long each tool takes (default 0)")
    made.add_argument("--need-proxy", action="store_true", help="refuse to run where no proxy is set")
    made.add_argument("--quiet", action="store_true", help="no text on standard output")
    return made


async def work(options: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, Any]:
    """One session; the report, with ``failure`` set when the agent would have exited 1."""
    settings = Settings.of(environ, model=options.model, time_scale=options.time_scale)
    settings = replace(settings, tool_seconds=options.tool_seconds)
    talk = Conversation(Way.of(environ), settings)
    failure = ""
    try:
        await talk.start()
        for prompt in options.prompt or ["Please list the files."]:
            await talk.ask(prompt)
        if options.compact:
            await talk.compact("manual")
    except Failure as error:
        failure = str(error)
    finally:
        await talk.client.close()
    return {
        "failure": failure,
        "answers": talk.answers,
        "session": talk.session,
        "tunnels": talk.client.tunnels,
        "compactions": talk.compactions,
        "usage": talk.usage,
        "attempts": [attempt.about() for attempt in talk.client.attempts],
    }


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run a session; 0 when every answer was one that the real client accepts, else 1."""
    options = parser().parse_args(argv)
    environ = os.environ if environ is None else environ
    if options.need_proxy and Way.of(environ).proxy is None:
        sys.stderr.write("agent: no proxy is set, and --need-proxy was given\n")
        return 1
    report = trio.run(work, options, environ)
    if options.report:
        options.report.write_text(json.dumps(report), "utf-8")
    if not options.quiet:
        for answer in report["answers"]:
            sys.stdout.write(answer + "\n")
    if report["failure"]:
        sys.stderr.write(f"agent: {report['failure']}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
