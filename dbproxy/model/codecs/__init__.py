"""The Messages API in other words: requests to other dialects, their answers, streams and errors back.

A dialect is a `Codec`. This file owns what one is; each has a folder of its own (``chat``, ``responses``, ``gemini``,
``native``). The direction here is outward: the client speaks Messages, the model something else. The way in (clients
that speak another dialect) has its place beside it, ``DIALECT/inbound.py``, over the same `Request` and turns.

What all share: `read_request` (the history, its pitfalls dealt with), `Translation` (names and ids both ways),
`MessageWriter` (pieces in, a grammatical stream out, through `Gate`), `Failure`. Pure: no I/O, no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dbproxy.model.codecs.request import Request
    from dbproxy.model.codecs.translation import Translation
    from dbproxy.model.codecs.writer import MessageWriter


class StreamReader(Protocol):
    """Reads one streamed answer. Neither method raises, whatever the upstream sends: it tells the writer."""

    def feed(self, name: bytes, data: bytes, /) -> None:
        """One server-sent event, whole: its ``event`` field (b"" without one) and its data."""

    def end(self) -> None:
        """The upstream's stream has ended, in order or not: the codec knows by what it saw whether it was complete."""


class Codec(Protocol):
    """One dialect, outward. A codec keeps no state between requests."""

    name: str

    def write(self, request: Request, translation: Translation, /) -> bytes:
        """The request's body in this dialect (JSON).

        May set ``translation.stops`` and ``translation.single`` for what the dialect lacks, and adds notes about what
        it left out. Raises `Unroutable` for what cannot be said in it.
        """

    def stream(self, translation: Translation, writer: MessageWriter, /) -> StreamReader:
        """A reader for an answer that comes as events."""

    def document(self, body: bytes, translation: Translation, writer: MessageWriter, /) -> None:
        """Read an answer that came as one JSON document; never raises."""
