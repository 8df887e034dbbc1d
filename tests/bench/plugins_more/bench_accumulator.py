"""Every event of every stream through the full accumulator: the price of keeping whole messages."""

from __future__ import annotations

from dbproxy.api import Accumulator, Exchange, Outcome, ResponseHead, SseEvent, hookimpl


class Whole:
    def __init__(self) -> None:
        self.answer = Accumulator()

    def event(self, event: SseEvent) -> None:
        self.answer.feed(event.name, event.data)

    def end(self, outcome: Outcome) -> None:
        self.answer = Accumulator()


@hookimpl
def stream_tap(exchange: Exchange, head: ResponseHead) -> Whole:
    return Whole()
