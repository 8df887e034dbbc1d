"""Credentials out of what is written down: headers get keyed fingerprints, texts get a gap.

Owns what counts as a credential. Never does I/O. Invariants: of a credential nothing but its fingerprint remains, and
that tells nothing to whoever lacks the key; time is linear in the length of a text, whatever it holds; text without
credentials comes back as it is.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dbproxy.exchange import Fields
    from dbproxy.model.record import Pairs

GAP: Final = "[redacted]"

# Words of a header's name that make its value a credential, whatever it looks like.
_SECRET_WORDS: Final = frozenset(
    {
        "apikey",
        "auth",
        "authorization",
        "cookie",
        "cookie2",
        "credential",
        "credentials",
        "jwt",
        "key",
        "passwd",
        "password",
        "secret",
        "signature",
        "token",
    }
)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*[ \t]+(?=\S)")


def redact_headers(pairs: Iterable[tuple[str, str]], key: bytes) -> Pairs:
    """The header lines with every credential replaced by ``hmac:`` and 16 hex digits, the same for the same one.

    Where the name tells (``Authorization``, ``x-api-key``, cookies, anything named token, key or secret) that is the
    whole value, elsewhere what looks like a credential.
    """
    return tuple(
        (name, _fingerprint(_bare(value), key) if _is_secret(name) else _redacted_value(value, key))
        for name, value in pairs
    )


def account(fields: Fields, key: bytes) -> str:
    """A fingerprint (16 hex digits) of the credential that a request was made with, "" for one without.

    The same key gives the same fingerprint whether it came as ``Authorization: Bearer`` or as ``x-api-key``. A login's
    tokens change every few hours: where the body names the account, prefer that.
    """
    for name in (b"authorization", b"x-api-key"):
        value = (fields.get(name) or b"").decode("latin-1")
        if value:
            return _fingerprint(_bare(value), key).removeprefix("hmac:")
    return ""


def redact_text(text: str) -> tuple[str, int]:
    """``text`` with a gap where credentials stood, and how many: API keys, tokens, private keys, passwords in URLs."""
    return _replaced(text, lambda _: GAP)


def _is_secret(name: str) -> bool:
    return not _SECRET_WORDS.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))


def _bare(value: str) -> str:
    """A credential without its scheme (``Bearer``)."""
    value = value.strip()
    scheme = _SCHEME.match(value)
    return value[scheme.end() :] if scheme else value


def _fingerprint(value: str, key: bytes) -> str:
    # Bytes that are no UTF-8 came in as Latin-1 or as lone surrogates; both must pass.
    return "hmac:" + hmac.new(key, value.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]


def _redacted_value(value: str, key: bytes) -> str:
    return _replaced(value, lambda secret: _fingerprint(secret, key))[0]


# What a pattern needs somewhere in the text, and the pattern. The secret is the group ``s`` if there is one, else all
# of it. Runs are possessive, and where one may fail after its end it is bounded: text of n characters takes O(n).
# Inside a word nothing begins; an escape's letter and digits (\n, %3D) are no word.
_BEFORE: Final = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"
_PATTERNS: Final[tuple[tuple[tuple[str, ...], re.Pattern[str]], ...]] = (
    # Anthropic, OpenAI and those who copied them; Stripe.
    (("sk-",), re.compile(_BEFORE + r"sk-[A-Za-z0-9_-]{16,}+")),
    (("k_live_", "k_test_"), re.compile(_BEFORE + r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}+")),
    # JSON Web Tokens: the first part is an object in base64.
    (("eyJ",), re.compile(_BEFORE + r"eyJ[A-Za-z0-9_-]{8,512}+\.[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]*+)*+")),
    # AWS key ids.
    (("AKIA", "ASIA"), re.compile(_BEFORE + r"A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])")),
    # GitHub, GitLab.
    (
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(_BEFORE + r"(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}+"),
    ),
    (("glpat-",), re.compile(_BEFORE + r"glpat-[A-Za-z0-9_.-]{16,}+")),
    # Slack tokens and incoming webhooks.
    (("xox", "xapp-"), re.compile(_BEFORE + r"(?:xox[a-z]|xapp)-[A-Za-z0-9-]{10,}+")),
    (("hooks.slack.com/",), re.compile(r"(?<=hooks\.slack\.com/)(?:services|workflows)/[A-Za-z0-9/_-]{12,}+")),
    # Google: API keys, access and refresh tokens, client secrets.
    (("AIza",), re.compile(_BEFORE + r"AIza[A-Za-z0-9_-]{30,}+")),
    (("ya29.",), re.compile(_BEFORE + r"ya29\.[A-Za-z0-9_.-]{20,}+")),
    (("1//0",), re.compile(_BEFORE + r"1//0[A-Za-z0-9_-]{20,}+")),
    (("GOCSPX-",), re.compile(_BEFORE + r"GOCSPX-[A-Za-z0-9_-]{16,}+")),
    # Package registries, model hosts, mail.
    (
        ("npm_", "pypi-", "hf_", "gsk_", "xai-", "dckr_pat_", "SG."),
        re.compile(_BEFORE + r"(?:npm_|pypi-|hf_|gsk_|xai-|dckr_pat_|SG\.)[A-Za-z0-9_.-]{20,}+"),
    ),
    # HTTP authentication.
    (
        ("bearer", "basic"),
        re.compile(
            r"(?i:\b(?:bearer|basic))[ \t]{1,4}(?P<s>(?=[a-z._~+/=-]{0,512}+[0-9A-Z])[A-Za-z0-9._~+/=-]{16,}+)",
        ),
    ),
    # A password in a URL; so that a scheme's slashes end the run that came before.
    (("://",), re.compile(r"""(?<=://)[^\s/@:?#"'\\]*+:(?P<s>[^\s/@"'\\]++)@""")),
    # Names that say so, in code, configuration and query strings; a value without a digit is rather a word.
    (
        ("key", "secret", "token", "passw", "credential"),
        re.compile(
            r"""(?i:api[_-]?key|access[_-]?key|secret|token|password|passwd|credential)[\\"']{0,3}[ \t]{0,4}[=:]"""
            r"""[ \t]{0,4}[\\"']{0,3}(?P<s>(?=[^\s"'\\&,;)0-9]{0,128}+[0-9])[^\s"'\\&,;)]{8,}+)""",
        ),
    ),
)
_PEM_BEGIN: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY: Final = re.compile(r"[A-Za-z0-9+/=\s\\]*+")


