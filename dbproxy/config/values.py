"""Kinds of setting values: how each is read from text or TOML, kept as JSON, and shown.

Imports nothing of dbproxy. Invariants: ``parse`` takes what ``encode`` gives; bad input is a ValueError whose text
says what was expected and never repeats a secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\Z")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class HostPort:
    """An address to listen on. ``host`` is without brackets; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Context:
    """What a relative value refers to: the folder of its file (or the working directory) and the environment."""

    base: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    home: Path | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value. ``shape`` is what the documents say a person should write.

    With ``adds_up`` the value is a `Section`, to which every source adds its entries. ``tamed`` gives what a project
    file that nobody trusts may say of a value, and (entry, reason) for the rest.
    """

    shape: str
    parse: Callable[[Any, Context], Any]
    encode: Callable[[Any], Any] = lambda value: value
    show: Callable[[Any], str] | None = None
    many: bool = False
    flag: bool = False
    adds_up: bool = False
    tamed: Callable[[Any], tuple[Any, tuple[tuple[str, str], ...]]] | None = None

    def text(self, value: object) -> str:
        """The value as a person should see it."""
        if value is None:
            return "(unset)"
        if self.show is not None:
            return self.show(value)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, tuple):
            return ", ".join(str(item) for item in value) or "(none)"
        return str(value)


def mask_userinfo(text: str) -> str:
    """``text`` with user and password of any URL in it replaced."""
    return _USERINFO.sub("***@", text)


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("expected text")
    value = raw.strip()
    if not value or any(ord(character) < 32 for character in value):
        raise ValueError("expected text without control characters")
    return value


def _number(raw: Any, what: str) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError(f"expected {what}")
    try:
        value = float(raw.replace("_", "") if isinstance(raw, str) else raw)
    except (ValueError, OverflowError):
        raise ValueError(f"expected {what}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"expected {what}")
    return value


def boolean() -> Kind:
    """1/0, true/false, yes/no, on/off."""

    def parse(raw: Any, _context: Context) -> bool:
        if isinstance(raw, bool):
            return raw
        word = str(raw).strip().lower() if isinstance(raw, str | int) else ""
        if word not in _TRUE | _FALSE:
            raise ValueError("expected true or false (also 1/0, yes/no, on/off)")
        return word in _TRUE

    return Kind("true or false", parse, flag=True)


def integer(low: int, high: int, unit: str = "") -> Kind:
    """A whole number from ``low`` to ``high``."""
    shape = f"whole number from {low} to {high}" + (f", {unit}" if unit else "")

    def parse(raw: Any, _context: Context) -> int:
        if isinstance(raw, str) and re.fullmatch(r"[+-]?[0-9][0-9_]*", raw.strip()):
            raw = int(raw.strip().replace("_", ""))
        if isinstance(raw, bool) or not isinstance(raw, int) or not low <= raw <= high:
            raise ValueError(f"expected a {shape}")
        return raw

    return Kind(shape, parse)


def seconds(low: float, high: float) -> Kind:
    """A time in seconds, fractions allowed."""
    shape = f"seconds, from {low:g} to {high:g}"

    def parse(raw: Any, _context: Context) -> float:
        value = _number(raw, shape)
        if not low <= value <= high:
            raise ValueError(f"expected {shape}")
        return value

    return Kind(shape, parse, show=lambda value: f"{value:g}")


def fraction() -> Kind:
    """``0.7``, ``70`` and ``70%`` all mean 0.7: people write any of them, and a threshold of 7000% would mean never."""
    shape = "fraction (0.7) or percentage (70 or 70%)"

    def parse(raw: Any, _context: Context) -> float:
        percent = isinstance(raw, str) and raw.strip().endswith("%")
        value = _number(raw.strip()[:-1] if percent else raw, f"a {shape}")
        if percent or value > 1:
            value = round(value / 100, 10)
        if not 0 < value <= 1:
            raise ValueError(f"expected a {shape} above 0 and not above 100%")
        return value

    return Kind(shape, parse, show=lambda value: f"{value:g}")


def choice(*words: str, upper: bool = False) -> Kind:
    """One of ``words``; case does not matter."""

    def parse(raw: Any, _context: Context) -> str:
        # YAML-minded people write buffer = false in TOML and mean off.
        word = ("on" if raw else "off") if isinstance(raw, bool) else str(raw).strip()
        word = word.upper() if upper else word.lower()
        if word not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return word

    return Kind(" or ".join(words), parse)


def host_name(raw: Any) -> str:
    """A host name or IP literal in the one spelling that is compared: lower case, no final dot, no brackets."""
    name = _text(raw).lower().removesuffix(".")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    if ":" in name:
        if not re.fullmatch(r"[0-9a-f:.]{2,45}", name):
            raise ValueError(f"{name!r} is not a host name (no port, no scheme)")
        return name
    if len(name) > 253 or not _HOST.match(name):
        raise ValueError(f"{name[:80]!r} is not a host name (no port, no scheme, no wildcard)")
    return name


def host_port(raw: Any) -> HostPort:
    """``127.0.0.1:8080``, ``[::1]:8080``, a bare port (loopback), or the mapping that we encode ourselves."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    text = _text(raw)
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = "127.0.0.1", text
    elif ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{text!r}: an IPv6 address needs brackets, as in [::1]:8080")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{text!r}: expected HOST:PORT with a port from 0 to 65535")
    return HostPort(host_name(host), int(port))


