"""A Messages request for a server that speaks Messages and is not Anthropic's.

Owns which keys, blocks and marks such servers know; everything else is left out, or said in words. Pure. Sources: API
facts 5.5 (what to strip), seed-001 sections 3.1 to 3.3, the servers' own pages on what they take.

Invariants: nothing that tells who the user is; no thought but those of this very family; user and assistant speak in
turns; each call is answered at once, by results that stand before anything else of the user's; no text is empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs import effort, flatten
from dbproxy.model.codecs.lacking import lacking
from dbproxy.model.codecs.naming import upstream_id
from dbproxy.model.codecs.native.common import blocks_of, budget_of, is_result, spoken_by_user
from dbproxy.model.codecs.request import INTERRUPTED, NO_OUTPUT, Unroutable
from dbproxy.model.codecs.vault import split_signature

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbproxy.model.codecs.request import Request
    from dbproxy.model.codecs.translation import Translation

_BILLING: Final = "x-anthropic-billing-header:"
#: What an answer may have at most where neither the client nor the table tells; the dialect demands a number.
_USUAL_LENGTH: Final = 32_000
#: What a request may ask for that these servers do not know, and can be missed but by who asked for it.
_LEFT_OUT: Final = ("mcp_servers", "container", "inference_geo", "speed", "service_tier")
_STRAY: Final = "[result of a call that is not in this history]"


def foreign_body(request: Request, translation: Translation) -> dict[str, Any]:
    """The body. Sets ``translation.stops`` and ``.single`` for what must be seen to here. Raises Unroutable."""
    reason = lacking(request, translation.capabilities) or _no_twin(request)
    if reason:
        raise Unroutable(reason)
    return _Foreign(request, translation).body()


def _no_twin(request: Request) -> str:
    """The server tool that only Anthropic's server knows, "" if there is none."""
    tool = next((feature for feature in sorted(request.features) if feature.startswith("server tool ")), "")
    return f"the {tool}, which only Anthropic's server knows" if tool else ""


