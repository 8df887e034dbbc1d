"""Answers that are made here: a message thread refused, a count of tokens, models that exist by a rule alone.

Pure; imports nothing of dbproxy but its public values. Sources: API facts 2.6 (threads), 1.9 (count_tokens, models).
Invariant: each has the shape of the Messages API's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from dbproxy.api import Fields, LocalResponse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbproxy.api import Target
    from dbproxy.api.codecs import Capabilities

_JSON: Final = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
#: The client takes either, the code or the words, as the sign to send the whole request and to leave threads alone.
_UNSUPPORTED: Final = "thread_unsupported_request"
_REJECTED: Final = "capability_rejected: beta_header:message-threads-2026-08-12"
#: What stands for a date that nobody knows.
_EPOCH: Final = "1970-01-01T00:00:00Z"


def thread_refused(target: Target) -> LocalResponse:
    """Have the client send its whole history: only the server that kept a thread knows the rest of it."""
    message = f"{_REJECTED}: this request is answered by {target}, which keeps no message threads"
    details = {"error_code": _UNSUPPORTED}
    error = {"type": "invalid_request_error", "message": message, "details": details}
    return _answer(400, {"type": "error", "error": error}, (b"x-dbproxy-error", b"1"))


def token_count(tokens: int, scale: float) -> LocalResponse:
    """``count_tokens`` for another model, in the client's measure."""
    return _answer(200, {"input_tokens": max(1, round(tokens * scale))})


@dataclass(frozen=True, slots=True)
class Alias:
    """A model that exists by a rule: the client's name for it, who answers, and what he can do."""

    name: str
    target: Target
    able: Capabilities

    def to_json(self) -> dict[str, Any]:
        """As the Models API lists it."""
        about: dict[str, Any] = {
            "type": "model",
            "id": self.name,
            "display_name": f"{self.target.model} ({self.target.provider})",
            "created_at": _EPOCH,
            "lifecycle": "active",
        }
        if self.able.context:
            about["max_input_tokens"] = self.able.context
        if self.able.output:
            about["max_tokens"] = self.able.output
        return about


def one_model(alias: Alias) -> LocalResponse:
    """``GET /v1/models/ID``."""
    return _answer(200, alias.to_json())


def more_models(query: str, body: bytes, aliases: Sequence[Alias]) -> bytes | None:
    """The upstream's list with ``aliases`` behind it; None where they do not belong: on another page than the last, or
    in an answer that is no list."""
    if "before_id" in parse_qs(query):
        return None
    try:
        listed = json.loads(body)
    except ValueError:
        return None
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list) or listed.get("has_more"):
        return None
    known = {model.get("id") for model in listed["data"] if isinstance(model, dict)}
    added = [alias.to_json() for alias in aliases if alias.name not in known]
    if not added:
        return None
    data = [*listed["data"], *added]
    ends = {"first_id": data[0].get("id") if isinstance(data[0], dict) else None, "last_id": added[-1]["id"]}
    return json.dumps({**listed, "data": data, **ends}).encode()


def as_it_came(status: int, fields: Fields, body: bytes) -> LocalResponse:
    """An upstream's answer that was read here, its coding undone."""
    gone = frozenset({b"content-length", b"content-encoding", b"transfer-encoding", b"connection", b"keep-alive"})
    return LocalResponse(status, fields.without(gone), body)


def _answer(status: int, value: Mapping[str, Any], *extra: tuple[bytes, bytes]) -> LocalResponse:
    return LocalResponse(status, Fields.of([*_JSON, *extra]), json.dumps(value).encode())
