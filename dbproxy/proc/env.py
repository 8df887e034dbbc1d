"""The environment of a launched child, as a pure function of the launcher's own environment.

Owns which variables a child gets and loses (INTERFACES: "Environment of a launched child"), and the reading of the
user's own proxy variables. Must never read ``os.environ``, touch the disk or import trio. Invariants: nothing but the
documented variables changes; a variable of the user's is only replaced where the child could not work otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from dbproxy.proc.frozen import without_pyinstaller as without_pyinstaller

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LOOPBACK_ENTRIES = ("localhost", "127.0.0.1", "::1")
"""What a child must reach without us in any case."""

COMPACTION_VARIABLES = (
    "CLAUDE_CODE_AUTO_COMPACT_WINDOW",
    "CLAUDE_AUTOCOMPACT_PCT_OVERRIDE",
    "DISABLE_AUTO_COMPACT",
    "DISABLE_COMPACT",
    "CLAUDE_CODE_MAX_OUTPUT_TOKENS",
    "CLAUDE_CODE_MAX_CONTEXT_TOKENS",
    "CLAUDE_CODE_DISABLE_1M_CONTEXT",
)
"""The client's own variables that move its compaction wall (client facts 4.2); a scope records those that are set."""

PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY")
"""Where a client looks for its proxy to an https host, in this order (client facts 1.3: HTTP_PROXY alone counts)."""

BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that replace a tool's list of roots; set only where unset, to our roots and the system's."""

MARKS = ("DBPROXY_ACTIVE", "DBPROXY_URL")
"""What tells a child that it runs through us."""
_WALL_OFFSET = 33_000
_LARGE_WINDOW = 1_000_000


@dataclass(frozen=True, slots=True)
class ChildEnvironment:
    """The variables for the child, and what the person should be told (one line each)."""

    env: dict[str, str]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundles:
    """Files of roots for a child. ``node`` is for NODE_EXTRA_CA_CERTS; ``full`` (our roots and the system's) may be ""
    when no system roots were found: a bundle without them would cut the child off from every other host. ``merged``
    holds, by variable, the user's own bundle with our roots added."""

    node: str
    full: str = ""
    merged: Mapping[str, str] = field(default_factory=dict)


def child_environment(
    base: Mapping[str, str],
    *,
    userinfo: str,
    url: str,
    bundles: Bundles,
    intercept: Iterable[str],
    no_proxy: str | None = None,
    compact_window: int | None = None,
    frozen: bool = False,
) -> ChildEnvironment:
    """The environment of a child that goes through the proxy at ``url`` (``http://HOST:PORT``).

    ``base`` is the launcher's environment without the marks of an outer launch (``without_ours``). ``userinfo`` is
    ``id:secret`` of the scope. ``no_proxy`` is the user's list when it is not the one in ``base``. ``compact_window``
    in tokens is given to the client unless the user gave it one. ``frozen`` undoes what PyInstaller did to ``base``.
    """
    env = without_pyinstaller(base) if frozen else dict(base)
    notices: list[str] = []
    proxy = url.replace("://", f"://{userinfo}@", 1)
    env["HTTPS_PROXY"] = env["https_proxy"] = proxy
    kept = without_covering(user_no_proxy(base) if no_proxy is None else no_proxy, intercept)
    env["NO_PROXY"] = env["no_proxy"] = ",".join([*kept, *(item for item in LOOPBACK_ENTRIES if item not in kept)])
    env["NODE_EXTRA_CA_CERTS"] = bundles.node
    for name in BUNDLE_VARIABLES:
        if name in bundles.merged:
            env[name] = bundles.merged[name]
        elif bundles.full and not env.get(name):
            env[name] = bundles.full
    env.setdefault("CLAUDE_CODE_GATEWAY_HINT_HEADERS", "1")
    env["DBPROXY_ACTIVE"] = "1"
    env["DBPROXY_URL"] = url
    if compact_window is not None:
        theirs = env.get("CLAUDE_CODE_AUTO_COMPACT_WINDOW")
        if theirs:
            notices.append(
                f"early swap is on, but CLAUDE_CODE_AUTO_COMPACT_WINDOW is already {theirs}: yours is left as it is"
            )
        else:
            env["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] = str(compact_window)
            notices.append(
                f"early swap: CLAUDE_CODE_AUTO_COMPACT_WINDOW={compact_window}, so Claude Code compacts before it must"
            )
    return ChildEnvironment(env, tuple(notices))


def compact_window(swap_threshold: float) -> int:
    """The window in tokens that makes the client compact at ``swap_threshold`` of its real wall.

    The wall stands 33,000 tokens below the window (20,000 for the answer, 13,000 of reserve; client facts 4.2). It is
    computed for the 1M window: for a smaller model the value then changes nothing, while one computed for 200k would
    make a 1M session compact at a sixth of its context.
    """
    return round((_LARGE_WINDOW - _WALL_OFFSET) * swap_threshold) + _WALL_OFFSET


def without_ours(
    base: Mapping[str, str], *, outer_proxy: str | None = None, outer_no_proxy: str = "", our_files: Iterable[str] = ()
) -> dict[str, str]:
    """``base`` as it was before an outer ``dbproxy claude`` changed it; unchanged when there was none.

    ``outer_proxy`` and ``outer_no_proxy`` are what the outer scope recorded as the user's own; ``our_files`` are
    folders: a CA variable that points below one of them is ours.
    """
    env = dict(base)
    if not is_nested(base):
        for name in MARKS:
            env.pop(name, None)
        return env
    ours = base.get("DBPROXY_URL", "")
    for name in PROXY_VARIABLES:
        if env.get(name) and same_endpoint(env[name], ours):
            env.pop(name)
    for name in ("NO_PROXY", "no_proxy"):
        env.pop(name, None)
        if outer_no_proxy:
            env[name] = outer_no_proxy
    if outer_proxy:
        env["HTTPS_PROXY"] = env["https_proxy"] = outer_proxy
    folders = tuple(folder.rstrip("/") + "/" for folder in our_files)
    for name in ("NODE_EXTRA_CA_CERTS", *BUNDLE_VARIABLES):
        if env.get(name, "").startswith(folders):
            env.pop(name)
    for name in MARKS:
        env.pop(name, None)
    return env


def is_nested(base: Mapping[str, str]) -> bool:
    """True inside a child of ours: the proxy variables point at us."""
    ours = base.get("DBPROXY_URL", "")
    return bool(ours) and any(same_endpoint(base.get(name, ""), ours) for name in ("https_proxy", "HTTPS_PROXY"))


def outer_credentials(base: Mapping[str, str]) -> tuple[str, str] | None:
    """Id and secret of the scope under which this process runs, or None outside of any."""
    if not is_nested(base):
        return None
    for name in ("https_proxy", "HTTPS_PROXY"):
        try:
            parts = urlsplit(base.get(name, ""))
            if parts.username and parts.password:
                return unquote(parts.username), unquote(parts.password)
        except ValueError:
            continue
    return None


def same_endpoint(first: str, second: str) -> bool:
    """True if two proxy URLs name the same host and port. False when either is malformed."""
    try:
        ends = [urlsplit(text if "://" in text else f"http://{text}") for text in (first, second)]
        pairs = [(end.hostname, end.port or 80) for end in ends]
    except ValueError:
        return False
    return pairs[0][0] is not None and pairs[0] == pairs[1]


def user_proxy(env: Mapping[str, str]) -> str | None:
    """The proxy that the user's own variables name for https hosts, or None."""
    return next((env[name] for name in PROXY_VARIABLES if env.get(name)), None)


def user_no_proxy(env: Mapping[str, str]) -> str:
    """The user's own list of exceptions, as written; lower case wins, as in curl and Python."""
    return env.get("no_proxy") or env.get("NO_PROXY") or ""


def without_covering(no_proxy: str, hosts: Iterable[str]) -> list[str]:
    """The entries of a NO_PROXY list that cover none of ``hosts``, in order.

    Tools disagree on what an entry covers, so an entry goes as soon as any of them would apply it: ``*``, the host, a
    parent domain with or without a dot, any plain suffix (requests matches those), a glob, each also with a port.
    """
    names = [host.lower().rstrip(".") for host in hosts]
    return [
        entry for entry in re.split(r"[\s,]+", no_proxy) if entry and not any(covers(entry, name) for name in names)
    ]


def covers(entry: str, host: str) -> bool:
    """True if some tool would apply this NO_PROXY entry to ``host`` (lower case, no trailing dot)."""
    pattern = entry.strip().lower().rstrip(".")
    if pattern.startswith("["):
        pattern = pattern[1:].partition("]")[0]
    elif pattern.count(":") == 1:
        pattern = pattern.partition(":")[0]
    if not pattern:
        return False
    if "*" in pattern and fnmatchcase(host, pattern):
        return True
    if pattern.startswith("*."):
        pattern = pattern[2:]
    return host.endswith(pattern.lstrip(".")) or _in_network(pattern, host)


def _in_network(entry: str, host: str) -> bool:
    if "/" not in entry:
        return False
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def daemon_environment(base: Mapping[str, str], *, drop: Iterable[str], frozen: bool = False) -> dict[str, str]:
    """The environment of the background proxy: ``base`` without what belongs to one launch alone.

    ``drop`` names our own variables that must not reach it: the first launch must not decide for all later ones.
    A frozen daemon is told to unpack for itself, since it outlives the launcher.
    """
    env = without_pyinstaller(base) if frozen else dict(base)
    for name in (*drop, *MARKS, *COMPACTION_VARIABLES):
        env.pop(name, None)
    if frozen:
        env["PYINSTALLER_RESET_ENVIRONMENT"] = "1"
    return env
