"""The first worker of a proxy, begun by the process that is about to become its supervisor.

Owns that fork. Supervisor and worker then get ready at the same time, and where this program may go on as a worker
without being executed anew, what it has loaded so far need not be loaded a second time: together half of a start.
Must never import trio. Invariants: a worker that goes on here shows neither the words nor the environment of the
command that it came from (they may hold a prompt, or a key), keeps no descriptor but its own, and finds modules only
where an executed one would; it never returns.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from dbproxy.proc import frozen
from dbproxy.proc.supervisor import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Here = Callable[[list[str]], int]
    """Runs the words of a command line in this very process, as ``dbproxy.cli.main`` does."""


class Firstborn:
    """A worker that was started; its supervisor adopts it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel

    def give_up(self) -> None:
        """End it, for there will be no supervisor."""
        self.channel.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def start(
    command: Sequence[str],
    words: Callable[[int], Sequence[str]],
    env: Mapping[str, str],
    *,
    fds: Sequence[int],
    here: Here | None,
) -> Firstborn | None:
    """Start a worker; None where the system has no process or descriptor left for it.

    ``command`` with ``words(control)`` behind it executes it in the environment ``env``, where ``control`` is the
    descriptor of its channel; ``fds`` are the others that it needs. With ``here`` it is not executed where that makes
    no difference. The caller has a single thread, and blocks the signals of the supervisor's.
    """
    try:
        ours, theirs = socket.socketpair()
    except OSError:
        return None
    try:
        pid = os.fork()
        if pid == 0:
            _become_worker([*command], [*words(theirs.fileno())], env, (*fds, theirs.fileno()), here)
    except OSError:
        ours.close()
        return None
    finally:
        theirs.close()
    return Firstborn(pid, ours)


def _become_worker(
    command: list[str], words: list[str], env: Mapping[str, str], fds: Sequence[int], here: Here | None
) -> NoReturn:
    code = 127
    try:
        # The terminal's signals are the supervisor's to pass on.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if here is not None and _is_like_executed() and _disguise([*command, *words], frozen.after_loader(env)):
            _close_all_but(fds)
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it from its start; a daemon's fork has not
            if getattr(sys, "frozen", False):
                frozen.hold(os.path.dirname(sys.executable))  # the lock of the command that we came from goes with it
            sys.argv[1:] = words
            code = here(words)
        else:
            for fd in fds:
                os.set_inheritable(fd, True)
            os.execvpe(command[0], [*command, *words], dict(env))
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


def _is_like_executed() -> bool:
    """Whether modules are looked for where an executed worker would: ``python -m dbproxy`` has the folder in which the
    person happens to be among them, which a proxy must not load code from."""
    return bool(getattr(sys, "frozen", False)) or sys.flags.safe_path


def _disguise(words: Sequence[str], env: Mapping[str, str]) -> bool:
    """Let this process be what ``words`` in ``env`` would have made of it, for all who look at it (Linux only).

    False where that cannot be; the environment has been replaced then, too, and nothing else.
    """
    if dict(os.environ) != dict(env):
        # Gone from the C library's list first, so that nothing points into the area that is overwritten below.
        os.environ.clear()
        os.environ.update(env)
    try:
        with open("/proc/self/stat", "rb") as file:
            stat = file.read()
        # Fields 48 to 51 of proc(5), counted from 1; what stands in front of the state may hold blanks.
        areas = [int(field) for field in stat[stat.rindex(b")") + 2 :].split()[45:49]]
        start, end, env_start, env_end = areas
        if not 0 < start < end <= env_start <= env_end:
            return False
        title = b"\0".join(os.fsencode(word) for word in (os.path.basename(words[0]), *words[1:]))
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(title[: end - start - 1].ljust(end - start, b"\0"))
            memory.seek(env_start)
            memory.write(bytes(env_end - env_start))
    except (OSError, ValueError, IndexError):
        return False
    return True


def _close_all_but(fds: Sequence[int]) -> None:
    """As executing would. Objects that own one of them live on in the frames below, which are never left."""
    first = 3
    for fd in sorted(fds):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
