"""The environment of a launched child, as a pure function."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.proc import env as environment
from dbproxy.proc.env import Bundles, child_environment, covers, without_covering

HOSTS = ("api.anthropic.com",)
URL = "http://127.0.0.1:8080"


def child(base=(), **options):
    given = {
        "userinfo": "s-1:secret",
        "url": URL,
        "bundles": Bundles("/ca/node.pem", "/ca/full.pem"),
        "intercept": HOSTS,
    }
    return child_environment(dict(base), **given | options)


def test_nothing_but_the_documented_variables_is_added():
    assert child({"PATH": "/bin"}).env == {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://s-1:secret@127.0.0.1:8080",
        "https_proxy": "http://s-1:secret@127.0.0.1:8080",
        "NO_PROXY": "localhost,127.0.0.1,::1",
        "no_proxy": "localhost,127.0.0.1,::1",
        "NODE_EXTRA_CA_CERTS": "/ca/node.pem",
        "SSL_CERT_FILE": "/ca/full.pem",
        "REQUESTS_CA_BUNDLE": "/ca/full.pem",
        "CURL_CA_BUNDLE": "/ca/full.pem",
        "CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1",
        "DBPROXY_ACTIVE": "1",
        "DBPROXY_URL": URL,
    }


def test_the_base_is_not_changed():
    base = {"HTTPS_PROXY": "http://corp"}
    child(base)
    assert base == {"HTTPS_PROXY": "http://corp"}


def test_the_persons_own_bundles_and_choices_stay():
    mine = {"SSL_CERT_FILE": "/a", "CURL_CA_BUNDLE": "/c", "CLAUDE_CODE_GATEWAY_HINT_HEADERS": "0"}
    env = child(mine | {"REQUESTS_CA_BUNDLE": ""}).env
    assert {name: env[name] for name in mine} == mine
    assert env["REQUESTS_CA_BUNDLE"] == "/ca/full.pem"


def test_without_system_roots_no_bundle_replaces_them():
    env = child(bundles=Bundles("/ca/node.pem")).env
    assert not {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"} & set(env)


def test_an_ipv6_listener_keeps_its_brackets():
    assert child(url="http://[::1]:8080").env["HTTPS_PROXY"] == "http://s-1:secret@[::1]:8080"


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "api.anthropic.com",
        "API.Anthropic.COM.",
        ".anthropic.com",
        "anthropic.com",
        "*.anthropic.com",
        "*anthropic.com",
        "com",
        ".com",
        "api.anthropic.com:443",
        ".anthropic.com:443",
        "api.*",
        "pi.anthropic.com",
    ],
)
def test_an_entry_that_some_tool_would_apply_to_the_host_is_left_out(entry):
    assert covers(entry, "api.anthropic.com")
    assert without_covering(f"a.example, {entry} b.example", HOSTS) == ["a.example", "b.example"]


@pytest.mark.parametrize(
    "entry",
    [
        "anthropic.org",
        "x.api.anthropic.com",
        "10.0.0.0/8",
        "::1",
        "[::1]:80",
        "localhost",
        "172.16.*",
        "api",
        "<local>",
    ],
)
def test_an_entry_that_does_not_cover_the_host_stays(entry):
    assert without_covering(entry, HOSTS) == [entry]


def test_networks_cover_an_intercepted_address():
    assert without_covering("10.0.0.0/8,fd00::/8,10.1.2.3", ("10.1.2.3",)) == ["fd00::/8"]
    assert without_covering("fd00::/8", ("fd00::1",)) == []


@given(st.text())
def test_no_list_of_exceptions_makes_it_raise(text):
    kept = without_covering(text, HOSTS)
    assert all(not covers(entry, HOSTS[0]) for entry in kept)


def test_loopback_is_not_repeated():
    assert child({"no_proxy": "127.0.0.1 x.example,localhost"}).env["NO_PROXY"] == "127.0.0.1,x.example,localhost,::1"


def test_lower_case_wins_as_in_curl():
    env = {"HTTPS_PROXY": "http://upper", "https_proxy": "http://lower", "NO_PROXY": "U", "no_proxy": "l"}
    assert environment.user_proxy(env) == "http://lower"
    assert environment.user_no_proxy(env) == "l"


def test_http_proxy_alone_is_the_persons_proxy_as_it_is_for_the_client():
    assert environment.user_proxy({"HTTP_PROXY": "http://a"}) == "http://a"
    assert environment.user_proxy({"ALL_PROXY": "http://b", "HTTP_PROXY": "http://a"}) == "http://b"
    assert environment.user_proxy({"HTTPS_PROXY": ""}) is None


def test_the_window_is_set_only_where_unset():
    set_by_us = child(compact_window=806_600)
    assert set_by_us.env["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "806600"
    assert len(set_by_us.notices) == 1
    theirs = child({"CLAUDE_CODE_AUTO_COMPACT_WINDOW": "5"}, compact_window=806_600)
    assert theirs.env["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "5"
    assert "DISABLE_AUTO_COMPACT" not in set_by_us.env
    assert child().notices == ()


def test_the_window_makes_the_wall_a_fraction_of_the_real_one():
    assert environment.compact_window(1.0) == 1_000_000
    assert environment.compact_window(0.8) - 33_000 == round(0.8 * 967_000)


def test_a_child_inside_a_child_is_unwrapped():
    own = {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://corp:1",
        "https_proxy": "http://corp:1",
        "NO_PROXY": "x",
        "no_proxy": "x",
    }
    inside = child(own, bundles=Bundles("/data/ca/bundle.pem", "/data/ca/child-bundle.pem")).env
    assert environment.is_nested(inside)
    assert environment.outer_credentials(inside) == ("s-1", "secret")
    back = environment.without_ours(
        inside, outer_proxy="http://corp:1", outer_no_proxy="x", our_files=("/data/ca", "/data/run/scopes")
    )
    assert back == own | {"CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1"}


def test_outside_of_a_launch_nothing_is_unwrapped():
    env = {"HTTPS_PROXY": "http://127.0.0.1:8080", "NO_PROXY": "x", "NODE_EXTRA_CA_CERTS": "/data/ca/x"}
    assert not environment.is_nested(env)
    assert environment.outer_credentials(env) is None
    assert environment.without_ours(env, our_files=("/data/ca",)) == env
    assert environment.without_ours(env | {"DBPROXY_URL": "http://127.0.0.1:9"}) == env


@pytest.mark.parametrize("bad", ["", "http://[", "http://x:99999999", "::::", "http://a:b:c"])
def test_malformed_proxies_are_nobodys_endpoint(bad):
    assert not environment.same_endpoint(bad, URL)
    assert not environment.same_endpoint(URL, bad)
    assert environment.outer_credentials({"DBPROXY_URL": URL, "HTTPS_PROXY": bad}) is None


def test_a_bare_host_and_port_is_a_proxy_too():
    assert environment.same_endpoint("127.0.0.1:8080", URL)
    assert not environment.same_endpoint("127.0.0.1:8081", URL)


def test_what_pyinstaller_did_is_undone():
    base = {
        "LD_LIBRARY_PATH": "/tmp/_MEI1",
        "LD_LIBRARY_PATH_ORIG": "/mine",
        "DYLD_LIBRARY_PATH": "/tmp/_MEI1",
        "_PYI_ARCHIVE_FILE": "x",
        "_MEIPASS2": "y",
        "PATH": "/bin",
    }
    env = child(base, frozen=True).env
    assert env["LD_LIBRARY_PATH"] == "/mine"
    assert not [name for name in env if name.startswith(("_PYI", "_MEI", "DYLD")) or name.endswith("_ORIG")]
    assert child(base).env["LD_LIBRARY_PATH"] == "/tmp/_MEI1"


def test_the_daemon_does_not_inherit_what_belongs_to_one_launch():
    base = {
        "DBPROXY_PASSTHROUGH": "1",
        "DBPROXY_URL": "x",
        "DBPROXY_ACTIVE": "1",
        "DISABLE_AUTO_COMPACT": "1",
        "A": "b",
    }
    assert environment.daemon_environment(base, drop=["DBPROXY_PASSTHROUGH"]) == {"A": "b"}
    frozen = environment.daemon_environment({"_PYI_X": "1"}, drop=[], frozen=True)
    assert frozen == {"PYINSTALLER_RESET_ENVIRONMENT": "1"}
