"""What `dbproxy usage` asks beyond ``Reader.usage_rows`` and ``Reader.limits``: charges within a window, titles.

Reads only, through a reader's connection. Invariant: nothing is worked out here; ``dbproxy.model.usage_report`` does
that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dbproxy.model.usage_report import Charge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.store.connection import Connection

#: An exchange that ended within a window may have begun so many seconds before it.
_LONGEST: Final = 86_400.0


def charges(connection: Connection, account: str, *, since: float) -> list[Charge]:
    """What the exchanges of an account that ended from ``since`` on (Unix seconds) cost, in the order of their ends."""
    # Ids begin with the milliseconds of their start, so that the primary key finds the time.
    first = f"{max(0, int((since - _LONGEST) * 1000)):012x}"
    rows = connection.rows(
        "SELECT id, conversation, finished, cost_usd FROM exchange"
        " WHERE id >= ? AND account = ? AND finished >= ? AND cost_usd > 0 ORDER BY finished, id",
        [first, account, since],
    )
    return [Charge(*row) for row in rows]


def titles(connection: Connection, conversations: Iterable[str]) -> dict[str, str]:
    """What conversations are called, for those that have a title."""
    found: dict[str, str] = {}
    for conversation in conversations:
        row = connection.row("SELECT title FROM conversation WHERE id = ?", [conversation])
        if row is not None and row[0]:
            found[conversation] = str(row[0])
    return found
