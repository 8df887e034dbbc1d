"""First bytes and ClientHellos: real ones from this Python's OpenSSL, made ones for every shape, every split."""

from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.errors import ProtocolViolation
from dbproxy.wire.sniff import H2_PREFACE, MAX_HELLO, ClientHello, Sniff, client_hello, sniff


def openssl_hello(name: str | None = "api.anthropic.com", alpn: tuple[str, ...] = (), minimum: bool = False) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if minimum:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!H", kind) + vector(2, body)


def sni(name: bytes) -> bytes:
    return extension(0, vector(2, b"\x00" + vector(2, name)))


def alpn_extension(*names: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, name) for name in names)))


def versions(*numbers: int) -> bytes:
    return extension(43, vector(1, struct.pack(f"!{len(numbers)}H", *numbers)))


def hello_message(
    extensions: bytes | None, ciphers: tuple[int, ...] = (0x1301, 0x1302), session: bytes = b"s" * 32
) -> bytes:
    body = b"\x03\x03" + b"r" * 32 + vector(1, session)
    body += vector(2, struct.pack(f"!{len(ciphers)}H", *ciphers)) + vector(1, b"\x00")
    if extensions is not None:
        body += vector(2, extensions)
    return b"\x01" + vector(3, body)


def records(message: bytes, *sizes: int) -> bytes:
    out, at = b"", 0
    for size in (*sizes, len(message)):
        piece = message[at : at + size]
        at += len(piece)
        if piece:
            out += b"\x16\x03\x01" + vector(2, piece)
    return out


def post_quantum_hello() -> bytes:
    """The size of the current native client's: more than one segment (client facts 1.2)."""
    shares = extension(51, vector(2, b"\x11\xec" + vector(2, b"k" * 1312) + b"\x00\x1d" + vector(2, b"x" * 32)))
    return records(hello_message(sni(b"api.anthropic.com") + alpn_extension(b"http/1.1") + shares + versions(0x304)))


@pytest.mark.parametrize("name", ["api.anthropic.com", None])
@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h2", "http/1.1")])
@pytest.mark.parametrize("minimum", [False, True])
def test_real_hellos(name: str | None, alpn: tuple[str, ...], minimum: bool) -> None:
    data = openssl_hello(name, alpn, minimum)
    hello = client_hello(data)
    assert hello is not None
    assert (hello.server_name, hello.alpn, hello.record_length) == (name, alpn, len(data))
    assert sniff(data) is Sniff.TLS


@pytest.mark.parametrize("data", [openssl_hello(alpn=("http/1.1",)), post_quantum_hello()], ids=["openssl", "large"])
def test_every_prefix_needs_more_and_what_follows_is_left_alone(data: bytes) -> None:
    whole = client_hello(data)
    assert whole is not None
    assert all(client_hello(data[:end]) is None for end in range(len(data)))
    assert client_hello(data + b"\x17\x03\x03garbage") == whole


def test_the_large_hello_of_the_native_client_is_one() -> None:
    data = post_quantum_hello()
    assert len(data) > 1460
    hello = client_hello(data)
    assert hello is not None
    assert (hello.server_name, hello.alpn) == ("api.anthropic.com", ("http/1.1",))


@given(st.lists(st.integers(1, 400), max_size=8), st.integers(0, 40))
def test_a_hello_may_span_records(sizes: list[int], missing: int) -> None:
    message = hello_message(sni(b"API.anthropic.com.") + alpn_extension(b"h2", b"http/1.1") + versions(0x304, 0x303))
    data = records(message, *sizes)
    hello = client_hello(data)
    assert hello is not None
    assert hello.server_name == "api.anthropic.com"
    assert hello.alpn == ("h2", "http/1.1")
    assert hello.record_length == len(data)
    assert hello.fingerprint == client_hello(records(message)).fingerprint
    if missing:
        assert client_hello(data[:-missing]) is None


def test_a_hello_without_any_extension() -> None:
    hello = client_hello(records(hello_message(None)))
    assert hello is not None
    assert (hello.server_name, hello.alpn) == (None, ())


def test_an_empty_server_name_extension_is_no_name() -> None:
    hello = client_hello(records(hello_message(extension(0, b""))))
    assert hello is not None
    assert hello.server_name is None


def fingerprint(extensions: bytes, ciphers: tuple[int, ...] = (0x1301, 0x1302)) -> str:
    hello = client_hello(records(hello_message(extensions, ciphers)))
    assert hello is not None
    return hello.fingerprint


def test_fingerprints_tell_kinds_and_not_connections() -> None:
    first = fingerprint(sni(b"a.example") + extension(11, b"\x01\x00") + versions(0x304, 0x303))
    assert len(first) == 16
    formats, both = extension(11, b"\x01\x00"), versions(0x304, 0x303)
    same = [
        fingerprint(sni(b"b.example") + formats + both),
        fingerprint(formats + both),  # no name, as for an address
        fingerprint(both + formats + sni(b"a.example")),  # shuffled
        fingerprint(sni(b"a.example") + formats + both + extension(21, b"\x00" * 99)),
        fingerprint(extension(0x1A1A, b"") + formats + versions(0x2A2A, 0x304, 0x303), (0xFAFA, 0x1301, 0x1302)),
        fingerprint(formats + both + extension(42, b"") + extension(41, b"ticket")),
    ]
    assert set(same) == {first}
    others = [
        fingerprint(extension(11, b"\x01\x00") + versions(0x304)),
        fingerprint(extension(11, b"\x01\x00") + versions(0x304, 0x303), (0x1302, 0x1301)),
        fingerprint(extension(11, b"\x01\x00") + versions(0x304, 0x303) + alpn_extension(b"http/1.1")),
        fingerprint(versions(0x304, 0x303)),
    ]
    assert len({first, *others}) == 5


