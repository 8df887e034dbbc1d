"""The Messages API as other servers speak it (Ollama, vLLM, OpenRouter, ...): events out, requests in.

Owns the spelling for the conformance kit; for a server of its own there is ``dbproxy.testing.origin``. Must never
import the codec. Unlike the API itself these servers may leave blocks open side by side, and may tell no usage
(seed-001 4.4).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from dbproxy.model.codecs.capabilities import Capabilities
from dbproxy.model.codecs.request import Call, Choice, Document, Image, Part, Result, Text, Thinking, Tool, Turn
from dbproxy.testing.codecs.dialect import WORDS, Dialect, Seen, Speech
from dbproxy.testing.providers.spelling import dumped, event, texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.testing.codecs.dialect import Counts, Said


def usage(counts: Counts) -> dict[str, int]:
    """Counts as this API tells them: the input leaves out what the cache read (API facts 1.5)."""
    told = {"input_tokens": counts.input, "output_tokens": counts.output}
    return {**told, "cache_read_input_tokens": counts.cache_read, "cache_creation_input_tokens": 0}


class MessagesSpeech(Speech):
    """One answer as events."""

    def __init__(self, *, model: str, id: str) -> None:
        self._message = {"id": id, "type": "message", "role": "assistant", "model": model, "content": []}
        self._blocks = 0
        self._open = ""  # the kind of the text or thinking that is open
        self._calls: dict[int, int] = {}

    def begin(self) -> bytes:
        start = {**self._message, "stop_reason": None, "stop_sequence": None}
        return self._event("message_start", message={**start, "usage": {"input_tokens": 10, "output_tokens": 1}})

    def text(self, piece: str) -> bytes:
        out = self._switch("text", {"type": "text", "text": ""})
        return out + self._delta(self._blocks - 1, "text_delta", text=piece)

    def thinking(self, piece: str) -> bytes:
        out = self._switch("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        return out + self._delta(self._blocks - 1, "thinking_delta", thinking=piece)

    def call(self, key: int, *, id: str = "", name: str = "", arguments: str = "") -> bytes:
        out = b""
        if key not in self._calls:
            out = self._close()
            self._calls[key] = self._blocks
            out += self._start({"type": "tool_use", "id": id, "name": name, "input": {}})
        if arguments:
            out += self._delta(self._calls[key], "input_json_delta", partial_json=arguments)
        return out

    def done(self, key: int) -> bytes:
        return self._event("content_block_stop", index=self._calls[key])

    def end(self, stop: str, tokens: Counts | None) -> bytes:
        told: dict[str, Any] = {"delta": {"stop_reason": stop, "stop_sequence": None}}
        if tokens is not None:
            told["usage"] = usage(tokens)
        return self._close() + self._event("message_delta", **told) + self._event("message_stop")

    def error(self, kind: str, message: str) -> bytes:
        return self._event("error", error={"type": kind, "message": message})

    def _switch(self, kind: str, block: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        out = self._close() + self._start(block)
        self._open = kind
        return out

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return self._event("content_block_stop", index=self._blocks - 1)

    def _start(self, block: dict[str, Any]) -> bytes:
        self._blocks += 1
        return self._event("content_block_start", index=self._blocks - 1, content_block=block)

    def _delta(self, index: int, kind: str, **told: str) -> bytes:
        return self._event("content_block_delta", index=index, delta={"type": kind, **told})

    def _event(self, kind: str, **keys: Any) -> bytes:
        return event({"type": kind, **keys}, kind)


class MessagesDialect(Dialect):
    """The Messages API of another server."""

    name = "messages"
    model = "qwen3-coder"
    family = "compatible"
    capabilities = Capabilities(api="messages", documents=True, family="compatible")
    # A block has its name and its id from its first event on.
    can = WORDS - {"late names", "no ids"}
    exempt: ClassVar = {"case_03_no_cache_control": "servers of the Messages API know the marks (API facts 5.5)"}

    def speak(self) -> Speech:
        return MessagesSpeech(model=self.model, id="msg_kit")

    def document(self, parts: Sequence[Said], stop: str, tokens: Counts | None) -> bytes:
        whole = {"id": "msg_kit", "type": "message", "role": "assistant", "model": self.model}
        told = {**whole, "content": [_block(part) for part in parts], "stop_reason": stop, "stop_sequence": None}
        return dumped({**told, "usage": usage(tokens)} if tokens is not None else told).encode()

    def read(self, body: bytes) -> Seen:
        given = json.loads(body)
        chosen = given.get("tool_choice")
        choice = None
        if chosen is not None:
            choice = Choice(chosen["type"], chosen.get("name", ""), chosen.get("disable_parallel_tool_use", False))
        return Seen(
            turns=tuple(_turn(message) for message in given["messages"]),
            system=tuple(texts(given.get("system"))),
            tools=tuple(_tool(tool) for tool in given.get("tools", []) if "input_schema" in tool),
            choice=choice,
            model=given["model"],
            stream=given.get("stream", False),
            max_tokens=given["max_tokens"],
        )


def _block(part: Said) -> dict[str, Any]:
    if isinstance(part, Call):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": part.arguments}
    if isinstance(part, Thinking):
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    return {"type": "text", "text": part.text}


def _tool(tool: dict[str, Any]) -> Tool:
    return Tool(tool["name"], tool.get("description", ""), tool["input_schema"], tool.get("strict"))


def _turn(message: dict[str, Any]) -> Turn:
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return Turn(message["role"], tuple(_part(block) for block in blocks))


def _part(block: dict[str, Any]) -> Part:
    kind = block["type"]
    if kind == "text":
        if not block["text"]:
            raise ValueError("text content blocks must be non-empty")
        return Text(block["text"])
    if kind == "thinking":
        return Thinking(block["thinking"], block["signature"])
    if kind == "tool_use":
        return Call(block["id"], block["name"], block["input"])
    if kind == "tool_result":
        content = block.get("content", [])
        inner = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = tuple(_part(one) for one in inner)
        return Result(block["tool_use_id"], "", parts, block.get("is_error", False))  # type: ignore[arg-type]
    source = block["source"]
    if kind == "image":
        return Image(url=source["url"]) if source["type"] == "url" else Image(source["media_type"], source["data"])
    if kind == "document":
        return Document(source["media_type"], source["data"], title=block.get("title", ""))
    raise ValueError(f"a {kind} block")
