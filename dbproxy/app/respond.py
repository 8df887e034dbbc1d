"""Answers that dbproxy makes itself, in the Messages API's error shape.

Owns statuses, wording and the mark ``x-dbproxy-error``. Invariant: only statuses from which a client recovers leave
here on a failure of ours. The real client gives up at once on 403 and 413 and may start a login on 401 (client facts
section 5), so those are used only where a person must change something.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from dbproxy.exchange import Fields, LocalResponse, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.errors import UpstreamError

#: HTTP status -> error type, as the Messages API pairs them.
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    421: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    501: "invalid_request_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def reason(status: int) -> bytes:
    """The usual reason phrase of a status."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def json_response(status: int, value: object, extra: Iterable[tuple[bytes, bytes]] = ()) -> LocalResponse:
    """A JSON answer that no cache may keep."""
    pairs = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *extra]
    return LocalResponse(status, Fields.of(pairs), json.dumps(value).encode() + b"\n")


def text_response(status: int, text: str, content_type: bytes = b"text/plain; charset=utf-8") -> LocalResponse:
    """A text answer that no cache may keep."""
    return LocalResponse(
        status, Fields.of([(b"content-type", content_type), (b"cache-control", b"no-store")]), text.encode()
    )


def error_response(
    status: int, message: str, *, kind: str = "", extra: Iterable[tuple[bytes, bytes]] = ()
) -> LocalResponse:
    """An error in the Messages API's shape; ``message`` says what to do."""
    body = {
        "type": "error",
        "error": {"type": kind or _KINDS.get(status, "api_error"), "message": f"dbproxy: {message}"},
    }
    return json_response(status, body, [(b"x-dbproxy-error", b"1"), *extra])


def upstream_failed(error: UpstreamError) -> LocalResponse:
    """The answer when the upstream could not be reached or broke off before its answer: always one that is retried."""
    status = 504 if error.kind == "timeout" else 502
    return error_response(status, str(error))


def response_head(response: LocalResponse, *, close: bool, chunked: bool = False) -> ResponseHead:
    """The head of a local answer, with its framing."""
    fields = response.fields
    if chunked:
        fields = fields.plus(b"transfer-encoding", b"chunked")
    elif response.stream is None and response.status not in (204, 304):
        fields = fields.replaced(b"content-length", b"%d" % len(response.body))
    if close:
        fields = fields.plus(b"connection", b"close")
    return ResponseHead(response.status, reason(response.status), b"HTTP/1.1", fields)
