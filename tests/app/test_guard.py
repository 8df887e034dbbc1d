"""The rules about who may talk to our own port, as a table."""

from __future__ import annotations

import pytest

from dbproxy.app import guard
from dbproxy.exchange import Fields


def fields(**values):
    return Fields.of([(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()])


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:1", "localhost.", "[::1]:8080", "127.8.8.8", "x.localhost"],
)
def test_names_of_this_machine(host):
    assert guard.host_is_ours(fields(host=host), ())


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "evil.example:8080",
        "169.254.169.254",
        "10.0.0.1",
        "127.0.0.1:99999",
        "127.0.0.1:8080:8080",
        "[::1",
        "[::2]",
        "0.0.0.0",
        "2130706433",
        "localhost evil",
        "loc\u00e4lhost",
    ],
)
def test_names_of_other_machines(host):
    raw = Fields.of([(b"host", host.encode("latin-1"))])
    assert not guard.host_is_ours(raw, ())


def test_the_address_that_was_connected_to_is_a_name_of_ours():
    assert guard.host_is_ours(fields(host="192.168.1.4:8080"), ("192.168.1.4",))
    assert not guard.host_is_ours(fields(), ("192.168.1.4",))


@pytest.mark.parametrize("site", ["cross-site", "Cross-Site", "none, cross-site"])
def test_a_browser_says_that_it_is_another_site(site):
    assert guard.is_cross_site(fields(sec_fetch_site=site), ())


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none", ""])
def test_a_browser_says_that_it_is_this_site(site):
    assert not guard.is_cross_site(fields(sec_fetch_site=site), ())


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "file://",
        "https://evil.example",
        "http://127.0.0.1.evil.example",
        "http://localhost@evil.example",
        "chrome-extension://abcdefgh",
        "http://",
        "http://[::1",
        "http://localhost\tevil",
    ],
)
def test_foreign_origins(origin):
    assert guard.is_cross_site(fields(origin=origin), ())


def test_a_second_origin_is_looked_at_too():
    raw = Fields.of([(b"origin", b"http://127.0.0.1:8080"), (b"origin", b"https://evil.example")])
    assert guard.is_cross_site(raw, ())


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8080", "https://localhost", "http://[::1]:3000"])
def test_origins_of_this_machine(origin):
    assert not guard.is_cross_site(fields(origin=origin), ())


@pytest.mark.parametrize(
    ("origin", "foreign"),
    [
        ("http://127.0.0.1:8080", False),
        ("https://127.0.0.1:8080", False),
        ("HTTP://127.0.0.1:8080", False),
        ("http://127.0.0.1:3000", True),  # another program's page; cookies would not tell them apart
        ("http://localhost:8080", True),
        ("http://127.0.0.1", True),
        ("null", True),
    ],
)
def test_our_own_endpoints_take_only_their_own_origin(origin, foreign):
    assert guard.is_foreign_origin(fields(host="127.0.0.1:8080", origin=origin)) is foreign


def test_no_origin_is_no_page():
    assert not guard.is_foreign_origin(fields(host="127.0.0.1:8080"))
    assert not guard.is_cross_site(fields(host="127.0.0.1:8080"), ())


@pytest.mark.parametrize("value", ["Bearer tok", "bearer tok", "BEARER  tok", "Bearer tok "])
def test_the_token(value):
    assert guard.has_token(fields(authorization=value), "tok")


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Bearer tokk", "Bearer to", "Basic tok", "tok", "Bearer TOK"]
)
def test_what_is_not_the_token(value):
    assert not guard.has_token(fields(authorization=value), "tok")
    assert not guard.has_token(fields(), "tok")


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", ""])
def test_an_empty_token_opens_nothing(value):
    assert not guard.has_token(fields(authorization=value), "")


NOW = 1_800_000_000.0


def cookie_of(token="a token", now=NOW):
    return guard.make_cookie(token, now).decode().partition(";")[0]


def test_a_cookie_lets_in_for_a_month_and_no_longer():
    sent = fields(cookie=f"other=1; {cookie_of()}; more=2")
    assert guard.has_cookie(sent, "a token", NOW)
    assert guard.has_cookie(sent, "a token", NOW + guard.COOKIE_LIFE - 1)
    assert not guard.has_cookie(sent, "a token", NOW + guard.COOKIE_LIFE + 1)
    assert not guard.has_cookie(sent, "a token", NOW - 200_000)  # the clock was set back far
    assert not guard.has_cookie(sent, "another token", NOW)
    assert not guard.has_cookie(sent, "", NOW)


def test_a_cookie_holds_no_token_and_says_what_a_browser_may_do_with_it():
    made = guard.make_cookie("a token", NOW)
    assert b"a token" not in made
    assert made.endswith(b"; Path=/; HttpOnly; SameSite=Strict")
    assert guard.cookie_name("a token") != guard.cookie_name("another token")


def test_a_cookie_cannot_be_made_younger():
    name, _, value = cookie_of().partition("=")
    made, _, signature = value.partition(".")
    later = f"{int(made, 16) + 1000:x}"
    wrong = [f"{later}.{signature}", signature, f"{made}.", f"{made}", "", ".", f"0x{made}.{signature}", "\xff.\xff"]
    for text in wrong:
        raw = Fields.of([(b"cookie", f"{name}={text}".encode("latin-1"))])
        assert not guard.has_cookie(raw, "a token", NOW), text
    assert not guard.has_cookie(fields(cookie=f"x{name}={value}"), "a token", NOW)


@pytest.mark.parametrize(
    ("site", "lets_in"), [("same-origin", True), ("none", True), ("same-site", False), ("x", False)]
)
def test_a_cookie_counts_only_for_our_own_page(site, lets_in):
    assert guard.has_cookie(fields(cookie=cookie_of(), sec_fetch_site=site), "a token", NOW) is lets_in
