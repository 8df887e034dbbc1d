"""The token meter, fed as the proxy feeds it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from dbproxy_token_meter import BODY_LIMIT, MODEL_LIMIT, NAME, TokenMeter

from dbproxy.api import Exchange, Fields, Outcome, RequestHead, ResponseHead, SseEvent, Via, encode_event

HEAD = ResponseHead(200, b"OK", b"HTTP/1.1", Fields.of([(b"content-type", b"text/event-stream")]))
USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 300,
    "cache_creation_input_tokens": 50,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
    "output_tokens": 1,
}


def exchange(path: str = "/v1/messages?beta=true", method: bytes = b"POST") -> Exchange:
    head = RequestHead(method, path.encode(), b"HTTP/1.1", Fields.of([]))
    return Exchange("x", 1, Via.TUNNEL, "https", "api.anthropic.com", 443, path, head)


def event(kind: str, **facts: object) -> SseEvent:
    data = json.dumps({"type": kind, **facts}).encode()
    return SseEvent(encode_event(kind.encode(), data), kind.encode(), data)


def message(model: str = "model-a", **facts: object) -> dict[str, object]:
    return {"id": "m", "type": "message", "role": "assistant", "model": model, "content": [], "usage": USAGE, **facts}


def stream(model: str = "model-a") -> list[SseEvent]:
    return [
        event("message_start", message=message(model)),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "hello"}),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 25}),
        event("message_stop"),
    ]


def samples(meter: TokenMeter) -> dict[tuple[str, ...], float]:
    return {(sample.name, *sample.labels.values()): sample.value for sample in meter.metrics()}


def feed(meter: TokenMeter, events: list[SseEvent], outcome: Outcome = Outcome.OK) -> Exchange:
    watched = exchange()
    tap = meter.stream_tap(watched, HEAD)
    assert tap is not None
    for each in events:
        tap.event(each)
    tap.end(outcome)
    return watched


def test_streamed_answer() -> None:
    meter = TokenMeter()
    watched = feed(meter, stream())
    feed(meter, stream())
    assert samples(meter) == {
        ("dbproxy_tokens_total", "model-a", "input"): 20,
        ("dbproxy_tokens_total", "model-a", "output"): 50,
        ("dbproxy_tokens_total", "model-a", "cache_read"): 600,
        ("dbproxy_tokens_total", "model-a", "cache_write"): 100,
        ("dbproxy_answers_total", "model-a", "complete"): 2,
    }
    assert watched.attributes[NAME] == {
        "model": "model-a",
        "input": 10,
        "output": 25,
        "cache_read": 300,
        "cache_write": 50,
        "context": 385,
        "stop_reason": "end_turn",
        "result": "complete",
    }
    assert meter.health() == {"answers": 2, "tokens": 770}


def test_json_answer_in_pieces() -> None:
    meter = TokenMeter()
    watched = exchange()
    tap = meter.stream_tap(watched, HEAD)
    body = json.dumps(message(stop_reason="end_turn")).encode()
    for at in range(0, len(body), 10):
        tap.body(body[at : at + 10])
    tap.end(Outcome.OK)
    assert watched.attributes[NAME]["result"] == "complete"
    assert samples(meter)["dbproxy_tokens_total", "model-a", "cache_read"] == 300


@pytest.mark.parametrize(
    ("events", "outcome"),
    [(stream()[:-1], Outcome.OK), (stream()[:3], Outcome.UPSTREAM_CUT), (stream(), Outcome.CLIENT_GONE)],
)
def test_cut_answers_count_what_was_reported(events: list[SseEvent], outcome: Outcome) -> None:
    meter = TokenMeter()
    feed(meter, events, outcome)
    assert samples(meter)["dbproxy_answers_total", "model-a", "cut"] == 1
    assert samples(meter)["dbproxy_tokens_total", "model-a", "input"] == 10


def test_errors() -> None:
    meter = TokenMeter()
    feed(meter, [*stream()[:3], event("error", error={"type": "overloaded_error", "message": "x"})], Outcome.OK)
    watched = exchange()
    tap = meter.stream_tap(watched, HEAD)
    tap.body(b'{"type":"error","error":{"type":"rate_limit_error","message":"secret"}}')
    tap.end(Outcome.OK)
    assert samples(meter)["dbproxy_answers_total", "model-a", "error"] == 1
    assert samples(meter)["dbproxy_answers_total", "unknown", "error"] == 1
    assert "secret" not in str(watched.attributes)


def test_compaction_iterations_are_summed() -> None:
    """The figures on top leave the compaction out; the iterations have both."""
    usage = {
        "input_tokens": 5,
        "output_tokens": 6,
        "iterations": [
            {"type": "compaction", "input_tokens": 1000, "output_tokens": 100, "model": "model-b"},
            {"type": "message", "input_tokens": 5, "output_tokens": 6},
        ],
    }
    meter = TokenMeter()
    feed(meter, [event("message_start", message=message(usage=usage)), event("message_stop")])
    counts = samples(meter)
    assert counts["dbproxy_tokens_total", "model-b", "input"] == 1000
    assert counts["dbproxy_tokens_total", "model-a", "output"] == 6


@pytest.mark.parametrize(
    ("path", "method"),
    [("/v1/messages/count_tokens", b"POST"), ("/v1/messages", b"GET"), ("/", b"POST"), ("/v1/messages/", b"POST")],
)
def test_other_requests_are_not_watched(path: str, method: bytes) -> None:
    assert TokenMeter().stream_tap(exchange(path, method), HEAD) is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"type":"message"}', b'"' + b"x" * BODY_LIMIT])
def test_bodies_that_are_no_message(body: bytes) -> None:
    meter = TokenMeter()
    watched = exchange()
    tap = meter.stream_tap(watched, HEAD)
    tap.body(body)
    tap.body(b"")
    tap.end(Outcome.OK)
    assert samples(meter) == {}
    assert watched.attributes == {}


def test_lost_json_is_not_guessed() -> None:
    meter = TokenMeter()
    tap = meter.stream_tap(exchange(), HEAD)
    tap.body(json.dumps(message()).encode())
    tap.lost(5)
    tap.end(Outcome.OK)
    assert samples(meter) == {}


def test_labels_are_bounded() -> None:
    meter = TokenMeter()
    for number in range(MODEL_LIMIT + 10):
        feed(meter, stream(f"model-{number}"))
    feed(meter, stream("model-0"))
    feed(meter, stream("x" * 5000))
    models = {key[1] for key in samples(meter)}
    assert len(models) == MODEL_LIMIT + 1
    assert samples(meter)["dbproxy_answers_total", "other", "complete"] == 11
    assert samples(meter)["dbproxy_answers_total", "model-0", "complete"] == 2
    meter = TokenMeter()
    feed(meter, stream("x" * 5000))
    feed(meter, stream("x" * 5000))
    assert samples(meter)["dbproxy_answers_total", "x" * 100, "complete"] == 2


def test_no_text_is_kept() -> None:
    meter = TokenMeter()
    watched = feed(meter, stream())
    assert "hello" not in str(vars(meter)) + str(watched.attributes)
    assert SimpleNamespace(**watched.attributes[NAME]).model == "model-a"
