"""A Messages request as a codec needs it: plain values, the pitfalls of its history already dealt with.

Owns the reading of a request's body into turns (``read_request``) and what every other dialect must be spared: the
billing line, empty texts, results out of place, calls that were never answered, blocks that nobody else knows. Never
does I/O. Source: seed-001 section 3, client facts 3.1, API facts 1.2 and 1.3.

Invariants: each turn of the assistant with calls is followed at once by a turn of the user that begins with exactly
their results, in the order of the calls; no text is empty; what has no twin elsewhere stands in ``features``, so that a
route can be declined; a block of unknown type becomes text, never an error.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from dbproxy.model import shapes
from dbproxy.model.codecs import flatten
from dbproxy.model.codecs.effort import effort_of
from dbproxy.model.messages import Identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BILLING: Final = "x-anthropic-billing-header:"
#: A section of the client's context, inside a JSON string.
_ADDRESS: Final = re.compile(rb'# userEmail\\n[^"\\]*(?:\\n)?')
#: What stands in for a tool result without content: some servers refuse an empty one.
NO_OUTPUT: Final = "(no output)"
#: What stands in for the result of a call that never got one.
INTERRUPTED: Final = "(interrupted: this call got no result)"


class Unroutable(Exception):
    """This request cannot be put into that dialect, or not without loss; the text says why, for a person."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is not empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: ``data`` in base64 with its ``media_type``, or a ``url``."""

    media_type: str = ""
    data: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A file, as things stand a PDF: ``data`` in base64, or a ``url``. Plain-text documents are read as `Text`."""

    media_type: str = "application/pdf"
    data: str = ""
    url: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a model thought, with the ``signature`` that its next request must bring back.

    Only the family that signed it can use it (`split_signature`); it is never shown to another as text.
    """

    text: str
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool_use: the client's ``id`` and ``name``, and its input."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """A tool_result. ``name`` is that of the call; ``parts`` are never empty."""

    id: str
    name: str
    parts: tuple[Text | Image | Document, ...]
    is_error: bool = False


Part: TypeAlias = Text | Image | Document | Thinking | Call | Result


