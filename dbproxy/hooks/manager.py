"""Finding, loading and registering plugins; which are on; why one is not.

Order: installed distributions (entry-point group ``dbproxy``), then distributions in the plugin directory, which is
appended to ``sys.path`` so that nothing there can stand in for one of our own modules, then single-file drop-ins.
Must not import trio. Invariants: a plugin that cannot be loaded becomes a row and never stops the start (unless
strict); every candidate that was seen has exactly one row; nothing of a plugin is imported that is switched off.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import inspect
import os
import stat
import sys
import sysconfig
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pluggy

from dbproxy.errors import PluginError
from dbproxy.hooks import specs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from pluggy import HookImpl

#: States of a row.
LOADED, DISABLED, FAILED, NOT_LISTED = "loaded", "disabled", "failed", "not listed"


@dataclass(frozen=True, slots=True)
class PluginRow:
    """What became of one candidate. ``source`` is ``installed``, ``directory``, ``file`` or ``given``.

    ``error`` says in one line why a plugin failed; it names types and places, never contents.
    """

    name: str
    version: str
    source: str
    state: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    version: str
    source: str
    load: Callable[[], object]


def site_folder(directory: Path) -> Path:
    """Where wheels for this Python and platform live below the plugin directory."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-{sysconfig.get_platform()}"
    return directory / tag


class PluginManager:
    """The set of plugins of this process.

    ``disabled`` names plugins that stay off; ``allow``, if given, is the complete list of those that may load;
    ``strict`` turns the first failure into a `PluginError`. ``on_change`` is called after every change of the set.
    """

    def __init__(
        self, *, disabled: Collection[str] = (), allow: Collection[str] | None = None, strict: bool = False
    ) -> None:
        self.on_change: list[Callable[[], None]] = []
        self._strict = strict
        self._allow = None if allow is None else frozenset(allow)
        self._rows: dict[str, PluginRow] = {}
        self._extra_rows: list[PluginRow] = []
        self._candidates: dict[str, _Candidate] = {}
        self._pluggy = pluggy.PluginManager(specs.PROJECT)
        self._pluggy.add_hookspecs(specs)
        for name in disabled:
            self._pluggy.set_blocked(name)

    # ---- discovery ---------------------------------------------------------------------------------------------

    def discover(self, directory: Path | None = None) -> None:
        """Load everything installed, and everything in the plugin directory if one is given and exists.

        Blocks (imports, disk); call it before the event loop starts.
        """
        seen: set[str] = set()
        self._load_distributions(None, "installed", seen)
        if directory is None or not self._usable(directory):
            return
        site = site_folder(directory)
        if site.is_dir():
            if str(site) not in sys.path:
                sys.path.append(str(site))
            self._load_distributions([str(site)], "directory", seen)
        for file in sorted(directory.glob("*.py")):
            if not file.name.startswith(("_", ".")):
                self._load(_Candidate(file.stem, "", "file", lambda file=file: _import_file(file)))  # type: ignore[misc]

    def _load_distributions(self, path: list[str] | None, source: str, seen: set[str]) -> None:
        for candidate in self._guarded_distributions(path, source, seen):
            self._load(candidate)

    def _guarded_distributions(self, path: list[str] | None, source: str, seen: set[str]) -> Iterator[_Candidate]:
        found = importlib.metadata.distributions() if path is None else importlib.metadata.distributions(path=path)
        for distribution in found:
            try:
                # Most distributions are none of ours: their one small file is read, and not their metadata.
                if f"[{specs.PROJECT}" not in (distribution.read_text("entry_points.txt") or ""):
                    continue
                entries = [entry for entry in distribution.entry_points if entry.group == specs.PROJECT]
                name, version = distribution.metadata["Name"], distribution.version
                key = name.lower().replace("_", "-").replace(".", "-")
                if key in seen:  # the first of two copies on the path is the one that Python would import
                    continue
                seen.add(key)
            except Exception as error:
                self._fail(PluginRow(_folder_name(distribution), "", source, FAILED, describe(error)), error)
                continue
            for entry in entries:
                yield _Candidate(entry.name, version, source, entry.load)

    def _usable(self, directory: Path) -> bool:
        """Code from a folder that everybody may write to would be everybody's code with our user's rights."""
        try:
            facts = directory.stat()
        except OSError:
            return False
        if os.name == "posix" and (facts.st_mode & stat.S_IWOTH or facts.st_uid not in (os.getuid(), 0)):
            reason = "the plugin directory belongs to another user or everybody may write to it; run: chmod go-w on it"
            self._fail(PluginRow(directory.name, "", "directory", FAILED, reason), None)
            return False
        return True

    # ---- registration ------------------------------------------------------------------------------------------

    def register(self, plugin: object, name: str, *, version: str = "") -> bool:
        """Register an object that the caller already has. False if it is off or failed; its row says which."""
        return self._load(_Candidate(name, version, "given", lambda: plugin))

    def unregister(self, name: str) -> None:
        """Take a plugin out for good. Unknown names are ignored."""
        if self._pluggy.get_plugin(name) is not None:
            self._pluggy.unregister(name=name)
        if self._rows.pop(name, None) is not None:
            self._candidates.pop(name, None)
            self._changed()

    def disable(self, name: str) -> None:
        """Switch a plugin off now, and for as long as this process lives."""
        self._pluggy.set_blocked(name)  # also unregisters it
        row = self._rows.get(name)
        if row is not None and row.state != DISABLED:
            self._rows[name] = replace(row, state=DISABLED, error="")
            self._changed()

    def enable(self, name: str) -> bool:
        """Switch a plugin on that is off; loads it if need be. False if it failed or is unknown."""
        row, candidate = self._rows.get(name), self._candidates.get(name)
        if row is None or candidate is None:
            return False
        if row.state == LOADED:
            return True
        self._pluggy.unblock(name)
        del self._rows[name]
        return self._load(candidate)

    def rows(self) -> list[PluginRow]:
        """One row for each candidate seen, in order of discovery."""
        return [*self._rows.values(), *self._extra_rows]

    def implementations(self, hook: str) -> list[HookImpl]:
        """The registered implementations of a hook in call order (latest registration first, ``tryfirst`` before)."""
        caller = getattr(self._pluggy.hook, hook)
        return list(reversed(caller.get_hookimpls()))

    def names(self) -> list[str]:
        """Names of the registered plugins, in order of registration."""
        return [name for name, plugin in self._pluggy.list_name_plugin() if plugin is not None]

    def _load(self, candidate: _Candidate) -> bool:
        name, row = candidate.name, PluginRow(candidate.name, candidate.version, candidate.source, LOADED)
        if name in self._rows:
            first = self._rows[name]
            error = f"another plugin of this name is already there ({first.source} {first.version})".rstrip()
            self._fail(replace(row, state=FAILED, error=error), None)
            return False
        self._candidates[name] = candidate
        if self._allow is not None and name not in self._allow:
            self._rows[name] = replace(row, state=NOT_LISTED)
            return False
        if self._pluggy.is_blocked(name):
            self._rows[name] = replace(row, state=DISABLED)
            return False
        try:
            plugin = candidate.load()
            if inspect.isclass(plugin):
                plugin = plugin()
            _check_api(plugin)
            self._pluggy.register(plugin, name)
            self._check_hooks(name, plugin)
        except (Exception, SystemExit) as error:  # a script that was dropped in may well call sys.exit()
            if self._pluggy.get_plugin(name) is not None:
                self._pluggy.unregister(name=name)
            self._fail(replace(row, state=FAILED, error=describe(error)), error)
            return False
        self._rows[name] = row
        self._changed()
        return True

    def _check_hooks(self, name: str, plugin: object) -> None:
        hooks = 0
        for caller in self._pluggy.get_hookcallers(plugin) or ():
            for impl in caller.get_hookimpls():
                if impl.plugin is plugin:
                    hooks += 1
                    _check_implementation(caller.name, impl)
        if not hooks:
            raise PluginError("it implements no hook", hint="Mark its functions with dbproxy.api.hookimpl")

    def _fail(self, row: PluginRow, cause: BaseException | None) -> None:
        if row.name in self._rows:
            self._extra_rows.append(row)
        else:
            self._rows[row.name] = row
        if self._strict:
            raise PluginError(f"plugin {row.name} ({row.source}): {row.error}") from cause

    def _changed(self) -> None:
        for callback in self.on_change:
            callback()


