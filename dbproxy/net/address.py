"""What can be said about an address or a NO_PROXY entry by looking at it.

Owns: which addresses are not the public internet, when a target is our own listener, and NO_PROXY lists as the
clients around us read them. Pure: no sockets, no resolving, no environment. Must never import trio.

Invariant: a policy on addresses is asked about what the resolver returned, never about the name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

Address = IPv4Address | IPv6Address

# The special-purpose registries of IANA (RFC 6890 and later), written out because the standard library's idea of
# "private" changed between patch releases.
_NOT_PUBLIC_4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network; 0.0.0.0 connects to ourselves
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; one cloud's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's metadata service behind a public address
        "169.254.0.0/16",  # link-local; most clouds' metadata service
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_NOT_PUBLIC_6: Final = tuple(
    IPv6Network(text)
    for text in (
        "::/96",  # unspecified, loopback, and the IPv4-compatible form that nobody may use any more
        "64:ff9b:1::/48",  # translation inside a network
        "100::/64",
        "2001:db8::/32",
        "fc00::/7",  # unique local; two clouds' metadata service
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")
_TEREDO: Final = IPv6Network("2001::/32")
_6TO4: Final = IPv6Network("2002::/16")
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})


def parse_ip(text: str) -> Address | None:
    """The address that ``text`` spells, with or without brackets and zone; None for anything else."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return IPv6Address(inner.partition("%")[0]) if ":" in inner else IPv4Address(inner)
    except ValueError:
        return None


def plain(ip: str | Address) -> Address:
    """``ip`` without a zone, and as IPv4 where it only wraps an IPv4 address. Raises ValueError if it is none."""
    address = parse_ip(ip) if isinstance(ip, str) else ip
    if address is None:
        raise ValueError(f"{ip!r} is not an IP address")
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.scope_id is not None:
            return IPv6Address(int(address))
    return address


def is_private(ip: str | Address) -> bool:
    """Whether ``ip`` is anything but a unicast address of the public internet.

    True for this machine, private and shared networks, link-local, multicast, reserved ranges, the clouds' metadata
    services, and for IPv6 addresses that carry such an IPv4 address (mapped, NAT64, 6to4, Teredo, ISATAP).
    """
    address = plain(ip)
    if isinstance(address, IPv4Address):
        return any(address in network for network in _NOT_PUBLIC_4)
    if any(address in network for network in _NOT_PUBLIC_6):
        return True
    return any(is_private(inner) for inner in _carried(address))


def _carried(address: IPv6Address) -> Iterable[IPv4Address]:
    """The IPv4 addresses to which a translator or tunnel would take a packet for ``address``."""
    bits = int(address)
    low = bits & 0xFFFFFFFF
    if address in _NAT64 or (bits >> 32) & 0xFFFFFFFF in _ISATAP:
        yield IPv4Address(low)
    if address in _6TO4:
        yield IPv4Address(bits >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        yield IPv4Address(bits >> 64 & 0xFFFFFFFF)
        yield IPv4Address(low ^ 0xFFFFFFFF)


def is_own_listener(
    ip: str | Address, port: int, listeners: Collection[tuple[str, int]], is_local: Callable[[Address], bool]
) -> bool:
    """Whether a connection to ``ip``:``port`` would arrive at one of our own ``listeners`` (address, port).

    A listener's address may be a wildcard or ``localhost``. ``is_local`` tells whether an address belongs to this
    machine; it is asked only when a wildcard listener makes it matter.
    """
    if all(port != own_port for _, own_port in listeners):
        return False
    target = plain(ip)
    if target.is_unspecified:  # the kernel takes that for loopback
        target = IPv4Address("127.0.0.1") if target.version == 4 else IPv6Address("::1")
    for own, own_port in listeners:
        if port != own_port:
            continue
        if own == "localhost":
            if target in (IPv4Address("127.0.0.1"), IPv6Address("::1")):
                return True
            continue
        address = parse_ip(own or "::")
        if address is None:
            continue
        address = plain(address)
        if address == target:
            return True
        # A wildcard IPv6 listener is usually a dual-stack one.
        if address.is_unspecified and (address.version in (6, target.version)) and is_local(target):
            return True
    return False


@dataclass(frozen=True, slots=True)
class NoProxy:
    """A NO_PROXY list, ready to be asked."""

    entries: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | Iterable[str]) -> NoProxy:
        """Entries from text with commas or blanks between them, or from several such texts."""
        texts = [text] if isinstance(text, str) else text
        return cls(tuple(entry for part in texts for entry in re.split(r"[,\s]+", part) if entry))

    def matches(self, host: str, port: int) -> bool:
        """Whether connections to ``host``:``port`` go past the proxy."""
        return no_proxy_matches(self.entries, host, port)


