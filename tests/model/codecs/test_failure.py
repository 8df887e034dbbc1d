"""What went wrong elsewhere, told so that the client does the right thing and learns no secret."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.codecs.failure import Failure, failure_of, overflow, too_long

NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
KEY = "sk-" + "proj-" + "aB3x" * 10  # in pieces, so that no scanner takes it for a leak


def _failed(status, body, fields=None, **more):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return failure_of(status, fields or {}, data, provider="openai", now=NOW, **more)


def _error(message="no", **fields):
    return {"error": {"message": message} | fields}


# ---- statuses


@pytest.mark.parametrize(
    ("status", "told", "kind", "transient"),
    [
        (400, 400, "invalid_request_error", False),
        (401, 401, "authentication_error", False),
        (403, 403, "permission_error", False),
        (404, 404, "not_found_error", False),
        (408, 504, "timeout_error", True),
        (413, 400, "invalid_request_error", False),
        (422, 400, "invalid_request_error", False),
        (429, 429, "rate_limit_error", True),
        (500, 500, "api_error", True),
        (502, 502, "api_error", True),
        (503, 529, "overloaded_error", True),
        (504, 504, "timeout_error", True),
        (529, 529, "overloaded_error", True),
    ],
)
def test_statuses_in_the_client_s_terms(status, told, kind, transient):
    failure = _failed(status, _error())
    assert (failure.status, failure.kind, failure.transient) == (told, kind, transient)
    assert failure.upstream == status
    assert failure.message == "openai: no"
    assert failure.body() == {"type": "error", "error": {"type": kind, "message": "openai: no"}}


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (_error(code="rate_limit_exceeded"), "rate_limit_error", 429),
        (_error(status="RESOURCE_EXHAUSTED"), "rate_limit_error", 429),
        (_error(code="server_is_overloaded"), "overloaded_error", 529),
        (_error(status="UNAVAILABLE"), "overloaded_error", 529),
        (_error(type="overloaded_error"), "overloaded_error", 529),
        (_error(type="invalid_request_error"), "invalid_request_error", 500),
        (_error(), "api_error", 500),
    ],
)
def test_case_67_inside_a_stream_only_the_words_tell(body, kind, status):
    failure = _failed(200, body)
    assert (failure.kind, failure.status) == (kind, status)


@pytest.mark.parametrize(
    "body",
    [
        _error("why"),
        {"error": "why"},
        {"message": "why"},
        {"detail": "why"},
        [{"error": {"message": "why"}}],
        {"type": "response.failed", "response": {"error": {"message": "why"}}},
        b"why",
        b"<html><head><title> why </title></head></html>",
    ],
)
def test_the_message_is_found_however_it_is_wrapped(body):
    assert _failed(500, body).message == "openai: why"


@pytest.mark.parametrize("body", [b"", b" \n", b"<html><body>long</body></html>"])
def test_case_81_a_page_or_nothing_is_told_as_the_status_alone(body):
    failure = _failed(502, body)
    assert failure.message == "openai answered with status 502"
    assert failure.kind == "api_error"


def test_case_81_a_message_without_end_is_cut():
    assert len(_failed(400, _error("x" * 10_000)).message) < 700


# ---- when to try again


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [
        ("1.5", 2),
        ("30", 30),
        ("0", 0),
        ("-3", 0),
        ("Fri, 15 Jan 2027 08:00:07 GMT", 7),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        ("", None),
    ],
)
def test_case_79_the_wait_is_whole_seconds(given_, seconds):
    failure = _failed(429, _error(), {"retry-after": given_})
    assert failure.seconds == seconds
    assert failure.fields() == ([] if seconds is None else [(b"retry-after", b"%d" % seconds)])


@pytest.mark.parametrize(("delay", "seconds"), [("7.2s", 8), ("0s", 0), ("soon", None), ("7", None), (7, None)])
def test_the_wait_that_google_asks_for_stands_in_the_error(delay, seconds):
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}, {"@type": "other"}]
    failure = _failed(429, _error(status="RESOURCE_EXHAUSTED", details=details))
    assert (failure.kind, failure.seconds) == ("rate_limit_error", seconds)
    assert _failed(429, _error(details=details), {"retry-after": "3"}).seconds == 3, "the header counts first"


@pytest.mark.parametrize(
    ("status", "body"),
    [(429, _error(code="insufficient_quota")), (402, _error("pay")), (429, _error(type="insufficient_quota"))],
)
def test_case_80_an_empty_account_is_not_tried_again(status, body):
    failure = _failed(status, body)
    assert (failure.status, failure.kind, failure.final, failure.transient) == (429, "rate_limit_error", True, False)
    assert (b"x-should-retry", b"false") in failure.fields()


# ---- a context that overflows

OPENAI = "This model's maximum context length is 128000 tokens. However, your messages resulted in 130512 tokens."
OLD = (
    "This model's maximum context length is 8,192 tokens. However, you requested 9000 tokens (1000 in the messages,"
    " 8000 in the completion). Please reduce the length of the messages or completion."
)
GEMINI = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
MISTRAL = "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length"
LLAMA = "the request exceeds the available context size, try increasing it"


@pytest.mark.parametrize(
    ("status", "body", "tokens", "limit"),
    [
        (400, _error(OPENAI, code="context_length_exceeded"), 130_512, 128_000),
        (400, _error(f"gpt-4-1106-preview: {OPENAI}"), 130_512, 128_000),
        (400, _error(OLD, code=400), 9000, 8192),
        (400, _error(GEMINI, status="INVALID_ARGUMENT"), 1_200_000, 1_048_576),
        (422, _error(MISTRAL), 40_000, 32_768),
        (400, _error("prompt is too long: 210000 tokens > 200000 maximum"), 210_000, 200_000),
        (400, _error(LLAMA, type="exceed_context_size_error", n_prompt_tokens=5000, n_ctx=4096), 5000, 4096),
        (400, _error(LLAMA), 70_000, 64_000),
        (413, _error("Input is too long for this model"), 70_000, 64_000),
        (200, _error("Your input exceeds the context window of this model."), 70_000, 64_000),
        (200, {"response": {"error": {"code": "context_length_exceeded", "message": ""}}}, 70_000, 64_000),
    ],
)
def test_case_78_a_context_that_overflows_is_told_in_the_words_on_which_the_client_compacts(
    status, body, tokens, limit
):
    failure = _failed(status, body, tokens=70_000, limit=64_000)
    assert failure.overflow
    assert (failure.status, failure.kind, failure.transient) == (400, "invalid_request_error", False)
    assert failure.message == f"prompt is too long: {tokens} tokens > {limit} maximum"
    assert failure.upstream == status


@pytest.mark.parametrize(
    ("status", "body"),
    [
        # Not the prompt is too long, but a name in it: compacting would not help.
        (
            400,
            _error("Invalid 'tools[0].function.name': string too long. Expected 64.", code="string_above_max_length"),
        ),
        (429, _error("Request too large: limit 30000 tokens per minute, requested 35000", code="rate_limit_exceeded")),
        (500, _error("the context length could not be determined")),
        (400, _error("max_tokens is too large: 64000. This model supports at most 16384 completion tokens")),
    ],
)
def test_what_only_sounds_like_it_is_no_overflow(status, body):
    assert not _failed(status, body).overflow


def test_an_overflow_is_more_than_the_limit_even_if_the_numbers_say_otherwise():
    assert overflow(10, 100).message == too_long(101, 100)


# ---- secrets


@pytest.mark.parametrize("secret", ["local-key-123456", KEY])
def test_case_82_a_key_that_is_echoed_is_taken_out(secret):
    failure = _failed(401, _error(f"Incorrect API key provided: {secret}."), secrets=[secret])
    assert secret not in failure.message
    assert "Incorrect API key" in failure.message


def test_case_82_a_key_with_stars_in_it_is_taken_out_too():
    shown = KEY[:8] + "*" * 20 + KEY[-4:]
    message = _failed(401, _error(f"Incorrect API key provided: {shown}."), secrets=[KEY]).message
    assert KEY[-4:] + "." not in message
    assert KEY[:8] not in message


def test_case_82_a_key_is_known_by_its_form_where_nobody_names_it():
    assert KEY not in _failed(401, _error(f"bad key {KEY}")).message


def test_a_secret_that_is_too_short_to_be_one_blanks_nothing():
    assert _failed(400, _error("a banana"), secrets=["a", ""]).message == "openai: a banana"


@given(
    st.integers(100, 599),
    st.dictionaries(st.sampled_from(["retry-after", "x"]), st.text()),
    st.binary()
    | st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: (
            st.dictionaries(
                st.sampled_from(["error", "message", "code", "type", "status", "response", "detail", "n_ctx"]), inner
            )
            | st.lists(inner, max_size=2)
        ),
    ).map(lambda value: json.dumps(value).encode()),
)
def test_nothing_raises_and_everything_is_an_error_of_the_api(status, fields, body):
    failure = failure_of(status, fields, body, provider="p", secrets=["secret-1"], now=NOW)
    assert isinstance(failure, Failure)
    assert failure.status >= 400
    assert failure.kind.endswith("_error")
    assert failure.message
    assert json.dumps(failure.body())
    assert failure.seconds is None or failure.seconds >= 0
