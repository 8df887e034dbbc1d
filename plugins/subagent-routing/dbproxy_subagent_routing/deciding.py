"""The decision about one request: who asks is found out, the rules are asked, what is decided for an agent is held.

Owns the order of the steps; each is a pure function in a module beside this one. Imports `dbproxy.api` only.
Invariants: a request is decided once; nothing is waited for where the head alone says that no rule can concern it; an
agent that was decided for is not decided for again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from dbproxy.api import Declined, Route, Target, Via
from dbproxy.api.models import parse_target
from dbproxy_subagent_routing.pins import Pin
from dbproxy_subagent_routing.recognition import (
    COMPACTION,
    MAIN,
    Asked,
    Head,
    Role,
    asker_of,
    is_first,
    may_concern,
    place_of,
    read_asked,
)
from dbproxy_subagent_routing.rules import by_model, match
from dbproxy_subagent_routing.targets import (
    auto_mode,
    by_own_model,
    is_foreign_name,
    meant,
    objection,
    reasons,
    rule_of_file,
    too_long_to_sum_up,
    unusable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.api import Emit, Exchange, Link, RouteDecision, Services
    from dbproxy_subagent_routing.book import RuleBook, Standing
    from dbproxy_subagent_routing.keeping import Keeper
    from dbproxy_subagent_routing.pins import Place
    from dbproxy_subagent_routing.rules import Asker, Match, Rule, RuleSet

_T = TypeVar("_T")

NAME: Final = "subagent-routing"
#: How long a request of an agent waits for its place in the conversation, and its name with it (seconds).
LINK_SECONDS: Final = 1.5
#: Bodies from this size on (bytes) are read in a thread.
OFF_LOOP: Final = 160 * 1024
_MOST_SESSIONS: Final = 1024
_GONE: Final = "its provider cannot be used any more"
_NO_RULE: Final = "no rule moves this conversation any more"
_AT_WORK: Final = "the agent was at work before this rule held"


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided about a request, and what its body says. ``claude`` is the model to ask for in place of its own
    if it goes where the client sent it, "" for its own."""

    decision: RouteDecision | None = None
    asked: Asked = field(default_factory=Asked)
    claude: str = ""


@dataclass(frozen=True, slots=True)
class _Case:
    """A request, and what is known of it before anybody is asked."""

    exchange: Exchange
    body: bytes
    asked: Asked
    head: Head
    rules: RuleSet


async def off_loop(body: bytes, work: Callable[[], _T]) -> _T:
    """``work`` over a body: in a thread if that is a large one."""
    return work() if len(body) < OFF_LOOP else await trio.to_thread.run_sync(work)


