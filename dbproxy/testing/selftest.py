"""``dbproxy selftest``: does this installation work? Versions, plugins, and one request through the real proxy.

Owns the round trip: a fake API and a proxy in this process, a foreign client's CONNECT and TLS, one streamed answer,
compared byte for byte. Needs no account, no network, no configuration, and leaves nothing behind. Never reads the
person's settings: a fault in those is the doctor's business.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import ssl
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from dbproxy import __version__
from dbproxy.app.run import open_proxy
from dbproxy.config import load
from dbproxy.errors import DbproxyError
from dbproxy.testing.compare import compare
from dbproxy.testing.http_client import Attempt, Broken, Client, Silent, Way
from dbproxy.testing.origin import open_origin, say

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "api.anthropic.com"
SECONDS = 30.0
_PACKAGES = ("trio", "h11", "h2", "cryptography", "trustme", "pluggy", "msgspec", "zstandard", "brotli", "certifi")
_ANSWER = "This text comes from a fake API, in pieces. " * 20


@dataclass(frozen=True, slots=True)
class Result:
    """What was found. ``trouble`` is empty if the round trip went well; ``plugins`` maps names to version and state."""

    trouble: str
    up: int = 0
    down: int = 0
    events: int = 0
    seconds: float = 0.0
    plugins: tuple[tuple[str, str, str], ...] = ()


def versions() -> dict[str, str]:
    """What this is made of, by name; ``missing`` for a package without metadata."""
    found = {
        "dbproxy": __version__,
        "kind": "executable" if getattr(sys, "frozen", False) else "package",
        "program": sys.executable,
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION,
        "platform": platform.platform(),
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def run() -> Result:
    """The round trip, in a temporary folder. Raises OSError when there is no place for one."""
    with tempfile.TemporaryDirectory(prefix="dbproxy-selftest-", ignore_cleanup_errors=True) as folder:
        try:
            return trio.run(_within_time, Path(folder), strict_exception_groups=True)
        except BaseExceptionGroup as group:
            told, rest = group.split((DbproxyError, OSError))
            if rest is not None or told is None:
                raise
            return Result(_first(told))


def _first(group: BaseExceptionGroup[Any]) -> str:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else str(inner)


async def _within_time(folder: Path) -> Result:
    with trio.move_on_after(SECONDS):
        return await round_trip(folder)
    return Result(f"the round trip did not end within {SECONDS:g} s")


async def round_trip(folder: Path, environ: Mapping[str, str] | None = None) -> Result:
    """One streamed request through a proxy with its data in ``folder``; ``environ`` may hold settings for it."""
    async with open_origin(say(_ANSWER), tls=True) as origin:
        certificate = folder / "api-ca.pem"
        await trio.Path(certificate).write_bytes(origin.ca_pem)
        given = {
            "data_dir": str(folder / "data"),
            "listen": "127.0.0.1:0",
            "upstream_url": origin.url,
            "upstream_ca": str(certificate),
            "parent_proxy": "none",
        }
        config = load(given, {"HOME": str(folder), **(environ or {})}, None)
        async with open_proxy(config) as running:
            way = Way(
                "https",
                HOST,
                443,
                proxy=("127.0.0.1", running.port),
                extra_ca=str(running.proxy.paths.ca / "bundle.pem"),
            )
            plugins = tuple((row.name, row.version, row.state) for row in running.proxy.dispatch.manager.rows())
            began = trio.current_time()
            client = Client(way)
            try:
                attempt = await _ask(client)
            except (Broken, Silent) as error:
                return Result(str(error), plugins=plugins)
            finally:
                await client.close()
            seconds = trio.current_time() - began
            await origin.wait_answered(seconds=5.0)
        comparison = compare([attempt.about()], origin.requests, authority=f"{origin.host}:{origin.tls_port}")
    problems = [difference for line in comparison.lines for difference in line.differences]
    problems += [f"the API got a request that was not sent: {extra}" for extra in comparison.unmatched]
    events = bytes(attempt.answer_body).count(b"event: ")
    if attempt.status != 200 or not bytes(attempt.answer_body).rstrip().endswith(b'{"type":"message_stop"}'):
        problems.append(f"the answer is not a whole stream (status {attempt.status}, {events} events)")
    line = comparison.lines[0]
    return Result("; ".join(problems), line.up, line.down, events, seconds, plugins)


async def _ask(client: Client) -> Attempt:
    body = {
        "model": "claude-opus-5-5",
        "max_tokens": 1000,
        "stream": True,
        "messages": [{"role": "user", "content": "Say something long."}],
    }
    data = json.dumps(body).encode()
    fields = [
        ("Accept", "application/json"),
        ("X-Api-Key", "not-a-key"),
        ("Content-Type", "application/json"),
        ("anthropic-version", "2023-06-01"),
        ("Host", HOST),
        ("Content-Length", str(len(data))),
    ]
    return await client.request("POST", "/v1/messages", fields, data, kind="selftest", take=_nothing)


def _nothing(_attempt: Attempt, _data: bytes, /) -> None:
    """The record is enough."""


def describe(result: Result, made_of: Mapping[str, str]) -> list[str]:
    """The report's lines."""
    width = max(len(name) for name in made_of) + 2
    lines = [f"{name:<{width}}{version}" for name, version in made_of.items()]
    for name, version, state in result.plugins:
        lines.append(f"{'plugin':<{width}}{name} {version} ({state})")
    if result.trouble:
        return [*lines, "", f"FAILED: {result.trouble}"]
    sizes = f"{result.up:,} bytes up, {result.events} events and {result.down:,} bytes down"
    lines += [
        "",
        f"CONNECT, TLS and a streamed answer in {result.seconds * 1000:.0f} ms: {sizes}, every byte identical.",
    ]
    return lines


def is_well(result: Result, made_of: Mapping[str, str]) -> bool:
    """Nothing differs, no package is missing, and every plugin that is on could be loaded."""
    return (
        not result.trouble and "missing" not in made_of.values() and all(row[2] != "failed" for row in result.plugins)
    )


def about(result: Result, made_of: Mapping[str, str]) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "ok": is_well(result, made_of),
        "trouble": result.trouble,
        "versions": dict(made_of),
        "plugins": [{"name": name, "version": version, "state": state} for name, version, state in result.plugins],
        "round_trip": {"seconds": result.seconds, "up": result.up, "down": result.down, "events": result.events},
    }
