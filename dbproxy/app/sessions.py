"""Which client sessions were seen, and the small files that a status line reads.

Owns ``run/status/SESSION``. A session is what the client calls one (``x-claude-code-session-id``); it is forgotten when
it was silent for the time to live. Invariants: nothing here waits for the disk on the path of a request; the names of
files come from the wire only after they were checked; the event loop, the analyst and the writing thread may call at
the same time.

The form of a file: ``ON PHASE TOKENS`` (``RELAY`` in passthrough mode, what a policy told, or ``IDLE``; tokens of the
context, 0 while not known), then lines of a name and values, of which a reader takes those that it knows:

- ``window TOKENS``: the model's context window;
- ``cost USD``: what the session has cost so far, six decimals; behind it ``+`` if some of it has no known price;
- ``5h PERCENT RESETS STATUS``, ``7d ...``: the account's windows as the last answer stated them; Unix seconds.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dbproxy.paths import make_private, write_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from dbproxy.exchange import Exchange
    from dbproxy.model.record import RateLimit

_HEADER = b"x-claude-code-session-id"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,63}\Z")
_MOST = 10_000
_PHASE = re.compile(r"[A-Za-z_]{1,40}\Z")
_WINDOWS = ("5h", "7d")


@dataclass(slots=True)
class Session:
    """One client session. Times are Unix time in seconds.

    ``context_tokens`` and ``window_tokens`` are those of its last main answer, 0 while not known; ``cost_usd`` is what
    this process saw, ``earlier_usd`` what one before it did; ``unpriced`` if some answers had no known price.
    """

    id: str
    scope: str | None
    first_seen: float
    last_seen: float
    requests: int = 0
    intercepted: bool = False
    context_tokens: int = 0
    window_tokens: int = 0
    cost_usd: float = 0.0
    earlier_usd: float = 0.0
    unpriced: bool = False
    limits: dict[str, RateLimit] = field(default_factory=dict)
    phase: str = "IDLE"
    facts: dict[str, object] = field(default_factory=dict)  # what plugins told, for pages
    written: str = ""

    def status(self, passthrough: bool) -> str:
        """The text of its file."""
        lines = [f"ON {'RELAY' if passthrough else self.phase} {self.context_tokens}"]
        if self.window_tokens:
            lines.append(f"window {self.window_tokens}")
        cost = self.cost_usd + self.earlier_usd
        if cost or self.unpriced:
            lines.append(f"cost {cost:.6f}{' +' if self.unpriced else ''}")
        for window in _WINDOWS:
            limit = self.limits.get(window)
            if limit is not None and limit.utilization >= 0:
                # Rounded down: 100 means full. The small part is what 0.29 * 100 lacks.
                percent = int(limit.utilization * 100 + 1e-6)
                lines.append(f"{window} {percent} {int(limit.resets)} {limit.status}".rstrip())
        return "\n".join(lines) + "\n"

    def resume(self, text: str) -> None:
        """Take over what a process before this one wrote, unless it is known better."""
        for number, line in enumerate(text.splitlines()):
            words = line.split()
            if number == 0:
                self.context_tokens = self.context_tokens or _whole(words[2:3])
            elif words[:1] == ["window"]:
                self.window_tokens = self.window_tokens or _whole(words[1:2])
            elif words[:1] == ["cost"]:
                found = re.fullmatch(r"\d{1,9}\.\d{6}", words[1]) if len(words) > 1 else None
                self.earlier_usd = float(found[0]) if found else 0.0
                self.unpriced = self.unpriced or words[2:] == ["+"]


def _whole(words: list[str]) -> int:
    return int(words[0]) if words and re.fullmatch(r"[0-9]{1,12}", words[0]) else 0


class Sessions:
    """The sessions of this process, and their files in ``folder``. ``ttl`` in seconds."""

    def __init__(self, folder: Path, ttl: float) -> None:
        self._folder = folder
        self._ttl = ttl
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()  # held for moments, never while waiting

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[Session]:
        """The sessions known now, the latest first."""
        return sorted(self._known(), key=lambda session: -session.last_seen)

    def seen(self, exchange: Exchange) -> None:
        """Note the session of a request, if it names one."""
        raw = exchange.request.fields.get(_HEADER)
        if raw is None:
            return
        session = self._get(raw.decode("latin-1"))
        if session is None:
            return
        session.requests += 1
        session.scope = exchange.scope or session.scope

    def linked(self, conversation: str, at: float) -> None:
        """Note a request's conversation, however it was found out (older clients send no session header)."""
        session = self._get(conversation)
        if session is not None:
            session.last_seen = max(session.last_seen, at)

    def tell(self, conversation: str, facts: Mapping[str, object]) -> None:
        """What a plugin has to say about a conversation: ``phase`` (a word) for the status line, the rest for pages."""
        session = self._get(conversation)
        if session is None:
            return
        phase = facts.get("phase")
        if isinstance(phase, str) and _PHASE.match(phase):
            session.phase = phase
        session.facts = {**session.facts, **facts}

    def note(
        self,
        session: str,
        *,
        context_tokens: int | None = None,
        window_tokens: int | None = None,
        cost_usd: float | None = None,
        limits: Iterable[RateLimit] = (),
    ) -> None:
        """What one answer of the session told; never waits. One thread alone may call this.

        ``context_tokens`` and ``window_tokens`` fill the status line: leave them out (None or 0) for agents and side
        requests. ``cost_usd`` is the cost of this answer, and is added; None with a context means that it has no known
        price. Of ``limits`` the last word on a window counts.
        """
        found = self._get(session)
        if found is None:
            return
        if context_tokens:
            found.context_tokens = context_tokens
            found.window_tokens = window_tokens or 0
            found.unpriced = found.unpriced or cost_usd is None
        found.cost_usd += cost_usd or 0.0
        given = {limit.window: limit for limit in limits if limit.window in _WINDOWS}
        if given:
            found.limits = found.limits | given

    def reset(self, prefix: str | None = None) -> list[str]:
        """Forget every session, or those whose id begins with ``prefix``; their ids."""
        with self._lock:
            gone = [name for name in self._sessions if prefix is None or name.startswith(prefix)]
            for name in gone:
                del self._sessions[name]
        return gone

    def expire(self, now: float) -> None:
        """Forget sessions that were silent for longer than the time to live."""
        with self._lock:
            for session in [s for s in self._sessions.values() if now - s.last_seen > self._ttl]:
                del self._sessions[session.id]

    def write_status(self, passthrough: bool) -> None:
        """Write the files of sessions whose text changed, and remove those nobody needs. Blocks; run it in a thread."""
        sessions = self._known()
        make_private(self._folder)
        for session in sessions:
            path = self._folder / session.id
            if not session.written and path.exists():
                session.resume(path.read_text("utf-8", "replace"))
            text = session.status(passthrough)
            if session.intercepted and session.written != text:
                write_private(path, text)
                session.written = text
        names = {session.id for session in sessions}
        horizon = time.time() - self._ttl
        for path in self._folder.iterdir():
            if path.name not in names and path.stat().st_mtime < horizon:
                path.unlink(missing_ok=True)

    def _known(self) -> list[Session]:
        with self._lock:
            return list(self._sessions.values())

    def _get(self, name: str) -> Session | None:
        """The session of that name, made if need be; None if it is no name for a file, or there are too many."""
        now = time.time()
        with self._lock:
            session = self._sessions.get(name)
            if session is None:
                if not _NAME.match(name) or len(self._sessions) >= _MOST:
                    return None
                session = self._sessions[name] = Session(name, None, now, now)
            session.last_seen = now
            session.intercepted = True
            return session
