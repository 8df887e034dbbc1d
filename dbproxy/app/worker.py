"""One worker of a supervised proxy: serves on sockets that it was given, and reports over a pipe.

Owns the heartbeat, draining on the supervisor's word, and going on alone when the supervisor is gone. The protocol is
described in ``dbproxy.proc.supervisor``. Invariants: signals of the terminal are the supervisor's to pass on as long as
it lives; without it they are ours, and ``run/daemon.json`` names us, so that stop, restart and upgrade still find us.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
from typing import TYPE_CHECKING

import trio

from dbproxy import __version__
from dbproxy.app.memory import settle
from dbproxy.app.run import CERTIFICATE_VARIABLES, open_proxy, raise_file_limit
from dbproxy.paths import Paths
from dbproxy.proc.serve import load_config
from dbproxy.proc.supervisor import BEAT
from dbproxy.state import load, process_identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbproxy.app.run import Running
    from dbproxy.config import Config

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def work(
    config_fd: int,
    listen_fds: Sequence[int],
    control_fd: int,
    env: Mapping[str, str],
    *,
    instance: str,
    after: str,
    degraded: str,
) -> int:
    """Serve until told to stop; the exit code.

    ``instance`` is that of the supervised proxy; ``after`` says how the worker ended that we replace ("" for none);
    ``degraded`` why we are to be careful. Raises DbproxyError when we cannot start.
    """
    for fd in (config_fd, *listen_fds, control_fd):
        os.set_inheritable(fd, False)
    config = load_config(config_fd)
    os.close(config_fd)
    sockets = [socket.socket(fileno=fd) for fd in listen_fds]
    control = socket.socket(fileno=control_fd)
    control.setblocking(False)
    worker = _Worker(config, sockets, control, instance=instance, after=after, degraded=degraded)
    worker.file_limit = raise_file_limit()
    worker.env = env
    worker.user_files = tuple(value for name in CERTIFICATE_VARIABLES if (value := env.get(name)))
    trio.run(worker.run, strict_exception_groups=True)
    return 0


class _Worker:
    """The tasks around one proxy."""

    def __init__(
        self,
        config: Config,
        sockets: list[socket.socket],
        control: socket.socket,
        *,
        instance: str,
        after: str,
        degraded: str,
    ) -> None:
        self.user_files: tuple[str, ...] = ()
        self.env: Mapping[str, str] | None = None
        self.file_limit = 0
        self._config = config
        self._sockets = sockets
        self._control = trio.socket.from_stdlib_socket(control)
        self._instance = instance
        self._after = after
        self._degraded = degraded
        self._stop = trio.Event()
        self._at_once = trio.CancelScope()
        self._running: Running | None = None
        self._orphan = False

    async def run(self) -> None:
        """Serve, beating and listening to the supervisor, until the last connection has ended."""
        with self._at_once:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat)
                nursery.start_soon(self._obey)
                await self._serve()
                nursery.cancel_scope.cancel()

    async def _serve(self) -> None:
        async with open_proxy(
            self._config,
            sockets=self._sockets,
            user_files=self.user_files,
            file_limit=self.file_limit,
            instance=self._instance,
            degraded=self._degraded,
            env=self.env,
        ) as running:
            self._running = running
            settle()
            if self._orphan:
                self._inherit()
            if self._after:
                running.proxy.journal.emit(
                    "worker_replaced", level="error", pid=os.getpid(), reason=self._after, version=__version__
                )
            await self._tell(b"r")
            await self._stop.wait()
            running.stop()

    async def _beat(self) -> None:
        while True:
            await self._tell(b"h")
            await trio.sleep(BEAT)

    async def _tell(self, what: bytes) -> None:
        """Say something if there is room: a supervisor that is stopped must not stop us."""
        with contextlib.suppress(OSError), trio.move_on_after(BEAT):
            await self._control.send(what)

    async def _obey(self) -> None:
        """Do as the supervisor says; when it is gone, take its place as far as we can."""
        while True:
            try:
                said = await self._control.recv(64)
            except OSError:
                said = b""
            if b"k" in said:
                self._at_once.cancel()
            if b"q" in said:
                self._stop.set()
            if not said:
                await self._alone()
                return

    async def _alone(self) -> None:
        """The supervisor died. Its record names a dead process: ours takes its place, and signals are for us."""
        self._orphan = True
        if self._running is None and not self._after:
            self._at_once.cancel()  # nobody counts on us yet: a start that was given up
            return
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            if not self._stop.is_set():
                self._inherit()
            async for _ in signals:
                if self._stop.is_set():
                    self._at_once.cancel()
                self._forget_record()
                self._stop.set()

    def _inherit(self) -> None:
        if self._running is None:
            return
        self._running.proxy.alone = True
        self._running.proxy.journal.emit("supervisor_lost", level="error", pid=os.getpid())
        path = Paths(self._config.settings.data_dir).daemon_state
        state = load(path)
        if state is not None and state.instance == self._instance:
            pid = os.getpid()
            with contextlib.suppress(Exception):
                dataclasses.replace(state, pid=pid, pid_identity=process_identity(pid)).save(path)

    def _forget_record(self) -> None:
        path = Paths(self._config.settings.data_dir).daemon_state
        state = load(path)
        if state is not None and state.pid == os.getpid():
            state.forget(path)
