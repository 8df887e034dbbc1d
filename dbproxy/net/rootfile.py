"""The files of the interception roots: reading them without trusting them, and who may write when.

Owns the format of ``root-NNNN.pem`` (a header for people, key, certificate), the checks before one is used, access
rights, and the lock of the folder. Reads dates and fingerprints with ``ssl`` alone, so that a start with good files
imports no cryptography. Makes and changes no certificate.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from dbproxy.errors import CertificateError, ConfigError
from dbproxy.net import tls
from dbproxy.paths import make_private
from dbproxy.wire.target import normalise_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

ROOT_RENEWAL: Final = 60 * 86400.0
"""How long before its end a root is replaced for new launches."""
LOCK_SECONDS: Final = 10.0
HINT_REMAKE: Final = "Run: dbproxy certs rotate"

_ROOT_FILE: Final = re.compile(r"root-(\d{4,9})\.pem")
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_HEADER: Final = re.compile(rb"^([A-Z][A-Za-z-]+): ([^\n]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Root:
    """One interception root. ``fingerprint`` is the SHA-256 of the certificate in lower-case hex; times are seconds."""

    sequence: int
    path: Path
    fingerprint: str
    names: tuple[str, ...]
    not_before: float
    not_after: float
    pem: bytes

    def covers(self, name: str) -> bool:
        """Whether clients that trust this root take a leaf for ``name`` (normalised) under it."""
        if name in self.names:
            return True
        return any(name.endswith("." + permitted) for permitted in self.names if not is_address(permitted))

    def valid(self, now: float) -> bool:
        """Whether a client that checks at ``now`` takes it."""
        return self.not_before <= now < self.not_after

    def lasting(self, now: float) -> bool:
        """Whether it is good for new launches: valid, and not so near its end that it must be replaced."""
        return self.not_before <= now < self.not_after - ROOT_RENEWAL


class Broken(Exception):
    """A certificate file whose content is of no use; the text says why."""


def inspect(folder: Path) -> tuple[list[Root], list[tuple[Path, str]]]:
    """What is in ``folder``, without changing or making anything: roots (oldest first) and unusable files with why."""
    roots, broken = [], []
    if folder.exists():
        for path, _signature in listing(folder):
            try:
                roots.append(read_root(path, None))
            except (Broken, OSError) as error:
                broken.append((path, str(error)))
    return sorted(roots, key=lambda root: root.sequence), broken


def choose(roots: Sequence[Root], names: tuple[str, ...], now: float) -> Root | None:
    """The root that new launches with these (normalised) names are given: the newest valid one made for exactly them.

    A smaller root would fail some name and a larger one could sign for more than it has to.
    """
    fitting = [root for root in roots if root.names == names and root.valid(now)]
    return max(fitting, key=lambda root: root.sequence, default=None)


def normalised(names: Sequence[str]) -> tuple[str, ...]:
    """Sorted, each once, as certificates spell them. Raises CertificateError."""
    done = set()
    for name in names:
        try:
            done.add(normalise_host(name))
        except ValueError as error:
            raise CertificateError(
                f"no certificate can be made for {name!r}: {error}", hint="Check DBPROXY_INTERCEPT"
            ) from error
    return tuple(sorted(done))


def is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def listing(folder: Path) -> list[tuple[Path, tuple[int, int]]]:
    """The root files with (modification time in ns, size)."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _ROOT_FILE.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        found.append((folder / entry.name, (status.st_mtime_ns, status.st_size)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CertificateError(
            f"the certificate folder {folder} cannot be read: {error.strerror or error}",
            hint="Make it a folder that you own, or set DBPROXY_DATA_DIR",
        ) from error
    return found


