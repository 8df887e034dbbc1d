"""A request's history as the buffer needs it: its messages as exact spans, their chain, and what is asked at the end.

Pure, and meant for a worker thread: a body of megabytes takes milliseconds. Not thread-safe (the memo of hashes).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbproxy.api import LinkHashes, json_array, json_members
from dbproxy_double_buffer.detect import CompactRequest, compact_request, without_instruction

if TYPE_CHECKING:
    from dbproxy.api import Fields

#: So many messages at the end can belong to the instruction: its own, and notes of the client behind it.
_TAIL = 4


@dataclass(frozen=True, slots=True)
class History:
    """``spans`` are the messages without the instruction, ``chains`` the running linking hash after each of them.

    ``model``, ``stream`` and ``max_tokens`` are those of the request; ``thread`` is the id of the answer that a
    continued message thread goes on from, None for a request with its whole history.
    """

    spans: tuple[bytes, ...]
    chains: tuple[bytes, ...]
    request: CompactRequest | None
    model: str = ""
    stream: bool = False
    max_tokens: int = 0
    thread: str | None = None

    @property
    def chain(self) -> bytes:
        """Of the whole history."""
        return self.chains[-1] if self.chains else b""

    def messages(self, start: int) -> list[dict[str, Any]]:
        """The messages from an index on, decoded; what is no object is left out."""
        found = [_loads(span) for span in self.spans[start:]]
        return [message for message in found if isinstance(message, dict)]


class Historian:
    """Reads bodies; the hashes of messages seen before are remembered."""

    def __init__(self) -> None:
        self._hashes = LinkHashes()

    def read(self, body: bytes, fields: Fields, earlier: tuple[bytes, ...] = ()) -> History | None:
        """The history of a request, None if its body holds none. ``earlier`` are messages that stand before those of
        the body (of a continued thread)."""
        members = json_members(body)
        if members is None:
            return None
        values = {member.key: body[member.start : member.end] for member in members}
        array = json_array(values.get(b"messages", b""))
        if array is None:
            return None
        spans = [*earlier, *array.elements]
        request = None
        tail = [_loads(span) for span in spans[-_TAIL:]]
        if tail and all(isinstance(message, dict) for message in tail):
            request = compact_request(tail, fields)
            if request is not None:
                kept = without_instruction(tail)
                if kept is not tail:
                    changed = [
                        span if message is before else _dumps(message)
                        for message, (span, before) in zip(kept, _aligned(spans[-_TAIL:], tail, kept), strict=True)
                    ]
                    spans = [*spans[: len(spans) - len(tail)], *changed]
        chains, running = [], b""
        for found in self._hashes.of(spans):
            if found is not None:
                running = LinkHashes.chain([found], running)[0]
            chains.append(running)
        thread = _loads(values.get(b"thread", b"null"))
        continues = isinstance(thread, dict) and thread.get("type") == "continue"
        return History(
            tuple(spans),
            tuple(chains),
            request,
            model=_text(_loads(values.get(b"model", b"null"))),
            stream=values.get(b"stream", b"").strip() == b"true",
            max_tokens=_number(_loads(values.get(b"max_tokens", b"null"))),
            thread=_text(thread.get("previous_message_id")) if continues and not earlier else None,
        )


def _aligned(spans: list[bytes], tail: list[Any], kept: list[Any]) -> list[tuple[bytes, Any]]:
    """For each kept message the span and the message that it was."""
    if len(kept) == len(tail):
        return list(zip(spans, tail, strict=True))
    by_id = {id(message): (span, message) for span, message in zip(spans, tail, strict=True)}
    return [by_id[id(message)] for message in kept]


def _loads(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
