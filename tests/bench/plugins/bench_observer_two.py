"""An observer of every exchange."""

from __future__ import annotations

from dbproxy.api import Exchange, Outcome, hookimpl

outcomes: dict[Outcome | None, int] = {}


@hookimpl
def exchange_finished(exchange: Exchange) -> None:
    outcomes[exchange.outcome] = outcomes.get(exchange.outcome, 0) + 1
