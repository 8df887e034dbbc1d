"""No credential and no message text leaves where it belongs: not into logs, status pages, state files, error bodies.

All kinds of traffic go through a proxy, good and broken, each with marked secrets; then everything on disk and every
answer of ours is searched for the marks. What the upstream says to the client is the client's and may hold anything.
"""

from __future__ import annotations

import base64
import json
import stat
from dataclasses import asdict

import pytest
import trio
from rig import HOST, open_rig, read_head

from dbproxy.api import hookimpl
from dbproxy.scope import Scope, new_id
from dbproxy.store.reader import Reader
from dbproxy.testing.origin import fail, say

KEY = "-".join(["sk", "ant", "api03", "MARKkey0123456789abcdef"])  # in parts: searches for real keys find none here
OAUTH = "-".join(["sk", "ant", "oat01", "MARKoauth0123456789abcdef"])
OPAQUE = "MARKopaque0123456789"  # looks like no known kind of key
TEXT = "MARKtext of the user"
ANSWER = "MARKanswer of the model"
SCOPE_SECRET = "MARKscopesecret0123456789abcdef"
TOKEN = "MARKcontroltoken0123456789abcdef"
PARENT = "MARKparentpassword"
COOKIE = "MARKcookie"
MARK = b"MARK"


def assert_clean(data, where):
    at = data.find(MARK)
    assert at < 0, f"{where}: ...{data[max(0, at - 60) : at + 60]!r}"
    for secret in (SCOPE_SECRET, PARENT):
        assert base64.b64encode(secret.encode())[3:-4] not in data, where


def assert_headers_clean(database):
    """No credential in the facts about exchanges, nor anywhere else in plain sight."""
    secrets = (KEY, OAUTH, SCOPE_SECRET, TOKEN, PARENT, COOKIE, "MARKquery")
    data = database.read_bytes()
    assert [secret for secret in secrets if secret.encode() in data] == []
    with Reader.open(database) as reader:
        rows = reader.exchanges(limit=100)
        assert rows
        for row in rows:
            detail = asdict(reader.exchange(row.id))
            assert detail["request_headers"], row.id
            assert dict(detail["request_headers"]).get("x-custom-auth", "hmac:").startswith("hmac:")
            assert [secret for secret in secrets if secret in repr(detail)] == []


def body(**more):
    return json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": TEXT}], **more}).encode()


def request(target="/v1/messages?beta=true&api_key=MARKquery", *extra, content=None, method="POST", host=HOST):
    content = body() if content is None else content
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {host}",
        f"x-api-key: {KEY}",
        f"Authorization: Bearer {OAUTH}",
        f"Cookie: session={COOKIE}",
        f"X-Custom-Auth: {OPAQUE}",
        "anthropic-version: 2023-06-01",
        "x-claude-code-session-id: session-0001",
        *extra,
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Talkative:
    """A plugin whose errors quote everything that it can see."""

    @hookimpl
    def wants_body(self, exchange):
        return True

    @hookimpl
    def transform_request(self, exchange, request):
        raise ValueError(f"{request.head.fields.values} {request.body!r}")

    @hookimpl
    def exchange_finished(self, exchange):
        raise RuntimeError(f"{exchange.request.fields.lines} {exchange.body!r}")

    @hookimpl
    def health(self):
        raise RuntimeError(KEY)


