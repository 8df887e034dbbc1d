"""Runs a command on an island: only loopback, own mounts and pids, the machine's homes out of sight. Linux only.

    python tests/realclient/isolate.py [--keep PATH]... -- COMMAND [ARGS...]

Nothing that runs there can reach a network, read a person's files or outlive the command: process 1 of the island is
this file, which reaps orphans and takes everything down with it when the command ends. Needs root or user namespaces,
and no program beside Python. Homes, /run and their sockets (name service caches, session buses) are hidden under empty
folders; --keep shows a path again at its place. Name service asks 127.0.0.1, where a test may answer (fakedns.py).
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1000, 0x4000, 0x40000, 0x2, 0x4, 0x8
PR_SET_PDEATHSIG = 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
RESOLV_CONF = Path("/etc/resolv.conf")

_libc = ctypes.CDLL(None, use_errno=True)


class NoIsland(Exception):
    """This machine does not let us make namespaces; says why."""


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise NoIsland(f"{what}: {os.strerror(ctypes.get_errno())}")


def _unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    result = _libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), None)
    _checked(result, f"mount {source} on {target}")


def leave_shore() -> None:
    """New namespaces for this process; the next fork is process 1 of the new pid namespace."""
    user, group = os.getuid(), os.getgid()
    if user != 0:
        _unshare(CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID)


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def hide(folders: list[Path], keep: list[Path]) -> None:
    """Empty folders over the given ones; what is kept below them shows again."""
    for folder in folders:
        inner = [path for path in keep if path.is_relative_to(folder) and path != folder]
        doors = {path: os.open(path, os.O_PATH) for path in inner}
        _mount("tmpfs", str(folder), "tmpfs", MS_NOSUID | MS_NODEV)
        for path, door in doors.items():
            if not path.exists():  # else it lies below another kept path
                path.mkdir(parents=True)
                _mount(f"/proc/self/fd/{door}", str(path), "", MS_BIND | MS_REC)
            os.close(door)


def own_resolv_conf() -> None:
    """Name service asks 127.0.0.1; without a file the resolver does so anyway. /run is ours alone by now."""
    target = RESOLV_CONF.resolve()
    if target.is_relative_to("/run"):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("nameserver 127.0.0.1\n")
    elif target.exists():
        content = Path("/run/island-resolv.conf")
        content.write_text("nameserver 127.0.0.1\n")
        _mount(str(content), str(target), "", MS_BIND)


def become_init(command: list[str]) -> int:
    """Process 1: starts the command, reaps whatever is orphaned, and ends with the command's exit code."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"isolate: {command[0]}: {error}", file=sys.stderr)
            os._exit(127)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status) % 256


def run(command: list[str], keep: list[Path]) -> int:
    """Runs the command on an island and returns its exit code; raises NoIsland before anything was started."""
    # Outer folders first: what lies below a kept one shows with it.
    keep = sorted({path.resolve() for path in keep if path.exists()})
    leave_shore()
    ready, tell = os.pipe()
    init = os.fork()
    if init == 0:
        os.close(ready)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            _mount("none", "/", "", MS_REC | MS_PRIVATE)
            _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
            raise_loopback()
            hide([path for path in (Path("/root"), Path("/home"), Path("/run")) if path.is_dir()], keep)
            own_resolv_conf()
            os.chdir("/")
        except (NoIsland, OSError) as error:
            os.write(tell, str(error).encode() or b"?")
            os._exit(1)
        os.close(tell)
        os._exit(become_init(command))
    os.close(tell)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(init, signal.SIGTERM))
    with os.fdopen(ready, "rb") as pipe:
        trouble = pipe.read().decode(errors="replace")
    _, status = os.waitpid(init, 0)
    if trouble:
        raise NoIsland(trouble)
    return os.waitstatus_to_exitcode(status) % 256


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keep", type=Path, action="append", default=[], help="show this path although it lies in a home"
    )
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        return run(options.command, options.keep)
    except NoIsland as error:
        print(
            f"isolate: no namespaces here ({error}). Run as root, or allow unprivileged user namespaces "
            "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0).",
            file=sys.stderr,
        )
        return 125


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
