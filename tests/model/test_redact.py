"""Nothing of a credential is written down, and nothing else is lost."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.exchange import Fields
from dbproxy.model.redact import GAP, account, redact_headers, redact_text

KEY = b"k" * 32

# In two pieces each, so that no scanner takes this file for a leak.
SECRETS = {
    "Anthropic": "sk-ant-" + "api03-" + "aB3_" * 12,
    "OpenAI": "sk-" + "aB3x" * 10,
    "Stripe": "sk_live_" + "a1B2" * 6,
    "JWT": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0" + ".c2lnbmF0dXJl-_x",
    "AWS": "AKIA" + "IOSFODNN7EXAMPL0",
    "GitHub": "ghp_" + "a1B2" * 9,
    "GitHub, fine-grained": "github_pat_" + "a1B2_" * 9,
    "GitLab": "glpat-" + "a1B2-" * 4,
    "Slack": "xoxb-" + "123456789012-" + "a1B2c3",
    "Google": "AIza" + "a1B_" * 9,
    "Google, access": "ya29." + "a0Af_" * 8,
    "Google, refresh": "1//0" + "g1B_" * 8,
    "npm": "npm_" + "a1B2" * 9,
    "Hugging Face": "hf_" + "aBcD" * 8,
}
PEM = "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIEow+/IBAAK\nCAQEA==\n-----END RSA PRIVATE " + "KEY-----"


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "around",
    ["{}", "key: {}\n", '"{}"', "a {}, b", "x={}&y=1", "`{}`", "https://h/?k={}", "\\n{}\\n", "https%3A%2F%2F{}"],
)
def test_a_secret_in_a_text(name: str, around: str) -> None:
    found, count = redact_text(around.format(SECRETS[name]))
    assert count == 1
    assert found == around.format(GAP)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcdefGHIJ0123456789", f"Authorization: Bearer {GAP}"),
        ("authorization: basic dXNlcjpwYXNzd29yZDE=", f"authorization: basic {GAP}"),
        ("git clone https://me:hunter2@host/x.git", f"git clone https://me:{GAP}@host/x.git"),
        ("postgres://:p%40ss@db/x and ftp://a:b@c", f"postgres://:{GAP}@db/x and ftp://a:{GAP}@c"),
        ("password=hunter2hunter", f"password={GAP}"),
        ('{"api_key": "0123456789abcdef"}', f'{{"api_key": "{GAP}"}}'),
        ('{\\"api_key\\": \\"0123456789abcdef\\"}', f'{{\\"api_key\\": \\"{GAP}\\"}}'),
        ("AWS_SECRET_ACCESS_KEY = wJalrXUtnFEMI/K7MDENG/bPxRfiCY", f"AWS_SECRET_ACCESS_KEY = {GAP}"),
        (
            "export ANTHROPIC_CUSTOM_HEADERS='x-dbproxy-key: open-sesame-1'",
            f"export ANTHROPIC_CUSTOM_HEADERS='x-dbproxy-key: {GAP}'",
        ),
        ("DBPROXY_CLIENT_KEY=open-sesame-1 dbproxy start", f"DBPROXY_CLIENT_KEY={GAP} dbproxy start"),
        ("https://hooks.slack.com/services/T000/B000/XXXXXXXX", f"https://hooks.slack.com/{GAP}"),
        (f"before {PEM} after", f"before {GAP} after"),
        (f"{PEM}\n{PEM}", f"{GAP}\n{GAP}"),
        (PEM[:31] + PEM, GAP),
        (PEM.replace("\n", "\\n"), GAP),
        (PEM[:50] + ".\nand so on", f"{GAP}.\nand so on"),
    ],
)
def test_what_stands_beside_it_tells(text: str, expected: str) -> None:
    found, count = redact_text(text)
    assert found == expected
    assert count == expected.count(GAP)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a task-force-with-a-long-name and risk-management-2024-plan",
        "the bearer of good news; basic understanding",
        "token = request.headers.get(name); password: getPassword()",
        "max_tokens=128000, input_tokens: 42",
        "see http://host:8080/path@v2 and user@host",
        "commit 0123456789abcdef0123456789abcdef01234567",
        "toolu_01ABCdefGHIjklMNOpqrSTU msg_01XYZ 01234567-89ab-cdef-0123-456789abcdef",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "a PRIVATE KEY is private",
        "half \ud83d of a character",
        f"https://me:{GAP}@host/ and {GAP}",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact_text(text) == (text, 0)


words = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="@"), max_size=30)


@given(words, st.sampled_from([*SECRETS.values(), PEM]), words)
def test_planted_secrets_never_come_through(before: str, secret: str, after: str) -> None:
    found, count = redact_text(f"{before} {secret} {after}")
    assert count >= 1
    assert secret not in found
    assert secret[6:] not in found
    assert redact_text(found)[0] == found


@given(
    st.lists(
        st.sampled_from([*SECRETS.values(), PEM, "eyJ", "token=", "sk-", "://a:", " ", "bearer ", "x1", "@", '"']),
        max_size=30,
    )
)
def test_again_finds_nothing_more(pieces: list[str]) -> None:
    found, _ = redact_text(" ".join(pieces))
    for secret in SECRETS.values():
        assert secret not in found
    assert redact_text(found)[0] == found


UNITS = """
token= sk- eyJ- eyJaaaaaaaa. ://a: bearer_abc_ secret: api_key=_ xoxb- ghp_ a A _ password=a :// key 1//0 AKIA
-----BEGIN_PRIVATE_KEY----- -----END_PRIVATE_KEY-----"""


@pytest.mark.parametrize("unit", UNITS.split())
def test_time_is_linear(unit: str) -> None:
    begun = time.perf_counter()
    redact_text(unit.replace("_", " ") * (500_000 // len(unit)))
    redact_text(unit * (500_000 // len(unit)))
    assert time.perf_counter() - begun < 3


# --- headers ---


def test_credentials_in_headers() -> None:
    secret = SECRETS["Anthropic"]
    redacted = redact_headers(
        [
            ("Host", "api.example.com"),
            ("Authorization", f"Bearer {secret}"),
            ("X-Api-Key", secret),
            ("proxy-authorization", "Basic dTpw"),
            ("Cookie", "a=b"),
            ("Set-Cookie", "a=b; Path=/"),
            ("X-Auth-Token", "t"),
            ("x-goog-api-key", "g"),
            ("X-Custom", f"id {secret}"),
            ("X-Given", f"token={secret}"),
            ("Referer", "https://me:hunter2@host/"),
        ],
        KEY,
    )
    values = dict(redacted)
    assert secret not in str(redacted)
    assert values["Host"] == "api.example.com"
    # The same key gives the same fingerprint, however it was sent.
    assert values["Authorization"] == values["X-Api-Key"]
    assert values["X-Custom"] == "id " + values["X-Api-Key"]
    assert values["X-Given"] == "token=" + values["X-Api-Key"]
    for name in (
        "Authorization",
        "X-Api-Key",
        "proxy-authorization",
        "Cookie",
        "Set-Cookie",
        "X-Auth-Token",
        "x-goog-api-key",
    ):
        assert values[name].startswith("hmac:")
        assert len(values[name]) == 21
    assert values["Referer"].startswith("https://me:hmac:")
    assert values["Referer"].endswith("@host/")
    assert [name for name, _ in redacted][:3] == ["Host", "Authorization", "X-Api-Key"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-claude-code-session-id", "01234567-89ab-cdef-0123-456789abcdef"),
        ("anthropic-ratelimit-input-tokens-remaining", "1000"),
        ("anthropic-ratelimit-unified-5h-utilization", "0.25"),
        ("anthropic-beta", "oauth-2025-04-20,claude-code-20250219"),
        ("request-id", "req_011CSHoEeqs5C35K2UUqR7Fy"),
        ("WWW-Authenticate", 'Bearer realm="api"'),
        ("x-prev-tool-durations", "Bash=742;Read=9"),
        ("User-Agent", "claude-cli/2.1.329 (external, cli)"),
    ],
)
def test_other_headers_stay(name: str, value: str) -> None:
    assert redact_headers([(name, value)], KEY) == ((name, value),)


def test_a_fingerprint_needs_its_key() -> None:
    one, two = (redact_headers([("x-api-key", "secret")], key) for key in (KEY, b"other"))
    assert one != two
    assert redact_headers([("x-api-key", "secret")], KEY) == one
    assert redact_headers([("x-api-key", "secret2")], KEY) != one


@given(st.text(max_size=20), st.text(max_size=20))
def test_headers_of_any_shape(name: str, value: str) -> None:
    ((kept, _),) = redact_headers([(name, value)], KEY)
    assert kept == name


def test_accounts() -> None:
    def of(*pairs: tuple[bytes, bytes]) -> str:
        return account(Fields.of(pairs), KEY)

    assert of() == ""
    assert of((b"Authorization", b"")) == ""
    assert of((b"Authorization", b"Bearer one")) == of((b"X-Api-Key", b"one")) == of((b"authorization", b"bearer  one"))
    assert of((b"x-api-key", b"two")) != of((b"x-api-key", b"one"))
    assert len(of((b"x-api-key", b"\xff\x00"))) == 16