async def exchange(stream, data, *, until_end=False):
    """What comes back for ``data``."""
    got = b""
    with trio.move_on_after(0.3 if until_end else 5):
        try:
            await stream.send_all(data)
            got, rest = await read_head(stream)
            length = [line for line in got.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if length and not until_end:
                while len(rest) < int(length[0].split(b":")[1]):
                    rest += await stream.receive_some()
                return got + rest
            got += rest
            while data := await stream.receive_some():
                got += data
        except (trio.BrokenResourceError, AssertionError):
            pass
    return got


BROKEN = [
    request().replace(b"x-api-key: ", b"x-api-key : "),
    request().replace(b"x-api-key: sk", b"x-api-key: \x00sk"),
    request().replace(b"Cookie", b"Cookie\x01"),
    request("/v1/messages\x00MARKpath"),
    request("/v1/messages?k=MARK \x7f"),
    request("http://user:MARKuserinfo@example.com/"),
    request("http://[MARK/"),
    request("/v1/messages", "Transfer-Encoding: chunked"),
    request("/v1/messages", "Transfer-Encoding: MARKcoding"),
    request("/v1/messages", "Content-Length: MARK"),
    request("/v1/messages", "Host: MARKhost"),
    request("/v1/messages", "Expect: MARK"),
    request() + b"MARK garbage \x00 after the body\r\n\r\n",
    b"MARK\r\n\r\n",
    b"\x00MARK\x01\r\n\r\n",
    request("/v1/_reset", f"Origin: https://{OPAQUE}.example"),
    request("/v1/_reset", host="127.0.0.1"),
    request("/v1/_reset", host=f"{OPAQUE}.example"),
    request("/dashboard/x", host="127.0.0.1"),
    request("/health/x", host="127.0.0.1", method="DELETE"),
]


async def traffic(r, credentials):
    """One of everything; the answers that are ours."""
    ours = []
    stream = await r.tls(userinfo=credentials)
    await exchange(stream, request())
    await exchange(stream, request("/v1/messages", content=body(stream=True)), until_end=True)
    stream = await r.tls(userinfo=credentials)
    await exchange(stream, request("/v1/messages/count_tokens"))
    await exchange(stream, request("/unknown/path"))
    await exchange(await r.plain(), request(host=f"127.0.0.1:{r.running.port}"))
    proxy_auth = "Proxy-Authorization: Basic " + base64.b64encode(credentials.encode()).decode()
    await exchange(await r.plain(), request(f"https://{HOST}/v1/messages?MARKq", proxy_auth))
    for data in BROKEN:
        ours.append(await exchange(await r.plain(), data, until_end=True))
        ours.append(await exchange(await r.tls(userinfo=credentials), data, until_end=True))
    for authority in ("127.0.0.1:1", "MARK@host:443", "user:MARK@host:443", "nobody.invalid:443"):
        connect = f"CONNECT {authority} HTTP/1.1\r\nHost: x\r\nX-Key: {KEY}\r\n{proxy_auth}\r\n\r\n".encode()
        ours.append(await exchange(await r.plain(), connect, until_end=True))
    aborted = await r.tls(userinfo=credentials)
    await aborted.send_all(request()[:-9])
    await aborted.aclose()
    rejecting = await r.connect(userinfo=credentials)
    await rejecting.send_all(b"\x16\x03\x01\x00\x10MARK in a hello..")
    await rejecting.aclose()
    return ours


def assert_own(got):
    """An answer that we made holds no secret; one of the upstream is not ours to judge."""
    head, _, content = got.partition(b"\r\n\r\n")
    if b"x-dbproxy-error" in head:
        shown = json.loads(content.partition(b"\n")[0])["error"]["message"].encode()
        for secret in (KEY, OAUTH, TEXT, SCOPE_SECRET, TOKEN, COOKIE, "MARKuserinfo", "MARKquery", "MARKcoding"):
            assert secret.encode() not in shown, got
    return b"x-dbproxy-error" in head


async def pages(r):
    """What our own endpoints say, the token's holder included."""
    for path in ("/health", "/metrics", "/api/status"):
        stream = await r.plain()
        lines = [
            f"GET {path} HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {TOKEN}",
            "Connection: close",
            "",
            "",
        ]
        await stream.send_all("\r\n".join(lines).encode())
        got = b"".join([data async for data in stream])
        assert got.startswith(b"HTTP/1.1 200 "), path
        yield path, got


@pytest.mark.parametrize(
    ("script", "plugin"),
    [("answers", False), ("answers", True), ("errors", False), ("cuts", True), ("nobody", False), ("parent", True)],
)
async def test_marked_secrets_are_found_nowhere(tmp_path, capfd, script, plugin):
    settings = {"log_level": "DEBUG", "control_token": TOKEN}
    answer = say(ANSWER)
    if script == "errors":
        answer = fail(400, f"the key {KEY} or {TEXT} is wrong")
    elif script == "cuts":
        answer = say(ANSWER * 50, cut_after=2, cut_how="rst")
    elif script == "nobody":
        settings["upstream_url"] = "https://127.0.0.1:1"
    elif script == "parent":
        settings["parent_proxy"] = f"http://user:{PARENT}@127.0.0.1:1"
    async with open_rig(tmp_path, answer, plugins=(("talkative", Talkative()),) if plugin else (), **settings) as r:
        scope = Scope(new_id(), SCOPE_SECRET, parent_proxy=f"http://user:{PARENT}@127.0.0.1:9" if plugin else None)
        scope.save(r.proxy.paths.scopes)
        ours = await traffic(r, scope.userinfo)
        assert sum(assert_own(got) for got in ours) > 20
        async for path, got in pages(r):
            assert_clean(got, path)
        await trio.sleep(1.2)  # a round of chores writes its files
        await trio.to_thread.run_sync(r.proxy.journal.flush, 5)
    log = r.proxy.paths.log_file.read_bytes()
    assert b"exchange_finished" in log
    allowed = {r.proxy.paths.control_token, r.proxy.paths.scopes / f"{scope.id}.json"}
    seen = 0
    for file in sorted(r.data_dir.rglob("*")):
        if file.is_file():
            seen += 1
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
            if file.name == "dbproxy.sqlite":
                assert_headers_clean(file)  # what was said is what it keeps; whose key it was said with is not
            elif file not in allowed and not file.name.startswith("dbproxy.sqlite-"):
                assert_clean(file.read_bytes(), file)
    assert seen >= 5
    shown = capfd.readouterr()
    assert_clean((shown.out + shown.err).encode(), "stdout and stderr")
