"""Making a checkpoint: one upstream call beside the client's traffic, tried again within reason, judged, kept.

Owns the tasks. It never touches a byte of the client's: own nursery, own deadline, own connection. Invariants: a buffer
has at most one checkpoint on its way; what ends too late, or for a buffer that was reset meanwhile, is thrown away; a
credential that was refused is not used again.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from dbproxy.api import Accumulator, DbproxyError, Refused, SseSplitter, Usage
from dbproxy_double_buffer.buffers import Buffer, Buffers, Checkpoint, Running
from dbproxy_double_buffer.guards import Breaker, Budget, retry
from dbproxy_double_buffer.phases import Event, Phase
from dbproxy_double_buffer.prompt import InstructionBook, checkpoint_body, checkpoint_head, tool_followup
from dbproxy_double_buffer.summary import extract, has_tool_call, judge, text_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbproxy.api import Emit, Exchange, RequestHead, Services
    from dbproxy_double_buffer.wall import Version

#: Seconds for one checkpoint request: minutes are normal for a large context.
DEADLINE: Final = 600.0
#: A retry-after is believed up to this (seconds).
_LONGEST_WAIT: Final = 3600.0
#: So many refused credentials are remembered.
_REFUSED: Final = 100
_UNUSED: Final = Usage()


@dataclass(frozen=True, slots=True)
class Base:
    """What a checkpoint stands on: a request that was sent, its body, and its history's chain."""

    exchange: Exchange
    exchange_id: str
    head: RequestHead
    body: bytes
    chain: bytes
    messages: int
    tokens: int
    model: str
    account: str
    version: Version
    answered: str = ""


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt: the answer, or ``status`` (0: the connection broke) and ``reason`` of what went wrong."""

    message: dict[str, Any] | None = None
    usage: Usage = _UNUSED
    status: int = 0
    reason: str = ""
    retry_after: float = 0.0
    again: bool = True


_UNKNOWN: Final = Try()


class Checkpoints:
    """The checkpoints on their way. ``clock`` gives Unix seconds; ``completed`` is awaited with what was made."""

    def __init__(
        self,
        buffers: Buffers,
        book: InstructionBook,
        *,
        emit: Emit,
        clock: Callable[[], float],
        completed: Callable[[Buffer], Awaitable[None]],
        deadline: float = DEADLINE,
    ) -> None:
        self.made = 0
        self.failed = 0
        self.budget = Budget(0)
        self._buffers = buffers
        self._book = book
        self._emit = emit
        self._clock = clock
        self._completed = completed
        self._deadline = deadline
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._refused: dict[str, None] = {}  # digests of credentials that got a 401
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Be there for as long as the proxy runs."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run something beside the traffic; a fault in it ends it alone. Never waits."""
        if self._nursery is not None:
            self._nursery.start_soon(self._alone, work)

    async def _alone(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            self._emit("buffer_crashed", level="error", error=f"{type(error).__name__}: {error}"[:300])

    def allows(self, account: str, model: str, tokens: int) -> str:
        """Why no checkpoint may be made now; "" if one may."""
        now = self._clock()
        if account in self._refused:
            return "the credential was refused"
        breaker = self._breakers.get((account, model))
        if breaker is not None and not breaker.allows(now):
            return f"paused after failures ({breaker.reason})"
        if not self.budget.allows(tokens, now):
            return "the day's budget of tokens is spent"
        return "" if self._nursery is not None else "not running"

    def start(self, buffer: Buffer, services: Services, base: Base, *, reason: str) -> bool:
        """Begin a checkpoint of this buffer; whether it began. Never waits."""
        if self._nursery is None or buffer.running is not None:
            return False
        event = Event.RENEW if buffer.phase in (Phase.WAL_ACTIVE, Phase.SWAP_READY) else Event.THRESHOLD
        self._buffers.move(buffer, event)
        scope, done = trio.CancelScope(), trio.Event()
        buffer.running = Running(base.chain, base.messages, base.tokens, scope, done)
        self._nursery.start_soon(self._guarded, buffer, buffer.running, services, base, reason)
        return True

    async def _guarded(self, buffer: Buffer, running: Running, services: Services, base: Base, reason: str) -> None:
        try:
            with running.scope, trio.move_on_after(self._deadline) as limit:
                await self._make(buffer, running, services, base, reason)
            if limit.cancelled_caught and buffer.running is running:
                self._fail(base, _UNKNOWN, "not finished in time")
                self._give_up(buffer, running, base, "not finished in time")
        except Exception as error:  # a fault here ends this checkpoint, and nothing else
            self._fail(base, _UNKNOWN, type(error).__name__)
            self._give_up(buffer, running, base, type(error).__name__)
        finally:
            if buffer.running is running:  # the proxy ends
                self._give_up(buffer, running, base, "the proxy ends")
            running.done.set()

    async def _make(self, buffer: Buffer, running: Running, services: Services, base: Base, reason: str) -> None:
        instruction = self._book.text(base.version)
        body = checkpoint_body(base.body, instruction)
        if body is None:
            self._give_up(buffer, running, base, "this request cannot be the base of a checkpoint")
            return
        began = self._clock()
        for attempt in range(1, 10):
            self._buffers.move(buffer, Event.STARTED)
            self._emit(
                "checkpoint_started",
                conv_id=buffer.conversation,
                thread=buffer.thread,
                model=base.model,
                tokens=base.tokens,
                reason=reason,
                attempt=attempt,
            )
            tried = await self._ask(services, base, body, instruction)
            verdict = judge(tried.message, complete=True).reason if tried.message is not None else tried.reason
            if not verdict and tried.message is not None:
                await self._keep(buffer, running, base, tried, self._clock() - began)
                return
            if tried.status == 401:
                self._refused[base.account] = None
                if len(self._refused) > _REFUSED:
                    del self._refused[next(iter(self._refused))]
            following = retry(tried.status, attempt, retry_after=tried.retry_after)
            if tried.message is not None or not tried.again or not following.again:
                self._fail(base, tried, verdict)
                self._give_up(buffer, running, base, verdict)
                return
            self._buffers.move(buffer, Event.RETRY)
            await trio.sleep(following.pause)

    async def _ask(self, services: Services, base: Base, body: bytes, instruction: str) -> Try:
        tried = await self._call(services, base, body)
        if tried.message is not None and has_tool_call(tried.message):
            more = tool_followup(body, tried.message, instruction)
            if more is not None:
                return await self._call(services, base, more)
        return tried

    async def _call(self, services: Services, base: Base, body: bytes) -> Try:
        """One upstream request. Everything that can go wrong comes back as a value."""
        answer = Accumulator()
        try:
            call = services.send(
                base.exchange, checkpoint_head(base.head), body, purpose="checkpoint", deadline=self._deadline
            )
            async with call as given:
                fields, status = given.head.fields, given.head.status
                if status != 200:
                    kind = Accumulator.from_body(await given.body()).error or {}
                    reason = f"status {status} {str(kind.get('type', ''))[:40]}".rstrip()
                    after = _seconds(fields.get(b"retry-after"))
                    again = (fields.get(b"x-should-retry") or b"").lower() != b"false"
                    return Try(status=status, reason=reason, retry_after=after, again=again)
                if b"event-stream" in (fields.get(b"content-type") or b""):
                    splitter = SseSplitter()
                    async for piece in given:
                        for event in splitter.feed(piece):
                            answer.feed(event.name, event.data)
                else:
                    answer = Accumulator.from_body(await given.body())
        except Refused as error:
            return Try(reason=str(error)[:200], again=False)
        except DbproxyError as error:
            return Try(reason=f"{type(error).__name__}: {error}"[:200])
        self.budget = self.budget.spent(_tokens(answer.usage), self._clock())
        if answer.error is not None:
            return Try(status=529, reason=f"error event {str(answer.error.get('type', ''))[:40]}")
        if not answer.complete:
            return Try(reason="cut off")
        return Try(message=answer.message, usage=answer.usage, status=200)

    async def _keep(self, buffer: Buffer, running: Running, base: Base, tried: Try, seconds: float) -> None:
        if buffer.running is not running or tried.message is None:
            return  # reset meanwhile
        parts, usage = extract(text_of(tried.message)), tried.usage
        prompt = max(1, usage.prompt_tokens)
        made = Checkpoint(
            id=secrets.token_hex(8),
            chain=base.chain,
            messages=base.messages,
            exchange=base.exchange_id,
            model=base.model,
            account=base.account,
            analysis=parts.analysis,
            summary=parts.summary,
            tokens=base.tokens,
            made=self._clock(),
            seconds=seconds,
            cache_share=round(usage.cache_read / prompt, 4),
            cost=_tokens(usage),
            answered=base.answered,
            spent=_spelled(usage),
        )
        buffer.add(made)
        buffer.basis = made.tokens
        self.made += 1
        self._breakers.pop((base.account, base.model), None)
        self._emit(
            "checkpoint_completed",
            conv_id=buffer.conversation,
            thread=buffer.thread,
            model=base.model,
            checkpoint=made.id,
            tokens=base.tokens,
            seconds=round(seconds, 2),
            cache_read=usage.cache_read,
            cache_share=made.cache_share,
            cache_write=usage.cache_write,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
        )
        self._buffers.move(buffer, Event.COMPLETED)
        self._emit("wal_started", conv_id=buffer.conversation, thread=buffer.thread, checkpoint=made.id)
        buffer.running = None
        await self._completed(buffer)

    def _fail(self, base: Base, tried: Try, reason: str) -> None:
        key = base.account, base.model
        after = min(tried.retry_after, _LONGEST_WAIT)
        if not tried.again:
            after = max(after, 60.0)
        self._breakers[key] = self._breakers.get(key, Breaker()).failed(self._clock(), reason, after)

    def _give_up(self, buffer: Buffer, running: Running, base: Base, reason: str) -> None:
        if buffer.running is not running:
            return
        self.failed += 1
        self._emit(
            "checkpoint_failed",
            level="warning",
            conv_id=buffer.conversation,
            thread=buffer.thread,
            model=base.model,
            reason=reason,
        )
        buffer.running = None
        if buffer.phase in (Phase.CHECKPOINTING, Phase.CHECKPOINT_PENDING):
            self._buffers.move(buffer, Event.FAILED)
            if buffer.checkpoints:  # an older one is still good
                self._buffers.move(buffer, Event.KEPT)


def _tokens(usage: Usage) -> int:
    return sum(part.context_tokens for part in usage.billed())


def _spelled(usage: Usage) -> dict[str, Any]:
    """A usage as the API spells it (API facts 1.5)."""
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
        "output_tokens": usage.output_tokens,
    }


def _seconds(value: bytes | None) -> float:
    try:
        seconds = float(value) if value is not None else 0.0
    except ValueError:
        return 0.0
    return seconds if 0.0 <= seconds < float("inf") else 0.0
