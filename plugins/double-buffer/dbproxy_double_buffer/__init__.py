"""The double buffer: the summary is made ahead of time, so that the client's compact request is answered at once.

This file owns the hooks; every decision is a pure function in one of the modules beside it. Imports `dbproxy.api` only.
Invariants: no hook waits for anything but a compact request that is held on purpose; in passthrough mode nothing is
called, nothing is answered; a subagent has a buffer of its own.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from dbproxy.api import (
    Edge,
    Exchange,
    Link,
    LocalResponse,
    Outcome,
    RequestKind,
    ResponseHead,
    RouteFacts,
    append_line,
    hookimpl,
    read_document,
    write_document,
)
from dbproxy_double_buffer.buffers import Buffer, Buffers, Shelf
from dbproxy_double_buffer.checkpoints import Checkpoints
from dbproxy_double_buffer.detect import compact_trigger
from dbproxy_double_buffer.history import History
from dbproxy_double_buffer.phases import Event, Phase
from dbproxy_double_buffer.prompt import InstructionBook
from dbproxy_double_buffer.reading import LINK_SECONDS, Reader
from dbproxy_double_buffer.summary import judge
from dbproxy_double_buffer.swap import Race, Swap, answer, is_waiting, outcome_ok, prepare
from dbproxy_double_buffer.tap import Tap
from dbproxy_double_buffer.trigger import Answer, State, Thresholds, decide, log_budget
from dbproxy_double_buffer.verdicts import Verdicts, summary_size, would_serve
from dbproxy_double_buffer.wall import Client, Wall, parse_version, wall

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from dbproxy.api import App, Sample, Service, Services

NAME: Final = "double-buffer"
MESSAGES: Final = "/v1/messages"
#: The hook that holds a compact request has 30 seconds.
_LONGEST_HOLD: Final = 25.0
#: An interactive conversation is asked about again after this (seconds).
_CHORES_EVERY: Final = 30.0
_THREADS: Final = b"message-threads-2026-08-12"
_SPEAKS: Final = (RequestKind.MAIN, RequestKind.SUBAGENT, RequestKind.NESTED, RequestKind.AFTER_COMPACTION)


class DoubleBuffer:
    """The plugin. ``clock`` gives Unix seconds."""

    dbproxy_api = (1, 1)

    def __init__(self, clock: Any = time.time) -> None:
        self.clock = clock
        self.swaps = 0
        self._app: App
        self._services: Services
        self._shelf: Shelf
        self._records: Path
        self._instructions: Path
        self._dirty: set[str] = set()
        self._saving = trio.Lock()
        self._loaded = trio.Event()
        self.book = InstructionBook()
        self.buffers = Buffers(self._moved)

    # ---- lifecycle

    @hookimpl
    async def startup(self, app: App) -> None:
        self._app = app
        if app.services is None:
            raise RuntimeError("the proxy offers no services")
        self._services = app.services
        folder = app.data_dir / "plugin-data" / NAME
        self._shelf = Shelf(folder / "buffers")
        self._records = folder / "swaps.jsonl"
        self._instructions = folder / "instructions.json"
        self.book.restore((await trio.to_thread.run_sync(read_document, self._instructions)).get("instructions"))
        self.reader = Reader(self._services)
        self.verdicts = Verdicts(self.buffers, self.book, self.reader, emit=app.emit, clock=self.clock, keep=self._keep)
        self.checkpoints = Checkpoints(
            self.buffers, self.book, emit=app.emit, clock=self.clock, completed=self._completed
        )

    @hookimpl
    def services(self, app: App) -> Iterable[Service]:
        return [("checkpoints", self.checkpoints.run), ("upkeep", self._upkeep)]

    @hookimpl
    async def shutdown(self, app: App) -> None:
        await self._save()

    async def _upkeep(self) -> None:
        """Load what an earlier process kept; from then on save what changed and forget what is idle."""
        ttl = self._number(self._services.settings(None), "conversation_ttl_seconds", 7200)
        try:
            for buffer in await trio.to_thread.run_sync(self._shelf.load, self.clock(), ttl):
                self.buffers.put(buffer)
        finally:
            self._loaded.set()
        while True:
            await trio.sleep(_CHORES_EVERY)
            gone = self.buffers.expire(self.clock(), ttl)
            if gone:
                await trio.to_thread.run_sync(self._shelf.remove, gone)
            await self._save()

    async def _save(self) -> None:
        async with self._saving:
            if self.book.changed:
                self.book.changed = False
                known = {"instructions": self.book.to_json()}
                try:
                    await trio.to_thread.run_sync(write_document, self._instructions, known)
                except OSError as error:
                    self._app.emit("buffer_not_kept", level="warning", reason=str(error))
            dirty, self._dirty = self._dirty, set()
            for conversation in dirty:
                kept = [b.to_json() for b in self.buffers.of(conversation) if b.checkpoints or b.served or b.observed]
                try:
                    await trio.to_thread.run_sync(self._shelf.save, conversation, kept, self.clock())
                except OSError as error:
                    self._app.emit("buffer_not_kept", level="warning", conv_id=conversation, reason=str(error))

    def _keep(self, buffer: Buffer) -> None:
        """Save this buffer soon: what was served or taken must survive the end of this process."""
        self._dirty.add(buffer.conversation)
        self.checkpoints.spawn(self._save)

    async def _completed(self, buffer: Buffer) -> None:
        if buffer.near and buffer.phase is Phase.WAL_ACTIVE:
            self.buffers.move(buffer, Event.NEAR_WALL)
        self._dirty.add(buffer.conversation)
        await self._save()

    # ---- what others may ask

    @hookimpl
    def health(self) -> Mapping[str, object]:
        phases: dict[str, int] = {}
        for buffer in self.buffers:
            phases[buffer.phase] = phases.get(buffer.phase, 0) + 1
        return {
            "buffers": len(self.buffers),
            "phases": phases,
            "checkpoints": self.checkpoints.made,
            "failed": self.checkpoints.failed,
            "swaps": self.swaps,
            "confirmed": self.verdicts.confirmed,
            "rolled_back": self.verdicts.rolled_back,
            "native": self.verdicts.native,
        }

    @hookimpl
    def metrics(self) -> Iterable[Sample]:
        from dbproxy.api import Sample

        counts = {
            "checkpoints": self.checkpoints.made,
            "checkpoints_failed": self.checkpoints.failed,
            "swaps": self.swaps,
            "swaps_confirmed": self.verdicts.confirmed,
            "swaps_rolled_back": self.verdicts.rolled_back,
            "native_compactions": self.verdicts.native,
        }
        for name, value in counts.items():
            yield Sample(f"dbproxy_buffer_{name}_total", value, help=f"Of the double buffer: {name.replace('_', ' ')}.")

    @hookimpl
    def conversation_reset(self, prefix: str | None) -> list[str]:
        gone = self.buffers.forget(prefix or "")
        self._dirty.update(gone)
        return gone

    @hookimpl
    def transform_response_head(self, exchange: Exchange, head: ResponseHead) -> ResponseHead | None:
        if exchange.path != MESSAGES:
            return None
        link = exchange.attributes.get("link")
        name = link.conversation if isinstance(link, Link) else _session(exchange)
        if not name:
            return None
        buffer = self.buffers.find(name, link.thread if isinstance(link, Link) else "main")
        phase = buffer.phase if buffer is not None else Phase.IDLE
        fields = head.fields.plus(b"x-dbproxy-conv-id", name.encode("latin-1", "replace"))
        return replace(head, fields=fields.plus(b"x-dbproxy-phase", phase.encode()))

    # ---- the client's compact request

    @hookimpl
    def wants_body(self, exchange: Exchange) -> bool | None:
        if exchange.path != MESSAGES or exchange.request.method != b"POST":
            return None
        trigger = compact_trigger(exchange.request.fields)
        if trigger is not None:
            return True if trigger else None
        if not self._loaded.is_set():
            return True
        # A client that does not say: its compact request can only be known by its text, and only matters if there is
        # something to serve.
        session = _session(exchange)
        waiting = self.buffers.of(session) if session else [b for b in self.buffers if b.checkpoints]
        return True if any(b.checkpoints or b.running is not None for b in waiting) else None

    @hookimpl
    async def intercept_request(self, exchange: Exchange) -> LocalResponse | None:
        if exchange.body is None or exchange.path != MESSAGES or self._mode(exchange) == "off":
            return None
        with trio.move_on_after(LINK_SECONDS):
            await self._loaded.wait()
        held = self._services.request_body(exchange)
        body = await held.read() if held is not None else None
        history = await self.reader.read(body, exchange) if body is not None else None
        if body is None or history is None or history.request is None:
            return None
        link = await self._services.link(exchange, LINK_SECONDS)
        if link is None or not link.thread:
            return None
        buffer = self.buffers.get(link.conversation, link.thread)
        buffer.last_seen = self.clock()
        exchange.attributes[NAME] = history
        if history.thread is not None:
            history = await self.reader.whole(history, body, exchange) or history
            exchange.attributes[NAME] = history
        request = history.request
        if request is None or not request.servable or history.thread is not None:
            self._leave(exchange, buffer, _why_native(history))
            return None
        if self._mode(exchange) != "on":
            self._leave(exchange, buffer, "observing")
            return None
        return await self._serve(exchange, body, buffer, history)

    async def _serve(self, exchange: Exchange, body: bytes, buffer: Buffer, history: History) -> LocalResponse | None:
        settings = self._services.settings(exchange)
        began = trio.current_time()
        swap = await self._swap(exchange, buffer, history)
        if swap is None and is_waiting(buffer):
            running = buffer.running
            if running is not None and running.chain in history.chains:
                with trio.move_on_after(min(self._number(settings, "buffer_hold_seconds", 20), _LONGEST_HOLD)):
                    await running.done.wait()
                swap = await self._swap(exchange, buffer, history)
                if swap is None and not running.done.is_set() and history.stream:
                    return self._race(exchange, body, buffer, history, running.done).response()
        if swap is None:
            self._leave(exchange, buffer, "none fits this history" if buffer.checkpoints else "no checkpoint")
            return None
        await self._give(exchange, buffer, swap, waited=trio.current_time() - began)
        return answer(swap, model=history.model, stream=history.stream)

    def _leave(self, exchange: Exchange, buffer: Buffer, reason: str) -> None:
        """Let the model answer this compact request."""
        buffer.native, buffer.at_wall = exchange.id, buffer.tokens
        self._app.emit("compact_native", conv_id=buffer.conversation, thread=buffer.thread, reason=reason)

    def _race(self, exchange: Exchange, body: bytes, buffer: Buffer, history: History, done: trio.Event) -> Race:
        settings, began = self._services.settings(exchange), trio.current_time()

        async def ready() -> Swap | None:
            await done.wait()
            return await self._swap(exchange, buffer, history)

        async def served(swap: Swap) -> None:
            await self._give(exchange, buffer, swap, waited=trio.current_time() - began)

        def native() -> None:
            trigger = history.request.trigger if history.request is not None else ""
            self.verdicts.compacted(buffer, trigger, history, exchange)

        return Race(
            self._services,
            exchange,
            body,
            ready=ready,
            native_after=self._number(settings, "buffer_native_after_seconds", 30),
            deadline=900.0,
            served=served,
            native=native,
            model=history.model,
        )

    async def _swap(self, exchange: Exchange, buffer: Buffer, history: History) -> Swap | None:
        """What can be served for this request: what was served before for the same one, or a new swap."""
        if not buffer.checkpoints:
            return None
        client = self._client(exchange, history.model, history.max_tokens)
        budget = log_budget(self._thresholds(exchange), wall(client, buffer.observed))
        made = await trio.to_thread.run_sync(
            partial(prepare, buffer, history, client, log_tokens=budget, now=self.clock(), exchange=exchange.id)
        )
        before = buffer.served
        if made is not None and before is not None and before.chain == history.chain:
            return replace(made, served=before)  # the client asks again: it gets the same words
        return made

    async def _give(self, exchange: Exchange, buffer: Buffer, swap: Swap, *, waited: float) -> None:
        if swap.served is buffer.served and buffer.phase is Phase.PROVISIONAL:
            return  # once more for the same client: it is the same swap
        record = {**swap.served.record, "waited_ms": round(waited * 1e3, 1)}
        buffer.served = replace(swap.served, record=record)
        buffer.swaps += 1
        self.swaps += 1
        self.buffers.halt(buffer)  # a newer checkpoint of the history that ends here
        if buffer.phase is Phase.IDLE:  # an older checkpoint, of a branch that the client came back to
            self.buffers.move(buffer, Event.KEPT)
        self.buffers.move(buffer, Event.SERVED)
        self._app.emit(
            "swap_executed",
            conv_id=buffer.conversation,
            thread=buffer.thread,
            exchange_id=exchange.id,
            **{name: value for name, value in record.items() if name != "shortened"},
            shortened=len(record["shortened"]),
        )
        self._services.note(buffer.conversation, swap={"thread": buffer.thread, **record})
        self._keep(buffer)
        await self._record(buffer, "on", record)

    async def _record(self, buffer: Buffer, mode: str, record: Mapping[str, object]) -> None:
        about = {"at": self.clock(), "conv_id": buffer.conversation, "thread": buffer.thread, "mode": mode}
        try:
            await trio.to_thread.run_sync(append_line, self._records, {**about, **record})
        except OSError as error:
            self._app.emit("buffer_not_kept", level="warning", conv_id=buffer.conversation, reason=str(error))

    # ---- what the client was answered

    @hookimpl
    def stream_tap(self, exchange: Exchange, head: ResponseHead) -> Tap | None:
        if exchange.path != MESSAGES or exchange.passthrough or head.status not in (200, 400):
            return None
        if self._mode(exchange) == "off" or _is_elsewhere(exchange):
            return None
        asks = NAME in exchange.attributes or bool(compact_trigger(exchange.request.fields))
        return Tap(self.look, exchange, head, self._services.request_body(exchange), compact=asks)

    def look(self, tap: Tap, over: bool, outcome: Outcome | None) -> None:
        """An answer has begun or is over. Most are small and of conversations without a buffer: nothing is done."""
        if not over and _THREADS in tap.exchange.request.fields.tokens(b"anthropic-beta"):
            self.checkpoints.spawn(partial(self._opened, tap))
        session = _session(tap.exchange)
        floor = self._number(self._services.settings(tap.exchange), "compact_trigger_tokens", 50_000)
        if tap.answer.usage.context_tokens >= floor or not session or self.buffers.of(session):
            self.checkpoints.spawn(partial(self.answered, tap, over=over, outcome=outcome))

    async def _opened(self, tap: Tap) -> None:
        """Remember the request that opened a message thread: only it has the system prompt and the tools."""
        body = await tap.held.read() if tap.held is not None else None
        if body is None or b'"previous_message_id"' in body:
            return
        link = await self._services.link(tap.exchange, LINK_SECONDS)
        if link is not None and link.kind in _SPEAKS and link.thread:
            await self._loaded.wait()
            buffer = self.buffers.get(link.conversation, link.thread)
            buffer.full, buffer.last_seen = tap.exchange.id, self.clock()

    async def answered(self, tap: Tap, *, over: bool, outcome: Outcome | None = None) -> None:
        """An answer has begun (``over`` False), or is over."""
        exchange, usage = tap.exchange, tap.answer.usage
        link = await self._services.link(exchange, LINK_SECONDS)
        if link is None or not link.thread:
            return
        await self._loaded.wait()
        buffer = self.buffers.get(link.conversation, link.thread)
        buffer.last_seen = self.clock()
        if link.kind is RequestKind.COMPACTION:
            if over and outcome is Outcome.OK and judge(tap.answer.message, complete=tap.answer.complete).taken:
                seen = exchange.attributes.get(NAME)
                body = await tap.held.read() if tap.held is not None and not isinstance(seen, History) else None
                history = (
                    seen if isinstance(seen, History) else await self.reader.read(body, exchange) if body else None
                )
                if history is not None and history.request is not None:  # not merely a text that looks like one
                    await self._observe(buffer, tap, link, history)
            return
        if link.kind not in _SPEAKS or link.edge is Edge.ASIDE:
            return
        if not over:
            self.verdicts.after_native(buffer, exchange, link)
        model = tap.answer.model or ""
        client = self._client(exchange, model, 0)
        if tap.head.status == 200 and not over:
            await self.verdicts.check_swap(buffer, tap, link)
        if usage.prompt_tokens <= 0 or (over and (outcome is None or not outcome_ok(outcome))):
            return
        tokens = usage.context_tokens if over else usage.prompt_tokens
        if over:
            buffer.measure(tokens, self.clock())
        await self._consider(buffer, tap, link, client, tokens)

    async def _observe(self, buffer: Buffer, tap: Tap, link: Link, history: History) -> None:
        """The model made the client's summary. In observe mode: what would we have served instead?"""
        exchange = tap.exchange
        observing = self._mode(exchange) == "observe"
        would = await self._swap(exchange, buffer, history) if observing else None
        about = summary_size(tap.answer.message, tap.answer.usage)
        seen = self.verdicts.compacted(buffer, link.compaction, history, exchange, about=about, would=would)
        if observing:
            await self._record(buffer, "observe", {"exchange_id": exchange.id, **seen, "would": would_serve(would)})

    async def _consider(self, buffer: Buffer, tap: Tap, link: Link, client: Client, tokens: int) -> None:
        exchange = tap.exchange
        buffer.client = client
        where: Wall = wall(client, buffer.observed)
        if where.never:
            return
        await self._place(buffer, tap, link)
        if buffer.served is not None and exchange.id < buffer.served.exchange:
            return  # an answer from before the swap
        state = State(
            buffer.phase,
            buffer.basis,
            buffer.growth,
            buffer.summary_seconds,
            native=bool(buffer.native),
            precomputed=buffer.precomputed,
        )
        limits = frozenset(limit.status for limit in tap.limits)
        told = Answer(tokens, limits, exchange.passthrough)
        thresholds = self._thresholds(exchange)
        buffer.near = tokens >= thresholds.swap * where.tokens
        decision = decide(state, told, where, thresholds)
        if decision.ready and buffer.phase is Phase.WAL_ACTIVE:
            self.buffers.move(buffer, Event.NEAR_WALL)
        if not decision.start or buffer.running is not None:
            return
        if not decision.act:
            self._app.emit(
                "checkpoint_observed",
                conv_id=buffer.conversation,
                thread=buffer.thread,
                tokens=tokens,
                wall=where.tokens,
                reason=decision.reason,
            )
            return
        before = _stand(buffer)
        base = await self.reader.base(tap, buffer, link, tokens)
        gone = self.buffers.find(buffer.conversation, buffer.thread) is not buffer  # somebody reset the conversation
        if base is None or gone or _stand(buffer) != before:
            return  # the client compacted meanwhile
        known = any(item.chain == base.chain and item.model == base.model for item in buffer.checkpoints)
        if known or buffer.tried == (base.chain, base.account):
            return  # one try for each history: its answer is looked at twice
        refusal = self.checkpoints.allows(base.account, base.model, tokens)
        if refusal:
            self._app.emit("checkpoint_postponed", conv_id=buffer.conversation, thread=buffer.thread, reason=refusal)
            return
        buffer.tried = base.chain, base.account
        self.checkpoints.start(
            buffer, self._services, base, reason=f"{tokens} of {where.tokens} tokens ({where.source})"
        )

    async def _place(self, buffer: Buffer, tap: Tap, link: Link) -> None:
        """After a rewind, a fork or a change of the model: does a checkpoint still fit this history?"""
        place = link.branch, tap.answer.model or ""
        if not buffer.checkpoints or place == buffer.place:
            return
        body = await tap.held.read() if tap.held is not None else None
        history = await self.reader.read(body, tap.exchange) if body is not None else None
        if history is None or history.thread is not None:
            return
        fits = buffer.fitting(history.chains, history.model)
        buffer.place = place
        buffer.basis = fits[0].tokens if fits is not None else 0
        if fits is None and buffer.phase in (Phase.WAL_ACTIVE, Phase.SWAP_READY):
            self.buffers.move(buffer, Event.STALE)
        elif fits is not None and buffer.phase is Phase.IDLE:
            self.buffers.move(buffer, Event.KEPT)

    # ---- settings and facts

    def _mode(self, exchange: Exchange) -> str:
        if exchange.passthrough:
            return "off"
        return str(self._services.settings(exchange).get("buffer", "on"))

    def _thresholds(self, exchange: Exchange) -> Thresholds:
        settings = self._services.settings(exchange)
        self.checkpoints.budget = replace(
            self.checkpoints.budget, limit=int(self._number(settings, "buffer_daily_tokens", 0))
        )
        return Thresholds(
            mode=self._mode(exchange),
            checkpoint=self._number(settings, "checkpoint_threshold", 0.70),
            swap=self._number(settings, "swap_threshold", 0.80),
            floor_tokens=int(self._number(settings, "compact_trigger_tokens", 50_000)),
            log_tokens=int(self._number(settings, "buffer_log_tokens", 50_000)),
            adaptive=settings.get("buffer_adaptive") is True,
        )

    @staticmethod
    def _number(settings: Mapping[str, object], name: str, default: float) -> float:
        value = settings.get(name, default)
        return value if isinstance(value, int | float) else default

    def _client(self, exchange: Exchange, model: str, max_tokens: int) -> Client:
        fields = exchange.request.fields
        return Client(
            parse_version((fields.get(b"user-agent") or b"").decode("latin-1")),
            model,
            self._services.context_window(model),
            max_tokens,
            self._services.client_variables(exchange),
            frozenset(token.decode("latin-1") for token in fields.tokens(b"anthropic-beta")),
            exchange.via.value == "tunnel",
        )

    def _moved(self, buffer: Buffer, before: Phase, event: Event) -> None:
        self._app.emit(
            "phase_transition",
            conv_id=buffer.conversation,
            thread=buffer.thread,
            from_phase=before,
            to_phase=buffer.phase,
            trigger=event,
        )
        if buffer.thread == "main":
            self._services.note(buffer.conversation, phase=str(buffer.phase))
        self._dirty.add(buffer.conversation)


def _is_elsewhere(exchange: Exchange) -> bool:
    """Is it another model's, or was it to be? A checkpoint would be asked of one that never saw this history."""
    route = exchange.attributes.get("route")
    return isinstance(route, RouteFacts) and route.outcome != "declined"


def _session(exchange: Exchange) -> str:
    return (exchange.request.fields.get(b"x-claude-code-session-id") or b"").decode("latin-1")


def _stand(buffer: Buffer) -> tuple[object, ...]:
    return buffer.phase, buffer.running, buffer.served


def _why_native(history: History) -> str:
    request = history.request
    if request is None or history.thread is not None:
        return "a message thread whose history is not stored"
    return "the user gave instructions" if request.words else f"a {request.kind} summary is asked for"
