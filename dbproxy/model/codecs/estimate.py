"""How many tokens a prompt has, guessed without the model's own tokenizer.

Pure. Invariant: never below 1; errs upwards by some ten per cent on English and code, since a prompt that is thought
too large is served elsewhere, one that is thought too small is refused. Texts are counted by their UTF-8 bytes, which
is near for every script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dbproxy.model import shapes
from dbproxy.model.codecs.request import Call, Document, Image, Result, Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.model.codecs.request import Part, Request

_BYTES: Final = 3.5  # of UTF-8 text in a token
_PICTURE: Final = 1_600  # tokens, the most that a picture costs at the usual resolution
_PAGE: Final = 1_900  # tokens of a document's page
_PAGE_BYTES: Final = 40_000  # of base64, about, for one page
_TURN: Final = 4
#: What Claude Code keeps free of its window, for the answer and as a margin (client facts 4.2), and its usual window.
CLIENTS_RESERVE: Final = 33_000
_USUAL_WINDOW: Final = 200_000


def prompt_tokens(request: Request) -> int:
    """Tokens of everything that goes up: system prompt, tools, history."""
    count = sum(len(text.encode("utf-8", "replace")) for text in request.system)
    for tool in request.tools:
        count += len(tool.name) + len(tool.description.encode("utf-8", "replace")) + len(shapes.written(tool.schema))
    tokens = count / _BYTES
    for turn in request.turns:
        tokens += _TURN + _parts(turn.parts)
    return max(1, round(tokens))


def scale_of(window: int, context: int) -> float:
    """What token counts are multiplied with for a client that reckons with ``window`` while the model has ``context``
    (tokens, 0 for not known): it compacts then where the model's context is nearly full, with room for an answer."""
    if not window or not context:
        return 1.0
    reserve = min(CLIENTS_RESERVE, context * CLIENTS_RESERVE / _USUAL_WINDOW)
    return (window - CLIENTS_RESERVE) / (context - reserve)


def text_tokens(size: int) -> int:
    """Tokens of a text of so many bytes."""
    return max(1, round(size / _BYTES)) if size else 0


def _parts(parts: Iterable[Part]) -> float:
    tokens = 0.0
    for part in parts:
        if isinstance(part, Text):
            tokens += len(part.text.encode("utf-8", "replace")) / _BYTES
        elif isinstance(part, Image):
            tokens += _PICTURE
        elif isinstance(part, Document):
            tokens += _PAGE * max(1, len(part.data) // _PAGE_BYTES)
        elif isinstance(part, Call):
            tokens += (len(part.name) + len(shapes.written(part.arguments))) / _BYTES
        elif isinstance(part, Result):
            tokens += _TURN + _parts(part.parts)
    return tokens
