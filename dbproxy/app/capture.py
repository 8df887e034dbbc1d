"""What is kept of each exchange, as seen from the event loop: references to the bytes that pass, and nothing else.

A `Recording` collects the pieces of a request's body while it goes up and of its answer while it comes down. It never
waits, parses or copies; the analyst's thread does all of that when the request is complete and again when the exchange
is over. Must never do I/O. Invariants: what is held for the thread is bounded, and beyond the bound transcripts are
lost, counted, while facts go on; nothing of a failure here reaches a request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from dbproxy.exchange import Via
from dbproxy.hooks.metrics import Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.app.analyst import Analyst
    from dbproxy.app.pace import Pace
    from dbproxy.config import Settings
    from dbproxy.exchange import Exchange, Fields, LocalResponse, SendBytes
    from dbproxy.model.link import Link
    from dbproxy.scope import Scope
    from dbproxy.wire.sse import SseEvent

#: Paths whose bodies are kept; of every other request only the facts are.
MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
_WHOLE = frozenset({MESSAGES, COUNT_TOKENS})
_KEY = "dbproxy.recording"
#: What recordings and the analyst's queue may hold together (bytes).
HELD_LIMIT = 256 * 1024 * 1024
#: The longest answer of which more than the facts are kept (bytes).
ANSWER_LIMIT = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Recording:
    """One exchange on its way. ``up`` are pieces of the request's payload, ``down`` those of the answer, each with the
    loop's time at which it was written; both lack chunk framing, and keep their content coding."""

    capture: Capture
    exchange: Exchange
    scope: Scope | None
    whole: bool  # bodies are looked at
    keep: str  # what is stored: ``on``, ``facts`` or ``off``
    streams: bool  # keep arrival times
    redacts: bool  # take credentials out of bodies, too
    started: float  # Unix seconds
    pace: Pace
    up: list[bytes] = field(default_factory=list)
    down: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    held: int = 0
    shed: bool = False  # more than could be held: the transcript is lost
    complete: bool = False  # the whole body was there before the policies were asked
    opened: bool = False
    purpose: str = ""  # of a call that a plugin made: it is no turn of a conversation
    on_behalf: Exchange | None = None  # the exchange for whose sake it was made
    link: Link | None = None
    _linked: trio.Event | None = None

    @property
    def kept_whole(self) -> bool:
        """Is the request's body here, all of it?"""
        return self.whole and not self.shed and (self.opened or self.complete)

    def uploaded(self, data: bytes) -> None:
        """Payload of the request, as it went up."""
        self.pace.beats += 1
        if data and self.whole:
            self._hold(self.up, data)

    def request_read(self) -> None:
        """The request is complete: let it be linked. Further calls do nothing."""
        if not self.opened:
            self.opened = True
            self.pace.beats += 1
            self.capture.analyst.open(self)

    def data(self, chunk: bytes) -> None:
        """Payload of the answer, as the upstream sent it."""
        self.pace.beats += 1
        if self.whole:
            if self.streams:
                self.times.append(trio.current_time())
            self._hold(self.down, chunk)

    def events(self, events: list[SseEvent], size: int) -> None:
        """The same where filters stand in the stream: the events before they changed them."""
        self.data(b"".join([event.raw for event in events]))

    def finish(self) -> None:
        """The exchange has its outcome."""
        self.pace.beats += 1
        self.capture.under_way.pop(self.exchange.id, None)
        self.request_read()
        self.capture.analyst.close(self)

    def _hold(self, pieces: list[bytes], data: bytes) -> None:
        size = len(data)
        if self.shed or self.held + size > ANSWER_LIMIT or not self.capture.hold(size):
            self.lose()
        else:
            pieces.append(data)
            self.held += size

    def lose(self) -> None:
        """Give up the transcript: more than can be held."""
        if not self.shed:
            self.shed = True
            self.capture.shed += 1

    def local(self, response: LocalResponse) -> LocalResponse:
        """An answer of our own, seen like one of the upstream."""
        if not self.whole:
            return response
        stream = response.stream
        if stream is None:
            self.data(response.body)
            return response

        async def tee(send: SendBytes) -> None:
            async def seen(data: bytes) -> None:
                await send(data)
                self.data(data)

            await stream(seen)

        return replace(response, stream=tee)

    def released(self) -> None:
        """The analyst has done with the bytes. On the event loop."""
        self.capture.held -= self.held
        self.held = 0
        self.exchange.attributes.pop(_KEY, None)  # or the two would keep each other

    def found(self, link: Link | None) -> None:
        """The analyst has linked it, or could not. On the event loop."""
        self.link = link
        if self._linked is None:
            self._linked = trio.Event()
        self._linked.set()

    async def linked(self, seconds: float) -> Link | None:
        """The link, as soon as it is known; None if it is not within ``seconds``, and at once while the body is still
        on its way. Only for requests that a policy holds back; every other one goes on without it."""
        if not self.opened:
            if self.whole and not self.complete:
                return None  # what came so far would be linked and stored as if it were all
            self.request_read()
        if self._linked is None:
            self._linked = trio.Event()
        if self.exchange.response is None and not self._linked.is_set():
            self.capture.analyst.hurry()  # the client waits; once it has its answer, whoever asks has time
        with trio.move_on_after(seconds):
            await self._linked.wait()
        return self.link


