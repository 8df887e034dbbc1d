"""Subagents on other models: rules say which of the agent's requests go where, and each agent stays where it began.

This file owns the hooks; every decision is a pure function in one of the modules beside it. Imports `dbproxy.api` only.
Invariants: a request that no rule can concern is not looked into, and none of the main line waits for anything; what
was decided for an agent holds for as long as it lives; whatever goes wrong leaves the request where the client sent it.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import trio

from dbproxy.api import Link, Route, Sample, hookimpl
from dbproxy_subagent_routing.answering import MODELS, count_tokens, models
from dbproxy_subagent_routing.book import RuleBook, refusals
from dbproxy_subagent_routing.deciding import NAME, Decided, Decider
from dbproxy_subagent_routing.keeping import Keeper
from dbproxy_subagent_routing.naming import model_of_start, with_model
from dbproxy_subagent_routing.pins import Pins
from dbproxy_subagent_routing.recognition import MAIN, Head, Role
from dbproxy_subagent_routing.replies import thread_refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dbproxy.api import (
        App,
        Exchange,
        LocalResponse,
        RequestDraft,
        ResponseHead,
        RouteDecision,
        Service,
        SseEvent,
    )

MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"
#: The least time for which a pin that nobody uses is kept (seconds).
_PIN_LIFE: Final = 86_400.0
_CHORES_EVERY: Final = 1.0
#: The least time between two writings of the pins (seconds).
_BREATH: Final = 1.0
_MOST_LABELS: Final = 64
ROUTED, DECLINED = "routed", "declined"


class SubagentRouting:
    """The plugin. ``clock`` gives Unix seconds."""

    dbproxy_api = (1, 2)

    def __init__(self, clock: Any = time.time) -> None:
        self.clock = clock
        self.counts: Counter[tuple[str, str]] = Counter()
        self.pins = Pins()
        self.life = _PIN_LIFE
        self.keeper: Keeper
        self.decider: Decider

    # ---- lifecycle

    @hookimpl
    async def startup(self, app: App) -> None:
        if app.services is None:
            raise RuntimeError("the proxy offers no services")
        file = app.data_dir / "plugin-data" / NAME / "pins.json"
        self.keeper = Keeper(self.pins, file, app.emit, clock=self.clock, life=lambda: self.life)
        book = RuleBook(app.emit, time.monotonic)
        self.decider = Decider(app.services, book, self.keeper, app.emit, self.clock)
        await self.keeper.load()

    @hookimpl
    def services(self, app: App) -> Iterable[Service]:
        return [("pins", self._upkeep)]

    @hookimpl
    async def shutdown(self, app: App) -> None:
        await self.keeper.save()

    async def _upkeep(self) -> None:
        """Keep new pins at once; say which rules are refused whenever that changes; forget what is not used."""
        decider = self.decider
        while True:
            silent = decider.services.settings(None).get("conversation_ttl_seconds")
            self.life = max(_PIN_LIFE, silent) if isinstance(silent, int | float) else _PIN_LIFE
            decider.book.announce(decider.rules(None), decider.services.providers())
            self.pins.expire(self.clock(), self.life)
            await self.keeper.save()
            await trio.sleep(_BREATH)  # many agents that start at once are one writing
            await self.keeper.wait(_CHORES_EVERY)

    # ---- what others may ask

    @hookimpl
    def health(self) -> Mapping[str, object]:
        rules = self.decider.rules(None)
        refused = refusals(rules, self.decider.services.providers())
        routed: Counter[str] = Counter()
        for (target, outcome), count in self.counts.items():
            routed[target if outcome == ROUTED else outcome] += count
        return {
            "rules": [
                {
                    "key": rule.key,
                    "to": list(rule.targets),
                    "fallback": rule.fallback,
                    "refused": refused.get(str(rule), ""),
                }
                for rule in rules.rules
            ],
            "refused": refused,
            "pins": len(self.pins),
            "routed": dict(routed),
        }

    @hookimpl
    def metrics(self) -> Iterable[Sample]:
        for (target, outcome), count in self.counts.items():
            labels = {"target": target, "outcome": outcome}
            yield Sample("dbproxy_routes_total", count, labels, help="Requests by what the rules made of them.")

    # ---- the request

    @hookimpl
    def wants_body(self, exchange: Exchange) -> bool | None:
        if exchange.path not in (MESSAGES, COUNT_TOKENS) or exchange.request.method != b"POST":
            return None
        return True if self.decider.concerned(exchange, counts=exchange.path == COUNT_TOKENS) else None

    @hookimpl
    async def intercept_request(self, exchange: Exchange) -> LocalResponse | None:
        if exchange.path.startswith(MODELS) and exchange.request.method == b"GET":
            return await models(self.decider, exchange)
        if exchange.body is None:
            return None
        if exchange.path == COUNT_TOKENS:
            return await count_tokens(self.decider, exchange)
        if exchange.path != MESSAGES:
            return None
        made = await self.decider.decided(exchange)
        if isinstance(made.decision, Route) and made.asked.thread:
            return thread_refused(made.decision.targets[0])
        return None

    @hookimpl
    async def route_request(self, exchange: Exchange) -> RouteDecision | None:
        if exchange.body is None or exchange.path != MESSAGES:
            return None
        decision = (await self.decider.decided(exchange)).decision
        if decision is not None:
            self.tally(decision)
        return decision

    def tally(self, decision: RouteDecision) -> None:
        """Count a decision."""
        routed = isinstance(decision, Route)
        key = (str(decision.targets[0]), ROUTED) if isinstance(decision, Route) else ("", DECLINED)
        if routed and key not in self.counts and len(self.counts) >= _MOST_LABELS:
            key = "other", ROUTED
        self.counts[key] += 1

    @hookimpl
    async def transform_request(self, exchange: Exchange, request: RequestDraft) -> RequestDraft | None:
        """What goes to Claude after all asks for a model that Claude's server has.

        A body that a provider made for Claude's own server asks for another model already, and stays.
        """
        made = exchange.attributes.get(NAME)
        if not isinstance(made, Decided) or not made.claude or request.body is None:
            return None
        coded = request.head.fields.get(b"content-encoding") is not None and request.body == exchange.body
        body = await self.decider.body(exchange) if coded else request.body
        renamed = with_model(body, made.asked.model, made.claude) if body is not None else None
        return replace(request, body=renamed) if renamed is not None else None

    @hookimpl
    def stream_tap(self, exchange: Exchange, head: ResponseHead) -> MainTap | None:
        """Watch which model answers a main line, where its agents may come to need one."""
        if exchange.path != MESSAGES or head.status != 200 or exchange.passthrough or "route" in exchange.attributes:
            return None
        asked, link = Head.of(exchange.request.fields), exchange.attributes.get("link")
        main = asked.role is Role.MAIN or (isinstance(link, Link) and link.thread == MAIN)
        if not main or not asked.session:
            return None
        if not self.decider.rules(exchange) and not self.decider.standing(exchange).anybody:
            return None
        return MainTap(self.decider, asked.session)


class MainTap:
    """Takes the model's name from the beginning of an answer."""

    __slots__ = ("_decider", "_session")

    def __init__(self, decider: Decider, session: str) -> None:
        self._decider = decider
        self._session = session

    def event(self, event: SseEvent) -> None:
        """One event of the answer."""
        if event.name == b"message_start" and (model := model_of_start(event.data)):
            self._decider.note_main(self._session, model)
