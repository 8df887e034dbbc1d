"""What the fake API saw: connections, and requests with their exact bytes and a typed view over the body.

Data only, filled by ``connection``. Invariant: ``head + framed`` is exactly what came over the wire for a request.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import brotli
import trio
import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(eq=False, repr=False)
class Connection:
    """One accepted connection. Times are seconds on the event loop's clock."""

    number: int
    tls: bool
    opened: float
    alpn: str | None = None
    server_name: str | None = None
    raw: bytearray = field(default_factory=bytearray)  # everything received, decrypted
    received: int = 0  # bytes, also where raw is not kept
    requests: list[Received] = field(default_factory=list)
    gone_at: float | None = None  # the peer's end, or its reset, was seen
    closed_at: float | None = None
    how: str = ""  # "eof", "reset", "ours", "tls: ..." or a protocol error
    gone: trio.Event = field(default_factory=trio.Event)
    closed: trio.Event = field(default_factory=trio.Event)

    def __repr__(self) -> str:
        end = f"closed ({self.how})" if self.closed_at is not None else "open"
        return f"<Connection {self.number} {'tls' if self.tls else 'plain'} {end}, {len(self.requests)} requests>"


@dataclass(eq=False, repr=False)
class Sent:
    """Our answer, exactly as written."""

    status: int = 0
    head: bytes = b""
    body: bytearray = field(default_factory=bytearray)  # after content coding, without framing
    framed: bytearray = field(default_factory=bytearray)  # everything behind the head
    size: int = 0
    complete: bool = False  # ended as its framing promises
    first_at: float | None = None
    finished_at: float | None = None

    def __repr__(self) -> str:
        return f"<Sent {self.status}, {self.size} bytes{'' if self.complete else ', not complete'}>"


def decode(body: bytes, coding: str) -> bytes:
    """``body`` without its content coding; comma lists are undone from the right (RFC 9110 8.4)."""
    for name in reversed([part.strip().lower() for part in coding.split(",") if part.strip()]):
        if name in ("gzip", "x-gzip"):
            body = gzip.decompress(body)
        elif name == "deflate":
            try:
                body = zlib.decompress(body)
            except zlib.error:
                body = zlib.decompress(body, -15)
        elif name == "br":
            body = brotli.decompress(body)
        elif name == "zstd":
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        elif name != "identity":
            raise ValueError(f"unknown content coding {name}")
    return body


def blocks_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The content blocks of a message; a plain string counts as one text block (client facts 3.1)."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content or [] if isinstance(block, dict)]


@dataclass(eq=False, repr=False)
class Received:
    """One request. The typed views tolerate any body; they return empty values where it is not a Messages request."""

    number: int
    connection: Connection
    time: float  # head complete
    method: str
    target: str
    version: str
    head: bytes  # request line, fields and blank line, exactly as received
    fields: list[tuple[bytes, bytes]]  # names as spelled
    body: bytes = b""  # without framing, still coded
    framed: bytes = b""  # the body as it came, chunk framing and trailers included
    size: int = 0  # of body; also where the body itself is not kept
    digest: str = ""  # sha256 of body
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    complete: bool = False  # the whole body arrived
    complete_at: float | None = None
    sent: Sent = field(default_factory=Sent)
    history: list[dict[str, Any]] | None = None  # a continued thread's earlier messages, put before our own
    opening: dict[str, Any] | None = None  # the body with which that thread began: its system prompt and tools hold

    def __repr__(self) -> str:
        # Never the fields: a failing assertion would print credentials.
        return f"<Received {self.number} {self.method} {self.path}, {self.size} bytes, {self.sent!r}>"

    def header(self, name: str) -> str | None:
        """The first value of ``name`` in any case, or None."""
        wanted = name.lower().encode()
        for key, value in self.fields:
            if key.lower() == wanted:
                return value.decode("latin-1")
        return None

    @property
    def path(self) -> str:
        """The target without scheme, authority and query."""
        target = self.target
        if "://" in target[:8]:
            rest = target.split("://", 1)[1]
            target = "/" + rest.split("/", 1)[1] if "/" in rest else "/"
        return target.split("?", 1)[0]

    @property
    def query(self) -> str:
        """Behind the question mark."""
        return self.target.partition("?")[2]

    @cached_property
    def decoded(self) -> bytes:
        """The body without content coding. Raises what the decoder raises."""
        return decode(self.body, self.header("content-encoding") or "")

    @cached_property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object, or an empty one."""
        try:
            value = json.loads(self.decoded)
        except (ValueError, OSError, EOFError, zlib.error, brotli.error, zstandard.ZstdError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def is_messages(self) -> bool:
        """A request to the Messages endpoint itself; its children are something else (anthropic-api 0.9)."""
        return self.method == "POST" and self.path.endswith("/v1/messages")

    @property
    def stream(self) -> bool:
        """Did it ask for a stream?"""
        return self.json.get("stream") is True

    @property
    def model(self) -> str:
        """The model it names."""
        return str(self.json.get("model", ""))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """User and assistant messages of the whole conversation; mid-conversation system messages left out."""
        own = [m for m in self.json.get("messages") or [] if isinstance(m, dict)]
        return [m for m in [*(self.history or []), *own] if m.get("role") != "system"]

    def _blocks(self, kind: str) -> Iterator[dict[str, Any]]:
        return (block for m in self.messages for block in blocks_of(m) if block.get("type") == kind)

    @property
    def tools(self) -> list[str]:
        """Names of the tools it offers."""
        return [str(tool.get("name")) for tool in self.json.get("tools") or [] if isinstance(tool, dict)]

    @property
    def agent_tool(self) -> str:
        """``Agent`` or, up to 2.0.77, ``Task`` (client facts 3.1)."""
        return "Agent" if "Agent" in self.tools else "Task"

    @property
    def tool_results(self) -> int:
        """How many tool results the conversation holds."""
        return sum(1 for _ in self._blocks("tool_result"))

    @property
    def last_text(self) -> str:
        """All text of the last message."""
        if not self.messages:
            return ""
        return "\n".join(str(b.get("text", "")) for b in blocks_of(self.messages[-1]) if b.get("type") == "text")

    @property
    def first_text(self) -> str:
        """All text of the first message."""
        if not self.messages:
            return ""
        return "\n".join(str(b.get("text", "")) for b in blocks_of(self.messages[0]) if b.get("type") == "text")

    @property
    def system_text(self) -> str:
        """All text of the system prompt."""
        system = self.json.get("system")
        return "\n".join(str(b.get("text", "")) for b in blocks_of({"content": system}))

    @property
    def role(self) -> str:
        """Who speaks: compaction, subagent, main or auxiliary, by header, else by shape (client facts 3.3, 4.1)."""
        if not self.is_messages:
            return ""
        named = self.header("x-claude-code-request-class")
        if named in ("main", "subagent", "compaction", "auxiliary"):
            return named
        last = (self.json.get("messages") or [{}])[-1]
        ending = blocks_of(last)[-1:] if isinstance(last, dict) else []
        # The instruction stands behind a trailing system message as another one (anthropic-api 2.7).
        if is_compaction_text(self.last_text) or any(is_compaction_text(str(b.get("text", ""))) for b in ending):
            return "compaction"
        if self.header("x-claude-code-agent-id") or "cc_is_subagent=true" in self.system_text:
            return "subagent"
        return "main" if self.agent_tool in self.tools or self.history else "auxiliary"


def is_compaction_text(content: str) -> bool:
    """Does this user text ask for the conversation's summary (client facts 4.1, all versions)?"""
    return "create a detailed summary of the conversation so far" in content and (
        "<analysis>" in content and "<summary>" in content
    )
