"""Where dbproxy keeps its files, and how private ones are written.

Owns the layout of the data directory and the per-user places of each system. Imports only ``dbproxy.errors``.
Invariants: folders that we make are 0700 and files that we write 0600, whatever the umask says; a file is replaced
whole or not at all; ``run`` and ``ca`` are never used through a symbolic link or when another user owns them.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dbproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOVE = "Set DBPROXY_DATA_DIR to a folder that you can write to"


@dataclass(frozen=True, slots=True)
class Paths:
    """The layout below one data directory. Building it touches no disk."""

    data_dir: Path

    @property
    def ca(self) -> Path:
        """Folder of the interception root, its key and the bundles made from it."""
        return self.data_dir / "ca"

    @property
    def logs(self) -> Path:
        """Folder of the journal and its hourly predecessors."""
        return self.data_dir / "logs"

    @property
    def log_file(self) -> Path:
        """The journal that is written now: one JSON object a line."""
        return self.logs / "dbproxy.jsonl"

    @property
    def plugins(self) -> Path:
        """Folder of installed third-party plugins."""
        return self.data_dir / "plugins"

    @property
    def run(self) -> Path:
        """Folder of what only matters while the proxy runs."""
        return self.data_dir / "run"

    @property
    def control_token(self) -> Path:
        """File of the random control token, 0600."""
        return self.run / "control-token"

    @property
    def daemon_state(self) -> Path:
        """File in which the background proxy says who and where it is."""
        return self.run / "daemon.json"

    @property
    def scopes(self) -> Path:
        """Folder of launch scopes, one file each."""
        return self.run / "scopes"

    @property
    def status(self) -> Path:
        """Folder of the status lines, one file per client session."""
        return self.run / "status"

    @property
    def fingerprint_key(self) -> Path:
        """The key under which credentials are fingerprinted in records; random, never leaves this machine."""
        return self.data_dir / "fingerprint-key"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data_dir / "dbproxy.sqlite"

    def create(self) -> None:
        """Make the data directory and the folders that every command needs.

        Raises ConfigError naming DBPROXY_DATA_DIR where the home is read-only or the folder is not ours.
        """
        target = self.data_dir
        if target.is_symlink() and (sys.platform == "win32" or target.lstat().st_uid == os.geteuid()):
            target = target.resolve()  # the user moved it to another disk; below it no link is followed
        for folder in (target, self.ca, self.logs, self.plugins, self.run, self.scopes, self.status):
            make_private(folder)


def home(env: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The user's home as the environment names it; the password database where it does not."""
    named = env.get("USERPROFILE" if platform == "win32" else "HOME", "")
    if named and Path(named).is_absolute():
        return Path(named)
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError("your home folder cannot be found", hint="Set HOME, or DBPROXY_DATA_DIR") from error


def default_data_dir(env: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The per-user data folder: XDG_DATA_HOME, Application Support or LOCALAPPDATA, then ``dbproxy``."""
    if platform == "win32":
        return _absolute(env, "LOCALAPPDATA") or home(env, platform) / "AppData" / "Local" / "dbproxy"
    if platform == "darwin":
        return home(env, platform) / "Library" / "Application Support" / "dbproxy"
    return _absolute(env, "XDG_DATA_HOME") or home(env, platform) / ".local" / "share" / "dbproxy"


def user_config_dir(env: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The per-user configuration folder: XDG_CONFIG_HOME, Application Support or APPDATA, then ``dbproxy``."""
    if platform == "win32":
        return _absolute(env, "APPDATA") or home(env, platform) / "AppData" / "Roaming" / "dbproxy"
    if platform == "darwin":
        return home(env, platform) / "Library" / "Application Support" / "dbproxy"
    return _absolute(env, "XDG_CONFIG_HOME") or home(env, platform) / ".config" / "dbproxy"


def user_config_file(env: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The user's own configuration, ``config.toml``."""
    return user_config_dir(env, platform) / "config.toml"


def trust_file(env: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The record of project files that the user trusts."""
    return user_config_dir(env, platform) / "trusted.json"


def make_private(path: Path) -> Path:
    """Make the folder ``path`` (and its parents) and return it: mode 0700, ours, not a symbolic link.

    A folder of ours with wider rights is narrowed. The parents that had to be made are private too. Raises ConfigError.
    """
    try:
        if not path.parent.exists():
            make_private(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path}: {error.strerror or error}", hint=_MOVE) from error
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{path} is a symbolic link, not a folder of ours", hint=f"Remove it, or: {_MOVE}")
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path} is in the way: it is not a folder", hint=f"Move it away, or: {_MOVE}")
    if sys.platform == "win32":
        return path
    if found.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to another user (uid {found.st_uid})", hint=_MOVE)
    if stat.S_IMODE(found.st_mode) & 0o077 or stat.S_IMODE(found.st_mode) & 0o700 != 0o700:
        try:
            path.chmod(0o700)
        except OSError as error:
            raise ConfigError(f"cannot make {path} private: {error.strerror or error}", hint=_MOVE) from error
    return path


def write_private(path: Path, data: bytes | str, *, lasting: bool = True) -> None:
    """Put ``data`` (text as UTF-8) into the file ``path``, 0600, whole or not at all; its folder must exist.

    A reader sees the old content or the new, also after a crash. Not ``lasting``: after a crash of the whole system it
    may be empty, which costs no time now; for what speaks of processes, which are gone then. Raises ConfigError.
    """
    content = data.encode() if isinstance(data, str) else data
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        try:
            with open(os.open(fresh, flags, 0o600), "wb") as file:
                if sys.platform != "win32":
                    os.fchmod(file.fileno(), 0o600)  # a umask may only have taken rights away, even ours
                file.write(content)
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}", hint=_MOVE) from error


def _absolute(env: Mapping[str, str], name: str) -> Path | None:
    """The folder for us below what ``name`` says; the XDG specification tells to ignore relative values."""
    value = env.get(name, "")
    return Path(value) / "dbproxy" if value and Path(value).is_absolute() else None