class _Foreign:
    def __init__(self, request: Request, translation: Translation) -> None:
        self.request = request
        self.translation = translation
        self.can = translation.capabilities
        self.raw = request.raw
        self.marks = "cache_control" not in self.can.refuses

    def body(self) -> dict[str, Any]:
        values: dict[str, Any] = {"model": self.translation.model, "max_tokens": self._length()}
        system = self._system()
        if system:
            values["system"] = system
        values["messages"] = _paired(self._messages())
        self._tools(values)
        self._sampling(values)
        self._thinking(values)
        if self.request.user and "metadata" not in self.can.refuses:
            values["metadata"] = {"user_id": self.request.user}
        if "stream" in self.raw:
            values["stream"] = self.request.stream
        for name in _LEFT_OUT:
            if self.raw.get(name):
                self.translation.note(f"{name} was left out: the server has no such thing")
        return values

    def _length(self) -> int:
        """The most tokens that may come: no more than the model can, and no more than fit behind the prompt, since some
        servers refuse a request whose limits do not fit together."""
        asked = self.request.max_tokens
        most = asked or self.can.output or _USUAL_LENGTH
        if self.can.output:
            most = min(most, self.can.output)
        room = self.can.context - self.translation.estimate
        if self.can.context and room > 0:
            most = min(most, room)
        if asked is not None and most < asked:
            self.translation.note(f"max_tokens was {asked}, and is {most} for this model")
        return most

    def _sampling(self, values: dict[str, Any]) -> None:
        for name in ("temperature", "top_p", "top_k"):
            if self.raw.get(name) is not None and self._may(name):
                values[name] = self.raw[name]
        if self.request.stop:
            if "stop" in self.can.refuses or "stop_sequences" in self.can.refuses:
                self.translation.stops = self.request.stop
            else:
                values["stop_sequences"] = list(self.request.stop)

    def _may(self, name: str) -> bool:
        if name in self.can.refuses:
            self.translation.note(f"{name} was left out: the model refuses it")
            return False
        return True

    # ---- thinking and form

    def _thinking(self, values: dict[str, Any]) -> None:
        asked = self.request.effort
        config: dict[str, Any] = {}
        on, off = asked not in ("", "none"), "none" in self.can.efforts
        if not self.can.thinking:
            if on and not self.can.efforts:
                self.translation.note("thinking was left out: the model knows no such thing")
        elif asked == "none":
            if off:
                values["thinking"] = {"type": "disabled"}
        elif on and self.can.thinking == "adaptive":
            values["thinking"] = {"type": "adaptive"}
        elif on:
            budget = budget_of(self.request, values["max_tokens"])
            if budget:
                values["thinking"] = {"type": "enabled", "budget_tokens": budget}
            else:
                self.translation.note("thinking was left out: max_tokens leaves no room for it")
        word = effort.nearest(asked, [known for known in self.can.efforts if asked == "none" or known != "none"])
        if word and word != "none":
            config["effort"] = word
            if word != asked:
                self.translation.note(f"effort {asked} became {word}")
        form = shapes.mapping(self.raw.get("output_config")).get("format")
        if isinstance(form, dict) and form:
            if self.can.structured:
                config["format"] = form
            else:
                self.translation.note("the answer's schema was left out: the model takes none")
        if config:
            values["output_config"] = config

    # ---- tools

    def _tools(self, values: dict[str, Any]) -> None:
        choice = self.request.choice
        if choice is not None and choice.single:
            self.translation.single = True
        if not self.request.tools:
            return
        marks = {
            shapes.text(tool.get("name")): self._mark(tool)
            for tool in map(shapes.mapping, shapes.sequence(self.raw.get("tools")))
        }
        values["tools"] = [
            {
                "name": self.translation.names.out(tool.name),
                "description": tool.description,
                "input_schema": tool.schema,
                **marks.get(tool.name, {}),
            }
            for tool in self.request.tools
        ]
        if choice is None or not self._may("tool_choice"):
            return
        found: dict[str, Any] = {"type": choice.mode}
        if choice.mode == "tool":
            found["name"] = self.translation.names.out(choice.name)
        if choice.mode in ("any", "tool") and "forced_tool_choice" in self.can.refuses:
            found = {"type": "auto"}
            self.translation.note("tool_choice became auto: the model cannot be made to call a tool")
        if choice.single and choice.mode != "none" and "parallel_tool_calls" not in self.can.refuses:
            found["disable_parallel_tool_use"] = True
        values["tool_choice"] = found

    # ---- texts

    def _system(self) -> str | list[dict[str, Any]]:
        given = self.raw.get("system")
        if isinstance(given, str):
            return "\n\n".join(self.request.system)
        return [
            self._text(block, shapes.text(block.get("text")))
            for block in map(shapes.mapping, shapes.sequence(given))
            if _is_said(block)
        ]

    def _messages(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """(role, blocks) of each message that says anything."""
        for message in spoken_by_user(shapes.sequence(self.raw.get("messages"))):
            role = "assistant" if message.get("role") == "assistant" else "user"
            say = self._by_assistant if role == "assistant" else self._by_user
            blocks = [one for block in blocks_of(message.get("content")) for one in say(shapes.mapping(block))]
            if blocks:
                yield role, blocks

    def _by_assistant(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kind = block.get("type")
        if kind == "thinking":
            maker, payload = split_signature(shapes.text(block.get("signature")))
            if maker and maker == self.translation.family:
                yield {"type": "thinking", "thinking": shapes.text(block.get("thinking")), "signature": payload}
        elif kind == "tool_use":
            name = self.translation.names.out(shapes.text(block.get("name")))
            call = {"type": "tool_use", "id": upstream_id(shapes.text(block.get("id"))), "name": name}
            yield {**call, "input": shapes.mapping(block.get("input")), **self._mark(block)}
        elif kind not in ("redacted_thinking", "tool_result"):
            yield from self._content(block)

    def _by_user(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kind = block.get("type")
        if kind == "tool_result":
            content = block.get("content")
            inner = [one for part in blocks_of(content) for one in self._content(shapes.mapping(part))]
            found = {"type": "tool_result", "tool_use_id": upstream_id(shapes.text(block.get("tool_use_id")))}
            yield {
                **found,
                "content": content if isinstance(content, str) and content else inner or NO_OUTPUT,
                **({"is_error": True} if block.get("is_error") is True else {}),
                **self._mark(block),
            }
        elif kind not in ("thinking", "redacted_thinking", "tool_use", "tool_addition", "tool_removal"):
            yield from self._content(block)

    def _content(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A block that may stand in a message as well as in a result."""
        kind = shapes.text(block.get("type"))
        source = shapes.mapping(block.get("source"))
        form = shapes.text(source.get("type"))
        if kind == "text":
            if _is_said(block):
                yield self._text(block, block["text"])
        elif kind in ("image", "document") and form in ("base64", "url"):
            title = shapes.text(block.get("title"))
            yield {"type": kind, "source": source, **({"title": title} if title else {}), **self._mark(block)}
        elif kind == "document" and form == "content":
            for part in blocks_of(source.get("content")):
                yield from self._content(shapes.mapping(part))
        elif kind == "tool_reference":
            name = shapes.text(block.get("tool_name")) or shapes.text(block.get("name"))
            yield self._text(block, f"[Loaded tool: {name}]")
        else:
            text = flatten.as_text(kind, block)
            if text:
                yield self._text(block, text)

    def _text(self, block: dict[str, Any], text: str) -> dict[str, Any]:
        return {"type": "text", "text": text, **self._mark(block)}

    def _mark(self, block: dict[str, Any]) -> dict[str, Any]:
        """Its cache mark: some pass it on to those who know it, others ignore it. ``scope`` is Anthropic's own."""
        mark = block.get("cache_control")
        if not self.marks or not isinstance(mark, dict):
            return {}
        return {"cache_control": {name: value for name, value in mark.items() if name != "scope"}}


def _is_said(block: dict[str, Any]) -> bool:
    """Is it a text that is not empty, and not the attribution?"""
    text = shapes.text(block.get("text"))
    return bool(text) and not text.startswith(_BILLING)


def _paired(messages: Iterator[tuple[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """The messages, neighbours of one role as one, each call answered in the message behind it."""
    merged: list[tuple[str, list[dict[str, Any]]]] = []
    for role, blocks in messages:
        if merged and merged[-1][0] == role:
            merged[-1][1].extend(blocks)
        else:
            merged.append((role, blocks))
    found: list[dict[str, Any]] = []
    waiting: list[str] = []  # calls without results yet
    for role, blocks in merged:
        if role == "user":
            blocks = _answered(waiting, blocks)
            waiting = []
        else:
            waiting = [block["id"] for block in blocks if block["type"] == "tool_use"]
        found.append({"role": role, "content": blocks})
    if waiting:
        found.append({"role": "user", "content": _answered(waiting, [])})
    return found


def _answered(calls: list[str], blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks with exactly one result for each call first; other results are no results of anything."""
    results: dict[str, dict[str, Any]] = {}
    rest: list[dict[str, Any]] = []
    for block in blocks:
        if not is_result(block):
            rest.append(block)
        elif block["tool_use_id"] in calls:
            results.setdefault(block["tool_use_id"], block)
        else:
            content = block["content"]
            rest.append({"type": "text", "text": _STRAY})
            rest.extend(blocks_of(content))
    missing = {"type": "tool_result", "content": INTERRUPTED, "is_error": True}
    return [*(results.get(id) or {**missing, "tool_use_id": id} for id in dict.fromkeys(calls)), *rest]
