"""Judging what the client did with a summary, ours or the model's: taken, put by, or not wanted.

Owns the ends of a cycle: confirmed, rolled back, compacted natively, and what is learned from the last. Invariants: a
swap is confirmed only by a request that no longer stands on its history; a compaction that the client asked for ahead
of time is no wall.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio

from dbproxy.api import Edge, RequestKind
from dbproxy_double_buffer.phases import Event, Phase
from dbproxy_double_buffer.summary import extract, text_of
from dbproxy_double_buffer.swap import was_taken
from dbproxy_double_buffer.wall import Observation, parse_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbproxy.api import Emit, Exchange, Link, Usage
    from dbproxy_double_buffer.buffers import Buffer, Buffers
    from dbproxy_double_buffer.history import History
    from dbproxy_double_buffer.prompt import InstructionBook
    from dbproxy_double_buffer.reading import Reader
    from dbproxy_double_buffer.swap import Swap
    from dbproxy_double_buffer.tap import Tap

#: Of a swap's record, what says something of a swap that was not served.
_WOULD: Final = (
    "checkpoint",
    "checkpoint_tokens",
    "cache_share",
    "tokens_after",
    "log_messages",
    "log_tokens",
    "kept",
    "shortened",
)


class Verdicts:
    """The ends of cycles, counted. ``clock`` gives Unix seconds; ``keep`` is told of a buffer to be saved soon."""

    def __init__(
        self,
        buffers: Buffers,
        book: InstructionBook,
        reader: Reader,
        *,
        emit: Emit,
        clock: Callable[[], float],
        keep: Callable[[Buffer], object],
    ) -> None:
        self.confirmed = 0
        self.rolled_back = 0
        self.native = 0
        self._buffers = buffers
        self._book = book
        self._reader = reader
        self._emit = emit
        self._clock = clock
        self._keep = keep

    async def check_swap(self, buffer: Buffer, tap: Tap, link: Link) -> None:
        """Was what we served taken? The client's next request says so, by its header or by our own words in it."""
        served = buffer.served
        if served is None or tap.exchange.id <= served.exchange:
            return
        if buffer.phase is not Phase.PROVISIONAL and link.edge in (Edge.NEXT, Edge.RETRY):
            return
        body = await tap.held.read() if tap.held is not None else None
        history = await self._reader.read(body, tap.exchange) if body is not None else None
        if body is None or history is None or buffer.served is not served:
            return
        goes_on = served.chain in history.chains or history.thread is not None
        words = was_taken(served, body)
        said = tap.exchange.request.fields.get(b"x-claude-code-context-compacted") is not None
        if not goes_on and (words or (said and link.kind is RequestKind.AFTER_COMPACTION)):
            self.confirmed += 1
            self._emit(
                "swap_confirmed",
                conv_id=buffer.conversation,
                thread=buffer.thread,
                checkpoint=served.checkpoint,
                by="words" if words else "header",
            )
            self._buffers.halt(buffer)
            buffer.checkpoints, buffer.served = [], None
            buffer.tokens, buffer.basis = 0, 0
            self._buffers.move(buffer, Event.CONFIRMED)
            self._keep(buffer)
        elif buffer.phase is Phase.PROVISIONAL:
            self.rolled_back += 1
            self._emit(
                "swap_rejected",
                level="warning",
                conv_id=buffer.conversation,
                thread=buffer.thread,
                checkpoint=served.checkpoint,
                reason="the client went on without it" if goes_on else "the client went another way",
            )
            self._buffers.move(buffer, Event.ROLLED_BACK)
            self._keep(buffer)

    def after_native(self, buffer: Buffer, exchange: Exchange, link: Link) -> None:
        """The client speaks again after the model had made it a summary: has it taken that summary, or put it by?"""
        took = link.kind is RequestKind.AFTER_COMPACTION or link.edge is Edge.COMPACTED
        buffer.spoke = max(buffer.spoke, exchange.id)
        buffer.took = max(buffer.took, exchange.id) if took else buffer.took
        if exchange.id > buffer.native:
            _judge_native(buffer)

    def compacted(
        self,
        buffer: Buffer,
        trigger: str,
        history: History | None,
        exchange: Exchange,
        *,
        about: Mapping[str, int] | None = None,
        would: Swap | None = None,
    ) -> dict[str, Any]:
        """The client got a summary from the model: learn from it. Gives what is said of it: the context (tokens), how
        long the client waited (seconds), and ``about`` the summary; ``would`` is what we would have served."""
        self.native += 1
        # Answers are looked at some time after they came: the client may have gone on already.
        tokens = buffer.at_wall if buffer.native == exchange.id or buffer.spoke > exchange.id else buffer.tokens
        if trigger in ("auto", "reactive") and tokens:
            seen = [*buffer.observed, Observation(tokens, trigger, self._clock())]
            buffer.observed, buffer.asked = seen[-8:], True
        buffer.native = exchange.id
        if history is not None and history.request is not None and history.request.servable:
            agent = (exchange.request.fields.get(b"user-agent") or b"").decode("latin-1")
            self._book.learn(parse_version(agent), history.request.instruction)
        # Its end may be looked at long after it came.
        ended = exchange.timings.finished or trio.current_time()
        seconds = round(ended - exchange.timings.received, 2)
        seen = {"trigger": trigger, "tokens": tokens, "seconds": seconds, **(about or {})}
        served = would_serve(would) or {}
        self._emit(
            "compaction_observed",
            conv_id=buffer.conversation,
            thread=buffer.thread,
            **seen,
            **{f"would_{name}": len(value) if isinstance(value, list) else value for name, value in served.items()},
        )
        self._buffers.halt(buffer)
        if buffer.phase is not Phase.IDLE:
            self._buffers.move(buffer, Event.COMPACTED)
        buffer.checkpoints, buffer.served, buffer.basis = [], None, 0
        _judge_native(buffer)
        self._keep(buffer)
        return seen


def _judge_native(buffer: Buffer) -> None:
    """What the client said since the model's summary shows whether that was a compaction at its wall."""
    if buffer.spoke <= buffer.native:
        return
    took, buffer.native = buffer.took > buffer.native, ""
    if took:
        buffer.precomputed = False
    elif buffer.asked:
        buffer.precomputed, buffer.observed = True, buffer.observed[:-1]
    buffer.asked = False


def summary_size(message: Mapping[str, Any], usage: Usage) -> dict[str, int]:
    """How large the model's summary is: its own text (bytes), and the whole answer (output tokens)."""
    summary = extract(text_of(message)).summary
    return {"summary_bytes": len(summary.encode("utf-8", "replace")), "summary_tokens": usage.output_tokens}


def would_serve(swap: Swap | None) -> dict[str, Any] | None:
    """What of a swap's record stands beside a compaction that the model made; None if nothing could be served."""
    return None if swap is None else {name: swap.served.record[name] for name in _WOULD}
