"""A codec and its server's dialect on the bench: write a request and read it back, or hear an answer to its last byte.

Owns what every case of the kit needs: `Bench`, the steps that make up an answer (`say`, `think`, `call`, ...), and the
check that holds for every answer whatever it was: a grammatical stream, or one error. Must never import a codec.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.request import Call, Text, Thinking, Turn, read_request
from dbproxy.model.codecs.translation import Translation
from dbproxy.model.codecs.writer import MessageWriter
from dbproxy.testing.codecs.dialect import Counts
from dbproxy.testing.origin.events import PING
from dbproxy.testing.origin.grammar import GrammarError, Reader, StreamError
from dbproxy.wire.sse import SseSplitter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dbproxy.model.codecs import Codec
    from dbproxy.model.codecs.failure import Failure
    from dbproxy.model.codecs.request import Part
    from dbproxy.testing.codecs.dialect import Dialect, Said, Seen, Speech

#: What the client asked for; its name must come back in every answer (case 84).
ASKED: Final = "claude-kit-1"
#: The counts of an answer where a case is not about them.
USUAL: Final = Counts(input=100, output=20, cache_read=900)


class Failed(AssertionError):
    """A case failed; the text says what was expected, and what came."""


def expect(found: object, wanted: object, what: str) -> None:
    """Raises Failed unless both are equal."""
    if found != wanted:
        raise Failed(f"{what}: expected {wanted!r}, found {found!r}")


def require(holds: object, what: str) -> None:
    """Raises Failed with ``what`` unless it holds."""
    if not holds:
        raise Failed(what)


# ---- the steps of an answer

Step: TypeAlias = "Callable[[Speech], bytes]"


def say(text: str) -> Step:
    """A piece of text."""
    return lambda speech: speech.text(text)


def think(text: str) -> Step:
    """A piece of thinking."""
    return lambda speech: speech.thinking(text)


def call(key: int, *, id: str = "", name: str = "", arguments: str = "") -> Step:
    """A piece of a call."""
    return lambda speech: speech.call(key, id=id, name=name, arguments=arguments)


def done(key: int) -> Step:
    """A call is complete."""
    return lambda speech: speech.done(key)


def whole(key: int, name: str, arguments: dict[str, Any], *, id: str = "") -> Step:
    """A call in one piece."""

    def step(speech: Speech) -> bytes:
        spelled = json.dumps(arguments, ensure_ascii=False)
        return speech.call(key, id=id or f"call_{key}", name=name, arguments=spelled) + speech.done(key)

    return step


def bits(key: int, name: str, arguments: dict[str, Any], *, size: int = 3, id: str = "") -> list[Step]:
    """The same call in pieces of ``size`` characters, its id and name in the first, which has no arguments."""
    spelled = json.dumps(arguments, ensure_ascii=False)
    parts = [spelled[at : at + size] for at in range(0, len(spelled), size)]
    return [
        call(key, id=id or f"call_{key}", name=name),
        *(call(key, arguments=part) for part in parts),
        done(key),
    ]


# ---- what came of it


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer as the client gets it. ``message`` is None unless it is whole, ``error`` the error event's object,
    ``failure`` what the core sees of it. ``raw`` are the stream's bytes."""

    raw: bytes
    message: dict[str, Any] | None
    error: dict[str, Any] | None
    failure: Failure | None
    translation: Translation

    @property
    def content(self) -> list[tuple[Any, ...]]:
        """The blocks, without ids and signatures. Raises Failed if the answer failed."""
        return [_block(block) for block in self.whole["content"]]

    @property
    def whole(self) -> dict[str, Any]:
        """The message. Raises Failed if the answer failed."""
        if self.message is None:
            raise Failed(f"the answer failed: {self.failure}")
        return self.message

    @property
    def ids(self) -> list[str]:
        """The ids of its calls."""
        return [block["id"] for block in self.whole["content"] if block["type"] == "tool_use"]


def _block(block: dict[str, Any]) -> tuple[Any, ...]:
    kind = block["type"]
    if kind == "tool_use":
        return ("call", block["name"], block["input"])
    if kind in ("text", "thinking"):
        return (kind, block[kind])
    return (kind,)


@dataclass(frozen=True, slots=True)
class Written:
    """A request in the codec's words: the bytes, and how its server understands them."""

    body: bytes
    seen: Seen
    translation: Translation

    @property
    def turns(self) -> list[Turn]:
        """The conversation, neighbours of one role joined."""
        return joined(self.seen.turns)

    @property
    def parts(self) -> list[Part]:
        """Everything in the conversation, in its order."""
        return [part for turn in self.seen.turns for part in turn.parts]

    @property
    def calls(self) -> list[Call]:
        """The calls of its history."""
        return [part for part in self.parts if isinstance(part, Call)]

    @property
    def text(self) -> str:
        """Every text of the request outside of tools, one a line."""
        return "\n".join([*self.seen.system, *_texts(self.parts)])


def _texts(parts: Iterable[Part]) -> list[str]:
    found: list[str] = []
    for part in parts:
        if isinstance(part, Text | Thinking):
            found.append(part.text)
        elif not isinstance(part, Call) and hasattr(part, "parts"):
            found += _texts(part.parts)
    return found


