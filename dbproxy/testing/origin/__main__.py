"""``python -m dbproxy.testing.origin``: the fake Messages API as a process.

Prints one JSON line with its ports once it listens, and serves until SIGINT or SIGTERM or the end of its input
(with ``--until-eof``).
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from dbproxy.testing.origin.api import BUILT_IN, NEVER_SEEN_LIVE
from dbproxy.testing.origin.recorder import Recorder
from dbproxy.testing.origin.scenarios import SCENARIOS
from dbproxy.testing.origin.server import CERTIFICATES, RECORDS, open_origin
from dbproxy.testing.standing import run_server, stand

if TYPE_CHECKING:
    from collections.abc import Sequence


def rules_text() -> str:
    """Every rule and scenario with its source, and what was never seen live."""
    lines = ["Built-in rules, first answer wins (scripts come before them):"]
    lines += [f"  {rule.name:14} {rule.says} [{rule.source}]" for rule in BUILT_IN]
    lines.append("Scenarios:")
    lines += [f"  {scenario.name:14} {scenario.says} [{scenario.source}]" for scenario in SCENARIOS.values()]
    lines.append("Never seen live, from documents and reports alone:")
    lines += [f"  {what} [{source}]" for what, source in NEVER_SEEN_LIVE]
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m dbproxy.testing.origin", description="A fake Messages API.")
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, help="plain HTTP; 0 picks a free one (default unless --tls-port is given)")
    made.add_argument("--tls-port", type=int, help="TLS; 0 picks a free one")
    made.add_argument("--script", type=Path, metavar="FILE", help="JSON script")
    made.add_argument("--scenario", choices=sorted(SCENARIOS), help="a built-in conversation instead of a script")
    made.add_argument("--record", type=Path, metavar="DIR", help="write every request there")
    made.add_argument("--ca", type=Path, metavar="FILE", help="write the certificate to trust there")
    made.add_argument("--certificate", choices=CERTIFICATES, default="good")
    made.add_argument("--memory", choices=RECORDS, help="what to keep in memory (default: heads, all with --record)")
    made.add_argument("--keep", type=int, default=1000, help="requests kept in memory")
    made.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    made.add_argument("--rules", action="store_true", help="print the rules with their sources and end")
    return made


async def serve(options: argparse.Namespace) -> None:
    """Serve until told to stop."""
    recorder = Recorder(options.record) if options.record else None
    tls = options.tls_port is not None
    try:
        async with open_origin(
            options.script or options.scenario,
            tls=tls,
            host=options.host,
            port=(options.tls_port if tls else options.port) or 0,
            plain_port=options.port,
            certificate=options.certificate,
            record=options.memory or ("all" if recorder else "heads"),
            keep=options.keep,
        ) as origin:
            if recorder is not None:
                origin.on_finished.append(recorder.note)
            if options.ca:
                await trio.Path(options.ca).write_bytes(origin.ca_pem)
            ready = {"port": origin.plain_port, "tls_port": origin.tls_port, "url": origin.url}
            await stand(ready, until_eof=options.until_eof)
    finally:
        if recorder is not None:
            recorder.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 after a clean stop, 1 with one line on stderr."""
    options = parser().parse_args(argv)
    if options.rules:
        sys.stdout.write(rules_text())
        return 0
    return run_server("origin", partial(serve, options))


if __name__ == "__main__":
    raise SystemExit(main())
