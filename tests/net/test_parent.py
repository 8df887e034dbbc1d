"""The user's own proxy: its URL, its CONNECT handshake, and the bridge for https:// ones, against a real fake proxy."""

from __future__ import annotations

import base64
import gc
import os
import random
import socket
import ssl
import sys

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.errors import Refused, UpstreamError
from dbproxy.net import parent as parent_module
from dbproxy.net.address import NoProxy
from dbproxy.net.dial import Dialer
from dbproxy.net.parent import REPLY_LIMIT, ParentConfig, ParentUnusable

MB = 1 << 20
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


# -- the URL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url", "authorization"),
    [
        ("http://proxy.corp:3128", "http://proxy.corp:3128", ""),
        ("http://proxy.corp", "http://proxy.corp:80", ""),
        ("https://proxy.corp", "https://proxy.corp:443", ""),
        ("HTTP://Proxy.Corp:3128/", "http://proxy.corp:3128", ""),
        ("proxy.corp:3128", "http://proxy.corp:3128", ""),
        ("10.0.0.1:3128", "http://10.0.0.1:3128", ""),
        ("http://[fd00::1]:3128", "http://[fd00::1]:3128", ""),
        ("http://me:secret@proxy.corp:3128", "http://proxy.corp:3128", "me:secret"),
        ("me:secret@proxy.corp:3128", "http://proxy.corp:3128", "me:secret"),
        ("http://me@proxy.corp:3128", "http://proxy.corp:3128", "me:"),
        ("http://corp%5Cme:p%40ss%3Aw%C3%B6rd@proxy.corp", "http://proxy.corp:80", "corp\\me:p@ss:wörd"),
    ],
)
def test_urls(text, url, authorization):
    parent, notices = ParentConfig.parse(None, {"https_proxy": text})
    assert notices == []
    assert parent.url == url
    expected = b"Basic " + base64.b64encode(authorization.encode()) if authorization else b""
    assert parent.authorization == expected
    assert parent.origin == "https_proxy"
    assert "secret" not in repr(parent)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("socks5://me:secret@proxy.corp:1080", "SOCKS"),
        ("socks5h://proxy.corp:1080", "SOCKS"),
        ("SOCKS4A://proxy.corp", "SOCKS"),
        ("http://wpad.corp/proxy.pac", "PAC"),
        ("http://wpad.corp/wpad.dat?me=secret", "PAC"),
        ("pac+http://wpad.corp/x", "PAC"),
        ("ftp://me:secret@proxy.corp", "unknown kind"),
        ("http://", "not a readable"),
        ("http://proxy.corp:99999", "not a readable"),
        ("http://proxy.corp:0", "not a readable"),
        ("http://me:secret@[::1", "not a readable"),
        ("http://pro xy:3128", "not a readable"),
    ],
)
def test_what_we_cannot_use_is_one_line_and_then_direct(text, said):
    parent, notices = ParentConfig.parse(None, {"HTTPS_PROXY": text})
    assert parent is None
    assert len(notices) == 1
    assert said in notices[0]
    assert "HTTPS_PROXY" in notices[0]
    assert "\n" not in notices[0]
    assert "secret" not in notices[0]


@given(st.text(max_size=60))
def test_any_text_is_a_parent_or_a_notice(text):
    parent, notices = ParentConfig.parse(text, {})
    assert parent is None or (parent.host and 0 < parent.port < 65536)
    assert all("\n" not in notice for notice in notices)


def named(env, **options):
    parent, notices = ParentConfig.parse(options.pop("setting", None), env, **options)
    return parent.host if parent else None, notices


def test_where_it_comes_from():
    every = {
        "https_proxy": "http://a",
        "HTTPS_PROXY": "http://b",
        "http_proxy": "http://c",
        "HTTP_PROXY": "http://d",
        "all_proxy": "http://e",
        "ALL_PROXY": "http://f",
    }
    assert named(every, setting="http://ours")[0] == "ours"
    for name, host in zip(list(every), "abcdef", strict=True):
        assert named(every)[0] == host
        del every[name]
    assert named({}) == (None, [])
    assert named({"https_proxy": "  ", "HTTPS_PROXY": "http://b"})[0] == "b"
    assert named({"https_proxy": "http://a"}, setting="") == (None, [])
    assert named({"https_proxy": "http://a"}, setting="direct") == (None, [])
    assert named({"https_proxy": "http://a"}, setting="None") == (None, [])


