"""Bad circumstances of the whole process: no port, no disk, no file descriptors, broken certificates, wrong settings.

The program runs as a process of its own; what it says on stderr is what a person sees.
"""

from __future__ import annotations

import base64
import json
import os
import re
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from rig import HOST, open_rig, read_head

from dbproxy.app import run as run_module
from dbproxy.app.journal import Journal
from dbproxy.testing.origin import open_origin

ROOT = Path(__file__).resolve().parents[2]
ALONE = (str(ROOT / "tests" / "support" / "alone.py"),)


def command(home, *args, env=None, files=None, cwd=None, program=("-m", "dbproxy")):
    """``dbproxy ARGS`` as a process of a person whose home is ``home``; ``files`` are soft and hard limit."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, files)) if files else None
    return subprocess.Popen(
        [sys.executable, *program, *args],
        env=environment | (env or {}),
        cwd=cwd or home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=limit,
    )


def fails(home, *args, **how):
    """The one line that a command which cannot work leaves on stderr, and its exit code."""
    process = command(home, *args, **how)
    try:
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert b"Traceback" not in error, error.decode()
    assert process.returncode in (1, 2)
    assert not out
    return error.decode(), process.returncode


@contextmanager
def serving(home, *args, **how):
    """A running worker, settings as NAME=VALUE: (process, port)."""
    process = command(home, *args, program=ALONE, **how)
    try:
        line = process.stderr.readline().decode()
        found = re.search(r"listens on http://127\.0\.0\.1:(\d+)", line)
        assert found, line + process.stderr.read().decode()
        yield process, int(found[1])
        assert process.poll() is None, process.stderr.read().decode()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        process.stdout.close()
        process.stderr.close()


def pause(seconds=0.05):
    """These tests have no event loop of their own."""
    select.select([], [], [], seconds)


def ask(port, path="/health", seconds=10.0):
    """(status, body) of one request."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        got = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


def metric(port, name):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status, body = ask(port, "/metrics")
        if status == 200:
            return float(re.search(rf"^{name} (\S+)$".encode(), body, re.MULTILINE)[1])
        pause()
    raise AssertionError("no metrics in 10 s")


def rss(process):
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024


# -- starting ---------------------------------------------------------------------------------------------------------


