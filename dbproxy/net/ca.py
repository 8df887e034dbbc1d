"""The interception roots of this install, the leaves under them, and our own localhost certificate.

Owns the folder ``ca/`` (0700): ``root-NNNN.pem`` (key and certificate, 0600), ``leaves/`` (0600), ``own.pem`` (0600),
``bundle.pem`` (our roots, for clients), ``child-bundle.pem`` (the same and the system's roots), ``lock``. Certificates
are made by ``mint.py``, imported only when one has to be made. Synchronous; a warm look-up takes microseconds, a first
leaf some milliseconds, plus the import. Never touches a trust store outside the folder.

Invariants:
- The current root for a set of names is the newest usable one made for exactly these names. So there is no pointer
  that could go stale, two processes with different settings do not disturb each other, and a new root never makes an
  older one useless: that one goes on serving the scopes that were given it until it expires or is pruned.
- Files appear whole (written beside, then renamed) and roots only under the lock. An existing good root is never
  replaced or changed; a broken one is moved aside, never deleted.
- A root is renewed 60 days before its end, a leaf 10 days, also in a process that runs for weeks.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from dbproxy.errors import CertificateError, ConfigError
from dbproxy.net import rootfile, tls
from dbproxy.paths import make_private, write_private
from dbproxy.wire.target import normalise_host

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from dbproxy.net.rootfile import Root

_DAY: Final = 86400.0
ROOT_LIFE: Final = 730 * _DAY
LEAF_LIFE: Final = 30 * _DAY
LEAF_RENEWAL: Final = 10 * _DAY
OWN_LIFE: Final = 365 * _DAY
OWN_RENEWAL: Final = 30 * _DAY
BACKDATED: Final = 3600.0
"""Certificates begin an hour in the past, so that a client whose clock is a little behind takes them at once."""
PRUNE_GRACE: Final = _DAY
"""A root younger than this is not pruned: a launch may have been given it and not have registered yet."""
OWN_NAMES: Final = ("localhost", "127.0.0.1", "::1")

_ROOT_NUMBER: Final = re.compile(r"root-(\d{4,9})\.pem")
_PLAIN_NAME: Final = re.compile(r"[a-z0-9_.-]{1,100}")
_ASIDE: Final = "root-*.pem.broken"
_CACHED_LEAVES: Final = 256
_MAX_NOTICES: Final = 1000

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Leaf:
    chain: bytes
    not_before: float
    renew_at: float


class Authority:
    """The certificates of one install, for one list of intercepted names.

    Methods may be called from any thread. ``notices`` are sentences for a person about what was repaired or could not
    be written; the caller logs and clears them with ``take_notices``.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, clock: Callable[[], float] = time.time) -> None:
        """Nothing is read yet; use ``open``."""
        self.folder = folder
        self.names = rootfile.normalised(names)
        self._clock = clock
        self._roots: dict[str, Root] = {}
        self._current: Root | None = None
        self._seen: dict[str, tuple[int, int]] = {}
        self._leaves: OrderedDict[tuple[str, str], _Leaf] = OrderedDict()
        self._contexts: OrderedDict[tuple[str, str, tuple[str, ...]], tuple[_Leaf, ssl.SSLContext]] = OrderedDict()
        self._own: tuple[_Leaf, ssl.SSLContext] | None = None
        self._broken: list[Path] = []
        self._notices: list[str] = []
        self._said: set[str] = set()
        self._system_roots = b""
        self._lock = threading.RLock()

    @classmethod
    def open(cls, folder: Path, names: Sequence[str], *, clock: Callable[[], float] = time.time) -> Authority:
        """Loads the roots in ``folder`` and makes one where none fits ``names`` or the one there nears its end.

        Raises CertificateError where the folder or a root cannot be read, or a root is needed and cannot be written.
        """
        authority = cls(folder, names, clock=clock)
        rootfile.prepare_folder(folder, authority._notice)
        authority.refresh()
        return authority

    # Roots

    @property
    def current(self) -> Root:
        """The root that new launches are given."""
        if self._current is None:
            raise CertificateError("the interception root is not loaded", hint=rootfile.HINT_REMAKE)
        return self._current

    @property
    def roots(self) -> tuple[Root, ...]:
        """All roots that are still valid, the current one first, then the newest first."""
        current = self._current
        return tuple(
            sorted(self._roots.values(), key=lambda root: (root is not current, -root.sequence, root.fingerprint))
        )

    @property
    def root_pem(self) -> bytes:
        """The certificate of the current root."""
        return self.current.pem

    @property
    def bundle_pem(self) -> bytes:
        """The certificates of all roots that are still valid, the current one first."""
        return b"".join(root.pem for root in self.roots)

    def covers(self, name: str, root: str | None = None) -> bool:
        """Whether a leaf for ``name`` under that root (fingerprint; unknown or None: the current one) would be taken.

        False also for an expired root. A launch whose root does not cover a name is best served by a blind tunnel.
        """
        try:
            name = normalise_host(name)
            chosen = self._root(root)
        except (ValueError, CertificateError):
            return False
        return chosen.covers(name) and chosen.valid(self._clock())

    def refresh(self) -> bool:
        """Takes up what other processes changed, and replaces the current root in time. True if anything changed.

        Costs a directory listing (some 60 microseconds) when nothing did. Call it at each launch and every minute or
        so. Raises CertificateError only while there is no usable root at all.
        """
        with self._lock:
            before = self.roots
            self._read_roots()
            if self._current is None or not self._current.lasting(self._clock()):
                self._replace_current()
            changed = before != self.roots
            if changed or not self.bundle_path.exists():
                self._write_bundles()
            return changed

    def prepare(self) -> None:
        """Makes or renews the certificates that clients are going to need, so that no handshake waits for that.

        Call it at start and every minute or so with ``refresh``, in a worker thread: with nothing to do both are
        quick, but a new certificate means an import and waiting for the disk. Raises CertificateError.
        """
        for root in self.roots:
            for name in self.names:
                if self.covers(name, root.fingerprint):
                    self.leaf_context(name, root.fingerprint)
        self.own_context()

    def rotate(self) -> Root:
        """Makes a new current root. The others stay and go on serving the launches that were given them."""
        with self._lock:
            rootfile.prepare_folder(self.folder, self._notice)
            with rootfile.locked(self.folder):
                self._read_roots()
                self._make_root()
            self._write_bundles()
            return self.current

    def prune(self, in_use: Collection[str], *, grace: float = PRUNE_GRACE) -> tuple[Root, ...]:
        """Deletes the roots that no scope needs (``in_use``: fingerprints) and returns them.

        Kept are the current root, roots in use, and all while the newest is younger than ``grace`` seconds. What was
        moved aside as broken goes too, since it may hold a key.
        """
        if self._roots.keys() <= {self.current.fingerprint, *in_use} and not any(self.folder.glob(_ASIDE)):
            return ()
        with self._lock, rootfile.locked(self.folder):
            self._read_roots()
            now = self._clock()
            newest = max((root.not_before + BACKDATED for root in self._roots.values()), default=now)
            if now - newest < grace:
                return ()
            spare = [root for root in self.roots if root is not self._current and root.fingerprint not in in_use]
            dropped = tuple(root for root in spare if self._delete(root))
            for aside in self.folder.glob(_ASIDE):
                with suppress(OSError):
                    aside.unlink()
            if dropped:
                self._write_bundles()
            return dropped

    # Leaves

    def leaf_context(self, name: str, root: str | None = None, *, alpn: tuple[str, ...] = tls.HTTP1) -> ssl.SSLContext:
        """A server context with a certificate for ``name``, ready for TLS.

        ``root`` is the fingerprint of the root that the client was given; None or an unknown one means the current
        root. Cached until the certificate wants renewing. Raises CertificateError where that root cannot serve
        the name (see ``covers``).
        """
        now = self._clock()
        cached = self._contexts.get((root or self.current.fingerprint, name, alpn))
        if cached is not None and cached[0].not_before <= now < cached[0].renew_at:
            return cached[1]
        with self._lock:
            chosen = self._root(root)
            leaf = self._leaf(chosen, rootfile.normalised([name])[0], now)
            key = (chosen.fingerprint, name, alpn)
            cached = self._contexts.get(key)
            if cached is not None and cached[0] is leaf:
                return cached[1]
            context = _context(leaf.chain, alpn, f"the certificate for {name}")
            _remember(self._contexts, key, (leaf, context))
            return context

    def own_context(self) -> ssl.SSLContext:
        """A server context for TLS on our own port: self-signed, for localhost, 127.0.0.1 and ::1."""
        now = self._clock()
        own = self._own
        if own is not None and own[0].not_before <= now < own[0].renew_at:
            return own[1]
        with self._lock:
            leaf = self._stored_leaf(self.folder / "own.pem", {"Names": ",".join(OWN_NAMES)}, now)
            if leaf is None:
                leaf = self._make_own(now)
            context = _context(leaf.chain, (*tls.HTTP1, "h2"), "our own certificate")
            self._own = (leaf, context)
            return context

    def own_pem(self) -> bytes:
        """The certificate that ``own_context`` shows, for those who want to trust it."""
        self.own_context()
        assert self._own is not None
        return rootfile.certificates(self._own[0].chain)

    # Files for clients

    @property
    def bundle_path(self) -> Path:
        """Our roots: what NODE_EXTRA_CA_CERTS of a launched client names."""
        return self.folder / "bundle.pem"

    @property
    def child_bundle_path(self) -> Path:
        """Our roots and the system's: what SSL_CERT_FILE and its kin name. Written once the system's are known."""
        return self.folder / "child-bundle.pem"

    def write_child_bundle(self, system_roots: bytes) -> Path:
        """Writes ``child-bundle.pem`` from our roots and ``system_roots`` (PEM), and keeps it up to date."""
        with self._lock:
            self._system_roots = system_roots
            self._write_bundles()
        return self.child_bundle_path

    def take_notices(self) -> list[str]:
        """What a person should know since the last call, oldest first."""
        with self._lock:
            notices, self._notices = self._notices, []
            return notices

    # Inside

    def _notice(self, text: str) -> None:
        """Once for each text: ``refresh`` meets the same broken file every time."""
        if text not in self._said and len(self._said) < _MAX_NOTICES:
            self._said.add(text)
            self._notices.append(text)

    def _root(self, fingerprint: str | None) -> Root:
        if not fingerprint:
            return self.current
        known = self._roots.get(fingerprint)
        if known is None:
            # Perhaps another process made it a moment ago.
            self.refresh()
            known = self._roots.get(fingerprint, self.current)
        return known

    def _read_roots(self) -> None:
        """Reads new and changed root files and picks the current root.

        Raises CertificateError where a file may not be read and nothing else can be the current root: making a new
        root beside one that is only inaccessible would hide the mistake.
        """
        now = self._clock()
        known = {root.path: root for root in self._roots.values()}
        seen: dict[str, tuple[int, int]] = {}
        roots: dict[str, Root] = {}
        self._broken = []
        refused: CertificateError | None = None
        for path, signature in rootfile.listing(self.folder):
            seen[path.name] = signature
            root = known.get(path)
            try:
                if root is None or self._seen.get(path.name) != signature:
                    root = rootfile.read_root(path, self._notice)
            except rootfile.Broken as error:
                self._broken.append(path)
                self._notice(f"{path} is no usable root: {error}")
            except CertificateError as error:
                refused = error
            except FileNotFoundError:
                pass
            else:
                if now < root.not_after:
                    roots[root.fingerprint] = root
        self._seen = seen
        self._roots = roots
        self._current = rootfile.choose(list(roots.values()), self.names, now)
        if refused is not None:
            if self._current is None:
                raise refused
            self._notice(str(refused))

    def _replace_current(self) -> None:
        try:
            rootfile.prepare_folder(self.folder, self._notice)
            with rootfile.locked(self.folder):
                self._read_roots()  # another process may have been quicker
                if self._current is None or not self._current.lasting(self._clock()):
                    self._make_root()
        except CertificateError as error:
            if self._current is None:
                raise
            self._notice(f"the interception root should be renewed, but: {error}")

    def _make_root(self) -> None:
        """Under the lock: moves broken files aside and adds a root with the next number."""
        from dbproxy.net import mint

        now = self._clock()
        taken = [int(match[1]) for name in os.listdir(self.folder) if (match := _ROOT_NUMBER.match(name))]
        path = self.folder / f"root-{max(taken, default=0) + 1:04d}.pem"
        made = mint.root(self.names, not_before=now - BACKDATED, not_after=now - BACKDATED + ROOT_LIFE)
        header = (
            "The interception root of dbproxy, with its private key. Who has this file can pose as the names below to\n"
            "the programs that dbproxy started. It does not leave this computer and is in no trust store.\n"
            f"Names: {','.join(self.names)}\n"
        )
        try:
            for useless in self._broken:
                useless.replace(useless.with_name(useless.name + ".broken"))
                self._notice(f"{useless.name} was moved aside, to {useless.name}.broken")
            write_private(path, header.encode() + made.key + made.certificate)
        except (OSError, ConfigError) as error:
            raise CertificateError(
                f"a new interception root cannot be written: {error}",
                hint="Make the folder writable, or free some disk space",
            ) from error
        self._read_roots()
        if self._current is None or self._current.path != path:
            raise CertificateError(f"the root just written to {path} cannot be used", hint=rootfile.HINT_REMAKE)

    def _delete(self, root: Root) -> bool:
        try:
            root.path.unlink(missing_ok=True)
            for leaf in (self.folder / "leaves").glob(f"{root.sequence:04d}-*.pem"):
                leaf.unlink(missing_ok=True)
        except OSError as error:
            self._notice(f"an old root cannot be deleted: {error}")
            return False
        del self._roots[root.fingerprint]
        for key in [key for key in self._leaves if key[0] == root.fingerprint]:
            del self._leaves[key]
        for context_key in [key for key in self._contexts if key[0] == root.fingerprint]:
            del self._contexts[context_key]
        return True

    def _leaf(self, root: Root, name: str, now: float) -> _Leaf:
        if not root.valid(now) or not root.covers(name):
            raise CertificateError(
                f"the interception root {root.fingerprint[:16]} cannot sign for {name}: it is for "
                f"{', '.join(root.names) or 'no name'} until {_day(root.not_after)}",
                hint="Start the client again to give it the current root",
            )
        key = (root.fingerprint, name)
        cached = self._leaves.get(key)
        if cached is not None and cached.not_before <= now < cached.renew_at:
            return cached
        path = self.folder / "leaves" / f"{root.sequence:04d}-{_file_name(name)}.pem"
        leaf = self._stored_leaf(path, {"Name": name, "Root": root.fingerprint}, now)
        if leaf is None:
            leaf = self._make_leaf(root, name, path, now)
        _remember(self._leaves, key, leaf)
        return leaf

    def _stored_leaf(self, path: Path, identity: dict[str, str], now: float) -> _Leaf | None:
        """The leaf on disk, if it is the one asked for, whole, and not due for renewal."""
        try:
            rootfile.tighten(path, 0o600, self._notice)
            chain = path.read_bytes()
            fields = rootfile.fields(chain)
            if any(fields.get(key) != value for key, value in identity.items()):
                return None
            leaf = _Leaf(chain, float(fields["Not-Before"]), float(fields["Renew-At"]))
            if not leaf.not_before <= now < leaf.renew_at:
                return None
            tls.server_context(chain)
        except (OSError, ValueError, KeyError, CertificateError):
            return None
        return leaf

    def _make_leaf(self, root: Root, name: str, path: Path, now: float) -> _Leaf:
        from dbproxy.net import mint

        not_before = max(now - BACKDATED, root.not_before)
        not_after = min(now - BACKDATED + LEAF_LIFE, root.not_after)
        # A leaf that ends with its root cannot be renewed past it.
        renew_at = not_after if not_after == root.not_after else not_after - LEAF_RENEWAL
        try:
            key_and_root = root.path.read_bytes()
        except OSError as error:
            raise CertificateError(
                f"{root.path} cannot be read: {error.strerror or error}", hint="Make it readable for you alone (0600)"
            ) from error
        made = mint.leaf(root.pem, rootfile.keys(key_and_root), name, not_before=not_before, not_after=not_after)
        identity = {"Name": name, "Root": root.fingerprint}
        leaf = _Leaf(_chain(made.key, made.certificate, identity, not_before, renew_at), not_before, renew_at)
        if name in root.names:
            self._store(path, leaf.chain)
        return leaf

    def _make_own(self, now: float) -> _Leaf:
        from dbproxy.net import mint

        not_before, renew_at = now - BACKDATED, now - BACKDATED + OWN_LIFE - OWN_RENEWAL
        made = mint.own(OWN_NAMES, not_before=not_before, not_after=renew_at + OWN_RENEWAL)
        chain = _chain(made.key, made.certificate, {"Names": ",".join(OWN_NAMES)}, not_before, renew_at)
        self._store(self.folder / "own.pem", chain)
        return _Leaf(chain, not_before, renew_at)

    def _store(self, path: Path, data: bytes) -> None:
        """Keeps a leaf for the next start; a disk that does not take it costs only that."""
        try:
            make_private(path.parent)
            write_private(path, data)
        except (OSError, ConfigError) as error:
            self._notice(f"certificates are made anew at each start: {error}")

    def _write_bundles(self) -> None:
        files = [(self.bundle_path, self.bundle_pem)]
        if self._system_roots:
            files.append((self.child_bundle_path, self.bundle_pem + self._system_roots))
        for path, wanted in files:
            try:
                if not path.exists() or path.read_bytes() != wanted:
                    write_private(path, wanted)
            except (OSError, ConfigError) as error:
                self._notice(f"programs started from now on may be given stale roots: {error}")


def rotate(folder: Path, names: Sequence[str], *, clock: Callable[[], float] = time.time) -> Authority:
    """Makes a new current root in ``folder``; what ``certs rotate`` does. A running proxy takes it up by itself."""
    authority = Authority(folder, names, clock=clock)
    authority.rotate()
    return authority


def _chain(key: bytes, certificate: bytes, identity: dict[str, str], not_before: float, renew_at: float) -> bytes:
    lines = {**identity, "Not-Before": f"{not_before:.0f}", "Renew-At": f"{renew_at:.0f}"}
    return "".join(f"{name}: {value}\n" for name, value in lines.items()).encode() + key + certificate


def _context(chain: bytes, alpn: tuple[str, ...], what: str) -> ssl.SSLContext:
    try:
        return tls.server_context(chain, alpn)
    except OSError as error:  # ssl.SSLError is one
        raise CertificateError(f"{what} cannot be used: {error}", hint=rootfile.HINT_REMAKE) from error


def _remember(cache: OrderedDict[K, V], key: K, value: V) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > _CACHED_LEAVES:
        cache.popitem(last=False)


def _file_name(name: str) -> str:
    """``name`` where it is harmless in every file system, else a digest of it."""
    return name if _PLAIN_NAME.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()[:32]


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
