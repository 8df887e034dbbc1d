"""Server contexts, the reasons of failed handshakes, and who is tunnelled after rejecting us."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.net import mint, tls
from dbproxy.net.tls import RejectionTracker

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "api.anthropic.com"


@pytest.fixture(scope="module")
def made() -> tuple[bytes, bytes]:
    """(chain of a leaf with its key, certificate of its root)."""
    now = time.time()
    root = mint.root([HOST], not_before=now - 60, not_after=now + 86400)
    leaf = mint.leaf(root.certificate, root.key, HOST, not_before=now - 60, not_after=now + 3600)
    return leaf.key + leaf.certificate, root.certificate


def client_context(root: bytes, **attributes: object) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=root.decode())
    for name, value in attributes.items():
        setattr(context, name, value)
    return context


def talk(server: ssl.SSLContext, client: Callable[[socket.socket], None]) -> tuple[BaseException | None, bool, str]:
    """A client on one end of a socket pair, our handshake on the other.

    Returns how our handshake failed, whether our certificate had been sent, and what ALPN chose.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)
    thread = threading.Thread(target=client, args=(theirs,))
    thread.start()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = server.wrap_bio(incoming, outgoing, server_side=True)
    answered = False
    try:
        while True:
            try:
                secure.do_handshake()
                with suppress(OSError):  # the session tickets; the client may be gone already
                    ours.sendall(outgoing.read())
                return None, True, secure.selected_alpn_protocol() or ""
            except ssl.SSLWantReadError:
                data = outgoing.read()
                if data:
                    ours.sendall(data)
                    answered = True
                received = ours.recv(65536)
                if received:
                    incoming.write(received)
                else:
                    incoming.write_eof()
    except OSError as error:
        return error, answered, ""
    finally:
        ours.close()
        thread.join(20)
        theirs.close()


def tls_client(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def run(plain: socket.socket) -> None:
        try:
            context.wrap_socket(plain, server_hostname=HOST).close()
        except OSError:
            plain.close()

    return run


def raw_client(data: bytes) -> Callable[[socket.socket], None]:
    def run(plain: socket.socket) -> None:
        plain.sendall(data)
        plain.shutdown(socket.SHUT_WR)

    return run


@pytest.mark.parametrize(
    ("offered", "ours", "chosen"),
    [
        (["h2", "http/1.1"], tls.HTTP1, "http/1.1"),
        (["h2", "http/1.1"], tls.HTTP2, "h2"),
        (["h2"], tls.HTTP1, ""),
        ([], tls.HTTP2, ""),
        (["spdy/9"], tls.HTTP1, ""),
    ],
)
def test_alpn(made: tuple[bytes, bytes], offered: list[str], ours: tuple[str, ...], chosen: str) -> None:
    context = client_context(made[1])
    if offered:
        context.set_alpn_protocols(offered)
    error, _, alpn = talk(tls.server_context(made[0], ours), tls_client(context))
    assert (error, alpn) == (None, chosen)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls_is_refused_with_a_reason(made: tuple[bytes, bytes]) -> None:
    context = client_context(made[1])
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    error, answered, _ = talk(tls.server_context(made[0]), tls_client(context))
    assert error is not None
    assert tls.describe_peer_failure(error) == "it offers no TLS version from 1.2 on"
    assert not tls.is_rejection(error, answered=answered)


def test_tls12_is_taken(made: tuple[bytes, bytes]) -> None:
    context = client_context(made[1], maximum_version=ssl.TLSVersion.TLSv1_2)
    assert talk(tls.server_context(made[0]), tls_client(context))[0] is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_without_our_root_is_a_rejection(made: tuple[bytes, bytes], version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    error, answered, _ = talk(tls.server_context(made[0]), tls_client(context))
    assert error is not None
    assert "does not trust our certificate" in tls.describe_peer_failure(error)
    assert tls.is_rejection(error, answered=answered)
    assert tls.is_rejection(error, answered=False)


def test_silent_close_counts_only_after_our_certificate(made: tuple[bytes, bytes]) -> None:
    context = client_context(made[1])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    for data, expected in ((hello, True), (hello[:100], False), (b"", False)):
        error, answered, _ = talk(tls.server_context(made[0]), raw_client(data))
        assert error is not None
        assert tls.describe_peer_failure(error) == "it closed the connection during the handshake"
        assert tls.is_rejection(error, answered=answered) is expected, len(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "plain HTTP"),
        (b"CONNECT a:1 HTTP/1.1\r\n\r\n", "CONNECT"),
        (b"SSH-2.0-OpenSSH_9\r\n", "did not speak TLS"),
        (b"\x16\x03\x01\xff\xff" + b"\x00" * 50, "TLS"),
    ],
)
def test_other_protocols_are_named(made: tuple[bytes, bytes], data: bytes, reason: str) -> None:
    error, answered, _ = talk(tls.server_context(made[0]), raw_client(data))
    assert error is not None
    assert reason in tls.describe_peer_failure(error)
    assert not tls.is_rejection(error, answered=answered)