# ---- checks --------------------------------------------------------------------------------------------------------


def _check_api(plugin: object) -> None:
    wanted = getattr(plugin, "dbproxy_api", None)
    if wanted is None:
        return
    if not (isinstance(wanted, tuple) and len(wanted) == 2 and all(isinstance(part, int) for part in wanted)):
        raise PluginError("dbproxy_api is not a pair of numbers", hint="Write for instance: dbproxy_api = (1, 0)")
    major, minor = specs.API_VERSION
    if wanted[0] != major or wanted[1] > minor:
        raise PluginError(
            f"it was written for plugin interface {wanted[0]}.{wanted[1]}, this is {major}.{minor}",
            hint="Update the plugin" if wanted[0] < major else "Update dbproxy",
        )


def _check_implementation(hook_name: str, impl: HookImpl) -> None:
    hook = specs.HOOKS.get(hook_name)
    if hook is None:
        if impl.optionalhook:
            return
        close = difflib.get_close_matches(hook_name, specs.HOOKS, n=1)
        raise PluginError(f"there is no hook {hook_name}", hint=f"Did you mean {close[0]}?" if close else "")
    if impl.wrapper or impl.hookwrapper:
        raise PluginError(f"{hook_name}: hook wrappers are not supported")
    if not hook.awaitable and inspect.iscoroutinefunction(impl.function):
        raise PluginError(f"{hook_name} must be a plain function, not async")


def _import_file(file: Path) -> object:
    name = f"dbproxy_plugin_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError("it cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _folder_name(distribution: importlib.metadata.Distribution) -> str:
    path = getattr(distribution, "_path", None)
    return str(getattr(path, "stem", "unknown"))


def describe(error: BaseException) -> str:
    """One line about an exception for logs and pages that anybody may read.

    Our own errors carry their text. Of any other exception only the type and the place: its text may hold contents.
    """
    if isinstance(error, BaseExceptionGroup) and error.exceptions:
        return describe(error.exceptions[0])
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, pluggy.PluginValidationError | ImportError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"  # about code, never about data
    place, traceback = "", error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        place = f" at {os.path.basename(code.co_filename)}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return f"{type(error).__name__}{place}"
