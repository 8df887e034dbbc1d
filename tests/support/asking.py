"""What a client of the Messages API says, in a test: a request's body and what stands in it."""

from __future__ import annotations

from typing import Any

ASKED = "claude-sonnet-5-5"


def ask(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The body of a Messages request; a field that is None is left out."""
    body = {"model": ASKED, "max_tokens": 1000, "stream": True, "messages": list(messages)}
    return {name: value for name, value in (body | fields).items() if value is not None}


def user(*blocks: Any) -> dict[str, Any]:
    """A message of the user: texts and blocks."""
    return {"role": "user", "content": [_block(block) for block in blocks]}


def assistant(*blocks: Any) -> dict[str, Any]:
    """A message of the assistant."""
    return {"role": "assistant", "content": [_block(block) for block in blocks]}


def tool_use(id: str, name: str = "Read", **arguments: Any) -> dict[str, Any]:
    """A call."""
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def tool_result(id: str, content: Any = "done", **fields: Any) -> dict[str, Any]:
    """Its result."""
    return {"type": "tool_result", "tool_use_id": id, "content": content} | fields


def thinking(text: str, signature: str) -> dict[str, Any]:
    """A thought."""
    return {"type": "thinking", "thinking": text, "signature": signature}


def _block(block: Any) -> Any:
    return {"type": "text", "text": block} if isinstance(block, str) else block