def many(of: Callable[[Any], Any], shape: str, *, empty: bool = True) -> Kind:
    """A list: a TOML array, or text with commas. Doubles are dropped, order is kept."""

    def parse(raw: Any, _context: Context) -> tuple[Any, ...]:
        items = raw if isinstance(raw, list | tuple) else [raw]
        split = [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]
        parts = [part for part in split if not isinstance(part, str) or part.strip()]
        if not parts and not empty:
            raise ValueError("expected at least one")
        return tuple(dict.fromkeys(of(part) for part in parts))

    def encode(value: Any) -> list[Any]:
        return [str(item) for item in value]

    return Kind(shape, parse, encode, many=True)


def words(shape: str) -> Kind:
    """A list of plain words."""
    return many(_text, shape)


def text(shape: str, *, show: Callable[[Any], str] | None = None) -> Kind:
    """Any one-line text."""
    return Kind(shape, lambda raw, _context: _text(raw), show=show)


def secret() -> Kind:
    """A secret: itself, ``env:NAME`` or ``file:PATH``. Shown as ``***`` only."""

    def parse(raw: Any, context: Context) -> str:
        if not isinstance(raw, str):
            raise ValueError("expected text, env:NAME or file:PATH")
        value = raw.strip()
        if value.startswith("env:"):
            name = value[4:]
            value = context.env.get(name, "").strip()
            if not value:
                raise ValueError(f"the environment variable {name} that it refers to is not set")
        elif value.startswith("file:"):
            where = _path(value[5:], context)
            try:
                with where.open("rb") as file:
                    value = file.read(64 * 1024).decode().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not text"
                raise ValueError(f"the file {where} that it refers to cannot be read: {reason}") from None
        if len(value) < 8 or not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("expected a secret of at least 8 printable ASCII characters without spaces")
        return value

    return Kind("text, `env:NAME` or `file:PATH`", parse, show=lambda _value: "***")


def _path(raw: Any, context: Context) -> Path:
    value = raw if isinstance(raw, Path) else Path(_text(raw))
    if value.parts and value.parts[0] == "~" and context.home is not None:
        value = context.home.joinpath(*value.parts[1:])
    if not value.is_absolute():
        if context.base is None:
            raise ValueError(f"expected an absolute path, not {value}")
        value = context.base / value
    return value


def path_in(raw: Any, context: Context, name: str) -> Path:
    """A path that stands as ``name`` in a table. Raises ValueError."""
    try:
        return _path(raw, context)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def path() -> Kind:
    """A path; ``~`` is the home, a relative one starts at its file's folder or at the working directory."""
    return Kind("path", _path, str)


def url(*schemes: str) -> Kind:
    """A URL of one of ``schemes`` with a host, perhaps a path, and nothing else; no trailing slash is kept."""
    shape = f"URL ({' or '.join(f'{scheme}://' for scheme in schemes)})"

    def parse(raw: Any, _context: Context) -> str:
        value = _text(raw)
        try:
            parts = urlsplit(value)
            host_name(parts.hostname or "")
            port = parts.port
        except ValueError:
            raise ValueError(f"expected a {shape} with a host") from None
        if parts.scheme not in schemes or port == 0 or not value.isascii() or " " in value:
            raise ValueError(f"expected a {shape} with a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"expected a {shape} without user, query or fragment")
        return value.rstrip("/")

    return Kind(shape, parse)


def proxy() -> Kind:
    """A parent proxy's URL, kept as it is written; its password is never shown."""
    return text("URL of a proxy, `http://[user:password@]host:port`", show=mask_userinfo)


def labels() -> Kind:
    """``name=value`` pairs: a TOML table, or text with commas."""

    def parse(raw: Any, _context: Context) -> tuple[tuple[str, str], ...]:
        if isinstance(raw, str):
            raw = [part for part in raw.split(",") if part.strip()]
        if isinstance(raw, list | tuple):
            pairs = [str(part).partition("=")[::2] for item in raw for part in str(item).split(",") if part.strip()]
        elif isinstance(raw, dict):
            pairs = [(name, value) for name, value in raw.items() if isinstance(value, str)]
            if len(pairs) != len(raw):
                raise ValueError("expected text values")
        else:
            raise ValueError("expected name=value pairs")
        clean = tuple((name.strip(), value.strip()) for name, value in pairs)
        for name, value in clean:
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) or not value.isprintable() or len(value) > 256:
                raise ValueError(
                    "expected name=value pairs: names of letters, digits, _ . -; values up to 256 characters"
                )
        if len(clean) > 32:
            raise ValueError("expected at most 32 labels")
        return tuple(dict(clean).items())

    def show(value: Any) -> str:
        return ", ".join(f"{name}={text}" for name, text in value) or "(none)"

    return Kind("`name=value` pairs", parse, dict, show, many=True)
