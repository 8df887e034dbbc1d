"""Listening sockets: which addresses, and binding them.

Owns what a person is told when a port is taken. Must never import trio: the supervisor's first steps stand on this.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from dbproxy.config import HostPort
from dbproxy.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.config import Settings

_BACKLOG = 1024


def bind(addresses: tuple[HostPort, ...]) -> list[socket.socket]:
    """Listening sockets for ``addresses``. Raises LaunchError naming the one that is taken."""
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            host, port = address.host, address.port
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                if family == socket.AF_INET and host:
                    host = socket.gethostbyname(host)
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                raise LaunchError(f"cannot listen on {host}: {error.strerror}") from None
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((host, port))
                sock.listen(_BACKLOG)
            except OSError as error:
                raise LaunchError(
                    f"cannot listen on {host}:{port}: {error.strerror}",
                    hint="Another program may use that port; choose one with --listen HOST:PORT or DBPROXY_PROXY_PORT",
                ) from None
            sock.setblocking(False)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def addresses(settings: Settings) -> tuple[HostPort, ...]:
    """Where to listen: ``listen``, and ``dashboard_port`` at the first host of it."""
    if settings.dashboard_port is None:
        return settings.listen
    dashboard = HostPort(settings.listen[0].host, settings.dashboard_port)
    # A restart asks for all that its predecessor had, and that includes this one.
    return settings.listen if dashboard in settings.listen else (*settings.listen, dashboard)


def names(sockets: list[socket.socket]) -> tuple[str, ...]:
    """The addresses of listening sockets as ``HOST:PORT``, IPv6 in brackets."""
    found = [sock.getsockname()[:2] for sock in sockets]
    return tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in found)


def same_addresses(wanted: Sequence[tuple[str, int]], offered: Sequence[tuple[str, int]]) -> bool:
    """Whether sockets at ``offered`` serve all of ``wanted`` and nothing else; port 0 asks for any."""
    left = list(offered)
    for host, port in sorted(wanted, key=lambda item: item[1] == 0):
        found = next((item for item in left if item[0] == host and port in (0, item[1])), None)
        if found is None:
            return False
        left.remove(found)
    return not left