@given(st.binary(max_size=400))
def test_garbage_never_counts_as_a_rejection(made: tuple[bytes, bytes], data: bytes) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = tls.server_context(made[0]).wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(data)
    incoming.write_eof()
    with pytest.raises(ssl.SSLError) as caught:
        secure.do_handshake()
    assert not tls.is_rejection(caught.value, answered=False) or b"\x15\x03" in data[:2] + data
    assert tls.describe_peer_failure(caught.value)


@pytest.mark.parametrize(
    ("error", "answered", "text", "rejection"),
    [
        (ConnectionResetError(), True, "closed the connection", True),
        (ConnectionResetError(), False, "closed the connection", False),
        (TimeoutError(), True, "in time", False),
        (ValueError("odd"), True, "ValueError: odd", False),
        (ssl.SSLError(1, "no reason at all"), True, "TLS error", False),
    ],
)
def test_other_failures(error: BaseException, answered: bool, text: str, rejection: bool) -> None:
    assert text in tls.describe_peer_failure(error)
    assert tls.is_rejection(error, answered=answered) is rejection


def test_context_needs_no_disk(made: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls.tempfile, "mkstemp", lambda **_: pytest.fail("a private key went to disk"))
    if hasattr(tls.os, "memfd_create"):
        tls.server_context(made[0])


def test_context_without_memory_files_cleans_up(
    made: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.delattr(tls.os, "memfd_create", raising=False)
    monkeypatch.setattr(tls.tempfile, "tempdir", str(tmp_path))
    tls.server_context(made[0])
    with pytest.raises(ssl.SSLError):
        tls.server_context(b"no certificate")
    import os

    assert os.listdir(str(tmp_path)) == []


# RejectionTracker

KIND = "k1"


def test_two_rejections_open_a_tunnel_for_ten_minutes() -> None:
    tracker = RejectionTracker()
    assert not tracker.should_tunnel("s", HOST, KIND, 0)
    assert not tracker.failed("s", HOST, KIND, 1)
    assert not tracker.should_tunnel("s", HOST, KIND, 2)
    assert tracker.failed("s", HOST, KIND, 3)
    assert tracker.should_tunnel("s", HOST, KIND, 4)
    assert tracker.should_tunnel("s", HOST, KIND, 602.9)
    assert not tracker.should_tunnel("s", HOST, KIND, 603)
    (entry,) = tracker.snapshot()
    assert (entry.failures, entry.last_failure, entry.tunnel_until, entry.tunnelled) == (2, 3, 603, 2)
    assert (tracker.total_failures, tracker.total_tunnelled) == (2, 2)


def test_after_that_one_more_rejection_is_enough() -> None:
    tracker = RejectionTracker()
    tracker.failed("s", HOST, KIND, 0)
    tracker.failed("s", HOST, KIND, 0)
    assert tracker.failed("s", HOST, KIND, 1000)
    assert tracker.should_tunnel("s", HOST, KIND, 1001)


@pytest.mark.parametrize(
    "other", [("t", HOST, KIND), ("s", "other.example", KIND), ("s", HOST, "k2"), (None, HOST, KIND)]
)
def test_scope_host_and_kind_are_kept_apart(other: tuple[str | None, str, str]) -> None:
    tracker = RejectionTracker()
    tracker.failed("s", HOST, KIND, 0)
    tracker.failed(*other, 0)
    assert not tracker.should_tunnel("s", HOST, KIND, 1)
    assert not tracker.should_tunnel(*other, 1)


def test_kind_that_worked_is_never_tunnelled() -> None:
    tracker = RejectionTracker()
    tracker.worked("s", HOST, KIND)
    for now in range(10):
        assert not tracker.failed("s", HOST, KIND, now)
        assert not tracker.should_tunnel("s", HOST, KIND, now)
    assert tracker.snapshot() == []
    assert tracker.total_failures == 10


def test_kind_that_works_at_last_is_no_longer_tunnelled() -> None:
    tracker = RejectionTracker()
    tracker.failed("s", HOST, KIND, 0)
    tracker.failed("s", HOST, KIND, 0)
    tracker.worked("s", HOST, KIND)
    assert not tracker.should_tunnel("s", HOST, KIND, 1)


def test_memory_is_bounded_and_keeps_what_is_used() -> None:
    tracker = RejectionTracker(max_entries=10)
    tracker.failed("s", HOST, KIND, 0)
    tracker.failed("s", HOST, KIND, 0)
    tracker.worked("w", HOST, KIND)
    for number in range(100):
        assert tracker.should_tunnel("s", HOST, KIND, 1)
        tracker.failed("w", HOST, KIND, 1)
        tracker.failed("x", HOST, str(number), 1)
        tracker.worked("y", HOST, str(number))
    assert len(tracker.snapshot()) == 10
    assert len(tracker._worked) == 10
    assert not tracker.failed("w", HOST, KIND, 1)


def test_ended_scope_is_forgotten() -> None:
    tracker = RejectionTracker()
    tracker.failed("s", HOST, KIND, 0)
    tracker.failed("t", HOST, KIND, 0)
    tracker.worked("s", HOST, "k2")
    tracker.forget_scope("s")
    assert [entry.scope for entry in tracker.snapshot()] == ["t"]
    assert not tracker._worked
