"""A Gemini server, and servers that speak Messages, in a test: what the codecs ask them, and what they answer. Requests
to Gemini and its chunks are checked by the official types."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import asking
import pytest
from asking import ASKED
from google.genai import types
from hypothesis import strategies as st

from dbproxy.model.codecs.capabilities import Capabilities, capabilities
from dbproxy.model.codecs.gemini import GEMINI
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.native import NATIVE
from dbproxy.model.codecs.request import read_request
from dbproxy.model.codecs.translation import Translation
from dbproxy.model.codecs.writer import MessageWriter
from dbproxy.testing.origin.grammar import Reader, StreamError, check_stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.model.codecs import Codec
    from dbproxy.model.codecs.request import Request

READ = {"name": "Read", "description": "Reads a file.", "input_schema": {"type": "object", "properties": {}}}
PATHS = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PDF = "JVBERi0xLjQKJcOkw7zDtsOfCg=="
#: Gemini before and since levels of thinking.
FLASH, OLDER = capabilities("gemini", "gemini-3.5-flash"), capabilities("gemini", "gemini-2.5-flash")


def for_gemini(can: Capabilities = FLASH, **fields: Any) -> Translation:
    """One attempt at a Gemini model."""
    return Translation(ASKED, "gemini-3.5-flash", "m1", **{"capabilities": can, "family": "gemini", **fields})


def for_claude(can: Capabilities | None = None, **fields: Any) -> Translation:
    """One attempt at Claude, with a key of ours."""
    can = Capabilities(api="messages") if can is None else can
    return Translation(ASKED, "claude-haiku-4-5", "m1", **{"capabilities": can, "family": "claude", **fields})


def for_others(can: Capabilities | None = None, **fields: Any) -> Translation:
    """One attempt at another server that speaks Messages."""
    can = Capabilities(api="messages", documents=True) if can is None else can
    return Translation(ASKED, "qwen3-coder", "m1", **{"capabilities": can, "family": "ollama", **fields})


# ---- requests

#: The body of a Messages request whose answer may be long enough for thinking.
ask = partial(asking.ask, max_tokens=8000)


def image(data: str = PIXEL, media_type: str = "image/png") -> dict[str, Any]:
    """A picture."""
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def document() -> dict[str, Any]:
    """A PDF."""
    return {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}


def read(body: dict[str, Any]) -> Request:
    """The body, read."""
    return read_request(json.dumps(body).encode())


def to_gemini(body: dict[str, Any], translation: Translation | None = None) -> dict[str, Any]:
    """What Gemini is asked, accepted by the SDK's own types."""
    translation = translation or for_gemini()
    found = json.loads(GEMINI.write(read(body), translation))
    check_request(found)
    return found


def to_native(body: dict[str, Any], translation: Translation) -> dict[str, Any]:
    """What a server is asked that speaks Messages."""
    return json.loads(NATIVE.write(read(body), translation))


def check_request(body: dict[str, Any]) -> None:
    """Raises ValidationError or AssertionError for what the official SDK's types do not allow."""
    given = dict(body)
    for content in given.pop("contents"):
        types.Content.model_validate_json(json.dumps(content))
    for name, kind in (
        ("systemInstruction", types.Content),
        ("toolConfig", types.ToolConfig),
        ("generationConfig", types.GenerationConfig),
    ):
        if name in given:
            kind.model_validate_json(json.dumps(given.pop(name)))
    for tool in given.pop("tools", []):
        for declared in types.Tool.model_validate_json(json.dumps(tool)).function_declarations or []:
            if declared.parameters_json_schema is not None:
                types.JSONSchema.model_validate(declared.parameters_json_schema)
    assert not given, f"keys that a request does not have: {sorted(given)}"


# ---- Gemini's answers


def chunk(*parts: dict[str, Any], finish: str = "", **fields: Any) -> bytes:
    """A chunk as Gemini writes it, accepted by the SDK's own types."""
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    found = json.dumps({"candidates": [candidate], "responseId": "resp-1", "modelVersion": "gemini-3.5-flash"} | fields)
    types.GenerateContentResponse.model_validate_json(found)
    return found.encode()


