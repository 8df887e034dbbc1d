"""Gemini's generateContent as a server speaks it: candidates in whole parts out, requests in.

Owns the spelling (API facts 5.4) for the fake server and for the conformance kit. Must never import the codec.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model.codecs.capabilities import Capabilities
from dbproxy.model.codecs.request import Call, Choice, Document, Image, Part, Result, Text, Thinking, Tool, Turn
from dbproxy.testing.codecs.dialect import WORDS, Dialect, Seen, Speech
from dbproxy.testing.providers import gemini_rules
from dbproxy.testing.providers.signatures import thought_signature
from dbproxy.testing.providers.spelling import dumped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.testing.codecs.dialect import Counts, Said

ENDS: Final = {"end_turn": "STOP", "tool_use": "STOP", "max_tokens": "MAX_TOKENS", "refusal": "SAFETY"}
MODES: Final = {"AUTO": "auto", "ANY": "any", "NONE": "none", "VALIDATED": "auto"}


def usage(counts: Counts) -> dict[str, Any]:
    """Counts as this API tells them: the prompt includes what the cache read (API facts 5.4)."""
    prompt = counts.input + counts.cache_read
    told = {"promptTokenCount": prompt, "candidatesTokenCount": counts.output, "thoughtsTokenCount": 0}
    return {**told, "cachedContentTokenCount": counts.cache_read, "totalTokenCount": prompt + counts.output}


def fault(status: int, message: str) -> dict[str, Any]:
    """An error's body; the word follows from the status (Google's error model, AIP-193)."""
    words = {
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }
    return {"error": {"code": status, "message": message, "status": words.get(status, "UNKNOWN")}}


def part_of(said: Said, *, signed: bool) -> dict[str, Any]:
    """A part of an answer; ``signed`` puts a signature beside a call."""
    if isinstance(said, Call):
        told: dict[str, Any] = {"functionCall": {"name": said.name, "args": said.arguments}}
        if said.id:
            told["functionCall"]["id"] = said.id
        return {**told, "thoughtSignature": thought_signature(said.name)} if signed else told
    return {"text": said.text, "thought": True} if isinstance(said, Thinking) else {"text": said.text}


class GeminiSpeech(Speech):
    """One answer in chunks. The first call of an answer is signed (Gemini API, page "Thought signatures")."""

    def __init__(self, *, model: str, id: str) -> None:
        self._base = {"modelVersion": model, "responseId": id}
        self._signed = False

    def text(self, piece: str) -> bytes:
        return self._chunk(part_of(Text(piece), signed=False))

    def thinking(self, piece: str) -> bytes:
        return self._chunk(part_of(Thinking(piece), signed=False))

    def call(self, key: int, *, id: str = "", name: str = "", arguments: str = "") -> bytes:
        first, self._signed = not self._signed, True
        return self._chunk(part_of(Call(id, name, json.loads(arguments or "{}")), signed=first))

    def end(self, stop: str, tokens: Counts | None) -> bytes:
        return self._chunk({"text": ""}, finish=ENDS[stop], tokens=tokens)

    def error(self, kind: str, message: str) -> bytes:
        return _event(fault(429 if kind == "rate_limit_error" else 503, message))

    def _chunk(self, part: dict[str, Any], *, finish: str = "", tokens: Counts | None = None) -> bytes:
        candidate: dict[str, Any] = {"content": {"parts": [part], "role": "model"}, "index": 0}
        if finish:
            candidate["finishReason"] = finish
        told: dict[str, Any] = {"candidates": [candidate], **self._base}
        return _event({**told, "usageMetadata": usage(tokens)} if tokens is not None else told)


def _event(value: Any) -> bytes:
    return f"data: {dumped(value)}\r\n\r\n".encode("utf-8", "surrogatepass")


def answer(parts: Sequence[Said], stop: str, tokens: Counts | None, *, model: str, id: str) -> dict[str, Any]:
    """The same answer as one document."""
    told: list[dict[str, Any]] = []
    for said in parts:
        told.append(part_of(said, signed=not any("functionCall" in part for part in told)))
    candidate = {"content": {"parts": told, "role": "model"}, "finishReason": ENDS[stop], "index": 0}
    whole = {"candidates": [candidate], "modelVersion": model, "responseId": id}
    return {**whole, "usageMetadata": usage(tokens)} if tokens is not None else whole


class GeminiDialect(Dialect):
    """generateContent. The model and whether the answer is streamed stand in the URL, not in the body."""

    name = "gemini"
    model = "gemini-3.8-flash"
    family = "gemini"
    capabilities = Capabilities(
        api="gemini", documents=True, efforts=("low", "high"), thinking="level", family="gemini", most_stops=5
    )
    # Calls come whole (API facts 5.4).
    can = WORDS - {"pieces", "interleaved", "late names"}

    def speak(self) -> Speech:
        return GeminiSpeech(model=self.model, id="gemini-kit")

    def document(self, parts: Sequence[Said], stop: str, tokens: Counts | None) -> bytes:
        return dumped(answer(parts, stop, tokens, model=self.model, id="gemini-kit")).encode()

    def read(self, body: bytes) -> Seen:
        return understood(self.model, json.loads(body))


def understood(model: str, given: dict[str, Any], *, streamed: bool = True) -> Seen:
    """A request as the server understands it; the model stands in its URL. Raises Objection where it refuses it."""
    gemini_rules.check(model, given)
    calling = given.get("toolConfig", {}).get("functionCallingConfig")
    return Seen(
        turns=tuple(_turns(given["contents"])),
        system=tuple(part["text"] for part in given.get("systemInstruction", {}).get("parts", [])),
        tools=tuple(_tool(one) for tool in given.get("tools", []) for one in tool.get("functionDeclarations", [])),
        choice=_choice(calling) if calling else None,
        model=model,
        stream=streamed,
        max_tokens=given.get("generationConfig", {}).get("maxOutputTokens"),
    )


def _tool(declared: dict[str, Any]) -> Tool:
    # A function without parameters has no schema at all.
    schema = declared.get("parametersJsonSchema") or declared.get("parameters") or {"type": "object", "properties": {}}
    return Tool(declared["name"], declared.get("description", ""), schema)


def _choice(calling: dict[str, Any]) -> Choice:
    allowed = calling.get("allowedFunctionNames", [])
    if len(allowed) == 1:
        return Choice("tool", allowed[0])
    return Choice(MODES[calling["mode"]])  # type: ignore[arg-type]


def _turns(contents: list[dict[str, Any]]) -> list[Turn]:
    turns: list[Turn] = []
    calls: list[Call] = []  # of the model's last turn: results without an id answer them in order
    for content in contents:
        role = "assistant" if content.get("role") == "model" else "user"
        parts: list[Part] = []
        waiting = list(calls)
        for number, part in enumerate(content["parts"]):
            said = _part(part, f"{len(turns)}-{number}")
            if isinstance(said, Result) and not said.id and waiting:
                said = Result(waiting.pop(0).id, said.name, said.parts, said.is_error)
            parts.append(said)
        calls = [part for part in parts if isinstance(part, Call)]
        turns.append(Turn(role, tuple(parts)))  # type: ignore[arg-type]
    return turns


def _part(part: dict[str, Any], number: str) -> Part:
    if "functionCall" in part:
        call = part["functionCall"]
        return Call(call.get("id") or f"no-id-{number}", call["name"], call.get("args", {}))
    if "functionResponse" in part:
        told = part["functionResponse"]
        answer, extra = told["response"], told.get("parts", [])
        failed = "error" in answer
        said = answer.get("error", answer.get("output", answer.get("result", "")))
        text = said if isinstance(said, str) else dumped(said)
        pictures = tuple(_media(item["inlineData"]) for item in extra)
        return Result(told.get("id", ""), told["name"], ((Text(text),) if text else ()) + pictures, failed)
    if "inlineData" in part:
        return _media(part["inlineData"])
    if "fileData" in part:
        return Image(url=part["fileData"]["fileUri"])
    return Thinking(part["text"]) if part.get("thought") else Text(part["text"])


def _media(data: dict[str, Any]) -> Image | Document:
    media = data["mimeType"]
    return Image(media, data["data"]) if media.startswith("image/") else Document(media, data["data"])
