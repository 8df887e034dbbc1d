"""``dbproxy demo``: a fake model API and a scripted agent talk through the real proxy, and every byte is compared.

No account, no network. The proxy, the launcher and the commands at the end run as a person would start them, as
processes of their own with a data folder of their own. The agent fills its context until it asks for a summary, which
the double buffer has made meanwhile. Exit code 0 only if the agent was content, every byte was the same on both sides,
the swap was confirmed, and every request can be rebuilt from what was captured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from dbproxy import state
from dbproxy.errors import DbproxyError, LaunchError
from dbproxy.paths import Paths
from dbproxy.testing import agent
from dbproxy.testing.buffered import confirmed_swap, tell
from dbproxy.testing.compare import Comparison, compare
from dbproxy.testing.origin import open_origin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from dbproxy.testing.origin import Origin

START_SECONDS = 30.0
STOP_SECONDS = 10.0
AGENT_SECONDS = 120.0
ASK_SECONDS = 30.0
# The smallest window that the real client can be told: 67,000 tokens, then it compacts (client facts 4.2).
WINDOW = "100000"
# How long each of the agent's tools takes: a pause like a real one's.
TOOL_SECONDS = 0.3
# What would lead the demo out of itself: other proxies, other trust, other settings, somebody's keys.
_DROPPED_PREFIXES = ("DBPROXY_", "ANTHROPIC_", "CLAUDE_", "AWS_", "GOOGLE_", "XDG_")
_DROPPED = ("https_proxy", "http_proxy", "all_proxy", "no_proxy", "node_extra_ca_certs", "ssl_cert_file")


@dataclass(frozen=True, slots=True)
class Started:
    """A running proxy: how to start a program behind it, and what to tell about it."""

    launch: tuple[str, ...]  # put before the agent's command
    environ: Mapping[str, str]
    about: str
    ask: tuple[str, ...] = ()  # put before a command that asks about what was captured; empty if nothing is
    log: Path | None = None  # where the double buffer's doings are told; None if there is none


ProxyMaker = "Callable[[Origin, Path], AbstractAsyncContextManager[Started]]"


def program() -> list[str]:
    """How to start dbproxy itself, as a module or as the frozen executable."""
    return [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "dbproxy"]


def agent_command(arguments: Sequence[str]) -> list[str]:
    """How to start the agent; the frozen executable has no ``-m``."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "demo", "--as-agent", *arguments]
    return [sys.executable, "-m", "dbproxy.testing.agent", *arguments]


