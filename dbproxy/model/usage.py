"""Token usage of one answer: what was counted, what fills the context, what is billed.

Owns the meaning of the ``usage`` object (API facts 1.5). Never knows prices, nor does I/O.

Invariants: all counts are whole numbers, zero or more; the two cache-write counts add up to the reported total.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, or of one of its iterations.

    ``input_tokens`` leaves out what the prompt cache read or wrote (OpenAI's figures include it). ``kind`` is empty for
    the answer as a whole, else the iteration's type: ``message``, ``compaction``, ``advisor_message``,
    ``fallback_message`` or newer.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    thinking_tokens: int = 0  # part of output_tokens
    web_search_requests: int = 0
    web_fetch_requests: int = 0
    service_tier: str = ""
    speed: str = ""
    inference_geo: str = ""
    model: str = ""  # of an iteration that another model served
    kind: str = ""
    iterations: tuple[Usage, ...] = ()

    @classmethod
    def of(cls, value: object) -> Usage:
        """Read a ``usage`` object; anything else, or nothing, counts as zero."""
        return cls._read(shapes.mapping(value), nested=True)

    @classmethod
    def _read(cls, usage: dict[str, Any], *, nested: bool) -> Usage:
        creation = shapes.mapping(usage.get("cache_creation"))
        hour = shapes.count(creation.get("ephemeral_1h_input_tokens"))
        five = shapes.count(creation.get("ephemeral_5m_input_tokens"))
        total = shapes.count(usage.get("cache_creation_input_tokens"))
        tools = shapes.mapping(usage.get("server_tool_use"))
        details = shapes.mapping(usage.get("output_tokens_details"))
        iterations = shapes.sequence(usage.get("iterations")) if nested else []
        return cls(
            input_tokens=shapes.count(usage.get("input_tokens")),
            output_tokens=shapes.count(usage.get("output_tokens")),
            cache_read=shapes.count(usage.get("cache_read_input_tokens")),
            # Without a split, or with one of an earlier event, the rest is the default time to live of 5 minutes.
            cache_write_5m=max(five, total - hour),
            cache_write_1h=hour,
            thinking_tokens=shapes.count(details.get("thinking_tokens")),
            web_search_requests=shapes.count(tools.get("web_search_requests")),
            web_fetch_requests=shapes.count(tools.get("web_fetch_requests")),
            service_tier=shapes.text(usage.get("service_tier")),
            speed=shapes.text(usage.get("speed")),
            inference_geo=shapes.text(usage.get("inference_geo")),
            model=shapes.text(usage.get("model")),
            kind=shapes.text(usage.get("type")),
            # One level: an iteration has no iterations, whatever a hostile body says.
            iterations=tuple(cls._read(item, nested=False) for item in iterations if isinstance(item, dict)),
        )

    @property
    def cache_write(self) -> int:
        """Tokens written to the prompt cache, both lifetimes."""
        return self.cache_write_5m + self.cache_write_1h

    @property
    def prompt_tokens(self) -> int:
        """The whole prompt as the model saw it. Never read from a compaction iteration (API facts 1.5)."""
        return self.input_tokens + self.cache_read + self.cache_write

    @property
    def context_tokens(self) -> int:
        """Prompt and answer: the figure that Claude Code compares with its compaction threshold (client facts 4.2)."""
        return self.prompt_tokens + self.output_tokens

    def billed(self) -> tuple[Usage, ...]:
        """What is paid for: every iteration where there are any, since the top-level figures leave compaction out."""
        return self.iterations or (self,)


def merge(current: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """A ``usage`` object after one more cumulative report (message_delta).

    Numbers above zero, filled objects and other values win; zero, null and empty lists never erase what was known,
    as in Claude Code (client facts 4.2).
    """
    merged = dict(current)
    for key, value in update.items():
        known = merged.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            # The objects of a usage report are flat; following deeper ones would let a hostile body exhaust the stack.
            merged[key] = {**known, **{k: v for k, v in value.items() if known.get(k) is None or v not in _NOTHING}}
        elif known is None or value not in _NOTHING:
            merged[key] = value
    return merged


def total(parts: Iterable[Usage]) -> Usage:
    """The sum of the counts; labels and iterations are left empty."""
    sums = dict.fromkeys(_COUNTS, 0)
    for part in parts:
        for name in _COUNTS:
            sums[name] += getattr(part, name)
    return Usage(**sums)  # type: ignore[arg-type]  # the names are exactly those of the counts


_NOTHING: Final[tuple[object, ...]] = (None, 0, [], "")
_COUNTS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "thinking_tokens",
    "web_search_requests",
    "web_fetch_requests",
)
