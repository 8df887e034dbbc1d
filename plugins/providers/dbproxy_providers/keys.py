"""A provider's key: out of a variable or a file, never out of the settings, and never in a message.

Owns all that this plugin reads of the environment and of the disk. Invariants: a key is read when it is used, so that
a new one counts at once; a file is read again only when it changed; a text for a person names the place, never the
key.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

Environment: TypeAlias = Mapping[str, str]

_LONGEST: Final = 16 * 1024  # bytes of a key's file: some keys are tokens with claims inside
_KEY: Final = re.compile(r"[\x21-\x7e]+")
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+")
_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def environment() -> Environment:
    """The process's own variables, as they are when they are asked for."""
    return os.environ


@dataclass(frozen=True, slots=True)
class Found:
    """``key`` is "" where there is none; ``problem`` then says why it cannot be used, "" if none is set at all."""

    key: str = ""
    problem: str = ""


@dataclass(slots=True)
class KeyFile:
    """A file that holds a key, read again when it changes."""

    path: Path
    _seen: tuple[int, ...] = ()
    _found: Found = field(default_factory=Found)

    def read(self) -> Found:
        """The key in it."""
        try:
            facts = self.path.stat()
            seen = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_mode)
            if seen != self._seen:
                self._found = _judged(self._content(), f"the file {self.path}")
                self._seen = seen
        except OSError as error:
            self._seen = ()
            return Found("", f"the key's file {self.path} cannot be read: {error.strerror}")
        return self._found

    def _content(self) -> str | None:
        # Never waits, whatever it is: a pipe without a writer would hold the proxy.
        handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            content = file.read(_LONGEST + 1)
        return None if len(content) > _LONGEST else content.decode("utf-8", "replace").strip()

    def warning(self) -> str:
        """Why its place is a risk, "" if it is none."""
        try:
            mode = self.path.stat().st_mode
        except OSError:
            return ""
        if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
            return f"the key's file {self.path} can be read by others: chmod 600 {self.path}"
        return ""


def _judged(content: str | None, where: str) -> Found:
    if content is None:
        return Found("", f"{where} is no small regular file: put the key alone into one")
    if not content:
        return Found("", f"{where} is empty: put the key into it")
    if not _KEY.fullmatch(content):
        return Found("", f"{where} holds more than a key: put the key alone into it, on one line")
    return Found(content)


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where a key comes from: the variables that may hold it, the first that is set counts, or a file.

    ``chosen`` says that the user named the place, so that nothing else will do.
    """

    variables: tuple[str, ...] = ()
    file: KeyFile | None = None
    chosen: bool = False

    def read(self, env: Environment) -> Found:
        """The key, or why there is none."""
        if self.file is not None:
            return self.file.read()
        for name in self.variables:
            if value := env.get(name, "").strip():
                return _judged(value, f"the variable {name}")
        return Found("", f"the variable {_shown(self.variables[0])} is not set") if self.chosen else Found()


def _shown(name: str) -> str:
    """The name of a variable, unless it looks like a key that somebody wrote into its place."""
    return name if name.isupper() else "that key_env names"


def references(template: str) -> list[str]:
    """The variables that a header's value names as ``${NAME}``."""
    return _REFERENCE.findall(template)


def filled(template: str, env: Environment) -> tuple[str, tuple[str, ...], str]:
    """(the value with its variables filled in, what was secret in it, the problem or "")."""
    secrets = []
    for name in references(template):
        value = env.get(name, "").strip()
        if not value:
            return "", (), f"the variable {name} is not set"
        if not _PRINTABLE.fullmatch(value):
            return "", (), f"the variable {name} holds characters that no header may"
        secrets.append(value)
    return _REFERENCE.sub(lambda found: env[found[1]].strip(), template), tuple(secrets), ""
