"""Answering the client's compact request: from a checkpoint, after a wait, or not at all.

Owns the decision and the answer's stream. Invariants: nothing is served but a judged summary whose history is the
request's own; a request that is not served goes on untouched; the same request again gets the same answer; while we
wait the client hears from us before it would give up.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
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
#: Bytes a token is taken for where nothing was measured.
_BYTES_PER_TOKEN: Final = 3.5


@dataclass(frozen=True, slots=True)
class Swap:
    """What is served: the text, its record, and the checkpoint behind it."""

    served: Served
    checkpoint: Checkpoint
    log: Log
    context_tokens: int


def prepare(
    buffer: Buffer, history: History, client: Client, *, log_tokens: int, now: float, transcript: str = ""
) -> Swap | None:
    """The swap for this request, None if no checkpoint fits it. Meant for a worker thread."""
    fits = buffer.fitting(history.chains)
    if fits is None:
        return None
    checkpoint, count = fits
    log = render(history.messages(count), log_tokens, bytes_per_token(buffer), transcript=transcript)
    text = swap_text(Summary(checkpoint.analysis, checkpoint.summary), log, client)
    tokens = int(len(text.encode("utf-8", "replace")) / bytes_per_token(buffer))
    record = {
        "checkpoint": checkpoint.id,
        "checkpoint_exchange": checkpoint.exchange,
        "tokens_before": max(buffer.tokens, checkpoint.tokens),
        "tokens_after": tokens,
        "log_messages": len(history.spans) - count,
        "log_tokens": log.tokens,
        "kept": len(log.kept),
        "shortened": [asdict(cut) for cut in log.shortened],
        "saved_s": round(checkpoint.seconds, 2),
        "checkpoint_tokens": checkpoint.cost,
        "cache_share": checkpoint.cache_share,
    }
    served = Served(checkpoint.id, history.chain, mark(text, client), text, len(history.spans), now, record)
    return Swap(served, checkpoint, log, tokens)


def bytes_per_token(buffer: Buffer) -> float:
    """How many bytes a token is in this conversation."""
    return _BYTES_PER_TOKEN


def mark(text: str, client: Client) -> bytes:
    """The summary's first words as they would stand in the JSON of a later request: what proves that it was taken."""
    return json.dumps(first_words(text, client.version), ensure_ascii=False)[1:-1].encode("utf-8", "replace")


def was_taken(served: Served, body: bytes) -> bool:
    """Does this later request start from what was served?"""
    return len(served.mark) >= 16 and served.mark in body


def answer(swap: Swap, *, model: str, stream: bool) -> LocalResponse:
    """The whole answer at once."""
    usage = believable_usage(swap.checkpoint.tokens, swap.context_tokens)
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
    the client's own request is sent as well, and whichever is good first becomes the answer.
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
        model: str,
    ) -> None:
        self._services = services
        self._exchange = exchange
        self._body = body
        self._ready = ready
        self._native_after = native_after
        self._deadline = deadline
        self._served = served
        self._model = model
        self.native = False  # the client got the model's own answer

    def response(self) -> LocalResponse:
        """200, and events as soon as there are any; pings until then."""
        return LocalResponse(200, _fields(b"text/event-stream; charset=utf-8"), stream=self._stream)

    async def _stream(self, send: SendBytes) -> None:
        swap: Swap | None = None
        decided = trio.Event()
        failed = trio.Event()  # there will be no swap
        pieces, into = trio.open_memory_channel[bytes](64)[::-1]

        async def checkpoint() -> None:
            nonlocal swap
            found = await self._ready()
            if found is None:
                failed.set()
            elif not decided.is_set():
                swap = found
                decided.set()

        async def native() -> None:
            with trio.move_on_after(self._native_after):
                await failed.wait()
            try:
                async with into:
                    async for piece in self._events():
                        if swap is not None:
                            return
                        self.native = True
                        decided.set()
                        await into.send(piece)
            except (DbproxyError, trio.BrokenResourceError) as error:
                await failed.wait()
                if not decided.is_set():
                    raise NoAnswer(str(error)) from None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(checkpoint)
            nursery.start_soon(native)
            while not decided.is_set():
                with trio.move_on_after(PING_EVERY):
                    await decided.wait()
                if not decided.is_set():
                    await send(_PING)
            if swap is not None:
                nursery.cancel_scope.cancel()
            else:
                async for piece in pieces:
                    await send(piece)
                nursery.cancel_scope.cancel()
        if swap is not None:
            body = answer(swap, model=self._model, stream=True).body
            await send(body)
            await self._served(swap)

    async def _events(self) -> AsyncIterator[bytes]:
        """The events of the client's own request, from the first that says that there is an answer."""
        call = self._services.send(
            self._exchange, self._exchange.request, self._body, purpose="native compaction", deadline=self._deadline
        )
        async with call as given:
            if given.head.status != 200:
                kind = Accumulator.from_body(await given.body()).error or {}
                raise NoAnswer(f"status {given.head.status} {kind.get('type', '')}")
            splitter = SseSplitter()
            async for piece in given:
                for event in splitter.feed(piece):
                    yield event.raw


class NoAnswer(DbproxyError):
    """Neither the checkpoint nor the model gave an answer. The broken stream makes the client ask again."""


def outcome_ok(outcome: Outcome) -> bool:
    """Did an answer reach its end?"""
    return outcome in (Outcome.OK, Outcome.LOCAL)


def is_waiting(buffer: Buffer) -> bool:
    """Is a checkpoint of this buffer on its way?"""
    return buffer.phase in (Phase.CHECKPOINT_PENDING, Phase.CHECKPOINTING) and buffer.running is not None
