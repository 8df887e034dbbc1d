"""The call loops: order, deadlines, isolation, quarantine, services and observers."""

from __future__ import annotations

import asyncio  # noqa: TID251 (as a plugin might)
from time import perf_counter
from typing import TYPE_CHECKING

import pytest
import trio

from dbproxy.exchange import Fields, LocalResponse, RequestDraft, RequestHead, ResponseHead
from dbproxy.hooks.calls import running_plugin
from dbproxy.hooks.dispatch import Dispatcher
from dbproxy.hooks.metrics import Sample, render
from dbproxy.hooks.routing import Declined, Route, Target
from dbproxy.hooks.specs import ConnectionFacts, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTION = ConnectionFacts(1, "127.0.0.1", True)
WHERE = {"connection": CONNECTION, "host": "example.com", "port": 443}


def raises(*args: object) -> None:
    raise ValueError("secret text of a message")


def nothing() -> dict[str, object]:
    return {}


def partial_append(order: list[str], name: str) -> Callable[[], None]:
    return lambda: order.append(name)


def block(seconds: float) -> None:
    until = perf_counter() + seconds
    while perf_counter() < until:
        pass


async def hangs() -> None:
    await trio.sleep_forever()


def provider(name):
    """The least that a provider has to have."""
    methods = dict.fromkeys(("unready", "capabilities", "decline", "call"), staticmethod(lambda *_: None))
    return type("Provider", (), {"name": name, **methods})()


# ---- one test per hook --------------------------------------------------------------------------------------------


async def test_hook_tunnel_policy(dispatch, plug) -> None:
    plug("first", tunnel_policy=lambda host: "pass" if host == "example.com" else None)

    async def second(connection, host, port) -> str:
        assert connection is CONNECTION
        return "refuse" if port == 25 else None

    plug("second", tunnel_policy=second)
    assert await dispatch.decide("tunnel_policy", **WHERE) == "pass"
    assert await dispatch.decide("tunnel_policy", **{**WHERE, "port": 25}) == "refuse"
    assert await dispatch.decide("tunnel_policy", **{**WHERE, "host": "other"}) is None


async def test_hook_wants_body(dispatch, plug, exchange) -> None:
    plug("last", wants_body=lambda exchange: exchange.path == "/v1/messages")
    plug("no", wants_body=lambda: False)  # no opinion: it must not keep the other from its body
    assert await dispatch.decide("wants_body", exchange=exchange) is True
    exchange.path = "/v1/other"
    assert await dispatch.decide("wants_body", exchange=exchange) is None


async def test_hook_route_request(dispatch, plug, exchange) -> None:
    route, stays = Route((Target("openai", "gpt-4o"),), rule="a = gpt-4o"), Declined("it has no key")
    plug("last", route_request=lambda exchange: stays if exchange.path == "/v1/messages" else None)
    assert await dispatch.decide("route_request", exchange=exchange) is stays
    plug("first", route_request=lambda: route)
    assert await dispatch.decide("route_request", exchange=exchange) is route


async def test_hook_providers(dispatch, plug) -> None:
    one, other = provider("openai"), provider("gemini")
    plug("first", providers=lambda app: [one])
    plug("broken", providers=lambda app: [one, object()])
    plug("second", providers=lambda app: (other for _ in range(1)))
    assert await dispatch.collect("providers", app=None) == [("first", [one]), ("second", [other])]
    assert dispatch.account("broken").failures == 1


async def test_hook_intercept_request(dispatch, plug, exchange) -> None:
    answer = LocalResponse(200, Fields.of([(b"content-type", b"text/plain")]), b"hello")
    later = []
    plug("later", intercept_request=lambda: later.append(1))

    async def here(exchange) -> LocalResponse:
        await trio.lowlevel.checkpoint()
        return answer

    plug("here", intercept_request=here)
    assert await dispatch.decide("intercept_request", exchange=exchange) is answer
    assert later == []


async def test_hook_transform_request(dispatch, plug, exchange) -> None:
    draft = RequestDraft(exchange.request, b"{}")

    def header(request) -> RequestDraft:
        head = request.head
        return RequestDraft(
            RequestHead(head.method, head.target, head.version, head.fields.plus(b"X-A", b"1")), request.body
        )

    async def body(exchange, request) -> RequestDraft:
        assert request.head.fields.get(b"x-a") == b"1"
        return RequestDraft(request.head, request.body + b"!")

    plug("body", transform_request=body)
    plug("nothing", transform_request=lambda: None)
    plug("broken", transform_request=raises)
    plug("wrong", transform_request=lambda: "text")
    plug("header", transform_request=header)
    result = await dispatch.transform("transform_request", draft, exchange=exchange)
    assert (result.body, result.head.fields.get(b"x-a")) == (b"{}!", b"1")
    assert dispatch.account("broken").failures == dispatch.account("wrong").failures == 1


