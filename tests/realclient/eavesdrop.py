"""Stands between the client and the proxy and notes every decrypted byte, both ways, while passing it on unchanged.

    python eavesdrop.py FOLDER COMMAND [ARGS...]

Runs as the launcher's child in the client's place: takes HTTPS_PROXY and NODE_EXTRA_CA_CERTS from the environment that
it was given, starts the command with its own instead, and opens one tunnel through the proxy for each of the
command's. What it notes as sent is what the proxy's listener decrypts, by the integrity of TLS; the proxy's
certificate is verified with nothing but the file that the launcher named.
Leaves per tunnel: NNN.host, NNN.sent (client to proxy) and NNN.got (proxy to client).
One thread a tunnel; within a tunnel a single thread touches both TLS objects.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import trustme

_CHUNK = 65536
_IDLE = 120.0


class Eavesdropper:
    """Listens on a free port of 127.0.0.1."""

    def __init__(self, folder: Path, proxy: str, trusted: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        parts = urlsplit(proxy)
        self.proxy = (parts.hostname or "", parts.port or 80)
        self.credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if parts.username else ""
        self.trusted = trusted
        self.authority = trustme.CA()
        self.root = folder / "eavesdropper.pem"
        self.authority.cert_pem.write_to_path(str(self.root))
        self._numbers = itertools.count(1)
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=self._tunnel, args=(connection, next(self._numbers)), daemon=True).start()

    def _tunnel(self, client: socket.socket, number: int) -> None:
        name = self.folder / f"{number:03d}"
        with contextlib.suppress(OSError), client, socket.create_connection(self.proxy) as proxy:
            client.settimeout(_IDLE)
            proxy.settimeout(_IDLE)
            target = read_head(client).split(b"\r\n", 1)[0].split(b" ")[1]
            host = target.decode().rpartition(":")[0]
            name.with_suffix(".host").write_text(host)
            extra = b""
            if self.credentials:
                extra = b"Proxy-Authorization: Basic " + base64.b64encode(self.credentials.encode()) + b"\r\n"
            proxy.sendall(b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n" + extra + b"\r\n")
            reply = read_head(proxy)
            client.sendall(reply)
            if b" 200 " not in reply.split(b"\r\n", 1)[0] + b" ":
                return
            with (
                self._as_server(client, host) as inner,
                self._as_client(proxy, host) as outer,
                name.with_suffix(".sent").open("wb", 0) as sent,
                name.with_suffix(".got").open("wb", 0) as got,
            ):
                pump({inner: (outer, sent), outer: (inner, got)})

    def _as_server(self, connection: socket.socket, host: str) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        self.authority.issue_cert(host).configure_cert(context)
        return context.wrap_socket(connection, server_side=True)

    def _as_client(self, connection: socket.socket, host: str) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=self.trusted)
        context.set_alpn_protocols(["http/1.1"])
        return context.wrap_socket(connection, server_hostname=host)


def read_head(connection: socket.socket) -> bytes:
    """Up to the blank line and not one byte further."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("the head was cut")
        head += byte
    return head


def pump(ways: dict[ssl.SSLSocket, tuple[ssl.SSLSocket, object]]) -> None:
    """Passes decrypted bytes on, noted before they go, until either side ends."""
    while True:
        waiting = [end for end in ways if end.pending()]
        ready = waiting or select.select(list(ways), [], [], _IDLE)[0]
        if not ready:
            return
        for end in ready:
            other, notes = ways[end]
            end.setblocking(False)
            try:
                data = end.recv(_CHUNK)
            except ssl.SSLWantReadError:
                continue
            if not data:
                return
            notes.write(data)  # type: ignore[attr-defined]
            other.setblocking(True)
            other.sendall(data)


def main(arguments: list[str]) -> int:
    ears = Eavesdropper(Path(arguments[0]), os.environ["HTTPS_PROXY"], os.environ["NODE_EXTRA_CA_CERTS"])
    own = f"http://127.0.0.1:{ears.port}"
    env = dict(os.environ, HTTPS_PROXY=own, https_proxy=own, NODE_EXTRA_CA_CERTS=str(ears.root))
    return subprocess.run(arguments[1:], env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
