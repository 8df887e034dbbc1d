"""The Messages API's answers as data: content blocks to stream events and to whole messages.

Pure functions, no I/O. Invariant: what ``message_events`` returns passes ``grammar.check_stream``.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Block = dict[str, Any]

# Blocks that come whole in content_block_start, without deltas (anthropic-api 1.6).
_WHOLE_SUFFIX = "_tool_result"


def text(content: str) -> Block:
    """A text block."""
    return {"type": "text", "text": content}


def tool_use(name: str, arguments: Mapping[str, Any], *, call_id: str = "") -> Block:
    """A call of one of the client's tools; the id is made up unless given."""
    return {"type": "tool_use", "id": call_id or "toolu_" + uuid.uuid4().hex[:24], "name": name, "input": {**arguments}}


def thinking(content: str, *, signature: str = "c2lnbmF0dXJl") -> Block:
    """A thinking block; an empty signature is what translated foreign models send (client facts 3.4)."""
    return {"type": "thinking", "thinking": content, "signature": signature}


def new_message_id() -> str:
    """A fresh ``msg_`` id."""
    return "msg_" + uuid.uuid4().hex[:24]


def encode(event: Mapping[str, Any]) -> bytes:
    """One event in the API's spelling: ``event`` line, ``data`` line, blank line."""
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event['type']}\ndata: {data}\n\n".encode()


PING = encode({"type": "ping"})
COMMENT = b": keep-alive\n\n"


def pieces(content: str, size: int) -> list[str]:
    """``content`` in parts of ``size`` characters; an empty text has no part."""
    return [content[start : start + size] for start in range(0, len(content), max(1, size))]


def default_stop_reason(blocks: Iterable[Block]) -> str:
    """``tool_use`` when a client tool is called, else ``end_turn`` (anthropic-api 1.4)."""
    return "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn"


def estimate(blocks: Iterable[Block]) -> int:
    """Output tokens by the usual four characters a token; at least one."""
    return max(1, sum(len(json.dumps(block, ensure_ascii=False)) for block in blocks) // 4)


def full_usage(given: Mapping[str, Any] | None, *, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """The usage object with every number that a client reads (anthropic-api 1.5); ``given`` wins."""
    usage: dict[str, Any] = {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }
    usage.update(given or {})
    return usage


def _block_events(index: int, block: Block, delta_chars: int) -> list[dict[str, Any]]:
    kind = block["type"]
    opening: Block
    deltas: list[dict[str, Any]] = []
    if kind == "text":
        opening = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": part} for part in pieces(block["text"], delta_chars)]
    elif kind in ("tool_use", "server_tool_use"):
        opening = {**block, "input": {}}
        spelled = json.dumps(block["input"], ensure_ascii=False)
        # The first partial is often empty (anthropic-api 1.6).
        parts = ["", *pieces(spelled, delta_chars)]
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
    elif kind == "thinking":
        opening = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": part} for part in pieces(block["thinking"], delta_chars)]
        deltas.append({"type": "signature_delta", "signature": block.get("signature", "")})
    elif kind == "compaction" and "signature" not in block:
        # Threshold compaction: one delta with all text (anthropic-api 2.1).
        opening = {"type": "compaction", "content": ""}
        deltas = [{"type": "compaction_delta", "content": block["content"]}]
    else:
        opening = block
    events: list[dict[str, Any]] = [{"type": "content_block_start", "index": index, "content_block": opening}]
    events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    events.append({"type": "content_block_stop", "index": index})
    return events


def message(
    blocks: Sequence[Block],
    *,
    model: str,
    message_id: str = "",
    usage: Mapping[str, Any] | None = None,
    stop_reason: str | None = None,
    input_tokens: int = 100,
) -> dict[str, Any]:
    """The whole message, as a request without ``stream`` gets it (anthropic-api 1.4)."""
    return {
        "id": message_id or new_message_id(),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": list(blocks),
        "stop_reason": stop_reason or default_stop_reason(blocks),
        "stop_sequence": None,
        "usage": full_usage(usage, input_tokens=input_tokens, output_tokens=estimate(blocks)),
    }


def message_events(
    blocks: Sequence[Block],
    *,
    model: str,
    message_id: str = "",
    usage: Mapping[str, Any] | None = None,
    stop_reason: str | None = None,
    input_tokens: int = 100,
    delta_chars: int = 400,
) -> list[dict[str, Any]]:
    """The same message as stream events, in the order of anthropic-api 1.6.

    ``message_start`` carries the input side; ``message_delta`` repeats it with the final output count, and is what
    the client believes where a value is above zero (client facts 4.2).
    """
    whole = message(
        blocks, model=model, message_id=message_id, usage=usage, stop_reason=stop_reason, input_tokens=input_tokens
    )
    start = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(blocks):
        events += _block_events(index, block, delta_chars)
    final = {
        name: whole["usage"][name]
        for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    }
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": final})
    events.append({"type": "message_stop"})
    return events


def error_body(kind: str, text_: str, *, request_id: str = "", details: Mapping[str, Any] | None = None) -> bytes:
    """The API's error body (anthropic-api 1.7)."""
    error: dict[str, Any] = {"type": kind, "message": text_}
    if details:
        error["details"] = dict(details)
    body: dict[str, Any] = {"type": "error", "error": error}
    if request_id:
        body["request_id"] = request_id
    return json.dumps(body).encode()