async def test_an_untouched_draft_is_the_same_object(dispatch, plug, exchange) -> None:
    plug("nothing", transform_request=lambda: None)
    draft = RequestDraft(exchange.request, b"{}")
    assert await dispatch.transform("transform_request", draft, exchange=exchange) is draft


def test_hook_transform_response_head(dispatch, plug, exchange, stream_head) -> None:
    plug(
        "mark",
        transform_response_head=lambda head: ResponseHead(
            head.status, head.reason, head.version, head.fields.plus(b"x-mark", b"1")
        ),
    )
    plug("broken", transform_response_head=raises)
    head = dispatch.transform_sync("transform_response_head", stream_head, exchange=exchange)
    assert head.fields.get(b"x-mark") == b"1"
    assert stream_head.fields.get(b"x-mark") is None


async def test_hook_health(dispatch, plug) -> None:
    async def slow() -> dict[str, object]:
        await trio.sleep(0)
        return {"b": [1]}

    plug("one", health=lambda: {"a": 1})
    plug("silent", health=lambda: None)
    plug("bad", health=lambda: {"a": object()})
    plug("two", health=slow)
    assert await dispatch.collect("health") == [("one", {"a": 1}), ("two", {"b": [1]})]


async def test_hook_metrics(dispatch, plug) -> None:
    def lazily():
        yield Sample("dbproxy_x_total", 1, {"kind": 'a"b'}, help="Things.")
        yield Sample("dbproxy_x_total", 2.5, {"kind": "c"})

    def breaks_halfway():
        yield Sample("dbproxy_y_total", 1)
        raise ValueError

    plug("good", metrics=lazily)
    plug("bad", metrics=breaks_halfway)
    found = await dispatch.collect("metrics")
    assert [name for name, _ in found] == ["good"]
    assert render(found[0][1]) == (
        "# HELP dbproxy_x_total Things.\n# TYPE dbproxy_x_total counter\n"
        'dbproxy_x_total{kind="a\\"b"} 1\ndbproxy_x_total{kind="c"} 2.5\n'
    )


async def test_hook_startup(dispatch, plug, app, autojump_clock) -> None:
    order = []

    async def late(app) -> None:
        await trio.sleep(1)
        order.append("late")

    plug("late", startup=late, health=nothing)
    plug("hangs", startup=hangs, health=nothing)
    plug("raises", startup=raises, health=nothing)
    plug("soon", startup=lambda app: order.append("soon"), health=nothing)
    await dispatch.startup(app)
    assert order == ["late", "soon"]
    assert [name for name, _ in await dispatch.collect("health")] == ["late", "soon"]
    assert dispatch.report()["hangs"]["error"] == "no answer within 10 s in startup"
    await dispatch.startup(app)
    assert order == ["late", "soon"]  # once each


async def test_hook_shutdown(dispatch, plug, app, autojump_clock) -> None:
    order = []
    for name in ("one", "two", "three"):
        plug(name, shutdown=partial_append(order, name), health=raises)
    plug("hangs", shutdown=hangs)
    for _ in range(5):
        await dispatch.collect("health")
    assert dispatch.account("two").quarantined
    await dispatch.shutdown(app)
    assert order == ["three", "two", "one"]


async def test_hook_services(dispatch, plug, app, autojump_clock) -> None:
    starts: list[float] = []

    async def crashing() -> None:
        starts.append(trio.current_time())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ValueError

    async def steady() -> None:
        assert running_plugin.get() == "good"
        await trio.sleep_forever()

    async def finite() -> None: ...

    plug("bad", services=lambda: [("crashing", crashing)], health=lambda: {"a": 1})
    plug("good", services=lambda app: [("steady", steady), ("finite", finite)])
    async with trio.open_nursery() as nursery:
        await nursery.start(dispatch.run_services, app)
        await trio.sleep(120)
        assert [round(at - starts[0]) for at in starts] == [0, 1, 3, 7, 15]
        assert dispatch.account("bad").quarantined
        assert dispatch.report()["bad"]["error"].startswith("ValueError at test_dispatch.py:")
        assert await dispatch.collect("health") == []
        assert dispatch.report()["good"]["services"] == 1
        dispatch.reinstate("bad")
        await trio.sleep(0.5)
        assert len(starts) == 6
        nursery.cancel_scope.cancel()


