"""The frozen executable's own housekeeping at start: a clean environment, its folder held, abandoned versions removed.

Owns what PyInstaller's loader leaves behind in a process, and the folders ``dbproxy-app/BUILD`` in which the one-file
executable and packaging/install.sh keep versions side by side. Must never import anything that a start would feel.
Invariants: from here on no child inherits a variable of the loader's; a version that any process runs from is never
removed, and neither is one that was started within a day; nothing here can fail a start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dbproxy.proc.env import without_pyinstaller

if TYPE_CHECKING:
    from collections.abc import MutableMapping

VERSIONS = "dbproxy-app"
"""The folder that holds one folder for each version, named like the build."""
MARK = "BUILD"
"""The file in a version's folder that holds its name; complete versions alone have it."""
UNPACKING = ".unpack-"
"""What the names of folders begin with that are being filled or removed."""
KEPT_SECONDS = 86_400.0
"""A version that was started within this time stays, even if no process runs from it now."""

_held: list[int] = []


def start(environ: MutableMapping[str, str] | None = None, folder: Path | None = None) -> None:
    """Call first in the frozen executable. ``folder`` is the version's own, by default the executable's."""
    clean(os.environ if environ is None else environ)
    own = Path(sys.executable).parent if folder is None else folder
    if hold(own):
        with contextlib.suppress(OSError):
            tidy(own)


def clean(environ: MutableMapping[str, str]) -> None:
    """Undo in place what the loader did to the environment.

    Its libraries are loaded by now, and the dynamic linker read its variables when the process began, so nothing here
    needs them any longer; every program that we start would.
    """
    wanted = without_pyinstaller(environ)
    for name in [name for name in environ if name not in wanted]:
        del environ[name]
    for name, value in wanted.items():
        if environ.get(name) != value:
            environ[name] = value


def hold(folder: Path) -> bool:
    """Keep ``folder`` from being tidied away while this process lives. True if abandoned versions should be looked for,
    which is once a day."""
    try:
        import fcntl

        handle = os.open(folder / MARK, os.O_RDONLY | os.O_CLOEXEC)
    except (ImportError, OSError):
        return False
    _held.append(handle)  # never closed: the lock goes with the process, or with exec
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    if folder.parent.name != VERSIONS:
        return False
    try:
        old = time.time() - os.fstat(handle).st_mtime > KEPT_SECONDS
        if old:
            os.utime(handle)
    except OSError:  # installed for all users: whoever installed it looks after it
        return False
    return old


def tidy(own: Path) -> list[str]:
    """Remove the versions beside ``own`` that nobody uses, and what a killed unpacking left; the names are returned."""
    horizon = time.time() - KEPT_SECONDS
    removed = []
    for entry in list(own.parent.iterdir()):
        if entry.name == own.name or entry.is_symlink() or not entry.is_dir():
            continue
        if entry.name.startswith(UNPACKING):
            if entry.stat().st_mtime < horizon:
                shutil.rmtree(entry, ignore_errors=True)
                removed.append(entry.name)
        elif _abandoned(entry, horizon):
            # Renamed first: a start in this very moment finds a whole version or none.
            away = entry.with_name(f"{UNPACKING}{entry.name}")
            try:
                entry.rename(away)
            except OSError:
                continue
            shutil.rmtree(away, ignore_errors=True)
            removed.append(entry.name)
    return removed


def _abandoned(folder: Path, horizon: float) -> bool:
    """A complete version of ours that was not started since ``horizon`` and that no process runs from."""
    import fcntl

    try:
        mark = folder / MARK
        if mark.read_text("ascii").strip() != folder.name or mark.stat().st_mtime > horizon:
            return False
        with mark.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ValueError):
        return False
    return True
