"""What the fake API shall say: answers, the rules that choose them, and the JSON file that spells both.

Plain frozen data and its parsing; no I/O but reading a script file. Unknown keys are errors with a suggestion, since
a misspelt key in a test script would silently test nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbproxy.errors import ConfigError
from dbproxy.testing.origin import events

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dbproxy.testing.origin.received import Received

FRAMINGS = ("", "chunked", "length", "close")
CODINGS = ("", "gzip", "deflate", "deflate-raw", "br", "zstd")
CUTS = ("fin", "close_notify", "rst")
UPGRADES = ("", "echo", "websocket")

# Error types by status (anthropic-api 1.7).
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Times are seconds; event numbers count from 0 and leave pings out.

    Content, first that is given wins: ``raw`` (written as it stands, then the connection is closed), ``upgrade``,
    ``events`` (exact pieces of a stream), ``body``, ``fault``, ``blocks`` (a message: streamed when the
    request asks for it). Nothing given means an empty body.
    """

    # Content
    blocks: tuple[events.Block, ...] | None = None
    usage: Mapping[str, Any] | None = None
    stop_reason: str | None = None
    model: str | None = None
    message_id: str = ""
    repeat: int = 1  # every text block's text this many times
    events: tuple[bytes, ...] | None = None
    body: bytes | None = None
    fault: Mapping[str, Any] | None = None  # type, message, details: the API's error body, with the request's id
    content_type: str = ""
    raw: bytes | None = None
    upgrade: str = ""  # "echo": bytes as they come; "websocket": frames unmasked and sent back
    # Head
    status: int = 200
    reason: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    identified: bool = True  # with the request's id and the rate limits of the Messages API
    informational: tuple[tuple[int, tuple[tuple[str, str], ...]], ...] = ()
    # Shape on the wire
    framing: str = ""  # "" = chunked for streams, content-length for bodies
    coding: str = ""
    chunk_size: int = 0  # bytes of one chunk and one write; 0 = one per event
    delta_chars: int = 400
    trailers: tuple[tuple[str, str], ...] = ()
    # Pace
    head_delay: float = 0.0
    first_byte_delay: float = 0.0
    gap: float = 0.0
    rate: float = 0.0  # events per second against the clock, so that late ones catch up; 0 = use gap
    ping_every: float = 0.0  # while we wait or stall
    ping: str = "event"  # or "comment"
    stall_after: int | None = None
    stall: float = 0.0
    # Breaking
    cut_after: int | None = None
    cut_bytes: int | None = None  # cut once so many body bytes (after coding) are out
    cut_how: str = "fin"
    error_after: int | None = None  # an error event in place of this event, then the end
    error: Mapping[str, Any] | None = None
    close: bool = False
    # The request
    early: bool = False  # answer before the body is read; the connection closes after it unless the body was short
    read_delay: float = 0.0  # wait before the body is read: backpressure on the sender
    note: str = ""

    def __post_init__(self) -> None:
        for name, allowed in (("framing", FRAMINGS), ("coding", CODINGS), ("cut_how", CUTS), ("upgrade", UPGRADES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"answer: {name} is {getattr(self, name)!r}", hint=f"use one of {', '.join(allowed)}")
        if self.ping not in ("event", "comment"):
            raise ConfigError(f"answer: ping is {self.ping!r}", hint="use event or comment")

    def but(self, **changes: Any) -> Answer:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)


def say(*blocks: events.Block | str, **how: Any) -> Answer:
    """A message of these blocks; a plain string is a text block."""
    made = tuple(events.text(block) if isinstance(block, str) else block for block in blocks)
    return Answer(blocks=made, **how)


def fail(status: int, message: str, *, kind: str = "", details: Mapping[str, Any] | None = None, **how: Any) -> Answer:
    """An HTTP error in the API's shape (anthropic-api 1.7)."""
    kind = kind or ERROR_TYPES.get(status, "api_error")
    return Answer(status=status, fault={"type": kind, "message": message, "details": details}, **how)


