"""What was worked out for spans of bytes, remembered while they keep coming.

Owns a memo bounded by bytes. Not thread-safe. Invariant: it never holds more than ``limit`` bytes of spans (and what
was made of them), however many different ones come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

#: Bytes beside the span itself that an entry costs, about.
_OVERHEAD: Final = 300


class Memo(Generic[T]):
    """``work(span)`` for spans, done once for those that come again before ``limit`` bytes of others came.

    Two generations, the younger one swallowing what is used of the older one: as good as keeping the order of use, and
    nothing has to be moved on most hits.
    """

    def __init__(self, work: Callable[[bytes], T], *, limit: int = 16 << 20) -> None:
        self._work = work
        self._half = limit // 2
        self._young: dict[bytes, T] = {}
        self._old: dict[bytes, T] = {}
        self._size = 0

    def of(self, spans: Iterable[bytes]) -> list[T]:
        """The results for ``spans``, in order."""
        return [self._young[span] if span in self._young else self._take(span) for span in spans]

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
