"""The filters of one answer: plugins' objects that stand in its stream of server-sent events.

Synchronous, whole events, byte-exact where they change nothing; nothing is held back but an event that is not complete
yet. Must not import trio, net, store, proc or app. Invariants: `StreamFilters.feed` and `end` never raise; a filter
that fails is taken out and the event at hand passes unchanged; the order of bytes never changes.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from dbproxy.errors import PluginError
from dbproxy.hooks.calls import SYNC_FAILURES, Calls, Implementation, running_plugin
from dbproxy.hooks.kinds import QUARANTINE_AFTER, SLOW_CALL
from dbproxy.hooks.specs import WrongAnswer
from dbproxy.wire.sse import SseEvent, SseSplitter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.exchange import Exchange, ResponseHead


class BlocksLoop(PluginError):
    """A synchronous filter or tap kept the event loop waiting again and again."""


def is_event_stream(head: ResponseHead) -> bool:
    """Is the body of this answer a stream of server-sent events?"""
    kind = head.fields.get(b"content-type")
    return kind is not None and kind.partition(b";")[0].strip().lower() == b"text/event-stream"


def _is_coded(head: ResponseHead) -> bool:
    return bool(head.fields.tokens(b"content-encoding") - {b"identity"})


class _Stage:
    """One filter in the stream. ``after`` splits what it produced for the next one; unused behind the last."""

    __slots__ = ("after", "impl", "live", "object", "slow")

    def __init__(self, impl: Implementation, filter_object: Any) -> None:
        self.impl = impl
        self.object = filter_object
        self.after = SseSplitter()
        self.live = True
        self.slow = 0


class StreamFilters:
    """The filters of one answer, in call order. Feed it what the upstream sent; send on what it returns."""

    __slots__ = ("_calls", "_changed", "_ended", "_splitter", "_stages", "_whole", "events")

    def __init__(self, calls: Calls, stages: list[_Stage]) -> None:
        self._calls = calls
        self._stages = stages
        self._splitter = SseSplitter()
        self._ended = False
        self._whole = True  # the last event was not a piece of an oversized one
        self._changed = False  # what goes out is not what the events at hand were
        #: The events that the last `feed` completed, as they came in: the taps need not split the same bytes again.
        self.events: list[SseEvent] = []

    @classmethod
    def for_exchange(cls, calls: Calls, exchange: Exchange, head: ResponseHead) -> StreamFilters | None:
        """The filters that plugins put into this answer, or None: then the bytes need no detour.

        Never for passthrough. An event stream with a content coding or a fixed length is left alone and counted.
        """
        if not calls.has("stream_filter") or exchange.passthrough or not is_event_stream(head):
            return None
        if _is_coded(head) or head.fields.get(b"content-length") is not None:
            calls.filters_skipped += 1
            return None
        found = calls.collect_sync("stream_filter", exchange=exchange, head=head)
        return cls(calls, [_Stage(impl, answer) for impl, answer in found]) if found else None

    def feed(self, data: bytes) -> bytes:
        """What goes to the client in place of ``data``; empty while an event is incomplete.

        An event too large to be held (8 MiB) passes in pieces that no filter sees.
        """
        splitter = self._splitter
        fresh = splitter.between_events
        events = self.events = splitter.feed(data)
        if not events:
            return b""
        self._whole = events[-1].parsed
        self._changed = False
        outputs = self._through(events, 0)
        if fresh and not self._changed and splitter.between_events:
            return data
        return b"".join(outputs)

    def end(self, complete: bool) -> bytes:
        """What is still to go to the client. ``complete`` says that the upstream ended its body in order.

        Bytes of an unfinished last event pass as they are; filters may add something only behind a whole stream.
        """
        if self._ended:
            return b""
        self._ended = True
        pieces = []
        if complete and self._whole and not self._splitter.rest:
            for index, stage in enumerate(self._stages):
                pieces += self._onward(stage, index, self._ask_end(stage))
                if stage.live:
                    stage.impl.consecutive = 0
        return b"".join(pieces) + self._rest()

    def _rest(self) -> bytes:
        # What later stages hold came before what earlier ones hold.
        return b"".join([stage.after.rest for stage in reversed(self._stages)]) + self._splitter.rest

    def _through(self, events: Sequence[SseEvent], first: int) -> list[bytes]:
        """Run events through the stages from ``first`` on; what leaves the last."""
        for stage in self._stages[first:-1]:
            events = self._split(stage, events, self._ask(stage, events))
        return self._ask(self._stages[-1], events)

    def _split(self, stage: _Stage, events: Sequence[SseEvent], outputs: list[bytes]) -> list[SseEvent]:
        """Events for the next stage: the same objects where nothing changed."""
        onward: list[SseEvent] = []
        for event, output in zip(events, outputs, strict=True):
            if output is event.raw and not stage.after.rest:
                onward.append(event)
                continue
            self._changed = True
            if output:
                onward += stage.after.feed(output)
        return onward

    def _onward(self, stage: _Stage, index: int, data: bytes) -> list[bytes]:
        if not data or index == len(self._stages) - 1:
            return [data]
        return self._through(stage.after.feed(data), index + 1)

    def _ask(self, stage: _Stage, events: Sequence[SseEvent]) -> list[bytes]:
        """One output per event."""
        outputs = [event.raw for event in events]
        if not stage.live:
            return outputs
        token = running_plugin.set(stage.impl.account.name)
        began = perf_counter()
        try:
            feed = stage.object.feed
            for at, event in enumerate(events):
                if event.parsed:
                    answer = feed(event)
                    if answer is not None and answer is not event.raw:
                        outputs[at] = _joined(answer)
                        self._changed = True
        except SYNC_FAILURES as error:
            self._detach(stage, error)
        finally:
            running_plugin.reset(token)
        spent = perf_counter() - began
        if spent > SLOW_CALL:
            self._calls.took(stage.impl, spent)
            stage.slow += 1
            if stage.slow >= QUARANTINE_AFTER and stage.live:
                self._detach(stage, BlocksLoop("it blocks the event loop"))
        return outputs

    def _ask_end(self, stage: _Stage) -> bytes:
        if not stage.live:
            return b""
        token = running_plugin.set(stage.impl.account.name)
        try:
            answer = stage.object.end()
            return b"" if answer is None else _joined(answer)
        except SYNC_FAILURES as error:
            self._detach(stage, error)
            return b""
        finally:
            running_plugin.reset(token)

    def _detach(self, stage: _Stage, error: BaseException) -> None:
        stage.live = False
        self._calls.failed(stage.impl, error)


def _joined(answer: Any) -> bytes:
    if isinstance(answer, bytes):
        return answer
    pieces = list(answer)
    for piece in pieces:
        if not isinstance(piece, bytes):  # joining would also take a bytearray, which its owner may change later
            raise WrongAnswer(f"returned {type(piece).__name__}, not bytes")
    return b"".join(pieces)
