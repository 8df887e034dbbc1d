"""One request to one provider: the connection, the upload, the answer read and translated as it comes.

Owns deadlines and the end of the connection. Must never know routes, nor what another attempt did. Invariants: nothing
reaches the client before there is something to see; a codec that raises is a failed answer; a connection on which the
answer did not end cleanly is closed.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import trio

from dbproxy.app.calls import Payload, ask
from dbproxy.app.crash import describe_crash
from dbproxy.errors import DbproxyError, Refused, UpstreamError
from dbproxy.exchange import RequestHead
from dbproxy.model.codecs.failure import Failure, failure_of
from dbproxy.model.codecs.writer import MessageWriter
from dbproxy.net.upstream import Origin
from dbproxy.wire.sse import SseSplitter

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.app.routing.delivery import Delivery, Flow
    from dbproxy.exchange import ResponseHead
    from dbproxy.hooks.routing import ProviderCall, ProviderLimits
    from dbproxy.model.codecs import Codec, StreamReader
    from dbproxy.model.codecs.translation import Translation
    from dbproxy.net.upstream import UpstreamConnection
    from dbproxy.wire.sse import SseEvent

#: The longest error that is read, and the longest answer in one document (bytes).
_ERROR_LIMIT: Final = 256 * 1024
_DOCUMENT_LIMIT: Final = 64 * 1024 * 1024
_STREAM_LIMIT: Final = 1024 * 1024 * 1024
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class Asking:
    """One attempt. ``writer`` holds the answer, ``status`` what the provider answered with (0: nothing)."""

    def __init__(
        self,
        flow: Flow,
        delivery: Delivery | None,
        call: ProviderCall,
        translation: Translation,
        limits: ProviderLimits,
        provider: str,
    ) -> None:
        """``delivery`` is None for a client that wants one document: the events are `gathered` then."""
        self.writer = MessageWriter(translation)
        self.status = 0
        self.gathered: list[bytes] = []
        self.began = trio.current_time()
        self.first_byte = 0.0
        self._flow = flow
        self._delivery = delivery
        self._call = call
        self._translation = translation
        self._limits = limits
        self._provider = provider
        self._secrets = [found for one in call.secrets if len(found := one.encode("utf-8", "surrogateescape")) >= 6]
        self._held: list[bytes] = []

    async def run(self) -> Failure | None:
        """Ask, and pass the answer on. None if it was delivered, with an error event in it at worst; a Failure if
        nothing of it was. Raises ClientGone."""
        failure = await self._carried_out()
        writer = self.writer
        if failure is not None and not writer.done:
            writer.fail(failure)
        if writer.failure is not None and not writer.substance:
            return self._without_secrets(writer.failure)
        await self._pass()
        return None

    @property
    def told(self) -> Failure | None:
        """The failure that the client was told by an event; None if there was none."""
        failure = self.writer.failure
        return self._without_secrets(failure) if failure is not None else None

    def _without_secrets(self, failure: Failure) -> Failure:
        """A codec does not know what must not be shown."""
        message = failure.message
        for secret in self._secrets:
            message = message.replace(secret.decode("utf-8", "surrogateescape"), "[key]")
        return replace(failure, message=message) if message != failure.message else failure

    async def _carried_out(self) -> Failure | None:
        limits = self._limits
        scope = trio.CancelScope(deadline=trio.current_time() + limits.connect)
        what = "no connection"
        try:
            with scope:
                pool = self._flow.proxy.egress_for(self._flow.client.scope).pool
                origin, head = self._head()
                connection = await pool.acquire(origin)
                what = "no answer"
                scope.deadline = trio.current_time() + limits.first_byte
                clean = False
                try:
                    self._flow.exchange.bytes_up = len(self._call.body)
                    response, rest = await ask(connection, head, self._call.body)
                    what = "silent"
                    self.status = response.status
                    self.first_byte = trio.current_time()
                    clean = await self._read(connection, response, rest, scope)
                finally:
                    (pool.release if clean else pool.discard)(connection)
        except UpstreamError as error:
            return self._unreachable(error)
        except Refused as error:
            return Failure(502, "api_error", f"{self._provider}: {error}")
        except DbproxyError as error:  # a setting of this launch that cannot be used
            return Failure(502, "api_error", f"{self._provider}: {error}")
        if scope.cancelled_caught:
            seconds = {"no connection": limits.connect, "no answer": limits.first_byte}.get(what, limits.silence)
            said = "was silent" if what == "silent" else f"gave {what}"
            return Failure(504, "timeout_error", f"{self._provider} {said} for {seconds:g} s", transient=True)
        return None

    def _unreachable(self, error: UpstreamError) -> Failure:
        status, kind = (504, "timeout_error") if error.kind == "timeout" else (502, "api_error")
        return Failure(status, kind, f"{self._provider}: {error}", transient=error.kind not in ("config", "loop"))

    # ---- the request

    def _head(self) -> tuple[Origin, RequestHead]:
        """Where it goes and with which head. Raises UpstreamError for a URL that is none."""
        parts = urlsplit(self._call.url)
        try:
            port = parts.port or _DEFAULT_PORTS[parts.scheme]
        except (KeyError, ValueError):
            raise UpstreamError("config", "its URL cannot be used", hint="Give base_url as https://HOST/PATH") from None
        host = parts.hostname or ""
        if not host:
            raise UpstreamError("config", "its URL names no host", hint="Give base_url as https://HOST/PATH")
        shown = f"[{host}]" if ":" in host else host
        authority = shown if port == _DEFAULT_PORTS[parts.scheme] else f"{shown}:{port}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        gone = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"accept-encoding"})
        fields = self._call.fields.without(gone)
        fields = fields.plus(b"Host", authority.encode()).plus(b"Accept-Encoding", b"identity")
        fields = fields.plus(b"Content-Length", b"%d" % len(self._call.body))
        origin = Origin(parts.scheme, host, port, http1=True)
        return origin, RequestHead(b"POST", target.encode("latin-1", "replace"), b"HTTP/1.1", fields)

    # ---- the answer

    async def _read(
        self, connection: UpstreamConnection, head: ResponseHead, rest: bytes, scope: trio.CancelScope
    ) -> bool:
        """Read and translate it; whether the connection can be used again. Raises UpstreamError."""
        stream = head.status < 300 and _is_events(head)
        limit = _ERROR_LIMIT if head.status >= 300 else _STREAM_LIMIT if stream else _DOCUMENT_LIMIT
        payload = Payload(connection, head, rest, limit=limit, silence=(scope, self._limits.silence))
        if stream:
            await self._translate(payload)
        else:
            data = await payload.all()
            if head.status >= 300:
                self.writer.fail(self._failure(head, data))
            else:
                self._guarded(lambda: self._codec.document(data, self._translation, self.writer))
        return payload.reusable

    async def _translate(self, payload: Payload) -> None:
        writer, splitter = self.writer, SseSplitter()
        reader = self._codec.stream(self._translation, writer)
        try:
            while (piece := await payload.next()) is not None:
                self._feed(reader, splitter.feed(piece))
                await self._pass()
                if writer.done:
                    return
        except UpstreamError as error:
            # What has come may be whole all the same: the codec knows.
            self._guarded(reader.end)
            if not writer.done:
                writer.fail(self._unreachable(error))
            return
        self._feed(reader, splitter.feed(b"\n\n"))  # some servers spare the last blank line
        self._guarded(reader.end)
        writer.finish()

    def _feed(self, reader: StreamReader, events: list[SseEvent]) -> None:
        for event in events:
            if self.writer.done:
                return
            if event.name or event.data:
                self._guarded(lambda event=event: reader.feed(event.name, event.data))  # type: ignore[misc]

    def _guarded(self, work: Callable[[], None]) -> None:
        """A codec may be anybody's: what it raises fails the answer and nothing else."""
        try:
            work()
        except Exception as error:
            self._flow.proxy.journal.emit(
                "codec_failed", level="error", provider=self._provider, error=describe_crash(error)
            )
            self.writer.fail(Failure(502, "api_error", f"{self._provider}: its answer could not be translated"))

    async def _pass(self) -> None:
        """Hand on what there is, once there is something to see."""
        out = self.writer.take()
        for secret in self._secrets:
            if secret in out:  # an error that repeats our key, inside a stream
                out = out.replace(secret, b"[key]")
        if out:
            self._held.append(out)
        if not self._held or not self.writer.substance:
            return
        out = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held.clear()
        if self._delivery is None:
            self.gathered.append(out)
        else:
            await self._delivery.write(out)

    @property
    def _codec(self) -> Codec:
        codec = self._call.codec
        if codec is None:
            raise UpstreamError("config", "its call names no codec")
        return codec

    def _failure(self, head: ResponseHead, body: bytes) -> Failure:
        fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.fields.pairs()}
        return failure_of(
            head.status,
            fields,
            body,
            provider=self._provider,
            secrets=self._call.secrets,
            now=time.time(),
            limit=self._translation.capabilities.context,
            tokens=self._translation.estimate,
        )


def _is_events(head: ResponseHead) -> bool:
    kind = head.fields.get(b"content-type") or b""
    return kind.partition(b";")[0].strip().lower() == b"text/event-stream"
