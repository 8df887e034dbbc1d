"""Subagents on other models: rules say which of the agent's requests go where, and each agent stays where it began.

This file owns the hooks; every decision is a pure function in one of the modules beside it. Imports `dbproxy.api` only.
Invariants: a request that no rule can concern is not looked into, and none of the main line waits for anything; what
was decided for an agent holds for as long as it lives; whatever goes wrong leaves the request where the client sent it.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import trio

from dbproxy.api import DbproxyError, Declined, Route, Sample, Target, Via, hookimpl
from dbproxy.api.codecs import Unroutable, prompt_tokens, read_request
from dbproxy_subagent_routing.book import RuleBook, refusals
from dbproxy_subagent_routing.files import read_document, stamp_of, write_document
from dbproxy_subagent_routing.pins import Pin, Pins
from dbproxy_subagent_routing.recognition import (
    MAIN,
    Asked,
    Head,
    Role,
    asker_of,
    is_agents_turn,
    is_first,
    may_concern,
    name_is_open,
    read_asked,
)
from dbproxy_subagent_routing.replies import Alias, as_it_came, more_models, one_model, thread_refused, token_count
from dbproxy_subagent_routing.rules import Asker, Match, Step, match
from dbproxy_subagent_routing.targets import (
    auto_mode,
    by_own_model,
    meant,
    measure,
    objection,
    reasons,
    rule_of_file,
    unusable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import TypeVar

    from dbproxy.api import App, Exchange, Link, LocalResponse, RouteDecision, Service, Services
    from dbproxy_subagent_routing.pins import Place
    from dbproxy_subagent_routing.rules import RuleSet

    _T = TypeVar("_T")

NAME: Final = "subagent-routing"
MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"
MODELS: Final = "/v1/models"
#: How long a request of an agent waits for its place in the conversation, and for its name to become known (seconds):
#: the answer that started it may still be on its way through us.
LINK_SECONDS: Final = 1.0
NAME_SECONDS: Final = 1.5
_LOOK_EVERY: Final = 0.05
#: The least time for which a pin that nobody uses is kept (seconds).
_PIN_LIFE: Final = 86_400.0
_CHORES_EVERY: Final = 1.0
#: Bodies from this size on (bytes) are read in a thread.
_OFF_LOOP: Final = 160 * 1024
_MODELS_SECONDS: Final = 20.0
_MOST_LABELS: Final = 64
_GONE: Final = "its provider cannot be used any more"
_NO_RULE: Final = "no rule moves this conversation any more"
_AT_WORK: Final = "the agent was at work before this rule held"
_HOP_BY_HOP: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade"})


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided about a request, and what its body says."""

    decision: RouteDecision | None = None
    asked: Asked = field(default_factory=Asked)