def function_call(name: str = "Read", *, signature: str = "", id: str = "", **args: Any) -> dict[str, Any]:
    """A part that calls a function."""
    call = {"name": name, "args": args} | ({"id": id} if id else {})
    return {"functionCall": call} | ({"thoughtSignature": signature} if signature else {})


# ---- what the client gets


class Heard:
    """An answer translated: the ``message`` of its stream, or the ``error`` event; ``raw`` and the ``writer``."""

    def __init__(self, writer: MessageWriter) -> None:
        self.writer = writer
        self.raw = writer.take()
        self.message: dict[str, Any] = {}
        self.error: dict[str, Any] = {}
        if writer.failure is None:
            self.message = check_stream(self.raw)
        elif self.raw:
            with pytest.raises(StreamError) as caught:
                Reader().feed(self.raw)
            self.error = caught.value.error

    @property
    def content(self) -> list[dict[str, Any]]:
        """The blocks."""
        return self.message["content"]

    @property
    def text(self) -> str:
        """All of the texts."""
        return "".join(block["text"] for block in self.content if block["type"] == "text")

    @property
    def kinds(self) -> list[str]:
        """The blocks' types."""
        return [block["type"] for block in self.content]


def hear(codec: Codec, events: Iterable[bytes], translation: Translation) -> Heard:
    """The events of a streamed answer, translated."""
    writer = MessageWriter(translation)
    reader = codec.stream(translation, writer)
    for data in events:
        reader.feed(b"", data)
    reader.end()
    assert writer.done
    return Heard(writer)


def from_gemini(*chunks: bytes, translation: Translation | None = None) -> Heard:
    """Gemini's stream, translated."""
    return hear(GEMINI, chunks, translation or for_gemini())


def from_native(*events: dict[str, Any], translation: Translation | None = None) -> Heard:
    """A stream in Messages, translated."""
    return hear(NATIVE, [json.dumps(event).encode() for event in events], translation or for_others())


def whole(codec: Codec, value: Any, translation: Translation) -> Heard:
    """An answer in one document, translated."""
    writer = MessageWriter(translation)
    codec.document(value if isinstance(value, bytes) else json.dumps(value).encode(), translation, writer)
    assert writer.done
    return Heard(writer)


def names_of(*names: str) -> ToolNames:
    """The tools' names as the other side takes them."""
    return ToolNames(names)


# ---- whatever comes

#: Any JSON value.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_kinds = [
    "text",
    "thinking",
    "tool_use",
    "tool_result",
    "image",
    "document",
    "redacted_thinking",
    "tool_reference",
    "?",
]
_blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(_kinds)},
    optional={
        "text": st.text(max_size=5),
        "thinking": st.text(max_size=5),
        "signature": st.sampled_from(["", "x", "gemini#eA==", "openai#y"]),
        "id": st.sampled_from(["", "toolu_1", "a"]),
        "tool_use_id": st.sampled_from(["", "toolu_1", "a"]),
        "name": st.sampled_from(["", "Read", "3", "x y"]),
        "input": JSON,
        "content": JSON,
        "source": JSON,
    },
)
#: Bodies of requests whose histories are out of order in every way.
bodies = st.fixed_dictionaries(
    {
        "model": st.just("claude"),
        "messages": st.lists(
            st.fixed_dictionaries(
                {
                    "role": st.sampled_from(["user", "assistant", "system", "?"]),
                    "content": st.text(max_size=4) | st.lists(_blocks, max_size=4) | JSON,
                }
            ),
            max_size=6,
        ),
    },
    optional={
        "system": JSON,
        "tools": st.lists(st.fixed_dictionaries({"name": st.text(max_size=3), "input_schema": JSON}), max_size=3),
        "thinking": JSON,
        "output_config": JSON,
        "stop_sequences": JSON,
        "max_tokens": st.integers(-1, 100),
    },
)
