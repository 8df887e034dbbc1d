"""The hook specifications: the names, arguments, kinds, deadlines and answers that plugins program against.

Read by pluggy (signatures), by the dispatcher (kinds, deadlines, answers) and by the generated hook page. Must not
import trio. Invariant: each spec has a docstring, a kind and an answer check; adding an argument is compatible,
removing one is not.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

import pluggy

from dbproxy.errors import PluginError
from dbproxy.exchange import Exchange, Fields, LocalResponse, Outcome, RequestDraft, ResponseHead
from dbproxy.hooks.kinds import RULES, Kind
from dbproxy.hooks.metrics import Sample
from dbproxy.hooks.routing import Declined, Provider, Route, RouteDecision, Target

if TYPE_CHECKING:
    from pathlib import Path

    from dbproxy.hooks.services import Redactor, Services, Storage
    from dbproxy.wire.sse import SseEvent

#: Entry-point group, and the project name for pluggy's markers.
PROJECT = "dbproxy"

#: (major, minor) of what `dbproxy.api` offers. A plugin may name the one it was written for: ``dbproxy_api = (1, 0)``.
API_VERSION = (1, 2)

hookimpl = pluggy.HookimplMarker(PROJECT)
_hookspec = pluggy.HookspecMarker(PROJECT)

_F = TypeVar("_F", bound=Callable[..., Any])


# ---- what hooks receive and return -----------------------------------------------------------------------------


class Emit(Protocol):
    """Write one event to the log and the live feed; never blocks, never raises. No credentials, no message text."""

    def __call__(self, event: str, *, level: str = "info", **fields: object) -> None: ...


@dataclass(frozen=True, slots=True)
class App:
    """What a plugin gets of the running proxy.

    ``data_dir`` is the private data folder (a plugin keeps files under ``data_dir/"plugin-data"/NAME``). ``services``
    work from the end of `startup` on.
    """

    version: str
    data_dir: Path
    emit: Emit
    services: Services | None = None


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """One accepted client connection. ``peer`` is the numeric address; ``scope`` the launch scope's id, if any."""

    id: int
    peer: str
    loopback: bool
    scope: str | None = None


#: Terminate TLS and look inside, relay blindly, or answer 403.
TunnelDecision: TypeAlias = Literal["intercept", "pass", "refuse"]

#: A name for logs and health, and what to run.
Service: TypeAlias = tuple[str, Callable[[], Awaitable[None]]]


class StreamFilter(Protocol):
    """Stands in a stream of server-sent events, one object per exchange. Both methods are synchronous and quick.

    ``feed`` gets one complete event and returns the bytes that take its place: ``event.raw`` or None keeps it, ``b""``
    drops it. ``end`` returns what is to follow the last event; it is called only when the stream ended in order.
    """

    def feed(self, event: SseEvent, /) -> bytes | Iterable[bytes] | None: ...
    def end(self) -> bytes | Iterable[bytes] | None: ...


class StreamTap(Protocol):
    """Sees an answer off its path, one object per exchange; each method may be left out, and may be ``async def``.

    ``event`` gets each complete server-sent event, ``body`` pieces of any other body; content codings are removed
    before. ``lost`` is told how many bytes this tap will never see, after which only ``end`` comes. ``end`` comes once.
    A tap with an async method gets a task and a bounded queue of its own.
    """

    def event(self, event: SseEvent, /) -> Awaitable[None] | None: ...
    def body(self, data: bytes, /) -> Awaitable[None] | None: ...
    def lost(self, count: int, /) -> Awaitable[None] | None: ...
    def end(self, outcome: Outcome, /) -> Awaitable[None] | None: ...


# ---- answers -----------------------------------------------------------------------------------------------------
# Each check returns the answer in the form that callers rely on, or raises. ``given`` is the value that went in
# (transforms only).

Check: TypeAlias = Callable[[Any, Any], Any]


class WrongAnswer(PluginError):
    """A plugin answered with something that the hook does not take. The text names types, never contents."""


def _wrong(answer: object, expected: str) -> WrongAnswer:
    return WrongAnswer(f"returned {type(answer).__name__}, not {expected}")


def _nothing(answer: Any, given: Any) -> None:
    if answer is not None:
        raise _wrong(answer, "None")


def _true(answer: Any, given: Any) -> bool:
    if not isinstance(answer, bool):
        raise _wrong(answer, "True, False or None")
    return answer


