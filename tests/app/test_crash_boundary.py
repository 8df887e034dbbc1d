"""What is our fault or a plugin's ends one connection or one chore, is counted, and is told without what was in it."""

from __future__ import annotations

import json

import pytest
import trio
from rig import HOST, read_all, read_answer, read_to_end

from dbproxy.api import Fields, LocalResponse, hookimpl
from dbproxy.app import run as run_module
from dbproxy.app import server as server_module
from dbproxy.app.crash import describe_crash
from dbproxy.app.pipeline import Pipeline

SECRET = "sk-ant-api03-CRASHSECRET0123456789"
BODY = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "CRASHTEXT"}]}).encode()
REQUEST = (
    f"POST /v1/messages HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: {SECRET}\r\nanthropic-version: 2023-06-01\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n".encode()
    + BODY
)


async def served(stream):
    await stream.send_all(REQUEST)
    with trio.fail_after(10):
        head, _ = await read_answer(stream)
    return head.startswith(b"HTTP/1.1 200 ")


async def journal(r):
    """Everything that was logged so far."""
    await trio.to_thread.run_sync(r.proxy.journal.flush, 5)
    return r.proxy.paths.log_file.read_text()


ERRORS = [
    ValueError(f"{SECRET} CRASHTEXT"),
    ExceptionGroup("a group", [KeyError(SECRET)]),
    BaseExceptionGroup("mixed", [ValueError(SECRET), SystemExit(SECRET)]),
    SystemExit(SECRET),
    RecursionError(SECRET),
    MemoryError(),
    AssertionError(SECRET),
    trio.BusyResourceError(SECRET),
    trio.TooSlowError(),
    UnicodeError(SECRET),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["before the request", "in the pipeline", "in the middle of an upload"])
async def test_a_bug_of_ours_ends_one_connection(rig, monkeypatch, error, place):
    async with rig() as r:
        neighbour = await r.tls()
        assert await served(neighbour)
        victim = await r.tls()
        if place == "before the request":
            monkeypatch.setattr(server_module, "parse_target", raising(error))
        elif place == "in the pipeline":
            monkeypatch.setattr(Pipeline, "handle", raising_async(error))
        else:
            monkeypatch.setattr("dbproxy.app.pipeline.upload", raising_async(error))
        if place == "in the middle of an upload":
            await victim.send_all(REQUEST.replace(b"Content-Length: ", b"Content-Length: 9"))
        else:
            await victim.send_all(REQUEST)
        assert await read_to_end(victim) == b""
        monkeypatch.undo()
        assert await served(neighbour)
        assert await served(await r.tls())
        assert r.proxy.counters.crashes_total == 1
        assert r.proxy.counters.exchanges_open == 0
        with trio.fail_after(5):
            while r.proxy.counters.connections_open > 2:
                await trio.sleep(0.01)
        text = await journal(r)
        (line,) = [line for line in map(json.loads, text.splitlines()) if line["event"] == "connection_crashed"]
        first = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        assert line["level"] == "error"
        assert line["error"].startswith(f"{type(first).__name__} at ")
        assert "CRASHSECRET" not in text
        assert "CRASHTEXT" not in text


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


def raising_async(error):
    async def fail(*_, **__):
        await trio.lowlevel.checkpoint()
        raise error

    return fail


async def test_a_bug_while_the_server_is_told_to_stop_does_not_break_the_stop(rig, monkeypatch):
    """Cancellation and a crash arrive together, as a group: only the cancellation may go on."""

    async def fails_when_cancelled(*_, **__):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError(SECRET)

    async with rig() as r:
        monkeypatch.setattr(Pipeline, "handle", fails_when_cancelled)
        stream = await r.tls()
        await stream.send_all(REQUEST)
        await trio.sleep(0.1)
    assert r.proxy.counters.crashes_total == 1
    assert "CRASHSECRET" not in r.proxy.paths.log_file.read_text()


async def test_a_handshake_that_crashes(rig, monkeypatch):
    async with rig() as r:
        monkeypatch.setattr(type(r.proxy.authority), "leaf_context", raising(RuntimeError(SECRET)))
        stream = await r.connect()
        assert not r.proxy.counters.crashes_total
        with pytest.raises(trio.BrokenResourceError):
            await trio.SSLStream(stream, r.client_context(), server_hostname=HOST).do_handshake()  # noqa: TID251
        monkeypatch.undo()
        assert await served(await r.tls())
        assert r.proxy.counters.crashes_total == 1


