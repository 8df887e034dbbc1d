"""Hosts, authorities and request targets: one parser and one spelling for all comparisons.

Owns the answer to "are these two the same host?": intercept list, loop detection, private-target checks and the TLS
name all compare what ``normalise_host`` returns. Never imports sockets: nothing is resolved here, so numeric
shorthands such as ``127.1`` stay names and any policy on addresses has to act on what the resolver returned.

Invariants: accepted text is ASCII and free of blanks, control characters and user information; ``normalise_host`` is
idempotent; an ``Authority`` printed by ``str`` parses to itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from dbproxy.errors import ProtocolViolation

_MAX_NAME: Final = 253  # RFC 1035 2.3.4: 255 octets on the wire
# The underscore is no host name character, but container networks and service records use it and resolvers take it.
_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.ASCII)
_ZONE: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}", re.ASCII)
_DOTTED: Final = re.compile(r"[0-9]+(?:\.[0-9]+){3}", re.ASCII)
_SCHEME: Final = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_FORBIDDEN: Final = re.compile(rb"[^\x21-\x7e]")
_AUTHORITY_END: Final = re.compile(rb"[/?#]")

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Form(Enum):
    """The four forms of a request target (RFC 9112 3.2)."""

    ORIGIN = "origin"
    ABSOLUTE = "absolute"
    AUTHORITY = "authority"
    ASTERISK = "asterisk"


@dataclass(frozen=True, slots=True)
class Authority:
    """A normalised host and a port; ``str`` gives ``host:port`` with brackets where they are needed."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed request target.

    ``scheme`` is lower case and "" where the form carries none; ``host`` is "" and ``port`` 0 where there is no
    authority. ``path_and_query`` are the bytes as they came; an absolute target without a path gets "/", authority and
    asterisk forms have none (``b""`` and ``b"*"``).
    """

    form: Form
    scheme: str
    host: str
    port: int
    path_and_query: bytes

    @property
    def path(self) -> str:
        """The path without its query, percent-encoding untouched."""
        return self.path_and_query.partition(b"?")[0].decode("ascii")


def normalise_host(text: str) -> str:
    """The one spelling of a host: lower case, no brackets, no trailing dot, IPv6 compressed, IPv4-mapped as IPv4.

    ``xn--`` labels stay as they are. Raises ValueError for anything that no resolver should be asked about.
    """
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError(f"host {_shown(text)} opens a bracket and does not close it")
        return _ipv6(text[1:-1], text)
    if ":" in text:
        return _ipv6(text, text)
    if not text.isascii():
        raise ValueError(f"host {_shown(text)} is not ASCII: write it in its xn-- form")
    name = text.removesuffix(".").lower()
    if not name:
        raise ValueError("empty host")
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError(f"{_shown(text)} is not a host name")
    if _DOTTED.fullmatch(name):
        try:
            return str(IPv4Address(name))
        except AddressValueError:
            raise ValueError(f"{_shown(text)} is not an IPv4 address") from None
    return name


def _ipv6(inner: str, text: str) -> str:
    address, percent, zone = inner.partition("%")
    # In a URI the percent sign of a zone is itself encoded (RFC 6874); curl and browsers also send it bare.
    while len(zone) > 2 and zone.startswith("25"):
        zone = zone[2:]
    if percent and not _ZONE.fullmatch(zone):
        raise ValueError(f"{_shown(text)} has an unreadable IPv6 zone")
    try:
        parsed = IPv6Address(address)
    except AddressValueError:
        raise ValueError(f"{_shown(text)} is not an IPv6 address") from None
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{parsed}%{zone}" if percent else str(parsed)


def parse_authority(data: bytes, default_port: int | None) -> Authority:
    """``host``, ``host:port``, ``[v6]:port`` as in a CONNECT target or a Host field.

    ``default_port`` stands in for a missing or empty port; None makes that an error (RFC 9110 9.3.6: CONNECT has no
    default). Raises ProtocolViolation (400).
    """
    text = _ascii(data, "authority")
    if "@" in text:
        raise ProtocolViolation("user information in an authority", hint="Send credentials in Proxy-Authorization")
    if text.startswith("["):
        inner, closed, rest = text.partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ProtocolViolation(f"malformed authority {_shown(text)}")
        host, port = inner + "]", rest[1:]
    else:
        host, _, port = text.partition(":")
        if ":" in port:
            raise ProtocolViolation(f"malformed authority {_shown(text)}", hint="Write an IPv6 address in brackets")
    try:
        name = normalise_host(host)
    except ValueError as error:
        raise ProtocolViolation(str(error)) from None
    return Authority(name, _port(port, default_port, text))


def _port(text: str, default: int | None, whole: str) -> int:
    if not text:
        if default is None:
            raise ProtocolViolation(f"authority {_shown(whole)} names no port", hint="Send host:port")
        return default
    if len(text) > 5 or not text.isdigit() or int(text) > 65535:
        raise ProtocolViolation(f"authority {_shown(whole)} has no valid port", hint="Ports are 0 to 65535")
    return int(text)


def parse_target(data: bytes) -> Target:
    """A request target in any of its four forms; raises ProtocolViolation (400).

    The form is told from the bytes alone. Whether it suits the method (only CONNECT takes AUTHORITY, only OPTIONS
    takes ASTERISK) is the caller's to check.
    """
    if _FORBIDDEN.search(data):
        raise ProtocolViolation(
            "the request target holds a blank, a control or a non-ASCII character", hint="Percent-encode it"
        )
    if data.startswith(b"/"):
        return Target(Form.ORIGIN, "", "", 0, data)
    if data == b"*":
        return Target(Form.ASTERISK, "", "", 0, data)
    if not data:
        raise ProtocolViolation("empty request target")
    absolute = _SCHEME.match(data)
    if absolute is None:
        authority = parse_authority(data, None)
        return Target(Form.AUTHORITY, "", authority.host, authority.port, b"")
    scheme = absolute[1].decode("ascii").lower()
    if scheme not in DEFAULT_PORTS:
        raise ProtocolViolation(f"unknown scheme {_shown(scheme)} in the request target", hint="Use http or https")
    end = _AUTHORITY_END.search(data, absolute.end())
    split = end.start() if end else len(data)
    authority = parse_authority(data[absolute.end() : split], DEFAULT_PORTS[scheme])
    path = data[split:]
    return Target(Form.ABSOLUTE, scheme, authority.host, authority.port, path if path.startswith(b"/") else b"/" + path)


def _ascii(data: bytes, what: str) -> str:
    if _FORBIDDEN.search(data):
        raise ProtocolViolation(f"the {what} holds a blank, a control or a non-ASCII character")
    return data.decode("ascii")


def _shown(text: str) -> str:
    # Errors end up in answers and logs: never the whole of a hostile megabyte.
    return repr(text if len(text) <= 80 else text[:77] + "...")
