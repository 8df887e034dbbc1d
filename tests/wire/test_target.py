"""Hosts, authorities and request targets: spelling, rejection, and the properties that comparisons rely on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.errors import ProtocolViolation
from dbproxy.wire.target import Authority, Form, Target, normalise_host, parse_authority, parse_target

_LABEL = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,20}[A-Za-z0-9_])?", fullmatch=True)
_NAMES = st.lists(_LABEL, min_size=1, max_size=5).map(".".join).filter(lambda name: not name.replace(".", "").isdigit())
_V4 = st.ip_addresses(v=4).map(str)
_V6 = st.ip_addresses(v=6).map(str)
_PORTS = st.integers(0, 65535)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("api.anthropic.com", "api.anthropic.com"),
        ("API.Anthropic.COM", "api.anthropic.com"),
        ("api.anthropic.com.", "api.anthropic.com"),
        ("localhost", "localhost"),
        ("my_service.internal", "my_service.internal"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("[2001:DB8::A]", "2001:db8::a"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("[::FFFF:7f00:1]", "127.0.0.1"),
        ("[fe80::1%25eth0]", "fe80::1%eth0"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("fe80::1%252525eth0", "fe80::1%eth0"),
        ("127.1", "127.1"),  # the resolver's business, see the module's first lines
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_hosts_get_one_spelling(text: str, expected: str) -> None:
    assert normalise_host(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "api.anthropic.com..", ".a", "-a.example", "a-.example", "a b", "a\x00b", "a/b", "a@b",
     "bücher.example",
     "a" * 64, ".".join(["a" * 60] * 5), "[::1", "::1]", "[]", "[127.0.0.1]", "1.2.3.256", "01.2.3.4", "::1::",
     "fe80::1%", "fe80::1%a/b",
     "a\u0131.example", "a\uff0ecom", "*.example", "a:b", "K\u212aelvin"],
)  # fmt: skip
def test_hosts_that_nobody_should_resolve_are_errors(text: str) -> None:
    with pytest.raises(ValueError):
        normalise_host(text)


@given(
    st.one_of(st.text(max_size=80), _NAMES, _V4, _V6, _V6.map(lambda a: f"[{a}]"), st.from_regex(r"fe80::1%[0-9a-z%]*"))
)
def test_normalise_host_is_idempotent_and_never_anything_but_a_value_error(text: str) -> None:
    try:
        once = normalise_host(text)
    except ValueError:
        return
    assert normalise_host(once) == once
    assert once.isascii()
    assert not set(once) & set("[]/@?# \x00")
    assert once == once.lower() or "%" in once


@given(_NAMES, st.data())
def test_case_and_one_trailing_dot_make_no_difference(name: str, data: st.DataObject) -> None:
    shouted = "".join(c.upper() if data.draw(st.booleans()) else c.lower() for c in name)
    assert normalise_host(shouted) == normalise_host(name + ".") == normalise_host(name)


@given(st.ip_addresses(v=4))
def test_ipv4_mapped_addresses_are_the_ipv4_address(address: object) -> None:
    assert normalise_host(f"[::ffff:{address}]") == str(address)


@given(st.one_of(_NAMES, _V4, _V6), _PORTS)
def test_authorities_print_and_parse_to_themselves(host: str, port: int) -> None:
    authority = Authority(normalise_host(host), port)
    assert parse_authority(str(authority).encode(), None) == authority
    assert parse_target(str(authority).encode()) == Target(Form.AUTHORITY, "", authority.host, port, b"")


@pytest.mark.parametrize(
    ("data", "default", "expected"),
    [
        (b"api.anthropic.com:443", None, Authority("api.anthropic.com", 443)),
        (b"API.anthropic.com.:443", None, Authority("api.anthropic.com", 443)),
        (b"api.anthropic.com", 443, Authority("api.anthropic.com", 443)),
        (b"api.anthropic.com:", 443, Authority("api.anthropic.com", 443)),
        (b"[::1]:8080", None, Authority("::1", 8080)),
        (b"[::1]", 80, Authority("::1", 80)),
        (b"[::ffff:127.0.0.1]:1", None, Authority("127.0.0.1", 1)),
        (b"a:0", None, Authority("a", 0)),
        (b"a:65535", None, Authority("a", 65535)),
        (b"a:00443", None, Authority("a", 443)),
    ],
)
def test_authorities(data: bytes, default: int | None, expected: Authority) -> None:
    assert parse_authority(data, default) == expected


@pytest.mark.parametrize(
    "data",
    [b"", b":443", b"a", b"a:", b"a:65536", b"a:-1", b"a:+1", b"a:1_0", b"a:4 43", b"a:99999999999999999999",
     b"u:p@a:443", b"@a:443",
     b"::1:443", b"[::1]443", b"[::1]:", b"[::1", b"a:1:2", b"a\x00:443", b"a\r\n:443", "ä:443".encode(), b"a:\xb2",
     b"a/b:443", b"a:443/"],
)  # fmt: skip
def test_malformed_authorities_are_400(data: bytes) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        parse_authority(data, None)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"/v1/messages?beta=true", Target(Form.ORIGIN, "", "", 0, b"/v1/messages?beta=true")),
        (b"//double//", Target(Form.ORIGIN, "", "", 0, b"//double//")),
        (b"*", Target(Form.ASTERISK, "", "", 0, b"*")),
        (b"http://127.0.0.1:8080/v1/messages", Target(Form.ABSOLUTE, "http", "127.0.0.1", 8080, b"/v1/messages")),
        (b"https://API.anthropic.com/api/oauth/profile", Target(Form.ABSOLUTE, "https", "api.anthropic.com", 443,
        b"/api/oauth/profile")),
        (b"HTTP://a", Target(Form.ABSOLUTE, "http", "a", 80, b"/")),
        (b"http://a:/", Target(Form.ABSOLUTE, "http", "a", 80, b"/")),
        (b"http://a?q=http://b/", Target(Form.ABSOLUTE, "http", "a", 80, b"/?q=http://b/")),
        (b"http://[::1]:1/x", Target(Form.ABSOLUTE, "http", "::1", 1, b"/x")),
        (b"/redirect?to=http://u@b/", Target(Form.ORIGIN, "", "", 0, b"/redirect?to=http://u@b/")),
        (b"/a%20b/%ff", Target(Form.ORIGIN, "", "", 0, b"/a%20b/%ff")),
        (b"a.example:443", Target(Form.AUTHORITY, "", "a.example", 443, b"")),
    ],
)  # fmt: skip
def test_targets(data: bytes, expected: Target) -> None:
    assert parse_target(data) == expected


def test_a_target_tells_its_path_without_the_query() -> None:
    assert parse_target(b"/v1/messages?beta=true").path == "/v1/messages"
    assert parse_target(b"https://a").path == "/"


@pytest.mark.parametrize(
    "data",
    [b"", b" /", b"/a b", b"/a\x00", b"/\xc3\xa4", b"/a\x7f", b"/a\tb", b"/a\r\nHost: b", b"ftp://a/", b"http://",
     b"http:///x", b"http://u@a/",
     b"http://u:p@a/", b"http://a:b/", b"http://a:65536/", b"**", b"a", b"a.example", b"http:/a", b"http://a\\b/",
     b"?x", b"#x", b"://a/"],
)  # fmt: skip
def test_malformed_targets_are_400(data: bytes) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        parse_target(data)
    assert caught.value.status == 400


@given(st.one_of(st.binary(max_size=60), st.text(alphabet="htps:/[]@%.*?#a0A1-", max_size=30).map(str.encode)))
def test_no_target_does_worse_than_a_violation(data: bytes) -> None:
    try:
        target = parse_target(data)
    except ProtocolViolation:
        return
    assert target.path_and_query == b"" or target.path_and_query[:1] in b"/*"
    if target.form in (Form.ABSOLUTE, Form.AUTHORITY):
        assert parse_authority(str(Authority(target.host, target.port)).encode(), None).host == target.host
    if target.form is Form.ABSOLUTE:
        assert data.endswith(target.path_and_query.removeprefix(b"/"))


def test_user_information_is_named_as_such() -> None:
    with pytest.raises(ProtocolViolation, match="Proxy-Authorization"):
        parse_authority(b"user:secret@a:443", None)


def test_a_hostile_target_is_not_echoed_whole() -> None:
    with pytest.raises(ProtocolViolation) as caught:
        parse_target(b"a" * 60000 + b":443")
    assert len(str(caught.value)) < 300