async def test_hook_exchange_finished(dispatch, plug, app, exchange, autojump_clock) -> None:
    seen: list[str] = []
    gate = trio.Event()

    async def stalled(exchange) -> None:
        await gate.wait()
        seen.append("stalled")

    def fails(exchange) -> None:
        raise ValueError

    plug("stalled", exchange_finished=stalled)
    plug("fails", exchange_finished=fails)
    plug("quick", exchange_finished=lambda exchange: seen.append(exchange.id))
    async with trio.open_nursery() as nursery:
        await nursery.start(dispatch.run_services, app)
        dispatch.observe_nowait("exchange_finished", exchange=exchange)
        assert seen == []  # never inline
        assert not await dispatch.drain(1)
        assert seen == ["x1"]
        gate.set()
        assert await dispatch.drain(1)
        assert seen == ["x1", "stalled"]
        assert dispatch.account("fails").failures == 1
        nursery.cancel_scope.cancel()


# ---- what plugins do wrong ----------------------------------------------------------------------------------------


async def test_failures_are_counted_and_end_in_quarantine(dispatch, plug, failures) -> None:
    plug("good", tunnel_policy=lambda: "pass", health=nothing)
    plug("bad", tunnel_policy=raises, health=lambda: {"fine": True})
    for _ in range(4):
        assert await dispatch.decide("tunnel_policy", **WHERE) == "pass"
        await dispatch.collect("health")  # success of another hook must not reset the count
    assert not dispatch.account("bad").quarantined
    assert await dispatch.decide("tunnel_policy", **WHERE) == "pass"
    assert dispatch.account("bad").quarantined
    assert [entry[3] for entry in failures] == [False] * 4 + [True]
    assert await dispatch.decide("tunnel_policy", **WHERE) == "pass"
    assert len(failures) == 5
    assert await dispatch.collect("health") == [("good", {})]
    report = dispatch.report()["bad"]
    assert (report["state"], report["failures"]) == ("quarantined", 5)
    assert dispatch.reinstate("bad")
    assert not dispatch.reinstate("bad")
    assert not dispatch.reinstate("nobody")
    await dispatch.decide("tunnel_policy", **WHERE)
    assert not dispatch.account("bad").quarantined


async def test_a_success_resets_the_count(dispatch, plug) -> None:
    calls = 0

    def every_fifth_works() -> str:
        nonlocal calls
        calls += 1
        if calls % 5:
            raise ValueError
        return "pass"

    plug("bad", tunnel_policy=every_fifth_works)
    for _ in range(25):
        await dispatch.decide("tunnel_policy", **WHERE)
    assert not dispatch.account("bad").quarantined
    assert dispatch.account("bad").failures == 20


async def test_error_texts_never_leave(dispatch, plug, failures) -> None:
    plug("bad", tunnel_policy=raises)
    await dispatch.decide("tunnel_policy", **WHERE)
    assert "secret" not in str(failures) + str(dispatch.report())
    assert failures[0][2].startswith("ValueError at test_dispatch.py:")
    assert failures[0][2].endswith("in tunnel_policy")


async def test_deadline(dispatch, plug, autojump_clock) -> None:
    plug("good", tunnel_policy=lambda: "pass")
    plug("hangs", tunnel_policy=hangs)
    began = trio.current_time()
    assert await dispatch.decide("tunnel_policy", **WHERE) == "pass"
    assert trio.current_time() - began == pytest.approx(0.2)
    assert dispatch.account("hangs").error == "no answer within 0.2 s in tunnel_policy"


@pytest.mark.parametrize("wrong", ["INTERCEPT", 7, b"pass", object(), ["pass"]])
async def test_wrong_types(dispatch, plug, wrong) -> None:
    plug("good", tunnel_policy=lambda: "pass")
    plug("wrong", tunnel_policy=lambda: wrong)

    async def also_wrong() -> object:
        return wrong

    plug("async_wrong", tunnel_policy=also_wrong)
    assert await dispatch.decide("tunnel_policy", **WHERE) == "pass"
    assert dispatch.account("wrong").failures == dispatch.account("async_wrong").failures == 1