class SubagentRouting:
    """The plugin. ``clock`` gives Unix seconds."""

    dbproxy_api = (1, 2)

    def __init__(self, clock: Any = time.time) -> None:
        self.clock = clock
        self.pins = Pins()
        self.counts: Counter[tuple[str, str]] = Counter()
        self._app: App
        self._services: Services
        self._book: RuleBook
        self._file: Path
        self._stamp: tuple[int, int] | None = None
        self._saving = trio.Lock()
        self._new = trio.Event()

    # ---- lifecycle

    @hookimpl
    async def startup(self, app: App) -> None:
        self._app = app
        if app.services is None:
            raise RuntimeError("the proxy offers no services")
        self._services = app.services
        self._book = RuleBook(app.emit, time.monotonic)
        self._file = app.data_dir / "plugin-data" / NAME / "pins.json"
        await self._load(_PIN_LIFE)

    @hookimpl
    def services(self, app: App) -> Iterable[Service]:
        return [("pins", self._upkeep)]

    @hookimpl
    async def shutdown(self, app: App) -> None:
        await self._save()

    async def _upkeep(self) -> None:
        """Keep new pins at once; say which rules are refused whenever that changes; forget what is not used."""
        while True:
            self._book.announce(self._rules(None), self._services.providers())
            with trio.move_on_after(_CHORES_EVERY):
                await self._new.wait()
            self._new = trio.Event()
            self.pins.expire(self.clock(), self._life())
            await self._save()

    async def _load(self, life: float) -> None:
        """Take over what was kept by the process before this one, or by one that is just being replaced."""
        self._stamp = await trio.to_thread.run_sync(stamp_of, self._file)
        if self._stamp is not None:
            self.pins.take(await trio.to_thread.run_sync(read_document, self._file), self.clock(), life)

    async def _save(self) -> None:
        async with self._saving:
            if not self.pins.changed:
                return
            await self._reload()
            self.pins.changed = False
            try:
                await trio.to_thread.run_sync(write_document, self._file, self.pins.to_json())
            except OSError as error:
                self._app.emit("route_not_kept", level="warning", reason=str(error))
            self._stamp = await trio.to_thread.run_sync(stamp_of, self._file)

    async def _reload(self) -> None:
        if await trio.to_thread.run_sync(stamp_of, self._file) != self._stamp:
            await self._load(self._life())

    def _life(self) -> float:
        found = self._services.settings(None).get("conversation_ttl_seconds")
        return max(_PIN_LIFE, found) if isinstance(found, int | float) else _PIN_LIFE

    # ---- what others may ask

    @hookimpl
    def health(self) -> Mapping[str, object]:
        rules, providers = self._rules(None), self._services.providers()
        refused = refusals(rules, providers)
        routed: Counter[str] = Counter()
        for (target, outcome), count in self.counts.items():
            routed[target if outcome == "routed" else outcome] += count
        return {
            "rules": [
                {"key": rule.key, "to": list(rule.targets), "refused": refused.get(str(rule), "")}
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
            yield Sample("dbproxy_routes_total", count, labels, help="Requests by what a rule made of them.")

    # ---- the request

    @hookimpl
    def wants_body(self, exchange: Exchange) -> bool | None:
        if exchange.path not in (MESSAGES, COUNT_TOKENS) or exchange.request.method != b"POST":
            return None
        return True if self._concerned(exchange) else None

    @hookimpl
    async def intercept_request(self, exchange: Exchange) -> LocalResponse | None:
        if exchange.path.startswith(MODELS) and exchange.request.method == b"GET":
            return await self._models(exchange)
        if exchange.body is None:
            return None
        if exchange.path == COUNT_TOKENS:
            return await self._count(exchange)
        if exchange.path != MESSAGES:
            return None
        made = await self._decided(exchange)
        # What came before stands on the client's own upstream alone, or will from the next turn on.
        return (
            thread_refused(made.decision.targets[0]) if isinstance(made.decision, Route) and made.asked.thread else None
        )

    @hookimpl
    async def route_request(self, exchange: Exchange) -> RouteDecision | None:
        if exchange.body is None or exchange.path != MESSAGES:
            return None
        decision = (await self._decided(exchange)).decision
        if decision is not None:
            self._tally(decision)
        return decision

    def _tally(self, decision: RouteDecision) -> None:
        target = str(decision.targets[0]) if isinstance(decision, Route) else ""
        key = target, "routed" if isinstance(decision, Route) else "declined"
        if key not in self.counts and len(self.counts) >= _MOST_LABELS:
            key = "other", key[1]
        self.counts[key] += 1

    def _rules(self, exchange: Exchange | None) -> RuleSet:
        return self._book.rules(self._services.settings(exchange).get("routes"))

    def _concerned(self, exchange: Exchange) -> bool:
        """May a rule concern this request, as far as its head tells?"""
        if exchange.passthrough or self._is_strange(exchange):
            return False
        head = Head.of(exchange.request.fields)
        if head.role is Role.UNKNOWN:
            pinned = self.pins.touches(head.session)
        else:
            # A side request of an agent does not go where the agent goes; that its tokens are counted does.
            pinned = self.pins.knows(head.place) and (head.role is not Role.SIDE or exchange.path == COUNT_TOKENS)
        return may_concern(
            self._rules(exchange),
            head,
            pinned=pinned,
            passed=self.pins.passed(head.place),
            able=self._able(),
        )

    def _able(self) -> bool:
        return self._book.able(self._services.providers)

    def _is_strange(self, exchange: Exchange) -> bool:
        """Does this request merely pass, on its way to a server that we were not asked to look into?"""
        known = self._services.settings(exchange).get("intercept")
        return exchange.via is Via.ABSOLUTE and isinstance(known, tuple) and exchange.host not in known

    # ---- the decision

    async def _decided(self, exchange: Exchange) -> Decided:
        """The decision about a request, made once."""
        known = exchange.attributes.get(NAME)
        if isinstance(known, Decided):
            return known
        made = Decided()
        if self._concerned(exchange):  # the body may be here for another plugin's sake
            body = await self._body(exchange)
            asked = read_asked(body) if body is not None else None
            if body is not None and asked is not None:
                made = Decided(await self._decide(exchange, body, asked), asked)
        exchange.attributes[NAME] = made
        return made

    async def _body(self, exchange: Exchange) -> bytes | None:
        held = self._services.request_body(exchange)
        return await held.read() if held is not None else None

    async def _decide(self, exchange: Exchange, body: bytes, asked: Asked) -> RouteDecision | None:
        head, rules = Head.of(exchange.request.fields), self._rules(exchange)
        if head.agent_id and head.role is not Role.SIDE:
            pin = await self._pin(head.place)
            if pin is not None:
                return self._follow(exchange, pin)
        link = await self._link(exchange, head, rules)
        asker, place = asker_of(link, head, asked.model), _place(link, head)
        pin = await self._pin(place)
        if pin is not None and not pin.trace:
            return self._follow(exchange, pin)
        if self.pins.passed(place):
            return None
        found = await self._match(exchange, rules, asker)
        if found is None:
            if asker.agent and place is not None:
                self.pins.pass_by(place)
            return Declined(_NO_RULE, foreign=True) if pin is not None else None
        begins = asked.begins or (link is not None and is_first(link))
        if asker.agent and not begins and found.rule.step is not Step.MODEL:  # the model asked for is what it was
            decision: RouteDecision = Declined(_AT_WORK, str(found.rule), foreign=True)
        else:
            decision = await self._checked(exchange, found, body)
        if place is not None and asker.agent:
            self._hold(place, decision)
        elif place is not None and asker.kind == MAIN and isinstance(decision, Route) and pin is None:
            self._keep(Pin(*place, trace=True, used=self.clock()))
        elif pin is not None and isinstance(decision, Declined):
            return replace(decision, foreign=True)
        return decision

    async def _pin(self, place: Place | None) -> Pin | None:
        pin = self.pins.get(place, self.clock())
        if pin is None and place is not None and place[1] != MAIN and not self.pins.passed(place):
            await self._reload()  # a worker that is being replaced may have made it a moment ago
            pin = self.pins.get(place, self.clock())
        return pin

    async def _link(self, exchange: Exchange, head: Head, rules: RuleSet) -> Link | None:
        """Its place in the conversation, where the head does not tell enough; with the agent's name, if it has one."""
        if head.role in (Role.MAIN, Role.COMPACTION) or (head.role is Role.SIDE and not rules.side):
            return None
        link = await self._services.link(exchange, LINK_SECONDS)
        # Only a rule by name, or the file of the agent of that name, is worth waiting for.
        named_until = trio.current_time() + NAME_SECONDS * (rules.by_name or self._able())
        while _awaits_name(link, head) and trio.current_time() < named_until:
            place = _place(link, head)
            if self.pins.passed(place) or self.pins.knows(place):
                break
            await trio.sleep(_LOOK_EVERY)
            link = await self._services.link(exchange, _LOOK_EVERY) or link
        return link

    async def _match(self, exchange: Exchange, rules: RuleSet, asker: Asker) -> Match | None:
        providers, rule = self._services.providers(), None
        if asker.agent and asker.name:
            file = await self._services.agent_file(exchange, asker.name)
            rule = rule_of_file(file, providers) if file is not None else None
        return match(rules.rules, asker, rule) or by_own_model(asker.model, providers)

    async def _checked(self, exchange: Exchange, found: Match, body: bytes) -> RouteDecision:
        """What becomes of a request that a rule fits: the targets that can take it, or why none can."""
        rule, providers = found.rule, self._services.providers()
        if rule.problem or rule.stays:
            return Declined(rule.problem or "the rule says so", str(rule))
        try:
            request = await self._off_loop(body, partial(read_request, body))
        except Unroutable as error:
            return Declined(str(error), str(rule))
        # A message thread is no obstacle: the client will be asked for the whole.
        request = replace(request, features=request.features - {"thread"})
        guarded = auto_mode(request)
        if guarded:
            return Declined(guarded, str(rule))
        able: list[Target] = []
        said: list[str] = []
        for text in rule.targets:
            one = meant(text, providers)
            reason, target = one.reason, one.target
            if not reason and target is not None:
                check = partial(objection, target, providers[target.provider], request, authorised=exchange.authorised)
                reason = await self._off_loop(body, check)
                if not reason:
                    able.append(target)
            said.append(reason)
        if not able:
            return Declined(reasons(said), str(rule))
        return Route(tuple(able), str(rule), found.reason, rule.fallback)

    async def _off_loop(self, body: bytes, work: Callable[[], _T]) -> _T:
        return work() if len(body) < _OFF_LOOP else await trio.to_thread.run_sync(work)

    # ---- pins

    def _hold(self, place: Place, decision: RouteDecision) -> None:
        """What was decided when an agent began holds from now on."""
        if isinstance(decision, Route):
            pin = Pin(*place, decision.targets, decision.rule, decision.reason, decision.fallback, used=self.clock())
        else:
            pin = Pin(*place, (), decision.rule, decision.reason, foreign=decision.foreign, used=self.clock())
        self._keep(pin)
        self._app.emit(
            "route_decided",
            conv_id=pin.conversation,
            thread=pin.thread,
            rule=pin.rule,
            target=", ".join(map(str, pin.targets)) or "stays",
            reason=pin.reason,
        )

    def _keep(self, pin: Pin) -> None:
        self.pins.put(pin)
        self._new.set()

    def _follow(self, exchange: Exchange, pin: Pin) -> RouteDecision:
        """What was decided about an agent, as far as it can still be done."""
        if not pin.targets:
            return Declined(pin.reason, pin.rule, foreign=pin.foreign)
        providers = self._services.providers()
        said = {target: unusable(target, providers, authorised=exchange.authorised) for target in pin.targets}
        able = tuple(target for target, reason in said.items() if not reason)
        if not able:
            return Declined(f"{_GONE}: {reasons(list(said.values()))}", pin.rule, foreign=True)
        return Route(able, pin.rule, pin.reason, pin.fallback)

    # ---- what is answered here

    async def _count(self, exchange: Exchange) -> LocalResponse | None:
        """Count the tokens of a request that another model would answer."""
        body = await self._body(exchange) if self._concerned(exchange) else None
        asked = read_asked(body) if body is not None else None
        if body is None or asked is None:
            return None
        head, providers = Head.of(exchange.request.fields), self._services.providers()
        pin = self.pins.get(head.place, self.clock()) if head.agent_id else None
        targets = pin.targets if pin is not None else ()
        if not targets:
            asker = Asker("count-tokens", model=asked.model)
            found = match(self._rules(exchange).rules, asker) or by_own_model(asked.model, providers)
            named = [meant(text, providers).target for text in found.rule.targets] if found is not None else []
            targets = tuple(one for one in named if one is not None)
        target = next((one for one in targets if not unusable(one, providers, authorised=True)), None)
        if target is None:
            return None
        try:
            tokens = await self._off_loop(body, lambda: prompt_tokens(read_request(body)))
        except Unroutable:
            return None
        able = providers[target.provider].capabilities(target.model)
        window = self._services.context_window(asked.model)
        variables = self._services.client_variables(exchange)
        return token_count(tokens, measure(exchange.request.fields, window, variables, able.context))

    async def _models(self, exchange: Exchange) -> LocalResponse | None:
        """The Models API, where rules give models names of their own."""
        rules = self._rules(exchange)
        if exchange.passthrough or not rules.aliases:
            return None
        aliases = self._aliases(rules)
        if exchange.path != MODELS:
            asked = unquote(exchange.path.removeprefix(f"{MODELS}/")).lower()
            return next((one_model(alias) for alias in aliases if alias.name.lower() == asked), None)
        head = replace(exchange.request, fields=exchange.request.fields.without(_HOP_BY_HOP))
        try:
            async with self._services.send(exchange, head, b"", purpose="models", deadline=_MODELS_SECONDS) as answer:
                status, fields, body = answer.head.status, answer.head.fields, await answer.body()
        except DbproxyError:
            return None  # on its own way the client will hear why
        query = head.target.partition(b"?")[2].decode("latin-1")
        return as_it_came(status, fields, (more_models(query, body, aliases) if status == 200 else None) or body)

    def _aliases(self, rules: RuleSet) -> list[Alias]:
        """Models that exist by a rule, of those that somebody can answer for."""
        providers, found = self._services.providers(), []
        for rule in rules.aliases:
            for text in rule.targets:
                one = meant(text, providers)
                if one.target is not None and not one.reason:
                    able = providers[one.target.provider].capabilities(one.target.model)
                    found.append(Alias(rule.key.partition(":")[2].strip(), one.target, able))
                    break
        return found


def _place(link: Link | None, head: Head) -> Place | None:
    """Conversation and thread; None for a side request, and where nobody knows."""
    if link is not None:
        return (link.conversation, link.thread) if link.thread else None
    return head.place if head.role is not Role.SIDE else None


def _awaits_name(link: Link | None, head: Head) -> bool:
    """Is this an agent's turn, and its name not known for sure?"""
    if link is None:
        return head.role is Role.AGENT and name_is_open(link, head)
    return is_agents_turn(link) and name_is_open(link, head)