@dataclass(frozen=True, slots=True)
class Turn:
    """Something said. ``system`` turns stand in the middle of a conversation; neighbours differ in role."""

    role: Literal["user", "assistant", "system"]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the client runs. ``schema`` is the client's own, always an object schema with ``properties``."""

    name: str
    description: str
    schema: dict[str, Any]
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class ServerTool:
    """A tool that the model's own server runs (``web_search_20250305``, ...), as the client configured it."""

    type: str
    name: str
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """``tool_choice``: ``auto``, ``any``, ``tool`` (then ``name``) or ``none``; ``single`` forbids parallel calls."""

    mode: Literal["auto", "any", "tool", "none"] = "auto"
    name: str = ""
    single: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. Absent numbers are None, absent texts "".

    ``effort`` is ``none``, ``minimal``, ``low``, ``medium``, ``high``, ``xhigh``, ``max`` or "" where the client does
    not ask for thinking; ``budget`` is the budget of thinking tokens where it gave one. ``user`` and ``session`` are
    digests that identify nobody elsewhere. ``features`` names what only some can do: ``images``, ``documents``,
    ``files``, ``server tool NAME``, ``client tool TYPE``, ``thread``, ``mcp servers``, ``container``, ``prefill``.
    """

    model: str
    stream: bool
    max_tokens: int | None
    system: tuple[str, ...]
    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    server_tools: tuple[ServerTool, ...] = ()
    choice: Choice | None = None
    effort: str = ""
    budget: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    service_tier: str = ""
    user: str = ""
    session: str = ""
    features: frozenset[str] = frozenset()
    size: int = 0  # bytes of the body
    raw: dict[str, Any] = field(default_factory=dict, repr=False)  # the body itself
    body: bytes = field(default=b"", repr=False)  # and its bytes, for whoever changes little of it


def read_request(body: bytes) -> Request:
    """Read a Messages body (content codings undone). Raises Unroutable where it is no such thing.

    The user's e-mail address, which a logged-in client tells its agents (2.1.112), is left out of the values: another
    provider has no use for it. ``Request.body`` keeps every byte.
    """
    raw = shapes.parse(_ADDRESS.sub(b"", body) if b"# userEmail" in body else body)
    if not isinstance(raw, dict) or not isinstance(raw.get("messages"), list):
        raise Unroutable("the body is no Messages request")
    try:
        return _Reader(raw).request(body)
    except RecursionError:
        raise Unroutable("the body nests too deeply") from None


class _Reader:
    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.features: set[str] = set()
        self.loaded: set[str] = set()  # deferred tools that the history brought in
        self.added: list[Any] = []
        self.removed: set[str] = set()

    def request(self, body: bytes) -> Request:
        raw = self.raw
        turns = _paired(_merged(self._turns()))
        tools, server_tools = self._tools()
        effort, budget = effort_of(raw)
        identity = Identity.of(shapes.mapping(raw.get("metadata")).get("user_id"))
        for name in ("thread", "mcp_servers", "container"):
            if raw.get(name):
                self.features.add(name.replace("_", " "))
        if turns and turns[-1].role == "assistant":
            self.features.add("prefill")
        form = shapes.mapping(shapes.mapping(raw.get("output_config")).get("format"))
        schema = form.get("schema") if form.get("type") == "json_schema" else None
        limit = raw.get("max_tokens")
        return Request(
            model=shapes.text(raw.get("model")),
            stream=raw.get("stream") is True,
            max_tokens=limit if isinstance(limit, int) and not isinstance(limit, bool) else None,
            system=tuple(_system(raw.get("system"))),
            turns=tuple(turns),
            tools=tools,
            server_tools=server_tools,
            choice=_choice(raw.get("tool_choice")),
            effort=effort,
            budget=budget,
            temperature=_number(raw.get("temperature")),
            top_p=_number(raw.get("top_p")),
            top_k=int(found) if (found := _number(raw.get("top_k"))) is not None else None,
            stop=tuple(text for text in shapes.sequence(raw.get("stop_sequences")) if isinstance(text, str) and text),
            schema=schema if isinstance(schema, dict) else None,
            service_tier="priority" if raw.get("speed") == "fast" else "",
            user=_digest(shapes.mapping(raw.get("metadata")).get("user_id")),
            session=_digest(identity.session),
            features=frozenset(self.features),
            size=len(body),
            raw=raw,
            body=body,
        )

    # ---- turns

    def _turns(self) -> Iterator[Turn]:
        for message in map(shapes.mapping, shapes.sequence(self.raw.get("messages"))):
            role = message.get("role")
            content = message.get("content")
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            misplaced = Result if role == "assistant" else Call | Thinking  # the API refuses those itself
            parts = tuple(
                part
                for block in shapes.sequence(content)
                for part in self._parts(shapes.mapping(block))
                if not isinstance(part, misplaced)
            )
            if parts:
                yield Turn(role if role in ("assistant", "system") else "user", parts)

    def _parts(self, block: dict[str, Any]) -> Iterator[Part]:
        kind = shapes.text(block.get("type"))
        if kind == "text":
            text = shapes.text(block.get("text"))
            if text and not text.startswith(_BILLING):
                yield Text(text)
        elif kind == "thinking":
            yield Thinking(shapes.text(block.get("thinking")), shapes.text(block.get("signature")))
        elif kind == "redacted_thinking":
            pass  # encrypted for the server that made it
        elif kind == "tool_use":
            yield Call(shapes.text(block.get("id")), shapes.text(block.get("name")), shapes.mapping(block.get("input")))
        elif kind == "tool_result":
            parts = tuple(self._result_parts(block.get("content"))) or (Text(NO_OUTPUT),)
            yield Result(shapes.text(block.get("tool_use_id")), "", parts, block.get("is_error") is True)
        elif kind in ("tool_addition", "tool_removal"):
            self._change_tools(kind, block)
        else:
            yield from self._content(kind, block)

    def _content(self, kind: str, block: dict[str, Any]) -> Iterator[Text | Image | Document]:
        """A block that may stand in a message as well as in a tool's result."""
        source = shapes.mapping(block.get("source"))
        form = shapes.text(source.get("type"))
        if kind == "image" and form in ("base64", "url"):
            self.features.add("images")
            if form == "url":
                yield Image(url=shapes.text(source.get("url")))
            else:
                yield Image(shapes.text(source.get("media_type")) or "image/png", shapes.text(source.get("data")))
        elif kind == "document" and form in ("base64", "url"):
            self.features.add("documents")
            media, title = shapes.text(source.get("media_type")), shapes.text(block.get("title"))
            if form == "url":
                yield Document(url=shapes.text(source.get("url")), title=title)
            else:
                yield Document(media or "application/pdf", shapes.text(source.get("data")), title=title)
        elif kind in ("image", "document") and form == "file":
            self.features.add("files")
            yield Text(f"[{kind} that was uploaded: {shapes.text(source.get('file_id'))}]")
        elif kind == "document" and form == "content":
            for inner in map(shapes.mapping, shapes.sequence(source.get("content"))):
                yield from self._result_part(inner)
        elif kind == "tool_reference":
            name = shapes.text(block.get("tool_name")) or shapes.text(block.get("name"))
            self.loaded.add(name)
            yield Text(f"[Loaded tool: {name}]")
        else:
            text = flatten.as_text(kind, block)
            if text:
                yield Text(text)

    def _result_parts(self, content: object) -> Iterator[Text | Image | Document]:
        if isinstance(content, str):
            if content:
                yield Text(content)
            return
        for block in map(shapes.mapping, shapes.sequence(content)):
            yield from self._result_part(block)

    def _result_part(self, block: dict[str, Any]) -> Iterator[Text | Image | Document]:
        kind = shapes.text(block.get("type"))
        if kind == "text":
            if shapes.text(block.get("text")):
                yield Text(block["text"])
        else:
            yield from self._content(kind, block)

    # ---- tools

    def _change_tools(self, kind: str, block: dict[str, Any]) -> None:
        """Tools that come and go in mid-conversation (beta mid-conversation-tool-changes)."""
        if kind == "tool_addition":
            found = block.get("tool") or block.get("tools")
            listed = found if isinstance(found, list) else [found]
            self.added.extend(listed)
            self.loaded.update(shapes.text(shapes.mapping(tool).get("name")) for tool in listed)
            reference = shapes.text(block.get("tool_name")) or shapes.text(block.get("name"))
            if reference:
                self.loaded.add(reference)
        else:
            self.removed.add(shapes.text(block.get("tool_name")) or shapes.text(block.get("name")))

    def _tools(self) -> tuple[tuple[Tool, ...], tuple[ServerTool, ...]]:
        tools: dict[str, Tool] = {}
        server: list[ServerTool] = []
        for tool in map(shapes.mapping, [*shapes.sequence(self.raw.get("tools")), *self.added]):
            kind, name = shapes.text(tool.get("type")), shapes.text(tool.get("name"))
            schema = tool.get("input_schema")
            if kind in ("", "custom") and isinstance(schema, dict):
                # A deferred tool is not shown to the model before something in the history brings it in.
                if name and name not in self.removed and (not tool.get("defer_loading") or name in self.loaded):
                    strict = tool.get("strict")
                    described = shapes.text(tool.get("description"))
                    tools.setdefault(
                        name, Tool(name, described, _object(schema), strict if isinstance(strict, bool) else None)
                    )
            elif kind.startswith(_CLIENT_RUN):
                self.features.add(f"client tool {kind}")
            elif kind:
                server.append(ServerTool(kind, name or kind, {k: v for k, v in tool.items() if k != "cache_control"}))
                self.features.add(f"server tool {name or kind}")
        return tuple(tools.values()), tuple(server)


