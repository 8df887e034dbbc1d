"""Files whose routes and providers are followed while a proxy runs: what they say now, as often as they change.

Owns the look at the user's file and at the project files of running launches. Sync: call it in a thread, never on the
event loop. Imports ``dbproxy.paths`` and its own package. Invariants: a file that did not change costs a ``stat``; one
that is still being written is waited for; what is wrong with a file is said, and nothing of it counts then.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dbproxy.config.files import find_project_file
from dbproxy.config.load import project_says, user_says
from dbproxy.paths import home, trust_file

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dbproxy.config.tables import Section

_Stamp = tuple[int, int, int, int] | None
#: Many editors empty a file before they write it, and an empty file is a valid one. Seconds between two looks at it.
_SETTLES: Final = 0.03
_MOST_LOOKS: Final = 5


@dataclass(frozen=True, slots=True)
class News:
    """What changed: ``folder`` is the working directory of the launches that it concerns, "" for the user's own file.

    ``values`` are what the file says of each setting that is followed, {} without a file. With a ``problem`` they count
    for nothing: what held before goes on.
    """

    folder: str
    file: Path | None
    values: Mapping[str, Section]
    problem: str = ""


class FollowedFiles:
    """The files of one proxy. ``env`` is the environment in which references in them are understood."""

    def __init__(self, user_file: Path, env: Mapping[str, str]) -> None:
        self._user_file = user_file
        self._env = env
        self._home = home(env)
        self._trust = trust_file(env)
        self._seen: dict[str, object] = {}

    def look(self, folders: Collection[str]) -> list[News]:
        """What is new since the last look, the first time everything. ``folders`` are the launches' directories."""
        try:
            found = [self._user()]
            trust = _stamp(self._trust)
            found += [self._project(folder, trust) for folder in folders]
        except BaseException:
            self._seen.clear()  # what was read is lost: next time it is news again
            raise
        for gone in self._seen.keys() - {"", *folders}:
            del self._seen[gone]
        return [news for news in found if news is not None]

    def _user(self) -> News | None:
        if not self._is_new("", self._user_file, None):
            return None
        values, problem = user_says(self._user_file, self._env)
        return News("", self._user_file, values, problem)

    def _project(self, folder: str, trust: _Stamp) -> News | None:
        if not Path(folder).is_absolute():
            return None
        file = find_project_file(Path(folder), self._home)
        if not self._is_new(folder, file, trust):
            return None
        values, problem = project_says(Path(folder), self._env) if file is not None else ({}, "")
        return News(folder, file, values, problem)

    def _is_new(self, folder: str, file: Path | None, trust: _Stamp) -> bool:
        """Whether the file is another than at the last look; it is noted as it is before it is read."""
        if folder in self._seen and self._seen[folder] == (file, _stamp(file), trust):
            return False
        self._seen[folder] = file, _settled(file), trust
        return True


def _stamp(file: Path | None) -> _Stamp:
    if file is None:
        return None
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _settled(file: Path | None) -> _Stamp:
    """The file as it is when nobody has written it for a moment."""
    stamp = _stamp(file)
    for _ in range(_MOST_LOOKS):
        if stamp is None or abs(time.time() - stamp[0] / 1e9) > 2 * _SETTLES:
            break  # not there, or at rest
        time.sleep(_SETTLES)  # noqa: TID251 - in a thread
        before, stamp = stamp, _stamp(file)
        if stamp == before:
            break
    return stamp