def test_an_unusable_one_does_not_hide_the_next():
    host, notices = named({"https_proxy": "socks5://s", "ALL_PROXY": "socks5://s", "http_proxy": "http://c"})
    assert host == "c"
    assert len(notices) == 1
    assert len(named({"https_proxy": "socks5://s", "HTTPS_PROXY": "socks5://s"})[1]) == 1  # said once


@pytest.mark.parametrize("url", ["http://scope:key@127.0.0.1:8080", "http://localhost:8080", "127.0.0.1:8080"])
def test_one_of_our_own_launches_left_it_in_the_environment(url):
    own = [("127.0.0.1", 8080)]
    host, notices = named({"https_proxy": url, "HTTPS_PROXY": url, "http_proxy": "http://c"}, own_listeners=own)
    assert host == "c"
    assert len(notices) == 1
    assert "dbproxy itself" in notices[0]
    assert named({"https_proxy": "http://127.0.0.1:8081"}, own_listeners=own)[0] == "127.0.0.1"


def test_exemptions():
    env = {"https_proxy": "http://a", "no_proxy": "corp.example,10.0.0.0/8"}
    parent, _ = ParentConfig.parse(None, env)
    assert not parent.applies_to("x.corp.example", 443)
    assert not parent.applies_to("10.1.1.1", 443)
    assert parent.applies_to("api.anthropic.com", 443)
    parent, _ = ParentConfig.parse(None, env, no_proxy=("api.anthropic.com",))
    assert not parent.applies_to("api.anthropic.com", 443)
    assert parent.applies_to("corp.example", 443)
    parent, _ = ParentConfig.parse(None, env, no_proxy="")
    assert parent.applies_to("corp.example", 443)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost.", "x.localhost", "127.0.0.1", "127.3.2.1", "::1", "[::1]", "0.0.0.0", "::ffff:127.0.0.1"],
)
def test_this_machine_is_never_reached_through_it(host):
    assert not ParentConfig("http", "proxy", 3128).applies_to(host, 443)


# -- CONNECT ----------------------------------------------------------------------------------------------------------


class Proxy:
    """A CONNECT proxy that keeps what it was sent and answers what it is told."""

    def __init__(self, nursery, listener, context):
        self.nursery, self.listener, self.context = nursery, listener, context
        self.port = listener.getsockname()[1]
        self.heads: list[bytes] = []
        self.connections = 0
        self.ended = trio.Event()  # a client's end of file was seen
        self.answer = self.echo

    async def serve(self):
        while True:
            sock, _ = await self.listener.accept()
            self.connections += 1
            self.nursery.start_soon(self.handle, trio.SocketStream(sock))

    async def handle(self, stream):
        if self.context is not None:
            # Not our own TLS: a fake that shares the code under test proves nothing.
            stream = trio.SSLStream(stream, self.context, server_side=True, https_compatible=True)  # noqa: TID251
        async with stream:
            try:
                head = b""
                while b"\r\n\r\n" not in head:
                    data = await stream.receive_some(1000)
                    if not data:
                        return
                    head += data
                head, _, rest = head.partition(b"\r\n\r\n")
                self.heads.append(head)
                await self.answer(stream, rest)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                self.ended.set()

    async def echo(self, stream, rest):
        await stream.send_all(ESTABLISHED)
        while True:
            if rest:
                await stream.send_all(rest)
            rest = await stream.receive_some(MB)
            if not rest:
                return

    def says(self, *pieces, pause=0.0, keep=False):
        async def answer(stream, rest):
            for piece in pieces:
                await stream.send_all(piece)
                await trio.sleep(pause)
            if keep:
                await trio.sleep_forever()

        self.answer = answer


@pytest.fixture
async def proxy(nursery, request):
    kind = getattr(request, "param", "http")
    authority = trustme.CA()
    context = None
    if kind == "https":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(context)
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        proxy = Proxy(nursery, listener, context)
        proxy.kind = kind
        proxy.authority = authority
        proxy.config = ParentConfig(kind, "localhost", proxy.port)
        nursery.start_soon(proxy.serve)
        yield proxy


