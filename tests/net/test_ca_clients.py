"""What real clients make of our certificates: Python, OpenSSL, curl and Node over loopback sockets.

They take a leaf for an intercepted name, and refuse every other that the root's key could be made to sign: the key
alone must be of little use to a thief.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from dbproxy.net import ca, mint, rootfile, tls
from dbproxy.net.ca import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOST = "api.anthropic.com"
DAY = 86400.0

Client = tuple[bool, str]
"""Whether it accepted, and what it printed."""


@contextmanager
def server(context: ssl.SSLContext) -> Iterator[int]:
    """A TLS server on loopback that answers each request with "hello"; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(10)
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(65536)
                    secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
            except OSError:
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(20)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def finished(command: list[str], env: dict[str, str] | None = None) -> Client:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    return done.returncode == 0 and "hello" in done.stdout, done.stdout + done.stderr


def python_client(bundle: Path, host: str, port: int) -> Client:
    context = ssl.create_default_context(cafile=str(bundle))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return b"hello" in secure.recv(65536), ""
    except ssl.SSLError as error:
        return False, str(error)


def curl_client(bundle: Path, host: str, port: int) -> Client:
    resolve = [] if host[0].isdigit() else ["--resolve", f"{host}:{port}:127.0.0.1"]
    command = [program("curl"), "-sS", "--noproxy", "*", "--max-time", "20", "--cacert", str(bundle), *resolve]
    return finished([*command, f"https://{host}:{port}/"])


def node_client(bundle: Path, host: str, port: int) -> Client:
    code = f"""
        const r = require('https').get({{host: '{host}', port: {port},
            lookup: (name, options, done) =>
                options.all ? done(null, [{{address: '127.0.0.1', family: 4}}]) : done(null, '127.0.0.1', 4)
        }}, a => a.on('data', d => console.log(String(d))));
        r.on('error', e => {{ console.log(e.code); process.exit(1); }});
    """
    return finished([program("node"), "-e", code], {"NODE_EXTRA_CA_CERTS": str(bundle)})


def openssl_client(bundle: Path, host: str, port: int) -> Client:
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-verify_return_error", "-ign_eof"]
    command += ["-CAfile", str(bundle), "-x509_strict", "-purpose", "sslserver"]
    command += ["-verify_ip", host] if host[0].isdigit() else ["-servername", host, "-verify_hostname", host]
    done = subprocess.run(command, input="GET / HTTP/1.1\r\n\r\n", capture_output=True, text=True, timeout=30)
    return "hello" in done.stdout and "Verify return code: 0 (ok)" in done.stdout, done.stdout + done.stderr


CLIENTS: dict[str, Callable[[Path, str, int], Client]] = {
    "python": python_client,
    "curl": curl_client,
    "node": node_client,
    "openssl": openssl_client,
}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "ca", [HOST])


def forged(authority: Authority, name: str) -> ssl.SSLContext:
    """What a thief of the root's key would make: a leaf for a name that the root is not for."""
    now = time.time()
    root = authority.current
    made = mint.leaf(
        root.pem, rootfile.keys(root.path.read_bytes()), name, not_before=now - 60, not_after=now + 20 * DAY
    )
    return tls.server_context(made.key + made.certificate)


@pytest.mark.parametrize("client", CLIENTS)
def test_intercepted_name_is_accepted(authority: Authority, client: str) -> None:
    with server(authority.leaf_context(HOST)) as port:
        accepted, text = CLIENTS[client](authority.bundle_path, HOST, port)
    assert accepted, text


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", ["bank.example", "anthropic.com", "127.0.0.1"])
def test_anything_else_is_refused(authority: Authority, client: str, name: str) -> None:
    with server(forged(authority, name)) as port:
        accepted, text = CLIENTS[client](authority.bundle_path, name, port)
    assert not accepted, text


@pytest.mark.parametrize("client", CLIENTS)
def test_forgery_is_refused_for_its_constraints_alone(tmp_path: Path, client: str) -> None:
    """The same forged leaf under a root that permits it: so the refusals above come from the constraints."""
    wide = Authority.open(tmp_path / "wide", [HOST, "bank.example", "127.0.0.1"])
    for name in ("bank.example", "127.0.0.1"):
        with server(forged(wide, name)) as port:
            accepted, text = CLIENTS[client](wide.bundle_path, name, port)
        assert accepted, (name, text)


@pytest.mark.parametrize("client", CLIENTS)
def test_old_and_new_root_are_trusted_from_one_bundle(authority: Authority, client: str) -> None:
    old = authority.current
    authority.rotate()
    for root in (old, authority.current):
        with server(authority.leaf_context(HOST, root.fingerprint)) as port:
            accepted, text = CLIENTS[client](authority.bundle_path, HOST, port)
        assert accepted, text


@pytest.mark.parametrize("client", CLIENTS)
def test_root_of_another_install_is_refused(authority: Authority, tmp_path: Path, client: str) -> None:
    other = Authority.open(tmp_path / "other", [HOST])
    with server(authority.leaf_context(HOST)) as port:
        accepted, text = CLIENTS[client](other.bundle_path, HOST, port)
    assert not accepted, text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("client", CLIENTS)
def test_own_certificate_for_those_who_trust_it(authority: Authority, tmp_path: Path, client: str, host: str) -> None:
    own = tmp_path / "own.pem"
    own.write_bytes(authority.own_pem())
    with server(authority.own_context()) as port:
        accepted, text = CLIENTS[client](own, host, port)
        refused, _ = CLIENTS[client](authority.bundle_path, host, port)
    assert accepted, text
    assert not refused, "the interception root says nothing about our own port"


def test_openssl_verifies_the_chain_strictly(authority: Authority, tmp_path: Path) -> None:
    leaf = tmp_path / "leaf.pem"
    authority.leaf_context(HOST)
    leaf.write_bytes(rootfile.certificates((authority.folder / "leaves" / f"0001-{HOST}.pem").read_bytes()))
    command = [program("openssl"), "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]
    done = subprocess.run([*command, str(authority.bundle_path), str(leaf)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    command[command.index("sslserver")] = "sslclient"
    done = subprocess.run([*command, str(authority.bundle_path), str(leaf)], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0


def test_session_is_resumed(authority: Authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.bundle_path))
    session = None
    reused = []
    with server(authority.leaf_context(HOST)) as port:
        for _ in range(2):
            with (
                socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname=HOST, session=session) as secure,
            ):
                secure.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert b"hello" in secure.recv(65536)
                reused.append(secure.session_reused)
                session = secure.session
    assert reused == [False, True]


def test_lifetimes_are_what_clients_tolerate() -> None:
    assert ca.LEAF_RENEWAL < ca.LEAF_LIFE
    assert ca.LEAF_LIFE + ca.BACKDATED <= rootfile.ROOT_RENEWAL, "a leaf under a root good for launches lives in full"