def test_a_taken_port_is_one_line_that_says_what_to_do(own_home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error, code = fails(own_home, "serve", "--listen", f"127.0.0.1:{port}")
    assert code == 1
    assert f"127.0.0.1:{port}" in error
    assert "--listen" in error
    assert error.count("\n") == 1


def test_an_address_that_is_not_ours(own_home):
    error, _ = fails(own_home, "serve", "--listen", "192.0.2.1:8080")
    assert "192.0.2.1" in error


@pytest.mark.parametrize("name", ["root-0001.pem", "own.pem", "bundle.pem", "child-bundle.pem", "lock", "leaves"])
@pytest.mark.parametrize("how", ["half", "empty", "garbage", "folder", "key only", "gone"])
def test_broken_certificate_files_are_renewed_or_named(own_home, name, how):
    """Whatever became of a file: the proxy starts and is trusted, or says in a line which file is the matter."""
    with serving(own_home):
        pass
    data = own_home / ".local" / "share" / "dbproxy"
    if sys.platform == "darwin":
        data = own_home / "Library" / "Application Support" / "dbproxy"
    file = data / "ca" / name
    content = file.read_bytes() if file.is_file() else b""
    if file.is_dir():
        for inner in file.iterdir():
            inner.unlink()
        file.rmdir()
    else:
        file.unlink()
    if how == "folder":
        file.mkdir()
    elif how != "gone":
        changed = {
            "half": content[: len(content) // 2],
            "empty": b"",
            "garbage": b"\x00\xff garbage \n" * 20,
            "key only": content[: content.find(b"-----END") + 60],
        }
        file.write_bytes(changed[how])
    process = command(own_home, program=ALONE)
    try:
        line = process.stderr.readline().decode()
        if "listens on" in line:
            port = int(re.search(r":(\d+)$", line.strip())[1])
            assert ask(port)[0] == 200
            if (data / "ca" / "bundle.pem").is_dir():
                return  # nobody's children could be told about our root; the proxy itself goes on
            context = ssl.create_default_context(cadata=(data / "ca" / "bundle.pem").read_text())
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                sock.sendall(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
                with context.wrap_socket(sock, server_hostname=HOST) as secured:
                    assert secured.version()
        else:
            rest = process.stderr.read().decode()
            assert process.wait(10) == 1
            assert "Traceback" not in line + rest
            assert name in line + rest
    finally:
        process.kill()
        process.wait(5)
        process.stdout.close()
        process.stderr.close()


def read_only_homes(tmp_path):
    (tmp_path / "file").write_text("")
    yield tmp_path / "file" / "data"
    if sys.platform == "linux":
        yield Path("/proc/dbproxy")


def test_a_home_that_cannot_be_written(own_home, tmp_path):
    for folder in read_only_homes(tmp_path):
        error, code = fails(own_home, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(folder))
        assert code == 1
        assert "DBPROXY_DATA_DIR" in error
        assert error.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root to mount")
def test_a_home_on_a_read_only_file_system(own_home):
    script = f"mount --bind {own_home} {own_home} && mount -o remount,ro,bind {own_home} && exec "
    script += f"'{sys.executable}' -m dbproxy serve --listen 127.0.0.1:0"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        env={"PATH": os.environ["PATH"], "HOME": str(own_home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=30,
        cwd="/",
    )
    if b"unshare" in done.stderr or b"mount" in done.stderr:
        assert b"ermission" in done.stderr or b"not permitted" in done.stderr, done.stderr
        pytest.skip("this sandbox forbids mounting; the folders of the test above are checked all the same")
    assert done.returncode == 1
    assert b"DBPROXY_DATA_DIR" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content", [None, b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_an_upstream_ca_that_cannot_be_used_is_said_at_start(own_home, tmp_path, content):
    file = tmp_path / "extra.pem"
    if content is not None:
        file.write_bytes(content)
    error, _ = fails(own_home, f"upstream_ca={file}", program=ALONE)
    assert "extra.pem" in error


@pytest.mark.parametrize(
    ("args", "env", "toml", "says"),
    [
        (["--pasthrough"], {}, "", "--pasthrough"),
        ([], {"DBPROXY_PASTHROUGH": "1"}, "", "DBPROXY_PASSTHROUGH"),
        ([], {}, "pasthrough = true\n", "passthrough"),
        ([], {"DBPROXY_MAX_CONNECTIONS": "many"}, "", "MAX_CONNECTIONS"),
        ([], {}, "this is [not toml", "config.toml"),
    ],
)
def test_unknown_and_malformed_settings_stop_the_start_with_advice(own_home, args, env, toml, says):
    if toml:
        folder = own_home / ".config" / "dbproxy"
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(toml)
    error, code = fails(own_home, "serve", *args, env={"XDG_CONFIG_HOME": str(own_home / ".config")} | env)
    assert code in (1, 2)
    assert says in error


def test_a_project_file_cannot_redirect_a_proxy_that_is_started_in_its_clone(own_home, tmp_path):
    (tmp_path / "dbproxy.toml").write_text(
        'upstream_url = "https://evil.example"\nlisten = ["0.0.0.0:1"]\nintercept = ["bank.example"]\n'
    )
    token = {"DBPROXY_CONTROL_TOKEN": "a-token-for-this-test"}
    with serving(own_home, cwd=tmp_path, env=token) as (_, port), socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(
            b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Authorization: Bearer a-token-for-this-test\r\n\r\n"
        )
        got = b"".join(iter(lambda: sock.recv(65536), b""))
    facts = json.loads(got.partition(b"\r\n\r\n")[2])
    assert facts["upstream_url"] == "https://api.anthropic.com"
    assert facts["intercept"] == [HOST]
    assert facts["listen"] == [f"127.0.0.1:{port}"]


# -- file descriptors and many connections ----------------------------------------------------------------------------


def many(port, count):
    socks = []
    for _ in range(count):
        sock = socket.socket()
        sock.settimeout(5)
        sock.connect(("127.0.0.1", port))
        socks.append(sock)
    return socks


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_soft_limit_of_open_files_is_raised(own_home):
    with serving(own_home, files=(128, 4000)) as (process, _):
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert re.search(r"Max open files\s+4000\s+4000", limits)


def test_with_few_file_descriptors_one_connection_too_many_is_told_so(own_home):
    with serving(own_home, files=(128, 256)) as (process, port):
        socks = many(port, 200)
        pause(0.3)
        told = 0
        for sock in socks:
            sock.settimeout(0.01)
            try:
                told += b"HTTP/1.1 529 " in sock.recv(4096)
            except TimeoutError:
                pass
        assert 80 <= told <= 160
        assert ask(port, seconds=5)[0] == 529
        for sock in socks:
            sock.close()
        deadline = time.monotonic() + 5
        while ask(port)[0] != 200 and time.monotonic() < deadline:
            pause()
        assert metric(port, "dbproxy_connections_refused_total") >= told
        assert metric(port, "dbproxy_crashes_total") == 0
        assert process.poll() is None


def test_with_no_file_descriptor_left_running_connections_go_on_and_it_recovers(own_home):
    """Blind tunnels to ourselves' neighbour take descriptors that the limit of connections does not count."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sink, serving(own_home, files=(48, 48)) as (_, port):
        target = f"localhost:{sink.getsockname()[1]}"
        kept = socket.create_connection(("127.0.0.1", port), timeout=10)
        kept.sendall(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
        answers, socks = [], []
        for _ in range(60):
            sock = socket.create_connection(("127.0.0.1", port), timeout=10)
            socks.append(sock)
            sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        for sock in socks:
            try:
                answers.append(sock.recv(4096).partition(b"\r\n")[0])
            except (TimeoutError, ConnectionResetError) as error:
                answers.append(type(error).__name__.encode())
        assert all(answer.split(b" ")[1:2] in ([b"200"], [b"502"], [b"529"]) for answer in answers), answers
        assert sum(b" 200 " in answer for answer in answers) >= 3
        assert sum(b" 502 " in answer for answer in answers) >= 1  # no descriptor for the way out
        kept.sendall(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
        for sock in socks:
            sock.close()
        sink.close()  # a tunnel lives as long as one of its ends
        deadline = time.monotonic() + 5
        while metric(port, "dbproxy_connections_open") > 2 and time.monotonic() < deadline:
            pause()
        assert metric(port, "dbproxy_connections_open") <= 2
        assert metric(port, "dbproxy_accept_errors_total") + metric(port, "dbproxy_connections_refused_total") >= 1
        assert metric(port, "dbproxy_crashes_total") == 0
        kept.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_thousand_idle_connections(own_home):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with serving(own_home) as (process, port):
            ask(port)
            before = rss(process)
            socks = many(port, 2000)
            deadline = time.monotonic() + 10
            while metric(port, "dbproxy_connections_open") < 2000 and time.monotonic() < deadline:
                pause()
            grown = rss(process) - before
            assert grown < 2000 * 24_000, f"{grown / 2000:.0f} bytes each"
            times = []
            for _ in range(20):
                began = time.monotonic()
                assert ask(port)[0] == 200
                times.append(time.monotonic() - began)
            assert sorted(times)[10] < 0.05
            for sock in socks:
                sock.close()
            deadline = time.monotonic() + 10
            while metric(port, "dbproxy_connections_open") > 1 and time.monotonic() < deadline:
                pause()
            assert metric(port, "dbproxy_connections_open") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- the disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
async def test_a_full_disk_loses_log_lines_and_nothing_else(tmp_path, monkeypatch):
    full = partial(Journal, opener=lambda path: os.open("/dev/full", os.O_WRONLY))
    monkeypatch.setattr(run_module, "Journal", full)
    async with open_rig(tmp_path) as r:
        stream = await r.tls()
        for _ in range(20):
            await stream.send_all(f"GET /v1/models HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: k\r\n\r\n".encode())
            head, rest = await read_head(stream)
            assert head.startswith(b"HTTP/1.1 200 ")
            size = int(re.search(rb"content-length: (\d+)", head.lower())[1])
            while len(rest) < size:
                rest += await stream.receive_some()
        facts: dict = {}
        with trio.fail_after(10):
            while facts.get("status") != "degraded":
                plain = await r.plain()
                await plain.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                facts = json.loads(b"".join([data async for data in plain]).partition(b"\r\n\r\n")[2])
        assert "full" in facts["problems"]["journal"]


# -- the upstream -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certificate", "says"), [("expired", "expired"), ("wrong_name", "another address"), ("untrusted", "trust")]
)
@pytest.mark.parametrize("tunnel", [True, False])
async def test_an_upstream_whose_certificate_is_bad_gets_no_request(tmp_path, certificate, says, tunnel):
    async with open_origin(tls=True, certificate=certificate) as bad:
        folder = tmp_path / "rig"
        folder.mkdir()
        (tmp_path / "bad.pem").write_bytes(bad.ca_pem)
        async with open_rig(folder, upstream_url=bad.url, upstream_ca=str(tmp_path / "bad.pem")) as r:
            stream = await (r.tls() if tunnel else r.plain())
            await stream.send_all(
                f"GET /v1/models HTTP/1.1\r\nHost: {HOST if tunnel else 'localhost'}\r\nx-api-key: k\r\n\r\n".encode()
            )
            head, rest = await read_head(stream)
            assert head.startswith(b"HTTP/1.1 502 ")
            assert b"x-dbproxy-error: 1" in head
            message = json.loads(rest)["error"]["message"]
            assert says in message.lower()
            assert not bad.requests
            assert r.proxy.counters.crashes_total == 0


@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_a_name_that_does_not_resolve(tmp_path, scheme):
    async with open_rig(tmp_path, upstream_url=f"{scheme}://nobody.invalid", connect_timeout="5") as r:
        stream = await r.tls()
        with trio.fail_after(10):
            await stream.send_all(f"GET /v1/models HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: k\r\n\r\n".encode())
            head, rest = await read_head(stream)
        assert head.split(b" ")[1] in (b"502", b"504")
        assert "nobody.invalid" in json.loads(rest)["error"]["message"]
        assert "retry-after" not in head.decode()


async def test_a_launch_whose_extra_certificates_are_gone_is_told_so(tmp_path):
    from dbproxy.scope import Scope, new_id, new_secret

    async with open_rig(tmp_path) as r:
        scope = Scope(new_id(), new_secret(), settings={"upstream_ca": str(tmp_path / "gone.pem")})
        scope.save(r.proxy.paths.scopes)
        stream = await r.tls(userinfo=scope.userinfo)
        await stream.send_all(f"GET /v1/models HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: k\r\n\r\n".encode())
        head, rest = await read_head(stream)
        assert head.startswith(b"HTTP/1.1 502 ")
        assert "gone.pem" in json.loads(rest)["error"]["message"]
        other = await r.plain()
        credentials = "Proxy-Authorization: Basic " + base64.b64encode(scope.userinfo.encode()).decode()
        await other.send_all(f"CONNECT localhost:{r.origin.port} HTTP/1.1\r\nHost: x\r\n{credentials}\r\n\r\n".encode())
        assert (await read_head(other))[0].startswith(b"HTTP/1.1 502 ")
        assert r.proxy.counters.crashes_total == 0
