"""From the events of a Messages stream to the message that they spell.

Owns the meaning of event and delta types (API facts 1.6). Knows nothing of SSE: it takes names and data. Never does
I/O, never raises on content: what it does not understand is counted in ``unknown`` and passed over, because the client
at the other end may be newer than this program.

Invariants: a message is ``complete`` only after its message_stop, never because the bytes ended; a later report of
usage never erases an earlier one with zeros.
"""

from __future__ import annotations

from io import StringIO
from typing import Any, Final

import msgspec

from dbproxy.model import shapes
from dbproxy.model.usage import Usage, merge


class _Text(msgspec.Struct, tag="text_delta", gc=False):
    text: str


class _Json(msgspec.Struct, tag="input_json_delta", gc=False):
    partial_json: str


class _Thinking(msgspec.Struct, tag="thinking_delta", gc=False):
    thinking: str


class _Delta(msgspec.Struct, tag="content_block_delta", gc=False):
    index: int
    delta: _Text | _Json | _Thinking


# The three deltas that come by the thousand, decoded without building dictionaries; anything else goes the long way.
_FREQUENT: Final = msgspec.json.Decoder(_Delta).decode
# Which key of the block each piece of text extends.
_KEYS: Final = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class _Block:
    """One content block on its way: the start object and what the deltas added to it."""

    __slots__ = ("citations", "final", "input", "start", "text", "thinking")

    def __init__(self, start: dict[str, Any]) -> None:
        self.start = start
        self.text = StringIO()
        self.thinking = StringIO()
        self.input = StringIO()
        self.citations: list[Any] = []
        self.final: dict[str, Any] = {}  # keys that arrive once and whole, such as the signature

    def finished(self) -> tuple[dict[str, Any], str]:
        """The block as a non-streamed answer would have it, and its tool input where that is no JSON."""
        block = {**self.start, **self.final}
        for key, buffer in (("text", self.text), ("thinking", self.thinking)):
            if added := buffer.getvalue():
                block[key] = shapes.mend(shapes.text(block.get(key)) + added)
        if self.citations:
            block["citations"] = [*shapes.sequence(block.get("citations")), *self.citations]
        spelled = shapes.mend(self.input.getvalue())
        if not spelled.strip():
            return block, ""
        value = shapes.parse(spelled.encode())
        if not isinstance(value, dict):
            return block, spelled
        block["input"] = value
        return block, ""


