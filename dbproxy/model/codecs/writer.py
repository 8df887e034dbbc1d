"""From what any model says to a Messages answer: pieces in whatever order they come, a grammatical stream out.

A codec tells the writer what it read (a text, a thought, a piece of a call, the usage, why the model stopped); the
writer decides about blocks, their order and their ends, emulates what the upstream lacks (stop sequences, one call at a
time), and passes everything through `Gate`. Pure. Sources: seed-001 section 4.2, client facts 3.4 and 4.2.

Invariants: blocks stand in the order in which they began, one open at a time; what comes for a later one waits; no
block begins before there is something in it, a call not before its name is known; the answer ends with a stop reason
and usage, or with one error; nothing is written behind either.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs import repair
from dbproxy.model.codecs.estimate import text_tokens
from dbproxy.model.codecs.failure import Failure, failure_of, overflow
from dbproxy.model.codecs.gate import Gate, Ungrammatical, is_object
from dbproxy.model.codecs.naming import client_id
from dbproxy.model.codecs.stops import StopScanner

if TYPE_CHECKING:
    from collections.abc import Hashable

    from dbproxy.model.codecs.translation import Translation

#: What is kept for blocks that have to wait (characters): an upstream that sends more is broken.
_MOST_WAITING: Final = 64 * 1024 * 1024
#: No count is larger: one that an upstream gives all the same is a mistake of its own.
_MOST_TOKENS: Final = 1 << 40


@dataclass(slots=True)
class Tokens:
    """Usage in the upstream's tokens. ``input`` leaves out what its cache read and wrote; None where not told."""

    input: int | None = None
    output: int | None = None
    cache_read: int = 0
    cache_write: int = 0
    thinking: int = 0


@dataclass(slots=True, eq=False)
class _Block:
    kind: str  # text, thinking, call or whole
    key: Hashable = None
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)  # not written yet
    written: list[str] = field(default_factory=list)  # of a call: its arguments so far
    signature: str = ""
    whole: dict[str, Any] | None = None
    citations: list[dict[str, Any]] = field(default_factory=list)
    begun: bool = False
    over: bool = False  # nothing more comes for it
    checked: bool = False  # looked at, and not complete then


