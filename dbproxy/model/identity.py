"""When two messages are the same turn of a conversation, though their bytes differ: the linking hash.

Owns the normal form for linking. It leaves out what the client moves, adds or drops between two requests of one
conversation: cache_control marks, thinking, ``<system-reminder>`` texts, empty texts, the choice between a plain string
and a list of one block (client facts 3.1, seed-003 2.10). The stored identity, which leaves out next to nothing, is in
``parts``. Never does I/O. Invariants: equal messages have equal hashes in every process and version; no input makes the
time grow faster than its length.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from dbproxy.model import shapes
from dbproxy.model.memo import LIMIT, Memo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ENCODE: Final = msgspec.json.Encoder(order="sorted").encode
_REMINDER_TAGS: Final = re.compile(r"</?system-reminder>")
_UNHEARD: Final = frozenset({"thinking", "redacted_thinking"})
_CALLS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_RESULTS: Final = frozenset({"tool_result", "mcp_tool_result"})


class Turn(NamedTuple):
    """What linking knows of a message: its hash (None: it takes no part), the ids of the tools that it calls and of
    those whose results it brings, and whether it holds anything else."""

    hash: bytes | None
    calls: tuple[str, ...]
    results: tuple[str, ...]
    more: bool


def link_hash(span: bytes) -> bytes | None:
    """The hash (16 bytes) of the message that the JSON text ``span`` holds, None if nothing of it is left."""
    return _turn(span).hash


def link_items(span: bytes) -> tuple[str, tuple[bytes, ...]]:
    """A message's role and the hash of each of its blocks that takes part.

    For asking whether one message is another with something put behind it: the client appends its summarising
    instruction inside a last message that brings tool results (client facts 3.1).
    """
    value = shapes.mapping(shapes.parse(span))
    return shapes.text(value.get("role")), tuple(
        hashlib.sha256(item).digest()[:16] for item in _items(value.get("content"))
    )


class LinkHashes:
    """Linking hashes of whole histories; those of lately seen messages are remembered, ``limit`` bounds their bytes."""

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._memo: Memo[Turn] = Memo(_turn, limit=limit)

    def of(self, spans: Iterable[bytes | msgspec.Raw]) -> list[bytes | None]:
        """A hash for each message; None for those that take no part.

        Beside messages of which nothing is left these are the ones that a client sent twice: they only repeat tool ids
        seen before (seed-003 2.3).
        """
        turns = self._memo.of(map(bytes, spans))
        calls: set[str] = set()
        results: set[str] = set()
        seen: set[bytes | None] = set()
        hashes: list[bytes | None] = []
        for turn in turns:
            found, called, answered, more = turn
            if called or answered:
                if calls.issuperset(called) and results.issuperset(answered) and not (more and found not in seen):
                    found = None
                calls.update(called)
                results.update(answered)
                seen.add(turn.hash)
            hashes.append(found)
        return hashes

    @staticmethod
    def chain(hashes: Iterable[bytes | None], start: bytes = b"") -> list[bytes]:
        """The running hash (16 bytes) after each message that takes part: as many as ``hashes`` has that are not None.

        ``start`` is the chain so far, for going on from a known point.
        """
        chain = []
        for found in hashes:
            if found is not None:
                start = hashlib.sha256(start + found).digest()[:16]
                chain.append(start)
        return chain


def without_reminders(text: str) -> str:
    """``text`` without ``<system-reminder>…</system-reminder>`` and the blanks before each; an unclosed one stays."""
    if "<system-reminder>" not in text:
        return text
    kept, at, opened = [], 0, -1
    for tag in _REMINDER_TAGS.finditer(text):
        if tag[0][1] != "/":
            opened = tag.start() if opened < 0 else opened
        elif opened >= 0:
            kept.append(text[at:opened].rstrip())
            at, opened = tag.end(), -1
    kept.append(text[at:])
    return "".join(kept)


def _turn(span: bytes) -> Turn:
    value = shapes.mapping(shapes.parse(span))
    content = value.get("content")
    calls, results, more = [], [], isinstance(content, str)
    for block in map(shapes.mapping, shapes.sequence(content)):
        kind = shapes.text(block.get("type"))
        if kind in _CALLS:
            calls.append(shapes.text(block.get("id")))
        elif kind in _RESULTS:
            results.append(shapes.text(block.get("tool_use_id")))
        elif kind not in _UNHEARD:
            more = True
    items = list(_items(content))
    if not items:
        return Turn(None, (), (), more)
    whole = hashlib.sha256(_framed(_utf8(shapes.text(value.get("role")))))
    for item in items:
        whole.update(_framed(item))
    return Turn(whole.digest()[:16], tuple(filter(None, calls)), tuple(filter(None, results)), more)


def _items(content: object) -> Iterator[bytes]:
    """What takes part of a message's or a tool result's content, block by block."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for block in shapes.sequence(content):
        item = _item(block)
        if item:
            yield item


def _item(block: object) -> bytes:
    if not isinstance(block, dict):
        return b"other" + _digest(block)
    kind = shapes.text(block.get("type"))
    if kind in _UNHEARD:
        return b""
    if kind == "text":
        text = _plain(shapes.text(block.get("text")))
        return b"text" + _utf8(text) if text else b""
    if kind in _CALLS:
        name, called = shapes.text(block.get("name")), shapes.text(block.get("id"))
        return kind.encode() + b"".join(map(_framed, (_utf8(called), _utf8(name), _digest(block.get("input")))))
    if kind in _RESULTS:
        answered = shapes.text(block.get("tool_use_id"))
        return kind.encode() + b"".join(map(_framed, (_utf8(answered), *_items(block.get("content")))))
    if kind in ("image", "document"):
        return b"data" + _framed(_utf8(kind)) + _digest(block.get("source"))
    rest = {key: value for key, value in block.items() if key != "cache_control"}
    return b"other" + _framed(_utf8(kind)) + _digest(rest)


def _plain(text: str) -> str:
    return without_reminders(text).replace("\r\n", "\n").strip()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _framed(item: bytes) -> bytes:
    """Length and bytes, so that no two lists of items join to the same text."""
    return len(item).to_bytes(4, "big") + item


def _digest(value: Any) -> bytes:
    """A digest of a JSON value that does not depend on the order of keys, nor on how numbers are written."""
    try:
        text = _ENCODE(_whole_numbers(value))
    except (msgspec.MsgspecError, OverflowError, TypeError, ValueError, RecursionError):
        try:
            text = _utf8(json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")))
        except (RecursionError, ValueError, TypeError):
            text = b""
    return hashlib.sha256(text).digest()[:16]


def _whole_numbers(value: Any) -> Any:
    """1.0 as 1: a client in JavaScript writes it back so."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e21 else value
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return value
