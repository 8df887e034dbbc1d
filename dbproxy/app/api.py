"""What was captured, over HTTP: the endpoints below ``/api`` that read the database file, and the live feed.

Owns their parameters, the shape of their answers and how long reading may take. Never writes. Invariants: the event
loop reads nothing, every question runs in a thread, few at a time and with a deadline; lists are paged by cursor; a
body comes back as the very bytes that were sent, marked where they are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbproxy.app import respond
from dbproxy.app.live import LISTENERS, LiveFeed
from dbproxy.app.routes import OwnRequest, Route
from dbproxy.exchange import Fields, LocalResponse

if TYPE_CHECKING:
    from dbproxy.app.proxy import Proxy
    from dbproxy.exchange import SendBytes

_EVENT_STREAM = Fields.of(
    [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
)


class CaptureEndpoints:
    """The endpoints of one proxy. ``live`` is told what happens by whoever knows it."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.live = LiveFeed()
        proxy.journal.subscribe(self.live.line)

    def routes(self) -> list[Route]:
        """The table of endpoints."""
        return [Route("/api/events", self._events)]

    async def _events(self, request: OwnRequest) -> LocalResponse:
        query = request.query("after")
        if self.live.listeners >= LISTENERS:
            return respond.error_response(
                529, f"{LISTENERS} listeners are connected already; close a page that shows the live feed"
            )
        after = query.get("after", "") or (request.fields.get(b"last-event-id") or b"").decode("latin-1")

        async def stream(send: SendBytes) -> None:
            await self.live.stream(send, after=after, ending=self._is_ending)

        return LocalResponse(200, _EVENT_STREAM, stream=stream)

    def _is_ending(self) -> bool:
        return self._proxy.draining or self._proxy.closing
