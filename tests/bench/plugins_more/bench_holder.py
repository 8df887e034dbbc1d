"""Holds the body of a request that asks for it by its user agent, as a policy that reads bodies would."""

from __future__ import annotations

from dbproxy.api import Exchange, hookimpl


@hookimpl
def wants_body(exchange: Exchange) -> bool | None:
    return True
