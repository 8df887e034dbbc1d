"""What went wrong at another provider, in the Messages API's terms: statuses on which the client does the right thing.

Owns the mapping of foreign errors (``failure_of``) and the JSON of an error answer. Pure. Sources: seed-001 4.3 and
cases 66 to 68 and 78 to 82, client facts 5 (403 and 413 end the client at once, 401 may start a login), API facts 1.7.

Invariants: no key and no HTML page reaches the client or the log; a context that overflows is a 400 in the exact
wording on which the client compacts; ``retry_after`` is whole seconds.
"""

from __future__ import annotations

import email.utils
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.redact import redact_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LONGEST: Final = 600  # characters of a foreign message
_OVERFLOW: Final = re.compile(
    r"context[ _](?:length|window|size)|maximum context|too many tokens|prompt is too long|input is too long"
    r"|exceeds? the (?:maximum|model'?s?) .{0,40}tokens|reduce the length|input token count .{0,40}exceeds",
    re.IGNORECASE,
)
# The third is llama.cpp's.
_OVERFLOW_CODES: Final = frozenset(
    {"context_length_exceeded", "model_context_window_exceeded", "exceed_context_size_error"}
)
_NUMBER: Final = r"(?<![\w.-])(\d{1,3}(?:,\d{3})+|\d{3,})(?!\w|\.\d)"
_NUMBERS: Final = re.compile(_NUMBER)
#: Where a message names the window beside other numbers ("... maximum context length is 8192 tokens. However, you
#: requested 9000 tokens (1000 in the messages, 8000 in the completion)").
_WINDOW: Final = re.compile(rf"(?:maximum|limit|window|size)\D{{0,40}}?{_NUMBER}", re.IGNORECASE)
_DELAY: Final = re.compile(r"\d{1,6}(?:\.\d{1,9})?s")
_QUOTA: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """``status`` and ``kind`` as the client gets them. ``message`` is safe to show.

    ``transient`` says that the same request may succeed later or elsewhere without being changed; ``overflow`` that the
    context is too large (``tokens`` of ``limit``, 0 where not told); ``seconds`` is the wait that was asked for, None
    without one; ``final`` that the client must not try again by itself. ``upstream`` is the status that came.
    """

    status: int
    kind: str
    message: str
    transient: bool = False
    overflow: bool = False
    tokens: int = 0
    limit: int = 0
    seconds: int | None = None
    final: bool = False
    upstream: int = 0

    def body(self) -> dict[str, Any]:
        """The error as the Messages API writes it."""
        return {"type": "error", "error": {"type": self.kind, "message": self.message}}

    def fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields that tell the client when to try again."""
        found = []
        if self.seconds is not None:
            found.append((b"retry-after", b"%d" % self.seconds))
        if self.final:
            found.append((b"x-should-retry", b"false"))
        return found


def too_long(tokens: int, limit: int) -> str:
    """The wording on which the client compacts (client facts 0.7; matched exactly)."""
    return f"prompt is too long: {tokens} tokens > {limit} maximum"


def overflow(tokens: int, limit: int) -> Failure:
    """A context that does not fit, even if the numbers say otherwise. Those of an upstream become the client's in
    `MessageWriter.fail`."""
    said = too_long(max(tokens, limit + 1), limit)
    return Failure(400, "invalid_request_error", said, overflow=True, tokens=tokens, limit=limit, upstream=400)


def failure_of(
    status: int,
    fields: Mapping[str, str],
    body: bytes,
    *,
    provider: str,
    secrets: Iterable[str] = (),
    now: float = 0.0,
    limit: int = 0,
    tokens: int = 0,
) -> Failure:
    """A foreign answer that is no success. ``fields`` are lower-cased; ``now`` (Unix seconds) turns a date of
    retry-after into seconds; ``limit`` and ``tokens`` are the model's window and the prompt's size, for an overflow
    whose message does not tell. Status 200 is for errors inside a stream."""
    error = _error(shapes.parse(body))
    code, message = _code(error), shapes.text(error.get("message")) if error else ""
    if not error:
        message = _plain(body)
    message = _safe(message, secrets)
    said = f"{provider}: {message}" if message else f"{provider} answered with status {status}"
    seconds = _seconds(fields, now)
    if seconds is None:
        seconds = _retry_delay(error)
    if _is_overflow(status, code, message):
        tokens, limit = _sizes(error, message, tokens, limit)
        return replace(overflow(tokens, limit), upstream=status)
    if code in _QUOTA or status == 402:
        return Failure(429, "rate_limit_error", said, seconds=seconds, final=True, upstream=status)
    if status == 429 or code in ("rate_limit_exceeded", "RESOURCE_EXHAUSTED"):
        return Failure(429, "rate_limit_error", said, transient=True, seconds=seconds, upstream=status)
    if status in (408, 504):
        return Failure(504, "timeout_error", said, transient=True, seconds=seconds, upstream=status)
    if status in (503, 529) or code in ("overloaded_error", "server_is_overloaded", "UNAVAILABLE"):
        return Failure(529, "overloaded_error", said, transient=True, seconds=seconds, upstream=status)
    if status >= 500 or status < 400:
        # Inside a stream only the code tells.
        kind = shapes.text(error.get("type")) if error and status < 400 else ""
        known = kind if kind in _KINDS.values() else "api_error"
        return Failure(500 if status < 400 else status, known, said, transient=True, seconds=seconds, upstream=status)
    return Failure(
        _CLIENT_STATUS.get(status, status), _KINDS.get(status, "invalid_request_error"), said, upstream=status
    )


#: 413 would end the client at once; 422 is nothing that it knows.
_CLIENT_STATUS: Final = {413: 400, 422: 400}


def _error(value: Any) -> dict[str, Any]:
    """The object that describes the error, whichever way the server wraps it."""
    if isinstance(value, list):  # Gemini streams errors as a list of one
        value = value[0] if value else None
    found = shapes.mapping(value)
    inner = found.get("error")
    if isinstance(inner, str):
        return {"message": inner}
    if isinstance(inner, dict):
        return inner
    response = shapes.mapping(shapes.mapping(found.get("response")).get("error"))
    if response:
        return response
    if isinstance(found.get("detail"), str):
        return {"message": found["detail"]}
    return found if isinstance(found.get("message"), str) else {}


def _code(error: dict[str, Any]) -> str:
    return shapes.text(error.get("code")) or shapes.text(error.get("status")) or shapes.text(error.get("type"))


def _is_overflow(status: int, code: str, message: str) -> bool:
    if code in _OVERFLOW_CODES:
        return True
    return (status in (400, 413, 422) or status < 400) and bool(_OVERFLOW.search(message))


def _sizes(error: dict[str, Any], message: str, tokens: int, limit: int) -> tuple[int, int]:
    """(the prompt's size, the window's) as the error tells them, else as they are known here."""
    if shapes.count(error.get("n_ctx")):  # llama.cpp
        return shapes.count(error.get("n_prompt_tokens")), shapes.count(error["n_ctx"])
    found = sorted(int(number.replace(",", "")) for number in _NUMBERS.findall(message))
    if len(found) < 2:
        return tokens, limit or (found[0] if found else 0)
    named = _WINDOW.search(message)
    return found[-1], int(named[1].replace(",", "")) if named else found[0]


def _plain(body: bytes) -> str:
    text = body[:4096].decode("utf-8", "replace").strip()
    if "<" in text[:200] and ">" in text:  # an HTML page says nothing to anybody
        title = re.search(r"<title[^>]*>([^<]{1,200})", text, re.IGNORECASE)
        return title[1].strip() if title else ""
    return text


def _safe(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if len(secret) >= 6:
            text = text.replace(secret, "[key]")
            # Providers repeat a key with its middle starred out.
            text = re.sub(re.escape(secret[:3]) + r"[\w-]*\*{3,}[\w*-]*", "[key]", text)
    text = redact_text(" ".join(text.split()))[0]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "\u2026"


def _retry_delay(error: dict[str, Any]) -> int | None:
    """The wait that Google's APIs ask for inside the error (google.rpc.RetryInfo)."""
    for detail in map(shapes.mapping, shapes.sequence(error.get("details"))):
        delay = shapes.text(detail.get("retryDelay"))
        if shapes.text(detail.get("@type")).endswith("RetryInfo") and _DELAY.fullmatch(delay):
            return math.ceil(float(delay[:-1]))
    return None


def _seconds(fields: Mapping[str, str], now: float) -> int | None:
    given = fields.get("retry-after", "").strip()
    if not given:
        return None
    try:
        wait = float(given)
    except ValueError:
        try:
            at = email.utils.parsedate_to_datetime(given)
        except (ValueError, TypeError):
            return None
        wait = at.timestamp() - now
    return max(0, math.ceil(wait)) if math.isfinite(wait) else None
