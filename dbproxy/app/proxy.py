"""What all parts of a running proxy share: settings, services, and where requests go.

Owns no task and no socket; ``run.py`` builds it, the server and the pipeline use it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dbproxy.app.counters import Counters
from dbproxy.app.reload import FileSettings, differences
from dbproxy.errors import ProtocolViolation
from dbproxy.exchange import Exchange, Fields, RequestHead, Via
from dbproxy.net.address import is_own_listener, parse_ip
from dbproxy.net.dial import is_local
from dbproxy.net.tls import RejectionTracker
from dbproxy.net.upstream import Origin
from dbproxy.wire.target import DEFAULT_PORTS, normalise_host, parse_authority

if TYPE_CHECKING:
    import trio

    from dbproxy.app.archive import Archive
    from dbproxy.app.egress import Egress, Egresses
    from dbproxy.app.journal import Journal
    from dbproxy.app.routing.registry import Routing
    from dbproxy.app.sessions import Sessions
    from dbproxy.config import Settings
    from dbproxy.hooks.dispatch import Dispatcher
    from dbproxy.hooks.taps import TapHub
    from dbproxy.net.ca import Authority
    from dbproxy.net.watch import HangupWatch
    from dbproxy.paths import Paths
    from dbproxy.scope import Scope, Scopes

#: The host whose requests go to ``upstream_url``; every other intercepted host goes to itself.
MODEL_HOST = "api.anthropic.com"
#: Launches whose settings are kept ready.
_MOST_LAUNCHES = 256
#: Descriptors that are not connections: log, database, pipes of tunnels, the pool.
_OTHER_FILES = 64


@dataclass(frozen=True, slots=True)
class Upstream:
    """``upstream_url`` in parts; ``prefix`` is its path without a trailing slash, ``authority`` what Host says."""

    scheme: str
    host: str
    port: int
    prefix: bytes
    authority: bytes

    @classmethod
    def parse(cls, url: str) -> Upstream:
        """From a URL that the settings checked."""
        parts = urlsplit(url)
        default = 443 if parts.scheme == "https" else 80
        port = parts.port or default
        host = normalise_host(parts.hostname or "")
        shown = f"[{host}]" if ":" in host else host
        authority = shown if port == default else f"{shown}:{port}"
        return cls(parts.scheme, host, port, parts.path.rstrip("/").encode(), authority.encode())


@dataclass(slots=True, eq=False)
class Proxy:
    """The shared state of one worker."""

    settings: Settings
    paths: Paths
    journal: Journal
    dispatch: Dispatcher
    taps: TapHub
    authority: Authority
    egresses: Egresses
    watch: HangupWatch
    scopes: Scopes
    sessions: Sessions
    handshakes: trio.CapacityLimiter
    token: str
    archive: Archive
    routing: Routing
    instance: str = ""
    counters: Counters = field(default_factory=Counters)
    rejections: RejectionTracker = field(default_factory=RejectionTracker)
    listening: list[tuple[str, int]] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    draining: bool = False
    closing: bool = False  # draining, and who has not begun to speak by now is not waited for
    degraded: str = ""  # why nothing is intercepted after repeated crashes; "" = all is well
    alone: bool = False  # our supervisor died: we serve, and nobody would replace us
    file_limit: int = 0  # open files that this process may have; 0 = unknown
    intercepted: frozenset[str] = frozenset()
    files: FileSettings = field(default_factory=FileSettings)
    upstream: Upstream = field(init=False)
    _launches: dict[str, tuple[Scope, Settings]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.intercepted = frozenset(normalise_host(name) for name in self.settings.intercept)
        self.upstream = Upstream.parse(self.settings.upstream_url)

    def connection_limit(self) -> int:
        """Client connections at once: ``max_connections``, or fewer where the limit of open files is low.

        A connection that waits for a file descriptor just hangs; one too many is told so instead. Each needs a
        descriptor here and mostly one upstream; some are kept for files.
        """
        most = self.settings.max_connections
        return min(most, max(16, (self.file_limit - _OTHER_FILES) // 2)) if self.file_limit else most

    def settings_for(self, scope: Scope | None) -> Settings:
        """The settings of a launch; the user's own for traffic without a scope."""
        if scope is None:
            return self.settings
        known = self._launches.get(scope.id)
        if known is not None and known[0] is scope:
            return known[1]
        if len(self._launches) >= _MOST_LAUNCHES:
            self._launches.pop(next(iter(self._launches)))
        settings = self._settings_of(scope)
        self._launches[scope.id] = (scope, settings)
        return settings

    def _settings_of(self, scope: Scope) -> Settings:
        try:
            return self.files.for_launch(self.settings, scope)
        except ValueError as error:
            self.journal.emit("scope_invalid", level="warning", scope=scope.id, message=str(error))
            return self.settings

    def launch_folders(self) -> frozenset[str]:
        """The working directories of the launches that were heard of."""
        return frozenset(scope.cwd for scope, _ in self._launches.values() if scope.cwd)

    def renew_settings(self) -> set[str]:
        """Let `files` hold for everybody; the names of the settings that became others for anybody."""
        fresh = self.files.for_all(self.settings)
        changed = differences(self.settings, fresh)
        if changed:
            self.settings = fresh
        for id, (scope, known) in self._launches.items():
            fresh = self._settings_of(scope)
            if found := differences(known, fresh):  # else the old object stays: others remember by it
                self._launches[id] = (scope, fresh)
                changed |= found
        return changed

    def passthrough_for(self, scope: Scope | None) -> bool:
        """Whether no policy may act on this traffic."""
        return self.settings.passthrough if scope is None else self.settings_for(scope).passthrough

    def egress_for(self, scope: Scope | None) -> Egress:
        """The way out of this traffic. Raises ConfigError for a broken upstream_ca of the launch."""
        if scope is None:
            return self.egresses.default()
        return self.egresses.of_scope(scope, self.settings_for(scope))

    def is_own(self, host: str, port: int) -> bool:
        """Whether a connection to ``host``:``port`` would arrive here. Other names are found out when dialled."""
        address = "127.0.0.1" if host == "localhost" else host
        return parse_ip(address) is not None and is_own_listener(address, port, self.listening, is_local)

    def destination(self, exchange: Exchange, fields: Fields) -> tuple[Origin, RequestHead]:
        """Where a request goes, and its head as it goes out.

        The head changes only where it must: another server than the one that the client named gets its own name as
        Host, and the path prefix of ``upstream_url`` stands in front.
        """
        request = exchange.request
        if exchange.via is Via.ABSOLUTE:
            fields = self._absolute_host(exchange, fields)
        if exchange.via is not Via.BASE_URL and exchange.host != MODEL_HOST:
            origin = Origin(exchange.scheme, exchange.host, exchange.port, private_ok=exchange.loopback)
            return origin, replace(request, fields=fields)
        upstream = self.upstream
        origin = Origin(upstream.scheme, upstream.host, upstream.port)
        target = upstream.prefix + request.target if request.target.startswith(b"/") else request.target
        if exchange.via is Via.BASE_URL or exchange.host != upstream.host:
            fields = fields.replaced(b"Host", upstream.authority)
        return origin, RequestHead(request.method, target, request.version, fields)

    @staticmethod
    def _absolute_host(exchange: Exchange, fields: Fields) -> Fields:
        """A target in absolute form says which server is meant; a Host that says otherwise is replaced.

        RFC 9112 section 3.2.2: else whoever checks the one and whoever serves the other disagree.
        """
        default = DEFAULT_PORTS[exchange.scheme]
        try:
            said = parse_authority(fields.get(b"host") or b"", default)
            if (said.host, said.port) == (exchange.host, exchange.port):
                return fields
        except ProtocolViolation:
            pass
        shown = f"[{exchange.host}]" if ":" in exchange.host else exchange.host
        shown += "" if exchange.port == default else f":{exchange.port}"
        return fields.replaced(b"Host", shown.encode())
