"""Connections that we open: names to addresses, addresses to a connected socket, through the user's proxy if need be.

Owns: resolving with its own threads, staggered attempts over both address families, the connect deadline, the check
that a target is neither ourselves nor, for foreign clients, a private address. Must never know what the connection is
for, nor read the process environment.

Invariants:
- A policy on addresses is applied to the very addresses that are then connected to: nothing is resolved twice.
- Every socket that does not win is closed, on every way out.
- A failure says which addresses were tried and why each failed, in one line.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from dbproxy.errors import Refused, UpstreamError
from dbproxy.net.address import Address, is_own_listener, is_private, parse_ip
from dbproxy.net.parent import ParentConfig, ParentUnusable, is_localhost, open_tunnel
from dbproxy.wire.target import normalise_host

if TYPE_CHECKING:
    import ssl

SockAddr = tuple[str, int] | tuple[str, int, int, int]
Endpoint = tuple[socket.AddressFamily, SockAddr]
# Resolves a name; raises OSError (socket.gaierror). Called with a name that is neither literal nor localhost.
Resolver = Callable[[str, int], Awaitable[Sequence[Endpoint]]]

DNS_THREADS: Final = 32  # of our own: trio's shared limiter belongs to whoever hashes and compresses
FAMILY_MEMORY_SECONDS: Final = 60.0
KEEPALIVE: Final = (60, 15, 4)  # seconds of silence, seconds between probes, probes: a dead peer is known in 2 minutes
_REMEMBERED_HOSTS: Final = 256
_SHOWN_FAILURES: Final = 4


class Dialer:
    """Opens connections.

    ``parent``: the user's proxy, or None. ``connect_timeout``: seconds for resolving and connecting together.
    ``parent_timeout``: seconds for the parent's reply to CONNECT (it has to connect as well). ``attempt_delay``:
    seconds before the next address is tried beside the last one (RFC 8305 section 5). ``own_listeners`` gives the
    addresses we listen on at the moment. ``resolver`` replaces getaddrinfo. ``context`` and ``nursery`` are needed for
    an https:// parent only. ``notice`` is told, once each, what the user should know; it must not block.
    """

    def __init__(
        self,
        parent: ParentConfig | None = None,
        *,
        connect_timeout: float = 10.0,
        parent_timeout: float = 30.0,
        attempt_delay: float = 0.25,
        own_listeners: Callable[[], Collection[tuple[str, int]]] = tuple,
        resolver: Resolver | None = None,
        context: ssl.SSLContext | None = None,
        nursery: trio.Nursery | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.parent = parent
        self.connect_timeout = connect_timeout
        self.parent_timeout = parent_timeout
        self.attempt_delay = attempt_delay
        self._own_listeners = own_listeners
        self._resolver = resolver or SystemResolver()
        self._context = context
        self._nursery = nursery
        self._notice = notice or (lambda text: None)
        self._given_up: dict[ParentConfig, str] = {}  # parents that we cannot use, and why
        self._families: dict[str, tuple[socket.AddressFamily, float]] = {}

    async def connect(
        self,
        host: str,
        port: int,
        *,
        direct: bool = False,
        allow_private: bool = True,
        parent: ParentConfig | None = None,
    ) -> trio.socket.SocketType:
        """A connected, non-blocking socket that carries bytes to and from ``host``:``port``.

        ``direct`` goes past the parent proxy; ``parent`` is used instead of the dialer's own (a launch scope may name
        one). ``allow_private=False`` is for clients on other machines: only public addresses are connected to, and
        Refused(403) is raised if there are none. Behind an https:// parent the socket is a Unix one, otherwise TCP
        with TCP_NODELAY and keep-alive. Raises UpstreamError: ``dns``, ``connect``, ``timeout``, ``loop``, ``parent``.
        """
        parent = None if direct else parent or self.parent
        if parent is not None and parent not in self._given_up and parent.applies_to(host, port):
            if not allow_private:
                await self._check_public(host, port)
            try:
                return _for_trio(await self._through(parent, host, port))
            except ParentUnusable as unusable:
                self._give_up(parent, str(unusable))
        return _for_trio(await self._dial(host, port, allow_private))

    async def _through(self, parent: ParentConfig, host: str, port: int) -> socket.socket:
        try:
            sock = await self._dial(parent.host, parent.port, allow_private=True)
        except UpstreamError as failure:
            if failure.kind == "loop":
                raise ParentUnusable(f"{parent.origin} names dbproxy itself: ignored") from None
            raise UpstreamError(
                "parent",
                f"the proxy {parent.url} from {parent.origin} cannot be reached: {failure.args[0]}",
                hint=f"Correct {parent.origin}, or name {host} in NO_PROXY",
            ) from None
        return await open_tunnel(
            sock,
            parent,
            host,
            port,
            timeout=self.parent_timeout,
            context=self._context,
            nursery=self._nursery,
            notice=self._notice,
        )

    def _give_up(self, parent: ParentConfig, why: str) -> None:
        if parent not in self._given_up:
            self._given_up[parent] = why
            self._notice(why)

    async def _check_public(self, host: str, port: int) -> None:
        """The parent will resolve the name by itself; a name that we cannot check is not offered to it."""
        try:
            with trio.fail_after(self.connect_timeout):
                endpoints = await self._resolve(host, port)
        except trio.TooSlowError:
            raise UpstreamError("dns", f"{host} could not be resolved within {self.connect_timeout:g} s") from None
        if any(is_private(address[0]) for _, address in endpoints):
            raise _refused(host)

    async def _dial(self, host: str, port: int, allow_private: bool) -> socket.socket:
        tried: list[tuple[str, OSError]] = []
        try:
            with trio.fail_after(self.connect_timeout):
                endpoints = self._permitted(host, port, await self._resolve(host, port), allow_private)
                return await self._race(host, port, endpoints, tried)
        except trio.TooSlowError:
            raise UpstreamError(
                "timeout",
                f"no connection to {_shown(host, port)} within {self.connect_timeout:g} s{_reasons(tried, '; ')}",
                hint="Check the network, the VPN and the firewall",
            ) from None

    async def _resolve(self, host: str, port: int) -> list[Endpoint]:
        try:
            name = normalise_host(host)
            if parse_ip(name) is not None:
                found: Sequence[Endpoint] = _endpoints(
                    socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
                )
            elif is_localhost(name):
                found = [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))]
            else:
                found = await self._resolver(name, port)
        except (OSError, UnicodeError, ValueError) as failure:
            reason = failure.strerror if isinstance(failure, OSError) else "it is not a host name"
            raise UpstreamError(
                "dns",
                f"the name {host!r} could not be resolved: {reason}",
                hint="Check the name, the network connection and, if you use one, the VPN",
            ) from None
        if not found:
            raise UpstreamError("dns", f"the name {host!r} has no address")
        return list(dict.fromkeys(found))

    def _permitted(self, host: str, port: int, endpoints: list[Endpoint], allow_private: bool) -> list[Endpoint]:
        listeners = self._own_listeners()
        for _, address in endpoints:
            if is_own_listener(address[0], port, listeners, is_local):
                raise UpstreamError(
                    "loop",
                    f"{_shown(host, port)} is dbproxy itself",
                    hint="Let the upstream URL name the real server, not the proxy",
                )
        if allow_private:
            return endpoints
        public = [endpoint for endpoint in endpoints if not is_private(endpoint[1][0])]
        if not public:
            raise _refused(host)
        return public

    async def _race(
        self, host: str, port: int, endpoints: list[Endpoint], tried: list[tuple[str, OSError]]
    ) -> socket.socket:
        """Try the addresses, each ``attempt_delay`` after the last or as soon as that failed; the first one wins."""
        winner: socket.socket | None = None

        async def attempt(endpoint: Endpoint, failed: trio.Event) -> None:
            nonlocal winner
            try:
                sock = await _open(endpoint)
            except OSError as failure:
                tried.append((endpoint[1][0], failure))
                failed.set()
                return
            if winner is None:
                winner = sock
                self._remember(host, endpoint[0])
                nursery.cancel_scope.cancel()
            else:
                sock.close()

        try:
            async with trio.open_nursery() as nursery:
                for endpoint in self._ordered(host, endpoints):
                    failed = trio.Event()
                    nursery.start_soon(attempt, endpoint, failed)
                    with trio.move_on_after(self.attempt_delay):
                        await failed.wait()
        except BaseException:
            if winner is not None:
                winner.close()
            raise
        if winner is not None:
            return winner
        exhausted = any(failure.errno in (errno.EMFILE, errno.ENFILE) for _, failure in tried)
        raise UpstreamError(
            "connect",
            f"cannot connect to {_shown(host, port)}{_reasons(tried, ': ')}",
            hint="Raise the limit of open files (ulimit -n)" if exhausted else "",
        )

    def _ordered(self, host: str, endpoints: list[Endpoint]) -> list[Endpoint]:
        """Alternating families (RFC 8305 section 4), the one first that worked last."""
        family, until = self._families.get(host, (endpoints[0][0], 0.0))
        if until < trio.current_time():
            family = endpoints[0][0]
        first = [endpoint for endpoint in endpoints if endpoint[0] == family]
        second = [endpoint for endpoint in endpoints if endpoint[0] != family]
        ordered = []
        for i in range(max(len(first), len(second))):
            ordered += first[i : i + 1] + second[i : i + 1]
        return ordered

    def _remember(self, host: str, family: socket.AddressFamily) -> None:
        self._families.pop(host, None)
        if len(self._families) >= _REMEMBERED_HOSTS:
            del self._families[next(iter(self._families))]
        self._families[host] = (family, trio.current_time() + FAMILY_MEMORY_SECONDS)


class SystemResolver:
    """getaddrinfo in threads of its own number. A lookup that is given up ends by itself, and holds its place until
    then, so that a dead DNS server cannot pile up threads.
    """

    def __init__(self, threads: int = DNS_THREADS) -> None:
        self._limiter = trio.CapacityLimiter(threads)

    async def __call__(self, host: str, port: int) -> Sequence[Endpoint]:
        lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        return _endpoints(await trio.to_thread.run_sync(lookup, abandon_on_cancel=True, limiter=self._limiter))


def tune(sock: socket.socket | trio.socket.SocketType) -> None:
    """What every TCP socket of ours gets: no Nagle (44 ms per request otherwise, performance facts section 4), and
    keep-alive, which finds peers that vanished without a word but never disturbs one that is only silent.
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), KEEPALIVE, strict=True):
            option = getattr(socket, name, None)
            if option is not None:  # macOS lacks the first one here and keeps its own, two hours
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        pass  # no TCP, or gone already: its next use will tell


def is_local(address: Address) -> bool:
    """Whether ``address`` belongs to this machine: only such an address can be bound."""
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


async def _open(endpoint: Endpoint) -> socket.socket:
    family, address = endpoint
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        tune(sock)
        try:
            sock.connect(address)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
        else:
            await trio.lowlevel.checkpoint()
    except BaseException:
        sock.close()
        raise
    return sock


def _for_trio(sock: socket.socket) -> trio.socket.SocketType:
    return trio.socket.from_stdlib_socket(sock)


def _endpoints(found: Sequence[tuple[object, ...]]) -> list[Endpoint]:
    return [(entry[0], entry[4]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)]  # type: ignore[misc]


def _refused(host: str) -> Refused:
    return Refused(
        403,
        "permission_error",
        f"{host} is a private address, and the proxy opens those to clients on its own machine only",
    )


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _reasons(tried: list[tuple[str, OSError]], before: str) -> str:
    if not tried:
        return ""
    texts = [f"{address}: {(failure.strerror or str(failure)).lower()}" for address, failure in tried[:_SHOWN_FAILURES]]
    if len(tried) > _SHOWN_FAILURES:
        texts.append(f"and {len(tried) - _SHOWN_FAILURES} more")
    return before + ", ".join(texts)
