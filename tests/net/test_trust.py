"""Upstream trust: where roots are found, what a broken file does, and that nothing is ever believed unverified."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import pytest

from dbproxy.errors import ConfigError
from dbproxy.net import mint, tls, trust
from dbproxy.net.ca import Authority

if TYPE_CHECKING:
    from pathlib import Path

HOST = "upstream.example"


class Made:
    """A private authority and a server certificate under it."""

    def __init__(self, *, name: str = HOST, begins: float = -60, ends: float = 3600) -> None:
        now = time.time()
        root = mint.root([name], not_before=now - 1e6, not_after=now + 1e6)
        leaf = mint.leaf(root.certificate, root.key, name, not_before=now + begins, not_after=now + ends)
        self.root = root.certificate
        self.server = tls.server_context(leaf.key + leaf.certificate)


@pytest.fixture(autouse=True)
def _fresh_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_built", OrderedDict())


@pytest.fixture(params=["linux", "darwin"])
def platform(request: pytest.FixtureRequest) -> str:
    """Both ways to a context: our own search, and truststore, which works everywhere."""
    if request.param == "darwin":
        pytest.importorskip("truststore")
    return str(request.param)


def connect(client_context: ssl.SSLContext, server_context: ssl.SSLContext, host: str = HOST) -> ssl.SSLObject:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    pending = [client, server]
    while pending:
        for side in list(pending):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            pending.remove(side)
    return client


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_extra_file_is_trusted(tmp_path: Path, platform: str) -> None:
    made = Made()
    extra = write(tmp_path / "extra.pem", made.root)
    context = trust.upstream_context([extra], platform=platform)
    assert connect(context, made.server).version() == "TLSv1.3"


def test_user_file_is_trusted_also_beside_garbage(tmp_path: Path) -> None:
    made = Made()
    bad = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    user = write(tmp_path / "user.pem", b"# comment\r\n" + bad + made.root.replace(b"\n", b"\r\n") + b"trailing")
    said: list[str] = []
    context = trust.upstream_context(user_files=[user], notice=said.append)
    connect(context, made.server)
    assert said == [f"1 of 2 certificates in {user} are not used: they are unreadable"]


def test_folder_of_user_certificates(tmp_path: Path) -> None:
    made = Made()
    write(tmp_path / "a.pem", made.root)
    (tmp_path / "sub").mkdir()
    connect(trust.upstream_context(user_files=[tmp_path]), made.server)


@pytest.mark.parametrize(
    ("made", "host", "reason"),
    [
        (Made(), HOST, "authority that is not trusted"),
        (Made(begins=-3600, ends=-60), HOST, "has expired"),
        (Made(begins=1800), HOST, "is not valid yet"),
        (Made(), "wrong.example", "for another host name"),
        (Made(), "192.0.2.1", "for another address"),
    ],
    ids=["unknown", "expired", "future", "name", "address"],
)
def test_bad_upstream_is_refused_with_a_reason(
    tmp_path: Path, platform: str, made: Made, host: str, reason: str
) -> None:
    extra = [] if "not trusted" in reason else [write(tmp_path / "extra.pem", made.root)]
    context = trust.upstream_context(extra, platform=platform)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        connect(context, made.server, host)
    text, hint = trust.describe_verify_error(caught.value, host)
    assert text.startswith(f"the certificate of {host} ")
    assert reason in text
    assert hint


def test_intermediate_missing_and_self_signed_are_told_apart() -> None:
    now = time.time()
    own = mint.own([HOST], not_before=now - 60, not_after=now + 3600)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        connect(trust.upstream_context(), tls.server_context(own.key + own.certificate))
    assert "self-signed" in trust.describe_verify_error(caught.value, HOST)[0]


def test_old_tls_is_not_spoken(tmp_path: Path, platform: str) -> None:
    context = trust.upstream_context(platform=platform)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_context_is_built_once(tmp_path: Path) -> None:
    extra = write(tmp_path / "extra.pem", Made().root)
    said: list[str] = []
    missing = tmp_path / "missing.pem"
    first = trust.upstream_context([extra], user_files=[missing], notice=said.append)
    assert trust.upstream_context([extra], user_files=[missing], notice=said.append) is first
    assert said == [f"the certificates in {missing} are not used: No such file or directory"]
    assert trust.upstream_context([extra]) is not first


@pytest.mark.parametrize(
    "content", [None, b"", b"not pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_broken_extra_file_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "extra.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"DBPROXY_UPSTREAM_CA: .*extra\.pem"):
        trust.upstream_context([path])
    path.write_bytes(Made().root)
    trust.upstream_context([path])


@pytest.mark.parametrize("content", [b"", b"not pem"])
def test_useless_user_file_is_said(tmp_path: Path, content: bytes) -> None:
    said: list[str] = []
    path = write(tmp_path / "user.pem", content)
    trust.upstream_context(user_files=[path], notice=said.append)
    assert said == [f"{path} holds no certificates"]


def test_our_own_root_is_not_believed_upstream(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "ca", [HOST])
    made = Made()
    bundle = write(tmp_path / "bundle.pem", authority.bundle_pem + made.root)
    said: list[str] = []
    context = trust.upstream_context(user_files=[bundle], own_pem=authority.bundle_pem, notice=said.append)
    connect(context, made.server)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(context, authority.leaf_context(HOST))
    only_ours = trust.upstream_context(
        user_files=[authority.bundle_path], own_pem=authority.bundle_pem, notice=said.append
    )
    assert only_ours is not context
    assert said == []


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.pem"
    with path.open("wb") as file:
        file.truncate(17 * 1024 * 1024)
    with pytest.raises(ConfigError, match="larger than any bundle"):
        trust.upstream_context([path])


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    said: list[str] = []
    trust.upstream_context(user_files=[pipe], notice=said.append)
    assert said == [f"the certificates in {pipe} are not used: it is neither a file nor a folder"]


def test_number_of_contexts_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_MAX_CONTEXTS", 2)
    first = trust.upstream_context()
    for number in range(3):
        assert trust.upstream_context() is first
        trust.upstream_context(user_files=[tmp_path / str(number)])
    assert len(trust._built) == 2


# The system's roots


def test_first_bundle_with_certificates_is_taken(tmp_path: Path) -> None:
    first, second = Made().root, Made().root
    empty = write(tmp_path / "empty.crt", b"")
    names = [str(tmp_path / "missing"), str(empty)]
    names += [str(write(tmp_path / "one.crt", first)), str(write(tmp_path / "two.crt", second))]
    assert trust.system_bundle(names, []) == first


def test_folder_is_taken_where_there_is_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_default_bundle(monkeypatch)
    first, second = sorted([Made().root, Made().root])
    write(tmp_path / "1.0", first)
    write(tmp_path / "2.pem", second)
    write(tmp_path / "3.0", first)
    assert trust.system_bundle([], [str(tmp_path)]) == first + second


def test_certifi_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    _no_default_bundle(monkeypatch)
    assert trust.system_bundle([], []).count(b"BEGIN CERTIFICATE") > 50


def test_bundle_is_what_openssl_reads(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(str(write(tmp_path / "bundle.pem", trust.system_bundle())))
    assert len(context.get_ca_certs()) > 50


def test_environment_does_not_decide(tmp_path: Path) -> None:
    """SSL_CERT_FILE of the proxy's own process may name a bundle of ours; only the settings say what is extra."""
    code = (
        "from dbproxy.net import trust\n"
        "import hashlib\n"
        "print(hashlib.sha256(trust.system_bundle()).hexdigest(), len(trust.upstream_context().get_ca_certs()))\n"
    )
    ours = write(tmp_path / "ours.pem", Made().root)
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for env in ({}, {"SSL_CERT_FILE": str(ours), "SSL_CERT_DIR": str(tmp_path)})
    ]
    assert runs[0] == runs[1]


def _no_default_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    places = ssl.get_default_verify_paths()._replace(openssl_cafile="/nonexistent", openssl_capath="/nonexistent")
    monkeypatch.setattr(trust.ssl, "get_default_verify_paths", lambda: places)


# Reasons


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TimeoutError(), "h did not finish the TLS handshake in time"),
        (ssl.SSLEOFError(8, "EOF occurred"), "h closed the connection during the TLS handshake"),
        (ConnectionResetError(104, "Connection reset by peer"), "TLS with h failed: [Errno 104] Connection reset"),
        (ssl.SSLCertVerificationError("macOS says: not trusted."), "is not acceptable: "),
    ],
)
def test_reasons(error: BaseException, text: str) -> None:
    assert text in trust.describe_verify_error(error, "h")[0]


def test_plain_http_upstream_is_named() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trust.upstream_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
    incoming.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ssl.SSLError) as caught:
        client.do_handshake()
    text, hint = trust.describe_verify_error(caught.value, HOST)
    assert text == f"{HOST} does not speak TLS on that port"
    assert "scheme and port" in hint