def test_fingerprints_are_stable_for_one_library() -> None:
    found = {client_hello(openssl_hello(name)).fingerprint for name in ("a.example", "b.example", None)}
    assert len(found) == 1


GOOD = hello_message(sni(b"a.example") + versions(0x304))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28",  # an alert
        b"\x16\x02",
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x40\x01",  # longer than a record may be
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a ServerHello
        b"\x16\x03\x01\x00\x01\x02",  # the same, seen from its first byte
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",  # a hello of 16 MB
        records(GOOD, 20)[:25] + b"\x17\x03\x03\x00\x01x",  # application data in the middle
        records(b"\x01" + vector(3, GOOD[4:] + b"x")),  # bytes behind the extensions
        records(b"\x01" + vector(3, GOOD[4:-1])),  # an extension that ends too early
        records(b"\x01" + vector(3, b"\x03\x03")),
        records(b"\x01\x00\x00\x00"),
        records(hello_message(sni(b"a") + sni(b"b"))),
        records(hello_message(sni(b"a\x00b"))),
        records(hello_message(sni("ä.example".encode()))),
        records(hello_message(sni(b""))),
        records(hello_message(extension(0, b"\x00\x09\x00\x00\x01a"))),
        records(hello_message(extension(0, vector(2, b"\x00" + vector(2, b"a")) + b"x"))),
        records(hello_message(alpn_extension(b""))),
        records(hello_message(extension(16, b"\x00\x05\x02h2"))),
        records(hello_message(extension(43, b"\x03\x03\x04\x03"))),
    ],
)
def test_garbage_and_lies_are_violations(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        client_hello(data)


def test_endless_small_records_are_cut_off() -> None:
    head = b"\x01" + (60000).to_bytes(3, "big")
    with pytest.raises(ProtocolViolation, match="too large"):
        client_hello(records(head) + b"\x16\x03\x01\x00\x01x" * (MAX_HELLO // 6 + 1))


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=120), st.binary(max_size=120).map(lambda b: b"\x16\x03\x01\x00\x50" + b)))
def test_any_bytes_give_a_hello_none_or_a_violation(data: bytes) -> None:
    try:
        hello = client_hello(data)
    except ProtocolViolation:
        return
    assert hello is None or isinstance(hello, ClientHello)


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) + 4), st.integers(0, 255))
def test_one_wrong_byte_never_escapes_as_another_error(at: int, value: int) -> None:
    data = bytearray(records(GOOD))
    data[at] = value
    try:
        client_hello(bytes(data))
    except ProtocolViolation:
        return


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (b"", Sniff.NEED_MORE),
        (b"\x16", Sniff.NEED_MORE),
        (b"\x16\x03", Sniff.TLS),
        (b"\x16\x01", Sniff.OTHER),
        (H2_PREFACE, Sniff.H2_PREFACE),
        (H2_PREFACE + b"\x00", Sniff.H2_PREFACE),
        (H2_PREFACE[:-1], Sniff.NEED_MORE),
        (b"PRI * HTTP/2.1", Sniff.HTTP),
        (b"P", Sniff.NEED_MORE),
        (b"PR", Sniff.NEED_MORE),
        (b"PO", Sniff.NEED_MORE),
        (b"POST ", Sniff.HTTP),
        (b"PROPFIND /", Sniff.HTTP),
        (b"get / HTTP/1.1", Sniff.HTTP),
        (b"\r\nGET ", Sniff.HTTP),
        (b"\r\n\r\n\r\nGET ", Sniff.OTHER),
        (b" GET", Sniff.OTHER),
        (b"SSH-2.0-OpenSSH_9.6", Sniff.NEED_MORE),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Sniff.OTHER),
        (b"\x00", Sniff.OTHER),
        (b"\x80\x2e\x01", Sniff.OTHER),  # SSL 2
        (b"\x05\x01\x00", Sniff.OTHER),  # SOCKS 5
        (b"A" * 32 + b" ", Sniff.HTTP),
        (b"A" * 33, Sniff.OTHER),
    ],
)
def test_first_bytes(first: bytes, expected: Sniff) -> None:
    assert sniff(first) is expected


@given(
    st.one_of(
        st.binary(max_size=60), st.sampled_from([b"POST /v1/messages HTTP/1.1\r\n", H2_PREFACE, b"SSH-2.0-x\r\n"])
    )
)
def test_more_bytes_never_change_an_answer(data: bytes) -> None:
    answers = [sniff(data[:end]) for end in range(len(data) + 1)]
    decided = [answer for answer in answers if answer is not Sniff.NEED_MORE]
    assert len(set(decided)) <= 1
    assert answers[: len(answers) - len(decided)] == [Sniff.NEED_MORE] * (len(answers) - len(decided))
    assert len(data) <= 40 or decided
