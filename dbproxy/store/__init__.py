"""The SQLite file: content-addressed messages, facts about exchanges, search. Never on the event loop, never waited for
by a request. Imports base, wire and model only.
"""

from __future__ import annotations

from dbproxy.store.writer import Counts, Store

__all__ = ["Counts", "Store"]
