"""A provider's table in the settings, read and judged: what holds, and in plain words what is wrong with it.

Owns the keys of such a table. Pure but for the names of files. Invariants: nothing raises; what is wrong is kept
beside what is right, so that one table never harms another; no credential stands in a table.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from dbproxy.api import ConfigError, ProviderLimits
from dbproxy.api.models import Capabilities
from dbproxy_providers.keys import KeyFile, KeySource, references
from dbproxy_providers.servers import ANTHROPIC, COMPATIBLE, KINDS, MESSAGES, OPENAI, OTHERS, SERVERS, Server
from dbproxy_providers.urls import Base, is_near, read_base

APIS: Final = ("auto", "chat", "responses")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FIELD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECONDS: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_FOREVER: Final = 1e9  # seconds
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
#: Where a key must never stand, whatever it is called.
_LITERAL: Final = frozenset({"key", "api_key", "apikey", "token", "auth_token", "secret", "password"})
#: Fields that prove who one is; and fields that are the sender's business.
_CREDENTIALS: Final = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"}
)
_FRAMING: Final = frozenset(
    {
        "host",
        "connection",
        "content-length",
        "content-type",
        "transfer-encoding",
        "accept-encoding",
        "expect",
        "upgrade",
    }
)
#: A server of one's own reads a long prompt for minutes before it says anything.
_PATIENT: Final = ProviderLimits(first_byte=600.0, silence=600.0)


@dataclass(frozen=True, slots=True)
class Table:
    """What holds for one provider. ``base`` is None where its usual address holds; ``written`` says that the user
    wrote a table for it; ``problems`` are reasons why it cannot be used, each with what to do."""

    name: str
    kind: str
    server: Server
    api: str = "auto"
    base: Base | None = None
    key: KeySource = field(default_factory=KeySource)
    headers: tuple[tuple[str, str], ...] = ()
    models: tuple[tuple[str, Mapping[str, object]], ...] = ()
    limits: ProviderLimits = field(default_factory=ProviderLimits)
    written: bool = False
    problems: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """Its part of the table of capabilities."""
        other_dialect = self.server.kind == MESSAGES and self.kind == COMPATIBLE  # of the same models
        return self.server.section if self.kind == self.server.kind or other_dialect else OTHERS[self.kind].section

    @property
    def as_client(self) -> bool:
        """Claude without an address or a key of ours: requests go where the client sends its own, as its own."""
        own = self.base is not None or self.key.chosen or self.brings_credential
        return self.kind == ANTHROPIC and not own

    @property
    def brings_credential(self) -> bool:
        """One of its own headers proves who it is: no key is needed beside it."""
        return any(name.lower() in _CREDENTIALS for name, _ in self.headers)


def read_table(name: str, given: object = None) -> Table:
    """The table of the provider ``name``; None for one that has none."""
    return _Reader(name, given).table()


class _Reader:
    def __init__(self, name: str, given: object) -> None:
        self.name = name
        self.written = given is not None
        self.where = f"[providers.{name}]"
        self.problems: list[str] = []
        self.given: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        if self.written and not isinstance(given, Mapping):
            self.problems.append(f"{self.where} must be a table")
        if not _NAME.fullmatch(name):
            self.problems.append(f"the name {name!r} may hold letters, digits, dots, dashes and underscores only")

    def table(self) -> Table:
        kind = self._kind()
        server = SERVERS.get(self.name.lower(), OTHERS[kind])
        base = self._base()
        if "base_url" not in self.given and not server.usual_base(kind):
            self.problems.append(f"no address: set base_url in {self.where}")
        self._unknown()
        table = Table(
            self.name,
            kind,
            server,
            self._api(kind),
            base,
            self._key(server, kind, base),
            self._headers(),
            self._models(),
            self._limits(base or _usual(server, kind)),
            self.written,
        )
        if table.as_client and table.headers:
            self.problems.append(
                f"headers in {self.where} would go nowhere: without a key or a base_url of its own, requests go where "
                "the client sends them, as the client's own"
            )
        return replace(table, problems=tuple(self.problems))

    # ---- single keys

    def _kind(self) -> str:
        usual = SERVERS[self.name.lower()].kind if self.name.lower() in SERVERS else COMPATIBLE
        # A known server that was told to speak Chat does not speak Messages.
        if usual == MESSAGES and self.given.get("api") in ("chat", "responses"):
            usual = COMPATIBLE
        found = self.given.get("kind", usual)
        if found in KINDS:
            return str(found)
        self.problems.append(f"kind in {self.where} must be one of {', '.join(KINDS)}, not {found!r}")
        return usual

    def _api(self, kind: str) -> str:
        found = self.given.get("api", "auto")
        if found not in APIS:
            self.problems.append(f"api in {self.where} must be one of {', '.join(APIS)}, not {found!r}")
            return "auto"
        if found != "auto" and kind not in (OPENAI, COMPATIBLE):
            self.problems.append(f"api in {self.where} is for the kinds {OPENAI} and {COMPATIBLE}: remove it")
            return "auto"
        return str(found)

    def _base(self) -> Base | None:
        found = self.given.get("base_url")
        if found is None:
            return None
        try:
            return read_base(found if isinstance(found, str) else "")
        except ValueError as error:
            self.problems.append(f"base_url in {self.where}: {error}")
            return None

    def _key(self, server: Server, kind: str, base: Base | None) -> KeySource:
        for name in sorted(_LITERAL & {key.lower() for key in self.given}):
            self.problems.append(
                f"{name} in {self.where}: a key does not belong into the settings; put it into a variable and name "
                "that one as key_env, or into a file and name that as key_file"
            )
        variable, path = self.given.get("key_env"), self.given.get("key_file")
        if variable is not None and path is not None:
            self.problems.append(f"{self.where} has both key_env and key_file: remove one")
        if path is not None:
            if not isinstance(path, str) or not Path(path).expanduser().is_absolute():
                self.problems.append(f"key_file in {self.where} must be a whole path (/... or ~/...)")
            else:
                return KeySource(file=KeyFile(Path(path).expanduser()), chosen=True)
        elif variable is not None:
            if not isinstance(variable, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
                self.problems.append(f"key_env in {self.where} must be the name of a variable, not its value")
            else:
                return KeySource((variable,), chosen=True)
        # The usual variable belongs to the usual server: another one sees it only if it bears that server's name.
        usual = _usual(server, kind)
        if self.name.lower() in SERVERS or base is None or (usual is not None and base.host == usual.host):
            return KeySource(server.keys)
        return KeySource()

    def _headers(self) -> tuple[tuple[str, str], ...]:
        found = self.given.get("headers", {})
        if not isinstance(found, Mapping):
            self.problems.append(f"headers in {self.where} must be a table")
            return ()
        kept = []
        for name, value in found.items():
            if problem := _header_problem(name, value):
                self.problems.append(f"the header {name} in {self.where} {problem}")
            else:
                kept.append((str(name), str(value)))
        return tuple(kept)

    def _models(self) -> tuple[tuple[str, Mapping[str, object]], ...]:
        found = self.given.get("models", {})
        if not isinstance(found, Mapping):
            self.problems.append(f"models in {self.where} must be a table of tables")
            return ()
        kept = []
        for pattern, changes in found.items():
            where = f'[providers.{self.name}.models."{pattern}"]'
            if not isinstance(changes, Mapping):
                self.problems.append(f"{where} must be a table")
                continue
            try:
                Capabilities().overridden(changes, where)
            except ConfigError as error:
                self.problems.append(str(error))
            else:
                kept.append((str(pattern).lower(), dict(changes)))
        return tuple(kept)

    def _limits(self, base: Base | None) -> ProviderLimits:
        found: dict[str, Any] = {}
        for key, name, read, least in _LIMITS:
            if key in self.given:
                value = read(self.given[key])
                if value is None or value < least:
                    self.problems.append(
                        f"{key} in {self.where} must be {_meaning(read, least)}, not {self.given[key]!r}"
                    )
                else:
                    found[name] = value
        return replace(_PATIENT if base is not None and is_near(base.host) else ProviderLimits(), **found)

    def _unknown(self) -> None:
        for name in sorted(set(map(str, self.given)) - _KEYS - _LITERAL):
            near = difflib.get_close_matches(name, _KEYS, 1)
            self.problems.append(
                f"{self.where} knows no {name!r}: "
                + (f"did you mean {near[0]}?" if near else f"it may hold {', '.join(sorted(_KEYS))}")
            )


def _usual(server: Server, kind: str) -> Base | None:
    usual = server.usual_base(kind)
    return read_base(usual) if usual else None


def _header_problem(name: object, value: object) -> str:
    if not isinstance(name, str) or not _FIELD.fullmatch(name):
        return "has a name that no header may have"
    if name.lower() in _FRAMING:
        return "is the sender's business: remove it"
    if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]*", value):
        return "must be a text on one line"
    if name.lower() in _CREDENTIALS and not references(value):
        return 'holds a credential, which does not belong into the settings: write "${NAME}" for a variable'
    return ""


def _seconds(value: object) -> float | None:
    """Seconds, as a number or as S1 wrote them: 600, "600", "10m"."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) <= _FOREVER else None
    found = _SECONDS.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(found[1]) * _UNITS[found[2] or "s"] if found else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _meaning(read: Callable[[object], float | None], least: float) -> str:
    if read is _count:
        return f"a whole number, {least:g} or more"
    return "a time in seconds (or as 30s, 10m)" + ("" if least <= 0 else ", longer than zero")


_LIMITS: Final[tuple[tuple[str, str, Callable[[object], float | None], float], ...]] = (
    ("connect_timeout", "connect", _seconds, 0.001),
    ("first_byte_timeout", "first_byte", _seconds, 0.001),
    ("silence_timeout", "silence", _seconds, 0.001),
    ("retries", "retries", _count, 0),
    ("failures", "failures", _count, 1),
    ("cooldown", "cooldown", _seconds, 0.0),
)
_KEYS: Final = frozenset(
    {"kind", "base_url", "api", "key_env", "key_file", "headers", "models", *(key for key, *_ in _LIMITS)}
)
