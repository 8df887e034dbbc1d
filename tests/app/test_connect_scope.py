"""Launch scopes on CONNECT, the user's own proxy as our parent, and how the proxy leaves."""

from __future__ import annotations

import base64
import json

import pytest
import trio
from blackbox import Watcher, authority, read_response, request, tls_server
from rig import HOST, read_all, read_exactly, read_head

from dbproxy.api import Outcome
from dbproxy.scope import Scope, new_id, new_secret
from dbproxy.testing.origin import say

# -- scopes -----------------------------------------------------------------------------------------------------------


def launched(r, **how):
    scope = Scope(new_id(), new_secret(), **how)
    scope.save(r.proxy.paths.scopes)
    return scope


async def once(stream):
    await stream.send_all(request())
    return await read_response(stream)


async def test_the_credentials_of_a_connect_name_the_launch(rig):
    watcher = Watcher()
    async with rig(plugins=(("watcher", watcher),)) as r:
        scope = launched(r)
        assert (await once(await r.tls(userinfo=scope.userinfo))).status == 200
        await watcher.outcomes()
        assert watcher.finished[0].scope == scope.id
        assert scope.secret not in str(r.origin.connections[0].raw)


async def test_settings_of_a_launch_are_its_own(rig):
    watcher = Watcher()
    async with rig(plugins=(("watcher", watcher),)) as r:
        scope = launched(r, settings={"passthrough": True})
        await once(await r.tls(userinfo=scope.userinfo))
        await once(await r.tls())
        await watcher.outcomes(2)
        assert [(exchange.scope, exchange.passthrough) for exchange in watcher.finished] == [
            (scope.id, True),
            (None, False),
        ]


@pytest.mark.parametrize("given", ["wrong secret", "no secret", "unknown", "path", "not base64", "Bearer", "empty"])
async def test_credentials_that_name_no_launch_count_as_none(rig, given):
    watcher = Watcher()
    async with rig(plugins=(("watcher", watcher),)) as r:
        scope = launched(r)
        text = {
            "wrong secret": f"{scope.id}:{scope.secret[:-1]}",
            "no secret": f"{scope.id}:",
            "unknown": "s-000000000000:x",
            "path": f"../scopes/{scope.id}:{scope.secret}",
            "empty": "",
        }.get(given, scope.userinfo)
        value = f"Basic {base64.b64encode(text.encode()).decode()}"
        value = {"not base64": "Basic !!", "Bearer": f"Bearer {scope.secret}"}.get(given, value)
        stream = await r.tls(extra=f"Proxy-Authorization: {value}\r\n")
        assert (await once(stream)).status == 200
        await watcher.outcomes()
        assert watcher.finished[0].scope is None
        raw = bytes(r.origin.connections[0].raw)
        assert b"proxy-auth" not in raw.lower()
        assert scope.secret.encode() not in raw


@pytest.mark.parametrize("outside", [True, False])
async def test_proxy_credentials_never_reach_an_upstream(rig, outside):
    async with rig() as r:
        scope = launched(r)
        field = f"Proxy-Authorization: Basic {base64.b64encode(scope.userinfo.encode()).decode()}\r\n"
        stream = await r.plain() if outside else await r.tls()
        target = f"http://{HOST}/v1/messages" if outside else "/v1/messages"
        await stream.send_all(request(target, extra=field))
        assert (await read_response(stream)).status == 200
        assert b"proxy-auth" not in bytes(r.origin.connections[0].raw).lower()


# -- the user's own proxy ---------------------------------------------------------------------------------------------


class Parent:
    """An HTTP proxy that knows CONNECT and asks for a password."""

    def __init__(self, targets):
        self.targets, self.heads = targets, []

    async def serve(self, stream):
        head, rest = await read_head(stream)
        self.heads.append(head)
        if b"Basic bWU6c2VjcmV0" not in head:
            await stream.send_all(b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
            return
        name = head.split(b" ")[1].decode()
        if name not in self.targets:
            await stream.send_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
            return
        other = await trio.open_tcp_stream("127.0.0.1", self.targets[name])
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

        async def pump(source, sink, data=b""):
            try:
                while True:
                    if data:
                        await sink.send_all(data)
                    data = await source.receive_some(65536)
                    if not data:
                        break
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, stream, other, rest)
            nursery.start_soon(pump, other, stream)
        await trio.aclose_forcefully(other)

    async def serve_plain(self, stream):
        try:
            await self.serve(stream)
        finally:
            await trio.aclose_forcefully(stream)

    async def serve_tls(self, stream):
        secured = tls_server(stream)
        try:
            await secured.do_handshake()
            await self.serve(secured)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)


