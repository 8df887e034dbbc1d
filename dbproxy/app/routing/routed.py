"""A request that another model answers: one target after the other, and at last where the client sent it.

Owns what becomes of a `Route`: the attempts, their order, when to give up, what is told and stored. Must never know
rules (why it is this model comes in with the route) nor touch sockets. Invariants
- until something of an answer is there to see, a failure goes to the next target, then to the client's own upstream;
  afterwards the client gets one error event, never a clean end.
- The client's credential stays on the way that the client chose; a provider gets what its plugin made and nothing else.
- The client is told in its own measure: token counts times its window divided by the model's, so that it compacts where
  the model's context really ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from dbproxy.app.analyst import decoded_body
from dbproxy.app.client import ClientGone
from dbproxy.app.crash import describe_crash
from dbproxy.app.respond import json_response
from dbproxy.app.routing.client_window import client_version, client_window
from dbproxy.app.routing.delivery import Delivery, Flow
from dbproxy.app.routing.provider_call import Asking
from dbproxy.app.send import send
from dbproxy.errors import DbproxyError, UpstreamError
from dbproxy.exchange import Fields, LocalResponse, Outcome, RequestDraft, RequestHead
from dbproxy.model import shapes
from dbproxy.model.accumulate import Accumulator
from dbproxy.model.codecs.estimate import prompt_tokens, scale_of
from dbproxy.model.codecs.failure import Failure, overflow
from dbproxy.model.codecs.gate import Gate
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.request import Unroutable, read_request
from dbproxy.model.codecs.thinking import without_foreign_thinking
from dbproxy.model.codecs.translation import Translation
from dbproxy.model.route import FAILED, FELL_BACK, ROUTED, ROUTED_MODEL, Attempt, RouteFacts
from dbproxy.model.usage import Usage
from dbproxy.wire import h1
from dbproxy.wire.sse import SseSplitter

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.app.routing.registry import Known
    from dbproxy.hooks.routing import ProviderCall, Route, Target
    from dbproxy.model.codecs.request import Request
    from dbproxy.model.codecs.writer import MessageWriter

_T = TypeVar("_T")

#: A body from this size on (bytes) is read and translated in a thread: below, that takes less than 4 ms.
OFF_LOOP: Final = 160 * 1024
#: Pauses before further tries at one provider (seconds); a longer wait that it asks for is not waited for.
_PAUSES: Final = (0.5, 1.0, 2.0)
_LONGEST_WAIT: Final = 5
#: Statuses that say something about the provider, or our account there, and not about the request.
_PROVIDER_S_FAULT: Final = frozenset({401, 402, 403, 429})
#: How long an answer of the client's own upstream may take once the client has waited for others.
_LAST_WAY_SECONDS: Final = 1800.0
#: How sure the guess at a prompt's size must be before it is refused unsent; it errs upwards.
_SURELY: Final = 1.25
#: From this version on the client compacts on an overflow; older ones end there (client facts 4.2).
_COMPACTS_SINCE: Final = (2, 1, 197)


@dataclass(frozen=True, slots=True)
class Forward:
    """The request goes where the client sent it; ``body`` takes the place of its own if given."""

    body: bytes | None = None


class RoutedRun:
    """One request with a route. ``facts`` is what is stored of it."""

    def __init__(self, flow: Flow, route: Route) -> None:
        self.flow = flow
        self.route = route
        self.facts = RouteFacts(FAILED, rule=route.rule, reason=route.reason)
        self.delivery: Delivery | None = None
        self._attempts: list[Attempt] = []
        self._failure: Failure | None = None
        self._body = b""
        self._served = ""  # the model that answers, for the head

    async def run(self) -> bool | LocalResponse | Forward:
        """Whether the client's connection can go on after a streamed answer; or an answer to be sent; or `Forward`.

        Raises ClientGone.
        """
        try:
            return await self._run()
        finally:
            self._keep()

    async def _run(self) -> bool | LocalResponse | Forward:
        exchange = self.flow.exchange
        body = decoded_body(exchange.request.fields, [exchange.body or b""])
        if body is None:
            return self._give_up("the request's content coding cannot be undone")
        self._body = body
        try:
            request = await self._off_loop(lambda: read_request(body))
        except Unroutable as error:
            return self._give_up(str(error))
        if request.stream:
            self.delivery = Delivery(self.flow, self._fields)
        return await self._beside_pings(request)

    async def _beside_pings(self, request: Request) -> bool | LocalResponse | Forward:
        """Go through the targets while the client is kept from giving up. Errors leave the nursery by hand, because a
        group of one is still a group."""
        failure: ClientGone | None = None
        answer: bool | LocalResponse | Forward = Forward()

        async def keep_alive(delivery: Delivery) -> None:
            nonlocal failure
            try:
                await delivery.keep_alive()
            except ClientGone as error:
                failure = error
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            if self.delivery is not None:
                nursery.start_soon(keep_alive, self.delivery)
            try:
                answer = await self._targets(request)
            except ClientGone as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return answer

    # ---- the targets

    async def _targets(self, request: Request) -> bool | LocalResponse | Forward:
        routing = self.flow.proxy.routing
        for target in self.route.targets:
            known = routing.get(target.provider)
            reason = self._unusable(known, target, request)
            if known is None or reason:
                self._attempts.append(Attempt(target.provider, target.model, error=reason))
                continue
            answer = await self._target(known, target, request)
            if answer is not None:
                return answer
            if self._failure is not None and self._failure.overflow and self._compacts(request):
                return await self._failed(self._failure)
        last = self._failure or Failure(502, "api_error", self._attempts[-1].error if self._attempts else "no target")
        if self.route.fallback:
            return await self._fall_back()
        return await self._failed(last)

    def _unusable(self, known: Known | None, target: Target, request: Request) -> str:
        """Why this target is not asked; "" if it is."""
        if known is None:
            return f"there is no provider {target.provider}"
        now = trio.current_time()
        try:
            reason = known.provider.unready() or known.provider.decline(request, target.model)
        except Exception as error:
            return f"the provider failed: {describe_crash(error)}"
        if reason:
            return reason
        if not known.breaker.allows(now):
            return f"{target.provider} is left alone for a while after {known.breaker.failed} failures"
        return ""

    async def _target(self, known: Known, target: Target, request: Request) -> bool | LocalResponse | Forward | None:
        """Ask one provider, again if that may help. None if it gave no answer: ``_failure`` says why."""
        try:
            translation = self._translation(known, target, request)
            call = await self._off_loop(lambda: known.provider.call(request, translation))
        except Exception as error:  # a provider may be anybody's
            reason = str(error) if isinstance(error, Unroutable) else f"the provider failed: {describe_crash(error)}"
            known.breaker.undecided()
            self._attempts.append(Attempt(target.provider, target.model, error=reason))
            return None
        if call.as_client:
            known.breaker.well()
            self._done(ROUTED, target, translation, None)
            return Forward(call.body)
        limit = translation.capabilities.context
        if limit and translation.estimate > _SURELY * limit:
            known.breaker.undecided()
            self._attempts.append(Attempt(target.provider, target.model, error="the context is too large for it"))
            scale = translation.scale
            self._failure = overflow(round(translation.estimate * scale), round(limit * scale))
            return None
        return await self._asked(known, target, translation, call)

    async def _asked(
        self, known: Known, target: Target, translation: Translation, call: ProviderCall
    ) -> bool | LocalResponse | None:
        limits, breaker = known.limits, known.breaker
        self._served = str(target)
        # Whoever looks at the answer from its head on can tell.
        serving = replace(self.facts, outcome=ROUTED, provider=target.provider, model=target.model)
        self.flow.exchange.attributes["route"] = serving
        for number in range(limits.retries + 1):
            asking = Asking(self.flow, self.delivery, call, translation, limits, target.provider)
            try:
                failure = await asking.run()
            except BaseException:
                breaker.undecided()
                self._try(target, asking, "the client went away")
                raise
            self._try(target, asking, failure.message if failure is not None else "")
            if failure is None:
                told = asking.told
                if told is not None:  # after something was there to see: an error event tells the client
                    breaker.failure(trio.current_time(), limits)
                else:
                    breaker.well()
                return await self._answered(target, translation, asking)
            self._failure = failure
            if not failure.transient and failure.upstream not in _PROVIDER_S_FAULT:
                breaker.undecided()
                return None
            breaker.failure(trio.current_time(), limits)
            wait = failure.seconds if failure.seconds is not None else _PAUSES[min(number, len(_PAUSES) - 1)]
            if not failure.transient or number == limits.retries or wait > _LONGEST_WAIT:
                return None
            if not breaker.allows(trio.current_time()):
                return None
            self.flow.proxy.routing.retries += 1
            await trio.sleep(wait)
        return None

    def _try(self, target: Target, asking: Asking, error: str) -> None:
        ended = asking.first_byte or trio.current_time()
        ms = round((ended - asking.began) * 1e3, 1)
        self._attempts.append(Attempt(target.provider, target.model, asking.status, ms, error))

    async def _answered(self, target: Target, translation: Translation, asking: Asking) -> bool | LocalResponse:
        """An answer was delivered, or can be."""
        exchange, writer = self.flow.exchange, asking.writer
        self._done(ROUTED if writer.failure is None else FAILED, target, translation, writer)
        exchange.timings.sent = exchange.timings.sent or asking.began
        exchange.outcome = Outcome.OK
        if self.delivery is not None:
            if asking.told is not None:
                exchange.error = asking.told.message
            await self.delivery.finish()
            return self.delivery.keeps
        if asking.told is not None:
            return self._error(asking.told)
        message = _document(b"".join(asking.gathered))
        return LocalResponse(200, self._fields(b"application/json"), shapes.written(message))

    # ---- when nobody answered

    async def _fall_back(self) -> bool | Forward:
        """Let the client's own upstream answer."""
        self.facts = replace(self.facts, outcome=FELL_BACK)
        body = native_body(self._body)
        if self.delivery is None or not self.delivery.committed:
            return Forward(body)
        return await self._last_way(body or self._body)

    async def _last_way(self, body: bytes) -> bool:
        """The same when the client has had its head and pings already: the answer's events follow those."""
        delivery, exchange = self.delivery, self.flow.exchange
        assert delivery is not None
        request = exchange.request
        fields = h1.end_to_end(request.fields).without(frozenset({b"accept-encoding", b"content-encoding"}))
        draft = RequestDraft(RequestHead(request.method, request.target, b"HTTP/1.1", fields), body)
        dispatch = self.flow.proxy.dispatch
        if dispatch.has("transform_request"):  # as on the way without a detour
            draft = await dispatch.transform("transform_request", draft, exchange=exchange)
        failure = None
        try:
            async with send(
                self.flow.proxy, exchange, draft.head, draft.body or b"", purpose="fallback", deadline=_LAST_WAY_SECONDS
            ) as answer:
                if answer.head.status != 200:
                    failure = _told(await answer.body(), answer.head.status)
                else:
                    async for piece in answer:
                        await delivery.write(piece)
        except (UpstreamError, DbproxyError) as error:
            failure = Failure(502, "api_error", f"dbproxy: {error}")
        exchange.outcome = Outcome.LOCAL  # what it used is counted with the call that was made for it
        if failure is not None:
            exchange.error = failure.message
            await delivery.write(_error_event(failure))
        await delivery.finish()
        return delivery.keeps

    async def _failed(self, failure: Failure) -> bool | LocalResponse:
        """Tell the client, in the way that is still possible."""
        self.flow.exchange.error = failure.message
        if self.delivery is None or not self.delivery.committed:
            return self._error(failure)
        self.flow.exchange.outcome = Outcome.OK
        await self.delivery.write(_error_event(failure))
        await self.delivery.finish()
        return self.delivery.keeps

    def _error(self, failure: Failure) -> LocalResponse:
        status, body = failure.status, failure.body()
        if status in (401, 403):
            # At 403 the client ends, at 401 it may ask its user to log in to Claude: both would be beside the point.
            status, body["error"]["type"] = 400, "invalid_request_error"
        extra = [(b"x-dbproxy-error", b"1"), *failure.fields()]
        if self._served:
            extra.append((ROUTED_MODEL, self._served.encode("latin-1", "replace")))
        return json_response(status, body, extra)

    def _give_up(self, reason: str) -> Forward:
        """A request that cannot be read is the client's own upstream's business."""
        self.facts = replace(self.facts, outcome=FELL_BACK)
        self._attempts.append(Attempt("", "", error=reason))
        return Forward()

    # ---- helpers

    async def _off_loop(self, work: Callable[[], _T]) -> _T:
        if len(self._body) < OFF_LOOP:
            return work()
        return await trio.to_thread.run_sync(work)

    def _translation(self, known: Known, target: Target, request: Request) -> Translation:
        capabilities = known.provider.capabilities(target.model)
        return Translation(
            asked=request.model,
            model=target.model,
            message_id=f"routed_{self.flow.exchange.id}",
            capabilities=capabilities,
            family=capabilities.family or target.provider,
            names=ToolNames(tool.name for tool in request.tools),
            vault=self.flow.proxy.routing.vault,
            scale=scale_of(client_window(self.flow.proxy, self.flow.exchange, request.model), capabilities.context),
            estimate=prompt_tokens(request),
        )

    def _compacts(self, request: Request) -> bool:
        """Does this client compact when it is told that this prompt is too long?

        Not if it has had no answer yet since its beginning or its last summary, and not if this is how it asks for one:
        there it ends (2.1.329), so that its own upstream has to take the request.
        """
        fields = self.flow.exchange.request.fields
        version = client_version(fields)
        if version is None or not self.route.fallback:
            return True
        answered = any(turn.role == "assistant" for turn in request.turns)
        asks = (
            fields.get(b"x-claude-code-request-class") == b"compaction" or b"x-claude-code-compaction" in fields.names
        )
        summed_up = b"x-claude-code-context-compacted" in fields.names
        return version >= _COMPACTS_SINCE and answered and not asks and not summed_up

    def _fields(self, kind: bytes = b"text/event-stream; charset=utf-8") -> Fields:
        """The head of an answer. ``request-id`` comes back in the client's next request and links the two."""
        return Fields.of(
            [
                (b"content-type", kind),
                (b"cache-control", b"no-store"),
                (b"request-id", f"req_routed_{self.flow.exchange.id}".encode()),
                (ROUTED_MODEL, self._served.encode("latin-1", "replace")),
            ]
        )

    def _done(self, outcome: str, target: Target, translation: Translation, writer: MessageWriter | None) -> None:
        self.facts = replace(
            self.facts,
            outcome=outcome,
            provider=target.provider,
            model=target.model,
            scale=translation.scale,
            notes=tuple(translation.notes),
            usage=_usage(writer) if writer is not None else None,
        )

    def _keep(self) -> None:
        """What became of it, for the record and the metrics."""
        facts = self.facts = replace(self.facts, attempts=tuple(self._attempts))
        flow = self.flow
        flow.exchange.attributes["route"] = facts
        target = facts.target or str(self.route.targets[0])
        flow.proxy.routing.outcomes[target, facts.outcome] += 1
        flow.proxy.journal.emit(
            "request_routed",
            level="info" if facts.outcome == ROUTED else "warning",
            exchange_id=flow.exchange.id,
            scope=flow.exchange.scope,
            outcome=facts.outcome,
            target=target,
            rule=facts.rule,
            attempts=len(self._attempts),
            error=next((one.error for one in reversed(self._attempts) if one.error), "") or None,
        )


