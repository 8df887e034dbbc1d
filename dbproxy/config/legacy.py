"""Settings files of earlier tools, read for ``dbproxy config import``: ``NAME=value`` lines and plain YAML mappings.

``convert`` is text in, our settings and a list of what was left out; ``import_file`` puts them into the user's file,
and keys into private files beside it. What becomes of routes and providers: ``seeds``. Imports ``dbproxy.errors``,
``dbproxy.paths`` and its own package. Invariants: nothing is run, expanded or fetched; what stands in the user's file
stays as it is; a value that our own table would refuse is left out and said, and so is every name without a
counterpart; no value but a rule's is repeated in a message, since old files hold keys.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbproxy.config.files import parse_toml, read_file
from dbproxy.config.load import SettingsError, problems_of_user_file
from dbproxy.config.seeds import Imported, seconds, take_routes
from dbproxy.config.settings import core_table
from dbproxy.config.tables import toml, toml_key
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
    "IDLE_TIMEOUT": "client_idle_timeout",
    "SERVER.TIMEOUTS.IDLE": "client_idle_timeout",
}

_READING = "a request may take as long as it needs; head_timeout bounds its head"
_WRITING = "an answer may take as long as it needs; upstream_silence_timeout bounds a silence"
_NO_COUNTERPART = {
    "HOST": "the proxy listens on the loopback only; set listen to change that",
    "REDIRECTOR_HOST": "the proxy listens on the loopback only; set listen to change that",
    "DASHBOARD_HOST": "the proxy listens on the loopback only; set listen to change that",
    "DB_PATH": "the record is a new database in the data directory",
    "STORAGE.DB_PATH": "the record is a new database in the data directory",
    "DATA_DIR": "the data directory of another tool is not ours",
    "TLS_CA_DIR": "each installation makes its own certificate authority",
    "LOG_DIR": "the journal is in the data directory",
    "STORAGE.REQUESTS_DIR": "the record is a database in the data directory",
    "READ_TIMEOUT": _READING,
    "SERVER.TIMEOUTS.READ": _READING,
    "WRITE_TIMEOUT": _WRITING,
    "SERVER.TIMEOUTS.WRITE": _WRITING,
    "ANTHROPIC_VERSION": "requests to Claude go with the version that the client names",
    "ANTHROPIC_MAX_RETRIES": "the client tries again by itself",
    "ANTHROPIC_API_KEY": "requests to Claude go with the client's own credential",
    "WEB_PORT": "the page is at the proxy's own port",
    "PROXY_CORE_PORT": "one proxy does it all; PORT is its port",
    "PROXY_DATA_PORT": "one proxy does it all; PORT is its port",
}
_SECTIONS = {
    "STORAGE.": "the record is a new database in the data directory",
    "ROUTING.": "a rule names its models in order; write them under [routes]",
}


@dataclass(frozen=True, slots=True)
class Takeover:
    """What ``import_file`` did: the user's ``file``, the ``text`` added to it, what was ``skipped``, and what is to be
    ``noted`` beside."""

    file: Path
    text: str
    skipped: tuple[str, ...]
    noted: tuple[str, ...] = ()


def import_file(source: Path, env: Mapping[str, str], *, write: bool = True) -> Takeover:
    """Put what an old settings file says into the user's ``config.toml``: lines before everything else, tables behind.

    What that file says already wins over the import. Keys go into files of their own, in the folder ``keys`` of the
    user's configuration. Raises ConfigError, with nothing written, when the old file cannot be read or the result would
    not be valid. With ``write`` false nothing is ever written.
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
    named = user_config_file(env)
    target = named.resolve()  # it may be a link into somebody's collection of such files, where no key belongs
    try:
        before = read_file(target)
    except FileNotFoundError:
        before = b""
    except OSError as error:
        raise ConfigError(f"cannot read {target}: {error.strerror or error}") from None
    _leave_out(found, parse_toml(target, before), target)
    files = _key_files(found, named.parent / "keys")
    if not found.settings:
        return Takeover(target, "", tuple(found.skipped), tuple(found.noted))
    head = f"# Taken over from {source.name.encode('ascii', 'replace').decode()}\n"
    lines, tables = to_toml(found.settings), tables_to_toml(found.settings)
    content = _joined(head + lines if lines else "", before, head + tables if tables else "")
    problems = problems_of_user_file(target, content, env)
    if problems:
        raise SettingsError(problems)
    if write:
        _write(target, content, files)
    return Takeover(target, head + lines + tables, tuple(found.skipped), tuple(found.noted))


def _leave_out(found: Imported, present: Mapping[str, Any], target: Path) -> None:
    """Take back what the user's file says already; of providers those alone that stand there."""
    for key in [key for key in found.settings if key in present]:
        value, there = found.settings[key], present[key]
        if key == "providers" and isinstance(there, dict):
            names = {name.lower() for name in there}
            doubles = [name for name in value if name.lower() in names]
            found.skipped += [f"providers.{name}: {target} says it already" for name in doubles]
            found.settings[key] = value = {name: table for name, table in value.items() if name not in doubles}
            if value:
                continue
        elif key == "routes":
            byhand = "; ".join(f"{toml_key(name)} = {toml(item)}" for name, item in value.items())
            found.skipped.append(f"{key}: {target} has rules already; add by hand: {byhand}")
        else:
            found.skipped.append(f"{key}: {target} says it already")
        del found.settings[key]
    left = found.settings.get("providers", {})
    found.keys = {name: secret for name, secret in found.keys.items() if name in left}


