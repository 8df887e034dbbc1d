"""The way of one request: target, policies, upstream, relay, record.

Owns the order of the steps and what each failure means to the client. Must never touch sockets itself. Invariants: an
exchange gets exactly one outcome and one ``exchange_finished``; an untouched request goes out byte for byte; before an
answer has begun a failure is answered, afterwards the connection is broken, never ended cleanly.
"""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

import trio

from dbproxy.app import respond
from dbproxy.app.client import ClientConnection, ClientGone
from dbproxy.app.guard import take_client_key
from dbproxy.app.ids import new_id
from dbproxy.app.relay import (
    Flight,
    Outgoing,
    ResponseRelay,
    both,
    both_ways,
    client_head,
    send_request,
    upload,
)
from dbproxy.errors import DbproxyError, ProtocolViolation, Refused, UpstreamError
from dbproxy.exchange import Exchange, LocalResponse, Outcome, RequestDraft, RequestHead, ResponseHead, Via
from dbproxy.hooks.routing import Declined, Route
from dbproxy.hooks.taps import StreamFilters
from dbproxy.model.route import DECLINED, ROUTED, ROUTED_MODEL, RouteFacts
from dbproxy.wire import h1

if TYPE_CHECKING:
    from dbproxy.app.capture import Recording
    from dbproxy.app.egress import Egress
    from dbproxy.app.proxy import Proxy
    from dbproxy.hooks.routing import RouteDecision
    from dbproxy.hooks.taps import TapFeed
    from dbproxy.net.upstream import Origin, UpstreamConnection

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MESSAGES = "/v1/messages"
#: Paths whose body a plugin may ask for; exact match only, no other child of them.
_HELD_PATHS = frozenset({_MESSAGES, "/v1/messages/count_tokens"})
#: A request of at most this many bytes is sent without a task of its own: it fits into the kernel's buffers.
_SMALL = 65536