def _services(answer: Any, given: Any) -> list[Service]:
    services = list(answer)
    for service in services:
        if not (isinstance(service, tuple) and len(service) == 2 and isinstance(service[0], str)):
            raise _wrong(service, "a (name, async function) pair")
        if not callable(service[1]):
            raise _wrong(service[1], "an async function")
    return services


def _mapping(answer: Any, given: Any) -> dict[str, Any]:
    if not isinstance(answer, Mapping):
        raise _wrong(answer, "a mapping")
    facts = dict(answer)
    json.dumps(facts, allow_nan=False)  # it goes into JSON beside everybody else's: a bad one must fail here
    return facts


def _samples(answer: Any, given: Any) -> list[Sample]:
    samples = list(answer)
    for sample in samples:
        if not isinstance(sample, Sample):
            raise _wrong(sample, "a Sample")
        sample.check()
    return samples


def _tunnel(answer: Any, given: Any) -> str:
    if answer not in ("intercept", "pass", "refuse"):
        raise _wrong(answer, "'intercept', 'pass' or 'refuse'")
    return str(answer)


def _fields(fields: Any) -> None:
    """No line of a plugin's head may end early: that would be a second message to the peer (request smuggling)."""
    if not isinstance(fields, Fields):
        raise _wrong(fields, "Fields")
    for line in fields.lines:
        if not isinstance(line, bytes):
            raise _wrong(line, "bytes as field line")
        if b"\r" in line or b"\n" in line or b"\0" in line or b":" not in line:
            raise WrongAnswer("a field line holds a line break or NUL, or no colon")


def _status(status: Any) -> None:
    if not (isinstance(status, int) and 200 <= status <= 599):
        raise WrongAnswer("the status of an answer must be 200 to 599")


def _one_line(reason: Any) -> None:
    if not isinstance(reason, bytes) or b"\r" in reason or b"\n" in reason:
        raise WrongAnswer("the reason must be bytes without a line break")


def _local(answer: Any, given: Any) -> LocalResponse:
    if not isinstance(answer, LocalResponse):
        raise _wrong(answer, "LocalResponse")
    _status(answer.status)
    if not isinstance(answer.body, bytes):
        raise _wrong(answer.body, "bytes as body")
    if answer.stream is not None and not callable(answer.stream):
        raise _wrong(answer.stream, "an async function as stream")
    _fields(answer.fields)
    return answer


def _draft(answer: Any, given: RequestDraft) -> RequestDraft:
    if not isinstance(answer, RequestDraft):
        raise _wrong(answer, "RequestDraft")
    if answer is given:
        return answer
    if not (answer.body is None or isinstance(answer.body, bytes)):
        raise _wrong(answer.body, "bytes as body")
    if (answer.body is None) != (given.body is None):
        raise WrongAnswer("a streamed body cannot be replaced, and a whole one not removed (see wants_body)")
    head = answer.head
    for part in (head.method, head.target, head.version):
        if not isinstance(part, bytes):
            raise _wrong(part, "bytes in the request line")
        if not part or any(byte <= 0x20 or byte == 0x7F for byte in part):
            raise WrongAnswer("a part of the request line is empty or holds blanks or control characters")
    _fields(head.fields)
    return answer


def _response_head(answer: Any, given: ResponseHead) -> ResponseHead:
    if not isinstance(answer, ResponseHead):
        raise _wrong(answer, "ResponseHead")
    if answer is given:
        return answer
    _status(answer.status)
    _one_line(answer.reason)
    _fields(answer.fields)
    return answer


def _filter(answer: Any, given: Any) -> Any:
    if not (callable(getattr(answer, "feed", None)) and callable(getattr(answer, "end", None))):
        raise _wrong(answer, "an object with feed() and end()")
    for method in (answer.feed, answer.end):
        if inspect.iscoroutinefunction(method):
            raise WrongAnswer("a filter's methods must be plain functions: they stand in the path of every byte")
    return answer


def _tap(answer: Any, given: Any) -> Any:
    if not any(callable(getattr(answer, name, None)) for name in ("event", "body", "end")):
        raise _wrong(answer, "an object with event(), body() or end()")
    return answer


def _storage(answer: Any, given: Any) -> Any:
    for name in ("append", "counts", "flush", "close"):
        if not callable(getattr(answer, name, None)):
            raise _wrong(answer, f"an object with {name}()")
    if not isinstance(getattr(answer, "state", None), str):
        raise _wrong(answer, "an object with a state")
    return answer


