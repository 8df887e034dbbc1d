"""What plugins are told about a request while it is under way and after it (`dbproxy.api.Services`)."""

from __future__ import annotations

import gzip
import json

import pytest
import trio
from blackbox import read_response, request

from dbproxy.api import DbproxyError, UpstreamError, hookimpl
from dbproxy.app.services import ProxyServices
from dbproxy.scope import Scope, new_id
from dbproxy.store.reader import Reader
from dbproxy.testing.origin import say

SESSION = "01234567-89ab-cdef-0123-456789abcdef"
SESSION_FIELD = f"x-claude-code-session-id: {SESSION}\r\n"


def body_of(*texts):
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return json.dumps({"model": "claude-opus-5-5", "max_tokens": 9, "stream": True, "messages": messages}).encode()


BODY = body_of("hello")


async def ask(r, body=BODY, *, extra="", userinfo="", chunks=0):
    stream = await r.tls(userinfo=userinfo)
    await stream.send_all(request(body=body, extra=SESSION_FIELD + extra, chunks=chunks))
    return await read_response(stream)


async def ask_slowly(r, asker, body):
    """The rest of the body goes out when the policies were asked; none of them may want it whole."""
    stream = await r.tls()
    sent = request(body=body, extra=SESSION_FIELD)
    before = asker.done
    await stream.send_all(sent[:-10])
    await asker.answers(before + 1)
    await stream.send_all(sent[-10:])
    return await read_response(stream)


class Asker:
    """Asks the services at a chosen moment of every request."""

    def __init__(self, moment, question):
        self.moment, self.question = moment, question
        self.told = []
        self.done = 0

    @hookimpl
    async def startup(self, app):
        self.services = app.services

    async def at(self, moment, exchange):
        if moment == self.moment:
            self.told.append(await self.question(self.services, exchange))
            self.done += 1

    @hookimpl
    async def intercept_request(self, exchange):
        await self.at("request", exchange)

    @hookimpl
    async def exchange_finished(self, exchange):
        await self.at("end", exchange)

    async def answers(self, many=1):
        with trio.fail_after(10):
            while self.done < many:
                await trio.sleep(0.01)
        return self.told


async def link(services, exchange):
    return await services.link(exchange, 5.0)


async def body(services, exchange):
    held = services.request_body(exchange)
    return None if held is None else await held.read()


@pytest.mark.parametrize("capture", ["on", "facts", "off"])
@pytest.mark.parametrize("moment", ["end"])
async def test_a_link_is_told_whatever_is_kept(rig, capture, moment):
    asker = Asker(moment, link)
    async with rig(say("Hi."), plugins=(("asker", asker),), capture=capture) as r:
        await ask(r)
        await ask(r, body_of("hello", "Hi.", "more"))
        first, second = await asker.answers(2)
        assert (first.conversation, first.edge, second.edge) == (SESSION, "root", "next")
        assert second.parent == first.exchange


async def test_a_link_is_waited_for_where_the_body_is_held(rig):
    asker = Asker("request", link)

    class Holds:
        @hookimpl
        def wants_body(self, exchange):
            return True

    async with rig(say("Hi."), plugins=(("asker", asker), ("holds", Holds()))) as r:
        await ask(r)
        (found,) = await asker.answers()
        assert found.conversation == SESSION


async def test_in_passthrough_with_nothing_kept_nothing_is_known(rig):
    asker = Asker("end", link)
    async with rig(say("Hi."), plugins=(("asker", asker),), capture="off", passthrough="true") as r:
        await ask(r)
        assert await asker.answers() == [None]


@pytest.mark.parametrize("chunks", [0, 3])
@pytest.mark.parametrize("coded", [False, True])
async def test_a_body_is_given_decoded(rig, coded, chunks):
    held = []

    class Holds:
        @hookimpl
        async def startup(self, app):
            self.services = app.services

        @hookimpl
        def exchange_finished(self, exchange):
            held.append(self.services.request_body(exchange))

    async with rig(say("Hi."), plugins=(("holds", Holds()),)) as r:
        sent = gzip.compress(BODY) if coded else BODY
        await ask(r, sent, chunks=chunks, extra="content-encoding: gzip\r\n" if coded else "")
        with trio.fail_after(10):
            while not held:
                await trio.sleep(0.01)
        if held[0] is not None:  # held by reference: it outlives the exchange
            assert await r.proxy.archive.flush(10)
            assert await held[0].read() == BODY


async def test_a_body_that_was_read_whole_is_given_before_it_is_sent(rig):
    asker = Asker("request", body)

    class Holds:
        @hookimpl
        def wants_body(self, exchange):
            return True

    async with rig(say("Hi."), plugins=(("asker", asker), ("holds", Holds()))) as r:
        await ask(r)
        assert await asker.answers() == [BODY]