async def test_blocking_is_counted(dispatch, plug) -> None:
    plug("slow", tunnel_policy=lambda: block(0.06))
    plug("slow_sync", transform_response_head=lambda: block(0.06))
    plug("slow_raises", health=lambda: block(0.06) or raises())
    await dispatch.decide("tunnel_policy", **WHERE)
    dispatch.transform_sync("transform_response_head", None, exchange=None)
    await dispatch.collect("health")
    assert [dispatch.account(name).slow for name in ("slow", "slow_sync", "slow_raises")] == [1, 1, 1]


async def test_waiting_is_not_blocking(dispatch, plug) -> None:
    async def waits() -> None:
        await trio.sleep(0.06)

    plug("waits", tunnel_policy=waits)
    await dispatch.decide("tunnel_policy", **WHERE)
    assert (dispatch.account("waits").slow, dispatch.account("waits").failures) == (0, 0)


async def test_failing_child_task(dispatch, plug) -> None:
    async def child() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fails)

    async def fails() -> None:
        raise KeyError("x")

    plug("good", tunnel_policy=lambda: "pass")
    plug("bad", tunnel_policy=child)
    assert await dispatch.decide("tunnel_policy", **WHERE) == "pass"
    assert dispatch.account("bad").error.startswith("KeyError at test_dispatch.py")


async def test_child_that_fails_while_the_request_is_cancelled(dispatch, plug) -> None:
    """Outside cancellation and a plugin's failure arrive in one group: the failure must not outlive the scope."""

    async def stubborn() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError

    plug("bad", tunnel_policy=stubborn)
    with trio.CancelScope() as scope:
        scope.cancel()
        await dispatch.decide("tunnel_policy", **WHERE)
    assert scope.cancelled_caught
    assert dispatch.account("bad").failures == 1


async def test_cancellation_passes_and_is_no_failure(dispatch, plug) -> None:
    plug("good", tunnel_policy=hangs)
    with trio.CancelScope() as scope:
        scope.cancel()
        await dispatch.decide("tunnel_policy", **WHERE)
    assert scope.cancelled_caught
    assert dispatch.account("good").failures == 0


async def test_keyboard_interrupt_passes(dispatch, plug) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    plug("bad", tunnel_policy=interrupt)
    with pytest.raises(KeyboardInterrupt):
        await dispatch.decide("tunnel_policy", **WHERE)


async def test_sys_exit_of_a_plugin_is_its_own_failure(dispatch, plug) -> None:
    plug("bad", tunnel_policy=lambda: exit(3))
    assert await dispatch.decide("tunnel_policy", **WHERE) is None
    assert dispatch.account("bad").failures == 1


async def test_awaiting_another_event_loop(dispatch, plug) -> None:
    class Foreign:
        def __await__(self):
            yield "not a trio message"

    async def foreign() -> None:
        await Foreign()

    plug("good", tunnel_policy=lambda: "pass")
    plug("asyncio", tunnel_policy=lambda: asyncio.sleep(0.01))
    plug("foreign", tunnel_policy=foreign)
    assert await dispatch.decide("tunnel_policy", **WHERE) == "pass"
    assert dispatch.account("asyncio").failures == dispatch.account("foreign").failures == 1


def test_awaitable_from_a_synchronous_hook(dispatch, plug, exchange, stream_head) -> None:
    async def later() -> None: ...

    plug("bad", transform_response_head=lambda: later())
    assert dispatch.transform_sync("transform_response_head", stream_head, exchange=exchange) is stream_head
    assert dispatch.account("bad").failures == 1


async def test_running_plugin_is_named(dispatch, plug) -> None:
    names = []

    async def later() -> None:
        await trio.lowlevel.checkpoint()
        names.append(running_plugin.get())

    plug("a", health=lambda: names.append(running_plugin.get()))
    plug("b", health=later)
    await dispatch.collect("health")
    assert names == ["a", "b"]
    assert running_plugin.get() == ""


async def test_observer_queue_is_bounded(manager, plug, app, exchange) -> None:
    dispatch = Dispatcher(manager, queue_limit=3)
    plug("a", exchange_finished=lambda: None)
    for _ in range(10):
        dispatch.observe_nowait("exchange_finished", exchange=exchange)
    assert dispatch.account("a").dropped == 7
    assert 'dbproxy_plugin_dropped_total{plugin="a"} 7' in render(dispatch.samples())


