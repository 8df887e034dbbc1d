"""Runs a command and ends the proxy's worker in the middle of its answers.

    python assassin.py SIGNAL TIMES COMMAND...        (a step on the island)

While a message is under way, its worker gets the signal a moment later; TIMES workers in all. The exit code is the
command's, or 3 where there was no opportunity. Imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

_MOMENT = 0.5  # seconds from a request to the middle of its answer
_RUN = Path.home() / ".local" / "share" / "dbproxy" / "run"


def under_way() -> bool:
    """Whether the proxy is relaying a message right now."""
    try:
        port = json.loads((_RUN / "daemon.json").read_bytes())["listen"][0].rpartition(":")[2]
        token = (_RUN / "control-token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/status", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            return any("/v1/messages" in exchange["path"] for exchange in json.load(answer)["exchanges"])
    except (OSError, ValueError):
        return False


def worker() -> int:
    """The worker of the proxy on record."""
    pid = json.loads((_RUN / "daemon.json").read_bytes())["pid"]
    note = json.loads((_RUN / "supervisors" / f"{pid}.json").read_bytes())
    return int(note["workers"][-1][0])


def main(number: int, times: int, command: list[str]) -> int:
    process = subprocess.Popen(command)
    struck = set()
    while process.poll() is None:
        if len(struck) < times and under_way() and worker() not in struck:
            time.sleep(_MOMENT)  # noqa: TID251  a test driver without an event loop
            victim = worker()
            struck.add(victim)
            os.kill(victim, number)
        time.sleep(0.02)  # noqa: TID251
    return process.returncode or (0 if len(struck) == times else 3)


if __name__ == "__main__":
    sys.exit(main(signal.Signals[sys.argv[1]], int(sys.argv[2]), sys.argv[3:]))
