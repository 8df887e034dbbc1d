"""Credentials out of what is written down: headers get keyed fingerprints, texts get a gap.

Owns what counts as a credential. Never does I/O. Invariants: of a credential nothing but its fingerprint remains, and
that tells nothing to whoever lacks the key; time is linear in the length of a text, whatever it holds; text without
credentials comes back as it is.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from functools import lru_cache
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


@lru_cache(maxsize=512)
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
    if len(value) < _SHORTEST and "@" not in value:
        return value
    return _replaced(value, lambda secret: _fingerprint(secret, key))[0]


def _beginning(word: str, rest: str) -> tuple[str, re.Pattern[str]]:
    """A secret that begins with ``word``, which is no piece of a longer one; an escape's letter and digits (\\n, %3D)
    before it are no word. That is asked behind ``word``, since a pattern that begins with plain text is ten times
    quicker."""
    literal, word = word, re.escape(word)
    asked = rf"(?:(?<![A-Za-z0-9]{word})|(?<=\\[nrt]{word})|(?<=%[0-9A-Fa-f]{{2}}{word}))"
    return literal, re.compile(word + asked + rest)


def _called(word: str, rest: str) -> tuple[str, re.Pattern[str]]:
    return word, re.compile(word + rest)


# What is assigned to a name; without a digit it is rather a word.
_VALUE: Final = (
    r"""[\\"']{0,3}[ \t]{0,4}[=:][ \t]{0,4}[\\"']{0,3}"""
    r"""(?P<s>(?=[^\s"'\\&,;)0-9]{0,128}+[0-9])[^\s"'\\&,;)]{8,}+)"""
)
# Other keys are keys of maps. The last two are our client key, as header and as variable.
_KINDS: Final = ("api", "access", "secret", "dbproxy", "dbproxy_client")
_KEYS: Final = [f"(?<=(?i:{kind}){dash}(?i:key))" for kind in _KINDS for dash in ("", "[_-]")]
_KEY_OF: Final = f"(?:{'|'.join(_KEYS)})"
_LONG: Final = "[A-Za-z0-9_.-]{20,}+"

# What a pattern needs somewhere in the text, and the pattern. The secret is the group ``s`` if there is one, else all
# of it. Runs are possessive, and where one may fail after its end it is bounded: text of n characters takes O(n).
_PATTERNS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    # Anthropic, OpenAI and those who copied them; Stripe.
    _beginning("sk-", "[A-Za-z0-9_-]{16,}+"),
    *(_beginning(f"{kind}k_{mode}_", "[A-Za-z0-9]{16,}+") for kind in "rs" for mode in ("live", "test")),
    # JSON Web Tokens: the first part is an object in base64.
    _beginning("eyJ", r"[A-Za-z0-9_-]{8,512}+\.[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]*+)*+"),
    # AWS key ids.
    *(_beginning(word, "[A-Z0-9]{16}(?![A-Za-z0-9])") for word in ("AKIA", "ASIA")),
    # GitHub, GitLab.
    *(_beginning(word, "[A-Za-z0-9_]{20,}+") for word in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_")),
    _beginning("glpat-", "[A-Za-z0-9_.-]{16,}+"),
    # Slack tokens and incoming webhooks.
    _beginning("xox", "[a-z]-[A-Za-z0-9-]{10,}+"),
    _beginning("xapp-", "[A-Za-z0-9-]{10,}+"),
    (
        "hooks.slack.com/",
        re.compile(r"hooks\.slack\.com/(?P<s>(?:services|workflows)/[A-Za-z0-9/_-]{12,}+)"),
    ),
    # Google: API keys, access and refresh tokens, client secrets.
    _beginning("AIza", "[A-Za-z0-9_-]{30,}+"),
    *(_beginning(word, _LONG) for word in ("ya29.", "1//0")),
    _beginning("GOCSPX-", "[A-Za-z0-9_-]{16,}+"),
    # Package registries, model hosts, mail.
    *(_beginning(word, _LONG) for word in ("npm_", "pypi-", "hf_", "gsk_", "xai-", "dckr_pat_", "SG.")),
    # HTTP authentication.
    *(
        _called(word, r"[ \t]{1,4}(?P<s>(?=[a-z._~+/=-]{0,512}+[0-9A-Z])[A-Za-z0-9._~+/=-]{16,}+)")
        for word in ("bearer", "Bearer", "BEARER", "basic", "Basic", "BASIC")
    ),
    # A password in a URL. The slashes of the next one end a run that comes to nothing.
    ("://", re.compile(r"""://[^\s/@:?#"'\\]*+:(?P<s>[^\s/@"'\\]++)@""")),
    # Names that say so, in code, configuration and query strings.
    *(_called(word, _KEY_OF + _VALUE) for word in ("key", "Key", "KEY")),
    *(
        _called(spelled, _VALUE)
        for word in ("secret", "token", "passwd", "password", "credential")
        for spelled in (word, word.capitalize(), word.upper())
    ),
)
#: What is shorter holds nothing that a pattern takes, but for a URL's password.
_SHORTEST: Final = 12
_DONE: Final = re.compile(re.escape(GAP) + "|hmac:[0-9a-f]{16}").fullmatch
_PEM_BEGIN: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY: Final = re.compile(r"[A-Za-z0-9+/=\s\\]*+")


def _replaced(text: str, replacement: Callable[[str], str]) -> tuple[str, int]:
    count = 0
    if "PRIVATE KEY" in text:
        text, count = _without_private_keys(text, replacement)

    def replaced(match: re.Match[str]) -> str:
        secret = match.groupdict().get("s") or match[0]
        start = match.start("s") - match.start() if match.groupdict().get("s") else 0
        if _DONE(secret):
            return match[0]
        nonlocal count
        count += 1
        return match[0][:start] + replacement(secret) + match[0][start + len(secret) :]

    for hint, pattern in _PATTERNS:
        if hint in text:
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
