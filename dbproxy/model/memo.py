"""What repeats from request to request, remembered while it keeps coming: spans of bytes, and what was made of them.

Owns memos bounded by bytes. Imports nothing of dbproxy. Invariants: a memo never holds more than ``limit`` bytes of
spans (and what was made of them), however many different ones come; no thread ever waits for another.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

#: Bytes beside the span itself that an entry costs, about.
_OVERHEAD: Final = 300
#: What three conversations near the end of their context take.
LIMIT: Final = 12 << 20


class Baton:
    """One thread has it, the others do without: nobody waits."""

    def __init__(self) -> None:
        # Popping a deque is safe between threads; model has no business with locks.
        self._free = deque([True])

    def take(self) -> bool:
        """Is it free, and from now on not?"""
        try:
            return self._free.pop()
        except IndexError:
            return False

    def give_back(self) -> None:
        """Only by whoever took it."""
        self._free.append(True)


class Memo(Generic[T]):
    """``work(span)`` for spans, done once for those that come again before ``limit`` bytes of others came.

    Two generations, the younger one swallowing what is used of the older one: as good as keeping the order of use, and
    nothing has to be moved on most hits.
    """

    def __init__(self, work: Callable[[bytes], T], *, limit: int = LIMIT) -> None:
        self._work = work
        self._baton = Baton()
        self._half = limit // 2
        self._young: dict[bytes, T] = {}
        self._old: dict[bytes, T] = {}
        self._size = 0

    def of(self, spans: Iterable[bytes]) -> list[T]:
        """The results for ``spans``, in order. From any thread: one that finds another at work remembers nothing."""
        if not self._baton.take():
            return [self._work(span) for span in spans]
        try:
            return [self._young[span] if span in self._young else self._take(span) for span in spans]
        finally:
            self._baton.give_back()

    def _take(self, span: bytes) -> T:
        value = self._old[span] if span in self._old else self._work(span)
        size = len(span) + _OVERHEAD
        if size > self._half:
            return value
        if self._size + size > self._half:
            self._old, self._young, self._size = self._young, {}, 0
        self._young[span] = value
        self._size += size
        return value


class _Known:
    """A span, and those that lately stood behind it, the last one first."""

    __slots__ = ("after", "age", "span")

    def __init__(self, span: bytes, age: int) -> None:
        self.span = span
        self.age = age
        self.after: list[_Known] = []


class Runs:
    """Finds the spans of an array again by following what stood behind what, without parsing them.

    A request repeats its conversation's messages and adds a few: following costs one comparison of memory for each. And
    as equal spans come back as the same object, whose hash Python keeps, every other memo finds them at once.
    For one thread at a time: whoever took the ``baton``.

    Where a value is due, and the text of a whole value stands there with a comma or a bracket behind it, there is that
    value and nothing else.
    """

    _ALTERNATIVES: Final = 4
    _FIRST: Final = 64

    def __init__(self, *, limit: int = LIMIT) -> None:
        self.baton = Baton()
        self._half = limit // 2
        self._size = 0
        self._age = 1
        self._young: dict[bytes, _Known] = {}
        self._old: dict[bytes, _Known] = {}
        self._first = _Known(b"", 0)
        self._last = self._first

    def follow(self, text: bytes, at: int) -> tuple[list[bytes], int]:
        """The known spans that stand in ``text`` from ``at`` on, with commas and nothing else between them, and where
        to look on: behind the last one's comma or, if none follows it, behind that one. In the latter case it only
        counts if a bracket stands there."""
        found: list[bytes] = []
        known = self._first
        starts = text.startswith
        while True:
            for following in known.after:
                if starts(following.span, at):
                    break
            else:
                break
            if following is not known.after[0]:
                known.after.remove(following)
                known.after.insert(0, following)
            if following.age != self._age:
                self._renew(following)
            found.append(following.span)
            known = following
            at += len(following.span)
            if not starts(b",", at):
                break
            at += 1
        self._last = known
        return found, at

    def learn(self, spans: Iterable[bytes]) -> list[bytes]:
        """The same spans, known from now on: they stood behind those that ``follow`` found last."""
        learnt: list[bytes] = []
        last: _Known | None = self._last
        for span in spans:
            if len(span) + _OVERHEAD > self._half:
                learnt.append(span)
                last = None
                continue
            known = self._young.get(span) or self._old.get(span) or _Known(span, 0)
            if known.age != self._age:
                self._renew(known)
            learnt.append(known.span)
            if last is not None:
                if known in last.after:
                    last.after.remove(known)
                last.after.insert(0, known)
                del last.after[self._FIRST if last is self._first else self._ALTERNATIVES :]
            last = known
        return learnt

    def _renew(self, known: _Known) -> None:
        size = len(known.span) + _OVERHEAD
        if self._size + size > self._half:
            self._grow_older()
        known.age = self._age
        self._young[known.span] = known
        self._size += size

    def _grow_older(self) -> None:
        """Forget the older generation, and what the younger one knows of it."""
        for known in self._old.values():
            if known.age != self._age:
                known.after = []
        for known in (self._first, *self._young.values()):
            known.after = [following for following in known.after if following.age == self._age]
        self._old, self._young, self._size = self._young, {}, 0
        self._age += 1
