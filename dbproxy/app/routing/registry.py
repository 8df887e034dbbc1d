"""Who can answer in place of the client's own upstream: the providers that plugins named, and whether each is well.

Owns the registry, a circuit breaker for each provider, and what translated conversations remember (the vault). Must not
touch sockets; `routed.py` carries a route out. Invariants: a provider that fails again and again is left alone for a
while and then tried once; what a plugin's provider raises is a reason, never an error of ours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from dbproxy.hooks.metrics import Sample
from dbproxy.hooks.routing import ProviderLimits
from dbproxy.model.codecs.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dbproxy.hooks.dispatch import Dispatcher
    from dbproxy.hooks.routing import Provider
    from dbproxy.hooks.specs import App

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"
_STATES = {CLOSED: 0, OPEN: 1, HALF_OPEN: 2}


@dataclass(slots=True)
class Breaker:
    """A circuit breaker. ``until`` is the loop's time at which a provider that failed may be tried again."""

    failed: int = 0  # in a row
    until: float = 0.0
    trying: bool = False  # one request is out to see whether it is well again

    def state(self, now: float) -> str:
        """``closed`` (well), ``open`` (left alone) or ``half-open`` (to be tried once)."""
        if not self.until:
            return CLOSED
        return OPEN if now < self.until or self.trying else HALF_OPEN

    def allows(self, now: float) -> bool:
        """May a request go out? In the half-open state the first that asks is the one."""
        state = self.state(now)
        if state == HALF_OPEN:
            self.trying = True
        return state != OPEN

    def well(self) -> None:
        """A request was answered."""
        self.failed, self.until, self.trying = 0, 0.0, False

    def failure(self, now: float, limits: ProviderLimits) -> None:
        """A request failed by the provider's own fault."""
        self.failed += 1
        if self.failed >= limits.failures or self.trying:
            self.until = now + limits.cooldown
        self.trying = False

    def undecided(self) -> None:
        """A request ended without telling anything about the provider (the client went away)."""
        self.trying = False


@dataclass(slots=True)
class Known:
    """A registered provider and how it fares."""

    provider: Provider
    plugin: str
    breaker: Breaker = field(default_factory=Breaker)

    @property
    def limits(self) -> ProviderLimits:
        """Its limits, the usual ones where it has none."""
        found = getattr(self.provider, "limits", None)
        return found if isinstance(found, ProviderLimits) else ProviderLimits()


class Routing:
    """The providers of one proxy and the counts of what was routed."""

    def __init__(self, dispatch: Dispatcher) -> None:
        self._dispatch = dispatch
        self._known: dict[str, Known] = {}
        self.vault = Vault()
        self.outcomes: Counter[tuple[str, str]] = Counter()  # (target or "", outcome of the route)
        self.retries = 0

    async def collect(self, app: App) -> None:
        """Ask the plugins for their providers. One that stays keeps the state of its breaker."""
        found: dict[str, Known] = {}
        for plugin, providers in await self._dispatch.collect("providers", app=app):
            for provider in providers:
                before = self._known.get(provider.name)
                found[provider.name] = Known(provider, plugin, before.breaker if before is not None else Breaker())
        self._known = found

    def get(self, name: str) -> Known | None:
        """The provider of this name."""
        return self._known.get(name)

    def providers(self) -> Mapping[str, Provider]:
        """All of them, by name."""
        return {name: known.provider for name, known in self._known.items()}

    def samples(self) -> Iterable[Sample]:
        """For /metrics."""
        now = trio.current_time()
        for name, known in self._known.items():
            state = _STATES[known.breaker.state(now)]
            yield Sample(
                "dbproxy_provider_breaker_state",
                state,
                {"provider": name},
                kind="gauge",
                help="Circuit breaker of a provider: 0 closed, 1 open, 2 half-open.",
            )
        for (target, outcome), count in self.outcomes.items():
            yield Sample(
                "dbproxy_routed_requests_total",
                count,
                {"target": target, "outcome": outcome},
                help="Requests that a route was decided for, by what became of it.",
            )
        yield Sample("dbproxy_provider_retries_total", self.retries, help="Further tries at a provider.")
