"""A Messages body taken apart into pieces that repeat, and put together again byte for byte.

Owns the canonical form of a message, system block and tool (the stored identity), the patches that restore what was
really sent, and the words that the search index gets of them. Never does I/O. Invariants: ``put_together(take_apart(
body)) == body`` for every body that is taken apart at all; the canonical form of a message is the same wherever
cache_control marks stand, and whether one text is a plain string or a list of one block (the marked message turns from
the one into the other on the next turn, client facts 3.1).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dbproxy.model import shapes, spans
from dbproxy.model.memo import Memo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dbproxy.model.spans import Body, Member

_MARK: Final = b"cache_control"
_BILLING: Final = b"x-anthropic-billing-header:"  # client facts 3.1: changes with every request


@dataclass(frozen=True, slots=True)
class Piece:
    """One message, system block or tool. ``digest`` are the first 16 bytes of SHA-256 over ``canonical``; ``patch``
    restores the exact bytes from it, None if they are the same."""

    canonical: bytes
    digest: bytes
    patch: bytes | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """``template`` is the body around the pieces, with a mark where each list stood."""

    template: bytes
    system: tuple[Piece, ...] = ()
    tools: tuple[Piece, ...] = ()
    messages: tuple[Piece, ...] = ()


# --- bodies ---

# A control character begins and ends a mark; no JSON text holds one bare, so a mark is never mistaken for content.
_OPEN: Final = b"\x01"
_CLOSE: Final = b"\x02"
_BETWEEN: Final = b"\x1f"
_BRACKET: Final = ord("[")
_LISTS: Final = {b"system": b"s", b"tools": b"t", b"messages": b"m"}
_MARKED: Final = re.compile(rb"\x01([stm])([^\x02]*)\x02")

#: Pieces of lately seen spans, so that a turn costs what it adds.
_memo: Final[Memo[Piece]] = Memo(lambda span: _piece(span))


def take_apart(body: bytes | Body) -> Parts | None:
    """The parts of a request body (content codings undone); None where it is better kept whole: no JSON object, no
    list of messages, a key twice at the top, nesting beyond measure. Safe to call from any thread."""
    read = spans.read(body) if isinstance(body, bytes) else body
    if read is None:
        return None
    pieces: dict[bytes, tuple[Piece, ...]] = {}
    template: list[bytes] = []
    at = 0
    for member in read.members.values():
        letter = _LISTS.get(member.key)
        if letter is None or read.text[member.start] != _BRACKET:
            continue
        array = read.array(member.key)
        if array is None:
            return None
        elements, gaps = array
        if letter == b"s":
            elements, gaps = _without_billing(elements, gaps)
        pieces[member.key] = tuple(_memo.of(elements))
        template += (read.text[at : member.start], _OPEN, letter, _layout(gaps), _CLOSE)
        at = member.end
    if b"messages" not in pieces:
        return None
    template.append(read.text[at:])
    return Parts(b"".join(template), pieces.get(b"system", ()), pieces.get(b"tools", ()), pieces.get(b"messages", ()))


def put_together(parts: Parts) -> bytes:
    """The body that was taken apart. Raises ``ValueError`` for parts that do not belong together."""
    pieces = {b"s": parts.system, b"t": parts.tools, b"m": parts.messages}
    return _MARKED.sub(lambda mark: _list_text(mark[2], pieces[mark[1]]), parts.template)


def _without_billing(elements: list[bytes], gaps: list[bytes] | None) -> tuple[list[bytes], list[bytes] | None]:
    """Leading billing blocks become part of the first gap, so that the list of the others repeats."""
    count = 0
    while count < len(elements) and _is_billing(elements[count]):
        count += 1
    if not count:
        return elements, gaps
    gaps = gaps or [b"[", *[b","] * (len(elements) - 1), b"]"]
    first = b"".join(text for pair in zip(gaps[:count], elements[:count], strict=True) for text in pair)
    rest = gaps[count:]
    # An empty list has two gaps, too.
    return elements[count:], [first + rest[0], *rest[1:]] if len(rest) > 1 else [first, rest[0]]


def _is_billing(block: bytes) -> bool:
    if _BILLING not in block[:200]:
        return False
    return shapes.text(shapes.mapping(shapes.parse(block)).get("text")).startswith(_BILLING.decode())


def _layout(gaps: list[bytes] | None) -> bytes:
    """Gaps as a mark keeps them: nothing for the compact form, three if those between are alike, else all."""
    if gaps is None:
        return b""
    inner = set(gaps[1:-1])
    if len(inner) == 1:
        return _BETWEEN.join((gaps[0], inner.pop(), gaps[-1]))
    return _BETWEEN.join(gaps)


def _list_text(layout: bytes, pieces: Sequence[Piece]) -> bytes:
    texts = [piece.canonical if piece.patch is None else apply(piece.canonical, piece.patch) for piece in pieces]
    if not layout:
        return b"[" + b",".join(texts) + b"]"
    gaps = layout.split(_BETWEEN)
    if len(gaps) == 3 and len(texts) > 1:
        return gaps[0] + gaps[1].join(texts) + gaps[2]
    if len(gaps) != max(2, len(texts) + 1):
        raise ValueError("the template is of another list")
    return (
        gaps[0]
        + b"".join(text + gap for text, gap in zip(texts, gaps[1:], strict=False))
        + b"".join(gaps[1:] if not texts else ())
    )


# --- pieces ---


# One text in a list cannot be told from other lists without a parse, but without these there is none.
_TEXT_BLOCK: Final = re.compile(rb'"type"[ \t\n\r]*:[ \t\n\r]*"text"').search


def piece(span: bytes) -> Piece:
    """The piece that the JSON text ``span`` is: a message, a system block or a tool. Anything else is its own form."""
    return _memo.of((span,))[0]


def _piece(span: bytes) -> Piece:
    cuts = sorted(_cuts(span)) if _MARK in span or _TEXT_BLOCK(span) else []
    if not cuts:
        return Piece(span, hashlib.sha256(span).digest()[:16])
    kept, insertions, at = [], [], 0
    for start, end in cuts:
        kept.append(span[at:start])
        insertions.append((start - at, span[start:end]))
        at = end
    kept.append(span[at:])
    canonical = b"".join(kept)
    return Piece(canonical, hashlib.sha256(canonical).digest()[:16], _patch(insertions))


def _cuts(span: bytes) -> Iterator[tuple[int, int]]:
    """What of ``span`` is not its identity: ranges that do not overlap."""
    found = spans.members(span)
    if not found:
        return
    yield from _mark_cuts(found, 0)
    content = next((member for member in found if member.key == b"content"), None)
    if content is None or span[content.start : content.start + 1] != b"[":
        return
    array = spans.array(span[content.start : content.end])
    if array is None:
        return
    single = len(array.elements) == 1
    for at, block in array.places(content.start):
        if single or _MARK in block:
            yield from _block_cuts(block, at, content if single else None)


def _block_cuts(block: bytes, at: int, only_in: Member | None) -> Iterator[tuple[int, int]]:
    """The cuts of a block that stands at ``at``; ``only_in`` is the list that holds no other block."""
    found = spans.members(block)
    if not found:
        return
    by_key = {member.key: member for member in found}
    kind, text = by_key.get(b"type"), by_key.get(b"text")
    if (
        only_in is not None
        and kind is not None
        and text is not None
        and by_key.keys() <= {b"type", b"text", _MARK}
        and block[kind.start : kind.end] == b'"text"'
        and block[text.start : text.start + 1] == b'"'
    ):
        yield only_in.start, at + text.start
        yield at + text.end, only_in.end
        return
    yield from _mark_cuts(found, at)
    # What a tool gave back is a list of blocks again; what it was given is the tool's own affair and stays whole.
    content = by_key.get(b"content")
    if content is None or kind is None or block[kind.start : kind.end] != b'"tool_result"':
        return
    if block[content.start : content.start + 1] != b"[":
        return
    array = spans.array(block[content.start : content.end])
    if array is None:
        return
    for inner, element in array.places(at + content.start):
        if _MARK in element:
            yield from _mark_cuts(spans.members(element) or [], inner)


def _mark_cuts(found: list[Member], at: int) -> Iterator[tuple[int, int]]:
    """The mark among the members of an object that stands at ``at``, with the comma that goes with it."""
    for index, member in enumerate(found):
        if member.key != _MARK:
            continue
        if index:
            yield at + found[index - 1].end, at + member.end
        elif len(found) > 1:
            yield at + member.at, at + found[1].at
        else:
            yield at + member.at, at + member.end


# --- words ---

#: Characters of one message that go into the search index at most.
SEARCH_LIMIT: Final = 64 * 1024
# Encoded data has no words. Looking behind makes it one try for each run, so that time stays linear.
_ENCODED: Final = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{200,}={0,2}")


def search_text(canonical: bytes) -> tuple[str, str]:
    """Role and words of a message, of an answer, or of a system block or tool (roles ``system`` and ``tool``).

    Texts, thoughts, tool names, the strings that tools were given (so file paths, too) and what they gave back;
    neither signatures nor encoded data. At most ``SEARCH_LIMIT`` characters, the beginning of each part first.
    """
    value = shapes.mapping(shapes.parse(canonical))
    role = shapes.text(value.get("role"))
    if not role:
        role = "system" if "text" in value else "tool" if "name" in value else ""
        return role, _bounded(iter(shapes.text(value.get(key)) for key in ("name", "text", "description")))
    return role, _bounded(_words(value.get("content")))


def _bounded(texts: Iterator[str]) -> str:
    found, room = [], SEARCH_LIMIT
    for text in texts:
        if not text or text.isspace():
            continue
        kept = _ENCODED.sub(" ", text[: 2 * room])[:room]
        found.append(kept)
        room -= len(kept) + 1
        if room <= 0:
            break
    return "\n".join(found)


def _words(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
        return
    for block in map(shapes.mapping, shapes.sequence(content)):
        match shapes.text(block.get("type")):
            case "text":
                yield shapes.text(block.get("text"))
            case "thinking":
                yield shapes.text(block.get("thinking"))
            case "tool_use" | "server_tool_use" | "mcp_tool_use":
                yield shapes.text(block.get("name"))
                yield from _strings(block.get("input"))
            case "document" | "search_result":
                yield shapes.text(block.get("title"))
                source = shapes.mapping(block.get("source"))
                if source.get("type") in ("text", "content"):
                    yield from _words(source.get("data") or source.get("content"))
                yield from _words(block.get("content"))
            case "image" | "redacted_thinking":
                pass
            case kind if kind.endswith("tool_result"):
                yield from _words(block.get("content"))
            case "web_search_result":
                yield shapes.text(block.get("title"))
                yield shapes.text(block.get("url"))


def _strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, in order, without recursion: values nest as deeply as they like."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting.extend(reversed(value.values()))
        elif isinstance(value, list):
            waiting.extend(reversed(value))


# --- patches ---

# Insertions that clients make all the time; a patch names them by their place here. Append only: files hold patches.
_USUAL: Final = (
    b',"cache_control":{"type":"ephemeral"}',
    b',"cache_control":{"type":"ephemeral","ttl":"1h"}',
    b'[{"type":"text","text":',
    b"}]",
    b',"cache_control":{"type":"ephemeral"}}]',
    b',"cache_control":{"type":"ephemeral","ttl":"1h"}}]',
    b', "cache_control": {"type": "ephemeral"}',
    b'[{"type": "text", "text": ',
    b', "cache_control": {"type": "ephemeral"}}]',
    b',"cache_control":{"type":"ephemeral","ttl":"5m"}',
    b',"cache_control":{"type":"ephemeral","ttl":"5m"}}]',
    b',"cache_control":{"type":"ephemeral","ttl":"1h","scope":"global"}',
    b',"cache_control":{"type":"ephemeral","scope":"global"}',
)
_USUAL_PLACE: Final = {text: place for place, text in enumerate(_USUAL)}
#: Numbers below it name a usual insertion, the others are lengths of a literal one.
_LITERAL: Final = 64


def _patch(insertions: Iterable[tuple[int, bytes]]) -> bytes:
    """An edit script: how many bytes to copy, then what to insert, again and again; the rest is copied."""
    script = bytearray()
    for copied, text in insertions:
        _put_number(script, copied)
        place = _USUAL_PLACE.get(text)
        if place is None:
            _put_number(script, _LITERAL + len(text))
            script += text
        else:
            _put_number(script, place)
    return bytes(script)


def apply(canonical: bytes, patch: bytes | None) -> bytes:
    """The exact bytes that ``patch`` makes of a canonical form. Raises ``ValueError`` for a damaged patch."""
    if patch is None:
        return canonical
    result, at, place = [], 0, 0
    while place < len(patch):
        copied, place = _take_number(patch, place)
        number, place = _take_number(patch, place)
        result.append(canonical[at : at + copied])
        at += copied
        if number < _LITERAL:
            if number >= len(_USUAL):
                raise ValueError("a patch of a newer version")
            result.append(_USUAL[number])
        else:
            end = place + number - _LITERAL
            result.append(patch[place:end])
            place = end
        if at > len(canonical) or place > len(patch):
            raise ValueError("a patch for another text")
    result.append(canonical[at:])
    return b"".join(result)


def _put_number(script: bytearray, number: int) -> None:
    """Seven bits a byte, lowest first, the highest bit set on all but the last."""
    while number > 127:
        script.append(number & 127 | 128)
        number >>= 7
    script.append(number)


def _take_number(script: bytes, place: int) -> tuple[int, int]:
    number, shift = 0, 0
    while True:
        if place >= len(script) or shift > 63:
            raise ValueError("a damaged patch")
        byte = script[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
        shift += 7
