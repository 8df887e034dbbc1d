"""Routes and providers follow their files while the proxy runs.

Owns what the files said last (`FileSettings`), who stands above whom among them, and the task that looks for changes.
Never reads a file on the event loop: `dbproxy.config.following` does that, in a thread. Invariants: what a launch, or
the proxy itself, was told on its command line or in its environment stands above every file for as long as it runs; a
file that became wrong changes nothing, and its problem is said once; nothing else in a file has an effect before a
restart.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import trio

from dbproxy.app.crash import CRASHES, describe_crash
from dbproxy.config import TOLD, Context, Section, core_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbproxy.app.proxy import Proxy
    from dbproxy.config import Config, Settings
    from dbproxy.config.following import FollowedFiles, News
    from dbproxy.scope import Scope

#: Seconds between two looks: with the moment in which a file settles, a change holds within a second.
LOOK_EVERY: Final = 0.9
#: Seconds to the first look: what changed since the settings were read, but whoever waits for our start comes first.
_SOON: Final = 0.1
_ROUTES, _PROVIDERS = "routes", "providers"
_NOTHING: Final = Section()


@dataclass(slots=True)
class FileSettings:
    """``told`` is what the proxy itself was told when it started, ``user`` what the user's file says, ``projects`` what
    the project files say that count in the working directories of launches; each by setting."""

    told: Mapping[str, Section] = field(default_factory=dict)
    user: Mapping[str, Section] = field(default_factory=dict)
    projects: dict[str, Mapping[str, Section]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> FileSettings:
        """What a configuration holds, apart by its sources."""
        names = (_ROUTES, _PROVIDERS)
        return cls(
            {name: config.said(name, *TOLD, "project") or _NOTHING for name in names},
            {name: config.said(name, "user") or _NOTHING for name in names},
        )

    def for_all(self, settings: Settings) -> Settings:
        """``settings`` as they hold for the proxy and for traffic without a launch."""
        routes, providers = (
            self.told.get(name, _NOTHING).over(self.user.get(name, _NOTHING)) for name in (_ROUTES, _PROVIDERS)
        )
        return replace(settings, routes=routes, providers=providers)

    def for_launch(self, settings: Settings, scope: Scope) -> Settings:
        """``settings`` with what a launch was told, and the files that count for it. Raises ValueError."""
        own_settings = settings.with_launch_values(scope.settings)
        told = own_settings.routes if _ROUTES in scope.settings else _NOTHING
        project = self.projects.get(scope.cwd)
        # Until its file is looked at, what its launcher found there holds.
        routes = project.get(_ROUTES, _NOTHING) if project is not None else _section(scope.project.get(_ROUTES))
        return replace(own_settings, routes=told.over(routes).over(self.user.get(_ROUTES, _NOTHING)))


def differences(old_settings: Settings, new_settings: Settings) -> set[str]:
    """The names of the settings that became others."""
    found = set()
    if old_settings.routes != new_settings.routes:
        found.add(_ROUTES)
    if old_settings.providers != new_settings.providers:
        found.add(_PROVIDERS)
    return found


def _section(raw: object) -> Section:
    found: Section = core_table().by_key()[_ROUTES].kind.parse(raw or {}, Context())
    return found


class Reloader:
    """The task. Callables in ``on_change`` are called on the event loop whenever something changed."""

    def __init__(self, proxy: Proxy, files: FollowedFiles) -> None:
        self.on_change: list[Callable[[], None]] = []
        self._proxy = proxy
        self._files = files
        self._problems: dict[str, str] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        await trio.sleep(_SOON)
        while True:
            try:
                await self.look()
            except CRASHES as error:  # what held goes on
                self._proxy.counters.crashes_total += 1
                self._proxy.journal.emit("reload_crashed", level="error", error=describe_crash(error))
            await trio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Look once, and let what is new hold."""
        proxy = self._proxy
        folders = proxy.launch_folders()
        news = await trio.to_thread.run_sync(self._files.look, folders, abandon_on_cancel=True)
        changed = [one for one in news if self._took(one)]
        proxy.files.projects = {name: said for name, said in proxy.files.projects.items() if name in folders}
        self._problems = {name: text for name, text in self._problems.items() if not name or name in folders}
        if changed:
            for tell in self.on_change:
                tell()

    def _took(self, news: News) -> bool:
        """Let one file's news hold; whether that changed anything."""
        proxy, before = self._proxy, self._problems.pop(news.folder, "")
        file, folder = str(news.file) if news.file is not None else None, news.folder or None
        if news.problem:
            self._problems[news.folder] = news.problem
            if news.problem != before:
                proxy.journal.emit("settings_invalid", level="warning", file=file, folder=folder, message=news.problem)
            return False
        if news.folder:
            proxy.files.projects[news.folder] = news.values
        else:
            proxy.files.user = news.values
        changed = proxy.renew_settings()
        if changed:
            proxy.journal.emit("settings_reloaded", settings=sorted(changed), file=file, folder=folder)
        return bool(changed)
