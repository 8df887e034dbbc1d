"""C20: every CONNECT is answered, and becomes what it asked for: interception, a blind tunnel, or a clear refusal."""

from __future__ import annotations

import json
import socket
import ssl

import pytest
import trio
from blackbox import Watcher, read_response, request, tls_client, tls_server, transport, untouched
from rig import HOST, read_all, read_exactly, read_head

from dbproxy.api import Outcome, hookimpl
from dbproxy.testing.origin import say


async def shout(stream):
    data = await read_all(stream)
    await stream.send_all(data.upper())
    await stream.send_eof()


async def echo(stream):
    async for data in stream:
        await stream.send_all(data)


async def serve(nursery, handler, host="127.0.0.1"):
    listeners = await nursery.start(trio.serve_tcp, handler, 0, 0) if host is None else None
    if listeners is None:
        listeners = await trio.open_tcp_listeners(0, host=host)
        nursery.start_soon(trio.serve_listeners, handler, listeners)
    return listeners[0].socket.getsockname()[1]


async def asked(r, line: bytes, *fields: bytes):
    """The head and body of the answer to a CONNECT that is refused; the connection must end behind it."""
    stream = await r.plain()
    await stream.send_all(b"\r\n".join([line, *fields, b"", b""]))
    with trio.fail_after(10):
        head, rest = await read_head(stream)
        body = await read_all(stream, rest)
    return head, body


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT example.com HTTP/1.1",
        b"CONNECT example.com: HTTP/1.1",
        b"CONNECT example.com:65536 HTTP/1.1",
        b"CONNECT example.com:https HTTP/1.1",
        b"CONNECT :443 HTTP/1.1",
        b"CONNECT [::1:443 HTTP/1.1",
        b"CONNECT [::zz]:443 HTTP/1.1",
        b"CONNECT me@example.com:443 HTTP/1.1",
        b"CONNECT https://example.com:443/ HTTP/1.1",
        b"CONNECT exa\xffmple.com:443 HTTP/1.1",
        b"CONNECT /path HTTP/1.1",
        b"CONNECT * HTTP/1.1",
        b"CONNECT example.com:443",
        b"CONNECT",
        b"CONNECT  HTTP/1.1",
        b"CONNECT a b HTTP/1.1",
    ],
)
async def test_c20_a_connect_that_makes_no_sense_is_a_400(rig, line):
    async with rig() as r:
        head, body = await asked(r, line, b"Host: example.com")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"x-dbproxy-error: 1" in head
        assert json.loads(body)["type"] == "error"


async def test_c20_a_dead_target_is_a_502(rig):
    async with rig() as r:
        head, body = await asked(r, b"CONNECT 127.0.0.1:%d HTTP/1.1" % closed_port(), b"Host: x")
        assert head.startswith(b"HTTP/1.1 502 ")
        assert "127.0.0.1" in json.loads(body)["error"]["message"]


async def test_c20_an_unknown_name_is_a_502(rig):
    async with rig() as r:
        head, body = await asked(r, b"CONNECT no-such-host.invalid:443 HTTP/1.1", b"Host: x")
        assert head.startswith(b"HTTP/1.1 502 ")
        assert "no-such-host.invalid" in json.loads(body)["error"]["message"]


