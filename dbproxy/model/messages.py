"""A Messages request as its bytes tell it: typed, read-only, parsed no further than asked.

Owns the reading of request bodies and of the headers that classify them. The bytes stay the truth: a view never
writes. Never does I/O, never raises on shape: where a body holds something else than expected, the view shows the
default and the request goes its way untouched.

Invariants: the top level is decoded once, messages stay spans of the body until one of them is asked for; constructing
a view costs nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dbproxy.model import shapes, spans

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.exchange import Fields

_LEGACY_USER: Final = re.compile(r"user_(?P<device>[^_]*)_account_(?P<account>.*?)_session_(?P<session>.+)", re.DOTALL)
# Present in every version's summarising instruction, and together in nothing else (client facts 4.1).
_SUMMARY_MARKS: Final = ("create a detailed summary of the conversation so far", "<analysis>", "<summary>")
_BILLING: Final = "x-anthropic-billing-header:"  # client facts 3.1: changes with every request


class _Top(msgspec.Struct, gc=False):
    """The top level of a body, every value still a span."""

    model: msgspec.Raw = msgspec.Raw(b"null")
    max_tokens: msgspec.Raw = msgspec.Raw(b"null")
    stream: msgspec.Raw = msgspec.Raw(b"null")
    system: msgspec.Raw = msgspec.Raw(b"null")
    messages: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    thread: msgspec.Raw = msgspec.Raw(b"null")
    output_config: msgspec.Raw = msgspec.Raw(b"null")
    diagnostics: msgspec.Raw = msgspec.Raw(b"null")


_TOP: Final = msgspec.json.Decoder(_Top).decode
_SPANS: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks, out of ``metadata.user_id``; empty strings where it does not tell."""

    device: str = ""
    account: str = ""
    session: str = ""

    @classmethod
    def of(cls, user_id: object) -> Identity:
        """Read the JSON form (client 2.1.112 and later) and the legacy one ``user_…_account_…_session_…``."""
        if not isinstance(user_id, str):
            return cls()
        legacy = _LEGACY_USER.fullmatch(user_id)
        if legacy:
            return cls(**legacy.groupdict())
        value = shapes.mapping(shapes.parse(user_id.encode("utf-8", "surrogatepass")))
        return cls(
            shapes.text(value.get("device_id")),
            shapes.text(value.get("account_uuid")),
            shapes.text(value.get("session_id")),
        )


