"""Asking a running supervisor who it is, and for its listening sockets.

Owns the asking side of ``run/supervisors/PID.sock``; the answering side is in ``supervisor``. Must never import trio.
Invariant: whoever takes the sockets and then fails has changed nothing; the predecessor serves until it hears ``done``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbproxy.errors import LaunchError
from dbproxy.proc.supervisor import PROTOCOL, socket_path
from dbproxy.state import is_alive, pause_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dbproxy.state import DaemonState

_MOST_SOCKETS = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """What a supervisor says of itself. ``ready``: a worker accepts right now; ``degraded``: why it is careful."""

    pid: int
    instance: str
    version: str
    ready: bool
    degraded: str


def ask(run: Path, state: DaemonState, timeout: float) -> Answer | None:
    """The supervisor of this record, if it answers within ``timeout`` seconds and can hand its sockets over."""
    try:
        with _knock(run, state.pid, timeout) as connection:
            connection.sendall(b"ping\n")
            return _answer(_line(connection, b""), state.instance)
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Taken:
    """Sockets of a predecessor. Say ``done`` on ``connection`` once they are served; close it to change nothing."""

    sockets: tuple[socket.socket, ...]
    connection: socket.socket


def take(run: Path, state: DaemonState, timeout: float) -> Taken:
    """Get the listening sockets of the supervisor of this record. Raises LaunchError."""
    connection: socket.socket | None = None
    fds: list[int] = []
    try:
        connection = _knock(run, state.pid, timeout)
        connection.sendall(b"take\n")
        data, fds, _, _ = socket.recv_fds(connection, 65_536, _MOST_SOCKETS)
        if _answer(_line(connection, data), state.instance) is None or not fds:
            raise ValueError
    except (OSError, ValueError) as error:
        for fd in fds:
            os.close(fd)
        if connection is not None:
            connection.close()
        raise LaunchError(
            f"the running proxy (pid {state.pid}) does not hand over its port", hint="`dbproxy stop`, then start anew"
        ) from error
    sockets = tuple(socket.socket(fileno=fd) for fd in fds)
    for sock in sockets:
        sock.setblocking(False)
    return Taken(sockets, connection)


@dataclass(frozen=True, slots=True)
class Family:
    """A supervisor and its workers, as pid and identity each."""

    supervisor: tuple[int, str]
    workers: tuple[tuple[int, str], ...]
    draining: bool
    file: Path


def families(run: Path) -> Iterator[Family]:
    """Every supervisor of this data directory that left a note, running or not."""
    for path in sorted((run / "supervisors").glob("*.json")):
        try:
            raw = json.loads(path.read_bytes())
            workers = tuple((int(pid), str(identity)) for pid, identity in raw["workers"])
            yield Family((int(raw["pid"]), str(raw["identity"])), workers, bool(raw["draining"]), path)
        except (OSError, ValueError, TypeError, KeyError):
            continue


def tidy(run: Path) -> None:
    """Remove the notes and sockets of supervisors that are gone."""
    for family in families(run):
        if not any(is_alive(pid, identity) for pid, identity in (family.supervisor, *family.workers)):
            for path in (family.file, family.file.with_suffix(".sock")):
                with contextlib.suppress(OSError):
                    path.unlink()


def wait_until_gone(members: Mapping[int, str], timeout: float) -> bool:
    """True once none of these processes runs any more."""
    deadline = time.monotonic() + timeout
    while any(is_alive(pid, identity) for pid, identity in members.items()):
        if time.monotonic() >= deadline:
            return False
        pause_for(0.02)
    return True


def _knock(run: Path, pid: int, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = socket_path(str(run), pid)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    finally:
        if path.startswith("/proc/self/fd/"):
            os.close(int(path.split("/")[4]))
    return connection


def _line(connection: socket.socket, seen: bytes) -> bytes:
    while b"\n" not in seen:
        data = connection.recv(65_536)
        if not data or len(seen) > 65_536:
            raise ValueError("hung up")
        seen += data
    return seen


def _answer(line: bytes, instance: str) -> Answer | None:
    raw = json.loads(line)
    if not isinstance(raw, dict) or raw.get("protocol") != PROTOCOL or raw.get("instance") != instance:
        return None
    return Answer(int(raw["pid"]), instance, str(raw["version"]), bool(raw["ready"]), str(raw["degraded"]))
