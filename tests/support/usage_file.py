"""A database file with a few exchanges and limits, for tests of what reads usage. Rows are written as SQL."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from dbproxy.store import schema

if TYPE_CHECKING:
    from pathlib import Path

ACCOUNT = "acct-1"


class UsageFile:
    """Writes rows; ``path`` is the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(schema.TABLES)
        self._connection.execute(f"PRAGMA user_version = {schema.VERSION}")
        self._connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        self._count = 0

    def close(self) -> None:
        self._connection.close()

    def add(self, table: str, **values: Any) -> None:
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"INSERT OR REPLACE INTO {table}({names}) VALUES({marks})", tuple(values.values()))

    def exchange(self, started: float, conversation: str = "session-a", **values: Any) -> str:
        """One closed exchange of ten seconds; its id."""
        self._count += 1
        id = f"{int(started * 1000):012x}{self._count:06x}"
        base = {
            "id": id,
            "state": "closed",
            "started": started,
            "finished": started + 10,
            "method": "POST",
            "host": "api.anthropic.com",
            "path": "/v1/messages",
            "via": "tunnel",
            "account": ACCOUNT,
            "conversation": conversation,
            "thread": "main",
            "branch": 1,
            "kind": "main",
            "model": "claude-opus-5-5",
            "outcome": "ok",
            "status": 200,
        }
        self.add("exchange", **(base | values))
        return id

    def limit(self, at: float, window: str, utilization: float | None, resets: float | None, **values: Any) -> None:
        base = {"exchange": f"x{at}", "account": ACCOUNT, "status": "allowed", "quota": None, "remaining": None}
        self.add("rate_limit", at=at, window=window, utilization=utilization, resets=resets, **(base | values))

    def conversation(self, id: str, title: str) -> None:
        self.add("conversation", id=id, title=title, started=0.0, last=0.0)
