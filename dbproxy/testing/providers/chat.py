"""OpenAI's Chat Completions as a server speaks it: chunks out, requests in.

Owns the spelling (API facts 5.1) for the fake server and for the conformance kit. Must never import the codec.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model.codecs.capabilities import Capabilities
from dbproxy.model.codecs.request import Call, Image, Part, Result, Text, Thinking, Tool, Turn
from dbproxy.testing.codecs.dialect import WORDS, Dialect, Seen, Speech
from dbproxy.testing.providers import chat_rules
from dbproxy.testing.providers.spelling import FAILED_MARK, choice_of, dumped, event, from_data_url, texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.testing.codecs.dialect import Counts, Said

ENDS: Final = {"end_turn": "stop", "tool_use": "tool_calls", "max_tokens": "length", "refusal": "content_filter"}
DONE: Final = b"data: [DONE]\n\n"


def usage(counts: Counts) -> dict[str, Any]:
    """Counts as this API tells them: the prompt includes what the cache read (API facts 5.1)."""
    prompt = counts.input + counts.cache_read
    return {
        "prompt_tokens": prompt,
        "completion_tokens": counts.output,
        "total_tokens": prompt + counts.output,
        "prompt_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def fault(kind: str, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error's body. ``kind`` is an error type of the Messages API, or this API's own."""
    known = {"overloaded_error": "server_error", "api_error": "server_error", "rate_limit_error": "requests"}
    codes = {"rate_limit_error": "rate_limit_exceeded"}
    told = {"message": message, "type": known.get(kind, kind), "param": param, "code": code or codes.get(kind)}
    return {"error": told}


class ChatSpeech(Speech):
    """One answer in chunks. ``reasoning`` is the key of what was thought, which compatible servers have and OpenAI
    does not (seed-001 4.2); with ``counted=False`` the client did not ask for usage."""

    def __init__(self, *, model: str, id: str, reasoning: str = "reasoning_content", counted: bool = True) -> None:
        self._base = {"id": id, "object": "chat.completion.chunk", "created": 1_790_000_000, "model": model}
        self._reasoning = reasoning
        self._counted = counted
        self._calls: dict[int, int] = {}  # the kit's number of a call -> its index among the calls

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text(self, piece: str) -> bytes:
        return self._chunk({"content": piece})

    def thinking(self, piece: str) -> bytes:
        return self._chunk({self._reasoning: piece})

    def call(self, key: int, *, id: str = "", name: str = "", arguments: str = "") -> bytes:
        first = key not in self._calls
        told: dict[str, Any] = {"index": self._calls.setdefault(key, len(self._calls))}
        if id:
            told["id"] = id
        if first:
            told["type"] = "function"
        told["function"] = {**({"name": name} if name else {}), "arguments": arguments}
        return self._chunk({"tool_calls": [told]})

    def end(self, stop: str, tokens: Counts | None) -> bytes:
        last = self._chunk({}, finish=ENDS[stop])
        if tokens is not None and self._counted:
            last += event({**self._base, "choices": [], "usage": usage(tokens)})
        return last + DONE

    def error(self, kind: str, message: str) -> bytes:
        return event(fault(kind, message))

    def _chunk(self, delta: dict[str, Any], *, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._base, "choices": [choice]})


def completion(
    parts: Sequence[Said],
    stop: str,
    tokens: Counts | None,
    *,
    model: str,
    id: str,
    reasoning: str = "reasoning_content",
) -> dict[str, Any]:
    """The same answer as one document."""
    said = "".join(part.text for part in parts if isinstance(part, Text))
    thought = "".join(part.text for part in parts if isinstance(part, Thinking))
    calls = [
        {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": dumped(part.arguments)}}
        for part in parts
        if isinstance(part, Call)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": said or None, "refusal": None, "annotations": []}
    if thought:
        message[reasoning] = thought
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ENDS[stop]}
    whole = {"id": id, "object": "chat.completion", "created": 1_790_000_000, "model": model, "choices": [choice]}
    return {**whole, "usage": usage(tokens)} if tokens is not None else whole


class ChatDialect(Dialect):
    """Chat Completions, with the reasoning that compatible servers tell."""

    name = "chat"
    model = "gpt-4o"
    family = "openai"
    capabilities = Capabilities(output=16_384, documents=True, reasoning="reasoning_content", family="openai")
    can = WORDS

    def speak(self) -> Speech:
        return ChatSpeech(model=self.model, id="chatcmpl-kit")

    def document(self, parts: Sequence[Said], stop: str, tokens: Counts | None) -> bytes:
        return dumped(completion(parts, stop, tokens, model=self.model, id="chatcmpl-kit")).encode()

    def read(self, body: bytes) -> Seen:
        given = json.loads(body)
        chat_rules.check(given)
        system: list[str] = []
        turns: list[Turn] = []
        for message in given["messages"]:
            if message["role"] in ("system", "developer"):
                if turns:
                    turns.append(Turn("system", tuple(Text(text) for text in texts(message["content"]))))
                else:
                    system += texts(message["content"])
            else:
                turns.append(_turn(message))
        chosen = given.get("tool_choice")
        named = chosen["function"]["name"] if isinstance(chosen, dict) else ""
        return Seen(
            turns=tuple(turns),
            system=tuple(system),
            tools=tuple(_tool(tool["function"]) for tool in given.get("tools", [])),
            choice=choice_of(chosen, named, single=given.get("parallel_tool_calls") is False),
            model=given["model"],
            stream=given.get("stream", False),
            max_tokens=given.get("max_completion_tokens", given.get("max_tokens")),
        )


def _tool(function: dict[str, Any]) -> Tool:
    return Tool(function["name"], function.get("description", ""), function["parameters"], function.get("strict"))


def _turn(message: dict[str, Any]) -> Turn:
    if message["role"] == "tool":
        said = tuple(Text(text) for text in texts(message["content"]))
        failed = bool(said) and said[0].text.startswith(FAILED_MARK)
        return Turn("user", (Result(message["tool_call_id"], "", said, failed),))
    parts: list[Part] = []
    if message.get("reasoning_content"):
        parts.append(Thinking(message["reasoning_content"]))
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    for part in content or []:
        if part["type"] in ("text", "refusal"):
            parts.append(Text(part.get("text") or part.get("refusal")))
        elif part["type"] == "image_url":
            parts.append(_picture(part["image_url"]["url"]))
        else:
            parts.append(from_data_url(part["file"]["file_data"], title=part["file"].get("filename", "")))
    parts += [_call(call) for call in message.get("tool_calls", [])]
    return Turn("assistant" if message["role"] == "assistant" else "user", tuple(parts))


def _call(call: dict[str, Any]) -> Call:
    return Call(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))


def _picture(url: str) -> Image:
    found = from_data_url(url)
    if not isinstance(found, Image):
        raise ValueError("an image_url that is no picture")
    return found
