"""What was used, shaped for people and scripts: the account's windows, sums, and who ate a window.

Owns the meaning of these figures; takes rows as any store gives them, gives plain values. Knows no clock and does no
I/O. Invariants: a window's figures come from answers' headers alone, and once its end is past nothing is said about
the next one; sums of what passed through here are called sums, for the account may be used elsewhere too; a share of
a window is an estimate and is marked as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from dbproxy.model.limits import LENGTHS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: What usage can be grouped by. ``session`` is the client's word for a conversation.
GROUPINGS: Final = (
    "session",
    "conversation",
    "branch",
    "agent",
    "kind",
    "model",
    "provider",
    "account",
    "project",
    "day",
    "hour",
)
#: Snapshots whose ends differ by less belong to one window: the same end, rounded differently.
_SAME_END: Final = 60.0


class LimitSeen(Protocol):
    """A window of an account as one answer's headers gave it; None where they did not."""

    @property
    def exchange(self) -> str: ...
    @property
    def account(self) -> str: ...
    @property
    def at(self) -> float: ...
    @property
    def window(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def utilization(self) -> float | None: ...
    @property
    def resets(self) -> float | None: ...
    @property
    def quota(self) -> int | None: ...
    @property
    def remaining(self) -> int | None: ...


class Sums(Protocol):
    """Sums over some exchanges; ``cost_usd`` of those that have a price, None if none has."""

    @property
    def exchanges(self) -> int: ...
    @property
    def errors(self) -> int: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def cache_read(self) -> int: ...
    @property
    def cache_write_5m(self) -> int: ...
    @property
    def cache_write_1h(self) -> int: ...
    @property
    def web_searches(self) -> int: ...
    @property
    def cost_usd(self) -> float | None: ...
    @property
    def unpriced(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Window:
    """The last word on one window of an account. Times are Unix seconds; ``seen`` is when it was said.

    ``over`` is True when its end is past: then ``utilization`` and ``remaining`` are None, for nobody has said
    anything about the window that runs now. ``began`` only where the window's length is known.
    """

    account: str
    window: str
    status: str
    utilization: float | None
    resets: float | None
    began: float | None
    quota: int | None
    remaining: int | None
    seen: float
    over: bool


def windows(seen: Iterable[LimitSeen], now: float) -> tuple[Window, ...]:
    """The latest statement on each window of each account, by account and name; ``unified`` stands first."""
    latest: dict[tuple[str, str], LimitSeen] = {}
    for limit in seen:
        known = latest.get((limit.account, limit.window))
        if known is None or limit.at >= known.at:
            latest[limit.account, limit.window] = limit
    order = sorted(latest.items(), key=lambda item: (item[0][0], item[0][1] != "unified", item[0][1]))
    return tuple(_window(limit, now) for _, limit in order)


def _window(limit: LimitSeen, now: float) -> Window:
    resets = limit.resets or None
    over = resets is not None and resets <= now
    length = LENGTHS.get(limit.window)
    return Window(
        account=limit.account,
        window=limit.window,
        status="" if over else limit.status,
        utilization=None if over or limit.utilization is None or limit.utilization < 0 else limit.utilization,
        resets=resets,
        began=resets - length if resets is not None and length is not None else None,
        quota=limit.quota or None,
        remaining=None if over or not limit.quota else limit.remaining,
        seen=limit.at,
        over=over,
    )


@dataclass(frozen=True, slots=True)
class Charge:
    """What one exchange used: ``weight`` is its cost in USD (0 where that is not known)."""

    exchange: str
    session: str
    finished: float
    weight: float


@dataclass(frozen=True, slots=True)
class Shares:
    """An estimate of who used what part of a window: fractions of the whole window, 0..1.

    ``before`` is what the first statement on this window already contained; ``elsewhere`` is what rose while nothing
    of ours was finished (another machine, or an answer whose price is not known).
    """

    account: str
    window: str
    resets: float
    sessions: tuple[tuple[str, float], ...]  # the largest first
    before: float
    elsewhere: float
    estimate: bool = True


def shares(seen: Sequence[LimitSeen], charges: Iterable[Charge]) -> Shares | None:
    """Who used the window that ran last; ``seen`` are statements on one window of one account.

    Between two statements that differ, the rise is split among the exchanges that were finished in between, by cost.
    An answer's headers are made before the answer: its own cost belongs to the next rise. None without a window.
    """
    stated = sorted(
        (limit for limit in seen if limit.resets and limit.utilization is not None and limit.utilization >= 0),
        key=lambda limit: limit.at,
    )
    if not stated:
        return None
    end = stated[-1].resets or 0.0
    stated = [limit for limit in stated if abs((limit.resets or 0.0) - end) < _SAME_END]
    queue = sorted(charges, key=lambda charge: charge.finished, reverse=True)
    level = before = stated[0].utilization or 0.0
    found: dict[str, float] = {}
    elsewhere, since = 0.0, dict[str, float]()
    held: list[Charge] = []
    for number, limit in enumerate(stated):
        done, held = held, []
        while queue and queue[-1].finished <= limit.at:
            done.append(queue.pop())
        for charge in done:
            if charge.exchange == limit.exchange:
                held.append(charge)
            elif number:  # what was finished before the first statement is part of ``before``
                since[charge.session] = since.get(charge.session, 0.0) + charge.weight
        rise = (limit.utilization or 0.0) - level
        if rise <= 0:  # answers of parallel requests may come out of order
            continue
        level += rise
        total = sum(since.values())
        if total > 0:
            for session, weight in since.items():
                found[session] = found.get(session, 0.0) + rise * weight / total
        else:
            elsewhere += rise
        since.clear()
    largest = sorted(((s, part) for s, part in found.items() if part > 0), key=lambda item: (-item[1], item[0]))
    return Shares(stated[-1].account, stated[-1].window, end, tuple(largest), before, elsewhere)


@dataclass(frozen=True, slots=True)
class Total:
    """Sums of sums."""

    exchanges: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    web_searches: int = 0
    cost_usd: float | None = None
    unpriced: int = 0


_FIGURES: Final = tuple(Total.__slots__)


def total(rows: Iterable[Sums]) -> Total:
    """All rows together."""
    sums: dict[str, Any] = dict.fromkeys(_FIGURES, 0) | {"cost_usd": None}
    for row in rows:
        for name in _FIGURES:
            value = getattr(row, name)
            if value is not None:
                sums[name] = (sums[name] or 0) + value
    return Total(**sums)


def figures(row: Sums) -> dict[str, Any]:
    """A row's sums as JSON values, with the tokens of the prompt added up."""
    found: dict[str, Any] = {name: getattr(row, name) for name in _FIGURES}
    found["prompt_tokens"] = row.input_tokens + row.cache_read + row.cache_write_5m + row.cache_write_1h
    return found