@pytest.fixture
def dialer(proxy, nursery):
    trusting = ssl.create_default_context()
    proxy.authority.configure_trust(trusting)
    notices = []
    made = Dialer(proxy.config, context=trusting, nursery=nursery, notice=notices.append)
    made.notices = notices
    return made


BOTH = pytest.mark.parametrize("proxy", ["http", "https"], indirect=True)


def with_login(config, user, password):
    pair = f"{user}:{password}".encode()
    return ParentConfig(
        config.scheme, config.host, config.port, b"Basic " + base64.b64encode(pair), origin="HTTPS_PROXY"
    )


def open_fds():
    gc.collect()
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))


async def fails(dialer, host="api.example", port=443, **options):
    with pytest.raises(UpstreamError) as caught:
        await dialer.connect(host, port, **options)
    assert caught.value.kind == "parent"
    return str(caught.value)


@BOTH
async def test_a_tunnel_through_it(proxy, dialer):
    with await dialer.connect("api.example", 443) as sock:
        await sock.send(b"hello")
        assert await sock.recv(100) == b"hello"
    assert proxy.heads == [b"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443"]
    with trio.fail_after(1):
        await proxy.ended.wait()


@BOTH
async def test_credentials_and_ipv6_targets(proxy, dialer):
    dialer.parent = with_login(proxy.config, "me", "secret")
    with await dialer.connect("2606:4700::1111", 8443):
        pass
    assert proxy.heads == [
        b"CONNECT [2606:4700::1111]:8443 HTTP/1.1\r\nHost: [2606:4700::1111]:8443\r\n"
        b"Proxy-Authorization: Basic bWU6c2VjcmV0"
    ]


@BOTH
async def test_megabytes_both_ways(proxy, dialer):
    payload = random.Random(7).randbytes(5 * MB)
    with await dialer.connect("api.example", 443) as sock:

        async def send():
            view = memoryview(payload)
            while view:
                view = view[await sock.send(view) :]

        got = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while len(got) < len(payload):
                got += await sock.recv(MB)
        assert got == payload


@BOTH
@pytest.mark.parametrize("pieces", [1, 2, 40])
async def test_a_server_may_speak_first_right_behind_the_reply(proxy, dialer, pieces):
    whole = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\nProxy-Agent: old\n\nSSH-2.0-banner\r\n"
    size = -(-len(whole) // pieces)
    proxy.says(*(whole[i : i + size] for i in range(0, len(whole), size)), pause=0.001, keep=True)
    with await dialer.connect("api.example", 22) as sock:
        got = b""
        while len(got) < 16:
            got += await sock.recv(1000)
        assert got == b"SSH-2.0-banner\r\n"


@pytest.mark.parametrize("direct", [True, False])
async def test_past_it(proxy, dialer, direct):
    target = proxy.port if direct else 1
    dialer.parent = ParentConfig("http", "localhost", proxy.port, no_proxy=NoProxy(("127.0.0.2",)))
    if direct:
        (await dialer.connect("127.0.0.1", target, direct=True)).close()
    else:
        with pytest.raises(UpstreamError) as caught:
            await dialer.connect("127.0.0.2", target)
        assert caught.value.kind == "connect"
    assert proxy.heads == []


async def test_a_launch_scope_may_name_another(proxy, dialer):
    dialer.parent = None
    (await dialer.connect("api.example", 443, parent=proxy.config)).close()
    assert len(proxy.heads) == 1


@BOTH
@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "answered CONNECT api.example:443 with 502 Bad Gateway"),
        (b"HTTP/1.0 403\r\nX: y\r\n\r\nbody", "answered CONNECT api.example:443 with 403"),
        (b"HTTP/1.1 503 \x1b[31mred\r\n\r\n", "with 503 ?[31mred"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not answer in HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "does not answer in HTTP"),
        (b"HTTP/1.1 OK\r\n\r\n", "unreadable status line"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "unreadable status line"),
        (b"HTTP/1.1 200 OK\r\n", "closed the connection without a reply"),
        (b"", "closed the connection without a reply"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * REPLY_LIMIT + b"\r\n\r\n", "reply head without end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "reply head without end"),
    ],
)
async def test_refusals_and_nonsense(proxy, dialer, reply, said):
    proxy.says(reply)
    before = open_fds()
    text = await fails(dialer)
    assert said in text
    assert dialer.parent.url in text
    with trio.fail_after(5):
        await proxy.ended.wait()
    await trio.sleep(0.01)
    assert open_fds() == before


