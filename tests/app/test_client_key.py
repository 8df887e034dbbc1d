"""The client key: what lets a client without a launch use keys of ours, and is seen by nobody else."""

from __future__ import annotations

import base64
import json

import pytest
import trio
from blackbox import BODY, Watcher, read_response, request, untouched
from h2client import H2Client
from rig import HOST

from dbproxy.api import hookimpl
from dbproxy.app.guard import take_client_key
from dbproxy.config import Settings
from dbproxy.exchange import Fields, RequestHead
from dbproxy.model.redact import redact_headers
from dbproxy.scope import Scope, new_id, new_secret
from dbproxy.store.reader import Reader

KEY = "open-sesame-0123456789"  # looks like no known kind of key
FIELD = f"X-DBProxy-Key: {KEY}\r\n"


class Talkative(Watcher):
    """A plugin that says what it sees wherever it can."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[str] = []

    @hookimpl
    def wants_body(self, exchange):
        return True

    @hookimpl
    def transform_request(self, exchange, request):
        self.heads += [repr(exchange.request.fields.lines), repr(request.head.fields.lines)]
        raise ValueError(f"{exchange.request.fields.lines} {request.head.fields.lines}")


def clean(folder, *more):
    """Nothing below ``folder`` and nothing of ``more`` holds the key."""
    found = [file for file in folder.rglob("*") if file.is_file()]
    assert found
    for what in [*(file.read_bytes() for file in found), *more]:
        assert KEY.encode() not in what


@pytest.mark.parametrize("passthrough", ["false", "true"])
@pytest.mark.parametrize("way", ["base url", "tunnel", "absolute"])
async def test_the_key_opens_and_goes_no_further(rig, tmp_path, way, passthrough):
    plugin = Talkative()
    sent = request("/v1/messages", extra=FIELD)
    async with rig(plugins=(("talkative", plugin),), client_key=KEY, passthrough=passthrough) as r:
        if way == "tunnel":
            stream = await r.tls()
        else:
            stream = await r.plain()
        if way == "absolute":
            sent = request(f"http://{HOST}/v1/messages", extra=FIELD)
        await stream.send_all(sent)
        assert (await read_response(stream)).status == 200
        await plugin.outcomes()
        raw = bytes(r.origin.connections[0].raw)
        authority = r.proxy.upstream.authority.decode()
        expected = request("/v1/messages")
        assert raw == untouched(expected, authority=authority)
    (exchange,) = plugin.finished
    assert exchange.authorised
    assert exchange.request.fields.get(b"x-dbproxy-key") is None
    assert KEY not in repr(plugin.heads)
    clean(tmp_path / "data", repr(exchange.request.fields.lines).encode())
    with Reader.open(tmp_path / "data" / "dbproxy.sqlite") as reader:
        (row,) = reader.exchanges(limit=9)
        assert "x-dbproxy-key" not in dict(reader.exchange(row.id).request_headers)


@pytest.mark.parametrize("setting", [None, KEY])
@pytest.mark.parametrize("value", ["", "open-sesame-012345678", KEY + "0", KEY.upper(), "\xff\xfe" * 9, "x" * 9000])
async def test_another_value_opens_nothing_and_goes_no_further_either(rig, setting, value):
    watcher = Watcher()
    given = {} if setting is None else {"client_key": setting}
    async with rig(plugins=(("watcher", watcher),), **given) as r:
        stream = await r.plain()
        await stream.send_all(request(extra=f"x-dbproxy-key: {value}\r\n"))
        assert (await read_response(stream)).status == 200
        await watcher.outcomes()
        assert b"dbproxy" not in bytes(r.origin.connections[0].raw).lower()
    assert watcher.finished[0].authorised is False


async def test_without_a_key_nothing_is_open_and_nothing_changed(rig):
    watcher = Watcher()
    async with rig(plugins=(("watcher", watcher),), client_key=KEY) as r:
        stream = await r.tls()
        await stream.send_all(request())
        assert (await read_response(stream)).status == 200
        await watcher.outcomes()
    assert watcher.finished[0].authorised is False


async def test_the_key_is_said_with_each_request(rig):
    watcher = Watcher()
    async with rig(plugins=(("watcher", watcher),), client_key=KEY) as r:
        stream = await r.plain()
        for extra in (FIELD, ""):
            await stream.send_all(request(extra=extra))
            assert (await read_response(stream)).status == 200
        await watcher.outcomes(2)
    assert [exchange.authorised for exchange in watcher.finished] == [True, False]


async def test_over_http2(rig):
    watcher = Watcher()
    async with rig(plugins=(("watcher", watcher),), client_key=KEY) as r:
        client = await H2Client.open(r)
        number = await client.ask(
            "POST",
            "/v1/messages",
            BODY,
            [("x-api-key", "k"), ("anthropic-version", "2023-06-01"), ("x-dbproxy-key", KEY)],
        )
        await client.until(lambda: client.answers[number].ended)
        assert client.answers[number].status == 200
        await watcher.outcomes()
        assert b"dbproxy" not in bytes(r.origin.connections[0].raw).lower()
    assert watcher.finished[0].authorised


def proof(scope, secret=None):
    text = f"{scope.id}:{secret or scope.secret}"
    return f"Proxy-Authorization: Basic {base64.b64encode(text.encode()).decode()}\r\n"


@pytest.mark.parametrize("way", ["tunnel", "absolute"])
@pytest.mark.parametrize("right", [True, False])
async def test_a_launch_that_proved_its_secret_needs_no_key(rig, way, right):
    watcher = Watcher()
    async with rig(plugins=(("watcher", watcher),), client_key=KEY) as r:
        scope = Scope(new_id(), new_secret())
        scope.save(r.proxy.paths.scopes)
        field = proof(scope, None if right else scope.secret[:-1])
        if way == "tunnel":
            stream = await r.tls(extra=field)
            await stream.send_all(request())
        else:
            stream = await r.plain()
            await stream.send_all(request(f"http://{HOST}/v1/messages", extra=field))
        assert (await read_response(stream)).status == 200
        await watcher.outcomes()
    (exchange,) = watcher.finished
    assert (exchange.authorised, exchange.scope) == ((True, scope.id) if right else (False, None))


@pytest.mark.parametrize("target", ["/v1/messages", "/health"])
async def test_what_a_client_sends_to_our_own_port_does_not_prove_a_launch(rig, target):
    """Proxy credentials are for proxied requests: on a request to ourselves they say nothing."""
    watcher = Watcher()
    async with rig(plugins=(("watcher", watcher),)) as r:
        scope = Scope(new_id(), new_secret())
        scope.save(r.proxy.paths.scopes)
        stream = await r.plain()
        await stream.send_all(request(target, extra=proof(scope)))
        await read_response(stream)
        await trio.sleep(0.05)
    assert [exchange.authorised for exchange in watcher.finished] == ([False] if target != "/health" else [])


async def test_no_error_and_no_journal_repeats_it(rig, tmp_path):
    plugin = Talkative()
    answers = []
    async with rig(plugins=(("talkative", plugin),), client_key=KEY, log_level="DEBUG") as r:
        for broken in (
            request(extra=FIELD.replace(": ", " : ")),
            request(extra=f"x-dbproxy-key: \x00{KEY}\r\n"),
            request(extra=f"{FIELD}Transfer-Encoding: gzip\r\n"),
            request("/v1/messages", extra=FIELD, host="a\r\nHost: b"),
            request("/v1/_reset", extra=FIELD),
            request("/health", extra=FIELD, method="GET", body=None),
        ):
            stream = await r.plain()
            await stream.send_all(broken)
            with trio.fail_after(5):
                answers.append(await read_response(stream))
        stream = await r.plain()
        await stream.send_all(f"CONNECT {HOST}:99999 HTTP/1.1\r\nHost: {HOST}\r\n{FIELD}\r\n".encode())
        answers.append(await read_response(stream))
    clean(tmp_path / "data", *(answer.head + answer.body for answer in answers))


def test_every_one_of_several_is_taken_away():
    fields = Fields.of([(b"X-Dbproxy-Key", b"wrong"), (b"a", b"b"), (b"x-dbproxy-KEY", KEY.encode())])
    head = RequestHead(b"GET", b"/", b"HTTP/1.1", fields)
    left, right = take_client_key(head, Settings(data_dir=None, client_key=KEY))  # type: ignore[arg-type]
    assert (left.fields.lines, right) == ([b"a: b"], True)
    assert head.fields is fields
    untouched_head = RequestHead(b"GET", b"/", b"HTTP/1.1", left.fields)
    assert take_client_key(untouched_head, Settings(data_dir=None))[0] is untouched_head  # type: ignore[arg-type]


def test_where_it_would_be_written_it_is_a_fingerprint():
    ((name, value),) = redact_headers([("x-dbproxy-key", KEY)], b"k" * 32)
    assert name == "x-dbproxy-key"
    assert value.startswith("hmac:")
    assert json.dumps(value).find(KEY) < 0