def _key_files(found: Imported, folder: Path) -> dict[Path, str]:
    """A file for each key: a free name, or one that holds just this key. The settings name it then."""
    files: dict[Path, str] = {}
    for provider, secret in found.keys.items():
        file = _free_file(folder, provider, secret)
        found.settings["providers"][provider]["key_file"] = f"keys/{file.name}"
        found.noted.append(f"the key of {provider} goes into {file}, which nobody else can read")
        files[file] = secret
    return files


def _free_file(folder: Path, name: str, secret: str) -> Path:
    for number in range(1, 100):
        file = folder / (name if number == 1 else f"{name}-{number}")
        try:
            if read_file(file).decode("utf-8", "replace").strip() == secret:
                return file
        except FileNotFoundError:
            return file
        except OSError as error:
            raise ConfigError(f"cannot keep a key in {file}: {error.strerror or error}") from None
    raise ConfigError(f"there are too many keys for {name} in {folder}", hint="Remove those that are not used")


def _write(target: Path, content: bytes, files: Mapping[Path, str]) -> None:
    written: list[Path] = []
    try:
        for file, secret in files.items():
            if not file.exists():
                make_private(file.parent)
                written.append(file)
                write_private(file, secret + "\n")
        make_private(target.parent)
        write_private(target, content)
    except BaseException:
        for file in written:  # a key that nothing names would only lie about
            with suppress(OSError):
                file.unlink()
        raise


def _joined(first: str, before: bytes, last: str) -> bytes:
    """Lines, what was there, tables; a blank line between."""
    before = before.removeprefix(b"\xef\xbb\xbf")
    middle = before if not last or before.endswith(b"\n") or not before else before + b"\n"
    return b"\n".join(part for part in (first.encode(), middle, last.encode()) if part)


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
    others = take_routes(pairs, base, found)
    for name, raw in sorted(others, key=lambda pair: order.get(_bare(pair[0]), 0)):
        _take(name, raw, base, found)
    return found


def to_toml(settings: dict[str, object]) -> str:
    """Top-level TOML lines for checked settings that are no tables."""
    return "".join(f"{key} = {toml(value)}\n" for key, value in settings.items() if not isinstance(value, dict))


def tables_to_toml(settings: dict[str, Any]) -> str:
    """The other ones, each under a head of its own; a table of tables has one for each of these."""
    parts: list[str] = []
    for key, value in settings.items():
        if isinstance(value, dict):
            inner = {name: item for name, item in value.items() if isinstance(item, dict)} if key == "providers" else {}
            parts += [_table(f"{key}.{toml_key(name)}", item) for name, item in inner.items()]
            plain = {name: item for name, item in value.items() if name not in inner}
            parts += [_table(key, plain)] if plain else []
    return "\n".join(parts)


def _table(head: str, entries: Mapping[str, object]) -> str:
    return f"[{head}]\n" + "".join(f"{toml_key(name)} = {toml(item)}\n" for name, item in entries.items())


def _bare(name: str) -> str:
    return re.sub(r"\A(DBPROXY|SYNIX)_", "", name.upper())


def _take(name: str, raw: str, base: Path, found: Imported) -> None:
    bare = _bare(name)
    ours = core_table().by_env().get(f"DBPROXY_{bare}") if name.upper().startswith("DBPROXY_") else None
    key = _NAMES.get(bare) or (ours.key if ours else None)
    spec = core_table().by_key().get(key or "")
    if spec is None:
        section = next(
            (reason for start, reason in _SECTIONS.items() if bare.startswith(start)), "no such setting here"
        )
        found.skipped.append(f"{name}: {_NO_COUNTERPART.get(bare, section)}")
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
    if spec.name == "client_idle_timeout" and (time := seconds(raw)) is not None:
        raw = f"{time:g}"
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
        elif (flow := _flow(value)) is not None:
            pairs += [(f"{name}.{inner}", raw) for inner, raw in flow]
        elif value[0] in "|>&*!{[":
            found.skipped.append(f"{name}: only plain values are understood")
            skipping = indent
        else:
            pairs.append((name, _scalar(value)))
    return pairs


def _flow(value: str) -> list[tuple[str, str]] | None:
    """The pairs of a mapping on one line, ``{ a: b, c: d }``; None if it is none, or holds more than plain values."""
    inside = re.fullmatch(r"\{([^{}\[\]]*)\}\s*(?:#.*)?", value)
    if inside is None or re.search(r"""["'][^"',]*,""", inside[1]):
        return None
    pairs: list[tuple[str, str]] = []
    for item in filter(None, map(str.strip, inside[1].split(","))):
        match = _YAML_LINE.match(item)
        if match is None:
            return None
        pairs.append((match["key"].strip("\"'"), _scalar(match["value"] or "")))
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