def upstream_ca(tmp_path, origin_pem):
    path = tmp_path / "both.pem"
    path.write_bytes(origin_pem + authority().cert_pem.bytes())
    return str(path)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("by_scope", [False, True])
async def test_everything_goes_through_the_user_s_own_proxy(rig, tmp_path, scheme, by_scope):
    from rig import open_rig

    parent = Parent({})
    serve = parent.serve_plain if scheme == "http" else parent.serve_tls
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        url = f"{scheme}://me:secret@localhost:{port}"
        pem = tmp_path / "parent.pem"
        pem.write_bytes(authority().cert_pem.bytes())
        settings = {"upstream_url": f"https://{HOST}"} | ({} if by_scope else {"parent_proxy": url})
        async with open_rig(tmp_path, None, **settings, upstream_ca=str(pem)) as r:
            parent.targets[f"{HOST}:443"] = r.origin.tls_port
            pem.write_bytes(pem.read_bytes() + r.origin.ca_pem)
            extra = (str(pem),)
            scope = launched(
                r, parent_proxy=url if by_scope else None, extra_ca=extra, settings={"upstream_ca": str(pem)}
            )
            stream = await r.tls(userinfo=scope.userinfo)
            answer = await once(stream)
            assert answer.status == 200, answer.body
            assert parent.heads[-1].startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\n".encode())
            assert r.origin.requests[0].header("host") == HOST
            assert b"proxy-auth" not in bytes(r.origin.connections[0].raw).lower()
            # A blind tunnel takes the same way, and what the parent refuses is said.
            blind = await r.plain()
            field = base64.b64encode(scope.userinfo.encode()).decode()
            await blind.send_all(
                f"CONNECT example.test:443 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic {field}\r\n\r\n".encode()
            )
            refused = await read_response(blind)
            assert refused.status == 502
            assert "secret" not in refused.body.decode()
            assert parent.heads[-1].startswith(b"CONNECT example.test:443 ")
        nursery.cancel_scope.cancel()


# -- leaving ----------------------------------------------------------------------------------------------------------


async def test_told_to_stop_it_lets_running_streams_finish_and_takes_nothing_new(rig):
    watcher = Watcher()
    got = {}
    async with trio.open_nursery() as nursery:
        async with rig(say("word " * 400, gap=0.15), plugins=(("watcher", watcher),), drain_timeout="20") as r:
            idle, unused, raw, running = await r.tls(), await r.tls(), await r.plain(), await r.tls()
            await idle.send_all(request())
            await read_response(idle)
            await running.send_all(request(body=STREAMING))
            head, rest = await read_head(running)
            began = trio.current_time()

            async def finish():
                answer = await read_response(running, head + rest)
                got["stream"] = answer
                got["took"] = trio.current_time() - began

            async def ended(name, stream):
                try:
                    got[name] = await read_all(stream)
                except trio.BrokenResourceError:
                    got[name] = b""
                got[f"{name} at"] = trio.current_time() - began

            nursery.start_soon(finish)
            for name, stream in (("idle", idle), ("unused", unused), ("raw", raw)):
                nursery.start_soon(ended, name, stream)
            nursery.start_soon(newcomer, r.running.port, got)
            r.running.stop()
            opened, r.opened = r.opened, []  # they are to be closed by the proxy, not by the rig
            leaving = r
        assert trio.current_time() - began < 15
    for stream in opened:
        stream.socket.close()
    assert got["stream"].framed.endswith(b"0\r\n\r\n")
    assert got["stream"].framed == bytes(leaving.origin.requests[1].sent.framed)
    assert got["took"] > 0.5
    assert got["idle"] == got["unused"] == got["raw"] == b""
    assert max(got["idle at"], got["unused at"], got["raw at"]) < got["took"] - 0.2
    assert got["newcomer"] == "refused"
    assert await watcher.outcomes(2) == [Outcome.OK, Outcome.OK]


STREAMING = json.dumps(
    {"model": "m", "max_tokens": 1, "stream": True, "messages": [{"role": "user", "content": "x"}]}
).encode()


async def newcomer(port, got):
    await trio.sleep(0.3)
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await read_exactly(stream, 1)
        got["newcomer"] = "served"
    except OSError:
        got["newcomer"] = "refused"


async def test_what_does_not_end_in_time_is_ended(rig):
    async with rig(say("late", head_delay=60), drain_timeout="0.5") as r:
        stream = await r.tls()
        await stream.send_all(request())
        await r.origin.wait_requests(1)
        r.running.stop()
        began = trio.current_time()
    assert trio.current_time() - began < 5
