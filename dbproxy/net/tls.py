"""Server-side TLS contexts, why a client's handshake failed, and which clients are left alone after that.

Contexts are built here and cached elsewhere (``ca.py``): building one costs 1 to 2 ms. Never reads the environment,
never holds a socket, and has no clock: times are arguments.

Invariants: never below TLS 1.2; the memory of ``RejectionTracker`` is bounded whatever clients send; a kind of client
that ever spoke inside our TLS is never tunnelled.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HTTP1: Final = ("http/1.1",)
HTTP2: Final = ("h2", "http/1.1")

TUNNEL_SECONDS: Final = 600.0
"""How long a client that rejected our certificate is tunnelled (INTERFACES, environment of a launched child)."""
TUNNEL_AFTER: Final = 2
"""How many rejections that takes."""


def server_context(chain: bytes, alpn: Sequence[str] = HTTP1) -> ssl.SSLContext:
    """A server context from one PEM text with key and certificate.

    ``alpn`` lists what we speak, best first; a client that offers none of it gets no ALPN answer and is expected to
    speak HTTP/1.1. Raises ssl.SSLError where key and certificate do not fit or are unreadable, OSError where the text
    cannot be handed to OpenSSL.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    with _as_file(chain) as path:
        # A password that cannot be right: without one OpenSSL asks on the terminal for that of an encrypted key.
        context.load_cert_chain(path, password="")
    context.set_alpn_protocols(list(alpn))
    # Each ticket costs 0.02 ms of a handshake's 0.2, and clients rarely come back with one (client facts 1.2).
    context.num_tickets = 1
    return context


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path from which OpenSSL can read ``data``; in memory where the system can do that, since a key is in it."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("dbproxy", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as writer:
                writer.write(data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    descriptor, name = tempfile.mkstemp(suffix=".pem")
    try:
        with os.fdopen(descriptor, "wb") as writer:
            writer.write(data)
        yield name
    finally:
        os.unlink(name)


# Why a client's handshake failed.

_REJECTED: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust our certificate (unknown_ca)",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it rejected our certificate (bad_certificate)",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it rejected our certificate (unsupported_certificate)",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it takes our certificate for revoked (certificate_revoked)",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it takes our certificate for expired (certificate_expired); is a clock wrong?",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it rejected our certificate (certificate_unknown)",
    "TLSV1_ALERT_ACCESS_DENIED": "it rejected our certificate (access_denied)",
    "TLSV1_BAD_CERTIFICATE_STATUS_RESPONSE": "it wants a revocation status (bad_certificate_status_response)",
}
_FAILED: Final = {
    "HTTP_REQUEST": "it spoke plain HTTP where TLS was expected",
    "HTTPS_PROXY_REQUEST": "it sent a CONNECT request where TLS was expected",
    "WRONG_VERSION_NUMBER": "it did not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it offers no TLS version from 1.2 on",
    "VERSION_TOO_LOW": "it offers no TLS version from 1.2 on",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it takes none of our TLS versions (protocol_version)",
    "NO_SHARED_CIPHER": "no cipher suite in common",
    "NO_SHARED_GROUP": "no key exchange group in common",
    "NO_SUITABLE_KEY_SHARE": "no key exchange group in common",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "it takes no ECDSA certificate",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it found nothing in common with us (handshake_failure)",
    "NO_APPLICATION_PROTOCOL": "no application protocol in common",
    "BAD_RECORD_TYPE": "its TLS records are garbage",
    "RECORD_LAYER_FAILURE": "its TLS records are garbage",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "its TLS records are damaged",
    "PACKET_LENGTH_TOO_LONG": "its TLS records are garbage",
    "UNEXPECTED_EOF_WHILE_READING": "it closed the connection during the handshake",
    "TLSV1_ALERT_USER_CANCELLED": "it cancelled the handshake",
}


def describe_peer_failure(error: BaseException) -> str:
    """Why a client's handshake failed, as the end of the sentence "the client failed: ..."."""
    if isinstance(error, ssl.SSLError):
        reason = _reason(error)
        known = _REJECTED.get(reason) or _FAILED.get(reason)
        if known is not None:
            return known
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return "it closed the connection during the handshake"
        if "ALERT" in reason:
            return f"it sent the TLS alert {reason.partition('ALERT_')[2].lower()}"
        return f"TLS error {reason.lower().replace('_', ' ') or type(error).__name__}"
    if isinstance(error, TimeoutError):
        return "it did not finish the handshake in time"
    if isinstance(error, ConnectionError | EOFError):
        return "it closed the connection during the handshake"
    return f"{type(error).__name__}: {error}"


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's name for the failure; errors that Python code raised have none."""
    return getattr(error, "reason", None) or ""


