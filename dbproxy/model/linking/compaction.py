"""Compaction: the summarising request without its instruction, and the summary that a conversation goes on from.

Owns both wordings of the continuation (client facts 4.3; seed-003 2.6) and the words by which a summary is found again.
Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dbproxy.model import shapes
from dbproxy.model.identity import without_reminders
from dbproxy.model.messages import texts

if TYPE_CHECKING:
    from dbproxy.model.messages import MessagesRequest

CONTINUED: Final = "This session is being continued from a previous conversation"
_OLD_MARK: Final = "The conversation is summarized below:"
_SUMMARY: Final = re.compile(r"<summary>(.*?)(?:</summary>|\Z)", re.DOTALL)
_SUMMARY_LINE: Final = re.compile(r"(?:^|\n)[ \t]*Summary:[ \t]*\n?")
_KEPT: Final = 160  # characters of a summary; the client appends pointers and advice behind it


def continuation(view: MessagesRequest) -> str:
    """The text that says that the history was summarised, "" if the first user messages hold none."""
    for index in range(min(view.message_count, 4)):
        message = view.message(index)
        if message.get("role") != "user":
            continue
        for text in texts(message.get("content")):
            plain = without_reminders(text).strip()
            if plain.startswith(CONTINUED):
                return plain
    return ""


def summaries(text: str) -> tuple[str, ...]:
    """What may be the summary inside a continuation, each with its blanks made even, the likeliest first."""
    marked = text.partition(_OLD_MARK)[2] or text
    found = [_even(marked[mark.end() :]) for mark in list(_SUMMARY_LINE.finditer(marked))[:8]]
    return tuple(dict.fromkeys(one for one in (*found, _even(marked)) if one))


def summary_words(message: object) -> str:
    """The first words of the summary in an answer, "" without one; the summary in a continuation begins with them."""
    text = "\n".join(texts(shapes.mapping(message).get("content")))
    inside = _SUMMARY.search(text)
    return _even(inside[1] if inside else text)[:_KEPT].rsplit(" ", 1)[0]


def _even(text: str) -> str:
    """Blanks made even, and ``$$`` as ``$``: what clients up to 2.1.267 make of it when they put a summary in."""
    return " ".join(text[: 8 * _KEPT].split()).replace("$$", "$")


def without_instruction(view: MessagesRequest) -> tuple[int, bytes]:
    """The index of the message that holds the instruction, and that message without it (b"" if nothing is left).

    The instruction is the last text of the last user message (client facts 4.1). (message_count, b"") if there is none.
    """
    for index in range(view.message_count - 1, -1, -1):
        message = view.message(index)
        if message.get("role") != "user":
            continue
        blocks = shapes.sequence(message.get("content"))
        last = max((i for i, b in enumerate(blocks) if shapes.mapping(b).get("type") == "text"), default=-1)
        rest = [block for place, block in enumerate(blocks) if place != last]
        return index, shapes.written({**message, "content": rest}) if rest else b""
    return view.message_count, b""
