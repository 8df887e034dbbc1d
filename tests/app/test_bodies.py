"""N2: large bodies both ways; constant memory where they are streamed, at most 2.5 times where a policy holds one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import trio
from blackbox import (
    Watcher,
    authority,
    chunked,
    raw_upstream,
    read_response,
    request,
    tls_client,
    untouched,
)
from rig import HOST, read_head

from dbproxy.api import Outcome, RequestDraft, hookimpl
from dbproxy.testing.origin import Answer

MB = 1 << 20
PATTERN = bytes(range(251)) * 4177  # about 1 MB without a short period


def blob(size):
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


class Holder:
    def __init__(self):
        self.sizes = []

    @hookimpl
    def wants_body(self, exchange):
        return True

    @hookimpl
    def intercept_request(self, exchange):
        self.sizes.append(None if exchange.body is None else len(exchange.body))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("chunks", [0, 65_536])
@pytest.mark.parametrize("megabytes", [2, 20])
async def test_n2_large_requests_are_accepted(rig, megabytes, chunks, held):
    holder = Holder()
    text = "x" * (megabytes * MB)
    body = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}).encode()
    async with rig(plugins=(("holder", holder),) if held else ()) as r:
        stream = await r.tls()
        sent = request(body=body, chunks=chunks)
        await stream.send_all(sent)
        assert (await read_response(stream)).status == 200
        (received,) = r.origin.requests
        authority = r.origin.url.removeprefix("https://")
        assert received.head + received.framed == untouched(sent, authority=authority)
        assert holder.sizes == ([len(body)] if held else [])


@pytest.mark.parametrize("chunks", [0, 8192])
async def test_a_body_larger_than_may_be_held_is_streamed_whole(rig, chunks):
    holder = Holder()
    body = json.dumps(
        {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x" * 300_000}]}
    ).encode()
    async with rig(plugins=(("holder", holder),), max_held_body_bytes="65536") as r:
        stream = await r.tls()
        for _ in range(2):
            sent = request(body=body, chunks=chunks)
            await stream.send_all(sent)
            assert (await read_response(stream)).status == 200
            received = r.origin.requests[-1]
            authority = r.origin.url.removeprefix("https://")
            assert received.head + received.framed == untouched(sent, authority=authority)
        assert holder.sizes == [None, None]


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_n2_large_answers(rig, framing):
    body = blob(20 * MB)
    async with rig(Answer(body=body, framing=framing, chunk_size=50_000)) as r:
        stream = await r.tls()
        await stream.send_all(request())
        answer = await read_response(stream)
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()


async def test_a_body_of_one_byte_chunks_arrives_as_it_was(rig):
    async with rig() as r:
        stream = await r.tls()
        body = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "zażółć"}]}).encode()
        head = request(body=None, extra="Transfer-Encoding: chunked\r\n")
        await stream.send_all(head)
        for at in range(len(body)):
            await stream.send_all(chunked(body[at : at + 1], 1)[:-5])
        await stream.send_all(b"0\r\n\r\n")
        assert (await read_response(stream)).status == 200
        assert r.origin.requests[0].framed == chunked(body, 1)


class Rewriter:
    """Replaces a body."""

    @hookimpl
    def wants_body(self, exchange):
        return True

    @hookimpl
    def transform_request(self, exchange, request):
        value = json.loads(request.body)
        value["model"] = "another"
        return RequestDraft(request.head, json.dumps(value).encode())


@pytest.mark.parametrize("chunks", [0, 10])
async def test_a_replaced_body_gets_its_own_framing(rig, chunks):
    async with rig(plugins=(("rewriter", Rewriter()),)) as r:
        stream = await r.tls()
        for _ in range(2):
            await stream.send_all(request(chunks=chunks))
            assert (await read_response(stream)).json["model"] == "another"
        received = r.origin.requests[0]
        assert received.header("transfer-encoding") is None
        assert received.header("content-length") == str(len(received.body))
        assert len({x.connection.number for x in r.origin.requests}) == 1


# -- answers that come early ------------------------------------------------------------------------------------------


async def test_an_answer_while_the_request_is_still_on_its_way(rig):
    """The server reads no further; the client gets the answer although it has not finished asking."""
    watcher = Watcher()
    answer = Answer(status=400, body=b'{"type": "error"}', early=True, close=True)
    async with rig(answer, plugins=(("watcher", watcher),)) as r:
        stream = await r.tls()
        body = b"x" * (16 * MB)
        got = []

        async def send():
            try:
                await stream.send_all(request(body=body))
            except trio.BrokenResourceError:
                pass  # nobody wants the rest

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(5):
                got.append(await read_response(stream))
            nursery.cancel_scope.cancel()
        assert (got[0].status, got[0].body) == (400, b'{"type": "error"}')
        assert r.origin.requests[0].size < len(body)
        assert await watcher.outcomes() == [Outcome.OK]


async def test_request_and_answer_at_the_same_time(rig, tmp_path):
    """A server that answers piece by piece what it gets piece by piece."""

    async def ping_pong(stream):
        _, rest = await read_head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(5):
            while len(rest) < 10:
                rest += await stream.receive_some()
            await stream.send_all(b"a\r\n" + rest[:10].upper() + b"\r\n")
            rest = rest[10:]
        await stream.send_all(b"0\r\n\r\n")
        await trio.sleep(1)

    async with raw_upstream(ping_pong, tmp_path) as up, rig(**up.settings) as r:
        stream = await r.tls()
        await stream.send_all(request("/v1/live", body=None, extra="Content-Length: 50\r\n"))
        await stream.send_all(b"abcdefghij")
        _, rest = await read_head(stream)
        for number in range(5):
            while len(rest) < 15:
                rest += await stream.receive_some()
            assert rest[:15] == b"a\r\nABCDEFGHIJ\r\n"
            rest = rest[15:]
            if number < 4:
                await stream.send_all(b"abcdefghij")
        while len(rest) < 5:
            rest += await stream.receive_some()
        assert rest == b"0\r\n\r\n"


# -- memory -----------------------------------------------------------------------------------------------------------

PROGRAM = """
import json, resource, sys
import trio
from dbproxy.api import hookimpl
from dbproxy.app.run import bind, open_proxy
from dbproxy.config import HostPort, load

