"""The proxies under measurement and the server behind them, as child processes.

Owns starting them on loopback, pinning them, reading their CPU time and memory, and ending exactly what it started.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import tools

HOST = "api.anthropic.com"  # the name that clients tunnel to through us; the fake server stands behind it
HERE = Path(__file__).resolve().parent
_pause = threading.Event().wait


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cpus() -> tuple[int, int]:
    """The core for the proxies and the core for client and server; the same one where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []


def quick_priority() -> None:
    """Ask for a little more than our neighbours get; without the right to it the bench runs as everybody else."""
    try:
        os.nice(-10)
    except OSError:
        pass


@dataclass
class Contestant:
    """A way from the client to the server. ``connect`` is the CONNECT target, empty for none."""

    name: str
    port: int
    connect: str = ""
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0

    def pids(self) -> list[int]:
        """The process and those that it started: ours has a supervisor and, last, the worker."""
        found = [self.pid] if self.process is not None else []
        for pid in found:
            for thread in _threads(pid):
                try:
                    children = Path(f"/proc/{pid}/task/{thread}/children").read_text()
                except OSError:
                    continue
                found += [int(child) for child in children.split()]
        return found

    def cpu(self) -> float:
        """CPU seconds that all of its processes have used so far, ended threads included."""
        # What clock_getcpuclockid(3) makes of a process id.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids())

    def rss(self) -> int:
        """Resident memory of the process that does the work, in bytes."""
        with open(f"/proc/{self.pids()[-1]}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def pin(self, core: int) -> None:
        """Run on this core alone, every process and thread of it."""
        for pid in self.pids():
            for thread in _threads(pid):
                try:
                    os.sched_setaffinity(thread, {core})
                except ProcessLookupError:
                    pass

    def must_live(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            said = self.log.read_text(errors="replace")[-800:] if self.log else ""
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {said}")


@dataclass
class Field:
    """Everything that runs during a bench."""

    folder: Path
    lt: str
    started: list[Contestant] = field(default_factory=list)
    server: Contestant = field(default_factory=lambda: Contestant("server", 0))
    plain_port: int = 0

    # ---- life

    def launch(
        self, name: str, command: list[str], port: int, *, connect: str = "", env: dict[str, str] | None = None
    ) -> Contestant:
        """Start a contestant and wait until it listens."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                env=self.environment() | (env or {}),
                preexec_fn=quick_priority,
            )
        one = Contestant(name, port, connect, process, log)
        self.started.append(one)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            one.must_live()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return one
            _pause(0.02)
        raise RuntimeError(f"{name} did not listen within a minute")

    def stop(self, one: Contestant) -> None:
        """End one contestant."""
        process = one.process
        if one in self.started:
            self.started.remove(one)
        if process is None or process.poll() is not None:
            return
        pids = one.pids()
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            for pid in pids:  # all of them, or a worker would go on without its supervisor
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            process.wait(5)

    def close(self) -> None:
        """End everything that was started here."""
        for one in list(self.started):
            self.stop(one)

    def environment(self) -> dict[str, str]:
        """Little more than a home, and where our sources are."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(tools.ROOT),
        }

    # ---- who there is

    def start_server(self) -> None:
        """The fake API, TLS and plain, with a certificate of its own."""
        import trustme

        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(self.folder / "server-ca.pem"))
        leaf = ca.issue_cert("localhost", "127.0.0.1", HOST)
        leaf.private_key_pem.write_to_path(str(self.folder / "server-key.pem"))
        (self.folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        port, self.plain_port = free_port(), free_port()
        command = [self.lt, "server", str(port), str(self.plain_port), "server.pem", "server-key.pem"]
        self.server = self.launch("server", command, port)

    def direct(self) -> Contestant:
        """No proxy at all: what everything is compared with."""
        return Contestant("direct", self.server.port)

    def ours(self, name: str = "dbproxy", *plugins: str, again: bool = False, **more: str) -> Contestant:
        """Our proxy, with the token meter, one filter and two observers, and the named plugins besides.

        ``again`` starts it once more in the data directory of before; ``more`` is added to its environment.
        """
        home = self.folder / name
        if not again:
            (home / "plugins").mkdir(parents=True)
            home.chmod(0o700)
            (home / "plugins").chmod(0o700)
            files = [*(HERE / "plugins").glob("*.py"), *(HERE / "plugins_more" / f"{plugin}.py" for plugin in plugins)]
            for file in files:
                shutil.copy(file, home / "plugins")
        port = free_port()
        env = {
            "DBPROXY_LISTEN": f"127.0.0.1:{port}",
            "DBPROXY_DATA_DIR": str(home),
            "DBPROXY_UPSTREAM_URL": f"https://127.0.0.1:{self.server.port}",
            "DBPROXY_UPSTREAM_CA": str(self.folder / "server-ca.pem"),
            "DBPROXY_POOL_SIZE": "512",
        }
        one = self.launch(name, [sys.executable, "-m", "dbproxy", "serve"], port, connect=f"{HOST}:443", env=env | more)
        expected = {"token-meter", "bench_filter", "bench_observer_one", "bench_observer_two", *plugins}
        working = {key for key, facts in self.health(one)["plugins"].items() if facts["state"] == "ok"}
        if not expected <= working:
            raise RuntimeError(f"plugins that are not loaded: {sorted(expected - working)}")
        return one

    @staticmethod
    def health(one: Contestant) -> dict[str, dict[str, dict[str, str]]]:
        """What /health says."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{one.port}/health", timeout=10) as answer:
            found: dict[str, dict[str, dict[str, str]]] = json.load(answer)
            return found

    def mitmdump(self, name: str = "mitmdump", *settings: str) -> Contestant:
        """mitmdump that streams every body instead of buffering it."""
        port = free_port()
        command = [
            tools.mitmdump(),
            "--quiet",
            "--listen-host=127.0.0.1",
            f"--listen-port={port}",
            "--set=stream_large_bodies=1",
            f"--set=ssl_verify_upstream_trusted_ca={self.folder / 'server-ca.pem'}",
            f"--set=confdir={self.folder / 'mitmproxy'}",
            *(f"--set={setting}" for setting in settings),
        ]
        return self.launch(name, command, port, connect=f"127.0.0.1:{self.server.port}")

    def nginx(self) -> Contestant:
        """nginx, one worker, TLS on both sides, unbuffered, with a keep-alive pool."""
        port, folder = free_port(), self.folder / "nginx"
        folder.mkdir()
        scratch = "\n".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(f"""
            daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 4096; }}
            http {{
              access_log off; client_max_body_size 0; keepalive_requests 10000000; keepalive_timeout 300s; {scratch}
              upstream up {{ server 127.0.0.1:{self.server.port}; keepalive 512; keepalive_requests 10000000; }}
              server {{
                listen 127.0.0.1:{port} ssl backlog=4096; ssl_certificate {self.folder}/server.pem;
                ssl_certificate_key {self.folder}/server-key.pem;
                location / {{
                  proxy_pass https://up; proxy_http_version 1.1; proxy_set_header Connection "";
                  proxy_buffering off; proxy_request_buffering off;
                }}
              }}
            }}""")
        command = [tools.program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
        return self.launch("nginx", command, port)

    def haproxy(self) -> Contestant:
        """haproxy, one thread, relaying TCP blindly."""
        port, config = free_port(), self.folder / "haproxy.cfg"
        config.write_text(f"""
global
  nbthread 1
  maxconn 4096
defaults
  mode tcp
  timeout connect 5s
  timeout client 300s
  timeout server 300s
listen blind
  bind 127.0.0.1:{port}
  server one 127.0.0.1:{self.server.port}
""")
        return self.launch("haproxy", [tools.program("haproxy"), "-db", "-f", str(config)], port)
