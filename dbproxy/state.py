"""The record of the running daemon (``run/daemon.json``), and how to find out whether it is true.

Owns the file, the health probe that ignores every proxy variable, the identity of a process and the start lock.
Must never import trio, cryptography or configuration: the launcher stands on this path. Invariants: a record is
believed only when its process lives, is the same process, and the port answers as that process; everything else is
stale and may be overwritten.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from dbproxy import __version__
from dbproxy.errors import LaunchError
from dbproxy.paths import make_private, write_private

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MAX_HEALTH_BYTES = 1 << 20
_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DaemonState:
    """What a daemon says of itself once it listens.

    ``listen`` are the bound addresses as ``HOST:PORT`` (IPv6 in brackets), the first one being the one children use;
    ``settings`` are the process-wide settings as text, without secrets, for the launcher to compare with its own;
    ``started`` is Unix time in seconds; ``instance`` is random per process and repeated by ``GET /health``.
    """

    pid: int
    pid_identity: str
    instance: str
    listen: tuple[str, ...]
    version: str
    started: float
    executable: str
    data_dir: str
    intercept: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    dashboard: str = ""

    @classmethod
    def of_this_process(
        cls,
        *,
        listen: tuple[str, ...],
        data_dir: Path,
        intercept: tuple[str, ...] = (),
        settings: Mapping[str, str] = _EMPTY,
        dashboard: str = "",
        started: float | None = None,
    ) -> DaemonState:
        """The record of the calling process."""
        pid = os.getpid()
        return cls(
            pid=pid,
            pid_identity=process_identity(pid),
            instance=os.urandom(8).hex(),
            listen=listen,
            version=__version__,
            started=time.time() if started is None else started,
            executable=sys.executable,
            data_dir=str(data_dir),
            intercept=intercept,
            settings=settings,
            dashboard=dashboard,
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to; a wildcard listener is reached over loopback."""
        host, port = split_address(self.listen[0])
        return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host), port

    @property
    def url(self) -> str:
        """The base URL of the proxy's own port, e.g. ``http://127.0.0.1:8080``."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def save(self, path: Path) -> None:
        """Write the record atomically, 0600. Call it only after listening."""
        make_private(path.parent)
        write_private(path, self.to_json(), lasting=False)

    def to_json(self) -> str:
        """The record as it is kept on disk."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["settings"] = dict(self.settings)
        return json.dumps(values, indent=1, sort_keys=True)

    def forget(self, path: Path) -> None:
        """Remove the record if it is still this daemon's: a successor's is left alone."""
        current = load(path)
        if current is not None and current.instance == self.instance:
            with contextlib.suppress(OSError):
                path.unlink()


def load(path: Path) -> DaemonState | None:
    """The record on disk, or None when there is none, it is unreadable or it makes no sense. Never raises."""
    try:
        raw = json.loads(path.read_bytes())
        values = {item.name: raw[item.name] for item in fields(DaemonState) if item.name in raw}
        values["listen"] = tuple(str(item) for item in values["listen"])
        values["intercept"] = tuple(str(item) for item in values.get("intercept") or ())
        values["settings"] = {str(name): str(value) for name, value in (values.get("settings") or {}).items()}
        if not isinstance(values["pid"], int) or values["pid"] <= 0 or not isinstance(values["instance"], str):
            return None
        state = DaemonState(**values)
        if not 0 < state.address[1] < 65_536:
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None
    return state


@dataclass(frozen=True, slots=True)
class Health:
    """The answer of ``GET /health``, and how long it took in seconds."""

    status: str
    version: str
    body: Mapping[str, object]
    seconds: float


def probe(state: DaemonState, timeout: float) -> Health | None:
    """Ask the daemon of this record for its health; None unless it is that very process that answers.

    ``timeout`` bounds the whole exchange, in seconds. No proxy variable, no DNS and no library with opinions is
    involved (a health check through the user's own proxy would report a dead daemon). The answer must name
    our instance or our pid: another program on that port, or another user's daemon, is not ours.
    """
    if not is_alive(state.pid, state.pid_identity):
        return None
    started = time.monotonic()
    body = http_get(state.address, "/health", timeout=timeout)
    if body is None:
        return None
    try:
        raw = json.loads(body)
    except ValueError:
        return None
    if not isinstance(raw, dict) or "status" not in raw:
        return None
    named = [raw[name] == getattr(state, name) for name in ("instance", "pid") if name in raw]
    if not named or not all(named):
        return None
    return Health(str(raw["status"]), str(raw.get("version", "")), raw, time.monotonic() - started)


