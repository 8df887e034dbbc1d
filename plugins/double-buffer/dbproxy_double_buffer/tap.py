"""One answer on its way to the client, as the buffer sees it: what it used, as soon as it says so.

Plain functions beside the path of the bytes. Invariant: of an ordinary answer only its few telling events are read;
the answer to a compact request is read whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from dbproxy.api import Accumulator, rate_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dbproxy.api import Exchange, HeldBody, Outcome, RateLimit, ResponseHead, SseEvent

    #: Told when an answer has begun (False, None), and when it is over (True, with its outcome).
    Look: TypeAlias = Callable[["Tap", bool, Outcome | None], object]

_TELLING: Final = frozenset({b"message_start", b"message_delta", b"message_stop", b"error"})
#: So much of an answer that is no stream is kept (bytes).
_LARGEST: Final = 16 << 20


class Tap:
    """One answer: what it used, as soon as it says so."""

    def __init__(
        self, look: Look, exchange: Exchange, head: ResponseHead, held: HeldBody | None, *, compact: bool
    ) -> None:
        self.exchange = exchange
        self.head = head
        self.held = held
        self.answer = Accumulator()
        self._look = look
        self._body = bytearray()
        self._all = compact

    @property
    def limits(self) -> Iterable[RateLimit]:
        return rate_limits(self.head.fields)

    # Plain functions: thousands of events pass here, and few of them say something.

    def event(self, event: SseEvent) -> None:
        if self._all or event.name in _TELLING:
            self.answer.feed(event.name, event.data)
            if event.name == b"message_start":
                self._look(self, False, None)

    def body(self, data: bytes) -> None:
        if len(self._body) < _LARGEST:
            self._body += data

    def end(self, outcome: Outcome) -> None:
        if self._body:
            self.answer = Accumulator.from_body(bytes(self._body))
            if self.answer.complete:
                self._look(self, False, None)
        self._look(self, True, outcome)
