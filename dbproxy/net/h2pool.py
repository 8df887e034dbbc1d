"""A pool that speaks HTTP/2 with the servers that do, and HTTP/1.1 with the others.

Owns the multiplexed connections. Each request gets a stream of one in the coat of an HTTP/1.1 connection of its own, so
whoever uses the pool sees no difference. Must never know what a request means.

Invariants
- A connection that was told to go away, by either side, gets no new stream; what is under way on it finishes.
- A stream is never retried here: whether the server has acted on it is not ours to guess.
- A failure of ours in one connection ends that connection and its streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbproxy.net.h2mux import Mux
from dbproxy.net.h2stream import MuxStream
from dbproxy.net.streams import TlsStream
from dbproxy.net.upstream import Origin, Pool, UpstreamConnection
from dbproxy.wire.h2 import Wire
from dbproxy.wire.h2bridge import OutgoingRequest

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    import trio

ALPN = ("h2", "http/1.1")


class H2Pool(Pool):
    """``h2_context`` offers ``ALPN``; ``nursery`` runs the connections; ``notice`` is told about a failure of ours."""

    def __init__(
        self,
        *given: Any,
        h2_context: ssl.SSLContext,
        nursery: trio.Nursery,
        notice: Callable[[str], None],
        **named: Any,
    ) -> None:
        super().__init__(*given, **named)
        self._h2_context = h2_context
        self._nursery = nursery
        self._notice = notice
        self._muxes: dict[Origin, list[Mux]] = {}

    def idle_count(self) -> int:
        """How many connections wait in the pool."""
        return super().idle_count() + sum(not mux.streams for muxes in self._muxes.values() for mux in muxes)

    def take_nowait(self, origin: Origin) -> UpstreamConnection | None:
        """A stream of a connection that is there, or an idle HTTP/1.1 connection, or None."""
        for mux in self._muxes.get(origin, ()):
            if mux.takes_more:
                self.reused += 1
                return self._stream(origin, mux)
        return super().take_nowait(origin)

    async def warm(self, origin: Origin) -> None:
        """Have a connection ready, without waiting for a request; failures are left to the request."""
        if not any(mux.takes_more for mux in self._muxes.get(origin, ())):
            await super().warm(origin)

    async def open(self, origin: Origin) -> UpstreamConnection:
        """Dial ``origin`` anew. Raises UpstreamError or Refused."""
        connection = await super().open(origin)
        transport = connection.stream
        if not isinstance(transport, TlsStream) or transport.tls.selected_alpn_protocol() != "h2":
            return connection
        mux = Mux(
            transport,
            Wire(client=True, max_head=self.head_limit),
            head_timeout=self.handshake_timeout,
            idle_timeout=self.idle_timeout,
            head_limit=self.head_limit,
            max_fields=self.max_fields,
        )
        self._muxes.setdefault(origin, []).append(mux)
        self._nursery.start_soon(self._run, origin, mux)
        return self._stream(origin, mux)

    def release(self, connection: UpstreamConnection) -> None:
        """Take back what an exchange ended cleanly on: a stream is over, its connection goes on."""
        if isinstance(connection.stream, MuxStream):
            connection.stream.close()
        else:
            super().release(connection)

    def close(self) -> None:
        """Close every idle connection; streams under way finish."""
        super().close()
        for muxes in list(self._muxes.values()):
            for mux in muxes:
                mux.shutdown()

    def _context_for(self, origin: Origin) -> ssl.SSLContext:
        return self._context if origin.http1 else self._h2_context

    def _stream(self, origin: Origin, mux: Mux) -> UpstreamConnection:
        outgoing = OutgoingRequest(origin.scheme.encode(), head_limit=self.head_limit, max_fields=self.max_fields)
        return UpstreamConnection(
            origin, mux.open(outgoing), head_limit=self.head_limit + _SYNTHESISED, max_fields=self.max_fields
        )

    async def _run(self, origin: Origin, mux: Mux) -> None:
        try:
            await mux.run()
        except Exception as error:  # the crash boundary: what is lost is this connection
            self._notice(f"the HTTP/2 connection to {origin.host} failed: {type(error).__name__}")
        finally:
            muxes = self._muxes[origin]
            muxes.remove(mux)
            if not muxes:
                del self._muxes[origin]


#: A head grows by a few bytes when it is written as HTTP/1.1.
_SYNTHESISED = 65536