class Accumulator:
    """Builds one message out of its events. Feed it each event once, in order."""

    __slots__ = ("_blocks", "_message", "_usage", "complete", "error", "unknown")

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._blocks: dict[int, _Block] = {}
        self.complete = False  # message_stop was seen
        self.error: dict[str, Any] | None = None  # the ``error`` object of an error event: ``type``, ``message``, ...
        self.unknown = 0  # events, deltas and shapes that were passed over

    @classmethod
    def from_message(cls, message: object) -> Accumulator:
        """The same view of an answer that came as one JSON object, be it a message or an error."""
        self = cls()
        value = shapes.mapping(message)
        if value.get("type") == "error":
            self._on_error(value)
        elif value:
            self._message = dict(value)
            self._usage = shapes.mapping(value.get("usage"))
            self.complete = value.get("type") == "message"
        else:
            self.unknown = 1
        return self

    @classmethod
    def from_body(cls, body: bytes) -> Accumulator:
        """``from_message`` for the bytes of a JSON answer (content codings undone)."""
        return cls.from_message(shapes.parse(body))

    def feed(self, event_name: bytes, data: bytes) -> None:
        """Take one event. The type inside the data decides; the event's name stands in where there is none."""
        if event_name == b"content_block_delta":
            try:
                event = _FREQUENT(data)
                block = self._blocks[event.index]
            except (*shapes.UNREADABLE, KeyError):
                self._feed_any(event_name, data)
                return
            delta = event.delta
            if type(delta) is _Text:
                block.text.write(delta.text)
            elif type(delta) is _Json:
                block.input.write(delta.partial_json)
            elif type(delta) is _Thinking:
                block.thinking.write(delta.thinking)
        elif event_name or data:
            self._feed_any(event_name, data)

    def _feed_any(self, event_name: bytes, data: bytes) -> None:
        value, halves = shapes.parse_halves(data)
        if halves and shapes.text(shapes.mapping(shapes.mapping(value).get("delta")).get("type")) not in _KEYS:
            value = shapes.mend_all(value)
        if not isinstance(value, dict):
            self.unknown += 1
            return
        kind = value.get("type")
        handler = _HANDLERS.get(kind if isinstance(kind, str) else event_name.decode("latin-1"))
        if handler is None:
            self.unknown += 1
        else:
            handler(self, value)

    def _on_message_start(self, event: dict[str, Any]) -> None:
        if self._message:
            self.unknown += 1
            return
        self._message = dict(shapes.mapping(event.get("message")))
        self._usage = shapes.mapping(self._message.get("usage"))

    def _on_block_start(self, event: dict[str, Any]) -> None:
        index, start = event.get("index"), event.get("content_block")
        if not isinstance(index, int) or not isinstance(start, dict):
            self.unknown += 1
            return
        self._blocks[index] = _Block(start)
        if start.get("type") == "fallback":
            # Another model took over: the message is its, as in the official SDK.
            model = shapes.mapping(start.get("to")).get("model")
            if isinstance(model, str):
                self._message["model"] = model

    def _on_block_delta(self, event: dict[str, Any]) -> None:
        index, delta = event.get("index"), shapes.mapping(event.get("delta"))
        block = self._blocks.get(index) if isinstance(index, int) else None
        kind = delta.get("type")
        if block is None or not isinstance(kind, str):
            self.unknown += 1
        elif kind in _KEYS:
            piece = delta.get(_KEYS[kind])
            if not isinstance(piece, str):
                self.unknown += 1
                return
            buffer = {"text_delta": block.text, "thinking_delta": block.thinking}.get(kind, block.input)
            buffer.write(piece)
        elif kind == "signature_delta":
            block.final["signature"] = delta.get("signature")
        elif kind == "citations_delta":
            block.citations.append(delta.get("citation"))
        elif kind == "compaction_delta":
            block.final.update({key: value for key, value in delta.items() if key != "type"})
        else:
            self.unknown += 1

    def _on_message_delta(self, event: dict[str, Any]) -> None:
        self._usage = merge(self._usage, shapes.mapping(event.get("usage")))
        # Besides ``delta`` the event carries top-level keys of the message, such as context_management.
        beside = {key: value for key, value in event.items() if key not in ("type", "delta", "usage")}
        for key, value in (*shapes.mapping(event.get("delta")).items(), *beside.items()):
            if value is not None or key not in self._message:
                self._message[key] = value

    def _on_message_stop(self, event: dict[str, Any]) -> None:
        self.complete = bool(self._message)

    def _on_error(self, event: dict[str, Any]) -> None:
        error = event.get("error")
        self.error = error if isinstance(error, dict) else {"type": "error", "message": shapes.text(error)}

    def _on_nothing(self, event: dict[str, Any]) -> None:
        """Pings and ends of blocks: known, and without anything to keep."""

    @property
    def message(self) -> dict[str, Any]:
        """The message as it stands, shaped like a non-streamed answer; a new dictionary each time. Empty before
        message_start."""
        if not self._message:
            return {}
        message = dict(self._message)
        if self._blocks:
            streamed = [self._blocks[index].finished()[0] for index in sorted(self._blocks)]
            message["content"] = [*shapes.sequence(message.get("content")), *streamed]
        if self._usage:
            message["usage"] = self._usage
        return message

    @property
    def unparsed_inputs(self) -> dict[int, str]:
        """Tool inputs, by block index, whose text is no JSON object: cut short, or streamed without validation."""
        found = {index: block.finished()[1] for index, block in self._blocks.items()}
        return {index: spelled for index, spelled in found.items() if spelled}

    @property
    def usage(self) -> Usage:
        """The usage reported so far."""
        return Usage.of(self._usage)

    @property
    def stop_reason(self) -> str | None:
        """Why the model stopped, None while it has not said so (data/stop_reasons in the API facts)."""
        reason = self._message.get("stop_reason")
        return reason if isinstance(reason, str) else None

    @property
    def model(self) -> str | None:
        """The model that answered; it may differ from the one asked for."""
        model = self._message.get("model")
        return model if isinstance(model, str) else None


_HANDLERS: Final = {
    "message_start": Accumulator._on_message_start,
    "content_block_start": Accumulator._on_block_start,
    "content_block_delta": Accumulator._on_block_delta,
    "content_block_stop": Accumulator._on_nothing,
    "message_delta": Accumulator._on_message_delta,
    "message_stop": Accumulator._on_message_stop,
    "ping": Accumulator._on_nothing,
    "error": Accumulator._on_error,
}
