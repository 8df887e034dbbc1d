"""Settings that are tables: routes and providers. How they are read, kept, put together and shown.

Owns `Section`, the frozen table, and the two kinds. Imports its own package only. Invariants: a `Section` never changes
and keeps its order; what a source gives is bounded in size and depth; no credential stands in a table, and an error
about one does not repeat it. What the words in a table mean is the business of the plugins that use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dbproxy.config.values import Kind, mask_userinfo, path_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.config.values import Context

_MOST_ITEMS: Final = 4000
_DEEPEST: Final = 6
_LONGEST_KEY: Final = 256
_LONGEST_TEXT: Final = 4096
_LARGEST: Final = 1 << 53  # what every reader of JSON keeps exactly
# Compiled when they are needed: every launch loads this file, and few need them.
_BARE_KEY: Final = r"[A-Za-z0-9_-]+"
_PREFIX: Final = r"(?is)(agent|type|kind|model):(?=.*:)"
_REFERENCE: Final = r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"
_SECRET_QUERY: Final = r"(?i)[?&](?:api[_-]?key|key|token|access_token|sig)="
#: Where people put a key that does not belong there, and headers that hold one.
_KEYS: Final = frozenset({"key", "api_key", "apikey", "token", "auth_token", "secret", "password"})
_CREDENTIALS: Final = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"}
)
#: What a rule of a project file that nobody trusts may say.
_HARMLESS: Final = frozenset({"to", "fallback", "reason"})
_NO_TARGET: Final = "expected a model, a list of models, or a table with `to`"


@dataclass(frozen=True, slots=True)
class Section(Mapping[str, object]):
    """A table that cannot change: texts, numbers, truth values, tuples of them, and sections. Equal only to a section
    with the same entries in the same order."""

    pairs: tuple[tuple[str, object], ...] = ()

    def __getitem__(self, key: str) -> object:
        for name, value in self.pairs:
            if name == key:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _value in self.pairs])

    def __len__(self) -> int:
        return len(self.pairs)

    def plain(self) -> dict[str, Any]:
        """The same as a dictionary of lists and dictionaries, for whoever wants JSON."""
        return {name: _plain(value) for name, value in self.pairs}

    def over(self, weaker: Section) -> Section:
        """This table with what ``weaker`` alone has behind it. An entry is taken whole, and its name's case is
        nothing: who sets another address must not come by the key that stood beside the old one."""
        mine = {name.lower() for name, _value in self.pairs}
        return Section(self.pairs + tuple(pair for pair in weaker.pairs if pair[0].lower() not in mine))


def _plain(value: object) -> Any:
    if isinstance(value, Section):
        return value.plain()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def frozen(raw: Mapping[Any, Any]) -> Section:
    """``raw`` as a section. Raises ValueError, naming the entry, for what no setting may hold."""
    left = [_MOST_ITEMS]
    return _section(raw, "", _DEEPEST, left)


def _section(raw: Mapping[Any, Any], where: str, depth: int, left: list[int]) -> Section:
    pairs = []
    for key, value in raw.items():
        if not isinstance(key, str) or not key.strip() or len(key) > _LONGEST_KEY or not key.isprintable():
            raise ValueError(f"{where}expected names of up to {_LONGEST_KEY} printable characters")
        pairs.append((key, _value(value, f"{where}{key}", depth, left)))
    return Section(tuple(pairs))


def _value(raw: object, where: str, depth: int, left: list[int]) -> object:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"expected at most {_MOST_ITEMS} entries")
    if isinstance(raw, str):
        if len(raw) > _LONGEST_TEXT or any(ord(character) < 32 or ord(character) == 127 for character in raw):
            raise ValueError(f"{where}: expected text of up to {_LONGEST_TEXT} characters without control characters")
        return raw
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, int | float) and -_LARGEST <= raw <= _LARGEST:
        return raw
    if isinstance(raw, Mapping | list | tuple):
        if not depth:
            raise ValueError(f"{where}: nested too deeply")
        if isinstance(raw, Mapping):
            return _section(raw, f"{where}.", depth - 1, left)
        return tuple(_value(item, where, depth - 1, left) for item in raw)
    raise ValueError(f"{where}: expected text, a number, true or false, a list or a table")


def routes() -> Kind:
    """Rules: who is meant, and the models that answer."""

    def parse(raw: Any, _context: Context) -> Section:
        if isinstance(raw, list | tuple):
            if not all(isinstance(item, str) for item in raw):
                raise ValueError("expected a table, or NAME:MODEL pairs")
            raw = ",".join(raw)
        rules = frozen(_rules_of(raw) if isinstance(raw, str) else _mapping(raw))
        for name, value in rules.pairs:
            _check_rule(name, value)
        return rules

    return Kind(
        "table, or `NAME:MODEL` pairs with commas (`NAME=PROVIDER:MODEL` where a name holds a colon)",
        parse,
        Section.plain,
        lambda value: _shown(value, " = ", toml),
        many=True,
        adds_up=True,
        tamed=_tamed,
    )


def _rules_of(text: str) -> Mapping[str, object]:
    if text.lstrip().startswith("{"):
        return table_of(text)
    found: dict[str, object] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        name, value = _pair(item)
        if not name or not value:
            raise ValueError(f"{item[:80]!r}: expected NAME:MODEL pairs, as in code-reviewer:gpt-4o")
        if name.lower() in map(str.lower, found):
            raise ValueError(f"{name[:80]!r} is given twice; a list of models needs a table")
        found[name] = value
    return found


def _pair(item: str) -> tuple[str, str]:
    """A rule in one word. The model may hold a colon, too; where the name does, ``=`` tells where it ends."""
    if "=" in item:
        name, _, value = item.partition("=")
    else:
        prefix = re.match(_PREFIX, item)
        start = prefix.end() if prefix else 0
        name, _, value = item[start:].partition(":")
        name = item[:start] + name
    return name.strip(), value.strip()


def _check_rule(name: str, value: object) -> None:
    if isinstance(value, Section):
        if not isinstance(value.get("fallback", True), bool):
            raise ValueError(f"{name}: expected fallback to be true or false")
        if not isinstance(value.get("reason", ""), str):
            raise ValueError(f"{name}: expected reason to be text")
        value = value.get("to")
    listed = value if isinstance(value, tuple) else (value,)
    if not listed or not all(isinstance(item, str) and item.strip() for item in listed):
        raise ValueError(f"{name}: {_NO_TARGET}")


def _tamed(rules: Section) -> tuple[Section, tuple[tuple[str, str], ...]]:
    kept, refused = [], []
    for name, value in rules.pairs:
        more = [word for word in value if word not in _HARMLESS] if isinstance(value, Section) else []
        if more:
            refused.append((name, f"a project file may not set {', '.join(more)} unless you trust it"))
        else:
            kept.append((name, value))
    return Section(tuple(kept)), tuple(refused)


def providers() -> Kind:
    """Who answers: a table for each, without a credential in it."""

    def parse(raw: Any, context: Context) -> Section:
        given = frozen(table_of(raw) if isinstance(raw, str) else _mapping(raw))
        return Section(tuple((name, _provider(name, value, context)) for name, value in given.pairs))

    return Kind(
        "table of tables (also as JSON or as an inline TOML table)",
        parse,
        Section.plain,
        lambda value: _shown(value, " ", toml),
        adds_up=True,
    )


def _provider(name: str, given: object, context: Context) -> Section:
    if not isinstance(given, Section):
        raise ValueError(f"{name}: expected a table")
    for key, value in given.pairs:
        if key.lower() in _KEYS:
            raise ValueError(
                f"{name}.{key}: a key does not belong into the settings; name the variable that holds it as key_env, "
                "or a file as key_file"
            )
        if isinstance(value, str) and (mask_userinfo(value) != value or re.search(_SECRET_QUERY, value)):
            raise ValueError(f"{name}.{key}: an address must not hold a key or a password; use key_env or key_file")
        if key == "headers" and isinstance(value, Section):
            _check_headers(name, value)
    if "key_file" not in given:
        return given
    file = path_in(given["key_file"], context, f"{name}.key_file")
    return Section(tuple((key, str(file) if key == "key_file" else value) for key, value in given.pairs))


def _check_headers(name: str, headers: Section) -> None:
    for header, value in headers.pairs:
        if header.lower() in _CREDENTIALS and not (isinstance(value, str) and re.search(_REFERENCE, value)):
            raise ValueError(
                f"{name}.headers.{header}: a credential does not belong into the settings; write ${{NAME}} for the "
                "variable that holds it"
            )


def _mapping(raw: object) -> Mapping[Any, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError("expected a table")
    return raw


def table_of(text: str) -> Mapping[str, object]:
    """A table given as text: JSON, or an inline table of TOML. Raises ValueError."""
    import json
    import tomllib

    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        try:
            # On one line, so that nothing can follow the value.
            tree = tomllib.loads(f"value = {' '.join(text.splitlines())}")["value"]
        except (ValueError, RecursionError, KeyError):
            raise ValueError("expected a table, as JSON or as TOML: { name = ... }") from None
    return _mapping(tree)


def _shown(value: Section, between: str, show: Callable[[object], str]) -> str:
    return ", ".join(f"{key}{between}{show(item)}" for key, item in value.pairs) or "(none)"


def toml(value: object) -> str:
    """A value as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        entries = ", ".join(f"{toml_key(str(name))} = {toml(item)}" for name, item in value.items())
        return f"{{ {entries} }}" if entries else "{}"
    escaped = "".join(
        f"\\{character}" if character in '"\\' else character if character.isprintable() else f"\\U{ord(character):08X}"
        for character in str(value)
    )
    return f'"{escaped}"'


def toml_key(name: str) -> str:
    """A key as TOML, in quotes where it needs them."""
    return name if re.fullmatch(_BARE_KEY, name) else toml(name)
