"""Requests that are answered here: tokens counted for another model, models that exist by a rule.

Owns which request that is; the answers are in ``replies``. Imports `dbproxy.api` only. Invariant: what no rule concerns
goes to the client's own upstream, and so does what fails here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from dbproxy.api import DbproxyError
from dbproxy_subagent_routing.deciding import off_loop
from dbproxy_subagent_routing.recognition import Head, read_asked
from dbproxy_subagent_routing.replies import Alias, as_it_came, more_models, one_model, token_count
from dbproxy_subagent_routing.rules import Asker, match
from dbproxy_subagent_routing.targets import by_own_model, is_foreign_name, meant, unusable

if TYPE_CHECKING:
    from dbproxy.api import Exchange, LocalResponse, Target
    from dbproxy_subagent_routing.deciding import Decider
    from dbproxy_subagent_routing.recognition import Asked
    from dbproxy_subagent_routing.rules import RuleSet

MODELS: Final = "/v1/models"
_MODELS_SECONDS: Final = 20.0
_HOP_BY_HOP: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade"})


async def count_tokens(decider: Decider, exchange: Exchange) -> LocalResponse | None:
    """Count the tokens of a request that another model would answer."""
    body = await decider.body(exchange) if decider.concerned(exchange, counts=True) else None
    asked = await off_loop(body, partial(read_asked, body)) if body is not None else None
    if body is None or asked is None:
        return None
    providers, services = decider.services.providers(), decider.services
    usable = (one for one in _answering(decider, exchange, asked) if not unusable(one, providers, authorised=True))
    target = next(usable, None)
    if target is None:
        return None
    from dbproxy.api.codecs import Unroutable, prompt_tokens, read_request, scale_of

    try:
        tokens = await off_loop(body, lambda: prompt_tokens(read_request(body)))
    except Unroutable:
        return None
    context = providers[target.provider].capabilities(target.model).context
    return token_count(tokens, scale_of(services.client_window(exchange, asked.model), context))


def _answering(decider: Decider, exchange: Exchange, asked: Asked) -> tuple[Target, ...]:
    """Who would answer: for an agent as it was decided, else by the rules over kinds and models."""
    head, providers = Head.of(exchange.request.fields), decider.services.providers()
    pin = decider.pins.peek(head.place) if head.agent_id else None
    if pin is not None:
        return pin.targets
    asker = Asker("count-tokens", model=asked.model)
    found = match(decider.rules(exchange).rules, asker) or by_own_model(asked.model, providers)
    named = [meant(text, providers).target for text in found.rule.targets] if found is not None else []
    return tuple(target for target in named if target is not None)


async def models(decider: Decider, exchange: Exchange) -> LocalResponse | None:
    """The Models API, where rules give models names of their own."""
    rules = decider.rules(exchange)
    if exchange.passthrough or not rules.aliases:
        return None
    aliases = _aliases(decider, rules)
    if exchange.path != MODELS:
        asked = unquote(exchange.path.removeprefix(f"{MODELS}/")).lower()
        return next((one_model(alias) for alias in aliases if alias.name.lower() == asked), None)
    head = replace(exchange.request, fields=exchange.request.fields.without(_HOP_BY_HOP))
    sending = decider.services.send(exchange, head, b"", purpose="models", deadline=_MODELS_SECONDS)
    try:
        async with sending as answer:
            status, fields, body = answer.head.status, answer.head.fields, await answer.body()
    except DbproxyError:
        return None  # on its own way the client will hear why
    query = head.target.partition(b"?")[2].decode("latin-1")
    return as_it_came(status, fields, (more_models(query, body, aliases) if status == 200 else None) or body)


def _aliases(decider: Decider, rules: RuleSet) -> list[Alias]:
    """Models that exist by a rule alone, of those that somebody can answer for."""
    providers, found = decider.services.providers(), []
    for rule in rules.aliases:
        name = rule.key.partition(":")[2].strip()
        if not is_foreign_name(name, decider.services.context_window(name)):
            continue
        for one in (meant(text, providers) for text in rule.targets):
            if one.target is not None and not one.reason:
                able = providers[one.target.provider].capabilities(one.target.model)
                found.append(Alias(name, one.target, able))
                break
    return found
