"""The executable itself: how soon it starts, how large it is, and how soon it is back after a kill.

Everything here runs the one-dir build of these sources (packaging/freeze.py makes it at first use). Times are of the
wall clock, as a person waits for them; each round runs every kind once.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import tools
from contestants import HOST, Contestant, free_port
from scenarios import MB, Bench, Figure, Invalid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_pause = threading.Event().wait
_PATIENCE = 30.0  # seconds for anything here


def built() -> Path:
    """The finished build of these sources. Raises Missing when it cannot be made."""
    spec = importlib.util.spec_from_file_location("freeze", tools.ROOT / "packaging" / "freeze.py")
    assert spec is not None
    assert spec.loader is not None
    freeze: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(freeze)
    try:
        made: Path = freeze.build()
    except freeze.Failed as error:
        raise tools.Missing(f"the executable could not be built: {error}") from None
    return made


def _environment(bench: Bench, data: Path, port: int) -> dict[str, str]:
    field = bench.field
    env = field.environment()
    del env["PYTHONPATH"]
    return env | {
        "PATH": f"{field.folder / 'bin'}:{env['PATH']}",
        "DBPROXY_LISTEN": f"127.0.0.1:{port}",
        "DBPROXY_DATA_DIR": str(data),
        "DBPROXY_UPSTREAM_URL": f"https://127.0.0.1:{field.server.port}",
        "DBPROXY_UPSTREAM_CA": str(field.folder / "server-ca.pem"),
    }


def _run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    if done.returncode:
        raise Invalid(f"{' '.join(command[-2:])} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def launch(bench: Bench) -> list[Figure]:
    """From the start of `dbproxy claude` to that of claude, against claude's own start; and `dbproxy --version`."""
    program = str(built() / "dbproxy" / "dbproxy")
    claude = bench.field.folder / "bin" / "claude"
    claude.parent.mkdir(exist_ok=True)
    shutil.copy(bench.field.lt, claude)
    env = _environment(bench, bench.field.folder / "launch", free_port())

    def until_child(*command: str) -> float:
        began = time.monotonic_ns()
        return (int(_run([*command, "-p", "hello"], env).splitlines()[-1]) - began) / 1e6

    def whole(*command: str) -> float:
        began = time.monotonic_ns()
        _run([*command], env)
        return (time.monotonic_ns() - began) / 1e6

    times: dict[str, list[float]] = {"running": [], "not running": [], "--version": []}
    try:
        until_child(program, "claude")  # makes the authority, which is done once
        for _ in range(bench.rounds(14)):
            direct = until_child(str(claude))
            times["running"].append(until_child(program, "claude") - direct)
            _run([program, "stop"], env)
            times["--version"].append(whole(program, "--version"))
            times["not running"].append(until_child(program, "claude") - direct)
            _pause(0.7)  # until the proxy has started in the background
    finally:
        subprocess.run([program, "stop", "--force"], env=env, capture_output=True, timeout=_PATIENCE, check=False)
    bench.raw.append({"scenario": "launch", **times})
    names = {"running": "`dbproxy claude`, proxy running, added", "not running": "the same, proxy not running, added"}
    figures = []
    for kind, runs in times.items():
        reach = 100 if kind == "--version" else 80
        name = names.get(kind, "`dbproxy --version`")
        figures.append(Figure(name, "ms", median(runs), f"{reach} ms", median(runs) <= reach))
    return figures


def _serve(bench: Bench, data: Path) -> tuple[Contestant, float]:
    """`dbproxy serve`, and the milliseconds until it answered."""
    port = free_port()
    began = time.monotonic()
    command = [str(built() / "dbproxy" / "dbproxy"), "serve"]
    log = bench.field.folder / "serve.log"
    with log.open("wb") as out:
        began = time.monotonic()
        process = subprocess.Popen(
            command, env=_environment(bench, data, port), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    one = Contestant("dbproxy serve", port, f"{HOST}:443", process, log)
    bench.field.started.append(one)
    while True:
        one.must_live()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
            connection.request("GET", "/health")
            healthy = connection.getresponse().status == 200
            connection.close()
            if healthy:
                return one, (time.monotonic() - began) * 1e3
        except OSError:
            pass
        if time.monotonic() > began + _PATIENCE:
            raise Invalid("dbproxy serve did not answer in time")
        _pause(0.001)


def serving(bench: Bench) -> list[Figure]:
    """From `dbproxy serve` to the first answer, with the certificates on the disk, and in a new data directory."""
    times: dict[str, list[float]] = {"new": [], "again": []}
    for number in range(bench.rounds(8)):
        for runs in times.values():
            one, taken = _serve(bench, bench.field.folder / f"serve-{number}")
            runs.append(taken)
            bench.field.stop(one)
    bench.raw.append({"scenario": "serving", **times})
    again, new = median(times["again"]), median(times["new"])
    return [
        Figure("`dbproxy serve` answers", "ms", again, "300 ms", again <= 300),
        Figure("the same at the very first start", "ms", new, "", True),
    ]


def size(bench: Bench) -> list[Figure]:
    """What is to be downloaded."""
    largest = max(path.stat().st_size for path in built().glob("dbproxy-*") if path.is_file()) / MB
    return [Figure("download size", "MB", largest, "40 MB", largest <= 40)]


def _secured(one: Contestant, data: Path) -> ssl.SSLSocket:
    """A tunnel in which our own certificate is presented; anything else fails."""
    raw = socket.create_connection(("127.0.0.1", one.port), timeout=_PATIENCE)
    raw.sendall(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = raw.recv(1)
        if not byte:
            raise ConnectionResetError
        head += byte
    context = ssl.create_default_context(cafile=str(data / "ca" / "bundle.pem"))
    return context.wrap_socket(raw, server_hostname=HOST)


def _ask(stream: ssl.SSLSocket, wish: str) -> bytes:
    """Send a request and read the beginning of what comes."""
    body = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}'
    head = (
        f"POST /v1/messages HTTP/1.1\r\nHost: {HOST}\r\nx-bench-answer: {wish}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    stream.sendall(head.encode() + body)
    return stream.recv(65536)


def killed(bench: Bench) -> list[Figure]:
    """The worker gets SIGKILL in the middle of a stream: until the next request through a new tunnel is answered."""
    data = bench.field.folder / "killed"
    one, _ = _serve(bench, data)
    times = []
    for number in range(bench.rounds(6)):
        stream = _secured(one, data)
        _ask(stream, "paced:50:500")
        began = time.monotonic()
        os.kill(one.pids()[-1], signal.SIGKILL)
        while True:
            try:
                with _secured(one, data) as again:
                    if _ask(again, "json").startswith(b"HTTP/1.1 200 "):
                        break
            except OSError:
                pass
            if time.monotonic() > began + _PATIENCE:
                raise Invalid("killed: nobody took over")
            _pause(0.005)
        times.append((time.monotonic() - began) * 1e3)
        stream.close()
        if number % 2:  # so many in a row would count as a proxy that cannot stand
            bench.field.stop(one)
            one, _ = _serve(bench, data)
    bench.field.stop(one)
    bench.raw.append({"scenario": "killed", "milliseconds": times})
    worst = max(times)
    return [
        Figure("worker killed: next request answered", "ms", median(times), "1 s", median(times) <= 1000),
        Figure("the same, longest", "ms", worst, "", True),
    ]


ALL: dict[str, Callable[[Bench], list[Figure]]] = {
    "launch": launch,
    "serving": serving,
    "size": size,
    "killed": killed,
}
