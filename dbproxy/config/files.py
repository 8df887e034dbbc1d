"""Files with settings: how one is read, where a project's lies, and which project files the user trusts.

Owns the trust record, the only file that it writes. Imports ``dbproxy.errors`` and ``dbproxy.paths`` only. Invariants:
a file is read only if it is a regular one of sane size; trust is in the content, so that it ends when that changes.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from dbproxy.errors import ConfigError
from dbproxy.paths import make_private, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PROJECT_FILE = "dbproxy.toml"
MAX_FILE_BYTES = 1024 * 1024


def find_project_file(cwd: Path, user_home: Path) -> Path | None:
    """The nearest ``dbproxy.toml`` from ``cwd`` upwards.

    The search ends at the root of a git work tree, and before the home and the root of the file system: files there
    would speak for everything below.
    """
    for folder in (cwd, *cwd.parents):
        if folder != cwd and (folder == user_home or folder.parent == folder):
            return None
        try:
            if (folder / PROJECT_FILE).is_file():
                return folder / PROJECT_FILE
            if (folder / ".git").exists():
                return None
        except OSError:
            return None
    return None


def read_file(file: Path) -> bytes:
    """The content of a regular file of sane size; OSError otherwise (a FIFO in a clone must not hang us)."""
    handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as stream:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "not a regular file")
        if found.st_size > MAX_FILE_BYTES:
            raise OSError(0, "larger than 1 MiB")
        return stream.read(MAX_FILE_BYTES)


def parse_toml(file: Path, content: bytes) -> dict[str, Any]:
    """The tree of a TOML file. Raises ConfigError with the line and what to do."""
    import tomllib

    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not UTF-8 text", hint="Save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}", hint="Mend that line, or rename the file") from None


def digest_of(content: bytes) -> str:
    """What a trust in this content is kept under."""
    import hashlib

    return hashlib.sha256(content).hexdigest()


def read_trusted(record: Path) -> dict[str, str]:
    """Trusted project files with their digests. A record that is missing or broken trusts nothing."""
    import json

    try:
        tree = json.loads(read_file(record))
    except (OSError, ValueError):
        return {}
    files = tree.get("files") if isinstance(tree, dict) else None
    return {name: value for name, value in files.items() if isinstance(value, str)} if isinstance(files, dict) else {}


def write_trusted(record: Path, known: Mapping[str, str]) -> None:
    """Keep the trusted project files with their digests. Raises ConfigError."""
    import json

    folder = record.parent.resolve()  # people keep their configuration elsewhere, behind a link
    make_private(folder)
    write_private(folder / record.name, json.dumps({"version": 1, "files": known}, indent=1, sort_keys=True) + "\n")
