"""Routes and providers as earlier tools wrote them, in our words.

Owns the names under which those kept mappings, providers, their keys and their times, and what each becomes here. Pure:
texts in, settings out; `legacy` reads the files and writes what is found. Imports its own package only. Invariants: for
what has no counterpart a reason is said; a key leaves here as `Imported.keys` only, never in a setting or a message.
Source: seed-001 1.5, 1.6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dbproxy.config.settings import core_table
from dbproxy.config.values import Context

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Variables that say what stands elsewhere as ``providers.NAME.KEY``.
_VARIABLES: Final = {
    "OPENAI_API_KEY": "providers.openai.api_key",
    "OPENAI_BASE_URL": "providers.openai.base_url",
    "GEMINI_API_KEY": "providers.gemini.api_key",
    "OPENROUTER_API_KEY": "providers.openrouter.api_key",
    "DEEPSEEK_API_KEY": "providers.deepseek.api_key",
}
_FORMATS: Final = {"openai": "compatible", "anthropic": "messages"}
_UNUSED: Final = {
    "version": "the version that the client names goes along",
    "fallback_provider": 'a rule names its targets in order, ["A:MODEL", "B:MODEL"], and Claude comes last anyway',
    "circuit_breaker.enabled": "every provider has one; `failures` says how many it takes",
}
_UNUSED_OF_CLAUDE: Final = {
    "api_key": "requests to Claude go with the client's own credential",
    "version": "requests to Claude go with the version that the client names",
    "max_retries": "the client tries again by itself",
}
_REFERENCE: Final = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))\Z", re.ASCII)
_PLACEHOLDER: Final = re.compile(r"\byour[-_ ]|<[^>]*>|\.\.\.|\A(?:[a-z]+-)*x{4,}\Z", re.IGNORECASE)
_KEY: Final = re.compile(r"[\x21-\x7e]{8,}")
_PROVIDER: Final = re.compile(r"providers\.(?P<name>.+?)\.(?P<key>circuit_breaker\.\w+|\w+)", re.IGNORECASE | re.DOTALL)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@dataclass(slots=True)
class Imported:
    """``settings`` by TOML name as text, number or table; ``keys`` are literal keys by provider, to be put into files.

    ``skipped`` says one line for each thing that was left out, ``noted`` one for what became something else.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    noted: list[str] = field(default_factory=list)


def seconds(text: str) -> float | None:
    """A time as those tools wrote it: ``600``, ``10m``, ``1h30m``; None if it is none."""
    text = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text, re.ASCII):
        return float(text)
    if not text or _DURATION.sub("", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


def take_routes(pairs: Iterable[tuple[str, str]], base: Path, found: Imported) -> list[tuple[str, str]]:
    """Put the mappings and the providers among ``pairs`` into ``found``; the others come back."""
    others: list[tuple[str, str]] = []
    mappings: dict[str, str] = {}
    tables: dict[str, dict[str, object]] = {}
    enabled = True
    for name, raw in pairs:
        lower = name.lower()
        provider = _PROVIDER.fullmatch(_VARIABLES.get(name.upper(), name))
        if lower.startswith("subagents.mappings."):
            mappings[name[len("subagents.mappings.") :]] = raw
        elif lower == "subagent_mappings":
            mappings |= _listed(name, raw, base, found)
        elif lower == "subagents.enable":
            enabled = raw.strip().lower() not in ("false", "no", "off", "0")
        elif provider is not None and lower != "providers.anthropic.base_url":
            _provider(name, provider["name"], provider["key"].lower(), raw.strip(), tables, found)
        else:
            others.append((name, raw))
    if mappings and not enabled:
        found.skipped.append(f"subagents.mappings: switched off by subagents.enable: {', '.join(mappings)}")
    else:
        _keep(mappings, "routes", "subagents.mappings", base, found)
    for name, table in tables.items():
        if name.lower() == "openai" and "api.openai.com" not in str(table.get("base_url", "api.openai.com")):
            table.setdefault("api", "chat")  # all that those tools spoke
    _keep({name: table for name, table in tables.items() if table}, "providers", "providers", base, found)
    return others


def _listed(name: str, raw: str, base: Path, found: Imported) -> dict[str, str]:
    """The rules of a text ``a:m,b:m``."""
    kind = core_table().by_key()["routes"].kind
    try:
        rules: dict[str, str] = kind.encode(kind.parse(raw, Context(base)))
    except ValueError as error:
        found.skipped.append(f"{name}: {error}")
        return {}
    return rules


def _keep(entries: dict[str, Any], key: str, label: str, base: Path, found: Imported) -> None:
    """Those entries of a table that the setting takes, one by one."""
    kind = core_table().by_key()[key].kind
    kept: dict[str, Any] = {}
    for name, entry in entries.items():
        try:
            if isinstance(entry, str) and "${" in entry:
                raise ValueError("refers to a variable; set it by hand")
            kind.parse({name: entry}, Context(base))
        except ValueError as error:
            found.skipped.append(f"{label}.{name}: {str(error).removeprefix(f'{name}: ').removeprefix(f'{name}.')}")
            found.keys.pop(name, None)
        else:
            kept[name] = entry
    if kept:
        found.settings[key] = kept


def _provider(label: str, name: str, key: str, raw: str, tables: dict[str, dict[str, object]], found: Imported) -> None:
    """One value of a provider's."""
    table = tables.setdefault(name, {})
    claude = name.lower() == "anthropic"
    reason = (_UNUSED_OF_CLAUDE if claude else _UNUSED).get(key, "no such setting here" if claude else "")
    if claude and key == "format" and raw == "anthropic":
        return
    if not raw or (key == "circuit_breaker.enabled" and raw.lower() == "true"):
        return
    if not reason and not _NAME.fullmatch(name):
        reason = "a provider's name holds letters, digits, dots, dashes and underscores only"
    if not reason:
        reason = _take_key(label, name, raw, table, found) if key == "api_key" else _take_value(key, name, raw, table)
    if reason:
        found.skipped.append(f"{label}: {reason}")


def _take_value(key: str, name: str, raw: str, table: dict[str, object]) -> str:
    """Put a value into the provider's table; why not, or ""."""
    if "${" in raw:
        return "refers to a variable; set it by hand"
    if key == "base_url":
        table[key] = raw
    elif key == "format":
        if raw.lower() not in _FORMATS:
            return "known formats are openai and anthropic"
        if raw.lower() != name.lower():
            table["kind"] = _FORMATS[raw.lower()]
    elif key in ("max_retries", "circuit_breaker.max_failures"):
        if not re.fullmatch(r"\d{1,6}", raw, re.ASCII):
            return "expected a whole number"
        table["retries" if key == "max_retries" else "failures"] = int(raw)
    elif key == "circuit_breaker.timeout":
        time = seconds(raw)
        if time is None:
            return "expected a time as 30s or 600"
        table["cooldown"] = int(time) if time == int(time) else time
    else:
        return "no such setting here"
    return ""


def _take_key(label: str, name: str, raw: str, table: dict[str, object], found: Imported) -> str:
    """Where a provider's key is, or the key itself; why not, or ""."""
    variable = _REFERENCE.match(raw)
    if variable is not None:
        table["key_env"] = variable[1] or variable[2]
        found.noted.append(f"{label}: is read from the variable {table['key_env']} of the proxy's environment")
    elif _PLACEHOLDER.search(raw):
        return "a placeholder stands there, no key"
    elif "${" in raw or not _KEY.fullmatch(raw):
        return "holds no key that could be used"
    else:
        table["key_file"] = f"keys/{name}"
        found.keys[name] = raw
    return ""