class MessagesRequest:
    """A view over the decoded body (content codings undone) of a Messages or count_tokens request."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    @cached_property
    def split(self) -> spans.Body | None:
        """The body's top level as spans, for whoever takes it apart; None where the body is odd (a key twice)."""
        return spans.read(self.body)

    @cached_property
    def _top(self) -> _Top | None:
        """For bodies that ``split`` leaves alone: of a key that stands there twice the last value counts."""
        try:
            return _TOP(self.body)
        except shapes.UNREADABLE:
            return None

    def _value(self, name: str) -> Any:
        if self.split:
            raw = self.split.raw(name.encode())
            return None if raw is None else shapes.parse(raw)
        return None if self._top is None else shapes.parse(getattr(self._top, name))

    @property
    def readable(self) -> bool:
        """Is the body a JSON object at all?"""
        return self.split is not None or self._top is not None

    @cached_property
    def model(self) -> str | None:
        """The model asked for."""
        model = self._value("model")
        return model if isinstance(model, str) else None

    @cached_property
    def max_tokens(self) -> int | None:
        """The longest answer wanted, in tokens; 0 is a request to warm the cache only."""
        value = self._value("max_tokens")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @cached_property
    def stream(self) -> bool:
        """Is the answer to come as events?"""
        return self._value("stream") is True

    @cached_property
    def spans(self) -> tuple[bytes, ...]:
        """The exact bytes of each message; those seen before are the same objects as then."""
        if self.split:
            array = self.split.array(b"messages")
            return tuple(array.elements) if array else ()
        if self._top is None:
            return ()
        try:
            return tuple(map(bytes, _SPANS(self._top.messages)))
        except shapes.UNREADABLE:
            return ()

    @property
    def message_count(self) -> int:
        """How many messages the request holds; in a thread's continuation only the new ones."""
        return len(self.spans)

    def message(self, index: int) -> dict[str, Any]:
        """One message, decoded; empty if it is no object. Raises IndexError."""
        return shapes.mapping(shapes.parse(self.spans[index]))

    @cached_property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the tools offered, in order; a server tool without a name gives its type."""
        tools = [shapes.mapping(tool) for tool in shapes.sequence(self._value("tools"))]
        names = (shapes.text(tool.get("name")) or shapes.text(tool.get("type")) for tool in tools)
        return tuple(name for name in names if name)

    @cached_property
    def system(self) -> tuple[str, ...]:
        """The texts of the system prompt's blocks, without the billing line, which changes with every request."""
        return tuple(text for text in self._system if not text.startswith(_BILLING))

    @cached_property
    def _system(self) -> list[str]:
        return texts(self._value("system"))

    @cached_property
    def billing(self) -> dict[str, str]:
        """The fields of the billing block that opens the system prompt, e.g. ``cc_is_subagent``, ``cc_prev_req``
        (client facts 3.1); empty without one."""
        line = next((text for text in self._system if text.startswith(_BILLING)), "")
        pairs = (part.partition("=") for part in line[len(_BILLING) :].split(";"))
        return {name.strip(): value.strip() for name, mark, value in pairs if mark}

    @property
    def is_subagent(self) -> bool:
        """Does the billing block say that a subagent speaks?"""
        return self.billing.get("cc_is_subagent") == "true"

    @cached_property
    def follows(self) -> str:
        """The message id of the answer before this request, as the client's diagnostics name it; "" if they do not."""
        return shapes.text(shapes.mapping(self._value("diagnostics")).get("previous_message_id"))

    @cached_property
    def answer_properties(self) -> tuple[str, ...]:
        """Names of the properties that a structured answer must have."""
        form = shapes.mapping(shapes.mapping(self._value("output_config")).get("format"))
        return tuple(shapes.mapping(shapes.mapping(form.get("schema")).get("properties")))

    @cached_property
    def last_user_text(self) -> str:
        """The last text block of the last user message; system messages behind it do not count (client facts 3.1)."""
        for index in range(len(self.spans) - 1, -1, -1):
            message = self.message(index)
            if message.get("role") == "user":
                return next(reversed(texts(message.get("content"))), "")
        return ""

    @cached_property
    def identity(self) -> Identity:
        """Device, account and session, out of ``metadata.user_id``."""
        return Identity.of(shapes.mapping(self._value("metadata")).get("user_id"))

    @cached_property
    def continues(self) -> str | None:
        """The answer whose thread this request continues ("" if unnamed), None for a request with its whole history
        (API facts 2.6)."""
        thread = shapes.mapping(self._value("thread"))
        return shapes.text(thread.get("previous_message_id")) if thread.get("type") == "continue" else None

    def is_claude_code(self, fields: Fields) -> bool:
        """Does Claude Code itself speak, as far as its User-Agent or its metadata say?"""
        return header(fields, b"user-agent").startswith("claude-cli/") or bool(self.identity.session)

    def session(self, fields: Fields) -> str:
        """The client's session id: header first, then ``metadata.user_id``; "" if neither tells (client facts 0.3)."""
        return header(fields, b"x-claude-code-session-id") or self.identity.session

    def compaction(self, fields: Fields) -> str:
        """``manual``, ``auto`` or ``reactive`` if this request asks for a summary of the conversation, ``unknown`` if
        the client does not say which, else "".

        The class header decides where the client sends one (client facts 0.5), for older clients the instruction in
        the last user message does (client facts 4.1).
        """
        trigger = header(fields, b"x-claude-code-compaction") or header(fields, b"x-cc-compaction-request")
        request_class = header(fields, b"x-claude-code-request-class")
        if request_class:
            return (trigger or "unknown") if request_class == "compaction" else ""
        if trigger:
            return trigger
        text = self.last_user_text
        return "unknown" if all(mark in text for mark in _SUMMARY_MARKS) else ""

    def is_compaction(self, fields: Fields) -> bool:
        """Does this request ask for a summary of the conversation?"""
        return self.compaction(fields) != ""


def texts(content: object) -> list[str]:
    """The texts of a content or system value: a plain string, or the text blocks of a list, in order."""
    if isinstance(content, str):
        return [content]
    return list(_block_texts(shapes.sequence(content)))


def _block_texts(blocks: Iterable[object]) -> Iterable[str]:
    for block in blocks:
        found = shapes.mapping(block)
        text = found.get("text")
        if found.get("type") == "text" and isinstance(text, str):
            yield text


def header(fields: Fields, name: bytes) -> str:
    """A header's value as text, "" if it is missing."""
    return (fields.get(name) or b"").decode("latin-1")
