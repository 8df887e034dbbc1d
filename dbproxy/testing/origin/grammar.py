"""A strict reading of the Messages API's event stream: what a client may rely on, and nothing looser.

For contract tests and the scripted agent. Raises GrammarError at the first fault; never repairs.
Source of every rule: anthropic-api 1.6, unless named.
"""

from __future__ import annotations

import json
from typing import Any

DELTAS = {
    "text": {"text_delta", "citations_delta"},
    "thinking": {"thinking_delta", "signature_delta"},
    "tool_use": {"input_json_delta"},
    "server_tool_use": {"input_json_delta"},
    "mcp_tool_use": {"input_json_delta"},
    "compaction": {"compaction_delta"},
}
STOP_REASONS = {
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "pause_turn",
    "refusal",
    "model_context_window_exceeded",
    "compaction",
}


class GrammarError(Exception):
    """The stream breaks the grammar."""


class StreamError(Exception):
    """The stream is well formed and carries an error event; ``error`` is its inner object."""

    def __init__(self, error: dict[str, Any], *, after_content: bool) -> None:
        super().__init__(f"{error.get('type')}: {error.get('message')}")
        self.error = error
        self.after_content = after_content


class Reader:
    """Feed it a stream; ``message`` is whole once ``complete``."""

    def __init__(self) -> None:
        self._rest = b""
        self._open: int | None = None
        self._partial: list[str] = []
        self._cut = ""  # a tool's input that is incomplete: only a stop reason excuses it
        self._state = "start"  # start, blocks, ending, done
        self.message: dict[str, Any] = {}
        self.pings = 0
        self.comments = 0
        self.events = 0

    @property
    def complete(self) -> bool:
        """Did message_stop come, with nothing pending behind it?"""
        return self._state == "done" and not self._rest

    @property
    def content_seen(self) -> bool:
        """Did any block begin?"""
        return bool(self.message.get("content"))

    def feed(self, data: bytes) -> None:
        """Raises GrammarError, or StreamError for an error event."""
        self._rest += data
        while (end := self._rest.find(b"\n\n")) >= 0:
            chunk, self._rest = self._rest[:end], self._rest[end + 2 :]
            self._chunk(chunk)

    def finish(self) -> dict[str, Any]:
        """The message, at the end of the stream. Raises GrammarError if it was cut."""
        if not self.complete:
            raise GrammarError(f"the stream ended in state {self._state!r} with {len(self._rest)} bytes pending")
        return self.message

    def _chunk(self, chunk: bytes) -> None:
        if chunk.startswith(b":"):
            self.comments += 1
            return
        lines = chunk.split(b"\n")
        if len(lines) != 2 or not lines[0].startswith(b"event: ") or not lines[1].startswith(b"data: "):
            raise GrammarError(f"not one event line and one data line: {chunk[:80]!r}")
        name = lines[0][7:].decode("ascii")
        try:
            event = json.loads(lines[1][6:])
        except ValueError as error:
            raise GrammarError(f"data of {name} is not JSON: {error}") from error
        if not isinstance(event, dict) or event.get("type") != name:
            raise GrammarError(f"event name {name!r} and data type differ")
        if name == "ping":
            self.pings += 1
            return
        if name == "error":
            raise StreamError(event["error"], after_content=self.content_seen)
        self.events += 1
        handler = getattr(self, f"_on_{name}", None)
        if handler is None:
            raise GrammarError(f"unknown event {name!r}")
        handler(event)

    def _need(self, *states: str, event: str) -> None:
        if self._state not in states:
            raise GrammarError(f"{event} in state {self._state!r}")

    def _on_message_start(self, event: dict[str, Any]) -> None:
        self._need("start", event="message_start")
        message = event["message"]
        if message.get("type") != "message" or message.get("role") != "assistant" or message.get("content") != []:
            raise GrammarError("message_start does not carry an empty assistant message")
        if message.get("stop_reason") is not None or not message.get("id") or not message.get("model"):
            raise GrammarError("message_start: id, model or stop_reason is wrong")
        _numbers(message.get("usage"), "input_tokens", "output_tokens")
        self.message = message
        self._state = "blocks"

    def _on_content_block_start(self, event: dict[str, Any]) -> None:
        self._need("blocks", event="content_block_start")
        content = self.message["content"]
        if self._open is not None or event["index"] != len(content):
            raise GrammarError(f"block {event['index']} starts after {len(content)} blocks, open: {self._open}")
        block = dict(event["content_block"])
        kind = block["type"]
        empty = {"text": ("text", ""), "tool_use": ("input", {}), "thinking": ("thinking", "")}.get(kind)
        if empty is not None and block.get(empty[0]) != empty[1]:
            raise GrammarError(f"a {kind} block does not start empty")
        if kind == "tool_use" and not (block.get("id") and block.get("name")):
            raise GrammarError("a tool_use block without id or name")
        content.append(block)
        self._open = event["index"]
        self._partial = []

    def _on_content_block_delta(self, event: dict[str, Any]) -> None:
        self._need("blocks", event="content_block_delta")
        if self._open is None or event["index"] != self._open:
            raise GrammarError(f"a delta for block {event['index']}, open: {self._open}")
        block, delta = self.message["content"][self._open], event["delta"]
        kind = delta["type"]
        if kind not in DELTAS.get(block["type"], set()):
            raise GrammarError(f"{kind} in a {block['type']} block")
        if block["type"] == "thinking" and block.get("signature"):
            raise GrammarError("a delta behind the signature")
        if kind == "text_delta":
            block["text"] += delta["text"]
        elif kind == "thinking_delta":
            block["thinking"] += delta["thinking"]
        elif kind == "signature_delta":
            block["signature"] = delta["signature"]
        elif kind == "input_json_delta":
            self._partial.append(delta["partial_json"])
        elif kind == "citations_delta":
            block.setdefault("citations", []).append(delta["citation"])
        else:
            block["content"] = delta["content"]

    def _on_content_block_stop(self, event: dict[str, Any]) -> None:
        self._need("blocks", event="content_block_stop")
        if self._open is None or event["index"] != self._open:
            raise GrammarError(f"block {event['index']} stops, open: {self._open}")
        block = self.message["content"][self._open]
        if block["type"] in ("tool_use", "server_tool_use", "mcp_tool_use"):
            given = _parsed("".join(self._partial) or "{}")
            if isinstance(given, dict):
                block["input"] = given
            else:
                # An answer that reaches max_tokens inside a tool's input ends there (the API's page on fine-grained
                # tool streaming); the block's own events do not tell that, the stop reason does.
                self._cut = f"the input of block {self._open} is no JSON object"
        self._open = None

    def _on_message_delta(self, event: dict[str, Any]) -> None:
        self._need("blocks", "ending", event="message_delta")
        if self._open is not None:
            raise GrammarError("message_delta while a block is open")
        reason = event["delta"].get("stop_reason")
        if reason is not None and reason not in STOP_REASONS:
            raise GrammarError(f"unknown stop_reason {reason!r}")
        _numbers(event.get("usage"), "output_tokens")
        self.message.update({name: value for name, value in event["delta"].items() if name != "type"})
        # Cumulative, and a zero does not overwrite (client facts 4.2).
        self.message["usage"].update({name: value for name, value in event["usage"].items() if value})
        self._state = "ending"

    def _on_message_stop(self, event: dict[str, Any]) -> None:
        self._need("ending", event="message_stop")
        if self.message.get("stop_reason") is None:
            raise GrammarError("message_stop without a stop_reason")
        if self._cut and self.message["stop_reason"] != "max_tokens":
            raise GrammarError(self._cut)
        self._state = "done"


def _parsed(text: str) -> Any:
    """The JSON value of ``text``, None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _numbers(usage: Any, *names: str) -> None:
    if not isinstance(usage, dict) or any(not isinstance(usage.get(name), int) for name in names):
        raise GrammarError(f"usage lacks {' or '.join(names)}")


def check_stream(data: bytes) -> dict[str, Any]:
    """The message of a complete stream. Raises GrammarError, StreamError."""
    reader = Reader()
    reader.feed(data)
    return reader.finish()
