"""The fake API's prompt cache: which part of a request was read from it, written to it, or paid in full.

Pure but for the table of entries; every call brings the time. A model of API facts 2.5, 2.6 and 2.7, and of no more:
tokens are bytes of JSON over ``bytes_per_token``, so that a test may let a short talk stand for a long one.
Invariants: the counts of a request add up to its prompt; an entry is written only at a breakpoint and is read only once
its own answer has begun; what a request failed at is not in the cache.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dbproxy.testing.origin.received import blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dbproxy.testing.origin.received import Received

#: Breakpoints of one request, three with a thread; blocks that a lookup walks back; lifetimes in seconds (2.5, 2.6).
MOST_BREAKPOINTS: Final = 4
LOOK_BACK: Final = 20
LIFETIMES: Final = {"5m": 300.0, "1h": 3600.0}
#: Smallest prefix in tokens, by the beginning of the model's name (2.5); the 5.5 family is not documented.
MINIMUM: Final = (
    ("claude-opus-4-8", 1024),
    ("claude-opus-4-7", 2048),
    ("claude-opus-4-6", 4096),
    ("claude-opus-4-5", 4096),
    ("claude-haiku-4-5", 4096),
    ("claude-opus-5-5", 1024),
    ("claude-sonnet-5-5", 1024),
    ("claude-opus-5", 512),
    ("claude-fable-5", 512),
    ("claude-mythos-5", 512),
)
USUAL_MINIMUM: Final = 1024
#: The client's attribution block changes with every request and spoils no cache (client facts 3.1, API facts 2.7).
_ATTRIBUTION: Final = "x-anthropic-billing-header:"


@dataclass(frozen=True, slots=True)
class Share:
    """How a prompt's tokens were paid: in full, read, and written for five minutes and for an hour."""

    full: int
    read: int = 0
    written_5m: int = 0
    written_1h: int = 0

    def usage(self) -> dict[str, Any]:
        """As the usage object spells it (API facts 1.5)."""
        return {
            "input_tokens": self.full,
            "cache_creation_input_tokens": self.written_5m + self.written_1h,
            "cache_read_input_tokens": self.read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.written_5m,
                "ephemeral_1h_input_tokens": self.written_1h,
            },
        }


@dataclass(frozen=True, slots=True)
class _Block:
    """``digest`` is that of everything up to and with this block, ``end`` the tokens up to there."""

    digest: bytes
    end: int
    ttl: str  # "" where no breakpoint stands


@dataclass(slots=True)
class _Entry:
    written_by: Received
    until: float
    lifetime: float


class PromptCache:
    """The entries of all keys. ``bytes_per_token`` scales: 4 is usual."""

    def __init__(self, bytes_per_token: float = 4.0) -> None:
        self._bytes_per_token = bytes_per_token
        self._entries: dict[bytes, _Entry] = {}

    def problem(self, request: Received) -> str:
        """Why the API would refuse the marks of this request with a 400, "" if it would not."""
        marks = [block.ttl for block in self._blocks(request) if block.ttl]
        most = MOST_BREAKPOINTS - isinstance(request.json.get("thread"), dict)
        if len(marks) > most:
            return f"A maximum of {most} blocks with cache_control may be provided. Found {len(marks)}."
        if "5m" in marks and "1h" in marks[marks.index("5m") :]:
            return "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block"
        return ""

    def pay(self, request: Received, now: float) -> Share:
        """What the prompt of this request costs, and what it leaves in the cache. Only for one that is answered."""
        blocks = list(self._blocks(request))
        total = blocks[-1].end if blocks else 1
        marked = [place for place, block in enumerate(blocks) if block.ttl]
        read = 0
        for place in reversed(marked):
            for back in range(place, max(-1, place - LOOK_BACK - 1), -1):
                entry = self._entries.get(blocks[back].digest)
                if entry is not None and entry.until > now and entry.written_by.sent.first_at is not None:
                    entry.until = now + entry.lifetime  # restarts on each hit, at no cost
                    read = max(read, blocks[back].end)
                    break
        written = {"5m": 0, "1h": 0}
        reached = read
        for place in marked:
            block = blocks[place]
            if block.end < minimum(request.model):
                continue
            lifetime = LIFETIMES[block.ttl]
            if block.end > reached:
                written[block.ttl] += block.end - reached
                reached = block.end
            known = self._entries.get(block.digest)
            if known is None or known.until <= now:
                self._entries[block.digest] = _Entry(request, now + lifetime, lifetime)
        return Share(total - reached, read, written["5m"], written["1h"])

    def _blocks(self, request: Received) -> Iterator[_Block]:
        """Every block in the cache's order: tools, system, messages; each digest covers what comes before it."""
        body = request.json
        opening = request.opening or {}
        key = request.header("x-api-key") or request.header("authorization") or ""
        running = hashlib.sha256(_spelled([key, request.model, request.header("anthropic-beta")])).digest()
        size = 0
        tools = body.get("tools") or opening.get("tools") or []
        system = blocks_of({"content": opening.get("system") or body.get("system")})
        sections: tuple[tuple[object, list[tuple[str, Mapping[str, Any]]]], ...] = (
            (None, [("tool", tool) for tool in tools if isinstance(tool, dict)]),
            (
                body.get("speed"),
                [("system", b) for b in system if not str(b.get("text", "")).startswith(_ATTRIBUTION)],
            ),
            (_about_messages(body), [*_message_blocks(request)]),
        )
        last = sum(len(items) for _, items in sections)
        number = 0
        for breaks, items in sections:
            running = hashlib.sha256(running + _spelled(breaks)).digest()
            for role, item in items:
                number += 1
                plain = _spelled([role, {name: value for name, value in item.items() if name != "cache_control"}])
                running = hashlib.sha256(running + plain).digest()
                size += len(plain)
                mark = item.get("cache_control")
                if number == last and not isinstance(mark, dict):
                    mark = body.get("cache_control")  # the automatic breakpoint
                ttl = str(mark.get("ttl", "5m")) if isinstance(mark, dict) else ""
                yield _Block(running, max(1, int(size / self._bytes_per_token)), ttl if ttl in LIFETIMES else "")


def minimum(model: str) -> int:
    """The smallest prefix that is cached, in tokens."""
    return next((tokens for name, tokens in MINIMUM if model.startswith(name)), USUAL_MINIMUM)


def _about_messages(body: Mapping[str, Any]) -> list[Any]:
    """What else makes the messages' part of the cache another one (API facts 2.5)."""
    effort = body.get("output_config")
    return [body.get("tool_choice"), body.get("thinking"), effort.get("effort") if isinstance(effort, dict) else None]


def _message_blocks(request: Received) -> Iterator[tuple[str, Mapping[str, Any]]]:
    own = [message for message in request.json.get("messages") or [] if isinstance(message, dict)]
    for message in [*(request.history or []), *own]:
        for block in blocks_of(message):
            yield str(message.get("role")), block


def _spelled(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
