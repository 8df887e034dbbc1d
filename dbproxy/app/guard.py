"""Who may talk to our own port outside a tunnel.

A page in the user's browser can send requests to 127.0.0.1, and by DNS rebinding even read the answers. So requests
outside a tunnel are checked by Origin and Sec-Fetch-Site on every path, and our own endpoints by Host too. Inside a
tunnel nothing is checked: there every byte belongs to the upstream. Pure; no I/O.

Who may read content says so with the control token, or, in a browser, with a cookie made from it: the cookie holds a
time and a signature, so that it survives a new worker, ends by itself, and is worth nothing when the token changes.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from dbproxy.errors import ProtocolViolation
from dbproxy.wire.target import parse_authority

if TYPE_CHECKING:
    from collections.abc import Collection

    from dbproxy.config import Settings
    from dbproxy.exchange import Fields, RequestHead

#: Seconds for which a browser that was let in once is let in.
COOKIE_LIFE: Final = 30 * 86_400.0
#: The header in which a client that has no launch scope brings the client key.
CLIENT_KEY: Final = b"x-dbproxy-key"


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


def take_client_key(head: RequestHead, settings: Settings) -> tuple[RequestHead, bool]:
    """The head as everything else may see it, and whether it came with the client key.

    The header is between the client and us: right, wrong or not asked for, it goes no further and is kept nowhere.
    """
    given = head.fields.get_all(CLIENT_KEY)
    if not given:
        return head, False
    key = (settings.client_key or "").encode()
    right = bool(key) and any(hmac.compare_digest(value, key) for value in given)
    return replace(head, fields=head.fields.without(frozenset({CLIENT_KEY}))), right


def _signature(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), f"dbproxy {purpose}".encode(), hashlib.sha256).hexdigest()


def cookie_name(token: str) -> str:
    """Cookies know no ports: each proxy of this machine gives its own another name."""
    return f"dbproxy-{_signature(token, 'cookie name')[:12]}"


def make_cookie(token: str, now: float) -> bytes:
    """The Set-Cookie value that lets a browser in for `COOKIE_LIFE` from ``now`` (Unix seconds)."""
    made = f"{int(now):x}"
    value = f"{made}.{_signature(token, f'cookie of {made}')}"
    return f"{cookie_name(token)}={value}; Max-Age={int(COOKIE_LIFE)}; Path=/; HttpOnly; SameSite=Strict".encode()


def has_cookie(fields: Fields, token: str, now: float) -> bool:
    """Whether the request carries our cookie, still valid, and comes from our own page or from nobody's.

    A page of another port of this machine is the same site to a browser, so it would send the cookie along: what the
    browser says about the sender is asked, too.
    """
    if not token or any(site not in (b"same-origin", b"none") for site in fields.tokens(b"sec-fetch-site")):
        return False
    wanted = cookie_name(token).encode()
    for raw in fields.get_all(b"cookie"):
        for pair in raw.split(b";"):
            name, _, value = pair.strip().partition(b"=")
            if name == wanted and _is_valid(value, token, now):
                return True
    return False


def _is_valid(value: bytes, token: str, now: float) -> bool:
    made, _, signature = value.partition(b".")
    try:
        at = int(made, 16)
    except ValueError:
        return False
    right = _signature(token, f"cookie of {made.decode('ascii')}").encode()
    return hmac.compare_digest(signature, right) and at - 86_400 <= now <= at + COOKIE_LIFE