home, settings, held = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "held"

class Holder:
    @hookimpl
    def wants_body(self, exchange):
        return held

def peak():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    except OSError:
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else size * 1024

async def main():
    settings["plugins_disabled"] = ["double-buffer", "subagent-routing"]  # they look at bodies
    config = load({"data_dir": home + "/data", **settings}, {"HOME": home}, None)
    sockets = bind((HostPort("127.0.0.1", 0),))
    async with open_proxy(config, sockets=sockets, plugins=(("holder", Holder()),)) as running:
        print(json.dumps([running.port, running.proxy.authority.bundle_pem.decode()]), flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            print(peak(), flush=True)

trio.run(main)
"""


@asynccontextmanager
async def another_process(tmp_path, settings, held):
    """A proxy in a process of its own; gives its port, the certificates to trust, and a way to ask for its peak."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(settings), "held" if held else "streamed"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        port, pem = json.loads(await trio.to_thread.run_sync(process.stdout.readline))

        async def peak():
            process.stdin.write(b"?\n")
            process.stdin.flush()
            return int(await trio.to_thread.run_sync(process.stdout.readline))

        yield port, pem, peak
    finally:
        process.stdin.close()
        process.kill()
        process.wait(20)
        process.stdout.close()


async def counting(stream):
    """Takes a body and answers with one of the same size: ``x-size`` says how large."""
    rest = b""
    while True:
        while b"\r\n\r\n" not in rest:
            data = await stream.receive_some(65536)
            if not data:
                return
            rest += data
        head, _, rest = rest.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        size = int(fields[b"x-size"])
        digest = hashlib.sha256()
        if fields.get(b"transfer-encoding") == b"chunked":
            while not rest.endswith(b"\r\n0\r\n\r\n"):
                digest.update(rest[:-16])
                rest = rest[-16:] + await stream.receive_some(262144)
            digest.update(rest)
        else:
            left = int(fields[b"content-length"])
            while left:
                data = rest or await stream.receive_some(262144)
                rest = b""
                digest.update(data)
                left -= len(data)
        rest = b""
        await stream.send_all(
            f"HTTP/1.1 200 OK\r\nX-Sum: {digest.hexdigest()}\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        for at in range(0, size, 262144):
            await stream.send_all(PATTERN[: min(262144, size - at)])


async def exchange(port, pem, size, chunks):
    """One request and its answer through TLS, both of ``size`` bytes, without keeping either."""
    import ssl

    raw = await trio.open_tcp_stream("127.0.0.1", port)
    await raw.send_all(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await read_head(raw)
    stream = tls_client(raw, ssl.create_default_context(cadata=pem))
    body = request(body=b"", extra=f"X-Size: {size}\r\n")
    framing = b"Transfer-Encoding: chunked" if chunks else b"Content-Length: %d" % size
    digest = hashlib.sha256()

    async def send():
        await stream.send_all(body.replace(b"Content-Length: 0", framing))
        for at in range(0, size, 65536):
            piece = PATTERN[: min(65536, size - at)]
            if chunks:
                piece = b"%x\r\n%b\r\n" % (len(piece), piece)
            digest.update(piece)
            await stream.send_all(piece)
        if chunks:
            digest.update(b"0\r\n\r\n")
            await stream.send_all(b"0\r\n\r\n")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            head, rest = await read_head(stream)
            count = len(rest)
            while count < size:
                count += len(await stream.receive_some(262144))
    await trio.aclose_forcefully(raw)
    assert digest.hexdigest().encode() in head
    return count


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize(
    ("held", "capture", "times"),
    [
        (False, "off", 0.5),  # streamed: buffers only, the same for any size
        (True, "off", 2.5),
        (False, "on", 5.5),  # both bodies are held until they are written, and taken apart and compressed meanwhile
    ],
)
async def test_n2_memory_for_32_megabytes_both_ways(tmp_path, held, capture, times, chunks):
    """Measured as the peak of a process of its own."""
    size = 32 * MB
    async with raw_upstream(counting, tmp_path) as up:
        assert authority()
        async with another_process(tmp_path, up.settings | {"capture": capture}, held) as (port, pem, peak):
            assert await exchange(port, pem, MB, chunks) == MB
            before = await peak()
            assert await exchange(port, pem, size, chunks) == size
            grown = await peak() - before
    print(f"grew by {grown / MB:.1f} MB, {grown / size:.2f} times the body")
    assert grown < times * size
