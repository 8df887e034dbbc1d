"""Launch scopes: who started a client, and with which per-launch settings.

Owns the record that the launcher writes to ``run/scopes/ID.json`` and the daemon's look-up of it. The id and the secret
travel as user and password of ``HTTPS_PROXY``, which the real client sends on every CONNECT (client facts 1.3).
Must never import trio, sockets or configuration. Invariants: a scope file is complete or absent (atomic write, 0600);
a look-up never trusts a name from the wire as a path; secrets are compared in constant time and never in ``repr``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from dbproxy.paths import make_private, write_private

if TYPE_CHECKING:
    from pathlib import Path

_ID = re.compile(r"[A-Za-z0-9_-]{8,64}\Z")
GRACE_SECONDS = 86_400.0
"""How long a scope outlives its process by default: a background agent may go on after the client that started it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """One launch of a client.

    ``settings`` holds the per-launch settings as JSON values (``Config.launch_values``), ``project`` what the project
    file said then of those that are followed afterwards.
    ``client`` holds the client's own compaction variables as they were set.
    ``parent_proxy``, ``no_proxy`` and ``extra_ca`` are what the user had set for himself before we replaced them.
    ``root`` is the fingerprint of the interception root that the child was given. ``created`` is Unix time in seconds;
    ``pid`` with ``pid_identity`` names the process (a pid alone is reused by the system).
    """

    id: str
    secret: str = field(repr=False)
    cwd: str = ""
    pid: int = 0
    pid_identity: str = ""
    created: float = 0.0
    settings: Mapping[str, object] = field(default_factory=dict)
    project: Mapping[str, object] = field(default_factory=dict)
    client: Mapping[str, str] = field(default_factory=dict)
    parent_proxy: str | None = field(default=None, repr=False)
    no_proxy: str = ""
    extra_ca: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    root: str = ""

    @property
    def userinfo(self) -> str:
        """``id:secret`` as it stands in a proxy URL; both are URL-safe."""
        return f"{self.id}:{self.secret}"

    def to_json(self) -> bytes:
        """The record as it is kept on disk."""
        values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in _items(self)}
        return json.dumps(values, indent=1).encode()  # not sorted: rules have an order

    @classmethod
    def from_json(cls, data: bytes) -> Scope:
        """Read a record. Unknown keys (a newer version wrote them) are ignored; ValueError on anything malformed."""
        raw = json.loads(data)
        if not isinstance(raw, dict) or not isinstance(raw.get("id"), str) or not isinstance(raw.get("secret"), str):
            raise ValueError("not a launch scope")
        known = {item.name for item in fields(cls)}
        values = {name: value for name, value in raw.items() if name in known}
        values["extra_ca"] = tuple(str(item) for item in values.get("extra_ca") or ())
        for name in ("settings", "project", "client", "labels"):
            if not isinstance(values.get(name, {}), dict):
                raise ValueError(f"not a launch scope: {name}")
        return cls(**values)

    def save(self, folder: Path) -> Path:
        """Write the record below ``folder`` (0700), atomically, 0600. ConfigError when that is impossible."""
        make_private(folder)
        target = folder / f"{self.id}.json"
        write_private(target, self.to_json(), lasting=False)
        return target


def new_id() -> str:
    """A fresh scope id: URL-safe, unguessable enough to be unique, safe to show."""
    return "s-" + os.urandom(6).hex()


def new_secret() -> str:
    """A fresh secret of 192 bits, URL-safe."""
    from base64 import urlsafe_b64encode  # not from secrets, which every launch would load with half of hashlib

    return urlsafe_b64encode(os.urandom(24)).decode()


class Scopes:
    """The daemon's view of the folder of scopes. Sync and cheap: one ``stat`` for a scope that was seen before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache: dict[str, tuple[tuple[int, int, int], Scope]] = {}
        self._last_used: dict[str, float] = {}

    def lookup(self, user: str, password: str) -> Scope | None:
        """The scope that these proxy credentials name, or None. Never raises."""
        import hmac

        scope = self._read(user)
        if scope is None:
            hmac.compare_digest(password.encode("utf-8", "surrogatepass"), b"-" * 32)
            return None
        if not hmac.compare_digest(password.encode("utf-8", "surrogatepass"), scope.secret.encode()):
            return None
        self._last_used[user] = time.time()
        return scope

    def known(self, id: str) -> Scope | None:
        """The scope of this id, without proof that whoever asks may use it: only for traffic that was let in before."""
        return self._read(id)

    def all(self) -> Iterator[Scope]:
        """Every readable scope, newest last. For status pages and for the launcher's garbage collection."""
        found: list[Scope] = []
        with contextlib.suppress(OSError):
            for path in self._folder.glob("*.json"):
                scope = self._read(path.stem)
                if scope is not None:
                    found.append(scope)
        yield from sorted(found, key=lambda scope: (scope.created, scope.id))

    def collect_garbage(
        self, now: float, alive: Callable[[int, str], bool], *, grace: float = GRACE_SECONDS
    ) -> tuple[str, ...]:
        """Remove scopes whose process is gone and that were neither made nor used within ``grace`` seconds.

        ``alive(pid, identity)`` says whether that process still runs (``dbproxy.state.is_alive``). Returns the ids
        removed. Files that are no scope (broken, foreign) are removed when older than the grace, too.
        """
        removed: list[str] = []
        with contextlib.suppress(OSError):
            for path in list(self._folder.glob("*.json")):
                scope = self._read(path.stem)
                try:
                    latest = max(path.stat().st_mtime, self._last_used.get(path.stem, 0.0))
                except OSError:
                    continue
                if now - latest < grace or (scope is not None and alive(scope.pid, scope.pid_identity)):
                    continue
                for name in (path, *self._folder.glob(f"{path.stem}.*.pem")):
                    with contextlib.suppress(OSError):
                        name.unlink()
                self._cache.pop(path.stem, None)
                self._last_used.pop(path.stem, None)
                removed.append(path.stem)
        return tuple(removed)

    def _read(self, user: str) -> Scope | None:
        if not _ID.match(user):
            return None
        path = self._folder / f"{user}.json"
        try:
            stat = path.stat()
            version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            cached = self._cache.get(user)
            if cached is not None and cached[0] == version:
                return cached[1]
            scope = Scope.from_json(path.read_bytes())
        except (OSError, ValueError, TypeError):
            self._cache.pop(user, None)
            return None
        if scope.id != user or not scope.secret:
            return None
        self._cache[user] = (version, scope)
        return scope


def _items(scope: Scope) -> Iterator[tuple[str, object]]:
    for item in fields(scope):
        yield item.name, getattr(scope, item.name)
