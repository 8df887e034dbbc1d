"""What plugins may ask of the running proxy (`dbproxy.api.Services`): links, bodies, settings, history, own calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING

import trio

from dbproxy.app.agent_files import AgentFolders, user_agents
from dbproxy.app.analyst import decoded_body
from dbproxy.app.capture import project as cwd
from dbproxy.app.capture import recording_of
from dbproxy.app.routing.client_window import client_window
from dbproxy.app.send import send
from dbproxy.config import Section
from dbproxy.errors import DbproxyError
from dbproxy.model.link import Link

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from dbproxy.app.proxy import Proxy
    from dbproxy.config import Settings
    from dbproxy.exchange import Exchange, Fields, RequestHead
    from dbproxy.hooks.routing import Provider
    from dbproxy.hooks.services import CallAnswer
    from dbproxy.model.agents import AgentFile
    from dbproxy.scope import Scope


#: Settings of launches that are kept as plugins see them: those who remember by the object find it again.
_MOST_SETTINGS = 256


@dataclass(frozen=True, slots=True)
class Held:
    """A request's body in the pieces in which it came (`dbproxy.api.HeldBody`)."""

    fields: Fields
    pieces: tuple[bytes, ...]

    async def read(self) -> bytes | None:
        """The body, content coding undone; None if that cannot be done."""
        if self.fields.get(b"content-encoding") is None:
            return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        return await trio.to_thread.run_sync(decoded_body, self.fields, list(self.pieces))


def _plain(settings: Settings) -> dict[str, object]:
    """The settings by name; a table is a dictionary of dictionaries and lists."""
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    return {name: value.plain() if isinstance(value, Section) else value for name, value in values.items()}


class ProxyServices:
    """The services of one proxy; usable once it is assembled."""

    def __init__(self) -> None:
        self._proxy: Proxy | None = None
        self._known: dict[int, tuple[Settings, Mapping[str, object]]] = {}
        self._agents = AgentFolders(user_agents())
        self._looking = threading.Lock()

    def attach(self, proxy: Proxy) -> None:
        """From here on there is a proxy to ask."""
        self._proxy = proxy

    @property
    def _now(self) -> Proxy:
        if self._proxy is None:
            raise DbproxyError("the proxy is still starting: services work after startup")
        return self._proxy

    def _scope(self, exchange: Exchange) -> Scope | None:
        recording = recording_of(exchange)
        if recording is not None:
            return recording.scope
        return self._now.scopes.known(exchange.scope) if exchange.scope else None

    async def link(self, exchange: Exchange, seconds: float, /) -> Link | None:
        """See `dbproxy.api.Services`."""
        recording = recording_of(exchange)
        if recording is None:  # it is over
            known = exchange.attributes.get("link")
            return known if isinstance(known, Link) else None
        return await recording.linked(seconds)

    def request_body(self, exchange: Exchange, /) -> Held | None:
        """See `dbproxy.api.Services`."""
        recording = recording_of(exchange)
        if exchange.body is not None:
            pieces = [exchange.body]
        elif recording is not None and recording.kept_whole:
            pieces = list(recording.up)
        else:
            return None
        return Held(exchange.request.fields, tuple(pieces))

    async def stored_body(self, exchange_id: str, /) -> bytes | None:
        """See `dbproxy.api.Services`."""
        archive = self._now.archive
        await archive.flush(2.0)
        return await trio.to_thread.run_sync(archive.body, exchange_id, abandon_on_cancel=True)

    def settings(self, exchange: Exchange | None, /) -> Mapping[str, object]:
        """See `dbproxy.api.Services`."""
        proxy = self._now
        settings = proxy.settings if exchange is None else proxy.settings_for(self._scope(exchange))
        known = self._known.get(id(settings))
        if known is None:  # it keeps the settings alive, so that no others get their id
            known = self._known[id(settings)] = settings, MappingProxyType(_plain(settings))
            while len(self._known) > _MOST_SETTINGS:
                del self._known[next(iter(self._known))]
        return known[1]

    def context_window(self, model: str, /) -> int:
        """See `dbproxy.api.Services`."""
        return self._now.archive.window(model)

    def client_window(self, exchange: Exchange, model: str, /) -> int:
        """See `dbproxy.api.Services`."""
        return client_window(self._now, exchange, model)

    def client_variables(self, exchange: Exchange, /) -> Mapping[str, str]:
        """See `dbproxy.api.Services`."""
        scope = self._scope(exchange)
        return {} if scope is None else scope.client

    async def history(self, exchange_id: str, /) -> Sequence[bytes]:
        """See `dbproxy.api.Services`."""
        proxy = self._now
        await proxy.archive.flush(2.0)
        return await trio.to_thread.run_sync(proxy.archive.history, exchange_id, abandon_on_cancel=True)

    def note(self, conversation: str, /, **facts: object) -> None:
        """See `dbproxy.api.Services`."""
        self._now.sessions.tell(conversation, facts)

    def providers(self) -> Mapping[str, Provider]:
        """See `dbproxy.api.Services`."""
        return self._now.routing.providers()

    async def agent_file(self, exchange: Exchange, name: str, /) -> AgentFile | None:
        """See `dbproxy.api.Services`."""
        project = cwd(self._scope(exchange))

        def look() -> AgentFile | None:
            with self._looking:
                return next((file for file in self._agents.known(project) if file.name == name), None)

        return await trio.to_thread.run_sync(look, abandon_on_cancel=True)

    def send(
        self, on_behalf: Exchange, head: RequestHead, body: bytes, /, *, purpose: str, deadline: float
    ) -> AbstractAsyncContextManager[CallAnswer]:
        """See `dbproxy.api.Services`."""
        return send(self._now, on_behalf, head, body, purpose=purpose, deadline=deadline)
