"""Addresses that are not the public internet, our own listeners, NO_PROXY lists."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.net.address import (
    NoProxy,
    is_own_listener,
    is_private,
    no_proxy_matches,
    parse_ip,
    without_entries_covering,
)

PRIVATE = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.8.8.8
    168.63.129.16 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.192 192.168.0.1 198.18.0.1 224.0.0.1 239.1.1.1
    240.0.0.1 255.255.255.255 192.0.2.1
    :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.1.2.3 ::ffff:169.254.169.254 [::ffff:192.168.1.1]
    64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::808:808 2002:7f00:1:: 2002:c0a8:101::1 2002:a9fe:a9fe::1
    2001:0:808:808:0:0:f5ff:fffe 2001:0:a00:1:: 2001:db8::1 fc00::1 fd00:ec2::254 fd20:ce::254 fe80::1 fe80::1%eth0
    febf::1 fec0::1 ff02::1 ff0e::1 2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:127.0.0.1
"""

PUBLIC = """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1 160.79.104.10
    168.63.129.15 169.253.1.1 172.15.255.255 172.32.0.1 192.1.0.1 192.167.255.255 198.17.255.255 198.20.0.1
    223.255.255.255
    2606:4700:4700::1111 2607:6bc0::10 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1 2001:0:808:808:0:0:f7f7:f7f7
    2606:4700::5efe:8.8.8.8
"""
COVERING = """
    * api.anthropic.com .anthropic.com anthropic.com *.anthropic.com thropic.com .com API.ANTHROPIC.COM
    api.anthropic.com:443 api.anthropic.com:8443 api.* api.anthropic.com. *anthropic*
"""


@pytest.mark.parametrize("ip", PRIVATE.split())
def test_private(ip):
    assert is_private(ip)


@pytest.mark.parametrize("ip", PUBLIC.split())
def test_public(ip):
    assert not is_private(ip)


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_judged_like_the_address(address):
    bits = int(address)
    for wrapped in (
        IPv6Address(0xFFFF << 32 | bits),
        IPv6Address(0x0064FF9B << 96 | bits),
        IPv6Address(0x2002 << 112 | bits << 80 | 1),
    ):
        assert is_private(wrapped) == is_private(address)


@given(st.ip_addresses())
def test_text_and_value_are_judged_alike(address):
    assert is_private(str(address)) == is_private(address)


@given(st.ip_addresses(v=4))
def test_nothing_is_public_that_the_standard_library_calls_special(address):
    if address.is_private or address.is_multicast or address.is_reserved or address.is_link_local:
        assert is_private(address)


def test_what_is_no_address_is_an_error():
    with pytest.raises(ValueError, match="is not an IP address"):
        is_private("example.com")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2.3.4", IPv4Address("1.2.3.4")),
        ("[::1]", IPv6Address("::1")),
        ("fe80::1%eth0", IPv6Address("fe80::1")),
        ("127.1", None),
        ("", None),
        ("[1.2.3.4", None),
        ("example.com", None),
        ("1:2", None),
    ],
)
def test_parse_ip(text, expected):
    assert parse_ip(text) == expected


# -- our own listener -------------------------------------------------------------------------------------------------

LOCAL = {"127.0.0.1", "127.0.0.2", "::1", "192.168.7.7", "fd00::7"}


def is_local(address):
    return str(address) in LOCAL


@pytest.mark.parametrize(
    ("target", "listener", "ours"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),  # the kernel connects that to loopback
        ("::", "::1", True),
        ("127.0.0.2", "127.0.0.1", False),  # another program may listen there
        ("192.168.7.7", "127.0.0.1", False),
        ("127.0.0.1", "0.0.0.0", True),
        ("192.168.7.7", "0.0.0.0", True),
        ("192.168.7.8", "0.0.0.0", False),
        ("::1", "0.0.0.0", False),
        ("fd00::7", "::", True),
        ("192.168.7.7", "::", True),
        ("192.168.7.7", "", True),
        ("192.168.7.7", "192.168.7.7", True),
        ("127.0.0.1", "localhost", True),
        ("::1", "localhost", True),
        ("192.168.7.7", "localhost", False),
        ("127.0.0.1", "proxy.example", False),
    ],
)
def test_own_listener(target, listener, ours):
    assert is_own_listener(target, 8080, [(listener, 8080)], is_local) is ours
    assert not is_own_listener(target, 8081, [(listener, 8080)], is_local)
    assert is_own_listener(target, 8080, [("10.9.9.9", 1), ("10.9.9.9", 8080), (listener, 8080)], is_local) is ours


