"""What other models thought, taken out of a Messages history before Claude reads it.

Owns which blocks of an assistant's turn Claude can verify, and what has to change with those that it cannot. Pure.
Sources: API facts 2.4 (a kept block is bound to what stood before it; none may be left out from the middle), seed-001
section 3.3, cases 33 and 89. Claude never saw what others thought, so what it thought itself stays bound to the same
history without that. Invariants: a body that holds nothing foreign is not touched; no message is left empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs import flatten
from dbproxy.model.codecs.vault import split_signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: The family of the Messages API's own signatures.
CLAUDE: Final = "claude"


def without_foreign_thinking(body: dict[str, Any], *, everything: bool) -> dict[str, Any] | None:
    """The body without thinking that Claude did not sign, or without all of it; None if nothing had to change.

    A request that demands thinking, in the middle of calls whose turn has none at its beginning, would be refused
    ("Expected `thinking`"): it goes without then. Results of another server's web search, which Claude could not
    decrypt, become text.
    """
    messages, changed = [], []
    for message in shapes.sequence(body.get("messages")):
        kept = _readable(message, everything=everything)
        changed.append(kept is not message)
        if kept is not None:
            messages.append(kept)
    enabled = shapes.mapping(body.get("thinking")).get("type") == "enabled"
    demands = enabled and _lacks_thinking(messages, lost=_loses(body, changed))
    if not demands and not any(changed):
        return None
    found = {**body, "messages": messages}
    return without_thinking(found) if demands else found


def without_thinking(body: dict[str, Any]) -> dict[str, Any]:
    """The body asking for no thinking, nor for old thinking to be cleared, which is refused where none is asked for."""
    found = {name: value for name, value in body.items() if name != "thinking"}
    management = shapes.mapping(body.get("context_management"))
    edits = shapes.sequence(management.get("edits"))
    kept = [edit for edit in edits if not shapes.text(shapes.mapping(edit).get("type")).startswith("clear_thinking")]
    if len(kept) < len(edits):
        found["context_management"] = {**management, "edits": kept}
        if not kept:
            del found["context_management"]
    return found


def _readable(message: Any, *, everything: bool) -> Any:
    """The message as Claude can read it: itself if it can, None if nothing is left of it."""
    found = shapes.mapping(message)
    blocks = found.get("content")
    if found.get("role") != "assistant" or not isinstance(blocks, list):
        return message
    searches = frozenset(_foreign_searches(blocks))
    kept = [_told(block, searches) for block in blocks if not _goes(block, everything=everything)]
    if len(kept) == len(blocks) and all(one is block for one, block in zip(kept, blocks, strict=True)):
        return message
    return {**found, "content": kept} if kept else None


def _goes(block: Any, *, everything: bool) -> bool:
    found = shapes.mapping(block)
    if found.get("type") == "redacted_thinking":
        return everything  # only Claude's come through to a client
    if found.get("type") != "thinking":
        return False
    return everything or split_signature(shapes.text(found.get("signature")))[0] != CLAUDE


def _told(block: Any, searches: frozenset[str]) -> Any:
    """The block, or its text where it belongs to one of these ``searches``."""
    found = shapes.mapping(block)
    kind = shapes.text(found.get("type"))
    if kind == "server_tool_use" and shapes.text(found.get("id")) in searches:
        return {"type": "text", "text": flatten.as_text(kind, found)}
    if kind == "web_search_tool_result" and shapes.text(found.get("tool_use_id")) in searches:
        return {"type": "text", "text": flatten.as_text(kind, found)}
    if kind == "text" and any(_is_open(cited, "encrypted_index") for cited in shapes.sequence(found.get("citations"))):
        return {name: value for name, value in found.items() if name != "citations"}
    return block


def _foreign_searches(blocks: Iterable[Any]) -> Iterator[str]:
    """The ids of web searches whose results are not encrypted: Claude's own always are."""
    for block in map(shapes.mapping, blocks):
        if block.get("type") == "web_search_tool_result" and any(
            _is_open(hit, "encrypted_content") for hit in shapes.sequence(block.get("content"))
        ):
            yield shapes.text(block.get("tool_use_id"))


def _is_open(value: Any, name: str) -> bool:
    found = shapes.mapping(value)
    kind = shapes.text(found.get("type"))
    return kind.startswith("web_search_result") and not shapes.text(found.get(name))


# ---- the loop of calls at hand


def _loses(body: dict[str, Any], changed: list[bool]) -> bool:
    """Does a turn of the assistant in the loop at hand lose anything?"""
    messages = shapes.sequence(body.get("messages"))
    return any(changed[at] for at in _loop(messages))


def _lacks_thinking(messages: list[Any], *, lost: bool) -> bool:
    """Is there a loop at hand whose first turn does not begin with thinking, or that has ``lost`` some of it?"""
    loop = list(_loop(messages))
    if not loop:
        return False
    blocks = shapes.sequence(shapes.mapping(messages[loop[-1]]).get("content"))
    first = shapes.mapping(blocks[0]).get("type") if blocks else ""
    return lost or first not in ("thinking", "redacted_thinking")


def _loop(messages: list[Any]) -> Iterator[int]:
    """Where the assistant's turns stand, last first, of calls whose results end the conversation; none else."""
    answered = False
    for at in range(len(messages) - 1, -1, -1):
        message = shapes.mapping(messages[at])
        role = message.get("role")
        if role == "system":
            continue
        if role == "assistant":
            if not answered:
                return
            yield at
        elif any(
            shapes.mapping(block).get("type") == "tool_result" for block in shapes.sequence(message.get("content"))
        ):
            answered = True
        else:
            return
