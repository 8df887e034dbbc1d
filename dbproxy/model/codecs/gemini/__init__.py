"""Gemini's generateContent.

Owns the `Gemini` codec: requests in ``request`` (a tool's schema in ``schema``), answers in ``answer``. Which model is
asked, and whether for a stream (``:streamGenerateContent?alt=sse``), stands in the URL and not in the body. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dbproxy.model.codecs.gemini.answer import GeminiReader
from dbproxy.model.codecs.gemini.request import written_request

if TYPE_CHECKING:
    from dbproxy.model.codecs.request import Request
    from dbproxy.model.codecs.translation import Translation
    from dbproxy.model.codecs.writer import MessageWriter


class Gemini:
    """The `Codec` of generateContent (``POST .../models/MODEL:generateContent``)."""

    name = "gemini"

    def write(self, request: Request, translation: Translation, /) -> bytes:
        """The request's body. Raises `Unroutable` for what this dialect, or this model, cannot be told."""
        return written_request(request, translation)

    def stream(self, translation: Translation, writer: MessageWriter, /) -> GeminiReader:
        """A reader for an answer in chunks."""
        return GeminiReader(translation, writer)

    def document(self, body: bytes, translation: Translation, writer: MessageWriter, /) -> None:
        """Read an answer that came as one document, or as one list of chunks."""
        GeminiReader(translation, writer).document(body)


GEMINI: Final = Gemini()
