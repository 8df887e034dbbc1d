"""OpenAI's Chat Completions, which most servers speak in one way or another.

Owns the `Chat` codec: requests in ``request`` (and ``history``), answers in ``answer`` (their chunks in ``chunks``,
``<think>`` tags in ``tags``). What differs between servers is told by `Capabilities`; beside the parameters' own names,
``refuses`` may hold ``content_parts``: then every message without pictures goes as one plain string. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dbproxy.model.codecs.chat.answer import ChatReader
from dbproxy.model.codecs.chat.request import written_request

if TYPE_CHECKING:
    from dbproxy.model.codecs.request import Request
    from dbproxy.model.codecs.translation import Translation
    from dbproxy.model.codecs.writer import MessageWriter


class Chat:
    """The `Codec` of Chat Completions (``POST .../chat/completions``)."""

    name = "chat"

    def write(self, request: Request, translation: Translation, /) -> bytes:
        """The request's body. Raises `Unroutable` for what this dialect, or this model, cannot be told."""
        return written_request(request, translation)

    def stream(self, translation: Translation, writer: MessageWriter, /) -> ChatReader:
        """A reader for an answer in chunks."""
        return ChatReader(translation, writer)

    def document(self, body: bytes, translation: Translation, writer: MessageWriter, /) -> None:
        """Read an answer that came as one ``chat.completion``."""
        ChatReader(translation, writer).document(body)


CHAT: Final = Chat()
