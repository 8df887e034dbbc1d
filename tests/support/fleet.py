"""A supervised proxy as people run it: processes of its own, in front of the fake API, and clients that retry."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h11
import trio

from dbproxy.proc import handover
from dbproxy.state import is_alive
from dbproxy.testing.origin import Answer, Origin, open_origin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

ROOT = Path(__file__).resolve().parents[2]
HOST = "api.anthropic.com"
BODY = json.dumps({"model": "claude-x", "max_tokens": 8, "stream": True, "messages": []}).encode()
EVENTS = tuple(
    f'event: content_block_delta\ndata: {{"type":"content_block_delta","n":{n},"pad":"{"x" * 80}"}}\n\n'.encode()
    for n in range(40)
)
#: Exactly these bytes are one whole answer; it takes about a second.
WHOLE = b"".join(EVENTS)
STREAM = Answer(events=EVENTS, content_type="text/event-stream", gap=0.025)


class Broken(Exception):
    """An answer that did not come to its end."""


@dataclass
class Fleet:
    """One data directory, and the processes that were started for it."""

    home: Path
    origin: Origin
    settings: tuple[str, ...] = ()
    root: Path = ROOT
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.home / "data"

    def environment(self, **env: str) -> dict[str, str]:
        keep = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8", "PYTHONPATH": str(self.root)}
        ca = self.home / "origin.pem"
        ca.write_bytes(self.origin.ca_pem)
        mine = {
            "DBPROXY_DATA_DIR": str(self.data),
            "DBPROXY_LISTEN": "127.0.0.1:0",
            "DBPROXY_UPSTREAM_URL": self.origin.url,
            "DBPROXY_UPSTREAM_CA": str(ca),
        }
        return {**keep, **mine, **env}

    def serve(self, *words: str) -> subprocess.Popen[bytes]:
        """`dbproxy serve` with its stderr in `serve.err`."""
        with (self.home / "serve.err").open("ab") as err:
            command = [sys.executable, "-m", "dbproxy", *self.settings, "serve", *words]
            process = subprocess.Popen(command, env=self.environment(), stderr=err, cwd=self.home)
        self.processes.append(process)
        return process

    async def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Another command of dbproxy, to its end."""
        return await trio.run_process(  # type: ignore[return-value]
            [sys.executable, "-m", "dbproxy", *words],
            env=self.environment(**env),
            cwd=self.home,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )

    def state(self) -> dict[str, Any]:
        return json.loads((self.data / "run" / "daemon.json").read_text())

    def families(self) -> list[handover.Family]:
        return list(handover.families(self.data / "run"))

    def supervisor(self) -> int:
        return int(self.state()["pid"])

    def workers(self) -> list[int]:
        """The workers of the supervisor on record that live."""
        mine = [family for family in self.families() if family.supervisor[0] == self.supervisor()]
        return [pid for family in mine for pid, identity in family.workers if is_alive(pid, identity)]

    async def worker(self) -> int:
        """The pid of the one worker, once there is exactly one."""
        await until(lambda: len(self.workers()) == 1)
        return self.workers()[0]

    async def health(self) -> dict[str, Any]:
        """What the port says of itself; waits for whoever answers."""
        head, body = await self._get("/health")
        assert head == 200, body
        return json.loads(body)

    async def ready(self) -> dict[str, Any]:
        await until(lambda: (self.data / "run" / "daemon.json").exists())
        return await self.health()

    def log(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in (self.data / "logs" / "dbproxy.jsonl").read_bytes().splitlines()]
        except FileNotFoundError:
            return []

    @property
    def port(self) -> int:
        return int(self.state()["listen"][0].rpartition(":")[2])

    async def _get(self, path: str) -> tuple[int, bytes]:
        with trio.fail_after(20):
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
                return await _read(stream)

    async def attempt(self, *, tunnel: bool, seconds: float = 20.0) -> bytes:
        """One streamed answer as the client gets it. Raises Broken for anything but a whole one."""
        try:
            with trio.fail_after(seconds):
                stream: Any = await trio.open_tcp_stream("127.0.0.1", self.port)
                try:
                    if tunnel:
                        stream = await self._tls(stream)
                    where = HOST if tunnel else "127.0.0.1"
                    await stream.send_all(
                        f"POST /v1/messages HTTP/1.1\r\nHost: {where}\r\nx-api-key: k\r\nConnection: close\r\n"
                        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
                        + BODY
                    )
                    status, body = await _read(stream)
                finally:
                    with trio.move_on_after(0.1):
                        await trio.aclose_forcefully(stream)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, h11.ProtocolError, ssl.SSLError) as error:
            raise Broken(repr(error)) from error
        if status != 200:
            raise Broken(f"{status} {body[:200]!r}")
        return body

    async def _tls(self, stream: trio.SocketStream) -> Any:
        userinfo = base64.b64encode(b"nobody:nothing").decode()
        await stream.send_all(
            f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\nProxy-Authorization: Basic {userinfo}\r\n\r\n".encode()
        )
        seen = b""
        while b"\r\n\r\n" not in seen:
            data = await stream.receive_some()
            if not data:
                raise trio.BrokenResourceError("closed before the tunnel was granted")
            seen += data
        if not seen.startswith(b"HTTP/1.1 200 "):
            raise trio.BrokenResourceError(repr(seen))
        context = ssl.create_default_context(cafile=str(self.data / "ca" / "bundle.pem"))
        secure = trio.SSLStream(stream, context, server_hostname=HOST, https_compatible=True)  # noqa: TID251
        await secure.do_handshake()
        return secure

    async def persist(self, *, tunnel: bool, attempts: int = 11) -> int:
        """What the client does: ask, and ask again when the answer breaks; how many times it took. The answer that
        it settles for must be whole."""
        for number in range(1, attempts + 1):
            try:
                body = await self.attempt(tunnel=tunnel)
            except Broken:
                await trio.sleep(0.1)
                continue
            assert body == WHOLE
            return number
        raise AssertionError(f"no whole answer in {attempts} attempts")

    def end(self) -> None:
        """Kill what is left of all that was started for this data directory."""
        for family in self.families():
            for pid, identity in (family.supervisor, *family.workers):
                if is_alive(pid, identity):
                    os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.wait()


async def _read(stream: Any) -> tuple[int, bytes]:
    """Status and body of one answer, by a reader that is not ours; a body cut short is a protocol error."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    status, body = 0, bytearray()
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            parser.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("closed without an answer")


async def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    with trio.fail_after(seconds):
        while not true():
            await trio.sleep(0.02)


async def eventually(true: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> None:
    with trio.fail_after(seconds):
        while not await true():
            await trio.sleep(0.05)


@asynccontextmanager
async def open_fleet(
    tmp_path: Path, *words: str, settings: tuple[str, ...] = (), serve: bool = True
) -> AsyncIterator[Fleet]:
    """A supervised proxy that serves; ``words`` go behind `serve`, ``settings`` before it."""
    async with open_origin(STREAM, tls=True) as origin:
        fleet = Fleet(tmp_path, origin, settings)
        try:
            if serve:
                fleet.serve(*words)
                await fleet.ready()
            yield fleet
        finally:
            fleet.end()
