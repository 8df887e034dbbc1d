"""OpenAI's Responses as a server speaks it: items and their events out, requests in.

Owns the spelling (API facts 5.2) for the fake server and for the conformance kit. Must never import the codec.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dbproxy.model.codecs.capabilities import Capabilities
from dbproxy.model.codecs.request import Call, Part, Result, Text, Thinking, Tool, Turn
from dbproxy.testing.codecs.dialect import WORDS, Dialect, Seen, Speech
from dbproxy.testing.providers import responses_rules
from dbproxy.testing.providers.signatures import SEALED
from dbproxy.testing.providers.spelling import FAILED_MARK, choice_of, dumped, event, from_data_url, texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.testing.codecs.dialect import Counts, Said


def usage(counts: Counts) -> dict[str, Any]:
    """Counts as this API tells them: the input includes what the cache read (API facts 5.2)."""
    read = counts.input + counts.cache_read
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": 0},
        "output_tokens": counts.output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + counts.output,
    }


class _Item:
    """One item of the output on its way."""

    def __init__(self, index: int, value: dict[str, Any]) -> None:
        self.index = index
        self.value = value  # as it will be when it is complete
        self.over = False


class ResponsesSpeech(Speech):
    """One answer as events. A reasoning item carries ciphertext if the client asked for it (``sealed``)."""

    def __init__(self, *, model: str, id: str, sealed: bool = True) -> None:
        base = {"id": id, "object": "response", "created_at": 1_790_000_000, "model": model, "error": None}
        self._base = {**base, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        self._sealed = sealed
        self._number = 0
        self._items: list[_Item] = []
        self._calls: dict[int, _Item] = {}

    def begin(self) -> bytes:
        told = {"response": self._response("in_progress", None)}
        return self._event("response.created", **told) + self._event("response.in_progress", **told)

    def text(self, piece: str) -> bytes:
        out, item = self._open("message")
        item.value["content"][0]["text"] += piece
        place = self._place(item, content_index=0)
        return out + self._event("response.output_text.delta", **place, delta=piece, logprobs=[])

    def thinking(self, piece: str) -> bytes:
        out, item = self._open("reasoning")
        item.value["summary"][0]["text"] += piece
        return out + self._event(
            "response.reasoning_summary_text.delta", **self._place(item, summary_index=0), delta=piece
        )

    def call(self, key: int, *, id: str = "", name: str = "", arguments: str = "") -> bytes:
        out = b""
        item = self._calls.get(key)
        if item is None:
            out = self._close_text()
            value = {"id": f"fc_{key}", "type": "function_call", "status": "completed", "arguments": ""}
            item = self._calls[key] = self._add({**value, "call_id": id, "name": name})
            out += self._added(item, {**item.value, "status": "in_progress"})
        if not arguments:
            return out
        item.value["arguments"] += arguments
        return out + self._event("response.function_call_arguments.delta", **self._place(item), delta=arguments)

    def done(self, key: int) -> bytes:
        item = self._calls[key]
        item.over = True
        told = {"name": item.value["name"], "arguments": item.value["arguments"]}
        return self._event("response.function_call_arguments.done", **self._place(item), **told) + self._item_done(item)

    def end(self, stop: str, tokens: Counts | None) -> bytes:
        out = self._close_text()
        cut = {"max_tokens": "max_output_tokens", "refusal": "content_filter"}.get(stop)
        for item in self._items:
            if not item.over:  # a call that was cut
                item.value["status"] = "incomplete"
                out += self._item_done(item)
        status = "incomplete" if cut else "completed"
        whole = self._response(status, tokens)
        whole["incomplete_details"] = {"reason": cut} if cut else None
        return out + self._event(f"response.{status}", response=whole)

    def error(self, kind: str, message: str) -> bytes:
        whole = self._response("failed", None)
        whole["error"] = {"code": "server_error", "message": message}
        return self._event("response.failed", response=whole)

    # ---- items

    def _add(self, value: dict[str, Any]) -> _Item:
        item = _Item(len(self._items), value)
        self._items.append(item)
        return item

    def _open(self, kind: str) -> tuple[bytes, _Item]:
        """The item for more of this kind, and the events that open it."""
        last = self._items[-1] if self._items else None
        if last is not None and last.value["type"] == kind and not last.over:
            return b"", last
        out = self._close_text()
        number = len(self._items)
        if kind == "message":
            content = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            value = {"id": f"msg_{number}", "type": "message", "status": "completed", "role": "assistant"}
            item = self._add({**value, "content": [content]})
            out += self._added(item, {**item.value, "status": "in_progress", "content": []})
            return out + self._event(
                "response.content_part.added", **self._place(item, content_index=0), part=content
            ), item
        summary = {"type": "summary_text", "text": ""}
        thought: dict[str, Any] = {"id": f"rs_{number}", "type": "reasoning", "summary": [summary]}
        item = self._add(thought)
        if self._sealed:
            thought["encrypted_content"] = f"{SEALED}sealed-{number}"
        out += self._added(item, {**thought, "summary": []})
        return out + self._event(
            "response.reasoning_summary_part.added", **self._place(item, summary_index=0), part=summary
        ), item

    def _close_text(self) -> bytes:
        """End the text or the reasoning that is open, if any is."""
        last = self._items[-1] if self._items else None
        if last is None or last.over or last.value["type"] == "function_call":
            return b""
        last.over = True
        if last.value["type"] == "message":
            part, place = last.value["content"][0], self._place(last, content_index=0)
            out = self._event("response.output_text.done", **place, text=part["text"], logprobs=[])
            out += self._event("response.content_part.done", **place, part=part)
        else:
            part, place = last.value["summary"][0], self._place(last, summary_index=0)
            out = self._event("response.reasoning_summary_text.done", **place, text=part["text"])
            out += self._event("response.reasoning_summary_part.done", **place, part=part)
        return out + self._item_done(last)

    def _added(self, item: _Item, value: dict[str, Any]) -> bytes:
        return self._event("response.output_item.added", output_index=item.index, item=value)

    def _item_done(self, item: _Item) -> bytes:
        return self._event("response.output_item.done", output_index=item.index, item=item.value)

    def _place(self, item: _Item, **more: int) -> dict[str, Any]:
        return {"item_id": item.value["id"], "output_index": item.index, **more}

    def _response(self, status: str, tokens: Counts | None) -> dict[str, Any]:
        output = [item.value for item in self._items]
        counted = usage(tokens) if tokens is not None else None
        return {**self._base, "status": status, "incomplete_details": None, "output": output, "usage": counted}

    def _event(self, kind: str, **keys: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **keys}, kind)


def response(
    parts: Sequence[Said], stop: str, tokens: Counts | None, *, model: str, id: str, sealed: bool = True
) -> dict[str, Any]:
    """The same answer as one document: that of the last event."""
    speech = ResponsesSpeech(model=model, id=id, sealed=sealed)
    for number, part in enumerate(parts):
        if isinstance(part, Call):
            speech.call(number, id=part.id, name=part.name, arguments=dumped(part.arguments))
            speech.done(number)
        elif isinstance(part, Thinking):
            speech.thinking(part.text)
        else:
            speech.text(part.text)
    last = speech.end(stop, tokens).rstrip().rpartition(b"\ndata: ")[2]
    found: dict[str, Any] = json.loads(last)["response"]
    return found


class ResponsesDialect(Dialect):
    """Responses."""

    name = "responses"
    model = "gpt-5.5"
    family = "openai"
    capabilities = Capabilities(api="responses", documents=True, efforts=("low", "medium", "high"), family="openai")
    # A function call has its name and its call_id from its first event on (API facts 5.2).
    can = WORDS - {"late names", "no ids"}

    def speak(self) -> Speech:
        return ResponsesSpeech(model=self.model, id="resp_kit")

    def document(self, parts: Sequence[Said], stop: str, tokens: Counts | None) -> bytes:
        return dumped(response(parts, stop, tokens, model=self.model, id="resp_kit")).encode()

    def read(self, body: bytes) -> Seen:
        given = json.loads(body)
        responses_rules.check(given)
        system = [given["instructions"]] if given.get("instructions") else []
        turns: list[Turn] = []
        items = given["input"]
        for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
            role = item.get("role")
            if role in ("system", "developer") and not turns:
                system += texts(item["content"])
            else:
                turns.append(_turn(item))
        chosen = given.get("tool_choice")
        named = chosen["name"] if isinstance(chosen, dict) else ""
        return Seen(
            turns=tuple(turns),
            system=tuple(system),
            tools=tuple(_tool(tool) for tool in given.get("tools", []) if tool["type"] == "function"),
            choice=choice_of(chosen, named, single=given.get("parallel_tool_calls") is False),
            model=given["model"],
            stream=given.get("stream", False),
            max_tokens=given.get("max_output_tokens"),
        )


def _tool(tool: dict[str, Any]) -> Tool:
    return Tool(tool["name"], tool.get("description") or "", tool["parameters"], tool.get("strict"))


def _turn(item: dict[str, Any]) -> Turn:
    kind = item.get("type", "message")
    if kind == "function_call":
        return Turn("assistant", (Call(item["call_id"], item["name"], json.loads(item["arguments"])),))
    if kind == "function_call_output":
        output = item["output"]
        parts = (Text(output),) if isinstance(output, str) else tuple(_part(part) for part in output)
        first = parts[0] if parts else None
        failed = isinstance(first, Text) and first.text.startswith(FAILED_MARK)
        return Turn("user", (Result(item["call_id"], "", parts, failed),))  # type: ignore[arg-type]
    if kind == "reasoning":
        said = "".join(part["text"] for part in item["summary"])
        return Turn("assistant", (Thinking(said, item.get("encrypted_content") or ""),))
    if kind != "message":
        return Turn("assistant", (Text(dumped(item)),))
    role = item["role"]
    content = item["content"]
    told = (Text(content),) if isinstance(content, str) else tuple(_part(part) for part in content)
    return Turn("system" if role in ("system", "developer") else role, told)


def _part(part: dict[str, Any]) -> Part:
    if part["type"] in ("input_text", "output_text", "refusal"):
        return Text(part.get("text") or part.get("refusal", ""))
    if part["type"] == "input_image":
        return from_data_url(part["image_url"])
    return from_data_url(part.get("file_data") or part["file_url"], title=part.get("filename", ""))
