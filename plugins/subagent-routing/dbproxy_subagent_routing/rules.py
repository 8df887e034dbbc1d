"""Rules: how each is written, and which of them fits whoever asks.

Pure; imports nothing of dbproxy but its public values. Owns the form of a rule (``read_rules``), the order in which
evidence counts (``match``) and what can be said of a whole set before a request is known (`RuleSet`).

The order, strongest first: the agent's own name, a pattern over names, what the agent's file says, the agent's type,
the kind of request, the model. The nearer a rule is to the one agent, the surer its author meant it; the file comes
behind the user's own rules because it travels with a clone, and before the types and kinds because it was written for
this agent alone. Within each step a word beats a pattern, then the earlier rule wins.

Invariants: no rule for agents ever fits a request that is no agent's turn; the main line moves by the very words
``kind:main`` or by its model, its summaries by ``kind:compaction`` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Final

from dbproxy.api import RequestKind
from dbproxy.api.models import bare_model

#: What the client says of every agent that its user made.
CUSTOM: Final = "custom"
#: The target that means: where the client sent it.
STAY: Final = "claude"
_PREFIX: Final = re.compile(r"(agent|type|kind|model):(.*)", re.DOTALL | re.IGNORECASE)
_GLOB: Final = frozenset("*?[")
#: Kinds that a rule may name; a plugin's own calls are nobody's to route, and a turn after a compaction is a turn.
KINDS: Final = tuple(str(kind) for kind in RequestKind if kind not in (RequestKind.OWN, RequestKind.AFTER_COMPACTION))
#: Kinds that hold a whole conversation, or measure one: named by their very word or not at all.
_BY_WORD_ONLY: Final = frozenset({"main", "compaction", "count-tokens"})
_OTHER_SPELLINGS: Final = {"warm-up": "warmup"}


class Step(IntEnum):
    """What a rule goes by, the strongest first."""

    AGENT = 1
    FILE = 2
    TYPE = 3
    KIND = 4
    MODEL = 5


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``key`` is as its author wrote it, ``pattern`` what is compared (lower case).

    ``targets`` are texts such as ``openai:gpt-5.5``, tried in order; ``note`` is the reason that its author gives;
    ``problem`` says why the rule cannot be read. ``bare`` keys name an agent or a type of the client's own.
    """

    key: str
    targets: tuple[str, ...]
    step: Step = Step.AGENT
    pattern: str = ""
    bare: bool = False
    fallback: bool = True
    note: str = ""
    problem: str = ""

    def __str__(self) -> str:
        """As it is shown: ``code-reviewer = openai:gpt-5.5``."""
        return f"{self.key} = {', '.join(self.targets)}" if self.targets else self.key

    @property
    def is_glob(self) -> bool:
        """Is it a pattern?"""
        return not _GLOB.isdisjoint(self.pattern)

    @property
    def stays(self) -> bool:
        """Does it say that the request goes where the client sent it?"""
        return len(self.targets) == 1 and self.targets[0].lower() == STAY

    def fits(self, word: str) -> bool:
        """Does its pattern fit this word (lower case)?"""
        return fnmatchcase(word, self.pattern) if self.is_glob else word == self.pattern


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: what the rules are compared with. Empty texts are not known.

    ``agent`` says that an agent takes its turn here. ``name`` is that of a custom agent, ``type`` the client's word for
    what it is; ``proof`` names the evidence for both. ``model`` is the one that the request names.
    """

    kind: str
    agent: bool = False
    name: str = ""
    type: str = ""
    model: str = ""
    proof: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """The rule that fits, and ``why``, as a clause: ``the agent is named code-reviewer``."""

    rule: Rule
    why: str

    @property
    def reason(self) -> str:
        """Why, with the reason that the rule's author gave."""
        return f"{self.why} ({self.rule.note})" if self.rule.note else self.why


def read_rules(value: object) -> tuple[Rule, ...]:
    """The rules of the setting ``routes``, in order."""
    if not isinstance(value, Mapping):
        return ()
    return tuple(_rule(str(key), given) for key, given in value.items())


def _rule(key: str, value: object) -> Rule:
    step, pattern, bare = _key(key)
    given = value if isinstance(value, Mapping) else {"to": value}
    targets, fallback, problem = _value(given)
    note = given.get("reason", "")
    if not problem and not pattern:
        problem = "it names nobody"
    if not problem and step is Step.KIND and not any(Rule(key, (), pattern=pattern).fits(kind) for kind in KINDS):
        problem = f"there is no such kind of request. Known: {', '.join(KINDS)}"
    return Rule(key, targets, step, pattern, bare, fallback, note if isinstance(note, str) else "", problem)


