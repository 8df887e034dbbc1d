"""What every faked endpoint has in common: an answer as it stands in a script, spelled in the server's own dialect.

Owns `Endpoint` and `spelled`. Pacing, cutting and framing are those of the fake Messages API, on the pieces made here.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model.codecs.request import Call, Text, Thinking
from dbproxy.testing.codecs.dialect import Counts
from dbproxy.testing.origin import events
from dbproxy.testing.providers.objections import Objection
from dbproxy.testing.providers.spelling import dumped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.testing.codecs.dialect import Dialect, Said, Speech
    from dbproxy.testing.origin.received import Received
    from dbproxy.testing.origin.script import Answer
    from dbproxy.testing.providers.asked import Asked

_END: Final = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")


class Endpoint(ABC):
    """One path of one API."""

    name: str
    dialect: Dialect

    @abstractmethod
    def takes(self, request: Received) -> bool:
        """Is the request for this endpoint?"""

    @abstractmethod
    def authorise(self, request: Received, key: str) -> None:
        """Raises Objection unless the request shows the key."""

    @abstractmethod
    def read(self, request: Received, body: dict[str, Any]) -> Asked:
        """The request, understood. Raises Objection where the real one would refuse it."""

    @abstractmethod
    def speech(self, asked: Asked, answer: Answer, id: str) -> Speech:
        """A streamed answer to it."""

    @abstractmethod
    def document(
        self, asked: Asked, answer: Answer, id: str, parts: Sequence[Said], stop: str, counts: Counts
    ) -> dict[str, Any]:
        """The same answer as one document."""

    @abstractmethod
    def fault(self, objection: Objection) -> dict[str, Any]:
        """An error's body."""

    @abstractmethod
    def overflow(self, tokens: int, limit: int) -> Objection:
        """The context is too large."""


def body_of(request: Received) -> dict[str, Any]:
    """The request's JSON object. Raises Objection."""
    if not (request.header("content-type") or "").startswith("application/json"):
        raise Objection("Unsupported content type; use application/json.")
    try:
        value = json.loads(request.decoded)
    except (ValueError, RecursionError, OSError):
        value = None
    if not isinstance(value, dict):
        raise Objection("We could not parse the JSON body of your request.")
    return value


def _objection(answer: Answer) -> Objection:
    """What a script's ``fail`` means; ``details.error_code`` is the API's own word for it."""
    fault = answer.fault
    assert fault is not None
    code = str((fault["details"] or {}).get("error_code", ""))
    return Objection(fault["message"], status=answer.status, kind=fault["type"], code=code)


def refusal(endpoint: Endpoint, answer: Answer, objection: Objection | None = None) -> Answer:
    """``answer`` as an error of this endpoint: a rule's, or the script's own."""
    objection = objection or _objection(answer)
    body = dumped(endpoint.fault(objection)).encode()
    return answer.but(status=objection.status, fault=None, body=body, content_type="application/json")


def spelled(endpoint: Endpoint, asked: Asked, answer: Answer) -> Answer:
    """A scripted answer in the endpoint's words. What a script gives as exact bytes stays as it is."""
    # Pings are the Messages API's own; others keep a connection alive with comments (API facts 5.6).
    answer = answer.but(ping="comment")
    if answer.fault is not None:
        return refusal(endpoint, answer)
    if answer.blocks is None:
        return answer
    parts = [_part(block, answer.repeat) for block in answer.blocks]
    stop = answer.stop_reason or events.default_stop_reason(answer.blocks)
    given = answer.usage or {}
    counts = Counts(
        given.get("input_tokens", max(1, len(asked.body) // 4)),
        given.get("output_tokens", events.estimate(answer.blocks)),
        given.get("cache_read_input_tokens", 0),
    )
    id = answer.message_id or f"{endpoint.name}-{asked.number:06d}"
    if not asked.stream:
        whole = endpoint.document(asked, answer, id, parts, stop, counts)
        return answer.but(blocks=None, body=dumped(whole).encode(), content_type="application/json")
    bitwise = "pieces" in endpoint.dialect.can
    pieces = _pieces(endpoint.speech(asked, answer, id), parts, stop, counts, answer, bitwise=bitwise)
    return answer.but(blocks=None, events=tuple(pieces), error_after=None)


def _part(block: events.Block, repeat: int) -> Said:
    if block["type"] == "tool_use":
        # An id as this provider mints them, unless the script gives one.
        id = block["id"]
        return Call(
            f"call_{id.removeprefix('toolu_')}" if id.startswith("toolu_") else id, block["name"], block["input"]
        )
    if block["type"] == "thinking":
        return Thinking(block["thinking"])
    return Text(block["text"] * repeat)


def _pieces(
    speech: Speech, parts: Sequence[Said], stop: str, counts: Counts, answer: Answer, *, bitwise: bool
) -> list[bytes]:
    """The events of the stream, one each, up to a scripted error."""
    out = [speech.begin()]
    for number, part in enumerate(parts):
        if isinstance(part, Call):
            out += _call(speech, number, part, answer.delta_chars if bitwise else 0)
        else:
            tell = speech.thinking if isinstance(part, Thinking) else speech.text
            out += [tell(piece) for piece in events.pieces(part.text, answer.delta_chars)]
    whole = [event for piece in [*out, speech.end(stop, counts)] for event in _END.split(piece) if event]
    if answer.error_after is None:
        return whole
    error = dict((answer.error or {}).get("error") or {"type": "overloaded_error", "message": "Overloaded"})
    return [*whole[: answer.error_after], speech.error(error["type"], error["message"])]


def _call(speech: Speech, number: int, part: Call, size: int) -> list[bytes]:
    """A call in pieces of ``size`` characters, 0 for all at once."""
    spelled = dumped(part.arguments)
    if not size:
        return [speech.call(number, id=part.id, name=part.name, arguments=spelled)]
    return [
        speech.call(number, id=part.id, name=part.name),
        *(speech.call(number, arguments=piece) for piece in events.pieces(spelled, size)),
        speech.done(number),
    ]


def matching(values: Sequence[str], text: str) -> bool:
    """Does ``text`` suit one of the patterns (``gpt-*``)?"""
    return any(re.fullmatch(re.escape(value).replace(r"\*", ".*"), text) for value in values)


def with_field(answer: Answer, name: str, value: str) -> Answer:
    """The answer with a header field more, unless the script gives it."""
    if any(given.lower() == name for given, _ in answer.fields):
        return answer
    return answer.but(fields=((name, value), *answer.fields))
