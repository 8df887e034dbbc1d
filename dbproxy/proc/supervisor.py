"""The process that holds the listening sockets, so that the work can be lost and taken up again.

Owns the sockets, the worker processes (start, heartbeat, replacement, degraded mode, drain) and the hand-over of the
sockets to a successor. Serves no traffic. Must import nothing but light modules of the standard library: it lives as
long as the proxy and is to stay under 15 MB. Invariants: as long as it runs the port accepts, worker or no worker
(the kernel's backlog waits); it signals only its own children; nothing that it writes is needed to go on.

Protocol with a worker, one byte each, over a socket pair. From the worker: ``h`` the event loop turns (every second),
``r`` it accepts connections. To the worker: ``q`` accept no more and finish what runs, ``k`` end now. End of file
tells each that the other is gone. Protocol with a successor: lines over ``run/supervisors/PID.sock``, see ``_Peer``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROTOCOL = 1
"""Of the hand-over; a successor that speaks another asks the old one to close its port instead."""
BEAT = 1.0
"""Seconds between two heartbeats of a worker."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What a person or a terminal ends us with."""
DEFAULTS = {
    "hung": 10.0,  # seconds of silence after which a worker is killed
    "start": 30.0,  # seconds within which a worker must accept connections
    "crashes": 5.0,  # so many crashes ...
    "window": 60.0,  # ... within so many seconds make us careful
    "quiet": 60.0,  # seconds without trouble after which the normal worker is tried again; doubles if that fails
}
_MAX_QUIET = 960.0
_MAX_BACKOFF = 1.0
_FAST = 5.0  # a worker that lived shorter than this is not replaced without any pause a second time
_FAILED_STARTS = 2  # a worker that says itself that it cannot start will hardly think otherwise the third time
_LOST_STARTS = 20  # degraded workers in a row that could not start: a closed port is more honest then
_DEBOUNCE = 0.2  # one Ctrl-C reaches us twice when a boot loader in front of us forwards it
_OVERSLEPT = 2.0  # we were stopped or the machine was: nobody could have sent a heartbeat
_LAST_WORDS = 20.0  # seconds that a drained worker may take for plugins and log, as ``app.run`` bounds them
_AT_ONCE = 8.0
_MAX_PEERS = 16
_PATH_LIMIT = 100  # bytes that fit into sockaddr_un everywhere


def socket_path(run: str, pid: int) -> str:
    """Where the supervisor with this pid is spoken to. The name stays valid where the real one would be too long."""
    folder = os.path.join(run, "supervisors")
    path = os.path.join(folder, f"{pid}.sock")
    if len(os.fsencode(path)) < _PATH_LIMIT or not sys.platform.startswith("linux"):
        return path
    return f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)}/{pid}.sock"


def worker_words(listen: list[int], **told: object) -> list[str]:
    """What stands behind the command of a worker: descriptors, and what ``dbproxy.app.worker.work`` is told."""
    return [f"--listen={','.join(map(str, listen))}", *(f"--{name}={value}" for name, value in told.items())]


