"""Answering the client's compact request: from a checkpoint, after a wait, or not at all.

Owns the decision and the answer's stream. Invariants: nothing is served but a judged summary whose history is the
request's own; a request that is not served goes on untouched; the same request again gets the same answer; while we
wait the client hears from us before it would give up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from dbproxy.api import Accumulator, DbproxyError, Fields, LocalResponse, Outcome, SseSplitter, encode_event
from dbproxy_double_buffer.answer import as_events, as_json, believable_usage, first_words, new_id, swap_text
from dbproxy_double_buffer.buffers import Buffer, Served
from dbproxy_double_buffer.log import render
from dbproxy_double_buffer.phases import Phase
from dbproxy_double_buffer.summary import Summary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dbproxy.api import Exchange, SendBytes, Services
    from dbproxy_double_buffer.buffers import Checkpoint
    from dbproxy_double_buffer.history import History
    from dbproxy_double_buffer.log import Log
    from dbproxy_double_buffer.wall import Client

#: Seconds between two pings: the client gives up after 180 without a byte (client facts 0.8).
PING_EVERY: Final = 10.0
_PING: Final = encode_event(b"ping", b'{"type":"ping"}')


@dataclass(frozen=True, slots=True)
class Swap:
    """What is served: the text, its record, and the checkpoint behind it."""

    served: Served
    checkpoint: Checkpoint
    log: Log
    context_tokens: int


def prepare(
    buffer: Buffer,
    history: History,
    client: Client,
    *,
    log_tokens: int,
    now: float,
    exchange: str = "",
    transcript: str = "",
) -> Swap | None:
    """The swap for this request, None if no checkpoint fits it. Meant for a worker thread."""
    fits = buffer.fitting(history.chains, history.model)
    if fits is None:
        return None
    checkpoint, count = fits
    log = render(history.messages(count), log_tokens, buffer.bytes_per_token, transcript=transcript, first=count)
    text = swap_text(Summary(checkpoint.analysis, checkpoint.summary), log, client)
    tokens = int(len(text.encode("utf-8", "replace")) / buffer.bytes_per_token)
    record = {
        "checkpoint": checkpoint.id,
        "checkpoint_exchange": checkpoint.exchange,
        "tokens_before": max(buffer.tokens, checkpoint.tokens),
        "tokens_after": tokens,
        "log_messages": len(history.spans) - count,
        "log_tokens": log.tokens,
        "kept": len(log.kept),
        "shortened": [cut.to_json() for cut in log.shortened],
        "saved_s": round(checkpoint.seconds, 2),
        "checkpoint_tokens": checkpoint.cost,
        "cache_share": checkpoint.cache_share,
    }
    served = Served(checkpoint.id, history.chain, mark(text, client), text, len(history.spans), now, record, exchange)
    return Swap(served, checkpoint, log, tokens)


def mark(text: str, client: Client) -> bytes:
    """The summary's first words as they would stand in the JSON of a later request: what proves that it was taken."""
    return json.dumps(first_words(text, client.version), ensure_ascii=False)[1:-1].encode("utf-8", "replace")


def was_taken(served: Served, body: bytes) -> bool:
    """Does this later request start from what was served?"""
    return len(served.mark) >= 16 and served.mark in body


def answer(swap: Swap, *, model: str, stream: bool) -> LocalResponse:
    """The whole answer at once. The client adds its usage to its cost: it is what the checkpoint has cost."""
    usage = believable_usage(swap.checkpoint.tokens, swap.context_tokens, swap.checkpoint.spent)
    identity = new_id()
    if stream:
        body = b"".join(as_events(swap.served.text, model, usage, identity))
        return LocalResponse(200, _fields(b"text/event-stream; charset=utf-8"), body)
    return LocalResponse(200, _fields(b"application/json"), as_json(swap.served.text, model, usage, identity))


def _fields(kind: bytes) -> Fields:
    return Fields.of([(b"Content-Type", kind), (b"Cache-Control", b"no-cache")])


class Race:
    """A compact request whose checkpoint is still on its way, after the head was held for as long as is wise.

    ``ready`` waits for the checkpoint and gives the swap, or None if there will be none; after ``native_after`` seconds
    the client's own request is sent as well, and whichever is whole first becomes the answer. ``served`` is told before
    a swap goes out, ``native`` after the model's answer did. If neither comes the stream is broken, as a cut answer of
    the model would be: the client asks again, and nothing stands in the way of that request.
    """

    def __init__(
        self,
        services: Services,
        exchange: Exchange,
        body: bytes,
        *,
        ready: Callable[[], Any],
        native_after: float,
        deadline: float,
        served: Callable[[Swap], Any],
        native: Callable[[], Any],
        model: str,
    ) -> None:
        self._services = services
        self._exchange = exchange
        self._body = body
        self._ready = ready
        self._native_after = native_after
        self._deadline = deadline
        self._served = served
        self._native = native
        self._model = model

    def response(self) -> LocalResponse:
        """200, and events as soon as there are any; pings until then."""
        return LocalResponse(200, _fields(b"text/event-stream; charset=utf-8"), stream=self._stream)

    async def _stream(self, send: SendBytes) -> None:
        swap: Swap | None = None
        events: list[bytes] = []  # the model's own answer, once it is whole
        reason = ""
        decided = trio.Event()
        none = trio.Event()  # there will be no swap
        lost = trio.Event()  # nor an answer of the model's

        async def checkpoint() -> None:
            nonlocal swap
            found = await self._ready()
            if decided.is_set():
                return
            if found is not None:
                swap = found
            else:
                none.set()
                if not lost.is_set():
                    return
            decided.set()

        async def native() -> None:
            nonlocal reason
            with trio.move_on_after(self._native_after):
                await none.wait()
            try:
                got = [event async for event in self._events()]
            except (DbproxyError, trio.BrokenResourceError) as error:
                reason = str(error)
                lost.set()
                if not none.is_set():
                    return
            else:
                events.extend(got)
            decided.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(checkpoint)
            nursery.start_soon(native)
            while not decided.is_set():
                with trio.move_on_after(PING_EVERY):
                    await decided.wait()
                if not decided.is_set():
                    await send(_PING)
            nursery.cancel_scope.cancel()
        if swap is not None:
            await self._served(swap)
            await send(answer(swap, model=self._model, stream=True).body)
        elif events:
            for event in events:
                await send(event)
            self._native()
        else:
            raise NoAnswer(reason)

    async def _events(self) -> AsyncIterator[bytes]:
        """The events of the client's own request, to its end."""
        call = self._services.send(
            self._exchange, self._exchange.request, self._body, purpose="native compaction", deadline=self._deadline
        )
        async with call as given:
            if given.head.status != 200:
                kind = Accumulator.from_body(await given.body()).error or {}
                raise NoAnswer(f"status {given.head.status} {kind.get('type', '')}")
            splitter = SseSplitter()
            whole = False
            async for piece in given:
                for event in splitter.feed(piece):
                    whole = whole or event.name == b"message_stop"
                    yield event.raw
            if not whole:
                raise NoAnswer("cut off")


class NoAnswer(DbproxyError):
    """Neither the checkpoint nor the model gave an answer. The broken stream makes the client ask again."""


def outcome_ok(outcome: Outcome) -> bool:
    """Did an answer reach its end?"""
    return outcome in (Outcome.OK, Outcome.LOCAL)


def is_waiting(buffer: Buffer) -> bool:
    """Is a checkpoint of this buffer on its way?"""
    return buffer.phase in (Phase.CHECKPOINT_PENDING, Phase.CHECKPOINTING) and buffer.running is not None