def _redactor(answer: Any, given: Any) -> Any:
    if not callable(answer) or inspect.iscoroutinefunction(answer):
        raise _wrong(answer, "a plain function")
    return answer


def _route(answer: Any, given: Any) -> RouteDecision:
    if isinstance(answer, Declined):
        return answer
    if not isinstance(answer, Route):
        raise _wrong(answer, "Route or Declined")
    if not answer.targets or not all(isinstance(target, Target) for target in answer.targets):
        raise WrongAnswer("a route needs at least one Target")
    return answer


def _providers(answer: Any, given: Any) -> list[Provider]:
    providers = list(answer)
    for provider in providers:
        if not isinstance(getattr(provider, "name", None), str) or not provider.name:
            raise _wrong(provider, "a provider with a name")
        for method in ("unready", "capabilities", "decline", "call"):
            if not callable(getattr(provider, method, None)):
                raise _wrong(provider, f"a provider with {method}()")
    return providers


def _texts(answer: Any, given: Any) -> list[str]:
    texts = list(answer)
    for text in texts:
        if not isinstance(text, str):
            raise _wrong(text, "a string")
    return texts


# ---- the specifications ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hook:
    """One specification. ``deadline`` in seconds; ``value`` names the argument that a transform threads through."""

    name: str
    kind: Kind
    deadline: float | None
    awaitable: bool
    arguments: tuple[str, ...]
    value: str
    check: Check
    signature: str
    documentation: str


HOOKS: dict[str, Hook] = {}


def _hook(
    kind: Kind, check: Check, *, deadline: float | None = None, value: str = "", awaitable: bool | None = None
) -> Callable[[_F], _F]:
    def declare(function: _F) -> _F:
        rule = RULES[kind]
        waits = rule.awaitable if awaitable is None else awaitable
        # A plain function cannot be stopped; only a tap's object may still have async methods.
        limit = (rule.deadline if deadline is None else deadline) if waits or kind is Kind.TAP else None
        signature = inspect.signature(function)
        HOOKS[function.__name__] = Hook(
            name=function.__name__,
            kind=kind,
            deadline=limit,
            awaitable=waits,
            arguments=tuple(signature.parameters),
            value=value,
            check=check,
            signature=str(signature).replace("'", ""),
            documentation=inspect.getdoc(function) or "",
        )
        return _hookspec(function)

    return declare


@_hook(Kind.LIFECYCLE, _nothing, deadline=10.0)
def startup(app: App) -> None:
    """Get ready, before the first connection is accepted.

    ``app`` is what the plugin may use of the proxy. Called in order of registration. A plugin that raises or takes
    longer than the deadline is set aside; the proxy starts without it.
    """


@_hook(Kind.LIFECYCLE, _nothing, deadline=5.0)
def shutdown(app: App) -> None:
    """Let go, after the last request ended; in reverse order of registration.

    Also called for plugins in quarantine. Files and tasks of the plugin's own are closed here.
    """


@_hook(Kind.SERVICE, _services)
def services(app: App) -> Iterable[Service] | None:
    """Name what has to run beside the requests for as long as the proxy runs.

    Returns (name, async function without arguments) pairs. A function that returns is done; one that raises is
    started again after 1, 2, 4 ... 60 seconds, and its plugin is set aside after five crashes without a quiet minute.
    """


@_hook(Kind.ALL, _mapping, deadline=1.0)
def health() -> Mapping[str, object] | None:
    """Facts for ``/health``, as a mapping that JSON can hold; they stand under the plugin's name.

    Anybody on this machine can read them: never a credential, never message text.
    """


@_hook(Kind.ALL, _samples, deadline=1.0)
def metrics() -> Iterable[Sample] | None:
    """Samples for ``/metrics``. Names start with ``dbproxy_``, counters end in ``_total``, label values are few."""


@_hook(Kind.DECIDE, _storage, deadline=10.0)
def open_storage(app: App) -> Storage | None:
    """Keep the records of exchanges somewhere else than in the SQLite file.

    The first answer wins; it gets every record in the order in which things became known (`dbproxy.api.Record`).
    Commands that read what was captured read the SQLite file only.
    """


