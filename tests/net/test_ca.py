"""The interception roots of an install: made once, kept, renewed, rotated, healed; always in real files."""

from __future__ import annotations

import multiprocessing
import os
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dbproxy.errors import CertificateError, ConfigError
from dbproxy.net import ca, rootfile
from dbproxy.net.ca import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "api.anthropic.com"
DAY = 86400.0
NOW = 1_800_000_000.0


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ca"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def served(context: ssl.SSLContext, name: str = HOST) -> x509.Certificate:
    """The certificate that a client sees from ``context``, after a real handshake in memory."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    client = handshake(context, client_context, name)
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def handshake(server_context: ssl.SSLContext, client_context: ssl.SSLContext, name: str | None) -> ssl.SSLObject:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    pending = [client, server]
    for _ in range(10):
        for side in list(pending):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            pending.remove(side)
        if not pending:
            return client
    raise AssertionError("the handshake did not end")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# The root itself


def test_root_is_a_true_constrained_self_signed_root(folder: Path) -> None:
    authority = Authority.open(folder, [HOST])
    root = x509.load_pem_x509_certificate(authority.root_pem)
    extensions = root.extensions
    assert root.issuer == root.subject
    identifier = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert identifier == x509.SubjectKeyIdentifier.from_public_key(root.public_key())  # type: ignore[arg-type]
    assert (
        extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        == identifier.key_identifier
    )
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    assert root.public_key().curve.name == "secp256r1"  # type: ignore[union-attr]
    constraints = extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert [name.value for name in constraints.value.permitted_subtrees or ()] == [HOST]
    assert [str(name.value) for name in constraints.value.excluded_subtrees or ()] == ["0.0.0.0/0", "::/0"]


def test_lifetimes_and_backdating(folder: Path, clock: Clock) -> None:
    authority = Authority.open(folder, [HOST], clock=clock)
    assert authority.current.not_before == NOW - 3600
    assert authority.current.not_after == NOW - 3600 + 730 * DAY
    leaf = served(authority.leaf_context(HOST))
    assert leaf.not_valid_before_utc.timestamp() == NOW - 3600
    assert leaf.not_valid_after_utc.timestamp() == NOW - 3600 + 30 * DAY


def test_every_install_has_its_own_root(tmp_path: Path) -> None:
    roots = [
        x509.load_pem_x509_certificate(Authority.open(tmp_path / name, [HOST]).root_pem) for name in ("one", "two")
    ]
    assert roots[0].subject != roots[1].subject
    assert roots[0].serial_number != roots[1].serial_number
    assert roots[0].public_key() != roots[1].public_key()


@pytest.mark.parametrize(
    ("names", "permitted", "excluded"),
    [
        (["b.example", "a.example"], {"a.example", "b.example"}, {"0.0.0.0/0", "::/0"}),
        (["a.example", "192.0.2.7"], {"a.example", "192.0.2.7/32"}, {"::/0"}),
        (["2001:db8::7"], {"dbproxy.invalid", "2001:db8::7/128"}, {"0.0.0.0/0"}),
        ([], {"dbproxy.invalid"}, {"0.0.0.0/0", "::/0"}),
    ],
)
def test_constraints_follow_the_intercept_list(
    folder: Path, names: list[str], permitted: set[str], excluded: set[str]
) -> None:
    root = x509.load_pem_x509_certificate(Authority.open(folder, names).root_pem)
    constraints = root.extensions.get_extension_for_class(x509.NameConstraints).value
    assert {str(name.value) for name in constraints.permitted_subtrees or ()} == permitted
    assert {str(name.value) for name in constraints.excluded_subtrees or ()} == excluded


def test_leaf_is_for_tls_servers_only(folder: Path) -> None:
    leaf = served(Authority.open(folder, [HOST]).leaf_context(HOST))
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_encipherment
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == [HOST]
    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == HOST


def test_long_and_odd_names_get_leaves(folder: Path) -> None:
    long = ".".join(["a" * 60] * 4)
    names = [long, "under_score.example", "localhost", "192.0.2.1", "2001:db8::1", "xn--bcher-kva.example"]
    authority = Authority.open(folder, names)
    for name in names:
        leaf = served(authority.leaf_context(name), "x")
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        seen = [*alternatives.get_values_for_type(x509.DNSName)]
        seen += [str(address) for address in alternatives.get_values_for_type(x509.IPAddress)]
        assert seen == [name]


# Files


def test_files_are_private(folder: Path) -> None:
    before = os.umask(0)
    try:
        authority = Authority.open(folder, [HOST])
        authority.leaf_context(HOST)
        authority.own_context()
        authority.write_child_bundle(b"")
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert mode(folder / "leaves") == 0o700
    keys = [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert {path.name for path in keys} == {"root-0001.pem", f"0001-{HOST}.pem", "own.pem"}
    assert {mode(path) for path in keys} == {0o600}
    assert b"PRIVATE" not in authority.bundle_path.read_bytes()


def test_wide_rights_are_narrowed_and_said(folder: Path) -> None:
    fingerprint = Authority.open(folder, [HOST]).current.fingerprint
    folder.chmod(0o755)
    (folder / "root-0001.pem").chmod(0o644)
    authority = Authority.open(folder, [HOST])
    assert authority.current.fingerprint == fingerprint
    assert mode(folder) == 0o700
    assert mode(folder / "root-0001.pem") == 0o600
    notices = authority.take_notices()
    assert sum("open to other users" in text for text in notices) == 2
    assert any("certs rotate" in text for text in notices)
    assert authority.take_notices() == []


def test_second_start_uses_the_same_root_and_leaf(folder: Path) -> None:
    first = Authority.open(folder, [HOST])
    serial = served(first.leaf_context(HOST)).serial_number
    second = Authority.open(folder, [HOST])
    assert second.current.fingerprint == first.current.fingerprint
    assert served(second.leaf_context(HOST)).serial_number == serial
    assert second.bundle_path.read_bytes() == second.bundle_pem == first.root_pem


def test_warm_start_imports_no_cryptography(folder: Path) -> None:
    Authority.open(folder, [HOST]).prepare()
    code = (
        "import sys, pathlib\n"
        "from dbproxy.net.ca import Authority\n"
        "a = Authority.open(pathlib.Path(sys.argv[1]), [sys.argv[2]])\n"
        "a.prepare()\n"
        "assert not {'cryptography', 'trustme', 'trio'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), HOST], check=True, timeout=60)


def test_names_are_compared_as_hosts(folder: Path) -> None:
    authority = Authority.open(folder, ["API.Anthropic.com.", HOST])
    assert authority.names == (HOST,)
    assert authority.leaf_context("API.ANTHROPIC.COM.") is authority.leaf_context("API.ANTHROPIC.COM.")
    assert served(authority.leaf_context("API.ANTHROPIC.COM.")) == served(authority.leaf_context(HOST))


def test_bad_name_in_the_list_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(CertificateError, match="DBPROXY_INTERCEPT"):
        Authority.open(folder, ["not a host"])
    assert not folder.exists()


# Broken files


@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.6, -1, -30])
def test_half_written_root_is_remade_and_kept_aside(folder: Path, kept: float) -> None:
    first = Authority.open(folder, [HOST]).current
    data = first.path.read_bytes()
    cut = data[: int(len(data) * kept)] if 0 < kept < 1 else data[: int(kept)]
    first.path.write_bytes(cut)
    authority = Authority.open(folder, [HOST])
    assert authority.current.fingerprint != first.fingerprint
    assert authority.current.path.name == "root-0002.pem"
    assert (folder / "root-0001.pem.broken").read_bytes() == cut
    assert any("no usable root" in text for text in authority.take_notices())
    assert served(authority.leaf_context(HOST))


def test_swapped_key_is_remade(folder: Path, tmp_path: Path) -> None:
    mine = Authority.open(folder, [HOST]).current
    other = Authority.open(tmp_path / "other", [HOST]).current
    key = rootfile.keys(other.path.read_bytes())
    mine.path.write_bytes(key + mine.pem)
    authority = Authority.open(folder, [HOST])
    assert authority.current.fingerprint != mine.fingerprint
    assert any("do not belong together" in text for text in authority.take_notices())


def test_two_certificates_or_a_leaf_are_no_root(folder: Path) -> None:
    authority = Authority.open(folder, [HOST])
    root = authority.current
    authority.leaf_context(HOST)
    root.path.write_bytes((folder / "leaves" / f"0001-{HOST}.pem").read_bytes())
    again = Authority.open(folder, [HOST])
    again.current.path.write_bytes(again.current.path.read_bytes() + root.pem)
    last = Authority.open(folder, [HOST])
    assert last.current.path.name == "root-0003.pem"


def test_root_file_without_header_is_read_from_the_certificate(folder: Path) -> None:
    root = Authority.open(folder, [HOST, "192.0.2.7"]).current
    data = root.path.read_bytes()
    root.path.write_bytes(data[data.index(b"-----BEGIN") :])
    again = Authority.open(folder, [HOST, "192.0.2.7"])
    assert again.current.fingerprint == root.fingerprint
    assert again.current.names == ("192.0.2.7", HOST)


def test_encrypted_key_never_asks_on_the_terminal(folder: Path) -> None:
    root = Authority.open(folder, [HOST]).current
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(root.path.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    root.path.write_bytes(locked + root.pem)
    assert Authority.open(folder, [HOST]).current.sequence == 2


def test_folder_that_is_a_file_is_a_clear_error(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("")
    with pytest.raises(CertificateError, match="DBPROXY_DATA_DIR"):
        Authority.open(folder, [HOST])


def as_nobody(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` so that file permissions bind it: as it is for a user, as nobody for root."""
    prelude = (
        # A dry run first, for its imports: the interpreter itself may lie where only its owner can read.
        "import os, pathlib, resource, sys, tempfile, traceback\n"
        "from dbproxy.net.ca import Authority\n"
        "with tempfile.TemporaryDirectory() as dry:\n"
        "    Authority.open(pathlib.Path(dry) / 'ca', [sys.argv[2]]).prepare()\n"
        "    Authority.open(pathlib.Path(dry) / 'ca', [sys.argv[2]]).prepare()\n"
        "if os.geteuid() == 0:\n"
        "    for p in [pathlib.Path(sys.argv[1]), *pathlib.Path(sys.argv[1]).rglob('*')]:\n"
        "        os.chown(p, 65534, 65534)\n"
        "    for p in pathlib.Path(sys.argv[1]).parents[:2]:\n"
        "        os.chmod(p, 0o755)\n"
        "    os.setegid(65534)\n"
        "    os.seteuid(65534)\n"
        "f, host = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + code, str(folder), HOST], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach; pytest's own temporary folders are closed to them."""
    with tempfile.TemporaryDirectory(prefix="dbproxy-test-") as base:
        yield Path(base) / "data" / "ca"


def test_unreadable_root_is_an_error_and_left_alone(open_folder: Path) -> None:
    root = Authority.open(open_folder, [HOST]).current
    root.path.chmod(0)
    done = as_nobody("Authority.open(f, [host])", open_folder)
    assert "CertificateError" in done.stderr
    assert "cannot be read: Permission denied" in done.stderr
    assert "0600" in done.stderr
    root.path.chmod(0o600)
    assert [path.name for path in open_folder.glob("root*")] == ["root-0001.pem"]


def test_folder_that_lost_its_write_permission_gets_it_back(open_folder: Path) -> None:
    Authority.open(open_folder, [HOST])
    open_folder.chmod(0o500)
    done = as_nobody("Authority.open(f, [host]).leaf_context(host)", open_folder)
    assert done.returncode == 0, done.stderr
    assert mode(open_folder) == 0o700


def refuse(*_: object) -> None:
    raise ConfigError("cannot write: Read-only file system")


def test_read_only_disk_with_a_good_root_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Authority.open(folder, [HOST])
    monkeypatch.setattr(ca, "write_private", refuse)
    authority = Authority.open(folder, [HOST])
    assert served(authority.leaf_context(HOST))
    assert served(authority.own_context(), "localhost")
    assert all("Read-only" in text for text in authority.take_notices())


def test_full_disk_without_a_root_is_a_clear_error(open_folder: Path) -> None:
    """A real one: the system refuses every written byte."""
    open_folder.mkdir(parents=True, mode=0o700)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    done = as_nobody(limit + "Authority.open(f, [host])", open_folder)
    assert "CertificateError: a new interception root cannot be written" in done.stderr
    assert "free some disk space" in done.stderr
    assert [path.name for path in open_folder.iterdir()] == ["lock"]


def test_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Authority.open(folder, [HOST])
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(CertificateError, match="belongs to another user"):
        Authority.open(folder, [HOST])


def test_damaged_leaf_is_made_again(folder: Path) -> None:
    authority = Authority.open(folder, [HOST])
    authority.leaf_context(HOST)
    path = folder / "leaves" / f"0001-{HOST}.pem"
    whole = path.read_bytes()
    for bad in (b"", whole[:200], whole.replace(b"Renew-At: ", b"Renew-At: x"), whole.replace(b"Root: ", b"Root: 0")):
        path.write_bytes(bad)
        assert served(Authority.open(folder, [HOST]).leaf_context(HOST))
        assert len(path.read_bytes()) > 800


def test_leaf_of_one_root_is_never_served_under_another(folder: Path, tmp_path: Path) -> None:
    Authority.open(tmp_path / "other", [HOST]).leaf_context(HOST)
    authority = Authority.open(folder, [HOST])
    foreign = (tmp_path / "other" / "leaves" / f"0001-{HOST}.pem").read_bytes()
    (folder / "leaves").mkdir()
    (folder / "leaves" / f"0001-{HOST}.pem").write_bytes(foreign)
    served(authority.leaf_context(HOST)).verify_directly_issued_by(x509.load_pem_x509_certificate(authority.root_pem))


# Renewal


def test_leaf_renews_itself_in_a_running_process(folder: Path, clock: Clock) -> None:
    authority = Authority.open(folder, [HOST], clock=clock)
    first = authority.leaf_context(HOST)
    clock.now += 19 * DAY
    assert authority.leaf_context(HOST) is first
    clock.now += 1.5 * DAY
    second = authority.leaf_context(HOST)
    assert second is not first
    assert served(second).not_valid_after_utc.timestamp() == clock.now - 3600 + 30 * DAY
    assert authority.leaf_context(HOST) is second


def test_root_renews_itself_and_the_old_one_goes_on(folder: Path, clock: Clock) -> None:
    authority = Authority.open(folder, [HOST], clock=clock)
    old = authority.current
    clock.now = old.not_after - 61 * DAY
    assert not authority.refresh()
    clock.now = old.not_after - 59 * DAY
    assert authority.refresh()
    assert authority.current.sequence == 2
    assert authority.roots == (authority.current, old)
    old_root = x509.load_pem_x509_certificate(old.pem)
    served(authority.leaf_context(HOST, old.fingerprint)).verify_directly_issued_by(old_root)
    assert authority.bundle_path.read_bytes() == authority.current.pem + old.pem
    clock.now = old.not_after - 1
    leaf = served(authority.leaf_context(HOST, old.fingerprint))
    assert leaf.not_valid_after_utc.timestamp() == old.not_after
    last = authority.leaf_context(HOST, old.fingerprint)
    assert authority.leaf_context(HOST, old.fingerprint) is last, "not made anew for each connection at the end"
    clock.now = old.not_after + 1
    assert authority.refresh()
    assert authority.roots == (authority.current,)
    assert authority.bundle_path.read_bytes() == authority.current.pem


def test_expired_root_serves_nobody(folder: Path, clock: Clock) -> None:
    authority = Authority.open(folder, [HOST], clock=clock)
    old = authority.current
    authority.leaf_context(HOST)
    clock.now = old.not_after + 1
    assert not authority.covers(HOST, old.fingerprint)
    with pytest.raises(CertificateError, match="Start the client again"):
        authority.leaf_context(HOST, old.fingerprint)
    authority.refresh()
    assert authority.covers(HOST)


def test_wrong_clock_at_creation_heals(folder: Path, clock: Clock) -> None:
    clock.now += 400 * DAY
    Authority.open(folder, [HOST], clock=clock).leaf_context(HOST)
    clock.now = NOW
    authority = Authority.open(folder, [HOST], clock=clock)
    assert authority.current.not_before < NOW
    assert served(authority.leaf_context(HOST)).not_valid_before_utc.timestamp() < NOW


def test_failed_renewal_keeps_the_old_root(folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority.open(folder, [HOST], clock=clock)
    old = authority.current
    clock.now = old.not_after - DAY

    monkeypatch.setattr(ca, "write_private", refuse)
    assert not authority.refresh()
    assert authority.current is old
    assert any("should be renewed" in text for text in authority.take_notices())
    assert authority.leaf_context(HOST)
    authority.take_notices()
    authority.refresh()
    assert authority.take_notices() == [], "said once"


# Rotation and several processes


def test_rotation_by_another_process_is_taken_up(folder: Path) -> None:
    running = Authority.open(folder, [HOST])
    old = running.current
    before = running.leaf_context(HOST)
    ca.rotate(folder, [HOST])
    assert running.current is old
    assert running.refresh()
    assert running.current.sequence == 2
    assert running.leaf_context(HOST, old.fingerprint) is before
    assert running.leaf_context(HOST) is not before
    assert running.bundle_pem == running.current.pem + old.pem
    assert not running.refresh()


def test_leaf_for_a_root_made_a_moment_ago(folder: Path) -> None:
    running = Authority.open(folder, [HOST])
    new = ca.rotate(folder, [HOST]).current
    leaf = served(running.leaf_context(HOST, new.fingerprint))
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(new.pem))


def test_unknown_fingerprint_means_the_current_root(folder: Path) -> None:
    authority = Authority.open(folder, [HOST])
    assert authority.leaf_context(HOST, "00" * 32) is authority.leaf_context(HOST)
    assert authority.covers(HOST, "00" * 32)


def test_changed_list_makes_a_new_root_and_changing_back_none(folder: Path) -> None:
    first = Authority.open(folder, [HOST])
    wider = Authority.open(folder, [HOST, "example.test"])
    assert wider.current.sequence == 2
    assert wider.covers("example.test")
    assert not wider.covers("example.test", first.current.fingerprint)
    with pytest.raises(CertificateError):
        wider.leaf_context("example.test", first.current.fingerprint)
    assert wider.leaf_context(HOST, first.current.fingerprint)
    assert Authority.open(folder, [HOST]).current.fingerprint == first.current.fingerprint
    assert len(list(folder.glob("root-*"))) == 2


def test_what_a_root_covers(folder: Path) -> None:
    authority = Authority.open(folder, [HOST, "192.0.2.7"])
    assert authority.covers(HOST)
    assert authority.covers("Sub.API.anthropic.com.")
    assert authority.covers("192.0.2.7")
    for other in ("anthropic.com", "xapi.anthropic.com", "192.0.2.8", "1.192.0.2.7", "::1", "", "a b"):
        assert not authority.covers(other), other


def test_prune_deletes_only_what_nobody_needs(folder: Path, clock: Clock) -> None:
    authority = Authority.open(folder, [HOST], clock=clock)
    first = authority.current
    authority.leaf_context(HOST)
    second = authority.rotate()
    third = authority.rotate()
    clock.now += DAY - 10
    assert authority.prune([]) == ()
    clock.now += 20
    assert authority.prune([second.fingerprint]) == (first,)
    assert sorted(path.name for path in folder.glob("root-*")) == ["root-0002.pem", "root-0003.pem"]
    assert not list((folder / "leaves").glob("0001-*"))
    assert authority.bundle_path.read_bytes() == third.pem + second.pem
    assert authority.covers(HOST, first.fingerprint), "falls back to the current root"
    assert authority.prune([]) == (second,)
    assert authority.prune([]) == ()


def test_number_of_a_moved_aside_root_is_not_used_again(folder: Path) -> None:
    root = Authority.open(folder, [HOST]).current
    root.path.write_bytes(b"")
    assert Authority.open(folder, [HOST]).current.sequence == 2
    (folder / "root-0002.pem").unlink()
    assert Authority.open(folder, [HOST]).current.sequence == 2


def test_folder_deleted_under_a_running_process_heals(folder: Path) -> None:
    import shutil

    authority = Authority.open(folder, [HOST])
    old = authority.current
    context = authority.leaf_context(HOST)
    shutil.rmtree(folder)
    assert authority.refresh()
    assert authority.current.fingerprint != old.fingerprint
    assert authority.leaf_context(HOST, old.fingerprint) is context
    assert authority.bundle_path.exists()


def _open_in_process(folder: str, start: object, results: object) -> None:
    start.wait(30)  # type: ignore[attr-defined]
    authority = Authority.open(Path(folder), [HOST])
    results.put((authority.current.fingerprint, authority.leaf_context(HOST) is not None))  # type: ignore[attr-defined]


def test_processes_that_start_at_once_share_one_root(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    workers = [context.Process(target=_open_in_process, args=(str(folder), start, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    found = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(30)
        worker.close()
    results.close()
    results.join_thread()
    assert len(found) == 1
    assert [path.name for path in folder.glob("root-*")] == ["root-0001.pem"]


def test_held_lock_is_an_error_after_a_while(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfile, "LOCK_SECONDS", 0.1)
    authority = Authority.open(folder, [HOST])
    with rootfile.locked(folder), pytest.raises(CertificateError, match="another process has held"):
        authority.rotate()
    assert authority.rotate().sequence == 2


def test_threads_share_one_leaf(folder: Path) -> None:
    authority = Authority.open(folder, [HOST])
    found: list[ssl.SSLContext] = []
    threads = [threading.Thread(target=lambda: found.append(authority.leaf_context(HOST))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_cache_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca, "_CACHED_LEAVES", 3)
    authority = Authority.open(folder, [HOST])
    for number in range(6):
        authority.leaf_context(f"n{number}.{HOST}")
    assert len(authority._contexts) == len(authority._leaves) == 3
    assert list((folder / "leaves").glob("*")) == [] if (folder / "leaves").exists() else True


# Our own port


def test_own_certificate_is_separate(folder: Path) -> None:
    authority = Authority.open(folder, [HOST])
    own = served(authority.own_context(), "localhost")
    assert own.issuer == own.subject
    assert own.public_key() != x509.load_pem_x509_certificate(authority.root_pem).public_key()
    alternatives = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in alternatives.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert served(Authority.open(folder, [HOST]).own_context()) == own
    assert authority.own_context() is authority.own_context()


def test_own_certificate_renews_itself(folder: Path, clock: Clock) -> None:
    authority = Authority.open(folder, [HOST], clock=clock)
    own = authority.own_context()
    clock.now += 336 * DAY
    assert authority.own_context() is not own


def test_inspect_changes_nothing(folder: Path) -> None:
    assert rootfile.inspect(folder) == ([], [])
    assert not folder.exists()
    root = Authority.open(folder, [HOST]).current
    (folder / "root-0002.pem").write_bytes(b"nonsense")
    (folder / "root-0001.pem").chmod(0o644)
    roots, broken = rootfile.inspect(folder)
    assert roots == [root]
    assert [(path.name, reason) for path, reason in broken] == [("root-0002.pem", "the file is incomplete")]
    assert mode(folder / "root-0001.pem") == 0o644
