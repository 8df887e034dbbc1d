"""Which client sessions were seen, and the small files that a status line reads.

Owns ``run/status/SESSION``. A session is what the client calls one (``x-claude-code-session-id``); it is forgotten when
it was silent for the time to live. Invariants: nothing here waits for the disk on the path of a request; the names of
files come from the wire only after they were checked.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbproxy.paths import make_private, write_private

if TYPE_CHECKING:
    from pathlib import Path

    from dbproxy.exchange import Exchange

_HEADER = b"x-claude-code-session-id"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,63}\Z")
_MOST = 10_000


@dataclass(slots=True)
class Session:
    """One client session. Times are Unix time in seconds."""

    id: str
    scope: str | None
    first_seen: float
    last_seen: float
    requests: int = 0
    intercepted: bool = False
    written: str = ""


class Sessions:
    """The sessions of this process, and their files in ``folder``. ``ttl`` in seconds."""

    def __init__(self, folder: Path, ttl: float) -> None:
        self._folder = folder
        self._ttl = ttl
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[Session]:
        """The sessions known now, the latest first."""
        return sorted(self._sessions.values(), key=lambda session: -session.last_seen)

    def seen(self, exchange: Exchange) -> None:
        """Note the session of a request, if it names one."""
        raw = exchange.request.fields.get(_HEADER)
        if raw is None:
            return
        name = raw.decode("latin-1")
        now = time.time()
        session = self._sessions.get(name)
        if session is None:
            if not _NAME.match(name) or len(self._sessions) >= _MOST:
                return
            session = self._sessions[name] = Session(name, exchange.scope, now, now)
        session.last_seen = now
        session.requests += 1
        session.scope = exchange.scope or session.scope
        session.intercepted = True

    def reset(self, prefix: str | None = None) -> list[str]:
        """Forget every session, or those whose id begins with ``prefix``; their ids."""
        gone = [name for name in self._sessions if prefix is None or name.startswith(prefix)]
        for name in gone:
            del self._sessions[name]
        return gone

    def expire(self, now: float) -> None:
        """Forget sessions that were silent for longer than the time to live."""
        for session in [s for s in self._sessions.values() if now - s.last_seen > self._ttl]:
            del self._sessions[session.id]

    def write_status(self, passthrough: bool) -> None:
        """Write the files of sessions whose line changed, and remove those nobody needs. Blocks; run it in a thread.

        A line is ``ON PHASE``; the phase is ``RELAY`` in passthrough mode and ``IDLE`` otherwise.
        """
        sessions = list(self._sessions.values())
        make_private(self._folder)
        for session in sessions:
            line = "ON RELAY" if passthrough else "ON IDLE"
            if session.intercepted and session.written != line:
                write_private(self._folder / session.id, line + "\n")
                session.written = line
        horizon = time.time() - self._ttl
        for path in self._folder.iterdir():
            if path.name not in self._sessions and path.stat().st_mtime < horizon:
                path.unlink(missing_ok=True)
