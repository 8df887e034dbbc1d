"""The hook calls of the running proxy: one method per kind, each with its deadline, and each plugin's own tasks.

pluggy's own loop stops at the first exception and cannot await, so the loop is ours. Must not import net, store, proc
or app. Invariants: no call outlives its deadline (unless the plugin shields itself or blocks); no exception of a
plugin reaches the caller, not even in a group beside a cancellation; `observe_nowait` never waits; tasks run only in
the nursery of `run_services`.
"""

from __future__ import annotations

import inspect
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

import trio

from dbproxy.hooks.calls import FAILURES, Calls, DeadlinePassed, Implementation, PluginAccount, running_plugin
from dbproxy.hooks.kinds import QUARANTINE_AFTER
from dbproxy.hooks.manager import describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbproxy.hooks.manager import PluginManager
    from dbproxy.hooks.specs import App

#: A service that ran this long without a crash starts over with the shortest pause (seconds).
QUIET_MINUTE = 60.0

#: How long a plugin's waiting observations are worked off before everything else gets its turn (seconds).
OBSERVER_SLICE = 0.0005


class _Observations:
    """The bounded queue of one plugin's observers."""

    __slots__ = ("busy", "idle", "items", "wake")

    def __init__(self) -> None:
        self.items: deque[tuple[Implementation, dict[str, object]]] = deque()
        self.wake = trio.Event()
        self.idle: trio.Event | None = None
        self.busy = False


