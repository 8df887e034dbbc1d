"""The database file as a file: made privately, kept from races at its opening, put aside when it is damaged.

Owns the file's permissions, the lock beside it and the names of what lies beside it. Imports base only; blocks, so it
is never called on the event loop. Invariants: a damaged file is renamed, never deleted or changed; what we make is
0600; only files that are ours are touched.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: SQLite keeps these beside the file; they belong to it and move with it.
COMPANIONS: Final = ("-wal", "-shm")


class Locked(OSError):
    """Another process opens or mends the file and did not finish in time."""


@contextlib.contextmanager
def opening(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock under which the file ``path`` is made, migrated and put aside. Raises Locked, OSError.

    The lock is a file beside it that stays; the system lets go of it when its holder dies.
    """
    descriptor = os.open(beside(path, ".lock"), os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        deadline = time.monotonic() + seconds
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise Locked(f"another process holds {path.name}.lock")
            _pause(0.02)
        yield
    finally:
        os.close(descriptor)


def beside(path: Path, suffix: str) -> Path:
    """``path`` with something behind its name."""
    return path.with_name(path.name + suffix)


def make(path: Path) -> None:
    """Make the file 0600 before SQLite does; one of ours that others may read is narrowed. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))
    if sys.platform == "win32":
        return
    for name in (path, *(beside(path, suffix) for suffix in COMPANIONS)):
        with contextlib.suppress(FileNotFoundError):
            found = name.stat()
            if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077:
                name.chmod(0o600)


def identity(path: Path) -> tuple[int, int] | None:
    """What tells one file from another that took its name; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def put_aside(path: Path, now: float) -> Path:
    """Rename a damaged file and its companions; returns its new name. Raises OSError. Call it under ``opening``."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
    target = beside(path, f".corrupt-{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = beside(path, f".corrupt-{stamp}-{number}")
    path.rename(target)
    for suffix in COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            beside(path, suffix).rename(beside(target, suffix))
    return target


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _pause(seconds: float) -> None:
    """Wait on a thread of the store's own."""
    import threading

    threading.Event().wait(seconds)
