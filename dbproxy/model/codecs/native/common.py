"""What requests to Claude and to other servers that speak Messages have in common. Pure; values in, values out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs import effort

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.model.codecs.request import Request

#: The least budget of thinking tokens (API facts 1.2).
_LEAST_BUDGET: Final = 1024
_REMINDER: Final = "<system-reminder>\n{}\n</system-reminder>"


def budget_of(request: Request, limit: int) -> int:
    """The thinking tokens that the client asks for, less than all of the answer's ``limit`` (0: no limit); 0 where
    there is no room for any."""
    budget = max(_LEAST_BUDGET, request.budget or effort.budget_of(request.effort))
    if limit and budget >= limit:
        budget = limit // 2
    return budget if budget >= _LEAST_BUDGET else 0


def blocks_of(content: object) -> list[Any]:
    """A message's content as a list of blocks."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else shapes.sequence(content)


def spoken_by_user(messages: Iterable[Any]) -> list[Any]:
    """The messages with those of the system as texts of the user's, in their place, marked as the client marks such;
    but behind the results of calls, which must come first."""
    found: list[Any] = []
    held: list[dict[str, Any]] = []  # behind a turn of the assistant's
    for message in messages:
        given = shapes.mapping(message)
        role = given.get("role")
        if role == "system":
            if found and found[-1].get("role") == "user":
                found[-1] = _with(found[-1], _reminders(given), first=False)
            else:
                held.extend(_reminders(given))
            continue
        if held and role == "user":
            message, held = _with(given, held, first=True), []
        elif held:
            found.append({"role": "user", "content": held})
            held = []
        found.append(message if isinstance(message, dict) else {})
    return [*found, {"role": "user", "content": held}] if held else found


def _with(message: dict[str, Any], reminders: list[dict[str, Any]], *, first: bool) -> dict[str, Any]:
    if not reminders:
        return message
    blocks = blocks_of(message.get("content"))
    if not first:
        return {**message, "content": [*blocks, *reminders]}
    results = [block for block in blocks if is_result(block)]
    return {**message, "content": [*results, *reminders, *(block for block in blocks if not is_result(block))]}


def is_result(block: object) -> bool:
    """Is it the result of a call?"""
    return shapes.mapping(block).get("type") == "tool_result"


def _reminders(message: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for block in map(shapes.mapping, blocks_of(message.get("content"))):
        text = shapes.text(block.get("text"))
        if text:
            found.append({**block, "type": "text", "text": _REMINDER.format(text)})
    return found
