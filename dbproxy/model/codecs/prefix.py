"""A tool's input while it is still on its way: whether what came so far can yet become a JSON object.

The official SDKs parse the input anew at every piece, and raise at one that cannot be the beginning of JSON (measured:
anthropic 2.11.0, @anthropic-ai/sdk 1.11.0); so it must not go out before the answer fails. Pure; time grows with the
length, texts are passed over by a regular expression.

Invariants: what `feed` gives back, joined, is the input but for blanks before it and for halves of characters, which
become U+FFFD; every beginning of it that ends with a piece is the beginning of a JSON object; no more is held back than
the escape of one character.
"""

from __future__ import annotations

import re
from typing import Final

_BLANKS: Final = re.compile(r"[ \t\n\r]*")
#: The rest of a string up to its end, to an escape that is not whole, or to what may not stand in one.
_BODY: Final = re.compile(
    r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
    r"|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*+"
)
_HALF: Final = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
#: The beginning of an escape, or of the two that are one character.
_UNFINISHED: Final = re.compile(
    r"\\(?:u[0-9a-fA-F]{0,3}|u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?)?\Z"
)
_SCALAR: Final = re.compile(r"[-+.0-9A-Za-z]*")
_WHOLE: Final = re.compile(r"(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)\Z")
_BEGUN: Final = re.compile(
    r"(?:t(?:r(?:ue?)?)?|f(?:a(?:l(?:se?)?)?)?|n(?:u(?:ll?)?)?|-?(?:(?:0|[1-9]\d*)(?:\.\d*|(?:\.\d+)?[eE][+-]?\d*)?)?)\Z"
)
_DEEPEST: Final = 128  # levels; the SDKs' parser ends at 200
_LONGEST: Final = 1_000  # characters of one number

# What may come next.
_OBJECT, _KEY, _KEY_OR_END, _COLON, _VALUE, _VALUE_OR_END, _MORE, _OVER = range(8)


class NoObject(Exception):
    """What came cannot become a JSON object."""


class ObjectPrefix:
    """Feed it one tool's input."""

    __slots__ = ("_held", "_next", "_scalar", "_stack", "_text")

    def __init__(self) -> None:
        self._next = _OBJECT
        self._stack: list[str] = []  # the closing brackets that are due
        self._text = False  # inside a string
        self._scalar = ""  # a number or a word that may go on
        self._held = ""  # an escape that is not whole

    def feed(self, piece: str) -> str:
        """The part of the input that can be written. Raises NoObject."""
        text = self._held + piece
        self._held = ""
        out: list[str] = []
        at, size = 0, len(text)
        while at < size:
            if self._text:
                at = self._string(text, at, out)
                continue
            blank = _match(_BLANKS, text, at)
            if blank > at:
                self._end_scalar()
                if self._next != _OBJECT:
                    out.append(text[at:blank])
                at = blank
                continue
            end = at + 1 if text[at] in '{}[]:,"' else _match(_SCALAR, text, at)
            if end == at:
                raise NoObject
            self._token(text[at:end])
            out.append(text[at:end])
            at = end
        return "".join(out)

    def _string(self, text: str, at: int, out: list[str]) -> int:
        """Inside a string: where to go on."""
        end = _match(_BODY, text, at)
        out.append(text[at:end])
        if end == len(text):
            return end
        if text[end] == '"':
            out.append('"')
            self._text = False
            return end + 1
        if _UNFINISHED.match(text, end):
            self._held = text[end:]
            return len(text)
        half = _HALF.match(text, end)
        if half is None:
            raise NoObject
        out.append("\ufffd")
        return half.end()

    def _token(self, token: str) -> None:
        if token not in _MARKS:
            self._part_of_scalar(token)
            return
        self._end_scalar()
        due = self._next
        if token == '"':
            if due in (_KEY, _KEY_OR_END):
                self._next = _COLON
            elif due in (_VALUE, _VALUE_OR_END):
                self._next = _MORE
            else:
                raise NoObject
            self._text = True
        elif token in "{[":
            if due not in ((_OBJECT,) if not self._stack else (_VALUE, _VALUE_OR_END)) or len(self._stack) == _DEEPEST:
                raise NoObject
            if due == _OBJECT and token == "[":
                raise NoObject
            self._stack.append("}" if token == "{" else "]")
            self._next = _KEY_OR_END if token == "{" else _VALUE_OR_END
        elif token in "}]":
            if not self._stack or self._stack[-1] != token or due not in (_MORE, _ENDS[token]):
                raise NoObject
            self._stack.pop()
            self._next = _MORE if self._stack else _OVER
        elif token == ":":
            if due != _COLON:
                raise NoObject
            self._next = _VALUE
        else:
            if due != _MORE:
                raise NoObject
            self._next = _KEY if self._stack[-1] == "}" else _VALUE

    def _part_of_scalar(self, token: str) -> None:
        if not self._scalar and self._next not in (_VALUE, _VALUE_OR_END):
            raise NoObject
        self._next = _MORE
        self._scalar += token
        if len(self._scalar) > _LONGEST or not _BEGUN.match(self._scalar):
            raise NoObject

    def _end_scalar(self) -> None:
        if self._scalar:
            if not _WHOLE.match(self._scalar):
                raise NoObject
            self._scalar = ""


_MARKS: Final = frozenset('{}[]:,"')
_ENDS: Final = {"}": _KEY_OR_END, "]": _VALUE_OR_END}


def _match(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a pattern that fits everywhere ends."""
    found = pattern.match(text, at)
    return at if found is None else found.end()
