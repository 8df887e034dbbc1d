"""``python -m dbproxy.testing.providers``: a fake OpenAI API and a fake Gemini API as a process.

Prints one JSON line with their base URLs once they listen, and serves until SIGINT or SIGTERM or the end of its input
(with ``--until-eof``). With ``--record`` every request is written to ``DIR/openai`` and ``DIR/gemini``, its exact head
and body, as by the fake Messages API.
"""

from __future__ import annotations

import argparse
import json
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbproxy.errors import ConfigError
from dbproxy.testing.origin.recorder import Recorder
from dbproxy.testing.providers.scenarios import SCENARIOS
from dbproxy.testing.providers.server import GEMINI_KEY, OPENAI_KEY, open_gemini, open_openai, scripts_from
from dbproxy.testing.standing import run_server, stand

if TYPE_CHECKING:
    from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m dbproxy.testing.providers", description="Fake OpenAI and Gemini.")
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--openai-port", type=int, default=0, help="plain HTTP; 0 picks a free one")
    made.add_argument("--gemini-port", type=int, default=0, help="plain HTTP; 0 picks a free one")
    made.add_argument("--openai-key", default=OPENAI_KEY, help="the key to ask for (default: %(default)s)")
    made.add_argument("--gemini-key", default=GEMINI_KEY, help="the key to ask for (default: %(default)s)")
    made.add_argument("--script", type=Path, metavar="FILE", help="JSON script, or one for each: openai and gemini")
    made.add_argument("--scenario", choices=sorted(SCENARIOS), help="a built-in conversation instead of a script")
    made.add_argument("--record", type=Path, metavar="DIR", help="write every request there")
    made.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    return made


def _script(options: argparse.Namespace) -> tuple[Any, Any]:
    if options.script is None:
        return options.scenario, options.scenario
    try:
        given = json.loads(options.script.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{options.script} is not a JSON script: {error}", hint="correct the file") from error
    return scripts_from(given)


async def serve(options: argparse.Namespace) -> None:
    """Serve until told to stop."""
    openai_script, gemini_script = _script(options)
    kept: dict[str, Any] = {"host": options.host, "record": "all" if options.record else "heads"}
    recorders: list[Recorder] = []
    async with AsyncExitStack() as stack:
        try:
            openai = await stack.enter_async_context(
                open_openai(openai_script, key=options.openai_key, port=options.openai_port, **kept)
            )
            gemini = await stack.enter_async_context(
                open_gemini(gemini_script, key=options.gemini_key, port=options.gemini_port, **kept)
            )
            for name, origin in (("openai", openai), ("gemini", gemini)):
                if options.record:
                    recorders.append(Recorder(options.record / name))
                    origin.on_finished.append(recorders[-1].note)
            await stand({"openai": f"{openai.url}/v1", "gemini": gemini.url}, until_eof=options.until_eof)
        finally:
            for recorder in recorders:
                recorder.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 after a clean stop, 1 with one line on stderr."""
    options = parser().parse_args(argv)
    return run_server("providers", partial(serve, options))


if __name__ == "__main__":
    raise SystemExit(main())