@_hook(Kind.ALL, _redactor, deadline=5.0)
def redactor(app: App) -> Redactor | None:
    """Name a function that takes more out of texts than the built-in patterns do.

    It is called with ``("search", text)`` for all that enters the search index, and with ``("message", text)`` for the
    strings of bodies where the setting `redact_messages` is on, in threads, before anything reaches the disk. One that
    raises loses the text at hand, not the record.
    """


@_hook(Kind.ALL, _texts, deadline=2.0)
def conversation_reset(prefix: str | None) -> Iterable[str] | None:
    """Forget what is kept in memory about conversations whose id begins with ``prefix`` (all for None).

    Returns the ids of those that were forgotten. What was captured stays.
    """


@_hook(Kind.DECIDE, _tunnel, deadline=0.2)
def tunnel_policy(connection: ConnectionFacts, host: str, port: int) -> TunnelDecision | None:
    """Say what happens to a CONNECT: ``"intercept"``, ``"pass"`` (relay blindly) or ``"refuse"`` (403).

    ``host`` is normalised (lower case, no trailing dot, no brackets). None leaves it to the configured list.
    """


@_hook(Kind.DECIDE, _true, deadline=0.2)
def wants_body(exchange: Exchange) -> bool | None:
    """Return True to have this request's body read whole before anything is sent.

    The body then stands in ``exchange.body`` for `intercept_request` and in the draft for `transform_request`. Reading
    whole costs the memory and the time of the upload, so match the path exactly and say True only where needed.
    """


@_hook(Kind.DECIDE, _local, deadline=30.0)
def intercept_request(exchange: Exchange) -> LocalResponse | None:
    """Answer a request here instead of upstream. None sends it on.

    ``exchange.body`` is there if some plugin's `wants_body` said True. The deadline covers the decision only; a
    ``stream`` in the answer runs without one, for as long as the client stays.
    """


@_hook(Kind.DECIDE, _route, deadline=5.0)
def route_request(exchange: Exchange) -> RouteDecision | None:
    """Say that another model shall answer a request: a `Route`, or `Declined` with the reason why it stays.

    Asked behind `intercept_request`, for requests to ``/v1/messages`` whose body was read whole (`wants_body`), never
    in passthrough mode. None leaves the request where the client sent it. What was decided is stored and explained.
    """


@_hook(Kind.ALL, _providers, deadline=5.0)
def providers(app: App) -> Iterable[Provider] | None:
    """Name the providers to which requests can be routed.

    Asked at the start and again when the settings `providers` or `routes` changed. Of two with the same name the one
    that was registered last counts.
    """


@_hook(Kind.TRANSFORM, _draft, deadline=2.0, value="request")
def transform_request(exchange: Exchange, request: RequestDraft) -> RequestDraft | None:
    """Change what goes upstream: return a new draft, or None (or the same object) to leave it byte for byte.

    A body that is streamed (``request.body is None``) cannot be replaced. A new body must have identity coding;
    length and coding fields are put right by the sender.
    """


@_hook(Kind.TRANSFORM, _response_head, value="head", awaitable=False)
def transform_response_head(exchange: Exchange, head: ResponseHead) -> ResponseHead | None:
    """Change the status line or the fields of an answer before they go to the client. Synchronous and quick.

    Framing (length, transfer coding) and hop-by-hop fields are not a plugin's to change; the sender ignores them.
    """


@_hook(Kind.FILTER, _filter)
def stream_filter(exchange: Exchange, head: ResponseHead) -> StreamFilter | None:
    """Put an object into a stream of server-sent events that may change, drop or add events.

    Asked once per answer. Filters see only ``text/event-stream`` without content coding and without a fixed length;
    other bodies pass by them and are counted. An event is held back until it is complete, and no longer. A filter that
    raises is taken out, and the event at hand passes unchanged. Not asked in passthrough mode.
    """


@_hook(Kind.TAP, _tap, deadline=5.0)
def stream_tap(exchange: Exchange, head: ResponseHead) -> StreamTap | None:
    """Watch an answer without standing in its way: return an object per exchange, or None.

    It is fed some 20 ms behind the client, in batches, with content codings removed. The deadline is that of one call
    of an async method.
    """


@_hook(Kind.OBSERVE, _nothing, deadline=5.0)
def exchange_finished(exchange: Exchange) -> None:
    """An exchange is over, with whatever outcome; called once for each, after its synchronous taps have ended."""
