"""The endpoints on our own port: what they answer, who may ask, and that they hold no content."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
import trio
from rig import HOST, read_all, read_exactly, read_head

from dbproxy.api import hookimpl
from dbproxy.hooks.metrics import Sample
from dbproxy.paths import make_private


async def ask(r, method, path, *fields, body=b"", host=None, stream=None):
    """(status, head, body) of one request on a connection of its own."""
    host = f"127.0.0.1:{r.running.port}" if host is None else host
    stream = stream or await r.plain()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    await stream.send_all("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
    head, _, got = (await read_all(stream)).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head.lower(), got


def token(r):
    return f"Authorization: Bearer {r.proxy.token}"


def assert_error(answer, status, kind):
    got, head, body = answer
    assert got == status
    assert b"\r\nx-dbproxy-error: 1" in head
    assert b"\r\ncontent-type: application/json" in head
    assert b"\r\ncache-control: no-store" in head
    error = json.loads(body)
    assert error["type"] == "error"
    assert error["error"]["type"] == kind
    assert error["error"]["message"].startswith("dbproxy: ")
    return error["error"]["message"]


# -- health -----------------------------------------------------------------------------------------------------------


async def test_health_is_the_seeds_and_more(rig):
    async with rig() as r:
        status, head, body = await ask(r, "GET", "/health")
        facts = json.loads(body)
        assert status == 200
        assert b"cache-control: no-store" in head
        assert facts["status"] == "ok"
        assert facts["conversations"] == 0
        assert facts["passthrough"] is False
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", facts["version"])
        assert facts["uptime_s"] >= 0
        assert isinstance(facts["plugins"], dict)
        assert len(facts["instance"]) > 8


async def test_head_has_no_body_and_a_query_changes_nothing(rig):
    async with rig() as r:
        status, head, body = await ask(r, "HEAD", "/health")
        assert (status, body) == (200, b"")
        assert int(re.search(rb"content-length: (\d+)", head)[1]) > 10
        assert (await ask(r, "GET", "/health?x=1"))[0] == 200
        assert not r.origin.requests


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
async def test_health_says_what_is_wrong_with_the_log(rig, tmp_path):
    make_private(tmp_path / "data")
    make_private(tmp_path / "data" / "logs")
    (tmp_path / "data" / "logs" / "dbproxy.jsonl").symlink_to("/dev/full")
    async with rig() as r:
        facts = {}
        with trio.fail_after(10):
            while facts.get("status") != "degraded":
                await trio.sleep(0.05)
                facts = json.loads((await ask(r, "GET", "/health"))[2])
        assert facts["problems"]["journal"]


class Odd:
    @hookimpl
    def health(self):
        return {"mine": "well"}

    @hookimpl
    def metrics(self):
        return [Sample("dbproxy_odd_total", 3, {"what": 'a "quoted"\nline'})]


class Broken:
    @hookimpl
    def health(self):
        raise ValueError("message text of the user")

    @hookimpl
    def metrics(self):
        return [Sample("dbproxy_half_total", 1), "no sample"]


class Unprintable:
    @hookimpl
    def health(self):
        return {"x": object(), "y": float("nan")}

    @hookimpl
    def metrics(self):
        raise SystemExit


async def test_plugins_add_facts_and_a_broken_one_adds_nothing_but_its_failure(rig):
    plugins = (("odd", Odd()), ("broken", Broken()), ("unprintable", Unprintable()))
    async with rig(plugins=plugins) as r:
        for _ in range(2):
            status, _, body = await ask(r, "GET", "/health")
            assert status == 200
        facts = json.loads(body)["plugins"]
        assert facts["odd"]["health"] == {"mine": "well"}
        assert "health" not in facts["broken"]
        assert "health" not in facts["unprintable"]
        assert facts["broken"]["failures"] >= 1
        assert b"message text" not in body
        status, _, body = await ask(r, "GET", "/metrics")
        assert status == 200
        assert b'dbproxy_odd_total{what="a \\"quoted\\"\\nline"} 3' in body
        assert b"dbproxy_half_total" not in body
        assert r.proxy.counters.crashes_total == 0


# -- metrics ----------------------------------------------------------------------------------------------------------


async def test_metrics_are_prometheus_text(rig):
    async with rig() as r:
        status, head, body = await ask(r, "GET", "/metrics")
        assert status == 200
        assert b"content-type: text/plain; version=0.0.4" in head
        names = set()
        for line in body.decode().splitlines():
            if line.startswith("# TYPE "):
                names.add(line.split()[2])
            elif not line.startswith("#"):
                name, value = re.fullmatch(r"([a-z_0-9]+)(?:\{[^}]*\})? (\S+)", line).groups()
                assert name in names
                float(value)
        assert {"dbproxy_connections_total", "dbproxy_crashes_total", "dbproxy_uptime_seconds"} <= names


# -- status and reset -------------------------------------------------------------------------------------------------


async def test_status_needs_the_token_and_lists_what_runs(rig):
    from dbproxy.testing.origin import say

    async with rig(say("late", head_delay=30)) as r:
        assert_error(await ask(r, "GET", "/api/status"), 401, "authentication_error")
        stream = await r.tls()
        await stream.send_all(
            f"POST /v1/messages?secret=1 HTTP/1.1\r\nHost: {HOST}\r\nx-claude-code-session-id: session-0001\r\n"
            "Content-Length: 2\r\n\r\n{}".encode()
        )
        await r.origin.wait_requests(1)
        status, _, body = await ask(r, "GET", "/api/status", token(r))
        facts = json.loads(body)
        assert status == 200
        assert [(e["host"], e["path"]) for e in facts["exchanges"]] == [(HOST, "/v1/messages")]
        assert [s["id"] for s in facts["sessions"]] == ["session-0001"]
        assert facts["intercept"] == [HOST]
        assert facts["listen"] == [f"127.0.0.1:{r.running.port}"]
        assert r.proxy.token.encode() not in body


async def test_status_after_a_client_rejected_our_certificate(rig):
    async with rig() as r:
        r.proxy.rejections.failed(None, HOST, "kind", trio.current_time())
        status, _, body = await ask(r, "GET", "/api/status", token(r))
        assert status == 200
        assert json.loads(body)["rejections"][0]["host"] == HOST


async def test_reset(rig):
    async with rig() as r:
        for name in ("session-0001", "session-0002"):
            await ask(r, "GET", "/v1/models", f"x-claude-code-session-id: {name}")
        assert json.loads((await ask(r, "GET", "/health"))[2])["conversations"] == 2
        assert_error(await ask(r, "POST", "/v1/_reset", body=b"{}"), 401, "authentication_error")
        message = assert_error(
            await ask(r, "POST", "/v1/_reset", token(r), body=b'{"conv_id":"nobody"}'), 404, "not_found_error"
        )
        assert "nobody" in message
        got = await ask(r, "POST", "/v1/_reset", token(r), body=b'{"conv_id":"session-0002"}')
        assert (got[0], json.loads(got[2])) == (200, {"status": "reset", "conv_id": "session-0002"})
        got = await ask(r, "POST", "/v1/_reset", token(r), body=b"{}")
        assert (got[0], json.loads(got[2])) == (200, {"status": "reset_all", "count": 1})
        got = await ask(r, "POST", "/v1/_reset", token(r))
        assert (got[0], json.loads(got[2])) == (200, {"status": "reset_all", "count": 0})


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"[]",
        b'"x"',
        b'{"conv_id":""}',
        b'{"conv_id":5}',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"a":' * 9000,
        b"1",
    ],
    ids=lambda body: repr(body[:12]),
)
async def test_a_reset_that_is_not_understood_resets_nothing(rig, body):
    async with rig() as r:
        await ask(r, "GET", "/v1/models", "x-claude-code-session-id: session-0001")
        assert_error(await ask(r, "POST", "/v1/_reset", token(r), body=body), 400, "invalid_request_error")
        assert len(r.proxy.sessions) == 1
        assert r.proxy.counters.crashes_total == 0


async def test_bodies_of_ours_are_bounded_in_size_and_time(rig):
    async with rig(head_timeout="0.3") as r:
        answer = await ask(r, "POST", "/v1/_reset", token(r), body=b" " * 70_000)
        assert_error(answer, 413, "request_too_large")
        stream = await r.plain()
        answer = await ask(r, "POST", "/v1/_reset", token(r), "Content-Length: 10", stream=stream)
        assert_error(answer, 408, "timeout_error")
        chunks = b"5\r\n12345\r\n" * 20_000
        stream = await r.plain()
        await stream.send_all(
            f"POST /v1/_reset HTTP/1.1\r\nHost: localhost\r\n{token(r)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + chunks
        )
        assert (await read_head(stream))[0].startswith(b"HTTP/1.1 413 ")


# -- who may ask ------------------------------------------------------------------------------------------------------

OWN = [("GET", "/health"), ("GET", "/metrics"), ("GET", "/api/status"), ("POST", "/v1/_reset"), ("GET", "/dashboard")]


@pytest.mark.parametrize(("method", "path"), OWN)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1@evil"])
async def test_a_foreign_host_name_gets_nothing(rig, method, path, host):
    async with rig() as r:
        assert_error(await ask(r, method, path, token(r), host=host), 421, "invalid_request_error")
        assert not r.origin.requests


@pytest.mark.parametrize(("method", "path"), [*OWN, ("POST", "/v1/messages"), ("GET", "/v1/models"), ("OPTIONS", "/x")])
@pytest.mark.parametrize(
    "field", ["Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Origin: http://evil:8080"]
)
async def test_pages_of_other_sites_get_nothing_on_any_path(rig, method, path, field):
    async with rig() as r:
        answer = await ask(r, method, path, token(r), field)
        assert_error(answer, 403, "permission_error")
        assert b"access-control" not in answer[1]
        assert not r.origin.requests


async def test_pages_of_other_sites_get_nothing_in_absolute_form(rig):
    async with rig() as r:
        answer = await ask(r, "GET", f"https://{HOST}/v1/models", "Origin: https://evil.example", host=HOST)
        assert_error(answer, 403, "permission_error")
        assert not r.origin.requests


async def test_a_page_of_another_program_on_this_machine_gets_no_endpoint(rig):
    async with rig() as r:
        answer = await ask(r, "POST", "/v1/_reset", token(r), "Origin: http://127.0.0.1:3000")
        assert_error(answer, 403, "permission_error")
        own = f"Origin: http://127.0.0.1:{r.running.port}"
        assert (await ask(r, "POST", "/v1/_reset", token(r), own))[0] == 200


async def test_inside_a_tunnel_every_path_and_origin_belongs_to_the_upstream(rig):
    async with rig() as r:
        stream = await r.tls()
        for path in ("/health", "/metrics", "/v1/_reset", "/api/status"):
            await stream.send_all(
                f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nOrigin: https://evil.example\r\n"
                "Sec-Fetch-Site: cross-site\r\n\r\n".encode()
            )
            head, rest = await read_head(stream)
            assert b"x-dbproxy-error" not in head
            await read_exactly(stream, int(re.search(rb"content-length: (\d+)", head.lower())[1]), rest)
        assert [request.target for request in r.origin.requests] == [
            "/health",
            "/metrics",
            "/v1/_reset",
            "/api/status",
        ]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/health", b"allow: get, head"),
        ("DELETE", "/metrics", b"allow: get, head"),
        ("GET", "/v1/_reset", b"allow: post"),
        ("PUT", "/api/status", b"allow: get, head"),
    ],
)
async def test_wrong_methods(rig, method, path, allow):
    async with rig() as r:
        answer = await ask(r, method, path)
        assert_error(answer, 405, "invalid_request_error")
        assert allow in answer[1]


async def test_the_page_that_does_not_exist_yet_is_a_clear_404(rig):
    async with rig() as r:
        assert_error(await ask(r, "GET", "/dashboard/x"), 404, "not_found_error")


@pytest.mark.parametrize("value", ["Bearer", "Bearer wrong", "Basic {}", "Bearer {} x", "{}"])
async def test_a_wrong_token_is_a_401(rig, value):
    async with rig() as r:
        answer = await ask(r, "POST", "/v1/_reset", f"Authorization: {value.format(r.proxy.token)}")
        message = assert_error(answer, 401, "authentication_error")
        assert b"www-authenticate: bearer" in answer[1]
        assert "run/control-token" in message
        assert r.proxy.token not in message


async def test_the_random_token_is_private_long_and_stays(rig):
    async with rig() as r:
        first, file = r.proxy.token, r.proxy.paths.control_token
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_text().strip() == first
        assert len(first) >= 32
    async with rig() as r:
        assert r.proxy.token == first


async def test_a_token_that_was_set_is_used(rig):
    async with rig(control_token="opensesame-0123456789") as r:
        assert (await ask(r, "GET", "/api/status", "Authorization: Bearer opensesame-0123456789"))[0] == 200


@pytest.mark.parametrize("garbage", [b"", b"\n\n", b"\xff\xfe\x00garbage"])
async def test_a_broken_token_file_is_replaced(rig, garbage):
    async with rig() as r:
        file = r.proxy.paths.control_token
    file.write_bytes(garbage)
    async with rig() as r:
        assert len(r.proxy.token) >= 32
        assert file.read_text().strip() == r.proxy.token


async def test_an_endpoint_that_crashes_says_so_and_the_connection_lives(rig, monkeypatch):
    async with rig() as r:
        monkeypatch.setattr(type(r.proxy.sessions), "__len__", lambda self: 1 // 0)
        port = r.running.port
        stream = await r.plain()
        await stream.send_all(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        head, rest = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 500 ")
        await read_exactly(stream, int(re.search(rb"content-length: (\d+)", head)[1]), rest)
        monkeypatch.undo()
        assert (await ask(r, "GET", "/health", stream=stream))[0] == 200
        assert r.proxy.counters.crashes_total == 1


async def test_many_requests_on_one_connection(rig):
    async with rig() as r:
        stream = await r.plain()
        one = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{r.running.port}\r\n\r\n".encode()
        await stream.send_all(one * 20)
        got = b""
        while got.count(b'"status": "ok"') < 20:
            got += await stream.receive_some()
        assert r.proxy.counters.connections_total == 1