def is_rejection(error: BaseException, *, answered: bool) -> bool:
    """Whether the failure says that the client does not trust our certificate.

    ``answered``: our flight with the certificate had been sent. Node and the native client send no alert but just
    close then (client facts 1.1), so a bare end counts from there on; a timeout or a broken record does not.
    """
    if isinstance(error, ssl.SSLError) and _reason(error) in _REJECTED:
        return True
    if not answered or isinstance(error, TimeoutError):
        return False
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError | EOFError):
        return True
    return isinstance(error, ssl.SSLError) and _reason(error) == "UNEXPECTED_EOF_WHILE_READING"


# Which clients are left alone.

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Rejection:
    """What is known of one kind of client that rejected our certificate. Times are the caller's clock, in seconds."""

    scope: str
    host: str
    kind: str
    failures: int
    last_failure: float
    tunnel_until: float
    """0 while it is not tunnelled."""
    tunnelled: int
    """Connections that were tunnelled because of it."""


class RejectionTracker:
    """Decides which clients get a blind tunnel because they do not take our certificate.

    Two rejections of a host by one kind of client (``kind``: the fingerprint of its ClientHello) in one launch scope
    open a tunnel for ten minutes; after that, each further rejection opens it again. A kind that once spoke inside our
    TLS is never tunnelled: what fails then is something else, and a tunnel would silently end the capture. Node over
    TLS 1.2 completes the handshake before it rejects (measured, v20), so a connection that the client closes without
    a byte of data counts as a failure as well.

    Pure but for its memory, which is bounded: the least recently used entries are forgotten.
    """

    def __init__(self, *, after: int = TUNNEL_AFTER, seconds: float = TUNNEL_SECONDS, max_entries: int = 1024) -> None:
        self._after = after
        self._seconds = seconds
        self._max_entries = max_entries
        self._failed: OrderedDict[Key, Rejection] = OrderedDict()
        self._worked: OrderedDict[Key, None] = OrderedDict()
        self.total_failures = 0
        self.total_tunnelled = 0

    def failed(self, scope: str | None, host: str, kind: str, now: float) -> bool:
        """Counts a rejection. True if the kind is tunnelled from now on."""
        key = (scope or "", host, kind)
        self.total_failures += 1
        if key in self._worked:
            self._worked.move_to_end(key)
            return False
        old = self._failed.get(key) or Rejection(*key, 0, now, 0.0, 0)
        failures = old.failures + 1
        until = now + self._seconds if failures >= self._after else 0.0
        self._failed[key] = replace(old, failures=failures, last_failure=now, tunnel_until=max(until, old.tunnel_until))
        self._bound(self._failed, key)
        return until > 0

    def worked(self, scope: str | None, host: str, kind: str) -> None:
        """The client sent data inside our TLS: forget its failures, and never tunnel it."""
        key = (scope or "", host, kind)
        self._failed.pop(key, None)
        self._worked[key] = None
        self._bound(self._worked, key)

    def should_tunnel(self, scope: str | None, host: str, kind: str, now: float) -> bool:
        """Whether this connection is to be tunnelled blindly; a yes is counted."""
        key = (scope or "", host, kind)
        entry = self._failed.get(key)
        if entry is None or now >= entry.tunnel_until:
            return False
        self._failed[key] = replace(entry, tunnelled=entry.tunnelled + 1)
        self._failed.move_to_end(key)
        self.total_tunnelled += 1
        return True

    def snapshot(self) -> list[Rejection]:
        """All kinds that rejected our certificate and were not forgotten, the most recently active last."""
        return list(self._failed.values())

    def forget_scope(self, scope: str) -> None:
        """The launch is over."""
        for memory in (self._failed, self._worked):
            for key in [key for key in memory if key[0] == scope]:
                del memory[key]

    def _bound(self, memory: OrderedDict[Key, Rejection] | OrderedDict[Key, None], key: Key) -> None:
        memory.move_to_end(key)
        while len(memory) > self._max_entries:
            memory.popitem(last=False)
