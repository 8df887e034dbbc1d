"""OpenAI's Responses API, outward: `RESPONSES` writes a Messages request in its words and reads its answers back.

Owns the codec as others name it; ``request.py`` writes, ``answer.py`` reads, ``carried.py`` knows what the client must
bring back, ``schemas.py`` what the API asks of JSON schemas. Pure: no I/O, no clock. Sources: API facts 5.2, seed-001
sections 3 and 4, and the types of the official ``openai`` package 3.52, which stand for what the API accepts today.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dbproxy.model.codecs.responses.answer import Reader, read_document
from dbproxy.model.codecs.responses.request import write_request

if TYPE_CHECKING:
    from dbproxy.model.codecs.request import Request
    from dbproxy.model.codecs.translation import Translation
    from dbproxy.model.codecs.writer import MessageWriter


class Responses:
    """The codec; keeps nothing between requests."""

    name = "responses"

    def write(self, request: Request, translation: Translation, /) -> bytes:
        """The body for ``POST /v1/responses``. Raises Unroutable for server tools that have no twin there."""
        return write_request(request, translation)

    def stream(self, translation: Translation, writer: MessageWriter, /) -> Reader:
        """A reader for an answer that comes as events."""
        return Reader(translation, writer)

    def document(self, body: bytes, translation: Translation, writer: MessageWriter, /) -> None:
        """Read an answer that came as one JSON document."""
        read_document(body, translation, writer)


RESPONSES: Final = Responses()
