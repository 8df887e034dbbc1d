"""Settings files of earlier tools, read for ``dbproxy config import``: ``NAME=value`` lines and plain YAML mappings.

``convert`` is text in, our settings and a list of what was left out; ``import_file`` puts them into the user's file.
Imports ``dbproxy.errors``, ``dbproxy.paths`` and its own package. Invariants: nothing is run, expanded or fetched; what
stands in the user's file stays as it is; a value that our own table would refuse is left out and said, and so is every
name without a counterpart; no value is repeated in a message, since old files hold keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dbproxy.config.files import parse_toml, read_file
from dbproxy.config.load import SettingsError, problems_of_user_file
from dbproxy.config.settings import core_table
from dbproxy.config.values import Context
from dbproxy.errors import ConfigError
from dbproxy.paths import make_private, user_config_file, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ENV_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)\Z")
_YAML_LINE = re.compile(
    r"""(?P<key>"[^"]*"|'[^']*'|[^\s#:'"\[\]{},&*!|>%@`-][^:#]*?|-[^\s:#][^:#]*?)\s*:(?:\s+(?P<value>.*))?\Z"""
)

# What earlier tools called it -> our setting. Prefixes DBPROXY_ and SYNIX_ are taken off before.
_NAMES = {
    "PASSTHROUGH": "passthrough",
    "CHECKPOINT_THRESHOLD": "checkpoint_threshold",
    "SWAP_THRESHOLD": "swap_threshold",
    "COMPACT_TRIGGER_TOKENS": "compact_trigger_tokens",
    "CONVERSATION_TTL_SECONDS": "conversation_ttl_seconds",
    "LOG_LEVEL": "log_level",
    "UPSTREAM_URL": "upstream_url",
    "ANTHROPIC_FORWARD_URL": "upstream_url",
    "CLAUDE_API_BASE_URL": "upstream_url",
    "PROVIDERS.ANTHROPIC.BASE_URL": "upstream_url",
    "DASHBOARD_PORT": "dashboard_port",
    "PROXY_PORT": "listen",
    "REDIRECTOR_PORT": "listen",
    "PORT": "listen",
    "SERVER.PORT": "listen",
}

_NO_COUNTERPART = {
    "HOST": "the proxy listens on the loopback only; set listen to change that",
    "REDIRECTOR_HOST": "the proxy listens on the loopback only; set listen to change that",
    "DASHBOARD_HOST": "the proxy listens on the loopback only; set listen to change that",
    "DB_PATH": "the record is a new database in the data directory",
    "STORAGE.DB_PATH": "the record is a new database in the data directory",
    "DATA_DIR": "the data directory of another tool is not ours",
    "TLS_CA_DIR": "each installation makes its own certificate authority",
    "LOG_DIR": "the journal is in the data directory",
}


@dataclass(slots=True)
class Imported:
    """``settings`` by TOML name as text or number; ``skipped`` says one line for each thing that was left out."""

    settings: dict[str, object] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Takeover:
    """What ``import_file`` did: the user's ``file``, the ``text`` added to it, and what was ``skipped``."""

    file: Path
    text: str
    skipped: tuple[str, ...]


def import_file(source: Path, env: Mapping[str, str], *, write: bool = True) -> Takeover:
    """Put what an old settings file says before everything else in the user's ``config.toml``.

    What that file says already wins over the import. Raises ConfigError, with nothing written, when the old file cannot
    be read or the result would not be valid. With ``write`` false nothing is ever written.
    """
    try:
        found = convert(read_file(source).decode(), source.absolute().parent)
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror or error}") from None
    except ValueError as error:
        reason = "this is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigError(
            f"cannot take over {source}: {reason}", hint="A .env or a simple YAML file is expected"
        ) from None
    target = user_config_file(env)
    target = target.resolve()  # it may be a link into somebody's collection of such files
    try:
        before = read_file(target)
    except FileNotFoundError:
        before = b""
    except OSError as error:
        raise ConfigError(f"cannot read {target}: {error.strerror or error}") from None
    present = parse_toml(target, before)
    for key in [key for key in found.settings if key in present]:
        del found.settings[key]
        found.skipped.append(f"{key}: {target} says it already")
    if not found.settings:
        return Takeover(target, "", tuple(found.skipped))
    text = f"# Taken over from {source.name.encode('ascii', 'replace').decode()}\n{to_toml(found.settings)}"
    content = text.encode() + (b"\n" + before.removeprefix(b"\xef\xbb\xbf") if before else b"")
    problems = problems_of_user_file(target, content, env)
    if problems:
        raise SettingsError(problems)
    if write:
        make_private(target.parent)
        write_private(target, content)
    return Takeover(target, text, tuple(found.skipped))


def convert(text: str, base: Path) -> Imported:
    """Read an old settings file. ``base`` is its folder. Raises ValueError when it is neither shape."""
    found = Imported()
    text = text.removeprefix("\ufeff")
    if "\0" in text:
        raise ValueError("this is no text file")
    pairs = _environment(text, found) if _looks_like_environment(text) else _yaml(text, found)
    if not pairs and not found.skipped:
        raise ValueError("no NAME=value lines and no `name: value` mapping found")
    # The variable that names the public port beats the inner one: earlier tools had two listeners where we have one.
    order = {"PROXY_PORT": 0, "REDIRECTOR_PORT": 1, "PORT": 2, "SERVER.PORT": 3}
    for name, raw in sorted(pairs, key=lambda pair: order.get(_bare(pair[0]), 0)):
        _take(name, raw, base, found)
    return found


def to_toml(settings: dict[str, object]) -> str:
    """Top-level TOML lines for checked settings."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())


def _bare(name: str) -> str:
    return re.sub(r"\A(DBPROXY|SYNIX)_", "", name.upper())


def _take(name: str, raw: str, base: Path, found: Imported) -> None:
    bare = _bare(name)
    ours = core_table().by_env().get(f"DBPROXY_{bare}") if name.upper().startswith("DBPROXY_") else None
    key = _NAMES.get(bare) or (ours.key if ours else None)
    spec = core_table().by_key().get(key or "")
    if spec is None:
        found.skipped.append(f"{name}: {_NO_COUNTERPART.get(bare, 'no such setting here')}")
        return
    if spec.secret:
        found.skipped.append(
            f"{name}: secrets are not copied; set {spec.env[0]}, or {spec.key} as env:NAME or file:PATH"
        )
        return
    if not raw.strip():
        return
    if spec.name == "log_level":
        raw = {"WARN": "WARNING", "CRITICAL": "ERROR", "FATAL": "ERROR", "TRACE": "DEBUG"}.get(raw.upper(), raw)
    if spec.name == "listen" and _NAMES.get(bare) == "listen":
        raw = f"127.0.0.1:{raw}"
    if "${" in raw:
        found.skipped.append(f"{name}: refers to a variable; set it by hand")
        return
    try:
        value = spec.kind.encode(spec.kind.parse(raw, Context(base)))
    except ValueError as error:
        found.skipped.append(f"{name}: {error}")
        return
    if found.settings.get(spec.key, value) != value:
        found.skipped.append(f"{name}: {spec.key} was given already by another name")
        return
    found.settings[spec.key] = value


def _looks_like_environment(text: str) -> bool:
    lines = [line.strip() for line in text.splitlines()]
    return any(_ENV_LINE.match(line) for line in lines if not line.startswith("#"))


def _environment(text: str, found: Imported) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _ENV_LINE.match(line)
        if match is None:
            found.skipped.append(f"line {number}: not NAME=value")
        else:
            pairs.append((match[1], _scalar(match[2])))
    return pairs


def _yaml(text: str, found: Imported) -> list[tuple[str, str]]:
    """Nested mappings of scalars by indentation, flattened to dotted names; anything else is skipped with its line."""
    pairs: list[tuple[str, str]] = []
    open_keys: list[tuple[int, str]] = []
    skipping: int | None = None
    for number, line in enumerate(text.splitlines(), 1):
        body = line.strip()
        indent = len(line) - len(line.lstrip(" "))
        if not body or body.startswith("#") or body in ("---", "..."):
            continue
        if skipping is not None and (indent > skipping or (indent == skipping and body.startswith("- "))):
            continue  # inside something that was skipped as a whole
        skipping = None
        match = _YAML_LINE.match(body)
        if match is None or "\t" in line[: indent + 1]:
            found.skipped.append(f"line {number}: only plain `name: value` lines are understood")
            skipping = indent
            continue
        while open_keys and open_keys[-1][0] >= indent:
            open_keys.pop()
        key = match["key"].strip("\"'")
        name = ".".join([*(outer for _indent, outer in open_keys), key])
        value = _strip_comment(match["value"] or "")
        if not value:
            open_keys.append((indent, key))
        elif value[0] in "|>&*!{[":
            found.skipped.append(f"{name}: only plain values are understood")
            skipping = indent
        else:
            pairs.append((name, _scalar(value)))
    return pairs


def _strip_comment(value: str) -> str:
    value = value.strip()
    return "" if value.startswith("#") else value


def _scalar(raw: str) -> str:
    """A value without its quotes or its trailing comment."""
    raw = raw.strip()
    for quote in ('"', "'"):
        if raw.startswith(quote) and (end := raw.find(quote, 1)) > 0:
            return raw[1:end]
    raw = re.split(r"\s#", raw, maxsplit=1)[0].strip()
    return "" if raw in ("~", "null") else raw


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(name)} = {_toml(item)}" for name, item in value.items()) + " }"
    escaped = "".join(
        f"\\{character}" if character in '"\\' else character if character.isprintable() else f"\\U{ord(character):08X}"
        for character in str(value)
    )
    return f'"{escaped}"'
