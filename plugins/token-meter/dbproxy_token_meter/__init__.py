"""Counts tokens by model and kind: a tap on every Messages answer, samples for /metrics, usage for the log line.

Imports `dbproxy.api` only. Invariants: memory does not grow with the number of answers, nor labels without bound; the
text of a message is never kept.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dbproxy.api import Accumulator, Exchange, Outcome, ResponseHead, Sample, SseEvent, Usage, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "token-meter"

#: Different models that get labels of their own.
MODEL_LIMIT = 64

#: The longest JSON answer that is read (bytes). Real ones stay far below; count_tokens answers are a line.
BODY_LIMIT = 8 * 1024 * 1024

#: Kinds of answers that can say what they used; no other is copied.
_READ = frozenset({b"application/json", b"text/event-stream"})

#: Events that carry nothing that is counted here; by far the most, and not worth parsing.
_SKIPPED = frozenset({b"content_block_delta", b"content_block_start", b"content_block_stop", b"ping"})


class TokenMeter:
    """The plugin: the counts of this process."""

    dbproxy_api = (1, 0)

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._answers: Counter[tuple[str, str]] = Counter()

    @hookimpl
    def stream_tap(self, exchange: Exchange, head: ResponseHead) -> AnswerTap | None:
        if exchange.path.partition("?")[0] != "/v1/messages" or exchange.request.method != b"POST":
            return None
        kind = head.fields.get(b"content-type")
        if kind is not None and kind.partition(b";")[0].strip().lower() not in _READ:
            return None
        return AnswerTap(self, exchange)

    @hookimpl
    def metrics(self) -> Iterator[Sample]:
        for (model, kind), count in self._tokens.items():
            yield Sample(
                "dbproxy_tokens_total", count, {"model": model, "kind": kind}, help="Tokens of Messages answers."
            )
        for (model, result), count in self._answers.items():
            yield Sample(
                "dbproxy_answers_total", count, {"model": model, "result": result}, help="Messages answers by result."
            )

    @hookimpl
    def health(self) -> dict[str, object]:
        return {"answers": self._answers.total(), "tokens": self._tokens.total()}

    def count(self, exchange: Exchange, answer: Accumulator, outcome: Outcome) -> None:
        """Add one answer, and leave its usage at the exchange."""
        if answer.model is None and answer.error is None:
            return
        usage, main = answer.usage, answer.model or "unknown"
        for part in usage.billed():
            model = self._label(part.model or main)
            for kind, tokens in _kinds(part).items():
                if tokens:
                    self._tokens[model, kind] += tokens
        if answer.error is not None:
            result = "error"
        else:
            result = "complete" if answer.complete and outcome in (Outcome.OK, Outcome.LOCAL) else "cut"
        self._answers[self._label(main), result] += 1
        exchange.attributes[NAME] = {
            "model": main,
            **_kinds(usage),
            "context": usage.context_tokens,
            "stop_reason": answer.stop_reason,
            "result": result,
        }

    def _label(self, model: str) -> str:
        model = model[:100]
        if model not in self._models:
            if len(self._models) >= MODEL_LIMIT:
                return "other"
            self._models.add(model)
        return model


class AnswerTap:
    """One answer: only the events that carry usage are read of a stream, the whole of a JSON body."""

    def __init__(self, meter: TokenMeter, exchange: Exchange) -> None:
        self._meter = meter
        self._exchange = exchange
        self._answer = Accumulator()
        self._body: bytearray | None = bytearray()

    def event(self, event: SseEvent) -> None:
        if event.name not in _SKIPPED:
            self._answer.feed(event.name, event.data)

    def body(self, data: bytes) -> None:
        if self._body is not None:
            self._body += data
            if len(self._body) > BODY_LIMIT:
                self._body = None

    def lost(self, count: int) -> None:
        self._body = None

    def end(self, outcome: Outcome) -> None:
        answer = Accumulator.from_body(bytes(self._body)) if self._body else self._answer
        self._meter.count(self._exchange, answer, outcome)


def _kinds(usage: Usage) -> dict[str, int]:
    return {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "cache_read": usage.cache_read,
        "cache_write": usage.cache_write,
    }
