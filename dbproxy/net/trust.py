"""Which certificate authorities we believe when we talk to the upstream, and what children are told to believe.

Owns the search for the system's roots and the one client context of the process (26 to 32 ms to build, performance 5:
never per connection). Never reads the environment: the user's variables arrive as paths.

Invariants: every context verifies the chain and the host name and speaks TLS 1.2 or later; nothing here can turn that
off. A broken file of the user's is said once and skipped, a broken DBPROXY_UPSTREAM_CA is an error: who sets it
counts on it.
"""

from __future__ import annotations

import re
import ssl
import stat
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dbproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine, Gentoo, NixOS
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL, Amazon
    "/etc/pki/tls/certs/ca-bundle.crt",  # the same, older
    "/var/lib/ca-certificates/ca-bundle.pem",  # SUSE
    "/etc/ssl/ca-bundle.pem",  # SUSE, older
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",  # Arch
    "/etc/ssl/certs/ca-bundle.crt",  # NixOS, older
    "/etc/pki/tls/cacert.pem",  # OpenELEC
    "/usr/local/share/certs/ca-root-nss.crt",  # FreeBSD
    "/etc/ssl/cert.pem",  # Alpine, macOS, OpenBSD
)
FOLDERS: Final = (
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
    "/system/etc/security/cacerts",  # Android (Termux)
)

_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----.+?-----END (?:TRUSTED |X509 )?CERTIFICATE-----", re.DOTALL
)
_MAX_BUNDLE: Final = 16 * 1024 * 1024  # the largest known bundle is under 1 MB

_MAX_CONTEXTS: Final = 32  # a launch may bring its own files; some 1 MB each

_built: OrderedDict[tuple[object, ...], ssl.SSLContext] = OrderedDict()
_lock = threading.Lock()


def upstream_context(
    extra_files: Sequence[Path] = (),
    *,
    user_files: Sequence[Path] = (),
    own_pem: bytes = b"",
    alpn: Sequence[str] = ("http/1.1",),
    notice: Callable[[str], None] | None = None,
    platform: str = sys.platform,
) -> ssl.SSLContext:
    """The context for connections to upstreams, built once per set of arguments and process.

    Trusted are the system's roots, ``extra_files`` (DBPROXY_UPSTREAM_CA) and ``user_files`` (what the user's own
    NODE_EXTRA_CA_CERTS and SSL_CERT_FILE named; a folder is read file by file). Certificates in ``own_pem`` (our
    interception roots) are never taken from a user's file: one that we wrote ourselves may be named there. ``notice``
    is told once about files that were skipped. Raises ConfigError for a broken extra file.
    """
    key = (tuple(extra_files), tuple(user_files), own_pem, tuple(alpn), platform)
    with _lock:
        context = _built.get(key)
        if context is None:
            context = _build(extra_files, user_files, own_pem, notice or _unsaid, platform)
            context.set_alpn_protocols(list(alpn))
            _built[key] = context
        _built.move_to_end(key)
        while len(_built) > _MAX_CONTEXTS:
            _built.popitem(last=False)
        return context


def _unsaid(_text: str) -> None:
    """Nobody asked."""


def _build(
    extra_files: Sequence[Path],
    user_files: Sequence[Path],
    own_pem: bytes,
    notice: Callable[[str], None],
    platform: str,
) -> ssl.SSLContext:
    context = _system_context(notice, platform)
    for path in extra_files:
        try:
            added, skipped = _add(context, _read(path), b"")
        except OSError as error:
            raise ConfigError(
                f"DBPROXY_UPSTREAM_CA: {path} cannot be read: {error.strerror or error}",
                hint="Name a PEM file with certificates, or unset it",
            ) from error
        if skipped or not added:
            raise ConfigError(
                f"DBPROXY_UPSTREAM_CA: {path} holds {skipped} unreadable certificates and {added} good ones",
                hint="Name a PEM file with certificates (BEGIN CERTIFICATE), or unset it",
            )
    for path in user_files:
        try:
            added, skipped = _add(context, _read(path), own_pem)
        except OSError as error:
            notice(f"the certificates in {path} are not used: {error.strerror or error}")
            continue
        if skipped:
            notice(f"{skipped} of {added + skipped} certificates in {path} are not used: they are unreadable")
        elif not added and not _certificates(own_pem):
            notice(f"{path} holds no certificates")
    return context


