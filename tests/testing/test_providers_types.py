"""What the fake servers say is what the official types expect: the oracle is held against the providers' own."""

from __future__ import annotations

import json

import pytest
from google.genai.types import GenerateContentResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from dbproxy.model.codecs.request import Call, Text, Thinking
from dbproxy.testing.codecs import Bench, Counts, broken_of, shapes_of
from dbproxy.testing.providers import ChatDialect, GeminiDialect, ResponsesDialect
from dbproxy.wire.sse import SseSplitter

EVENTS = TypeAdapter(ResponseStreamEvent)
PARTS = (Thinking("Hm."), Text("Look."), Call("call_1", "Read", {"a": {"b": [1]}}), Call("call_2", "Bash", {}))


def spelled(dialect):
    """Every event of every shape, by the shape's name."""
    bench = Bench(None, dialect)
    for shape in [*shapes_of(dialect), *broken_of(dialect)]:
        data = bench.spell(*shape.steps, stop=shape.stop, tokens=shape.tokens)
        for event in SseSplitter().feed(data):
            if event.data != b"[DONE]":
                yield shape.name, event


def test_chat():
    for name, event in spelled(ChatDialect()):
        chunk = ChatCompletionChunk.model_validate_json(event.data, strict=True)
        told = json.loads(event.data)
        assert set(told) == set(chunk.model_dump(exclude_unset=True)), name
    whole = ChatDialect().document(PARTS, "tool_use", Counts(1, 2, 3))
    assert (
        ChatCompletion.model_validate_json(whole, strict=True).choices[0].message.tool_calls[1].function.name == "Bash"
    )


def test_responses():
    for name, event in spelled(ResponsesDialect()):
        found = EVENTS.validate_json(event.data)  # a union over the literal of `type`
        assert found.type == event.name.decode(), name
    whole = Response.model_validate_json(ResponsesDialect().document(PARTS, "tool_use", Counts(1, 2, 3)))
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]


def test_gemini():
    for name, event in spelled(GeminiDialect()):
        GenerateContentResponse.model_validate_json(event.data, strict=False)  # its configuration forbids other keys
        with pytest.raises(ValueError):
            GenerateContentResponse.model_validate({**json.loads(event.data), "other": name})
    whole = GenerateContentResponse.model_validate_json(GeminiDialect().document(PARTS, "tool_use", Counts(1, 2, 3)))
    assert [part.function_call is not None for part in whole.candidates[0].content.parts] == [False, False, True, True]
    assert whole.usage_metadata.prompt_token_count == 4