def clean_environment(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """The environment for the demo's processes, with a home of its own."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.upper().startswith(_DROPPED_PREFIXES) and name.lower() not in _DROPPED
    }
    return kept | {"HOME": str(home), "USERPROFILE": str(home), "NO_PROXY": "127.0.0.1,localhost,::1"}


@asynccontextmanager
async def real_proxy(origin: Origin, folder: Path) -> AsyncIterator[Started]:
    """``dbproxy serve`` in ``folder``, with ``origin`` as its upstream. Raises LaunchError if it does not start."""
    home, data = folder / "home", folder / "data"
    home.mkdir()
    certificate = folder / "api-ca.pem"
    await trio.Path(certificate).write_bytes(origin.ca_pem)
    environ = clean_environment(os.environ, home) | {
        "DBPROXY_DATA_DIR": str(data),
        "DBPROXY_LISTEN": "127.0.0.1:0",
        "DBPROXY_UPSTREAM_URL": origin.url,
        "DBPROXY_UPSTREAM_CA": str(certificate),
    }
    began = trio.current_time()
    output = folder / "proxy.txt"
    with output.open("wb") as sink:
        process = await trio.lowlevel.open_process(
            [*program(), "serve"], env=environ, cwd=str(home), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        running = await _listening(process, Paths(data).daemon_state, output)
        about = f"{running.url}, process {running.pid}, ready after {trio.current_time() - began:.2f} s"
        yield Started((*program(), "run", "--"), environ, about, tuple(program()), Paths(data).log_file)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_SECONDS):
            if process.poll() is None:
                process.terminate()
                await process.wait()
        if process.poll() is None:
            process.kill()


async def _listening(process: trio.Process, record: Path, output: Path) -> state.DaemonState:
    with trio.move_on_after(START_SECONDS):
        while process.poll() is None:
            found = state.load(record)
            if found is not None and found.pid == process.pid:
                return found
            await trio.sleep(0.02)
    said = (await trio.Path(output).read_text(errors="replace")).strip().splitlines()
    raise LaunchError(
        f"the proxy did not start: {said[-1] if said else 'it said nothing'}", hint="Run `dbproxy doctor` for details"
    )


async def play(
    folder: Path,
    *,
    script: Any,
    say: Callable[[str], None],
    proxy: Callable[[Origin, Path], AbstractAsyncContextManager[Started]] = real_proxy,
    agent_arguments: Sequence[str] = (),
    tool_seconds: float = TOOL_SECONDS,
    keep: bool = False,
) -> bool:
    """Run the whole demo in ``folder``; True if the agent was content, every byte matched, the swap was confirmed and
    all was captured.

    ``keep`` says that the folder stays, so that what was captured can be looked at.
    """
    report_file = folder / "agent.json"
    say("A fake model API and a scripted agent talk through the real proxy. Nothing leaves this machine.\n")
    async with open_origin(script, tls=True) as origin:
        say(f"  model API  {origin.url} (fake, TLS)")
        async with proxy(origin, folder) as started:
            say(f"  proxy      {started.about}")
            arguments = ["--report", str(report_file), "--need-proxy", "--quiet", "--time-scale", "0.05"]
            arguments += ["--tool-seconds", str(tool_seconds)]
            command = [*started.launch, *agent_command([*arguments, *agent_arguments])]
            say("  agent      scripted, as strict as the real one, started by `dbproxy run`\n")
            code, complaint = await _run_agent(command, started.environ, folder)
            # The last answer's end may reach the agent before the origin has booked it.
            with trio.move_on_after(2.0):
                await origin.wait_answered()
            attempts = await _attempts(report_file)
            swap = await confirmed_swap(started.log) if started.log is not None else None
        authority = f"{origin.host}:{origin.tls_port}"
        comparison = compare(attempts, origin.requests, authority=authority, buffered=started.log is not None)
    _tell(say, comparison, attempts)
    if origin.violations:
        say(f"  not HTTP at the API: {origin.violations[0][1]}")
    if code != 0:
        say(f"\nThe agent gave up: {complaint or f'exit code {code}'}")
    good = code == 0 and comparison.same and not origin.violations and bool(attempts)
    say("\n" + (_well(comparison) if good else "FAILED."))
    if isinstance(swap, str):
        say(f"\nFAILED: no swap was confirmed: {swap}.")
        good = False
    elif swap is not None:
        tell(say, swap, comparison, attempts)
    if started.ask and attempts:
        where = f"DBPROXY_DATA_DIR={folder / 'data'} " if keep else ""
        good = await _captured(say, started, folder, attempts, where) and good
    return good


async def _captured(
    say: Callable[[str], None], started: Started, folder: Path, attempts: list[dict[str, Any]], where: str
) -> bool:
    """Show what was captured, as the command shows it; whether every request can be rebuilt from it."""
    try:
        shown = await _ask(started, folder, "conversations", "show", "last")
        checked = json.loads(await _ask(started, folder, "log", "verify", "--json"))
    except (DbproxyError, ValueError) as error:
        say(f"\nFAILED: what was captured cannot be shown: {error}")
        return False
    say("\nCaptured on the way, as `dbproxy conversations show last` tells it:\n")
    for line in shown.splitlines():
        say(f"  {line}".rstrip())
    sent = sum(attempt["method"] == "POST" and bool(attempt["status"]) for attempt in attempts)
    if checked["exact"] < sent or checked["wrong"]:
        say(f"\nFAILED: {sent} requests were sent, and {checked['exact']} can be rebuilt from what was captured.")
        return False
    say(f"\nAll {checked['exact']} of its requests can be rebuilt from that, byte for byte (`dbproxy log verify`).")
    say("Look further:" if where else "After a session of your own, look further:")
    say(f"  {where}dbproxy log list\n  {where}dbproxy explain last")
    return True


async def _ask(started: Started, folder: Path, *words: str) -> str:
    """What one of our own commands says about what was captured. Raises LaunchError if it fails."""
    with trio.move_on_after(ASK_SECONDS):
        done = await trio.run_process(
            [*started.ask, *words],
            env=started.environ,
            cwd=str(folder),
            stdin=b"",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        if done.returncode == 0 or done.stdout.startswith(b"{"):
            return done.stdout.decode("utf-8", "replace")
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise LaunchError(lines[-1] if lines else f"{' '.join(words)} ended with code {done.returncode}")
    raise LaunchError(f"{' '.join(words)} did not end within {ASK_SECONDS:g} s")


async def _run_agent(command: list[str], environ: Mapping[str, str], folder: Path) -> tuple[int, str]:
    environ = {
        **environ,
        "CLAUDE_CODE_MAX_RETRIES": "3",
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": WINDOW,
        "ANTHROPIC_API_KEY": "sk-ant-demo",
    }
    with trio.move_on_after(AGENT_SECONDS):
        done = await trio.run_process(
            command,
            env=environ,
            cwd=str(folder),
            stdin=b"",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return done.returncode, lines[-1] if lines else ""
    return 1, f"it did not end within {AGENT_SECONDS:g} s"


async def _attempts(report: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(await trio.Path(report).read_text("utf-8"))["attempts"]
    except (OSError, ValueError, KeyError):
        return []
    return list(found)


def _tell(say: Callable[[str], None], comparison: Comparison, attempts: list[dict[str, Any]]) -> None:
    say("    #  request             up      down    first byte       whole     context   bytes")
    for line, attempt in zip(comparison.lines, attempts, strict=True):
        first = f"{attempt['first_byte'] * 1000:.1f} ms" if attempt["first_byte"] is not None else "none"
        whole = f"{attempt['seconds'] * 1000:.0f} ms"
        context = f"{attempt['context']:,}" if attempt["context"] else ""
        verdict = "identical" if not line.differences else "DIFFERENT: " + "; ".join(line.differences)
        if line.swapped:
            verdict = "answered by dbproxy"
        sizes = f"{line.up:8,}  {line.down:8,}  {first:>12}  {whole:>10}  {context:>10}"
        say(f"  {attempt['number']:3}  {attempt['kind']:13} {sizes}   {verdict}")
    for own in comparison.checkpoints:
        what = f"our own: request {own.base}, byte for byte, and {own.more:,} more"
        say(f"    +  {'checkpoint':13} {own.up:8,}  {own.down:8,}  {'':>12}  {'':>10}  {'':>10}   {what}")
    for extra in comparison.unmatched:
        say(f"  the API got a request that the agent did not send: {extra}")


def _well(comparison: Comparison) -> str:
    relayed = [line for line in comparison.lines if not line.swapped]
    up = sum(line.up for line in relayed)
    down = sum(line.down for line in relayed)
    sizes = f"{len(relayed)} requests, {up:,} bytes up and {down:,} bytes down"
    return f"{sizes}: every byte identical on both sides."


def parser() -> argparse.ArgumentParser:
    """The command line of ``dbproxy demo``."""
    made = argparse.ArgumentParser(
        prog="dbproxy demo", description="See the proxy at work, without account or network."
    )
    made.add_argument("--keep", action="store_true", help="leave the demo's folder and say where it is")
    made.add_argument("--script", type=Path, metavar="FILE", help="another script for the fake API (JSON)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. 0: everything matched and was captured, and the agent was content; 1: not; 2: wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--as-agent"]:
        return agent.main(words[1:])
    options = parser().parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="dbproxy-demo-"))

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    async def run() -> bool:
        return await play(folder, script=options.script or "demo", say=say, keep=options.keep)

    try:
        return 0 if trio.run(run) else 1
    except BaseExceptionGroup as group:
        told, rest = group.split((DbproxyError, OSError))
        if rest is not None or told is None:
            raise
        sys.stderr.write(f"dbproxy demo: {_first(told)}\n")
        return 1
    except (DbproxyError, OSError) as error:
        sys.stderr.write(f"dbproxy demo: {error}\n")
        return 1
    finally:
        if options.keep:
            say(f"Kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


if __name__ == "__main__":
    raise SystemExit(main())