def native_body(body: bytes) -> bytes | None:
    """A body for the Messages API itself, without what other models thought; None where nothing had to go."""
    value = shapes.parse(body)
    changed = without_foreign_thinking(value, everything=False) if isinstance(value, dict) else None
    return shapes.written(changed) if changed is not None else None


def _usage(writer: MessageWriter) -> Usage:
    tokens = writer.tokens
    return Usage(
        input_tokens=tokens.input or 0,
        output_tokens=tokens.output or 0,
        cache_read=tokens.cache_read,
        cache_write_5m=tokens.cache_write,
        thinking_tokens=tokens.thinking,
    )


def _document(events: bytes) -> dict[str, object]:
    """The message that a stream builds, as one document."""
    answer, splitter = Accumulator(), SseSplitter()
    for event in splitter.feed(events):
        answer.feed(event.name, event.data)
    return answer.message


def _error_event(failure: Failure) -> bytes:
    gate = Gate()
    gate.error(failure.kind, failure.message)
    return gate.take()


def _told(body: bytes, status: int) -> Failure:
    """An error of the Messages API, as it said it."""
    error = shapes.mapping(shapes.mapping(shapes.parse(body)).get("error"))
    kind = shapes.text(error.get("type"), "api_error")
    return Failure(status, kind, shapes.text(error.get("message"), f"the upstream answered with status {status}"))