# -- NO_PROXY ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "host", "port", "covered"),
    [
        ("*", "api.anthropic.com", 443, True),
        ("*", "10.0.0.1", 443, True),
        ("api.anthropic.com", "api.anthropic.com", 443, True),
        ("API.Anthropic.COM.", "api.anthropic.com", 443, True),
        ("api.anthropic.com", "API.anthropic.com.", 443, True),
        ("anthropic.com", "api.anthropic.com", 443, True),
        (".anthropic.com", "api.anthropic.com", 443, True),
        (".anthropic.com", "anthropic.com", 443, True),
        ("*.anthropic.com", "api.anthropic.com", 443, True),
        ("thropic.com", "api.anthropic.com", 443, False),
        ("anthropic.com", "notanthropic.com", 443, False),
        ("api.anthropic.com", "anthropic.com", 443, False),
        ("api.anthropic.com:443", "api.anthropic.com", 443, True),
        ("api.anthropic.com:8443", "api.anthropic.com", 443, False),
        (".", "api.anthropic.com", 443, False),
        ("10.0.0.0/8", "10.20.30.40", 443, True),
        ("10.0.0.0/8", "11.20.30.40", 443, False),
        ("10.1.2.3/8", "10.20.30.40", 443, True),
        ("10.20.30.40", "10.20.30.40", 443, True),
        ("10.20.30.40:80", "10.20.30.40", 443, False),
        ("10.20.30.40", "::ffff:10.20.30.40", 443, True),
        ("0.40", "10.20.30.40", 443, False),
        ("::1", "::1", 443, True),
        ("[::1]", "::1", 443, True),
        ("[::1]:443", "[::1]", 443, True),
        ("[::1]:80", "::1", 443, False),
        ("fd00::/8", "fd12::1", 443, True),
        ("[fd00::]/8", "fd12::1", 443, True),
        ("10.0.0.0/33", "10.20.30.40", 443, False),
        ("10.0.0.0/x", "10.20.30.40", 443, False),
        ("10.0.0.0/8", "ten.example", 443, False),
        ("::/0", "10.0.0.1", 443, False),
    ],
)
def test_no_proxy(entry, host, port, covered):
    assert no_proxy_matches([entry], host, port) is covered
    assert NoProxy.parse(f" other.example,{entry} , x ").matches(host, port) is covered


def test_a_list_is_separated_by_commas_and_blanks():
    assert NoProxy.parse(" a.example, b.example\tc.example,,d.example\n").entries == (
        "a.example",
        "b.example",
        "c.example",
        "d.example",
    )
    assert NoProxy.parse(["a,b", "c"]).entries == ("a", "b", "c")
    assert NoProxy.parse("").entries == ()


@given(st.lists(st.text(max_size=20), max_size=5), st.text(max_size=20), st.integers(0, 65535))
def test_nothing_in_a_list_can_break_the_question(entries, host, port):
    assert no_proxy_matches(entries, host, port) in (True, False)
    without_entries_covering(",".join(entries), [host])


@pytest.mark.parametrize("entry", COVERING.split())
def test_for_a_child_no_entry_stays_that_any_client_would_apply(entry):
    # requests compares suffixes without a dot, undici wants a dot or the whole name, some ignore the port
    assert (
        without_entries_covering(f"corp.example,{entry}", ["api.anthropic.com"])
        == "corp.example,localhost,127.0.0.1,::1"
    )


def test_for_a_child_everything_else_stays_in_order():
    kept = "corp.example,.internal,10.0.0.0/8,api.anthropic.com.evil.example,LOCALHOST"
    assert without_entries_covering(kept, ["api.anthropic.com"]) == f"{kept},127.0.0.1,::1"
    assert without_entries_covering("", []) == "localhost,127.0.0.1,::1"


def test_for_a_child_an_intercepted_address_counts_as_well():
    assert without_entries_covering("10.0.0.0/8 corp", ["10.1.2.3"]) == "corp,localhost,127.0.0.1,::1"
    assert without_entries_covering("[fd00::1]:443 corp", ["fd00::1"]) == "corp,localhost,127.0.0.1,::1"


@given(st.ip_addresses())
def test_parse_ip_reads_what_it_prints(address):
    assert parse_ip(str(address)) == ip_address(str(address))