def read_root(path: Path, notice: Callable[[str], None] | None) -> Root:
    """Raises Broken for useless content, FileNotFoundError, and CertificateError for a file that may not be read."""
    try:
        if notice is not None:
            tighten(path, 0o600, notice)
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CertificateError(
            f"the interception root {path} cannot be read: {error.strerror or error}",
            hint="Make it readable for you alone (0600), or move it away and run: dbproxy certs rotate",
        ) from error
    pem = certificates(data)
    if not pem or not data.endswith(b"-----END CERTIFICATE-----\n"):
        raise Broken("the file is incomplete")
    try:
        tls.server_context(data)
        store = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        store.load_verify_locations(cadata=pem.decode("ascii"))
        (facts,) = store.get_ca_certs()
        der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
        not_before = float(ssl.cert_time_to_seconds(str(facts["notBefore"])))
        not_after = float(ssl.cert_time_to_seconds(str(facts["notAfter"])))
    except ssl.SSLError as error:
        mismatch = "MISMATCH" in str(error)
        raise Broken("key and certificate do not belong together" if mismatch else str(error)) from error
    except OSError as error:
        raise CertificateError(f"the interception root {path} cannot be checked: {error}") from error
    except ValueError as error:
        raise Broken("there is not exactly one root certificate in it") from error
    match = _ROOT_FILE.fullmatch(path.name)
    return Root(
        sequence=int(match[1]) if match else 0,
        path=path,
        fingerprint=hashlib.sha256(der).hexdigest(),
        names=_names_of(data, pem),
        not_before=not_before,
        not_after=not_after,
        pem=pem,
    )


def _names_of(data: bytes, pem: bytes) -> tuple[str, ...]:
    """The names that a root is for: from the header, which spares an import, else from the certificate itself."""
    known = fields(data)
    if "Names" in known:
        return tuple(sorted(name for name in known["Names"].split(",") if name))
    from dbproxy.net import mint

    try:
        return mint.permitted_names(pem)
    except CertificateError as error:
        raise Broken(str(error)) from error


def fields(data: bytes) -> dict[str, str]:
    """The ``Key: value`` lines before the first PEM block."""
    text = data.partition(b"-----BEGIN")[0]
    return {match[1].decode(): match[2].decode("utf-8", "replace").strip() for match in _HEADER.finditer(text)}


def certificates(data: bytes) -> bytes:
    return b"".join(_CERTIFICATE.findall(data))


def keys(data: bytes) -> bytes:
    """The PEM blocks of ``data`` that are no certificates."""
    return b"-----BEGIN" + _CERTIFICATE.sub(b"", data).partition(b"-----BEGIN")[2]


def prepare_folder(folder: Path, notice: Callable[[str], None]) -> None:
    try:
        if folder.is_dir() and not folder.is_symlink():
            tighten(folder, 0o700, notice)
        make_private(folder)
    except (OSError, ConfigError) as error:
        raise CertificateError(f"the certificate folder cannot be used: {error}") from error


def tighten(path: Path, mode: int, notice: Callable[[str], None]) -> None:
    """Takes away what group and others may do with a file or folder of keys, and says so."""
    if sys.platform == "win32":  # the per-user folder's access list protects it there
        return
    status = path.stat()
    if os.geteuid() != 0 and status.st_uid not in (os.geteuid(), 0):
        raise CertificateError(
            f"{path} belongs to another user (uid {status.st_uid})",
            hint="Remove it, or set DBPROXY_DATA_DIR to a folder of your own",
        )
    if not status.st_mode & 0o077:
        return
    try:
        path.chmod(mode)
    except OSError as error:
        notice(f"{path} is open to other users and cannot be closed: {error.strerror or error}")
        return
    notice(f"{path} was open to other users and is closed now ({mode:o}); if others may have read it: {HINT_REMAKE}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds ``folder/lock`` against other processes. Raises CertificateError after 10 s or on an unwritable folder."""
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        raise CertificateError(
            f"the certificate folder {folder} cannot be written: {error.strerror or error}",
            hint="Make it writable, free some disk space, or set DBPROXY_DATA_DIR",
        ) from error
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        pause = threading.Event()
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise CertificateError(
                    f"another process has held {path} for {LOCK_SECONDS:.0f} s", hint="Stop it and try again"
                )
            pause.wait(0.02)
        yield
    finally:
        os.close(descriptor)  # which unlocks it


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