def document(value: Any, *, status: int = 200, **how: Any) -> Answer:
    """A JSON document."""
    return Answer(status=status, body=json.dumps(value).encode(), content_type="application/json", **how)


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a rule is for; everything given must hold."""

    method: str = ""
    path: str = ""  # without query; a trailing * makes it a prefix
    fields: Mapping[str, str] = field(default_factory=dict)  # name -> part of the value; "" = present
    text: str = ""  # part of the last user message's text
    anywhere: str = ""  # part of the decoded body
    role: str = ""  # main, subagent, compaction, auxiliary
    stream: bool | None = None
    tool_results: int | None = None  # so many tool results in the conversation
    model: str = ""  # part of the model's name

    def holds(self, request: Received, *, with_body: bool = True) -> bool:
        """Does ``request`` match? Without a body, rules that look into it never do."""
        if self.method and request.method != self.method.upper():
            return False
        if self.path and not (
            request.path.startswith(self.path[:-1]) if self.path.endswith("*") else request.path == self.path
        ):
            return False
        for name, part in self.fields.items():
            value = request.header(name)
            if value is None or part not in value:
                return False
        if not self.needs_body:
            return True
        return with_body and self._body_holds(request)

    @property
    def needs_body(self) -> bool:
        """Does it look into the body?"""
        return bool(self.text or self.anywhere or self.role or self.model) or (
            self.stream is not None or self.tool_results is not None
        )

    def _body_holds(self, request: Received) -> bool:
        return (
            (not self.text or self.text in request.last_text)
            and (not self.anywhere or self.anywhere.encode() in request.decoded)
            and (not self.role or request.role == self.role)
            and (not self.model or self.model in request.model)
            and (self.stream is None or request.stream == self.stream)
            and (self.tool_results is None or request.tool_results == self.tool_results)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """For matching requests: the first ``skip`` pass on, the next get ``answers`` in turn, the last answer repeating.

    ``times`` bounds how often the rule answers; None = without end.
    """

    answers: tuple[Answer, ...]
    match: Match = field(default_factory=Match)
    times: int | None = None
    skip: int = 0
    source: str = ""  # the fact that this rule imitates


@dataclass(frozen=True, slots=True)
class Script:
    """Rules in order of precedence, then a named scenario for the Messages endpoint, then the built-in rules.

    ``decide`` is for tests in Python: it is asked first and may return None. ``cache`` gives answers without cache
    counts of their own those of a prompt cache; a number is its bytes per token.
    """

    rules: tuple[Rule, ...] = ()
    scenario: str = "plain"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the scenario
    decide: Callable[[Received], Answer | None] | None = None
    cache: bool | float = False


def _known(what: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            raise ConfigError(
                f"{what}: unknown key {key!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}",
            )


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    items = value.items() if isinstance(value, dict) else value
    return tuple((str(name), str(content)) for name, content in items)


def _bytes(value: Any) -> bytes:
    """A string as UTF-8, ``{"base64": ...}`` as its bytes, anything else as JSON."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and set(value) == {"base64"}:
        return base64.b64decode(value["base64"])
    return json.dumps(value).encode()


def answer_from(given: Mapping[str, Any]) -> Answer:
    """An answer from its JSON form.

    Beside the attributes of ``Answer`` it knows ``text`` (one text block), ``fail`` ({type, message, details}) for an
    error body whose type follows from ``status``, and ``retry_after``.
    """
    names = [item.name for item in dataclasses.fields(Answer)]
    _known("answer", given, [*names, "text", "fail", "retry_after"])
    made: dict[str, Any] = {key: value for key, value in given.items() if key in names}
    if "text" in given:
        made["blocks"] = [events.text(given["text"])]
    if made.get("blocks") is not None:
        made["blocks"] = tuple(
            events.text(block)
            if isinstance(block, str)
            else events.tool_use(block["name"], block["input"], call_id=block.get("id", ""))
            if block.get("type") == "tool_use"
            else block
            for block in made["blocks"]
        )
    if made.get("events") is not None:
        made["events"] = tuple(
            events.encode(item) if isinstance(item, dict) and "type" in item else _bytes(item)
            for item in made["events"]
        )
    for name in ("body", "raw"):
        if made.get(name) is not None:
            if name == "body" and not isinstance(made[name], str):
                made.setdefault("content_type", "application/json")
            made[name] = _bytes(made[name])
    for name in ("fields", "trailers"):
        if name in made:
            made[name] = _pairs(made[name])
    if "informational" in made:
        made["informational"] = tuple((int(status), _pairs(fields)) for status, fields in made["informational"])
    if "retry_after" in given:
        made["fields"] = (*made.get("fields", ()), ("retry-after", str(given["retry_after"])))
    if "fail" in given:
        error = given["fail"]
        _known("fail", error, ["type", "message", "details"])
        status = made.pop("status", 500)
        return fail(
            status, error.get("message", "Error"), kind=error.get("type", ""), details=error.get("details"), **made
        )
    return Answer(**made)


def script_from(given: Any) -> Script:
    """A script from what a test or a file gives: a Script, one Answer, a callable, rules, a JSON object, or a path."""
    if given is None:
        return Script()
    if isinstance(given, Script):
        return given
    if isinstance(given, Answer):
        return Script(rules=(Rule((given,), Match(method="POST", path="/v1/messages")),))
    if isinstance(given, Path):
        try:
            return script_from(json.loads(given.read_text("utf-8")))
        except ValueError as error:
            raise ConfigError(f"{given} is not a JSON script: {error}", hint="correct the file") from error
    if callable(given):
        return Script(decide=given)
    if isinstance(given, str):
        return Script(scenario=given)
    if isinstance(given, (list, tuple)):
        return Script(rules=tuple(item if isinstance(item, Rule) else _rule_from(item) for item in given))
    _known("script", given, ["rules", "scenario", "options", "cache"])
    cache = given.get("cache", False)
    if not isinstance(cache, bool | int | float) or cache < 0:
        raise ConfigError(f"script: cache is {cache!r}", hint="use true, false or bytes per token, such as 4")
    return Script(
        rules=tuple(_rule_from(item) for item in given.get("rules", [])),
        scenario=given.get("scenario", "plain"),
        options=given.get("options", {}),
        cache=cache,
    )


def _rule_from(given: Mapping[str, Any]) -> Rule:
    _known("rule", given, ["match", "answer", "answers", "times", "skip", "source"])
    match = given.get("match", {})
    _known("match", match, [item.name for item in dataclasses.fields(Match)])
    answers = given.get("answers", [given["answer"]] if "answer" in given else [])
    if not answers:
        raise ConfigError("a rule without an answer", hint='give "answer" or a non-empty "answers"')
    return Rule(
        answers=tuple(answer_from(item) for item in answers),
        match=Match(**match),
        times=given.get("times"),
        skip=given.get("skip", 0),
        source=given.get("source", ""),
    )
