"""The last stage of every translated answer: only a grammatical stream of the Messages API passes.

Owns the grammar (API facts 1.6, client facts 5, seed-001 4.2 and 4.4) and the bytes of the events. Whoever builds an
answer calls the methods in order; one that is out of order raises `Ungrammatical` and writes nothing. Pure.

Invariants: message_start first and once; block indexes from 0 without gaps; one block open at a time, and only deltas
that suit it; a tool's input can become a JSON object at every piece of it, and is one when its block ends, unless the
answer was cut by its token limit; message_delta once, with a stop reason and numbers; message_stop last; at most one
error event, and nothing behind it.
"""

from __future__ import annotations

from typing import Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs.prefix import NoObject, ObjectPrefix

#: Which deltas a block may have, by its type. Blocks that are not named here have none.
DELTAS: Final = {
    "text": frozenset({"text_delta", "citations_delta"}),
    "thinking": frozenset({"thinking_delta", "signature_delta"}),
    "tool_use": frozenset({"input_json_delta"}),
    "server_tool_use": frozenset({"input_json_delta"}),
    "mcp_tool_use": frozenset({"input_json_delta"}),
}
STOP_REASONS: Final = frozenset(
    {"end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded"}
)
PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_CALLS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_KEYS: Final = {
    "text_delta": b"text",
    "thinking_delta": b"thinking",
    "signature_delta": b"signature",
    "input_json_delta": b"partial_json",
}
_EMPTY: Final = {"text": ("text", ""), "thinking": ("thinking", ""), "tool_use": ("input", {})}


class Ungrammatical(Exception):
    """An event out of place. The text names the fault, never contents."""


class Gate:
    """Builds the stream; `take` gives the bytes of what was built since the last time."""

    __slots__ = ("_blocks", "_cut", "_input", "_kind", "_out", "_prefix", "_signed", "ended", "started")

    def __init__(self) -> None:
        self._out: list[bytes] = []
        self._blocks = 0
        self._kind = ""  # of the open block, "" for none
        self._input: list[str] = []
        self._prefix = ObjectPrefix()
        self._signed = False
        self._cut = False  # a tool's input was left incomplete: only a cut answer may say so
        self.started = False
        self.ended = False  # message_stop or an error event is out

    def take(self) -> bytes:
        """The bytes since the last call."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    @property
    def blocks(self) -> int:
        """How many blocks were begun."""
        return self._blocks

    @property
    def open(self) -> str:
        """The type of the open block, "" for none."""
        return self._kind

    def start(self, message: dict[str, Any]) -> None:
        """message_start. ``message`` has no content yet, an id, a model and numbers for its usage."""
        if self.started or self.ended:
            raise Ungrammatical("a second message_start")
        usage = message.get("usage")
        if not isinstance(usage, dict) or not _number(usage.get("input_tokens")):
            raise Ungrammatical("message_start without usage")
        if not (message.get("id") and message.get("model")) or message.get("content") != []:
            raise Ungrammatical("message_start without id or model, or with content")
        self.started = True
        self._event("message_start", {"type": "message_start", "message": message})

    def block(self, block: dict[str, Any]) -> None:
        """content_block_start, with the next index."""
        self._within()
        if self._kind:
            raise Ungrammatical(f"a block begins inside a {self._kind} block")
        kind = block.get("type")
        if not isinstance(kind, str) or not kind:
            raise Ungrammatical("a block without a type")
        empty = _EMPTY.get(kind)
        if empty is not None and block.get(empty[0]) != empty[1]:
            raise Ungrammatical(f"a {kind} block does not begin empty")
        if kind in _CALLS and not (block.get("id") and block.get("name")):
            raise Ungrammatical("a call without id or name")
        self._event(
            "content_block_start", {"type": "content_block_start", "index": self._blocks, "content_block": block}
        )
        self._kind = kind
        self._blocks += 1
        self._signed = False
        if kind in _CALLS:
            self._input.clear()
            self._prefix = ObjectPrefix()

    def delta(self, kind: str, value: str) -> None:
        """content_block_delta of the open block, with a text: ``kind`` is the delta's type."""
        if self.ended or kind not in DELTAS.get(self._kind, ()):
            raise Ungrammatical(f"a {kind} in a {self._kind or 'closed'} block")
        if self._signed:
            raise Ungrammatical("a delta behind the signature")
        if kind == "signature_delta":
            self._signed = True
        elif kind == "input_json_delta":
            try:
                value = self._prefix.feed(value)
            except NoObject:
                raise Ungrammatical("a tool's input is no JSON object") from None
            if not value:
                return
            self._input.append(value)
        self._out.append(
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}'
            b"\n\n" % (self._blocks - 1, kind.encode(), _KEYS[kind], _text(value))
        )

    def citation(self, citation: dict[str, Any]) -> None:
        """A citation for the open text block."""
        if self.ended or self._kind != "text":
            raise Ungrammatical(f"a citation in a {self._kind or 'closed'} block")
        delta = {"type": "citations_delta", "citation": citation}
        self._event("content_block_delta", {"type": "content_block_delta", "index": self._blocks - 1, "delta": delta})

    def stop_block(self, *, cut: bool = False) -> None:
        """content_block_stop. ``cut`` allows a tool's input to be incomplete; the answer must say that it was cut."""
        self._within()
        if not self._kind:
            raise Ungrammatical("a block ends that did not begin")
        if self._kind in _CALLS and self._input and not is_object("".join(self._input)):
            if not cut:
                raise Ungrammatical("a tool's input is no JSON object")
            self._cut = True
        self._kind = ""
        self._out.append(
            b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % (self._blocks - 1)
        )

    def finish(
        self, reason: str, usage: dict[str, Any], *, sequence: str | None = None, details: dict[str, Any] | None = None
    ) -> None:
        """message_delta and message_stop."""
        self._within()
        if self._kind:
            raise Ungrammatical("the message ends inside a block")
        if reason not in STOP_REASONS:
            raise Ungrammatical("an unknown stop reason")
        if self._cut and reason != "max_tokens":
            raise Ungrammatical("an incomplete tool input in an answer that was not cut")
        if not _number(usage.get("output_tokens")):
            raise Ungrammatical("message_delta without usage")
        delta: dict[str, Any] = {"stop_reason": reason, "stop_sequence": sequence}
        if details is not None:
            delta["stop_details"] = details
        self._event("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
        self._event("message_stop", {"type": "message_stop"})
        self.ended = True

    def error(self, kind: str, message: str) -> None:
        """The error event; nothing follows it. Allowed at any time before the end."""
        if self.ended:
            raise Ungrammatical("an error behind the end")
        self._event("error", {"type": "error", "error": {"type": kind or "api_error", "message": message}})
        self.ended = True

    def _within(self) -> None:
        if not self.started or self.ended:
            raise Ungrammatical("an event before message_start" if not self.ended else "an event behind the end")

    def _event(self, name: str, value: dict[str, Any]) -> None:
        data = shapes.written(value)
        if not data:
            raise Ungrammatical(f"a {name} that is no JSON, or nests too deeply")
        self._out.append(b"event: %b\ndata: %b\n\n" % (name.encode(), data))


def is_object(text: str) -> bool:
    """Does ``text`` hold a JSON object?"""
    return isinstance(shapes.parse(text.encode("utf-8", "surrogatepass")), dict)


def _text(value: str) -> bytes:
    return shapes.written(value)


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
