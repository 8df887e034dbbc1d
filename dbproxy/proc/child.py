"""Starting and ending the detached daemon, and the hand-over of this process to the agent.

Owns fork, exec, sessions and signals of the command line. Must never import trio or configuration, nor be used inside
the event loop. Invariants: the daemon inherits no descriptor, no terminal, no working directory and no umask of the
shell it came from; a process is only signalled when it is the very one that we recorded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dbproxy.errors import LaunchError
from dbproxy.state import DaemonState, is_alive, load, pause_for, probe, process_identity, split_address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_MAX_STDERR_FILE = 1_000_000


def own_command() -> list[str]:
    """How to start this same program again: the frozen executable, or this interpreter with our package."""
    if getattr(sys, "frozen", False):
        return [sys.executable]
    return [sys.executable, "-m", "dbproxy"]


def with_own_package(env: Mapping[str, str]) -> dict[str, str]:
    """``env`` so that ``python -m dbproxy`` finds this package although the working directory will be another."""
    changed = dict(env)
    if getattr(sys, "frozen", False):
        return changed
    root = str(Path(__file__).resolve().parents[2])
    if Path(root).name not in ("site-packages", "dist-packages"):
        others = [part for part in env.get("PYTHONPATH", "").split(os.pathsep) if part and part != root]
        changed["PYTHONPATH"] = os.pathsep.join([root, *others])
    changed["PYTHONSAFEPATH"] = "1"
    return changed


def start_daemon(
    enter: Callable[[], NoReturn],
    *,
    state_file: Path,
    stderr_file: Path,
    timeout: float,
    answer: bool = True,
) -> DaemonState:
    """Call ``enter`` in a daemon process and wait until that listens and (with ``answer``) answers; its record.

    ``enter`` executes another program in the end; what is loaded here already need not be loaded anew for its first
    steps. Raises LaunchError with the daemon's own last line of stderr when it ends before that, or when ``timeout``
    seconds pass (it is then told to end). The caller holds the start lock.
    """
    offset = _trim(stderr_file)
    pid, identity = _spawn_detached(enter, stderr_file)
    deadline = time.monotonic() + timeout
    pause = 0.002
    while time.monotonic() < deadline:
        state = load(state_file)
        if state is not None and state.pid == pid:
            left = deadline - time.monotonic()
            if not answer or probe(state, max(0.1, min(2.0, left))) is not None:
                return state
        if not is_alive(pid, identity):
            raise LaunchError("the background proxy ended while starting: " + last_line(stderr_file, offset))
        pause_for(pause)
        pause = min(0.02, pause * 1.5)
    terminate(pid, identity)
    raise LaunchError(
        f"the background proxy did not answer within {timeout:.0f} s: " + last_line(stderr_file, offset),
        hint="`dbproxy serve` runs it in the foreground and shows why",
    )


def _spawn_detached(enter: Callable[[], NoReturn], stderr_file: Path) -> tuple[int, str]:
    """Fork twice, so that the daemon is nobody's child: the agent must not inherit a child it does not know."""
    output = os.open(stderr_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    reader, writer = os.pipe()
    try:
        first = os.fork()
        if first == 0:
            _become_daemon(enter, output, writer)
        os.close(writer)
        writer = -1
        os.waitpid(first, 0)
        with open(reader, "rb", closefd=False) as pipe:
            pid_text, _, failure = pipe.read().decode("utf-8", "replace").partition("\n")
    finally:
        os.close(output)
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if failure or not pid_text:
        raise LaunchError(f"the background proxy cannot be started: {failure or 'fork failed'}")
    pid = int(pid_text)
    return pid, process_identity(pid)


def _become_daemon(enter: Callable[[], NoReturn], output: int, writer: int) -> None:
    """In the first child: never returns. The launcher has a single thread, so that everything works after a fork."""
    try:
        os.setsid()
        second = os.fork()
        if second:
            os._exit(0)
        os.write(writer, f"{os.getpid()}\n".encode())
        os.chdir("/")
        os.umask(0o077)
        devnull = os.open(os.devnull, os.O_RDWR)
        os.dup2(devnull, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # The pipe stays open until exec closes it, so that the launcher learns of whatever fails before.
        os.closerange(3, writer)
        os.closerange(writer + 1, _descriptor_limit())
        for caught in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM):
            signal.signal(caught, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        enter()
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(writer, f"{error}".encode())
    finally:
        os._exit(1)


def _descriptor_limit() -> int:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 65_536 if soft == resource.RLIM_INFINITY else min(max(soft, 256), 1 << 20)


def _trim(path: Path) -> int:
    """Start the file of the daemon's stderr anew when it has grown large; its size is returned."""
    try:
        size = path.stat().st_size
        if size > _MAX_STDERR_FILE:
            os.truncate(path, 0)
            return 0
    except OSError:
        return 0
    return size


def last_line(path: Path, offset: int = 0) -> str:
    """The last line of text that stands behind ``offset`` bytes of a file."""
    try:
        with path.open("rb") as file:
            file.seek(max(offset, path.stat().st_size - 65_536))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1].removeprefix("dbproxy: ") if lines else f"it said nothing (see {path})"


def terminate(pid: int, identity: str) -> bool:
    """Ask this very process to end gracefully (SIGTERM). False when it is gone or another process by now."""
    if not is_alive(pid, identity):
        return False
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError:
        return False
    return True


def kill(pid: int, identity: str) -> bool:
    """End this very process at once (SIGKILL). False when it is gone or another process by now."""
    if not is_alive(pid, identity):
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def wait_gone(pid: int, identity: str, timeout: float) -> bool:
    """True once the process has ended, False when it still runs after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while is_alive(pid, identity):
        if time.monotonic() >= deadline:
            return False
        pause_for(0.02)
    return True


def wait_port_free(address: str, timeout: float) -> bool:
    """True once ``HOST:PORT`` can be bound, False when it is still taken after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not can_bind(address):
        if time.monotonic() >= deadline:
            return False
        pause_for(0.02)
    return True


def can_bind(address: str) -> bool:
    """True if ``HOST:PORT`` is free to listen on. Other failures than a taken port count as free: the daemon that tries
    will say what is wrong."""
    host, port = split_address(address)
    if port == 0:
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind((host, port))
            trial.listen(1)
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


def find_program(name: str, env: Mapping[str, str]) -> str:
    """The full path of a program as the shell would find it. LaunchError when it is missing or not executable."""
    found = _which(name, env.get("PATH", os.defpath))
    if found is not None:
        return found
    if os.sep in name and Path(name).exists():
        raise LaunchError(f"{name} cannot be executed", hint="Check its permissions, or name the program itself")
    if name == "claude":
        raise LaunchError(
            "claude is not on your PATH",
            hint="Install Claude Code (npm install -g @anthropic-ai/claude-code), or use: dbproxy run CMD",
        )
    raise LaunchError(f"{name} is not on your PATH", hint="Check the spelling, or give its full path")


def _which(name: str, path: str) -> str | None:
    """As ``shutil.which``, without its import, which loads every kind of archive: 3 ms of every launch."""
    if sys.platform == "win32":
        import shutil

        return shutil.which(name, path=path)
    folders = [""] if os.path.dirname(name) else path.split(os.pathsep) if path else []
    candidates = (os.path.join(folder, name) for folder in folders)
    return next((file for file in candidates if os.path.isfile(file) and os.access(file, os.X_OK)), None)


def become(program: str, arguments: Sequence[str], env: Mapping[str, str]) -> int:
    """Replace this process by the program: its exit code, signals and terminal are then simply its own.

    Returns only on Windows, which has no exec: there the child's exit code. LaunchError when it cannot be executed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform == "win32":
        import subprocess

        return subprocess.run([program, *arguments[1:]], env=dict(env), check=False).returncode
    # Python ignores SIGPIPE and SIGXFSZ, and an ignored signal stays ignored across exec: `agent | head` would differ.
    for name in ("SIGPIPE", "SIGXFSZ", "SIGXFZ"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(program, list(arguments), dict(env))
    except OSError as error:
        raise LaunchError(f"{program} cannot be executed: {error.strerror or error}") from error
