"""The load of the soak: clients of every kind against a proxy process, and a watch over what that process holds.

The proxy is the only other process: the fake API and all clients live in the test's own event loop. What is measured
is read from outside (/proc, /metrics), so the proxy runs as it always does.
"""

from __future__ import annotations

import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import h2.errors
import trio
from h2client import H2Client
from rig import HOST, read_all, read_head

from dbproxy.testing.origin import Answer, say

if TYPE_CHECKING:
    import ssl

ROOT = Path(__file__).resolve().parents[2]
BODY = b'{"model":"m","max_tokens":9,"stream":%s,"messages":[{"role":"user","content":"%b"}]}'


@contextmanager
def worker(folder, *settings):
    """A proxy process: (pid, port)."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "support" / "alone.py"), *settings],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert select.select([process.stderr], [], [], 30)[0], "the proxy did not start in 30 s"
        line = process.stderr.readline().decode()
        found = re.search(r"listens on http://127\.0\.0\.1:(\d+)", line)
        assert found, line + process.stderr.read().decode()
        yield process.pid, int(found[1])
        assert process.poll() is None, process.stderr.read().decode()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        process.stderr.close()


def scripted(request):
    """What the API says, by a word in the request: so one script serves every kind of client at once."""
    text = request.last_text
    if "cut" in text:
        return say("word " * 200, cut_after=random.randrange(20), cut_how=random.choice(["fin", "close_notify", "rst"]))
    if "slow" in text:
        return say("word " * 100, head_delay=random.random() * 0.2, gap=0.01)
    if "early" in text:
        return Answer(status=413, body=b"{}", early=True)
    if request.header("upgrade"):
        return Answer(upgrade="echo")
    return say("word " * 300, delta_chars=50, coding=random.choice(["", "gzip", "zstd"]))


@dataclass(frozen=True, slots=True)
class Sample:
    """What the proxy process held at one moment."""

    rss: int  # bytes
    fds: int
    sockets: int
    tasks: int
    connections: int
    exchanges: int


@dataclass
class Load:
    """Clients against one proxy."""

    pid: int
    port: int
    context: ssl.SSLContext
    context_h2: ssl.SSLContext
    blind: int  # the port of something that is tunnelled blindly
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    # ---- clients

    async def tcp(self):
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def tunnel(self, authority=f"{HOST}:443"):
        stream = await self.tcp()
        await stream.send_all(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        head, _ = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 200 "), head
        return stream

    async def tls(self, context=None):
        stream = await self.tunnel()
        secured = trio.SSLStream(  # noqa: TID251 - an independent client is the point
            stream, context or self.context, server_hostname=HOST, https_compatible=True
        )
        await secured.do_handshake()
        return secured

    @staticmethod
    def request(text, *, stream=True, pad=0, chunked=False):
        body = BODY % (b"true" if stream else b"false", text.encode() + b"x" * pad)
        head = f"POST /v1/messages?beta=true HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: k\r\n"
        head += f"anthropic-version: 2023-06-01\r\nx-claude-code-session-id: session-{random.randrange(50):08d}\r\n"
        if chunked:
            half = len(body) // 2
            framed = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
            return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + framed
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def streams(self):
        stream = await self.tls()
        for _ in range(random.randrange(1, 5)):
            await stream.send_all(self.request("hello", pad=random.choice([0, 0, 1000, 200_000])))
            head, got = await read_head(stream)
            assert head.startswith(b"HTTP/1.1 200 "), head
            while not got.endswith(b"0\r\n\r\n"):
                data = await stream.receive_some()
                assert data, "ended in the middle"
                got = got[-8:] + data
        await stream.aclose()

    async def small(self):
        stream = await self.tls()
        for _ in range(5):
            await stream.send_all(self.request("hello", stream=False, chunked=random.random() < 0.5))
            head, got = await read_head(stream)
            size = int(re.search(rb"content-length: *(\d+)", head.lower())[1])
            while len(got) < size:
                got += await stream.receive_some()
        await trio.aclose_forcefully(stream)

    async def aborts(self):
        stream = await self.tls()
        await stream.send_all(self.request("slow")[: random.choice([10, 100, 10_000])])
        with trio.move_on_after(random.random() * 0.3):
            while await stream.receive_some():
                pass
        raw = stream.transport_stream.socket
        if random.random() < 0.5:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()

    @asynccontextmanager
    async def h2_client(self):
        client = H2Client(await self.tls(self.context_h2), window=random.choice([1000, 65_535, 1_000_000]))
        try:
            assert client.stream.selected_alpn_protocol() == "h2"
            await client.begin()
            yield client
        finally:
            await trio.aclose_forcefully(client.stream)

    @staticmethod
    async def h2_ask(client, text, *, stream=True, pad=0, end=True):
        body = BODY % (b"true" if stream else b"false", text.encode() + b"x" * pad)
        fields = [("x-api-key", "k"), ("anthropic-version", "2023-06-01"), ("content-type", "application/json")]
        return await client.ask("POST", "/v1/messages?beta=true", body, fields, end=end)

    async def h2_streams(self):
        """Many streams on one connection; each of them whole, but for those whose answer the API cut."""
        async with self.h2_client() as client:
            words = random.choices(["hello", "hello", "slow", "cut", "early"], k=random.randrange(1, 8))
            asked = {}
            for word in words:
                pad = random.choice([0, 0, 1000, 50_000])
                asked[await self.h2_ask(client, word, pad=pad, stream=word != "early")] = word
            for number, word in asked.items():
                answer = await client.answer(number)
                if word == "cut":
                    assert answer.reset is not None, "a cut answer ended cleanly"
                else:
                    assert answer.ended, (word, answer.reset, client.goaways, client.closed)
                    assert answer.status == (413 if word == "early" else 200)

    async def h2_aborts(self):
        """Streams reset in the middle, some with a body that never ends; then the connection goes."""
        async with self.h2_client() as client:
            numbers = [
                await self.h2_ask(client, "slow", end=random.random() < 0.7) for _ in range(random.choice([1, 5]))
            ]
            with trio.move_on_after(random.random() * 0.3):
                await client.until(lambda: False)
            for number in random.sample(numbers, random.randrange(len(numbers) + 1)):
                if not client.answers[number].ended and client.answers[number].reset is None:
                    client.conn.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
            await client.flush()
            if random.random() < 0.5:
                with trio.move_on_after(random.random() * 0.2):
                    await client.until(lambda: False)

    async def cuts(self):
        stream = await self.tls()
        await stream.send_all(self.request("cut"))
        got = await read_all(stream)
        assert not got.endswith(b"0\r\n\r\n"), "a cut answer ended cleanly"
        await trio.aclose_forcefully(stream)

    async def tunnels(self):
        stream = await self.tunnel(f"localhost:{self.blind}")
        data = os.urandom(random.choice([10, 5000, 300_000]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.say, stream, data)
            assert await read_all(stream) == data
        await stream.aclose()

    @staticmethod
    async def say(stream, data):
        await stream.send_all(data)
        await stream.send_eof()

    async def upgrades(self):
        stream = await self.tls()
        await stream.send_all(
            f"GET /v1/socket HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: k\r\n".encode()
            + b"Connection: Upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        head, got = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 101 "), head
        await stream.send_all(b"ping" * 100)
        while len(got) < 400:
            data = await stream.receive_some()
            assert data
            got += data
        await trio.aclose_forcefully(stream)

    async def base_urls(self):
        stream = await self.tcp()
        await stream.send_all(self.request("early", pad=50_000))
        await read_head(stream)
        await trio.aclose_forcefully(stream)

    async def garbage(self):
        stream = await (self.tcp() if random.random() < 0.5 else self.tunnel())
        await stream.send_all(random.choice([b"\x16\x03\x01\x02\x00", b"\x00" * 99, b"GET /\r\n\r\n", os.urandom(500)]))
        if random.random() < 0.5:
            with trio.move_on_after(0.2):
                await read_all(stream)
        await trio.aclose_forcefully(stream)

    async def pages(self):
        stream = await self.tcp()
        path = random.choice(["/health", "/metrics", "/api/status", "/dashboard"])
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert (await read_all(stream)).startswith(b"HTTP/1.1 ")
        await stream.aclose()

    # ---- running

    async def client(self, until):
        kinds = [self.streams, self.streams, self.small, self.aborts, self.cuts, self.tunnels, self.upgrades]
        kinds += [self.base_urls, self.garbage, self.pages, self.h2_streams, self.h2_aborts]
        while trio.current_time() < until:
            kind = random.choice(kinds)
            try:
                with trio.fail_after(30):
                    await kind()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                if kind not in (self.aborts, self.cuts, self.garbage, self.base_urls, self.h2_aborts):
                    self.failures.append(f"{kind.__name__}: broken")
            except (AssertionError, trio.TooSlowError, OSError) as error:
                if kind is not self.garbage and not (kind is self.cuts and "middle of a head" in str(error)):
                    self.failures.append(f"{kind.__name__}: {error!r}"[:300])
            self.counts[kind.__name__] = self.counts.get(kind.__name__, 0) + 1

    async def run(self, seconds, clients):
        """Clients of all kinds for so long."""
        until = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(self.client, until)

    async def metrics(self):
        stream = await self.tcp()
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        got = (await read_all(stream)).decode()
        await stream.aclose()
        return {name: float(value) for name, value in re.findall(r"^(dbproxy_\w+) (\S+)$", got, re.MULTILINE)}

    async def settle(self, seconds=15.0):
        """Wait until nothing but our question runs and all is captured, then say what is held."""
        work = ("dbproxy_exchanges_open", "dbproxy_capture_held_bytes", "dbproxy_store_queued")
        tasks = 0
        with trio.move_on_after(seconds):
            while True:
                now = await self.metrics()
                before, tasks = tasks, int(now["dbproxy_tasks"])
                if now["dbproxy_connections_open"] <= 1 and not any(now[name] for name in work) and tasks == before:
                    break
                await trio.sleep(0.1)
        return await self.sample()

    async def sample(self):
        """What the proxy holds now."""
        now = await self.metrics()
        status = Path(f"/proc/{self.pid}/status").read_text()
        links = []
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                links.append(str(link.readlink()))
            except OSError:
                pass
        return Sample(
            rss=int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024,
            fds=len(links),
            sockets=sum(link.startswith("socket:") for link in links) - int(now["dbproxy_pool_idle_connections"]),
            tasks=int(now["dbproxy_tasks"]),
            connections=int(now["dbproxy_connections_open"]),
            exchanges=int(now["dbproxy_exchanges_open"]),
        )
