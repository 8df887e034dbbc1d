"""The ways out: for each combination of parent proxy, exemptions and trusted certificates one dialer and one pool.

A launch scope may bring its user's own proxy and certificates, so what one launch trusts or passes through never serves
another. Invariant: the number of ways is bounded; the least recently used is closed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dbproxy.net import trust
from dbproxy.net.dial import Dialer
from dbproxy.net.parent import ParentConfig
from dbproxy.net.upstream import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import trio

    from dbproxy.config import Settings
    from dbproxy.net.watch import HangupWatch
    from dbproxy.scope import Scope

_MOST = 32
_Key = tuple[str | None, tuple[str, ...], Path | None, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Egress:
    """One way out."""

    dialer: Dialer
    pool: Pool


class Egresses:
    """All ways out of this process.

    ``own_listeners`` gives the addresses we listen on, ``own_pem`` our roots (never trusted upstream), ``notice`` is
    told what a user should know. ``user_files`` are certificate files that the daemon's own environment names.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        watch: HangupWatch,
        nursery: trio.Nursery,
        own_listeners: Callable[[], Collection[tuple[str, int]]],
        own_pem: Callable[[], bytes],
        notice: Callable[[str], None],
        user_files: tuple[str, ...] = (),
    ) -> None:
        self._settings = settings
        self._watch = watch
        self._nursery = nursery
        self._own_listeners = own_listeners
        self._own_pem = own_pem
        self._notice = notice
        self._user_files = user_files
        self._ways: OrderedDict[_Key, Egress] = OrderedDict()
        self._by_scope: dict[str, tuple[Scope, Egress]] = {}

    def default(self) -> Egress:
        """The way out of traffic without a launch scope. Raises ConfigError for a broken upstream_ca."""
        settings = self._settings
        return self._way((settings.parent_proxy, settings.no_proxy, settings.upstream_ca, self._user_files))

    def of_scope(self, scope: Scope, settings: Settings) -> Egress:
        """The way out of one launch; ``settings`` are those of the launch."""
        known = self._by_scope.get(scope.id)
        if known is not None and known[0] is scope:
            return known[1]
        parent = settings.parent_proxy or scope.parent_proxy
        no_proxy = settings.no_proxy or tuple(scope.no_proxy.replace(",", " ").split())
        egress = self._way((parent, no_proxy, settings.upstream_ca, scope.extra_ca))
        if len(self._by_scope) > 256:
            self._by_scope.clear()
        self._by_scope[scope.id] = (scope, egress)
        return egress

    def all(self) -> list[Egress]:
        """Every way that is open."""
        return list(self._ways.values())

    def idle_connections(self) -> int:
        """Pooled connections of all ways."""
        return sum(way.pool.idle_count() for way in self._ways.values())

    def expire(self) -> None:
        """Close pooled connections that were idle for too long."""
        for way in self._ways.values():
            way.pool.expire()

    def close(self) -> None:
        """Close every pooled connection."""
        for way in self._ways.values():
            way.pool.close()

    def _way(self, key: _Key) -> Egress:
        way = self._ways.get(key)
        if way is not None:
            self._ways.move_to_end(key)
            return way
        way = self._ways[key] = self._make(key)
        if len(self._ways) > _MOST:
            _, oldest = self._ways.popitem(last=False)
            oldest.pool.close()
            self._by_scope.clear()
        return way

    def _make(self, key: _Key) -> Egress:
        parent_url, no_proxy, upstream_ca, user_files = key
        settings = self._settings
        trusting = partial(
            trust.upstream_context,
            [upstream_ca] if upstream_ca else [],
            user_files=[Path(name) for name in user_files],
            own_pem=self._own_pem(),
            notice=self._notice,
        )
        context = trusting()
        parent, notices = ParentConfig.parse(
            parent_url or "none", {}, no_proxy=no_proxy, own_listeners=self._own_listeners()
        )
        for text in notices:
            self._notice(text)
        dialer = Dialer(
            parent,
            connect_timeout=settings.connect_timeout,
            parent_timeout=settings.connect_timeout + settings.handshake_timeout,
            own_listeners=self._own_listeners,
            context=context,
            nursery=self._nursery,
            notice=self._notice,
        )
        make: Callable[..., Pool] = Pool
        if settings.upstream_http2:
            from dbproxy.net.h2pool import ALPN, H2Pool  # off by default, and h2 takes its time to load

            make = partial(H2Pool, h2_context=trusting(alpn=ALPN), nursery=self._nursery, notice=self._notice)
        pool = make(
            dialer,
            context,
            self._watch,
            size=settings.pool_size,
            idle_timeout=settings.pool_idle_timeout,
            handshake_timeout=settings.handshake_timeout,
            head_limit=settings.max_head_bytes,
            max_fields=settings.max_head_fields,
        )
        return Egress(dialer, pool)
