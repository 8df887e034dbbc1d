"""Answers in Messages from any server, told to a `MessageWriter`: a sloppy stream becomes a grammatical one.

Owns what events, blocks and stop reasons of such servers mean. Pure. Sources: API facts 1.4 to 1.6, seed-001 4.2 and
4.4 (what servers get wrong), client facts 4.2 (a zero overwrites no count).

Invariants: never raises; the model's name and the message's id are ours; a thought of another family than Claude's
carries that family's name in its signature, even if it has none; an answer without a reason to stop has not ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs import repair
from dbproxy.model.codecs.gate import STOP_REASONS
from dbproxy.model.codecs.thinking import CLAUDE
from dbproxy.model.codecs.vault import join_signature

if TYPE_CHECKING:
    from dbproxy.model.codecs.translation import Translation
    from dbproxy.model.codecs.writer import MessageWriter

#: What servers with another dialect inside say.
_STOPS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_STATUS: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
#: Blocks that a client of the Messages API knows beside text, thinking and calls (API facts 1.3).
_KNOWN: Final = frozenset(
    {
        "server_tool_use",
        "mcp_tool_use",
        "mcp_tool_result",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
    }
)


@dataclass(slots=True, eq=False)
class _Open:
    """A block that has begun. ``serial`` is its number in the answer, whatever index its server gives it."""

    kind: str
    serial: int
    block: dict[str, Any]
    pieces: list[str] = field(default_factory=list)  # of its input
    signature: str = ""
    said: bool = False  # something of it has come
    citations: list[dict[str, Any]] = field(default_factory=list)  # that came before the text


class NativeReader:
    """Reads one answer."""

    def __init__(self, translation: Translation, writer: MessageWriter) -> None:
        self._translation = translation
        self._writer = writer
        self._claude = translation.family == CLAUDE
        self._blocks: dict[object, _Open] = {}  # by index
        self._serial = 0
        self._events = {
            "message_start": self._message_start,
            "content_block_start": self._block_start,
            "content_block_delta": self._block_delta,
            "content_block_stop": self._block_stop,
            "message_delta": self._message_delta,
            "message_stop": self._message_stop,
        }

    def feed(self, name: bytes, data: bytes, /) -> None:
        """One event."""
        if not data or self._writer.done:
            return
        event = shapes.parse(data)
        if not isinstance(event, dict):
            if not self._writer.stopped and data != b"[DONE]":
                self._writer.broken("sent an event that is no JSON object")
            return
        if event.get("error") or event.get("type") == "error":
            self._failed(event, data)
            return
        handle = self._events.get(shapes.text(event.get("type")) or name.decode("latin-1"))
        if handle is not None:
            handle(event)

    def end(self) -> None:
        """The stream has ended."""
        if self._writer.done:
            return
        if self._writer.stopped:
            self._close_all()
        self._writer.finish()

    def document(self, body: bytes) -> None:
        """The whole answer."""
        message = shapes.parse(body)
        if not isinstance(message, dict):
            self._writer.broken("sent an answer that is no JSON object")
            return
        if message.get("error") or message.get("type") == "error":
            self._failed(message, body)
            return
        content = message.get("content")
        if not isinstance(content, str | list):
            self._writer.broken("sent an answer without content")
            return
        self._message_start({"message": message})
        self._usage(message.get("usage"))
        self._message_stop({"delta": message})

    # ---- events

    def _message_start(self, event: dict[str, Any]) -> None:
        message = shapes.mapping(event.get("message"))
        self._writer.begin(shapes.text(message.get("id")))
        # The count of the answer is a mere beginning here.
        self._usage({**shapes.mapping(message.get("usage")), "output_tokens": None})
        content = message.get("content")
        if isinstance(content, str):
            self._writer.text(content)
        for at, block in enumerate(shapes.sequence(content)):
            self._block_start({"index": ("whole", at), "content_block": block})
            self._block_stop({"index": ("whole", at)})

    def _block_start(self, event: dict[str, Any]) -> None:
        block = shapes.mapping(event.get("content_block"))
        self._begin(event.get("index"), shapes.text(block.get("type")), block)

    def _begin(self, index: object, kind: str, block: dict[str, Any]) -> _Open | None:
        writer = self._writer
        index = _key(index)
        for at in [at for at, other in self._blocks.items() if at == index or other.kind in ("text", "thinking")]:
            self._close(self._blocks.pop(at))
        if not kind:
            return None
        found = self._blocks[index] = _Open(kind, self._serial, block)
        self._serial += 1
        if kind == "text":
            for citation in shapes.sequence(block.get("citations")):
                self._cite(found, citation)
            self._text(found, shapes.text(block.get("text")))
        elif kind == "thinking":
            writer.thinking(shapes.text(block.get("thinking")))
            found.said = bool(shapes.text(block.get("thinking")))
            found.signature = shapes.text(block.get("signature"))
        elif kind == "tool_use":
            writer.call(found.serial, id=shapes.text(block.get("id")), name=shapes.text(block.get("name")))
        return found

    def _block_delta(self, event: dict[str, Any]) -> None:
        delta = shapes.mapping(event.get("delta"))
        kind = shapes.text(delta.get("type"))
        block = self._blocks.get(_key(event.get("index")))
        if kind == "text_delta":
            self._text(self._of("text", block, event), shapes.text(delta.get("text")))
        elif kind == "thinking_delta":
            block, text = self._of("thinking", block, event), shapes.text(delta.get("thinking"))
            if text and block is not None:
                block.said = True
                self._writer.thinking(text)
        elif kind == "signature_delta":
            block = self._of("thinking", block, event)
            if block is not None:
                block.signature = shapes.text(delta.get("signature"))
        elif kind == "input_json_delta":
            self._input(block, shapes.text(delta.get("partial_json")))
        elif kind == "citations_delta":
            block = self._of("text", block, event)
            if block is not None:
                self._cite(block, delta.get("citation"))
        elif block is not None and block.kind not in ("text", "thinking", "tool_use"):
            block.block = {**block.block, **{name: value for name, value in delta.items() if name != "type"}}

    def _of(self, kind: str, block: _Open | None, event: dict[str, Any]) -> _Open | None:
        """The block of a delta of this kind: the one of its index, else one that nobody has begun."""
        if block is not None and block.kind == kind:
            return block
        for other in self._blocks.values():
            if other.kind == kind:
                return other
        # Not in the place of the block that has this index, which may go on.
        index = event.get("index") if block is None else ("instead of", self._serial)
        return self._begin(index, kind, {})

    def _text(self, block: _Open | None, text: str) -> None:
        if not text or block is None:
            return
        self._writer.text(text)
        block.said = True
        for citation in block.citations:
            self._writer.cite(citation)
        block.citations.clear()

    def _cite(self, block: _Open, citation: Any) -> None:
        if not isinstance(citation, dict):
            return
        if block.said:
            self._writer.cite(citation)
        else:
            block.citations.append(citation)

    def _input(self, block: _Open | None, piece: str) -> None:
        if block is None or block.kind in ("text", "thinking"):
            calls = [other for other in self._blocks.values() if other.kind == "tool_use"]
            if not calls:
                self._translation.note("a piece of a call that never began was left out")
                return
            block = calls[-1]
        if not piece:
            return
        block.pieces.append(piece)
        if block.kind == "tool_use":
            self._writer.call(block.serial, arguments=piece)

    def _block_stop(self, event: dict[str, Any]) -> None:
        block = self._blocks.pop(_key(event.get("index")), None)
        if block is not None:
            self._close(block)

    def _close(self, block: _Open) -> None:
        writer = self._writer
        if block.kind == "text":
            writer.close()
        elif block.kind == "thinking":
            self._seal(block)
        elif block.kind == "tool_use":
            self._complete(block)
        else:
            self._whole(block)

    def _complete(self, block: _Open) -> None:
        if not block.pieces:
            # Some servers give the input with the block's beginning, and nothing later.
            given = shapes.mapping(block.block.get("input"))
            whole = shapes.written(given).decode("utf-8", "replace") if given else None
            self._writer.complete(block.serial, whole)
        elif repair.arguments("".join(block.pieces)) is not None:
            self._writer.complete(block.serial)
        # Else the limit has cut it, which the answer's end has yet to say.

    def _seal(self, block: _Open) -> None:
        if self._claude:
            self._writer.sign(block.signature)
        elif block.said or block.signature:
            self._writer.sign(join_signature(self._translation.family, block.signature))
        self._writer.close()

    def _whole(self, block: _Open) -> None:
        found = block.block
        if block.kind not in _KNOWN and not self._claude:
            self._translation.note(f"a block of the type {block.kind[:40]} was left out")
            return
        if block.kind in ("server_tool_use", "mcp_tool_use"):
            if not (shapes.text(found.get("id")) and shapes.text(found.get("name"))):
                self._translation.note("a call of the server's without id or name was left out")
                return
            if block.pieces:
                found = {**found, "input": shapes.mapping(shapes.parse("".join(block.pieces).encode()))}
        self._writer.whole(found)

    def _close_all(self) -> None:
        while self._blocks:
            self._close(self._blocks.pop(next(iter(self._blocks))))

    # ---- the end

    def _message_delta(self, event: dict[str, Any]) -> None:
        self._usage(event.get("usage"))
        delta = shapes.mapping(event.get("delta"))
        reason = shapes.text(delta.get("stop_reason"))
        if reason:
            self._stop(reason, delta)

    def _stop(self, reason: str, delta: dict[str, Any]) -> None:
        known = _STOPS.get(reason, reason)
        if known not in STOP_REASONS:
            self._translation.note(f"the unknown stop reason {reason[:40]} was taken for end_turn")
            known = "end_turn"
        details = delta.get("stop_details")
        self._writer.stop(
            known,
            sequence=shapes.text(delta.get("stop_sequence")) or None,
            details=details if isinstance(details, dict) else None,
        )

    def _message_stop(self, event: dict[str, Any]) -> None:
        delta = shapes.mapping(event.get("delta"))
        if not self._writer.stopped:
            self._stop(shapes.text(delta.get("stop_reason")) or "end_turn", delta)
        self._close_all()
        self._writer.finish()

    def _usage(self, value: Any) -> None:
        usage = shapes.mapping(value)
        if not usage:
            return
        thinking = shapes.mapping(usage.get("output_tokens_details")).get("thinking_tokens")
        self._writer.usage(
            input=shapes.count(usage.get("input_tokens")) or None,
            output=shapes.count(usage.get("output_tokens")) or None,
            cache_read=shapes.count(usage.get("cache_read_input_tokens")) or None,
            cache_write=shapes.count(usage.get("cache_creation_input_tokens")) or None,
            thinking=shapes.count(thinking) or None,
        )

    def _failed(self, event: dict[str, Any], data: bytes) -> None:
        self._writer.error(data, _STATUS.get(shapes.text(shapes.mapping(event.get("error")).get("type")), 200))


def _key(index: object) -> object:
    """An index as a key: whatever else came in its place is all the same."""
    return index if isinstance(index, int | tuple) else None
