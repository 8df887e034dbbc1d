"""A captured request tried against the rules, offline: which rule fits it, what would be sent, what would forbid it.

Owns the stage on which the installed plugins that route or bring providers play: services made of the settings alone,
a data folder that is gone afterwards. Invariants: nothing is sent, nothing is kept, nothing of a running proxy is
touched; what is shown holds no key; the request counts as its thread's first: the rules are asked, not the past.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from dbproxy import __version__
from dbproxy.app.agent_files import AgentFolders, user_agents
from dbproxy.app.routing.client_window import client_window
from dbproxy.errors import ConfigError, DbproxyError
from dbproxy.exchange import Exchange, Fields, RequestHead, Via
from dbproxy.hooks.dispatch import Dispatcher
from dbproxy.hooks.manager import FAILED, PluginManager
from dbproxy.hooks.routing import Declined
from dbproxy.hooks.specs import App
from dbproxy.model import shapes
from dbproxy.model.agents import match
from dbproxy.model.codecs.estimate import prompt_tokens, scale_of
from dbproxy.model.codecs.naming import ToolNames
from dbproxy.model.codecs.request import Request, Unroutable, read_request
from dbproxy.model.codecs.translation import Translation
from dbproxy.model.kinds import AGENT_ID, AGENT_TYPE, CLASS, classify
from dbproxy.model.link import Agent, Edge, Evidence, Link, RequestKind
from dbproxy.model.messages import MessagesRequest
from dbproxy.model.prices import Prices
from dbproxy.model.redact import redact_text
from dbproxy.paths import Paths

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from dbproxy.config import Config, Settings
    from dbproxy.hooks.routing import Provider, RouteDecision, Target
    from dbproxy.hooks.services import Services
    from dbproxy.model.agents import AgentFile
    from dbproxy.store.rows import ExchangeDetail

MESSAGES: Final = "/v1/messages"
#: The client that a request without fields is taken to come from.
_CLIENT: Final = "claude-cli/2.1.329 (external, cli)"
_SESSION, _AGENT = "rehearsal", "rehearsed"
_ROUTES, _PROVIDES = "route_request", "providers"
#: Classes that the client gives to requests (client facts 3.3).
_CLASSES: Final = {
    RequestKind.MAIN: "main",
    RequestKind.AFTER_COMPACTION: "main",
    RequestKind.SUBAGENT: "subagent",
    RequestKind.NESTED: "subagent",
    RequestKind.COMPACTION: "compaction",
}
_SPEAKING: Final = frozenset({RequestKind.SUBAGENT, RequestKind.NESTED})


@dataclass(frozen=True, slots=True)
class Captured:
    """A request as it was captured: its body, coding undone, and what else was kept of it. ``agent_name`` and
    ``agent_type`` are "" and ``kind`` is None where nobody knows them."""

    body: bytes
    path: str = MESSAGES
    fields: tuple[tuple[str, str], ...] = ()
    kind: RequestKind | None = None
    compaction: str = ""
    agent_name: str = ""
    agent_type: str = ""
    proof: str = ""  # where the agent's name is known from
    project: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What would be sent to one target. ``tokens`` is the prompt's size, guessed, ``window`` the model's context (0 for
    unknown); ``declined`` says why it would not be sent after all."""

    target: str
    url: str = ""
    dialect: str = ""
    size: int = 0
    tokens: int = 0
    window: int = 0
    scale: float = 1.0
    notes: tuple[str, ...] = ()
    declined: str = ""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What the rules make of a request: ``routed``, ``declined`` (a rule fits, and it stays) or ``stays``."""

    who: str
    model: str
    outcome: str
    rule: str = ""
    reason: str = ""
    fallback: bool = True
    thread: bool = False  # the client would be asked to send its whole history first
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """A rule as the plugin that follows it tells; ``refused`` says why nobody could answer, "" if somebody can."""

    key: str
    targets: tuple[str, ...]
    fallback: bool = True
    refused: str = ""
    origin: str = ""


# ---- what was captured


def read_captured(data: bytes, name: str, project: str) -> Captured:
    """The request in a file: a Messages body, or a line of ``dbproxy log export``. Raises DbproxyError."""
    text = data.strip()
    value = shapes.parse(text)
    if value is None and b"\n" in text:
        lines = [line for line in text.splitlines() if line.strip()]
        if all(isinstance(shapes.parse(line), dict) for line in lines[:2]):
            raise DbproxyError(f"{name} holds {len(lines)} requests", hint="Give one line of it, or --exchange ID")
    if not isinstance(value, dict):
        raise DbproxyError(f"{name} is no JSON object", hint="Give a Messages body, or a line of `dbproxy log export`")
    if isinstance(value.get("messages"), list):
        return Captured(text, project=project)
    if "exchange" in value and "request_headers" in value:
        raise DbproxyError(
            f"{name} holds the facts of a request and not its body",
            hint="Give --exchange ID, or a line of `log export`",
        )
    facts, request = shapes.mapping(value.get("exchange")), value.get("request")
    if not facts:
        raise DbproxyError(f"{name} is no Messages request", hint="Its body needs `messages`")
    body = _exported(request)
    if body is None:
        raise DbproxyError(f"the request in {name} was not kept", hint="Only what was captured whole can be tried")
    return Captured(
        body,
        shapes.text(facts.get("path"), MESSAGES),
        _known_client(shapes.text(facts.get("client"))),
        _kind(shapes.text(facts.get("kind"))),
        shapes.text(facts.get("compaction")),
        project=shapes.text(facts.get("project")) or project,
    )


def _exported(request: object) -> bytes | None:
    """A body as an export writes it: itself, or in Base64 where it is no JSON."""
    coded = shapes.mapping(request).get("base64")
    if isinstance(request, dict) and isinstance(coded, str) and len(request) == 1:
        try:
            return base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            return None
    return shapes.written(request) if isinstance(request, dict) else None


def captured_exchange(detail: ExchangeDetail, body: bytes | None) -> Captured:
    """The request of an exchange in the record. Raises DbproxyError where it was not kept."""
    row, agent = detail.exchange, detail.agent
    if body is None:
        raise DbproxyError(f"the request of {row.id} was not kept ({row.body_kind})")
    named = next((item.source for item in detail.evidence if item.question == "name"), "")
    return Captured(
        body,
        row.path,
        tuple(detail.request_headers),
        _kind(row.kind),
        row.compaction,
        agent.name if agent is not None else "",
        agent.type if agent is not None else "",
        named,
        row.project,
    )


def _kind(word: str) -> RequestKind | None:
    try:
        return RequestKind(word)
    except ValueError:
        return None


def _known_client(client: str) -> tuple[tuple[str, str], ...]:
    return (("user-agent", client),) if client else ()


def as_agent(captured: Captured, *, name: str = "", type: str = "", model: str = "") -> Captured:
    """The same request as if this agent had sent it, or as if it asked for this model. Raises DbproxyError."""
    if name or type:
        kind = captured.kind if captured.kind in (RequestKind.NESTED, RequestKind.COMPACTION) else RequestKind.SUBAGENT
        captured = replace(
            captured, kind=kind, agent_name=name, agent_type=type or "custom", proof="command line" if name else ""
        )
    if model:
        value = shapes.parse(captured.body)
        if not isinstance(value, dict):
            raise DbproxyError("the request's body is no JSON object, so its model cannot be changed")
        captured = replace(captured, body=shapes.written({**value, "model": model}))
    return captured


# ---- who it would be


def _recognised(captured: Captured, files: Sequence[AgentFile]) -> Captured:
    """What the record does not say is found out as far as one request alone tells: by its marks and the agent files."""
    view = MessagesRequest(captured.body)
    kind = captured.kind
    if kind is None:
        kind = classify(view, Fields.of(_encoded(captured.fields)), captured.path)[0]
    name, proof = captured.agent_name, captured.proof
    if not name and captured.agent_type in ("", "custom") and kind in (*_SPEAKING, RequestKind.MAIN):
        found = match(view.system, files)
        if found is not None:
            name, proof = found.name, "agent file"
            kind = RequestKind.SUBAGENT if kind is RequestKind.MAIN else kind
    type = captured.agent_type or ("custom" if name else "")
    return replace(captured, kind=kind, agent_name=name, agent_type=type, proof=proof)


def _encoded(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[bytes, bytes]]:
    for name, value in pairs:
        yield name.encode("latin-1", "replace"), value.encode("latin-1", "replace")


def _fields_of(captured: Captured) -> Fields:
    """The fields with which the client would send it."""
    own = {CLASS.decode(), AGENT_ID.decode(), AGENT_TYPE.decode(), "content-encoding", "x-claude-code-session-id"}
    kept = {name.lower(): value for name, value in captured.fields if name.lower() not in own}
    kept.setdefault("user-agent", _CLIENT)
    kept["x-claude-code-session-id"] = _SESSION
    kind = captured.kind or RequestKind.MAIN
    kept[CLASS.decode()] = _CLASSES.get(kind, "auxiliary")
    if _is_agents(captured):
        kept[AGENT_ID.decode()] = _AGENT
        kept[AGENT_TYPE.decode()] = captured.agent_type
    return Fields.of(_encoded(tuple(kept.items())))


def _is_agents(captured: Captured) -> bool:
    return captured.kind in _SPEAKING or bool(captured.agent_type)


def _link_of(captured: Captured) -> Link:
    """Its place: the first request of its thread."""
    kind = captured.kind or RequestKind.MAIN
    if not kind.speaks:
        return Link(_SESSION, _SESSION, "", 0, kind, edge=Edge.ASIDE)
    if not _is_agents(captured):
        return Link(_SESSION, _SESSION, "main", 1, kind, captured.compaction)
    agent = Agent(_AGENT, captured.agent_type, captured.agent_name, tool_use_id=_AGENT)
    evidence = (Evidence("name", captured.agent_name, captured.proof),) if captured.agent_name else ()
    return Link(
        _SESSION, _SESSION, _AGENT, 1, kind, captured.compaction, edge=Edge.SPAWN, agent=agent, evidence=evidence
    )


def _who(captured: Captured) -> str:
    kind = captured.kind or RequestKind.MAIN
    if kind not in _SPEAKING:
        main = kind in (RequestKind.MAIN, RequestKind.AFTER_COMPACTION)
        return "a turn of the main conversation" if main else f"a request of the kind {kind}"
    if not captured.agent_name and captured.agent_type in ("", "custom"):
        return "a turn of an agent whose name nobody knows"
    known = f", as the {captured.proof} says" if captured.proof else ""
    return f"a turn of the agent {captured.agent_name or captured.agent_type}{known}"


# ---- the stage


@dataclass(frozen=True, slots=True)
class _Held:
    body: bytes

    async def read(self) -> bytes:
        return self.body


@dataclass(slots=True)
class _Offline:
    """What plugins may ask where there is no proxy: the settings, the price table, the agent files, this one request.

    Everything else is not there, and who asks for it is told so.
    """

    settings_now: Settings
    prices: Prices
    files: Sequence[AgentFile] = ()
    known: Mapping[str, Provider] = field(default_factory=dict)
    place: Link | None = None
    values: Mapping[str, object] = field(init=False)

    def __post_init__(self) -> None:
        named = {item.name: getattr(self.settings_now, item.name) for item in fields(self.settings_now)}
        plain = {name: value.plain() if hasattr(value, "plain") else value for name, value in named.items()}
        self.values = MappingProxyType(plain)

    async def link(self, exchange: Exchange, seconds: float, /) -> Link | None:
        return self.place

    def request_body(self, exchange: Exchange, /) -> _Held | None:
        return _Held(exchange.body) if exchange.body is not None else None

    def settings(self, exchange: Exchange | None, /) -> Mapping[str, object]:
        return self.values

    def window(self, model: str, *, long: bool = False) -> int:
        return self.prices.window(model, long=long) or 0

    def context_window(self, model: str, /) -> int:
        return self.window(model)

    def client_window(self, exchange: Exchange, model: str, /) -> int:
        nobody = SimpleNamespace(known=lambda id: None)
        return client_window(cast("Any", SimpleNamespace(archive=self, scopes=nobody)), exchange, model)

    def client_variables(self, exchange: Exchange, /) -> Mapping[str, str]:
        return {}

    def note(self, conversation: str, /, **facts: object) -> None:
        pass

    def providers(self) -> Mapping[str, Provider]:
        return self.known

    async def agent_file(self, exchange: Exchange, name: str, /) -> AgentFile | None:
        return next((file for file in self.files if file.name == name), None)

    def __getattr__(self, name: str) -> Any:
        raise DbproxyError(f"{name} needs a running proxy")


class Stage:
    """The plugins that route and those that bring providers, started; ``failed`` says what went wrong with them."""

    def __init__(self, dispatch: Dispatcher, services: _Offline, failed: list[str]) -> None:
        self.dispatch = dispatch
        self.services = services
        self.failed = failed

    @property
    def follows_rules(self) -> bool:
        """Is there a plugin that does?"""
        return self.dispatch.has(_ROUTES)

    async def rules(self) -> list[Listed]:
        """The rules as the plugins that follow them tell, in order."""
        found = []
        for _, facts in await self.dispatch.collect("health"):
            for rule in map(shapes.mapping, shapes.sequence(facts.get("rules"))):
                targets = tuple(map(str, shapes.sequence(rule.get("to"))))
                refused = shapes.text(rule.get("refused"))
                found.append(Listed(shapes.text(rule.get("key")), targets, rule.get("fallback") is not False, refused))
        return found

    async def rehearse(self, captured: Captured) -> Rehearsed:
        """Ask the rules. Raises DbproxyError for what is no Messages request."""
        captured = _recognised(captured, self.services.files)
        try:
            request = read_request(captured.body)
        except Unroutable as error:
            raise DbproxyError(str(error)) from None
        exchange = self._exchange(captured)
        self.services.place = _link_of(captured)
        thread = "thread" in request.features
        who = _who(captured)
        if exchange.passthrough:
            return Rehearsed(who, request.model, "stays", reason="passthrough is on, and no rule acts")
        if captured.path != MESSAGES or not await self.dispatch.decide("wants_body", exchange=exchange):
            return Rehearsed(who, request.model, "stays", reason="no rule is for such a request")
        exchange.body = captured.body
        decision: RouteDecision | None = await self.dispatch.decide(_ROUTES, exchange=exchange)
        if decision is None:
            return Rehearsed(who, request.model, "stays", reason="no rule fits")
        if isinstance(decision, Declined):
            return Rehearsed(who, request.model, "declined", decision.rule, decision.reason)
        request = replace(request, features=request.features - {"thread"})
        attempts = tuple(self._attempt(target, request, exchange) for target in decision.targets)
        return Rehearsed(
            who, request.model, "routed", decision.rule, decision.reason, decision.fallback, thread, attempts
        )

    def _exchange(self, captured: Captured) -> Exchange:
        head = RequestHead(b"POST", captured.path.encode("latin-1", "replace"), b"HTTP/1.1", _fields_of(captured))
        return Exchange(
            id=_SESSION,
            connection=0,
            via=Via.TUNNEL,
            scheme="https",
            host="api.anthropic.com",
            port=443,
            path=captured.path,
            request=head,
            authorised=True,
            passthrough=self.services.settings_now.passthrough,
        )

    def _attempt(self, target: Target, request: Request, exchange: Exchange) -> Attempt:
        provider = self.services.known.get(target.provider)
        if provider is None:
            return Attempt(str(target), declined=f"there is no provider {target.provider}")
        tokens = prompt_tokens(request)
        try:
            able = provider.capabilities(target.model)
            scale = scale_of(self.services.client_window(exchange, request.model), able.context)
            translation = Translation(
                asked=request.model,
                model=target.model,
                message_id=_SESSION,
                capabilities=able,
                family=able.family or target.provider,
                names=ToolNames(tool.name for tool in request.tools),
                scale=scale,
                estimate=tokens,
            )
            declined = provider.unready() or provider.decline(request, target.model)
            if declined:
                return Attempt(str(target), tokens=tokens, window=able.context, declined=declined)
            call = provider.call(request, translation)
        except Unroutable as error:
            return Attempt(str(target), tokens=tokens, declined=str(error))
        except Exception as error:  # somebody else's code
            return Attempt(str(target), tokens=tokens, declined=f"the provider failed: {type(error).__name__}: {error}")
        url, dialect = call.url, call.codec.name if call.codec is not None else ""
        if call.as_client:
            url, dialect = "where the client sent it, with the client's own credential", "messages"
        for secret in call.secrets:
            url = url.replace(secret, "***")
        notes = tuple(translation.notes)
        url = redact_text(url)[0]
        return Attempt(str(target), url, dialect, len(call.body), tokens, able.context, scale, notes)


@asynccontextmanager
async def open_stage(config: Config, project: str) -> AsyncIterator[Stage]:
    """The stage for as long as the block lasts. ``project`` is the folder whose agent files count."""
    settings, failed = config.settings, []
    paths = Paths(settings.data_dir)
    manager = PluginManager(disabled=settings.plugins_disabled)
    manager.discover(paths.plugins if paths.plugins.is_dir() else None)
    failed += [f"the plugin {row.name} failed: {row.error}" for row in manager.rows() if row.state == FAILED]
    playing = {impl.plugin_name for hook in (_ROUTES, _PROVIDES) for impl in manager.implementations(hook)}
    for name in manager.names():
        if name not in playing:  # what others do at their start is no part of this
            manager.unregister(name)

    def tell(plugin: str, hook: str, error: str, quarantined: bool) -> None:
        failed.append(f"the plugin {plugin} failed: {error}")

    dispatch = Dispatcher(manager, on_failure=tell)
    files = AgentFolders(user_agents()).known(project)
    services = _Offline(settings, _prices(settings), files)
    with tempfile.TemporaryDirectory(prefix="dbproxy-rehearsal-") as folder:
        app = App(__version__, Path(folder), lambda event, *, level="info", **more: None, cast("Services", services))
        await dispatch.startup(app)
        brought = [provider for _, named in await dispatch.collect(_PROVIDES, app=app) for provider in named]
        services.known = {provider.name: provider for provider in brought}
        try:
            yield Stage(dispatch, services, failed)
        finally:
            await dispatch.shutdown(app)


def _prices(settings: Settings) -> Prices:
    try:
        return Prices.load(settings.prices.read_bytes(), str(settings.prices)) if settings.prices else Prices.load(None)
    except (OSError, ConfigError):
        return Prices.load(None)


# ---- in words


def sentences(found: Rehearsed) -> list[str]:
    """What came of it, the most important first."""
    rule = f" by the rule {found.rule}" if found.rule else ""
    why = f", because {found.reason}" if found.reason else ""
    said = [f"It is {found.who}, and asks for {found.model or 'no model'}."]
    if found.outcome != "routed":
        return [f"It stays where the client sends it{rule}{why}.", *said]
    targets = ", then ".join(attempt.target for attempt in found.attempts)
    said.insert(0, f"It goes to {targets}{rule}{why}.")
    if found.thread:
        said.append("It belongs to a message thread: the client is asked for its whole history first.")
    for attempt in found.attempts:
        said += _attempt_in_words(attempt)
    said.append(
        "If that fails, the upstream that the client chose answers."
        if found.fallback
        else "If that fails, the client is told so: the rule forbids the way back."
    )
    return said


def _attempt_in_words(attempt: Attempt) -> Iterator[str]:
    if attempt.declined:
        yield f"{attempt.target} would not be asked: {attempt.declined}."
        return
    yield f"{attempt.target} would get {attempt.size:,} bytes ({attempt.dialect}): {attempt.url}."
    window = f" of its {attempt.window:,}" if attempt.window else "; its window is not known"
    yield f"The prompt has about {attempt.tokens:,} tokens{window}."
    if attempt.scale != 1.0:
        yield f"The client would be told token counts times {attempt.scale:.3g}, in the measure of its own window."
    for note in attempt.notes:
        yield f"Translated: {note}."
