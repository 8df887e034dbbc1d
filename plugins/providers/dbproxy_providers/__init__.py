"""Providers for dbproxy's routes: OpenAI, Gemini, Claude, servers that speak Messages, and all that speak like OpenAI.

This file owns the hooks; each provider is a `Configured` made from its table. Imports `dbproxy.api` only. Invariants:
the settings are read whenever the proxy asks, a key whenever it is used, so that nothing needs a restart; one bad
table never harms another provider; health and the log name places and reasons, never a key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import trio

from dbproxy.api import hookimpl
from dbproxy_providers.keys import Environment, environment
from dbproxy_providers.provider import Configured, codec_of
from dbproxy_providers.servers import SERVERS
from dbproxy_providers.tables import read_table
from dbproxy_providers.urls import CHAT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.api import App, Provider, Service

SETTING = "providers"
#: Seconds after the start at which the dialects are loaded: before anybody needs them, and in nobody's way.
_QUIET = 2.0


class Providers:
    """The plugin. ``env`` gives the variables in which keys stand."""

    dbproxy_api = (1, 2)

    def __init__(self, env: Callable[[], Environment] = environment) -> None:
        self._env = env
        self._providers: dict[str, Configured] = {}

    @hookimpl
    def providers(self, app: App) -> Iterable[Provider]:
        settings = app.services.settings(None) if app.services is not None else {}
        given = settings.get(SETTING)
        tables: Mapping[str, object] = given if isinstance(given, Mapping) else {}
        written = {str(name).lower() for name in tables}
        found = [read_table(name) for name in SERVERS if name not in written]
        found.extend(read_table(str(name), table) for name, table in tables.items())
        self._providers = {table.name: Configured(table, self._env, app.version) for table in found}
        for name, provider in self._providers.items():
            if provider.table.written and (reason := provider.unready()):
                app.emit("provider_unready", level="warning", provider=name, reason=reason)
            for warning in provider.warnings():
                app.emit("provider_unwise", level="warning", provider=name, reason=warning)
        return list(self._providers.values())

    @hookimpl
    def services(self, app: App) -> Iterable[Service]:
        return [("dialects", self._load)]

    async def _load(self) -> None:
        """Load what the first routed request would have to wait for."""
        await trio.sleep(_QUIET)
        await trio.to_thread.run_sync(codec_of, CHAT)

    @hookimpl
    def health(self) -> Mapping[str, object]:
        return {name: provider.unready() or "ready" for name, provider in self._providers.items()}
