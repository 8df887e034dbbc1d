"""What was used, put together from the database file: for `dbproxy usage` and for `/api/usage`.

Owns which questions are asked of a reader and the JSON form of the answer; what the figures mean is in
``dbproxy.model.usage_report``. Blocks while it reads; no clock, the present comes in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model.limits import LENGTHS, OVERALL
from dbproxy.model.usage_report import GROUPINGS, Shares, Total, Window, figures, shares, total, windows
from dbproxy.store.usage import charges, titles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.store.reader import Reader
    from dbproxy.store.rows import UsageRow

#: Rolling sums that are always given, in seconds. They are sums: the account's true windows are ``windows``.
ROLLING: Final = {"last 5 hours": 5 * 3600.0, "last 7 days": 7 * 86_400.0}
#: Windows whose use is split among sessions.
SHARED: Final = ("5h", "7d")
_MANY: Final = 100_000


@dataclass(frozen=True, slots=True)
class Report:
    """The whole answer. ``rolling`` by the names of ``ROLLING``; ``titles`` of the conversations among the rows."""

    now: float
    since: float | None
    until: float | None
    by: tuple[str, ...]
    windows: tuple[Window, ...]
    shares: tuple[Shares, ...]
    rolling: tuple[tuple[str, Total], ...]
    rows: tuple[UsageRow, ...]
    total: Total
    titles: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values. Times are Unix seconds, ``utilization`` and shares 0..1, cost in USD."""
        return {
            "now": self.now,
            "since": self.since,
            "until": self.until,
            "by": list(self.by),
            "windows": [asdict(window) for window in self.windows],
            "shares": [
                asdict(share) | {"sessions": [{"session": s, "utilization": part} for s, part in share.sessions]}
                for share in self.shares
            ],
            "rolling": [
                {"name": name, "since": self.now - ROLLING[name]} | figures(sums) for name, sums in self.rolling
            ],
            "rows": [self._row(row) for row in self.rows],
            "total": figures(self.total),
        }

    def _row(self, row: UsageRow) -> dict[str, Any]:
        keys: dict[str, Any] = dict(zip(self.by, row.keys, strict=True))
        named = next((self.titles[key] for key in keys.values() if key in self.titles), "")
        found = keys | figures(row) | {"first": row.first, "last": row.last}
        return found | ({"title": named} if named else {})


def usage(
    reader: Reader,
    *,
    now: float,
    by: Sequence[str] = ("day",),
    since: float | None = None,
    until: float | None = None,
    conversation: str | None = None,
    project: str | None = None,
    account: str | None = None,
    model: str | None = None,
    kind: str | Sequence[str] | None = None,
) -> Report:
    """What was used from ``since`` to ``until`` (Unix seconds), grouped; the windows as they stand at ``now``.

    The filters hold for rows and sums; ``account`` for the windows too. Raises ValueError for an unknown grouping,
    Unreadable when the file cannot be read.
    """
    unknown = [name for name in by if name not in GROUPINGS]
    if unknown:
        raise ValueError(f"unknown grouping {unknown[0]!r}; there are {', '.join(GROUPINGS)}")
    chosen: dict[str, Any] = {
        "conversation": conversation,
        "project": project,
        "account": account,
        "model": model,
        "kind": kind,
    }
    with reader.connection.snapshot():
        found = windows(reader.limits(account=account), now)
        rows = reader.usage_rows(by=by, since=since, until=until, limit=_MANY, **chosen)
        rolling = [
            (name, total(reader.usage_rows(since=now - seconds, until=now, **chosen)))
            for name, seconds in ROLLING.items()
        ]
        by_session = [name for name in by if name in ("session", "conversation")]
        named = {row.keys[by.index(by_session[0])] for row in rows} if by_session else set()
        return Report(
            now=now,
            since=since,
            until=until,
            by=tuple(by),
            windows=found,
            shares=_shares(reader, found) if by_session else (),
            rolling=tuple(rolling),
            rows=tuple(rows),
            total=total(rows),
            titles=titles(reader.connection, sorted(named)),
        )


def _shares(reader: Reader, found: Sequence[Window]) -> tuple[Shares, ...]:
    """Who used the running windows. A window that is over is nobody's any more."""
    made = []
    for window in found:
        if window.over or window.window not in SHARED or window.began is None:
            continue
        stated = reader.limit_history(window.account, window.window, since=window.began, limit=_MANY)
        share = shares(stated, charges(reader.connection, window.account, since=window.began))
        if share is not None:
            made.append(share)
    return tuple(made)


def shown_windows(found: Sequence[Window]) -> list[Window]:
    """Those that a person wants to see: with figures, or with a verdict worse than allowed."""
    return [
        window
        for window in found
        if (window.window != OVERALL or window.status not in ("", "allowed"))
        and (window.utilization is not None or window.quota or window.status not in ("", "allowed") or window.over)
        and not (window.over and window.window not in LENGTHS)
    ]
