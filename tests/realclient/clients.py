"""Fetches the real clients by name and version into a cache, once; the tests themselves never use the network.

    python tests/realclient/clients.py          fetch what is missing
    python tests/realclient/clients.py --list   say what is there

The cache is .cache/realclient in the working tree, or $DBPROXY_TEST_CACHE. Two generations (client facts, heading): the
newest native binary, and the last release that runs on Node. The version is always named, because npm picks another
one by the engines field on an older Node (client facts 7).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "@anthropic-ai/claude-code"
OFFLINE = "DBPROXY_TEST_OFFLINE"
_ATTEMPTS = 3
_TIMEOUT = 1800.0


@dataclass(frozen=True, slots=True)
class Client:
    """One generation of the client. `program` lies below the package's folder; `on_node` says whether Node runs it."""

    version: str
    program: str
    on_node: bool

    @property
    def folder(self) -> Path:
        return cache() / self.version

    @property
    def path(self) -> Path:
        return self.folder / "node_modules" / PACKAGE / self.program

    def command(self) -> list[str] | None:
        """How to start it; None while it is not fetched or, where it needs one, no Node is there."""
        if not self.path.is_file():
            return None
        if not self.on_node:
            return [str(self.path)]
        node = find_node()
        return None if node is None else [node, str(self.path)]


NEWEST = Client("2.1.329", "bin/claude.exe", on_node=False)
LAST_NODE = Client("2.1.112", "cli.js", on_node=True)
CLIENTS = (NEWEST, LAST_NODE)


def cache() -> Path:
    chosen = os.environ.get("DBPROXY_TEST_CACHE")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[2] / ".cache" / "realclient"


def find_program(name: str) -> str | None:
    """A program beside the interpreter that runs us (the nodejs wheel puts node and npm there), or on the path."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    return beside or shutil.which(name)


def find_node() -> str | None:
    return find_program("node")


def fetch(client: Client) -> None:
    """Installs one client; raises RuntimeError with npm's last words when that fails."""
    npm = find_program("npm")
    if npm is None:
        raise RuntimeError("there is no npm: `python3 packaging/bootstrap.py just init` installs one into .venv")
    for scratch in ("npm-cache", "home"):
        (cache() / scratch).mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--cache", str(cache() / "npm-cache"), "--prefix", str(client.folder)]
    command += ["--no-audit", "--no-fund", f"{PACKAGE}@{client.version}"]
    words = ""
    for _ in range(_ATTEMPTS):
        result = subprocess.run(
            command,
            cwd=cache(),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        words = result.stderr.strip()
        if result.returncode == 0:
            _link_native(client)
            if client.path.is_file():
                return
            words = f"npm was content, but {client.path} is missing"
    raise RuntimeError(f"npm could not install {PACKAGE}@{client.version}:\n{words}")


def _link_native(client: Client) -> None:
    """Where install scripts are off, the native binary stays in its platform's package."""
    if client.on_node:
        return
    found = sorted(client.path.parents[2].glob("claude-code-*/claude*"), key=lambda path: path.stat().st_size)
    if found and (not client.path.is_file() or client.path.stat().st_size < found[-1].stat().st_size):
        client.path.parent.mkdir(parents=True, exist_ok=True)
        client.path.unlink(missing_ok=True)
        os.link(found[-1], client.path)


def main(arguments: list[str]) -> int:
    if arguments == ["--list"]:
        for client in CLIENTS:
            print(client.version, client.path if client.path.is_file() else "is not fetched")
        return 0
    missing = [client for client in CLIENTS if not client.path.is_file()]
    if missing and os.environ.get(OFFLINE, "") not in ("", "0"):
        print(f"{OFFLINE} is set: the real client's tests will be skipped")
        return 0
    for client in missing:
        print(f"fetching {PACKAGE}@{client.version} from npm (once; kept in {cache()})", flush=True)
        try:
            fetch(client)
        except (RuntimeError, subprocess.TimeoutExpired, OSError) as error:
            print(f"{error}\nWithout network, set {OFFLINE}=1 to run everything else.", file=sys.stderr)
            return 1
    if missing:
        shutil.rmtree(cache() / "npm-cache", ignore_errors=True)  # half of the download again; nothing needs it now
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