def _key(key: str) -> tuple[Step, str, bool]:
    """What the key goes by, its pattern, and whether it stands without a prefix. An agent's own name may hold a colon
    (those of the client's plugins do)."""
    parts = _PREFIX.fullmatch(key.strip())
    if parts is None:
        return Step.AGENT, key.strip().lower(), True
    word, rest = parts[1].lower(), parts[2].strip().lower()
    if word == "model":
        return Step.MODEL, bare_model(rest), False
    if word == "kind":
        rest = rest.replace("_", "-")
        return Step.KIND, _OTHER_SPELLINGS.get(rest, rest), False
    return (Step.TYPE if word == "type" else Step.AGENT), rest, False


def _value(given: Mapping[str, object]) -> tuple[tuple[str, ...], bool, str]:
    """Targets, fallback and what is wrong."""
    unknown = sorted(str(name) for name in given if name not in ("to", "fallback", "reason"))
    if unknown:
        return (), True, f"it has an unknown part {unknown[0]!r}; write {{ to = TARGET, fallback = true or false }}"
    value, fallback = given.get("to"), given.get("fallback", True)
    if not isinstance(fallback, bool):
        return (), True, "fallback must be true or false"
    listed = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    targets = tuple(text.strip() for text in listed if isinstance(text, str) and text.strip())
    if not targets or len(targets) != len(listed):
        return (), fallback, "it names no target; write PROVIDER:MODEL, or a list of them"
    end = next((at for at, text in enumerate(targets) if text.lower() == STAY), None)
    return (targets, fallback, "") if end is None else (targets[: end or 1], True, "")


@dataclass(frozen=True)
class RuleSet:
    """The rules that hold for a launch, and what they can concern at all."""

    rules: tuple[Rule, ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.rules)

    @cached_property
    def models(self) -> bool:
        """Does a rule go by the request's model?"""
        return any(rule.step is Step.MODEL for rule in self.rules)

    @cached_property
    def main(self) -> bool:
        """Does a rule move the main line whatever its model?"""
        return self._kind(str(RequestKind.MAIN))

    @cached_property
    def compaction(self) -> bool:
        """Does a rule move requests for a summary?"""
        return self._kind(str(RequestKind.COMPACTION))

    @cached_property
    def side(self) -> bool:
        """Does a rule move side requests?"""
        speaking = {"main", "subagent", "nested", "compaction"}
        return any(self._kind(kind) for kind in KINDS if kind not in speaking)

    @cached_property
    def aliases(self) -> tuple[Rule, ...]:
        """Rules that give a whole model id of its own to another model."""
        return tuple(rule for rule in self.rules if rule.step is Step.MODEL and not rule.is_glob and not rule.problem)

    def _kind(self, kind: str) -> bool:
        return any(rule.step is Step.KIND and _fits_kind(rule, kind) for rule in self.rules)


def match(rules: Sequence[Rule], asker: Asker, file: Rule | None = None) -> Match | None:
    """The rule for whoever asks; ``file`` is what the agent's own file says."""
    if asker.agent:
        found = _by_name(rules, asker)
        if found is None and file is not None:
            found = Match(file, f"the file of the agent {asker.name} says so")
        if found is None and asker.type:
            rule = _best(rules, Step.TYPE, asker.type)
            found = Match(rule, f"the agent's type is {asker.type}{_as(asker.proof)}") if rule else None
        if found is not None:
            return found
    kinds = ("nested", "subagent") if asker.kind == "nested" else (asker.kind,)
    for kind in kinds:
        rule = next((one for one in _ranked(rules, Step.KIND) if _fits_kind(one, kind)), None)
        if rule is not None:
            return Match(rule, f"it is a request of the kind {asker.kind}")
    rule = by_model(rules, asker.model) if asker.kind != str(RequestKind.COMPACTION) else None
    return Match(rule, f"it asks for the model {asker.model}") if rule else None


def by_model(rules: Sequence[Rule], model: str) -> Rule | None:
    """The rule for this model."""
    return _best(rules, Step.MODEL, bare_model(model)) if model else None


def _by_name(rules: Sequence[Rule], asker: Asker) -> Match | None:
    """By the agent's name; one of the client's own agents has none, and is called by its type."""
    if asker.name:
        rule = _best(rules, Step.AGENT, asker.name)
        return Match(rule, f"the agent is named {asker.name}{_as(asker.proof)}") if rule else None
    if asker.type in ("", CUSTOM):
        return None
    rule = _best([rule for rule in rules if rule.bare], Step.AGENT, asker.type)
    return Match(rule, f"the agent's type is {asker.type}{_as(asker.proof)}") if rule else None


def _as(proof: str) -> str:
    return f", as the {proof} says" if proof else ""


def _ranked(rules: Sequence[Rule], step: Step) -> list[Rule]:
    """The rules of a step, words before patterns, else as they stand."""
    return sorted((rule for rule in rules if rule.step is step and rule.pattern), key=lambda rule: rule.is_glob)


def _best(rules: Sequence[Rule], step: Step, word: str) -> Rule | None:
    return next((rule for rule in _ranked(rules, step) if rule.fits(word.lower())), None)


def _fits_kind(rule: Rule, kind: str) -> bool:
    return rule.pattern == kind if kind in _BY_WORD_ONLY else rule.fits(kind)
