"""A Responses server in a test: what the codec asks it, checked by the official types, and what it answers, event by
event as OpenAI's does, checked by the same types."""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import openai.types.responses
import pytest
from asking import ASKED
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParams
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import is_typeddict

from dbproxy.model.codecs.capabilities import Capabilities, capabilities
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.request import read_request
from dbproxy.model.codecs.responses import RESPONSES
from dbproxy.model.codecs.translation import Translation
from dbproxy.model.codecs.writer import MessageWriter
from dbproxy.testing.origin.grammar import Reader, StreamError, check_stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.model.codecs.vault import Vault

#: A model that reasons, and one that does not.
GPT, PLAIN = capabilities("openai", "gpt-5.5"), capabilities("openai", "gpt-4o")


def a_translation(model: str = "gpt-5.5", *, vault: Vault | None = None, **fields: Any) -> Translation:
    """One attempt, whose signatures only ``openai`` can read."""
    fields.setdefault("capabilities", capabilities("openai", model))
    if vault is not None:
        fields["vault"] = vault
    return Translation(ASKED, model, "m1", **{"family": "openai", **fields})


# ---- requests


def a_tool(name: str = "Read", **properties: Any) -> dict[str, Any]:
    """A tool with these properties, all optional."""
    return {"name": name, "description": f"{name}s.", "input_schema": {"type": "object", "properties": properties}}


def sent(body: dict[str, Any], translation: Translation | None = None) -> dict[str, Any]:
    """What the server is asked, accepted by the SDK's own types."""
    translation = translation or a_translation()
    request = read_request(json.dumps(body).encode())
    translation.names = ToolNames(tool.name for tool in request.tools)
    found = json.loads(RESPONSES.write(request, translation))
    check_request(found)
    return found


def check_request(body: dict[str, Any]) -> None:
    """Raises ValidationError for what the official SDK's types do not allow, unknown keys included."""
    _consume(_request_type().validate_python(body))


@cache
def _request_type() -> TypeAdapter[Any]:
    """The SDK's type, with every key forbidden that it does not name."""
    for name, module in list(sys.modules.items()):
        if name.startswith((f"{openai.types.responses.__name__}.", "openai.types.shared_params.")):
            for kind in vars(module).values():
                if is_typeddict(kind):
                    kind.__pydantic_config__ = ConfigDict(extra="forbid")
    return TypeAdapter(ResponseCreateParams)


def _consume(value: Any) -> None:
    """pydantic checks the items of an Iterable when they are read, so read them all."""
    if isinstance(value, dict):
        for item in value.values():
            _consume(item)
    elif isinstance(value, list | tuple) or hasattr(value, "__next__"):
        for item in value:
            _consume(item)


def items(body: dict[str, Any], *kinds: str) -> list[dict[str, Any]]:
    """The input's items of these types, all without any."""
    return [item for item in body["input"] if not kinds or item["type"] in kinds]


# ---- answers

CITED = {"type": "url_citation", "url": "https://a.example/x", "title": "X", "start_index": 0, "end_index": 3}
#: The events that tell something again that came in pieces.
WHOLE = (
    "output_text.done",
    "content_part.done",
    "refusal.done",
    "reasoning_summary_text.done",
    "reasoning_summary_part.done",
    "function_call_arguments.done",
)
USAGE = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 900, "cache_write_tokens": 0},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 30},
    "total_tokens": 1050,
}