#: Tools without a schema that the client runs all the same: only Claude knows how to call them.
_CLIENT_RUN: Final = ("bash_", "text_editor_", "computer_", "memory_", "browser_")


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, an object's with properties in any case: others refuse tools without."""
    found = dict(schema)
    if found.get("type") != "object":
        found["type"] = "object"
    if not isinstance(found.get("properties"), dict):
        found["properties"] = {}
    return found


def _system(system: object) -> Iterator[str]:
    if isinstance(system, str):
        # As a plain string the attribution is its first line.
        if system.startswith(_BILLING):
            system = system.partition("\n")[2].lstrip("\n")
        if system:
            yield system
        return
    for block in map(shapes.mapping, shapes.sequence(system)):
        text = shapes.text(block.get("text"))
        if text and not text.startswith(_BILLING):
            yield text


def _choice(value: object) -> Choice | None:
    given = shapes.mapping(value)
    mode = given.get("type")
    if mode not in ("auto", "any", "tool", "none"):
        return None
    return Choice(mode, shapes.text(given.get("name")), given.get("disable_parallel_tool_use") is True)


def _number(value: object) -> float | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # 1e999 is JSON, and infinite
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _digest(value: object) -> str:
    """A name for a user or a session that says nothing about either; "" for none."""
    return hashlib.sha256(b"dbproxy:" + value.encode()).hexdigest()[:32] if isinstance(value, str) and value else ""