class Pipeline:
    """Takes requests from client connections through to their end."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.flights: dict[str, Flight] = {}

    async def handle(
        self, client: ClientConnection, head: RequestHead, *, via: Via, scheme: str, host: str, port: int, target: bytes
    ) -> bool:
        """Serve one request; ``target`` is in origin form. Whether the connection can carry another one."""
        proxy = self.proxy
        head, has_key = take_client_key(head, proxy.settings)
        exchange = Exchange(
            id=new_id(),
            connection=client.id,
            via=via,
            scheme=scheme,
            host=host,
            port=port,
            path=target.partition(b"?")[0].decode("latin-1"),
            request=head if head.target == target else replace(head, target=target),
            scope=client.scope.id if client.scope else None,
            authorised=client.scope is not None or has_key,
            loopback=client.loopback,
            passthrough=proxy.passthrough_for(client.scope),
        )
        exchange.timings.received = trio.current_time()
        counters = proxy.counters
        counters.exchanges_total += 1
        counters.exchanges_open += 1
        proxy.sessions.seen(exchange)
        recording = proxy.archive.capture.begin(exchange, client.scope, proxy.settings_for(client.scope))
        run = _Run(self, client, exchange, recording)
        try:
            return await run.run()
        finally:
            counters.exchanges_open -= 1
            self._finish(exchange, run.feed)
            if recording is not None:
                recording.finish()

    def _observe(self, exchange: Exchange, outcome: Outcome, feed: TapFeed | None) -> None:
        """Tell the taps that it is over, and the observers once the taps have seen everything."""
        dispatch = self.proxy.dispatch

        def finished() -> None:
            dispatch.observe_nowait("exchange_finished", exchange=exchange)

        if feed is not None:
            feed.end(outcome, finished)
        elif dispatch.has("exchange_finished"):
            finished()

    def _finish(self, exchange: Exchange, feed: TapFeed | None) -> None:
        proxy, counters = self.proxy, self.proxy.counters
        exchange.timings.finished = trio.current_time()
        counters.bytes_up_total += exchange.bytes_up
        counters.bytes_down_total += exchange.bytes_down
        outcome = exchange.outcome
        if outcome is None:
            outcome = exchange.outcome = Outcome.CLIENT_GONE
        if outcome is Outcome.CLIENT_GONE:
            counters.exchanges_aborted_total += 1
        elif outcome is Outcome.UPSTREAM_CUT:
            counters.exchanges_cut_total += 1
        elif outcome is Outcome.UPSTREAM_FAILED:
            counters.exchanges_failed_total += 1
        elif outcome in (Outcome.LOCAL, Outcome.REFUSED):
            counters.exchanges_local_total += 1
        elif outcome is Outcome.UPGRADED:
            counters.upgrades_total += 1
        self._observe(exchange, outcome, feed)
        times = exchange.timings
        proxy.journal.emit(
            "exchange_finished",
            exchange_id=exchange.id,
            scope=exchange.scope,
            method=exchange.request.method.decode("latin-1"),
            host=exchange.host,
            path=exchange.path,
            status=exchange.response.status if exchange.response else None,
            outcome=outcome.value,
            error=exchange.error or None,
            bytes_up=exchange.bytes_up,
            bytes_down=exchange.bytes_down,
            first_byte_ms=round((times.first_byte - times.received) * 1e3, 2) if times.first_byte else None,
            duration_ms=round((times.finished - times.received) * 1e3, 2),
        )


class _Run:
    """One exchange under way."""

    __slots__ = ("client", "exchange", "feed", "flight", "instead", "pipeline", "proxy", "recording", "sent")

    def __init__(
        self, pipeline: Pipeline, client: ClientConnection, exchange: Exchange, recording: Recording | None
    ) -> None:
        self.pipeline = pipeline
        self.proxy = pipeline.proxy
        self.client = client
        self.exchange = exchange
        self.recording = recording
        self.feed: TapFeed | None = None
        self.sent = False  # the whole request is with the kernel
        self.instead: bytes | None = None  # what a route sends in place of the body, to where the client sent it

    async def run(self) -> bool:
        client, exchange = self.client, self.exchange
        keep = False
        with trio.CancelScope() as scope:
            client.under_way = scope
            flight = self.flight = Flight(exchange, client, scope)
            self.pipeline.flights[exchange.id] = flight
            try:
                if client.gone:
                    scope.cancel()
                keep = await self._steps()
            except ClientGone as error:
                exchange.outcome, exchange.error = Outcome.CLIENT_GONE, str(error)
                client.stream.drop()
                return False
            finally:
                client.under_way = None
                del self.pipeline.flights[exchange.id]
        if scope.cancelled_caught:
            return await self._cancelled()
        return keep

    async def _cancelled(self) -> bool:
        """The exchange was cut short: the client went away, or the upstream was silent for too long."""
        client, exchange, flight = self.client, self.exchange, self.flight
        if not flight.timed_out:
            exchange.outcome, exchange.error = Outcome.CLIENT_GONE, "the client closed the connection"
            client.stream.drop()
            return False
        error = UpstreamError(
            "timeout", f"{exchange.host} was silent for more than {self.proxy.settings.upstream_silence_timeout:g} s"
        )
        return await self._failed(error, body_done=False)

    async def _steps(self) -> bool:
        exchange, client = self.exchange, self.client
        body = h1.Body(_NO_FRAMING)
        try:
            framing = h1.request_framing(exchange.request)
            body = h1.Body(framing, keep=self.recording is not None and self.recording.whole)
            if await self._wants_body(framing):
                body = h1.Body(framing, keep=framing.kind is h1.Kind.CHUNKED)
                raw = await self._read_whole(body)
            else:
                raw = self._take_buffered(body)
            if self.recording is not None:
                self.recording.complete = body.done
            response = await self._intercepted()
            if response is not None:
                return await self._answer(response, body_done=body.done)
            decision = await self._route()
            if isinstance(decision, Route):
                keep = await self._elsewhere(decision, body)
                if keep is not None:
                    return keep
            elif decision is not None:
                self._stays(decision)
            return await self._forward(body, raw)
        except ProtocolViolation as error:
            self.proxy.counters.protocol_errors_total += 1
            exchange.outcome, exchange.error = Outcome.REFUSED, str(error)
            return await self._answer(respond.error_response(error.status, str(error)), body_done=False)
        except Refused as error:
            exchange.outcome, exchange.error = Outcome.REFUSED, str(error)
            response = respond.error_response(error.status, str(error), kind=error.kind)
            return await self._answer(response, body_done=body.done)
        except UpstreamError as error:
            if client.gone:
                raise ClientGone("the client closed the connection") from None
            return await self._failed(error, body_done=body.done)
        except DbproxyError as error:  # a setting of this launch that cannot be used, for example its upstream_ca
            return await self._failed(UpstreamError("config", str(error)), body_done=body.done)

    async def _failed(self, error: UpstreamError, *, body_done: bool) -> bool:
        """Tell the client that the upstream failed, in the way that is still possible."""
        exchange, client = self.exchange, self.client
        exchange.error = str(error)
        self.proxy.journal.emit(
            "upstream_error",
            level="warning",
            exchange_id=exchange.id,
            scope=exchange.scope,
            host=exchange.host,
            kind=error.kind,
            message=str(error),
            answered=self.flight.answered,
        )
        if not self.flight.answered:
            exchange.outcome = Outcome.UPSTREAM_FAILED
            return await self._answer(respond.upstream_failed(error), body_done=body_done)
        exchange.outcome = Outcome.UPSTREAM_CUT
        response = exchange.response
        if response is not None and h1.response_framing(response, exchange.request.method).kind is h1.Kind.CLOSE:
            client.stream.abort()  # without length or chunks only a reset tells a cut from an end
        else:
            client.stream.drop()
        return False

    async def _answer(self, response: LocalResponse, *, body_done: bool) -> bool:
        """Send an answer of our own. Whether the connection can go on."""
        exchange, client, request = self.exchange, self.client, self.exchange.request
        if self.flight.answered:
            client.stream.drop()
            return False
        close = not body_done or not h1.keeps_alive(request.version, request.fields)
        exchange.response = respond.response_head(response, close=close)
        exchange.timings.first_byte = trio.current_time()
        if exchange.outcome is None:
            exchange.outcome = Outcome.LOCAL
        self.flight.answered = True
        if self.recording is not None:
            response = self.recording.local(response)
        try:
            exchange.bytes_down = await client.answer(
                response, method=request.method, version=request.version, close=close
            )
        except (ClientGone, trio.Cancelled):
            raise
        except Exception as error:  # a plugin's stream failed in the middle of its answer
            exchange.error = f"the answer broke off: {type(error).__name__}"
            client.stream.abort()
            return False
        return not close

    # ---- the request's body

    async def _wants_body(self, framing: h1.Framing) -> bool:
        exchange = self.exchange
        if exchange.passthrough or framing.kind is h1.Kind.NONE or exchange.path not in _HELD_PATHS:
            return False
        if framing.length > self.proxy.settings.max_held_body_bytes or not self.proxy.dispatch.has("wants_body"):
            return False
        return bool(await self.proxy.dispatch.decide("wants_body", exchange=exchange))

    def _take_buffered(self, body: h1.Body) -> bytes:
        """The part of a streamed body that came with the head."""
        client = self.client
        if body.done or not len(client.buffer):
            return b""
        raw = client.buffer.rest()
        used = body.feed(raw)
        client.unread(raw[used:])
        if self.recording is not None and body.keep:
            self.recording.uploaded(body.take())
        return raw[:used]

    async def _read_whole(self, body: h1.Body) -> bytes:
        """Read the body whole for the policies; its exact wire bytes. One larger than the limit is left streaming."""
        client, exchange = self.client, self.exchange
        if b"100-continue" in exchange.request.fields.tokens(b"expect"):
            await client.send(_CONTINUE)
            exchange.request = replace(exchange.request, fields=exchange.request.fields.without(frozenset({b"expect"})))
        # These grow in place and give their content away without a copy: what a joined list would not do.
        payload, wire = BytesIO(), BytesIO()
        chunked = body.kind is h1.Kind.CHUNKED
        limit = self.proxy.settings.max_held_body_bytes
        while not body.done:
            data = await client.receive_body()
            used = body.feed(data)
            if used < len(data):
                client.unread(data[used:])
                data = data[:used]
            payload.write(body.take() if chunked else data)
            if chunked:
                wire.write(data)
            if body.count > limit:
                # Too large to hold: what was read goes on, the rest is streamed, and no policy sees it.
                body.keep = False
                if self.recording is not None:
                    self.recording.lose()
                return (wire if chunked else payload).getvalue()
        exchange.body = payload.getvalue()
        if self.recording is not None:
            self.recording.uploaded(exchange.body)
        return wire.getvalue() if chunked else exchange.body

    # ---- policies

    async def _intercepted(self) -> LocalResponse | None:
        exchange, dispatch = self.exchange, self.proxy.dispatch
        if exchange.passthrough or not dispatch.has("intercept_request"):
            return None
        response: LocalResponse | None = await dispatch.decide("intercept_request", exchange=exchange)
        return response

    async def _route(self) -> RouteDecision | None:
        exchange, dispatch = self.exchange, self.proxy.dispatch
        if exchange.passthrough or exchange.body is None or exchange.path != _MESSAGES:
            return None
        if not dispatch.has("route_request"):
            return None
        decision: RouteDecision | None = await dispatch.decide("route_request", exchange=exchange)
        return decision

    async def _elsewhere(self, route: Route, body: h1.Body) -> bool | None:
        """Let another model answer: whether the connection can go on; None if the request takes its own way."""
        from dbproxy.app.routing.delivery import Flow  # only whoever routes pays for it
        from dbproxy.app.routing.routed import Forward, RoutedRun

        if self.recording is not None:
            self.recording.request_read()
        run = RoutedRun(Flow(self.proxy, self.exchange, self.client, self.flight, self.recording), route)
        try:
            answer = await run.run()
        finally:
            self.feed = run.delivery.feed if run.delivery is not None else None
        if isinstance(answer, Forward):
            self.instead = answer.body
            return None
        if isinstance(answer, LocalResponse):
            return await self._answer(answer, body_done=body.done)
        return answer and body.done and self._client_keeps()

    def _stays(self, declined: Declined) -> None:
        """A rule fits, and the request takes its own way all the same."""
        facts = RouteFacts(DECLINED, rule=declined.rule, reason=declined.reason)
        self.exchange.attributes["route"] = facts
        self.proxy.routing.outcomes["", DECLINED] += 1
        if declined.foreign and self.exchange.body is not None:
            from dbproxy.app.analyst import decoded_body
            from dbproxy.app.routing.routed import native_body

            whole = decoded_body(self.exchange.request.fields, [self.exchange.body])
            self.instead = native_body(whole) if whole is not None else None

    async def _transformed(self, draft: RequestDraft) -> RequestDraft:
        dispatch = self.proxy.dispatch
        if self.exchange.passthrough or not dispatch.has("transform_request"):
            return draft
        changed: RequestDraft = await dispatch.transform("transform_request", draft, exchange=self.exchange)
        return changed

    # ---- upstream

    async def _forward(self, body: h1.Body, raw: bytes) -> bool:
        exchange, proxy = self.exchange, self.proxy
        request = exchange.request
        upgrade = h1.wants_upgrade(request.fields)
        egress = proxy.egress_for(self.client.scope)
        origin, head = proxy.destination(exchange, h1.end_to_end(request.fields, keep_upgrade=upgrade))
        draft = RequestDraft(head, exchange.body)
        sent = await self._transformed(draft if self.instead is None else replace(draft, body=self.instead))
        if sent is not draft:
            head, raw, body = _replaced(draft, sent, body, raw)
        if upgrade and proxy.settings.upstream_http2:
            origin = replace(origin, http1=True)
        connection = await self._connect(egress, origin)
        exchange.bytes_up = body.count
        clean = False
        try:
            first = h1.serialise_request(head)
            outgoing = Outgoing(first + raw, body) if len(raw) <= _SMALL else Outgoing(first, body, raw)
            exchange.timings.sent = trio.current_time()
            if body.done and not outgoing.rest and len(outgoing.first) <= _SMALL:
                await send_request(self.flight, connection, outgoing)
                self._is_sent()
                clean = await self._respond(connection, upgrade)
            else:
                clean = await self._respond_while_sending(connection, outgoing, upgrade)
            reusable = clean and self.sent and self._upstream_keeps(connection)
        except BaseException:
            egress.pool.discard(connection)
            raise
        if reusable:
            egress.pool.release(connection)
        else:
            egress.pool.discard(connection)
        return clean and body.done and exchange.outcome is Outcome.OK and self._client_keeps()

    async def _connect(self, egress: Egress, origin: Origin) -> UpstreamConnection:
        connection = egress.pool.take_nowait(origin)
        if connection is None:
            self.flight.waiting = trio.current_time()
            connection = await egress.pool.acquire(origin)
        return connection

    async def _respond_while_sending(self, connection: UpstreamConnection, outgoing: Outgoing, upgrade: bool) -> bool:
        """Send a large or unfinished body and read the answer at the same time.

        A server may answer before it has read everything; it may also stop reading then, so neither side waits for the
        other. Errors are carried out of the nursery by hand, because a group of one is still a group.
        """
        failure: Exception | None = None
        clean = False

        async def send_all() -> None:
            nonlocal failure
            try:
                await send_request(self.flight, connection, outgoing)
                await upload(self.flight, connection, outgoing.body, self.recording)
                if outgoing.body.done:
                    self._is_sent()
            except UpstreamError:
                pass  # the answer, or its absence, tells
            except (ClientGone, ProtocolViolation) as error:
                failure = error
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            try:
                clean = await self._respond(connection, upgrade)
            except (ClientGone, ProtocolViolation, UpstreamError, Refused) as error:
                failure = failure or error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return clean

    def _is_sent(self) -> None:
        """The request is with the kernel; from here on the capture thread may work on it beside us."""
        self.sent = True
        if self.recording is not None:
            self.recording.request_read()

    async def _respond(self, connection: UpstreamConnection, upgrade: bool) -> bool:
        """Read the answer and relay it; whether it ended in order."""
        exchange, client, proxy, flight = self.exchange, self.client, self.proxy, self.flight
        flight.waiting = trio.current_time()

        async def informational(raw: bytes, head: ResponseHead) -> None:
            if exchange.request.version == b"HTTP/1.1":
                await client.send(raw)

        head, rest = await connection.read_head(on_informational=informational)
        flight.waiting = 0.0
        exchange.timings.first_byte = trio.current_time()
        if head.status == 101:
            return await self._upgraded(connection, head, rest, upgrade)
        try:
            framing = h1.response_framing(head, exchange.request.method)
        except ProtocolViolation as error:
            raise UpstreamError("protocol", f"{connection.origin.host}: {error}") from None
        exchange.response = head
        filters = None
        if not exchange.passthrough:
            if proxy.dispatch.has("transform_response_head"):
                head = self._response_head_transformed(head)
            route = exchange.attributes.get("route")
            if isinstance(route, RouteFacts) and route.outcome == ROUTED:
                head = replace(head, fields=head.fields.plus(ROUTED_MODEL, route.target.encode("latin-1", "replace")))
            if framing.kind is not h1.Kind.NONE:
                filters = StreamFilters.for_exchange(proxy.dispatch, exchange, head)
        self.feed = proxy.taps.open(exchange, exchange.response)
        close = framing.kind is h1.Kind.CLOSE or not self._client_keeps()
        close = close or (framing.kind is h1.Kind.CHUNKED and exchange.request.version != b"HTTP/1.1")
        shown = client_head(head, framing, rewritten=filters is not None, version=exchange.request.version, close=close)
        relay = ResponseRelay(flight, connection, framing, filters, both(self.feed, self.recording))
        try:
            await relay.run(h1.serialise_response(shown), rest)
            exchange.outcome = Outcome.OK
        finally:
            exchange.bytes_down = relay.body.count
        return relay.body.done and not close

    def _response_head_transformed(self, head: ResponseHead) -> ResponseHead:
        """What a plugin made of the head; framing stays the upstream's."""
        changed: ResponseHead = self.proxy.dispatch.transform_sync(
            "transform_response_head", head, exchange=self.exchange
        )
        if changed is head:
            return head
        framing = frozenset({b"content-length", b"transfer-encoding", b"connection", b"trailer"})
        fields = changed.fields.without(framing)
        for name, value, line in zip(head.fields.names, head.fields.values, head.fields.lines, strict=True):
            if name in framing:
                fields = fields.plus(line.partition(b":")[0], value)
        return replace(changed, fields=fields)

    async def _upgraded(self, connection: UpstreamConnection, head: ResponseHead, rest: bytes, upgrade: bool) -> bool:
        """Become a two-way byte stream, with no limits of time."""
        if not upgrade:
            raise UpstreamError("protocol", f"{connection.origin.host} switched protocols unasked")
        if not self.sent:
            raise UpstreamError("protocol", f"{connection.origin.host} switched protocols in the middle of the request")
        exchange, client = self.exchange, self.client
        exchange.response = head
        shown = client_head(head, h1.Framing(h1.Kind.NONE), rewritten=False, version=b"HTTP/1.1", close=False)
        await client.send(h1.serialise_response(shown))
        self.flight.answered = True
        exchange.outcome = Outcome.UPGRADED
        client.under_way = None  # a half-close is not the end of an upgraded stream
        up, down = await both_ways(client.stream, connection.stream, rest, client.buffer.rest())
        exchange.bytes_up += up
        exchange.bytes_down += down
        return False

    def _client_keeps(self) -> bool:
        request = self.exchange.request
        return h1.keeps_alive(request.version, request.fields) and not self.proxy.draining

    def _upstream_keeps(self, connection: UpstreamConnection) -> bool:
        head = self.exchange.response
        return (
            head is not None
            and h1.keeps_alive(head.version, head.fields)
            and not (connection.stream.eof or connection.stale)
        )


_NO_FRAMING = h1.Framing(h1.Kind.NONE)


def _replaced(draft: RequestDraft, sent: RequestDraft, body: h1.Body, raw: bytes) -> tuple[RequestHead, bytes, h1.Body]:
    """What goes out after a plugin changed a request: length and coding fields put right."""
    if sent.body is None or sent.body is draft.body:
        return sent.head, raw, body
    gone = frozenset({b"content-encoding", b"transfer-encoding", b"trailer"})
    fields = sent.head.fields.without(gone).replaced(b"Content-Length", b"%d" % len(sent.body))
    done = h1.Body(_NO_FRAMING)
    done.count = len(sent.body)
    return replace(sent.head, fields=fields), sent.body, done