def _system_context(notice: Callable[[str], None], platform: str) -> ssl.SSLContext:
    context: ssl.SSLContext | None = None
    if platform in ("darwin", "win32"):
        try:
            import truststore

            # It asks the operating system after each handshake, which knows roots that a company installed.
            context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        except ImportError as error:
            notice(f"the system's certificate store cannot be asked ({error}); certifi's roots are used")
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _add(context, system_bundle(), b"")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def system_bundle(bundles: Sequence[str] = BUNDLES, folders: Sequence[str] = FOLDERS) -> bytes:
    """The system's roots as PEM: the first bundle that holds any, else a folder of single files, else certifi's.

    Never what the environment names, because that may be a bundle of ours. On Windows and macOS this is for children
    only (SSL_CERT_FILE and the like); our own verification asks the system there.
    """
    places = ssl.get_default_verify_paths()
    for name in (*bundles, places.openssl_cafile):
        pem = _certificates_in(Path(name))
        if pem:
            return pem
    pem = _windows_roots()
    if pem:
        return pem
    for name in (*folders, places.openssl_capath):
        pem = _certificates_in(Path(name))
        if pem:
            return pem
    import certifi

    return _pem(_certificates(certifi.contents().encode("ascii")))


def _windows_roots() -> bytes:
    found: list[bytes] = []
    if sys.platform == "win32":
        for der, encoding, purposes in ssl.enum_certificates("ROOT"):
            if encoding == "x509_asn" and (purposes is True or "1.3.6.1.5.5.7.3.1" in purposes):
                found.append(ssl.DER_cert_to_PEM_cert(der).encode("ascii"))
    return b"".join(found)


def _certificates_in(path: Path) -> bytes:
    """The certificates of a file or folder as PEM, without a folder's duplicates; empty where there are none."""
    try:
        return _pem(list(dict.fromkeys(_certificates(_read(path)))))
    except OSError:
        return b""


def _read(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        if not stat.S_ISREG(status.st_mode):  # reading a pipe could take for ever
            raise OSError("it is neither a file nor a folder")
        if status.st_size > _MAX_BUNDLE:
            raise OSError("it is larger than any bundle of certificates")
        return path.read_bytes()
    files = [child for child in sorted(path.iterdir()) if child.is_file() and child.stat().st_size <= _MAX_BUNDLE]
    return b"\n".join(child.read_bytes() for child in files)


def _certificates(data: bytes) -> list[bytes]:
    return [block.replace(b"\r\n", b"\n") for block in _CERTIFICATE.findall(data)]


def _pem(blocks: Sequence[bytes]) -> bytes:
    return b"".join(block + b"\n" for block in blocks)


def _add(context: ssl.SSLContext, data: bytes, unwanted: bytes) -> tuple[int, int]:
    """Adds the certificates of ``data`` but those of ``unwanted``. Returns how many were added and unreadable."""
    left_out = set(_certificates(unwanted))
    blocks = [block for block in _certificates(data) if block not in left_out]
    if not blocks:
        return 0, 0
    try:
        context.load_verify_locations(cadata=_pem(blocks).decode("ascii"))
    except (ssl.SSLError, ValueError):
        pass
    else:
        return len(blocks), 0
    added = 0
    for block in blocks:
        try:
            context.load_verify_locations(cadata=block.decode("ascii") + "\n")
            added += 1
        except (ssl.SSLError, ValueError):
            pass
    return added, len(blocks) - added


_VERIFY: Final = {
    # X509_V_ERR_* of OpenSSL, x509_vfy.h
    10: ("has expired", "Check this computer's clock; else the server has to renew its certificate"),
    9: ("is not valid yet", "Check this computer's clock"),
    18: ("is self-signed and not trusted", "If that server is yours, set DBPROXY_UPSTREAM_CA to its certificate"),
    19: ("comes from an authority that is not trusted", "A company proxy? Set DBPROXY_UPSTREAM_CA to its root"),
    20: ("comes from an authority that is not trusted", "A company proxy? Set DBPROXY_UPSTREAM_CA to its root"),
    21: ("cannot be traced to a trusted authority", "The server may not send its intermediate certificates"),
    23: ("has been revoked", ""),
    47: ("is for names that its authority may not sign for", ""),
    62: ("is for another host name", "Check the upstream's host name"),
    64: ("is for another address", "Check the upstream's address"),
}


def describe_verify_error(error: BaseException, host: str) -> tuple[str, str]:
    """Why TLS to the upstream failed and what to do about it: (sentence, hint), for ``UpstreamError("tls", ...)``."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # truststore raises these too, without OpenSSL's code.
        code = getattr(error, "verify_code", 0)
        message = getattr(error, "verify_message", "") or str(error)
        text, hint = _VERIFY.get(code, (f"is not acceptable: {message.rstrip('.')}", ""))
        return f"the certificate of {host} {text}", hint
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or type(error).__name__
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return f"{host} does not speak TLS on that port", "Check scheme and port of the upstream's URL"
        if isinstance(error, ssl.SSLEOFError) or reason == "UNEXPECTED_EOF_WHILE_READING":
            return f"{host} closed the connection during the TLS handshake", ""
        return f"TLS with {host} failed: {reason.lower().replace('_', ' ')}", ""
    if isinstance(error, TimeoutError):
        return f"{host} did not finish the TLS handshake in time", ""
    return f"TLS with {host} failed: {str(error) or type(error).__name__}", ""
