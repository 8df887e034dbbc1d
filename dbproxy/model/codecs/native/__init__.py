"""The Messages API as other servers speak it, and Anthropic's own with a key of ours.

Owns the `Native` codec: requests in ``request`` (Claude, and what all models have in common) and ``foreign`` (every
other server), answers in ``answer``. To Claude goes the client's own body, of which only that changes which its model
would refuse; the family of a translation tells which of both it is. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dbproxy.model.codecs.native.answer import NativeReader
from dbproxy.model.codecs.native.request import written_request

if TYPE_CHECKING:
    from dbproxy.model.codecs.request import Request
    from dbproxy.model.codecs.translation import Translation
    from dbproxy.model.codecs.writer import MessageWriter


class Native:
    """The `Codec` of the Messages API itself (``POST .../v1/messages``)."""

    name = "messages"

    def write(self, request: Request, translation: Translation, /) -> bytes:
        """The request's body. Raises `Unroutable` for what this server, or this model, cannot be told."""
        return written_request(request, translation)

    def stream(self, translation: Translation, writer: MessageWriter, /) -> NativeReader:
        """A reader for an answer in events."""
        return NativeReader(translation, writer)

    def document(self, body: bytes, translation: Translation, writer: MessageWriter, /) -> None:
        """Read an answer that came as one message."""
        NativeReader(translation, writer).document(body)


NATIVE: Final = Native()
