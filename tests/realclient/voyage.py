"""What happens on the island, step by step: starts name service and the fake API, runs the steps, notes how they went.

    python voyage.py PLAN.json        (isolate.py runs this; the plan is written by island.py)

Plan: {"out": folder, "origin": {"script": ..., "tls_port": 443, "port": 8081}, "steps": [step, ...]}, and with
"providers": {"script": ..., "openai_port": 8082, "gemini_port": 8083} other providers' fake APIs beside it.
Step: {"command": [...], "env": {...}, "cwd": ..., "seconds": limit, "keys": [...] for a terminal}.
A key is text to type, {"wait": text} until the screen showed it since the last typing, or {"sleep": seconds}.
Leaves in the folder: result.json, record/ (what the fake API received), providers/openai and providers/gemini (what
those received), ca.pem (what the fake API's clients must trust).
Imports the standard library and fakedns alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path
from typing import Any

from fakedns import FakeDns

_START = 30.0
_TERMINAL = struct.pack("HHHH", 50, 160, 0, 0)
_ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[PX^_][^\x1b]*\x1b\\|\x1b.")


def start_origin(plan: dict[str, Any], out: Path) -> subprocess.Popen[bytes]:
    """The fake API as a process of its own; returns once it listens."""
    wanted = plan["origin"]
    ports = ["--tls-port", str(wanted["tls_port"]), "--port", str(wanted["port"])]
    return _start(
        "origin", wanted["script"], [*ports, "--record", str(out / "record"), "--ca", str(out / "ca.pem")], out
    )


def start_providers(plan: dict[str, Any], out: Path) -> subprocess.Popen[bytes]:
    """Other providers' fake APIs, in the same way."""
    wanted = plan["providers"]
    ports = ["--openai-port", str(wanted["openai_port"]), "--gemini-port", str(wanted["gemini_port"])]
    return _start("providers", wanted["script"], [*ports, "--record", str(out / "providers")], out)


def _start(name: str, script: Any, arguments: list[str], out: Path) -> subprocess.Popen[bytes]:
    file = out / f"{name}.script.json"
    file.write_text(json.dumps(script))
    command = [sys.executable, "-m", f"dbproxy.testing.{name}", "--script", str(file), "--until-eof", *arguments]
    log = (out / f"{name}.log").open("wb")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=out)
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _START)
    if not ready or not process.stdout.readline():
        raise SystemExit(f"{name} did not start: " + (out / f"{name}.log").read_text())
    return process


def run_plain(step: dict[str, Any]) -> dict[str, Any]:
    """A command without a terminal. Its whole process group ends with its time."""
    process = subprocess.Popen(
        step["command"],
        env=step["env"],
        cwd=step["cwd"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    late = False
    try:
        output, errors = process.communicate(timeout=step["seconds"])
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
    return {
        "code": process.returncode,
        "late": late,
        "stdout": output.decode(errors="replace"),
        "stderr": errors.decode(errors="replace"),
    }


class Terminal:
    """A command behind a pseudo terminal, and all that it ever wrote, without escape sequences."""

    def __init__(self, step: dict[str, Any]) -> None:
        self.deadline = time.monotonic() + step["seconds"]
        self.raw = b""
        self.mark = 0
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(step["cwd"])
                os.execvpe(step["command"][0], step["command"], step["env"])
            finally:
                os._exit(127)
        ioctl(self.handle, termios.TIOCSWINSZ, _TERMINAL)

    @property
    def text(self) -> str:
        return _ESCAPES.sub(b" ", self.raw).decode(errors="replace")

    def read(self, seconds: float) -> bool:
        """Takes in what comes within the time; False at the end of the command."""
        ready, _, _ = select.select([self.handle], [], [], max(0.0, min(seconds, self.deadline - time.monotonic())))
        if ready:
            try:
                self.raw += os.read(self.handle, 65536)
            except OSError:
                return False
        return True

    def wait(self, text: str) -> bool:
        """Until the screen showed the text, blanks aside, since something was last typed."""
        squeezed = "".join(text.split())
        while squeezed not in "".join(self.text[self.mark :].split()):
            if time.monotonic() > self.deadline or not self.read(0.1):
                return False
        return True

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.read(end - time.monotonic()):
            pass

    def type(self, text: str) -> None:
        self.mark = len(self.text)
        os.write(self.handle, text.encode())

    def end(self) -> int | None:
        """Exit code, or None where it had to be killed."""
        while time.monotonic() < self.deadline and self.read(0.1):
            pass
        done, status = os.waitpid(self.pid, os.WNOHANG)
        late = done == 0 and not self._gone(2.0)
        if late:
            os.kill(self.pid, signal.SIGKILL)
        if done == 0:
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(self.pid, 0)
        return None if late else os.waitstatus_to_exitcode(status)

    def _gone(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is not None:
                return True
            time.sleep(0.02)  # noqa: TID251  a test driver without an event loop
        return False


def run_terminal(step: dict[str, Any]) -> dict[str, Any]:
    """A command with a terminal and somebody who types."""
    terminal = Terminal(step)
    missed = ""
    for key in step["keys"]:
        if isinstance(key, str):
            terminal.type(key)
        elif "sleep" in key:
            terminal.sleep(key["sleep"])
        elif not terminal.wait(key["wait"]):
            missed = key["wait"]
            terminal.deadline = time.monotonic()
            break
    code = terminal.end()
    return {"code": code, "late": code is None, "stdout": terminal.text, "stderr": "", "missed": missed}


def main(plan_file: str) -> int:
    plan = json.loads(Path(plan_file).read_text())
    out = Path(plan["out"])
    dns = FakeDns()
    servers = [start_origin(plan, out)]
    if "providers" in plan:
        servers.append(start_providers(plan, out))
    results = []
    for step in plan["steps"]:
        begin = time.monotonic()
        try:
            result = run_terminal(step) if "keys" in step else run_plain(step)
        except OSError as error:
            result = {"code": 127, "late": False, "stdout": "", "stderr": f"voyage: {error}"}
        results.append(result | {"seconds": round(time.monotonic() - begin, 3)})
    for server in servers:
        assert server.stdin is not None
        server.stdin.close()  # ends it after everything is written
        server.wait(20)
    (out / "result.json").write_text(json.dumps({"steps": results, "asked": dns.asked}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