class Dispatcher(Calls):
    """Hook calls under Trio.

    ``queue_limit`` bounds each plugin's queue of observations. Everything else as in `Calls`.
    """

    def __init__(
        self,
        manager: PluginManager,
        *,
        on_failure: Callable[[str, str, str, bool], None] | None = None,
        queue_limit: int = 1024,
    ) -> None:
        self._queue_limit = queue_limit
        self._observations: dict[str, _Observations] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._services_running: dict[str, int] = {}
        self._started: set[str] = set()
        self._set_changed: trio.Event | None = None
        super().__init__(manager, on_failure=on_failure)

    # ---- one method per kind -----------------------------------------------------------------------------------

    async def decide(self, hook: str, **arguments: object) -> Any:
        """The first answer that is neither None nor False, or None."""
        for impl in self._calls[hook]:
            answer = await self._call(impl, arguments)
            if answer is not None and answer is not False:
                return answer
        return None

    async def transform(self, hook: str, value: Any, **arguments: object) -> Any:
        """Thread ``value`` through all implementations. Returns the same object if nobody changed it."""
        for impl in self._calls[hook]:
            arguments[impl.hook.value] = value
            answer = await self._call(impl, arguments, given=value)
            if answer is not None:
                value = answer
        return value

    async def collect(self, hook: str, **arguments: object) -> list[tuple[str, Any]]:
        """(plugin, answer) of every implementation that gave one, in order of registration."""
        answers = []
        for impl in reversed(self._calls[hook]):
            answer = await self._call(impl, arguments)
            if answer is not None:
                answers.append((impl.account.name, answer))
        return answers

    async def startup(self, app: App) -> None:
        """Call `startup` of each plugin that was not started yet, in order of registration.

        One that fails is set aside at once. Awaited by the server before it listens; `run_services` repeats it for
        plugins that were switched on or reinstated later.
        """
        for impl in reversed(self._calls["startup"]):
            if impl.account.name not in self._started:
                await self._call(impl, {"app": app})
                if not impl.account.quarantined:
                    self._started.add(impl.account.name)

    async def shutdown(self, app: App) -> None:
        """Call `shutdown` of each plugin, the latest first; also of those in quarantine."""
        for raw in self.manager.implementations("shutdown"):
            impl = self._known[(raw.plugin_name, "shutdown")]
            await self._call(impl, {"app": app})

    def observe_nowait(self, hook: str, **arguments: object) -> None:
        """Queue an observation for every plugin that has the hook. A full queue loses it for that plugin, counted."""
        for impl in self._calls[hook]:
            queue = self._queue(impl.account.name)
            if len(queue.items) >= self._queue_limit:
                impl.account.dropped += 1
            else:
                queue.items.append((impl, arguments))
                queue.wake.set()

    async def _call(self, impl: Implementation, arguments: dict[str, object], given: object = None) -> Any:
        """One implementation's checked answer within its deadline; None if it has none or failed."""
        token = running_plugin.set(impl.account.name)
        began: float | None = perf_counter()
        try:
            answer = impl.function(*[arguments[name] for name in impl.argnames])
            if answer is not None:
                if inspect.isawaitable(answer):
                    began = None  # time spent waiting is not time spent blocking
                    answer = await self._in_time(answer, impl.hook.deadline)
                if answer is not None:
                    answer = impl.hook.check(answer, given)
        except FAILURES as error:
            self.failed(impl, error)
            return None
        except BaseExceptionGroup as group:
            # Cancelled from outside while tasks of the plugin's own failed: its failures are its own, the rest goes on.
            mine, rest = group.split(FAILURES)
            if mine is not None:
                self.failed(impl, mine)
            if rest is not None:
                raise rest from None
            return None
        finally:
            running_plugin.reset(token)
            if began is not None:
                self.took(impl, perf_counter() - began)
        impl.consecutive = 0
        return answer

    async def _in_time(self, awaitable: Awaitable[Any], deadline: float | None) -> Any:
        if deadline is None:
            return await awaitable
        answer = None
        with trio.move_on_after(deadline) as scope:
            answer = await awaitable
        if scope.cancelled_caught:
            raise DeadlinePassed(deadline)
        return answer

    # ---- tasks -------------------------------------------------------------------------------------------------

    async def run_services(self, app: App, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every plugin's services and observers until cancelled; follows changes of the plugin set."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._set_changed = trio.Event()
                self._started.intersection_update(self.manager.names())
                await self.startup(app)
                active = {name for name in self.manager.names() if not self.account(name).quarantined}
                for name in [name for name in self._scopes if name not in active]:
                    self._scopes.pop(name).cancel()
                for name in active.difference(self._scopes):
                    scope = self._scopes[name] = trio.CancelScope()
                    nursery.start_soon(self._run_plugin, name, scope, app, name=f"plugin {name}")
                await self._set_changed.wait()

    async def drain(self, seconds: float) -> bool:
        """Wait until all queued observations were handled, at most so long. False if some were not."""
        with trio.move_on_after(seconds):
            for name, queue in self._observations.items():
                while name in self._scopes and (queue.items or queue.busy):
                    queue.idle = trio.Event()
                    await queue.idle.wait()
            return True
        return False

    def report(self) -> dict[str, dict[str, object]]:
        """As in `Calls`, and how many services of each plugin are running."""
        facts = super().report()
        for name, count in self._services_running.items():
            if name in facts and count:
                facts[name]["services"] = count
        return facts

    def _queue(self, name: str) -> _Observations:
        queue = self._observations.get(name)
        if queue is None:
            queue = self._observations[name] = _Observations()
        return queue

    def _rebuild(self) -> None:
        super()._rebuild()
        if self._set_changed is not None:
            self._set_changed.set()

    async def _run_plugin(self, name: str, scope: trio.CancelScope, app: App) -> None:
        queue = self._queue(name)
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._observe, queue)
                    for impl in self._calls["services"]:
                        if impl.account.name == name:
                            for label, run in self.call_sync(impl, {"app": app}) or ():
                                nursery.start_soon(self._supervise, impl, label, run, name=f"plugin {name}: {label}")
        finally:
            queue.busy = False
            if queue.idle is not None:
                queue.idle.set()

    async def _observe(self, queue: _Observations) -> None:
        while True:
            await queue.wake.wait()
            queue.wake = trio.Event()
            queue.busy = True
            began = perf_counter()
            while queue.items:
                impl, arguments = queue.items.popleft()
                await self._call(impl, arguments)
                del arguments  # or this task would keep the last exchange, and its body, until the next one
                if perf_counter() - began > OBSERVER_SLICE:
                    await trio.lowlevel.checkpoint()
                    began = perf_counter()
            queue.busy = False
            if queue.idle is not None:
                queue.idle.set()

    async def _supervise(self, impl: Implementation, label: str, run: Callable[[], Awaitable[None]]) -> None:
        """Keep one service running: again after 1, 2, 4 ... 60 s; five crashes without a quiet minute are enough."""
        account, crashes = impl.account, 0
        running_plugin.set(account.name)  # the task is the plugin's: no need to reset
        while True:
            began = trio.current_time()
            error = await self._run_service(account, run)
            if error is None:
                return
            crashes = 1 if trio.current_time() - began >= QUIET_MINUTE else crashes + 1
            account.failures += 1
            account.error = f"{describe(error)} in service {label}"
            if crashes >= QUARANTINE_AFTER:
                self.set_aside(account)
            self._tell(account, "services")
            await trio.sleep(min(60.0, 2.0 ** (crashes - 1)))

    async def _run_service(self, account: PluginAccount, run: Callable[[], Awaitable[None]]) -> BaseException | None:
        self._services_running[account.name] = self._services_running.get(account.name, 0) + 1
        try:
            await run()
        except FAILURES as error:
            return error
        except BaseExceptionGroup as group:
            mine, rest = group.split(FAILURES)
            if rest is None:
                return mine
            if mine is not None:
                account.failures += 1
            raise rest from None
        finally:
            self._services_running[account.name] -= 1
        return None