def identity_of(pid: int) -> str:
    """As ``dbproxy.state.process_identity``: the start time, where /proc tells; "" elsewhere."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
        return stat[stat.rindex(b")") + 2 :].split()[19].decode()
    except (OSError, ValueError, IndexError):
        return ""


class _Worker:
    """One worker process, as far as we know it."""

    __slots__ = (
        "channel",
        "deadline",
        "degraded",
        "draining",
        "heard",
        "identity",
        "killed",
        "pid",
        "ready",
        "started",
    )

    def __init__(self, pid: int, channel: socket.socket, degraded: str, now: float) -> None:
        self.pid = pid
        self.identity = identity_of(pid)
        self.channel = channel
        self.degraded = degraded
        self.ready = False
        self.draining = False
        self.started = now
        self.heard = 0.0
        self.deadline = 0.0
        self.killed = ""

    def tell(self, what: bytes) -> None:
        try:
            self.channel.send(what)
        except OSError:
            pass

    def kill(self, why: str = "") -> None:
        """End it now; only ever called for a child that was not reaped, so the pid is its own."""
        self.killed = self.killed or why
        try:
            os.kill(self.pid, signal.SIGKILL)
        except OSError:
            pass


class _Peer:
    """Somebody at our socket in ``run/``: ``ping`` is answered with who we are; ``take`` with the same and the
    listening sockets, and then ``done`` makes us drain. Leaving without ``done`` changes nothing."""

    __slots__ = ("connection", "seen", "taking")

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.seen = b""
        self.taking = False


class Supervisor:
    """Runs one proxy from its plan; see ``dbproxy.proc.serve`` for what a plan holds."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._run = str(plan["run"])
        tuning = {**DEFAULTS, **plan.get("tuning", {})}
        self._hung, self._start = tuning["hung"], tuning["start"]
        self._limit, self._window, self._base_quiet = int(tuning["crashes"]), tuning["window"], tuning["quiet"]
        self._quiet = self._base_quiet
        self._listen: list[int] = list(plan["listen"])
        self._workers: list[_Worker] = []
        self._current: _Worker | None = None
        self._trial: _Worker | None = None
        self._degraded = ""
        self._calm_since = 0.0
        self._recovered = float("-inf")
        self._crashes: list[float] = []
        self._fast = 0
        self._refusals = 0
        self._spawn_at: float | None = 0.0
        self._last_end = ""
        self._was_ready = False
        self._announced = False
        self._stopping = False
        self._signalled = float("-inf")
        self._exit: int | None = None
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._peers: set[_Peer] = set()
        self._door: socket.socket | None = None
        self._door_path = ""
        self._woken, self._wakeup = socket.socketpair()

    def run(self) -> int:
        """Supervise until told to stop and the last worker has ended; the exit code."""
        for fd in (*self._listen, self._plan["config"], int(self._plan.get("takeover", -1))):
            if fd >= 0:
                os.set_inheritable(fd, False)
        self._catch_signals()
        self._open_door()
        self._adopt(time.monotonic())
        while self._exit is None:
            now = time.monotonic()
            timeout = self._pending(now)
            ready = self._poll.poll(timeout * 1000)
            late = time.monotonic() - now - timeout
            for fd, _ in ready:
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler()
            self._reap()
            self._watch(time.monotonic(), late)
        self._leave()
        return self._exit

    # ---- what wakes us

    def _catch_signals(self) -> None:
        for end in (self._woken, self._wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in (*SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        # Blocked since before the record was written: a signal that came meanwhile is for us, and comes now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._on_readable(self._woken, self._signals)

    def _on_readable(self, sock: socket.socket, handler: Callable[[], None]) -> None:
        self._handlers[sock.fileno()] = handler
        self._poll.register(sock.fileno(), select.POLLIN)

    def _forget_fd(self, sock: socket.socket) -> None:
        if self._handlers.pop(sock.fileno(), None) is not None:
            self._poll.unregister(sock.fileno())
        sock.close()

    def _signals(self) -> None:
        try:
            caught = self._woken.recv(4096)
        except OSError:
            return
        now = time.monotonic()
        for number in caught:
            if number == signal.SIGCHLD or now - self._signalled < _DEBOUNCE:
                continue
            self._signalled = now
            if self._stopping:
                self._end_now(now)
            else:
                self._drain(now)

    def _pending(self, now: float) -> float:
        """Seconds until something has to be looked at."""
        times = [now + 30.0]
        if self._spawn_at is not None:
            times.append(self._spawn_at)
        for worker in self._workers:
            times.append(worker.heard + self._hung if worker.heard else worker.started + self._start)
            if worker.deadline:
                times.append(worker.deadline)
        if self._degraded:
            times.append(self._calm_since + self._quiet)
        return min(30.0, max(0.01, min(times) - now))

    def _watch(self, now: float, late: float) -> None:
        """What time alone brings about."""
        for worker in self._workers:
            if late > _OVERSLEPT:
                worker.started = max(worker.started, now - 1.0)
                worker.heard = worker.heard and now
            if worker.deadline and now >= worker.deadline:
                worker.kill("did not end in time")
            elif worker.heard and now - worker.heard >= self._hung:
                worker.kill(f"its event loop stood still for {self._hung:.0f} s")
            elif not worker.ready and now - worker.started >= self._start:
                worker.kill(f"did not start within {self._start:.0f} s")
        if self._stopping:
            if not self._workers:
                self._exit = 0
            return
        if self._spawn_at is not None and now >= self._spawn_at:
            self._spawn_at = None
            self._current = self._spawn(self._degraded, now)
        serving = self._current is not None and self._current.ready
        if self._degraded and serving and self._trial is None and now >= self._calm_since + self._quiet:
            self._trial = self._spawn("", now)

    # ---- workers

    def _spawn(self, degraded: str, now: float) -> _Worker | None:
        """Start a worker; None (and another attempt a little later) where the system has no process left for us."""
        ours, theirs = socket.socketpair()
        words = worker_words(
            self._listen,
            config=self._plan["config"],
            control=theirs.fileno(),
            instance=self._plan["instance"],
            after=self._last_end,
            degraded=degraded,
        )
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a signal in between would reach our wake-up socket twice
        try:
            pid = os.fork()
            if pid == 0:
                self._become_worker([*self._plan["worker"], *words], theirs)
        except OSError as error:
            ours.close()
            self._last_end = f"no process for it: {error.strerror}"
            self._spawn_at = now + _MAX_BACKOFF
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            theirs.close()
        return self._care_for(pid, ours, degraded, now)

    def _adopt(self, now: float) -> None:
        """Take on the worker that was started before us, if there is one; see ``dbproxy.proc.firstborn``."""
        pid, channel = self._plan.get("firstborn") or (0, -1)
        if pid:
            os.set_inheritable(channel, False)
            self._current = self._care_for(pid, socket.socket(fileno=channel), "", now)
            self._spawn_at = None

    def _care_for(self, pid: int, ours: socket.socket, degraded: str, now: float) -> _Worker:
        ours.setblocking(False)
        worker = _Worker(pid, ours, degraded, now)
        self._on_readable(ours, lambda: self._heard(worker))
        self._workers.append(worker)
        self._note_processes()
        return worker

    def _become_worker(self, words: list[str], control: socket.socket) -> None:
        """In the child: never returns. Signals of the terminal are ours to pass on, so the worker starts deaf."""
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            for fd in (*self._listen, self._plan["config"], control.fileno()):
                os.set_inheritable(fd, True)
            os.execvp(words[0], words)
        finally:
            os._exit(127)

    def _heard(self, worker: _Worker) -> None:
        """A worker spoke, or hung up."""
        try:
            said = worker.channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self._forget_fd(worker.channel)
            return
        worker.heard = time.monotonic()
        if b"r" in said and not worker.ready:
            worker.ready = True
            self._ready(worker, worker.heard)

    def _ready(self, worker: _Worker, now: float) -> None:
        self._was_ready = True
        self._refusals = 0
        if worker is self._trial:
            self._trial = None
            if self._current is not None:
                self._let_drain(self._current, now)
            self._current = worker
            self._set_degraded("", now)
            # On probation: two crashes soon after are enough.
            self._crashes = [now] * max(0, self._limit - 2)
        if not self._announced:
            self._announced = True
            self._take_office()

    def _take_office(self) -> None:
        """The first worker accepts: from now on this proxy is the one, and its predecessor may go."""
        record = self._plan.get("record")
        if record is not None:
            _write(str(self._plan["record_path"]), record.encode())
        takeover = int(self._plan.get("takeover", -1))
        if takeover >= 0:
            with socket.socket(fileno=takeover) as predecessor:
                try:
                    predecessor.setblocking(True)
                    predecessor.settimeout(2.0)
                    predecessor.sendall(b"done\n")
                except OSError:
                    pass
            self._plan["takeover"] = -1
        try:
            os.write(2, str(self._plan["banner"]).encode())
        except OSError:
            pass

    def _reap(self) -> None:
        for worker in list(self._workers):
            try:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = worker.pid, 0
            if pid == worker.pid:
                self._workers.remove(worker)
                if worker.channel.fileno() >= 0:
                    self._forget_fd(worker.channel)
                self._ended(worker, os.waitstatus_to_exitcode(status), time.monotonic())
                self._note_processes()

    def _ended(self, worker: _Worker, code: int, now: float) -> None:
        if worker.draining or self._stopping:
            return
        self._last_end = worker.killed or (f"signal {-code}" if code < 0 else f"exit code {code}")
        if worker is self._trial:
            self._trial = None
            self._quiet = min(_MAX_QUIET, self._quiet * 2)
            self._calm_since = now
            return
        if worker is not self._current:
            return
        self._current = None
        self._crashes = [when for when in self._crashes if now - when < self._window] + [now]
        if worker.ready:
            self._refusals = 0
        elif code == 1 or self._degraded:
            self._refusals += 1
            if not self._was_ready and not self._plan.get("patient"):
                self._exit = 1  # it said why: nothing that another attempt would change
                return
        if self._degraded:
            self._calm_since = now
            if self._refusals >= _LOST_STARTS:
                self._exit = 1
                return
        elif len(self._crashes) >= self._limit or self._refusals >= _FAILED_STARTS:
            self._set_degraded(f"{len(self._crashes)} crashes within {self._window:.0f} s, last: {self._last_end}", now)
            self._refusals = 0
        self._fast = self._fast + 1 if now - worker.started < _FAST else 0
        self._spawn_at = now if self._fast <= 1 else now + min(_MAX_BACKOFF, 0.05 * 2.0**self._fast)

    def _set_degraded(self, reason: str, now: float) -> None:
        """Enter or leave the mode in which nothing of ours stands between an agent and its API."""
        mark = os.path.join(self._run, "degraded")
        if reason:
            # Soon after a recovery: the next one waits longer.
            recently = now - self._recovered < 10 * self._base_quiet
            self._quiet = min(_MAX_QUIET, self._quiet * 2) if recently else self._base_quiet
            _write(mark, f"{reason}\n".encode())
        else:
            _remove(mark)
            self._recovered = now
        self._degraded = reason
        self._calm_since = now

    # ---- stopping

    def _let_drain(self, worker: _Worker, now: float) -> None:
        if not worker.ready:
            worker.draining = True
            worker.kill()  # it has accepted nothing yet
        elif not worker.draining:
            worker.draining = True
            worker.deadline = now + float(self._plan["drain"]) + _LAST_WORDS
            worker.tell(b"q")

    def _drain(self, now: float) -> None:
        """Close the port and let what runs finish."""
        self._stopping = True
        for fd in self._listen:
            os.close(fd)
        self._listen = []
        self._close_door()
        for worker in self._workers:
            self._let_drain(worker, now)
        self._forget_record()
        self._note_processes()

    def _end_now(self, now: float) -> None:
        for worker in self._workers:
            worker.tell(b"k")
            worker.deadline = min(worker.deadline or now + _AT_ONCE, now + _AT_ONCE)

    def _leave(self) -> None:
        for worker in self._workers:
            worker.kill()
        if not self._stopping:
            self._close_door()
            self._forget_record()
        _remove(self._processes_path())

    def _forget_record(self) -> None:
        """Remove what speaks of us; a successor's record is left alone."""
        path = str(self._plan["record_path"])
        try:
            with open(path, "rb") as file:
                ours = json.load(file).get("instance") == self._plan["instance"]
        except (OSError, ValueError, AttributeError):
            return
        if ours:
            _remove(path)
            _remove(os.path.join(self._run, "degraded"))

    # ---- what others may know

    def _processes_path(self) -> str:
        return os.path.join(self._run, "supervisors", f"{os.getpid()}.json")

    def _note_processes(self) -> None:
        """Who belongs to us, for ``stop --force``: it must end a draining proxy, and no worker may be left over."""
        found = {
            "pid": os.getpid(),
            "identity": self._plan["identity"],
            "draining": self._stopping,
            "workers": [[worker.pid, worker.identity] for worker in self._workers],
        }
        _write(self._processes_path(), json.dumps(found).encode())

    def _open_door(self) -> None:
        try:
            self._door_path = socket_path(self._run, os.getpid())
            _remove(self._door_path)
            self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._door.bind(self._door_path)
            os.chmod(self._door_path, 0o600)
            self._door.listen(_MAX_PEERS)
            self._door.setblocking(False)
        except OSError:
            self._close_door()  # a successor closes the port and opens it again, as without us
            return
        self._on_readable(self._door, self._knocked)

    def _close_door(self) -> None:
        if self._door is not None:
            self._forget_fd(self._door)
            self._door = None
            _remove(self._door_path)
        for peer in list(self._peers):
            self._dismiss(peer)

    def _knocked(self) -> None:
        if self._door is None:
            return
        try:
            connection, _ = self._door.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self._peers) >= _MAX_PEERS:
            connection.close()
            return
        peer = _Peer(connection)
        self._peers.add(peer)
        self._on_readable(connection, lambda: self._asked(peer))

    def _dismiss(self, peer: _Peer) -> None:
        self._peers.discard(peer)
        self._forget_fd(peer.connection)

    def _asked(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(256)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(peer.seen) > 256:
            self._dismiss(peer)
            return
        peer.seen += data
        while b"\n" in peer.seen:
            word, _, peer.seen = peer.seen.partition(b"\n")
            try:
                if word == b"ping":
                    peer.connection.sendall(self._facts())
                elif word == b"take":
                    peer.taking = True
                    socket.send_fds(peer.connection, [self._facts()], self._listen)
                elif word == b"done" and peer.taking:
                    self._drain(time.monotonic())
                    return
            except OSError:
                self._dismiss(peer)
                return

    def _facts(self) -> bytes:
        facts = {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "instance": self._plan["instance"],
            "version": self._plan["version"],
            "ready": self._current is not None and self._current.ready,
            "degraded": self._degraded,
            "sockets": len(self._listen),
        }
        return json.dumps(facts).encode() + b"\n"


def _write(path: str, data: bytes) -> None:
    """Replace a small file of ours, 0600, whole or not at all. A full disk is no reason to stop."""
    fresh = f"{path}.{os.getpid()}"
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        os.replace(fresh, path)
    except OSError:
        _remove(fresh)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def main(words: list[str]) -> int:
    """``supervise FD``: the plan is JSON in the anonymous file with that descriptor."""
    fd = int(words[0])
    with open(fd, "rb") as file:
        file.seek(0)
        plan = json.load(file)
    return Supervisor(plan).run()
