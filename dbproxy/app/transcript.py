"""A history of messages as a Markdown transcript.

Owns how each kind of block is shown. Pure: JSON bytes in, text out. Invariants: never fails on a message of any shape;
a text that holds code fences cannot end the fence around it; binary content is named, not shown.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_TICKS = re.compile(r"`{3,}")


def markdown(title: str, facts: Iterable[tuple[str, str]], history: Iterable[bytes]) -> str:
    """The page: a heading, a list of ``facts``, and every message under its role."""
    out = [f"# {' '.join(title.split())}", ""]
    out += [f"- {name}: {value}" for name, value in facts]
    return "\n".join([*out, "", messages(history)]).rstrip() + "\n"


def messages(history: Iterable[bytes]) -> str:
    """Every message under its role."""
    out: list[str] = []
    for raw in history:
        role, blocks = _message(raw)
        out += [f"## {role}", ""]
        for block in blocks:
            out += [_block(block), ""]
    return "\n".join(out)


def _message(raw: bytes) -> tuple[str, list[Any]]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return "unreadable", [{"type": "text", "text": raw[:2000].decode("utf-8", "replace")}]
    if not isinstance(value, dict):
        return "unreadable", [value]
    content = value.get("content")
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    role = value.get("role") or ("error" if value.get("type") == "error" else "message")
    if value.get("type") == "error":
        blocks = [value.get("error")]
    return str(role), blocks


def _block(block: Any) -> str:
    if not isinstance(block, dict):
        return block if isinstance(block, str) else fenced(_json(block), "json")
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    if kind == "thinking":
        text = block.get("thinking")
        return quoted(text) if isinstance(text, str) and text else "*(thinking, not shown by the model)*"
    if kind == "redacted_thinking":
        return "*(thinking, encrypted)*"
    if kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
        head = f"**{block.get('name', 'tool')}** `{block.get('id', '')}`"
        return f"{head}\n\n{fenced(_json(block.get('input')), 'json')}"
    if isinstance(kind, str) and kind.endswith("tool_result"):
        failed = " (error)" if block.get("is_error") else ""
        return f"**Result**{failed} of `{block.get('tool_use_id', '')}`\n\n{_result(block.get('content'))}"
    if kind in ("image", "document", "file"):
        return _binary(kind, block.get("source"))
    return fenced(_json(block), "json")


def _result(content: Any) -> str:
    if isinstance(content, str):
        return fenced(content)
    if not isinstance(content, list):
        return fenced(_json(content), "json") if content else "*(empty)*"
    shown = []
    for item in content:
        if isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str):
            shown.append(fenced(item["text"]))
        else:
            shown.append(_block(item))
    return "\n\n".join(shown) or "*(empty)*"


def _binary(kind: str, source: Any) -> str:
    if not isinstance(source, dict):
        return f"*({kind})*"
    data = source.get("data")
    size = f", {len(data) * 3 // 4:,} bytes" if isinstance(data, str) else ""
    name = source.get("media_type") or source.get("url") or source.get("file_id") or source.get("type") or "unknown"
    if source.get("type") == "text" and isinstance(data, str):
        return fenced(data)
    return f"*({kind}: {name}{size})*"


def fenced(text: str, language: str = "") -> str:
    """``text`` as a code block, behind a fence longer than any within it."""
    longest = max((len(match) for match in _TICKS.findall(text)), default=2)
    fence = "`" * (longest + 1)
    end = "" if text.endswith("\n") else "\n"
    return f"{fence}{language}\n{text}{end}{fence}"


def quoted(text: str) -> str:
    """``text`` as a quotation."""
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def _json(value: Any) -> str:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return str(value)[:2000]
