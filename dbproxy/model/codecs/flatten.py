"""Blocks that only the Messages API knows, as plain text: nothing of a history is lost when another model reads it.

Pure; imports ``shapes`` only. Invariant: never raises, never returns more than the block held.
"""

from __future__ import annotations

from typing import Any, Final

from dbproxy.model import shapes

_SHOWN: Final = 20_000  # characters of a block that nobody knows


def as_text(kind: str, block: dict[str, Any]) -> str:
    """The block as text; "" where there is nothing to read in it."""
    if kind == "document":
        source = shapes.mapping(block.get("source"))
        title = shapes.text(block.get("title"))
        text = shapes.text(source.get("data")) or shapes.text(source.get("text"))
        return f"[{title}]\n{text}" if title and text else text
    if kind == "search_result":
        head = f"[{shapes.text(block.get('title'))}] {shapes.text(block.get('source'))}".strip()
        return "\n".join([head, *_texts(block.get("content"))])
    if kind in ("server_tool_use", "mcp_tool_use"):
        return f"[{shapes.text(block.get('name'))}: {_json(block.get('input'))}]"
    if kind == "web_search_tool_result":
        return "\n".join(_hits(block.get("content")))
    if kind.endswith("_tool_result") or kind == "mcp_tool_result":
        return "\n".join(_texts(block.get("content"))) or _json(block.get("content"))
    if kind == "compaction":
        return shapes.text(block.get("content"))
    if kind in ("container_upload", "fallback"):
        return ""
    rest = {key: value for key, value in block.items() if key != "cache_control"}
    return _json(rest) if rest else ""


def _texts(content: object) -> list[str]:
    if isinstance(content, str):
        return [content] if content else []
    if isinstance(content, dict):
        content = [content]
    found = (shapes.text(shapes.mapping(block).get("text")) for block in shapes.sequence(content))
    return [text for text in found if text]


def _hits(content: object) -> list[str]:
    if isinstance(content, dict):
        return [f"[web search failed: {shapes.text(content.get('error_code'))}]"]
    hits = map(shapes.mapping, shapes.sequence(content))
    return [f"{shapes.text(hit.get('title'))} <{shapes.text(hit.get('url'))}>" for hit in hits]


def _json(value: object) -> str:
    return shapes.written(value).decode("utf-8", "replace")[:_SHOWN]
