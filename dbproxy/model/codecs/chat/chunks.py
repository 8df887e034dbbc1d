"""One chunk of a Chat stream, or one ``chat.completion``: what all the servers that speak Chat make of it.

Owns the shapes: the quick reading of what is spelled as OpenAI spells it, and the tolerant one of everything else, with
the same result. Pure. Sources: API facts 5.1 and 5.6, seed-001 4.1 and 4.2; the SDK's ``ChatCompletionChunk``.

Invariants: never raises; what has another shape than promised is read if its meaning is plain, else passed over.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dbproxy.model import shapes


class Function(msgspec.Struct, gc=False):
    """A function's name and arguments, or a piece of them."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    """A call, or a piece of one. ``extra_content`` is opaque, and wanted back by who sent it."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None
    extra_content: Any = None


class Delta(msgspec.Struct, gc=False):
    """What was said: a piece of it, or in a document all."""

    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[Any] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    annotations: list[Any] | None = None


class Choice(msgspec.Struct, gc=False):
    """One of the answers, of which there is never more than one. Some give their usage here (Moonshot)."""

    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    usage: Any = None


class Chunk(msgspec.Struct, gc=False):
    """A chunk. ``object`` is ``error``, and ``message`` a text, where the whole of it is an error."""

    id: str | None = None
    object: str | None = None
    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None
    message: Any = None
    detail: Any = None

    @property
    def failed(self) -> bool:
        """Is it an error, whichever way the server wraps it?"""
        if self.error or self.object == "error":
            return True
        return self.choices is None and (isinstance(self.message, str) or isinstance(self.detail, str))


_QUICK: Final = msgspec.json.Decoder(Chunk).decode


def quick(data: bytes) -> Chunk | None:
    """The chunk, None if it has any other shape than OpenAI's."""
    try:
        return _QUICK(data)
    except shapes.UNREADABLE:
        return None


def tolerant(value: object) -> Chunk | None:
    """The chunk that a JSON value means, None if it is no object."""
    if isinstance(value, list) and value:  # Gemini's errors come as a list of one
        value = value[0]
    if not isinstance(value, dict):
        return None
    choices = value.get("choices")
    return Chunk(
        id=_name(value.get("id")),
        object=_name(value.get("object")),
        choices=[_choice(choice) for choice in choices] if isinstance(choices, list) else None,
        usage=value.get("usage"),
        error=value.get("error"),
        message=value.get("message"),
        detail=value.get("detail"),
    )


def said(value: object) -> str:
    """The text in a value that may be a text, an object around one, or a list of such."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        # Not deeper than that: a list within a list is nobody's text.
        return "".join(said(item) for item in value if not isinstance(item, list))
    if isinstance(value, dict):
        for name in ("text", "content", "summary"):
            if isinstance(value.get(name), str):
                return shapes.text(value[name])
    return ""


def _choice(value: object) -> Choice:
    found = shapes.mapping(value)
    return Choice(
        delta=_delta(found.get("delta")),
        message=_delta(found.get("message")),
        finish_reason=_name(found.get("finish_reason")),
        usage=found.get("usage"),
    )


def _delta(value: object) -> Delta | None:
    if not isinstance(value, dict):
        return None
    content = value.get("content")
    calls, details, notes = value.get("tool_calls"), value.get("reasoning_details"), value.get("annotations")
    return Delta(
        content=content if isinstance(content, list) else said(content),
        reasoning_content=said(value.get("reasoning_content")),
        reasoning=said(value.get("reasoning")),
        reasoning_details=details if isinstance(details, list) else None,
        refusal=said(value.get("refusal")),
        tool_calls=[_call(call) for call in ([calls] if isinstance(calls, dict) else shapes.sequence(calls))],
        function_call=_function(value.get("function_call")),
        annotations=notes if isinstance(notes, list) else None,
    )


def _call(value: object) -> ToolCall:
    found = shapes.mapping(value)
    id = found.get("id")
    return ToolCall(
        index=_index(found.get("index")),
        id=str(id) if isinstance(id, int) and not isinstance(id, bool) else _name(id),
        function=_function(found.get("function")),
        extra_content=found.get("extra_content"),
    )


def _function(value: object) -> Function | None:
    if not isinstance(value, dict):
        return None
    arguments = value.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        # As an object instead of its text. One that nests too deeply to be written is none, which the writer refuses.
        arguments = shapes.written(arguments).decode("utf-8", "surrogatepass") or "[]"
    return Function(_name(value.get("name")), arguments)


def _name(value: object) -> str | None:
    return shapes.mend(value) if isinstance(value, str) else None


def _index(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