def _merged(turns: Iterable[Turn]) -> list[Turn]:
    """Neighbours of one role as one turn, as the API itself takes them."""
    found: list[Turn] = []
    for turn in turns:
        if found and found[-1].role == turn.role:
            found[-1] = Turn(turn.role, found[-1].parts + turn.parts)
        else:
            found.append(turn)
    return found


def _paired(turns: list[Turn]) -> list[Turn]:
    """The same history with every call answered at once, in order, and every other result turned into text."""
    found: list[Turn] = []
    at = 0
    while at < len(turns):
        turn = turns[at]
        at += 1
        if turn.role != "assistant":
            found.extend(_without_strays(turn))
            continue
        calls = _calls(turn)
        found.append(turn)
        if not calls:
            continue
        # Everything up to the assistant's next turn may hold the results; they come first, then the rest as it stood.
        following: list[Turn] = []
        while at < len(turns) and turns[at].role != "assistant":
            following.append(turns[at])
            at += 1
        results: dict[str, Result] = {}
        for part in (part for later in following for part in later.parts):
            if isinstance(part, Result) and part.id in calls and part.id not in results:
                results[part.id] = Result(part.id, calls[part.id], part.parts, part.is_error)
        answered = tuple(
            results.get(id) or Result(id, name, (Text(INTERRUPTED),), is_error=True) for id, name in calls.items()
        )
        rest = [kept for later in following for kept in _without_strays(later, known=calls)]
        found.append(Turn("user", answered))
        found.extend(rest)
    return _merged(found)


def _calls(turn: Turn) -> dict[str, str]:
    return {part.id: part.name for part in turn.parts if isinstance(part, Call)}


def _without_strays(turn: Turn, known: Iterable[str] = ()) -> Iterator[Turn]:
    """The turn without results: those of ``known`` ids are elsewhere by now, others belong to no call."""
    parts: list[Part] = []
    for part in turn.parts:
        if not isinstance(part, Result):
            parts.append(part)
        elif part.id not in known:
            parts.append(Text("[result of a call that is not in this history]"))
            parts.extend(part.parts)
    if parts:
        yield Turn(turn.role, tuple(parts))


def result_text(result: Result, separator: str = "\n\n") -> str:
    """A result as one text, marked if it is an error; pictures and files are named only."""
    texts = []
    for part in result.parts:
        if isinstance(part, Text):
            texts.append(part.text)
        else:
            texts.append("[image: see the next message]" if isinstance(part, Image) else "[file: see the next message]")
    text = separator.join(texts)
    return f"Error: {text}" if result.is_error else text


def media(results: Iterable[Result]) -> Iterator[tuple[Result, Image | Document]]:
    """The pictures and files inside results, for dialects whose results hold text alone."""
    for result in results:
        for part in result.parts:
            if isinstance(part, Image | Document):
                yield result, part
