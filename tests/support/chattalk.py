"""A Chat Completions server in a test: what the codec asks it, checked by the official types, and what it answers."""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import openai.types.chat
import pytest
from asking import ASKED
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import is_typeddict

from dbproxy.model.codecs.capabilities import Capabilities
from dbproxy.model.codecs.chat import CHAT
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.request import read_request
from dbproxy.model.codecs.translation import Translation
from dbproxy.model.codecs.writer import MessageWriter
from dbproxy.testing.origin.grammar import Reader, StreamError, check_stream

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Keys that other servers than OpenAI's know.
FOREIGN = ("reasoning_content", "extra_content")
READ = {"name": "Read", "description": "Reads a file.", "input_schema": {"type": "object", "properties": {}}}
WRITE = {"name": "Write", "input_schema": {"type": "object", "properties": {"text": {"type": "string"}}}}


def a_translation(*, vault: Any = None, **can: Any) -> Translation:
    """One attempt at ``gpt-4o``, whose signatures only ``openai`` can read."""
    given = Translation(ASKED, "gpt-4o", "m1", capabilities=Capabilities(**can), family="openai")
    if vault is not None:
        given.vault = vault
    return given


def sent(body: dict[str, Any], translation: Translation | None = None) -> dict[str, Any]:
    """What the server is asked, accepted by the SDK's own types."""
    translation = translation or a_translation()
    request = read_request(json.dumps(body).encode())
    if not translation.names._back:
        translation.names = ToolNames(tool.name for tool in request.tools)
    found = json.loads(CHAT.write(request, translation))
    check_request(found)
    return found


def check_request(body: dict[str, Any]) -> None:
    """Raises ValidationError for what the official SDK's types do not allow, unknown keys included."""
    _consumed(_types()[body.get("stream") is True].validate_python(_without(body, FOREIGN)))


@cache
def _types() -> dict[bool, TypeAdapter[Any]]:
    """The SDK's types, with every key forbidden that they do not name."""
    for name, module in list(sys.modules.items()):
        if name.startswith((f"{openai.types.chat.__name__}.", "openai.types.shared_params.")):
            for kind in vars(module).values():
                if is_typeddict(kind):
                    kind.__pydantic_config__ = ConfigDict(extra="forbid")
    return {True: TypeAdapter(CompletionCreateParamsStreaming), False: TypeAdapter(CompletionCreateParamsNonStreaming)}


def _consumed(value: Any) -> None:
    """pydantic checks the items of an Iterable when they are read, so read them all."""
    if isinstance(value, dict):
        for item in value.values():
            _consumed(item)
    elif isinstance(value, list | tuple) or hasattr(value, "__next__"):
        for item in value:
            _consumed(item)


def _without(value: Any, names: Iterable[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(item, names) for name, item in value.items() if name not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value


# ---- answers


def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> bytes:
    """A chunk as OpenAI writes it."""
    choices = [] if delta is None and finish is None else [{"index": 0, "delta": delta or {}, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": choices}
    return json.dumps(head | fields).encode()


def call(index: int | None = None, *, id: Any = None, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    """A piece of a call, without the keys that are None."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    found: dict[str, Any] = {"function": function}
    if index is not None:
        found["index"] = index
    if id is not None:
        found["id"] = id
    return found


def calls(*pieces: dict[str, Any], finish: str | None = None) -> bytes:
    """A chunk with pieces of calls."""
    return chunk({"tool_calls": list(pieces)}, finish)


DONE = b"[DONE]"
USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}


class Heard:
    """An answer as the client gets it: ``data`` is the stream, ``message`` what it spells, ``failure`` if any."""

    def __init__(self, data: bytes, writer: MessageWriter) -> None:
        self.data = data
        self.writer = writer
        self.failure = writer.failure
        self.events = [json.loads(event.split(b"data: ", 1)[1]) for event in data.split(b"\n\n") if event]
        self.message: dict[str, Any] = {}
        reader = Reader()
        if writer.failure is None:
            reader.feed(data)
        elif data:
            with pytest.raises(StreamError) as caught:
                reader.feed(data)
            assert caught.value.error == writer.failure.body()["error"]
        self.message = reader.message
        if writer.done and writer.failure is None:
            check_stream(data)

    @property
    def content(self) -> list[dict[str, Any]]:
        """The blocks of an answer that did not fail."""
        assert self.failure is None, self.failure
        return self.message["content"]

    @property
    def blocks(self) -> list[tuple[str, Any]]:
        """Each block's type and what is in it."""
        return [(block["type"], _inside(block)) for block in self.content]

    @property
    def stop(self) -> str:
        return self.message["stop_reason"]

    @property
    def usage(self) -> dict[str, Any]:
        """As the last event but one tells it."""
        return next(event for event in self.events if event["type"] == "message_delta")["usage"]


def _inside(block: dict[str, Any]) -> Any:
    if block["type"] == "tool_use":
        return (block["id"], block["name"], block["input"])
    return block.get(block["type"])


def heard(*data: bytes, translation: Translation | None = None, name: bytes = b"", end: bool = True) -> Heard:
    """What becomes of these events."""
    translation = translation or a_translation()
    writer = MessageWriter(translation)
    reader = CHAT.stream(translation, writer)
    out = []
    for item in data:
        reader.feed(name, item)
        out.append(writer.take())
    if end:
        reader.end()
    out.append(writer.take())
    return Heard(b"".join(out), writer)


def document(message: Any, finish: str | None = "stop", translation: Translation | None = None, **fields: Any) -> Heard:
    """What becomes of an answer that came as one document."""
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o"}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return document_of(json.dumps(body | {"choices": [choice]} | fields).encode(), translation)


def document_of(body: bytes, translation: Translation | None = None) -> Heard:
    """What becomes of these bytes as a document."""
    translation = translation or a_translation()
    writer = MessageWriter(translation)
    CHAT.document(body, translation, writer)
    return Heard(writer.take(), writer)