@pytest.mark.parametrize(
    ("login", "said"),
    [
        (False, "wants a user name and a password (407, Basic)"),
        (True, "refused the user name or password (407, Basic)"),
    ],
)
async def test_login_by_basic(proxy, dialer, login, said):
    proxy.says(b'HTTP/1.1 407 Nope\r\nProxy-Authenticate: NTLM\r\nPROXY-AUTHENTICATE: Basic realm="x"\r\n\r\n')
    if login:
        dialer.parent = with_login(proxy.config, "me", "secret")
    text = await fails(dialer)
    assert said in text
    assert "secret" not in text
    assert "me:" not in text


@pytest.mark.parametrize(
    ("offered", "name"),
    [
        (b"NTLM", "NTLM"),
        (b"Negotiate abc", "Negotiate (Kerberos)"),
        (b'Digest realm="x"', "Digest"),
        (b"Weird", "weird"),
    ],
)
async def test_a_login_that_we_cannot_do_is_said_once_and_then_direct(proxy, dialer, offered, name, monkeypatch):
    proxy.says(b"HTTP/1.1 407 Nope\r\nProxy-Authenticate: " + offered + b"\r\n\r\n")
    target, direct = socket.socketpair()

    async def dial(host, port, allow_private=True):
        if host == "localhost":
            return await real(host, port, allow_private)
        assert host == "api.example"
        return direct.dup()

    real = dialer._dial
    monkeypatch.setattr(dialer, "_dial", dial)
    with target, direct:
        for _ in range(3):
            (await dialer.connect("api.example", 443)).close()
    assert len(proxy.heads) == 1
    assert len(dialer.notices) == 1
    assert name in dialer.notices[0]
    assert "connecting directly" in dialer.notices[0]


async def test_it_leads_back_to_us(proxy, dialer):
    """The environment of one of our own launches, noticed only when the name is resolved."""
    dialer._own_listeners = lambda: [("127.0.0.1", proxy.port)]
    with pytest.raises(UpstreamError) as caught:
        await dialer.connect("127.0.0.2", 1, parent=ParentConfig("http", "127.0.0.1", proxy.port))
    assert caught.value.kind == "connect"  # loopback goes direct anyway

    async def resolve(host, port):
        return [(socket.AF_INET, ("127.0.0.1", 1))]

    dialer._resolver = resolve
    for _ in range(2):
        with pytest.raises(UpstreamError) as caught:
            await dialer.connect("api.example", 443)
        assert caught.value.kind == "connect"
    assert len(dialer.notices) == 1
    assert "dbproxy itself" in dialer.notices[0]


async def test_it_is_not_there(proxy, dialer):
    dialer.parent = ParentConfig("http", "127.0.0.1", 1, origin="HTTPS_PROXY")
    text = await fails(dialer)
    assert "the proxy http://127.0.0.1:1 from HTTPS_PROXY cannot be reached" in text
    assert "connection refused" in text
    assert "NO_PROXY" in text


@BOTH
async def test_it_never_answers(proxy, dialer, autojump_clock):
    autojump_clock.autojump_threshold = 0.05  # real bytes need real time
    proxy.says(keep=True)
    began = trio.current_time()
    text = await fails(dialer)
    assert "did not answer CONNECT api.example:443 within 30 s" in text
    assert trio.current_time() - began == pytest.approx(30, abs=1)


async def test_private_targets_behind_it_are_refused_to_clients_elsewhere(proxy, dialer):
    async def resolve(host, port):
        if host == "unknown.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        address = {"inside.example": "10.0.0.1", "outside.example": "1.1.1.1"}[host]
        return [(socket.AF_INET, (address, port))]

    dialer._resolver = resolve
    for host in ("10.0.0.1", "inside.example"):
        with pytest.raises(Refused):
            await dialer.connect(host, 443, allow_private=False)
    with pytest.raises(UpstreamError):
        await dialer.connect("unknown.example", 443, allow_private=False)
    assert proxy.heads == []
    (await dialer.connect("outside.example", 443, allow_private=False)).close()
    (await dialer.connect("10.0.0.1", 443)).close()
    assert len(proxy.heads) == 2