class Talk:
    """An answer as the API streams it. Each method says one item with all of its events; ``end`` ends it."""

    def __init__(self, id: str = "resp_1") -> None:
        self.id = id
        self.events: list[dict[str, Any]] = []
        self.output: list[dict[str, Any]] = []
        self._say("response.created", response=self._response("in_progress"))
        self._say("response.in_progress", response=self._response("in_progress"))

    def message(
        self, *pieces: str, phase: str | None = None, annotations: Iterable[dict[str, Any]] = (), kind: str = "text"
    ) -> Talk:
        """A text, or with ``kind="refusal"`` a refusal, in pieces."""
        at, id = self._begin("message", role="assistant", content=[], status="in_progress")
        where = {"item_id": id, "output_index": at, "content_index": 0}
        text, notes = "".join(pieces), list(annotations)
        if kind == "refusal":
            event, key, empty = "response.refusal", "refusal", {"type": "refusal", "refusal": ""}
        else:
            event, key = "response.output_text", "text"
            empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._say("response.content_part.added", part=empty, **where)
        more: dict[str, Any] = {} if kind == "refusal" else {"logprobs": []}
        for piece in pieces:
            self._say(f"{event}.delta", delta=piece, obfuscation="x" * 12, **more, **where)
        for number, note in enumerate(notes):
            self._say("response.output_text.annotation.added", annotation=note, annotation_index=number, **where)
        self._say(f"{event}.done", **{key: text}, **more, **where)
        part = {**empty, key: text} | ({} if kind == "refusal" else {"annotations": notes})
        self._say("response.content_part.done", part=part, **where)
        return self._end({"id": id, "content": [part], "phase": phase})

    def reasoning(self, *parts: str | tuple[str, ...], encrypted: str = "gAAAA-sealed", id: str = "") -> Talk:
        """A thought: parts of its summary, each in pieces."""
        at, id = self._begin("reasoning", id, summary=[], encrypted_content=encrypted[:4])
        summary = []
        for number, part in enumerate(parts):
            pieces = (part,) if isinstance(part, str) else part
            where = {"item_id": id, "output_index": at, "summary_index": number}
            self._say("response.reasoning_summary_part.added", part={"type": "summary_text", "text": ""}, **where)
            for piece in pieces:
                self._say("response.reasoning_summary_text.delta", delta=piece, **where)
            whole = {"type": "summary_text", "text": "".join(pieces)}
            self._say("response.reasoning_summary_text.done", text=whole["text"], **where)
            self._say("response.reasoning_summary_part.done", part=whole, **where)
            summary.append(whole)
        return self._end({"id": id, "summary": summary, "encrypted_content": encrypted})

    def call(self, name: str, *pieces: str, call_id: str = "", id: str = "") -> Talk:
        """A call, its arguments in pieces."""
        at, id = self._begin(
            "function_call", id, name=name, call_id=call_id or f"call_{len(self.output)}", arguments=""
        )
        for piece in pieces:
            self._say("response.function_call_arguments.delta", item_id=id, output_index=at, delta=piece)
        whole = "".join(pieces)
        done = {"item_id": id, "output_index": at, "arguments": whole, "name": name}
        self._say("response.function_call_arguments.done", **done)
        return self._end({"id": id, "arguments": whole})

    def search(self, query: str, *sources: str, status: str = "completed") -> Talk:
        """A search of the web by the server."""
        action: dict[str, Any] = {"type": "search", "query": query, "queries": [query]}
        if sources:
            action["sources"] = [{"type": "url", "url": url} for url in sources]
        at, id = self._begin("web_search_call", status="in_progress", action=action)
        for word in ("in_progress", "searching", "completed"):
            self._say(f"response.web_search_call.{word}", item_id=id, output_index=at)
        return self._end({"id": id, "action": action}, status)

    def end(self, status: str = "completed", *, usage: Any = USAGE, **fields: Any) -> list[dict[str, Any]]:
        """The event that ends it; all events."""
        self._say(f"response.{status}", response=self._response(status, output=self.output, usage=usage) | fields)
        return self.events

    def document(self, status: str = "completed", *, usage: Any = USAGE, **fields: Any) -> dict[str, Any]:
        """The same answer as one document."""
        found = self._response(status, output=self.output, usage=usage) | fields
        Response.model_validate(found)
        return found

    def _begin(self, kind: str, id: str = "", **fields: Any) -> tuple[int, str]:
        at = len(self.output)
        item = {"type": kind, "id": id or f"{kind[:2]}_{at}", **fields}
        self.output.append(item)
        self._say("response.output_item.added", output_index=at, item=dict(item))
        return at, item["id"]

    def _end(self, item: dict[str, Any], status: str = "completed") -> Talk:
        at = len(self.output) - 1
        whole = self.output[at] | item
        if whole["type"] != "reasoning":
            whole["status"] = status
        self.output[at] = whole
        self._say("response.output_item.done", output_index=at, item=whole)
        return self

    def _say(self, type: str, **fields: Any) -> None:
        event = {"type": type, "sequence_number": len(self.events), **fields}
        _event_type().validate_python(event)
        self.events.append(event)

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        found = {
            "id": self.id,
            "object": "response",
            "created_at": 1,
            "status": status,
            "model": "gpt-5.5-2026-04-23",
            "error": None,
            "incomplete_details": None,
            "instructions": "Be brief.",
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": None,
        }
        return found | {name: value for name, value in fields.items() if name != "usage" or value is not None}


