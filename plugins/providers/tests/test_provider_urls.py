"""Addresses as people give them, and the URL that comes of each."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import pytest
from dbproxy_providers.urls import CHAT, GEMINI, MESSAGES, RESPONSES, endpoint, is_near, read_base
from hypothesis import example, given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("base", "chat", "responses"),
    [
        ("https://api.openai.com", "https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1/responses"),
        ("api.openai.com", "https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1/responses"),
        (
            "https://api.openai.com/v1/",
            "https://api.openai.com/v1/chat/completions",
            "https://api.openai.com/v1/responses",
        ),
        (
            "https://api.openai.com/v1/chat/completions",
            "https://api.openai.com/v1/chat/completions",
            "https://api.openai.com/v1/responses",
        ),
        (
            "https://generativelanguage.googleapis.com/v1beta/openai/",
            "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
            "https://generativelanguage.googleapis.com/v1beta/openai/responses",
        ),
        ("localhost:1234", "http://localhost:1234/v1/chat/completions", "http://localhost:1234/v1/responses"),
        ("127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/chat/completions", "http://127.0.0.1:8000/v1/responses"),
        ("[::1]:8000", "http://[::1]:8000/v1/chat/completions", "http://[::1]:8000/v1/responses"),
        ("gpu-box:8000", "http://gpu-box:8000/v1/chat/completions", "http://gpu-box:8000/v1/responses"),
        ("192.168.1.20:8080", "http://192.168.1.20:8080/v1/chat/completions", "http://192.168.1.20:8080/v1/responses"),
        (
            "https://openrouter.ai/api",
            "https://openrouter.ai/api/v1/chat/completions",
            "https://openrouter.ai/api/v1/responses",
        ),
        ("https://api.groq.com/openai/v1", "https://api.groq.com/openai/v1/chat/completions", None),
        ("https://api.groq.com/openai", "https://api.groq.com/openai/v1/chat/completions", None),
        ("https://api.z.ai/api/paas/v4", "https://api.z.ai/api/paas/v4/chat/completions", None),
        ("https://gw.example//v1//", "https://gw.example/v1/chat/completions", None),
        ("HTTPS://GW.Example:8443/V/v1", "https://gw.example:8443/V/v1/chat/completions", None),
        # A gateway with its version in front of an account, and a deployment with its version in the query.
        ("https://gw.example/v1/acct/gw/openai", "https://gw.example/v1/acct/gw/openai/chat/completions", None),
        (
            "https://x.example/openai/deployments/gpt?api-version=2025-01-01",
            "https://x.example/openai/deployments/gpt/chat/completions?api-version=2025-01-01",
            None,
        ),
    ],
)
def test_case_38_every_address_leads_to_the_right_url(base, chat, responses):
    assert endpoint(read_base(base), CHAT) == chat
    if responses is not None:
        assert endpoint(read_base(base), RESPONSES) == responses


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://localhost:11434", "http://localhost:11434/v1/messages"),
        ("localhost:11434/v1", "http://localhost:11434/v1/messages"),
        ("https://api.deepseek.com/anthropic", "https://api.deepseek.com/anthropic/v1/messages"),
        ("https://api.deepseek.com/anthropic/v1/messages", "https://api.deepseek.com/anthropic/v1/messages"),
        ("https://openrouter.ai/api/", "https://openrouter.ai/api/v1/messages"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1/messages"),
        ("https://gw.example/v1/acct/gw/anthropic", "https://gw.example/v1/acct/gw/anthropic/v1/messages"),
    ],
)
def test_case_38_servers_that_speak_messages(base, url):
    assert endpoint(read_base(base), MESSAGES) == url


@pytest.mark.parametrize("model", ["gemini-2.5-pro", "models/gemini-2.5-pro"])
@pytest.mark.parametrize(
    "base",
    [
        "https://generativelanguage.googleapis.com",
        "generativelanguage.googleapis.com/v1beta",
        "https://generativelanguage.googleapis.com/v1beta/models/",
        "https://generativelanguage.googleapis.com/v1beta/openai/",
    ],
)
def test_case_38_gemini_has_the_model_in_its_path(base, model):
    place = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro"
    assert endpoint(read_base(base), GEMINI, model) == f"{place}:generateContent"
    assert endpoint(read_base(base), GEMINI, model, stream=True) == f"{place}:streamGenerateContent?alt=sse"


def test_a_model_cannot_leave_its_place_in_the_path():
    base = read_base("https://g.example/v1beta")
    assert endpoint(base, GEMINI, "../x?y#z") == "https://g.example/v1beta/models/..%2Fx%3Fy%23z:generateContent"
    assert endpoint(base, GEMINI, "tunedModels/mine") == "https://g.example/v1beta/tunedModels/mine:generateContent"


def test_a_query_goes_along():
    base = read_base("https://g.example/v1beta?project=p")
    assert endpoint(base, GEMINI, "m", stream=True).endswith(":streamGenerateContent?alt=sse&project=p")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("https://", "no address"),
        ("https://a b", "blanks"),
        ("https://host:port", "no address"),
        ("https://host/#part", "no address"),
        ("ftp://host", "only http:// and https://"),
        ("https://host:99999", "no address"),
        ("https://[::1", "no address"),
        ("https://me:hidden-word@host/v1", "credential"),
        ("me:hidden-word@host", "credential"),
        ("https://host/v1?key=hidden-word", "a key in its query"),
        ("https://ho%00st", "no address"),
    ],
)
def test_what_is_no_address_is_said_without_repeating_a_secret(text, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_base(text)
    assert "hidden-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("localhost", True),
        ("127.0.0.9", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("fd00::1", True),
        ("box", True),
        ("box.local", True),
        ("host.docker.internal", True),
        ("api.example.com", False),
        ("8.8.8.8", False),
    ],
)
def test_plain_http_is_for_what_is_near(host, near):
    assert is_near(host) == near
    shown = f"[{host}]" if ":" in host else host
    assert read_base(f"{shown}/v1").origin.startswith("http://" if near else "https://")


@given(st.text(max_size=60))
@example("//x")
@example("http://[")
@example("a:b:c")
def test_any_text_is_an_address_or_is_refused(text):
    try:
        base = read_base(text)
    except ValueError as error:
        reason = str(error)
    else:
        reason = ""
        for api in (CHAT, RESPONSES, GEMINI, MESSAGES):
            parts = urlsplit(endpoint(base, api, "m"))
            assert parts.scheme in ("http", "https")
            assert parts.hostname
    assert reason or base.host


@given(st.ip_addresses())
def test_addresses_are_kept_whole(address):
    shown = f"[{address}]" if address.version == 6 else str(address)
    url = endpoint(read_base(f"https://{shown}:8000"), CHAT)
    assert ipaddress.ip_address(str(urlsplit(url).hostname)) == address
    assert urlsplit(url).port == 8000
