"""A provider for the Parrot server, which speaks a dialect of its own. One file, for the `plugins` folder."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from dbproxy.api import Fields, ProviderCall, ProviderLimits, hookimpl
from dbproxy.api.codecs import Call, Capabilities, Result, Text, Unroutable, upstream_id

if TYPE_CHECKING:
    from dbproxy.api import App, Provider
    from dbproxy.api.codecs import MessageWriter, Request, Translation, Turn

ENDS = {"done": "end_turn", "asking": "tool_use", "full": "max_tokens", "refused": "refusal"}
USES = {"auto": "may", "any": "must", "none": "never"}


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def parsed(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class ParrotCodec:
    """Its requests are lists of lines; its answers are events that say, muse, ask, and at the end bye."""

    name = "parrot"

    def write(self, request: Request, translation: Translation) -> bytes:
        lines = [line for turn in request.turns for line in self._lines(turn, translation)]
        body: dict[str, Any] = {"model": translation.model, "lines": lines, "live": request.stream}
        if request.system:
            body["rules"] = "\n\n".join(request.system)
        if request.max_tokens is not None:
            body["longest"] = request.max_tokens
        out = translation.names.out
        if request.tools:
            body["tools"] = [
                {"name": out(tool.name), "about": tool.description, "takes": tool.schema} for tool in request.tools
            ]
            if request.choice is not None:
                body["use"] = USES.get(request.choice.mode) or {"tool": out(request.choice.name)}
                translation.single = request.choice.single  # the server cannot be told
        translation.stops = request.stop  # nor of stop sequences: the writer looks for them
        return json.dumps(body).encode()

    def _lines(self, turn: Turn, translation: Translation) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, Text):
                lines.append({"by": turn.role, "say": part.text})
            elif isinstance(part, Call):
                name = translation.names.out(part.name)
                lines.append({"by": "assistant", "ask": name, "ref": upstream_id(part.id), "with": part.arguments})
            elif isinstance(part, Result):
                texts = [piece.text for piece in part.parts if isinstance(piece, Text)]
                told = {"by": "tool", "ref": upstream_id(part.id), "say": "\n\n".join(texts)}
                lines.append({**told, "failed": True} if part.is_error else told)
        return lines

    def stream(self, translation: Translation, writer: MessageWriter) -> ParrotReader:
        return ParrotReader(writer)

    def document(self, body: bytes, translation: Translation, writer: MessageWriter) -> None:
        reader = ParrotReader(writer)
        events = parsed(body).get("events")
        for event in events if isinstance(events, list) else []:
            if isinstance(event, dict):
                reader.take(event)
        reader.end()


class ParrotReader:
    """Tells the writer what an event means; the writer does the rest."""

    def __init__(self, writer: MessageWriter) -> None:
        self.writer = writer

    def feed(self, name: bytes, data: bytes) -> None:
        self.take(parsed(data))

    def take(self, event: dict[str, Any]) -> None:
        writer = self.writer
        writer.text(text(event.get("say")))
        writer.thinking(text(event.get("muse")))
        ask, key = event.get("ask"), event.get("n")
        if isinstance(ask, dict) and isinstance(key, int):
            writer.call(key, id=text(ask.get("ref")), name=text(ask.get("name")), arguments=text(ask.get("with")))
            if ask.get("whole") is True:
                writer.complete(key)
        cost = event.get("cost")
        if isinstance(cost, dict):
            counts = {word: count for word, count in cost.items() if isinstance(count, int)}
            writer.usage(input=counts.get("in"), output=counts.get("out"), cache_read=counts.get("known"))
        if "error" in event:
            writer.error(json.dumps(event).encode())
        if (bye := text(event.get("bye"))) in ENDS:
            writer.stop(ENDS[bye])
            writer.finish()

    def end(self) -> None:
        self.writer.finish()  # an error, unless a bye came


CODEC = ParrotCodec()


class Parrot:
    """The server behind ``PARROT_URL``, with the key ``PARROT_KEY``."""

    name = "parrot"
    limits = ProviderLimits(first_byte=60.0)

    def __init__(self) -> None:
        self.url = os.environ.get("PARROT_URL", "https://parrot.example")
        self.key = os.environ.get("PARROT_KEY", "")

    def unready(self) -> str:
        return "" if self.key else "PARROT_KEY is not set"

    def capabilities(self, model: str) -> Capabilities:
        return Capabilities(context=100_000, output=8_000, images=False, family="parrot")

    def decline(self, request: Request, model: str) -> str:
        features = sorted(request.features - {"prefill", "thread"})
        return f"the Parrot cannot serve: {', '.join(features)}" if features else ""

    def call(self, request: Request, translation: Translation) -> ProviderCall:
        if reason := self.decline(request, translation.model):
            raise Unroutable(reason)
        fields = [(b"Content-Type", b"application/json"), (b"X-Parrot-Key", self.key.encode())]
        return ProviderCall(
            body=CODEC.write(request, translation),
            url=f"{self.url}/squawk",
            fields=Fields.of(fields),
            codec=CODEC,
            secrets=(self.key,),
        )


@hookimpl
def providers(app: App) -> list[Provider]:
    return [Parrot()]
