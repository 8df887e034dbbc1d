"""Fetches the official TypeScript SDK by name and version into a cache, once; the tests never use the network.

    python tests/support/ts/fetch.py          fetch it if it is missing

The cache is .cache/sdk-ts in the working tree, or sdk-ts in $DBPROXY_TEST_CACHE. Offline rule, npm and Node are those
of the real clients (tests/realclient/clients.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "realclient"))

import clients  # noqa: E402

PACKAGE = "@anthropic-ai/sdk"
VERSION = "1.11.0"  # of the same day as the Python SDK's 2.11.0
_ATTEMPTS = 3
_TIMEOUT = 300.0


def folder() -> Path:
    chosen = os.environ.get("DBPROXY_TEST_CACHE")
    base = Path(chosen) if chosen else HERE.parents[2] / ".cache"
    return base / "sdk-ts" / VERSION


def is_there() -> bool:
    return (folder() / "node_modules" / PACKAGE / "package.json").is_file()


def fetch() -> None:
    """Installs the SDK; raises RuntimeError with npm's last words when that fails."""
    npm = clients.find_program("npm")
    if npm is None:
        raise RuntimeError("there is no npm: `python3 packaging/bootstrap.py just init` installs one into .venv")
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--cache", str(place / "npm-cache"), "--prefix", str(place)]
    command += ["--no-audit", "--no-fund", "--ignore-scripts", f"{PACKAGE}@{VERSION}"]
    words = ""
    for _ in range(_ATTEMPTS):
        result = subprocess.run(
            command,
            cwd=place,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        words = result.stderr.strip()
        if result.returncode == 0 and is_there():
            shutil.rmtree(place / "npm-cache", ignore_errors=True)
            return
    raise RuntimeError(f"npm could not install {PACKAGE}@{VERSION}:\n{words}")


def main() -> int:
    if is_there():
        return 0
    if os.environ.get(clients.OFFLINE, "") not in ("", "0"):
        print(f"{clients.OFFLINE} is set: what needs the TypeScript SDK will be skipped")
        return 0
    print(f"fetching {PACKAGE}@{VERSION} from npm (once; kept in {folder()})", flush=True)
    try:
        fetch()
    except (RuntimeError, subprocess.TimeoutExpired, OSError) as error:
        print(f"{error}\nWithout network, set {clients.OFFLINE}=1 to run everything else.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
