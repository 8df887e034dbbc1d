"""What a model can do and takes, as data: windows, pictures, tools, words of effort, parameters that it refuses.

Owns ``data/capabilities.json`` and its form. Does no I/O but reading that one file of the package, through the import
system, once. Sources stand in the file, beside each row. Invariants: an unknown model gets its provider's cautious
defaults, never an error; what a user's file says wins over the table, key by key.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

from dbproxy.errors import ConfigError
from dbproxy.model import shapes

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Capabilities:
    """One model as its provider offers it. Token counts are 0 where they are not known.

    ``api`` is the dialect: ``messages``, ``chat``, ``responses`` or ``gemini``. ``context`` is what a prompt may
    fill: the window, less what the provider keeps for the answer alone. ``efforts`` are the words that it takes
    (empty: it takes none). ``refuses`` names parameters that must not be sent (``temperature``, ``top_p``,
    ``stop``, ``parallel_tool_calls``, ...), and ways of asking: ``forced_tool_choice`` (any, or a tool by name),
    ``prefill`` (a begun answer), ``system_messages`` (in mid-conversation), ``speed``. ``tools_with_effort`` is
    False where tools and an effort together are refused by the Chat dialect. ``reasoning`` says where thoughts
    stand: ``reasoning_content`` (and must be echoed if ``echo``), ``reasoning``, ``think`` (tags in the text), or
    "".
    """

    api: str = "chat"
    context: int = 0
    output: int = 0
    images: bool = True
    documents: bool = False
    tools: bool = True
    web_search: bool = False
    efforts: tuple[str, ...] = ()
    refuses: frozenset[str] = frozenset()
    tools_with_effort: bool = True
    max_tokens_key: str = "max_tokens"
    developer: bool = False  # the system prompt goes as the developer's
    reasoning: str = ""
    echo: bool = False
    reliable_json: bool = True
    structured: bool = True
    thinking: str = ""  # Messages dialect: adaptive, enabled or "" for none; Gemini: budget or level
    most_stops: int = 4
    family: str = ""  # who can read its signatures; "" = its provider's name

    def overridden(self, changes: Mapping[str, object], where: str) -> Capabilities:
        """The same with what a user's table says. Raises ConfigError that calls the place ``where``."""
        known = {item.name: item for item in fields(self)}
        values: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in known:
                raise ConfigError(f"{where}: unknown capability {name!r}", hint=f"Known: {', '.join(sorted(known))}")
            values[name] = _checked(name, value, getattr(self, name), where)
        return replace(self, **values)


def _checked(name: str, value: object, now: object, where: str) -> object:
    if isinstance(now, bool):
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{where}: {name} must be true or false")
    if isinstance(now, int):
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        raise ConfigError(f"{where}: {name} must be a whole number, zero or more")
    if isinstance(now, str):
        if isinstance(value, str):
            return value
        raise ConfigError(f"{where}: {name} must be a text")
    if isinstance(value, list | tuple | frozenset) and all(isinstance(item, str) for item in value):
        return frozenset(value) if isinstance(now, frozenset) else tuple(value)
    raise ConfigError(f"{where}: {name} must be a list of texts")


@lru_cache(maxsize=1024)
def capabilities(family: str, model: str) -> Capabilities:
    """The row of a model in the shipped table.

    ``family`` is a section of it (``openai``, ``gemini``, ``anthropic``, or ``compatible`` for any other server). The
    rows whose pattern fits the model's id are laid over each other in the table's order, the section's defaults first.
    A row with ``like`` (a section) stands for what that section says of the model, before its own values: for servers
    that pass other people's models on.
    """
    section = _table().get(family) or _table()["compatible"]
    found = Capabilities().overridden(_plain(section.get("defaults")), family)
    for row in section.get("models", ()):
        if any(fnmatchcase(model.lower(), pattern) for pattern in row["match"]):
            if "like" in row:
                found = _likened(found, capabilities(row["like"], _at_home(model)))
            found = found.overridden(_plain(row), f"{family}/{model}")
    return found


def _likened(here: Capabilities, home: Capabilities) -> Capabilities:
    """The model of ``home`` through another server: dialect, search and signatures are that one's, and what either
    refuses is refused."""
    refuses = home.refuses | here.refuses
    return replace(home, api=here.api, web_search=here.web_search, family=here.family, refuses=refuses)


def _at_home(model: str) -> str:
    """A model's id where it comes from: without the vendor in front and the variant behind (OpenRouter: a/b-5.5:free);
    Claude's versions are written with dashes there."""
    plain = model.rpartition("/")[2].partition(":")[0]
    return plain.replace(".", "-") if plain.startswith("claude-") else plain


_NOT_VALUES: Final = frozenset({"match", "source", "like"})


def _plain(row: object) -> dict[str, object]:
    return {name: value for name, value in shapes.mapping(row).items() if name not in _NOT_VALUES}


@cache
def _table() -> dict[str, Any]:
    data = pkgutil.get_data("dbproxy.model", "data/capabilities.json")
    return shapes.mapping(shapes.parse(data or b"{}"))
