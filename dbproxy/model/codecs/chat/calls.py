"""Which pieces of a Chat stream belong to the same call.

Owns the keys by which a writer tells calls apart. Pure. Source: seed-001 4.2 and cases 48 to 51. OpenAI numbers calls
by ``index``; others leave it out, give 0 for each (QuantumNous/new-api#2701), or repeat ids and names in every piece.
Invariant: a piece without anything that sets it apart goes to the call that stood last at its place in the list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbproxy.model.codecs.gate import is_object

if TYPE_CHECKING:
    from collections.abc import Iterator


class KnownCall:
    """One call so far. ``extra`` is what its server wants back with it."""

    __slots__ = ("_id", "_named", "_pieces", "extra", "key")

    def __init__(self, key: int) -> None:
        self.key = key
        self.extra: Any = None
        self._id = ""
        self._named = False
        self._pieces: list[str] = []  # of its arguments

    def add(self, id: str, name: str, arguments: str) -> str:
        """Take a piece; what is to be written of its arguments."""
        self._id = self._id or id
        self._named = self._named or bool(name)
        if arguments == "null" and not self._pieces:
            return ""  # some write this for a call without any
        if arguments:
            self._pieces.append(arguments)
        return arguments

    def differs(self, id: str, name: str, arguments: str) -> bool:
        """Does a piece at this call's place begin another call?"""
        if not name or not self._named:
            return False
        if id and self._id:
            return id != self._id
        return bool(arguments and self._pieces) and self._pieces[-1].endswith("}") and is_object("".join(self._pieces))


class CallBook:
    """The calls of one answer, in the order in which they began."""

    __slots__ = ("_calls", "_places")

    def __init__(self) -> None:
        self._calls: list[KnownCall] = []
        self._places: dict[tuple[str, object], KnownCall] = {}

    def __iter__(self) -> Iterator[KnownCall]:
        return iter(self._calls)

    def of(self, place: int, index: int | None, id: str, name: str, arguments: str) -> KnownCall:
        """The call of a piece that stands at this place of its list, a new one if need be."""
        places = self._places
        known = places.get(("index", index)) if index is not None else None
        if known is None and id:
            known = places.get(("id", id))
        elif known is None and index is None:
            known = places.get(("place", place))
        if known is None or known.differs(id, name, arguments):
            known = KnownCall(len(self._calls))
            self._calls.append(known)
        if index is not None:
            places["index", index] = known
        if id:
            places["id", id] = known
        places["place", place] = known
        return known