def _replaced(text: str, replacement: Callable[[str], str]) -> tuple[str, int]:
    count = 0
    if "PRIVATE KEY" in text:
        text, count = _without_private_keys(text, replacement)
    lower = text.lower()

    def replaced(match: re.Match[str]) -> str:
        secret = match.groupdict().get("s") or match[0]
        start = match.start("s") - match.start() if match.groupdict().get("s") else 0
        if secret == GAP:
            return match[0]
        nonlocal count
        count += 1
        return match[0][:start] + replacement(secret) + match[0][start + len(secret) :]

    for hints, pattern in _PATTERNS:
        if any(hint.lower() in lower for hint in hints):
            text = pattern.sub(replaced, text)
    return text, count


def _without_private_keys(text: str, replacement: Callable[[str], str]) -> tuple[str, int]:
    kept: list[str] = []
    at = count = 0
    ends = [match.end() for match in _PEM_END.finditer(text)]
    next_end = 0
    for begin in _PEM_BEGIN.finditer(text):
        if begin.start() < at:
            continue
        while next_end < len(ends) and ends[next_end] <= begin.end():
            next_end += 1
        if next_end < len(ends):
            end = ends[next_end]
        else:
            # Cut off: as far as it may still be the key.
            body = _PEM_BODY.match(text, begin.end())
            end = body.end() if body else begin.end()
        kept += (text[at : begin.start()], replacement(text[begin.start() : end]))
        at = end
        count += 1
    kept.append(text[at:])
    return "".join(kept), count