class Decider:
    """Decides. ``clock`` gives Unix seconds."""

    def __init__(
        self, services: Services, book: RuleBook, keeper: Keeper, emit: Emit, clock: Callable[[], float]
    ) -> None:
        self.services = services
        self.book = book
        self.keeper = keeper
        self.pins = keeper.pins
        self._emit = emit
        self._clock = clock
        self._mains: OrderedDict[str, str] = OrderedDict()  # session: the model of its main line

    def rules(self, exchange: Exchange | None) -> RuleSet:
        """The rules that hold for an exchange; the user's for None."""
        return self.book.rules(self.services.settings(exchange).get("routes"), self.services.providers)

    def standing(self, exchange: Exchange) -> Standing:
        """Who can answer at all."""
        return self.book.standing(self.services.providers, self.services.settings(exchange).get("providers"))

    def concerned(self, exchange: Exchange, *, counts: bool = False) -> bool:
        """May a rule concern this request, as far as its head tells? ``counts``: it only counts tokens."""
        if exchange.passthrough or self._is_strange(exchange):
            return False
        head = Head.of(exchange.request.fields)
        if head.role is Role.UNKNOWN:
            pinned = self.pins.touches(head.session)
        elif head.role is Role.SIDE and not counts:
            # It does not go where the agent goes, but may name the agent's model to a server that has no such model.
            pin = self.pins.peek(head.place)
            pinned = pin is not None and bool(pin.model)
        else:
            pinned = self.pins.peek(head.place) is not None
        passed = self.pins.passed(head.place)
        return may_concern(self.rules(exchange), head, self.standing(exchange), pinned=pinned, passed=passed)

    def _is_strange(self, exchange: Exchange) -> bool:
        """Does this request merely pass, on its way to a server that we were not asked to look into?"""
        known = self.services.settings(exchange).get("intercept")
        return exchange.via is Via.ABSOLUTE and isinstance(known, tuple) and exchange.host not in known

    async def decided(self, exchange: Exchange) -> Decided:
        """The decision about a request, made once."""
        known = exchange.attributes.get(NAME)
        if isinstance(known, Decided):
            return known
        made = Decided()
        if self.concerned(exchange):  # the body may be here for another plugin's sake
            body = await self.body(exchange)
            asked = await off_loop(body, partial(read_asked, body)) if body is not None else None
            if body is not None and asked is not None:
                head = Head.of(exchange.request.fields)
                made = await self._decide(_Case(exchange, body, asked, head, self.rules(exchange)))
        exchange.attributes[NAME] = made
        return made

    async def body(self, exchange: Exchange) -> bytes | None:
        """The request's body, its coding undone."""
        held = self.services.request_body(exchange)
        return await held.read() if held is not None else None

    # ---- the steps

    async def _decide(self, case: _Case) -> Decided:
        head, asked = case.head, case.asked
        pin = await self.keeper.find(head.place) if head.agent_id else None
        foreign = pin.model if pin is not None else ""
        if head.role is Role.SIDE:
            pin = None  # what an agent does beside its turns does not go where it goes
        link = await self._link(case) if pin is None else None
        asker, place = asker_of(link, head, asked.model), place_of(link, head)
        if pin is None and place is not None and place[1] != MAIN and place != head.place:
            pin = await self.keeper.find(place)
        if pin is not None:
            decision: RouteDecision | None = await self._follow(case, pin, summary=asker.kind == COMPACTION)
            return self._made(case, decision, pin.model)
        if self.pins.passed(place):
            return Decided(None, asked)
        file = await self._file(case.exchange, asker)
        foreign = foreign or self._name_of_another(case, file)
        found = match(case.rules.rules, asker, file)
        if found is None and head.role is not Role.SIDE and (asker.agent or asker.kind in (MAIN, "")):
            found = by_own_model(asked.model, self.services.providers())
        begins = asked.begins or (link is not None and is_first(link))
        decision = await self._by_rule(case, found, asker, place, at_work=not begins and not foreign, model=foreign)
        return self._made(case, decision, foreign)

    async def _by_rule(
        self, case: _Case, found: Match | None, asker: Asker, place: Place | None, *, at_work: bool, model: str
    ) -> RouteDecision | None:
        """What the rules say, for a thread that was not decided for."""
        trace = self.pins.get(place, self._clock())
        if found is None:
            if asker.agent and place is not None:
                self.pins.pass_by(place)
            return Declined(_NO_RULE, foreign=True) if trace is not None else None
        if asker.agent and at_work:
            decision: RouteDecision = Declined(_AT_WORK, str(found.rule), foreign=True)
        else:
            decision = await self._checked(case, found)
        if place is not None and asker.agent:
            self._hold(place, decision, model)
        elif trace is None and place is not None and asker.kind == MAIN and isinstance(decision, Route):
            self.keeper.put(Pin(*place, trace=True, used=self._clock()))
        elif trace is not None and isinstance(decision, Declined):
            return replace(decision, foreign=True)
        return decision

    async def _link(self, case: _Case) -> Link | None:
        """Its place in the conversation, where the head does not tell enough; with the agent's name, if it has one."""
        head = case.head
        if head.role in (Role.MAIN, Role.COMPACTION) or (head.role is Role.SIDE and not case.rules.side):
            return None
        return await self.services.link(case.exchange, LINK_SECONDS)

    async def _file(self, exchange: Exchange, asker: Asker) -> Rule | None:
        """What the file of the agent that asks says about its model."""
        if not asker.agent or not asker.name:
            return None
        file = await self.services.agent_file(exchange, asker.name)
        return rule_of_file(file, self.services.providers()) if file is not None else None

    async def _checked(self, case: _Case, found: Match) -> RouteDecision:
        """What becomes of a request that a rule fits: the targets that can take it, or why none can."""
        rule, body = found.rule, case.body
        if rule.problem or rule.stays:
            return Declined(rule.problem or rule.note or "the rule says so", str(rule))
        if case.asked.guarded:
            return Declined(auto_mode(case.asked.guarded), str(rule))
        from dbproxy.api.codecs import Unroutable, read_request  # a start does without it

        try:
            request = await off_loop(body, partial(read_request, body))
        except Unroutable as error:
            return Declined(str(error), str(rule))
        # A message thread is no obstacle: the client will be asked for the whole.
        request = replace(request, features=request.features - {"thread"})
        providers = self.services.providers()
        able: list[Target] = []
        said: list[str] = []
        for one in (meant(text, providers) for text in rule.targets):
            reason = one.reason
            if not reason and one.target is not None:
                provider = providers[one.target.provider]
                check = partial(objection, one.target, provider, request, authorised=case.exchange.authorised)
                reason = await off_loop(body, check)
                if not reason:
                    able.append(one.target)
            said.append(reason)
        if not able:
            return Declined(reasons(said), str(rule))
        return Route(tuple(able), str(rule), found.reason, rule.fallback)

    # ---- agents that were decided for

    def _hold(self, place: Place, decision: RouteDecision, model: str) -> None:
        """What was decided when an agent began holds from now on."""
        pin = Pin(*place, rule=decision.rule, reason=decision.reason, model=model, used=self._clock())
        if isinstance(decision, Route):
            pin = replace(pin, targets=decision.targets, fallback=decision.fallback)
        else:
            pin = replace(pin, foreign=decision.foreign)
        self.keeper.put(pin)
        self._emit(
            "route_decided",
            conv_id=pin.conversation,
            thread=pin.thread,
            rule=pin.rule,
            target=", ".join(map(str, pin.targets)) or "stays",
            reason=pin.reason,
        )

    async def _follow(self, case: _Case, pin: Pin, *, summary: bool) -> RouteDecision:
        """What was decided about an agent, as far as it can still be done."""
        if not pin.targets:
            return Declined(pin.reason, pin.rule, foreign=pin.foreign)
        if case.asked.guarded:  # auto mode can be switched on at any time
            return Declined(auto_mode(case.asked.guarded), pin.rule, foreign=True)
        providers, authorised = self.services.providers(), case.exchange.authorised
        said = {target: unusable(target, providers, authorised=authorised) for target in pin.targets}
        able = tuple(target for target, reason in said.items() if not reason)
        if not able:
            return Declined(f"{_GONE}: {reasons(list(said.values()))}", pin.rule, foreign=True)
        if summary:
            # Its history lives there; but one that has outgrown the model cannot be summed up by it, either.
            able, reason = await self._that_sum_up(case, able)
            if not able:
                return Declined(reason, pin.rule, foreign=True)
        return Route(able, pin.rule, pin.reason, pin.fallback)

    async def _that_sum_up(self, case: _Case, targets: tuple[Target, ...]) -> tuple[tuple[Target, ...], str]:
        """Those of the targets that a history fits into, or why none."""
        from dbproxy.api.codecs import Unroutable, read_request

        providers, body, trigger = self.services.providers(), case.body, case.head.trigger

        def check() -> dict[Target, str]:
            request = read_request(body)
            return {one: too_long_to_sum_up(one, providers[one.provider], request, trigger) for one in targets}

        try:
            said = await off_loop(body, check)
        except Unroutable as error:
            return (), str(error)
        return tuple(one for one in targets if not said[one]), reasons(list(said.values()))

    # ---- names of models that the client's own upstream does not have

    def note_main(self, session: str, model: str) -> None:
        """The main line of a session was answered by this model of Claude's."""
        self._mains[session] = model
        self._mains.move_to_end(session)
        while len(self._mains) > _MOST_SESSIONS:
            self._mains.popitem(last=False)

    def _name_of_another(self, case: _Case, file: Rule | None) -> str:
        """The model that a request asks for, if only a rule, or a provider's name in it, gives it a meaning."""
        model = case.asked.model
        if not model or not is_foreign_name(model, self.services.context_window(model)):
            return ""
        if by_own_model(model, self.services.providers()) or (file is not None and file.targets == (model,)):
            return model
        rule = by_model(case.rules.rules, model)
        # A pattern that fits a name of Claude's says nothing about whether there is such a model.
        named = rule is not None and not (rule.is_glob and model.lower().startswith("claude"))
        return model if named else ""

    def _made(self, case: _Case, decision: RouteDecision | None, foreign: str) -> Decided:
        """A request for another's model that goes to Claude after all asks for the main line's model there: it would
        be told that there is no such model, and the agent would end (404)."""
        if not foreign or case.asked.model != foreign:
            return Decided(decision, case.asked)
        return Decided(decision, case.asked, self._mains.get(case.head.session) or parse_target("sonnet", ())[1])
