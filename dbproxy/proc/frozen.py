"""The frozen executable's own housekeeping at start: a clean environment, its folder held, abandoned versions removed.

Owns what PyInstaller's loader leaves behind in a process, and the folders ``dbproxy-app/BUILD`` in which the one-file
executable and packaging/install.sh keep versions side by side. Must never import more than ``os`` and the like, for it
comes before everything in every process, the supervisor included, which has to stay small.
Invariants: from here on no child inherits a variable of the loader's; a version that any process runs from is never
removed, and neither is one that was started within a day; nothing here can fail a start.
"""

from __future__ import annotations

import gc
import os
import sys
import time

TYPE_CHECKING = False  # not from typing: that import alone takes 9 ms of the supervisor's start
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from typing import Any

VERSIONS = "dbproxy-app"
"""The folder that holds one folder for each version, named like the build."""
MARK = "BUILD"
"""The file in a version's folder that holds its name; complete versions alone have it."""
UNPACKING = ".unpack-"
"""What the names of folders begin with that are being filled or removed."""
KEPT_SECONDS = 86_400.0
"""A version that was started within this time stays, even if no process runs from it now."""

_LOADER = ("_PYI_", "_MEIPASS", "PYINSTALLER_RESET_ENVIRONMENT")
_held: list[int] = []


_START_GARBAGE = 50_000
"""Objects between two collections while a process starts: what a start makes, it mostly keeps, and looking at it again
and again takes a tenth of the time. ``app.memory.settle`` sets the usual figure for who serves."""


def start() -> None:
    """Call first in the frozen executable."""
    gc.set_threshold(_START_GARBAGE)
    clean(os.environ)
    look_after(os.path.dirname(sys.executable))


_Module: Any = type(sys)


class _PutOff(_Module):  # type: ignore[misc]
    """A module that is loaded when the first name is looked up in it.

    Not ``importlib.util.LazyLoader``: a mere ``import`` of what that put off loads it, in Python 3.11.
    """

    def __getattr__(self, name: str) -> object:
        spec: Any = self.__spec__
        self.__class__ = _Module
        spec.loader.exec_module(self)
        return getattr(self, name)


def put_off(name: str) -> None:
    """Let ``import name`` load that module only when something of it is used.

    For ``inspect``, which ``dataclasses`` imports for what hardly any class needs: a tenth of a launcher's start.
    """
    from importlib.machinery import PathFinder

    spec = None if name in sys.modules else PathFinder.find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = _PutOff(name)
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    sys.modules[name] = module


def look_after(own: str) -> None:
    """Hold the version in the folder ``own``, and once a day remove those beside it that nobody uses."""
    if hold(own):
        try:
            tidy(own)
        except OSError:
            return


def without_pyinstaller(base: Mapping[str, str]) -> dict[str, str]:
    """``base`` without what a PyInstaller executable put there for itself.

    Its loader replaces the library path (keeping the old one in ``NAME_ORIG``) and passes private variables to child
    processes; a foreign program that inherits them may load our libraries or refuse to start (PyInstaller manual,
    "LD_LIBRARY_PATH considerations"). Without any of those variables there is nothing to undo: a library path is then
    the user's own.
    """
    if not any(name.startswith(_LOADER) for name in base):
        return dict(base)
    env = {name: value for name, value in base.items() if not name.startswith(_LOADER)}
    for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LIBPATH"):
        original = env.pop(f"{name}_ORIG", None)
        if original is not None:
            env[name] = original
        elif name in env:
            del env[name]
    return env


def after_loader(wanted: Mapping[str, str]) -> dict[str, str]:
    """What a process that is started in the environment ``wanted`` has once its loader and ``clean`` are through.

    What is meant for the loader has gone, and the library path is again as it stands there.
    """
    return {name: value for name, value in wanted.items() if not name.startswith(_LOADER)}


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


def hold(folder: str) -> bool:
    """Keep ``folder`` from being tidied away while this process lives. True if abandoned versions should be looked for,
    which is once a day."""
    try:
        import fcntl

        handle = os.open(os.path.join(folder, MARK), os.O_RDONLY | os.O_CLOEXEC)
    except (ImportError, OSError):
        return False
    _held.append(handle)  # never closed: the lock goes with the process, or with exec
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # a file system without locks: the day's grace has to do
        pass
    if os.path.basename(os.path.dirname(folder)) != VERSIONS:
        return False
    try:
        old = time.time() - os.fstat(handle).st_mtime > KEPT_SECONDS
        if old:
            os.utime(handle)
    except OSError:  # installed for all users: whoever installed it looks after it
        return False
    return old


def tidy(own: str) -> list[str]:
    """Remove the versions beside ``own`` that nobody uses, and what a killed unpacking left; the names are returned."""
    import shutil

    horizon = time.time() - KEPT_SECONDS
    parent, own_name = os.path.split(own)
    removed = []
    for name in sorted(os.listdir(parent)):
        folder = os.path.join(parent, name)
        if name == own_name or os.path.islink(folder) or not os.path.isdir(folder):
            continue
        if name.startswith(UNPACKING):
            if os.stat(folder).st_mtime < horizon:
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(name)
        elif _abandoned(folder, horizon):
            # Renamed first: a start in this very moment finds a whole version or none.
            away = os.path.join(parent, UNPACKING + name)
            try:
                os.rename(folder, away)
            except OSError:
                continue
            shutil.rmtree(away, ignore_errors=True)
            removed.append(name)
    return removed


def _abandoned(folder: str, horizon: float) -> bool:
    """A complete version of ours that was not started since ``horizon`` and that no process runs from."""
    import fcntl

    try:
        with open(os.path.join(folder, MARK), encoding="ascii") as mark:
            if mark.read().strip() != os.path.basename(folder) or os.fstat(mark.fileno()).st_mtime > horizon:
                return False
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ValueError):
        return False
    return True