async def test_c20_a_target_that_does_not_answer_is_a_504(rig):
    """A listener whose backlog is full takes no connection, as a silent firewall does."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        taken = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            taken.append(sock)
        async with rig(connect_timeout="0.5") as r:
            head, _ = await asked(r, b"CONNECT 127.0.0.1:%d HTTP/1.1" % port, b"Host: x")
            assert head.startswith(b"HTTP/1.1 504 ")
        for sock in taken:
            sock.close()


class Doorman:
    def __init__(self, answer):
        self.answer = answer

    @hookimpl
    def tunnel_policy(self, connection, host, port):
        return self.answer


async def test_c20_a_refused_connect_is_a_403_that_names_the_host(rig):
    async with rig(plugins=(("doorman", Doorman("refuse")),)) as r:
        head, body = await asked(r, b"CONNECT example.com:443 HTTP/1.1", b"Host: x")
        assert head.startswith(b"HTTP/1.1 403 ")
        assert "example.com" in json.loads(body)["error"]["message"]


async def test_a_policy_may_leave_an_intercepted_host_alone(rig):
    async with rig(plugins=(("doorman", Doorman("pass")),)) as r, trio.open_nursery() as nursery:
        port = await serve(nursery, shout)
        stream = await r.connect(f"127.0.0.1:{port}")
        await stream.send_all(b"x")
        await stream.send_eof()
        assert await read_all(stream) == b"X"
        nursery.cancel_scope.cancel()


async def foreign(r):
    """A connection whose peer sits, as far as the proxy knows, on another machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    mine = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    listener.close()
    r.running.server._accepted(theirs, ("192.0.2.77", 4711))
    mine.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(mine))
    r.opened.append(stream)
    return stream


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "10.1.2.3", "169.254.169.254", "[::ffff:10.0.0.1]"]
)
async def test_private_targets_are_refused_to_other_machines(rig, host):
    async with rig() as r, trio.open_nursery() as nursery:
        port = await serve(nursery, shout)
        stream = await foreign(r)
        await stream.send_all(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with trio.fail_after(5):
            answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 403 ")
        nursery.cancel_scope.cancel()


async def test_another_machine_may_still_be_intercepted(rig):
    async with rig() as r:
        stream = await foreign(r)
        await stream.send_all(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _ = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 200 ")


async def test_a_tunnel_over_tls_to_our_own_port_is_answered(rig):
    """Our own port speaks TLS for pages and base URLs; as an https:// proxy it says what to do instead."""
    async with rig() as r:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        stream = tls_client(await r.plain(), context, "localhost")
        await stream.send_all(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        answer = await read_response(stream)
        assert answer.status == 400
        assert "plain connection" in answer.json["error"]["message"]


async def test_a_tunnel_inside_a_tunnel_is_answered(rig):
    async with rig() as r:
        stream = await r.tls()
        await stream.send_all(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
        assert (await read_response(stream)).status == 400


async def test_c20_a_get_is_answered_as_the_contract_says(rig):
    """The seed said 405 to everything but CONNECT; here own paths answer and others go to the upstream."""
    async with rig() as r:
        stream = await r.plain()
        await stream.send_all(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{r.running.port}\r\n\r\n".encode())
        assert (await read_response(stream)).json["status"] == "ok"
        await stream.send_all(request("/v1/models", method="GET", body=None, host=f"127.0.0.1:{r.running.port}"))
        assert (await read_response(stream)).status == 200
        assert r.origin.requests[0].target == "/v1/models"


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authority", ["API.Anthropic.COM:443", "api.anthropic.com.:443", "Api.anthropic.com.:8443"])
async def test_a_host_is_the_same_in_any_case_and_with_a_dot(rig, authority):
    async with rig() as r:
        stream = tls_client(await r.connect(authority), r.client_context(), HOST)
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
        assert len(r.origin.requests) == 1


async def test_ipv6_brackets(rig):
    async with rig() as r, trio.open_nursery() as nursery:
        port = await serve(nursery, shout, host="::1")
        stream = await r.connect(f"[::1]:{port}")
        await stream.send_all(b"six")
        await stream.send_eof()
        assert await read_all(stream) == b"SIX"
        nursery.cancel_scope.cancel()


# -- the ClientHello --------------------------------------------------------------------------------------------------


class Memory:
    """A TLS client in memory, so that a test decides which bytes leave when."""

    def __init__(self, context, name=HOST):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        self.hello = self.outgoing.read()

    async def finish(self, stream):
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                data = await stream.receive_some()
                assert data, "closed inside the handshake"
                self.incoming.write(data)
        await stream.send_all(self.outgoing.read())

    async def ask(self, stream, data):
        self.tls.write(data)
        await stream.send_all(self.outgoing.read())
        got = b""
        while b"\r\n\r\n" not in got:
            try:
                got += self.tls.read(65536)
            except ssl.SSLWantReadError:
                data = await stream.receive_some()
                assert data, "closed before the answer"
                self.incoming.write(data)
        return got


async def test_a_client_hello_in_the_same_segment_as_the_connect(rig):
    async with rig() as r:
        client = Memory(r.client_context())
        stream = await r.plain()
        await stream.send_all(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode() + client.hello)
        _, rest = await read_head(stream)
        client.incoming.write(rest)
        await client.finish(stream)
        assert (await client.ask(stream, request())).startswith(b"HTTP/1.1 200")


async def test_a_client_hello_byte_by_byte(rig):
    async with rig() as r:
        client = Memory(r.client_context())
        stream = await r.connect()
        for at in range(len(client.hello)):
            await stream.send_all(client.hello[at : at + 1])
            if at % 16 == 0:
                await trio.sleep(0)
        await client.finish(stream)
        assert (await client.ask(stream, request())).startswith(b"HTTP/1.1 200")


async def test_a_client_hello_split_at_every_byte(rig):
    """Two segments, the cut at each place in turn; thirty tunnels at a time."""
    async with rig() as r:
        context = r.client_context()
        client, stream = Memory(context), await r.connect()
        await stream.send_all(client.hello)
        await client.finish(stream)
        await client.ask(stream, request())  # a kind of client that is known to trust us
        size = len(Memory(context).hello)

        async def one(cut):
            client = Memory(context)
            stream = await r.connect()
            await stream.send_all(client.hello[:cut])
            await trio.sleep(0.005)
            await stream.send_all(client.hello[cut:])
            await client.finish(stream)
            stream.socket.close()

        for start in range(1, size, 30):
            async with trio.open_nursery() as nursery:
                for cut in range(start, min(start + 30, size)):
                    nursery.start_soon(one, cut)
        assert r.proxy.counters.handshakes_failed_total == 0


async def test_a_client_hello_larger_than_a_segment(rig):
    async with rig() as r:
        context = r.client_context()
        context.set_alpn_protocols(["http/1.1", *(f"padding-{number:03}{'x' * 200}" for number in range(30))])
        client = Memory(context)
        assert len(client.hello) > 6000
        stream = await r.connect()
        await stream.send_all(client.hello[:1400])
        await trio.sleep(0.02)
        await stream.send_all(client.hello[1400:])
        await client.finish(stream)
        assert (await client.ask(stream, request())).startswith(b"HTTP/1.1 200")


async def test_without_alpn(rig):
    async with rig() as r:
        context = ssl.create_default_context(cadata=r.proxy.authority.bundle_pem.decode())
        stream = tls_client(await r.connect(), context, HOST)
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
        assert stream.selected_alpn_protocol() is None


async def test_http1_is_chosen_where_h2_is_offered_too(rig):
    async with rig() as r:
        context = r.client_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        stream = tls_client(await r.connect(), context, HOST)
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
        assert stream.selected_alpn_protocol() == "http/1.1"


async def test_without_a_server_name_the_certificate_is_for_the_tunnels_host(rig):
    async with rig() as r:
        context = r.client_context()
        context.check_hostname = False
        client = Memory(context, name=None)
        stream = await r.connect()
        await stream.send_all(client.hello)
        await client.finish(stream)
        names = dict(client.tls.getpeercert()["subjectAltName"])
        assert names == {"DNS": HOST}
        assert (await client.ask(stream, request())).startswith(b"HTTP/1.1 200")


async def hello_echo(stream):
    """Stands for the real host behind a blind tunnel: TLS with a certificate that is not ours."""
    secured = tls_server(stream)
    try:
        await echo(secured)
    except trio.BrokenResourceError:
        pass


def blind_context(*alpn):
    from blackbox import authority

    context = ssl.create_default_context()
    authority().configure_trust(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def blind(r, stream, context, name):
    secured = tls_client(stream, context, name)
    await secured.send_all(b"PRI or whatever")
    assert await read_exactly(secured, 15) == b"PRI or whatever"
    assert not r.origin.requests


async def test_another_server_name_is_not_ours_to_open(rig):
    """The tunnel goes to an intercepted host, the ClientHello names another: what is inside is none of our business."""
    async with rig(intercept="localhost") as r, trio.open_nursery() as nursery:
        port = await serve(nursery, hello_echo)
        await blind(r, await r.connect(f"localhost:{port}"), blind_context(), HOST)
        nursery.cancel_scope.cancel()


async def test_a_client_that_speaks_no_http_is_tunnelled_blindly(rig):
    async with rig(intercept="localhost") as r, trio.open_nursery() as nursery:
        port = await serve(nursery, hello_echo)
        await blind(r, await r.connect(f"localhost:{port}"), blind_context("acme-tls/1"), "localhost")
        nursery.cancel_scope.cancel()


async def test_a_client_that_rejects_our_certificate_twice_is_left_alone(rig):
    async with rig(intercept="localhost") as r, trio.open_nursery() as nursery:
        port = await serve(nursery, hello_echo)
        for _ in range(2):
            stream = tls_client(await r.connect(f"localhost:{port}"), blind_context(), "localhost")
            with pytest.raises(trio.BrokenResourceError):
                await stream.do_handshake()
            await trio.aclose_forcefully(stream)
        with trio.fail_after(5):
            while r.proxy.counters.certificates_rejected_total < 2:
                await trio.sleep(0.01)
        await blind(r, await r.connect(f"localhost:{port}"), blind_context(), "localhost")
        # Another kind of client, which trusts us, is intercepted as before.
        context = r.client_context()
        stream = tls_client(await r.connect(f"localhost:{port}"), context, "localhost")
        await stream.do_handshake()
        nursery.cancel_scope.cancel()


async def test_a_kind_that_worked_once_is_never_left_alone(rig):
    async with rig() as r:
        stream = await r.tls()
        await stream.send_all(request())
        await read_response(stream)
        for _ in range(3):
            stream = await r.tls()
            await trio.aclose_forcefully(stream)
        with trio.fail_after(5):
            while r.proxy.counters.certificates_rejected_total < 3:
                await trio.sleep(0.01)
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200


async def test_a_connection_kept_for_later_and_closed_unused_is_no_rejection(rig, monkeypatch):
    from dbproxy.app import tunnels

    monkeypatch.setattr(tunnels, "_SILENT_REJECTION", 0.2)
    async with rig() as r:
        for _ in range(2):
            stream = await r.tls()
            await trio.sleep(0.4)
            await trio.aclose_forcefully(stream)
        with trio.fail_after(5):
            while r.proxy.counters.connections_open:
                await trio.sleep(0.01)
        assert r.proxy.counters.certificates_rejected_total == 0


# -- what is inside ---------------------------------------------------------------------------------------------------


async def test_plain_http_inside_a_tunnel(rig):
    async with rig() as r:
        stream = await r.connect(f"{HOST}:80")
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
        received = r.origin.requests[0]
        assert received.head + received.framed == untouched(request(), authority=r.origin.url.removeprefix("https://"))


@pytest.mark.parametrize("first", [b"SSH-2.0-x\r\n", b"\x00\x01\x02\x03", b"\x16\x00 nearly TLS"])
async def test_whatever_is_not_http_inside_a_tunnel_is_relayed_blindly(rig, first):
    async with rig(intercept="localhost") as r, trio.open_nursery() as nursery:
        port = await serve(nursery, echo)
        stream = await r.connect(f"localhost:{port}")
        await stream.send_all(first)
        assert await read_exactly(stream, len(first)) == first
        nursery.cancel_scope.cancel()


async def test_bytes_behind_the_connect_head_reach_a_blind_target(rig):
    async with rig() as r, trio.open_nursery() as nursery:
        port = await serve(nursery, shout)
        stream = await r.plain()
        await stream.send_all(f"CONNECT localhost:{port} HTTP/1.1\r\nHost: x\r\n\r\nearly ".encode())
        await read_head(stream)
        await stream.send_all(b"late")
        await stream.send_eof()
        assert await read_all(stream) == b"EARLY LATE"
        nursery.cancel_scope.cancel()


async def test_c20_the_end_of_one_direction_leaves_the_other_open(rig):
    """The server ends first and still reads."""
    got = []

    async def hangs_up(stream):
        await stream.send_all(b"bye")
        await stream.send_eof()
        got.append(await read_all(stream))

    async with rig() as r, trio.open_nursery() as nursery:
        port = await serve(nursery, hangs_up)
        stream = await r.connect(f"localhost:{port}")
        assert await read_all(stream) == b"bye"
        await stream.send_all(b"still here")
        await stream.send_eof()
        with trio.fail_after(5):
            while not got:
                await trio.sleep(0.01)
        assert got == [b"still here"]
        nursery.cancel_scope.cancel()


async def test_thirty_tunnels_at_once(rig):
    watcher = Watcher()
    async with rig(say("word " * 40), plugins=(("watcher", watcher),)) as r:
        done = []

        async def one(number):
            stream = await r.tls()
            for turn in range(2):
                await stream.send_all(request(f"/v1/messages?n={number}.{turn}"))
                assert (await read_response(stream)).status == 200
            done.append(number)
            await stream.aclose()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(one, number)
        assert len(done) == 30
        assert await watcher.outcomes(60) == [Outcome.OK] * 60
        assert len({received.target for received in r.origin.requests}) == 60


async def test_what_is_not_http_at_all_gets_an_answer_and_ends_itself_only(rig):
    async with rig() as r:
        good = await r.tls()
        stream = await r.plain()
        await stream.send_all(b"\x00\x01garbage\r\n\r\n")
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400 ")
        await good.send_all(request())
        assert (await read_response(good)).status == 200
        assert transport(good).socket.fileno() >= 0
