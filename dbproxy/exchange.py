"""One request and its answer as data: heads, timings, outcome. No I/O, no clock, no policy.

Field lines are kept exactly as they came (name, order, case, spacing), because an untouched message goes on byte for
byte. Everything that inspects fields uses the lower-case names beside them.
Imports nothing of dbproxy but errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator


class Fields:
    """Header or trailer fields of one message, in wire order.

    ``lines`` are the raw lines without their line end, ``names`` the lower-case names, ``values`` the values without
    surrounding blanks; the three lists run in parallel. Treat an instance as frozen: the methods that change
    something return a new one.
    """

    __slots__ = ("lines", "names", "values")

    def __init__(self, lines: list[bytes], names: list[bytes], values: list[bytes]) -> None:
        self.lines = lines
        self.names = names
        self.values = values

    @classmethod
    def of(cls, pairs: Iterable[tuple[bytes, bytes]]) -> Fields:
        """Fields from (name, value) pairs, written as ``Name: value``."""
        lines, names, values = [], [], []
        for name, value in pairs:
            lines.append(name + b": " + value)
            names.append(name.lower())
            values.append(value)
        return cls(lines, names, values)

    def get(self, name: bytes) -> bytes | None:
        """The first value of ``name`` (lower case), or None."""
        names = self.names
        return self.values[names.index(name)] if name in names else None

    def get_all(self, name: bytes) -> list[bytes]:
        """All values of ``name`` (lower case), in order."""
        if name not in self.names:
            return []
        return [value for key, value in zip(self.names, self.values, strict=True) if key == name]

    def tokens(self, name: bytes) -> set[bytes]:
        """The comma-separated list of ``name``, lower-cased."""
        return {token for value in self.get_all(name) for part in value.split(b",") if (token := part.strip().lower())}

    def without(self, names: frozenset[bytes]) -> Fields:
        """The same fields less those named (lower case)."""
        if names.isdisjoint(self.names):
            return self
        kept = [i for i, name in enumerate(self.names) if name not in names]
        return Fields([self.lines[i] for i in kept], [self.names[i] for i in kept], [self.values[i] for i in kept])

    def plus(self, name: bytes, value: bytes) -> Fields:
        """The same fields and one more at the end."""
        return Fields([*self.lines, name + b": " + value], [*self.names, name.lower()], [*self.values, value])

    def replaced(self, name: bytes, value: bytes) -> Fields:
        """The first field of that name gets ``value`` and keeps its place and spelling; others of it are dropped."""
        lower = name.lower()
        if lower not in self.names:
            return self.plus(name, value)
        first = self.names.index(lower)
        lines, names, values = [], [], []
        for i, key in enumerate(self.names):
            if key == lower:
                if i != first:
                    continue
                spelled = self.lines[i].partition(b":")[0]
                lines.append(spelled + b": " + value)
                values.append(value)
            else:
                lines.append(self.lines[i])
                values.append(self.values[i])
            names.append(key)
        return Fields(lines, names, values)

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """(lower-case name, value) in wire order."""
        return zip(self.names, self.values, strict=True)

    def __len__(self) -> int:
        return len(self.lines)

    def __repr__(self) -> str:
        # Names only: values may be credentials, and a repr ends up in logs.
        return f"Fields({b', '.join(self.names).decode('latin-1')})"


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's first line and fields. ``target`` and ``version`` (``b"HTTP/1.1"``) are as they came."""

    method: bytes
    target: bytes
    version: bytes
    fields: Fields


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """An answer's status line and fields; ``reason`` may be empty."""

    status: int
    reason: bytes
    version: bytes
    fields: Fields


class Outcome(Enum):
    """How an exchange ended."""

    OK = "ok"
    LOCAL = "local"  # answered by us: a plugin, an endpoint or an error of ours
    REFUSED = "refused"
    CLIENT_GONE = "client_gone"  # the client closed before the answer's end
    UPSTREAM_CUT = "upstream_cut"  # the upstream closed before the answer's end
    UPSTREAM_FAILED = "upstream_failed"  # no answer at all
    UPGRADED = "upgraded"  # became a two-way byte stream


class Via(Enum):
    """How the request reached us."""

    TUNNEL = "tunnel"  # inside a CONNECT that we terminate
    ABSOLUTE = "absolute"  # absolute-form target, as to a plain HTTP proxy
    BASE_URL = "base_url"  # origin form on our own port


@dataclass(slots=True)
class Timings:
    """Seconds on the event loop's monotonic clock; 0.0 means not reached."""

    received: float = 0.0  # request head complete
    sent: float = 0.0  # request head handed to the upstream
    first_byte: float = 0.0  # response head received
    finished: float = 0.0


@dataclass(slots=True, eq=False)
class Exchange:
    """One request on its way through the proxy.

    Plugins may read everything and keep what they learn in ``attributes`` under their own name.
    """

    id: str
    connection: int
    via: Via
    scheme: str  # "http" or "https": towards the upstream
    host: str  # normalised host name that the client meant
    port: int
    path: str  # target without scheme, authority and query
    request: RequestHead
    scope: str | None = None  # id of the launch scope
    authorised: bool = False  # its launch proved its secret, or it brought the client key: our keys may serve it
    loopback: bool = True  # the client sits on this machine
    passthrough: bool = False  # relay only: no policy may act
    body: bytes | None = None  # the request body as sent, only where it was read whole
    response: ResponseHead | None = None
    outcome: Outcome | None = None
    error: str = ""  # why, for every outcome but OK; never message text, never a credential
    bytes_up: int = 0  # body bytes as they went, without chunk framing
    bytes_down: int = 0
    timings: Timings = field(default_factory=Timings)
    attributes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestDraft:
    """What goes upstream; a transform returns the same object (untouched) or a new one.

    ``body`` is None when it is streamed. A changed body must come with identity coding: the sender removes
    ``content-encoding`` and rewrites ``content-length`` by itself.
    """

    head: RequestHead
    body: bytes | None


class SendBytes(Protocol):
    """Write body bytes of a local answer to the client; returns when the kernel took them."""

    def __call__(self, data: bytes, /) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class LocalResponse:
    """An answer made here instead of upstream.

    Give ``body`` for a fixed answer, or ``stream`` for one produced over time (sent chunked); a stream that raises
    reaches the client as a broken answer, never as a clean end.
    """

    status: int
    fields: Fields
    body: bytes = b""
    stream: Callable[[SendBytes], Awaitable[None]] | None = None
