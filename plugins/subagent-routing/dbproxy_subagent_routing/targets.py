"""Targets: what a rule's text means, whether somebody is there to answer, and whether a request can go to him.

Pure but for the key that a provider reads. Owns the reasons for which a rule is refused or a request declined; imports
nothing of dbproxy but its public values. Invariant: whatever a provider does wrong is a reason, never an error here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dbproxy.api import DbproxyError, Target
from dbproxy.api.models import parse_target
from dbproxy_subagent_routing.rules import Match, Rule, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dbproxy.api import AgentFile, Provider
    from dbproxy.api.codecs import Capabilities, Request

_COLON: Final = re.compile(r"\s*([\w.-]+)\s*[:,]")
_CLAUDE: Final = re.compile(r"\s*anthropic\s*[:,/]", re.IGNORECASE)
#: The part of a window that is kept free for an answer at most: a fourth.
ANSWER_SHARE: Final = 4
#: Tokens of a summary, about.
_SUMMARY: Final = 8_000

NO_KEY: Final = (
    "this request brought no launch secret and no client key, so no key of ours serves it: start the client with "
    "`dbproxy claude`"
)


@dataclass(frozen=True, slots=True)
class Meant:
    """What a target's text means: a ``target``, or the reason why nobody is meant or nobody can answer."""

    text: str
    target: Target | None = None
    reason: str = ""


def meant(text: str, providers: Mapping[str, Provider]) -> Meant:
    """The target that ``text`` names, and why it cannot be used, if it cannot."""
    try:
        name, model = parse_target(text, providers)
    except DbproxyError as error:
        return Meant(text, None, str(error))
    target = Target(name, model)
    provider = providers.get(name)
    if provider is None:
        return Meant(text, target, f"there is no provider {name}")
    return Meant(text, target, _said(provider.unready))


def refusal(rule: Rule, providers: Mapping[str, Provider]) -> str:
    """Why a rule cannot be followed at all; "" if one of its targets can be asked."""
    if rule.problem or rule.stays:
        return rule.problem
    found = [meant(text, providers) for text in rule.targets]
    return "" if any(not one.reason for one in found) else reasons([one.reason for one in found])


def reasons(said: Sequence[str]) -> str:
    """Several reasons as one, none twice."""
    return "; ".join(dict.fromkeys(said))


def rule_of_file(file: AgentFile, providers: Mapping[str, Provider]) -> Rule | None:
    """The rule that an agent's file gives in its front matter: its route, else its model if that is not Claude's."""
    if file.route:
        return Rule(f"route in {file.source or file.name}", (file.route,), Step.FILE, file.name.lower())
    if file.model and _is_foreign(file.model, providers):
        return Rule(f"model in {file.source or file.name}", (file.model,), Step.FILE, file.name.lower())
    return None


def _is_foreign(model: str, providers: Mapping[str, Provider]) -> bool:
    """Does this name a model that the client's own upstream does not have?"""
    try:
        provider, _ = parse_target(model, providers)
    except DbproxyError:
        return False  # inherit, or some other word of the client's
    return provider != "anthropic" or _CLAUDE.match(model) is not None


def by_own_model(model: str, providers: Mapping[str, Provider]) -> Match | None:
    """A request that itself asks for ``PROVIDER:MODEL``.

    Only in this form: with a slash an id may be one of the upstream that the client talks to (OpenRouter's are).
    """
    parts = _COLON.match(model)
    if parts is None or parts[1].lower() not in {name.lower() for name in providers}:
        return None
    return Match(Rule("model of the request", (model,), Step.MODEL, model.lower()), f"it asks for the model {model}")


def unusable(target: Target, providers: Mapping[str, Provider], *, authorised: bool) -> str:
    """Why nobody can be asked for this target now; "" if somebody can."""
    provider = providers.get(target.provider)
    if provider is None:
        return f"there is no provider {target.provider}"
    if not authorised and not getattr(provider, "keyless", False):
        return NO_KEY
    return _said(provider.unready)


def objection(target: Target, provider: Provider, request: Request, *, authorised: bool) -> str:
    """Why this request cannot go to this target, which can be asked; "" if it can."""
    if not authorised and not getattr(provider, "keyless", False):
        return NO_KEY
    said = _said(lambda: provider.decline(request, target.model))
    return said or _said(lambda: _too_large(target, provider.capabilities(target.model), request))


def _too_large(target: Target, able: Capabilities, request: Request, most: int = 0) -> str:
    """The window has to hold the prompt and the longest answer that will be asked for, a quarter of it (or ``most``
    tokens) at most: codecs ask for no more than what is left behind the prompt."""
    if not able.context:
        return ""
    share = most or able.context // ANSWER_SHARE
    wanted = min(request.max_tokens or share, able.output or share, share)
    from dbproxy.api.codecs import prompt_tokens

    tokens = prompt_tokens(request)
    if tokens + wanted <= able.context:
        return ""
    return (
        f"the context is too large for {target}: about {tokens:,} tokens and {wanted:,} of answer, of {able.context:,}"
    )


def too_long_to_sum_up(target: Target, provider: Provider, request: Request, trigger: str) -> str:
    """Why a request for a summary cannot go where the history grew; "" if it can. One that the client makes because it
    was told that its prompt is too long holds the same history, and would be told so again."""
    if trigger == "reactive":
        return f"the history is too long for {target}, and so is the request to sum it up"
    return _said(lambda: _too_large(target, provider.capabilities(target.model), request, _SUMMARY))


def auto_mode(tool: str) -> str:
    """Why a request of the client's auto mode that offers this tool cannot go elsewhere."""
    return f"the client is in auto mode, where Claude's server judges each use of {tool}, and no other does"


def is_foreign_name(model: str, window: int) -> bool:
    """Is this no name of a model of Claude's? ``window`` is what is known of its context, 0 for nothing."""
    return not (model.lower().startswith("claude") and window)


def _said(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except Exception as error:
        return f"the provider failed: {type(error).__name__}"
