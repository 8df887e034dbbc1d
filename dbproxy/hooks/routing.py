"""Routes and providers as plugins give them: where a request shall go, and how to talk to who is there.

Values and protocols; the core carries a route out (dbproxy/app/routing/routed.py). Must not import trio. Invariants: a
provider makes a call, it never sends one; a key of ours stands in the fields of its own call only, and the client's
credential in none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from dbproxy.exchange import Fields

if TYPE_CHECKING:
    from dbproxy.model.codecs import Codec
    from dbproxy.model.codecs.capabilities import Capabilities
    from dbproxy.model.codecs.request import Request
    from dbproxy.model.codecs.translation import Translation


@dataclass(frozen=True, slots=True)
class Target:
    """A model at a provider; ``provider`` is the name under which one was registered."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


@dataclass(frozen=True, slots=True)
class Route:
    """Send a request elsewhere: to the first of ``targets`` that takes it.

    With ``fallback`` the request goes where the client sent it if none does, with what other models thought taken out
    of its history. ``rule`` is the rule as its author wrote it, ``reason`` the evidence on which it fits; both are
    stored and shown.
    """

    targets: tuple[Target, ...]
    rule: str = ""
    reason: str = ""
    fallback: bool = True


@dataclass(frozen=True, slots=True)
class Declined:
    """A rule fits, and the request stays where it was sent all the same: ``reason`` says why. Stored and shown.

    ``foreign`` says that its history may hold what other models thought, which has to be taken out.
    """

    reason: str
    rule: str = ""
    foreign: bool = False


RouteDecision: TypeAlias = Route | Declined


@dataclass(frozen=True, slots=True)
class ProviderLimits:
    """How patient to be with a provider. Times in seconds.

    ``first_byte`` covers the time from the request to the head of the answer, ``silence`` every pause within it.
    ``retries`` are further tries before anything came (connection, 408, 429, 5xx), with a growing pause; after
    ``failures`` failed requests in a row none is tried for ``cooldown``.
    """

    connect: float = 10.0
    first_byte: float = 120.0
    silence: float = 300.0
    retries: int = 1
    failures: int = 5
    cooldown: float = 30.0


@dataclass(frozen=True, slots=True)
class ProviderCall:
    """A request ready to be sent: an absolute ``url``, header ``fields`` without framing, the ``body``.

    ``codec`` reads the answer. ``secrets`` are texts that must be taken out of every message. With ``as_client`` the
    request goes where the client sent it, with the client's own head and credential, and only the body is replaced;
    the answer comes back byte for byte (``url``, ``fields`` and ``codec`` are not used).
    """

    body: bytes
    url: str = ""
    fields: Fields = field(default_factory=lambda: Fields([], [], []))
    codec: Codec | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    as_client: bool = False


class Provider(Protocol):
    """Somebody who answers. Methods are synchronous and do no I/O but read a key; ``call`` may run in a thread.

    A provider may have an attribute ``keyless``: True says that no key of ours goes with its requests, so that it may
    serve whoever talks to the proxy. Without it only exchanges that are ``authorised`` are routed to it.
    """

    name: str
    limits: ProviderLimits

    def unready(self) -> str:
        """Why it cannot be used at all (no key, a bad URL), in one line for a person; "" if it can."""

    def capabilities(self, model: str, /) -> Capabilities:
        """What this model can do."""

    def decline(self, request: Request, model: str, /) -> str:
        """Why this request cannot be served faithfully (a server tool, a PDF, ...); "" if it can. Not its size: the
        core compares that with the model's window."""

    def call(self, request: Request, translation: Translation, /) -> ProviderCall:
        """Put the request into the provider's words. Raises `Unroutable`."""
