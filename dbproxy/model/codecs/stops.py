"""Stop sequences for upstreams that know none: found in the text as it streams, also across pieces.

Pure. Invariants: nothing of a stop sequence and nothing behind it comes out; no more is held back than could still
become one; the earliest one counts, among those that begin together the longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopScanner:
    """Feed it the text. ``stops`` are not empty."""

    __slots__ = ("_held", "_longest", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(sorted((stop for stop in stops if stop), key=len, reverse=True))
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """(text that may go out, the sequence that was found or "")."""
        text = self._held + text
        self._held = ""
        found = [(at, -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, _, stop = min(found)
            return text[:at], stop
        keep = next(
            (size for size in range(min(self._longest - 1, len(text)), 0, -1) if self._may_begin(text[-size:])), 0
        )
        if keep:
            text, self._held = text[:-keep], text[-keep:]
        return text, ""

    def rest(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)
