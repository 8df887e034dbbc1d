"""Where the values of a JSON text stand: exact spans of an object's members and of an array's elements.

Owns the arithmetic of positions; msgspec finds the values and refuses what is no JSON. Imports nothing of dbproxy but
``shapes`` and ``memo``. Invariants: a span is the value's exact bytes; what lies between spans is blanks, commas,
colons and keys; remembering changes the time it takes and nothing else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from dbproxy.model import shapes
from dbproxy.model.memo import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """An array: its elements and the text around them.

    ``gaps`` stand before, between and behind the elements, brackets included: one more than there are elements, and at
    least two (an empty array has the text of its brackets). None is the compact form: brackets and commas alone.
    """

    elements: list[bytes]
    gaps: list[bytes] | None = None

    def places(self, at: int) -> Iterator[tuple[int, bytes]]:
        """Where each element begins if the array begins at ``at``, and the element."""
        for index, element in enumerate(self.elements):
            at += 1 if self.gaps is None else len(self.gaps[index])
            yield at, element
            at += len(element)


class Body:
    """The top level of a request body, every value still a span; arrays are split when asked for, and only once."""

    __slots__ = ("_arrays", "members", "text")

    def __init__(self, text: bytes, found: list[Member], messages: Array | None = None) -> None:
        self.text = text
        self.members = {member.key: member for member in found}
        self._arrays: dict[bytes, Array | None] = {} if messages is None else {b"messages": messages}

    def raw(self, key: bytes) -> bytes | None:
        """The exact bytes of a member's value, None without one."""
        member = self.members.get(key)
        return None if member is None else self.text[member.start : member.end]

    def array(self, key: bytes) -> Array | None:
        """The array of that name, None if there is none. Elements seen before are the same objects as then."""
        if key not in self._arrays:
            member = self.members.get(key)
            listed = member is not None and self.text[member.start] == 0x5B
            self._arrays[key] = _array_again(self.text, member.start, member.end) if member and listed else None
        return self._arrays[key]


#: Messages, system blocks and tools that keep coming.
_runs: Final = Runs()
_MESSAGES: Final = b'"messages":['


def read(text: bytes) -> Body | None:
    """The body that ``text`` holds, None where it is no JSON object, or has a key that is there twice or escaped."""
    again = _read_again(text)
    if again is not None:
        return again
    found = members(text)
    return None if found is None or _escaped(found) else Body(text, found)


def _escaped(found: list[Member]) -> bool:
    return any(b"\\" in member.key for member in found)


def _read_again(text: bytes) -> Body | None:
    """The body, if it repeats messages: only what is new of it is parsed. None if the whole has to be.

    What is parsed is the text without the repeated messages. They are values with a comma behind each, so it is JSON if
    the whole is, and the other way round.
    """
    bracket = text.find(_MESSAGES) + len(_MESSAGES) - 1
    if bracket < len(_MESSAGES) or not _runs.baton.take():
        return None
    try:
        known, at = _runs.follow(text, bracket + 1)
        # Behind a comma a message has to come, behind a message the end of the list.
        if not known or (text[at - 1] == 0x2C) == text.startswith(b"]", at):
            return None
        new = text[: bracket + 1] + text[at:]
        found = members(new)
        if found is None or _escaped(found):
            return None
        place = next((index for index, member in enumerate(found) if member.key == b"messages"), None)
        if place is None:
            return None
        # None if the bracket was that of some other list of that name, deeper down.
        rest = array(new[bracket : found[place].end])
        if rest is None or rest.gaps is not None:
            return None
        skipped = at - bracket - 1
        found[place] = found[place]._replace(end=found[place].end + skipped)
        found[place + 1 :] = [
            Member(key, begin + skipped, start + skipped, end + skipped)
            for key, begin, start, end in found[place + 1 :]
        ]
        return Body(text, found, Array(known + _runs.learn(rest.elements)))
    finally:
        _runs.baton.give_back()


def _array_again(text: bytes, start: int, end: int) -> Array | None:
    """The array in ``text``, which is JSON, from ``start`` to ``end``: only what is new of it is parsed."""
    if not _runs.baton.take():
        return array(text[start:end])
    try:
        known, at = _runs.follow(text, start + 1)
        if known and at == end - 1:
            return Array(known)
        rest = array(b"[" + text[at:end] if known else text[start:end])
        if rest is None or (known and (rest.gaps is not None or text[at - 1] != 0x2C)):
            # Odd blanks: rare, and not worth following.
            return array(text[start:end])
        return Array(known + _runs.learn(rest.elements), rest.gaps)
    finally:
        _runs.baton.give_back()


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
    if len(text) == sum(map(len, values)) + max(len(values) + 1, 2):
        # Brackets and commas fill it: no blanks anywhere.
        found = Array([], None)
        at = 1
        for value in values:
            end = at + len(value)
            found.elements.append(text[at:end])
            at = end + 1
        return found
    if not values:
        return Array([], [text[:1], text[1:]])
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