def no_proxy_matches(entries: Iterable[str], host: str, port: int) -> bool:
    """Whether one of ``entries`` covers ``host``, as curl reads them and, where it is silent, requests and undici.

    ``*`` covers everything. A name covers itself and what lies below it, with or without a leading ``.`` or ``*.``.
    ``name:port`` covers that port only. An address or a network in CIDR form covers literal addresses. Case, brackets
    and a trailing dot do not matter. An entry that makes no sense covers nothing.
    """
    name = _clean(host)
    address = parse_ip(name)
    target = plain(address) if address is not None else None
    for entry in entries:
        if entry == "*":
            return True
        wanted, wanted_port = _split_port(entry)
        if wanted_port is not None and wanted_port != port:
            continue
        if target is not None:
            if _holds(wanted, target):
                return True
        else:
            wanted = _clean(wanted).removeprefix("*").removeprefix(".")
            if wanted and (name == wanted or name.endswith("." + wanted)):
                return True
    return False


def without_entries_covering(no_proxy: str, hosts: Iterable[str]) -> str:
    """``no_proxy`` for a launched child: less what covers one of ``hosts``, plus the names of this machine.

    Clients differ in what an entry covers (one compares bare suffixes, some know wildcards, some ignore the port), so
    an entry goes as soon as any of them would apply it to one of ``hosts``. Nothing is lost by that: what then comes
    to us is dialled by the user's own list.
    """
    names = [_clean(host) for host in hosts]
    kept = [entry for entry in NoProxy.parse(no_proxy).entries if not any(_might_cover(entry, name) for name in names)]
    known = {entry.lower() for entry in kept}
    return ",".join([*kept, *(own for own in ("localhost", "127.0.0.1", "::1") if own not in known)])


def _might_cover(entry: str, name: str) -> bool:
    wanted = _clean(_split_port(entry)[0])
    address = parse_ip(name)
    if address is not None:
        return "*" in wanted or _holds(wanted, plain(address))
    core = wanted.lstrip("*.")
    return name.endswith(core) or fnmatchcase(name, wanted)


def _clean(host: str) -> str:
    """Lower case, without brackets and trailing dot."""
    text = host.strip().lower()
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1]
    return text.removesuffix(".")


def _split_port(entry: str) -> tuple[str, int | None]:
    """``host:port`` taken apart; a bare IPv6 address has no port."""
    if entry.count(":") > 1 and not entry.startswith("["):
        return entry, None
    head, colon, tail = entry.rpartition(":")
    if colon and tail.isascii() and tail.isdigit() and not head.count("[") > head.count("]"):
        return head, int(tail)
    return entry, None


def _holds(wanted: str, target: Address) -> bool:
    """Whether ``wanted`` is this address or a network with it."""
    text = _clean(wanted)
    try:
        if "/" not in text:
            address = parse_ip(text)
            return address is not None and plain(address) == target
        return target in ip_network(text.replace("[", "").replace("]", ""), strict=False)
    except (ValueError, TypeError):
        return False