class MessageWriter:
    """Builds one answer. ``failure`` says how it failed, None while it has not; ``done`` that nothing more comes.

    ``substance`` is True once there is something that a client would see: until then the caller may still throw the
    answer away and try elsewhere.
    """

    def __init__(self, translation: Translation) -> None:
        self.translation = translation
        self.tokens = Tokens()
        self.failure: Failure | None = None
        self.done = False
        self.substance = False
        self.stop_reason = ""
        self.message_id = ""
        self.calls: list[str] = []  # the client's ids of the calls so far
        self._gate = Gate()
        self._blocks: deque[_Block] = deque()  # the open one and those that wait
        self._keys: dict[Hashable, _Block] = {}
        self._stop = ""
        self._sequence: str | None = None
        self._details: dict[str, Any] | None = None
        self._said = 0  # bytes of all that was said
        self._waiting = 0
        self._minted = 0
        self._scanner = StopScanner(translation.stops) if translation.stops else None

    # ---- what a codec tells

    def begin(self, id: str = "") -> None:
        """The answer has begun; ``id`` is the upstream's name for it. Further calls do nothing."""
        if self._gate.started or self.done:
            return
        translation = self.translation
        # Not ``msg_...``: on such an id the client would anchor a message thread (API facts 2.6).
        self.message_id = f"routed_{client_id(id)}" if id else translation.message_id
        usage = {
            "input_tokens": self._scaled(translation.estimate, least=1),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1,
        }
        message: dict[str, Any] = {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "model": translation.asked,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        self._gate.start(message)

    def text(self, text: str) -> None:
        """A piece of the answer's text."""
        if not text or self.done or self._stop == "stop_sequence":
            return
        if self._scanner is not None:
            text, found = self._scanner.feed(text)
            if found:
                self._stop, self._sequence = "stop_sequence", found
        if text:
            self._said += len(text)
            self._add("text", text)
        if self._stop == "stop_sequence":
            self.finish()

    def thinking(self, text: str) -> None:
        """A piece of what the model thought."""
        if text and not self.done:
            self._said += len(text)
            self._add("thinking", text)

    def sign(self, signature: str) -> None:
        """The signature of the thought at hand (`join_signature`); without one, of an empty thought."""
        if not signature or self.done:
            return
        last = self._blocks[-1] if self._blocks else None
        if last is None or last.kind != "thinking" or last.signature:
            last = self._append(_Block("thinking"))
        last.signature = signature
        last.over = True
        self._advance()

    def close(self) -> None:
        """The text or the thought at hand is over: what follows is another block, even of the same kind."""
        if self.done:
            return
        self._release()
        last = self._blocks[-1] if self._blocks else None
        if last is not None and last.kind in ("text", "thinking"):
            last.over = True
            self._advance()

    def call(self, key: Hashable, *, id: str = "", name: str = "", arguments: str = "") -> None:
        """A piece of a call. ``key`` tells calls apart (an index, an item's id); ``id`` and ``name`` may come late, be
        repeated or be empty; a name may come in pieces, or longer each time, until the first of its arguments."""
        if self.done:
            return
        block = self._keys.get(key)
        if block is None:
            if self.translation.single and self._keys:
                self.translation.note("a parallel call was left out, since the client wants one at a time")
                self._keys[key] = _Block("dropped", over=True)
                return
            block = self._keys[key] = self._append(_Block("call", key))
        if block.kind == "dropped":
            return
        if id and not block.id:
            told = client_id(id)
            # Some servers give parallel calls one id; the results could not be told apart.
            if all(other.id != told for other in self._keys.values()):
                block.id = told
        if name and not block.begun and name != block.name:
            block.name = name if name.startswith(block.name) else block.name + name
        if arguments:
            if block.over:
                if arguments.strip():
                    self._senseless("a call went on after its end")
                return
            self._said += len(arguments)
            block.checked = False
            self._piece(block, arguments)
        self._advance()

    def complete(self, key: Hashable, arguments: str | None = None) -> None:
        """A call is complete; ``arguments``, if given, is all of its input: what did not come in pieces is added."""
        block = self._keys.get(key)
        if block is None or block.over or self.done:
            return
        if arguments is not None:
            so_far = "".join(block.written) + "".join(block.pieces)
            if not so_far:
                self._piece(block, arguments)
            elif arguments != so_far and arguments.startswith(so_far):
                self._piece(block, arguments[len(so_far) :])
        block.over = True
        self._advance()

    def client_id_of(self, key: Hashable) -> str:
        """The id under which the client knows a call; minted if the upstream gave none. "" for an unknown key."""
        block = self._keys.get(key)
        if block is None or block.kind != "call":
            return ""
        if not block.id:
            self._minted += 1
            block.id = f"toolu_{self.translation.message_id}_{self._minted}"
        return block.id

    def whole(self, block: dict[str, Any]) -> None:
        """A block that comes at once (``server_tool_use``, ``web_search_tool_result``, ``redacted_thinking``, ...)."""
        if not self.done:
            self._append(_Block("whole", whole=block, over=True))
            self._advance()

    def cite(self, citation: dict[str, Any]) -> None:
        """A citation for the text at hand."""
        last = self._blocks[-1] if self._blocks else None
        if last is not None and last.kind == "text" and not self.done:
            last.citations.append(citation)
            self._advance()

    def usage(
        self,
        *,
        input: int | None = None,
        output: int | None = None,
        cache_read: int | None = None,
        cache_write: int | None = None,
        thinking: int | None = None,
    ) -> None:
        """What the upstream counted, so far; the last word of each counts (cumulative reports are not summed)."""
        tokens = self.tokens
        tokens.input = tokens.input if input is None else max(0, input)
        tokens.output = tokens.output if output is None else max(0, output)
        tokens.cache_read = tokens.cache_read if cache_read is None else max(0, cache_read)
        tokens.cache_write = tokens.cache_write if cache_write is None else max(0, cache_write)
        tokens.thinking = tokens.thinking if thinking is None else max(0, thinking)

    def stop(self, reason: str, *, sequence: str | None = None, details: dict[str, Any] | None = None) -> None:
        """Why the model stopped, in the Messages API's words. The answer ends with `finish`, since usage may follow."""
        if not self.done and self._stop != "stop_sequence":
            self._stop, self._sequence, self._details = reason, sequence, details

    @property
    def stopped(self) -> bool:
        """Did the upstream say why the model stopped?"""
        return bool(self._stop)

    def finish(self) -> None:
        """The upstream's answer has ended in order. Without a reason for it, it has not."""
        if self.done:
            return
        if not self._stop:
            self.fail(Failure(502, "api_error", "the provider's answer broke off before its end", transient=True))
            return
        self.begin()
        self._release()
        try:
            self._flush()
            if self.failure is not None:
                return
            reason = self._reason()
            self.stop_reason = reason
            self._gate.finish(reason, self._final_usage(), sequence=self._sequence, details=self._details)
        except Ungrammatical as error:
            self._senseless(str(error))
            return
        self.substance = self.done = True

    def fail(self, failure: Failure) -> None:
        """The answer failed. After its beginning the client is told by an error event, before by a status.

        The numbers of an overflow are the upstream's (0 where it tells none), and become the client's here.
        """
        if self.done:
            return
        if failure.overflow:
            translation = self.translation
            limit = failure.limit or translation.capabilities.context or translation.estimate
            sizes = self._scaled(failure.tokens or translation.estimate), self._scaled(limit)
            failure = replace(overflow(*sizes), upstream=failure.upstream)
        self.failure = failure
        self.done = True
        if self._gate.started:
            self._gate.error(failure.kind, failure.message)

    def error(self, body: bytes, status: int = 200) -> None:
        """The upstream tells an error inside its answer, or in place of it; ``status`` where the body holds one."""
        can, tokens = self.translation.capabilities, self.translation.estimate
        self.fail(failure_of(status, {}, body, provider=self._who, limit=can.context, tokens=tokens))

    def broken(self, what: str) -> None:
        """The answer cannot be one; ``what`` goes on from the provider's name, as in "sent an empty chunk"."""
        self.fail(Failure(502, "api_error", f"{self._who} {what}", transient=True))

    def take(self) -> bytes:
        """The bytes of the stream since the last call."""
        return self._gate.take()

    # ---- blocks

    def _release(self) -> None:
        """Text that was held back as the possible beginning of a stop sequence, which cannot go on in another block."""
        rest = self._scanner.rest() if self._scanner is not None and self._stop != "stop_sequence" else ""
        if rest:
            self._said += len(rest)
            self._add("text", rest)

    def _append(self, block: _Block) -> _Block:
        self.begin()
        if block.kind != "text":
            self._release()
        before = self._blocks[-1] if self._blocks else None
        if before is not None and before.kind in ("text", "thinking"):
            before.over = True
        self._blocks.append(block)
        return block

    def _add(self, kind: str, text: str) -> None:
        last = self._blocks[-1] if self._blocks else None
        if last is None or last.kind != kind or last.over:
            last = self._append(_Block(kind))
        if last.begun and last is self._blocks[0] and not last.pieces:
            self._delta("text_delta" if kind == "text" else "thinking_delta", text)
            return
        last.pieces.append(text)
        self._waiting += len(text)
        self._advance()

    def _piece(self, block: _Block, arguments: str) -> None:
        block.pieces.append(arguments)
        self._waiting += len(arguments)

    def _delta(self, kind: str, text: str) -> None:
        try:
            self._gate.delta(kind, text)
        except Ungrammatical as error:
            self._senseless(str(error))

    def _advance(self) -> None:
        """Write what can be written: of the first block everything, of the next ones once it is over."""
        if self._waiting > _MOST_WAITING:
            self._senseless("too much came out of order")
        while self._blocks and not self.done:
            block = self._blocks[0]
            try:
                if not self._write(block):
                    return
                if not (block.over or (len(self._blocks) > 1 and self._is_complete(block))):
                    return
                self._end(block)
            except Ungrammatical as error:
                self._senseless(str(error))
                return
            self._blocks.popleft()

    def _is_complete(self, block: _Block) -> bool:
        """Whether a call with something behind it can end: its input is whole. Asked once for each piece of it."""
        if block.kind != "call" or block.checked or not (block.written or block.pieces):
            return False
        block.checked = True
        return is_object("".join(block.written) + "".join(block.pieces))

    def _write(self, block: _Block) -> bool:
        """Begin the block and write what there is of it; False if it cannot begin yet."""
        if block.kind == "call":
            return self._write_call(block)
        if not block.begun:
            if block.kind == "whole":
                assert block.whole is not None
                self._whole(block.whole)
            elif block.kind == "text":
                self._gate.block({"type": "text", "text": ""})
            else:
                self._gate.block({"type": "thinking", "thinking": "", "signature": ""})
            block.begun = True
            # A sealed thought without words is nothing that a client would miss.
            self.substance = self.substance or block.kind != "thinking" or bool(block.pieces)
        if block.pieces:
            text = "".join(block.pieces)
            self._waiting -= len(text)
            block.pieces.clear()
            self._gate.delta("text_delta" if block.kind == "text" else "thinking_delta", text)
        for citation in block.citations:
            self._gate.citation(citation)
        block.citations.clear()
        return True

    def _write_call(self, block: _Block) -> bool:
        if not block.begun:
            if not block.name or not (block.pieces or block.over):
                return False  # the name may not be whole yet
            id = self.client_id_of(block.key)
            name = self.translation.names.back(block.name)
            self._gate.block({"type": "tool_use", "id": id, "name": name, "input": {}})
            self.calls.append(id)
            block.begun = self.substance = True
        if block.pieces and (block.over or self.translation.capabilities.reliable_json):
            text = "".join(block.pieces)
            self._waiting -= len(text)
            block.pieces.clear()
            if not self.translation.capabilities.reliable_json:
                text = self._repaired(text)
            block.written.append(text)
            self._gate.delta("input_json_delta", text)
        return True

    def _repaired(self, text: str) -> str:
        if is_object(text):
            return text
        found = repair.arguments(text)
        if found is None:
            return text  # the gate refuses it at the block's end
        self.translation.note("a tool's input was no valid JSON and was repaired")
        return shapes.written(found).decode("utf-8", "surrogatepass")

    def _end(self, block: _Block) -> None:
        if block.kind == "thinking" and block.signature:
            self._gate.delta("signature_delta", block.signature)
        if block.kind == "call":
            block.over = True
            if block.pieces:  # of an unreliable upstream, kept until the end
                self._write_call(block)
            self._gate.stop_block(cut=self._stop == "max_tokens")
        elif block.kind != "whole":
            self._gate.stop_block()

    def _whole(self, block: dict[str, Any]) -> None:
        given = block.get("input")
        if block.get("type") in ("server_tool_use", "mcp_tool_use") and isinstance(given, dict) and given:
            self._gate.block({**block, "input": {}})
            self._gate.delta("input_json_delta", shapes.written(given).decode("utf-8", "replace"))
        else:
            self._gate.block(block)
        self._gate.stop_block()

    def _flush(self) -> None:
        """The end: whatever is open or waits is over. A call whose name never came is left out."""
        for block in [block for block in self._blocks if block.kind == "call" and not block.begun and not block.name]:
            self._blocks.remove(block)
            self.translation.note("a call without a name was left out")
        for block in self._blocks:
            block.over = True
        self._advance()

    @property
    def _who(self) -> str:
        return self.translation.family or self.translation.capabilities.api

    def _senseless(self, reason: str) -> None:
        self.broken(f"sent an answer that makes no sense: {reason}")

    # ---- the end

    def _reason(self) -> str:
        if self._stop in ("end_turn", "tool_use"):
            # Many servers say stop beside calls, and some speak of calls that they never made.
            return "tool_use" if self.calls else "end_turn"
        return self._stop

    def _final_usage(self) -> dict[str, Any]:
        tokens = self.tokens
        if tokens.input is None and not tokens.cache_read:
            tokens.input = self.translation.estimate
            self.translation.note("the provider told no usage; it was estimated")
        if tokens.output is None:
            tokens.output = text_tokens(self._said)
        usage: dict[str, Any] = {
            # A zero would not take back the estimate of message_start for every reader (client facts 4.2; the official
            # SDKs believe it): what a cache read would be counted twice.
            "input_tokens": self._scaled(tokens.input or 0, least=1),
            "cache_creation_input_tokens": self._scaled(tokens.cache_write),
            "cache_read_input_tokens": self._scaled(tokens.cache_read),
            "output_tokens": self._scaled(tokens.output, least=1),
        }
        if tokens.thinking:
            usage["output_tokens_details"] = {"thinking_tokens": self._scaled(tokens.thinking)}
        return usage

    def _scaled(self, count: int, *, least: int = 0) -> int:
        return max(least, round(min(count, _MOST_TOKENS) * self.translation.scale))