def http_get(
    address: tuple[str, int], path: str, *, timeout: float, headers: Mapping[str, str] = _EMPTY
) -> bytes | None:
    """Body of a 200 answer to a plain GET on our own port, or None. ``timeout`` bounds everything, in seconds."""
    deadline = time.monotonic() + timeout
    host, port = address
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n{extra}\r\n"
    received = bytearray()
    try:
        with socket.create_connection(address, timeout=timeout) as connection:
            connection.sendall(request.encode("latin-1"))
            while not _complete(received):
                left = deadline - time.monotonic()
                if left <= 0 or len(received) > _MAX_HEALTH_BYTES:
                    return None
                connection.settimeout(left)
                chunk = connection.recv(65_536)
                if not chunk:
                    break
                received += chunk
    except OSError:
        return None
    head, separator, body = bytes(received).partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split(b" ")
    if not separator or len(status) < 2 or not status[0].startswith(b"HTTP/1.") or status[1] != b"200":
        return None
    length = _content_length(head)
    return body if length is None else body[:length] if len(body) >= length else None


def _complete(received: bytearray) -> bool:
    head, separator, body = bytes(received).partition(b"\r\n\r\n")
    if not separator:
        return False
    length = _content_length(head)
    return length is not None and len(body) >= length


def _content_length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None


def split_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT`` apart. ValueError when there is no port."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit():
        raise ValueError(f"not HOST:PORT: {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def process_identity(pid: int) -> str:
    """Something that changes when the system reuses a pid: the start time of the process. "" when unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return stat[stat.rindex(b")") + 2 :].split()[19].decode()
    except (OSError, ValueError, IndexError):
        pass
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, AttributeError):
            import ctypes

            # struct proc_bsdinfo of <sys/proc_info.h>: 136 bytes, the last 16 are the start (s, µs).
            info = (ctypes.c_uint64 * 17)()
            libproc = ctypes.CDLL("/usr/lib/libproc.dylib")
            if libproc.proc_pidinfo(pid, 3, ctypes.c_uint64(0), ctypes.byref(info), 136) == 136:
                return f"{info[15]}.{info[16]}"
    return ""


def is_alive(pid: int, identity: str = "") -> bool:
    """True if this very process still runs: the pid exists, is no zombie, and its identity is the recorded one."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        return _is_alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    except OSError:
        return False
    if _is_zombie(pid):
        return False
    current = process_identity(pid)
    return not identity or not current or identity == current


if sys.platform == "win32":

    def _is_alive_on_windows(pid: int) -> bool:
        """``os.kill`` ends a process there, whatever the signal."""
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, pid)
        if not handle:
            return False
        try:
            code = ctypes.c_ulong()
            return bool(kernel.GetExitCodeProcess(handle, ctypes.byref(code))) and code.value == 259
        finally:
            kernel.CloseHandle(handle)


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return stat[stat.rindex(b")") + 2 :][:1] == b"Z"
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def start_lock(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock under which a daemon is started or stopped, so that concurrent launches make one.

    Waits up to ``timeout`` seconds, then raises LaunchError. The kernel frees it when its holder dies.
    """
    import fcntl

    make_private(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout
        pause = 0.01
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise LaunchError(
                        f"another dbproxy command has been starting or stopping the proxy for {timeout:.0f} s",
                        hint="Wait a moment and try again, or end that command",
                    ) from None
                pause_for(pause)
                pause = min(0.1, pause * 2)
        yield
    finally:
        os.close(handle)


def pause_for(seconds: float) -> None:
    """Wait in a command-line process. Never called where an event loop runs."""
    import select

    if sys.platform == "win32":
        import threading

        threading.Event().wait(seconds)
    else:
        select.select((), (), (), seconds)