async def test_observers_work_in_slices(dispatch, plug, app, exchange) -> None:
    """A mountain of observations does not keep the loop, and a few cost no turn of it each."""

    def busy() -> None:
        until = perf_counter() + 0.0001
        while perf_counter() < until:
            pass

    plug("busy", exchange_finished=busy)
    async with trio.open_nursery() as nursery:
        await nursery.start(dispatch.run_services, app)
        for _ in range(300):
            dispatch.observe_nowait("exchange_finished", exchange=exchange)
        queue, turns = dispatch._queue("busy"), 0
        while queue.items:
            await trio.lowlevel.checkpoint()
            turns += 1
        nursery.cancel_scope.cancel()
    assert 20 <= turns < 200  # 30 ms of work, each slice a little more than 0.5 ms


async def test_stalled_observer_costs_nobody_else(dispatch, plug, app, exchange, autojump_clock) -> None:
    seen = []

    async def stalled(exchange) -> None:
        await trio.sleep_forever()

    plug("stalled", exchange_finished=stalled)
    plug("quick", exchange_finished=lambda exchange: seen.append(trio.current_time()))
    async with trio.open_nursery() as nursery:
        await nursery.start(dispatch.run_services, app)
        began = trio.current_time()
        for _ in range(10):
            dispatch.observe_nowait("exchange_finished", exchange=exchange)
        assert await dispatch.drain(60)
        assert seen == [began] * 10
        # five deadlines of 5 s: then it is set aside
        assert trio.current_time() - began == pytest.approx(25)
        assert dispatch.account("stalled").quarantined
        nursery.cancel_scope.cancel()


async def test_plugins_can_come_and_go_while_running(dispatch, manager, plug, app, autojump_clock) -> None:
    running: set[str] = set()
    started = []

    def make(name: str) -> None:
        async def run() -> None:
            running.add(name)
            try:
                await trio.sleep_forever()
            finally:
                running.remove(name)

        plug(name, services=lambda: [("run", run)], startup=lambda: started.append(name))

    make("one")
    await dispatch.startup(app)
    async with trio.open_nursery() as nursery:
        await nursery.start(dispatch.run_services, app)
        await trio.sleep(1)
        assert running == {"one"}
        make("two")
        await trio.sleep(1)
        assert running == {"one", "two"}
        manager.disable("one")
        await trio.sleep(1)
        assert running == {"two"}
        assert not dispatch.has("health")
        manager.enable("one")
        await trio.sleep(1)
        assert running == {"one", "two"}
        assert started == ["one", "two", "one"]
        nursery.cancel_scope.cancel()


def test_has_follows_the_plugin_set(dispatch, manager, plug) -> None:
    assert not dispatch.has("health")
    plug("a", health=nothing)
    assert dispatch.has("health")
    manager.disable("a")
    assert not dispatch.has("health")
    assert dispatch.report()["a"] == {"version": "", "state": "disabled", "error": ""}
    with pytest.raises(KeyError):
        dispatch.has("helth")


async def test_order(dispatch, manager, plug) -> None:
    class First:
        @hookimpl(tryfirst=True)
        def tunnel_policy(self) -> str:
            return "refuse"

    manager.register(First(), "first")
    plug("second", tunnel_policy=lambda: "pass")
    assert await dispatch.decide("tunnel_policy", **WHERE) == "refuse"


class Shelf:
    """The least that is a store."""

    state = ""

    def append(self, record) -> None: ...

    def counts(self) -> dict[str, int]:
        return {}

    def flush(self, timeout) -> bool:
        return True

    def close(self, timeout) -> None: ...


async def test_hook_open_storage(dispatch, plug, app) -> None:
    shelf = Shelf()
    plug("bad", open_storage=lambda: object())
    plug("good", open_storage=lambda app: shelf)
    assert await dispatch.decide("open_storage", app=app) is shelf


async def test_hook_redactor(dispatch, plug, app) -> None:
    plug("shout", redactor=lambda: lambda where, text: text.upper())
    plug("silent", redactor=lambda: None)
    plug("bad", redactor=lambda: "***")
    [(name, redact)] = await dispatch.collect("redactor", app=app)
    assert (name, redact("search", "a")) == ("shout", "A")


async def test_hook_conversation_reset(dispatch, plug) -> None:
    known = ["c-1", "c-2", "d-3"]
    plug("one", conversation_reset=lambda prefix: [id for id in known if id.startswith(prefix or "")])
    plug("none", conversation_reset=lambda: None)
    assert await dispatch.collect("conversation_reset", prefix="c-") == [("one", ["c-1", "c-2"])]
    assert await dispatch.collect("conversation_reset", prefix=None) == [("one", known)]