@cache
def _event_type() -> TypeAdapter[Any]:
    return TypeAdapter(ResponseStreamEvent)


def a_full_talk() -> Talk:
    """A thought in two parts, a remark, two calls."""
    talk = Talk().reasoning(("I should ", "look."), "Both files.", encrypted="gAAAA1", id="rs_1")
    talk.message("I look ", "at both.", phase="commentary")
    return talk.call("Read", '{"path"', ':"a"}', call_id="call_a").call("Read", "{}", call_id="call_b")


#: What it says.
FULL = [
    ("thinking", "I should look.\n\nBoth files."),
    ("text", "I look at both."),
    ("tool_use", ("call_a", "Read", {"path": "a"})),
    ("tool_use", ("call_b", "Read", {})),
]


def without(events: Iterable[dict[str, Any]], *types: str) -> list[dict[str, Any]]:
    """The events but those of these types (or whose type ends so)."""
    return [event for event in events if not event["type"].endswith(types)]


class Heard:
    """An answer as the client gets it: the stream's ``data``, the ``message`` that it spells (so far, where it failed),
    its ``failure``. What else it has is that of answers that did not fail."""

    def __init__(self, data: bytes, writer: MessageWriter) -> None:
        self.data = data
        self.writer = writer
        self.failure = writer.failure
        self.notes = writer.translation.notes
        self.events = [json.loads(event.split(b"data: ", 1)[1]) for event in data.split(b"\n\n") if event]
        self.message: dict[str, Any] = {}
        if writer.failure is None:
            self.message = check_stream(data)
        elif data:
            reader = Reader()
            with pytest.raises(StreamError) as raised:
                reader.feed(data)
            self.message = reader.message
            assert raised.value.error == writer.failure.body()["error"]

    @property
    def content(self) -> list[dict[str, Any]]:
        assert self.failure is None
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
        """As message_delta tells it."""
        return next(event for event in self.events if event["type"] == "message_delta")["usage"]


def _inside(block: dict[str, Any]) -> Any:
    if block["type"] == "tool_use":
        return (block["id"], block["name"], block["input"])
    return block.get(block["type"])


def heard(
    events: Iterable[dict[str, Any] | bytes], translation: Translation | None = None, *, named: bool = True
) -> Heard:
    """What becomes of these events (or of these bytes as the data of one). ``named`` as OpenAI's events are."""
    translation = translation or a_translation()
    writer = MessageWriter(translation)
    reader = RESPONSES.stream(translation, writer)
    out = []
    for event in events:
        if isinstance(event, bytes):
            reader.feed(b"", event)
        else:
            name = event.get("type") or event["name"]
            reader.feed(name.encode() if named else b"", json.dumps(event, ensure_ascii=False).encode())
        out.append(writer.take())
    reader.end()
    assert writer.done
    return Heard(b"".join([*out, writer.take()]), writer)


def read(document: Any, translation: Translation | None = None) -> Heard:
    """What becomes of this document (or of these bytes)."""
    translation = translation or a_translation()
    writer = MessageWriter(translation)
    RESPONSES.document(document if isinstance(document, bytes) else json.dumps(document).encode(), translation, writer)
    assert writer.done
    return Heard(writer.take(), writer)


def seen(heard: Heard) -> list[dict[str, Any]]:
    """The content as a client sends it back."""
    return [{name: value for name, value in block.items() if name != "citations"} for block in heard.content]


__all__ = [
    "ASKED",
    "CITED",
    "FULL",
    "GPT",
    "PLAIN",
    "USAGE",
    "WHOLE",
    "Capabilities",
    "Heard",
    "Talk",
    "a_full_talk",
    "a_tool",
    "a_translation",
    "check_request",
    "heard",
    "items",
    "read",
    "seen",
    "sent",
    "without",
]