async def test_warming_that_crashes(rig, monkeypatch):
    async with rig() as r:
        monkeypatch.setattr("dbproxy.net.upstream.Pool.warm", raising_async(RuntimeError(SECRET)))
        assert await served(await r.tls())
        assert r.proxy.counters.crashes_total == 1


async def test_chores_that_crash_are_tried_again(rig, monkeypatch):
    async with rig() as r:
        monkeypatch.setattr(run_module, "_chore", raising_async(ExceptionGroup("g", [RuntimeError(SECRET)])))
        with trio.fail_after(10):
            while r.proxy.counters.crashes_total < 2:
                await trio.sleep(0.05)
        monkeypatch.undo()
        assert await served(await r.tls())
        assert "CRASHSECRET" not in await journal(r)


async def test_a_socket_that_is_dead_when_it_is_accepted(rig, monkeypatch):
    async with rig() as r:
        neighbour = await r.tls()
        real = server_module.Server._accepted
        calls = []

        def accepted(self, sock, address):
            calls.append(address)
            if len(calls) == 1:
                raise OSError(22, "Invalid argument")
            real(self, sock, address)

        monkeypatch.setattr(server_module.Server, "_accepted", accepted)
        assert await read_to_end(await r.plain()) == b""
        assert await served(await r.tls())
        assert await served(neighbour)


# -- plugins ----------------------------------------------------------------------------------------------------------


class Rude:
    """Fails in every hook that the path of a request has, in the way that it is told."""

    def __init__(self, error):
        self.error = error

    @hookimpl
    def wants_body(self, exchange):
        raise self.error

    @hookimpl
    async def intercept_request(self, exchange):
        await trio.lowlevel.checkpoint()
        raise self.error

    @hookimpl
    def transform_request(self, exchange, request):
        raise self.error

    @hookimpl
    def transform_response_head(self, exchange, head):
        raise self.error

    @hookimpl
    def stream_filter(self, exchange, head):
        raise self.error

    @hookimpl
    def stream_tap(self, exchange, head):
        raise self.error

    @hookimpl
    def exchange_finished(self, exchange):
        raise self.error

    @hookimpl
    async def tunnel_policy(self, connection, host, port):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raising_async(self.error))
            nursery.start_soon(raising_async(self.error))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_a_plugin_that_fails_everywhere_changes_nothing(rig, error):
    async with rig(plugins=(("rude", Rude(error)),)) as r:
        for _ in range(3):
            stream = await r.tls()
            assert await served(stream)
            assert await served(stream)
        sent = [request.body for request in r.origin.requests]
        assert sent == [BODY] * 6
        assert r.proxy.counters.crashes_total == 0
        text = await journal(r)
        assert '"event":"plugin_failed"' in text
        assert "CRASHSECRET" not in text
        assert "CRASHTEXT" not in text


class HalfAnswer:
    """Breaks off in the middle of an answer of its own."""

    def __init__(self, fail):
        self.fail = fail

    @hookimpl
    def intercept_request(self, exchange):
        async def stream(send):
            await send(b"half of it")
            await self.fail()

        return LocalResponse(200, Fields.of([(b"content-type", b"text/plain")]), stream=stream)


async def in_groups():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raising_async(ValueError(SECRET)))
        nursery.start_soon(raising_async(KeyError(SECRET)))


@pytest.mark.parametrize("fail", [raising_async(ValueError(SECRET)), in_groups, raising_async(SystemExit(SECRET))])
async def test_a_local_answer_that_breaks_off_never_ends_cleanly(rig, fail):
    async with rig(plugins=(("half", HalfAnswer(fail)),)) as r:
        stream = await r.tls()
        await stream.send_all(REQUEST)
        got = await read_to_end(stream)
        assert b"half of it" in got
        assert not got.endswith(b"0\r\n\r\n")
        plain = await r.plain()
        await plain.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await read_all(plain)).startswith(b"HTTP/1.1 200 ")
        assert r.proxy.counters.exchanges_open == 0
        assert "CRASHSECRET" not in await journal(r)


def test_a_crash_is_described_by_type_and_place():
    try:
        json.loads(SECRET)
    except ValueError as error:
        told = describe_crash(error)
        told_group = describe_crash(BaseExceptionGroup("x", [ExceptionGroup("y", [error])]))
    assert told == told_group
    assert told.startswith("JSONDecodeError at ")
    assert told.rpartition(":")[2].isdigit()
    assert SECRET not in told
    assert describe_crash(ValueError(SECRET)) == "ValueError"
