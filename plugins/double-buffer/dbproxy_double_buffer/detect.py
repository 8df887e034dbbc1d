"""Is this request the client asking for a summary of its conversation, and which kind of summary?

Header first, then the client's instruction, anchored at the beginning of the last text block of the last user message
(client facts 4.1): a user's words or a tool's output that merely contain the phrase are none. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dbproxy.api import Fields

#: How the instruction begins, in all five client versions that were measured.
_HEADS: Final = (
    "Your task is to create a detailed summary of",
    "CRITICAL: Respond with TEXT ONLY",
)
_FULL: Final = "summary of the conversation so far"
_PARTIAL: Final = "recent portion of the conversation"
_UP_TO: Final = "summary of this conversation. this summary will be placed at the start of a continuing session"
_INSTRUCTIONS: Final = re.compile(
    r"^Additional Instructions:[ \t]*\n?(?P<words>.*?)(?=^(?:REMINDER|IMPORTANT|CRITICAL):|\Z)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class CompactRequest:
    """A request for a summary. ``kind`` is ``full``, ``partial`` or ``up_to``; ``trigger`` is ``manual``, ``auto``,
    ``reactive`` or ``unknown``; ``instruction`` the whole text that asks, ``words`` what the user added to it."""

    kind: str
    trigger: str
    instruction: str
    words: str = ""

    @property
    def servable(self) -> bool:
        """Can a summary of the whole history, made before, be the answer?"""
        return self.kind == "full" and not self.words


def _header(fields: Fields, name: bytes) -> str:
    return (fields.get(name) or b"").decode("latin-1")


def compact_trigger(fields: Fields) -> str | None:
    """What the headers say: the trigger of a compaction, "" for another class of request, None if they say nothing."""
    trigger = _header(fields, b"x-claude-code-compaction") or _header(fields, b"x-cc-compaction-request")
    request_class = _header(fields, b"x-claude-code-request-class")
    if request_class:
        return (trigger or "unknown") if request_class == "compaction" else ""
    return trigger or None


def compact_request(messages: list[Any], fields: Fields) -> CompactRequest | None:
    """The compact request that these messages make, None if they make none."""
    said = compact_trigger(fields)
    if said == "":
        return None
    instruction = _instruction(messages)
    if instruction is None:
        # The header alone: an instruction of a version that nobody has seen. Something is asked, but not known what.
        return CompactRequest("unknown", said, "") if said else None
    lower = instruction.lower()
    if _PARTIAL in lower:
        kind = "partial"
    elif _UP_TO in lower:
        kind = "up_to"
    elif _FULL in lower:
        kind = "full"
    else:
        kind = "unknown"
    if said is None and (kind == "unknown" or "<analysis>" not in instruction or "<summary>" not in instruction):
        return None
    found = _INSTRUCTIONS.search(instruction)
    return CompactRequest(kind, said or "unknown", instruction, found["words"].strip() if found else "")


def _instruction(messages: list[Any]) -> str | None:
    last = _last_user(messages)
    if last is None:
        return None
    content = messages[last].get("content")
    if isinstance(content, str):
        text = content
    else:
        block = content[-1] if isinstance(content, list) and content else None
        found = block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None
        if not isinstance(found, str):
            return None
        text = found
    return text if text.lstrip().startswith(_HEADS) else None


def _last_user(messages: list[Any]) -> int | None:
    """The last message if it is the user's; notes of the client's own (role system) may stand behind it."""
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        role = message.get("role") if isinstance(message, dict) else None
        if role == "user":
            return index
        if role != "system":
            return None
    return None


def without_instruction(messages: list[Any]) -> list[Any]:
    """The history alone: the instruction's block taken out, and its message where nothing else is in it."""
    last = _last_user(messages)
    if last is None or _instruction(messages) is None:
        return messages
    content = messages[last]["content"]
    if isinstance(content, str) or len(content) == 1:
        return [*messages[:last], *messages[last + 1 :]]
    return [*messages[:last], {**messages[last], "content": content[:-1]}, *messages[last + 1 :]]