class Capture:
    """The recordings of one proxy. One that is not ``active`` makes none."""

    def __init__(
        self,
        analyst: Analyst,
        is_ours: Callable[[Exchange], bool],
        *,
        active: bool = True,
        has_policies: Callable[[], bool] = lambda: True,
    ) -> None:
        """``has_policies`` says whether anybody could ask for the link or the body of an exchange that is not kept."""
        self.analyst = analyst
        self.active = active
        self.held = 0
        self.shed = 0  # transcripts lost because more was held than HELD_LIMIT
        self.under_way: dict[str, Recording] = {}  # Messages requests by exchange
        self._is_ours = is_ours
        self._has_policies = has_policies

    def begin(self, exchange: Exchange, scope: Scope | None, settings: Settings) -> Recording | None:
        """A recording for this exchange, None if nothing is to be kept of it."""
        if not self.active or not self._is_ours(exchange):
            return None
        whole = exchange.path in _WHOLE and exchange.request.method == b"POST"
        if settings.capture == "off" and (exchange.passthrough or not whole or not self._has_policies()):
            return None  # nobody would look at it
        recording = Recording(
            self,
            exchange,
            scope,
            whole,
            settings.capture,
            settings.capture_stream,
            settings.redact_messages,
            time.time(),
            self.analyst.pace,
        )
        recording.pace.beats += 1
        exchange.attributes[_KEY] = recording
        if exchange.path == MESSAGES:
            self.under_way[exchange.id] = recording
        return recording

    def hold(self, size: int) -> bool:
        """Whether ``size`` more bytes may be held."""
        if self.held + size > HELD_LIMIT:
            return False
        self.held += size
        return True

    def samples(self) -> list[Sample]:
        """For /metrics."""
        return [
            Sample("dbproxy_capture_held_bytes", self.held, kind="gauge", help="Bytes held for the capture thread."),
            Sample("dbproxy_capture_shed_total", self.shed, help="Transcripts lost because too much was held."),
        ]


def recording_of(exchange: Exchange) -> Recording | None:
    """The recording of an exchange that is under way, None if there is none."""
    found = exchange.attributes.get(_KEY)
    return found if isinstance(found, Recording) else None


def project(scope: Scope | None) -> str:
    """The folder that the client was started in, "" if nobody told."""
    return scope.cwd if scope is not None else ""


def is_model_traffic(exchange: Exchange, intercepted: frozenset[str]) -> bool:
    """Is this a request to a host that we were asked to look into? Other plain HTTP that merely passes is not kept."""
    return exchange.via is Via.BASE_URL or exchange.host in intercepted


def text_pairs(fields: Fields | None) -> tuple[tuple[str, str], ...]:
    """Fields as text, in wire order, names lower-cased."""
    if fields is None:
        return ()
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields.pairs())
