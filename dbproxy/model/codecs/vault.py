"""What a model's own later requests must bring back, though the client may lose it: signatures by tool_use id.

A Claude signature stays in the client's history. What others sign (OpenAI's encrypted reasoning, Gemini's thought
signatures, reasoning text that has to be echoed) travels in two ways: inside the thinking block that the client keeps,
as ``FAMILY#PAYLOAD``, and here, found by the id of the call that followed it. Pure; a bounded
memory, written on one thread and read on any.
Sources: seed-001 section 3.3 (signature rules), API facts 2.4.

Invariants: a payload is given back only to the family that made it; what is forgotten costs quality, never an error.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

#: Bytes of payloads and texts that are remembered.
LIMIT: Final = 32 * 1024 * 1024
_MARK: Final = "#"


@dataclass(frozen=True, slots=True)
class Kept:
    """What belongs to a call: the ``family`` that can read it, the opaque ``payload``, and the ``text`` thought."""

    family: str
    payload: str
    text: str = ""


class Vault:
    """Payloads by the client's tool_use id; the oldest are forgotten."""

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._size = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def put(self, call: str, kept: Kept) -> None:
        """Remember it for the call with this id."""
        before = self._kept.pop(call, None)
        if before is not None:
            self._size -= _weight(call, before)
        self._kept[call] = kept
        self._size += _weight(call, kept)
        while self._size > self._limit and self._kept:
            name, oldest = self._kept.popitem(last=False)
            self._size -= _weight(name, oldest)

    def get(self, call: str, family: str) -> Kept | None:
        """What ``family`` gave for the call with this id, None if nothing is known."""
        kept = self._kept.get(call)
        return kept if kept is not None and kept.family == family else None

    def __len__(self) -> int:
        return len(self._kept)


def _weight(call: str, kept: Kept) -> int:
    return len(call) + len(kept.payload) + len(kept.text) + 200


def join_signature(family: str, payload: str) -> str:
    """A payload as the signature of a thinking block that the client keeps."""
    return f"{family}{_MARK}{payload}"


def split_signature(signature: str) -> tuple[str, str]:
    """(family, payload) of a thinking block's signature: ``claude`` for the API's own, ("", "") for none."""
    if not signature:
        return "", ""
    family, mark, payload = signature.partition(_MARK)
    return (family, payload) if mark else ("claude", signature)
