"""``<think>`` tags in a text that comes in pieces: what stands between them is a thought.

Pure. Source: seed-001 section 4.1 and case 73. Invariants: no piece of a tag comes out, wherever the pieces are cut; no
more is held back than could still become a tag; time grows with the text only. A tag opens a thought at the beginning
of a line alone, so that a text which speaks of the tag is left as it is.
"""

from __future__ import annotations

from typing import Final

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


class ThinkTags:
    """Feed it the text. ``inside`` says whether the text at hand is a thought."""

    __slots__ = ("_fresh", "_held", "_trim", "inside")

    def __init__(self) -> None:
        self.inside = False
        self._held = ""
        self._fresh = True  # nothing but blanks on this line so far
        self._trim = False  # behind a tag: line breaks are its own, not the text's

    def feed(self, piece: str) -> list[tuple[bool, str]]:
        """What may go out: (is it a thought, the text), in order; no text is empty."""
        text = self._held + piece
        self._held = ""
        out: list[tuple[bool, str]] = []
        at = 0
        while at < len(text):
            found = self._find(text, at)
            self._put(out, text[at:found])
            tag = next((tag for tag in (_OPEN, _CLOSE) if text.startswith(tag, found)), "")
            if not tag:  # it ends here, perhaps within a tag
                self._held = text[found:]
                break
            self.inside = tag == _OPEN
            self._trim = self._fresh = True
            at = found + len(tag)
        return out

    def rest(self) -> list[tuple[bool, str]]:
        """What was held back, at the end: it was no tag."""
        out: list[tuple[bool, str]] = []
        held, self._held = self._held, ""
        self._put(out, held)
        return out

    def _find(self, text: str, at: int) -> int:
        """Where the next tag, or what may become one, begins; the text's end without one."""
        tags = (_CLOSE,) if self.inside else (_OPEN, _CLOSE)
        found = text.find("<", at)
        while found >= 0:
            if self.inside or self._begins_line(text, at, found):
                for tag in tags:
                    if tag.startswith(text[found : found + len(tag)]):
                        return found
            found = text.find("<", found + 1)
        return len(text)

    def _begins_line(self, text: str, at: int, found: int) -> bool:
        before = found
        while before > at and text[before - 1] in " \t":
            before -= 1
        return text[before - 1] == "\n" if before > at else self._fresh

    def _put(self, out: list[tuple[bool, str]], text: str) -> None:
        if self._trim:
            text = text.lstrip("\r\n")
            self._trim = not text
        if text:
            line = text.rpartition("\n")
            self._fresh = (self._fresh or bool(line[1])) and not line[2].strip(" \t")
            out.append((self.inside, text))
