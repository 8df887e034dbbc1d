"""A request through the whole proxy and back, in each of the ways in which clients arrive."""

from __future__ import annotations

import json

import pytest
import trio
from rig import HOST, read_all, read_exactly, read_head

BODY = json.dumps({"model": "claude-x", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}).encode()


def request(
    target: str = "/v1/messages?beta=true", *, body: bytes = BODY, extra: str = "", host: str = "api.anthropic.com"
) -> bytes:
    head = (
        f"POST {target} HTTP/1.1\r\nAccept: application/json\r\nX-Odd:  two blanks \r\nx-api-key: k\r\n"
        f"anthropic-version: 2023-06-01\r\n{extra}"
        f"Connection: keep-alive\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def untouched(sent: bytes, *, authority: str = "") -> bytes:
    """What the origin must receive for what was sent: the same less the fields of the hop, Host renamed if need be."""
    head, _, body = sent.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"proxy-"))]
    if authority:
        lines = [b"Host: " + authority.encode() if line.lower().startswith(b"host:") else line for line in lines]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def read_answer(stream, seen=b""):
    head, rest = await read_head(stream, seen)
    length = int(
        next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")).split(b":")[1]
    )
    return head, await read_exactly(stream, length, rest)


async def test_inside_a_tunnel_every_byte_arrives_both_ways(rig):
    async with rig() as r:
        stream = await r.tls()
        await stream.send_all(request())
        head, body = await read_answer(stream)
        (received,) = await r.origin.wait_requests(1)
        assert received.head + received.framed == untouched(request(), authority=r.origin.url.removeprefix("https://"))
        assert head.startswith(b"HTTP/1.1 200")
        assert body == bytes(received.sent.body)
        assert head == received.sent.head


async def test_the_tunnel_and_the_upstream_connection_are_used_again(rig):
    async with rig() as r:
        stream = await r.tls()
        for _ in range(5):
            await stream.send_all(request())
            await read_answer(stream)
        assert len({received.connection.number for received in r.origin.requests}) == 1


async def test_base_url_mode_keeps_the_path_prefix(rig):
    async with rig() as r:
        stream = await r.plain()
        await stream.send_all(request("/s/abc/v1/messages?beta=true", host="127.0.0.1:1"))
        await read_answer(stream)
        (received,) = r.origin.requests
        assert received.target == "/s/abc/v1/messages?beta=true"
        assert received.header("host") == r.origin.url.removeprefix("https://")


@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_absolute_form_is_fetched_upstream(rig, scheme):
    """client facts 1.3: an OAuth client asks its HTTP proxy for an https URL in absolute form."""
    async with rig() as r:
        stream = await r.plain()
        await stream.send_all(
            request(f"{scheme}://{HOST}/api/oauth/profile", extra="Proxy-Authorization: Basic eDp5\r\n")
        )
        await read_answer(stream)
        (received,) = r.origin.requests
        assert received.target == "/api/oauth/profile"
        assert received.header("proxy-authorization") is None


async def test_plain_http_inside_a_tunnel_to_ourselves_is_base_url_mode(rig):
    """client facts 1.3: with HTTP_PROXY and a loopback base URL some clients tunnel to the base URL."""
    async with rig() as r:
        stream = await r.connect(f"127.0.0.1:{r.running.port}")
        await stream.send_all(request(host=f"127.0.0.1:{r.running.port}"))
        await read_answer(stream)
        assert len(r.origin.requests) == 1


async def test_an_event_stream_arrives_event_by_event(rig):
    from dbproxy.testing.origin import say

    async with rig(say("word " * 50, gap=0.2, delta_chars=125)) as r:
        stream = await r.tls()
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
        await stream.send_all(request(body=body))
        _, rest = await read_head(stream)
        began = trio.current_time()
        seen = rest
        while b"content_block_delta" not in seen:
            seen += await stream.receive_some()
        assert trio.current_time() - began < 1.0
        seen = await read_exactly(stream, len(r.origin.requests[0].sent.framed), seen)
        while b"0\r\n\r\n" not in seen:
            seen += await stream.receive_some()
        assert seen == bytes(r.origin.requests[0].sent.framed)


async def test_a_client_that_goes_closes_the_upstream_at_once(rig):
    from dbproxy.testing.origin import say

    async with rig(say("late", head_delay=30)) as r:
        stream = await r.tls()
        await stream.send_all(request())
        await r.origin.wait_requests(1)
        began = trio.current_time()
        await stream.transport_stream.aclose()
        with trio.fail_after(5):
            await r.origin.requests[0].connection.gone.wait()
        assert trio.current_time() - began < 1.0


async def test_an_upstream_that_breaks_off_never_ends_cleanly(rig):
    from dbproxy.testing.origin import say

    async with rig(say("word " * 500, cut_after=4)) as r:
        stream = await r.tls()
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
        await stream.send_all(request(body=body))
        _, rest = await read_head(stream)
        got = await read_all(stream, rest)
        assert got == bytes(r.origin.requests[0].sent.framed)
        assert b"0\r\n\r\n" not in got


async def test_a_dead_upstream_is_a_clear_error_that_clients_retry(rig):
    async with rig() as r:
        stream = await r.plain()
        await stream.send_all(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n")
        head, rest = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"x-dbproxy-error: 1" in head
        error = json.loads(await read_all(stream, rest))
        assert error["type"] == "error"
        assert "127.0.0.1" in error["error"]["message"]


async def test_other_hosts_are_tunnelled_blindly_with_half_close(rig):
    async with rig() as r, trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, _shout, 0)
        port = listeners[0].socket.getsockname()[1]
        stream = await r.connect(f"localhost:{port}")
        await stream.send_all(b"not http at all")
        await stream.send_eof()
        assert await read_all(stream) == b"NOT HTTP AT ALL"
        nursery.cancel_scope.cancel()


async def _shout(stream: trio.SocketStream) -> None:
    data = await read_all(stream)
    await stream.send_all(data.upper())
    await stream.send_eof()


async def test_health_metrics_and_reset(rig):
    async with rig() as r:
        port = r.running.port

        async def ask(method: str, path: str, *fields: str) -> tuple[int, bytes]:
            stream = await r.plain()
            lines = [f"{method} {path} HTTP/1.1", *fields, "Connection: close", "", ""]
            await stream.send_all("\r\n".join(lines).encode())
            head, _, body = (await read_all(stream)).partition(b"\r\n\r\n")
            return int(head.split(b" ")[1]), body

        host = f"Host: 127.0.0.1:{port}"
        status, body = await ask("GET", "/health", host)
        assert status == 200
        assert json.loads(body)["status"] == "ok"
        assert (await ask("GET", "/metrics", host))[0] == 200
        assert (await ask("GET", "/health", "Host: evil.example"))[0] == 421
        assert (await ask("GET", "/health", host, "Origin: https://evil.example"))[0] == 403
        assert (await ask("GET", "/v1/models", host, "Sec-Fetch-Site: cross-site"))[0] == 403
        assert (await ask("POST", "/v1/_reset", host, "Content-Length: 0"))[0] == 401
        token = f"Authorization: Bearer {r.proxy.token}"
        assert await ask("POST", "/v1/_reset", host, token, "Content-Length: 0") == (
            200,
            b'{"status": "reset_all", "count": 0}\n',
        )
        assert not r.origin.requests
