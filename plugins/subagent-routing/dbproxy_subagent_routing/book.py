"""The rules of every launch as they stand now, which of them are refused and why, and whether anybody can be asked.

Owns what is remembered between requests about settings and providers, and what was said about refused rules. Imports
`dbproxy.api` only. Invariants: a setting is read once, not once a request; a refusal is said once until it changes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dbproxy_subagent_routing.rules import RuleSet, read_rules
from dbproxy_subagent_routing.targets import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbproxy.api import Emit, Provider

#: Launches whose rules are remembered.
_MOST: Final = 64
#: Refusals that are not said again.
_MOST_SAID: Final = 4096
#: A key may be put into its file at any time: so long is an answer to "who can answer" good (seconds).
_FRESH: Final = 2.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Is there ``anybody`` who can answer, and was somebody ``chosen`` by the user: by a key, or in the settings?"""

    anybody: bool = False
    chosen: bool = False


class RuleBook:
    """``clock`` gives seconds that never go back."""

    def __init__(self, emit: Emit, clock: Callable[[], float]) -> None:
        self._emit = emit
        self._clock = clock
        self._known: OrderedDict[int, tuple[object, RuleSet]] = OrderedDict()
        self._said: dict[str, str] = {}
        self._standing: tuple[float, Standing] = (float("-inf"), Standing())

    def rules(self, value: object, providers: Callable[[], Mapping[str, Provider]]) -> RuleSet:
        """The rules that the setting ``routes`` holds; the same object for the same value. What is refused of new ones
        is said."""
        found = self._known.get(id(value))
        if found is None or found[0] is not value:
            found = value, RuleSet(read_rules(value))
            self._known[id(value)] = found  # holds the value, so that nothing else gets its id
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
            self._say(refusals(found[1], providers()))
        self._known.move_to_end(id(value))
        return found[1]

    def standing(self, providers: Callable[[], Mapping[str, Provider]], given: object) -> Standing:
        """Who can answer; ``given`` is the setting ``providers``."""
        now = self._clock()
        if now - self._standing[0] > _FRESH:
            ready = [provider for provider in providers().values() if _is_ready(provider)]
            keyed = any(not getattr(provider, "keyless", False) for provider in ready)
            self._standing = now, Standing(bool(ready), keyed or bool(given))
        return self._standing[1]

    def announce(self, rules: RuleSet, providers: Mapping[str, Provider]) -> None:
        """Say which of these rules are refused by now, each once until its reason changes."""
        now = refusals(rules, providers)
        for rule in map(str, rules.rules):
            if rule not in now:
                self._said.pop(rule, None)
        self._say(now)

    def _say(self, refused: Mapping[str, str]) -> None:
        for rule, reason in refused.items():
            if self._said.get(rule) != reason:
                self._emit("route_refused", level="warning", rule=rule, reason=reason)
                self._said[rule] = reason
        while len(self._said) > _MOST_SAID:
            del self._said[next(iter(self._said))]


def refusals(rules: RuleSet, providers: Mapping[str, Provider]) -> dict[str, str]:
    """The rules that cannot be followed, as they are shown, and why."""
    found = {str(rule): refusal(rule, providers) for rule in rules.rules}
    return {rule: reason for rule, reason in found.items() if reason}


def _is_ready(provider: Provider) -> bool:
    try:
        return not provider.unready()
    except Exception:
        return False
