"""Who may talk to our own port outside a tunnel.

A page in the user's browser can send requests to 127.0.0.1, and by DNS rebinding even read the answers. So requests
outside a tunnel are checked by Origin and Sec-Fetch-Site on every path, and our own endpoints by Host too. Inside a
tunnel nothing is checked: there every byte belongs to the upstream. Pure; no I/O.
"""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import TYPE_CHECKING

from dbproxy.errors import ProtocolViolation
from dbproxy.wire.target import parse_authority

if TYPE_CHECKING:
    from collections.abc import Collection

    from dbproxy.exchange import Fields


def _is_own_name(host: str, names: Collection[str]) -> bool:
    if host in names or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def host_is_ours(fields: Fields, names: Collection[str]) -> bool:
    """Whether Host names this machine: a loopback address, localhost, or one of ``names``."""
    raw = fields.get(b"host")
    if raw is None:
        return False
    try:
        return _is_own_name(parse_authority(raw, 80).host, names)
    except ProtocolViolation:
        return False


def is_cross_site(fields: Fields, names: Collection[str]) -> bool:
    """Whether a browser says that another site's page sent this request."""
    if b"cross-site" in fields.tokens(b"sec-fetch-site"):
        return True
    for raw in fields.get_all(b"origin"):
        scheme, separator, authority = raw.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            return True  # "null" is what a sandboxed page or a file says
        try:
            if not _is_own_name(parse_authority(authority, 80).host, names):
                return True
        except ProtocolViolation:
            return True
    return False


def is_foreign_origin(fields: Fields) -> bool:
    """Whether a page of any other origin sent this: one of another port, or of another spelling of our address, too.

    Cookies know no ports, so a page of some other program on this machine would come with the cookie of our page.
    """
    host = fields.get(b"host") or b""
    return any(raw.partition(b"://")[2].lower() != host.lower() for raw in fields.get_all(b"origin"))


def has_token(fields: Fields, token: str) -> bool:
    """Whether the request carries the control token as ``Authorization: Bearer``."""
    raw = fields.get(b"authorization") or b""
    scheme, _, value = raw.partition(b" ")
    return bool(token) and scheme.lower() == b"bearer" and hmac.compare_digest(value.strip(), token.encode())
