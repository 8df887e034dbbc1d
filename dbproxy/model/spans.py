"""Where the values of a JSON text stand: exact spans of an object's members and of an array's elements.

Owns the arithmetic of positions; msgspec finds the values and refuses what is no JSON. Imports nothing of dbproxy but
``shapes``. Invariants: a span is the value's exact bytes; what lies between spans is blanks, commas, colons and keys.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

from dbproxy.model import shapes

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ARRAY: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode

_OPEN_OBJECT: Final = re.compile(rb"[ \t\n\r]*\{[ \t\n\r]*").match
_OPEN_ARRAY: Final = re.compile(rb"[ \t\n\r]*\[[ \t\n\r]*").match
_KEY: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"[ \t\n\r]*:[ \t\n\r]*', re.DOTALL).match
_AFTER: Final = re.compile(rb"[ \t\n\r]*[,\]}][ \t\n\r]*").match
_ESCAPE: Final = re.compile(rb"\\(?:u[dD][89a-fA-F][0-9a-fA-F]{2}|.)", re.DOTALL)


class Member(NamedTuple):
    """A member of an object: its key as written (escapes and all); where the key, the value, and what follows begin."""

    key: bytes
    at: int
    start: int
    end: int


class Array(NamedTuple):
    """An array: its elements and the text around them. ``gaps`` stand before, between and behind the elements, brackets
    included: one more than there are elements, and at least two; an empty array has the text of both its brackets."""

    elements: list[bytes]
    gaps: list[bytes]


def members(text: bytes) -> list[Member] | None:
    """The members of the object that ``text`` holds, in order; None if it holds none, or one with the same key twice
    (which of the two counts is the reader's choice, so such an object is better left alone)."""
    try:
        values = _OBJECT(text)
    except shapes.UNREADABLE:
        try:
            text = _without_halves(text)
            values = _OBJECT(text)
        except shapes.UNREADABLE:
            return None
    opening = _OPEN_OBJECT(text)
    if opening is None:
        return None
    at, found = opening.end(), []
    for value in values.values():
        key = _KEY(text, at)
        # A repeated key has the place of its first value and the text of its last.
        if key is None or not text.startswith(value, key.end()):
            return None
        end = key.end() + len(value)
        found.append(Member(key[1], at, key.end(), end))
        after = _AFTER(text, end)
        if after is None:
            return None
        at = after.end()
    return found if at == len(text) or not found else None


def array(text: bytes) -> Array | None:
    """The array that ``text`` holds, None if it holds none. ``text`` begins and ends with its brackets."""
    try:
        values = _ARRAY(text)
    except shapes.UNREADABLE:
        try:
            values = _ARRAY(_without_halves(text))
        except shapes.UNREADABLE:
            return None
    count, size = len(values), sum(map(len, values))
    if not count:
        return Array([], [text[:1], text[1:]])
    if len(text) == size + count + 1:
        # Brackets and commas fill it: no blanks anywhere.
        gaps = [b"[", *[b","] * (count - 1), b"]"]
    else:
        gaps = _gaps(text, [len(value) for value in values])
    elements, at = [], 0
    for gap, value in zip(gaps, values, strict=False):
        at += len(gap)
        end = at + len(value)
        elements.append(text[at:end])
        at = end
    return Array(elements, gaps)


def _gaps(text: bytes, lengths: list[int]) -> list[bytes]:
    opening = _OPEN_ARRAY(text)
    at = opening.end() if opening else 0
    gaps = [text[:at]]
    for length in lengths:
        at += length
        after = _AFTER(text, at)
        end = after.end() if after else at
        gaps.append(text[at:end])
        at = end
    return gaps


def _without_halves(text: bytes) -> bytes:
    r"""``text`` with every escaped surrogate replaced by another escape of the same length.

    A history may hold escaped halves of characters that a client cut in two. They are JSON by the grammar, but msgspec
    refuses them. Raises ``ValueError`` where there are none.
    """
    if rb"\ud" not in text and rb"\uD" not in text:
        raise ValueError("no escaped surrogates")
    return _ESCAPE.sub(lambda found: found[0] if len(found[0]) == 2 else rb"\u0041", text)
