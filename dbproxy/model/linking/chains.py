"""Running hashes over a history's messages: two histories share a beginning exactly where their chains agree.

Owns the chain and its memo. Chains are kept as one string of bytes, ``WIDTH`` for each message that takes part, since a
conversation of thousands of messages must stay small in memory. Invariant: once two chains differ they differ for good,
so that the longest common beginning is found by bisection.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH: Final = 16


def extend(start: bytes, hashes: Iterable[bytes]) -> bytes:
    """The chain behind ``start`` (the last ``WIDTH`` bytes of a chain, or empty) for the messages of ``hashes``; the
    values are those of ``identity.LinkHashes.chain``."""
    out = bytearray()
    link = start
    for one in hashes:
        link = sha256(link + one).digest()[:WIDTH]
        out += link
    return bytes(out)


def depth(chain: bytes) -> int:
    """How many messages a chain covers."""
    return len(chain) // WIDTH


def at(chain: bytes, place: int) -> bytes:
    """The chain's value behind its message ``place``, counted from 1; empty for 0."""
    return chain[(place - 1) * WIDTH : place * WIDTH] if place else b""


def split(chain: bytes) -> list[bytes]:
    """The values one by one."""
    return [chain[i : i + WIDTH] for i in range(0, len(chain), WIDTH)]


def common(left: bytes, right: bytes) -> int:
    """How many messages two chains share from their beginning."""
    low, high = 0, min(depth(left), depth(right))
    if left[: high * WIDTH] == right[: high * WIDTH]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if at(left, middle) == at(right, middle):
            low = middle
        else:
            high = middle - 1
    return low


class ChainMemo:
    """Chains of the histories seen last, so that a turn costs what it adds. Bounded by ``limit`` histories."""

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._seen: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()

    def chain(self, key: str, start: bytes, hashes: list[bytes]) -> bytes:
        """``extend(start, hashes)``; ``key`` says whose history it is."""
        joined = start + b"".join(hashes)
        hashed, known = self._seen.get(key, (b"", b""))
        # The hashes behind equal starts are compared like chains: equal up to the place where they first differ.
        lead = len(start)
        same = 0
        if hashed[:lead] == start:
            same = _shared(hashed[lead:], joined[lead:])
        kept = known[: same * WIDTH]
        chain = kept + extend(kept[-WIDTH:] if kept else start, hashes[same:])
        self._seen[key] = (joined, chain)
        self._seen.move_to_end(key)
        while len(self._seen) > self._limit:
            self._seen.popitem(last=False)
        return chain


def _shared(left: bytes, right: bytes) -> int:
    """How many whole hashes two runs of hashes share from their beginning."""
    low, high = 0, min(len(left), len(right)) // WIDTH
    while low < high:
        middle = (low + high + 1) // 2
        if left[low * WIDTH : middle * WIDTH] == right[low * WIDTH : middle * WIDTH]:
            low = middle
        else:
            high = middle - 1
    return low
