"""What a store is given: immutable facts about exchanges, in the order in which they became known.

Values only; whoever makes them has already taken credentials out. A record is either a fact (small, never shed) or
carries a transcript (``request``, ``message``, ``stream``), which a store that cannot keep up may drop and count.

Invariants: ``ExchangeOpened`` comes before every other record of its exchange, ``ExchangeClosed`` comes once; a store
takes the same record twice without harm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from dbproxy.model.link import Link
    from dbproxy.model.parts import Parts
    from dbproxy.model.route import RouteFacts
    from dbproxy.model.usage import Usage

Pairs: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RequestBody:
    """A request's body as the client sent it, content coding undone.

    ``parts`` is None where the body is no Messages request; ``raw`` is then kept as it is. ``coding`` names the content
    codings that were undone ("" for none), ``sha256`` is over ``raw``. ``inexact`` says that a redaction changed it.
    """

    raw: bytes
    sha256: bytes
    parts: Parts | None = None
    coding: str = ""
    inexact: bool = False


@dataclass(frozen=True, slots=True)
class ExchangeOpened:
    """A request was read to its end of head (and of body, where the body is captured). Times are Unix seconds."""

    id: str
    started: float
    method: str
    host: str
    path: str
    via: str
    scope: str = ""
    project: str = ""  # working directory of the launch
    labels: Pairs = ()
    client: str = ""  # User-Agent
    account: str = ""  # fingerprint of the credential, "" without one
    model: str = ""  # asked for
    streamed: bool = False
    message_count: int = 0
    headers: Pairs = ()  # redacted
    body: RequestBody | None = None
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class ExchangeLinked:
    """An exchange's place became known, or better known."""

    link: Link


@dataclass(frozen=True, slots=True)
class RateLimit:
    """One window of the account's limits, as an answer's headers gave it.

    ``window`` is ``5h``, ``7d``, ``overage``, ... or ``requests``, ``tokens`` for API keys; ``utilization`` 0..1, -1 if
    not given; ``resets`` Unix seconds, 0 if not given; ``status`` as sent (``allowed``, ``allowed_warning``, ...).
    """

    window: str
    status: str = ""
    utilization: float = -1.0
    resets: float = 0.0
    limit: int = 0
    remaining: int = 0


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """Bytes of an answer's body, decoded, and when they were written to the client (ms after the head)."""

    at_ms: float
    data: bytes


@dataclass(frozen=True, slots=True)
class ExchangeClosed:
    """An exchange is over. Durations in milliseconds from the request's head; negative means never reached.

    ``outcome`` is ``ok``, ``error`` (the upstream answered with one), ``aborted`` (by the client), ``cut`` (by the
    upstream), ``failed`` (no answer), ``local`` (answered here) or ``upgraded``.
    """

    id: str
    finished: float
    outcome: str
    status: int = 0
    error: str = ""
    first_byte_ms: float = -1.0
    duration_ms: float = -1.0
    bytes_up: int = 0
    bytes_down: int = 0
    headers: Pairs = ()  # redacted
    model: str = ""  # that answered
    message_id: str = ""
    request_id: str = ""  # the upstream's
    stop_reason: str = ""
    usage: Usage | None = None
    cost_usd: float | None = None  # None: no price known
    priced_by: str = ""  # which row of the price table
    message: bytes | None = None  # the final message, or the error, as JSON
    inexact: bool = False
    stream: tuple[StreamPiece, ...] | None = None
    limits: tuple[RateLimit, ...] = field(default=())
    route: RouteFacts | None = None  # where it went instead, or why it stayed


Record: TypeAlias = ExchangeOpened | ExchangeLinked | ExchangeClosed
