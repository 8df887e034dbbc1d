"""The calls that need no event loop, and the accounts of every plugin: failures, slow calls, quarantine.

The launcher uses this alone; `dispatch` builds on it. Must not import trio. Invariants: what a plugin does wrong is
counted against that plugin and never raised to the caller; Cancelled and other base exceptions always pass through
(but SystemExit, which is a plugin calling sys.exit, and nobody else's wish to stop).
"""

from __future__ import annotations

from contextvars import ContextVar
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from dbproxy.errors import PluginError
from dbproxy.hooks.kinds import QUARANTINE_AFTER, SLOW_CALL, Kind
from dbproxy.hooks.manager import PluginManager, describe
from dbproxy.hooks.metrics import Sample
from dbproxy.hooks.specs import HOOKS, Hook, WrongAnswer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Name of the plugin whose code runs now; empty outside plugins. For logs and the stall meter.
running_plugin: ContextVar[str] = ContextVar("running_plugin", default="")

#: What counts as a failure of a plugin.
FAILURES = (Exception, SystemExit)
#: The same in synchronous calls, where no cancellation can be in a group.
SYNC_FAILURES = (*FAILURES, BaseExceptionGroup)


class DeadlinePassed(PluginError):
    """An implementation did not return in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer within {seconds:g} s")


class PluginAccount:
    """What is known of one plugin while the process runs."""

    __slots__ = ("dropped", "error", "failures", "name", "quarantined", "slow")

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0
        self.slow = 0  # synchronous calls longer than SLOW_CALL
        self.dropped = 0  # observations and stream events that were lost for this plugin
        self.quarantined = False
        self.error = ""

    def report(self) -> dict[str, object]:
        """For health: numbers, and the last error without contents."""
        return {
            "state": "quarantined" if self.quarantined else "ok",
            "failures": self.failures,
            "slow": self.slow,
            "dropped": self.dropped,
            "error": self.error,
        }


class Implementation:
    """One plugin's function for one hook, resolved for calling."""

    __slots__ = ("account", "argnames", "consecutive", "function", "hook")

    def __init__(
        self, account: PluginAccount, hook: Hook, function: Callable[..., Any], argnames: tuple[str, ...]
    ) -> None:
        self.account = account
        self.hook = hook
        self.function = function
        self.argnames = argnames
        self.consecutive = 0