def joined(turns: Iterable[Turn]) -> list[Turn]:
    """Neighbours of one role as one turn."""
    found: list[Turn] = []
    for turn in turns:
        if found and found[-1].role == turn.role:
            found[-1] = Turn(turn.role, found[-1].parts + turn.parts)
        else:
            found.append(turn)
    return found


def verdict(raw: bytes) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(the message, None) or (None, the error) of the client's bytes. Raises Failed for anything that a client could
    choke on: events out of their grammar, a stream without an end, anything behind an error."""
    reader = Reader()
    try:
        reader.feed(raw)
        return reader.finish(), None
    except StreamError as error:
        events = [line for line in raw.split(b"\n") if line.startswith(b"event: ")]
        if events.count(b"event: error") != 1 or events[-1] != b"event: error" or not raw.endswith(b"}\n\n"):
            raise Failed("an error event that is not the last one") from None
        if not error.error.get("type") or not isinstance(error.error.get("message"), str):
            raise Failed(f"an error event without type or message: {error.error!r}") from None
        return None, error.error
    except GrammarError as error:
        raise Failed(f"the client's stream is not grammatical: {error}") from None


class Bench:
    """One codec and the dialect of its server."""

    def __init__(self, codec: Codec, dialect: Dialect) -> None:
        self.codec = codec
        self.dialect = dialect

    def translation(self, *, tools: Iterable[str] = (), **changes: Any) -> Translation:
        """The context of one attempt."""
        dialect = self.dialect
        given: dict[str, Any] = {
            "asked": ASKED,
            "model": dialect.model,
            "message_id": "routed_kit",
            "capabilities": dialect.capabilities,
            "family": dialect.family,
            "names": ToolNames(tools),
            "estimate": 1234,
        }
        return Translation(**{**given, **changes})

    # ---- requests

    def write(self, *messages: dict[str, Any], **keys: Any) -> Written:
        """Put a Messages request into the codec's words; ``keys`` are further keys of its body, ``translation`` the
        context. Raises Unroutable where the codec does."""
        translation = keys.pop("translation", None) or self.translation()
        body: dict[str, Any] = {"model": ASKED, "max_tokens": 1000, "stream": True, "messages": list(messages), **keys}
        written = self.codec.write(read_request(json.dumps(body).encode()), translation)
        try:
            seen = self.dialect.read(written)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Failed(f"the server does not understand the request: {error!r}") from error
        return Written(written, seen, translation)

    # ---- answers

    def spell(
        self, *steps: Step | Sequence[Step], stop: str | None = "end_turn", tokens: Counts | None = USUAL
    ) -> bytes:
        """The bytes of a streamed answer; with ``stop=None`` it breaks off behind the last step."""
        speech = self.dialect.speak()
        flat = [step for given in steps for step in ([given] if callable(given) else given)]
        pieces = [speech.begin(), *(step(speech) for step in flat)]
        if stop is not None:
            pieces.append(speech.end(stop, tokens))
        return b"".join(pieces)

    def hear(self, data: bytes, *, size: int = 0, pings: bool = False, translation: Translation | None = None) -> Heard:
        """Translate the bytes of a streamed answer. They are read ``size`` at a time (0: all at once); ``pings`` puts
        the core's own ping behind everything that is written. Raises Failed for what no client may get."""
        translation = translation or self.translation()
        writer = MessageWriter(translation)
        reader = self.codec.stream(translation, writer)
        splitter = SseSplitter()
        out = [PING] if pings else []

        def feed(piece: bytes) -> None:
            for event in splitter.feed(piece):
                if event.parsed:
                    reader.feed(event.name, event.data)
                if piece := writer.take():
                    out.extend([piece, PING] if pings and not writer.done else [piece])

        for at in range(0, len(data), size or len(data) or 1):
            feed(data[at : at + (size or len(data))])
        if splitter.rest:
            feed(b"\n\n")  # a server may forget the last blank line (seed-001 4.2)
        reader.end()
        out.append(writer.take())
        return self._heard(b"".join(out), writer)

    def hear_document(self, body: bytes, *, translation: Translation | None = None) -> Heard:
        """Translate an answer that is one document."""
        translation = translation or self.translation()
        writer = MessageWriter(translation)
        self.codec.document(body, translation, writer)
        return self._heard(writer.take(), writer)

    def _heard(self, raw: bytes, writer: MessageWriter) -> Heard:
        if not writer.done:
            raise Failed("the codec left the answer without an end")
        message = error = None
        if writer.failure is None or raw.replace(PING, b""):
            message, error = verdict(raw)
        if (message is None) is (writer.failure is None):
            raise Failed("the stream and the writer differ about whether the answer failed")
        if writer.take():
            raise Failed("something was written behind the end")
        return Heard(raw, message, error, writer.failure, writer.translation)

    def both(self, *parts: Said, stop: str = "end_turn", tokens: Counts | None = USUAL) -> list[Heard]:
        """The same answer streamed and, where the dialect can, as a document."""
        steps: list[Step] = []
        for number, part in enumerate(parts):
            if isinstance(part, Call):
                steps.append(whole(number, part.name, part.arguments, id=part.id))
            else:
                steps.append(think(part.text) if isinstance(part, Thinking) else say(part.text))
        found = [self.hear(self.spell(*steps, stop=stop, tokens=tokens))]
        if "documents" in self.dialect.can:
            found.append(self.hear_document(self.dialect.document(parts, stop, tokens)))
        return found
