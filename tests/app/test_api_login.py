"""How a browser gets in: a link that works once, the cookie for it, and what that cookie is good for."""

from __future__ import annotations

import json
import re

import pytest
import trio
from rig import read_all


async def ask(r, method, path, *fields, body=b""):
    """(status, head, body) of one request on a connection of its own."""
    stream = await r.plain()
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{r.running.port}", *fields, "Connection: close"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    await stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)
    head, _, got = (await read_all(stream)).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head.decode("latin-1"), got


def bearer(r):
    return f"Authorization: Bearer {r.proxy.token}"


async def link(r):
    status, _, body = await ask(r, "POST", "/api/login-code", bearer(r))
    assert status == 200
    facts = json.loads(body)
    assert facts["path"] == f"/dashboard/login?code={facts['code']}"
    assert facts["expires_s"] == 60
    return facts["path"]


async def cookie(r):
    status, head, _ = await ask(r, "GET", await link(r))
    assert status == 303
    return "Cookie: " + re.search(r"(?mi)^set-cookie: ([^;]+);", head)[1]


async def test_a_link_lets_one_browser_in_once(rig):
    async with rig() as r:
        path = await link(r)
        status, head, body = await ask(r, "GET", path)
        assert (status, body) == (303, b"")
        low = head.lower()
        assert "\r\nlocation: /dashboard\r\n" in low
        assert "httponly; samesite=strict" in low
        assert "cache-control: no-store" in low
        assert "referrer-policy: no-referrer" in low
        assert r.proxy.token not in head
        status, head, body = await ask(r, "GET", path)
        assert (status, "set-cookie" in head.lower()) == (403, False)
        assert "dbproxy dashboard" in json.loads(body)["error"]["message"]


async def test_the_cookie_reads_but_makes_no_links(rig):
    async with rig() as r:
        sent = await cookie(r)
        assert (await ask(r, "GET", "/api/status", sent))[0] == 200
        own = f"Origin: http://127.0.0.1:{r.running.port}"
        assert (await ask(r, "POST", "/v1/_reset", sent, own, "Sec-Fetch-Site: same-origin"))[0] == 200
        assert (await ask(r, "POST", "/api/login-code", sent, own))[0] == 401
        assert (await ask(r, "GET", "/api/status", sent, "Sec-Fetch-Site: same-site"))[0] == 401
        assert (await ask(r, "GET", "/api/status", sent, "Origin: http://127.0.0.1:3000"))[0] == 403
        assert (await ask(r, "GET", "/api/status", sent.replace("dbproxy-", "dbproxy_")))[0] == 401


async def test_a_cookie_survives_a_new_worker(rig):
    async with rig() as r:
        sent = await cookie(r)
    async with rig() as r:
        assert (await ask(r, "GET", "/api/status", sent))[0] == 200
    (r.data_dir / "run" / "control-token").write_text("another-token-0123456789\n")
    async with rig() as r:
        assert (await ask(r, "GET", "/api/status", sent))[0] == 401


async def test_a_link_lives_for_a_minute(rig, monkeypatch):
    monkeypatch.setattr("dbproxy.app.own.CODE_LIFE", 0.2)
    async with rig() as r:
        _, _, body = await ask(r, "POST", "/api/login-code", bearer(r))
        await trio.sleep(0.3)
        assert (await ask(r, "GET", json.loads(body)["path"]))[0] == 403


async def test_only_the_latest_links_work(rig):
    async with rig() as r:
        links = [await link(r) for _ in range(17)]
        assert (await ask(r, "GET", links[0]))[0] == 403
        assert (await ask(r, "GET", links[1]))[0] == 303
        assert (await ask(r, "GET", links[16]))[0] == 303


@pytest.mark.parametrize("query", ["", "?code=", "?code=x", "?code=x&code=x", "?other=1", "?code=%ff", "?=&&&"])
async def test_a_link_that_we_did_not_make_lets_nobody_in(rig, query):
    async with rig() as r:
        await link(r)
        status, head, body = await ask(r, "GET", f"/dashboard/login{query}")
        assert status in (400, 403)
        assert "set-cookie" not in head.lower()
        assert json.loads(body)["error"]["message"].startswith("dbproxy: ")


async def test_asking_for_a_link_needs_the_token_and_using_it_no_prefetch_by_head(rig):
    async with rig() as r:
        assert (await ask(r, "POST", "/api/login-code"))[0] == 401
        path = await link(r)
        assert (await ask(r, "HEAD", path))[0] == 405
        assert (await ask(r, "GET", path))[0] == 303