class Calls:
    """Hook calls without an event loop over the plugins of a manager.

    ``on_failure(plugin, hook, error, quarantined)`` is told of each failure; ``error`` is one line without contents.
    """

    def __init__(
        self, manager: PluginManager, *, on_failure: Callable[[str, str, str, bool], None] | None = None
    ) -> None:
        self.manager = manager
        self.filters_skipped = 0  # event streams that filters could not enter: coded, or of fixed length
        self._on_failure = on_failure
        self._accounts: dict[str, PluginAccount] = {}
        self._known: dict[tuple[str, str], Implementation] = {}
        self._calls: dict[str, tuple[Implementation, ...]] = {}
        self._rebuild()
        manager.on_change.append(self._rebuild)

    # ---- the plugin set ----------------------------------------------------------------------------------------

    def has(self, hook: str) -> bool:
        """Is there anybody to call? Costs one look-up: ask before preparing arguments."""
        return bool(self._calls[hook])

    def account(self, name: str) -> PluginAccount:
        """The account of a plugin, opened at first use."""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = PluginAccount(name)
        return account

    def reinstate(self, name: str) -> bool:
        """Take a plugin out of quarantine. False if it is not in it."""
        account = self._accounts.get(name)
        if account is None or not account.quarantined:
            return False
        account.quarantined = False
        for impl in self._known.values():
            if impl.account is account:
                impl.consecutive = 0
        self._rebuild()
        return True

    def report(self) -> dict[str, dict[str, object]]:
        """For health: each plugin's state, by name; also those that are off or failed to load."""
        facts: dict[str, dict[str, object]] = {}
        for row in self.manager.rows():
            if row.state == "loaded":
                facts[row.name] = {"version": row.version, **self.account(row.name).report()}
            elif row.name not in facts:
                facts[row.name] = {"version": row.version, "state": row.state, "error": row.error}
        return facts

    def samples(self) -> list[Sample]:
        """Our own metrics about plugins."""
        samples = [
            Sample("dbproxy_filters_skipped_total", self.filters_skipped, help="Event streams without their filters."),
        ]
        for account in self._accounts.values():
            labels = {"plugin": account.name}
            samples += [
                Sample("dbproxy_plugin_failures_total", account.failures, labels, help="Failed calls of a plugin."),
                Sample("dbproxy_plugin_slow_total", account.slow, labels, help="Calls that blocked the event loop."),
                Sample("dbproxy_plugin_dropped_total", account.dropped, labels, help="Events lost for a plugin."),
                Sample("dbproxy_plugin_quarantined", int(account.quarantined), labels, "gauge", "1: set aside."),
            ]
        return samples

    def _rebuild(self) -> None:
        """Resolve the implementations of every hook again; called once per change, never per call."""
        known: dict[tuple[str, str], Implementation] = {}
        for name, hook in HOOKS.items():
            found = []
            for raw in self.manager.implementations(name):
                key = (raw.plugin_name, name)
                old = self._known.get(key)
                if old is None or old.function != raw.function:
                    old = Implementation(self.account(raw.plugin_name), hook, raw.function, tuple(raw.argnames))
                known[key] = old
                if not old.account.quarantined:
                    found.append(old)
            self._calls[name] = tuple(found)
        self._known = known

    # ---- accounts ----------------------------------------------------------------------------------------------

    def failed(self, impl: Implementation, error: BaseException) -> None:
        """Count a failure; the fifth in a row, or the first at start-up, puts the plugin into quarantine."""
        impl.consecutive += 1
        impl.account.failures += 1
        impl.account.error = f"{describe(error)} in {impl.hook.name}"
        limit = 1 if impl.hook.name == "startup" else QUARANTINE_AFTER
        if impl.consecutive >= limit and not impl.account.quarantined:
            self.set_aside(impl.account)
        self._tell(impl.account, impl.hook.name)

    def set_aside(self, account: PluginAccount) -> None:
        """Put a plugin into quarantine: none of its hooks but `shutdown` is called until it is reinstated."""
        account.quarantined = True
        self._rebuild()

    def took(self, impl: Implementation, seconds: float) -> None:
        """Count a synchronous call as slow if it was."""
        if seconds > SLOW_CALL:
            impl.account.slow += 1

    def _tell(self, account: PluginAccount, hook: str) -> None:
        if self._on_failure is not None:
            self._on_failure(account.name, hook, account.error, account.quarantined)

    # ---- calls -------------------------------------------------------------------------------------------------

    def transform_sync(self, hook: str, value: Any, **arguments: object) -> Any:
        """Thread a value through a synchronous transform hook. A failing step is skipped."""
        for impl in self._calls[hook]:
            arguments[impl.hook.value] = MappingProxyType(value) if isinstance(value, dict) else value
            answer = self.call_sync(impl, arguments, given=value)
            if answer is not None:
                value = answer
        return value

    def collect_sync(self, hook: str, **arguments: object) -> list[tuple[Implementation, Any]]:
        """Every answer that is not None of a synchronous hook (services, filters, taps)."""
        answers = ((impl, self.call_sync(impl, arguments)) for impl in self._calls[hook])
        return [(impl, answer) for impl, answer in answers if answer is not None]

    def call_sync(self, impl: Implementation, arguments: dict[str, object], given: object = None) -> Any:
        """One implementation's checked answer; None if it has none or failed."""
        token = running_plugin.set(impl.account.name)
        began = perf_counter()
        try:
            answer = impl.function(*[arguments[name] for name in impl.argnames])
            if answer is not None:
                if hasattr(answer, "__await__"):
                    refuse_awaitable(answer)
                answer = impl.hook.check(answer, given)
        except SYNC_FAILURES as error:
            self.failed(impl, error)
            return None
        finally:
            running_plugin.reset(token)
            self.took(impl, perf_counter() - began)
        # A factory of filters and taps has done well only when its object has: see taps.
        if impl.hook.kind is not Kind.FILTER and impl.hook.kind is not Kind.TAP:
            impl.consecutive = 0
        return answer


def refuse_awaitable(answer: Awaitable[object]) -> NoReturn:
    """An awaitable where none is allowed: close it, so that it is not reported as never awaited, and say so."""
    close = getattr(answer, "close", None)
    if close is not None:
        close()
    raise WrongAnswer("returned an awaitable where a plain answer is needed")