# -- TLS to it --------------------------------------------------------------------------------------------------------

HTTPS = pytest.mark.parametrize("proxy", ["https"], indirect=True)


@HTTPS
async def test_its_certificate_is_verified(proxy, dialer):
    dialer._context = ssl.create_default_context()
    text = await fails(dialer)
    assert f"no TLS with the proxy https://localhost:{proxy.port}" in text
    assert "DBPROXY_UPSTREAM_CA" in text
    assert proxy.heads == []


@HTTPS
async def test_its_name_is_verified(proxy, dialer):
    dialer.parent = ParentConfig("https", "127.0.0.1", proxy.port)
    assert "no TLS with the proxy" in await fails(dialer)
    assert proxy.heads == []


@HTTPS
async def test_a_client_that_closes_ends_it_within_a_second(proxy, dialer):
    """Also where the proxy shows no reaction at all."""
    heard_the_end = trio.Event()

    async def answer(stream, rest):
        await stream.send_all(ESTABLISHED)
        while await stream.receive_some(100):
            pass
        heard_the_end.set()
        await trio.sleep_forever()

    proxy.answer = answer
    before = open_fds()
    sock = await dialer.connect("api.example", 443)
    assert open_fds() == before + 4  # both ends of the pair, and of the connection to the proxy
    sock.close()
    with trio.fail_after(1):
        await heard_the_end.wait()
        while open_fds() > before + 1:  # the proxy's own end stays
            await trio.sleep(0.02)


@HTTPS
async def test_a_client_that_is_done_sending_still_receives(proxy, dialer):
    async def answer(stream, rest):
        await stream.send_all(ESTABLISHED)
        got = rest
        while data := await stream.receive_some(100):
            got += data
        assert await stream.transport_stream.receive_some(100) == b""  # for proxies that heed TCP only
        await trio.sleep(3 * parent_module.HANGUP_SECONDS)
        await stream.send_all(b"you said " + got)

    proxy.answer = answer
    with await dialer.connect("api.example", 443) as sock:
        await sock.send(b"everything")
        sock.shutdown(socket.SHUT_WR)
        got = b""
        with trio.fail_after(10):
            while data := await sock.recv(100):
                got += data
        assert got == b"you said everything"


@HTTPS
async def test_its_end_is_the_clients_end_of_file(proxy, dialer):
    proxy.says(ESTABLISHED + b"bye")
    with await dialer.connect("api.example", 443) as sock, trio.fail_after(5):
        assert await sock.recv(100) == b"bye"
        assert await sock.recv(100) == b""


@HTTPS
async def test_a_stopped_client_is_backpressure(proxy, dialer):
    sent = 0

    async def answer(stream, rest):
        nonlocal sent
        await stream.send_all(ESTABLISHED)
        while True:
            await stream.send_all(bytes(MB))
            sent += MB

    proxy.answer = answer
    with await dialer.connect("api.example", 443) as sock:
        await trio.sleep(0.3)
        stopped_at = sent
        await trio.sleep(0.2)
        assert sent == stopped_at < 16 * MB
        assert await sock.recv(100)


@HTTPS
async def test_a_bug_in_a_bridge_ends_that_connection_only(proxy, dialer, monkeypatch):
    async def broken(*args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(parent_module, "_bridge_up", broken)
    with await dialer.connect("api.example", 443) as sock, trio.fail_after(5):
        assert await sock.recv(100) == b""
    assert dialer.notices == ["a connection through the parent proxy failed: ZeroDivisionError('a bug')"]


async def test_without_a_nursery_an_https_parent_is_a_mistake_of_the_caller(proxy):
    near, far = socket.socketpair()
    with far, pytest.raises(ValueError, match="nursery"):
        await parent_module.open_tunnel(near, ParentConfig("https", "p", 1), "h", 1, timeout=1)
    assert issubclass(ParentUnusable, Exception)
