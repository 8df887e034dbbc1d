"""How the Parrot server speaks and understands, for the conformance kit: written apart from the codec, on purpose."""

from __future__ import annotations

import json
from typing import Any

from dbproxy.api.codecs import Call, Capabilities, Choice, Result, Text, Thinking, Tool, Turn
from dbproxy.testing.codecs import WORDS, Dialect, Seen, Speech

ENDS = {"end_turn": "done", "tool_use": "asking", "max_tokens": "full", "refusal": "refused"}
USES = {"may": "auto", "must": "any", "never": "none"}


def event(**keys: Any) -> bytes:
    return b"data: " + json.dumps(keys).encode() + b"\n\n"


class ParrotSpeech(Speech):
    """One answer of the server."""

    def text(self, piece: str) -> bytes:
        return event(say=piece)

    def thinking(self, piece: str) -> bytes:
        return event(muse=piece)

    def call(self, key: int, *, id: str = "", name: str = "", arguments: str = "") -> bytes:
        told = {"ref": id, "name": name, "with": arguments}
        return event(n=key, ask={word: value for word, value in told.items() if value})

    def done(self, key: int) -> bytes:
        return event(n=key, ask={"whole": True})

    def end(self, stop: str, tokens: Any) -> bytes:
        cost = {"in": tokens.input, "known": tokens.cache_read, "out": tokens.output} if tokens else None
        return event(bye=ENDS[stop], cost=cost)

    def error(self, kind: str, message: str) -> bytes:
        return event(error={"type": kind, "message": message})


class ParrotDialect(Dialect):
    """Everything but pictures and files."""

    name = "parrot"
    model = "macaw-1"
    family = "parrot"
    capabilities = Capabilities(images=False, family="parrot")
    can = WORDS - {"images", "results with images", "files"}

    def speak(self) -> Speech:
        return ParrotSpeech()

    def document(self, parts: Any, stop: str, tokens: Any) -> bytes:
        speech, out = ParrotSpeech(), b""
        for number, part in enumerate(parts):
            if isinstance(part, Call):
                out += speech.call(number, id=part.id, name=part.name, arguments=json.dumps(part.arguments))
            else:
                out += speech.thinking(part.text) if isinstance(part, Thinking) else speech.text(part.text)
        out += speech.end(stop, tokens)
        return b'{"events":[' + b",".join(out.replace(b"data: ", b"").split(b"\n\n")[:-1]) + b"]}"

    def read(self, body: bytes) -> Seen:
        given = json.loads(body)
        use = given.get("use")
        choice = Choice("tool", use["tool"]) if isinstance(use, dict) else Choice(USES[use]) if use else None
        return Seen(
            turns=tuple(self._turn(line) for line in given["lines"]),
            system=tuple([given["rules"]] if "rules" in given else []),
            tools=tuple(Tool(tool["name"], tool["about"], tool["takes"]) for tool in given.get("tools", [])),
            choice=choice,
            model=given["model"],
            stream=given["live"],
            max_tokens=given.get("longest"),
        )

    def _turn(self, line: dict[str, Any]) -> Turn:
        if "ask" in line:
            return Turn("assistant", (Call(line["ref"], line["ask"], line["with"]),))
        if line["by"] == "tool":
            if not line["say"]:
                raise ValueError("a result that says nothing")
            return Turn("user", (Result(line["ref"], "", (Text(line["say"]),), line.get("failed", False)),))
        return Turn(line["by"], (Text(line["say"]),))


DIALECT = ParrotDialect()
