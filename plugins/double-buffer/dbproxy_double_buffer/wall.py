"""Where a client's context really ends: the size at which it compacts by itself.

Owns the rules per client version, model and variable (client facts 4.2, API facts 4.2 and 4.3), corrected by what the
client was seen to do. Pure. Invariant: a rule that is not known gives the smaller wall, since a checkpoint that comes
early costs some tokens and one that comes late is worth nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Version = tuple[int, ...]

_USER_AGENT: Final = re.compile(r"claude-(?:cli|code)/(\d+(?:\.\d+)*)")
#: What the client keeps free for the answer, and as a margin before it (client facts 4.2).
OUTPUT_RESERVE: Final = 20_000
MARGIN: Final = 13_000
SMALL, LARGE = 200_000, 1_000_000
#: Before this version the whole output limit was kept free, and it was never above 32,000 (2.0.77 and 1.0.128).
_FULL_OUTPUT_BEFORE: Final = (2, 1)
_OLD_OUTPUT: Final = 32_000
#: Models that the client takes for 200k ones unless a beta says otherwise, whatever the API offers (measured).
_SMALL_IN_CLIENT: Final = ("claude-sonnet-4", "claude-opus-4-5", "claude-haiku-4", "claude-3")
_MILLION_BETA: Final = "context-1m-2025-08-07"
#: Models for which this client never compacts before the API refuses (2.1.329: three of 200k; 2.1.197: Opus 4.8).
_REACTIVE_ONLY: Final = ("claude-haiku-4-5", "claude-sonnet-4-5", "claude-opus-4-5")
_REACTIVE_SINCE: Final = (2, 1, 300)
_TRUE: Final = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True, slots=True)
class Client:
    """One client as a request shows it.

    ``context_window`` is the model's own (tokens), 0 if unknown. ``variables`` are the client's own environment
    variables, ``first_party`` whether it believes that it talks to the API itself.
    """

    version: Version
    model: str
    context_window: int = 0
    max_tokens: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)
    betas: frozenset[str] = frozenset()
    first_party: bool = True


@dataclass(frozen=True, slots=True)
class Observation:
    """A compaction that the client asked for by itself: the context (tokens) it had just then."""

    context_tokens: int
    trigger: str  # auto or reactive
    at: float


@dataclass(frozen=True, slots=True)
class Wall:
    """``tokens`` of context at which the client compacts; ``source`` says how that is known. ``proactive`` is whether
    it does so before the API refuses, ``never`` that it was told not to."""

    tokens: int
    source: str
    proactive: bool = True
    never: bool = False


def parse_version(user_agent: str) -> Version:
    """``claude-cli/2.1.329 (external, cli)`` -> (2, 1, 329); empty for any other client."""
    found = _USER_AGENT.search(user_agent)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def window(client: Client) -> int:
    """The context window that the client reckons with, in tokens."""
    if client.model.endswith("[1m]") or _MILLION_BETA in client.betas:
        size = LARGE
    elif client.model.startswith(_SMALL_IN_CLIENT):
        size = SMALL
    elif not client.first_party and client.model.startswith("claude-sonnet-5"):
        size = SMALL  # API facts 4.3: budgeted so behind another base URL
    else:
        size = client.context_window or SMALL
    if _is_true(client.variables.get("CLAUDE_CODE_DISABLE_1M_CONTEXT")):
        size = min(size, SMALL)
    return _number(client.variables.get("CLAUDE_CODE_MAX_CONTEXT_TOKENS"), size)


def wall(client: Client, observed: Sequence[Observation] = ()) -> Wall:
    """The wall of this client; what was observed last beats every rule."""
    variables = client.variables
    never = _is_true(variables.get("DISABLE_COMPACT")) or _is_true(variables.get("DISABLE_AUTO_COMPACT"))
    seen = [item for item in observed if item.context_tokens > 0 and item.trigger in ("auto", "reactive")]
    if seen:
        latest = max(seen, key=lambda item: item.at)
        return Wall(latest.context_tokens, f"observed ({latest.trigger})", latest.trigger == "auto", never)
    size, source = window(client), "rule"
    override = _number(variables.get("CLAUDE_CODE_AUTO_COMPACT_WINDOW"), 0)
    if override:
        size, source = min(max(override, 100_000), 1_000_000), "CLAUDE_CODE_AUTO_COMPACT_WINDOW"
    elif client.version >= _REACTIVE_SINCE and client.model.startswith(_REACTIVE_ONLY):
        return Wall(size, "rule (reactive only)", proactive=False, never=never)
    if client.version and client.version < _FULL_OUTPUT_BEFORE:
        reserve = min(client.max_tokens or _OLD_OUTPUT, _OLD_OUTPUT)
    else:
        reserve = min(client.max_tokens or OUTPUT_RESERVE, OUTPUT_RESERVE)
    usable = size - reserve
    tokens = usable - MARGIN
    percent = _number(variables.get("CLAUDE_AUTOCOMPACT_PCT_OVERRIDE"), 0)
    if 0 < percent <= 100 and usable * percent // 100 < tokens:  # it only lowers
        tokens, source = usable * percent // 100, "CLAUDE_AUTOCOMPACT_PCT_OVERRIDE"
    return Wall(max(tokens, 1), source, never=never)


def _is_true(value: str | None) -> bool:
    return (value or "").strip().lower() in _TRUE


def _number(value: str | None, default: int) -> int:
    try:
        number = int(float(value)) if value else 0
    except (ValueError, OverflowError):
        return default
    return number if number > 0 else default