async def test_a_body_that_is_still_on_its_way_is_not_given(rig):
    asker = Asker("request", body)
    async with rig(say("Hi."), plugins=(("asker", asker),), plugins_disabled="double-buffer") as r:
        await ask_slowly(r, asker, body_of("slow"))
        await ask(r, body_of("short"))
        assert await asker.answers(2) == [None, body_of("short")]


async def test_stored_bodies_and_histories_are_given_after_the_end(rig):
    asker = Asker("request", link)

    async with rig(say("Hi."), plugins=(("asker", asker),)) as r:
        await ask(r, body_of("hello", "Hi.", "more"))
        (found,) = await asker.answers()
        assert await asker.services.stored_body(found.exchange) == body_of("hello", "Hi.", "more")
        history = [json.loads(message) for message in await asker.services.history(found.exchange)]
        assert [message["role"] for message in history] == ["user", "assistant", "user", "assistant"]
        assert history[-1]["content"] == [{"type": "text", "text": "Hi."}]


async def test_settings_and_variables_are_those_of_the_launch(rig):
    async def told(services, exchange):
        found = services.settings(exchange)
        return found["capture"], services.settings(None)["capture"], dict(services.client_variables(exchange))

    asker = Asker("request", told)
    async with rig(say("Hi."), plugins=(("asker", asker),)) as r:
        given = {"capture": "facts"}
        scope = Scope(new_id(), "secret", "/home/user/project", 1, settings=given, client={"DISABLE_COMPACT": "1"})
        scope.save(r.proxy.paths.scopes)
        r.proxy.scopes.add(scope) if hasattr(r.proxy.scopes, "add") else scope.save(r.proxy.paths.scopes)
        await ask(r, userinfo=f"{scope.id}:secret")
        assert await asker.answers() == [("facts", "on", {"DISABLE_COMPACT": "1"})]


async def test_windows_are_known(rig):
    async with rig(say("Hi.")) as r:
        services = ProxyServices()
        services.attach(r.proxy)
        await ask(r)
        assert await r.proxy.archive.flush(10)
        assert services.context_window("claude-opus-5-5") == 1_000_000
        assert services.context_window("no such model") == 0


def test_before_the_start_they_say_so():
    with pytest.raises(DbproxyError, match="still starting"):
        ProxyServices().settings(None)


async def test_a_call_has_a_deadline_and_is_recorded_all_the_same(rig):
    async def slow(services, exchange):
        try:
            async with services.send(exchange, exchange.request, BODY, purpose="slow", deadline=0.3) as answer:
                return await answer.body()
        except UpstreamError as error:
            return error.kind

    asker = Asker("end", slow)
    rule = {"match": {}, "answer": {"text": "later", "stall_after": 2, "stall": 30.0}, "skip": 1}
    async with rig({"rules": [rule]}, plugins=(("asker", asker),)) as r:
        await ask(r)
        assert await asker.answers() == ["timeout"]
        assert await r.proxy.archive.flush(10)
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            (own,) = reader.exchanges(kind="own")
            assert own.outcome in ("cut", "failed", "aborted")
            assert own.state == "closed"
            assert reader.request_body(own.id) == BODY


@pytest.mark.parametrize("how", [{}, {"framing": "close"}, {"close": True}])
async def test_a_call_that_was_answered_whole_is_recorded_as_such_even_if_its_connection_ends(rig, how):
    async def called(services, exchange):
        async with services.send(exchange, exchange.request, BODY, purpose="test", deadline=5) as answer:
            return len(await answer.body())

    asker = Asker("end", called)
    async with rig({"rules": [{"match": {}, "answer": {"text": "Hi.", **how}}]}, plugins=(("asker", asker),)) as r:
        await ask(r)
        (length,) = await asker.answers()
        assert await r.proxy.archive.flush(10)
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            (own,) = reader.exchanges(kind="own")
            assert (own.outcome, own.bytes_down) == ("ok", length)


async def test_who_asks_for_a_link_before_the_body_is_whole_gets_none_and_spoils_nothing(rig):
    """A body that is streamed comes after the policies were asked; what is captured is all of it nevertheless."""

    async def soon(services, exchange):
        return await services.link(exchange, 0.05)

    asker = Asker("request", soon)
    async with rig(say("Hi."), plugins=(("asker", asker),), plugins_disabled="double-buffer") as r:
        await ask_slowly(r, asker, BODY)
        assert await asker.answers() == [None]
        assert await r.proxy.archive.flush(10)
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            (row,) = reader.exchanges()
            assert reader.request_body(row.id) == BODY
            assert row.conversation == SESSION
